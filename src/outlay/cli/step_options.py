"""Options that the single steps share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

ROWS, QUESTION, TRAINING = "Rows", "Question", "Training"
DISTILLING, ANSWERING, RUNNING = "Distillation", "Answers", "How it is run"


def option(*names: str, panel: str, says: str) -> Any:
    """An option under a heading of the help page."""
    return typer.Option(*names, help=says, rich_help_panel=panel)


Out = Annotated[Path, typer.Option("--out", help="Where the result goes; the same command goes on there.")]
Base = Annotated[str | None, typer.Option("--base", help="Checkpoint that cut:K and tiny:LxH are made from.")]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that finetune or distill wrote.")]

Task = Annotated[str | None, option("--task", panel=ROWS, says="A shipped task, or the path of a task.yaml.")]
Data = Annotated[Path | None, option("--data", panel=ROWS, says="Folder of data sets. (default: $OUTLAY_DATA)")]
File = Annotated[
    Path | None, option("--file", panel=ROWS, says="Rows: .jsonl, .json, .csv, .tsv, .txt (also .gz), .parquet.")
]
TrainFile = Annotated[Path | None, option("--train-file", panel=ROWS, says="Rows to train on, instead of a task's.")]
DevFile = Annotated[Path | None, option("--dev-file", panel=ROWS, says="Rows to choose the best model by.")]
Split = Annotated[str, option("--split", panel=ROWS, says="Of the task: train, dev, test or pool.")]
SourceColumn = Annotated[str, option("--source-column", panel=ROWS, says="Column of the text.")]
TargetColumn = Annotated[
    str | None,
    option("--target-column", panel=ROWS, says="Column of the answer. (default: target, where it is there)"),
]
Delimiter = Annotated[
    str | None,
    option("--delimiter", panel=ROWS, says="Between columns of .csv and .tsv. (default: as in the first line)"),
]
MaxRows = Annotated[int | None, option("--max-rows", panel=ROWS, says="Only the first so many rows.")]
MaxTrainRows = Annotated[int | None, option("--max-train-rows", panel=ROWS, says="Only the first so many train rows.")]
MaxDevRows = Annotated[int | None, option("--max-dev-rows", panel=ROWS, says="Only the first so many dev rows.")]

Kind = Annotated[
    str | None, option("--kind", panel=QUESTION, says="classification, entities or generation. (default: the task's)")
]
Labels = Annotated[
    list[str] | None,
    option("--labels", panel=QUESTION, says="Classes or entity types, with commas; or --labels once for each."),
]
Prefix = Annotated[
    str | None, option("--prefix", panel=QUESTION, says="Put before each text for a model that writes, as 'fever: '.")
]
MaxSource = Annotated[
    int | None, option("--max-source-tokens", panel=QUESTION, says="Longer texts are cut and counted.")
]
MaxTarget = Annotated[int | None, option("--max-target-tokens", panel=QUESTION, says="Longest answer.")]
Metric = Annotated[str | None, option("--metric", panel=QUESTION, says="accuracy, f1, entity_f1, qa_f1 or bert_ibleu.")]
MetricModel = Annotated[str | None, option("--metric-model", panel=QUESTION, says="Encoder that bert_ibleu needs.")]
MetricLayer = Annotated[int | None, option("--metric-layer", panel=QUESTION, says="Its layer. (default: the last)")]
MetricIdf = Annotated[
    bool | None, option("--metric-idf/--no-metric-idf", panel=QUESTION, says="Weight its tokens by rarity.")
]

BatchSize = Annotated[
    int | None, option("--batch-size", panel=TRAINING, says="Rows per optimiser step, over all processes.")
]
BatchTokens = Annotated[
    int | None,
    option("--batch-tokens", panel=TRAINING, says="Tokens per optimiser step, instead of --batch-size rows."),
]
Accumulation = Annotated[
    int, option("--accumulation", panel=TRAINING, says="Forward passes a process makes per optimiser step.")
]
Lr = Annotated[float | None, option("--lr", panel=TRAINING, says="Peak learning rate.")]
Epochs = Annotated[int | None, option("--epochs", panel=TRAINING, says="Passes over the rows.")]
Warmup = Annotated[float | None, option("--warmup", panel=TRAINING, says="Share of the steps in which the rate rises.")]
WeightDecay = Annotated[float | None, option("--weight-decay", panel=TRAINING, says="Decoupled weight decay.")]
MaxGradNorm = Annotated[float | None, option("--max-grad-norm", panel=TRAINING, says="Gradients are clipped to it.")]
Optimizer = Annotated[str | None, option("--optimizer", panel=TRAINING, says="adamw, adafactor or adamw_8bit.")]
Dropout = Annotated[float | None, option("--dropout", panel=TRAINING, says="Of every layer. (default: the model's)")]
Patience = Annotated[
    int | None, option("--patience", panel=TRAINING, says="Dev evaluations without a gain before training stops.")
]
EvalSteps = Annotated[
    int | None, option("--eval-steps", panel=TRAINING, says="Steps between dev evaluations. (default: one an epoch)")
]
EvalShare = Annotated[
    float | None, option("--eval-share", panel=TRAINING, says="Evaluations take at most this share, on fewer dev rows.")
]
GradientCheckpointing = Annotated[
    bool | None,
    option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        panel=TRAINING,
        says="Compute activations twice instead of keeping them.",
    ),
]
Peft = Annotated[str | None, option("--peft", panel=TRAINING, says="none, lora or ia3: train adapters only.")]
LoraRank = Annotated[int | None, option("--lora-rank", panel=TRAINING, says="Rank of the updates of lora.")]
LoraAlpha = Annotated[float | None, option("--lora-alpha", panel=TRAINING, says="Their scale is alpha / rank.")]
Temperature = Annotated[float | None, option("--temperature", panel=DISTILLING, says="Of the divergence: 1, 2 or 4.")]
Objective = Annotated[
    str | None, option("--objective", panel=DISTILLING, says="masked, or published (padding counts too).")
]
Divergence = Annotated[str | None, option("--divergence", panel=DISTILLING, says="forward_kl, reverse_kl or js.")]
JsBeta = Annotated[float | None, option("--js-beta", panel=DISTILLING, says="The teacher's share in js.")]
GoldWeight = Annotated[
    float | None, option("--gold-weight", panel=DISTILLING, says="Share of cross-entropy on gold answers.")
]

Precision = Annotated[
    str | None,
    option("--precision", panel=RUNNING, says="auto, bf16, bf16_weights (with adafactor) or fp32. (default: auto)"),
]
Compile = Annotated[
    bool | None,
    option("--compile/--no-compile", panel=RUNNING, says="Compile the model: a wait at the start, then faster steps."),
]
AnswerPrecision = Annotated[str, option("--precision", panel=RUNNING, says="auto, bf16 or fp32.")]
AnswerTokens = Annotated[
    int, option("--batch-tokens", panel=ANSWERING, says="Source tokens per forward pass at most, padding included.")
]
AnswerBatch = Annotated[int, option("--batch-size", panel=ANSWERING, says="Rows per forward pass.")]
Beams = Annotated[int, option("--beams", panel=ANSWERING, says="Of the search for an answer; 1 is greedy.")]
Sample = Annotated[bool, option("--sample", panel=ANSWERING, says="Draw answers instead of searching.")]
SampleTemperature = Annotated[
    float, option("--sample-temperature", panel=ANSWERING, says="Of the draw; the targets keep raw logits.")
]
TopP = Annotated[float, option("--top-p", panel=ANSWERING, says="Draw from the likeliest share.")]
MaxLogits = Annotated[
    int, option("--max-logits", panel=ANSWERING, says="Logits kept per position at most; 0 = the whole vocabulary.")
]
TailMass = Annotated[
    float, option("--tail-mass", panel=ANSWERING, says="Probability that may be left out; 0 = keep --max-logits.")
]
AnswersFrom = Annotated[
    str, option("--answers-from", panel=ANSWERING, says="labels (the likeliest one), or free (what it writes).")
]
KeepPadding = Annotated[
    bool, option("--keep-padding", panel=ANSWERING, says="Keep the positions behind an answer, for published.")
]
Seed = Annotated[int, option("--seed", panel=RUNNING, says="Of order, initialisation and sampling.")]
Threads = Annotated[int, option("--threads", panel=RUNNING, says="Threads per process; part of the request.")]
Processes = Annotated[
    int | None, option("--processes", panel=RUNNING, says="Share the work among so many processes of this machine.")
]
Fsdp = Annotated[bool, option("--fsdp", panel=RUNNING, says="Deal the model's weights among the processes (FSDP).")]
DeviceMap = Annotated[
    str | None, option("--device-map", panel=RUNNING, says="auto spreads the model over every GPU of one process.")
]
Ray = Annotated[
    str | None,
    option("--ray", panel=RUNNING, says="Share the work on a Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT."),
]
SaveSteps = Annotated[int | None, option("--save-steps", panel=RUNNING, says="Steps between checkpoints.")]
SaveSeconds = Annotated[float, option("--save-seconds", panel=RUNNING, says="Seconds between checkpoints.")]
ReportTo = Annotated[str, option("--report-to", panel=RUNNING, says="wandb, tensorboard, trackio or none.")]
Overwrite = Annotated[bool, option("--overwrite", panel=RUNNING, says="Replace the result of another request.")]
Profile = Annotated[bool, option("--profile", panel=RUNNING, says="Say where the time went, and the utilisation.")]
Quiet = Annotated[bool, option("--quiet", "-q", panel=RUNNING, says="No progress.")]

THREADS = 2
SAVE_SECONDS = 20.0
