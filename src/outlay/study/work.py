"""The work of steps: their numbers, labels, optimiser steps, hours and seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from outlay.engine.point import usd_of
from outlay.plan.steps import OWNED, Buy, Step

KINDS = ("buy", "train", "teach", "distil", "score")
"""Kinds of steps, in the order in which they run."""


@dataclass(frozen=True, slots=True)
class LabelCount:
    """Numbers of labels, each counted once: ``n_bought`` from sellers, ``n_owned`` that cost nothing."""

    n_bought: int
    n_owned: int


def count_labels(steps: Iterable[Step]) -> LabelCount:
    """Count the labels of some steps; purchases that share rows share their labels.

    Labels that are owned are the same rows whatever the seed, which only orders them.
    """
    spans: dict[tuple[bool, str], list[tuple[int, int]]] = {}
    for step in steps:
        if isinstance(step, Buy):
            is_owned = step.seller == OWNED
            spans.setdefault((is_owned, step.rows_digest if is_owned else step.series), []).append(
                (step.start, step.stop)
            )
    counts = dict.fromkeys((False, True), 0)
    for (is_owned, _), rows in spans.items():
        end = 0
        for start, stop in sorted(rows):
            counts[is_owned] += max(0, stop - max(start, end))
            end = max(end, stop)
    return LabelCount(counts[False], counts[True])


@dataclass(frozen=True, slots=True)
class LabelCost:
    """Dollars of a purchase whose labels are given for real, in micro-dollars: what is expected of it, and the most it can be."""

    seller: str
    expected_micros: int
    most_micros: int

    def to_json(self) -> dict[str, Any]:
        """Return the cost as JSON values."""
        return {
            "seller": self.seller,
            "expected_usd": usd_of(self.expected_micros),
            "at_most_usd": usd_of(self.most_micros),
        }


def cost_by_seller(costs: Iterable[LabelCost]) -> list[LabelCost]:
    """Return the sums of some purchases, one for each seller."""
    found: dict[str, LabelCost] = {}
    for each in costs:
        before = found.get(each.seller, LabelCost(each.seller, 0, 0))
        expected, most = before.expected_micros + each.expected_micros, before.most_micros + each.most_micros
        found[each.seller] = LabelCost(each.seller, expected, most)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class StudyWork:
    """The work of some steps: their number, optimiser steps, hours and seconds.

    ``n_steps``: number of steps by kind; ``n_optimizer_steps``: batches trained, with every epoch run to its end;
    ``charged_hours``: hours by the flops clock of the machines they are charged as, a bound of the charge and not of wall time;
    ``seconds_here``: forecast of wall seconds on this machine, ``None`` where no profile was measured with their threads.
    """

    n_steps: Mapping[str, int]
    n_optimizer_steps: int
    charged_hours: float
    seconds_here: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the work as JSON values."""
        return {
            "steps": {kind: self.n_steps.get(kind, 0) for kind in KINDS},
            "optimizer_steps": self.n_optimizer_steps,
            "charged_hours_at_most": self.charged_hours,
            "wall_seconds_forecast": self.seconds_here,
        }


def total_work(works: Iterable[StudyWork]) -> StudyWork:
    """Return the sum of some work; without a forecast of all of it there is none."""
    n_steps = dict.fromkeys(KINDS, 0)
    n_optimizer_steps, charged_hours = 0, 0.0
    seconds: float | None = 0.0
    for each in works:
        for kind, n in each.n_steps.items():
            n_steps[kind] += n
        n_optimizer_steps += each.n_optimizer_steps
        charged_hours += each.charged_hours
        seconds = None if seconds is None or each.seconds_here is None else seconds + each.seconds_here
    return StudyWork(n_steps, n_optimizer_steps, charged_hours, seconds)
