"""Groups of points: the seeds of one strategy variant at one budget, under a distinct label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.engine.point import Point


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
    "machine",
    "clock",
    "price_book",
    "pool",
    "dev",
)


def group(points: Iterable[Point], *, unnamed: Sequence[str] = ()) -> list[Group]:
    """Group points by request without its seed, sorted by budget, then in the order in which the variants first appear.

    Where two groups share variant and budget, their labels name the fields that differ
    ("distill, student cut:2" and "distill, student cut:3"), except fields in ``unnamed``.
    """
    members: dict[tuple[str, float, tuple[Any, ...]], list[Point]] = {}
    for point in points:
        request = point.request
        identity = tuple(getattr(request, name) for name in _IDENTITY_FIELDS)
        members.setdefault((request.variant, request.budget_usd, identity), []).append(point)
    twins: dict[tuple[str, float], list[tuple[Any, ...]]] = {}
    for variant, budget_usd, identity in members:
        twins.setdefault((variant, budget_usd), []).append(identity)
    groups = [
        Group(
            label=", ".join([variant, *_differences(identity, twins[variant, budget_usd], unnamed)]),
            budget_usd=budget_usd,
            points=tuple(sorted(seeds, key=lambda point: point.request.seed)),
        )
        for (variant, budget_usd, identity), seeds in members.items()
    ]
    return sorted(groups, key=lambda each: each.budget_usd)


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
            shown.append(f"{name} {'none' if value is None else value}")
    return shown
