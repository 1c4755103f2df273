"""Answers of a language model read: labels, probabilities, entities and usage, from whatever bytes come."""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.labels.llm.bodies import Way, WayName
from outlay.labels.llm.prompts import Guideline
from outlay.labels.llm.reading import MAX_TOKENS, Agreed, Reading, agree, choice_of, error_of, read_answer, usage_of
from outlay.money.prices.tokens import TokenUsage
from outlay.text.entities import parse_entities

SPAM = Guideline("classification", ("spam", "ham"), ("message",))
PARTS = Guideline("entities", ("Action", "Body part"), ("line",))
FREE = Guideline("generation", (), ("question",))
CHAT, SCHEMA = Way("chat"), Way("schema", 20)
WAYS: tuple[WayName, ...] = ("decisions", "systemone", "schema", "chat")


def reply(content: Any, **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}]}).encode()


def read(content: Any, way: Way = CHAT, guideline: Guideline = SPAM, source: str = "", **more: Any) -> Reading:
    return read_answer(way, guideline, reply(content, **more), source)


# --- one label -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["spam", " spam\n", "SPAM", '"spam"', "'Spam'", "`spam`", "“ spam ”", '"spam" '])
def test_a_label_is_a_label_in_quotes_and_in_any_case(said: str) -> None:
    assert read(said) == Reading("spam", None, said)


@pytest.mark.parametrize(
    "said",
    [
        *(
            "spam.",
            "The label is spam",
            "spam ham",
            "spam\nham",
            "not spam",
            "sp am",
            '"spam',
            "spam'",
            "span",
            "spam!",
        ),
        *('{"label": "spam"}', "**spam**", '"spam" or "ham"', "spam\x00", "ｓｐａｍ", "1", "spam, because"),
    ],
)
def test_nothing_else_is_a_label(said: str) -> None:
    got = read(said)
    assert got.label is None
    assert "is not one of the labels" in str(got.problem)
    assert got.text == said


def test_labels_that_differ_in_case_alone_are_read_as_they_stand() -> None:
    two = Guideline("classification", ("US", "us", "other"), ("t",))
    assert read("us", guideline=two).label == "us"
    assert read("US", guideline=two).label == "US"
    assert read("Us", guideline=two).label is None
    quoted = Guideline("classification", ('"a"', "a"), ("t",))
    assert read('"a"', guideline=quoted).label == '"a"'


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ('{"label": "ham"}', "ham"),
        (' {\n "label":"ham"}\n', "ham"),
        ('{"label": "h\\u0061m"}', "ham"),
        ('{"label": "ham", "label": "spam"}', None),
        ('{"label": "ham", "why": "x"}', None),
        ('{"label": "eggs"}', None),
        ('{"label": ["ham"]}', None),
        ('{"label": "ham"', None),
        ("ham", None),
        ('[{"label": "ham"}]', None),
    ],
)
def test_an_object_with_a_label_alone(said: str, label: str | None) -> None:
    assert read(said, SCHEMA).label == label


