"""Scales of the axes of a figure, and the placement of labels beside its points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from outlay.report.figure_data import DataPoint, Figure, Panel, ReferenceLine, Series
from outlay.report.palette import QUIET, TEXT_PALETTE

WIDTH, HEIGHT = 400, 270
"""Size of a plot in pixels; at the width of a phone its letters keep more than two thirds of their size."""
FONT_PX, SMALL_PX = 15, 14
LETTER_PX = 7.5
"""Mean width of a letter at `FONT_PX`."""


@dataclass(frozen=True, slots=True)
class AxisScale:
    """The scale of an axis: its ends in data units, linear or logarithmic, and its length in pixels."""

    low: float
    high: float
    is_log: bool
    length_px: float

    def px(self, value: float) -> float:
        """Return the distance in pixels of a value from the low end of the axis."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low) * self.length_px
        return (value - self.low) / (self.high - self.low) * self.length_px


def score_axis(figure: Figure, length_px: float = HEIGHT) -> AxisScale:
    """Return the score scale that holds every point and error bar of a figure; it starts at a whole number, not always zero."""
    data_points = [data_point for panel in figure.panels for data_point in panel.data_points]
    low = min(data_point.y if data_point.low is None else data_point.low for data_point in data_points)
    high = max(data_point.y if data_point.high is None else data_point.high for data_point in data_points)
    margin = max(0.1 * (high - low), 0.5)
    return AxisScale(max(0.0, math.floor(low - margin)), min(100.0, math.ceil(high + 1.5 * margin)), False, length_px)


def x_axis(figure: Figure) -> AxisScale:
    """Return the horizontal scale that holds every point and reference line of a figure, with a margin."""
    values = [data_point.x for panel in figure.panels for data_point in panel.data_points]
    values += [line.end for panel in figure.panels for line in panel.reference_lines]
    low, high = min(values), max(values)
    if figure.is_log:
        margin = max((high / low) ** 0.08, 1.1)
        return AxisScale(low / margin, high * margin, True, WIDTH)
    margin = 0.08 * (high - low) or max(0.1 * high, 0.01)
    return AxisScale(max(0.0, low - margin) if low > 0 else -margin / 2, high + margin, False, WIDTH)


def log_ticks(low: float, high: float) -> list[float]:
    """Return round ticks within an interval: powers of ten; with 2 and 5 where they are fewer than four, then 1 to 9."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), range(1, 10)):
        ticks = [each for power in powers for step in steps if low <= (each := step * 10.0**power) <= high]
        if len(ticks) > 3:
            break
    return ticks


# --- labels -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Return True where two boxes share an area."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


@dataclass(frozen=True, slots=True)
class Label:
    """A text beside a point, in data coordinates with an offset in pixels (y downwards, as in Vega-Lite)."""

    text: str
    x: float
    y: float
    align: str
    dx: float
    dy: float
    color: str


def place_labels(figure: Figure, panel: Panel, height: float) -> list[Label]:
    """Place each label greedily at the first position where it covers nothing; leave it out where there is none."""
    x_span, y_span = x_axis(figure), score_axis(figure, height)

    def box_of(data_point: DataPoint) -> Box:
        x, y = x_span.px(data_point.x), y_span.px(data_point.y)
        ends = [y_span.px(end) for end in (data_point.low, data_point.high) if end is not None]
        return Box(x - 7, min([y - 7, *ends]), x + 7, max([y + 7, *ends]))

    taken = [box_of(data_point) for data_point in panel.data_points]
    boxes = list(taken)
    for line in _lines(figure, panel):
        taken += _boxes_along([(x_span.px(x), y_span.px(y)) for x, y in line])
    wanted = [_line_request(line, x_span, y_span) for line in panel.reference_lines]
    wanted += [
        (data_point.label, (data_point.x, data_point.y), box, data_point.series)
        for data_point, box in zip(panel.data_points, boxes, strict=True)
        if data_point.label is not None
    ]
    labels = []
    for text, at, box, series in wanted:
        for label, own in _label_positions(text, at, box, (x_span.px(at[0]), y_span.px(at[1])), series):
            is_inside = own.left >= 0 and own.bottom >= 0 and own.right <= WIDTH and own.top <= height
            if is_inside and not any(own.meets(other) for other in taken):
                labels.append(label)
                taken.append(own)
                break
    return labels


_LabelRequest = tuple[str, tuple[float, float], Box, Series | None]
"""A label to place: its text, its anchor in data coordinates, the box beside which it stands, and its series."""


def _line_request(line: ReferenceLine, x_span: AxisScale, y_span: AxisScale) -> _LabelRequest:
    """Return the label of a reference line, anchored at the middle of the line on a logarithmic axis."""
    at = math.sqrt(line.start * line.end), line.y
    x, y = x_span.px(at[0]), y_span.px(line.y)
    return line.text, at, Box(x, y - 1, x, y + 1), None


def _lines(figure: Figure, panel: Panel) -> list[list[tuple[float, float]]]:
    """Return every line of a panel as its corners (x, score)."""
    lines = [list(panel.front)] + [[(line.start, line.y), (line.end, line.y)] for line in panel.reference_lines]
    if figure.is_joined:
        for series in dict.fromkeys(data_point.series for data_point in panel.data_points):
            lines.append(
                sorted((data_point.x, data_point.y) for data_point in panel.data_points if data_point.series == series)
            )
    return lines


def _boxes_along(corners: Sequence[tuple[float, float]], step_px: float = 6.0) -> list[Box]:
    """Return small boxes that cover a line given by its corners in pixels."""
    boxes = []
    for (left, start), (right, end) in pairwise(corners):
        n_steps = max(1, math.ceil(math.hypot(right - left, end - start) / step_px))
        for i in range(n_steps + 1):
            x, y = left + (right - left) * i / n_steps, start + (end - start) * i / n_steps
            boxes.append(Box(x - 1, y - 1, x + 1, y + 1))
    return boxes


def _label_positions(
    text: str, at: tuple[float, float], data_point: Box, px: tuple[float, float], series: Series | None
) -> list[tuple[Label, Box]]:
    """Return candidate positions of a label: right, left, above and below a point; at several heights for a reference line."""
    width, half = len(text) * LETTER_PX * SMALL_PX / FONT_PX, SMALL_PX * 0.6
    x, y = px
    aside, above, below = data_point.right - x + 4, data_point.top + half + 3 - y, data_point.bottom - half - 3 - y
    places = [("left", aside, 0.0), ("right", -aside, 0.0), ("center", 0.0, above), ("center", 0.0, below)]
    if series is None:
        places = [(align, 0.0, up) for up in _FAR_PX for align in ("center", "left", "right")]
    candidates = []
    for align, dx, up in places:
        left = x + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
        box = Box(left, y + up - half, left + width, y + up + half)
        color = QUIET if series is None else TEXT_PALETTE[series.color]
        candidates.append((Label(text, *at, align, dx, -up, color), box))
    return candidates


_FAR_PX = (12.0, -12.0, 26.0, -26.0, 40.0, -40.0, 54.0, -54.0, 68.0)
"""Vertical offsets tried for the label of a reference line, in pixels."""
