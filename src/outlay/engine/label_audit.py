"""Audit of bought labels: every bill is worked out again from what came, and compared with purchase logs and ledgers.

The bill of a language model is that of the bytes in its journal, at the prices that its order was made at; that of people is
their answers times the price. Answers in a log must stand in what came. An artifact must say what the log says, and an entry
of a ledger what its artifact says.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from outlay.engine.purchase_terms import FILES, OPENAI
from outlay.errors import OutlayError
from outlay.labels.files import OrderFolder
from outlay.labels.llm.billing import Bills
from outlay.labels.llm.journal import Journal, read_journal
from outlay.labels.purchases import (
    OrderRecord,
    PurchaseLog,
    SellerLog,
    parse_answer_lines,
    parse_bill_lines,
    parse_label_lines,
)
from outlay.money.amounts import MICROS_PER_USD, PURCHASE_UNITS, cost_micros, format_usd
from outlay.money.ledger import Entry, Ledger
from outlay.money.prices.tokens import TokenPrices
from outlay.plan.steps import ANSWERS_FILE, BILL_FILE, LABELS_FILE
from outlay.storage.artifact import Artifact
from outlay.storage.store import Store


@dataclass
class Audit:
    """What an audit counted, and what differs.

    ``n_orders``: orders whose bill was worked out again; ``n_rows``: rows of theirs that were billed; ``usd``: their dollars;
    ``n_entries``: entries of ledgers that were compared; ``differences``: a line each; ``notes``: what could not be compared.
    """

    n_orders: int = 0
    n_rows: int = 0
    usd: Fraction = Fraction(0)
    n_entries: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """True where nothing differs."""
        return not self.differences

    def lines(self) -> list[str]:
        """Return what differs, then what was compared."""
        compared = (
            f"{self.n_orders:,} orders, {self.n_rows:,} rows billed {format_usd(_micros(self.usd))}, "
            f"{self.n_entries:,} ledger entries"
        )
        end = "agree" if self.is_ok else f"{len(self.differences):,} of what was compared differ"
        return [
            *(f"DIFFERS: {each}" for each in self.differences),
            *(f"note: {each}" for each in self.notes),
            f"{compared}: {end}",
        ]

    def differs(self, line: str) -> None:
        """Note what differs."""
        self.differences.append(line)

    def note(self, line: str) -> None:
        """Note what could not be compared, once."""
        self.notes += [line] if line not in self.notes else []


def audit_log(
    log: PurchaseLog,
    asked: Path,
    audit: Audit,
    payers: Collection[str] | None = None,
    series: Collection[str] = (),
) -> None:
    """Compare the purchase logs of a store with journals and answers.

    Args:
        log: the purchases.
        asked: folder of the journals.
        audit: where to note what is found.
        payers: the runs whose orders count; ``None`` = every one's.
        series: series of which every order counts, whoever paid for it.
    """
    with ExitStack() as opened:
        journals = _Journals(asked, opened)
        for name in log.series:
            known = log.read(name)
            for order in known.orders.values():
                if payers is None or order.payer in payers or name in series:
                    _check_order(known, order, journals, audit)


def audit_ledger(ledger: Ledger, store: Store, log: PurchaseLog, audit: Audit) -> set[str]:
    """Compare the entries of purchases in a ledger with their labels, and these with the logs; return their series."""
    series = set()
    for run in ledger.run_ids():
        for entry in ledger.entries(run):
            if entry.kind == "settle" and entry.unit in PURCHASE_UNITS and entry.artifact_key:
                series |= _check_entry(entry, store, log, audit)
    return series


# --- orders -----------------------------------------------------------------------------------------------------------


class _Journals:
    """Journals of a folder, each opened once."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self._folder = folder
        self._opened = opened
        self._known: dict[str, Journal] = {}

    def get(self, name: str) -> Journal:
        """Return a journal. Raises StoreError for one that is not there or damaged."""
        if name not in self._known:
            self._known[name] = self._opened.enter_context(read_journal(self._folder / name))
        return self._known[name]


def _check_order(known: SellerLog, order: OrderRecord, journals: _Journals, audit: Audit) -> None:
    kind = order.terms.get("kind")
    receipts = known.receipts_of(order.order)
    if kind not in (OPENAI, FILES) or not receipts:
        return
    logged = {row: quantity for receipt in receipts for row, quantity in receipt.quantities}
    cash = sum(receipt.cash_micros for receipt in receipts)
    what = f"order {order.order[:12]} of {order.terms.get('model', 'people')}"
    audit.n_orders += 1
    audit.n_rows += len(logged)
    if kind == FILES:
        audit.usd += sum(logged.values(), Fraction(0)) * Fraction(order.terms["usd"])
        _check_people(known, order, logged, cash, audit, what)
        return
    audit.usd += sum(logged.values(), Fraction(0))
    try:
        _check_model(known, order, logged, cash, audit, what, journals.get(str(order.terms["journal"])))
    except OutlayError as error:
        audit.differs(f"{what}: {error}")


