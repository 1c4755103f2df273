"""Task files: what is predicted, from which text, on which data, at which price.

A task is one YAML file. This module reads and checks the file; :mod:`outlay.data` reads the rows it points to.
Every key is described in ``docs/tasks.md`` and in the JSON Schema ``tasks/task.schema.json``.
"""

from __future__ import annotations

import difflib
import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from outlay.errors import DataError, TaskFileError, UnknownTask
from outlay.example import Example, TextFormat, shorten

SHIPPED = Path(__file__).parent / "tasks"
DEFAULT_DEV_FRACTION = 0.1
"""Share of the bought labels that ``dev: carved`` sets aside when the task names none."""


def _as_text(value: object) -> object:
    """Read a YAML number as the text it was written as; booleans stay what they are and are refused."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Value = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | int | float)]
NonEmpty = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Split = Literal["train", "dev", "test"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, str_strip_whitespace=False)


class Origin(_Model):
    """Where anyone can get the data: the public copy, and how it was split."""

    url: NonEmpty
    """Address of the public repository or page."""
    commit: str | None = None
    """Commit of the repository that was read."""
    path: str | None = None
    """Files inside the repository."""
    split: str | None = None
    """How rows were assigned to this file."""
    licence: str | None = None
    """Licence the origin states."""


class DataFile(_Model):
    """One file of rows: JSON lines, CSV, TSV (each also gzip-packed) or Parquet, told by its suffix."""

    file: NonEmpty
    """Path below the data folder; for a task file of your own first below the folder of the YAML file."""
    rows: int | None = Field(default=None, gt=0)
    """Number of rows the file must have."""
    sha256: Sha256 | None = None
    """Digest of the file's bytes as they lie on disk (packed, if it is packed)."""
    origin: Origin | None = None
    """Public origin, printed when there is no mirror to fetch from."""


class Hub(_Model):
    """A data set of the ``datasets`` library."""

    name: NonEmpty
    """Name on the hub, such as ``tweet_eval``."""
    config: str | None = None
    """Configuration, such as ``hate``."""
    split: NonEmpty
    """Split, such as ``train``."""
    revision: str | None = None
    """Commit of the data set; without it the newest one is read."""


class Derive(_Model):
    """Rows made from a split of another task; its fields, ``text`` and ``label`` are their columns."""

    task: NonEmpty
    """Name or path of the other task."""
    split: Split
    """Split whose rows are read."""


class Column(_Model):
    """The value of a field, taken from a column of this row, of a later row, or of another file."""

    column: NonEmpty
    """Name of the column."""
    from_next_row: int = Field(default=0, ge=0)
    """How many rows further down, among those `where` keeps; behind the last row it goes on at the first."""
    other: DataFile | None = None
    """Another file whose column is read instead, row by row, from the beginning again when it ends."""


