"""The figures of a study: `outlay.report.panels` drawn as Vega-Lite, and from there as SVG, PNG and PDF."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from outlay.errors import UsageError
from outlay.report import charts
from outlay.report.charts import INK, PALETTE, QUIET, SHAPES, TEXT_PALETTE, Box
from outlay.report.means import Mean, means
from outlay.report.panels import Bar, Figure, Level, Mark, Panel, Series, layouts
from outlay.report.results import PARTS, Results

Spec = dict[str, Any]
"""A Vega-Lite specification."""

WIDTH, HEIGHT = 400, 270
"""Of a plot, in pixels. At the width of a phone its letters keep more than two thirds of their size."""
PANEL_HEIGHT, ROW_HEIGHT = 190, 30
FONT_PX, SMALL_PX = 15, 14
LETTER_PX = 7.5
NOTE_LETTERS = 54
MAX_LEGEND = 16
"""More series than this have no legend: their looks repeat, and pointing at a mark names it."""
CROWD = 150
"""From as many marks on, they are drawn small, and without bars and labels."""
DASHES = ((1, 0), (7, 3), (2, 3))

_BASE = "https://page.invalid/"
_PAGE = "report.html"
_AXIS_TITLES = {
    "charge": "Total cost (US dollars)",
    "added": "Added budget (US dollars)",
    "budget": "Budget (US dollars)",
    "labels": "Starting labels (N)",
    "score": "Test score",
    "part": "Charge (US dollars)",
}


def figures(results: Results, marks: Sequence[Mean] | None = None) -> dict[str, Spec]:
    """One figure per task, laid out as the study's header says; a task without a score has none.

    Args:
        results: a study's points.
        marks: `outlay.report.means.means` of them, where these are at hand.

    Returns:
        ``figure-<task>`` -> specification. A mark links to ``#point-<id>`` of its first seed.
    """
    drawn = layouts(results, means(results) if marks is None else marks)
    return {f"figure-{task}": draw(figure) for task, figure in drawn.items()}


def draw(figure: Figure) -> Spec:
    """The specification of one figure."""
    import altair as alt

    drawers = {"marks": _draw_marks, "dots": _draw_dots, "bars": _draw_bars}
    chart = drawers[figure.kind](figure).properties(title=alt.TitleParams(figure.title, subtitle=_notes(figure)))
    spec: Spec = chart.configure(**_config()).to_dict()
    return spec


def _notes(figure: Figure) -> list[str]:
    notes = list(figure.notes)
    if figure.kind != "bars":
        low = _score_axis(figure).low
        notes.append("the score axis starts at 0" if low == 0 else f"the score axis starts at {low:g}, not at 0")
    return [line for note in notes for line in textwrap.wrap(note, NOTE_LETTERS)]


def _config() -> dict[str, Any]:
    config = {name: dict(part) if isinstance(part, dict) else part for name, part in charts.CONFIG.items()}
    config["axis"] |= {"labelFontSize": FONT_PX, "titleFontSize": FONT_PX, "titlePadding": 8}
    config["legend"] |= {"labelFontSize": FONT_PX, "symbolSize": 120}
    config["title"] |= {"fontSize": 16, "subtitleFontSize": SMALL_PX, "subtitleLineHeight": 18}
    config["padding"] = 8
    return config


# --- axes -------------------------------------------------------------------------------------------------------------


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


def _score_axis(figure: Figure, length_px: float = HEIGHT) -> Span:
    """Holds every mark and bar of every panel with a margin, from a whole number; it need not start at zero."""
    marks = [mark for panel in figure.panels for mark in panel.marks]
    low = min(mark.y if mark.low is None else mark.low for mark in marks)
    high = max(mark.y if mark.high is None else mark.high for mark in marks)
    margin = max(0.1 * (high - low), 0.5)
    return Span(max(0.0, math.floor(low - margin)), min(100.0, math.ceil(high + 1.5 * margin)), False, length_px)


def _x_axis(figure: Figure) -> Span:
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


def _x_encoding(figure: Figure, *, has_title: bool = True) -> Any:
    import altair as alt

    span = _x_axis(figure)
    is_money = figure.axis in ("charge", "added", "budget")
    numbers = sorted({mark.x for panel in figure.panels for mark in panel.marks})
    own = numbers if figure.axis in ("labels", "added") and len(numbers) <= 7 else None
    round_numbers = log_ticks(span.low, span.high) if span.is_log else []
    values = own or (round_numbers if len(round_numbers) > 1 else None)
    return alt.X(
        "x:Q",
        title=_AXIS_TITLES[figure.axis] if has_title else None,
        scale=alt.Scale(type="log" if span.is_log else "linear", domain=[span.low, span.high], nice=False, zero=False),
        axis=alt.Axis(
            format="$,.3~r" if is_money else ",.3~r",
            grid=False,
            labelOverlap=True,
            labelFlush=False,
            **({} if values is None else {"values": values}),
        ),
    )


def _y_encoding(figure: Figure, length_px: float) -> Any:
    import altair as alt

    span = _score_axis(figure, length_px)
    scale = alt.Scale(domain=[span.low, span.high], nice=False, zero=False)
    return alt.Y("y:Q", title=_AXIS_TITLES["score"], scale=scale, axis=alt.Axis(tickCount=5, format=".4~g"))


# --- marks over an axis -----------------------------------------------------------------------------------------------


def _looks(figure: Figure, *, has_legend: bool) -> tuple[Any, Any, Any]:
    """Colour, shape and dash of the series, which share one legend above the plot."""
    import altair as alt

    series = list(dict.fromkeys(mark.series for panel in figure.panels for mark in panel.marks))
    names = [each.name for each in series]
    widths = [len(name) * LETTER_PX + 34 for name in names]
    columns = len(names) if sum(widths) <= WIDTH else max(1, int(WIDTH // max(widths)))
    legend = alt.Legend(orient="top", title=None, labelLimit=0, columns=columns, symbolStrokeWidth=0)
    if not has_legend or len(names) > MAX_LEGEND:
        legend = None

    def scale(values: list[Any]) -> Any:
        return alt.Scale(domain=names, range=values)

    return (
        alt.Color("series:N", scale=scale([PALETTE[each.color] for each in series]), legend=legend),
        alt.Shape("series:N", scale=scale([SHAPES[each.shape] for each in series]), legend=legend),
        alt.StrokeDash("series:N", scale=scale([list(DASHES[each.dash]) for each in series]), legend=None),
    )


def _draw_marks(figure: Figure) -> Any:
    import altair as alt

    height = HEIGHT if len(figure.panels) == 1 else PANEL_HEIGHT
    plots = []
    for panel in figure.panels:
        layers = alt.layer(*_layers(figure, panel, height))
        title = {} if panel.title is None else {"title": alt.TitleParams(panel.title, fontSize=FONT_PX, offset=6)}
        plots.append(layers.properties(width=WIDTH, height=height, **title))
    return plots[0] if len(plots) == 1 else alt.vconcat(*plots, spacing=10)


def _layers(figure: Figure, panel: Panel, height: float) -> list[Any]:
    """From the back: frontier, levels, the series' lines, intervals and points, labels."""
    import altair as alt

    is_crowd = sum(len(each.marks) for each in figure.panels) > CROWD
    x, y = _x_encoding(figure, has_title=panel is figure.panels[-1]), _y_encoding(figure, height)
    color, shape, dash = _looks(figure, has_legend=panel is figure.panels[0])
    layers = []
    if len(panel.front) > 1:
        front = alt.Chart(alt.Data(values=[{"x": usd, "y": score} for usd, score in panel.front]))
        layers.append(front.mark_line(aria=False, **_FRONT).encode(x=x, y=y))
    layers += _level_layers(panel, x, y)
    aside = _asides(figure, panel)
    bases = [
        (px, alt.Chart(alt.Data(values=[_record(mark) for mark in panel.marks if aside[mark.series] == px])))
        for px in sorted(set(aside.values()))
    ]
    for px, base in bases if figure.is_joined and not is_crowd else ():
        lines = base.mark_line(aria=False, strokeWidth=1.5, xOffset=px)
        layers.append(lines.encode(x=x, y=y, color=color, strokeDash=dash))
    for px, base in () if is_crowd else bases:
        bars = base.transform_filter("isValid(datum.low)").mark_rule(aria=False, strokeWidth=1.5, xOffset=px)
        layers.append(bars.encode(x=x, y=alt.Y("low:Q", title=_AXIS_TITLES["score"]), y2="high:Q", color=color))
    for px, base in bases:
        points = base.mark_point(filled=True, opacity=0.6 if is_crowd else 1, size=24 if is_crowd else 110, xOffset=px)
        layers.append(points.encode(x=x, y=y, color=color, shape=shape, href="href:N", description="what:N"))
    return layers + [_text(label, x, y) for label in ([] if is_crowd else place(figure, panel, height))]


