"""Entity lines: written, read, found again in their source."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.text.entities import Entity, align, cut_out, parse_entities, render_entities, unlabelled

LABELS = ("Amount", "Reagent", "pH", "Measure-Type")


def entity(text: str, label: str = "Reagent") -> Entity:
    return Entity(text, label)


@pytest.mark.parametrize(
    ("line", "entities", "left"),
    [
        ("", [], ""),
        ("salt [Reagent]", [("salt", "Reagent")], ""),
        ("two  grams\t[Amount] salt [Reagent]", [("two grams", "Amount"), ("salt", "Reagent")], ""),
        ("7.4 [PH] 5 g [amount]", [("7.4", "pH"), ("5 g", "Amount")], ""),
        ("[1-14C] acetate [Reagent]", [("[1-14C] acetate", "Reagent")], ""),
        ("salt [Reagents] [Reagent]", [("salt [Reagents]", "Reagent")], ""),
        ("salt[Reagent] water [Reagent]", [("salt[Reagent] water", "Reagent")], ""),
        ("[Reagent] salt [Reagent]", [("", "Reagent"), ("salt", "Reagent")], ""),
        ("salt [Reagent] and water", [("salt", "Reagent")], "and water"),
        ("[", [], "["),
    ],
)
def test_lines_are_read_word_by_word(line: str, entities: list[tuple[str, str]], left: str) -> None:
    assert parse_entities(line, LABELS) == [Entity(*pair) for pair in entities]
    assert unlabelled(line, LABELS) == left


WORD = st.text(alphabet="ab[]-1μ", min_size=1, max_size=4).filter(lambda word: word[1:-1] not in LABELS)
TEXT = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
ENTITIES = st.lists(st.builds(Entity, TEXT, st.sampled_from(LABELS)), max_size=6)


@given(ENTITIES)
@settings(deadline=None)
def test_what_is_written_is_read_back(entities: list[Entity]) -> None:
    assert parse_entities(render_entities(entities), LABELS) == entities


@given(ENTITIES, st.data())
@settings(deadline=None)
def test_entities_of_a_source_are_all_found_in_order(entities: list[Entity], data: st.DataObject) -> None:
    fillers = [data.draw(st.sampled_from(["", " ", " xy ", " , "])) for _ in range(len(entities) + 1)]
    source = fillers[0] + "".join(e.text + filler for e, filler in zip(entities, fillers[1:], strict=True))
    spans, n_missing = align(source, entities)
    assert n_missing == 0
    assert cut_out(source, spans) == entities


@given(st.text(alphabet="ab ", max_size=20), ENTITIES)
@settings(deadline=None)
def test_spans_never_overlap_and_nothing_is_lost(source: str, entities: list[Entity]) -> None:
    spans, n_missing = align(source, entities)
    assert len(spans) + n_missing == len(entities)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    found = [("".join(e.text.split()), e.label) for e in cut_out(source, spans)]
    wanted = [("".join(e.text.split()), e.label) for e in entities]
    assert all(found.count(pair) <= wanted.count(pair) for pair in found)


@pytest.mark.parametrize(
    ("source", "texts", "places", "n_missing"),
    [
        ("salt and salt", ["salt", "salt"], [(0, 4), (9, 13)], 0),
        ("pH of phosphate, ph 7", ["ph"], [(17, 19)], 0),
        ("phosphate", ["ph"], [(0, 2)], 0),
        ("phosphate ph", ["ph", "ate"], [(0, 2), (6, 9)], 0),
        ("12.5μl water", ["12.5 μl"], [(0, 6)], 0),
        ("12.5 μl water", ["12.5μl", "water"], [(0, 7), (8, 13)], 0),
        ("water then salt", ["salt", "water"], [(0, 5), (11, 15)], 0),
        ("water", ["water", "water"], [(0, 5)], 1),
        ("water", ["salt", "water"], [(0, 5)], 1),
        ("water", ["", "water"], [(0, 5)], 1),
    ],
)
def test_where_an_entity_is_looked_for(
    source: str, texts: list[str], places: list[tuple[int, int]], n_missing: int
) -> None:
    spans, missing = align(source, [entity(text) for text in texts])
    assert ([span[:2] for span in spans], missing) == (places, n_missing)
