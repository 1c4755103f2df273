"""A study before it runs: what each point would do, the distinct steps of all, and what they cost in work, hours and dollars.

Charges, and the hours that they are made of by the flops clock, are bounds. Wall seconds and cash are forecasts by a measured
profile of the machine that is here; without one there are none.

Pure: no money moves, no model is loaded and nothing is written. A strategy that asks again once it knows what came of its first
recipe is planned with that first recipe alone; those of `outlay.plan.strategies` know at once what they want.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from outlay.engine.point import usd_of
from outlay.engine.prepare import Options, RunBuilder
from outlay.errors import OutlayError
from outlay.models.cost_model import MachineProfile
from outlay.money.amounts import Price, cost_micros
from outlay.plan.context import PlanningContext
from outlay.plan.forecast import Forecaster
from outlay.plan.quotes import Quoter
from outlay.plan.steps import Distil, Recipe, Score, Step, Teach, Train, n_carved
from outlay.plan.strategies import NotAvailable, strategy

if TYPE_CHECKING:
    pass

KINDS = ("buy", "train", "teach", "distil", "score")
"""Of steps, in the order in which they are done."""


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """One point: its ``recipe``, or the ``reason`` why it is ``na``.

    ``task``: its name, as in the point of the run.
    ``run_id``: ``None`` where there is not even a request (a model that leads nowhere); ``charge_micros``: a bound, 0 for ``na``.
    """

    options: Options
    task: str
    run_id: str | None
    recipe: Recipe | None
    reason: str | None
    charge_micros: int
    notes: tuple[str, ...] = ()
    """What the models cannot keep of the task's limits."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; absent ones are null."""
        asked = self.options
        n_labels, n_pool = _sizes(self.recipe)
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
            "status": "na" if self.recipe is None else "planned",
            "reason": self.reason,
            "n_labels": n_labels,
            "n_pool": n_pool,
            "charge_at_most_usd": usd_of(self.charge_micros),
        }


