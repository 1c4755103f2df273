"""Tables about money: what labels would have to cost to match distillation, and what a charge is made of."""

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
    mean_of,
    models,
    request_words,
    row_words,
    score_cell,
    score_legend,
    strategy_rank,
    thousands,
    told_apart_by,
)
from outlay.report.scores import ONE_SEED
from outlay.report.table import CellContent, Head, Item, Table, pivot
from outlay.report.values import money

_ONE_BLOCK = Head((), "")
NOT_REACHED = "not reached"


def _cells_of(found: Sequence[PointOutputs]) -> list[list[PointOutputs]]:
    """The points by request without its seed, each group sorted by seed."""
    cells: dict[tuple[object, ...], list[PointOutputs]] = {}
    for each in found:
        cells.setdefault(tuple(told_apart_by(each.asked).values()), []).append(each)
    return [sorted(seeds, key=lambda each: each.asked.seed) for seeds in cells.values()]


# --- Table 4 ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rung:
    """One place on a curve of annotation: dollars, mean score and the ends of its interval (the mean where it has none)."""

    usd: float
    score: float
    low: float
    high: float
    cell: CellContent

    @classmethod
    def of(cls, seeds: Sequence[PointOutputs]) -> Rung | None:
        """The mean of seeds; None where none has a score or nothing was charged."""
        cell, usd = score_cell(seeds), charge_of(seeds)
        if cell.value is None or not usd:
            return None
        low, high = (cell.value if end is None else end for end in (cell.low, cell.high))
        return cls(usd, cell.value, low, high, cell)


