"""Strategies x budgets x seeds: the points of a comparison, their paired differences, and the files a reader opens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from outlay.engine.outputs import RunOutputs, manifest_of, outputs_of, receipt_file
from outlay.engine.point import Point, read_points, write_points
from outlay.engine.prepare import Options, RunBuilder
from outlay.engine.run_dir import STUDY_FILE
from outlay.engine.runner import Runner
from outlay.errors import DataError, MissingData, UsageError
from outlay.metrics import main_score
from outlay.money.amounts import Price, show_usd, write_usd
from outlay.plan.strategies import strategy
from outlay.report.charts import frontier_spec, save_chart
from outlay.report.comparison import Comparison, DifferenceRow, compare, render_csv, render_markdown
from outlay.report.grouping import group
from outlay.report.page import render_page, write_page
from outlay.report.receipt import receipt, render_text
from outlay.report.results import Header, Results
from outlay.report.significance import family
from outlay.storage.files import write_json, write_text
from outlay.storage.paths import command_line
from outlay.storage.remote import open_location
from outlay.storage.store import Store

INDEX_FILE = "comparison.json"
"""Which runs of a folder make up its comparison, the store that holds their artifacts, the machine they ran on."""


def check_folder(folder: Path, asked: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a results folder whose report would lose what is in it; a grid that holds all of it, and more, goes on there.

    Points that came to nothing are no loss. ``asked``: ids of the runs that are asked for.

    Raises:
        UsageError: it holds a study, or a score that is not asked for (unless ``overwrite``: its ledger and the files of its runs
            stay, its table and page are replaced).
    """
    if (folder / STUDY_FILE).exists():
        raise UsageError(f"{folder} holds a study; give another --out")
    if overwrite or not (folder / INDEX_FILE).exists() or not (folder / "points.json").exists():
        return
    runs = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["runs"]
    points = read_points(folder / "points.json")
    lost = [point for run, point in zip(runs, points, strict=False) if point.is_ok and run not in asked]
    if lost:
        first = lost[0].request
        what = f"{first.variant} at {show_usd(first.budget_usd)}, seed {first.seed}"
        raise UsageError(
            f"{folder} holds the report of another request: this one would drop {len(lost)} of its {len(points)} points, the "
            f"first {first.task}: {what}; ask for those too, give another --out, or add --overwrite"
        )


def foresee(workbench: RunBuilder, options: Sequence[Options]) -> None:
    """Bring every run as far as its first recipe: whatever it meets on the way is met before the first of them buys a label.

    Raises:
        OutlayError: what `RunBuilder.prepare` refuses.
    """
    for asked in options:
        strategy(asked.strategy).ask(workbench.prepare(asked).known, [])


def run_points(
    runner: Runner, workbench: RunBuilder, options: Sequence[Options], on_point: Callable[[int, Options], None]
) -> list[Point]:
    """Execute every point, note each as it is done, and leave ``points.json`` and the index in the runner's folder.

    A point that fails is recorded with its reason and does not stop the rest. Those that are over already are in both files from
    the start, so that a grid which grew loses nothing where it is stopped.
    """
    runs = [workbench.request(asked).run_id for asked in options]
    done = runner.all_finished(runs)
    _write(runner, runs, done)
    for i, asked in enumerate(options):
        on_point(i, asked)
        if runs[i] not in done:
            done[runs[i]] = runner.execute(workbench.prepare(asked))
            _write(runner, runs, done)
    return [done[run] for run in runs]


def _write(runner: Runner, asked: Sequence[str], done: Mapping[str, Point]) -> None:
    """The points so far in the order asked, and the index of their runs."""
    runs = [run for run in dict.fromkeys(asked) if run in done]
    path = runner.folder / "points.json"
    if runs:
        write_points(path, [done[run] for run in runs])
    else:
        path.unlink(missing_ok=True)
    _write_index(runner, runs)


