"""From a task file to examples: read, check, number, and keep the test rows out of everything that is trained on.

``load_data`` is the only door. What comes through it has answers that the task allows, stable ids, and no train or pool row
that is also a dev or test row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.entities import parse_entities, unlabelled
from outlay.errors import DataError, LabelError, LeakError, MissingData
from outlay.example import Example, TextFormat, number_repeats, seeded_order, shorten
from outlay.paths import command_line, expand, expand_path, home
from outlay.rows import Row, read_file, read_hub
from outlay.sources import Column, DataFile, Derive, PoolSource, Source, Split
from outlay.task import Task, load_task


@dataclass(frozen=True, slots=True)
class PoolPart:
    """One named part of the unlabelled pool."""

    name: str
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class TaskData:
    """Everything a task's file points to.

    Attributes:
        train: Rows whose labels are for sale.
        dev: Rows to choose models on; empty for ``dev: carved`` and ``dev: none``.
        test: Rows that are scored once, at the end.
        pool: Parts of the unlabelled pool, in the order of the task file; ids are unique over all parts.
        digest: sha256 over split, id, label and text of every example above.
        dropped: Split or ``pool.NAME`` → rows that ``drop_leaks`` left out; empty where none was.
    """

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    pool: list[PoolPart]
    digest: str
    dropped: Mapping[str, int]

    def splits(self) -> list[tuple[str, list[Example]]]:
        """Return train, dev, test and every pool part (as ``pool.NAME``) with their examples."""
        labelled = [("train", self.train), ("dev", self.dev), ("test", self.test)]
        return labelled + [(f"pool.{part.name}", part.examples) for part in self.pool]


@dataclass(frozen=True, slots=True)
class Leak:
    """Rows of one training split whose whole source is also a dev or test row."""

    split: str
    n_rows: int
    n_leaked: int
    first: Example


def data_root(root: Path | None = None) -> Path:
    """Return the folder task files are relative to: ``root``, ``OUTLAY_DATA``, or outlay's own data folder.

    The last one is ``$XDG_DATA_HOME/outlay/data``, or ``~/.local/share/outlay/data``.

    Raises:
        UsageError: a ``~`` that cannot be expanded.
        MissingData: nobody names one, and there is no home folder.
    """
    if root is not None:
        return root
    if named := os.environ.get("OUTLAY_DATA"):
        return expand_path(named)
    if shared := os.environ.get("XDG_DATA_HOME"):
        return expand_path(shared) / "outlay" / "data"
    user = home()
    if user is None:
        raise MissingData("no folder of data sets: there is no home folder; name one with --data or OUTLAY_DATA")
    return user / ".local" / "share" / "outlay" / "data"


def locate(task: Task, file: DataFile, root: Path | None = None) -> Path:
    """Return where a task's file lies: beside the task's own YAML if it is there, else below the data folder."""
    name = expand(file.file)
    if Path(name).is_absolute():
        return Path(name)
    if task.folder is not None and (beside := task.folder / name).exists():
        return beside
    return data_root(root) / name


def get_command(task: Task) -> str:
    """The command that brings a task's data from a mirror, which is for the user to name."""
    return f"{command_line('outlay', 'data', 'get', task.reference)} --from DIR_OR_URL"


def load_data(task: Task, root: Path | None = None) -> TaskData:
    """Read every split and pool part of a task.

    Args:
        task: The task.
        root: Data folder; by default ``OUTLAY_DATA`` or outlay's own data folder.

    Raises:
        MissingData: A file is absent, empty, half-written, or has another sha256 or number of rows.
        LabelError: A gold label is missing or outside the label set; an answer is empty, or an entity has no type.
        LeakError: Train or pool rows are dev or test rows, and the task does not say ``drop_leaks``.
        DataError: A row does not have the columns, or does not fit the template, that the task names.
    """
    reader = _Reader(task, root)
    train, test = reader.split("train"), reader.split("test")
    dev = reader.split("dev") if task.data.dev is not None else []
    if task.dev == "bought" and task.n_dev is not None:
        dev = [dev[i] for i in seeded_order([example.id for example in dev], 0)[: task.n_dev]]
    pool = reader.pool()
    held = {source_key(task, example) for example in [*dev, *test]}
    leaks = _leaks_into(task, held, [("train", train), *((f"pool.{part.name}", part.examples) for part in pool)])
    if leaks and not task.drop_leaks:
        raise _leak_error(task, leaks)
    if leaks:
        train = _without(task, train, held)
        pool = [PoolPart(part.name, _without(task, part.examples, held)) for part in pool]
    dropped = {leak.split: leak.n_leaked for leak in leaks}
    digest = _digest([("train", train), ("dev", dev), ("test", test), *((f"pool.{p.name}", p.examples) for p in pool)])
    return TaskData(train, dev, test, pool, digest, dropped)


