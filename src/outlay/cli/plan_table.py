"""Tables of a plan for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from outlay.money.amounts import format_usd
from outlay.storage.files import plain_number
from outlay.study.dry_run import PlannedPoint, StudyPlan
from outlay.study.run_names import run_names
from outlay.study.time_left import TimeLeft
from outlay.study.work import KINDS, StudyWork, total_work
from outlay.text.display import visible
from outlay.text.durations import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

_WORDS = {
    "buy": "purchases of labels",
    "train": "fine-tunings",
    "teach": "blocks of targets",
    "distil": "distillations",
    "score": "scorings of the test split",
}

MAX_REASONS = 12
"""Number of reasons for ``na`` that are shown, the most frequent first."""

CALIBRATE = "outlay machine calibrate"


def render(
    planned: StudyPlan, *, by_run: bool = False, calibrate: str = CALIBRATE, n_workers: int = 1
) -> RenderableType:
    """Draw a plan: its points, the work, hours and dollars.

    ``by_run``: a row for each run and its seeds, in place of one for each task, strategy and N; ``calibrate``: the command that
    measures this machine; ``n_workers``: number of steps that run at once.
    """
    from rich.console import Group

    table = _runs_table(planned) if by_run else _points_table(planned)
    if planned.points and not any(point.is_left for point in planned.points):
        return Group(table, *_texts(["Nothing to do.", *_reasons(planned)]))
    return Group(table, _work_table(planned), *_texts(_closing(planned, calibrate, n_workers)))


def _title(planned: StudyPlan) -> str:
    tasks = ", ".join(dict.fromkeys(point.task for point in planned.points))
    counts = [f"{planned.n_points:,} {'point' if planned.n_points == 1 else 'points'}, {planned.n_na:,} of them N/A"]
    counts += [f"{planned.n_known:,} known"] if planned.n_known else []
    counts += [f"{planned.n_finished:,} there already"] if planned.n_finished else []
    return f"{tasks}: {', '.join(counts)}"


_Column = tuple[str, Callable[[Sequence[PlannedPoint]], str]]
"""A heading, and the cell of some points."""


def _runs_table(planned: StudyPlan) -> RenderableType:
    """Draw a row for each run and its seeds; columns that say nothing are left out, so that it fits a narrow terminal."""
    from rich.table import Table
    from rich.text import Text

    groups: dict[str, list[PlannedPoint]] = {}
    for name, point in zip(
        run_names([point.request for point in planned.points], with_seeds=False), planned.points, strict=True
    ):
        groups.setdefault(name, []).append(point)
    points = planned.points
    columns: list[_Column] = [("Runs", lambda some: f"{len(some):,}")] if len(groups) < len(points) else []
    columns += [("N/A", lambda some: f"{sum(point.recipe is None for point in some):,}")] if planned.n_na else []
    columns += [("Done", lambda some: f"{sum(point.is_finished for point in some):,}")] if planned.n_finished else []
    columns.append(("Labels", lambda some: _range([point.labels.n_bought for point in some if point.recipe])))
    if any(point.labels.n_owned for point in points):
        columns.append(("Owned", lambda some: _range([point.labels.n_owned for point in some if point.recipe])))
    if any(point.sizes[1] for point in points):
        columns.append(("Pool\nrows", lambda some: _range([point.sizes[1] for point in some])))
    columns.append(("Optim.\nsteps", lambda some: f"{_work(some).n_optimizer_steps:,}"))
    if planned.separate.seconds_here is not None:
        columns.append(("Min.", lambda some: _decimals((_work(some).seconds_here or 0.0) / 60)))
    columns.append(("Charge\nat most", lambda some: format_usd(sum(point.charge_micros for point in some))))
    cells = {name: [cell(some) for _, cell in columns] for name, some in groups.items()}
    table = Table(title=Text(visible(_title(planned))), title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("Run", overflow="fold", vertical="bottom")
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    for name, row in cells.items():
        table.add_row(Text(visible(name)), *row)
    return table


def _work(points: Iterable[PlannedPoint]) -> StudyWork:
    return total_work(point.work for point in points if point.work is not None)


def _points_table(planned: StudyPlan) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    known = planned.n_known > 0
    table = Table(title=Text(visible(_title(planned))), title_justify="left")
    counts = ("Points", "N/A", *(("Known",) if known else ()))
    for i, name in enumerate(("Task", "Strategy", "N", *counts, "Labels", "Pool rows", "Charge at most")):
        table.add_column(name, justify="left" if i < 2 else "right", no_wrap=i > 1)
    groups: dict[tuple[str, str, int | None], list[PlannedPoint]] = {}
    for point in planned.points:
        asked = point.request
        groups.setdefault((point.task, asked.strategy, asked.n_initial), []).append(point)
    for (task, name, n_initial), points in groups.items():
        sizes = [point.sizes for point in points]
        table.add_row(
            *(Text(visible(task)), Text(visible(name))),
            "-" if points[0].is_rival else "by rule" if n_initial is None else f"{n_initial:,}",
            *(f"{len(points):,}", f"{sum(point.recipe is None for point in points):,}"),
            *((f"{sum(point.known is not None for point in points):,}",) if known else ()),
            *(_range([size[i] for size in sizes]) for i in range(2)),
            format_usd(sum(point.charge_micros for point in points)),
        )
    return table


def _work_table(planned: StudyPlan) -> RenderableType:
    from rich.table import Table

    works = {"Distinct": planned.distinct}
    if planned.in_store:
        works = {"To do": planned.left, **works}
    if planned.distinct.n_steps != planned.separate.n_steps:
        works["Separate"] = planned.separate
    title = "Work: each distinct step once, beside separate runs" if "Separate" in works else "Work"
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(("", *works)):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for kind in KINDS:
        table.add_row(_WORDS[kind], *(f"{work.n_steps[kind]:,}" for work in works.values()))
    table.add_section()
    table.add_row("optimiser steps", *(f"{work.n_optimizer_steps:,}" for work in works.values()))
    machines = ", ".join(dict.fromkeys(point.request.machine for point in planned.points))
    table.add_row(f"hours charged at most, as {machines}", *(_hours(work.charged_hours) for work in works.values()))
    forecasts = [work.seconds_here for work in works.values()]
    table.add_row(
        "hours on this machine, forecast", *("–" if each is None else _hours(each / 3600) for each in forecasts)
    )
    return table


def _hours(hours: float) -> str:
    """Write hours with two decimals, or with two digits where that would be nothing, such as 0.0012."""
    return f"{hours:,.2f}" if hours >= 0.1 or hours == 0 else _two_digits(hours)


def _decimals(minutes: float) -> str:
    """Write minutes with one decimal, or with two digits where that would be nothing."""
    return f"{minutes:,.1f}" if minutes >= 0.95 or minutes == 0 else _two_digits(minutes)


def _two_digits(value: float) -> str:
    return plain_number(f"{value:.2g}")


def _texts(lines: Iterable[str]) -> list[RenderableType]:
    from rich.text import Text

    return [Text(line) for line in lines]


def _closing(planned: StudyPlan, calibrate: str, n_workers: int) -> list[str]:
    is_part = planned.n_known or planned.n_finished
    saved = f"Sharing saves {100 * planned.saved:.1f} % of the optimiser steps."
    return [
        *([saved] if planned.separate.n_steps != planned.distinct.n_steps else []),
        _label_words(planned),
        *_label_cost_words(planned),
        f"Charge of {'what is left' if is_part else 'all points'} at most: {format_usd(planned.charge_micros)}",
        *_forecast_words(planned, calibrate, n_workers),
        _limit_words(planned),
        *planned.notes,
        *_reasons(planned),
    ]


def _reasons(planned: StudyPlan) -> list[str]:
    """Return lines on the reasons for ``na``."""
    reasons = Counter(point.reason for point in planned.points if point.reason is not None).most_common()
    lines = [f"N/A: {n:,} x {reason}" for reason, n in reasons[:MAX_REASONS]]
    if len(reasons) > MAX_REASONS:
        lines.append(f"N/A: {len(reasons) - MAX_REASONS:,} further reasons; --json lists every point's")
    return lines


def _label_words(planned: StudyPlan) -> str:
    """Return the numbers of labels in words."""
    labels, separate = planned.labels, planned.n_labels_separate
    shared = f", where separate runs would buy {separate:,}" if separate > labels.n_bought else ""
    owned = f"; owned: {labels.n_owned:,}" if labels.n_owned else ""
    return f"Labels to buy: {labels.n_bought:,}{shared}{owned}"


def _label_cost_words(planned: StudyPlan) -> list[str]:
    """Return lines on what labels that are given for real cost: a line for each seller."""
    return [
        f"Labels of {each.seller}: {format_usd(each.expected_micros)} expected, at most {format_usd(each.most_micros)}, and "
        "never more than the budget"
        for each in planned.label_costs
    ]


def _forecast_words(planned: StudyPlan, calibrate: str, n_workers: int) -> list[str]:
    """Return the forecasts of time and cash in words, or the reason for having none."""
    seconds = planned.left.seconds_here
    if seconds is None:
        measured = ""
        if planned.profile is not None:
            measured = f"this machine was measured with {_threads(planned.profile.threads)} alone; "
        return [
            f"Hours and cash here: no forecast; {measured}`{calibrate}` measures this machine, in under a minute where nothing "
            "else runs. A charge counts arithmetic only, so its hours say nothing of that."
        ]
    how = "one step after the other"
    if n_workers > 1:
        left = [place for place, point in enumerate(planned.points) if point.is_left]
        _, soonest = TimeLeft(planned, left, n_workers=lambda: n_workers).ahead()
        seconds, how = (seconds, how) if soonest is None else (soonest, f"{n_workers} steps at once")
    lines = [f"Time on this machine, forecast: {duration(seconds)}, {how}"]
    if planned.cash_micros is None:
        return [*lines, "Cash for compute here: no forecast without the price of this machine"]
    return [*lines, f"Cash for compute here, forecast: {format_usd(planned.cash_micros)}"]


def _limit_words(planned: StudyPlan) -> str:
    """Return the limit of the cash in words."""
    cap, limit = planned.cash_cap_micros, planned.cash_limit_micros
    by = "--cash-cap" if cap is not None and cap == limit else "the budgets of all runs"
    return f"Cash limit: {format_usd(limit)}, by {by}"


def _threads(n: int) -> str:
    return f"{n} {'thread' if n == 1 else 'threads'}"


def _range(values: Sequence[int | None]) -> str:
    given = [value for value in values if value is not None]
    if not given:
        return "-"
    low, high = min(given), max(given)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
