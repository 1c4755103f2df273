"""Entries of the ledger: their columns and their hash chain.

Every entry's hash is sha256 over the canonical JSON of its other fields, the hash of the entry before it included, so
no byte of the past can change without changing the head. `Anchor` is that head with the number of entries: an
anchor kept outside the ledger also reveals a lost tail.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

GENESIS = "0" * 64
"""The `prev_hash` of the first entry, and the head of an empty ledger."""

KINDS = ("open", "topup", "hold", "settle", "overrun", "release", "lost", "cancel", "stored")

_FIRST_COLUMNS = (
    *("seq", "run_id", "kind", "key", "item", "unit", "quantity", "unit_usd", "charge_micros", "cash_micros"),
    *("cash_quantity", "hold_seq", "at", "note", "prev_hash", "hash"),
)
_LATER_COLUMNS = ("artifact_key",)
COLUMNS = (*_FIRST_COLUMNS, *_LATER_COLUMNS)
"""Columns of the table `entries`, in order."""


def columns_of(version: int) -> tuple[str, ...]:
    """Return the columns of `entries` in a file of a format version."""
    return _FIRST_COLUMNS if version < 2 else COLUMNS


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the ledger; its fields are the columns of `entries`.

    `kind` is one of `KINDS`. `quantity` (exact fraction) of `unit` at `unit_usd` dollars makes `charge_micros`;
    `cash_quantity` of the same unit makes the cash, and is None where cash was not metered in that unit.
    For `open` and `topup` both amounts are what the run may spend in addition. `hold_seq` is the hold that a settle,
    overrun, release, lost or stored entry belongs to. `at` is UTC, ISO 8601. `artifact_key` is the key of a settlement's
    artifact, in the settle entry or in a `stored` entry about a settlement without one.
    """

    seq: int
    run_id: str
    kind: str
    key: str
    item: str
    unit: str
    quantity: Fraction
    unit_usd: str
    charge_micros: int
    cash_micros: int
    cash_quantity: Fraction | None
    hold_seq: int | None
    at: str
    note: str
    prev_hash: str
    hash: str
    artifact_key: str | None = None

    @classmethod
    def of_row(cls, row: Sequence[object], columns: Sequence[str] = COLUMNS) -> Entry:
        """Return the entry of a database row in the order of ``columns``. Raises ValueError where a field cannot be read."""
        field = dict(zip(columns, row, strict=True))
        integers = ("seq", "charge_micros", "cash_micros")
        texts = ("run_id", "kind", "key", "item", "unit", "quantity", "unit_usd", "at", "note", "prev_hash", "hash")
        wrong = [name for name in integers if not isinstance(field[name], int)]
        wrong += [name for name in texts if not isinstance(field[name], str)]
        wrong += ["hold_seq"] if not isinstance(field["hold_seq"], int | None) else []
        wrong += [name for name in ("cash_quantity", "artifact_key") if not isinstance(field.get(name), str | None)]
        if wrong:
            raise ValueError(f"its {wrong[0]} is {field[wrong[0]]!r}")
        try:
            cash_quantity = None if field["cash_quantity"] is None else Fraction(str(field["cash_quantity"]))
            field |= {"quantity": Fraction(str(field["quantity"])), "cash_quantity": cash_quantity}
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"a quantity cannot be read: {error}") from error
        return cls(*field.values())  # type: ignore[arg-type]  # every type was checked above


@dataclass(frozen=True, slots=True)
class Anchor:
    """The hash of the entry number `count` of a ledger, kept outside of it."""

    head: str
    count: int


def hash_of(fields: Mapping[str, object]) -> str:
    """Return the sha256, in hex, over the canonical JSON of an entry's column values without its own hash.

    A column that came with a later format is hashed where it holds something: entries from before it keep their hashes.
    Raises TypeError or ValueError for a value that JSON cannot hold (a blob, say), which no honest entry has.
    """
    absent = {"hash", *(name for name in _LATER_COLUMNS if fields.get(name) is None)}
    content = {name: value for name, value in fields.items() if name not in absent}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def uri_of(path: Path, mode: str) -> str:
    """Return the SQLite URI that opens the existing file `path`, or its last state where its folder cannot be written."""
    sealed = not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists()
    return f"{path.absolute().as_uri()}?{'immutable=1' if sealed else f'mode={mode}'}"
