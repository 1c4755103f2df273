"""The listener to work under way: what single steps, runs and studies tell; the command line and the Python API show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Advance = tuple[int, int, str]
"""Progress of the work under way: done, of how many (0 where unknown), in words."""

Ahead = tuple[float, float | None]
"""Share of all work that is done (0-1), and an estimate of the wall seconds left (``None`` where there is none yet)."""

Report = Callable[[int, int, str], None]
"""Callback of progress, with the parts of an `Advance`."""


class Listener:
    """A listener to work under way, silent as it stands: a subclass overrides what it shows."""

    # --- a single step, or whatever else has parts -------------------------------------------------------------------

    def begin(self, what: str) -> None:
        """Handle the start of a part."""

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """Handle progress within the part."""

    def say(self, line: str) -> None:
        """Show a line worth reading: a derived value, a wait, lost work."""

    # --- the steps of one run ----------------------------------------------------------------------------------------

    def held(self, what: str) -> None:
        """Handle the start of a step, after its hold."""

    def settled(self, what: str, reused: bool, charged_micros: int, left_micros: int) -> None:
        """Handle the end of a step, after its settlement, with the charge of the run so far and what is left to charge."""

    # --- runs that share their steps and workers ---------------------------------------------------------------------

    def opened(self, n_points: int, n_known: int, n_finished: int, n_left: int) -> None:
        """Handle the start of a session: its points, those taken as known, those finished already, and those left to run."""

    def of_run(self, place: int) -> Listener:  # noqa: ARG002
        """Return the listener of the run at a place of the plan."""
        return self

    def submitted(self, what: str, run: str) -> None:
        """Handle the start of a step at a worker."""

    def ended(self, what: str, seconds: float, problem: str | None) -> None:
        """Handle the end of a step: settled, failed, or without its worker."""

    def point(self, point: Any, n_done: int) -> None:
        """Handle the end of a run; ``point``: its `outlay.engine.point.Point`."""

    def ahead(self, far: Ahead) -> None:
        """Take a new estimate of what is left of a session; comes before each tick."""

    def tick(self, under_way: Mapping[str, Advance]) -> None:
        """Show the last progress of the steps under way by their description, at regular intervals."""
