"""Answers read: bytes of a reply -> a label, or the reason why there is none. Nothing here raises, whatever the bytes are.

An answer is a label only where it is exactly one: outer blanks, quotes and case are forgiven, nothing else. One that is cut,
filtered, declined or ambiguous is none.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.labels.llm.bodies import QUESTION, Way
from outlay.labels.llm.logprobs import label_probabilities
from outlay.labels.llm.prompts import Guideline
from outlay.money.prices.tokens import TokenUsage
from outlay.text.entities import Entity, align, cut_out, parse_entities, render_entities
from outlay.text.json_text import BadJson, parse_json
from outlay.text.legible import quoted

MAX_TOKENS = 10**9
"""Most tokens of one request that a `usage` may name and be believed."""

_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)
_LABEL_OBJECT = re.compile(r'\s*\{\s*"label"\s*:\s*("(?:[^"\\]|\\.)*")\s*\}\s*', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer as it was read: a ``label``, or the ``problem`` why there is none.

    ``text``: the answer as the model gave it, empty where there was none; ``probabilities``: of every label in the order of the
    set, summing to 1, empty where the endpoint gave none; ``confidence``: the probability of the label, 0 to 1; ``declined``: the
    model or a filter refused, so that asking again is of no use.
    """

    label: str | None
    problem: str | None
    text: str = ""
    probabilities: tuple[float, ...] = ()
    confidence: float | None = None
    declined: bool = False


class _Unread(Exception):
    """A reply without a label: the reason, the text there was, whether it was declined."""

    def __init__(self, problem: str, text: str = "", *, declined: bool = False) -> None:
        super().__init__(problem)
        self.reading = Reading(None, problem, text, declined=declined)


def read_answer(way: Way, guideline: Guideline, body: bytes, source: str) -> Reading:
    """Read the reply to one request.

    ``source``: the row's whole text, in which entities are looked for. A list of entities becomes the line of the project's own
    form, in the order of the source; one that cannot be found there, or overlaps with others, leaves the whole answer unread.
    """
    try:
        document = _document(body)
        if way.name == "decisions":
            return _read_decision(guideline.labels, document)
        if way.name == "systemone":
            return _read_systemone(guideline.labels, document)
        choice, text = _answer(document)
        if guideline.kind == "entities":
            return Reading(_entity_line(text, guideline.labels, source), None, text)
        if guideline.kind == "generation":
            return Reading(_free_text(text, source), None, text)
        if way.name == "chat":
            return Reading(_one_label(text, text, guideline.labels), None, text)
        return _read_object(choice, text, guideline.labels)
    except _Unread as unread:
        return unread.reading


def usage_of(body: bytes | Mapping[str, Any]) -> TokenUsage | None:
    """Return what a reply says it is billed for; None where it is missing or cannot be.

    Both namings are read ("prompt_tokens" of chat, "input_tokens" of decisions). Numbers must be whole and between 0 and
    `MAX_TOKENS`, the cached and written tokens no more than the input. Output includes reasoning: where a provider counts it
    beside the output, so that only their sum makes ``total_tokens``, it is added.
    """
    try:
        usage = (_document(body) if isinstance(body, bytes) else body).get("usage")
        if not isinstance(usage, Mapping):
            return None
        is_chat = "prompt_tokens" in usage
        read, written = ("prompt", "completion") if is_chat else ("input", "output")
        n_input, n_output = _tokens(usage, f"{read}_tokens"), _tokens(usage, f"{written}_tokens")
        details = [usage.get(f"{name}_tokens_details") or {} for name in (read, written)]
        if not all(isinstance(each, Mapping) for each in details):
            return None
        cached, cache_write = (_tokens(details[0], name, 0) for name in ("cached_tokens", "cache_write_tokens"))
        reasoning = _tokens(details[1], "reasoning_tokens", 0)
        total = _tokens(usage, "total_tokens", n_input + n_output)
    except _Unread:
        return None
    if total == n_input + n_output + reasoning:
        n_output += reasoning if total > n_input + n_output else 0
    elif total != n_input + n_output:
        return None
    if cached + cache_write > n_input or reasoning > n_output:
        return None
    return TokenUsage(n_input - cached - cache_write, cached, cache_write, n_output)


def error_of(body: bytes) -> str:
    """Return what an error reply says, on one line: its message, else the beginning of its text. Keys are not taken out."""
    try:
        document = _document(body)
    except _Unread:
        return quoted(body[:400].decode("utf-8", "replace").strip())
    for part in (document.get("error"), document.get("detail"), document.get("message")):
        said = part.get("message") if isinstance(part, Mapping) else part
        if said:
            return _shown(said)
    return _shown(document)


