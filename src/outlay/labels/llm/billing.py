"""What an endpoint bills, from the bytes that it sent: exact dollars per attempt, row and order.

A reply is billed what its ``usage`` says, where that can be believed and is within the bound of its request; else the bound. A
lost request is billed its bound, one that failed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from outlay.labels.llm.journal import Attempt, Journal, read_journal
from outlay.labels.llm.reading import usage_of
from outlay.money.prices.tokens import TokenPrices, TokenUsage


def believed_usage(body: bytes, most: TokenUsage, prices: TokenPrices) -> TokenUsage | None:
    """Return the usage that a reply names; ``None`` where it is missing, absurd or dearer than its request's bound."""
    usage = usage_of(body)
    return None if usage is None or prices.cost(usage) > prices.most(most) else usage


def reply_cost(body: bytes, most: TokenUsage, prices: TokenPrices) -> Fraction:
    """Return the dollars that a reply is billed."""
    usage = believed_usage(body, most, prices)
    return prices.most(most) if usage is None else prices.cost(usage)


def attempt_cost(journal: Journal, attempt: Attempt, prices: TokenPrices) -> Fraction:
    """Return the dollars that an attempt is billed."""
    if attempt.state == "failed":
        return Fraction(0)
    most = TokenUsage(**attempt.most)
    reply = journal.reply(attempt) if attempt.state == "received" else None
    return prices.most(most) if reply is None else reply_cost(reply.body, most, prices)


def bill_of(journal: Journal, order: str, prices: TokenPrices) -> dict[str, Fraction]:
    """Return the dollars that each row of an order is billed, with what it took over from others."""
    bill: dict[str, Fraction] = {}
    for row, attempt in journal.bill(order):
        bill[row] = bill.get(row, Fraction(0)) + attempt_cost(journal, attempt, prices)
    return bill


def paid_by(journal: Journal, order: str, prices: TokenPrices) -> Fraction:
    """Return the dollars that an order itself paid."""
    own = [attempt for _, attempt in journal.bill(order) if attempt.order == order]
    return sum((attempt_cost(journal, attempt, prices) for attempt in own), Fraction(0))


def recompute(path: Path, order: str, prices: TokenPrices) -> Mapping[str, Fraction]:
    """Return the bill of an order from the bytes of its journal alone, dollars by row.

    Raises:
        StoreError: there is no such journal, or it is damaged.
    """
    with read_journal(path) as journal:
        return bill_of(journal, order, prices)