FAULTS: dict[str, tuple[bytes, str]] = {
    "HTML": (b"<!DOCTYPE html><html>502</html>", "HTML"),
    "empty": (b"", "empty"),
    "blanks": (b" \n", "empty"),
    "cut JSON": (reply("spam")[:60], "breaks off"),
    "not UTF-8": (b'{"a": "\xff"}', "UTF-8"),
    "no object": (b"[1]", "no object"),
    "double key": (b'{"choices": [], "choices": []}', "twice"),
    "nested": (b'{"choices":' + b"[" * 100_000, "nested"),
    "half a pair": (reply("sp").replace(b'"sp"', b'"\\ud800"'), "surrogate"),
    "no choices": (b"{}", "no choices"),
    "empty choices": (b'{"choices": []}', "no choices"),
    "error with 200": (b'{"error": {"message": "overloaded"}}', "overloaded"),
    "choice is text": (b'{"choices": ["spam"]}', "no message"),
    "null content": (reply(None), "null"),
    "content is a list": (reply([{"type": "text", "text": "spam"}]), "no text"),
    "empty content": (reply(" "), "is empty"),
    "length": (reply("spam", finish_reason="length"), "cut"),
    "filter": (reply("spam", finish_reason="content_filter"), "filter"),
    "refusal": (reply(None, message={"refusal": "I cannot"}), "I cannot"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_and_no_label(name: str) -> None:
    body, said = FAULTS[name]
    for way in (CHAT, SCHEMA):
        for guideline in (SPAM, FREE):
            if guideline is FREE and way is SCHEMA:
                continue
            got = read_answer(way, guideline, body, "")
            assert got.label is None
            assert said in str(got.problem)
            assert "\n" not in str(got.problem)
            assert got.declined is (name in ("filter", "refusal"))
    assert read_answer(Way("decisions"), SPAM, body, "").label is None
    assert read_answer(Way("systemone"), SPAM, body, "").label is None


def test_free_text() -> None:
    assert read(" Paris \n", guideline=FREE) == Reading("Paris", None, " Paris \n")
    assert read("a \\u003cb>", guideline=FREE, source="x <b>").label == "a <b>"
    assert read("a \\u003cb>", guideline=FREE, source="x \\u003cb>").label == "a \\u003cb>"


# --- decisions -------------------------------------------------------------------------------------------------------


def decision(choice: Any = "ham", spam: Any = 0.25, ham: Any = 0.75, **more: Any) -> bytes:
    pairs = [{"value": "ham", "probability": ham}, {"value": "spam", "probability": spam}]
    answer = {"type": "choice", "choice": choice, "confidence": 0.5, "probabilities": pairs, "name": "label", **more}
    usage = {"input_tokens": 40, "output_tokens": 0, "total_tokens": 40}
    usage |= {
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 2},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    return json.dumps({"model": "m", "answers": [answer], "usage": usage}).encode()


def systemone(choice: Any = "ham", **values: Any) -> bytes:
    answer = {"type": "choice", "choice": choice, "confidence": 0.5, "probabilities": values}
    return json.dumps(
        {"model": "m", "answers": {"label": answer}, "usage": {"input_tokens": 9, "output_tokens": 0}}
    ).encode()


def test_decisions_have_the_probability_of_every_label() -> None:
    from openai.types.decision import Decision

    Decision.model_validate_json(decision(), strict=True)
    for way, body in (("decisions", decision()), ("systemone", systemone(ham=0.75, spam=0.25))):
        assert read_answer(Way(way), SPAM, body, "") == Reading("ham", None, "ham", (0.25, 0.75), 0.75)
    rounded = read_answer(Way("systemone"), SPAM, systemone(ham=0.7, spam=0.2), "")
    assert rounded.probabilities == pytest.approx((2 / 9, 7 / 9))


@pytest.mark.parametrize("value", [None, "0.5", -0.1, 1.5, True, float("nan"), float("inf"), [0.5]])
def test_probabilities_that_are_none_leave_the_label_alone(value: Any) -> None:
    for way, body in (("decisions", decision(spam=value)), ("systemone", systemone(ham=0.75, spam=value))):
        assert read_answer(Way(way), SPAM, body, "") == Reading("ham", None, "ham")


def test_decisions_outside_the_labels() -> None:
    assert read_answer(Way("systemone"), SPAM, systemone(ham=1), "").probabilities == ()
    assert read_answer(Way("systemone"), SPAM, systemone(ham=0.5, spam=0.3, eggs=0.2), "").probabilities == ()
    assert read_answer(Way("systemone"), SPAM, systemone(ham=0, spam=0), "").probabilities == ()
    for choice in ("eggs", True, None, 3, "HAM"):
        assert read_answer(Way("decisions"), SPAM, decision(choice), "").label is None
    refusal = b'{"answers": [{"type": "refusal", "name": "label"}], "model": "m"}'
    got = read_answer(Way("decisions"), SPAM, refusal, "")
    assert (got.label, got.declined) == (None, True)
    two = json.loads(decision())
    two["answers"] *= 2
    assert read_answer(Way("decisions"), SPAM, json.dumps(two).encode(), "").label is None


# --- probabilities from log-probabilities ----------------------------------------------------------------------------


def place(token: str, logits: dict[str, float], top: int = 20) -> dict[str, Any]:
    """One place of an answer, from the logits of all tokens: a softmax by hand."""
    norm = math.log(math.fsum(math.exp(value) for value in logits.values()))
    named = sorted(((value - norm, name) for name, value in logits.items()), reverse=True)
    listed = [{"token": name, "logprob": value, "bytes": list(name.encode())} for value, name in named]
    mine = next(each for each in listed if each["token"] == token)
    return {**mine, "top_logprobs": listed[:top]}


def forced(*tokens: str) -> list[dict[str, Any]]:
    return [place(token, {token: 0.0, "~": -3.0}) for token in tokens]


def probabilities(
    places: list[dict[str, Any]], labels: tuple[str, ...], trimmed: str | None = None
) -> tuple[float, ...]:
    text = trimmed if trimmed is not None else "".join(each["token"] for each in places)
    guideline = Guideline("classification", labels, ("t",))
    got = read(text, SCHEMA, guideline, logprobs={"content": places})
    assert got.label is not None, got.problem
    assert got.confidence == (got.probabilities[labels.index(got.label)] if got.probabilities else None)
    return got.probabilities


def softmax(*values: float) -> tuple[float, ...]:
    powers = [math.exp(value) for value in values]
    return tuple(power / sum(powers) for power in powers)


def test_one_token_decides() -> None:
    logits = {"spam": 1.0, "ham": 2.5, "eggs": 0.3, "s": -9.0}
    places = [*forced('{"', "label", '":"'), place("ham", {k: v for k, v in logits.items() if k != "s"}), *forced('"}')]
    assert probabilities(places, ("spam", "ham")) == pytest.approx(softmax(1.0, 2.5))


def test_a_quote_may_be_part_of_the_token() -> None:
    places = [*forced('{"', "label", '":'), place(' "ham', {' "ham': 1.0, ' "spam': 0.0, "[": 3.0}), *forced('"}')]
    assert probabilities(places, ("spam", "ham")) == pytest.approx(softmax(0.0, 1.0))


def test_labels_that_begin_alike_part_later() -> None:
    labels = ("positive", "possible", "negative")
    first = place("pos", {"pos": 1.0, "neg": 0.5, "x": 0.0})
    second = place("sible", {"sible": 2.0, "itive": 1.0, "it": -1.0, "x": 0.0})
    places = [*forced('{"label": "'), first, second, *forced('"}')]
    one, two = softmax(1.0, 0.5, 0.0), softmax(2.0, 1.0, -1.0, 0.0)
    # "it" begins positive and no other that is left
    weights = (one[0] * (two[1] + two[2]), one[0] * two[0], one[1])
    assert probabilities(places, labels) == pytest.approx([weight / sum(weights) for weight in weights])


def test_a_label_that_begins_another_is_decided_by_the_quote() -> None:
    labels = ("yes", "yes sir", "no")
    end = place('"}', {'"}': 1.0, " sir": 0.0, '"': -1.0})
    places = [*forced('{"label":"'), place("yes", {"yes": 2.0, "no": 1.0}), end]
    first, last = softmax(2.0, 1.0), softmax(1.0, 0.0, -1.0)
    weights = (first[0] * (last[0] + last[2]), first[0] * last[1], first[1])
    assert probabilities(places, labels) == pytest.approx(weights)
    longer = [*places[:2], place(" sir", {'"}': 1.0, " sir": 0.0, '"': -1.0}), *forced('"}')]
    assert probabilities(longer, labels) == pytest.approx(weights)


def test_a_token_that_begins_several_labels_is_shared_among_them() -> None:
    labels = ("ab", "ac", "b")
    places = [*forced('{"label":"'), place("b", {"b": 0.0, "a": 0.0}), *forced('"}')]
    assert probabilities(places, labels) == pytest.approx((0.25, 0.25, 0.5))


def test_letters_that_tokens_cut_in_two() -> None:
    labels = ("né", "nè")
    places = [*forced('{"label":"n')]
    for byte, other in ((0xC3, None), (0xA9, 0xA8)):
        listed = [{"token": "�", "logprob": math.log(0.6), "bytes": [byte]}]
        if other is not None:
            listed.append({"token": "�", "logprob": math.log(0.3), "bytes": [other]})
        places.append({**listed[0], "top_logprobs": listed})
    places += forced('"}')
    guideline = Guideline("classification", labels, ("t",))
    got = read('{"label":"né"}', SCHEMA, guideline, logprobs={"content": places})
    assert got.probabilities == pytest.approx((2 / 3, 1 / 3))


def test_random_spellings_against_all_paths() -> None:
    """Labels over {a, b}, one letter per token: the weight of a label is the product along the answer, then the branch."""
    draw = random.Random(2)
    for _ in range(30):
        labels = tuple(dict.fromkeys("".join(draw.choices("ab", k=3)) for _ in range(4)))
        answer = draw.choice(labels)
        logits = [{letter: draw.uniform(-2, 2) for letter in "abc"} for _ in range(3)]
        places = [*forced('{"label":"'), *itertools.starmap(place, zip(answer, logits, strict=True)), *forced('"}')]
        norms = [math.fsum(map(math.exp, each.values())) for each in logits]
        weights = []
        for label in labels:
            same = next((i for i in range(3) if label[i] != answer[i]), 3)
            weight = math.prod(math.exp(logits[i][label[i]]) / norms[i] for i in range(min(same + 1, 3)))
            if same < 3:
                beside = [each for each in labels if each[: same + 1] == label[: same + 1]]
                weight /= len(beside)
            else:
                # Where nothing else is left, the tokens behind say nothing of the label.
                alone = next(i for i in range(4) if [each for each in labels if each[:i] == answer[:i]] == [answer])
                weight = math.prod(math.exp(logits[i][answer[i]]) / norms[i] for i in range(alone))
            weights.append(weight)
        expected = [weight / math.fsum(weights) for weight in weights]
        assert probabilities(places, labels) == pytest.approx(expected)


def test_lists_that_do_not_tell() -> None:
    spam = place("spam", {"spam": -5.0, "x": 1.0, "y": 0.9}, top=2)
    beyond = [*forced('{"label":"'), spam, *forced('"}')]
    assert probabilities(beyond, ("spam", "ham")) == ()
    spam["top_logprobs"][0]["token"], spam["top_logprobs"][0]["bytes"] = "ham", None
    assert probabilities(beyond, ("spam", "ham")) == ()
    whole = [*forced('{"label":"'), place("ham", {"ham": 0.0, "spam": 0.0}), *forced('"}')]
    assert probabilities(whole, ("spam", "ham")) == pytest.approx((0.5, 0.5))
    assert probabilities(forced("\n") + whole, ("spam", "ham"), '{"label":"ham"}') == pytest.approx((0.5, 0.5))
    assert probabilities(whole[1:], ("spam", "ham"), '{"label":"ham"}') == ()
    for broken in (None, [], {}, {"content": None}, {"content": [3]}, {"content": [{"token": "ham"}]}):
        got = read('{"label":"ham"}', SCHEMA, logprobs=broken)
        assert (got.label, got.probabilities, got.confidence) == ("ham", (), None)
    for value in ("x", None, True, 7.0, float("nan"), 10**400):
        whole[1]["top_logprobs"][0]["logprob"] = value
        assert sum(probabilities(whole, ("spam", "ham")) or (1.0,)) == pytest.approx(1.0)


# --- entities --------------------------------------------------------------------------------------------------------


def entities(*pairs: tuple[str, str]) -> str:
    return json.dumps({"entities": [{"type": kind, "text": text} for kind, text in pairs]})


def test_entities_become_a_line_in_the_order_of_the_source() -> None:
    source = "cut the left arm, then bend it"
    said = entities(("Action", "cut"), ("body part", "left arm"), ("Action", "bend"))
    assert read(said, guideline=PARTS, source=source).label == "cut [Action] left arm [Body part] bend [Action]"
    swapped = entities(("Action", "bend"), ("Action", "cut"))
    assert read(swapped, guideline=PARTS, source=source).label == "cut [Action] bend [Action]"
    assert read(entities(), guideline=PARTS, source=source).label == ""
    assert read('[{"type": "Action", "text": "cut"}]', guideline=PARTS, source=source).label == "cut [Action]"
    fenced = f"```json\n{entities(('Action', 'cut'))}\n```"
    assert read(fenced, guideline=PARTS, source=source).label == "cut [Action]"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (entities(("Action", "fold")), "does not stand"),
        (entities(("Action", "Cut")), "does not stand"),
        (entities(("Action", "cut"), ("Action", "cut")), "no place of their own"),
        (entities(("Action", "left arm"), ("Body part", "arm")), "no place of their own"),
        (entities(("Tool", "cut")), "not one of the labels"),
        (entities(("Action", " ")), "empty"),
        ('{"entities": [{"type": "Action"}]}', "no entity"),
        ('{"entities": [{"type": "Action", "text": "cut", "n": 1}]}', "no entity"),
        ('{"entities": [{"type": "Action", "text": 3}]}', "no entity"),
        ('{"entities": "cut"}', "no list"),
        ('{"entities": [], "more": 1}', "no list"),
        ('{"entities": [', "not JSON"),
        ("cut [Action]", "not JSON"),
        ('{"entities": [], "entities": []}', "twice"),
        (entities(("Action", "[Action] now")), "in brackets"),
    ],
)
def test_entities_that_do_not_align_are_refused(said: str, why: str) -> None:
    got = read(said, guideline=PARTS, source="cut the left arm [Action] now")
    assert got.label is None
    assert why in str(got.problem)


