"""Read delimited text, CSV and TSV: which character separates the columns, and whether quotes enclose fields.

Both are decided for the whole file, and a remark tells the decision where it could have been otherwise. Standard library only.

Quotes: a program that quotes puts every field that holds a quote into quotes and doubles those inside (RFC 4180). Files with tabs
are mostly written without quoting, so one is read as quoted only if it keeps to that rule and no quote swallows whole rows;
else each line is a row and quotes are characters.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from outlay.text.legible import repeats

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""Separators that are found from the header line; any other character has to be named."""
_N_NAMED = 3
_FIELD_LIMIT = 2**31 - 1
"""Longest field in characters: the csv module stops at 128 KB otherwise."""


class BadTable(ValueError):
    """Delimited text that cannot be read; ``str(e)`` says the line and the reason; ``is_cut``: it may be half-written."""

    def __init__(self, reason: str, *, is_cut: bool = False) -> None:
        super().__init__(reason)
        self.is_cut = is_cut


@dataclass(frozen=True, slots=True)
class Delimited:
    """Columns and rows of delimited text.

    Attributes:
        header: Names of the columns; those without a name are empty and left out of rows.
        rows: Number of the line a row ends in, and its values.
        notes: What was decided and could have been otherwise.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]
    notes: tuple[str, ...] = ()

    def records(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield each row as line number and values by column."""
        for number, values in self.rows:
            yield number, {name: value for name, value in zip(self.header, values, strict=True) if name}


def read_delimited(text: str, usual: str, delimiter: str | None = None) -> Delimited:
    """Read delimited text with a header line.

    Args:
        text: The whole file, line ends as they are.
        usual: The delimiter by the file's suffix.
        delimiter: The delimiter the user names; without it that of the header line.

    Raises:
        BadTable: Lines and header differ in their columns, quotes do not close, or a column has the name of another.
    """
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        return _read(text, usual, delimiter)
    finally:
        csv.field_size_limit(before)


def _read(text: str, usual: str, delimiter: str | None) -> Delimited:
    notes: list[str] = []
    if delimiter is None:
        delimiter = _find_delimiter(text, usual)
        if delimiter != usual:
            name = DELIMITERS[delimiter]
            notes.append(f"columns are separated by {name}, as in its first line; `delimiter` says it otherwise")
    rows, more = _rows_and_notes(text, delimiter)
    if not rows:
        return Delimited([], [], tuple(notes))
    header = rows[0][1]
    _check_header(header)
    return Delimited(header, rows[1:], (*notes, *more))


_Rows = list[tuple[int, list[str]]]


def _rows_and_notes(text: str, delimiter: str) -> tuple[_Rows, list[str]]:
    return _read_tabs(text) if delimiter == "\t" else _read_quoted(text, delimiter)


def _find_delimiter(text: str, usual: str) -> str:
    """Return the delimiter of the header line; of several, the one that all rows agree with, the usual one first."""
    line = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    there = [mark for mark in DELIMITERS if len(next(csv.reader([line], delimiter=mark), [])) > 1]
    if there in ([], [usual]):
        return usual
    for marks in ([mark for mark in there if _fits(text, mark)], there):
        if usual in marks:
            return usual
        if len(marks) == 1:
            return marks[0]
    names = " and ".join(DELIMITERS[mark] for mark in there)
    raise BadTable(f"line 1 has {names}, and either may separate its columns; name one with `delimiter`")


def _fits(text: str, mark: str) -> bool:
    try:
        _rows_and_notes(text, mark)
    except BadTable:
        return False
    return True


def _check_header(header: list[str]) -> None:
    if twice := repeats(name for name in header if name):
        shown = ", ".join(repr(name) for name in twice[:_N_NAMED])
        raise BadTable(f"line 1 names the column {shown} twice; give each column a name of its own")
    if not any(name.strip() for name in header):
        raise BadTable("line 1 names no column; write the names of the columns there")


