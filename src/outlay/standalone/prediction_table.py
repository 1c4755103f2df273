"""The file of predictions as a user reads it: JSON lines, CSV or TSV, with the columns of the rows that were answered."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlay.errors import UsageError
from outlay.standalone.inputs import TARGET
from outlay.standalone.output_dir import Document, json_lines
from outlay.standalone.prediction_file import CONFIDENCE, GOLD, PREDICTION
from outlay.tasks.readers import DELIMITER_OF
from outlay.text.text_file import suffix_of

PROBABILITIES = "probabilities"
_PROBABILITY = "p("
"""Beginning of the column of a label's probability in CSV: ``p(refund)``."""
STDIN = Path("-")
"""Name of standard input in place of a file."""


def default_output(file: Path) -> Path:
    """Return where predictions of a file go by default: beside it, as CSV or TSV where it is, else as JSON lines."""
    suffix = suffix_of(file)
    plain = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    return plain.with_suffix(f".predictions{suffix if suffix in DELIMITER_OF else '.jsonl'}")


def standard_input(text: str, folder: Path) -> Path:
    """Write what came by standard input into a file: JSON lines where its first line begins with ``{``, else a text a line."""
    path = folder / ("stdin.jsonl" if text.lstrip().startswith("{") else "stdin.txt")
    path.write_text(text, encoding="utf-8")
    return path


def check_output(out: Path) -> None:
    """Refuse a name that does not tell a format that predictions are written in.

    Raises:
        UsageError: one line with the formats.
    """
    if suffix_of(out) in (".parquet", ".json", ".txt") or out.suffix.lower() == ".gz":
        raise UsageError(f"predictions are written as .jsonl, .csv or .tsv, and --out {out} is none of them")


def table_of(lines: Sequence[Document], columns: Sequence[Mapping[str, Any]], out: Path) -> bytes:
    """Return the bytes of a file of predictions.

    ``lines``: source, prediction and what else is known of each row; ``columns``: those of the rows that were read, to be kept,
    empty where there are none; ``out``: its suffix tells the format.
    """
    if suffix_of(out) not in DELIMITER_OF:
        return json_lines([{**kept, **line} for kept, line in zip(columns, lines, strict=True)] if columns else lines)
    rows = [_flat(line, kept) for line, kept in zip(lines, columns or [{}] * len(lines), strict=True)]
    header = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, header, delimiter=DELIMITER_OF[suffix_of(out)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def other_columns(columns: Sequence[Mapping[str, Any]], used: Sequence[str], out: Path) -> Sequence[Mapping[str, Any]]:
    """Return the columns to keep of each row: all of them in CSV, in JSON lines those that were not read; none of none.

    ``used``: columns that were read.
    """
    if suffix_of(out) in DELIMITER_OF:
        return columns
    kept = [{name: value for name, value in row.items() if name not in {*used, TARGET}} for row in columns]
    return kept if any(kept) else []


def _flat(line: Document, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of CSV: the kept columns, or source and gold without any, then prediction and probabilities."""
    own = {name: line[name] for name in (PREDICTION, CONFIDENCE) if name in line}
    own |= {f"{_PROBABILITY}{label})": value for label, value in line.get(PROBABILITIES, {}).items()}
    if not kept:
        return {name: line[name] for name in ("source", GOLD) if name in line} | own
    return {name: _cell(value) for name, value in kept.items() if name not in own} | own


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
