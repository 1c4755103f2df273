"""`outlay targets`: show a folder of targets, export it to other programs, import their answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
    from outlay.standalone.runtime import StepReport

targets_app = typer.Typer(no_args_is_help=True)

TargetsFolder = Annotated[Path, typer.Argument(metavar="TARGETS", help="A folder that teach or targets import wrote.")]

TOKENS = "Tokens"


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """Options on the tokens of an imported answer."""

    match: Annotated[
        str | None,
        option(
            "--match",
            panel=TOKENS,
            says="Find the student's tokens by ids or text. (default: ids, where there are some)",
        ),
    ] = None
    closing: Annotated[
        str | None, option("--closing", panel=TOKENS, says="The teacher's closing token, as '<|im_end|>'.")
    ] = None
    max_logits: Annotated[int, option("--max-logits", panel=TOKENS, says="Kept per position at most; 0 = all.")] = 64
    tail_mass: Annotated[
        float, option("--tail-mass", panel=TOKENS, says="Probability that may be left out at a position.")
    ] = 0.001


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
    from outlay.cli.step_screen import print_speed
    from outlay.standalone.export_targets import export as write

    report = write(folder, out, overwrite=overwrite)
    if as_json:
        print_json(report.to_json())
        return
    facts = report.facts
    per = f", {facts['n_bytes'] / facts['n_positions']:,.0f} bytes a position" if facts["n_positions"] else ""
    echo(f"file: {facts['file']}")
    echo(f"rows: {facts['n_rows']:,} of {facts['kind']}, {facts['n_positions']:,} positions{per}")
    print_speed(report)


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
    tokens: TokenOptions = TokenOptions(),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make targets of another program's answers, as vLLM and servers with OpenAI's API write them."""
    from outlay.cli.step_screen import StepScreen
    from outlay.standalone.import_request import ImportOptions
    from outlay.standalone.import_targets import import_targets
    from outlay.standalone.request import Data

    data = Data(task=task, file=rows_file, **asdict(columns), **asdict(lengths), kind=kind, labels=parse_labels(labels))
    options = ImportOptions(
        file=file,
        out=out,
        data=data,
        student=student,
        base=base,
        target=target,
        overwrite=overwrite,
        **asdict(tokens),
    )
    with StepScreen(quiet=quiet or as_json) as screen:
        report = import_targets(options, screen)
    if as_json:
        print_json(report.to_json())
    else:
        _print_imported(report)


def _print_imported(report: StepReport) -> None:
    from outlay.cli.step_screen import print_kept, print_speed

    if report.is_old:
        echo("already done: the same request was answered here before")
    echo(f"targets: {report.out}")
    echo(f"rows: {report.facts['n_rows']:,} of {report.facts['kind']}")
    if report.facts["kept"]["n_positions"]:
        print_kept(report.facts["kept"])
    for line in report.counts:
        echo(line)
    print_speed(report)


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
