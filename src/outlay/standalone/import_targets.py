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
from outlay.standalone.import_request import Importing, ImportRequest
from outlay.standalone.inputs import CUSTOM_ID, SOURCE, DataReader, TaskRow, check_each_once, rows_digest, some_of
from outlay.standalone.logprob_formats import Record, is_failure, read_record
from outlay.standalone.output_dir import OutputDir, json_lines
from outlay.standalone.runtime import StepReport
from outlay.standalone.targets_dir import ANSWERS, INDEX, ROWS, answer_lines, block_name, index_of, kept_of
from outlay.storage.hashing import digest_of
from outlay.tasks.readers import stream_file
from outlay.text.listener import Listener


def import_targets(asked: Importing, listener: Listener) -> StepReport:
    """Write the answers in a file as targets into a folder, in blocks.

    Raises:
        OutlayError: unsuitable file, rows, student or place; one line.
    """
    began = time.monotonic()
    if not asked.file.is_file():
        raise MissingData(f"{asked.file} is not there; check the path")
    inputs = DataReader(asked.asked)
    failed: list[str] = []
    records = _records(asked, failed)
    first = next(records, None)
    if first is None:
        failures = f"no answers: all {len(failed):,} of its requests failed; ask them again"
        raise MissingData(f"{asked.file} holds {failures if failed else 'no rows; write answers into it'}")
    question = ImportRequest.of(asked, inputs, first)
    rows = None if asked.rows_file is None else _RowsFile.read(asked.rows_file, inputs)
    request = question.request(None if rows is None else rows_digest(rows.rows))
    home = OutputDir.folder(asked.out)
    summary = home.look(request, overwrite=asked.overwrite)
    if summary is not None:
        return StepReport.again(summary)
    home.open(request)
    with home.alone():
        listener.begin(f"import {asked.file}")
        try:
            told = _Telling(listener, began)
            pairing = _Pairing(inputs, asked.file, rows, failed)
            made = _write(question, home, itertools.chain([first], records), pairing, told)
            unanswered = pairing.check()
        except BaseException:
            # A file that is corrected is another request: it finds the folder free.
            shutil.rmtree(home.work, ignore_errors=True)
            raise
        return _finish(question, home, made, unanswered, began)


@dataclass(frozen=True, slots=True)
class _Made:
    """Written blocks (sha256 by name) with their rows, answers and counts."""

    blocks: Mapping[str, str]
    rows: Sequence[TaskRow]
    answers: Sequence[str]
    counts: Counter[str]

    @property
    def n_rows(self) -> int:
        return len(self.rows)


def _write(
    question: ImportRequest,
    home: OutputDir,
    records: Iterator[Record],
    row_of: Callable[[Record], TaskRow],
    told: _Telling,
) -> _Made:
    """Write the blocks into the work folder, with one at a time in memory."""
    from outlay.train.targets.logprobs import block_of

    counts: Counter[str] = Counter()
    blocks: dict[str, str] = {}
    rows: list[TaskRow] = []
    answers: list[str] = []
    while part := list(itertools.islice(records, question.asked.block_rows)):
        rows += map(row_of, part)
        heard = question.heard(part, counts)
        data = block_of(question.kind, heard, question.terms, is_own=question.is_own).to_bytes()
        answers += [each.answer for each in heard]
        name = block_name(len(blocks))
        home.write(home.work / name, data)
        counts["rows"] += len(part)
        blocks[name] = digest_of(data)
        told(len(rows))
    return _Made(blocks, rows, answers, counts)


def _finish(
    question: ImportRequest, home: OutputDir, made: _Made, unanswered: Sequence[str], began: float
) -> StepReport:
    from outlay.train.targets.targets import SparseTargets

    for name in made.blocks:
        (home.work / name).replace(home.out / name)
    home.write(home.out / ROWS, json_lines([row.to_json() for row in made.rows]))
    home.write(home.out / ANSWERS, json_lines(answer_lines(made.rows, made.answers)))
    about = {**question.about, "n_rows": made.n_rows}
    index = index_of(question.form, question.kind, question.settings, made.blocks, about)
    home.write_json(home.out / INDEX, index)
    facts = {
        "targets": str(home.out),
        "kind": question.kind,
        "n_rows": made.n_rows,
        "n_blocks": len(made.blocks),
        "kept": kept_of(SparseTargets.open(home.out / name) for name in made.blocks),
    }
    seconds = round(time.monotonic() - began, 3)
    said = [*_sentences(made.counts, question.form), *unanswered]
    outcome = StepReport("targets import", str(home.out), facts, said, seconds=seconds)
    home.finish(outcome.to_json())
    return outcome


