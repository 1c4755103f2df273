"""People who fill in files: what annotators and their spreadsheets do to the folder of an order."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Collection
from decimal import Decimal
from pathlib import Path
from typing import Any

from outlay.labels.files import FileSeller, Guideline
from outlay.labels.files.cells import fuse
from outlay.money.amounts import Price

LABELS = ("ham", "spam", "eggs")
PRICE = Price("label/x", "label", Decimal("0.129"), "here", None)
GUIDELINE = Guideline("mail", "classification", LABELS, "Say what it is.", {"spam": "advertising"})


def seller_in(folder: Path, guideline: Guideline = GUIDELINE, price: Price = PRICE, **settings: Any) -> FileSeller:
    """A seller whose orders lie in a folder of `folder`."""
    return FileSeller(folder / "orders", guideline, price, **settings)


def says(text: str) -> str:
    """What an annotator says who reads well."""
    return LABELS[int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) % 3]


def contrary(text: str) -> str:
    """What another annotator says, who differs on a fifth of the texts."""
    return LABELS[(LABELS.index(says(text)) + 1) % 3] if number_in(text) % 5 == 0 else says(text)


def number_in(text: str) -> int:
    """The number at the end of a text."""
    return int(text.rsplit(" ", 1)[1])


Answers = Callable[[str], str]
"""What an annotator writes about a text; nothing for one they leave out."""


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as it was given out."""
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))


def write_rows(path: Path, rows: list[dict[str, str]], **dialect: str) -> None:
    """Write rows as a plain program does."""
    stream = io.StringIO(newline="")
    table = csv.DictWriter(stream, list(rows[0]), **dialect)  # type: ignore[arg-type]
    table.writeheader()
    table.writerows(rows)
    path.write_bytes(stream.getvalue().encode())


def fill_in(path: Path, says: Answers, only: Collection[int] | None = None) -> int:
    """Fill in a file, or the rows at some places, by the text in the second column; return how many were answered."""
    rows = rows_of(path)
    n = 0
    for place, row in enumerate(rows):
        if only is None or place in only:
            row["label"] = says(fuse(list(row.values())[1]))
            n += bool(row["label"])
    write_rows(path, rows)
    return n


def folder_of(orders: Path) -> Path:
    """The only order of a seller."""
    (folder,) = orders.glob("order-*")
    return folder


def saved_by_libreoffice(
    data: bytes,
    *,
    delimiter: str = ",",
    mark: bool = False,
    all_quoted: bool = False,
    line_end: str = "\n",
    more_columns: int = 0,
    more_rows: int = 0,
) -> bytes:
    """What LibreOffice 7 writes of a CSV file that it opened: columns as wide as the widest row, quotes where they are needed,
    numbers in its own form (``007`` is 7, ``1.50`` is 1.5), ``TRUE`` for true, empty rows and columns at the end."""
    table = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    table = [[_as_cell(cell) for cell in row] + [""] * more_columns for row in table]
    table += [[""] * len(table[0])] * more_rows
    stream = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
    csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=line_end).writerows(table)
    return (b"\xef\xbb\xbf" if mark else b"") + stream.getvalue().encode()


def _as_cell(cell: str) -> str:
    """A cell as a spreadsheet shows it again."""
    if cell.isascii() and cell.strip().isdecimal():
        return str(int(cell))
    if cell.isascii() and cell.count(".") == 1 and cell.replace(".", "").isdecimal():
        return f"{float(cell):g}"
    return cell.upper() if cell in ("true", "false") else cell
