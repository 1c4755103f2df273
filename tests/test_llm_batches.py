"""Labels bought in batches: one batch whatever dies when, half the price to the last digit, and what became of every request."""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from outlay.errors import OutlayError, SellerError
from outlay.labels import Allowance, Delivery
from outlay.labels.llm import batches
from outlay.labels.llm.batch_wire import BatchEndpoint
from outlay.labels.llm.billing import recompute
from tests.cashier import Cashier, Settings, cashier, cashier_process
from tests.llm_batching import HALF, POINTS, RICH, Eager, batcher, bought, dying, order
from tests.llm_selling import KEY, KEY_VARIABLE, KEYWORDS, PRICES, label_of, llm, row
from tests.provider_batches import Batching
from tests.provider_faults import Faults
from tests.provider_http import Asked, Refusal

SETTINGS = Settings(keywords=KEYWORDS, certainty=1.0, api_key=KEY, batching=Batching(polls=1))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture
def till() -> Iterator[Cashier]:
    with cashier(SETTINGS) as till:
        yield till


class Died(BaseException):
    """Stands for the end of a process."""


def die() -> None:
    raise Died


def asked_in_batches(till: Cashier) -> Counter[str]:
    """Times each question was billed in a batch, by its key."""
    return Counter(line.custom_id for line in till.bill if line.custom_id is not None)


def is_whole(got: Delivery, n: int) -> bool:
    return got.labels == {row(i).id: label_of(i) for i in range(n)} and got.waits_for is None and not got.refused


# --- the bill -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_half_the_price_to_the_last_digit(tmp_path: Path, till: Cashier) -> None:
    till.set_batching(Batching(polls=2))
    rows, seller = order(30), batcher(till.base_url, tmp_path)
    most = sum(cost.most for cost in seller.costs(rows.examples)) / 2  # without the retry of what cannot be read
    assert most == sum(cost.most for cost in llm(till.base_url, tmp_path).costs(rows.examples)) / 4
    allowance = Allowance(RICH)
    seller.submit(rows)
    first = seller.collect(rows, allowance)
    again = "it is looked at again when the same command runs"
    assert first.waits_for == f"batch batch_00000003, 0 of 30 answered; {again}"
    # The probe of the way is a request of its own, at the standard price.
    assert (first.labels, first.quantity, [line.tier for line in till.bill]) == ({}, till.billed, ["default"])
    assert first.quantity + 0.9 * most < RICH - allowance.left <= first.quantity + most
    # Two more processes: the first comes too early.
    assert batcher(till.base_url, tmp_path).collect(rows, Allowance(RICH)).waits_for is not None
    seen: list[int] = []
    allowance = Allowance(RICH)
    got = batcher(till.base_url, tmp_path).collect(rows, allowance, seen.append)
    assert is_whole(got, 30)
    assert got.quantity == till.billed == RICH - allowance.left
    assert got.cash_micros == till.billed_micros
    assert seen == [30]
    (batch,) = till.batches.values()
    assert batch.usd == got.quantity - first.quantity
    assert (len(till.files), set(asked_in_batches(till).values()), len(till.bill)) == (2, {1}, 31)
    assert recompute(seller.path, rows.id, PRICES, HALF) == {each.row: each.quantity for each in got.results}
    # What is paid needs neither the provider, nor a key, nor money; nor do other orders, of either tier.
    os.environ.pop(KEY_VARIABLE)
    n_asked = len(till.requests)
    assert batcher(till.base_url, tmp_path).collect(rows, Allowance(got.quantity)) == got
    other = batcher(till.base_url, tmp_path, tier="standard")
    assert bought(other, order(30, "other")).quantity == batch.usd
    assert len(till.requests) == n_asked
    # One by one, the same answers cost twice as much.
    os.environ[KEY_VARIABLE] = KEY
    single = bought(llm(till.base_url, tmp_path / "single"), rows)
    assert (single.labels, single.quantity - first.quantity) == (got.labels, 2 * batch.usd)


def test_polling_waits_until_all_is_there(tmp_path: Path, till: Cashier) -> None:
    till.set_batching(Batching(polls=4))
    clock = Eager()
    got = bought(batcher(till.base_url, tmp_path, poll_seconds=30.0, clock=clock), order(5))
    assert is_whole(got, 5)
    assert clock.slept == [30.0] * 4
    assert (got.quantity, len(till.batches)) == (till.billed, 1)


