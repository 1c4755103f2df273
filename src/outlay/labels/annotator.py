"""Sellers of labels: quote, take an order, hand out what is ready. Sellers see orders and prices, never the ledger."""

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

    @property
    def rows(self) -> tuple[str, ...]:
        """Ids of its rows, in its order."""
        return tuple(example.id for example in self.examples)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Labels delivered for one order.

    `rows` are the ids of the rows that are labelled: all of the order, in its order, in a whole delivery; `labels` has one
    label per row, `answers` the single answers that each of them was made of. `quantity` is what is billed, in the unit of
    the seller's price, `charge_micros` that at the price, and `cash_micros` what left the bank for it. `human_seconds` is
    the working time of the people who answered.
    """

    order_id: str
    rows: tuple[str, ...]
    labels: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    quantity: Fraction
    charge_micros: int
    cash_micros: int
    human_seconds: float


@dataclass(frozen=True, slots=True)
class Pending:
    """An order that is not delivered whole yet: `waits_for` says what is missing ("2 of 3 people have answered").

    `so_far` is all that came of it until now, of any of its rows; a later one holds it too, so that nothing is lost where
    it was collected and not kept.
    """

    order_id: str
    waits_for: str
    so_far: Delivery | None = None


@runtime_checkable
class Annotator(Protocol):
    """A seller of labels.

    `submit` sends an order and returns; `collect` asks what came of it, at once, as often as one likes, from any process
    that makes the seller anew: an order is found again by its id. An order is billed once, whatever is asked how often.
    Raises SellerError where it cannot deliver, LabelError for a label outside the set. A label is a text: one of a set, a
    line of entities, or whatever the task asks for.
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

    def submit(self, order: Order) -> None:
        """Take the order; a second time changes nothing. Raises SellerError for other rows under a known id, and for rows
        that cannot be labelled: such an order is not taken."""
        ...

    def collect(self, order: Order) -> Delivery | Pending:
        """Return the whole delivery, or what is missing. Raises UnknownOrder for an order that was never taken."""
        ...


def majority(answers: Sequence[str]) -> str:
    """The most frequent answer; of several equally frequent ones, the one that was given first.

    Raises SellerError without any answer.
    """
    if not answers:
        raise SellerError("a majority of 0 answers was asked for; collect at least 1")
    return Counter(answers).most_common(1)[0][0]  # insertion order breaks ties: the first answer given
