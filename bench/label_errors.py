"""Likely label errors: how many of the labels that were flipped on purpose are among the likeliest, as a page names them.

    python -m bench.label_errors [--data DATA] [--work DIR] [--threads 2] [--repeats 5] [--rows 2000] [--json FILE] | --toy

Of rows of SST-2 (else of made-up sentences) 5 % of the labels are flipped, by seeds 0, 1, ...; a probe on frozen vectors learns
from all of them, and each row is answered by the regression of the fold that left it out. The likeliest errors are the rows whose
own label has the least probability. Beside it: scikit-learn's `cross_val_predict` with C = 1, and 5 % of the rows by chance.

The likeliest 5 % of the rows are as many as were flipped, so precision and recall are one number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import ENCODER, Report, Rows, Work, parser, run, task_rows, toy_rows, toy_size
from bench.probe import MODEL, Labels, Vectors, encoded
from outlay.metrics.quality import by_self_confidence
from outlay.models.loading import ModelSpec, load_pooled, origin_of
from outlay.models.pooling import pooling_of
from outlay.settings import ProbeSettings
from outlay.train.probe import held_out_answers
from outlay.train.regression import Work as Fits
from outlay.train.regression import fit_labels, one_pool

TASK = "sst2"
SHARE = 0.05
GOAL = 0.5
"""Least share of flipped labels among the likeliest, mean over the seeds."""
STUDENTS = ("cut:2", MODEL)


def flipped(labels: Labels, seed: int) -> Labels:
    """Return which rows have another label than they should, a share of `SHARE`, as row numbers."""
    chosen = np.random.default_rng(seed).choice(len(labels), round(SHARE * len(labels)), replace=False)
    return np.sort(chosen).astype(np.int64)


def by_outlay(vectors: Vectors, labels: Labels, n_classes: int, seed: int) -> list[int]:
    """Return the rows, the likeliest errors first, as method `probe` finds them."""
    fits = Fits(lambda _: True, lambda _: None)
    settings = ProbeSettings(choose_by="log_loss", class_weight="none")
    found = fit_labels(vectors, labels, n_classes, settings, fits, seed=seed)
    return by_self_confidence(held_out_answers(found, labels))


def by_hand(vectors: Vectors, labels: Labels, seed: int) -> list[int]:
    """Return the rows, the likeliest errors first, by scikit-learn's own cross-validation with C = 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    with one_pool():
        said = cross_val_predict(LogisticRegression(max_iter=1000), vectors, labels, cv=folds, method="predict_proba")
    return [int(row) for row in np.argsort(said[np.arange(len(labels)), labels], kind="stable")]


def bench(given: argparse.Namespace, work: Work) -> Report:
    """Flip labels by each seed, and look where they come out."""
    if given.toy:
        rows = toy_rows("claims")
    else:
        rows = toy_rows("claims", n=1000) if given.data is None else task_rows(TASK, given.data, segments=True)
    students = (str(work.blank(toy_size(ENCODER), rows.corpus)),) if given.toy else STUDENTS
    lines: list[Sequence[str]] = []
    figures = {}
    failures = []
    for student in students:
        vectors, labels = vectors_of(rows, student, 60 if given.toy else given.rows, work.folder / "vectors")
        shares: dict[str, list[float]] = {"outlay, method probe": [], "scikit-learn, C = 1": []}
        for seed in range(given.repeats):
            wrong = flipped(labels, seed)
            given_labels = labels.copy()
            n_classes = len(rows.form.labels)
            given_labels[wrong] = (labels[wrong] + 1) % n_classes
            orders = by_outlay(vectors, given_labels, n_classes, seed), by_hand(vectors, given_labels, seed)
            for name, order in zip(shares, orders, strict=True):
                shares[name].append(len(set(order[: len(wrong)]) & set(wrong.tolist())) / len(wrong))
        means = {name: statistics.fmean(each) for name, each in shares.items()}
        for name, each in shares.items():
            told = ", ".join(f"{100 * share:.0f}" for share in each)
            lines.append((Path(student).name, name, f"{100 * means[name]:.1f} %", told))
        lines.append((Path(student).name, "by chance", f"{100 * SHARE:.1f} %", ""))
        figures[student] = shares
        if not given.toy and given.data is not None and means["outlay, method probe"] < GOAL:
            failures.append(f"{student}: {means['outlay, method probe']:.3f} of the likeliest are flips, not {GOAL}")
    header = ("vectors of", "order", "flips among the likeliest 5 %", "by seed, %")
    return Report([(f"{SHARE:.0%} of {len(labels):,} labels flipped", header, lines)], {"shares": figures}, failures)


def vectors_of(rows: Rows, student: str, n_rows: int, folder: Path) -> tuple[Vectors, Labels]:
    """Return the vectors of the first rows by a checkpoint, or by its first layers, and their classes."""
    base = MODEL if student.startswith("cut:") else student
    spec = ModelSpec(student, base, rows.form, seed=0, pooling=pooling_of(base), reading="joined")
    model, head, _ = load_pooled(spec, "probe")
    head.freeze(origin_of(student, base), folder)
    vectors, _ = encoded(model.eval(), head, rows.train[:n_rows])
    number = {label: i for i, label in enumerate(rows.form.labels)}
    return vectors, np.array([number[answer] for answer in rows.answers[:n_rows]], dtype=np.int64)


def main() -> int:
    """Run the bench as the command line asks."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--rows", type=int, default=2000, help="rows that are learnt from")
    return run(options.parse_args(), bench, needs_data=False)


if __name__ == "__main__":
    sys.exit(main())
