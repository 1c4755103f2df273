"""Live display of a study: points done, steps under way, dollars; plain lines without a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import TaskID
from rich.text import Text

from outlay.cli.progress import RunsScreen
from outlay.cli.terminal import echo, echo_prose, print_json, table_console
from outlay.money.amounts import show_usd
from outlay.storage.paths import command_line

if TYPE_CHECKING:
    from outlay.engine.point import Point
    from outlay.storage.store import Store
    from outlay.study.runner import Status


class StudyScreen(RunsScreen):
    """The screen of `study run`: a bar of the points above those of the steps, and a line for each point."""

    def __init__(self, folder: Path, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._folder, self._quiet = folder, quiet
        self._n_points = self._n_over = self._n_steps = 0
        self._charge = 0.0
        self._cash = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._all is not None:
            super().__exit__(kind, error, trace)

    def opened(self, n_points: int, n_known: int, n_finished: int, n_left: int) -> None:
        """Print the number of points, and show their bar where some are left."""
        n_absent = n_points - n_left - n_finished - n_known
        counts = [f"{n_known:,} known"] if n_known else []
        counts += [f"{n_finished:,} there already"] if n_finished else []
        counts += [f"{n_absent:,} not available"] if n_absent else []
        counts.append(f"{n_left:,} to do" if n_left else "nothing to do")
        if not self._quiet:
            echo(f"{n_points:,} points in {self._folder}: {', '.join(counts)}", err=True)
        self._n_points, self._n_over = n_points, n_points - n_left
        if n_left:
            self._bars.start()
            self._all = self._bars.add_task("points", total=n_points, completed=self._n_over, detail="", end=None)

    def _move(self, whole: TaskID, share: float) -> None:
        """Leave the bar of all work alone: it counts the points."""

    def ended(self, what: str, seconds: float, problem: str | None) -> None:
        """Count a step, and print its problem if any."""
        self._n_steps += 1
        super().ended(what, seconds, problem)

    def point(self, point: Point, n_done: int) -> None:
        """Print a line for a finished point, and move the bar of the points."""
        assert self._all is not None
        request, result = point.request, point.result
        self._charge += result.charge_usd
        self._cash += point.circumstance.cash_usd or 0.0
        fixed = "" if request.n_initial is None else f", N = {request.n_initial:,}"
        score = f"{result.test:.1f}" if result.test is not None else f"{result.status}: {result.reason}"
        self._console.print(
            Text.assemble(
                (f"{self._n_over + n_done}/{self._n_points}", "bold"),
                f" {request.task}: {request.variant}{fixed}, {show_usd(request.budget_usd)}, seed {request.seed}  {score}",
            ),
            soft_wrap=True,
        )
        self._bars.update(
            self._all,
            completed=self._n_over + n_done,
            detail=f"charged {show_usd(self._charge)}, cash {show_usd(self._cash)}, {self._n_steps} steps",
        )


def draw_study(folder: Path, store: Store | None, *, as_json: bool, quiet: bool = False) -> None:
    """Write the report of a results folder and print its tables, or its points as JSON.

    ``quiet``: print no remark on a file that could not be written for want of a library.
    """
    from outlay.report.flat_files import NEEDS_PYARROW
    from outlay.report.study_report import write_study_report
    from outlay.study.handover import lines_on_model
    from outlay.study.runner import read_results

    files = write_study_report(folder, read_results(folder, store), lines_on_model(folder))
    if "parquet" not in files and not quiet:
        echo(f"note: {NEEDS_PYARROW}", err=True)
    if as_json:
        print_json(json.loads((folder / "points.json").read_text(encoding="utf-8")))
    else:
        show_study(folder, store, files)


def show_study(folder: Path, store: Store | None, files: Mapping[str, Path]) -> None:
    """Print the tables of a study's folder, the summary, and the paths of its files."""
    from outlay.report.study_report import StudyReport
    from outlay.study.handover import lines_on_model
    from outlay.study.runner import read_results

    results = read_results(folder, store)
    report = StudyReport(results)
    table_console().print(report.terminal())
    if report.summaries:
        echo()
    for each in report.summaries:
        echo_prose(each.sentence, style="bold")
        for line in each.lines:
            echo_prose(line)
    if files:
        echo()
    # Users of `run` and `compare` look at receipts, users of a study with thousands of runs at the folder.
    own = {} if results.header.scale else {"receipts": command_line("outlay", "ledger", "show", folder)}
    for name, path in files.items():
        echo(f"{name}: {own.get(name, path)}")
    for line in lines_on_model(folder) if files else ():
        echo(line)


def status_lines(found: Status) -> list[str]:
    """Return a study's status as lines: points done, money held, missing points with reasons, the command to go on."""
    total = sum(found.n_by_status.values())
    n_known = sum(found.n_known_by_file.values())
    of_ok = f" ({n_known:,} known)" if n_known else ""
    counts = ", ".join(
        f"{found.n_by_status[name]:,} {name}{of_ok if name == 'ok' else ''}"
        for name in ("ok", "na", "failed", "waiting", "left")
        if name in found.n_by_status
    )
    scale = "" if found.header.scale is None else f", scale {found.header.scale}"
    lines = [
        f"{found.header.name} ({found.header.title}){scale}: {total:,} points: {counts}",
        f"cash so far: {show_usd(found.cash_usd)}",
        *found.label_lines,
        *(f"known: {n:,} {'point' if n == 1 else 'points'} of {file}" for file, n in found.n_known_by_file.items()),
    ]
    for held in found.held:
        state = "cut off" if held.is_cut_off else "under way"
        lines.append(f"{state}: a step of {held.label}, {held.seconds:,.0f} s on {held.item}")
    labels: dict[tuple[str, str], list[str]] = {}
    for status, label, reason in found.reasons:
        labels.setdefault((status, reason), []).append(label)
    for (status, reason), cells in labels.items():
        more = f" and {len(cells) - 1:,} more" if len(cells) > 1 else ""
        lines.append(f"{status}: {cells[0]}{more}: {reason}")
    if found.again is not None and not found.is_done:
        lines.append(f"to go on: {found.again}")
    elif found.again is not None and "failed" in found.n_by_status:
        lines.append(f"to try what failed again: {found.again}")
    return lines
