"""Scores of answers to rows: which metric, and the encoder that one of them needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import UsageError
from outlay.spec import TaskSpec
from outlay.standalone.inputs import TaskRow, rows_digest
from outlay.standalone.output_dir import Document, difference, json_bytes, read_object
from outlay.storage.files import write_bytes
from outlay.text.legible import quoted

if TYPE_CHECKING:
    from outlay.metrics import Reading
    from outlay.metrics.bertscore import BertScore
    from outlay.tasks.task import Task

SCORES = "scores.json"


def evaluation_folder(scored: Path, task: str | None = None, split: str = "test", file: Path | None = None) -> Path:
    """Return where scores go unless the user says so: beside a file of predictions, or inside the folder of a model.

    Args:
        scored: the file of predictions, or the model's folder.
        task: whose ``split`` a model answered, where no ``file`` was given.
        split: of the task.
        file: the rows that a model answered.
    """
    if scored.is_file():
        return scored.with_name(f"{scored.name}.evaluation")
    name = split if file is None else file.stem
    if file is None and task is not None:
        from outlay.tasks.task import load_task

        name = f"{load_task(task).name}-{split}"
    return scored / "evaluation" / name


def check_scores(out: Path, asked: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse a folder with the scores of something else; equal ones are written again.

    ``asked``: what decides scores, as they keep it themselves.

    Raises:
        UsageError: ``out`` is a file, or its scores are of another model, other rows or another metric (unless ``overwrite``).
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    if overwrite or not (out / SCORES).exists():
        return
    try:
        known: Any = read_object(out / SCORES).get("asked")
    except (OSError, ValueError):
        known = None
    if known is None:
        raise UsageError(
            f"--out {out} holds {SCORES} that do not say what they are of; choose another --out, or add --overwrite"
        )
    if known != dict(asked):
        raise UsageError(
            f"--out {out} holds the scores of another request ({difference(known, asked)}); choose another --out, or add "
            "--overwrite"
        )


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

    def __init__(self, asked: MetricAsked, form: TaskSpec, task: Task | None) -> None:
        from outlay.tasks.task import METRICS_OF

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
        from outlay.models.shape import check_layer

        told = task.bertscore if task is not None else None
        self._model = asked.model or (told.model if told is not None else None)
        if self._model is None:
            raise UsageError("bert_ibleu compares meanings by an encoder; name one with --metric-model")
        if asked.model is None and told is not None:
            self._layer, self._idf = told.layer, told.idf
        self._layer = asked.layer if asked.layer is not None else self._layer
        self._idf = asked.idf if asked.idf is not None else self._idf
        check_layer(self._model, self._layer)

    def identity(self) -> dict[str, Any]:
        """What decides its scores, fit for a request."""
        model = {"metric_model": self._model, "metric_layer": self._layer, "metric_idf": self._idf}
        return {"metric": self.metric, **(model if self._model is not None else {})}

    @property
    def main(self) -> str:
        """The score models are chosen by, such as ``accuracy/published``."""
        from outlay.metrics import main_score

        return main_score(self.metric)

    def dev_score(self, predictions: Sequence[str], rows: Sequence[TaskRow]) -> float:
        """The main score alone, of the first rows where there are fewer predictions."""
        return self.score(predictions, rows[: len(predictions)])[self.main].value

    def remarks(self, predictions: Sequence[str], rows: Sequence[TaskRow], value: float) -> list[str]:
        """Where the main score of these rows, 0-100, means less than its number."""
        from outlay.metrics import Answered
        from outlay.metrics.degenerate import test_remarks

        golds, sources = [row.gold or "" for row in rows], [row.text for row in rows]
        return test_remarks(self.metric, Answered(predictions, golds, self.form.labels, sources), value)

    def dev_remarks(self, value: float | None, rows: Sequence[TaskRow]) -> list[str]:
        """The same of a dev score."""
        from outlay.metrics.degenerate import dev_remarks, floor_of

        floor = floor_of(self.metric, [row.gold or "" for row in rows], self.form.labels)
        return dev_remarks(len(rows), {"this model": value}, floor)

    def score(self, predictions: Sequence[str], rows: Sequence[TaskRow]) -> dict[str, Reading]:
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
        from outlay.metrics.bertscore import BertScore

        if self._loaded is None:
            self._loaded = BertScore(self._model, layer=self._layer, idf=self._idf)
        return self._loaded.f1(missing_text(predictions), texts)


_N_SHOWN = 3
"""Answers outside the label set that are named."""


def outside(said: Sequence[str], form: TaskSpec) -> list[str]:
    """Say how many answers are none of the label set, and which; of free text, how many are empty. Nothing where none is."""
    if form.kind != "classification":
        n_empty = sum(not answer.strip() for answer in said)
        return [f"{n_empty:,} of {len(said):,} answers are empty"] if n_empty and form.kind == "generation" else []
    known = {*form.labels, *(label.upper() for label in form.labels)}
    unknown = Counter(a.strip() for a in said if a not in known and a.strip().upper() not in known)
    if not unknown:
        return []
    shown = ", ".join(f"{quoted(a) if a else 'no answer'} ({n:,})" for a, n in unknown.most_common(_N_SHOWN))
    more = f" and {len(unknown) - _N_SHOWN} other" if len(unknown) > _N_SHOWN else ""
    return [
        f"{unknown.total():,} of {len(said):,} answers are outside the label set: {shown}{more}; strict counts them as wrong, "
        f"published as {quoted(form.labels[0])}, the first label"
    ]


def about_scores(scorer: Scorer, rows: Sequence[TaskRow]) -> Document:
    """What decides scores, beside the answers."""
    return {"rows": rows_digest(rows), "n_rows": len(rows), "labels": list(scorer.form.labels), **scorer.identity()}


def write_scores(
    scorer: Scorer, said: Sequence[str], rows: Sequence[TaskRow], out: Path, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Score answers and keep it in ``out``, with what it is of; returns what is kept but for that."""
    readings = scorer.score(said, rows)
    scores = {name: {"value": r.value, "low": r.low, "high": r.high} for name, r in readings.items()}
    facts = {"n_rows": len(rows), **scorer.identity(), "main": scorer.main, "scores": scores}
    facts["notes"] = scorer.remarks(said, rows, scores[scorer.main]["value"])
    write_bytes(out / SCORES, json_bytes({**facts, "asked": about}))
    return facts
