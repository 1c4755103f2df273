"""Tables of any study: the plain comparison, and the gain of each strategy over annotating by task and on average."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from outlay.metrics.degenerate import of_rows
from outlay.metrics.intervals import half_of_means
from outlay.report.cells import (
    PointOutputs,
    by_task,
    charge_of,
    cost_score,
    score_cell,
    score_legend,
    strategy_name,
    strategy_rank,
    teacher_score,
)
from outlay.report.frontier import frontier
from outlay.report.grouping import Group, group
from outlay.report.seed_means import latency_ms, mean_of, size_mb
from outlay.report.table import Column, Heading, PlacedCell, Table, TableCell, TableRow, numbered, pivot
from outlay.report.values import ABSENT, count, latency_text, money, size_text

_COLUMNS = (
    "Budget",
    "Test",
    "Charge",
    "Labels",
    "LLM labels",
    "Pool rows",
    "Teacher dev",
    "ECE",
    "Cash",
    "MB",
    "ms a row",
    "Seeds",
)
"""Columns of the plain comparison, the score first; a column without a value in any row is left out."""

_ECE_LEGEND = (
    "ECE: expected calibration error of the probabilities on the test split, 0-100, mean over seeds; less is better."
)
RIVAL_NOTE = (
    "A rival is a cheap model on labels that other rows have bought, charged as if alone. MB: of float32 weights."
)
BASELINE = "annotate"
"""The strategy that gains are measured against: the same budget spent on labels."""


def plain_tables(points: Sequence[PointOutputs], *, is_rest: bool) -> list[Table]:
    """Lay out the plain comparison of each task, a row per strategy and budget.

    Args:
        points: points of one or several tasks.
        is_rest: True for points without a place in the layout of the study.
    """
    tables = []
    for task, of_task in by_task(points).items():
        title = "points that the layout has no place for" if is_rest else "test score by strategy and budget"
        if is_rest and all(each.request.is_rival for each in of_task):
            title = "rivals on the same labels"
        tables.append(_plain(f"{task}: {title}", task, of_task))
    return tables


def _plain(title: str, task: str, points: Sequence[PointOutputs]) -> Table:
    of_point = {each.point.id: each for each in points}
    groups = group([each.point for each in points])
    seeds = [[of_point[point.id] for point in each.points] for each in groups]
    tested = [score_cell(each) for each in seeds]
    candidates = [cost_score(cell, charge_of(each)) for cell, each in zip(tested, seeds, strict=True)]
    front = frontier([each for each in candidates if each is not None])
    rows = []
    for i, (each, cell, candidate) in enumerate(zip(groups, tested, candidates, strict=True)):
        is_next = i == 0 or each.budget_usd != groups[i - 1].budget_usd
        own = replace(cell, on_front=candidate is not None and front.holds(candidate))
        rows.append(TableRow((each.label,), _plain_cells(each, seeds[i], own), starts_block=is_next))
    kept = [i for i in range(len(_COLUMNS)) if any(row.cells[i] is not None for row in rows)]
    table = Table(
        title,
        ("Strategy",),
        tuple(Column(_COLUMNS[i]) for i in kept),
        tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in rows),
        (
            score_legend(points, tested),
            *([_ECE_LEGEND] if any(_COLUMNS[i] == "ECE" for i in kept) else []),
            "Bold: on the frontier, no row is both cheaper and better.",
            *([RIVAL_NOTE] if any(each.request.is_rival for each in points) else []),
        ),
        (task,),
    )
    return numbered(table)


def _plain_cells(row: Group, seeds: Sequence[PointOutputs], tested: TableCell) -> tuple[TableCell | None, ...]:
    """Return the cells of a row under `_COLUMNS`: means over the seeds that have a score."""
    results = [point.result for point in row.ok]
    cash = [point.circumstance.cash_usd for point in row.ok]
    n_pool, dev = mean_of(result.n_pool for result in results), teacher_score(seeds)
    n_llm = mean_of(result.n_llm_labels for result in results)
    errors = [result.ece for result in results]
    ece = None if None in errors else mean_of(error for error in errors if error is not None)
    # Folds are other rows for every seed, so that their mean rests on all of them.
    sizes = [result.n_dev for result in results]
    n_dev = sum(sizes) if seeds[0].request.dev == "folds" else min(sizes, default=None)
    texts = {
        "Budget": money(row.budget_usd),
        "Charge": money(charge_of(seeds)),
        "Labels": count(mean_of(result.n_labels for result in results)),
        "LLM labels": count(n_llm) if n_llm else ABSENT,
        "Pool rows": count(n_pool) if n_pool else ABSENT,
        "Teacher dev": ABSENT if dev is None else f"{dev:.1f}{of_rows(n_dev)}",
        "ECE": ABSENT if ece is None else f"{ece:.1f}",
        "Cash": ABSENT if None in cash else money(mean_of(usd for usd in cash if usd is not None)),
        "MB": size_text(size_mb(row.ok)),
        "ms a row": latency_text(latency_ms(row.ok)),
        "Seeds": str(len(seeds)) if len(results) in (0, len(seeds)) else f"{len(results)} of {len(seeds)}",
    }
    cells = {name: None if text == ABSENT else TableCell(unit="words", words=text) for name, text in texts.items()}
    cells["Test"] = tested
    return tuple(cells[name] for name in _COLUMNS)


# --- over tasks ------------------------------------------------------------------------------------------------------


def across_tasks(points: Sequence[PointOutputs]) -> list[Table]:
    """Lay out the mean gain of each strategy over annotating at equal N, budget, student and method, by task and over the tasks.

    Each task has equal weight in the mean over tasks. Without a pair on any task there is no table.
    """
    tasks = list(by_task(points))
    items: list[PlacedCell] = []
    for name, gains in sorted(_gains(points).items(), key=lambda of_name: (strategy_rank(of_name[0]), of_name[0])):
        row = Heading((strategy_rank(name), name), f"{strategy_name(name)} − {strategy_name(BASELINE)}")
        items += [
            PlacedCell(row, Heading((0, tasks.index(task)), task), _gain_cell(values)) for task, values in gains.items()
        ]
        per_task = [statistics.fmean(values) for values in gains.values()]
        items.append(PlacedCell(row, Heading((1,), "Mean over tasks"), _mean_cell(per_task)))
    if not items:
        return []
    table = pivot("Over the tasks: what a strategy gains over annotating", ("Strategy",), items, tasks=tuple(tasks))
    notes = (
        "Points of each task's own test score, at equal N, budget, student and method, averaged over such cells; ( ): cells in "
        "which the strategy is ahead.",
        "Mean over tasks: each task counts once; ± half of the 95 % t-interval over tasks. Their metrics may differ.",
    )
    return [replace(table, notes=(*notes, *table.notes))]


def _gains(points: Sequence[PointOutputs]) -> dict[str, dict[str, list[float]]]:
    """Return the gains over annotating by policy and task: one per cell of N, budget, student and method, over its seeds."""
    tests: dict[tuple[str, str, tuple[object, ...]], list[float]] = {}
    for each in points:
        request, test = each.request, each.point.result.test
        if test is not None:
            own = (request.n_initial, request.budget_usd, request.student, request.student_method)
            cell = (*own, request.machine, request.price_book, request.test_rows)
            tests.setdefault((request.task, request.policy, cell), []).append(test)
    gains: dict[str, dict[str, list[float]]] = {}
    for (task, policy, place), values in tests.items():
        baseline = tests.get((task, BASELINE, place))
        if policy != BASELINE and baseline is not None:
            gain = statistics.fmean(values) - statistics.fmean(baseline)
            gains.setdefault(policy, {}).setdefault(task, []).append(gain)
    return gains


def _gain_cell(gains: Sequence[float]) -> TableCell:
    n_ahead = sum(gain > 0 for gain in gains)
    return TableCell(statistics.fmean(gains), unit="difference", bracket=f"({n_ahead} of {len(gains)})")


def _mean_cell(per_task: Sequence[float]) -> TableCell:
    mean, half = statistics.fmean(per_task), half_of_means(per_task)
    whole = TableCell(mean, unit="difference")
    return whole if half is None else replace(whole, low=mean - half, high=mean + half)
