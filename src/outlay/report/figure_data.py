"""Data of the figures of a study: which series, points and panels each layout has. Drawn by `outlay.report.figures`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from outlay.engine.outputs import PARTS
from outlay.engine.point import PointRequest
from outlay.metrics import main_score
from outlay.report.axes import have_overlap
from outlay.report.figure_parts import CROWD, Axis, Bar, DataPoint, Figure, Panel, ReferenceLine, Series
from outlay.report.frontier import CostScore, frontier, usd_to_reach
from outlay.report.grouping import short_model, variant_names
from outlay.report.palette import PALETTE, SHAPES, look
from outlay.report.results import Results
from outlay.report.scores import bars_words
from outlay.report.seed_means import SeedMean
from outlay.report.values import latency_text, measure_text, money, size_text

MAX_ROWS = 60
"""Maximum number of rows of a dot plot or bar chart; a dot plot with more becomes score over charge, a bar chart is cut."""
MAX_PANELS = 8
"""Maximum number of panels of a figure; a study with more is drawn as score over charge in one panel."""
MAX_DOT_PANELS = 4
"""Maximum number of budgets of a dot plot in a panel each; with more, marks of a plot over charge stand side by side."""
LEAST_SPAN = 1.05
"""Least ratio of two charges that a dot plot, or a table of frontiers, tells apart."""
LEAST_CHARGE = 0.01
"""Dollars below which charges are not told apart: where all labels are owned, fractions of a cent of compute are left."""
MAX_REFERENCE_LINES = 3
"""Maximum number of reference lines of a panel."""


def lay_out_figures(results: Results, seed_means: Sequence[SeedMean]) -> dict[str, Figure]:
    """Lay out the figure of each task as the header says; a task without a score has none."""
    figures = {}
    for task in results.tasks:
        scored = [mean for mean in seed_means if mean.request.task == task and mean.value is not None]
        if results.header.layout != "plain":  # a published figure has the series of the paper
            scored = [mean for mean in scored if not mean.request.is_rival]
        outputs = [results.outputs[each] for mean in scored for each in mean.ids if each in results.outputs]
        metrics = {each.metric for each in outputs if each.metric is not None}
        measure = measure_text(main_score(metrics.pop())) if len(metrics) == 1 else "test score"
        figure = _LAYOUTS[results.header.layout](scored) if scored else None
        if figure is not None:
            title = f"{task}: {figure.title}"
            has_bars = figure.kind != "bars" and any(mean.low is not None for mean in scored)
            bars = bars_words(mean.covers for mean in scored).replace(" %", "\u00a0%")
            first = [f"{measure}, 0–100"] if figure.kind != "bars" else []
            first += [seeds_text(scored) + (f", bars: {bars}" if has_bars else "")]
            figures[task] = replace(figure, title=title, notes=(*first, *figure.notes))
    return figures


def seeds_text(scored: Sequence[SeedMean]) -> str:
    """Return the text of the number of seeds: "one seed", "mean of 3 seeds", "mean of 2 to 3 seeds"."""
    fewest, most = min(mean.n_ok for mean in scored), max(mean.n_ok for mean in scored)
    return "one seed" if most == 1 else f"mean of {fewest} to {most} seeds".replace(f"{most} to ", "")


def short_count(number: float) -> str:
    """Return a count as the figures of Kang et al. 2023 write it: "100", "1K", "16.9K", "1.2M"."""
    for unit, size in (("M", 1_000_000), ("K", 1_000)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


# --- series -----------------------------------------------------------------------------------------------------------


def by_strategy(scored: Sequence[SeedMean]) -> dict[PointRequest, Series]:
    """Return the series of each seed mean by its key: the strategy, with its models where models are varied.

    One colour and shape per strategy; where models are varied, a colour per models and a shape and dash per strategy.
    """
    names = variant_names(mean.key for mean in scored)
    variants = list(dict.fromkeys(names.values()))
    apart = _varied(scored)
    extras = {mean.key: _extra(mean, apart) for mean in scored}
    varied = list(dict.fromkeys(extra for extra in extras.values() if extra))
    series = {}
    for mean in scored:
        variant, extra = names[mean.key], extras[mean.key]
        place = look(variant, variants) % len(SHAPES)
        if not varied:
            series[mean.key] = Series(variant, place, place)
        else:
            color = varied.index(extra) % (len(PALETTE) - 1) if extra else len(PALETTE) - 1
            series[mean.key] = Series(
                f"{variant}, {extra}" if extra else variant, color, place, variants.index(variant) % 3
            )
    return series


def _varied(scored: Sequence[SeedMean]) -> dict[str, set[str | None]]:
    """Return the varied fields of the requests with their values: those that distinguish series of one strategy."""
    varying = ("teacher", "student", "machine", "clock", "price_book", "dev")
    values: dict[str, set[str | None]] = {name: {_chosen(mean, name) for mean in scored} for name in varying}
    for name in ("teacher", "student"):
        # The name of a strategy says already that it has no teacher, or teaches itself.
        of_variant: dict[str, set[str | None]] = {}
        for mean in scored:
            of_variant.setdefault(mean.request.variant, set()).add(_chosen(mean, name))
        values[name] = set().union(*(of_one for of_one in of_variant.values() if len(of_one) > 1)) - {None}
    return {name: of_name for name, of_name in values.items() if len(of_name) > 1}


def _chosen(mean: SeedMean, name: str) -> str | None:
    """Return a field of a seed mean's request; a rival that reads no checkpoint has no student."""
    value: str | None = getattr(mean.request, "own_student" if name == "student" else name)
    return value


