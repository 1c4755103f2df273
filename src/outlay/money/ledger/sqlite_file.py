"""The SQLite file under a ledger: its settings, its schema, and its errors in one clear line."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from outlay.errors import DiskFull, LedgerDamaged, SpendError
from outlay.money.ledger.chain import uri_of
from outlay.money.ledger.migrations import MIGRATIONS
from outlay.storage.paths import command_line

# SQLite says "disk I/O error" where a file may not grow; only what it reads wrongly is damage.
_WRITE_ERRORS = (
    *(sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC),
    *(sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP),
)
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
BUSY_SECONDS = 60.0
"""Seconds that one process waits for another that is writing."""


def open_file(path: Path, *, create: bool, at: str) -> tuple[sqlite3.Connection, bool]:
    """Open the file with this program's settings in the newest format, and return whether the file was migrated just now.

    A missing or empty file becomes a ledger where `create` allows it. An older ledger that cannot be written is read from a copy
    in memory. `at`: the time for entries that a migration appends (UTC, ISO 8601).
    Raises LedgerDamaged for a file that is no ledger, or one of a newer outlay.
    """
    exists = path.exists()
    uri = uri_of(path, "rw" if exists else "rwc")
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
    try:
        version = _checked_version(db, path, create=create)
        db.execute("PRAGMA synchronous = FULL")
        if version == len(MIGRATIONS):
            return db, False
        if exists and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            return _migrated_copy(db, at), False
        _use_write_ahead_log(db)
        _migrate(db, at)
        return db, version > 0
    except BaseException:
        db.close()
        raise


def _checked_version(db: sqlite3.Connection, path: Path, *, create: bool) -> int:
    db.execute("BEGIN")  # one snapshot: another process may be making the schema right now
    version, n_objects = _version_and_objects(db)
    db.execute("ROLLBACK")
    if version > len(MIGRATIONS):
        raise LedgerDamaged(
            f"{path} is a ledger of version {version}, this outlay reads up to {len(MIGRATIONS)}; upgrade outlay"
        )
    if version == 0 and n_objects:
        raise LedgerDamaged(f"{path} is an SQLite file but no ledger; name another file")
    if version == 0 and not create:
        raise LedgerDamaged(f"{path} is empty; restore it from a copy, or remove it to begin anew")
    return version


def _migrated_copy(db: sqlite3.Connection, at: str) -> sqlite3.Connection:
    """Return a copy in memory, in the newest format, that refuses to be written; closes ``db``."""
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    with closing(db):
        db.backup(copy)
    _migrate(copy, at)
    copy.execute("PRAGMA query_only = ON")
    return copy


def holds_anything(db: sqlite3.Connection) -> bool:
    """Return whether anything was ever written to an SQLite file."""
    return any(_version_and_objects(db))


def _version_and_objects(db: sqlite3.Connection) -> tuple[int, int]:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (n_objects,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return version, n_objects


def _primary(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary code of an error; ``None`` where Python itself raised the error."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _use_write_ahead_log(db: sqlite3.Connection) -> None:
    # SQLite answers "locked" at once, whatever the timeout, when two processes switch the mode of a new file together.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _primary(error) not in _LOCKED or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _migrate(db: sqlite3.Connection, at: str) -> None:
    """Apply every migration that the file lacks in one transaction, under SQLite's lock on writers."""
    db.execute("BEGIN IMMEDIATE")
    with undo_on_error(db, "ROLLBACK"):
        (version,) = db.execute("PRAGMA user_version").fetchone()  # another process may have been first
        for migration in MIGRATIONS[version:]:
            migration.apply(db, at)
        db.execute("COMMIT")


@contextmanager
def undo_on_error(db: sqlite3.Connection, undo: str) -> Iterator[None]:
    """Execute ``undo`` where a ``with`` block raises, unless its transaction is over: a full disk ends it."""
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute(undo)
        raise


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into errors of outlay: DiskFull, SpendError (locked, read-only), LedgerDamaged (anything else)."""
    try:
        yield
    except sqlite3.Error as error:
        code, primary = getattr(error, "sqlite_errorcode", None), _primary(error)
        if primary == sqlite3.SQLITE_FULL:
            raise DiskFull(f"no room on the disk of {path}: nothing was booked; free some space") from error
        if code in _WRITE_ERRORS:
            raise DiskFull(
                f"{path} cannot be written ({error}): nothing was booked; make room on its disk, or raise the limit on the size "
                "of files, and run the same command again to go on"
            ) from error
        if primary in _LOCKED:
            raise SpendError(
                f"{path} was locked by another process for {BUSY_SECONDS:g} s: nothing was booked; try again"
            ) from error
        if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise SpendError(
                f"{path} cannot be opened or written: {error}; check its folder and permissions"
            ) from error
        verify = command_line("outlay", "ledger", "verify", path)
        raise LedgerDamaged(f"{path}: {error}; `{verify}` says where") from error
