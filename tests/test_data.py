"""Reading, checking and fetching the data of a task."""

from __future__ import annotations

import copy
import functools
import gzip
import hashlib
import http.server
import json
import os
import re
import resource
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from outlay.errors import DataError, DiskFull, LabelError, LeakError, MissingData, OutlayError
from outlay.tasks.download import data_files, fetch, origins
from outlay.tasks.leaks import find_leaks
from outlay.tasks.loading import data_root, load_data
from outlay.tasks.readers import read_file
from outlay.tasks.sources import DataFile
from outlay.tasks.statistics import Answers, Lengths, profile
from outlay.tasks.task import Task, load_task, shipped_tasks

NOUNS = ("otter", "kettle", "ladder", "violin", "pebble")


def pairs(start: int, n: int, label: str | None = None) -> list[dict[str, str]]:
    """Return n generated rows in the source format; row i never equals row j."""
    rows = []
    for i in range(start, start + n):
        row = {"source": f"left: the {NOUNS[i % 5]} number {i} right: a {NOUNS[i % 3]} of {i}"}
        rows.append(row | {"target": label or ("same" if i % 2 else "other")})
    return rows


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


CONTENT: dict[str, Any] = {
    "name": "objects",
    "text": "left: {left} right: {right}",
    "labels": ["other", "same"],
    "price_item": "label/objects",
    "data": {
        split: {"file": f"objects/{split}.jsonl", "source": "source", "target": "target"}
        for split in ("train", "dev", "test")
    },
    "pool": [{"name": "train", "split": "train"}],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    jsonl(tmp_path / "data/objects/train.jsonl", pairs(0, 20))
    jsonl(tmp_path / "data/objects/dev.jsonl", pairs(100, 6))
    jsonl(tmp_path / "data/objects/test.jsonl", pairs(200, 8))
    return tmp_path / "data"


def task_with(**changes: Any) -> Task:
    return Task.model_validate({**copy.deepcopy(CONTENT), **changes})


def with_train(**changes: Any) -> Task:
    content = copy.deepcopy(CONTENT)
    content["data"]["train"] |= changes
    return Task.model_validate(content)


def test_rows_become_examples(root: Path) -> None:
    data = load_data(task_with(), root)
    first = data.train[0]
    assert first.fields == (("left", "the otter number 0"), ("right", "a otter of 0"))
    assert first.text == pairs(0, 1)[0]["source"]
    assert first.id == hashlib.sha256(first.text.encode()).hexdigest()
    assert (first.label, first.origin) == ("other", "objects/train.jsonl:1")
    assert [(name, len(rows)) for name, rows in data.splits()] == [
        ("train", 20),
        ("dev", 6),
        ("test", 8),
        ("pool.train", 20),
    ]
    assert [e.id for e in data.pool[0].examples] == [e.id for e in data.train]
    assert {e.label for e in data.pool[0].examples} == {None}


def test_the_digest_is_that_of_the_examples(root: Path) -> None:
    before = load_data(task_with(), root).digest
    assert load_data(task_with(), root).digest == before
    assert load_data(task_with(max_source_tokens=9), root).digest == before
    rows = pairs(200, 8)
    rows[3]["target"] = "other" if rows[3]["target"] == "same" else "same"
    jsonl(root / "objects/test.jsonl", rows)
    assert load_data(task_with(), root).digest != before


def test_repeats_keep_ids_of_their_own_through_all_parts_of_the_pool(root: Path) -> None:
    jsonl(root / "extra.jsonl", [*pairs(0, 2), *pairs(0, 1)])
    pool = [{"name": "train", "split": "train"}, {"name": "extra", "file": "extra.jsonl", "source": "source"}]
    data = load_data(task_with(pool=pool), root)
    zero, one = (e.id for e in data.train[:2])
    assert [e.id for e in data.pool[1].examples] == [f"{zero}:2", f"{one}:2", f"{zero}:3"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".tsv", ".csv.gz", ".parquet"])
