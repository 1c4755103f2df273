"""Precision, recall and F1 of each label, in the strict reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outlay.metrics.answers import Answered
from outlay.metrics.classes import class_counts
from outlay.metrics.spans import entity_counts


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Scores of one label, 0-100, and the rows (or entities) that have it; a share of nothing is 0, as in scikit-learn."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    label: str
    precision: float
    recall: float
    f1: float
    n: int


def label_scores(metric: str, answered: Answered) -> list[LabelScore]:
    """Return the scores of each label of a classification, or of each type of entities; none for free answers."""
    if not answered.labels:
        return []
    count = entity_counts if metric == "entity_f1" else class_counts
    n_labels = len(answered.labels)
    right, gold, given = count(answered, "strict").reshape(-1, 3, n_labels).sum(0)
    return [
        LabelScore(
            label,
            _percent(right[i], given[i]),
            _percent(right[i], gold[i]),
            _percent(2 * right[i], gold[i] + given[i]),
            int(gold[i]),
        )
        for i, label in enumerate(answered.labels)
    ]


def _percent(part: float, whole: float) -> float:
    return 100.0 * float(part) / float(whole) if whole else 0.0
