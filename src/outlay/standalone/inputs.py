"""Rows of a single step and the form of its task: from a task, or from files and options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from outlay.errors import DataError, LabelError, MissingData, UsageError
from outlay.spec import Family, Kind, TaskSpec, named_class
from outlay.storage.hashing import key_of
from outlay.tasks.example import Example, seeded_order, shorten
from outlay.text.entities import unlabelled
from outlay.text.legible import alike, label_problem, likeness, listed, named, repeats

if TYPE_CHECKING:
    from outlay.tasks.readers import FileRows
    from outlay.tasks.readers import SourceRow as FileRow
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


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Options on rows and form of the task; ``None`` = from the task, the model, or a default.

    ``target_column``: ``None`` reads ``target`` where a file has it; ``delimiter``: of CSV and TSV files, ``None`` = as in their
    first line.
    """

    task: str | None = None
    data: Path | None = None
    source_column: str = SOURCE
    target_column: str | None = None
    kind: str | None = None
    labels: tuple[str, ...] = ()
    prefix: str | None = None
    max_source_tokens: int | None = None
    max_target_tokens: int | None = None
    delimiter: str | None = None


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

    def __init__(self, asked: DataOptions) -> None:
        self.asked = asked
        self.task: Task | None = None
        if asked.task is not None:
            from outlay.tasks.task import load_task

            self.task = load_task(asked.task)
        self._splits: dict[str, list[Example]] | None = None
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
                    f"the model answers {_asks(saved)}, task {self.asked.task} asks for {_asks(given)}; name the model's own task"
                )
            given = saved
        from outlay.tasks.task import MAX_TARGET_TOKENS

        asked = self.asked
        kind = asked.kind or (given.kind if given is not None else "classification")
        if kind not in get_args(Kind):
            raise UsageError(f"--kind {kind!r} is unknown; choose one of {', '.join(get_args(Kind))}")
        labels = asked.labels or (given.labels if given is not None else ())
        if given is not None and (kind, labels) != (given.kind, given.labels):
            raise UsageError(
                f"{'the model' if saved else 'the task'} says {_asks(given)}; leave --kind and --labels out"
            )
        known = cast(Kind, kind)
        form = TaskSpec(
            kind=known,
            labels=labels,
            max_source_tokens=_first(asked.max_source_tokens, given and given.max_source_tokens, MAX_SOURCE_TOKENS),
            max_target_tokens=_first(
                asked.max_target_tokens, given and given.max_target_tokens, MAX_TARGET_TOKENS[known]
            ),
            prefix=_first(asked.prefix, given and given.prefix, ""),
        )
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
        examples = self._examples()[name]
        if not examples:
            raise UsageError(f"task {self.task.name} has no {name} rows; choose another split")
        if name != "test":
            examples = _ordered(examples, seed)
        golds = self._train_labels(n_gold, seed) if name == "pool" else None
        return [self._row(example, golds) for example in examples[: _count(n)]]

    def file(self, path: Path, *, n: int | None, needs_target: bool) -> list[TaskRow]:
        """Return the first ``n`` rows of a file, in file order.

        Raises:
            MissingData: the file is absent, empty or breaks off.
            DataError: it lacks a column, or a source is empty.
        """
        return self.rows_of(path, self.table(path), n=n, needs_target=needs_target)

    def rows_of(self, path: Path, found: Sequence[FileRow], *, n: int | None, needs_target: bool) -> list[TaskRow]:
        """Return the first ``n`` rows of a table that was read; ``found``: every row of the file at ``path``.

        Raises:
            DataError: it lacks a column, or a source is empty.
        """
        target = self._target_column(path, found, needs_target)
        source = self._source_column(path, found[0])
        return [self._file_row(number, row, source, target) for number, row in enumerate(found[: _count(n)], start=1)]

    def table(self, path: Path) -> list[FileRow]:
        """Read every row of a file with its columns; adds decisions about the file's form to ``notes``.

        Raises:
            MissingData: the file is absent, empty or breaks off.
            DataError: its suffix is unknown or a row cannot be read.
        """
        found = read_table(path, self.asked.delimiter)
        self.notes += [note for note in found.notes if note not in self.notes]
        return found.rows

    def checked(self, rows: Sequence[TaskRow], form: TaskSpec) -> list[TaskRow]:
        """Return the rows as `check_golds` does; adds golds that were read from numbers to ``notes``.

        Raises:
            LabelError: as `check_golds`.
        """
        checked = check_golds(rows, form)
        before, after = [row.gold or "" for row in rows], [row.gold or "" for row in checked]
        self.notes += number_coded(before, after, "gold answer")
        return checked

    def _source_column(self, path: Path, first: FileRow) -> str:
        """Return the column of the source; for a text file, which has no columns, that of its lines."""
        from outlay.tasks.readers import TEXT_COLUMN
        from outlay.text.text_file import suffix_of

        is_lines = suffix_of(path) == ".txt" and self.asked.source_column not in first.columns
        return TEXT_COLUMN if is_lines else self.asked.source_column

    def _file_row(self, number: int, row: FileRow, source: str, target: str | None) -> TaskRow:
        text = cell(row, source, "--source-column")
        if text is None or not text.strip():
            raise DataError(f"{row.origin} (row {number}) has an empty source; remove the row")
        gold = None if target is None or row.columns.get(target) is None else cell(row, target, "--target-column")
        return TaskRow(text, self.segments(text), gold, f"{row.origin} (row {number})")

    def segments(self, text: str) -> tuple[str, ...]:
        """Return the text's segments by the task's template; the whole text where the template does not fit."""
        if self.task is None:
            return (text,)
        try:
            fields = {**self.task.format.parse(text), "text": text}
        except DataError:
            return (text,)
        return tuple(fields[name] for name in self.task.segment_names)

    def _target_column(self, path: Path, found: Sequence[FileRow], needs_target: bool) -> str | None:
        name = self.asked.target_column or TARGET
        columns = found[0].columns
        if any(name in row.columns for row in found):
            return name
        if needs_target or self.asked.target_column is not None:
            raise _no_column(str(path), name, columns, "--target-column")
        return None

    def _row(self, example: Example, golds: Mapping[str, str] | None) -> TaskRow:
        assert self.task is not None
        gold = example.label if golds is None else golds.get(example.text)
        return TaskRow(example.text, self.task.segments_of(example), gold, example.origin)

    def _examples(self) -> dict[str, list[Example]]:
        if self._splits is None:
            from outlay.tasks.loading import load_data

            assert self.task is not None
            data = load_data(self.task, self.asked.data)
            self.notes += data.notes
            pool = [example for part in data.pool for example in part.examples]
            self._splits = {"train": data.train, "dev": data.dev, "test": data.test, "pool": pool}
        return self._splits

    def _train_labels(self, n: int | None, seed: int) -> dict[str, str]:
        train = _ordered(self._examples()["train"], seed)[: _count(n)]
        return {example.text: example.label for example in train if example.label is not None}


