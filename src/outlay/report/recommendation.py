"""The summary of a report: which model to take at the most money, and which rows are not worth more than a rival."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point, PointRequest
from outlay.metrics.intervals import half_of_means
from outlay.report.grouping import rival_name, short_model
from outlay.report.results import ANY_SIZE, Bounds, Results
from outlay.report.scores import with_interval
from outlay.report.seed_means import SeedMean, mean_of_known
from outlay.report.significance import PairedTest
from outlay.report.summary_tables import BASELINE
from outlay.report.values import MINUS, latency_text, money, signed, size_text


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """The summary of one task: a sentence on the model to take, and the lines that follow it."""

    sentence: str
    """For the largest budget: the row to take, its test score, and how far it is from the next choice."""
    lines: tuple[str, ...]
    """What the row was chosen by and costs; rows that are not worth more than a rival."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A seed mean with a score, and its name."""

    name: str
    mean: SeedMean
    test: float


def summarise(
    results: Results, seed_means: Sequence[SeedMean], tests: Sequence[PairedTest] = ()
) -> tuple[TaskSummary, ...]:
    """Return the summary of each task with a score.

    The model to take is chosen among the rows of the largest budget by its mean dev score; then the cheaper one, then the smaller
    one. Test scores choose none: they say how good it is, how far from annotating at the same budget on the same seeds, and which
    rows are not above the best rival of their budget.

    Args:
        results: the points, with the bounds on the model to take in their header.
        seed_means: means of these points.
        tests: paired tests between these points (`outlay.report.significance.family`), whose differences and verdicts are told
            where they have the pair; any other difference has the interval over its seeds.
    """
    names = _names(seed_means)
    by_task: dict[str, list[_Row]] = {}
    for mean in seed_means:
        if mean.value is not None:
            by_task.setdefault(mean.request.task, []).append(_Row(names[mean.key], mean, mean.value))
    facts = _Facts({point.id: point for point in results.points if point.is_ok}, results.outputs, tests)
    found = []
    for task, rows in by_task.items():
        at = f"{task}, " if len(by_task) > 1 else ""
        sentence, lines = _take(at, rows, results.header.bounds, facts)
        found.append(TaskSummary(sentence, (*lines, *_not_worth(at, rows))))
    return tuple(found)


def summary_lines(summaries: Iterable[TaskSummary]) -> tuple[str, ...]:
    """Return summaries as lines, task by task, the sentence first."""
    return tuple(chain.from_iterable((each.sentence, *each.lines) for each in summaries))


def model_to_take(seed_means: Sequence[SeedMean], bounds: Bounds = ANY_SIZE) -> SeedMean | None:
    """Return the row with the best mean dev score at the largest budget, within the bounds; then the cheaper, the smaller one.

    ``None`` where no row within the bounds has a dev score: test scores choose no model.
    """
    names = _names(seed_means)
    rows = [_Row(names[mean.key], mean, mean.value) for mean in seed_means if mean.value is not None]
    found = _best_by_dev(row for row in _at_most_money(rows) if _fits(row.mean, bounds))
    return None if found is None else found.mean


def _at_most_money(rows: Sequence[_Row]) -> list[_Row]:
    budget = max((row.mean.request.budget_usd for row in rows), default=0.0)
    return [row for row in rows if row.mean.request.budget_usd == budget]


def _best_by_dev(rows: Iterable[_Row]) -> _Row | None:
    """Return the row with the best mean dev score; then the cheaper, the smaller one; None without a dev score."""

    def rank(row: _Row) -> tuple[float, float, float]:
        return -(row.mean.dev or 0.0), row.mean.charge_usd or 0.0, row.mean.size_mb or 0.0

    return min((row for row in rows if row.mean.dev is not None), key=rank, default=None)


# --- the sentence -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a sentence is told from beside the seed means: points with a score and outputs by id, and the paired tests."""

    points: Mapping[str, Point]
    outputs: Mapping[str, RunOutputs]
    tests: Sequence[PairedTest]


