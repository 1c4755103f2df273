"""Reporting a study of 10,000 points, and one of 200 points whose 600,000 answers are all there: seconds, part by part.

    python -m bench.report_study                                       # 4 tasks x 10 N x 10 budgets x 5 strategies x 5 seeds
    python -m bench.report_study --layout plain --json FILE
    python -m bench.report_study --quick                               # a test of the bench

Both are made up and written as `outlay.study.runner` leaves them: index, points, manifest and receipt of every run. Scores rise
with the logarithm of the labels, more where a pool is distilled, and scatter over seeds; one point in a hundred failed. In the
second study the answers of every run (3,000 rows, two seeds) lie in a store, so that there is every interval and every
paired test. `seconds` are by the clock on the wall, `CPU` is the time of the process with all its threads; both are of
`outlay.report.study_report.write_study_report` as a whole and of the parts it calls.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from outlay.engine.outputs import receipt_file
from outlay.engine.point import Point, PointCircumstance, PointRequest, PointResult, Reading, usd_of, write_points
from outlay.engine.run_dir import RunDir
from outlay.metrics import score
from outlay.money.amounts import PriceBook
from outlay.plan.steps import PREDICTIONS_FILE
from outlay.report import study_report
from outlay.report.results import Header, Layout
from outlay.storage.store import Store, key_of
from outlay.study.runner import StudyCell, StudyIndex, read_results

TASKS = ("fever", "stanceosaurus", "multipit_id", "wlp")
STRATEGIES = ("annotate", "distill", "self_distill", "general_distill", "mix")
LABEL_MICROS = 129_000
"""Between the prices of the published tasks, $0.02 to $0.26."""
LABELS = ("refuting", "supporting", "neither")
N_ROWS = 3000
GOAL_SECONDS, GOAL_SECONDS_ANSWERED = 20.0, 60.0


@dataclass(frozen=True, slots=True)
class Grid:
    """A made-up study: how many of each axis, and how many rows each run answered (0: the answers are gone)."""

    n_tasks: int
    n_initial: int
    n_budgets: int
    n_strategies: int
    n_seeds: int
    n_rows: int = 0
    layout: Layout = "budgets"

    @property
    def n_points(self) -> int:
        """Cells of the grid."""
        return self.n_tasks * self.n_initial * self.n_budgets * self.n_strategies * self.n_seeds


LARGE, ANSWERED = Grid(4, 10, 10, 5, 5), Grid(2, 5, 2, 5, 2, N_ROWS)
QUICK_LARGE, QUICK_ANSWERED = Grid(2, 3, 2, 3, 2), Grid(1, 2, 1, 3, 2, 31)


# --- a study on disk -------------------------------------------------------------------------------------------------


def make_study(folder: Path, store: Store, grid: Grid) -> None:
    """Write a study's folder, and its answers into ``store``."""
    rng = random.Random(0)
    points, entries = [], []
    golds = [rng.choice(LABELS) for _ in range(grid.n_rows)]
    easy = [rng.random() for _ in range(grid.n_rows)]
    for request in requests(grid):
        expected = expected_score(request) + rng.gauss(0, 0.8)
        said = [
            gold if 0.7 * hard + 0.3 * rng.random() < expected / 100 else rng.choice(LABELS)
            for gold, hard in zip(golds, easy, strict=True)
        ]
        point = made_point(request, expected, said, golds, is_lost=rng.random() < 0.01)
        run = f"{len(points):016x}"
        key = key_of({"run": run, "layout": grid.layout})
        charges = parts_of(point)
        leave_run(folder, run, key, point, charges)
        if grid.n_rows and point.is_ok:
            document = {"metric": "f1", "predictions": said, "golds": golds, "labels": LABELS}
            store.put(
                key,
                "score",
                {PREDICTIONS_FILE: json.dumps(document).encode()},
                meta={"request": {"run": run}},
                usage={},
                circumstance={},
            )
        entries.append(StudyCell(run, point.id, f"{request.task}: {request.strategy}, seed {request.seed}"))
        points.append(point)
    header = Header("made_up", "Made up", grid.layout, scale="cpu", command="python -m bench.report_study")
    StudyIndex(header, store.location, PriceBook.load().get("cpu"), tuple(entries)).write(folder)
    write_points(folder / "points.json", points)


