"""Who is told how a run goes."""

from __future__ import annotations

from typing import Protocol

from outlay.money.amounts import Quote
from outlay.money.ledger import Balance


class Watcher(Protocol):
    """Who is told how a run goes; the command line draws it."""

    def begin(self, what: str, quote: Quote, balance: Balance) -> None:
        """A step was held and starts."""
        ...

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """The step advanced."""
        ...

    def end(self, what: str, reused: bool, balance: Balance) -> None:
        """The step was settled."""
        ...

    def say(self, line: str) -> None:
        """A line worth reading: a derivation, a wait, a loss."""
        ...


class Silent:
    """A watcher that says nothing."""

    def begin(self, what: str, quote: Quote, balance: Balance) -> None:
        """Nothing."""

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """Nothing."""

    def end(self, what: str, reused: bool, balance: Balance) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""
