"""Show values in messages so that outer blanks, invisible characters and look-alikes can be seen; standard library only."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

N_CHARS_SHOWN = 60
"""Characters of a value that a message quotes."""
_N_LISTED = 24
"""Values of a list that a message names."""
_N_CODE_POINTS = 4

_LATIN_LOOKALIKES = str.maketrans(
    "асеорхуіјѕԁһӏкмтвнАВЕКМНОРСТХУІЈЅԌαονρτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ‐‑‒–—−’‘ʼ“”",
    "aceopxyijsdhlkmtbhABEKMHOPCTXYIJSGaovptuxABEZHIKMNOPTYX------'''\"\"",
)
"""Cyrillic and Greek letters, dashes and quotes that look like ASCII characters (the common ones of Unicode TR 39)."""


def quoted(text: str, n_chars: int = N_CHARS_SHOWN) -> str:
    """Quote the beginning of a text as Python does: blanks are kept, what cannot be seen is escaped."""
    return repr(text if len(text) <= n_chars else text[: n_chars - 1] + "…")


def listed(values: Iterable[str]) -> str:
    """Quote values with commas between, so that a comma or a blank inside one can be seen."""
    every = list(values)
    shown = ", ".join(map(quoted, every[:_N_LISTED]))
    return shown + (f" and {len(every) - _N_LISTED} more" if len(every) > _N_LISTED else "")


def named(values: Iterable[str]) -> str:
    """Name values with commas between; quoted where a comma, an outer blank or what cannot be seen would deceive."""
    every = list(values)
    return ", ".join(every) if all(map(_is_plain, every)) else listed(every)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name the known value that is nearest to a name, such as `` (did you mean fever?)``; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def repeats(values: Iterable[T]) -> list[T]:
    """Return the values that stand there more than once, each once."""
    return [value for value, n in Counter(values).items() if n > 1]


def _is_plain(value: str) -> bool:
    is_short = 0 < len(value) <= N_CHARS_SHOWN
    return is_short and value.isprintable() and value == value.strip() and "," not in value


def code_points(text: str) -> str:
    """Name the first characters of a text by number and name: ``U+0301 COMBINING ACUTE ACCENT``."""
    shown = " ".join(f"U+{ord(c):04X} {unicodedata.name(c, '')}".strip() for c in text[:_N_CODE_POINTS])
    return shown + (" …" if len(text) > _N_CODE_POINTS else "")


def outer_blanks(text: str) -> str:
    """Say where a text has blanks outside its words, as `with a blank behind`; empty where it has none."""
    core = text.strip()
    if core == text or not core:
        return ""
    start = text.index(core)
    places = {"in front": text[:start], "behind": text[start + len(core) :]}
    return "with " + " and ".join(f"{_blank(blanks)} {where}" for where, blanks in places.items() if blanks)


def _blank(blanks: str) -> str:
    if blanks.strip(" ") == "":
        return "a blank" if len(blanks) == 1 else f"{len(blanks)} blanks"
    return code_points(blanks)


def _skeleton(text: str) -> str:
    """Map texts that look alike to one: compatibility forms, invisible characters, kinds of blanks, letters of other scripts."""
    composed = unicodedata.normalize("NFKC", text)
    visible = "".join(c for c in composed if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    return " ".join(visible.translate(_LATIN_LOOKALIKES).split())


def likeness(text: str, known: Sequence[str]) -> str:
    """Say which of the known values a text looks like, and by which code points it differs; empty where it looks like none.

    Values that differ in nothing but outer blanks are left to `outer_blanks`.
    """
    core = text.strip()
    for value in known:
        if value not in (text, core) and unicodedata.normalize("NFC", value) == unicodedata.normalize("NFC", text):
            form = next((f for f in ("NFC", "NFD") if unicodedata.is_normalized(f, text)), "neither NFC nor NFD")
            return f"it looks like {quoted(value)} in another Unicode form ({form}): {_difference(text, value)}"
    others = [value for value in known if value.strip() != core]
    for value in others:
        if _skeleton(text) == _skeleton(value):
            return f"it looks like {quoted(value)}: {_difference(core, value.strip())}"
    for value in others:
        if core.casefold() == value.strip().casefold():
            return f"the label is spelt {quoted(value)}"
    return ""


def _difference(text: str, value: str) -> str:
    start = next((i for i, (a, b) in enumerate(zip(text, value, strict=False)) if a != b), min(len(text), len(value)))
    stop = 0
    while stop < min(len(text), len(value)) - start and text[-1 - stop] == value[-1 - stop]:
        stop += 1
    here, there = text[start : len(text) - stop], value[start : len(value) - stop]
    if not there:
        return f"it has {code_points(here)} more"
    return f"it lacks {code_points(there)}" if not here else f"{code_points(here)} in place of {code_points(there)}"


def label_problem(label: str, known: Sequence[str]) -> str:
    """Say that a label is none of the set, and why: ``has the label 'pos ' (with a blank behind), allowed are 'pos', 'neg'``."""
    why = "; ".join(part for part in (outer_blanks(label), likeness(label, known)) if part)
    return f"has the label {quoted(label)}{f' ({why})' if why else ''}, allowed are {listed(known)}"


def alike(values: Sequence[str]) -> tuple[str, str] | None:
    """Return the first two values that are the same text in different Unicode forms, or differ in invisible characters alone."""
    seen: dict[str, str] = {}
    for value in values:
        key = "".join(c for c in unicodedata.normalize("NFC", value) if unicodedata.category(c) != "Cf")
        if key in seen:
            return seen[key], value
        seen[key] = value
    return None
