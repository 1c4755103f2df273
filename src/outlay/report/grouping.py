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
    members: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        telling = tuple(getattr(point.request, name) for name in _IDENTITY_FIELDS)
        members.setdefault((point.request.variant, point.request.budget_usd, *telling), []).append(point)
    values: dict[tuple[str, float], list[set[Any]]] = {}
    for key in members:
        of_twins = values.setdefault((key[0], key[1]), [set() for _ in _IDENTITY_FIELDS])
        for seen, value in zip(of_twins, key[2:], strict=True):
            seen.add(value)
    groups = [
        Group(
            label=", ".join([key[0], *_differences(key[2:], values[key[0], key[1]], unnamed)]),
            budget_usd=key[1],
            points=tuple(sorted(seeds, key=lambda point: point.request.seed)),
        )
        for key, seeds in members.items()
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


def _differences(telling: tuple[Any, ...], values: Sequence[set[Any]], unnamed: Sequence[str]) -> list[str]:
    """Return the text of each field that differs among groups of one variant and budget, given the values of each field."""
    shown = []
    for name, value, among in zip(_IDENTITY_FIELDS, telling, values, strict=True):
        if len(among) > 1 and name not in unnamed:
            if name == "pool":
                value = f"{sum(n_rows for _, n_rows in value)} rows"
            elif name in ("teacher", "student") and value is not None:
                value = short_model(value, {ref for ref in among if ref is not None})
            shown.append(f"{name} {'none' if value is None else value}")
    return shown
