"""Rows as they lie in files: JSON lines and lists, CSV, TSV, plain text, Parquet, and sets of the ``datasets`` library.

A file that is absent, empty, damaged or breaks off in the middle is refused here, with its name and line. What counts as a
missing value: ``null``, ``NaN``, ``Infinity``, and a key that is not there.
"""

from __future__ import annotations

import importlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from outlay.errors import DataError, MissingData, first_line
from outlay.storage.hashing import digest_of_file
from outlay.tasks.sources import DataFile, Hub
from outlay.text.delimited import BadTable, read_delimited
from outlay.text.json_text import BadJson, parse_json
from outlay.text.legible import listed, named, repeats
from outlay.text.text_file import open_text, refuse_zero_bytes, suffix_of, unreadable

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
"""Suffixes of files of rows, in upper or lower case; all but the last may be packed by gzip (``.gz`` behind)."""
EXTRA = "pip install 'outlay[data]'"

TEXT_COLUMN = "text"
"""Column of the lines of a ``.txt`` file."""
DELIMITER_OF = {".csv": ",", ".tsv": "\t"}
"""The usual character between columns, by suffix."""
_PARQUET_BATCH = 256
"""Rows of a Parquet file that are unpacked together where it is read as a stream."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row: where it was read (``file:line``) and its columns."""

    origin: str
    columns: Mapping[str, Any]

    def text(self, column: str) -> str | None:
        """Return a value as text, None where it is missing; numbers and truth values are written as JSON writes them.

        Raises:
            DataError: There is no such column, or it holds a list, an object or the like.
        """
        value = self.columns.get(column)
        if isinstance(value, str):
            return value
        if column not in self.columns:
            raise DataError(f"{self.origin} has no column {column!r}; its columns are {named(self.columns)}")
        if self.lacks(column):
            return None
        if isinstance(value, int | float):
            return json.dumps(value)
        kind = {"list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)
        raise DataError(f"{self.origin} column {column!r} holds {kind}, not a text; correct or remove the row")

    def lacks(self, column: str) -> bool:
        """Return whether a value is missing: null, NaN, Infinity, or no such column."""
        value = self.columns.get(column)
        return value is None or (isinstance(value, float) and not math.isfinite(value))

    def missing(self, column: str) -> DataError:
        """Return the error for a value that is missing, as it stands in the file: null, NaN or Infinity."""
        shown = json.dumps(self.columns.get(column))
        return DataError(
            f"{self.origin} column {column!r} holds {shown}, a missing value; write a text or remove the row"
        )


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of a file, and what was decided about its form that could have been otherwise, a sentence each."""

    rows: list[SourceRow]
    notes: tuple[str, ...] = ()


_Numbered = Iterator[tuple[int, dict[str, Any]]]


def read_file(file: DataFile, path: Path) -> FileRows:
    """Read every row of a file, after its digest and before its number of rows are compared with the task's.

    Raises:
        MissingData: The file is empty, damaged, breaks off, is no UTF-8 text, or has another sha256 or number of rows.
        DataError: Its suffix is unknown, or a row in its middle cannot be read.
    """
    _refuse_empty(path)
    if file.sha256 is not None and (found := digest_of_file(path)) != file.sha256:
        raise MissingData(f"{path} has sha256 {found}, the task says {file.sha256}; remove the file and fetch it again")
    notes: list[str] = []
    numbered = _rows_of(path, file.delimiter, notes)
    rows = [SourceRow(f"{file.file}:{number}", columns) for number, columns in numbered]
    if not rows:
        raise MissingData(f"{path} holds no rows; fetch it again or write rows into it")
    if file.rows is not None and len(rows) != file.rows:
        raise MissingData(f"{path} holds {len(rows)} rows, the task says {file.rows}; fetch it again or correct `rows`")
    return FileRows(rows, tuple(f"{file.file}: {note}" for note in notes))


def stream_file(path: Path) -> Iterator[SourceRow]:
    """Read the rows of a file one after the other, without holding all of them; as `read_file` otherwise.

    Raises:
        MissingData: The file is empty, damaged or breaks off.
        DataError: Its suffix is unknown, or a row in its middle cannot be read.
    """
    _refuse_empty(path)
    return (SourceRow(f"{path}:{number}", columns) for number, columns in _rows_of(path, None, []))


def _refuse_empty(path: Path) -> None:
    try:
        n_bytes = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from None
    if n_bytes == 0:
        raise MissingData(f"{path} is empty; fetch it again or write rows into it")


def _rows_of(path: Path, delimiter: str | None, notes: list[str]) -> _Numbered:
    """Read rows by the file's suffix; ``notes`` takes decisions that could have been otherwise."""
    kind = suffix_of(path)
    if delimiter is not None and kind not in DELIMITER_OF:
        raise DataError(f"`delimiter` is about .csv and .tsv files, and {path} is none; leave it out")
    if kind == ".parquet":
        yield from _parquet_batches(path)
        return
    if kind not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} (each also with .gz) and {SUFFIXES[-1]}"
        raise DataError(f"{path} has an unknown suffix; outlay reads {known}")
    with open_text(path) as stream:
        if kind in DELIMITER_OF:
            yield from _separated(path, stream, DELIMITER_OF[kind], delimiter, notes)
        else:
            read = {".jsonl": _json_lines, ".json": _json_list, ".txt": _lines}[kind]
            yield from read(path, stream)


