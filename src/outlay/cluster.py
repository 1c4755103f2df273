"""Jobs on the machines of a Ray cluster (Moritz et al. 2018; https://docs.ray.io).

A worker keeps its GPU and what it has loaded from job to job, and gets the next job as soon as it is done with one. It reads this
process's version of `outlay`, sent with the connection; torch and the other libraries must be installed on every machine. The
folder that the work reads is looked for at the same path on each machine; where it is not there, or holds something else, it is
sent through Ray's object store, once, and unpacked in the machine's temporary folder until the work ends. Only this process hands
results on, so nothing else is shared.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import outlay
from outlay.errors import ClusterError, OutlayError, UnknownModel, UsageError
from outlay.locks import acquire, release
from outlay.modelref import checkpoint_files, fingerprint

P = TypeVar("P")
R = TypeVar("R")

ADDRESS = re.compile(r"auto|local|(ray://)?[^\s/]+:\d+")

N_TRIES = 3
_PIECE_BYTES = 2**28
"""A file is sent in pieces of this size, so that a model need not fit into the object store's memory in one piece."""

_CLEANING_SECONDS = 10.0
_KNOCK_SECONDS = 5.0


def check_address(address: str) -> None:
    """Refuse what is no address of a cluster.

    Raises:
        UsageError: neither ``auto`` nor ``local`` nor HOST:PORT nor ray://HOST:PORT.
    """
    if ADDRESS.fullmatch(address) is None:
        raise UsageError(f"--ray is {address!r}; it must be auto, local, HOST:PORT or ray://HOST:PORT")


class Cluster:
    """The workers of a Ray cluster: one per GPU where it has GPUs, else one per ``threads`` CPUs of a machine.

    ``address``: ``auto`` (the cluster that this machine belongs to), ``local`` (one of this machine alone, started and ended with
    the work), HOST:PORT or ray://HOST:PORT. Where this program is connected to a cluster already, that one is used.
    """

    def __init__(self, address: str, threads: int) -> None:
        check_address(address)
        self._address = address
        self._threads = threads

    def run(
        self, work: Callable[[Path, P], R], jobs: Iterable[tuple[str, P]], folder: Path
    ) -> Generator[tuple[str, R], None, None]:
        """See `outlay.executor.Executor`. ``folder`` holds a model.

        Raises:
            UsageError: Ray is not installed, or no machine has enough CPUs.
            ClusterError: no cluster answers, or a job failed three times.
            OutlayError: as ``work`` raised it; such a job is not tried again.
        """
        needed = _Folder(folder.absolute(), fingerprint(str(folder)))
        with _connected(self._address) as ray:
            yield from _Run(ray, self._address, self._threads, work, needed).all(jobs)


@dataclass(frozen=True, slots=True)
class _Folder:
    """What the work reads: ``path`` here, ``sha256`` of its files, and the files in pieces where they have been sent."""

    path: Path
    sha256: str
    files: tuple[tuple[str, list[Any]], ...] | None = None

    @property
    def unpacked(self) -> Path:
        """Where it lies on a machine that it was sent to."""
        return Path(tempfile.gettempdir()) / f"outlay-{os.getuid()}-{self.sha256[:16]}" / "folder"

    def is_at(self, place: Path) -> bool:
        """Whether it lies there, byte for byte."""
        try:
            return fingerprint(str(place)) == self.sha256
        except (OSError, UnknownModel):
            return False

    def find(self) -> Path | None:
        """Where it lies on this machine; ``None`` where it must be sent first."""
        places = (self.path, self.unpacked)
        found = next((place for place in places if self.is_at(place)), None)
        return self._unpack() if found is None and self.files is not None else found

    def _unpack(self) -> Path:
        """Put the pieces together; the workers of one machine do it once."""
        import ray

        assert self.files is not None
        place = self.unpacked
        lock = acquire(place.parent, None, 0.2)
        try:
            if not self.is_at(place):
                new = place.with_name("new")
                for folder in (new, place):
                    shutil.rmtree(folder, ignore_errors=True)
                new.mkdir(mode=0o700)
                for name, pieces in self.files:
                    with (new / name).open("wb") as file:
                        for piece in pieces:
                            file.write(ray.get(piece))
                new.rename(place)
        finally:
            release(lock, place.parent, remove=False)
        return place


@dataclass(frozen=True, slots=True)
class _Reply:
    """What a worker answers: the result, an error that another try would not mend, or that it lacks the folder.

    ``unpacked_on``: the machine, where the folder had to be unpacked.
    """

    kind: Literal["made", "refused", "lacks"]
    value: Any = None
    unpacked_on: str | None = None


class _Worker:
    """A process of the cluster, an actor in Ray's words.

    Tasks would not do: on GPUs Ray starts a process for each, or hands a process that is kept another GPU than it has opened.
    """

    def ready(self) -> None:
        """Say that it has found its place."""

    def do(self, work: Callable[[Path, Any], Any], payload: Any, folder: _Folder) -> _Reply:
        """One job."""
        import ray

        place = folder.find()
        if place is None:
            return _Reply("lacks")
        node = ray.get_runtime_context().get_node_id() if place == folder.unpacked else None
        try:
            return _Reply("made", work(place, payload), node)
        except OutlayError as error:
            return _Reply("refused", error, node)


def _clean(folder: _Folder) -> None:
    """Remove what was unpacked, on its machine."""
    shutil.rmtree(folder.unpacked.parent, ignore_errors=True)


