"""Meter, progress and context of a training; imports no library."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from outlay.settings import SAVE_SECONDS
from outlay.train.trackers import Tracker

if TYPE_CHECKING:
    from outlay.train.profiler import Profiler


class WorkMeter(Protocol):
    """A meter of work that the loop reports to and asks before each step; tokens are real ones, of all processes together.

    Every process has one, but only the main process's word counts.
    """

    def may_train(self, n_tokens: int) -> bool:
        """Return whether a step of ``n_tokens`` still fits, with what must follow it (evaluation, saving) reserved."""
        ...

    def trained(self, n_tokens: int) -> None:
        """Count a step of ``n_tokens`` that went forward and backward."""
        ...

    def inferred(self, n_tokens: int) -> None:
        """Count ``n_tokens`` that went forward; 0 says that answering begins now."""
        ...

    def may_fit(self, n_flops: int) -> bool:
        """Return whether a regression of so many FLOPs still fits."""
        ...

    def fitted(self, n_flops: int) -> None:
        """Count the FLOPs of a regression."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the state to keep in a checkpoint (JSON)."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        ...


class TokenCounter:
    """A `WorkMeter` that counts tokens and seconds, those of killed attempts included as far as they are kept.

    ``meter``: limits the work and keeps its own state in checkpoints; ``None`` = nothing is refused.
    """

    def __init__(self, meter: WorkMeter | None = None) -> None:
        self.n_trained = 0
        self.n_inferred = 0
        self.n_flops_fitted = 0
        self._meter = meter
        self._seconds_before = 0.0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall seconds so far."""
        return self._seconds_before + time.monotonic() - self._began

    @property
    def is_resumed(self) -> bool:
        """True where a part was done by an earlier attempt."""
        return self._seconds_before > 0

    def may_train(self, n_tokens: int) -> bool:
        """Ask the meter; without one every step fits."""
        return self._meter is None or self._meter.may_train(n_tokens)

    def trained(self, n_tokens: int) -> None:
        """Count a training step."""
        self.n_trained += n_tokens
        if self._meter is not None:
            self._meter.trained(n_tokens)

    def inferred(self, n_tokens: int) -> None:
        """Count a batch of answers."""
        self.n_inferred += n_tokens
        if self._meter is not None:
            self._meter.inferred(n_tokens)

    def may_fit(self, n_flops: int) -> bool:
        """Ask the meter; without one every regression fits."""
        return self._meter is None or self._meter.may_fit(n_flops)

    def fitted(self, n_flops: int) -> None:
        """Count a regression."""
        self.n_flops_fitted += n_flops
        if self._meter is not None:
            self._meter.fitted(n_flops)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the meter's state, without one the counts."""
        if self._meter is not None:
            return self._meter.state()
        counts = {"trained": self.n_trained, "inferred": self.n_inferred, "fitted": self.n_flops_fitted}
        return {**counts, "seconds": self.seconds}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if self._meter is not None:
            self._meter.restore(state)
            return
        self.n_trained, self.n_inferred = int(state["trained"]), int(state["inferred"])
        self.n_flops_fitted = int(state.get("fitted", 0))
        self._seconds_before = float(state["seconds"])


@dataclass(slots=True)
class TrainProgress:
    """Where a training stands; all of it is kept in a checkpoint."""

    step: int = 0
    """Optimiser steps taken."""
    epoch: int = 0
    """Of the last step, from 0."""
    loss_since: float = 0.0
    """Sum of the losses of the steps since the last evaluation."""
    steps_since: int = 0
    """Steps since the last evaluation."""
    best_score: float | None = None
    best_epoch: int | None = None
    best_evaluation: int | None = None
    """Index into ``history``."""
    n_tokens_trained: int = 0
    n_tokens_inferred: int = 0
    stopped: str | None = None
    """``finished``, ``early`` (dev stopped improving) or ``limit`` (the meter refused the next step)."""
    n_parameters: int = 0
    """All of the model's, embeddings included."""
    n_truncated: int = 0
    """Training rows that were longer than the limit, and so cut."""
    n_answers_cut: int = 0
    """Answers to learn that were longer than the limit, and so cut."""
    n_unaligned: int = 0
    """Entities to learn that could not be found in their source."""
    n_flops_fitted: int = 0
    """FLOPs of the regressions that gave the head its weights."""
    strength: float | None = None
    """C of that regression."""
    notes: list[str] = field(default_factory=list)
    """Remarks on that regression, a line each."""
    held_out: list[tuple[int, float, float]] = field(default_factory=list)
    """Of each training row, by the regression of the fold that left it out: its answer as a class, the probability of that and of
    its own label; empty without folds."""
    history: list[dict[str, float | int | None]] = field(default_factory=list)
    """Per evaluation: epoch and step of the last step before it (-1 and 0 before the first), mean loss of the steps since the one
    before, dev score; and the temperature that fits the probabilities to dev, of a model that chooses among classes."""

    @property
    def temperature(self) -> float | None:
        """Temperature of the best evaluation."""
        return None if self.best_evaluation is None else self.history[self.best_evaluation].get("temperature")


OnProgress = Callable[[TrainProgress, int], None]
"""``(progress, total steps)``, called on the main process after each step, on a GPU after every few."""


@dataclass(frozen=True, slots=True)
class TrainContext:
    """Meter, scratch folder and listeners of a step.

    ``folder``: where checkpoints lie (``checkpoints/``) and the result is put together (``model/``), which outlives a kill;
    ``None`` = no checkpoints; ``save_seconds``, ``save_steps``: how often a checkpoint may be written; ``on_progress`` and
    ``tracker``: told by the main process; ``profiler``: takes the time of the parts of a step.
    """

    meter: WorkMeter
    folder: Path | None = None
    save_seconds: float = SAVE_SECONDS
    on_progress: OnProgress | None = None
    save_steps: int | None = None
    tracker: Tracker | None = None
    profiler: Profiler | None = None
