"""Figures of a study: `outlay.report.figure_data` drawn as Vega-Lite, and saved as SVG, PNG and PDF."""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from outlay.engine.outputs import PARTS
from outlay.errors import UsageError
from outlay.metrics.quality import ReliabilityBin
from outlay.report.axes import (
    FONT_PX,
    HEIGHT,
    LETTER_PX,
    SMALL_PX,
    WIDTH,
    Label,
    log_ticks,
    place_labels,
    score_axis,
    x_axis,
)
from outlay.report.figure_data import lay_out_figures
from outlay.report.figure_parts import CROWD, Bar, DataPoint, Figure, Panel, Series
from outlay.report.palette import GRID, INK, PALETTE, QUIET, SHAPES, TEXT_PALETTE
from outlay.report.results import Results
from outlay.report.seed_means import SeedMean, means
from outlay.storage.files import write_bytes

Spec = dict[str, Any]
"""A Vega-Lite specification."""

PANEL_HEIGHT, ROW_HEIGHT, LINE_HEIGHT = 190, 30, 17
NOTE_LETTERS, ROW_LETTERS = 54, 28
MAX_LEGEND = 16
"""Maximum number of series in a legend; with more, colours repeat and the tooltip of a point names its series."""
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


def figures(results: Results, seed_means: Sequence[SeedMean] | None = None) -> dict[str, Spec]:
    """Draw one figure per task in the layout of the study's header; a task without a score has none.

    Args:
        results: a study's points.
        seed_means: means of these points (`outlay.report.seed_means.means`), computed where they are not given.

    Returns:
        ``figure-<task>`` -> specification. A point of a figure links to ``#point-<id>`` of its first seed.
    """
    by_task = lay_out_figures(results, means(results) if seed_means is None else seed_means)
    return {f"figure-{task}": draw(figure) for task, figure in by_task.items()}


def draw(figure: Figure) -> Spec:
    """Draw one figure as a Vega-Lite specification."""
    import altair as alt
    from altair.utils import schemapi

    drawers = {"scatter": _draw_scatter, "dots": _draw_dots, "bars": _draw_bars}
    # Altair validates each part against the schema of Vega-Lite when it is made or copied: most of a second per figure.
    with schemapi.debug_mode(False):
        chart = drawers[figure.kind](figure).properties(title=alt.TitleParams(figure.title, subtitle=_notes(figure)))
        spec: Spec = chart.configure(**_config()).to_dict(validate=False)
    return spec


def _chart(records: Iterable[Mapping[str, Any]]) -> Any:
    """Return a chart of some records, kept in a tuple: Altair copies a list item by item whenever charts are combined."""
    import altair as alt

    values: Any = tuple(records)
    return alt.Chart(alt.Data(values=values))


def _notes(figure: Figure) -> list[str]:
    notes = list(figure.notes)
    if figure.kind != "bars":
        low = score_axis(figure).low
        notes.append("the score axis starts at 0" if low == 0 else f"the score axis starts at {low:g}, not at 0")
    return [line for note in notes for line in textwrap.wrap(note, NOTE_LETTERS)]


def _config() -> dict[str, Any]:
    return {
        "font": "Helvetica, Arial, sans-serif",
        "background": "white",
        "padding": 8,
        "view": {"stroke": None},
        "axis": {
            **{"labelFontSize": FONT_PX, "titleFontSize": FONT_PX, "titleFontWeight": "normal", "titlePadding": 8},
            **{"labelColor": QUIET, "titleColor": INK, "gridColor": GRID},
            **{"domainColor": "#999999", "tickColor": "#999999"},
        },
        "legend": {"labelFontSize": FONT_PX, "labelColor": INK, "symbolSize": 120},
        "title": {
            **{"anchor": "start", "fontSize": 16, "fontWeight": 600, "color": INK, "offset": 12},
            **{"subtitleFontSize": SMALL_PX, "subtitleColor": QUIET, "subtitlePadding": 6, "subtitleLineHeight": 18},
        },
    }


# --- axes -------------------------------------------------------------------------------------------------------------