def fold(text: str) -> str:
    """Return a text lower-cased, with every run of white space as one blank: what counts as the same text."""
    return " ".join(text.lower().split())


def source_key(task: Task, example: Example) -> tuple[str, ...]:
    """Return what makes two examples the same source: all fields folded, in any order for a symmetric task."""
    key = tuple(fold(value) for _, value in example.fields)
    return tuple(sorted(key)) if task.symmetric else key


def answer_problem(task: Task, answer: str) -> str | None:
    """Say what is wrong with a gold answer, to be put behind the name of its row; None when the task allows it."""
    allowed = ", ".join(task.labels)
    if task.kind == "classification" and answer not in task.labels:
        return f"has the label {shorten(answer)!r}, allowed are {allowed}; correct it or `labels`"
    if task.kind == "entities":
        if rest := unlabelled(answer, task.labels):
            return f"has no type behind {shorten(rest)!r} in its target; write `text [Type]`, types are {allowed}"
        if any(not entity.text for entity in parse_entities(answer, task.labels)):
            return f"has a type without a text before it in its target {shorten(answer)!r}; write `text [Type]`"
    if task.kind == "generation" and not answer.strip():
        return "has an empty target; write the answer or remove the row"
    return None


def find_leaks(task: Task, data: TaskData) -> list[Leak]:
    """Return the training splits of ``data`` that share whole sources with dev or test."""
    held = {source_key(task, example) for example in [*data.dev, *data.test]}
    return _leaks_into(task, held, [split for split in data.splits() if split[0] not in ("dev", "test")])


def check_leaks(task: Task, data: TaskData) -> None:
    """Refuse data whose train or pool rows are also dev or test rows.

    Raises:
        LeakError: There is such a row.
    """
    if leaks := find_leaks(task, data):
        raise _leak_error(task, leaks)


def _leaks_into(task: Task, held: set[tuple[str, ...]], splits: Sequence[tuple[str, list[Example]]]) -> list[Leak]:
    leaks = []
    for name, examples in splits:
        shared = [example for example in examples if source_key(task, example) in held]
        if shared:
            leaks.append(Leak(name, len(examples), len(shared), shared[0]))
    return leaks


def _leak_error(task: Task, leaks: Sequence[Leak]) -> LeakError:
    counts = ", ".join(f"{leak.n_leaked} of {leak.n_rows} {leak.split} rows" for leak in leaks)
    first = leaks[0].first
    return LeakError(
        f"task {task.name}: {counts} are also dev or test rows, the first at {first.origin} ({shorten(first.text)!r}); "
        "remove them, or set `drop_leaks: true` in the task file to leave them out"
    )


def _without(task: Task, examples: Iterable[Example], held: set[tuple[str, ...]]) -> list[Example]:
    return [example for example in examples if source_key(task, example) not in held]


def _digest(splits: Iterable[tuple[str, list[Example]]]) -> str:
    digest = hashlib.sha256()
    for name, examples in splits:
        for example in examples:
            digest.update(json.dumps([name, example.id, example.label, example.text]).encode())
            digest.update(b"\n")
    return digest.hexdigest()


