"""Text as a terminal shows it: width in cells, padding, wrapping, control characters escaped.

A cell is what one ASCII letter takes; CJK letters and most emoji take two, combining marks and joiners none.
"""

from __future__ import annotations

import re
import textwrap

# C0 and C1 controls (colours, cursor, title of the window), line and paragraph separators, overrides of the direction of
# writing, and halves of surrogate pairs, which no encoding can write. Joiners stay: emoji and several scripts need them.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str) -> str:
    r"""Escape what steers a terminal instead of being shown: ``\x1b`` for the escape character, ``\n`` for a line's end."""
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_escape, text)


def visible_lines(text: str) -> str:
    """Escape as `visible` does, but keep the ends of lines."""
    return "\n".join(map(visible, text.split("\n")))


def width(text: str) -> int:
    """Return the number of cells that a line takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # imported here: half of all commands show nothing but ASCII

    return cell_len(text)


def left(text: str, n_cells: int) -> str:
    """Pad a line with blanks on its right to so many cells."""
    return text + " " * (n_cells - width(text))


def right(text: str, n_cells: int) -> str:
    """Pad a line with blanks on its left to so many cells."""
    return " " * (n_cells - width(text)) + text


def wrap(text: str, n_cells: int) -> list[str]:
    """Fold words into lines of at most so many cells, as `textwrap.wrap` does for letters of one cell."""
    if text.isascii():
        return textwrap.wrap(text, n_cells)
    lines: list[str] = []
    for word in text.split():
        if lines and width(lines[-1]) + 1 + width(word) <= n_cells:
            lines[-1] += f" {word}"
        else:
            lines += _chopped(word, n_cells)
    return lines


def _chopped(word: str, n_cells: int) -> list[str]:
    """Cut a word into pieces of at most so many cells; a mark without cells stays with the letter before it.

    Pieces are measured whole: the width of joined letters is not the sum of theirs, and `rich.cells.chop_cells` adds.
    """
    pieces, begin = [], 0
    for end in range(2, len(word) + 1):
        if end - begin > 1 and width(word[begin:end]) > n_cells:
            pieces.append(word[begin : end - 1])
            begin = end - 1
    return [*pieces, word[begin:]]


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    code = ord(char)
    return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
