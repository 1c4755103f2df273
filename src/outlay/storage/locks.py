"""A lock on a folder that ends with the process that holds it.

The lock is the operating system's (`flock`) on a file ``lock`` inside the folder, so it excludes threads as well as
processes, and a killed holder leaves nothing to clean up. The file says who holds it. Its holder may delete it: whoever
waits notices that the name now leads to another file, and tries again.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from outlay.storage.files import writing

LOCK = "lock"


def acquire(folder: Path, on_wait: Callable[[str], None] | None = None, poll_seconds: float = 0.1) -> int:
    """Wait for the lock and return its open file; ``on_wait`` is called with who holds it, once per holder."""
    reported: str | None = None
    while (lock := try_acquire(folder)) is None:
        if on_wait is not None and (holder := _holder(folder)) != reported:
            reported = holder
            on_wait(holder)
        time.sleep(poll_seconds)
    return lock


def try_acquire(folder: Path) -> int | None:
    """Return the open, locked file; None where somebody else holds the lock. Creates the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / LOCK
    while True:
        # ``exist_ok`` fails where the last holder removes the folder between its two looks; a file in its place fails below.
        with suppress(FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:
            continue  # its last holder removed the folder in this very moment
        taken = False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _leads_to(path, lock):
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                taken = True
                return lock
        except BlockingIOError:
            return None
        finally:
            if not taken:
                os.close(lock)


@contextmanager
def exclusive(path: Path, busy: Exception) -> Iterator[None]:
    """Hold the lock file ``path`` in one process at a time.

    Raises:
        Exception: ``busy``, where another process holds it.
        StoreError: the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
    finally:
        os.close(file)


def release(lock: int, folder: Path, *, remove: bool) -> None:
    """Let go; with ``remove``, the lock file and the folder (if nothing else is in it) go first."""
    if remove:
        with suppress(OSError):
            (folder / LOCK).unlink()
            folder.rmdir()
    os.close(lock)


def _leads_to(path: Path, lock: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(lock).st_ino
    except FileNotFoundError:
        return False


def _holder(folder: Path) -> str:
    try:
        return (folder / LOCK).read_text() or "another process"
    except OSError:
        return "another process"
