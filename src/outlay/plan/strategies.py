"""Strategies, which propose the next recipe from the planning context and earlier outcomes. Pure: no money is spent here.

``ask`` is called again after each recipe with the outcomes of the earlier ones, so that a strategy may buy step by step; the
strategies here propose one recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Literal, Protocol

from outlay.errors import UnknownStrategy, UsageError
from outlay.money.amounts import format_usd
from outlay.plan.context import Offer, PlanningContext
from outlay.plan.labels_left import lines_on_used_up
from outlay.plan.quotes import Quoter
from outlay.plan.recipe_steps import distil_step, score_step, settings_role, teacher_score_step, train_step
from outlay.plan.request import REPLAY
from outlay.plan.steps import (
    HUMAN,
    LLM,
    OF_TRAIN,
    Buy,
    Distil,
    Recipe,
    Score,
    Step,
    Train,
    describe,
    graph,
    n_carved,
    seller_words,
)
from outlay.spec import Family, Kind
from outlay.text.legible import did_you_mean

N_TRIED = 20
"""Labels that show what a seller without fixed prices really costs."""

RIVAL_METHODS = {"rival_majority": "majority", "rival_tfidf": "tfidf", "rival_probe": "probe"}
"""Methods of the rivals, by the names of their strategies."""


@dataclass(frozen=True, slots=True)
class NotAvailable:
    """A refusal: budget or data do not suffice; ``reason`` says what is missing and the way out."""

    reason: str


@dataclass(frozen=True, slots=True)
class StrategyOutcome:
    """Result of an earlier recipe: strategies see the dev score only.

    ``charge_micros``: charge of every recipe so far, this one included; ``dev_score``: of its model, 0-100,
    ``None`` without dev rows. ``charges``: charges of all steps so far, in micro-dollars, by their keys.
    """

    recipe: Recipe
    dev_score: float | None
    charge_micros: int
    charges: Mapping[str, int] = field(default_factory=dict)


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

    def ask(self, context: PlanningContext, outcomes: Sequence[StrategyOutcome]) -> Recipe | NotAvailable | None:
        """Return the next recipe, `NotAvailable`, or ``None`` when there is nothing more to buy.

        Called again after each recipe, and from the beginning when a run is resumed: a pure function of its arguments. A step
        that an earlier recipe has too is paid once; to add to the labels of a pilot, buy the rows behind them (`Buy.start`).
        """
        ...


@dataclass(frozen=True, slots=True)
class Annotate:
    """A strategy that spends all on labels for the student; its training is charged too, so the two are solved together.

    ``sellers``: the seller of the labels, or a seller of N labels and the one of all labels after them. With an LLM these are
    "GPT-3.5 Ann." and "Human + GPT-3.5 Ann." of Kang et al. 2023, section 5, Figure 6: the student learns from the labels of the
    LLM as if they were right.
    ``starts_general``: the student is a generally distilled checkpoint such as DistilBERT, whose cost is taken to be $0,
    since it is publicly available (Kang et al. 2023, Appendix F, Table 10).
    ``teaches``: the student learns the probabilities that came with the labels, in place of the labels, where there are some.
    """

    name: str = "annotate"
    sellers: tuple[str, ...] = (HUMAN,)
    starts_general: bool = False
    teaches: bool = False

    taught_by: ClassVar[Teaching | None] = None

    def ask(self, context: PlanningContext, outcomes: Sequence[StrategyOutcome]) -> Recipe | NotAvailable | None:
        """Return the recipe with the most labels such that labels, training and scoring stay within the budget.

        What the labels of a seller without fixed prices cost is tried on the first `N_TRIED` before the others are planned.
        """
        if outcomes and not outcomes[-1].recipe.is_trial:
            return None
        trial = outcomes[-1].recipe.final if outcomes else None
        tried: tuple[tuple[str, int], ...] = ()
        if isinstance(trial, Buy):
            context = context.priced(trial.seller, _offer_after(context, trial, outcomes[-1].charges[trial.key]))
            tried = ((trial.seller, trial.n),)
        seller, asked = self.sellers[-1], context.request.n_initial
        n_first = asked if len(self.sellers) > 1 else context.offer(seller).n_examples
        if n_first is None:
            return NotAvailable(f"strategy {self.name} needs to know how many labels people give; give --n-initial")
        if refused := _no_examples(context, self.name, seller, n_first):
            return refused
        n_left = context.n_train - n_first
        if n_first and n_left < 1:
            most = f"of the {context.n_train:,} rows that can be labelled"
            if len(self.sellers) == 1:
                return NotAvailable(f"{n_first:,} labels shown to seller {seller} {most} leave it none; show it fewer")
            return NotAvailable(
                f"--n-initial {n_first:,} {most} leaves none to an LLM; give at most {context.n_train - 1:,}"
            )
        if seller == HUMAN and asked is not None and asked > context.n_train:
            return _too_many_labels(context, asked)
        n_min = max(1, context.n_min - n_first)
        if n_left < n_min:
            return _too_few_rows(context)

        n_tried = sum(n for _, n in tried)
        n_min = max(n_min, n_tried)

        def final(n: int) -> Score:
            first = ((HUMAN, n_first),) if n_first else ()
            role = "teach" if self.teaches else "student"
            rest = ((seller, n - n_tried),) if n > n_tried else ()
            return score_step(context, train_step(context, role, context.student, (*first, *tried, *rest), None))

        quoter = Quoter(context)
        n = _largest(n_min, n_left, lambda n: quoter.total_micros(final(n)) <= context.budget_micros)
        if n is None:
            first = f"{n_first:,} labels, " if n_first else ""
            bought = f"{n_min:,} {'' if seller == HUMAN else seller_words(seller) + ' '}labels"
            return _unaffordable(context, quoter, final(n_min), f"{first}{bought} and the student's training")
        if not tried and n > N_TRIED and context.offer(seller).is_estimate and context.request.dev not in OF_TRAIN:
            step = next(each for each in final(N_TRIED).model.inputs if isinstance(each, Buy) and each.seller == seller)
            return Recipe(
                step, (f"{describe(step)} first, to see what they cost: {n:,} are expected to be affordable",)
            )
        budget, *lines, left = _derive(context, quoter, final(n))
        if self.starts_general:
            lines.insert(0, f"start from {context.student.ref}: free, since it is publicly available: $0.00")
        if seller != HUMAN:
            lines.insert(0, _assumed(context, seller))
        return Recipe(final(n), (budget, *lines, left))


@dataclass(frozen=True, slots=True)
class Distill:
    """A strategy of N labels → teacher → pool → student.

    With ``n_initial``: N is fixed (Kang et al. 2023, Table 2) and the pool is as much as the rest pays for. Without: the
    compute for the whole pool is reserved and the rest buys labels.
    ``own_teacher``: the teacher has the student's architecture (self-distillation, Table 3).
    ``seller``: of the labels that the teacher learns from.
    """

    name: str = "distill"
    own_teacher: bool = False
    seller: str = HUMAN

    @property
    def taught_by(self) -> Teaching | None:
        """The teacher, or a model like the student."""
        return "student" if self.own_teacher else "teacher"

    starts_general: ClassVar[bool] = False

    @property
    def sellers(self) -> tuple[str, ...]:
        """The seller of the teacher's labels."""
        return (self.seller,)

    def ask(self, context: PlanningContext, outcomes: Sequence[StrategyOutcome]) -> Recipe | NotAvailable | None:
        """Return the recipe under the N rule of the request."""
        if outcomes:
            return None
        quoter = Quoter(context)
        teacher, n_shown = (
            context.student if self.own_teacher else context.teacher,
            context.offer(self.seller).n_examples,
        )
        if refused := _no_examples(context, self.name, self.seller, n_shown):
            return refused

        def trained(n: int) -> Train:
            first = ((HUMAN, min(n_shown, n)),) if n_shown else ()
            rest = ((self.seller, n - n_shown),) if n > n_shown else ()
            return train_step(context, "teacher", teacher, (*first, *rest), None)

        def final(n: int, n_blocks: int) -> Score:
            return score_step(context, distil_step(context, trained(n), n_blocks))

        def fits(n: int, n_blocks: int) -> bool:
            return quoter.total_micros(final(n, n_blocks)) <= context.budget_micros

        def recipe(n: int, n_blocks: int) -> Recipe:
            last = final(n, n_blocks)
            return Recipe(last, _derive(context, quoter, last), teacher_score_step(context, trained(n)))

        n_all = context.n_blocks
        if n_all == 0:
            return NotAvailable(f"task {context.task} has no pool to distil over; give it a `pool:`")
        n: int | None = context.request.n_initial
        if n is None:
            if context.n_train < context.n_min:
                return _too_few_rows(context)
            n = _largest(context.n_min, context.n_train, lambda n: fits(n, n_all))
            if n is None:
                what = f"the whole pool ({context.n_pool:,} rows) and {context.n_min} labels for the teacher"
                return _unaffordable(context, quoter, final(context.n_min, n_all), what)
            return recipe(n, n_all)
        if n > context.n_train:
            return _too_many_labels(context, n)
        n_blocks = _largest(1, n_all, lambda b: fits(n, b))
        if n_blocks is None:
            what = f"{n:,} labels, the teacher and {context.block(0)[1]:,} pool rows"
            return _unaffordable(context, quoter, final(n, 1), what)
        return recipe(n, n_blocks)


