"""`outlay study`: run, resume and inspect a grid of points."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outlay.cli.common import WAITING_EXIT, Json, PricesOption, StoreOption, fail, open_store, parse_names, say_notes
from outlay.cli.option_groups import option
from outlay.cli.plan_screen import print_plan
from outlay.cli.run_options import (
    PLACES,
    TRAINING,
    CapOption,
    DataOption,
    DryRunOption,
    JsonOption,
    MachinesOption,
    MaxLatencyOption,
    MaxSizeOption,
    OutOption,
    PlaceOptions,
    QuietOption,
    RivalsOption,
    RunStore,
    ThisMachineOption,
)
from outlay.cli.seller_options import TakeOption, WaitOption
from outlay.cli.terminal import console, echo, print_json, table_console
from outlay.errors import UsageError
from outlay.storage.paths import command_line, expand_path

if TYPE_CHECKING:
    from outlay.study.grid import Study
    from outlay.study.runner import Session, Workplace
    from outlay.workers.pool import WorkerPool

study_app = typer.Typer(no_args_is_help=True)

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A shipped study, or the path of a study file.")]
TasksOption = Annotated[
    str | None, typer.Option("--task", "--tasks", help="Tasks of the study, or your own task.yaml; with commas.")
]
ScaleOption = Annotated[str, typer.Option("--scale", help="One of the study's scales, such as cpu or paper.")]
SeedsOption = Annotated[int | None, typer.Option("--seeds", min=1, help="How many seeds, instead of the study's.")]
OtherPrecision = Annotated[
    str | None,
    option("--precision", panel=TRAINING, says="auto, bf16 or fp32, instead of the study's; auto where it names none."),
]
KnownOption = Annotated[
    list[Path] | None,
    option(
        "--known",
        panel=PLACES,
        says="A points.json with its study.json: its runs count as done; may be repeated.",
        metavar="FILE",
    ),
]
ExecutorOption = Annotated[str, option("--executor", panel=TRAINING, says="local, or ray.")]
StudyWorkers = Annotated[
    int | None,
    option("--workers", panel=TRAINING, says="Steps at once. (default: as many as cores or GPUs allow)", least=1),
]
RayOption = Annotated[
    str, option("--ray", panel=TRAINING, says="With --executor ray: auto, local, HOST:PORT or ray://HOST:PORT.")
]
StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A results folder, as `study run` makes it.")]


@study_app.command("run")
def run(
    study: StudyArgument,
    tasks: TasksOption = None,
    scale: ScaleOption = "cpu",
    seeds: SeedsOption = None,
    data: DataOption = None,
    prices: PricesOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    rivals: RivalsOption = True,
    this_machine: ThisMachineOption = "cpu",
    machines: MachinesOption = None,
    cash_cap: CapOption = None,
    wait: WaitOption = None,
    take: TakeOption = False,
    precision: OtherPrecision = None,
    executor: ExecutorOption = "local",
    workers: StudyWorkers = None,
    ray: RayOption = "auto",
    store: RunStore = None,
    known: KnownOption = None,
    max_student_mb: MaxSizeOption = None,
    max_ms: MaxLatencyOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a grid of points, each distinct step once; the same command goes on where it was stopped."""
    from outlay.study.grid import find_study, load_study
    from outlay.study.prepare import check_study, prepare_study, refuse_several_processes, study_command
    from outlay.study.request import workplace

    refuse_several_processes()
    own = PlaceOptions(data, prices, None, store, this_machine, machines, cash_cap, wait, take)
    setup = replace(own, max_student_mb=max_student_mb, max_ms=max_ms).setup()
    place = workplace(out or Path("outlay-runs"), setup)
    file = load_study(find_study(study))
    asked = file.at(scale, parse_names(tasks), n_seeds=seeds, precision=precision, price=place.prices.label)
    if out is None:
        place = replace(place, folder=place.folder / _folder_name(asked, tasks))
    given: dict[str, object] = {"--task": tasks, "--scale": scale, "--seeds": seeds, "--precision": precision}
    given |= {"--no-rivals": None if rivals else True, "--data": data}
    given |= {"--max-student-mb": max_student_mb, "--max-ms": max_ms}
    again = study_command(study, given, prices or (), machines or (), known or ())
    pool = _worker_pool(executor, place, workers, asked.threads, ray)
    is_quiet = quiet or as_json
    with console(err=True, quiet=is_quiet).status(f"planning {len(asked.cells):,} points"):
        session = prepare_study(asked, place, again, pool, list(map(expand_path, known or ())), rivals=rivals)
    say_notes([*session.builder.notes, *session.plan.rival_notes], quiet=is_quiet)
    if dry_run:
        print_plan(session, store, as_json=as_json)
    check_study(session)
    for line in () if is_quiet else session.remarks:
        echo(line, err=True)
    if not dry_run:
        _bring_about(session, quiet=quiet, as_json=as_json)


def _bring_about(session: Session, *, quiet: bool, as_json: bool) -> None:
    """Run the unfinished points with a screen, then write and print the report.

    Fails in one line: with 1 where a point failed (`na` is an answer), with `WAITING_EXIT` where one waits for labels.
    """
    from outlay.cli.study_screen import StudyScreen, draw_study

    folder = session.place.folder
    with StudyScreen(folder, quiet=quiet or as_json) as screen:
        points = session.run(screen)
    draw_study(folder, session.place.store, as_json=as_json)
    status = f"all of them: `{command_line('outlay', 'study', 'status', folder)}`"
    failed = [point.result.reason for point in points if point.result.status == "failed"]
    if failed:
        count = f"{len(failed)} of {len(points)} points failed, the first: {failed[0]}"
        fail(f"{count}; {status}; the same command tries them again")
    waiting = [point.result.reason for point in points if point.result.status == "waiting"]
    if waiting:
        count = f"{len(waiting)} of {len(points)} points wait, the first {waiting[0]}"
        fail(f"{count}; {status}; the same command goes on", WAITING_EXIT)


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


def _worker_pool(executor: str, place: Workplace, workers: int | None, threads: int, ray: str) -> WorkerPool:
    if executor not in ("local", "ray"):
        raise UsageError(f"--executor is {executor!r}; it must be local or ray")
    if executor == "ray":
        from outlay.workers.ray import RayPool

        return RayPool(place.factory(), ray, threads, max_workers=workers)
    from outlay.workers.local import LocalPool, n_workers_here

    return LocalPool(place.factory(), workers or n_workers_here(threads), threads, logs=place.logs)


FOLDER_LENGTH = 150
"""Longest name of a results folder that is made of other names; a file system takes 255 bytes."""


def _folder_name(study: Study, tasks: str | None) -> str:
    """Return the name of a results folder: the study and its scale, and tasks that were named or are the only one."""
    from outlay.storage.hashing import digest_of

    named = study.names if tasks or len(study.names) == 1 else ()
    name = "-".join((study.name, study.scale, *named))
    whole = f"{name[:FOLDER_LENGTH]}-{digest_of(name.encode())[:8]}"
    return name if len(name) <= FOLDER_LENGTH else whole
