"""SQL of a ledger inside the caller's transaction: holds, balances, the head, and the one insert."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from outlay.errors import HoldError, LedgerDamaged
from outlay.money.amounts import Quote
from outlay.money.ledger.chain import COLUMNS, GENESIS, KINDS, Anchor, Entry, hash_of

_COLUMN_LIST = ", ".join(COLUMNS)
_OPEN_HOLD = (
    "kind = 'hold' AND NOT EXISTS (SELECT 1 FROM entries AS closing"
    " WHERE closing.kind IN ('settle', 'release') AND closing.hold_seq = entries.seq)"
)

_BLANK: Mapping[str, object] = {
    **dict.fromkeys(("key", "item", "unit", "note"), ""),
    **{"quantity": "0", "unit_usd": "0", "charge_micros": 0, "cash_micros": 0},
    **dict.fromkeys(("cash_quantity", "hold_seq", "artifact_key")),
}
_INSERT = f"INSERT INTO entries ({_COLUMN_LIST}) VALUES ({', '.join(':' + name for name in COLUMNS)})"


@dataclass(frozen=True, slots=True)
class Hold:
    """A quote set aside under `key` in a run: the entry `seq` of the ledger, with that entry's hash."""

    seq: int
    run_id: str
    key: str
    quote: Quote
    hash: str

    @classmethod
    def of(cls, entry: Entry) -> Hold:
        """Return the hold of an entry of kind ``hold``."""
        quote = Quote(
            entry.item, entry.unit, entry.quantity, Decimal(entry.unit_usd), entry.charge_micros, entry.cash_micros
        )
        return cls(entry.seq, entry.run_id, entry.key, quote, entry.hash)


@dataclass(frozen=True, slots=True)
class Balance:
    """Balance of a run's budget, in micro-dollars.

    Charged, cash, lost and held amounts fit into the budget by construction; an excess over a hold is booked apart, as
    overrun, and can make the totals exceed the budget.
    """

    budget_micros: int
    charged_micros: int
    cash_micros: int
    lost_micros: int
    overrun_charge_micros: int
    overrun_cash_micros: int
    held_charge_micros: int
    held_cash_micros: int

    @property
    def total_charge_micros(self) -> int:
        """The whole charge, overruns included."""
        return self.charged_micros + self.overrun_charge_micros

    @property
    def total_cash_micros(self) -> int:
        """The whole cash, lost work and overruns included."""
        return self.cash_micros + self.lost_micros + self.overrun_cash_micros

    @property
    def available_charge_micros(self) -> int:
        """Charge left for a new hold: never negative."""
        return max(0, self.budget_micros - self.total_charge_micros - self.held_charge_micros)

    @property
    def available_cash_micros(self) -> int:
        """Cash left for a new hold: never negative."""
        return max(0, self.budget_micros - self.total_cash_micros - self.held_cash_micros)


def select(db: sqlite3.Connection, condition: str, *values: object) -> list[Entry]:
    """Return the entries that meet an SQL condition, in order. Raises LedgerDamaged where one cannot be read."""
    rows = db.execute(f"SELECT {_COLUMN_LIST} FROM entries WHERE {condition} ORDER BY seq", values)
    try:
        return [Entry.of_row(row) for row in rows]
    except ValueError as error:
        raise LedgerDamaged(
            f"an entry of the ledger cannot be read: {error}; `outlay ledger verify` says more"
        ) from error


def find(db: sqlite3.Connection, condition: str, *values: object) -> Entry | None:
    """Return the first entry that meets an SQL condition, or None."""
    return next(iter(select(db, condition, *values)), None)


def artifact_keys(db: sqlite3.Connection, run_id: str, key: str) -> list[str]:
    """Return the keys under which artifacts settled as ``key``, or as ``key/…``, are stored; the newest first."""
    condition = "kind IN ('settle', 'stored') AND run_id = ? AND (key = ? OR substr(key, 1, ?) = ?)"
    found = select(db, condition, run_id, key, len(key) + 1, f"{key}/")
    return [entry.artifact_key for entry in reversed(found) if entry.artifact_key is not None]


def open_holds(db: sqlite3.Connection, run_id: str) -> list[Hold]:
    """Return the holds of a run that are neither settled nor released, oldest first."""
    return [Hold.of(entry) for entry in select(db, f"run_id = ? AND {_OPEN_HOLD}", run_id)]


