"""A laid-out table as Markdown, as HTML and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from outlay.report.table import CellContent, Table, TableRow, blocks
from outlay.report.values import ABSENT
from outlay.text.display import visible

if TYPE_CHECKING:
    from rich.console import RenderableType


def cell_text(cell: CellContent | None) -> str:
    """Value, marks and what stands beneath, on one line: "78.3 ± 0.6 (+500) paper 53.1"."""
    if cell is None:
        return ABSENT
    return " ".join([cell.text + cell.marks_text, *cell.beneath])


def _is_bold(cell: CellContent) -> bool:
    return cell.is_best or cell.on_front


# --- Markdown --------------------------------------------------------------------------------------------------------


def render_markdown(laid: Table) -> str:
    """A heading, the table and its notes as a list. Headings over several columns go into each of them where they differ."""
    has_levels = len({column.over for column in laid.columns}) > 1
    heads = [f"{c.over}: {c.text}" if has_levels and c.over and c.text != c.over else c.text for c in laid.columns]
    lines = [
        f"### {laid.title}",
        "",
        _markdown_line([*laid.stub, *heads]),
        "|" + "---|" * len(laid.stub) + "---:|" * len(heads),
    ]
    for row, texts in zip(laid.rows, _stub_texts(laid.rows), strict=True):
        lines.append(_markdown_line([*texts, *(_markdown_cell(cell) for cell in row.cells)]))
    if laid.notes:
        lines += ["", *(f"- {note}" for note in laid.notes)]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: CellContent | None) -> str:
    if cell is None:
        return ABSENT
    value = f"**{cell.text}**" if _is_bold(cell) else cell.text
    return " ".join([value + cell.marks_text, *cell.beneath])


def _markdown_line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _stub_texts(rows: Sequence[TableRow]) -> list[tuple[str, ...]]:
    """The headings of each row; that of a block is said once."""
    return [row.heads if row.starts_block or len(row.heads) == 1 else ("", *row.heads[1:]) for row in rows]


# --- HTML ------------------------------------------------------------------------------------------------------------


def render_html(laid: Table) -> str:
    """The table as HTML: caption, scoped headings, notes; classes ``best``, ``front``, ``published``, ``beneath``."""
    body = "\n".join(_html_block(block) for block in blocks(laid.rows))
    notes = "".join(f"<li>{escape(note)}</li>" for note in laid.notes)
    kind = "laid published" if laid.is_published else "laid"
    table = f'<table class="{kind}">\n<caption>{escape(laid.title)}</caption>\n{_html_head(laid)}\n{body}\n</table>'
    return f'<div class="wide">{table}</div>' + (f'\n<ul class="notes">{notes}</ul>' if notes else "")


def _html_head(laid: Table) -> str:
    has_levels = any(column.over for column in laid.columns)
    span = ' rowspan="2"' if has_levels else ""
    stub = "".join(f'<th scope="col"{span}>{escape(name)}</th>' for name in laid.stub)
    names = "".join(f'<th scope="col">{escape(column.text)}</th>' for column in laid.columns)
    if not has_levels:
        return f"<thead>\n<tr>{stub}{names}</tr>\n</thead>"
    over = "".join(
        f'<th scope="colgroup" colspan="{len(list(group))}">{escape(text)}</th>'
        for text, group in groupby(laid.columns, key=lambda column: column.over)
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


def _html_cell(cell: CellContent | None) -> str:
    if cell is None:
        return f"<td>{ABSENT}</td>"
    classes = " ".join(["best"] * cell.is_best + ["front"] * cell.on_front)
    value = f"<strong>{escape(cell.text)}</strong>" if _is_bold(cell) else escape(cell.text)
    marks = f"<sup>{' '.join(map(str, cell.marks))}</sup>" if cell.marks else ""
    more = "".join(f'<br><span class="beneath">{escape(text)}</span>' for text in cell.beneath)
    attribute = f' class="{classes}"' if classes else ""
    return f"<td{attribute}>{value}{marks}{more}</td>"


# --- a terminal ------------------------------------------------------------------------------------------------------


def render_rich(laid: Table) -> RenderableType:
    """The table for a terminal: what was bought stands under each score, blocks are set apart by lines."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(title=Text(visible(laid.title)), title_justify="left")
    for name in laid.stub:
        table.add_column(Text(visible(name)), justify="left")
    has_levels = len({column.over for column in laid.columns}) > 1
    for column in laid.columns:
        heads = map(visible, [column.over] * has_levels + [column.text])
        table.add_column(Text("\n".join(heads)), justify="right", overflow="fold")
    for i, (row, texts) in enumerate(zip(laid.rows, _stub_texts(laid.rows), strict=True)):
        if row.starts_block and i:
            table.add_section()
        cells = []
        for cell in row.cells:
            text = Text(ABSENT)
            if cell is not None:
                text = Text(visible(cell.text + cell.marks_text), style="bold" if _is_bold(cell) else "")
                for line in cell.beneath:
                    text.append(f"\n{visible(line)}", style="not bold dim")
            cells.append(text)
        table.add_row(*(Text(visible(text)) for text in texts), *cells)
    return Group(table, *(Text(note, style="dim") for note in laid.notes))