def _check_model(
    known: SellerLog,
    order: OrderRecord,
    logged: Mapping[str, Fraction],
    cash: int,
    audit: Audit,
    what: str,
    journal: Journal,
) -> None:
    single = _prices(order.terms["prices"])
    batch = _prices(order.terms.get("batch_prices", order.terms["prices"]))
    bills = Bills(journal, single, batch)
    bill = bills.of(order.order)
    for row in dict.fromkeys((*logged, *bill)):
        mine, theirs = logged.get(row, Fraction(0)), bill.get(row, Fraction(0))
        if mine != theirs:
            audit.differs(f"{what}, row {row[:12]}: the log says {_usd(mine)}, the journal {_usd(theirs)}")
    paid = _micros(bills.paid_by(order.order))
    if paid != cash:
        audit.differs(f"{what}: {format_usd(cash)} left the bank by the log, {format_usd(paid)} by the journal")
    received = [(row, attempt) for row, attempt in journal.bill(order.order) if attempt.state == "received"]
    for row, attempt in received:
        if journal.is_changed(attempt):
            audit.differs(f"{what}, row {row[:12]}: the reply in the journal is not the one that came")
    # Rows with the same text are one question, so that an answer may have come for another row.
    replies = [journal.reply(attempt) for _, attempt in received]
    came = {text for reply in replies if reply is not None for text in _texts(reply.body)}
    for answer in (each for row in order.ordered for each in known.answers.get(row, ())):
        if answer.text and answer.text not in came and not any(answer.text in text for text in came):
            audit.differs(f"{what}, row {answer.row[:12]}: the answer {answer.text!r} of the log is not in the journal")


def _prices(written: Mapping[str, str]) -> TokenPrices:
    return TokenPrices(**{name: Decimal(usd) for name, usd in written.items()})


def _check_people(
    known: SellerLog, order: OrderRecord, logged: Mapping[str, Fraction], cash: int, audit: Audit, what: str
) -> None:
    for row, quantity in logged.items():
        n_answers = len(known.answers.get(row, ()))
        if quantity != n_answers:
            audit.differs(
                f"{what}, row {row[:12]}: {float(quantity):g} answers are billed, and {n_answers} are in the log"
            )
    n_answers = sum(len(known.answers.get(row, ())) for row in logged)
    owed = cost_micros(Fraction(n_answers), Decimal(order.terms["usd"]))
    if owed != cash:
        said = f"{n_answers:,} answers at ${order.terms['usd']} are {format_usd(owed)}"
        audit.differs(f"{what}: {format_usd(cash)} left the bank by the log, and {said}")
    place = OrderFolder.of(Path(order.terms["folder"]), order.order)
    accepted, state = place.accepted(), place.state()
    if accepted is None or state is None:
        audit.note(f"{what}: its folder {place.path} is gone, so its answers are compared with the log alone")
        return
    for item, settled in state.settled.items():
        row = accepted.by_id[item].row
        if row in logged and len(settled.answers) != len(known.answers.get(row, ())):
            audit.differs(
                f"{what}, row {row[:12]}: the folder has {len(settled.answers)} answers, the log another number"
            )


def _texts(body: bytes) -> list[str]:
    """Return every text in a reply, and the reply as a text where it is no JSON."""
    try:
        found = json.loads(body)
    except ValueError:
        return [body.decode("utf-8", "replace")]
    return list(_strings(found))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


# --- entries ----------------------------------------------------------------------------------------------------------


def _check_entry(entry: Entry, store: Store, log: PurchaseLog, audit: Audit) -> set[str]:
    """Compare an entry with its labels; return their series."""
    what = f"entry {entry.seq}, {entry.note}"
    artifact = store.get(str(entry.artifact_key))
    if artifact is None:
        audit.note(f"{what}: its labels are not in the store, so that they cannot be counted again")
        return set()
    audit.n_entries += 1
    usage = artifact.usage
    billed = Fraction(usage["quantity"] if "quantity" in usage else usage["n_answers"])
    if billed != entry.quantity:
        audit.differs(f"{what}: the ledger says {_amount(entry.quantity)}, the labels {_amount(billed)}")
    charge = cost_micros(entry.quantity, Decimal(entry.unit_usd))
    if charge != entry.charge_micros:
        audit.differs(
            f"{what}: charged {format_usd(entry.charge_micros)}, and quantity times price are {format_usd(charge)}"
        )
    if "quantity" in usage:
        _check_artifact(artifact, log.read(str(artifact.meta["series"])), audit, what)
    return {str(artifact.meta["series"])}


def _check_artifact(artifact: Artifact, known: SellerLog, audit: Audit, what: str) -> None:
    bill = parse_bill_lines(artifact.read_bytes(BILL_FILE))
    labels = parse_label_lines(artifact.read_bytes(LABELS_FILE))
    answers = parse_answer_lines(artifact.read_bytes(ANSWERS_FILE))
    total = sum((quantity for _, quantity, _ in bill), Fraction(0))
    if total != Fraction(artifact.usage["quantity"]):
        audit.differs(f"{what}: its rows add up to {_amount(total)}, and it says {artifact.usage['quantity']}")
    for row, quantity, why in bill:
        logged = known.quantities.get(row, Fraction(0))
        if (row in labels or why is not None) and logged != quantity:
            audit.differs(f"{what}, row {row[:12]}: billed {_amount(quantity)}, by the log {_amount(logged)}")
    for row, label in labels.items():
        if known.labels.get(row) != label:
            audit.differs(f"{what}, row {row[:12]}: its label is {label!r}, by the log {known.labels.get(row)!r}")
    n_logged = sum(len(known.answers.get(row, ())) for row, _, _ in bill)
    if len(answers) != n_logged:
        audit.differs(f"{what}: it has {len(answers):,} answers, the log {n_logged:,}")


def _micros(usd: Fraction) -> int:
    return -(-(usd * MICROS_PER_USD).numerator // (usd * MICROS_PER_USD).denominator)


def _usd(usd: Fraction) -> str:
    return f"${float(usd):.9f}"


def _amount(quantity: Fraction) -> str:
    return f"{float(quantity):.9g}"
