"""Progress with dollars spent and left: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from outlay.cli.terminal import console
from outlay.money.amounts import Quote, format_usd
from outlay.money.ledger import Balance
from outlay.text.display import visible

QUIET_SECONDS = 15.0
"""Between plain lines of one step where there is no terminal."""


class Words(ProgressColumn):
    """What a task is called, or one of its fields, as it stands."""

    def __init__(self, field: str | None = None) -> None:
        super().__init__()
        self._field = field

    def render(self, task: Task) -> Text:
        """The text of one task."""
        return Text(visible(task.description if self._field is None else str(task.fields[self._field])))


def live_bars(console: Console, fields: tuple[str, ...], *, quiet: bool) -> Progress:
    """Bars that show these fields of their task as they are, on a terminal only; they vanish when they are done."""
    return Progress(
        Words(),
        BarColumn(bar_width=24),
        *map(Words, fields),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


class Screen:
    """A `outlay.engine.listeners.Watcher` that draws on standard error, so that standard output stays fit for a pipe."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = console(err=True, quiet=quiet)
        self._bars = live_bars(self._console, ("detail", "money"), quiet=quiet)
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._done: tuple[str, bool, Balance] | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say_done()
        self._bars.stop()

    def headline(self, line: str) -> None:
        """Which point comes next."""
        self._say_done()
        self._console.print(line, style="bold")

    def begin(self, what: str, quote: Quote, balance: Balance) -> None:
        """Show a step with its quote."""
        self._close()
        if self._done is not None and self._done[0] != what:
            self._say_done()
        self._task = self._bars.add_task(
            what, total=None, detail="", money=f"charge at most {format_usd(quote.charge_micros)}, {_money(balance)}"
        )
        self._last_line = time.monotonic()

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, completed=n_done, total=n_total, detail=detail)
        if self._bars.disable and time.monotonic() - self._last_line > QUIET_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"    {n_done:,} of {n_total:,}, {detail}")

    def end(self, what: str, reused: bool, balance: Balance) -> None:
        """Say what the run has spent and has left; the blocks of one teacher pass are said once, after the last."""
        self._close()
        if self._done is not None and self._done[:2] != (what, reused):
            self._say_done()
        self._done = what, reused, balance

    def _say_done(self) -> None:
        if self._done is not None:
            what, reused, balance = self._done
            kept = ", reused" if reused else ""
            self._console.print(Text.assemble(f"  {what}{kept}  ", (_money(balance), "dim")))
            self._done = None

    def say(self, line: str) -> None:
        """A line worth reading."""
        self._console.print(f"  {line}", style="dim")

    def _close(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


def _money(balance: Balance) -> str:
    return f"spent {format_usd(balance.charged_micros)}, left {format_usd(balance.available_charge_micros)}"
