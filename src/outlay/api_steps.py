"""Single steps from Python, without money: plain arguments in, results as objects out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from outlay.errors import UsageError
from outlay.export.model_dir import model_folder
from outlay.settings import TeachSettings
from outlay.standalone import inference, training
from outlay.standalone.evaluator import MetricAsked, evaluation_folder
from outlay.standalone.inference import InferenceOptions, Teaching
from outlay.standalone.prediction_file import evaluate_file
from outlay.standalone.request import Data
from outlay.standalone.results import EvaluationResult, PredictionResult, TargetsResult, TrainingResult
from outlay.standalone.runtime import RuntimeOptions
from outlay.standalone.trained_model import TrainedModel
from outlay.standalone.training import TrainingRequest
from outlay.storage.paths import expand_path
from outlay.study.progress import OnProgress, ProgressReports
from outlay.study.request import AnyPath

Settings = Mapping[str, object]
"""Training or teaching settings by name, such as ``{"epochs": 4}``; ``docs/training.md`` lists them."""

_LENGTHS = ("prefix", "max_source_tokens", "max_target_tokens")
"""Fields of `Data` that decide how a training puts the question."""


def finetune(
    model: AnyPath,
    data: Data,
    *,
    out: AnyPath,
    settings: Settings | None = None,
    role: Literal["student", "teacher"] = "student",
    base: AnyPath | None = None,
    metric: str | MetricAsked | None = None,
    accumulation: int = 1,
    runtime: RuntimeOptions | None = None,
    progress: OnProgress | None = None,
) -> TrainingResult:
    """Train a model on labelled rows; with dev rows the best evaluation is kept.

    Args:
        model: hub name, folder, ``package:NAME/FOLDER``, ``cut:K`` or ``tiny:LxH``.
        data: the train split of a task, or a file; and dev rows.
        out: folder of the model; the same call goes on there.
        settings: training settings, in place of the defaults of the role and the task.
        role: whose defaults: ``student`` or ``teacher``.
        base: what ``cut:`` and ``tiny:`` models are made from.
        metric: of the dev score; ``None`` = the task's, or the first of the kind.
        accumulation: forward passes of a process for each optimiser step.
        runtime: threads, checkpoints, tracking, several GPUs.
        progress: called with each report of progress.

    Raises:
        OutlayError: unsuitable rows, model, settings or folder; one line.
    """
    if role not in ("student", "teacher"):
        raise UsageError(f"role {role!r} is unknown; choose student or teacher")
    asked = TrainingRequest(
        model=str(model),
        out=expand_path(out),
        base=_text(base),
        role=role,
        data=data.checked("finetune", ("file", "max_rows", "dev_file", "max_dev_rows", "kind", "labels", *_LENGTHS)),
        metric=_metric(metric),
        overrides=settings or {},
        accumulation=accumulation,
        runtime=runtime or RuntimeOptions(),
    )
    return TrainingResult.of(training.finetune(asked, ProgressReports(progress)))


def teach(
    model: AnyPath,
    data: Data,
    *,
    out: AnyPath,
    student: AnyPath | None = None,
    base: AnyPath | None = None,
    target: str | None = None,
    settings: Settings | None = None,
    precision: str = "auto",
    runtime: RuntimeOptions | None = None,
    progress: OnProgress | None = None,
) -> TargetsResult:
    """Write a teacher's targets for a student, in blocks of 1,024 rows.

    Args:
        model: the teacher, a folder that `finetune` or `distill` wrote.
        data: the pool of a task (another split by ``split``), or a file.
        out: folder of the targets; the same call goes on there.
        student: the model to write targets for.
        base: what a ``cut:`` or ``tiny:`` student is made from.
        target: ``classes``, ``tags``, ``tokens`` or ``text``; ``None`` = what the student can read.
        settings: of `outlay.settings.TeachSettings`, in place of its defaults.
        precision: ``auto``, ``bf16`` or ``fp32``.
        runtime: threads, several GPUs, a Ray cluster.
        progress: called with each report of progress.

    Raises:
        OutlayError: unsuitable teacher, student, rows or folder; one line.
    """
    chosen = TeachSettings().changed(settings or {})
    options = InferenceOptions(
        model=expand_path(model),
        out=expand_path(out),
        data=data.checked("teach", ("file", "split", "max_rows", "max_train_rows")),
        precision=precision,
        runtime=runtime or RuntimeOptions(),
    )
    teaching = Teaching(_text(student), _text(base), target, chosen)
    return TargetsResult.of(inference.teach(options, teaching, ProgressReports(progress)))


def distill(
    targets: AnyPath,
    student: AnyPath,
    data: Data | None = None,
    *,
    out: AnyPath,
    settings: Settings | None = None,
    base: AnyPath | None = None,
    metric: str | MetricAsked | None = None,
    accumulation: int = 1,
    runtime: RuntimeOptions | None = None,
    progress: OnProgress | None = None,
) -> TrainingResult:
    """Train a student on a teacher's targets; with dev rows the best evaluation is kept.

    Args:
        targets: a folder that `teach` wrote.
        student: as ``model`` of `finetune`.
        data: dev rows, and how many of the targets are used.
        out: folder of the model; the same call goes on there.
        settings: training settings, in place of the defaults.
        base: as in `finetune`.
        metric: as in `finetune`.
        accumulation: as in `finetune`.
        runtime: as in `finetune`.
        progress: called with each report of progress.

    Raises:
        OutlayError: unsuitable targets, rows, student, settings or folder; one line.
    """
    asked = TrainingRequest(
        model=str(student),
        out=expand_path(out),
        base=_text(base),
        role="distil",
        data=(data or Data()).checked("distill", ("max_rows", "dev_file", "max_dev_rows", *_LENGTHS)),
        metric=_metric(metric),
        overrides=settings or {},
        accumulation=accumulation,
        runtime=runtime or RuntimeOptions(),
    )
    return TrainingResult.of(training.distil(asked, expand_path(targets), ProgressReports(progress)))


def predict(
    model: AnyPath,
    data: Data,
    *,
    out: AnyPath,
    beams: int = 1,
    batch_size: int = 64,
    precision: str = "auto",
    seed: int = 0,
    probabilities: bool = False,
    runtime: RuntimeOptions | None = None,
    progress: OnProgress | None = None,
) -> PredictionResult:
    """Write a model's answers to rows, with the columns of their file, and gold where it is known.

    Args:
        model: a folder that `run`, `compare`, `finetune` or `distill` wrote.
        data: the test split of a task (another one by ``split``), or a file; rows without text are answered with nothing.
        out: file of the predictions, ``.jsonl``, ``.csv`` or ``.tsv``; the same call goes on there.
        beams: of the search for an answer; 1 is greedy.
        batch_size: rows per forward pass.
        precision: ``auto``, ``bf16`` or ``fp32``.
        seed: of the order of a split that is not the test split.
        probabilities: also a classifier's probability of each label.
        runtime: threads, several GPUs.
        progress: called with each report of progress.

    Raises:
        OutlayError: unsuitable model, rows or file; one line.
    """
    options = InferenceOptions(
        model=expand_path(model),
        out=expand_path(out),
        data=data.checked("predict", ("file", "split", "max_rows")),
        seed=seed,
        precision=precision,
        batch_size=batch_size,
        beams=beams,
        runtime=runtime or RuntimeOptions(),
    )
    return PredictionResult.of(inference.predict(options, ProgressReports(progress), probabilities=probabilities))


def load_model(model: AnyPath) -> TrainedModel:
    """Open a trained model, to ask it in this process.

    Args:
        model: a folder that `run`, `compare`, `finetune` or `distill` wrote.

    Returns:
        The model: ``predict(rows)`` and ``predict_proba(rows)``.

    Raises:
        UnknownModel: there is no model of `outlay`.
    """
    return TrainedModel.open(model_folder(expand_path(model)))


def evaluate(
    model: AnyPath,
    data: Data,
    *,
    out: AnyPath | None = None,
    metric: str | MetricAsked | None = None,
    beams: int = 1,
    batch_size: int = 64,
    precision: str = "auto",
    seed: int = 0,
    runtime: RuntimeOptions | None = None,
    progress: OnProgress | None = None,
) -> EvaluationResult:
    """Score a model, or a file of predictions: every statistic in both readings with its 95 % interval.

    Args:
        model: a folder that `finetune` or `distill` wrote, or a file of predictions with gold answers.
        data: labelled rows, as in `predict`; of a file of predictions its columns and its question.
        out: folder of the scores; ``None`` = beside what is scored.
        metric: ``None`` = the task's, or the first of the kind.
        beams: as in `predict`.
        batch_size: as in `predict`.
        precision: as in `predict`.
        seed: as in `predict`.
        runtime: as in `predict`.
        progress: called with each report of progress.

    Raises:
        OutlayError: as `predict`; rows without gold answers; a metric that does not fit.
    """
    runtime, scored = runtime or RuntimeOptions(), expand_path(model)
    if scored.is_file():
        data = data.checked("evaluate of predictions", ("prediction_column", "kind", "labels"))
    else:
        data = data.checked("evaluate", ("file", "split", "max_rows", "kind", "labels"))
    folder = evaluation_folder(scored, data) if out is None else expand_path(out)
    if scored.is_file():
        return EvaluationResult.of(evaluate_file(scored, folder, data, _metric(metric), overwrite=runtime.overwrite))
    options = InferenceOptions(
        model=scored,
        out=folder,
        data=data,
        seed=seed,
        precision=precision,
        batch_size=batch_size,
        beams=beams,
        runtime=runtime,
    )
    return EvaluationResult.of(inference.evaluate(options, _metric(metric), ProgressReports(progress)))


def _metric(named: str | MetricAsked | None) -> MetricAsked:
    return named if isinstance(named, MetricAsked) else MetricAsked(named)


def _text(named: AnyPath | None) -> str | None:
    return None if named is None else str(named)
