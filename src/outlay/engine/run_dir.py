"""The folder of one run: manifest, step files, timings, precision and lock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.errors import SpendError
from outlay.storage.artifact import Artifact
from outlay.storage.files import write_json
from outlay.storage.locks import exclusive

STUDY_FILE = "study.json"
"""Name of the index of a study; a folder with this file is the results folder of a study."""

BOUND_OF_CHARGE = "at most, by the flops clock"
"""Prefix of ``by`` in files written up to 2026-11, where ``predicted`` was the bound of a charge and not a forecast."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall seconds of one compute step, forecast and measured; for display, never for charging.

    ``key``: key of the hold; ``what``: description of the step; ``predicted``: forecast seconds, and ``by`` the profile of the
    forecast, ``None`` without a profile; ``measured``: seconds of this execution; ``working``: the measured seconds inside
    batches, ``None`` where unknown. All but ``key`` and ``what`` are ``None`` for a reused step.
    """

    key: str
    what: str
    predicted: float | None
    by: str | None
    measured: float | None
    working: float | None = None

    def __post_init__(self) -> None:
        if self.by is not None and self.by.startswith(BOUND_OF_CHARGE):
            object.__setattr__(self, "predicted", None)
            object.__setattr__(self, "by", None)

    @property
    def is_reused(self) -> bool:
        """True where the step was reused and not executed."""
        return self.measured is None


@dataclass(frozen=True, slots=True)
class RunDir:
    """The folder of one run below a results folder."""

    path: Path

    @classmethod
    def of(cls, folder: Path, run_id: str) -> RunDir:
        """Return the folder of a run in a results folder."""
        return cls(folder / "runs" / run_id)

    @property
    def manifest(self) -> Path:
        """Path of the manifest, which is written last: a run with a manifest is finished."""
        return self.path / "manifest.json"

    def step(self, key: str) -> Path:
        """Return the path of the file of a step in progress: its kind and the heartbeat of its meter."""
        return self.path / "steps" / f"{key}.json"

    def timings(self) -> list[Timing]:
        """Read the timings written by `note`, in the order of the steps; none where the file does not exist."""
        return [Timing(**record) for record in _read_json(self._timings) or []]

    def notes(self) -> tuple[str, ...]:
        """Read the notes of the run's point; none before the run is finished."""
        return tuple(self.point().get("result", {}).get("notes", ()))

    def calibration_error(self) -> float | None:
        """Read the calibration error of the run's point; ``None`` without one, or before the run is finished."""
        error: float | None = self.point().get("result", {}).get("ece")
        return error

    def latency_ms(self) -> float | None:
        """Read the milliseconds a row of the run's final model; ``None`` where they were not measured, or not yet."""
        latency: float | None = self.point().get("circumstance", {}).get("latency_ms")
        return latency

    def point(self) -> dict[str, Any]:
        """Read the JSON of the run's point; empty before the run is finished."""
        point: dict[str, Any] = (_read_json(self.manifest) or {}).get("point", {})
        return point

    def note(self, timings: Sequence[Timing]) -> None:
        """Write the timings of some steps, in place of earlier timings with the same keys."""
        keys = {timing.key for timing in timings}
        others = [known for known in self.timings() if known.key not in keys]
        write_json(self._timings, [asdict(each) for each in (*others, *timings)])

    def note_precision(self, facts: dict[str, Any]) -> None:
        """Write the precision of the run once; later calls keep the facts of the first execution."""
        if not self._precision.exists():
            write_json(self._precision, facts)

    def precision(self) -> dict[str, Any] | None:
        """Read the facts written by `note_precision`; ``None`` for a run of an older version."""
        facts: dict[str, Any] | None = _read_json(self._precision)
        return facts

    @property
    def _precision(self) -> Path:
        return self.path / "precision.json"

    @property
    def _timings(self) -> Path:
        return self.path / "seconds.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the run for this process.

        Raises:
            SpendError: another process executes the run.
        """
        busy = SpendError(f"run {self.path.name} is being executed by another process; wait for it to end")
        with exclusive(self.path / "lock", busy):
            yield


def _read_json(path: Path) -> Any:
    """Read a JSON file; ``None`` where it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def timing_of(key: str, what: str, artifact: Artifact, payer: str) -> Timing:
    """Return the timing of a step whose artifact a run settles; without seconds where another run has made it."""
    measured = artifact.circumstance.get("seconds_by_payer", {}).get(payer)
    if measured is None:
        return Timing(key, what, None, None, None)
    seen = artifact.circumstance.get("predicted") or {}
    working = artifact.circumstance.get("working_seconds")
    return Timing(key, what, seen.get("seconds"), seen.get("by"), measured, working)
