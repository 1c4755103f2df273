"""Results as a finished study would leave them, made by a formula: for tests of reports."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any, get_args

import pytest

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point
from outlay.metrics import Answered
from outlay.report.results import Header, Layout, Results
from tests.test_report import point

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
SOME_LAYOUTS = [
    each if each in ("plain", "pool", "budgets", "match") else pytest.param(each, marks=pytest.mark.slow)
    for each in LAYOUTS
]
"""For tests that draw: the others are `slow`."""
TASKS = ("fever", "multipit_id")
LABEL_USD, START_USD, ROW_USD = 0.129, 40.0, 0.002
N_EXAMPLES = 199


def asked(layout: Layout) -> list[dict[str, Any]]:
    """The cells of a layout, without task and seed."""
    both = ("annotate", "distill")
    if layout == "pool":
        pools = [("annotate", 0), ("distill", 10_000), ("distill", 100_000)]
        return [cell(s, n, u) for (s, u), n in itertools.product(pools, (100, 500, 1000, 5000, 10_000))]
    if layout == "budgets":
        return [cell(s, n, 20_000, a) for n, a, s in itertools.product((100, 1000, 5000), (100, 200, 300), both)]
    if layout == "initial":
        return [cell(s, n, 20_000, 200) for n, s in itertools.product((100, 500, 1000, 5000, 10_000), both)]
    if layout == "students":
        sizes = ("t5-small", "t5-base", "t5-large")
        return [cell(s, n, 20_000, 300, student=m) for s, m, n in itertools.product(both, sizes, (100, 1000, 5000))]
    if layout == "teachers":
        sizes = ("t5-large", "t5-xl", "t5-xxl")
        distilled = [cell("distill", n, 20_000, 200, teacher=m) for m, n in itertools.product(sizes, (100, 1000, 5000))]
        return [cell("annotate", n, 0, 200) for n in (100, 1000, 5000)] + distilled
    if layout == "match":
        return [cell("annotate", n, 0) for n in (1000, 3000, 10_000, 80_000)] + [cell("distill", 1000, 100_000)]
    if layout == "llm":
        sold = ("annotate", "llm_annotate", "mix", "distill")
        return [cell(s, n, 20_000, 200) for s, n in itertools.product(sold, (100, 1000, 5000))]
    if layout == "general":
        return [
            cell(s, n, 20_000) for n, s in itertools.product((1000, 5000), ("annotate", "general_distill", "distill"))
        ]
    if layout == "self":
        return [cell(s, 1000, 20_000) for s in ("self_distill", "distill")]
    return [cell(s, n, 20_000, a) for s, n, a in itertools.product((*both, "self_distill"), (1000,), (100, 300))]


def cell(strategy: str, n_initial: int, n_pool: int, added: float = 0.0, **models: str) -> dict[str, Any]:
    is_taught = "distill" in strategy and strategy != "general_distill"
    pool = n_pool if is_taught else 0
    labels = n_initial + (0 if is_taught else round(added / LABEL_USD))
    size = {"t5-small": 0, "t5-base": 3, "t5-large": 5}.get(models.get("student", ""), 0)
    size += {"t5-large": -4, "t5-xl": -1, "t5-xxl": 1}.get(models.get("teacher", ""), 0)
    gain = {"distill": 3.2, "self_distill": 1.5, "general_distill": 0.0, "mix": 1.0}.get(strategy, 0.0)
    score = 48 + 3.4 * math.log(labels) + (gain * math.log10(1 + pool) * 0.35 if pool else gain) + size
    labels_usd = round(labels * LABEL_USD, 4)
    compute = {
        "labels": labels_usd,
        "teacher": START_USD,
        "targets": round(pool * ROW_USD, 4),
        "student": 3.0,
        "scores": 0.5,
    }
    charges = compute if is_taught else {"labels": labels_usd, "student": 3.0, "scores": 0.5}
    return {
        "strategy": strategy,
        "budget_usd": round(n_initial * LABEL_USD + added, 2) or 1.0,
        "added_usd": added,
        "n_initial": n_initial,
        "teacher": models.get("teacher", "t5-xxl") if is_taught else None,
        "student": models.get("student", "t5-small"),
        "pool": (("train", n_pool),),
        "n_labels": labels,
        "n_pool": pool,
        "charges": charges,
        "score": min(score, 97.0),
    }


def made(layout: Layout, *, n_seeds: int = 3, tasks: tuple[str, ...] = TASKS, missing: bool = True) -> Results:
    """A study of a layout with answers, charges by part and receipts; its last cell failed."""
    points: list[Point] = []
    left: dict[str, RunOutputs] = {}
    rng = random.Random(11)
    cells = asked(layout)
    for (t, task), (c, asked_for), seed in itertools.product(enumerate(tasks), enumerate(cells), range(n_seeds)):
        changes = {k: v for k, v in asked_for.items() if k not in ("strategy", "budget_usd", "charges", "score")}
        right = [rng.random() < asked_for["score"] / 100 - 0.04 * t for _ in range(N_EXAMPLES)]
        is_lost = missing and c == len(cells) - 1 and t == len(tasks) - 1
        one = point(
            asked_for["strategy"],
            asked_for["budget_usd"],
            seed,
            None if is_lost else 100 * sum(right) / N_EXAMPLES,
            task=task,
            charge_usd=round(sum(asked_for["charges"].values()), 4),
            **changes,
        )
        run = f"{len(points):016x}"
        answered = Answered(["yes" if hit else "no" for hit in right], ["yes"] * N_EXAMPLES, ("yes", "no"))
        text = f"run {run}\nbudget ${asked_for['budget_usd']:,.2f}\n  labels <{asked_for['n_labels']}> & more\ntotal charge ..."
        left[one.id] = RunOutputs(run, "accuracy", None if is_lost else answered, None, asked_for["charges"], text)
        points.append(one)
    title = {"pool": "Labels and unlabelled rows", "budgets": "Annotate or distill"}.get(layout, layout)
    header = Header(
        name=layout,
        title=title,
        layout=layout,
        source="Kang et al. 2023, Figure 2",
        scale="cpu",
        command=f"outlay study run studies/{layout}.yaml --scale cpu",
        notes=("N and pools are the local data's own.",),
    )
    return Results(header, tuple(points), left)
