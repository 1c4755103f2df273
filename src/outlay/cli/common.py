"""Shared parts of the commands: options, stores and ledgers, printing of errors and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from outlay.cli.terminal import echo
from outlay.errors import MissingData, MoneyError, UsageError

if TYPE_CHECKING:
    from outlay.storage.store import Store

JSON_SAYS = "Print JSON for machines instead of text."
STORE_FORM = "DIR|URL"
STORE_SAYS = "Folder or URL (s3://bucket/prefix) of kept artifacts. (default: $OUTLAY_STORE or ~/.cache/outlay/store)"
PRECISION_SAYS = "auto (bf16 where this machine is faster in it, else float32), bf16 or fp32; part of every key."

Json = Annotated[bool, typer.Option("--json", help=JSON_SAYS)]
StoreOption = Annotated[
    str | None,  # not a Path, which would make s3:/bucket of s3://bucket
    typer.Option("--store", metavar=STORE_FORM, help=STORE_SAYS),
]
PricesOption = Annotated[
    list[Path] | None, typer.Option("--prices", help="Your own price file (TOML); may be repeated.")
]
ResultsFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A results folder, as `run`, `compare` and `study run` make it.")
]


WAITING_EXIT = 75
"""Exit code while ordered labels are not delivered (``EX_TEMPFAIL`` of sysexits.h); the same command goes on later."""


def goes_on(reason: str) -> str:
    """Return the reason why something waits, with the way on where it does not say it itself."""
    return reason if reason.endswith("run the same command again") else f"{reason}; the same command goes on"


def fail(line: str, code: int = 1) -> NoReturn:
    """Print one line on standard error and exit."""
    from outlay.text.display import visible

    echo(visible(f"outlay: {line}"), err=True)
    raise SystemExit(code)


def say_stand_in(location: str | None) -> None:
    """Print the place of the store on standard error, where it is not the user's cache as usual."""
    from outlay.storage.locations import stand_in_note

    if (note := stand_in_note(location)) is not None:
        echo(f"outlay: {note}", err=True)


def open_store(location: str | None) -> Store:
    """Open the store that an option names, as `outlay.storage.remote.open_named` does; prints an unusual place."""
    from outlay.storage.remote import open_named

    say_stand_in(location)
    return open_named(location)


def ledger_path(folder: Path) -> Path:
    """Return the ledger file of a results folder, or the file itself where it is named.

    Raises:
        MissingData: there is no ledger.
    """
    path = folder if folder.is_file() else folder / "ledger.sqlite"
    if not path.exists():
        raise MissingData(f"no ledger at {path}; name the folder that `run` or `compare` wrote (their --out)")
    return path


def one_run(run_ids: list[str], asked: str | None, folder: Path) -> list[str]:
    """Return the ids of all runs, or of the one whose id begins with ``asked``.

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
    """Read pairs such as ``distil.epochs=4`` by role; unknown roles and names are refused later, by the settings themselves.

    Raises:
        UsageError: not of that form, or a value of another type than the setting has.
    """
    from outlay.settings import SHORT_NAMES

    by_role: dict[str, dict[str, Any]] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        role, dot, written = name.partition(".")
        if not (equals and dot and role and written):
            raise UsageError(f"--set {pair!r} cannot be read; write ROLE.NAME=VALUE, such as distil.epochs=4")
        field = SHORT_NAMES.get(written, written)
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            read = None if value == "none" else value
        _check_setting_type(pair, role, field, read)
        if field in by_role.get(role, {}):
            raise UsageError(f"--set {role}.{field} is given twice, last as {pair!r}; give each setting once")
        by_role.setdefault(role, {})[field] = read
    return by_role


def _check_setting_type(pair: str, role: str, name: str, value: object) -> None:
    from outlay.settings import TeachSettings, TrainSettings, setting_fields

    setting = setting_fields(TeachSettings if role == "teach" else TrainSettings).get(name)
    if setting is not None and not setting.is_of_type(value):
        raise UsageError(f"--set {pair!r} cannot be read; {name} is {setting.type_words}")


def parse_names(text: str | None) -> tuple[str, ...]:
    """Split names at commas; blanks around them do not count."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def say_notes(notes: Sequence[str], *, quiet: bool = False) -> None:
    """Print on standard error the decisions about files that could have been otherwise."""
    for note in () if quiet else notes:
        echo(f"note: {note}", err=True)


def parse_labels(given: Sequence[str] | None) -> tuple[str, ...]:
    """Read ``--labels``: given once it is a list with commas, given several times each is one label, commas and all."""
    several = given or ()
    names = several[0].split(",") if len(several) == 1 else several
    return tuple(name.strip() for name in names if name.strip())


def parse_budgets(text: str) -> list[str]:
    """Split budgets in dollars at the commas between them, so that thousands are written without one."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise MoneyError(f"--budgets {text!r} cannot be read; write dollars with commas between, such as 300,400")
    return parts
