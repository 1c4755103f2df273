"""The rivals of planned runs: cheap models on the labels that these runs buy, one request for each that makes a difference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outlay.engine.prepare import RunBuilder
from outlay.models.reference import parse_ref
from outlay.plan.request import Request
from outlay.plan.steps import HUMAN, OWNED, Buy, Recipe
from outlay.plan.strategies import RIVAL_METHODS, Rival, rival_of, strategy
from outlay.settings import flat_settings


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run that is planned to be filled: its request, and its first recipe."""

    request: Request
    recipe: Recipe


def rivals_of(runs: Sequence[PlannedRun], builder: RunBuilder) -> list[Request]:
    """Return the requests of the rivals of some runs, in the order of the runs.

    A rival may learn from as many labels as any run of its task, seed and budget buys for its train rows. It keeps the choices of
    a run that decide its labels, its price and its student: no teacher, pool or N. Rivals that read no checkpoint are the same
    for every student, so they have the first one.
    """
    most: dict[Hashable, int] = {}
    for run in runs:
        most[_money(run.request)] = max(most.get(_money(run.request), 0), _n_bought(run.recipe))
    first: dict[Hashable, Request] = {}
    found: dict[Hashable, Request] = {}
    for run in runs:
        n_labels = most[_money(run.request)]
        if rival_of(run.request.strategy) is not None or not n_labels:
            continue
        for name, method in RIVAL_METHODS.items():
            asked = replace(_alone(run.request), strategy=name, max_labels=n_labels)
            if not Rival(name, method).reads_student:
                student = first.setdefault(_identity(asked, without_models=True), asked)
                asked = replace(asked, student=student.student, teacher=student.teacher, base=student.base)
            if _suits(asked, builder):
                found.setdefault(_identity(asked), asked)
    return list(found.values())


def tasks_without_rivals(runs: Sequence[PlannedRun], builder: RunBuilder) -> list[str]:
    """Return a line for each task of some runs that no rival can do."""
    kinds = dict[str, str]()
    for run in runs:
        task, _ = builder.load(run.request.task)
        kinds[task.name] = task.kind
    return [
        f"{task} has no rivals: its answers are written, and they choose among labels"
        for task, kind in kinds.items()
        if kind == "generation"
    ]


def _money(asked: Request) -> Hashable:
    return asked.task, asked.seed, asked.budget_micros


def _n_bought(recipe: Recipe) -> int:
    """Return how many train rows, from the first on, have owned labels in a recipe, or labels of people."""
    bought = [step for step in recipe.steps() if isinstance(step, Buy)]
    return max((step.stop for step in bought if step.split == "train" and step.seller in (HUMAN, OWNED)), default=0)


def _alone(asked: Request) -> Request:
    """Return a request without what only teachers, pools and other sellers need."""
    student = asked.general if strategy(asked.strategy).starts_general else asked.student
    origin = asked.base or asked.teacher
    kept: dict[str, Mapping[str, Any]] = {"student": asked.overrides.get("student", {})}
    for role in ("teacher", "distil"):
        kept[role] = {name: value for name, value in asked.overrides.get(role, {}).items() if name == "precision"}
    return replace(
        asked,
        n_initial=None,
        pool_rows=None,
        student=student,
        teacher=origin if parse_ref(student).needs_base else student,
        base=None,
        sellers=tuple(seller for seller in asked.sellers if seller.name == HUMAN),
        overrides={role: left for role, pairs in kept.items() if (left := _methodless(pairs))},
    )


def _methodless(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the method and what it reads: a rival has its own, whatever those of the run are."""
    return {name: value for name, value in flat_settings(settings).items() if name not in _OF_METHODS}


_OF_METHODS = ("method", "pair", "pooling", "tune")


def _identity(asked: Request, *, without_models: bool = False) -> Hashable:
    """Return a key that is equal for equal requests."""
    models = ("student", "teacher", "base", "general") if without_models else ()
    plain = tuple(repr(getattr(asked, name)) for name in asked.__slots__ if name not in ("overrides", *models))
    return plain, tuple((role, tuple(map(repr, sorted(pairs.items())))) for role, pairs in asked.overrides.items())


def _suits(asked: Request, builder: RunBuilder) -> bool:
    rival = rival_of(asked.strategy)
    assert rival is not None
    task, _ = builder.load(asked.task)
    return rival.suits(task.kind, builder.family_of(asked))
