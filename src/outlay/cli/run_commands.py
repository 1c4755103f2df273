"""`outlay run`, `compare`, `report`, `demo`: spend, compare, read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import (
    WAITING_EXIT,
    Json,
    ResultsFolder,
    StoreOption,
    fail,
    goes_on,
    open_store,
    parse_budgets,
    parse_names,
    say_notes,
)
from outlay.cli.option_groups import grouped
from outlay.cli.plan_screen import print_plan
from outlay.cli.run_options import (
    DryRunOption,
    GridOptions,
    InitialOption,
    JsonOption,
    LabelOptions,
    ModelOptions,
    PlaceOptions,
    QuietOption,
    RivalsOption,
    RunPrecision,
    RunStore,
    SharedOptions,
    StepOptions,
    StrategyOption,
    TaskArgument,
    ThreadsOption,
    WorkersOption,
    given_words,
)
from outlay.cli.seller_options import SellerOptions
from outlay.cli.terminal import echo
from outlay.storage.paths import as_word, command_line

if TYPE_CHECKING:
    from outlay.engine.point import Point
    from outlay.plan.request import Request
    from outlay.study.runner import Session


@grouped
def run(
    task: TaskArgument,
    budget: Annotated[str, typer.Option("--budget", help="Dollars in total.")],
    *,
    strategy: StrategyOption = "distill",
    models: ModelOptions,
    n_initial: InitialOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of order and initialisation.")] = 0,
    labels: LabelOptions,
    sellers: SellerOptions,
    how: StepOptions,
    where: PlaceOptions,
) -> None:
    """Handle `outlay run`; its help stands in `outlay.cli.app.COMMANDS`."""
    from outlay.study.request import request
    from outlay.tasks.task import load_task

    shared = SharedOptions(task, n_initial, seed, models, labels, sellers, how)
    asked = request(task, budget, strategy, n_initial, seed, shared.models(), shared.options())
    words = ("--budget", budget, "--strategy", strategy, *shared.words(), *where.words())
    folder = Path("outlay-runs") / f"{load_task(task).name}-{strategy}"
    session = _prepare([asked], "run", (as_word(task), *words), folder, where, rivals=how.rivals)
    if where.dry_run:
        print_plan(session, where.store, as_json=where.as_json)
    else:
        _fail_without_result(_bring_about(session, where, receipts=True))


@grouped
def compare(
    task: TaskArgument,
    grid: GridOptions,
    models: ModelOptions,
    *,
    n_initial: InitialOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The first seed, of order and initialisation.")] = 0,
    labels: LabelOptions,
    sellers: SellerOptions,
    how: StepOptions,
    where: PlaceOptions,
) -> None:
    """Handle `outlay compare`; its help stands in `outlay.cli.app.COMMANDS`."""
    from outlay.study.request import requests
    from outlay.tasks.task import load_task

    shared = SharedOptions(task, n_initial, seed, models, labels, sellers, how)
    asked = requests(
        task,
        parse_budgets(grid.budgets),
        parse_names(grid.strategies),
        n_initial,
        range(seed, seed + grid.seeds),
        shared.models(parse_names(grid.teachers), parse_names(grid.students)),
        shared.options(with_rule=grid.rule),
    )
    folder = Path("outlay-runs") / f"{load_task(task).name}-compare"
    words = (*grid.words(), *shared.words(), *where.words())
    session = _prepare(asked, "compare", (as_word(task), *words), folder, where, rivals=how.rivals)
    if where.dry_run:
        print_plan(session, where.store, as_json=where.as_json)
    else:
        _fail_without_result(_bring_about(session, where))


def report(folder: ResultsFolder, store: StoreOption = None, as_json: Json = False) -> None:
    """Handle `outlay report`; its help stands in `outlay.cli.app.COMMANDS`."""
    from outlay.cli.study_screen import draw_study

    draw_study(folder, None if store is None else open_store(store), as_json=as_json)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Results folder.")] = Path("outlay-runs/demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of order and initialisation.")] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", min=1, help="How many seeds, from --seed on. (default: 3 of what takes seconds, else 1)"
        ),
    ] = None,
    rivals: RivalsOption = True,
    threads: ThreadsOption = 2,
    precision: RunPrecision = "auto",
    workers: WorkersOption = 1,
    store: RunStore = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Handle `outlay demo`; its help stands in `outlay.cli.app.COMMANDS`."""
    from outlay.money.amounts import write_usd
    from outlay.report.receipt import receipt, render_text
    from outlay.tasks.demo import demo_story, write_demo

    scratch = TemporaryDirectory(prefix="outlay-demo-") if dry_run else nullcontext(out / "task")
    options = {
        "--seed": seed or None,
        "--threads": threads,
        "--precision": precision,
        "--no-rivals": None if rivals else True,
    }
    where = PlaceOptions(out=out, store=store, workers=workers, quiet=quiet, as_json=as_json)
    words = (*given_words({"--seeds": seeds}), *given_words(options))
    with scratch as folder:
        asked = _demo_requests(_demo_request(write_demo(Path(folder)), threads, precision), seed, seeds)
        session = _prepare(asked, "demo", words, out, where, rivals=rivals)
    if dry_run:
        print_plan(session, store, as_json=as_json)
        return
    price = session.builder.price_book.get("label/demo")
    story = demo_story(len({(each.strategy, each.n_initial) for each in asked}), write_usd(price.usd))
    points = _bring_about(session, where, first=story)
    if not as_json:
        taught = [point for point in session.plan.points if point.request.strategy == "distill"]
        if taught[0].run_id is not None and taught[0].recipe is not None:
            echo("\n" + render_text(receipt(session.runner.ledger, taught[0].run_id)), nl=False)
        _say_what_next(
            out, out / "report.html", None if seeds is not None and seeds > 1 else {**options, "--store": store}
        )
    _fail_without_result(points)