class _Reader:
    """Reads the sources of one task; a file that several sources name is read once."""

    def __init__(self, task: Task, root: Path | None, above: tuple[str, ...] = ()) -> None:
        self._task = task
        self._root = root
        self._above = above
        self._files: dict[Path, list[Row]] = {}
        self._splits: dict[Split, list[Example]] = {}
        self._orders: dict[tuple[str, int], list[int]] = {}

    def split(self, name: Split) -> list[Example]:
        """Return a labelled split with the ids of its examples set."""
        if name not in self._splits:
            sources = self._task.data.sources_of(name)
            if not sources:
                raise DataError(f"task {self._task.name} has no {name} split; add `data.{name}` or name another split")
            self._splits[name] = number_repeats(example for source in sources for example in self._examples(source))
        return self._splits[name]

    def pool(self) -> list[PoolPart]:
        """Return the pool's parts; repeats are numbered through all of them, or left out where a part is ``distinct``."""
        seen: set[tuple[str, ...]] = set()
        parts = [(part.name, self._part(part, seen)) for part in self._task.pool]
        numbered = iter(number_repeats(example for _, examples in parts for example in examples))
        return [PoolPart(name, [next(numbered) for _ in examples]) for name, examples in parts]

    def _part(self, part: PoolSource, seen: set[tuple[str, ...]]) -> list[Example]:
        """Return the examples of one part of the pool; the sources ``seen`` in parts before it grow by its own."""
        if not part.distinct:
            examples = list(self._examples(part))
            seen.update(source_key(self._task, example) for example in examples)
            return examples
        kept: list[Example] = []
        for example in self._examples(part, to_the_end=True):
            key = source_key(self._task, example)
            if key not in seen:
                seen.add(key)
                kept.append(example)
            if len(kept) == part.n:
                return kept
        if part.n is not None:
            found = f"task {self._task.name}: pool.{part.name} has {len(kept)} rows that are new to the pool"
            raise MissingData(f"{found}, not the {part.n} of `n`; ask for fewer")
        return kept

    def _examples(self, source: Source, *, to_the_end: bool = False) -> Iterator[Example]:
        table = _Table(self._rows(source), source.source, self._format(source), source.where)
        columns = {name: source.fields.get(name, name) for name in self._task.format.names}
        take = {name: c if isinstance(c, Column) else Column(column=c) for name, c in columns.items()}
        others = {name: self._file(c.other) for name, c in take.items() if c.other is not None}
        for index in self._chosen(source, table, to_the_end):
            fields = []
            for name, column in take.items():
                place = index + column.from_next_row
                if name in others:
                    row = others[name][place % len(others[name])]
                    fields.append((name, _value(row, row.columns, column.column)))
                else:
                    fields.append((name, table.value(place % len(table), column.column)))
            row = table.rows[index]
            text = self._task.format.render(dict(fields))
            if not any(value.strip() for _, value in fields):
                raise DataError(f"{row.origin} is an empty text; remove the row")
            yield Example("", tuple(fields), text, self._label(source, table, index), row.origin)

    def _chosen(self, source: Source, table: _Table, to_the_end: bool) -> list[int]:
        """Return the indices of the rows a source takes: all in order, or a stretch of the seeded order.

        With ``to_the_end`` the stretch does not stop behind ``n`` rows: the caller does.
        """
        n_rows = len(table)
        if not n_rows:
            raise MissingData(
                f"task {self._task.name}: no row agrees with `where` {dict(source.where)}; correct the values"
            )
        if source.n is None and not source.skip:
            return list(range(n_rows))
        stop = n_rows if source.n is None else source.skip + source.n
        if stop > n_rows or source.skip >= n_rows:
            file = table.rows[0].origin.rpartition(":")[0]
            asked = f"skip {source.skip}" + (f" and n {source.n}" if source.n is not None else "")
            raise MissingData(f"task {self._task.name}: {asked} reach past the {n_rows} rows of {file}; ask for fewer")
        return self._order(source, table)[source.skip : None if to_the_end else stop]

    def _order(self, source: Source, table: _Table) -> list[int]:
        """Return the seeded order of a source's rows; that of a whole file is made once for all its parts."""
        if source.file is None or source.where:
            return seeded_order([row.origin for row in table.rows], source.seed)
        key = source.file, source.seed
        if key not in self._orders:
            self._orders[key] = seeded_order([row.origin for row in table.rows], source.seed)
        return self._orders[key]

    def _format(self, source: Source) -> TextFormat:
        return TextFormat(source.template) if source.template is not None else self._task.format

    def _label(self, source: Source, table: _Table, index: int) -> str | None:
        if source.target is None:
            return None
        row, columns = table.rows[index], table.columns(index)
        may_be_empty = self._task.kind == "entities"
        if columns.get(source.target) is None or not (may_be_empty or table.value(index, source.target).strip()):
            labels = ", ".join(self._task.labels)
            wanted = f"give it one of {labels}" if self._task.kind == "classification" else "write it or remove the row"
            there = "" if source.target in columns else f" (its columns are {', '.join(columns)})"
            what = "label" if self._task.kind == "classification" else "answer"
            raise LabelError(f"{row.origin} has no {what} in column {source.target!r}{there}; {wanted}")
        written = table.value(index, source.target)
        label = source.label_names.get(written, written)
        problem = answer_problem(self._task, label)
        if problem is not None:
            raise LabelError(f"{row.origin} {problem}")
        return label

    def _rows(self, source: Source) -> list[Row]:
        if source.data_file is not None:
            return self._file(source.data_file)
        if source.hub is not None:
            return read_hub(source.hub)
        if source.derive is not None:
            return self._derived(source.derive)
        assert isinstance(source, PoolSource)
        assert source.split is not None
        return [Row(example.origin, dict(example.fields)) for example in self.split(source.split)]

    def _file(self, file: DataFile) -> list[Row]:
        path = locate(self._task, file, self._root)
        if path not in self._files:
            if not path.is_file():
                way_out = f"`{get_command(self._task)}` lays it there"
                raise MissingData(f"{path} is not there; {way_out}, or OUTLAY_DATA names another data folder")
            self._files[path] = read_file(file, path)
        return self._files[path]

    def _derived(self, derive: Derive) -> list[Row]:
        other = derived_task(self._task, derive)
        above = (*self._above, self._task.name)
        if other.name in above:
            raise DataError(
                f"task {other.name} is derived from itself ({' from '.join((*above, other.name))}); break the ring"
            )
        examples = _Reader(other, self._root, above).split(derive.split)
        return [Row(e.origin, {**dict(e.fields), "text": e.text, "label": e.label}) for e in examples]


