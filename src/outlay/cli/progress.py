"""Progress with dollars spent and left: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from outlay.cli.terminal import console
from outlay.money.amounts import format_usd
from outlay.text.display import visible
from outlay.text.durations import time_left
from outlay.text.listener import Advance, Ahead, Listener

QUIET_SECONDS = 15.0
"""Seconds between plain lines of one step where there is no terminal."""

WIDE = 90
"""Columns of a terminal with room for long bars."""


class Words(ProgressColumn):
    """Column with a task's description, or one of its fields, as plain text on one line, cut where there is no room."""

    def __init__(self, field: str | None = None) -> None:
        super().__init__()
        self._field = field

    def render(self, task: Task) -> Text:
        """Return the text of one task."""
        words = task.description if self._field is None else str(task.fields[self._field])
        return Text(visible(words), no_wrap=True, overflow="ellipsis")


class LeftColumn(TimeRemainingColumn):
    """Column with the time that is left: of a task with the field ``end`` until that time, else as fast as it went so far.

    ``end``: seconds of `time.monotonic`, ``None`` where they are not known yet.
    """

    def render(self, task: Task) -> Text:
        """Return the time left of one task."""
        if "end" not in task.fields:
            return super().render(task)
        end = task.fields["end"]
        return Text("" if end is None else time_left(end - time.monotonic()), style="progress.remaining")


def live_bars(console: Console, fields: tuple[str, ...], *, quiet: bool) -> Progress:
    """Return bars that show fields of their task as plain text, on a terminal only, and vanish at the end."""
    # On a narrow terminal the words give way, and not the times.
    return Progress(
        Words(),
        BarColumn(bar_width=24 if console.width >= WIDE else 10, table_column=Column(no_wrap=True)),
        *map(Words, fields),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        LeftColumn(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


class BarScreen(Listener):
    """A listener that draws bars on standard error, so that standard output stays fit for a pipe."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = console(err=True, quiet=quiet)
        self._bars = live_bars(self._console, ("detail",), quiet=quiet)
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def _is_line_due(self) -> bool:
        """Return True where there are no bars, and the last plain line is `QUIET_SECONDS` old."""
        if not self._bars.disable or time.monotonic() - self._last_line <= QUIET_SECONDS:
            return False
        self._last_line = time.monotonic()
        return True


class RunsScreen(BarScreen):
    """A screen of runs: a bar for each step under way; without a terminal, a line for each now and then."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._tasks: dict[str, TaskID] = {}
        self._ahead: Ahead = (0.0, None)
        self._all: TaskID | None = None

    def ahead(self, far: Ahead) -> None:
        """Move the bar of all work, which stands above those of the steps, and set its end."""
        self._ahead = share, seconds = far
        if self._all is None:
            self._all = self._bars.add_task("all steps", total=1.0, detail="", end=None)
        end = None if seconds is None else time.monotonic() + seconds
        self._bars.update(self._all, end=end)
        self._move(self._all, share)

    def _move(self, whole: TaskID, share: float) -> None:
        """Move the bar of all work to the share that is done."""
        self._bars.update(whole, completed=share, detail=f"{100 * share:.0f} %")

    def ended(self, what: str, seconds: float, problem: str | None) -> None:  # noqa: ARG002
        """Print a step's problem, if any."""
        if problem is not None:
            self._console.print(f"  {what}: {problem}", style="red", soft_wrap=True)

    def tick(self, under_way: Mapping[str, Advance]) -> None:
        """Move the bars of the steps under way."""
        for name in set(self._tasks) - set(under_way):
            self._bars.remove_task(self._tasks.pop(name))
        for name, (done, total, words) in under_way.items():
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(f"  {name}", total=None, detail="")
            self._bars.update(self._tasks[name], completed=done, total=total or None, detail=words)
        if self._is_line_due():
            for name, (done, total, words) in under_way.items():
                far = f": {done:,} of {total:,}, {words}" if total else ""
                self._console.print(f"    {name}{far}", soft_wrap=True)
            share, seconds = self._ahead
            if seconds is not None:
                self._console.print(f"    {100 * share:.0f} % of the work done, {time_left(seconds)}", soft_wrap=True)


class Screen(RunsScreen):
    """The screen of `run`, `compare` and `demo`.

    ``labels``: name of each run, by its place. Lines of a run stand under its name, which is printed again after lines of another
    run.
    """

    def __init__(self, labels: Sequence[str] = (), *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._runs = [RunLines(self, f"{i}. {label}") for i, label in enumerate(labels, start=1)]
        self._shown: RunLines | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._runs:
            each.flush()
        super().__exit__(kind, error, trace)

    def headline(self, line: str) -> None:
        """Print the heading of a run or a part."""
        self._console.print(line, style="bold")

    def say(self, line: str | Text) -> None:
        """Print a line worth reading."""
        self._console.print(Text.assemble("  ", line), style="" if isinstance(line, Text) else "dim")

    def of_run(self, place: int) -> RunLines:
        """Return the listener that prints the steps of the run at a place."""
        return self._runs[place]

    def hand_over(self, lines: RunLines) -> None:
        """Print the lines held back by another run, then this run's name, before this run prints."""
        if self._shown is not lines:
            if self._shown is not None:
                self._shown.flush()
            self._shown = lines
            self.headline(lines.label)


class RunLines(Listener):
    """A listener that prints a line per step of one run, with what is spent and left."""

    def __init__(self, screen: Screen, label: str) -> None:
        self.label = label
        self._screen = screen
        self._done: tuple[str, bool, str] | None = None

    def held(self, what: str) -> None:
        """Print the line of the step before, unless this one is the same."""
        if self._done is not None and self._done[0] != what:
            self.flush()

    def settled(self, what: str, reused: bool, charged_micros: int, left_micros: int) -> None:
        """Hold the step's line with the balance; the blocks of one teacher pass get one line, after the last."""
        if self._done is not None and self._done[:2] != (what, reused):
            self.flush()
        self._screen.hand_over(self)
        self._done = what, reused, f"spent {format_usd(charged_micros)}, left {format_usd(left_micros)}"

    def say(self, line: str) -> None:
        """Print a line worth reading."""
        self._screen.hand_over(self)
        self.flush()
        self._screen.say(line)

    def flush(self) -> None:
        """Print the line that `settled` held back."""
        if self._done is not None:
            what, reused, money = self._done
            self._done = None
            kept = ", reused" if reused else ""
            self._screen.say(Text.assemble(f"{what}{kept}  ", (money, "dim")))
