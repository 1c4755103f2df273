"""The rows of a step and the question that is asked of them: from a task, or from files and a few words."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from outlay.canonical import key_of
from outlay.entities import unlabelled
from outlay.errors import DataError, LabelError, MissingData, UsageError
from outlay.example import Example, seeded_order, shorten
from outlay.form import Family, Form, Kind

if TYPE_CHECKING:
    from outlay.rows import Row as FileRow
    from outlay.task import Task

SPLITS = ("train", "dev", "test", "pool")
SOURCE, TARGET = "source", "target"
CUSTOM_ID = "custom_id"
"""Column by which the answers of a batch find their requests, as OpenAI's API has it."""
N_SHOWN = 3
"""Names that are shown of many."""
MAX_SOURCE_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Row:
    """One input: the whole text, the one or two segments an encoder may read instead, the gold answer where it is known."""

    text: str
    segments: tuple[str, ...]
    gold: str | None
    origin: str

    def to_json(self) -> dict[str, Any]:
        """For ``rows.jsonl``; what goes without saying is left out."""
        document: dict[str, Any] = {"source": self.text}
        if self.segments != (self.text,):
            document["segments"] = list(self.segments)
        if self.gold is not None:
            document["gold"] = self.gold
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any], origin: str) -> Row:
        """Inverse of `to_json`."""
        text = document["source"]
        return cls(text, tuple(document.get("segments", (text,))), document.get("gold"), origin)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user says of rows and question; what is ``None`` comes from the task, the model, or a default.

    ``target_column``: ``None`` reads ``target`` where a file has it.
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


def sources_of(rows: Sequence[Row], family: Family, kind: Kind) -> list[tuple[str, ...]]:
    """What a model of a family reads: an encoder that classifies reads segments, everything else the whole text.

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


def rows_digest(rows: Sequence[Row]) -> str:
    """Over texts, segments and gold answers, in order."""
    return key_of([[row.text, list(row.segments), row.gold] for row in rows])


class Inputs:
    """Reads the rows that a user names, from the splits of a task or from files.

    Raises:
        UnknownTask: there is no such task.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.task: Task | None = None
        if asked.task is not None:
            from outlay.task import load_task

            self.task = load_task(asked.task)
        self._splits: dict[str, list[Example]] | None = None

    def form(self, saved: Form | None = None) -> Form:
        """The question: of the model that answers it (``saved``), else of the task, else in the user's words.

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
        from outlay.task import MAX_TARGET_TOKENS

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
        form = Form(
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

    def split(self, name: str, *, n: int | None, seed: int, n_gold: int | None = None) -> list[Row]:
        """The first ``n`` rows of a task's split in the seed's order (the test split in its own), as `outlay run` takes them.

        Rows of the pool carry the label of the train row with the same text, where it is one of the first ``n_gold``.

        Raises:
            UsageError: no split of that name, or an empty one.
            DataError: what `outlay.data.load_data` finds wrong.
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

    def file(self, path: Path, *, n: int | None, needs_target: bool) -> list[Row]:
        """The first ``n`` rows of a file, in its order.

        Raises:
            MissingData: the file is absent, empty or breaks off.
            DataError: it lacks a column, or a source is empty.
        """
        found = read_table(path)
        target = self._target_column(path, found, needs_target)
        return [self._file_row(number, row, target) for number, row in enumerate(found[: _count(n)], start=1)]

    def _file_row(self, number: int, row: FileRow, target: str | None) -> Row:
        text = cell(row, self.asked.source_column, "--source-column")
        if not text.strip():
            raise DataError(f"{row.origin} (row {number}) has an empty source; remove the row")
        gold = None if target is None or row.columns.get(target) is None else cell(row, target, "--target-column")
        return Row(text, self.segments(text), gold, f"{row.origin} (row {number})")

    def segments(self, text: str) -> tuple[str, ...]:
        """The text taken apart by the task's template where it fits."""
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
        if name in columns:
            return name
        if needs_target or self.asked.target_column is not None:
            raise _no_column(str(path), name, columns, "--target-column")
        return None

    def _row(self, example: Example, golds: Mapping[str, str] | None) -> Row:
        assert self.task is not None
        gold = example.label if golds is None else golds.get(example.text)
        return Row(example.text, self.task.segments_of(example), gold, example.origin)

    def _examples(self) -> dict[str, list[Example]]:
        if self._splits is None:
            from outlay.data import load_data

            assert self.task is not None
            data = load_data(self.task, self.asked.data)
            pool = [example for part in data.pool for example in part.examples]
            self._splits = {"train": data.train, "dev": data.dev, "test": data.test, "pool": pool}
        return self._splits

    def _train_labels(self, n: int | None, seed: int) -> dict[str, str]:
        train = _ordered(self._examples()["train"], seed)[: _count(n)]
        return {example.text: example.label for example in train if example.label is not None}


