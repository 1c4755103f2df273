"""The marks of a report: points that differ in their seed alone, averaged, each with its 95 % interval."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from outlay.engine.outputs import PARTS, RunOutputs
from outlay.engine.point import Point, PointRequest
from outlay.report.results import Results
from outlay.report.scores import Covers, mean_of_seeds

_KEY_FIELDS = tuple(field.name for field in fields(PointRequest) if field.name != "seed")


@dataclass(frozen=True, slots=True)
class SeedMean:
    """One request over its seeds. Averages are over the seeds that have a test score, None where none has one.

    ``value``, ``low`` and ``high`` are test scores, 0-100; without an interval both bounds are None.
    """

    request: PointRequest
    """Of the first seed."""
    ids: tuple[str, ...]
    """Of every point, by rising seed."""
    runs: tuple[str, ...]
    """Run ids of the points that have left something."""
    n_ok: int
    n_seeds: int
    value: float | None
    low: float | None
    high: float | None
    covers: Covers | None
    """Whom the interval speaks of."""
    dev: float | None
    teacher_dev: float | None
    charge_usd: float | None
    charges_usd: Mapping[str, float] | None
    """By part (`outlay.engine.outputs.PARTS`); None unless every seed that is ok tells its parts."""
    n_labels: float | None
    n_llm_labels: float | None
    n_pool: float | None
    reason: str | None
    """Why seeds have no score: their distinct reasons."""

    @property
    def key(self) -> tuple[object, ...]:
        """The request without its seed."""
        return _key(self.request)


def means(results: Results) -> list[SeedMean]:
    """One mean per request without its seed, in the order of the grid.

    Where an interval comes from: :func:`outlay.report.scores.mean_of_seeds`.
    """
    return [_mean(seeds, results.left) for seeds in by_seed(results.points)]


def by_seed(points: Iterable[Point]) -> list[tuple[Point, ...]]:
    """The points that differ in their seed alone, by rising seed; in the order in which the requests first appear."""
    members: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        members.setdefault(_key(point.request), []).append(point)
    return [tuple(sorted(seeds, key=lambda point: point.request.seed)) for seeds in members.values()]


def _key(request: PointRequest) -> tuple[object, ...]:
    return tuple(getattr(request, name) for name in _KEY_FIELDS)


def _mean(seeds: Sequence[Point], left_by_id: Mapping[str, RunOutputs]) -> SeedMean:
    ids = [point.id for point in seeds]
    left = [left_by_id.get(each) for each in ids]
    ok = [(point, after) for point, after in zip(seeds, left, strict=True) if point.is_ok]
    scored = [point for point, _ in ok]
    afters = [after for _, after in ok]
    score = mean_of_seeds(scored, left_by_id)
    low, high = (None, None) if score is None or score.bounds is None else score.bounds
    devs = [point.result.dev for point in scored if point.result.dev is not None]
    reasons = dict.fromkeys(point.result.reason for point in seeds if point.result.reason is not None)
    return SeedMean(
        request=seeds[0].request,
        ids=tuple(ids),
        runs=tuple(after.run for after in left if after is not None),
        n_ok=len(ok),
        n_seeds=len(seeds),
        value=None if score is None else score.mean,
        low=low,
        high=high,
        covers=None if score is None else score.covers,
        dev=_average(devs),
        teacher_dev=_average([a.teacher_dev for a in afters if a is not None and a.teacher_dev is not None]),
        charge_usd=_average([point.result.charge_usd for point in scored]),
        charges_usd=_parts(afters),
        n_labels=_average([point.result.n_labels for point in scored]),
        n_llm_labels=_average([point.result.n_llm_labels for point in scored]),
        n_pool=_average([point.result.n_pool for point in scored]),
        reason="; ".join(reasons) or None,
    )


def _average(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _parts(afters: Sequence[RunOutputs | None]) -> dict[str, float] | None:
    told = [after.charges_usd for after in afters if after is not None and after.charges_usd is not None]
    if not told or len(told) != len(afters):
        return None
    return {part: statistics.fmean(charges.get(part, 0.0) for charges in told) for part in PARTS}
