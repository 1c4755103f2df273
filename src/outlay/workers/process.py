"""A worker process of `outlay.workers.local`: it runs tasks that come over a pipe, and ends with its parent.

Nothing but the standard library is imported before the factory is unpickled: by then cores and environment are set.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any

from outlay.library_warnings import hide_deprecations
from outlay.workers.pool import Reply, WorkerFactory, WorkerFn, attempt, fit_to_send

REPORT_SECONDS = 0.2
"""Least seconds between two reports of progress; the last one (all done) is always sent."""

_LOOK_SECONDS = 0.25
"""Seconds between two looks at whether the parent is still there."""

_PR_SET_PDEATHSIG = 1
"""The number of that operation in Linux's ``prctl(2)``."""

START = (
    "import json, sys; o = json.loads(sys.argv[1]); sys.path[:] = o.pop('path'); "
    "from outlay.workers.process import main; main(**o)"
)
"""Program that Python is told to run; its argument is a JSON object of ``path`` (``sys.path`` of the parent) and of
the parameters of `main`.
"""


@dataclass(frozen=True, slots=True)
class Replied:
    """End of a task, ``at`` this time of the machine's monotonic clock; ``is_last``: the worker takes no other."""

    reply: Reply
    at: float
    is_last: bool


def main(pipe: int, parent: int, cores: list[int] | None, dies_by_signal: bool) -> None:
    """Run tasks until the pipe closes.

    ``pipe``: the number of its open file; ``parent``: the process that started this one; ``cores``: to work on, ``None`` for
    any; ``dies_by_signal``: let the kernel end this process with the thread that started it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.set_inheritable(pipe, False)
    if dies_by_signal:
        _die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    if cores is not None:
        os.sched_setaffinity(0, cores)
    faulthandler.enable()
    hide_deprecations()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    connection = Connection(pipe)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, parent, inbox), daemon=True).start()
    WorkerLoop(connection).serve(inbox)


def _die_with_parent() -> None:
    """Let the kernel kill this process with its parent, on Linux; elsewhere `_listen` ends it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _listen(connection: Connection, parent: int, inbox: SimpleQueue[bytes]) -> None:
    """Receive payloads while the main thread works; end the process when the parent is gone."""
    while True:
        try:
            if connection.poll(_LOOK_SECONDS):
                inbox.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)
        if os.getppid() != parent:
            os._exit(1)


class WorkerLoop:
    """Worker loop: run tasks from the inbox until the pipe closes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._is_busy = False
        self._reported_at = 0.0
        self._room = select.poll()
        self._room.register(connection.fileno(), select.POLLOUT)

    def serve(self, inbox: SimpleQueue[bytes]) -> None:
        """Set up by the factory, which comes first, then run the task of each payload, until the process ends."""
        data = inbox.get()

        def set_up() -> WorkerFn:
            factory: WorkerFactory = ForkingPickler.loads(data)
            return factory()

        made = attempt(set_up)
        is_made = made.error is None and made.failure is None
        while True:
            payload = inbox.get()
            self._is_busy = True
            reply = fit_to_send(attempt(partial(self._do, made.value, payload)) if is_made else made)
            self._reply(reply, is_last=not is_made or reply.failure is not None)

    def _do(self, work: WorkerFn, payload: bytes) -> Any:
        return work(ForkingPickler.loads(payload), self.report)

    def report(self, n_done: int, n_total: int, words: str) -> None:
        """Send progress, unless the last report was just now, or earlier ones have not been read."""
        now = time.monotonic()
        if n_done < n_total and now - self._reported_at < REPORT_SECONDS:
            return
        with self._sending:
            if self._is_busy and self._room.poll(0):
                self._reported_at = now
                self._send(ForkingPickler.dumps((n_done, n_total, words)))

    def _reply(self, reply: Reply, *, is_last: bool) -> None:
        now = time.monotonic()
        try:
            data = ForkingPickler.dumps(Replied(reply, now, is_last))
        except Exception as error:
            data = ForkingPickler.dumps(Replied(Reply.of(error), now, is_last))
        with self._sending:
            self._is_busy = False
            self._send(data)

    def _send(self, data: Any) -> None:
        with suppress(OSError):  # nobody is there any more, and `_listen` ends the process
            self._connection.send_bytes(data)
