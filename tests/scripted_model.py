"""A model that answers by a rule, so that hundreds of requests cost nothing: exact probabilities, honest usage."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]
Contents = Mapping[str, float]
"""What a model may say, and how probable each is."""
Model = Callable[[Body], "str | Contents"]

_PIECE = re.compile(r"\w{1,4}|\W", re.DOTALL)
N_FRAME_TOKENS, N_MESSAGE_TOKENS = 3, 4
_LEAST = -40.0
"""Log-probability of what the model never says, listed where more are asked for than there are."""


def tokens_of(text: str) -> list[str]:
    """Split a text into tokens, at most four letters each; together they are the text."""
    return _PIECE.findall(text)


def draw(*seed: object) -> random.Random:
    """Random numbers that are the same for the same values, in any process."""
    return random.Random(hashlib.sha256(repr(seed).encode()).digest())


def key_of(path: str, body: object) -> str:
    """Sha256, in hex, of a path and a body with its keys in order."""
    plain = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=repr)
    return hashlib.sha256(f"{path}\n{plain}".encode("utf-8", "surrogatepass")).hexdigest()


def said(content: object) -> str:
    """Text of a message's content, which may come in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def messages_of(body: Body) -> list[Body]:
    """Messages of a body of any of the three paths, as (role, content)."""
    found = body.get("messages", body.get("input", body.get("state", "")))
    if isinstance(found, str):
        return [{"role": "user", "content": found}]
    if isinstance(found, Mapping):
        return [{"role": "user", "content": json.dumps(found, ensure_ascii=False)}]
    return list(found)


def subject_of(body: Body) -> str:
    """Text that is to be labelled: the last message; of a JSON object that has one, its ``input``."""
    last = said(messages_of(body)[-1].get("content")) if messages_of(body) else ""
    try:
        found = json.loads(last)
    except ValueError:
        return last
    if isinstance(found, Mapping) and "input" in found:
        return json.dumps(found["input"], ensure_ascii=False)
    return last


def prompt_tokens(body: Body) -> list[str]:
    """Tokens of all that a body holds beside its options: messages with their frame, the schema, the questions."""
    tokens = ["<frame>"] * N_FRAME_TOKENS
    for name in ("response_format", "questions", "tools"):
        if body.get(name) is not None:
            tokens += tokens_of(json.dumps(body[name], ensure_ascii=False, separators=(",", ":")))
    for message in messages_of(body):
        tokens += [f"<{message.get('role')}>"] * N_MESSAGE_TOKENS + tokens_of(said(message.get("content")))
    return tokens