def _extra(mean: SeedMean, varied: Mapping[str, set[str | None]]) -> str:
    """Return the varied fields of a seed mean as text: "t5-xl → t5-small", "dev carved"; empty without varied fields."""
    models, parts = [], []
    for name, values in varied.items():
        value = _chosen(mean, name)
        if name in ("teacher", "student"):
            models += [] if value is None else [short_model(value, [ref for ref in values if ref is not None])]
        else:
            parts.append(f"{name.replace('_', ' ')} {'none' if value is None else value[:12]}")
    return ", ".join([" → ".join(models), *parts] if models else parts)


def by_pool(scored: Sequence[SeedMean]) -> dict[PointRequest, Series]:
    """Return the series of each seed mean by its key: the number of unlabelled rows, "U = 0 (annotate)" or "U = 10K"."""
    sizes = {mean.key: _n_unlabelled(mean) for mean in scored}
    of_size: dict[int, set[str]] = {}
    for mean in scored:
        of_size.setdefault(sizes[mean.key], set()).add(mean.request.variant)
    names = {
        mean.key: f"U = {short_count(sizes[mean.key])}"
        + (f" ({mean.request.variant})" if sizes[mean.key] == 0 or len(of_size[sizes[mean.key]]) > 1 else "")
        for mean in scored
    }
    order = [names[mean.key] for mean in sorted(scored, key=lambda mean: sizes[mean.key])]
    places = {name: i for i, name in enumerate(dict.fromkeys(order))}
    # Annotation has the same colour in every figure; the pools take the other colours.
    free = [1, 0, *range(2, len(PALETTE))]
    looks = {name: free[i % len(free)] for name, i in places.items()}
    return {key: Series(name, looks[name], looks[name]) for key, name in names.items()}


def _n_unlabelled(mean: SeedMean) -> int:
    return sum(n_rows for _, n_rows in mean.request.pool) if mean.n_pool else 0


def row_names(scored: Sequence[SeedMean], *, with_budget: bool = True) -> dict[PointRequest, str]:
    """Return the row name of each seed mean: its series, with N, budget and pool where these vary within the series.

    ``with_budget``: False for rows of panels by budget, which differ by what varies within the series at a budget.
    """
    series = by_strategy(scored)
    names = {}
    for mean in scored:
        own = [
            other.request
            for other in scored
            if series[other.key] == series[mean.key]
            and (with_budget or other.request.budget_usd == mean.request.budget_usd)
        ]
        parts = [series[mean.key].name]
        if len({request.n_initial for request in own}) > 1 and mean.request.n_initial is not None:
            parts.append(f"N = {short_count(mean.request.n_initial)}")
        if len({request.budget_usd for request in own if request.n_initial == mean.request.n_initial}) > 1:
            parts.append(money(mean.request.budget_usd))
        if len({request.pool for request in own}) > 1:
            parts.append(f"U = {short_count(_n_unlabelled(mean))}")
        names[mean.key] = ", ".join(parts)
    return names


# --- points -----------------------------------------------------------------------------------------------------------


def describe(mean: SeedMean, name: str) -> str:
    """Return a seed mean in words: "distill; charge: $200.35; test: 79.70; 95 % interval: 78.01 to 81.20; …; seeds: 3"."""
    request = mean.request
    parts = [
        name,
        f"charge: {money(mean.charge_usd)}",
        f"test: {mean.value:.2f}",
        None if mean.low is None else f"95 % interval: {mean.low:.2f} to {mean.high:.2f}",
        None if request.n_initial is None else f"N: {request.n_initial:,}",
        None if request.added_usd is None else f"added: {money(request.added_usd)}",
        None if mean.size_mb is None else f"MB: {size_text(mean.size_mb)}",
        None if mean.latency_ms is None else f"ms a row: {latency_text(mean.latency_ms)}",
        f"labels: {mean.n_labels:,.0f}",
        f"pool rows: {mean.n_pool:,.0f}" if mean.n_pool else None,
        f"seeds: {mean.n_ok}" if mean.n_ok == mean.n_seeds else f"seeds: {mean.n_ok} of {mean.n_seeds}",
    ]
    return "; ".join(part for part in parts if part is not None)


