"""Export of a targets folder to one file of log-probabilities, with the field names of OpenAI's API."""

from __future__ import annotations

import gzip
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import UnknownModel, UsageError
from outlay.standalone.inputs import TaskRow
from outlay.standalone.logprob_formats import HEADER, TOKEN_ID, UNKNOWN_LOGPROB
from outlay.standalone.output_dir import Document
from outlay.standalone.runtime import StepReport
from outlay.standalone.targets_dir import TargetsFolder
from outlay.storage.files import replacing
from outlay.tasks.readers import parquet_library
from outlay.text.text_file import is_packed, suffix_of

if TYPE_CHECKING:
    from outlay.train.targets.logprobs import PositionLogprobs, TargetRow
    from outlay.train.targets.sparse_logits import SparsityRule

    Name = Callable[[int], str]
    Write = Callable[[Sequence[Document]], None]

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def export(folder: Path, out: Path, *, overwrite: bool = False) -> StepReport:
    """Write the targets of ``folder`` to ``out``, block by block.

    Each row has its ``source``, ``answer`` and, where it is known, ``gold``; ``content`` holds its positions, each ``{token,
    token_id, logprob, top_logprobs, logsumexp}`` with natural log-probabilities at T = 1 over the full vocabulary. A stored logit
    is its ``logprob`` plus ``logsumexp`` at T = 1, so that nothing is lost on the way back; a token that was generated but not
    kept has the log-probability -9999. ``padding`` has the positions behind the answer, where they were kept. The first row
    carries the folder's index as ``outlay``.

    Raises:
        OutlayError: no targets, a damaged block, a suffix that is unknown, or a file that is there already.
    """
    began = time.monotonic()
    check_suffix(out, "--out")
    if out.exists() and not overwrite:
        raise UsageError(f"--out {out} is there already; choose another --out, or add --overwrite")
    stored = TargetsFolder.open(folder)
    rows = stored.rows()
    name = _names(stored)
    n_positions = n_done = 0
    with replacing(out) as temporary, _writer(temporary, out, stored) as write:
        from outlay.train.targets.logprobs import target_rows

        for block in stored.blocks():
            part = rows[n_done : n_done + len(block)]
            lines = [
                _line(row, target, block.rule, name, stored if n_done + at == 0 else None)
                for at, (row, target) in enumerate(zip(part, target_rows(block), strict=True))
            ]
            write(lines)
            n_done += len(part)
            n_positions += int(block.n_real.sum())
    facts = {"file": str(out), "kind": stored.kind, "n_rows": n_done, "n_positions": n_positions}
    facts["n_bytes"] = out.stat().st_size
    return StepReport("targets export", str(out), facts, seconds=round(time.monotonic() - began, 3))


def check_suffix(path: Path, option: str) -> None:
    """Refuse a file with another suffix than JSON lines or Parquet.

    Raises:
        UsageError: an unknown suffix.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise UsageError(f"{option} {path} has an unknown suffix; name a file that ends in {', '.join(SUFFIXES)}")


def _line(row: TaskRow, target: TargetRow, terms: SparsityRule, name: Name, first: TargetsFolder | None) -> Document:
    """Return one row of the file; ``first``: the targets folder, for its first row."""
    line: Document = {**row.to_json(), "answer": target.answer}
    if target.positions:
        positions = [_position(each, terms, name) for each in target.positions]
        line["content"] = positions[: target.n_real]
        if target.n_real < len(positions):
            line["padding"] = positions[target.n_real :]
    if first is not None:
        line[HEADER] = {**{key: each for key, each in first.index.items() if key != "blocks"}, "terms": asdict(terms)}
    return line


def _position(given: PositionLogprobs, terms: SparsityRule, name: Name) -> Document:
    logprob_of = dict(zip(given.classes, given.logprobs, strict=True))
    temperatures = [1.0, *(t for t in terms.temperatures if t != 1.0)]
    return {
        **_token(given.unit, logprob_of.get(given.unit, UNKNOWN_LOGPROB), name),
        "top_logprobs": [_token(number, logprob, name) for number, logprob in logprob_of.items()],
        "logsumexp": {f"{t:g}": each for t, each in zip(temperatures, given.logsumexp or (), strict=True)},
    }


def _token(number: int, logprob: float, name: Name) -> Document:
    return {"token": name(number), "token_id": number, "logprob": logprob}


def _names(stored: TargetsFolder) -> Name:
    """Return the function that names units: label, tag or token text; ``token_id:N`` without a tokenizer."""
    labels = stored.form.labels
    if stored.kind == "classes":
        return lambda number: labels[number]
    if stored.kind == "tags":
        tags = ("O", *(f"{part}-{label}" for label in labels for part in "BI"))
        return lambda number: tags[number]
    if stored.kind == "text":
        return str
    from outlay.train.targets.logprobs import vocabulary_of

    student, base = stored.index["student"]
    for ref, own in ((student, base), (stored.index["teacher"], None)):
        if ref is None:
            continue
        try:
            vocabulary = vocabulary_of(ref, own)
        except UnknownModel:
            continue
        return lambda number: vocabulary.text(number) or f"{TOKEN_ID}{number}"
    return lambda number: f"{TOKEN_ID}{number}"


def _writer(path: Path, out: Path, stored: TargetsFolder) -> AbstractContextManager[Write]:
    """Return a context that gives a function to write rows to ``path``, in the format of ``out``."""
    return _parquet_writer(path, stored) if suffix_of(out) == ".parquet" else _text_writer(path, is_packed(out))


@contextmanager
def _text_writer(path: Path, packs: bool) -> Iterator[Write]:
    with path.open("wb") as raw:
        # Without a time of day in it, equal targets make equal files.
        packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if packs else None
        with io.TextIOWrapper(packed or raw, encoding="utf-8", newline="") as stream:
            yield lambda lines: stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


@contextmanager
def _parquet_writer(path: Path, stored: TargetsFolder) -> Iterator[Write]:
    parquet = parquet_library(path)
    import pyarrow

    schema = _schema([] if stored.kind == "text" else [f"{t:g}" for t in next(stored.blocks()).temperatures])
    with parquet.ParquetWriter(path, schema) as writer:

        def write(lines: Sequence[Document]) -> None:
            flat = [{**line, HEADER: json.dumps(line[HEADER])} if HEADER in line else line for line in lines]
            writer.write_table(pyarrow.Table.from_pylist(flat, schema=schema))

        yield write


def _schema(temperatures: Sequence[str]) -> Any:
    """Return the columns of a Parquet file: those of a JSON line, the header as JSON."""
    import pyarrow as pa

    token = [("token", pa.string()), ("token_id", pa.int32()), ("logprob", pa.float64())]
    sums = [("logsumexp", pa.struct([(t, pa.float64()) for t in temperatures]))] if temperatures else []
    positions = pa.list_(pa.struct([*token, ("top_logprobs", pa.list_(pa.struct(token))), *sums]))
    texts = [(name, pa.string()) for name in ("source", "gold", "answer", HEADER)]
    return pa.schema([*texts, ("segments", pa.list_(pa.string())), ("content", positions), ("padding", positions)])