@dataclass(frozen=True, slots=True)
class _Gap:
    """A difference of test scores in points, on the same seeds; without an interval both bounds are None."""

    mean: float
    low: float | None
    high: float | None
    is_told_apart: bool
    n_seeds: int


def _take(at: str, rows: Sequence[_Row], bounds: Bounds, facts: _Facts) -> tuple[str, list[str]]:
    """Return the sentence on the model to take of one task, and the lines on how it was chosen and what it costs."""
    dearest = _at_most_money(rows)
    within = f" {bounds.words}" if bounds.words else ""
    head = f"{at}for {_short_money(dearest[0].mean.request.budget_usd)}{within}: "
    head = head[0].upper() + head[1:] if not at else head
    fit = [row for row in dearest if _fits(row.mean, bounds)]
    if not fit:
        known = [row for row in dearest if row.mean.size_mb is not None]
        smallest = min(known, key=lambda row: (row.mean.size_mb or 0.0, -row.test), default=None)
        if smallest is None:
            return f"{head}nothing; no size is known.", []
        return f"{head}nothing. The smallest is {smallest.name}: test {smallest.test:.1f}.", [_costs(smallest.mean)]
    best = _best_by_dev(fit) or (fit[0] if len(dearest) == 1 else None)
    if best is None:
        highest = max(fit, key=lambda row: row.test)
        why = "no row is chosen, since none has a dev score and test scores choose none"
        return f"{head}{why}. The highest on test is {highest.name}, {highest.test:.1f}.", []
    clauses = [_score(best.mean, facts)]
    other = _next_choice(best, dearest)
    if other is not None and (gap := _gap(best.mean, other.mean, facts)) is not None:
        is_part = gap.n_seeds < max(best.mean.n_ok, other.mean.n_ok)
        shared = f" on the {'seed' if gap.n_seeds == 1 else f'{gap.n_seeds} seeds'} that both have" if is_part else ""
        clauses.append(_gap_words(gap, _name_in_sentence(other, dearest)) + shared)
    if (taught := _teacher_test(best.mean, facts)) is not None:
        clauses.append(f"the teacher itself scores {taught:.1f}")
    by_dev = [] if best.mean.dev is None or len(dearest) == 1 else [f"chosen by its dev score, {best.mean.dev_words}"]
    return f"{head}{best.name}. {'; '.join(clauses)}.", ["; ".join([*by_dev, _costs(best.mean)])]


def _short_money(usd: float) -> str:
    """Return dollars as in a sentence: "$300", "$67.50"."""
    return money(usd).removesuffix(".00")


def _score(mean: SeedMean, facts: _Facts) -> str:
    """Return the test score with its interval, test rows and seeds: "79.7 ± 1.3 on 1,000 test rows"."""
    assert mean.value is not None
    text = f"{mean.value:.1f}"
    if mean.low is not None and mean.high is not None:
        text = with_interval(text, mean.value, mean.low, mean.high)
    answered = (each.answered for name in mean.ids if (each := facts.outputs.get(name)) is not None)
    n_rows = {len(each.golds) for each in answered if each is not None}
    rows = f"{n_rows.pop():,} test rows" if len(n_rows) == 1 else "test"
    seeds = " (one seed)" if mean.n_ok == 1 else ""
    return f"{text} on {rows}{seeds}"


def _teacher_test(mean: SeedMean, facts: _Facts) -> float | None:
    """Return the mean test score of the teachers of a row; None unless that of every scored seed is known."""
    scored = [point.result.teacher_test for name in mean.ids if (point := facts.points.get(name)) is not None]
    return mean_of_known([None if each is None else each.value for each in scored])


