"""Buy the labels of one purchase: send what is not ordered yet, keep what has come, say what is still missing.

A purchase is a job like every compute step: the run that needs it holds its money and goes on when the job is over. It is done
by a thread of the process that drives the runs, not by a worker: its work is waiting for somebody else, the log that proves what
was bought must lie on the disk of the ledger that pays for it (a worker may be another machine), and a seller with an open
connection cannot be sent to another process. The ledger is left to the driver's own thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from outlay.engine.prepare import PreparedRun
from outlay.errors import SellerError, UnknownOrder
from outlay.labels.annotator import Annotator, Delivery, Order, Pending
from outlay.labels.purchases import OrderRecord, PurchaseLog, PurchaseRecord, SellerLog, label_lines
from outlay.plan.steps import LABELS_FILE, Buy
from outlay.storage.store import Artifact, key_of
from outlay.tasks.example import Example

DELIVERY_ROWS = 100
"""Labels per order: as much of a delivery as a crash between delivery and booking can at most make to be collected again."""


@dataclass(frozen=True)
class Purchase:
    """A purchase that is held for a run, and all that its buyer needs beside the log.

    ``rows``: of the whole split, in the seeded order; ``n_missing``: rows of the purchase without a label when it was begun.
    """

    step: Buy
    rows: Sequence[Example]
    seller: Annotator
    payer: str
    n_missing: int

    @property
    def wanted(self) -> Sequence[Example]:
        """The rows that are bought."""
        return self.rows[self.step.start : self.step.stop]


@dataclass(frozen=True, slots=True)
class PurchaseResult:
    """Outcome of a purchase so far: ``waits_for`` is one line on what is missing, ``None`` where every label is in the log;
    ``reused``: all of them were there when the log was opened for it."""

    waits_for: str | None
    reused: bool = False


def buy(purchase: Purchase, log: PurchaseLog, on_progress: Callable[[int, int, str], None]) -> PurchaseResult:
    """Bring as many labels of a purchase into the log as its seller has.

    Raises:
        SellerError: the seller refuses an order or cannot deliver it; what came before is in the log.
        StoreError: the log cannot be written.
    """
    step, wanted = purchase.step, [row.id for row in purchase.wanted]
    with log.open(step.series) as purchases:
        waits: list[str] = []
        reused = all(row in purchases.labels for row in wanted)
        for order, record, seen in (*_orders_at_seller(purchase, purchases, set(wanted)), *_send(purchase, purchases)):
            got = _checked(order, seen or purchase.seller.collect(order))
            delivery = got.so_far if isinstance(got, Pending) else got
            if delivery is not None:
                _keep(purchases, record, delivery)
            missing = [row for row in record.ordered if row not in purchases.labels]
            if isinstance(got, Pending):
                waits.append(got.waits_for)
            elif missing:
                raise SellerError(
                    f"seller {step.seller} delivered order {order.id[:12]} without {len(missing):,} of its "
                    f"{len(record.ordered):,} rows; ask the seller for them, then run again"
                )
            on_progress(sum(row in purchases.labels for row in wanted), len(wanted), "labels")
        n_missing = sum(row not in purchases.labels for row in wanted)
    if not n_missing:
        return PurchaseResult(None, reused)
    said = "; ".join(dict.fromkeys(waits))
    return PurchaseResult(f"{n_missing:,} of {len(wanted):,} labels of seller {step.seller}: {said}")


_Due = tuple[Order, OrderRecord, Delivery | Pending | None]
"""An order at its seller, and what was seen of it where it was asked for already."""


def _orders_at_seller(purchase: Purchase, purchases: SellerLog, wanted: set[str]) -> list[_Due]:
    """Return the orders of these rows that were noted before, whoever pays for them, sent where a crash came in between."""
    noted = [record for record in purchases.open_orders if not wanted.isdisjoint(record.ordered)]
    examples = {row.id: row for row in purchase.rows} if noted else {}
    found: list[_Due] = []
    for record in noted:
        order = Order.of(record.order, [examples[row] for row in record.ordered])
        try:
            found.append((order, record, purchase.seller.collect(order)))
        except UnknownOrder:
            if record.payer == purchase.payer:
                _submit(purchase.seller, order, record, purchases)
                found.append((order, record, None))
            else:
                # Its run noted it and ended before it was sent. Nobody holds its money now, so it is not sent for that run.
                _withdraw(purchases, [record])
    return found


def _send(purchase: Purchase, purchases: SellerLog) -> list[_Due]:
    """Order the rows that nobody ordered yet: every order is on disk before the first one is sent."""
    at_seller = {row for record in purchases.open_orders for row in record.ordered}
    missing = [row for row in purchase.wanted if row.id not in purchases.labels and row.id not in at_seller]
    batches = [missing[start : start + DELIVERY_ROWS] for start in range(0, len(missing), DELIVERY_ROWS)]
    orders = [Order.of(key_of([purchase.step.series, [row.id for row in batch]]), batch) for batch in batches]
    records = [OrderRecord(order.id, purchase.payer, order.rows) for order in orders]
    if records:
        purchases.note(records)
    for at, (order, record) in enumerate(zip(orders, records, strict=True)):
        try:
            _submit(purchase.seller, order, record, purchases)
        except SellerError:
            _withdraw(purchases, records[at + 1 :])
            raise
    return [(order, record, None) for order, record in zip(orders, records, strict=True)]


def _submit(seller: Annotator, order: Order, record: OrderRecord, purchases: SellerLog) -> None:
    """Send an order; one that the seller refused is struck from the log, one that it may have got is not."""
    try:
        seller.submit(order)
    except SellerError:
        try:
            seller.collect(order)
        except UnknownOrder:
            _withdraw(purchases, [record])
        except SellerError:
            pass
        raise


def _withdraw(purchases: SellerLog, records: Sequence[OrderRecord]) -> None:
    """Note that orders were never sent: their rows are nobody's again."""
    if records:
        purchases.note([OrderRecord(record.order, record.payer, ()) for record in records])


