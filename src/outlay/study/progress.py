"""Progress of runs and of single steps, passed to one callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from outlay.engine.listeners import Silent, Watcher
from outlay.engine.point import Point


@dataclass(frozen=True, slots=True)
class Progress:
    """A report of progress: name of the work, parts done and in all (0 where unknown), and details in words."""

    what: str
    n_done: int = 0
    n_total: int = 0
    detail: str = ""

    def __str__(self) -> str:
        parts = [f"{self.n_done:,} of {self.n_total:,}"] if self.n_total else []
        parts += [self.detail] if self.detail else []
        return f"{self.what}: {', '.join(parts)}" if parts else self.what


OnProgress = Callable[[Progress], object]
"""Callback of each report, in the working thread; an error it raises stops the work, and the same call resumes it."""


class RunProgress:
    """A listener of runs that passes each report on to one callback.

    Args:
        tell: the callback.
        n_points: number of points of the grid.
        n_there: number of points that are over already.
    """

    def __init__(self, tell: OnProgress, n_points: int, n_there: int) -> None:
        self._tell = tell
        self._n_points, self._n_there = n_points, n_there
        self._last: dict[str, tuple[int, int, str]] = {}

    def began(self, what: str, run: str) -> None:
        """Report that a step began."""
        self._tell(Progress(f"{what} ({run[:6]})"))

    def ended(self, what: str, seconds: float, problem: str | None) -> None:
        """Report that a step ended, with its seconds or its problem."""
        self._tell(Progress(what, detail=problem or f"done in {seconds:,.1f} s"))

    def point(self, place: int, point: Point, n_done: int) -> None:  # noqa: ARG002
        """Report that a run is over."""
        request, result = point.request, point.result
        said = f"{result.test:.1f}" if result.test is not None else f"{result.status}: {result.reason}"
        what = f"{request.task}: {request.variant}, seed {request.seed}, {said}"
        self._tell(Progress(what, self._n_there + n_done, self._n_points))

    def tick(self, under_way: dict[str, tuple[int, int, str]]) -> None:
        """Report the steps that went on since the last tick."""
        for what, far in under_way.items():
            if self._last.get(what) != far:
                self._tell(Progress(what, *far))
        self._last = dict(under_way)

    def watch(self, place: int) -> Watcher:  # noqa: ARG002
        """Return a watcher that reports derivations, waits and losses; this listener reports steps itself."""
        return _Remarks(self._tell)


class _Remarks(Silent):
    """A watcher that passes remarks on, and nothing else."""

    def __init__(self, tell: OnProgress) -> None:
        self._tell = tell

    def say(self, line: str) -> None:
        """Report a remark."""
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
        """Report the progress of the current part of the step."""
        self._tell(Progress(self._what, n_done, n_total, detail))

    def say(self, line: str) -> None:
        """Report a remark."""
        self._tell(Progress(line))
