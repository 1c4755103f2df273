"""The regression of a probe against scikit-learn called by hand, and its soft targets against rows repeated with weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from outlay.errors import TrainingError
from outlay.models import regression as sizes
from outlay.settings import ProbeSettings
from outlay.train import regression
from outlay.train.regression import Regression, Work, fit_labels, fit_probabilities, resolved

PLAIN = ProbeSettings(choose_by="log_loss", class_weight="none")
ONE = ProbeSettings(strengths=1, choose_by="log_loss", class_weight="none")
GRID = [10.0 ** (-4 + 8 * i / 9) for i in range(10)]
Vectors = NDArray[np.float64]
Labels = NDArray[np.int64]


def counter(limit: float = float("inf")) -> Work:
    """A counter of fits; ``limit``: FLOPs beyond which it refuses."""
    work = Work(lambda n: work.n_flops + n <= limit, lambda n: None)
    return work


def drawn(n: int, n_values: int, n_classes: int, seed: int = 0, noise: float = 1.0) -> tuple[Vectors, Labels]:
    """Vectors around a point for each class; every class at least 9 times where there are enough rows."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    centres = rng.normal(size=(n_classes, n_values))
    return centres[labels] + noise * rng.normal(size=(n, n_values)), labels


def fit(vectors: Any, labels: Labels, n_classes: int, settings: ProbeSettings = PLAIN, **more: Any) -> Regression:
    return fit_labels(vectors, labels, n_classes, settings, more.pop("work", counter()), seed=3, **more)


def log_probabilities(found: Regression, vectors: Any) -> Vectors:
    return np.asarray(log_softmax(vectors @ found.weight.astype(float).T + found.bias, axis=1))


def loss_by_hand(model: Any, vectors: Vectors, labels: Labels) -> float:
    scores = model.decision_function(vectors)
    scores = np.stack([-scores, scores], 1) / 2 if scores.ndim == 1 else scores
    return float(-log_softmax(scores, axis=1)[np.arange(len(labels)), labels].mean())


# --- labels ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_the_fit_is_scikit_learns_at_the_chosen_strength(n_classes: int) -> None:
    vectors, labels = drawn(131, 11, n_classes, noise=2.0)
    found = fit(vectors, labels, n_classes)
    model = LogisticRegression(C=found.strength, max_iter=1000).fit(vectors, labels)
    assert found.is_converged
    if n_classes == 2:
        assert np.abs(found.weight[1] - found.weight[0] - model.coef_[0]).max() < 1e-6
        assert found.bias[1] - found.bias[0] == pytest.approx(model.intercept_[0], abs=1e-6)
        assert np.abs(found.weight.sum(0)).max() == 0.0
    else:
        assert np.abs(found.weight - model.coef_).max() < 1e-6
        assert np.abs(found.bias - model.intercept_).max() < 1e-6
    fresh, golds = drawn(97, 11, n_classes, seed=1, noise=2.0)
    loss = -log_probabilities(found, fresh)[np.arange(97), golds].mean()
    assert loss == pytest.approx(loss_by_hand(model, fresh, golds), abs=1e-4)
    assert (log_probabilities(found, fresh).argmax(1) == model.predict(fresh)).all()


def losses_by_hand(vectors: Vectors, labels: Labels, n_folds: int, seed: int, **more: Any) -> dict[float, float]:
    """Mean log-loss on held-out rows by C, each fit begun from nothing and taken further."""
    losses = {}
    for c in GRID:
        total = 0.0
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        for train, held_out in folds.split(vectors, labels):
            model = LogisticRegression(C=c, max_iter=5000, tol=1e-6, **more).fit(vectors[train], labels[train])
            total += len(held_out) * loss_by_hand(model, vectors[held_out], labels[held_out])
        losses[float(c)] = total / len(labels)
    return losses


