"""The numbered migrations of a ledger's file.

Each leads from the format before it to its own; the number of the last one that was applied is the file's `PRAGMA user_version`.
All that a file still lacks are applied in one transaction (`outlay.money.ledger.sqlite_file`), so that a file is of one format or
of the next, never between two. No migration changes an entry: facts that an older format recorded otherwise are repeated in an
appended entry, so that the hashes of all older entries, and every older anchor, stay valid.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from outlay.money.ledger import queries
from outlay.money.ledger.chain import GENESIS


@dataclass(frozen=True, slots=True)
class Migration:
    """One step between two formats: its number, its description, its SQL statements, and the entries appended after them.

    ``append``: called with the connection, inside the transaction, and the time for new entries (UTC, ISO 8601).
    """

    number: int
    what: str
    statements: tuple[str, ...]
    append: Callable[[sqlite3.Connection, str], None] | None = None

    def apply(self, db: sqlite3.Connection, at: str) -> None:
        """Apply this migration inside the caller's transaction, its number included."""
        for statement in self.statements:
            db.execute(statement)
        if self.append is not None:
            self.append(db, at)
        db.execute(f"PRAGMA user_version = {self.number}")


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
_ENTRIES_AND_LEASES = (
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
)

_KEY = re.compile(r"[0-9a-f]{64}")
_CUT_SHORT = " (cut short by its hold): "
"""Text in the note of a settlement of format 1, before the key of an artifact that is not stored under its step's key."""


def _append_stored_entries(db: sqlite3.Connection, at: str) -> None:
    """Append a ``stored`` entry for every settlement whose note holds a key; the only reader of such notes."""
    for entry in queries.select(db, "kind = 'settle' AND instr(note, ?)", _CUT_SHORT):
        key = entry.note.partition(_CUT_SHORT)[2]
        if not _KEY.fullmatch(key):
            continue
        said = {"run_id": entry.run_id, "key": entry.key, "hold_seq": entry.hold_seq, "artifact_key": key}
        queries.append(db, "stored", {**said, "note": f"as entry {entry.seq} says in words"}, at)


MIGRATIONS = (
    Migration(
        1, "make the table of entries with the triggers that guard it, and the table of leases", _ENTRIES_AND_LEASES
    ),
    Migration(
        2,
        "give entries a column for the key that an artifact is stored under, and say it where only a note did",
        ("ALTER TABLE entries ADD COLUMN artifact_key TEXT",),
        _append_stored_entries,
    ),
)
"""Migrations by number, which begins at 1."""


def schema_of(version: int) -> dict[tuple[str, str], str]:
    """Return the SQL of every table, index and trigger that a file of this format has, by type and name."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for migration in MIGRATIONS[:version]:
            migration.apply(db, "")
        return objects_of(db)


def objects_of(db: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """Return the SQL of every table, index and trigger of an open file, by type and name."""
    found = db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {(kind, name): sql for kind, name, sql in found}
