"""Softmax regression on fixed vectors, by scikit-learn: the strength chosen over folds, then fitted to all rows.

The objective is scikit-learn's, ||W||^2 / 2 + C sum_i CE(y_i, x_i); soft targets have the same with probabilities in the place of
labels. Two classes have one set of weights, whose halves are the two classes'.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlay.errors import TrainingError
from outlay.models.regression import MAX_ITERATIONS, iteration_flops, strengths
from outlay.settings import ProbeSettings

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Score = Callable[[Labels, Labels], float]
"""``(answers, golds)``, classes of rows -> a score; larger is better."""

_UNSEEN = 20.0
"""How far below the least intercept that of a class without a label lies: its probability is practically 0."""
_TOLERANCE = 1e-4
"""Largest gradient at which lbfgs stops, scikit-learn's default."""
_LEAST_FOLDS = 2


@dataclass(slots=True)
class Work:
    """Fits so far: FLOPs, and how many did not converge; ``allowed``: whether so many more FLOPs fit into the limit."""

    allowed: Callable[[int], bool]
    on_flops: Callable[[int], None]
    n_flops: int = 0
    n_fits: int = 0
    n_unconverged: int = 0

    def add(self, n_flops: int, *, converged: bool) -> None:
        """Count one fit."""
        self.n_flops += n_flops
        self.n_fits += 1
        self.n_unconverged += not converged
        self.on_flops(n_flops)


@dataclass(frozen=True, slots=True)
class Regression:
    """A fitted regression: ``weight`` float32 ``[classes, values]``, ``bias`` float32 ``[classes]``.

    ``strength``: the C that was chosen; ``n_folds``: of the choice, 0 where there was none; ``losses``: mean log-loss (or minus
    the score) on held-out rows by C; ``is_converged``: of the last fit, within 1,000 iterations.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    strength: float
    n_folds: int
    is_converged: bool
    losses: dict[float, float] = field(default_factory=dict)
    held_out: NDArray[np.float64] | None = None
    """Probabilities of each example's classes by the model of its fold at the chosen C, which did not learn from it, ``[examples,
    classes]``; ``None`` where not every example was held out."""


def fit_labels(
    vectors: Any,
    labels: Labels,
    n_classes: int,
    settings: ProbeSettings,
    work: Work,
    *,
    seed: int,
    score: Score | None = None,
    groups: NDArray[np.int64] | None = None,
) -> Regression:
    """Fit a regression to labels.

    Args:
        vectors: float ``[examples, values]``, a matrix or a sparse one.
        labels: classes, int64 ``[examples]``.
        n_classes: number of classes; those without a label get probability 0, practically.
        settings: folds, strengths and weights of classes, none of them ``auto``.
        work: counter of the fits.
        seed: of the folds.
        score: of answers to held-out rows, by which the strength is chosen; ``None`` = by log-loss.
        groups: examples of one number stay in one fold, int64 ``[examples]``.

    Raises:
        TrainingError: no example.
    """
    if len(labels) == 0:
        raise TrainingError("nothing to train on: 0 rows; buy labels or hand in a pool")
    counts = np.bincount(labels, minlength=n_classes)
    seen = np.flatnonzero(counts)
    if len(seen) == 1:
        bias = np.full(n_classes, -_UNSEEN, dtype=np.float32)
        bias[seen] = 0.0
        return Regression(np.zeros((n_classes, vectors.shape[1]), dtype=np.float32), bias, 1.0, 0, True)
    vectors = vectors.astype(np.float64)
    weight = None if settings.class_weight == "none" else "balanced"
    grid = strengths(settings)
    n_folds = min(settings.folds, int(counts[seen].min()))
    losses: dict[float, float] = {}
    said: dict[float, NDArray[np.float64]] = {}
    with one_pool():
        if n_folds >= _LEAST_FOLDS and len(grid) > 1:
            losses, said = _held_out(
                vectors, labels, grid, n_folds, weight, work, seed=seed, score=score, groups=groups
            )
        best = min(losses, key=lambda c: (losses[c], c)) if losses else 1.0
        model = _logistic(weight).set_params(C=best)
        is_converged = _fit(model, vectors, labels, work)
    coefficients, intercepts = _per_class(model)
    bias = np.full(n_classes, intercepts.min() - _UNSEEN, dtype=np.float32)
    bias[seen] = intercepts
    full = np.zeros((n_classes, vectors.shape[1]), dtype=np.float32)
    full[seen] = coefficients
    held_out = None
    if best in said:
        held_out = np.zeros((len(labels), n_classes))
        held_out[:, : said[best].shape[1]] = np.exp(said[best])
    return Regression(full, bias, float(best), n_folds if losses else 0, is_converged, losses, held_out)


def fit_probabilities(
    vectors: Any, targets: Probabilities, settings: ProbeSettings, work: Work, *, seed: int
) -> Regression:
    """Fit a regression to probabilities, float64 ``[examples, classes]``, as `fit_labels` does to labels.

    Raises:
        TrainingError: no example.
    """
    if len(targets) == 0:
        raise TrainingError("nothing to train on: 0 rows; buy labels or hand in a pool")
    from sklearn.model_selection import KFold

    vectors = vectors.astype(np.float64)
    grid, losses = strengths(settings), dict[float, float]()
    n_folds = min(settings.folds, len(targets))
    with one_pool():
        if n_folds >= _LEAST_FOLDS and len(grid) > 1:
            # A pool has many rows: one part of it tells the losses apart, and all parts would take as many times as long.
            folds = KFold(n_folds, shuffle=True, random_state=_fold_seed(seed)).split(targets)
            train, held_out = next(iter(folds))
            start = None
            for c in grid:
                start, _ = _fit_soft(vectors[train], targets[train], c, work, start)
                log_p = _log_softmax(vectors[held_out], start, targets.shape[1])
                losses[c] = -float((targets[held_out] * log_p).sum()) / len(held_out)
        best = min(losses, key=lambda c: (losses[c], c)) if losses else 1.0
        parameters, is_converged = _fit_soft(vectors, targets, best, work, None)
    weight, bias = _split(parameters, vectors.shape[1], targets.shape[1])
    return Regression(
        weight.astype(np.float32), bias.astype(np.float32), best, n_folds if losses else 0, is_converged, losses
    )


def one_pool() -> AbstractContextManager[Any]:
    """Return a context in which linear algebra has one thread: sums do not depend on the machine, and no thread waits busily."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits


