"""Cost tables: the cost of annotating to the score of distillation, and the parts of each charge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from outlay.report import paper_tables
from outlay.report.cells import (
    WITHOUT_POOL,
    PointOutputs,
    by_task,
    charge_of,
    cost_score,
    dollars,
    request_text,
    row_heading,
    score_cell,
    score_legend,
    short_names,
    strategy_rank,
    thousands,
)
from outlay.report.frontier import CostScore, usd_to_reach
from outlay.report.scores import ONE_SEED
from outlay.report.seed_means import by_seed, mean_of
from outlay.report.table import Heading, PlacedCell, Table, TableCell, pivot, row_cells, task_heading
from outlay.report.values import count, money

NOT_REACHED = "not reached"


def _cells_of(points: Sequence[PointOutputs]) -> list[list[PointOutputs]]:
    """Return points grouped by request without its seed, each group sorted by seed."""
    by_id = {each.point.id: each for each in points}
    return [[by_id[point.id] for point in seeds] for seeds in by_seed(each.point for each in points)]


# --- Table 4 ---------------------------------------------------------------------------------------------------------


def same_score_cell(goal: CostScore, curve: Sequence[CostScore]) -> TableCell:
    """Return the cell of the cost of annotating to the score of ``goal``, with the costs of the ends of its interval.

    The cheap end is where the upper ends of annotation's intervals reach the goal's lower end, the dear end where the lower ends
    reach its upper end: wider than 95 %, since both are rarely at their ends together.
    """
    usd = usd_to_reach(goal.score, [(each.charge_usd, each.score) for each in curve])
    low = usd_to_reach(goal.least, [(each.charge_usd, each.most) for each in curve])
    high = usd_to_reach(goal.most, [(each.charge_usd, each.least) for each in curve])
    if usd is None:
        return TableCell(unit="words", words=NOT_REACHED if low is None else f"{NOT_REACHED} [{money(low)}, –]")
    if usd == curve[0].charge_usd and curve[0].score >= goal.score:
        return TableCell(usd, unit="words", words=f"at most {money(usd)}")
    ends = f" [{money(low)}, {NOT_REACHED if high is None else money(high)}]"
    return TableCell(usd, low, high, unit="words", words=money(usd) + (ends if low != high else ""))


def lay_out_match(points: Sequence[PointOutputs]) -> tuple[list[Table], list[PointOutputs]]:
    """Lay out Table 4: distillation, the cost of annotating to the same score, the dearest annotation; and the annotation curve.

    Returns:
        The tables, and the points that belong in neither of them.
    """
    tasks = list(by_task(points))
    taught = [each for each in points if each.request.teacher is not None]
    labelled = [each for each in points if each.request.strategy == "annotate"]
    rest = [each for each in points if each.request.teacher is None and each.request.strategy != "annotate"]
    tables = [_match_table(taught, labelled, tasks)] if taught else []
    tables += [_curve_table(labelled, tasks)] if labelled else []
    return tables, rest


def _match_table(taught: Sequence[PointOutputs], labelled: Sequence[PointOutputs], tasks: Sequence[str]) -> Table:
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
        column = task_heading(request.task, tasks)
        order = (0, strategy_rank(request.variant), words, seen[request.task, words])
        seen[request.task, words] += 1
        usd = charge_of(seeds)
        cell = score_cell(seeds, "" if usd is None else f"({money(usd)})")
        items.append(PlacedCell(Heading((*order, 0), words), column, cell))
        goal = cost_score(cell, usd or None)
        if goal is not None and (curve := curves.get((request.task, request.student))):
            same = f"{names[request.student]} (Annotate), the same score"
            same_score = same_score_cell(goal, [each for each, _ in curve])
            items.append(PlacedCell(Heading((*order, 1), same), column, same_score))
    for (task, student), curve in curves.items():
        dearest, cell = curve[-1]
        heading = Heading((1, names[student]), f"{names[student]} (Annotate), the dearest")
        top = replace(cell, bracket=f"({money(dearest.charge_usd)})", points=())
        items.append(PlacedCell(heading, task_heading(task, tasks), top))
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


def _curves(labelled: Sequence[PointOutputs]) -> dict[tuple[str, str], list[tuple[CostScore, TableCell]]]:
    """Return the annotation curve of each task and student, by rising dollars; points that cost nothing are left out."""
    curves: dict[tuple[str, str], list[tuple[CostScore, TableCell]]] = {}
    for seeds in _cells_of(labelled):
        cell = score_cell(seeds)
        candidate = cost_score(cell, charge_of(seeds) or None)
        if candidate is not None:
            curves.setdefault((seeds[0].request.task, seeds[0].request.student), []).append((candidate, cell))
    return {key: sorted(curve, key=lambda each: each[0].charge_usd) for key, curve in curves.items()}


def _curve_table(labelled: Sequence[PointOutputs], tasks: Sequence[str]) -> Table:
    names = short_names([each.request for each in labelled])
    items: list[PlacedCell] = []
    for i, seeds in enumerate(_cells_of(labelled)):
        task, student = seeds[0].request.task, names[seeds[0].request.student]
        block = Heading((tasks.index(task), student), f"{task}, {student}")
        row = Heading((seeds[0].request.budget_usd, i), dollars(seeds[0].request.budget_usd))
        n_labels = count(mean_of(each.point.result.n_labels for each in seeds if each.point.is_ok))
        cells: dict[str, TableCell | None] = {
            "Labels": TableCell(unit="words", words=n_labels),
            "Charge": TableCell(charge_of(seeds), unit="usd"),
            "Test": score_cell(seeds),
        }
        items += row_cells(row, cells, block)
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
    tasks = list(by_task(points))
    names = short_names([each.request for each in points])
    items: list[PlacedCell] = []
    for i, seeds in enumerate(_cells_of(points)):
        request = seeds[0].request
        order = (request.n_initial or 0, strategy_rank(request.variant), i)
        n_pool = mean_of(each.point.result.n_pool for each in seeds if each.point.is_ok)
        rows = f", {thousands(n_pool)} rows" if n_pool and request.strategy not in WITHOUT_POOL else ""
        row = Heading(order, f"{row_heading(request, names)}: {request_text(request)}{rows}")
        cells = {text: _part_cell(seeds, name, parts) for name, parts, text in _COLUMNS}
        cells |= {"Charge": TableCell(charge_of(seeds), unit="usd"), "Test": score_cell(seeds)}
        items += row_cells(row, cells, task_heading(request.task, tasks))
    title = "What a point is charged, by part (after Kang et al. 2023, Table 6)"
    table = pivot(title, ("Task", "Bought"), items, tasks=tuple(tasks))
    notes = [
        "Dollars, means over seeds; the parts add up to the charge. Where the student's training is free, it is $0.00.",
        f"{score_legend(points, list(table.cells))} Bold: the highest mean of a task.",
    ]
    if any(cell.published is not None for cell in table.cells):
        notes.append(paper_tables.NOT_COMPARABLE)
    return [replace(table, notes=(*notes, *table.notes))], []


def _part_cell(seeds: Sequence[PointOutputs], name: str, parts: Sequence[str]) -> TableCell | None:
    """Return the cell of the mean dollars of some parts; None for a part the strategy lacks or a charge not kept by part."""
    is_taught = seeds[0].request.teacher is not None
    if (name in ("teacher", "distillation") and not is_taught) or (name == "training" and is_taught):
        return None
    charges = [each.outputs.charges_usd for each in seeds if each.point.is_ok and each.outputs is not None]
    if not charges or any(each is None for each in charges):
        return None
    usd = mean_of(sum(each.get(part, 0.0) for part in parts) for each in charges if each is not None)
    return TableCell(usd, unit="usd", published=paper_tables.costs_of(seeds[0].request).get(name))
