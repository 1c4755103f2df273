"""An endpoint that is simulated under a clock of its own: many requests at once, replies of uncertain length, faults, a bill."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from outlay.labels.allowance import Allowance
from outlay.labels.llm.limits import Limits
from outlay.labels.llm.schedule import DEFAULT_FATAL, Due, Fatal, Retries, Schedule, Settled
from outlay.labels.llm.wire import Exchange, Failed, Lost, Question, Received
from outlay.money.prices.tokens import TokenUsage

CENT = Fraction(1, 100)
Answers = Callable[[Due, int, float], tuple[float, Fraction, Exchange]]
"""(request, its number among those sent, time) -> seconds it takes, dollars that are billed, what comes of it."""


def due(name: str, most: Fraction, n_tokens: int = 100) -> Due:
    question = Question(name, 0, "/chat/completions", {"text": name}, TokenUsage(input=n_tokens))
    return Due(name, question, most)


OK = Received(200, b"{}", 0.1)


@dataclass
class Simulation:
    """Runs a schedule over simulated time: ``bill`` is the endpoint's own, ``at`` the times at which requests left."""

    dues: Sequence[Due]
    allowance: Allowance
    answers: Answers
    n_at_once: int = 32
    retries: Retries = field(default_factory=Retries)
    limits: Limits | None = None
    fatal: Fatal = DEFAULT_FATAL
    n_received: int = 0
    problem: str | None = None
    seed: int = 0
    now: float = 0.0
    bill: Fraction = Fraction(0)
    at: list[tuple[float, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def run(self) -> Schedule:
        schedule = Schedule(
            self.dues,
            self.limits or Limits(None, None, self.now),
            self.allowance,
            self.retries,
            random.Random(self.seed),
            self.told.append,
            lambda: self.now,
            self.fatal,
            n_received=self.n_received,
        )
        under_way: list[tuple[float, int, Due, Fraction, Exchange]] = []
        number = 0
        while True:
            found = schedule.next(self.now) if len(under_way) < self.n_at_once else math.inf
            if isinstance(found, Due):
                seconds, usd, exchange = self.answers(found, number, self.now)
                self.bill += usd
                self.at.append((self.now, found.key))
                heapq.heappush(under_way, (self.now + seconds, number, found, usd, exchange))
                number += 1
                continue
            until = math.inf if found is None else self.now + found
            if under_way and under_way[0][0] <= until:
                self.now, _, ended, usd, exchange = heapq.heappop(under_way)
                settled = Settled(usd, 10, self.problem) if isinstance(exchange, Received) else None
                schedule.take_in(ended, exchange, settled, self.now)
            elif found is None:
                return schedule
            else:
                assert until < math.inf, "it waits for nothing"
                self.now = until


def uncertain(rng: random.Random, faults: float = 0.0) -> Answers:
    """Replies that cost anything up to the worst case, some lost after the work, before it, or refused."""

    def answer(asked: Due, number: int, now: float) -> tuple[float, Fraction, Exchange]:
        seconds = rng.expovariate(1.0)
        usd = asked.most * Fraction(rng.randrange(0, 1001), 1000)
        drawn = rng.random()
        if drawn < faults / 3:
            return seconds, usd, Lost("connection lost")
        if drawn < 2 * faults / 3:
            return seconds, Fraction(0), Lost("connection lost")
        if drawn < faults:
            return seconds, Fraction(0), Failed("status 500", 500)
        return seconds, usd, OK

    return answer