@pytest.mark.parametrize(
    ("n_classes", "noise", "seed"), [(2, 2.0, 0), (2, 2.5, 1), (3, 2.0, 2), (4, 3.0, 3), (3, 4.0, 4)]
)
def test_the_strength_is_the_one_of_a_plain_loop_over_folds(n_classes: int, noise: float, seed: int) -> None:
    vectors, labels = drawn(113, 7, n_classes, seed=seed, noise=noise)
    found = fit(vectors, labels, n_classes)
    losses = losses_by_hand(vectors, labels, 5, seed=3)
    assert found.losses == pytest.approx(losses, abs=5e-3, rel=5e-3)
    assert found.strength == min(losses, key=lambda c: losses[c])
    assert found.n_folds == 5


@pytest.mark.parametrize(("n_classes", "noise"), [(2, 0.7), (3, 1.0)])
def test_each_fold_goes_from_fit_to_fit(n_classes: int, noise: float) -> None:
    """Where classes can be told apart, fits with a weak penalty stop before their optimum, and begin at the one before."""
    vectors, labels = drawn(113, 7, n_classes, noise=noise)
    found = fit(vectors, labels, n_classes)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=3).split(vectors, labels))
    totals = np.zeros(10)
    for train, held_out in folds:
        model = LogisticRegression(max_iter=1000, warm_start=True)
        for i, c in enumerate(GRID):
            model.set_params(C=c).fit(vectors[train], labels[train])
            totals[i] += len(held_out) * loss_by_hand(model, vectors[held_out], labels[held_out])
    assert list(found.losses.values()) == pytest.approx((totals / 113).tolist(), rel=1e-9)


def test_the_folds_are_those_of_the_seed() -> None:
    vectors, labels = drawn(61, 7, 2, noise=2.0)
    one, same, other = (
        fit_labels(vectors, labels, 2, PLAIN, counter(), seed=seed).losses for seed in (3, 3 + 2**32, 4)
    )
    assert one == same
    assert one != other
    fit_labels(vectors, labels, 2, PLAIN, counter(), seed=-1)


def test_a_class_without_a_label_is_never_answered() -> None:
    vectors, labels = drawn(83, 7, 3)
    named = np.array([1, 4, 5])[labels]
    found = fit(vectors, named, 7)
    plain = fit(vectors, labels, 3)
    fresh = 10 * np.random.default_rng(7).normal(size=(41, 7))
    probabilities = np.exp(log_probabilities(found, fresh / 10))
    assert probabilities[:, [0, 2, 3, 6]].max() < 1e-6
    assert (found.weight[[1, 4, 5]] == plain.weight).all()
    assert (found.weight[[0, 2, 3, 6]] == 0).all()
    assert set(log_probabilities(found, fresh).argmax(1)) <= {1, 4, 5}


def test_a_class_that_a_fold_lacks_is_unlikely_and_not_impossible() -> None:
    vectors, labels = drawn(60, 5, 3)
    groups = np.arange(60) // 10
    # All rows of class 2 in one group: where it is held out, nothing knows the class.
    labels = np.where(labels == 2, 0, labels)
    labels[:10] = 2
    found = fit(vectors, labels, 3, groups=groups)
    assert all(np.isfinite(loss) for loss in found.losses.values())


def test_one_class_is_answered_always() -> None:
    vectors, _ = drawn(13, 5, 2)
    work = counter()
    found = fit(vectors, np.full(13, 2), 4, work=work)
    assert (log_probabilities(found, vectors).argmax(1) == 2).all()
    assert np.exp(log_probabilities(found, vectors))[:, 2].min() > 0.999
    assert (work.n_fits, work.n_flops, found.is_converged) == (0, 0, True)
    with pytest.raises(TrainingError, match="0 rows"):
        fit(vectors[:0], np.zeros(0, dtype=np.int64), 2)


@pytest.mark.parametrize(("rarest", "n_folds"), [(9, 5), (5, 5), (4, 4), (3, 3), (2, 2), (1, 0)])
def test_rare_classes_have_fewer_folds_and_below_two_a_class_c_is_one(rarest: int, n_folds: int) -> None:
    vectors = np.random.default_rng(11).normal(size=(40, 5))
    labels = (np.arange(40) < rarest).astype(np.int64)
    vectors[:, 0] += labels
    work = counter()
    found = fit(vectors, labels, 2, work=work)
    assert found.n_folds == n_folds
    assert work.n_fits == (n_folds * 10 + 1 if n_folds else 1)
    if not n_folds:
        assert (found.strength, found.losses) == (1.0, {})
    else:
        losses = losses_by_hand(vectors, labels, n_folds, seed=3)
        assert found.strength == min(losses, key=lambda c: losses[c])