@dataclass(frozen=True)
class Usage:
    """Tokens of one request: all input, what of it was read from a cache or written to one, and all output."""

    input: int
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0

    def as_chat(self, with_writes: bool) -> dict[str, Any]:
        written = {"cache_write_tokens": self.cache_write} if with_writes else {}
        return {
            "prompt_tokens": self.input,
            "completion_tokens": self.output,
            "total_tokens": self.input + self.output,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0, **written},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }

    def as_decision(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": self.cache_write},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        }


class PrefixCache:
    """Beginnings of prompts that were seen before, in whole blocks of tokens."""

    def __init__(self, block: int, least: int) -> None:
        self._block, self._least = block, least
        self._seen: set[bytes] = set()

    def read(self, tokens: Sequence[str]) -> tuple[int, int]:
        """Tokens that were found, and those that were put beside them."""
        if not self._block or len(tokens) < self._least:
            return 0, 0
        running, found, whole = hashlib.blake2b(digest_size=16), 0, 0
        for start in range(0, len(tokens) - self._block + 1, self._block):
            running.update("\0".join(tokens[start : start + self._block]).encode("utf-8", "surrogatepass"))
            whole = start + self._block
            mark = running.digest()
            if mark in self._seen:
                found = whole
            self._seen.add(mark)
        found = found if found >= self._least else 0
        return found, whole - found


@dataclass(frozen=True)
class KeywordModel:
    """A rule: the label with most of its keywords in the text, the last label where there are none.

    ``certainty``: its mean probability; ``noise``: share of texts for which the rule's label is replaced by another.
    """

    keywords: Mapping[str, Sequence[str]]
    certainty: float = 0.9
    noise: float = 0.0
    seed: int = 0

    def __call__(self, body: Body) -> Contents:
        subject, schema = subject_of(body), schema_of(body)
        choices = enum_of(schema) or tuple(self.keywords) or ("yes", "no")
        if schema is None:
            return self.probabilities(subject, choices)
        return {
            json.dumps(self._fill(schema, label, subject), ensure_ascii=False, separators=(",", ":")): share
            for label, share in self.probabilities(subject, choices).items()
        }

    def label(self, subject: str, choices: Sequence[str]) -> str:
        """The rule's own label; one by chance where the rule has none among the choices."""
        numbers = draw(self.seed, "label", subject)
        lower = subject.lower()
        hits = {name: sum(lower.count(word.lower()) for word in words) for name, words in self.keywords.items()}
        known = [name for name in hits if name in choices]
        if not known:
            return numbers.choice(list(choices))
        best = max(known, key=lambda name: hits[name])
        best = best if hits[best] else known[-1]
        others = [name for name in choices if name != best]
        return numbers.choice(others) if others and numbers.random() < self.noise else best

    def probabilities(self, subject: str, choices: Sequence[str]) -> dict[str, float]:
        """Probability of each choice; they sum to 1."""
        best = self.label(subject, choices)
        most = 1 - (1 - self.certainty) * 2 * draw(self.seed, "certainty", subject).random()
        rest = (1 - most) / max(1, len(choices) - 1)
        return {choice: (most if choice == best else rest) if len(choices) > 1 else 1.0 for choice in choices}

    def _fill(self, schema: Body, label: str, subject: str) -> Any:
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return label if label in schema["enum"] else schema["enum"][0]
        kind = schema.get("type")
        if kind == "object":
            return {name: self._fill(inner, label, subject) for name, inner in schema.get("properties", {}).items()}
        if kind == "array":
            return list(self._entities(schema.get("items", {}), subject))
        return {"integer": 0, "number": 0, "boolean": False, "null": None}.get(str(kind), label)

    def _entities(self, item: Body, subject: str) -> Iterator[dict[str, str]]:
        parts = item.get("properties", {})
        kind = next((name for name, part in parts.items() if "enum" in part), None)
        text = next((name for name in parts if name != kind), None)
        if kind is None or text is None:
            return
        for name in parts[kind]["enum"]:
            for word in self.keywords.get(name, ()):
                for found in re.finditer(re.escape(word), subject):
                    yield {each: name if each == kind else found[0] for each in parts}


def schema_of(body: Body) -> Body | None:
    """JSON schema that a chat body asks for."""
    wanted = body.get("response_format") or {}
    found = wanted.get("json_schema", {}).get("schema", wanted.get("schema"))
    return found if isinstance(found, Mapping) else None


def enum_of(schema: Body | None) -> tuple[str, ...]:
    """Values of the first property of an object that is one of a list."""
    for inner in (schema or {}).get("properties", {}).values():
        if "enum" in inner:
            return tuple(inner["enum"])
    return ()


@dataclass(frozen=True)
class Choice:
    """One answer of a chat: its text, why it ended, tokens with their alternatives, and how many were billed."""

    content: str
    finish: str
    logprobs: list[dict[str, Any]]
    n_output: int
    n_reasoning: int


def speak(contents: str | Contents, body: Body, numbers: random.Random, reasoning: tuple[int, int]) -> Choice:
    """Say one of what the model may say, cut at the body's bound: the most probable at temperature 0, else one that is drawn."""
    shares = {contents: 1.0} if isinstance(contents, str) else dict(contents)
    temperature = body.get("temperature", 1.0)
    if temperature:
        weights = [share ** (1 / temperature) for share in shares.values()]
        content = numbers.choices(list(shares), weights)[0]
    else:
        content = max(shares, key=lambda each: shares[each])
    bound = body.get("max_completion_tokens") or body.get("max_tokens") or 4096
    n_reasoning = min(bound, numbers.randint(*reasoning))
    tokens = tokens_of(content)
    kept = tokens[: bound - n_reasoning]
    listed = alternatives(shares, kept, body.get("top_logprobs") or 0) if body.get("logprobs") else []
    finish = "stop" if len(kept) == len(tokens) else "length"
    return Choice("".join(kept), finish, listed, n_reasoning + len(kept), n_reasoning)


def alternatives(shares: Contents, tokens: Sequence[str], n_top: int) -> list[dict[str, Any]]:
    """Log-probability of each token of an answer, with the ``n_top`` most probable in its place: exact, of all answers."""
    paths = [(tokens_of(content), share) for content, share in shares.items()]
    listed = []
    for place, token in enumerate(tokens):
        paths = [(path, share) for path, share in paths if path[:place] == list(tokens[:place])]
        total = math.fsum(share for _, share in paths)
        next_tokens: dict[str, float] = {}
        for path, share in paths:
            if place < len(path):
                next_tokens[path[place]] = next_tokens.get(path[place], 0.0) + share
        ranked = sorted(next_tokens.items(), key=lambda item: -item[1])
        logs = [(each, math.log(share / total) if share > 0 else _LEAST) for each, share in ranked]
        logs += [(f"~{i}", _LEAST - i) for i in range(n_top - len(logs))]
        own = dict(logs)[token]
        listed.append({**_entry(token, own), "top_logprobs": [_entry(*each) for each in logs[:n_top]]})
    return listed


def _entry(token: str, log: float) -> dict[str, Any]:
    return {"token": token, "logprob": log, "bytes": list(token.encode("utf-8", "surrogatepass"))}


def decide(model: KeywordModel, question: Body, subject: str) -> dict[str, Any]:
    """Answer one question of `/decisions`, with the probability of every choice."""
    name = question.get("name")
    if question["type"] == "predicate":
        return {
            "type": "predicate",
            "name": name,
            "probability": model.probabilities(subject, ("true", "false"))["true"],
        }
    if question["type"] == "score":
        levels = [level["label"] for level in question["levels"]]
        shares = model.probabilities(subject, levels)
        rows = [{"label": level, "value": i, "probability": shares[level]} for i, level in enumerate(levels)]
        score = math.fsum(row["value"] * row["probability"] for row in rows)
        return {
            "type": "score",
            "name": name,
            "score": score,
            "confidence": max(shares.values()),
            "probabilities": rows,
        }
    values = [choice["value"] for choice in question["choices"]]
    shares = model.probabilities(subject, [str(value) for value in values])
    rows = [{"value": value, "probability": shares[str(value)]} for value in values]
    best = max(rows, key=lambda row: row["probability"])
    return {
        "type": "choice",
        "name": name,
        "choice": best["value"],
        "confidence": best["probability"],
        "probabilities": rows,
    }


def decide_plainly(model: KeywordModel, question: Body, subject: str) -> dict[str, Any]:
    """Answer one question of `/systemone` of ``transformers serve``."""
    if question["type"] == "noul":
        return {"type": "noul", "noul": model.probabilities(subject, ("true", "false"))["true"]}
    shares = model.probabilities(subject, list(question["criteria"]))
    best = max(shares, key=lambda each: shares[each])
    if question["type"] == "score":
        score = math.fsum(i * share for i, share in enumerate(shares.values()))
        return {"type": "score", "score": score, "confidence": shares[best], "probabilities": shares}
    return {"type": "choice", "choice": best, "confidence": shares[best], "probabilities": shares}
