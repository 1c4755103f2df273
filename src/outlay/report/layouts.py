"""How the points of a study become tables: one plan per published table or figure of Kang et al. 2023."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outlay.engine.point import PointRequest
from outlay.report import paper_tables
from outlay.report.cells import (
    PointOutputs,
    bought,
    charge_of,
    dollars,
    entries,
    models,
    row_words,
    score_cell,
    score_legend,
    strategy_rank,
    teacher_score,
    thousands,
    told_apart_by,
)
from outlay.report.cost_tables import lay_out_costs, lay_out_match
from outlay.report.frontier import CostScore, frontier
from outlay.report.results import Results
from outlay.report.scores import ONE_SEED
from outlay.report.summary_tables import across_tasks, plain_tables
from outlay.report.table import CellContent, Head, Item, Table, pivot

Told = Mapping[str, Any]
"""What tells a request apart, `outlay.report.cells.told_apart_by`."""


_GOODS = "( ): labels beyond N, or machine time by the flops clock / pool rows."
_TEACHER = "[ ]: the teacher's dev score."
_CHARGE = "( ): what the point would cost bought alone."


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Where the points of a layout stand. Whatever of a request is in neither blocks, columns nor ``aside`` tells rows apart."""

    title: str
    stub: tuple[str, ...]
    column: Callable[[Told], Head]
    column_fields: tuple[str, ...]
    block: Callable[[Told], Head] = lambda _: Head((), "")
    block_fields: tuple[str, ...] = ()
    row: Callable[[Told], Head] | None = None
    """Heading of a row; the models and the strategy by default."""
    aside: tuple[str, ...] = ()
    """What follows from the rest and tells rows apart only where seeds would meet in a cell otherwise."""
    needs: tuple[str, ...] = ()
    """Fields that a point of this layout has."""
    bracket: Callable[[Sequence[PointOutputs]], str] = bought
    legend: str = _GOODS
    """What stands in ( ) behind a score."""
    remark: str = ""
    over_tasks: bool = False
    teacher_in_head: bool = False
    published: Callable[[PointRequest], float | None] = lambda _: None
    marks_front: bool = False


def lay_out(results: Results) -> tuple[Table, ...]:
    """The tables of a study: per task or over tasks, as its layout says; then the mean over tasks where there are several,
    then the paper's own tables where they hold more than what stands beside ours.

    Every point has exactly one cell that is its home; what a layout has no place for (a rule's N in a table by N) is in a
    plain comparison at the end.
    """
    found = entries(results)
    layout = results.header.layout
    tables: list[Table] = []
    if layout in ("match", "costs"):
        placed, rest = (lay_out_match if layout == "match" else lay_out_costs)(found)
        tables += placed
    elif layout in PLANS:
        plan = PLANS[layout]
        fit: list[PointOutputs] = []
        rest = []
        for each in found:
            (fit if all(getattr(each.asked, name) is not None for name in plan.needs) else rest).append(each)
        tables += _planned(plan, fit, results.tasks)
    else:
        rest = found
    tables += plain_tables(rest, is_rest=bool(tables))
    if layout not in ("match", "costs", "pool", "plain") and len(results.tasks) > 1:
        tables += across_tasks(found)
    return (*tables, *_papers_own(layout, results.tasks, tables))


def _planned(plan: TableLayout, found: Sequence[PointOutputs], tasks: Sequence[str]) -> list[Table]:
    if plan.over_tasks:
        return [_table(plan, found, tasks)] if found else []
    by_task: dict[str, list[PointOutputs]] = {task: [] for task in tasks}
    for each in found:
        by_task[each.asked.task].append(each)
    return [_table(plan, of_task, [task]) for task, of_task in by_task.items() if of_task]


@dataclass(frozen=True, slots=True)
class _Place:
    block: Head
    column: Head
    row: tuple[Any, ...]