def usd_to_reach(score: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """The least dollars at which a curve reaches a score: straight lines over the logarithm of the dollars between places.

    Args:
        score: 0-100.
        curve: dollars (> 0) and score of each place, by rising dollars.

    Returns:
        The dollars of the cheapest place where that reaches it already; None where the curve never does.
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


def same_score_cell(goal: Rung, rungs: Sequence[Rung]) -> CellContent:
    """What annotating costs for the score of ``goal``, with the dollars for its ends.

    The cheap end is where the upper ends of annotation's intervals reach the goal's lower end, the dear end where the lower ends
    reach its upper end: wider than 95 %, since both are rarely at their ends together.
    """
    usd = usd_to_reach(goal.score, [(rung.usd, rung.score) for rung in rungs])
    low = usd_to_reach(goal.low, [(rung.usd, rung.high) for rung in rungs])
    high = usd_to_reach(goal.high, [(rung.usd, rung.low) for rung in rungs])
    if usd is None:
        return CellContent(unit="words", words=NOT_REACHED if low is None else f"{NOT_REACHED} [{money(low)}, –]")
    if usd == rungs[0].usd and rungs[0].score >= goal.score:
        return CellContent(usd, unit="words", words=f"at most {money(usd)}")
    ends = f" [{money(low)}, {NOT_REACHED if high is None else money(high)}]"
    return CellContent(usd, low, high, unit="words", words=money(usd) + (ends if low != high else ""))


def lay_out_match(found: Sequence[PointOutputs]) -> tuple[list[Table], list[PointOutputs]]:
    """Table 4: each distillation, the cost of annotating to the same score, the dearest annotation; then the curve of annotation.

    Returns:
        The tables, and the points that belong in neither.
    """
    tasks = list(dict.fromkeys(each.asked.task for each in found))
    taught = [each for each in found if each.asked.teacher is not None]
    labelled = [each for each in found if each.asked.strategy == "annotate"]
    placed = {each.id for each in (*taught, *labelled)}
    tables = [
        table for table in (_match_table(taught, labelled, tasks), _curve_table(labelled, tasks)) if table is not None
    ]
    return tables, [each for each in found if each.id not in placed]


def _match_table(
    taught: Sequence[PointOutputs], labelled: Sequence[PointOutputs], tasks: Sequence[str]
) -> Table | None:
    if not taught:
        return None
    names = models([each.asked for each in (*taught, *labelled)])
    curves = _curves(labelled)
    items: list[Item] = []
    cells = [(row_words(seeds[0].asked, names), seeds) for seeds in _cells_of(taught)]
    of_words = Counter((seeds[0].asked.task, words) for words, seeds in cells)
    seen: Counter[tuple[str, str]] = Counter()
    for words, seeds in cells:
        asked = seeds[0].asked
        if max(n for (_, each), n in of_words.items() if each == words) > 1:
            words = f"{words}: {request_words(asked)}"
        column = Head((tasks.index(asked.task),), asked.task)
        place = (0, strategy_rank(asked.variant), words, seen[asked.task, words])
        seen[asked.task, words] += 1
        goal, usd = Rung.of(seeds), charge_of(seeds)
        cell = score_cell(seeds, "" if usd is None else f"({money(usd)})")
        items.append(Item(_ONE_BLOCK, Head((*place, 0), words), column, cell))
        if goal is not None and (curve := curves.get((asked.task, asked.student))):
            same = f"{names[asked.student]} (Annotate), the same score"
            items.append(Item(_ONE_BLOCK, Head((*place, 1), same), column, same_score_cell(goal, curve)))
    for (task, student), curve in curves.items():
        top = replace(curve[-1].cell, bracket=f"({money(curve[-1].usd)})", points=())
        dearest = Head((1, names[student]), f"{names[student]} (Annotate), the dearest")
        items.append(Item(_ONE_BLOCK, dearest, Head((tasks.index(task),), task), top))
    laid = pivot("Distilling, and annotating to the same score (after Kang et al. 2023, Table 4)", ("Model",), items)
    is_one_seed = any(cell.covers == "rows" for cell in laid.cells)
    notes = (
        score_legend([*taught, *labelled], list(laid.cells)),
        "( ): its charge, the first labels included. Bold: the highest mean of a task.",
        "The same score: the least money at which annotation's scores, joined over the logarithm of the charge, reach that "
        "of the line above; [ ]: where their upper ends reach its lower end, where their lower ends reach its upper end.",
        *([f"Ends are those of {ONE_SEED}: another seed may lie outside."] if is_one_seed else []),
        f"“{NOT_REACHED}”: not with all the labels that the study bought; the dearest: with all of them.",
    )
    return replace(laid, notes=(*notes, *laid.notes), tasks=tuple(tasks))


def _curves(labelled: Sequence[PointOutputs]) -> dict[tuple[str, str], list[Rung]]:
    """Task and student → the places of annotation by rising dollars."""
    curves: dict[tuple[str, str], list[Rung]] = {}
    for seeds in _cells_of(labelled):
        rung = Rung.of(seeds)
        if rung is not None:
            curves.setdefault((seeds[0].asked.task, seeds[0].asked.student), []).append(rung)
    return {key: sorted(rungs, key=lambda rung: rung.usd) for key, rungs in curves.items()}


def _curve_table(labelled: Sequence[PointOutputs], tasks: Sequence[str]) -> Table | None:
    if not labelled:
        return None
    names = models([each.asked for each in labelled])
    items: list[Item] = []
    for i, seeds in enumerate(_cells_of(labelled)):
        asked = seeds[0].asked
        n_labels, usd = mean_of(each.point.result.n_labels for each in seeds if each.point.is_ok), charge_of(seeds)
        block = Head((tasks.index(asked.task), names[asked.student]), f"{asked.task}, {names[asked.student]}")
        row = Head((asked.budget_usd, i), dollars(asked.budget_usd))
        count = CellContent(unit="words", words="–" if n_labels is None else f"{n_labels:,.0f}")
        cells = (count, CellContent(usd, unit="usd"), score_cell(seeds))
        heads = (Head((0,), "Labels"), Head((1,), "Charge"), Head((2,), "Test"))
        items += [Item(block, row, head, cell) for head, cell in zip(heads, cells, strict=True)]
    return pivot("Annotation alone, by budget", ("Task, student", "Budget"), items, tasks=tuple(tasks))


# --- Table 6 ---------------------------------------------------------------------------------------------------------

_COLUMNS = (
    ("labels", ("labels",), "Labels"),
    ("teacher", ("teacher",), "Teacher"),
    ("distillation", ("targets", "student"), "Distillation: targets and student"),
    ("training", ("student",), "Student"),
    ("scores", ("scores",), "Scoring"),
)


def lay_out_costs(found: Sequence[PointOutputs]) -> tuple[list[Table], list[PointOutputs]]:
    """Table 6: per task, what each request is charged, by part.

    Returns:
        The table, and no point: each has its home in the column of scores.
    """
    if not found:
        return [], []
    tasks = list(dict.fromkeys(each.asked.task for each in found))
    names = models([each.asked for each in found])
    items: list[Item] = []
    for i, seeds in enumerate(_cells_of(found)):
        asked = seeds[0].asked
        block = Head((tasks.index(asked.task),), asked.task)
        row = Head((asked.n_initial or 0, strategy_rank(asked.variant), i), _cost_row(seeds, row_words(asked, names)))
        cells: list[tuple[Head, CellContent]] = []
        for place, (name, parts, words) in enumerate(_COLUMNS):
            cell = _part_cell(seeds, name, parts)
            cells += [] if cell is None else [(Head((place,), words), cell)]
        charge = CellContent(charge_of(seeds), unit="usd")
        cells += [(Head((8,), "Charge"), charge), (Head((9,), "Test"), score_cell(seeds))]
        items += [Item(block, row, head, cell) for head, cell in cells]
    laid = pivot(
        "What a point is charged, by part (after Kang et al. 2023, Table 6)",
        ("Task", "Bought"),
        items,
        tasks=tuple(tasks),
    )
    notes = [
        "Dollars, means over seeds; the parts add up to the charge. Where the student's training is free, it is $0.00.",
        f"{score_legend(found, list(laid.cells))} Bold: the highest mean of a task.",
    ]
    if any(cell.published is not None for cell in laid.cells):
        notes.append(paper_tables.NOT_COMPARABLE)
    return [replace(laid, notes=(*notes, *laid.notes))], []


def _cost_row(seeds: Sequence[PointOutputs], words: str) -> str:
    asked = seeds[0].asked
    n_pool = mean_of(each.point.result.n_pool for each in seeds if each.point.is_ok)
    rows = f", {thousands(n_pool)} rows" if n_pool and asked.strategy not in WITHOUT_POOL else ""
    return f"{words}: {request_words(asked)}{rows}"


def _part_cell(seeds: Sequence[PointOutputs], name: str, parts: Sequence[str]) -> CellContent | None:
    """Mean dollars of some parts; None for a part that the strategy does not have or where the receipt is gone."""
    is_taught = seeds[0].asked.teacher is not None
    if (name in ("teacher", "distillation") and not is_taught) or (name == "training" and is_taught):
        return None
    charges = [each.left.charges_usd for each in seeds if each.point.is_ok and each.left is not None]
    if not charges or any(each is None for each in charges):
        return None
    usd = mean_of(sum(each.get(part, 0.0) for part in parts) for each in charges if each is not None)
    return CellContent(usd, unit="usd", published=paper_tables.costs_of(seeds[0].asked).get(name))
