"""The meter of a step: counts FLOPs and seconds, and refuses work that would exceed the hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction

from outlay.money.amounts import Price, Quote
from outlay.money.machines import SECONDS_PER_HOUR, Machine


@dataclass(frozen=True, slots=True)
class Reserve:
    """Work that must still fit after the last batch: evaluation (FLOPs) and saving (wall seconds)."""

    flops_train: int = 0
    flops_infer: int = 0
    wall_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MeterState:
    """Counts of a meter; JSON by `to_json`, so that a checkpoint carries them.

    ``wall_seconds``: since the step began; ``work_seconds``: the part of them inside counted work.
    """

    flops_train: int = 0
    flops_infer: int = 0
    wall_seconds: float = 0.0
    work_seconds: float = 0.0

    def to_json(self) -> dict[str, int | float]:
        """Return the counts as plain numbers by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: Mapping[str, int | float]) -> MeterState:
        """Return the state that `to_json` wrote."""
        return cls(
            flops_train=int(state["flops_train"]),
            flops_infer=int(state["flops_infer"]),
            wall_seconds=float(state["wall_seconds"]),
            work_seconds=float(state["work_seconds"]),
        )


class Meter:
    """A meter of one step's work that refuses work beyond its hold.

    Ask `may_start` before a batch and `add` it afterwards. As long as every batch was allowed and what follows the last
    one stays within ``reserve``, `charge_micros` never passes the charge of ``hold``. Cash is foreseen from the wall
    seconds that work took so far, so it can be passed by what one batch is slower than the mean.

    ``cash_price``: the hour of the machine that is really here, where it is not the one that is charged.
    """

    def __init__(
        self,
        machine: Machine,
        price: Price,
        hold: Quote,
        *,
        reserve: Reserve | None = None,
        cash_price: Price | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.machine = machine
        self.price = price.per("hour")
        self.hold = hold
        self.reserve = reserve or Reserve()
        self.cash_price = (cash_price or price).per("hour")
        self._clock = clock
        self._began = clock()
        self._last: float | None = None
        self._counted = MeterState()
        self._earlier_wall_seconds = 0.0

    def may_start(self, flops_next: int, *, train: bool = True) -> bool:
        """Return whether this much more work, with the reserve after it, stays within the hold on both clocks."""
        self._last = self._clock()
        next_train, next_infer = (flops_next, 0) if train else (0, flops_next)
        more_train = next_train + self.reserve.flops_train
        more_infer = next_infer + self.reserve.flops_infer
        counted = self._counted
        hours = self.machine.hours(counted.flops_train + more_train, counted.flops_infer + more_infer)
        if self.price.cost_micros(hours) > self.hold.charge_micros:
            return False
        more_seconds = self.machine.hours(more_train, more_infer) * SECONDS_PER_HOUR
        foreseen = self.wall_seconds + self._slowness() * float(more_seconds) + self.reserve.wall_seconds
        return self._cash_micros(foreseen) <= self.hold.cash_micros

    def add(self, flops: int, *, train: bool = True) -> None:
        """Count work that was done; the time since the last call of `may_start` or `add` is taken as its wall time."""
        now = self._clock()
        worked = 0.0 if self._last is None else now - self._last
        self._last = now
        counted = self._counted
        self._counted = MeterState(
            flops_train=counted.flops_train + (flops if train else 0),
            flops_infer=counted.flops_infer + (0 if train else flops),
            work_seconds=counted.work_seconds + worked,
        )

    @property
    def hours(self) -> Fraction:
        """Hours on the `flops` clock so far: the quantity to settle."""
        return self.machine.hours(self._counted.flops_train, self._counted.flops_infer)

    @property
    def wall_seconds(self) -> float:
        """Wall seconds so far, those of earlier processes included as far as their last checkpoint."""
        return self._earlier_wall_seconds + self._clock() - self._began

    @property
    def charge_micros(self) -> int:
        """Charge so far, of the total, rounded up once."""
        return self.price.cost_micros(self.hours)

    @property
    def cash_micros(self) -> int:
        """Cash so far, of all wall seconds, rounded up once."""
        return self._cash_micros(self.wall_seconds)

    def state(self) -> MeterState:
        """Return the counts to keep in a checkpoint."""
        return replace(self._counted, wall_seconds=self.wall_seconds)

    def restore(self, state: MeterState) -> None:
        """Resume from a checkpoint: its counts replace these, its wall seconds are added to this process's own."""
        self._counted = state
        self._earlier_wall_seconds = state.wall_seconds
        self._last = None

    def _slowness(self) -> float:
        """Return the wall seconds of work per second on the `flops` clock; 0 before there was any."""
        counted = float(self.hours * SECONDS_PER_HOUR)
        return self._counted.work_seconds / counted if counted > 0 else 0.0

    def _cash_micros(self, wall_seconds: float) -> int:
        return self.cash_price.cost_micros(Fraction(wall_seconds) / SECONDS_PER_HOUR)
