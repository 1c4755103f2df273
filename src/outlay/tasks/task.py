"""Task files: what is predicted, from which text, on which data, at which price.

A task is one YAML file. This module says what the file may hold; :mod:`outlay.tasks.sources` and
:mod:`outlay.tasks.overrides` describe its two large blocks, and :mod:`outlay.tasks.loading` reads the rows it points to.
Every key is described in ``docs/tasks.md`` and in the JSON Schema ``tasks/task.schema.json``.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from outlay.errors import UnknownTask
from outlay.spec import Kind, TaskSpec
from outlay.storage.paths import expand
from outlay.tasks.example import Example, TextFormat
from outlay.tasks.overrides import TrainingOverrides
from outlay.tasks.seller_blocks import PEOPLE, SellerBlock
from outlay.tasks.sources import Data, PoolSource, Source, compiled
from outlay.tasks.yaml_file import Name, NonEmpty, Value, YamlBlock, read_yaml
from outlay.text.legible import alike, did_you_mean, likeness, named, outer_blanks, quoted, repeats
from outlay.text.yaml_text import written_text

SHIPPED = Path(__file__).parent / "shipped"
DEFAULT_DEV_FRACTION = 0.1
"""Share of the bought labels that ``dev: carved`` sets aside when the task names none."""
DEFAULT_FOLDS = 5
"""Folds of ``dev: folds`` when the task names none."""

Metric = Literal["accuracy", "f1", "entity_f1", "qa_f1", "bert_ibleu"]
METRICS_OF: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1"),
    "entities": ("entity_f1",),
    "generation": ("qa_f1", "bert_ibleu"),
}
"""Main metrics a kind of task may have; the first one is its default."""
MAX_TARGET_TOKENS: dict[Kind, int] = {"classification": 8, "entities": 128, "generation": 32}
"""Longest answer where the task does not say, as in Kang et al. 2023, Table 8."""
RESERVED_SELLERS = {
    "human": f"who are called {PEOPLE!r} here; rename them",
    "owned": "the name of labels that are yours already, which `owned: true` marks; choose another name",
}
"""Names that no seller of a task file may have, with what to do about it."""
MIN_LABELS: dict[Kind, int] = {"classification": 2, "entities": 1, "generation": 0}


class MetricModel(YamlBlock):
    """The encoder that BERTScore compares texts with."""

    model: NonEmpty
    """Folder or hub name of the encoder."""
    layer: int | None = Field(default=None, gt=0)
    """Layer whose states are compared; without it the last one."""
    idf: bool = False
    """Weight tokens by how rare they are among the references."""


class Published(YamlBlock):
    """Figures that a paper prints about the task, to compare with those measured here."""

    usd_per_label: float = Field(gt=0)
    """Price of one label, in dollars."""
    n_train: int = Field(gt=0)
    """Labelled training rows."""
    n_dev: int | None = Field(default=None, gt=0)
    """Dev rows."""
    n_test: int | None = Field(default=None, gt=0)
    """Test rows; absent where the paper reports on its dev rows."""
    n_unlabeled: int | None = Field(default=None, gt=0)
    """Most unlabelled rows the paper used."""
    source: NonEmpty
    """Paper and tables."""


class Task(YamlBlock):
    """A task as its file describes it."""

    name: Name
    """Short name of at most 100 characters: letters, digits, ``_``, ``.`` and ``-``, the last two not first."""
    description: str = ""
    """One line for people."""
    instruction: str = ""
    """Words that tell an annotator, a person or a language model, what to do with a text."""
    kind: Kind = "classification"
    """Kind of answer: one of ``labels``, a line of entities of the types ``labels``, or free text (``generation``)."""
    text: NonEmpty
    """Template of the text a model reads, such as ``claim: {claim} tweet: {tweet}``."""
    segments: tuple[str, ...] = ()
    """One or two fields an encoder reads as its segments; default: all fields, or ``[text]`` where there are more."""
    prefix: str = ""
    """Put before the text for models that write their answer, such as ``nq: ``; encoders do not read it."""
    labels: tuple[Value, ...] = Field(default=(), validate_default=True)
    """Label set, or entity types; none for ``generation``. The published reading counts an unknown one as the first."""
    descriptions: dict[Annotated[str, BeforeValidator(written_text)], NonEmpty] = Field(default_factory=dict)
    """Label → words on what it stands for, which an annotator is told; labels without are told by their names."""
    metric: Metric = "accuracy"
    """``accuracy`` or ``f1`` (micro-averaged); ``entity_f1`` for entities; ``qa_f1`` or ``bert_ibleu`` for generation."""
    bertscore: MetricModel | None = None
    """Encoder that ``bert_ibleu`` measures likeness of meaning with; a command may name another."""
    price_item: NonEmpty
    """Item of the price book that one label costs."""
    max_source_tokens: int = Field(default=128, gt=0)
    """Longest input, in tokens; longer ones are cut."""
    max_target_tokens: int = Field(default=8, gt=0)
    """Longest answer, in tokens, for models that write their answer; default 128 for entities, 32 for generation."""
    symmetric: bool = False
    """The label does not depend on the order of the fields, so a swapped pair is the same source."""
    dev: Literal["given", "bought", "carved", "folds", "none"] = "given"
    """Dev labels: free, bought like any label, carved out of the bought training labels, for each seed another fold of the owned
    ones, or none (fixed steps)."""
    n_dev: int | None = Field(default=None, gt=0)
    """Number of dev labels that are bought or carved; for ``bought`` the default is the whole dev split."""
    dev_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the bought labels that is carved; default 0.1."""
    folds: int | None = Field(default=None, gt=1)
    """Number of folds of ``dev: folds``: seed s keeps fold s modulo it for dev; default 5."""
    test: Literal["given", "bought"] = "given"
    """Test labels: those of the rows, which cost nothing, or bought; they are never trained on."""
    eval_seller: NonEmpty = PEOPLE
    """Name of the seller of bought dev and test labels."""
    sellers: dict[Name, SellerBlock] = Field(default_factory=dict)
    """Sellers of labels by name; without ``people`` these replay the gold labels at the price of ``price_item``."""
    drop_leaks: bool = False
    """Leave train and pool rows out that are also dev or test rows, instead of refusing the data."""
    data: Data
    """The labelled splits."""
    pool: tuple[PoolSource, ...] = ()
    """Parts of the unlabelled pool, in order."""
    training: TrainingOverrides = TrainingOverrides()
    """Overrides of hyper-parameters."""
    published: Published | None = None
    """Figures of a paper; nothing is computed from them."""
    _file: Path | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kind(cls, content: Any) -> Any:
        """Fill in what depends on the kind of task."""
        kind = content.get("kind", "classification") if isinstance(content, dict) else None
        if kind not in METRICS_OF:
            return content
        return {"metric": METRICS_OF[kind][0], "max_target_tokens": MAX_TARGET_TOKENS[kind], **content}

    @field_validator("labels")
    @classmethod
    def _fitting_labels(cls, labels: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        kind: Kind | None = info.data.get("kind")
        if len(set(labels)) != len(labels) or "" in labels:
            raise ValueError("the labels must differ from each other and be more than nothing")
        for label in labels:
            if where := outer_blanks(label) or ("nothing but blanks" if label and not label.strip() else ""):
                raise ValueError(
                    f"{quoted(label)} is a label {where}, and models that write answer without; write it without, and where "
                    f"rows have it `label_names: {{{json.dumps(label)}: {json.dumps(label.strip() or 'NAME')}}}`"
                )
        if same := alike(labels):
            raise ValueError(
                f"{quoted(same[0])} and {quoted(same[1])} look the same ({likeness(same[1], same[:1])}); keep one"
            )
        if kind is not None and len(labels) < MIN_LABELS[kind]:
            raise ValueError(f"a task of kind {kind} needs at least {MIN_LABELS[kind]}, not {len(labels)}")
        if kind == "generation" and labels:
            raise ValueError("a task of kind generation answers with free text; remove the labels or choose a kind")
        if kind == "entities":
            bad = [label for label in labels if "[" in label or "]" in label or label != " ".join(label.split())]
            if len({label.lower() for label in labels}) != len(labels) or bad:
                shown = f"{quoted(bad[0])} is none: " if bad else ""
                raise ValueError(
                    f"{shown}entity types have no brackets, single blanks between words, and differ in more than case"
                )
        return labels

    @field_validator("metric")
    @classmethod
    def _fitting_metric(cls, metric: Metric, info: ValidationInfo) -> Metric:
        kind: Kind | None = info.data.get("kind")
        if kind is not None and metric not in METRICS_OF[kind]:
            raise ValueError(f"{metric} does not measure {kind}; choose {' or '.join(METRICS_OF[kind])}")
        return metric

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        names = compiled(self.text).names
        if repeats(self.segments):
            raise ValueError(f"`segments` names {', '.join(self.segments)}; name each field once")
        if self.segments and (len(self.segments) > 2 or not set(self.segments) <= {*names, "text"}):
            raise ValueError(f"`segments` takes one or two of {', '.join(names)}, text")
        if self.kind == "entities" and self.segments not in ((), ("text",)):
            raise ValueError("`segments` of a task of kind entities is [text]: spans lie in the whole text; remove it")
        if self.bertscore is not None and self.metric != "bert_ibleu":
            raise ValueError(f"`bertscore` belongs to `metric: bert_ibleu`, not {self.metric}; remove it")
        for where, source in self.sources():
            unknown = sorted(set(source.fields) - set(names))
            if unknown:
                raise ValueError(f"`{where}.fields` names {', '.join(unknown)}; `text` has {', '.join(names)}")
        if twice := repeats(part.name for part in self.pool):
            raise ValueError(f"the parts of `pool` must have different names, and two are called {twice[0]!r}")
        rows = [source.model_dump(exclude={"rows", "sha256", "origin"}) for source in self.data.sources_of("train")]
        again = next((i for i, source in enumerate(rows) if source in rows[:i]), None)
        if again is not None:
            raise ValueError(
                f"`data.more_train.{again - 1}` takes rows that train has already, to be bought twice; remove it"
            )
        if strange := next((name for name in self.descriptions if name not in self.labels), None):
            known = (
                f"; the labels are {named(self.labels)}"
                if self.labels
                else f", and a task of kind {self.kind} has none"
            )
            raise ValueError(
                f"`descriptions` names {quoted(strange)}, which is no label{did_you_mean(strange, self.labels)}{known}"
            )
        self._check_dev()
        self._check_sellers()
        return self

    def _check_sellers(self) -> None:
        for name in self.sellers:
            if instead := RESERVED_SELLERS.get(name):
                raise ValueError(f"`sellers` names {name!r}, {instead}")
        known = (PEOPLE, *(name for name in self.sellers if name != PEOPLE))
        if self.eval_seller not in known:
            raise ValueError(
                f"`eval_seller` is {self.eval_seller!r}{did_you_mean(self.eval_seller, known)}, and the sellers are "
                f"{', '.join(known)}; name one, or add it to `sellers`"
            )
        for name, how, source in (("dev", self.dev, self.data.dev), ("test", self.test, self.data.test)):
            if source is None or source.target is not None:
                continue
            if how != "bought":
                raise ValueError(
                    f"`data.{name}` needs `target`, the column of its gold label; where there is none, say `{name}: bought` to "
                    "buy the labels"
                )
            if self.replays(self.eval_seller):
                raise ValueError(
                    f"`data.{name}` has no `target`, and {self.eval_seller} replay gold labels; name a seller of another kind "
                    f"as `eval_seller`, such as `sellers: {{{PEOPLE}: {{kind: files}}}}`"
                )

    def replays(self, seller: str) -> bool:
        """Return whether a seller replays gold labels, as people do where the file says nothing of them."""
        block = self.sellers.get(seller)
        return block is None or block.kind == "replay"

    def _check_dev(self) -> None:
        needs_split = self.dev in ("given", "bought")
        if needs_split and self.data.dev is None:
            raise ValueError(f"`dev: {self.dev}` needs `data.dev`; add it, or choose carved, folds or none")
        if not needs_split and self.data.dev is not None:
            raise ValueError(f"`dev: {self.dev}` does not read `data.dev`; remove it, or choose given or bought")
        if self.n_dev is not None and self.dev not in ("bought", "carved"):
            raise ValueError(f"`n_dev` belongs to `dev: bought` or `dev: carved`, not {self.dev}")
        if self.folds is not None and self.dev != "folds":
            raise ValueError(f"`folds` belongs to `dev: folds`, not {self.dev}")
        if self.dev == "folds" and not any(source.owned for source in self.data.sources_of("train")):
            raise ValueError(
                "`dev: folds` shares out labels that are owned; say `owned: true` of train rows, or choose carved"
            )
        if self.dev_fraction is not None and (self.dev != "carved" or self.n_dev is not None):
            raise ValueError("`dev_fraction` belongs to `dev: carved` and excludes `n_dev`")
        for name, source in (("dev", self.data.dev), ("test", self.data.test)):
            if source is not None and source.owned:
                raise ValueError(
                    f"`owned` is about train rows, whose labels are for sale else; remove it from `data.{name}`"
                )
        if self.data.dev is not None and self.data.dev.group is not None:
            raise ValueError(
                "`group` is about train rows, which are shared out, and test rows; remove it from `data.dev`"
            )

    @property
    def folder(self) -> Path | None:
        """Folder of the task's own file, where its data is looked for first; None for a shipped task."""
        return None if self._file is None else self._file.resolve().parent

    @property
    def reference(self) -> str | Path:
        """The task in a command: the path of its own file, or the name of a shipped task."""
        return self.name if self._file is None else self._file

    @cached_property
    def format(self) -> TextFormat:
        """The compiled template ``text``."""
        return TextFormat(self.text)

    @cached_property
    def segment_names(self) -> tuple[str, ...]:
        """Names of the one or two segments an encoder reads."""
        if self.segments:
            return self.segments
        if self.kind == "entities":
            return ("text",)
        return self.format.names if len(self.format.names) <= 2 else ("text",)

    @property
    def form(self) -> TaskSpec:
        """The task as a model meets it."""
        return TaskSpec(self.kind, self.labels, self.max_source_tokens, self.max_target_tokens, self.prefix)

    def segments_of(self, example: Example) -> tuple[str, ...]:
        """Return the one or two texts an encoder reads for an example."""
        return tuple(example.field(name) for name in self.segment_names)

    @property
    def n_folds(self) -> int:
        """Number of folds of ``dev: folds``."""
        return self.folds or DEFAULT_FOLDS

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
        more = [(f"data.more_train.{i}", source) for i, source in enumerate(self.data.more_train)]
        held = [("data.dev", self.data.dev), ("data.test", self.data.test)]
        splits = [("data.train", self.data.train), *more, *held]
        given = [(path, source) for path, source in splits if source is not None]
        return given + [(f"pool.{part.name}", part) for part in self.pool]


def shipped_tasks() -> list[str]:
    """Return the names of the tasks that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_task(name_or_path: str | Path) -> Task:
    """Load a shipped task by name, or a task file by path.

    Raises:
        UsageError: A ``~`` that cannot be expanded.
        UnknownTask: There is no such name and no such file.
        TaskFileError: The file does not fit the schema.
    """
    path = name_or_path if isinstance(name_or_path, Path) else Path(expand(name_or_path))
    shipped = shipped_tasks()
    if isinstance(name_or_path, str) and path.suffix.lower() not in (".yaml", ".yml") and len(path.parts) <= 1:
        if name_or_path in shipped:
            return read_yaml(SHIPPED / f"{name_or_path}.yaml", Task)
        hint = did_you_mean(name_or_path, shipped)
        raise UnknownTask(
            f"no task {name_or_path!r}{hint}; shipped are {', '.join(shipped)}, or give the path of a YAML file"
        )
    if not path.is_file():
        raise UnknownTask(f"no task file {path}; give an existing YAML file or one of {', '.join(shipped)}")
    task = read_yaml(path, Task)
    task._file = path.absolute()
    return task


def task_schema() -> dict[str, Any]:
    """Return the JSON Schema of a task file (draft 2020-12); ``tasks/task.schema.json`` is a copy of it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Task.model_json_schema()}
