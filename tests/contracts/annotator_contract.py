"""What every seller of labels must keep: subclass `AnnotatorContract`, say how to make the seller, and run."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction

import pytest

from outlay.errors import OutlayError, SellerError, UnknownOrder
from outlay.labels import Annotator, Delivery, Order, Pending
from outlay.tasks.example import Example


def example(number: int, label: str | None = None) -> Example:
    """A row with made-up text and an id of its own."""
    text = f"message number {number}"
    row = hashlib.sha256(text.encode()).hexdigest()
    return Example(id=row, fields=(("text", text),), text=text, label=label, origin=f"made:{number}")


MOST_COLLECTS = 200
"""Collects until an order must be delivered whole: a seller in a test makes nobody wait for ever."""


def delivered(seller: Annotator, order: Order) -> Delivery:
    """Submit an order and collect until it is there whole, checking what comes in between."""
    seller.submit(order)
    before: dict[str, str] = {}
    cash, seconds = 0, 0.0
    for _ in range(MOST_COLLECTS):
        got = seller.collect(order)
        if isinstance(got, Delivery):
            assert got.rows == order.rows
        else:
            assert got.order_id == order.id
            assert got.waits_for
            assert "\n" not in got.waits_for
        so_far = got.so_far if isinstance(got, Pending) else got
        if so_far is not None:
            # What came before is in what comes later, and nothing is taken back.
            known = dict(zip(so_far.rows, so_far.labels, strict=True))
            assert set(known) <= set(order.rows)
            assert known.items() >= before.items()
            assert so_far.cash_micros >= cash
            assert so_far.human_seconds >= seconds
            before, cash, seconds = known, so_far.cash_micros, so_far.human_seconds
        if isinstance(got, Delivery):
            return got
    raise AssertionError(f"not delivered after {MOST_COLLECTS} collects")


class AnnotatorContract:
    """Make `Test…` a subclass of this and define `make_seller` and `billed_micros`."""

    N_KNOWN = 40
    """`example(0)` to `example(N_KNOWN - 1)` are rows that the seller can label."""

    def make_seller(self) -> Annotator:
        """A fresh seller at a fresh far side; two of them must agree on every label."""
        raise NotImplementedError

    def billed_micros(self, seller: Annotator) -> int:
        """What the far side has billed so far, by its own books and not by the deliveries."""
        raise NotImplementedError

    def order(self, n: int, order_id: str = "order", start: int = 0) -> Order:
        return Order.of(order_id, [example(number) for number in range(start, start + n)])

    def test_it_is_an_annotator(self) -> None:
        assert isinstance(self.make_seller(), Annotator)

    def test_quotes_grow_with_the_rows_and_nothing_is_free_to_ask_below_zero(self) -> None:
        seller = self.make_seller()
        quotes = [seller.quote(n) for n in (0, 1, 7, 40)]
        assert (quotes[0].quantity, quotes[0].charge_micros, quotes[0].cash_micros) == (0, 0, 0)
        assert [quote.charge_micros for quote in quotes] == sorted({quote.charge_micros for quote in quotes})
        with pytest.raises(SellerError):
            seller.quote(-1)

    @pytest.mark.parametrize("n", [0, 1, 13])
    def test_a_delivery_has_one_valid_label_per_row_and_keeps_within_its_quote(self, n: int) -> None:
        seller = self.make_seller()
        quote = seller.quote(n)
        delivery = delivered(seller, self.order(n))
        assert delivery.order_id == "order"
        assert len(delivery.labels) == len(delivery.answers) == n
        assert all(isinstance(label, str) for label in delivery.labels)
        assert not seller.labels or set(delivery.labels) <= set(seller.labels)
        assert all(label in answers for label, answers in zip(delivery.labels, delivery.answers, strict=True))
        assert 0 <= delivery.quantity <= quote.quantity
        assert 0 <= delivery.charge_micros <= quote.charge_micros
        assert 0 <= delivery.cash_micros <= quote.cash_micros
        assert isinstance(delivery.quantity, Fraction)
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
        assert seller.collect(self.order(5)) == first
        assert self.billed_micros(seller) == billed > 0

    def test_an_order_that_was_never_submitted_is_unknown_and_not_billed(self) -> None:
        seller = self.make_seller()
        with pytest.raises(UnknownOrder):
            seller.collect(self.order(5))
        delivered(seller, self.order(3, "another"))
        billed = self.billed_micros(seller)
        with pytest.raises(UnknownOrder):
            seller.collect(self.order(5))
        assert self.billed_micros(seller) == billed

    def test_orders_are_kept_apart_however_they_are_collected(self) -> None:
        seller = self.make_seller()
        orders = [self.order(7, f"order {i}", start=7 * i) for i in range(4)]
        for order in orders:
            seller.submit(order)
        back = [delivered(seller, order).labels for order in reversed(orders)][::-1]
        assert back == [delivered(self.make_seller(), order).labels for order in orders]

    def test_a_known_order_id_on_other_rows_is_refused(self) -> None:
        seller = self.make_seller()
        delivered(seller, self.order(5))
        billed = self.billed_micros(seller)
        with pytest.raises(SellerError):
            seller.submit(self.order(6))
        assert self.billed_micros(seller) == billed

    def test_a_fresh_seller_says_the_same_in_the_order_of_the_order(self) -> None:
        forth = delivered(self.make_seller(), self.order(20))
        rows = tuple(reversed(self.order(20).examples))
        back = delivered(self.make_seller(), Order("back", rows))
        assert forth.labels == tuple(reversed(back.labels))

    def test_growing_an_order_keeps_what_was_said(self) -> None:
        seller = self.make_seller()
        assert delivered(seller, self.order(20, "large")).labels[:8] == delivered(seller, self.order(8, "small")).labels

    def test_its_identity_is_plain_json_and_does_not_change_by_selling(self) -> None:
        seller = self.make_seller()
        before = json.dumps(seller.identity(), sort_keys=True, allow_nan=False)
        assert before != "{}"
        delivered(seller, self.order(3))
        assert json.dumps(seller.identity(), sort_keys=True) == before
        assert json.dumps(self.make_seller().identity(), sort_keys=True) == before

    def test_a_row_it_cannot_label_is_refused_and_not_billed(self) -> None:
        seller = self.make_seller()
        rows = (example(0), example(self.N_KNOWN + 1_000))
        with pytest.raises(SellerError) as refused:
            seller.submit(Order.of("order", rows))
        assert isinstance(refused.value, OutlayError)
        assert "\n" not in str(refused.value)
        assert self.billed_micros(seller) == 0
        with pytest.raises(UnknownOrder):
            seller.collect(Order.of("order", rows))


class TestOrder:
    def test_a_seller_never_sees_a_label(self) -> None:
        with pytest.raises(SellerError, match="shows its label"):
            Order("order", (example(0), example(1, label="yes")))
        assert Order.of("order", [example(1, label="yes")]).examples[0].label is None

    def test_a_row_is_ordered_once(self) -> None:
        with pytest.raises(SellerError, match="twice"):
            Order.of("order", [example(1), example(2), example(1)])
