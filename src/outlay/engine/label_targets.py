"""Targets from the probabilities that came with bought labels, for a student that learns them as those of a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.labels.purchases import parse_answer_lines

if TYPE_CHECKING:
    from outlay.train.targets.targets import SparseTargets

LEAST = 1e-6
"""Least probability of a class, since a target's logit is finite: of a label without probabilities every other class has it."""


def probabilities_of(
    answers: Sequence[Path], rows: Sequence[str], labels: Sequence[str], classes: Sequence[str]
) -> list[list[float]]:
    """Return the distribution over the classes that the answers to each row gave, their mean where there are several.

    ``answers``: files of answers, of purchases whose sellers keep some; ``rows``: row ids with their ``labels``. A row without
    probabilities has its label alone.
    """
    given: dict[str, list[tuple[float, ...]]] = {}
    for path in answers:
        for answer in parse_answer_lines(path.read_bytes()):
            if answer.probabilities:
                given.setdefault(answer.row, []).append(answer.probabilities)
    found = []
    for row, label in zip(rows, labels, strict=True):
        several = given.get(row) or [tuple(float(label == each) for each in classes)]
        found.append([sum(each) / len(several) for each in zip(*several, strict=True)])
    return found


def class_targets(probabilities: Sequence[Sequence[float]], classes: Sequence[str]) -> SparseTargets:
    """Return targets of distributions over the classes, one per row."""
    from outlay.train.targets.logprobs import PositionLogprobs, TargetRow, packed_classes
    from outlay.train.targets.sparse_logits import SparsityRule

    numbers = range(len(classes))
    rows = []
    for i, shares in enumerate(probabilities):
        best = max(numbers, key=shares.__getitem__)
        logprobs = [math.log(max(share, LEAST)) for share in shares]
        rows.append(TargetRow((PositionLogprobs(best, numbers, logprobs),), classes[best], 1, f"row {i}"))
    return packed_classes(SparsityRule("classes", len(classes)), rows)
