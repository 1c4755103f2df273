"""Paraphrases: ``bert_ibleu`` rewards likeness of meaning and penalises words of the source (Niu et al. 2021, section 3).

Per example, with b the BERTScore F1 and s the BLEU of prediction and source (both against the source, as the published test
file repeats it as target), both plus ε = 1e-5 as in the published script: the weighted harmonic mean

    (β + 1) / (β / b + 1 / (1 - s)),  β = 4.

The published reading is that, quirks included: an empty prediction is read as "no prediction", and a copy of the source, whose
1 - s is -ε, has a slightly negative value. In the strict reading an empty prediction and a copy (however short, where BLEU of
less than four words is 0) score 0, and no value leaves 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from outlay.errors import DataError
from outlay.metrics.answers import Answered, Rule, missing_text

if TYPE_CHECKING:
    from outlay.metrics.answers import Floats

BETA = 4.0
EPSILON = 1e-5


def paraphrase_values(answered: Answered, reading: Rule) -> Floats:
    """Return BERT-iBLEU, BERTScore and self-BLEU of every answer, about 0 to 1, and a one: float64 ``[n_examples, 4]``.

    The published script adds ε before it averages BERTScore and self-BLEU, so the published reading of both holds it.

    Raises:
        DataError: Sources or similarities are missing.
    """
    import numpy as np

    n = len(answered.golds)
    for name, values in (("sources", answered.sources), ("BERTScore similarities", answered.similarities)):
        if len(values) != n:
            raise DataError(f"bert_ibleu needs {name} of {n} examples but got {len(values)}; give one per prediction")
    similarity = np.asarray(answered.similarities, dtype=np.float64)
    bleu = _self_bleu(missing_text(answered.predictions), answered.sources)
    if reading == "published":
        b, s = similarity + EPSILON, bleu + EPSILON
        return np.stack([harmonic(b, s), b, s, np.ones(n)], axis=1)
    texts = [" ".join(prediction.split()) for prediction in answered.predictions]
    is_empty = np.array([not prediction for prediction in texts])
    is_copy = np.array(
        [prediction == " ".join(source.split()) for prediction, source in zip(texts, answered.sources, strict=True)]
    )
    similarity = np.where(is_empty, 0, np.clip(similarity, 0, 1))
    bleu = np.where(is_empty, 0, np.where(is_copy, 1, np.clip(bleu, 0, 1)))
    value = np.where(is_empty | is_copy, 0, np.clip(harmonic(similarity + EPSILON, bleu + EPSILON), 0, 1))
    return np.stack([value, similarity, bleu, np.ones(n)], axis=1)


def harmonic(b: Floats, s: Floats) -> Floats:
    """Return the weighted harmonic mean of b and 1 - s, weights β and 1; 0 where either is exactly 0."""
    import numpy as np

    with np.errstate(divide="ignore"):
        return np.asarray((BETA + 1) / (BETA / b + 1 / (1 - s)))


def _self_bleu(predictions: Sequence[str], sources: Sequence[str]) -> Floats:
    """Return the BLEU of each prediction against its source, 0 to 1: four-grams, 13a tokens, no smoothing."""
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(smooth_method="none", effective_order=False)
    # A corpus of one sentence has the score of the sentence, and is not warned about on standard error.
    pairs = zip(predictions, sources, strict=True)
    return np.array([bleu.corpus_score([prediction], [[source]]).score / 100 for prediction, source in pairs])
