"""Scorers of answers by a task's metric."""

from __future__ import annotations

from functools import lru_cache

from outlay.metrics.scorer import Scorer, TextEncoder
from outlay.plan.steps import Encoding, Judge


def scorer_of(encoding: Encoding) -> Scorer:
    """Return the scorer of a task's metric; an encoder stays loaded from step to step."""
    if encoding.judge is None:
        return Scorer(encoding.metric, encoding.form.labels)
    return _with_encoder(encoding.metric, encoding.form.labels, encoding.judge)


@lru_cache(maxsize=1)
def _with_encoder(metric: str, labels: tuple[str, ...], judge: Judge) -> Scorer:
    return Scorer(metric, labels, TextEncoder(judge.ref, judge.layer, judge.idf))