class Source(_Model):
    """Rows, and how they become examples. Exactly one of ``file``, ``hub`` and ``derive`` says where rows come from."""

    file: NonEmpty | None = None
    """Path of a file; see ``DataFile``."""
    rows: int | None = Field(default=None, gt=0)
    """Number of rows the file must have."""
    sha256: Sha256 | None = None
    """Digest of the file's bytes as they lie on disk."""
    origin: Origin | None = None
    """Public origin of the file."""
    hub: Hub | None = None
    """A data set of the ``datasets`` library instead of a file."""
    derive: Derive | None = None
    """A split of another task instead of a file."""
    source: NonEmpty | None = None
    """Column that holds a whole text; it is taken apart by ``template``, whose names become columns as well."""
    template: NonEmpty | None = None
    """Template of the ``source`` column where it is not the task's own ``text``."""
    fields: dict[str, NonEmpty | Column] = Field(default_factory=dict)
    """Task field → column; a field that is not named here is read from the column of its own name."""
    target: NonEmpty | None = None
    """Column of the gold label."""
    label_names: dict[Annotated[str, BeforeValidator(_as_text)], NonEmpty] = Field(default_factory=dict)
    """Label as written in the rows → label of the task; labels not named here stay as they are."""
    where: dict[str, Value | tuple[Value, ...]] = Field(default_factory=dict)
    """Column → value (or list of values): only rows that agree are kept."""
    skip: int = Field(default=0, ge=0)
    """Number of rows to leave out at the beginning of the seeded order."""
    n: int | None = Field(default=None, gt=0)
    """Number of rows to keep, in the seeded order; without ``n`` and ``skip`` all rows stay in their own order."""
    seed: int = 0
    """Seed of that order: ``skip: 7000`` of a seed never meets ``n: 7000`` of the same seed and file."""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        places = [self.file, self.hub, self.derive, getattr(self, "split", None)]
        if sum(place is not None for place in places) != 1:
            choices = "`file`, `hub`, `derive` or (in a pool) `split`"
            raise ValueError(f"rows come from exactly one of {choices}; give one of them")
        if self.file is None and (self.rows or self.sha256):
            raise ValueError("`rows` and `sha256` describe a `file`; remove them or give the file")
        if self.template is not None:
            if self.source is None:
                raise ValueError("`template` takes the `source` column apart; name that column")
            _format(self.template)
        return self

    @property
    def data_file(self) -> DataFile | None:
        """The file of this source, or None when its rows come from elsewhere."""
        if self.file is None:
            return None
        return DataFile(file=self.file, rows=self.rows, sha256=self.sha256, origin=self.origin)

    def files(self) -> list[DataFile]:
        """Return every file this source reads: its own and those its columns are taken from."""
        own = [self.data_file] if self.data_file else []
        return own + [c.other for c in self.fields.values() if isinstance(c, Column) and c.other]


class PoolSource(Source):
    """One part of the unlabelled pool; labels its rows may carry are never read."""

    name: NonEmpty
    """Name of the part, printed in plans and receipts."""
    split: Literal["train"] | None = None
    """``train``: the sources of the training split."""

    @field_validator("target")
    @classmethod
    def _no_labels(cls, target: str | None) -> str | None:
        if target is not None:
            raise ValueError("a pool is unlabelled; remove `target`")
        return target


class Data(_Model):
    """The three labelled splits."""

    train: Source
    """Rows whose labels are for sale; without ``target`` a seller other than `replay` has to know them."""
    dev: Source | None = None
    """Rows to choose models on; see the task's ``dev``."""
    test: Source
    """Rows that are scored once, at the end."""


class HyperParameters(_Model):
    """Overrides of training hyper-parameters; what is not given is derived."""

    epochs: int | None = Field(default=None, gt=0)
    """Passes over the training rows."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    batch_size: int | None = Field(default=None, gt=0)
    """Rows per step."""
    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Decoupled weight decay."""
    patience: int | None = Field(default=None, gt=0)
    """Evaluations on dev without a gain before training stops."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Of every layer."""
    temperature: float | None = Field(default=None, gt=0)
    """Of the divergence to the teacher; only distillation reads it."""

    def given(self) -> dict[str, float]:
        """Return the hyper-parameters that were set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Training(_Model):
    """Hyper-parameters by role."""

    teacher: HyperParameters = HyperParameters()
    """The large model."""
    student: HyperParameters = HyperParameters()
    """The compact model, trained on labels."""
    distil: HyperParameters = HyperParameters()
    """The compact model, trained on the teacher's targets."""