def test_every_kind_of_file_gives_the_same_examples(root: Path, suffix: str) -> None:
    rows = [{"l": f'a "{i}", b', "r": f"ü\n{i}", "y": i % 2} for i in range(4)]
    path = root / f"rows{suffix}"
    if "jsonl" in suffix:
        jsonl(path, rows)
    elif suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
    else:
        mark = "\t" if "tsv" in suffix else ","
        lines = [mark.join(f'"{str(v).replace(chr(34), chr(34) * 2)}"' for v in row.values()) for row in rows]
        content = "\n".join([mark.join(rows[0]), *lines]).encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    fields = {"left": "l", "right": "r"}
    names = {0: "other", 1: "same"}
    task = with_train(file=path.name, source=None, fields=fields, target="y", label_names=names, rows=4)
    train = load_data(task, root).train
    assert [dict(e.fields) for e in train] == [{"left": f'a "{i}", b', "right": f"ü\n{i}"} for i in range(4)]
    assert [e.label for e in train] == ["other", "same"] * 2


def test_seeded_parts_of_one_file_are_disjoint_and_prefixes(root: Path) -> None:
    jsonl(root / "big.jsonl.gz", pairs(1000, 60))
    source = {"file": "big.jsonl.gz", "source": "source"}

    def part(**cut: int) -> list[str]:
        pool = [{"name": "p", **source, **cut}]
        return [e.origin for e in load_data(task_with(pool=pool), root).pool[0].examples]

    assert part(n=20) == part(n=30)[:20]
    assert part(n=20) + part(skip=20, n=25) + part(skip=45) == part(n=60)
    assert len(set(part(n=60))) == 60
    assert part(n=20) != part(n=20, seed=1)
    assert part() == [f"big.jsonl.gz:{i}" for i in range(1, 61)]
    with pytest.raises(MissingData, match=r"\b50\b.*\b20\b.*\b60 rows of big\.jsonl"):
        part(skip=50, n=20)


def test_a_field_may_come_from_a_later_row_or_another_file(root: Path) -> None:
    jsonl(root / "auto.jsonl", [{"one": f"one {i}", "two": f"two {i}"} for i in range(5)])
    jsonl(root / "names.jsonl", [{"name": "x"}, {"name": "y"}])
    later = {"left": "one", "right": {"column": "two", "from_next_row": 2}}
    other = {"left": {"column": "name", "other": {"file": "names.jsonl", "rows": 2}}, "right": "two"}
    pool = [
        {"name": "later", "file": "auto.jsonl", "fields": later},
        {"name": "other", "file": "auto.jsonl", "fields": other},
    ]
    parts = load_data(task_with(pool=pool), root).pool
    assert [e.fields for e in parts[0].examples] == [
        (("left", f"one {i}"), ("right", f"two {(i + 2) % 5}")) for i in range(5)
    ]
    assert [e.field("left") for e in parts[1].examples] == ["x", "y", "x", "y", "x"]


def test_a_source_may_have_a_template_of_its_own(root: Path) -> None:
    jsonl(root / "slashes.jsonl", [{"both": "a / b"}])
    pool = [{"name": "p", "file": "slashes.jsonl", "source": "both", "template": "{right} / {left}"}]
    assert load_data(task_with(pool=pool), root).pool[0].examples[0].text == "left: b right: a"


def test_rows_are_derived_from_another_task(root: Path, tmp_path: Path) -> None:
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump(CONTENT))
    rows = {
        split: {"derive": {"task": "objects.yaml", "split": split}, "fields": {"word": "right"}, "target": "label"}
        for split in ("train", "dev", "test")
    }
    rows["train"]["where"] = {"label": "same"}
    content = {**CONTENT, "name": "words", "text": "{word}", "data": rows}
    path = tmp_path / "words.yaml"
    path.write_text(yaml.safe_dump(content))
    data = load_data(load_task(path), root)
    assert [e.text for e in data.train] == [f"a {NOUNS[i % 3]} of {i}" for i in range(1, 20, 2)]
    assert {e.label for e in data.train} == {"same"}
    assert data.train[0].origin == "objects/train.jsonl:2"
    assert {f.file for f in data_files(load_task(path))} == {f"objects/{s}.jsonl" for s in ("train", "dev", "test")}


