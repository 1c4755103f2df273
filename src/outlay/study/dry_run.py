"""The dry run of runs and studies: the recipe of each point, the distinct steps of all points, and their work, hours and dollars.

Charges, and their hours by the flops clock, are upper bounds. Wall seconds and cash are forecasts from the measured profile of
this machine; without a profile there are none.

Pure: no money moves, no model is loaded and nothing is written. A strategy that proposes a second recipe after the result of its
first is planned with the first recipe alone; those of `outlay.plan.strategies` propose one recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from outlay.engine.point import usd_of
from outlay.engine.prepare import RunBuilder
from outlay.errors import OutlayError
from outlay.models.cost_model import MachineProfile
from outlay.money.amounts import Price, cost_micros
from outlay.plan.context import PlanningContext
from outlay.plan.forecast import Forecaster
from outlay.plan.quotes import Quoter
from outlay.plan.request import REPLAY, Request
from outlay.plan.steps import Buy, Distil, Recipe, Score, Step, Teach, Train, n_carved
from outlay.plan.strategies import NotAvailable, decided, rival_of, strategy
from outlay.study.known import KnownPoint
from outlay.study.rivals import PlannedRun, rivals_of, tasks_without_rivals
from outlay.study.work import LabelCost, LabelCount, StudyWork, cost_by_seller, count_labels, total_work

PILOT_NOTE = "only the pilot is planned here: what follows depends on its dev score, so the charge is bounded by the budget alone"


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """A planned point: its ``recipe``, or the ``reason`` why it is not available (``na``).

    ``task``: name of the task, as in the point of the run. ``run_id``: ``None`` where the request cannot be built, such as with
    an unknown model. ``charge_micros``: upper bound of the charge, 0 for ``na`` and for a known or finished point.
    """

    request: Request
    task: str
    run_id: str | None
    recipe: Recipe | None
    reason: str | None
    charge_micros: int
    notes: tuple[str, ...] = ()
    """Limits of the task that its models lower."""
    known: KnownPoint | None = None
    """The point that is taken as done; nothing is run, and nothing charged."""
    is_finished: bool = False
    """True where the results folder has the result of this run: nothing is run, and nothing charged."""
    work: StudyWork | None = None
    """Work of the point's steps, as if it ran alone; ``None`` without a recipe, and for a known or finished point."""

    @property
    def is_left(self) -> bool:
        """True where the point is to be run."""
        return self.recipe is not None and self.known is None and not self.is_finished

    @property
    def is_rival(self) -> bool:
        """True for a rival, which runs after the others."""
        return rival_of(self.request.strategy) is not None

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """Numbers of labels bought for training and of pool rows distilled over; None without a recipe."""
        if self.recipe is None:
            return None, None
        model = self.recipe.model
        if isinstance(model, Distil):
            return model.targets[0].teacher.n_labels, model.n_rows
        return model.n_labels, 0

    @property
    def labels(self) -> LabelCount:
        """Labels of the recipe, dev labels included, each once."""
        return count_labels([] if self.recipe is None else self.recipe.steps())

    def to_json(self) -> dict[str, Any]:
        """Return the planned point as JSON values; absent values are null."""
        asked = self.request
        n_labels, n_pool = self.sizes
        status = "na" if self.recipe is None else "known" if self.known is not None else "planned"
        return {
            "task": self.task,
            "strategy": asked.strategy,
            "budget_usd": usd_of(asked.budget_micros),
            "n_initial": asked.n_initial,
            "seed": asked.seed,
            "teacher": asked.teacher,
            "student": asked.student,
            "pool_rows": asked.pool_rows,
            "machine": asked.machine,
            "run": self.run_id,
            "status": "finished" if self.is_finished and status == "planned" else status,
            "reason": self.reason,
            "n_labels": n_labels,
            "n_labels_bought": self.labels.n_bought,
            "n_labels_owned": self.labels.n_owned,
            "n_pool": n_pool,
            "optimizer_steps": 0 if self.work is None else self.work.n_optimizer_steps,
            "wall_seconds_forecast": None if self.work is None else self.work.seconds_here,
            "charge_at_most_usd": usd_of(self.charge_micros),
        }


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """A plan of runs: its points in the order given, and their distinct steps in topological order (inputs first).

    Steps, work and dollars are those of the points that are left to run: known and finished points have none.

    ``work_of``: work of each distinct step by its key; ``separate``: work where every point runs on its own; ``in_store``: keys
    of distinct steps whose artifacts are in the store; ``profile``: the measured speed of this machine; ``here``: its price.
    """

    points: tuple[PlannedPoint, ...]
    steps: tuple[Step, ...]
    work_of: Mapping[str, StudyWork]
    separate: StudyWork
    profile: MachineProfile | None = None
    here: Price | None = None
    in_store: frozenset[str] = frozenset()
    cash_cap_micros: int | None = None
    """Cash that all runs of the folder may take together."""
    rival_notes: tuple[str, ...] = ()
    """Tasks without rivals, a line each."""
    cost_of: Mapping[str, LabelCost] = field(default_factory=dict)
    """Costs of purchases whose labels are given for real, by the key of the step."""

    @property
    def distinct(self) -> StudyWork:
        """Work with each step done once, wherever it is done."""
        return total_work(self.work_of.values())

    @property
    def left(self) -> StudyWork:
        """Work of the distinct steps that are not in the store."""
        return total_work(work for key, work in self.work_of.items() if key not in self.in_store)

    @property
    def cash_micros(self) -> int | None:
        """Forecast of the cash of the steps left, rounded up once; ``None`` without a price of this machine or a forecast of the
        seconds. Replayed labels take no cash."""
        seconds = self.left.seconds_here
        if self.here is None or seconds is None:
            return None
        return cost_micros(Fraction(seconds) / 3600, self.here.usd)

    @property
    def cash_limit_micros(self) -> int:
        """Limit of the cash of the points left: their budgets together, or the cap of the folder where it is lower."""
        budgets = sum(point.request.budget_micros for point in self.points if point.is_left)
        return budgets if self.cash_cap_micros is None else min(budgets, self.cash_cap_micros)

    @property
    def labels(self) -> LabelCount:
        """Labels of the points left, each once: those that are in the store are bought no more."""
        return count_labels(step for step in self.steps if step.key not in self.in_store)

    @property
    def label_costs(self) -> list[LabelCost]:
        """Dollars of the labels that are given for real and not in the store, one sum for each seller."""
        return cost_by_seller(cost for key, cost in self.cost_of.items() if key not in self.in_store)

    @property
    def n_labels_separate(self) -> int:
        """Number of labels that the points left would buy if each bought its own; rivals buy none."""
        return sum(point.labels.n_bought for point in self.points if point.is_left and not point.is_rival)

    @property
    def n_points(self) -> int:
        """Number of points, ``na`` included."""
        return len(self.points)

    @property
    def n_na(self) -> int:
        """Number of points that are not available."""
        return sum(point.recipe is None for point in self.points)

    @property
    def n_known(self) -> int:
        """Number of points that are taken as done."""
        return sum(point.known is not None for point in self.points)

    @property
    def n_finished(self) -> int:
        """Number of points whose results are in the folder."""
        return sum(point.is_finished and point.known is None for point in self.points)

    @property
    def available(self) -> list[Request]:
        """Requests of the points that can be run, known ones left out, finished ones not."""
        return [point.request for point in self.points if point.recipe is not None and point.known is None]

    @property
    def charge_micros(self) -> int:
        """Upper bound of the charge of all points; a point is charged in full even where it shares steps."""
        return sum(point.charge_micros for point in self.points)

    @property
    def notes(self) -> list[str]:
        """Limits of the tasks that the models of the points lower, each once, and tasks without rivals."""
        lowered = dict.fromkeys(f"{point.task}: {note}" for point in self.points for note in point.notes)
        return [*lowered, *self.rival_notes]

    @property
    def saved(self) -> float:
        """Share (0-1) of the optimiser steps of separate runs that sharing saves."""
        n_separate = self.separate.n_optimizer_steps
        return 1 - self.distinct.n_optimizer_steps / n_separate if n_separate else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values: totals, then every point."""
        return {
            "n_points": self.n_points,
            "n_na": self.n_na,
            "n_known": self.n_known,
            "n_finished": self.n_finished,
            "n_labels_bought": self.labels.n_bought,
            "n_labels_owned": self.labels.n_owned,
            "n_labels_separate": self.n_labels_separate,
            **({"label_costs": [each.to_json() for each in self.label_costs]} if self.cost_of else {}),
            "left": self.left.to_json(),
            "distinct": self.distinct.to_json(),
            "separate": self.separate.to_json(),
            "optimizer_steps_saved": self.saved,
            "charge_at_most_usd": usd_of(self.charge_micros),
            "cash_forecast_usd": None if self.cash_micros is None else usd_of(self.cash_micros),
            "cash_limit_usd": usd_of(self.cash_limit_micros),
            "notes": self.notes,
            "points": [point.to_json() for point in self.points],
        }


@dataclass(frozen=True)
class AlreadyThere:
    """The state of a results folder and its store.

    ``is_finished``: tells by its id whether the folder has the result of a run; ``is_in_store``: tells by its key whether the
    store has the artifact of a step; ``cash_cap_micros``: cash that all runs of the folder may take together.
    """

    is_finished: Callable[[str], bool]
    is_in_store: Callable[[str], bool]
    cash_cap_micros: int | None = None


NOTHING_THERE = AlreadyThere(lambda _: False, lambda _: False)


def plan(
    builder: RunBuilder,
    asked: Iterable[Request | tuple[Request, str]],
    *,
    profile: MachineProfile | None = None,
    here: Price | None = None,
    refuse: bool = False,
    rivals: bool = False,
    known: Mapping[str, KnownPoint] = MappingProxyType({}),
    there: AlreadyThere = NOTHING_THERE,
) -> StudyPlan:
    """Plan many points.

    Args:
        builder: the builder of runs, with their tasks, models and prices.
        asked: the request of each point, with a reason where it is known beforehand to be ``na``.
        profile: the measured speed of this machine.
        here: the price of an hour of this machine.
        refuse: raise an error in a point's task, models or data, and take as many pool rows as there are. Otherwise such a point,
            and one that asks for more pool rows than its task has, is ``na``, with the line of the error as its reason. A point
            whose strategy is not available is ``na`` in both cases.
        rivals: add the rivals of the points after them; one with an error is ``na``.
        known: finished points by the ids of their runs, which are taken as done.
        there: what the results folder and the store have, and the limit of the folder.

    Raises:
        OutlayError: an error of `RunBuilder.prepare`, under ``refuse``.
    """
    points: list[PlannedPoint] = []
    totals = _WorkTotals(profile)

    def add(request: Request, absent: str | None, *, refuse: bool) -> None:
        point, context = _planned(builder, request, absent, refuse=refuse)
        if (recipe := point.recipe) is not None and point.run_id is not None and context is not None:
            point = replace(point, known=known.get(point.run_id), is_finished=there.is_finished(point.run_id))
            changed = {"work": totals.add(recipe, context)} if point.is_left else {"charge_micros": 0}
            point = replace(point, **changed)
        points.append(point)

    for each in asked:
        add(*(each if isinstance(each, tuple) else (each, None)), refuse=refuse)
    notes: list[str] = []
    if rivals:
        runs = [PlannedRun(point.request, point.recipe) for point in points if point.recipe is not None]
        notes = tasks_without_rivals(runs, builder)
        for request in rivals_of(runs, builder):
            add(request, None, refuse=False)
    return StudyPlan(
        tuple(points),
        tuple(totals.steps.values()),
        totals.work_of,
        totals.separate(),
        profile,
        here,
        frozenset(filter(there.is_in_store, totals.steps)),
        there.cash_cap_micros,
        tuple(notes),
        totals.cost_of,
    )


def _planned(
    builder: RunBuilder, request: Request, absent: str | None, *, refuse: bool
) -> tuple[PlannedPoint, PlanningContext | None]:
    run_id: str | None = None
    name = builder.name_of(request.task)
    try:
        run_id = builder.resolve(request).run_id
        reason = absent or (None if refuse else _too_small_a_pool(builder, request))
        if reason is None:
            context = builder.prepare(request).context
            proposal = decided(strategy(request.strategy), context)
            if isinstance(proposal, Recipe):
                quoter, notes = Quoter(context), tuple(context.lowered)
                at_most = quoter.total_micros(proposal.final)
                if any(spec.kind != REPLAY for spec in context.request.sellers):
                    at_most = min(request.budget_micros, at_most + quoter.uncertain_micros(proposal.final))
                if proposal.is_pilot:
                    # The recipe after a pilot is unknown before its score, and may take the rest of the budget.
                    at_most, notes = request.budget_micros, (*notes, PILOT_NOTE)
                return PlannedPoint(request, name, run_id, proposal, None, at_most, notes), context
            reason = proposal.reason if isinstance(proposal, NotAvailable) else "the strategy proposes nothing"
    except OutlayError as error:
        if refuse:
            raise
        reason = absent or str(error)
    return PlannedPoint(request, name, run_id, None, reason, 0), None


def _too_small_a_pool(builder: RunBuilder, request: Request) -> str | None:
    """Return the reason why a pool is too small for a cell of a study, else None; a single run takes the rows that exist."""
    if request.pool_rows is None:
        return None
    task, data = builder.load(request.task)
    n_rows = sum(len(part.examples) for part in data.pool)
    if request.pool_rows <= n_rows:
        return None
    return f"the pool of {task.name} has {n_rows:,} rows, the cell asks for {request.pool_rows:,}"


_ChargedStep = tuple[str, str]
"""The key of a step, and the name of the machine that it is charged as."""


class _WorkTotals:
    """Totals over the steps of recipes: with each distinct step once, and with each as often as it is used."""

    def __init__(self, profile: MachineProfile | None) -> None:
        self.steps: dict[str, Step] = {}
        self.work_of: dict[str, StudyWork] = {}
        self.cost_of: dict[str, LabelCost] = {}
        self._work_of_charged: dict[_ChargedStep, StudyWork] = {}
        self._used: list[StudyWork] = []
        self._foreseen: dict[Hashable, float] = {}
        self._profile = profile

    def add(self, recipe: Recipe, context: PlanningContext) -> StudyWork:
        """Add the steps of a recipe, and return their work."""
        works = []
        for step in recipe.steps():
            at = step.key, context.machine.name
            if at not in self._work_of_charged:
                self._work_of_charged[at] = self._step_work(step, context)
                self.steps.setdefault(step.key, step)
                self.work_of.setdefault(step.key, self._work_of_charged[at])
                if isinstance(step, Buy):
                    self._note_cost(step, context)
            works.append(self._work_of_charged[at])
        self._used.append(total_work(works))
        return self._used[-1]

    def _note_cost(self, step: Buy, context: PlanningContext) -> None:
        spec = context.request.seller(step.seller)
        if spec is not None and spec.kind != REPLAY:
            quoter = Quoter(context)
            self.cost_of[step.key] = LabelCost(
                step.seller, quoter.quote(step).charge_micros, quoter.most(step).charge_micros
            )

    def separate(self) -> StudyWork:
        """Return the work with each step as often as it is used."""
        return total_work(self._used)

    def _step_work(self, step: Step, context: PlanningContext) -> StudyWork:
        if not isinstance(step, Train | Teach | Distil | Score):
            return StudyWork({step.kind: 1}, 0, 0.0, 0.0)
        hours = float(Quoter(context).quote(step).quantity)
        return StudyWork({step.kind: 1}, _n_optimizer_steps(step, context), hours, self._seconds_here(step, context))

    def _seconds_here(self, step: Train | Teach | Distil | Score, context: PlanningContext) -> float | None:
        """Return the forecast of a step, computed once for steps that differ in seed or labels of the teacher alone."""
        if self._profile is None or self._profile.threads != step.threads:
            return None
        at = _alike(step, context)
        if at not in self._foreseen:
            # No label is bought yet, so every answer is forecast at its longest.
            forecaster = Forecaster(
                Quoter(context), self._profile, lambda _, model: [context.longest_answer[model.ref]]
            )
            forecast = forecaster.forecast(step)
            assert forecast is not None, "the profile's threads are the step's"
            self._foreseen[at] = forecast.seconds
        return self._foreseen[at]


def _alike(step: Train | Teach | Distil | Score, context: PlanningContext) -> Hashable:
    """Return the fields that determine the seconds of a step, apart from the order of the rows."""
    match step:
        case Train():
            dev = step.dev and (step.dev.how, step.dev.n)
            return context.task, step.kind, step.model, step.n_labels, dev, replace(step.settings, seed=0)
        case Teach():
            model, how = step.teacher.model, replace(step.settings, seed=0)
            return context.task, step.kind, model, step.start, step.stop, step.target, how
        case Distil():
            dev = step.dev and (step.dev.how, step.dev.n)
            n_gold = sum(buy.n for buy in step.gold)
            settings = replace(step.settings, seed=0)
            return context.task, step.kind, step.model, step.n_rows, step.target, n_gold, dev, settings
    return context.task, step.kind, step.model.model, getattr(step.model, "target", None), step.model.settings.precision


def _n_optimizer_steps(step: Step, context: PlanningContext) -> int:
    """Return the number of batches of all epochs, as many as the tokens fill where they are filled by tokens.

    A method that trains no weights by them has none.
    """
    if not isinstance(step, Train | Distil) or step.settings.chosen.trains == "none":
        return 0
    settings = step.settings
    if settings.batch_tokens is not None:
        n_tokens = Quoter(context).work(step).n_tokens_trained // settings.epochs
        return settings.epochs * -(-n_tokens // settings.batch_tokens)
    n_rows = step.n_labels - n_carved(step.dev) if isinstance(step, Train) else step.n_rows
    return settings.epochs * -(-n_rows // settings.batch_size)
