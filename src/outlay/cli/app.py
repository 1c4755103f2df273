"""The `outlay` command and its groups. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from outlay import __version__
from outlay.cli import books, machines, models, runs, steps, studies, targets, tasks
from outlay.cli.common import fail
from outlay.cli.helptext import Command, Group
from outlay.errors import OutlayError

app = typer.Typer(
    name="outlay",
    help="Spend a fixed budget on the best compact model it can buy: labels, or GPU hours to distil a large teacher.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(runs.demo)
app.command("run")(runs.run)
app.command("compare")(runs.compare)
app.command("report")(runs.report)
app.add_typer(studies.study_app, name="study")
for name, step in (
    ("finetune", steps.finetune),
    ("teach", steps.teach),
    ("distill", steps.distill),
    ("predict", steps.predict),
    ("evaluate", steps.evaluate),
):
    app.command(name, rich_help_panel="Single steps", cls=Command)(step)
app.add_typer(targets.targets_app, name="targets")
app.add_typer(books.ledger_app, name="ledger")
app.command("prices")(books.prices)
app.add_typer(tasks.task_app, name="task")
app.add_typer(tasks.data_app, name="data")
app.add_typer(models.model_app, name="model")
app.add_typer(books.store_app, name="store")
app.add_typer(machines.machine_app, name="machine")

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"outlay {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Spend a fixed budget on the best compact model it can buy: labels, or GPU hours to distil a large teacher."""
    gc.enable()


def main() -> None:
    """Entry point: an `OutlayError` becomes one clear line and exit 1; wrong usage exits 2."""
    # Until a command begins: drawing the help imports more than it makes garbage.
    gc.disable()
    try:
        app()
    except OutlayError as error:
        fail(str(error))
    except SystemExit as stop:
        # typer turns Ctrl-C into a silent exit 130.
        if stop.code != INTERRUPTED:
            raise
        fail("stopped; what was bought and done is kept, run the same command again to go on", code=INTERRUPTED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}; check the path, its permissions and the room on its disk")
    finally:
        gc.enable()
