"""Statistics of targets: probability and logits kept, bytes on disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from outlay.train.targets.sparse_logits import SparseLogits, SparsityRule, offsets_of


@dataclass(frozen=True, slots=True)
class TargetStatistics:
    """Statistics of targets: positions, logits, probability kept, bytes; two parts are added with ``+``.

    ``n_bytes``: of their arrays on disk, without the file's header; ``n_entries``: logits kept; ``kept_max``: most at a position;
    ``mass_kept``: the probability kept at temperature 1, summed over positions; ``mass_kept_min``: the least at a position;
    ``n_capped``: positions that keep ``max_logits`` and still leave out more than ``tail_mass``.
    """

    n_rows: int
    n_positions: int
    n_bytes: int
    n_entries: int = 0
    kept_max: int = 0
    mass_kept: float = 0.0
    mass_kept_min: float = 1.0
    n_capped: int = 0

    def __add__(self, other: TargetStatistics) -> TargetStatistics:
        return TargetStatistics(
            n_rows=self.n_rows + other.n_rows,
            n_positions=self.n_positions + other.n_positions,
            n_bytes=self.n_bytes + other.n_bytes,
            n_entries=self.n_entries + other.n_entries,
            kept_max=max(self.kept_max, other.kept_max),
            mass_kept=self.mass_kept + other.mass_kept,
            mass_kept_min=min(self.mass_kept_min, other.mass_kept_min),
            n_capped=self.n_capped + other.n_capped,
        )

    @property
    def bytes_per_position(self) -> float:
        """Bytes per position; a position of a generated answer is a token; 0 where there is none."""
        return self.n_bytes / self.n_positions if self.n_positions else 0.0

    @property
    def kept_mean(self) -> float:
        """Logits kept per position; 0 where there is none."""
        return self.n_entries / self.n_positions if self.n_positions else 0.0

    @property
    def mass_kept_mean(self) -> float:
        """Probability kept per position, at temperature 1; 1 where there is none."""
        return self.mass_kept / self.n_positions if self.n_positions else 1.0


def measure(positions: SparseLogits, rule: SparsityRule, column: int) -> TargetStatistics:
    """Measure positions without their rows; ``column``: that of temperature 1 in the log-sum-exps."""
    if len(positions) == 0:
        return TargetStatistics(0, 0, 0)
    counts = positions.counts(rule)
    mass = np.ones(len(positions))
    if not rule.complete:
        logits = positions.all_logits().astype(np.float64)
        shares = np.exp(logits - np.repeat(positions.logsumexp[:, column], counts))
        mass = np.minimum(np.add.reduceat(shares, offsets_of(counts)[:-1]), 1.0)
    narrow = positions.narrowed(rule)
    arrays = (narrow.units, narrow.logsumexp, narrow.indices, narrow.n_kept, narrow.logits)
    return TargetStatistics(
        n_rows=0,
        n_positions=len(positions),
        n_bytes=sum(array.nbytes for array in arrays if array is not None),
        n_entries=int(counts.sum()),
        kept_max=int(counts.max()),
        mass_kept=float(mass.sum()),
        mass_kept_min=float(mass.min()),
        n_capped=int(((counts == rule.limit) & (1.0 - mass > rule.tail_mass)).sum()),
    )
