"""The purchases of one run by the log: rows that are missing, cash that was paid, and what was bought.

What a purchase of a seller without fixed prices is held at and charged is worked out here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from outlay.engine.buying import Purchase
from outlay.engine.prepare import PreparedRun
from outlay.engine.purchase_terms import n_lost, terms_of
from outlay.engine.sellers import Place
from outlay.errors import SpendError
from outlay.labels.purchases import (
    PurchaseLog,
    PurchaseRecord,
    answer_lines,
    bill_lines,
    label_lines,
    parse_answer_lines,
    parse_bill_lines,
    parse_label_lines,
)
from outlay.money.amounts import DOLLAR_UNIT, MICROS_PER_USD, Quote, cost_micros
from outlay.plan.steps import ANSWERS_FILE, BILL_FILE, LABELS_FILE, Buy, describe
from outlay.plan.strategies import rival_of
from outlay.storage.store import Artifact, key_of
from outlay.tasks.example import Example


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


@dataclass(frozen=True, slots=True)
class PurchaseContent:
    """What a purchase has bought: key and files of its artifact, its usage, the quantity billed, and its circumstance: the human
    seconds of its series, and requests that were lost.

    A purchase without a label for each of its rows has a key of its own, by the labels it got.
    """

    key: str
    files: Mapping[str, bytes]
    usage: Mapping[str, int | str]
    quantity: Fraction
    circumstance: Mapping[str, float]


class RunPurchases:
    """The purchases of one run: missing rows, cash paid and labels, as read from the log."""

    def __init__(self, prepared: PreparedRun, log: PurchaseLog, payer: str, place: Place) -> None:
        self._place = place
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
        known, rows = self._log.read(step.series), self._prepared.rows_of(step.split)
        missing = [row for row in rows[step.start : step.stop] if not known.is_settled(row.id)]
        seller = self._prepared.seller_of(step, self._place, self._examples(step))
        return Purchase(step, rows, seller, self._payer, missing, terms=self._terms(step))

    def _terms(self, step: Buy) -> dict[str, Any]:
        prepared = self._prepared
        spec = prepared.request.seller(step.seller)
        return {} if spec is None else terms_of(spec, prepared.task, prepared.price_book, self._place)

    def _examples(self, step: Buy) -> list[Example]:
        """Return the rows that the seller of a purchase is shown, with their labels; a row that got none is left out."""
        shown = []
        for bought in step.examples:
            labels = self._log.read(bought.series).labels
            rows = self._prepared.rows_of(bought.split)[bought.start : bought.stop]
            shown += [replace(row, label=labels[row.id]) for row in rows if row.id in labels]
        return shown

    def unbought(self, steps: Sequence[Buy]) -> Unbought:
        """Return what the log lacks of some purchases."""
        found = []
        for step in steps:
            known = self._log.read(step.series)
            missing = {row for row in self._ids(step) if not known.is_settled(row)}
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
            its = receipt.rows or set(order.ordered if order is not None else ())
            if receipt.payer == self._payer and its & rows and not its & booked:
                paid += receipt.cash_micros
        return paid

    def is_ordered(self, step: Buy) -> bool:
        """Return whether orders of this run for the purchase may be at the seller."""
        rows = set(self._ids(step))
        orders = self._log.read(step.series).open_orders
        return any(order.payer == self._payer and not rows.isdisjoint(order.ordered) for order in orders)

    def content(self, step: Buy, quote: Quote, most: Fraction | None) -> PurchaseContent:
        """Return what a purchase has bought, by the log.

        ``quote``: of all its labels; ``most``: the quantity that its hold pays for, ``None`` where all is paid. Of rows whose
        answers cost more than that, as other runs may have bought them, only the first ones are taken.
        """
        known = self._log.read(step.series)
        seller = self._prepared.seller_of(step, self._place, self._examples(step))
        ids = self._ids(step)
        circumstance: dict[str, float] = {"human_seconds": sum(receipt.human_seconds for receipt in known.receipts)}
        if seller.is_deterministic:
            lines = label_lines([(row, known.labels[row]) for row in ids])
            fixed = {"n_labels": step.n, "n_answers": int(quote.quantity)}
            return PurchaseContent(step.key, {LABELS_FILE: lines}, fixed, quote.quantity, circumstance)
        quantity, taken = Fraction(0), list[str]()
        for row in ids:
            billed = known.quantities.get(row, Fraction(0))
            if most is not None and quantity + billed > most:
                break
            quantity += billed
            taken.append(row)
        labels = [(row, known.labels[row]) for row in taken if row in known.labels]
        answers = [answer for row in taken for answer in known.answers.get(row, ())]
        bill = [(row, known.quantities.get(row, Fraction(0)), known.refused.get(row)) for row in taken]
        files = {LABELS_FILE: label_lines(labels), ANSWERS_FILE: answer_lines(answers), BILL_FILE: bill_lines(bill)}
        usage: dict[str, int | str] = {
            "n_labels": len(labels),
            "n_answers": len(answers),
            "n_refused": sum(why is not None for _, _, why in bill),
            "quantity": str(quantity),
        }
        key = step.key
        if len(labels) < step.n:
            key = key_of({"of": step.key, "labels": hashlib.sha256(files[LABELS_FILE]).hexdigest()})
        orders = [each for each in known.orders.values() if not set(each.ordered).isdisjoint(taken)]
        lost = n_lost([each.terms for each in orders], [each.order for each in orders], self._place.asked)
        return PurchaseContent(key, files, usage, quantity, circumstance | ({"n_lost": lost} if lost else {}))

    def take_over(self, step: Buy, artifact: Artifact) -> None:
        """Add labels that another machine bought to the log of this one, from their artifact, so that none is bought twice."""
        if self._log.read(step.series).labels:
            return
        record = PurchaseRecord(
            key_of([step.series, "taken over"]),
            "another machine",
            0,
            0.0,
            tuple(parse_label_lines(artifact.read_bytes(LABELS_FILE)).items()),
        )
        if (artifact.path / BILL_FILE).exists():
            bill = parse_bill_lines(artifact.read_bytes(BILL_FILE))
            record = replace(
                record,
                refused=tuple((row, why) for row, _, why in bill if why is not None),
                quantities=tuple((row, quantity) for row, quantity, _ in bill),
                answers=tuple(parse_answer_lines(artifact.read_bytes(ANSWERS_FILE))),
            )
        with self._log.open(step.series) as purchases:
            purchases.add(record)

    def _ids(self, step: Buy) -> list[str]:
        return [row.id for row in self._prepared.rows_of(step.split)[step.start : step.stop]]


def refusals_of(artifact: Artifact) -> list[str]:
    """Return the reasons of the rows that a purchase got no label for; none where prices are fixed."""
    if not (artifact.path / BILL_FILE).is_file():
        return []
    return [why for _, _, why in parse_bill_lines(artifact.read_bytes(BILL_FILE)) if why is not None]


def bounded(quote: Quote, most: Quote, room_micros: int) -> Quote:
    """Return the quote that a purchase is held at: what it costs at most, and no more than ``room_micros``.

    ``quote``: of what is expected. Labels are counted whole, dollars of tokens are not.
    """
    if most.charge_micros <= room_micros:
        return most
    units = Fraction(max(0, room_micros), MICROS_PER_USD) / Fraction(quote.unit_usd)
    quantity = units if quote.unit == DOLLAR_UNIT else Fraction(int(units))
    return replace(quote, quantity=quantity, charge_micros=cost_micros(quantity, quote.unit_usd))


def as_billed(quote: Quote, artifact: Artifact) -> Quote:
    """Return the quote of a purchase at the quantity that its artifact was billed for; the same where prices are fixed."""
    if (billed := artifact.usage.get("quantity")) is None:
        return quote
    quantity = Fraction(billed)
    return replace(quote, quantity=quantity, charge_micros=cost_micros(quantity, quote.unit_usd))


def words_on_short(step: Buy, artifact: Artifact) -> str:
    """Return what a purchase got and lacks, for its entry: " (43 labels, 2 refused)"."""
    n_labels, n_refused = artifact.usage["n_labels"], artifact.usage.get("n_refused", 0)
    n_unbought = step.n - n_labels - n_refused
    parts = [f"{n_labels:,} labels", *([f"{n_refused:,} refused"] if n_refused else [])]
    return f" ({', '.join([*parts, *([f'{n_unbought:,} beyond the money'] if n_unbought else [])])})"
