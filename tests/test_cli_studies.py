"""`outlay study` as a person or a script meets it: one small study, run once and looked at from all sides."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pyarrow.parquet
import pytest
import yaml

from outlay.cli import study_commands
from outlay.engine.point import read_points
from outlay.money.amounts import PriceBook, show_usd
from outlay.money.ledger import Ledger
from outlay.storage.remote import open_location
from outlay.study.grid import study_schema
from outlay.study.runner import Workplace
from outlay.workers.local import LocalPool, n_workers_here
from outlay.workers.pool import THREAD_VARIABLES
from tests.runs import World
from tests.studies import study_in_this_process, write_toy_study
from tests.test_cli import Ran, outlay, refused

# 20 labels at $0.20 are $4; $2 more buy 10, and $40 more would buy 200 where 100 are left. One teacher serves both budgets.
STUDY = """
name: toy
title: Labels or a teacher
source: Kang et al. 2023, Table 2
layout: budgets
strategies: [annotate, distill]
student_training: free
scales:
"""


@dataclass(frozen=True)
class Place:
    """A study file beside its task, a store, and a folder of results."""

    root: Path

    @property
    def study(self) -> Path:
        return self.root / "toy.yaml"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def run(self, *more: object, out: Path | None = None, store: str = "store") -> Ran:
        where = ("--out", out or self.out, "--store", self.root / store)
        return outlay("study", "run", self.study, *where, *more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("studies")
    world = World(root)
    epochs = {"cpu": 1, "long": 4000, "other": 1}
    write_toy_study(root / "toy.yaml", STUDY, world.checkpoint, epochs, most_usd=40)
    return Place(root)


@pytest.fixture(scope="module")
def ran(place: Place) -> Ran:
    with pytest.MonkeyPatch.context() as patch:
        study_in_this_process(patch)
        return place.run()


def files(folder: Path) -> dict[str, bytes]:
    names = ("points.json", "study.json", "table.md", "ledger.sqlite")
    return {name: (folder / name).read_bytes() for name in names}


# --- before it runs --------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_does_nothing(place: Place, tmp_path: Path) -> None:
    ran = place.run("--dry-run", out=tmp_path / "out", store="nothing")
    assert ran.code == 0, ran.err
    lines = [" ".join(line.replace("│", " ").split()) for line in ran.out.splitlines()]
    # annotate: $4 and $6; distill: $4 of labels at both budgets, and next to nothing for the teacher.
    assert "small annotate 20 2 0 20 to 30 0 $10.00" in lines
    assert "purchases of labels 2 4" in lines  # 20 and 30 labels; separately, 20 three times and 30 once
    assert "fine-tunings 3 4" in lines  # a student on 20 and on 30, a teacher on 20, which both budgets share
    assert "distillations 1 2" in lines
    # Epochs of 2 batches: 20, 30 and 20 labels; 270 pool rows are 17 batches. Twice over where nothing is shared.
    assert "optimiser steps 23 42" in lines
    assert "Sharing saves 45.2 % of the optimiser steps." in lines
    assert not (tmp_path / "out").exists()


def test_a_dry_run_for_a_script(place: Place, tmp_path: Path) -> None:
    document = place.run("--dry-run", "--json", out=tmp_path / "out", store="nothing").json
    assert [point["status"] for point in document["points"]] == ["planned"] * 4
    assert [point["budget_usd"] for point in document["points"]] == [4.0, 6.0, 6.0, 44.0]
    assert document["distinct"]["optimizer_steps"] == 23
    assert document["separate"]["optimizer_steps"] == 42
    assert not (tmp_path / "out").exists()


# --- a study that was run --------------------------------------------------------------------------------------------


def test_progress_is_told_apart_from_the_result(place: Place, ran: Ran) -> None:
    assert ran.code == 0, ran.err
    said = ran.err.splitlines()
    assert said[0] == f"4 points in {place.out}: 4 to do"
    told = sorted(line.split("  ")[0].split(" ", 1)[1] for line in said if line[1:3] == "/4")
    assert told == [
        "small: annotate, N = 20, $4.00, seed 0",
        "small: annotate, N = 20, $6.00, seed 0",
        "small: distill, N = 20, $44.00, seed 0",
        "small: distill, N = 20, $6.00, seed 0",
    ]
    assert [line[0] for line in said if line[1:3] == "/4"] == ["1", "2", "3", "4"]
    assert "cut:1 (Annotate)" in ran.out
    assert "checkpoint" in ran.out
    shown = dict(line.split(": ", 1) for line in ran.out.splitlines() if line.startswith(("page:", "table:", "rec")))
    assert shown == {
        "table": str(place.out / "table.md"),
        "page": str(place.out / "report.html"),
        "receipts": str(place.out / "receipts"),
    }


@pytest.mark.slow
def test_a_worker_of_its_own_comes_to_the_same(place: Place, ran: Ran, tmp_path: Path) -> None:
    other = place.run("--workers", 1, out=tmp_path / "out", store="of a worker")
    assert other.code == 0, other.err
    mine, theirs = (read_points(out / "points.json") for out in (place.out, tmp_path / "out"))
    assert [point.result_bytes() for point in theirs] == [point.result_bytes() for point in mine]
    assert (tmp_path / "out" / "logs" / "worker-0.txt").exists()


def test_a_study_has_workers_of_its_own_and_as_many_as_asked(place: Place, tmp_path: Path) -> None:
    """Processes start when there is work for them; here is none."""
    book = PriceBook.load()
    there = Workplace(tmp_path / "out", open_location(str(tmp_path / "store")), book, book.get("cpu"))
    for asked, n_workers in ((1, 1), (None, n_workers_here(1))):
        pool = study_commands._worker_pool("local", there, asked, 1, "")
        assert isinstance(pool, LocalPool)
        assert pool.n_workers == n_workers


def test_what_lies_in_the_folder(place: Place, ran: Ran) -> None:
    points = read_points(place.out / "points.json")
    assert [(p.request.strategy, p.request.budget_usd) for p in points] == [
        ("annotate", 4.0),
        ("annotate", 6.0),
        ("distill", 6.0),
        ("distill", 44.0),
    ]
    assert all(p.is_ok for p in points)
    text = (place.out / "table.md").read_text()
    assert text.startswith("# Labels or a teacher\n\n- For $44: distill. ")
    assert "\n\nFollows Kang et al. 2023, Table 2. Scale: cpu.\n" in text
    assert f"```\noutlay study run {place.study} --scale cpu\n```" in text
    for ending, start in ((".png", b"\x89PNG"), (".svg", b"<svg"), (".pdf", b"%PDF")):
        assert (place.out / f"figure-small{ending}").read_bytes().startswith(start)
    page = (place.out / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert len((place.out / "points.csv").read_text().splitlines()) == 1 + 4
    assert pyarrow.parquet.read_table(place.out / "points.parquet").num_rows == 4
    runs = {path.name for path in (place.out / "runs").iterdir()}
    assert {path.stem for path in (place.out / "receipts").iterdir()} == runs
    assert len(runs) == 4
    assert Ledger(place.out / "ledger.sqlite").verify().ok


def test_the_same_command_again_replays(place: Place, ran: Ran) -> None:
    before = files(place.out)
    again = place.run("--json")
    assert again.err == ""
    assert again.json == json.loads(before["points.json"])
    assert files(place.out) == before
    assert place.run("--quiet").err == ""
    told = place.run()
    assert told.err == f"4 points in {place.out}: 4 there already, nothing to do\n"
    assert told.out == ran.out


def test_status_of_a_finished_study(place: Place, ran: Ran) -> None:
    told = outlay("study", "status", place.out)
    assert told.out.splitlines()[0] == "toy (Labels or a teacher), scale cpu: 4 points: 4 ok"
    assert len(told.out.splitlines()) == 2
    found = outlay("study", "status", place.out, "--json").json
    assert (found["is_done"], found["n_by_status"], found["held"], found["reasons"]) == (True, {"ok": 4}, [], [])
    spent = sum(point.circumstance.cash_usd or 0 for point in read_points(place.out / "points.json"))
    assert found["cash_usd"] == pytest.approx(spent)
    assert told.out.splitlines()[1] == f"cash so far: {show_usd(spent)}"


def test_show_prints_the_tables_and_writes_nothing(place: Place, ran: Ran) -> None:
    page = place.out / "report.html"
    written = page.stat().st_mtime_ns
    shown = outlay("study", "show", place.out)
    assert shown.out in ran.out
    assert "cut:1 (Annotate)" in shown.out
    assert outlay("study", "show", place.out, "--json").json == json.loads((place.out / "points.json").read_text())
    assert page.stat().st_mtime_ns == written


def test_a_report_is_drawn_again_from_what_is_there(place: Place, ran: Ran) -> None:
    page, text = place.out / "report.html", (place.out / "report.html").read_text()
    page.unlink()
    drawn = outlay("report", place.out)
    assert drawn.code == 0, drawn.err
    assert drawn.out == ran.out
    assert page.read_text() == text


def test_a_larger_grid_goes_on_from_the_smaller_one(
    place: Place, ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command is the one in the header from then on."""
    study_in_this_process(monkeypatch)
    out = tmp_path / "out"
    shutil.copytree(place.out, out)
    larger = place.root / "larger.yaml"
    larger.write_text(place.study.read_text().replace("[0, 2]", "[0, 2, 4]"))
    more = outlay("study", "run", larger, "--out", out, "--store", place.root / "store")
    said = more.err.splitlines()
    assert said[0] == f"5 points in {out}: 4 there already, 1 to do"
    assert said[-1].startswith("5/5 small: annotate, N = 20, $8.00, seed 0")
    assert f"outlay study run {larger} --scale cpu\n" in (out / "table.md").read_text()
    # A run is opened; a purchase, a training and a scoring are each held and settled.
    entries = [Ledger(folder / "ledger.sqlite").anchor().count for folder in (out, place.out)]
    assert entries[0] - entries[1] == 1 + 3 * 2


