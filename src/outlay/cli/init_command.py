"""`outlay init`: from files to a task, with every guess said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from outlay.cli.common import Json, fail
from outlay.cli.option_groups import grouped
from outlay.cli.terminal import echo, print_json
from outlay.spec import Kind
from outlay.storage.paths import command_line

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA",
        help="Labelled rows: .csv, .tsv, .jsonl, .parquet, or a folder LABEL/*.txt; then files of texts.",
    ),
]


@grouped
def init(
    files: Files,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the task, new or empty. (default: the name)")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the task. (default: of the first file)")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Column of the text; twice for rows of two texts. (default: guessed)"),
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="Column of the label. (default: guessed)")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="classification, entities or generation. (default: guessed)")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", help="Column whose equal values stay on one side of a split, such as an author."),
    ] = None,
    n_test: Annotated[
        int | None, typer.Option("--test", help="Rows to score on. (default: a fifth, 100 to 1,000)")
    ] = None,
    n_dev: Annotated[
        int | None, typer.Option("--dev", help="Rows to choose models by. (default: a tenth, none below 500 labels)")
    ] = None,
    label_price: Annotated[
        str | None,
        typer.Option("--label-price", help="Dollars that one more label costs. (default: asked; none with --yes)"),
    ] = None,
    labeller: Annotated[str, typer.Option("--labeller", help="Who labels, for the price list.")] = "people",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the splits.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take guesses and defaults.")] = False,
    as_json: Json = False,
) -> None:
    """Handle `outlay init`; its help stands in `outlay.cli.app.COMMANDS`."""
    from outlay.money.amounts import parse_usd
    from outlay.tasks.new_task import NewTaskOptions, new_task
    from outlay.tasks.task_files import write_task

    if label_price is not None:
        parse_usd(label_price)
    if kind is not None and kind not in get_args(Kind):
        fail(f"--kind {kind!r} is unknown; choose one of {', '.join(get_args(Kind))}", code=2)
    asked = NewTaskOptions(name, tuple(text or ()), label, cast(Kind | None, kind), group, n_test, n_dev, seed)
    found = new_task(files, asked)
    folder = out or Path(found.name)
    asks = not yes and not as_json and sys.stdin.isatty()
    if not as_json:
        echo("\n".join(found.decided))
    if asks and label_price is None:
        given = typer.prompt(
            "dollars that one more label costs (empty: no more can be bought)", default="", show_default=False
        )
        label_price = given.strip() or None
        if label_price is not None:
            parse_usd(label_price)
    if asks and not typer.confirm(f"write the task into {folder}?", default=True):
        raise typer.Exit(1)
    written = write_task(found, folder, usd_per_label=label_price, labeller=labeller)
    _report(folder, written, found.decided, has_price=label_price is not None, half=found.half_of_test, as_json=as_json)


def _report(
    folder: Path, written: list[Path], decided: list[str], *, has_price: bool, half: float, as_json: bool
) -> None:
    """Print the profile of the task, and the next command."""
    from outlay.tasks.loading import load_data
    from outlay.tasks.statistics import profile
    from outlay.tasks.task import load_task

    task = load_task(written[0])
    found = profile(task, load_data(task))
    prices = ("--prices", folder / "prices.toml") if has_price else ()
    command = command_line("outlay", "compare", written[0], "--budgets", 10, *prices, "--out", folder / "results")
    if as_json:
        print_json({"files": list(map(str, written)), "decided": decided, "profile": found.to_json(), "next": command})
        return
    echo("\n" + "\n".join(found.lines()))
    echo(f"\na score on the test rows is known to ± {half:.1f} points or better")
    if not has_price:
        echo("no price of a label: the budget buys compute for the labels that there are; --label-price names one")
    echo(f"next: {command}")
