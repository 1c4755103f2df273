"""Money: integer micro-dollars, prices with their source, and quotes.

Amounts are whole micro-dollars (a millionth of a dollar). Quantities and products are exact fractions, rounded up
once, when an amount becomes an entry. A price is a dated record with its source; a price read from no source is marked
as the user's to set.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Context, Decimal
from fractions import Fraction
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from outlay.errors import MoneyError, UnknownItem
from outlay.money.toml_records import load_records
from outlay.storage.files import plain_number
from outlay.text.legible import did_you_mean

MICROS_PER_USD = 1_000_000
MAX_USD = 1_000_000_000  # keeps every sum far inside SQLite's 64-bit integers
MAX_MICROS = MAX_USD * MICROS_PER_USD
_MAX_PRICE_LETTERS = 400

_AMOUNT = re.compile(r"\$?\s*(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)", re.ASCII)
_SCIENTIFIC = re.compile(r"\$?\s*(?P<number>[0-9]+(?:\.[0-9]+)?[eE][+-]?[0-9]{1,2}|[0-9]+\.[0-9]+)", re.ASCII)
"""Forms of a price in a price file beside `_AMOUNT`: as spreadsheets write it, 1.5E-7, or with any number of decimals."""
LABEL_UNIT = "label"
"""Unit of the prices that labels are sold at, by answer."""
DOLLAR_UNIT = "dollar"
"""Unit of a purchase that is paid by tokens, at $1: its quantity is the exact sum of tokens times their prices."""
PURCHASE_UNITS = frozenset((LABEL_UNIT, DOLLAR_UNIT))
"""Units of purchases of labels; anything else in a ledger is compute."""

_LATER = frozenset(
    (f"label/{task}", LABEL_UNIT, "1/5")
    for task in ("cola", "mrpc", "qnli", "rte", "sst2", "trec_qc", "tweeteval_emotion", "tweeteval_irony")
)
"""Item, unit and exact price of what was shipped after the first price book.

