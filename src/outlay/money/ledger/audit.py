"""Verification of a ledger: every hash, every reference and every sum, recomputed from the entries alone.

`audit` shares no arithmetic with `outlay.money.ledger`, which asks SQLite for its sums: here the entries are replayed one by
one over a plain model of budgets and holds, and the first entry that does not follow from those before it is named.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from outlay.money.amounts import format_usd
from outlay.money.ledger.chain import GENESIS, KINDS, Anchor, Entry, columns_of, hash_of, uri_of
from outlay.money.ledger.migrations import MIGRATIONS, objects_of, schema_of

_MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class Verification:
    """Findings of `verify`: `first_bad` is the number of the first bad entry, None where no single entry is to blame.

    `n_entries` counts the good entries before the damage; `head` is the hash of the last of them.
    """

    ok: bool
    n_entries: int
    first_bad: int | None
    reason: str
    head: str


class _BadEntry(Exception):  # a verdict, not an error of ours
    """A bad entry, with the reason why it does not follow from those before."""


@dataclass(slots=True)
class _Run:
    """State of one run after the entries so far, in micro-dollars."""

    budget: int
    charged: int = 0
    cash: int = 0  # settled and lost, without overruns
    overrun_charge: int = 0
    overrun_cash: int = 0
    open: dict[int, Entry] = field(default_factory=dict)
    paid: dict[str, Entry] = field(default_factory=dict)  # settlements by key
    stored: set[str] = field(default_factory=set)  # keys with a `stored` entry
    cancelled: bool = False

    def left(self) -> tuple[int, int]:
        """Return the charge and cash left for a new hold; never negative, even after overruns."""
        charge = self.budget - self.charged - self.overrun_charge - sum(h.charge_micros for h in self.open.values())
        cash = self.budget - self.cash - self.overrun_cash - sum(h.cash_micros for h in self.open.values())
        return max(0, charge), max(0, cash)


@dataclass(slots=True)
class _Replay:
    """State of all runs of a ledger, fed one entry at a time."""

    runs: dict[str, _Run] = field(default_factory=dict)
    released: dict[int, Entry] = field(default_factory=dict)  # holds released, whose loss is not booked yet
    overrun: tuple[int, int, int] | None = None  # hold, charge and cash that the very next entry must book
    may_overrun: int | None = None  # hold whose unmetered cash the very next entry may book as an overrun

    def feed(self, entry: Entry) -> None:
        """Apply `entry`, or raise _BadEntry."""
        if entry.kind not in KINDS:
            raise _BadEntry(f"its kind {entry.kind!r} is unknown")
        if entry.charge_micros < 0 or entry.cash_micros < 0 or entry.quantity < 0:
            raise _BadEntry("it books a negative amount")
        if entry.artifact_key is not None and entry.kind not in ("settle", "stored"):
            raise _BadEntry(f"a {entry.kind} entry names an artifact")
        if self.overrun and entry.kind != "overrun":
            raise _BadEntry(f"the overrun of hold {self.overrun[0]} is missing before it")
        run = self.runs.get(entry.run_id)
        if entry.kind == "open":
            if run:
                raise _BadEntry(f"run {entry.run_id!r} is opened twice")
            self._check_amount(entry)
            self.runs[entry.run_id] = _Run(entry.charge_micros)
        elif run is None:
            raise _BadEntry(f"run {entry.run_id!r} was never opened")
        elif entry.kind in ("topup", "hold", "cancel"):
            if run.cancelled:
                raise _BadEntry(f"run {entry.run_id!r} was cancelled before")
            self._feed_open_run(run, entry)
        elif entry.kind == "stored":
            self._feed_stored(run, entry)
        else:
            self._feed_closing(run, entry)
        if entry.kind not in ("settle", "lost"):
            self.may_overrun = None

    def _check_amount(self, entry: Entry) -> None:
        if entry.charge_micros != entry.cash_micros or entry.charge_micros == 0:
            raise _BadEntry("its charge and its cash are not one budget above zero")

    def _feed_open_run(self, run: _Run, entry: Entry) -> None:
        if entry.kind == "topup":
            self._check_amount(entry)
            run.budget += entry.charge_micros
        elif entry.kind == "cancel":
            run.cancelled = True
        else:
            if entry.key in run.paid:
                raise _BadEntry(f"its key {entry.key!r} was settled before")
            if any(hold.key == entry.key for hold in run.open.values()):
                raise _BadEntry(f"its key {entry.key!r} is held twice")
            charge, cash = run.left()
            if entry.charge_micros > charge or entry.cash_micros > cash:
                raise _BadEntry(
                    f"it holds {format_usd(entry.charge_micros)} charge and {format_usd(entry.cash_micros)} cash,"
                    f" but {format_usd(charge)} and {format_usd(cash)} were left"
                )
            run.open[entry.seq] = entry

    def _feed_stored(self, run: _Run, entry: Entry) -> None:
        settled = run.paid.get(entry.key)
        if settled is None or settled.hold_seq != entry.hold_seq:
            raise _BadEntry(f"nothing was settled under its key {entry.key!r} and hold {entry.hold_seq}")
        if settled.artifact_key is not None or entry.key in run.stored:
            raise _BadEntry(f"what is stored for key {entry.key!r} is said twice")
        if entry.artifact_key is None or entry.charge_micros or entry.cash_micros:
            raise _BadEntry("it names no artifact, or books money")
        run.stored.add(entry.key)

    def _feed_closing(self, run: _Run, entry: Entry) -> None:
        if entry.hold_seq is None:
            raise _BadEntry(f"a {entry.kind} entry belongs to a hold, and it names none")
        if entry.kind == "settle":
            self._settle(run, self._take(run.open, entry, "open"), entry)
        elif entry.kind == "release":
            if entry.charge_micros or entry.cash_micros:
                raise _BadEntry("a release books money")
            self.released[entry.hold_seq] = self._take(run.open, entry, "open")
        elif entry.kind == "lost":
            hold = self._take(self.released, entry, "newly released")
            if entry.charge_micros or entry.cash_micros > hold.cash_micros:
                raise _BadEntry(f"it loses more than the cash of hold {hold.seq}")
            run.cash += entry.cash_micros
            self.may_overrun = hold.seq if entry.cash_micros == hold.cash_micros else None
        else:
            self._overrun(run, entry)

    def _take(self, holds: dict[int, Entry], entry: Entry, state: str) -> Entry:
        hold = holds.get(entry.hold_seq or 0)
        if hold is None or (hold.run_id, hold.key) != (entry.run_id, entry.key):
            raise _BadEntry(f"hold {entry.hold_seq} of key {entry.key!r} in run {entry.run_id!r} is not {state}")
        if (hold.item, hold.unit, hold.unit_usd) != (entry.item, entry.unit, entry.unit_usd):
            raise _BadEntry(f"its item or price is not that of hold {hold.seq}")
        return holds.pop(hold.seq)

    def _settle(self, run: _Run, hold: Entry, entry: Entry) -> None:
        due = _ceil_micros(entry.quantity, entry.unit_usd)
        if entry.charge_micros != min(due, hold.charge_micros):
            raise _BadEntry(
                f"its charge is {format_usd(entry.charge_micros)}, but {float(entry.quantity):g} at ${entry.unit_usd}"
                f" is {format_usd(due)}, of which its hold allows {format_usd(min(due, hold.charge_micros))}"
            )
        cash = entry.cash_micros if entry.cash_quantity is None else _ceil_micros(entry.cash_quantity, entry.unit_usd)
        if entry.cash_micros != min(cash, hold.cash_micros):
            raise _BadEntry(
                f"its cash is {format_usd(entry.cash_micros)}, not {format_usd(min(cash, hold.cash_micros))}"
            )
        excess = due - entry.charge_micros, cash - entry.cash_micros
        self.overrun = (hold.seq, *excess) if any(excess) else None
        at_bound = entry.cash_quantity is None and entry.cash_micros == hold.cash_micros
        self.may_overrun = hold.seq if at_bound else None
        run.paid[entry.key] = entry
        run.charged += entry.charge_micros
        run.cash += entry.cash_micros

    def _overrun(self, run: _Run, entry: Entry) -> None:
        booked = (entry.hold_seq, entry.charge_micros, entry.cash_micros)
        free_cash = self.may_overrun == entry.hold_seq
        due = self.overrun or (entry.hold_seq, 0, 0)
        if booked[:2] != due[:2] or (booked[2] != due[2] and not free_cash) or not any(booked[1:]):
            raise _BadEntry(f"it books an overrun of hold {entry.hold_seq} that nothing before it explains")
        self.overrun = None
        run.overrun_charge += entry.charge_micros
        run.overrun_cash += entry.cash_micros


def audit(path: Path, anchors: Iterable[Anchor] = ()) -> Verification:
    """Recompute the ledger at `path` and compare it with every anchor; a damaged file is a finding, never an error."""
    if not path.exists():
        return Verification(False, 0, None, f"there is no ledger at {path}", GENESIS)
    # Read-only where a write-ahead log lies beside it: closing a writer would fold that evidence into the file.
    uri = uri_of(path, "ro" if Path(f"{path}-wal").exists() else "rw")
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)) as db:
            db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            db.execute("PRAGMA query_only = ON")
            db.execute("BEGIN")  # one snapshot for all that follows
            return _audit(db, list(anchors))
    except (sqlite3.Error, OverflowError) as error:
        return Verification(False, 0, None, f"{path} cannot be read as a ledger: {error}", GENESIS)


def _audit(db: sqlite3.Connection, anchors: Sequence[Anchor]) -> Verification:
    hashes = [GENESIS]
    replay = _Replay()

    def found(reason: str, first_bad: int | None = None) -> Verification:
        return Verification(False, len(hashes) - 1, first_bad, reason, hashes[-1])

    (version,) = db.execute("PRAGMA user_version").fetchone()
    columns = columns_of(version)
    try:
        for row in db.execute(f"SELECT {', '.join(columns)} FROM entries ORDER BY seq"):
            seq, values = len(hashes), dict(zip(columns, row, strict=True))
            try:
                _check_chain(values, seq, hashes[-1])
                replay.feed(Entry.of_row(row, columns))
            except (_BadEntry, ValueError, ZeroDivisionError) as error:
                return found(f"entry {seq}: {error}", seq)
            hashes.append(values["hash"])
    except sqlite3.Error as error:
        return found(f"entry {len(hashes)} cannot be read: {error}", len(hashes))
    count = len(hashes) - 1
    if replay.overrun:
        return found(f"entry {count + 1} is missing: the overrun of hold {replay.overrun[0]} must follow", count + 1)
    for anchor in anchors:
        if anchor.count > count:
            return found(f"entries {count + 1} to {anchor.count} are missing: the anchor knows them", count + 1)
        if anchor.count < 0 or hashes[anchor.count] != anchor.head:
            return found(f"entry {anchor.count} is not the one that the anchor knows", max(0, anchor.count) or None)
    try:
        flaw = _file_flaw(db)
    except sqlite3.Error as error:
        flaw = f"the file is damaged: {error}"
    if flaw:
        return found(flaw)
    return Verification(True, count, None, f"{count} entries, all in order", hashes[-1])


def _check_chain(values: Mapping[str, object], seq: int, head: str) -> None:
    if values["seq"] != seq:
        raise _BadEntry(f"it is missing; the next entry is number {values['seq']}")
    if values["prev_hash"] != head:
        raise _BadEntry("it does not follow the entry before it: its prev_hash is another")
    try:
        expected = hash_of(values)
    except (TypeError, ValueError):
        expected = "unreadable"
    if values["hash"] != expected:
        raise _BadEntry("its content does not match its hash")


def _file_flaw(db: sqlite3.Connection) -> str:
    checks = [str(row[0]) for row in db.execute("PRAGMA integrity_check(1)")]
    if checks != ["ok"]:
        return f"the file is damaged: {' '.join(checks[0].split())}"
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not 1 <= version <= len(MIGRATIONS):
        return f"the schema is version {version}; this outlay reads version 1 to {len(MIGRATIONS)}"
    made = objects_of(db)
    for (kind, name), sql in schema_of(version).items():
        if made.get((kind, name)) != sql:
            return f"the {kind} {name} is missing or changed, so entries may have been altered"
    return ""


def _ceil_micros(quantity: Fraction, unit_usd: str) -> int:
    exact = quantity * Fraction(unit_usd) * _MICROS
    return -(-exact.numerator // exact.denominator)
