"""Rows as they lie in files: JSON lines, CSV, TSV, Parquet, and sets of the ``datasets`` library.

A file that is absent, empty or breaks off in the middle is refused here, with its name and line.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from outlay.errors import DataError, MissingData
from outlay.sources import DataFile, Hub

SUFFIXES = (".jsonl", ".csv", ".tsv", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".parquet")
EXTRA = "pip install 'outlay[data]'"

_PARQUET_BATCH = 256
"""Rows of a Parquet file that are unpacked together where it is read as a stream."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: where it was read (``file:line``) and its columns."""

    origin: str
    columns: Mapping[str, Any]


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_file(file: DataFile, path: Path) -> list[Row]:
    """Read every row of a file, after its digest and before its number of rows are compared with what the task says.

    Raises:
        MissingData: The file is empty, breaks off, or has another sha256 or number of rows.
        DataError: Its suffix is unknown, or a row in its middle cannot be read.
    """
    if path.stat().st_size == 0:
        raise MissingData(f"{path} is empty; fetch it again or write rows into it")
    if file.sha256 is not None and (found := sha256_of(path)) != file.sha256:
        raise MissingData(f"{path} has sha256 {found}, the task says {file.sha256}; remove the file and fetch it again")
    numbered = _parquet(path) if path.suffix == ".parquet" else _text_rows(path)
    rows = [Row(f"{file.file}:{number}", columns) for number, columns in numbered]
    if not rows:
        raise MissingData(f"{path} holds no rows; fetch it again or write rows into it")
    if file.rows is not None and len(rows) != file.rows:
        raise MissingData(f"{path} holds {len(rows)} rows, the task says {file.rows}; fetch it again or correct `rows`")
    return rows


def stream_file(path: Path) -> Iterator[Row]:
    """Read the rows of a file one after the other, without holding all of them; as `read_file` otherwise.

    Raises:
        MissingData: The file is empty or breaks off.
        DataError: Its suffix is unknown, or a row in its middle cannot be read.
    """
    if path.stat().st_size == 0:
        raise MissingData(f"{path} is empty; fetch it again or write rows into it")
    numbered = _parquet_batches(path) if path.suffix == ".parquet" else _text_rows(path)
    return (Row(f"{path}:{number}", columns) for number, columns in numbered)


def _text_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    n_read = 0
    try:
        with _open_text(path) as stream:
            if kind == ".jsonl":
                rows = _json_lines(path, stream)
            elif kind in (".csv", ".tsv"):
                rows = _separated(path, stream, "," if kind == ".csv" else "\t")
            else:
                raise DataError(f"{path} has an unknown suffix; outlay reads {', '.join(SUFFIXES)}")
            for n_read, columns in rows:
                yield n_read, columns
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = f"{path} breaks off after line {n_read}: {str(error).rstrip('.')}"
        raise MissingData(f"{reason}; it looks half-written, fetch it again") from None
    except UnicodeDecodeError as error:
        raise MissingData(f"{path} is not UTF-8 text after line {n_read} ({error.reason}); save it as UTF-8") from None


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(path: Path, stream: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
        except json.JSONDecodeError as error:
            if next(stream, None) is None:
                raise MissingData(
                    f"{path} line {number} is cut off; the file looks half-written, fetch it again"
                ) from None
            raise DataError(f"{path} line {number} is not JSON: {error.msg}; correct or remove the line") from None
        if not isinstance(columns, dict):
            raise DataError(
                f"{path} line {number} holds {type(columns).__name__}, not an object; write one object a line"
            )
        yield number, columns


def _separated(path: Path, stream: TextIO, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                found = f"{path} line {reader.line_num} has {len(values)} columns, the header {len(header)}"
                raise MissingData(f"{found}; the line is cut off or badly quoted, correct it or fetch the file again")
            yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        reason = f"{path} line {reader.line_num} cannot be read ({error})"
        raise MissingData(f"{reason}; the file is half-written or badly quoted") from None


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    parquet = parquet_library(path)
    try:
        columns = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise _broken_parquet(path, error) from None
    return iter(enumerate(columns, start=1))


def _parquet_batches(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    parquet = parquet_library(path)
    try:
        with parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=_PARQUET_BATCH)
            yield from enumerate((columns for batch in batches for columns in batch.to_pylist()), start=1)
    except (OSError, ValueError) as error:
        raise _broken_parquet(path, error) from None


def parquet_library(path: Path) -> Any:
    """``pyarrow.parquet``, for a file that is read or written.

    Raises:
        DataError: It is not installed.
    """
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{path} is a Parquet file, which needs the pyarrow library: {EXTRA}") from None


def _broken_parquet(path: Path, error: Exception) -> MissingData:
    reason = str(error).splitlines()[0]
    return MissingData(f"{path} cannot be read as Parquet ({reason}); it looks half-written, fetch it again")


def read_hub(hub: Hub) -> list[Row]:
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingData(
            f"the hub cannot deliver {hub.name} split {hub.split}: {reason}; check name and network"
        ) from None
    classes = {name: getattr(feature, "names", None) for name, feature in table.features.items()}
    rows = []
    for number, columns in enumerate(table, start=1):
        named = {name: _class_name(value, classes.get(name)) for name, value in columns.items()}
        rows.append(Row(f"{hub.name}/{hub.split}:{number}", named))
    if not rows:
        raise MissingData(f"the hub's {hub.name} split {hub.split} holds no rows; choose another split")
    return rows


def _class_name(value: Any, names: list[str] | None) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
