"""The log of purchases: every label ever bought, by series, so that no label is bought twice.

One append-only JSONL file per series (one seller, one set of rows, one order). An order is logged and synced before it is sent, a
delivery before it counts as received: after a crash, every order that may be at the seller is known by its id and collected, not
ordered again. A line that a crash cut short is dropped on opening.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from outlay.errors import StoreError


@dataclass(frozen=True, slots=True)
class PurchaseRecord:
    """One delivery in the log: the order, the payer (a run in a ledger), the cash paid, the human seconds, and the labels
    by row id."""

    order: str
    payer: str
    cash_micros: int
    human_seconds: float
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """One order in the log, written before the order is sent: its id, its payer, and the ids of its rows, in order."""

    order: str
    payer: str
    ordered: tuple[str, ...]


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
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            file = os.open(self._root / f"{series}.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise StoreError(f"cannot open the book of bought labels in {self._root}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield SellerLog(file)
        finally:
            os.close(file)

    def paid_by(self, payer: str) -> int:
        """Return the cash, in micro-dollars, that ``payer`` paid for labels of every series.

        Raises:
            StoreError: a file cannot be read.
        """
        return sum(self.read(path.stem).paid_by(payer) for path in sorted(self._root.glob("*.jsonl")))

    def read(self, series: str) -> SellerLog:
        """Read the log of one series without waiting for its writer; nothing can be added to the result.

        Raises:
            StoreError: the file cannot be read.
        """
        path = self._root / f"{series}.jsonl"
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            file = os.open(os.devnull, os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"cannot read the book of bought labels {path}: {error.strerror}") from error
        try:
            return SellerLog(file, is_written=False)
        finally:
            os.close(file)


class SellerLog:
    """The log of one series: ``labels`` by row id, ``receipts`` in the order they came, ``orders`` by their ids."""

    def __init__(self, file: int, *, is_written: bool = True) -> None:
        self._file = file
        self.labels: dict[str, str] = {}
        self.receipts: list[PurchaseRecord] = []
        self.orders: dict[str, OrderRecord] = {}
        data = b""
        while chunk := os.read(file, 1 << 20):
            data += chunk
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data) and is_written:
            os.ftruncate(file, len(whole))
        for line in whole.splitlines():
            record = json.loads(line)
            if "ordered" in record:
                self.orders[record["order"]] = OrderRecord(**{**record, "ordered": tuple(record["ordered"])})
            else:
                labels = tuple((row, label) for row, label in record["labels"])
                self._keep(PurchaseRecord(**{**record, "labels": labels}))

    @property
    def open_orders(self) -> list[OrderRecord]:
        """Orders that may be at the seller: those with a row that has no label yet, in the order of the log."""
        return [each for each in self.orders.values() if not self.labels.keys() >= set(each.ordered)]

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
        self._write([asdict(receipt)])
        self._keep(receipt)

    def note(self, orders: Sequence[OrderRecord]) -> None:
        """Write orders that are about to be sent, and sync them to disk.

        Raises:
            StoreError: no room, or the disk refuses.
        """
        self._write([asdict(order) for order in orders])
        self.orders |= {order.order: order for order in orders}

    def _write(self, records: Sequence[Mapping[str, object]]) -> None:
        data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise StoreError(f"cannot write bought labels: {error.strerror}; make room and run again") from error

    def _keep(self, receipt: PurchaseRecord) -> None:
        self.receipts.append(receipt)
        self.labels.update(receipt.labels)


def label_lines(rows: Sequence[tuple[str, str]]) -> bytes:
    """Return the bytes of a labels artifact: one JSON object with ``row`` and ``label`` per line."""
    return "".join(json.dumps({"row": row, "label": label}, ensure_ascii=False) + "\n" for row, label in rows).encode()


def parse_label_lines(lines: bytes) -> list[str]:
    """Return the labels that `label_lines` wrote; a label may hold any character, line separators of Unicode too."""
    return [json.loads(line)["label"] for line in lines.split(b"\n") if line]
