"""Table cells made from points: mean and interval over seeds, and the text of models, labels, hours and dollars."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point, PointRequest
from outlay.plan.strategies import RIVAL_METHODS
from outlay.report.frontier import CostScore
from outlay.report.grouping import RIVAL_NAMES, rival_name, short_model
from outlay.report.results import Results
from outlay.report.scores import covers_words, mean_of_seeds, measure_of
from outlay.report.seed_means import mean_of
from outlay.report.table import TableCell
from outlay.report.values import measure_text, money

STRATEGY_NAMES = {
    "annotate": "Annotate",
    "general_distill": "General distillation + annotate",
    "llm_annotate": "LLM annotate",
    "llm_teach": "LLM teach",
    "llm_distill": "LLM distill",
    "mix": "Human + LLM annotate",
    "planned": "Planned",
    "self_distill": "Self-distill",
    "distill": "Distill",
    **RIVAL_NAMES,
}
"""Names of the strategies in tables, in the order of the rows (Kang et al. 2023, Tables 2, 3 and 10)."""

WITHOUT_POOL = frozenset({"annotate", "general_distill"})
"""Strategies that use no unlabelled pool; their points do not differ by the size of the pool."""


IdentityFields = Mapping[str, Any]
"""Fields of a request by name that identify it apart from its seed, and the place of its task among those of the study."""


@dataclass(frozen=True, slots=True)
class PointOutputs:
    """A point with the outputs of its run and the identity fields of its request."""

    point: Point
    outputs: RunOutputs | None
    fields: IdentityFields

    @property
    def request(self) -> PointRequest:
        """The request of the point."""
        return self.point.request


def point_outputs(results: Results) -> list[PointOutputs]:
    """Return the points of a study, each with the outputs of its run."""
    tasks = results.tasks
    return [
        PointOutputs(point, results.outputs.get(point.id), _identity_fields(point.request, tasks))
        for point in results.points
    ]


def by_task(points: Iterable[PointOutputs]) -> dict[str, list[PointOutputs]]:
    """Return the points of each task, in order of appearance."""
    found: dict[str, list[PointOutputs]] = {}
    for each in points:
        found.setdefault(each.request.task, []).append(each)
    return found


def n_unlabelled(request: PointRequest) -> int:
    """Return the number of pool rows that a request may use; 0 for a strategy that uses no pool."""
    return 0 if request.strategy in WITHOUT_POOL else sum(n for _, n in request.pool)


def _identity_fields(request: PointRequest, tasks: Sequence[str]) -> IdentityFields:
    return {
        "task": request.task,
        "task_order": tasks.index(request.task),
        "variant": request.variant,
        "teacher": request.teacher,
        "student": request.student,
        "method": request.method,
        "n_initial": request.n_initial,
        "initial_usd": None if request.added_usd is None else round(request.budget_usd - request.added_usd, 6),
        "added_usd": request.added_usd,
        "budget_usd": request.budget_usd,
        "n_unlabelled": n_unlabelled(request),
        "pool": request.pool,
        "machine": request.machine,
        "clock": request.clock,
        "price_book": request.price_book,
        "dev": request.dev,
        "test_rows": request.test_rows,
    }


# --- cells -----------------------------------------------------------------------------------------------------------


def score_cell(points: Sequence[PointOutputs], bracket: str = "", published: float | None = None) -> TableCell:
    """Return the cell of a mean test score over seeds with its interval; ``na`` or ``failed`` where no seed has a score.

    Args:
        points: the seeds of one request.
        bracket: text of the purchase behind the score, brackets included.
        published: the paper's number for it.
    """
    ok = [each for each in points if each.point.is_ok]
    lost = [each.point.result for each in points if not each.point.is_ok]
    outputs = {each.point.id: each.outputs for each in ok if each.outputs is not None}
    score = mean_of_seeds([each.point for each in ok], outputs)
    statuses = {each.status for each in lost}
    reasons = dict.fromkeys(f"{each.status}: {' '.join((each.reason or '').split())}" for each in lost)
    return TableCell(
        value=score.value,
        low=score.low,
        high=score.high,
        covers=score.covers,
        bracket=bracket if ok else "",
        published=published,
        status="ok" if ok else next((each for each in ("failed", "waiting") if each in statuses), "na"),
        n_ok=len(ok),
        n_seeds=len(points),
        reasons=(*reasons, *remarks_of([each.point for each in ok])),
        points=tuple(each.point.id for each in points),
    )


def remarks_of(seeds: Sequence[Point]) -> tuple[str, ...]:
    """Return the notes of the seeds of a row, each once; with its seeds where it does not hold for all.

    None of the majority class: that it gives one answer, and is no better than that, is what it is.
    """
    about: dict[str, list[int]] = {}
    for point in (each for each in seeds if RIVAL_METHODS.get(each.request.strategy) != "majority"):
        for note in point.result.notes:
            about.setdefault(note, []).append(point.request.seed)
    return tuple(
        note if len(found) == len(seeds) else f"seed {', '.join(map(str, found))}: {note}"
        for note, found in about.items()
    )


def cost_score(cell: TableCell, charge_usd: float | None) -> CostScore | None:
    """Return a cell as a candidate for the frontier; None without a score or a charge."""
    if cell.value is None or charge_usd is None:
        return None
    return CostScore("", charge_usd, cell.value, cell.low, cell.high)


def charge_of(points: Sequence[PointOutputs]) -> float | None:
    """Return the mean charge in dollars of the seeds that have a score."""
    return mean_of(each.point.result.charge_usd for each in points if each.point.is_ok)


def teacher_score(points: Iterable[PointOutputs]) -> float | None:
    """Return the mean dev score (0-100) of the teachers of points with a score."""
    outputs = (each.outputs for each in points if each.point.is_ok and each.outputs is not None)
    return mean_of(each.teacher_dev for each in outputs if each.teacher_dev is not None)


def metric_text(points: Iterable[PointOutputs]) -> str | None:
    """Return the text of the metric behind the test scores, task by task where metrics differ; None where it is unknown.

    The metric is that of the run; where that is gone, the first of the point's scores that equals its test score.
    """
    by_task: dict[str, str] = {}
    for each in points:
        task = each.request.task
        if task not in by_task and each.point.is_ok and (name := measure_of(each.point, each.outputs)) is not None:
            by_task[task] = measure_text(name)
    texts = set(by_task.values())
    if len(texts) < 2:
        return texts.pop() if texts else None
    return "; ".join(f"{task}: {measure}" for task, measure in by_task.items())


def score_legend(points: Sequence[PointOutputs], cells: Sequence[TableCell]) -> str:
    """Return the legend of a table's scores: "Test score, 0-100: accuracy, published reading; ±: half ..."."""
    measure, span = metric_text(points), covers_words(cell.covers for cell in cells)
    text = "Test score, 0-100" + ("" if measure is None else f": {measure}")
    return text + (f"; {span}." if span else ".")