def places_of(source: str, words: list[str]) -> bool:
    """Whether words have places in the source in this order, none overlapping: every choice of places is tried."""
    starts = [[i for i in range(len(source)) if source.startswith(word, i)] for word in words]
    return any(
        all(a + len(w) <= b for (a, w), b in zip(zip(chosen, words, strict=True), chosen[1:], strict=False))
        for chosen in itertools.product(*starts)
    )


def test_what_aligns_is_what_a_search_of_all_places_finds() -> None:
    draw = random.Random(4)
    n_found = 0
    for _ in range(120):
        source = "".join(draw.choices("ab ", k=9)).strip()
        words = ["".join(draw.choices("ab", k=draw.randint(1, 3))) for _ in range(draw.randint(1, 3))]
        # Blanks inside a text are looked over, so a word may also be found across them.
        closed = source.replace(" ", "")
        got = read(entities(*(("Action", word) for word in words)), guideline=PARTS, source=source)
        if places_of(source, words):
            n_found += 1
            assert got.label is not None, (source, words)
        if got.label is not None:
            told = ["".join(each.text.split()) for each in parse_entities(got.label, PARTS.labels)]
            assert sorted(told) == sorted(words)
            assert places_of(closed, told)
        elif not any(places_of(closed, list(order)) for order in itertools.permutations(words)):
            assert "the text" in str(got.problem)
    assert 20 < n_found < 110


