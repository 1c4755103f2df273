"""The page of a study: one self-contained HTML file with linked figures, tables, points and receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import STATUSES, Point
from outlay.report.figures import Spec, figure_svg
from outlay.report.grouping import short_model
from outlay.report.results import Results
from outlay.report.seed_means import by_seed
from outlay.report.style import STUDY_STYLE, STYLE
from outlay.report.values import ABSENT, money

MAX_FOLDED = 300
"""Maximum number of points with receipts in the page; with more, receipts are only files beside the page."""


def render_study(
    results: Results,
    tables_html: Sequence[str],
    figures: Mapping[str, Spec],
) -> str:
    """Return the page of a study as HTML without scripts or external files, with its figures inlined as SVG.

    A point of a figure links to its row, and a row to its receipt: folded in the page up to `MAX_FOLDED` points, and always as
    a file ``receipts/<run>.txt`` beside the page.

    Args:
        results: the results of the study.
        tables_html: the tables as HTML, inserted unchanged.
        figures: specifications by name, from `outlay.report.figures.figures`.
    """
    header = results.header
    parts = [f"<h1>{escape(header.title)}</h1>", _facts(results)]
    if header.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in header.notes) + "</ul>")
    parts.append("<h2>Figures</h2>" if figures else '<p class="quiet">No point has a test score: nothing to draw.</p>')
    if figures:
        hint = "Each mark links to its point below, and shows its values when pointed at. Charge is what a run would cost alone."
        parts.append(f'<p class="quiet">{hint}</p>')
        parts.append(f'<div class="charts">{"".join(map(_figure, figures.values()))}</div>')
    if tables_html:
        parts += ["<h2>Tables</h2>", *(f'<div class="wide" tabindex="0">{table}</div>' for table in tables_html)]
    is_folded = len(results.points) <= MAX_FOLDED
    parts += ["<h2>Points</h2>", _points(results, is_folded=is_folded)]
    parts += ["<h2>Receipts</h2>", _receipts(results, is_folded=is_folded)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(header.title)}</title>\n<style>{STYLE}{STUDY_STYLE}</style>\n</head>\n<body>\n"
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


def _figure(spec: Spec) -> str:
    name = escape(spec["title"]["text"])
    return f'<figure role="group" aria-label="{name}">{figure_svg(spec)}</figure>'


# --- points -----------------------------------------------------------------------------------------------------------


def _points(results: Results, *, is_folded: bool) -> str:
    """Return the table of the points, seeds of a request together; four columns, so that it fits a phone."""
    names = _names(results.points)
    rows = []
    for seeds in by_seed(results.points):
        for point in seeds:
            link = _receipt_link(results.outputs.get(point.id), is_folded=is_folded)
            cells = f'<td class="name">{escape(names[point.id])}</td>{_found(point)}<td class="link">{link}</td>'
            rows.append(f'<tr id="point-{point.id}">{cells}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Point", "Test", "Charge"))
    body = "\n".join(rows)
    return (
        '<div class="wide"><table class="points">\n'
        f'<thead><tr>{head}<th scope="col" class="link">Receipt</th></tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def _names(points: Sequence[Point]) -> dict[str, str]:
    """Return the name of each point by its id: "fever, distill, t5-xxl → t5-small, N = 1,000, $100.00 added, …, seed 0"."""
    refs = {ref for point in points for ref in (point.request.teacher, point.request.student) if ref is not None}
    short = {ref: short_model(ref, refs) for ref in refs}
    return {point.id: _name(point, short) for point in points}


def _name(point: Point, short: Mapping[str, str]) -> str:
    request = point.request
    is_pooled = point.result.n_pool > 0
    parts = [
        request.task,
        request.variant,
        " → ".join(short[ref] for ref in (request.teacher, request.student) if ref is not None),
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


def _receipts(results: Results, *, is_folded: bool) -> str:
    where = "Each lies beside this page as a file, <code>receipts/&lt;run&gt;.txt</code>."
    if not is_folded:
        return f'<p class="quiet">{where}</p>'
    names = _names(results.points)
    folded = [
        _receipt(point.id, names[point.id], outputs)
        for seeds in by_seed(results.points)
        for point in seeds
        if (outputs := results.outputs.get(point.id)) is not None and outputs.receipt is not None
    ]
    return f'<p class="quiet">{where}</p>\n<div class="receipts">\n' + "\n".join(folded) + "\n</div>"


def _receipt(point: str, name: str, outputs: RunOutputs) -> str:
    """Return a folded receipt; a link to its text unfolds it, as HTML requires of a fragment in closed details."""
    return (
        f"<details><summary>{escape(name)}</summary>"
        f'<p class="quiet">Run {escape(outputs.run)} of <a href="#point-{point}">its point</a></p>'
        f'<pre id="receipt-{escape(outputs.run)}">{escape(outputs.receipt or "")}</pre></details>'
    )
