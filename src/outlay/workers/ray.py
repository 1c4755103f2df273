"""A worker pool on the machines of a Ray cluster (Moritz et al. 2018; https://docs.ray.io), and the connection to one.

A worker is a Ray actor, with its GPU or its CPUs for as long as it lives. Ray's tasks do not serve: on GPUs Ray starts a process
for each, or gives a process that is kept another GPU than it has opened. Workers read this process's version of `outlay`,
sent with the connection; torch and the other libraries must be installed on every machine. Ray's own retries are off: it
would take a task that kills its worker for a fault of the machine, and prints each try on standard output.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import outlay
from outlay.errors import ClusterError, UsageError
from outlay.library_warnings import hide_deprecations
from outlay.workers.pool import Reply, TaskResult, WorkerFactory, WorkerFn, attempt, fit_to_send, thread_variables

ADDRESS = re.compile(r"auto|local|(ray://)?[^\s/]+:\d+")

_CONNECT_SECONDS = 5.0


def check_address(address: str) -> None:
    """Refuse what is no address of a cluster.

    Raises:
        UsageError: neither ``auto`` nor ``local`` nor HOST:PORT nor ray://HOST:PORT.
    """
    if ADDRESS.fullmatch(address) is None:
        raise UsageError(f"--ray is {address!r}; it must be auto, local, HOST:PORT or ray://HOST:PORT")


def workers_of(machines: Sequence[Mapping[str, float]], threads: int) -> tuple[dict[str, float], int]:
    """Return the resources of one worker, and the number of workers that fit on machines with these resources
    (``CPU``, ``GPU``): one per GPU where there are GPUs, else one per ``threads`` CPUs.

    Raises:
        UsageError: no machine has so many CPUs.
    """
    n_gpus = sum(int(each.get("GPU", 0)) for each in machines)
    if n_gpus:
        return {"num_gpus": 1, "num_cpus": 0}, n_gpus
    cpus = [int(each.get("CPU", 0)) for each in machines]
    n_workers = sum(n // threads for n in cpus)
    if not n_workers:
        raise UsageError(
            f"--threads is {threads}, and the largest machine of the Ray cluster has {max(cpus, default=0)} CPUs; "
            "ask for fewer threads"
        )
    return {"num_cpus": threads}, n_workers


class RayPool:
    """A pool of workers on a Ray cluster: one per GPU where the cluster has any, else one per ``threads`` CPUs.

    ``address``: ``auto`` (the cluster that this machine belongs to), ``local`` (one of this machine alone, started and ended with
    the pool), HOST:PORT or ray://HOST:PORT. Where this program is connected to a cluster already, that one is used. There are as
    many workers as fit on entering, at most ``max_workers``; each starts when it is needed. Progress is not reported.
    ``logs``: a folder of this machine for the tracebacks of errors that are not ours.

    Raises:
        UsageError: not an address, or a number out of range.
    """

    def __init__(
        self,
        factory: WorkerFactory,
        address: str,
        threads: int,
        *,
        max_workers: int | None = None,
        logs: Path | None = None,
    ) -> None:
        check_address(address)
        for name, value in (("threads", threads), ("workers", max_workers)):
            if value is not None and value < 1:
                raise UsageError(f"the number of {name} is {value}; it must be at least 1")
        self._factory = factory
        self._address = address
        self._threads = threads
        self._max_workers = max_workers
        self._logs = logs
        self._ray: Any = None
        self._start: Callable[[], Any] | None = None
        self._workers: list[Any] = []
        self._running: dict[Any, _Running] = {}  # by Ray's reference to the reply
        self._leaving = ExitStack()

    @property
    def n_workers(self) -> int:
        """See `outlay.workers.pool.WorkerPool`; none before entering and after leaving."""
        return len(self._workers)

    @property
    def n_free(self) -> int:
        """See `outlay.workers.pool.WorkerPool`."""
        return len(self._workers) - len(self._running)

    def submit(self, name: str, payload: Any) -> None:
        """See `outlay.workers.pool.WorkerPool`.

        Raises:
            RuntimeError: no worker is free.
            ClusterError: the cluster is gone.
        """
        if self._start is None or not self.n_free:
            raise RuntimeError(f"no worker is free for {name}; n_free says how many are")
        busy = {task.place for task in self._running.values()}
        free = [place for place in range(len(self._workers)) if place not in busy]
        place = next((each for each in free if self._workers[each] is not None), free[0])
        with self._as_cluster_errors():
            if self._workers[place] is None:
                self._workers[place] = self._start()
            reference = self._workers[place].do.remote([self._ray.put(payload)])
        self._running[reference] = _Running(name, place, time.monotonic())

    def wait(self, timeout_seconds: float | None = None) -> list[TaskResult]:
        """See `outlay.workers.pool.WorkerPool`."""
        if not self._running:
            return []
        with self._as_cluster_errors():
            references = list(self._running)
            done, _ = self._ray.wait(references, num_returns=1, timeout=timeout_seconds)
            if done:
                done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
            return [self._collect(each) for each in done]

    def progress(self) -> dict[str, tuple[int, int, str]]:
        """Return nothing: progress does not reach this process."""
        return {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._ray = ray = stack.enter_context(connected(self._address))
            stack.callback(self._end_all)
            with self._as_cluster_errors():
                machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                resources, room = workers_of(machines, self._threads)
                # Left alone, Ray allows as many threads as a worker takes CPUs, and one beside a GPU.
                own = {"env_vars": thread_variables(self._threads)}
                actor = ray.remote(**resources, max_restarts=0, max_task_retries=0, runtime_env=own)(_Worker)
                self._start = partial(actor.remote, [ray.put(self._factory)])
                self._workers = [None] * (room if self._max_workers is None else min(room, self._max_workers))
            self._leaving = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.close()

    def _collect(self, reference: Any) -> TaskResult:
        """Return the result of a task; then its worker is free, or gone."""
        task, errors = self._running[reference], self._ray.exceptions
        reply, lost, stays = None, None, False
        try:
            reply, stays = self._ray.get(reference)
        except (errors.RayTaskError, errors.RaySystemError) as error:  # the result cannot be sent
            reply = Reply.of(getattr(error, "cause", None) or error)
        except errors.LocalRayletDiedError:
            raise
        except errors.RayError as error:
            lost = Reply.of(error).failure
        del self._running[reference]
        if not stays:
            self._end(task.place)
        seconds = time.monotonic() - task.began
        return (
            TaskResult(task.name, seconds, lost=lost) if reply is None else reply.ended(task.name, seconds, self._logs)
        )

    def _end_all(self) -> None:
        """End all workers, whatever they run."""
        for place in range(len(self._workers)):
            self._end(place)
        self._start, self._workers, self._running = None, [], {}

    def _end(self, place: int) -> None:
        worker, self._workers[place] = self._workers[place], None
        if worker is not None:
            with suppress(Exception):  # it, or the whole cluster, may be gone
                self._ray.kill(worker)

    @contextmanager
    def _as_cluster_errors(self) -> Iterator[None]:
        """Turn errors of Ray itself into a ClusterError."""
        try:
            yield
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            why = Reply.of(error).failure
            raise ClusterError(
                f"the Ray cluster at {self._address} cannot be reached any more: {why}; run the command again when it is there"
            ) from error


class _Worker:
    """The Ray actor. Factory and payloads come as references in a list, so that one that cannot be unpickled does not end it."""

    def __init__(self, factory: list[Any]) -> None:
        import ray

        hide_deprecations()

        def set_up() -> WorkerFn:
            made: WorkerFactory = ray.get(factory[0])
            return made()

        self._made = attempt(set_up)

    def do(self, payload: list[Any]) -> tuple[Reply, bool]:
        """Return the reply, and whether the worker can take other work."""
        import ray

        made = self._made
        if made.error is not None or made.failure is not None:
            return fit_to_send(made), False
        reply = fit_to_send(attempt(lambda: made.value(ray.get(payload[0]), lambda *_: None)))
        return reply, reply.failure is None


@dataclass(frozen=True, slots=True)
class _Running:
    """A running task: its name, its worker's index, the time it was submitted."""

    name: str
    place: int
    began: float


# --- the connection -------------------------------------------------------------------------------------------------


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected to a cluster until the end."""
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray, which is not installed; pip install 'outlay[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    _check_listening(address)
    if address == "local":
        check_interpreter(sys.executable)
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"py_modules": [str(Path(outlay.__file__).parent)]},
            **own,
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unreachable(address, str(error).partition(". ")[0]) from error
    try:
        # Ray reports lost workers on standard output, which belongs to the result.
        with redirect_stdout(sys.stderr):
            yield ray
    finally:
        ray.shutdown()


def check_interpreter(python: str) -> None:
    """Refuse a Python that Ray cannot start workers with: it hands the path to a shell as it is, and tries for ever.

    Raises:
        UsageError: there is a blank in the path.
    """
    if python.split() != [python]:
        raise UsageError(
            f"Ray cannot start workers with {python!r}, a path with blanks; install outlay in a folder without any, leave "
            "Ray out, or name a cluster that runs"
        )


def _check_listening(address: str) -> None:
    """Raise ClusterError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, why: str) -> ClusterError:
    failure = " ".join(why.split()) or "it did not say why"
    return ClusterError(f"no Ray cluster answers at {address!r} ({failure}); start one with `ray start --head`")
