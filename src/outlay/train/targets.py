"""The teacher's words on disk: sparse logits with exact log-sum-exps (DESIGN decision 5).

A block of targets covers consecutive pool rows. A *position* is one place where the teacher spoke: a row of a classifier has
one, a tagged row as many as tokens of text, a generated answer as many as tokens. Each position keeps what was said there, the K
largest raw logits and one log-sum-exp over the full vocabulary per offered temperature, so that the mass outside the K is known
exactly at each of those temperatures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outlay.form import TargetKind

TEMPERATURES = (1.0, 2.0, 4.0)
"""Offered temperatures; Kang et al. 2023 distil at 2 (their released script)."""

MAX_LOGITS = 64
"""Logits kept per position. Label sets are smaller, so a classifier's targets are complete."""

_CHUNK_LOGITS = 1 << 24
"""Logits looked at together (64 MiB of float32), whatever the vocabulary."""


class TargetBatch(NamedTuple):
    """Targets of some rows side by side, on the CPU; B rows, P positions.

    ``mask``: bool ``[B, P]``, the positions that count; ``units``: int64 ``[B, P]``, 0 at the others; ``indices``: int64
    ``[B, P, K]``; ``logits``: float32 ``[B, P, K]``; ``logsumexp``: float32 ``[B, P, len(temperatures)]``. Positions that do not
    count repeat some other one in these three, so that every number is finite.
    """

    units: Tensor
    mask: Tensor
    indices: Tensor
    logits: Tensor
    logsumexp: Tensor