# --- usage -----------------------------------------------------------------------------------------------------------


def usage(**fields: Any) -> TokenUsage | None:
    return usage_of(json.dumps({"usage": fields}).encode())


def test_usage_by_kind() -> None:
    details = {"cached_tokens": 60, "cache_write_tokens": 5, "audio_tokens": None}
    chat = {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130, "prompt_tokens_details": details}
    assert usage(**chat) == TokenUsage(35, 60, 5, 30)
    assert usage(**chat, completion_tokens_details={"reasoning_tokens": 20}) == TokenUsage(35, 60, 5, 30)
    assert usage_of({"usage": chat}) == TokenUsage(35, 60, 5, 30)
    assert usage(prompt_tokens=7, completion_tokens=0) == TokenUsage(7, 0, 0, 0)
    assert usage(prompt_tokens=7, completion_tokens=1, prompt_tokens_details=None, total_tokens=None) == TokenUsage(
        7, 0, 0, 1
    )
    assert usage_of(decision()) == TokenUsage(30, 8, 2, 0)
    assert usage_of(systemone(ham=1)) == TokenUsage(9, 0, 0, 0)


def test_reasoning_counted_beside_the_output_is_added_to_it() -> None:
    beside = {"prompt_tokens": 10, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 50}}
    assert usage(**beside, total_tokens=64) == TokenUsage(10, 0, 0, 54)
    assert usage(**beside, total_tokens=14) is None
    assert usage(**beside) is None


