"""The frontier chart: what a score costs, drawn from a :class:`~outlay.report.comparison.Comparison`.

A chart is a Vega-Lite specification (a dict) first; :func:`save_chart` draws it, without a browser or a network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from outlay.errors import DataError, UsageError
from outlay.report.comparison import Comparison, Row, money
from outlay.report.frontier import CostScore
from outlay.report.scores import bars_words
from outlay.storage.files import write_bytes

WIDTH, HEIGHT = 620, 380
FONT = "Helvetica, Arial, sans-serif"
FONT_PX = 14
LETTER_PX = 7.2  # mean width of a letter at FONT_PX
SUBTITLE_LETTERS = 100  # what fits on one line
LABEL_GAP_PX = 12
INK, QUIET, GRID = "#222222", "#666666", "#e6e6e6"

# Okabe & Ito (2008): eight colours that people with any colour vision tell apart; the yellow is too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# The same hues, dark enough for words on white (contrast 4.5 and more).
TEXT_PALETTE = ("#0072B2", "#B34D00", "#007A57", "#9A4C7B", "#2273A8", "#8A6000", "#000000")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
# These keep colour and shape from chart to chart; any other strategy takes the next free pair.
KNOWN = ("distill", "annotate", "self_distill", "llm_annotate", "distill (N by rule)", "mix", "planned")


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis: its ends in data units and its length in pixels."""

    low: float
    high: float
    length_px: float

    def px(self, value: float) -> float:
        """Distance of a value from the low end."""
        return (value - self.low) / (self.high - self.low) * self.length_px


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
    """A strategy's name beside one of its points: data coordinates, offset in pixels (Vega-Lite's, y downwards)."""

    text: str
    charge_usd: float
    score: float
    align: str
    dx: float
    dy: float


def frontier_spec(comparison: Comparison, title: str | None = None) -> dict[str, Any]:
    """The Vega-Lite specification of score over charge, one mark per strategy and budget.

    Error bars are the rows' 95 % intervals. The dashed line joins the frontier. A strategy is named beside one of its
    marks where its name fits without covering anything; a legend stands above the chart when a name found no place.

    Raises:
        DataError: no row has a score.
    """
    import altair as alt

    rows = [row for row in comparison.rows if row.spot is not None]
    if not rows:
        raise DataError(f"no point of {comparison.task} has a test score; there is nothing to draw")
    x_scale, y_scale = scales(rows)
    labels = place_labels(rows, comparison.frontier.front, x_scale, y_scale)
    strategies = list(dict.fromkeys(row.label for row in rows))
    looks = [look(name, strategies) for name in strategies]
    colors, shapes = [PALETTE[i] for i in looks], [SHAPES[i] for i in looks]
    has_legend = len(labels) < len(strategies)
    legend = alt.Legend(orient="top", title=None, labelLimit=0, symbolStrokeWidth=0) if has_legend else None
    color = alt.Color("strategy:N", scale=alt.Scale(domain=strategies, range=colors), legend=legend)
    shape = alt.Shape("strategy:N", scale=alt.Scale(domain=strategies, range=shapes), legend=legend)
    x = alt.X(
        "charge_usd:Q",
        title="Charge (US dollars)",
        scale=alt.Scale(domain=[x_scale.low, x_scale.high], nice=False, zero=False),
        axis=alt.Axis(format="$,.3~r" if x_scale.high < 10 else "$,.0f", tickCount=6, grid=False),
    )
    y = alt.Y(
        "score:Q",
        title=f"Test {comparison.measure or 'score'} (0–100)",
        scale=alt.Scale(domain=[y_scale.low, y_scale.high], nice=False, zero=False),
        axis=alt.Axis(tickCount=6, format="~f"),
    )
    base = alt.Chart(alt.Data(values=[_record(row) for row in rows]))
    front = [{"charge_usd": spot.charge_usd, "score": spot.score} for spot in comparison.frontier.front]
    layers: list[Any] = [
        alt.Chart(alt.Data(values=front)).mark_line(**_FRONT_LINE).encode(x=x, y=y),
        base.mark_rule(strokeWidth=2).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color),
        base.mark_point(size=150, filled=True, opacity=1).encode(x=x, y=y, color=color, shape=shape),
    ]
    layers += [
        alt.Chart(alt.Data(values=[{"charge_usd": each.charge_usd, "score": each.score, "strategy": each.text}]))
        .mark_text(align=each.align, dx=each.dx, dy=each.dy, baseline="middle", fontSize=FONT_PX, fontWeight=600)
        .encode(x=x, y=y, text="strategy:N", color=alt.value(TEXT_PALETTE[looks[strategies.index(each.text)]]))
        for each in labels
    ]
    heading = title or f"{comparison.task}: what a score costs"
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=_title(comparison, heading))
    spec: dict[str, Any] = chart.configure(**CONFIG).to_dict()
    return spec


