"""Entity lines such as ``Heat [Action] salt water [Reagent]``: parsed, rendered, aligned with their source.

The form is that of Kang et al. 2023, Table 7. A line lists the entities of a source in order of appearance, each followed by
its label in brackets. Words stand between white space; words in brackets are a label only where the label set has it, so an
entity such as ``[1-14C] acetate`` keeps its brackets. A label may be several words (``[Body part]``). Labels are read without
regard to case and returned as the label set spells them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Span = tuple[int, int, str]
"""Start, stop (of ``source[start:stop]``) and label."""


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity: its words, one space between them, and its label."""

    text: str
    label: str


def parse_entities(line: str, labels: Sequence[str]) -> list[Entity]:
    """Read an entity line.

    A label without words before it makes an entity with an empty text; words without a label after them are left out (see
    `unlabelled`).
    """
    return _read(line, labels)[0]


def unlabelled(line: str, labels: Sequence[str]) -> str:
    """Return the words at the end of a line that no label follows: empty for a line that is whole."""
    return _read(line, labels)[1]


def render_entities(entities: Iterable[Entity]) -> str:
    """Write an entity line; `parse_entities` reads it back unless a text holds a label of the set in brackets."""
    return " ".join(f"{entity.text} [{entity.label}]".lstrip() for entity in entities)


def align(source: str, entities: Sequence[Entity]) -> tuple[list[Span], int]:
    """Find entities in the source they were taken from.

    Entities stand in order of appearance, so each is looked for behind the one before it: the first place where it is not part
    of a longer word, as long as the entities after it still find room, else the first place. One that is out of order may lie
    anywhere that is still free. A text that is not there as it is written is looked for without regard to white space
    (``12.5 μl`` in ``12.5μl``).

    Returns:
        Spans in the order of the source, no two of them overlapping, and how many entities were not found.
    """
    places = [_Places(source, entity.text) for entity in entities]
    limits = _limits(places, len(source))
    spans: list[Span] = []
    missing: list[int] = []
    cursor = 0
    for i, entity in enumerate(entities):
        inside = places[i].between(cursor, limits[i])
        if not inside:
            missing.append(i)
            continue
        start, stop = next((place for place in inside if _is_whole(source, *place)), inside[0])
        spans.append((start, stop, entity.label))
        cursor = stop
    n_missing = 0
    for i in missing:
        free = next((place for place in places[i].anywhere() if not _overlaps(place, spans)), None)
        if free is None:
            n_missing += 1
        else:
            spans.append((*free, entities[i].label))
    return sorted(spans), n_missing


def cut_out(source: str, spans: Iterable[Span]) -> list[Entity]:
    """Return the entities that spans mark in their source, white space folded: the inverse of `align`."""
    return [Entity(" ".join(source[start:stop].split()), label) for start, stop, label in spans]


class _Places:
    """Positions of a text in a source as (start, stop): verbatim, and ignoring white space."""

    def __init__(self, source: str, text: str) -> None:
        self._exact = _matches(source, re.escape(text)) if text else []
        self._source, self._text = source, text

    def between(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the places inside ``start:stop``, exact ones where there are any."""
        inside = [place for place in self._exact if start <= place[0] and place[1] <= stop]
        return inside or [place for place in self.loose if start <= place[0] and place[1] <= stop]

    def anywhere(self) -> list[tuple[int, int]]:
        """Return every place, exact ones first."""
        return [*self._exact, *self.loose]

    @cached_property
    def loose(self) -> list[tuple[int, int]]:
        """Every place without regard to white space."""
        letters = "".join(self._text.split())
        return _matches(self._source, r"\s*".join(map(re.escape, letters))) if letters else []


def _matches(source: str, pattern: str) -> list[tuple[int, int]]:
    """Return the place of every match of a pattern, overlapping ones included."""
    return [found.span(1) for found in re.finditer(f"(?=({pattern}))", source)]


def _limits(places: Sequence[_Places], stop: int) -> list[int]:
    """Return, per entity, the latest stop that leaves room for the entities behind it, from the right."""
    limits = []
    for place in reversed(places):
        limits.append(stop)
        inside = place.between(0, stop)
        if inside:
            stop = inside[-1][0]
    return limits[::-1]


def _is_whole(source: str, start: int, stop: int) -> bool:
    """Return whether the place does not cut a word in two at either end."""
    cuts_before = start > 0 and source[start - 1].isalnum() and source[start].isalnum()
    cuts_behind = stop < len(source) and source[stop - 1].isalnum() and source[stop].isalnum()
    return not cuts_before and not cuts_behind


def _overlaps(place: tuple[int, int], spans: Iterable[Span]) -> bool:
    return any(place[0] < stop and start < place[1] for start, stop, _ in spans)


def _read(line: str, labels: Sequence[str]) -> tuple[list[Entity], str]:
    spelled = {f"[{label}]".upper(): label for label in reversed(labels)}
    lengths = sorted({len(label.split()) for label in labels}, reverse=True)
    entities: list[Entity] = []
    words: list[str] = []
    rest = line.split()
    at = 0
    while at < len(rest):
        if n_words := _length_of_label(rest, at, spelled, lengths):
            label = spelled[" ".join(rest[at : at + n_words]).upper()]
            entities.append(Entity(" ".join(words), label))
            words = []
        else:
            words.append(rest[at])
        at += max(n_words, 1)
    return entities, " ".join(words)


def _length_of_label(words: Sequence[str], at: int, spelled: Mapping[str, str], lengths: Sequence[int]) -> int:
    """Return the number of words of the label that begins there, such as 2 of ``[Body part]``; 0 where none does."""
    if words[at][0] != "[":
        return 0
    return next((n for n in lengths if " ".join(words[at : at + n]).upper() in spelled), 0)
