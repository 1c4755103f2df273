"""The ledger: append-only, hash-chained, one SQLite file.

Hold, act, settle. Nothing is bought before `hold` has set its quote aside; one ``BEGIN IMMEDIATE`` transaction reads
what is left and refuses or appends. What a step really cost is booked by `settle`; what exceeds its hold is booked as
an ``overrun``, after which what is left may be zero but never less. `release` gives a hold back and books the cash of
work that must be redone as ``lost``. A budget limits the charge of a run and its cash alike.

Every commit is followed by ``<ledger>.anchor`` (head and count), so `verify` also sees a lost tail. A crash in between
leaves the anchor behind the ledger, which is harmless.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

from outlay.errors import AlreadyPaid, BudgetExceeded, HoldError, MissingData, MoneyError, StoreError
from outlay.money.amounts import Quote, check_micros, cost_micros, format_usd, write_usd
from outlay.money.ledger import queries
from outlay.money.ledger.audit import Verification, audit
from outlay.money.ledger.chain import Anchor, Entry, uri_of
from outlay.money.ledger.owner import Owner
from outlay.money.ledger.queries import Balance, Hold
from outlay.money.ledger.sqlite_file import clear_errors, holds_anything, open_file, undo_on_error
from outlay.storage.files import write_text

_inherited: list[sqlite3.Connection] = []  # connections of a parent process: neither used nor closed after a fork


class Ledger:
    """The ledger at `path`; the first `open_run` creates the file, reading never does.

    `cash_cap_micros` limits the cash of all runs of this ledger together. `clock` gives seconds since 1970, UTC.
    One object serves the threads of one process; processes share the file. Every method may raise MissingData where
    there is no file, LedgerDamaged where SQLite cannot make sense of it, DiskFull, and SpendError where another
    process keeps it locked for longer than a minute.
    """

    def __init__(
        self, path: str | Path, *, cash_cap_micros: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self.anchor_path = Path(f"{path}.anchor")
        self._cash_cap_micros = None if cash_cap_micros is None else check_micros("the cash cap", cash_cap_micros)
        self._clock = clock
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._joined: sqlite3.Connection | None = None  # the transaction of `together`, once something is written in it
        self._n_together = 0
        self._pid = os.getpid()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._own_lock():
            if self._db is not None:
                self._db.close()
            self._db = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Commit the entries of a ``with`` block in one transaction at its end, after an error too; each call fails alone.

        For entries without a purchase or a computation behind them, such as those of cached artifacts: nothing is on the
        disk before the end. Other processes that write wait from the first entry on.
        """
        with self._own_lock(), clear_errors(self.path):
            self._n_together += 1
            try:
                yield
            finally:
                self._n_together -= 1
                if self._n_together == 0 and self._joined is not None:
                    db, self._joined = self._joined, None
                    if db.in_transaction:  # a full disk ends it
                        _commit(db)
                        self._write_anchor(db)

    # Runs

    def open_run(self, run_id: str, budget_micros: int, note: str = "") -> None:
        """Open a run with a budget for charge and for cash. A second call with the same budget appends nothing.

        Raises MoneyError for a budget of 0 or another one than the run was opened with.
        """
        _check_amount("the budget", budget_micros)
        _check_name("run id", run_id)
        with self._writing(create=True) as db:
            opened = queries.find(db, "kind = 'open' AND run_id = ?", run_id)
            if opened is None:
                amounts = {"charge_micros": budget_micros, "cash_micros": budget_micros}
                self._append(db, "open", {"run_id": run_id, "note": note, **amounts})
            elif opened.charge_micros != budget_micros:
                raise MoneyError(
                    f"run {run_id!r} was opened with {format_usd(opened.charge_micros)}, not"
                    f" {format_usd(budget_micros)}; top it up, or start another run"
                )

    def top_up(self, run_id: str, amount_micros: int, note: str = "") -> None:
        """Add to a run's budget. Raises MoneyError for 0, HoldError for a run that is unknown or cancelled."""
        _check_amount("the top-up", amount_micros)
        with self._writing() as db:
            queries.require_active(db, run_id)
            check_micros("the budget with this top-up", queries.balance(db, run_id).budget_micros + amount_micros)
            amounts = {"charge_micros": amount_micros, "cash_micros": amount_micros}
            self._append(db, "topup", {"run_id": run_id, "note": note, **amounts})

    def cancel(self, run_id: str, note: str = "") -> None:
        """Cancel a run: release its open holds and refuse later ones. A second call appends nothing.

        Cash that the owner of such a hold had already spent can still be booked with `release(hold, lost_cash_micros=…)`.
        """
        with self._writing() as db:
            queries.require_run(db, run_id)
            if queries.cancelled(db, run_id) is None:
                self._append(db, "cancel", {"run_id": run_id, "note": note})
                for hold in queries.open_holds(db, run_id):
                    self._close(db, "release", hold, {"note": "the run was cancelled"})

    # Holds

    def hold(self, run_id: str, key: str, quote: Quote, *, lease_seconds: float = 900) -> Hold:
        """Set `quote` aside under `key`, or refuse.

        Raises BudgetExceeded where charge or cash do not fit into what is left of the run (or cash into the cap over
        all runs), AlreadyPaid for a key that this run has settled, HoldError for a key that is held already and for a
        run that is unknown or cancelled.
        """
        _check_name("key", key)
        with self._writing() as db:
            queries.require_active(db, run_id)
            paid = queries.find(db, "kind = 'settle' AND run_id = ? AND key = ?", run_id, key)
            if paid:
                raise AlreadyPaid(f"key {key!r} was settled by entry {paid.seq}; use what it bought, or another key")
            held = next((hold for hold in queries.open_holds(db, run_id) if hold.key == key), None)
            if held:
                raise HoldError(f"key {key!r} is held by entry {held.seq}; settle or release that hold first")
            self._require_room(db, run_id, quote)
            amounts = {"charge_micros": quote.charge_micros, "cash_micros": quote.cash_micros}
            sold = {"run_id": run_id, "key": key, "quantity": str(quote.quantity), **_sold(quote)}
            seq, digest = self._append(db, "hold", {**sold, **amounts})
            self._lease(db, seq, lease_seconds)
            return Hold(seq, run_id, key, quote, digest)

    def renew(self, hold: Hold, lease_seconds: float = 900) -> None:
        """Make this process the owner of an open hold for the next `lease_seconds`. Raises HoldError."""
        with self._writing() as db:
            queries.require_open(db, hold)
            self._lease(db, hold.seq, lease_seconds)

    def settle(
        self,
        hold: Hold,
        *,
        quantity: Fraction,
        charge_micros: int,
        cash_micros: int,
        cash_quantity: Fraction | None = None,
        note: str = "",
        artifact_key: str | None = None,
    ) -> None:
        """Book the real cost of a hold's purchase; an excess over the hold becomes an overrun entry.

        The charge must be `quantity` at the held price, rounded up, and the cash `cash_quantity` at that price where
        it is given (None: cash that was not metered in the hold's unit, an invoice say). `artifact_key` is the key of
        the purchase in the store. Raises MoneyError for another charge or cash, HoldError for a hold that is closed,
        foreign or unknown.
        """
        _check_product("charge", charge_micros, quantity, hold.quote)
        if cash_quantity is not None:
            _check_product("cash", cash_micros, cash_quantity, hold.quote)
        check_micros("the cash", cash_micros)
        with self._writing() as db:
            queries.require_open(db, hold)
            charge, cash = min(charge_micros, hold.quote.charge_micros), min(cash_micros, hold.quote.cash_micros)
            settled = {"charge_micros": charge, "cash_micros": cash, "quantity": str(Fraction(quantity)), "note": note}
            settled["cash_quantity"] = None if cash_quantity is None else str(Fraction(cash_quantity))
            self._close(db, "settle", hold, {**settled, "artifact_key": artifact_key})
            self._overrun(db, hold, charge_micros - charge, cash_micros - cash)

    def release(self, hold: Hold, *, lost_cash_micros: int = 0, note: str = "") -> None:
        """Release a hold; the cash of work that must be redone is booked as lost, never as a charge.

        Raises HoldError for a hold that is closed, foreign or unknown. The one closed hold that may still book a loss,
        once, is one that `cancel` released.
        """
        check_micros("the lost cash", lost_cash_micros)
        with self._writing() as db:
            if not (lost_cash_micros and queries.released_by_cancel(db, hold)):
                queries.require_open(db, hold)
                self._close(db, "release", hold, {"note": note})
            if lost_cash_micros:
                lost = min(lost_cash_micros, hold.quote.cash_micros)
                self._append(db, "lost", {**_of_hold(hold), "cash_micros": lost, "note": note})
                self._overrun(db, hold, 0, lost_cash_micros - lost)

    def open_holds(self, run_id: str) -> list[Hold]:
        """Return the holds of a run that are neither settled nor released, oldest first. Raises HoldError."""
        with self._reading() as db:
            queries.require_run(db, run_id)
            return queries.open_holds(db, run_id)

    def expired_holds(self, run_id: str) -> list[Hold]:
        """Return the open holds whose lease is over, or whose owner was a process of this host that has ended."""
        with self._reading() as db:
            queries.require_run(db, run_id)
            return [hold for hold in queries.open_holds(db, run_id) if self._is_expired(db, hold)]

    # Reading

    def settled(self, run_id: str, key: str) -> Entry | None:
        """Return the entry that settled `key` in a run, or None."""
        with self._reading() as db:
            return queries.find(db, "kind = 'settle' AND run_id = ? AND key = ?", run_id, key)

    def artifact_keys(self, run_id: str, key: str) -> list[str]:
        """Return the keys of artifacts settled in a run as `key`, or as `key/…`; the newest first."""
        with self._reading() as db:
            return queries.artifact_keys(db, run_id, key)

    def balance(self, run_id: str) -> Balance:
        """Return the balance of a run. Raises HoldError for an unknown run."""
        with self._reading() as db:
            queries.require_run(db, run_id)
            return queries.balance(db, run_id)

    def cash_room_micros(self, run_id: str) -> int:
        """Return the most cash that a new hold of a run can get, by the run's balance and the cap over all runs."""
        with self._reading() as db:
            queries.require_run(db, run_id)
            left, room = queries.balance(db, run_id).available_cash_micros, self._cap_room(db)
            return left if room is None else min(left, room)

    def entries(self, run_id: str | None = None) -> list[Entry]:
        """Return every entry in order, of one run or of all; none for an unknown run."""
        with self._reading() as db:
            return queries.select(db, "1") if run_id is None else queries.select(db, "run_id = ?", run_id)

    def first_hash(self) -> str:
        """Return the hash of the first entry, which identifies this ledger. Raises MissingData where there is none."""
        with self._reading() as db:
            return queries.select(db, "seq = 1")[0].hash

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, in the order in which they were opened."""
        with self._reading() as db:
            return [entry.run_id for entry in queries.select(db, "kind = 'open'")]

    def anchor(self) -> Anchor:
        """Return the current head and number of entries."""
        with self._reading() as db:
            return queries.anchor(db)

    def verify(self, anchors: Sequence[Anchor] = ()) -> Verification:
        """Recompute every hash, reference and sum, and compare with the anchor file and every anchor given.

        A damaged, missing or foreign file is a finding, never an error.
        """
        own: list[Anchor] = []  # read before the entries: a writer in between can only make the ledger longer
        flaw = ""
        try:
            content = json.loads(self.anchor_path.read_text(encoding="ascii"))
            own.append(Anchor(str(content["head"]), int(content["count"])))
        except FileNotFoundError:
            flaw = f"its anchor file {self.anchor_path} is missing"
        except (OSError, ValueError, KeyError, TypeError):
            flaw = f"its anchor file {self.anchor_path} is damaged"
        found = audit(self.path, [*own, *anchors])
        # Only the first commit can be cut off before its anchor was ever written.
        if found.ok and flaw and (found.n_entries > 1 or self.anchor_path.exists()):
            return Verification(False, found.n_entries, None, f"{flaw}, so a lost tail could not be seen", found.head)
        return found

    # The file

    def _own_lock(self) -> threading.RLock:
        if self._pid != os.getpid():  # a fork must not touch its parent's connection, nor wait for its threads
            if self._db is not None:
                _inherited.append(self._db)
            self._db, self._pid, self._lock = None, os.getpid(), threading.RLock()
            self._joined, self._n_together = None, 0
        return self._lock

    @property
    def is_begun(self) -> bool:
        """True where there is a ledger at the path. A new file that could not be filled (a full disk) is none yet."""
        if not self.path.exists() or self.anchor_path.exists():
            return self.path.exists()
        with clear_errors(self.path), closing(sqlite3.connect(uri_of(self.path, "rw"), uri=True)) as db:
            return holds_anything(db)

    def _connection(self, *, create: bool = False) -> sqlite3.Connection:
        if self._db is None:
            if not create and not self.path.exists():
                raise MissingData(f"there is no ledger at {self.path}; a run makes it")
            self._db, was_migrated = open_file(self.path, create=create, at=self._now())
            if was_migrated:
                self._write_anchor(self._db)
        return self._db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._own_lock(), clear_errors(self.path):
            if self._joined is not None:
                yield self._joined
                return
            db = self._connection()
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("ROLLBACK")

    @contextmanager
    def _writing(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        with self._own_lock(), clear_errors(self.path):
            db = self._connection(create=create)
            if self._n_together:
                with self._joining(db):
                    yield db
                return
            db.execute("BEGIN IMMEDIATE")
            before = db.total_changes
            with undo_on_error(db, "ROLLBACK"):
                yield db
            if db.total_changes != before:
                _commit(db)
                self._write_anchor(db)
            else:
                db.execute("ROLLBACK")

    @contextmanager
    def _joining(self, db: sqlite3.Connection) -> Iterator[None]:
        """Run one call within `together`, under a savepoint."""
        if self._joined is None:
            db.execute("BEGIN IMMEDIATE")
            self._joined = db
        db.execute("SAVEPOINT one")
        with undo_on_error(db, "ROLLBACK TO one"):
            yield
        db.execute("RELEASE one")

    def _write_anchor(self, db: sqlite3.Connection) -> None:
        # The write lock orders the writers, so an older anchor never replaces a newer one. An anchor that cannot be
        # written stays behind, as after a crash: the entry is committed, and its caller gets no error.
        with suppress(OSError, StoreError, sqlite3.OperationalError):
            db.execute("BEGIN IMMEDIATE")
            try:
                anchor = queries.anchor(db)
                text = json.dumps({"count": anchor.count, "head": anchor.head})
                write_text(self.anchor_path, text, sync=True)
            finally:
                db.execute("ROLLBACK")

    # Entries

    def _append(self, db: sqlite3.Connection, kind: str, fields: Mapping[str, object]) -> tuple[int, str]:
        return queries.append(db, kind, fields, self._now())

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="microseconds")

    def _close(self, db: sqlite3.Connection, kind: str, hold: Hold, fields: Mapping[str, object]) -> None:
        self._append(db, kind, {**_of_hold(hold), **fields})
        db.execute("DELETE FROM leases WHERE hold_seq = ?", (hold.seq,))

    def _overrun(self, db: sqlite3.Connection, hold: Hold, charge_micros: int, cash_micros: int) -> None:
        if charge_micros or cash_micros:
            amounts = {"charge_micros": charge_micros, "cash_micros": cash_micros}
            self._append(db, "overrun", {**_of_hold(hold), **amounts, "note": "above its hold"})

    def _require_room(self, db: sqlite3.Connection, run_id: str, quote: Quote) -> None:
        left = queries.balance(db, run_id)
        for name, wanted, available in (
            ("charge", quote.charge_micros, left.available_charge_micros),
            ("cash", quote.cash_micros, left.available_cash_micros),
        ):
            if wanted > available:
                raise BudgetExceeded(
                    f"{quote.item} needs {format_usd(wanted)} of {name}, but {format_usd(available)} is left of"
                    f" {format_usd(left.budget_micros)}; buy less, or top the run up"
                )
        room = self._cap_room(db)
        if self._cash_cap_micros is not None and room is not None and quote.cash_micros > room:
            raise BudgetExceeded(
                f"{quote.item} needs {format_usd(quote.cash_micros)} of cash, but {format_usd(room)} is left of the"
                f" cap of {format_usd(self._cash_cap_micros)} over all runs; buy less, or raise the cap"
            )

    def _cap_room(self, db: sqlite3.Connection) -> int | None:
        """Return the cash that the cap over all runs still allows; None without a cap."""
        if self._cash_cap_micros is None:
            return None
        found = queries.sums(db, None)
        spent = sum(found[kind][1] for kind in ("settle", "lost", "overrun", "hold"))
        return max(0, self._cash_cap_micros - spent)

    # Leases: the process at work on a hold; never part of the chain

    def _lease(self, db: sqlite3.Connection, seq: int, lease_seconds: float) -> None:
        owner = Owner.current()
        lease = (seq, self._clock() + lease_seconds, owner.host, owner.pid, owner.started)
        db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?)", lease)

    def _is_expired(self, db: sqlite3.Connection, hold: Hold) -> bool:
        row = db.execute("SELECT * FROM leases WHERE hold_seq = ?", (hold.seq,)).fetchone()
        return row is None or row[1] <= self._clock() or Owner(*row[2:]).is_dead()


def _commit(db: sqlite3.Connection) -> None:
    with undo_on_error(db, "ROLLBACK"):
        db.execute("COMMIT")


def _sold(quote: Quote) -> dict[str, object]:
    return {"item": quote.item, "unit": quote.unit, "unit_usd": write_usd(quote.unit_usd)}


def _of_hold(hold: Hold) -> dict[str, object]:
    return {"run_id": hold.run_id, "key": hold.key, "hold_seq": hold.seq, **_sold(hold.quote)}


def _check_amount(name: str, micros: int) -> None:
    if check_micros(name, micros) == 0:
        raise MoneyError(f"{name} is $0.00; give more")


def _check_name(what: str, name: str) -> None:
    if not name.strip() or not name.isprintable():
        raise HoldError(f"the {what} is {name!r}; give one line of printable text")


def _check_product(name: str, micros: int, quantity: Fraction, quote: Quote) -> None:
    check_micros(f"the {name}", micros)
    due = cost_micros(quantity, quote.unit_usd)
    if micros != due:
        raise MoneyError(
            f"the {name} of {float(quantity):g} at ${write_usd(quote.unit_usd)} per {quote.unit} is {format_usd(due)},"
            f" not {format_usd(micros)}; round the exact product up, once"
        )