# A step: up to the next dearer point of the frontier, the money buys what the last one bought.
_FRONT_LINE: dict[str, Any] = {"interpolate": "step-after", "color": QUIET, "strokeDash": [5, 4], "strokeWidth": 1.5}

CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": "white",
    "padding": 14,
    "view": {"stroke": None},
    "axis": {
        **{"labelFontSize": FONT_PX, "titleFontSize": FONT_PX, "titleFontWeight": "normal", "titlePadding": 10},
        **{"labelColor": QUIET, "titleColor": INK, "gridColor": GRID, "domainColor": "#999999", "tickColor": "#999999"},
    },
    "legend": {"labelFontSize": FONT_PX, "labelColor": INK, "symbolSize": 150},
    "title": {
        **{"anchor": "start", "fontSize": 18, "fontWeight": 600, "color": INK, "offset": 12},
        **{"subtitleFontSize": FONT_PX, "subtitleColor": QUIET, "subtitlePadding": 6},
    },
}


def _title(comparison: Comparison, heading: str) -> dict[str, Any]:
    n_seeds = max(row.n_ok for row in comparison.rows)
    seeds = f"mean of {n_seeds} seeds" if n_seeds > 1 else "one seed"
    has_bars = any(row.test is not None and row.test.bounds is not None for row in comparison.rows)
    bars = (
        f", bars: {bars_words(row.test.covers for row in comparison.rows if row.test is not None)}" if has_bars else ""
    )
    front = "dashed: the frontier (nothing is cheaper and better)"
    whole = f"{seeds}{bars}, {front}"
    return {"text": heading, "subtitle": whole if len(whole) <= SUBTITLE_LETTERS else [f"{seeds}{bars}", front]}


def _record(row: Row) -> dict[str, Any]:
    assert row.test is not None
    return {
        "strategy": row.label,
        "budget": money(row.budget_usd),
        "charge_usd": row.charge_usd,
        "score": row.test.mean,
        "low": row.test.low,
        "high": row.test.high,
    }


def look(name: str, strategies: Sequence[str]) -> int:
    """Place of a strategy in the palettes and shapes."""
    if name in KNOWN:
        return KNOWN.index(name)
    free = [i for i, known in enumerate(KNOWN) if known not in strategies] or list(range(len(KNOWN)))
    return free[[each for each in strategies if each not in KNOWN].index(name) % len(free)]


def scales(rows: Sequence[Row]) -> tuple[Scale, Scale]:
    """Axes that hold every mark and bar with a margin; neither has to start at zero."""
    charges = [row.charge_usd for row in rows if row.charge_usd is not None]
    lows = [row.test.low for row in rows if row.test is not None]
    highs = [row.test.high for row in rows if row.test is not None]
    span_usd = max(max(charges) - min(charges), 0.1 * max(charges), 0.001)
    x_low = max(0.0, min(charges) - 0.3 * span_usd)
    span = max(max(highs) - min(lows), 2.0)
    return (
        Scale(x_low, max(charges) + 0.3 * span_usd, WIDTH),
        Scale(max(0.0, min(lows) - 0.12 * span), min(100.0, max(highs) + 0.12 * span), HEIGHT),
    )