@dataclass(frozen=True, slots=True)
class Rival:
    """A cheap model on labels that other runs have bought: a baseline that a strategy must beat to be worth its money.

    Its request says how many labels there are (`outlay.plan.request.Request.max_labels`). It is charged for them as if it were
    alone, so that its price can be compared, and its run orders none (`outlay.engine.run`). ``method``: of its training.
    """

    name: str
    method: str

    taught_by: ClassVar[Teaching | None] = None
    starts_general: ClassVar[bool] = False
    sellers: ClassVar[tuple[str, ...]] = (HUMAN,)

    @property
    def reads_student(self) -> bool:
        """True where the model is the student's checkpoint; without one, the student of the request is not what is trained."""
        return self.method == "probe"

    def suits(self, kind: Kind, family: Family) -> bool:
        """Return whether the method can do a kind of task with a model of a family."""
        if kind == "entities":
            return self.method == "probe" and family == "encoder"
        return kind == "classification"

    def ask(self, context: PlanningContext, outcomes: Sequence[StrategyOutcome]) -> Recipe | NotAvailable | None:
        """Return the recipe with the most of the bought labels such that labels, training and scoring stay within the budget."""
        if outcomes:
            return None
        kind, ref = context.encoding.form.kind, context.student.ref
        if not self.suits(kind, context.shapes[ref].family):
            return NotAvailable(f"{self.name} does no task of kind {kind} with {ref}; leave it out")
        bought = context.request.max_labels
        n_most = context.n_train if bought is None else min(context.n_train, bought)
        if n_most < context.n_min:
            return NotAvailable(
                f"{n_most:,} labels are bought, fewer than the {context.n_min:,} that a training needs; raise the budget"
            )

        def final(n: int) -> Score:
            return score_step(context, train_step(context, "student", context.student, ((HUMAN, n),), self.method))

        quoter = Quoter(context)
        n = _largest(context.n_min, n_most, lambda n: quoter.total_micros(final(n)) <= context.budget_micros)
        if n is None:
            return _unaffordable(
                context, quoter, final(context.n_min), f"{context.n_min:,} labels and the rival's training"
            )
        budget, *lines = _derive(context, quoter, final(n), buys=False)
        return Recipe(final(n), (budget, "a rival: it buys no labels, and is charged for those of other runs", *lines))