def _write_index(runner: Runner, runs: Sequence[str]) -> None:
    here = {"item": runner.here.item, "unit": runner.here.unit, "usd": write_usd(runner.here.usd)}
    index = {"runs": list(runs), "store": runner.store.location, "here": here}
    write_json(runner.folder / INDEX_FILE, index)


def reopen(folder: Path, store: Store | None = None) -> Runner:
    """The runner of a results folder: its own store and its own price of the machine, unless another store is handed in.

    Raises:
        MissingData: there is nothing in the folder that says what it is.
    """
    path = folder / INDEX_FILE
    if not path.exists():
        again = command_line("outlay", "compare", "TASK", "--budgets", "DOLLARS", "--out", folder)
        raise MissingData(f"{folder} holds no results; make some with `outlay run` or `{again}`")
    index = json.loads(path.read_text(encoding="utf-8"))
    here = Price(index["here"]["item"], index["here"]["unit"], Decimal(index["here"]["usd"]), str(path), None)
    return Runner(folder, store or open_location(index["store"]), here=here)


def summarise(runner: Runner) -> Comparison:
    """The numbers of a results folder: rows, intervals, paired differences.

    Raises:
        MissingData: there is nothing to report in the folder.
    """
    index = runner.folder / INDEX_FILE
    if not index.exists() or not (runner.folder / "points.json").exists():
        raise MissingData(f"{runner.folder} holds no finished point yet; run its command again to go on")
    points = read_points(runner.folder / "points.json")
    runs = json.loads(index.read_text(encoding="utf-8"))["runs"]
    if len(points) != len(runs):
        raise DataError(f"{runner.folder}: {len(points)} points but {len(runs)} runs; run the same command again")
    left = {
        point.id: outputs_of(runner.folder, runner.store, run)
        for point, run in zip(points, runs, strict=True)
        if point.is_ok
    }
    metrics = {each.metric for each in left.values() if each.metric is not None}
    return compare(
        points,
        left=left,
        differences=_differences(points, left),
        measure=main_score(metrics.pop()) if len(metrics) == 1 else None,
    )


def write_report(runner: Runner) -> dict[str, Path]:
    """Table, chart, page and receipts of a results folder, as files; returns them by name."""
    comparison = summarise(runner)
    folder = runner.folder
    files = {"table": folder / "table.md", "csv": folder / "table.csv"}
    write_text(files["table"], render_markdown(comparison))
    write_text(files["csv"], render_csv(comparison))
    receipts: dict[str, str] = {}
    names = _names(read_points(folder / "points.json"))
    for run in json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["runs"]:
        manifest = manifest_of(folder, run)
        text = render_text(receipt(runner.ledger, run))
        name = run if manifest is None else names[Point.from_json(manifest["point"]).id]
        receipts[name] = text
        write_text(receipt_file(folder, run), text)
    if comparison.frontier.front:
        spec = frontier_spec(comparison)
        files["chart"] = save_chart(spec, folder / "frontier.png")
        files["svg"] = save_chart(spec, folder / "frontier.svg")
    files["page"] = write_page(folder / "report.html", render_page(comparison, receipts))
    return files


def _differences(points: Sequence[Point], left: Mapping[str, RunOutputs]) -> list[DifferenceRow]:
    """Pairs of rows at each budget, tested over seeds and test rows as one family."""
    results = Results(Header("comparison", "Comparison", "plain"), tuple(points), left)
    return [
        DifferenceRow(
            *(row.first, row.second, row.budget_usd, row.mean, row.low, row.high),
            p_holm=row.p_holm,
            n_comparisons=row.n_comparisons,
            smallest=row.smallest,
            n_seeds=row.n_seeds,
            n_apart=row.n_apart,
        )
        for row in family(results)
    ]


def _names(points: Sequence[Point]) -> dict[str, str]:
    """What a reader calls each point, by its id."""
    return {
        point.id: f"{each.label}, {show_usd(each.budget_usd)}, seed {point.request.seed}"
        for each in group(points)
        for point in each.points
    }
