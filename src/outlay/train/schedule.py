"""The schedule of a training, known before it begins: the rows and the learning rate of each step."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from outlay.models.seeds import step_seed
from outlay.settings import TrainSettings
from outlay.train.batching import count_batches, training_batches
from outlay.train.distributed import ProcessGroup


class TrainSchedule:
    """Schedule of a training over rows of these ``lengths`` (tokens, int64 ``[rows]``), as one process takes part in it."""

    def __init__(self, lengths: NDArray[np.int64], settings: TrainSettings, group: ProcessGroup) -> None:
        self.lengths = lengths
        self.settings = settings
        self.group = group
        n_batches = [count_batches(lengths, *self._batching(epoch)) for epoch in range(settings.epochs)]
        self._starts = [0, *accumulate(n_batches)]
        self._epochs: dict[int, list[NDArray[np.int64]]] = {}

    @property
    def n_steps(self) -> int:
        """Optimiser steps of all epochs."""
        return self._starts[-1]

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, both from 0.

        Raises:
            IndexError: a step after the last, or before the first.
        """
        if not 0 <= step < self.n_steps:
            raise IndexError(f"step {step} of {self.n_steps}")
        return bisect_right(self._starts, step) - 1

    def ends_epoch(self, step: int) -> bool:
        """Return whether ``step`` is the last of its epoch."""
        return step + 1 in self._starts

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of a step, those of all processes."""
        epoch = self.epoch(step)
        if epoch not in self._epochs:
            # Batches are made ahead of the step, so the epoch before is still asked for.
            kept = {known: batches for known, batches in self._epochs.items() if known == epoch - 1}
            self._epochs = {**kept, epoch: training_batches(self.lengths, *self._batching(epoch))}
        return self._epochs[epoch][step - self._starts[epoch]]

    def n_tokens(self, step: int) -> int:
        """Count the tokens of a step, padding excluded."""
        return int(self.lengths[self.rows(step)].sum())

    def micro_batches(self, step: int) -> list[NDArray[np.int64]]:
        """Return the rows of each of this process's forward passes; without a row of its own one of another's."""
        return [own if len(own) else self.rows(step)[:1] for own in self._split(step)]

    def weights(self, step: int) -> list[float]:
        """Return the weight of each of this process's forward passes: 0 where its rows are another's."""
        return [1.0 if len(own) else 0.0 for own in self._split(step)]

    def _batching(self, epoch: int) -> tuple[int, int, int, int | None]:
        return self.settings.batch_size, self.settings.seed, epoch, self.settings.batch_tokens

    def _split(self, step: int) -> list[NDArray[np.int64]]:
        group = self.group
        return split_micro_batches(self.rows(step), group.rank, group.n_processes, self.settings.micro_batch_size)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of optimiser step ``step``, from 0."""
        return self.settings.learning_rate * learning_rate_factor(step, self.n_steps, self.settings.warmup_fraction)


def learning_rate_factor(step: int, n_steps: int, warmup_fraction: float) -> float:
    """Return the share of the peak learning rate at ``step`` (from 0): linear warm-up, then linear decay to zero."""
    n_warmup = max(1, round(warmup_fraction * n_steps)) if warmup_fraction > 0 else 0
    if step < n_warmup:
        return (step + 1) / n_warmup
    return max(0.0, (n_steps - step) / max(1, n_steps - n_warmup))


def micro_batch_seed(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """Return the generator seed of one forward pass: dropout does not depend on what came before."""
    if rank == micro_batch == 0:
        return step_seed(seed, step)
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}:{rank}:{micro_batch}".encode()).digest()[:8], "big") >> 1


def split_micro_batches(
    rows: NDArray[np.int64], rank: int, n_processes: int, micro_batch_size: int | None
) -> list[NDArray[np.int64]]:
    """Split a step's rows into the micro-batches of process ``rank``, one per forward pass.

    Over all processes every row is in one micro-batch. Each process has as many of them, of at most ``micro_batch_size`` rows,
    and none where it has fewer rows than others have micro-batches.
    """
    most = math.ceil(len(rows) / n_processes)
    n_micro_batches = 1 if micro_batch_size is None else math.ceil(most / micro_batch_size)
    return np.array_split(rows[rank::n_processes], n_micro_batches)
