"""The Pareto frontier of charge and score: members, ties and dominated candidates, hypervolume, and the charge of a score."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Frontier:
    """Candidates sorted into the Pareto frontier, ties with it, and dominated ones, each by rising charge.

    ``front``: no other candidate is as cheap and scores as much; charge and score rise along it.
    ``dominated``: a candidate that is as cheap has an interval wholly above.
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

    def hypervolume(self, cheapest_usd: float, dearest_usd: float) -> float:
        """Return the share (0 to 1) of the rectangle [log cheapest, log dearest] x [0, 100] that the frontier dominates.

        The hypervolume of Zitzler & Thiele 1999 in the plane of log charge and score: the area of all (charge, score) that
        some candidate matches or beats in both, thus under the steps of the frontier, never under a line between candidates.
        Only ratios of charges matter. Candidates left of the rectangle count from its edge, those right of it or below it
        not at all.

        Raises:
            DataError: not 0 < cheapest < dearest.
        """
        if not 0 < cheapest_usd < dearest_usd < math.inf:
            raise DataError(
                f"the charges from {write_usd(cheapest_usd)} to {write_usd(dearest_usd)} dollars span no logarithmic "
                "axis; give 0 < cheapest < dearest"
            )
        area, reached = 0.0, 0.0
        for candidate in self.front:
            if candidate.charge_usd >= dearest_usd:
                break
            score = min(BEST, max(reached, candidate.score))
            area += (score - reached) * math.log(dearest_usd / max(candidate.charge_usd, cheapest_usd))
            reached = score
        return min(1.0, area / (BEST * math.log(dearest_usd / cheapest_usd)))


def frontier(candidates: Sequence[CostScore]) -> Frontier:
    """Sort candidates, given in any order, into the Pareto frontier, those tied with a better one, and those dominated.

    The frontier depends on the scores alone; of candidates with equal charge and score the first given is on it and the others
    are tied. A candidate off the frontier is dominated where another is at least as cheap and has a higher score, and the two
    intervals do not overlap. So without intervals only equal scores tie. Takes O(n log n).
    """
    front: list[CostScore] = []
    tied: list[CostScore] = []
    dominated: list[CostScore] = []
    highest_least = -math.inf
    for candidate in sorted(candidates, key=lambda each: (each.charge_usd, -each.score)):
        if not front or candidate.score > front[-1].score:
            front.append(candidate)
        else:
            (dominated if highest_least > candidate.most else tied).append(candidate)
        highest_least = max(highest_least, candidate.least)
    return Frontier(tuple(front), tuple(tied), tuple(dominated))


def usd_to_reach(score: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """Return the least dollars at which a curve reaches a score, interpolated linearly in log dollars.

    Args:
        score: 0-100.
        curve: dollars (> 0) and score of each point, by rising dollars.

    Returns:
        The dollars of the cheapest point where its score is enough already; None where the curve never reaches the score.
    """
    before: tuple[float, float] | None = None
    for usd, reached in curve:
        if reached >= score:
            if before is None:
                return usd
            share = (score - before[1]) / (reached - before[1])
            return math.exp(math.log(before[0]) + share * (math.log(usd) - math.log(before[0])))
        before = (usd, reached)
    return None
