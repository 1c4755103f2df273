"""Open text files as people have them: UTF-8 with or without a byte order mark, packed by gzip or not.

A file that is no UTF-8 text is refused with what it likely is: UTF-16, Windows-1252, a packed file without the suffix, a file
that breaks off. Standard library only.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO

from outlay.errors import DataError, MissingData

_HEAD_BYTES = 4096
_MAGIC = {
    b"\x1f\x8b": "a gzip file; add .gz to its name",
    b"PK\x03\x04": "a ZIP file, as Excel writes; save its table as CSV",
    b"PAR1": "a Parquet file; end its name in .parquet",
    b"%PDF": "a PDF; save its text as UTF-8",
    b"\xd0\xcf\x11\xe0": "an Excel file; save its table as CSV",
    b"SQLite format 3\x00": "a SQLite database; save its table as CSV",
}
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_PACKED_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
"""Errors raised by reading a damaged gzip file."""


def is_packed(path: Path) -> bool:
    """Return whether a file is packed by gzip, by its name."""
    return path.name.lower().endswith(".gz")


def suffix_of(path: Path) -> str:
    """Return the suffix in lower case, without ``.gz``: ``.csv`` of ``Rows.CSV.GZ``."""
    name = path.name.lower()
    return Path(name[: -len(".gz")] if is_packed(path) else name).suffix


def read_text(path: Path) -> str:
    """Read a whole text file; line ends stay as they are.

    Raises:
        MissingData: It is absent, a folder, not readable, damaged, or no UTF-8 text; one line that says what it likely is.
    """
    with open_text(path) as stream:
        text = stream.read()
    refuse_zero_bytes(path, text)
    return text


def refuse_zero_bytes(path: Path, text: str, first_line: int = 1) -> None:
    """Refuse text with zero bytes: mostly a file in UTF-16, else one that a crash or a copy damaged.

    Raises:
        MissingData: There is one; says the line, counted from ``first_line``.
    """
    if "\x00" not in text:
        return
    if wide := _wide(_head(path, packed=False)):
        raise MissingData(
            f"{path} is not UTF-8 text: it looks like {wide}; save it as UTF-8 (iconv -f {wide} -t UTF-8)"
        )
    number = first_line + text[: text.index("\x00")].count("\n")
    raise MissingData(f"{path} line {number} holds a zero byte; the file looks damaged, fetch it again")


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file for reading, line ends as they are; an error while it is read becomes one line.

    Raises:
        MissingData: As `read_text`.
    """
    try:
        try:
            with _open_bytes(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
                yield stream
        except UnicodeDecodeError:
            raise MissingData(f"{path} is not UTF-8 text: {_what_it_is(path)}") from None
    except _PACKED_ERRORS as error:  # also where a damaged file looked like another encoding
        raise MissingData(_where_it_breaks(path, error)) from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> MissingData:
    """Say why the system does not give a file."""
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return MissingData(f"{path} cannot be read: {reason}; check the path")


def _where_it_breaks(path: Path, error: Exception) -> str:
    """Say behind which line a packed file cannot be read any more."""
    if _head(path, packed=True)[:2] != b"\x1f\x8b":
        return f"{path} breaks off after line 0: it is not packed by gzip; take .gz off its name or pack it"
    n_lines = 0
    # Line by line: a larger read that fails gives nothing of what came before.
    with suppress(*_PACKED_ERRORS), _open_bytes(path) as raw:
        for _ in raw:
            n_lines += 1
    reason = str(error).rstrip(".")
    return f"{path} breaks off after line {n_lines}: {reason}; it looks half-written or damaged, fetch it again"


def _open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if is_packed(path) else path.open("rb")  # type: ignore[return-value]


def _head(path: Path, *, packed: bool) -> bytes:
    """Return the first bytes, as they lie (``packed``) or unpacked."""
    with path.open("rb") if packed else _open_bytes(path) as raw:
        return raw.read(_HEAD_BYTES)


def _what_it_is(path: Path) -> str:
    """Say what a file that is no UTF-8 likely is, and the way out."""
    head = _head(path, packed=False)
    if found := next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None):
        return f"it is {found}"
    if wide := _wide(head):
        return f"it looks like {wide}; save it as UTF-8 (iconv -f {wide} -t UTF-8)"
    number, line, start, is_last, has_utf8 = _first_bad_line(path)
    byte = line[start]
    if is_last and _is_cut(line[start:], at_least=1 if has_utf8 else 2):
        return f"line {number} breaks off inside a character; it looks half-written, fetch it again"
    text = line.decode("cp1252", errors="replace")  # of one character a byte; a few bytes stand for none
    if "\ufffd" in text or "\x00" in text or not text[start].isprintable():
        return f"line {number} has the byte 0x{byte:02X}; save it as UTF-8"
    is_windows = any(0x80 <= b < 0xA0 for b in line)
    name, code = ("Windows-1252", "WINDOWS-1252") if is_windows else ("Latin-1 (or Windows-1252)", "LATIN1")
    return (
        f"it looks like {name}: line {number} has the byte 0x{byte:02X}, {text[start]!r} there; "
        f"save it as UTF-8 (iconv -f {code} -t UTF-8)"
    )


def _wide(head: bytes) -> str | None:
    """Return the two- or four-byte encoding a file seems to have: by its mark, or by zeros in every second byte."""
    for mark, name in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return name
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) * 4 < len(head):
        return None
    return "UTF-16LE" if odd > even else "UTF-16BE"


def _first_bad_line(path: Path) -> tuple[int, bytes, int, bool, bool]:
    """Return number, bytes and offset of the first byte that is no UTF-8; if its line is the last; if UTF-8 came before."""
    has_utf8 = False
    with _open_bytes(path) as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                has_utf8 = has_utf8 or not line[: error.start].isascii()
                return number, line, error.start, not raw.read(1), has_utf8
            has_utf8 = has_utf8 or not line.isascii()
    raise DataError(f"{path} changed while it was read; run the command again")


def _is_cut(rest: bytes, at_least: int) -> bool:
    """Return whether bytes are the beginning of one character in UTF-8 without its end, ``at_least`` so many of it."""
    first = rest[0]
    length = 2 if 0xC2 <= first < 0xE0 else 3 if 0xE0 <= first < 0xF0 else 4 if 0xF0 <= first < 0xF5 else 0
    return at_least <= len(rest) < length and all(0x80 <= byte < 0xC0 for byte in rest[1:])