@dataclass(frozen=True, slots=True)
class Agreed:
    """Outcome of several answers to one row: the label of most, or the problem of the first.

    ``votes``: answers for the label, of ``n``; ``probabilities``: the mean over the answers that have them; ``confidence``: the
    label's mean probability where there is one, else the share of votes, None for a single answer, which agrees with itself.
    """

    label: str | None
    problem: str | None
    votes: int
    n: int
    probabilities: tuple[float, ...] = ()
    confidence: float | None = None


def agree(readings: Sequence[Reading], labels: Sequence[str] = ()) -> Agreed:
    """Return the label that most answers give; among equally many, the one that came first. Answers without a label have no vote.

    ``labels``: the label set, in the order of the probabilities.
    """
    given = [reading for reading in readings if reading.label is not None]
    if not given:
        problem = readings[0].problem if readings else "there is no answer"
        return Agreed(None, problem, 0, len(readings))
    label, votes = Counter(reading.label for reading in given).most_common(1)[0]
    listed = [reading.probabilities for reading in given if reading.probabilities]
    means = tuple(math.fsum(column) / len(listed) for column in zip(*listed, strict=True))
    confidence = votes / len(readings) if len(readings) > 1 else None
    if means and label is not None and label in labels:
        confidence = means[list(labels).index(label)]
    return Agreed(label, None, votes, len(readings), means, confidence)


def object_answer(text: str) -> str | None:
    """Return the label of an answer ``{"label": …}``; None where the text is no such object and nothing else."""
    found = _LABEL_OBJECT.fullmatch(text)
    try:
        value = None if found is None else parse_json(found[1])
    except BadJson:
        return None
    return value if isinstance(value, str) else None


def choice_of(body: bytes) -> tuple[Mapping[str, Any], str | None]:
    """Return the first choice of a chat reply and its text, None where it has none; nothing where the body is no such reply."""
    try:
        choice = _choice(_document(body))
    except _Unread:
        return {}, None
    content = choice["message"].get("content")
    return choice, content if isinstance(content, str) else None


def _document(body: bytes) -> dict[str, Any]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _Unread("the reply is not UTF-8") from None
    try:
        document = parse_json(text)
    except BadJson as bad:
        if text.lstrip()[:1] == "<":
            raise _Unread("the reply is a page of HTML or XML, not JSON") from None
        why = "breaks off" if bad.at_end else str(bad)
        raise _Unread(f"the reply {why if text.strip() else 'is empty'}") from None
    if not isinstance(document, dict):
        raise _Unread("the reply is JSON, but no object")
    return document


