"""Compute: FLOPs to seconds to money, and the meter that stops a step at its hold.

Two clocks. The `flops` clock divides a step's FLOPs by what the machine reaches (peak x utilisation): exact, the same
wherever it runs, also for a GPU that is not here. Charges are made of it. The measured clock counts wall seconds on the
machine that is here. Cash is made of it. An amount is rounded up once, from the total, never batch by batch.
"""

from __future__ import annotations

import difflib
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from importlib import resources
from pathlib import Path

from outlay.errors import MissingData, MoneyError, UnknownItem, first_line
from outlay.money import Price
from outlay.shape import FAMILY_OF, ModelShape, flops_infer, flops_train, shape_of
from outlay.textfile import read_text

__all__ = [
    "FAMILY_OF",
    "Limits",
    "Machine",
    "Meter",
    "MeterState",
    "ModelShape",
    "Reserve",
    "flops_infer",
    "flops_train",
    "load_machines",
    "machine",
    "shape_of",
]

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Machine:
    """A price and a speed.

    ``price_item``: its hour in the price book; ``peak_flops_per_second``: dense bf16, from the data sheet (``source``);
    ``utilisation_train``, ``utilisation_infer``: the share of the peak that training and inference reach, in (0, 1].
    """

    name: str
    price_item: str
    peak_flops_per_second: int
    utilisation_train: Fraction
    utilisation_infer: Fraction
    source: str

    def __post_init__(self) -> None:
        if self.peak_flops_per_second <= 0:
            raise MoneyError(
                f"machine {self.name!r} has a peak of {self.peak_flops_per_second} FLOP/s; it must be above 0"
            )
        for utilisation in (self.utilisation_train, self.utilisation_infer):
            if not 0 < utilisation <= 1:
                raise MoneyError(
                    f"machine {self.name!r} has a utilisation of {utilisation}; it must lie above 0, up to 1"
                )

    def seconds(self, flops: int, *, train: bool) -> Fraction:
        """Seconds that ``flops`` take on the `flops` clock, exactly."""
        return Fraction(flops) / self._reached(train)

    def hours(self, flops_train: int = 0, flops_infer: int = 0) -> Fraction:
        """Hours of a step on the `flops` clock: the quantity to quote and to charge."""
        return (self.seconds(flops_train, train=True) + self.seconds(flops_infer, train=False)) / SECONDS_PER_HOUR

    def identity(self) -> dict[str, str | int]:
        """What decides its seconds, fit for a key; the source of the figures does not."""
        return {
            "name": self.name,
            "price_item": self.price_item,
            "peak_flops_per_second": self.peak_flops_per_second,
            "utilisation_train": str(self.utilisation_train),
            "utilisation_infer": str(self.utilisation_infer),
        }

    def _reached(self, train: bool) -> Fraction:
        return self.peak_flops_per_second * (self.utilisation_train if train else self.utilisation_infer)


def load_machines(extra: Sequence[Path] = ()) -> dict[str, Machine]:
    """The shipped machines, then those of the user's files (later ones win), by name.

    Raises:
        MoneyError: a file that cannot be read, or a record that is wrong; one line that names it.
    """
    shipped = resources.files("outlay") / "machines.toml"
    machines = _machines_of("machines.toml", shipped.read_text(encoding="utf-8"))
    for path in extra:
        try:
            text = read_text(Path(path))
        except MissingData as error:
            raise MoneyError(f"cannot read the machine file: {error}") from None
        machines |= _machines_of(str(path), text)
    return machines