@dataclass(frozen=True, slots=True)
class SparseTargets:
    """Targets of consecutive pool rows.

    ``kind``: what a unit is; ``text`` has answers and no positions;
    ``offsets``: int64 ``[rows + 1]``, row ``i`` owns positions ``offsets[i]:offsets[i + 1]``;
    ``units``: int32 ``[positions]``, the class, tag or token that was said; a decoder reads it one position later;
    ``n_real``: int32 ``[rows]``, real positions of each row, its first ones; padding follows where it was kept;
    ``indices``: int32 ``[positions, K]``, classes by falling logit; ``logits``: float32 ``[positions, K]``, raw;
    ``logsumexp``: float32 ``[positions, len(temperatures)]``, log Σ_v exp(z_v / T) over the full vocabulary;
    ``vocab_size``: V, classes the teacher chose among (0 for ``text``); ``answers``: every row's answer in words.

    Raises:
        ValueError: arrays whose lengths do not belong together.
    """

    kind: TargetKind
    offsets: NDArray[np.int64]
    units: NDArray[np.int32]
    n_real: NDArray[np.int32]
    indices: NDArray[np.int32]
    logits: NDArray[np.float32]
    logsumexp: NDArray[np.float32]
    temperatures: tuple[float, ...]
    vocab_size: int
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        n_rows, n_positions = len(self.offsets) - 1, int(self.offsets[-1])
        by_row = {"n_real": len(self.n_real), "answers": len(self.answers)}
        by_position = {name: len(getattr(self, name)) for name in ("units", "indices", "logits", "logsumexp")}
        for name, n in (by_row | by_position).items():
            expected = n_rows if name in by_row else n_positions
            if n != expected:
                raise ValueError(
                    f"targets of {n_rows} rows and {n_positions} positions have {n} {name}, not {expected}"
                )

    @classmethod
    def from_logits(
        cls,
        kind: TargetKind,
        logits: Tensor,
        offsets: NDArray[np.int64],
        units: NDArray[np.int32],
        answers: Sequence[str],
        *,
        n_real: NDArray[np.int32] | None = None,
        max_logits: int = MAX_LOGITS,
        temperatures: Sequence[float] = TEMPERATURES,
    ) -> SparseTargets:
        """Keep the largest of full ``logits`` ``[positions, V]``; `TargetsBuilder` does so by batches.

        ``n_real`` ``None``: every position is real. ``max_logits`` 0: all of them are kept.
        """
        kept = _keep(logits.detach(), max_logits, temperatures)
        counts = np.diff(offsets)
        return cls(
            kind=kind,
            offsets=np.asarray(offsets, dtype=np.int64),
            units=np.asarray(units, dtype=np.int32),
            n_real=np.asarray(counts if n_real is None else n_real, dtype=np.int32),
            indices=kept.indices,
            logits=kept.logits,
            logsumexp=kept.logsumexp,
            temperatures=tuple(float(t) for t in temperatures),
            vocab_size=logits.shape[-1],
            answers=tuple(answers),
        )

    @classmethod
    def text_only(cls, answers: Sequence[str]) -> SparseTargets:
        """The teacher's answers and nothing else, for a student of another tokenizer."""
        return cls(
            kind="text",
            offsets=np.zeros(len(answers) + 1, dtype=np.int64),
            units=np.zeros(0, dtype=np.int32),
            n_real=np.zeros(len(answers), dtype=np.int32),
            indices=np.zeros((0, 0), dtype=np.int32),
            logits=np.zeros((0, 0), dtype=np.float32),
            logsumexp=np.zeros((0, 0), dtype=np.float32),
            temperatures=(),
            vocab_size=0,
            answers=tuple(answers),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def temperature_column(self, temperature: float) -> int:
        """Which column of ``logsumexp`` belongs to ``temperature``.

        Raises:
            ValueError: the temperature was not offered when the targets were written.
        """
        if temperature not in self.temperatures:
            offered = ", ".join(f"{t:g}" for t in self.temperatures)
            raise ValueError(f"targets hold no log-sum-exp for temperature {temperature:g}; offered: {offered}")
        return self.temperatures.index(temperature)

    def batch(self, rows: Sequence[int] | NDArray[np.int64], *, with_padding: bool = False) -> TargetBatch:
        """Targets of ``rows`` side by side, as wide as the longest of them.

        With ``with_padding`` every position counts, padding included, as in the published objective: a batch is as wide as its
        longest answer and one position more (the published script feeds the generated end of the answer to the decoder too), at
        most as wide as the rows are kept.

        Raises:
            ValueError: targets of kind ``text``; ``with_padding`` where padding was not kept.
        """
        if self.kind == "text":
            raise ValueError("targets of kind text hold answers only; train on them with cross-entropy")
        picked = np.asarray(rows, dtype=np.int64)
        starts = self.offsets[picked]
        counts = self.offsets[picked + 1] - starts
        n_real = self.n_real[picked].astype(np.int64)
        width = self._padded_width(picked, counts, n_real) if with_padding else int(n_real.max(initial=0))
        columns = np.arange(width, dtype=np.int64)
        mask = np.ones((len(picked), width), dtype=bool) if with_padding else columns < n_real[:, None]
        # Beyond its last position a row repeats it; a row without any repeats a neighbour's.
        at = np.minimum(starts[:, None] + columns, np.maximum(starts + counts - 1, 0)[:, None])
        return TargetBatch(
            units=torch.from_numpy(np.where(mask, self.units[at], 0).astype(np.int64)),
            mask=torch.from_numpy(mask),
            indices=torch.from_numpy(self.indices[at].astype(np.int64)),
            logits=torch.from_numpy(self.logits[at]),
            logsumexp=torch.from_numpy(self.logsumexp[at]),
        )

    def _padded_width(self, rows: NDArray[np.int64], counts: NDArray[np.int64], n_real: NDArray[np.int64]) -> int:
        kept, longest = int(counts.max(initial=0)), int(n_real.max(initial=0))
        width = min(longest + (self.kind == "tokens"), kept)
        short = np.flatnonzero(counts < width)
        if len(short):
            raise ValueError(
                f"row {int(rows[short[0]])} keeps {int(counts[short[0]])} positions but its batch is {width} wide; "
                "the published objective needs targets that keep their padding (keep_padding)"
            )
        return width

    def to_bytes(self) -> bytes:
        """Safetensors bytes, equal for equal targets."""
        from safetensors.numpy import save

        shape = {"kind": self.kind, "temperatures": self.temperatures, "vocab_size": self.vocab_size}
        names = ("offsets", "units", "n_real", "indices", "logits", "logsumexp")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in names}
        arrays["answers"] = np.frombuffer(json.dumps(self.answers).encode("ascii"), dtype=np.uint8)
        return save(arrays, metadata={"shape": json.dumps(shape)})

    @classmethod
    def from_bytes(cls, data: bytes) -> SparseTargets:
        """Inverse of `to_bytes`."""
        from safetensors.numpy import load

        header_size = int.from_bytes(data[:8], "little")
        shape = json.loads(json.loads(data[8 : 8 + header_size])["__metadata__"]["shape"])
        arrays: dict[str, NDArray[Any]] = load(data)
        return cls(
            kind=shape["kind"],
            offsets=arrays["offsets"],
            units=arrays["units"],
            n_real=arrays["n_real"],
            indices=arrays["indices"],
            logits=arrays["logits"],
            logsumexp=arrays["logsumexp"],
            temperatures=tuple(shape["temperatures"]),
            vocab_size=int(shape["vocab_size"]),
            answers=tuple(json.loads(arrays["answers"].tobytes())),
        )

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> SparseTargets:
        """The targets of some rows, in the order given."""
        picked = np.asarray(rows, dtype=np.int64)
        counts = np.diff(self.offsets)[picked]
        at = _ranges(self.offsets[picked], counts)
        return SparseTargets(
            kind=self.kind,
            offsets=_offsets(counts),
            units=self.units[at],
            n_real=self.n_real[picked],
            indices=self.indices[at],
            logits=self.logits[at],
            logsumexp=self.logsumexp[at],
            temperatures=self.temperatures,
            vocab_size=self.vocab_size,
            answers=tuple(self.answers[int(row)] for row in picked),
        )

    @classmethod
    def concatenate(cls, blocks: Sequence[SparseTargets]) -> SparseTargets:
        """Blocks of consecutive rows as one.

        Raises:
            ValueError: no blocks, or blocks of another kind, vocabulary, K or temperatures.
        """
        if not blocks:
            raise ValueError("no blocks of targets to concatenate")
        first = blocks[0]
        for block in blocks:
            same = (block.kind, block.vocab_size, block.temperatures) == (
                first.kind,
                first.vocab_size,
                first.temperatures,
            )
            if not same or block.logits.shape[1] != first.logits.shape[1]:
                raise ValueError("blocks of targets differ in kind, vocabulary, temperatures or logits kept")
        return cls(
            kind=first.kind,
            offsets=_offsets(np.concatenate([np.diff(block.offsets) for block in blocks])),
            units=np.concatenate([block.units for block in blocks]),
            n_real=np.concatenate([block.n_real for block in blocks]),
            indices=np.concatenate([block.indices for block in blocks]),
            logits=np.concatenate([block.logits for block in blocks]),
            logsumexp=np.concatenate([block.logsumexp for block in blocks]),
            temperatures=first.temperatures,
            vocab_size=first.vocab_size,
            answers=tuple(answer for block in blocks for answer in block.answers),
        )


