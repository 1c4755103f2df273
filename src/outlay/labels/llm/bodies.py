"""Bodies of requests, one form per way of answering, and the most tokens that each can be billed for.

``decisions``: ``POST /decisions`` (openai 3, ``client.decisions``); ``systemone``: ``POST /systemone`` of ``transformers serve``;
``schema``: chat whose answer a JSON Schema binds; ``chat``: chat, read strictly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from outlay.errors import SellerError
from outlay.labels.llm.prompts import (
    IS_DATA,
    Form,
    Guideline,
    Shot,
    data_with_examples,
    prompt_of,
    schema_of,
)
from outlay.money.prices.tokens import TokenUsage
from outlay.tasks.example import Example

WayName = Literal["decisions", "systemone", "schema", "chat"]

PATHS: dict[WayName, str] = {
    "decisions": "/decisions",
    "systemone": "/systemone",
    "schema": "/chat/completions",
    "chat": "/chat/completions",
}
QUESTION = "label"
"""Name of the only question of a decision request."""

REQUEST_TOKENS = 128
"""Allowance per request for what a server adds: first tokens, a system message of its own, the frame of a schema or question."""
MESSAGE_TOKENS = 16
"""Allowance per message for its role and its end in the chat template."""
DECISION_TOKENS = 16
"""Allowance for the output of a decision: its label is not written, but `usage` has a place for output."""

_OWN_FIELDS = {
    *("model", "messages", "max_completion_tokens", "max_tokens", "n", "stream"),
    *("response_format", "logprobs", "top_logprobs", "temperature"),
}


@dataclass(frozen=True, slots=True)
class Way:
    """A way of answering, and which optional fields of a body the endpoint takes.

    ``top_logprobs``: tokens listed at each place of an answer, 0 for none; ``temperature``: whether it may be sent.
    """

    name: WayName
    top_logprobs: int = 0
    temperature: bool = True

    @property
    def path(self) -> str:
        """Path of its requests below the base URL."""
        return PATHS[self.name]

    @property
    def form(self) -> Form:
        """Form of its answers."""
        return "json" if self.name == "schema" else "text"

    @property
    def gives_probabilities(self) -> bool:
        """True where an answer comes with a probability of every label."""
        return self.name in ("decisions", "systemone") or self.top_logprobs > 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Way:
        """Return the way that `to_json` wrote."""
        return cls(**document)


@dataclass(frozen=True, slots=True)
class Settings:
    """The model that is asked, and how.

    ``max_answer_tokens``: longest answer in tokens, reasoning included; ``temperature``: 0 for one sample per row, more where
    several are to differ; ``extra``: more fields of chat bodies, as the provider names them (such as ``seed``).

    Raises SellerError for a field in ``extra`` that has a setting of its own, and for an answer of no token.
    """

    model: str
    max_answer_tokens: int = 16
    temperature: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := sorted(_OWN_FIELDS & set(self.extra)):
            raise SellerError(f"the field {taken[0]} of a request is set by the seller; remove it from `extra`")
        if self.max_answer_tokens < 1:
            raise SellerError(f"an answer may have {self.max_answer_tokens} tokens; give 1 or more")


def body_of(
    way: Way, guideline: Guideline, example: Example, shots: Sequence[Shot], settings: Settings
) -> dict[str, Any]:
    """Return the whole body of the request for one row. Its label is never looked at.

    Raises:
        SellerError: The way does not answer tasks of this kind.
    """
    if guideline.kind != "classification" and way.name in ("decisions", "systemone"):
        raise SellerError(f"the way {way.name} chooses a label and cannot do {guideline.kind}; choose schema or chat")
    if guideline.kind == "generation" and way.name == "schema":
        raise SellerError("the way schema binds an answer to labels, and free text has none; choose chat")
    if way.name == "decisions":
        return _decision_body(guideline, example, shots, settings)
    if way.name == "systemone":
        return _systemone_body(guideline, example, shots, settings)
    messages = prompt_of(guideline, example, shots, way.form).messages()
    return chat_body(way, guideline, messages, settings)


def chat_body(
    way: Way, guideline: Guideline, messages: Sequence[Mapping[str, str]], settings: Settings
) -> dict[str, Any]:
    """Return the body of a chat request with these messages."""
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": list(messages),
        "max_completion_tokens": settings.max_answer_tokens,
    }
    if way.temperature:
        body["temperature"] = settings.temperature
    if way.name == "schema":
        schema = {"name": "answer", "strict": True, "schema": schema_of(guideline)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if way.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": way.top_logprobs}
    return {**settings.extra, **body}


def most_tokens(body: Mapping[str, Any], count: Callable[[str], int] | None = None) -> TokenUsage:
    """Return the most tokens that a body of `body_of` can be billed for.

    All input is counted as ``input``: part of it may be read from a cache or written to one, so the bound in dollars takes the
    dearest of the three prices. A token holds at least one byte of UTF-8, so without ``count`` (tokens of a text) the bytes of
    what is sent are the bound; to it come `REQUEST_TOKENS` and, per message, `MESSAGE_TOKENS` for what the server adds. The
    output is bound by ``max_completion_tokens``.
    """
    texts = [message["content"] for part in ("messages", "input") for message in body.get(part, ())]
    n_messages = len(texts)
    texts += [body["state"]] if "state" in body else []
    frame = {name: value for name, value in body.items() if name not in ("messages", "input", "state")}
    texts.append(json.dumps(frame, ensure_ascii=False, separators=(",", ":")))
    n_of = count or _n_bytes
    output = body.get("max_completion_tokens", 0 if "state" in body else DECISION_TOKENS)
    return TokenUsage(input=sum(map(n_of, texts)) + MESSAGE_TOKENS * n_messages + REQUEST_TOKENS, output=output)


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _decision_body(guideline: Guideline, example: Example, shots: Sequence[Shot], settings: Settings) -> dict[str, Any]:
    meaning = dict(guideline.descriptions)
    choices = [
        {"value": label, "description": meaning[label]} if meaning.get(label) else {"value": label}
        for label in guideline.labels
    ]
    question = {"type": "choice", "name": QUESTION, "instructions": guideline.task, "choices": choices}
    messages = [
        {"role": "developer", "content": _note(shots)},
        {"role": "user", "content": data_with_examples(example, shots)},
    ]
    return {"model": settings.model, "input": messages, "questions": [question]}


def _systemone_body(
    guideline: Guideline, example: Example, shots: Sequence[Shot], settings: Settings
) -> dict[str, Any]:
    meaning = dict(guideline.descriptions)
    question = {
        "type": "choice",
        "instructions": f"{guideline.task} {_note(shots)}",
        "criteria": {label: meaning.get(label) or None for label in guideline.labels},
    }
    state = data_with_examples(example, shots)
    return {"model": settings.model, "state": state, "questions": {QUESTION: question}}


def _note(shots: Sequence[Shot]) -> str:
    if not shots:
        return f"The text is a JSON object. {IS_DATA}"
    return f'The text is the JSON object "input"; "examples" shows others with their labels. {IS_DATA}'