# --- text ------------------------------------------------------------------------------------------------------------


def short_names(requests: Sequence[PointRequest]) -> dict[str, str]:
    """Return the shortest distinct names of all teachers and students: "t5-v1_1-xxl" for "google/t5-v1_1-xxl"."""
    refs = {ref for request in requests for ref in (request.teacher, request.student) if ref is not None}
    packages = {ref: ref.removeprefix("package:").removesuffix("/model") for ref in refs if ref.startswith("package:")}
    bare = {ref: packages.get(ref, ref) for ref in refs}
    return {ref: short_model(name, set(bare.values())) for ref, name in bare.items()}


def strategy_name(variant: str) -> str:
    """Return the name of a strategy variant in tables: "Distill, N by rule" for "distill (N by rule)"."""
    name, _, rest = variant.partition(" ")
    return ", ".join([STRATEGY_NAMES.get(name, name), *([rest.strip("()")] if rest else [])])


def strategy_rank(variant: str) -> int:
    """Return the rank of a strategy among the rows of a table; unknown strategies come last, in order of appearance."""
    names = list(STRATEGY_NAMES)
    name = variant.partition(" ")[0]
    return names.index(name) if name in names else len(names)


def row_heading(request: PointRequest, names: Mapping[str, str], teacher: float | None = None) -> str:
    """Return the heading of a row as in Kang et al. 2023, Table 2: "T5-XXL [72.4] ⇒ T5-Small (Distill)".

    Args:
        request: the request of any point of the row.
        names: short names of models, from `short_names`.
        teacher: dev score of the teacher, 0-100.
    """
    strategy = strategy_name(request.variant)
    if request.strategy == "general_distill":  # it starts from its own student, not from the one in the request
        return strategy
    student = names[request.student]
    if request.is_rival:
        return rival_name(request, student)
    if request.teacher is None:
        return f"{student} ({strategy})"
    score = "" if teacher is None else f" [{teacher:.1f}]"
    return f"{names[request.teacher]}{score} ⇒ {student} ({strategy})"


def request_text(request: PointRequest) -> str:
    """Return the text of initial labels and budget: "N=1K, +$100", "N by rule, $300 in all"."""
    n = "N by rule" if request.n_initial is None else f"N={thousands(request.n_initial)}"
    added = request.added_usd
    return f"{n}, {f'{dollars(request.budget_usd)} in all' if added is None else f'+{dollars(added)}'}"


def thousands(number: float) -> str:
    """Return a count as Kang et al. 2023 print it: "384", "1K", "19K", "16.9K"."""
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1000:.1f}".removesuffix(".0") + "K"


def hours(seconds: float) -> str:
    """Return machine time as Kang et al. 2023 print it ("54h"); in minutes or seconds below an hour."""
    if seconds < 59.5:
        return f"{seconds:.0f}s"
    if seconds < 59.5 * 60:
        return f"{seconds / 60:.0f}min"
    return f"{seconds / 3600:.1f}".removesuffix(".0") + "h" if seconds < 35_820 else f"{seconds / 3600:.0f}h"


def dollars(usd: float) -> str:
    """Return dollars for a heading, whole amounts without cents: "$1300", "$67.50"."""
    return f"${usd:.0f}" if usd == round(usd) else money(usd)


def purchase_text(points: Sequence[PointOutputs]) -> str:
    """Return the text of a purchase (Kang et al. 2023, Table 2): labels beyond the first N, or machine time and pool rows."""
    results = [each.point.result for each in points if each.point.is_ok]
    if not results:
        return ""
    n_pool = statistics.fmean(result.n_pool for result in results)
    n_llm = statistics.fmean(result.n_llm_labels for result in results)
    if n_pool:
        seconds = statistics.fmean(sum(result.seconds.values()) for result in results)
        return f"({hours(seconds)} / {thousands(n_pool)})"
    n_more = statistics.fmean(result.n_labels for result in results) - (points[0].request.n_initial or 0)
    parts = [f"{n_more:+.0f}"] if n_more or not n_llm else []
    return f"({', '.join([*parts, f'{thousands(n_llm)} LLM labels'] if n_llm else parts)})"
