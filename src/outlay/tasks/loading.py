"""Load a task's data: read its files, check rows, number them, and keep test rows out of everything that is trained on.

``load_data`` is the only door. What comes through it has answers that the task allows, stable ids, and no train or pool row
that is also a dev or test row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from outlay.errors import DataError, LabelError, MissingData
from outlay.spec import named_class
from outlay.storage.paths import command_line, expand, expand_path, home
from outlay.tasks.example import Example, TextFormat, number_repeats, seeded_order, shorten
from outlay.tasks.leaks import find_leaks, leak_error, source_key, without_leaks
from outlay.tasks.readers import TEXT_COLUMN, FileRows, SourceRow, read_file, read_hub
from outlay.tasks.source_table import SourceTable
from outlay.tasks.sources import Column, DataFile, Derive, PoolSource, Source, Split
from outlay.tasks.splits import PoolPart, TaskData
from outlay.tasks.task import Task, load_task
from outlay.text.entities import parse_entities, unlabelled
from outlay.text.legible import label_problem, named
from outlay.text.text_file import suffix_of

# Paths are looked up by `os.path`: those that the system refuses, such as one too long, are not there.


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
    if user := home():
        return user / ".local" / "share" / "outlay" / "data"
    raise MissingData("no folder of data sets: there is no home folder; name one with --data or OUTLAY_DATA")


def locate(task: Task, file: DataFile, root: Path | None = None) -> Path:
    """Return where a task's file lies: beside the task's own YAML if it is there, else below the data folder."""
    name = expand(file.file)
    if Path(name).is_absolute():
        return Path(name)
    if task.folder is not None and os.path.exists(beside := task.folder / name):  # noqa: PTH110
        return beside
    return data_root(root) / name


def get_command(task: Task) -> str:
    """Return the command that brings a task's data from a mirror, which is for the user to name."""
    return f"{command_line('outlay', 'data', 'get', task.reference)} --from DIR_OR_URL"