def machine(name: str, extra: Sequence[Path] = ()) -> Machine:
    """The machine of a name.

    Raises:
        UnknownItem: no such machine; lists the known ones.
        MoneyError: as `load_machines`.
    """
    machines = load_machines(extra)
    if name not in machines:
        near = [known for known in machines if name and known.startswith(name)]
        near = near or difflib.get_close_matches(name, machines, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UnknownItem(
            f"no machine {name!r}{hint}; known: {', '.join(machines)}; add it with a machine file of your own"
        )
    return machines[name]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step may spend: its hold."""

    charge_micros: int
    cash_micros: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Work that must still fit after the last batch: evaluation (FLOPs) and saving (wall seconds)."""

    flops_train: int = 0
    flops_infer: int = 0
    wall_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MeterState:
    """What a meter has counted; JSON by `to_json`, so that a checkpoint carries it.

    ``wall_seconds``: since the step began; ``work_seconds``: the part of them inside counted work.
    """

    flops_train: int = 0
    flops_infer: int = 0
    wall_seconds: float = 0.0
    work_seconds: float = 0.0

    def to_json(self) -> dict[str, int | float]:
        """Plain numbers by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: Mapping[str, int | float]) -> MeterState:
        """The state that `to_json` wrote."""
        return cls(
            flops_train=int(state["flops_train"]),
            flops_infer=int(state["flops_infer"]),
            wall_seconds=float(state["wall_seconds"]),
            work_seconds=float(state["work_seconds"]),
        )


class Meter:
    """Counts the work of one step and refuses what could pass its hold.

    Ask `may_start` before a batch and `add` it afterwards. As long as every batch was allowed and what follows the last
    one stays within ``reserve``, `charge_micros` never passes ``limits.charge_micros``. Cash is foreseen from the wall
    seconds that work took so far, so it can be passed by what one batch is slower than the mean.

    ``cash_price``: the hour of the machine that is really here, where it is not the one that is charged.
    """

    def __init__(
        self,
        machine: Machine,
        price: Price,
        limits: Limits,
        *,
        reserve: Reserve | None = None,
        cash_price: Price | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.machine = machine
        self.price = price.per_hour()
        self.limits = limits
        self.reserve = reserve or Reserve()
        self.cash_price = (cash_price or price).per_hour()
        self._clock = clock
        self._began = clock()
        self._last: float | None = None
        self._counted = MeterState()
        self._earlier_wall_seconds = 0.0

    def may_start(self, flops_next: int, *, train: bool = True) -> bool:
        """Whether this much more work, with the reserve after it, stays within the hold on both clocks."""
        self._last = self._clock()
        next_train, next_infer = (flops_next, 0) if train else (0, flops_next)
        more_train = next_train + self.reserve.flops_train
        more_infer = next_infer + self.reserve.flops_infer
        charge = self._charge_micros(self.flops_train + more_train, self.flops_infer + more_infer)
        if charge > self.limits.charge_micros:
            return False
        more_seconds = self.machine.hours(more_train, more_infer) * SECONDS_PER_HOUR
        foreseen = self.wall_seconds + self._slowness() * float(more_seconds) + self.reserve.wall_seconds
        return self._cash_micros(foreseen) <= self.limits.cash_micros

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
    def flops_train(self) -> int:
        """FLOPs of training counted so far, earlier processes included."""
        return self._counted.flops_train

    @property
    def flops_infer(self) -> int:
        """FLOPs of inference counted so far, earlier processes included."""
        return self._counted.flops_infer

    @property
    def hours(self) -> Fraction:
        """Hours on the `flops` clock so far: the quantity to settle."""
        return self.machine.hours(self.flops_train, self.flops_infer)

    @property
    def seconds_flops(self) -> Fraction:
        """Seconds on the `flops` clock so far."""
        return self.hours * SECONDS_PER_HOUR

    @property
    def wall_seconds(self) -> float:
        """Wall seconds so far, those of earlier processes included as far as their last checkpoint."""
        return self._earlier_wall_seconds + self._clock() - self._began

    @property
    def charge_micros(self) -> int:
        """Charge so far: of the total, rounded up once."""
        return self._charge_micros(self.flops_train, self.flops_infer)

    @property
    def cash_micros(self) -> int:
        """Cash so far: of all wall seconds, rounded up once."""
        return self._cash_micros(self.wall_seconds)

    def state(self) -> MeterState:
        """What to keep in a checkpoint."""
        counted = self._counted
        return MeterState(counted.flops_train, counted.flops_infer, self.wall_seconds, counted.work_seconds)

    def restore(self, state: MeterState) -> None:
        """Go on from a checkpoint: its counts replace these, its wall seconds come on top of this process's own."""
        self._counted = state
        self._earlier_wall_seconds = state.wall_seconds
        self._last = None

    def _slowness(self) -> float:
        """Wall seconds of work per second on the `flops` clock; 0 before there was any."""
        counted = float(self.seconds_flops)
        return self._counted.work_seconds / counted if counted > 0 else 0.0

    def _charge_micros(self, n_train: int, n_infer: int) -> int:
        return self.price.cost_micros(self.machine.hours(n_train, n_infer))

    def _cash_micros(self, wall_seconds: float) -> int:
        return self.cash_price.cost_micros(Fraction(wall_seconds) / SECONDS_PER_HOUR)


def _machines_of(name: str, text: str) -> dict[str, Machine]:
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else first_line(error)
        raise MoneyError(f"{name} is not a TOML machine file: {reason}") from None
    records = content.get("machine")
    if set(content) != {"machine"} or not isinstance(records, list):
        raise MoneyError(f"{name} holds no machines; write one [[machine]] table each")
    machines: dict[str, Machine] = {}
    for number, record in enumerate(records, start=1):
        found = _machine_of(f"{name}, machine {number}", record)
        if found.name in machines:
            raise MoneyError(f"{name}, machine {number}: {found.name!r} is listed twice; keep one")
        machines[found.name] = found
    return machines


def _machine_of(where: str, record: object) -> Machine:
    names = [field.name for field in fields(Machine)]
    if not isinstance(record, dict) or set(record) != set(names):
        raise MoneyError(f"{where}: a machine has exactly the fields {', '.join(names)}")
    for name in ("name", "price_item", "source"):
        if not isinstance(record[name], str) or not record[name].strip():
            raise MoneyError(f"{where}: {name} is {record[name]!r}; write it as text")
    peak = record["peak_flops_per_second"]
    if isinstance(peak, bool) or not isinstance(peak, int):
        raise MoneyError(f"{where}: peak_flops_per_second is {peak!r}; write a whole number")
    return Machine(
        name=record["name"],
        price_item=record["price_item"],
        peak_flops_per_second=peak,
        utilisation_train=_utilisation(where, record["utilisation_train"]),
        utilisation_infer=_utilisation(where, record["utilisation_infer"]),
        source=record["source"],
    )


def _utilisation(where: str, value: object) -> Fraction:
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        pass
    raise MoneyError(f'{where}: a utilisation of {value!r}; write a decimal such as "0.35"')
