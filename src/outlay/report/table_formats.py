"""Formats of a table: Markdown, HTML and terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from outlay.report.table import Table, TableCell, TableRow, blocks
from outlay.report.values import ABSENT
from outlay.text.display import visible

if TYPE_CHECKING:
    from rich.console import RenderableType


def _is_bold(cell: TableCell) -> bool:
    return cell.is_best or cell.on_front


# --- Markdown --------------------------------------------------------------------------------------------------------


def render_markdown(table: Table) -> str:
    """Return a table as Markdown with its title and notes; a heading over several columns is repeated in each of them."""
    has_levels = len({column.over for column in table.columns}) > 1
    heads = [f"{c.over}: {c.text}" if has_levels and c.over and c.text != c.over else c.text for c in table.columns]
    lines = [
        f"### {table.title}",
        "",
        _markdown_line([*table.stub, *heads]),
        "|" + "---|" * len(table.stub) + "---:|" * len(heads),
    ]
    for row, texts in zip(table.rows, _stub_texts(table.rows), strict=True):
        lines.append(_markdown_line([*texts, *(_markdown_cell(cell) for cell in row.cells)]))
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: TableCell | None) -> str:
    if cell is None:
        return ABSENT
    value = f"**{cell.text}**" if _is_bold(cell) else cell.text
    return " ".join([value + cell.note_signs, *cell.beneath])


def _markdown_line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _stub_texts(rows: Sequence[TableRow]) -> list[tuple[str, ...]]:
    """Return the headings of each row; the heading of a block on its first row alone."""
    return [row.heads if row.starts_block or len(row.heads) == 1 else ("", *row.heads[1:]) for row in rows]


# --- HTML ------------------------------------------------------------------------------------------------------------


def render_html(table: Table) -> str:
    """Return a table as HTML with caption, scoped headings and notes; classes ``best``, ``front``, ``published``, ``beneath``."""
    body = "\n".join(_html_block(block) for block in blocks(table.rows))
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    kind = "laid published" if table.is_published else "laid"
    html = f'<table class="{kind}">\n<caption>{escape(table.title)}</caption>\n{_html_head(table)}\n{body}\n</table>'
    return f'<div class="wide">{html}</div>' + (f'\n<ul class="notes">{notes}</ul>' if notes else "")


def _html_head(table: Table) -> str:
    has_levels = any(column.over for column in table.columns)
    span = ' rowspan="2"' if has_levels else ""
    stub = "".join(f'<th scope="col"{span}>{escape(name)}</th>' for name in table.stub)
    names = "".join(f'<th scope="col">{escape(column.text)}</th>' for column in table.columns)
    if not has_levels:
        return f"<thead>\n<tr>{stub}{names}</tr>\n</thead>"
    over = "".join(
        f'<th scope="colgroup" colspan="{len(list(group))}">{escape(text)}</th>'
        for text, group in groupby(table.columns, key=lambda column: column.over)
    )
    return f"<thead>\n<tr>{stub}{over}</tr>\n<tr>{names}</tr>\n</thead>"


def _html_block(block: Sequence[TableRow]) -> str:
    lines = []
    for i, row in enumerate(block):
        heads = f'<th scope="row">{escape(row.heads[-1])}</th>'
        if len(row.heads) > 1 and i == 0:
            heads = f'<th scope="rowgroup" rowspan="{len(block)}">{escape(row.heads[0])}</th>{heads}'
        lines.append(f"<tr>{heads}{''.join(map(_html_cell, row.cells))}</tr>")
    return "<tbody>\n" + "\n".join(lines) + "\n</tbody>"


def _html_cell(cell: TableCell | None) -> str:
    if cell is None:
        return f"<td>{ABSENT}</td>"
    classes = " ".join(["best"] * cell.is_best + ["front"] * cell.on_front)
    value = f"<strong>{escape(cell.text)}</strong>" if _is_bold(cell) else escape(cell.text)
    numbers = f"<sup>{' '.join(map(str, cell.note_numbers))}</sup>" if cell.note_numbers else ""
    more = "".join(f'<br><span class="beneath">{escape(text)}</span>' for text in cell.beneath)
    attribute = f' class="{classes}"' if classes else ""
    return f"<td{attribute}>{value}{numbers}{more}</td>"


# --- a terminal ------------------------------------------------------------------------------------------------------


def render_rich(table: Table) -> RenderableType:
    """Return a table for a terminal, with the purchase under each score and lines between blocks."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    rich_table = RichTable(title=Text(visible(table.title)), title_justify="left")
    for name in table.stub:
        rich_table.add_column(Text(visible(name)), justify="left")
    has_levels = len({column.over for column in table.columns}) > 1
    for column in table.columns:
        heads = map(visible, [column.over] * has_levels + [column.text])
        rich_table.add_column(Text("\n".join(heads)), justify="right", overflow="fold")
    for i, (row, texts) in enumerate(zip(table.rows, _stub_texts(table.rows), strict=True)):
        if row.starts_block and i:
            rich_table.add_section()
        cells = []
        for cell in row.cells:
            text = Text(ABSENT)
            if cell is not None:
                text = Text(visible(cell.text + cell.note_signs), style="bold" if _is_bold(cell) else "")
                for line in cell.beneath:
                    text.append(f"\n{visible(line)}", style="not bold dim")
            cells.append(text)
        rich_table.add_row(*(Text(visible(text)) for text in texts), *cells)
    return Group(rich_table, *(Text(note, style="dim") for note in table.notes))
