"""Tokenisation: texts are tokenised once and padded late. `outlay.train.batching` decides which rows go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outlay.models import token_cache

Ids = NDArray[Any]
"""Token ids in int32, uint16 or uint8."""

Rows = NDArray[np.int64]
"""Numbers of rows, int64."""

_CHUNK_ROWS = 4096


class _EndToEnd:
    """Rows of ids laid end to end: row ``i`` is ``ids[offsets[i]:offsets[i + 1]]``."""

    __slots__ = ()
    ids: Ids
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Ids of each row, int64 ``[rows]``; special tokens count."""
        return np.diff(self.offsets)

    def row(self, row: int) -> Ids:
        """Return the ids of one row."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def side_by_side(
        self, rows: Sequence[int] | NDArray[np.int64], width: int | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return which of ``width`` places beside each other (the longest row's) are taken, and the indices of their ids."""
        picked = np.asarray(rows, dtype=np.int64)
        starts = self.offsets[picked]
        lengths = self.offsets[picked + 1] - starts
        places = np.arange(max(1, int(lengths.max(initial=0))) if width is None else width)
        mask = places < lengths[:, None]
        return mask, (starts[:, None] + places)[mask]


@dataclass(frozen=True, slots=True)
class Encoded(_EndToEnd):
    """Tokenised rows laid end to end.

    ``ids`` and ``type_ids``: ``[total tokens]``, int32, or where they come from the disk (`outlay.models.token_cache`) a smaller
    type that holds them; ``offsets``: int64 ``[rows + 1]``; ``n_truncated``: rows that were longer than the limit.
    ``spans``, where asked for: int32 ``[total tokens, 2]``, the characters of the row's first segment that a token stands for,
    (0, 0) for special tokens.
    """

    ids: Ids
    type_ids: Ids
    offsets: NDArray[np.int64]
    pad_id: int
    n_truncated: int
    spans: NDArray[np.int32] | None = None

    @property
    def n_tokens(self) -> int:
        """Real tokens of all rows, special tokens included, padding not."""
        return int(self.offsets[-1])


