"""Batches made ahead of the device, and moved to it without waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = Any
"""Tensors on one device: a tensor, ``None``, or a dict, tuple or frozen dataclass of batches; other values pass as they are."""

_AHEAD = 2
"""Steps whose batches are made while the device is busy."""


class BatchPrefetcher:
    """A prefetcher that yields the batches of step after step on ``device``.

    ``collate``: makes the batch of some rows, on the CPU; a pure function of the rows; ``micro_batches``: the rows of each
    forward pass of a step; ``stop``: the step behind the last. On a GPU a thread of its own makes the batches of the next steps
    in page-locked memory, so that they are copied while it computes; elsewhere they are made when they are asked for, since a
    thread would take the cores from the model. ``ahead``: steps made ahead, ``None`` = as above.
    """

    def __init__(
        self,
        collate: Callable[[NDArray[np.int64]], Batch],
        micro_batches: Callable[[int], Sequence[NDArray[np.int64]]],
        stop: int,
        device: torch.device,
        *,
        ahead: int | None = None,
    ) -> None:
        self._collate = collate
        self._micro_batches = micro_batches
        self._stop = stop
        self._device = device
        self._ready: dict[int, Future[list[Batch]]] = {}
        self._ahead = ahead if ahead is not None else _AHEAD if device.type == "cuda" else 0
        self._pool = ThreadPoolExecutor(1, "prefetcher") if self._ahead else None

    def take(self, step: int) -> list[Batch]:
        """Return the batches of ``step``, one per forward pass."""
        if self._pool is None:
            return [moved(batch, self._device) for batch in self._make(step)]
        for ahead in range(step, min(step + 1 + self._ahead, self._stop)):
            if ahead not in self._ready:
                self._ready[ahead] = self._pool.submit(self._make, ahead)
        return [moved(batch, self._device) for batch in self._ready.pop(step).result()]

    def close(self) -> None:
        """End the prefetching thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _make(self, step: int) -> list[Batch]:
        made = [self._collate(rows) for rows in self._micro_batches(step)]
        return [pinned(batch) for batch in made] if self._device.type == "cuda" else made


def moved(batch: Batch, device: torch.device) -> Batch:
    """Move ``batch`` to ``device``; from page-locked memory the copy does not wait."""
    if device.type == "cpu":
        return batch
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(batch: Batch) -> Batch:
    """Copy ``batch`` into page-locked memory."""
    return _each(batch, Tensor.pin_memory)


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {name: _each(value, change) for name, value in batch.items()}
    if isinstance(batch, tuple):
        parts = [_each(value, change) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: _each(getattr(batch, f.name), change) for f in fields(batch)})
    return batch
