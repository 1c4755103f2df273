"""`outlay finetune`, `teach`, `distill`, `predict`, `evaluate`: one step each, for those who want only one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import Json, parse_labels
from outlay.cli.step_options import (
    ROWS,
    SAVE_SECONDS,
    THREADS,
    TRAINING,
    Accumulation,
    AnswerBatch,
    AnswerPrecision,
    AnswersFrom,
    AnswerTokens,
    Base,
    BatchSize,
    BatchTokens,
    Beams,
    Compile,
    Data,
    Delimiter,
    DevFile,
    DeviceMap,
    Divergence,
    Dropout,
    Epochs,
    EvalShare,
    EvalSteps,
    File,
    Fsdp,
    GoldWeight,
    GradientCheckpointing,
    JsBeta,
    KeepPadding,
    Kind,
    Labels,
    LoraAlpha,
    LoraRank,
    Lr,
    MaxDevRows,
    MaxGradNorm,
    MaxLogits,
    MaxRows,
    MaxSource,
    MaxTarget,
    MaxTrainRows,
    Metric,
    MetricIdf,
    MetricLayer,
    MetricModel,
    ModelArgument,
    Objective,
    Optimizer,
    Out,
    Overwrite,
    Patience,
    Peft,
    Precision,
    Prefix,
    Processes,
    Profile,
    Quiet,
    Ray,
    ReportTo,
    Sample,
    SampleTemperature,
    SaveSeconds,
    SaveSteps,
    Seed,
    SourceColumn,
    Split,
    TailMass,
    TargetColumn,
    Task,
    Temperature,
    Threads,
    TopP,
    TrainFile,
    Warmup,
    WeightDecay,
    option,
)
from outlay.cli.terminal import print_json
from outlay.errors import OutlayError

if TYPE_CHECKING:
    from outlay.cli.step_screen import StepScreen
    from outlay.standalone.evaluator import MetricAsked
    from outlay.standalone.inference import InferenceOptions
    from outlay.standalone.inputs import DataOptions
    from outlay.standalone.runtime import RuntimeOptions, StepReport
    from outlay.standalone.training import TrainingRequest


def finetune(
    model: Annotated[str, typer.Option("--model", help="Hub name, folder, package:NAME/FOLDER, cut:K or tiny:LxH.")],
    out: Out,
    base: Base = None,
    task: Task = None,
    data: Data = None,
    train_file: TrainFile = None,
    dev_file: DevFile = None,
    source_column: SourceColumn = "source",
    target_column: TargetColumn = None,
    delimiter: Delimiter = None,
    max_train_rows: MaxTrainRows = None,
    max_dev_rows: MaxDevRows = None,
    kind: Kind = None,
    labels: Labels = None,
    prefix: Prefix = None,
    max_source_tokens: MaxSource = None,
    max_target_tokens: MaxTarget = None,
    metric: Metric = None,
    metric_model: MetricModel = None,
    role: Annotated[str, option("--role", panel=TRAINING, says="Whose defaults: student or teacher.")] = "student",
    batch_size: BatchSize = None,
    batch_tokens: BatchTokens = None,
    accumulation: Accumulation = 1,
    lr: Lr = None,
    epochs: Epochs = None,
    warmup: Warmup = None,
    weight_decay: WeightDecay = None,
    max_grad_norm: MaxGradNorm = None,
    optimizer: Optimizer = None,
    dropout: Dropout = None,
    patience: Patience = None,
    eval_steps: EvalSteps = None,
    eval_share: EvalShare = None,
    gradient_checkpointing: GradientCheckpointing = None,
    peft: Peft = None,
    lora_rank: LoraRank = None,
    lora_alpha: LoraAlpha = None,
    precision: Precision = None,
    compile: Compile = None,
    seed: Seed = 0,
    threads: Threads = THREADS,
    processes: Processes = None,
    fsdp: Fsdp = False,
    save_steps: SaveSteps = None,
    save_seconds: SaveSeconds = SAVE_SECONDS,
    report_to: ReportTo = "none",
    overwrite: Overwrite = False,
    profile: Profile = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model on labelled rows; with a dev set the best evaluation is kept."""
    given = locals()
    _run(given, lambda screen: _finetune(given, screen))


