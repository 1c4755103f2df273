"""A metric with all that it needs to score answers: the labels, and the encoder that one of them compares texts with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outlay.metrics.answers import missing_text
from outlay.metrics.intervals import Reading
from outlay.metrics.scoring import main_score, score
from outlay.models.shape import check_layer

if TYPE_CHECKING:
    from outlay.metrics.bertscore import BertScore


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """The encoder that BERTScore compares texts with.

    ``layer``: the hidden state that is compared, ``None`` = the last; ``idf``: whether rare tokens weigh more.
    """

    ref: str
    layer: int | None = None
    idf: bool = False


def choose_encoder(
    own: TextEncoder | None, ref: str | None, *, layer: int | None = None, idf: bool | None = None
) -> TextEncoder | None:
    """Return the encoder of this name, or else the task's own; what is not given is as the task says of its own, or a default.

    Raises:
        UnknownModel: the reference leads nowhere, or the model has no such layer.
    """
    # A layer is a layer of one checkpoint: of another the last one is compared.
    base = TextEncoder(ref) if ref is not None else own
    if base is None:
        return None
    chosen = TextEncoder(base.ref, base.layer if layer is None else layer, base.idf if idf is None else idf)
    check_layer(chosen.ref, chosen.layer)
    return chosen


class Scorer:
    """A metric, the label set of its task (empty for free text), and the encoder that ``bert_ibleu`` needs; loaded once."""

    def __init__(self, metric: str, labels: Sequence[str], encoder: TextEncoder | None = None) -> None:
        self.metric = metric
        self.labels = tuple(labels)
        self.encoder = encoder
        self._loaded: BertScore | None = None

    @property
    def main(self) -> str:
        """The score that models are chosen by, such as ``accuracy/published``."""
        return main_score(self.metric)

    def identity(self) -> dict[str, Any]:
        """Return what decides scores beside the answers, fit for a request."""
        if self.encoder is None:
            return {"metric": self.metric}
        encoder = self.encoder
        model = {"metric_model": encoder.ref, "metric_layer": encoder.layer, "metric_idf": encoder.idf}
        return {"metric": self.metric, **model}

    def similarities(self, answers: Sequence[str], sources: Sequence[str]) -> list[float]:
        """Return BERTScore's F1 of each answer and its source, 0 to 1; nothing where the metric compares no texts."""
        if self.encoder is None:
            return []
        if self._loaded is None:
            from outlay.metrics.bertscore import BertScore

            self._loaded = BertScore(self.encoder.ref, layer=self.encoder.layer, idf=self.encoder.idf)
        return self._loaded.f1(missing_text(answers), sources)

    def score(
        self,
        answers: Sequence[str],
        golds: Sequence[str],
        sources: Sequence[str],
        similarities: Sequence[float] | None = None,
    ) -> dict[str, Reading]:
        """Return every statistic in both readings with its interval, in points of 0 to 100.

        ``similarities``: those of `similarities`, where they are known already.
        """
        alike = self.similarities(answers, sources) if similarities is None else similarities
        return score(self.metric, answers, golds, self.labels, sources=sources, similarities=alike or None)

    def main_value(self, answers: Sequence[str], golds: Sequence[str], sources: Sequence[str]) -> float:
        """Return the main score alone, of the first rows where there are fewer answers than rows."""
        n = len(answers)
        return self.score(answers, golds[:n], sources[:n])[self.main].value
