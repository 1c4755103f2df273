"""Purchases of labels: order the missing rows, log the deliveries, report the rows still missing.

A purchase is a job like every compute step: its run holds the money before and settles when the job is over. The job runs in a
thread of the process that drives the runs, not in a worker: it mostly waits, its log must lie on the disk of the ledger that pays
for it (a worker may be another machine), and a seller with an open connection cannot be sent to another process. Only the
driver's own thread writes to the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any

from outlay.errors import LabelError, SellerError, UnknownOrder
from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Annotator, Answer, Delivery, Order
from outlay.labels.purchases import (
    OrderRecord,
    PurchaseLog,
    PurchaseRecord,
    SellerLog,
)
from outlay.money.amounts import MICROS_PER_USD
from outlay.money.ledger import Hold
from outlay.plan.steps import Buy
from outlay.storage.store import key_of
from outlay.tasks.example import Example
from outlay.text.legible import label_problem, repeats


@dataclass(frozen=True)
class Purchase:
    """A purchase held for a run, with its rows and its seller.

    ``rows``: all rows of the split, in the seeded order; ``missing``: rows that were not settled when the purchase began;
    ``most_quantity``: the quantity that its hold pays for, ``most_cash_micros`` the cash; ``terms``: of its orders, for the log.
    """

    step: Buy
    rows: Sequence[Example]
    seller: Annotator
    payer: str
    missing: Sequence[Example]
    most_quantity: Fraction = Fraction(0)
    most_cash_micros: int = 0
    terms: Mapping[str, Any] = field(default_factory=dict)

    @property
    def wanted(self) -> Sequence[Example]:
        """Rows to be labelled."""
        return self.rows[self.step.start : self.step.stop]

    def held(self, hold: Hold) -> Purchase:
        """Return the purchase with what its hold pays for."""
        return replace(self, most_quantity=hold.quote.quantity, most_cash_micros=hold.quote.cash_micros)


@dataclass(frozen=True, slots=True)
class PurchaseResult:
    """Outcome of a purchase so far.

    ``waits_for``: one line on the missing labels, ``None`` where every label is in the log; ``reused``: every label was in
    the log before.
    """

    waits_for: str | None
    reused: bool = False


def buy(purchase: Purchase, log: PurchaseLog, on_progress: Callable[[int, int, str], None]) -> PurchaseResult:
    """Order the rows of a purchase, and log every label that its seller has ready.

    Raises:
        SellerError: the seller refuses an order or cannot deliver it; earlier deliveries are in the log.
        StoreError: the log cannot be written.
    """
    step, wanted = purchase.step, [row.id for row in purchase.wanted]
    with log.open(step.series) as purchases:
        waits: list[str] = []
        reused = all(map(purchases.is_settled, wanted))
        at_seller = _orders_at_seller(purchase, purchases, set(wanted))
        allowance = _allowance(purchase, purchases, [record for _, record in at_seller])
        # What is at the seller comes first: an order that was never sent frees its rows for a new one.
        for due in (partial(iter, at_seller), partial(_send, purchase, purchases)):
            for order, record in due():
                n_before = sum(purchases.is_settled(row) for row in wanted if row not in order.rows)

                def report(n_rows: int, n_before: int = n_before) -> None:
                    on_progress(n_before + n_rows, len(wanted), "labels")

                delivery = _collected(purchase, purchases, order, record, allowance, report)
                if delivery is not None:
                    _receive(purchase, purchases, order, record, delivery)
                    waits += [delivery.waits_for] if delivery.waits_for is not None else []
                    on_progress(sum(map(purchases.is_settled, wanted)), len(wanted), "labels")
        n_missing = sum(not purchases.is_settled(row) for row in wanted)
    if not waits:
        return PurchaseResult(None, reused)
    said = "; ".join(dict.fromkeys(waits))
    return PurchaseResult(f"{n_missing:,} of {len(wanted):,} labels of seller {step.seller}: {said}")


def _receive(purchase: Purchase, purchases: SellerLog, order: Order, record: OrderRecord, delivery: Delivery) -> None:
    """Log a delivery, and close its order where the money did not reach for all of its rows."""
    _check(purchase.seller, order, delivery)
    _keep(purchases, record, delivery, purchase)
    missing = [row for row in record.ordered if not purchases.is_settled(row)]
    if delivery.waits_for is not None or not missing:
        return
    if purchase.seller.is_deterministic:
        raise SellerError(
            f"seller {purchase.step.seller} delivered order {order.id[:12]} without {len(missing):,} of its "
            f"{len(record.ordered):,} rows; ask the seller for them, then run again"
        )
    settled = tuple(filter(purchases.is_settled, record.ordered))
    purchases.note([replace(record, ordered=settled)])


def _allowance(purchase: Purchase, purchases: SellerLog, due: Sequence[OrderRecord]) -> Allowance:
    """Return what the orders of a purchase may cost, with what they have cost already: the hold without rows settled before."""
    due_rows = {row for record in due for row in record.ordered}
    before = [row.id for row in purchase.wanted if purchases.is_settled(row.id) and row.id not in due_rows]
    spent = sum((purchases.quantities.get(row, Fraction(0)) for row in before), Fraction(0))
    quantity = max(Fraction(0), purchase.most_quantity - spent)
    usd = quantity * Fraction(purchase.seller.price.usd)
    return Allowance(min(usd, Fraction(purchase.most_cash_micros, MICROS_PER_USD)))


_Due = tuple[Order, OrderRecord]
"""An order and its record in the log."""


def _orders_at_seller(purchase: Purchase, purchases: SellerLog, wanted: set[str]) -> list[_Due]:
    """Return the open orders of these rows, of any payer."""
    noted = [record for record in purchases.open_orders if not wanted.isdisjoint(record.ordered)]
    examples = {row.id: row for row in purchase.rows} if noted else {}
    if other := [record for record in noted if record.terms != purchase.terms]:
        purchases.note([replace(record, terms=purchase.terms) for record in other])
        noted = [purchases.orders[record.order] for record in noted]
    return [(Order.of(record.order, [examples[row] for row in record.ordered]), record) for record in noted]


def _collected(
    purchase: Purchase,
    purchases: SellerLog,
    order: Order,
    record: OrderRecord,
    allowance: Allowance,
    report: Callable[[int], None],
) -> Delivery | None:
    """Return the state of an order, which is sent first where a crash kept it from being sent; ``None`` where nobody sends it."""
    try:
        return purchase.seller.collect(order, allowance, report)
    except UnknownOrder:
        if record.payer != purchase.payer:
            # The run that logged the order ended before sending it. No hold pays for it now, so it is not sent.
            _withdraw(purchases, [record])
            return None
    _submit(purchase.seller, order, record, purchases)
    return purchase.seller.collect(order, allowance, report)


def _send(purchase: Purchase, purchases: SellerLog) -> list[_Due]:
    """Order the rows that are in no order yet; every order is on disk before the first is sent."""
    at_seller = {row for record in purchases.open_orders for row in record.ordered}
    missing = [row for row in purchase.wanted if not purchases.is_settled(row.id) and row.id not in at_seller]
    size = purchase.seller.order_rows or max(1, len(missing))
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    orders = [Order.of(key_of([purchase.step.series, [row.id for row in batch]]), batch) for batch in batches]
    records = [OrderRecord(order.id, purchase.payer, order.rows, purchase.terms) for order in orders]
    if records:
        purchases.note(records)
    for at, (order, record) in enumerate(zip(orders, records, strict=True)):
        try:
            _submit(purchase.seller, order, record, purchases)
        except SellerError:
            _withdraw(purchases, records[at + 1 :])
            raise
    return list(zip(orders, records, strict=True))


def _submit(seller: Annotator, order: Order, record: OrderRecord, purchases: SellerLog) -> None:
    """Send an order; withdraw it from the log where the seller refused it, not where the seller may have it."""
    try:
        seller.submit(order)
    except SellerError:
        try:
            seller.collect(order, Allowance(0))
        except UnknownOrder:
            _withdraw(purchases, [record])
        except SellerError:
            pass
        raise


def _withdraw(purchases: SellerLog, records: Sequence[OrderRecord]) -> None:
    """Log that orders were never sent, so that their rows can be ordered again."""
    if records:
        purchases.note([replace(record, ordered=()) for record in records])


def _check(seller: Annotator, order: Order, delivery: Delivery) -> None:
    """Refuse a delivery with rows outside the order, two results for a row, or a label outside the set."""
    rows = [result.row for result in delivery.results]
    if not set(rows) <= set(order.rows) or repeats(rows):
        raise SellerError(
            f"order {order.id[:12]} was answered with {len(rows):,} results, not all of them for one of its {len(order.rows):,} "
            "rows each; ask the seller for the order's own rows"
        )
    for row, label in delivery.labels.items() if seller.labels else ():
        if label not in seller.labels:
            raise LabelError(f"row {row} of order {order.id[:12]} {label_problem(label, seller.labels)}")


def _keep(purchases: SellerLog, record: OrderRecord, delivery: Delivery, purchase: Purchase) -> None:
    """Log the new labels, refusals, answers and cash of a delivery, which repeats all earlier ones of its order.

    A label that was logged stays. Cash of answers is paid by who waits for them, cash of an order on its way by who sent it.
    """
    before = purchases.receipts_of(record.order)
    labels = tuple((row, label) for row, label in delivery.labels.items() if not purchases.is_settled(row))
    cash = max(0, delivery.cash_micros - sum(receipt.cash_micros for receipt in before))
    seconds = max(0.0, delivery.human_seconds - sum(receipt.human_seconds for receipt in before))
    kept = PurchaseRecord(record.order, record.payer, cash, seconds, labels)
    if not purchase.seller.is_deterministic:
        kept = replace(
            kept,
            refused=tuple((row, why) for row, why in delivery.refused.items() if not purchases.is_settled(row)),
            quantities=tuple(
                (each.row, each.quantity)
                for each in delivery.results
                if each.quantity != purchases.quantities.get(each.row, Fraction(0))
            ),
            answers=_new_answers(purchases, delivery),
        )
    if kept.labels or kept.cash_micros or kept.refused or kept.quantities or kept.answers:
        purchases.add(kept)


def _new_answers(purchases: SellerLog, delivery: Delivery) -> tuple[Answer, ...]:
    """Return the answers of a delivery that the log has not: they only ever grow, row by row."""
    known = Counter({row: len(answers) for row, answers in purchases.answers.items()})
    new = []
    for answer in delivery.answers:
        known[answer.row] -= 1
        if known[answer.row] < 0:
            new.append(answer)
    return tuple(new)
