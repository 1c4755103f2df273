"""People who label by filling in files: folders of orders, spreadsheets, answers of all kinds, majorities, kills."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import example as with_example
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from outlay.errors import SellerError, UnknownOrder
from outlay.labels import Allowance, Annotator, Delivery, Order
from outlay.labels.agreement import agreement, cohen_kappa, majority
from outlay.labels.annotator import Answer, no_report
from outlay.labels.files import FileSeller, Guideline, close_order, order_folders, status
from outlay.labels.files.answers import read_answers
from outlay.labels.files.cells import defuse, fuse
from outlay.labels.files.order_folder import Accepted, OrderFolder, item_files
from outlay.money.amounts import Price
from outlay.tasks.example import Example
from tests.annotators import (
    GUIDELINE,
    LABELS,
    PRICE,
    contrary,
    fill_in,
    folder_of,
    number_in,
    rows_of,
    saved_by_libreoffice,
    says,
    seller_in,
    write_rows,
)
from tests.contracts.annotator_contract import AnnotatorContract, collected, example

RICH = 1_000


def row_of(text: str, **fields: str) -> Example:
    row = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Example(row, tuple((fields or {"text": text}).items()), text, None, "made:1")


def order_of(*texts: str, order_id: str = "order") -> Order:
    return Order.of(order_id, [row_of(text) for text in texts])


def numbered(n: int, order_id: str = "order") -> Order:
    return Order.of(order_id, [example(number) for number in range(n)])


def collect(seller: FileSeller, order: Order, usd: Fraction | int = RICH) -> Delivery:
    return seller.collect(order, Allowance(usd))


def given_out(seller: FileSeller, order: Order) -> Path:
    """The folder of an order that was just given out."""
    seller.submit(order)
    assert collect(seller, order).waits_for
    return folder_of(seller.folder)


def problems(folder: Path) -> list[dict[str, str]]:
    return rows_of(folder / "problems.csv") if (folder / "problems.csv").exists() else []


# --- the contract -------------------------------------------------------------------------------------------------------


class Answered(FileSeller):
    """Files that annotators fill in after each look at them, some rows a time, each at a pace and of a mind of their own."""

    PACE: ClassVar = 5

    def collect(self, order: Order, allowance: Allowance, report: Callable[[int], None] = no_report) -> Delivery:
        got = super().collect(order, allowance, report)
        for folder in order_folders(self.folder):
            for at, path in enumerate(sorted(folder.path.glob("annotator-*.csv"))):
                left = [place for place, row in enumerate(rows_of(path)) if not row["label"]]
                if left:
                    fill_in(
                        path,
                        lambda text, at=at: LABELS[len(text) % 3 if at else ord(text[-1]) % 3],
                        left[: self.PACE + at],
                    )
        return got


class TestFilesKeepTheContract(AnnotatorContract):
    REDUNDANCY: ClassVar = 1

    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path: Path) -> None:
        self.folders = (tmp_path / str(number) for number in count())

    def make_seller(self) -> Annotator:
        return Answered(next(self.folders), GUIDELINE, PRICE, redundancy=self.REDUNDANCY)

    def billed_micros(self, seller: Annotator) -> int:
        assert isinstance(seller, FileSeller)
        files = [path for folder in order_folders(seller.folder) for path in folder.path.glob("annotator-*.csv")]
        return sum(seller.price.cost_micros(sum(bool(row["label"]) for row in rows_of(path))) for path in files)


class TestFilesOfTwoAnnotatorsKeepTheContract(TestFilesKeepTheContract):
    REDUNDANCY: ClassVar = 2


# --- what is given out --------------------------------------------------------------------------------------------------


def test_an_order_is_a_folder_with_items_for_people_and_for_programs(tmp_path: Path) -> None:
    order = order_of("=cmd|' /C calc'!A0", 'she said "no";\nand left', "плюс", "  blanks, 1e5 ")
    folder = given_out(seller_in(tmp_path, redundancy=2), order)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *(
            "README.txt",
            "answers",
            "report.txt",
            "annotator-1.csv",
            "annotator-1.jsonl",
            "annotator-2.csv",
            "annotator-2.jsonl",
        )
    }
    told = (folder / "README.txt").read_text()
    assert all(word in told for word in ("Say what it is.", "spam: advertising", "ham", "eggs", "annotator-2.csv"))
    lines = [json.loads(line) for line in (folder / "annotator-1.jsonl").read_text().splitlines()]
    table = rows_of(folder / "annotator-1.csv")
    assert [line["text"] for line in lines] == [fuse(row["text"]) for row in table] == [e.text for e in order.examples]
    assert [line["id"] for line in lines] == [row["id"] for row in table]
    assert {row["label"] for row in table} == {row["comment"] for row in table} == {""}
    assert all(row["id"].startswith("row-") for row in table)
    # The same row has the same id in every order.
    again = given_out(seller_in(tmp_path / "b"), order_of("плюс", order_id="other"))
    assert rows_of(again / "annotator-1.csv")[0]["id"] == table[2]["id"]


def test_fields_are_columns_and_one_with_the_name_of_a_column_keeps_apart(tmp_path: Path) -> None:
    order = Order.of("order", [row_of("claim: a label: b", claim="a", label="b")])
    folder = given_out(seller_in(tmp_path), order)
    (row,) = rows_of(folder / "annotator-1.csv")
    assert {**row, "id": ""} == {"id": "", "claim": "a", "label (text)": "b", "label": "", "comment": ""}
    row["label"] = "ham"
    write_rows(folder / "annotator-1.csv", [row])
    assert collect(seller_in(tmp_path), order).labels == {order.rows[0]: "ham"}


@given(
    st.text(st.one_of(st.sampled_from("=+-@\t\r\n'\"＝ a1;,"), st.characters(exclude_categories=["Cs"])), max_size=8)
)
@with_example("'=1")
@with_example("''@x")
def test_a_defused_cell_begins_no_formula_and_comes_back(text: str) -> None:
    cell = defuse(text)
    assert fuse(cell) == text
    assert cell[:1] not in {*"=+-@\t\r\n＝＋－＠"} - {""}


def test_a_known_id_on_other_rows_is_refused_and_settings_have_limits(tmp_path: Path) -> None:
    seller = seller_in(tmp_path)
    given_out(seller, numbered(3))
    with pytest.raises(SellerError, match="other rows"):
        seller.submit(numbered(4))
    with pytest.raises(SellerError, match="other rows"):
        collect(seller, Order.of("order", tuple(reversed(numbered(3).examples))))
    for wrong, words in (
        ({"redundancy": 0}, "redundancy is 0"),
        ({"tie_share": 1.5}, "1.5"),
        ({"poll_seconds": 0}, "0;"),
    ):
        with pytest.raises(SellerError, match=words):
            seller_in(tmp_path, **wrong)


def test_no_more_is_given_out_than_the_money_reaches_for(tmp_path: Path) -> None:
    """Items by what they are expected to cost, and one more annotator where there is money for the answer."""
    seller = seller_in(tmp_path, redundancy=2)
    order = numbered(10)
    seller.submit(order)
    usd = Fraction(PRICE.usd) * Fraction("2.2") * 5
    assert "0 of 5" in str(collect(seller, order, usd).waits_for)
    folder = folder_of(seller.folder)
    assert len(rows_of(folder / "annotator-1.csv")) == 5
    fill_in(folder / "annotator-1.csv", lambda _: "ham")
    fill_in(folder / "annotator-2.csv", lambda _: "spam")
    allowance = Allowance(usd)
    assert seller.collect(order, allowance).waits_for
    assert allowance.left == 0
    fill_in(folder / "annotator-3.csv", lambda _: "spam")
    got = collect(seller, order, usd)
    assert got.waits_for is None
    assert list(got.labels.values()) == ["spam"]
    assert set(got.refused.values()) == {"annotators disagree, and the money does not reach for one more"}
    assert len(got.results) == 5
    assert got.quantity == 11 == usd / Fraction(PRICE.usd)
    nothing = seller_in(tmp_path / "b")
    nothing.submit(order)
    assert collect(nothing, order, 0) == Delivery("order", ())
    assert "0 of 10" in str(collect(nothing, order).waits_for)


# --- what comes back ----------------------------------------------------------------------------------------------------


DIALECTS = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t|"),
        "mark": st.booleans(),
        "all_quoted": st.booleans(),
        "line_end": st.sampled_from(["\n", "\r\n"]),
        "more_columns": st.integers(0, 3),
        "more_rows": st.integers(0, 3),
    }
)
TEXTS = st.text(
    st.one_of(st.sampled_from("=+-@;,\t\"'|\r\n 0159."), st.characters(exclude_categories=["Cs"])), max_size=12
)


@settings(max_examples=40)
@given(st.lists(TEXTS, min_size=1, max_size=5, unique=True), DIALECTS)
@with_example(
    ["007", "1.50", "true", "=1;2", "\x00"], {"delimiter": ";", "mark": True, "line_end": "\r\n", "more_columns": 2}
)
def test_a_file_saved_by_a_spreadsheet_comes_back_whole(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], dialect: dict[str, Any]
) -> None:
    accepted = Accepted.of(order_of(*texts), GUIDELINE, 1, breaks_ties=True)
    place = OrderFolder(tmp_path_factory.getbasetemp() / "dialect" / "order-1")
    place.path.mkdir(parents=True, exist_ok=True)
    path = place.path / "annotator-1.csv"
    path.write_bytes(item_files("annotator-1", accepted.items)[path.name])
    rows = rows_of(path)
    for at, row in enumerate(rows):
        row["label"] = LABELS[at % 3]
    write_rows(path, rows)
    path.write_bytes(saved_by_libreoffice(path.read_bytes(), **dialect))
    answers, remarks = read_answers(place, accepted)
    assert [(given.item, given.answer.label) for given in answers] == [
        (item.id, LABELS[at % 3]) for at, item in enumerate(accepted.items)
    ]
    assert remarks == []


@pytest.mark.skipif(
    shutil.which("soffice") is None, reason="no LibreOffice to save a file with: apt-get install libreoffice-calc"
)
def test_a_file_saved_by_libreoffice_itself_comes_back_whole(tmp_path: Path) -> None:
    texts = [
        "=1+1",
        "+49 30",
        "-5",
        "@home",
        "007",
        "1.50",
        "3/4",
        'a "b"; c',
        "two\nlines",
        "'=x",
        "плюс",
        "TRUE",
        "1e5",
    ]
    seller, order = seller_in(tmp_path), order_of(*texts)
    path = given_out(seller, order) / "annotator-1.csv"
    fill_in(path, says)
    made = tmp_path / "made"
    command = [
        "soffice",
        f"-env:UserInstallation=file://{tmp_path}/profile",
        "--headless",
        "--convert-to",
        "csv",
        "--outdir",
    ]
    subprocess.run([*command, str(made), str(path)], check=True, capture_output=True, timeout=120)
    shutil.copy(made / path.name, path)
    assert collect(seller, order).labels == {row.id: says(row.text) for row in order.examples}


def test_answers_come_in_any_form_order_and_number_and_all_else_is_reported(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path), numbered(12)
    folder = given_out(seller, order)
    rows = rows_of(folder / "annotator-1.csv")
    ids = [row["id"] for row in rows]
    lines = [
        {"id": ids[3], "label": "spam"},
        {"id": ids[0], "label": " Ham "},
        {"id": ids[1], "label": "bacon"},
        {"id": "row-123", "label": "ham"},
        {"id": ids[2], "label": "ham"},
        {"id": ids[2], "label": "eggs", "seconds": 12.5},
        {"id": ids[4], "label": ["ham"]},
        {"id": ids[5], "label": None, "comment": "cannot tell"},
        {"id": ids[6].upper(), "label": "eggs", "seconds": "-3"},
        {"id": ids[7], "label": "eggs", "text": rows[8]["text"]},
    ]
    body = "\n".join(map(json.dumps, lines))
    (folder / "answers" / "annotator-1.jsonl").write_text(f'{body}\n{{"id": "x"}}\n{{"id": "{ids[9]}", "label": "ha')
    write_rows(folder / "answers" / "annotator-1.tsv", [{"id": ids[9], "label": "ham"}], delimiter="\t")
    (folder / "answers" / "annotator-1.xlsx").write_bytes(b"PK\x03\x04")
    (folder / "answers" / "latin.csv").write_bytes("id,label\nrow-1,äh\n".encode("latin-1"))
    (folder / "answers" / "none.csv").write_text("who,what\na,b\n")
    (folder / "answers" / ".~lock.annotator-1.csv#").write_text("me")
    ragged = f'id;label;why\n{ids[10]};ham\n{ids[11]};ham;a;b\n{ids[11]};eggs;"open\n'
    (folder / "answers" / "ragged.csv").write_text(ragged)
    got = collect(seller, order)
    assert {order.rows.index(row): label for row, label in got.labels.items()} == {
        **{0: "ham", 2: "eggs", 3: "spam", 6: "eggs", 9: "ham"},
        10: "ham",
    }
    assert {(answer.text, answer.by, answer.seconds) for answer in got.answers if answer.label == "eggs"} == {
        *{("eggs", "annotator-1", 12.5), ("eggs", "annotator-1", 0.0)}
    }
    assert got.human_seconds == 12.5
    assert got.cash_micros == 6 * 129_000
    assert "6 of 12 labels are in" in str(got.waits_for)
    assert str(folder) in str(got.waits_for)
    assert str(got.waits_for).endswith("run the same command again")
    said = {
        (row["file"].removeprefix("answers/"), row["line"]): (row["taken"], row["what"]) for row in problems(folder)
    }
    expected = {
        ("annotator-1.jsonl", "2"): ("yes", "' Ham ' was taken as 'ham'"),
        ("annotator-1.jsonl", "3"): ("no", "has the label 'bacon'"),
        ("annotator-1.jsonl", "4"): ("no", "no item of this order has the id 'row-123'"),
        ("annotator-1.jsonl", "6"): ("yes", "line 5 answers 'ham'; the last answer in a file counts"),
        ("annotator-1.jsonl", "7"): ("no", "a list"),
        ("annotator-1.jsonl", "8"): ("no", "'cannot tell'"),
        ("annotator-1.jsonl", "9"): ("yes", "the seconds are '-3'"),
        ("annotator-1.jsonl", "10"): ("no", "the text is that of another item"),
        ("annotator-1.jsonl", "11"): ("no", "no object with `id` and `label`"),
        ("annotator-1.jsonl", "12"): ("no", "the line"),
        ("annotator-1.xlsx", ""): ("no", ".xlsx is not read"),
        ("latin.csv", ""): ("no", "Latin-1"),
        ("none.csv", "1"): ("no", "does not name the columns `id` and `label`"),
        ("ragged.csv", "3"): ("no", "4 columns"),
        ("ragged.csv", "4"): ("no", "quote"),
    }
    assert said.keys() == expected.keys()
    for place, (taken, words) in expected.items():
        assert said[place][0] == taken, place
        assert words in said[place][1], (place, said[place])
    assert all(row["way out"] for row in problems(folder))
    # What is corrected is taken, and leaves the list.
    (folder / "answers" / "annotator-1.xlsx").unlink()
    write_rows(folder / "answers" / "annotator-1.csv", [{"id": ids[1], "label": "spam"}])
    assert collect(seller, order).labels[order.rows[1]] == "spam"
    assert "annotator-1.xlsx" not in {row["file"] for row in problems(folder)}


def test_a_table_that_breaks_off_gives_its_whole_rows(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path, Guideline("qa", "generation", ())), numbered(3)
    path = given_out(seller, order) / "annotator-1.csv"
    fill_in(path, lambda _: "a long answer")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"answer")])
    assert collect(seller, order).labels == dict.fromkeys(order.rows[:2], "a long answer")
    (row,) = problems(path.parent)
    assert (row["line"], row["taken"]) == ("4", "no")
    assert "half-written" in row["way out"]


def test_two_files_of_one_annotator_that_differ_count_for_nothing_until_they_agree(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path), numbered(2)
    folder = given_out(seller, order)
    fill_in(folder / "annotator-1.csv", lambda _: "ham")
    rows = rows_of(folder / "annotator-1.csv")
    lines = [{**rows[0], "label": "ham"}, {**rows[1], "label": "spam"}]
    (folder / "answers" / "annotator-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    got = collect(seller, order)
    assert got.labels == {order.rows[0]: "ham"}
    assert "2 answers were not taken" in str(got.waits_for)
    assert {(row["file"], row["line"]) for row in problems(folder)} == {
        ("annotator-1.csv", "3"),
        ("answers/annotator-1.jsonl", "2"),
    }
    (folder / "answers" / "annotator-1.jsonl").unlink()
    assert collect(seller, order).labels == dict.fromkeys(order.rows, "ham")


def test_a_label_that_was_delivered_never_changes_and_one_that_was_not_may(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path, redundancy=2), numbered(4)
    folder = given_out(seller, order)
    fill_in(folder / "annotator-1.csv", lambda _: "ham")
    fill_in(folder / "annotator-2.csv", lambda _: "ham", [0, 1])
    first = collect(seller, order)
    assert first.labels == dict.fromkeys(order.rows[:2], "ham")
    fill_in(folder / "annotator-1.csv", lambda _: "spam")
    fill_in(folder / "annotator-2.csv", lambda _: "spam", [2, 3])
    last = collect(seller, order)
    assert last.waits_for is None
    assert list(last.labels.values()) == ["ham", "ham", "spam", "spam"]
    assert last.quantity == 8
    late = problems(folder)
    assert [row["line"] for row in late] == ["2", "3"]
    assert all("'spam' came after 'ham' was delivered and paid" in row["what"] for row in late)
    # Files that go leave what was paid.
    shutil.rmtree(folder)
    assert collect(seller, order) == last
    assert rows_of(folder / "annotator-1.csv")[0]["label"] == ""


def test_answers_of_more_people_than_were_asked_are_neither_counted_nor_paid(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path), numbered(3)
    folder = given_out(seller, order)
    rows = [{"id": row["id"], "label": "eggs"} for row in rows_of(folder / "annotator-1.csv")]
    write_rows(folder / "answers" / "alice.csv", rows[:2])
    write_rows(
        folder / "answers" / "bob.csv", [{**row, "annotator": name} for row, name in zip(rows, "ayz", strict=True)]
    )
    fill_in(folder / "annotator-1.csv", lambda _: "ham", [0])
    got = collect(seller, order)
    assert {(answer.by, answer.label) for answer in got.answers} == {
        ("annotator-1", "ham"),
        ("alice", "eggs"),
        ("z", "eggs"),
    }
    assert got.quantity == 3
    assert {(row["file"], row["line"]) for row in problems(folder)} == {
        *{("answers/alice.csv", "2"), ("answers/bob.csv", "2"), ("answers/bob.csv", "3")}
    }


@pytest.mark.parametrize(
    ("labels", "cell", "label"),
    [
        (("1.0", "2.0"), "1", "1.0"),
        (("1.0", "2.0"), "2,0", "2.0"),
        (("007", "7.5"), "7", "007"),
        (("true", "false"), "TRUE", "true"),
        (("-1", "+1"), "1", "+1"),
        (("-1", "+1"), "'-1", "-1"),
        (("=", "@x"), "'=", "="),
        (("US", "us"), " us", "us"),
        (("US", "us"), "Us", None),
        (("straße", "weg"), "STRASSE", "straße"),
        (("a", "b"), "c", None),
    ],
)
def test_labels_are_read_as_spreadsheets_and_people_write_them(
    labels: tuple[str, ...], cell: str, label: str | None
) -> None:
    read = Guideline("t", "classification", labels).read(cell, "text")
    assert read.label == label
    assert bool(read.note) == (label is not None)
    assert bool(read.problem) == (label is None)


@pytest.mark.parametrize(
    ("cell", "label", "words"),
    [
        ("Heat [Action]  salt water [reagent]", "Heat [Action] salt water [Reagent]", "was taken as"),
        ("None", "", ""),
        ("Heat", None, "no type of the set stands behind 'Heat'"),
        ("Cool [Action]", None, "'Cool' [Action] is not in the text"),
        ("Heat [Action] Heat [Action]", None, "more often"),
        ("'-x [Reagent]", "-x [Reagent]", ""),
    ],
)
def test_a_cell_may_hold_entities(cell: str, label: str | None, words: str) -> None:
    read = Guideline("t", "entities", ("Action", "Reagent")).read(cell, "Heat the salt water with -x")
    assert read.label == label
    assert words in read.note + read.problem
    assert bool(read.note + read.problem) == bool(words)


def test_a_cell_may_hold_free_text(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path, Guideline("qa", "generation", (), "Answer.")), order_of("Who?", "Why?")
    folder = given_out(seller, order)
    assert seller.labels == ()
    fill_in(folder / "annotator-1.csv", lambda text: {"Who?": " '=she,\r\nher  "}.get(text, "none"))
    assert list(collect(seller, order).labels.values()) == ["=she,\nher", "none"]


# --- several annotators -------------------------------------------------------------------------------------------------


def test_two_annotators_who_disagree_on_a_fifth_get_a_third(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path, redundancy=2), numbered(200)
    assert seller.quote(order.examples).quantity == 600
    assert sum(cost.expected for cost in seller.costs(order.examples)) == 440
    folder = given_out(seller, order)
    fill_in(folder / "annotator-1.csv", says)
    fill_in(folder / "annotator-2.csv", contrary)
    got = collect(seller, order)
    assert len(got.labels) == 160
    assert "160 of 200 labels are in" in str(got.waits_for)
    assert "annotator-3 has answered 0 of 40" in str(got.waits_for)
    assert len(rows_of(folder / "annotator-3.csv")) == 40
    # The third sides with the first on odd numbers of fives, with the second on most others, and is alone once.
    fill_in(folder / "annotator-3.csv", lambda text: says(text) if number_in(text) % 2 else contrary(text))
    alone = {text.id: text for text in order.examples}[order.rows[190]].text
    fill_in(
        folder / "annotator-3.csv",
        lambda _: LABELS[3 - LABELS.index(says(alone)) - LABELS.index(contrary(alone))],
        [38],
    )
    got = collect(seller, order)
    assert got.waits_for is None
    expected = {row.id: says(row.text) if number_in(row.text) % 2 else contrary(row.text) for row in order.examples}
    assert got.labels == {row: label for row, label in expected.items() if row != order.rows[190]}
    assert list(got.refused) == [order.rows[190]]
    assert "3 annotators disagree" in got.refused[order.rows[190]]
    assert got.quantity == 440
    assert got.cash_micros == 440 * 129_000
    by_row: dict[str, list[Answer]] = {}
    for answer in got.answers:
        by_row.setdefault(answer.row, []).append(answer)
    assert [len(by_row[row]) for row in order.rows[:6]] == [3, 2, 2, 2, 2, 3]
    assert [answer.by for answer in by_row[order.rows[0]]] == ["annotator-1", "annotator-2", "annotator-3"]
    seen = status(folder)
    assert seen.agreement is not None
    kappa = cohen_kappa_score([says(r.text) for r in order.examples], [contrary(r.text) for r in order.examples])
    assert seen.agreement.kappa == pytest.approx(kappa)
    line = f"the annotators agree on 160 of 200 items (80.0 %), Cohen's kappa {kappa:.3f}"
    assert line in (folder / "report.txt").read_text().splitlines()
    assert agreement(got.answers, 2) == seen.agreement


def test_a_tie_may_stay_one_and_a_majority_of_three_needs_nobody_else(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path, redundancy=2, breaks_ties=False), numbered(10)
    assert seller.quote(order.examples).quantity == 20
    folder = given_out(seller, order)
    fill_in(folder / "annotator-1.csv", says)
    fill_in(folder / "annotator-2.csv", contrary)
    got = collect(seller, order)
    assert got.waits_for is None
    assert len(got.refused) == 2
    assert got.quantity == 20
    two_way = Guideline("t", "classification", ("a", "b"))
    assert seller_in(tmp_path, two_way, redundancy=3).costs(order.examples)[0].most == 3
    assert seller_in(tmp_path, redundancy=3).costs(order.examples)[0].most == 4


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=30))
def test_kappa_is_that_of_the_library(pairs: list[tuple[str, str]]) -> None:
    one, other = zip(*pairs, strict=True)
    if len({*one, *other}) > 1:
        assert cohen_kappa(pairs) == pytest.approx(cohen_kappa_score(one, other))
    else:
        assert cohen_kappa(pairs) is None


def test_a_majority_is_given_most_often() -> None:
    assert majority("aab") == majority("aabbcca") == majority("a") == "a"
    assert majority("ab") is majority("aabb") is majority("") is None


# --- waiting, closing, killed -------------------------------------------------------------------------------------------


def test_closing_takes_what_is_there_and_nothing_later(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path, redundancy=2), numbered(4)
    folder = given_out(seller, order)
    fill_in(folder / "annotator-1.csv", lambda _: "ham", [0, 1, 2])
    fill_in(folder / "annotator-2.csv", lambda _: "spam", [1])
    seen = close_order(folder)
    assert (seen.n_labels, seen.n_refused, seen.waits_for) == (2, 2, None)
    assert "2 of 4 labels are in, 2 refused; closed" in seen.lines()[0]
    fill_in(folder / "annotator-2.csv", lambda _: "spam")
    got = collect(seller, order)
    assert got.waits_for is None
    assert got.labels == {order.rows[0]: "ham", order.rows[2]: "ham"}
    assert got.refused[order.rows[1]].startswith("closed while 2 annotators disagree")
    assert got.refused[order.rows[3]] == "closed without an answer"
    assert [result.quantity for result in got.results] == [1, 2, 1, 0]
    assert {row["what"] for row in problems(folder)} == {"the answer came after the order was closed"}
    assert status(folder).n_labels == 2
    with pytest.raises(UnknownOrder, match="not the folder of an order"):
        close_order(tmp_path)


def test_a_seller_that_takes_closes_what_was_given_out_before(tmp_path: Path) -> None:
    order = numbered(3)
    seller = seller_in(tmp_path, takes=True)
    folder = given_out(seller, order)
    fill_in(folder / "annotator-1.csv", lambda _: "ham", [1])
    got = collect(seller, order)
    assert got.labels == {order.rows[1]: "ham"}
    assert len(got.refused) == 2


def test_a_seller_that_waits_looks_again_until_all_is_there(tmp_path: Path) -> None:
    order, slept, told = numbered(6), [], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        for path in sorted(folder_of(tmp_path / "orders").glob("annotator-*.csv")):
            is_third = path.name == "annotator-3.csv"
            at = len(slept) - 1
            fill_in(
                path, contrary if path.name == "annotator-2.csv" else says, None if is_third else [2 * at, 2 * at + 1]
            )

    seller = seller_in(tmp_path, redundancy=2, poll_seconds=7.0, sleep=sleep)
    seller.submit(order)
    got = seller.collect(order, Allowance(RICH), told.append)
    assert got.waits_for is None
    assert len(got.labels) == 6
    assert slept == [7.0] * 4
    assert told == [0, 1, 3, 4, 6]


def test_an_order_closed_from_elsewhere_ends_the_wait(tmp_path: Path) -> None:
    order = numbered(2)
    seller = seller_in(tmp_path, poll_seconds=1.0, sleep=lambda _: close_order(folder_of(tmp_path / "orders")) and None)
    seller.submit(order)
    assert set(collect(seller, order).refused.values()) == {"closed without an answer"}


def test_killed_at_any_moment_it_ends_as_if_all_had_come_at_once(tmp_path: Path) -> None:
    """A process forks one child per moment, so that what it imports is imported once."""
    command = [sys.executable, "-m", "tests.kill_files_seller", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["n_kills"] > 10
    assert told["wrong"] == []
    assert told["n_labels"] == 12


def test_its_identity_is_what_annotators_are_told_and_neither_folder_nor_price(tmp_path: Path) -> None:
    def identity(guideline: Guideline = GUIDELINE, **settings: Any) -> str:
        return json.dumps(seller_in(tmp_path, guideline, **settings).identity())

    dear = Price("label/y", "label", Decimal(1), "there", None)
    renamed = Guideline("other name", "classification", LABELS, "Say what it is.", {"spam": "advertising"})
    same = {
        identity(),
        json.dumps(seller_in(tmp_path / "b", price=dear).identity()),
        identity(renamed),
        identity(tie_share=0.5),
    }
    assert len(same) == 1
    others = [Guideline("mail", "classification", LABELS, words) for words in ("Say what it is.", "Say more.")]
    assert len({*same, *map(identity, others), identity(redundancy=2), identity(breaks_ties=False)}) == 5
    assert str(tmp_path) not in identity()


def test_what_people_write_cannot_become_a_formula_of_the_report(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path), numbered(1)
    folder = given_out(seller, order)
    evil = '=HYPERLINK("http://x")'
    write_rows(folder / "answers" / f"{evil.replace('/', '')}.csv", [{"id": evil, "label": evil}])
    collect(seller, order)
    with io.StringIO((folder / "problems.csv").read_text(encoding="utf-8-sig"), newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert any("HYPERLINK" in cell for cell in cells)
    assert not any(cell[:1] in {*"=+-@"} for cell in cells if cell)


def test_collecting_reads_what_is_there_and_does_not_write_again(tmp_path: Path) -> None:
    seller, order = seller_in(tmp_path), numbered(3)
    given_out(seller, order)
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "orders").rglob("*")
        if path.is_file() and path.name != "lock"
    }
    assert collected(seller, order) == collected(seller, order)
    assert before == {path: path.stat().st_mtime_ns for path in before}