def _x_encoding(figure: Figure, *, has_title: bool = True) -> Any:
    import altair as alt

    span = x_axis(figure)
    is_money = figure.axis in ("charge", "added", "budget")
    numbers = sorted({each.x for each in figure.data_points})
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


def _score_scale(figure: Figure, length_px: float) -> Any:
    import altair as alt

    span = score_axis(figure, length_px)
    return alt.Scale(domain=[span.low, span.high], nice=False, zero=False)


# --- scatter plots ----------------------------------------------------------------------------------------------------


def _looks(figure: Figure, *, has_legend: bool) -> tuple[Any, Any, Any]:
    """Return the encodings of colour, shape and dash of the series, with one legend above the plot."""
    import altair as alt

    series = list(dict.fromkeys(data_point.series for data_point in figure.data_points))
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


def _draw_scatter(figure: Figure) -> Any:
    import altair as alt

    height = HEIGHT if len(figure.panels) == 1 else PANEL_HEIGHT
    plots = []
    for panel in figure.panels:
        layers = alt.layer(*_layers(figure, panel, height))
        title = {} if panel.title is None else {"title": alt.TitleParams(panel.title, fontSize=FONT_PX, offset=6)}
        plots.append(layers.properties(width=WIDTH, height=height, **title))
    return plots[0] if len(plots) == 1 else alt.vconcat(*plots, spacing=10)


