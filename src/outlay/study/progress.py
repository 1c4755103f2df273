"""Progress of runs and of single steps, told to one callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from outlay.engine.listeners import Silent, Watcher
from outlay.engine.point import Point


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of progress: what is done, how far it is, and details in words; ``n_total`` is 0 where it is not known."""

    what: str
    n_done: int = 0
    n_total: int = 0
    detail: str = ""

    def __str__(self) -> str:
        parts = [f"{self.n_done:,} of {self.n_total:,}"] if self.n_total else []
        parts += [self.detail] if self.detail else []
        return f"{self.what}: {', '.join(parts)}" if parts else self.what


OnProgress = Callable[[Progress], object]
"""Called with each report, in the thread that works; an error it raises stops the work, which the same call goes on with."""


class RunProgress:
    """A listener of runs that passes each report on to one callback.

    Args:
        tell: the callback.
        n_points: of the grid.
        n_there: those that are over already.
    """

    def __init__(self, tell: OnProgress, n_points: int, n_there: int) -> None:
        self._tell = tell
        self._n_points, self._n_there = n_points, n_there
        self._last: dict[str, tuple[int, int, str]] = {}

    def began(self, what: str, run: str) -> None:
        """Report that a step began."""
        self._tell(Progress(f"{what} ({run[:6]})"))

    def ended(self, what: str, seconds: float, problem: str | None) -> None:
        """Report that a step ended, and how."""
        self._tell(Progress(what, detail=problem or f"done in {seconds:,.1f} s"))

    def point(self, place: int, point: Point, n_done: int) -> None:  # noqa: ARG002
        """Report that a run is over."""
        request, result = point.request, point.result
        said = f"{result.test:.1f}" if result.test is not None else f"{result.status}: {result.reason}"
        what = f"{request.task}: {request.variant}, seed {request.seed}, {said}"
        self._tell(Progress(what, self._n_there + n_done, self._n_points))

    def tick(self, under_way: dict[str, tuple[int, int, str]]) -> None:
        """Report the steps that went on since."""
        for what, far in under_way.items():
            if self._last.get(what) != far:
                self._tell(Progress(what, *far))
        self._last = dict(under_way)

    def watch(self, place: int) -> Watcher:  # noqa: ARG002
        """Return a watcher that reports derivations, waits and losses; the steps of a run are reported already."""
        return _Remarks(self._tell)


class _Remarks(Silent):
    """A watcher that passes on lines worth reading, and nothing else."""

    def __init__(self, tell: OnProgress) -> None:
        self._tell = tell

    def say(self, line: str) -> None:
        """Report the line."""
        self._tell(Progress(line))


class StepProgress:
    """A listener of a single step that passes each report on to a callback, where there is one."""

    def __init__(self, tell: OnProgress | None) -> None:
        self._tell: OnProgress = tell or (lambda _: None)
        self._what = ""

    def begin(self, what: str) -> None:
        """Report that a part of the step began."""
        self._what = what
        self._tell(Progress(what))

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """Report how far it is."""
        self._tell(Progress(self._what, n_done, n_total, detail))

    def say(self, line: str) -> None:
        """Report a line worth reading."""
        self._tell(Progress(line))
