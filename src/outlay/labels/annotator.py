"""What every seller of labels promises: quote, then deliver. Sellers see orders and prices, never the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol, runtime_checkable

from outlay.errors import SellerError
from outlay.money.amounts import Quote
from outlay.tasks.example import Example


@dataclass(frozen=True, slots=True)
class Order:
    """Rows to be labelled, under an id that is theirs for ever. A seller never sees a label: rows that carry one are
    refused (SellerError); `Order.of` takes the labels off.
    """

    id: str
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        shown = [example.id for example in self.examples if example.label is not None]
        if shown:
            raise SellerError(f"row {shown[0]} of order {self.id!r} shows its label to the seller; use Order.of")
        twice = [row for row, count in Counter(example.id for example in self.examples).items() if count > 1]
        if twice:
            raise SellerError(f"row {twice[0]} is in order {self.id!r} twice; order every row once")

    @classmethod
    def of(cls, order_id: str, examples: Sequence[Example]) -> Order:
        """The order of `examples` without their labels."""
        return cls(order_id, tuple(replace(example, label=None) for example in examples))


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a seller delivered for one order.

    `labels` has one label per row, in the order's order; `answers` the single answers that each of them was made of.
    `quantity` is what is billed, in the unit of the seller's price, `charge_micros` that at the price, and
    `cash_micros` what left the bank this time. `human_seconds` is the working time of the people who answered.
    """

    order_id: str
    labels: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    quantity: Fraction
    charge_micros: int
    cash_micros: int
    human_seconds: float


@runtime_checkable
class Annotator(Protocol):
    """A seller of labels.

    `deliver` is idempotent by order id: the same order again gives the same delivery and is billed once; other rows
    under a known id are refused. Raises SellerError where it cannot deliver, LabelError for a label outside the set.
    A label is a text: one of a set, a line of entities, or whatever the task asks for.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set: every delivered label is one of these; empty where any text is an answer."""
        ...

    def quote(self, n: int) -> Quote:
        """The upper bound of charge and cash for `n` rows. Raises SellerError for a negative number."""
        ...

    def identity(self) -> Mapping[str, object]:
        """What decides the labels, as plain JSON values: a part of the key under which they are kept."""
        ...

    def deliver(self, order: Order) -> Delivery:
        """Label every row of the order, or raise."""
        ...


def majority(answers: Sequence[str]) -> str:
    """The most frequent answer; of several equally frequent ones, the one that was given first.

    Raises SellerError without any answer.
    """
    if not answers:
        raise SellerError("a majority of 0 answers was asked for; collect at least 1")
    return Counter(answers).most_common(1)[0][0]  # insertion order breaks ties: the first answer given