@dataclass(frozen=True, slots=True)
class StudyWork:
    """What some steps come to.

    ``n_steps``: by kind; ``n_optimizer_steps``: batches trained, every epoch run to its end; ``charged_hours``: on the
    machines they are charged as, by the flops clock, which bounds the charge and says nothing of wall time; ``seconds_here``: the
    forecast of wall seconds on the machine that is here, ``None`` where no profile was measured with their threads.
    """

    n_steps: Mapping[str, int]
    n_optimizer_steps: int
    charged_hours: float
    seconds_here: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "steps": {kind: self.n_steps.get(kind, 0) for kind in KINDS},
            "optimizer_steps": self.n_optimizer_steps,
            "charged_hours_at_most": self.charged_hours,
            "wall_seconds_forecast": self.seconds_here,
        }


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """Points in the order asked, and the distinct steps of all of them, inputs before what reads them.

    ``distinct``: each step once; ``separate``: as separate runs would do it, each point for itself; ``cash_micros``: the forecast
    for the distinct steps at the price of the machine that is here, ``None`` without a forecast of their seconds. Replayed labels
    take no cash.
    """

    points: tuple[PlannedPoint, ...]
    steps: tuple[Step, ...]
    distinct: StudyWork
    separate: StudyWork
    cash_micros: int | None

    @property
    def n_points(self) -> int:
        """All of them, ``na`` included."""
        return len(self.points)

    @property
    def n_na(self) -> int:
        """Points that cannot be filled."""
        return sum(point.recipe is None for point in self.points)

    @property
    def charge_micros(self) -> int:
        """Of all points at most: every point is charged in full, whatever it shares."""
        return sum(point.charge_micros for point in self.points)

    @property
    def notes(self) -> list[str]:
        """What the models of the points cannot keep of the limits of their tasks, each once."""
        return list(dict.fromkeys(f"{point.task}: {note}" for point in self.points for note in point.notes))

    @property
    def saved(self) -> float:
        """Share (0-1) of the optimiser steps of separate runs that need not be done."""
        n_separate = self.separate.n_optimizer_steps
        return 1 - self.distinct.n_optimizer_steps / n_separate if n_separate else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values: every point, then the sums."""
        return {
            "n_points": self.n_points,
            "n_na": self.n_na,
            "distinct": self.distinct.to_json(),
            "separate": self.separate.to_json(),
            "optimizer_steps_saved": self.saved,
            "charge_at_most_usd": usd_of(self.charge_micros),
            "cash_forecast_usd": None if self.cash_micros is None else usd_of(self.cash_micros),
            "notes": self.notes,
            "points": [point.to_json() for point in self.points],
        }


def plan(
    workbench: RunBuilder,
    asked: Iterable[Options | tuple[Options, str]],
    on_point: Callable[[int], None] | None = None,
    *,
    profile: MachineProfile | None = None,
    here: Price | None = None,
    refuse: bool = False,
) -> StudyPlan:
    """Plan many points.

    Args:
        workbench: of the tasks, models and prices.
        asked: the options of each point, with a reason where it is known beforehand to be ``na``.
        on_point: told how many points are done.
        profile: the speed of the machine that is here.
        here: the price of its hour.
        refuse: raise what is wrong with a point's task, models or data, and take as many pool rows as there are. Otherwise such a
            point, and one that asks for more pool rows than its task has, is ``na``, and its reason the error's line. A point
            whose strategy says so is ``na`` in both cases.

    Raises:
        OutlayError: what `RunBuilder.prepare` refuses, under ``refuse``.
    """
    points: list[PlannedPoint] = []
    sums = _Sums(profile, here)
    for number, each in enumerate(asked, start=1):
        options, absent = each if isinstance(each, tuple) else (each, None)
        point, known = _planned(workbench, options, absent, refuse=refuse)
        points.append(point)
        if point.recipe is not None and known is not None:
            sums.add(point.recipe, known)
        if on_point is not None:
            on_point(number)
    return StudyPlan(tuple(points), tuple(sums.steps.values()), sums.distinct(), sums.separate(), sums.cash_micros())


def _planned(
    workbench: RunBuilder, options: Options, absent: str | None, *, refuse: bool
) -> tuple[PlannedPoint, PlanningContext | None]:
    run_id: str | None = None
    name = workbench.name_of(options.task)
    try:
        run_id = workbench.request(options).run_id
        reason = absent or (None if refuse else _too_small_a_pool(workbench, options))
        if reason is None:
            known = workbench.prepare(options).known
            proposal = strategy(options.strategy).ask(known, [])
            if isinstance(proposal, Recipe):
                charge_micros = Quoter(known).total_micros(proposal.final)
                notes = tuple(known.lowered)
                return PlannedPoint(options, name, run_id, proposal, None, charge_micros, notes), known
            reason = proposal.reason if isinstance(proposal, NotAvailable) else "the strategy proposes nothing"
    except OutlayError as error:
        if refuse:
            raise
        reason = absent or str(error)
    return PlannedPoint(options, name, run_id, None, reason, 0), None


def _too_small_a_pool(workbench: RunBuilder, options: Options) -> str | None:
    """A run takes what pool there is; a cell of a study that says how many rows means them."""
    if options.pool_rows is None:
        return None
    task, data = workbench.load(options.task)
    n_rows = sum(len(part.examples) for part in data.pool)
    if options.pool_rows <= n_rows:
        return None
    return f"the pool of {task.name} has {n_rows:,} rows, the cell asks for {options.pool_rows:,}"


_On = tuple[str, str]
"""The key of a step, and the machine that it is charged as."""


@dataclass(frozen=True, slots=True)
class _Figures:
    """Of one step, as in `StudyWork`."""

    kind: str
    n_optimizer_steps: int
    charged_hours: float
    seconds_here: float | None


class _Sums:
    """Adds up the steps of recipes: each distinct one once, and each as often as it is asked for."""

    def __init__(self, profile: MachineProfile | None, here: Price | None) -> None:
        self.steps: dict[str, Step] = {}
        self._first: list[_On] = []
        self._figures: dict[_On, _Figures] = {}
        self._n_asked: dict[_On, int] = {}
        self._foreseen: dict[Hashable, float] = {}
        self._profile = profile
        self._here = here

    def add(self, recipe: Recipe, known: PlanningContext) -> None:
        """Count the steps of a point."""
        for step in recipe.steps():
            at = step.key, known.machine.name
            if at not in self._figures:
                self._figures[at] = self._figures_of(step, known)
                self._n_asked[at] = 0
                if step.key not in self.steps:
                    self.steps[step.key] = step
                    self._first.append(at)
            self._n_asked[at] += 1

    def distinct(self) -> StudyWork:
        """Each step once."""
        return self._work(dict.fromkeys(self._first, 1))

    def separate(self) -> StudyWork:
        """Each step as often as it is asked for."""
        return self._work(self._n_asked)

    def cash_micros(self) -> int | None:
        """Of the distinct steps, rounded up once."""
        seconds = self.distinct().seconds_here
        if self._here is None or seconds is None:
            return None
        return cost_micros(Fraction(seconds) / 3600, self._here.usd)

    def _work(self, counts: Mapping[_On, int]) -> StudyWork:
        n_steps = dict.fromkeys(KINDS, 0)
        n_optimizer_steps, charged_hours = 0, 0.0
        seconds: float | None = 0.0
        for at, n in counts.items():
            each = self._figures[at]
            n_steps[each.kind] += n
            n_optimizer_steps += n * each.n_optimizer_steps
            charged_hours += n * each.charged_hours
            seconds = None if seconds is None or each.seconds_here is None else seconds + n * each.seconds_here
        return StudyWork(n_steps, n_optimizer_steps, charged_hours, seconds)

    def _figures_of(self, step: Step, known: PlanningContext) -> _Figures:
        if not isinstance(step, Train | Teach | Distil | Score):
            return _Figures(step.kind, 0, 0.0, 0.0)
        hours = float(Quoter(known).quote(step).quantity)
        return _Figures(step.kind, _n_optimizer_steps(step, known), hours, self._seconds_here(step, known))

    def _seconds_here(self, step: Train | Teach | Distil | Score, known: PlanningContext) -> float | None:
        """Foreseen once for all steps that differ in their seed, or in the teacher's labels, alone."""
        if self._profile is None or self._profile.threads != step.threads:
            return None
        at = _alike(step, known)
        if at not in self._foreseen:
            # No label is bought yet: every answer is taken at its longest.
            forecaster = Forecaster(Quoter(known), self._profile, lambda _, model: [known.longest_answer[model.ref]])
            forecast = forecaster.forecast(step)
            assert forecast is not None, "the profile's threads are the step's"
            self._foreseen[at] = forecast.seconds
        return self._foreseen[at]


