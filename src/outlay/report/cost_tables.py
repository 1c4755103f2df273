"""Cost tables: the cost of annotating to the score of distillation, and the parts of each charge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from outlay.report import paper_tables
from outlay.report.cells import (
    WITHOUT_POOL,
    PointOutputs,
    charge_of,
    dollars,
    identity_fields,
    mean_of,
    request_text,
    row_heading,
    score_cell,
    score_legend,
    short_names,
    strategy_rank,
    thousands,
)
from outlay.report.scores import ONE_SEED
from outlay.report.table import CellContent, Heading, PlacedCell, Table, pivot
from outlay.report.values import money

_ONE_BLOCK = Heading((), "")
NOT_REACHED = "not reached"


def _cells_of(points: Sequence[PointOutputs]) -> list[list[PointOutputs]]:
    """Return points grouped by request without its seed, each group sorted by seed."""
    cells: dict[tuple[object, ...], list[PointOutputs]] = {}
    for each in points:
        cells.setdefault(tuple(identity_fields(each.request).values()), []).append(each)
    return [sorted(seeds, key=lambda each: each.request.seed) for seeds in cells.values()]


# --- Table 4 ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A point of the annotation curve: dollars, mean score and the ends of its interval (the mean where there is none)."""

    usd: float
    score: float
    low: float
    high: float
    cell: CellContent

    @classmethod
    def of(cls, seeds: Sequence[PointOutputs]) -> CurvePoint | None:
        """Return the curve point of some seeds; None where no seed has a score or nothing was charged."""
        cell, usd = score_cell(seeds), charge_of(seeds)
        if cell.value is None or not usd:
            return None
        low, high = (cell.value if end is None else end for end in (cell.low, cell.high))
        return cls(usd, cell.value, low, high, cell)


