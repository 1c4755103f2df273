"""The folder of an order: items for annotators, and beside it what was ordered and delivered.

    FOLDER/order-1f3a9c0b7d21/README.txt            guideline
                             /annotator-1.csv       items to fill in, one file per annotator
                             /annotator-1.jsonl     the same items
                             /annotator-3.csv       items on which the first annotators disagree
                             /answers/              files that come back under other names
                             /problems.csv          rows that could not be read, or not as they are written
                             /report.txt            how much is in, and how far the annotators agree
    FOLDER/.outlay/order-1f3a9c0b7d21/order.json    rows, items and guideline; written once, when the order is accepted
                                     /state.json    what was given out and delivered

The folder of an order is complete or absent: it takes its name when all is in it. Everything is found by the order's id, in any
process. What annotators may move, change or remove is only theirs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from outlay.errors import SellerError
from outlay.labels.annotator import Answer, Order
from outlay.labels.files.cells import csv_bytes, writable
from outlay.labels.files.guideline import Guideline
from outlay.labels.purchases import answer_json, read_answer
from outlay.storage import locks
from outlay.storage.files import sync_folder, write_bytes, write_json, writing

HIDDEN = ".outlay"
ANSWERS, PROBLEMS, REPORT, README = "answers", "problems.csv", "report.txt", "README.txt"
ID, LABEL, COMMENT, SECONDS, ANNOTATOR = COLUMNS = ("id", "label", "comment", "seconds", "annotator")
"""Columns with a meaning; a field of the task with one of these names is shown as ``NAME (text)``."""
SUFFIXES = (".csv", ".jsonl", ".tsv")
"""Suffixes of files with answers; the first two are written."""

_FORMAT = 1
_ID_LETTERS = 12
_HEX_ID = re.compile(r"[0-9a-f]{12,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Item:
    """One row as annotators see it: under an id that no spreadsheet takes for a number or a date."""

    id: str
    row: str
    fields: tuple[tuple[str, str], ...]
    text: str

    def columns(self) -> dict[str, str]:
        """Return the fields by the name of their column."""
        return {f"{name} (text)" if name.casefold() in COLUMNS else name: value for name, value in self.fields}


@dataclass(frozen=True)
class Accepted:
    """An order as it was accepted: its items in order, the guideline, and how many annotators answer each item.

    ``breaks_ties``: where the first annotators disagree, one more is asked.
    """

    order: str
    items: tuple[Item, ...]
    guideline: Guideline
    redundancy: int
    breaks_ties: bool

    @classmethod
    def of(cls, order: Order, guideline: Guideline, redundancy: int, *, breaks_ties: bool) -> Accepted:
        """Return an order with an id for each item."""
        ids = _item_ids(order.rows)
        items = (
            Item(name, row.id, tuple((key, writable(value)) for key, value in row.fields), writable(row.text))
            for name, row in zip(ids, order.examples, strict=True)
        )
        return cls(order.id, tuple(items), guideline, redundancy, breaks_ties)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Accepted:
        """Return the order that `to_json` wrote."""
        items = (
            Item(each["id"], each["row"], tuple((name, value) for name, value in each["fields"]), each["text"])
            for each in values["items"]
        )
        guideline = Guideline.from_json(values["guideline"])
        return cls(values["order"], tuple(items), guideline, values["redundancy"], values["breaks_ties"])

    def to_json(self) -> dict[str, Any]:
        """Return the order as JSON values."""
        items = [
            {"id": item.id, "row": item.row, "fields": list(item.fields), "text": item.text} for item in self.items
        ]
        return {
            "format": _FORMAT,
            "order": self.order,
            "redundancy": self.redundancy,
            "breaks_ties": self.breaks_ties,
            "guideline": self.guideline.to_json(),
            "items": items,
        }

    @property
    def first_annotators(self) -> tuple[str, ...]:
        """Names of those who answer every item."""
        return tuple(f"annotator-{number}" for number in range(1, self.redundancy + 1))

    @property
    def tie_breaker(self) -> str:
        """Name of the one more who is asked where the first disagree."""
        return f"annotator-{self.redundancy + 1}"

    @cached_property
    def by_id(self) -> dict[str, Item]:
        """Items by their ids."""
        return {item.id: item for item in self.items}


@dataclass(frozen=True, slots=True)
class Settled:
    """Outcome of an item that was delivered, which nothing changes: a label or a refusal, and the answers that are paid."""

    label: str | None
    refused: str | None
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class State:
    """State of an order.

    ``n_given``: number of its items that were given out, the first ones; ``disputed``: ids of those that one more annotator has;
    ``settled``: what was delivered, by item id.
    """

    n_given: int
    disputed: tuple[str, ...] = ()
    is_closed: bool = False
    settled: Mapping[str, Settled] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> State:
        """Return the state that `to_json` wrote."""
        settled = {
            item: Settled(each["label"], each["refused"], tuple(map(read_answer, each["answers"])))
            for item, each in values["settled"].items()
        }
        return cls(values["n_given"], tuple(values["disputed"]), values["is_closed"], settled)

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        settled = {
            item: {"label": each.label, "refused": each.refused, "answers": list(map(answer_json, each.answers))}
            for item, each in self.settled.items()
        }
        return {
            "format": _FORMAT,
            "n_given": self.n_given,
            "disputed": list(self.disputed),
            "is_closed": self.is_closed,
            "settled": settled,
        }

    def files(self, accepted: Accepted) -> dict[str, tuple[Item, ...]]:
        """Return the items given out by the name of the annotator, which is that of the file."""
        found = dict.fromkeys(accepted.first_annotators, accepted.items[: self.n_given])
        if self.disputed:
            found[accepted.tie_breaker] = tuple(accepted.by_id[item] for item in self.disputed)
        return found


class OrderFolder:
    """The files of one order below the seller's folder."""

    def __init__(self, folder: Path) -> None:
        """Name the folder of an order, which need not be there."""
        self.path = folder
        self._hidden = folder.parent / HIDDEN / folder.name

    @classmethod
    def of(cls, folder: Path, order_id: str) -> OrderFolder:
        """Return the folder of an order below a seller's folder."""
        short = order_id if _HEX_ID.fullmatch(order_id) else hashlib.sha256(order_id.encode()).hexdigest()
        return cls(folder / f"order-{short[:_ID_LETTERS]}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the order.

        Raises:
            StoreError: the folder cannot be written.
        """
        with writing(self._hidden):
            lock = locks.acquire(self._hidden)
        try:
            yield
        finally:
            locks.release(lock, self._hidden, remove=False)

    def accepted(self) -> Accepted | None:
        """Return the order, ``None`` where none was accepted.

        Raises:
            SellerError: its record cannot be read.
        """
        values = self._read("order.json")
        return None if values is None else Accepted.from_json(values)

    def accept(self, accepted: Accepted) -> None:
        """Write the record of an order; nobody has its items yet."""
        write_json(self._hidden / "order.json", accepted.to_json())
        sync_folder(self._hidden)

    def state(self) -> State | None:
        """Return what became of the order, ``None`` where nothing was given out.

        Raises:
            SellerError: its record cannot be read.
        """
        values = self._read("state.json")
        return None if values is None else State.from_json(values)

    def keep(self, state: State) -> None:
        """Write what became of the order, synced, before anybody is told."""
        write_json(self._hidden / "state.json", state.to_json())
        sync_folder(self._hidden)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._hidden / name
        try:
            values: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise SellerError(f"{path} cannot be read: {error}; put it back as it was written") from None
        return values

    def give_out(self, accepted: Accepted, state: State) -> None:
        """Write what annotators get, where it is not there: the folder at once, then the file of the one more annotator."""
        files = state.files(accepted)
        if not self.path.is_dir():
            names = tuple(f"{name}.csv" for name in accepted.first_annotators)
            content = {README: writable(accepted.guideline.readme(state.n_given, names)).encode()}
            for name, items in files.items():
                content |= item_files(name, items)
            self._place(content)
        there = set(map(annotator_of, self.answer_files()))
        for name in files.keys() - there:
            for file, data in item_files(name, files[name]).items():
                write_bytes(self.path / file, data, sync=True, folder=self._hidden)
            sync_folder(self.path)

    def _place(self, files: Mapping[str, bytes]) -> None:
        """Fill a folder aside, then give it its name; what a kill left of an earlier one goes first."""
        aside = self._hidden / "aside"
        with writing(self.path):
            shutil.rmtree(aside, ignore_errors=True)
            (aside / ANSWERS).mkdir(parents=True)
            for name, data in files.items():
                with (aside / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            sync_folder(aside)
            aside.rename(self.path)
            sync_folder(self.path.parent)

    def answer_files(self) -> list[Path]:
        """Return every file that may hold answers, those in the folder first, each by name; hidden files are left out."""
        own = (README, PROBLEMS, REPORT)
        there = (path for path in _sorted(self.path) if path.name not in own)
        return [*there, *_sorted(self.path / ANSWERS)]

    def shown(self, path: Path) -> str:
        """Return a file's name as people see it: from the folder of the order on."""
        return path.relative_to(self.path).as_posix()

    def write_problems(self, rows: Sequence[Sequence[str]]) -> None:
        """Write the list of rows that need a look; without any it goes."""
        path = self.path / PROBLEMS
        if rows:
            self._write_anew(path, csv_bytes(("file", "line", "id", "taken", "what", "way out"), rows))
        else:
            with writing(path):
                path.unlink(missing_ok=True)

    def write_report(self, lines: Sequence[str]) -> None:
        """Write how much is in."""
        self._write_anew(self.path / REPORT, "".join(f"{line}\n" for line in lines).encode())

    def _write_anew(self, path: Path, data: bytes) -> None:
        """Write a file where it says something else, so that polling leaves the disk alone."""
        if not path.is_file() or path.read_bytes() != data:
            write_bytes(path, data, folder=self._hidden)


def order_folders(folder: Path) -> list[OrderFolder]:
    """Return the folders of all orders that a seller accepted in a folder."""
    return [OrderFolder(folder / path.name) for path in sorted((folder / HIDDEN).glob("order-*"))]


def annotator_of(path: Path) -> str:
    """Return the name of the annotator that a file's name carries: ``alice`` of ``alice.csv``."""
    name = path.name
    for suffix in (".gz", *SUFFIXES):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def _sorted(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _item_ids(rows: Sequence[str]) -> list[str]:
    """Return an id for each row, which begins with a letter and depends on the row alone, but where two would be the same."""
    digests = [hashlib.sha256(row.encode("utf-8", "surrogatepass")).hexdigest() for row in rows]
    length = next(n for n in range(_ID_LETTERS, 65) if n == 64 or len({each[:n] for each in digests}) == len(digests))
    return [f"row-{each[:length]}" for each in digests]


def item_files(annotator: str, items: Sequence[Item]) -> dict[str, bytes]:
    """Return the files of one annotator by name, with an empty label and comment for each item."""
    names = list(dict.fromkeys(name for item in items for name in item.columns()))
    rows = ([item.id, *(item.columns().get(name, "") for name in names), "", ""] for item in items)
    lines = ({ID: item.id, **item.columns(), LABEL: "", COMMENT: ""} for item in items)
    table = csv_bytes((ID, *names, LABEL, COMMENT), rows)
    return {
        f"{annotator}.csv": table,
        f"{annotator}.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(),
    }