def _records(asked: Importing, failed: list[str]) -> Iterator[Record]:
    """Yield the answers of a file; adds the names of failed requests of a batch to ``failed``."""
    columns = asked.asked
    for row in stream_file(asked.file):
        if is_failure(row.columns):
            failed.append(str(row.columns[CUSTOM_ID]))
            continue
        yield read_record(
            row.columns, row.origin, source_column=columns.source_column, target_column=columns.target_column
        )


@dataclass(frozen=True, slots=True)
class _RowsFile:
    """File of the rows that were asked, with their places by ``custom_id``."""

    path: Path
    rows: Sequence[TaskRow]
    place_of: Mapping[str, int]

    @classmethod
    def read(cls, path: Path, inputs: DataReader) -> _RowsFile:
        """Read the rows of a file.

        Raises:
            DataError: some of its rows have a ``custom_id`` and some have none, or two have the same.
        """
        found = inputs.table(path)
        rows = inputs.rows_of(path, found, n=None, needs_target=False)
        ids = [str(each) for row in found if (each := row.columns.get(CUSTOM_ID)) is not None]
        if 0 < len(ids) < len(rows):
            raise DataError(
                f"{len(rows) - len(ids):,} of the {len(rows):,} rows of {path} have no {CUSTOM_ID}; give them one"
            )
        check_each_once(ids, f"the rows of {path} have")
        return cls(path, rows, {each: at for at, each in enumerate(ids)})


class _Pairing:
    """Pairing of answers with rows, checked afterwards for rows answered twice or never."""

    def __init__(self, inputs: DataReader, file: Path, asked: _RowsFile | None, failed: Sequence[str]) -> None:
        self._inputs, self._file, self._asked, self._failed = inputs, file, asked, failed
        self._ids: list[str] = []
        self._unknown: list[str] = []
        self._n = 0

    def __call__(self, record: Record) -> TaskRow:
        number, self._n = self._n, self._n + 1
        if record.custom_id is not None:
            self._ids.append(record.custom_id)
        if self._asked is None:
            return self._own_row(record)
        return self._row_by_id(record) if self._asked.place_of and self._ids else self._row_at(record, number)

    def check(self) -> list[str]:
        """Return remarks on the pairing once all answers are read.

        Raises:
            DataError: an answer to no row, two to one, or in order more or fewer than rows.
        """
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

    def _row_by_id(self, record: Record) -> TaskRow:
        assert self._asked is not None
        place = self._asked.place_of.get(record.custom_id or "")
        if place is None and record.custom_id is not None:
            self._unknown.append(record.custom_id)
        # Any row serves here: `check` refuses an answer without a row of its own once all are read.
        return self._asked.rows[place or 0]

    def _row_at(self, record: Record, number: int) -> TaskRow:
        assert self._asked is not None
        if number >= len(self._asked.rows):
            path, n_rows = self._asked.path, len(self._asked.rows)
            raise DataError(f"{record.origin} is answer {number + 1}, and {path} holds {n_rows} rows; pair them")
        return self._asked.rows[number]

    def _own_row(self, record: Record) -> TaskRow:
        inputs = self._inputs
        if record.source is None or not record.source.strip():
            column = inputs.asked.source_column
            also = "" if column != SOURCE else " or 'prompt'"
            raise DataError(
                f"{record.origin} has no source in column {column!r}{also}; name its column with --source-column, or the rows "
                "that were asked with --file"
            )
        segments = record.segments or inputs.segments(record.source)
        return TaskRow(record.source, segments, record.gold, record.origin)


class _Telling:
    """Progress callback with the number of rows done."""

    def __init__(self, listener: Listener, began: float) -> None:
        self._listener = listener
        self._began = began

    def __call__(self, n_done: int) -> None:
        speed = n_done / max(time.monotonic() - self._began, 1e-9)
        self._listener.progress(n_done, n_done, f"{speed:,.0f} rows/s")


def _sentences(counts: Counter[str], form: TaskSpec) -> list[str]:
    """Return a sentence for each count that is not zero."""
    said = {
        "unknown": f"{counts['unknown']:,} of {counts['listed']:,} listed tokens are none of the student's, or several, and "
        "belong to the tail",
        "closed": f"{counts['closed']:,} of {counts['rows']:,} answers came without a closing token and were given one",
        "cut": f"{counts['cut']:,} of {counts['rows']:,} answers were longer than {form.max_target_tokens} tokens and were cut",
        "labels": f"{counts['labels']:,} labels were not listed and have the most that was left for them",
    }
    return [sentence for name, sentence in said.items() if counts[name]]
