"""Tables as values: cells with intervals, rows with headings, notes; and the text of each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from outlay.errors import DataError
from outlay.report.scores import Covers, with_interval
from outlay.report.values import ABSENT, MINUS, money, signed

Unit = Literal["score", "difference", "usd", "words"]
"""Format of a cell's value: one decimal, one decimal with a sign, dollars, or the text in ``words``."""

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class TableCell:
    """A cell of a table; a score is a mean over seeds, 0-100, with its 95 % interval where there is one."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: Unit = "score"
    words: str = ""
    """Text in place of an absent number; the whole text where the unit is ``words``."""
    bracket: str = ""
    """Text of the purchase, brackets included: "(+384)", "(54h / 19K)", "[84.5]" for a teacher's score."""
    published: float | None = None
    """The number that the paper prints for the same task and budget, in the same unit."""
    status: str = "ok"
    """``ok`` where at least one seed has a score; else ``na`` or ``failed``."""
    n_ok: int = 0
    n_seeds: int = 0
    reasons: tuple[str, ...] = ()
    """Reasons of seeds without a score, each beginning with its status; then warnings about scores."""
    note_numbers: tuple[int, ...] = ()
    """Numbers of the notes under the table that give the reasons."""
    covers: Covers | None = None
    """Population of the interval of a test score."""
    is_best: bool = False
    on_front: bool = False
    is_tied: bool = False
    """True where a cell that is as cheap scores as much or more, but the intervals overlap."""
    points: tuple[str, ...] = ()
    """Ids of the points of this cell; each point is in exactly one cell of a study's tables. Derived cells have none."""

    @property
    def text(self) -> str:
        """The value with its interval as text: "78.0 ± 0.6", "$1,980.00 [$1,600.00, $2,450.00]", "na"."""
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
    def printed_score(self) -> float | None:
        """The score as the table prints it, with one decimal; None for any other cell."""
        return round(self.value, 1) if self.unit == "score" and self.value is not None else None

    @property
    def note_signs(self) -> str:
        """Numbers of the cell's notes as superscripts: "¹ ³"."""
        return " ".join(str(number).translate(_SUPERSCRIPTS) for number in self.note_numbers)

    @property
    def beneath(self) -> tuple[str, ...]:
        """Texts under or behind the value: the purchase, the number of seeds where some have no score, the paper's number."""
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
    """A column: its heading, and a heading over it and its neighbours."""

    text: str
    over: str = ""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table: one heading per column of the stub, one cell or None per column."""

    heads: tuple[str, ...]
    cells: tuple[TableCell | None, ...]
    starts_block: bool = False
    """True for the first row of a block; rows of a block share all headings but the last."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as values, written as text by `outlay.report.table_formats`."""

    title: str
    stub: tuple[str, ...]
    """Headings of the first columns, which hold the headings of the rows."""
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    """Lines under the table: legends, numbered reasons, sources."""
    tasks: tuple[str, ...] = ()
    is_published: bool = False
    """True for a table of the paper's numbers alone."""

    @property
    def cells(self) -> Iterator[TableCell]:
        """Every cell of the table, row by row."""
        return (cell for row in self.rows for cell in row.cells if cell is not None)


# --- making a table of cells -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading with its sort key ``order``; headings with equal keys are one heading."""

    order: tuple[Any, ...]
    text: str
    over: str = ""


def task_heading(task: str, tasks: Sequence[str]) -> Heading:
    """Return the heading of a task, in the order of some tasks."""
    return Heading((tasks.index(task),), task)


@dataclass(frozen=True, slots=True)
class PlacedCell:
    """A cell with the headings of its row, column and block."""

    row: Heading
    column: Heading
    cell: TableCell
    block: Heading = Heading((), "")
    """Heading of the block; a table without blocks is one block."""


def row_cells(row: Heading, cells: Mapping[str, TableCell | None], block: Heading) -> list[PlacedCell]:
    """Place the cells of a row by the text over their columns, in the order of the mapping; None leaves a place empty."""
    columns = enumerate(cells.items())
    return [PlacedCell(row, Heading((i,), text), cell, block) for i, (text, cell) in columns if cell is not None]


def pivot(
    title: str,
    stub: tuple[str, ...],
    items: Sequence[PlacedCell],
    *,
    tasks: tuple[str, ...] = (),
    marks_best: bool = True,
) -> Table:
    """Arrange cells in blocks, rows and columns of a table; number the reasons of cells without a score.

    Args:
        title: title of the table.
        stub: heading of the blocks and of the rows, or of the rows alone where there is one block.
        items: the cells with their headings, at most one cell per row and column.
        tasks: tasks of the cells.
        marks_best: mark the best printed score of each column within a block, where scores differ.

    Raises:
        DataError: two cells have the same row and column.
    """
    places: dict[tuple[Any, ...], dict[tuple[Any, ...], PlacedCell]] = {}
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
    table = Table(title, stub, tuple(Column(head.text, head.over) for head in columns), tuple(rows), tasks=tasks)
    return numbered(_with_best(table) if marks_best else table)


def _with_best(table: Table) -> Table:
    rows: list[TableRow] = []
    for block in blocks(table.rows):
        columns = map(_mark_best, zip(*(row.cells for row in block), strict=True))
        rows += [replace(row, cells=cells) for row, cells in zip(block, zip(*columns, strict=True), strict=True)]
    return replace(table, rows=tuple(rows))


def _mark_best(column: Sequence[TableCell | None]) -> list[TableCell | None]:
    """Mark the best printed scores of a column of a block, where scores differ."""
    scores = {score for cell in column if cell is not None and (score := cell.printed_score) is not None}
    if len(scores) < 2:
        return list(column)
    return [cell and replace(cell, is_best=cell.printed_score == max(scores)) for cell in column]


def blocks(rows: Sequence[TableRow]) -> list[list[TableRow]]:
    """Return rows grouped by block."""
    found: list[list[TableRow]] = []
    for row in rows:
        if row.starts_block or not found:
            found.append([])
        found[-1].append(row)
    return found


def numbered(table: Table) -> Table:
    """Return a table with a numbered note for each distinct reason of its cells, in reading order."""
    numbers: dict[str, int] = {}

    def with_numbers(cell: TableCell | None) -> TableCell | None:
        if cell is None or not cell.reasons:
            return cell
        return replace(
            cell, note_numbers=tuple(sorted(numbers.setdefault(each, len(numbers) + 1) for each in cell.reasons))
        )

    rows = tuple(replace(row, cells=tuple(map(with_numbers, row.cells))) for row in table.rows)
    notes = (f"{str(number).translate(_SUPERSCRIPTS)} {reason}" for reason, number in numbers.items())
    return replace(table, rows=rows, notes=(*table.notes, *notes))
