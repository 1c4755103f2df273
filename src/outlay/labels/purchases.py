"""The log of purchases: every label ever bought, by series, so that no label is bought twice.

One append-only JSONL file per series (one seller, one set of rows, one order). An order is logged and synced before it is sent, a
delivery before it counts as received: after a crash, every order that may be at the seller is known by its id and collected, not
ordered again. A line that a crash cut short is dropped on opening.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from outlay.errors import StoreError
from outlay.labels.annotator import Answer


@dataclass(frozen=True, slots=True)
class PurchaseRecord:
    """One delivery in the log: the order, the payer (a run in a ledger), the cash paid, the human seconds, and the labels
    by row id.

    Of a seller whose answers cannot be had again also the reasons by refused row, the quantity billed for each row so far, exact
    and in the unit of the seller's price, and the new answers.
    """

    order: str
    payer: str
    cash_micros: int
    human_seconds: float
    labels: tuple[tuple[str, str], ...]
    refused: tuple[tuple[str, str], ...] = ()
    quantities: tuple[tuple[str, Fraction], ...] = ()
    answers: tuple[Answer, ...] = ()

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> PurchaseRecord:
        """Return the record of a line."""
        return cls(
            record["order"],
            record["payer"],
            record["cash_micros"],
            record["human_seconds"],
            tuple((row, label) for row, label in record["labels"]),
            tuple((row, reason) for row, reason in record.get("refused", ())),
            tuple((row, Fraction(quantity)) for row, quantity in record.get("quantities", ())),
            tuple(read_answer(answer) for answer in record.get("answers", ())),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the line of the record; what it has not is left out."""
        plain = {name: getattr(self, name) for name in ("order", "payer", "cash_micros", "human_seconds", "labels")}
        later = {
            "refused": self.refused,
            "quantities": [(row, str(quantity)) for row, quantity in self.quantities],
            "answers": [answer_json(answer) for answer in self.answers],
        }
        return plain | {name: value for name, value in later.items() if value}

    @property
    def rows(self) -> set[str]:
        """Rows that the delivery says something about."""
        return {row for row, _ in (*self.labels, *self.refused, *self.quantities)}


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """One order in the log, written before the order is sent: its id, its payer, and the ids of its rows, in order.

    ``terms``: what its bill can be worked out from again, of a seller whose answers cannot be had again: prices, and where it
    keeps what came (`outlay.engine.purchase_terms`).
    """

    order: str
    payer: str
    ordered: tuple[str, ...]
    terms: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the line of the record; terms are left out where there are none."""
        plain = {"order": self.order, "payer": self.payer, "ordered": self.ordered}
        return plain | ({"terms": dict(self.terms)} if self.terms else {})


class PurchaseLog:
    """The log of all series: a folder with one file per series."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def open(self, series: str) -> Iterator[SellerLog]:
        """Open the log of one series for writing; another process that buys from the series waits here.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = self._root / f"{series}.jsonl"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise StoreError(f"cannot open the purchase log in {self._root}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield SellerLog(path.read_bytes(), file)
        finally:
            os.close(file)

    @property
    def series(self) -> list[str]:
        """Every series that something was bought or ordered of."""
        return sorted(path.stem for path in self._root.glob("*.jsonl"))

    def paid_by(self, payer: str) -> int:
        """Return the cash, in micro-dollars, that ``payer`` paid for labels of every series.

        Raises:
            StoreError: a file cannot be read.
        """
        return sum(self.read(series).paid_by(payer) for series in self.series)

    def read(self, series: str) -> SellerLog:
        """Read the log of one series without waiting for its writer; nothing can be added to the result.

        Raises:
            StoreError: the file cannot be read.
        """
        path = self._root / f"{series}.jsonl"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return SellerLog(b"")
        except OSError as error:
            raise StoreError(f"cannot read the purchase log {path}: {error.strerror}") from error
        return SellerLog(data)


class SellerLog:
    """The log of one series: ``labels``, ``refused`` (reasons), ``quantities`` and ``answers`` by row id, ``receipts`` in the
    order they came, ``orders`` by their ids."""

    def __init__(self, data: bytes, file: int | None = None) -> None:
        lines = data[: data.rfind(b"\n") + 1]
        if file is not None and len(lines) < len(data):
            os.ftruncate(file, len(lines))
        self._file = file
        self.labels: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.quantities: dict[str, Fraction] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.receipts: list[PurchaseRecord] = []
        self.orders: dict[str, OrderRecord] = {}
        for line in lines.splitlines():
            record = json.loads(line)
            if "ordered" in record:
                self.orders[record["order"]] = OrderRecord(**{**record, "ordered": tuple(record["ordered"])})
            else:
                self._keep(PurchaseRecord.read(record))

    def is_settled(self, row: str) -> bool:
        """Return whether a row has its label, or never will."""
        return row in self.labels or row in self.refused

    @property
    def open_orders(self) -> list[OrderRecord]:
        """Orders that may be at the seller: those with a row that is not settled, in the order of the log."""
        return [each for each in self.orders.values() if not all(map(self.is_settled, each.ordered))]

    def receipts_of(self, order: str) -> list[PurchaseRecord]:
        """Return the deliveries of one order, in the order they came."""
        return [receipt for receipt in self.receipts if receipt.order == order]

    def paid_by(self, payer: str) -> int:
        """Return the cash, in micro-dollars, that ``payer`` paid for this series."""
        return sum(receipt.cash_micros for receipt in self.receipts if receipt.payer == payer)

    def add(self, receipt: PurchaseRecord) -> None:
        """Write one delivery and sync it to disk.

        Raises:
            StoreError: no room, or the disk refuses.
        """
        self._write([receipt.to_json()])
        self._keep(receipt)

    def note(self, orders: Sequence[OrderRecord]) -> None:
        """Write orders that are about to be sent, and sync them to disk.

        Raises:
            StoreError: no room, or the disk refuses.
        """
        self._write([order.to_json() for order in orders])
        self.orders |= {order.order: order for order in orders}

    def _write(self, records: Sequence[Mapping[str, object]]) -> None:
        assert self._file is not None, "a log that is only read"
        data = _json_lines(records)
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise StoreError(f"cannot write the purchase log: {error.strerror}; make room and run again") from error

    def _keep(self, receipt: PurchaseRecord) -> None:
        self.receipts.append(receipt)
        self.labels.update(receipt.labels)
        self.refused.update(receipt.refused)
        self.quantities.update(receipt.quantities)
        for answer in receipt.answers:
            self.answers.setdefault(answer.row, []).append(answer)


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON values; what it has not is left out."""
    told = {"row": answer.row, "by": answer.by, "text": answer.text, "label": answer.label}
    later = {"seconds": answer.seconds, "confidence": answer.confidence, "probabilities": answer.probabilities}
    return told | {name: value for name, value in later.items() if value not in (None, (), 0.0)}