@dataclass(frozen=True, slots=True)
class AnswerIds(_EndToEnd):
    """Answers in a model's own ids (classes, tags or tokens), laid end to end.

    ``ids``: ``[positions]``, int32, or from the disk a smaller type; ``offsets``: int64 ``[rows + 1]``. ``n_cut`` counts answers
    longer than the limit, ``n_unaligned`` entities that were not found in their source.
    """

    ids: Ids
    offsets: NDArray[np.int64]
    n_cut: int = 0
    n_unaligned: int = 0

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | Ids], *, n_cut: int = 0, n_unaligned: int = 0) -> AnswerIds:
        """Build answer ids from one sequence per row."""
        flat, offsets = _flat(rows)
        return cls(flat, offsets, n_cut, n_unaligned)

    @classmethod
    def of_lengths(cls, lengths: NDArray[np.int64]) -> AnswerIds:
        """Return rows of so many positions, all of unit 0."""
        offsets = _offsets(lengths)
        return cls(np.zeros(int(offsets[-1]), dtype=np.int32), offsets)

    def batch(
        self, rows: Sequence[int] | NDArray[np.int64], *, width: int | None = None, pad: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Pad some rows with ``pad`` to the longest of them, or to ``width`` positions.

        Returns int64 ids and a bool mask, each ``[len(rows), longest]``.
        """
        mask, at = self.side_by_side(rows, width)
        ids = np.full(mask.shape, pad, dtype=np.int64)
        ids[mask] = self.ids[at]
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
    key = token_cache.key_of(tokenizer, f"sources of {max_tokens}, spans {with_spans}", texts)
    cached = token_cache.read(key)
    pad_id = int(tokenizer.pad_token_id or 0)
    if cached is not None:
        arrays = cached.arrays
        # Zeros that take no memory.
        type_ids = arrays.get("type_ids", np.broadcast_to(np.uint8(0), arrays["ids"].shape))
        n_truncated = cached.counts["n_truncated"]
        return Encoded(arrays["ids"], type_ids, arrays["offsets"], pad_id, n_truncated, arrays.get("spans"))
    starts = range(0, len(texts), _CHUNK_ROWS)
    chunks = [_tokenise(tokenizer, texts[start : start + _CHUNK_ROWS], max_tokens, with_spans) for start in starts]
    encoded = Encoded(
        ids=_end_to_end([chunk.ids for chunk in chunks]),
        type_ids=_end_to_end([chunk.type_ids for chunk in chunks]),
        offsets=_offsets(_end_to_end([chunk.lengths for chunk in chunks])),
        pad_id=pad_id,
        n_truncated=sum(chunk.n_truncated for chunk in chunks),
        spans=_end_to_end([chunk.spans.ravel() for chunk in chunks if chunk.spans is not None]).reshape(-1, 2)
        if with_spans
        else None,
    )
    token_cache.write(key, _arrays(encoded), {"n_truncated": encoded.n_truncated})
    return encoded


def cached_answers(tokenizer: Any, how: str, answers: Sequence[str], make: Callable[[], AnswerIds]) -> AnswerIds:
    """Return the ids of answers from the cache, or made by ``make``; ``how``: what decides them beside the tokenizer."""
    key = token_cache.key_of(tokenizer, f"answers, {how}", [(answer,) for answer in answers])
    cached = token_cache.read(key)
    if cached is not None:
        return AnswerIds(cached.arrays["ids"], cached.arrays["offsets"], **cached.counts)
    units = make()
    counts = {"n_cut": units.n_cut, "n_unaligned": units.n_unaligned}
    token_cache.write(key, {"ids": _narrow(units.ids), "offsets": units.offsets}, counts)
    return units


def collate(encoded: Encoded, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
    """Pad the rows to the longest of them.

    Returns ``input_ids``, ``token_type_ids`` and ``attention_mask``, each int64 ``[len(rows), longest]`` on the CPU.
    """
    mask, at = encoded.side_by_side(rows)
    ids = np.full(mask.shape, encoded.pad_id, dtype=np.int64)
    ids[mask] = encoded.ids[at]
    type_ids = np.zeros(mask.shape, dtype=np.int64)
    type_ids[mask] = encoded.type_ids[at]
    arrays = {"input_ids": ids, "token_type_ids": type_ids, "attention_mask": mask.astype(np.int64)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _tokenise(tokenizer: Any, texts: Sequence[tuple[str, ...]], max_tokens: int, with_spans: bool) -> Encoded:
    """Tokenise some rows in one call, which a fast tokenizer shares among its threads."""
    first = [row[0] for row in texts]
    second = [row[1] for row in texts] if len(texts[0]) == 2 else None
    out = tokenizer(
        first,
        second,
        truncation="longest_first",
        max_length=max_tokens,
        return_token_type_ids=True,
        return_attention_mask=False,
        return_offsets_mapping=with_spans,
        padding=False,
    )
    ids, offsets = _flat(out["input_ids"])
    type_ids, _ = _flat(out["token_type_ids"])
    spans = None
    if with_spans:
        edges = chain.from_iterable(chain.from_iterable(out["offset_mapping"]))
        spans = np.fromiter(edges, dtype=np.int32, count=2 * len(ids)).reshape(-1, 2)
    full = np.flatnonzero(np.diff(offsets) >= max_tokens).tolist()
    # A fast tokenizer keeps what it cut off; of a slow one the untruncated length tells.
    if out.encodings is not None:
        n_truncated = sum(bool(out.encodings[row].overflowing) for row in full)
    else:
        n_truncated = _n_longer(tokenizer, first, second, full, max_tokens)
    return Encoded(ids, type_ids, offsets, 0, n_truncated, spans)


def _arrays(encoded: Encoded) -> dict[str, NDArray[Any]]:
    """Return the arrays kept on disk: type ids only where there are any, all in as few bytes as hold them."""
    arrays: dict[str, NDArray[Any]] = {"ids": _narrow(encoded.ids), "offsets": encoded.offsets}
    if encoded.type_ids.any():
        arrays["type_ids"] = _narrow(encoded.type_ids)
    return arrays if encoded.spans is None else {**arrays, "spans": encoded.spans}


def _narrow(ids: Ids) -> Ids:
    """Convert ids to the smallest of uint8, uint16 and int32 that holds them."""
    most, least = int(ids.max(initial=0)), int(ids.min(initial=0))
    kind = np.uint8 if most < 2**8 else np.uint16 if most < 2**16 else np.int32
    narrow: Ids = ids.astype(np.int32 if least < 0 else kind)
    return narrow


def _flat(rows: Sequence[Sequence[int] | Ids]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    offsets = _offsets([len(row) for row in rows])
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1])), offsets


def _offsets(lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _end_to_end(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=np.int32), *arrays])


def _n_longer(tokenizer: Any, first: list[str], second: list[str] | None, full: list[int], max_tokens: int) -> int:
    """Count the rows longer than the limit among those that fill it: the rare exact fit is not longer."""
    if not full:
        return 0
    again = tokenizer(
        [first[i] for i in full],
        [second[i] for i in full] if second is not None else None,
        truncation=False,
        verbose=False,
    )
    return sum(len(row) > max_tokens for row in again["input_ids"])
