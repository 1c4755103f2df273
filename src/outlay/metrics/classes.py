"""Single-label classification: ``accuracy`` and ``f1``.

An answer outside the label set is *unknown*. The published reading compares without case and makes an unknown answer the task's
first label; the strict one compares the exact string and makes it wrong: it is no answer for any class. Space around an answer
counts only where a label has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlay.errors import LabelError
from outlay.metrics.answers import Answered, Rule
from outlay.text.legible import listed

if TYPE_CHECKING:
    from outlay.metrics.answers import Floats


def class_counts(answered: Answered, reading: Rule) -> Floats:
    """Return per-example counts for `counted`, float64 ``[n_examples, 3 n_labels]``.

    Raises:
        LabelError: A gold label is outside the label set.
    """
    import numpy as np

    golds, answers = _numbers(answered, reading)
    n_labels = len(answered.labels)
    gold = np.array(golds, dtype=np.intp)
    answer = np.array([-1 if each is None else each for each in answers], dtype=np.intp)
    (given,), (right,) = np.nonzero(answer >= 0), np.nonzero(answer == gold)
    counts = np.zeros((len(golds), 3, n_labels))
    counts[np.arange(len(golds)), 1, gold] = 1
    counts[given, 2, answer[given]] = 1
    counts[right, 0, answer[right]] = 1
    return counts.reshape(len(golds), 3 * n_labels)


def _numbers(answered: Answered, reading: Rule) -> tuple[list[int], list[int | None]]:
    """Return gold and answered classes as indices into the label set; ``None`` is a strict unknown."""
    labels = answered.labels
    number = {label: i for i, label in enumerate(labels)}
    upper = {label.upper(): i for i, label in reversed(list(enumerate(labels)))}

    def answer_of(prediction: str) -> int | None:
        given = prediction if prediction in number else prediction.strip()
        return number.get(given) if reading == "strict" else number.get(given, upper.get(given.upper(), 0))

    for i, gold in enumerate(answered.golds):
        if gold not in number:
            raise LabelError(f"gold label {gold!r} of example {i} is not one of {listed(labels)}; correct it")
    return [number[gold] for gold in answered.golds], [answer_of(prediction) for prediction in answered.predictions]
