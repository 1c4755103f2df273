"""A laid-out table as values: cells with their intervals, rows with their headings, notes; how each value is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from outlay.errors import DataError
from outlay.report.scores import Covers, with_interval
from outlay.report.values import ABSENT, MINUS, money, signed

Unit = Literal["score", "difference", "usd", "words"]
"""How a cell's value is written: one decimal, one decimal with its sign, dollars; ``words`` says it in its own text."""

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class CellContent:
    """One cell. A score is a mean over seeds, 0-100, with its 95 % interval where there is one."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: Unit = "score"
    words: str = ""
    """What stands there where there is no number, and the whole text under ``words``."""
    bracket: str = ""
    """What the number was bought with, brackets included: "(+384)", "(54h / 19K)", "[84.5]" for a teacher's score."""
    published: float | None = None
    """The number that the paper prints for the same request of its own, in the same unit."""
    status: str = "ok"
    """``ok`` where at least one seed has a score; else ``na`` or ``failed``."""
    n_ok: int = 0
    n_seeds: int = 0
    reasons: tuple[str, ...] = ()
    """Why seeds have no score, each beginning with its status; then where a score means less than its number."""
    marks: tuple[int, ...] = ()
    """Numbers of the notes that give the reasons."""
    covers: Covers | None = None
    """Whom the interval of a test score speaks of."""
    is_best: bool = False
    on_front: bool = False
    is_tied: bool = False
    """Whether something as cheap scores as much or more, but the intervals meet."""
    points: tuple[str, ...] = ()
    """Ids of the points whose home this cell is; a point has exactly one in all tables of a study. Derived cells have none."""

    @property
    def text(self) -> str:
        """The value with its interval: "78.0 ± 0.6", "$1,980.00 [$1,600.00, $2,450.00]", "na"."""
        if self.unit == "words" or (self.words and self.value is None):
            return self.words
        if self.value is None:
            return ABSENT if self.status == "ok" else self.status
        if self.unit == "usd":
            ends = "" if self.low is None or self.high is None else f" [{money(self.low)}, {money(self.high)}]"
            return money(self.value) + ends
        text = signed(self.value) if self.unit == "difference" else f"{self.value:.1f}".replace("-", MINUS)
        return text if self.low is None or self.high is None else with_interval(text, self.value, self.low, self.high)

    @property
    def marks_text(self) -> str:
        """Numbers of its notes, raised: "¹ ³"."""
        return " ".join(str(mark).translate(_SUPERSCRIPTS) for mark in self.marks)

    @property
    def beneath(self) -> tuple[str, ...]:
        """What stands under or behind the value: the bracket, the seeds where some have no score, the published number."""
        texts = [self.bracket] if self.bracket else []
        if self.is_tied:
            texts.append("tied")
        if 0 < self.n_ok < self.n_seeds:
            texts.append(f"{self.n_ok} of {self.n_seeds} seeds")
        if self.published is not None:
            texts.append("paper " + replace(self, value=self.published, low=None, high=None, words="").text)
        return tuple(texts)


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, and the one that spans it and its neighbours."""

    text: str
    over: str = ""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row: one heading per column of the stub, one cell (or nothing) per column."""

    heads: tuple[str, ...]
    cells: tuple[CellContent | None, ...]
    starts_block: bool = False
    """Whether it is the first of its block, the rows that share all headings but the last."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: numbers first, drawn by `outlay.report.table_formats`."""

    title: str
    stub: tuple[str, ...]
    """Headings of the columns that hold the rows' headings."""
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    """Legends, reasons by number, sources."""
    tasks: tuple[str, ...] = ()
    is_published: bool = False
    """Whether it holds the paper's numbers alone."""

    @property
    def cells(self) -> Iterator[CellContent]:
        """Every cell, row by row."""
        return (cell for row in self.rows for cell in row.cells if cell is not None)


# --- putting cells in their places -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Head:
    """A heading with its place: headings are sorted by ``order``, equal orders are one heading."""

    order: tuple[Any, ...]
    text: str
    over: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """A cell and where it stands."""

    block: Head
    row: Head
    column: Head
    cell: CellContent


def pivot(
    title: str, stub: tuple[str, ...], items: Sequence[Item], *, tasks: tuple[str, ...] = (), marks_best: bool = True
) -> Table:
    """Put cells in rows and columns; number the reasons of those without a score.

    Args:
        title: of the table.
        stub: heading of the blocks and of the rows, or of the rows alone where there is one block.
        items: the cells; two may not share a place.
        tasks: whose points they are.
        marks_best: mark the best score of each column of a block, as printed, where it is not the only one.

    Raises:
        DataError: two cells have one place.
    """
    places: dict[tuple[Any, ...], dict[tuple[Any, ...], Item]] = {}
    for item in items:
        row = places.setdefault((item.block.order, item.row.order), {})
        if item.column.order in row:
            raise DataError(
                f"{title}: two cells for {item.row.text!r} at {item.column.text!r}; name what tells them apart"
            )
        row[item.column.order] = item
    columns = sorted({item.column.order: item.column for item in items}.values(), key=lambda head: head.order)
    rows: list[TableRow] = []
    block: tuple[Any, ...] | None = None
    for place in sorted(places):
        found = places[place]
        first = next(iter(found.values()))
        cells = tuple(found[head.order].cell if head.order in found else None for head in columns)
        heads = (first.block.text, first.row.text)[-len(stub) :]
        rows.append(TableRow(heads, cells, starts_block=place[0] != block))
        block = place[0]
    laid = Table(title, stub, tuple(Column(head.text, head.over) for head in columns), tuple(rows), tasks=tasks)
    return numbered(_with_best(laid) if marks_best else laid)


def _with_best(laid: Table) -> Table:
    rows: list[TableRow] = []
    for block in blocks(laid.rows):
        best = []
        for i in range(len(laid.columns)):
            cells = [cell for row in block if (cell := row.cells[i]) is not None and cell.unit == "score"]
            values = [round(cell.value, 1) for cell in cells if cell.value is not None]
            best.append(max(values) if len(set(values)) > 1 else None)
        rows += [replace(row, cells=tuple(map(_marked_best, row.cells, best))) for row in block]
    return replace(laid, rows=tuple(rows))


def _marked_best(cell: CellContent | None, best: float | None) -> CellContent | None:
    if cell is None or cell.value is None or best is None or cell.unit != "score":
        return cell
    return replace(cell, is_best=round(cell.value, 1) == best)


def blocks(rows: Sequence[TableRow]) -> list[list[TableRow]]:
    """The rows block by block."""
    found: list[list[TableRow]] = []
    for row in rows:
        if row.starts_block or not found:
            found.append([])
        found[-1].append(row)
    return found


def numbered(laid: Table) -> Table:
    """The table with a numbered note for each distinct reason, in the order in which they are read."""
    numbers: dict[str, int] = {}
    rows = []
    for row in laid.rows:
        cells: list[CellContent | None] = []
        for cell in row.cells:
            if cell is None or not cell.reasons:
                cells.append(cell)
                continue
            cells.append(replace(cell, marks=tuple(numbers.setdefault(r, len(numbers) + 1) for r in cell.reasons)))
        rows.append(replace(row, cells=tuple(cells)))
    notes = (f"{str(number).translate(_SUPERSCRIPTS)} {reason}" for reason, number in numbers.items())
    return replace(laid, rows=tuple(rows), notes=(*laid.notes, *notes))
