"""Where work is done: one interface, and the place that is always there.

A job is a name, for whoever reads of it, and a payload, which is all that differs between the jobs of one piece of work. What
they share is in ``work``, a function of a folder that it reads (a model, say) and the payload. An executor may do jobs in any
order and anywhere; the results must not depend on it. `outlay.cluster` has one that uses the machines of a Ray cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

P = TypeVar("P")
R = TypeVar("R")


class Executor(Protocol):
    """Does jobs."""

    def run(
        self, work: Callable[[Path, P], R], jobs: Iterable[tuple[str, P]], folder: Path
    ) -> Generator[tuple[str, R], None, None]:
        """``work(folder, payload)`` of each job, handed over with the job's name as soon as it is done, in any order.

        Closing the generator ends what is still under way. ``work``, payloads and results can be pickled; ``work`` is handed
        ``folder``, or a copy of it where it is done on another machine.

        Raises:
            OutlayError: of ``work``; or a place that cannot be reached, or does not get a job done.
        """
        ...


class Here:
    """This process: one job after another, in their order."""

    def run(
        self, work: Callable[[Path, P], R], jobs: Iterable[tuple[str, P]], folder: Path
    ) -> Generator[tuple[str, R], None, None]:
        """See `Executor`."""
        for name, payload in jobs:
            yield name, work(folder, payload)
