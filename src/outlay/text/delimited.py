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
    read = _read_tabs if delimiter == "\t" else _read_quoted
    rows, more = read(text, delimiter)
    if not rows:
        return Delimited([], [], tuple(notes))
    header = rows[0][1]
    _check_header(header)
    return Delimited(header, rows[1:], (*notes, *more))


_Rows = list[tuple[int, list[str]]]


def _find_delimiter(text: str, usual: str) -> str:
    """Return the delimiter of the header line; where several stand in it, the one that all rows agree with, the usual
    one first.
    """
    line = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    there = [mark for mark in DELIMITERS if len(next(csv.reader([line], delimiter=mark), [])) > 1]
    if usual in there and len(there) == 1:
        return usual
    fitting = [mark for mark in there if _fits(text, mark)]
    if usual in fitting or not there:
        return usual
    if len(fitting) == 1:
        return fitting[0]
    if len(there) == 1:
        return there[0]
    if usual in there:
        return usual
    marks = " and ".join(DELIMITERS[mark] for mark in there)
    raise BadTable(f"line 1 has {marks}, and either may separate its columns; name one with `delimiter`")


def _fits(text: str, mark: str) -> bool:
    try:
        (_read_tabs if mark == "\t" else _read_quoted)(text, mark)
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
    plain = _plain_lines(text, delimiter)

    def could_be_rows(first: int, last: int) -> bool:
        lines = [fields for fields in plain[first - 1 : last] if fields is not None]
        return len(lines) > 1 and all(len(fields) == len(rows[0][1]) for fields in lines)

    doubtful = [(first, last) for first, last in spanning if could_be_rows(first, last)]
    if not doubtful:
        return rows, []
    first, last = doubtful[0]
    more = f" (and {len(doubtful) - 1} more such)" if len(doubtful) > 1 else ""
    return rows, [f"lines {first} to {last} are one row, since a quote opens there and closes there{more}"]


def _read_tabs(text: str, delimiter: str) -> tuple[_Rows, list[str]]:
    """Read tab-separated rows, quoted or not; see the rule above."""
    plain: _Rows = [
        (i, fields) for i, fields in enumerate(_plain_lines(text, delimiter), start=1) if fields is not None
    ]
    n_columns = len(plain[0][1]) if plain else 0
    ragged = next(((number, fields) for number, fields in plain if len(fields) != n_columns), None)
    if '"' not in text:
        if ragged is not None:
            is_last = ragged[0] == plain[-1][0] and not text.endswith(("\n", "\r"))
            raise _ragged(ragged[0], len(ragged[1]), n_columns, is_last=is_last)
        return plain, []
    try:
        quoted: _Rows | None = _quoted_rows(text, delimiter)
        problem = None
    except BadTable as error:
        quoted, problem = None, error
    if ragged is None:
        keeps_rule = all(_is_plain(value) or _is_enclosed(value) for _, fields in plain for value in fields)
        if quoted is not None and keeps_rule:
            enclosed = any(_is_enclosed(value) for _, fields in plain for value in fields)
            return quoted, ["quotes around fields are taken off, as in CSV"] if enclosed else []
        if not any(value.startswith('"') for _, fields in plain for value in fields):
            return plain, []
        line = next((n for n, fields in plain if not all(_is_plain(v) or _is_enclosed(v) for v in fields)), 1)
        return plain, [
            f"each line is a row and quotes are characters (line {line} has one that does not enclose a field)"
        ]
    if quoted is not None:
        return quoted, ["quotes around fields are taken off, as in CSV, and some fields span lines"]
    assert problem is not None
    raise problem


def _plain_lines(text: str, delimiter: str) -> list[list[str] | None]:
    """Return the fields of every line where quotes are characters; None for a line without any value."""
    lines = [line.rstrip("\r\n").split(delimiter) for line in io.StringIO(text, newline="")]
    header = next((i for i, fields in enumerate(lines) if len(fields) > 1 or fields[0].strip()), 0)
    return [fields if i == header or any(field.strip() for field in fields) else None for i, fields in enumerate(lines)]


def _is_plain(value: str) -> bool:
    return '"' not in value


def _is_enclosed(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] == '"' and '"' not in value[1:-1].replace('""', "")


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
