"""Send the metrics of a training to a dashboard as it runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlay.errors import UsageError

DASHBOARDS = ("wandb", "tensorboard", "trackio")


class Tracker:
    """A tracker that sends ``{name: figure}`` by optimiser step, through one of accelerate's trackers."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures of optimiser step ``step``."""
        self._tracker.log(dict(figures), step=step)

    def close(self) -> None:
        """Send the rest and close."""
        self._tracker.finish()


def open_tracker(report_to: str, *, name: str, folder: Path, settings: Mapping[str, Any]) -> Tracker | None:
    """Return the tracker named ``report_to``, or ``None`` for ``none``; for the main process only.

    Args:
        report_to: ``wandb``, ``tensorboard``, ``trackio`` or ``none``.
        name: of the run (tensorboard) or the project (wandb, trackio).
        folder: where tensorboard's event files go; the others keep their own places.
        settings: what the run is labelled with; ``None`` is sent as the word none.

    Raises:
        UsageError: an unknown name, or a package that is not installed.
    """
    if report_to == "none":
        return None
    if report_to not in DASHBOARDS:
        raise UsageError(f"cannot report to {report_to!r}; known: {', '.join(DASHBOARDS)} or none")
    if importlib.util.find_spec(report_to) is None:
        raise UsageError(f"reporting to {report_to} needs its package; `pip install {report_to}`, or report to none")
    from accelerate import tracking

    tracker: Any
    if report_to == "tensorboard":
        folder.mkdir(parents=True, exist_ok=True)
        tracker = tracking.TensorBoardTracker(name, folder)
    elif report_to == "wandb":
        tracker = tracking.WandBTracker(name)
    else:
        tracker = tracking.TrackioTracker(name)
    tracker.start()
    plain = {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in settings.items()
    }
    tracker.store_init_configuration({key: "none" if value == "None" else value for key, value in plain.items()})
    return Tracker(tracker)
