"""Metrics by name: a score, a mean over seeds, a difference of two systems.

A metric is two functions: answers to per-example features, and summed features to a statistic. Intervals and tests need no more
than these: each row's part in a statistic comes by leaving the row out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from outlay.errors import DataError
from outlay.metrics.answers import Answered, Rule
from outlay.metrics.classes import class_counts
from outlay.metrics.counts import counted
from outlay.metrics.intervals import ROUNDING, Difference, Reading, difference_of, reading_of, row_values
from outlay.metrics.paraphrases import paraphrase_values
from outlay.metrics.questions import answer_values
from outlay.metrics.spans import entity_counts

if TYPE_CHECKING:
    from outlay.metrics.answers import Floats


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its statistics, its readings, and the features of each answer.

    Attributes:
        statistics: Statistics that are reported, the main one first.
        reading: The reading by which models are chosen.
        features: Answers in a reading → float64 ``[n_examples, n_features]``.
        value: A statistic and summed features ``[..., n_features]`` → points ``[...]``.
    """

    statistics: tuple[str, ...]
    reading: Rule
    features: Callable[[Answered, Rule], Floats]
    value: Callable[[str, Floats], Floats]

    @property
    def readings(self) -> tuple[Rule, ...]:
        """Both readings, that of the main score first."""
        return ("published", "strict") if self.reading == "published" else ("strict", "published")

    def check(self, statistic: str, reading: str) -> None:
        """Refuse a statistic or a reading that the metric does not have.

        Raises:
            DataError: There is none of this name.
        """
        for what, name, known in (("statistic", statistic, self.statistics), ("reading", reading, self.readings)):
            if name not in known:
                raise DataError(f"{what} {name!r} is unknown; choose one of {', '.join(known)}")


def _averaged(statistics: tuple[str, ...]) -> Callable[[str, Floats], Floats]:
    """Make statistics that are means over examples: one column each, 0 to 1, and a last one to count by."""

    def value(statistic: str, sums: Floats) -> Floats:
        mean: Floats = 100 * sums[..., statistics.index(statistic)] / sums[..., -1]
        return mean

    return value


_QUESTIONS = ("f1", "exact_match")
_PARAPHRASES = ("bert_ibleu", "bert_score", "self_bleu")

METRICS: dict[str, Metric] = {
    "accuracy": Metric(("accuracy", "macro_f1"), "published", class_counts, counted),
    "f1": Metric(("micro_f1", "macro_f1", "accuracy"), "published", class_counts, counted),
    "entity_f1": Metric(("micro_f1", "macro_f1", "precision", "recall"), "strict", entity_counts, counted),
    "qa_f1": Metric(_QUESTIONS, "published", answer_values, _averaged(_QUESTIONS)),
    "bert_ibleu": Metric(_PARAPHRASES, "published", paraphrase_values, _averaged(_PARAPHRASES)),
}

STATISTICS: dict[str, tuple[str, ...]] = {name: metric.statistics for name, metric in METRICS.items()}
"""A task's metric → the statistics that are reported for it, the main one first."""


def main_score(metric: str) -> str:
    """Return the key of :func:`score` that is a task's main score, such as ``accuracy/published``.

    Raises:
        DataError: The metric is unknown.
    """
    found = _metric(metric)
    return f"{found.statistics[0]}/{found.reading}"


def score(
    metric: str,
    predictions: Sequence[str],
    golds: Sequence[str],
    labels: Sequence[str],
    *,
    sources: Sequence[str] | None = None,
    similarities: Sequence[float] | None = None,
) -> dict[str, Reading]:
    """Score answers: every statistic of the metric in both readings, with intervals for this model on other test rows.

    Args:
        metric: One of `METRICS`.
        predictions: One answer per example.
        golds: One gold answer per example.
        labels: The label set, its first label the published reading of an unknown answer; empty for ``qa_f1`` and ``bert_ibleu``.
        sources: The texts that were paraphrased; ``bert_ibleu`` only.
        similarities: BERTScore F1 of predictions and sources (see :class:`Answered`); ``bert_ibleu`` only.

    Returns:
        ``statistic/reading`` → score, the main one first.

    Raises:
        LabelError: A gold answer is outside the label set.
        DataError: The metric is unknown, there is no example, or sequences differ in length.
    """
    found = _metric(metric)
    answered = Answered(predictions, golds, labels, sources or (), () if similarities is None else similarities)
    answered.check()
    features = {reading: found.features(answered, reading) for reading in found.readings}
    scores = {}
    for statistic in found.statistics:
        for reading, of_rows in features.items():
            value = partial(found.value, statistic)
            mean, table = _means([of_rows], value)
            scores[f"{statistic}/{reading}"] = reading_of(mean, table)
    return scores


