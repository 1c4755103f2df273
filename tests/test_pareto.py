"""Frontiers against their definitions, written as loops over all pairs, and areas against a count of random places."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import DataError
from outlay.report.frontier import CostScore, Frontier, frontier, usd_to_reach


@st.composite
def drawn_candidate(draw: st.DrawFn, *, free: bool = True) -> CostScore:
    """A candidate with coarse values, so that many agree; with an interval, one bound of it, or none."""
    charge, score = draw(st.integers(0 if free else 1, 6)), draw(st.integers(0, 8))
    low, high = draw(st.none() | st.integers(0, 3)), draw(st.none() | st.integers(0, 3))
    return CostScore(
        draw(st.sampled_from("abc")),
        float(charge),
        10.0 * score,
        None if low is None else 10.0 * (score - low),
        None if high is None else 10.0 * (score + high),
    )


CANDIDATES = st.lists(drawn_candidate(), max_size=25)
PAID = st.lists(drawn_candidate(free=False), max_size=25)


def plain(candidates: list[CostScore]) -> list[CostScore]:
    return [CostScore(candidate.name, candidate.charge_usd, candidate.score) for candidate in candidates]


def beyond_doubt(better: CostScore, candidate: CostScore) -> bool:
    """By intervals: the least the one may have is above the most the other may have."""
    low = better.score if better.low is None else better.low
    return low > (candidate.score if candidate.high is None else candidate.high)


def by_definition(candidates: list[CostScore], is_beaten: Callable[[CostScore, CostScore], bool]) -> Frontier:
    """Each against each, by index, so that candidates that agree in everything stay apart."""
    front, tied, dominated = [], [], []
    for i, candidate in enumerate(candidates):
        others = [
            (j, other) for j, other in enumerate(candidates) if j != i and other.charge_usd <= candidate.charge_usd
        ]
        if any(other.score > candidate.score and is_beaten(other, candidate) for _, other in others):
            dominated.append(candidate)
        elif any(
            other.score > candidate.score
            or (other.score == candidate.score and (other.charge_usd < candidate.charge_usd or j < i))
            for j, other in others
        ):
            tied.append(candidate)
        else:
            front.append(candidate)
    return Frontier(tuple(front), tuple(tied), tuple(dominated))


def assert_same(found: Frontier, expected: Frontier) -> None:
    assert found.front == tuple(sorted(expected.front, key=lambda candidate: candidate.charge_usd))
    for part in ("tied", "dominated"):
        assert sorted(getattr(found, part), key=repr) == sorted(getattr(expected, part), key=repr)
        charges = [candidate.charge_usd for candidate in getattr(found, part)]
        assert charges == sorted(charges)


@given(CANDIDATES)
def test_the_frontier_against_its_definition(candidates: list[CostScore]) -> None:
    assert_same(frontier(candidates), by_definition(candidates, beyond_doubt))


@given(CANDIDATES)
def test_without_intervals_only_equal_scores_tie(candidates: list[CostScore]) -> None:
    exact = plain(candidates)
    found = frontier(exact)
    assert_same(found, by_definition(exact, lambda better, candidate: better.score > candidate.score))
    best = {
        candidate.charge_usd: max(s.score for s in exact if s.charge_usd <= candidate.charge_usd) for candidate in exact
    }
    assert all(candidate.score == best[candidate.charge_usd] for candidate in (*found.front, *found.tied))
    assert all(candidate.score < best[candidate.charge_usd] for candidate in found.dominated)


def test_equal_candidates_and_intervals_that_touch() -> None:
    a, b, c = CostScore("a", 100.0, 80.0), CostScore("b", 100.0, 80.0), CostScore("c", 100.000001, 80.0)
    assert frontier([c, a, b]) == Frontier((a,), (b, c), ())
    wide, near, far = (
        CostScore("wide", 1.0, 80.0, 78.0, 82.0),
        CostScore("near", 2.0, 77.0, 76.0, 78.0),
        CostScore("far", 2.0, 77.0),
    )
    assert frontier([wide, near, far]) == Frontier((wide,), (near,), (far,))
    # A lower score that is surer beats beyond doubt what the best one, less sure, does not.
    unsure, sure = CostScore("unsure", 1.0, 90.0, 60.0, 95.0), CostScore("sure", 1.0, 85.0, 84.0, 86.0)
    poor = CostScore("poor", 3.0, 70.0, 65.0, 75.0)
    assert frontier([poor, sure, unsure]) == Frontier((unsure,), (sure,), (poor,))
    assert frontier([poor, unsure]) == Frontier((unsure,), (poor,), ())


def test_the_front_holds_what_agrees_with_one_of_its_candidates() -> None:
    a, b, c, d = CostScore("a", 1.0, 5.0), CostScore("b", 1.0, 5.0), CostScore("c", 2.0, 5.0), CostScore("d", 1.0, 4.0)
    found = frontier([a, b, c, d])
    assert [found.holds(each) for each in (a, b, c, d)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        ((-1.0, 50.0), r"-1\.0"),
        ((math.inf, 50.0), "inf"),
        ((math.nan, 50.0), "nan"),
        ((1.0, 50.0, 51.0, 60.0), r"50\.0.*51\.0 to 60\.0"),
        ((1.0, 50.0, None, 49.0), r"50\.0.*None to 49\.0"),
        ((1.0, math.nan), "nan"),
    ],
)
def test_what_is_no_candidate(candidate: tuple[float, ...], says: str) -> None:
    with pytest.raises(DataError, match=says):
        CostScore("x", *candidate)


def test_every_one_of_ten_thousand_candidates_is_sorted_once() -> None:
    rng = random.Random(1)
    candidates = [
        CostScore(str(i), 1 + 99 * rng.random(), s := 60 * rng.random() + 20, s - 2, s + 2) for i in range(10_000)
    ]
    found = frontier(candidates)
    assert sum(map(len, (found.front, found.tied, found.dominated))) == 10_000


def test_scores_between_candidates_lie_on_a_line_over_log_charge() -> None:
    found = frontier(
        [
            CostScore("a", 10.0, 50.0),
            CostScore("b", 1000.0, 70.0),
            CostScore("c", 100.0, 40.0),
            CostScore("d", 4000.0, 71.0),
        ]
    )
    assert found.score_at(9.99) is None
    assert found.score_at(10.0) == 50.0
    assert found.score_at(100.0) == pytest.approx(60.0)
    assert found.score_at(1000.0) == pytest.approx(70.0)
    assert found.score_at(2000.0) == pytest.approx(70.5)
    assert found.score_at(1e9) == 71.0
    assert frontier([]).score_at(1.0) is None


def test_nothing_rises_from_a_free_candidate() -> None:
    found = frontier([CostScore("free", 0.0, 50.0), CostScore("b", 10.0, 70.0)])
    assert [found.score_at(charge) for charge in (1e-9, 9.99, 10.0)] == [50.0, 50.0, 70.0]
    assert found.hypervolume(1.0, 100.0) == pytest.approx((50 + 70) / 200)


@given(PAID, st.floats(0.5, 8))
def test_the_line_against_numpy(candidates: list[CostScore], charge: float) -> None:
    import numpy as np

    found = frontier(candidates)
    score = found.score_at(charge)
    if not found.front or charge < found.front[0].charge_usd:
        assert score is None
    else:
        places = [math.log(candidate.charge_usd) for candidate in found.front]
        assert score == pytest.approx(
            np.interp(math.log(charge), places, [candidate.score for candidate in found.front])
        )


@pytest.mark.parametrize("charge", [0.0, -1.0, math.inf, math.nan])
def test_charges_that_have_no_logarithm(charge: float) -> None:
    found = frontier([CostScore("a", 1.0, 50.0)])
    with pytest.raises(DataError, match=r"above \$0"):
        found.score_at(charge)
    with pytest.raises(DataError, match="cheapest < dearest"):
        found.hypervolume(charge, 10.0)
    with pytest.raises(DataError, match="cheapest < dearest"):
        found.hypervolume(2.0, min(charge, 2.0))


@pytest.mark.parametrize("seed", range(5))
def test_the_hypervolume_against_a_count_of_random_places(seed: int) -> None:
    rng = random.Random(seed)
    candidates = [CostScore(str(i), math.exp(rng.uniform(-1, 6)), rng.uniform(10, 100)) for i in range(11)]
    cheapest, dearest = 1.3, 170.0
    n_under, n_places = 0, 20_000
    for _ in range(n_places):
        charge = math.exp(rng.uniform(math.log(cheapest), math.log(dearest)))
        score = rng.uniform(0, 100)
        n_under += any(candidate.charge_usd <= charge and candidate.score >= score for candidate in candidates)
    # Four standard errors of a count at most.
    assert frontier(candidates).hypervolume(cheapest, dearest) == pytest.approx(n_under / n_places, abs=0.015)


def test_the_hypervolume_by_hand() -> None:
    found = frontier([CostScore("a", 10.0, 50.0), CostScore("b", 100.0, 80.0)])
    assert found.hypervolume(10.0, 1000.0) == pytest.approx(0.65)
    assert found.hypervolume(1.0, 1000.0) == pytest.approx((50 + 80) / 300)
    assert found.hypervolume(100.0, 1000.0) == pytest.approx(0.8)
    assert found.hypervolume(1.0, 10.0) == 0
    assert frontier([]).hypervolume(1.0, 2.0) == 0
    assert frontier([CostScore("smoothed", 1.0, 100.1)]).hypervolume(1.0, 2.0) == 1


@given(CANDIDATES, drawn_candidate(), st.floats(-20, 20))
def test_more_candidates_never_lower_the_hypervolume(
    candidates: list[CostScore], more: CostScore, log_scale: float
) -> None:
    def volume(chosen: list[CostScore], scale: float = 1.0) -> float:
        return frontier(chosen).hypervolume(1.5 * scale, 5.5 * scale)

    whole = volume(candidates)
    assert 0 <= whole <= 1
    assert volume([*candidates, more]) >= whole - 1e-12
    found = frontier(candidates)
    assert volume(list(found.front)) == whole == volume([*found.front, *found.dominated])
    scale = math.exp(log_scale)
    scaled = [CostScore(candidate.name, candidate.charge_usd * scale, candidate.score) for candidate in candidates]
    assert volume(scaled, scale) == pytest.approx(whole, abs=1e-12)


CURVE = [(100.0, 60.0), (1000.0, 70.0), (10_000.0, 75.0)]
DIP = [(100.0, 60.0), (200.0, 50.0), (400.0, 70.0)]


@pytest.mark.parametrize(
    ("curve", "score", "usd"),
    [
        (CURVE, 45.0, 100.0),
        (CURVE, 60.0, 100.0),
        (CURVE, 65.0, 10**2.5),
        (CURVE, 74.0, 10**3.8),
        (CURVE, 75.1, None),
        (DIP, 60.0, 100.0),
        (DIP, 65.0, 200 * 2**0.75),
        ([], 1.0, None),
    ],
)
def test_a_score_is_reached_on_a_line_over_log_dollars(
    curve: list[tuple[float, float]], score: float, usd: float | None
) -> None:
    assert usd_to_reach(score, curve) == (None if usd is None else pytest.approx(usd))