class TargetsBuilder:
    """Targets from batches of rows in any order; of full logits, one batch at a time is all that is ever held.

    ``vocab_size``: the first so many columns are the vocabulary, the others are padding of the output layer and are left out;
    ``None`` = all. ``max_logits``: 0 = all.
    """

    def __init__(
        self,
        kind: TargetKind,
        n_rows: int,
        *,
        vocab_size: int | None = None,
        max_logits: int = MAX_LOGITS,
        temperatures: Sequence[float] = TEMPERATURES,
    ) -> None:
        self._kind: TargetKind = kind
        self._vocab_size = vocab_size
        self._max_logits = max_logits
        self._temperatures = tuple(float(t) for t in temperatures)
        self._n_kept = np.full(n_rows, -1, dtype=np.int64)
        self._n_real = np.zeros(n_rows, dtype=np.int32)
        self._rows: list[NDArray[np.int64]] = []
        self._pieces: list[_Kept] = []

    def add(
        self,
        rows: NDArray[np.int64],
        logits: Tensor,
        units: NDArray[np.int32],
        *,
        n_kept: NDArray[np.int64],
        n_real: NDArray[np.int64] | None = None,
    ) -> None:
        """Keep the largest logits of a batch.

        Args:
            rows: ``[b]``, which rows these are.
            logits: ``[b, P, V]``, any float dtype and device.
            units: ``[b, P]``, what was said at each position.
            n_kept: ``[b]``, positions of each row that are kept, its first ones.
            n_real: ``[b]``, those of them that are real; ``None`` = all.

        Raises:
            ValueError: a row that was added before, or fewer classes than the vocabulary has.
        """
        twice = np.flatnonzero(self._n_kept[rows] >= 0)
        if len(twice):
            raise ValueError(f"targets of row {int(rows[twice[0]])} were added before")
        vocab_size = logits.shape[-1] if self._vocab_size is None else self._vocab_size
        if vocab_size > logits.shape[-1]:
            raise ValueError(f"a vocabulary of {vocab_size} but logits of {logits.shape[-1]} classes")
        self._vocab_size = vocab_size
        at = np.arange(logits.shape[1]) < np.asarray(n_kept)[:, None]
        real = logits.detach()[torch.from_numpy(at).to(logits.device)][:, :vocab_size]
        kept = _keep(real, self._max_logits, self._temperatures)
        self._n_kept[rows] = n_kept
        self._n_real[rows] = n_kept if n_real is None else n_real
        self._rows.append(np.asarray(rows, dtype=np.int64))
        self._pieces.append(kept._replace(units=np.asarray(units, dtype=np.int32)[at]))

    def build(self, answers: Sequence[str]) -> SparseTargets:
        """The targets of all rows, in row order.

        Raises:
            ValueError: rows that were never added.
        """
        missing = np.flatnonzero(self._n_kept < 0)
        if len(missing):
            raise ValueError(f"targets of {len(missing)} rows were never added, the first is row {int(missing[0])}")
        added = np.concatenate([np.zeros(0, dtype=np.int64), *self._rows])
        came_at = np.empty_like(added)
        came_at[added] = _offsets(self._n_kept[added])[:-1]
        order = _ranges(came_at, self._n_kept)
        pieces = self._pieces or [_keep(torch.zeros(0, 0), 0, self._temperatures)]
        whole = _Kept(*(np.concatenate(arrays)[order] for arrays in zip(*pieces, strict=True)))
        return SparseTargets(
            kind=self._kind,
            offsets=_offsets(self._n_kept),
            units=whole.units,
            n_real=self._n_real.copy(),
            indices=whole.indices,
            logits=whole.logits,
            logsumexp=whole.logsumexp,
            temperatures=self._temperatures,
            vocab_size=self._vocab_size or 0,
            answers=tuple(answers),
        )


