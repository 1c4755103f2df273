"""Labels bought from a language model: the contract of sellers, faults, the bill, kills, and a key that nobody sees."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from outlay.errors import OutlayError, SellerError, UnknownOrder
from outlay.labels import Allowance, Annotator, Delivery, Order
from outlay.labels.llm.billing import recompute
from outlay.labels.llm.bodies import Way, WayName
from outlay.labels.llm.journal import open_journal
from outlay.labels.llm.options import LlmOptions
from outlay.labels.llm.questions import Questioner
from outlay.labels.llm.seller import LlmSeller
from outlay.labels.llm.ways import WAYS
from outlay.money.amounts import MICROS_PER_USD
from outlay.money.prices.tokens import TokenPrices, TokenUsage
from tests.cashier import CHAT, Cashier, Prices, Settings, cashier, cashier_process
from tests.contracts.annotator_contract import AnnotatorContract
from tests.llm_selling import KEY, KEY_VARIABLE, KEYWORDS, PRICES, label_of, llm, row
from tests.llm_server import LlamaServer
from tests.provider_faults import Faults

RICH = Fraction(1000)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture(scope="module")
def provider() -> Iterator[Cashier]:
    with cashier(Settings(keywords=KEYWORDS, certainty=1.0, api_key=KEY)) as till:
        yield till


def order(n: int, name: str = "order", start: int = 0) -> Order:
    return Order.of(name, [row(number) for number in range(start, start + n)])


def bought(seller: LlmSeller, what: Order, usd: Fraction = RICH) -> Delivery:
    seller.submit(what)
    return seller.collect(what, Allowance(usd))


class TestContract(AnnotatorContract):
    @pytest.fixture(autouse=True)
    def far_side(self, provider: Cashier, tmp_path: Path) -> None:
        self.provider, self.folder = provider, tmp_path
        self.n_made, self.n_before = 0, len(provider.bill)

    def make_seller(self) -> Annotator:
        self.n_made += 1
        return llm(self.provider.base_url, self.folder / str(self.n_made), way="chat")

    def billed_micros(self, seller: Annotator) -> int:
        lines = self.provider.bill[self.n_before :]
        return int(sum((line.usd for line in lines), Fraction(0)) * MICROS_PER_USD * 1000)


# --- the bill -----------------------------------------------------------------------------------------------------------


def test_what_is_bought_is_what_is_billed_to_the_last_digit(tmp_path: Path) -> None:
    rows = order(30)
    with cashier(Settings(keywords=KEYWORDS, certainty=1.0, reasoning=(0, 5), api_key=KEY)) as till:
        seller = llm(till.base_url, tmp_path, concurrency=8, max_answer_tokens=64)
        seen: list[int] = []
        seller.submit(rows)
        allowance = Allowance(RICH)
        got = seller.collect(rows, allowance, seen.append)
        assert got.labels == {row(i).id: label_of(i) for i in range(30)}
        assert (got.waits_for, got.refused) == (None, {})
        assert got.quantity == till.billed == RICH - allowance.left
        assert got.cash_micros == till.billed_micros
        assert seen == sorted(seen)
        assert (seen[0], seen[-1]) == (0, 30)
        assert till.most_in_flight > 1
        assert recompute(seller.path, rows.id, PRICES) == {each.row: each.quantity for each in got.results}
        answer = got.answers[0]
        assert (answer.by, answer.seconds > 0, len(answer.probabilities)) == ("scripted", True, 2)
        # Every request carries its key, and none came twice.
        assert set(till.counts_by_id().values()) == {1}
        n_asked = len(till.requests)
    # A seller built anew needs neither the provider, nor a key, nor money for what is paid.
    os.environ.pop(KEY_VARIABLE)
    again = llm(till.base_url, tmp_path, max_answer_tokens=64)
    assert again.collect(rows, Allowance(got.quantity)) == got
    assert len(till.requests) == n_asked
    with pytest.raises(UnknownOrder):
        again.collect(order(30, "another"), Allowance(RICH))


@pytest.mark.parametrize("n", [8, pytest.param(500, marks=pytest.mark.slow)])
def test_a_real_server_bills_what_is_booked(n: int, llama: LlamaServer, tmp_path: Path) -> None:
    rows, settings = order(n), Settings(upstream=llama.base_url, upstream_key=llama.api_key, decisions=False)
    with cashier(settings) as till:
        seller = llm(till.base_url, tmp_path, way="auto", max_answer_tokens=24, timeout=60.0)
        got = bought(seller, rows)
        assert {*got.labels, *got.refused} == set(rows.rows)
        assert len(got.labels) > n / 2
        assert got.quantity == till.billed
        assert got.cash_micros == till.billed_micros
        assert any(line.usage.cached for line in till.bill)
        assert seller.collect(rows, Allowance(RICH)) == got
        assert recompute(seller.path, rows.id, PRICES) == {each.row: each.quantity for each in got.results}


def test_the_first_answers_tell_what_the_others_cost(provider: Cashier, tmp_path: Path) -> None:
    """As a strategy plans: by the first twenty, in the proportion of what was expected of each row."""
    seller = llm(provider.base_url, tmp_path, way="chat")
    first, rest = order(20, "first"), order(24, "rest", start=20)
    expected = [sum(cost.expected for cost in seller.costs(each.examples)) for each in (first, rest)]
    share = bought(seller, first).quantity / expected[0]
    assert 0.8 < float(share * expected[1] / bought(seller, rest).quantity) < 1.25


def test_another_order_takes_over_what_is_answered_and_pays_no_cash_for_it(provider: Cashier, tmp_path: Path) -> None:
    seller = llm(provider.base_url, tmp_path)
    first = bought(seller, order(10))
    n_billed = len(provider.bill)
    second = bought(seller, order(15, "second"))
    assert len(provider.bill) == n_billed + 5
    shared = {each.row: each for each in first.results}
    # The first order paid for the probe, in its first row.
    assert all(shared.get(each.row, each) == each for each in second.results[1:])
    assert second.results[0].quantity < first.results[0].quantity
    cash = sum((each.quantity for each in second.results if each.row not in shared), Fraction(0))
    assert second.cash_micros == -(-cash * MICROS_PER_USD // 1)
    assert seller.collect(order(15, "second"), Allowance(RICH)) == second
    # Where the money does not reach for what others paid, the rest is not bought.
    third = bought(seller, order(15, "third"), second.quantity / 2)
    assert 0 < len(third.labels) < 15
    assert third.quantity <= second.quantity / 2
    assert third.cash_micros == 0


def test_the_allowance_binds_and_more_money_goes_on(tmp_path: Path) -> None:
    rows = order(40)
    with cashier(Settings(keywords=KEYWORDS, certainty=1.0)) as till:
        seller = llm(till.base_url, tmp_path, concurrency=16)
        worst = max(cost.most for cost in seller.costs(rows.examples)) / 2
        usd = 5 * worst
        cut = bought(seller, rows, usd)
        assert cut.waits_for is None
        assert 0 < len(cut.labels) < 40
        assert usd - worst < cut.quantity == till.billed <= usd
        asked = till.counts()
        whole = seller.collect(rows, Allowance(RICH))
        assert len(whole.labels) == 40
        assert whole.quantity == till.billed
        assert set((till.counts() - asked).values()) == {1}
        assert not asked.keys() & (till.counts() - asked).keys()
        # Less than it cost already: nothing more is asked.
        less = bought(seller, order(45, "more"), Fraction(0))
        assert (less.labels, less.quantity) == ({}, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_threads_keep_to_a_dollar_as_the_schedule_does(seed: int, tmp_path: Path) -> None:
    """32 at once, answers of 0 to 300 hidden tokens at dear prices, some requests lost: by the provider's own bill."""
    prices = TokenPrices(*(Decimal(usd) / 1_000_000 for usd in ("5", "0.5", "5", "50")))
    dear = Prices(input="5", cached="0.5", output="50")
    rows = order(400)
    faults = Faults({"reset_after": 0.03, "500": 0.05, "no_usage": 0.03}, seed=seed)
    settings = Settings(
        keywords=KEYWORDS, certainty=1.0, reasoning=(0, 300), prices=dear, seed=seed, faults=faults, delay_s=0.05
    )
    with cashier(settings) as till:
        seller = llm(till.base_url, tmp_path, prices=prices, way="chat", concurrency=32, max_answer_tokens=310)
        assert max(cost.most for cost in seller.costs(rows.examples)) / 2 <= Fraction(2, 100)
        got = bought(seller, rows, Fraction(1))
        assert len(got.labels) < 400
        assert till.most_in_flight > 8
        assert till.billed <= got.quantity <= 1
        assert got.quantity >= Fraction(98, 100)


