"""Targets on their way to other programs and back: bit for bit, against dense arithmetic, and into a student."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from outlay.models.loading import load_tokenizer
from outlay.settings import TeachSettings
from outlay.spec import TargetKind, TaskSpec
from outlay.standalone.targets_dir import TargetsFolder, index_of
from outlay.storage.hashing import digest_of
from outlay.train.targets.logprobs import Vocabulary, label_logprobs
from outlay.train.targets.targets import SparseTargets
from tests.checkpoints import make_gpt2
from tests.steps_world import REAGENTS, StepsWorld, rows, tree, write_rows
from tests.test_cli import Ran, outlay, refused
from tests.toys import targets_of

FORMS = {
    "tokens": TaskSpec("generation", (), 24, 17),
    "text": TaskSpec("generation", (), 24, 17),
    "classes": TaskSpec("classification", ("bad", "fair", "good"), 24, 17),
    "tags": TaskSpec("entities", ("Action", "Reagent"), 24, 17),
}
FREE = ("--kind", "generation", "--max-source-tokens", 24, "--max-target-tokens", 17, "--quiet")
LABELS = ("--kind", "classification", "--labels", "bad,good", "--quiet")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> StepsWorld:
    made = StepsWorld.make(tmp_path_factory.mktemp("world"))
    words = [text for each in rows("generation", 37, seed=37) for text in each.values()]
    make_gpt2(made.root / "gpt2", words, n_layers=1, hidden_size=32, seed=3)
    return made


def write_folder(
    out: Path, kind: TargetKind, blocks: Sequence[SparseTargets], settings: TeachSettings, student: str
) -> Path:
    """As `outlay teach` writes it; every other row has a gold answer."""
    out.mkdir(parents=True)
    digests = {}
    for number, block in enumerate(blocks):
        data = block.to_bytes()
        (out / f"targets-{number:05d}.safetensors").write_bytes(data)
        digests[f"targets-{number:05d}.safetensors"] = digest_of(data)
    answers = [answer for block in blocks for answer in block.answers]
    asked = [{"source": f"wörter {i}", **({"gold": f"gold {i}"} if i % 2 else {})} for i in range(len(answers))]
    write_rows(out / "rows.jsonl", asked)
    said = [
        {"source": each["source"], "prediction": answer, **({"gold": each["gold"]} if "gold" in each else {})}
        for each, answer in zip(asked, answers, strict=True)
    ]
    write_rows(out / "answers.jsonl", said)
    about = {"teacher": "a teacher", "student": [student, None], "n_rows": len(answers), "vocab_size": None}
    (out / "targets.json").write_text(json.dumps(index_of(FORMS[kind], kind, settings, digests, about)))
    return out


def random_targets(kind: TargetKind, vocab_size: int, settings: TeachSettings, seed: int = 0) -> SparseTargets:
    """Seven rows; sure and wavering positions, units that are not among what is kept, padding behind some answers."""
    rng = np.random.default_rng(seed)
    if kind == "text":
        return SparseTargets.text_only([f"said {i}\n" for i in range(7)])
    counts = np.ones(7, np.int64) if kind == "classes" else rng.integers(1, 12, 7)
    n = int(counts.sum())
    sure = 10.0 ** rng.uniform(-1, 1.6, (n, 1))
    logits = torch.from_numpy(rng.normal(size=(n, vocab_size)) * sure).float()
    units = logits.argmax(-1).numpy().astype(np.int32)
    units[::5] = logits.argmin(-1).numpy()[::5]
    return targets_of(
        kind,
        logits,
        counts,
        units,
        [f"said {i}" for i in range(7)],
        n_real=np.maximum(1, counts - (kind == "tokens") * rng.integers(0, 3, 7)),
        max_logits=settings.max_logits,
        tail_mass=settings.tail_mass,
    )


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize(
    ("kind", "vocab_size", "max_logits"),
    [("tokens", 61, 13), ("tokens", 61, 0), ("classes", 3, 64), ("tags", 5, 64), ("text", 0, 64)],
)
def test_an_export_comes_back_bit_for_bit(
    world: StepsWorld, tmp_path: Path, kind: TargetKind, vocab_size: int, max_logits: int, suffix: str
) -> None:
    settings = TeachSettings(max_logits=max_logits, sample=True)
    block = random_targets(kind, vocab_size, settings)
    folder = write_folder(tmp_path / "folder", kind, [block], settings, world.model("small"))
    file, back = tmp_path / f"said{suffix}", tmp_path / "back"
    assert outlay("targets", "export", folder, "--out", file).code == 0
    ran = outlay("targets", "import", file, "--out", back, "--quiet")
    assert ran.code == 0, ran.err
    before, after = tree(folder), tree(back)
    for name in ("targets-00000.safetensors", "rows.jsonl", "answers.jsonl"):
        assert after[name] == before[name], name
    index, was = json.loads(after["targets.json"]), json.loads(before["targets.json"])
    assert {name: index[name] for name in was} | {"model_sha256": None} == was | {"model_sha256": None}
    assert index["imported"]["file"] == str(file)


def test_exported_logprobs_are_those_of_the_full_vocabulary(world: StepsWorld, tmp_path: Path) -> None:
    settings = TeachSettings(max_logits=61)
    block = random_targets("tokens", 61, settings)
    folder = write_folder(tmp_path / "folder", "tokens", [block], settings, world.model("small"))
    outlay("targets", "export", folder, "--out", tmp_path / "said.jsonl.gz")
    lines = [json.loads(line) for line in gzip.decompress((tmp_path / "said.jsonl.gz").read_bytes()).splitlines()]
    assert [line["answer"] for line in lines] == list(block.answers)
    kept, at = block.positions(), 0
    logits = kept.logits.reshape(-1, 61).astype(np.float64)
    dense = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    pieces = load_tokenizer(world.model("small"), world.model("small"))
    for line, n_real, n in zip(lines, block.n_real, block.places.n_positions, strict=True):
        assert len(line["content"]) == n_real
        places = [*line["content"], *line.get("padding", [])]
        assert len(places) == n
        for place in places:
            said = {top["token_id"]: top["logprob"] for top in place["top_logprobs"]}
            np.testing.assert_allclose([said[v] for v in kept.indices.reshape(-1, 61)[at]], dense[at], atol=1e-5)
            assert place["logprob"] == said[place["token_id"]]
            piece = pieces.convert_ids_to_tokens(place["token_id"])
            assert place["token"] == (piece.replace("▁", " ") if "▁" in piece else piece)
            at += 1
    assert at == len(kept)


def test_blocks_are_written_one_behind_the_other(world: StepsWorld, tmp_path: Path) -> None:
    settings = TeachSettings(max_logits=13)
    blocks = [random_targets("tokens", 61, settings, seed) for seed in (1, 2)]
    folder = write_folder(tmp_path / "folder", "tokens", blocks, settings, world.model("small"))
    outlay("targets", "export", folder, "--out", tmp_path / "said.jsonl")
    lines = (tmp_path / "said.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 14
    assert ["outlay" in json.loads(line) for line in lines] == [True] + 13 * [False]
    outlay("targets", "import", tmp_path / "said.jsonl", "--out", tmp_path / "back", "--quiet")
    one = TargetsFolder.open(tmp_path / "back").load(14)
    assert one.to_bytes() == SparseTargets.concatenate(blocks).to_bytes()
    refused(outlay("targets", "export", folder, "--out", tmp_path / "said.jsonl"), "said.jsonl", "--overwrite")
    assert outlay("targets", "export", folder, "--out", tmp_path / "said.jsonl", "--overwrite").code == 0
    refused(
        outlay("targets", "export", folder, "--out", tmp_path / "said.csv"), "said.csv", ".jsonl, .jsonl.gz, .parquet"
    )


def test_show_says_what_is_there_and_what_is_damaged(world: StepsWorld, tmp_path: Path) -> None:
    settings = TeachSettings(max_logits=13)
    blocks = [random_targets("tokens", 61, settings, seed) for seed in (1, 2)]
    folder = write_folder(tmp_path / "folder", "tokens", blocks, settings, world.model("small"))
    shown = outlay("targets", "show", folder)
    assert shown.code == 0, shown.err
    for words in ("rows: 14 of tokens", "1, 2, 4, over 61", "blocks: 2, ", "sha256"):
        assert words in shown.out, shown.out
    about = outlay("targets", "show", folder, "--json").json
    whole = SparseTargets.concatenate(blocks).statistics()
    assert about["kept"]["logits_mean"] == pytest.approx(whole.kept_mean, abs=0.01)
    assert about["kept"]["mass_min"] == pytest.approx(whole.mass_kept_min, abs=1e-6)
    assert about["kept"]["n_positions"] == whole.n_positions
    (folder / "targets-00001.safetensors").write_bytes(b"else")
    about = outlay("targets", "show", folder, "--json").json
    assert [block["state"] for block in about["blocks"].values()] == ["sound", "damaged"]
    assert about["kept"]["n_positions"] == len(blocks[0].positions())
    assert "targets-00001.safetensors is damaged" in outlay("targets", "show", folder).out
    (folder / "targets-00001.safetensors").unlink()
    assert "targets-00001.safetensors is missing" in outlay("targets", "show", folder).out
    refused(
        outlay("targets", "export", folder, "--out", tmp_path / "said.jsonl"),
        "targets-00001.safetensors",
        "sha256",
        "teach again",
    )


# --- what others write -----------------------------------------------------------------------------------------------


def spot(token: str, tops: dict[str, float], **more: Any) -> dict[str, Any]:
    """A position of a chat completion, from probabilities."""
    tops_ = [{"token": text, "logprob": math.log(p), "bytes": list(text.encode())} for text, p in tops.items()]
    return {"token": token, "logprob": math.log(tops[token]), "top_logprobs": tops_, **more}


def chat(answer: str, content: list[dict[str, Any]], finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": answer}
    choice = {"index": 0, "message": message, "logprobs": {"content": content}, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}


def imported(
    world: StepsWorld, tmp_path: Path, lines: list[dict[str, Any]], *more: object, student: str = "gpt2"
) -> SparseTargets:
    ran = run_import(world, tmp_path, lines, *more, student=student)
    assert ran.code == 0, ran.err
    folder = TargetsFolder.open(tmp_path / "back")
    return folder.load(len(folder.rows()))


def run_import(
    world: StepsWorld, tmp_path: Path, lines: list[dict[str, Any]], *more: object, student: str = "gpt2"
) -> Ran:
    file = write_rows(tmp_path / "theirs.jsonl", lines)
    asked = more if "--kind" in more else (*FREE, *more)
    return outlay("targets", "import", file, "--student", world.model(student), *asked, "--out", tmp_path / "back")


def pieces_of(world: StepsWorld, text: str) -> list[int]:
    tokenizer = load_tokenizer(world.model("gpt2"), world.model("gpt2"))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def dense_of(targets: SparseTargets, position: int) -> tuple[dict[int, float], float]:
    """Probabilities of the classes kept at a position of the first row, and of all others together, in float64."""
    kept, counts = targets.positions(), targets.positions().counts(targets.rule)
    start = int(counts[:position].sum())
    mine = slice(start, start + int(counts[position]))
    p = np.exp(kept.all_logits()[mine].astype(np.float64) - kept.logsumexp[position, 0])
    return dict(zip(kept.indices[mine].tolist(), p.tolist(), strict=True)), 1.0 - float(p.sum())


def expect(targets: SparseTargets, position: int, wanted: dict[int, float]) -> None:
    """The tail to float32 precision, single probabilities to that of float16 logits."""
    found, tail = dense_of(targets, position)
    assert found.keys() == wanted.keys()
    for number, p in wanted.items():
        assert found[number] == pytest.approx(p, rel=2e-3)
    assert tail == pytest.approx(1.0 - sum(wanted.values()), abs=1e-6)


def test_a_chat_completion_is_read_by_the_text_of_its_tokens(world: StepsWorld, tmp_path: Path) -> None:
    # Two texts that are tokens of the student, and one that is not: its probability belongs to the tail.
    a, b, c = (world_token(world, text) for text in ("w", "a", "s"))
    first, second = {"w": 0.5, "s": 0.25, "nosuchtoken": 0.125}, {"a": 0.75, "w": 0.125}
    lines = [{"source": "which", **chat("wa", [spot("w", first), spot("a", second)])}]
    ran = run_import(world, tmp_path, lines)
    assert ran.code == 0, ran.err
    assert "1 of 5 listed tokens" in ran.out
    assert "1 of 1 answers" in ran.out
    targets = TargetsFolder.open(tmp_path / "back").load(1)
    assert (targets.kind, targets.temperatures, targets.answers) == ("tokens", (1.0,), ("wa",))
    assert targets.positions().units.tolist() == [a, b, 0]
    expect(targets, 0, {a: 0.5, c: 0.25})
    expect(targets, 1, {b: 0.75, a: 0.125})
    assert dense_of(targets, 2) == ({0: 1.0}, 0.0)


def world_token(world: StepsWorld, text: str) -> int:
    [number] = pieces_of(world, text)
    return number


def test_a_vllm_dump_is_read_by_its_numbers(world: StepsWorld, tmp_path: Path) -> None:
    a, b, c = (world_token(world, text) for text in ("w", "a", "s"))

    def entry(p: float, rank: int, text: str | None) -> dict[str, Any]:
        return {"logprob": math.log(p), "rank": rank, "decoded_token": text}

    logprobs = [
        {str(a): entry(0.0625, 3, "w"), str(c): entry(0.5, 1, "s"), str(b): entry(0.25, 2, "a")},
        {str(b): entry(0.875, 1, "a")},
        {"0": entry(0.75, 1, ""), "100000": entry(0.125, 2, None)},
    ]
    one = {"text": "wa", "token_ids": [a, b, 0], "logprobs": logprobs, "finish_reason": "stop"}
    lines: list[dict[str, Any]] = [{"prompt": "which", "outputs": [one]}, {"prompt": "flat", **one}]
    targets = imported(world, tmp_path, lines)
    assert len(targets) == 2
    assert targets.positions().units.tolist() == 2 * [a, b, 0]
    expect(targets, 0, {c: 0.5, b: 0.25, a: 0.0625})
    expect(targets, 1, {b: 0.875})
    expect(targets, 2, {0: 0.75})
    assert targets.select([0]).to_bytes() == targets.select([1]).to_bytes()
    assert [row.text for row in TargetsFolder.open(tmp_path / "back").rows()] == ["which", "flat"]


def test_completions_and_tokens_spelt_as_numbers(world: StepsWorld, tmp_path: Path) -> None:
    a, b = (world_token(world, text) for text in ("w", "a"))
    found = {
        "tokens": ["w", f"token_id:{b}"],
        "token_logprobs": [math.log(0.5), math.log(0.25)],
        "top_logprobs": [{"w": math.log(0.5), f"token_id:{b}": math.log(0.375)}, None],
    }
    lines = [{"source": "which", "choices": [{"text": "wa", "logprobs": found, "finish_reason": "length"}]}]
    targets = imported(world, tmp_path, lines)
    # The answer was cut off, so nobody knows what would have come.
    assert targets.positions().units.tolist() == [a, b]
    expect(targets, 0, {a: 0.5, b: 0.375})
    expect(targets, 1, {b: 0.25})


def test_what_is_kept_follows_the_options(world: StepsWorld, tmp_path: Path) -> None:
    texts = ["w", "a", "s", "t", "e", "r", "c"]
    share = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125]
    lines = [{"source": "which", **chat("w", [spot("w", dict(zip(texts, share, strict=True)))])}]
    for number, (options, n_kept) in enumerate(
        [(("--tail-mass", 0), 7), (("--tail-mass", 0.1), 4), (("--max-logits", 3), 3), (("--max-logits", 0), 7)]
    ):
        (tmp_path / str(number)).mkdir()
        targets = imported(world, tmp_path / str(number), lines, *options)
        expect(targets, 0, {world_token(world, text): p for text, p in list(zip(texts, share, strict=True))[:n_kept]})


def test_another_closing_token_becomes_the_students(world: StepsWorld, tmp_path: Path) -> None:
    end = spot("<|im_end|>", {"<|im_end|>": 0.5, "w": 0.25})
    lines = [{"source": "which", **chat("w", [spot("w", {"w": 0.75}), end])}]
    refused(run_import(world, tmp_path, lines), "theirs.jsonl:1", "'<|im_end|>'", "--closing")
    targets = imported(world, tmp_path, lines, "--closing", "<|im_end|>")
    assert targets.positions().units.tolist() == [world_token(world, "w"), 0]
    expect(targets, 1, {0: 0.5, world_token(world, "w"): 0.25})


def test_answers_of_a_batch_find_their_rows(world: StepsWorld, tmp_path: Path) -> None:
    asked = [{"custom_id": f"row-{i}", "source": f"text {i}", "target": f"gold {i}"} for i in range(5)]
    file = write_rows(tmp_path / "asked.jsonl", asked)
    lines = [
        {"custom_id": f"row-{i}", "response": {"status_code": 200, "body": chat(text, [spot(text, {text: 0.5})])}}
        for i, text in ((3, "w"), (0, "a"), (4, "s"))
    ]
    targets = imported(world, tmp_path, lines, "--file", file)
    rows_ = TargetsFolder.open(tmp_path / "back").rows()
    assert [(row.text, row.gold) for row in rows_] == [(f"text {i}", f"gold {i}") for i in (3, 0, 4)]
    assert targets.answers == ("w", "a", "s")
    lines[1]["custom_id"] = "row-9"
    refused(run_import(world, tmp_path, lines, "--file", file, "--overwrite"), "'row-9'", "custom_id")
    bare = write_rows(tmp_path / "bare.jsonl", [{"source": each["source"]} for each in asked])
    del lines[1]["custom_id"]
    refused(run_import(world, tmp_path, lines, "--file", bare, "--overwrite"), "3 answers", "5 rows", str(bare))


def test_rows_that_are_answered_twice_or_never_are_named(world: StepsWorld, tmp_path: Path) -> None:
    """Requests of a batch that failed are answers of none; everything else is a mistake that only the user can mend."""
    file = write_rows(tmp_path / "asked.jsonl", [{"custom_id": f"row-{i}", "source": f"text {i}"} for i in range(6)])

    def batch(*numbers: int) -> list[dict[str, Any]]:
        body = chat("w", [spot("w", {"w": 0.5})])
        return [{"custom_id": f"row-{i}", "response": {"status_code": 200, "body": body}} for i in numbers]

    failures = [
        {"custom_id": "row-1", "response": {"status_code": 500, "body": {"error": "busy"}}, "error": None},
        {"custom_id": "row-2", "response": None, "error": {"code": "expired"}},
        {"custom_id": "row-3", "response": None, "error": {"code": "expired"}},
    ]
    ran = run_import(world, tmp_path, [*failures, *batch(0, 3)], "--file", file)
    assert all(words in ran.out for words in ("4 requests", "(2 failed)", "'row-1', 'row-2', 'row-4' and 1 more"))
    assert [row.text for row in TargetsFolder.open(tmp_path / "back").rows()] == ["text 0", "text 3"]
    again = ("--overwrite", "--file", file)
    refused(run_import(world, tmp_path, failures, *again), "theirs.jsonl", "all 3", "failed", "again")
    refused(
        run_import(world, tmp_path, batch(5, 4, 3, 4, 5, 2, 2, 1, 1), *again),
        *("theirs.jsonl", "4 custom_id", "'row-5', 'row-4', 'row-2' and 1 more", "keep one"),
    )
    refused(run_import(world, tmp_path, batch(0, 7, 8), *again), "2 custom_id", "'row-7', 'row-8'", str(file))
    for lines in (batch(0, 1), batch(1, 0)):
        del lines[1]["custom_id"]
        refused(run_import(world, tmp_path, lines, *again), "1 of the 2 answers", "no custom_id")
        refused(run_import(world, tmp_path, lines[::-1], *again), "1 of the 2 answers", "no custom_id")
    named = [{"source": "x", **each} for each in batch(0, 0)]
    refused(run_import(world, tmp_path, named, "--overwrite"), "1 custom_id", "'row-0'")
    for rows_, says in (
        (
            [{"custom_id": "a", "source": "x"}, {"custom_id": "a", "source": "y"}],
            "1 custom_id more than once: 'a'",
        ),
        ([{"custom_id": "a", "source": "x"}, {"source": "y"}], "1 of the 2 rows of"),
    ):
        write_rows(tmp_path / "asked.jsonl", rows_)
        refused(run_import(world, tmp_path, batch(0), *again), says)
    write_rows(tmp_path / "said.jsonl", [{"custom_id": "a", "prediction": "x", "target": "x"}] * 2)
    scored = outlay("evaluate", "--predictions", tmp_path / "said.jsonl", "--kind", "generation", "--metric", "qa_f1")
    refused(scored, "said.jsonl", "1 custom_id", "'a'")


def test_labels_of_one_token_are_a_distribution_over_the_label_set(world: StepsWorld, tmp_path: Path) -> None:
    first = {" good": 0.5, "good": 0.125, "bad": 0.25, "else": 0.0625}
    lines = [
        {"source": "x", **chat("good", [spot(" good", first), spot("<|im_end|>", {"<|im_end|>": 0.5})])},
        {"source": "y", **chat("bad", [spot("bad", {"bad": 0.9921875, "else": 0.00390625})])},
    ]
    targets = imported(world, tmp_path, lines, *LABELS, student="bert")
    assert (targets.kind, targets.temperatures) == ("classes", (1.0, 2.0, 4.0))
    logits = targets.positions().logits.reshape(2, 2)
    assert targets.positions().indices.reshape(2, 2).tolist() == [[1, 0], [0, 1]]
    np.testing.assert_allclose(logits, np.log([[0.625, 0.25], [0.9921875, 0.00390625]]), rtol=1e-6)
    for column, t in enumerate(targets.temperatures):
        dense = np.log(np.exp(logits.astype(np.float64) / t).sum(1))
        np.testing.assert_allclose(targets.positions().logsumexp[:, column], dense, atol=1e-5)
    lines[1] = {"source": "y", **chat("bad", [spot("bad", {"bad": 0.5, "else": 0.25})])}
    refused(
        run_import(world, tmp_path, lines, *LABELS, "--overwrite", student="bert"), "theirs.jsonl:2", "top_logprobs"
    )
    lines[1] = {"source": "y", **chat("bad", [spot("b", {"b": 0.5}), spot("ad", {"ad": 0.5})])}
    refused(
        run_import(world, tmp_path, lines, *LABELS, "--overwrite", student="bert"),
        "'b'",
        "--target text",
    )
    lines[1] = {"source": "y", **chat("dull", [spot("dull", {"dull": 0.5})])}
    refused(run_import(world, tmp_path, lines, *LABELS, "--overwrite", student="bert"), "'dull'", "'bad', 'good'")


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ({"a": 0.5, "b": 0.25, "c": 0.125}, ([0.5, 0.25, 0.125], [])),
        ({"a": 0.96875, "b": 0.03, "x": 0.001}, ([0.96875, 0.03, 0.00025], ["c"])),
        ({"a": 0.75, "b": 0.125}, None),
        ({"x": 1.0}, None),
    ],
)
def test_a_label_that_is_not_listed_has_what_is_left(listed: dict[str, float], wanted: Any) -> None:
    found = label_logprobs(("a", "b", "c"), [(text, math.log(p)) for text, p in listed.items()], 0.01)
    if wanted is None:
        assert found is None
        return
    assert found is not None
    np.testing.assert_allclose(np.exp(found[0]), wanted[0], rtol=1e-6)
    assert found[1] == wanted[1]


def test_only_the_answers_where_tokens_differ(world: StepsWorld, tmp_path: Path) -> None:
    lines = [{"source": "which", **chat(" salt ", [spot("nosuchtoken", {"nosuchtoken": 0.5})])}]
    targets = imported(world, tmp_path, lines, "--target", "text")
    assert (targets.kind, targets.answers) == ("text", ("salt",))


def test_a_text_that_several_tokens_have_names_none(world: StepsWorld) -> None:
    tokenizer = load_tokenizer(world.model("small"), world.model("small"))
    vocabulary, numbers = Vocabulary(tokenizer, len(tokenizer)), tokenizer.get_vocab()
    assert vocabulary.number("▁salt", None) == vocabulary.number(" salt", None) == numbers["▁salt"]
    assert "salt" not in numbers
    assert vocabulary.number("salt", None) == numbers["▁salt"]
    # Read alone, `▁a` would be `a` too where both are pieces.
    both = next(piece for piece in numbers if len(piece) == 1 and piece != "▁" and f"▁{piece}" not in numbers)
    assert vocabulary.number(both, None) == numbers[both]
    assert vocabulary.number("nosuchtoken", None) is None
    assert vocabulary.number(None, len(tokenizer)) is None
    assert vocabulary.number(None, -1) is None


def test_an_export_for_a_student_of_another_tokenizer(world: StepsWorld, tmp_path: Path) -> None:
    """By number its tokens would be others, which the answers give away; by text they are found."""
    n_real = 5
    tokenizer = load_tokenizer(world.model("gpt2"), world.model("gpt2"))
    small = load_tokenizer(world.model("small"), world.model("small"))
    spelt = [small.convert_tokens_to_ids(c) for c in ("w", "x", "a", "z")]
    assert small.unk_token_id not in spelt
    units = np.array([*spelt, small.eos_token_id], dtype=np.int32)
    logits = torch.zeros(n_real, len(small))
    logits[range(n_real), torch.from_numpy(units).long()] = 9.0
    settings = TeachSettings(max_logits=3)
    block = targets_of("tokens", logits, [n_real], units, ["wxaz"], max_logits=3)
    folder = write_folder(tmp_path / "folder", "tokens", [block], settings, world.model("small"))
    assert outlay("targets", "export", folder, "--out", tmp_path / "said.jsonl").code == 0
    to = ("targets", "import", tmp_path / "said.jsonl", "--student", world.model("gpt2"), "--quiet")
    refused(outlay(*to, "--out", tmp_path / "back"), "said.jsonl:1", "'wxaz'", "--match text")
    # Its closing token is no token of the student's: it is named.
    refused(outlay(*to, "--match", "text", "--out", tmp_path / "back"), "'</s>'", "--closing")
    closing = ("--match", "text", "--closing", "</s>", "--tail-mass", 0)
    assert outlay(*to, *closing, "--out", tmp_path / "back").code == 0
    back = TargetsFolder.open(tmp_path / "back").load(1)
    wanted = [world_token(world, c) for c in ("w", "x", "a", "z")]
    assert back.positions().units.tolist() == [*wanted, tokenizer.eos_token_id]
    p = math.exp(9.0) / (math.exp(9.0) + len(small) - 1)
    for position, unit in enumerate(back.positions().units.tolist()):
        assert dense_of(back, position)[0][unit] == pytest.approx(p, rel=1e-3)
    again = outlay(*to, *closing, "--out", tmp_path / "back")
    assert again.out.startswith("already done: ")
    refused(outlay(*to, "--target", "classes", "--out", tmp_path / "else"), "--target classes", "tokens, and text")


# --- what cannot be read ---------------------------------------------------------------------------------------------


GOOD = spot("w", {"w": 0.5})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"source": "x", **chat("w", [{**GOOD, "logprob": float("nan")}])}, ("'w'", "nan", "finite")),
        ({"source": "x", **chat("w", [{**GOOD, "logprob": None}])}, ("'w'", "None", "finite")),
        ({"source": "x", **chat("w", [spot("w", {"w": 0.75, "a": 0.5})])}, ("add up to 1.25", "token 1")),
        ({"source": "x", **chat("nosuch", [spot("nosuch", {"nosuch": 0.5})])}, ("'nosuch'", "--target text")),
        ({"source": "x", **chat("salt", [GOOD])}, ("'salt'", "'w'", "--match text")),
        ({"source": "x", "text": "w"}, ("log-probabilities", "--target text")),
        (chat("w", [GOOD]), ("'source'", "--source-column", "--file")),
        ({"source": "x", "text": "w", "logprobs": [{"5": {"logprob": -1.0}}]}, ("'token_ids'",)),
        ({"source": "x", "token_ids": [4], "logprobs": [{"5": {"logprob": -1.0}}]}, ("token 4",)),
        ({"source": "x", "text": "w", "logprobs": {"content": [{"logprob": -1.0}]}}, ("text nor number",)),
    ],
)
def test_a_row_that_cannot_be_read_is_named(
    world: StepsWorld, tmp_path: Path, line: dict[str, Any], says: tuple[str, ...]
) -> None:
    good = {"source": "x", **chat("w", [GOOD])}
    refused(run_import(world, tmp_path, [good, line]), "theirs.jsonl:2", *says)
    # What is corrected is imported into the same place.
    assert len(imported(world, tmp_path, [good, good])) == 2


def test_questions_that_do_not_go_together(world: StepsWorld, tmp_path: Path) -> None:
    lines = [{"source": "x", **chat("w", [GOOD])}]
    file = write_rows(tmp_path / "theirs.jsonl", lines)
    out = ("--out", tmp_path / "back")
    refused(outlay("targets", "import", file, *FREE, *out), "--student")
    refused(outlay("targets", "import", tmp_path / "no.jsonl", *FREE, *out), "no.jsonl")
    refused(outlay("targets", "import", tmp_path / "no.txt", *FREE, *out), "no.txt", ".jsonl, .jsonl.gz, .parquet")
    refused(run_import(world, tmp_path, lines, "--target", "tags"), "--target tags", "tokens or text")
    refused(run_import(world, tmp_path, lines, "--target", "classes"), "--target classes", "generation")
    refused(run_import(world, tmp_path, lines, "--match", "guess"), "--match 'guess'", "ids, text")
    refused(run_import(world, tmp_path, lines, student="bert"), world.model("bert"), "encoder")
    assert not (tmp_path / "back").exists()


def test_parquet_without_its_library_says_what_to_install(
    world: StepsWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(
        tmp_path / "folder", "text", [random_targets("text", 0, TeachSettings())], TeachSettings(), world.model("small")
    )
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    refused(outlay("targets", "export", folder, "--out", tmp_path / "said.parquet"), "pyarrow", "pip install")
    assert list(tmp_path.glob("*said*")) == []


# --- into a student --------------------------------------------------------------------------------------------------


def test_a_causal_teacher_speaks_through_a_server(world: StepsWorld, tmp_path: Path) -> None:
    """A teacher whose log-probabilities were computed by transformers; the student comes to agree with it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quick = ("--precision", "fp32", "--threads", 1, "--quiet", "--lr", 1e-2, "--batch-size", 8)
    train = ("--model", world.model("gpt2"), "--train-file", world.file("generation", "train"))
    ran = outlay("finetune", *train, *FREE[:-1], *quick, "--epochs", 50, "--out", tmp_path / "teacher")
    assert ran.code == 0, ran.err
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher").eval()
    lines, dense = [], []
    for each in map(json.loads, world.file("generation", "pool").read_text().splitlines()):
        ids = tokenizer(each["source"] + "\n", return_tensors="pt")["input_ids"]
        content, said = [], []
        for _ in range(9):
            with torch.no_grad():
                p = (
                    model(input_ids=torch.cat([ids, torch.tensor([said], dtype=torch.long)], 1))
                    .logits[0, -1]
                    .log_softmax(-1)
                )
            best = int(p.argmax())
            if best == tokenizer.eos_token_id:
                break
            top = [
                {"token": tokenizer.decode([i]), "token_id": i, "logprob": float(p[i])}
                for i in p.topk(7).indices.tolist()
            ]
            content.append({**top[0], "top_logprobs": top})
            said.append(best)
            dense.append(float(p[best]))
        lines.append({"source": each["source"], **chat(tokenizer.decode(said), content)})
    answers = [line["choices"][0]["message"]["content"] for line in lines]
    assert set(answers) <= set(REAGENTS)
    assert len(set(answers)) > 1
    targets = imported(world, tmp_path, lines)
    kept = targets.positions()
    is_closing = kept.units == tokenizer.eos_token_id
    np.testing.assert_allclose(-kept.logsumexp[~is_closing, 0], dense, atol=1e-5)

    distil = ("distill", tmp_path / "back", "--student", world.model("gpt2"), *quick, "--out", tmp_path / "student")
    refused(outlay(*distil, "--temperature", 2), "--temperature is 2", "at 1 only", "--temperature 1")
    ran = outlay(*distil, "--temperature", 1, "--epochs", 50, "--overwrite")
    assert ran.code == 0, ran.err
    ask = ("--file", world.file("generation", "pool"), "--precision", "fp32", "--threads", 1, "--quiet")
    assert outlay("predict", tmp_path / "student", *ask, "--out", tmp_path / "said.jsonl").code == 0
    said_ = [json.loads(line)["prediction"] for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert np.mean([a == b for a, b in zip(said_, answers, strict=True)]) > 0.9
    other = ("--student", world.model("small"), *quick, "--temperature", 1, "--out", tmp_path / "other")
    refused(outlay("distill", tmp_path / "back", *other), world.model("small"), "import again")
