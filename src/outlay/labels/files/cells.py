"""Cells of a spreadsheet: what begins a formula is defused, and comes back as it was."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation

BYTE_ORDER_MARK = "\ufeff"
"""Mark of UTF-8, without which spreadsheets on Windows take a CSV file for Windows-1252."""

_STARTS = "=+\\-@\t\r\n＝＋－＠"
_FORMULA = re.compile(f"'*[{_STARTS}]")
_DEFUSED = re.compile(f"'+[{_STARTS}]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_LETTERS = 40
"""Longest number that is read."""


def defuse(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: an apostrophe goes before ``= + - @``, tab and line ends.

    So does one before apostrophes with such a sign behind them, and `fuse` takes one away: ``fuse(defuse(text)) == text``.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def fuse(cell: str) -> str:
    """Return the text that `defuse` made a cell of."""
    return cell[1:] if _DEFUSED.match(cell) else cell


def writable(text: str) -> str:
    """Return a text without what no text file may hold: a zero byte and half a surrogate pair become other signs."""
    return text.replace("\x00", "\u2400").encode("utf-8", "replace").decode("utf-8")


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """Return a CSV file for people: UTF-8 with a byte order mark, commas, every cell quoted and defused, CRLF (RFC 4180)."""
    stream = io.StringIO(newline="")
    table = csv.writer(stream, quoting=csv.QUOTE_ALL)
    table.writerows([defuse(writable(cell)) for cell in row] for row in (header, *rows))
    return (BYTE_ORDER_MARK + stream.getvalue()).encode()


def number_of(cell: str) -> Decimal | None:
    """Read a number as spreadsheets write it, with a point or a comma before its decimals; ``None`` for anything else."""
    if len(cell) > _LETTERS or not _NUMBER.fullmatch(cell):
        return None
    try:
        return Decimal(cell.replace(",", "."))
    except InvalidOperation:
        return None
