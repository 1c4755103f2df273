"""What an endpoint bills, from the bytes that it sent: exact dollars per attempt, row and order.

A reply is billed what its ``usage`` says, where that can be believed and is within the bound of its request; else the bound. A
lost request is billed its bound, one that failed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from outlay.labels.llm.journal import Attempt, Journal, read_journal
from outlay.labels.llm.reading import usage_of
from outlay.money.prices.tokens import TokenPrices, TokenUsage


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of a model's tokens: in requests of their own, and in batches."""

    single: TokenPrices
    batch: TokenPrices


def believed_usage(body: bytes, most: TokenUsage, prices: TokenPrices) -> TokenUsage | None:
    """Return the usage that a reply names; ``None`` where it is missing, absurd or dearer than its request's bound."""
    usage = usage_of(body)
    return None if usage is None or prices.cost(usage) > prices.most(most) else usage


class Bills:
    """The bills of the orders of a journal; what an attempt costs is worked out once.

    ``batch_prices``: those of attempts that left in batches, ``None`` = as those of single ones.
    """

    def __init__(self, journal: Journal, prices: TokenPrices, batch_prices: TokenPrices | None = None) -> None:
        self._journal = journal
        self._prices = prices
        self._batch_prices = prices if batch_prices is None else batch_prices
        self._costs: dict[tuple[str, int], Fraction] = {}

    def note(self, attempt: Attempt, usd: Fraction) -> None:
        """Keep the cost of an attempt that just ended."""
        self._costs[attempt.key, attempt.number] = usd

    def cost(self, attempt: Attempt) -> Fraction:
        """Return the dollars that an attempt is billed; at most, where nothing is known of it yet."""
        found = self._costs.get((attempt.key, attempt.number))
        if found is None:
            found = self._cost(attempt)
            if attempt.state != "sent":
                self.note(attempt, found)
        return found

    def of(self, order: str) -> dict[str, Fraction]:
        """Return the dollars that each row of an order is billed, with what it took over from others; a row without is free."""
        bill: dict[str, Fraction] = {}
        for row, attempt in self._journal.bill(order):
            bill[row] = bill.get(row, Fraction(0)) + self.cost(attempt)
        return bill

    def held(self, order: str) -> Fraction:
        """Return the dollars that the batches of an order may still cost, where nothing is known of them yet."""
        return sum(map(self.cost, self._journal.under_way(order)), Fraction(0))

    def paid_by(self, order: str) -> Fraction:
        """Return the dollars that an order itself paid."""
        own = [attempt for _, attempt in self._journal.bill(order) if attempt.order == order]
        return sum(map(self.cost, own), Fraction(0))

    def _cost(self, attempt: Attempt) -> Fraction:
        if attempt.state == "failed":
            return Fraction(0)
        most = TokenUsage(**attempt.most)
        prices = self._batch_prices if attempt.batch else self._prices
        reply = self._journal.reply(attempt) if attempt.state == "received" else None
        usage = None if reply is None else believed_usage(reply.body, most, prices)
        return prices.most(most) if usage is None else prices.cost(usage)


def recompute(
    path: Path, order: str, prices: TokenPrices, batch_prices: TokenPrices | None = None
) -> Mapping[str, Fraction]:
    """Return the bill of an order from the bytes of its journal alone, dollars by row; a row without one cost nothing.

    Raises:
        StoreError: there is no such journal, or it is damaged.
    """
    with read_journal(path) as journal:
        return Bills(journal, prices, batch_prices).of(order)