def read_answer(record: Mapping[str, Any]) -> Answer:
    """Return the answer that `answer_json` wrote."""
    return Answer(**{**record, "probabilities": tuple(record.get("probabilities", ()))})


def answer_lines(answers: Iterable[Answer]) -> bytes:
    """Return the bytes of the answers of a labels artifact: one JSON object per line."""
    return _json_lines(answer_json(answer) for answer in answers)


def parse_answer_lines(lines: bytes) -> list[Answer]:
    """Return the answers that `answer_lines` wrote."""
    return [read_answer(json.loads(line)) for line in lines.split(b"\n") if line]


def bill_lines(rows: Iterable[tuple[str, Fraction, str | None]]) -> bytes:
    """Return the bytes of a purchase's bill: for each row the exact quantity billed, and the reason where it was refused."""
    return _json_lines(
        {"row": row, "quantity": str(quantity), **({} if why is None else {"refused": why})}
        for row, quantity, why in rows
    )


def parse_bill_lines(lines: bytes) -> list[tuple[str, Fraction, str | None]]:
    """Return the rows that `bill_lines` wrote."""
    records = [json.loads(line) for line in lines.split(b"\n") if line]
    return [(record["row"], Fraction(record["quantity"]), record.get("refused")) for record in records]


def label_lines(rows: Sequence[tuple[str, str]]) -> bytes:
    """Return the bytes of a labels artifact: one JSON object with ``row`` and ``label`` per line."""
    return _json_lines({"row": row, "label": label} for row, label in rows)


def parse_label_lines(lines: bytes) -> dict[str, str]:
    """Return the labels that `label_lines` wrote, by row; a label may hold any character, line separators of Unicode too."""
    records = [json.loads(line) for line in lines.split(b"\n") if line]
    return {record["row"]: record["label"] for record in records}


def _json_lines(records: Iterable[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