def test_one_strength_is_one_and_takes_no_folds() -> None:
    vectors, labels = drawn(40, 5, 2)
    work = counter()
    found = fit(vectors, labels, 2, ONE, work=work)
    assert (found.strength, found.n_folds, found.losses, work.n_fits) == (1.0, 0, {}, 1)


# --- rare classes ------------------------------------------------------------------------------------------------------------


def f1(answers: Labels, golds: Labels) -> float:
    """F1 of class 1, 0 to 100."""
    hits = int(((answers == 1) & (golds == 1)).sum())
    return 100.0 * 2 * hits / max(1, int((answers == 1).sum() + (golds == 1).sum()))


def rare(n: int = 150, seed: int = 0) -> tuple[Vectors, Labels]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 10 == 0).astype(np.int64)
    vectors = rng.normal(size=(n, 6))
    vectors[:, 0] += 1.5 * labels
    return vectors, labels


def test_weights_of_classes_are_scikit_learns_balanced_ones() -> None:
    vectors, labels = rare()
    found = fit(vectors, labels, 2, ProbeSettings(choose_by="log_loss", class_weight="balanced"))
    model = LogisticRegression(C=found.strength, max_iter=1000, class_weight="balanced").fit(vectors, labels)
    assert np.abs(found.weight[1] - found.weight[0] - model.coef_[0]).max() < 1e-6
    plain = fit(vectors, labels, 2)
    n_answered = [(log_probabilities(each, vectors).argmax(1) == 1).sum() for each in (found, plain)]
    assert n_answered[0] > n_answered[1]


def test_a_strength_may_be_chosen_by_the_metric() -> None:
    vectors, labels = rare()
    settings = ProbeSettings(choose_by="metric", class_weight="balanced")
    found = fit(vectors, labels, 2, settings, score=f1)
    scores = {}
    for c in GRID:
        answers = np.zeros(len(labels), dtype=np.int64)
        for train, held_out in StratifiedKFold(5, shuffle=True, random_state=3).split(vectors, labels):
            model = LogisticRegression(C=c, max_iter=5000, class_weight="balanced").fit(vectors[train], labels[train])
            answers[held_out] = model.predict(vectors[held_out])
        scores[float(c)] = f1(answers, labels)
    assert found.losses == pytest.approx({c: -score for c, score in scores.items()})
    best = max(scores.values())
    assert found.strength == min(c for c, score in scores.items() if score == best), "the weakest of equal ones"


@pytest.mark.parametrize(
    ("given", "is_f1", "has_classes", "weight", "by_metric"),
    [
        ({}, False, True, "none", False),
        ({}, True, True, "balanced", True),
        ({}, True, False, "none", False),
        ({"choose_by": "metric"}, False, True, "none", True),
        ({"choose_by": "metric"}, False, False, "none", False),
        ({"choose_by": "log_loss"}, True, True, "balanced", False),
        ({"class_weight": "none"}, True, True, "none", True),
        ({"class_weight": "balanced"}, False, True, "balanced", False),
    ],
)
def test_auto_is_balanced_and_by_the_metric_where_it_is_an_f1(
    given: dict[str, Any], is_f1: bool, has_classes: bool, weight: str, by_metric: bool
) -> None:
    settings, chosen = resolved(ProbeSettings(**given), is_f1=is_f1, has_classes=has_classes)
    assert (settings.class_weight, chosen) == (weight, by_metric)


# --- probabilities -----------------------------------------------------------------------------------------------------------