def requests(grid: Grid) -> Iterator[PointRequest]:
    """Every cell, task by task, the seeds innermost."""
    initial = [50 * 2**i if i < 6 else 1000 * (i - 4) for i in range(grid.n_initial)]
    budgets = range(20_000_000, 20_000_000 * (grid.n_budgets + 1), 20_000_000)
    for task, n, added, strategy, seed in product(
        TASKS[: grid.n_tasks], initial, budgets, STRATEGIES[: grid.n_strategies], range(grid.n_seeds)
    ):
        is_taught = strategy in ("distill", "self_distill")
        yield PointRequest(
            task=task,
            strategy=strategy,
            budget_usd=usd_of(n * LABEL_MICROS + added),
            added_usd=usd_of(added),
            n_initial=n,
            seed=seed,
            teacher={"distill": "google/t5-v1_1-xxl", "self_distill": "google/t5-v1_1-small"}.get(strategy),
            student="google/t5-v1_1-small",
            machine="cpu",
            clock="flops",
            price_book="0" * 64,
            pool=(("train", 10_000), ("texts", 20_000)) if is_taught else (("train", 0), ("texts", 0)),
            dev="bought",
        )


def expected_score(request: PointRequest) -> float:
    """Rises with the logarithm of the labels; a pool adds to it, the more so the fewer the labels are."""
    assert request.n_initial is not None
    assert request.added_usd is not None
    more = 0 if request.teacher else request.added_usd * 1_000_000 / LABEL_MICROS
    gain = {"distill": 9.0, "self_distill": 4.0, "mix": 2.0, "general_distill": 1.0}.get(request.strategy, 0.0)
    shift = 3 * TASKS.index(request.task)
    return min(96.0, 38 + 5 * math.log(request.n_initial + more) + gain * 8 / math.log(request.n_initial) - shift)


def made_point(
    request: PointRequest, expected: float, said: Sequence[str], golds: Sequence[str], *, is_lost: bool
) -> Point:
    """The point of a run that scored ``expected``, or what its answers say where there are any."""
    assert request.n_initial is not None
    bought = 0 if request.teacher else int((request.added_usd or 0) * 1_000_000) // LABEL_MICROS
    scores = {}
    if golds:
        read = score("f1", said, golds, LABELS)
        scores = {name: Reading(each.value, each.low, each.high) for name, each in read.items()}
        expected = scores["micro_f1/published"].value
    else:
        for name, drop in (("micro_f1", 0.0), ("macro_f1", 4.0), ("accuracy", 1.0)):
            for reading in ("published", "strict"):
                value = expected - drop
                scores[f"{name}/{reading}"] = Reading(value, value - 1.5, value + 1.5)
    roles = ("student", "teacher", "targets") if request.teacher else ("student",)
    result = PointResult(
        status="failed" if is_lost else "ok",
        reason="the worker was lost 3 times, the last time killed by signal 9" if is_lost else None,
        test=None if is_lost else expected,
        dev=None if is_lost else min(100.0, expected + 1),
        scores={} if is_lost else scores,
        charge_usd=request.budget_usd,
        n_labels=request.n_initial + bought,
        n_llm_labels=0,
        llm_tokens_in=0,
        llm_tokens_out=0,
        n_pool=30_000 if request.teacher else 0,
        n_dev=100,
        seconds={"cpu": 12.5 * request.n_initial},
        flops=10**12 * request.n_initial,
        student_parameters=76_961_152,
        artifacts=dict.fromkeys(roles, f"{request.seed:064x}"),
    )
    environment: dict[str, str | int | float | None] = {
        "python": "3.11.9",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "threads": 1,
    }
    return Point(request, result, PointCircumstance(request.budget_usd, 61.5, None, "0" * 64, environment))


