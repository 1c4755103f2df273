"""The section of a page that says where the model to take is right and wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from outlay.engine.outputs import RunOutputs
from outlay.metrics.quality import OTHER, DoubtfulRow, GroupScore, Quality, ReliabilityBin, widest_gap
from outlay.report.figures import draw_reliability, figure_svg
from outlay.report.recommendation import model_to_take
from outlay.report.study_page import Section
from outlay.report.values import ABSENT, latency_text, size_text

if TYPE_CHECKING:
    from outlay.engine.point import Point
    from outlay.metrics.per_class import LabelScore
    from outlay.report.results import Results
    from outlay.report.seed_means import SeedMean

MOST_IN_MATRIX = 12
"""Number of labels at most of a whole table of confusions; with more, the commonest confusions are listed."""
N_CONFUSIONS = 10
N_TEXT = 300
"""Letters of a text at most."""


def quality_sections(results: Results, seed_means: Sequence[SeedMean]) -> list[Section]:
    """Return the section of each task on the model to take; none where nothing is known of its answers.

    It is the first seed of the row that `outlay.report.recommendation.model_to_take` chooses, else of the first row.
    """
    found = []
    for task in results.tasks:
        rows = [mean for mean in seed_means if mean.request.task == task and mean.value is not None]
        taken = model_to_take(rows, results.header.bounds) or next((m for m in rows if not m.request.is_rival), None)
        point = None if taken is None else next((p for p in results.points if p.id in taken.ids and p.is_ok), None)
        if point is not None and point.result.quality is not None:
            words = "Is it any good?" if len(results.tasks) == 1 else f"Is it any good? {task}"
            found.append(Section(words, "\n".join(_parts(results, point, point.result.quality))))
    return found


def _parts(results: Results, point: Point, quality: Quality) -> Iterable[str]:
    outputs, teacher = results.outputs.get(point.id), point.result.teacher_quality
    yield f'<p class="quiet">{escape(_which(point))} All scores are of test rows, in the strict reading.</p>'
    yield f'<dl class="facts">{"".join(_fact(*each) for each in _facts(point, outputs))}</dl>'
    if quality.labels:
        yield _by_label(quality.labels, () if teacher is None else teacher.labels)
    if quality.confusion:
        yield _confusions(quality.confusion)
    if quality.reliability:
        yield _reliability(point, quality.reliability, () if teacher is None else teacher.reliability)
    if quality.groups:
        yield _by_group(quality.groups, {} if teacher is None else teacher.groups)
    texts = {} if outputs is None else outputs.texts
    if quality.wrong:
        yield _rows("The surest wrong answers", "Test rows, the surest first.", "Answer", quality.wrong, texts)
    errors, texts = _label_errors(results, point)
    if errors:
        says = (
            "Training labels to which a probe that did not learn from them gives another answer; the likeliest to be "
            "wrong first."
        )
        yield _rows("Labels to look at", says, "Likely", errors, texts)


def _which(point: Point) -> str:
    request = point.request
    return f"{request.variant}, seed {request.seed}: the row to take, by its dev score where it has one."


def _facts(point: Point, outputs: RunOutputs | None) -> Iterable[tuple[str, str]]:
    result = point.result
    main = next(each for each in result.scores.values() if each.value == result.test)
    yield "Test score", f"{main.value:.1f} ({main.low:.1f} to {main.high:.1f})"
    if (teacher := result.teacher_test) is not None:
        yield "The teacher's own", f"{teacher.value:.1f} ({teacher.low:.1f} to {teacher.high:.1f})"
    if result.ece is not None:
        beside = "" if result.teacher_ece is None else f"; the teacher's {result.teacher_ece:.1f}"
        yield "Calibration error", f"{result.ece:.1f} of 100{beside}"
    if outputs is not None and outputs.model_bytes is not None:
        yield "Size on disk", f"{size_text(outputs.model_bytes / 1e6)} MB"
    if (latency := point.circumstance.latency_ms) is not None:
        where = (point.circumstance.environment or {}).get("cpu")
        yield "Speed", f"{latency_text(latency)} ms a row, one row at a time" + (f", on {where}" if where else "")


def _fact(name: str, value: str) -> str:
    return f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1, more: str = "") -> str:
    """Return a table as HTML, its first ``names`` columns words that wrap."""
    cells = "".join(f'<th scope="col"{_name_class(i < names)}>{escape(each)}</th>' for i, each in enumerate(head))
    body = "\n".join(
        "<tr>" + "".join(f"<td{_name_class(i < names)}>{escape(each)}</td>" for i, each in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<h3>{escape(title)}</h3>\n{more}<div class="wide" tabindex="0"><table class="points">\n'
        f"<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _name_class(is_name: bool) -> str:
    return ' class="name"' if is_name else ""


def _by_label(labels: Sequence[LabelScore], of_teacher: Sequence[LabelScore]) -> str:
    taught = {each.label: f"{each.f1:.1f}" for each in of_teacher}
    head = ["Label", "Precision", "Recall", "F1", *(["Teacher's F1"] if taught else []), "Rows"]
    rows = [
        [
            *(each.label, f"{each.precision:.1f}", f"{each.recall:.1f}", f"{each.f1:.1f}"),
            *([taught.get(each.label, ABSENT)] if taught else []),
            f"{each.n:,}",
        ]
        for each in labels
    ]
    return _table("By label", head, rows)


def _confusions(confusion: Mapping[str, Mapping[str, int]]) -> str:
    answers = list(dict.fromkeys([*confusion, *(answer for row in confusion.values() for answer in row)]))
    answers.sort(key=lambda answer: answer == OTHER)
    if len(answers) <= MOST_IN_MATRIX:
        rows = [
            [label, *(f"{row[answer]:,}" if answer in row else "·" for answer in answers)]
            for label, row in confusion.items()
        ]
        return _table("Confusions", ["Label, and what was answered", *answers], rows)
    mixed = [(n, label, said) for label, row in confusion.items() for said, n in row.items() if said != label]
    mixed.sort(key=lambda each: -each[0])
    shown = [[label, said, f"{n:,}"] for n, label, said in mixed[:N_CONFUSIONS]]
    return _table("The commonest confusions", ["Label", "Answer", "Rows"], shown, names=2)


def _reliability(point: Point, own: Sequence[ReliabilityBin], of_teacher: Sequence[ReliabilityBin]) -> str:
    says = "Of answers so sure, how many are right: on the diagonal as many as the model says, below it fewer."
    svg = figure_svg(draw_reliability(own, of_teacher))
    return (
        f'<h3>Reliability</h3>\n<p class="quiet">{says}</p>\n'
        f'<div class="charts"><figure role="group" aria-label="Reliability of {escape(point.request.variant)}">{svg}'
        "</figure></div>"
    )


def _by_group(groups: Mapping[str, GroupScore], of_teacher: Mapping[str, GroupScore]) -> str:
    head = ["Group", "Test score", *(["Teacher's"] if of_teacher else []), "Rows"]
    rows = [
        [
            name,
            f"{each.value:.1f}",
            *([f"{of_teacher[name].value:.1f}" if name in of_teacher else ABSENT] if of_teacher else []),
            f"{each.n:,}",
        ]
        for name, each in groups.items()
    ]
    return _table("By group", head, rows, more=f'<p class="quiet">{escape(gap_words(groups, of_teacher))}</p>\n')


def gap_words(groups: Mapping[str, GroupScore], of_teacher: Mapping[str, GroupScore]) -> str:
    """Return a sentence on the widest gap between groups, and on whether distillation widened it."""
    own, taught = widest_gap(groups), widest_gap(of_teacher)
    if own is None:
        return "One group alone: nothing to compare."
    gap, best, worst = own
    words = f"The widest gap is {gap:.1f} points, {best} above {worst}"
    if taught is None:
        return f"{words}."
    if best not in of_teacher or worst not in of_teacher:
        return f"{words}; between the teacher's groups it is {taught[0]:.1f}."
    before = of_teacher[best].value - of_teacher[worst].value
    change = "distillation widened it" if gap > before else "distillation did not widen it"
    return f"{words}; the teacher's between these two is {before:.1f}: {change}. With few rows a gap may be chance."


def _rows(title: str, says: str, answer: str, rows: Sequence[DoubtfulRow], texts: Mapping[str, str]) -> str:
    shown = [
        [_short(texts[each.row]) if each.row in texts else f"row {each.row[:12]}", each.label, each.answer, ""]
        for each in rows
    ]
    for cells, each in zip(shown, rows, strict=True):
        cells[-1] = f"{each.confidence:.0f} %"
    return _table(
        title, ["Text", "Label", answer, "Sure"], shown, names=3, more=f'<p class="quiet">{escape(says)}</p>\n'
    )


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= N_TEXT else plain[: N_TEXT - 1] + "…"


def _label_errors(results: Results, point: Point) -> tuple[tuple[DoubtfulRow, ...], Mapping[str, str]]:
    """Return the labels to look at: of the point itself, else of the probe among its rivals, with their texts."""
    asked = point.request
    beside = [
        each
        for each in results.points
        if each.request.strategy == "rival_probe"
        and (each.request.task, each.request.seed, each.request.budget_usd)
        == (asked.task, asked.seed, asked.budget_usd)
    ]
    for each in (point, *beside):
        if each.result.label_errors:
            outputs = results.outputs.get(each.id)
            return each.result.label_errors, {} if outputs is None else outputs.texts
    return (), {}
