"""`outlay study`: a grid as something that can be run, stopped, gone on with and looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import (
    Json,
    PricesOption,
    StoreOption,
    fail,
    open_store,
    parse_names,
    print_json,
    table_console,
)
from outlay.cli.runs import CapOption, DataOption, HereOption, MachinesOption, OutOption, QuietOption

if TYPE_CHECKING:
    from outlay.crew import Crew
    from outlay.planning import Plan
    from outlay.study import Study

study_app = typer.Typer(help="Grids of runs: every table and figure as something to run.", no_args_is_help=True)

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A shipped study, or the path of a study file.")]
TasksOption = Annotated[
    str | None, typer.Option("--task", "--tasks", help="Tasks of the study, or your own task.yaml; with commas.")
]
ScaleOption = Annotated[str, typer.Option("--scale", help="One of the study's scales, such as cpu or paper.")]
SeedsOption = Annotated[int | None, typer.Option("--seeds", min=1, help="How many seeds, instead of the study's.")]
StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A results folder, as `study run` makes it.")]


@study_app.command("run")
def run(
    study: StudyArgument,
    tasks: TasksOption = None,
    scale: ScaleOption = "cpu",
    seeds: SeedsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print points, steps, hours and dollars; start nothing.")
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
    from outlay.cli.studyscreen import StudyScreen, draw_study
    from outlay.conduct import INDEX_FILE, conduct
    from outlay.money import PriceBook, parse_budget
    from outlay.prepare import Workbench
    from outlay.run import Runner
    from outlay.scheduler import StepCraft

    _check_executor(executor)
    book = PriceBook.load(prices or [])
    asked = _study(study, tasks, scale, seeds, book)
    kept = open_store(store)
    bench = Workbench(book, data_root=data, machines=machines or [], tokens=kept.root / "tokens")
    planned = _plan(bench, asked, quiet or as_json, book.get(here), kept)
    if dry_run:
        _print_plan(planned, as_json)
        return
    _refuse_if_nothing_to_do(planned)
    folder = Path(out or Path("outlay-runs") / _folder_name(asked))
    cap = None if cash_cap is None else parse_budget(cash_cap)
    runner = Runner(folder, kept, here=book.get(here), cash_cap_micros=cap)
    craft = StepCraft(kept.location, book, None if data is None else data.resolve(), tuple(machines or ()))
    crew = _crew(executor, craft, workers, asked.threads, ray, folder / "logs")
    header = _header(asked, study, scale, seeds)
    with StudyScreen(len(planned.points), 0, quiet=quiet or as_json) as screen, crew:
        points = conduct(planned, header, runner, bench, crew, screen)
    draw_study(folder, kept, as_json=as_json)
    failed = [point for point in points if point.result.status == "failed"]
    if failed:
        fail(
            f"{len(failed)} of {len(points)} points failed, the first: {failed[0].result.reason}; "
            f"see {folder / INDEX_FILE} and {folder / 'logs'}, and run the same command again"
        )


@study_app.command("list")
def list_studies(as_json: Json = False) -> None:
    """The shipped studies: what each asks, and at which scales."""
    from rich.table import Table

    from outlay.study import find_study, load_study, shipped_studies

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
    """How far a study is, which steps are under way, what failed and why; also while it runs."""
    from dataclasses import asdict

    from outlay.conduct import status_of

    found = status_of(folder)
    if as_json:
        print_json(asdict(found) | {"is_done": found.is_done})
        return
    total = sum(found.n_by_status.values())
    counts = ", ".join(
        f"{found.n_by_status[name]} {name}" for name in ("ok", "na", "failed", "left") if found.n_by_status.get(name)
    )
    typer.echo(f"{found.header.name} ({found.header.title}), scale {found.header.scale}: {total} points: {counts}")
    typer.echo(f"cash so far: ${found.cash_usd:,.4f}")
    for line in found.under_way:
        typer.echo(f"held: {line}")
    for label, reason in found.failures:
        typer.echo(f"failed: {label}: {reason}")
    if not found.is_done and found.header.command:
        typer.echo(f"to go on: {found.header.command} --out {folder}")


@study_app.command("show")
def show(folder: StudyFolder, store: StoreOption = None, as_json: Json = False) -> None:
    """The tables of a study, as far as it is."""
    from outlay.cli.studyscreen import show_study

    if as_json:
        print_json(json.loads((folder / "points.json").read_text(encoding="utf-8")))
        return
    show_study(folder, None if store is None else open_store(store), {})


def _study(name: str, tasks: str | None, scale: str, seeds: int | None, book: Any) -> Study:
    from outlay.study import find_study, load_study

    return load_study(find_study(name)).at(scale, parse_names(tasks), n_seeds=seeds, price=book.get)


def _plan(bench: Any, study: Study, quiet: bool, here: Any, kept: Any) -> Plan:
    """Every point planned."""
    from rich.console import Console

    from outlay.planning import plan
    from outlay.speed import PROFILE_FILE, load_profile

    console = Console(stderr=True, quiet=quiet, highlight=False)
    asked = [cell.options if cell.absent is None else (cell.options, cell.absent) for cell in study.cells]
    with console.status(f"planning {len(asked):,} points"):
        return plan(bench, asked, profile=load_profile(kept.root.parent / PROFILE_FILE), here=here)


def _print_plan(planned: Plan, as_json: bool) -> None:
    from outlay.planning import render

    if as_json:
        print_json(planned.to_json())
    else:
        table_console().print(render(planned))


def _refuse_if_nothing_to_do(planned: Plan) -> None:
    """Where no point can be filled there is nothing to run, and the first reason is most likely the one to mend."""
    from outlay.errors import UsageError

    if planned.n_na == planned.n_points:
        raise UsageError(
            f"none of the {planned.n_points:,} points can be filled, the first: {planned.points[0].reason}"
        )


def _check_executor(name: str) -> None:
    from outlay.errors import UsageError

    if name not in ("local", "ray"):
        raise UsageError(f"--executor is {name!r}; it must be local or ray")


def _crew(executor: str, craft: Any, workers: int | None, threads: int, ray: str, logs: Path) -> Crew:
    if executor == "ray":
        from outlay.raycrew import RayCrew

        return RayCrew(craft, ray, threads, max_workers=workers)
    from outlay.local import LocalCrew, n_places

    return LocalCrew(craft, workers or n_places(threads), threads, logs=logs)


def _folder_name(study: Study) -> str:
    tasks = "" if len(study.tasks) != 1 else f"-{Path(study.tasks[0]).stem}"
    return f"{study.name}-{study.scale}{tasks}"


def _header(study: Study, name: str, scale: str, seeds: int | None) -> Any:
    from outlay.report.results import Header

    given = [f"outlay study run {name} --scale {scale} --task {','.join(study.tasks)}"]
    if seeds is not None:
        given.append(f"--seeds {seeds}")
    return Header(study.name, study.title, study.layout, study.source, study.scale, " ".join(given), study.notes)