def _asides(figure: Figure, panel: Panel) -> dict[Series, float]:
    """Pixels by which each series is moved aside: where all stand at the same few x, their intervals would cover each other."""
    series = list(dict.fromkeys(mark.series for mark in panel.marks))
    step = 5.0 if figure.axis in ("added", "budget", "labels") else 0.0
    return {each: step * (i - (len(series) - 1) / 2) for i, each in enumerate(series)}


_FRONT: dict[str, Any] = {"color": QUIET, "strokeDash": [5, 4], "strokeWidth": 1.5}


def _record(mark: Mark) -> dict[str, Any]:
    return {
        "series": mark.series.name,
        "x": mark.x,
        "y": mark.y,
        "low": mark.low,
        "high": mark.high,
        "row": mark.label,
        "what": mark.what,
        "href": f"{_BASE}#point-{mark.point}",
    }


def _level_layers(panel: Panel, x: Any, y: Any) -> list[Any]:
    import altair as alt

    if not panel.levels:
        return []
    values = [{"x": each.start, "end": each.end, "y": each.y} for each in panel.levels]
    line = alt.Chart(alt.Data(values=values)).mark_rule(aria=False, color=QUIET, strokeDash=[2, 3], strokeWidth=1.5)
    return [line.encode(x=x, x2="end:Q", y=y)]


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
    x_span, y_span = _x_axis(figure), _score_axis(figure, height)

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


