"""Limits of an endpoint: requests and tokens per minute, as two buckets that refill steadily.

A bucket holds one second's worth, so that no 60 seconds see more than the limit and that much. A request larger than a bucket
waits until it is full and leaves it in debt. What an endpoint says of its limits (``x-ratelimit-*``, ``Retry-After``) only ever
slows down what the user asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|us|µs|ns|h|m|s|d)", re.ASCII)
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_LONGEST = 7 * 86400.0
"""Longest wait, in seconds, that is believed."""


class Bucket:
    """A bucket that refills at ``per_minute`` / 60 each second; ``None``: no limit. Times are seconds of one clock."""

    def __init__(self, per_minute: float | None, now: float) -> None:
        self.per_minute = per_minute
        self._at = now
        self._level = self.capacity

    @property
    def capacity(self) -> float:
        """Most that the bucket holds: one second's worth, at least 1."""
        return math.inf if self.per_minute is None else max(1.0, self.per_minute / 60)

    def delay(self, amount: float, now: float) -> float:
        """Return the seconds until ``amount`` may be taken."""
        if self.per_minute is None:
            return 0.0
        short = min(amount, self.capacity) - self._filled(now)
        return max(0.0, short * 60 / self.per_minute) if short > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take ``amount``, into debt where the bucket holds less."""
        if self.per_minute is not None:
            self._level = self._filled(now) - amount

    def give_back(self, amount: float, now: float) -> None:
        """Return what was taken and not used."""
        if self.per_minute is not None:
            self._level = min(self.capacity, self._filled(now) + amount)

    def slow_to(self, per_minute: float, now: float) -> None:
        """Lower the rate to ``per_minute``; a higher one changes nothing."""
        if self.per_minute is None or per_minute < self.per_minute:
            level = 0.0 if self.per_minute is None else self._filled(now)
            self.per_minute = per_minute
            self._at, self._level = now, min(level, self.capacity)

    def _filled(self, now: float) -> float:
        assert self.per_minute is not None
        gained = max(0.0, now - self._at) * self.per_minute / 60
        self._at = max(self._at, now)
        self._level = min(self.capacity, self._level + gained)
        return self._level


class Limits:
    """The limits of one endpoint: when the next request may leave.

    Args:
        requests_per_minute: Requests at most; ``None``: as many as the endpoint allows.
        tokens_per_minute: Tokens at most, counted by what a request may need until its usage is known.
        now: Time on the clock of all later calls, in seconds.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, now: float) -> None:
        self._buckets = {"requests": Bucket(requests_per_minute, now), "tokens": Bucket(tokens_per_minute, now)}
        self._paused_until = -math.inf

    def delay(self, n_tokens: int, now: float) -> float:
        """Return the seconds until a request of so many tokens may leave."""
        waits = [bucket.delay(amount, now) for bucket, amount in self._each(n_tokens)]
        return max(0.0, self._paused_until - now, *waits)

    def take(self, n_tokens: int, now: float) -> None:
        """Count a request that leaves."""
        for bucket, amount in self._each(n_tokens):
            bucket.take(amount, now)

    def give_back(self, n_tokens: int, now: float) -> None:
        """Return the tokens that a request did not need."""
        self._buckets["tokens"].give_back(n_tokens, now)

    def pause(self, seconds: float, now: float) -> None:
        """Let nothing leave for so many seconds."""
        self._paused_until = max(self._paused_until, now + seconds)

    def learn(self, headers: Mapping[str, str], now: float) -> None:
        """Slow down to what the headers of a reply say: the limit, and a pause where nothing remains.

        ``reset`` is the time until all is there again, so what is used up comes back at that rate; the limit is one per minute,
        unless it comes back faster. Where nothing remains, nothing leaves until one has come back.
        """
        for name, bucket in self._buckets.items():
            limit, left = (_number(headers.get(f"x-ratelimit-{part}-{name}")) for part in ("limit", "remaining"))
            if limit is None or limit < 1:
                continue
            reset = seconds_of(headers.get(f"x-ratelimit-reset-{name}"))
            per_minute = 60 * (limit - left) / reset if left is not None and reset else 0.0
            bucket.slow_to(max(limit, per_minute), now)
            if left is not None and left < 1 and reset:
                self.pause(reset / limit, now)

    def _each(self, n_tokens: int) -> list[tuple[Bucket, float]]:
        return [(self._buckets["requests"], 1.0), (self._buckets["tokens"], float(n_tokens))]


def seconds_of(text: str | None) -> float | None:
    """Return the seconds of ``"6m0s"``, ``"1.5s"``, ``"20ms"`` or ``"7"``; ``None`` for anything else."""
    if text is None:
        return None
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return min(float(text), _LONGEST)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return min(sum(float(number) * _SECONDS[unit] for number, unit in parts), _LONGEST)


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Return the seconds that a reply asks to wait, by ``retry-after-ms`` or ``retry-after`` (seconds or a date).

    ``None`` where it asks for none; ``wall``: the time, in seconds since 1970.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, _LONGEST)
    text = headers.get("retry-after")
    if text is None or (seconds := seconds_of(text)) is not None:
        return None if text is None else seconds
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return min(max(0.0, date.timestamp() - wall), _LONGEST)


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER.fullmatch(text.strip()) else None