def _next_choice(best: _Row, rows: Sequence[_Row]) -> _Row | None:
    """Return the row that the best one of a budget is held against.

    That is annotating, with the same models and method where there is such a row; of a best row that annotates the best other
    strategy by dev, of a best rival the best strategy. A best row without any is held against the best rival by dev.
    """
    others = [row for row in rows if row is not best]
    strategies = [row for row in others if not row.mean.request.is_rival]
    annotated = [row for row in strategies if _annotates(row)]
    if annotated and not (best.mean.request.is_rival or _annotates(best)):
        return max(annotated, key=lambda row: (_n_alike(best, row), row.mean.dev or 0.0))
    return _best_by_dev(strategies) or _best_by_dev(others)


def _n_alike(one: _Row, other: _Row) -> int:
    """Return the number of choices that two rows share, models and labels first of all."""
    names = ("student", "student_method", "n_initial", "machine", "price_book", "dev")
    return sum(getattr(one.mean.request, name) == getattr(other.mean.request, name) for name in names)


def _name_in_sentence(row: _Row, rows: Sequence[_Row]) -> str:
    """Return the name of a row after "over": "annotating" where one row of the budget annotates."""
    annotated = [each for each in rows if _annotates(each)]
    return "annotating" if annotated == [row] else row.name


def _annotates(row: _Row) -> bool:
    return not row.mean.request.is_rival and row.mean.request.policy == BASELINE


def _gap(one: SeedMean, other: SeedMean, facts: _Facts) -> _Gap | None:
    """Return the difference of two rows on the seeds that both have; None without such a seed."""
    for test in facts.tests:
        for sign, (first, second) in ((1, test.sides), (-1, test.sides[::-1])):
            if first and set(first) <= set(one.ids) and set(second) <= set(other.ids):
                low, high = sorted((sign * test.low, sign * test.high))
                is_apart = test.is_significant if test.p_holm is not None else not low <= 0 <= high
                return _Gap(sign * test.mean, low, high, is_apart, test.n_seeds)
    ones, others = (
        {point.request.seed: point.result.test or 0.0 for name in each.ids if (point := facts.points.get(name))}
        for each in (one, other)
    )
    by_seed = [test - others[seed] for seed, test in ones.items() if seed in others]
    if not by_seed:
        return None
    mean, half = statistics.fmean(by_seed), half_of_means(by_seed)
    if half is None:
        return _Gap(mean, None, None, is_told_apart=True, n_seeds=1)
    return _Gap(mean, mean - half, mean + half, abs(mean) > half, len(by_seed))


def _gap_words(gap: _Gap, other: str) -> str:
    """Return a difference in words: "7.1 ± 1.2 points over annotating", "not told apart from annotating: +0.4 ± 1.9 points"."""
    if not gap.is_told_apart:
        text = signed(gap.mean)
        if gap.low is not None and gap.high is not None:
            text = with_interval(text, gap.mean, gap.low, gap.high).replace("-", MINUS)
        return f"not told apart from {other}: {text} points"
    size, side = (gap.mean, "over") if gap.mean >= 0 else (-gap.mean, "under")
    text = f"{size:.1f}"
    if gap.low is not None and gap.high is not None:
        low, high = sorted((abs(gap.low), abs(gap.high)))
        text = with_interval(text, size, low, high)
    return f"{text} points {side} {other}"


def _fits(mean: SeedMean, bounds: Bounds) -> bool:
    """Return whether a model is within the bounds; one of unknown size or speed is not."""
    limits = (mean.size_mb, bounds.max_student_mb), (mean.latency_ms, bounds.max_ms)
    return all(most is None or (value is not None and value <= most) for value, most in limits)


def _costs(mean: SeedMean) -> str:
    """Return what a row costs: "charge $12.50, 4.0 MB, 0.031 ms a row"."""
    size = [] if mean.size_mb is None else [f"{size_text(mean.size_mb)} MB"]
    speed = [] if mean.latency_ms is None else [f"{latency_text(mean.latency_ms)} ms a row"]
    return ", ".join([f"charge {money(mean.charge_usd)}", *size, *speed])


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