def place_labels(rows: Sequence[Row], front: Sequence[CostScore], x_scale: Scale, y_scale: Scale) -> list[Label]:
    """Greedy placement: for each strategy the first place beside one of its marks that covers nothing.

    Marks are tried from the dearest down; to the right, to the left, above, below. A strategy whose name fits nowhere
    is left out.
    """
    taken = [_mark_box(row, x_scale, y_scale) for row in rows] + _line_boxes(front, x_scale, y_scale)
    labels = []
    for strategy in dict.fromkeys(row.label for row in rows):
        own = sorted((row for row in rows if row.label == strategy), key=lambda row: -(row.charge_usd or 0.0))
        for label, box in (pair for row in own for pair in _candidates(row, x_scale, y_scale)):
            is_inside = box.left >= 0 and box.bottom >= 0 and box.right <= WIDTH and box.top <= HEIGHT
            if is_inside and not any(box.meets(other) for other in taken):
                labels.append(label)
                taken.append(box)
                break
    return labels


def _line_boxes(front: Sequence[CostScore], x_scale: Scale, y_scale: Scale) -> list[Box]:
    boxes = []
    for spot, dearer in pairwise(front):
        left, right = x_scale.px(spot.charge_usd), x_scale.px(dearer.charge_usd)
        low, high = y_scale.px(spot.score), y_scale.px(dearer.score)
        boxes += [Box(left, low - 1, right, low + 1), Box(right - 1, low, right + 1, high)]
    return boxes


def _mark_box(row: Row, x_scale: Scale, y_scale: Scale) -> Box:
    assert row.test is not None
    assert row.charge_usd is not None
    x, y = x_scale.px(row.charge_usd), y_scale.px(row.test.mean)
    low, high = y_scale.px(row.test.low), y_scale.px(row.test.high)
    return Box(x - 8, min(low, y - 8), x + 8, max(high, y + 8))


def _candidates(row: Row, x_scale: Scale, y_scale: Scale) -> list[tuple[Label, Box]]:
    assert row.test is not None
    assert row.charge_usd is not None
    x, y = x_scale.px(row.charge_usd), y_scale.px(row.test.mean)
    mark = _mark_box(row, x_scale, y_scale)
    width, half_height = len(row.label) * LETTER_PX, FONT_PX * 0.6
    above, below = mark.top + LABEL_GAP_PX - y, mark.bottom - LABEL_GAP_PX - y
    places = (
        ("left", LABEL_GAP_PX, 0.0),
        ("right", -LABEL_GAP_PX, 0.0),
        ("center", 0.0, above),
        ("center", 0.0, below),
    )
    candidates = []
    for align, dx, up in places:
        left = x + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
        box = Box(left, y + up - half_height, left + width, y + up + half_height)
        candidates.append((Label(row.label, row.charge_usd, row.test.mean, align, dx, -up), box))
    return candidates


def chart_svg(spec: dict[str, Any]) -> str:
    """The drawing as SVG text; of the last few specifications it is drawn once."""
    return _drawn(json.dumps(spec))


@lru_cache(maxsize=16)
def _drawn(spec: str) -> str:
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(spec)
    return svg


def save_chart(spec: dict[str, Any], path: Path) -> Path:
    """Draw a specification as PNG (twice the pixels, for sharp screens) or SVG, by the path's ending.

    Raises:
        UsageError: another ending.
    """
    import vl_convert

    if path.suffix == ".svg":
        content = chart_svg(spec).encode()
    elif path.suffix == ".png":
        content = vl_convert.vegalite_to_png(spec, scale=2)
    else:
        raise UsageError(f"a chart cannot be written as {path.suffix or path.name!r}; end its name in .png or .svg")
    write_bytes(path, content)
    return path
