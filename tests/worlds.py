"""Made-up studies whose truth is known: seeds of a given spread, rows of a given difficulty, strategies that are equal or not.

Per row a difficulty that both strategies share, and one that a strategy's seeds share; per seed a shift of all its answers. A
shift's spread is given in points of accuracy. Seeds of two strategies may share their luck (the same labels were bought).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EASE = 1.2
"""Mean log odds of a right answer: about 67 % are right."""
SHARED, OWN = 2.5, 1.0
"""Standard deviations over rows of what both strategies, and what one strategy's seeds, find easy or hard."""


def _share(log_odds: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-log_odds)))


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
"""For a mean over normal values."""
_RIGHT = _share(EASE + float(np.hypot(SHARED, OWN)) * NODES)
SLOPE = float(100 * (WEIGHTS * _RIGHT * (1 - _RIGHT)).sum())
"""Points of accuracy per unit of log odds."""


@dataclass(frozen=True)
class World:
    """How a study's answers come about."""

    n_rows: int
    spread: float
    """Standard deviation over seeds, in points of accuracy."""
    common: float = 0.0
    """Correlation of the two strategies' seeds."""
    advantage: float = 0.0
    """Points by which the first strategy is better."""

    @property
    def accuracy(self) -> float:
        """The mean over all seeds and rows that there are, of the second strategy."""
        spread = float(np.sqrt(SHARED**2 + OWN**2 + (self.spread / SLOPE) ** 2))
        return float(100 * (WEIGHTS * _share(EASE + spread * NODES)).sum())

    def study(self, n_seeds: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Right (100) or wrong (0) per seed and row, of either strategy: ``[n_seeds, n_rows]``."""
        difficulty = rng.normal(EASE, SHARED, self.n_rows)
        luck = rng.normal(size=(3, n_seeds, 1))
        sides = []
        for i in range(2):
            shift = np.sqrt(self.common) * luck[2] + np.sqrt(1 - self.common) * luck[i]
            log_odds = difficulty + rng.normal(0, OWN, self.n_rows) + self.spread / SLOPE * shift
            log_odds = log_odds + (self.advantage / SLOPE if i == 0 else 0.0)
            sides.append(100.0 * (rng.random(log_odds.shape, dtype=np.float32) < _share(log_odds)))
        return sides[0], sides[1]
