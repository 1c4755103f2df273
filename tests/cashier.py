"""A provider of language models with a bill of its own: before a real server, or with a model that answers by a rule.

``python -m tests.cashier SETTINGS.json`` runs one by itself until its standard input closes. Nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.far_process import far_process
from tests.provider_batches import Batch, BatchDesk, Batching, File
from tests.provider_faults import HTML, ON_THE_WIRE, REFUSED, Faults, refused, spoil
from tests.provider_http import Asked, HttpServer, Refusal, Reply, json_reply, post
from tests.scripted_model import (
    Body,
    KeywordModel,
    Model,
    PrefixCache,
    Usage,
    decide,
    decide_plainly,
    draw,
    key_of,
    messages_of,
    prompt_tokens,
    schema_of,
    speak,
    subject_of,
    tokens_of,
)

CHAT, DECISIONS, SYSTEMONE = "/chat/completions", "/decisions", "/systemone"
MICROS = 1_000_000
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens, as decimal numbers in text."""

    input: str = "0.25"
    cached: str = "0.025"
    cache_write: str = "0"
    output: str = "2"

    def cost(self, usage: Usage, factor: Fraction = Fraction(1)) -> Fraction:
        """Exact dollars of one request; what was read from the cache or written to it is not paid as input as well."""
        plain = usage.input - usage.cached - usage.cache_write
        amounts = (
            (plain, self.input),
            (usage.cached, self.cached),
            (usage.cache_write, self.cache_write),
            (usage.output, self.output),
        )
        return factor * sum((n * Fraction(price) for n, price in amounts), Fraction()) / MICROS


@dataclass(frozen=True)
class RateLimits:
    """Most requests and tokens per ``per_s`` seconds; both flow back evenly."""

    requests: int
    tokens: int
    per_s: float = 60.0


@dataclass(frozen=True)
class Settings:
    """A provider. All but ``model`` and ``observer`` can be written as JSON.

    Args:
        upstream: URL of a real server that does the work, with its ``/v1``; ``None``: the rule of ``keywords`` does.
        keywords: See `KeywordModel`, with ``certainty``, ``noise`` and ``seed``.
        model: In place of the rule: what it says to a chat body, or probabilities of all that it may say.
        reasoning: Fewest and most hidden output tokens of an answer, drawn by seed, body and attempt.
        cache_block: Tokens per block of the prompt cache, 0 for none; ``cache_from``: shortest prompt that it keeps.
        cache_writes: Whether what is put into the cache is billed apart and named by ``usage``.
        ignores: Fields of a chat body that it silently leaves aside; ``rejects``: those that it answers with 400.
        api_key: Key that it asks for, and repeats in its refusal of another, as careless servers do.
        delay_s: Seconds of work of each answer; ``slow_s``: seconds over which the fault ``slow`` spreads one.
        observer: Told ``arrived``, ``billed`` and ``sent`` of every request, in the server's thread.
        bill_path: File to which every request and every line of the bill is appended, before an answer leaves.
    """

    upstream: str | None = None
    upstream_key: str | None = None
    keywords: Mapping[str, Sequence[str]] = field(default_factory=dict)
    certainty: float = 0.9
    noise: float = 0.0
    seed: int = 0
    model: Model | None = None
    model_name: str = "scripted"
    reasoning: tuple[int, int] = (0, 0)
    cache_block: int = 128
    cache_from: int = 1024
    cache_writes: bool = False
    prices: Prices = Prices()
    tiers: Mapping[str, str] = field(default_factory=lambda: {"batch": "1/2", "flex": "1/2"})
    ignores: Sequence[str] = ()
    rejects: Sequence[str] = ()
    decisions: bool = True
    systemone: bool = False
    api_key: str | None = None
    faults: Faults = field(default_factory=Faults)
    rate_limits: RateLimits | None = None
    batching: Batching = field(default_factory=Batching)
    delay_s: float = 0.0
    slow_s: float = 0.3
    observer: Callable[[str, Asked], None] | None = None
    bill_path: str | Path | None = None
    port: int = 0

    def to_json(self) -> str:
        """Write all that a process of its own needs."""
        if self.model is not None or self.observer is not None:
            raise ValueError(
                "a model or an observer is a function, which no other process can be handed; use cashier()"
            )
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote."""
        found = json.loads(text)
        inner = {"prices": Prices, "faults": Faults, "rate_limits": RateLimits, "batching": Batching}
        for name, kind in inner.items():
            found[name] = None if found[name] is None else kind(**found[name])
        return cls(**found | {"reasoning": tuple(found["reasoning"])})


@dataclass(frozen=True)
class Line:
    """One line of the bill: an answer, what it was made of and its exact dollars. ``asked``: number of its request."""

    asked: int
    path: str
    key: str
    usd: Fraction
    usage: Usage
    tier: str
    fault: str | None = None
    custom_id: str | None = None


@dataclass
class Books:
    """All that arrived and all that is owed."""

    requests: list[Asked] = field(default_factory=list)
    bill: list[Line] = field(default_factory=list)

    @property
    def billed(self) -> Fraction:
        """Dollars, exact."""
        return sum((line.usd for line in self.bill), Fraction())

    @property
    def billed_micros(self) -> int:
        """Millionths of dollars, rounded up once."""
        return math.ceil(self.billed * MICROS)

    def counts(self, path: str = CHAT) -> Counter[str]:
        """Times each body arrived, by key."""
        return Counter(asked.key for asked in self.requests if asked.path == path)

    def counts_billed(self) -> Counter[str]:
        """Times each body was billed, by key."""
        return Counter(line.key for line in self.bill)

    def counts_by_id(self) -> Counter[str]:
        """Times each id of a customer's own came: header ``X-Client-Request-Id``, or ``custom_id`` that was billed."""
        named = [asked.client_id for asked in self.requests] + [line.custom_id for line in self.bill]
        return Counter(name for name in named if name is not None)

    def undelivered(self) -> list[Line]:
        """Lines whose answer the customer has not got whole, by what the server could see."""
        delivered = {asked.number for asked in self.requests if asked.delivered}
        return [line for line in self.bill if line.custom_id is None and line.asked not in delivered]


