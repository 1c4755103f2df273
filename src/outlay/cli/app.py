"""The `outlay` command and its groups. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated, NoReturn

import typer

from outlay import __version__
from outlay.cli.lazy_help import Later, StrategyCommand, root
from outlay.cli.terminal import PIPE_CLOSED, abandon_output, echo, prepare_streams
from outlay.hardware.openmp import waiting_variables
from outlay.hardware.supported import unsupported, untested
from outlay.library_warnings import hide_deprecations

_STEPS = "Single steps"

COMMANDS = {
    "demo": Later(
        "run_commands.demo",
        "Show the whole story in minutes, on a laptop CPU, with no network: is the money better spent on labels or on a teacher?",
    ),
    "init": Later(
        "init_command.init",
        "Make a task of your own files: columns are guessed, test and dev set aside, every guess is said.",
    ),
    "run": Later(
        "run_commands.run",
        "Spend a budget by one strategy: buy, train, score, and print the result with its receipt.",
        cls=StrategyCommand,
    ),
    "compare": Later(
        "run_commands.compare",
        "Run every strategy at the same budgets and seeds: one table, one frontier, every dollar in a receipt.",
        cls=StrategyCommand,
    ),
    "study": Later("study_commands.study_app", "Grids of runs: every table and figure as something to run."),
    "report": Later(
        "run_commands.report", "Draw a results folder again: tables, figures, one page, flat files, receipts."
    ),
    "finetune": Later(
        "step_commands.finetune",
        "Train a model on labelled rows; with a dev set the best evaluation is kept.",
        _STEPS,
    ),
    "teach": Later("step_commands.teach", "Write a teacher's targets for a student, in blocks of 1,024 rows.", _STEPS),
    "distill": Later(
        "step_commands.distill",
        "Train a student on a teacher's targets; with a dev set the best evaluation is kept.",
        _STEPS,
    ),
    "predict": Later(
        "step_commands.predict",
        "Write a model's answers to new rows, with the columns of their file, and gold where it is known.",
        _STEPS,
    ),
    "evaluate": Later(
        "step_commands.evaluate",
        "Score a model or a file of predictions: every statistic in both readings with its 95 % interval.",
        _STEPS,
    ),
    "targets": Later("target_commands.targets_app", "A teacher's targets: look at them, hand them over."),
    "labels": Later(
        "labels_commands.labels_app",
        "Labels for real: try a language model, verify what was bought, see what is on order.",
    ),
    "ledger": Later("ledger_commands.ledger_app", "Receipts, and proof of them."),
    "prices": Later("price_commands.prices_app", "Print the price book: item, price, unit, source, when it was read."),
    "task": Later("task_commands.task_app", "Check a task before money is spent."),
    "data": Later("task_commands.data_app", "Fetch the data of a task, checked by sha256."),
    "model": Later(
        "model_commands.model_app", "What models weigh, models of random weights to try things with, a push to a hub."
    ),
    "store": Later("ledger_commands.store_app", "Artifacts kept on disk."),
    "machine": Later("machine_commands.machine_app", "What machines cost, and how fast they are."),
}
"""Commands and groups by name, loaded when used, with the texts of their help pages."""

app = typer.Typer(
    name="outlay",
    help="Spend a fixed budget on the best compact model it can buy: labels, or GPU hours to distil a large teacher.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=root(COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"outlay {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Spend a fixed budget on the best compact model it can buy: labels, or GPU hours to distil a large teacher."""
    gc.enable()


def _look_at_the_machine() -> None:
    """Refuse systems on which nothing works, and print what is untested here, once in a launch of several processes."""
    if (line := unsupported(sys.platform)) is not None:
        _fail(line)
    line = untested(sys.platform, os.uname().machine, sys.version_info[:2])
    if line is not None and os.environ.get("RANK", "0") == "0":
        echo(f"outlay: {line}", err=True)


def main() -> None:
    """Run the command line: an `OutlayError` becomes one clear line and exit 1; wrong usage exits 2."""
    # Before anything loads OpenMP, and for every process this one starts.
    os.environ.update(waiting_variables(os.environ))
    # Until a command begins: drawing the help imports more than it makes garbage.
    gc.disable()
    prepare_streams()
    hide_deprecations()
    _look_at_the_machine()
    try:
        _run()
    except BrokenPipeError:
        abandon_output()
        raise SystemExit(PIPE_CLOSED) from None
    except SystemExit as stop:
        # typer turns Ctrl-C into a silent exit 130.
        if stop.code != INTERRUPTED:
            raise
        _fail("stopped; what was bought and done is kept, run the same command again to go on", code=INTERRUPTED)
    except Exception as error:
        from outlay.cli.failures import line_of

        line = line_of(error)
        if line is None:
            raise
        _fail(line)
    finally:
        gc.enable()


def _run() -> None:
    """Run the command, and write what it printed, so that a full disk or a closed pipe behind standard output is seen here."""
    try:
        app()
    except SystemExit as stop:
        # typer and rich turn a closed pipe into an exit of their own.
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        if sys.stdout is not None:
            sys.stdout.flush()
        raise


def _fail(line: str, code: int = 1) -> NoReturn:
    from outlay.cli.common import fail

    try:
        fail(line, code=code)
    finally:
        # Output still in the buffer may be the cause of the failure.
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            abandon_output()