_Job = tuple[str, Any]


@dataclass(slots=True)
class _Run:
    """Jobs of one piece of work on a cluster.

    ``waiting``: by Ray's reference to the reply, the worker and its job, ``None`` while it has yet to find its place; ``again``:
    jobs to be tried again; ``n_tries``: failed ones, by name.
    """

    ray: Any
    address: str
    threads: int
    work: Callable[[Path, Any], Any]
    folder: _Folder
    waiting: dict[Any, tuple[Any, _Job | None]] = field(default_factory=dict)
    again: list[_Job] = field(default_factory=list)
    n_tries: Counter[str] = field(default_factory=Counter)
    unpacked_on: set[str] = field(default_factory=set)

    def all(self, jobs: Iterable[_Job]) -> Generator[_Job, None, None]:
        """As they are done.

        A worker without a job is ended, so that one that replaces a lost one finds a place. Jobs are tried again here and not by
        Ray, which would take a job that kills its worker for a fault of the machine, and tells of each try on standard output.
        """
        resources, n_workers = self._workers()
        jobs = iter(jobs)
        first = list(islice(jobs, n_workers))
        left = chain(first, jobs)
        start = self.ray.remote(**resources)(_Worker).remote
        work = self.ray.put(self.work)
        try:
            for _ in first:
                self._await_start(start())
            while self.waiting:
                [done], _ = self.ray.wait(list(self.waiting), num_returns=1)
                worker, job = self.waiting[done]
                reply, is_alive = self._reply(done, job)
                del self.waiting[done]
                if not is_alive:
                    self._await_start(start())
                elif (following := self.again.pop() if self.again else next(left, None)) is not None:
                    self.waiting[worker.do.remote(work, following[1], self.folder)] = (worker, following)
                else:
                    self.ray.kill(worker)
                if job is not None and reply is not None:
                    yield job[0], reply.value
        finally:
            self._end()

    def _await_start(self, worker: Any) -> None:
        self.waiting[worker.ready.remote()] = (worker, None)

    def _workers(self) -> tuple[dict[str, float], int]:
        """What one worker takes, and how many there are room for at this moment.

        Raises:
            UsageError: no machine has so many CPUs.
        """
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        n_gpus = sum(int(each.get("GPU", 0)) for each in machines)
        if n_gpus:
            return {"num_gpus": 1, "num_cpus": 0}, n_gpus
        cpus = [int(each.get("CPU", 0)) for each in machines]
        n_workers = sum(n // self.threads for n in cpus)
        if not n_workers:
            raise UsageError(
                f"--threads is {self.threads}, and the largest machine of the Ray cluster at {self.address} has "
                f"{max(cpus, default=0)} CPUs; ask for fewer threads"
            )
        return {"num_cpus": self.threads}, n_workers

    def _reply(self, done: Any, job: _Job | None) -> tuple[_Reply | None, bool]:
        """The result of a job, if this is one, and whether its worker can take another."""
        try:
            reply: _Reply | None = self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            self._note_failure(job, error)
            return None, isinstance(error, self.ray.exceptions.RayTaskError)
        if reply is None:
            return None, True
        if reply.unpacked_on is not None:
            self.unpacked_on.add(reply.unpacked_on)
        if reply.kind == "refused":
            raise reply.value
        if reply.kind == "lacks" and job is not None:
            self._send_folder()
            self.again.append(job)
            return None, True
        return reply, True

    def _note_failure(self, job: _Job | None, error: Exception) -> None:
        """Try it again.

        Raises:
            ClusterError: it has been tried often enough.
        """
        name = "the start of a worker" if job is None else job[0]
        self.n_tries[name] += 1
        if self.n_tries[name] == N_TRIES:
            cause = getattr(error, "cause", None) or error
            why = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
            raise ClusterError(
                f"{name} could not be done on the Ray cluster at {self.address} in {N_TRIES} tries, the last one "
                f"ended with {type(cause).__name__} ({why}); what is done is kept, run the command again, or without --ray"
            ) from error
        if job is not None:
            self.again.append(job)

    def _send_folder(self) -> None:
        """Into the object store, once."""
        if self.folder.files is None:
            files = tuple(
                (path.name, [self.ray.put(piece) for piece in _pieces(path)])
                for path in checkpoint_files(self.folder.path)
            )
            self.folder = replace(self.folder, files=files)

    def _end(self) -> None:
        """Stop what is under way, and remove what was unpacked."""
        for worker, _ in self.waiting.values():
            with suppress(Exception):
                self.ray.kill(worker)
        if self.unpacked_on:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            clean = self.ray.remote(num_cpus=0)(_clean)
            there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in sorted(self.unpacked_on)]
            sent = [
                clean.options(scheduling_strategy=each).remote(_Folder(self.folder.path, self.folder.sha256))
                for each in there
            ]
            self.ray.wait(sent, num_returns=len(sent), timeout=_CLEANING_SECONDS)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster until the end."""
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray, which is not installed; pip install 'outlay[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    _knock(address)
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
        # Ray tells of lost workers on standard output, which belongs to the result.
        with redirect_stdout(sys.stderr):
            yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Whether anything listens at HOST:PORT: Ray itself would try for minutes.

    Raises:
        ClusterError: nothing does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, why: str) -> ClusterError:
    said = " ".join(why.split()) or "it did not say why"
    return ClusterError(f"no Ray cluster answers at {address!r} ({said}); start one with `ray start --head`")
