"""The page of a study: one self-contained HTML file with linked figures, tables, points and receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import STATUSES, Point
from outlay.report.figures import Spec, figure_svg
from outlay.report.grouping import short_model, variant_names
from outlay.report.recommendation import TaskSummary
from outlay.report.results import Results
from outlay.report.seed_means import by_seed
from outlay.report.style import STYLE
from outlay.report.values import ABSENT, money

MAX_FOLDED = 300
"""Maximum number of points with receipts in the page; with more, receipts are only files beside the page."""
MAX_LARGE = 3
"""Maximum number of tasks whose sentences are written large."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: HTML under a heading."""

    heading: str
    html: str


def render_study(
    results: Results,
    tables_html: Sequence[str],
    figures: Mapping[str, Spec],
    summaries: Sequence[TaskSummary] = (),
    model: Sequence[str] = (),
    quality: Sequence[Section] = (),
) -> str:
    """Return the page of a study as HTML without scripts or external files, with its figures inlined as SVG.

    The summary comes first, then the model that was handed over, then the sections. A point of a figure links to its row, and a
    row to its receipt: folded in the page up to `MAX_FOLDED` points, and always as a file ``receipts/<run>.txt`` beside the page.

    Args:
        results: the results of the study.
        tables_html: the tables as HTML, inserted unchanged.
        figures: specifications by name, from `outlay.report.figures.figures`.
        summaries: the summary of each task, from `outlay.report.recommendation.summarise`.
        model: lines on the model that was handed over, "what: words".
        quality: sections on where models are right and wrong, from `outlay.report.quality_section`.
    """
    title = escape(results.header.title)
    named, shared = _named_points(results)
    is_folded = len(named) <= MAX_FOLDED
    sections = [
        Section("Tables" if len(tables_html) > 1 else "Table", "\n".join(tables_html)),
        Section("Figures" if len(figures) > 1 else "Figure", _figures(figures)),
        *quality,
        Section("How it was made", _facts(results)),
        Section("Points", _points(named, shared, is_folded=is_folded)),
        Section("Receipts", _receipts(named, is_folded=is_folded)),
    ]
    body = [
        f"<header>\n<h1>{title}</h1>\n{_summary(summaries)}{_model(model)}</header>",
        *(f"<section>\n<h2>{escape(each.heading)}</h2>\n{each.html}\n</section>" for each in sections if each.html),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _summary(summaries: Sequence[TaskSummary]) -> str:
    """Return the summary: of each task a large sentence, then its lines."""
    parts = []
    size = "verdict" if len(summaries) <= MAX_LARGE else "verdict short"
    for each in summaries:
        sentence = escape(each.sentence).replace(" ± ", "\u00a0±\u00a0")
        parts.append(f'<p class="{size}">{sentence}</p>\n')
        parts += [f'<p class="quiet">{escape(line)}</p>\n' for line in each.lines]
    return "".join(parts)


def _model(lines: Sequence[str]) -> str:
    """Return the lines on the model as a list of terms: "model" and where it is, "predict" and its command."""
    pairs = [line.partition(": ") for line in lines]
    rows = [f"<dt>{escape(what)}</dt><dd><code>{escape(words)}</code></dd>" for what, _, words in pairs]
    return f'<dl class="facts model">{"".join(rows)}</dl>\n' if rows else ""


def _figures(figures: Mapping[str, Spec]) -> str:
    if not figures:
        return '<p class="quiet">No point has a test score: nothing to draw.</p>'
    hint = "Each mark links to its point below, and shows its values when pointed at. Charge is what a run would cost alone."
    names = [escape(spec["title"]["text"]) for spec in figures.values()]
    drawn = zip(names, map(figure_svg, figures.values()), strict=True)
    charts = "".join(f'<figure role="group" aria-label="{name}">{svg}</figure>' for name, svg in drawn)
    return f'<p class="quiet">{hint}</p>\n<div class="charts">{charts}</div>'


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
    notes = "".join(f"<li>{escape(note)}</li>" for note in header.notes)
    return f'<dl class="facts">{"".join(rows)}</dl>' + (f"\n<ul>{notes}</ul>" if notes else "")


# --- points -----------------------------------------------------------------------------------------------------------


_NamedPoint = tuple[Point, str, RunOutputs | None]
"""A point, its name, and the outputs of its run."""


def _named_points(results: Results) -> tuple[list[_NamedPoint], str]:
    """Return the points, seeds of a request together, with names, and the text of what all of their names would share.

    A name: "fever, distill, t5-xxl → t5-small, N = 1,000, …, seed 0", without the parts that are those of every point.
    """
    requests = [point.request for point in results.points]
    refs = {ref for request in requests for ref in (request.teacher, request.student) if ref is not None}
    short = {ref: short_model(ref, refs) for ref in refs}
    points = [point for seeds in by_seed(results.points) for point in seeds]
    names = variant_names(requests)
    parts = [_name_parts(point, names[point.request], short) for point in points]
    shared = {
        name: part
        for name, part in (parts[0] if len(parts) > 1 else {}).items()
        if part and name != "variant" and all(own[name] == part for own in parts)
    }
    named: list[_NamedPoint] = []
    for point, own in zip(points, parts, strict=True):
        name = ", ".join(part for what, part in own.items() if part and what not in shared)
        named.append((point, name, results.outputs.get(point.id)))
    return named, ", ".join(shared.values())


def _points(named: Sequence[_NamedPoint], shared: str, *, is_folded: bool) -> str:
    """Return the table of the points; four columns, so that it fits a phone."""
    rows = []
    for point, name, outputs in named:
        link = _receipt_link(outputs, is_folded=is_folded)
        cells = f'<td class="name">{escape(name)}</td>{_found(point)}<td class="link">{link}</td>'
        rows.append(f'<tr id="point-{point.id}">{cells}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Point", "Test", "Charge"))
    body = "\n".join(rows)
    of_all = f'<p class="quiet">All: {escape(shared)}.</p>\n' if shared else ""
    return (
        f'{of_all}<div class="wide"><table class="points">\n'
        f'<thead><tr>{head}<th scope="col" class="link">Receipt</th></tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def _name_parts(point: Point, variant: str, short: Mapping[str, str]) -> dict[str, str | None]:
    request = point.request
    is_pooled = point.result.n_pool > 0
    return {
        "task": request.task,
        "variant": variant,
        "models": " → ".join(short[ref] for ref in (request.teacher, request.own_student) if ref is not None),
        "labels": None if request.n_initial is None else f"N = {request.n_initial:,}",
        "budget": f"{money(request.budget_usd)} in all" if request.added_usd is None else None,
        "added": f"{money(request.added_usd)} added" if request.added_usd else None,
        "pool": f"pool of {sum(n_rows for _, n_rows in request.pool):,}" if is_pooled else None,
        "seed": f"seed\u00a0{request.seed}",
    }


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
    if not any(outputs is not None and outputs.receipt is not None for _, _, outputs in named):
        return ""
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
