"""`outlay targets`: show a folder of targets, export it to other programs, import their answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli.common import Json, parse_labels
from outlay.cli.option_groups import grouped, option
from outlay.cli.step_options import (
    ROWS,
    Base,
    Columns,
    Kind,
    Labels,
    Lengths,
    Out,
    Overwrite,
    Quiet,
    Student,
    Task,
)
from outlay.cli.terminal import echo, print_json

if TYPE_CHECKING:
    from outlay.standalone.import_request import Importing
    from outlay.standalone.runtime import StepReport

targets_app = typer.Typer(no_args_is_help=True)

TargetsFolder = Annotated[Path, typer.Argument(metavar="TARGETS", help="A folder that teach or targets import wrote.")]

TOKENS = "Tokens"


@targets_app.command("show")
def show(folder: TargetsFolder, as_json: Json = False) -> None:
    """Print what targets hold: rows, bytes per token, logits and probability kept, the state of every block."""
    from outlay.standalone.targets_dir import TargetsFolder

    about = TargetsFolder.open(folder).about()
    if as_json:
        print_json(about)
        return
    _print_about(about)


@targets_app.command("export")
def export(
    folder: TargetsFolder,
    out: Annotated[Path, typer.Option("--out", help="The file: .jsonl, .jsonl.gz or .parquet.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write targets as log-probabilities, one row a line, in the names of OpenAI's API."""
    from outlay.standalone.export_targets import export as write

    outcome = write(folder, out, overwrite=overwrite)
    if as_json:
        print_json(outcome.to_json())
        return
    facts = outcome.facts
    per = f", {facts['n_bytes'] / facts['n_positions']:,.0f} bytes a position" if facts["n_positions"] else ""
    echo(f"file: {facts['file']}")
    echo(f"rows: {facts['n_rows']:,} of {facts['kind']}, {facts['n_positions']:,} positions{per}")
    _print_speed(outcome)


@targets_app.command("import")
@grouped
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Answers with log-probabilities: .jsonl, .jsonl.gz or .parquet.")
    ],
    out: Out,
    columns: Columns,
    lengths: Lengths,
    student: Student = None,
    base: Base = None,
    target: Annotated[
        str | None, typer.Option("--target", help="classes, tokens or text. (default: what the student can read)")
    ] = None,
    task: Task = None,
    rows_file: Annotated[
        Path | None,
        option(
            "--file",
            panel=ROWS,
            says="The rows that were asked, where answers do not repeat them: in order or by custom_id.",
        ),
    ] = None,
    kind: Kind = None,
    labels: Labels = None,
    match: Annotated[
        str | None,
        option(
            "--match",
            panel=TOKENS,
            says="Find the student's tokens by ids or text. (default: ids, where there are some)",
        ),
    ] = None,
    closing: Annotated[
        str | None, option("--closing", panel=TOKENS, says="The teacher's closing token, as '<|im_end|>'.")
    ] = None,
    max_logits: Annotated[int, option("--max-logits", panel=TOKENS, says="Kept per position at most; 0 = all.")] = 64,
    tail_mass: Annotated[
        float, option("--tail-mass", panel=TOKENS, says="Probability that may be left out at a position.")
    ] = 0.001,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make targets of another program's answers, as vLLM and servers with OpenAI's API write them."""
    from outlay.standalone.import_request import Importing
    from outlay.standalone.inputs import DataOptions

    question = DataOptions(
        task=task,
        source_column=columns.source_column,
        target_column=columns.target_column,
        delimiter=columns.delimiter,
        kind=kind,
        labels=parse_labels(labels),
        prefix=lengths.prefix,
        max_source_tokens=lengths.max_source_tokens,
        max_target_tokens=lengths.max_target_tokens,
    )
    for_student = (rows_file, student, base, target, match, closing, max_logits, tail_mass, overwrite)
    _import(Importing(file, out, question, *for_student), quiet=quiet, as_json=as_json)


def _import(asked: Importing, *, quiet: bool, as_json: bool) -> None:
    from outlay.cli.step_screen import StepScreen
    from outlay.standalone.import_targets import import_targets

    with StepScreen(quiet=quiet or as_json) as screen:
        outcome = import_targets(asked, screen)
    if as_json:
        print_json(outcome.to_json())
    else:
        _print_imported(outcome)


def _print_imported(outcome: StepReport) -> None:
    from outlay.cli.step_screen import print_kept

    if outcome.is_old:
        echo("already done: the same request was answered here before")
    echo(f"targets: {outcome.out}")
    echo(f"rows: {outcome.facts['n_rows']:,} of {outcome.facts['kind']}")
    if outcome.facts["kept"]["n_positions"]:
        print_kept(outcome.facts["kept"])
    for line in outcome.counts:
        echo(line)
    _print_speed(outcome)


def _print_about(about: dict[str, Any]) -> None:
    from outlay.cli.step_screen import print_kept
    from outlay.text.legible import named

    kept, form = about["kept"], about["form"]
    echo(f"targets: {about['targets']}")
    over = f" over {named(form['labels'])}" if form["labels"] else ""
    echo(f"rows: {about['n_rows']:,} of {about['kind']}, {kept['n_positions']:,} positions, {form['kind']}{over}")
    echo(f"teacher: {about['teacher']}")
    if about["imported"] is not None:
        echo(f"imported: {about['imported']['file']}")
    student = [part for part in about["student"] if part]
    if student:
        echo(f"student: {' of '.join(student)}")
    if about["temperatures"]:
        offered = ", ".join(f"{t:g}" for t in about["temperatures"])
        echo(f"temperatures: {offered}, over {about['vocab_size']:,} classes")
    if kept["n_positions"]:
        print_kept(kept)
    if about["rows_per_second"] is not None:
        echo(f"speed: {about['rows_per_second']:,.0f} rows/s when they were made")
    states = {name: block["state"] for name, block in about["blocks"].items()}
    bad = [f"{name} is {state}" for name, state in states.items() if state != "sound"]
    verdict = "; ".join(bad) if bad else "each matches its sha256"
    echo(f"blocks: {len(states):,}, {about['n_bytes']:,} bytes; {verdict}")


def _print_speed(outcome: StepReport) -> None:
    if outcome.seconds > 0:
        echo(f"speed: {outcome.facts['n_rows'] / outcome.seconds:,.0f} rows/s")
