"""`outlay study`: run, resume and inspect a grid of points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import WAITING_EXIT, Json, PricesOption, StoreOption, fail, open_store, parse_names, say_notes
from outlay.cli.run_options import (
    CapOption,
    DataOption,
    HereOption,
    MachinesOption,
    OutOption,
    QuietOption,
)
from outlay.cli.terminal import console, echo, print_json, table_console
from outlay.storage.paths import command_line

if TYPE_CHECKING:
    from outlay.engine.prepare import RunBuilder
    from outlay.engine.runner import Runner
    from outlay.study.dry_run import StudyPlan
    from outlay.study.grid import Study
    from outlay.study.runner import StudyRunner
    from outlay.workers.pool import WorkerPool

study_app = typer.Typer(help="Grids of runs: every table and figure as something to run.", no_args_is_help=True)

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A shipped study, or the path of a study file.")]
TasksOption = Annotated[
    str | None, typer.Option("--task", "--tasks", help="Tasks of the study, or your own task.yaml; with commas.")
]
ScaleOption = Annotated[str, typer.Option("--scale", help="One of the study's scales, such as cpu or paper.")]
SeedsOption = Annotated[int | None, typer.Option("--seeds", min=1, help="How many seeds, instead of the study's.")]
OtherPrecision = Annotated[
    str | None,
    typer.Option("--precision", help="auto, bf16 or fp32, instead of the study's; auto where it names none."),
]
StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A results folder, as `study run` makes it.")]


@study_app.command("run")
def run(
    study: StudyArgument,
    tasks: TasksOption = None,
    scale: ScaleOption = "cpu",
    seeds: SeedsOption = None,
    precision: OtherPrecision = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, its bounds and forecasts; start nothing.")
    ] = False,
    executor: Annotated[str, typer.Option("--executor", help="local, or ray.")] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Steps at once. (default: as many as cores or GPUs allow)")
    ] = None,
    ray: Annotated[
        str, typer.Option("--ray", help="With --executor ray: auto, local, HOST:PORT or ray://HOST:PORT.")
    ] = "auto",
    here: HereOption = "cpu",
    prices: PricesOption = None,
    machines: MachinesOption = None,
    data: DataOption = None,
    store: StoreOption = None,
    out: OutOption = None,
    cash_cap: CapOption = None,
    quiet: QuietOption = False,
    as_json: Json = False,
) -> None:
    """Run a grid of points, each distinct step once; the same command goes on where it was stopped."""
    from outlay.cli.study_screen import draw_study
    from outlay.money.amounts import PriceBook, parse_budget
    from outlay.study.index import check_folder

    # A wrong request is refused before anything is planned, and before a folder is made.
    from outlay.study.prepare import header_of, refuse_empty, refuse_several_processes, study_command
    from outlay.study.runner import StudyRunner, Workplace

    refuse_several_processes()
    cap = None if cash_cap is None else parse_budget(cash_cap)
    book = PriceBook.load(prices or [])
    price_here = book.hour(here)
    asked = _study(study, (tasks, scale, seeds, precision), book)
    kept = open_store(store)
    folder = Path(out or Path("outlay-runs") / _folder_name(asked, tasks))
    command = {"--task": tasks, "--scale": scale, "--seeds": seeds, "--precision": precision, "--data": data}
    header = header_of(asked, study_command(study, command, prices or (), machines or ()))
    place = Workplace(folder, kept, book, price_here, data, tuple(machines or ()), cap)
    pool = _worker_pool(executor, place.factory(), workers, asked.threads, ray, place.logs)
    check_folder(folder, header)
    bench = place.builder()
    planned = _plan(bench, asked, quiet or as_json, price_here, kept)
    if dry_run:
        _print_plan(planned, as_json)
    refuse_empty(planned)
    runner = place.runner()
    _check_plan(runner, bench, planned, quiet or as_json)
    if dry_run:
        return
    conductor = _bring_about(StudyRunner(planned, header, runner, bench), pool, quiet=quiet or as_json)
    draw_study(folder, kept, as_json=as_json)
    _fail_if_failed(conductor, folder)


def _bring_about(conductor: StudyRunner, pool: WorkerPool, *, quiet: bool) -> StudyRunner:
    """Run the unfinished points with a screen; no worker is started where every point is finished."""
    from outlay.cli.study_screen import StudyScreen

    n_points, n_left = len(conductor.points) + len(conductor.left), len(conductor.left)
    n_absent = n_points - n_left - conductor.n_replayed
    counts = [f"{conductor.n_replayed:,} there already"] if conductor.n_replayed else []
    counts += [f"{n_absent:,} not available"] if n_absent else []
    counts.append(f"{n_left:,} to do" if n_left else "nothing to do")
    if not quiet:
        echo(f"{n_points:,} points in {conductor.folder}: {', '.join(counts)}", err=True)
    if n_left:
        with StudyScreen(n_points, n_points - n_left, quiet=quiet) as screen, pool:
            conductor.run(pool, screen)
    return conductor


def _fail_if_failed(conductor: StudyRunner, folder: Path) -> None:
    """Fail in one line: with 1 where a point failed (`na` is an answer), with `WAITING_EXIT` where one waits for labels."""
    points = [conductor.points[i] for i in sorted(conductor.points)]
    failed = [point for point in points if point.result.status == "failed"]
    if failed:
        fail(
            f"{len(failed)} of {len(points)} points failed, the first: {failed[0].result.reason}; "
            f"all of them: `{command_line('outlay', 'study', 'status', folder)}`; the same command tries them again"
        )
    waiting = [point for point in points if point.result.status == "waiting"]
    if waiting:
        fail(
            f"{len(waiting)} of {len(points)} points wait, the first {waiting[0].result.reason}; "
            f"all of them: `{command_line('outlay', 'study', 'status', folder)}`; the same command goes on",
            WAITING_EXIT,
        )


@study_app.command("list")
def list_studies(as_json: Json = False) -> None:
    """List the shipped studies: what each asks, and at which scales."""
    from rich.table import Table

    from outlay.study.grid import find_study, load_study, shipped_studies

    found = [(path, load_study(path)) for path in map(find_study, shipped_studies())]
    if as_json:
        print_json(
            [
                {"name": s.name, "title": s.title, "source": s.source, "scales": list(s.scales), "file": str(p)}
                for p, s in found
            ]
        )
        return
    table = Table(box=None, pad_edge=False)
    for name in ("Study", "What it asks", "Follows", "Scales"):
        table.add_column(name)
    for _, each in found:
        table.add_row(each.name, each.title, each.source or "", ", ".join(each.scales))
    table_console().print(table)


@study_app.command("status")
def status(folder: StudyFolder, as_json: Json = False) -> None:
    """Print how far a study is, which steps are under way, what failed and why; also while it runs."""
    from dataclasses import asdict

    from outlay.cli.study_screen import status_lines
    from outlay.study.runner import status_of

    found = status_of(folder)
    if as_json:
        print_json(asdict(found) | {"is_done": found.is_done})
        return
    echo("\n".join(status_lines(found)))


@study_app.command("show")
def show(folder: StudyFolder, store: StoreOption = None, as_json: Json = False) -> None:
    """Print the tables of a study, as far as it is."""
    from outlay.cli.study_screen import show_study
    from outlay.study.index import StudyIndex

    StudyIndex.read(folder)
    if as_json:
        print_json(json.loads((folder / "points.json").read_text(encoding="utf-8")))
        return
    show_study(folder, None if store is None else open_store(store), {})


@study_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of study files."""
    from outlay.study.grid import study_schema

    print_json(study_schema())