STRATEGIES: dict[str, Strategy] = {
    "annotate": Annotate(),
    "distill": Distill(),
    "self_distill": Distill(name="self_distill", own_teacher=True),
    "general_distill": Annotate(name="general_distill", starts_general=True),
    "llm_annotate": Annotate(name="llm_annotate", sellers=(LLM,)),
    "mix": Annotate(name="mix", sellers=(HUMAN, LLM)),
    "llm_teach": Annotate(name="llm_teach", sellers=(LLM,), teaches=True),
    "llm_distill": Distill(name="llm_distill", seller=LLM),
}
"""Strategies to choose from, by name."""

RIVALS = {name: Rival(name, method) for name, method in RIVAL_METHODS.items()}
"""Rivals by name; a command adds them to its runs (`outlay.study.rivals`), nobody asks for one."""


def rival_of(name: str) -> Rival | None:
    """Return the rival of a name, ``None`` for a strategy that buys labels or does not exist."""
    return RIVALS.get(name)


def check_chosen(names: Iterable[str]) -> None:
    """Refuse a rival among strategies that a user names.

    Raises:
        UsageError: one line, with the way to train a model by the rival's method.
    """
    for name in names:
        if (rival := RIVALS.get(name)) is not None:
            raise UsageError(
                f"{name} is no strategy to choose: rivals run beside the others by themselves; to buy labels for one, choose "
                f"annotate with --set student.method={rival.method}"
            )


