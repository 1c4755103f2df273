"""The best way of answering that an endpoint really has, found by asking it.

Servers pass over fields that they do not know, and answer as if they did; so each way is tried once, on a made-up row, and judged
by what came back. The order is that of `WAYS`: what gives probabilities first. A field that the endpoint names in a refusal
(``temperature``, ``top_logprobs``) is left out of the next try. A decision that lacks the probability of a label, a chat that
wrote the word that it was asked for and not the object that the schema binds it to: that way is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from outlay.errors import SellerError
from outlay.labels.llm.bodies import Settings, Way, WayName, body_of, chat_body
from outlay.labels.llm.prompts import Guideline
from outlay.labels.llm.reading import choice_of, error_of, object_answer, read_answer
from outlay.spec import Kind
from outlay.tasks.example import Example
from outlay.text.legible import quoted

WAYS: tuple[WayName, ...] = get_args(WayName)
WAYS_OF: dict[Kind, tuple[WayName, ...]] = {
    "classification": WAYS,
    "entities": ("schema", "chat"),
    "generation": ("chat",),
}
"""Ways that can answer a kind of task, best first."""

TOP_LOGPROBS = (20, 5, 0)
"""Tokens listed per place that are asked for, until the endpoint takes a number: 20 is the most at OpenAI, 5 at others."""
PROBE_TOKENS = 64
"""Fewest tokens that an answer to a probe may have: an object with a long label, white space included."""
MOST_PROBES = 10
"""More probes than any endpoint takes: one per decision way, chat with each mix of fields, chat without a schema."""

_PLACEHOLDER = "a made-up text"
_WORDS = ("apple", "river", "seven", "cloud", "stone", "paper")

Answered = tuple[int, bytes]
"""HTTP status and body of the reply to a probe."""
_Found = tuple[Way | None, str]
"""A way that the endpoint has, or the reason why it does not have it."""


@dataclass(frozen=True)
class Probe:
    """A request that tries a way."""

    way: Way
    body: dict[str, Any]

    @property
    def path(self) -> str:
        """Path of the request below the base URL."""
        return self.way.path


def next_probe(
    guideline: Guideline,
    settings: Settings,
    wanted: Literal["auto"] | WayName,
    answered: Sequence[Answered],
    among: Sequence[WayName] = WAYS,
) -> Probe | Way:
    """Return the probe to send next, or the way that was found; ``among``: ways that ``auto`` may choose.

    ``answered``: status and body of the probes so far, in order; a status other than 200 is an answer too. The probes are a
    function of the answers, so a journal of them leads to the same way without asking again. No row of the task is sent.

    Raises:
        SellerError: The endpoint does not know the key (401), has no way to answer, or not the one that is wanted; or the kind of
            task cannot be answered that way.
    """
    plan = _plan(guideline, settings, wanted, among)
    try:
        step = next(plan)
        for reply in answered:
            step = plan.send(reply)
    except StopIteration as found:
        way: Way = found.value
        return way
    return step


def _plan(
    guideline: Guideline, settings: Settings, wanted: str, among: Sequence[WayName]
) -> Generator[Probe, Answered, Way]:
    possible = WAYS_OF[guideline.kind]
    if wanted not in ("auto", *WAYS):
        raise SellerError(f"{wanted!r} is no way to answer; choose auto, {', '.join(WAYS)}")
    if wanted != "auto" and wanted not in possible:
        raise SellerError(
            f"a task of kind {guideline.kind} cannot be answered by {wanted}; choose auto, {', '.join(possible)}"
        )
    reasons = []
    for name in possible:
        if name not in among if wanted == "auto" else name != wanted:
            continue
        if name in ("decisions", "systemone"):
            way, reason = yield from _try_decision(Way(name), guideline, settings)
        else:
            way, reason = yield from _try_chat(name, guideline, settings)
        if way is not None:
            return way
        reasons.append(f"{name}: {reason}")
    found = f"{settings.model} behind this endpoint does not answer by {wanted}"
    if wanted == "auto":
        found = f"{settings.model} behind this endpoint has no way to answer"
    other = "check the model's name and the URL" if wanted in ("auto", "chat") else "choose auto or chat"
    raise SellerError(f"{found} ({'; '.join(reasons)}); {other}")


def _try_decision(way: Way, guideline: Guideline, settings: Settings) -> Generator[Probe, Answered, _Found]:
    status, body = yield Probe(way, body_of(way, guideline, _made_up(guideline), (), settings))
    if status != 200:
        return None, _refusal(status, body)
    read = read_answer(way, guideline, body, _PLACEHOLDER)
    if read.label is None:
        return None, str(read.problem)
    return (way, "") if read.probabilities else (None, "the reply does not have the probability of every label")


def _try_chat(name: WayName, guideline: Guideline, settings: Settings) -> Generator[Probe, Answered, _Found]:
    """Try a chat, again without the fields that the endpoint refuses by name."""
    lists = list(TOP_LOGPROBS) if name == "schema" and guideline.kind == "classification" else [0]
    way = Way(name, top_logprobs=lists.pop(0))
    patient = replace(settings, max_answer_tokens=max(settings.max_answer_tokens, PROBE_TOKENS))
    while True:
        if name == "schema":
            probe = Probe(way, chat_body(way, guideline, [{"role": "user", "content": _request(guideline)}], patient))
        else:
            probe = Probe(way, body_of(way, guideline, _made_up(guideline), (), patient))
        status, body = yield probe
        if status == 200:
            return _judged_schema(way, guideline, body) if name == "schema" else _judged_chat(way, body)
        reason = _refusal(status, body)
        if way.temperature and "temperature" in reason:
            way = replace(way, temperature=False)
        elif lists and re.search(r"log_?prob", reason):
            way = replace(way, top_logprobs=lists.pop(0))
        else:
            return None, reason


def _judged_schema(way: Way, guideline: Guideline, body: bytes) -> _Found:
    """Judge a reply to the request for a word that the schema does not allow: an object means that the schema bound it.

    An object of a list of entities may have been cut; its beginning tells as much.
    """
    choice, text = choice_of(body)
    if text is None:
        return None, _why_not(body, guideline)
    if guideline.kind == "entities":
        is_bound = re.match(r'\s*\{\s*"entities"\s*:\s*\[', text) is not None
    else:
        is_bound = object_answer(text) in guideline.labels
    if not is_bound:
        return None, f"it passes over the schema and writes {quoted(text)}"
    logprobs = choice.get("logprobs")
    has_lists = isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list) and logprobs["content"]
    return (way if has_lists else replace(way, top_logprobs=0)), ""


def _judged_chat(way: Way, body: bytes) -> _Found:
    choice, text = choice_of(body)
    if not choice:
        return None, _why_not(body, Guideline("generation", (), ()))
    if not (text or "").strip() and choice.get("finish_reason") == "length":
        return None, "its answer is empty when it may have no more tokens; raise max_answer_tokens"
    return way, ""


def _why_not(body: bytes, guideline: Guideline) -> str:
    return str(read_answer(Way("chat"), guideline, body, "").problem)


def _refusal(status: int, body: bytes) -> str:
    said = f"status {status}, {error_of(body)}"
    if status == 401:
        raise SellerError(f"the endpoint does not take the key ({said}); check the variable that holds it")
    return said


def _made_up(guideline: Guideline) -> Example:
    fields = tuple((name, _PLACEHOLDER) for name in guideline.fields)
    return Example(id="probe", fields=fields, text=_PLACEHOLDER, label=None, origin="probe")


def _request(guideline: Guideline) -> str:
    """Return a request for a word that no label holds."""
    labels = " ".join(guideline.labels).casefold()
    word = next((each for each in _WORDS if each not in labels), json.dumps(labels[::-1]))
    return f"Write the word {word} and nothing else."
