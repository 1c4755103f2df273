"""Strategies, which propose the next recipe from the planning context and earlier outcomes. Pure: no money is spent here.

``ask`` is called again after each recipe with the outcomes of the earlier ones, so that a strategy may buy step by step; the
strategies here propose one recipe.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from outlay.errors import UnknownStrategy
from outlay.money.amounts import format_usd
from outlay.plan.cache import once
from outlay.plan.context import PlanningContext
from outlay.plan.quotes import Quoter
from outlay.plan.steps import (
    HUMAN,
    LLM,
    Buy,
    Dev,
    Distil,
    Model,
    Recipe,
    Score,
    Step,
    Teach,
    Train,
    describe,
    seller_words,
)
from outlay.spec import TargetSpec


@dataclass(frozen=True, slots=True)
class NotAvailable:
    """A refusal: budget or data do not suffice; ``reason`` says what is missing and the way out."""

    reason: str


@dataclass(frozen=True, slots=True)
class StrategyOutcome:
    """Result of an earlier recipe: strategies see the dev score only.

    ``charge_micros``: charge of every recipe so far, this one included; ``dev_score``: of its model, 0-100,
    ``None`` without dev rows.
    """

    recipe: Recipe
    dev_score: float | None
    charge_micros: int


Teaching = Literal["teacher", "student"]
"""Teacher of the student: the request's teacher, or a model like the student itself."""


class Strategy(Protocol):
    """An ask/tell policy."""

    @property
    def name(self) -> str:
        """Name of the strategy."""
        ...

    @property
    def taught_by(self) -> Teaching | None:
        """Teacher of the student; ``None`` where the student learns from labels alone."""
        ...

    @property
    def starts_general(self) -> bool:
        """True where the student is the generally distilled checkpoint, in place of the student that the user names."""
        ...

    @property
    def sellers(self) -> tuple[str, ...]:
        """Names of the sellers who label train rows, in the order of their rows; of several sellers, the first one labels N
        rows."""
        ...

    def ask(self, known: PlanningContext, outcomes: Sequence[StrategyOutcome]) -> Recipe | NotAvailable | None:
        """Return the next recipe, `NotAvailable`, or ``None`` when there is nothing more to buy.

        Called again after each recipe, and from the beginning when a run is resumed: a pure function of its arguments. A step
        that an earlier recipe has too is paid once; to add to the labels of a pilot, buy the rows behind them (`Buy.start`).
        """
        ...


@dataclass(frozen=True, slots=True)
class Annotate:
    """A strategy that spends all on labels for the student; its training is charged too, so the two are solved together.

    ``starts_general``: the student is a generally distilled checkpoint such as DistilBERT, whose cost is taken to be $0,
    since it is publicly available (Kang et al. 2023, Appendix F, Table 10).
    """

    name: str = "annotate"
    starts_general: bool = False

    @property
    def taught_by(self) -> Teaching | None:
        """``None``: the student learns from labels."""
        return None

    @property
    def sellers(self) -> tuple[str, ...]:
        """People alone."""
        return (HUMAN,)

    def ask(self, known: PlanningContext, outcomes: Sequence[StrategyOutcome]) -> Recipe | NotAvailable | None:
        """Return the recipe with the most labels such that labels, training and scoring stay within the budget."""
        if outcomes:
            return None

        def final(n: int) -> Score:
            return _score(known, _train(known, "student", known.student, n))

        asked = known.request.n_initial
        if asked is not None and asked > known.n_train:
            return _too_many_labels(known, asked)
        if known.n_train < known.n_min:
            return _too_few_rows(known)
        quoter = Quoter(known)
        n = _largest(known.n_min, known.n_train, lambda n: quoter.total_micros(final(n)) <= known.budget_micros)
        if n is None:
            return _unaffordable(known, quoter, final(known.n_min), f"{known.n_min} labels and the student's training")
        lines = _derive(known, quoter, final(n))
        return Recipe(final(n), (lines[0], _free_start(known), *lines[1:]) if self.starts_general else lines)


