"""The input of a report: the points of a study and the outputs of their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point

Layout = Literal[
    "budgets", "self", "match", "costs", "general", "pool", "initial", "students", "teachers", "llm", "plain"
]
"""Layouts of tables and figures: Kang et al. 2023, Tables 2 and 11 (``budgets``), 3 (``self``), 4 (``match``), 6 (``costs``), 10
(``general``), Figures 2 (``pool``), 3 (``initial``), 4 (``students``), 5 (``teachers``), 6 and 7 (``llm``); ``plain`` is any
comparison."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits on the models that the summary may say to take: MB of float32 weights, milliseconds a row; ``None`` = any."""

    max_student_mb: float | None = None
    max_ms: float | None = None

    @property
    def words(self) -> str:
        """Limits in words: "within 10 MB and 5 ms a row"; empty without any."""
        parts = [] if self.max_student_mb is None else [f"{self.max_student_mb:g} MB"]
        parts += [] if self.max_ms is None else [f"{self.max_ms:g} ms a row"]
        return "within " + " and ".join(parts) if parts else ""


ANY_SIZE = Bounds()
"""No limits."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a report: name, title, layout and source of the study."""

    name: str
    title: str
    layout: Layout
    source: str | None = None
    """The published table or figure that the study follows: "Kang et al. 2023, Table 2"."""
    scale: str | None = None
    command: str | None = None
    """The command that repeats the study."""
    notes: tuple[str, ...] = ()
    bounds: Bounds = ANY_SIZE

    def to_json(self) -> dict[str, Any]:
        """Return the header as JSON values, without bounds where there are none."""
        record = asdict(self)
        bounds = {name: most for name, most in record.pop("bounds").items() if most is not None}
        return record | ({"bounds": bounds} if bounds else {})

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Header:
        """Return the header that `to_json` wrote."""
        return cls(**{**record, "notes": tuple(record["notes"]), "bounds": Bounds(**record.get("bounds", {}))})


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a study: points in the order of the grid, and the outputs of their runs by point id."""

    header: Header
    points: tuple[Point, ...]
    outputs: Mapping[str, RunOutputs]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks of the points, in order of appearance."""
        return tuple(dict.fromkeys(point.request.task for point in self.points))