def usd_to_reach(score: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """Return the least dollars at which a curve reaches a score, interpolated linearly in log dollars.

    Args:
        score: 0-100.
        curve: dollars (> 0) and score of each point, by rising dollars.

    Returns:
        The dollars of the cheapest point where its score is enough already; None where the curve never reaches the score.
    """
    before: tuple[float, float] | None = None
    for usd, reached in curve:
        if reached >= score:
            if before is None:
                return usd
            share = (score - before[1]) / (reached - before[1])
            return math.exp(math.log(before[0]) + share * (math.log(usd) - math.log(before[0])))
        before = (usd, reached)
    return None


def same_score_cell(goal: CurvePoint, curve: Sequence[CurvePoint]) -> CellContent:
    """Return the cell of the cost of annotating to the score of ``goal``, with the costs of the ends of its interval.

    The cheap end is where the upper ends of annotation's intervals reach the goal's lower end, the dear end where the lower ends
    reach its upper end: wider than 95 %, since both are rarely at their ends together.
    """
    usd = usd_to_reach(goal.score, [(each.usd, each.score) for each in curve])
    low = usd_to_reach(goal.low, [(each.usd, each.high) for each in curve])
    high = usd_to_reach(goal.high, [(each.usd, each.low) for each in curve])
    if usd is None:
        return CellContent(unit="words", words=NOT_REACHED if low is None else f"{NOT_REACHED} [{money(low)}, –]")
    if usd == curve[0].usd and curve[0].score >= goal.score:
        return CellContent(usd, unit="words", words=f"at most {money(usd)}")
    ends = f" [{money(low)}, {NOT_REACHED if high is None else money(high)}]"
    return CellContent(usd, low, high, unit="words", words=money(usd) + (ends if low != high else ""))


def lay_out_match(points: Sequence[PointOutputs]) -> tuple[list[Table], list[PointOutputs]]:
    """Lay out Table 4: distillation, the cost of annotating to the same score, the dearest annotation; and the annotation curve.

    Returns:
        The tables, and the points that belong in neither of them.
    """
    tasks = list(dict.fromkeys(each.request.task for each in points))
    taught = [each for each in points if each.request.teacher is not None]
    labelled = [each for each in points if each.request.strategy == "annotate"]
    placed = {each.id for each in (*taught, *labelled)}
    tables = [
        table for table in (_match_table(taught, labelled, tasks), _curve_table(labelled, tasks)) if table is not None
    ]
    return tables, [each for each in points if each.id not in placed]


def _match_table(
    taught: Sequence[PointOutputs], labelled: Sequence[PointOutputs], tasks: Sequence[str]
) -> Table | None:
    if not taught:
        return None
    names = short_names([each.request for each in (*taught, *labelled)])
    curves = _curves(labelled)
    items: list[PlacedCell] = []
    cells = [(row_heading(seeds[0].request, names), seeds) for seeds in _cells_of(taught)]
    of_words = Counter((seeds[0].request.task, words) for words, seeds in cells)
    seen: Counter[tuple[str, str]] = Counter()
    for words, seeds in cells:
        request = seeds[0].request
        if max(n for (_, each), n in of_words.items() if each == words) > 1:
            words = f"{words}: {request_text(request)}"
        column = Heading((tasks.index(request.task),), request.task)
        order = (0, strategy_rank(request.variant), words, seen[request.task, words])
        seen[request.task, words] += 1
        goal, usd = CurvePoint.of(seeds), charge_of(seeds)
        cell = score_cell(seeds, "" if usd is None else f"({money(usd)})")
        items.append(PlacedCell(_ONE_BLOCK, Heading((*order, 0), words), column, cell))
        if goal is not None and (curve := curves.get((request.task, request.student))):
            same = f"{names[request.student]} (Annotate), the same score"
            items.append(PlacedCell(_ONE_BLOCK, Heading((*order, 1), same), column, same_score_cell(goal, curve)))
    for (task, student), curve in curves.items():
        top = replace(curve[-1].cell, bracket=f"({money(curve[-1].usd)})", points=())
        dearest = Heading((1, names[student]), f"{names[student]} (Annotate), the dearest")
        items.append(PlacedCell(_ONE_BLOCK, dearest, Heading((tasks.index(task),), task), top))
    table = pivot("Distilling, and annotating to the same score (after Kang et al. 2023, Table 4)", ("Model",), items)
    is_one_seed = any(cell.covers == "rows" for cell in table.cells)
    notes = (
        score_legend([*taught, *labelled], list(table.cells)),
        "( ): its charge, the first labels included. Bold: the highest mean of a task.",
        "The same score: the least money at which annotation's scores, joined over the logarithm of the charge, reach that "
        "of the line above; [ ]: where their upper ends reach its lower end, where their lower ends reach its upper end.",
        *([f"Ends are those of {ONE_SEED}: another seed may lie outside."] if is_one_seed else []),
        f"“{NOT_REACHED}”: not with all the labels that the study bought; the dearest: with all of them.",
    )
    return replace(table, notes=(*notes, *table.notes), tasks=tuple(tasks))


def _curves(labelled: Sequence[PointOutputs]) -> dict[tuple[str, str], list[CurvePoint]]:
    """Return the annotation curve of each task and student, by rising dollars."""
    curves: dict[tuple[str, str], list[CurvePoint]] = {}
    for seeds in _cells_of(labelled):
        curve_point = CurvePoint.of(seeds)
        if curve_point is not None:
            curves.setdefault((seeds[0].request.task, seeds[0].request.student), []).append(curve_point)
    return {key: sorted(curve, key=lambda each: each.usd) for key, curve in curves.items()}


def _curve_table(labelled: Sequence[PointOutputs], tasks: Sequence[str]) -> Table | None:
    if not labelled:
        return None
    names = short_names([each.request for each in labelled])
    items: list[PlacedCell] = []
    for i, seeds in enumerate(_cells_of(labelled)):
        request = seeds[0].request
        n_labels, usd = mean_of(each.point.result.n_labels for each in seeds if each.point.is_ok), charge_of(seeds)
        block = Heading(
            (tasks.index(request.task), names[request.student]), f"{request.task}, {names[request.student]}"
        )
        row = Heading((request.budget_usd, i), dollars(request.budget_usd))
        count = CellContent(unit="words", words="–" if n_labels is None else f"{n_labels:,.0f}")
        cells = (count, CellContent(usd, unit="usd"), score_cell(seeds))
        heads = (Heading((0,), "Labels"), Heading((1,), "Charge"), Heading((2,), "Test"))
        items += [PlacedCell(block, row, head, cell) for head, cell in zip(heads, cells, strict=True)]
    return pivot("Annotation alone, by budget", ("Task, student", "Budget"), items, tasks=tuple(tasks))


# --- Table 6 ---------------------------------------------------------------------------------------------------------

_COLUMNS = (
    ("labels", ("labels",), "Labels"),
    ("teacher", ("teacher",), "Teacher"),
    ("distillation", ("targets", "student"), "Distillation: targets and student"),
    ("training", ("student",), "Student"),
    ("scores", ("scores",), "Scoring"),
)


def lay_out_costs(points: Sequence[PointOutputs]) -> tuple[list[Table], list[PointOutputs]]:
    """Lay out Table 6: the charge of each request by part, task by task.

    Returns:
        The table, and no remaining point: each point stands in the column of scores.
    """
    if not points:
        return [], []
    tasks = list(dict.fromkeys(each.request.task for each in points))
    names = short_names([each.request for each in points])
    items: list[PlacedCell] = []
    for i, seeds in enumerate(_cells_of(points)):
        request = seeds[0].request
        block = Heading((tasks.index(request.task),), request.task)
        row = Heading(
            (request.n_initial or 0, strategy_rank(request.variant), i), _cost_row(seeds, row_heading(request, names))
        )
        cells: list[tuple[Heading, CellContent]] = []
        for place, (name, parts, words) in enumerate(_COLUMNS):
            cell = _part_cell(seeds, name, parts)
            cells += [] if cell is None else [(Heading((place,), words), cell)]
        charge = CellContent(charge_of(seeds), unit="usd")
        cells += [(Heading((8,), "Charge"), charge), (Heading((9,), "Test"), score_cell(seeds))]
        items += [PlacedCell(block, row, head, cell) for head, cell in cells]
    table = pivot(
        "What a point is charged, by part (after Kang et al. 2023, Table 6)",
        ("Task", "Bought"),
        items,
        tasks=tuple(tasks),
    )
    notes = [
        "Dollars, means over seeds; the parts add up to the charge. Where the student's training is free, it is $0.00.",
        f"{score_legend(points, list(table.cells))} Bold: the highest mean of a task.",
    ]
    if any(cell.published is not None for cell in table.cells):
        notes.append(paper_tables.NOT_COMPARABLE)
    return [replace(table, notes=(*notes, *table.notes))], []


def _cost_row(seeds: Sequence[PointOutputs], words: str) -> str:
    request = seeds[0].request
    n_pool = mean_of(each.point.result.n_pool for each in seeds if each.point.is_ok)
    rows = f", {thousands(n_pool)} rows" if n_pool and request.strategy not in WITHOUT_POOL else ""
    return f"{words}: {request_text(request)}{rows}"


def _part_cell(seeds: Sequence[PointOutputs], name: str, parts: Sequence[str]) -> CellContent | None:
    """Return the cell of the mean dollars of some parts; None for a part the strategy lacks or a charge not kept by part."""
    is_taught = seeds[0].request.teacher is not None
    if (name in ("teacher", "distillation") and not is_taught) or (name == "training" and is_taught):
        return None
    charges = [each.outputs.charges_usd for each in seeds if each.point.is_ok and each.outputs is not None]
    if not charges or any(each is None for each in charges):
        return None
    usd = mean_of(sum(each.get(part, 0.0) for part in parts) for each in charges if each is not None)
    return CellContent(usd, unit="usd", published=paper_tables.costs_of(seeds[0].request).get(name))
