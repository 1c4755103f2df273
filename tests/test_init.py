"""From files as people have them to a task: what is guessed is said, what cannot be told is asked, and nothing leaks."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import DataError, MissingData, UsageError
from outlay.money.amounts import PriceBook
from outlay.tasks.columns import guess_columns
from outlay.tasks.groups import near_duplicate_groups
from outlay.tasks.loading import load_data
from outlay.tasks.new_task import NewTask, NewTaskOptions, new_task
from outlay.tasks.readers import SourceRow
from outlay.tasks.row_form import RowForm
from outlay.tasks.task import load_task
from outlay.tasks.task_files import write_task
from tests.checkpoints import make_checkpoint
from tests.test_cli import outlay as command

TOPICS = {
    "billing": ("invoice", "charge", "refund"),
    "delivery": ("parcel", "courier", "address"),
    "login": ("password", "account", "code"),
}
FILLERS = ("please", "today", "again", "my", "the", "about", "order", "still", "was", "not", "there", "help", "with")


def messages(n: int, seed: int = 0) -> list[tuple[str, str]]:
    rng, found = random.Random(seed), dict[str, str]()
    while len(found) < n:
        topic = rng.choice(sorted(TOPICS))
        words = [*rng.choices(FILLERS, k=rng.randint(4, 9)), rng.choice(TOPICS[topic]), str(rng.randrange(10_000))]
        rng.shuffle(words)
        found[" ".join(words)] = topic
    return list(found.items())


def written(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], delimiter: str = ";") -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
    return path


def table(path: Path, n: int = 300, seed: int = 0) -> Path:
    return written(path, ["id", "message", "topic"], [[f"T{i}", *row] for i, row in enumerate(messages(n, seed))])


def source_rows(rows: Sequence[dict[str, Any]]) -> list[SourceRow]:
    return [SourceRow(f"rows:{number}", row) for number, row in enumerate(rows, start=1)]


def texts_of(new: NewTask, part: str) -> set[str]:
    return {" ".join(row.texts) for row in getattr(new, part)}


# --- guesses ---------------------------------------------------------------------------------------------------------


def test_a_spreadsheet_becomes_a_task_that_loads(tmp_path: Path) -> None:
    new = new_task([table(tmp_path / "help desk.csv")], NewTaskOptions())
    assert (new.name, new.kind, new.fields) == ("help-desk", "classification", ("message",))
    assert sorted(new.labels) == sorted(TOPICS)
    data = load_data(task := load_task(write_task(new, tmp_path / "task").task))
    assert (len(data.train), len(data.dev), len(data.test)) == (200, 0, 100)
    assert (task.dev, task.folds) == ("folds", 5)
    assert len(data.owned) == len(data.train)
    assert task.price_item == "label/owned"
    said = "\n".join(new.decided)
    for word in (
        "semicolons",
        "column 'topic', by its name",
        "column 'message', by its name",
        "classification",
        "test: 100 of 300",
    ):
        assert word in said


@pytest.mark.parametrize(("n", "n_test", "n_dev"), [(120, 60, 0), (300, 100, 0), (1000, 200, 80), (1500, 300, 120)])
def test_sizes_by_default(tmp_path: Path, n: int, n_test: int, n_dev: int) -> None:
    new = new_task([table(tmp_path / "rows.csv", n)], NewTaskOptions())
    assert len(new.test) == pytest.approx(n_test, abs=0.02 * n)
    assert len(new.dev) == pytest.approx(n_dev, abs=0.02 * n)
    assert len(new.train) + len(new.dev) + len(new.test) == n
    share = Counter(row.label for row in new.test)
    assert all(share[label] == pytest.approx(len(new.test) * count / n, abs=3) for label, count in _counts(n).items())


def _counts(n: int) -> Counter[str]:
    return Counter(topic for _, topic in messages(n))


def test_the_same_seed_gives_the_same_splits_and_another_does_not(tmp_path: Path) -> None:
    path = table(tmp_path / "rows.csv")
    one, again, other = (new_task([path], NewTaskOptions(seed=seed)) for seed in (3, 3, 4))
    assert one.test == again.test
    assert one.test != other.test


@pytest.mark.parametrize(
    ("rows", "texts", "label"),
    [
        ([{"sentence1": "a b c", "sentence2": "d e f", "y": 1}] * 2, ("sentence1", "sentence2"), "y"),
        ([{"body": "some words here", "stars": str(i % 3)} for i in range(30)], ("body",), "stars"),
        ([{"text": "some words here"}] * 3, ("text",), None),
        (
            [{"x": f"a long enough text {i}", "z": f"another long text {i}", "label": "a"} for i in range(9)],
            ("x", "z"),
            "label",
        ),
    ],
)
def test_columns_are_told_by_their_names_and_what_is_in_them(
    rows: list[dict[str, Any]], texts: tuple[str, ...], label: str | None
) -> None:
    found = guess_columns(source_rows(rows))
    assert (found.texts, found.label) == (texts, label)
    assert all("--text says it otherwise" in line or "--label says it otherwise" in line for line in found.why)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"text": "words", "label": "a", "class": "b"}] * 3,
            "label, class may all be labels; name one with --label",
        ),
        (
            [{"a": f"some long words {i}", "b": f"more long words {i}", "c": f"and long words {i}"} for i in range(9)],
            "--text twice",
        ),
        ([{"n": 1, "m": 2}], "looks like text; name one with --text"),
    ],
)
def test_what_cannot_be_told_is_asked(rows: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(DataError, match=says):
        guess_columns(source_rows(rows))
    with pytest.raises(DataError, match="there is no column 'nowhere'; the columns are"):
        guess_columns(source_rows(rows), label="nowhere")


def test_entities_and_free_answers_are_told_by_the_answers(tmp_path: Path) -> None:
    tagged = [[f"mix the salt {i}", "mix [Action] salt [Reagent]"] for i in range(40)]
    new = new_task([written(tmp_path / "lab.csv", ["text", "label"], tagged)], NewTaskOptions())
    assert (new.kind, set(new.labels)) == ("entities", {"Action", "Reagent"})
    free = [[f"who wrote book number {i}?", f"author {i}"] for i in range(40)]
    new = new_task([written(tmp_path / "qa.csv", ["question", "target"], free)], NewTaskOptions())
    assert (new.kind, new.labels) == ("generation", ())
    for each, name in ((new, "free"),):
        load_data(load_task(write_task(each, tmp_path / name).task))


def test_columns_keep_their_names_so_that_new_files_are_read_as_the_first(tmp_path: Path) -> None:
    rows = [[text, topic, text[::-1]] for text, topic in messages(60)]
    path = written(tmp_path / "rows.csv", ["label", "my topic", "the text"], rows)
    new = new_task([path], NewTaskOptions(texts=("the text", "label"), label="my topic"))
    assert new.fields == ("the_text", "label")
    task = load_task(write_task(new, tmp_path / "task").task)
    assert len(load_data(task).train) + len(load_data(task).test) == 60
    form = RowForm.of(task)
    assert form.columns_in(["id", "label", "the text"]) == {"the_text": "the text", "label": "label"}


def test_numbers_that_a_program_wrote_with_a_fraction_are_labels_without(tmp_path: Path) -> None:
    lines = [
        {"text": text, "label": float(sorted(TOPICS).index(topic)), "tags": ["a", i]}
        for i, (text, topic) in enumerate(messages(60))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert sorted(new_task([tmp_path / "rows.jsonl"], NewTaskOptions()).labels) == ["0", "1", "2"]


# --- what is left out, and what stays together -----------------------------------------------------------------------


def test_repeats_and_conflicts_are_left_out_and_said(tmp_path: Path) -> None:
    rows = [*messages(200)]
    first, second = rows[0], rows[1]
    other = next(topic for topic in TOPICS if topic != second[1])
    more = [*rows, (first[0].upper(), first[1]), (second[0], other), ("only one", "rare")]
    new = new_task([written(tmp_path / "rows.csv", ["message", "topic"], more)], NewTaskOptions())
    kept = texts_of(new, "train") | texts_of(new, "dev") | texts_of(new, "test")
    assert len(kept) == 199
    assert second[0] not in kept
    said = "\n".join(new.decided)
    assert "left out: 1 labelled row with a text of an earlier one" in said
    assert "left out: 2 rows of 1 text with several labels, the first at" in said
    assert "left out: 1 label of one row each: rare" in said


@pytest.mark.parametrize("seed", range(6))
def test_near_duplicates_and_groups_stay_on_one_side(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows: list[list[str]] = []
    for i, (text, topic) in enumerate(messages(600, seed)):
        rows.append([text, topic, f"author {i % 97}" if seed % 2 else ""])
        if rng.random() < 0.2:
            rows.append([text + "!", topic, f"author {i % 97}" if seed % 2 else ""])
    path = written(tmp_path / "rows.csv", ["message", "topic", "author"], rows)
    new = new_task([path], NewTaskOptions(seed=seed, group="author" if seed % 2 else None))
    sides = {part: getattr(new, part) for part in ("train", "dev", "test")}
    side_of: dict[str, str] = {}
    for part, found in sides.items():
        for row in found:
            for key in (row.texts[0].rstrip("!"), row.group):
                assert not key or side_of.setdefault(key, part) == part, f"{key} is in {part} and {side_of[key]}"
    assert min(map(len, sides.values())) > 10


def test_near_duplicates_are_those_of_a_loop_over_all_pairs() -> None:
    texts = [
        "the parcel has not come yet",
        "the parcel has not come yet.",
        "where is my invoice",
        "where is my invoice??",
        "hello",
    ]
    groups = near_duplicate_groups(texts)
    assert [groups[i] == groups[j] for i, j in ((0, 1), (2, 3), (0, 2), (1, 4))] == [True, True, False, False]
    pattern = [f"order number {i} has not come" for i in range(50)]
    assert len(set(near_duplicate_groups([*pattern, pattern[0].upper()]))) == 50
    assert near_duplicate_groups([]) == []
    assert near_duplicate_groups(["one"]) == [0]


def test_rows_without_a_label_and_other_files_are_the_pool(tmp_path: Path) -> None:
    rows = [[text, topic if i % 3 else ""] for i, (text, topic) in enumerate(messages(300))]
    known = rows[1][0]
    (tmp_path / "more.txt").write_text(
        "\n".join(["one new text here", "one new text here", known, ""]), encoding="utf-8"
    )
    new = new_task(
        [written(tmp_path / "rows.csv", ["message", "topic"], rows), tmp_path / "more.txt"], NewTaskOptions()
    )
    assert len(new.train) + len(new.dev) + len(new.test) == 200
    assert texts_of(new, "pool") == {row[0] for row in rows if not row[1]} | {"one new text here"}
    held = texts_of(new, "test") | texts_of(new, "dev")
    assert not held & texts_of(new, "pool")


def test_a_folder_of_labels(tmp_path: Path) -> None:
    for i, (text, topic) in enumerate(messages(60)):
        folder = tmp_path / "texts" / topic
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    new = new_task([tmp_path / "texts"], NewTaskOptions())
    assert sorted(new.labels) == sorted(TOPICS)
    assert len(new.train) + len(new.test) == 60


@pytest.mark.parametrize(
    ("content", "asked", "error", "says"),
    [
        (None, NewTaskOptions(), MissingData, "is not there"),
        ("message,topic\na b,x\n", NewTaskOptions(), DataError, "too few to set a test part aside"),
        (
            "message,topic\n" + "".join(f"a b {i},x\n" for i in range(30)),
            NewTaskOptions(n_test=30),
            UsageError,
            "leaves none to train on",
        ),
        (
            "message,topic\n" + "".join(f"a b {i},\n" for i in range(30)),
            NewTaskOptions(),
            DataError,
            "no row has a label",
        ),
    ],
)
def test_what_cannot_be_a_task_is_refused(
    tmp_path: Path, content: str | None, asked: NewTaskOptions, error: type[Exception], says: str
) -> None:
    if content is not None:
        (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(error, match=says):
        new_task([tmp_path / "rows.csv"], asked)


# --- the command -----------------------------------------------------------------------------------------------------


def test_six_commands_from_a_csv_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tour of the README on generated rows: no line of YAML is written by hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUTLAY_STORE", str(tmp_path / "store"))
    table(tmp_path / "tickets.csv", 240)
    make_checkpoint(tmp_path / "encoder", [text for text, _ in messages(240)], n_layers=2)
    (tmp_path / "inbox.txt").write_text("\n".join(text for text, _ in messages(80, seed=9)), encoding="utf-8")
    made = command("init", "tickets.csv", "inbox.txt", "--yes", "--label-price", "0.20", "--labeller", "our agents")
    assert made.code == 0, made.err
    next_command = made.out.splitlines()[-1]
    assert next_command.startswith("next: outlay compare tickets/task.yaml --budgets 10 --seeds 5 --prices tickets/prices.toml")
    assert PriceBook.load([tmp_path / "tickets" / "prices.toml"]).label("label/tickets").source == "our agents"
    assert command("task", "check", "tickets/task.yaml", "--prices", "tickets/prices.toml").code == 0
    words = next_command.removeprefix("next: outlay ").split()
    quick = ("--teacher", "encoder", "--student", "cut:1", "--strategies", "annotate", "--threads", "1")
    ran = command(*words, *quick, "--set", "student.method=probe", "--quiet")
    assert ran.code == 0, ran.err
    results = Path("tickets/results")
    assert f"model: {results / 'model'}" in ran.out
    assert command("predict", results, "--file", "inbox.txt", "--threads", 1, "--quiet").code == 0
    lines = [json.loads(line) for line in Path("inbox.predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 80
    assert {line["prediction"] for line in lines} <= set(TOPICS)
    assert command("evaluate", results, "--threads", 1, "--quiet").code == 0
    assert command("ledger", "verify", results).code == 0


def test_a_folder_in_use_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "tickets.csv", 60)
    assert command("init", "tickets.csv", "--yes").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "tickets").iterdir()}
    again = command("init", "tickets.csv", "--yes")
    assert again.code == 1
    assert "tickets is there already and not empty; choose another folder with --out" in again.err
    assert {path: path.read_bytes() for path in (tmp_path / "tickets").iterdir()} == before
    found = command("init", "tickets.csv", "--out", "other", "--json").json
    assert found["files"][0] == "other/task.yaml"
    assert found["next"].startswith("outlay compare other/task.yaml")
    assert {"decided", "profile", "next", "files"} == set(found)
