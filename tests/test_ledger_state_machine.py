"""The ledger against a slow model in plain Python, over random histories of several runs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outlay.errors import AlreadyPaid, BudgetExceeded, HoldError, MoneyError, OutlayError
from outlay.ledger import Hold, Ledger
from outlay.money import Quote

CASH_CAP_MICROS = 4_000
RUNS = st.sampled_from(["r1", "r2", "r3"])
KEYS = st.sampled_from([f"k{number}" for number in range(6)])
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
        assert "\n" not in str(error)
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
        self.open_run("r1", first)
        self.open_run("r2", second)

    @rule(run=RUNS, budget=st.sampled_from([700, 1_500, 2_500, 0]))
    def open_run(self, run: str, budget: int) -> None:
        known = self.runs.get(run)
        refused = budget == 0 or (known is not None and known.opened_with != budget)
        assert outcome(lambda: self.ledger.open_run(run, budget)) is (MoneyError if refused else None)
        if not refused and known is None:
            self.runs[run] = ModelRun(budget, budget)
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

    @precondition(lambda self: self.runs)
    @rule(
        run=RUNS, key=KEYS, usd=PRICES, quantity=QUANTITIES, cash=st.integers(0, 900), lease=st.sampled_from([10, 1000])
    )
    def hold(self, run: str, key: str, usd: str, quantity: Fraction, cash: int, lease: int) -> None:
        charge = math.ceil(quantity * Fraction(usd) * 1_000_000)
        quote = Quote("thing", "unit", quantity, Decimal(usd), charge, cash)
        refusal = self._refusal(run, key, quote)
        made: list[Hold] = []
        assert outcome(lambda: made.append(self.ledger.hold(run, key, quote, lease_seconds=lease))) is refusal
        if refusal is None:
            self.runs[run].holds.append(ModelHold(key, charge, cash, made[0], self.now + lease))
            self.n_entries += 1

    def _pick(self, number: int) -> tuple[ModelRun, ModelHold] | None:
        every = [(run, hold) for run in self.runs.values() for hold in run.holds]
        open_ones = [pair for pair in every if pair[1].state == "open"]
        choice = open_ones if open_ones and number % 4 else every  # now and then one that is closed already
        return choice[number % len(choice)] if choice else None

    @rule(number=st.integers(0, 99), quantity=QUANTITIES, cash=st.integers(0, 1_500), metered=st.booleans())
    def settle(self, number: int, quantity: Fraction, cash: int, metered: bool) -> None:
        picked = self._pick(number)
        if picked is None:
            return
        run, mine = picked
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

    @precondition(lambda self: self.runs)
    @rule(name=RUNS, amount=st.sampled_from([0, 300, 900]))
    def top_up(self, name: str, amount: int) -> None:
        run = self.runs.get(name)
        expected = MoneyError if amount == 0 else HoldError if run is None or run.cancelled else None
        assert outcome(lambda: self.ledger.top_up(name, amount)) is expected
        if expected is None and run:
            run.budget += amount
            self.n_entries += 1

    @precondition(lambda self: self.runs)
    @rule(name=RUNS, surely=st.integers(0, 7))
    def cancel(self, name: str, surely: int) -> None:
        run = self.runs.get(name)
        if run is None or surely:
            return
        self.ledger.cancel(name)
        if not run.cancelled:
            self.n_entries += 1 + len(run.open())
            for hold in run.open():
                hold.state = "cancelled"
        run.cancelled = True

    @rule(seconds=st.sampled_from([1.0, 15.0, 2_000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def crash(self) -> None:
        """The object vanishes without a word; a new one sees everything that was committed."""
        self.ledger = self._reopened()

    @precondition(lambda self: self.runs)
    @rule(lost=st.sampled_from([0, 11]))
    def resume(self, lost: int) -> None:
        for name, run in self.runs.items():
            expired = [hold for hold in run.open() if hold.expires <= self.now]
            assert self.ledger.expired_holds(name) == [hold.hold for hold in expired]
            for hold in expired:
                self._release(run, hold, lost)

    @precondition(lambda self: self.runs)
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
            assert self.ledger.open_holds(name) == [hold.hold for hold in run.open()]

    @precondition(lambda self: self.runs)
    @invariant()
    def no_key_is_paid_twice(self) -> None:
        assert self.ledger.anchor().count == self.n_entries
        for run in self.runs.values():
            paid = [hold.key for hold in run.holds if hold.state == "settled"]
            assert len(paid) == len(set(paid))


LedgerMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedger = LedgerMachine.TestCase