def _say_what_next(out: Path, page: Path, again: Mapping[str, Any] | None) -> None:
    """Print commands to try after the demo; ``again``: options of a demo with one seed, to repeat over several."""
    lines = [
        ("look at it", str(page)),
        ("prove every dollar", command_line("outlay", "ledger", "verify", out)),
        ("a task to copy", command_line("outlay", "task", "check", out / "task" / "task.yaml")),
    ]
    if again is not None:
        five = command_line("outlay", "demo", "--seeds", 5, *given_words(again), "--out", Path(f"{out}-5-seeds"))
        lines.append(("test over 5 seeds", five))
    echo("\nnext")
    for what, how in lines:
        echo(f"  {what:18}  {how}")


def _prepare(
    asked: Sequence[Request], name: str, words: Sequence[object], folder: Path, where: PlaceOptions, *, rivals: bool
) -> Session:
    """Check and plan the runs of a command; refuse a wrong request before a folder is made or a label bought.

    ``name`` and ``words``: the command that makes the same runs again; ``folder``: results folder where no other is named.
    """
    from outlay.study.request import prepare_runs

    command = command_line("outlay", name, *words)
    session = prepare_runs(asked, name, where.out or folder, where.setup(), command, rivals=rivals)
    say_notes([*session.builder.notes, *session.plan.rival_notes], quiet=where.quiet)
    return session


def _bring_about(
    session: Session, where: PlaceOptions, *, first: str | None = None, receipts: bool = False
) -> list[Point]:
    """Run the planned points with a screen, then write and print the report, ``receipts`` before it."""
    from outlay.cli.progress import Screen
    from outlay.cli.study_screen import draw_study
    from outlay.report.receipt import receipt, render_text
    from outlay.study.handover import hand_over
    from outlay.study.run_names import run_names

    with Screen(run_names([point.request for point in session.plan.points]), quiet=where.quiet) as screen:
        for line in session.remarks:
            screen.say(line)
        if first is not None:
            screen.headline(first)
        points = session.run(screen)
    found = hand_over(session)
    ledger = session.runner.ledger
    known = set(ledger.run_ids()) if receipts and not where.as_json and ledger.is_begun else set()
    for planned in session.plan.points:
        if planned.run_id in known and not planned.is_rival:
            echo(render_text(receipt(ledger, planned.run_id)))
    draw_study(session.place.folder, session.place.store, as_json=where.as_json, quiet=True)
    if found is not None and found.folder is None and not where.as_json:
        echo(found.why)
    return points


def _demo_request(task: Path, threads: int, precision: str) -> Request:
    from outlay.money.amounts import parse_budget
    from outlay.plan.request import Request
    from outlay.tasks.demo import DEMO_BUDGET, DEMO_N_DEV, DEMO_N_INITIAL, DEMO_POOL_ROWS, DEMO_STUDENT

    return Request(
        str(task),
        "annotate",
        parse_budget(DEMO_BUDGET),
        n_initial=DEMO_N_INITIAL,
        pool_rows=DEMO_POOL_ROWS,
        n_dev=DEMO_N_DEV,
        student=DEMO_STUDENT,
        threads=threads,
        precision=precision,
    )


def _demo_requests(shared: Request, seed: int, seeds: int | None) -> list[Request]:
    """Return the requests of the demo; without a number of seeds, one of what a teacher makes a minute long, some of the rest."""
    from outlay.study.grid import Grid
    from outlay.tasks.demo import DEMO_SEEDS

    asked: list[Request] = []
    for name, n_seeds in (("annotate", DEMO_SEEDS), ("distill", 1)):
        chosen = tuple(range(seed, seed + (seeds or n_seeds)))
        asked += Grid(shared, (name,), (shared.budget_micros,), chosen).requests()
    return asked


def _fail_without_result(points: list[Point]) -> None:
    """Fail in one line: with 1 where a point failed, or none has a score (among others that have one, `na` is an answer), with
    `WAITING_EXIT` where one waits for labels. Rivals count where they failed."""
    own = [point for point in points if not point.request.is_rival]
    if not any(point.result.status == "failed" for point in points if point.request.is_rival):
        points = own
    failed = [point for point in points if point.result.status == "failed"]
    if failed:
        count = f"{len(failed)} of {len(points)} points failed, the first: " if len(points) > 1 else ""
        fail(f"{count}{failed[0].result.reason}")
    waiting = [point for point in points if point.result.status == "waiting"]
    if waiting:
        count = f"{len(waiting)} of {len(points)} points wait, the first " if len(points) > 1 else "the run is "
        fail(goes_on(f"{count}{waiting[0].result.reason}"), WAITING_EXIT)
    if not any(point.is_ok for point in points):
        count = f"none of the {len(points)} points has a result, the first: " if len(points) > 1 else "no result: "
        fail(f"{count}{points[0].result.reason}")
