"""The metrics by name, and the three questions asked of each: a score, a mean over seeds, a difference of two systems.

A metric is two functions: answers to per-example features, and summed features to a statistic. Everything between is one
bootstrap for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from outlay.errors import DataError
from outlay.metrics.answers import Answered, Rule
from outlay.metrics.bootstrap import N_BOOTSTRAP, Difference, Reading, resampled_scores, resampled_sums
from outlay.metrics.classes import class_counts
from outlay.metrics.counts import counted
from outlay.metrics.paraphrases import paraphrase_values
from outlay.metrics.questions import answer_values
from outlay.metrics.spans import entity_counts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """How answers are scored.

    Attributes:
        statistics: What is reported, the main one first.
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
    """Statistics that are means over examples: one column each, 0 to 1, and a last one to count by."""

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
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Reading]:
    """Score answers: every statistic of the metric in both readings, with intervals over examples.

    Args:
        metric: One of `METRICS`.
        predictions: One answer per example.
        golds: One gold answer per example.
        labels: The label set, its first label the published reading of an unknown answer; empty for ``qa_f1`` and ``bert_ibleu``.
        sources: The texts that were paraphrased; ``bert_ibleu`` only.
        similarities: BERTScore F1 of predictions and sources (see :class:`Answered`); ``bert_ibleu`` only.
        n_bootstrap: Number of resamples of the examples.
        seed: Seed of the resamples.

    Returns:
        ``statistic/reading`` → score, the main one first.

    Raises:
        LabelError: A gold answer is outside the label set.
        DataError: The metric is unknown, there is no example, or sequences differ in length.
    """
    found = _metric(metric)
    answered = Answered(predictions, golds, labels, sources or (), () if similarities is None else similarities)
    answered.check()
    sums, draws = {}, {}
    for reading in found.readings:
        features = found.features(answered, reading)
        sums[reading], draws[reading] = features.sum(0), resampled_sums(features, n_bootstrap, seed)
    return {
        f"{statistic}/{reading}": Reading.of(
            found.value(statistic, sums[reading]).item(), found.value(statistic, draws[reading])
        )
        for statistic in found.statistics
        for reading in found.readings
    }


def mean_score(
    metric: str,
    answered: Sequence[Answered],
    *,
    statistic: str | None = None,
    reading: Rule | None = None,
    seed: int = 0,
) -> Reading:
    """Return a statistic's mean over seeds with an interval over seeds and examples, as :func:`mean_interval` does.

    Args:
        metric: One of `METRICS`.
        answered: One per seed, over the same examples in the same order.
        statistic: One of the metric's; the main one by default.
        reading: ``published`` or ``strict``; that of the main score by default.
        seed: Seed of the resamples.

    Raises:
        LabelError: A gold answer is outside the label set.
        DataError: The metric, statistic or reading is unknown, or the seeds do not answer the same examples.
    """
    value, draws = _resampled(metric, [answered], statistic, reading, seed)
    return Reading.of(value[0], draws[0])


def paired_bootstrap_scores(
    metric: str,
    a: Sequence[Answered],
    b: Sequence[Answered],
    *,
    statistic: str | None = None,
    reading: Rule | None = None,
    seed: int = 0,
) -> Difference:
    """Compare two systems by a statistic, which need not be a mean over examples (F1).

    For accuracy this equals :func:`paired_bootstrap` over :func:`correctness`, draw by draw.

    Args:
        metric: One of `METRICS`.
        a: One per seed, over the same examples in the same order.
        b: The same seeds and examples.
        statistic: One of the metric's; the main one by default.
        reading: ``published`` or ``strict``; that of the main score by default.
        seed: Seed of the resamples.

    Raises:
        LabelError: A gold answer is outside the label set.
        DataError: The metric, statistic or reading is unknown, or seeds and examples do not agree.
    """
    if len(a) != len(b):
        raise DataError(f"{len(a)} seeds are paired with {len(b)}; give both sides the same seeds")
    value, draws = _resampled(metric, [a, b], statistic, reading, seed)
    return Difference.of(value[0] - value[1], draws[0] - draws[1])


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise DataError(f"metric {name!r} is unknown; choose one of {', '.join(METRICS)}")
    return METRICS[name]


def featured(
    metric: str, answered: Sequence[Answered], *, statistic: str | None = None, reading: Rule | None = None
) -> tuple[list[Floats], Callable[[Floats], Floats]]:
    """Turn answers to the same examples into what every test between systems works on.

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


def _resampled(
    metric: str, sides: Sequence[Sequence[Answered]], statistic: str | None, reading: Rule | None, seed: int
) -> tuple[Floats, Floats]:
    """Each side's mean over seeds and its resamples, as `resampled_scores` returns them."""
    everyone = [answered for side in sides for answered in side]
    tables, value = featured(metric, everyone, statistic=statistic, reading=reading)
    n_seeds = len(sides[0])
    return resampled_scores([tables[i : i + n_seeds] for i in range(0, len(tables), n_seeds)], value, seed)