def _text(label: Label, x: Any, y: Any) -> Any:
    import altair as alt

    data = alt.Chart(alt.Data(values=[{"x": label.x, "y": label.y, "text": label.text}]))
    mark = data.mark_text(
        aria=False, align=label.align, dx=label.dx, dy=label.dy, baseline="middle", fontSize=SMALL_PX, color=label.color
    )
    return mark.encode(x=x, y=y, text="text:N")


# --- rows -------------------------------------------------------------------------------------------------------------


def _row_encoding(rows: Sequence[str]) -> tuple[Any, int]:
    """The rows in their order, and the width that is left for the plot."""
    import altair as alt

    label_px = min(230, int(max(map(len, rows)) * LETTER_PX))
    axis = alt.Axis(labelLimit=label_px + 20, title=None, grid=True, ticks=False, domain=False, labelPadding=8)
    return alt.Y("row:N", sort=None, scale=alt.Scale(domain=list(rows)), axis=axis), WIDTH + 50 - label_px


def _draw_dots(figure: Figure) -> Any:
    import altair as alt

    (panel,) = figure.panels
    rows = list(dict.fromkeys(mark.label or "" for mark in panel.marks))
    row, width = _row_encoding(rows)
    span = _score_axis(figure)
    scale = alt.Scale(domain=[span.low, span.high], nice=False, zero=False)
    x = alt.X("y:Q", title=_AXIS_TITLES["score"], scale=scale, axis=alt.Axis(tickCount=5, format=".4~g", grid=False))
    color, shape, _ = _looks(figure, has_legend=False)
    base = alt.Chart(alt.Data(values=[_record(mark) for mark in panel.marks]))
    bars = base.transform_filter("isValid(datum.low)").mark_rule(aria=False, strokeWidth=2)
    points = base.mark_point(filled=True, opacity=1, size=120)
    texts = base.mark_text(aria=False, dy=-13, fontSize=SMALL_PX, color=INK)
    layers = alt.layer(
        bars.encode(x=alt.X("low:Q", title=_AXIS_TITLES["score"], scale=scale), x2="high:Q", y=row, color=color),
        points.encode(x=x, y=row, color=color, shape=shape, href="href:N", description="what:N"),
        texts.encode(x=x, y=row, text=alt.Text("y:Q", format=".1f")),
    )
    return layers.properties(width=width, height=max(90, (ROW_HEIGHT + 6) * len(rows)))


