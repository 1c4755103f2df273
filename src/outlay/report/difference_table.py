"""The table of paired differences between strategies at one budget: interval, corrected p and verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outlay.report.cells import dollars, thousands
from outlay.report.scores import ONE_SEED_PAIR
from outlay.report.significance import PairedTest
from outlay.report.table import Heading, PlacedCell, Table, TableCell, pivot, row_cells
from outlay.report.values import MINUS, points_text, signed

SMALLEST_P = 0.001
"""The smallest p written as a number; a smaller one is written "< 0.001"."""


def lay_out_differences(tests: Sequence[PairedTest]) -> Table | None:
    """Lay out one row per pair, in blocks of a task and budget and the order given; None without pairs.

    Bold: significant after the correction. The verdict of any other pair names the smallest difference its test could have found,
    or the reason why there is no test.
    """
    if not tests:
        return None
    tasks = tuple(dict.fromkeys(test.task for test in tests))
    items: list[PlacedCell] = []
    places: dict[str, int] = {}
    for i, test in enumerate(tests):
        n = "" if test.n_initial is None else f" (N={thousands(test.n_initial)})"
        at = f"{test.task}, {dollars(test.budget_usd)}{n}"
        block = Heading((places.setdefault(at, len(places)),), at)
        row = Heading((i,), f"{test.first} {MINUS} {test.second}")
        items += row_cells(row, _cells(test), block)
    table = pivot("Differences", ("Task, budget", "Pair"), items, tasks=tasks)
    return replace(table, notes=_notes(tests))


def _notes(tests: Sequence[PairedTest]) -> tuple[str, ...]:
    n_seeds, n_examples = ({getattr(test, name) for test in tests} for name in ("n_seeds", "n_examples"))
    span = "over new seeds and new test rows"
    if n_seeds == {1}:
        span = f"of {ONE_SEED_PAIR}"
    elif 1 in n_seeds:
        span += f", of {ONE_SEED_PAIR} where there is one seed"
    notes = [
        f"Points of the test score with their 95 % intervals, {span}; paired over the same test rows and seeds: "
        f"{_span(n_examples)} rows, {_span(n_seeds)} {'seed' if n_seeds == {1} else 'seeds'}."
    ]
    if 1 in n_seeds:
        notes.append("One seed is no evidence about a strategy: its rows have no test.")
    tested = [test for test in tests if test.p_holm is not None]
    of_strategies, of_rivals = ([t.n_comparisons for t in tested if t.has_rival == is_one] for is_one in (False, True))
    if tested:
        n = [f"all {of_strategies[0]} comparisons"] if of_strategies else []
        n += [f"all {of_rivals[0]} with the best rival of a budget"] if of_rivals else []
        notes.append(f"p: two-sided, after Holm's correction over {', and over '.join(n)}. Bold: p is at most 0.05.")
    return tuple(notes)


def _cells(test: PairedTest) -> dict[str, TableCell | None]:
    words = f"{signed(test.mean)} [{signed(test.low)}, {signed(test.high)}]"
    p = test.p_holm
    p_words = "" if p is None else f"< {SMALLEST_P}" if p < SMALLEST_P else f"{p:.3f}"
    return {
        "Difference": TableCell(test.mean, test.low, test.high, "words", words, is_best=test.is_significant),
        "p": None if p is None else TableCell(p, unit="words", words=p_words),
        "Verdict": TableCell(unit="words", words=verdict(test)),
    }


def verdict(test: PairedTest) -> str:
    """Return the verdict of a test in words; one without a finding names the smallest difference it could have found."""
    if test.n_apart == 0:
        return "every test row scored alike"
    if test.p_holm is None or test.smallest is None:
        return "one seed, no test" if test.n_seeds == 1 else "too few test rows for a test"
    if test.is_significant:
        return f"{test.first if test.mean > 0 else test.second} is ahead"
    if abs(test.mean) >= test.smallest:
        # Two added rows shrink the mean, and few differing rows keep p high, so a difference as large as `smallest` can fail.
        return "not told apart, just"
    return f"not told apart; {points_text(test.smallest)} points would be"


def _span(numbers: set[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
