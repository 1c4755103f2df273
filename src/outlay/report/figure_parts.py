"""Parts of a figure as values: series, points, bars, panels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CROWD = 150
"""Maximum number of points drawn in full size; with more, points are small and have no error bars and labels."""

Axis = Literal["charge", "added", "budget", "labels", "score", "part"]


@dataclass(frozen=True, slots=True)
class Series:
    """A series of points: its name in the legend, and the indices of its colour, shape and dash."""

    name: str
    color: int
    shape: int
    dash: int = 0


@dataclass(frozen=True, slots=True)
class DataPoint:
    """A seed mean in a figure: ``x`` in the units of the axis; ``y``, ``low`` and ``high`` scores, 0-100."""

    series: Series
    x: float
    y: float
    low: float | None
    high: float | None
    label: str | None
    """Text beside the point, or the name of the row in a dot plot."""
    description: str
    """Every value of the point in words, for the tooltip and for screen readers."""
    point: str
    """Id of the point (`outlay.engine.point.Point`) of the first seed."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a charge: from ``start`` to ``end`` dollars in the stacked bar ``row``."""

    row: str
    part: str
    start: float
    end: float
    description: str
    point: str


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A horizontal line at a score, from one charge to another, with its text."""

    y: float
    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of a figure; ``front`` is the Pareto frontier as (charge, score) by rising charge."""

    title: str | None
    data_points: tuple[DataPoint, ...]
    front: tuple[tuple[float, float], ...] = ()
    reference_lines: tuple[ReferenceLine, ...] = ()

    @property
    def series(self) -> list[Series]:
        """Series of the points, in order of appearance."""
        return list(dict.fromkeys(data_point.series for data_point in self.data_points))


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of one task: a ``scatter`` over an axis, a dot plot (``dots``), or stacked ``bars``."""

    kind: Literal["scatter", "dots", "bars"]
    title: str
    notes: tuple[str, ...]
    """Lines of the subtitle."""
    axis: Axis
    panels: tuple[Panel, ...] = ()
    bars: tuple[Bar, ...] = ()
    is_log: bool = False
    is_joined: bool = False
    """True where a line joins the points of a series."""
    is_dodged: bool = False
    """True where the series stand side by side, since their marks or bars would cover each other."""

    @property
    def data_points(self) -> list[DataPoint]:
        """Points of all panels."""
        return [data_point for panel in self.panels for data_point in panel.data_points]