def load_data(task: Task, root: Path | None = None) -> TaskData:
    """Read every split and pool part of a task; ``root``: the data folder, by default that of `data_root`.

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
    data = TaskData(train, dev, test, pool, notes=tuple(reader.notes()), owned=frozenset(reader.owned))
    leaks = find_leaks(task, data)
    if leaks and not task.drop_leaks:
        raise leak_error(task, leaks)
    return without_leaks(task, data, leaks) if leaks else data


def _answer_problem(task: Task, answer: str) -> str | None:
    """Say what is wrong with a gold answer, to be put behind the name of its row; None when the task allows it."""
    allowed = named(task.labels)
    if task.kind == "classification" and answer not in task.labels:
        return f"{label_problem(answer, task.labels)}; correct it or `labels`, or translate it by `label_names`"
    if task.kind == "entities":
        if rest := unlabelled(answer, task.labels):
            return f"has no type behind {shorten(rest)!r} in its target; write `text [Type]`, types are {allowed}"
        if any(not entity.text for entity in parse_entities(answer, task.labels)):
            return f"has a type without a text before it in its target {shorten(answer)!r}; write `text [Type]`"
    if task.kind == "generation" and not answer.strip():
        return "has an empty target; write the answer or remove the row"
    return None


def _group(source: Source, table: SourceTable, index: int) -> str | None:
    return None if source.group is None else table.value_or_none(index, source.group) or None


class _Reader:
    """Reads the sources of one task; a file that several sources name is read once."""

    def __init__(self, task: Task, root: Path | None, above: tuple[str, ...] = ()) -> None:
        self._task = task
        self._root = root
        self._above = above
        self._files: dict[tuple[Path, str | None], FileRows] = {}
        self._number_coded: dict[str, tuple[str, str]] = {}
        self._derived_notes: list[str] = []
        self._splits: dict[Split, list[Example]] = {}
        self.owned: set[str] = set()
        """Ids of the rows of the training split, once it is read, whose labels are owned."""
        self._orders: dict[tuple[str, int], list[int]] = {}

    def notes(self) -> list[str]:
        """Return the decisions that could have been otherwise: of each file once, and of labels that are numbers."""
        codes = self._number_coded.items()
        coded = [f"{file}: labels such as {written} are read as {label}" for file, (written, label) in codes]
        of_files = [note for read in self._files.values() for note in read.notes]
        return list(dict.fromkeys([*of_files, *coded, *self._derived_notes]))

    def split(self, name: Split) -> list[Example]:
        """Return a labelled split with the ids of its examples set."""
        if name not in self._splits:
            sources = self._task.data.sources_of(name)
            if not sources:
                raise DataError(f"task {self._task.name} has no {name} split; add `data.{name}` or name another split")
            found = [list(self._examples(source)) for source in sources]
            numbered = number_repeats(example for examples in found for example in examples)
            are_owned = [source.owned for source, examples in zip(sources, found, strict=True) for _ in examples]
            self._splits[name] = numbered
            self.owned |= {each.id for each, is_owned in zip(numbered, are_owned, strict=True) if is_owned}
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
        text_format = TextFormat(source.template) if source.template is not None else self._task.format
        whole = (source.source, text_format) if source.source is not None else None
        table = SourceTable(self._rows(source), whole, source.where)
        if whole and source.target in text_format.names and any(source.target in row.columns for row in table.rows):
            raise DataError(
                f"task {self._task.name}: {source.target!r} is a column of the rows and a part of the text in "
                f"{source.source!r}; name the field of the template otherwise"
            )
        if source.group is not None and not any(source.group in row.columns for row in table.rows):
            table.value(0, source.group)  # refuses the column
        if source.group is not None and not any(source.group in row.columns for row in table.rows):
            columns_there = named({name for row in table.rows for name in row.columns})
            raise DataError(
                f"task {self._task.name}: no row has the column {source.group!r} of `group`; its columns are {columns_there}"
            )
        columns = self._columns(source)
        others = {name: SourceTable(self._file(c.other)) for name, c in columns.items() if c.other is not None}
        for index in self._chosen(source, table, to_the_end):
            fields = []
            for name, column in columns.items():
                rows = others.get(name, table)
                fields.append((name, rows.value((index + column.from_next_row) % len(rows), column.column)))
            origin = table.rows[index].origin
            if not any(value.strip() for _, value in fields):
                raise DataError(f"{origin} is an empty text; remove the row")
            text = self._task.format.render(dict(fields))
            yield Example(
                "", tuple(fields), text, self._label(source, table, index), origin, _group(source, table, index)
            )

    def _columns(self, source: Source) -> dict[str, Column]:
        """Return the column of each field; the only field of a task is the line of a text file."""
        names = self._task.format.names
        is_lines = source.file is not None and suffix_of(Path(source.file)) == ".txt" and source.source is None
        own = {names[0]: TEXT_COLUMN} if is_lines and len(names) == 1 else {name: name for name in names}
        named = {name: source.fields.get(name, column) for name, column in own.items()}
        return {name: c if isinstance(c, Column) else Column(column=c) for name, c in named.items()}

    def _chosen(self, source: Source, table: SourceTable, to_the_end: bool) -> list[int]:
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

    def _order(self, source: Source, table: SourceTable) -> list[int]:
        """Return the seeded order of a source's rows; that of a whole file is made once for all its parts."""
        if source.file is None or source.where:
            return seeded_order([row.origin for row in table.rows], source.seed)
        key = source.file, source.seed
        if key not in self._orders:
            self._orders[key] = seeded_order([row.origin for row in table.rows], source.seed)
        return self._orders[key]

    def _label(self, source: Source, table: SourceTable, index: int) -> str | None:
        if source.target is None:
            return None
        row = table.rows[index]
        written = self._answer(table, index, source.target)
        if written is None:
            raise self._unlabelled(table, index, source.target)
        label = source.label_names.get(named_class(written, list(source.label_names)), written)
        if self._task.kind == "classification" and (known := named_class(label, self._task.labels)) != label:
            self._number_coded.setdefault(row.origin.rpartition(":")[0], (written, known))
            label = known
        if problem := _answer_problem(self._task, label):
            raise LabelError(f"{row.origin} {problem}")
        return label

    def _answer(self, table: SourceTable, index: int, target: str) -> str | None:
        """Return a row's answer as it is written, None where it has none; a text without entities has an empty answer."""
        value = table.value_or_none(index, target)
        return value if self._task.kind == "entities" or (value is not None and value.strip()) else None

    def _unlabelled(self, table: SourceTable, index: int, target: str) -> LabelError:
        """Say which row has no label, and how many more have none."""
        is_class, row = self._task.kind == "classification", table.row(index)
        what = "label" if is_class else "answer"
        there = "" if target in row.columns else f" (its columns are {named(row.columns)})"
        wanted = f"give it one of {named(self._task.labels)}" if is_class else "write it or remove the row"
        n_without = sum(self._answer(table, i, target) is None for i in range(len(table)))
        if n_without > 1:
            there += f", nor have {n_without - 1:,} more of the {len(table):,} rows"
            wanted += ", or move such rows to a file of their own and name it in `pool`"
        return LabelError(f"{row.origin} has no {what} in column {target!r}{there}; {wanted}")

    def _rows(self, source: Source) -> list[SourceRow]:
        if source.data_file is not None:
            return self._file(source.data_file)
        if source.hub is not None:
            return read_hub(source.hub)
        if source.derive is not None:
            return self._derived(source.derive)
        # What is left is a part of the pool: the sources of the training split.
        return [SourceRow(example.origin, dict(example.fields)) for example in self.split("train")]

    def _file(self, file: DataFile) -> list[SourceRow]:
        at = locate(self._task, file, self._root), file.delimiter
        if at not in self._files:
            if not os.path.isfile(at[0]):  # noqa: PTH113
                raise self._absent(file, at[0])
            self._files[at] = read_file(file, at[0])
        return self._files[at].rows

    def _absent(self, file: DataFile, path: Path) -> MissingData:
        """Say where a file was looked for, and the way out: only files with a public origin can be fetched."""
        folder = self._task.folder
        if folder is None:
            way_out = f"`{get_command(self._task)}` lays it there"
            return MissingData(f"{path} is not there; {way_out}, or OUTLAY_DATA names another data folder")
        if os.path.exists(path):  # noqa: PTH110
            return MissingData(f"{path} is a folder, not a file of rows; name the file")
        beside = folder / expand(file.file)
        where = f"{beside} is not there" + (f", nor is {path}" if beside != path else "")
        fetched = f", or `{get_command(self._task)}` fetches it" if file.origin is not None else ""
        return MissingData(f"{where}; correct `file` in the task, or put the file there{fetched}")

    def _derived(self, derive: Derive) -> list[SourceRow]:
        other = derived_task(self._task, derive)
        above = (*self._above, self._task.name)
        if other.name in above:
            raise DataError(
                f"task {other.name} is derived from itself ({' from '.join((*above, other.name))}); break the ring"
            )
        if taken := {"label"} & set(other.format.names):
            raise DataError(
                f"task {other.name} has a field named {taken.pop()!r}, which is the column of its answers where rows are "
                "derived from it; name the field otherwise"
            )
        reader = _Reader(other, self._root, above)
        examples = reader.split(derive.split)
        self._derived_notes += reader.notes()
        return [SourceRow(e.origin, {**dict(e.fields), "text": e.text, "label": e.label}) for e in examples]


def derived_task(task: Task, derive: Derive) -> Task:
    """Load the task that ``derive`` names; a path is relative to the folder of the deriving task's file.

    Raises:
        UnknownTask: There is no such task.
        TaskFileError: Its file does not fit the schema.
    """
    beside = task.folder / expand(derive.task) if task.folder is not None else None
    return load_task(beside if beside is not None and beside.is_file() else derive.task)
