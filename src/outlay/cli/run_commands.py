"""`outlay run`, `compare`, `report`, `demo`: spend, compare, read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import (
    WAITING_EXIT,
    Json,
    PrecisionOption,
    PricesOption,
    ResultsFolder,
    StoreOption,
    fail,
    open_store,
    parse_budgets,
    parse_names,
    say_notes,
)
from outlay.cli.run_options import (
    GENERAL,
    MACHINE,
    STUDENT,
    TEACHER,
    GridOptions,
    LabelOptions,
    ModelOptions,
    PlaceOptions,
    RunOptions,
    StepOptions,
)
from outlay.cli.terminal import echo
from outlay.storage.paths import as_word, command_line

if TYPE_CHECKING:
    from outlay.engine.point import Point
    from outlay.engine.prepare import Options
    from outlay.report.results import Header
    from outlay.study.runner import Session

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="A shipped task, or the path of your own task.yaml.")]
InitialOption = Annotated[
    int | None, typer.Option("--n-initial", help="Labels of the teacher, fixed; without it a rule chooses them.")
]
TeacherOption = Annotated[str, typer.Option("--teacher", help="Hub name, folder, or package:NAME/FOLDER.")]
StudentOption = Annotated[str, typer.Option("--student", help="As --teacher, or cut:K, or tiny:LxH.")]
MachineOption = Annotated[str, typer.Option("--machine", help="What compute is charged as; see docs/compute.md.")]
MachinesOption = Annotated[
    list[Path] | None, typer.Option("--machines", help="Your own machine file (TOML); may be repeated.")
]
HereOption = Annotated[
    str, typer.Option("--here", help="Price item of the machine this really runs on; measured seconds are paid at it.")
]
TrainingOption = Annotated[
    str, typer.Option("--student-training", help="charged, or free (as the paper's tables assume).")
]
PoolRowsOption = Annotated[int | None, typer.Option("--pool-rows", help="Use only the first so many pool rows.")]
DevOption = Annotated[str | None, typer.Option("--dev", help="Dev labels: given, bought, carved or none.")]
NDevOption = Annotated[int | None, typer.Option("--n-dev", help="How many dev labels.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads per step; part of every key.")]
ErrorOption = Annotated[float, typer.Option("--label-error-rate", min=0, max=1, help="Of each replayed answer.")]
RedundancyOption = Annotated[int, typer.Option("--redundancy", min=1, help="Answers per label; the majority counts.")]
SecondsOption = Annotated[float, typer.Option("--seconds-per-label", min=0, help="Human seconds per answer, reported.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, such as distil.epochs=4; roles: teacher, student, distil, teach."),
]
GeneralOption = Annotated[
    str, typer.Option("--general-student", help="The generally distilled checkpoint that general_distill starts from.")
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="What cut: and tiny: students are made from. (default: the teacher)")
]
MetricModelOption = Annotated[
    str | None,
    typer.Option("--metric-model", help="Encoder that bert_ibleu compares texts with, instead of the task's."),
]
LlmErrorOption = Annotated[
    float | None,
    typer.Option("--llm-error-rate", min=0, max=1, help="Of each replayed LLM label; llm_annotate and mix need it."),
]
LlmPriceOption = Annotated[
    str | None,
    typer.Option("--llm-price-item", help="What an LLM label is charged as. (default: gpt-3.5-label/ and the task)"),
]
StrategyOption = Annotated[
    str,
    typer.Option("--strategy", help="annotate, distill, self_distill, general_distill, llm_annotate or mix."),
]
StrategiesOption = Annotated[str, typer.Option("--strategies", help="With commas; those of `run --strategy`.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of data sets. (default: $OUTLAY_DATA)")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Results folder. (default: outlay-runs/...)")]
CapOption = Annotated[
    str | None, typer.Option("--cash-cap", help="Dollars of cash that all runs here may take together.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the report of another request in --out; its ledger stays.")
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, help="Steps at once: with 2 and more, each in a process of its own.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def run(
    task: TaskArgument,
    budget: Annotated[str, typer.Option("--budget", help="Dollars in total.")],
    strategy: StrategyOption = "distill",
    n_initial: InitialOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of order and initialisation.")] = 0,
    teacher: TeacherOption = TEACHER,
    student: StudentOption = STUDENT,
    base: BaseOption = None,
    general_student: GeneralOption = GENERAL,
    machine: MachineOption = MACHINE,
    here: HereOption = "cpu",
    student_training: TrainingOption = "charged",
    pool_rows: PoolRowsOption = None,
    dev: DevOption = None,
    n_dev: NDevOption = None,
    threads: ThreadsOption = 2,
    precision: PrecisionOption = "auto",
    label_error_rate: ErrorOption = 0.0,
    redundancy: RedundancyOption = 1,
    seconds_per_label: SecondsOption = 0.0,
    llm_error_rate: LlmErrorOption = None,
    llm_price_item: LlmPriceOption = None,
    settings: SetOption = None,
    metric_model: MetricModelOption = None,
    prices: PricesOption = None,
    machines: MachinesOption = None,
    data: DataOption = None,
    store: StoreOption = None,
    out: OutOption = None,
    cash_cap: CapOption = None,
    workers: WorkersOption = 1,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: Json = False,
) -> None:
    """Spend a budget by one strategy: buy, train, score, and print the result with its receipt."""
    models = ModelOptions(teacher, student, base, general_student, metric_model)
    labels = LabelOptions(label_error_rate, redundancy, seconds_per_label, llm_error_rate, llm_price_item, dev, n_dev)
    how = StepOptions(machine, student_training, pool_rows, threads, precision, tuple(settings or ()))
    where = PlaceOptions(out, store, here, prices, machines, data, cash_cap, workers, overwrite, quiet, as_json)
    _run(RunOptions(task, n_initial, seed, models, labels, how), strategy, budget, where)


def compare(
    task: TaskArgument,
    budgets: Annotated[str, typer.Option("--budgets", "--budget", help="Dollars in total, with commas: 300,400.")],
    strategies: StrategiesOption = "annotate,distill,self_distill",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from --seed on.")] = 1,
    n_initial: InitialOption = None,
    rule: Annotated[bool, typer.Option(help="Beside a fixed N, distill with as many labels as its rule buys.")] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The first seed.")] = 0,
    teacher: TeacherOption = TEACHER,
    teachers: Annotated[str | None, typer.Option("--teachers", help="Several, with commas, instead of one.")] = None,
    student: StudentOption = STUDENT,
    students: Annotated[str | None, typer.Option("--students", help="Several, with commas, instead of one.")] = None,
    base: BaseOption = None,
    general_student: GeneralOption = GENERAL,
    machine: MachineOption = MACHINE,
    here: HereOption = "cpu",
    student_training: TrainingOption = "charged",
    pool_rows: PoolRowsOption = None,
    dev: DevOption = None,
    n_dev: NDevOption = None,
    threads: ThreadsOption = 2,
    precision: PrecisionOption = "auto",
    label_error_rate: ErrorOption = 0.0,
    redundancy: RedundancyOption = 1,
    seconds_per_label: SecondsOption = 0.0,
    llm_error_rate: LlmErrorOption = None,
    llm_price_item: LlmPriceOption = None,
    settings: SetOption = None,
    metric_model: MetricModelOption = None,
    prices: PricesOption = None,
    machines: MachinesOption = None,
    data: DataOption = None,
    store: StoreOption = None,
    out: OutOption = None,
    cash_cap: CapOption = None,
    workers: WorkersOption = 1,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: Json = False,
) -> None:
    """Every strategy at the same budgets and seeds: one table, one frontier, every dollar in a receipt."""
    models = ModelOptions(teacher, student, base, general_student, metric_model)
    labels = LabelOptions(label_error_rate, redundancy, seconds_per_label, llm_error_rate, llm_price_item, dev, n_dev)
    how = StepOptions(machine, student_training, pool_rows, threads, precision, tuple(settings or ()))
    where = PlaceOptions(out, store, here, prices, machines, data, cash_cap, workers, overwrite, quiet, as_json)
    grid = GridOptions(strategies, budgets, seeds, teachers, students, rule)
    _compare(RunOptions(task, n_initial, seed, models, labels, how), grid, where)


def report(folder: ResultsFolder, store: StoreOption = None, as_json: Json = False) -> None:
    """Draw a results folder again: tables, figures, one page, flat files, receipts."""
    from outlay.cli.study_screen import draw_study

    draw_study(folder, None if store is None else open_store(store), as_json=as_json)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Results folder.")] = Path("outlay-runs/demo"),
    store: StoreOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of order and initialisation.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from --seed on.")] = 1,
    threads: ThreadsOption = 2,
    precision: PrecisionOption = "auto",
    workers: WorkersOption = 1,
    quiet: QuietOption = False,
    as_json: Json = False,
) -> None:
    """The whole story in minutes, on a laptop CPU, with no network: is the money better spent on labels or on a teacher?"""
    from outlay.money.amounts import write_usd
    from outlay.report.receipt import receipt, render_text
    from outlay.report.results import Header
    from outlay.study.grid import Grid
    from outlay.study.index import title_of
    from outlay.tasks.demo import demo_story, write_demo

    task = write_demo(out / "task")
    shared = _demo_options(task, seed, threads, precision)
    asked = Grid(shared, ("annotate", "distill", "self_distill"), (shared.budget_micros,), seeds).options()
    options = {"--seed": seed or None, "--threads": threads, "--precision": precision}
    words = [word for name, value in options.items() if value is not None for word in (name, value)]
    command = command_line("outlay", "demo", "--seeds", seeds, *words)
    where = PlaceOptions(out, store, workers=workers, quiet=quiet, as_json=as_json)
    session = _prepare(asked, Header("demo", title_of("demo"), "plain", command=command), out, where)
    story = demo_story(len(asked), write_usd(session.builder.price_book.get("label/demo").usd))
    points = _bring_about(session, where, first=story)
    if not as_json:
        taught = [point for point in session.plan.points if point.options.strategy == "distill"]
        if taught[0].run_id is not None and taught[0].recipe is not None:
            echo("\n" + render_text(receipt(session.runner.ledger, taught[0].run_id)), nl=False)
        _say_what_next(out, out / "report.html", None if seeds > 1 else {**options, "--store": store})
    _fail_without_result(points)


def _say_what_next(out: Path, page: Path, again: Mapping[str, Any] | None) -> None:
    """Print commands to try after the demo; ``again``: options of a demo with one seed, to repeat over several."""
    lines = [
        ("look at it", str(page)),
        ("prove every dollar", command_line("outlay", "ledger", "verify", out)),
        ("a task to copy", command_line("outlay", "task", "check", out / "task" / "task.yaml")),
    ]
    if again is not None:
        given = [word for name, value in again.items() if value is not None for word in (name, value)]
        five = command_line("outlay", "demo", "--seeds", 5, *given, "--out", Path(f"{out}-5-seeds"))
        lines.append(("test over 5 seeds", five))
    echo("\nnext")
    for what, how in lines:
        echo(f"  {what:18}  {how}")


def _run(shared: RunOptions, strategy: str, budget: str, where: PlaceOptions) -> None:
    """Run one point, as a study of one point."""
    from outlay.money.amounts import parse_budget
    from outlay.report.results import Header
    from outlay.study.index import title_of
    from outlay.tasks.task import load_task

    asked = [shared.options(strategy, parse_budget(budget))]
    name = load_task(shared.task).name
    words = ("--budget", budget, "--strategy", strategy, *shared.words(), *where.words())
    command = command_line("outlay", "run", as_word(shared.task), *words)
    header = Header("run", title_of(name), "plain", command=command)
    session = _prepare(asked, header, where.out or Path("outlay-runs") / f"{name}-{strategy}", where)
    points = _bring_about(session, where, receipts=True)
    _fail_without_result(points)


def _compare(shared: RunOptions, given: GridOptions, where: PlaceOptions) -> None:
    """Run a grid of runs, as a study with cells from options."""
    from outlay.report.results import Header
    from outlay.study.grid import Grid
    from outlay.study.index import title_of
    from outlay.tasks.task import load_task

    names, micros = parse_names(given.strategies), parse_budgets(given.budgets)
    base = shared.options(names[0] if names else "", micros[0])
    grid = Grid(base, names, micros, given.seeds, parse_names(given.teachers), parse_names(given.students), given.rule)
    asked = grid.options()
    name = load_task(shared.task).name
    words: list[object] = ["--budgets", given.budgets, "--strategies", given.strategies, "--seeds", given.seeds]
    for option, value in (("--teachers", given.teachers), ("--students", given.students)):
        words += [] if value is None else [option, value]
    words += [] if given.rule else ["--no-rule"]
    command = command_line("outlay", "compare", as_word(shared.task), *words, *shared.words(), *where.words())
    header = Header("compare", title_of(name), "plain", command=command)
    session = _prepare(asked, header, where.out or Path("outlay-runs") / f"{name}-compare", where)
    _fail_without_result(_bring_about(session, where))


def _prepare(asked: list[Options], header: Header, folder: Path, where: PlaceOptions) -> Session:
    """Check and plan a request; refuse a wrong one before a folder is made or a label bought."""
    from outlay.study.runner import prepare_session

    refuse_several_processes()
    session = prepare_session(asked, header, where.place(folder), overwrite=where.overwrite)
    say_notes(session.notes, quiet=where.quiet)
    return session


def _bring_about(
    session: Session, where: PlaceOptions, *, first: str | None = None, receipts: bool = False
) -> list[Point]:
    """Run the planned points with a screen, then write and print the report, ``receipts`` before it."""
    from outlay.cli.progress import Screen
    from outlay.cli.study_screen import draw_study
    from outlay.engine.prepare import precision_remarks
    from outlay.report.receipt import receipt, render_text

    asked = [point.options for point in session.plan.points]
    with Screen(_names_of(asked), quiet=where.quiet) as screen:
        for line in precision_remarks(session.builder, asked):
            screen.say(line)
        if first is not None:
            screen.headline(first)
        points = session.run(screen)
    ledger = session.runner.ledger
    known = set(ledger.run_ids()) if receipts and not where.as_json and ledger.is_begun else set()
    for planned in session.plan.points:
        if planned.run_id in known:
            echo(render_text(receipt(ledger, planned.run_id)))
    draw_study(session.place.folder, session.place.store, as_json=where.as_json, quiet=True)
    return points


def _names_of(asked: Sequence[Options]) -> list[str]:
    """Return the name of each run, with its models where they differ from run to run."""
    from outlay.money.amounts import format_usd

    has_models = len({(each.teacher, each.student) for each in asked}) > 1
    labels = []
    for each in asked:
        fixed = "" if each.n_initial is None else f", N = {each.n_initial:,}"
        models = f", {each.teacher} to {each.student}" if has_models else ""
        labels.append(f"{each.strategy}{fixed}, {format_usd(each.budget_micros)}, seed {each.seed}{models}")
    return labels


def refuse_several_processes() -> None:
    """Refuse a launch of several processes: a run is one process with one ledger."""
    import os

    from outlay.errors import UsageError

    if (n_processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UsageError(
            f"this command was launched in {n_processes} processes, and money is spent by one; launch a single step "
            "(`outlay finetune`, `teach`, `distill`, `predict`, `evaluate`) in several"
        )


def _demo_options(task: Path, seed: int, threads: int, precision: str) -> Options:
    from outlay.engine.prepare import Options
    from outlay.money.amounts import parse_budget
    from outlay.tasks.demo import DEMO_BUDGET, DEMO_N_DEV, DEMO_N_INITIAL, DEMO_POOL_ROWS, DEMO_STUDENT

    return Options(
        str(task),
        "annotate",
        parse_budget(DEMO_BUDGET),
        n_initial=DEMO_N_INITIAL,
        pool_rows=DEMO_POOL_ROWS,
        n_dev=DEMO_N_DEV,
        student=DEMO_STUDENT,
        seed=seed,
        threads=threads,
        precision=precision,
    )


def _fail_without_result(points: list[Point]) -> None:
    """Fail in one line: with 1 where a point failed, or none has a score (among others that have one, `na` is an answer), with
    `WAITING_EXIT` where one waits for labels."""
    failed = [point for point in points if point.result.status == "failed"]
    if failed:
        count = f"{len(failed)} of {len(points)} points failed, the first: " if len(points) > 1 else ""
        fail(f"{count}{failed[0].result.reason}")
    waiting = [point for point in points if point.result.status == "waiting"]
    if waiting:
        count = f"{len(waiting)} of {len(points)} points wait, the first " if len(points) > 1 else "the run is "
        fail(f"{count}{waiting[0].result.reason}; the same command goes on", WAITING_EXIT)
    if not any(point.is_ok for point in points):
        count = f"none of the {len(points)} points has a result, the first: " if len(points) > 1 else "no result: "
        fail(f"{count}{points[0].result.reason}")
