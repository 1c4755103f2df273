"""Read JSON strictly: duplicate keys, lone surrogates, numbers of thousands of digits and endless nesting are refused.

Standard library only.
"""

from __future__ import annotations

import json
import re
from typing import Any

from outlay.text.legible import repeats

MAX_DIGITS = 4300
"""Longest integer that Python turns into a number and back (``sys.int_info.default_max_str_digits``); longer ones stay text."""
_HALF_PAIR = re.compile(r"\\u[dD][89abcdefABCDEF]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class BadJson(ValueError):
    """Text that is not acceptable JSON; ``str(e)`` is the reason, ``at_end`` says whether the text breaks off."""

    def __init__(self, reason: str, *, at_end: bool = False) -> None:
        super().__init__(reason)
        self.at_end = at_end


def parse_json(text: str) -> Any:
    """Parse JSON. ``NaN`` and ``Infinity`` become the floats they name, an integer of more than `MAX_DIGITS` digits its text.

    Raises:
        BadJson: It is no JSON, gives a key twice, holds half a surrogate pair, or is nested too deep.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
        if _HALF_PAIR.search(text) and (half := _SURROGATE.search(json.dumps(value, ensure_ascii=False))):
            raise BadJson(f"holds half a surrogate pair, \\u{ord(half[0]):04x}, which is no character; remove it")
    except json.JSONDecodeError as error:
        whole = text.strip()
        is_open = whole[:1] in ("{", "[") and whole[-1:] not in ("}", "]")
        at_end = is_open or error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        raise BadJson(f"is not JSON: {error.msg}", at_end=at_end) from None
    except RecursionError:
        raise BadJson("is nested too deep: lists or objects inside each other a thousand times") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadJson(f"gives the key {repeats(key for key, _ in pairs)[0]!r} twice; keep one")
    return found


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= MAX_DIGITS else digits
