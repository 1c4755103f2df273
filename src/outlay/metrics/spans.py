"""Named entities as lines of text: ``entity_f1``.

The strict reading matches the multiset of (text, label) pairs of an answer with that of the gold line, example by example. The
published reading (Kang et al. 2023, ``run_t5.py``) makes a classification of it: each distinct gold text is one case, its label
the last one given to it, the answer the last label that the predicted line gives to the same text, or the first label of the
label set where the line lacks it. So repeats collapse and spurious entities cost nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from outlay.errors import LabelError
from outlay.metrics.answers import Answered, Rule
from outlay.text.entities import Entity, parse_entities, unlabelled
from outlay.text.legible import named

if TYPE_CHECKING:
    from outlay.metrics.answers import Floats

RIGHT, GOLD, GIVEN = 0, 1, 2


def entity_counts(answered: Answered, reading: Rule) -> Floats:
    """Return per-example counts for `counted`, float64 ``[n_examples, 3 n_labels]``.

    Raises:
        LabelError: Words of a gold line are followed by no label of the set.
    """
    import numpy as np

    labels = answered.labels
    number = {label: i for i, label in enumerate(labels)}
    count = _count_published if reading == "published" else _count_strict
    counts = np.zeros((len(answered.golds), 3, len(labels)))
    for i, (prediction, gold) in enumerate(zip(answered.predictions, answered.golds, strict=True)):
        if left := unlabelled(gold, labels):
            raise LabelError(
                f"gold entities of example {i} end in {left!r}, which has no label of {named(labels)}; correct them"
            )
        count(counts[i], parse_entities(prediction, labels), parse_entities(gold, labels), number)
    return counts.reshape(len(answered.golds), 3 * len(labels))


def _count_published(row: Floats, predicted: list[Entity], gold: list[Entity], number: dict[str, int]) -> None:
    given = {entity.text: number[entity.label] for entity in predicted}
    for text, label in {entity.text: number[entity.label] for entity in gold}.items():
        answer = given.get(text, 0)
        row[GOLD, label] += 1
        row[GIVEN, answer] += 1
        row[RIGHT, label] += answer == label


def _count_strict(row: Floats, predicted: list[Entity], gold: list[Entity], number: dict[str, int]) -> None:
    given, wanted = Counter(predicted), Counter(gold)
    for kind, entities in ((RIGHT, given & wanted), (GOLD, wanted), (GIVEN, given)):
        for entity, n in entities.items():
            row[kind, number[entity.label]] += n
