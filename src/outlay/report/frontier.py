"""The frontier of charge and score: what is on it, what it ties with, what it beats, and how two frontiers compare."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from outlay.errors import DataError
from outlay.money.amounts import write_usd

BEST = 100.0
"""The highest score there is."""


@dataclass(frozen=True, slots=True)
class CostScore:
    """A named place in the charge x score plane: dollars and 0-100.

    ``low`` and ``high`` are the bounds of the score's interval; a bound that is absent is the score itself.

    Raises:
        DataError: a charge that is negative or not finite, or a score outside its own interval.
    """

    name: str
    charge_usd: float
    score: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.charge_usd < math.inf:
            raise DataError(
                f"{self.name} charges {write_usd(self.charge_usd)} dollars; a charge is a finite number from 0"
            )
        if not self.least <= self.score <= self.most:
            raise DataError(
                f"{self.name} scores {self.score} outside its interval {self.low} to {self.high}; give low <= score <= high"
            )

    @property
    def least(self) -> float:
        """The lowest score it may have."""
        return self.score if self.low is None else self.low

    @property
    def most(self) -> float:
        """The highest score it may have."""
        return self.score if self.high is None else self.high

    def dominates(self, other: CostScore) -> bool:
        """Whether this one is at least as cheap and at least as good, and better in one of the two, intervals aside."""
        no_worse = self.charge_usd <= other.charge_usd and self.score >= other.score
        return no_worse and (self.charge_usd, self.score) != (other.charge_usd, other.score)


@dataclass(frozen=True, slots=True)
class Frontier:
    """Spots told apart by what is at least as cheap as they are.

    ``front``: nothing as cheap scores as much; both charge and score rise along it.
    ``dominated``: something as cheap has an interval that lies above this one's (or another test says so).
    ``tied``: the others. Something as cheap scores as much or more, but the intervals meet: which of them belongs on the
    front cannot be told. Intervals of one seed speak of these models on these test rows, and so do ties among them.
    All three stand by rising charge.
    """

    front: tuple[CostScore, ...]
    tied: tuple[CostScore, ...]
    dominated: tuple[CostScore, ...]

    def holds(self, spot: CostScore) -> bool:
        """Whether the spot, or one that agrees with it in charge and score, is on the front."""
        return any((each.charge_usd, each.score) == (spot.charge_usd, spot.score) for each in self.front)

    def score_at(self, charge_usd: float) -> float | None:
        """The score that a charge buys: linear in log charge between neighbours on the front, flat right of the dearest.

        Kang et al. 2023, Figure 2, approximates its frontier so, on a logarithmic axis of cost. A free spot has no place on
        that axis, and nothing rises from it: it is flat up to the next one.

        Returns:
            None left of the cheapest spot, and where there is none.

        Raises:
            DataError: the charge is not a finite number above 0.
        """
        if not 0 < charge_usd < math.inf:
            raise DataError(
                f"a charge of {write_usd(charge_usd)} dollars has no place on a logarithmic axis; ask above $0"
            )
        after = bisect_right(self.front, charge_usd, key=lambda spot: spot.charge_usd)
        if after == 0:
            return None
        left = self.front[after - 1]
        if after == len(self.front) or left.charge_usd == 0:
            return left.score
        right = self.front[after]
        share = math.log(charge_usd / left.charge_usd) / math.log(right.charge_usd / left.charge_usd)
        return left.score + share * (right.score - left.score)

    def hypervolume(self, cheapest_usd: float, dearest_usd: float, worst: float = 0.0) -> float:
        """The share of the rectangle [log cheapest, log dearest] x [worst, 100] that the front dominates, 0 to 1.

        The hypervolume of Zitzler & Thiele 1999 in the plane of log charge and score: a place counts where a spot is at
        least as cheap and scores at least as much, so it is the area under the front's steps, never under a line between
        two spots. Only ratios of charges matter. Spots left of the rectangle count from its edge, spots right of it or below it
        not at all.

        Raises:
            DataError: not 0 < cheapest < dearest, or not worst < 100.
        """
        if not 0 < cheapest_usd < dearest_usd < math.inf:
            raise DataError(
                f"the charges from {write_usd(cheapest_usd)} to {write_usd(dearest_usd)} dollars span no logarithmic "
                "axis; give 0 < cheapest < dearest"
            )
        if not -math.inf < worst < BEST:
            raise DataError(f"the worst score is {worst}; it must be below {BEST:g}")
        width, height = math.log(dearest_usd / cheapest_usd), BEST - worst
        area, reached = 0.0, worst
        for spot in self.front:
            if spot.charge_usd >= dearest_usd:
                break
            score = min(BEST, max(reached, spot.score))
            area += (score - reached) * math.log(dearest_usd / max(spot.charge_usd, cheapest_usd))
            reached = score
        return min(1.0, area / (width * height))


def frontier(spots: Sequence[CostScore], *, is_tie: Callable[[CostScore, CostScore], bool] | None = None) -> Frontier:
    """Sort spots into those on the front, those tied with a better one, and those dominated by it.

    The front goes by the scores alone; of spots that agree in charge and score the first given stands on it and the others
    are tied. A spot off the front is dominated where some spot that is at least as cheap has a higher score that does not tie
    with it: by ``is_tie(better, spot)``, such as a paired test, where it is given; otherwise where the two intervals have
    no score in common. So without intervals only equal scores tie.

    Takes O(n log n); with ``is_tie`` each spot off the front is compared with the better ones that are no dearer, best
    first, until one does not tie.

    Args:
        spots: in any order.
        is_tie: whether the scores of two spots cannot be told apart; it is asked only where the first scores more.
    """
    front: list[CostScore] = []
    tied: list[CostScore] = []
    dominated: list[CostScore] = []
    walked: list[CostScore] = []
    highest_least = -math.inf
    for spot in sorted(spots, key=lambda each: (each.charge_usd, -each.score)):
        if not front or spot.score > front[-1].score:
            front.append(spot)
        elif is_tie is None:
            (dominated if highest_least > spot.most else tied).append(spot)
        else:
            beaten = any(not is_tie(better, spot) for better in _better(walked, spot))
            (dominated if beaten else tied).append(spot)
        highest_least = max(highest_least, spot.least)
        if is_tie is not None:
            insort(walked, spot, key=lambda each: each.score)
    return Frontier(tuple(front), tuple(tied), tuple(dominated))


def _better(by_score: Sequence[CostScore], spot: CostScore) -> Iterator[CostScore]:
    """Those of spots by rising score that score more than this one, best first."""
    for i in range(len(by_score) - 1, -1, -1):
        if by_score[i].score <= spot.score:
            return
        yield by_score[i]


@dataclass(frozen=True, slots=True)
class Average:
    """What one charge buys on several tasks.

    ``score`` is the mean over all tasks, None where ``absent`` names tasks that have nothing as cheap: a mean over the rest
    would compare other tasks from charge to charge. ``scores`` holds what each of the rest reaches, by task.
    """

    charge_usd: float
    score: float | None
    scores: Mapping[str, float]
    absent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Averaged:
    """Frontiers of several tasks at equal charges.

    ``hypervolumes``: each task's share of the rectangle from the lowest to the highest of the charges; ``hypervolume``: their
    mean. Empty and None where fewer than two charges span no rectangle. A task that has nothing cheap enough has a low share,
    so none is left out.
    """

    places: tuple[Average, ...]
    hypervolumes: Mapping[str, float]
    hypervolume: float | None


def averaged(by_task: Mapping[str, Frontier], charges_usd: Sequence[float], *, worst: float = 0.0) -> Averaged:
    """The mean over tasks of what equal charges buy, and of the hypervolumes over the span of these charges.

    Args:
        by_task: the frontier of each task.
        charges_usd: above 0, in any order; the result is by rising charge, each once.
        worst: the lower edge of the hypervolume's rectangle, a score.

    Raises:
        DataError: no tasks, no charges, or a charge that is not a finite number above 0.
    """
    if not by_task or not charges_usd:
        raise DataError(
            f"{len(by_task)} frontiers at {len(charges_usd)} charges have no mean; give at least one of each"
        )
    charges = sorted(set(charges_usd))
    volumes: dict[str, float] = {}
    if len(charges) > 1:
        volumes = {task: each.hypervolume(charges[0], charges[-1], worst) for task, each in by_task.items()}
    places = tuple(_average(by_task, charge_usd) for charge_usd in charges)
    return Averaged(places, volumes, fmean(volumes.values()) if volumes else None)


def _average(by_task: Mapping[str, Frontier], charge_usd: float) -> Average:
    reached = {task: each.score_at(charge_usd) for task, each in by_task.items()}
    scores = {task: score for task, score in reached.items() if score is not None}
    absent = tuple(task for task, score in reached.items() if score is None)
    return Average(charge_usd, None if absent else fmean(scores.values()), scores, absent)