def _held_out(
    vectors: Any,
    labels: Labels,
    grid: list[float],
    n_folds: int,
    weight: str | None,
    work: Work,
    *,
    seed: int,
    score: Score | None,
    groups: NDArray[np.int64] | None,
) -> tuple[dict[float, float], dict[float, NDArray[np.float64]]]:
    """Return the loss on held-out rows by C, the mean over all rows; each fold goes from weak to strong, from fit to fit.

    The second value has the log-probabilities of each row's classes by C, float64 ``[rows, classes]``; nothing where ``groups``
    leaves rows that are in no fold.
    """
    from sklearn.model_selection import GroupKFold, StratifiedKFold

    answers = np.zeros((len(grid), len(labels)), dtype=np.int64)
    n_classes = int(labels.max()) + 1
    said = {} if groups is not None else {float(c): np.zeros((len(labels), n_classes)) for c in grid}
    totals = np.zeros(len(grid))
    if groups is None:
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=_fold_seed(seed)).split(labels, labels)
    else:
        # One fold is held out: an example of tokens is a fraction of a row, and there are many.
        n_groups = min(n_folds, len(np.unique(groups)))
        if n_groups < _LEAST_FOLDS:
            return {}, {}
        folds = [next(iter(GroupKFold(n_groups).split(labels, labels, groups)))]
    held: list[NDArray[np.int64]] = []
    for train, held_out in folds:
        held.append(held_out)
        model = _logistic(weight).set_params(warm_start=True)
        for i, c in enumerate(grid):
            _fit(model.set_params(C=float(c)), vectors[train], labels[train], work)
            logits = _logits(model, vectors[held_out], n_classes)
            if said:
                said[float(c)][held_out] = logits
            answers[i, held_out] = logits.argmax(1)
            totals[i] -= logits[np.arange(len(held_out)), labels[held_out]].sum()
    rows = np.concatenate(held)
    if score is not None:
        return {float(c): -score(answers[i, rows], labels[rows]) for i, c in enumerate(grid)}, said
    return dict(zip(map(float, grid), (totals / len(rows)).tolist(), strict=True)), said


def _logistic(weight: str | None) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver="lbfgs", max_iter=MAX_ITERATIONS, tol=_TOLERANCE, class_weight=weight)


def _fit(model: Any, vectors: Any, labels: Labels, work: Work) -> bool:
    """Fit a model and count it; return whether it converged.

    Raises:
        TrainingError: the limit of the step does not allow the fit.
    """
    from sklearn.exceptions import ConvergenceWarning

    n_values = _n_values(vectors)
    n_classes = len(np.unique(labels))
    per_iteration = iteration_flops(1, n_values, n_classes)
    if not work.allowed(per_iteration):
        raise TrainingError(
            "the regression does not fit into the limit of this step; raise it (a run is topped up with `outlay ledger topup`)"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors, labels)
    n_iterations = int(np.max(model.n_iter_))
    converged = n_iterations < MAX_ITERATIONS
    work.add(min(n_iterations, MAX_ITERATIONS) * per_iteration, converged=converged)
    return converged


