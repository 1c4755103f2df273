"""Statistics of per-class counts: right answers, gold answers, given answers.

One row of features holds, for each of L classes, how often the class was rightly answered, was gold, and was answered: float64
``[..., 3 L]``. Every statistic is a ratio of sums of these, so rows may be summed with any weights before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlay.metrics.answers import Floats


def counted(statistic: str, sums: Floats) -> Floats:
    """Compute a statistic in points from summed counts ``[..., 3 L]`` → ``[...]``; a ratio of nothing to nothing is 0.

    With TP, G and A of a class: ``accuracy`` and ``recall`` are ΣTP / ΣG, ``precision`` ΣTP / ΣA, ``micro_f1``
    2 ΣTP / (ΣG + ΣA), ``macro_f1`` the plain mean of 2 TP / (G + A) over the classes that occur among golds or answers
    (the conventions of scikit-learn).
    """
    import numpy as np

    def ratio(above: Floats, below: Floats) -> Floats:
        out: Floats = np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)
        return out

    right, gold, answered = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    if statistic == "macro_f1":
        n_present = (gold + answered > 0).sum(-1, dtype=np.float64)
        return 100 * ratio(ratio(2 * right, gold + answered).sum(-1), n_present)
    if statistic == "micro_f1":
        return 100 * ratio(2 * right.sum(-1), (gold + answered).sum(-1))
    return 100 * ratio(right.sum(-1), (answered if statistic == "precision" else gold).sum(-1))
