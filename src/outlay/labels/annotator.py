"""The protocol of sellers of labels: costs, order, delivery. Sellers see orders, prices and an allowance, never the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol, runtime_checkable

from outlay.errors import SellerError
from outlay.labels.allowance import Allowance
from outlay.money.amounts import Price, Quote
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
class Answer:
    """One answer to one row, as it was given.

    `by`: an annotator's name or a model; `label`: what the text was read as, ``None`` where it is no answer of the task;
    `seconds`: time that it took; `confidence`: 0 to 1, ``None`` where there is none; `probabilities`: one per label of the set,
    in its order, empty where there are none.
    """

    row: str
    by: str
    text: str
    label: str | None
    seconds: float = 0.0
    confidence: float | None = None
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class RowResult:
    """What a row got: a label, or a refusal with its reason; with neither it is pending.

    `quantity`: everything billed for the row so far, in the unit of the seller's price, with answers that were lost or no use.
    """

    row: str
    label: str | None
    refused: str | None = None
    quantity: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        if self.label is not None and self.refused is not None:
            raise SellerError(
                f"row {self.row} is labelled {self.label!r} and refused ({self.refused}); deliver one of the two"
            )


@dataclass(frozen=True, slots=True)
class Delivery:
    """State of one order; a later delivery has all that an earlier one had.

    `results`: the rows that got something so far, in any order. `cash_micros`: cash paid for the order so far. `human_seconds`:
    working time of the people who answered. `waits_for` says in one line what is missing, "2 of 3 people have answered"; ``None``
    where nothing more will come: a row that got nothing then was not bought, since the allowance did not reach.
    """

    order_id: str
    results: tuple[RowResult, ...]
    answers: tuple[Answer, ...] = ()
    cash_micros: int = 0
    human_seconds: float = 0.0
    waits_for: str | None = None

    @property
    def labels(self) -> dict[str, str]:
        """Labels by row."""
        return {result.row: result.label for result in self.results if result.label is not None}

    @property
    def refused(self) -> dict[str, str]:
        """Reasons by refused row."""
        return {result.row: result.refused for result in self.results if result.refused is not None}

    @property
    def quantity(self) -> Fraction:
        """Billed quantity, in the unit of the seller's price."""
        return sum((result.quantity for result in self.results), Fraction(0))


@dataclass(frozen=True, slots=True)
class RowCost:
    """Billed quantity of one row, in the unit of the seller's price: the one expected, and the most it can be."""

    expected: Fraction
    most: Fraction


def no_report(n_rows: int) -> None:
    """Ignore the number of rows that have something."""


@runtime_checkable
class Annotator(Protocol):
    """A seller of labels.

    `submit` sends an order and returns; `collect` returns its state, any number of times, from any process that builds the seller
    anew: an order is found by its id. An order is billed once. A label is a text: one of a set, a line of entities, or any other
    answer of the task.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set: every delivered label is one of these; empty where any text is an answer."""

    @property
    def price(self) -> Price:
        """Price of one unit of what is billed."""

    @property
    def order_rows(self) -> int | None:
        """Maximum number of rows of an order; ``None``: a purchase is one order."""

    @property
    def is_deterministic(self) -> bool:
        """True where answers are a function of the row: they cost what was quoted, and can be had again, so no log keeps them."""

    def costs(self, examples: Sequence[Example]) -> Sequence[RowCost]:
        """Return what each row is expected to cost and costs at most."""

    def quote(self, examples: Sequence[Example]) -> Quote:
        """Return the upper bound of charge and cash for some rows."""

    def identity(self) -> Mapping[str, object]:
        """Return the parameters that decide the labels, as plain JSON values: a part of the key of their artifact."""

    def submit(self, order: Order) -> None:
        """Accept the order; a second call changes nothing. Raises SellerError for other rows under a known id, and for rows
        that cannot be labelled: such an order is not accepted."""

    def collect(self, order: Order, allowance: Allowance, report: Callable[[int], None] = no_report) -> Delivery:
        """Return the state of an order.

        ``allowance`` bounds what the order costs, with what it has cost already: a seller that is paid as it answers takes from
        it what earlier calls have spent on the order, and then what each further answer may cost, before it is asked for.
        ``report`` is told how many rows have a label or a refusal, where that takes a while. Raises UnknownOrder for an order
        that was never accepted, SellerError for one that cannot be delivered, LabelError for a label outside the set.
        """