def _n_values(vectors: Any) -> int:
    """Return the values of all examples together: of a sparse matrix those that are not 0."""
    return int(vectors.nnz) if hasattr(vectors, "nnz") else int(vectors.shape[0] * vectors.shape[1])


def _per_class(model: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights and intercepts of each class; two classes have half of the one set each."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def _logits(model: Any, vectors: Any, n_classes: int) -> NDArray[np.float64]:
    """Return log-probabilities, float64 ``[rows, classes]``; a class without a label among the fitted rows is very unlikely."""
    weight, bias = _per_class(model)
    logits = np.full((vectors.shape[0], n_classes), -np.inf)
    logits[:, model.classes_] = vectors @ weight.T + bias
    floor = np.where(np.isfinite(logits), logits, np.inf).min(1, keepdims=True) - _UNSEEN
    return _normalized(np.where(np.isfinite(logits), logits, floor))


def _normalized(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import log_softmax

    found: NDArray[np.float64] = log_softmax(logits, axis=1)
    return found


def _split(
    parameters: NDArray[np.float64], n_values: int, n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights and intercepts of each class from a vector of parameters, which holds one set where there are two."""
    n_sets = 1 if n_classes == 2 else n_classes
    weight, bias = parameters[: n_sets * n_values].reshape(n_sets, n_values), parameters[n_sets * n_values :]
    if n_sets == 1:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def _log_softmax(vectors: Any, parameters: NDArray[np.float64], n_classes: int) -> NDArray[np.float64]:
    weight, bias = _split(parameters, vectors.shape[1], n_classes)
    return _normalized(np.asarray(vectors @ weight.T + bias))


def _fit_soft(
    vectors: Any, targets: Probabilities, c: float, work: Work, start: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], bool]:
    """Minimise ||W||^2 / 2 + C sum_i CE(p_i, x_i) by lbfgs, as scikit-learn does; return parameters, and whether it converged."""
    from scipy.optimize import minimize

    n_values, n_classes = vectors.shape[1], targets.shape[1]
    n_sets = 1 if n_classes == 2 else n_classes
    if not work.allowed(iteration_flops(1, _n_values(vectors), n_classes)):
        raise TrainingError(
            "the regression does not fit into the limit of this step; raise it (a run is topped up with `outlay ledger topup`)"
        )
    # As scikit-learn scales it, so that the tolerance means the same.
    scale = 1.0 / (c * targets.sum())

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_p = _log_softmax(vectors, parameters, n_classes)
        weights = parameters[: n_sets * n_values]
        value = -(targets * log_p).sum() / targets.sum() + 0.5 * scale * (weights @ weights)
        excess = (np.exp(log_p) * targets.sum(1, keepdims=True) - targets) / targets.sum()
        if n_sets == 1:
            excess = (excess[:, 1:] - excess[:, :1]) / 2
        by_weight = np.asarray(excess.T @ vectors).reshape(-1) + scale * weights
        return float(value), np.concatenate([by_weight, excess.sum(0)])

    start = np.zeros(n_sets * (n_values + 1)) if start is None else start
    options = {"maxiter": MAX_ITERATIONS, "gtol": _TOLERANCE, "ftol": 64 * np.finfo(float).eps, "maxls": 50}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    converged = int(found.nit) < MAX_ITERATIONS
    work.add(
        min(int(found.nit), MAX_ITERATIONS) * iteration_flops(1, _n_values(vectors), n_classes), converged=converged
    )
    parameters: NDArray[np.float64] = found.x
    return parameters, converged


def _fold_seed(seed: int) -> int:
    """Return the seed of the folds, of the range that scikit-learn takes."""
    return seed % 2**32


def resolved(settings: ProbeSettings, *, is_f1: bool, has_classes: bool) -> tuple[ProbeSettings, bool]:
    """Return settings without ``auto``, and whether the strength is chosen by the task's metric.

    ``is_f1``: of a metric where rare classes count; ``has_classes``: False for tags, which are chosen by log-loss, unweighted.
    """
    from dataclasses import replace

    rare = is_f1 and has_classes
    weight = settings.class_weight if settings.class_weight != "auto" else ("balanced" if rare else "none")
    by_metric = has_classes and (settings.choose_by == "metric" or (settings.choose_by == "auto" and rare))
    return replace(settings, class_weight=weight), by_metric


def classes_of(units: Sequence[Any]) -> Labels:
    """Return the class of each row."""
    return np.array([int(each[0]) for each in units], dtype=np.int64)