def _table(plan: TableLayout, found: Sequence[PointOutputs], tasks: Sequence[str]) -> Table:
    named = [(each, told_apart_by(each.asked) | {"task_order": tasks.index(each.asked.task)}) for each in found]
    taken = {*plan.block_fields, *plan.column_fields, "task", "task_order", "initial_usd", "pool"}
    telling = [name for name in named[0][1] if name not in taken]
    cells = _cells(plan, named, [name for name in telling if name not in plan.aside])
    if any(len({each.asked.seed for each, _ in seeds}) < len(seeds) for seeds in cells.values()):
        cells = _cells(plan, named, [*telling, "pool"])
    heads = _row_heads(plan, cells, [*telling, "pool"])
    items = []
    for place, seeds in cells.items():
        of_cell = sorted((each for each, _ in seeds), key=lambda each: each.asked.seed)
        cell = score_cell(of_cell, plan.bracket(of_cell), plan.published(of_cell[0].asked))
        items.append(Item(place.block, heads[place.block.order, place.row], place.column, cell))
    if plan.marks_front:
        items = _with_front(items, list(cells.values()))
    title = plan.title[0].upper() + plan.title[1:] if plan.over_tasks else f"{tasks[0]}: {plan.title}"
    laid = pivot(title, plan.stub, items, tasks=tuple(tasks), marks_best=not plan.marks_front)
    return replace(laid, notes=(*_legend(plan, laid, found), *laid.notes))


def _cells(
    plan: TableLayout, named: Sequence[tuple[PointOutputs, Told]], telling: Sequence[str]
) -> dict[_Place, list[tuple[PointOutputs, Told]]]:
    """The seeds of each cell; a place is a block, a column and what tells the row."""
    cells: dict[_Place, list[tuple[PointOutputs, Told]]] = {}
    for each, told in named:
        row = tuple(told[name] for name in telling)
        cells.setdefault(_Place(plan.block(told), plan.column(told), row), []).append((each, told))
    return cells


def _row_heads(
    plan: TableLayout, cells: Mapping[_Place, Sequence[tuple[PointOutputs, Told]]], telling: Sequence[str]
) -> dict[tuple[Any, ...], Head]:
    """A heading for each row of each block: of rows that would read alike, what differs is named too."""
    rows: dict[tuple[Any, ...], list[tuple[PointOutputs, Told]]] = {}
    for place, seeds in cells.items():
        rows.setdefault((place.block.order, place.row), []).extend(seeds)
    names = models([each.asked for seeds in rows.values() for each, _ in seeds])
    base: dict[tuple[Any, ...], Head] = {}
    for i, (key, seeds) in enumerate(rows.items()):
        first, told = seeds[0]
        if plan.row is not None:
            head = plan.row(told)
            base[key] = Head((*head.order, i), head.text)
        else:
            teacher = teacher_score([each for each, _ in seeds]) if plan.teacher_in_head else None
            base[key] = Head((strategy_rank(first.asked.variant), i), row_words(first.asked, names, teacher))
    twins: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for key, head in base.items():
        plain = head.text if plan.row is not None else row_words(rows[key][0][0].asked, names)
        twins.setdefault((key[0], plain), []).append(key)
    for alike in twins.values():
        if len(alike) > 1:
            telling_here = [n for n in telling if len({str(rows[key][0][1][n]) for key in alike}) > 1]
            for key in alike:
                more = (_field_words(name, rows[key][0][1][name], names) for name in telling_here)
                base[key] = replace(base[key], text=", ".join([base[key].text, *more]))
    return base


def _field_words(name: str, value: Any, names: Mapping[str, str]) -> str:
    if value is None:
        return f"no {name.removesuffix('_usd').replace('_', ' ')}"
    if name.endswith("_usd"):
        return f"{dollars(value)} {'added' if name == 'added_usd' else 'in all'}"
    if name == "n_unlabelled":
        return f"{thousands(value)} rows"
    if name == "n_initial":
        return f"N={thousands(value)}"
    if name == "pool":
        return "pool " + "+".join(f"{part} {thousands(n)}" for part, n in value)
    if name == "price_book":
        return f"prices {value[:8]}"
    return f"{name} {names.get(value, value)}" if name in ("teacher", "student") else f"{name} {value}"


