"""The numbered migrations of a store's folder.

Each leads from the layout before it to its own; the number of the last one that was applied stands in the file ``FORMAT`` below
the root. A store without that file is of format 1: it was written before numbers were kept. A file system has no transactions,
so migrations are applied one after another under a lock, each can be applied again to what a killed one left, and the number
is written once its migration is done.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from outlay.errors import StoreError
from outlay.storage import locks

FORMAT_FILE = "FORMAT"


@dataclass(frozen=True, slots=True)
class StoreMigration:
    """One step between two layouts: its number, what it does in words, and the function that does it to the root's folder.

    ``apply`` may be killed at any moment, and is then called again for the same folder.
    """

    number: int
    what: str
    apply: Callable[[Path], None]


def _nothing(root: Path) -> None:
    """Leave the folder as it is."""


MIGRATIONS = (StoreMigration(1, "keep artifacts in objects/<key[:2]>/<key>, each with a sealed manifest", _nothing),)
"""By number, which begins at 1."""


def format_of(root: Path) -> int:
    """Return the number of a store's layout.

    Raises:
        StoreError: its file holds no number.
    """
    path = root / FORMAT_FILE
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return 1
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise StoreError(f"{path} says {text[:40]!r} and must hold the number of the store's format; write 1 there")
    return int(text)


def migrate(root: Path, migrations: Sequence[StoreMigration] = MIGRATIONS) -> None:
    """Bring a store's folder to the newest layout; one that is there already is only looked at.

    Raises:
        StoreError: a store of a newer outlay.
        OSError: it cannot be written.
    """
    number = format_of(root)
    if number > len(migrations):
        raise StoreError(
            f"{root} is a store of format {number}, this outlay reads up to {len(migrations)}; upgrade outlay"
        )
    if number == len(migrations) or not (root / "objects").is_dir():
        return
    folder = root / "migrating"
    lock = locks.acquire(folder)
    try:
        for migration in migrations[format_of(root) :]:  # another process may have been first
            migration.apply(root)
            write_format(root, migration.number)
    finally:
        locks.release(lock, folder, remove=True)


def write_format(root: Path, number: int) -> None:
    """Write the number of a store's layout, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".{FORMAT_FILE}.{uuid.uuid4().hex[:8]}"
    try:
        with temporary.open("x", encoding="ascii") as file:
            file.write(f"{number}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(root / FORMAT_FILE)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