def derived_task(task: Task, derive: Derive) -> Task:
    """Load the task that ``derive`` names; a path is relative to the folder of the deriving task's file.

    Raises:
        UnknownTask: There is no such task.
        TaskFileError: Its file does not fit the schema.
    """
    beside = task.folder / expand(derive.task) if task.folder is not None else None
    return load_task(beside if beside is not None and beside.is_file() else derive.task)


class _Table:
    """The rows of a source that ``where`` keeps; a row's whole text is taken apart when its columns are asked for."""

    def __init__(
        self, rows: list[Row], text_column: str | None, text_format: TextFormat, where: Mapping[str, Any]
    ) -> None:
        self._text_column = text_column
        self._format = text_format
        self.rows = rows
        if where:
            wanted = {column: {w} if isinstance(w, str) else set(w) for column, w in where.items()}
            kept = [i for i in range(len(rows)) if all(self.value(i, c) in values for c, values in wanted.items())]
            self.rows = [rows[i] for i in kept]

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self, index: int) -> Mapping[str, Any]:
        row = self.rows[index]
        if self._text_column is None:
            return row.columns
        text = _value(row, row.columns, self._text_column)
        try:
            return {**row.columns, **self._format.parse(text)}
        except DataError as error:
            raise DataError(f"{row.origin}: {error}") from None

    def value(self, index: int, column: str) -> str:
        return _value(self.rows[index], self.columns(index), column)


def _value(row: Row, columns: Mapping[str, Any], column: str) -> str:
    """Return one value as text; numbers and truth values are written as JSON writes them."""
    value = columns.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return json.dumps(value)
    if column not in columns:
        raise DataError(f"{row.origin} has no column {column!r}; its columns are {', '.join(columns)}")
    raise DataError(
        f"{row.origin} column {column!r} holds {type(value).__name__}, not a text; correct or remove the row"
    )
