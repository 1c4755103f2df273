from __future__ import annotations

import dataclasses
import random
import statistics

import pytest

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Reading
from outlay.metrics import Answered, mean_score
from outlay.report.results import Header, Results
from outlay.report.seed_means import means
from tests.test_report import point

HEADER = Header("table2", "Table 2", "budgets")


def answered(seed: int, n_examples: int = 41) -> Answered:
    rng = random.Random(seed)
    golds = ["yes" if i % 3 else "no" for i in range(n_examples)]
    return Answered([gold if rng.random() < 0.8 else "no" for gold in golds], golds, ("yes", "no"))


def test_seeds_are_averaged_and_every_other_difference_is_another_mean() -> None:
    points = [point("distill", 300.0, seed, 70.0 + seed, charge_usd=200.0 + seed, n_labels=1000) for seed in (2, 0, 1)]
    points += [
        point("distill", 300.0, 0, 60.0, n_initial=100),
        point("distill", 300.0, 0, 50.0, pool=(("train", 100),)),
    ]
    first, fewer, smaller = means(Results(HEADER, tuple(points), {}))
    assert first.ids == tuple(each.id for each in sorted(points[:3], key=lambda each: each.request.seed))
    assert (first.value, first.charge_usd, first.n_labels, first.n_ok, first.n_seeds) == (71.0, 201.0, 1000, 3, 3)
    assert (fewer.value, smaller.value, fewer.low, fewer.n_ok) == (60.0, 50.0, None, 1)
    assert len({first.key, fewer.key, smaller.key}) == 3
    # Student's t by hand: 4.302653 * 1 / sqrt(3)
    assert first.low == pytest.approx(71 - 4.302653 / 3**0.5)
    assert first.high == pytest.approx(71 + 4.302653 / 3**0.5)


def test_with_every_seeds_answers_the_interval_is_over_examples_and_seeds() -> None:
    points = [point("distill", 300.0, seed, 80.0) for seed in range(3)]
    left = {
        each.id: RunOutputs(f"run{i}", "accuracy", answered(i), charges_usd={"labels": 10.0 * i})
        for i, each in enumerate(points)
    }
    (mean,) = means(Results(HEADER, tuple(points), left))
    wanted = mean_score("accuracy", [answered(i) for i in range(3)])
    assert (mean.low, mean.high) == (wanted.low, wanted.high)
    assert mean.charges_usd == {"labels": 10.0, "teacher": 0.0, "targets": 0.0, "student": 0.0, "scores": 0.0}
    assert mean.covers == "seeds and rows"
    # One seed's answers are gone and nothing tells how rows vary: over seeds alone, and these agree.
    del left[points[1].id]
    (mean,) = means(Results(HEADER, tuple(points), left))
    assert (mean.low, mean.high, mean.charges_usd, mean.covers) == (80.0, 80.0, None, "seeds")


def test_one_seed_without_answers_has_the_interval_of_its_point() -> None:
    one = point("distill", 300.0, 0, 80.0, scores={"accuracy/published": Reading(80.0, 77.5, 82.0)})
    (mean,) = means(Results(HEADER, (one,), {one.id: RunOutputs("run", "accuracy")}))
    assert (mean.low, mean.high, mean.covers) == (77.5, 82.0, "rows")
    (mean,) = means(Results(HEADER, (one,), {}))
    assert (mean.low, mean.high) == (77.5, 82.0), "found by its value, without a metric"
    bare = point("distill", 300.0, 0, 80.0)
    (mean,) = means(Results(HEADER, (bare,), {}))
    assert (mean.low, mean.high, mean.covers) == (None, None, None)


def test_a_lost_seed_is_left_out_of_the_mean() -> None:
    points = [point("distill", 300.0, 0, None), point("distill", 300.0, 1, 70.0, charge_usd=99.0)]
    (mean,) = means(Results(HEADER, tuple(points), {}))
    assert (mean.value, mean.charge_usd, mean.n_ok, mean.n_seeds) == (70.0, 99.0, 1, 2)
    (mean,) = means(Results(HEADER, tuple(points[:1]), {}))
    assert (mean.value, mean.low, mean.charge_usd, mean.n_labels, mean.n_ok) == (None, None, None, None, 0)


def test_many_points_are_averaged_over_their_seeds() -> None:
    base = point("distill", 300.0, 0, 80.0)
    points = [
        dataclasses.replace(base, request=dataclasses.replace(base.request, seed=i % 5, n_initial=1 + i // 5))
        for i in range(500)
    ]
    found = means(Results(HEADER, tuple(points), {}))
    assert len(found) == 100
    assert statistics.fmean(mean.n_seeds for mean in found) == 5
