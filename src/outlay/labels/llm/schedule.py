"""Which request leaves next, and when: retries, waits and money, without a thread or a clock of its own.

`Schedule` is asked for the next request at a time, and told what came of each. It takes a request's worst case from the
allowance before handing it out, and gives back what the reply did not need. Where the allowance does not reach while requests are
under way, it waits for what they give back; where none are, the money has ended.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING

from outlay.errors import SellerError
from outlay.labels.llm.journal import silent
from outlay.labels.llm.limits import Limits, retry_after, seconds_of
from outlay.labels.llm.wire import Exchange, Failed, Lost, Question, Received
from outlay.text.durations import duration

if TYPE_CHECKING:
    from outlay.labels.allowance import Allowance
    from outlay.money.prices.tokens import TokenUsage

LONG_WAIT = 120.0
"""Seconds from which a wait is told."""
BUSY = frozenset({408, 409, 425, 429})
NOT_THERE = 501
"""Status of a server that never does what it is asked, of all from 500 on the only one that no waiting helps."""
N_ALIKE = 5
"""Requests in a row that fail for good before the endpoint, not the rows, counts as the reason."""


@dataclass(frozen=True, slots=True)
class Fatal:
    """Errors of which no other request will be spared: by status, and by the name that the endpoint gives."""

    statuses: frozenset[int]
    codes: frozenset[str]


_OUT_OF_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "invalid_api_key"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
DEFAULT_FATAL = Fatal(frozenset({401, 402, 403, 404, 405}) | _REDIRECTS, _OUT_OF_MONEY | {"model_not_found"})
PROBE_FATAL = Fatal(frozenset({401, 402}) | _REDIRECTS, _OUT_OF_MONEY)
"""Of a request that tries what an endpoint has: that it has it not is an answer."""


@dataclass(frozen=True, slots=True)
class Retries:
    """Number of times that a question is asked again, and the waits before.

    ``failures``: times that a question is asked again after errors and lost requests; of an endpoint that is full or cannot be
    reached, those with no reply to anybody in between count. ``unreadable``: times after replies that cannot be read, each of
    which is paid; ``first_wait`` and ``longest_wait``: seconds before the first time and at most, doubling between.
    """

    failures: int = 6
    unreadable: int = 1
    first_wait: float = 0.5
    longest_wait: float = 60.0

    def wait(self, n_before: int, rng: random.Random) -> float:
        """Return the seconds to wait after so many failures: exponential, half of it drawn."""
        longest: float = min(self.longest_wait, self.first_wait * 2.0 ** min(n_before, 30))
        return longest * rng.uniform(0.5, 1.0)


@dataclass(slots=True)
class Due:
    """A question to be asked, and what came of it before: ``most``: dollars that it costs at most."""

    key: str
    question: Question
    most: Fraction
    n_unreadable: int = 0
    n_failures: int = 0
    n_received_before: int = -1
    """Replies that had come to anybody when it failed last."""

    @property
    def n_tokens(self) -> int:
        """Tokens that it may need."""
        return n_of(self.question.most)


def n_of(usage: TokenUsage) -> int:
    """Return the tokens of a usage, of every kind."""
    return usage.input + usage.cached + usage.cache_write + usage.output


@dataclass(frozen=True, slots=True)
class Settled:
    """Worth of a received reply: dollars that it is billed, tokens it used, and why it cannot be read (``None``: it can).

    ``declined``: asking again is of no use.
    """

    usd: Fraction
    n_tokens: int
    problem: str | None = None
    declined: bool = False


@dataclass
class Schedule:
    """Questions that are due, in order, and those that wait to be asked again.

    ``finished``: keys of questions that are answered or refused; ``refused``: reasons of those refused; ``error``: why nothing
    more leaves; ``n_received``: replies that have come, earlier ones included.
    """

    questions: Iterable[Due]
    limits: Limits
    allowance: Allowance
    retries: Retries
    rng: random.Random
    tell: Callable[[str], None] = silent
    wall: Callable[[], float] = time.time
    fatal: Fatal = DEFAULT_FATAL
    finished: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    error: BaseException | None = None
    n_received: int = 0
    money_ended: bool = False
    n_under_way: int = 0
    _again: list[tuple[float, int, Due]] = field(default_factory=list)
    _failed_alike: list[tuple[Due, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._fresh = deque(self.questions)
        self._numbers = count()
        self._told_until = -math.inf

    def next(self, now: float) -> Due | float | None:
        """Return the next request to send; or seconds to wait, infinite until something comes; ``None`` where nothing is left."""
        if self.error is not None or self.money_ended:
            return None
        again = bool(self._again) and self._again[0][0] <= now
        if not again and not self._fresh:
            if self._again:
                return self._again[0][0] - now
            if self.n_under_way:
                return math.inf
            self._end()
            return None
        due = self._again[0][2] if again else self._fresh[0]
        if (delay := self.limits.delay(due.n_tokens, now)) > 0:
            self._tell_wait(delay, now)
            return delay
        if not self.allowance.take(due.most):
            if self.n_under_way:
                return math.inf
            self.money_ended = True
            return None
        self.limits.take(due.n_tokens, now)
        self.n_under_way += 1
        if again:
            heapq.heappop(self._again)
        else:
            self._fresh.popleft()
        return due

    def stop(self, error: BaseException) -> None:
        """Let nothing more leave; the first reason counts."""
        self.error = self.error or error

    def received(self, due: Due, received: Received, settled: Settled, now: float) -> None:
        """Take in a reply, once it is in the journal."""
        self._ended(due.most - settled.usd)
        self.limits.give_back(due.n_tokens - settled.n_tokens, now)
        self.limits.learn(received.headers, now)
        self.n_received += 1
        self._refuse_alike()
        due.n_unreadable += settled.problem is not None
        if settled.problem is None:
            self.finished.append(due.key)
        elif settled.declined or due.n_unreadable > self.retries.unreadable:
            self._refuse(due, settled.problem)
        else:
            self._ask_again(due, now)

    def lost(self, due: Due, lost: Lost, now: float) -> None:
        """Take in a request that left and got no reply: it keeps its worst case."""
        self._ended(Fraction(0))
        self._fail(due, lost.why, now, self.retries.wait(due.n_failures, self.rng))

    def failed(self, due: Due, failed: Failed, now: float) -> None:
        """Take in a request that was not billed."""
        self._ended(due.most)
        self.limits.give_back(due.n_tokens, now)
        self.limits.learn(failed.headers, now)
        if failed.code in self.fatal.codes or failed.status in self.fatal.statuses:
            self.stop(SellerError(f"the endpoint refuses: {failed.why}; nothing is lost: put it right, then run again"))
        elif failed.status is None or failed.status in BUSY or (failed.status >= 500 and failed.status != NOT_THERE):
            self._busy(due, failed, now)
        elif self.n_received:
            self._refuse(due, failed.why)
        else:
            self._fail_for_good(due, failed.why)

    def take_in(self, due: Due, exchange: Exchange, settled: Settled | None, now: float) -> None:
        """Take in what came of a request; ``settled`` comes with a reply."""
        if isinstance(exchange, Received):
            assert settled is not None
            self.received(due, exchange, settled, now)
        elif isinstance(exchange, Failed):
            self.failed(due, exchange, now)
        else:
            self.lost(due, exchange, now)

    def _ended(self, unneeded: Fraction) -> None:
        self.n_under_way -= 1
        if unneeded:
            self.allowance.give_back(unneeded)

    def _busy(self, due: Due, failed: Failed, now: float) -> None:
        """Wait as long as the endpoint asks for; where it asks for nothing, longer each time. All wait for a limit together."""
        asked = retry_after(failed.headers, self.wall())
        wait = max(self.retries.wait(due.n_failures, self.rng), asked or 0.0)
        if failed.status == 429:
            if asked is None:
                wait = max(wait, self._reset(failed))
            self.limits.pause(wait, now)
        if failed.status in (None, 429) and due.n_received_before not in (-1, self.n_received):
            due.n_failures = 0  # neither is about this row, and others got through
        if self._fail(due, failed.why, now, wait):
            self._tell_wait(wait, now, failed.why)

    def _reset(self, failed: Failed) -> float:
        """Return the seconds until the limit of a 429 resets, as its headers say; 0 where they say nothing."""
        left = [name for name in ("requests", "tokens") if failed.headers.get(f"x-ratelimit-remaining-{name}") == "0"]
        return max((seconds_of(failed.headers.get(f"x-ratelimit-reset-{name}")) or 0.0 for name in left), default=0.0)

    def _fail(self, due: Due, why: str, now: float, wait: float) -> bool:
        """Ask a question again after ``wait`` seconds; return whether it may be asked again."""
        due.n_failures += 1
        due.n_received_before = self.n_received
        if due.n_failures > self.retries.failures:
            self._fail_for_good(due, f"{why} ({due.n_failures} times)")
            return False
        self._ask_again(due, now, wait)
        return True

    def _fail_for_good(self, due: Due, why: str) -> None:
        """Refuse the row, unless the endpoint has nothing but refusals: then it is the reason."""
        self._failed_alike.append((due, why))
        if len(self._failed_alike) >= N_ALIKE:
            self._give_up()

    def _give_up(self) -> None:
        n, why = len(self._failed_alike), self._failed_alike[-1][1]
        rows = "every request" if n > 1 else "the request"
        self.stop(SellerError(f"the endpoint fails {rows} of the last {n}: {why}; nothing is lost: run again later"))

    def _refuse(self, due: Due, why: str) -> None:
        self.refused[due.key] = why
        self.finished.append(due.key)

    def _refuse_alike(self) -> None:
        """Refuse the rows whose requests failed: others are answered."""
        for due, why in self._failed_alike:
            self._refuse(due, why)
        self._failed_alike.clear()

    def _end(self) -> None:
        """Nothing is left: what failed is refused where anything was answered, or the server spoke of the request itself."""
        if self._failed_alike and not self.n_received and any(due.n_failures for due, _ in self._failed_alike):
            self._give_up()
        else:
            self._refuse_alike()

    def _ask_again(self, due: Due, now: float, wait: float = 0.0) -> None:
        heapq.heappush(self._again, (now + wait, next(self._numbers), due))

    def _tell_wait(self, seconds: float, now: float, why: str = "") -> None:
        """Tell of a long wait, once for all that wait."""
        if seconds < LONG_WAIT or now + seconds < self._told_until + LONG_WAIT:
            return
        self._told_until = now + seconds
        reason = f" ({why})" if why else ""
        self.tell(f"the endpoint asks to wait {duration(seconds)}{reason}; nothing is lost meanwhile")
