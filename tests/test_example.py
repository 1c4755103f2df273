"""Examples, templates and the seeded order."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from outlay.errors import DataError
from outlay.tasks.example import Example, TextFormat, number_repeats, seeded_order, shorten

PAIR = TextFormat("sentence1: {sentence1} sentence2: {sentence2}")
LITERAL = st.text(alphabet="ab: |{}", min_size=1, max_size=4)
VALUE = st.text(alphabet="ab: |{}\nß", max_size=12)


def example(text: str, label: str | None = None) -> Example:
    return Example("", (("a", text),), text, label, "rows.jsonl:1")


def test_a_template_is_filled_and_taken_apart() -> None:
    fields = {"sentence1": "one cat", "sentence2": "two {dogs}"}
    text = PAIR.render(fields)
    assert text == "sentence1: one cat sentence2: two {dogs}"
    assert PAIR.parse(text) == fields
    assert PAIR.names == ("sentence1", "sentence2")


def test_the_first_separator_ends_a_field() -> None:
    assert TextFormat("{a} - {b}").parse("x - y - z") == {"a": "x", "b": "y - z"}


def test_a_text_may_have_several_lines() -> None:
    assert PAIR.parse("sentence1: a\nb sentence2: c\n") == {"sentence1": "a\nb", "sentence2": "c\n"}


@given(literals=st.tuples(LITERAL, LITERAL, LITERAL), values=st.tuples(VALUE, VALUE))
@settings(deadline=None)
def test_render_and_parse_are_inverse(literals: tuple[str, str, str], values: tuple[str, str]) -> None:
    before, between, after = literals
    braced = [literal.replace("{", "{{").replace("}", "}}") for literal in literals]
    template = TextFormat(f"{braced[0]}{{a}}{braced[1]}{{b}}{braced[2]}")
    fields = dict(zip("ab", values, strict=True))
    text = template.render(fields)
    assert text == before + values[0] + between + values[1] + after
    assert template.render(template.parse(text)) == text
    assume((values[0] + between).find(between) == len(values[0]))
    assert template.parse(text) == fields


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("plain", "no placeholder"),
        ("", "no placeholder"),
        ("{a}{b}", "right behind"),
        ("{a} {a}", "twice"),
        ("so: {text}", "`text` .*{message}"),
        ("{a!r}", "plain name"),
        ("{a:>3}", "plain name"),
        ("{}", "plain name"),
        ("{0}", "plain name"),
        ("{a.b}", "plain name"),
        ("a {b", "cannot be read"),
    ],
)
def test_a_bad_template_is_refused(template: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        TextFormat(template)


def test_a_text_that_does_not_fit_is_shown_with_the_template() -> None:
    with pytest.raises(DataError) as caught:
        PAIR.parse("sentence1: only one " + "long " * 50)
    message = str(caught.value)
    assert "sentence1: only one" in message
    assert PAIR.template in message
    assert len(message) < 200


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DataError, match="needs sentence2"):
        PAIR.render({"sentence1": "a"})


def test_fields_are_read_by_name_and_text_is_the_whole() -> None:
    one = Example("id", (("a", "x"), ("b", "y")), "x | y", "L", "rows.jsonl:7")
    assert (one.field("b"), one.field("text")) == ("y", "x | y")
    with pytest.raises(DataError, match=r"rows\.jsonl:7 .*'c'.* a, b"):
        one.field("c")


def test_ids_are_content_hashes_and_repeats_are_numbered() -> None:
    numbered = number_repeats([example("x", "A"), example("y"), example("x", "B"), example("x")])
    x, y = (hashlib.sha256(text).hexdigest() for text in (b"x", b"y"))
    assert [e.id for e in numbered] == [x, y, f"{x}:2", f"{x}:3"]
    assert [e.label for e in numbered] == ["A", None, "B", None]


@given(st.lists(st.sampled_from("abc"), max_size=20))
def test_ids_are_distinct_and_do_not_depend_on_other_texts(texts: list[str]) -> None:
    ids = [e.id for e in number_repeats(map(example, texts))]
    assert len(set(ids)) == len(ids)
    alone = [e.id for e in number_repeats(example(text) for text in texts if text == "a")]
    assert [i for i, text in zip(ids, texts, strict=True) if text == "a"] == alone


@given(ids=st.lists(st.text(max_size=5), unique=True, max_size=40), seed=st.integers(0, 2**32))
def test_the_order_is_a_permutation_that_forgets_the_order_it_was_given(ids: list[str], seed: int) -> None:
    order = seeded_order(ids, seed)
    assert sorted(order) == list(range(len(ids)))
    shuffled = random.Random(seed).sample(ids, len(ids))
    assert [shuffled[i] for i in seeded_order(shuffled, seed)] == [ids[i] for i in order]


@given(ids=st.lists(st.text(max_size=5), unique=True, max_size=40), keep=st.sets(st.integers(0, 39)))
def test_ids_taken_away_leave_the_others_in_order(ids: list[str], keep: set[int]) -> None:
    kept = [name for i, name in enumerate(ids) if i in keep]
    whole = [ids[i] for i in seeded_order(ids, 7)]
    assert [kept[i] for i in seeded_order(kept, 7)] == [name for name in whole if name in kept]


def test_the_order_follows_its_definition_and_the_seed() -> None:
    ids = [str(i) for i in range(50)]
    expected = sorted(range(50), key=lambda i: hashlib.sha256(f"3:{i}".encode()).hexdigest())
    assert seeded_order(ids, 3) == expected
    assert seeded_order(ids, 3) != seeded_order(ids, 4)


def test_shorten_keeps_one_line() -> None:
    assert shorten("a\n b") == "a b"
    assert shorten("x" * 61) == "x" * 59 + "…"
