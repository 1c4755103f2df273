"""What goes wrong between a customer and a provider: which request it befalls, and what it does to the answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from time import time
from typing import Any, Literal

from tests.scripted_model import draw

REFUSED: dict[str, tuple[int, str, str]] = {
    "429": (429, "rate_limit_exceeded", "Rate limit reached for requests per min (RPM)."),
    "429_retry_after": (429, "rate_limit_exceeded", "Rate limit reached for tokens per min (TPM)."),
    "429_300": (429, "rate_limit_exceeded", "Rate limit reached. Please try again in 5m0s."),
    "429_date": (429, "rate_limit_exceeded", "Rate limit reached."),
    "insufficient_quota": (429, "insufficient_quota", "You exceeded your current quota, please check your plan."),
    "500": (500, "server_error", "The server had an error while processing your request."),
    "502": (502, "bad_gateway", "Bad gateway."),
    "503": (503, "overloaded", "That model is currently overloaded with other requests."),
    "401": (401, "invalid_api_key", "Incorrect API key provided."),
    "400_context": (400, "context_length_exceeded", "This model's maximum context length is 8192 tokens."),
    "400_policy": (400, "content_policy_violation", "Your request was rejected by our safety system."),
}
"""Answers in place of work: status, the error's code and its message. None is billed, and so are the next three not."""
UNBILLED = (*REFUSED, "html_200", "reset_before", "hang")
BILLED = (
    *("reset_after", "truncated", "cut_json", "not_object", "empty", "no_choices", "content_null", "prose", "no_usage"),
    *("usage_text", "usage_negative", "usage_huge", "refusal", "content_filter", "length", "slow", "stall"),
    "duplicate_id",
)
"""Faults after the work was done, which the provider bills as it bills any other."""
NAMES = (*UNBILLED, *BILLED)
Manner = Literal["reset", "truncated", "stall", "slow", "hang"]
ON_THE_WIRE: dict[str, Manner] = {
    "reset_after": "reset",
    "truncated": "truncated",
    "stall": "stall",
    "slow": "slow",
}
"""Manner of sending of those that leave the answer as it is."""
NO_DOCUMENT = ("cut_json", "empty", "not_object")
DOCUMENT = tuple(name for name in BILLED if name not in (*ON_THE_WIRE, *NO_DOCUMENT))
"""Those that change what the answer's document says."""
HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body><h1>Checking your browser</h1></body></html>"
PROSE = 'I would say it depends. ```json\n{"labels": maybe}\n``` Let me know if I can help further!'


@dataclass(frozen=True)
class Faults:
    """Which requests go wrong.

    Args:
        shares: Probability of each fault, drawn by seed, body and number of the attempt: the same in any order of arrival.
        seed: Of the draws.
        attempts: First attempts of a body that may go wrong by ``shares``; later ones do not, so that all succeed in the end.
        first: Faults of the first requests, in their order of arrival; ``None`` for one that goes well.
        storms: Runs of arrivals that all go wrong: (number of the first, from 0; how many; fault).
        on: Paths below the endpoint that are befallen.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    attempts: int = 1
    first: Sequence[str | None] = ()
    storms: Sequence[tuple[int, int, str]] = ()
    on: Sequence[str] = ("/chat/completions", "/decisions", "/systemone")

    def __post_init__(self) -> None:
        named = {*self.shares, *(name for name in self.first if name), *(name for *_, name in self.storms)}
        if unknown := named - set(NAMES):
            raise ValueError(f"no such faults: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")

    def of(self, key: str, attempt: int, arrival: int) -> str | None:
        """Fault of one request: ``attempt`` of this body and ``arrival`` of all, both from 0."""
        if arrival < len(self.first):
            return self.first[arrival]
        for start, n, name in self.storms:
            if start <= arrival < start + n:
                return name
        left = draw(self.seed, key, attempt).random() if attempt < self.attempts else 1.0
        for name, share in self.shares.items():
            left -= share
            if left < 0:
                return name
        return None


def error_body(code: str, message: str, kind: str = "invalid_request_error", param: str | None = None) -> bytes:
    """Write an error as OpenAI does."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def refused(name: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a fault of `REFUSED`."""
    status, code, message = REFUSED[name]
    waits = {"429_retry_after": "1", "429_300": "300", "429_date": formatdate(time() + 2, usegmt=True)}
    headers = {"Retry-After": waits[name]} if name in waits else {}
    return status, headers, error_body(code, message, "server_error" if status >= 500 else code)


def spoil(name: str, body: bytes, last_id: str | None) -> bytes:
    """Do to the body of a good answer what the fault says; those of the connection leave it as it is."""
    if name == "cut_json":
        return body[: len(body) // 2]
    if name == "empty":
        return b""
    if name == "not_object":
        return b'["ok"]'
    document = json.loads(body)
    usage = document.get("usage", {})
    n_in = "prompt_tokens" if "prompt_tokens" in usage else "input_tokens"
    if name == "no_usage":
        document.pop("usage", None)
    elif name == "usage_text":
        usage |= {n_in: "many"}
    elif name == "usage_negative":
        usage |= {n_in: -usage[n_in]}
    elif name == "usage_huge":
        usage |= {n_in: 10**15}
    elif name == "duplicate_id":
        document["id"] = last_id or document.get("id")
    elif "choices" in document:
        _spoil_chat(name, document)
    else:
        _spoil_decision(name, document)
    return json.dumps(document).encode()


def _spoil_chat(name: str, document: dict[str, Any]) -> None:
    if name == "no_choices":
        document["choices"] = []
    for choice in document["choices"]:
        message = choice["message"]
        if name in ("content_null", "refusal", "content_filter", "prose"):
            choice["logprobs"] = None
            message["content"] = PROSE if name == "prose" else None
        if name == "refusal":
            message["refusal"] = "I'm sorry, I can't assist with that."
        if name == "content_filter":
            choice["finish_reason"] = "content_filter"
        if name == "length":
            choice["finish_reason"] = "length"
            message["content"] = message["content"][: math.ceil(len(message["content"]) / 2)]


def _spoil_decision(name: str, document: dict[str, Any]) -> None:
    if name == "no_choices":
        document["answers"] = []
    elif name == "content_null":
        document["answers"] = None
    elif name in ("refusal", "content_filter") and isinstance(document["answers"], list):
        document["answers"] = [{"type": "refusal", "name": answer.get("name")} for answer in document["answers"]]
    elif name == "prose":
        answers = document["answers"]
        for answer in answers if isinstance(answers, list) else answers.values():
            answer["choice"] = PROSE