A digest leaves them out, so that it stays what it was, and with it the ids of runs that buy none of them. They are written out
here: whoever changes one in its file changes the digest, as with any other price."""

_PER = {LABEL_UNIT: 1, "hour": 1, "token": 1000}
"""Number of labels, hours or tokens per unit of the prices kept: a price per 1000 tokens, as APIs print them."""
_WHY_PER = {
    "label": "labels are bought one by one; name an item with a price per label, or per 1000 labels",
    "hour": "compute is paid by the hour; name a machine's price",
}
_UNIT = re.compile(
    r"(?:per\s+)?(?:(?P<number>[0-9]{1,3}(?:[,_ ][0-9]{3}){1,4}|[0-9]{1,12})\s*)?(?P<scale>k|m|thousand|million)?\s*"
    r"(?P<noun>label|hour|token)s?",
    re.ASCII | re.IGNORECASE,
)
_SCALES = {"k": 1_000, "thousand": 1_000, "m": 1_000_000, "million": 1_000_000}
_PRICE_FIELDS = ("item", "unit", "usd", "source", "checked", "note")


def parse_usd(text: str | int | float | Decimal) -> int:
    """Read an amount such as ``300``, ``"$300"`` or ``"1,000.50"`` as micro-dollars.

    Raises MoneyError for anything that is not a plain amount of dollars: words, NaN, infinity, a negative number,
    more than `MAX_USD`, or a fraction of a micro-dollar.
    """
    usd = _decimal_of(text)
    if usd.is_signed() and usd:
        raise MoneyError(f"{_shown(text)} is negative; an amount is $0 or more")
    if usd.adjusted() > 12 or usd > MAX_USD:
        raise MoneyError(f"{_shown(text)} is more than the limit of ${MAX_USD:,}; give a smaller amount")
    too_fine = MoneyError(f"{_shown(text)} is finer than a micro-dollar; give at most 6 decimals")
    if usd and usd.adjusted() < -6:
        raise too_fine
    micros = Fraction(usd) * MICROS_PER_USD
    if micros.denominator != 1:
        raise too_fine
    return int(micros)


def plain_usd(text: str | int | float | Decimal) -> str:
    """Return an amount as a plain number of dollars, ``"0.20"`` for ``"$0.20"``. Raises MoneyError, as `parse_usd`."""
    return format_usd(parse_usd(text)).removeprefix("$").replace(",", "")


def parse_budget(text: str | int | float | Decimal) -> int:
    """Read a budget as micro-dollars: `parse_usd`, and more than zero. Raises MoneyError."""
    micros = parse_usd(text)
    if micros == 0:
        raise MoneyError(f"a budget of {_shown(text)} buys nothing; give more than $0")
    return micros


def format_usd(micros: int) -> str:
    """Format micro-dollars as ``"$300.00"``, ``"$0.0374"``, ``"$1,820.000001"``: 2 to 6 decimals, as many as are needed."""
    dollars, rest = divmod(abs(micros), MICROS_PER_USD)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micros < 0 else ''}${dollars:,}.{decimals}"


def write_usd(usd: Decimal | float) -> str:
    """Write dollars in digits alone, all of them and without an exponent: ``"0.00000015"``; a price file can read
    them again.

    Floats are written as Python does, ``"300.0"``, so that they read back as the same float.
    """
    return plain_number(str(usd) if isinstance(usd, Decimal) else repr(usd))


def show_usd(usd: float) -> str:
    """Format dollars for people: ``"$1,980.00"``, ``"$0.0024"``, ``"$0.000025"``.

    Cents from one dollar on; below it four decimals, or as many as two significant digits take. Nothing is ``"$0.00"``.
    """
    sign, usd = "-" if usd < 0 else "", abs(usd)
    if usd == 0 or usd >= 1:
        return f"{sign}${usd:,.2f}"
    digits = f"{usd:.{max(4, 1 - math.floor(math.log10(usd)))}f}"
    return f"{sign}${digits[:6]}{digits[6:].rstrip('0')}"


def read_unit(text: str) -> tuple[str, int]:
    """Return the thing and the number that one price buys: ``("label", 1000)`` of ``1000 labels``, ``("token",
    1000000)`` of ``1M tokens``.

    Raises MoneyError for anything that is no number of labels, hours or tokens.
    """
    match = _UNIT.fullmatch(text.strip())
    number = int(re.sub(r"[,_ ]", "", match["number"] or "1")) if match else 0
    if match is None or number < 1:
        hint = did_you_mean(text.strip().lower(), ("label", "hour", "1000 tokens"))
        raise MoneyError(f"the unit {_shown(text)} is unknown{hint}; write label, hour or 1000 tokens, or 1000 labels")
    return match["noun"].lower(), number * _SCALES.get((match["scale"] or "").lower(), 1)


def _per_unit(usd: Decimal, text: str) -> tuple[str, Decimal]:
    """Return the unit that prices are kept in, and the price of one: $100 per 1000 labels are $0.1 per label, exactly."""
    noun, number = read_unit(text)
    kept = _PER[noun]
    unit = noun if kept == 1 else f"{kept} {noun}s"
    if number == kept:
        return unit, usd
    exact = Fraction(usd) * kept / number
    n_decimals = next((n for n in range(_MOST_DECIMALS + 1) if 10**n % exact.denominator == 0), None)
    if n_decimals is None:
        raise MoneyError(
            f"${write_usd(usd)} per {text.strip()} is no exact price of one {noun}; "
            f"give the price of 1, 10, 100 or 1000 {noun}s"
        )
    return unit, Decimal(int(exact * 10**n_decimals)).scaleb(-n_decimals, _EXACT)


_MOST_DECIMALS = 60
_EXACT = Context(prec=200)


def check_micros(name: str, micros: int) -> int:
    """Return `micros` where it is a whole number of micro-dollars from 0 to `MAX_MICROS`; MoneyError otherwise."""
    if isinstance(micros, bool) or not isinstance(micros, int):
        raise MoneyError(f"{name} is {micros!r}; give a whole number of micro-dollars")
    if not 0 <= micros <= MAX_MICROS:
        raise MoneyError(f"{name} is {micros} micro-dollars; the limits are 0 and {MAX_MICROS}")
    return micros


def cost_micros(quantity: Fraction | int, unit_usd: Decimal) -> int:
    """Return a quantity's cost in micro-dollars, rounded up once. Raises MoneyError below 0 or above `MAX_MICROS`."""
    exact = Fraction(quantity) * Fraction(unit_usd) * MICROS_PER_USD
    micros = -((-exact.numerator) // exact.denominator)
    if quantity < 0 or micros > MAX_MICROS:
        raise MoneyError(
            f"{float(quantity):g} units at ${write_usd(unit_usd)} cannot be charged; the limits are $0 and ${MAX_USD:,}"
        )
    return micros


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one `unit` of `item`, with its source and the date it was read (None: it was never read).

    `usd` keeps its exact decimals: a price per token may be finer than a micro-dollar.
    """

    item: str
    unit: str
    usd: Decimal
    source: str
    checked: date | None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.item.strip() or not self.unit.strip():
            raise MoneyError(f"the price of {self.item!r} per {self.unit!r} needs a name for its item and its unit")
        if not self.usd.is_finite() or self.usd.is_signed() or self.usd.adjusted() > 12 or self.usd > MAX_USD:
            raise MoneyError(f"the price of {self.item!r} is {write_usd(self.usd)}; give dollars from 0 to {MAX_USD:,}")
        if self.usd and self.usd.adjusted() < -30:
            raise MoneyError(
                f"the price of {self.item!r} is {write_usd(self.usd)}; give it for a larger unit than {self.unit!r}"
            )

    def per(self, unit: Literal["label", "hour"]) -> Price:
        """Return this price of one label or of a machine's hour. Raises MoneyError for an item sold by something else."""
        if self.unit != unit:
            raise MoneyError(f"{self.item!r} is sold per {self.unit}, but {_WHY_PER[unit]}")
        return self

    def cost_micros(self, quantity: Fraction | int) -> int:
        """Return the cost of `quantity` units, as the function `cost_micros` does."""
        return cost_micros(quantity, self.usd)


OWNED_LABEL = Price("label/owned", "label", Decimal(0), "your own labels", None)
"""The price of a label that one owns already; every price book has it."""


@dataclass(frozen=True, slots=True)
class Quote:
    """Upper bounds for one purchase: `quantity` units of `item`, its charge, and the cash that may leave the bank."""

    item: str
    unit: str
    quantity: Fraction
    unit_usd: Decimal
    charge_micros: int
    cash_micros: int

    def __post_init__(self) -> None:
        if self.quantity < 0:
            raise MoneyError(f"a quote for {self.quantity} {self.unit} of {self.item!r} is negative; quote 0 or more")
        check_micros(f"the charge quoted for {self.item!r}", self.charge_micros)
        check_micros(f"the cash quoted for {self.item!r}", self.cash_micros)

    @classmethod
    def of(cls, price: Price, quantity: Fraction | int, cash_micros: int | None = None) -> Quote:
        """Return the quote of `quantity` units at `price`; the cash bound is the charge unless it is given."""
        charge = price.cost_micros(quantity)
        cash = charge if cash_micros is None else cash_micros
        return cls(price.item, price.unit, Fraction(quantity), price.usd, charge, cash)


class PriceBook:
    """All prices by item. Immutable.

    ``digest``: sha256, in hex, of every (item, unit, exact price) but those of `_LATER`; sources, dates and notes do not
    change it.
    """

    __slots__ = ("_prices", "digest")

    def __init__(self, prices: Sequence[Price]) -> None:
        """Keep `prices`; of two prices of one item the later one counts."""
        by_item = {price.item: price for price in prices}
        self._prices: Mapping[str, Price] = {item: by_item[item] for item in sorted(by_item)}
        lines = [(price.item, price.unit, str(Fraction(price.usd))) for price in self._prices.values()]
        named = [line for line in lines if line not in _LATER]
        self.digest = hashlib.sha256(json.dumps(named, separators=(",", ":")).encode()).hexdigest()

    @classmethod
    def load(cls, extra: Sequence[Path] = ()) -> PriceBook:
        """Return the shipped prices, then the user's files in order; the later price of an item wins.

        Raises MoneyError, in one line that names the file, for a file that cannot be read or a record that is wrong.
        """
        folder = resources.files("outlay.money") / "prices"
        shipped = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
        prices: dict[str, Price] = {}
        for name, found in _price_records(shipped, extra):
            for item, price in found.items():
                known = prices.get(item)
                if known and known.unit != price.unit:
                    raise MoneyError(
                        f"{name}: {item!r} is sold per {known.unit}, not per {price.unit};"
                        f" give the price per {known.unit} or name another item"
                    )
                prices[item] = price
        return cls(list(prices.values()))

    def items(self) -> tuple[Price, ...]:
        """Return all prices, sorted by item."""
        return tuple(self._prices.values())

    def get(self, item: str) -> Price:
        """Return the price of `item`. Raises UnknownItem with the nearest name and the list of known ones."""
        price = self._prices.get(item)
        if price is None:
            hint, known = did_you_mean(item, self._prices), ", ".join(self._prices) or "none"
            raise UnknownItem(f"no price for {item!r}{hint}; known: {known}; add it with a price file of your own")
        return price

    def label(self, item: str) -> Price:
        """Return the price of one label, nothing for those one owns. Raises UnknownItem as `get`, MoneyError as `Price.per`."""
        return OWNED_LABEL if item == OWNED_LABEL.item else self.get(item).per("label")

    def hour(self, item: str) -> Price:
        """Return the price of a machine's hour. Raises UnknownItem as `get`, MoneyError as `Price.per`."""
        return self.get(item).per("hour")

    def __contains__(self, item: object) -> bool:
        return item in self._prices


def read_price_file(path: Path) -> dict[str, Price]:
    """Return the prices of one file by item, each for the unit that it is kept in. Raises MoneyError, as `PriceBook.load`."""
    [(_, found)] = _price_records((), [path])
    return found


def _price_records(shipped: Iterable[Traversable], extra: Iterable[Path]) -> Iterator[tuple[str, dict[str, Price]]]:
    advice = "write one [[price]] table per item, with item, unit and usd"
    return load_records("price", shipped, extra, _price_of, advice=advice, parse_float=Decimal)


def _decimal_of(text: object) -> Decimal:
    unreadable = MoneyError(f"{_shown(text)} is not an amount of dollars; write it like 300, $300 or 1,000.50")
    if isinstance(text, str):
        stripped = text.strip()
        sign = "-" if stripped.startswith("-") else ""
        match = _AMOUNT.fullmatch(stripped.removeprefix("-"))
        if match is None or len(stripped) > 60:
            raise unreadable
        return Decimal(sign + match["digits"].replace(",", ""))
    if isinstance(text, bool) or not isinstance(text, int | float | Decimal):
        raise unreadable
    usd = Decimal(repr(text)) if isinstance(text, float) else Decimal(text)
    if not usd.is_finite():
        raise unreadable
    return usd


def _price_decimal(usd: object) -> Decimal:
    """Return the amount of a price file, which may have more decimals than an amount that is paid."""
    if isinstance(usd, str) and len(usd) <= _MAX_PRICE_LETTERS and (match := _SCIENTIFIC.fullmatch(usd.strip())):
        return Decimal(match["number"])
    return _decimal_of(usd)


def _shown(text: object) -> str:
    shown = repr(text) if isinstance(text, str) else str(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _price_of(where: str, record: object) -> tuple[str, Price]:
    if not isinstance(record, dict):
        raise MoneyError(f"{where} is {record!r}; write a [[price]] table with item, unit and usd")
    strange = sorted(set(record) - set(_PRICE_FIELDS))
    missing = [name for name in ("item", "unit", "usd") if name not in record]
    if strange or missing:
        what = f"does not know {strange[0]!r}" if strange else f"has no {missing[0]}"
        raise MoneyError(f"{where} {what}; a price has the fields {', '.join(_PRICE_FIELDS)}")
    for name in ("item", "unit", "source", "note"):
        if not isinstance(record.get(name, ""), str):
            raise MoneyError(f"{where}: {name} is {record[name]!r}; write it as text")
    checked = record.get("checked")
    if checked is not None and (not isinstance(checked, date) or isinstance(checked, datetime)):
        raise MoneyError(f"{where}: checked is {checked!r}; write a date like 2024-05-31")
    try:
        usd = _price_decimal(record["usd"])
        source = record.get("source", "your price file")
        as_written = Price(record["item"], record["unit"], usd, source, checked, record.get("note", ""))
        unit, per_unit = _per_unit(usd, record["unit"])
        return as_written.item, replace(as_written, unit=unit, usd=per_unit)
    except MoneyError as error:
        raise MoneyError(f"{where} ({record['item']!r}): {error}") from error
