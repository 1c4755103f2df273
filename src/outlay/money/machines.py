"""Machines: their prices and speeds, and the hours that FLOPs take on them.

Two clocks. The `flops` clock divides a step's FLOPs by what the machine reaches (peak x utilisation): exact, the same
wherever it runs, also for a GPU that is not here. It measures charges. The measured clock counts wall seconds on the
machine that is here. It measures cash. An amount is rounded up once, from the total, never batch by batch.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from importlib import resources
from pathlib import Path

from outlay.errors import MissingData, MoneyError, UnknownItem, first_line
from outlay.text.text_file import read_text

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with its price and its speed.

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
        """Return the seconds that ``flops`` take on the `flops` clock, exactly."""
        return Fraction(flops) / self._reached(train)

    def hours(self, flops_train: int = 0, flops_infer: int = 0) -> Fraction:
        """Return the hours of a step on the `flops` clock: the quantity to quote and to charge."""
        return (self.seconds(flops_train, train=True) + self.seconds(flops_infer, train=False)) / SECONDS_PER_HOUR

    def identity(self) -> dict[str, str | int]:
        """Return the figures that decide a machine's seconds, without their source, as plain values for a key."""
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
    """Return the shipped machines, then those of the user's files (later ones win), by name.

    Raises:
        MoneyError: a file that cannot be read, or a record that is wrong; one line that names it.
    """
    shipped = resources.files("outlay.money") / "machines.toml"
    machines = _machines_of("machines.toml", shipped.read_text(encoding="utf-8"))
    for path in extra:
        try:
            text = read_text(Path(path))
        except MissingData as error:
            raise MoneyError(f"cannot read the machine file: {error}") from None
        machines |= _machines_of(str(path), text)
    return machines


def machine(name: str, extra: Sequence[Path] = ()) -> Machine:
    """Return the machine of a name.

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