def _json_lines(path: Path, stream: TextIO) -> _Numbered:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        refuse_zero_bytes(path, line, number)
        try:
            columns = parse_json(line)
        except BadJson as error:
            if error.at_end and next((rest for rest in stream if rest.strip()), None) is None:
                raise MissingData(
                    f"{path} line {number} is cut off; the file looks half-written, fetch it again"
                ) from None
            raise DataError(f"{path} line {number} {error}; correct or remove the line") from None
        yield number, _object(f"{path} line {number}", columns, "line")


def _json_list(path: Path, stream: TextIO) -> _Numbered:
    """Read a list of objects, or objects one a line, as the public files of Kang et al. 2023 are; numbered as they come."""
    text = stream.read()
    refuse_zero_bytes(path, text)
    if not text.lstrip().startswith("["):
        lines = _json_lines(path, io.StringIO(text, newline=""))
        yield from enumerate((columns for _, columns in lines), start=1)
        return
    try:
        whole = parse_json(text)
    except BadJson as error:
        if error.at_end:
            raise MissingData(f"{path} breaks off; it looks half-written, fetch it again") from None
        raise DataError(f"{path} {error}; write a JSON list of objects, or one object a line") from None
    for number, columns in enumerate(whole, start=1):
        yield number, _object(f"{path}:{number}", columns, "row")


def _object(where: str, columns: Any, each: str) -> dict[str, Any]:
    if not isinstance(columns, dict):
        raise DataError(f"{where} holds {type(columns).__name__}, not an object; write one object a {each}")
    return columns


def _lines(path: Path, stream: TextIO) -> _Numbered:
    """Read one text a line, in the column ``text``; blank lines are left out."""
    for number, line in enumerate(stream, start=1):
        refuse_zero_bytes(path, line, number)
        if line.strip():
            yield number, {TEXT_COLUMN: line.rstrip("\r\n")}


def _separated(path: Path, stream: TextIO, usual: str, delimiter: str | None, notes: list[str]) -> _Numbered:
    text = stream.read()
    refuse_zero_bytes(path, text)
    try:
        table = read_delimited(text, usual, delimiter)
    except BadTable as error:
        if error.is_cut:
            raise MissingData(f"{path} {error}; it looks half-written or badly quoted, fetch or correct it") from None
        raise DataError(f"{path} {error}; correct the line or its quotes") from None
    notes += table.notes
    yield from table.records()


def _parquet_batches(path: Path) -> _Numbered:
    parquet = parquet_library(path)
    try:
        with parquet.ParquetFile(path) as file:
            if twice := repeats(file.schema_arrow.names):
                raise DataError(f"{path} names the column {listed(twice)} twice; give each column a name of its own")
            batches = file.iter_batches(batch_size=_PARQUET_BATCH)
            yield from enumerate((columns for batch in batches for columns in batch.to_pylist()), start=1)
    except DataError:
        raise
    except Exception as error:
        raise MissingData(
            f"{path} cannot be read as Parquet ({first_line(error)}); it looks half-written, fetch it again"
        ) from None


def parquet_library(path: Path) -> Any:
    """Import ``pyarrow.parquet``, for a file that is read or written.

    Raises:
        DataError: It is not installed.
    """
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{path} is a Parquet file, which needs the pyarrow library: {EXTRA}") from None


def read_hub(hub: Hub) -> list[SourceRow]:
    """Read a split of a set of the ``datasets`` library; class numbers become the names its features give.

    Raises:
        DataError: The library is not installed.
        MissingData: The library cannot deliver the set, or it has no rows.
    """
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        raise DataError(f"data set {hub.name} comes from the hub, which needs the datasets library: {EXTRA}") from None
    try:
        table = library.load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision)
    except Exception as error:
        raise MissingData(
            f"the hub cannot deliver {hub.name} split {hub.split}: {first_line(error)}; check name and network"
        ) from None
    classes = {name: getattr(feature, "names", None) for name, feature in table.features.items()}
    rows = [
        SourceRow(
            f"{hub.name}/{hub.split}:{number}",
            {name: _class_name(value, classes.get(name)) for name, value in columns.items()},
        )
        for number, columns in enumerate(table, start=1)
    ]
    if not rows:
        raise MissingData(f"the hub's {hub.name} split {hub.split} holds no rows; choose another split")
    return rows


def _class_name(value: Any, names: list[str] | None) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