WRONG: list[Any] = [None, "12", -1, 1.5, 12.0, True, [], {}, MAX_TOKENS + 1, 10**4000]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
def test_usage_that_cannot_be_is_none(value: Any) -> None:
    good = {"prompt_tokens": 100, "completion_tokens": 30}
    for name in good:
        assert usage(**{**good, name: value}) is None
    if value is not None:
        assert usage(**good, total_tokens=value) is None
        assert usage(**good, prompt_tokens_details={"cached_tokens": value}) is None


def test_usage_that_does_not_add_up_is_none() -> None:
    good = {"prompt_tokens": 100, "completion_tokens": 30}
    assert usage(**good, total_tokens=131) is None
    assert usage(**good, prompt_tokens_details={"cached_tokens": 101}) is None
    assert usage(**good, prompt_tokens_details={"cached_tokens": 60, "cache_write_tokens": 41}) is None
    assert usage(**good, completion_tokens_details={"reasoning_tokens": 31}) is None
    assert usage(**good, prompt_tokens_details="none") is None
    for body in (
        b"",
        b"<html>",
        b"{}",
        b'{"usage": null}',
        b'{"usage": []}',
        b'{"usage": {}, "usage": {}}',
        reply("x"),
    ):
        assert usage_of(body) is None


# --- several answers -------------------------------------------------------------------------------------------------


