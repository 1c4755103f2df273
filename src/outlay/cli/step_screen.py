"""Progress of a single step: a live bar with loss and speed on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.progress import TaskID

from outlay.cli.progress import BarScreen
from outlay.cli.terminal import echo, table_console

if TYPE_CHECKING:
    from rich.table import Table

    from outlay.standalone.runtime import StepReport


class StepScreen(BarScreen):
    """The screen of a single step."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._task: TaskID | None = None

    def begin(self, what: str) -> None:
        """Show the bar of a step."""
        self._console.print(what, style="bold")
        self._task = self._bars.add_task("", total=None, detail="")
        self._last_line = time.monotonic()

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """Move the bar; without a terminal print a line now and then."""
        if self._task is not None:
            self._bars.update(self._task, completed=n_done, total=n_total, detail=detail)
        if self._is_line_due():
            self._console.print(f"  {n_done:,} of {n_total:,}, {detail}")

    def say(self, line: str) -> None:
        """Print a line worth reading."""
        self._console.print(f"  {line}", style="dim")


def print_report(report: StepReport) -> None:
    """Print the report of a step on standard output."""
    from outlay.metrics.degenerate import of_rows

    if report.is_old:
        echo("already done: the same request was answered here before")
    facts = report.facts
    if "scores" in facts:
        _print_scores(facts)
    if facts.get("ece") is not None:
        echo(
            f"ECE: {facts['ece']:.2f} of 100, {facts['ece_bins']} bins, probabilities at temperature {facts['temperature']:g}"
        )
    for name in ("model", "targets", "predictions"):
        if name in facts:
            echo(f"{name}: {facts[name]}")
    if "scores" in facts:
        echo(f"scores: {report.out}/scores.json")
    dev = f", {facts['n_dev']:,} dev rows" if facts.get("n_dev") else ""
    echo(f"rows: {facts['n_rows']:,}{dev}")
    if facts.get("dev") is not None:
        dev = f"{facts['dev']:.2f}{of_rows(facts.get('n_dev'))}"
        echo(f"best {facts['dev_score']} on dev: {dev} in epoch {facts['best_epoch'] + 1}")
    if facts.get("kept", {}).get("n_positions"):
        print_kept(facts["kept"])
    for line in report.counts:
        echo(line)
    for note in facts.get("notes", ()):
        echo(f"note: {note}")
    print_speed(report)
    echo(f"compute: {report.compute}")
    if "profile" in facts:
        _print_profile(facts["profile"])


def print_speed(report: StepReport) -> None:
    """Print the rows a second of a step that took any time."""
    if report.seconds > 0:
        echo(f"speed: {report.facts['n_rows'] / report.seconds:,.0f} rows/s")


def print_kept(kept: dict[str, Any]) -> None:
    """Print how much of a teacher's logits the targets hold."""
    capped = f", {kept['n_capped']:,} at the limit of logits" if kept["n_capped"] else ""
    logits = f"{kept['logits_mean']:.1f} logits a position (most {kept['logits_max']:,})"
    echo(
        f"kept: {logits}, {kept['bytes_per_position']:.0f} bytes, "
        f"{100 * kept['mass_mean']:.3f} % of the probability (least {100 * kept['mass_min']:.2f} %){capped}"
    )


def _print_profile(profile: dict[str, Any]) -> None:
    from outlay.hardware.precision import precision_name

    total = profile["total_seconds"]
    table = _table(f"where {total:,.2f} s went", "part", "seconds", "share")
    for name, seconds in sorted(profile["seconds"].items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds:,.2f}", f"{100 * seconds / max(total, 1e-9):.1f} %")
    table_console().print(table)
    if profile["utilisation"] is not None:
        peak = profile["peak_flops_per_second"] / 1e9
        share = f"model-FLOPs utilisation: {100 * profile['utilisation']:.1f} %"
        name = f" in {precision_name(profile['precision'])}" if "precision" in profile else ""
        echo(f"{share} of {peak:,.3g} GFLOP/s, which a matrix product reaches here{name}")
    elif profile.get("why"):
        echo(f"model-FLOPs utilisation: not known; {profile['why']}")


def _print_scores(facts: dict[str, Any]) -> None:
    readings = list(dict.fromkeys(name.split("/")[1] for name in facts["scores"]))
    title = f"{facts['metric']}, {facts['n_rows']:,} rows, 95 % intervals of this model on these rows"
    table = _table(title, "statistic", *readings)
    for statistic in dict.fromkeys(name.split("/")[0] for name in facts["scores"]):
        found = [facts["scores"].get(f"{statistic}/{reading}") for reading in readings]
        cells = ["" if s is None else f"{s['value']:.2f} ({s['low']:.2f} to {s['high']:.2f})" for s in found]
        table.add_row(statistic, *cells)
    table_console().print(table)


def _table(title: str, first: str, *numbers: str) -> Table:
    """Return a table with a column of names and columns of numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table