def _data_points(
    scored: Sequence[SeedMean],
    series: dict[PointRequest, Series],
    x_of: Callable[[SeedMean], float | None],
    label_of: Callable[[SeedMean], str | None] = lambda _: None,
) -> tuple[DataPoint, ...]:
    """Return a point for each seed mean that has an x; leave out the others."""
    data_points = []
    for mean in scored:
        x, own = x_of(mean), series[mean.key]
        if x is not None and mean.value is not None:
            text = describe(mean, own.name)
            data_points.append(DataPoint(own, x, mean.value, mean.low, mean.high, label_of(mean), text, mean.ids[0]))
    return tuple(data_points)


def _omission_note(scored: Sequence[SeedMean], panels: Iterable[Panel], why: str) -> tuple[str, ...]:
    n_lost = len(scored) - sum(len(panel.data_points) for panel in panels)
    return (f"{n_lost} of {len(scored)} marks are left out: {why}",) if n_lost else ()


# --- layouts ----------------------------------------------------------------------------------------------------------

_LABELS_NOTE = "beside a mark: its labels"
_NO_COST = "they cost nothing, and the axis is logarithmic"


def _over_charge(
    scored: Sequence[SeedMean],
    title: str,
    *,
    series_of: Callable[[Sequence[SeedMean]], dict[PointRequest, Series]] = by_strategy,
    is_joined: bool = False,
    labels_note: str | None = None,
    has_front: bool = False,
) -> Figure | None:
    """Lay out score over charge in one panel, with the labels of each point where a note says so; None without a charge."""
    label_of = _n_label if labels_note else lambda _: None
    data_points = _data_points(scored, series_of(scored), lambda mean: mean.charge_usd or None, label_of)
    if not data_points:
        return None
    front = frontier([CostScore("", each.x, each.y) for each in data_points] if has_front else []).front
    panel = Panel(None, data_points, tuple((each.charge_usd, each.score) for each in front))
    legend = [labels_note] if labels_note else []
    legend += ["dashed: Pareto frontier, interpolated on log cost"] if len(front) > 1 else []
    notes = (*legend, *_omission_note(scored, [panel], _NO_COST))
    figure = Figure("scatter", title, notes, "charge", (panel,), is_log=True, is_joined=is_joined)
    # Labels are placed beside the costs themselves.
    if labels_note or len(data_points) > CROWD or not have_overlap(figure):
        return figure
    return replace(figure, notes=(*notes, "series side by side, a little off their cost"), is_dodged=True)


def _n_label(mean: SeedMean) -> str | None:
    return None if mean.n_labels is None else short_count(mean.n_labels)


def _budgets(scored: Sequence[SeedMean]) -> Figure | None:
    """Lay out Tables 2 and 11: score over added budget, one panel per N."""
    title, series = "what is added to N labels", by_strategy(scored)
    axis: Axis = "added" if all(mean.request.added_usd is not None for mean in scored) else "budget"
    sizes = sorted({mean.request.n_initial for mean in scored}, key=lambda n: (n is None, n))
    if len(sizes) > MAX_PANELS:
        return _over_charge(scored, title)
    panels = []
    for n in sizes:
        of_size = [mean for mean in scored if mean.request.n_initial == n]
        data_points = _data_points(of_size, series, lambda mean: getattr(mean.request, f"{axis}_usd"))
        panels.append(Panel("N by rule" if n is None else f"N = {n:,}", data_points))
    return Figure("scatter", title, (), axis, tuple(panels), is_joined=True)


def _initial(scored: Sequence[SeedMean]) -> Figure | None:
    """Lay out Figure 3: score over N, one panel per added budget."""
    title, series = "starting labels at a fixed added budget", by_strategy(scored)
    fixed = [mean for mean in scored if mean.request.n_initial is not None]
    added = sorted({mean.request.added_usd or 0.0 for mean in fixed})
    if len(added) > MAX_PANELS:
        return _over_charge(scored, title)
    panels = []
    for usd in added:
        of_budget = [mean for mean in fixed if (mean.request.added_usd or 0.0) == usd]
        data_points = _data_points(of_budget, series, lambda mean: mean.request.n_initial)
        panels.append(Panel(f"{money(usd)} added", data_points))
    notes = _omission_note(scored, panels, "their N is chosen by rule")
    return Figure("scatter", title, notes, "labels", tuple(panels), is_log=True, is_joined=True) if panels else None


