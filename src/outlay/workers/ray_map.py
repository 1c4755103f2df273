"""Map jobs that read one folder (a model, say) over the machines of a Ray cluster, with the pool of
`outlay.workers.ray`.

A worker keeps its GPU and what it has loaded from job to job, and gets the next job as soon as it is done with one. The folder
is looked for at the same path on each machine; where it is not there, or holds something else, it is sent through Ray's object
store, once, and unpacked in the machine's temporary folder until the work ends. Only this process hands results on, so nothing
else is shared.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from outlay.errors import ClusterError, OutlayError, UnknownModel, WorkFailed
from outlay.models.reference import checkpoint_files, folder_fingerprint
from outlay.storage.locks import acquire, release
from outlay.text.listener import Report
from outlay.workers.pool import N_TRIES, TaskResult, WorkerFn, WorkerPool
from outlay.workers.ray import RayPool, check_address, connected

P = TypeVar("P")
R = TypeVar("R")

_PIECE_BYTES = 2**28
"""Bytes of one piece of a file that is sent: a model need not fit into the object store's memory in one piece."""

_CLEANING_SECONDS = 10.0


def run_on_cluster(
    address: str, threads: int, work: Callable[[Path, P], R], jobs: Iterable[tuple[str, P]], folder: Path
) -> Generator[tuple[str, R], None, None]:
    """Yield each job's name and ``work(folder, payload)`` as soon as it is done, in any order, as `RayPool` has workers.

    Closing the generator ends running jobs. ``work``, payloads and results can be pickled; ``folder`` holds a model, and ``work``
    gets it, or a copy of it on another machine.

    Raises:
        UsageError: Ray is not installed, or no machine has enough CPUs.
        ClusterError: no cluster answers, or a job failed three times.
        OutlayError: as ``work`` raised it; such a job is not tried again.
    """
    check_address(address)
    needed = _Folder(folder.absolute(), folder_fingerprint(folder))
    with connected(address) as ray:
        yield from _Run(ray, address, threads, work, needed).all(jobs)


@dataclass(frozen=True, slots=True)
class _Folder:
    """The folder that jobs read: ``path`` here, ``sha256`` of its files, and their pieces where they have been sent."""

    path: Path
    sha256: str
    files: tuple[tuple[str, list[Any]], ...] | None = None

    @property
    def unpacked(self) -> Path:
        """Folder where a sent copy lies on a machine."""
        return Path(tempfile.gettempdir()) / f"outlay-{os.getuid()}-{self.sha256[:16]}" / "folder"

    def is_at(self, place: Path) -> bool:
        """Return whether it lies there, byte for byte."""
        try:
            return folder_fingerprint(place) == self.sha256
        except (OSError, UnknownModel):
            return False

    def find(self) -> Path | None:
        """Return the folder's path on this machine; ``None`` where it must be sent first."""
        places = (self.path, self.unpacked)
        found = next((place for place in places if self.is_at(place)), None)
        return self._unpack() if found is None and self.files is not None else found

    def _unpack(self) -> Path:
        """Unpack the pieces; the workers of one machine do it once."""
        import ray

        assert self.files is not None
        place = self.unpacked
        lock = acquire(place.parent)
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
    """Reply of a worker: the result, an error that another try would not mend, or that it lacks the folder."""

    kind: Literal["made", "refused", "lacks"]
    value: Any = None
    unpacked_on: str | None = None  # the machine, where the folder had to be unpacked


@dataclass(frozen=True, slots=True)
class _FolderJobs:
    """Worker factory of jobs that read a folder."""

    work: Callable[[Path, Any], Any]

    def __call__(self) -> WorkerFn:
        return self.do

    def do(self, payload: tuple[_Folder, Any], report: Report) -> _Reply:  # noqa: ARG002
        """Run one job."""
        import ray

        folder, job = payload
        place = folder.find()
        if place is None:
            return _Reply("lacks")
        node = ray.get_runtime_context().get_node_id() if place == folder.unpacked else None
        try:
            return _Reply("made", self.work(place, job), node)
        except OutlayError as error:
            return _Reply("refused", error, node)


def _clean(folder: _Folder) -> None:
    """Remove the unpacked folder on its machine."""
    shutil.rmtree(folder.unpacked.parent, ignore_errors=True)


_Job = tuple[str, Any]


@dataclass(slots=True)
class _Run:
    """One call of `run_on_cluster`: its jobs and their tries."""

    ray: Any
    address: str
    threads: int
    work: Callable[[Path, Any], Any]
    folder: _Folder
    running: dict[str, _Job] = field(default_factory=dict)
    retries: list[_Job] = field(default_factory=list)
    n_failed: Counter[str] = field(default_factory=Counter)  # tries, by job
    unpacked_on: set[str] = field(default_factory=set)

    def all(self, jobs: Iterable[_Job]) -> Generator[_Job, None, None]:
        """Yield jobs with their results as they are done."""
        left = iter(jobs)
        try:
            with RayPool(_FolderJobs(self.work), self.address, self.threads) as pool:
                self._submit_jobs(pool, left)
                while ended := pool.wait():
                    for each in ended:
                        reply = self._reply(each)
                        self._submit_jobs(pool, left)
                        if reply is not None:
                            yield each.name, reply.value
        finally:
            self._end()

    def _submit_jobs(self, pool: WorkerPool, left: Iterator[_Job]) -> None:
        while pool.n_free and (job := self.retries.pop() if self.retries else next(left, None)) is not None:
            name, payload = job
            self.running[name] = job
            pool.submit(name, (self.folder, payload))

    def _reply(self, ended: TaskResult) -> _Reply | None:
        """Return the result of a job; ``None`` where it is to be tried again."""
        job = self.running.pop(ended.name)
        if ended.lost is not None or isinstance(ended.error, WorkFailed):
            self._note_failure(ended)
            self.retries.append(job)
            return None
        if ended.error is not None:
            raise ended.error
        reply: _Reply = ended.value
        if reply.unpacked_on is not None:
            self.unpacked_on.add(reply.unpacked_on)
        if reply.kind == "refused":
            raise reply.value
        if reply.kind == "lacks":
            self._send_folder()
            self.retries.append(job)
            return None
        return reply

    def _note_failure(self, ended: TaskResult) -> None:
        self.n_failed[ended.name] += 1
        if self.n_failed[ended.name] == N_TRIES:
            why = f"its worker was lost, {ended.lost}" if ended.lost is not None else str(ended.error)
            raise ClusterError(
                f"{ended.name} could not be done on the Ray cluster at {self.address} in {N_TRIES} tries; of the last one: "
                f"{why}; what is done is kept, run the command again, or without --ray"
            ) from ended.error

    def _send_folder(self) -> None:
        """Put the folder into the object store, once."""
        if self.folder.files is None:
            files = tuple(
                (path.name, [self.ray.put(piece) for piece in _pieces(path)])
                for path in checkpoint_files(self.folder.path)
            )
            self.folder = replace(self.folder, files=files)

    def _end(self) -> None:
        """Remove unpacked folders on all machines."""
        if self.unpacked_on:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            clean, folder = self.ray.remote(num_cpus=0)(_clean), replace(self.folder, files=None)
            there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in sorted(self.unpacked_on)]
            sent = [clean.options(scheduling_strategy=each).remote(folder) for each in there]
            self.ray.wait(sent, num_returns=len(sent), timeout=_CLEANING_SECONDS)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
