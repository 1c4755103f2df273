"""The schedule of a training, known before it begins: the rows and the learning rate of each step."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from outlay.models.seeds import step_seed
from outlay.settings import TrainSettings
from outlay.train.batching import BatchPlan
from outlay.train.distributed import ProcessGroup


class TrainSchedule:
    """Schedule of a training over rows of these ``lengths`` (tokens, int64 ``[rows]``), as one process takes part in it."""

    def __init__(self, lengths: NDArray[np.int64], settings: TrainSettings, group: ProcessGroup) -> None:
        self.lengths = lengths
        self.settings = settings
        self.group = group
        self._batches = BatchPlan(lengths, settings)
        self._epochs: dict[int, list[NDArray[np.int64]]] = {}

    @property
    def n_steps(self) -> int:
        """Optimiser steps of all epochs."""
        return self._batches.n_steps

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, from 0."""
        return self._batches.locate(step)[0]

    def ends_epoch(self, step: int) -> bool:
        """Return whether ``step`` is the last of its epoch."""
        return self._batches.ends_epoch(step + 1)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of a step, those of all processes."""
        epoch, batch = self._batches.locate(step)
        if epoch not in self._epochs:
            # Batches are made ahead of the step, so the epoch before is still asked for.
            kept = {known: batches for known, batches in self._epochs.items() if known == epoch - 1}
            self._epochs = {**kept, epoch: self._batches.epoch(epoch)}
        return self._epochs[epoch][batch]

    def n_tokens(self, step: int) -> int:
        """Count the tokens of a step, padding excluded."""
        return int(self.lengths[self.rows(step)].sum())

    def micro_batches(self, step: int) -> list[NDArray[np.int64]]:
        """Return the rows of each of this process's forward passes; a process without rows of its own takes one of
        another's, with weight 0.
        """
        rows = self.rows(step)
        split = split_micro_batches(rows, self.group.rank, self.group.n_processes, self.settings.micro_batch_size)
        return [own if len(own) else rows[:1] for own in split]

    def weights(self, step: int) -> list[float]:
        """Return the weight of each of this process's forward passes: 0 where its rows are another's."""
        split = split_micro_batches(
            self.rows(step), self.group.rank, self.group.n_processes, self.settings.micro_batch_size
        )
        return [1.0 if len(own) else 0.0 for own in split]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of optimiser step ``step``, from 0."""
        return self.settings.learning_rate * learning_rate_factor(step, self.n_steps, self.settings.warmup_fraction)


def learning_rate_factor(step: int, n_steps: int, warmup_fraction: float) -> float:
    """Return the share of the peak learning rate at optimiser step ``step`` (from 0): linear warm-up, then linear
    decay to zero.
    """
    n_warmup = max(1, round(warmup_fraction * n_steps)) if warmup_fraction > 0 else 0
    if step < n_warmup:
        return (step + 1) / n_warmup
    return max(0.0, (n_steps - step) / max(1, n_steps - n_warmup))


def micro_batch_seed(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """Return the generator seed of one forward pass, so that dropout does not depend on what came before; `step_seed`
    for the first.
    """
    if rank == micro_batch == 0:
        return step_seed(seed, step)
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}:{rank}:{micro_batch}".encode()).digest()[:8], "big") >> 1


def split_micro_batches(
    rows: NDArray[np.int64], rank: int, n_processes: int, micro_batch_size: int | None
) -> list[NDArray[np.int64]]:
    """Split a step's rows into the micro-batches of process ``rank``, one per forward pass; the same number on every
    process.

    Over all processes every row is in one micro-batch. A micro-batch has at most ``micro_batch_size`` rows, and none where a
    process has fewer rows than others have micro-batches.
    """
    most = math.ceil(len(rows) / n_processes)
    n_micro_batches = 1 if micro_batch_size is None else math.ceil(most / micro_batch_size)
    return np.array_split(rows[rank::n_processes], n_micro_batches)