def test_several_samples_agree(provider: Cashier, tmp_path: Path) -> None:
    seller = llm(provider.base_url, tmp_path, way="chat", samples=3)
    got = bought(seller, order(4))
    assert got.labels == {row(i).id: label_of(i) for i in range(4)}
    assert Counter(answer.row for answer in got.answers) == {row(i).id: 3 for i in range(4)}
    assert all(cost.most == 6 * PRICES.most(seller._means.questioner.bound(row(0))) for cost in seller.costs([row(0)]))


def test_rows_with_the_same_text_are_one_question(tmp_path: Path) -> None:
    twins = [replace(row(i // 2), id=f"row {i}") for i in range(8)]
    rows, again = (Order.of(name, twins) for name in ("one", "two"))
    with cashier(Settings(keywords=KEYWORDS, certainty=1.0)) as till:
        seller = llm(till.base_url, tmp_path, way="chat", concurrency=8)
        seen: list[int] = []
        seller.submit(rows)
        got = seller.collect(rows, Allowance(RICH), seen.append)
        assert got.labels == {f"row {i}": label_of(i // 2) for i in range(8)}
        assert (seen[-1], len(till.bill)) == (8, 1 + 4)
        assert got.quantity == till.billed
        assert Counter(answer.row for answer in got.answers) == {f"row {i}": 1 for i in range(8)}
        allowance = Allowance(RICH)
        seller.submit(again)
        shared = seller.collect(again, allowance)
        assert (shared.labels, shared.cash_micros, len(till.bill)) == (got.labels, 0, 5)
        assert shared.quantity == RICH - allowance.left


def test_an_edited_prompt_that_no_row_fits_refuses_none(tmp_path: Path) -> None:
    with cashier(Settings(keywords=KEYWORDS, certainty=1.0)) as till:
        bought(llm(till.base_url, tmp_path, way="chat"), order(8))
        till.set_faults(Faults({"400_context": 1.0}, attempts=99))
        with pytest.raises(SellerError, match="context length"):
            bought(llm(till.base_url, tmp_path, way="chat", max_answer_tokens=30), order(8, "edited"))


def test_the_best_way_is_found_by_probes_that_the_journal_keeps(tmp_path: Path) -> None:
    with cashier(Settings(keywords=KEYWORDS, certainty=1.0, decisions=False)) as till:
        seller = llm(till.base_url, tmp_path, way="auto")
        got = bought(seller, order(5))
        assert len(got.labels) == 5
        assert got.quantity == till.billed
        asked = len(till.requests)
        assert {each.path for each in till.requests} >= {CHAT, "/decisions"}
        more = bought(seller, order(5, "more", start=5))
        assert len(till.requests) == asked + 5
        assert more.quantity + got.quantity == till.billed
    with cashier(Settings(keywords=KEYWORDS, certainty=1.0)) as till:
        got = bought(llm(till.base_url, tmp_path, way="auto"), order(5))
        assert {each.path for each in till.requests} == {"/decisions"}
        assert all(len(answer.probabilities) == 2 for answer in got.answers)


# --- faults -------------------------------------------------------------------------------------------------------------

FREE = ("500", "503", "429_retry_after", "reset_before", "400_context")
PAID = (
    *("reset_after", "truncated", "cut_json", "not_object", "empty", "no_choices", "content_null", "prose", "no_usage"),
    *("usage_text", "usage_negative", "usage_huge", "refusal", "content_filter", "length", "slow", "duplicate_id"),
)
REFUSES = {"400_context": "status 400", "refusal": "the model declined", "content_filter": "a filter"}


@pytest.mark.parametrize("fault", [*FREE, *PAID, "html_200", "stall"])
def test_a_fault_costs_no_row_and_is_paid_at_most_once(fault: str, tmp_path: Path) -> None:
    """The probe goes well; the fault befalls one row of four, at its first attempt."""
    rows = order(4)
    settings = Settings(keywords=KEYWORDS, certainty=1.0, faults=Faults(first=[None, None, fault]), slow_s=0.05)
    with cashier(settings) as till:
        seller = llm(till.base_url, tmp_path, concurrency=2, timeout=0.3)
        allowance = Allowance(RICH)
        seller.submit(rows)
        got = seller.collect(rows, allowance)
        assert sum(each.fault == fault for each in till.requests) == 1
        assert {*got.labels, *got.refused} == set(rows.rows)
        assert got.labels.items() <= {(row(i).id, label_of(i)) for i in range(4)}
        assert len(got.refused) == (fault in REFUSES)
        assert all(why.startswith(REFUSES[fault]) for why in got.refused.values())
        assert till.billed <= got.quantity == RICH - allowance.left
        if fault in ("500", "503", "429_retry_after", "400_context", "duplicate_id", "slow", "prose", "length"):
            assert got.quantity == till.billed
        assert set(till.counts().values()) <= {1, 2}
        assert got == seller.collect(rows, Allowance(RICH))
        assert recompute(seller.path, rows.id, PRICES) == {
            each.row: each.quantity for each in got.results if each.quantity
        }


def test_an_answer_that_is_never_readable_is_refused_with_its_reason(tmp_path: Path) -> None:
    with cashier(Settings(keywords=KEYWORDS, faults=Faults(storms=[(1, 10**6, "content_null")]))) as till:
        got = bought(llm(till.base_url, tmp_path), order(3))
        assert set(got.refused.values()) == {"the answer is null"}
        assert sorted(till.counts().values()) == [1, 2, 2, 2]
        assert got.quantity == till.billed
        # An edited pipeline reads the same bytes anew and asks nothing.
        assert len(got.answers) == 6
        bought(llm(till.base_url, tmp_path), order(3))
        assert len(till.requests) == 7


@pytest.mark.parametrize(("fault", "said"), [("insufficient_quota", "quota"), ("401", "Incorrect API key")])
def test_a_quota_that_is_used_up_ends_it_and_loses_nothing(fault: str, said: str, tmp_path: Path) -> None:
    rows = order(20)
    with cashier(Settings(keywords=KEYWORDS, certainty=1.0)) as till:
        till.set_faults(Faults(storms=[(7, 10**6, fault)]))
        seller = llm(till.base_url, tmp_path, concurrency=3)
        with pytest.raises(SellerError, match=said) as refused:
            bought(seller, rows)
        assert "\n" not in str(refused.value)
        assert len(till.bill) == 7  # with the probe
        assert len(till.requests) <= 10
        till.set_faults(Faults())
        got = seller.collect(rows, Allowance(RICH))
        assert len(got.labels) == 20
        assert got.quantity == till.billed
        assert len(till.bill) == 21


@pytest.mark.parametrize("fault", ["html_200", "cut_json", "content_null", "503", "truncated"])
def test_a_fault_of_a_probe_hides_no_way(fault: str, tmp_path: Path) -> None:
    with cashier(
        Settings(keywords=KEYWORDS, certainty=1.0, decisions=False, faults=Faults(first=[None, None, fault]))
    ) as till:
        got = bought(llm(till.base_url, tmp_path, way="auto"), order(3))
        assert len(got.labels) == 3
        assert all("response_format" in each.json for each in till.requests if each.path == CHAT)
        assert till.billed <= got.quantity


def test_a_way_that_was_not_there_is_tried_again(tmp_path: Path) -> None:
    with cashier(Settings(keywords=KEYWORDS, certainty=1.0, ignores=["response_format"])) as till:
        seller = llm(till.base_url, tmp_path)
        for _ in range(2):
            with pytest.raises(SellerError, match="passes over the schema"):
                bought(seller, order(3))
        till.settings = replace(till.settings, ignores=[])
        got = bought(seller, order(3))
        assert len(got.labels) == 3
        assert got.quantity == till.billed


def test_an_endpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    options = LlmOptions("m", "http://127.0.0.1:9/v1", KEY_VARIABLE, way="chat", retries=0)
    seller = LlmSeller(options, llm("http://x", tmp_path).guideline, PRICES, tmp_path)
    with pytest.raises(SellerError, match=r"cannot connect to http://127\.0\.0\.1:9/v1.*run again"):
        bought(seller, order(2))
    # Nothing left, so nothing was lost.
    assert recompute(seller.path, "order", PRICES) == {}


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    class Moved(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(307)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Moved) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with pytest.raises(SellerError, match=r"redirects to http://127\.0\.0\.1:9/elsewhere"):
                bought(llm(f"http://127.0.0.1:{server.server_port}/v1", tmp_path), order(2))
        finally:
            server.shutdown()
            thread.join()


def test_what_raises_in_a_report_ends_the_asking_and_keeps_what_came(tmp_path: Path) -> None:
    rows = order(40)

    class Enough(Exception):
        pass

    def report(n_rows: int) -> None:
        if n_rows >= 10:
            raise Enough

    with cashier(Settings(keywords=KEYWORDS, certainty=1.0, delay_s=0.005)) as till:
        seller = llm(till.base_url, tmp_path, concurrency=4)
        seller.submit(rows)
        with pytest.raises(Enough):
            seller.collect(rows, Allowance(RICH), report)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("ask-")]
        assert 10 <= len(till.bill) < 40
        got = seller.collect(rows, Allowance(RICH))
        assert len(got.labels) == 40
        assert set(till.counts().values()) == {1}
        assert got.quantity == till.billed


# --- options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": " "}, "needs a name"),
        ({"base_url": "localhost"}, "'localhost'"),
        ({"way": "chatt"}, "did you mean chat"),
        ({"samples": 0}, "samples is 0; give 1 to 100"),
        ({"concurrency": 1000}, "concurrency is 1000"),
        ({"temperature": 3.0}, "temperature is 3"),
    ],
)
def test_options_outside_their_limits_are_told(options: dict[str, object], said: str) -> None:
    with pytest.raises(SellerError, match=said):
        LlmOptions(**{"model": "m", **options})  # type: ignore[arg-type]


def test_the_identity_is_of_what_decides_the_labels(tmp_path: Path) -> None:
    def identity(**options: object) -> str:
        return json.dumps(llm("http://here/v1", tmp_path, **options).identity(), sort_keys=True)

    same = [identity(), identity(concurrency=2, timeout=1.0), identity(requests_per_minute=3), identity(tier="flex")]
    assert len(set(same)) == 1
    others = [identity(samples=2), identity(max_answer_tokens=9), identity(temperature=0.5), identity(way="chat")]
    assert len({*same, *others}) == 5


@pytest.mark.parametrize("name", ["auto", *WAYS])
def test_a_quote_bounds_whatever_way_is_found(name: WayName, tmp_path: Path) -> None:
    seller = llm("http://here/v1", tmp_path, way=name, samples=2, unreadable_retries=0)
    (cost,) = seller.costs([row(7)])
    for each in WAYS if name == "auto" else [name]:
        for way in (Way(each), Way(each, top_logprobs=20, temperature=False), Way(each, top_logprobs=5)):
            questions = Questioner(seller.options, seller.guideline).ask(way, row(7))
            if way.name == "schema" or not way.top_logprobs:
                assert sum(PRICES.most(question.most) for question in questions) <= cost.most


def test_a_key_that_is_not_set_is_told_when_something_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seller = llm("https://models.example/v1", tmp_path)
    monkeypatch.delenv(KEY_VARIABLE)
    assert seller.quote([row(0)]).charge_micros > 0
    with pytest.raises(SellerError, match=f"environment variable {KEY_VARIABLE} holds no API key"):
        bought(seller, order(1))


def test_a_server_of_this_machine_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    with cashier(keywords=KEYWORDS) as till:
        assert bought(llm(till.base_url, tmp_path), order(2)).labels


# --- the key ------------------------------------------------------------------------------------------------------------


def test_a_planted_key_is_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that repeats the key in an error and in an answer; everything written, logged, raised and shown is searched."""
    caplog.set_level(logging.DEBUG)

    def parrot(body: object) -> str:
        return json.dumps({"label": f"your key is {KEY}"})

    shown: list[str] = []
    for name, settings in {
        "refusing": Settings(keywords=KEYWORDS, api_key="another"),
        "parrot": Settings(model=parrot),
        "down": Settings(keywords=KEYWORDS, faults=Faults({"reset_after": 0.5, "500": 0.5}, attempts=99)),
    }.items():
        with cashier(settings) as till:
            told: list[str] = []
            seller = llm(till.base_url, tmp_path / name, tell=told.append, max_answer_tokens=60, retries=0)
            shown += [repr(seller), str(seller.identity()), repr(seller.options)]
            try:
                got = bought(seller, order(3))
                shown += [repr(got)]
            except OutlayError as error:
                every = [error, error.__cause__, error.__context__]
                shown += [repr(each) for each in every]
                traced = traceback.TracebackException.from_exception(error, capture_locals=True)
                shown += ["".join(traced.format())]
            shown += told
            assert any(request.headers.get("x-client-request-id") for request in till.requests)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert b"***" in b"".join(path.read_bytes() for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    read = capsys.readouterr()
    for text in (*shown, caplog.text, read.out, read.err):
        assert KEY not in text


# --- kills --------------------------------------------------------------------------------------------------------------

BUYER = """
import sys
from fractions import Fraction
from pathlib import Path
from outlay.labels import Allowance, Order
from tests.llm_server import LlamaServer
from tests.llm_selling import llm, row
url, folder, n, concurrency = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
seller = llm(url, folder, concurrency=concurrency)
order = Order.of("order", [row(number) for number in range(n)])
seller.submit(order)
seller.collect(order, Allowance(Fraction(1000)))
print("done")
"""


@pytest.mark.parametrize(
    ("n", "n_kills", "concurrency"), [(60, 1, 4), pytest.param(500, 3, 16, marks=pytest.mark.slow)]
)
def test_a_kill_loses_at_most_what_is_under_way(n: int, n_kills: int, concurrency: int, tmp_path: Path) -> None:
    settings = Settings(keywords=KEYWORDS, certainty=1.0, delay_s=0.01)
    root = Path(__file__).parent.parent
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    with cashier_process(tmp_path / "far", settings) as far:
        command = [sys.executable, "-c", BUYER, far.base_url, str(tmp_path / "asked"), str(n), str(concurrency)]
        for kill in range(n_kills):
            buyer = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": path})
            while len(far.books.bill) < (kill + 1) * n // (n_kills + 1):
                assert buyer.poll() is None, "it ended before it was killed"
                time.sleep(0.005)
            buyer.send_signal(signal.SIGKILL)
            buyer.wait()
        # The last life goes on in this process.
        seller, rows = llm(far.base_url, tmp_path / "asked", concurrency=concurrency), order(n)
        got = seller.collect(rows, Allowance(RICH))
        books = far.books
    assert got.labels == {row(i).id: label_of(i) for i in range(n)}
    counts = books.counts()
    with open_journal(seller.path) as journal:
        keys = {attempt.key for _, attempt in journal.bill(rows.id)}
        attempts = [journal.attempts(key) for key in keys]
    lost = [each for every in attempts for each in every if each.state == "lost"]
    # Nothing received is asked again, and no more than the connections were in doubt at each kill.
    assert all([each.state for each in every].count("received") == 1 for every in attempts)
    assert all(every[-1].state == "received" for every in attempts)
    assert len(lost) <= n_kills * concurrency
    assert sum(counts.values()) <= n + 1 + len(lost)  # with the probe
    assert books.billed <= got.quantity
    settled = got.quantity - sum((PRICES.most(TokenUsage(**each.most)) for each in lost), Fraction(0))
    assert settled <= books.billed
