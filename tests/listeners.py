"""Listeners of work for tests."""

from __future__ import annotations


class Silent:
    """A listener that says nothing."""

    def begin(self, what: str) -> None:
        """Nothing."""

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""
