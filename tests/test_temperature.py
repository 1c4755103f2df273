"""The temperature of probabilities against scipy's minimum, and the calibration error against a loop and values by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from outlay.metrics.calibration import N_BINS, TEMPERATURE_RANGE, expected_calibration_error, fit_temperature

Logits = NDArray[np.float64]
Classes = NDArray[np.int64]


def drawn(n: int, n_classes: int, temperature: float, seed: int = 0) -> tuple[Logits, Classes]:
    """Logits, and classes drawn from their softmax at a temperature of 1; the logits are then scaled by ``temperature``."""
    rng = np.random.default_rng(seed)
    logits = 2.0 * rng.normal(size=(n, n_classes))
    classes = np.array([rng.choice(n_classes, p=row) for row in softmax(logits, axis=1)])
    return logits * temperature, classes


def loss(logits: Logits, classes: Classes, temperature: float) -> float:
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(classes)), classes].mean())


# --- the temperature ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(n_classes: int, temperature: float) -> None:
    logits, classes = drawn(4000, n_classes, temperature)
    assert fit_temperature(logits, classes) == pytest.approx(temperature, rel=0.06)


@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(0.2, 5.0))
def test_the_temperature_has_the_least_loss(seed: int, n_classes: int, temperature: float) -> None:
    logits, classes = drawn(60, n_classes, temperature, seed)
    found = fit_temperature(logits, classes)
    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    best = minimize_scalar(
        lambda inverse: loss(logits, classes, 1 / inverse),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert TEMPERATURE_RANGE[0] <= found <= TEMPERATURE_RANGE[1]
    assert loss(logits, classes, found) <= best.fun + 1e-9


@given(st.integers(2, 40), st.data(), st.floats(0.5, 3.0))
def test_two_classes_with_one_margin_have_a_closed_form(n: int, data: st.DataObject, margin: float) -> None:
    """Of n answers with logits (margin, 0), k are right: the share k / n is the sigmoid of margin / T."""
    k = data.draw(st.integers(n // 2 + 1, max(n // 2 + 1, n - 1)))
    logits = np.tile([margin, 0.0], (n, 1))
    classes = (np.arange(n) >= k).astype(np.int64)
    if k == n:
        assert fit_temperature(logits, classes) == TEMPERATURE_RANGE[0]
        return
    expected = np.clip(margin / np.log(k / (n - k)), *TEMPERATURE_RANGE)
    assert fit_temperature(logits, classes) == pytest.approx(expected, rel=1e-4)


def test_certain_and_useless_answers_have_the_limits() -> None:
    logits = np.eye(3)[[0, 1, 2, 0]]
    assert fit_temperature(logits, np.array([0, 1, 2, 0])) == TEMPERATURE_RANGE[0]
    assert fit_temperature(logits, np.array([1, 2, 0, 1])) == TEMPERATURE_RANGE[1]
    for scale in (1e-3, 40.0, 1e4):
        assert fit_temperature(logits * scale, np.array([0, 1, 2, 0])) == TEMPERATURE_RANGE[0], scale


def test_temperatures_do_not_depend_on_a_constant_or_on_the_order_of_rows() -> None:
    logits, classes = drawn(200, 3, 2.0)
    found = fit_temperature(logits, classes)
    shift = np.random.default_rng(1).normal(size=(200, 1)) * 100
    order = np.random.default_rng(2).permutation(200)
    assert fit_temperature(logits + shift, classes) == pytest.approx(found, rel=1e-4)
    assert fit_temperature(logits[order], classes[order]) == pytest.approx(found, rel=1e-4)
    assert fit_temperature(logits.astype(np.float32), classes) == pytest.approx(found, rel=1e-4)
    assert np.isfinite(fit_temperature(logits * 1e4, classes)), "no overflow"


# --- the calibration error ------------------------------------------------------------------------------------------


def error_by_hand(probabilities: Logits, classes: Classes) -> float:
    """Sum over bins (m / 15, (m + 1) / 15] of rows in it / rows * |share right - mean confidence|, in points."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, own in zip(probabilities, classes, strict=True):
        confidence = max(row)
        number = next(m for m in range(N_BINS) if confidence <= (m + 1) / N_BINS or m == N_BINS - 1)
        bins.setdefault(number, []).append((confidence, list(row).index(confidence) == own))
    gaps = [abs(sum(right - confidence for confidence, right in rows)) for rows in bins.values()]
    return 100 * sum(gaps) / len(probabilities)


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 90))
def test_the_error_is_that_of_a_loop(seed: int, n_classes: int, n: int) -> None:
    logits, classes = drawn(n, n_classes, 2.0, seed)
    probabilities = np.asarray(softmax(logits, axis=1))
    assert expected_calibration_error(probabilities, classes) == pytest.approx(error_by_hand(probabilities, classes))


@pytest.mark.parametrize(
    ("confidences", "right", "expected"),
    [
        ([1.0, 1.0], [True, True], 0.0),
        ([1.0, 1.0], [True, False], 50.0),
        ([0.75] * 4, [True, True, True, False], 0.0),
        ([0.8] * 5, [True] * 5, 20.0),
        # Two bins: 2 rows with a gap of 0.1, 2 with one of 0.4.
        ([0.9, 0.9, 0.6, 0.6], [True, True, True, True], 25.0),
        # One bin, and gaps within it cancel: 0.70 and 0.72 are both in (10/15, 11/15].
        ([0.70, 0.72], [True, False], 21.0),
    ],
)
def test_errors_by_hand(confidences: list[float], right: list[bool], expected: float) -> None:
    probabilities = np.array([[confidence, 1 - confidence] for confidence in confidences])
    classes = np.array([0 if is_right else 1 for is_right in right])
    assert expected_calibration_error(probabilities, classes) == pytest.approx(expected)


def test_an_edge_belongs_to_the_bin_below() -> None:
    """Confidence 0.6 = 9/15 is in (8/15, 9/15], beside 0.55, and not beside 0.65."""
    probabilities = np.array([[0.6, 0.4], [0.55, 0.45], [0.65, 0.35]])
    classes = np.array([0, 1, 0])
    assert expected_calibration_error(probabilities, classes) == pytest.approx(100 * (abs(0.4 - 0.55) + 0.35) / 3)


def test_the_temperature_lowers_the_error_of_answers_that_are_too_sure() -> None:
    logits, classes = drawn(3000, 3, 4.0)
    before = expected_calibration_error(np.asarray(softmax(logits, axis=1)), classes)
    after = expected_calibration_error(np.asarray(softmax(logits / fit_temperature(logits, classes), axis=1)), classes)
    assert after < 3.0 < 15.0 < before