def test_only_the_derived_split_is_fetched(root: Path, tmp_path: Path) -> None:
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump(CONTENT))
    content = copy.deepcopy(CONTENT)
    content["data"]["train"] = {"derive": {"task": "objects.yaml", "split": "train"}, "target": "label"}
    for split in ("dev", "test"):
        content["data"][split]["file"] = f"words/{split}.jsonl"
        jsonl(root / f"words/{split}.jsonl", pairs(300, 2) if split == "dev" else pairs(400, 3))
    (tmp_path / "words.yaml").write_text(yaml.safe_dump({**content, "name": "words"}))
    task = load_task(tmp_path / "words.yaml")
    fetched = fetch(task, str(root), tmp_path / "new")
    assert {f.file for f in fetched} == {"objects/train.jsonl", "words/dev.jsonl", "words/test.jsonl"}
    assert load_data(task, tmp_path / "new").digest == load_data(task, root).digest


def test_train_may_come_from_several_files(root: Path, tmp_path: Path) -> None:
    jsonl(root / "more.jsonl", [*pairs(500, 3), *pairs(0, 1)])
    content = copy.deepcopy(CONTENT)
    content["data"]["more_train"] = [{"file": "more.jsonl", "source": "source", "target": "target"}]
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump(content))
    task = load_task(tmp_path / "objects.yaml")
    data = load_data(task, root)
    assert [e.origin for e in data.train] == [
        *(f"objects/train.jsonl:{i}" for i in range(1, 21)),
        *(f"more.jsonl:{i}" for i in range(1, 5)),
    ]
    assert data.train[-1].id == f"{data.train[0].id}:2"
    assert [e.id for e in data.pool[0].examples] == [e.id for e in data.train]
    assert "more.jsonl" in {f.file for f in data_files(task)}
    derived = {"train": {"derive": {"task": "objects.yaml", "split": "train"}, "target": "label"}}
    (tmp_path / "words.yaml").write_text(
        yaml.safe_dump({**CONTENT, "name": "words", "data": CONTENT["data"] | derived})
    )
    words = load_task(tmp_path / "words.yaml")
    assert len(load_data(words, root).train) == 24
    assert "more.jsonl" in {f.file for f in data_files(words)}
    jsonl(root / "more.jsonl", pairs(200, 1))
    with pytest.raises(LeakError, match="1 of 21 train rows"):
        load_data(task, root)


def test_a_distinct_part_leaves_out_what_came_before(root: Path) -> None:
    loud = [{**row, "source": row["source"].replace("the otter", "THE  otter")} for row in pairs(0, 20)]
    jsonl(root / "extra.jsonl", [*pairs(30, 5), *loud, *pairs(32, 8)])
    extra = {"name": "extra", "file": "extra.jsonl", "source": "source", "distinct": True}

    def lines(first: dict[str, Any], **cut: int) -> list[int]:
        pool = load_data(task_with(pool=[first, extra | cut]), root).pool
        return [int(e.origin.rpartition(":")[2]) for e in pool[1].examples]

    train = {"name": "train", "split": "train"}
    new = [1, 2, 3, 4, 5, *range(28 + 1, 28 + 6)]
    assert lines(train) == new
    assert lines({"name": "other", "file": "objects/train.jsonl", "source": "source", "n": 1})[:5] == new[:5]
    assert len(lines(train, n=7)) == 7
    assert lines(train, n=4) == lines(train, n=7)[:4]
    with pytest.raises(MissingData, match=r"pool\.extra .*\b10\b.*\b11 of `n`"):
        lines(train, n=11)


def test_a_ring_of_derived_tasks_is_refused(root: Path, tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["data"]["train"] = {"derive": {"task": "objects.yaml", "split": "train"}, "target": "label"}
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match="objects from objects"):
        load_data(load_task(path), root)
    assert len(data_files(load_task(path))) == 2


def test_where_keeps_rows_and_says_when_none_is_left(root: Path) -> None:
    assert {e.label for e in load_data(with_train(where={"target": ["same"]}), root).train} == {"same"}
    assert len(load_data(with_train(where={"left": "the kettle number 1"}), root).train) == 1
    with pytest.raises(MissingData, match=r"`where` .*'none'"):
        load_data(with_train(where={"target": "none"}), root)


