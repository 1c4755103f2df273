"""What every seller of labels must keep: subclass `AnnotatorContract`, say how to make the seller, and run."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction

import pytest

from outlay.errors import OutlayError, SellerError
from outlay.labels import Annotator, Order
from outlay.tasks.example import Example


def example(number: int, label: str | None = None) -> Example:
    """A row with made-up text and an id of its own."""
    text = f"message number {number}"
    row = hashlib.sha256(text.encode()).hexdigest()
    return Example(id=row, fields=(("text", text),), text=text, label=label, origin=f"made:{number}")


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
        delivery = seller.deliver(self.order(n))
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
        first = seller.deliver(self.order(5))
        billed = self.billed_micros(seller)
        assert billed > 0
        assert seller.deliver(self.order(5)) == first
        assert self.billed_micros(seller) == billed
        seller.deliver(self.order(5, "another order", start=5))
        assert self.billed_micros(seller) > billed

    def test_a_known_order_id_on_other_rows_is_refused(self) -> None:
        seller = self.make_seller()
        seller.deliver(self.order(5))
        billed = self.billed_micros(seller)
        with pytest.raises(SellerError):
            seller.deliver(self.order(6))
        assert self.billed_micros(seller) == billed

    def test_a_fresh_seller_says_the_same_in_the_order_of_the_order(self) -> None:
        forth = self.make_seller().deliver(self.order(20))
        rows = tuple(reversed(self.order(20).examples))
        back = self.make_seller().deliver(Order("back", rows))
        assert forth.labels == tuple(reversed(back.labels))

    def test_growing_an_order_keeps_what_was_said(self) -> None:
        seller = self.make_seller()
        assert seller.deliver(self.order(20, "large")).labels[:8] == seller.deliver(self.order(8, "small")).labels

    def test_its_identity_is_plain_json_and_does_not_change_by_selling(self) -> None:
        seller = self.make_seller()
        before = json.dumps(seller.identity(), sort_keys=True, allow_nan=False)
        assert before != "{}"
        seller.deliver(self.order(3))
        assert json.dumps(seller.identity(), sort_keys=True) == before
        assert json.dumps(self.make_seller().identity(), sort_keys=True) == before

    def test_a_row_it_cannot_label_is_refused_and_not_billed(self) -> None:
        seller = self.make_seller()
        rows = (example(0), example(self.N_KNOWN + 1_000))
        with pytest.raises(SellerError) as refused:
            seller.deliver(Order.of("order", rows))
        assert isinstance(refused.value, OutlayError)
        assert "\n" not in str(refused.value)
        assert self.billed_micros(seller) == 0


class TestOrder:
    def test_a_seller_never_sees_a_label(self) -> None:
        with pytest.raises(SellerError, match="shows its label"):
            Order("order", (example(0), example(1, label="yes")))
        assert Order.of("order", [example(1, label="yes")]).examples[0].label is None

    def test_a_row_is_ordered_once(self) -> None:
        with pytest.raises(SellerError, match="twice"):
            Order.of("order", [example(1), example(2), example(1)])
