"""Limits of an endpoint: what leaves in a minute, and what headers teach."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.labels.llm.limits import Bucket, Limits, retry_after, seconds_of


@given(
    per_minute=st.floats(1, 6000),
    amounts=st.lists(st.floats(0.1, 50), min_size=1, max_size=60),
    idle=st.lists(st.floats(0, 20), min_size=1, max_size=5),
)
def test_no_minute_sees_more_than_the_limit_and_a_second_of_it(
    per_minute: float, amounts: list[float], idle: list[float]
) -> None:
    now = 1000.0
    bucket = Bucket(per_minute, now)
    sent: list[tuple[float, float]] = []
    for number, amount in enumerate(amounts):
        now += idle[number % len(idle)] if number % 7 == 0 else 0.0
        now += bucket.delay(amount, now)
        assert bucket.delay(amount, now) < 1e-6
        bucket.take(amount, now)
        sent.append((now, amount))
    for start, _ in sent:
        within = [amount for at, amount in sent if start <= at < start + 60]
        # The last one may leave a full bucket in debt.
        assert sum(within[:-1]) <= per_minute + bucket.capacity + 1e-6


def test_an_unlimited_bucket_never_waits() -> None:
    bucket = Bucket(None, 0.0)
    for _ in range(5):
        bucket.take(1e9, 0.0)
    assert bucket.delay(1e9, 0.0) == 0


def test_tokens_that_were_not_needed_come_back() -> None:
    limits = Limits(None, 600, now=0.0)
    limits.take(100, 0.0)
    assert limits.delay(10, 0.0) == pytest.approx(10)
    limits.give_back(95, 0.0)
    assert limits.delay(10, 0.0) == pytest.approx(0.5)


def test_a_pause_holds_everything_and_the_longest_counts() -> None:
    limits = Limits(None, None, now=0.0)
    limits.pause(300, 0.0)
    limits.pause(2, 0.0)
    assert limits.delay(1, 100.0) == 200
    assert limits.delay(1, 300.0) == 0


HEADERS = "x-ratelimit-{}-requests"


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "per_minute"),
    [
        ("60", "59", "1s", 60),
        ("20", "10", "500ms", 1200),  # a limit per second
        ("14400", "14370", "2m59.56s", 14400),  # a limit per day, which a 429 will tell
        ("60", None, None, 60),
        ("0", "0", "1s", None),
        ("many", "1", "1s", None),
    ],
)
def test_headers_teach_the_rate(limit: str, remaining: str | None, reset: str | None, per_minute: float | None) -> None:
    limits = Limits(None, None, now=0.0)
    named = {"limit": limit, "remaining": remaining, "reset": reset}
    limits.learn({HEADERS.format(name): value for name, value in named.items() if value is not None}, 0.0)
    n = 100
    now = 0.0
    for _ in range(n):
        now += limits.delay(1, now)
        limits.take(1, now)
    assert now == pytest.approx(0 if per_minute is None else n * 60 / per_minute, rel=0.05, abs=1.0)


def test_headers_never_make_faster_than_asked() -> None:
    limits = Limits(6, None, now=0.0)
    limits.learn({"x-ratelimit-limit-requests": "5000"}, 0.0)
    limits.take(1, 0.0)
    assert limits.delay(1, 0.0) == pytest.approx(10)


def test_where_nothing_remains_one_must_have_come_back() -> None:
    limits = Limits(None, None, now=0.0)
    limits.learn({HEADERS.format("limit"): "10", HEADERS.format("remaining"): "0", HEADERS.format("reset"): "60s"}, 0.0)
    assert limits.delay(1, 0.0) >= 6


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("1.5s", 1.5),
        ("20ms", 0.02),
        ("7", 7),
        ("1h2m3s", 3723),
        ("", None),
        ("soon", None),
        ("-3", None),
    ],
)
def test_durations_of_headers(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


def test_a_wait_is_read_from_seconds_milliseconds_and_dates() -> None:
    wall = 1_800_000_000.0
    assert retry_after({"retry-after": "300"}, wall) == 300
    assert retry_after({"retry-after": "1", "retry-after-ms": "250"}, wall) == 0.25
    assert retry_after({"retry-after": formatdate(wall + 90, usegmt=True)}, wall) == 90
    assert retry_after({"retry-after": formatdate(wall - 90, usegmt=True)}, wall) == 0
    assert retry_after({"retry-after": "tomorrow"}, wall) is None
    assert retry_after({}, wall) is None