def _with_front(items: Sequence[Item], seeds: Sequence[Sequence[tuple[PointOutputs, Told]]]) -> list[Item]:
    """Mark the cells that no other cell beats in charge and score."""
    spots = []
    for i, (item, of_cell) in enumerate(zip(items, seeds, strict=True)):
        charge = charge_of([each for each, _ in of_cell])
        value = item.cell.value
        if value is not None and charge is not None:
            ends = (value if end is None else end for end in (item.cell.low, item.cell.high))
            spots.append(
                CostScore(
                    str(i), charge, value, *(pick(value, end) for pick, end in zip((min, max), ends, strict=True))
                )
            )
    found = frontier(spots)
    front = {spot.name for spot in spots if found.holds(spot)}
    tied = {spot.name for spot in found.tied} - front
    cells = (replace(each.cell, on_front=str(i) in front, is_tied=str(i) in tied) for i, each in enumerate(items))
    return [replace(each, cell=cell) for each, cell in zip(items, cells, strict=True)]


def _legend(plan: TableLayout, laid: Table, found: Sequence[PointOutputs]) -> list[str]:
    cells = list(laid.cells)
    lines = [score_legend(found, cells)]
    shown = {sign for cell in cells for sign in ("[", "(") if sign in cell.bracket}
    if "[" in shown or any("[" in head for row in laid.rows for head in row.heads):
        lines.append(_TEACHER)
    if "(" in shown:
        lines.append(plan.legend)
    lines += [plan.remark] if plan.remark else []
    is_one_seed = any(cell.covers == "rows" for cell in cells)
    if any(cell.is_best for cell in cells):
        best = (
            "of one seed, which may be chance"
            if is_one_seed
            else "whether it differs is said by the tests, not by the bold"
        )
        lines.append(f"Bold: the highest mean of a column within its block; {best}.")
    if any(cell.on_front for cell in cells):
        lines.append("Bold: on the frontier, no cell is both cheaper and better.")
    if any(cell.is_tied for cell in cells):
        whose = f" ({ONE_SEED})" if is_one_seed else ""
        lines.append(f"“tied”: a cell that is no dearer scores more, but the intervals{whose} overlap.")
    if any(cell.published is not None for cell in cells):
        lines.append(paper_tables.NOT_COMPARABLE)
    return lines


def _papers_own(layout: str, tasks: Sequence[str], tables: Sequence[Table]) -> list[Table]:
    """The paper's tables of this layout for the tasks that it has, unless all of their numbers stand beside ours."""
    own: list[Table | None] = []
    if layout == "budgets":
        own = [paper_tables.budget_table(task) for task in tasks]
    elif layout in _PAPERS:
        own = [_PAPERS[layout](tasks)]
    beside = {table.tasks: sum(cell.published is not None for cell in table.cells) for table in tables}
    found = [table for table in own if table is not None]
    return [t for t in found if sum(cell.value is not None for cell in t.cells) > beside.get(t.tasks, 0)]


_PAPERS: dict[str, Callable[[Sequence[str]], Table | None]] = {
    "self": paper_tables.self_table,
    "match": paper_tables.match_table,
    "costs": paper_tables.cost_table,
    "general": paper_tables.general_table,
}


# --- the plans -------------------------------------------------------------------------------------------------------


def _n(told: Told) -> str:
    return "N by rule" if told["n_initial"] is None else f"N={thousands(told['n_initial'])}"


def _n_block(told: Told) -> Head:
    initial = told["initial_usd"]
    return Head((told["n_initial"], initial), f"{thousands(told['n_initial'])} ({dollars(initial)})")


def _added_column(told: Told) -> Head:
    return Head((told["added_usd"],), f"+{dollars(told['added_usd'])}", "Additional $")


def _total_column(told: Told) -> Head:
    return Head((told["budget_usd"], told["n_initial"] or 0), f"{dollars(told['budget_usd'])} ({_n(told)})", "Budget")


def _task_total_column(told: Told) -> Head:
    head = _total_column(told)
    return Head((told["task_order"], *head.order), head.text, told["task"])


def _self_column(told: Told) -> Head:
    rows = f", {thousands(told['n_unlabelled'])} rows"
    return Head((told["task_order"], told["n_initial"] or 0, told["n_unlabelled"]), _n(told) + rows, told["task"])


def _pool_column(told: Told) -> Head:
    return Head((told["n_unlabelled"],), thousands(told["n_unlabelled"]), "Unlabelled rows")


def _labels_row(told: Told) -> Head:
    return Head((told["n_initial"],), f"{thousands(told['n_initial'])} ({dollars(told['initial_usd'])})")


