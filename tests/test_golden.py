"""What a comparison, a study and the demo leave, byte for byte: run ids, points, receipts and tables, against `tests/golden`.

A change that moves none of them changed no result, no charge and no key. One that means to runs this file with
``OUTLAY_GOLDEN=write`` and says in its message what moved. What differs between two runs of the same program, or between two
CPUs, is left out: cash, seconds, times, heads of the ledger, environments, digests of weights, and the calibration error, in
which every probability's last bits count.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import kept_checkpoint
from tests.studies import study_in_this_process
from tests.test_cli import outlay, write_task

GOLDEN = Path(__file__).parent / "golden"
LINE = ("kind", "what", "item", "quantity", "unit", "unit_usd", "charge_micros", "left_micros")
STUDY = """
name: toy
title: Labels or a teacher
source: Kang et al. 2023, Table 2
layout: budgets
rivals: false
strategies: [annotate, distill]
method: full
student_training: free
scales:
  cpu:
    models: {teacher: ./checkpoint, student: cut:1}
    threads: 1
    settings:
      teacher: &same {epochs: 16, batch_size: 16, lr: 0.005, precision: fp32}
      student: *same
      distil: *same
    n_initial: 30
    added_usd: {annotate: [0, 2], distill: [2, 10]}
    tasks: {task.yaml: {}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task whose words give the label away: every CPU's last bits learn it alike."""
    task = write_task(tmp_path_factory.mktemp("golden") / "tickets")
    kept_checkpoint(task.parent / "checkpoint")
    return task.parent


@pytest.fixture(autouse=True)
def beside_the_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are named by relative paths: what a model is called is part of a request and so of a run's id."""
    monkeypatch.chdir(folder)


@pytest.mark.slow
def test_a_comparison(tmp_path: Path) -> None:
    settings = ("method=full", "epochs=16", "batch_size=16", "learning_rate=0.005", "precision=fp32")
    more = [
        part for role in ("teacher", "student", "distil") for each in settings for part in ("--set", f"{role}.{each}")
    ]
    ran = outlay(
        *("compare", "task.yaml", "--teacher", "./checkpoint", "--students", "cut:1"),
        *(
            "--strategies",
            "annotate,distill",
            "--budgets",
            "6.1,8",
            "--n-initial",
            "40",
            "--seeds",
            "2",
            "--threads",
            "1",
        ),
        *("--student-training", "free", "--out", tmp_path / "out", "--store", tmp_path / "store", *more),
    )
    assert ran.code == 0, ran.err
    check("compare", tmp_path / "out")


def test_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study_in_this_process(monkeypatch)
    Path("toy.yaml").write_text(STUDY)
    ran = outlay("study", "run", "toy.yaml", "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert ran.code == 0, ran.err
    check("study", tmp_path / "out")


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    ran = outlay("demo", "--out", tmp_path / "out", "--store", tmp_path / "store", "--precision", "fp32")
    assert ran.code == 0, ran.err
    check("demo", tmp_path / "out", with_scores=False)


def check(name: str, out: Path, *, with_scores: bool = True) -> None:
    """Compare a results folder with the golden one; without scores where a CPU's last bits decide some of many answers."""
    found = {
        "points.json": [_without_machine(point) for point in json.loads((out / "points.json").read_text())],
        "table.md": _without_cash((out / "table.md").read_text()),
        "receipts": {bill["run_id"]: _bill(bill, out) for bill in outlay("ledger", "show", out, "--json").json},
    }
    if not with_scores:
        del found["table.md"]
        for each in found["points.json"]:
            for part in ("test", "dev", "scores", "notes", "quality", "teacher_test", "teacher_quality"):
                each["result"].pop(part, None)
        for bill in found["receipts"].values():
            del bill["notes"]
    assert len(found["points.json"]) >= 2
    assert len(found["receipts"]) >= 2
    found = json.loads(json.dumps(found).replace(str(out), "OUT").replace(str(out.parent), "ROOT"))
    file = GOLDEN / f"{name}.json"
    if os.environ.get("OUTLAY_GOLDEN") == "write":
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    for part, golden in json.loads(file.read_text()).items():
        assert found[part] == golden, f"{part} of {name} moved"


def _without_machine(point: dict[str, Any]) -> dict[str, Any]:
    """A point but for digests of weights and probabilities, whose last bits are the CPU's, and what it was computed on."""
    assert 0 <= point["result"].get("ece", 0) <= 100
    of_machine = ("artifacts", "ece", "teacher_ece", "label_errors")
    result = {key: value for key, value in point["result"].items() if key not in of_machine}
    for name in ("quality", "teacher_quality"):
        if name in result:
            result[name] = {key: value for key, value in result[name].items() if key in ("labels", "confusion")}
    return {"request": point["request"], "result": result}


_OF_THE_MACHINE = ("ECE", "Cash", "ms a row")
_MILLISECONDS = re.compile(r", [\d.,]+ ms a row")


def _without_cash(table: str) -> list[str]:
    """The lines of a table, without the cells that a machine's seconds or last bits decide."""
    lines: list[str] = []
    head: list[str] | None = None
    for line in table.splitlines():
        cells = line.split("|")
        head = (head or [cell.strip() for cell in cells]) if line.startswith("|") else None
        for i, name in enumerate(head or ()):
            if name in _OF_THE_MACHINE and cells[i].strip() not in ("", name) and not cells[i].startswith("-"):
                cells[i] = f" {name.upper()} "
        lines.append(_MILLISECONDS.sub(", MS a row", "|".join(cells)))
    return lines


def _bill(bill: dict[str, Any], out: Path) -> dict[str, Any]:
    """What a run was charged, line by line, and the notes of its receipt; without cash, times and hashes of the ledger."""
    lines = [{key: line[key] for key in LINE} for line in bill["lines"]]
    receipt = (out / "receipts" / f"{bill['run_id']}.txt").read_text().splitlines()
    notes = [line for line in receipt if line.startswith("note: ")]
    return {
        "budget_micros": bill["budget_micros"],
        "lines": lines,
        "charge_micros": bill["charge_micros"],
        "notes": notes,
    }
