"""Eight public sets that are shipped beside the six tasks of Kang et al. 2023, on rows made up in the same form.

What reads the real rows is marked ``integration``.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from outlay.errors import LeakError
from outlay.money.amounts import PriceBook
from outlay.report import published
from outlay.spec import TaskSpec
from outlay.storage.hashing import digest_of_file
from outlay.tasks.download import data_files
from outlay.tasks.loading import load_data
from outlay.tasks.task import SHIPPED, load_task, shipped_tasks
from tests.checkpoints import make_checkpoint
from tests.test_cli import outlay, refused
from tests.test_published_tasks import told_of

PAIR = "sentence1: {sentence1} sentence2: {sentence2}"


@dataclass(frozen=True)
class Set:
    """What a set is, typed again from where it comes from."""

    text: str
    test: dict[str, int]
    """Label → test rows, in the order of the label set."""
    rows: tuple[int, int]
    """Train and dev rows."""
    max_source_tokens: int = 128
    n_official_test: int = 0


SETS = {
    "trec_qc": Set(
        "{question}", {"ABBR": 7, "ENTY": 85, "DESC": 113, "HUM": 52, "LOC": 68, "NUM": 95}, (4927, 510), 64
    ),
    "tweeteval_emotion": Set("{tweet}", {"anger": 465, "joy": 312, "optimism": 107, "sadness": 323}, (3256, 374)),
    "tweeteval_irony": Set("{tweet}", {"non_irony": 403, "irony": 263}, (2862, 954)),
    "sst2": Set("{sentence}", {"negative": 791, "positive": 789}, (67339, 872)),
    "cola": Set("{sentence}", {"unacceptable": 272, "acceptable": 610}, (7656, 876), 64),
    "mrpc": Set(PAIR, {"not_equivalent": 504, "equivalent": 985}, (3552, 386)),
    "rte": Set(PAIR, {"not_entailment": 117, "entailment": 124}, (2244, 246), 256, 3000),
    "qnli": Set(
        "question: {question} sentence: {sentence}",
        {"not_entailment": 717, "entailment": 696},
        (3259, 540),
        256,
        5462,
    ),
}
PAIRS = ("mrpc", "rte", "qnli")
SOME = [name if name in ("trec_qc", "mrpc", "qnli") else pytest.param(name, marks=pytest.mark.slow) for name in SETS]
"""For tests that make rows up: one of single texts, one of pairs, one whose pool has rows without a label."""


def test_the_eight_are_shipped_beside_the_six() -> None:
    six = {row["task"] for row in published.rows("kang_tasks")}
    assert set(shipped_tasks()) == six | set(SETS)
    assert not six & set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_what_a_model_reads_and_answers(name: str) -> None:
    task, of = load_task(name), SETS[name]
    assert task.form == TaskSpec("classification", tuple(of.test), of.max_source_tokens, 8, f"{name}: ")
    assert (task.text, task.metric, task.dev, task.symmetric) == (of.text, "accuracy", "given", name == "mrpc")
    assert task.segment_names == task.format.names
    assert len(task.segment_names) == (2 if name in PAIRS else 1)


@pytest.mark.parametrize("name", SETS)
def test_no_paper_on_costs_has_figures_or_settings_for_them(name: str) -> None:
    task = load_task(name)
    assert task.published is None
    for role in ("teacher", "student", "distil"):
        assert task.training.settings_for("seq2seq", role) == {}


@pytest.mark.parametrize("name", SETS)
def test_the_pool_is_the_train_rows_and_what_has_no_label(name: str) -> None:
    task, n_test = load_task(name), SETS[name].n_official_test
    train, *others = task.pool
    assert (train.name, train.split) == ("train", "train")
    assert [(part.name, part.rows) for part in others] == ([("official_test", n_test)] if n_test else [])


@pytest.mark.parametrize("name", SETS)
def test_every_file_can_be_checked_and_says_where_it_comes_from(name: str) -> None:
    files = data_files(load_task(name))
    assert len(files) == (4 if SETS[name].n_official_test else 3)
    assert len({file.sha256 for file in files}) == len(files)
    for file in files:
        assert file.file.startswith(f"{name}/")
        assert file.sha256
        assert file.rows
        assert file.origin
        assert file.origin.url.startswith("https://github.com/")
        assert file.origin.commit
        assert file.origin.path
        assert file.origin.split
        assert file.origin.licence


# --- the price -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_a_label_costs_what_we_assume_and_is_marked_so(name: str) -> None:
    price = PriceBook.load().get(load_task(name).price_item)
    assert (price.item, price.unit, price.usd) == (f"label/{name}", "label", Decimal("0.20"))
    assert price.source.startswith("yours to set: our assumption")
    assert price.checked is None


def test_a_book_is_called_what_it_was_before_they_were_shipped(tmp_path: Path) -> None:
    book = PriceBook.load()
    before = PriceBook([price for price in book.items() if price.item not in {f"label/{name}" for name in SETS}])
    assert len(before.items()) == len(book.items()) - len(SETS)
    assert before.digest == book.digest
    for name in SETS:
        mine = tmp_path / f"{name}.toml"
        for usd, is_same in (("0.2000", True), ("0.21", False)):
            mine.write_text(f'[[price]]\nitem = "label/{name}"\nunit = "label"\nusd = "{usd}"\n')
            assert (PriceBook.load([mine]).digest == book.digest) is is_same


# --- rows made up in the same form -----------------------------------------------------------------------------------

N_ROWS = {"train": 48, "dev": 12, "test": 18, "unlabeled": 20}


def made_up(name: str, split: str, number: int) -> dict[str, str]:
    """A row as the files have them; a word of it tells its label."""
    of = SETS[name]
    label = list(of.test)[number % len(of.test)]
    fields = load_task(name).format.names
    texts = {field: f"{split} {number} of {field} is about {label[:4].lower()} things" for field in fields}
    return {"source": of.text.format(**texts), **({} if split == "unlabeled" else {"target": label})}


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())


@dataclass(frozen=True)
class MadeUp:
    """A mirror of made-up rows, and a copy of the shipped file that says their number and sha256."""

    task: Path
    mirror: Path

    @classmethod
    def of(cls, name: str, folder: Path, **more: list[dict[str, str]]) -> MadeUp:
        """``more``: rows that a split has beside its own."""
        content: dict[str, Any] = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
        sources = [content["data"][split] for split in ("train", "dev", "test")]
        for source in [*sources, *(part for part in content["pool"] if "file" in part)]:
            split = Path(source["file"]).name.partition(".")[0]
            rows = [made_up(name, split, i) for i in range(N_ROWS[split])] + more.get(split, [])
            path = folder / "mirror" / source["file"]
            write_rows(path, rows)
            source |= {"rows": len(rows), "sha256": digest_of_file(path)}
        task = folder / "own" / f"{name}.yaml"
        task.parent.mkdir(parents=True)
        task.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return cls(task, folder / "mirror")


@pytest.mark.parametrize("name", SOME)
def test_its_files_are_brought_and_checked(name: str, tmp_path: Path) -> None:
    made, data = MadeUp.of(name, tmp_path), tmp_path / "data"
    brought = outlay("data", "get", made.task, "--from", made.mirror, "--to", data, "--json").json
    assert [file["file"] for file in brought] == [file.file for file in data_files(load_task(name))]
    assert all(file["copied"] for file in brought)
    found = outlay("task", "check", made.task, "--data", data, "--json").json
    rows = {split["name"]: split["n_rows"] for split in found["splits"]}
    pool = {"pool.train": 48} | ({"pool.official_test": 20} if SETS[name].n_official_test else {})
    assert rows == {"train": 48, "dev": 12, "test": 18, **pool}
    assert found["warnings"] == []
    assert load_data(load_task(made.task), data).digest.startswith(found["digest"])


@pytest.mark.parametrize("name", SOME)
def test_rows_that_are_not_those_of_the_set_are_refused(name: str, tmp_path: Path) -> None:
    made, data = MadeUp.of(name, tmp_path), tmp_path / "data"
    refused(outlay("data", "get", name, "--from", made.mirror, "--to", data), f"{name}/train.jsonl", "sha256")
    assert not [path for path in data.rglob("*") if path.is_file()]
    refused(outlay("task", "check", name, "--data", made.mirror), f"{name}/train.jsonl")


@pytest.mark.parametrize("name", SOME)
def test_a_text_is_taken_apart_and_the_pool_knows_no_label(name: str, tmp_path: Path) -> None:
    made = MadeUp.of(name, tmp_path)
    task = load_task(made.task)
    data = load_data(task, made.mirror)
    for number, example in enumerate(data.test):
        row = made_up(name, "test", number)
        assert (example.text, example.label) == (row["source"], row["target"])
        for field, value in example.fields:
            assert value.startswith(f"test {number} of {field} is")
        assert task.segments_of(example) == tuple(value for _, value in example.fields)
    pool = [example for part in data.pool for example in part.examples]
    assert {example.label for example in pool} == {None}
    assert [e.text for e in data.pool[0].examples] == [e.text for e in data.train]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "train") for name in ("trec_qc", "mrpc")),
        *(pytest.param(name, "train", marks=pytest.mark.slow) for name in SETS if name not in ("trec_qc", "mrpc")),
        pytest.param("rte", "unlabeled", marks=pytest.mark.slow),
        ("qnli", "unlabeled"),
    ],
)
def test_a_test_row_that_is_trained_on_is_refused(name: str, split: str, tmp_path: Path) -> None:
    held = made_up(name, "test", 3)
    again = {**held, "source": held["source"].replace("things", "  THINGS")}
    made = MadeUp.of(name, tmp_path, **{split: [again]})
    part = "train" if split == "train" else "pool.official_test"
    with pytest.raises(LeakError, match=rf"1 of {N_ROWS[split] + 1} {part} rows"):
        load_data(load_task(made.task), made.mirror)


@pytest.mark.parametrize("name", ["mrpc", "rte"])
def test_a_swapped_pair_is_the_same_pair_only_where_the_order_says_nothing(name: str, tmp_path: Path) -> None:
    held = made_up(name, "test", 3)
    one, two = held["source"].removeprefix("sentence1: ").split(" sentence2: ")
    made = MadeUp.of(name, tmp_path, train=[{**held, "source": f"sentence1: {two} sentence2: {one}"}])
    task = load_task(made.task)
    if name == "mrpc":
        with pytest.raises(LeakError, match="1 of 49 train rows"):
            load_data(task, made.mirror)
    else:
        assert len(load_data(task, made.mirror).train) == 49


@pytest.mark.parametrize("name", ["trec_qc", pytest.param("mrpc", marks=pytest.mark.slow), "qnli"])
def test_a_teacher_is_bought_and_distilled(name: str, tmp_path: Path) -> None:
    made = MadeUp.of(name, tmp_path)
    texts = [made_up(name, split, i)["source"] for split, n in N_ROWS.items() for i in range(n)]
    checkpoint = make_checkpoint(tmp_path / "checkpoint", texts)
    data, store = tmp_path / "data", tmp_path / "store"
    assert outlay("data", "get", made.task, "--from", made.mirror, "--to", data).code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTLAY_DATA", str(data))
        points = outlay(
            *("compare", made.task, "--budget", "6", "--n-initial", "20", "--strategies", "annotate,distill"),
            *("--teacher", checkpoint, "--student", "cut:1", "--threads", "1", "--quiet", "--json"),
            *(f"--set={role}.epochs=1" for role in ("teacher", "student", "distil")),
            *("--out", tmp_path / "out", "--store", store),
        ).json
    by_strategy = {point["request"]["strategy"]: point["result"] for point in points}
    assert {result["status"] for result in by_strategy.values()} == {"ok"}
    # $6 at $0.20 a label, less what the student's training is charged.
    assert by_strategy["annotate"]["n_labels"] == 29
    assert by_strategy["distill"]["n_pool"] == sum(N_ROWS[s] for s in ("train", "unlabeled")[: 1 + (name == "qnli")])
    for result in by_strategy.values():
        assert result["charge_usd"] <= 6
        assert next(iter(result["scores"])) == "accuracy/published"
        assert "macro_f1/strict" in result["scores"]


# --- the page, and the real rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_the_page_of_tasks_says_what_they_are(name: str) -> None:
    of = SETS[name]
    rows = ", ".join(f"{n:,}" for n in (*of.rows, sum(of.test.values())))
    pool = f"{of.rows[0] + of.n_official_test:,}"
    assert told_of(name) == [f"classification ({len(of.test)})", "accuracy", "0.20", rows, pool]
    task = load_task(name)
    assert task.data.dev is not None
    assert (task.data.train.rows, task.data.dev.rows, task.data.test.rows) == (*of.rows, sum(of.test.values()))


@pytest.mark.integration
@pytest.mark.parametrize("name", SETS)
def test_the_real_rows_are_brought_and_checked(name: str, tmp_path: Path) -> None:
    if "OUTLAY_DATA" not in os.environ:
        pytest.skip("no public data sets: OUTLAY_DATA=DIR make test-slow")
    outlay("data", "get", name, "--from", os.environ["OUTLAY_DATA"], "--to", tmp_path)
    found = outlay("task", "check", name, "--data", tmp_path, "--json").json
    of = SETS[name]
    splits = {split["name"]: split for split in found["splits"]}
    assert [splits[split]["n_rows"] for split in ("train", "dev")] == list(of.rows)
    assert splits["test"]["labels"] == of.test
    assert {split["n_leaked"] + split["n_dropped"] for split in splits.values()} == {0}
    assert not any("price" in warning for warning in found["warnings"])
    data = load_data(load_task(name), tmp_path)
    assert Counter(example.label for example in data.test) == of.test
    assert {example.label for part in data.pool for example in part.examples} == {None}