@dataclass(frozen=True, slots=True)
class Distill:
    """A strategy of N labels → teacher → pool → student.

    With ``n_initial``: N is fixed (Kang et al. 2023, Table 2) and the pool is as much as the rest pays for. Without: the
    compute for the whole pool is reserved and the rest buys labels.
    ``own_teacher``: the teacher has the student's architecture (self-distillation, Table 3).
    """

    name: str = "distill"
    own_teacher: bool = False

    @property
    def taught_by(self) -> Teaching | None:
        """The teacher, or a model like the student."""
        return "student" if self.own_teacher else "teacher"

    @property
    def starts_general(self) -> bool:
        """False: the student is the one that the user names."""
        return False

    @property
    def sellers(self) -> tuple[str, ...]:
        """People alone."""
        return (HUMAN,)

    def ask(self, known: PlanningContext, outcomes: Sequence[StrategyOutcome]) -> Recipe | NotAvailable | None:
        """Return the recipe under the N rule of the request."""
        if outcomes:
            return None
        quoter = Quoter(known)
        teacher = known.student if self.own_teacher else known.teacher

        def final(n: int, n_blocks: int) -> Score:
            return _score(known, _distil(known, _train(known, "teacher", teacher, n), n_blocks))

        def fits(n: int, n_blocks: int) -> bool:
            return quoter.total_micros(final(n, n_blocks)) <= known.budget_micros

        n_all = known.n_blocks
        if n_all == 0:
            return NotAvailable(f"task {known.task} has no pool to distil over; give it a `pool:`")
        n: int | None = known.request.n_initial
        if n is None:
            if known.n_train < known.n_min:
                return _too_few_rows(known)
            n = _largest(known.n_min, known.n_train, lambda n: fits(n, n_all))
            if n is None:
                what = f"the whole pool ({known.n_pool:,} rows) and {known.n_min} labels for the teacher"
                return _unaffordable(known, quoter, final(known.n_min, n_all), what)
            return Recipe(final(n, n_all), _derive(known, quoter, final(n, n_all)))
        if n > known.n_train:
            return _too_many_labels(known, n)
        n_blocks = _largest(1, n_all, lambda b: fits(n, b))
        if n_blocks is None:
            what = f"{n:,} labels, the teacher and {known.block_stop(1):,} pool rows"
            return _unaffordable(known, quoter, final(n, 1), what)
        return Recipe(final(n, n_blocks), _derive(known, quoter, final(n, n_blocks)))


@dataclass(frozen=True, slots=True)
class LLMAnnotate:
    """A strategy that spends all on labels of an LLM, or all that is left after N labels of people.

    These are "GPT-3.5 Ann." and "Human + GPT-3.5 Ann." of Kang et al. 2023, section 5, Figure 6. The LLM labels the train rows
    that follow those of the people.
    ``sellers``: the LLM, or a seller of N labels and then the LLM.
    """

    name: str = "llm_annotate"
    sellers: tuple[str, ...] = (LLM,)

    @property
    def taught_by(self) -> Teaching | None:
        """``None``: the student learns from the labels of the LLM as if they were right."""
        return None

    @property
    def starts_general(self) -> bool:
        """False: the student is the one that the user names."""
        return False

    def ask(self, known: PlanningContext, outcomes: Sequence[StrategyOutcome]) -> Recipe | NotAvailable | None:
        """Return the recipe with the most LLM labels such that all labels, training and scoring stay within the budget."""
        if outcomes:
            return None
        n_human = known.request.n_initial if len(self.sellers) > 1 else 0
        if n_human is None:
            return NotAvailable(f"strategy {self.name} needs to know how many labels people give; give --n-initial")
        n_left = known.n_train - n_human
        if n_human and n_left < 1:
            most = f"of the {known.n_train:,} rows that can be labelled"
            return NotAvailable(
                f"--n-initial {n_human:,} {most} leaves none to an LLM; give at most {known.n_train - 1:,}"
            )
        n_min = max(1, known.n_min - n_human)
        if n_left < n_min:
            return _too_few_rows(known)

        def final(n: int) -> Score:
            return _score(known, _train_with_more(known, self.sellers[0], n_human, self.sellers[-1], n))

        quoter = Quoter(known)
        n = _largest(n_min, n_left, lambda n: quoter.total_micros(final(n)) <= known.budget_micros)
        if n is None:
            people = f"{n_human:,} labels, " if n_human else ""
            return _unaffordable(
                known, quoter, final(n_min), f"{people}{n_min:,} LLM labels and the student's training"
            )
        lines = _derive(known, quoter, final(n))
        every = (_all_labelled(self.sellers[-1], n),) if n == n_left else ()
        return Recipe(final(n), (lines[0], _assumed(known, self.sellers[-1]), *lines[1:-1], *every, lines[-1]))


STRATEGIES: dict[str, Strategy] = {
    "annotate": Annotate(),
    "distill": Distill(),
    "self_distill": Distill(name="self_distill", own_teacher=True),
    "general_distill": Annotate(name="general_distill", starts_general=True),
    "llm_annotate": LLMAnnotate(),
    "mix": LLMAnnotate(name="mix", sellers=(HUMAN, LLM)),
}


def strategy(name: str) -> Strategy:
    """Return the strategy of a name.

    Raises:
        UnknownStrategy: lists the known ones.
    """
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UnknownStrategy(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}{hint}")
    return STRATEGIES[name]


def _buy(known: PlanningContext, n: int, start: int = 0, seller: str = HUMAN) -> Buy:
    return Buy("train", n, known.request.seed, known.train_digest, known.offer(seller).identity, start, seller)


