"""Appending of entries to a ledger: numbered, chained to the entry before, and hashed."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from outlay.money.ledger import queries
from outlay.money.ledger.chain import COLUMNS, hash_of

_BLANK: Mapping[str, object] = {
    **dict.fromkeys(("key", "item", "unit", "note"), ""),
    **{"quantity": "0", "unit_usd": "0", "charge_micros": 0, "cash_micros": 0},
    **dict.fromkeys(("cash_quantity", "hold_seq", "artifact_key")),
}
_INSERT = f"INSERT INTO entries ({', '.join(COLUMNS)}) VALUES ({', '.join(':' + name for name in COLUMNS)})"


def append(db: sqlite3.Connection, kind: str, fields: Mapping[str, object], at: str) -> tuple[int, str]:
    """Append an entry inside the caller's transaction and return its number and hash; ``at``: UTC, ISO 8601."""
    last = queries.anchor(db)
    values = {**_BLANK, **fields, "kind": kind, "seq": last.count + 1, "at": at, "prev_hash": last.head}
    values["note"] = str(values["note"]).encode("utf-8", "replace").decode("utf-8")
    digest = hash_of(values)
    db.execute(_INSERT, {**values, "hash": digest})
    return last.count + 1, digest