def read_bill(path: str | Path) -> Books:
    """Read the file of a cashier, whose last line may be cut."""
    ledger, by_number = Books(), {}
    text = Path(path).read_text() if Path(path).exists() else ""
    for record in (json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")):
        event = record.pop("event")
        if event == "arrived":
            by_number[record["number"]] = Asked(**record)
            ledger.requests.append(by_number[record["number"]])
        elif event == "answered":
            by_number[record["number"]].__dict__.update(record)
        else:
            record |= {"usd": Fraction(record["usd"]), "usage": Usage(**record["usage"])}
            ledger.bill.append(Line(**record))
    return ledger


class Cashier(HttpServer, Books):
    """A provider's state and its answers."""

    def __init__(self, settings: Settings) -> None:
        HttpServer.__init__(self)
        earlier = read_bill(settings.bill_path) if settings.bill_path else Books()
        Books.__init__(self, earlier.requests, earlier.bill)
        self.settings = settings
        self._desk = BatchDesk(settings.batching, self._new_id, self._do_batched, self._bill_batched)
        self._rule = KeywordModel(settings.keywords, settings.certainty, settings.noise, settings.seed)
        self._cache = PrefixCache(settings.cache_block, settings.cache_from)
        self._limiter = _Limiter(settings.rate_limits) if settings.rate_limits else None
        self._attempts: Counter[str] = Counter()
        self._samples: Counter[str] = Counter()
        self._arrivals = 0
        self._ids = 0
        self._last_id: str | None = None
        self._file = open(settings.bill_path, "a") if settings.bill_path else None  # noqa: SIM115

    @property
    def files(self) -> Mapping[str, File]:
        """Files by id."""
        return self._desk.files

    @property
    def batches(self) -> Mapping[str, Batch]:
        """Batches by id, oldest first."""
        return self._desk.batches

    def close(self) -> None:
        """Close the bill's file."""
        if self._file:
            self._file.close()

    def finish_batches(self) -> None:
        """Do the work of all open batches now, from any thread but the server's own."""
        assert self.loop is not None
        for batch in list(self.batches.values()):
            asyncio.run_coroutine_threadsafe(self._desk.finish(batch), self.loop).result()

    def set_faults(self, faults: Faults) -> None:
        """Change what goes wrong from here on; attempts and arrivals are counted anew."""
        self.settings = replace(self.settings, faults=faults)
        self._attempts.clear()
        self._arrivals = 0

    def set_batching(self, batching: Batching) -> None:
        """Change how batches go from here on."""
        self._desk.batching = batching

    # Requests

    async def handle(self, asked: Asked, query: Mapping[str, str], authorization: str | None) -> Reply:
        """Answer one request: from its arrival to its line on the bill."""
        asked.number = len(self.requests)
        self.requests.append(asked)
        self._tell("arrived", asked)
        try:
            reply = await self._handle(asked, query, authorization)
        except Refusal as refusal:
            reply = refusal.reply
        reply.headers["x-request-id"] = f"req_{asked.number}"
        asked.status = reply.status
        return reply

    def leaves(self, asked: Asked, whole: bool) -> None:
        """Note how the answer leaves."""
        asked.delivered = whole
        self._tell("sent", asked)

    def _tell(self, event: str, asked: Asked) -> None:
        if event == "arrived":
            names = ("number", "method", "path", "key", "client_id", "connection")
            self._write("arrived", {name: getattr(asked, name) for name in names})
        elif event == "sent":
            self._write("answered", {name: getattr(asked, name) for name in ("number", "status", "fault", "delivered")})
        if self.settings.observer:
            self.settings.observer(event, asked)

    def _write(self, event: str, record: Mapping[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps({"event": event, **record}) + "\n")
            self._file.flush()

    async def _handle(self, asked: Asked, query: Mapping[str, str], authorization: str | None) -> Reply:
        settings = self.settings
        if settings.api_key is not None and authorization != f"Bearer {settings.api_key}":
            given = (authorization or "").removeprefix("Bearer ")
            raise Refusal(401, "invalid_api_key", f"Incorrect API key provided: {given}. Find yours in your account.")
        fault = None
        if any(asked.path.startswith(path) for path in settings.faults.on):
            fault = asked.fault = settings.faults.of(asked.key, self._attempts[asked.key], self._arrivals)
            self._attempts[asked.key] += 1
            self._arrivals += 1
        if fault in REFUSED:
            status, headers, body = refused(fault)
            return Reply(status, body, headers)
        if fault == "html_200":
            return Reply(200, HTML, {"Content-Type": "text/html; charset=utf-8"})
        if fault in ("reset_before", "hang"):
            return Reply(0, b"", manner="reset" if fault == "reset_before" else "hang")
        if asked.path in (CHAT, DECISIONS, SYSTEMONE) and asked.method == "POST":
            reply = await self._paid(asked, fault)
        elif asked.path == "/models":
            reply = json_reply({"object": "list", "data": [{"id": self.settings.model_name, "object": "model"}]})
        else:
            reply = await self._desk.handle(asked, query)
        reply.manner = ON_THE_WIRE.get(fault) if fault else None
        return reply

    async def _paid(self, asked: Asked, fault: str | None) -> Reply:
        body = self._body(asked.body)
        headers = self._limiter.take(body) if self._limiter else {}
        await asyncio.sleep(self.settings.delay_s)
        reply, usage = await self._work(asked.path, body)
        reply.headers |= headers
        if usage is None:
            return reply
        tier = body.get("service_tier", "default")
        self._bill(asked, usage, tier if tier in self.settings.tiers else "default", fault)
        self._tell("billed", asked)
        if fault is not None and reply.is_json and fault not in ON_THE_WIRE:
            reply.body = spoil(fault, reply.body, self._last_id)
        elif reply.is_json:
            self._last_id = json.loads(reply.body).get("id", self._last_id)
        return reply

    def _body(self, raw: bytes) -> Body:
        try:
            body = json.loads(raw)
        except ValueError:
            raise Refusal(400, "invalid_json", "We could not parse the JSON body of your request.") from None
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            raise Refusal(400, "missing_required_parameter", "you must provide a model parameter", "model")
        return body

    def _bill(self, asked: Asked, usage: Usage, tier: str, fault: str | None, custom_id: str | None = None) -> Fraction:
        usd = self.settings.prices.cost(usage, Fraction(self.settings.tiers.get(tier, "1")))
        line = Line(asked.number, asked.path, asked.key, usd, usage, tier, fault, custom_id)
        self.bill.append(line)
        self._write("billed", {**line.__dict__, "usd": str(usd), "usage": asdict(usage)})
        return usd

    async def _do_batched(self, body: Body) -> tuple[Reply, Usage | None]:
        return await self._work(CHAT, self._body(json.dumps(body).encode()))

    def _bill_batched(self, usage: Usage, outcome: str | None, custom_id: str) -> Fraction:
        return self._bill(Asked(-1, "POST", CHAT, custom_id, None, -1), usage, "batch", outcome, custom_id)

    # Work

    async def _work(self, path: str, body: Body) -> tuple[Reply, Usage | None]:
        """Answer a question, and say what it is billed; ``None`` for an error."""
        for name in self.settings.rejects:
            if name in body:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                raise Refusal(400, "unsupported_parameter", message, name)
        if path == CHAT:
            body = {name: value for name, value in body.items() if name not in self.settings.ignores}
            return await self._forward(path, body) if self.settings.upstream else self._chat(body)
        if path == SYSTEMONE and self.settings.upstream and not self.settings.systemone:
            return await self._forward(path, body)
        if not (self.settings.decisions if path == DECISIONS else self.settings.systemone):
            raise Refusal(404, "not_found", f"Invalid URL (POST /v1{path})")
        return self._decide(body) if path == DECISIONS else self._decide_plainly(body)

    def _usage(self, body: Body, n_output: int = 0, n_reasoning: int = 0) -> Usage:
        tokens = prompt_tokens(body)
        cached, written = self._cache.read(tokens)
        return Usage(len(tokens), cached, written if self.settings.cache_writes else 0, n_output, n_reasoning)

    def _new_id(self, prefix: str) -> str:
        self._ids += 1
        return f"{prefix}{self._ids:08d}"

    def _chat(self, body: Body) -> tuple[Reply, Usage]:
        _check_chat(body)
        key = key_of(CHAT, body)
        self._samples[key] += 1
        numbers = draw(self.settings.seed, key, self._samples[key])
        contents = (self.settings.model or self._rule)(body)
        n = body.get("n") or 1
        choices = [speak(contents, body, numbers, self.settings.reasoning) for _ in range(n)]
        usage = self._usage(body, sum(each.n_output for each in choices), sum(each.n_reasoning for each in choices))
        head = {"id": self._new_id("chatcmpl-"), "created": int(time.time()), "model": body["model"]}
        if body.get("stream"):
            return self._stream(head, choices[0].content, choices[0].finish, usage, body), usage
        listed: list[dict[str, Any]] = [
            {
                "index": i,
                "finish_reason": each.finish,
                "message": {"role": "assistant", "content": each.content, "refusal": None, "annotations": []},
                "logprobs": {"content": each.logprobs, "refusal": None} if body.get("logprobs") else None,
            }
            for i, each in enumerate(choices)
        ]
        tier = body.get("service_tier")
        document = {**head, "object": "chat.completion", "choices": listed}
        document["usage"] = usage.as_chat(self.settings.cache_writes)
        document["service_tier"] = tier if tier in self.settings.tiers else "default"
        return Reply(200, json.dumps(document).encode()), usage

    def _stream(self, head: Mapping[str, Any], content: str, finish: str, usage: Usage, body: Body) -> Reply:
        head = {**head, "object": "chat.completion.chunk"}
        deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
        deltas += [({"content": token}, None) for token in tokens_of(content)] + [({}, finish)]
        chunks = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": f}]} for d, f in deltas]
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append({**head, "choices": [], "usage": usage.as_chat(self.settings.cache_writes)})
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        return Reply(200, text.encode(), {"Content-Type": "text/event-stream"})

    def _decide(self, body: Body) -> tuple[Reply, Usage]:
        questions = body.get("questions")
        if not isinstance(questions, list) or not 1 <= len(questions) <= 400:
            raise Refusal(400, "invalid_value", "'questions' must hold 1 to 400 questions", "questions")
        for question in questions:
            values = [(type(c["value"]), c["value"]) for c in question.get("choices", ())]
            is_wrong = question.get("type") not in ("predicate", "choice", "score") or not question.get("instructions")
            if is_wrong or (question["type"] == "choice" and not 2 <= len(values) <= 255):
                raise Refusal(
                    400, "invalid_value", "a question needs a type, instructions and 2 to 255 choices", "questions"
                )
            if len(set(values)) != len(values):
                raise Refusal(400, "invalid_value", "choices must be unique", "questions")
        subject, usage = subject_of(body), self._usage(body)
        answers = [decide(self._rule, question, subject) for question in questions]
        document = {"answers": answers, "model": body["model"], "usage": usage.as_decision()}
        return Reply(200, json.dumps(document).encode()), usage

    def _decide_plainly(self, body: Body) -> tuple[Reply, Usage]:
        if unknown := set(body) - {"model", "state", "questions", "assets"}:
            raise Refusal(422, "value_error", f"extra inputs are not permitted: {', '.join(sorted(unknown))}")
        subject, usage = subject_of(body), self._usage(body)
        answers = {name: decide_plainly(self._rule, each, subject) for name, each in body["questions"].items()}
        document = {
            "model": body["model"],
            "answers": answers,
            "usage": {"input_tokens": usage.input, "output_tokens": 0},
        }
        return Reply(200, json.dumps(document).encode()), Usage(usage.input)

    async def _forward(self, path: str, body: Body) -> tuple[Reply, Usage | None]:
        """Have the server behind it answer, and read the usage that it names, of streams in a last chunk that is asked for."""
        wants_usage = (body.get("stream_options") or {}).get("include_usage", False)
        sent = {**body, "stream_options": {"include_usage": True}} if body.get("stream") else body
        assert self.settings.upstream is not None
        try:
            status, kind, answer = await post(self.settings.upstream + path, sent, self.settings.upstream_key)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Refusal(502, "bad_gateway", f"the server behind does not answer: {error}") from error
        if status != 200:
            return Reply(status, answer, {"Content-Type": kind}), None
        if not body.get("stream"):
            return Reply(200, answer, {"Content-Type": kind}), _usage_of(json.loads(answer)["usage"])
        events = [event for event in answer.split(b"\n\n") if event.strip()]
        (at,) = (i for i, event in enumerate(events) if b'"usage"' in event and b"[DONE]" not in event)
        usage = _usage_of(json.loads(events[at].removeprefix(b"data: "))["usage"])
        if not wants_usage and b'"choices":[]' in events[at]:
            del events[at]
        return Reply(200, b"\n\n".join(events) + b"\n\n", {"Content-Type": "text/event-stream"}), usage


class _Limiter:
    """Two buckets, of requests and tokens, and the headers that speak of them."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._left = {"requests": float(limits.requests), "tokens": float(limits.tokens)}
        self._at = time.monotonic()

    def take(self, body: Body) -> dict[str, str]:
        """Take one request and the tokens it may need at most, or refuse it."""
        now = time.monotonic()
        most = {"requests": self._limits.requests, "tokens": self._limits.tokens}
        wanted = {"requests": 1, "tokens": len(prompt_tokens(body)) + (body.get("max_completion_tokens") or 0)}
        rate = {name: most[name] / self._limits.per_s for name in most}
        for name in most:
            self._left[name] = min(most[name], self._left[name] + (now - self._at) * rate[name])
        self._at = now
        waits = max((wanted[name] - self._left[name]) / rate[name] for name in most)
        if waits <= 0:
            for name in most:
                self._left[name] -= wanted[name]
        headers = {}
        for name in most:
            headers[f"x-ratelimit-limit-{name}"] = str(most[name])
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, int(self._left[name])))
            headers[f"x-ratelimit-reset-{name}"] = _duration((most[name] - self._left[name]) / rate[name])
        if waits > 0:
            refusal = Refusal(
                429, "rate_limit_exceeded", f"Rate limit reached. Please try again in {_duration(waits)}."
            )
            waiting = {"Retry-After": str(math.ceil(waits)), "retry-after-ms": str(math.ceil(waits * 1000))}
            refusal.reply.headers = headers | waiting
            raise refusal
        return headers


def _duration(seconds: float) -> str:
    """Write seconds as the headers do: ``250ms``, ``1.5s``, ``2m3s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    return f"{seconds:.3g}s" if seconds < 60 else f"{int(seconds // 60)}m{int(seconds % 60)}s"


def _check_chat(body: Body) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "missing_required_parameter", "Missing required parameter: 'messages'.", "messages")
    for message in messages_of(body):
        if message.get("role") not in ("system", "developer", "user", "assistant"):
            raise Refusal(400, "invalid_value", f"Invalid role: {message.get('role')!r}", "messages")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise Refusal(400, "invalid_value", "'top_logprobs' needs 'logprobs'", "top_logprobs")
    if not 0 <= (body.get("top_logprobs") or 0) <= 20:
        raise Refusal(400, "invalid_value", "'top_logprobs' must be from 0 to 20", "top_logprobs")
    schema = schema_of(body)
    if (body.get("response_format") or {}).get("type") == "json_schema" and schema is None:
        raise Refusal(400, "invalid_json_schema", "'json_schema' holds no schema", "response_format")


def _usage_of(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    n_in, n_out = usage.get("prompt_tokens", usage.get("input_tokens", 0)), usage.get("completion_tokens", 0)
    return Usage(n_in, details.get("cached_tokens", 0), details.get("cache_write_tokens", 0), n_out)


@contextmanager
def cashier(settings: Settings | None = None, **changes: Any) -> Iterator[Cashier]:
    """Run a provider in a thread of this process; ``changes``: settings by name. Its own errors are raised at the end."""
    till = Cashier(replace(settings or Settings(), **changes))
    ready = threading.Event()
    stop: list[Callable[[], object]] = []
    failures: list[BaseException] = []

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        with suppress(asyncio.CancelledError):
            await till.serve(till.settings.port, till.settings.slow_s, ready.set)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            till.close()
            ready.set()

    thread = threading.Thread(target=run, name="cashier", daemon=True)
    thread.start()
    ready.wait()
    if failures:
        raise failures[0]
    try:
        yield till
    finally:
        stop[0]()
        thread.join()
    if till.failures:
        raise till.failures[0]


@dataclass(frozen=True)
class FarCashier:
    """A provider in a process of its own; its books are read from its file."""

    url: str
    bill_path: Path
    pid: int

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def books(self) -> Books:
        """What it has written down so far."""
        return read_bill(self.bill_path)


@contextmanager
def cashier_process(folder: Path, settings: Settings | None = None, **changes: Any) -> Iterator[FarCashier]:
    """Run a provider in a process of its own, which ends with the block, or with this process; its books are in ``folder``."""
    whole = replace(settings or Settings(), **{"bill_path": folder / "bill.jsonl", **changes})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(whole.to_json())
    with far_process("tests.cashier", folder / "settings.json") as (url, process):
        yield FarCashier(url, Path(str(whole.bill_path)), process)


def main() -> None:
    """Run a provider until standard input closes."""
    settings = Settings.from_json(Path(sys.argv[1]).read_text())
    with cashier(settings) as till:
        print(till.url, flush=True)
        with suppress(KeyboardInterrupt):
            while sys.stdin.read(1):
                pass


if __name__ == "__main__":
    main()