def test_dev_follows_the_task(root: Path) -> None:
    carved = copy.deepcopy(CONTENT["data"])
    del carved["dev"]
    assert load_data(task_with(dev="carved", data=carved), root).dev == []
    bought = load_data(task_with(dev="bought", n_dev=4), root).dev
    assert len(bought) == 4
    assert set(bought) < set(load_data(task_with(), root).dev)


# Bad files


def test_an_absent_file_names_the_command_that_brings_it(root: Path) -> None:
    (root / "objects/test.jsonl").unlink()
    with pytest.raises(MissingData, match=r"test\.jsonl .*`outlay data get objects --from DIR_OR_URL`"):
        load_data(task_with(), root)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n\n", "holds no rows"),
        (b'{"source": "left: a right: b", "target": "same"}\n{"source": "lef', "line 2 .*half-written"),
        (b'{"source": 1\n{"source": "x"}\n', "line 1 is not JSON"),
        (b'[1, 2]\n{"source": "x"}\n', "line 1 holds list"),
        (b'{"source": "\xff"}\n', "not UTF-8"),
        (b'{"target": "same"}\n', "jsonl:1 .*'source'.* target"),
        (b'{"source": null, "target": "same"}\n', "jsonl:1 .*'source'.* null"),
        (b'{"source": "no template", "target": "same"}\n', "jsonl:1: .*'no template'.*left: {left}"),
        (b'{"source": "left:  right: ", "target": "same"}\n', "jsonl:1 .*empty"),
        (
            b'{"source": "left: a right: b"}\n',
            "jsonl:1 has no label .*'target'.*source, left, right.*other, same",
        ),
        (b'{"source": "left: a right: b", "target": " "}\n', "jsonl:1 has no label .*'target'; .*other, same"),
        (
            b'{"source": "left: a right: b", "target": "maybe"}\n',
            "jsonl:1 has the label 'maybe'.*'other', 'same'.*`labels`",
        ),
    ],
)
def test_a_bad_file_is_named_with_its_line(root: Path, content: bytes, reason: str) -> None:
    (root / "objects/train.jsonl").write_bytes(content)
    with pytest.raises(OutlayError, match=reason) as caught:
        load_data(task_with(), root)
    assert "\n" not in str(caught.value)
    assert "train.jsonl" in str(caught.value)
    assert isinstance(caught.value, LabelError) == ("label" in reason)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_truncated_gzip_file_is_half_written(root: Path, share: float) -> None:
    path = jsonl(root / "cut.jsonl.gz", pairs(0, 500))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(MissingData, match=r"cut\.jsonl\.gz .*\bline [1-9]\d*: .*half-written"):
        load_data(with_train(file="cut.jsonl.gz"), root)


def test_gzip_in_name_only_is_refused(root: Path) -> None:
    (root / "plain.jsonl.gz").write_text("{}\n")
    with pytest.raises(MissingData, match=r"\bline 0\b.*\.gz"):
        load_data(with_train(file="plain.jsonl.gz"), root)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("source,target\na", "line 2 has 1 columns"), ('source\n"a', "line 2 .*quote")],
)
def test_a_half_written_csv_is_refused(root: Path, text: str, reason: str) -> None:
    (root / "cut.csv").write_text(text)
    with pytest.raises(MissingData, match=reason):
        load_data(with_train(file="cut.csv"), root)