class _Kept(NamedTuple):
    """What is kept of positions, in their order; see `SparseTargets`."""

    units: NDArray[np.int32]
    indices: NDArray[np.int32]
    logits: NDArray[np.float32]
    logsumexp: NDArray[np.float32]


def _keep(logits: Tensor, max_logits: int, temperatures: Sequence[float]) -> _Kept:
    """The largest of ``logits`` ``[positions, V]`` and their log-sum-exps; units are filled in by the caller."""
    vocab_size = logits.shape[-1]
    k = min(max_logits, vocab_size) if max_logits else vocab_size
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for chunk in torch.split(logits, max(1, _CHUNK_LOGITS // max(1, vocab_size))):
        full = chunk.float()
        top = full.topk(k, dim=-1)
        logsumexp = torch.stack([torch.logsumexp(full / t, dim=-1) for t in temperatures], dim=-1)
        parts.append((top.indices.to(torch.int32).cpu(), top.values.cpu(), logsumexp.cpu()))
    indices, values, sums = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return _Kept(np.zeros(0, dtype=np.int32), indices, values, sums)


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[rows + 1]`` of ``[rows]``."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``start, start + 1, … start + count - 1`` of each pair, end to end."""
    offsets = _offsets(counts)
    return np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1], dtype=np.int64)
