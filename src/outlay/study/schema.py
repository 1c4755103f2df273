"""The schema of a study file: strategies, and at each scale the models and axes of a grid (expanded by `outlay.study.grid`)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from outlay.engine.seller_options import NO_KEY, llm_of
from outlay.errors import MoneyError, UsageError
from outlay.hardware.precision import without_auto
from outlay.money.amounts import format_usd, parse_usd
from outlay.plan.request import DEFAULT_MACHINE, ROLES, ReplayOptions, SellerSpec
from outlay.plan.steps import LLM as LLM_SELLER
from outlay.settings import (
    DEFAULT_THREADS,
    LARGEST_SEED,
    MOST_THREADS,
    TeachSettings,
    TrainSettings,
    flat_settings,
    without_auto_method,
)
from outlay.tasks.seller_blocks import LLM_NAME, Examples, OpenAISeller, SellerBlock, Way
from outlay.tasks.yaml_file import NonEmpty, Value, YamlBlock
from outlay.text.legible import repeats
from outlay.text.yaml_text import plain

OTHERS = "others"
"""Key of an axis by strategy for every strategy without a key of its own."""

T = TypeVar("T", bound=Hashable)


class Usd(int):
    """An amount in micro-dollars that prints as dollars."""

    __slots__ = ()

    def __repr__(self) -> str:
        return format_usd(self)

    __str__ = __repr__


def _by_strategy(value: object) -> object:
    """Return an axis as lists by strategy: one value as a list of one, a list for every strategy under `OTHERS`."""
    lists = value if isinstance(value, dict) else {OTHERS: value}
    return {name: each if isinstance(each, list | tuple) else [each] for name, each in lists.items()}


def _each_once(values: Sequence[T]) -> Sequence[T]:
    if twice := repeats(values):
        raise ValueError(f"{twice[0]!r} is given twice; give each value once")
    return values


def _distinct(axis: Mapping[str, Sequence[T]]) -> Mapping[str, Sequence[T]]:
    for values in axis.values():
        if not _each_once(values):
            raise ValueError("an axis without values makes no point; give at least one, or leave the key out")
    return axis


def _usd(value: object) -> Usd:
    """Parse dollars as they are written, without rounding through a float."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not an amount of dollars; write it like 300, $300 or 1,000.50")
    try:
        return Usd(parse_usd(value))
    except MoneyError as error:
        raise ValueError(str(error)) from None


_Amount = int | float | str
_Name = Annotated[str, Field(min_length=1, strict=True)]
_Count = Annotated[int, Field(gt=0, strict=True)]
_Usd = Annotated[int, BeforeValidator(_usd, json_schema_input_type=_Amount), AfterValidator(Usd)]

Strategies = Annotated[tuple[NonEmpty, ...], Field(min_length=1), AfterValidator(_each_once)]
Names = Annotated[
    dict[str, tuple[_Name, ...]],
    BeforeValidator(_by_strategy, json_schema_input_type=str | list[str] | dict[str, str | list[str]]),
    AfterValidator(_distinct),
]
"""Models by strategy."""
Counts = Annotated[
    dict[str, tuple[_Count, ...]],
    BeforeValidator(_by_strategy, json_schema_input_type=int | list[int] | dict[str, int | list[int]]),
    AfterValidator(_distinct),
]
"""Numbers of rows by strategy."""
Amounts = Annotated[
    dict[str, tuple[_Usd, ...]],
    BeforeValidator(_by_strategy, json_schema_input_type=_Amount | list[_Amount] | dict[str, _Amount | list[_Amount]]),
    AfterValidator(_distinct),
]
"""Micro-dollars by strategy."""
Settings = Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


class Models(YamlBlock):
    """The models of a study: references such as ``cut:2``, folders, or names on the hub."""

    teacher: Names | None = None
    """One or several teachers; default all-MiniLM-L6-v2."""
    student: Names | None = None
    """One or several students; default ``cut:2``."""
    base: NonEmpty | None = None
    """Checkpoint that ``cut:`` and ``tiny:`` models are made from; default the first teacher that is a whole checkpoint."""
    general: NonEmpty | None = None
    """The generally distilled checkpoint that ``general_distill`` starts from."""
    metric_model: NonEmpty | None = None
    """Encoder of the metric ``bert_ibleu``; default that of the task."""