def _match(scored: Sequence[SeedMean]) -> Figure | None:
    """Lay out Table 4: the annotation curve, with a line from each distillation to the charge of the same score."""
    title = "what annotation costs to match distillation"
    figure = _over_charge(scored, title, is_joined=True, labels_note=_LABELS_NOTE)
    if figure is None:
        return None
    (panel,) = figure.panels
    curve = sorted((m.x, m.y) for m in panel.data_points if m.series.name.startswith("annotate"))
    others = sorted((m for m in panel.data_points if not m.series.name.startswith("annotate")), key=lambda m: -m.y)
    if not curve or not others:
        return figure
    lines = tuple(_reference_line(data_point, curve) for data_point in others[:MAX_REFERENCE_LINES])
    notes = (_LABELS_NOTE, "dotted: to where annotation scores as much", *figure.notes[1:])
    return replace(figure, panels=(replace(panel, reference_lines=lines),), notes=notes)


def _reference_line(data_point: DataPoint, curve: Sequence[tuple[float, float]]) -> ReferenceLine:
    end = usd_to_reach(data_point.y, curve)
    if end is not None:
        return ReferenceLine(data_point.y, data_point.x, end, f"matched at {money(end)}")
    dearest = curve[-1][0]
    text = f"not matched by {money(dearest)} of annotation"
    return ReferenceLine(data_point.y, data_point.x, max(dearest, data_point.x), text)


def _plain(scored: Sequence[SeedMean]) -> Figure | None:
    """Lay out a plain comparison: score over charge where charges differ and no mark hides another, else a dot plot by budget."""
    figure = _over_charge(scored, "what a score costs", has_front=True)
    budgets = sorted({mean.request.budget_usd for mean in scored})
    charges = [mean.charge_usd or 0.0 for mean in scored]
    have_span = max(charges) >= LEAST_CHARGE and max(charges) > LEAST_SPAN * min(charges)
    if figure is not None and have_span and not figure.is_dodged:
        return figure
    if len(budgets) > MAX_DOT_PANELS or len(scored) > MAX_ROWS:
        return figure
    series, names = by_strategy(scored), row_names(scored, with_budget=False)
    has_charges = len(budgets) == 1 and have_span
    rows = {mean.key: names[mean.key] + (f": {money(mean.charge_usd)}" if has_charges else "") for mean in scored}
    panels = []
    for usd in budgets:
        of_budget = [mean for mean in scored if mean.request.budget_usd == usd]
        data_points = _data_points(of_budget, series, lambda mean: mean.value, lambda mean: rows[mean.key])
        panels.append(Panel(f"{money(usd)} in all" if len(budgets) > 1 else None, data_points))
    title = f"test score at {money(budgets[0])}" if len(budgets) == 1 else "test score by budget"
    notes = ("behind a name: its charge",) if has_charges else ()
    return Figure("dots", title, notes, "score", tuple(panels))


def _dots(scored: Sequence[SeedMean], title: str) -> Figure | None:
    if len(scored) > MAX_ROWS:
        return _over_charge(scored, title)
    names = row_names(scored)
    data_points = _data_points(scored, by_strategy(scored), lambda mean: mean.value, lambda mean: names[mean.key])
    return Figure("dots", title, (), "score", (Panel(None, data_points),))


def _costs(scored: Sequence[SeedMean]) -> Figure | None:
    """Lay out Table 6: each charge by its parts."""
    with_parts = [mean for mean in scored if mean.charges_usd is not None]
    shown = with_parts[:MAX_ROWS]
    names, bars = row_names(shown), []
    for mean in shown:
        start = 0.0
        for part in PARTS:
            usd = (mean.charges_usd or {}).get(part, 0.0)
            if usd > 0:
                text = f"{names[mean.key]}; {part}: {money(usd)}; of charge: {money(mean.charge_usd)}"
                bars.append(Bar(names[mean.key], part, start, start + usd, text, mean.ids[0]))
            start += usd
    notes = (f"the first {MAX_ROWS} of {len(with_parts)} rows",) if len(with_parts) > MAX_ROWS else ()
    return Figure("bars", "what a charge is made of", notes, "part", bars=tuple(bars)) if bars else None


_LAYOUTS: dict[str, Callable[[Sequence[SeedMean]], Figure | None]] = {
    "budgets": _budgets,
    "self": partial(_dots, title="self-distillation at an equal pool"),
    "match": _match,
    "costs": _costs,
    "general": partial(_dots, title="general distillation"),
    "pool": partial(
        _over_charge,
        title="labels × unlabelled rows",
        series_of=by_pool,
        labels_note=f"{_LABELS_NOTE}; U: its unlabelled rows",
        has_front=True,
    ),
    "initial": _initial,
    "students": partial(_over_charge, title="student sizes", is_joined=True),
    "teachers": partial(_over_charge, title="teacher sizes", is_joined=True),
    "llm": partial(
        _over_charge, title="labels of people and of a language model", is_joined=True, labels_note=_LABELS_NOTE
    ),
    "plain": _plain,
}
