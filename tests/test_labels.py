from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest

from outlay.errors import LabelError, OutlayError, SellerError
from outlay.labels import Annotator, Order, Replay
from outlay.money.amounts import Price
from tests.contracts.annotator_contract import (
    DeterministicContract,
    TestOrder,
    answers_of,
    collected,
    delivered,
    example,
    labels_of,
)
from tests.slow_seller import SlowSeller, slow_seller

__all__ = ["TestOrder"]  # the contract's own tests of orders run from here

LABELS = ("yes", "no", "perhaps")
PRICE = Price("label/x", "label", Decimal("0.129"), "here", None)


def gold(n: int) -> dict[str, str]:
    return {example(number).id: LABELS[number % 3] for number in range(n)}


def order(n: int) -> Order:
    return Order.of("order", [example(number) for number in range(n)])


class BilledReplay(Replay):
    """Replayed labels whose far side bills each order that it accepts."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.bills: dict[str, int] = {}

    def submit(self, order: Order) -> None:
        super().submit(order)
        self.bills[order.id] = self.price.cost_micros(collected(self, order).quantity)


def lines(n: int) -> dict[str, str]:
    """Free answers: five texts that come again and again, one of them empty, as a line without entities is."""
    return {example(number).id: ("", "mix [Action]", "a b", "c", "d e f")[number % 5] for number in range(n)}


class TestReplayKeepsTheContract(DeterministicContract):
    GOLD, LABELS = staticmethod(gold), LABELS
    SETTINGS: ClassVar[dict[str, Any]] = {}

    def make_seller(self) -> Annotator:
        return BilledReplay(self.GOLD(self.N_KNOWN), self.LABELS, PRICE, **self.SETTINGS)

    def billed_micros(self, seller: Annotator) -> int:
        assert isinstance(seller, BilledReplay)
        return sum(seller.bills.values())


class TestNoisyReplayKeepsTheContract(TestReplayKeepsTheContract):
    SETTINGS: ClassVar = {"error_rate": 0.3, "redundancy": 3, "seconds_per_label": 20.0, "seed": 7}


class TestOpenReplayKeepsTheContract(TestReplayKeepsTheContract):
    GOLD, LABELS = staticmethod(lines), ()


class TestNoisyOpenReplayKeepsTheContract(TestOpenReplayKeepsTheContract):
    SETTINGS: ClassVar = {"error_rate": 0.4, "redundancy": 3, "seed": 5}


class TestALateSellerKeepsTheContract(DeterministicContract):
    """Late, in parts and out of order; every seller of this class has a far side of its own."""

    @pytest.fixture(autouse=True)
    def _far_sides(self, tmp_path: Path) -> None:
        self.folders = (tmp_path / str(number) for number in count())

    def make_seller(self) -> Annotator:
        return slow_seller(next(self.folders))(gold(self.N_KNOWN), LABELS, PRICE)

    def billed_micros(self, seller: Annotator) -> int:
        assert isinstance(seller, SlowSeller)
        states = [json.loads(path.read_text()) for path in seller.far.glob("*.json")]
        return sum(seller.price.cost_micros(len(state["rows"])) for state in states)

    def test_it_is_late_and_delivers_in_parts_and_out_of_order(self) -> None:
        seller = self.make_seller()
        seller.submit(self.order(20))
        first, second = collected(seller, self.order(20)), collected(seller, self.order(20))
        assert first.waits_for
        assert not first.results
        assert second.waits_for
        rows = self.order(20).rows
        assert 0 < len(second.results) < 20
        assert {rows.index(each.row) for each in second.results} != set(range(len(second.results)))

    def test_an_order_is_found_again_by_a_seller_made_anew(self) -> None:
        seller = self.make_seller()
        seller.submit(self.order(20))
        collected(seller, self.order(20))
        assert isinstance(seller, SlowSeller)
        again = type(seller)(gold(self.N_KNOWN), LABELS, PRICE)
        assert collected(again, self.order(20)).waits_for
        assert delivered(again, self.order(20)).labels == delivered(self.make_seller(), self.order(20)).labels


def test_a_wrong_free_answer_is_the_gold_of_another_row() -> None:
    n, rate = 5_000, 0.3
    gold_lines = lines(n)
    answers = answers_of(delivered(Replay(gold_lines, (), PRICE, error_rate=rate, seed=2), order(n)), order(n))
    wrong = Counter(
        (gold_lines[example(number).id], given[0])
        for number, given in enumerate(answers)
        if given[0] != gold_lines[example(number).id]
    )
    assert abs(sum(wrong.values()) - n * rate) <= 4 * (n * rate * (1 - rate)) ** 0.5
    assert len(wrong) == 20  # every text is taken for every other one
    assert all(abs(count - n * rate / 20) < 5 * (n * rate / 20) ** 0.5 for count in wrong.values())
    small = answers_of(delivered(Replay(gold_lines, (), PRICE, error_rate=rate, seed=2), order(50)), order(50))
    assert small == answers[:50]


def test_the_majority_of_free_answers_is_mostly_the_gold() -> None:
    n, rate = 3_000, 0.3
    rows = {example(number).id: f"answer {number}" for number in range(n)}
    delivery = delivered(Replay(rows, (), PRICE, error_rate=rate, redundancy=3, seed=4), order(n))
    wrong = sum(label != f"answer {number}" for number, label in enumerate(labels_of(delivery, order(n)))) / n
    # Errors hardly ever agree, so the gold loses to the first answer only where that is wrong and at most one is right:
    # first wrong and not both others right, with ties going to the first.
    expected = rate * (1 - (1 - rate) ** 2)
    assert abs(wrong - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_without_errors_it_says_the_gold() -> None:
    delivery = delivered(Replay(gold(30), LABELS, PRICE, redundancy=5), order(30))
    assert labels_of(delivery, order(30)) == tuple(LABELS[number % 3] for number in range(30))
    answers = answers_of(delivery, order(30))
    assert all(each == (label,) * 5 for label, each in zip(labels_of(delivery, order(30)), answers, strict=True))


def test_the_price_is_per_answer_and_replayed_labels_cost_no_cash() -> None:
    seller = Replay(gold(30), LABELS, PRICE, redundancy=3, seconds_per_label=2.5)
    quote, delivery = seller.quote(order(10).examples), delivered(seller, order(10))
    assert (quote.quantity, quote.charge_micros, quote.cash_micros) == (30, 30 * 129_000, 0)
    assert (delivery.quantity, delivery.cash_micros) == (Fraction(30), 0)
    assert delivery.human_seconds == 75.0


@pytest.mark.parametrize("error_rate", [0.1, 0.5, 1.0])
def test_errors_come_at_their_rate_and_evenly(error_rate: float) -> None:
    n = 6_000
    answers = answers_of(delivered(Replay(gold(n), LABELS, PRICE, error_rate=error_rate, seed=3), order(n)), order(n))
    wrong = Counter(
        (LABELS[number % 3], given[0]) for number, given in enumerate(answers) if given[0] != LABELS[number % 3]
    )
    deviation = (n * error_rate * (1 - error_rate)) ** 0.5
    assert abs(sum(wrong.values()) - n * error_rate) <= 4 * deviation
    expected = n * error_rate / 6  # six ways to be wrong
    assert len(wrong) == 6
    assert all(abs(count - expected) < 5 * expected**0.5 for count in wrong.values())


def test_a_majority_makes_fewer_errors_as_binomial_arithmetic_says() -> None:
    n, rate, labels = 6_000, 0.2, ("yes", "no")
    binary = {example(number).id: labels[number % 2] for number in range(n)}
    delivery = delivered(Replay(binary, labels, PRICE, error_rate=rate, redundancy=3, seed=1), order(n))
    wrong = sum(label != labels[number % 2] for number, label in enumerate(labels_of(delivery, order(n))))
    expected = 3 * rate**2 * (1 - rate) + rate**3
    assert abs(wrong / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_answers_depend_on_seed_and_row_alone() -> None:
    def answers(seed: int, redundancy: int = 1, rows: int = 200) -> tuple[tuple[str, ...], ...]:
        seller = Replay(gold(rows), LABELS, PRICE, error_rate=0.5, redundancy=redundancy, seed=seed)
        return answers_of(delivered(seller, order(100)), order(100))

    assert answers(0) == answers(0, rows=150)
    assert answers(0) != answers(1)
    assert answers(0) == tuple(given[:1] for given in answers(0, redundancy=3))


def test_identity_names_all_that_decides_the_labels_and_nothing_else() -> None:
    def identity(rows: int = 9, price: Price = PRICE, **settings: float) -> Mapping[str, object]:
        return Replay(gold(rows), LABELS, price, **settings).identity()  # type: ignore[arg-type]

    other_price = Price("label/y", "label", Decimal("1"), "there", None)
    assert identity() == identity(price=other_price) == identity(seconds_per_label=3.0)
    different = [identity(rows=8), identity(seed=1), identity(error_rate=0.1), identity(redundancy=3)]
    assert all(one != identity() for one in different)


@pytest.mark.parametrize(
    ("rows", "labels", "settings", "error", "words"),
    [
        ({"row": "maybe"}, LABELS, {}, LabelError, r"\brow\b.*'maybe'.*'yes', 'no', 'perhaps'"),
        *(
            (gold(3), LABELS, {"error_rate": rate}, SellerError, f"rate is {rate}")
            for rate in (-0.1, 1.1, float("nan"))
        ),
        ({}, ["only"], {"error_rate": 0.1}, SellerError, r"rate is 0\.1 over 1 "),
        ({"a": "same", "b": "same"}, (), {"error_rate": 0.1}, SellerError, r"rate is 0\.1 over 1 "),
        *((gold(3), LABELS, {"redundancy": n}, SellerError, f"redundancy is {n}; .*odd") for n in (0, 2, -1)),
        *(
            (gold(3), LABELS, {"seconds_per_label": seconds}, SellerError, f"seconds .* {seconds}; give 0")
            for seconds in (-1.0, float("nan"), float("inf"))
        ),
    ],
)
def test_a_setting_outside_its_limits_is_refused(
    rows: dict[str, str], labels: Sequence[str], settings: dict[str, Any], error: type[OutlayError], words: str
) -> None:
    with pytest.raises(error, match=words):
        Replay(rows, labels, PRICE, **settings)


def test_a_label_is_the_most_frequent_answer_and_ties_go_to_the_first() -> None:
    delivery = delivered(Replay(lines(500), (), PRICE, error_rate=0.7, redundancy=5, seed=6), order(500))
    n_ties = 0
    given = answers_of(delivery, order(500))
    for label, answers in zip(labels_of(delivery, order(500)), given, strict=True):
        best = max(map(answers.count, answers))
        commonest = [answer for answer in dict.fromkeys(answers) if answers.count(answer) == best]
        assert label == commonest[0]
        n_ties += len(commonest) > 1
    assert n_ties > 50
