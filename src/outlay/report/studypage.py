"""The page of a study: one self-contained file with its figures, tables, points and receipts, and a link from each to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from outlay.grouping import short_model
from outlay.report.figures import Spec, figure_svg
from outlay.report.results import Results
from outlay.report.style import STUDY_STYLE, STYLE

MAX_FOLDED = 300
"""Up to so many points carry their receipts in the page; of more, the receipts are files beside it."""


def render_study(
    results: Results,
    tables_html: Sequence[str],
    figures: Mapping[str, Spec],
    *,
    differences: Sequence[str] = (),
    is_open: bool = False,
) -> str:
    """The whole page as HTML: no script, nothing to fetch, the figures inlined as SVG.

    A mark of a figure links to the row of its point, a row to its receipt: folded in the page up to `MAX_FOLDED` points, and a
    file ``receipts/<run>.txt`` beside it in any case.

    Args:
        results: what was studied.
        tables_html: tables, each a piece of HTML that is put in as it is.
        figures: of `outlay.report.figures.figures`.
        differences: paired differences, a line of text each.
        is_open: show the receipts unfolded, as for printing.
    """
    header = results.header
    parts = [f"<h1>{escape(header.title)}</h1>", _facts(results)]
    if header.notes:
        parts.append(_list(header.notes))
    parts.append("<h2>Figures</h2>" if figures else '<p class="quiet">No point has a test score: nothing to draw.</p>')
    if figures:
        hint = "Each mark links to its point below, and shows its values when pointed at. Charge is what a run would cost alone."
        parts.append(f'<p class="quiet">{hint}</p>')
        parts.append(f'<div class="charts">{"".join(map(_figure, figures.values()))}</div>')
    if tables_html:
        parts += ["<h2>Tables</h2>", *(f'<div class="wide" tabindex="0">{table}</div>' for table in tables_html)]
    if differences:
        parts += ["<h2>Paired differences</h2>", _list(differences)]
    is_folded = len(results.points) <= MAX_FOLDED
    parts += ["<h2>Points</h2>", _points(results, is_folded=is_folded)]
    parts += ["<h2>Receipts</h2>", _receipts(results, is_folded=is_folded, is_open=is_open)]
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
    counts = [f"{by_status.count(status):,} {status}" for status in ("ok", "na", "failed") if status in by_status]
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


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _figure(spec: Spec) -> str:
    name = escape(spec["title"]["text"])
    return f'<figure role="group" aria-label="{name}">{figure_svg(spec)}</figure>'


# --- points -----------------------------------------------------------------------------------------------------------

_HEADER = ("Task", "Strategy", "Models", "N", "Added", "Pool", "Seed", "Test", "Charge", "Labels", "Receipt")
_N_WORDS = 3


def _points(results: Results, *, is_folded: bool) -> str:
    by_id = {point.id: point for point in results.points}
    refs = sorted({ref for p in results.points for ref in (p.request.teacher, p.request.student) if ref is not None})
    short = {ref: short_model(ref, refs) for ref in refs}
    rows = [
        _row(each, by_id[each], results.left.get(each), short, is_folded=is_folded)
        for mean in means_ids(results)
        for each in mean
    ]
    head = "".join(f'<th scope="col"{_class(i)}>{name}</th>' for i, name in enumerate(_HEADER))
    body = "\n".join(rows)
    return (
        '<div class="wide" tabindex="0"><table class="points">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )
