"""Progress of runs, and of single steps, as reports to one callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from outlay.engine.point import Point
from outlay.text.durations import time_left
from outlay.text.listener import Advance, Ahead, Listener


@dataclass(frozen=True, slots=True)
class Progress:
    """A report of progress: name of the work, parts done and in all (0 where unknown), and details in words.

    ``seconds_left``: an estimate for all that the call does, ``None`` where there is none yet.
    """

    what: str
    n_done: int = 0
    n_total: int = 0
    detail: str = ""
    seconds_left: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.n_done:,} of {self.n_total:,}"] if self.n_total else []
        parts += [self.detail] if self.detail else []
        parts += [] if self.seconds_left is None else [f"{time_left(self.seconds_left)} in all"]
        return f"{self.what}: {', '.join(parts)}" if parts else self.what


OnProgress = Callable[[Progress], object]
"""Callback of each report, in the working thread; an error it raises stops the work, and the same call resumes it."""


class ProgressReports(Listener):
    """A listener that reports to one callback, where there is one."""

    def __init__(self, tell: OnProgress | None) -> None:
        self._tell: OnProgress = tell or (lambda _: None)
        self._n_points = self._n_over = 0
        self._what = ""
        self._last: dict[str, Advance] = {}
        self._seconds_left: float | None = None

    def begin(self, what: str) -> None:
        """Report that a part of a single step began."""
        self._what = what
        self._tell(Progress(what))

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """Report the progress of the current part of a single step."""
        self._tell(Progress(self._what, n_done, n_total, detail))

    def say(self, line: str) -> None:
        """Report a remark."""
        self._tell(Progress(line))

    def opened(self, n_points: int, n_known: int, n_finished: int, n_left: int) -> None:  # noqa: ARG002
        """Count the points that are over already."""
        self._n_points, self._n_over = n_points, n_points - n_left

    def submitted(self, what: str, run: str) -> None:
        """Report that a step of a run began."""
        self._tell(Progress(f"{what} ({run[:6]})"))

    def ended(self, what: str, seconds: float, problem: str | None) -> None:
        """Report that a step of a run ended, with its seconds or its problem."""
        self._tell(Progress(what, detail=problem or f"done in {seconds:,.1f} s"))

    def point(self, point: Point, n_done: int) -> None:
        """Report that a run is over."""
        request, result = point.request, point.result
        said = f"{result.test:.1f}" if result.test is not None else f"{result.status}: {result.reason}"
        what = f"{request.task}: {request.variant}, seed {request.seed}, {said}"
        self._tell(Progress(what, self._n_over + n_done, self._n_points))

    def ahead(self, far: Ahead) -> None:
        """Keep the estimate of the time left for the next reports of steps."""
        self._seconds_left = far[1]

    def tick(self, under_way: Mapping[str, Advance]) -> None:
        """Report the steps that went on since the last tick."""
        for what, far in under_way.items():
            if self._last.get(what) != far:
                self._tell(Progress(what, *far, seconds_left=self._seconds_left))
        self._last = dict(under_way)
