"""Formats of answers with log-probabilities, as servers and libraries write them, read row by row.

Read are our own export, chat completions (``choices[0].logprobs.content``) and completions (``tokens``, ``token_logprobs``,
``top_logprobs``) of servers with OpenAI's API, also as lines of a batch, and vLLM's ``RequestOutput`` and
``CompletionOutput`` written as objects. A token is known by its number, its text, or both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from outlay.errors import DataError
from outlay.tasks.example import shorten

Columns = Mapping[str, Any]

HTTP_ERROR = 400
"""Lowest HTTP status of a failed request."""

UNKNOWN_LOGPROB = -9999.0
"""Log-probability that OpenAI's API, and our export, give a token that is not among the likeliest."""

TOKEN_ID = "token_id:"
"""Prefix of a token that is written by its number (vLLM, ``return_tokens_as_token_ids``)."""

HEADER = "outlay"
"""Column of our own export, filled in its first row: the index of the folder."""


class Token(NamedTuple):
    """Candidate token: text and number, where the file has them, and log-probability in nats."""

    text: str | None
    number: int | None
    logprob: float


class Position(NamedTuple):
    """One position: the generated token and the likeliest ones; ``logsumexp``: in our own export, by temperature."""

    token: Token
    likeliest: Sequence[Token]
    logsumexp: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file, whichever its format.

    ``answer``: ``None`` where the file gives tokens only; ``positions``: ``None`` where it gives no log-probabilities;
    ``padding``: positions behind the answer's end; ``is_cut``: the answer ended at its length limit; ``about``: the header.
    """

    origin: str
    source: str | None
    custom_id: str | None
    answer: str | None
    gold: str | None
    segments: tuple[str, ...] | None
    positions: tuple[Position, ...] | None
    padding: tuple[Position, ...] = ()
    is_cut: bool = False
    about: Columns | None = None


def read_record(columns: Columns, origin: str, *, source_column: str, target_column: str | None) -> Record:
    """Read a row; ``source_column``, else ``prompt``, holds its source, ``target_column``, else ``gold``, its gold answer.

    Raises:
        DataError: the row has another form, or a log-probability that is no number; names the ``origin``.
    """
    try:
        answer, logprobs, body = _answer(columns)
        positions = None if logprobs is None else _positions(logprobs, body, origin)
        padding = tuple(_position(each, origin) for each in columns.get("padding") or ())
        about = columns.get(HEADER)
        return Record(
            origin=origin,
            source=_text(columns, source_column, "prompt"),
            custom_id=None if columns.get("custom_id") is None else str(columns["custom_id"]),
            answer=answer,
            gold=_text(columns, target_column or "gold"),
            segments=None if columns.get("segments") is None else tuple(columns["segments"]),
            positions=positions,
            padding=padding,
            is_cut=body.get("finish_reason") == "length",
            about=json.loads(about) if isinstance(about, str) else about,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{origin} is no answer with log-probabilities as a server writes it ({_why(error)}); "
            "docs/distillation.md shows the forms that are read"
        ) from None


def is_failure(columns: Columns) -> bool:
    """Return whether a line of a batch reports a failed request, and so holds no answer."""
    if columns.get("custom_id") is None:
        return False
    response = columns.get("response")
    status = response.get("status_code") if isinstance(response, Mapping) else None
    return columns.get("error") is not None or (isinstance(status, int) and status >= HTTP_ERROR)


def _answer(columns: Columns) -> tuple[str | None, Any, Columns]:
    """Return the answer's text, its log-probabilities in the file's own form, and the object that holds both."""
    response = columns.get("response")
    body = response.get("body", response) if isinstance(response, Mapping) else columns
    if body.get("choices"):
        choice = body["choices"][0]
        message = choice.get("message")
        text = choice.get("text") if message is None else message.get("content")
        return text, choice.get("logprobs"), choice
    answer = body["outputs"][0] if body.get("outputs") else body
    logprobs = answer.get("logprobs")
    return _text(answer, "answer", "text"), answer.get("content") if logprobs is None else logprobs, answer


def _positions(logprobs: Any, answer: Columns, origin: str) -> tuple[Position, ...]:
    if isinstance(logprobs, Mapping) and logprobs.get("tokens") is not None:
        return _of_completion(logprobs, origin)
    listed = logprobs["content"] if isinstance(logprobs, Mapping) else logprobs
    if isinstance(logprobs, Mapping) or all("logprob" in each for each in listed):
        return tuple(_position(each, origin) for each in listed)
    numbers: Sequence[Any] = answer["token_ids"]
    if len(numbers) != len(listed):
        raise ValueError(f"{len(numbers)} token_ids but logprobs of {len(listed)} positions")
    return tuple(_of_vllm(int(number), each, origin) for number, each in zip(numbers, listed, strict=True))


def _position(each: Columns, origin: str) -> Position:
    """Read ``{token, token_id, logprob, top_logprobs: [{token, token_id, logprob}]}``."""
    likeliest = [_token(top, origin) for top in each.get("top_logprobs") or ()]
    return Position(_token(each, origin), likeliest, each.get("logsumexp"))


def _token(each: Columns, origin: str) -> Token:
    number = each.get("token_id")
    return _named(each.get("token"), None if number is None else int(number), each["logprob"], origin)


def _of_completion(logprobs: Columns, origin: str) -> tuple[Position, ...]:
    """Read ``{tokens, token_logprobs, top_logprobs: [{token: logprob}]}``; ``top_logprobs`` may be left out."""
    tokens = logprobs["tokens"]
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        Position(
            _named(token, None, logprob, origin),
            [_named(text, None, value, origin) for text, value in (top or {}).items()],
        )
        for token, logprob, top in zip(tokens, logprobs["token_logprobs"], tops, strict=True)
    )


def _of_vllm(number: int, entries: Columns, origin: str) -> Position:
    """Read ``{"<token_id>": {logprob, rank, decoded_token}}``, the generated token among them."""
    tokens = [
        _named(entry.get("decoded_token"), int(key), entry["logprob"], origin)
        for key, entry in entries.items()
        if entry is not None
    ]
    generated = next((token for token in tokens if token.number == number), None)
    if generated is None:
        raise ValueError(f"token {number} is not among its own logprobs")
    return Position(generated, tokens)


def _named(text: str | None, number: int | None, logprob: Any, origin: str) -> Token:
    if text is not None and (digits := text.removeprefix(TOKEN_ID)) != text and digits.isdecimal():
        text, number = None, int(digits)
    if text is None and number is None:
        raise ValueError("a token has neither text nor number")
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not math.isfinite(logprob):
        shown = shorten(str(number) if text is None else text)
        raise DataError(
            f"{origin} gives token {shown!r} the log-probability {logprob}; it must be a finite number, correct or remove the row"
        )
    return Token(text, number, float(logprob))


def _text(columns: Columns, *names: str) -> str | None:
    value = next((columns[name] for name in names if columns.get(name) is not None), None)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} where a text should be")
    return value


def _why(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else shorten(str(error))
