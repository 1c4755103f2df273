"""Worker pools: one interface behind which a study runs in this process, in others, or on a cluster.

A `WorkerFactory`, picklable, makes the function that runs tasks. It is called once in each worker, so that data and models
are set up once. A pool runs tasks, notices workers that are gone, and reports progress; the caller decides which task is
next, and which is tried again.

A worker that is lost is replaced before the next task, and so is one whose factory failed, or whose task ended with an error that
is not `outlay`'s: a library may be left in a state (a GPU's, say) in which every later task fails.
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
from typing import Any, Protocol, Self

from outlay.errors import OutlayError, WorkFailed
from outlay.hardware.openmp import waiting_variables
from outlay.text.listener import Report

WorkerFn = Callable[[Any, Report], Any]
"""Function of a worker: payload and progress callback → result; payload and result are pickled between processes."""

WorkerFactory = Callable[[], WorkerFn]
"""Factory of a worker's function; picklable, so a module-level class or `functools.partial`, never a closure."""


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
"""Variables by which OpenMP, linear algebra libraries and tokenizers choose their threads as they are loaded."""


def thread_variables(threads: int) -> dict[str, str]:
    """Return the variables of a worker's environment that set its threads and how they wait, before it imports anything."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads)) | waiting_variables(os.environ)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """End of a task: with a ``value``, with an ``error`` that it raised, or ``lost`` with its worker."""

    name: str
    seconds: float
    """Wall seconds since the task was submitted."""
    value: Any = None
    error: OutlayError | None = None
    """An error of ours as the task raised it; any other is wrapped, with the place of the whole traceback."""
    lost: str | None = None
    """Reason why the worker is gone ("killed by signal 9"); a new one takes its place."""


class WorkerPool(Protocol):
    """A pool of workers. Entering starts them, leaving ends them and the tasks that run."""

    @property
    def n_workers(self) -> int:
        """Return the number of tasks that can run at once."""
        ...

    @property
    def n_free(self) -> int:
        """Return the number of tasks that can be submitted now."""
        ...

    def submit(self, name: str, payload: Any) -> None:
        """Submit a task to a free worker. ``name`` is unique among running tasks.

        Raises:
            RuntimeError: no worker is free.
        """
        ...

    def wait(self, timeout_seconds: float | None = None) -> list[TaskResult]:
        """Wait until at least one task has ended, or the time is up; return ended tasks in the order they ended.

        Returns nothing, and at once, where no task runs.

        Raises:
            ClusterError: the cluster itself is gone.
        """
        ...

    def progress(self) -> dict[str, tuple[int, int, str]]:
        """Return the last progress of running tasks, by name; nothing where progress does not reach this process."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """Outcome of a task: a ``value``, an ``error`` of ours, or type and first line of another (``failure``) with its trace."""

    value: Any = None
    error: OutlayError | None = None
    failure: str | None = None
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Reply:
        """Build the reply of an error that is not ours: its type and first line."""
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        return cls(failure=f"{type(error).__name__} ({first})", trace="".join(traceback.format_exception(error)))

    def ended(self, name: str, seconds: float, logs: Path | None) -> TaskResult:
        """Return the task's result; the traceback of an error that is not ours is written to a file of ``logs``."""
        if self.failure is None:
            return TaskResult(name, seconds, self.value, self.error)
        line = f"{name} failed with {self.failure}"
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
    """Call a function; an error becomes a reply."""
    try:
        return Reply(do())
    except OutlayError as error:
        return Reply(error=error)
    except (Exception, SystemExit) as error:
        return Reply.of(error)


def fit_to_send(reply: Reply) -> Reply:
    """Return a reply that can be pickled: an error of ours that cannot becomes its type and first line."""
    if reply.error is not None:
        try:
            ForkingPickler.loads(ForkingPickler.dumps(reply.error))
        except Exception:
            return Reply.of(reply.error)
    return reply


class InProcessPool:
    """A pool of one worker in this process: a task runs in `wait`, however long it takes.

    ``logs``: a folder for the tracebacks of errors that are not ours. ``on_report``: told of progress as it is made, since nobody
    asks for it while `wait` works.
    """

    def __init__(
        self, factory: WorkerFactory, *, logs: Path | None = None, on_report: Callable[[], None] | None = None
    ) -> None:
        self._factory = factory
        self._logs = logs
        self._on_report = on_report
        self._is_open = False
        self._work: WorkerFn | None = None
        self._waiting: tuple[str, Any, float] | None = None
        self._reported: tuple[int, int, str] | None = None

    @property
    def n_workers(self) -> int:
        """One worker."""
        return 1

    @property
    def n_free(self) -> int:
        """One, until a task is submitted."""
        return int(self._is_open and self._waiting is None)

    def submit(self, name: str, payload: Any) -> None:
        """See `WorkerPool`."""
        if not self.n_free:
            raise RuntimeError(f"no worker is free for {name}; n_free says how many are")
        self._waiting = (name, payload, time.monotonic())

    def wait(self, timeout_seconds: float | None = None) -> list[TaskResult]:  # noqa: ARG002
        """See `WorkerPool`; the timeout is ignored."""
        if self._waiting is None:
            return []
        name, payload, began = self._waiting
        try:
            reply = attempt(lambda: self._made()(payload, self._keep_progress))
        finally:
            self._waiting = self._reported = None
        if reply.failure is not None:
            self._work = None
        return [reply.ended(name, time.monotonic() - began, self._logs)]

    def progress(self) -> dict[str, tuple[int, int, str]]:
        """See `WorkerPool`; meant for other threads."""
        waiting, reported = self._waiting, self._reported
        return {waiting[0]: reported} if waiting is not None and reported is not None else {}

    def __enter__(self) -> Self:
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        self._work = self._waiting = None

    def _made(self) -> WorkerFn:
        if self._work is None:
            self._work = self._factory()
        return self._work

    def _keep_progress(self, n_done: int, n_total: int, words: str) -> None:
        self._reported = (n_done, n_total, words)
        if self._on_report is not None:
            self._on_report()
