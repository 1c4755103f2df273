"""The summary of a report: which model to take at the most money, and which rows are not worth more than a rival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlay.engine.point import PointRequest
from outlay.report.grouping import rival_name, short_model
from outlay.report.results import ANY_SIZE, Bounds
from outlay.report.seed_means import SeedMean
from outlay.report.values import latency_text, money, size_text


@dataclass(frozen=True, slots=True)
class _Row:
    """A seed mean with a score, and its name."""

    name: str
    mean: SeedMean
    test: float


def summary_lines(seed_means: Sequence[SeedMean], bounds: Bounds = ANY_SIZE) -> list[str]:
    """Return the lines of the summary, task by task; a task with one row and no bounds has none.

    The model to take is chosen among the rows of the largest budget by its dev score, by its test score where no row has a dev
    score; then the cheaper one, then the smaller one. Test scores tell which rows are not above the best rival of their budget.
    """
    names = _names(seed_means)
    by_task: dict[str, list[_Row]] = {}
    for mean in seed_means:
        if mean.value is not None:
            by_task.setdefault(mean.request.task, []).append(_Row(names[mean.key], mean, mean.value))
    lines = []
    for task, rows in by_task.items():
        at = f"{task}, " if len(by_task) > 1 else ""
        if len(rows) > 1 or bounds.words:
            lines.append(_take(at, rows, bounds))
        lines += _not_worth(at, rows)
    return lines


def model_to_take(seed_means: Sequence[SeedMean], bounds: Bounds = ANY_SIZE) -> SeedMean | None:
    """Return the row with the best mean dev score at the largest budget, within the bounds; then the cheaper, the smaller one.

    ``None`` where no row within the bounds has a dev score: test scores choose no model.
    """
    names = _names(seed_means)
    rows = [_Row(names[mean.key], mean, mean.value) for mean in seed_means if mean.value is not None]
    fit = [row for row in _at_most_money(rows) if _fits(row.mean, bounds) and row.mean.dev is not None]
    return min(fit, key=_rank).mean if fit else None


def _at_most_money(rows: Sequence[_Row]) -> list[_Row]:
    budget = max((row.mean.request.budget_usd for row in rows), default=0.0)
    return [row for row in rows if row.mean.request.budget_usd == budget]


def _rank(row: _Row) -> tuple[float, float, float]:
    """Return the key by which the best row comes first."""
    return -_chosen_by(row), row.mean.charge_usd or 0.0, row.mean.size_mb or 0.0


def _take(at: str, rows: Sequence[_Row], bounds: Bounds) -> str:
    dearest = _at_most_money(rows)
    budget = dearest[0].mean.request.budget_usd
    fit = [row for row in dearest if _fits(row.mean, bounds)]
    head = f"take ({', '.join(part for part in (f'{at}{money(budget)} in all', bounds.words) if part)}): "
    if not fit:
        known = [row for row in dearest if row.mean.size_mb is not None]
        smallest = min(known, key=lambda row: (row.mean.size_mb or 0.0, -row.test), default=None)
        way = "no size is known" if smallest is None else f"the smallest is {_words(smallest)}"
        return f"{head}nothing; {way}"
    with_dev = [row for row in fit if row.mean.dev is not None]
    return head + _words(min(with_dev or fit, key=_rank))


def _chosen_by(row: _Row) -> float:
    return row.test if row.mean.dev is None else row.mean.dev


def _fits(mean: SeedMean, bounds: Bounds) -> bool:
    """Return whether a model is within the bounds; one of unknown size or speed is not."""
    limits = (mean.size_mb, bounds.max_student_mb), (mean.latency_ms, bounds.max_ms)
    return all(most is None or (value is not None and value <= most) for value, most in limits)


def _words(row: _Row) -> str:
    mean = row.mean
    dev = [] if mean.dev is None else [f"dev {mean.dev_words}"]
    size = [] if mean.size_mb is None else [f"{size_text(mean.size_mb)} MB"]
    speed = [] if mean.latency_ms is None else [f"{latency_text(mean.latency_ms)} ms a row"]
    return f"{row.name}: " + ", ".join(
        [*dev, f"test {row.test:.1f}", f"charge {money(mean.charge_usd)}", *size, *speed]
    )


def _not_worth(at: str, rows: Sequence[_Row]) -> list[str]:
    """Return a line for each budget with rows whose mean test score is not above that of the best rival."""
    lines = []
    for budget in sorted({row.mean.request.budget_usd for row in rows}):
        of_budget = [row for row in rows if row.mean.request.budget_usd == budget]
        best = max((row for row in of_budget if row.mean.request.is_rival), key=lambda row: row.test, default=None)
        if best is None:
            continue
        below = [row for row in of_budget if not row.mean.request.is_rival and row.test <= best.test]
        if below:
            named = "; ".join(f"{row.name} ({row.test:.1f})" for row in below)
            lines.append(
                f"not worth more than a rival ({at}{money(budget)} in all; {best.name} has {best.test:.1f}): {named}"
            )
    return lines


def _names(seed_means: Sequence[SeedMean]) -> dict[PointRequest, str]:
    """Return the name of each seed mean: its variant, with the choices that tell it from others of its task and budget."""
    found = {}
    for mean in seed_means:
        request = mean.request
        alike = [
            each.request
            for each in seed_means
            if (each.request.task, each.request.budget_usd) == (request.task, request.budget_usd)
        ]
        students = {each.student for each in alike}
        if request.is_rival:
            found[mean.key] = rival_name(request, short_model(request.student, students))
            continue
        twins = [each for each in alike if each.variant == request.variant]
        parts = [request.variant]
        for name in ("teacher", "student", "method", "n_initial"):
            value = getattr(request, name)
            if value is not None and len({getattr(each, name) for each in twins}) > 1:
                refs = [ref for each in alike if (ref := getattr(each, name)) is not None]
                shown = short_model(value, refs) if name in ("teacher", "student") else value
                parts.append(f"N = {value:,}" if name == "n_initial" else f"{name} {shown}")
        if len({each.pool for each in twins}) > 1:
            parts.append(f"{sum(n for _, n in request.pool):,} pool rows")
        found[mean.key] = ", ".join(parts)
    return found
