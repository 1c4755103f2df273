"""All that changes while a model trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from outlay.train.progress import TrainProgress, WorkMeter


@dataclass(slots=True)
class TrainState:
    """The changing state of a training, all of it kept in a checkpoint."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    meter: WorkMeter
    progress: TrainProgress
    best: dict[str, Tensor] | None = None
    """The weights of the best evaluation."""
