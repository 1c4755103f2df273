"""Tables of a study's plan for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from outlay.money.amounts import format_usd
from outlay.storage.files import plain_number
from outlay.study.dry_run import KINDS, PlannedPoint, StudyPlan
from outlay.text.display import visible

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


def render(planned: StudyPlan) -> RenderableType:
    """Draw a plan: points by task, strategy and N; the work; hours and dollars."""
    from rich.console import Group

    return Group(_points_table(planned), _work_table(planned), *_closing(planned))


def _points_table(planned: StudyPlan) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    tasks = ", ".join(dict.fromkeys(point.task for point in planned.points))
    known = f", {planned.n_known:,} known" if planned.n_known else ""
    title = f"{tasks}: {planned.n_points:,} points, {planned.n_na:,} of them N/A{known}"
    table = Table(title=Text(visible(title)), title_justify="left")
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

    table = Table(title="Work: each distinct step once, beside separate runs", title_justify="left")
    for i, name in enumerate(("", "Distinct", "Separate")):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
    both = (planned.distinct, planned.separate)
    for kind in KINDS:
        table.add_row(_WORDS[kind], *(f"{work.n_steps[kind]:,}" for work in both))
    table.add_section()
    table.add_row("optimiser steps", *(f"{work.n_optimizer_steps:,}" for work in both))
    machines = ", ".join(dict.fromkeys(point.request.machine for point in planned.points))
    table.add_row(f"hours charged at most, as {machines}", *(_hours(work.charged_hours) for work in both))
    forecasts = [work.seconds_here for work in both]
    table.add_row(
        "hours on this machine, forecast", *("–" if each is None else _hours(each / 3600) for each in forecasts)
    )
    return table


def _hours(hours: float) -> str:
    """Write hours with two decimals, or with two digits where that would be nothing, such as 0.0012."""
    return f"{hours:,.2f}" if hours >= 0.1 or hours == 0 else plain_number(f"{hours:.2g}")


def _closing(planned: StudyPlan) -> list[RenderableType]:
    from rich.text import Text

    lines = [
        f"Sharing saves {100 * planned.saved:.1f} % of the optimiser steps.",
        f"Charge of {'what is left' if planned.n_known else 'all points'} at most: {format_usd(planned.charge_micros)}",
        _cash_words(planned),
        *planned.notes,
    ]
    reasons = Counter(point.reason for point in planned.points if point.reason is not None).most_common()
    lines += [f"N/A: {n:,} x {reason}" for reason, n in reasons[:MAX_REASONS]]
    if len(reasons) > MAX_REASONS:
        lines.append(f"N/A: {len(reasons) - MAX_REASONS:,} further reasons; --json lists every point's")
    return [Text(line) for line in lines]


def _cash_words(planned: StudyPlan) -> str:
    """Return the forecast of the cash in words, or the reason for having none."""
    if planned.cash_micros is not None:
        return f"Cash for compute here, forecast: {format_usd(planned.cash_micros)}"
    if planned.distinct.seconds_here is not None:
        return "Cash for compute here: no forecast without the price of this machine"
    return (
        "Hours and cash here: no forecast; `outlay machine calibrate` measures this machine. "
        "A charge counts arithmetic only, so its hours say nothing of that."
    )


def _range(values: Sequence[int | None]) -> str:
    given = [value for value in values if value is not None]
    if not given:
        return "-"
    low, high = min(given), max(given)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
