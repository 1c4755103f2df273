"""The ledger against a slow model in plain Python, over random histories of several runs."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from outlay.errors import AlreadyPaid, BudgetExceeded, HoldError, MoneyError, OutlayError
from outlay.money.amounts import Quote
from outlay.money.ledger import Hold, Ledger

CASH_CAP_MICROS = 4_000
RUNS = st.sampled_from(["r1", "r2", "r3"])
KEYS = st.sampled_from([f"k{number}" for number in range(10)])
PRICES = st.sampled_from(["0.0000013", "0.00003", "0.000250", "0"])  # dollars per unit, so that rounding matters
QUANTITIES = st.fractions(min_value=0, max_value=40, max_denominator=7)


@dataclass
class ModelHold:
    key: str
    charge: int
    cash: int
    hold: Hold
    expires: float
    state: str = "open"  # open | settled | released | cancelled


@dataclass
class ModelRun:
    budget: int
    opened_with: int
    holds: list[ModelHold] = field(default_factory=list)
    charges: list[int] = field(default_factory=list)
    cashes: list[int] = field(default_factory=list)
    losses: list[int] = field(default_factory=list)
    overruns: list[tuple[int, int]] = field(default_factory=list)
    cancelled: bool = False

    def open(self) -> list[ModelHold]:
        return [hold for hold in self.holds if hold.state == "open"]

    def all_cash(self) -> int:
        return sum(self.cashes) + sum(self.losses) + sum(cash for _, cash in self.overruns)

    def left(self) -> tuple[int, int]:
        charge = self.budget - sum(self.charges) - sum(charge for charge, _ in self.overruns)
        charge -= sum(hold.charge for hold in self.open())
        cash = self.budget - self.all_cash() - sum(hold.cash for hold in self.open())
        return max(0, charge), max(0, cash)


def outcome(action: Callable[[], object]) -> type[OutlayError] | None:
    try:
        action()
    except OutlayError as error:
        return type(error)
    return None


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1_700_000_000.0
        self.runs: dict[str, ModelRun] = {}
        self.n_entries = 0
        self.ledger = self._reopened()

    def _reopened(self) -> Ledger:
        path = Path(self.folder.name) / "ledger.sqlite"
        return Ledger(path, cash_cap_micros=CASH_CAP_MICROS, clock=lambda: self.now)

    def teardown(self) -> None:
        if self.runs:
            found = self.ledger.verify()
            assert found.ok, found.reason
            assert found.n_entries == self.n_entries
        self.ledger.close()
        self.folder.cleanup()

    @initialize(first=st.sampled_from([700, 1_500, 2_500]), second=st.sampled_from([900, 2_500]))
    def open_two_runs(self, first: int, second: int) -> None:
        for name, budget in (("r1", first), ("r2", second)):
            self.ledger.open_run(name, budget)
            self.runs[name] = ModelRun(budget, budget)
            self.n_entries += 1

    def _refusal(self, name: str, key: str, quote: Quote) -> type[OutlayError] | None:
        run = self.runs.get(name)
        if run is None or run.cancelled:
            return HoldError
        if any(hold.key == key and hold.state == "settled" for hold in run.holds):
            return AlreadyPaid
        if any(hold.key == key for hold in run.open()):
            return HoldError
        charge, cash = run.left()
        spent = sum(other.all_cash() + sum(hold.cash for hold in other.open()) for other in self.runs.values())
        fits = quote.charge_micros <= charge and quote.cash_micros <= cash
        if not fits or spent + quote.cash_micros > max(spent, CASH_CAP_MICROS):
            return BudgetExceeded
        return None

    @rule(
        run=RUNS,
        key=KEYS,
        usd=PRICES,
        quantity=QUANTITIES,
        cash=st.integers(0, 400),
        lease=st.sampled_from([10, 1000]),
        then=st.none() | st.tuples(QUANTITIES, st.integers(0, 700)),
    )
    def buy(
        self,
        run: str,
        key: str,
        usd: str,
        quantity: Fraction,
        cash: int,
        lease: int,
        then: tuple[Fraction, int] | None,
    ) -> None:
        """Hold, and settle at once or leave it open."""
        charge = math.ceil(quantity * Fraction(usd) * 1_000_000)
        quote = Quote("thing", "unit", quantity, Decimal(usd), charge, cash)
        refusal = self._refusal(run, key, quote)
        made: list[Hold] = []
        assert outcome(lambda: made.append(self.ledger.hold(run, key, quote, lease_seconds=lease))) is refusal
        if refusal is None:
            mine = ModelHold(key, charge, cash, made[0], self.now + lease)
            self.runs[run].holds.append(mine)
            self.n_entries += 1
            if then:
                self._settle(self.runs[run], mine, then[0], then[1], metered=False)

    def _pick(self, number: int) -> tuple[ModelRun, ModelHold] | None:
        every = [(run, hold) for run in self.runs.values() for hold in run.holds]
        open_ones = [pair for pair in every if pair[1].state == "open"]
        choice = open_ones if open_ones and number % 4 else every  # now and then one that is closed already
        return choice[number % len(choice)] if choice else None

    @rule(number=st.integers(0, 99), quantity=QUANTITIES, cash=st.integers(0, 700), metered=st.booleans())
    def settle(self, number: int, quantity: Fraction, cash: int, metered: bool) -> None:
        picked = self._pick(number)
        if picked:
            self._settle(*picked, quantity, cash, metered=metered)

    def _settle(self, run: ModelRun, mine: ModelHold, quantity: Fraction, cash: int, *, metered: bool) -> None:
        unit = Fraction(mine.hold.quote.unit_usd) * 1_000_000
        charge = math.ceil(quantity * unit)
        cash_quantity = quantity * Fraction(2, 3) if metered else None
        cash = math.ceil(quantity * Fraction(2, 3) * unit) if metered else cash

        def settling() -> None:
            self.ledger.settle(
                mine.hold, quantity=quantity, charge_micros=charge, cash_micros=cash, cash_quantity=cash_quantity
            )

        assert outcome(settling) is (None if mine.state == "open" else HoldError)
        if mine.state == "open":
            mine.state = "settled"
            run.charges.append(min(charge, mine.charge))
            run.cashes.append(min(cash, mine.cash))
            excess = (max(0, charge - mine.charge), max(0, cash - mine.cash))
            run.overruns += [excess] if any(excess) else []
            self.n_entries += 2 if any(excess) else 1

    @rule(number=st.integers(0, 99), lost=st.sampled_from([0, 0, 7, 150, 2_000]))
    def release(self, number: int, lost: int) -> None:
        picked = self._pick(number)
        if picked:
            self._release(*picked, lost)

    def _release(self, run: ModelRun, mine: ModelHold, lost: int) -> None:
        allowed = mine.state == "open" or (mine.state == "cancelled" and lost > 0)
        refused = outcome(lambda: self.ledger.release(mine.hold, lost_cash_micros=lost))
        assert refused is (None if allowed else HoldError)
        if allowed:
            self.n_entries += (mine.state == "open") + (lost > 0) + (lost > mine.cash)
            mine.state = "released"
            run.losses += [min(lost, mine.cash)] if lost else []
            run.overruns += [(0, lost - mine.cash)] if lost > mine.cash else []

    @rule(number=st.integers(0, 99))
    def renew(self, number: int) -> None:
        picked = self._pick(number)
        if picked:
            mine = picked[1]
            refused = outcome(lambda: self.ledger.renew(mine.hold, lease_seconds=100))
            assert refused is (None if mine.state == "open" else HoldError)
            mine.expires = self.now + 100

    @rule(name=RUNS, what=st.sampled_from(["top up", "top up", "open", "other budget", "nothing", "cancel"]))
    def manage(self, name: str, what: str) -> None:
        run = self.runs.get(name)
        if what in ("open", "other budget"):
            budget = run.opened_with if run and what == "open" else 1_600
            refused = run is not None and run.opened_with != budget
            assert outcome(lambda: self.ledger.open_run(name, budget)) is (MoneyError if refused else None)
            if run is None:
                self.runs[name] = ModelRun(budget, budget)
                self.n_entries += 1
        elif what == "cancel" and self.n_entries > 25:
            self._cancel(name)
        elif what in ("top up", "nothing"):
            amount = 400 if what == "top up" else 0
            expected = MoneyError if amount == 0 else HoldError if run is None or run.cancelled else None
            assert outcome(lambda: self.ledger.top_up(name, amount)) is expected
            if expected is None and run:
                run.budget += amount
                self.n_entries += 1

    def _cancel(self, name: str) -> None:
        run = self.runs.get(name)
        assert outcome(lambda: self.ledger.cancel(name)) is (None if run else HoldError)
        if run and not run.cancelled:
            self.n_entries += 1 + len(run.open())
            for hold in run.open():
                hold.state = "cancelled"
            run.cancelled = True

    @rule(seconds=st.sampled_from([1.0, 15.0, 2_000.0]), lost=st.sampled_from([0, 11]))
    def crash_and_resume(self, seconds: float, lost: int) -> None:
        """The object vanishes without a word; later, a new one sees all that was committed and clears up."""
        self.ledger = self._reopened()
        self.now += seconds
        for name, run in self.runs.items():
            assert self.ledger.open_holds(name) == [hold.hold for hold in run.open()]
            expired = [hold for hold in run.open() if hold.expires <= self.now]
            assert self.ledger.expired_holds(name) == [hold.hold for hold in expired]
            for hold in expired:
                self._release(run, hold, lost)

    @invariant()
    def the_balances_are_the_models(self) -> None:
        for name, run in self.runs.items():
            now = self.ledger.balance(name)
            assert now.budget_micros == run.budget
            assert now.charged_micros == sum(run.charges)
            assert now.cash_micros == sum(run.cashes)
            assert now.lost_micros == sum(run.losses)
            assert now.overrun_charge_micros == sum(charge for charge, _ in run.overruns)
            assert now.overrun_cash_micros == sum(cash for _, cash in run.overruns)
            assert now.held_charge_micros == sum(hold.charge for hold in run.open())
            assert now.held_cash_micros == sum(hold.cash for hold in run.open())
            assert (now.available_charge_micros, now.available_cash_micros) == run.left()
            assert min(run.left()) >= 0
            # net of overruns, nothing ever exceeds the budget
            assert now.charged_micros + now.held_charge_micros <= run.budget
            assert now.cash_micros + now.lost_micros + now.held_cash_micros <= run.budget

    @invariant()
    def no_key_is_paid_twice(self) -> None:
        assert self.ledger.anchor().count == self.n_entries
        for run in self.runs.values():
            paid = [hold.key for hold in run.holds if hold.state == "settled"]
            assert len(paid) == len(set(paid))


def _run(n_histories: int) -> None:
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=n_histories, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_random_histories_agree_with_the_model() -> None:
    _run(15)


def _live_long(seed: int, n_steps: int) -> None:
    """One long and dense life of the same machine: most steps move money."""
    draw = random.Random(seed)
    machine = LedgerMachine()
    machine.open_two_runs(2_500, 2_500)

    def quantity() -> Fraction:
        return Fraction(draw.randrange(120), draw.randrange(1, 8))

    for _ in range(n_steps):
        name, key, number = draw.choice(["r1", "r2", "r3"]), f"k{draw.randrange(n_steps)}", draw.randrange(1_000)
        step = draw.choices(["buy", "settle", "release", "renew", "manage", "crash"], [8, 4, 3, 1, 2, 1])[0]
        if step == "buy":
            then = (quantity(), draw.randrange(200)) if draw.random() < 0.3 else None
            usd, lease = draw.choice(["0.0000013", "0.0000031", "0"]), draw.choice([10, 1_000])
            machine.buy(name, key, usd, quantity(), draw.randrange(120), lease, then)
        elif step == "settle":
            machine.settle(number, quantity(), draw.randrange(150), draw.random() < 0.5)
        elif step == "release":
            machine.release(number, draw.choice([0, 0, 7, 130]))
        elif step == "renew":
            machine.renew(number)
        elif step == "manage":
            machine.manage(name, draw.choice(["top up"] * 60 + ["open", "other budget", "nothing", "cancel"]))
        else:
            machine.crash_and_resume(draw.choice([1.0, 15.0, 2_000.0]), draw.choice([0, 11]))
        machine.the_balances_are_the_models()
        machine.no_key_is_paid_twice()
    machine.teardown()
    assert machine.n_entries > n_steps / 4


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_a_long_life_agrees_with_the_model(seed: int) -> None:
    _live_long(seed, 300)


@pytest.mark.slow
def test_many_random_histories_agree_with_the_model() -> None:
    _run(300)
    for seed in range(100, 140):
        _live_long(seed, 300)
