"""`outlay task` and `outlay data`: look before money is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

task_app = typer.Typer(help="Check a task before money is spent.", no_args_is_help=True)
data_app = typer.Typer(help="Fetch the data of a task, checked by sha256.", no_args_is_help=True)

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="A shipped task, or the path of a task.yaml.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of data sets. [default: $OUTLAY_DATA]")]
