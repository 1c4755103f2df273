"""Formats of a table: Markdown, HTML and terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from outlay.report.table import Table, TableCell, TableRow, blocks
from outlay.report.values import ABSENT
from outlay.text.display import visible, width

if TYPE_CHECKING:
    from rich.console import RenderableType


def _is_bold(cell: TableCell) -> bool:
    return cell.is_best or cell.on_front


UNBROKEN_LETTERS = 24
"""Maximum letters of a text that stays on one line; a longer one is prose, which may break between words."""


def _is_unbroken(text: str) -> bool:
    return len(text) <= UNBROKEN_LETTERS


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
    """Return a table as HTML with caption, scoped headings and notes, in a frame that scrolls.

    Classes: ``kept`` (headings of rows stay in sight), ``published``; of cells ``best``, ``front``, ``prose``; ``beneath``.
    """
    body = "\n".join(_html_block(block) for block in blocks(table.rows))
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    # A column of names that stays in sight while the others are scrolled.
    kind = "laid kept" if len(table.stub) == 1 else "laid"
    kind += " published" if table.is_published else ""
    html = f'<table class="{kind}">\n<caption>{escape(table.title)}</caption>\n{_html_head(table)}\n{body}\n</table>'
    # Reached by the keyboard, so that what is wider than the screen can be scrolled without a mouse.
    frame = f'<div class="wide" tabindex="0" role="group" aria-label="{escape(table.title)}">{html}</div>'
    return frame + (f'\n<ul class="notes">{notes}</ul>' if notes else "")


def _html_head(table: Table) -> str:
    has_levels = any(column.over for column in table.columns)
    span = ' rowspan="2"' if has_levels else ""
    stub = "".join(f'<th scope="col" class="stub"{span}>{escape(name)}</th>' for name in table.stub)
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
    classes = " ".join(["best"] * cell.is_best + ["front"] * cell.on_front + ["prose"] * (not _is_unbroken(cell.text)))
    value = f"<strong>{escape(cell.text)}</strong>" if _is_bold(cell) else escape(cell.text)
    numbers = f"<sup>{' '.join(map(str, cell.note_numbers))}</sup>" if cell.note_numbers else ""
    more = "".join(f'<br><span class="beneath">{escape(text)}</span>' for text in cell.beneath)
    attribute = f' class="{classes}"' if classes else ""
    return f"<td{attribute}>{value}{numbers}{more}</td>"


# --- a terminal ------------------------------------------------------------------------------------------------------


_FRAME = 3
"""Cells of a terminal that a column needs beside its text; a table needs one more."""
_STUB_SHARE = 0.5
"""Share of a terminal that the headings of rows may take in a table of several parts; more only for their longest words."""


def render_rich(table: Table) -> RenderableType:
    """Return a table for a terminal, with the purchase under each score and lines between blocks.

    Where it is wider than the terminal it is printed in parts, one under another: the headings of the rows with as many columns
    as fit, so that no value is broken or cut.
    """
    from rich.console import Console, ConsoleOptions, Group, RenderResult
    from rich.text import Text

    class Fitted:
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            stub, columns = _spans_of(table)
            if sum(span.full + _FRAME for span in (*stub, *columns)) < options.max_width:
                yield _rich_table(table, range(len(columns)))
                return
            parts = _parts(columns, stub, options.max_width)
            if len(parts) > 1:
                share = int(options.max_width * _STUB_SHARE / len(stub)) - _FRAME
                stub = [_Span(min(span.full, max(span.least, share)), span.full) for span in stub]
                parts = _parts(columns, stub, options.max_width)
            for i, part in enumerate(parts):
                widths = _widths(stub, [columns[j] for j in part], options.max_width)
                yield _rich_table(table, part, widths, is_first=i == 0)

    return Group(Fitted(), *(Text(note, style="dim") for note in table.notes))


@dataclass(frozen=True, slots=True)
class _Span:
    """The cells of a terminal that a column needs at least, with prose and headings broken between words, and in full."""

    least: int
    full: int


def _spans_of(table: Table) -> tuple[list[_Span], list[_Span]]:
    """Return the spans of the headings of rows, and of the columns."""
    stub = [_span([], [name, *(row.heads[i] for row in table.rows)]) for i, name in enumerate(table.stub)]
    columns = []
    for i, column in enumerate(table.columns):
        cells = [cell for row in table.rows if (cell := row.cells[i]) is not None]
        lines = [ABSENT, *(line for cell in cells for line in (cell.text + cell.note_signs, *cell.beneath))]
        prose = [line for line in lines if not _is_unbroken(line)]
        columns.append(_span([line for line in lines if _is_unbroken(line)], [column.text, column.over, *prose]))
    return stub, columns


def _span(unbroken: Sequence[str], prose: Sequence[str]) -> _Span:
    words = [word for text in prose for word in text.split()]
    return _Span(
        max((width(visible(text)) for text in (*unbroken, *words)), default=1),
        max((width(visible(text)) for text in (*unbroken, *prose)), default=1),
    )


def _parts(columns: Sequence[_Span], stub: Sequence[_Span], n_cells: int) -> list[list[int]]:
    """Return the indices of the columns of each part, which stand side by side behind the headings of rows; one at least."""
    room = n_cells - 1 - sum(span.least + _FRAME for span in stub)
    parts: list[list[int]] = []
    left = 0
    for i, span in enumerate(columns):
        if not parts or span.least + _FRAME > left:
            parts.append([])
            left = room
        parts[-1].append(i)
        left -= span.least + _FRAME
    return parts


def _widths(stub: Sequence[_Span], columns: Sequence[_Span], n_cells: int) -> list[int]:
    """Return the widths of the columns of a part: what the least of all leave goes to the headings of rows, then to all alike."""
    spans = [*stub, *columns]
    widths = [span.least for span in spans]
    left = n_cells - 1 - sum(least + _FRAME for least in widths)
    for among in (range(len(stub)), range(len(spans))):
        while left > 0 and (short := [i for i in among if widths[i] < spans[i].full]):
            for i in short[:left]:
                widths[i] += 1
            left -= len(short[:left])
    return widths


def _rich_table(
    table: Table, columns: Sequence[int], widths: Sequence[int] = (), *, is_first: bool = True
) -> RenderableType:
    """Return some columns of a table behind the headings of its rows; ``widths``: of all of them, where rich may not choose."""
    from rich.table import Table as RichTable
    from rich.text import Text

    rich_table = RichTable(title=Text(visible(table.title)) if is_first else None, title_justify="left")
    for name in table.stub:
        rich_table.add_column(Text(visible(name)), justify="left", overflow="fold")
    has_levels = len({column.over for column in table.columns}) > 1
    for column in (table.columns[i] for i in columns):
        heads = map(visible, [column.over] * has_levels + [column.text])
        rich_table.add_column(Text("\n".join(heads)), justify="right", overflow="fold")
    for rich_column, n_cells in zip(rich_table.columns, widths, strict=False):
        rich_column.width = n_cells
    for i, (row, texts) in enumerate(zip(table.rows, _stub_texts(table.rows), strict=True)):
        if row.starts_block and i:
            rich_table.add_section()
        cells = []
        for cell in (row.cells[i] for i in columns):
            text = Text(ABSENT)
            if cell is not None:
                text = Text(visible(cell.text + cell.note_signs), style="bold" if _is_bold(cell) else "")
                for line in cell.beneath:
                    text.append(f"\n{visible(line)}", style="not bold dim")
            cells.append(text)
        rich_table.add_row(*(Text(visible(text)) for text in texts), *cells)
    return rich_table
