"""The ledger's entries: what they hold, how they are chained by hash, and the SQLite schema that guards them.

Every entry's hash is sha256 over the canonical JSON of its other fields, the hash of the entry before it included, so
no byte of the past can change without changing the head. `Anchor` is that head with the number of entries: whoever
keeps an anchor outside the ledger can also see a lost tail.
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

KINDS = ("open", "topup", "hold", "settle", "overrun", "release", "lost", "cancel")

COLUMNS = (
    *("seq", "run_id", "kind", "key", "item", "unit", "quantity", "unit_usd", "charge_micros", "cash_micros"),
    *("cash_quantity", "hold_seq", "at", "note", "prev_hash", "hash"),
)

_REFUSED_INSERT = " OR ".join(
    (
        "NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM entries)",
        f"NEW.prev_hash IS NOT coalesce((SELECT hash FROM entries ORDER BY seq DESC LIMIT 1), '{GENESIS}')",
        "EXISTS (SELECT 1 FROM entries WHERE hash = NEW.hash)",
        "(NEW.kind = 'open' AND EXISTS (SELECT 1 FROM entries WHERE kind = 'open' AND run_id = NEW.run_id))",
        "(NEW.kind = 'settle' AND EXISTS"
        " (SELECT 1 FROM entries WHERE kind = 'settle' AND run_id = NEW.run_id AND key = NEW.key))",
        "(NEW.kind IN ('settle', 'release') AND EXISTS"
        " (SELECT 1 FROM entries WHERE kind IN ('settle', 'release') AND hold_seq = NEW.hold_seq))",
    )
)

# `INSERT OR REPLACE` removes the row it replaces without firing delete triggers, so the insert trigger itself refuses
# every row that would collide with any unique index below.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE entries (
            seq INTEGER PRIMARY KEY, run_id TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, item TEXT NOT NULL,
            unit TEXT NOT NULL, quantity TEXT NOT NULL, unit_usd TEXT NOT NULL, charge_micros INTEGER NOT NULL,
            cash_micros INTEGER NOT NULL, cash_quantity TEXT, hold_seq INTEGER, at TEXT NOT NULL, note TEXT NOT NULL,
            prev_hash TEXT NOT NULL, hash TEXT NOT NULL)""",
        "CREATE UNIQUE INDEX entries_hash ON entries (hash)",
        "CREATE UNIQUE INDEX entries_opened_once ON entries (run_id) WHERE kind = 'open'",
        "CREATE UNIQUE INDEX entries_settled_once ON entries (run_id, key) WHERE kind = 'settle'",
        "CREATE UNIQUE INDEX entries_closed_once ON entries (hold_seq) WHERE kind IN ('settle', 'release')",
        "CREATE INDEX entries_sums ON entries (run_id, kind, charge_micros, cash_micros)",
        """CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
            BEGIN SELECT RAISE(ABORT, 'ledger entries cannot be changed'); END""",
        """CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries
            BEGIN SELECT RAISE(ABORT, 'ledger entries cannot be deleted'); END""",
        f"""CREATE TRIGGER entries_append_only BEFORE INSERT ON entries WHEN {_REFUSED_INSERT}
            BEGIN SELECT RAISE(ABORT, 'ledger entries can only be appended'); END""",
        """CREATE TABLE leases (
            hold_seq INTEGER PRIMARY KEY, expires_seconds REAL NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
            started TEXT NOT NULL)""",
    ),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger; field by field what the columns of `entries` hold.

    `kind` is one of `KINDS`. `quantity` (exact fraction) of `unit` at `unit_usd` dollars makes `charge_micros`;
    `cash_quantity` of the same unit makes the cash, and is None where cash was not metered in that unit.
    For `open` and `topup` both amounts are what the run may spend in addition. `hold_seq` is the hold that a settle,
    overrun, release or lost entry belongs to. `at` is UTC, ISO 8601.
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

    @classmethod
    def of_row(cls, row: Sequence[object]) -> Entry:
        """The entry of a database row in the order of `COLUMNS`. Raises ValueError where a field cannot be read."""
        field = dict(zip(COLUMNS, row, strict=True))
        integers = ("seq", "charge_micros", "cash_micros")
        texts = ("run_id", "kind", "key", "item", "unit", "quantity", "unit_usd", "at", "note", "prev_hash", "hash")
        wrong = [name for name in integers if not isinstance(field[name], int)]
        wrong += [name for name in texts if not isinstance(field[name], str)]
        wrong += ["hold_seq"] if not isinstance(field["hold_seq"], int | None) else []
        wrong += ["cash_quantity"] if not isinstance(field["cash_quantity"], str | None) else []
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
    """sha256, in hex, over the canonical JSON of an entry's column values without its own hash.

    Raises TypeError or ValueError for a value that JSON cannot hold (a blob, say), which no honest entry has.
    """
    content = {name: value for name, value in fields.items() if name != "hash"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def uri_of(path: Path, mode: str) -> str:
    """The SQLite URI that opens the existing file `path`, or its last state where its folder cannot be written."""
    sealed = not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists()
    return f"{path.absolute().as_uri()}?{'immutable=1' if sealed else f'mode={mode}'}"
