"""The table of differences: every pair of strategies at one budget, with its interval, its corrected p and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from outlay.report.cells import dollars, thousands
from outlay.report.laid import CellValue, Head, Item, LaidOut, pivot
from outlay.report.tables import MINUS, signed

SMALLEST_P = 0.001
"""Below it a p is written as "< 0.001"."""


class Tested(Protocol):
    """A paired test of a family, first minus second, in points (`outlay.significance.PairedTest`)."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def budget_usd(self) -> float:
        """Total budget of both sides."""

    @property
    def n_initial(self) -> int | None:
        """Initial labels of both."""

    @property
    def first(self) -> str:
        """Label of the first side."""

    @property
    def second(self) -> str:
        """Label of the second side."""

    @property
    def mean(self) -> float:
        """Mean difference."""

    @property
    def low(self) -> float:
        """Lower end of its 95 % interval."""

    @property
    def high(self) -> float:
        """Upper end."""

    @property
    def p_holm(self) -> float:
        """Two-sided p after Holm's correction over the family."""

    @property
    def is_significant(self) -> bool:
        """Whether that p is at most 0.05."""

    @property
    def smallest(self) -> float:
        """How small a difference the test could have seen within its family."""

    @property
    def n_comparisons(self) -> int:
        """Size of the family."""

    @property
    def n_seeds(self) -> int:
        """Seeds that both sides have."""

    @property
    def n_examples(self) -> int:
        """Test examples."""


def lay_out_differences(tests: Sequence[Tested]) -> LaidOut | None:
    """One row per test, block by block of a task and budget, in the order given; None without tests.

    Bold: told from none after the correction. The verdict of the others says what they could have seen.
    """
    if not tests:
        return None
    tasks = tuple(dict.fromkeys(test.task for test in tests))
    items: list[Item] = []
    places: dict[str, int] = {}
    for i, test in enumerate(tests):
        n = "" if test.n_initial is None else f" (N={thousands(test.n_initial)})"
        at = f"{test.task}, {dollars(test.budget_usd)}{n}"
        block = Head((places.setdefault(at, len(places)),), at)
        row = Head((i,), f"{test.first} {MINUS} {test.second}")
        items += [Item(block, row, head, cell) for head, cell in _cells(test)]
    n_seeds, n_examples = ({getattr(test, name) for test in tests} for name in ("n_seeds", "n_examples"))
    laid = pivot("Differences", ("Task, budget", "Pair"), items, tasks=tasks)
    notes = (
        "Points of the test score with their 95 % intervals, paired over the same test examples and seeds: "
        f"{_span(n_examples)} examples, {_span(n_seeds)} {'seed' if n_seeds == {1} else 'seeds'}."
        + (" One seed says nothing of others." if 1 in n_seeds else ""),
        f"p: two-sided, after Holm's correction over all {tests[0].n_comparisons} comparisons. Bold: p is at most 0.05.",
    )
    return replace(laid, notes=notes)


def _cells(test: Tested) -> list[tuple[Head, CellValue]]:
    difference = f"{signed(test.mean)} [{signed(test.low)}, {signed(test.high)}]"
    p = f"< {SMALLEST_P}" if test.p_holm < SMALLEST_P else f"{test.p_holm:.3f}"
    return [
        (
            Head((0,), "Difference"),
            CellValue(test.mean, test.low, test.high, "words", words=difference, is_best=test.is_significant),
        ),
        (Head((1,), "p"), CellValue(test.p_holm, unit="words", words=p)),
        (Head((2,), "Verdict"), CellValue(unit="words", words=verdict(test))),
    ]


def verdict(test: Tested) -> str:
    """What a test says, in words; of one that finds nothing, how small a difference it could have seen."""
    if test.is_significant:
        return f"{test.first if test.mean > 0 else test.second} is ahead"
    if abs(test.mean) >= test.smallest:
        return "not told apart, just"  # the interval is a little skewed, or p as fine as the resamples allow
    return f"not told apart; {test.smallest:.1f} points would be"


def _span(numbers: set[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
