"""Listeners to the progress of a run."""

from __future__ import annotations

from typing import Protocol

from outlay.money.amounts import Quote
from outlay.money.ledger import Balance


class Watcher(Protocol):
    """A listener to the progress of a run, such as the display of the command line."""

    def begin(self, what: str, quote: Quote, balance: Balance) -> None:
        """Handle the start of a step, after its hold."""
        ...

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """Handle progress within the step."""
        ...

    def end(self, what: str, reused: bool, balance: Balance) -> None:
        """Handle the end of the step, after its settlement."""
        ...

    def say(self, line: str) -> None:
        """Show a message to the user: a derived value, a wait, lost work."""
        ...


class Silent:
    """A listener that ignores every call."""

    def begin(self, what: str, quote: Quote, balance: Balance) -> None:
        """Ignore the call."""

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """Ignore the call."""

    def end(self, what: str, reused: bool, balance: Balance) -> None:
        """Ignore the call."""

    def say(self, line: str) -> None:
        """Ignore the call."""
