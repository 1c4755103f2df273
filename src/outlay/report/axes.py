"""Scales of the axes of a figure, and the placement of labels beside its points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from outlay.report.figure_parts import DataPoint, Figure, Panel
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
    low = min(each.y if each.low is None else each.low for each in figure.data_points)
    high = max(each.y if each.high is None else each.high for each in figure.data_points)
    margin = max(0.1 * (high - low), 0.5)
    return AxisScale(max(0.0, math.floor(low - margin)), min(100.0, math.ceil(high + 1.5 * margin)), False, length_px)


def x_axis(figure: Figure) -> AxisScale:
    """Return the horizontal scale that holds every point and reference line of a figure, with a margin."""
    values = [each.x for each in figure.data_points]
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


def _mark_box(data_point: DataPoint, x_span: AxisScale, y_span: AxisScale) -> Box:
    """Return the box that a mark and its error bar cover."""
    x, y = x_span.px(data_point.x), y_span.px(data_point.y)
    ends = [y_span.px(end) for end in (data_point.low, data_point.high) if end is not None]
    return Box(x - 7, min([y - 7, *ends]), x + 7, max([y + 7, *ends]))


def have_overlap(figure: Figure) -> bool:
    """Return True where a mark or error bar covers that of another result, as a scatter in one panel would be drawn."""
    x_span, y_span = x_axis(figure), score_axis(figure)
    boxes = {}
    for each in figure.data_points:
        # A run that a larger budget leaves as it was is one result, drawn twice at one place.
        boxes[each.series, round(each.x, 6), each.y] = _mark_box(each, x_span, y_span)
    return any(one.meets(other) for one, other in combinations(boxes.values(), 2))


def place_labels(figure: Figure, panel: Panel, height: float) -> list[Label]:
    """Place each label greedily at the first position where it covers nothing; leave it out where there is none."""
    x_span, y_span = x_axis(figure), score_axis(figure, height)

    def px_of(x: float, y: float) -> tuple[float, float]:
        return x_span.px(x), y_span.px(y)

    wanted = []
    for line in panel.reference_lines:
        middle = math.sqrt(line.start * line.end), line.y  # on a logarithmic axis
        wanted.append(_candidates(line.text, middle, px_of(*middle), _LINE_OFFSETS, QUIET))
    boxes = [_mark_box(data_point, x_span, y_span) for data_point in panel.data_points]
    for data_point, box in zip(panel.data_points, boxes, strict=True):
        if data_point.label is not None:
            at, color = (data_point.x, data_point.y), TEXT_PALETTE[data_point.series.color]
            wanted.append(_candidates(data_point.label, at, px_of(*at), _offsets_beside(box, *px_of(*at)), color))
    taken = list(boxes)
    for corners in _lines(figure, panel):
        taken += _boxes_along([px_of(*corner) for corner in corners])
    labels = []
    for candidates in wanted:
        for label, own in candidates:
            is_inside = own.left >= 0 and own.bottom >= 0 and own.right <= WIDTH and own.top <= height
            if is_inside and not any(own.meets(other) for other in taken):
                labels.append(label)
                taken.append(own)
                break
    return labels


def _lines(figure: Figure, panel: Panel) -> list[list[tuple[float, float]]]:
    """Return every line of a panel as its corners (x, score)."""
    lines = [list(panel.front)] + [[(line.start, line.y), (line.end, line.y)] for line in panel.reference_lines]
    if figure.is_joined:
        of_series = ([each for each in panel.data_points if each.series == series] for series in panel.series)
        lines += [sorted((each.x, each.y) for each in data_points) for data_points in of_series]
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


_Offset = tuple[str, float, float]
"""Alignment of a label and its distance from its point in pixels, to the right and upwards."""
_HALF_PX = SMALL_PX * 0.6
_LINE_OFFSETS: list[_Offset] = [
    (align, 0.0, up)
    for up in (12.0, -12.0, 26.0, -26.0, 40.0, -40.0, 54.0, -54.0, 68.0)
    for align in ("center", "left", "right")
]
"""Offsets tried for the label of a reference line."""


def _offsets_beside(box: Box, x: float, y: float) -> list[_Offset]:
    """Return the offsets tried for the label of a point: right, left, above and below its box."""
    aside, above, below = box.right - x + 4, box.top + _HALF_PX + 3 - y, box.bottom - _HALF_PX - 3 - y
    return [("left", aside, 0.0), ("right", -aside, 0.0), ("center", 0.0, above), ("center", 0.0, below)]


def _candidates(
    text: str, at: tuple[float, float], px: tuple[float, float], offsets: Sequence[_Offset], color: str
) -> list[tuple[Label, Box]]:
    """Return a label at each offset, with the box that it covers."""
    width, (x, y) = len(text) * LETTER_PX * SMALL_PX / FONT_PX, px
    candidates = []
    for align, dx, up in offsets:
        left = x + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
        box = Box(left, y + up - _HALF_PX, left + width, y + up + _HALF_PX)
        candidates.append((Label(text, *at, align, dx, -up, color), box))
    return candidates
