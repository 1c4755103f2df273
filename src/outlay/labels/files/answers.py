"""Read the files that annotators give back: what was answered, and a remark on every row that is not as it should be."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.errors import MissingData
from outlay.labels.annotator import Answer
from outlay.labels.files.cells import fuse, number_of
from outlay.labels.files.order_folder import (
    ANNOTATOR,
    COMMENT,
    ID,
    LABEL,
    SECONDS,
    SUFFIXES,
    Accepted,
    Item,
    OrderFolder,
    annotator_of,
)
from outlay.text.delimited import DELIMITERS, BadTable, read_delimited
from outlay.text.json_text import BadJson, parse_json
from outlay.text.legible import quoted
from outlay.text.text_file import read_text, suffix_of

_USUAL = {".csv": ",", ".tsv": "\t"}
_MOST_SECONDS = 86_400
_MEANT = (ID, LABEL, COMMENT, SECONDS, ANNOTATOR)


@dataclass(frozen=True, slots=True)
class Remark:
    """A row that needs a look: where it stands, what is odd about it, and the way out; ``line`` is 0 for a whole file.

    ``is_taken``: its answer counts all the same.
    """

    file: str
    line: int
    item: str
    what: str
    way_out: str
    is_taken: bool = False

    def cells(self) -> tuple[str, ...]:
        """Return the remark as a row of the list of problems."""
        taken = "yes" if self.is_taken else "no"
        return (self.file, str(self.line) if self.line else "", self.item, taken, self.what, self.way_out)


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """One answer with the place where it stands."""

    item: str
    answer: Answer
    file: str
    line: int

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class _Line:
    """One row of a file: its values by column, the names with a meaning in lower case."""

    number: int
    values: Mapping[str, Any]

    def cell(self, name: str) -> str:
        """Return a value as text; empty where it is missing."""
        value = self.values.get(name)
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_answers(folder: OrderFolder, accepted: Accepted) -> tuple[list[GivenAnswer], list[Remark]]:
    """Return one answer per item and annotator, and remarks on all rows that were left out or read in a way of their own.

    Of several answers of one annotator in one file the last counts; where two files of theirs differ, none does.
    """
    remarks: list[Remark] = []
    by_person: dict[tuple[str, str], list[GivenAnswer]] = {}
    for path in folder.answer_files():
        reader = _FileReader(folder.shown(path), annotator_of(path), accepted, remarks)
        for given in reader.read(path):
            by_person.setdefault((given.item, given.answer.by), []).append(given)
    counted = [_one_of(each, remarks) for each in by_person.values()]
    return [each for each in counted if each is not None], remarks


def _one_of(given: Sequence[GivenAnswer], remarks: list[Remark]) -> GivenAnswer | None:
    """Return the answer of one annotator to one item, from the files that have one; ``None`` where they differ."""
    first = given[0]
    others = [each for each in given if each.answer.label != first.answer.label]
    if not others:
        return first
    for each in given:
        elsewhere = others[0] if each.answer.label == first.answer.label else first
        there = f"{quoted(elsewhere.answer.text)} at {elsewhere.place}"
        what = f"{first.answer.by} answers {quoted(each.answer.text)} here and {there}"
        way_out = "write the same into both files, or empty the label in one of them"
        remarks.append(Remark(each.file, each.line, each.item, what, way_out))
    return None


class _FileReader:
    """Reader of one file of one annotator."""

    def __init__(self, file: str, annotator: str, accepted: Accepted, remarks: list[Remark]) -> None:
        self._file = file
        self._annotator = annotator
        self._accepted = accepted
        self._remarks = remarks
        self._texts: dict[tuple[str, ...], dict[tuple[str, ...], set[str]]] = {}

    def _remark(self, line: int, item: str, what: str, way_out: str, *, is_taken: bool = False) -> None:
        self._remarks.append(Remark(self._file, line, item, what, way_out, is_taken))

    def read(self, path: Path) -> list[GivenAnswer]:
        """Return the last answer of each item and annotator in the file."""
        found: dict[tuple[str, str], GivenAnswer] = {}
        for line in self._lines(path):
            given = self._answer(line)
            if given is None:
                continue
            key = (given.item, given.answer.by)
            before = found.get(key)
            if before is not None:
                if before.answer.label == given.answer.label:
                    what = f"line {before.line} gives the same answer to this item"
                else:
                    what = f"line {before.line} answers {quoted(before.answer.text)}; the last answer in a file counts"
                self._remark(line.number, given.item, what, "remove one of the two", is_taken=True)
            found[key] = given
        return list(found.values())

    def _lines(self, path: Path) -> Iterator[_Line]:
        kind = suffix_of(path)
        if kind not in SUFFIXES:
            self._remark(0, "", f"a file {kind or 'without a suffix'} is not read", "save it as CSV, TSV or JSON lines")
            return
        try:
            text = read_text(path)
        except MissingData as error:
            what, _, way_out = str(error).removeprefix(f"{path} ").rpartition("; ")
            self._remark(0, "", *((what, way_out) if what else (way_out, "save it as UTF-8 text")))
            return
        yield from self._json_lines(text) if kind == ".jsonl" else self._table(text, _USUAL[kind])

    # --- rows of a file ------------------------------------------------------------------------------------------------

    def _json_lines(self, text: str) -> Iterator[_Line]:
        for number, line in enumerate(io.StringIO(text, newline=None), start=1):
            if not line.strip():
                continue
            try:
                values = parse_json(line)
            except BadJson as error:
                self._remark(number, "", f"the line {error}", "write one JSON object a line, in full")
                continue
            if not isinstance(values, dict) or not {ID, LABEL} <= {str(name).strip().casefold() for name in values}:
                self._remark(number, "", "the line is no object with `id` and `label`", "write both into each line")
                continue
            yield _Line(number, {_column(name): value for name, value in values.items()})

    def _table(self, text: str, usual: str) -> Iterator[_Line]:
        """Read rows of delimited text; the delimiter is the one that parts `id` from `label` in the first line."""
        head = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
        headers = {
            mark: [_column(name) for name in next(csv.reader([head], delimiter=mark), [])] for mark in DELIMITERS
        }
        marks = [mark for mark in (usual, *DELIMITERS) if {ID, LABEL} <= set(headers[mark])]
        if not marks:
            if text.strip():
                what = "the first line does not name the columns `id` and `label`"
                self._remark(1, "", what, "take the first line from the file that was given out")
            return
        try:
            table = read_delimited(text, usual, marks[0])
            rows, header = table.rows, [_column(name) for name in table.header]
        except BadTable:
            rows, header = self._ragged(text, marks[0]), headers[marks[0]]
        for name in (ID, LABEL, SECONDS, ANNOTATOR):
            if header.count(name) > 1:
                self._remark(1, "", f"the first line names the column {quoted(name)} twice", "remove one of them")
                return
        for number, values in rows:
            yield _Line(number, dict(zip(header, values, strict=True)))

    def _ragged(self, text: str, mark: str) -> list[tuple[int, list[str]]]:
        """Read a table whose rows do not all fit the first; those that do not are left out with a remark."""
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        rows: list[tuple[int, list[str]]] = []
        n_columns, last = 0, 0
        n_lines = sum(1 for _ in io.StringIO(text, newline=""))
        try:
            for values in reader:
                last = reader.line_num
                if not any(value.strip() for value in values):
                    continue
                if not n_columns:
                    n_columns = len(values)
                    continue
                is_cut = last == n_lines and len(values) < n_columns and not text.endswith(("\n", "\r"))
                if is_cut or any(value.strip() for value in values[n_columns:]):
                    what = f"the row has {len(values)} columns, and the first line {n_columns}"
                    way_out = (
                        "save the file again, it may be half-written"
                        if is_cut
                        else "put a text with the delimiter in quotes"
                    )
                    self._remark(last, "", what, way_out)
                    continue
                rows.append((last, (values + [""] * n_columns)[:n_columns]))
        except csv.Error as error:
            reason = (
                "a quote opens here and does not close" if "unexpected end" in str(error) else f"bad quotes ({error})"
            )
            self._remark(last + 1, "", f"{reason}; this row and those below are left out", "correct the quotes")
        return rows

    # --- one row -------------------------------------------------------------------------------------------------------

    def _answer(self, line: _Line) -> GivenAnswer | None:
        name, cell, comment = line.cell(ID).strip(), line.cell(LABEL), line.cell(COMMENT).strip()
        item = self._accepted.by_id.get(name) or self._accepted.by_id.get(name.casefold())
        if not cell.strip():
            if comment and item is not None:
                what = f"the item has no label, but a comment: {quoted(comment)}"
                self._remark(line.number, item.id, what, "write a label if there is one")
            return None
        if item is None:
            what = f"no item of this order has the id {quoted(name)}"
            self._remark(line.number, name, what, "take the ids from the file that was given out")
            return None
        if self._is_of_another(line, item):
            what = f"the text is that of another item; the label {quoted(cell)} may be meant for that"
            self._remark(
                line.number, item.id, what, "put id and text side by side as they were, whole rows when you sort"
            )
            return None
        if isinstance(line.values.get(LABEL), list | dict):
            self._remark(line.number, item.id, "the label is a list or an object", "write it as text")
            return None
        read = self._accepted.guideline.read(cell, item.text)
        if read.label is None:
            self._remark(line.number, item.id, read.problem, "correct the label")
            return None
        if read.note:
            self._remark(line.number, item.id, read.note, "nothing, or write it so", is_taken=True)
        by = line.cell(ANNOTATOR).strip() or self._annotator
        answer = Answer(item.row, by, cell, read.label, self._seconds(line, item))
        return GivenAnswer(item.id, answer, self._file, line.number)

    def _is_of_another(self, line: _Line, item: Item) -> bool:
        """Return whether the text beside an id is that of another item, as it is where one column was sorted alone."""
        columns = tuple(name for name in item.columns() if name in line.values)
        if not columns:
            return False
        if columns not in self._texts:
            self._texts[columns] = {}
            for each in self._accepted.items:
                key = tuple(_folded(each.columns().get(name, "")) for name in columns)
                self._texts[columns].setdefault(key, set()).add(each.id)
        owners = self._texts[columns].get(tuple(_folded(fuse(line.cell(name))) for name in columns), set())
        return bool(owners) and item.id not in owners

    def _seconds(self, line: _Line, item: Item) -> float:
        cell = line.cell(SECONDS).strip()
        if not cell:
            return 0.0
        number = number_of(cell)
        if number is None or not 0 <= number <= _MOST_SECONDS:
            what = f"the seconds are {quoted(cell)}, which is not a number from 0 to {_MOST_SECONDS:,}; they count as 0"
            self._remark(line.number, item.id, what, "write seconds, such as 12.5", is_taken=True)
            return 0.0
        return float(number)


def _column(name: str) -> str:
    """Return a column's name, in lower case where it has a meaning."""
    low = name.strip().casefold()
    return low if low in _MEANT else name


def _folded(text: str) -> str:
    """Return a text as it is compared: without what spreadsheets do to blanks and line ends."""
    return " ".join(text.split())
