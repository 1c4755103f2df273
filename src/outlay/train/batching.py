"""Batches: rows sorted by length, cut by number of rows or by a budget of tokens.

All of it is a pure function of lengths, settings and seed, so that a training finds its batches again where it goes on.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Numbers of rows, or their lengths in tokens; int64 ``[rows]``."""

_POOL_FACTOR = 50
"""Batches sorted by length together: large enough that padding is rare, small enough that an epoch stays shuffled."""


def training_batches(
    lengths: Rows, batch_size: int, seed: int, epoch: int, batch_tokens: int | None = None
) -> list[Rows]:
    """Return one epoch of length-bucketed batches: every row once, order a pure function of (seed, epoch).

    Rows are shuffled, sorted by length inside windows of 50 batches, cut into batches, and the batches shuffled: the usual
    length grouping (as in `transformers`' ``group_by_length``), which keeps padding to a few per cent.

    With ``batch_tokens`` a batch takes as many rows as keep rows times longest row within it, however many these are; a row
    that is longer is a batch of its own. A window is then as long as 50 batches of rows of mean length.
    """
    if batch_tokens is not None:
        order, cuts, random_state = _cut_by_tokens(lengths, batch_tokens, seed, epoch)
        batches = np.split(order, cuts)
        return [batches[i] for i in random_state.permutation(len(batches))] if len(order) else []
    rng = random.Random(f"{seed}:{epoch}")
    shuffled = list(range(len(lengths)))
    rng.shuffle(shuffled)
    order = _sorted_in_windows(np.array(shuffled, dtype=np.int64), lengths, batch_size * _POOL_FACTOR)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


def count_batches(lengths: Rows, batch_size: int, seed: int, epoch: int, batch_tokens: int | None = None) -> int:
    """Count the batches of an epoch without cutting them out; by tokens that takes some 20 ms for 100,000 rows."""
    if batch_tokens is None:
        return -(-len(lengths) // batch_size)
    order, cuts, _ = _cut_by_tokens(lengths, batch_tokens, seed, epoch)
    return len(cuts) + 1 if len(order) else 0


def inference_batches(lengths: Rows, batch_size: int, batch_tokens: int | None = None) -> Iterator[Rows]:
    """Yield batches by falling length, ties by row: the largest comes first and fails first.

    At most ``batch_size`` rows; where ``batch_tokens`` is given, rows times longest row is at most that, and a row that is
    longer is a batch of its own.
    """
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        n = batch_size if batch_tokens is None else min(batch_size, max(1, batch_tokens // longest))
        yield order[start : start + n]
        start += n


def _sorted_in_windows(order: Rows, lengths: Rows, window: int) -> Rows:
    """Sort rows by length inside each ``window`` of them, rows of equal length in the order given."""
    by_window = np.lexsort((lengths[order], np.arange(len(order)) // window))
    return order[by_window]


def _cut_by_tokens(
    lengths: Rows, batch_tokens: int, seed: int, epoch: int
) -> tuple[Rows, list[int], np.random.RandomState]:
    """Return the rows of an epoch in order, where batches are cut, and the generator for what follows.

    The generator is numpy's frozen one, whose stream is the same in every version of it.
    """
    digest = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
    random_state = np.random.RandomState(np.frombuffer(digest, dtype=">u4").astype(np.uint32))
    n = len(lengths)
    window = max(1, int(_POOL_FACTOR * batch_tokens * n / max(1, int(lengths.sum()))))
    order = _sorted_in_windows(random_state.permutation(n).astype(np.int64), lengths, window)
    sizes = lengths[order].tolist()
    cuts: list[int] = []
    for start in range(0, n, window):
        stop, first = min(start + window, n), start
        while first < stop:
            # Rows grow longer, so rows times longest row only grows with each row taken.
            first = max(
                first + 1, bisect_right(range(stop), batch_tokens, lo=first, key=lambda i: (i + 1 - first) * sizes[i])
            )
            cuts.append(first)
    return order, cuts[:-1], random_state