def soft(vectors: Vectors, n_classes: int, seed: int = 5) -> Vectors:
    """Distributions that a teacher may give to vectors."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(vectors.shape[1], n_classes))
    return np.asarray(softmax(0.7 * vectors @ weights + 0.5 * rng.normal(size=(len(vectors), n_classes)), axis=1))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_certain_targets_are_labels(n_classes: int) -> None:
    vectors, labels = drawn(127, 9, n_classes, noise=1.5)
    certain = fit_probabilities(vectors, np.eye(n_classes)[labels], ONE, counter(), seed=3)
    plain = fit(vectors, labels, n_classes, ONE)
    scale = np.abs(plain.weight).max()
    assert np.abs(certain.weight - plain.weight).max() < 1e-3 * scale
    losses = [-log_probabilities(each, vectors)[np.arange(127), labels].mean() for each in (certain, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_soft_targets_are_rows_repeated_with_their_probability_as_weight(n_classes: int) -> None:
    vectors, _ = drawn(89, 6, 2)
    targets = soft(vectors, n_classes)
    found = fit_probabilities(vectors, targets, PLAIN, counter(), seed=3)
    rows, classes = np.repeat(np.arange(89), n_classes), np.tile(np.arange(n_classes), 89)
    model = LogisticRegression(C=found.strength, max_iter=5000, tol=1e-7)
    model.fit(vectors[rows], classes, sample_weight=targets.ravel())
    assert (
        np.abs(np.exp(log_probabilities(found, vectors)) - model.predict_proba(vectors)).max() < 4e-3
    )  # both stop early, at C = 167
    assert set(found.losses) == set(GRID)
    loss = -(targets * log_probabilities(found, vectors)).sum(1).mean()
    assert loss == pytest.approx(-(targets * model.predict_log_proba(vectors)).sum(1).mean(), abs=1e-4)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix])
def test_the_gradient_of_soft_targets_is_the_losses_slope(
    n_classes: int, make: Callable[[Vectors], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import scipy.optimize

    vectors, _ = drawn(31, 4, 2)
    targets, c, seen = soft(vectors, n_classes), 0.7, []

    def look(loss: Any, start: Vectors, **more: Any) -> Any:
        seen.append((loss, start))
        return minimize(loss, start, **more)

    minimize = scipy.optimize.minimize
    monkeypatch.setattr(scipy.optimize, "minimize", look)
    regression._fit_soft(make(vectors), targets, c, counter(), None)
    loss, start = seen[0]
    at = np.random.default_rng(1).normal(size=start.shape)
    value, gradient = loss(at)
    slopes = [(loss(at + step)[0] - loss(at - step)[0]) / 2e-6 for step in 1e-6 * np.eye(len(at))]
    assert np.abs(gradient - slopes).max() < 1e-8
    # The objective itself, written out: ||W||^2 / 2 + C sum CE, over C n.
    sets = at[: len(at) // 5 * 4].reshape(-1, 4), at[len(at) // 5 * 4 :]
    logits = vectors @ sets[0].T + sets[1]
    logits = np.concatenate([-logits, logits], axis=1) / 2 if n_classes == 2 else logits
    by_hand = 0.5 * (sets[0] ** 2).sum() - c * (targets * log_softmax(logits, axis=1)).sum()
    assert value == pytest.approx(by_hand / (c * 31), rel=1e-12)


def test_the_strength_for_soft_targets_is_that_of_a_plain_loop() -> None:
    from sklearn.model_selection import KFold

    vectors, _ = drawn(71, 5, 2)
    targets = soft(vectors, 3)
    found = fit_probabilities(vectors, targets, PLAIN, counter(), seed=3)
    losses = {}
    train, held_out = next(iter(KFold(5, shuffle=True, random_state=3).split(targets)))
    for c in found.losses:
        model = LogisticRegression(C=c, max_iter=5000, tol=1e-7)
        rows, classes = np.repeat(train, 3), np.tile(np.arange(3), len(train))
        model.fit(vectors[rows], classes, sample_weight=targets[train].ravel())
        losses[c] = -(targets[held_out] * model.predict_log_proba(vectors[held_out])).sum() / len(held_out)
    assert found.losses == pytest.approx(losses, abs=5e-3, rel=5e-3)
    assert found.strength == min(losses, key=lambda c: losses[c])
    with pytest.raises(TrainingError, match="0 rows"):
        fit_probabilities(vectors[:0], targets[:0], PLAIN, counter(), seed=3)


# --- sparse vectors, limits ----------------------------------------------------------------------------------------------------


def test_sparse_vectors_are_dense_ones() -> None:
    vectors, labels = drawn(91, 13, 3)
    vectors = np.where(np.abs(vectors) < 0.8, 0.0, vectors)
    thin = sparse.csr_matrix(vectors)
    one, other = fit(vectors, labels, 3), fit(thin, labels, 3)
    assert one.strength == other.strength
    assert np.abs(one.weight - other.weight).max() < 2e-3 * np.abs(one.weight).max()
    targets = soft(vectors, 3)
    one, other = (fit_probabilities(each, targets, PLAIN, counter(), seed=3) for each in (vectors, thin))
    assert one.strength == other.strength
    assert np.abs(one.weight - other.weight).max() < 1e-5


@pytest.mark.parametrize("n_classes", [2, 4])
def test_flops_are_counted_and_never_more_than_quoted(n_classes: int) -> None:
    vectors, labels = drawn(64, 6, n_classes, noise=0.2)
    told: list[int] = []
    for n_fits, fitted in (
        (51, lambda work: fit_labels(vectors, labels, n_classes, PLAIN, work, seed=0)),
        (11, lambda work: fit_probabilities(vectors, soft(vectors, n_classes), PLAIN, work, seed=0)),
    ):
        told.clear()
        work = Work(lambda n: True, told.append)
        fitted(work)
        assert 0 < work.n_flops == sum(told) <= sizes.most_flops(PLAIN, 64, 6, n_classes)
        assert len(told) == work.n_fits == n_fits
        assert all(n % sizes.iteration_flops(1, 6, n_classes) == 0 for n in told)


def test_the_flops_of_an_iteration_are_four_a_value_and_class() -> None:
    vectors, labels = drawn(64, 6, 3)
    work = counter()
    fit(vectors, labels, 3, ONE, work=work)
    n_iterations = LogisticRegression(max_iter=1000).fit(vectors, labels).n_iter_[0]
    assert work.n_flops == n_iterations * 4 * 64 * 6 * 3
    assert sizes.most_flops(ONE, 64, 6, 3) == 1000 * 4 * 64 * 6 * 3
    assert sizes.most_flops(PLAIN, 64, 6, 3) == 51 * 1000 * 4 * 64 * 6 * 3


def test_a_fit_that_the_limit_does_not_allow_is_an_error() -> None:
    vectors, labels = drawn(64, 6, 2)
    for limit in (0, 20_000):
        with pytest.raises(TrainingError, match="does not fit into the limit") as error:
            fit(vectors, labels, 2, work=counter(limit))
        assert "\n" not in str(error.value)
        with pytest.raises(TrainingError, match="does not fit into the limit"):
            fit_probabilities(vectors, soft(vectors, 2), PLAIN, counter(limit), seed=0)


def test_what_has_not_converged_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from outlay.train.probe import _notes

    monkeypatch.setattr(regression, "MAX_ITERATIONS", 2)
    vectors, labels = drawn(64, 6, 3, noise=2.0)
    for fitted in (
        lambda work: fit_labels(vectors, labels, 3, PLAIN, work, seed=0),
        lambda work: fit_probabilities(vectors, soft(vectors, 3), PLAIN, work, seed=0),
    ):
        work = counter()
        found = fitted(work)
        assert not found.is_converged
        assert 1 < work.n_unconverged <= work.n_fits
        notes = _notes(found, work)
        assert len(notes) == 2
        assert f"C = {found.strength:g} had not converged" in notes[0]
    monkeypatch.undo()
    work = counter()
    found = fit(vectors, labels, 3, work=work)
    assert (found.is_converged, work.n_unconverged, _notes(found, work)) == (True, 0, ())


def test_a_fit_is_bit_for_bit_the_same_again() -> None:
    vectors, labels = drawn(64, 6, 3, noise=2.0)
    one, again = fit(vectors, labels, 3), fit(vectors, labels, 3)
    assert one.weight.tobytes() == again.weight.tobytes()
    one, again = (fit_probabilities(vectors, soft(vectors, 3), PLAIN, counter(), seed=0) for _ in range(2))
    assert one.weight.tobytes() == again.weight.tobytes()
