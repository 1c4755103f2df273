"""Workers that do pieces of work handed to them one by one: the one interface behind which a study runs here or on a cluster.

What a crew's workers do is a `Craft`: a picklable maker of the function that does the work, called once in each worker, so that
what is dear to set up (data, models) is set up once. A crew hands out, notices workers that are gone, and reports; who does what
next, and what is tried again, is decided by whoever hands out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from outlay.errors import OutlayError

Report = Callable[[int, int, str], None]
"""Progress of the work under way: done, of how many, in words."""

Work = Callable[[Any, Report], Any]
"""Payload and somebody to report to → result; both pickled between processes."""

Craft = Callable[[], Work]
"""Sets a worker up; picklable, so a module-level class or `functools.partial`, never a closure."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a piece of work ended: with a ``value``, with an ``error`` that the work raised, or ``lost`` with its worker."""

    name: str
    seconds: float
    """Wall seconds since it was handed out."""
    value: Any = None
    error: OutlayError | None = None
    """As the work raised it; anything else that it raised is wrapped, with the place of the whole traceback."""
    lost: str | None = None
    """Why the worker is gone ("killed by signal 9"); a new one takes its place."""


class Crew(Protocol):
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

    def wait(self, timeout_seconds: float | None = None) -> list[Ended]:
        """Block until at least one piece of work has ended, or so long; in the order they ended.

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