def _checked(order: Order, got: Delivery | Pending) -> Delivery | Pending:
    """Refuse labels that are not of the order's rows, one each."""
    delivery = got.so_far if isinstance(got, Pending) else got
    if delivery is None:
        return got
    if not set(delivery.rows) <= set(order.rows) or len(delivery.rows) != len(delivery.labels):
        raise SellerError(
            f"order {order.id[:12]} was answered with {len(delivery.labels):,} labels for {len(delivery.rows):,} rows, not all "
            f"of them among its {len(order.rows):,}; ask the seller for the order's own rows"
        )
    return got


def _keep(purchases: SellerLog, record: OrderRecord, delivery: Delivery) -> None:
    """Write what is new in a delivery that holds all that came of its order so far."""
    before = purchases.receipts_of(record.order)
    known = {row for receipt in before for row, _ in receipt.labels}
    labels = tuple((row, label) for row, label in zip(delivery.rows, delivery.labels, strict=True) if row not in known)
    cash = max(0, delivery.cash_micros - sum(receipt.cash_micros for receipt in before))
    seconds = max(0.0, delivery.human_seconds - sum(receipt.human_seconds for receipt in before))
    if labels or cash:
        purchases.add(PurchaseRecord(record.order, record.payer, cash, seconds, labels))


class RunPurchases:
    """The purchases of one run: what is missing, what the run paid for it, and its labels as they stand in the log."""

    def __init__(self, prepared: PreparedRun, log: PurchaseLog, payer: str) -> None:
        self._prepared = prepared
        self._log = log
        self._payer = payer

    def begin(self, step: Buy) -> Purchase:
        """Return a purchase with its seller.

        Raises:
            TaskFileError: a row without a gold label to replay.
        """
        rows = self._prepared.train if step.split == "train" else self._prepared.dev
        known = self._log.read(step.series).labels
        n_missing = sum(row.id not in known for row in rows[step.start : step.stop])
        return Purchase(step, rows, self._prepared.seller_of(step), self._payer, n_missing)

    def cash_micros(self, step: Buy, before: Sequence[Buy]) -> int:
        """Micro-dollars that left the bank of this run for a purchase, but for rows of the purchases ``before`` it."""
        known, rows = self._log.read(step.series), self._ids(step)
        booked = {row for each in before if each.series == step.series for row in self._ids(each)}
        paid = 0
        for receipt in known.receipts:
            its = {row for row, _ in receipt.labels} or set(_ordered(known, receipt.order))
            if receipt.payer == self._payer and its & rows and not its & booked:
                paid += receipt.cash_micros
        return paid

    def is_ordered(self, step: Buy) -> bool:
        """True where orders of this run for the purchase may be at the seller."""
        rows = self._ids(step)
        orders = self._log.read(step.series).open_orders
        return any(order.payer == self._payer and not rows.isdisjoint(order.ordered) for order in orders)

    def files(self, step: Buy) -> tuple[Mapping[str, bytes], float]:
        """Return the files of a purchase's artifact, and the seconds that people worked on its series."""
        known = self._log.read(step.series)
        rows = self._prepared.train if step.split == "train" else self._prepared.dev
        lines = label_lines([(row.id, known.labels[row.id]) for row in rows[step.start : step.stop]])
        return {LABELS_FILE: lines}, sum(receipt.human_seconds for receipt in known.receipts)

    def take_over(self, step: Buy, artifact: Artifact) -> None:
        """Into the log of this machine, what another one bought and left at the URL of the store: it is not bought again."""
        if self._log.read(step.series).labels:
            return
        rows = [json.loads(line) for line in artifact.read_bytes(LABELS_FILE).split(b"\n") if line]
        labels = tuple((row["row"], row["label"]) for row in rows)
        with self._log.open(step.series) as purchases:
            purchases.add(PurchaseRecord(key_of([step.series, "taken over"]), "another machine", 0, 0.0, labels))

    def _ids(self, step: Buy) -> set[str]:
        rows = self._prepared.train if step.split == "train" else self._prepared.dev
        return {row.id for row in rows[step.start : step.stop]}


def _ordered(known: SellerLog, order: str) -> Sequence[str]:
    """Rows of an order that was billed before any of them was delivered."""
    return known.orders[order].ordered if order in known.orders else ()
