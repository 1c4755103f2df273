"""Which request leaves next: the cap, retries, waits, and the ends, under a simulated clock."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import SellerError
from outlay.labels.allowance import Allowance
from outlay.labels.llm.limits import Limits
from outlay.labels.llm.schedule import PROBE_FATAL, Due, Retries
from outlay.labels.llm.wire import Exchange, Failed, Lost
from tests.simulated_endpoint import CENT, OK, Answers, Simulation, due, uncertain

RICH = Fraction(10**6)


def capped(seed: int, faults: float) -> tuple[Simulation, bool]:
    rng = random.Random(seed)
    dues = [due(f"row {i}", CENT * 2 * Fraction(rng.randrange(1, 1001), 1000)) for i in range(2000)]
    run = Simulation(dues, Allowance(Fraction(1)), uncertain(rng, faults), seed=seed)
    return run, run.run().money_ended


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(i, marks=pytest.mark.slow) for i in range(8, 200))])
def test_a_dollar_is_never_exceeded_and_spent_to_the_last_cents(seed: int) -> None:
    run, ended = capped(seed, faults=0.0)
    assert ended
    assert Fraction(95, 100) <= run.bill <= 1
    assert run.allowance.left == 1 - run.bill
    run, ended = capped(seed, faults=0.2)
    assert ended
    # A lost request is booked at its worst case, and may have cost less.
    assert run.bill <= 1 - run.allowance.left <= 1
    assert run.allowance.left <= Fraction(2, 100)


@given(
    worst=st.lists(st.integers(0, 50), min_size=1, max_size=40),
    cents=st.integers(0, 100),
    n_at_once=st.integers(1, 9),
    faults=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_the_allowance_binds_whatever_happens(
    worst: list[int], cents: int, n_at_once: int, faults: float, seed: int
) -> None:
    rng = random.Random(seed)
    dues = [due(f"row {i}", CENT * n) for i, n in enumerate(worst)]
    run = Simulation(dues, Allowance(CENT * cents), uncertain(rng, faults), n_at_once, seed=seed)
    try:
        schedule = run.run()
    except SellerError:
        return
    assert run.allowance.left >= 0
    assert run.bill <= CENT * cents - run.allowance.left
    if faults == 0 and schedule.error is None:
        assert run.allowance.left == CENT * cents - run.bill
        assert schedule.money_ended == (len(schedule.finished) < len(dues))


def test_the_money_is_waited_for_while_requests_are_under_way() -> None:
    """Two worst cases do not fit at once, but all four rows are paid for with what comes back."""
    dues = [due(f"row {i}", CENT * 6) for i in range(4)]
    run = Simulation(dues, Allowance(CENT * 10), lambda asked, n, now: (1.0, CENT, OK))
    schedule = run.run()
    assert (run.bill, schedule.money_ended, len(schedule.finished)) == (4 * CENT, False, 4)
    assert [at for at, _ in run.at] == [0, 1, 2, 3]


def scripted(*exchanges: Exchange, then: Exchange = OK, usd: Fraction = CENT) -> Answers:
    """Answer the first requests as told."""
    left = list(exchanges)

    def answer(asked: Due, number: int, now: float) -> tuple[float, Fraction, Exchange]:
        exchange = left.pop(0) if left else then
        return 0.1, usd if exchange is OK else Fraction(0), exchange

    return answer


def test_a_wait_that_the_endpoint_asks_for_is_kept_however_long_and_told() -> None:
    busy = Failed("status 429: slow down", 429, headers={"retry-after": "300"})
    dues = [due(f"row {i}", CENT) for i in range(5)]
    run = Simulation(dues, Allowance(RICH), scripted(busy), n_at_once=2)
    schedule = run.run()
    assert len(schedule.finished) == 5
    assert not schedule.refused
    # Who was under way ends; nothing else leaves for 300 s.
    assert Counter(at < 1 for at, _ in run.at) == {True: 2, False: 4}
    assert min(at for at, _ in run.at if at >= 1) == pytest.approx(300.1)
    assert len(run.told) == 1
    assert "about 5 min" in run.told[0]
    assert "slow down" in run.told[0]


def test_without_one_waits_double_and_are_drawn() -> None:
    waits = []
    for seed in range(20):
        run = Simulation(
            [due("row", CENT)],
            Allowance(RICH),
            scripted(*[Failed("status 503", 503)] * 5),
            retries=Retries(failures=5, first_wait=1.0),
            seed=seed,
        )
        run.run()
        times = [at for at, _ in run.at]
        waits.append([round(b - a - 0.1, 6) for a, b in pairwise(times)])
        assert all(2**i / 2 <= wait <= 2**i for i, wait in enumerate(waits[-1]))
    assert len({tuple(each) for each in waits}) == 20


STORM = Failed("status 429", 429)
DOWN = Failed("cannot connect to http://x: refused")


@pytest.mark.parametrize("storm", [STORM, DOWN, Failed("status 500", 500), Lost("reset")])
def test_a_row_is_asked_again_as_often_as_told(storm: Exchange) -> None:
    run = Simulation([due("row", CENT)], Allowance(RICH), scripted(then=storm), retries=Retries(failures=3))
    schedule = run.run()
    assert len(run.at) == 4
    assert schedule.error is not None
    assert "nothing is lost" in str(schedule.error)
    assert "4 times" in str(schedule.error)
    assert run.allowance.left == RICH - (4 * CENT if isinstance(storm, Lost) else 0)


def test_one_row_that_always_fails_is_refused_and_the_others_arrive() -> None:
    def answer(asked: Due, number: int, now: float) -> tuple[float, Fraction, Exchange]:
        if asked.key == "row 3":
            return 0.1, Fraction(0), Failed("status 500: no", 500)
        return 0.1, CENT, OK

    dues = [due(f"row {i}", CENT) for i in range(30)]
    schedule = Simulation(dues, Allowance(RICH), answer, n_at_once=4, retries=Retries(failures=2)).run()
    assert schedule.refused == {"row 3": "status 500: no (3 times)"}
    assert len(schedule.finished) == 30
    assert schedule.error is None


def test_a_storm_of_limits_refuses_no_row_while_others_get_through() -> None:
    """Three of four requests meet a full endpoint: more than the retries of a row, but never without a reply in between."""

    def answer(asked: Due, number: int, now: float) -> tuple[float, Fraction, Exchange]:
        return (0.1, Fraction(0), STORM) if number % 4 else (0.1, CENT, OK)

    dues = [due(f"row {i}", CENT) for i in range(200)]
    schedule = Simulation(dues, Allowance(RICH), answer, retries=Retries(failures=3)).run()
    assert (len(schedule.finished), schedule.refused, schedule.error) == (200, {}, None)


def test_an_endpoint_that_is_down_ends_the_order_and_refuses_nothing() -> None:
    dues = [due(f"row {i}", CENT) for i in range(500)]
    run = Simulation(dues, Allowance(RICH), scripted(*[OK] * 40, then=Failed("status 503", 503)))
    schedule = run.run()
    assert len(schedule.finished) == 40
    assert not schedule.refused
    assert "status 503" in str(schedule.error)
    assert run.allowance.left == RICH - 40 * CENT


@pytest.mark.parametrize(
    "failed",
    [
        Failed("status 429: You exceeded your quota", 429, "insufficient_quota"),
        *(Failed(f"status {status}: no", status) for status in (401, 402, 403, 404)),
    ],
)
def test_some_refusals_end_it_at_once(failed: Failed) -> None:
    dues = [due(f"row {i}", CENT) for i in range(50)]
    run = Simulation(dues, Allowance(RICH), scripted(*[OK] * 10, then=failed), n_at_once=4)
    schedule = run.run()
    assert len(run.at) <= 14
    assert isinstance(schedule.error, SellerError)
    assert failed.why in str(schedule.error)
    assert "\n" not in str(schedule.error)
    assert len(schedule.finished) == 10


def test_a_bad_row_is_refused_and_a_bad_request_ends_it() -> None:
    bad = Failed("status 400: context too long", 400)
    dues = [due(f"row {i}", CENT) for i in range(40)]
    schedule = Simulation(dues, Allowance(RICH), scripted(OK, *[bad] * 10), n_at_once=1).run()
    assert len(schedule.refused) == 10
    assert set(schedule.refused.values()) == {bad.why}
    assert len(schedule.finished) == 40
    run = Simulation(dues, Allowance(RICH), scripted(then=bad), n_at_once=1)
    schedule = run.run()
    assert len(run.at) == 5
    assert not schedule.refused
    assert "context too long" in str(schedule.error)
    # A probe is told that the endpoint has no such path.
    nothing = Failed("status 404", 404)
    schedule = Simulation(dues[:1], Allowance(RICH), scripted(then=nothing), fatal=PROBE_FATAL).run()
    assert (schedule.refused, schedule.error) == ({"row 0": "status 404"}, None)


def test_what_cannot_be_read_is_paid_each_time_and_asked_again_as_told() -> None:
    for n in range(3):
        run = Simulation(
            [due("row", 2 * CENT)],
            Allowance(RICH),
            scripted(),
            retries=Retries(unreadable=n),
            problem="the answer is null",
        )
        schedule = run.run()
        assert schedule.refused == {"row": "the answer is null"}
        assert RICH - run.allowance.left == run.bill == (n + 1) * CENT


def test_requests_keep_to_the_rate() -> None:
    dues = [due(f"row {i}", CENT) for i in range(300)]
    run = Simulation(dues, Allowance(RICH), scripted(), limits=Limits(120, None, 0.0))
    run.run()
    times = [at for at, _ in run.at]
    assert max(sum(start <= at < start + 60 for at in times) for start in times) <= 123
    assert times[-1] == pytest.approx(149, abs=2)
