"""The Pareto frontier of charge and score: members, ties and dominated candidates, hypervolume, and means over tasks."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from outlay.errors import DataError
from outlay.money.amounts import write_usd

BEST = 100.0
"""The highest possible score."""


@dataclass(frozen=True, slots=True)
class CostScore:
    """A named candidate for the frontier: its charge in dollars and its score, 0-100.

    ``low`` and ``high`` are the bounds of the interval of the score; an absent bound is the score itself.

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
        """Lower bound of the score."""
        return self.score if self.low is None else self.low

    @property
    def most(self) -> float:
        """Upper bound of the score."""
        return self.score if self.high is None else self.high

    def dominates(self, other: CostScore) -> bool:
        """Return True where this candidate is as cheap and as good as another, and better in one; intervals are ignored."""
        no_worse = self.charge_usd <= other.charge_usd and self.score >= other.score
        return no_worse and (self.charge_usd, self.score) != (other.charge_usd, other.score)


@dataclass(frozen=True, slots=True)
class Frontier:
    """Candidates sorted into the Pareto frontier, ties with it, and dominated ones, each by rising charge.

    ``front``: no other candidate is as cheap and scores as much; charge and score rise along it.
    ``dominated``: a candidate that is as cheap has an interval wholly above (or a given test finds it better).
    ``tied``: the others. A candidate that is as cheap scores as much or more, but the intervals overlap, so that either may
    belong on the frontier. Intervals of one seed hold for these models on these test rows, and so do ties between them.
    """

    front: tuple[CostScore, ...]
    tied: tuple[CostScore, ...]
    dominated: tuple[CostScore, ...]

    def holds(self, candidate: CostScore) -> bool:
        """Return True where the frontier has a candidate with the same charge and score."""
        return any((each.charge_usd, each.score) == (candidate.charge_usd, candidate.score) for each in self.front)

    def score_at(self, charge_usd: float) -> float | None:
        """Return the score at a charge: linear in log charge between neighbours on the frontier, constant beyond the dearest.

        Kang et al. 2023, Figure 2, approximate their frontier in this way, on a logarithmic cost axis. A free candidate has no
        place on that axis: its score holds up to the next candidate.

        Returns:
            None below the charge of the cheapest candidate, and without candidates.

        Raises:
            DataError: the charge is not a finite number above 0.
        """
        if not 0 < charge_usd < math.inf:
            raise DataError(
                f"a charge of {write_usd(charge_usd)} dollars has no place on a logarithmic axis; ask above $0"
            )
        after = bisect_right(self.front, charge_usd, key=lambda candidate: candidate.charge_usd)
        if after == 0:
            return None
        left = self.front[after - 1]
        if after == len(self.front) or left.charge_usd == 0:
            return left.score
        right = self.front[after]
        share = math.log(charge_usd / left.charge_usd) / math.log(right.charge_usd / left.charge_usd)
        return left.score + share * (right.score - left.score)

    def hypervolume(self, cheapest_usd: float, dearest_usd: float, worst: float = 0.0) -> float:
        """Return the share (0 to 1) of the rectangle [log cheapest, log dearest] x [worst, 100] that the frontier dominates.

        The hypervolume of Zitzler & Thiele 1999 in the plane of log charge and score: the area of all (charge, score) that
        some candidate matches or beats in both, thus under the steps of the frontier, never under a line between candidates.
        Only ratios of charges matter. Candidates left of the rectangle count from its edge, those right of it or below it
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
        for candidate in self.front:
            if candidate.charge_usd >= dearest_usd:
                break
            score = min(BEST, max(reached, candidate.score))
            area += (score - reached) * math.log(dearest_usd / max(candidate.charge_usd, cheapest_usd))
            reached = score
        return min(1.0, area / (width * height))


def frontier(
    candidates: Sequence[CostScore], *, is_tie: Callable[[CostScore, CostScore], bool] | None = None
) -> Frontier:
    """Sort candidates into the Pareto frontier, those tied with a better one, and those dominated.

    The frontier depends on the scores alone; of candidates with equal charge and score the first given is on it and the others
    are tied. A candidate off the frontier is dominated where another is at least as cheap and has a higher score that is no
    tie: by ``is_tie(better, candidate)``, such as a paired test, where it is given; otherwise where the two intervals do not
    overlap. So without intervals only equal scores tie.

    Takes O(n log n); with ``is_tie`` each candidate off the frontier is compared with the better ones that are no dearer, best
    first, until one does not tie.

    Args:
        candidates: in any order.
        is_tie: returns True where the scores of two candidates do not differ; called only where the first scores more.
    """
    front: list[CostScore] = []
    tied: list[CostScore] = []
    dominated: list[CostScore] = []
    walked: list[CostScore] = []
    highest_least = -math.inf
    for candidate in sorted(candidates, key=lambda each: (each.charge_usd, -each.score)):
        if not front or candidate.score > front[-1].score:
            front.append(candidate)
        elif is_tie is None:
            (dominated if highest_least > candidate.most else tied).append(candidate)
        else:
            beaten = any(not is_tie(better, candidate) for better in _better(walked, candidate))
            (dominated if beaten else tied).append(candidate)
        highest_least = max(highest_least, candidate.least)
        if is_tie is not None:
            insort(walked, candidate, key=lambda each: each.score)
    return Frontier(tuple(front), tuple(tied), tuple(dominated))


def _better(by_score: Sequence[CostScore], candidate: CostScore) -> Iterator[CostScore]:
    """Yield the candidates with a higher score, best first, from a list by rising score."""
    for i in range(len(by_score) - 1, -1, -1):
        if by_score[i].score <= candidate.score:
            return
        yield by_score[i]


@dataclass(frozen=True, slots=True)
class MeanAtCharge:
    """The mean score over tasks at one charge.

    ``score`` is the mean over all tasks, None where ``absent`` names tasks without a candidate as cheap: a mean over the other
    tasks would be over different tasks from charge to charge. ``scores`` holds the score of each other task.
    """

    charge_usd: float
    score: float | None
    scores: Mapping[str, float]
    absent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MeanFrontier:
    """The mean over tasks of their frontiers, at equal charges.

    ``hypervolumes``: the hypervolume of each task over the rectangle from the lowest to the highest of the charges;
    ``hypervolume``: their mean. Empty and None with fewer than two charges, which span no rectangle. A task without cheap
    candidates has a low hypervolume, so no task is left out.
    """

    at_charges: tuple[MeanAtCharge, ...]
    hypervolumes: Mapping[str, float]
    hypervolume: float | None


def mean_frontier(by_task: Mapping[str, Frontier], charges_usd: Sequence[float], *, worst: float = 0.0) -> MeanFrontier:
    """Return the mean over tasks of the frontier at equal charges, and of the hypervolumes over the span of these charges.

    Args:
        by_task: the frontier of each task.
        charges_usd: dollars above 0, in any order; the result has each once, by rising charge.
        worst: the score at the lower edge of the rectangle of the hypervolume.

    Raises:
        DataError: there are no tasks or no charges, or a charge is not a finite number above 0.
    """
    if not by_task or not charges_usd:
        raise DataError(
            f"{len(by_task)} frontiers at {len(charges_usd)} charges have no mean; give at least one of each"
        )
    charges = sorted(set(charges_usd))
    volumes: dict[str, float] = {}
    if len(charges) > 1:
        volumes = {task: each.hypervolume(charges[0], charges[-1], worst) for task, each in by_task.items()}
    at_charges = tuple(_average(by_task, charge_usd) for charge_usd in charges)
    return MeanFrontier(at_charges, volumes, fmean(volumes.values()) if volumes else None)


def _average(by_task: Mapping[str, Frontier], charge_usd: float) -> MeanAtCharge:
    reached = {task: each.score_at(charge_usd) for task, each in by_task.items()}
    scores = {task: score for task, score in reached.items() if score is not None}
    absent = tuple(task for task, score in reached.items() if score is None)
    return MeanAtCharge(charge_usd, None if absent else fmean(scores.values()), scores, absent)
