"""`outlay init`: from files to a task, with every guess said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from outlay.cli.common import Json
from outlay.cli.option_groups import grouped
from outlay.cli.terminal import echo, print_json

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
        int | None, typer.Option("--dev", help="Rows to choose models by. (default: a tenth; folds below 500 labels)")
    ] = None,
    label_price: Annotated[
        str | None,
        typer.Option("--label-price", help="Dollars that one more label costs. (default: asked; none with --yes)"),
    ] = None,
    labeller: Annotated[
        str | None,
        typer.Option("--labeller", help="Who labels, for the price list. (default: asked; people with --yes)"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the splits.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take guesses and defaults.")] = False,
    as_json: Json = False,
) -> None:
    """Handle `outlay init`; its help stands in `outlay.cli.app.COMMANDS`."""
    from outlay.money.amounts import plain_usd
    from outlay.tasks.new_task import NewTaskOptions, SplitOptions, new_task
    from outlay.tasks.task_files import check_new_folder, write_task

    price = None if label_price is None else plain_usd(label_price)
    if out is not None:
        check_new_folder(out)
    splits = SplitOptions(test=n_test, dev=n_dev, group=group, seed=seed)
    found = new_task(files, NewTaskOptions(name, tuple(text or ()), label, kind, splits))
    folder = out or Path(found.name)
    check_new_folder(folder)
    if not as_json:
        echo("\n".join(found.decided))
    if not yes and not as_json and is_terminal():
        price, labeller = _asked(folder, price, labeller)
    written = write_task(found, folder, usd_per_label=price, labeller=labeller)
    if as_json:
        document = {"files": list(map(str, written.files)), "decided": list(written.decided)}
        print_json(document | {"profile": written.statistics.to_json(), "next": written.next_command})
        return
    echo("\n".join(["", *written.statistics.lines(), "", *written.decided[len(found.decided) :]]))
    echo(f"next: {written.next_command}")


def is_terminal() -> bool:
    """Return whether somebody can be asked."""
    return sys.stdin.isatty()


def _asked(folder: Path, price: str | None, labeller: str | None) -> tuple[str | None, str | None]:
    """Ask for the price of a label and who labels, where they are not given, and whether to write; return the first two."""
    from outlay.tasks.task_files import PEOPLE

    if price is None:
        what = "dollars that one more label costs (empty: no more can be bought)"
        price = typer.prompt(what, default="", show_default=False, value_proc=_price)
    if price is not None and labeller is None:
        labeller = typer.prompt("who labels", default=PEOPLE)
    if not typer.confirm(f"write the task into {folder}?", default=True):
        raise typer.Exit(1)
    return price, labeller


def _price(given: str) -> str | None:
    """Return what was typed as plain dollars, ``None`` for nothing; what is no amount is asked for again."""
    from outlay.errors import MoneyError
    from outlay.money.amounts import plain_usd

    try:
        return plain_usd(given) if given.strip() else None
    except MoneyError as error:
        raise typer.BadParameter(str(error)) from None
