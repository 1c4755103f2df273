"""`outlay prices`: the price book, and prices of tokens for a price file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import Json, PricesOption, say_notes
from outlay.cli.terminal import echo, print_json, table_console

if TYPE_CHECKING:
    from datetime import date

    from outlay.money.amounts import Price

prices_app = typer.Typer(invoke_without_command=True)


@prices_app.callback()
def prices(context: typer.Context, extra: PricesOption = None, as_json: Json = False) -> None:
    """Handle `outlay prices`; its help stands in `outlay.cli.app.COMMANDS`."""
    from outlay.errors import UsageError
    from outlay.storage.paths import command_line

    if context.invoked_subcommand is not None:
        if extra or as_json:
            known = command_line("outlay", "prices", context.invoked_subcommand)
            raise UsageError(f"options come behind the command, not before it: `{known}`, then the options")
        return
    _print_book(extra, as_json=as_json)


@prices_app.command("fetch")
def fetch(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Provider and model, such as openai/gpt-5-mini; several at once."),
    ],
    into: Annotated[
        Path, typer.Option("--into", metavar="FILE", help="The price file to add to, made where there is none.")
    ] = Path("prices.toml"),
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what an earlier fetch wrote of these models; other records stay.")
    ] = False,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            "--prompt-tokens",
            min=1,
            help="Longest prompt you will send, for models that charge more for long ones. (default: any, at the dearest price)",
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option("--date", metavar="YYYY-MM-DD", help="Take the prices of that day. (default: today, UTC)"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the prices of models' tokens, with date and source, into a price file of yours; offline, from genai-prices."""
    from outlay.money.prices.fetch import PACKAGE, fetch_prices
    from outlay.money.prices.price_file import add_records
    from outlay.storage.paths import command_line

    day = _day(on)
    found = [fetch_prices(model, day, prompt_tokens) for model in dict.fromkeys(models)]
    by_item = {record.item: record for each in found for record in each.records}
    names = list(dict.fromkeys(each.name for each in found))
    added = add_records(into, names, list(by_item.values()), PACKAGE, replace=replace)
    notes = [note for each in found for note in each.notes]
    if as_json:
        documents = {"written": added.written, "kept": added.kept}
        lists = {name: [_document(price) for price in each] for name, each in documents.items()}
        print_json({"file": str(into), "models": names, **lists, "notes": notes})
        return
    _print_tokens(names, (*added.written, *added.kept))
    say_notes(notes)
    for source in dict.fromkeys(price.source for price in added.written):
        echo(f"source: {source}")
    there = f", {len(added.kept)} were there at the same price" if added.kept else ""
    echo(
        f"{into}: {len(added.written)} prices written{there}; commands read them with {command_line('--prices', into)}"
    )


def _day(text: str | None) -> date:
    from datetime import UTC, date, datetime

    from outlay.errors import UsageError

    if text is None:
        return datetime.now(UTC).date()
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--date {text!r} cannot be read; write a day such as 2026-12-01") from None


def _print_tokens(names: list[str], records: tuple[Price, ...]) -> None:
    """Print a row per model and tier: dollars per million tokens of each kind; what has no price costs what input does."""
    from rich.table import Table

    from outlay.money.amounts import write_usd
    from outlay.money.prices.tokens import KINDS, TIERS, shifted, token_item

    by_item = {price.item: price for price in records}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("$ per 1M tokens", overflow="fold")
    for heading in ("tier", *KINDS.values(), "checked"):
        table.add_column(heading, justify="right" if heading in KINDS.values() else "left")
    for name in names:
        for tier in TIERS:
            found = {kind: by_item.get(token_item(name, kind, tier)) for kind in KINDS}
            if (first := found["input"]) is not None:
                usd = ["" if price is None else write_usd(shifted(price.usd, 3)) for price in found.values()]
                table.add_row(name, tier, *usd, str(first.checked or ""))
    table_console().print(table)


def _document(price: Price) -> dict[str, Any]:
    from outlay.money.amounts import write_usd

    return {
        "item": price.item,
        "usd": write_usd(price.usd),
        "unit": price.unit,
        "source": price.source,
        "checked": None if price.checked is None else price.checked.isoformat(),
        "note": price.note,
    }


def _print_book(extra: list[Path] | None, *, as_json: bool) -> None:
    from outlay.money.amounts import PriceBook, write_usd

    book = PriceBook.load(extra or [])
    if as_json:
        print_json({"digest": book.digest, "prices": [_document(price) for price in book.items()]})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("Item", "$", "per", "checked", "source"):
        table.add_column(name, justify="right" if name == "$" else "left", overflow="fold")
    for price in book.items():
        checked = Text(price.checked.isoformat()) if price.checked else Text("set it", style="yellow")
        table.add_row(price.item, write_usd(price.usd), price.unit, checked, price.source)
    table_console().print(table)
    echo("Prices marked `set it` are placeholders: give your own with --prices FILE.toml (docs/money.md).")
