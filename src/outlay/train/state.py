"""State and progress of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class WorkMeter(Protocol):
    """A meter that the loop reports its work to, and asks before each step; tokens are real ones, of all processes
    together.

    Every process has one, but only the main process's word counts.
    """

    def may_train(self, n_tokens: int) -> bool:
        """Return whether a step of ``n_tokens`` still fits, with what must follow it (evaluation, saving) reserved."""
        ...

    def trained(self, n_tokens: int) -> None:
        """Count a training step of ``n_tokens``."""
        ...

    def inferred(self, n_tokens: int) -> None:
        """Count ``n_tokens`` that went forward; 0 marks the start of answering."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the state to keep in a checkpoint (JSON)."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        ...


@dataclass(slots=True)
class TrainProgress:
    """Progress of a training; all of it is kept in a checkpoint."""

    step: int = 0
    """Optimiser steps taken."""
    epoch: int = 0
    """Epoch of the last step, from 0."""
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
    """Reason for the end: ``finished``, ``early`` (dev stopped improving) or ``limit`` (the meter refused the next
    step).
    """
    n_parameters: int = 0
    """Parameters of the model, embeddings included."""
    n_truncated: int = 0
    """Training rows that were longer than the limit, and so truncated."""
    n_answers_cut: int = 0
    """Training answers that were longer than the limit, and so truncated."""
    n_unaligned: int = 0
    """Training entities that could not be found in their source."""
    history: list[dict[str, float | int | None]] = field(default_factory=list)
    """History of evaluations: epoch and step of the last step before it, mean loss of the steps since the one before,
    dev score.
    """


@dataclass(slots=True)
class TrainState:
    """The changing state of a training, all of it kept in a checkpoint."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    gauge: WorkMeter
    progress: TrainProgress
    best: dict[str, Tensor] | None = None
    """The weights of the best evaluation."""


OnProgress = Callable[[TrainProgress, int], None]
"""``(progress, total steps)``, called on the main process after each step, on a GPU after every few."""