# --- what stops it ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(place: Place, ran: Ran, tmp_path: Path) -> None:
    """Labels are there, the teacher is under way, and somebody stops it; 130, one line, and how to go on."""
    out = tmp_path / "out"
    command = ["study", "run", place.study, "--scale", "long", "--workers", "1", "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-m", "outlay", *map(str, command), "--store", str(place.root / "long")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")},
    )
    try:
        until = time.monotonic() + 300
        while not (found := list(out.glob("runs/*/steps/*.json"))) and time.monotonic() < until:
            time.sleep(0.1)
        assert found, process.poll()
        status = outlay("study", "status", out)
        assert "under way: a step of " in status.out
        process.send_signal(signal.SIGINT)
        said, warned = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert said == ""
    last = warned.splitlines()[-1]
    assert last == "outlay: stopped; what was bought and done is kept, run the same command again to go on"
    assert "Traceback" not in warned
    told = outlay("study", "status", out).out.splitlines()
    n_left = outlay("study", "status", out, "--json").json["n_by_status"]["left"]
    assert 2 <= n_left <= 4
    store = f"--store {place.root / 'long'}"
    assert told[-1] == f"to go on: outlay study run {place.study} --scale long {store} --out {out}"
    assert not any("under way" in line for line in told)


def test_a_cash_cap_fails_points_and_says_so(
    place: Place, ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_in_this_process(monkeypatch)
    out = tmp_path / "out"
    poor = place.run("--cash-cap", "0.000001", out=out, store="poor")
    assert poor.code == 1
    last = poor.err.splitlines()[-1]
    assert last.startswith(
        "outlay: 4 of 4 points failed, the first: no cash is left to fine-tune the student on 20 labels"
    )
    assert "raise --cash-cap, which all runs here share" in last
    assert f"`outlay study status {out}`" in last
    status = outlay("study", "status", out).out
    assert "4 points: 4 failed" in status
    # Two of the four points fail for the same reason.
    assert status.count("failed: ") == 3
    assert " and 1 more: no cash is left to train (contrastive) the teacher on 20 labels" in status
    assert "to try what failed again: outlay study run" in status
    # What was made elsewhere costs no cash.
    rich = place.run("--cash-cap", "0.000001", out=out)
    assert rich.code == 0, rich.err
    assert outlay("study", "status", out, "--json").json["cash_usd"] == 0


# --- what is wrong is said in one line --------------------------------------------------------------------------------


def test_wrong_usage(place: Place, ran: Ran, tmp_path: Path) -> None:
    refused(outlay("study", "run", "tabel2"), "'tabel2'", "did you mean table2")
    refused(place.run("--scale", "cup"), "'cup'", "did you mean cpu", "it has cpu, long, other")
    refused(place.run("--executor", "slurm"), "'slurm'", "local or ray")
    refused(place.run("--workers", 4096), "4096 workers of 1 thread each", "ask for at most")
    refused(place.run("--cash-cap", "much"), "'much'", "not an amount")
    refused(place.run("--scale", "other"), str(place.out), "study toy at scale cpu", "give another --out")
    refused(place.run("--task", "nq"), "says nothing about task nq", "any_task")
    refused(place.run("--here", "b300"), "no price for 'b300'")
    for name in ("status", "show"):
        refused(outlay("study", name, tmp_path), f"{tmp_path} holds no results", "`outlay study run`")
    (tmp_path / "ledger.sqlite").touch()
    refused(place.run(out=tmp_path), f"{tmp_path} holds runs that are not of a study", "give another --out")
    assert outlay("study", "run", place.study, "--seeds", 0).code == 2


def test_models_that_cannot_be(place: Place, ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no point is left there is nothing to run; where some are, the others say why not."""
    study_in_this_process(monkeypatch)
    text = place.study.read_text().replace("task.yaml:", f"{place.root / 'task.yaml'}:")
    nine, store = tmp_path / "nine.yaml", ("--store", place.root / "store")
    nine.write_text(text.replace("student: cut:1", "student: cut:9"))
    refused(outlay("study", "run", nine, "--out", tmp_path / "out"), "none of the 4 points", "cut:9", "1 to 4")
    assert not (tmp_path / "out").exists()
    nine.write_text(text.replace("student: cut:1", "student: {annotate: cut:1, distill: cut:9}"))
    half = outlay("study", "run", nine, "--out", tmp_path / "out", *store)
    assert half.code == 0, half.err
    assert half.err.startswith(f"4 points in {tmp_path / 'out'}: 2 not available, 2 to do\n")
    status = outlay("study", "status", tmp_path / "out").out.splitlines()
    assert status[0] == "toy (Labels or a teacher), scale cpu: 4 points: 2 ok, 2 na"
    assert status[2].startswith("na: ")
    assert " and 1 more: cut:9 of a model with 4 layers" in status[2]
    assert len(status) == 3


# --- the shipped ones ------------------------------------------------------------------------------------------------


def test_the_list_of_studies() -> None:
    listed = outlay("study", "list", "--json").json
    assert {"table2", "table3", "table4", "table6", "table10", "table11"} <= {each["name"] for each in listed}
    for each in listed:
        content = yaml.safe_load(Path(each["file"]).read_text(encoding="utf-8"))
        assert (each["name"], each["title"], each["scales"]) == (
            content["name"],
            content["title"],
            list(content["scales"]),
        )
    told = outlay("study", "list").out
    assert all(each["name"] in told for each in listed)


def test_the_schema_of_study_files(place: Place) -> None:
    schema = outlay("study", "schema").json
    assert schema == study_schema()
    jsonschema.validate(yaml.safe_load(place.study.read_text()), schema)
