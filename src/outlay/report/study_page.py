"""The page of a study: one self-contained HTML file with linked figures, tables, points and receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import STATUSES, Point
from outlay.report.figures import Spec, figure_svg
from outlay.report.grouping import lines_on_strategies, short_model, variant_names
from outlay.report.results import Results
from outlay.report.seed_means import by_seed
from outlay.report.style import STYLE
from outlay.report.values import ABSENT, money

MAX_FOLDED = 300
"""Maximum number of points with receipts in the page; with more, receipts are only files beside the page."""


def render_study(
    results: Results,
    tables_html: Sequence[str],
    figures: Mapping[str, Spec],
    summary: Sequence[str] = (),
    quality: Sequence[str] = (),
) -> str:
    """Return the page of a study as HTML without scripts or external files, with its figures inlined as SVG.

    A point of a figure links to its row, and a row to its receipt: folded in the page up to `MAX_FOLDED` points, and always as
    a file ``receipts/<run>.txt`` beside the page.

    Args:
        results: the results of the study.
        tables_html: the tables as HTML, inserted unchanged.
        figures: specifications by name, from `outlay.report.figures.figures`.
        summary: lines of the summary, from `outlay.report.recommendation`.
        quality: sections on where models are right and wrong, from `outlay.report.quality_section`, as HTML.
    """
    header = results.header
    parts = [f"<h1>{escape(header.title)}</h1>", _facts(results)]
    if header.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in header.notes) + "</ul>")
    if summary:
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in summary) + "</ul>")
    if told := lines_on_strategies(point.request for point in results.points):
        parts.append('<ul class="notes">' + "".join(f"<li>{escape(line)}</li>" for line in told) + "</ul>")
    parts.append("<h2>Figures</h2>" if figures else '<p class="quiet">No point has a test score: nothing to draw.</p>')
    if figures:
        hint = "Each mark links to its point below, and shows its values when pointed at. Charge is what a run would cost alone."
        parts.append(f'<p class="quiet">{hint}</p>')
        names = [escape(spec["title"]["text"]) for spec in figures.values()]
        drawn = zip(names, map(figure_svg, figures.values()), strict=True)
        charts = "".join(f'<figure role="group" aria-label="{name}">{svg}</figure>' for name, svg in drawn)
        parts.append(f'<div class="charts">{charts}</div>')
    if tables_html:
        parts += ["<h2>Tables</h2>", *(f'<div class="wide" tabindex="0">{table}</div>' for table in tables_html)]
    parts += quality
    named = _named_points(results)
    is_folded = len(named) <= MAX_FOLDED
    parts += ["<h2>Points</h2>", _points(named, is_folded=is_folded)]
    parts += ["<h2>Receipts</h2>", _receipts(named, is_folded=is_folded)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(header.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _facts(results: Results) -> str:
    header = results.header
    by_status = [point.result.status for point in results.points]
    counts = [f"{by_status.count(status):,} {status}" for status in STATUSES if status in by_status]
    facts = {
        "Study": header.name,
        "Follows": header.source,
        "Scale": header.scale,
        "Tasks": ", ".join(results.tasks),
        "Points": f"{len(results.points):,} ({', '.join(counts)})" if counts else "none",
    }
    rows = [f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value]
    if header.command:
        rows.append(f"<dt>Made by</dt><dd><code>{escape(header.command)}</code></dd>")
    return f'<dl class="facts">{"".join(rows)}</dl>'


# --- points -----------------------------------------------------------------------------------------------------------


_NamedPoint = tuple[Point, str, RunOutputs | None]
"""A point, its name, and the outputs of its run."""


def _named_points(results: Results) -> list[_NamedPoint]:
    """Return the points, seeds of a request together, with names: "fever, distill, t5-xxl → t5-small, N = 1,000, …, seed 0"."""
    requests = [point.request for point in results.points]
    refs = {ref for request in requests for ref in (request.teacher, request.student) if ref is not None}
    short = {ref: short_model(ref, refs) for ref in refs}
    points = [point for seeds in by_seed(results.points) for point in seeds]
    names = variant_names(requests)
    return [(point, _name(point, names[point.request], short), results.outputs.get(point.id)) for point in points]


def _points(named: Sequence[_NamedPoint], *, is_folded: bool) -> str:
    """Return the table of the points; four columns, so that it fits a phone."""
    rows = []
    for point, name, outputs in named:
        link = _receipt_link(outputs, is_folded=is_folded)
        cells = f'<td class="name">{escape(name)}</td>{_found(point)}<td class="link">{link}</td>'
        rows.append(f'<tr id="point-{point.id}">{cells}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Point", "Test", "Charge"))
    body = "\n".join(rows)
    return (
        '<div class="wide"><table class="points">\n'
        f'<thead><tr>{head}<th scope="col" class="link">Receipt</th></tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def _name(point: Point, variant: str, short: Mapping[str, str]) -> str:
    request = point.request
    is_pooled = point.result.n_pool > 0
    parts = [
        request.task,
        variant,
        " → ".join(short[ref] for ref in (request.teacher, request.own_student) if ref is not None),
        None if request.n_initial is None else f"N = {request.n_initial:,}",
        f"{money(request.budget_usd)} in all" if request.added_usd is None else None,
        f"{money(request.added_usd)} added" if request.added_usd else None,
        f"pool of {sum(n_rows for _, n_rows in request.pool):,}" if is_pooled else None,
        f"seed\u00a0{request.seed}",
    ]
    return ", ".join(part for part in parts if part)


def _found(point: Point) -> str:
    result = point.result
    if result.test is None:
        why = f"{result.status}: {result.reason or 'no reason given'}"
        return f'<td class="reason" colspan="2">{escape(why)}</td>'
    return f"<td>{result.test:.1f}</td><td>{money(result.charge_usd)}</td>"


def _receipt_link(outputs: RunOutputs | None, *, is_folded: bool) -> str:
    if outputs is None or outputs.receipt is None:
        return ABSENT
    file = f"receipts/{escape(outputs.run)}.txt"
    if not is_folded:
        return f'<a href="{file}">receipt</a>'
    return f'<a href="#receipt-{escape(outputs.run)}">receipt</a> <a href="{file}">file</a>'


# --- receipts ---------------------------------------------------------------------------------------------------------


def _receipts(named: Sequence[_NamedPoint], *, is_folded: bool) -> str:
    where = '<p class="quiet">Each lies beside this page as a file, <code>receipts/&lt;run&gt;.txt</code>.</p>'
    if not is_folded:
        return where
    folded = [
        _receipt(point.id, name, outputs.run, outputs.receipt)
        for point, name, outputs in named
        if outputs is not None and outputs.receipt is not None
    ]
    return f'{where}\n<div class="receipts">\n' + "\n".join(folded) + "\n</div>"


def _receipt(point: str, name: str, run: str, text: str) -> str:
    """Return a folded receipt; a link to its text unfolds it, as HTML requires of a fragment in closed details."""
    return (
        f"<details><summary>{escape(name)}</summary>"
        f'<p class="quiet">Run {escape(run)} of <a href="#point-{point}">its point</a></p>'
        f'<pre id="receipt-{escape(run)}">{escape(text)}</pre></details>'
    )
