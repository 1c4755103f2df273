"""A seller that replays gold labels at a price, as Kang et al. 2023 (section 2.4) simulate annotation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from statistics import mode

from outlay.errors import LabelError, SellerError, UnknownOrder
from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Answer, Delivery, Order, RowCost, RowResult, no_report
from outlay.money.amounts import Price, Quote
from outlay.tasks.example import Example
from outlay.text.legible import label_problem

ORDER_ROWS = 100
"""Rows per order: the most that must be collected again after a crash between delivery and booking."""


@dataclass(eq=False)
class Replay:
    """A seller of the labels of `gold` (row id → label) at `price` per answer; without `labels` any text is an answer.

    Every row gets `redundancy` answers, an odd number, and their majority. An answer is wrong with probability
    `error_rate`, and then any other label, all equally likely; where any text is an answer, the differing gold answer of
    another row, all such rows about equally likely. Answers are a pure function of the seed and the row (and of the gold
    answers, where a wrong one is taken from them), so a larger order repeats the answers of a smaller one.
    `seconds_per_label` of human time is reported per answer, not slept.
    A replayed label is charged, but costs no cash.

    Raises LabelError for a gold label outside `labels`, SellerError for a setting outside its limits.
    """

    gold: Mapping[str, str]
    labels: tuple[str, ...]
    price: Price
    _: KW_ONLY
    error_rate: float = 0.0
    redundancy: int = 1
    seconds_per_label: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for row, label in self.gold.items():
            if self.labels and label not in self.labels:
                raise LabelError(f"row {row} {label_problem(label, self.labels)}")
        n_answers = len(set(self.labels or self.gold.values()))
        if not 0 <= self.error_rate <= 1 or (self.error_rate > 0 and n_answers < 2):
            raise SellerError(
                f"the error rate is {self.error_rate} over {n_answers} different answers; "
                "give 0 to 1, and 0 for fewer than 2"
            )
        if self.redundancy < 1 or self.redundancy % 2 == 0:
            raise SellerError(f"the redundancy is {self.redundancy}; give an odd number of answers per row")
        if not 0 <= self.seconds_per_label < float("inf"):
            raise SellerError(f"the seconds per label are {self.seconds_per_label}; give 0 or more")
        self.labels = tuple(dict.fromkeys(self.labels))
        self._rows = [] if self.labels else sorted(self.gold)
        self._sold: dict[str, tuple[Order, Delivery]] = {}

    @property
    def order_rows(self) -> int:
        """Maximum number of rows of an order: the most that must be collected again after a crash."""
        return ORDER_ROWS

    @property
    def is_deterministic(self) -> bool:
        """True: answers are drawn by the row and the seed."""
        return True

    def costs(self, examples: Sequence[Example]) -> Sequence[RowCost]:
        """Return the answers of each row: as many as the redundancy, expected and at most."""
        return [RowCost(Fraction(self.redundancy), Fraction(self.redundancy))] * len(examples)

    def quote(self, examples: Sequence[Example]) -> Quote:
        """Quote rows at `redundancy` answers each: a charge, but no cash."""
        return Quote.of(self.price, len(examples) * self.redundancy, cash_micros=0)

    def identity(self) -> Mapping[str, object]:
        """Return the parameters that decide the labels; the price and the human seconds do not."""
        gold = json.dumps(sorted(self.gold.items()), ensure_ascii=True, separators=(",", ":"))
        return {
            "seller": "replay",
            "version": 1,
            "gold": hashlib.sha256(gold.encode("ascii")).hexdigest(),
            "labels": list(self.labels),
            "error_rate": repr(float(self.error_rate)),
            "redundancy": self.redundancy,
            "seed": self.seed,
        }

    def collect(self, order: Order, allowance: Allowance, report: Callable[[int], None] = no_report) -> Delivery:
        """Return the delivery of an accepted order; replayed labels are never pending. Raises UnknownOrder."""
        if order.id not in self._sold:
            raise UnknownOrder(f"order {order.id!r} was never submitted; submit it first")
        return self._sold[order.id][1]

    def submit(self, order: Order) -> None:
        """Accept an order. Raises SellerError for an unknown row, or a known order id on other rows."""
        if order.id in self._sold:
            if self._sold[order.id][0] != order:
                raise SellerError(f"order {order.id!r} was taken for other rows; give the new rows a new order id")
            return
        for row in order.rows:
            if row not in self.gold:
                raise SellerError(f"row {row} of order {order.id!r} has no gold label to replay; leave it out")
        given = {row: [self._answer(row, i) for i in range(self.redundancy)] for row in order.rows}
        # The mode is the first one among equally frequent answers.
        results = tuple(RowResult(row, mode(each), quantity=Fraction(self.redundancy)) for row, each in given.items())
        answers = tuple(
            Answer(row, f"replay {i}", text, text, self.seconds_per_label)
            for row, each in given.items()
            for i, text in enumerate(each)
        )
        seconds = float(len(answers)) * self.seconds_per_label
        self._sold[order.id] = (order, Delivery(order.id, results, answers, human_seconds=seconds))

    def _answer(self, row: str, number: int) -> str:
        """Return one of a row's answers: its gold, or where a draw makes it wrong another answer."""
        gold = self.gold[row]
        digest = hashlib.sha256(f"{self.seed}:{row}:{number}".encode()).digest()
        draw, choice = (int.from_bytes(half, "big") for half in (digest[:8], digest[8:16]))
        if draw / 2**64 >= self.error_rate:
            return gold
        if self.labels:
            others = [label for label in self.labels if label != gold]
            return others[choice % len(others)]
        # From a random row onwards: ids are hashes, so neighbours have nothing in common.
        start = choice % len(self._rows)
        around = (self.gold[self._rows[(start + step) % len(self._rows)]] for step in range(len(self._rows)))
        return next(answer for answer in around if answer != gold)
