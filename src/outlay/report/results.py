"""What a report draws from: points, and what their runs left beside them. Read once, then pure numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point

Layout = Literal[
    "budgets", "self", "match", "costs", "general", "pool", "initial", "students", "teachers", "llm", "plain"
]
"""How a study is laid out: Kang et al. 2023, Tables 2 and 11 (``budgets``), 3 (``self``), 4 (``match``), 6 (``costs``), 10
(``general``), Figures 2 (``pool``), 3 (``initial``), 4 (``students``), 5 (``teachers``), 6 and 7 (``llm``); ``plain`` is any
comparison."""


@dataclass(frozen=True, slots=True)
class Header:
    """What was studied."""

    name: str
    title: str
    layout: Layout
    source: str | None = None
    """Whose table or figure it follows: "Kang et al. 2023, Table 2"."""
    scale: str | None = None
    command: str | None = None
    """The command that makes it again."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """A results folder, read. Points stand in the order of the grid; ``left`` is by point id."""

    header: Header
    points: tuple[Point, ...]
    left: Mapping[str, RunOutputs]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in order of appearance."""
        return tuple(dict.fromkeys(point.request.task for point in self.points))