def test_the_money_covers_the_worst_case_of_what_leaves(tmp_path: Path, till: Cashier) -> None:
    """Three batches: each holds the rows that what is left of the money covers at worst."""
    seller = batcher(till.base_url, tmp_path)
    worst = max(cost.most for cost in seller.costs(order(20).examples)) / 2
    usd = 10 * worst
    first = bought(seller, order(20), usd)
    assert first.waits_for is not None
    sizes = []
    for _ in range(9):
        sizes = [len(till.files[batch.input_file_id].content.splitlines()) for batch in till.batches.values()]
        allowance = Allowance(usd)
        got = seller.collect(order(20), allowance)
        if got.waits_for is None:
            break
    assert sizes[0] in (8, 9)
    assert len(sizes) >= 3
    assert sum(sizes) == len(got.labels)
    assert (is_whole(got, 20), got.refused) == (sum(sizes) == 20, {})
    assert got.quantity == till.billed == usd - allowance.left <= usd
    assert bought(batcher(till.base_url, tmp_path / "poor"), order(20), worst / 2).results == ()


# --- deaths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
def test_whatever_dies_when_there_is_one_batch(
    point: str, tmp_path: Path, till: Cashier, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, method in dying(point, die).items():
        monkeypatch.setattr(BatchEndpoint, name, method)
    with pytest.raises(Died):
        bought(batcher(till.base_url, tmp_path, poll_seconds=1.0), order(12))
    monkeypatch.undo()
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    got = bought(batcher(till.base_url, tmp_path, poll_seconds=1.0), order(12))
    assert is_whole(got, 12)
    assert got.quantity == till.billed
    assert (len(till.batches), len([file for file in till.files.values() if file.purpose == "batch"])) == (1, 1)
    assert set(asked_in_batches(till).values()) == {1}


@pytest.mark.parametrize(
    ("n", "points"), [(12, POINTS[-1:]), pytest.param(500, (*POINTS, *POINTS[-1:]), marks=pytest.mark.slow)]
)
def test_processes_killed_at_every_point_make_one_batch(n: int, points: tuple[str, ...], tmp_path: Path) -> None:
    """Each point kills a process; the last life is nobody's to end."""
    with cashier_process(tmp_path / "far", SETTINGS) as far:
        assert [ending_of_a_life(point, far.base_url, tmp_path, n) for point in points] == [signal.SIGKILL] * len(
            points
        )
        got = bought(batcher(far.base_url, tmp_path, poll_seconds=1.0), order(n))
        books = far.books
    assert is_whole(got, n)
    assert got.quantity == books.billed
    assert got.cash_micros == books.billed_micros
    assert [line.tier for line in books.bill] == ["default", *["batch"] * n]
    paths = Counter((asked.method, asked.path) for asked in books.requests)
    assert (paths["POST", "/files"], paths["POST", "/batches"]) == (1, 1)


@pytest.mark.parametrize("path", ["/files", "/batches"])
@pytest.mark.parametrize(
    "fault", ["reset_after", "html_200", *(pytest.param(name, marks=pytest.mark.slow) for name in ("500", "truncated"))]
)
def test_a_call_that_fails_makes_nothing_twice(path: str, fault: str, tmp_path: Path, till: Cashier) -> None:
    """Calls to upload, make, list, look and download fail, by some faults after the provider has done what it was asked."""
    first = {"/files": (fault, None, None, fault), "/batches": (fault, None, fault, None, None, fault)}
    till.set_faults(Faults(first=first[path], on=(path,)))
    got = bought(batcher(till.base_url, tmp_path, poll_seconds=1.0), order(5))
    assert is_whole(got, 5)
    assert got.quantity == till.billed
    assert (len(till.batches), len([file for file in till.files.values() if file.purpose == "batch"])) == (1, 1)


def test_a_batch_is_found_without_its_journal(tmp_path: Path, till: Cashier) -> None:
    first = bought(batcher(till.base_url, tmp_path / "lost"), order(5))
    till.finish_batches()
    got = bought(batcher(till.base_url, tmp_path / "new"), order(5))
    assert is_whole(got, 5)
    assert len(till.batches) == 1
    # But for the probe, which was sent again.
    assert got.quantity == till.billed - first.quantity


def ending_of_a_life(point: str, url: str, folder: Path, n: int) -> int:
    """Buy rows in a child that is killed at a point, and return the signal that ended it."""
    child = os.fork()
    if not child:
        try:
            for name, method in dying(point, lambda: os.kill(os.getpid(), signal.SIGKILL)).items():
                setattr(BatchEndpoint, name, method)
            bought(batcher(url, folder, poll_seconds=1.0), order(n))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


# --- what became of the requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["expired", "failed"])
def test_the_answered_half_is_kept_and_the_rest_is_asked_again(outcome: str, tmp_path: Path, till: Cashier) -> None:
    till.set_batching(Batching(polls=1, **{outcome: 0.5}))
    seller = batcher(till.base_url, tmp_path)
    bought(seller, order(30))
    half = seller.collect(order(30), Allowance(RICH))
    assert 5 < len(half.labels) < 25
    assert half.quantity == till.billed
    assert half.waits_for is not None
    till.set_batching(Batching(polls=1))
    got = seller.collect(order(30), Allowance(RICH))
    assert is_whole(got, 30)
    assert got.quantity == till.billed
    assert (len(till.batches), set(asked_in_batches(till).values())) == (2, {1})
    assert recompute(seller.path, "order", PRICES, HALF) == {each.row: each.quantity for each in got.results}


@pytest.mark.parametrize(
    ("batching", "why"),
    [
        (Batching(polls=1, expired=0.7), "This request could not be executed before the completion window expired."),
        (Batching(polls=1, failed=0.7), "status 500: 'The server had an error"),
        (Batching(polls=1, invalid=True), "was turned down: invalid_batch: 24 requests"),
    ],
)
def test_what_gets_no_answer_is_refused_with_the_reason(
    batching: Batching, why: str, tmp_path: Path, till: Cashier
) -> None:
    till.set_batching(batching)
    seller = batcher(till.base_url, tmp_path, poll_seconds=1.0, retries=1)
    got = bought(seller, order(24))
    assert got.waits_for is None
    assert {*got.labels, *got.refused} == set(order(24).rows)
    assert all(why in said and said.endswith("(2 times)") for said in got.refused.values())
    assert got.refused
    assert got.quantity == till.billed
    assert len(till.batches) == 2
    assert seller.collect(order(24), Allowance(RICH)) == got


def test_a_cancelled_batch_is_asked_again(tmp_path: Path, till: Cashier) -> None:
    seller = batcher(till.base_url, tmp_path, poll_seconds=1.0)
    seller.submit(order(3))
    looking = batcher(till.base_url, tmp_path)
    looking.collect(order(3), Allowance(RICH))
    (batch,) = till.batches.values()
    batch.status = "cancelled"
    got = seller.collect(order(3), Allowance(RICH))
    assert is_whole(got, 3)
    assert (got.quantity, len(till.batches)) == (till.billed, 2)


def test_a_batch_that_the_provider_lost_is_booked_at_its_worst_case(tmp_path: Path, till: Cashier) -> None:
    seller = batcher(till.base_url, tmp_path)
    allowance = Allowance(RICH)
    seller.submit(order(3))
    seller.collect(order(3), allowance)
    held = RICH - allowance.left
    till._desk.batches.clear()
    assert seller.collect(order(3), Allowance(RICH)).quantity == held
    got = seller.collect(order(3), Allowance(RICH))
    assert is_whole(got, 3)
    (again,) = till.batches.values()
    assert got.quantity == held + again.usd


def test_answers_that_the_provider_lost_are_booked_and_asked_again(tmp_path: Path, till: Cashier) -> None:
    seller = batcher(till.base_url, tmp_path, poll_seconds=1.0)
    seller.submit(order(3))
    batcher(till.base_url, tmp_path).collect(order(3), Allowance(RICH))
    till.finish_batches()
    (batch,) = till.batches.values()
    del till._desk.files[str(batch.output_file_id)]
    got = seller.collect(order(3), Allowance(RICH))
    assert is_whole(got, 3)
    assert set(asked_in_batches(till).values()) == {2}
    assert got.quantity > till.billed


def test_an_answer_that_cannot_be_read_is_paid_and_asked_again(tmp_path: Path, till: Cashier) -> None:
    seller = batcher(till.base_url, tmp_path)
    bought(seller, order(4))
    (sent,) = till.files.values()
    ids = [line.split(b'"custom_id":"')[1][:64].decode() for line in sent.content.splitlines()]
    till.set_batching(Batching(polls=1, outcomes={ids[0]: "content_null", ids[1]: "refusal"}))
    half = seller.collect(order(4), Allowance(RICH))
    assert (len(half.labels), len(half.refused)) == (2, 1)
    got = seller.collect(order(4), Allowance(RICH))
    assert got.waits_for is None
    assert list(got.refused) == [row(0).id, row(1).id]
    assert got.refused[row(0).id] == "the answer is null"
    assert (got.quantity, len(till.batches)) == (till.billed, 2)
    assert sorted(asked_in_batches(till).values()) == [1, 1, 1, 2]


def test_what_the_endpoint_refuses_is_the_endpoints_fault_where_all_is(tmp_path: Path, till: Cashier) -> None:
    seller = batcher(till.base_url, tmp_path)
    bought(seller, order(6))
    till.settings = replace(till.settings, rejects=["response_format"])
    with pytest.raises(SellerError, match=r"refuses all 6 requests of batch batch_0.*status 400: .Unsupp") as refused:
        seller.collect(order(6), Allowance(RICH))
    assert "\n" not in str(refused.value)
    till.settings = replace(till.settings, rejects=[])
    assert seller.collect(order(6), Allowance(RICH)).waits_for is not None
    got = seller.collect(order(6), Allowance(RICH))
    assert is_whole(got, 6)
    assert got.quantity == till.billed


def test_a_full_queue_is_waited_for(tmp_path: Path, till: Cashier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "FULL", ("invalid_batch",))
    till.set_batching(Batching(polls=1, invalid=True))
    seller = batcher(till.base_url, tmp_path, retries=0)
    bought(seller, order(3))
    waits = [seller.collect(order(3), Allowance(RICH)).waits_for for _ in range(4)]
    assert [str(line).startswith("the provider has no room for more (invalid_batch: 3 requests") for line in waits] == [
        True,
        False,
        True,
        False,
    ]
    till.set_batching(Batching(polls=1))
    assert is_whole(seller.collect(order(3), Allowance(RICH)), 3)


# --- limits, tiers and ways ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["requests", "bytes"])
def test_what_is_too_large_for_one_batch_is_split(
    limit: str, tmp_path: Path, till: Cashier, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = {"requests": 10, "bytes": 12_000}[limit]
    monkeypatch.setattr(batches, f"MAX_{limit.upper()}", most)
    till.set_batching(Batching(polls=1, **{f"max_{limit}": most}))  # type: ignore[arg-type]
    seller = batcher(till.base_url, tmp_path, samples=2)
    first = bought(seller, order(8))
    files = [till.files[batch.input_file_id].content for batch in till.batches.values()]
    assert len(files) == 2
    assert sum(len(file.splitlines()) for file in files) == 16
    assert str(first.waits_for).startswith("2 batches, 0 of 16 answered; ")
    got = seller.collect(order(8), Allowance(RICH))
    assert is_whole(got, 8)
    assert (got.quantity, len(got.answers)) == (till.billed, 16)


def test_requests_of_their_own_wait_for_what_is_in_a_batch(tmp_path: Path, till: Cashier) -> None:
    """The tier is changed while a batch is under way: its rows are not asked one by one, others are."""
    till.set_batching(Batching(polls=2))
    bought(batcher(till.base_url, tmp_path), order(4))
    single = batcher(till.base_url, tmp_path, tier="standard")
    got = bought(single, order(6, "more"))
    assert (len(got.labels), len(till.bill)) == (2, 3)
    assert str(got.waits_for).startswith("batch batch_0")
    got = single.collect(order(6, "more"), Allowance(RICH))
    assert is_whole(got, 6)
    first = batcher(till.base_url, tmp_path).collect(order(4), Allowance(RICH))
    assert is_whole(first, 4)
    # The first order has paid for the probe and the four; the other takes the four over.
    assert (
        first.quantity + sum(line.usd for line in till.bill if line.tier == "default") - till.bill[0].usd == till.billed
    )
    assert len(till.bill) == 7


def test_batches_are_asked_by_chat(tmp_path: Path, till: Cashier) -> None:
    seller = batcher(till.base_url, tmp_path, way="auto", poll_seconds=1.0)
    got = bought(seller, order(2))
    assert is_whole(got, 2)
    assert not [asked for asked in till.requests if asked.path == "/decisions"]
    assert seller.identity()["way"] == "schema or chat"
    named = batcher(till.base_url, tmp_path, way="decisions")
    with pytest.raises(SellerError, match="no batches of /v1/decisions"):
        bought(named, order(2))
    assert len(till.bill) == 4


def test_an_endpoint_without_batches_is_told(tmp_path: Path, till: Cashier, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(asked: Asked, query: object) -> None:
        raise Refusal(404, "not_found", f"Invalid URL ({asked.method} /v1{asked.path})")

    monkeypatch.setattr(till._desk, "handle", gone)
    with pytest.raises(
        SellerError, match=r"does not upload a file of requests \(status 404: .Invalid URL.*choose tier standard"
    ):
        bought(batcher(till.base_url, tmp_path), order(1))
    got = bought(batcher(till.base_url, tmp_path, tier="standard"), order(1))
    assert is_whole(got, 1)
    assert got.quantity == till.billed


# --- the key ------------------------------------------------------------------------------------------------------------


def test_a_planted_key_is_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that repeats the key in its answers, and a provider that repeats it in its refusals."""
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    for name, changes in {
        "parrot": {"model": lambda body: f'{{"label": "{KEY}"}}'},
        "refusing": {"api_key": "x"},
    }.items():
        with cashier(replace(SETTINGS, **changes)) as till:  # type: ignore[arg-type]
            seller = batcher(till.base_url, tmp_path / name, way="chat", poll_seconds=1.0, max_answer_tokens=60)
            try:
                shown.append(repr(bought(seller, order(3))))
            except OutlayError as error:
                shown += [repr(error), repr(error.__cause__), repr(error.__context__)]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert b"***" in b"".join(files)
    read = capsys.readouterr()
    for text in (*shown, caplog.text, read.out, read.err, *(data.decode() for data in files)):
        assert KEY not in text