def sums(db: sqlite3.Connection, run_id: str | None) -> dict[str, tuple[int, int]]:
    """Return charge and cash in micro-dollars by kind, of one run or of all; ``hold`` counts the open holds only."""
    condition = "1" if run_id is None else "run_id = ?"
    values = () if run_id is None else (run_id,)
    columns = "coalesce(sum(charge_micros), 0), coalesce(sum(cash_micros), 0)"
    found = dict.fromkeys(KINDS, (0, 0))
    for kind, charge, cash in db.execute(
        f"SELECT kind, {columns} FROM entries WHERE {condition} GROUP BY kind", values
    ):
        found[kind] = (charge, cash)
    found["hold"] = db.execute(f"SELECT {columns} FROM entries WHERE {condition} AND {_OPEN_HOLD}", values).fetchone()
    return found


def balance(db: sqlite3.Connection, run_id: str) -> Balance:
    """Return the balance of a run."""
    found = sums(db, run_id)
    return Balance(
        budget_micros=found["open"][0] + found["topup"][0],
        charged_micros=found["settle"][0],
        cash_micros=found["settle"][1],
        lost_micros=found["lost"][1],
        overrun_charge_micros=found["overrun"][0],
        overrun_cash_micros=found["overrun"][1],
        held_charge_micros=found["hold"][0],
        held_cash_micros=found["hold"][1],
    )


def anchor(db: sqlite3.Connection) -> Anchor:
    """Return the head and the number of entries."""
    row = db.execute("SELECT hash, seq FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
    return Anchor(*row) if row else Anchor(GENESIS, 0)


def append(db: sqlite3.Connection, kind: str, fields: Mapping[str, object], at: str) -> tuple[int, str]:
    """Append an entry inside the caller's transaction and return its number and hash; ``at``: UTC, ISO 8601."""
    last = anchor(db)
    values = {**_BLANK, **fields, "kind": kind, "seq": last.count + 1, "at": at, "prev_hash": last.head}
    values["note"] = str(values["note"]).encode("utf-8", "replace").decode("utf-8")
    digest = hash_of(values)
    db.execute(_INSERT, {**values, "hash": digest})
    return last.count + 1, digest


def require_run(db: sqlite3.Connection, run_id: str) -> Entry:
    """Return the entry that opened a run. Raises HoldError for an unknown run."""
    opened = find(db, "kind = 'open' AND run_id = ?", run_id)
    if opened is None:
        raise HoldError(f"run {run_id!r} is not in this ledger; open it with its budget first")
    return opened


def cancelled(db: sqlite3.Connection, run_id: str) -> Entry | None:
    """Return the entry that cancelled a run, or None."""
    return find(db, "kind = 'cancel' AND run_id = ?", run_id)


def require_active(db: sqlite3.Connection, run_id: str) -> None:
    """Raise HoldError for a run that is unknown or cancelled."""
    require_run(db, run_id)
    end = cancelled(db, run_id)
    if end:
        raise HoldError(f"run {run_id!r} was cancelled at {end.at}; start another run")


def require_open(db: sqlite3.Connection, hold: Hold) -> None:
    """Raise HoldError for a hold that is closed, foreign or unknown."""
    _require_ours(db, hold)
    closing = find(db, "kind IN ('settle', 'release') AND hold_seq = ?", hold.seq)
    if closing:
        raise HoldError(
            f"hold {hold.seq} of key {hold.key!r} was closed by {closing.kind} entry {closing.seq}; hold anew"
        )


def released_by_cancel(db: sqlite3.Connection, hold: Hold) -> bool:
    """Return whether `cancel` released a hold and no loss was booked on that hold since."""
    _require_ours(db, hold)
    end = cancelled(db, hold.run_id)
    released = find(db, "kind = 'release' AND hold_seq = ?", hold.seq)
    lost = find(db, "run_id = ? AND kind = 'lost' AND hold_seq = ?", hold.run_id, hold.seq)
    return end is not None and released is not None and released.seq > end.seq and lost is None


def _require_ours(db: sqlite3.Connection, hold: Hold) -> None:
    entry = find(db, "seq = ? AND kind = 'hold'", hold.seq)
    if entry is None or Hold.of(entry) != hold:
        raise HoldError(f"hold {hold.seq} of key {hold.key!r} in run {hold.run_id!r} is not of this ledger")
