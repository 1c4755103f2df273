"""`outlay init`: from files to a task, with every guess said."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outlay.cli.common import Json
from outlay.cli.option_groups import grouped, option
from outlay.cli.terminal import echo, print_json

if TYPE_CHECKING:
    from outlay.tasks.new_task import NewTask, NewTaskOptions, SplitOptions
    from outlay.tasks.to_label import ToLabel

NO_LABELS = "Rows without labels"

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA",
        help="Rows: .csv, .tsv, .jsonl, .txt, .parquet, or a folder LABEL/*.txt; then files of texts.",
    ),
]


@dataclass(frozen=True, slots=True)
class PartOptions:
    """Options of the parts that are set aside."""

    group: Annotated[
        str | None,
        typer.Option("--group", help="Column whose equal values stay on one side of a split, such as an author."),
    ] = None
    n_test: Annotated[
        int | None,
        typer.Option("--test", help="Rows to score on. (default: a fifth, 100 to 1,000; at most 300 to be labelled)"),
    ] = None
    n_dev: Annotated[
        int | None,
        typer.Option(
            "--dev",
            help="Rows to choose models by. (default: a tenth, at most 100 to be labelled; folds below 500 labels)",
        ),
    ] = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the splits.")] = 0

    def splits(self) -> SplitOptions:
        """Return the options of the splits."""
        from outlay.tasks.new_task import SplitOptions

        return SplitOptions(test=self.n_test, dev=self.n_dev, group=self.group, seed=self.seed)


@dataclass(frozen=True, slots=True)
class ToLabelOptions:
    """Options of labels to be bought, since rows have none."""

    labels: Annotated[
        str | None,
        option("--labels", panel=NO_LABELS, says="Labels to be bought, with commas: spam,other. (default: asked)"),
    ] = None
    describe: Annotated[
        list[str] | None,
        option(
            "--describe",
            panel=NO_LABELS,
            says="LABEL=WORDS, what a label stands for; may be repeated.",
            metavar="LABEL=WORDS",
        ),
    ] = None
    instruction: Annotated[
        str | None,
        option(
            "--instruction",
            panel=NO_LABELS,
            says="What annotators are told to do. (default: asked; a plain sentence with --yes)",
        ),
    ] = None
    seller: Annotated[
        str | None,
        option(
            "--seller",
            panel=NO_LABELS,
            says="people, llm, or both with a comma: the first labels dev and test. (default: people)",
        ),
    ] = None
    llm: Annotated[
        str | None, option("--llm", panel=NO_LABELS, says="Model of the seller llm, such as gpt-5-mini.")
    ] = None
    url: Annotated[
        str | None, option("--url", panel=NO_LABELS, says="Address of its endpoint. (default: that of OpenAI)")
    ] = None

    def to_label(self) -> ToLabel | None:
        """Return what is asked, ``None`` where no option is given.

        Raises:
            UsageError: a description without a label.
        """
        from outlay.errors import UsageError
        from outlay.tasks.seller_blocks import LLM_NAME, PEOPLE
        from outlay.tasks.to_label import ToLabel

        if self == ToLabelOptions():
            return None
        described = {}
        for each in self.describe or ():
            label, mark, words = each.partition("=")
            if not (mark and label.strip() and words.strip()):
                raise UsageError(f"--describe {each!r} does not say what a label stands for; write LABEL=WORDS")
            described[label.strip()] = words.strip()
        usual = PEOPLE if self.llm is None and self.url is None else LLM_NAME
        return ToLabel(
            labels=_listed(self.labels or ""),
            descriptions=described,
            instruction=self.instruction,
            sellers=_listed(self.seller or usual),
            llm=self.llm,
            url=self.url,
        )


def _listed(given: str) -> tuple[str, ...]:
    return tuple(word for each in given.split(",") if (word := each.strip()))


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
    parts: PartOptions = PartOptions(),
    label_price: Annotated[
        str | None,
        typer.Option(
            "--label-price",
            help="Dollars that a label of people costs; 0 where an LLM alone is free. (default: asked; none with --yes)",
        ),
    ] = None,
    bought: ToLabelOptions = ToLabelOptions(),
    labeller: Annotated[
        str | None,
        typer.Option("--labeller", help="Who labels, for the price list. (default: asked; people with --yes)"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take guesses and defaults.")] = False,
    as_json: Json = False,
) -> None:
    """Handle `outlay init`; its help stands in `outlay.cli.app.COMMANDS`."""
    from outlay.money.amounts import plain_usd
    from outlay.tasks.new_task import NewTaskOptions
    from outlay.tasks.task_files import check_new_folder, write_task

    price, asks = None if label_price is None else plain_usd(label_price), not yes and not as_json and is_terminal()
    if out is not None:
        check_new_folder(out)
    to_label = bought.to_label()
    if to_label is not None:
        to_label = replace(to_label, usd_per_label=price)
    options = NewTaskOptions(name, tuple(text or ()), label, kind, parts.splits(), to_label)
    found = _read(files, options, price, asks=asks)
    folder = out or Path(found.name)
    check_new_folder(folder)
    if not as_json:
        echo("\n".join(found.decided))
    if found.to_label is not None:
        price = found.to_label.usd_per_label
    if asks:
        price, labeller = _asked(folder, price, labeller, is_bought=found.to_label is not None)
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


def _read(files: list[Path], options: NewTaskOptions, price: str | None, *, asks: bool) -> NewTask:
    """Read files; where no row has a label, ask for the labels to be bought."""
    from outlay.errors import NoLabels
    from outlay.tasks.new_task import new_task

    try:
        return new_task(files, options)
    except NoLabels:
        if not asks:
            raise
        return new_task(files, replace(options, to_label=_asked_labels(price)))


def _asked_labels(price: str | None) -> ToLabel:
    """Ask which labels are to be bought, of whom, and for how much."""
    from outlay.tasks.seller_blocks import LLM_NAME, PEOPLE
    from outlay.tasks.to_label import ToLabel

    echo("no row has a label: they are to be bought")
    labels = _listed(typer.prompt("labels, with commas"))
    described = {
        label: words
        for label in labels
        if (
            words := typer.prompt(
                f"what {label} stands for (empty: its name says it)", default="", show_default=False
            ).strip()
        )
    }
    told = typer.prompt(
        "what annotators are told to do (empty: a plain sentence)", default="", show_default=False
    ).strip()
    sellers = _listed(typer.prompt(f"who labels: {PEOPLE}, {LLM_NAME}, or both with a comma", default=PEOPLE))
    llm = url = None
    if LLM_NAME in sellers:
        llm = typer.prompt("model of the LLM, such as gpt-5-mini")
        url = (
            typer.prompt("address of its endpoint (empty: that of OpenAI)", default="", show_default=False).strip()
            or None
        )
    if PEOPLE in sellers and price is None:
        what = "dollars that a label of people costs (empty: nothing)"
        price = typer.prompt(what, default="", show_default=False, value_proc=_price)
    return ToLabel(
        labels=labels,
        descriptions=described,
        instruction=told or None,
        sellers=sellers,
        llm=llm,
        url=url,
        usd_per_label=price,
    )


def _asked(
    folder: Path, price: str | None, labeller: str | None, *, is_bought: bool = False
) -> tuple[str | None, str | None]:
    """Ask for the price of a label and who labels, where they are not given, and whether to write; return the first two.

    ``is_bought``: the task has no labels, and its price was asked for before.
    """
    from outlay.tasks.seller_blocks import PEOPLE

    if price is None and not is_bought:
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
