"""Where a model fails: scores by label and by group, confusions, reliability, its surest wrong answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from outlay.metrics.answers import Answered
from outlay.metrics.per_class import LabelScore, label_scores
from outlay.metrics.scoring import main_score, score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

N_SHOWN = 10
"""Number of rows in a list of the surest wrong answers, and of likely label errors."""
MOST_GROUPS = 50
"""Number of groups at most whose scores are told, those with the most rows."""
NO_GROUP = "(none)"
"""Stands for the group of a row without one."""
OTHER = "(other)"
"""Stands for an answer outside the label set in a table of confusions."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The answers of one bin of confidence: their number, mean confidence and accuracy, 0-100."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class DoubtfulRow:
    """A row whose label and answer differ; ``row``: its id, ``confidence``: the answer's probability, 0-100."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    row: str
    label: str
    answer: str
    confidence: float


@dataclass(frozen=True, slots=True)
class GroupScore:
    """The main score of the rows of one group, 0-100, and their number."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    value: float
    n: int


@dataclass(frozen=True, slots=True)
class Quality:
    """Where a model is right and wrong on the test split.

    ``labels``: of each label or type of entities; ``confusion``: numbers of rows by label and answer, without zeros, of a
    classification alone; ``reliability``: bins of confidence that are not empty, in order, of a model with probabilities, as
    ``wrong`` is; ``groups``: by the task's groups of rows, where it names some.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    labels: tuple[LabelScore, ...] = ()
    confusion: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    reliability: tuple[ReliabilityBin, ...] = ()
    wrong: tuple[DoubtfulRow, ...] = ()
    groups: Mapping[str, GroupScore] = field(default_factory=dict)


def quality_of(
    metric: str,
    answered: Answered,
    rows: Sequence[str],
    probabilities: NDArray[np.float64] | None = None,
    groups: Sequence[str] = (),
) -> Quality:
    """Return where answers are right and wrong, in the strict reading, all scores 0-100 and rounded to 2 decimals.

    Args:
        metric: of the task.
        answered: the answers to the test split.
        rows: ids of the rows.
        probabilities: of a classifier, float ``[rows, labels]``.
        groups: the group of each row; empty where the task names none.
    """
    from outlay.metrics.calibration import confidences_of, reliability

    is_choice = metric in ("accuracy", "f1")
    labels = tuple(
        LabelScore(each.label, round(each.precision, 2), round(each.recall, 2), round(each.f1, 2), each.n)
        for each in label_scores(metric, answered)
    )
    bins: tuple[ReliabilityBin, ...] = ()
    wrong: tuple[DoubtfulRow, ...] = ()
    if probabilities is not None:
        sure = confidences_of(probabilities)
        found = reliability(sure, answered.predictions, answered.golds)
        bins = tuple(ReliabilityBin(n, round(100 * c, 2), round(100 * a, 2)) for n, c, a in found)
        wrong = doubtful_rows(rows, answered.golds, answered.predictions, sure.tolist())
    return Quality(
        labels, confusion_of(answered) if is_choice else {}, bins, wrong, group_scores(metric, answered, groups)
    )


def confusion_of(answered: Answered) -> dict[str, dict[str, int]]:
    """Return numbers of rows by label and answer, in the order of the label set; an answer outside it is `OTHER`."""
    known = set(answered.labels)
    said = (each if each in known else each.strip() for each in answered.predictions)
    counts = Counter((gold, each if each in known else OTHER) for gold, each in zip(answered.golds, said, strict=True))
    table = {
        gold: {answer: n for answer in (*answered.labels, OTHER) if (n := counts[gold, answer])}
        for gold in answered.labels
    }
    return {gold: row for gold, row in table.items() if row}


def doubtful_rows(
    rows: Sequence[str], labels: Sequence[str], answers: Sequence[str], confidences: Sequence[float]
) -> tuple[DoubtfulRow, ...]:
    """Return the rows whose answer is not their label, those with the surest answers first, `N_SHOWN` at most."""
    wrong = [
        DoubtfulRow(row, label, answer, round(100 * sure, 2))
        for row, label, answer, sure in zip(rows, labels, answers, confidences, strict=True)
        if answer != label
    ]
    return tuple(sorted(wrong, key=lambda each: (-each.confidence, each.row))[:N_SHOWN])


def label_errors(
    rows: Sequence[str], labels: Sequence[str], classes: Sequence[str], held_out: Sequence[tuple[int, float, float]]
) -> tuple[DoubtfulRow, ...]:
    """Return rows whose label is likely wrong, the likeliest first, `N_SHOWN` at most.

    A row is one to which a model that did not learn from it gives another answer; the likeliest has the least probability of its
    own label (self-confidence, Northcutt et al. 2021, section 3).

    Args:
        rows: ids of labelled rows.
        labels: their labels.
        classes: the label set.
        held_out: of each row, as `outlay.train.progress.TrainProgress.held_out`.
    """
    found: list[DoubtfulRow] = []
    for i in by_self_confidence(held_out):
        answer, sure, _ = held_out[i]
        if classes[answer] != labels[i] and len(found) < N_SHOWN:
            found.append(DoubtfulRow(rows[i], labels[i], classes[answer], round(100 * sure, 2)))
    return tuple(found)


def by_self_confidence(held_out: Sequence[tuple[int, float, float]]) -> list[int]:
    """Return the rows by the probability of their own label, the least first."""
    return sorted(range(len(held_out)), key=lambda i: (held_out[i][2], i))


def group_scores(metric: str, answered: Answered, groups: Sequence[str]) -> dict[str, GroupScore]:
    """Return the main score of each group of rows by the group's name; of many groups, the `MOST_GROUPS` largest."""
    by_group: dict[str, list[int]] = {}
    for at, group in enumerate(groups):
        by_group.setdefault(group, []).append(at)
    found = {}
    for group, places in sorted(by_group.items(), key=lambda each: (-len(each[1]), each[0]))[:MOST_GROUPS]:
        said, golds = [answered.predictions[i] for i in places], [answered.golds[i] for i in places]
        sources = [answered.sources[i] for i in places] if answered.sources else None
        alike = [answered.similarities[i] for i in places] if answered.similarities else None
        readings = score(metric, said, golds, answered.labels, sources=sources, similarities=alike)
        found[group] = GroupScore(round(readings[main_score(metric)].value, 2), len(places))
    return found


def widest_gap(groups: Mapping[str, GroupScore]) -> tuple[float, str, str] | None:
    """Return the difference of the best and the worst group's scores, with their names; ``None`` with fewer than two."""
    if len(groups) < 2:
        return None
    best, worst = max(groups, key=lambda name: groups[name].value), min(groups, key=lambda name: groups[name].value)
    return groups[best].value - groups[worst].value, best, worst