def strategy(name: str) -> Strategy:
    """Return the strategy of a name, or the rival.

    Raises:
        UnknownStrategy: lists the known ones.
    """
    if name in RIVALS:
        return RIVALS[name]
    if name not in STRATEGIES:
        hint = did_you_mean(name, STRATEGIES)
        raise UnknownStrategy(f"unknown strategy {name!r}{hint}; known: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def _no_examples(context: PlanningContext, name: str, seller: str, n_first: int) -> NotAvailable | None:
    """Return the refusal of a seller who is to be shown labels that nobody sells, or more of them than come first."""
    n_shown = context.offer(seller).n_examples
    if not n_shown or (n_first >= n_shown and (HUMAN in context.offers or context.n_owned >= n_shown)):
        return None
    if n_first < n_shown:
        return NotAvailable(
            f"seller {seller} is shown {n_shown:,} bought labels, and people give {n_first:,} before it; raise --n-initial or "
            "lower its `n_examples`"
        )
    return NotAvailable(
        f"strategy {name}: seller {seller} is shown {n_shown:,} bought labels, and nobody sells them; name people among the "
        "`sellers` of the task, or say `examples: none` of it"
    )


def _offer_after(context: PlanningContext, trial: Buy, charge_micros: int) -> Offer:
    """Return the terms of a seller by what a trial of it was charged."""
    offer = context.offer(trial.seller)
    expected = offer.price.cost_micros(offer.expected(trial.split, trial.start, trial.stop))
    return offer.scaled(Fraction(charge_micros, expected)) if expected else offer


def decided(policy: Strategy, context: PlanningContext) -> Recipe | NotAvailable | None:
    """Return what a strategy asks for first that trains something, if the trials of sellers cost what is expected of them."""
    outcomes: list[StrategyOutcome] = []
    while isinstance(found := policy.ask(context, outcomes), Recipe) and isinstance(found.final, Buy):
        charges = {step.key: Quoter(context).quote(step).charge_micros for step in found.steps()}
        outcomes.append(StrategyOutcome(found, None, sum(charges.values()), charges))
    return found


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


def _too_many_labels(context: PlanningContext, n_initial: int) -> NotAvailable:
    most = f"the {context.n_train:,} rows that can be labelled"
    return NotAvailable(f"--n-initial {n_initial:,} is more than {most}; give at most {context.n_train:,}")


def _too_few_rows(context: PlanningContext) -> NotAvailable:
    return NotAvailable(
        f"task {context.task} has {context.n_train:,} rows to label, fewer than the {context.n_min:,} that a training needs; "
        "add train rows"
    )


def _unaffordable(context: PlanningContext, quoter: Quoter, least: Step, what: str) -> NotAvailable:
    cost = quoter.total_micros(least)
    held = [step for step in graph([least]) if isinstance(step, Buy) and step.split != "train"]
    if held:
        # Dev and test labels are bought whatever else is.
        what += f", with {' and '.join(describe(step) for step in held)},"
    return NotAvailable(
        f"{what} cost {format_usd(cost)}, the budget is {format_usd(context.budget_micros)}; raise it to {format_usd(cost)}"
    )


def _derive(
    context: PlanningContext, quoter: Quoter, final: Score | Train | Distil, *, buys: bool = True
) -> tuple[str, ...]:
    """Return the budget line by line, in the order it is spent; quotes are upper bounds (every epoch run, none stopped early).

    Labels without a fixed price are told with what is expected of them too.

    ``buys``: False for a rival, whose labels others buy.
    """
    sums: dict[str, int] = {}
    most: dict[str, int] = {}
    for step in Recipe(final, ()).steps():
        name, quote = describe(step), quoter.quote(step)
        sums[name] = sums.get(name, 0) + quote.charge_micros
        most[name] = most.get(name, 0) + (quoter.most(step) if isinstance(step, Buy) else quote).charge_micros
    lines = [
        f"{name}: {f'about {format_usd(micros)}, ' if micros != most[name] else ''}at most {format_usd(most[name])}"
        for name, micros in sums.items()
    ]
    spent = sum(sums.values())
    left = context.budget_micros - spent
    lines += lines_on_used_up(context, final, left) if buys else ()
    chosen = _methods_chosen(context, final)
    return (
        f"budget: {format_usd(context.budget_micros)}",
        *context.lowered,
        *chosen,
        *lines,
        f"left over: {format_usd(left)}",
    )


def _methods_chosen(context: PlanningContext, final: Score | Train | Distil) -> list[str]:
    """Return a line on each method that was chosen for the user."""
    lines = []
    for step in Recipe(final, ()).steps():
        if isinstance(step, Train):
            role, who, n_labels = (
                settings_role(context, "teach" if step.learns_probabilities else step.role, step.model),
                step.role,
                step.n_labels - n_carved(step.dev),
            )
        elif isinstance(step, Distil):
            teacher = step.targets[0].teacher
            role, who, n_labels = "distil", "student", teacher.n_labels - n_carved(teacher.dev)
        else:
            continue
        if (chosen := context.chosen_method(role, step.model, n_labels)) is not None:
            lines.append(f"{who}: {chosen.why}")
    return lines


def _assumed(context: PlanningContext, seller: str) -> str:
    """Return the line of the receipt on the source of a seller's labels, and the assumed error rate of replayed ones."""
    price, spec = context.offer(seller).price, context.request.seller(seller)
    if spec is not None and spec.kind != REPLAY:
        of = spec.chosen.get("model", "people, by files")
        return f"{seller_words(seller)} labels: of {of} ({price.note or price.source})"
    rate = 0.0 if spec is None else spec.replay.error_rate
    wrong = f"replayed gold with {100 * rate:g} % wrong answers, which is an assumption"
    return f"{seller_words(seller)} labels: {wrong}, ${price.usd:f} each ({price.note or price.source})"
