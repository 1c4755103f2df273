"""The protocol of sellers of labels: quote, order, delivery. Sellers see orders and prices, never the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol, runtime_checkable

from outlay.errors import SellerError
from outlay.money.amounts import Quote
from outlay.tasks.example import Example
from outlay.text.legible import repeats


@dataclass(frozen=True, slots=True)
class Order:
    """Rows to be labelled, under an id that never stands for other rows.

    A seller never sees a label: rows with one are refused (SellerError); `Order.of` removes the labels.
    """

    id: str
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        shown = [example.id for example in self.examples if example.label is not None]
        if shown:
            raise SellerError(f"row {shown[0]} of order {self.id!r} shows its label to the seller; use Order.of")
        if twice := repeats(self.rows):
            raise SellerError(f"row {twice[0]} is in order {self.id!r} twice; order every row once")

    @classmethod
    def of(cls, order_id: str, examples: Sequence[Example]) -> Order:
        """Return the order of `examples` without their labels."""
        return cls(order_id, tuple(replace(example, label=None) for example in examples))

    @property
    def rows(self) -> tuple[str, ...]:
        """Ids of the rows, in order."""
        return tuple(example.id for example in self.examples)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Labels delivered for one order.

    `rows` are the ids of the labelled rows: all rows of the order, in order, in a whole delivery; `labels` has one label per
    row, `answers` the single answers behind each label. `quantity` is the billed quantity in the unit of the seller's price,
    `charge_micros` its charge at that price, and `cash_micros` the cash paid for it. `human_seconds` is the working time of
    the people who answered.
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
    """An order that is not delivered in full: `waits_for` says what is missing ("2 of 3 people have answered").

    `so_far` is everything delivered until now, for any rows of the order; a later delivery contains it too, so that
    nothing is lost where it was collected and not logged.
    """

    order_id: str
    waits_for: str
    so_far: Delivery | None = None


@runtime_checkable
class Annotator(Protocol):
    """A seller of labels.

    `submit` sends an order and returns; `collect` returns the labels so far at once, any number of times, from any process
    that builds the seller anew: an order is found by its id. An order is billed once. Raises SellerError for an order that
    cannot be delivered, LabelError for a label outside the set. A label is a text: one of a set, a line of entities, or
    any other answer of the task.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set: every delivered label is one of these; empty where any text is an answer."""

    def quote(self, n: int) -> Quote:
        """Return the upper bound of charge and cash for `n` rows. Raises SellerError for a negative number."""

    def identity(self) -> Mapping[str, object]:
        """Return the parameters that decide the labels, as plain JSON values: a part of the key of their artifact."""

    def submit(self, order: Order) -> None:
        """Accept the order; a second call changes nothing. Raises SellerError for other rows under a known id, and for rows
        that cannot be labelled: such an order is not accepted."""

    def collect(self, order: Order) -> Delivery | Pending:
        """Return the whole delivery, or a pending order. Raises UnknownOrder for an order that was never accepted."""
