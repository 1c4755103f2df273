"""Where a training stands, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class WorkMeter(Protocol):
    """What the loop reports its work to, and asks before each step; tokens are real ones, of all processes together.

    Every process has one, but only the main process's word counts.
    """

    def may_train(self, n_tokens: int) -> bool:
        """Whether a step of ``n_tokens`` still fits, with what must follow it (evaluation, saving) reserved."""
        ...

    def trained(self, n_tokens: int) -> None:
        """A step of ``n_tokens`` went forward and backward."""
        ...

    def inferred(self, n_tokens: int) -> None:
        """``n_tokens`` went forward; 0 says that answering begins now."""
        ...

    def state(self) -> dict[str, Any]:
        """What to keep in a checkpoint (JSON)."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        ...


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
    """``finished``, ``early`` (dev stopped improving) or ``limit`` (the gauge refused the next step)."""
    n_parameters: int = 0
    """All of the model's, embeddings included."""
    n_truncated: int = 0
    """Training rows that were longer than the limit, and so cut."""
    n_answers_cut: int = 0
    """Answers to learn that were longer than the limit, and so cut."""
    n_unaligned: int = 0
    """Entities to learn that could not be found in their source."""
    history: list[dict[str, float | int | None]] = field(default_factory=list)
    """Per evaluation: epoch and step of the last step before it, mean loss of the steps since the one before, dev score."""


@dataclass(slots=True)
class TrainState:
    """All that changes while a model trains, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    gauge: WorkMeter
    progress: TrainProgress
    best: dict[str, Tensor] | None = None
    """The weights of the best evaluation."""


OnProgress = Callable[[TrainProgress, int], None]
"""``(progress, total steps)``, called on the main process after each step, on a GPU after every few."""
