"""One self-contained page: chart, table, differences and receipts in a file that asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from outlay.report.charts import chart_svg, frontier_spec
from outlay.report.comparison import Comparison, difference_text, grid, legend, on_front
from outlay.report.style import STYLE
from outlay.storage.files import write_text


def render_page(
    comparison: Comparison,
    receipts: Mapping[str, str] | None = None,
    title: str | None = None,
    *,
    is_open: bool = False,
) -> str:
    """The whole page as HTML: no script, no link to fetch, the chart inlined as SVG.

    Args:
        comparison: what the chart, the table and the lists show.
        receipts: heading -> plain text of a receipt; each folds out.
        title: heading of the page; the task by default.
        is_open: show the receipts unfolded, as for printing.
    """
    heading = title or f"{comparison.task}: what a score costs"
    parts = [
        f"<h1>{escape(heading)}</h1>",
        '<p class="quiet">Charge is what a run would cost bought alone; cash is what left the bank this time. '
        "Marked rows are on the frontier: nothing is cheaper and better.</p>",
        _figure(comparison),
        "<h2>Scores</h2>",
        _table(comparison),
    ]
    if words := legend(comparison):
        parts.append(f'<p class="quiet">{escape(words)}</p>')
    if comparison.differences:
        parts += ["<h2>Paired differences</h2>", _list([difference_text(row) for row in comparison.differences])]
    if comparison.remarks:
        parts += ["<h2>What these scores do not say</h2>", _list(list(comparison.remarks))]
    if comparison.notes:
        parts += ["<h2>Not available</h2>", _list(list(comparison.notes))]
    if receipts:
        parts += ["<h2>Receipts</h2>", *(_receipt(name, text, is_open) for name, text in receipts.items())]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(heading)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _figure(comparison: Comparison) -> str:
    if not comparison.frontier.front:
        return '<p class="quiet">No point has a test score, so there is nothing to draw.</p>'
    svg = chart_svg(frontier_spec(comparison, "Test score over charge"))
    return f'<figure role="img" aria-label="Test score over charge, by strategy">{svg}</figure>'


def _table(comparison: Comparison) -> str:
    header, texts = grid(comparison)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = []
    for i, row in enumerate(comparison.rows):
        is_next_budget = i > 0 and row.budget_usd != comparison.rows[i - 1].budget_usd
        classes = ["front"] * on_front(comparison, row) + ["next"] * is_next_budget
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        lines.append(f"<tr{attribute}>" + "".join(f"<td>{escape(text)}</td>" for text in texts[i]) + "</tr>")
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _receipt(name: str, text: str, is_open: bool) -> str:
    attribute = " open" if is_open else ""
    return f"<details{attribute}><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"


def write_page(path: Path, html: str) -> Path:
    """Write a page whole or not at all."""
    write_text(path, html)
    return path