def _study(name: str, asked: tuple[str | None, str, int | None, str | None], book: Any) -> Study:
    """Load a study; ``asked``: tasks, scale, number of seeds, precision."""
    from outlay.study.grid import find_study, load_study

    tasks, scale, seeds, precision = asked
    file = load_study(find_study(name))
    return file.at(scale, parse_names(tasks), n_seeds=seeds, precision=precision, price=book.label)


def _check_plan(runner: Runner, bench: RunBuilder, planned: StudyPlan, quiet: bool) -> None:
    """Refuse a plan whose runs are in the folder in the other precision, and print remarks on the precision."""
    from outlay.engine.prepare import precision_remarks

    asked = [point.request for point in planned.points if point.recipe is not None]
    runner.refuse_other_precision(bench, asked)
    for line in precision_remarks(bench, asked):
        if not quiet:
            echo(line, err=True)


def _plan(bench: Any, study: Study, quiet: bool, here: Any, kept: Any) -> StudyPlan:
    """Plan every point, and print the decisions about files."""
    from outlay.study.prepare import plan_study

    screen = console(err=True, quiet=quiet)
    with screen.status(f"planning {len(study.cells):,} points"):
        planned = plan_study(bench, study, kept, here)
    say_notes(bench.notes, quiet=quiet)
    return planned


def _print_plan(planned: StudyPlan, as_json: bool) -> None:
    from outlay.cli.plan_table import render

    if as_json:
        print_json(planned.to_json())
    else:
        table_console().print(render(planned))


def _check_executor(name: str) -> None:
    from outlay.errors import UsageError

    if name not in ("local", "ray"):
        raise UsageError(f"--executor is {name!r}; it must be local or ray")


def _worker_pool(executor: str, factory: Any, workers: int | None, threads: int, ray: str, logs: Path) -> WorkerPool:
    _check_executor(executor)
    if executor == "ray":
        from outlay.workers.ray import RayPool

        return RayPool(factory, ray, threads, max_workers=workers)
    from outlay.workers.local import LocalPool, n_workers_here

    return LocalPool(factory, workers or n_workers_here(threads), threads, logs=logs)


FOLDER_LENGTH = 150
"""Longest name of a results folder that is made of other names; a file system takes 255 bytes."""


def _folder_name(study: Study, tasks: str | None) -> str:
    """Return the name of a results folder: the study and its scale, and tasks that were named or are the only one."""
    from outlay.storage.hashing import digest_of

    named = study.names if tasks or len(study.names) == 1 else ()
    name = "-".join((study.name, study.scale, *named))
    whole = f"{name[:FOLDER_LENGTH]}-{digest_of(name.encode())[:8]}"
    return name if len(name) <= FOLDER_LENGTH else whole
