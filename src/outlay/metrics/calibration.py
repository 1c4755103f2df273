"""Calibration of probabilities: the temperature that fits dev labels best, and the expected calibration error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

N_BINS = 15
"""Bins of confidence, of equal width (Guo et al. 2017, section 2)."""
TEMPERATURE_RANGE = (0.05, 20.0)
"""Limits of a temperature: at the first, answers are practically certain, at the last, even."""
_N_HALVINGS = 60


def fit_temperature(logits: NDArray[np.floating], classes: NDArray[np.int64]) -> float:
    """Return the temperature T at which softmax(logits / T) gives some labels the least log-loss (Guo et al. 2017, section 4.2).

    The loss is convex in 1 / T; its zero slope is found by halving. Where every answer is right, or none, it lies at a limit of
    `TEMPERATURE_RANGE`.

    Args:
        logits: float ``[rows, classes]``.
        classes: of the labels, int64 ``[rows]``.
    """
    z = logits.astype(np.float64)
    # Of the label itself exactly 0, so that the slope of a sure answer is not lost to rounding.
    excess = z - z[np.arange(len(z)), classes, None]

    def slope(inverse: float) -> float:
        """Derivative of the mean log-loss by 1 / T: the mean logit expected, less that of the label."""
        scaled = inverse * z
        weights = np.exp(scaled - scaled.max(1, keepdims=True))
        return float(((weights * excess).sum(1) / weights.sum(1)).mean())

    low, high = 1.0 / TEMPERATURE_RANGE[1], 1.0 / TEMPERATURE_RANGE[0]
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) <= 0 else (low, middle)
    return float(round(2.0 / (low + high), 6))


def probabilities_at(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Return softmax(logits / temperature), float64 ``[rows, classes]``."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    probabilities: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return probabilities


N_DIGITS = 6
"""Decimals of a probability in files; an ECE is that of the probabilities so rounded, and its readers find the same."""


def confidences_of(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probability of each row's answer as files hold it, float64 ``[rows]``."""
    confidence: NDArray[np.float64] = probabilities.max(1).astype(np.float64).round(N_DIGITS)
    return confidence


def given_probabilities(rows: Sequence[Sequence[float]] | None) -> NDArray[np.float64] | None:
    """Return probabilities as a file holds them, float64 ``[rows, classes]``; ``None`` for a model without."""
    return None if rows is None else np.array(rows, dtype=np.float64)


def calibration_error_of(
    confidences: Sequence[float] | NDArray[np.floating], answers: Sequence[str], golds: Sequence[str]
) -> float:
    """Return the expected calibration error of answers, rounded to 4 decimals; an answer other than the gold one is wrong."""
    is_right = np.array([answer == gold for answer, gold in zip(answers, golds, strict=True)])
    return round(_gap(np.asarray(confidences, dtype=np.float64), is_right), 4)


def expected_calibration_error(probabilities: NDArray[np.floating], classes: NDArray[np.int64]) -> float:
    """Return the expected calibration error in points, 0 to 100 (Guo et al. 2017, equation 3, 15 bins of equal width).

    Args:
        probabilities: float ``[rows, classes]``, rows that sum to 1.
        classes: of the labels, int64 ``[rows]``.
    """
    return _gap(probabilities.max(1).astype(np.float64), probabilities.argmax(1) == classes)


def reliability(
    confidences: Sequence[float] | NDArray[np.floating], answers: Sequence[str], golds: Sequence[str]
) -> list[tuple[int, float, float]]:
    """Return the rows, mean confidence and accuracy (0-1) of each bin that is not empty, from the least sure on."""
    confidence = np.asarray(confidences, dtype=np.float64)
    is_right = np.array([answer == gold for answer, gold in zip(answers, golds, strict=True)])
    bins = _bins(confidence)
    counts = np.bincount(bins, minlength=N_BINS)
    sure, right = (np.bincount(bins, weights=each, minlength=N_BINS) for each in (confidence, is_right))
    return [(int(n), float(sure[i] / n), float(right[i] / n)) for i, n in enumerate(counts) if n]


def _gap(confidence: NDArray[np.float64], is_right: NDArray[np.bool_]) -> float:
    """Return the mean distance of confidence and accuracy over bins, weighted by their rows, in points."""
    gaps = np.bincount(_bins(confidence), weights=is_right - confidence, minlength=N_BINS)
    return float(100.0 * np.abs(gaps).sum() / len(confidence))


def _bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each confidence; a bin has its upper edge: (0, 1/15], (1/15, 2/15], ..."""
    found: NDArray[np.int64] = np.clip(np.ceil(confidence * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)
    return found
