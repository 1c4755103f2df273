"""From points to cells: the seeds of one request as a mean with its interval, and the words for models, labels and hours."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point, PointRequest
from outlay.report.grouping import short_model
from outlay.report.results import Results
from outlay.report.scores import covers_words, mean_of_seeds, measure_of
from outlay.report.table import CellContent
from outlay.report.values import measure_text, money

STRATEGY_WORDS = {
    "annotate": "Annotate",
    "general_distill": "General distillation + annotate",
    "llm_annotate": "LLM annotate",
    "mix": "Human + LLM annotate",
    "planned": "Planned",
    "self_distill": "Self-distill",
    "distill": "Distill",
}
"""Strategies as a table names them, in the order of its rows (Kang et al. 2023, Tables 2, 3 and 10)."""

WITHOUT_POOL = frozenset({"annotate", "general_distill"})
"""Strategies that leave the unlabelled pool alone: its size does not tell two of their points apart."""


@dataclass(frozen=True, slots=True)
class PointOutputs:
    """A point with its id and what its run left."""

    point: Point
    id: str
    left: RunOutputs | None

    @property
    def asked(self) -> PointRequest:
        """The request."""
        return self.point.request


def entries(results: Results) -> list[PointOutputs]:
    """The points of a study, each with its id."""
    named = [(point, point.id) for point in results.points]
    return [PointOutputs(point, name, results.left.get(name)) for point, name in named]


def n_unlabelled(request: PointRequest) -> int:
    """Rows of the pool that a request may use; 0 for a strategy that uses none."""
    return 0 if request.strategy in WITHOUT_POOL else sum(n for _, n in request.pool)


def told_apart_by(request: PointRequest) -> dict[str, Any]:
    """Everything of a request that tells it from another, but its seed."""
    initial = None if request.added_usd is None else round(request.budget_usd - request.added_usd, 6)
    return {
        "task": request.task,
        "variant": request.variant,
        "teacher": request.teacher,
        "student": request.student,
        "n_initial": request.n_initial,
        "initial_usd": initial,
        "added_usd": request.added_usd,
        "budget_usd": request.budget_usd,
        "n_unlabelled": n_unlabelled(request),
        "pool": request.pool,
        "machine": request.machine,
        "clock": request.clock,
        "price_book": request.price_book,
        "dev": request.dev,
    }


# --- cells -----------------------------------------------------------------------------------------------------------


def score_cell(found: Sequence[PointOutputs], bracket: str = "", published: float | None = None) -> CellContent:
    """The mean test score of the seeds of one request, with its interval; ``na`` or ``failed`` where no seed has one.

    Args:
        found: the seeds.
        bracket: what the score was bought with, brackets included.
        published: the paper's number for it.
    """
    ok = [each for each in found if each.point.is_ok]
    score = mean_of_seeds([each.point for each in ok], {each.id: each.left for each in ok if each.left is not None})
    low, high = (None, None) if score is None or score.bounds is None else score.bounds
    statuses = [each.point.result.status for each in found if not each.point.is_ok]
    return CellContent(
        value=None if score is None else score.mean,
        low=low,
        high=high,
        bracket="" if score is None else bracket,
        published=published,
        status="ok" if score is not None else ("failed" if "failed" in statuses else "na"),
        n_ok=len(ok),
        n_seeds=len(found),
        reasons=(
            *dict.fromkeys(_reason(e.point) for e in found if not e.point.is_ok),
            *remarks_of([e.point for e in ok]),
        ),
        covers=None if score is None else score.covers,
        points=tuple(each.id for each in found),
    )


def remarks_of(seeds: Sequence[Point]) -> tuple[str, ...]:
    """The notes of the seeds of one row, each once, with the seeds it is about where it is not about all."""
    about: dict[str, list[int]] = {}
    for point in seeds:
        for note in point.result.notes:
            about.setdefault(note, []).append(point.request.seed)
    return tuple(
        note if len(found) == len(seeds) else f"seed {', '.join(map(str, found))}: {note}"
        for note, found in about.items()
    )


def _reason(point: Point) -> str:
    """Its status and why, on one line."""
    return f"{point.result.status}: {' '.join((point.result.reason or '').split())}"


def mean_of(values: Iterable[float]) -> float | None:
    """The mean, None of nothing."""
    found = list(values)
    return statistics.fmean(found) if found else None


def charge_of(found: Sequence[PointOutputs]) -> float | None:
    """Mean charge of the seeds that have a score, in dollars."""
    return mean_of(each.point.result.charge_usd for each in found if each.point.is_ok)


def teacher_score(found: Iterable[PointOutputs]) -> float | None:
    """Mean dev score of the teachers of points with a score, 0-100."""
    left = (each.left for each in found if each.point.is_ok and each.left is not None)
    return mean_of(each.teacher_dev for each in left if each.teacher_dev is not None)


def measures(found: Iterable[PointOutputs]) -> str | None:
    """What the scores are, in words; None where nothing says so. Tasks with different metrics are named.

    The metric is that of the run; where that is gone, the first of the point's scores that equals its test score.
    """
    by_task: dict[str, str] = {}
    for each in found:
        task = each.asked.task
        if task not in by_task and each.point.is_ok and (name := measure_of(each.point, each.left)) is not None:
            by_task[task] = measure_text(name)
    words = set(by_task.values())
    if len(words) < 2:
        return words.pop() if words else None
    return "; ".join(f"{task}: {measure}" for task, measure in by_task.items())


def score_legend(found: Sequence[PointOutputs], cells: Sequence[CellContent]) -> str:
    """What the scores of a table are and what their ± is: "Test score, 0-100: accuracy, published reading; ±: half ..."."""
    measure, span = measures(found), covers_words(cell.covers for cell in cells)
    text = "Test score, 0-100" + ("" if measure is None else f": {measure}")
    return text + (f"; {span}." if span else ".")


# --- words -----------------------------------------------------------------------------------------------------------


def models(requests: Sequence[PointRequest]) -> dict[str, str]:
    """Short names of all teachers and students: "t5-v1_1-xxl" for "google/t5-v1_1-xxl", as much as tells them apart."""
    refs = {ref for request in requests for ref in (request.teacher, request.student) if ref is not None}
    bare = {ref: _bare(ref) for ref in refs}
    return {ref: short_model(name, set(bare.values())) for ref, name in bare.items()}


def _bare(ref: str) -> str:
    """A reference without its kind, where what follows is a path; ``cut:2`` stays what it is."""
    name = ref.removeprefix("package:")
    return name.removesuffix("/model") if name != ref else ref


def strategy_words(variant: str) -> str:
    """ "distill (N by rule)" as "Distill, N by rule"."""
    name, _, rest = variant.partition(" ")
    return ", ".join([STRATEGY_WORDS.get(name, name), *([rest.strip("()")] if rest else [])])


def strategy_rank(variant: str) -> int:
    """The strategy's place among the rows of a table; those without one come last, in order of appearance."""
    names = list(STRATEGY_WORDS)
    name = variant.partition(" ")[0]
    return names.index(name) if name in names else len(names)


