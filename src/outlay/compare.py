"""Strategies x budgets x seeds: the points of a comparison, their paired differences, and the files a reader opens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any

from outlay.errors import DataError, MissingData, UsageError
from outlay.metrics import STATISTICS, Difference, mean_score, paired_bootstrap_scores
from outlay.money import Price
from outlay.point import Point, read_points, write_points
from outlay.prepare import Options, Workbench
from outlay.report.charts import frontier_spec, save_chart
from outlay.report.page import render_page, write_page
from outlay.report.receipt import receipt, render_text
from outlay.report.tables import Comparison, DifferenceRow, compare, render_csv, render_markdown
from outlay.run import Runner
from outlay.runfolder import write_json
from outlay.store import Store
from outlay.workshop import PREDICTIONS_FILE

INDEX_FILE = "comparison.json"
"""Which runs of a folder make up its comparison, the store that holds their artifacts, the machine they ran on."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What to compare; ``base`` holds everything that the points share."""

    base: Options
    strategies: tuple[str, ...]
    budgets_micros: tuple[int, ...]
    n_seeds: int

    def __post_init__(self) -> None:
        for name, values in (("strategies", self.strategies), ("budgets", self.budgets_micros)):
            if not values:
                raise UsageError(f"no {name} to compare; name at least one")
            if len(set(values)) != len(values):
                raise UsageError(f"one of the {name} is named twice: {', '.join(map(str, values))}")
        if self.n_seeds < 1:
            raise UsageError(f"--seeds is {self.n_seeds}; compare at least 1")

    def options(self) -> list[Options]:
        """One `Options` per point, seed by seed so that a first table is soon there.

        With a fixed N, `distill` under its own N rule stands beside.
        """
        points = []
        for seed in range(self.base.seed, self.base.seed + self.n_seeds):
            for budget in self.budgets_micros:
                for name in self.strategies:
                    asked = replace(self.base, strategy=name, budget_micros=budget, seed=seed)
                    points.append(asked)
                    if name == "distill" and asked.n_initial is not None:
                        points.append(replace(asked, n_initial=None))
        return points


def run_points(
    runner: Runner, workbench: Workbench, options: Sequence[Options], on_point: Callable[[int, Options], None]
) -> list[Point]:
    """Execute every point, note each as it is done, and leave ``points.json`` and the index in the runner's folder.

    A point that fails is recorded with its reason and does not stop the rest.
    """
    points: list[Point] = []
    runs: list[str] = []
    _write_index(runner, runs)
    for i, asked in enumerate(options):
        on_point(i, asked)
        request = workbench.request(asked)
        done = runner.finished(request.run_id)
        points.append(done if done is not None else runner.execute(workbench.prepare(asked)))
        runs.append(request.run_id)
        write_points(runner.folder / "points.json", points)
        _write_index(runner, runs)
    return points


def _write_index(runner: Runner, runs: Sequence[str]) -> None:
    here = {"item": runner.here.item, "unit": runner.here.unit, "usd": str(runner.here.usd)}
    index = {"runs": list(runs), "store": str(runner.store.root.resolve()), "here": here}
    write_json(runner.folder / INDEX_FILE, index)


def reopen(folder: Path, store: Store | None = None) -> Runner:
    """The runner of a results folder: its own store and its own price of the machine, unless another store is handed in.

    Raises:
        MissingData: there is nothing in the folder that says what it is.
    """
    path = folder / INDEX_FILE
    if not path.exists():
        raise MissingData(f"{folder} holds no results; make some with `outlay run` or `outlay compare --out {folder}`")
    index = json.loads(path.read_text(encoding="utf-8"))
    here = Price(index["here"]["item"], index["here"]["unit"], Decimal(index["here"]["usd"]), str(path), None)
    return Runner(folder, store or Store(Path(index["store"])), here=here)


def summarise(runner: Runner) -> Comparison:
    """The numbers of a results folder: rows, intervals, paired differences.

    Raises:
        MissingData: there is nothing to report in the folder.
    """
    index = runner.folder / INDEX_FILE
    if not index.exists() or not (runner.folder / "points.json").exists():
        raise MissingData(f"{runner.folder} holds no finished point yet; run its command again to go on")
    points = read_points(runner.folder / "points.json")
    manifests = [_manifest(runner, run) for run in json.loads(index.read_text(encoding="utf-8"))["runs"]]
    if len(points) != len(manifests):
        raise DataError(f"{runner.folder}: {len(points)} points but {len(manifests)} runs; run the same command again")
    read = {
        point.id: _Test.read(runner, manifest) for point, manifest in zip(points, manifests, strict=True) if point.is_ok
    }
    tests = {point: test for point, test in read.items() if test is not None}
    teachers = {
        p.id: m["teacher_dev"] for p, m in zip(points, manifests, strict=True) if m and m["teacher_dev"] is not None
    }
    return compare(
        points,
        half_of=lambda ok: _half_interval([tests[point.id] for point in ok if point.id in tests], len(ok)),
        correctness={point: test.correct for point, test in tests.items() if test.metric == "accuracy"},
        teacher_dev=teachers,
        differences=_differences(points, tests),
    )


