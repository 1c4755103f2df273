"""Standard output and error in any encoding, and with readers that stop early.

Everything that commands print goes through `echo`, `print_json` or a console of `console`, so that no text of a user can end
a command with an error of encoding or steer the terminal.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PIPE_CLOSED = 141
"""Exit code where the reader of the output closed the pipe, as of a program that SIGPIPE ends."""

_ERRORS = "outlay.spelled"
_SAME_WIDTH = dict(zip("─━═╌╴╶╸╺│┃║‐‑‒–—―−×·•…‘’“”≈", "--------|||-------x**~''\"\"~", strict=True))
# One cell wider: a blank behind them is used up, if there is one.
_WIDER = {
    **{"±": "+-", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "⇒": "=>"},
    **{raised: f"^{n}" for n, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}
_BOXES = range(0x2500, 0x2580)
_KEPT_ERRORS = ("ignore", "replace", "xmlcharrefreplace", "namereplace")


def prepare_streams() -> None:
    """Let standard output and error spell characters that their encoding lacks; ``PYTHONIOENCODING`` is respected."""
    codecs.register_error(_ERRORS, _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors not in _KEPT_ERRORS:
            stream.reconfigure(errors=_ERRORS)


def abandon_output() -> None:
    """Drop unwritten output, so that the interpreter's last flush reports no closed pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(nowhere, stream.fileno())
        except (OSError, ValueError, AttributeError):  # no file, or no longer one
            continue
    os.close(nowhere)


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print lines; control characters in them are shown, not sent."""
    from outlay.text.display import visible_lines

    _print(visible_lines(str(text)) + ("\n" if nl else ""), sys.stderr if err else sys.stdout)


def print_json(document: Any) -> None:
    """Print one JSON document that is valid in every encoding and has no exponents."""
    from outlay.storage.files import plain_numbers

    text = plain_numbers(json.dumps(document, ensure_ascii=not _can_write_all(sys.stdout), indent=2))
    if any("\ud800" <= char <= "\udfff" for char in text):
        text = plain_numbers(json.dumps(document, indent=2))
    _print(f"{text}\n", sys.stdout)


def console(*, err: bool = False, quiet: bool = False, n_columns: int | None = None) -> Console:
    """Return a console that shows texts as they stand: control characters, ``[markup]`` and ``:names:`` of emoji included.

    Args:
        err: on standard error.
        quiet: print nothing.
        n_columns: at least so many where it is no terminal and ``COLUMNS`` is not set: a pipe or a log has no width of its own,
            and 80 columns would cut a table.
    """
    from outlay.cli.consoles import PlainConsole

    made = PlainConsole(stderr=err, quiet=quiet, highlight=False, emoji=False, markup=False)
    if n_columns is not None and not made.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        made.width = max(made.width, n_columns)
    return made


def table_console() -> Console:
    """Return a console for tables on standard output."""
    return console(n_columns=118)


def echo_prose(text: str, *, style: str = "") -> None:
    """Print a sentence on standard output, broken between words where a terminal is narrower; elsewhere as one line."""
    from rich.text import Text

    made = console()
    made.print(Text(text, style=style), soft_wrap=not made.is_terminal)


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, end="", file=stream, flush=True)
    except OSError as error:
        error.filename = "standard error" if stream is sys.stderr else "standard output"
        raise


def _can_write_all(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf")


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Spell characters that an encoding lacks: signs in ASCII, letters of other scripts by as many ``?`` as they have cells."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char, end = error.object[error.start], error.start + 1
    if char in _WIDER:
        return _WIDER[char], end + (error.object[end : end + 1] == " ")
    if (spelled := _spelled(char)) is not None:
        return spelled, end
    while end < error.end and error.object[end] not in _WIDER and _spelled(error.object[end]) is None:
        end += 1
    from outlay.text.display import width

    return "?" * width(error.object[error.start : end]), end


def _spelled(char: str) -> str | None:
    """Return ASCII for a sign, or ``None`` for a letter of another script."""
    if "\ud800" <= char <= "\udfff":
        # Bytes of a file's name that are no UTF-8 arrive as these.
        code = ord(char)
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
    return _SAME_WIDTH.get(char) or ("+" if ord(char) in _BOXES else None)