def _dev(known: PlanningContext, labels: Buy) -> Dev | None:
    how = known.request.dev
    if how == "none":
        return None
    if how == "carved":
        # A single label is never carved: then there is no dev set, and the steps are fixed.
        n_carved = known.n_carved(labels.n)
        return Dev(how, n_carved, labels=labels) if n_carved else None
    if how == "bought":
        bought = Buy("dev", known.n_dev, known.request.seed, known.dev_digest, known.offer(HUMAN).identity)
        return Dev("bought", known.n_dev, labels=bought)
    return Dev("given", known.n_dev, rows_digest=known.dev_digest)


@once
def _train(known: PlanningContext, role: str, model: Model, n: int) -> Train:
    return _train_on(known, role, model, (_buy(known, n),))


@once
def _train_with_more(known: PlanningContext, first: str, n_first: int, then: str, n_then: int) -> Train:
    """Return the training of the student on labels of one seller and then of another; dev is carved from the first ones."""
    before = (_buy(known, n_first, 0, first),) if n_first else ()
    return _train_on(known, "student", known.student, (*before, _buy(known, n_then, n_first, then)))


def _train_on(known: PlanningContext, role: str, model: Model, labels: tuple[Buy, ...]) -> Train:
    return Train(
        role=role,
        model=model,
        labels=labels,
        dev=_dev(known, labels[0]),
        encoding=known.encoding,
        settings=known.settings("teacher" if role == "teacher" and model == known.teacher else "student"),
        threads=known.request.threads,
        free=role == "student" and known.request.student_training == "free",
    )


@once
def _distil(known: PlanningContext, teacher: Train, n_blocks: int) -> Distil:
    handover, settings = known.handovers[teacher.model.ref, known.student.ref], known.settings("distil")
    return Distil(
        model=known.student,
        targets=tuple(_block(known, teacher, handover, b) for b in range(n_blocks)),
        dev=teacher.dev,
        encoding=known.encoding,
        settings=settings,
        threads=known.request.threads,
        gold=teacher.labels if settings.gold_weight > 0 else (),
    )


@once
def _block(known: PlanningContext, teacher: Train, handover: TargetSpec, block: int) -> Teach:
    return Teach(
        teacher=teacher,
        start=known.block_start(block),
        stop=known.block_stop(block + 1),
        rows_digest=known.block_digest(block),
        target=handover.target,
        settings=known.teach_settings,
        vocab_size=handover.vocab_size,
        threads=known.request.threads,
    )


@once
def _score(known: PlanningContext, model: Train | Distil) -> Score:
    return Score(model, known.test_digest, known.request.threads)


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """Return the largest n in ``low..high`` that fits, for a predicate that only ever turns from True to False; None if none."""
    if low > high or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _too_many_labels(known: PlanningContext, n_initial: int) -> NotAvailable:
    most = f"the {known.n_train:,} rows that can be labelled"
    return NotAvailable(f"--n-initial {n_initial:,} is more than {most}; give at most {known.n_train:,}")


def _too_few_rows(known: PlanningContext) -> NotAvailable:
    return NotAvailable(
        f"task {known.task} has {known.n_train:,} rows to label, fewer than the {known.n_min:,} that a training needs; "
        "add train rows"
    )


def _unaffordable(known: PlanningContext, quoter: Quoter, least: Step, what: str) -> NotAvailable:
    cost = quoter.total_micros(least)
    return NotAvailable(
        f"{what} cost {format_usd(cost)}, the budget is {format_usd(known.budget_micros)}; raise it to {format_usd(cost)}"
    )


def _derive(known: PlanningContext, quoter: Quoter, final: Score | Train | Distil) -> tuple[str, ...]:
    """Return the budget line by line, in the order it is spent; quotes are upper bounds (every epoch run, none stopped early)."""
    sums: dict[str, int] = {}
    for step in Recipe(final, ()).steps():
        name = describe(step)
        sums[name] = sums.get(name, 0) + quoter.quote(step).charge_micros
    lines = [f"{name}: at most {format_usd(micros)}" for name, micros in sums.items()]
    spent = sum(sums.values())
    left = known.budget_micros - spent
    return (f"budget: {format_usd(known.budget_micros)}", *known.lowered, *lines, f"left over: {format_usd(left)}")


def _free_start(known: PlanningContext) -> str:
    return f"start from {known.student.ref}: free, since it is publicly available: $0.00"


def _assumed(known: PlanningContext, seller: str) -> str:
    """Return the line of the receipt on the source and the assumed error rate of a seller's labels."""
    price, spec = known.offer(seller).price, known.request.seller(seller)
    rate = 0.0 if spec is None else spec.replay.error_rate
    wrong = f"replayed gold with {100 * rate:g} % wrong answers, which is an assumption"
    return f"{seller_words(seller)} labels: {wrong}, ${price.usd:f} each ({price.note or price.source})"


def _all_labelled(seller: str, n: int) -> str:
    labels = f"{seller_words(seller)} labels"
    return f"{labels}: no more than {n:,}, since no train row is left; add train rows to buy more"