class Task(_Model):
    """A task as its file describes it."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Short name; letters, digits, ``_``, ``.`` and ``-``."""
    description: str = ""
    """One line for people."""
    kind: Literal["classification"] = "classification"
    """What is predicted: one label out of ``labels``."""
    text: NonEmpty
    """Template of the text a model reads, such as ``claim: {claim} tweet: {tweet}``."""
    segments: tuple[str, ...] = ()
    """One or two fields an encoder reads as its segments; default: all fields, or ``[text]`` where there are more."""
    labels: tuple[Value, ...] = Field(min_length=2)
    """Label set; the published reading counts an unknown answer as the first one."""
    metric: Literal["accuracy", "f1"] = "accuracy"
    """Main metric; ``f1`` is micro-averaged, with the macro average beside it."""
    price_item: NonEmpty
    """Item of the price book that one label costs."""
    max_source_tokens: int = Field(default=128, gt=0)
    """Longest input, in tokens; longer ones are cut."""
    max_target_tokens: int = Field(default=8, gt=0)
    """Longest answer, in tokens, for models that write their answer."""
    symmetric: bool = False
    """The label does not depend on the order of the fields, so a swapped pair is the same source."""
    dev: Literal["given", "bought", "carved", "none"] = "given"
    """Dev labels: free, bought like any label, carved out of the bought training labels, or none (fixed steps)."""
    n_dev: int | None = Field(default=None, gt=0)
    """Number of dev labels that are bought or carved; for ``bought`` the default is the whole dev split."""
    dev_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the bought labels that is carved; default 0.1."""
    drop_leaks: bool = False
    """Leave train and pool rows out that are also dev or test rows, instead of refusing the data."""
    data: Data
    """The labelled splits."""
    pool: tuple[PoolSource, ...] = ()
    """Parts of the unlabelled pool, in order."""
    training: Training = Training()
    """Overrides of hyper-parameters."""
    _folder: Path | None = PrivateAttr(default=None)

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels) or "" in labels:
            raise ValueError("the labels must differ from each other and be more than nothing")
        return labels

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        names = _format(self.text).names
        if self.segments and (len(self.segments) > 2 or not set(self.segments) <= {*names, "text"}):
            raise ValueError(f"`segments` takes one or two of {', '.join(names)}, text")
        for where, source in self.sources():
            unknown = sorted(set(source.fields) - set(names))
            if unknown:
                raise ValueError(f"`{where}.fields` names {', '.join(unknown)}; `text` has {', '.join(names)}")
        parts = [part.name for part in self.pool]
        if len(set(parts)) != len(parts):
            raise ValueError("the parts of `pool` must have different names")
        self._check_dev()
        return self

    def _check_dev(self) -> None:
        needs_split = self.dev in ("given", "bought")
        if needs_split and self.data.dev is None:
            raise ValueError(f"`dev: {self.dev}` needs `data.dev`; add it, or choose carved or none")
        if not needs_split and self.data.dev is not None:
            raise ValueError(f"`dev: {self.dev}` does not read `data.dev`; remove it, or choose given or bought")
        if self.n_dev is not None and self.dev not in ("bought", "carved"):
            raise ValueError(f"`n_dev` belongs to `dev: bought` or `dev: carved`, not {self.dev}")
        if self.dev_fraction is not None and (self.dev != "carved" or self.n_dev is not None):
            raise ValueError("`dev_fraction` belongs to `dev: carved` and excludes `n_dev`")
        for name, source in (("dev", self.data.dev), ("test", self.data.test)):
            if source is not None and source.target is None:
                raise ValueError(f"`data.{name}` needs `target`, the column of its gold label")

    @property
    def folder(self) -> Path | None:
        """Folder of the task's own file, where its data is looked for first; None for a shipped task."""
        return self._folder

    @cached_property
    def format(self) -> TextFormat:
        """The compiled template ``text``."""
        return TextFormat(self.text)

    @cached_property
    def segment_names(self) -> tuple[str, ...]:
        """Names of the one or two segments an encoder reads."""
        if self.segments:
            return self.segments
        return self.format.names if len(self.format.names) <= 2 else ("text",)

    @property
    def unknown_label(self) -> str:
        """What the published reading makes of an answer outside the label set: the first label."""
        return self.labels[0]

    def segments_of(self, example: Example) -> tuple[str, ...]:
        """Return the one or two texts an encoder reads for an example."""
        return tuple(example.field(name) for name in self.segment_names)

    def n_carved(self, n_labels: int) -> int:
        """Return how many of ``n_labels`` bought labels are set aside for dev: 0 unless ``dev: carved``.

        At least one label is left on each side; a single label is never carved.
        """
        if self.dev != "carved" or n_labels < 2:
            return 0
        wanted = self.n_dev or math.ceil(n_labels * (self.dev_fraction or DEFAULT_DEV_FRACTION))
        return min(wanted, n_labels - 1)

    def sources(self) -> list[tuple[str, Source]]:
        """Return every source with its key path: the splits that are given, then the parts of the pool."""
        splits = [("data.train", self.data.train), ("data.dev", self.data.dev), ("data.test", self.data.test)]
        given = [(path, source) for path, source in splits if source is not None]
        return given + [(f"pool.{part.name}", part) for part in self.pool]


