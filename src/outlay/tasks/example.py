"""One example, its text, and the seeded order of a pool.

An example is a handful of named fields; the task's template turns them into one text and back. Its id is a hash of that
text, so the same sentence keeps its id in every file, order and run, and a label bought for it is never bought again.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from outlay.errors import DataError
from outlay.text.legible import N_CHARS_SHOWN


@dataclass(frozen=True, slots=True)
class Example:
    """One input of a task, with its gold label where it is known.

    Attributes:
        id: sha256 of ``text``; the second, third ... example with the same text carries ``:2``, ``:3`` ... behind it.
        fields: The named parts of the input, in the order of the template.
        text: The task's template filled with ``fields``.
        label: The gold label, or None for unlabelled text.
        origin: Where it was read, ``file:line``.
        group: Group of the row: of train rows, which stay in one fold, or of test rows, by which scores are told; None for a row
            that stands alone.
    """

    id: str
    fields: tuple[tuple[str, str], ...]
    text: str
    label: str | None
    origin: str
    group: str | None = None

    def field(self, name: str) -> str:
        """Return the value of one field; the name ``text`` is the whole rendered text.

        Raises:
            DataError: No field has this name.
        """
        if name == "text":
            return self.text
        fields = dict(self.fields)
        if name not in fields:
            raise DataError(f"{self.origin} has no field {name!r}; its fields are {', '.join(fields)}")
        return fields[name]


class TextFormat:
    """A template such as ``"claim: {claim} tweet: {tweet}"``, filled and taken apart again.

    The text between two placeholders is literal and ends the field before it at its first occurrence. Hence
    ``render(parse(text)) == text`` for every text that fits, and ``parse(render(fields)) == fields`` whenever no field
    contains the literal that follows it. Braces are written ``{{`` and ``}}``.
    """

    __slots__ = ("_pattern", "names", "template")

    def __init__(self, template: str) -> None:
        """Compile a template.

        Raises:
            DataError: It has no placeholder, a placeholder twice, two with nothing between them, or more than a name
                inside the braces.
        """
        self.template = template
        names: list[str] = []
        pattern = ""
        for literal, name, spec, conversion in _placeholders(template):
            if name is not None and names and not literal:
                raise DataError(
                    f"template {template!r} puts {{{name}}} right behind {{{names[-1]}}}; write text between"
                )
            pattern += re.escape(literal)
            if name is None:
                continue
            if not name.isidentifier() or spec or conversion:
                raise DataError(f"template {template!r} has a placeholder that is not a plain name; write {{name}}")
            if name in names:
                raise DataError(f"template {template!r} uses {{{name}}} twice; give each field a name of its own")
            if name == "text" and template != "{text}":
                raise DataError(
                    f"template {template!r} names a field {{text}}, but `text` is the whole text; choose another name such as "
                    "{message}, and where rows have a column text say `fields: {message: text}`"
                )
            names.append(name)
            pattern += "(.*?)"
        if not names:
            raise DataError(f"template {template!r} has no placeholder; write one such as {{sentence}}")
        self.names: tuple[str, ...] = tuple(names)
        self._pattern = re.compile(pattern, re.DOTALL)

    def __repr__(self) -> str:
        return f"TextFormat({self.template!r})"

    def render(self, fields: Mapping[str, str]) -> str:
        """Fill the template; fields it does not name are left out.

        Raises:
            DataError: A field of the template is missing.
        """
        if missing := [name for name in self.names if name not in fields]:
            raise DataError(f"template {self.template!r} needs {', '.join(missing)}; given are {', '.join(fields)}")
        return self.template.format(**{name: fields[name] for name in self.names})

    def parse(self, text: str) -> dict[str, str]:
        """Take a rendered text apart into its fields.

        Raises:
            DataError: The text does not fit the template.
        """
        match = self._pattern.fullmatch(text)
        if match is None:
            raise DataError(f"text {shorten(text)!r} does not fit the template {self.template!r}")
        return dict(zip(self.names, match.groups(), strict=True))


def _placeholders(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    """Split a template into (literal, name, spec, conversion); escaped braces are joined to the literal behind them."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"template {template!r} cannot be read: {error}; write plain braces as {{{{ and }}}}") from None
    joined: list[tuple[str, str | None, str | None, str | None]] = []
    literal = ""
    for text, name, spec, conversion in parts:
        literal += text
        if name is not None:
            joined.append((literal, name, spec, conversion))
            literal = ""
    return [*joined, (literal, None, None, None)]


def shorten(text: str, n_chars: int = N_CHARS_SHOWN) -> str:
    """Return the beginning of a text on one line, at most ``n_chars`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= n_chars else line[: n_chars - 1] + "…"


def number_repeats(examples: Iterable[Example]) -> list[Example]:
    """Give every example the sha256 of its text as id, and repeats of a text ``:2``, ``:3`` ... in the order they come."""
    seen: Counter[str] = Counter()
    numbered = []
    for example in examples:
        base = hashlib.sha256(example.text.encode("utf-8", "surrogatepass")).hexdigest()
        seen[base] += 1
        numbered.append(replace(example, id=base if seen[base] == 1 else f"{base}:{seen[base]}"))
    return numbered


def seeded_order(ids: Sequence[str], seed: int) -> list[int]:
    """Return the indices of ``ids`` in the order of sha256(``seed:id``).

    The place of an id depends on the id and the seed alone: the order of the input does not matter, ids taken away
    leave the others in order, and the first n of a seed are a prefix of its first m > n.
    """
    prefix = f"{seed}:".encode()
    keys = [hashlib.sha256(prefix + name.encode("utf-8", "surrogatepass")).digest() for name in ids]
    return sorted(range(len(ids)), key=keys.__getitem__)