def teach(
    model: ModelArgument,
    out: Out,
    student: Annotated[str | None, typer.Option("--student", help="Who is taught: decides what is written.")] = None,
    base: Base = None,
    target: Annotated[
        str | None, typer.Option("--target", help="classes, tags, tokens or text. (default: what the student can read)")
    ] = None,
    task: Task = None,
    data: Data = None,
    split: Split = "pool",
    file: File = None,
    source_column: SourceColumn = "source",
    target_column: TargetColumn = None,
    delimiter: Delimiter = None,
    max_rows: MaxRows = None,
    max_train_rows: Annotated[
        int | None,
        option("--max-train-rows", panel=ROWS, says="Pool rows may carry the labels of so many train rows."),
    ] = None,
    beams: Beams = 1,
    sample: Sample = False,
    sample_temperature: SampleTemperature = 1.0,
    top_p: TopP = 1.0,
    max_logits: MaxLogits = 64,
    tail_mass: TailMass = 0.001,
    answers_from: AnswersFrom = "labels",
    keep_padding: KeepPadding = False,
    batch_size: AnswerBatch = 256,
    batch_tokens: AnswerTokens = 4096,
    precision: AnswerPrecision = "auto",
    seed: Seed = 0,
    threads: Threads = THREADS,
    processes: Processes = None,
    device_map: DeviceMap = None,
    ray: Ray = None,
    overwrite: Overwrite = False,
    profile: Profile = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a teacher's targets for a student, in blocks of 1,024 rows."""
    given = locals()
    _run(given, lambda screen: _teach(given, screen))


def distill(
    targets: Annotated[Path, typer.Argument(metavar="TARGETS", help="A folder that teach wrote.")],
    student: Annotated[str, typer.Option("--student", help="As --model of finetune.")],
    out: Out,
    base: Base = None,
    task: Task = None,
    data: Data = None,
    dev_file: DevFile = None,
    source_column: SourceColumn = "source",
    target_column: TargetColumn = None,
    delimiter: Delimiter = None,
    max_rows: MaxRows = None,
    max_dev_rows: MaxDevRows = None,
    prefix: Prefix = None,
    max_source_tokens: MaxSource = None,
    max_target_tokens: MaxTarget = None,
    metric: Metric = None,
    metric_model: MetricModel = None,
    temperature: Temperature = None,
    objective: Objective = None,
    divergence: Divergence = None,
    js_beta: JsBeta = None,
    gold_weight: GoldWeight = None,
    batch_size: BatchSize = None,
    batch_tokens: BatchTokens = None,
    accumulation: Accumulation = 1,
    lr: Lr = None,
    epochs: Epochs = None,
    warmup: Warmup = None,
    weight_decay: WeightDecay = None,
    max_grad_norm: MaxGradNorm = None,
    optimizer: Optimizer = None,
    dropout: Dropout = None,
    patience: Patience = None,
    eval_steps: EvalSteps = None,
    eval_share: EvalShare = None,
    gradient_checkpointing: GradientCheckpointing = None,
    peft: Peft = None,
    lora_rank: LoraRank = None,
    lora_alpha: LoraAlpha = None,
    precision: Precision = None,
    compile: Compile = None,
    seed: Seed = 0,
    threads: Threads = THREADS,
    processes: Processes = None,
    fsdp: Fsdp = False,
    save_steps: SaveSteps = None,
    save_seconds: SaveSeconds = SAVE_SECONDS,
    report_to: ReportTo = "none",
    overwrite: Overwrite = False,
    profile: Profile = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a student on a teacher's targets; with a dev set the best evaluation is kept."""
    given = locals()
    _run(given, lambda screen: _distil(given, screen))


def predict(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="File of predictions; the same command goes on there.")],
    task: Task = None,
    data: Data = None,
    split: Split = "test",
    file: File = None,
    source_column: SourceColumn = "source",
    target_column: TargetColumn = None,
    delimiter: Delimiter = None,
    max_rows: MaxRows = None,
    beams: Beams = 1,
    batch_size: AnswerBatch = 64,
    precision: AnswerPrecision = "auto",
    seed: Seed = 0,
    threads: Threads = THREADS,
    processes: Processes = None,
    device_map: DeviceMap = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a model's answers as JSON lines: source, prediction, and gold where it is known."""
    given = locals()

    def step(screen: StepScreen) -> StepReport:
        from outlay.standalone.inference import predict as write

        return write(_answering(given), screen)

    _run(given, step)


def evaluate(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="A folder that finetune or distill wrote.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Score a file of predictions instead of a model.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the scores. (default: beside what is scored)")
    ] = None,
    task: Task = None,
    data: Data = None,
    split: Split = "test",
    file: File = None,
    source_column: SourceColumn = "source",
    target_column: TargetColumn = None,
    delimiter: Delimiter = None,
    prediction_column: Annotated[
        str, option("--prediction-column", panel=ROWS, says="Column of the prediction in --predictions.")
    ] = "prediction",
    max_rows: MaxRows = None,
    kind: Kind = None,
    labels: Labels = None,
    metric: Metric = None,
    metric_model: MetricModel = None,
    metric_layer: MetricLayer = None,
    metric_idf: MetricIdf = None,
    beams: Beams = 1,
    batch_size: AnswerBatch = 64,
    precision: AnswerPrecision = "auto",
    seed: Seed = 0,
    threads: Threads = THREADS,
    processes: Processes = None,
    device_map: DeviceMap = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a model or a file of predictions: every statistic in both readings with its 95 % interval."""
    given = locals()

    def step(screen: StepScreen) -> StepReport:
        from outlay.errors import UsageError
        from outlay.standalone.inference import evaluate as score
        from outlay.standalone.prediction_file import evaluate_file

        if (model is None) == (predictions is None):
            raise UsageError("score a MODEL or a file of --predictions; name one of them")
        if predictions is not None:
            folder = out or predictions.with_name(f"{predictions.name}.evaluation")
            asked = predictions, folder, _asked(given), _metric(given)
            return evaluate_file(*asked, prediction_column=prediction_column, overwrite=overwrite)
        assert model is not None
        folder = out or model / "evaluation" / _scored(task, split, file)
        return score(_answering({**given, "out": folder}), _metric(given), screen)

    _run(given, step)


def _scored(task: str | None, split: str, file: Path | None) -> str:
    """What the folder of the scores is called: the file, or the task and its split."""
    if file is not None or task is None:
        return split if file is None else file.stem
    from outlay.tasks.task import load_task

    return f"{load_task(task).name}-{split}"


def _finetune(given: dict[str, Any], screen: StepScreen) -> StepReport:
    from outlay.standalone.training import finetune

    rows = {name: given[name] for name in ("train_file", "max_train_rows")}
    return finetune(_recipe(given, given["role"]), screen, **rows)


def _teach(given: dict[str, Any], screen: StepScreen) -> StepReport:
    from outlay.settings import TeachSettings
    from outlay.standalone.inference import Teaching, teach

    names = (
        *("beams", "sample", "sample_temperature", "top_p", "max_logits", "tail_mass", "answers_from"),
        *("keep_padding", "batch_size", "batch_tokens", "seed"),
    )
    settings = TeachSettings(**{name: given[name] for name in names})
    return teach(_answering(given), Teaching(given["student"], given["base"], given["target"], settings), screen)


def _distil(given: dict[str, Any], screen: StepScreen) -> StepReport:
    from outlay.standalone.training import distil

    recipe = _recipe({**given, "model": given["student"]}, "distil")
    return distil(recipe, screen, targets=given["targets"], max_rows=given["max_rows"])


def _run(given: dict[str, Any], step: Callable[[StepScreen], StepReport]) -> None:
    """One step in this process, or the whole command again as several; its outcome printed by the main one."""
    from outlay.cli.step_screen import StepScreen, print_outcome
    from outlay.standalone.launch import is_ours, needs_launch, relaunch
    from outlay.standalone.runtime import rank

    if needs_launch(given["processes"]):
        raise SystemExit(relaunch(given["processes"], sys.argv[1:], given["threads"]))
    is_main = rank() == 0
    try:
        with StepScreen(quiet=given["quiet"] or not is_main) as screen:
            outcome = step(screen)
    except OutlayError:
        if not is_main:
            time.sleep(_GRACE_SECONDS)
        raise
    except KeyboardInterrupt:
        if is_main and not is_ours():
            raise
        raise SystemExit(1) from None
    if is_main and given["as_json"]:
        print_json(outcome.to_json())
    elif is_main:
        print_outcome(outcome)


_GRACE_SECONDS = 3.0
"""What is wrong for all processes is said by the main one, which then ends the others; what is wrong here alone is said here."""


def _recipe(given: dict[str, Any], role: str) -> TrainingRequest:
    from outlay.errors import UsageError
    from outlay.standalone.training import TrainingRequest

    if role not in ("teacher", "student", "distil"):
        raise UsageError(f"--role {role!r} is unknown; choose student or teacher")
    names = {"lr": "learning_rate", "warmup": "warmup_fraction"}
    same = (
        *("batch_size", "epochs", "weight_decay", "max_grad_norm", "optimizer", "dropout", "patience", "eval_steps"),
        *("gradient_checkpointing", "precision", "seed", "temperature", "objective", "divergence", "js_beta"),
        *("gold_weight", "batch_tokens", "eval_share", "compile", "peft", "lora_rank", "lora_alpha"),
    )
    names |= {name: name for name in same}
    return TrainingRequest(
        model=given["model"],
        out=given["out"],
        base=given["base"],
        role=role,  # type: ignore[arg-type]
        asked=_asked(given),
        dev_file=given["dev_file"],
        max_dev_rows=given["max_dev_rows"],
        metric=_metric(given),
        overrides={field: given[name] for name, field in names.items() if given.get(name) is not None},
        accumulation=given["accumulation"],
        running=_running(given),
    )


def _answering(given: dict[str, Any]) -> InferenceOptions:
    from outlay.standalone.inference import InferenceOptions

    names = ("model", "out", "file", "split", "max_rows", "seed", "precision", "batch_size", "beams")
    plain = {name: given[name] for name in names}
    return InferenceOptions(**plain, asked=_asked(given), n_gold=given.get("max_train_rows"), running=_running(given))


def _asked(given: dict[str, Any]) -> DataOptions:
    from outlay.standalone.inputs import DataOptions

    names = (
        *("task", "data", "source_column", "target_column", "kind", "prefix"),
        *("max_source_tokens", "max_target_tokens", "delimiter"),
    )
    plain: dict[str, Any] = {name: given[name] for name in names if name in given}
    return DataOptions(**plain, labels=parse_labels(given.get("labels")))


def _metric(given: dict[str, Any]) -> MetricAsked:
    from outlay.standalone.evaluator import MetricAsked

    return MetricAsked(given["metric"], given["metric_model"], given.get("metric_layer"), given.get("metric_idf"))


def _running(given: dict[str, Any]) -> RuntimeOptions:
    from outlay.standalone.runtime import RuntimeOptions

    names = ("threads", "overwrite", "save_steps", "save_seconds", "report_to", "fsdp", "device_map", "ray", "profile")
    return RuntimeOptions(**{name: given[name] for name in names if name in given})
