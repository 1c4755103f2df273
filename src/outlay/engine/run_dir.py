"""The files of one run: what a resumed or a finished run finds on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.errors import SpendError
from outlay.storage.files import write_json
from outlay.storage.locks import alone

STUDY_FILE = "study.json"
"""The index of a study, by which its results folder is known."""

BOUND_OF_CHARGE = "at most, by the flops clock"
"""How a forecast began that was none, in files written up to 2026-11: seconds that a charge is bounded by."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall seconds of one compute step, for people.

    ``key``: of its hold; ``what`` was done; ``predicted`` before it ran, ``by`` which profile, ``None`` without one; ``measured``
    this time; ``working``: the part of them inside batches, ``None`` where it is not known. All are ``None`` where it was reused.
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
        """Whether nothing was done this time."""
        return self.measured is None


@dataclass(frozen=True, slots=True)
class RunDir:
    """The files of one run below a results folder."""

    path: Path

    @classmethod
    def of(cls, folder: Path, run_id: str) -> RunDir:
        """Of one run of a results folder."""
        return cls(folder / "runs" / run_id)

    @property
    def manifest(self) -> Path:
        """Written last: a run with a manifest is done."""
        return self.path / "manifest.json"

    def step(self, key: str) -> Path:
        """What is known about a step under way: its kind, and the heartbeat of its gauge."""
        return self.path / "steps" / f"{key}.json"

    def timings(self) -> list[Timing]:
        """What `note` wrote, in the order of the steps; nothing where nothing was."""
        path = self._timings
        return [Timing(**record) for record in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []

    def notes(self) -> tuple[str, ...]:
        """The notes of the run's point, once the run is over."""
        if not self.manifest.exists():
            return ()
        result = json.loads(self.manifest.read_text(encoding="utf-8")).get("point", {}).get("result", {})
        return tuple(result.get("notes", ()))

    def note(self, timings: Sequence[Timing]) -> None:
        """Keep how long steps took."""
        keys = {timing.key for timing in timings}
        others = [known for known in self.timings() if known.key not in keys]
        write_json(self._timings, [asdict(each) for each in (*others, *timings)])

    def note_precision(self, facts: dict[str, Any]) -> None:
        """Keep what the run computes in, as it was when the run was first opened."""
        if not self._precision.exists():
            write_json(self._precision, facts)

    def precision(self) -> dict[str, Any] | None:
        """What `note_precision` kept; ``None`` of a run of before."""
        path = self._precision
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def _precision(self) -> Path:
        return self.path / "precision.json"

    @property
    def _timings(self) -> Path:
        return self.path / "seconds.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Execute this run in one process at a time.

        Raises:
            SpendError: another process is at it.
        """
        busy = SpendError(f"run {self.path.name} is being executed by another process; wait for it to end")
        with alone(self.path / "lock", busy):
            yield
