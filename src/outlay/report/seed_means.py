"""Seed means: points that differ in their seed alone, averaged, with the 95 % interval of the test score."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from outlay.engine.outputs import PARTS, RunOutputs
from outlay.engine.point import Point, PointRequest
from outlay.report.results import Results
from outlay.report.scores import Covers, mean_of_seeds

BYTES_PER_PARAMETER = 4
"""Bytes of a float32 weight, as models are saved."""


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
    dev: float | None = None
    """Mean dev score, 0-100; None unless every scored seed has one."""
    size_mb: float | None = None
    latency_ms: float | None = None

    @property
    def dev_words(self) -> str:
        """The mean dev score in words, and over how many seeds it is cross-validated; empty without a score."""
        if self.dev is None:
            return ""
        over = f" cross-validated over {self.n_ok} seeds" if self.request.dev == "folds" and self.n_ok > 1 else ""
        return f"{self.dev:.1f}{over}"

    @property
    def key(self) -> PointRequest:
        """The request with seed 0, equal for every seed."""
        return key_of_seeds(self.request)


def key_of_seeds(request: PointRequest) -> PointRequest:
    """Return a request without its seed, and without how many labels a rival may use, which depends on the seed."""
    return replace(request, seed=0, max_labels=None)


def size_mb(points: Iterable[Point]) -> float | None:
    """Return the mean size of the models of some points in MB, as float32 weights; None unless all sizes are known."""
    parameters = [point.result.student_parameters for point in points]
    mean = mean_of_known(parameters)
    return None if mean is None else mean * BYTES_PER_PARAMETER / 1e6


def latency_ms(points: Iterable[Point]) -> float | None:
    """Return the mean measured milliseconds a row of some points; None unless all are known."""
    return mean_of_known([point.circumstance.latency_ms for point in points])


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of some values; None where one is absent, or all are."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def means(results: Results) -> list[SeedMean]:
    """Return one seed mean per request without its seed, in the order of the grid.

    Intervals are computed by :func:`outlay.report.scores.mean_of_seeds`.
    """
    return [_mean(seeds, results.outputs) for seeds in by_seed(results.points)]


def by_seed(points: Iterable[Point]) -> list[tuple[Point, ...]]:
    """Group points that differ in their seed alone, by rising seed; groups in order of first appearance."""
    members: dict[PointRequest, list[Point]] = {}
    for point in points:
        members.setdefault(key_of_seeds(point.request), []).append(point)
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
        dev=mean_of_known([point.result.dev for point in scored]),
        size_mb=size_mb(scored),
        latency_ms=latency_ms(scored),
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
