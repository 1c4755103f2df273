"""Short answers to questions: ``qa_f1``, exact match and token F1 as SQuAD counts them (Rajpurkar et al. 2016).

The readings differ in the F1 of an answer that normalises to nothing where the gold answer does too: 0 as published (SQuAD
v1.1), 100 in the strict one (SQuAD v2.0: right if and only if the gold is nothing as well).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import TYPE_CHECKING

from outlay.metrics.answers import Answered, Rule

if TYPE_CHECKING:
    from outlay.metrics.answers import Floats

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalised(answer: str) -> str:
    """Normalise an answer: lower case, no ASCII punctuation, no articles a, an and the, white space folded."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def answer_values(answered: Answered, reading: Rule) -> Floats:
    """Return token F1 and exact match of every answer, 0 to 1, and a one to count by: float64 ``[n_examples, 3]``."""
    import numpy as np

    pairs = zip(answered.predictions, answered.golds, strict=True)
    return np.array(
        [_values(normalised(answer), normalised(gold), reading) for answer, gold in pairs], dtype=np.float64
    )


def _values(answer: str, gold: str, reading: Rule) -> tuple[float, float, float]:
    exact = float(answer == gold)
    if reading == "strict" and not (answer and gold):
        return exact, exact, 1.0
    answer_tokens, gold_tokens = answer.split(), gold.split()
    n_common = (Counter(answer_tokens) & Counter(gold_tokens)).total()
    if not n_common:
        return 0.0, exact, 1.0
    # 2 P R / (P + R) with P = common / answer and R = common / gold
    return 2 * n_common / (len(answer_tokens) + len(gold_tokens)), exact, 1.0
