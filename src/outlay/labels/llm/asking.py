"""The loop of requests: threads that send what a schedule hands out, and keep the journal of it.

What was received is in the journal before it is used, whatever ends the loop: an error, Ctrl-C or a kill.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Protocol

from outlay.labels.allowance import Allowance
from outlay.labels.llm.journal import Attempt, Journal, silent
from outlay.labels.llm.limits import Limits
from outlay.labels.llm.schedule import DEFAULT_FATAL, Due, Fatal, Retries, Schedule, Settled
from outlay.labels.llm.wire import Exchange, Failed, Question, Received, Reply

GRACE_SECONDS = 10.0
"""Seconds that an interrupted loop waits for replies that are under way, since they are paid for."""
_LONGEST_SLEEP = 5.0


class Server(Protocol):
    """An endpoint, or what stands for one in a test."""

    def exchange(self, question: Question, key: str) -> Exchange:
        """Send a question once, and return what came of it."""


class Clock:
    """The time: ``now`` on a clock that never goes back, ``wall`` since 1970, and how to wait."""

    def now(self) -> float:
        """Return seconds on a clock that never goes back."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since 1970."""
        return time.time()

    def wait(self, changed: Condition, seconds: float) -> None:
        """Wait so long, or until something changes; the lock is held."""
        changed.wait(min(seconds, _LONGEST_SLEEP))

    def sleep(self, seconds: float) -> None:
        """Wait so long."""
        time.sleep(seconds)


@dataclass
class Asking:
    """Asks questions of one endpoint for one order, as many at once as ``concurrency`` says.

    ``appraise`` says what a received reply is worth. ``tell`` is told of long waits in one line. ``fatal``: errors after which
    nothing more leaves.
    """

    endpoint: Server
    journal: Journal
    order: str
    limits: Limits
    appraise: Callable[[Attempt, Question, Reply], Settled]
    concurrency: int = 8
    retries: Retries = field(default_factory=Retries)
    tell: Callable[[str], None] = silent
    clock: Clock = field(default_factory=Clock)
    rng: random.Random = field(default_factory=random.Random)
    fatal: Fatal = DEFAULT_FATAL
    _changed: Condition = field(default_factory=Condition)
    _n_ended: int = 0

    def ask(
        self, questions: Sequence[Due], allowance: Allowance, n_received: int, report: Callable[[Schedule], None]
    ) -> Schedule:
        """Ask until nothing is left, the money has ended or the endpoint refuses; return the schedule with what came of it.

        ``n_received``: replies that questions of the order got before. ``report`` is called whenever something came; what it
        raises ends the loop, and is raised once the requests under way have ended.

        Raises:
            SellerError: the endpoint refuses all that it is asked.
            StoreError: the journal cannot be written.
        """
        schedule = Schedule(
            questions,
            self.limits,
            allowance,
            self.retries,
            self.rng,
            self.tell,
            self.clock.wall,
            self.fatal,
            n_received=n_received,
        )
        n_threads = min(self.concurrency, len(questions))
        # Daemons, so that a process whose main thread ends does not wait for a slow endpoint.
        threads = [Thread(target=self._work, args=(schedule,), name=f"ask-{i}", daemon=True) for i in range(n_threads)]
        try:
            for thread in threads:
                thread.start()
            self._watch(threads, schedule, report)
        except BaseException as error:
            with self._changed:
                schedule.stop(error)
                self._changed.notify_all()
            self._join(threads)
            raise
        if schedule.error is not None:
            raise schedule.error
        return schedule

    def _watch(self, threads: Sequence[Thread], schedule: Schedule, report: Callable[[Schedule], None]) -> None:
        """Report what has come until every thread has ended."""
        seen = 0
        while any(thread.is_alive() for thread in threads):
            with self._changed:
                if self._n_ended == seen:
                    self._changed.wait(0.1)
                came, seen = self._n_ended != seen, self._n_ended
            if came:
                report(schedule)
        report(schedule)

    def _join(self, threads: Sequence[Thread]) -> None:
        until = time.monotonic() + GRACE_SECONDS
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    def _work(self, schedule: Schedule) -> None:
        """Send one request after the other, in one of the threads."""
        try:
            while (due := self._next(schedule)) is not None:
                exchange, settled = self._send(due)
                with self._changed:
                    schedule.take_in(due, exchange, settled, self.clock.now())
                    self._n_ended += 1
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                schedule.stop(error)
                self._changed.notify_all()

    def _next(self, schedule: Schedule) -> Due | None:
        with self._changed:
            while isinstance(found := schedule.next(self.clock.now()), float):
                self.clock.wait(self._changed, found)
            if found is None:
                self._changed.notify_all()
            return found

    def _send(self, due: Due) -> tuple[Exchange, Settled | None]:
        """Send one request, and write down that it leaves and what came of it, each before going on."""
        question = due.question
        attempt = self.journal.send(due.key, self.order, question.row, question.most)
        exchange = self.endpoint.exchange(question, due.key)
        if isinstance(exchange, Received):
            reply = self.journal.receive(attempt, exchange)
            return exchange, self.appraise(attempt, question, reply)
        if isinstance(exchange, Failed):
            self.journal.fail(attempt, exchange)
        else:
            self.journal.lose(attempt, exchange.why)
        return exchange, None
