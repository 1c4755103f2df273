"""Results that mean less than their number says so: in points, tables, pages, receipts and single steps."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.engine.point import Point, parse_points
from outlay.errors import DataError
from outlay.metrics import Answered, main_score, score
from outlay.metrics.degenerate import HANDFUL, Floor, dev_remarks, floor_of, of_rows
from outlay.metrics.degenerate import test_remarks as remarks
from outlay.report.layouts import lay_out
from outlay.report.study_report import StudyReport
from outlay.report.table_formats import render_markdown as render_laid
from tests.runs import World
from tests.steps_world import write_rows
from tests.test_cli import outlay
from tests.test_layouts import results
from tests.test_report import point

LABELS = ("no", "yes", "maybe")


def told(metric: str, said: list[str], golds: list[str], labels: tuple[str, ...] = LABELS, **more: list[str]) -> str:
    """All remarks on some answers, on one line."""
    value = 0.0
    if metric in ("accuracy", "f1"):
        value = score(metric, said, golds, labels)[main_score(metric)].value
    return " | ".join(remarks(metric, Answered(said, golds, labels, **more), value))


# --- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
@given(data=st.data())
def test_what_is_no_better_than_the_commonest_answer_is_named_and_nothing_else(
    metric: str, data: st.DataObject
) -> None:
    """Against a count by hand: micro F1 of one answer a row is accuracy."""
    golds = data.draw(st.lists(st.sampled_from(LABELS), min_size=1, max_size=60))
    said = data.draw(st.lists(st.sampled_from(LABELS), min_size=len(golds), max_size=len(golds)))
    n_right = sum(map(str.__eq__, said, golds))
    n_commonest = max(Counter(golds).values())
    text = told(metric, said, golds)
    assert ("no better than always answering" in text) == (n_right <= n_commonest)
    assert ("one and the same answer" in text) == (len(set(said)) == 1 and len(set(golds)) > 1)
    assert ("nothing is told apart" in text) == (len(set(golds)) == 1 and len(golds) > 1)
    assert ("rests on" in text) == (len(golds) < HANDFUL)
    floor = floor_of(metric, golds, LABELS)
    assert floor is not None
    assert floor.value == pytest.approx(100 * n_commonest / len(golds))


def test_a_good_student_of_enough_rows_is_left_alone() -> None:
    golds = ["yes", "no"] * 20
    assert told("accuracy", golds, golds) == ""
    assert told("f1", [*golds[:-1], "yes"], golds) == ""


def test_the_words() -> None:
    golds = ["yes"] * 25 + ["no"] * 15
    assert told("accuracy", ["yes"] * 40, golds) == (
        "the student gives one and the same answer, 'yes', to all 40 rows"
        " | the test score 62.5 is no better than always answering 'yes': 62.5"
    )
    assert told("accuracy", ["yes", "no"], ["yes", "no"]) == "the test score rests on 2 rows"


def test_the_floor_is_the_same_whatever_the_order_of_rows() -> None:
    golds = ["maybe", "yes", "no"] * 4
    floor = floor_of("accuracy", golds, LABELS)
    assert floor == floor_of("accuracy", golds[::-1], LABELS) == Floor(pytest.approx(100 / 3), "no")
    assert floor_of("entity_f1", golds, LABELS) is None
    assert floor_of("accuracy", [], LABELS) is None


# --- entities and texts ------------------------------------------------------------------------------------------------


def test_a_student_that_finds_no_entity() -> None:
    golds = ["Heat [Action] salt water [Reagent]"] * 40
    labels = ("Action", "Reagent")
    assert (
        told("entity_f1", ["Heat salt water"] * 40, golds, labels)
        == "the student finds no entity in 40 rows; there are 80"
    )
    assert told("entity_f1", ["Heat [Action] salt water", *["Heat salt water"] * 39], golds, labels) == ""
    assert "no row of the test split has an entity" in told("entity_f1", golds, ["Heat salt water"] * 40, labels)


def test_a_student_that_writes_one_text_or_none() -> None:
    golds = [f"answer {i}" for i in range(40)]
    assert (
        told("qa_f1", ["Paris "] * 40, golds, ())
        == "the student gives one and the same answer, 'Paris ', to all 40 rows"
    )
    assert "no answer at all to 20 of 40 rows" in told("qa_f1", ["", "x"] * 20, golds, ())
    assert told("qa_f1", [*golds[:-1], ""], golds, ()) == ""
    assert "one and the same answer, ''" in told("qa_f1", [""] * 40, golds, ())
    assert "copies its source in 39 of 40 rows" in told("bert_ibleu", [*golds[:-1], "other"], golds, (), sources=golds)


def test_long_answers_are_cut() -> None:
    assert "…" in told("qa_f1", ["x" * 500] * 40, [str(i) for i in range(40)], ())


# --- dev ---------------------------------------------------------------------------------------------------------------


def test_dev_scores() -> None:
    floor = Floor(41.666, "yes")
    assert dev_remarks(12, {"the teacher": 33.3, "the student": 50.0}, floor) == [
        "dev scores rest on 12 rows",
        "the teacher is no better on dev than always answering 'yes': 33.3, 41.7",
    ]
    assert dev_remarks(500, {"the teacher": 50.0}, floor) == []
    assert dev_remarks(500, {"the teacher": 10.0}, None) == []
    assert dev_remarks(12, {"the teacher": None}, floor) == dev_remarks(0, {"the teacher": 1.0}, floor) == []
    assert (of_rows(12), of_rows(500), of_rows(0), of_rows(None)) == (" (of 12)", "", "", "")


# --- points and reports ------------------------------------------------------------------------------------------------


def noted(seed: int, *notes: str, n_dev: int = 12) -> Point:
    made = point("distill", 300.0, seed, 70.0 + seed)
    return replace(made, result=replace(made.result, notes=notes, n_dev=n_dev))


def test_points_keep_their_notes_and_old_points_have_none() -> None:
    made = noted(0, "a ± note", "another")
    document = json.loads(json.dumps([made.to_json()]))
    assert parse_points(document) == [made]
    document[0]["result"]["notes"] = "a note"
    with pytest.raises(DataError, match="notes"):
        parse_points(document)
    assert "notes" not in point("distill", 300.0, 0, 70.0).to_json()["result"]


def test_reports_say_which_score_and_which_seed() -> None:
    points = [noted(0, "about all", "about <one>"), noted(1, "about all")]
    report = StudyReport(results("plain", points, teacher_dev=84.6))
    assert "84.6 (of 12)" in report.markdown()
    assert "about &lt;one&gt;" in report.page()
    laid = report.tables[0]
    assert {"about all", "seed 0: about <one>"} <= {note.split(" ", 1)[1] for note in laid.notes if " " in note}
    assert "about all" in render_laid(laid)
    (many,) = lay_out(results("plain", [noted(0, n_dev=500)], teacher_dev=84.6))
    assert "(of" not in render_laid(many)
    assert "about" not in render_laid(many)


# --- the whole way -----------------------------------------------------------------------------------------------------


def test_a_run_whose_student_learnt_nothing_says_so_everywhere(tmp_path: Path) -> None:
    world = World(tmp_path)
    settings = ("epochs=1", "learning_rate=1e-9")
    nothing = [f"--set={role}.{setting}" for role in ("teacher", "student", "distil") for setting in settings]
    out = tmp_path / "out"
    words = (
        *("run", world.task, "--budget", 13, "--n-initial", 60, "--n-dev", 10, "--teacher", world.checkpoint),
        *(
            "--student",
            "cut:1",
            *nothing,
            "--threads",
            1,
            "--pool-rows",
            20,
            "--out",
            out,
            "--store",
            tmp_path / "store",
        ),
    )
    ran = outlay(*words, "--quiet")
    assert ran.code == 0, ran.err
    notes = json.loads((out / "points.json").read_text())[0]["result"]["notes"]
    assert any("the test score" in note and "no better than always answering" in note for note in notes)
    assert "dev scores rest on 10 rows" in notes
    assert any(note.startswith("the teacher is no better on dev") for note in notes)
    receipt = next((out / "receipts").glob("*.txt")).read_text()
    for note in notes:
        assert f"note: {note}" in ran.out
        assert f"note: {note}" in receipt
        assert note in " ".join(ran.out.split())
        assert note in (out / "table.md").read_text()
        assert note.split("'")[0] in (out / "report.html").read_text()
    assert "(of 10)" in (out / "table.md").read_text()
    again = outlay(*words, "--json")
    assert again.json[0]["result"]["notes"] == notes


def test_single_steps_say_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    labels = sorted({row["label"] for row in rows})
    few = write_rows(tmp_path / "few.jsonl", rows[:12])
    columns = ("--source-column", "message", "--target-column", "label")
    ran = outlay(
        *(
            "finetune",
            "--model",
            "cut:1",
            "--base",
            world.checkpoint,
            "--train-file",
            tmp_path / "train.jsonl",
            *columns,
        ),
        *(
            "--labels",
            ",".join(labels),
            "--dev-file",
            few,
            "--epochs",
            1,
            "--lr",
            1e-9,
            "--precision",
            "fp32",
            "--threads",
            1,
        ),
        *("--out", tmp_path / "model", "--quiet"),
    )
    assert ran.code == 0, ran.err
    assert "(of 12) in epoch 1" in ran.out
    assert "note: dev scores rest on 12 rows" in ran.out
    where = ("--threads", 1, "--out", tmp_path / "eval", "--quiet")
    scored = ("evaluate", tmp_path / "model", "--file", tmp_path / "test.jsonl", *columns, *where)
    told = outlay(*scored, "--json").json["facts"]["notes"]
    assert any("no better than always answering" in note for note in told)
    assert json.loads((tmp_path / "eval" / "scores.json").read_text())["notes"] == told
    assert f"note: {told[0]}" in outlay(*scored).out