def _choice(document: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = document.get("choices")
    if not isinstance(choices, list) or not choices:
        said = document.get("error")
        raise _Unread(f"the reply is an error: {_shown(said)}" if said else "the reply has no choices")
    if not isinstance(choices[0], dict) or not isinstance(choices[0].get("message"), dict):
        raise _Unread("the reply has no message")
    return choices[0]


def _answer(document: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return the first choice of a chat reply and the whole text of its answer."""
    choice = _choice(document)
    message, reason = choice["message"], choice.get("finish_reason")
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    if refusal := message.get("refusal"):
        raise _Unread(f"the model declined: {_shown(refusal)}", text, declined=True)
    if reason == "content_filter":
        raise _Unread("a filter of the provider took the answer out", text, declined=True)
    if reason == "length":
        raise _Unread("the answer was cut at the most tokens an answer may have", text)
    if content is None:
        raise _Unread("the answer is null")
    if not isinstance(content, str):
        raise _Unread("the answer is no text")
    if not text.strip():
        raise _Unread("the answer is empty", text)
    return choice, text


def _one_label(said: str, text: str, labels: Sequence[str]) -> str:
    """Return the label that is said; ``text`` is the whole answer, for the reason."""
    trimmed = said.strip()
    for form in (said, trimmed, _unquoted(trimmed)):
        if form in labels:
            return form
    core = _unquoted(trimmed).casefold()
    same = [label for label in labels if label.strip().casefold() == core]
    if len(same) == 1:
        return same[0]
    raise _Unread(f"the answer {quoted(text)} is not one of the labels", text)


def _unquoted(text: str) -> str:
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        return text[1:-1].strip()
    return text


def _read_object(choice: Mapping[str, Any], text: str, labels: Sequence[str]) -> Reading:
    said = object_answer(text)
    if said is None:
        raise _Unread(f"the answer {quoted(text)} is not an object with a label alone", text)
    label = _one_label(said, text, labels)
    found = _LABEL_OBJECT.fullmatch(text)
    span = (0, 0) if found is None else found.span(1)
    return _with_probabilities(
        label, text, label_probabilities(choice.get("logprobs"), text, span, label, labels), labels
    )


def _with_probabilities(label: str, text: str, values: Sequence[float], labels: Sequence[str]) -> Reading:
    confidence = values[list(labels).index(label)] if values else None
    return Reading(label, None, text, tuple(values), confidence)


def _free_text(text: str, source: str) -> str:
    """Return a free answer without outer blanks, and without escapes that it copied from the row's JSON."""
    for escape, sign in (("\\u003c", "<"), ("\\u005b", "[")):
        if escape not in source:
            text = text.replace(escape, sign)
    return text.strip()


def _entity_line(text: str, types: Sequence[str], source: str) -> str:
    fenced = _FENCE.fullmatch(text.strip())
    try:
        document = parse_json(fenced[1] if fenced else text)
    except BadJson as bad:
        raise _Unread(f"the answer {bad}", text) from None
    items = document.get("entities") if isinstance(document, dict) and len(document) == 1 else document
    if not isinstance(items, list):
        raise _Unread("the answer is no list of entities", text)
    entities = [_entity(item, types, text) for item in items]
    for entity in entities:
        if align(source, [entity])[1]:
            raise _Unread(f"the entity {quoted(entity.text)} does not stand in the text", text)
    spans, n_missing = align(source, entities)
    if n_missing:
        raise _Unread(f"{n_missing} of {len(entities)} entities have no place of their own in the text", text)
    line = render_entities(cut_out(source, spans))
    if parse_entities(line, types) != cut_out(source, spans):
        raise _Unread("an entity holds a type in brackets, which no line of entities can hold", text)
    return line


def _entity(item: Any, types: Sequence[str], text: str) -> Entity:
    if (
        not isinstance(item, dict)
        or set(item) != {"type", "text"}
        or not all(isinstance(v, str) for v in item.values())
    ):
        raise _Unread(f"{_shown(item)} is no entity: a type and a text", text)
    if not item["text"].strip():
        raise _Unread("an entity is empty", text)
    return Entity(item["text"].strip(), _one_label(item["type"], text, types))


def _read_decision(labels: Sequence[str], document: Mapping[str, Any]) -> Reading:
    answers = document.get("answers")
    if not isinstance(answers, list) or len(answers) != 1 or not isinstance(answers[0], dict):
        raise _Unread("the reply has no answer to the question")
    answer = answers[0]
    if answer.get("type") == "refusal":
        raise _Unread("the model declined", declined=True)
    rows = answer.get("probabilities")
    pairs = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    named = [(row.get("value"), row.get("probability")) for row in pairs]
    return _decided(answer, named, labels)


def _read_systemone(labels: Sequence[str], document: Mapping[str, Any]) -> Reading:
    answers = document.get("answers")
    answer = answers.get(QUESTION) if isinstance(answers, dict) else None
    if not isinstance(answer, dict):
        raise _Unread("the reply has no answer to the question")
    values = answer.get("probabilities")
    return _decided(answer, list(values.items()) if isinstance(values, dict) else [], labels)


def _decided(answer: Mapping[str, Any], named: Sequence[tuple[Any, Any]], labels: Sequence[str]) -> Reading:
    label = answer.get("choice")
    if answer.get("type") != "choice" or not isinstance(label, str):
        raise _Unread("the reply chooses no label")
    if label not in labels:
        raise _Unread(f"the choice {quoted(label)} is not one of the labels", label)
    return _with_probabilities(label, label, _complete(named, labels), labels)


def _complete(named: Sequence[tuple[Any, Any]], labels: Sequence[str]) -> tuple[float, ...]:
    """Return the probabilities of all labels, which sum to 1; nothing where one is missing, double or no probability."""
    given = [(name, value) for name, value in named if isinstance(name, str)]
    found = dict(given)
    values = [found.get(label) for label in labels]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1]
    total = math.fsum(numbers)
    if len(numbers) != len(labels) or len(given) != len(labels) or total <= 0:
        return ()
    return tuple(number / total for number in numbers)


def _tokens(usage: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = usage.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TOKENS:
        raise _Unread(f"{name} is {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """Quote the beginning of a JSON value."""
    try:
        return quoted(value if isinstance(value, str) else json.dumps(value), 200)
    except RecursionError:
        return "something nested deep"
