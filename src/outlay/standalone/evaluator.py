"""Scoring of answers: the metric, the encoder of BERTScore, and the file of scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import UsageError
from outlay.metrics import Answered
from outlay.metrics.degenerate import dev_remarks, floor_of, test_remarks
from outlay.metrics.scorer import Scorer, TextEncoder, choose_encoder
from outlay.spec import TaskSpec
from outlay.standalone.inputs import TaskRow, rows_digest
from outlay.standalone.output_dir import Document, difference, json_bytes, read_object
from outlay.standalone.request import Data
from outlay.storage.files import write_bytes
from outlay.text.legible import quoted

if TYPE_CHECKING:
    from outlay.tasks.task import Task

SCORES = "scores.json"


def evaluation_folder(scored: Path, data: Data) -> Path:
    """Return the default folder of scores: beside a file of predictions, or, by the rows answered, inside a model's folder."""
    if scored.is_file():
        return scored.with_name(f"{scored.name}.evaluation")
    name = data.split or "test"
    if data.file is not None:
        name = Path(data.file).stem
    elif data.task is not None:
        from outlay.tasks.task import load_task

        name = f"{load_task(str(data.task)).name}-{name}"
    return scored / "evaluation" / name


def check_scores(out: Path, asked: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse a folder with scores of another request; equal ones are written again.

    ``asked``: the request as the file of scores keeps it: model, rows, metric.

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
    """Metric as the user asks for it; ``None`` = the task's, or a default.

    ``model``, ``layer``, ``idf``: the encoder of BERTScore, which only ``bert_ibleu`` needs.
    """

    name: str | None = None
    model: str | None = None
    layer: int | None = None
    idf: bool | None = None


def scorer_of(asked: MetricAsked, form: TaskSpec, task: Task | None) -> Scorer:
    """Return the scorer of the metric asked for, else of the task's or the kind's, with its encoder.

    Raises:
        UsageError: a metric that does not fit the kind, or ``bert_ibleu`` without an encoder.
        UnknownModel: an encoder that leads nowhere.
    """
    from outlay.tasks.task import METRICS_OF

    known = METRICS_OF[form.kind]
    metric = asked.name or (task.metric if task is not None else known[0])
    if metric not in known:
        raise UsageError(f"--metric {metric!r} does not score {form.kind}; choose one of {', '.join(known)}")
    if metric != "bert_ibleu":
        return Scorer(metric, form.labels)
    given = None if task is None else task.bertscore
    own = None if given is None else TextEncoder(given.model, given.layer, given.idf)
    encoder = choose_encoder(own, asked.model, layer=asked.layer, idf=asked.idf)
    if encoder is None:
        raise UsageError("bert_ibleu compares meanings by an encoder; name one with --metric-model")
    return Scorer(metric, form.labels, encoder)


def dev_score(scorer: Scorer, answers: Sequence[str], rows: Sequence[TaskRow]) -> float:
    """Return the main score of answers to dev rows, or to the first of them."""
    return scorer.main_value(answers, [row.gold or "" for row in rows], [row.text for row in rows])


def notes_on_dev(scorer: Scorer, value: float | None, rows: Sequence[TaskRow]) -> list[str]:
    """Return remarks on a dev score, 0-100, that means less than its number."""
    floor = floor_of(scorer.metric, [row.gold or "" for row in rows], scorer.labels)
    return dev_remarks(len(rows), {"this model": value}, floor)


_N_SHOWN = 3
"""Number of answers outside the label set that are named."""


def answer_remarks(answers: Sequence[str], form: TaskSpec) -> list[str]:
    """Return a sentence on answers outside the label set, or on empty ones for free text; no sentence where none is."""
    if form.kind != "classification":
        n_empty = sum(not answer.strip() for answer in answers)
        return [f"{n_empty:,} of {len(answers):,} answers are empty"] if n_empty and form.kind == "generation" else []
    known = {*form.labels, *(label.upper() for label in form.labels)}
    unknown = Counter(a.strip() for a in answers if a not in known and a.strip().upper() not in known)
    if not unknown:
        return []
    shown = ", ".join(f"{quoted(a) if a else 'no answer'} ({n:,})" for a, n in unknown.most_common(_N_SHOWN))
    more = f" and {len(unknown) - _N_SHOWN} other" if len(unknown) > _N_SHOWN else ""
    return [
        f"{unknown.total():,} of {len(answers):,} answers are outside the label set: {shown}{more}; strict counts them as wrong, "
        f"published as {quoted(form.labels[0])}, the first label"
    ]


def about_scores(scorer: Scorer, rows: Sequence[TaskRow]) -> Document:
    """Return the inputs that decide scores beside the answers, for the request."""
    return {"rows": rows_digest(rows), "n_rows": len(rows), "labels": list(scorer.labels), **scorer.identity()}


def write_scores(
    scorer: Scorer,
    answers: Sequence[str],
    rows: Sequence[TaskRow],
    out: Path,
    about: Mapping[str, Any],
    calibration: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score answers, write ``scores.json`` to ``out`` with ``about`` in it, and return the scores without ``about``.

    ``calibration``: facts about a classifier's probabilities, kept with the scores.
    """
    golds, sources = [row.gold or "" for row in rows], [row.text for row in rows]
    readings = scorer.score(answers, golds, sources)
    scores = {name: {"value": r.value, "low": r.low, "high": r.high} for name, r in readings.items()}
    facts = {"n_rows": len(rows), **scorer.identity(), "main": scorer.main, "scores": scores, **(calibration or {})}
    answered = Answered(answers, golds, scorer.labels, sources)
    facts["notes"] = test_remarks(scorer.metric, answered, scores[scorer.main]["value"])
    write_bytes(out / SCORES, json_bytes({**facts, "asked": about}))
    return facts
