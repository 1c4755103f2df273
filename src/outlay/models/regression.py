"""Size and cost of the regression that fits a head to vectors, without its libraries."""

from __future__ import annotations

from outlay.settings import ProbeSettings

MAX_ITERATIONS = 1000
"""Iterations of lbfgs at most."""
LOG_C_RANGE = (-4.0, 4.0)
"""Decimal logarithms of the weakest and the strongest C that is tried."""
FLOPS_PER_VALUE = 4
"""FLOPs of an iteration for each value and class: a product forward, one for the gradient, 2 FLOPs each."""
N_FEATURES_PER_WORD = 2
"""Features of TF-IDF per word of a text at most: the word, and the pair that it begins."""


def strengths(settings: ProbeSettings) -> list[float]:
    """Return the values of C that are tried, rising, their logarithms in equal steps; C = 1 alone where one is asked for."""
    if settings.strengths == 1:
        return [1.0]
    low, high = LOG_C_RANGE
    steps = settings.strengths - 1
    return [10.0 ** (low + (high - low) * i / steps) for i in range(settings.strengths)]


def iteration_flops(n_examples: int, n_values: int, n_outputs: int) -> int:
    """Return the FLOPs of one iteration over so many examples."""
    return FLOPS_PER_VALUE * n_examples * n_values * n_outputs


def most_flops(settings: ProbeSettings, n_examples: int, n_values: int, n_outputs: int) -> int:
    """Return the FLOPs of a whole fit at most: every fold at every strength, and all examples at the chosen one."""
    n_fits = settings.folds * settings.strengths + 1 if settings.strengths > 1 else 1
    return MAX_ITERATIONS * n_fits * iteration_flops(n_examples, n_values, n_outputs)