def labelled(*labels: str | None) -> list[Reading]:
    return [Reading(label, None if label else "unread") for label in labels]


def test_the_majority_speaks_and_its_share_is_the_confidence() -> None:
    assert agree(labelled("a", "b", "a", "a")) == Agreed("a", None, 3, 4, (), 0.75)
    assert agree(labelled("b", "a", "a", "b")).label == "b"
    assert agree(labelled(None, "a", None)) == Agreed("a", None, 1, 3, (), 1 / 3)
    assert agree(labelled("a")) == Agreed("a", None, 1, 1)
    assert agree(labelled(None, None)) == Agreed(None, "unread", 0, 2)
    assert agree([]).label is None
    assert agree([Reading("", None), Reading("", None)]).label == ""


def test_probabilities_are_averaged() -> None:
    rows = [Reading("ham", None, "", (0.2, 0.8), 0.8), Reading("spam", None, "", (0.6, 0.4), 0.6), Reading("ham", None)]
    got = agree(rows, SPAM.labels)
    assert (got.label, got.votes, got.n) == ("ham", 2, 3)
    assert got.probabilities == pytest.approx((0.4, 0.6))
    assert got.confidence == pytest.approx(0.6)


# --- any bytes -------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["spam", "ham", "label"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "answers",
                    "label",
                    "type",
                    "choice",
                    "usage",
                    "probabilities",
                    "value",
                    "logprobs",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def whole(body: bytes) -> None:
    for name in WAYS:
        for guideline in (SPAM, PARTS, FREE):
            got = read_answer(Way(name, 20), guideline, body, "spam cut the left arm")
            assert (got.label is None) is (got.problem is not None)
            assert got.label is None or not guideline.labels or guideline is PARTS or got.label in guideline.labels
            if got.probabilities:
                assert sum(got.probabilities) == pytest.approx(1)
    usage_of(body)
    error_of(body)
    choice_of(body)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=100, deadline=None)
def test_no_bytes_raise(body: bytes) -> None:
    whole(body)


GOOD = [
    reply(
        '{"label": "ham"}',
        logprobs={"content": [*forced('{"label": "'), place("ham", {"ham": 0, "spam": 1}), *forced('"}')]},
    ),
    reply(entities(("Action", "cut"), ("Body part", "left arm"))),
    decision(),
    systemone(ham=0.75, spam=0.25),
]


@given(st.sampled_from(GOOD), st.data())
@settings(max_examples=100, deadline=None)
def test_no_damage_raises(body: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(body)))
    stop = data.draw(st.integers(start, min(len(body), start + 12)))
    other = data.draw(
        st.sampled_from([b"", b"null", b"[", b"}", b'"', b"-1", b"1e999", b"NaN", b'"ham"', b"\xff", b"9" * 5000])
    )
    whole(body[:start] + other + body[stop:])


@given(st.sampled_from(GOOD), st.data(), JSON)
@settings(max_examples=100, deadline=None)
def test_no_value_in_a_good_reply_raises(body: bytes, data: st.DataObject, value: Any) -> None:
    document = json.loads(body)
    at: Any = document
    while True:
        key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            at[key] = value
            break
        at = at[key]
    whole(json.dumps(document).encode())


def test_errors_are_told_on_one_line() -> None:
    assert "no such model" in error_of(b'{"error": {"message": "no such\\nmodel", "code": 404}}').replace("\\n", " ")
    assert "Not Found" in error_of(b'{"detail": "Not Found"}')
    assert "extra fields" in error_of(b'{"detail": [{"msg": "extra fields"}]}')
    assert "<html>" in error_of(b"<html>\n502")
    assert error_of(b"\xff\xfe") != ""
    for body in (b'{"error": {"message": "a\\nb"}}', b"a\nb", b"", b"{}"):
        assert "\n" not in error_of(body)