def _with_teacher(found: Sequence[PointOutputs]) -> str:
    teacher = teacher_score(found)
    return "" if teacher is None else f"[{teacher:.1f}]"


def _with_charge(found: Sequence[PointOutputs]) -> str:
    charge = charge_of(found)
    return "" if charge is None else f"({CellContent(charge, unit='usd').text})"


def _with_teacher_and_charge(found: Sequence[PointOutputs]) -> str:
    return " ".join(text for text in (_with_teacher(found), _with_charge(found)) if text)


def _with_teacher_and_goods(found: Sequence[PointOutputs]) -> str:
    return " ".join(text for text in (_with_teacher(found), bought(found)) if text)


PLANS: dict[str, TableLayout] = {
    "budgets": TableLayout(
        title="the same budget for labels or for distillation (after Kang et al. 2023, Tables 2 and 11)",
        stub=("N (initial $)", "Strategy"),
        block=_n_block,
        block_fields=("n_initial",),
        column=_added_column,
        column_fields=("added_usd",),
        aside=("budget_usd", "n_unlabelled"),
        needs=("n_initial", "added_usd"),
        teacher_in_head=True,
        published=paper_tables.score_of,
    ),
    "self": TableLayout(
        title="distillation from a large teacher or from a model like the student (after Kang et al. 2023, Table 3)",
        stub=("Teacher ⇒ student",),
        column=_self_column,
        column_fields=("n_initial", "n_unlabelled"),
        aside=("budget_usd", "added_usd"),
        bracket=_with_teacher,
        over_tasks=True,
        published=paper_tables.self_score_of,
    ),
    "general": TableLayout(
        title="general distillation, annotation, task distillation (after Kang et al. 2023, Table 10)",
        stub=("Model",),
        column=_task_total_column,
        column_fields=("n_initial", "budget_usd"),
        aside=("added_usd", "n_unlabelled"),
        over_tasks=True,
        published=paper_tables.general_score_of,
        remark="What general distillation cost is taken to be $0, as in the paper.",
    ),
    "pool": TableLayout(
        title="labels and unlabelled rows (after Kang et al. 2023, Figure 2)",
        stub=("Labels (initial $)",),
        row=_labels_row,
        column=_pool_column,
        column_fields=("n_unlabelled",),
        aside=("variant", "teacher", "budget_usd", "added_usd"),
        needs=("n_initial", "added_usd"),
        bracket=_with_charge,
        marks_front=True,
        legend=_CHARGE,
        remark="0 unlabelled rows: annotation alone.",
    ),
    "initial": TableLayout(
        title="the first N labels under a fixed added budget (after Kang et al. 2023, Figure 3)",
        stub=("Added $", "Strategy"),
        block=lambda told: Head((told["added_usd"],), f"+{dollars(told['added_usd'])}"),
        block_fields=("added_usd",),
        column=lambda told: Head((told["n_initial"],), _n(told)),
        column_fields=("n_initial",),
        aside=("budget_usd", "n_unlabelled"),
        needs=("n_initial", "added_usd"),
        bracket=_with_teacher_and_goods,
        published=paper_tables.score_of,
    ),
    "students": TableLayout(
        title="sizes of the student (after Kang et al. 2023, Figure 4)",
        stub=("Model",),
        column=_total_column,
        column_fields=("n_initial", "budget_usd"),
        aside=("added_usd", "n_unlabelled"),
        bracket=_with_teacher_and_goods,
    ),
    "teachers": TableLayout(
        title="sizes of the teacher (after Kang et al. 2023, Figure 5)",
        stub=("Model",),
        column=_total_column,
        column_fields=("n_initial", "budget_usd"),
        aside=("added_usd", "n_unlabelled"),
        bracket=_with_teacher_and_goods,
    ),
    "llm": TableLayout(
        title="people, a language model, or distillation (after Kang et al. 2023, Figures 6 and 7)",
        stub=("Model",),
        column=_total_column,
        column_fields=("n_initial", "budget_usd"),
        aside=("added_usd", "n_unlabelled"),
        bracket=_with_teacher_and_goods,
    ),
}
"""Layout → where its points stand; ``match`` and ``costs`` are in `outlay.report.cost_tables`, ``plain`` in
`outlay.report.summary_tables`."""
