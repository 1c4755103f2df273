from __future__ import annotations

import dataclasses
import io
import random
import re
import time
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest

from outlay.errors import DataError
from outlay.metrics import Answered, mean_score
from outlay.point import Point, Reading
from outlay.published import rows
from outlay.report.cells import hours, thousands
from outlay.report.costing import usd_to_reach
from outlay.report.laid import CellValue, Head, Item, LaidOut, pivot
from outlay.report.layouts import lay_out
from outlay.report.rendering import render_html, render_markdown, render_rich
from outlay.report.results import Aftermath, Header, Layout, Results
from tests.test_report import point

LAYOUTS: tuple[Layout, ...] = (
    *("budgets", "self", "match", "costs", "general", "pool", "initial", "students", "teachers", "llm", "plain"),
)
TEACHER, STUDENT = "google/t5-v1_1-xxl", "google/t5-v1_1-small"


def made(strategy: str, added_usd: float, test: float | None, **changes: Any) -> Point:
    """A point of 1,000 labels ($200), whatever is changed."""
    seed = changes.pop("seed", 0)
    n_initial = changes.pop("n_initial", 1000)
    initial_usd = changes.pop("initial_usd", 0.2 * n_initial)
    teacher = changes.pop("teacher", None if strategy in ("annotate", "general_distill", "llm_annotate") else TEACHER)
    whole = {"student": STUDENT, "teacher": teacher, "task": "toy", "added_usd": added_usd, "n_initial": n_initial}
    return point(strategy, initial_usd + added_usd, seed, test, **{**whole, **changes})


def results(layout: Layout, points: list[Point], **left: Any) -> Results:
    aftermath = {p.id: Aftermath(run=p.id[:8], **left) for p in points} if left else {}
    return Results(Header("study", "A study", layout), tuple(points), aftermath)


def published_points() -> tuple[list[Point], dict[str, Aftermath]]:
    points, left = [], {}
    for row in rows("kang_table2_table11"):
        is_distill = row["strategy"] == "distill"
        each = made(
            row["strategy"],
            float(row["usd_additional"]),
            float(row["score"]) if row["score"] else None,
            task=row["task"],
            n_initial=int(row["n_initial"]),
            initial_usd=float(row["usd_initial"]),
            n_labels=int(row["n_initial"]) + int(row["n_additional_labels"] or 0),
            n_pool=int(row["n_unlabeled"] or 0),
            seconds={"a40": 3600.0 * float(row["gpu_hours"] or 0)},
        )
        points.append(each)
        teacher = float(row["teacher_score"]) if is_distill else None
        left[each.id] = Aftermath(run=each.id, teacher_dev=teacher)
    return points, left


def test_x():
    points, left = published_points()
    random.Random(0).shuffle(points)
    for t in lay_out(Results(Header("table2", "Table 2", "budgets"), tuple(points), left)):
        print(render_markdown(t))
