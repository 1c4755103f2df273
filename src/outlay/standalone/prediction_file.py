"""Evaluation of a file of predictions."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from outlay.errors import DataError
from outlay.spec import named_class
from outlay.standalone.evaluator import MetricAsked, about_scores, check_scores, outside, scorer_of, write_scores
from outlay.standalone.inputs import CUSTOM_ID, DataOptions, DataReader, TaskRow, cell, check_each_once, number_coded
from outlay.standalone.runtime import StepReport
from outlay.storage.hashing import key_of

PREDICTION, GOLD = "prediction", "gold"


def evaluate_file(
    predictions: Path,
    out: Path,
    asked: DataOptions,
    metric: MetricAsked,
    *,
    prediction_column: str = PREDICTION,
    overwrite: bool = False,
) -> StepReport:
    """Score a file of predictions, as `predict` writes it or with columns of other names.

    Raises:
        OutlayError: a file without predictions or gold answers, labels that are missing, a metric that does not fit, scores of
            something else in ``out`` (unless ``overwrite``).
    """
    began = time.monotonic()
    inputs = DataReader(_with_kind(asked, metric))
    form = inputs.form()
    found = inputs.table(predictions)
    gold = asked.target_column or (GOLD if GOLD in found[0].columns else "target")
    source = asked.source_column if asked.source_column in found[0].columns else None
    ids = [str(row.columns[CUSTOM_ID]) for row in found if row.columns.get(CUSTOM_ID) is not None]
    check_each_once(ids, f"{predictions} answers")
    rows, said = [], []
    for number, row in enumerate(found, start=1):
        text = cell(row, source, "--source-column") or "" if source is not None else ""
        rows.append(TaskRow(text, (text,), cell(row, gold, "--target-column"), f"{row.origin} (row {number})"))
        # A missing prediction is scored and counted as one outside the label set.
        said.append(cell(row, prediction_column, "--prediction-column") or "")
    rows = inputs.checked(rows, form)
    scorer = scorer_of(metric, form, inputs.task)
    if scorer.metric == "bert_ibleu" and source is None:
        raise DataError(f"bert_ibleu compares with the source, and {predictions} has no column {asked.source_column!r}")
    read = [named_class(answer, form.labels) for answer in said] if form.kind == "classification" else said
    counts = [*inputs.notes, *number_coded(said, read, "prediction"), *outside(read, form)]
    about = {"predictions_sha256": key_of(read), **about_scores(scorer, rows)}
    check_scores(out, about, overwrite=overwrite)
    facts = {"predictions": str(predictions), **write_scores(scorer, read, rows, out, about)}
    return StepReport("evaluate", str(out), facts, counts, seconds=round(time.monotonic() - began, 3))


def _with_kind(asked: DataOptions, metric: MetricAsked) -> DataOptions:
    """Return the options with the kind of task that a named metric scores, where no kind is given."""
    from outlay.tasks.task import METRICS_OF

    if asked.kind is not None or asked.task is not None:
        return asked
    return next((replace(asked, kind=kind) for kind, names in METRICS_OF.items() if metric.name in names), asked)
