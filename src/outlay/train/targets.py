"""The teacher's words on disk: sparse logits with exact log-sum-exps (DESIGN decision 5).

A block of targets covers consecutive pool rows. A *position* is one place where the teacher spoke: a row of a classifier has
one, a generated sequence as many as tokens. Each position keeps its K largest raw logits and one log-sum-exp over the full
vocabulary per offered temperature, so that the mass outside the K is known exactly at each of those temperatures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TEMPERATURES = (1.0, 2.0, 4.0)
"""Offered temperatures; Kang et al. 2023 distil at 2 (their released script)."""

MAX_LOGITS = 64
"""Logits kept per position. Label sets are smaller, so a classifier's targets are complete."""


@dataclass(frozen=True, slots=True)
class SparseTargets:
    """Targets of consecutive pool rows.

    ``offsets``: int64 ``[rows + 1]``, row ``i`` owns positions ``offsets[i]:offsets[i + 1]``;
    ``indices``: int32 ``[positions, K]``, classes by falling logit; ``logits``: float32 ``[positions, K]``, raw;
    ``logsumexp``: float32 ``[positions, len(temperatures)]``, log Σ_v exp(z_v / T) over the full vocabulary;
    ``vocab_size``: V, classes the teacher chose among.
    """

    offsets: NDArray[np.int64]
    indices: NDArray[np.int32]
    logits: NDArray[np.float32]
    logsumexp: NDArray[np.float32]
    temperatures: tuple[float, ...]
    vocab_size: int

    @classmethod
    def from_logits(
        cls,
        logits: Tensor,
        offsets: NDArray[np.int64],
        *,
        max_logits: int = MAX_LOGITS,
        temperatures: Sequence[float] = TEMPERATURES,
    ) -> SparseTargets:
        """Keep the largest of full ``logits`` ``[positions, V]``."""
        full = logits.detach().float().cpu()
        top = full.topk(min(max_logits, full.shape[-1]), dim=-1)
        logsumexp = torch.stack([torch.logsumexp(full / t, dim=-1) for t in temperatures], dim=-1)
        return cls(
            offsets=np.asarray(offsets, dtype=np.int64),
            indices=top.indices.to(torch.int32).numpy(),
            logits=top.values.numpy(),
            logsumexp=logsumexp.numpy(),
            temperatures=tuple(float(t) for t in temperatures),
            vocab_size=full.shape[-1],
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

    def to_bytes(self) -> bytes:
        """Safetensors bytes, equal for equal targets."""
        from safetensors.numpy import save

        return save(
            {
                "offsets": np.ascontiguousarray(self.offsets),
                "indices": np.ascontiguousarray(self.indices),
                "logits": np.ascontiguousarray(self.logits),
                "logsumexp": np.ascontiguousarray(self.logsumexp),
            },
            metadata={"shape": json.dumps({"temperatures": self.temperatures, "vocab_size": self.vocab_size})},
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> SparseTargets:
        """Inverse of `to_bytes`."""
        from safetensors.numpy import load

        header_size = int.from_bytes(data[:8], "little")
        shape = json.loads(json.loads(data[8 : 8 + header_size])["__metadata__"]["shape"])
        arrays = load(data)
        return cls(
            offsets=arrays["offsets"],
            indices=arrays["indices"],
            logits=arrays["logits"],
            logsumexp=arrays["logsumexp"],
            temperatures=tuple(shape["temperatures"]),
            vocab_size=int(shape["vocab_size"]),
        )

    def select(self, rows: Sequence[int]) -> SparseTargets:
        """The targets of some rows, in the order given."""
        positions = [np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows]
        picked = np.concatenate(positions) if positions else np.zeros(0, dtype=np.int64)
        offsets = np.cumsum([0, *(len(p) for p in positions)])
        return replace(
            self,
            offsets=offsets.astype(np.int64),
            indices=self.indices[picked],
            logits=self.logits[picked],
            logsumexp=self.logsumexp[picked],
        )

    @classmethod
    def concatenate(cls, blocks: Sequence[SparseTargets]) -> SparseTargets:
        """Blocks of consecutive rows as one.

        Raises:
            ValueError: no blocks, or blocks of another vocabulary, K or temperatures.
        """
        if not blocks:
            raise ValueError("no blocks of targets to concatenate")
        first = blocks[0]
        for block in blocks:
            same = (block.vocab_size, block.temperatures) == (first.vocab_size, first.temperatures)
            if not same or block.logits.shape[1] != first.logits.shape[1]:
                raise ValueError("blocks of targets differ in vocabulary, temperatures or logits kept")
        starts = np.cumsum([0, *(int(block.offsets[-1]) for block in blocks)])
        offsets = [np.zeros(1, dtype=np.int64)]
        offsets += [block.offsets[1:] + start for block, start in zip(blocks, starts[:-1], strict=True)]
        return cls(
            offsets=np.concatenate(offsets),
            indices=np.concatenate([block.indices for block in blocks]),
            logits=np.concatenate([block.logits for block in blocks]),
            logsumexp=np.concatenate([block.logsumexp for block in blocks]),
            temperatures=first.temperatures,
            vocab_size=first.vocab_size,
        )
