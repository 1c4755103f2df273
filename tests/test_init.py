"""From files as people have them to a task: what is guessed is said, what cannot be told is asked, and nothing leaks."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import outlay
from outlay.cli import init_command
from outlay.cli.app import app
from outlay.errors import DataError, MissingData, UsageError
from outlay.money.amounts import PriceBook
from outlay.tasks import new_task as new_task_module
from outlay.tasks.columns import guess_columns
from outlay.tasks.folds import Folds
from outlay.tasks.groups import near_duplicate_groups
from outlay.tasks.loading import load_data
from outlay.tasks.new_task import NewTask, NewTaskOptions, SplitOptions, new_task
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
    one, again, other = (new_task([path], NewTaskOptions(splits=SplitOptions(seed=seed))) for seed in (3, 3, 4))
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
    new = new_task([path], NewTaskOptions(splits=SplitOptions(seed=seed, group="author" if seed % 2 else None)))
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
            NewTaskOptions(splits=SplitOptions(test=30)),
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


def grouped_by(new: NewTask, part: str, column: int) -> set[str]:
    return {row.texts[column] for row in getattr(new, part)}


@pytest.mark.parametrize("n_sentences", [400, 8])
def test_pairs_that_share_a_sentence_stay_on_one_side_unless_all_hang_together(
    tmp_path: Path, n_sentences: int
) -> None:
    rng = random.Random(1)
    sentences = [text for text, _ in messages(n_sentences)]
    rows = dict.fromkeys((rng.choice(sentences), text, rng.choice("yn")) for text, _ in messages(240, seed=5))
    new = new_task([written(tmp_path / "rows.csv", ["sentence1", "sentence2", "same"], list(rows))], NewTaskOptions())
    parts = [grouped_by(new, part, 0) for part in ("train", "test")]
    said = "\n".join(new.decided)
    assert len(new.test) == 100
    if n_sentences == 400:
        assert not parts[0] & parts[1]
        n_sharing = sum(n for n in Counter(row[0] for row in rows).values() if n > 1)
        assert f"{n_sharing} rows are near duplicates or rows that share a text, and stay on one side" in said
    else:
        assert parts[0] == parts[1]
        assert "240 rows hang together by texts that they share, too many for one side of a split" in said
    statistics = write_task(new, tmp_path / "task").statistics
    assert any("sharing a part" in line for line in statistics.warnings()) == (n_sentences == 8)


def test_a_pool_has_no_text_of_a_test_row_in_another_pair(tmp_path: Path) -> None:
    pairs = list(zip(*(iter([text for text, _ in messages(480)]),) * 2, strict=True))
    rows = [[*pair, "yes" if i % 2 else "no"] for i, pair in enumerate(pairs[:200])]
    # Every fourth text stands in a labelled row as well.
    mixed = [(rows[i][0] if i % 4 == 0 else first, second) for i, (first, second) in enumerate(pairs[200:])]
    path = written(tmp_path / "rows.csv", ["sentence1", "sentence2", "same"], [*rows, *([*pair, ""] for pair in mixed)])
    new = new_task([path], NewTaskOptions())
    held = {text for row in new.test for text in row.texts}
    n_left_out = sum(first in held for first, _ in mixed)
    assert n_left_out > 0
    assert len(new.pool) == len(mixed) - n_left_out
    assert not held & {text for row in new.pool for text in row.texts}
    said = "\n".join(new.decided)
    assert f"and {n_left_out} that nearly are, or share a text with, a dev or test row" in said
    assert f"{len(new.pool)} rows have no label and are the pool" in said


@pytest.mark.parametrize(("n", "test", "dev"), [(350, None, None), (300, 120, 0), (150, 100, 30), (550, 7, None)])
def test_sizes_are_what_was_asked_for(tmp_path: Path, n: int, test: int | None, dev: int | None) -> None:
    path = written(
        tmp_path / "rows.csv", ["text", "label"], [[f"text number {i * i}", "ab"[i % 3 == 0]] for i in range(n)]
    )
    new = new_task([path], NewTaskOptions(splits=SplitOptions(test=test, dev=dev)))
    assert len(new.test) == (test or min(max(n // 5, 100), 1000))
    assert len(new.dev) == ((n - len(new.test)) // 10 if n - len(new.test) >= 500 else dev or 0)
    assert sum(row.label == "b" for row in new.test) == pytest.approx(len(new.test) / 3, abs=1)
    assert (new.n_folds > 0) == (not new.dev)


def test_a_test_part_has_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_task_module, "LEAST_TEST", 20)
    monkeypatch.setattr(new_task_module, "MOST_TEST", 30)
    sizes = [len(new_task([table(tmp_path / f"{n}.csv", n)], NewTaskOptions()).test) for n in (30, 60, 120, 200)]
    assert sizes == [15, 20, 24, 30]


def test_groups_are_written_where_folds_need_them(tmp_path: Path) -> None:
    rows = [[text, topic, f"author {i % 60}"] for i, (text, topic) in enumerate(messages(240))]
    path = written(tmp_path / "rows.csv", ["message", "topic", "author"], rows)
    made = write_task(new_task([path], NewTaskOptions(splits=SplitOptions(group="author"))), tmp_path / "task")
    task = load_task(made.task)
    data = load_data(task)
    author_of = {text: author for text, _, author in rows}
    folds = Folds.of(task, data).rows
    authors = [{author_of[row.text] for row in data.train if row.id in fold} for fold in folds]
    assert sum(map(len, authors)) == len(set().union(*authors)), "an author is in two folds"
    assert made.next_command.startswith(f"outlay compare {made.task} --budgets 10 --seeds 5")
    assert made.decided[-1].startswith("no price of a label")


def test_too_few_groups_for_folds_are_said(tmp_path: Path) -> None:
    rows = [[text, topic, f"author {i % 4}"] for i, (text, topic) in enumerate(messages(240))]
    path = written(tmp_path / "rows.csv", ["message", "topic", "author"], rows)
    new = new_task([path], NewTaskOptions(splits=SplitOptions(group="author")))
    assert "groups of rows are fewer than 5 folds" in "\n".join(new.decided)
    made = write_task(new, tmp_path / "task")
    assert load_task(made.task).dev == "carved"
    assert "--seeds" not in made.next_command
    rows = [[text, topic, "all"] for text, topic, _ in rows]
    with pytest.raises(DataError, match="are of one group, so that none can be set aside; leave --group out"):
        new_task(
            [written(tmp_path / "one.csv", ["message", "topic", "author"], rows)],
            NewTaskOptions(splits=SplitOptions(group="author")),
        )


def test_from_python_the_same_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "tickets.csv", 120)
    options = (
        "--label-price",
        "$0.2",
        "--seed",
        "4",
        "--test",
        "30",
        "--name",
        "tk",
        "--text",
        "message",
        "--label",
        "topic",
    )
    assert command("init", "tickets.csv", "--yes", "--out", "typed", *options).code == 0
    made = outlay.init(
        "tickets.csv",
        out="called",
        name="tk",
        text="message",
        label="topic",
        label_price=0.2,
        splits=outlay.SplitOptions(seed=4, test=30),
    )
    typed = {path.name: path.read_bytes() for path in (tmp_path / "typed").iterdir()}
    assert {path.name: path.read_bytes() for path in made.files} == typed
    assert (made.task, made.prices) == (Path("called/task.yaml"), Path("called/prices.toml"))
    assert PriceBook.load([Path("called/prices.toml")]).label("label/tk").usd == Decimal("0.20")
    assert made.decided[-1] == "labels are by people; --labeller says it otherwise"
    assert made.statistics.task.dev == "folds"
    with pytest.raises(UsageError, match="called is there already"):
        outlay.init(["tickets.csv"], out="called")
    with pytest.raises(UsageError, match="kind 'regression' is unknown"):
        outlay.init(["tickets.csv"], kind="regression")


def test_a_terminal_is_asked_what_files_do_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Price, who labels, and whether to write; a price that is none is asked for again."""
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "tickets.csv", 60)
    monkeypatch.setattr(init_command, "is_terminal", lambda: True)
    asked = CliRunner().invoke(app, ["init", "tickets.csv"], input="much\n0.35\nour agents\ny\n")
    assert asked.exit_code == 0, asked.output
    assert "'much' is not an amount of dollars" in asked.output
    price = PriceBook.load([Path("tickets/prices.toml")]).label("label/tickets")
    assert (price.usd, price.source) == (Decimal("0.35"), "our agents")
    left = CliRunner().invoke(app, ["init", "tickets.csv", "--out", "never"], input="\nn\n")
    assert left.exit_code == 1
    assert not (tmp_path / "never").exists()


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
    assert next_command.startswith(
        "next: outlay compare tickets/task.yaml --budgets 10 --seeds 5 --prices tickets/prices.toml"
    )
    assert PriceBook.load([tmp_path / "tickets" / "prices.toml"]).label("label/tickets").source == "our agents"
    assert command("task", "check", "tickets/task.yaml", "--prices", "tickets/prices.toml").code == 0
    words = next_command.removeprefix("next: outlay ").replace("--seeds 5", "--seeds 2").split()
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