def parts_of(point: Point) -> dict[str, int]:
    """What the charge of a point is made of, in micro-dollars."""
    whole, labels = round(point.result.charge_usd * 1_000_000), point.result.n_labels * LABEL_MICROS
    labels = min(labels, whole)
    rest = whole - labels
    if point.request.teacher is None:
        return {"labels": labels, "student": rest}
    return {"labels": labels, "teacher": rest // 2, "targets": rest - rest // 2}


def leave_run(folder: Path, run: str, key: str, point: Point, charges: dict[str, int]) -> None:
    """The manifest and the receipt of a run, as a run that is over leaves them."""
    kinds = ["buy", *(["train", "predict", "targets"] if point.request.teacher else []), "train", "score"]
    document = {
        "run_id": run,
        "request": {"task": point.request.task, "strategy": point.request.strategy, "seed": point.request.seed},
        "derivation": [f"N = {point.request.n_initial}", "the rest distils a pool of 30,000 rows"],
        "artifacts": [{"step": kind, "role": kind, "what": f"{kind} of {run}", "key": key} for kind in kinds],
        "teacher_dev": 85.0 if point.request.teacher else None,
        "point": point.to_json(),
        "anchor": {"head": "0" * 64, "count": 1},
        "charges_micros": charges,
    }
    path = RunDir.of(folder, run).manifest
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    receipt = receipt_file(folder, run)
    receipt.parent.mkdir(exist_ok=True)
    lines = [f"{kind:<20} {micros / 1_000_000:>12,.2f}" for kind, micros in charges.items()]
    receipt.write_text("\n".join([f"run {run}", *lines, *["-" * 60] * 12]) + "\n", encoding="utf-8")


# --- its report ------------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """Seconds of the parts of a report, on the wall and of CPU. A part within a part counts for itself alone."""

    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    _open: list[list[float]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is done within."""
        self._open.append([0.0, 0.0])
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            took = time.perf_counter() - wall, time.process_time() - cpu
            within = self._open.pop()
            if self._open:
                self._open[-1] = [inner + own for inner, own in zip(self._open[-1], took, strict=True)]
            known = self.seconds.get(name, (0.0, 0.0))
            self.seconds[name] = (known[0] + took[0] - within[0], known[1] + took[1] - within[1])

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its calls are timed as a part."""

        def call(*given: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*given, **named)

        return call


PARTS = {
    "means": "means with intervals",
    "family": "paired tests",
    "lay_out": "tables laid out",
    "lay_out_frontiers": "tables laid out",
    "lay_out_differences": "tables laid out",
    "render_markdown": "tables written",
    "render_html": "tables written",
    "figures": "figures laid out",
    "save": "figures as PNG, SVG, PDF",
    "render_study": "page, its figures as SVG",
    "write_points_csv": "points.csv",
    "write_points_parquet": "points.parquet",
}
"""Functions of `outlay.report.study_report` that its report calls, and what they do."""


def report(folder: Path, store: Store) -> tuple[Watch, dict[str, Path]]:
    """Write the report of a study, part by part under a watch."""
    watch = Watch()
    with watch.part("read index, points, runs"):
        results = read_results(folder, store)
    with (
        patch.multiple(
            study_report, **{name: watch.timed(what, getattr(study_report, name)) for name, what in PARTS.items()}
        ),
        watch.part("the rest"),
    ):
        files = study_report.write_study_report(folder, results)
    return watch, files


def measured(grid: Grid, goal: float) -> dict[str, Any]:
    """The figures of one made-up study."""
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name) / "study", Store(Path(name) / "store")
        folder.mkdir()
        make_study(folder, store, grid)
        watch, files = report(folder, store)
        sizes = {what: path.stat().st_size for what, path in files.items()}
    wall, cpu = (sum(took[i] for took in watch.seconds.values()) for i in range(2))
    return {
        "points": grid.n_points,
        "layout": grid.layout,
        "rows_answered": grid.n_rows,
        "seconds": wall,
        "cpu_seconds": cpu,
        "goal_seconds": goal,
        "parts": {what: {"seconds": took[0], "cpu_seconds": took[1]} for what, took in watch.seconds.items()},
        "bytes": sizes,
    }


def table_of(found: dict[str, Any]) -> Table:
    """As it is printed: the parts, dearest first, then the whole beside its goal."""
    answers = f", {found['rows_answered']:,} answers each" if found["rows_answered"] else ", no answers"
    page = found["bytes"]["page"] / 1e6
    table = Table(
        title=f"report of {found['points']:,} points{answers}, laid out as {found['layout']}; the page has {page:.1f} MB",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("part")
    for name in ("seconds", "CPU", "goal"):
        table.add_column(name, justify="right")
    for what, took in sorted(found["parts"].items(), key=lambda part: -part[1]["cpu_seconds"]):
        table.add_row(what, f"{took['seconds']:.2f}", f"{took['cpu_seconds']:.2f}", "")
    table.add_section()
    table.add_row("all", f"{found['seconds']:.2f}", f"{found['cpu_seconds']:.2f}", f"{found['goal_seconds']:.0f}")
    return table


def main() -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--layout", choices=get_args(Layout), default="budgets", help="as the study's header says")
    made.add_argument("--only", choices=("large", "answered"), help="one of the two studies")
    made.add_argument("--quick", action="store_true", help="a few points: a test of the bench")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = made.parse_args()
    grids = (QUICK_LARGE, QUICK_ANSWERED) if given.quick else (LARGE, ANSWERED)
    with tempfile.TemporaryDirectory() as name:  # imports, fonts, the drawing engine
        warm = Path(name) / "study"
        warm.mkdir()
        make_study(warm, Store(Path(name) / "store"), Grid(1, 1, 1, 2, 2, 7))
        report(warm, Store(Path(name) / "store"))
    figures = {}
    for name, grid, goal in zip(("large", "answered"), grids, (GOAL_SECONDS, GOAL_SECONDS_ANSWERED), strict=True):
        if given.only in (None, name):
            print(f"a study of {grid.n_points:,} points", file=sys.stderr, flush=True)
            laid = replace(grid, layout=given.layout)
            figures[name] = measured(laid, goal)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for found in figures.values():
        console.print(table_of(found))
    return int(any(found["seconds"] > found["goal_seconds"] for found in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