def check_golds(rows: Sequence[Row], form: Form) -> None:
    """Refuse rows that cannot be trained on or scored.

    Raises:
        LabelError: no gold answer, an empty one where there must be one (a text without entities has an empty line), or one
            outside the label set.
    """
    for row in rows:
        if row.gold is None or (form.kind != "entities" and not row.gold.strip()):
            raise LabelError(f"{row.origin} has an empty target; give it an answer or remove the row")
        if form.kind == "classification" and row.gold not in form.labels:
            known = ", ".join(form.labels)
            raise LabelError(
                f"{row.origin} has the label {shorten(row.gold)!r}, allowed are {known}; correct it or --labels"
            )
        if form.kind == "entities" and (rest := unlabelled(row.gold, form.labels)):
            known = ", ".join(form.labels)
            raise LabelError(
                f"{row.origin} has no type behind {shorten(rest)!r}; write `text [Type]`, types are {known}"
            )


def read_table(path: Path) -> list[FileRow]:
    """Rows of a file: JSON lines, a JSON list of objects, CSV or TSV (each also gzip-packed), or Parquet.

    Raises:
        MissingData: the file is absent, empty or breaks off.
        DataError: its suffix is unknown or a row cannot be read.
    """
    from outlay.rows import read_file
    from outlay.sources import DataFile

    if not path.is_file():
        raise MissingData(f"{path} is not there; check the path")
    if path.name.endswith((".json", ".json.gz")):
        return _json_rows(path)
    return read_file(DataFile(file=str(path)), path)


def cell(row: FileRow, column: str, option: str) -> str:
    """One value as text.

    Raises:
        DataError: no such column, or neither text nor number in it.
    """
    if column not in row.columns:
        raise _no_column(row.origin, column, row.columns, option)
    value = row.columns[column]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return json.dumps(value)
    raise DataError(
        f"{row.origin} column {column!r} holds {type(value).__name__}, not a text; correct or remove the row"
    )


def _json_rows(path: Path) -> list[FileRow]:
    """A list of objects, or objects one a line, as the public files of Kang et al. 2023 are."""
    from outlay.rows import Row as Found

    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise MissingData(f"{path} cannot be read ({error}); it looks half-written, fetch it again") from None
    try:
        whole = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in _lines(text)]
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is neither a JSON list nor one JSON object a line: {error.msg}; correct it") from None
    if not whole:
        raise MissingData(f"{path} is empty; fetch it again or write rows into it")
    for number, columns in enumerate(whole, start=1):
        if not isinstance(columns, dict):
            raise DataError(f"{path}:{number} holds {type(columns).__name__}, not an object; write one object a row")
    return [Found(f"{path}:{number}", columns) for number, columns in enumerate(whole, start=1)]


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _no_column(where: str, name: str, columns: Mapping[str, Any], option: str) -> DataError:
    return DataError(f"{where} has no column {name!r}; its columns are {', '.join(columns)}; name one with {option}")


def _check_form(form: Form) -> None:
    for name, value in (("source", form.max_source_tokens), ("target", form.max_target_tokens)):
        if value < 1:
            raise UsageError(f"--max-{name}-tokens is {value}; it must be at least 1")
    least = {"classification": 2, "entities": 1, "generation": 0}[form.kind]
    if len(form.labels) < least:
        raise UsageError(
            f"{form.kind} needs {'labels' if least > 1 else 'a label'}, and {len(form.labels) or 'none'} came; "
            "write them with commas: --labels NO,YES"
        )
    if form.kind == "generation" and form.labels:
        raise UsageError(f"generation has free answers, and --labels gives {len(form.labels)}; leave them out")
    if len(set(form.labels)) != len(form.labels):
        raise UsageError(f"--labels {','.join(form.labels)} names a label twice; write each once")


def _asks(form: Form) -> str:
    return f"{form.kind} over {', '.join(form.labels)}" if form.labels else str(form.kind)


def _ordered(examples: Sequence[Example], seed: int) -> list[Example]:
    return [examples[i] for i in seeded_order([example.id for example in examples], seed)]


def some_of(names: Sequence[str]) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - N_SHOWN:,} more" if len(names) > N_SHOWN else ""
    return ", ".join(repr(shorten(name)) for name in names[:N_SHOWN]) + more


def check_each_once(ids: Iterable[str], what: str) -> None:
    """Refuse names of rows that are there more than once; ``what``: who gives them, such as a file.

    Raises:
        DataError: names the first of them.
    """
    twice = [name for name, n in Counter(ids).items() if n > 1]
    if twice:
        raise DataError(f"{what} {len(twice):,} {CUSTOM_ID} more than once: {some_of(twice)}; keep one of each")


def _count(n: int | None) -> int | None:
    if n is not None and n < 1:
        raise UsageError(f"{n} rows were asked for; ask for at least 1")
    return n


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
