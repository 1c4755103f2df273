"""A pool of worker processes on this machine, each with its own cores or its own GPU.

Workers that take all cores are pinned: two of two threads each on the same two cores take many times as long as one after the
other. A worker is a fresh process, not a fork: it has the environment's thread counts before it imports anything, and nothing
of what the driver has open.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Self

from outlay.errors import ClusterError, UsageError
from outlay.hardware.quota import core_numbers
from outlay.hardware.quota import usable_cores as n_usable_cores
from outlay.workers.pool import Reply, TaskResult, WorkerFactory, thread_variables
from outlay.workers.process import START, Replied

_PATIENCE_SECONDS = 2.0
"""Seconds between asking a worker to end and killing it."""

_LISTED = re.compile(r"^\s*(GPU|MIG) .*\(UUID: ([^)]+)\)")


# --- what a worker has to itself -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """The hardware of one worker: ``cores`` (``None``: any), ``gpu`` as ``CUDA_VISIBLE_DEVICES`` names it, ``threads``."""

    threads: int
    cores: tuple[int, ...] | None = None
    gpu: str | None = None

    def environment(self, outer: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of the process."""
        return {
            **outer,
            **thread_variables(self.threads),
            **({} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}),
        }


def worker_slots(
    n_workers: int, threads: int, cores: tuple[int, ...], gpus: tuple[str, ...] = ()
) -> tuple[WorkerSlot, ...]:
    """Divide the machine among workers: a GPU each where there are GPUs, else ``threads`` cores each.

    A single worker may have more threads than there are cores, and is then free to use them all.

    Raises:
        UsageError: fewer than one worker or thread, or more than the machine has room for.
    """
    for name, value in (("workers", n_workers), ("threads", threads)):
        if value < 1:
            raise UsageError(f"the number of {name} is {value}; it must be at least 1")
    if gpus:
        if n_workers > len(gpus):
            raise UsageError(
                f"{n_workers} workers need a GPU each, and this machine offers {len(gpus)}; ask for at most {len(gpus)}, "
                "or set CUDA_VISIBLE_DEVICES to nothing to work on the CPU"
            )
        return tuple(WorkerSlot(threads, gpu=gpu) for gpu in gpus[:n_workers])
    if not cores or (n_workers == 1 and threads > len(cores)):
        return (WorkerSlot(threads),) * n_workers
    if n_workers * threads > len(cores):
        room = max(len(cores) // threads, 1)
        each = f"{threads} thread{'s' * (threads > 1)} each"
        raise UsageError(
            f"{n_workers} workers of {each} need {n_workers * threads} cores, and this program may use "
            f"{len(cores)}; ask for at most {room} worker{'s' * (room > 1)}"
        )
    return tuple(WorkerSlot(threads, cores[i * threads : (i + 1) * threads]) for i in range(n_workers))


def n_workers_here(threads: int) -> int:
    """Return how many workers of so many threads fit: one per GPU where the machine has GPUs, else as the cores allow."""
    return max(1, len(usable_gpus(os.environ)) or len(usable_cores()) // threads)


def usable_cores() -> tuple[int, ...]:
    """Return the cores this process may use, as many as its container's quota; none on systems that do not tell."""
    return core_numbers()[: n_usable_cores()]


def usable_gpus(environment: Mapping[str, str], proc: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """Return the NVIDIA GPUs, or the parts into which they are divided, as ``CUDA_VISIBLE_DEVICES`` may name them.

    By that variable where it is set (everything after an invalid number is hidden, as CUDA has it), else by ``nvidia-smi -L``,
    else by the folders of the driver in ``proc``.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        entries = [entry.strip() for entry in named.split(",")]
        n_good = next((i for i, entry in enumerate(entries) if entry in ("", "-1")), len(entries))
        return tuple(entries[:n_good])
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is not None:
        with suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30)
            return _listed(listed.stdout) if listed.returncode == 0 else ()
    return tuple(str(i) for i, _ in enumerate(proc.iterdir())) if proc.is_dir() else ()


def _listed(text: str) -> tuple[str, ...]:
    """Return the UUIDs in the output of ``nvidia-smi -L``; a GPU that is divided is left out for its parts."""
    found: list[tuple[str, str]] = []
    for match in filter(None, map(_LISTED.match, text.splitlines())):
        kind, uuid = match.groups()
        if kind == "MIG" and found and found[-1][0] == "GPU":
            found.pop()
        found.append((kind, uuid))
    return tuple(uuid for _, uuid in found)


# --- the workers -----------------------------------------------------------------------------------------------------


class LocalPool:
    """A pool of ``n_workers`` processes of ``threads`` threads each; `worker_slots` says which cores or GPU each has.

    ``logs``: a folder for the output of workers (``worker-0.txt`` and so on) and for tracebacks of errors that are not ours;
    without it they print to this program's standard error.

    Raises:
        UsageError: more workers than the machine has cores or GPUs for.
    """

    def __init__(self, factory: WorkerFactory, n_workers: int, threads: int, *, logs: Path | None = None) -> None:
        slots = worker_slots(n_workers, threads, usable_cores(), usable_gpus(os.environ))
        # A quota is time on any core: the first ones may be those of every container on the host. And who leaves cores to others
        # must not insist on the first ones: a second study beside this one would do the same.
        is_quota = n_usable_cores() < len(core_numbers())
        is_pinned = not is_quota and n_workers * threads >= len(usable_cores())
        self._slots = slots if is_pinned else tuple(replace(slot, cores=None) for slot in slots)
        self._factory = bytes(ForkingPickler.dumps(factory))
        self._logs = logs
        self._workers: list[_Worker] = []

    @property
    def n_workers(self) -> int:
        """See `outlay.workers.pool.WorkerPool`."""
        return len(self._slots)

    @property
    def n_free(self) -> int:
        """See `outlay.workers.pool.WorkerPool`; none before entering and after leaving."""
        return sum(not worker.is_busy for worker in self._workers)

    def submit(self, name: str, payload: Any) -> None:
        """See `outlay.workers.pool.WorkerPool`.

        Raises:
            RuntimeError: no worker is free.
            ClusterError: a process cannot be started in place of a lost one.
        """
        worker = next((each for each in self._workers if not each.is_busy), None)
        if worker is None:
            raise RuntimeError(f"no worker is free for {name}; n_free says how many are")
        worker.submit(name, bytes(ForkingPickler.dumps(payload)))

    def wait(self, timeout_seconds: float | None = None) -> list[TaskResult]:
        """See `outlay.workers.pool.WorkerPool`."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while busy := self._busy():
            for worker in busy:
                worker.listen()
            done = sorted((worker for worker in busy if worker.has_ended), key=lambda worker: worker.ended_at)
            if done:
                return [worker.collect(self._logs) for worker in done]
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            wait_for_any([source for worker in busy for source in worker.sources], left)
        return []

    def progress(self) -> dict[str, tuple[int, int, str]]:
        """See `outlay.workers.pool.WorkerPool`."""
        busy = self._busy()
        for worker in busy:
            worker.listen()
        return {worker.name: worker.reported for worker in busy if worker.name and worker.reported is not None}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            workers = [_Worker(i, slot, self._factory, self._logs) for i, slot in enumerate(self._slots)]
            for worker in workers:
                stack.callback(worker.end)
                worker.start()
            stack.pop_all()
        self._workers = workers
        return self

    def __exit__(self, *_: object) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.ask_to_end()
        with ExitStack() as stack:  # every one of them, whatever happens on the way
            for worker in workers:
                stack.callback(worker.end)

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.is_busy]


class _Worker:
    """A worker slot, the process that runs in it, and the task it runs."""

    def __init__(self, number: int, slot: WorkerSlot, factory: bytes, logs: Path | None) -> None:
        self._number = number
        self._slot = slot
        self._factory = factory
        self._log = None if logs is None else logs / f"worker-{number}.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._sentinel: int | None = None
        self._replied: Replied | None = None
        self._lost: str | None = None
        self._began = 0.0
        self.name: str | None = None
        self.reported: tuple[int, int, str] | None = None
        self.ended_at = 0.0

    # --- what it is at

    @property
    def is_busy(self) -> bool:
        """Return whether a task runs, or its result has not been collected."""
        return self.name is not None

    @property
    def has_ended(self) -> bool:
        """Return whether the task has ended."""
        return self._replied is not None or self._lost is not None

    @property
    def sources(self) -> list[Any]:
        """Files that become readable on news of the worker: the pipe, and the process itself when it ends."""
        return [source for source in (self._connection, self._sentinel) if source is not None]

    def submit(self, name: str, payload: bytes) -> None:
        """Send a task to the worker, in a new process where the last one is gone."""
        if self._process is None or self._process.poll() is not None:
            self.end()
            self.start()
        self.name, self._began = name, time.monotonic()
        assert self._connection is not None
        with suppress(OSError):  # it has died since; `listen` will notice
            self._connection.send_bytes(payload)

    def listen(self) -> None:
        """Read the worker's messages, and notice its end; never blocks for long."""
        assert self._process is not None
        assert self._connection is not None
        if self.has_ended:
            return
        is_gone = self._process.poll() is not None  # first, so that all its messages are in the pipe
        try:
            while not self.has_ended and self._connection.poll():
                self._receive(self._connection.recv_bytes())
        except (EOFError, OSError):
            is_gone = True
        if is_gone and not self.has_ended:
            self._lost, self.ended_at = self._reason(), time.monotonic()

    def _receive(self, data: bytes) -> None:
        try:
            message: tuple[int, int, str] | Replied = ForkingPickler.loads(data)
        except Exception as error:  # a result that can be pickled there and not unpickled here
            message = Replied(Reply.of(error), time.monotonic(), is_last=False)
        if isinstance(message, Replied):
            self._replied, self.ended_at = message, message.at
        else:
            self.reported = message

    def collect(self, logs: Path | None) -> TaskResult:
        """Return the task's result; then the worker is free."""
        assert self.name is not None
        name, seconds, replied, lost = self.name, self.ended_at - self._began, self._replied, self._lost
        self.name = self.reported = self._replied = self._lost = None
        if replied is None or replied.is_last:
            self.end()
        return TaskResult(name, seconds, lost=lost) if replied is None else replied.reply.ended(name, seconds, logs)

    # --- the process

    def start(self) -> None:
        """Start the process, which sets itself up while this program goes on.

        Raises:
            ClusterError: the system refuses.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            options = {
                "path": [str(entry) for entry in sys.path],
                "pipe": theirs.fileno(),
                "parent": os.getpid(),
                "cores": self._slot.cores,
                # The kernel's signal comes with the end of the thread that starts a process, not of the program.
                "dies_by_signal": threading.current_thread() is threading.main_thread(),
            }
            try:
                self._process = self._popen([sys.executable, "-c", START, json.dumps(options)], theirs.fileno())
            except OSError as error:
                ours.close()
                raise ClusterError(f"worker {self._number} cannot be started ({error})") from error
        self._connection = Connection(ours.detach())
        if hasattr(os, "pidfd_open"):
            self._sentinel = os.pidfd_open(self._process.pid)
        with suppress(OSError):
            self._connection.send_bytes(self._factory)

    def _popen(self, command: list[str], pipe: int) -> subprocess.Popen[bytes]:
        with ExitStack() as stack:
            output = 2
            if self._log is not None:
                self._log.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(self._log.open("ab")).fileno()
            # Ctrl-C must not reach it before it ignores SIGINT; a signal blocked here is blocked there.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._slot.environment(os.environ),
                pass_fds=(pipe,),
            )

    def _reason(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its pipe and stayed"
        where = "" if self._log is None else f"; what it printed is in {self._log}"
        if code >= 0:
            return f"ended by itself with exit code {code}{where}"
        return f"killed by signal {-code} ({_signal_name(-code)}){where}"

    def ask_to_end(self) -> None:
        """Ask the process to end, without waiting for it."""
        if self._process is not None:
            self._process.terminate()

    def end(self) -> None:
        """End the process: asked once, killed soon after; gone when this returns."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        sentinel, self._sentinel = self._sentinel, None
        if process is not None:
            _end(process)
        if connection is not None:
            connection.close()
        if sentinel is not None:
            os.close(sentinel)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        with suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(_PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return "unknown"
    return f"{name}, as when memory runs out" if number == signal.SIGKILL else name
