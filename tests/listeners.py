"""Listeners of work for tests."""

from __future__ import annotations

from outlay.text.listener import Listener

Silent = Listener


class Onlooker(Listener):
    """Remembers lines, steps that began at workers, and problems."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.begun: list[str] = []
        self.problems: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def submitted(self, what: str, run: str) -> None:
        self.begun.append(what)

    def ended(self, what: str, seconds: float, problem: str | None) -> None:
        if problem is not None:
            self.problems.append(problem)
