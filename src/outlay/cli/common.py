"""What every command shares: where things lie, how errors and JSON are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from outlay.cli.terminal import echo
from outlay.errors import MissingData, MoneyError, UsageError

if TYPE_CHECKING:
    from outlay.storage.store import Store

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")]
StoreOption = Annotated[
    str | None,  # not a Path, which would make s3:/bucket of s3://bucket
    typer.Option(
        "--store",
        metavar="DIR|URL",
        help="Folder or URL (s3://bucket/prefix) of kept artifacts. (default: $OUTLAY_STORE or ~/.cache/outlay/store)",
    ),
]
PricesOption = Annotated[
    list[Path] | None, typer.Option("--prices", help="Your own price file (TOML); may be repeated.")
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto (bf16 where this machine is faster in it, else float32), bf16 or fp32; part of every key.",
    ),
]
ResultsFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A results folder, as `run`, `compare` and `study run` make it.")
]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


WAITING_EXIT = 75
"""Of a command whose labels are ordered and not delivered: ``EX_TEMPFAIL`` of sysexits.h, the same command goes on later."""


def fail(line: str, code: int = 1) -> NoReturn:
    """Print one line on standard error and exit."""
    from outlay.text.display import visible

    echo(visible(f"outlay: {line}"), err=True)
    raise SystemExit(code)


def say_stand_in(location: str | None) -> None:
    """Say on standard error where things are kept, where that is not the user's cache as usual."""
    from outlay.storage.locations import stand_in_note

    if (note := stand_in_note(location)) is not None:
        echo(f"outlay: {note}", err=True)


def open_store(location: str | None) -> Store:
    """The store to use: the option (a folder or a URL), else ``OUTLAY_STORE``, else the user's cache; with the quota of
    ``OUTLAY_STORE_QUOTA``, which limits what a store takes on this machine."""
    from outlay.storage.locations import default_location
    from outlay.storage.remote import open_location

    quota = os.environ.get("OUTLAY_STORE_QUOTA")
    say_stand_in(location)
    return open_location(location or default_location(), quota_bytes=parse_bytes(quota) if quota else None)


def parse_bytes(text: str) -> int:
    """Bytes of ``500M``, ``20G``, ``1000000``.

    Raises:
        UsageError: not a size.
    """
    number, unit = text.strip().rstrip("bB"), ""
    if number and number[-1].lower() in _UNITS:
        number, unit = number[:-1], number[-1].lower()
    try:
        size = int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a size; write it like 500M or 20G") from None
    if size <= 0:
        raise UsageError(f"the size is {text!r}; it must be above 0")
    return size


def ledger_path(folder: Path) -> Path:
    """The ledger of a results folder (or the ledger file itself).

    Raises:
        MissingData: there is none.
    """
    path = folder if folder.is_file() else folder / "ledger.sqlite"
    if not path.exists():
        raise MissingData(f"no ledger at {path}; name the folder that `run` or `compare` wrote (their --out)")
    return path


def one_run(run_ids: list[str], asked: str | None, folder: Path) -> list[str]:
    """The runs asked for: all, or the one whose id begins with ``asked``.

    Raises:
        UsageError: none or several begin with it.
    """
    if asked is None:
        return run_ids
    found = [run for run in run_ids if run.startswith(asked)]
    if len(found) != 1:
        what = "no run" if not found else f"{len(found)} runs"
        raise UsageError(f"{what} in {folder} whose id begins with {asked!r}; its runs: {', '.join(run_ids) or 'none'}")
    return found


def parse_settings(pairs: list[str] | None) -> dict[str, dict[str, Any]]:
    """``--set distil.epochs=4`` pairs by role; names and roles are checked where they are known.

    Raises:
        UsageError: not of that form, or a value of another type than the setting has.
    """
    by_role: dict[str, dict[str, Any]] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        role, dot, field = name.partition(".")
        if not (equals and dot and role and field):
            raise UsageError(f"--set {pair!r} cannot be read; write ROLE.NAME=VALUE, such as distil.epochs=4")
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            read = None if value == "none" else value
        _check_setting_type(pair, role, field, read)
        if field in by_role.get(role, {}):
            raise UsageError(f"--set {name} is given twice, last as {pair!r}; give each setting once")
        by_role.setdefault(role, {})[field] = read
    return by_role


def _check_setting_type(pair: str, role: str, name: str, value: object) -> None:
    from outlay.settings import TeachSettings, TrainSettings, setting_fields

    setting = setting_fields(TeachSettings if role == "teach" else TrainSettings).get(name)
    if setting is not None and not setting.is_of_type(value):
        raise UsageError(f"--set {pair!r} cannot be read; {name} is {setting.type_words}")


def parse_names(text: str | None) -> tuple[str, ...]:
    """Comma-separated names; blanks around them do not count."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def say_notes(notes: Sequence[str], *, quiet: bool = False) -> None:
    """Say on standard error what was decided about files and could have been otherwise."""
    for note in () if quiet else notes:
        echo(f"note: {note}", err=True)


def parse_labels(given: Sequence[str] | None) -> tuple[str, ...]:
    """Labels of ``--labels``: given once a list with commas, given several times one label each, commas and all."""
    several = given or ()
    names = several[0].split(",") if len(several) == 1 else several
    return tuple(name.strip() for name in names if name.strip())


def parse_budgets(text: str) -> tuple[int, ...]:
    """Comma-separated budgets in dollars; thousands are written without a comma here."""
    from outlay.money.amounts import parse_budget

    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise MoneyError(f"--budgets {text!r} cannot be read; write dollars with commas between, such as 300,400")
    return tuple(parse_budget(part) for part in parts)