# Dark enough for white words (contrast 4.5 and more), in the order of `PARTS`.
_PART_COLORS = tuple(TEXT_PALETTE[i] for i in (0, 1, 2, 3, 5))


def _draw_bars(figure: Figure) -> Any:
    import altair as alt

    rows = list(dict.fromkeys(bar.row for bar in figure.bars))
    row, width = _row_encoding(rows)
    high = max(bar.end for bar in figure.bars)
    parts = [part for part in PARTS if any(bar.part == part for bar in figure.bars)]
    colors = [_PART_COLORS[PARTS.index(part)] for part in parts]
    legend = alt.Legend(orient="top", title=None, columns=max(1, len(parts) if len(parts) < 5 else 3))
    scale = alt.Scale(domain=[0, high * 1.02], nice=False)
    axis = alt.Axis(format="$,.3~r", tickCount=4, grid=False)
    x = alt.X("start:Q", title=_AXIS_TITLES["part"], scale=scale, axis=axis)
    base = alt.Chart(alt.Data(values=[_bar_record(bar, high / width) for bar in figure.bars]))
    bars = base.mark_bar(stroke="white", strokeWidth=1.5, height=ROW_HEIGHT - 8)
    texts = base.transform_filter("datum.text != ''").mark_text(aria=False, fontSize=SMALL_PX, color="white")
    layers = alt.layer(
        bars.encode(
            x=x,
            x2="end:Q",
            y=row,
            color=alt.Color("part:N", scale=alt.Scale(domain=parts, range=colors), legend=legend),
            href="href:N",
            description="what:N",
        ),
        texts.encode(x=alt.X("middle:Q", title=_AXIS_TITLES["part"], scale=scale), y=row, text="text:N"),
    )
    return layers.properties(width=width, height=max(60, ROW_HEIGHT * len(rows)))


def _bar_record(bar: Bar, usd_per_px: float) -> dict[str, Any]:
    """A part's name stands in it where there is room: hue is not all that tells parts apart."""
    has_room = (bar.end - bar.start) / usd_per_px > len(bar.part) * LETTER_PX + 6
    return {
        "row": bar.row,
        "part": bar.part,
        "start": bar.start,
        "end": bar.end,
        "middle": (bar.start + bar.end) / 2,
        "text": bar.part if has_room else "",
        "what": bar.what,
        "href": f"{_BASE}#point-{bar.point}",
    }


# --- files ------------------------------------------------------------------------------------------------------------

_NAMED_MARK = re.compile(r'<path aria-label="([^"]*)" role="graphics-symbol"([^>]*)/>')


def figure_svg(spec: Spec, page: str = "") -> str:
    """The drawing as SVG text, for inlining; every mark says its values in ``aria-label`` and ``<title>``.

    Args:
        spec: of `figures`.
        page: where its links lead, before the ``#``; nothing for the page that the drawing stands in.
    """
    svg = charts.chart_svg(spec).replace(_BASE, html.escape(page))
    return _NAMED_MARK.sub(r'<path aria-label="\1" role="graphics-symbol"\2><title>\1</title></path>', svg)


def save(spec: Spec, path: Path) -> Path:
    """Draw a figure as SVG, PNG (twice the pixels, for sharp screens) or PDF, by the path's ending.

    The marks of an SVG link into ``report.html`` beside it.

    Raises:
        UsageError: another ending.
    """
    import vl_convert

    if path.suffix == ".svg":
        content = figure_svg(spec, _PAGE).encode()
    elif path.suffix == ".png":
        content = vl_convert.vegalite_to_png(spec, scale=2)
    elif path.suffix == ".pdf":
        content = vl_convert.vegalite_to_pdf(spec)
    else:
        raise UsageError(
            f"a figure cannot be written as {path.suffix or path.name!r}; end its name in .png, .svg or .pdf"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
