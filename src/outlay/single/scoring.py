"""Scores of answers to rows: which metric, and the encoder that one of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outlay.errors import UsageError
from outlay.form import Form
from outlay.single.inputs import Row

if TYPE_CHECKING:
    from outlay.metrics import Reading
    from outlay.task import Task
    from outlay.train.bertscore import BertScore


@dataclass(frozen=True, slots=True)
class MetricAsked:
    """What the user says of the metric; what is ``None`` is as the task says, or a default.

    ``model``, ``layer``, ``idf``: the encoder of BERTScore, which only ``bert_ibleu`` needs.
    """

    name: str | None = None
    model: str | None = None
    layer: int | None = None
    idf: bool | None = None


class Scorer:
    """A metric with all it needs.

    Raises:
        UsageError: a metric that does not fit the kind, or ``bert_ibleu`` without an encoder.
        UnknownModel: an encoder that leads nowhere.
    """

    def __init__(self, asked: MetricAsked, form: Form, task: Task | None) -> None:
        from outlay.task import METRICS_OF

        known = METRICS_OF[form.kind]
        self.metric = asked.name or (task.metric if task is not None else known[0])
        if self.metric not in known:
            raise UsageError(f"--metric {self.metric!r} does not score {form.kind}; choose one of {', '.join(known)}")
        self.form = form
        self._model: str | None = None
        self._layer: int | None = None
        self._idf = False
        if self.metric == "bert_ibleu":
            self._choose_model(asked, task)
        self._loaded: BertScore | None = None

    def _choose_model(self, asked: MetricAsked, task: Task | None) -> None:
        from outlay.modelref import resolve_folder

        told = task.bertscore if task is not None else None
        self._model = asked.model or (told.model if told is not None else None)
        if self._model is None:
            raise UsageError("bert_ibleu compares meanings by an encoder; name one with --metric-model")
        if asked.model is None and told is not None:
            self._layer, self._idf = told.layer, told.idf
        self._layer = asked.layer if asked.layer is not None else self._layer
        self._idf = asked.idf if asked.idf is not None else self._idf
        resolve_folder(self._model)

    def identity(self) -> dict[str, Any]:
        """What decides its scores, fit for a request."""
        model = {"metric_model": self._model, "metric_layer": self._layer, "metric_idf": self._idf}
        return {"metric": self.metric, **(model if self._model is not None else {})}

    @property
    def main(self) -> str:
        """The score models are chosen by, such as ``accuracy/published``."""
        from outlay.metrics import main_score

        return main_score(self.metric)

    def dev_score(self, predictions: Sequence[str], rows: Sequence[Row]) -> float:
        """The main score alone, of the first rows where there are fewer predictions."""
        return self.score(predictions, rows[: len(predictions)])[self.main].value

    def score(self, predictions: Sequence[str], rows: Sequence[Row]) -> dict[str, Reading]:
        """Every statistic in both readings with its interval."""
        from outlay.metrics import score

        texts = [row.text for row in rows]
        return score(
            self.metric,
            predictions,
            [row.gold or "" for row in rows],
            self.form.labels,
            sources=texts,
            similarities=self._similarities(predictions, texts),
        )

    def _similarities(self, predictions: Sequence[str], texts: Sequence[str]) -> list[float] | None:
        if self._model is None:
            return None
        from outlay.metrics import missing_text
        from outlay.train.bertscore import BertScore

        if self._loaded is None:
            self._loaded = BertScore(self._model, layer=self._layer, idf=self._idf)
        return self._loaded.f1(missing_text(predictions), texts)
