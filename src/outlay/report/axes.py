"""The axes of a study's figures, and the words that find a place beside their marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from outlay.report.figure_data import Figure, Level, Mark, Panel, Series
from outlay.report.palette import QUIET, TEXT_PALETTE

WIDTH, HEIGHT = 400, 270
"""Of a plot, in pixels. At the width of a phone its letters keep more than two thirds of their size."""
FONT_PX, SMALL_PX = 15, 14
LETTER_PX = 7.5
"""Mean width of a letter at `FONT_PX`."""


@dataclass(frozen=True, slots=True)
class Span:
    """An axis: its ends in data units, whether it is logarithmic, its length in pixels."""

    low: float
    high: float
    is_log: bool
    length_px: float

    def px(self, value: float) -> float:
        """Distance of a value from the low end."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low) * self.length_px
        return (value - self.low) / (self.high - self.low) * self.length_px


def score_axis(figure: Figure, length_px: float = HEIGHT) -> Span:
    """Holds every mark and bar of every panel with a margin, from a whole number; it need not start at zero."""
    marks = [mark for panel in figure.panels for mark in panel.marks]
    low = min(mark.y if mark.low is None else mark.low for mark in marks)
    high = max(mark.y if mark.high is None else mark.high for mark in marks)
    margin = max(0.1 * (high - low), 0.5)
    return Span(max(0.0, math.floor(low - margin)), min(100.0, math.ceil(high + 1.5 * margin)), False, length_px)


def x_axis(figure: Figure) -> Span:
    """Holds every mark and level of every panel with a margin."""
    values = [mark.x for panel in figure.panels for mark in panel.marks]
    values += [level.end for panel in figure.panels for level in panel.levels]
    low, high = min(values), max(values)
    if figure.is_log:
        margin = max((high / low) ** 0.08, 1.1)
        return Span(low / margin, high * margin, True, WIDTH)
    margin = 0.08 * (high - low) or max(0.1 * high, 0.01)
    return Span(max(0.0, low - margin) if low > 0 else -margin / 2, high + margin, False, WIDTH)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within two ends: powers of ten; where these are fewer than four with 2 and 5, then all ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), range(1, 10)):
        ticks = [each for power in powers for step in steps if low <= (each := step * 10.0**power) <= high]
        if len(ticks) > 3:
            break
    return ticks


# --- words beside marks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Whether the two share an area."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


@dataclass(frozen=True, slots=True)
class Label:
    """A text beside a mark, in data coordinates with an offset in pixels (y downwards)."""

    text: str
    x: float
    y: float
    align: str
    dx: float
    dy: float
    color: str


def place(figure: Figure, panel: Panel, height: float) -> list[Label]:
    """Greedy placement: each text at the first place beside its mark where it covers nothing; without one it is left out."""
    x_span, y_span = x_axis(figure), score_axis(figure, height)

    def box_of(mark: Mark) -> Box:
        x, y = x_span.px(mark.x), y_span.px(mark.y)
        ends = [y_span.px(end) for end in (mark.low, mark.high) if end is not None]
        return Box(x - 7, min([y - 7, *ends]), x + 7, max([y + 7, *ends]))

    taken = [box_of(mark) for mark in panel.marks]
    boxes = list(taken)
    for line in _lines(figure, panel):
        taken += _along([(x_span.px(x), y_span.px(y)) for x, y in line])
    wanted = [_level_wish(level, x_span, y_span) for level in panel.levels]
    wanted += [
        (mark.label, (mark.x, mark.y), box, mark.series)
        for mark, box in zip(panel.marks, boxes, strict=True)
        if mark.label is not None
    ]
    labels = []
    for text, at, box, series in wanted:
        for label, own in _beside(text, at, box, (x_span.px(at[0]), y_span.px(at[1])), series):
            is_inside = own.left >= 0 and own.bottom >= 0 and own.right <= WIDTH and own.top <= height
            if is_inside and not any(own.meets(other) for other in taken):
                labels.append(label)
                taken.append(own)
                break
    return labels


_Wish = tuple[str, tuple[float, float], Box, Series | None]
"""A text, the place in data coordinates that it belongs to, what it stands beside, and its series."""


def _level_wish(level: Level, x_span: Span, y_span: Span) -> _Wish:
    """Above or below the middle of the line, which is its middle in pixels on a logarithmic axis."""
    at = math.sqrt(level.start * level.end), level.y
    x, y = x_span.px(at[0]), y_span.px(level.y)
    return level.text, at, Box(x, y - 1, x, y + 1), None


def _lines(figure: Figure, panel: Panel) -> list[list[tuple[float, float]]]:
    """Every line of a panel as its corners (x, score)."""
    lines = [list(panel.front)] + [[(level.start, level.y), (level.end, level.y)] for level in panel.levels]
    if figure.is_joined:
        for series in dict.fromkeys(mark.series for mark in panel.marks):
            lines.append(sorted((mark.x, mark.y) for mark in panel.marks if mark.series == series))
    return lines


def _along(corners: Sequence[tuple[float, float]], step_px: float = 6.0) -> list[Box]:
    """Small boxes that cover a line given by its corners in pixels."""
    boxes = []
    for (left, start), (right, end) in pairwise(corners):
        n_steps = max(1, math.ceil(math.hypot(right - left, end - start) / step_px))
        for i in range(n_steps + 1):
            x, y = left + (right - left) * i / n_steps, start + (end - start) * i / n_steps
            boxes.append(Box(x - 1, y - 1, x + 1, y + 1))
    return boxes


def _beside(
    text: str, at: tuple[float, float], mark: Box, px: tuple[float, float], series: Series | None
) -> list[tuple[Label, Box]]:
    """Where a text may stand: beside its mark, above it, below it; a line's text above and below, near and far."""
    width, half = len(text) * LETTER_PX * SMALL_PX / FONT_PX, SMALL_PX * 0.6
    x, y = px
    aside, above, below = mark.right - x + 4, mark.top + half + 3 - y, mark.bottom - half - 3 - y
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
