"""The planning context of a strategy: models, rows, offers and prices, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from outlay.errors import UsageError
from outlay.models.pooling import Pooling
from outlay.models.shape import ModelShape
from outlay.models.window import ENDLESS, Window
from outlay.money.amounts import Price
from outlay.money.machines import Machine
from outlay.plan.cache import Memo, cached
from outlay.plan.request import Request
from outlay.plan.steps import HUMAN, OF_TRAIN, Buy, Encoding, Model
from outlay.settings import AUTO_METHOD, BLOCK_ROWS, TeachSettings, TrainSettings, role_settings, without_auto_method
from outlay.settings.auto import ChosenMethod, choose_method
from outlay.spec import Reading, TargetSpec, TaskSpec

N_MIN_OPEN = 2
"""Fewest labels worth a training where answers are open."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Running sums of source tokens per row, each starting with 0, in the seeded orders: ``train[n]`` = tokens of the first n
    rows, as one model reads them."""

    train: Sequence[int]
    pool: Sequence[int]
    dev: Sequence[int]
    test: Sequence[int]


def reading_key(ref: str, reading: Reading) -> str:
    """Return the key of the token counts of a model that reads rows so."""
    return ref if reading == "whole" else f"{ref} ({reading})"


@dataclass(frozen=True, slots=True)
class RunningCosts:
    """Running sums of what the rows of a split cost in their seeded order, each starting with 0, in the unit of a seller's price:
    the expected quantity, and the most it can be."""

    expected: Sequence[Fraction]
    most: Sequence[Fraction]


@dataclass(frozen=True, slots=True)
class Offer:
    """Terms of a seller: the price of what is billed, the seller's identity, and what rows cost.

    ``redundancy``: answers per label, where a label costs so many units of the price; ``costs``: running costs by split, where it
    costs as much as it takes; ``n_examples``: bought labels that the seller is shown before it answers.
    """

    price: Price
    identity: str
    """Canonical JSON of the seller's identity."""
    redundancy: int = 1
    costs: Mapping[str, RunningCosts] = field(default_factory=dict)
    n_examples: int = 0

    def expected(self, split: str, start: int, stop: int) -> Fraction:
        """Return the quantity that rows ``start`` to ``stop`` of a split are expected to be billed for."""
        return self._sum(split, start, stop, lambda costs: costs.expected)

    def most(self, split: str, start: int, stop: int) -> Fraction:
        """Return the quantity that rows ``start`` to ``stop`` of a split are billed for at most."""
        return self._sum(split, start, stop, lambda costs: costs.most)

    @property
    def typical(self) -> Fraction:
        """Quantity that a label is expected to be billed for, on average."""
        costs = self.costs.get("train")
        if costs is None or len(costs.expected) < 2:
            return Fraction(self.redundancy)
        return costs.expected[-1] / (len(costs.expected) - 1)

    @property
    def is_estimate(self) -> bool:
        """True where labels may cost more or less than is expected of them."""
        return any(costs.expected[-1] != costs.most[-1] for costs in self.costs.values())

    def scaled(self, share: Fraction) -> Offer:
        """Return the terms with so many times the expected costs, and no more than the most."""
        costs = {
            split: RunningCosts([min(a * share, b) for a, b in zip(each.expected, each.most, strict=True)], each.most)
            for split, each in self.costs.items()
        }
        return replace(self, costs=costs)

    def _sum(self, split: str, start: int, stop: int, sums: Callable[[RunningCosts], Sequence[Fraction]]) -> Fraction:
        if (costs := self.costs.get(split)) is None:
            return Fraction((stop - start) * self.redundancy)
        return sums(costs)[stop] - sums(costs)[start]


