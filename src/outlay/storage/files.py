"""Write files whole or not at all, numbers without exponents, and one clear line where the system refuses.

Libraries wrap what the system says in errors of their own (safetensors, tokenizers and pyarrow do): `errno_of` finds it there.
"""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from outlay.errors import DiskFull, OutlayError, StoreError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSALS = (
    *(*NO_ROOM, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ESTALE),
)
_SMALL_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?[eE]-[0-9]+', re.ASCII)
"""A string of a JSON document, or a number with a negative exponent; large ones would come back as whole numbers."""
# Rust's standard library ("os error 28"), Arrow and Python ("errno 28").
_NUMBERED = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)


def errno_of(error: BaseException) -> int | None:
    """Return the system's error number behind an error, also where a library wrapped it; None where there is none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, OutlayError):
        return None
    text = str(error)
    if found := _NUMBERED.search(text):
        return int(found[1])
    return next((code for code in _REFUSALS if os.strerror(code) in text), None)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a refusal of the system while ``path`` is written into one line that names it, whoever reports the refusal.

    Raises:
        DiskFull: no room for the file.
        StoreError: it cannot be written for another reason, such as permissions.
    """
    try:
        yield
    except OutlayError:
        raise
    except Exception as error:
        code = errno_of(error)
        if code is None or isinstance(error, BrokenPipeError) or _is_about_another(error, path):
            raise
        raise refused(path, code) from error


def _is_about_another(error: Exception, path: Path) -> bool:
    """Return whether the system names a file that lies elsewhere, such as one that is read while ``path`` is written."""
    named = getattr(error, "filename", None)
    if not isinstance(named, str):
        return False
    folder, other = path.parent.absolute(), Path(named).absolute()
    return other != folder and folder not in other.parents and other not in folder.parents


def refused(path: Path, code: int) -> StoreError:
    """Return the error for a file that the system refuses to write, by its error number."""
    if code == errno.EFBIG:
        return DiskFull(
            f"{path} cannot be written: it would be larger than a file may be here (`ulimit -f`, or the file system); "
            "raise the limit and run the same command again to go on"
        )
    if code in NO_ROOM:
        return DiskFull(
            f"{path} cannot be written: no room left on its disk; free some (`outlay store gc --older-than 30`) and run the "
            "same command again to go on"
        )
    return StoreError(
        f"{path} cannot be written: {os.strerror(code)}; check the path, its permissions and the room on its disk"
    )


@contextmanager
def replacing(path: Path, *, sync: bool = False, folder: Path | None = None) -> Iterator[Path]:
    """Give a temporary file that takes the name ``path`` at the end; until then ``path`` stays as it was.

    ``sync``: wait until the bytes are on the disk; ``folder``: where the temporary file lies, on the same disk, and what a kill
    leaves behind; ``None`` = beside ``path``.

    Raises:
        DiskFull: no room for the file.
        StoreError: it cannot be written for another reason.
    """
    place = path.parent if folder is None else folder
    temporary = place / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with writing(path):
        try:
            place.mkdir(parents=True, exist_ok=True)
            yield temporary
            if sync:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, sync: bool = False, folder: Path | None = None) -> None:
    """Write a file as `replacing` does."""
    with replacing(path, sync=sync, folder=folder) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a UTF-8 file as `replacing` does, with the ends of lines that ``text`` has."""
    write_bytes(path, text.encode(), sync=sync)


def plain_number(text: str) -> str:
    """Return a number as Python or JSON writes it, without its exponent; what is no such number stays as it is."""
    digits, has_exponent, exponent = text.lower().partition("e")
    if not has_exponent or not digits or len(exponent) > 3:
        return text
    try:
        return format(Decimal(text), "f")
    except InvalidOperation:
        return text


def plain_numbers(document: str) -> str:
    """Return JSON text with its small numbers written in digits alone; strings stay as they are."""
    return _SMALL_NUMBER.sub(lambda found: found[0] if found[0][0] == '"' else plain_number(found[0]), document)


def csv_text(value: object) -> str:
    """Return a value for a CSV file, all digits kept and no exponent; an absent one is an empty cell."""
    if value is None:
        return ""
    return plain_number(repr(value)) if isinstance(value, float) else str(value)


def json_text(document: Any) -> str:
    """Return a document as the text of a JSON file."""
    return plain_numbers(json.dumps(document, ensure_ascii=False, indent=1))


def write_json(path: Path, document: Any) -> None:
    """Write a document as JSON, synced, as `replacing` does."""
    write_text(path, json_text(document), sync=True)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk, so that a rename in it outlives a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tree_bytes(root: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(OSError):  # files of other processes come and go
                total += Path(folder, name).lstat().st_size
    return total