def _alike(step: Train | Teach | Distil | Score, known: PlanningContext) -> Hashable:
    """What decides how long a step takes, but for the order of the rows."""
    match step:
        case Train():
            dev = step.dev and (step.dev.how, step.dev.n)
            return known.task, step.kind, step.model, _n_labels(step), dev, replace(step.settings, seed=0)
        case Teach():
            model, how = step.teacher.model, replace(step.settings, seed=0)
            return known.task, step.kind, model, step.start, step.stop, step.target, how
        case Distil():
            dev = step.dev and (step.dev.how, step.dev.n)
            n_gold = step.gold and step.gold.n
            settings = replace(step.settings, seed=0)
            return known.task, step.kind, step.model, step.n_rows, step.target, n_gold, dev, settings
    return known.task, step.kind, step.model.model, getattr(step.model, "target", None), step.model.settings.precision


def _n_optimizer_steps(step: Step, known: PlanningContext) -> int:
    """Batches of all epochs; where batches are filled by tokens, as many as their tokens fill."""
    if not isinstance(step, Train | Distil):
        return 0
    settings = step.settings
    if settings.batch_tokens is not None:
        n_tokens = Quoter(known).work(step).n_tokens_trained // settings.epochs
        return settings.epochs * -(-n_tokens // settings.batch_tokens)
    n_rows = _n_labels(step) - n_carved(step.dev) if isinstance(step, Train) else step.n_rows
    return settings.epochs * -(-n_rows // settings.batch_size)


def _sizes(recipe: Recipe | None) -> tuple[int | None, int | None]:
    """Labels bought for training, and pool rows that are distilled over."""
    if recipe is None:
        return None, None
    model = recipe.final.model
    if isinstance(model, Distil):
        return _n_labels(model.targets[0].teacher), model.n_rows
    return _n_labels(model), 0


def _n_labels(step: Train) -> int:
    """Labels that it learns from, those set aside for dev included."""
    return step.n_labels


# --- for a terminal --------------------------------------------------------------------------------------------------
