"""`outlay finetune`, `teach`, `distill`, `predict`, `evaluate`: single steps without a budget."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outlay.cli.common import parse_labels
from outlay.cli.option_groups import grouped, option
from outlay.cli.step_options import (
    ROWS,
    TRAINING,
    Accumulation,
    AnswerOptions,
    Base,
    Columns,
    DeviceMap,
    DevRows,
    DistilOptions,
    Kind,
    Labels,
    Launch,
    Lengths,
    MaxRows,
    MetricIdf,
    MetricLayer,
    MetricOptions,
    ModelArgument,
    Out,
    PoolRows,
    Precision,
    Profile,
    Ray,
    RowsToAnswer,
    Student,
    TaskData,
    TeachOptions,
    TrainingRun,
    TrainOptions,
)
from outlay.cli.terminal import print_json
from outlay.errors import OutlayError, UsageError

if TYPE_CHECKING:
    from outlay.cli.step_screen import StepScreen
    from outlay.standalone.evaluator import MetricAsked
    from outlay.standalone.inference import InferenceOptions
    from outlay.standalone.inputs import DataOptions
    from outlay.standalone.runtime import RuntimeOptions, StepReport


@grouped
def finetune(
    model: Annotated[str, typer.Option("--model", help="Hub name, folder, package:NAME/FOLDER, cut:K or tiny:LxH.")],
    out: Out,
    source: TaskData,
    columns: Columns,
    dev: DevRows,
    lengths: Lengths,
    metric: MetricOptions,
    settings: TrainOptions,
    run: TrainingRun,
    launch: Launch,
    base: Base = None,
    train_file: Annotated[
        Path | None, option("--train-file", panel=ROWS, says="Rows to train on, instead of a task's.")
    ] = None,
    max_train_rows: Annotated[
        int | None, option("--max-train-rows", panel=ROWS, says="Only the first so many train rows.")
    ] = None,
    kind: Kind = None,
    labels: Labels = None,
    role: Annotated[str, option("--role", panel=TRAINING, says="Whose defaults: student or teacher.")] = "student",
    accumulation: Accumulation = 1,
) -> None:
    """Run `outlay finetune`."""

    def step(screen: StepScreen) -> StepReport:
        from outlay.standalone.training import TrainingRequest
        from outlay.standalone.training import finetune as train

        if role not in ("teacher", "student"):
            raise UsageError(f"--role {role!r} is unknown; choose student or teacher")
        asked = TrainingRequest(
            model=model,
            out=out,
            base=base,
            role=role,  # type: ignore[arg-type]
            asked=_rows(source, columns, lengths, kind=kind, labels=labels),
            dev_file=dev.dev_file,
            max_dev_rows=dev.max_dev_rows,
            metric=_metric(metric),
            overrides=settings,
            accumulation=accumulation,
            running=_training_run(run, launch),
        )
        return train(asked, screen, train_file=train_file, max_train_rows=max_train_rows)

    _run(launch, step)


@grouped
def teach(
    model: ModelArgument,
    out: Out,
    source: TaskData,
    rows: PoolRows,
    columns: Columns,
    answers: TeachOptions,
    launch: Launch,
    student: Student = None,
    base: Base = None,
    target: Annotated[
        str | None, typer.Option("--target", help="classes, tags, tokens or text. (default: what the student can read)")
    ] = None,
    max_train_rows: Annotated[
        int | None,
        option("--max-train-rows", panel=ROWS, says="Pool rows may carry the labels of so many train rows."),
    ] = None,
    precision: Precision = "auto",
    device_map: DeviceMap = None,
    ray: Ray = None,
    profile: Profile = False,
) -> None:
    """Run `outlay teach`."""

    def step(screen: StepScreen) -> StepReport:
        from outlay.settings import TeachSettings
        from outlay.standalone.inference import InferenceOptions, Teaching
        from outlay.standalone.inference import teach as write
        from outlay.standalone.runtime import RuntimeOptions

        settings = TeachSettings(**answers)
        asked = InferenceOptions(
            model=model,
            out=out,
            asked=_rows(source, columns),
            file=rows.file,
            split=rows.split,
            max_rows=rows.max_rows,
            n_gold=max_train_rows,
            seed=settings.seed,
            precision=precision,
            batch_size=settings.batch_size,
            beams=settings.beams,
            running=RuntimeOptions(
                threads=launch.threads, overwrite=launch.overwrite, device_map=device_map, profile=profile, ray=ray
            ),
        )
        return write(asked, Teaching(student, base, target, settings), screen)

    _run(launch, step)


@grouped
def distill(
    targets: Annotated[Path, typer.Argument(metavar="TARGETS", help="A folder that teach wrote.")],
    student: Annotated[str, typer.Option("--student", help="As --model of finetune.")],
    out: Out,
    source: TaskData,
    columns: Columns,
    dev: DevRows,
    lengths: Lengths,
    metric: MetricOptions,
    settings: DistilOptions,
    run: TrainingRun,
    launch: Launch,
    base: Base = None,
    max_rows: MaxRows = None,
    accumulation: Accumulation = 1,
) -> None:
    """Run `outlay distill`."""

    def step(screen: StepScreen) -> StepReport:
        from outlay.standalone.training import TrainingRequest, distil

        asked = TrainingRequest(
            model=student,
            out=out,
            base=base,
            role="distil",
            asked=_rows(source, columns, lengths),
            dev_file=dev.dev_file,
            max_dev_rows=dev.max_dev_rows,
            metric=_metric(metric),
            overrides=settings,
            accumulation=accumulation,
            running=_training_run(run, launch),
        )
        return distil(asked, screen, targets=targets, max_rows=max_rows)

    _run(launch, step)


@grouped
def predict(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="File of predictions; the same command goes on there.")],
    source: TaskData,
    rows: RowsToAnswer,
    columns: Columns,
    answers: AnswerOptions,
    launch: Launch,
) -> None:
    """Run `outlay predict`."""

    def step(screen: StepScreen) -> StepReport:
        from outlay.standalone.inference import predict as write

        return write(_answering(model, out, _rows(source, columns), rows, answers, launch), screen)

    _run(launch, step)


@grouped
def evaluate(
    source: TaskData,
    rows: RowsToAnswer,
    columns: Columns,
    metric: MetricOptions,
    answers: AnswerOptions,
    launch: Launch,
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="A folder that finetune or distill wrote.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Score a file of predictions instead of a model.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the scores. (default: beside what is scored)")
    ] = None,
    prediction_column: Annotated[
        str, option("--prediction-column", panel=ROWS, says="Column of the prediction in --predictions.")
    ] = "prediction",
    kind: Kind = None,
    labels: Labels = None,
    metric_layer: MetricLayer = None,
    metric_idf: MetricIdf = None,
) -> None:
    """Run `outlay evaluate`."""

    def step(screen: StepScreen) -> StepReport:
        from outlay.standalone.inference import evaluate as score
        from outlay.standalone.prediction_file import evaluate_file

        if (model is None) == (predictions is None):
            raise UsageError("score a MODEL or a file of --predictions; name one of them")
        asked = _rows(source, columns, kind=kind, labels=labels)
        by = _metric(metric, metric_layer, metric_idf)
        if predictions is not None:
            folder = out or predictions.with_name(f"{predictions.name}.evaluation")
            column, overwrite = prediction_column, launch.overwrite
            return evaluate_file(predictions, folder, asked, by, prediction_column=column, overwrite=overwrite)
        assert model is not None
        folder = out or model / "evaluation" / _scored(source.task, rows.split, rows.file)
        return score(_answering(model, folder, asked, rows, answers, launch), by, screen)

    _run(launch, step)


def _scored(task: str | None, split: str, file: Path | None) -> str:
    """Return the name of the folder of scores: the file's, or the task's with the split."""
    if file is not None or task is None:
        return split if file is None else file.stem
    from outlay.tasks.task import load_task

    return f"{load_task(task).name}-{split}"


def _run(launch: Launch, step: Callable[[StepScreen], StepReport]) -> None:
    """Run one step in this process, or the command again as several; the main process prints the report."""
    from outlay.cli.step_screen import StepScreen, print_outcome
    from outlay.standalone.launch import is_ours, needs_launch, relaunch
    from outlay.standalone.runtime import rank

    if launch.processes is not None and needs_launch(launch.processes):
        raise SystemExit(relaunch(launch.processes, sys.argv[1:], launch.threads))
    is_main = rank() == 0
    try:
        with StepScreen(quiet=launch.quiet or not is_main) as screen:
            outcome = step(screen)
    except OutlayError:
        if not is_main:
            time.sleep(_GRACE_SECONDS)
        raise
    except KeyboardInterrupt:
        if is_main and not is_ours():
            raise
        raise SystemExit(1) from None
    if is_main and launch.as_json:
        print_json(outcome.to_json())
    elif is_main:
        print_outcome(outcome)


_GRACE_SECONDS = 3.0
"""Seconds that other processes wait with an error: the main one prints an error of all, and then they are ended."""


def _rows(
    source: TaskData,
    columns: Columns,
    lengths: Lengths | None = None,
    *,
    kind: str | None = None,
    labels: list[str] | None = None,
) -> DataOptions:
    from outlay.standalone.inputs import DataOptions

    return DataOptions(
        task=source.task,
        data=source.data,
        source_column=columns.source_column,
        target_column=columns.target_column,
        delimiter=columns.delimiter,
        kind=kind,
        labels=parse_labels(labels),
        prefix=None if lengths is None else lengths.prefix,
        max_source_tokens=None if lengths is None else lengths.max_source_tokens,
        max_target_tokens=None if lengths is None else lengths.max_target_tokens,
    )


def _answering(
    model: Path, out: Path, asked: DataOptions, rows: RowsToAnswer, answers: AnswerOptions, launch: Launch
) -> InferenceOptions:
    from outlay.standalone.inference import InferenceOptions
    from outlay.standalone.runtime import RuntimeOptions

    return InferenceOptions(
        model=model,
        out=out,
        asked=asked,
        file=rows.file,
        split=rows.split,
        max_rows=rows.max_rows,
        seed=answers.seed,
        precision=answers.precision,
        batch_size=answers.batch_size,
        beams=answers.beams,
        running=RuntimeOptions(threads=launch.threads, overwrite=launch.overwrite, device_map=answers.device_map),
    )


def _metric(options: MetricOptions, layer: int | None = None, idf: bool | None = None) -> MetricAsked:
    from outlay.standalone.evaluator import MetricAsked

    return MetricAsked(options.metric, options.metric_model, layer, idf)


def _training_run(run: TrainingRun, launch: Launch) -> RuntimeOptions:
    from outlay.standalone.runtime import RuntimeOptions

    return RuntimeOptions(
        threads=launch.threads,
        overwrite=launch.overwrite,
        save_steps=run.save_steps,
        save_seconds=run.save_seconds,
        report_to=run.report_to,
        fsdp=run.fsdp,
        profile=run.profile,
    )