def check_golds(rows: Sequence[TaskRow], form: TaskSpec) -> list[TaskRow]:
    """Return rows with each gold answer spelled as in the label set; refuse rows that cannot be trained on or scored.

    Raises:
        LabelError: no gold answer, an empty one where there must be one (a text without entities has an empty line), or one
            outside the label set.
    """
    checked = list(rows)
    for i, row in enumerate(rows):
        if row.gold is None or (form.kind != "entities" and not row.gold.strip()):
            raise _unlabelled(rows, row, form)
        if form.kind == "classification" and row.gold not in form.labels:
            checked[i] = replace(row, gold=named_class(row.gold, form.labels))
            if checked[i].gold not in form.labels:
                raise LabelError(f"{row.origin} {label_problem(row.gold, form.labels)}; correct it or --labels")
        if form.kind == "entities" and (rest := unlabelled(row.gold, form.labels)):
            raise LabelError(
                f"{row.origin} has no type behind {shorten(rest)!r}; write `text [Type]`, types are {named(form.labels)}"
            )
    return checked


def _unlabelled(rows: Sequence[TaskRow], first: TaskRow, form: TaskSpec) -> LabelError:
    n_without = sum(row.gold is None or (form.kind != "entities" and not row.gold.strip()) for row in rows)
    also = f", as {n_without:,} of the {len(rows):,} rows have" if n_without > 1 else ""
    return LabelError(f"{first.origin} has an empty target{also}; give it an answer or remove the row")


def number_coded(before: Iterable[str], after: Iterable[str], what: str) -> list[str]:
    """Return a sentence on answers such as 1.0 that were read as the class 1; no sentence where none is."""
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    if not changed:
        return []
    old, new = changed[0]
    are = f"{what} is a number" if len(changed) == 1 else f"{what}s are numbers"
    return [f"{len(changed):,} {are} such as {old}, which is read as {new}"]


def read_table(path: Path, delimiter: str | None = None) -> FileRows:
    """Read the rows of a file: JSON lines, a JSON list of objects, CSV, TSV or text (each also gzip-packed), or Parquet.

    Raises:
        MissingData: the file is absent, empty or breaks off.
        DataError: its suffix is unknown or a row cannot be read.
    """
    from pydantic import ValidationError

    from outlay.tasks.readers import read_file
    from outlay.tasks.sources import DataFile

    if not path.is_file():
        what = "is a folder, not a file of rows" if path.is_dir() else "is not there"
        raise MissingData(f"{path} {what}; check the path")
    try:
        file = DataFile(file=str(path), delimiter=delimiter)
    except ValidationError:
        raise UsageError(
            f"--delimiter {delimiter!r} is no character between columns; give one such as ',', ';' or a tab"
        ) from None
    return read_file(file, path)


def cell(row: FileRow, column: str, option: str) -> str | None:
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


def _count(n: int | None) -> int | None:
    if n is not None and n < 1:
        raise UsageError(f"{n} rows were asked for; ask for at least 1")
    return n


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