def _format(template: str) -> TextFormat:
    try:
        return TextFormat(template)
    except DataError as error:
        raise ValueError(str(error)) from None


class _Loader(yaml.SafeLoader):
    """YAML 1.2 truth values (only true and false, so that the label NO stays text), and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str | int | float) else repr(key))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def shipped_tasks() -> list[str]:
    """Return the names of the tasks that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_task(name_or_path: str | Path) -> Task:
    """Load a shipped task by name, or a task file by path.

    Raises:
        UnknownTask: There is no such name and no such file.
        TaskFileError: The file does not fit the schema.
    """
    path = Path(name_or_path)
    is_path = isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1
    if not is_path:
        shipped = SHIPPED / f"{name_or_path}.yaml"
        if str(name_or_path) not in shipped_tasks():
            near = difflib.get_close_matches(str(name_or_path), shipped_tasks(), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            known = ", ".join(shipped_tasks())
            raise UnknownTask(
                f"no task {str(name_or_path)!r}{hint}; shipped are {known}, or give the path of a YAML file"
            )
        return _read(shipped)
    if not path.is_file():
        raise UnknownTask(f"no task file {path}; give an existing YAML file or one of {', '.join(shipped_tasks())}")
    task = _read(path)
    task._folder = path.resolve().parent
    return task


def _read(path: Path) -> Task:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "the file is not UTF-8 text"
        raise TaskFileError(f"{path}{line}: not readable as YAML: {problem}; see docs/tasks.md") from None
    if not isinstance(content, dict):
        raise TaskFileError(f"{path}: holds {type(content).__name__}, not keys and values; see docs/tasks.md")
    try:
        return Task.model_validate(content)
    except ValidationError as error:
        raise TaskFileError(f"{path}: {_first_problem(error)}") from None


_UNION_CHOICES = ("constrained-str", "str", "Column")
"""Parts of a pydantic key path that name a choice of a union, not a key."""


def _first_problem(error: ValidationError) -> str:
    """Say the first problem of a task file in one line: key path, what is wrong, the value that is there."""
    problems = error.errors()
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(part) for part in first["loc"] if part not in _UNION_CHOICES) or "the task"
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        text = f"{where}: unknown key{hint}; allowed here are {', '.join(known)}"
    elif first["type"] == "missing":
        text = f"{where}: is required and missing"
    elif first["type"] == "value_error":
        text = f"{where}: {first['msg'].removeprefix('Value error, ')}"
    else:
        text = f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {shorten(repr(first['input']))}"
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed at a key path of the task file."""
    schema = task_schema()
    here: dict[str, Any] = schema
    for part in path:
        if part in schema["$defs"]:
            here = schema["$defs"][part]
        elif isinstance(part, int):
            here = here.get("items", {})
        else:
            here = here.get("properties", {}).get(part, here)
        options = [option for option in here.get("anyOf", [here]) if "$ref" in option]
        if options:
            here = schema["$defs"][options[0]["$ref"].rsplit("/", 1)[1]]
    return sorted(here.get("properties", {}))


def task_schema() -> dict[str, Any]:
    """Return the JSON Schema of a task file (draft 2020-12); ``tasks/task.schema.json`` is a copy of it."""
    schema = Task.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
