"""Layouts of the tables of a study: one per published table or figure of Kang et al. 2023."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outlay.engine.point import PointRequest
from outlay.report import paper_tables
from outlay.report.cells import (
    IdentityFields,
    PointOutputs,
    by_task,
    charge_of,
    cost_score,
    dollars,
    point_outputs,
    purchase_text,
    row_heading,
    score_cell,
    score_legend,
    short_names,
    strategy_rank,
    teacher_score,
    thousands,
)
from outlay.report.cost_tables import lay_out_costs, lay_out_match
from outlay.report.frontier import frontier
from outlay.report.results import Results
from outlay.report.scores import ONE_SEED
from outlay.report.summary_tables import across_tasks, plain_tables
from outlay.report.table import Heading, PlacedCell, Table, TableCell, pivot

_PURCHASE = "( ): labels beyond N, or machine time by the flops clock / pool rows."
_TEACHER = "[ ]: the teacher's dev score."
_CHARGE = "( ): what the point would cost bought alone."


@dataclass(frozen=True, slots=True)
class TableLayout:
    """A layout of a table: blocks, columns and rows; identity fields in neither blocks, columns nor ``aside`` make the rows."""

    title: str
    stub: tuple[str, ...]
    column: Callable[[IdentityFields], Heading]
    column_fields: tuple[str, ...]
    block: Callable[[IdentityFields], Heading] = lambda _: Heading((), "")
    block_fields: tuple[str, ...] = ()
    row: Callable[[IdentityFields], Heading] | None = None
    """Heading of a row; models and strategy by default."""
    aside: tuple[str, ...] = ()
    """Fields that follow from the others; they make rows only where one cell would have a seed twice otherwise."""
    needs: tuple[str, ...] = ()
    """Fields that a point needs to appear in this layout."""
    bracket: Callable[[Sequence[PointOutputs]], str] = purchase_text
    legend: str = _PURCHASE
    """Legend of the text in ( ) behind a score."""
    remark: str = ""
    over_tasks: bool = False
    teacher_in_head: bool = False
    published: Callable[[PointRequest], float | None] = lambda _: None
    marks_frontier: bool = False


def lay_out(results: Results) -> tuple[Table, ...]:
    """Lay out the tables of a study: by task or over tasks, then the mean over tasks, then the tables of the paper.

    There is a mean where there are several tasks, and a table of the paper where it prints more numbers than stand beside ours.
    Every point has exactly one cell of its own; points without a place in the layout (N by rule in a table by N) are in a
    plain comparison at the end, and rivals too: what is after a published table keeps its published rows.
    """
    everything = point_outputs(results)
    rivals = [each for each in everything if each.request.is_rival]
    points = [each for each in everything if not each.request.is_rival]
    name = results.header.layout
    tables: list[Table] = []
    if name in ("match", "costs"):
        placed, rest = (lay_out_match if name == "match" else lay_out_costs)(points)
        tables += placed
    elif name in TABLE_LAYOUTS:
        layout = TABLE_LAYOUTS[name]
        fit: list[PointOutputs] = []
        rest = []
        for each in points:
            (fit if all(getattr(each.request, field) is not None for field in layout.needs) else rest).append(each)
        tables += _layout_tables(layout, fit, results.tasks)
    else:
        rest = points
    tables += plain_tables([*rest, *rivals], is_rest=bool(tables))
    if name not in ("match", "costs", "pool", "plain") and len(results.tasks) > 1:
        tables += across_tasks(points)
    return (*tables, *_paper_tables(name, results.tasks, tables))


def _layout_tables(layout: TableLayout, points: Sequence[PointOutputs], tasks: Sequence[str]) -> list[Table]:
    if layout.over_tasks:
        return [_table(layout, points, tasks)] if points else []
    of_task = by_task(points)
    return [_table(layout, of_task[task], [task]) for task in tasks if task in of_task]


_Cells = dict[tuple[Heading, Heading, tuple[Any, ...]], list[PointOutputs]]
"""The seeds of each cell by its position: heading of the block, heading of the column, values of the fields of the row."""
_RowKey = tuple[tuple[Any, ...], tuple[Any, ...]]
"""Order of the block of a row, and values of the fields of the row."""


def _table(layout: TableLayout, points: Sequence[PointOutputs], tasks: Sequence[str]) -> Table:
    taken = {*layout.block_fields, *layout.column_fields, "task", "task_order", "initial_usd", "pool"}
    row_fields = [name for name in points[0].fields if name not in taken]
    cells = _cells(layout, points, [name for name in row_fields if name not in layout.aside])
    row_fields.append("pool")
    if any(len({each.request.seed for each in seeds}) < len(seeds) for seeds in cells.values()):
        cells = _cells(layout, points, row_fields)
    heads = _row_headings(layout, cells, row_fields)
    items = []
    for (block, column, row), seeds in cells.items():
        seeds.sort(key=lambda each: each.request.seed)
        cell = score_cell(seeds, layout.bracket(seeds), layout.published(seeds[0].request))
        items.append(PlacedCell(heads[block.order, row], column, cell, block))
    if layout.marks_frontier:
        items = _with_frontier(items, [charge_of(seeds) for seeds in cells.values()])
    title = layout.title[0].upper() + layout.title[1:] if layout.over_tasks else f"{tasks[0]}: {layout.title}"
    table = pivot(title, layout.stub, items, tasks=tuple(tasks), marks_best=not layout.marks_frontier)
    return replace(table, notes=(*_legend(layout, table, points), *table.notes))


def _cells(layout: TableLayout, points: Sequence[PointOutputs], row_fields: Sequence[str]) -> _Cells:
    cells: _Cells = {}
    for each in points:
        row = tuple(each.fields[name] for name in row_fields)
        cells.setdefault((layout.block(each.fields), layout.column(each.fields), row), []).append(each)
    return cells


def _row_headings(layout: TableLayout, cells: _Cells, row_fields: Sequence[str]) -> dict[_RowKey, Heading]:
    """Return the heading of each row of each block; rows with equal headings also name the fields that differ."""
    rows: dict[_RowKey, list[PointOutputs]] = {}
    for (block, _, row), seeds in cells.items():
        rows.setdefault((block.order, row), []).extend(seeds)
    names = short_names([each.request for points in rows.values() for each in points])
    headings: dict[_RowKey, Heading] = {}
    alike: dict[tuple[Any, ...], list[_RowKey]] = {}
    for i, (key, points) in enumerate(rows.items()):
        request = points[0].request
        if layout.row is not None:
            head = layout.row(points[0].fields)
            headings[key], plain = Heading((*head.order, i), head.text), head.text
        else:
            plain = row_heading(request, names)
            teacher = teacher_score(points) if layout.teacher_in_head else None
            headings[key] = Heading((strategy_rank(request.variant), i), row_heading(request, names, teacher))
        alike.setdefault((key[0], plain), []).append(key)
    for keys in alike.values():
        differing = [name for name in row_fields if len({str(rows[key][0].fields[name]) for key in keys}) > 1]
        for key in keys:
            more = (_field_words(name, rows[key][0].fields[name], names) for name in differing)
            headings[key] = replace(headings[key], text=", ".join([headings[key].text, *more]))
    return headings


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
    if name == "test_rows":
        return f"{value:,} test rows"
    return f"{name} {names.get(value, value)}" if name in ("teacher", "student") else f"{name} {value}"


def _with_frontier(items: Sequence[PlacedCell], charges_usd: Sequence[float | None]) -> list[PlacedCell]:
    """Mark the cells on the Pareto frontier of charge and score, and those tied with it."""
    candidates = [cost_score(item.cell, usd) for item, usd in zip(items, charges_usd, strict=True)]
    pareto = frontier([each for each in candidates if each is not None])
    tied = set(pareto.tied)
    marked = []
    for item, candidate in zip(items, candidates, strict=True):
        on_front = candidate is not None and pareto.holds(candidate)
        is_tied = candidate in tied and not on_front
        marked.append(replace(item, cell=replace(item.cell, on_front=on_front, is_tied=is_tied)))
    return marked


def _legend(layout: TableLayout, table: Table, points: Sequence[PointOutputs]) -> list[str]:
    cells = list(table.cells)
    lines = [score_legend(points, cells)]
    shown = {sign for cell in cells for sign in ("[", "(") if sign in cell.bracket}
    if "[" in shown or any("[" in head for row in table.rows for head in row.heads):
        lines.append(_TEACHER)
    if "(" in shown:
        lines.append(layout.legend)
    lines += [layout.remark] if layout.remark else []
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


def _paper_tables(layout: str, tasks: Sequence[str], tables: Sequence[Table]) -> list[Table]:
    """Return the tables of the paper for a layout and tasks, unless all of their numbers stand beside ours."""
    own: list[Table | None] = []
    if layout == "budgets":
        own = [paper_tables.budget_table(task) for task in tasks]
    elif layout in _PAPER_TABLES:
        own = [_PAPER_TABLES[layout](tasks)]
    beside = {table.tasks: sum(cell.published is not None for cell in table.cells) for table in tables}
    tables_of_paper = [table for table in own if table is not None]
    return [t for t in tables_of_paper if sum(cell.value is not None for cell in t.cells) > beside.get(t.tasks, 0)]


_PAPER_TABLES: dict[str, Callable[[Sequence[str]], Table | None]] = {
    "self": paper_tables.self_table,
    "match": paper_tables.match_table,
    "costs": paper_tables.cost_table,
    "general": paper_tables.general_table,
}


# --- the layouts -----------------------------------------------------------------------------------------------------


def _n(fields: IdentityFields) -> str:
    return "N by rule" if fields["n_initial"] is None else f"N={thousands(fields['n_initial'])}"


def _n_block(fields: IdentityFields) -> Heading:
    initial = fields["initial_usd"]
    return Heading((fields["n_initial"], initial), f"{thousands(fields['n_initial'])} ({dollars(initial)})")


def _added_column(fields: IdentityFields) -> Heading:
    return Heading((fields["added_usd"],), f"+{dollars(fields['added_usd'])}", "Additional $")


def _total_column(fields: IdentityFields) -> Heading:
    return Heading(
        (fields["budget_usd"], fields["n_initial"] or 0), f"{dollars(fields['budget_usd'])} ({_n(fields)})", "Budget"
    )


def _task_total_column(fields: IdentityFields) -> Heading:
    head = _total_column(fields)
    return Heading((fields["task_order"], *head.order), head.text, fields["task"])


def _self_column(fields: IdentityFields) -> Heading:
    rows = f", {thousands(fields['n_unlabelled'])} rows"
    return Heading(
        (fields["task_order"], fields["n_initial"] or 0, fields["n_unlabelled"]), _n(fields) + rows, fields["task"]
    )


def _pool_column(fields: IdentityFields) -> Heading:
    return Heading((fields["n_unlabelled"],), thousands(fields["n_unlabelled"]), "Unlabelled rows")


def _labels_row(fields: IdentityFields) -> Heading:
    return Heading((fields["n_initial"],), f"{thousands(fields['n_initial'])} ({dollars(fields['initial_usd'])})")


def _with_teacher(points: Sequence[PointOutputs]) -> str:
    teacher = teacher_score(points)
    return "" if teacher is None else f"[{teacher:.1f}]"


def _with_charge(points: Sequence[PointOutputs]) -> str:
    charge = charge_of(points)
    return "" if charge is None else f"({TableCell(charge, unit='usd').text})"


def _with_teacher_and_purchase(points: Sequence[PointOutputs]) -> str:
    return " ".join(text for text in (_with_teacher(points), purchase_text(points)) if text)


def _by_total(title: str) -> TableLayout:
    """Return a layout of a row per strategy and models, and a column per total budget and N."""
    return TableLayout(
        title=title,
        stub=("Model",),
        column=_total_column,
        column_fields=("n_initial", "budget_usd"),
        aside=("added_usd", "n_unlabelled"),
        bracket=_with_teacher_and_purchase,
    )


TABLE_LAYOUTS: dict[str, TableLayout] = {
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
        marks_frontier=True,
        legend=_CHARGE,
        remark="0 unlabelled rows: annotation alone.",
    ),
    "initial": TableLayout(
        title="the first N labels under a fixed added budget (after Kang et al. 2023, Figure 3)",
        stub=("Added $", "Strategy"),
        block=lambda fields: Heading((fields["added_usd"],), f"+{dollars(fields['added_usd'])}"),
        block_fields=("added_usd",),
        column=lambda fields: Heading((fields["n_initial"],), _n(fields)),
        column_fields=("n_initial",),
        aside=("budget_usd", "n_unlabelled"),
        needs=("n_initial", "added_usd"),
        bracket=_with_teacher_and_purchase,
        published=paper_tables.score_of,
    ),
    "students": _by_total("sizes of the student (after Kang et al. 2023, Figure 4)"),
    "teachers": _by_total("sizes of the teacher (after Kang et al. 2023, Figure 5)"),
    "llm": _by_total("people, a language model, or distillation (after Kang et al. 2023, Figures 6 and 7)"),
}
"""Layouts by name; ``match`` and ``costs`` are in `outlay.report.cost_tables`, ``plain`` in `outlay.report.summary_tables`."""
