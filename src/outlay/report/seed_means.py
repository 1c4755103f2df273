"""Seed means: points that differ in their seed alone, averaged, with the 95 % interval of the test score."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from outlay.engine.outputs import PARTS, RunOutputs
from outlay.engine.point import Point, PointRequest
from outlay.report.results import Results
from outlay.report.scores import Covers, mean_of_seeds


@dataclass(frozen=True, slots=True)
class SeedMean:
    """The averages of a request over the seeds that have a test score; None where no seed has one.

    ``value``, ``low`` and ``high`` are test scores, 0-100; without an interval both bounds are None.
    """

    request: PointRequest
    """Request of the first seed."""
    ids: tuple[str, ...]
    """Ids of the points, by rising seed."""
    n_ok: int
    n_seeds: int
    value: float | None
    low: float | None
    high: float | None
    covers: Covers | None
    """Population of the interval."""
    charge_usd: float | None
    charges_usd: Mapping[str, float] | None
    """Charge by part (`outlay.engine.outputs.PARTS`); None unless the parts of every scored seed are known."""
    n_labels: float | None
    n_pool: float | None

    @property
    def key(self) -> PointRequest:
        """The request with seed 0, equal for every seed."""
        return replace(self.request, seed=0)


def means(results: Results) -> list[SeedMean]:
    """Return one seed mean per request without its seed, in the order of the grid.

    Intervals are computed by :func:`outlay.report.scores.mean_of_seeds`.
    """
    return [_mean(seeds, results.outputs) for seeds in by_seed(results.points)]


def by_seed(points: Iterable[Point]) -> list[tuple[Point, ...]]:
    """Group points that differ in their seed alone, by rising seed; groups in order of first appearance."""
    members: dict[PointRequest, list[Point]] = {}
    for point in points:
        members.setdefault(replace(point.request, seed=0), []).append(point)
    return [tuple(sorted(seeds, key=lambda point: point.request.seed)) for seeds in members.values()]


def _mean(seeds: Sequence[Point], outputs: Mapping[str, RunOutputs]) -> SeedMean:
    scored = [point for point in seeds if point.is_ok]
    score = mean_of_seeds(scored, outputs)
    return SeedMean(
        request=seeds[0].request,
        ids=tuple(point.id for point in seeds),
        n_ok=len(scored),
        n_seeds=len(seeds),
        value=score.value,
        low=score.low,
        high=score.high,
        covers=score.covers,
        charge_usd=mean_of(point.result.charge_usd for point in scored),
        charges_usd=_parts([outputs.get(point.id) for point in scored]),
        n_labels=mean_of(point.result.n_labels for point in scored),
        n_pool=mean_of(point.result.n_pool for point in scored),
    )


def mean_of(values: Iterable[float]) -> float | None:
    """Return the mean of some values; None of no values."""
    numbers = list(values)
    return statistics.fmean(numbers) if numbers else None


def _parts(outputs: Sequence[RunOutputs | None]) -> dict[str, float] | None:
    known = [each.charges_usd for each in outputs if each is not None and each.charges_usd is not None]
    if not known or len(known) != len(outputs):
        return None
    return {part: statistics.fmean(charges.get(part, 0.0) for charges in known) for part in PARTS}
