"""Import of another program's answers and log-probabilities into a targets folder, as `outlay teach` writes one."""

from __future__ import annotations

import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlay.errors import DataError, MissingData
from outlay.spec import TaskSpec
from outlay.standalone.import_request import ImportOptions, ImportRequest
from outlay.standalone.inputs import CUSTOM_ID, SOURCE, DataReader, TaskRow, check_each_once, rows_digest, some_of
from outlay.standalone.logprob_formats import Record, is_failure, read_record
from outlay.standalone.output_dir import OutputDir
from outlay.standalone.runtime import StepReport
from outlay.standalone.targets_dir import block_name, index_of, write_index
from outlay.storage.hashing import digest_of
from outlay.tasks.readers import stream_file
from outlay.text.listener import Listener


def import_targets(options: ImportOptions, listener: Listener) -> StepReport:
    """Write the answers in a file as targets into a folder, in blocks.

    Raises:
        OutlayError: unsuitable file, rows, student or output; one line.
    """
    began = time.monotonic()
    if not options.file.is_file():
        raise MissingData(f"{options.file} is not there; check the path")
    reader = DataReader(options.data)
    failed: list[str] = []
    records = _records(options, failed)
    first = next(records, None)
    if first is None:
        failures = f"no answers: all {len(failed):,} of its requests failed; ask them again"
        raise MissingData(f"{options.file} holds {failures if failed else 'no rows; write answers into it'}")
    request = ImportRequest.of(options, reader, first)
    rows = None if options.data.file is None else _RowsFile.read(Path(options.data.file), reader)
    document = request.to_json(None if rows is None else rows_digest(rows.rows))
    output = OutputDir.folder(options.out)
    summary = output.check(document, overwrite=options.overwrite)
    if summary is not None:
        return StepReport.of_finished(summary)
    output.open(document)
    with output.lock():
        listener.begin(f"import {options.file}")

        def show(n_done: int) -> None:
            speed = n_done / max(time.monotonic() - began, 1e-9)
            listener.progress(n_done, n_done, f"{speed:,.0f} rows/s")

        try:
            pairing = _Pairing(reader, options.file, rows, failed)
            written = _write(request, output, itertools.chain([first], records), pairing, show)
            unanswered = pairing.check()
        except BaseException:
            # A file that is corrected is another request: it finds the folder free.
            shutil.rmtree(output.work, ignore_errors=True)
            raise
        for name in written.digests:
            (output.work / name).replace(output.out / name)
        about = {**request.about, "n_rows": len(written.rows)}
        index = index_of(request.form, request.kind, request.settings, written.digests, about)
        facts = write_index(output, written.rows, index)
        counts = [*_sentences(written.counts, request.form), *unanswered]
        seconds = round(time.monotonic() - began, 3)
        report = StepReport("targets import", str(output.out), facts, counts, seconds=seconds)
        output.finish(report.to_json())
        return report


@dataclass(frozen=True, slots=True)
class _Written:
    """Blocks in the work folder: sha256 by file name, their rows, and counts for the report."""

    digests: Mapping[str, str]
    rows: Sequence[TaskRow]
    counts: Counter[str]


def _write(
    request: ImportRequest,
    output: OutputDir,
    records: Iterator[Record],
    row_of: Callable[[Record], TaskRow],
    show: Callable[[int], None],
) -> _Written:
    """Write the blocks into the work folder, with one at a time in memory."""
    from outlay.train.targets.logprobs import block_of

    counts: Counter[str] = Counter()
    digests: dict[str, str] = {}
    rows: list[TaskRow] = []
    while part := list(itertools.islice(records, request.options.block_rows)):
        rows += map(row_of, part)
        answers = request.target_rows(part, counts)
        data = block_of(request.kind, answers, request.terms, is_own=request.own is not None).to_bytes()
        name = block_name(len(digests))
        output.write(output.work / name, data)
        digests[name] = digest_of(data)
        counts["rows"] += len(part)
        show(len(rows))
    return _Written(digests, rows, counts)


def _records(options: ImportOptions, failed: list[str]) -> Iterator[Record]:
    """Yield the answers of a file; adds the names of failed requests of a batch to ``failed``."""
    source, target = options.data.source_column, options.data.target_column
    for row in stream_file(options.file):
        if is_failure(row.columns):
            failed.append(str(row.columns[CUSTOM_ID]))
        else:
            yield read_record(row.columns, row.origin, source_column=source, target_column=target)


