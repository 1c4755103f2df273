"""Workers that do pieces of work handed to them one by one: the one interface behind which a study runs here or on a cluster.

What a crew's workers do is a `WorkerFactory`: a picklable maker of the function that does the work, called once in each
worker, so that what is dear to set up (data, models) is set up once. A crew hands out, notices workers that are gone, and
reports; who does what next, and what is tried again, is decided by whoever hands out.

A worker that is lost is replaced before the next piece of work, and so is one whose craft failed, or whose work ended with an
error that is not `outlay`'s: a library may be left in a state (a GPU's, say) in which everything after it fails.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from outlay.errors import OutlayError, WorkFailed
from outlay.hardware.openmp import waiting_variables
from outlay.text.listener import Report

WorkerFn = Callable[[Any, Report], Any]
"""Payload and somebody to report to → result; both pickled between processes."""

WorkerFactory = Callable[[], WorkerFn]
"""Sets a worker up; picklable, so a module-level class or `functools.partial`, never a closure."""


N_TRIES = 3
"""How often a piece of work is handed out whose worker is lost each time."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""What OpenMP, the linear algebra libraries and tokenizers read when they are loaded."""


def thread_variables(threads: int) -> dict[str, str]:
    """What a worker's environment says of its threads, how many and how they wait, before it imports anything."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads)) | waiting_variables(os.environ)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a piece of work ended: with a ``value``, with an ``error`` that the work raised, or ``lost`` with its worker."""

    name: str
    seconds: float
    """Wall seconds since it was handed out."""
    value: Any = None
    error: OutlayError | None = None
    """As the work raised it; anything else that it raised is wrapped, with the place of the whole traceback."""
    lost: str | None = None
    """Why the worker is gone ("killed by signal 9"); a new one takes its place."""


class WorkerPool(Protocol):
    """A number of workers. Entering starts them, leaving ends them and what is under way."""

    @property
    def n_workers(self) -> int:
        """How many pieces of work can be under way."""
        ...

    @property
    def n_free(self) -> int:
        """How many more can be handed out at this moment."""
        ...

    def submit(self, name: str, payload: Any) -> None:
        """Hand a piece of work to a free worker. ``name`` is unique among those under way.

        Raises:
            RuntimeError: no worker is free.
        """
        ...

    def wait(self, timeout_seconds: float | None = None) -> list[TaskResult]:
        """Block until at least one piece of work has ended, or so long; in the order they ended.

        Nothing, and at once, where no work is under way.

        Raises:
            ClusterError: the place itself is gone.
        """
        ...

    def progress(self) -> dict[str, tuple[int, int, str]]:
        """What the pieces of work under way last reported, by name; nothing from where reports do not reach."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a piece of work: a ``value``, an ``error`` of ours, or what any other error ``said``, with its traceback."""

    value: Any = None
    error: OutlayError | None = None
    said: str | None = None
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Reply:
        """Of an error that is not ours: its type and first line."""
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        return cls(said=f"{type(error).__name__} ({first})", trace="".join(traceback.format_exception(error)))

    def ended(self, name: str, seconds: float, logs: Path | None) -> TaskResult:
        """For whoever handed the work out; the traceback of an error that is not ours is written to a file of ``logs``."""
        if self.said is None:
            return TaskResult(name, seconds, self.value, self.error)
        line = f"{name} failed with {self.said}"
        if logs is not None:
            with suppress(OSError):
                path = logs / f"failed-{re.sub(r'[^A-Za-z0-9.]+', '-', name)[:80]}.txt"
                logs.mkdir(parents=True, exist_ok=True)
                path.write_text(self.trace, encoding="utf-8")
                line = f"{line}; its traceback is in {path}"
        error = WorkFailed(line)
        error.add_note(self.trace)
        return TaskResult(name, seconds, error=error)


def attempt(do: Callable[[], Any]) -> Reply:
    """Do it; what it raises is in the reply."""
    try:
        return Reply(do())
    except OutlayError as error:
        return Reply(error=error)
    except (Exception, SystemExit) as error:
        return Reply.of(error)


def fit_to_send(reply: Reply) -> Reply:
    """The same; an error of ours that another process could not make again is told like any other error."""
    if reply.error is not None:
        try:
            ForkingPickler.loads(ForkingPickler.dumps(reply.error))
        except Exception:
            return Reply.of(reply.error)
    return reply


class InProcessPool:
    """A crew of one, in this process: work is done in `wait`, however long it takes.

    ``logs``: a folder for the tracebacks of errors that are not ours. ``on_report``: told of progress as it is made, since nobody
    asks for it while `wait` works.
    """

    def __init__(
        self, craft: WorkerFactory, *, logs: Path | None = None, on_report: Callable[[], None] | None = None
    ) -> None:
        self._craft = craft
        self._logs = logs
        self._on_report = on_report
        self._is_open = False
        self._work: WorkerFn | None = None
        self._waiting: tuple[str, Any, float] | None = None
        self._reported: tuple[int, int, str] | None = None

    @property
    def n_workers(self) -> int:
        """One."""
        return 1

    @property
    def n_free(self) -> int:
        """One, until work is handed out."""
        return int(self._is_open and self._waiting is None)

    def submit(self, name: str, payload: Any) -> None:
        """See `WorkerPool`."""
        if not self.n_free:
            raise RuntimeError(f"no worker is free for {name}; n_free says how many are")
        self._waiting = (name, payload, time.monotonic())

    def wait(self, timeout_seconds: float | None = None) -> list[TaskResult]:  # noqa: ARG002
        """See `WorkerPool`; the time is not watched."""
        if self._waiting is None:
            return []
        name, payload, began = self._waiting
        try:
            reply = attempt(lambda: self._made()(payload, self._hear))
        finally:
            self._waiting = self._reported = None
        if reply.said is not None:
            self._work = None
        return [reply.ended(name, time.monotonic() - began, self._logs)]

    def progress(self) -> dict[str, tuple[int, int, str]]:
        """See `WorkerPool`; of use to other threads."""
        waiting, reported = self._waiting, self._reported
        return {waiting[0]: reported} if waiting is not None and reported is not None else {}

    def __enter__(self) -> Self:
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        self._work = self._waiting = None

    def _made(self) -> WorkerFn:
        if self._work is None:
            self._work = self._craft()
        return self._work

    def _hear(self, n_done: int, n_total: int, words: str) -> None:
        self._reported = (n_done, n_total, words)
        if self._on_report is not None:
            self._on_report()
