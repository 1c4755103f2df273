"""Texts to tensors: tokenise once, pad late. Which rows go together is the affair of `outlay.train.batches`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokenised rows laid end to end.

    ``ids`` and ``type_ids``: int32 ``[total tokens]``; ``offsets``: int64 ``[rows + 1]``; row ``i`` is
    ``offsets[i]:offsets[i + 1]``. ``n_truncated`` counts the rows that were longer than the limit. ``spans``: int32
    ``[total tokens, 2]``, the characters of the row's first segment that a token stands for, empty (0, 0) for special tokens;
    kept only where it was asked for.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    pad_id: int
    n_truncated: int
    spans: NDArray[np.int32] | None = None

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

    def row(self, row: int) -> NDArray[np.int32]:
        """The ids of one row."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True, slots=True)
class Units:
    """What rows are answered with, in the model's own units (classes, tags or tokens), laid end to end.

    ``ids``: int32 ``[positions]``; ``offsets``: int64 ``[rows + 1]``. ``n_cut`` counts answers longer than the limit,
    ``n_unaligned`` entities that were not found in their source.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    n_cut: int = 0
    n_unaligned: int = 0

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], *, n_cut: int = 0, n_unaligned: int = 0) -> Units:
        """From one sequence per row."""
        flat, offsets = _flat(rows)
        return cls(flat, offsets, n_cut, n_unaligned)

    @classmethod
    def of_lengths(cls, lengths: NDArray[np.int64]) -> Units:
        """Rows of so many positions, all of unit 0."""
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
        return cls(np.zeros(int(offsets[-1]), dtype=np.int32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Positions of each row, int64 ``[rows]``."""
        return np.diff(self.offsets)

    def batch(self, rows: Sequence[int] | NDArray[np.int64], *, width: int | None = None) -> tuple[Tensor, Tensor]:
        """Pad some rows to the longest of them, or to ``width`` positions.

        Returns int64 ids and a bool mask, each ``[len(rows), longest]``; 0 where nothing is.
        """
        picked = np.asarray(rows, dtype=np.int64)
        lengths = self.offsets[picked + 1] - self.offsets[picked]
        places = np.arange(max(1, int(lengths.max(initial=0))) if width is None else width)
        mask = places[None, :] < lengths[:, None]
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = self.ids[(self.offsets[picked][:, None] + places[None, :])[mask]]
        return torch.from_numpy(ids), torch.from_numpy(mask)


def encode(tokenizer: Any, texts: Sequence[tuple[str, ...]], max_tokens: int, *, with_spans: bool = False) -> Encoded:
    """Tokenise rows of one or two segments, truncating the longer segment first.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: per row a tuple of one or two strings (a pair is read as two segments).
        max_tokens: limit per row, special tokens included.
        with_spans: keep the characters each token stands for.

    Raises:
        ValueError: rows of more than two segments, or some of one and some of two.
    """
    n_segments = {len(row) for row in texts}
    if not n_segments <= {1, 2} or len(n_segments) > 1:
        found = " and ".join(str(n) for n in sorted(n_segments))
        raise ValueError(f"an encoder reads one or two segments, the same number in every row; these rows have {found}")
    ids: list[list[int]] = []
    type_ids: list[list[int]] = []
    spans: list[tuple[int, int]] = []
    n_truncated = 0
    for start in range(0, len(texts), _CHUNK_ROWS):
        chunk = texts[start : start + _CHUNK_ROWS]
        first = [row[0] for row in chunk]
        second = [row[1] for row in chunk] if len(chunk[0]) == 2 else None
        out = tokenizer(
            first,
            second,
            truncation="longest_first",
            max_length=max_tokens,
            return_token_type_ids=True,
            return_offsets_mapping=with_spans,
            padding=False,
        )
        ids.extend(out["input_ids"])
        type_ids.extend(out["token_type_ids"])
        if with_spans:
            spans.extend(span for row in out["offset_mapping"] for span in row)
        n_truncated += _n_longer(tokenizer, first, second, out["input_ids"], max_tokens)
    flat, offsets = _flat(ids)
    flat_types, _ = _flat(type_ids)
    pad_id = int(tokenizer.pad_token_id or 0)
    kept = np.array(spans, dtype=np.int32).reshape(-1, 2) if with_spans else None
    return Encoded(flat, flat_types, offsets, pad_id, n_truncated, kept)


def collate(encoded: Encoded, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
    """Pad the rows to the longest of them.

    Returns ``input_ids``, ``token_type_ids`` and ``attention_mask``, each int64 ``[len(rows), longest]`` on the CPU.
    """
    picked = np.asarray(rows, dtype=np.int64)
    lengths = encoded.offsets[picked + 1] - encoded.offsets[picked]
    places = np.arange(int(lengths.max()))
    mask = places[None, :] < lengths[:, None]
    at = (encoded.offsets[picked][:, None] + places[None, :])[mask]
    ids = np.full(mask.shape, encoded.pad_id, dtype=np.int64)
    ids[mask] = encoded.ids[at]
    type_ids = np.zeros(mask.shape, dtype=np.int64)
    type_ids[mask] = encoded.type_ids[at]
    arrays = {"input_ids": ids, "token_type_ids": type_ids, "attention_mask": mask.astype(np.int64)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _flat(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.fromiter((unit for row in rows for unit in row), dtype=np.int32, count=int(offsets[-1]))
    return flat, offsets


def _n_longer(tokenizer: Any, first: list[str], second: list[str] | None, ids: list[list[int]], max_tokens: int) -> int:
    """Rows longer than the limit. A full row was (but for the rare exact fit) longer; its untruncated length tells."""
    full = [i for i, row in enumerate(ids) if len(row) >= max_tokens]
    if not full:
        return 0
    again = tokenizer(
        [first[i] for i in full],
        [second[i] for i in full] if second is not None else None,
        truncation=False,
        verbose=False,
    )
    return sum(len(row) > max_tokens for row in again["input_ids"])