@dataclass(frozen=True, slots=True)
class _RowsFile:
    """File of the rows that were asked, with their places by ``custom_id``."""

    path: Path
    rows: Sequence[TaskRow]
    place_of: Mapping[str, int]

    @classmethod
    def read(cls, path: Path, reader: DataReader) -> _RowsFile:
        """Read the rows of a file; refuse ids that only some rows have, or that two rows have."""
        found = reader.table(path)
        rows = reader.rows_of(path, found, n=None, needs_target=False)
        ids = [str(each) for row in found if (each := row.columns.get(CUSTOM_ID)) is not None]
        if 0 < len(ids) < len(rows):
            raise DataError(
                f"{len(rows) - len(ids):,} of the {len(rows):,} rows of {path} have no {CUSTOM_ID}; give them one"
            )
        check_each_once(ids, f"the rows of {path} have")
        return cls(path, rows, {each: at for at, each in enumerate(ids)})


class _Pairing:
    """Pairing of answers with rows, checked afterwards for rows answered twice or never."""

    def __init__(self, reader: DataReader, file: Path, asked: _RowsFile | None, failed: Sequence[str]) -> None:
        self._reader, self._file, self._asked, self._failed = reader, file, asked, failed
        self._ids: list[str] = []
        self._unknown: list[str] = []
        self._n = 0

    def __call__(self, record: Record) -> TaskRow:
        self._n += 1
        if record.custom_id is not None:
            self._ids.append(record.custom_id)
        if self._asked is None:
            return self._own_row(record)
        path, rows = self._asked.path, self._asked.rows
        if self._asked.place_of and self._ids:
            place = self._asked.place_of.get(record.custom_id or "")
            if place is None and record.custom_id is not None:
                self._unknown.append(record.custom_id)
            # Any row serves here: `check` refuses an answer without a row of its own once all are read.
            return rows[place or 0]
        if self._n > len(rows):
            raise DataError(f"{record.origin} is answer {self._n}, and {path} holds {len(rows)} rows; pair them")
        return rows[self._n - 1]

    def check(self) -> list[str]:
        """Return remarks once all answers are read; refuse answers to no row, two to one, or in order fewer than rows."""
        check_each_once(self._ids, f"{self._file} answers")
        asked, given = self._asked, set(self._ids)
        missing = [name for name in dict.fromkeys(self._failed) if name not in given]
        if asked is not None and asked.place_of and self._ids:
            self._check_ids(asked)
            missing = [name for name in asked.place_of if name not in given]
        elif asked is not None and self._n != len(asked.rows):
            raise DataError(
                f"{self._file} holds {self._n} answers for the {len(asked.rows)} rows of {asked.path}; pair them one to one"
            )
        n_failed = len(set(self._failed) & set(missing))
        why = f" ({n_failed:,} failed)" if n_failed else ""
        return [f"{len(missing):,} requests have no answer{why}: {some_of(missing)}"] if missing else []

    def _check_ids(self, asked: _RowsFile) -> None:
        if self._n != len(self._ids):
            raise DataError(
                f"{self._n - len(self._ids):,} of the {self._n:,} answers of {self._file} have no {CUSTOM_ID}; give them one"
            )
        if self._unknown:
            raise DataError(
                f"{self._file} answers {len(self._unknown):,} {CUSTOM_ID} that no row of {asked.path} has: "
                f"{some_of(self._unknown)}; is it the file that was asked?"
            )

    def _own_row(self, record: Record) -> TaskRow:
        if record.source is None or not record.source.strip():
            column = self._reader.data.source_column
            also = "" if column != SOURCE else " or 'prompt'"
            raise DataError(
                f"{record.origin} has no source in column {column!r}{also}; name its column with --source-column, or the rows "
                "that were asked with --file"
            )
        segments = record.segments or self._reader.segments(record.source)
        return TaskRow(record.source, segments, record.gold, record.origin)


def _sentences(counts: Counter[str], form: TaskSpec) -> list[str]:
    """Return a sentence for each count that is not zero."""
    sentences = {
        "unknown": f"{counts['unknown']:,} of {counts['listed']:,} listed tokens are none of the student's, or several, and "
        "belong to the tail",
        "closed": f"{counts['closed']:,} of {counts['rows']:,} answers came without a closing token and were given one",
        "cut": f"{counts['cut']:,} of {counts['rows']:,} answers were longer than {form.max_target_tokens} tokens and were cut",
        "labels": f"{counts['labels']:,} labels were not listed and have the most that was left for them",
    }
    return [sentence for name, sentence in sentences.items() if counts[name]]