def _read_quoted(text: str, delimiter: str) -> tuple[_Rows, list[str]]:
    """Read rows where quotes enclose fields; also return remarks on fields that span lines each of which could be a row."""
    rows = _quoted_rows(text, delimiter)
    starts = [1, *(number + 1 for number, _ in rows)]
    spanning = [(start, number) for start, (number, _) in zip(starts, rows, strict=False) if number > start]
    if not spanning or len(rows[0][1]) < 2:
        return rows, []
    plain = _plain_rows(text, delimiter)

    def could_be_rows(first: int, last: int) -> bool:
        lines = [plain[number] for number in range(first, last + 1) if number in plain]
        return len(lines) > 1 and all(len(fields) == len(rows[0][1]) for fields in lines)

    doubtful = [(first, last) for first, last in spanning if could_be_rows(first, last)]
    if not doubtful:
        return rows, []
    first, last = doubtful[0]
    more = f" (and {len(doubtful) - 1} more such)" if len(doubtful) > 1 else ""
    return rows, [f"lines {first} to {last} are one row, since a quote opens there and closes there{more}"]


def _read_tabs(text: str) -> tuple[_Rows, list[str]]:
    """Read tab-separated rows, quoted or not; see the rule above."""
    plain: _Rows = list(_plain_rows(text, "\t").items())
    n_columns = len(plain[0][1]) if plain else 0
    ragged = next(((number, fields) for number, fields in plain if len(fields) != n_columns), None)
    if '"' not in text:
        if ragged is not None:
            is_last = ragged[0] == plain[-1][0] and not text.endswith(("\n", "\r"))
            raise _ragged(ragged[0], len(ragged[1]), n_columns, is_last=is_last)
        return plain, []
    if ragged is not None:
        return _quoted_rows(text, "\t"), ["quotes around fields are taken off, as in CSV, and some fields span lines"]
    # Where all lines have as many columns, they are also the rows of CSV unless a field breaks its rule.
    odd = next((number for number, fields in plain if not all(map(_keeps_rule, fields))), None)
    if odd is None:
        return _quoted_rows(text, "\t"), ["quotes around fields are taken off, as in CSV"]
    if not any(value.startswith('"') for _, fields in plain for value in fields):
        return plain, []
    return plain, [f"each line is a row and quotes are characters (line {odd} has one that does not enclose a field)"]


def _plain_rows(text: str, delimiter: str) -> dict[int, list[str]]:
    """Return the fields of each line where quotes are characters, by its number; lines without any value are left out."""
    lines = dict(enumerate((line.rstrip("\r\n").split(delimiter) for line in io.StringIO(text, newline="")), start=1))
    header = next((number for number, fields in lines.items() if len(fields) > 1 or fields[0].strip()), 1)
    return {n: fields for n, fields in lines.items() if n == header or any(field.strip() for field in fields)}


def _keeps_rule(value: str) -> bool:
    """Return whether a field holds no quote, or is enclosed in quotes with those inside doubled."""
    is_enclosed = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in value[1:-1].replace('""', "")
    return '"' not in value or is_enclosed


def _quoted_rows(text: str, delimiter: str) -> _Rows:
    """Read rows by the rules of CSV; those without any value are left out, as blank lines are.

    Raises:
        BadTable: A line has other columns than the first, or quotes do not close.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: _Rows = []
    start = 1
    try:
        for values in reader:
            first, start = start, reader.line_num + 1
            if not any(value.strip() for value in values) and (rows or len(values) < 2):
                continue
            if rows and len(values) != len(rows[0][1]):
                n_lines = sum(1 for _ in io.StringIO(text, newline=""))
                is_last = reader.line_num == n_lines and not text.endswith(("\n", "\r"))
                raise _ragged(first, len(values), len(rows[0][1]), is_last=is_last)
            rows.append((reader.line_num, values))
    except csv.Error as error:
        opened = f"line {start} opens a quote that does not close" if "unexpected end" in str(error) else None
        reason = opened or f"line {start} is badly quoted ({error})"
        raise BadTable(reason, is_cut=opened is not None) from None
    return rows


def _ragged(number: int, n_found: int, n_columns: int, *, is_last: bool) -> BadTable:
    hint = ", and `delimiter` names what separates them" if n_columns == 1 else ""
    found = f"line {number} has {n_found} columns, the header {n_columns}{hint}"
    return BadTable(found, is_cut=is_last and n_found < n_columns)