def write_report(runner: Runner) -> dict[str, Path]:
    """Table, chart, page and receipts of a results folder, as files; returns them by name."""
    comparison = summarise(runner)
    folder = runner.folder
    files = {"table": folder / "table.md", "csv": folder / "table.csv"}
    files["table"].write_text(render_markdown(comparison), encoding="utf-8")
    files["csv"].write_text(render_csv(comparison), encoding="utf-8")
    receipts = {}
    for run in json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["runs"]:
        manifest = _manifest(runner, run)
        text = render_text(receipt(runner.ledger, run))
        name = run if manifest is None else _name(Point.from_json(manifest["point"]))
        receipts[name] = text
        target = folder / "receipts" / f"{run}.txt"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
    if comparison.frontier.front:
        spec = frontier_spec(comparison)
        files["chart"] = save_chart(spec, folder / "frontier.png")
        files["svg"] = save_chart(spec, folder / "frontier.svg")
    files["page"] = write_page(folder / "report.html", render_page(comparison, receipts))
    return files


@dataclass(frozen=True, slots=True)
class _Test:
    """What a run said about the test split, row by row."""

    metric: str
    labels: tuple[str, ...]
    predictions: tuple[str, ...]
    golds: tuple[str, ...]

    @property
    def correct(self) -> list[float]:
        return [float(p == g) for p, g in zip(self.predictions, self.golds, strict=True)]

    @classmethod
    def read(cls, runner: Runner, manifest: Mapping[str, Any] | None) -> _Test | None:
        """From the store; ``None`` where the artifact was removed (the table then falls back to seeds alone)."""
        key = next((a["key"] for a in manifest["artifacts"] if a["step"] == "score"), None) if manifest else None
        artifact = runner.store.get(key) if key is not None else None
        if artifact is None:
            return None
        said = json.loads((artifact.path / PREDICTIONS_FILE).read_text(encoding="utf-8"))
        return cls(said["metric"], tuple(said["labels"]), tuple(said["predictions"]), tuple(said["golds"]))


def _differences(points: Sequence[Point], tests: Mapping[str, _Test]) -> list[DifferenceRow]:
    """Every pair of strategies at each budget, bootstrapped over examples and seeds on the seeds that both have."""
    budgets = sorted({point.request.budget_usd for point in points})
    variants = list(dict.fromkeys(point.request.variant for point in points))
    rows = []
    for budget in budgets:
        by_variant: dict[str, dict[int, _Test]] = {}
        for point in points:
            if point.request.budget_usd == budget and point.id in tests:
                by_variant.setdefault(point.request.variant, {})[point.request.seed] = tests[point.id]
        for second, first in combinations([v for v in variants if v in by_variant], 2):
            seeds = sorted(set(by_variant[first]) & set(by_variant[second]))
            if seeds:
                interval = _difference([by_variant[first][s] for s in seeds], [by_variant[second][s] for s in seeds])
                rows.append(DifferenceRow.of(first, second, budget, interval))
    return rows


def _half_interval(of_seeds: Sequence[_Test], n_seeds: int) -> float | None:
    """Half of the 95 % interval of F1 over examples and seeds; ``None`` for accuracy, and where a seed's answers are gone."""
    if len(of_seeds) != n_seeds or not of_seeds or of_seeds[0].metric == "accuracy":
        return None
    one = of_seeds[0]
    reading = mean_score(STATISTICS[one.metric][0], [t.predictions for t in of_seeds], one.golds, one.labels)
    return (reading.high - reading.low) / 2


def _difference(first: Sequence[_Test], second: Sequence[_Test]) -> Difference:
    one = first[0]
    return paired_bootstrap_scores(
        one.metric, [t.predictions for t in first], [t.predictions for t in second], one.golds, one.labels
    )


def _manifest(runner: Runner, run: str) -> dict[str, Any] | None:
    path = runner.run_folder(run).manifest
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _name(point: Point) -> str:
    request = point.request
    return f"{request.variant}, ${request.budget_usd:,.2f}, seed {request.seed}"
