"""Rows of a single step and the form of its task: from a task, or from files and options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from outlay.errors import DataError, LabelError, MissingData, UsageError
from outlay.spec import Family, Kind, TaskSpec, named_class
from outlay.standalone.request import Data
from outlay.storage.hashing import key_of
from outlay.tasks.example import Example, seeded_order, shorten
from outlay.text.entities import unlabelled
from outlay.text.legible import alike, label_problem, likeness, listed, named, repeats

if TYPE_CHECKING:
    from outlay.tasks.readers import SourceRow
    from outlay.tasks.row_form import RowForm
    from outlay.tasks.task import Task

SPLITS = ("train", "dev", "test", "pool")
SOURCE, TARGET = "source", "target"
CUSTOM_ID = "custom_id"
"""Column that pairs the answers of a batch with their requests, as in OpenAI's API."""
N_SHOWN = 3
"""Number of names that `some_of` shows."""
MAX_SOURCE_TOKENS = 128


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One row: its text, the one or two segments an encoder may read instead, the gold answer where it is known."""

    text: str
    segments: tuple[str, ...]
    gold: str | None
    origin: str

    def to_json(self) -> dict[str, Any]:
        """Return the row for ``rows.jsonl``; segments equal to the text and unknown golds are left out."""
        document: dict[str, Any] = {"source": self.text}
        if self.segments != (self.text,):
            document["segments"] = list(self.segments)
        if self.gold is not None:
            document["gold"] = self.gold
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any], origin: str) -> TaskRow:
        """Read a row that `to_json` wrote."""
        text = document["source"]
        return cls(text, tuple(document.get("segments", (text,))), document.get("gold"), origin)


def sources_of(rows: Sequence[TaskRow], family: Family, kind: Kind) -> list[tuple[str, ...]]:
    """Return the inputs for a model of a family: segments for an encoder that classifies, else the whole text.

    Raises:
        DataError: some rows have two segments and some have one.
    """
    if family == "encoder" and kind == "classification":
        odd = next((row for row in rows if len(row.segments) != len(rows[0].segments)), None)
        if odd is not None:
            raise DataError(
                f"{odd.origin} does not fit the task's template as {rows[0].origin} does; "
                "write both in one form, or leave --task out"
            )
        return [row.segments for row in rows]
    return [(row.text,) for row in rows]


def rows_digest(rows: Sequence[TaskRow]) -> str:
    """Return the digest of texts, segments and gold answers, in order."""
    return key_of([[row.text, list(row.segments), row.gold] for row in rows])


class DataReader:
    """Reader of rows from the splits of a task or from files.

    Raises:
        UnknownTask: there is no such task.
    """

    def __init__(self, data: Data, row_form: RowForm | None = None) -> None:
        self.data = data
        self.row_form = row_form
        """Form of the rows of the model that reads them, or of the task; ``None`` where a row is one text."""
        self.columns: list[Mapping[str, Any]] = []
        """All columns of the rows of the file that was read last, row by row."""
        self.used: tuple[str, ...] = ()
        """Columns of that file that texts and answers were read from."""
        self.task: Task | None = None
        if data.task is not None:
            from outlay.tasks.task import load_task

            self.task = load_task(str(data.task))
            self.row_form = _row_form(self.task)
        self.notes: list[str] = []
        """Sentences on decisions about the form of files and labels that could have been otherwise."""

    def form(self, saved: TaskSpec | None = None) -> TaskSpec:
        """Return the form of the task: the model's (``saved``), else the task's, changed by the user's options.

        Raises:
            UsageError: no kind of that name, labels that are missing or too many, a limit below 1, or a model that was trained
                for other labels than the task has.
        """
        given = self.task.form if self.task is not None else None
        if saved is not None:
            if given is not None and (given.kind, given.labels) != (saved.kind, saved.labels):
                raise UsageError(
                    f"the model answers {_asks(saved)}, task {self.data.task} asks for {_asks(given)}; name the model's own task"
                )
            given = saved
        from outlay.tasks.task import MAX_TARGET_TOKENS

        data = self.data
        kind = data.kind or (given.kind if given is not None else "classification")
        if kind not in get_args(Kind):
            raise UsageError(f"--kind {kind!r} is unknown; choose one of {', '.join(get_args(Kind))}")
        labels = tuple(data.labels) or (given.labels if given is not None else ())
        if given is not None and (kind, labels) != (given.kind, given.labels):
            raise UsageError(
                f"{'the model' if saved else 'the task'} says {_asks(given)}; leave --kind and --labels out"
            )
        known = cast(Kind, kind)
        form = given or TaskSpec(known, labels, MAX_SOURCE_TOKENS, MAX_TARGET_TOKENS[known])
        if data.max_source_tokens is not None:
            form = replace(form, max_source_tokens=data.max_source_tokens)
        if data.max_target_tokens is not None:
            form = replace(form, max_target_tokens=data.max_target_tokens)
        if data.prefix is not None:
            form = replace(form, prefix=data.prefix)
        _check_form(form)
        return form

    def split(self, name: str, *, n: int | None, seed: int, n_gold: int | None = None) -> list[TaskRow]:
        """Return the first ``n`` rows of a task's split in the seed's order (test: in file order), as `outlay run` takes them.

        Rows of the pool carry the label of the train row with the same text, where it is one of the first ``n_gold``.

        Raises:
            UsageError: no split of that name, or an empty one.
            DataError: what `outlay.tasks.loading.load_data` finds wrong.
        """
        assert self.task is not None
        if name not in SPLITS:
            raise UsageError(f"--split {name!r} is unknown; choose one of {', '.join(SPLITS)}")
        examples = self._splits[name]
        if not examples:
            raise UsageError(f"task {self.task.name} has no {name} rows; choose another split")
        if name != "test":
            examples = _ordered(examples, seed)
        examples = examples[: check_count(n)]
        golds = [each.label for each in examples]
        if name == "pool":
            train = _ordered(self._splits["train"], seed)[: check_count(n_gold)]
            known = {each.text: each.label for each in train if each.label is not None}
            golds = [known.get(each.text) for each in examples]
        segments = self.task.segments_of
        return [
            TaskRow(each.text, segments(each), gold, each.origin) for each, gold in zip(examples, golds, strict=True)
        ]

    def file(self, path: Path, *, n: int | None, needs_target: bool, takes_empty: bool = False) -> list[TaskRow]:
        """Return the first ``n`` rows of a file, in file order; ``takes_empty``: rows without text too, with the text "".

        Raises:
            MissingData: the file is absent, empty or breaks off.
            DataError: it lacks a column, or a source is empty.
        """
        return self.rows_of(path, self.table(path), n=n, needs_target=needs_target, takes_empty=takes_empty)

    def rows_of(
        self, path: Path, found: Sequence[SourceRow], *, n: int | None, needs_target: bool, takes_empty: bool = False
    ) -> list[TaskRow]:
        """Return the first ``n`` rows of a table that was read; ``found``: every row of the file at ``path``.

        The text is made of the task's own columns where all of them are there, else it is read from one column.

        Raises:
            DataError: it lacks a column, or a source is empty.
        """
        target, fields = self._target_column(path, found, needs_target), self._fields_in(found[0].columns)
        source = self._source_column(path, found[0].columns)
        self.used = (*((source,) if fields is None else fields.values()), *(() if target is None else (target,)))
        taken = found[: check_count(n)]
        self.columns = [row.columns for row in taken]
        rows = []
        for number, row in enumerate(taken, start=1):
            origin = f"{row.origin} (row {number})"
            read = self._text(row, source) if fields is None else self._text_of_fields(row, fields)
            if read is None and not takes_empty:
                raise DataError(f"{origin} has an empty source; remove the row")
            text, segments = ("", ("",)) if read is None else read
            gold = None if target is None or row.columns.get(target) is None else cell(row, target, "--target-column")
            rows.append(TaskRow(text, segments, gold, origin))
        return rows

    def _source_column(self, path: Path, columns: Mapping[str, Any]) -> str:
        """Return the column of whole texts: the one that is named, or the lines of a text file."""
        from outlay.tasks.readers import TEXT_COLUMN
        from outlay.text.text_file import suffix_of

        source = self.data.source_column
        return TEXT_COLUMN if suffix_of(path) == ".txt" and source not in columns else source

    def _fields_in(self, columns: Mapping[str, Any]) -> dict[str, str] | None:
        """Return the column of each field of the task; ``None`` where a column of whole texts is named, or a field has none."""
        if self.row_form is None or self.data.source_column != SOURCE:
            return None
        return self.row_form.columns_in(columns)

    def _text(self, row: SourceRow, source: str) -> tuple[str, tuple[str, ...]] | None:
        text = cell(row, source, "--source-column")
        return None if text is None or not text.strip() else (text, self.segments(text))

    def _text_of_fields(self, row: SourceRow, fields: Mapping[str, str]) -> tuple[str, tuple[str, ...]] | None:
        assert self.row_form is not None
        values = {field: row.text(column) or "" for field, column in fields.items()}
        return self.row_form.read(values)

    def table(self, path: Path) -> list[SourceRow]:
        """Read every row of a file with its columns; adds decisions about the file's form to ``notes``.

        Files are JSON lines, a JSON list of objects, CSV, TSV or text (each also gzip-packed), or Parquet.

        Raises:
            MissingData: the file is absent, empty or breaks off.
            DataError: its suffix is unknown or a row cannot be read.
            UsageError: the delimiter is no single character.
        """
        from pydantic import ValidationError

        from outlay.tasks.readers import read_file
        from outlay.tasks.sources import DataFile

        if not path.is_file():
            what = "is a folder, not a file of rows" if path.is_dir() else "is not there"
            raise MissingData(f"{path} {what}; check the path")
        delimiter = self.data.delimiter
        try:
            file = DataFile(file=str(path), delimiter=delimiter)
        except ValidationError:
            raise UsageError(
                f"--delimiter {delimiter!r} is no character between columns; give one such as ',', ';' or a tab"
            ) from None
        found = read_file(file, path)
        self.notes += [note for note in found.notes if note not in self.notes]
        return found.rows

    def checked(self, rows: Sequence[TaskRow], form: TaskSpec) -> list[TaskRow]:
        """Return rows with each gold answer spelled as in the label set; refuse rows that cannot be trained on or scored.

        Golds that were read from numbers are added to ``notes``.

        Raises:
            LabelError: no gold answer, an empty one where there must be one (a text without entities has an empty line), or one
                outside the label set.
        """
        checked = [with_named_gold(row, form) for row in rows]
        is_empty = [row.gold is None or (form.kind != "entities" and not row.gold.strip()) for row in rows]
        if self.task is not None and rows and all(row.gold is None for row in rows):
            raise LabelError(
                f"none of the {len(rows):,} rows has a label, the first at {rows[0].origin}; `outlay run` and `outlay compare` "
                "buy labels, a single step takes rows that have one: give such rows with --file"
            )
        for row, named_row, has_none in zip(rows, checked, is_empty, strict=True):
            gold = named_row.gold or ""
            if has_none:
                n_without = sum(is_empty)
                also = f", as {n_without:,} of the {len(rows):,} rows have" if n_without > 1 else ""
                raise LabelError(f"{row.origin} has an empty target{also}; give it an answer or remove the row")
            if form.kind == "classification" and gold not in form.labels:
                raise LabelError(f"{row.origin} {label_problem(gold, form.labels)}; correct it or --labels")
            if form.kind == "entities" and (rest := unlabelled(gold, form.labels)):
                raise LabelError(
                    f"{row.origin} has no type behind {shorten(rest)!r}; write `text [Type]`, types are {named(form.labels)}"
                )
        before, after = [row.gold or "" for row in rows], [row.gold or "" for row in checked]
        self.notes += number_coded(before, after, "gold answer")
        return checked

    def segments(self, text: str) -> tuple[str, ...]:
        """Return the text's segments by the task's template; the whole text where the template does not fit."""
        return (text,) if self.row_form is None else self.row_form.segments_of(text)

    def _target_column(self, path: Path, found: Sequence[SourceRow], needs_target: bool) -> str | None:
        name = self.data.target_column or TARGET
        columns = found[0].columns
        if any(name in row.columns for row in found):
            return name
        if needs_target or self.data.target_column is not None:
            raise _no_column(str(path), name, columns, "--target-column")
        return None

    @cached_property
    def _splits(self) -> Mapping[str, list[Example]]:
        from outlay.tasks.loading import load_data

        assert self.task is not None
        data = load_data(self.task, None if self.data.folder is None else Path(self.data.folder))
        self.notes += data.notes
        pool = [example for part in data.pool for example in part.examples]
        return {"train": data.train, "dev": data.dev, "test": data.test, "pool": pool}


def _row_form(task: Task) -> RowForm:
    from outlay.tasks.row_form import RowForm

    return RowForm.of(task)


def with_named_gold(row: TaskRow, form: TaskSpec) -> TaskRow:
    """Return a row with its gold answer spelled as in the label set; other answers stay."""
    if row.gold is None or form.kind != "classification":
        return row
    return replace(row, gold=named_class(row.gold, form.labels))


def number_coded(before: Iterable[str], after: Iterable[str], what: str) -> list[str]:
    """Return a sentence on answers such as 1.0 that were read as the class 1; no sentence where none is."""
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    if not changed:
        return []
    old, new = changed[0]
    are = f"{what} is a number" if len(changed) == 1 else f"{what}s are numbers"
    return [f"{len(changed):,} {are} such as {old}, which is read as {new}"]


def cell(row: SourceRow, column: str, option: str) -> str | None:
    """Return one value as text, ``None`` where it is missing.

    Raises:
        DataError: no such column, or neither text nor number in it.
    """
    if column not in row.columns:
        raise _no_column(row.origin, column, row.columns, option)
    return row.text(column)


def _no_column(where: str, name: str, columns: Mapping[str, Any], option: str) -> DataError:
    return DataError(f"{where} has no column {name!r}; its columns are {named(columns)}; name one with {option}")


def _check_form(form: TaskSpec) -> None:
    from outlay.tasks.task import MIN_LABELS

    for name, value in (("source", form.max_source_tokens), ("target", form.max_target_tokens)):
        if value < 1:
            raise UsageError(f"--max-{name}-tokens is {value}; it must be at least 1")
    least = MIN_LABELS[form.kind]
    if len(form.labels) < least:
        raise UsageError(
            f"{form.kind} needs {'labels' if least > 1 else 'a label'}, and {len(form.labels) or 'none'} came; "
            "write them with commas, --labels NO,YES, or give --labels once for each label"
        )
    if form.kind == "generation" and form.labels:
        raise UsageError(f"generation has free answers, and --labels gives {len(form.labels)}; leave them out")
    if repeats(form.labels):
        raise UsageError(f"--labels {listed(form.labels)} names a label twice; write each once")
    if same := alike(form.labels):
        raise UsageError(f"--labels names two that look the same: {likeness(same[1], same[:1])}; keep one")


def _asks(form: TaskSpec) -> str:
    return f"{form.kind} over {named(form.labels)}" if form.labels else str(form.kind)


def _ordered(examples: Sequence[Example], seed: int) -> list[Example]:
    return [examples[i] for i in seeded_order([example.id for example in examples], seed)]


def some_of(names: Sequence[str]) -> str:
    """Return the first few of many names, with the number of the rest."""
    more = f" and {len(names) - N_SHOWN:,} more" if len(names) > N_SHOWN else ""
    return ", ".join(repr(shorten(name)) for name in names[:N_SHOWN]) + more


def check_each_once(ids: Iterable[str], what: str) -> None:
    """Refuse ids of rows that occur more than once; ``what``: their origin, such as a file.

    Raises:
        DataError: an id that occurs twice; names the first few.
    """
    if twice := repeats(ids):
        raise DataError(f"{what} {len(twice):,} {CUSTOM_ID} more than once: {some_of(twice)}; keep one of each")


def check_count(n: int | None) -> int | None:
    """Return a number of rows to take, ``None`` = all.

    Raises:
        UsageError: less than one row.
    """
    if n is not None and n < 1:
        raise UsageError(f"{n} rows were asked for; ask for at least 1")
    return n
