"""Every label ever bought, kept by series: what is in the book is never bought again, whatever happens to the run.

One append-only JSONL file per series (one seller, one set of rows, one order). A line is written and synced before the
seller's delivery counts as received; a line that a crash cut short is dropped on opening, and its order asked for again under
the same id (which the `Annotator` contract bills once).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    """One delivery as it stands in the book: the order, who paid (a run in a ledger), what left the bank, human seconds,
    and the labels by row id."""

    order: str
    payer: str
    cash_micros: int
    human_seconds: float
    labels: tuple[tuple[str, str], ...]


class PurchaseLog:
    """The folder of all series."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def open(self, series: str) -> Iterator[SellerLog]:
        """One series, alone: another process that buys from it waits here.

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


class SellerLog:
    """What was bought of one series: ``labels`` by row id, and the ``receipts`` in the order they came."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.labels: dict[str, str] = {}
        self.receipts: list[PurchaseRecord] = []
        data = b""
        while chunk := os.read(file, 1 << 20):
            data += chunk
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.ftruncate(file, len(whole))
        for line in whole.splitlines():
            record = json.loads(line)
            self._keep(PurchaseRecord(**{**record, "labels": tuple((row, label) for row, label in record["labels"])}))

    def paid_by(self, payer: str) -> int:
        """Micro-dollars that left the bank of ``payer`` for this series."""
        return sum(receipt.cash_micros for receipt in self.receipts if receipt.payer == payer)

    def add(self, receipt: PurchaseRecord) -> None:
        """Write one delivery, on disk when this returns.

        Raises:
            StoreError: no room, or the disk refuses.
        """
        data = (json.dumps(asdict(receipt), ensure_ascii=False) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise StoreError(f"cannot write bought labels: {error.strerror}; make room and run again") from error
        self._keep(receipt)

    def _keep(self, receipt: PurchaseRecord) -> None:
        self.receipts.append(receipt)
        self.labels.update(receipt.labels)


def label_lines(rows: Sequence[tuple[str, str]]) -> bytes:
    """The bytes of a labels artifact: one JSON object with ``row`` and ``label`` per line."""
    return "".join(json.dumps({"row": row, "label": label}, ensure_ascii=False) + "\n" for row, label in rows).encode()


def parse_label_lines(lines: bytes) -> list[str]:
    """The labels that `label_lines` wrote. A label may hold any character, line separators of Unicode too."""
    return [json.loads(line)["label"] for line in lines.split(b"\n") if line]
