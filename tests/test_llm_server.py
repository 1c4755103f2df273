"""The far side of the sellers that ask language models: a real server, and a provider whose bill and whose faults are known."""

from __future__ import annotations

import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.cashier import Books, Cashier, Prices, RateLimits, Settings, cashier, cashier_process, read_bill
from tests.llm_server import LlamaServer, write_model
from tests.provider_batches import Batching
from tests.provider_faults import BILLED, HTML, NAMES, PROSE, REFUSED, Faults
from tests.provider_http import Asked
from tests.scripted_model import alternatives, tokens_of

SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["spam", "ham"]}},
    "required": ["label"],
    "additionalProperties": False,
}
KEYWORDS = {"spam": ["free", "win"], "ham": []}
MILLION = 1_000_000


def chat(text: str, **more: Any) -> dict[str, Any]:
    """A chat body that asks for the label of one text."""
    messages = [{"role": "system", "content": "Spam or ham?"}, {"role": "user", "content": text}]
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    fixed = {"model": "tiny", "messages": messages, "max_completion_tokens": 32, "temperature": 0}
    return {**fixed, "response_format": wanted, **more}


class Client:
    """A plain client of one connection: status, headers and body, or the error of the connection."""

    def __init__(self, base_url: str, key: str | None = None, timeout: float = 20.0) -> None:
        self._connection = http.client.HTTPConnection(
            base_url.removeprefix("http://").removesuffix("/v1"), timeout=timeout
        )
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def send(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, f"/v1{path}", body, {**self._headers, **named})
        response = self._connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    def post(self, path: str, body: object, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.send("POST", path, json.dumps(body).encode(), Content_Type="application/json", **headers)

    def ask(self, text: str, **more: Any) -> dict[str, Any]:
        """Answer to a chat body, which must be good."""
        status, _, body = self.post("/chat/completions", chat(text, **more))
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def get(self, path: str) -> dict[str, Any]:
        status, _, body = self.send("GET", path)
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found


def label_of(answer: dict[str, Any]) -> str:
    label: str = json.loads(answer["choices"][0]["message"]["content"])["label"]
    return label


# The real server


def test_the_server_binds_answers_to_a_schema_and_names_their_tokens(llama: LlamaServer) -> None:
    with Client(llama.base_url, llama.api_key) as client:
        first, second = (
            client.ask(f"You are to say what this message is. {text}", logprobs=True, top_logprobs=5)
            for text in ("free money", "lunch at one?")
        )
    for answer in (first, second):
        (choice,) = answer["choices"]
        assert label_of(answer) in ("spam", "ham")
        assert choice["finish_reason"] == "stop"
        listed = choice["logprobs"]["content"]
        said = b"".join(bytes(token["bytes"]) for token in listed)
        assert said.decode().startswith(choice["message"]["content"])
        assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 5 for token in listed)
        usage = answer["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert 0 < usage["completion_tokens"] <= 32
    # What both prompts begin with was kept.
    assert 0 < second["usage"]["prompt_tokens_details"]["cached_tokens"] < second["usage"]["prompt_tokens"]


def test_the_server_asks_for_its_key_and_keeps_to_the_bound(llama: LlamaServer) -> None:
    with Client(llama.base_url, "another") as client:
        status, _, body = client.post("/chat/completions", chat("hello"))
        assert (status, json.loads(body)["error"]["type"]) == (401, "authentication_error")
    with Client(llama.base_url, llama.api_key) as client:
        answer = client.ask("hello", max_completion_tokens=3, response_format=None)
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"].isprintable()


def test_the_model_is_the_same_from_the_same_seed(llama: LlamaServer, tmp_path: Path) -> None:
    first, again, other = (write_model(tmp_path / f"{i}.gguf", seed).read_bytes() for i, seed in enumerate((0, 0, 1)))
    assert first == again != other


def test_the_bill_for_a_real_server_is_what_its_usage_says(llama: LlamaServer) -> None:
    prices = Prices(input="0.25", cached="0.025", output="2")
    with cashier(upstream=llama.base_url, upstream_key=llama.api_key, prices=prices) as till:

        def ask(i: int) -> dict[str, Any]:
            with Client(till.base_url) as client:
                return client.ask(f"You are to say what message {i % 6} is")["usage"]

        with ThreadPoolExecutor(4) as pool:
            usages = list(pool.map(ask, range(8)))
        with Client(till.base_url) as client:
            status, headers, stream = client.post("/chat/completions", chat("hello", stream=True))
    assert status == 200
    assert headers["content-type"] == "text/event-stream"
    assert stream.endswith(b"data: [DONE]\n\n")
    assert b'"usage"' not in stream  # nobody asked the provider for it, and still it is billed
    by_hand = Fraction(0)
    for usage in usages:
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        by_hand += (usage["prompt_tokens"] - cached) * Fraction(1, 4) / MILLION
        by_hand += cached * Fraction(1, 40) / MILLION + usage["completion_tokens"] * Fraction(2) / MILLION
    *lines, streamed = till.bill
    assert sum(line.usd for line in lines) == by_hand
    assert till.billed == by_hand + streamed.usd
    assert streamed.usage.output > 0
    assert sorted(till.counts().values()) == [1, 1, 1, 1, 1, 2, 2]


# The scripted model


@pytest.fixture(scope="module")
def scripted() -> Any:
    """A provider that all tests that only look at answers share."""
    with cashier(keywords=KEYWORDS, certainty=0.8) as till:
        yield till


def test_five_hundred_answers_by_a_rule_cost_little(scripted: Cashier) -> None:
    begin = time.process_time()
    with Client(scripted.base_url) as client:
        answers = [client.ask(f"message {i}: {'win a prize' if i % 5 == 0 else 'lunch'}") for i in range(500)]
    assert time.process_time() - begin < 3  # 0.4 on a quiet machine, client and server
    assert Counter(map(label_of, answers)) == {"spam": 100, "ham": 400}


def test_log_probabilities_are_those_of_the_labels(scripted: Cashier) -> None:
    with Client(scripted.base_url) as client:
        answer = client.ask("free", logprobs=True, top_logprobs=3)
    (choice,) = answer["choices"]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"] == '{"label":"spam"}'
    (place,) = (token for token in tokens if token["token"] == "spam")
    shares = {each["token"]: math.exp(each["logprob"]) for each in place["top_logprobs"]}
    assert shares["spam"] + shares["ham"] == pytest.approx(1)
    assert 0.6 <= shares["spam"] <= 1
    assert all(token["logprob"] == 0 for token in tokens if token is not place)


def test_log_probabilities_of_long_labels_multiply_to_their_share() -> None:
    shares = {"positive": 0.5, "position": 0.3, "negative": 0.2}
    for content, share in shares.items():
        listed = alternatives(shares, tokens_of(content), 2)
        assert math.prod(math.exp(token["logprob"]) for token in listed) == pytest.approx(share)
    first = alternatives(shares, tokens_of("positive"), 2)[0]["top_logprobs"]
    assert [(each["token"], round(math.exp(each["logprob"]), 6)) for each in first] == [("posi", 0.8), ("nega", 0.2)]


def test_samples_differ_and_the_whole_is_seeded() -> None:
    def labels() -> list[str]:
        with cashier(keywords=KEYWORDS, certainty=0.6, seed=3) as till, Client(till.base_url) as client:
            return [label_of(client.ask("free", temperature=1)) for _ in range(30)]

    first = labels()
    assert set(first) == {"spam", "ham"}
    assert labels() == first


def test_entities_are_found_by_their_words() -> None:
    entity = {"type": "object", "properties": {"type": {"enum": ["city"]}, "text": {"type": "string"}}}
    schema = {"type": "object", "properties": {"entities": {"type": "array", "items": entity}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    with cashier(keywords={"city": ["Oslo", "Rome"]}) as till, Client(till.base_url) as client:
        answer = client.ask("From Oslo to Rome", response_format=wanted, max_completion_tokens=99)
    found = json.loads(answer["choices"][0]["message"]["content"])
    assert found == {"entities": [{"type": "city", "text": "Oslo"}, {"type": "city", "text": "Rome"}]}


def test_decisions_give_the_probability_of_every_label(scripted: Cashier) -> None:
    choices = [{"value": "spam"}, {"value": "ham", "description": "anything else"}]
    question = {"type": "choice", "name": "label", "instructions": "Which?", "choices": choices}
    score = {"type": "score", "instructions": "How urgent?", "levels": [{"label": "low"}, {"label": "high"}]}
    predicate = {"type": "predicate", "instructions": "Is it spam?"}
    body = {"model": "m", "input": "win it", "questions": [question, score, predicate]}
    with Client(scripted.base_url) as client:
        status, _, answer = client.post("/decisions", body)
        twice = client.post("/decisions", body | {"questions": [question | {"choices": choices * 2}]})[0]
        absent = client.post("/systemone", {"model": "m", "state": "win it", "questions": {}})[0]
    assert (status, twice, absent) == (200, 400, 404)
    found = json.loads(answer)
    first, second, third = found["answers"]
    shares = {row["value"]: row["probability"] for row in first["probabilities"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert (first["choice"], first["confidence"], first["name"]) == ("spam", shares["spam"], "label")
    assert second["score"] == pytest.approx(second["probabilities"][1]["probability"])
    assert 0 <= third["probability"] <= 1
    assert found["usage"]["output_tokens"] == 0
    assert scripted.bill[-1].usage.input == found["usage"]["input_tokens"] > 0


def test_system_one_answers_where_the_provider_has_it() -> None:
    question = {"type": "choice", "instructions": "Which?", "criteria": {"spam": None, "ham": "anything else"}}
    body = {"model": "m", "state": "win it", "questions": {"label": question}}
    with cashier(keywords=KEYWORDS, decisions=False, systemone=True) as till, Client(till.base_url) as client:
        status, _, answer = client.post("/systemone", body)
        absent = client.post("/decisions", {"model": "m", "input": "win it", "questions": []})[0]
    assert (status, absent) == (200, 404)
    (found,) = json.loads(answer)["answers"].values()
    assert (found["choice"], list(found["probabilities"])) == ("spam", ["spam", "ham"])


def test_fields_are_ignored_or_rejected() -> None:
    ignored = ("response_format", "logprobs", "top_logprobs")
    with cashier(keywords=KEYWORDS, ignores=ignored) as till, Client(till.base_url) as client:
        (choice,) = client.ask("free", logprobs=True, top_logprobs=2)["choices"]
    assert (choice["message"]["content"], choice["logprobs"]) == ("spam", None)
    with cashier(rejects=("temperature",)) as till, Client(till.base_url) as client:
        status, _, body = client.post("/chat/completions", chat("free"))
    assert (status, json.loads(body)["error"]["param"]) == (400, "temperature")
    assert not till.bill


# Money


def test_the_bill_is_a_sum_by_hand_of_all_kinds_of_tokens() -> None:
    prices = Prices(input="1.10", cached="0.275", cache_write="1.375", output="4.40")
    long = "word " * 300
    settings = Settings(
        prices=prices,
        model=lambda body: '{"label":"ham"}',
        cache_block=64,
        cache_from=256,
        cache_writes=True,
        reasoning=(5, 9),
    )
    with cashier(settings) as till, Client(till.base_url) as client:
        usages = [client.ask(f"{long} {i}")["usage"] for i in range(3)]
        flexible = client.ask("short", service_tier="flex")["usage"]
        for _ in range(2):
            client.ask("a body asked twice")
    kinds = [
        (u["prompt_tokens_details"]["cached_tokens"], u["prompt_tokens_details"]["cache_write_tokens"]) for u in usages
    ]
    (_, written), *later = kinds
    assert kinds[0][0] == 0
    assert written >= 512
    assert later == [(written, 0), (written, 0)]
    by_hand = Fraction(0)
    for usage, (cached, wrote) in zip(usages, kinds, strict=True):
        by_hand += (usage["prompt_tokens"] - cached - wrote) * Fraction(11, 10)
        by_hand += (
            cached * Fraction(275, 1000) + wrote * Fraction(1375, 1000) + usage["completion_tokens"] * Fraction(44, 10)
        )
        thought = usage["completion_tokens_details"]["reasoning_tokens"]
        assert 5 <= thought <= 9
        assert usage["completion_tokens"] == thought + len(tokens_of('{"label":"ham"}'))
    assert sum(line.usd for line in till.bill[:3]) == by_hand / MILLION
    half = (flexible["prompt_tokens"] * Fraction(11, 10) + flexible["completion_tokens"] * Fraction(44, 10)) / 2
    assert (till.bill[3].usd, till.bill[3].tier) == (half / MILLION, "flex")
    assert till.billed_micros == math.ceil(till.billed * MILLION)
    assert sorted(till.counts_billed().values()) == [1, 1, 1, 1, 2]


def test_no_answer_is_longer_than_its_bound() -> None:
    with cashier(model=lambda body: "x" * 400, reasoning=(0, 40)) as till, Client(till.base_url) as client:
        answers = [client.ask(f"{i}", max_completion_tokens=20) for i in range(20)]
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {20}
    contents = {answer["choices"][0]["message"]["content"] for answer in answers}
    assert "" in contents  # all of it was thought
    assert {answer["choices"][0]["finish_reason"] for answer in answers} == {"length"}


def test_the_bill_survives_its_client_and_is_read_from_its_file(tmp_path: Path) -> None:
    with cashier_process(tmp_path / "far", Settings(keywords=KEYWORDS, delay_s=0.4)) as far:
        with Client(far.base_url) as client:
            client.ask("free")
        script = (
            "import json, sys, urllib.request as u\n"
            "u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode(), {'Content-Type': 'application/json'}))"
        )
        url = f"{far.base_url}/chat/completions"
        victim = subprocess.Popen([sys.executable, "-c", script, url, json.dumps(chat("win"))])
        while len(far.books.requests) < 2:
            time.sleep(0.005)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        while len(far.books.bill) < 2 or far.books.requests[1].status is None:
            time.sleep(0.005)
    books = far.books
    assert [line.usage.output > 0 for line in books.bill] == [True, True]
    assert [line.asked for line in books.undelivered()] == [1]
    assert books.billed == sum(line.usd for line in books.bill) > 0
    # A cashier over the same file goes on with its bill; a line that was cut in the middle is none.
    with far.bill_path.open("a") as lines:
        lines.write('{"event": "bil')
    assert read_bill(far.bill_path) == books


def test_a_cashier_goes_on_with_the_bill_of_an_earlier_one(tmp_path: Path) -> None:
    settings = Settings(keywords=KEYWORDS, bill_path=tmp_path / "bill.jsonl")
    for text in ("free", "lunch"):
        with cashier(settings) as till, Client(till.base_url) as client:
            client.post("/chat/completions", chat(text), X_Client_Request_Id=f"id of {text}")
    assert [asked.number for asked in till.requests] == [0, 1]
    assert till.counts_by_id() == {"id of free": 1, "id of lunch": 1}
    kept = read_bill(tmp_path / "bill.jsonl")
    assert (kept.bill, kept.billed) == (till.bill, till.billed)


def test_a_wrong_key_is_refused_and_repeated_but_in_no_book(tmp_path: Path) -> None:
    bill = tmp_path / "bill.jsonl"
    with cashier(api_key="sk-right", bill_path=bill) as till:
        with Client(till.base_url, "sk-planted") as client:
            status, _, body = client.post("/chat/completions", chat("free"))
        with Client(till.base_url, "sk-right") as client:
            client.ask("free")
    assert status == 401
    assert b"sk-planted" in body
    assert len(till.bill) == 1
    assert "sk-" not in bill.read_text() + repr([asked.headers for asked in till.requests])


# Faults


@pytest.fixture(scope="module")
def faulty() -> Any:
    """A provider whose faults each test sets."""
    with cashier(keywords=KEYWORDS, slow_s=0.1) as till:
        yield till


def ask_with(till: Cashier, fault: str | None, body: dict[str, Any] | None = None) -> tuple[Any, list[Any]]:
    """What a client sees of one request with a fault, or the name of its error; and what was billed for it."""
    till.set_faults(Faults(first=(None, fault)))
    n_before = len(till.bill)
    with Client(till.base_url, timeout=0.3 if fault in ("hang", "stall") else 20) as client:
        good = client.ask("lunch")
        path = "/decisions" if body and "questions" in body else "/chat/completions"
        try:
            seen: Any = client.post(path, body or chat("free", logprobs=True))
        except (OSError, http.client.HTTPException) as error:
            seen = type(error).__name__
    assert good["choices"]
    return seen, till.bill[n_before + 1 :]


@pytest.mark.parametrize("fault", sorted(REFUSED))
def test_a_refusal_has_its_status_and_code_and_is_not_billed(faulty: Cashier, fault: str) -> None:
    (status, headers, body), billed = ask_with(faulty, fault)
    wanted, code, _ = REFUSED[fault]
    assert (status, json.loads(body)["error"]["code"], billed) == (wanted, code, [])
    waits = {"429_retry_after": "1", "429_300": "300"}
    if fault == "429_date":
        assert headers["retry-after"].endswith("GMT")
    else:
        assert headers.get("retry-after") == waits.get(fault)


@pytest.mark.parametrize(
    ("fault", "error", "n_billed"),
    [
        ("reset_before", "ConnectionResetError", 0),
        ("hang", "TimeoutError", 0),
        ("reset_after", "ConnectionResetError", 1),
        ("truncated", "IncompleteRead", 1),
        ("stall", "TimeoutError", 1),
    ],
)
def test_a_connection_that_breaks_off_is_billed_if_the_work_was_done(
    faulty: Cashier, fault: str, error: str, n_billed: int
) -> None:
    seen, billed = ask_with(faulty, fault)
    assert (seen, len(billed)) == (error, n_billed)
    assert not faulty.requests[-1].delivered
    assert [line for line in faulty.undelivered() if line.asked == faulty.requests[-1].number] == billed


def spoilt(till: Cashier, fault: str, body: dict[str, Any] | None = None) -> Any:
    """Document of a spoilt answer, which is billed as any other."""
    (status, _, raw), billed = ask_with(till, fault, body)
    assert status == 200
    assert [line.fault for line in billed] == [fault]
    assert billed[0].usage.input > 0
    return json.loads(raw)


def test_answers_lack_what_the_fault_says(faulty: Cashier) -> None:
    assert spoilt(faulty, "not_object") == ["ok"]
    assert spoilt(faulty, "no_choices")["choices"] == []
    assert spoilt(faulty, "content_null")["choices"][0]["message"]["content"] is None
    assert spoilt(faulty, "prose")["choices"][0]["message"]["content"] == PROSE
    assert spoilt(faulty, "refusal")["choices"][0]["message"]["refusal"].startswith("I'm sorry")
    assert spoilt(faulty, "content_filter")["choices"][0]["finish_reason"] == "content_filter"
    cut = spoilt(faulty, "length")["choices"][0]
    assert (cut["finish_reason"], cut["message"]["content"]) == ("length", '{"label"')


def test_usage_is_missing_or_absurd_and_billed_as_it_was(faulty: Cashier) -> None:
    assert "usage" not in spoilt(faulty, "no_usage")
    assert spoilt(faulty, "usage_text")["usage"]["prompt_tokens"] == "many"
    assert spoilt(faulty, "usage_negative")["usage"]["prompt_tokens"] < 0
    assert spoilt(faulty, "usage_huge")["usage"]["prompt_tokens"] == 10**15
    assert len({line.usage for line in faulty.bill if line.fault and line.fault.startswith("usage")}) == 1


def test_answers_that_are_no_json_or_late_or_double(faulty: Cashier) -> None:
    (status, headers, body), billed = ask_with(faulty, "html_200")
    assert (status, headers["content-type"], body, billed) == (200, "text/html; charset=utf-8", HTML, [])
    (status, headers, body), billed = ask_with(faulty, "cut_json")
    assert (status, int(headers["content-length"]), len(billed)) == (200, len(body), 1)
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    assert ask_with(faulty, "empty")[0][2] == b""
    double = spoilt(faulty, "duplicate_id")["id"]
    with Client(faulty.base_url) as client:
        assert client.ask("lunch")["id"] != double
    begin = time.monotonic()
    assert label_of(spoilt(faulty, "slow")) == "spam"
    assert time.monotonic() - begin >= 0.09
    assert faulty.requests[-1].delivered


def test_decisions_are_spoilt_too(faulty: Cashier) -> None:
    choices = [{"value": "spam"}, {"value": "ham"}]
    question = {"type": "choice", "name": "label", "instructions": "Which?", "choices": choices}
    body = {"model": "m", "input": "win it", "questions": [question]}
    assert spoilt(faulty, "refusal", body)["answers"] == [{"type": "refusal", "name": "label"}]
    assert spoilt(faulty, "no_choices", body)["answers"] == []
    assert spoilt(faulty, "prose", body)["answers"][0]["choice"] == PROSE
    assert spoilt(faulty, "usage_negative", body)["usage"]["input_tokens"] < 0


def test_every_fault_is_tried_here() -> None:
    tried = {*REFUSED, "reset_before", "hang", "html_200", "reset_after", "truncated", "stall", "not_object"}
    tried |= {"no_choices", "content_null", "prose", "refusal", "content_filter", "length", "no_usage", "usage_text"}
    tried |= {"usage_negative", "usage_huge", "cut_json", "empty", "duplicate_id", "slow"}
    assert tried == set(NAMES)
    assert set(BILLED) < tried
    with pytest.raises(ValueError, match="no such faults: teapot"):
        Faults(shares={"teapot": 1})


def test_a_plan_does_not_depend_on_the_order_and_ends() -> None:
    plan = Faults(shares={"429": 0.3, "reset_after": 0.2}, seed=5, attempts=2, storms=((1000, 50, "503"),))
    keys = [f"body {i}" for i in range(400)]
    first = {key: [plan.of(key, attempt, 7) for attempt in range(3)] for key in keys}
    assert {key: [plan.of(key, attempt, 99) for attempt in range(3)] for key in reversed(keys)} == first
    counts = Counter(faults[0] for faults in first.values())
    assert 0.2 < counts["429"] / 400 < 0.4
    assert 0.1 < counts["reset_after"] / 400 < 0.3
    assert all(faults[2] is None for faults in first.values())
    assert [plan.of("a", 9, arrival) for arrival in (999, 1000, 1049, 1050)] == [None, "503", "503", None]


def test_rate_limits_are_told_and_enforced() -> None:
    limits = RateLimits(requests=3, tokens=100_000, per_s=30)
    with cashier(keywords=KEYWORDS, rate_limits=limits) as till, Client(till.base_url) as client:
        seen = [client.post("/chat/completions", chat(f"{i}")) for i in range(5)]
    assert [status for status, _, _ in seen] == [200, 200, 200, 429, 429]
    assert [headers["x-ratelimit-remaining-requests"] for _, headers, _ in seen] == ["2", "1", "0", "0", "0"]
    assert seen[0][1]["x-ratelimit-limit-tokens"] == "100000"
    assert seen[-1][1]["x-ratelimit-reset-requests"].endswith("s")
    waits, waits_ms = (int(seen[-1][1][name]) for name in ("retry-after", "retry-after-ms"))
    assert 0 < waits == math.ceil(waits_ms / 1000) <= 10
    assert len(till.bill) == 3


def test_connections_are_counted_and_an_observer_is_told() -> None:
    told: list[tuple[str, int]] = []
    barrier = threading.Barrier(4)

    def watch(event: str, asked: Asked) -> None:
        told.append((event, asked.number))

    with cashier(keywords=KEYWORDS, delay_s=0.3, observer=watch) as till:

        def ask(i: int) -> None:
            with Client(till.base_url) as client:
                barrier.wait()
                client.ask(f"{i}")
                client.ask(f"{i} again")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))
    assert (till.connections, till.most_connections) == (4, 4)
    assert till.most_in_flight == 4
    assert Counter(asked.connection for asked in till.requests) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert [event for event, number in told if number == 0] == ["arrived", "billed", "sent"]
    assert len(till.requests) == 8
    with pytest.raises(ConnectionRefusedError), Client(till.base_url) as client:
        client.ask("it is closed")


# Batches


def upload(client: Client, lines: list[dict[str, Any]], purpose: str = "batch") -> str:
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    head = b'--limit\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose.encode()
    head += b'\r\n--limit\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n'
    form = head + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--limit--\r\n"
    status, _, body = client.send("POST", "/files", form, Content_Type="multipart/form-data; boundary=limit")
    found = json.loads(body)
    assert (status, found["bytes"], found["filename"]) == (200, len(content), "in.jsonl")
    name: str = found["id"]
    return name


def order(client: Client, lines: list[dict[str, Any]], **metadata: str) -> dict[str, Any]:
    fixed = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": metadata}
    status, _, body = client.post("/batches", {"input_file_id": upload(client, lines), **fixed})
    assert status == 200, body
    batch: dict[str, Any] = json.loads(body)
    return batch


def requests(n: int) -> list[dict[str, Any]]:
    fixed = {"method": "POST", "url": "/v1/chat/completions"}
    return [{"custom_id": f"row-{i}", **fixed, "body": chat("win" if i % 2 else "lunch")} for i in range(n)]


def lines_of(client: Client, file_id: str) -> dict[str, dict[str, Any]]:
    _, _, content = client.send("GET", f"/files/{file_id}/content")
    return {line["custom_id"]: line for line in map(json.loads, content.splitlines())}


def test_a_batch_goes_its_way_at_half_the_price() -> None:
    with cashier(keywords=KEYWORDS, batching=Batching(polls=3)) as till, Client(till.base_url) as client:
        batch = order(client, requests(40), run="r1")
        states = [batch["status"], *(client.get(f"/batches/{batch['id']}")["status"] for _ in range(4))]
        done = client.get(f"/batches/{batch['id']}")
        found = lines_of(client, done["output_file_id"])
        whole = [client.ask(line["body"]["messages"][1]["content"]) for line in requests(40)]
    assert states == ["validating", "in_progress", "in_progress", "completed", "completed"]
    assert done["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    assert (done["error_file_id"], done["metadata"]) == (None, {"run": "r1"})
    assert [label_of(found[f"row-{i}"]["response"]["body"]) for i in range(4)] == ["ham", "spam", "ham", "spam"]
    assert list(found) != sorted(found, key=lambda name: int(name[4:]))
    batched, single = till.bill[:40], till.bill[40:]
    assert sum(line.usd for line in batched) == till.batches[batch["id"]].usd == sum(line.usd for line in single) / 2
    assert {line.tier for line in batched} == {"batch"}
    assert label_of(whole[1]) == "spam"
    assert till.counts_by_id() == {f"row-{i}": 1 for i in range(40)}


def test_a_batch_that_partly_expired_and_failed_keeps_the_rest() -> None:
    outcomes = {"row-0": "expired", "row-1": "failed", "row-2": "no_usage"}
    with (
        cashier(keywords=KEYWORDS, batching=Batching(polls=9, outcomes=outcomes)) as till,
        Client(till.base_url) as client,
    ):
        broken = [*requests(5), {**requests(6)[5], "body": {"model": "tiny", "messages": []}}]
        batch = order(client, broken)
        till.finish_batches()
        done = client.get(f"/batches/{batch['id']}")
        good, bad = lines_of(client, done["output_file_id"]), lines_of(client, done["error_file_id"])
    assert done["status"] == "expired"
    assert done["request_counts"] == {"total": 6, "completed": 3, "failed": 3}
    assert set(good) == {"row-2", "row-3", "row-4"}
    assert "usage" not in good["row-2"]["response"]["body"]
    assert bad["row-0"]["error"]["code"] == "batch_expired"
    assert {name: line["response"]["status_code"] for name, line in bad.items() if line["response"]} == {
        "row-1": 500,
        "row-5": 400,
    }
    assert sorted(line.custom_id or "" for line in till.bill) == ["row-2", "row-3", "row-4"]
    share = Batching(expired=0.5, seed=1)
    assert 80 < sum(share.outcome(f"row-{i}") == "expired" for i in range(200)) < 120
    with pytest.raises(ValueError, match="no such outcomes: reset_after"):
        Batching(outcomes={"row-0": "reset_after"})


def test_batches_are_listed_by_pages_and_files_are_turned_down() -> None:
    with (
        cashier(keywords=KEYWORDS, batching=Batching(polls=1, max_requests=3)) as till,
        Client(till.base_url) as client,
    ):
        made = [order(client, requests(1), part=str(i))["id"] for i in range(5)]
        first = client.get("/batches?limit=2")
        second = client.get(f"/batches?limit=9&after={first['last_id']}")
        too_many, double = order(client, requests(4)), order(client, requests(1) * 2)
        failed = [client.get(f"/batches/{each['id']}") for each in (too_many, double)]
        empty = client.get("/batches?after=" + made[0])
        wrong = client.post("/batches", {"input_file_id": "file-none"})[0]
        kept = upload(client, requests(1), "assistants")
        unfit = client.post("/batches", {"input_file_id": kept, "completion_window": "24h"})[0]
        client.send("DELETE", f"/files/{kept}")
        gone = client.send("GET", f"/files/{kept}/content")[0]
    assert [batch["id"] for batch in first["data"] + second["data"]] == made[::-1]
    assert (first["has_more"], second["has_more"], empty["data"]) == (True, False, [])
    assert [batch["metadata"]["part"] for batch in first["data"]] == ["4", "3"]
    codes = [batch["errors"]["data"][0]["code"] for batch in failed]
    assert ([batch["status"] for batch in failed], codes) == (["failed"] * 2, ["invalid_batch", "duplicate_custom_id"])
    assert (wrong, unfit, gone) == (404, 400, 404)
    assert len(till.bill) == 0  # nobody asked how the good ones went


def test_a_batch_whose_creation_was_cut_off_is_there() -> None:
    faults = Faults(first=("reset_after",), on=("/batches",))
    with cashier(keywords=KEYWORDS, faults=faults) as till:
        with Client(till.base_url) as client, pytest.raises(ConnectionResetError):
            order(client, requests(2), run="r1")
        with Client(till.base_url) as client:
            (found,) = client.get("/batches")["data"]
    assert found["metadata"] == {"run": "r1"}


# In general


def test_settings_pass_to_another_process_whole() -> None:
    settings = Settings(
        keywords=KEYWORDS,
        faults=Faults(shares={"429": 0.5}, first=("500",), storms=((1, 2, "503"),)),
        rate_limits=RateLimits(1, 2),
        batching=Batching(outcomes={"a": "expired"}),
        reasoning=(1, 2),
    )
    again = Settings.from_json(settings.to_json())
    assert Settings.from_json(again.to_json()) == again
    assert again.faults.of("key", 0, 1) == "503"
    assert (again.rate_limits, again.reasoning, again.prices) == (settings.rate_limits, (1, 2), settings.prices)
    with pytest.raises(ValueError, match="no other process"):
        Settings(model=lambda body: "x").to_json()


def test_a_port_that_is_taken_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="address already in use"), cashier(port=taken.getsockname()[1]):
            pass


def test_a_server_behind_that_is_gone_is_said_and_not_billed() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with cashier(upstream=f"http://127.0.0.1:{port}/v1") as till, Client(till.base_url) as client:
        status, _, body = client.post("/chat/completions", chat("free"))
    assert (status, json.loads(body)["error"]["code"], till.bill) == (502, "bad_gateway", [])


def test_errors_of_the_cashier_itself_are_not_lost() -> None:
    def model(body: object) -> str:
        raise KeyError("a mistake in a test's model")

    def ask() -> None:
        with (
            cashier(model=model) as till,
            Client(till.base_url) as client,
            pytest.raises(http.client.RemoteDisconnected),
        ):
            client.ask("free")

    with pytest.raises(KeyError, match="a mistake"):
        ask()


def test_books_of_nothing_are_empty(tmp_path: Path) -> None:
    assert read_bill(tmp_path / "none") == Books()
    assert Books().billed == 0