def _layers(figure: Figure, panel: Panel, height: float) -> list[Any]:
    """Draw the layers of a panel from back to front: frontier, reference lines, series lines, intervals, points, labels."""
    import altair as alt

    is_crowd = len(figure.data_points) > CROWD
    x = _x_encoding(figure, has_title=panel is figure.panels[-1])
    ticks = alt.Axis(tickCount=5, format=".4~g")
    y = alt.Y("y:Q", title=_AXIS_TITLES["score"], scale=_score_scale(figure, height), axis=ticks)
    color, shape, dash = _looks(figure, has_legend=panel is figure.panels[0])
    layers = []
    if len(panel.front) > 1:
        front = _chart({"x": usd, "y": score} for usd, score in panel.front)
        dashed = front.mark_line(aria=False, color=QUIET, strokeDash=[5, 4], strokeWidth=1.5)
        layers.append(dashed.encode(x=x, y=y))
    if panel.reference_lines:
        ends = _chart({"x": line.start, "end": line.end, "y": line.y} for line in panel.reference_lines)
        dotted = ends.mark_rule(aria=False, color=QUIET, strokeDash=[2, 3], strokeWidth=1.5)
        layers.append(dotted.encode(x=x, x2="end:Q", y=y))
    aside = _asides(figure, panel)
    bases = [
        (px, _chart(_record(data_point) for data_point in panel.data_points if aside[data_point.series] == px))
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
    return layers + [_text(label, x, y) for label in ([] if is_crowd else place_labels(figure, panel, height))]


def _asides(figure: Figure, panel: Panel) -> dict[Series, float]:
    """Return the horizontal offset of each series in pixels, so that intervals at the same x do not cover each other."""
    step = 5.0 if figure.is_dodged or figure.axis in ("added", "budget", "labels") else 0.0
    return {series: step * (i - (len(panel.series) - 1) / 2) for i, series in enumerate(panel.series)}


def _record(data_point: DataPoint) -> dict[str, Any]:
    return {
        "series": data_point.series.name,
        "x": data_point.x,
        "y": data_point.y,
        "low": data_point.low,
        "high": data_point.high,
        "row": data_point.label,
        "what": data_point.description,
        "href": f"{_BASE}#point-{data_point.point}",
    }


def _text(label: Label, x: Any, y: Any) -> Any:
    data = _chart([{"x": label.x, "y": label.y, "text": label.text}])
    data_point = data.mark_text(
        aria=False, align=label.align, dx=label.dx, dy=label.dy, baseline="middle", fontSize=SMALL_PX, color=label.color
    )
    return data_point.encode(x=x, y=y, text="text:N")


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a plot in their order: names, broken into lines of `ROW_LETTERS`, and the room that they leave."""

    names: tuple[str, ...]

    def lines(self, name: str) -> list[str]:
        """Return the lines of a name."""
        return textwrap.wrap(name, ROW_LETTERS) or [name]

    @property
    def width(self) -> int:
        """Width that the names leave of a plot, in pixels."""
        return WIDTH + 50 - int(max(len(line) for name in self.names for line in self.lines(name)) * LETTER_PX)

    @property
    def height(self) -> int:
        """Height of a row in pixels."""
        return max(ROW_HEIGHT, LINE_HEIGHT * max(len(self.lines(name)) for name in self.names) + 10)

    def encoding(self) -> Any:
        """Return the encoding of the rows."""
        import altair as alt

        axis = alt.Axis(title=None, labels=False, grid=True, ticks=False, domain=False)
        return alt.Y("row:N", sort=None, scale=alt.Scale(domain=list(self.names)), axis=axis)

    def labels(self) -> list[Any]:
        """Return the layers of the names left of the plot; labels of an axis would hang from the middle of their row."""
        import altair as alt

        records = [
            {"row": name, "text": line, "dy": LINE_HEIGHT * (i - (len(lines) - 1) / 2)}
            for name in self.names
            for lines in [self.lines(name)]
            for i, line in enumerate(lines)
        ]
        layers = []
        for dy in dict.fromkeys(record["dy"] for record in records):
            base = _chart(record for record in records if record["dy"] == dy)
            texts = base.mark_text(aria=False, align="right", dy=dy, baseline="middle", fontSize=FONT_PX, color=QUIET)
            layers.append(texts.encode(x=alt.value(-8), y=self.encoding(), text="text:N"))
        return layers


def _draw_dots(figure: Figure) -> Any:
    import altair as alt

    plots = []
    for panel in figure.panels:
        layers = _dots(figure, panel)
        title = {} if panel.title is None else {"title": alt.TitleParams(panel.title, fontSize=FONT_PX, offset=6)}
        plots.append(layers.properties(**title))
    return plots[0] if len(plots) == 1 else alt.vconcat(*plots, spacing=14)


def _dots(figure: Figure, panel: Panel) -> Any:
    """Draw a panel of a dot plot: a row per mark, with its interval and its score above it."""
    import altair as alt

    rows = _Rows(tuple(dict.fromkeys(data_point.label or "" for data_point in panel.data_points)))
    of_all = _Rows(tuple(data_point.label or "" for data_point in figure.data_points))
    title = _AXIS_TITLES["score"] if panel is figure.panels[-1] else None
    row, scale = rows.encoding(), _score_scale(figure, HEIGHT)
    x = alt.X("y:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5, format=".4~g", grid=False))
    color, shape, _ = _looks(figure, has_legend=False)
    base = _chart(map(_record, panel.data_points))
    bars = base.transform_filter("isValid(datum.low)").mark_rule(aria=False, strokeWidth=2)
    points = base.mark_point(filled=True, opacity=1, size=120)
    texts = base.mark_text(aria=False, dy=-13, fontSize=SMALL_PX, color=INK)
    layers = alt.layer(
        bars.encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q", y=row, color=color),
        points.encode(x=x, y=row, color=color, shape=shape, href="href:N", description="what:N"),
        texts.encode(x=x, y=row, text=alt.Text("y:Q", format=".1f")),
        *rows.labels(),
    )
    return layers.properties(width=of_all.width, height=max(90, (rows.height + 6) * len(rows.names)))


# Dark enough for white text (contrast 4.5 and more), in the order of `PARTS`.
_PART_COLORS = tuple(TEXT_PALETTE[i] for i in (0, 1, 2, 3, 5))


def _draw_bars(figure: Figure) -> Any:
    import altair as alt

    rows = _Rows(tuple(dict.fromkeys(bar.row for bar in figure.bars)))
    row, width = rows.encoding(), rows.width
    high = max(bar.end for bar in figure.bars)
    parts = [part for part in PARTS if any(bar.part == part for bar in figure.bars)]
    colors = [_PART_COLORS[PARTS.index(part)] for part in parts]
    legend = alt.Legend(orient="top", title=None, columns=max(1, len(parts) if len(parts) < 5 else 3))
    scale = alt.Scale(domain=[0, high * 1.02], nice=False)
    axis = alt.Axis(format="$,.3~r", tickCount=4, grid=False)
    x = alt.X("start:Q", title=_AXIS_TITLES["part"], scale=scale, axis=axis)
    base = _chart(_bar_record(bar, high / width) for bar in figure.bars)
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
        *rows.labels(),
    )
    return layers.properties(width=width, height=max(60, rows.height * len(rows.names)))


def _bar_record(bar: Bar, usd_per_px: float) -> dict[str, Any]:
    """Return the record of a bar, with the name of its part inside where it fits, so that colour is not the only cue."""
    has_room = (bar.end - bar.start) / usd_per_px > len(bar.part) * LETTER_PX + 6
    return {
        "row": bar.row,
        "part": bar.part,
        "start": bar.start,
        "end": bar.end,
        "middle": (bar.start + bar.end) / 2,
        "text": bar.part if has_room else "",
        "what": bar.description,
        "href": f"{_BASE}#point-{bar.point}",
    }


# --- files ------------------------------------------------------------------------------------------------------------


def _drawing(spec: Spec) -> str:
    """Draw a specification as SVG text; the last few are cached."""
    return _drawn(json.dumps(spec))


@lru_cache(maxsize=16)
def _drawn(spec: str) -> str:
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(spec)
    return svg


_NAMED_MARK = re.compile(r'<path aria-label="([^"]*)" role="graphics-symbol"([^>]*)/>')


def draw_reliability(own: Sequence[ReliabilityBin], of_teacher: Sequence[ReliabilityBin] = ()) -> Spec:
    """Draw the reliability curves of a student and its teacher: how many answers are right, over their confidence."""
    import altair as alt

    whose = {"student": own, **({"teacher": of_teacher} if of_teacher else {})}
    records = [
        {
            **{"who": who, "sure": each.confidence, "right": each.accuracy, "n": each.n},
            "words": f"{who}: {each.n:,} answers {each.confidence:.0f} % sure, {each.accuracy:.0f} % right",
        }
        for who, bins in whose.items()
        for each in bins
    ]
    scale = alt.Scale(domain=[0, 100], nice=False)
    x, y = alt.X("sure:Q", title="Confidence (%)", scale=scale), alt.Y("right:Q", title="Right (%)", scale=scale)
    color = alt.Color("who:N", title=None, scale=alt.Scale(domain=list(whose), range=list(PALETTE[: len(whose)])))
    even = _chart([{"sure": 0, "right": 0}, {"sure": 100, "right": 100}]).mark_line(color="#999999", strokeDash=[4, 4])
    curves = _chart(records).encode(x=x, y=y, color=color)
    marks = curves.mark_point(filled=True, opacity=1, size=60).encode(description="words:N")
    chart = alt.layer(even.encode(x=x, y=y), curves.mark_line(), marks).properties(width=HEIGHT, height=HEIGHT)
    spec: Spec = chart.configure(**_config()).to_dict(validate=False)
    return spec


def figure_svg(spec: Spec, page: str = "") -> str:
    """Draw a figure as SVG text to inline; every point carries its values in ``aria-label`` and ``<title>``.

    Args:
        spec: a specification made by `figures`.
        page: address of the links before the ``#``; empty for links within the same page.
    """
    svg = _drawing(spec).replace(_BASE, html.escape(page))
    return _NAMED_MARK.sub(r'<path aria-label="\1" role="graphics-symbol"\2><title>\1</title></path>', svg)


def save(spec: Spec, path: Path) -> Path:
    """Draw a figure as SVG, PNG (twice the pixels, for sharp screens) or PDF, by the path's ending.

    The points of an SVG link into ``report.html`` beside it.

    Raises:
        UsageError: the path has another ending.
    """
    import vl_convert

    if path.suffix == ".svg":
        content = figure_svg(spec, _PAGE).encode()
    elif path.suffix == ".png":
        content = vl_convert.svg_to_png(_drawing(spec), scale=2)
    elif path.suffix == ".pdf":
        content = vl_convert.svg_to_pdf(_drawing(spec))
    else:
        raise UsageError(
            f"a figure cannot be written as {path.suffix or path.name!r}; end its name in .png, .svg or .pdf"
        )
    write_bytes(path, content)
    return path
