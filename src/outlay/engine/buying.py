"""Purchases of labels: order the missing rows, log the deliveries, report the rows still missing.

A purchase is a job like every compute step: its run holds the money before and settles when the job is over. The job runs in a
thread of the process that drives the runs, not in a worker: it mostly waits, its log must lie on the disk of the ledger that pays
for it (a worker may be another machine), and a seller with an open connection cannot be sent to another process. Only the
driver's own thread writes to the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from outlay.engine.prepare import PreparedRun
from outlay.errors import SellerError, SpendError, UnknownOrder
from outlay.labels.annotator import Annotator, Delivery, Order, Pending
from outlay.labels.purchases import OrderRecord, PurchaseLog, PurchaseRecord, SellerLog, label_lines
from outlay.plan.steps import LABELS_FILE, Buy, describe
from outlay.plan.strategies import rival_of
from outlay.storage.store import Artifact, key_of
from outlay.tasks.example import Example

DELIVERY_ROWS = 100
"""Rows per order: the most that must be collected again after a crash between delivery and booking."""


@dataclass(frozen=True)
class Purchase:
    """A purchase held for a run, with its rows and its seller.

    ``rows``: all rows of the split, in the seeded order; ``n_missing``: number of rows without a label when the purchase began.
    """

    step: Buy
    rows: Sequence[Example]
    seller: Annotator
    payer: str
    n_missing: int

    @property
    def wanted(self) -> Sequence[Example]:
        """Rows to be labelled."""
        return self.rows[self.step.start : self.step.stop]


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
        reused = all(row in purchases.labels for row in wanted)
        for order, record, seen in (*_orders_at_seller(purchase, purchases, set(wanted)), *_send(purchase, purchases)):
            got = seen or purchase.seller.collect(order)
            delivery = got.so_far if isinstance(got, Pending) else got
            if delivery is not None:
                _check(order, delivery)
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
"""An order at its seller, its record, and its state where it was collected already."""


def _orders_at_seller(purchase: Purchase, purchases: SellerLog, wanted: set[str]) -> list[_Due]:
    """Return the open orders of these rows, of any payer; send those that a crash kept from being sent."""
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
                # The run that logged the order ended before sending it. No hold pays for it now, so it is not sent.
                _withdraw(purchases, [record])
    return found


def _send(purchase: Purchase, purchases: SellerLog) -> list[_Due]:
    """Order the rows that are in no order yet; every order is on disk before the first is sent."""
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
    """Send an order; withdraw it from the log where the seller refused it, not where the seller may have it."""
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
    """Log that orders were never sent, so that their rows can be ordered again."""
    if records:
        purchases.note([OrderRecord(record.order, record.payer, ()) for record in records])


def _check(order: Order, delivery: Delivery) -> None:
    """Refuse a delivery without exactly one label per row, or with rows outside the order."""
    if not set(delivery.rows) <= set(order.rows) or len(delivery.rows) != len(delivery.labels):
        raise SellerError(
            f"order {order.id[:12]} was answered with {len(delivery.labels):,} labels for {len(delivery.rows):,} rows, not all "
            f"of them among its {len(order.rows):,}; ask the seller for the order's own rows"
        )


def _keep(purchases: SellerLog, record: OrderRecord, delivery: Delivery) -> None:
    """Log the new labels and cash of a delivery, which repeats all earlier ones of its order."""
    before = purchases.receipts_of(record.order)
    known = {row for receipt in before for row, _ in receipt.labels}
    labels = tuple((row, label) for row, label in zip(delivery.rows, delivery.labels, strict=True) if row not in known)
    cash = max(0, delivery.cash_micros - sum(receipt.cash_micros for receipt in before))
    seconds = max(0.0, delivery.human_seconds - sum(receipt.human_seconds for receipt in before))
    if labels or cash:
        purchases.add(PurchaseRecord(record.order, record.payer, cash, seconds, labels))


@dataclass(frozen=True, slots=True)
class Unbought:
    """Purchases with rows that nobody has labelled, each with the number of these rows, and of those that nobody has ordered."""

    purchases: tuple[tuple[Buy, int, int], ...]

    def __bool__(self) -> bool:
        return bool(self.purchases)

    @property
    def lacks(self) -> str | None:
        """One line on labels that nobody has ordered; ``None`` where there are none."""
        for step, _, n in self.purchases:
            if n:
                what = f"{n:,} of the {step.n:,} {step.split} labels"
                return f"a rival buys no labels, and {what} it would learn from are not bought"
        return None

    @property
    def on_order(self) -> list[str]:
        """Lines on labels that are ordered, where nothing else is missing."""
        return [] if self.lacks else [f"{n:,} labels that another run has ordered" for _, n, _ in self.purchases]


class RunPurchases:
    """The purchases of one run: missing rows, cash paid and labels, as read from the log."""

    def __init__(self, prepared: PreparedRun, log: PurchaseLog, payer: str) -> None:
        self._prepared = prepared
        self._log = log
        self._payer = payer

    def begin(self, step: Buy) -> Purchase:
        """Return a purchase with its rows and its seller.

        Raises:
            SpendError: the run is a rival's.
            TaskFileError: a row without a gold label to replay.
        """
        if rival_of(self._prepared.request.strategy) is not None:
            raise SpendError(f"a rival buys no labels, and this one would order {describe(step)}")
        known = self._log.read(step.series).labels
        n_missing = sum(row not in known for row in self._ids(step))
        return Purchase(
            step, self._prepared.rows_of(step.split), self._prepared.seller_of(step), self._payer, n_missing
        )

    def unbought(self, steps: Sequence[Buy]) -> Unbought:
        """Return what the log lacks of some purchases."""
        found = []
        for step in steps:
            known = self._log.read(step.series)
            missing = set(self._ids(step)) - known.labels.keys()
            ordered = {row for order in known.open_orders for row in order.ordered}
            found += [(step, len(missing), len(missing - ordered))] if missing else []
        return Unbought(tuple(found))

    def cash_micros(self, step: Buy, before: Sequence[Buy]) -> int:
        """Return the cash, in micro-dollars, that this run paid for a purchase, without rows of the purchases ``before``."""
        known, rows = self._log.read(step.series), set(self._ids(step))
        booked = {row for each in before if each.series == step.series for row in self._ids(each)}
        paid = 0
        for receipt in known.receipts:
            order = known.orders.get(receipt.order)
            # One that was billed before any label was delivered counts for the rows ordered.
            its = {row for row, _ in receipt.labels} or set(order.ordered if order is not None else ())
            if receipt.payer == self._payer and its & rows and not its & booked:
                paid += receipt.cash_micros
        return paid

    def is_ordered(self, step: Buy) -> bool:
        """Return whether orders of this run for the purchase may be at the seller."""
        rows = set(self._ids(step))
        orders = self._log.read(step.series).open_orders
        return any(order.payer == self._payer and not rows.isdisjoint(order.ordered) for order in orders)

    def files(self, step: Buy) -> tuple[Mapping[str, bytes], float]:
        """Return the files of a purchase's artifact, and the human seconds of its series."""
        known = self._log.read(step.series)
        lines = label_lines([(row, known.labels[row]) for row in self._ids(step)])
        return {LABELS_FILE: lines}, sum(receipt.human_seconds for receipt in known.receipts)

    def take_over(self, step: Buy, artifact: Artifact) -> None:
        """Add labels that another machine bought to the log of this one, from their artifact, so that none is bought twice."""
        if self._log.read(step.series).labels:
            return
        rows = [json.loads(line) for line in artifact.read_bytes(LABELS_FILE).split(b"\n") if line]
        labels = tuple((row["row"], row["label"]) for row in rows)
        with self._log.open(step.series) as purchases:
            purchases.add(PurchaseRecord(key_of([step.series, "taken over"]), "another machine", 0, 0.0, labels))

    def _ids(self, step: Buy) -> list[str]:
        return [row.id for row in self._prepared.rows_of(step.split)[step.start : step.stop]]
