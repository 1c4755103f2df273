"""Options that the single steps share, each written once; those of settings are read from `outlay.settings`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from outlay.cli.common import Json
from outlay.cli.option_groups import SettingOptions, option
from outlay.settings import DEFAULT_THREADS, SAVE_SECONDS

ROWS, QUESTION, TRAINING = "Rows", "Question", "Training"
ANSWERING, RUNNING = "Answers", "How it is run"

Out = Annotated[Path, typer.Option("--out", help="Where the result goes; the same command goes on there.")]
Base = Annotated[str | None, typer.Option("--base", help="Checkpoint that cut:K and tiny:LxH are made from.")]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A folder that run, compare, finetune or distill wrote.")
]
Student = Annotated[str | None, typer.Option("--student", help="The student model to write targets for.")]

Task = Annotated[str | None, option("--task", panel=ROWS, says="A shipped task, or the path of a task.yaml.")]
MaxRows = Annotated[int | None, option("--max-rows", panel=ROWS, says="Only the first so many rows.")]

Kind = Annotated[
    str | None, option("--kind", panel=QUESTION, says="classification, entities or generation. (default: the task's)")
]
Labels = Annotated[
    list[str] | None,
    option("--labels", panel=QUESTION, says="Classes or entity types, with commas; or --labels once for each."),
]
MetricLayer = Annotated[int | None, option("--metric-layer", panel=QUESTION, says="Its layer. (default: the last)")]
MetricIdf = Annotated[
    bool | None, option("--metric-idf/--no-metric-idf", panel=QUESTION, says="Weight its tokens by rarity.")
]

TrainOptions = Annotated[dict[str, Any], SettingOptions("train", ("Method", "Training", "How it is run"))]
"""Given settings of a training on gold answers."""
DistilOptions = Annotated[dict[str, Any], SettingOptions("train")]
"""Given settings of a training on a teacher's targets."""
TeachOptions = Annotated[dict[str, Any], SettingOptions("teach")]
"""Given settings of a teacher."""

Accumulation = Annotated[
    int, option("--accumulation", panel=TRAINING, says="Forward passes a process makes per optimiser step.")
]
Precision = Annotated[str, option("--precision", panel=RUNNING, says="auto, bf16 or fp32.")]
DeviceMap = Annotated[
    str | None, option("--device-map", panel=RUNNING, says="auto spreads the model over every GPU of one process.")
]
Ray = Annotated[
    str | None,
    option("--ray", panel=RUNNING, says="Share the work on a Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT."),
]
Overwrite = Annotated[bool, option("--overwrite", panel=RUNNING, says="Replace the result of another request.")]
Profile = Annotated[bool, option("--profile", panel=RUNNING, says="Say where the time went, and the utilisation.")]
Quiet = Annotated[bool, option("--quiet", "-q", panel=RUNNING, says="No progress.")]


@dataclass(frozen=True, slots=True)
class Columns:
    """Options on the columns of files of rows."""

    source_column: Annotated[str, option("--source-column", panel=ROWS, says="Column of the text.")] = "source"
    target_column: Annotated[
        str | None,
        option("--target-column", panel=ROWS, says="Column of the answer. (default: target, where it is there)"),
    ] = None
    delimiter: Annotated[
        str | None,
        option("--delimiter", panel=ROWS, says="Between columns of .csv and .tsv. (default: as in the first line)"),
    ] = None


@dataclass(frozen=True, slots=True)
class TaskData:
    """Task and folder of its data."""

    task: Task = None
    folder: Annotated[
        Path | None, option("--data", panel=ROWS, says="Folder of data sets. (default: $OUTLAY_DATA)")
    ] = None


@dataclass(frozen=True, slots=True)
class RowsToAnswer:
    """Rows for a trained model to answer."""

    split: Annotated[str, option("--split", panel=ROWS, says="Of the task: train, dev, test or pool.")] = "test"
    file: Annotated[
        Path | None, option("--file", panel=ROWS, says="Rows: .jsonl, .json, .csv, .tsv, .txt (also .gz), .parquet.")
    ] = None
    max_rows: MaxRows = None


@dataclass(frozen=True, slots=True)
class RowsToPredict(RowsToAnswer):
    """Rows for a trained model to answer, also from standard input."""

    file: Annotated[
        Path | None,
        option(
            "--file", panel=ROWS, says="Rows: .jsonl, .json, .csv, .tsv, .txt (also .gz), .parquet; - = standard input."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class PoolRows(RowsToAnswer):
    """Rows for a teacher to answer."""

    split: Annotated[str, option("--split", panel=ROWS, says="Of the task: train, dev, test or pool.")] = "pool"


@dataclass(frozen=True, slots=True)
class DevRows:
    """Rows to choose the best model by."""

    dev_file: Annotated[Path | None, option("--dev-file", panel=ROWS, says="Rows to choose the best model by.")] = None
    max_dev_rows: Annotated[
        int | None, option("--max-dev-rows", panel=ROWS, says="Only the first so many dev rows.")
    ] = None


@dataclass(frozen=True, slots=True)
class Lengths:
    """Limits on a model's source and target tokens, and the prefix of a text."""

    prefix: Annotated[
        str | None,
        option("--prefix", panel=QUESTION, says="Put before each text for a model that writes, as 'fever: '."),
    ] = None
    max_source_tokens: Annotated[
        int | None, option("--max-source-tokens", panel=QUESTION, says="Longer texts are cut and counted.")
    ] = None
    max_target_tokens: Annotated[int | None, option("--max-target-tokens", panel=QUESTION, says="Longest answer.")] = (
        None
    )


@dataclass(frozen=True, slots=True)
class MetricOptions:
    """Metric that answers are scored by."""

    metric: Annotated[
        str | None, option("--metric", panel=QUESTION, says="accuracy, f1, entity_f1, qa_f1 or bert_ibleu.")
    ] = None
    metric_model: Annotated[
        str | None, option("--metric-model", panel=QUESTION, says="Encoder that bert_ibleu needs.")
    ] = None


@dataclass(frozen=True, slots=True)
class Launch:
    """Options of running and printing a step."""

    threads: Annotated[int, option("--threads", panel=RUNNING, says="Threads per process; part of the request.")] = (
        DEFAULT_THREADS
    )
    processes: Annotated[
        int | None,
        option("--processes", panel=RUNNING, says="Share the work among so many processes of this machine."),
    ] = None
    overwrite: Overwrite = False
    quiet: Quiet = False
    as_json: Json = False


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Options of a model's answers in `predict` and `evaluate`."""

    beams: Annotated[
        int, option("--beams", panel=ANSWERING, says="Beams of the search for an answer; 1 is greedy.")
    ] = 1
    batch_size: Annotated[int, option("--batch-size", panel=ANSWERING, says="Rows per forward pass.")] = 64
    precision: Precision = "auto"
    seed: Annotated[int, option("--seed", panel=RUNNING, says="Seed of the order of a task's rows.")] = 0
    device_map: DeviceMap = None


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Options of running a training, beside `Launch`."""

    fsdp: Annotated[
        bool, option("--fsdp", panel=RUNNING, says="Deal the model's weights among the processes (FSDP).")
    ] = False
    save_steps: Annotated[int | None, option("--save-steps", panel=RUNNING, says="Steps between checkpoints.")] = None
    save_seconds: Annotated[float, option("--save-seconds", panel=RUNNING, says="Seconds between checkpoints.")] = (
        SAVE_SECONDS
    )
    report_to: Annotated[str, option("--report-to", panel=RUNNING, says="wandb, tensorboard, trackio or none.")] = (
        "none"
    )
    profile: Profile = False
