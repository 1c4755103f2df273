"""`outlay finetune`, `teach`, `distill`, `predict`, `evaluate`: single steps without a budget."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import parse_labels
from outlay.cli.option_groups import grouped, option
from outlay.cli.step_options import (
    ANSWERING,
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
    RowsToPredict,
    Student,
    TaskData,
    TeachOptions,
    TrainingRun,
    TrainOptions,
)
from outlay.cli.terminal import echo, print_json
from outlay.errors import OutlayError, UsageError

if TYPE_CHECKING:
    from outlay.cli.step_screen import StepScreen
    from outlay.standalone.evaluator import MetricAsked
    from outlay.standalone.inference import InferenceOptions
    from outlay.standalone.request import Data
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
    """Handle `outlay finetune`; its help stands in `outlay.cli.app.COMMANDS`."""

    def step(screen: StepScreen) -> StepReport:
        from outlay.standalone.request import Data
        from outlay.standalone.training import TrainingRequest
        from outlay.standalone.training import finetune as train

        if role not in ("teacher", "student"):
            raise UsageError(f"--role {role!r} is unknown; choose student or teacher")
        request = TrainingRequest(
            model=model,
            out=out,
            base=base,
            role=role,  # type: ignore[arg-type]
            data=Data(
                **_fields_of(source, columns, dev, lengths),
                file=train_file,
                max_rows=max_train_rows,
                kind=kind,
                labels=parse_labels(labels),
            ),
            metric=_metric(metric),
            overrides=settings,
            accumulation=accumulation,
            runtime=_training_run(run, launch),
        )
        return train(request, screen)

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
    """Handle `outlay teach`; its help stands in `outlay.cli.app.COMMANDS`."""

    def step(screen: StepScreen) -> StepReport:
        from outlay.settings import TeachSettings
        from outlay.standalone.inference import InferenceOptions, Teaching
        from outlay.standalone.inference import teach as write
        from outlay.standalone.request import Data
        from outlay.standalone.runtime import RuntimeOptions

        options = InferenceOptions(
            model=model,
            out=out,
            data=Data(**_fields_of(source, rows, columns), max_train_rows=max_train_rows),
            precision=precision,
            runtime=RuntimeOptions(
                threads=launch.threads, overwrite=launch.overwrite, device_map=device_map, profile=profile, ray=ray
            ),
        )
        return write(options, Teaching(student, base, target, TeachSettings(**answers)), screen)

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
    """Handle `outlay distill`; its help stands in `outlay.cli.app.COMMANDS`."""

    def step(screen: StepScreen) -> StepReport:
        from outlay.standalone.request import Data
        from outlay.standalone.training import TrainingRequest, distil

        request = TrainingRequest(
            model=student,
            out=out,
            base=base,
            role="distil",
            data=Data(**_fields_of(source, columns, dev, lengths), max_rows=max_rows),
            metric=_metric(metric),
            overrides=settings,
            accumulation=accumulation,
            runtime=_training_run(run, launch),
        )
        return distil(request, targets, screen)

    _run(launch, step)


@grouped
def predict(
    model: ModelArgument,
    source: TaskData,
    rows: RowsToPredict,
    columns: Columns,
    answers: AnswerOptions,
    launch: Launch,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File of predictions, .jsonl, .csv or .tsv; the same command goes on there. (default: beside --file, or for "
            "standard input standard output)",
        ),
    ] = None,
    probabilities: Annotated[
        bool, option("--proba", panel=ANSWERING, says="Also a classifier's probability of each label.")
    ] = False,
) -> None:
    """Handle `outlay predict`; its help stands in `outlay.cli.app.COMMANDS`."""
    from outlay.standalone.prediction_table import STDIN, default_output, standard_input

    if rows.file == STDIN and launch.processes is not None:
        raise UsageError("standard input is read by one process; leave --processes out")
    with TemporaryDirectory() as temporary:
        file = standard_input(sys.stdin.read(), Path(temporary)) if rows.file == STDIN else rows.file
        if out is None and file is None:
            raise UsageError("predictions of a task's split need a place; name it with --out")
        shown = rows.file == STDIN and out is None
        target = out or (Path(temporary) / "predictions.jsonl" if shown or file is None else default_output(file))
        given = replace(rows, file=file)

        def step(screen: StepScreen) -> StepReport:
            from outlay.standalone.inference import predict as write
            from outlay.standalone.request import Data

            data = Data(**_fields_of(source, given, columns))
            return write(_inference(model, target, data, answers, launch), screen, probabilities=probabilities)

        if not shown:
            _run(launch, step)
            return
        _run(replace(launch, quiet=True), step, prints=False)
        echo(target.read_text(encoding="utf-8"), nl=False)


@grouped
def evaluate(
    source: TaskData,
    rows: RowsToAnswer,
    columns: Columns,
    metric: MetricOptions,
    answers: AnswerOptions,
    launch: Launch,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A folder that run, compare, finetune or distill wrote."),
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
    """Handle `outlay evaluate`; its help stands in `outlay.cli.app.COMMANDS`."""

    def step(screen: StepScreen) -> StepReport:
        from outlay.standalone.evaluator import evaluation_folder
        from outlay.standalone.inference import evaluate as score
        from outlay.standalone.prediction_file import evaluate_file
        from outlay.standalone.request import Data

        scored = model or predictions
        if scored is None or (model and predictions):
            raise UsageError("score a MODEL or a file of --predictions; name one of them")
        data = Data(
            **_fields_of(source, rows, columns),
            prediction_column=prediction_column,
            kind=kind,
            labels=parse_labels(labels),
        )
        by = _metric(metric, metric_layer, metric_idf)
        folder = out or evaluation_folder(scored, data)
        if scored == predictions:
            _refuse_changed("--predictions holds the answers", rows, answers)
            return evaluate_file(scored, folder, data, by, overwrite=launch.overwrite)
        return score(_inference(scored, folder, data, answers, launch), by, screen)

    _run(launch, step)


def _run(launch: Launch, step: Callable[[StepScreen], StepReport], *, prints: bool = True) -> None:
    """Run one step in this process, or the command again as several; the main process prints the report, if ``prints``."""
    from outlay.cli.step_screen import StepScreen, print_report
    from outlay.standalone.launch import is_ours, needs_launch, relaunch
    from outlay.standalone.runtime import rank

    if launch.processes is not None and needs_launch(launch.processes):
        raise SystemExit(relaunch(launch.processes, sys.argv[1:], launch.threads))
    is_main = rank() == 0
    try:
        with StepScreen(quiet=launch.quiet or not is_main) as screen:
            report = step(screen)
    except OutlayError:
        if not is_main:
            time.sleep(_GRACE_SECONDS)
        raise
    except KeyboardInterrupt:
        if is_main and not is_ours():
            raise
        raise SystemExit(1) from None
    if not (is_main and prints):
        return
    if launch.as_json:
        print_json(report.to_json())
    else:
        print_report(report)


_GRACE_SECONDS = 3.0
"""Seconds that other processes wait with an error: the main one prints an error of all, and then they are ended."""


def _refuse_changed(why: str, *groups: RowsToAnswer | AnswerOptions) -> None:
    """Refuse an option that a command could not follow.

    Raises:
        UsageError: an option of the groups is not as it stands.
    """
    for group in groups:
        for each in fields(group):
            if getattr(group, each.name) != each.default:
                raise UsageError(f"{why}, so --{each.name.replace('_', '-')} changes nothing; leave it out")


def _fields_of(*groups: TaskData | RowsToAnswer | Columns | DevRows | Lengths) -> dict[str, Any]:
    """Return the fields of `outlay.standalone.request.Data` that groups of options give."""
    return {name: value for group in groups for name, value in asdict(group).items()}


def _inference(model: Path, out: Path, data: Data, answers: AnswerOptions, launch: Launch) -> InferenceOptions:
    from outlay.standalone.inference import InferenceOptions
    from outlay.standalone.runtime import RuntimeOptions

    return InferenceOptions(
        model=model,
        out=out,
        data=data,
        seed=answers.seed,
        precision=answers.precision,
        batch_size=answers.batch_size,
        beams=answers.beams,
        runtime=RuntimeOptions(threads=launch.threads, overwrite=launch.overwrite, device_map=answers.device_map),
    )


def _metric(options: MetricOptions, layer: int | None = None, idf: bool | None = None) -> MetricAsked:
    from outlay.standalone.evaluator import MetricAsked

    return MetricAsked(options.metric, options.metric_model, layer, idf)


def _training_run(run: TrainingRun, launch: Launch) -> RuntimeOptions:
    from outlay.standalone.runtime import RuntimeOptions

    return RuntimeOptions(threads=launch.threads, overwrite=launch.overwrite, **asdict(run))