@dataclass(frozen=True)
class PlanningContext:
    """Facts that a strategy may see: the request, prices, shapes and token counts, never a test label."""

    request: Request
    task: str
    encoding: Encoding
    teacher: Model
    student: Model
    shapes: Mapping[str, ModelShape]
    """Shapes by model reference."""
    tokens: Mapping[str, TokenCounts]
    """Token counts by `reading_key`."""
    longest_answer: Mapping[str, int]
    """Most tokens of an answer, by model reference; 0 for an encoder, which writes none."""
    target_specs: Mapping[tuple[str, str], TargetSpec]
    """Kinds of targets by the references of teacher and student."""
    machine: Machine
    machine_price: Price
    offers: Mapping[str, Offer]
    """Offers by the seller's name."""
    train_digest: str
    dev_digest: str
    test_digest: str
    pool_digests: Callable[[int, int], str]
    """Digest of the pool rows ``start:stop`` of the seeded order."""
    n_carved: Callable[[int], int]
    """Number of dev labels among so many of a training: the first ones, so that they stay when more are bought."""
    n_train: int
    n_pool: int
    n_dev: int
    defaults: Mapping[str, TrainSettings]
    """Default settings by role."""
    teach_defaults: TeachSettings
    windows: Mapping[str, Window] = field(default_factory=dict)
    """Limits on the tokens that a model reads and writes, by model reference; without an entry the task's own."""
    poolings: Mapping[tuple[str, str], Pooling] = field(default_factory=dict)
    """Poolings by model reference and setting ``pooling``; without an entry the model declares nothing."""
    n_owned: int = 0
    """Train rows whose labels are owned; they are the first ones."""
    eval_seller: str = HUMAN
    """Name of the seller of dev and test labels that are bought."""
    dev_seed: int | None = None
    """Seed of the order in which dev labels are bought, where it is not the request's."""
    test_labels: Buy | None = None
    """Purchase of the test labels, the same one for every seed, budget and strategy; ``None`` where the rows have them."""
    n_unlabelled: Callable[[], int] = field(default=lambda: 0, compare=False)
    """Number of pool rows that have no gold label and are no train rows."""

    def form_of(self, ref: str) -> TaskSpec:
        """Return the form of the task, with its limits lowered to those of a model."""
        return self.windows.get(ref, ENDLESS).fit(self.encoding.form, ref)

    @property
    def lowered(self) -> list[str]:
        """Lines on the limits of the task that a model of the run cannot keep."""
        form = self.encoding.form
        return [line for ref, window in self.windows.items() for line in window.lines(form, ref)]

    def offer(self, seller: str = HUMAN) -> Offer:
        """Return the terms of a seller.

        Raises:
            UsageError: the run has no seller of that name.
        """
        if seller not in self.offers:
            sold = ", ".join(sorted(self.offers)) or "nobody"
            raise UsageError(
                f"strategy {self.request.strategy} buys labels of seller {seller!r}, and the request names {sold}; name it too"
            )
        return self.offers[seller]

    def priced(self, seller: str, offer: Offer) -> PlanningContext:
        """Return this context with other terms of a seller, and a memo of its own."""
        return replace(self, offers={**self.offers, seller: offer})

    memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)
    """Cache of steps and quotes, shared by contexts that differ in budget, N and limit on labels alone."""

    def asked(self, budget_micros: int, n_initial: int | None, max_labels: int | None = None) -> PlanningContext:
        """Return this context under another budget, another N and another limit on labels, with the same memo."""
        request = replace(self.request, budget_micros=budget_micros, n_initial=n_initial, max_labels=max_labels)
        context = replace(self, request=request)
        object.__setattr__(context, "memo", self.memo)
        return context

    @property
    def budget_micros(self) -> int:
        """Whole budget in micro-dollars."""
        return self.request.budget_micros

    @property
    def n_min(self) -> int:
        """Fewest labels worth a training: one per class, two where answers are no classes (and as many again where some are
        kept for dev)."""
        form = self.encoding.form
        least = len(form.labels) if form.kind == "classification" else N_MIN_OPEN
        return least * (2 if self.request.dev in OF_TRAIN else 1)

    @property
    def n_blocks(self) -> int:
        """Number of blocks of the whole pool."""
        return -(-self.n_pool // BLOCK_ROWS)

    def block(self, number: int) -> tuple[int, int]:
        """Return the first pool row of a block, and one past its last."""
        return number * BLOCK_ROWS, min((number + 1) * BLOCK_ROWS, self.n_pool)

    @cached()
    def settings(self, role: str) -> TrainSettings:
        """Return the training settings of a role, with the request's overrides; of ``auto`` those of ``full``."""
        return self._role_settings(role, without_auto_method(self._overrides(role)))

    @cached()
    def settings_for(self, role: str, model: Model, n_labels: int, method: str | None) -> TrainSettings:
        """Return the settings of one training, with the method that ``auto`` chooses; ``method``: in place of the role's."""
        given = self._overrides(role) | ({} if method is None else {"method": method})
        if (chosen := self.chosen_method(role, model, n_labels)) is not None and method is None:
            given |= {name: value for name, value in chosen.settings.items() if name == "method" or name not in given}
        return self._role_settings(role, given)

    @cached()
    def chosen_method(self, role: str, model: Model, n_labels: int) -> ChosenMethod | None:
        """Return what ``auto`` chooses for a training, ``None`` where a method is named."""
        if self._overrides(role).get("method") != AUTO_METHOD:
            return None
        return choose_method(
            kind=self.encoding.form.kind,
            family=self.shapes[model.ref].family,
            is_pretrained=not model.ref.startswith("tiny:"),
            is_cut=model.ref.startswith("cut:"),
            is_pair=len(self.encoding.segments) == 2,
            learns_from="targets" if role == "distil" else "labels",
            n_labels=n_labels,
        )

    def reading(self, model: Model, settings: TrainSettings) -> Reading:
        """Return how a model reads a row in a training; only an encoder has the task's segments."""
        n_segments = len(self.encoding.segments) if self.shapes[model.ref].family == "encoder" else 1
        return settings.reading(self.encoding.form.kind, n_segments)

    def pooling(self, model: Model, settings: TrainSettings) -> Pooling | None:
        """Return the pooling of a training, ``None`` where the head reads no pooled vectors."""
        if self.reading(model, settings) == "whole":
            return None
        plain = Pooling() if settings.pooling == "declared" else Pooling(settings.pooling)
        return self.poolings.get((model.ref, settings.pooling), plain)

    def _role_settings(self, role: str, given: Mapping[str, Any]) -> TrainSettings:
        seed, precision = self.request.seed, self.request.precision
        return role_settings(self.defaults[role], given, seed=seed, precision=precision)

    @property
    @cached()
    def teach_settings(self) -> TeachSettings:
        """Settings of the teacher's answers; the published objective needs the positions behind an answer too."""
        keep = {"keep_padding": True} if self.settings("distil").objective == "published" else {}
        return self.teach_defaults.changed({"seed": self.request.seed, **self._overrides("teach"), **keep})

    def _overrides(self, role: str) -> dict[str, Any]:
        return dict(self.request.overrides.get(role, {}))
