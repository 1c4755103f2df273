"""Judges the table of `method: auto` on sets that it was not learned from, by finished points.

    python bench/auto_methods.py docs/results/few_labels/points.json

For each kind of text (single, pairs) the method with the best mean over the sets and numbers of labels is taken, one method for
all numbers of labels: with as few sets, a method for each number follows noise. Leave-one-set-out: for each set the method is
chosen from the others, and its mean over seeds is set beside the best method of all in hindsight, and beside the best rival
(TF-IDF, a probe).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PAIRS = ("mrpc", "multipit_id", "rte", "stanceosaurus")
RIVALS = ("tfidf", "probe", "probe, towers")

Cell = tuple[str, int]
"""A set and a number of labels."""
Means = Mapping[Cell, Mapping[str, float]]
"""Mean test score over seeds by cell and method."""


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


def read(paths: Iterable[Path]) -> dict[Cell, dict[str, list[float]]]:
    """Return the test scores by cell and method, one for each seed."""
    found: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        for point in json.loads(path.read_text(encoding="utf-8")):
            request, result = point["request"], point["result"]
            if result["status"] == "ok":
                method = request.get("methods", {}).get("student", "full")
                found[request["task"], result["n_labels"]][method].append(result["test"])
    return found


def best_method(means: Means, cells: Iterable[Cell]) -> str:
    """Return the method with the best mean over some cells, among those that all of them have."""
    chosen = list(cells)
    methods = set.intersection(*(set(means[cell]) for cell in chosen))
    return max(sorted(methods), key=lambda method: statistics.fmean(means[cell][method] for cell in chosen))


def judge(scores: Mapping[Cell, Mapping[str, list[float]]]) -> list[Loss]:
    """Return the losses of each cell, its own set left out."""
    means = {cell: {m: statistics.fmean(v) for m, v in of.items()} for cell, of in scores.items()}
    losses = []
    for cell in sorted(means):
        kind = [other for other in means if (other[0] in PAIRS) == (cell[0] in PAIRS) and other[0] != cell[0]]
        if not kind:
            continue
        method = best_method(means, kind)
        best = max(means[cell], key=means[cell].__getitem__)
        rival = max(score for name, score in means[cell].items() if name in RIVALS)
        own, seeds = means[cell][method], scores[cell][method]
        half = (max(seeds) - min(seeds)) / 2
        losses.append(Loss(cell, method, own, best, means[cell][best] - own, rival - own, half))
    return losses


def main(paths: list[str]) -> None:
    """Print the table, and what it loses."""
    scores = read(map(Path, paths))
    means = {cell: {m: statistics.fmean(v) for m, v in of.items()} for cell, of in scores.items()}
    for name, is_pair in (("single texts", False), ("pairs", True)):
        cells = [cell for cell in means if (cell[0] in PAIRS) == is_pair]
        if cells:
            print(f"{name}: {best_method(means, cells)}")
    losses = judge(scores)
    print(
        f"\n{'set':20} {'labels':>6}  {'chosen':26} {'test':>5}  {'best in hindsight':26} {'loss':>5} {'to rival':>8}"
    )
    for each in losses:
        mark = " *" if each.to_best > each.half else ""
        task, n_labels = each.cell
        row = f"{task:20} {n_labels:6,}  {each.chosen:26} {each.score:5.1f}  {each.best:26} {each.to_best:5.1f}"
        print(f"{row} {each.to_rival:8.1f}{mark}")
    print(
        f"\nmean loss to the best method in hindsight: {statistics.fmean(each.to_best for each in losses):.2f} points"
    )
    print(
        f"mean loss to the best rival: {statistics.fmean(each.to_rival for each in losses):.2f} points (below 0: a gain)"
    )
    print("*: more than half of the range over its seeds")


if __name__ == "__main__":
    main(sys.argv[1:])
