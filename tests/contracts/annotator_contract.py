"""What every seller of labels must keep: subclass `AnnotatorContract`, say how to make the seller, and run."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction

import pytest

from outlay.errors import OutlayError, SellerError, UnknownOrder
from outlay.labels import Allowance, Annotator, Delivery, Order, RowResult
from outlay.tasks.example import Example


def example(number: int, label: str | None = None) -> Example:
    """A row with made-up text and an id of its own."""
    text = f"message number {number}"
    row = hashlib.sha256(text.encode()).hexdigest()
    return Example(id=row, fields=(("text", text),), text=text, label=label, origin=f"made:{number}")


MOST_COLLECTS = 200
"""Collects until an order must be delivered whole: a seller in a test makes nobody wait for ever."""


WEALTH = 10**9
"""Micro-dollars of an allowance that no order of the contract uses up."""


def collected(seller: Annotator, order: Order) -> Delivery:
    """The state of an order, with money for all of it."""
    return seller.collect(order, Allowance.of_micros(WEALTH))


def delivered(seller: Annotator, order: Order) -> Delivery:
    """Submit an order and collect until nothing more will come, checking what comes in between."""
    seller.submit(order)
    before: dict[str, RowResult] = {}
    cash, seconds = 0, 0.0
    for _ in range(MOST_COLLECTS):
        got = collected(seller, order)
        assert got.order_id == order.id
        known = {result.row: result for result in got.results}
        assert len(known) == len(got.results)
        assert set(known) <= set(order.rows)
        assert {answer.row for answer in got.answers} <= set(order.rows)
        # What came before is in what comes later, and nothing is taken back.
        for row, result in before.items():
            assert known[row].quantity >= result.quantity
            assert result.label in (None, known[row].label)
            assert result.refused in (None, known[row].refused)
        assert got.cash_micros >= cash
        assert got.human_seconds >= seconds
        before, cash, seconds = known, got.cash_micros, got.human_seconds
        if got.waits_for is None:
            return got
        assert got.waits_for
        assert "\n" not in got.waits_for
    raise AssertionError(f"not delivered after {MOST_COLLECTS} collects")


def labels_of(delivery: Delivery, order: Order) -> tuple[str, ...]:
    """The labels of an order that was labelled whole, in its order."""
    return tuple(delivery.labels[row] for row in order.rows)


def answers_of(delivery: Delivery, order: Order) -> tuple[tuple[str, ...], ...]:
    """The texts of the answers to each row, in the order of the order."""
    return tuple(tuple(each.text for each in delivery.answers if each.row == row) for row in order.rows)


class AnnotatorContract:
    """What every seller keeps. Make `Test…` a subclass of this and define `make_seller` and `billed_micros`."""

    N_KNOWN = 40
    """`example(0)` to `example(N_KNOWN - 1)` are rows that the seller can label."""

    def make_seller(self) -> Annotator:
        """A fresh seller at a fresh far side."""
        raise NotImplementedError

    def billed_micros(self, seller: Annotator) -> int:
        """What the far side has billed so far, by its own books and not by the deliveries."""
        raise NotImplementedError

    def order(self, n: int, order_id: str = "order", start: int = 0) -> Order:
        return Order.of(order_id, [example(number) for number in range(start, start + n)])

    def test_it_is_an_annotator(self) -> None:
        assert isinstance(self.make_seller(), Annotator)

    def test_quotes_grow_with_the_rows_and_bound_what_is_expected(self) -> None:
        seller = self.make_seller()
        quotes = [seller.quote(self.order(n).examples) for n in (0, 1, 7, 40)]
        assert (quotes[0].quantity, quotes[0].charge_micros, quotes[0].cash_micros) == (0, 0, 0)
        assert [quote.charge_micros for quote in quotes] == sorted({quote.charge_micros for quote in quotes})
        costs = seller.costs(self.order(7).examples)
        assert len(costs) == 7
        assert all(0 <= cost.expected <= cost.most for cost in costs)
        assert sum((cost.most for cost in costs), Fraction(0)) == quotes[2].quantity
        assert seller.price.cost_micros(quotes[2].quantity) == quotes[2].charge_micros

    @pytest.mark.parametrize("n", [0, 1, 13])
    def test_a_delivery_labels_or_refuses_every_row_and_keeps_within_its_quote(self, n: int) -> None:
        seller, order = self.make_seller(), self.order(n)
        quote = seller.quote(order.examples)
        delivery = delivered(seller, order)
        assert {*delivery.labels, *delivery.refused} == set(order.rows)
        assert all(why and "\n" not in why for why in delivery.refused.values())
        assert not seller.labels or set(delivery.labels.values()) <= set(seller.labels)
        answered = {(answer.row, answer.label) for answer in delivery.answers}
        assert answered >= set(delivery.labels.items())
        for answer in delivery.answers:
            assert answer.by
            assert answer.confidence is None or 0 <= answer.confidence <= 1
            assert len(answer.probabilities) in (0, len(seller.labels))
            assert not answer.probabilities or abs(sum(answer.probabilities) - 1) < 1e-6
        assert 0 <= delivery.quantity <= quote.quantity
        assert 0 <= delivery.cash_micros <= quote.cash_micros
        assert all(isinstance(result.quantity, Fraction) for result in delivery.results)
        assert delivery.human_seconds >= 0

    def test_an_order_delivered_twice_is_billed_once(self) -> None:
        seller = self.make_seller()
        first = delivered(seller, self.order(5))
        billed = self.billed_micros(seller)
        assert billed > 0
        assert delivered(seller, self.order(5)) == first
        assert self.billed_micros(seller) == billed
        delivered(seller, self.order(5, "another order", start=5))
        assert self.billed_micros(seller) > billed

    def test_an_order_submitted_twice_is_billed_once(self) -> None:
        seller = self.make_seller()
        for _ in range(2):
            seller.submit(self.order(5))
        first = delivered(seller, self.order(5))
        billed = self.billed_micros(seller)
        seller.submit(self.order(5))
        assert collected(seller, self.order(5)) == first
        assert self.billed_micros(seller) == billed > 0

    def test_an_order_that_was_never_submitted_is_unknown_and_not_billed(self) -> None:
        seller = self.make_seller()
        with pytest.raises(UnknownOrder):
            collected(seller, self.order(5))
        delivered(seller, self.order(3, "another"))
        billed = self.billed_micros(seller)
        with pytest.raises(UnknownOrder):
            collected(seller, self.order(5))
        assert self.billed_micros(seller) == billed

    def test_orders_are_kept_apart_however_they_are_collected(self) -> None:
        seller = self.make_seller()
        orders = [self.order(7, f"order {i}", start=7 * i) for i in range(4)]
        for order in orders:
            seller.submit(order)
        for order in reversed(orders):
            got = delivered(seller, order)
            assert {*got.labels, *got.refused} == set(order.rows)

    def test_a_known_order_id_on_other_rows_is_refused(self) -> None:
        seller = self.make_seller()
        delivered(seller, self.order(5))
        billed = self.billed_micros(seller)
        with pytest.raises(SellerError):
            seller.submit(self.order(6))
        assert self.billed_micros(seller) == billed

    def test_its_identity_is_plain_json_and_does_not_change_by_selling(self) -> None:
        seller = self.make_seller()
        before = json.dumps(seller.identity(), sort_keys=True, allow_nan=False)
        assert before != "{}"
        delivered(seller, self.order(3))
        assert json.dumps(seller.identity(), sort_keys=True) == before
        assert json.dumps(self.make_seller().identity(), sort_keys=True) == before


class DeterministicContract(AnnotatorContract):
    """What a seller keeps beside whose answers are a function of the row: two fresh ones agree on every label."""

    def test_it_says_so_and_costs_what_was_quoted(self) -> None:
        seller, order = self.make_seller(), self.order(13)
        assert seller.is_deterministic
        assert all(cost.expected == cost.most for cost in seller.costs(order.examples))
        delivery = delivered(seller, order)
        assert delivery.quantity == seller.quote(order.examples).quantity
        assert not delivery.refused

    def test_orders_are_answered_alike_however_they_are_collected(self) -> None:
        seller = self.make_seller()
        orders = [self.order(7, f"order {i}", start=7 * i) for i in range(4)]
        for order in orders:
            seller.submit(order)
        back = [labels_of(delivered(seller, order), order) for order in reversed(orders)][::-1]
        assert back == [labels_of(delivered(self.make_seller(), order), order) for order in orders]

    def test_a_fresh_seller_says_the_same_in_any_order(self) -> None:
        forth = delivered(self.make_seller(), self.order(20))
        rows = tuple(reversed(self.order(20).examples))
        assert forth.labels == delivered(self.make_seller(), Order("back", rows)).labels

    def test_growing_an_order_keeps_what_was_said(self) -> None:
        seller, large, small = self.make_seller(), self.order(20, "large"), self.order(8, "small")
        assert labels_of(delivered(seller, large), large)[:8] == labels_of(delivered(seller, small), small)

    def test_a_row_it_cannot_label_is_refused_and_not_billed(self) -> None:
        seller = self.make_seller()
        rows = (example(0), example(self.N_KNOWN + 1_000))
        with pytest.raises(SellerError) as refused:
            seller.submit(Order.of("order", rows))
        assert isinstance(refused.value, OutlayError)
        assert "\n" not in str(refused.value)
        assert self.billed_micros(seller) == 0
        with pytest.raises(UnknownOrder):
            collected(seller, Order.of("order", rows))


class TestOrder:
    def test_a_seller_never_sees_a_label(self) -> None:
        with pytest.raises(SellerError, match="shows its label"):
            Order("order", (example(0), example(1, label="yes")))
        assert Order.of("order", [example(1, label="yes")]).examples[0].label is None

    def test_a_row_is_ordered_once(self) -> None:
        with pytest.raises(SellerError, match="twice"):
            Order.of("order", [example(1), example(2), example(1)])
