"""Evaluation of a file of predictions."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

from outlay.errors import DataError
from outlay.spec import named_class
from outlay.standalone.evaluator import MetricAsked, about_scores, answer_remarks, check_scores, scorer_of, write_scores
from outlay.standalone.inputs import CUSTOM_ID, DataReader, TaskRow, cell, check_each_once, number_coded
from outlay.standalone.request import Data
from outlay.standalone.runtime import StepReport
from outlay.storage.hashing import key_of
from outlay.text.text_file import suffix_of

PREDICTION, GOLD, CONFIDENCE = "prediction", "gold", "confidence"


def read_predictions(path: Path) -> list[str]:
    """Return the answers in a file that `outlay.standalone.inference.predict` wrote, in order."""
    from outlay.tasks.readers import DELIMITER_OF

    if (delimiter := DELIMITER_OF.get(suffix_of(path))) is not None:
        with path.open(encoding="utf-8", newline="") as stream:
            return [row[PREDICTION] for row in csv.DictReader(stream, delimiter=delimiter)]
    return [json.loads(line)[PREDICTION] for line in path.read_text(encoding="utf-8").split("\n") if line]


def read_confidences(path: Path) -> list[float] | None:
    """Return the probabilities of the answers in such a file, in order; ``None`` where a line has none."""
    found = [json.loads(line).get(CONFIDENCE) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return None if None in found else found


def evaluate_file(
    predictions: Path, out: Path, data: Data, metric: MetricAsked, *, overwrite: bool = False
) -> StepReport:
    """Score a file of predictions, as `predict` writes it or with columns of other names.

    Raises:
        OutlayError: a file without predictions or gold answers, labels that are missing, a metric that does not fit, scores of
            something else in ``out`` (unless ``overwrite``).
    """
    began = time.monotonic()
    reader = DataReader(_with_kind(data, metric))
    form = reader.form()
    found = reader.table(predictions)
    gold = data.target_column or (GOLD if GOLD in found[0].columns else "target")
    source = data.source_column if data.source_column in found[0].columns else None
    ids = [str(row.columns[CUSTOM_ID]) for row in found if row.columns.get(CUSTOM_ID) is not None]
    check_each_once(ids, f"{predictions} answers")
    prediction = data.prediction_column or PREDICTION
    rows, answers = [], []
    for number, row in enumerate(found, start=1):
        text = cell(row, source, "--source-column") or "" if source is not None else ""
        rows.append(TaskRow(text, (text,), cell(row, gold, "--target-column"), f"{row.origin} (row {number})"))
        # A missing prediction is scored and counted as one outside the label set.
        answers.append(cell(row, prediction, "--prediction-column") or "")
    rows = reader.checked(rows, form)
    scorer = scorer_of(metric, form, reader.task)
    if scorer.metric == "bert_ibleu" and source is None:
        raise DataError(f"bert_ibleu compares with the source, and {predictions} has no column {data.source_column!r}")
    read = [named_class(answer, form.labels) for answer in answers] if form.kind == "classification" else answers
    counts = [*reader.notes, *number_coded(answers, read, "prediction"), *answer_remarks(read, form)]
    about = {"predictions_sha256": key_of(read), **about_scores(scorer, rows)}
    check_scores(out, about, overwrite=overwrite)
    facts = {"predictions": str(predictions), **write_scores(scorer, read, rows, out, about)}
    return StepReport("evaluate", str(out), facts, counts, seconds=round(time.monotonic() - began, 3))


def _with_kind(data: Data, metric: MetricAsked) -> Data:
    """Return the data with the kind of task that a named metric scores, where no kind is given."""
    from outlay.tasks.task import METRICS_OF

    if data.kind is not None or data.task is not None:
        return data
    return next((replace(data, kind=kind) for kind, names in METRICS_OF.items() if metric.name in names), data)
