"""Judges the table of `method: auto` on sets that it was not learned from, by finished points.

    python bench/auto_methods.py

For each kind of text (one, a pair, entities) the method with the best mean over the sets and numbers of labels is taken, among
those that every cell has. Leave-one-set-out: for each set the method is chosen from the others, and its mean over seeds is set
beside the best method of all in hindsight, and beside the best rival (TF-IDF, a probe). Whether the method should depend on the
number of labels or on the student's size as well is answered in the same way: by what each rule loses on sets left out.

A cell is a set, a number of labels and a student. Cells where only some methods were run (1,000 labels) teach and judge nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.method_tables import Cell, Scores, kind_of, read

RIVALS = ("tfidf", "probe", "probe, towers")
LEARNED = {
    "single": ("full", "contrastive", "probe_then_tune", "probe"),
    "pair": ("full", "contrastive", "probe_then_tune, towers", "probe, towers"),
    "entities": ("full", "probe"),
}
"""Methods that a cell must have to teach or judge, by kind of text; one of them is chosen."""

Means = Mapping[Cell, Mapping[str, float]]
"""Mean test score over seeds by cell and method."""
Rule = Callable[[Cell], Any]
"""What a method may depend on, beside the kind of text: cells with equal values have one method."""
RULES: dict[str, Rule] = {
    "one method": lambda _cell: None,
    "by number of labels": lambda cell: cell[1],
    "by size of the student": lambda cell: cell[2],
    "by both": lambda cell: cell[1:],
}


@dataclass(frozen=True)
class Loss:
    """What the method that other sets suggest loses on one cell, in points of the test score."""

    cell: Cell
    chosen: str
    score: float
    best: str
    to_best: float
    to_rival: float
    half: float
    """Half of the range of the chosen method's seeds."""


def means_of(scores: Scores) -> dict[Cell, dict[str, float]]:
    """Return the means over seeds of the cells that have every method of their kind."""
    whole = {cell: of for cell, of in scores.items() if set(LEARNED[kind_of(cell[0])]) <= set(of)}
    return {cell: {name: statistics.fmean(seeds) for name, seeds in of.items()} for cell, of in whole.items()}


def best_method(means: Means, cells: Iterable[Cell]) -> str:
    """Return the method with the best mean over some cells of one kind of text."""
    chosen = list(cells)
    methods = LEARNED[kind_of(chosen[0][0])]
    return max(methods, key=lambda method: statistics.fmean(means[cell][method] for cell in chosen))


def judge(scores: Scores, rule: Rule = RULES["one method"]) -> list[Loss]:
    """Return the losses of each cell under a rule, its own set left out; of a kind with one set, none."""
    means, losses = means_of(scores), []
    for cell in sorted(means):
        others = [
            other
            for other in means
            if kind_of(other[0]) == kind_of(cell[0]) and other[0] != cell[0] and rule(other) == rule(cell)
        ]
        if not others:
            continue
        method, of, seeds = best_method(means, others), means[cell], scores[cell]
        best = max(of, key=of.__getitem__)
        rival = max((of[name] for name in RIVALS if name in of), default=of[method])
        half = (max(seeds[method]) - min(seeds[method])) / 2
        losses.append(Loss(cell, method, of[method], best, of[best] - of[method], rival - of[method], half))
    return losses


def mean_loss(losses: Sequence[Loss]) -> float:
    """Return the mean loss to the best method in hindsight, in points."""
    return statistics.fmean(each.to_best for each in losses)


def main() -> None:
    """Print the table, what it loses, and what other rules would lose."""
    scores = read()
    means = means_of(scores)
    for name, rule in RULES.items():
        losses = judge(scores, rule)
        print(f"{name}: loses {mean_loss(losses):.2f} points on {len(losses)} cells of sets left out")
        for kind in LEARNED:
            cells = [cell for cell in means if kind_of(cell[0]) == kind]
            for value in sorted({rule(cell) for cell in cells}, key=str):
                found = best_method(means, [cell for cell in cells if rule(cell) == value])
                print(f"  {kind}{'' if value is None else f', {value}'}: {found}")
    losses = judge(scores)
    print(
        f"\n{'set':20} {'labels':>6} {'student':7}  {'chosen':26} {'test':>5}  {'best':26} {'loss':>5} {'to rival':>8}"
    )
    for each in losses:
        mark, (task, n_labels, size) = " *" if each.to_best > each.half else "", each.cell
        row = (
            f"{task:20} {n_labels:6,} {size:7}  {each.chosen:26} {each.score:5.1f}  {each.best:26} {each.to_best:5.1f}"
        )
        print(f"{row} {each.to_rival:8.1f}{mark}")
    gain = statistics.fmean(each.to_rival for each in losses)
    print(
        f"\nmean loss to the best rival: {gain:.2f} points (below 0: a gain). *: more than half of the range over its seeds"
    )


if __name__ == "__main__":
    main()
