"""Groups of points: the seeds of one strategy variant at one budget, under a distinct label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.engine.point import Point, PointRequest
from outlay.plan.strategy_words import strategy_lines

RIVAL_NAMES = {
    "rival_majority": "Rival: majority class",
    "rival_tfidf": "Rival: TF-IDF + regression",
    "rival_probe": "Rival: probe",
}
"""Names of the rivals in tables and figures."""


@dataclass(frozen=True, slots=True)
class Group:
    """The seeds of one strategy variant at one budget, sorted by seed."""

    label: str
    budget_usd: float
    points: tuple[Point, ...]

    @property
    def ok(self) -> tuple[Point, ...]:
        """The points that have a test score."""
        return tuple(point for point in self.points if point.is_ok)


# Fields that may differ between groups of one variant and budget, in their order in a label.
_IDENTITY_FIELDS = (
    "task",
    "n_initial",
    "added_usd",
    "teacher",
    "student",
    "method",
    "machine",
    "clock",
    "price_book",
    "pool",
    "dev",
    "test_rows",
)


def group(points: Iterable[Point], *, unnamed: Sequence[str] = ()) -> list[Group]:
    """Group points by request without its seed, sorted by budget, then in the order in which the variants first appear.

    Where two groups share variant and budget, their labels name the fields that differ
    ("distill, student cut:2" and "distill, student cut:3"), except fields in ``unnamed``.
    """
    members: dict[tuple[str, float, tuple[Any, ...]], list[Point]] = {}
    for point in points:
        request = point.request
        identity = tuple(getattr(request, "own_student" if name == "student" else name) for name in _IDENTITY_FIELDS)
        members.setdefault((request.variant, request.budget_usd, identity), []).append(point)
    students = {point.request.student for seeds in members.values() for point in seeds}
    twins: dict[tuple[str, float], list[tuple[Any, ...]]] = {}
    for variant, budget_usd, identity in members:
        twins.setdefault((variant, budget_usd), []).append(identity)
    groups = [
        Group(
            label=_label(seeds[0], students, _differences(identity, twins[variant, budget_usd], unnamed)),
            budget_usd=budget_usd,
            points=tuple(sorted(seeds, key=lambda point: point.request.seed)),
        )
        for (variant, budget_usd, identity), seeds in members.items()
    ]
    return sorted(groups, key=lambda each: each.budget_usd)


def _label(point: Point, students: Iterable[str], differences: Sequence[str]) -> str:
    request = point.request
    if not request.is_rival:
        return ", ".join([request.variant, *differences])
    others = [each for each in differences if not each.startswith("student ")]
    return ", ".join([rival_name(request, short_model(request.student, students)), *others])


def rival_name(request: PointRequest, student: str) -> str:
    """Return the name of a rival: "Rival: probe of cut:2"; one that reads no checkpoint is of no student."""
    name = RIVAL_NAMES.get(request.strategy, request.strategy)
    return name if request.own_student is None else f"{name} of {student}"


def lines_on_strategies(requests: Iterable[PointRequest]) -> list[str]:
    """Return a line on each strategy of some requests, and one on N by rule where a name has it."""
    among = [request for request in requests if not request.is_rival]
    return strategy_lines(
        (request.strategy for request in among), by_rule=any(request.policy != request.strategy for request in among)
    )


def variant_names(requests: Iterable[PointRequest]) -> dict[PointRequest, str]:
    """Return the name of each request's variant, with its method where one variant has several; a rival's has none."""
    methods: dict[str, set[str]] = {}
    among = list(requests)
    for request in among:
        methods.setdefault(request.variant, set()).add(request.method)
    return {
        request: RIVAL_NAMES.get(request.strategy)
        or request.variant + (f", method {request.method}" if len(methods[request.variant]) > 1 else "")
        for request in among
    }


def short_model(ref: str, among: Iterable[str]) -> str:
    """Return the shortest end of a model reference that is distinct among others; the name of a package for a packaged model."""
    package = ref.removeprefix("package:").split("/")[0]
    if ref.startswith("package:") and not any(other != ref and f":{package}/" in other for other in among):
        return package
    parts = ref.split("/")
    for n in range(1, len(parts)):
        short = "/".join(parts[-n:])
        if short and not any(other != ref and f"/{other}".endswith(f"/{short}") for other in among):
            return short
    return ref


def _differences(identity: tuple[Any, ...], twins: Sequence[tuple[Any, ...]], unnamed: Sequence[str]) -> list[str]:
    """Return the text of each identity field that differs among the groups of one variant and budget."""
    shown = []
    for name, value, among in zip(_IDENTITY_FIELDS, identity, map(set, zip(*twins, strict=True)), strict=True):
        if len(among) > 1 and name not in unnamed:
            if name == "pool":
                value = f"{sum(n_rows for _, n_rows in value)} rows"
            elif name in ("teacher", "student") and value is not None:
                value = short_model(value, among - {None})
            shown.append(f"{name.replace('_', ' ')} {'none' if value is None else value}")
    return shown