def mean_score(
    metric: str,
    answered: Sequence[Answered],
    *,
    statistic: str | None = None,
    reading: Rule | None = None,
) -> Reading:
    """Return a statistic's mean over seeds with its interval over new seeds and rows.

    Args:
        metric: One of `METRICS`.
        answered: One per seed, over the same examples in the same order.
        statistic: One of the metric's; the main one by default.
        reading: ``published`` or ``strict``; that of the main score by default.

    Raises:
        LabelError: A gold answer is outside the label set.
        DataError: The metric, statistic or reading is unknown, or the seeds do not answer the same examples.
    """
    tables, value = featured(metric, answered, statistic=statistic, reading=reading)
    return reading_of(*_means(tables, value))


@dataclass(frozen=True, slots=True)
class Side:
    """One system in a comparison: a statistic's mean over seeds, and each row's part in it.

    Attributes:
        mean: In points.
        rows: Float64 ``[n_seeds, n_examples]`` (:func:`outlay.metrics.intervals.row_values`).
        tables: Per seed the features of :func:`featured`, float64 ``[n_examples, n_features]``.
    """

    mean: float
    rows: Floats
    tables: Sequence[Floats]

    @classmethod
    def of(cls, tables: Sequence[Floats], value: Callable[[Floats], Floats]) -> Side:
        """Compute the statistic of each seed's features."""
        return cls(*_means(tables, value), tables)

    def minus(self, other: Side) -> Difference:
        """Compare with another system over the same seeds and rows."""
        import numpy as np

        is_apart = np.zeros(self.rows.shape[1], dtype=bool)
        for one, its in zip(self.tables, other.tables, strict=True):
            is_apart |= (abs(one - its) > ROUNDING).any(-1)
        # Two wrong answers may differ and score alike; a row's part in a ratio may differ though its answers do not.
        is_apart &= (abs(self.rows - other.rows) > ROUNDING).any(0)
        return difference_of(self.mean - other.mean, self.rows - other.rows, int(is_apart.sum()))


def _means(tables: Sequence[Floats], value: Callable[[Floats], Floats]) -> tuple[float, Floats]:
    """Return a statistic's mean over seeds, and each row's part in it ``[n_seeds, n_examples]``."""
    import numpy as np

    mean = float(np.mean([value(table.sum(0)) for table in tables]))
    return mean, np.array([row_values(table, value) for table in tables])


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise DataError(f"metric {name!r} is unknown; choose one of {', '.join(METRICS)}")
    return METRICS[name]


def featured(
    metric: str, answered: Sequence[Answered], *, statistic: str | None = None, reading: Rule | None = None
) -> tuple[list[Floats], Callable[[Floats], Floats]]:
    """Turn answers to the same examples into the features that every test between systems works on.

    Args:
        metric: One of `METRICS`.
        answered: One per system and seed, over the same examples in the same order.
        statistic: One of the metric's; the main one by default.
        reading: ``published`` or ``strict``; that of the main score by default.

    Returns:
        Per answered its features, float64 ``[n_examples, n_features]``, and the statistic: summed features
        ``[..., n_features]`` → points ``[...]``.

    Raises:
        LabelError: A gold answer is outside the label set.
        DataError: The metric, statistic or reading is unknown, or the answers are not to the same examples.
    """
    found = _metric(metric)
    statistic, reading = statistic or found.statistics[0], reading or found.reading
    found.check(statistic, reading)
    if not answered:
        raise DataError("there is nothing to score; give the answers of at least one seed")
    golds, labels = list(answered[0].golds), list(answered[0].labels)
    for each in answered:
        each.check()
        if list(each.golds) != golds or list(each.labels) != labels:
            raise DataError("the seeds have different gold answers or labels; score the same examples with each")
    return [found.features(each, reading) for each in answered], partial(found.value, statistic)
