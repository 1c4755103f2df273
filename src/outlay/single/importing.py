"""A file of another program's answers and log-probabilities made into a folder of targets, as `outlay teach` writes one."""

from __future__ import annotations

import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlay.canonical import digest_of
from outlay.errors import DataError, MissingData
from outlay.form import Form
from outlay.rows import stream_file
from outlay.single.formats import Record, read_record
from outlay.single.hearing import Importing, Question
from outlay.single.home import Home, json_lines
from outlay.single.inputs import SOURCE, Inputs, Row, read_table, rows_digest
from outlay.single.targets import ANSWERS, INDEX, ROWS, answer_lines, block_name, index_of, kept_of
from outlay.single.work import Listener, Outcome

CUSTOM_ID = "custom_id"


def import_targets(asked: Importing, listener: Listener) -> Outcome:
    """Write the targets that a file holds into a folder, in blocks.

    Raises:
        OutlayError: whatever is wrong with file, rows, student or place; one line.
    """
    began = time.monotonic()
    if not asked.file.is_file():
        raise MissingData(f"{asked.file} is not there; check the path")
    inputs = Inputs(asked.asked)
    records = _records(asked)
    first = next(records, None)
    if first is None:
        raise MissingData(f"{asked.file} holds no rows; write answers into it")
    question = Question.of(asked, inputs, first)
    rows = None if asked.rows_file is None else _RowsFile.read(asked.rows_file, inputs)
    request = question.request(None if rows is None else rows_digest(rows.rows))
    home = Home.folder(asked.out)
    summary = home.look(request, overwrite=asked.overwrite)
    if summary is not None:
        return Outcome.again(summary)
    home.open(request)
    with home.alone():
        listener.begin(f"import {asked.file}")
        try:
            told = _Telling(listener, began)
            made = _write(question, home, itertools.chain([first], records), _rows_of(inputs, rows), told)
            if rows is not None:
                rows.check_all_answered(made.n_rows, asked.file)
        except BaseException:
            # A file that is corrected is another request: it finds the place free.
            shutil.rmtree(home.work, ignore_errors=True)
            raise
        return _finish(question, home, made, began)


@dataclass(frozen=True, slots=True)
class _Made:
    """Blocks that are written, by name, the rows they are of, and what was counted."""

    blocks: Mapping[str, str]
    rows: Sequence[Row]
    answers: Sequence[str]
    counts: Counter[str]

    @property
    def n_rows(self) -> int:
        return len(self.rows)


def _write(
    question: Question, home: Home, records: Iterator[Record], row_of: Callable[[Record], Row], told: _Telling
) -> _Made:
    """Block by block into the work folder; no more than one is in memory."""
    from outlay.train.exchange import block_of

    counts: Counter[str] = Counter()
    blocks: dict[str, str] = {}
    rows: list[Row] = []
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


def _finish(question: Question, home: Home, made: _Made, began: float) -> Outcome:
    from outlay.train.targets import SparseTargets

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
    outcome = Outcome("targets import", str(home.out), facts, _sentences(made.counts, question.form), seconds=seconds)
    home.finish(outcome.to_json())
    return outcome


def _records(asked: Importing) -> Iterator[Record]:
    columns = asked.asked
    for row in stream_file(asked.file):
        yield read_record(
            row.columns, row.origin, source_column=columns.source_column, target_column=columns.target_column
        )


@dataclass(frozen=True, slots=True)
class _RowsFile:
    """The rows that were asked, by ``custom_id`` where they have one."""

    path: Path
    rows: Sequence[Row]
    place_of: Mapping[str, int]

    @classmethod
    def read(cls, path: Path, inputs: Inputs) -> _RowsFile:
        rows = inputs.file(path, n=None, needs_target=False)
        ids = [row.columns.get(CUSTOM_ID) for row in read_table(path)]
        return cls(path, rows, {str(each): at for at, each in enumerate(ids) if each is not None})

    def row(self, record: Record, number: int) -> Row:
        if record.custom_id is not None and self.place_of:
            if record.custom_id not in self.place_of:
                raise DataError(
                    f"{record.origin} answers {record.custom_id!r}, and no row of {self.path} has this {CUSTOM_ID}"
                )
            return self.rows[self.place_of[record.custom_id]]
        if number >= len(self.rows):
            raise DataError(
                f"{record.origin} is answer {number + 1}, and {self.path} holds {len(self.rows)} rows; pair them"
            )
        return self.rows[number]

    def check_all_answered(self, n: int, file: Path) -> None:
        """Answers in order must be as many as rows; those with a name may leave some out (requests that failed)."""
        if not self.place_of and n != len(self.rows):
            raise DataError(
                f"{file} holds {n} answers for the {len(self.rows)} rows of {self.path}; pair them one to one"
            )


def _rows_of(inputs: Inputs, rows: _RowsFile | None) -> Callable[[Record], Row]:
    numbers = itertools.count()

    def row_of(record: Record) -> Row:
        number = next(numbers)
        if rows is not None:
            return rows.row(record, number)
        if record.source is None or not record.source.strip():
            column = inputs.asked.source_column
            also = "" if column != SOURCE else " or 'prompt'"
            raise DataError(
                f"{record.origin} has no source in column {column!r}{also}; name its column with --source-column, or the rows "
                "that were asked with --file"
            )
        segments = record.segments or inputs.segments(record.source)
        return Row(record.source, segments, record.gold, record.origin)

    return row_of


class _Telling:
    """Passes on how many rows are done."""

    def __init__(self, listener: Listener, began: float) -> None:
        self._listener = listener
        self._began = began

    def __call__(self, n_done: int) -> None:
        speed = n_done / max(time.monotonic() - self._began, 1e-9)
        self._listener.progress(n_done, n_done, f"{speed:,.0f} rows/s")


def _sentences(counts: Counter[str], form: Form) -> list[str]:
    """What was counted, a sentence each."""
    said = {
        "unknown": f"{counts['unknown']:,} of {counts['listed']:,} listed tokens are none of the student's, or several, and "
        "belong to the tail",
        "closed": f"{counts['closed']:,} of {counts['rows']:,} answers came without a closing token and were given one",
        "cut": f"{counts['cut']:,} of {counts['rows']:,} answers were longer than {form.max_target_tokens} tokens and were cut",
        "labels": f"{counts['labels']:,} labels were not listed and have the most that was left for them",
    }
    return [sentence for name, sentence in said.items() if counts[name]]