class LLM(YamlBlock):
    """An LLM that sells labels: a model behind an endpoint, over the keys of the task's own, or one replayed from gold labels."""

    error_rate: float | None = Field(default=None, ge=0, le=1)
    """Share of the labels that are wrong, of an LLM that is replayed."""
    model: Annotated[Value, Field(min_length=1)] | None = None
    """Name of the model at its endpoint, such as ``gpt-5-mini``."""
    url: NonEmpty | None = None
    """Address of the endpoint."""
    key_env: NonEmpty | None = None
    """Environment variable that holds the key; ``none`` where the endpoint takes none."""
    way: Way | None = None
    """How it is asked: ``auto``, ``decisions``, ``systemone``, ``schema`` or ``chat``."""
    examples: Examples | None = None
    """Bought labels that are shown: ``none``, ``fixed``, ``shuffled`` or ``nearest``."""
    n_examples: int | None = Field(default=None, ge=0, le=1000)
    """Number of examples."""
    samples: int | None = Field(default=None, gt=0, le=99)
    """Answers per row; the majority counts."""
    price_item: NonEmpty | None = None
    """Item of the price book: of the model's tokens (``free`` for a server of one's own), or for one replayed label, by default
    ``gpt-3.5-label/`` and the task's name."""

    @model_validator(mode="after")
    def _one_kind_of_llm(self) -> LLM:
        own = self._of_model()
        if self.error_rate is not None and own:
            raise ValueError(
                f"`error_rate` replays an LLM from gold labels and `{next(iter(own))}` asks a model; keep one of the two"
            )
        return self

    def _of_model(self) -> dict[str, Any]:
        """Return the keys that only a model behind an endpoint has."""
        names = ("model", "url", "key_env", "way", "examples", "n_examples", "samples")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def specs(self, sellers: Mapping[str, SellerBlock]) -> tuple[SellerSpec, ...]:
        """Return the LLM as the seller of a request; none where the keys say nothing, and ``sellers``, the task's, count.

        Raises:
            UsageError: how a model is asked, and no model.
        """
        if self.error_rate is not None:
            return (SellerSpec(LLM_SELLER, ReplayOptions(self.error_rate, price_item=self.price_item)),)
        own = self._of_model()
        options = {"url": "base_url", "key_env": "api_key_env"}
        given = {options.get(name, name): value for name, value in own.items()}
        if self.key_env == NO_KEY:
            given["api_key_env"] = None
        if self.price_item is not None and (given or isinstance(sellers.get(LLM_NAME), OpenAISeller)):
            given["price_item"] = self.price_item
        return (llm_of(sellers, given, "give `llm: {model: NAME}`"),) if given else ()


class Axes(YamlBlock):
    """The axes of a grid, each one value, a list, or lists by strategy (``others``: strategies without a list)."""

    strategies: Strategies | None = None
    """Strategies; default those of the file."""
    models: Models = Models()
    """Teachers, students and their base models."""
    n_initial: Counts | None = None
    """Initial human labels, N; without it each strategy chooses N by its rule."""
    added_usd: Amounts | None = None
    """Dollars beyond the cost of the first N labels; excludes ``budget_usd``."""
    budget_usd: Amounts | None = None
    """Total budget in dollars; excludes ``added_usd``."""
    pool_rows: Counts | None = None
    """Maximum number of unlabelled rows that a teacher labels; without it the whole pool."""
    settings: Settings | None = None
    """Training settings by role: ``teacher``, ``student``, ``distil``, ``teach``."""
    llm: LLM = LLM()
    """The LLM of strategies that buy labels from one."""
    methods: Names | None = None
    """Training methods of every role, such as ``probe``, or ``probe, joined`` with a ``pair``; default ``method`` of the file."""
    dev: Literal["given", "bought", "carved", "folds", "none"] | None = None
    """Source of the dev labels; default as the task says."""
    n_dev: int | None = Field(default=None, gt=0, strict=True)
    """Dev labels; default as the task says."""
    test_rows: int | None = Field(default=None, gt=0, strict=True)
    """Test rows to score at most, the same ones for every seed; default all."""

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: dict[str, tuple[str, ...]] | None) -> dict[str, tuple[str, ...]] | None:
        for each in (each for values in (methods or {}).values() for each in values):
            try:
                method_settings(each)
            except UsageError as error:
                raise ValueError(str(error)) from None
        return methods

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, settings: dict[str, dict[str, Any]] | None) -> dict[str, dict[str, Any]] | None:
        if settings is None:
            return None
        renamed: dict[str, dict[str, Any]] = {}
        for role, given in settings.items():
            if role not in ROLES:
                raise ValueError(f"unknown role {role!r}; known: {', '.join(ROLES)}")
            try:
                flat = flat_settings(given) if role != "teach" else given
            except UsageError as error:
                raise ValueError(f"{role}: {error}") from None
            renamed[role] = {name: plain(value) for name, value in flat.items()}
            checked = without_auto_method(without_auto(renamed[role]))
            known = TeachSettings() if role == "teach" else TrainSettings(epochs=1, batch_size=1, learning_rate=1e-4)
            try:
                known.changed(checked)
            except UsageError as error:
                raise ValueError(f"{role}: {error}") from None
        return renamed

    @model_validator(mode="after")
    def _one_kind_of_budget(self) -> Axes:
        if self.added_usd is not None and self.budget_usd is not None:
            raise ValueError("`added_usd` and `budget_usd` exclude each other; keep one")
        return self


