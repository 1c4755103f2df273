"""Machines: their prices and speeds, and the hours that FLOPs take on them.

Two clocks. The `flops` clock divides a step's FLOPs by what the machine reaches (peak x utilisation): exact, the same
wherever it runs, also for a GPU that is not here. It measures charges. The measured clock counts wall seconds on the
machine that is here. It measures cash. An amount is rounded up once, from the total, never batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from importlib import resources
from pathlib import Path

from outlay.errors import MoneyError, UnknownItem
from outlay.money.toml_records import load_records
from outlay.text.legible import did_you_mean

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
        utilisation = self.utilisation_train if train else self.utilisation_infer
        return Fraction(flops) / (self.peak_flops_per_second * utilisation)

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


def load_machines(extra: Sequence[Path] = ()) -> dict[str, Machine]:
    """Return the shipped machines, then those of the user's files (later ones win), by name.

    Raises:
        MoneyError: a file that cannot be read, or a record that is wrong; one line that names it.
    """
    shipped = resources.files("outlay.money") / "machines.toml"
    machines: dict[str, Machine] = {}
    advice = "write one [[machine]] table each"
    for _, found in load_records("machine", [shipped], extra, _machine_of, advice=advice):
        machines |= found
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
        hint = f" (did you mean {near[0]}?)" if near else did_you_mean(name, machines)
        raise UnknownItem(
            f"no machine {name!r}{hint}; known: {', '.join(machines)}; add it with a machine file of your own"
        )
    return machines[name]


def _machine_of(where: str, record: object) -> tuple[str, Machine]:
    names = [field.name for field in fields(Machine)]
    if not isinstance(record, dict) or set(record) != set(names):
        raise MoneyError(f"{where}: a machine has exactly the fields {', '.join(names)}")
    for name in ("name", "price_item", "source"):
        if not isinstance(record[name], str) or not record[name].strip():
            raise MoneyError(f"{where}: {name} is {record[name]!r}; write it as text")
    peak = record["peak_flops_per_second"]
    if isinstance(peak, bool) or not isinstance(peak, int):
        raise MoneyError(f"{where}: peak_flops_per_second is {peak!r}; write a whole number")
    for name in ("utilisation_train", "utilisation_infer"):
        record[name] = _utilisation(where, record[name])
    return record["name"], Machine(**record)


def _utilisation(where: str, value: object) -> Fraction:
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        pass
    raise MoneyError(f'{where}: a utilisation of {value!r}; write a decimal such as "0.35"')
