"""One-line messages for exceptions of other libraries and the system."""

from __future__ import annotations

from outlay.errors import OutlayError, first_line
from outlay.storage.files import NO_ROOM, errno_of

_CHECK = "check the path, its permissions and the room on its disk"
_HOMELESS = "Could not determine home directory"
"""Message of `pathlib` where the home directory is unknown."""
_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory", "bad_alloc")


def line_of(error: Exception) -> str | None:
    """Return an error as one line for a user, or ``None`` for a mistake of the program, whose traceback is of use."""
    if isinstance(error, OutlayError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object[error.start : error.end]!a} cannot be written as {error.encoding}, the encoding of names here; "
            "set PYTHONUTF8=1 or LC_ALL=C.UTF-8"
        )
    if is_out_of_memory(error):
        return (
            f"out of memory ({first_line(error)}); take a smaller --batch-size or model, or end other programs, and run the "
            "same command again to go on"
        )
    if isinstance(error, RuntimeError) and _HOMELESS in str(error):
        return "there is no home folder, and this writes to it; set HOME to a folder that can be written"
    code = errno_of(error)
    if code is None:
        return None
    if not isinstance(error, OSError):
        again = " and run the same command again to go on" if code in NO_ROOM else ""
        return f"{type(error).__name__}: {first_line(error)}; {_CHECK}{again}"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; {_CHECK}"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether Python, torch or the system ran out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _MEMORY)
    )