def row_words(request: PointRequest, names: Mapping[str, str], teacher: float | None = None) -> str:
    """A row's heading as in Kang et al. 2023, Table 2: "T5-XXL [72.4] ⇒ T5-Small (Distill)".

    Args:
        request: of any point of the row.
        names: short names, of `models`.
        teacher: its dev score, 0-100.
    """
    strategy = strategy_words(request.variant)
    if request.strategy == "general_distill":  # brings its own student, whatever the request names
        return strategy
    student = names[request.student]
    if request.teacher is None:
        return f"{student} ({strategy})"
    score = "" if teacher is None else f" [{teacher:.1f}]"
    return f"{names[request.teacher]}{score} ⇒ {student} ({strategy})"


def request_words(request: PointRequest) -> str:
    """Initial labels and money: "N=1K, +$100", "N by rule, $300 in all"."""
    n = "N by rule" if request.n_initial is None else f"N={thousands(request.n_initial)}"
    added = request.added_usd
    return f"{n}, {f'{dollars(request.budget_usd)} in all' if added is None else f'+{dollars(added)}'}"


def thousands(number: float) -> str:
    """A count as Kang et al. 2023 print it: "384", "1K", "19K", "16.9K"."""
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1000:.1f}".removesuffix(".0") + "K"


def hours(seconds: float) -> str:
    """Machine time as Kang et al. 2023 print it ("54h"), in minutes or seconds where it is less than an hour."""
    if seconds < 59.5:
        return f"{seconds:.0f}s"
    if seconds < 59.5 * 60:
        return f"{seconds / 60:.0f}min"
    return f"{seconds / 3600:.1f}".removesuffix(".0") + "h" if seconds < 35_820 else f"{seconds / 3600:.0f}h"


def dollars(usd: float) -> str:
    """Dollars of a heading, without cents where there are none: "$1300", "$67.50"."""
    return f"${usd:.0f}" if usd == round(usd) else money(usd)


def bought(found: Sequence[PointOutputs]) -> str:
    """What a score was bought with (Kang et al. 2023, Table 2): labels beyond the first N, or machine time and pool rows."""
    results = [each.point.result for each in found if each.point.is_ok]
    if not results:
        return ""
    n_pool = statistics.fmean(result.n_pool for result in results)
    n_llm = statistics.fmean(result.n_llm_labels for result in results)
    if n_pool:
        seconds = statistics.fmean(sum(result.seconds.values()) for result in results)
        return f"({hours(seconds)} / {thousands(n_pool)})"
    n_more = statistics.fmean(result.n_labels for result in results) - (found[0].asked.n_initial or 0)
    parts = [f"{n_more:+.0f}"] if n_more or not n_llm else []
    return f"({', '.join([*parts, f'{thousands(n_llm)} LLM labels'] if n_llm else parts)})"
