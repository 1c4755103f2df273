"""`outlay task` and `outlay data`: inspect and fetch a task's data before money is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlay.cli.common import Json, PricesOption
from outlay.cli.terminal import console, echo, print_json

task_app = typer.Typer(no_args_is_help=True)
data_app = typer.Typer(no_args_is_help=True)

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="A shipped task, or the path of a task.yaml.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of data sets. (default: $OUTLAY_DATA)")]


@task_app.command("list")
def task_list(as_json: Json = False) -> None:
    """Name the shipped tasks."""
    from outlay.tasks.task import load_task, shipped_tasks
    from outlay.text.display import left

    tasks = [load_task(name) for name in shipped_tasks()]
    if as_json:
        print_json([{"name": t.name, "kind": t.kind, "metric": t.metric, "description": t.description} for t in tasks])
        return
    width = max(len(task.name) for task in tasks)
    for task in tasks:
        echo(f"{left(task.name, width)} {task.kind:16} {task.metric:12} {task.description}")


@task_app.command("check")
def task_check(task: TaskArgument, prices: PricesOption = None, data: DataOption = None, as_json: Json = False) -> None:
    """Profile a task: rows, lengths, labels or answers, duplicates, conflicts, leaks, price; exit 1 where it is not sound."""
    from outlay.errors import UnknownItem
    from outlay.money.amounts import PriceBook
    from outlay.tasks.loading import load_data
    from outlay.tasks.statistics import profile
    from outlay.tasks.task import load_task

    book, loaded = PriceBook.load(prices or []), load_task(task)
    found = profile(loaded, load_data(loaded, data))
    document, unpriced = found.to_json(), None
    try:
        book.label(loaded.price_item)
    except UnknownItem as error:
        unpriced = error
        document["warnings"] = [*document["warnings"], f"price: {error}"]
    if as_json:
        print_json(document)
    else:
        echo("\n".join(found.lines()))
    # Last, so that a user without prices sees the statistics of the data; a file of prices that lacks the item is a mistake.
    if unpriced is not None and prices:
        raise unpriced
    if unpriced is not None:
        echo(f"outlay: warning: {unpriced}; a run needs it", err=True)


@task_app.command("schema")
def task_schema_command() -> None:
    """Print the JSON Schema of task files."""
    from outlay.tasks.task import task_schema

    print_json(task_schema())


@data_app.command("get")
def data_get(
    task: TaskArgument,
    source: Annotated[
        str | None, typer.Option("--from", metavar="DIR_OR_URL", help="A mirror laid out like the data folder.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Data folder. (default: $OUTLAY_DATA or ~/.local/share/outlay/data)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring every file the task needs into the data folder, checked by sha256."""
    from rich.progress import DownloadColumn, Progress

    from outlay.cli.progress import Words
    from outlay.tasks.download import fetch
    from outlay.tasks.task import load_task

    loaded = load_task(task)
    bars: dict[str, int] = {}
    screen = console(err=True)
    with Progress(
        Words(), DownloadColumn(), console=screen, transient=True, disable=not screen.is_terminal
    ) as progress:

        def moved(file: str, n_bytes: int, n_expected: int | None) -> None:
            if file not in bars:
                bars[file] = int(progress.add_task(file, total=n_expected))
            progress.update(progress.task_ids[bars[file]], completed=n_bytes)

        files = fetch(loaded, source, to, moved)
    if as_json:
        print_json([{"file": f.file, "path": str(f.path), "bytes": f.n_bytes, "copied": f.copied} for f in files])
        return
    for file in files:
        state = "fetched" if file.copied else "in place"
        echo(f"{state:8}  {file.n_bytes / 1e6:7.2f} MB  {file.path}")