class TaskAxes(Axes):
    """The axes of one task; axes that are absent are those of the scale."""

    absent: NonEmpty | None = None
    """Reason why no point of the task can run; its points are then listed as not available, with this reason."""


class Scale(Axes):
    """A scale of the study, under any name, such as ``cpu`` or ``paper``."""

    machine: NonEmpty = DEFAULT_MACHINE
    """Machine whose price compute is charged at."""
    threads: int = Field(default=DEFAULT_THREADS, ge=1, le=MOST_THREADS, strict=True)
    """Threads of each step, for any number of workers."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of steps whose ``settings`` name none; ``auto``: bf16 where this machine is faster in it."""
    n_seeds: int = Field(default=1, ge=1, strict=True)
    """Number of seeds; a seed sets data order and initialisation together."""
    first_seed: int = Field(default=0, ge=0, le=LARGEST_SEED, strict=True)
    """The first seed."""
    notes: tuple[NonEmpty, ...] = ()
    """Notes of the report at this scale, after those of the file."""
    tasks: dict[str, TaskAxes] = Field(default_factory=dict)
    """Axes of each task, by shipped name or by path of a task file beside this one."""
    any_task: TaskAxes | None = None
    """Axes of a task that is not listed; without it only listed tasks may be chosen, or any task where none is listed."""


def method_settings(named: str) -> dict[str, Any]:
    """Return the settings of a method of the axis ``methods``: ``probe, joined`` names a ``pair`` beside it.

    Raises:
        UsageError: no such method, or another word beside it.
    """
    method, _, pair = (part.strip() for part in named.partition(","))
    settings = {"method": method} | ({"pair": pair} if pair else {})
    TrainSettings(epochs=1, batch_size=1, learning_rate=1e-4).changed(without_auto_method(settings))
    return settings


def values_of(axis: Mapping[str, Sequence[T]], strategy: str) -> Sequence[T]:
    """Return the values of an axis for a strategy; none where the axis has neither its key nor `OTHERS`."""
    return axis.get(strategy, axis.get(OTHERS, ()))


def union_of(axis: Mapping[str, Sequence[T]]) -> tuple[T, ...]:
    """Return every value of an axis once; numbers in rising order, others as they are written."""
    values = tuple(dict.fromkeys(value for each in axis.values() for value in each))
    return tuple(sorted(values)) if all(isinstance(value, int) for value in values) else values  # type: ignore[type-var]


def merged(scale: Axes, task: Axes) -> TaskAxes:
    """Return the axes of one task, with those of the scale where absent; models, settings and LLM are merged key by key."""
    shared = {name: getattr(scale, name) for name in Axes.model_fields}
    own = {name: getattr(task, name) for name in task.model_fields_set}
    if own.keys() & {"added_usd", "budget_usd"}:
        shared |= {"added_usd": None, "budget_usd": None}
    both: dict[str, Any] = {**shared, **own}
    for name in ("models", "llm"):
        given = getattr(task, name)
        both[name] = getattr(scale, name).model_copy(
            update={key: getattr(given, key) for key in given.model_fields_set}
        )
    roles = {**(scale.settings or {}), **(task.settings or {})}
    both["settings"] = {
        role: {**(scale.settings or {}).get(role, {}), **(task.settings or {}).get(role, {})} for role in roles
    } or None
    return TaskAxes.model_construct(**both)