def test_a_broken_parquet_file_is_refused(root: Path) -> None:
    pytest.importorskip("pyarrow")
    (root / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(MissingData, match=r"cut\.parquet .*fetch it again"):
        load_data(with_train(file="cut.parquet"), root)


def test_an_unknown_suffix_lists_the_known_ones(root: Path) -> None:
    (root / "rows.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"rows\.xlsx .*\.jsonl, .*\.parquet"):
        load_data(with_train(file="rows.xlsx"), root)


def test_rows_and_sha256_are_held_against_the_file(root: Path) -> None:
    digest = hashlib.sha256((root / "objects/train.jsonl").read_bytes()).hexdigest()
    assert len(load_data(with_train(sha256=digest, rows=20), root).train) == 20
    with pytest.raises(MissingData, match=r"\b20 rows.*\b21\b.*`rows`"):
        load_data(with_train(rows=21), root)
    with pytest.raises(MissingData, match=f"{digest}.*{'0' * 64}"):
        load_data(with_train(sha256="0" * 64), root)


@pytest.mark.parametrize(
    ("module", "source"),
    [("pyarrow.parquet", {"file": "x.parquet"}), ("datasets", {"file": None, "hub": {"name": "x", "split": "train"}})],
)
def test_a_missing_library_names_the_extra(
    root: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: dict[str, Any]
) -> None:
    (root / "x.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install 'outlay\[data\]'"):
        load_data(with_train(**source), root)


class FakeHub(list[dict[str, Any]]):
    features = types.MappingProxyType(
        {"text": types.SimpleNamespace(), "label": types.SimpleNamespace(names=["other", "same"])}
    )


def test_a_hub_set_is_read_with_its_class_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> FakeHub:
        asked.append((name, config, split, revision))
        if split != "train":
            raise ValueError("Unknown split.\nmore lines")
        return FakeHub([{"text": "left: a right: b", "label": 1}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    hub = {"name": "objects", "config": "small", "split": "train", "revision": "abc"}
    train = load_data(with_train(file=None, hub=hub, source="text", target="label"), root).train
    assert [(e.text, e.label, e.origin) for e in train] == [("left: a right: b", "same", "objects/train:1")]
    assert asked == [("objects", "small", "train", "abc")]
    with pytest.raises(MissingData, match=r"objects split no: Unknown split\."):
        load_data(with_train(file=None, hub={**hub, "split": "no"}, source="text", target="label"), root)


# Answers that are no classes


def open_task(root: Path, kind: str, answers: list[Any], **changes: Any) -> Task:
    rows = [{"line": f"mix the {NOUNS[i % 5]} with 5 ml of {i}", "answer": answer} for i, answer in enumerate(answers)]
    jsonl(root / "lines/train.jsonl", rows)
    for split, start in (("dev", 500), ("test", 600)):
        jsonl(root / f"lines/{split}.jsonl", [{"line": f"spin {start}", "answer": "spin [Action]"}])
    return Task.model_validate(
        {
            **{"name": "lines", "text": "{line}", "kind": kind, "price_item": "label/lines"},
            **({"labels": ["Amount", "Action", "Unit"]} if kind == "entities" else {}),
            "data": {s: {"file": f"lines/{s}.jsonl", "target": "answer"} for s in ("train", "dev", "test")},
            **changes,
        }
    )


def test_lines_of_entities_are_answers_and_may_be_empty(root: Path) -> None:
    answers = ["mix [Action] 5 ml [Amount]", "", "otter [1] [action]", 7]
    task = open_task(root, "entities", answers[:3])
    assert [e.label for e in load_data(task, root).train] == answers[:3]
    assert [e.label for e in load_data(open_task(root, "generation", ["a", answers[3]]), root).train] == ["a", "7"]


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("entities", "mix [Action] 5 ml", "has no type .*'5 ml'.*Amount, Action, Unit"),
        ("entities", "mix [Actoin]", r"has no type .*'mix \[Actoin\]'"),
        ("entities", "[Action]", r"has a type without a text .*'\[Action\]'"),
        ("entities", None, "has no answer .*'answer'"),
        ("generation", "", "has no answer .*'answer'"),
        ("generation", " \t", "has no answer .*'answer'"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_with_its_row(root: Path, kind: str, answer: Any, reason: str) -> None:
    task = open_task(root, kind, ["mix [Action]", answer])
    with pytest.raises(LabelError, match=rf"lines/train\.jsonl:2 {reason}") as caught:
        load_data(task, root)
    assert "\n" not in str(caught.value)


def test_a_label_name_that_makes_an_answer_empty_is_refused(root: Path) -> None:
    task = open_task(root, "generation", ["a", "b"])
    train = task.data.train.model_copy(update={"label_names": {"b": " "}})
    data = task.data.model_copy(update={"train": train})
    with pytest.raises(LabelError, match=r"train\.jsonl:2 .*empty"):
        load_data(task.model_copy(update={"data": data}), root)


def test_the_profile_of_entities(root: Path) -> None:
    answers = [
        "mix [Action] 5 ml [Amount]",
        "",
        "mix [Action] shake [Action]",
        "kettle [Action] with 5 ml of 3 [Amount]",
    ]
    task = open_task(root, "entities", answers, max_target_tokens=6)
    found = profile(task, load_data(task, root))
    train = found.splits[0]
    assert train.labels == {"Amount": 2, "Action": 4, "Unit": 0}
    # Words per answer: 5, 0, 4 and 8; "kettle" stands in no line whose number leaves 3 when divided by 5.
    assert train.answers == Answers(Lengths(4, 8, 8), n_over_length=1, n_empty=1, n_entities=6, n_unaligned=2)
    text = "\n".join(found.lines())
    for words in (
        "kind   entities · metric entity_f1",
        "4/8/8 · 6 entities",
        "warning: train: empty answers: 1",
        "warning: train: entities that are not in their source as written: 2",
        "warning: train: answers longer than 6 words, to be cut: 1",
        "warning: train: no entity has the type Unit",
    ):
        assert words in text
    assert re.search(r"^  Action +4 +1 +1$", text, re.MULTILINE)
    assert json.loads(json.dumps(found.to_json()))["splits"][0]["answers"]["n_unaligned"] == 2


def test_the_profile_of_free_text(root: Path) -> None:
    answers = ["Mix the otter with 5 ml of 0", "spin 600", "other words", "other words"]
    task = open_task(root, "generation", answers)
    found = profile(task, load_data(task, root))
    train, dev, _ = found.splits
    assert train.labels == {}
    assert train.answers == Answers(Lengths(2, 8, 8), n_copies=1, n_held_out=1)
    assert dev.answers == Answers(Lengths(2, 2, 2))
    text = "\n".join(found.lines())
    assert "train: answers that repeat their source: 1" in text
    assert "train: answers that are the source of a dev or test row: 1" in text
    assert "no entity" not in text


# Leaks


def test_a_test_row_in_train_or_pool_is_refused(root: Path) -> None:
    copies = [{**row, "source": "  " + row["source"].upper().replace("LEFT:", "left:")} for row in pairs(200, 2)]
    copies = [{**row, "source": row["source"].replace("RIGHT:", " right: ").strip()} for row in copies]
    jsonl(root / "objects/train.jsonl", [*pairs(0, 5), *copies])
    with pytest.raises(LeakError) as caught:
        load_data(task_with(), root)
    message = str(caught.value)
    assert "2 of 7 train rows, 2 of 7 pool.train rows" in message
    assert "objects/train.jsonl:6" in message
    assert "drop_leaks: true" in message
    assert len(message) < 300
    data = load_data(task_with(drop_leaks=True), root)
    assert (len(data.train), len(data.pool[0].examples)) == (5, 5)
    assert data.dropped == {"train": 2, "pool.train": 2}
    assert find_leaks(task_with(), data) == []
    assert [s.n_dropped for s in profile(task_with(), data).splits] == [2, 0, 0, 2]


def test_a_dev_row_in_the_pool_alone_is_refused(root: Path) -> None:
    jsonl(root / "extra.jsonl", pairs(103, 1))
    pool = [{"name": "extra", "file": "extra.jsonl", "source": "source"}]
    with pytest.raises(LeakError, match=r"1 of 1 pool\.extra rows"):
        load_data(task_with(pool=pool), root)


def test_a_swapped_pair_is_a_leak_where_the_task_is_symmetric(root: Path) -> None:
    jsonl(
        root / "objects/train.jsonl", [{"source": "left: a otter of 200 right: the otter number 200", "target": "same"}]
    )
    rows = [{"source": "left: the otter number 200 right: a otter of 200", "target": "same"}]
    jsonl(root / "objects/test.jsonl", rows)
    data = load_data(task_with(), root)
    assert profile(task_with(), data).splits[0].n_shared_part == 0
    with pytest.raises(LeakError):
        load_data(task_with(symmetric=True), root)
    assert [leak.split for leak in find_leaks(task_with(symmetric=True), data)] == ["train", "pool.train"]


# Profile


def test_the_profile_counts_what_there_is(root: Path) -> None:
    rows = [
        {"source": "left: a right: b", "target": "same"},
        {"source": "left: A right: b ", "target": "other"},
        {"source": "left: a right: b", "target": "same"},
        {"source": "left: the otter number 200 right: new", "target": "same"},
        {"source": "left: c right: d", "target": "same"},
    ]
    jsonl(root / "objects/train.jsonl", rows)
    jsonl(root / "objects/dev.jsonl", [*pairs(100, 1, "same"), *pairs(200, 1)])
    task = task_with(max_source_tokens=5)
    found = profile(task, load_data(task, root))
    train, dev = found.splits[:2]
    assert (train.n_rows, train.n_duplicates, train.n_conflicting, train.n_shared_part) == (5, 2, 3, 1)
    assert train.labels == {"other": 1, "same": 4}
    assert train.words == Lengths(4, 7, 7)
    assert (train.n_over_length, dev.n_shared_part) == (1, 0)
    assert found.n_test_in_dev == 1
    assert found.splits[3].labels == {}
    assert json.loads(json.dumps(found.to_json()))["splits"][0]["words"] == {"median": 4, "p95": 7, "max": 7}
    text = "\n".join(found.lines())
    for warning in found.warnings():
        assert warning in text
    assert "train: rows whose source also carries another label: 3" in text
    assert "pool.train: rows sharing a part (one field) with a dev or test row: 1" in text


def test_lengths_are_nearest_rank() -> None:
    assert Lengths.of(list(range(1, 101))) == Lengths(50, 95, 100)
    assert Lengths.of([7]) == Lengths(7, 7, 7)
    assert Lengths.of([]) == Lengths(0, 0, 0)


# Fetching


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(root: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def sealed(root: Path) -> Task:
    content = copy.deepcopy(CONTENT)
    for split in content["data"].values():
        split["sha256"] = hashlib.sha256((root / split["file"]).read_bytes()).hexdigest()
        split["origin"] = {"url": "https://example.org/repo", "commit": "abc123", "path": "x.json", "split": "by hash"}
    return Task.model_validate(content)


@pytest.mark.parametrize("kind", ["folder", "file", "http"])
def test_files_are_fetched_once_and_checked(root: Path, tmp_path: Path, kind: str, server: str) -> None:
    task, dest = sealed(root), tmp_path / "new"
    source = {"folder": str(root), "file": root.as_uri(), "http": server + "/"}[kind]
    told: list[tuple[str, int, int | None]] = []
    fetched = fetch(task, source, dest, lambda *news: told.append(news))
    assert [f.copied for f in fetched] == [True] * 3
    assert {news[0] for news in told} == {f"objects/{s}.jsonl" for s in ("train", "dev", "test")}
    assert all(n == expected for _, n, expected in told)
    assert load_data(task, dest).digest == load_data(task, root).digest
    assert [f.copied for f in fetch(task, None, dest)] == [False] * 3
    (dest / "objects/dev.jsonl").write_text("half")
    assert [f.file for f in fetch(task, source, dest) if f.copied] == ["objects/dev.jsonl"]
    assert not list(dest.rglob("*.part"))


def test_a_wrong_digest_is_not_laid_down(root: Path, tmp_path: Path) -> None:
    task, dest = sealed(root), tmp_path / "new"
    wanted = task.data.test.sha256
    jsonl(root / "objects/test.jsonl", pairs(0, 1))
    found = hashlib.sha256((root / "objects/test.jsonl").read_bytes()).hexdigest()
    with pytest.raises(MissingData, match=f"{found}.*{wanted}"):
        fetch(task, str(root), dest)
    assert not (dest / "objects/test.jsonl").exists()
    assert not list(dest.rglob("*.part"))


def test_without_a_mirror_the_origins_are_named(root: Path, tmp_path: Path) -> None:
    task = sealed(root)
    with pytest.raises(MissingData) as caught:
        fetch(task, None, tmp_path / "new")
    message = str(caught.value)
    for word in ("--from DIR_OR_URL", "https://example.org/repo @ abc123", "x.json", "split: by hash"):
        assert word in message
    assert len(origins(task)) == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("ftp://example.org/x", "ftp://example.org/x; .*https://"),
        ("/no/such/folder", "No such file"),
        ("http://127.0.0.1:9", "Connection refused"),
    ],
)
def test_a_mirror_that_cannot_be_read(root: Path, tmp_path: Path, source: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        fetch(sealed(root), source, tmp_path / "new")


def test_a_file_the_server_lacks_is_named(root: Path, tmp_path: Path, server: str) -> None:
    task = sealed(root)
    (root / "objects/dev.jsonl").unlink()
    with pytest.raises(MissingData, match=r"objects/dev\.jsonl .*\b404\b"):
        fetch(task, server, tmp_path / "new")


def test_a_transfer_that_breaks_off_is_noticed(tmp_path: Path, root: Path) -> None:
    class Short(Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Short) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        with pytest.raises(MissingData):
            fetch(task_with(), f"http://127.0.0.1:{httpd.server_address[1]}", tmp_path / "new")
        httpd.shutdown()
        thread.join()
    assert not list((tmp_path / "new").rglob("*.jsonl"))


def test_a_file_outside_the_data_folder_is_not_fetched(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.\./escape\.jsonl"):
        fetch(with_train(file="../escape.jsonl"), str(root), tmp_path / "new")


def test_a_full_disk_gets_one_line_and_leaves_nothing_half(root: Path, tmp_path: Path) -> None:
    dest = tmp_path / "new"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        with pytest.raises(DiskFull, match=r"objects/train\.jsonl.*OUTLAY_DATA"):
            fetch(task_with(), str(root), dest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in dest.rglob("*") if path.is_file()] == []


def test_the_data_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OUTLAY_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert data_root() == tmp_path / "xdg/outlay/data"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root() == tmp_path / ".local/share/outlay/data"
    monkeypatch.setenv("OUTLAY_DATA", str(tmp_path / "mine"))
    assert data_root() == tmp_path / "mine"
    assert data_root(tmp_path) == tmp_path


def test_a_file_beside_the_task_comes_before_the_data_folder(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "own/objects.yaml"
    jsonl(tmp_path / "own/objects/dev.jsonl", pairs(300, 2))
    path.write_text(yaml.safe_dump(CONTENT))
    data = load_data(load_task(path), root)
    assert (len(data.dev), len(data.test)) == (2, 8)


def test_reading_does_not_depend_on_the_place(root: Path) -> None:
    file = DataFile(file="objects/dev.jsonl")
    assert [row.origin for row in read_file(file, root / file.file).rows] == [
        f"objects/dev.jsonl:{i}" for i in range(1, 7)
    ]


@pytest.mark.integration
@pytest.mark.parametrize("name", shipped_tasks())
def test_shipped_tasks_load_from_the_data_folder(name: str) -> None:
    if "OUTLAY_DATA" not in os.environ:
        pytest.skip("no public data sets: OUTLAY_DATA=DIR make test-slow")
    task = load_task(name)
    data = load_data(task)
    assert [len(data.test), len(data.dev)] == [task.data.test.rows, task.data.dev.rows if task.data.dev else 0]
    rows = {"multipit_gen": 3665, "nq": 1702 + 13096}.get(name, task.data.train.rows)
    assert len(data.train) + data.dropped.get("train", 0) == rows
    expected = {
        "wlp": {"pool.train": 8825, "pool.protocols": 12595},
        "multipit_id": {"pool.train": 6903, "pool.auto_pairs": 7000, "pool.auto_mixed": 3000},
        "multipit_gen": {"pool.train": 2733, "pool.auto_tweets": 20000, "pool.quora_questions": 9999},
        "fever": {"pool.train": 6321, "pool.shared_task": 3346, "pool.claims": 13402},
        "stanceosaurus": {"pool.train": 2729, "pool.other_claims": 1000},
        "nq": {"pool.train": 14798, "pool.questions": 20000},
        "rte": {"pool.train": 2244, "pool.official_test": 3000},
        "qnli": {"pool.train": 3259, "pool.official_test": 5462},
    }
    assert {key: len(rows) for key, rows in data.splits() if key.startswith("pool.")} == expected.get(
        name, {"pool.train": rows}
    )
    ids = [example.id for part in data.pool for example in part.examples]
    assert len(set(ids)) == len(ids)
    assert profile(task, data).to_json()["task"] == name
