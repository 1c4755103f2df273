"""Texts to batches: tokenise once, bucket by length, pad late."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_POOL_FACTOR = 50
"""Batches sorted by length together: large enough that padding is rare, small enough that an epoch stays shuffled."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokenised rows laid end to end.

    ``ids`` and ``type_ids``: int32 ``[total tokens]``; ``offsets``: int64 ``[rows + 1]``; row ``i`` is
    ``offsets[i]:offsets[i + 1]``. ``n_truncated`` counts the rows that were longer than the limit.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    pad_id: int
    n_truncated: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, int64 ``[rows]``, special tokens included."""
        return np.diff(self.offsets)

    @property
    def n_tokens(self) -> int:
        """Real tokens of all rows, special tokens included, padding not."""
        return int(self.offsets[-1])


def encode(tokenizer: Any, texts: Sequence[tuple[str, ...]], max_tokens: int) -> Encoded:
    """Tokenise rows of one or two segments, truncating the longer segment first.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: per row a tuple of one or two strings (a pair is read as two segments).
        max_tokens: limit per row, special tokens included.

    Raises:
        ValueError: rows of more than two segments, or some of one and some of two.
    """
    n_segments = {len(row) for row in texts}
    if not n_segments <= {1, 2} or len(n_segments) > 1:
        found = " and ".join(str(n) for n in sorted(n_segments))
        raise ValueError(f"an encoder reads one or two segments, the same number in every row; these rows have {found}")
    ids: list[list[int]] = []
    type_ids: list[list[int]] = []
    n_truncated = 0
    for start in range(0, len(texts), 4096):
        chunk = texts[start : start + 4096]
        first = [row[0] for row in chunk]
        second = [row[1] for row in chunk] if len(chunk[0]) == 2 else None
        out = tokenizer(
            first, second, truncation="longest_first", max_length=max_tokens, return_token_type_ids=True, padding=False
        )
        ids.extend(out["input_ids"])
        type_ids.extend(out["token_type_ids"])
        # A full row was (but for the rare exact fit) longer; the exact fit is told apart by its untruncated length.
        full = [i for i, row in enumerate(out["input_ids"]) if len(row) >= max_tokens]
        if full:
            again = tokenizer(
                [first[i] for i in full],
                [second[i] for i in full] if second is not None else None,
                truncation=False,
                verbose=False,
            )
            n_truncated += sum(len(row) > max_tokens for row in again["input_ids"])
    offsets = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in ids], out=offsets[1:])
    flat = np.fromiter((t for row in ids for t in row), dtype=np.int32, count=int(offsets[-1]))
    flat_types = np.fromiter((t for row in type_ids for t in row), dtype=np.int32, count=int(offsets[-1]))
    return Encoded(flat, flat_types, offsets, int(tokenizer.pad_token_id or 0), n_truncated)


def collate(encoded: Encoded, rows: Sequence[int] | NDArray[np.int64], device: torch.device) -> dict[str, Tensor]:
    """Pad the rows to the longest of them.

    Returns ``input_ids``, ``token_type_ids`` and ``attention_mask``, each int64 ``[len(rows), longest]``.
    """
    lengths = [int(encoded.offsets[i + 1] - encoded.offsets[i]) for i in rows]
    shape = (len(lengths), max(lengths))
    ids = np.full(shape, encoded.pad_id, dtype=np.int64)
    type_ids = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        first = encoded.offsets[row]
        ids[at, :length] = encoded.ids[first : first + length]
        type_ids[at, :length] = encoded.type_ids[first : first + length]
        mask[at, :length] = 1
    arrays = {"input_ids": ids, "token_type_ids": type_ids, "attention_mask": mask}
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}


def training_batches(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """One epoch of length-bucketed batches: every row once, order a pure function of (seed, epoch).

    Rows are shuffled, sorted by length inside windows of 50 batches, cut into batches, and the batches shuffled: the usual
    length grouping (as in `transformers`' ``group_by_length``), which keeps padding to a few per cent.
    """
    rng = random.Random(f"{seed}:{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    window = batch_size * _POOL_FACTOR
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), window):
        chunk = sorted(order[start : start + window], key=lambda i: int(lengths[i]))
        batches.extend(np.array(chunk[k : k + batch_size]) for k in range(0, len(chunk), batch_size))
    rng.shuffle(batches)
    return batches


def inference_batches(lengths: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Batches by falling length (ties by row), a pure function of the lengths: the largest comes first and fails first."""
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
