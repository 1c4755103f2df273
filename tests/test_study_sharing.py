"""A grid of 20 points a seed, like the published Table 2, run for real: what is trained, counted by batches, and charged.

How much sharing saves is a matter of the grid. Here, as where compute is cheap beside labels, the larger budgets pay for the
whole pool, so that one student serves them; where every budget buys another part of the pool, only the teachers are shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

from outlay.engine.outputs import manifest_of
from outlay.engine.point import Point, micros_of
from outlay.engine.prepare import RunBuilder
from outlay.engine.runner import Runner
from outlay.money.amounts import Price, PriceBook
from outlay.plan import context
from outlay.plan.request import Request
from outlay.report.receipt import receipt
from outlay.study.dry_run import StudyPlan, plan
from outlay.study.runner import read_results
from outlay.workers.pool import InProcessPool, TaskResult
from tests.runs import World, runner
from tests.studies import check_books, conducted, worker_factory

LABEL_MICROS = 200_000
BLOCK = 64
ONE_EPOCH = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32"}
SETTINGS = {"teacher": {**ONE_EPOCH, "epochs": 2, "method": "full"}, "student": ONE_EPOCH, "distil": ONE_EPOCH}


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "BLOCK_ROWS", BLOCK)
        yield


class Counting(InProcessPool):
    """Counts the optimiser's steps of each piece of work."""

    def __init__(self, one: Runner, book: PriceBook) -> None:
        super().__init__(worker_factory(one, book))
        self.n_steps: Counter[str] = Counter()

    def wait(self, timeout_seconds: float | None = None) -> list[TaskResult]:
        counted = 0

        def count(*_: Any) -> None:
            nonlocal counted
            counted += 1

        hook = register_optimizer_step_post_hook(count)
        try:
            ended = super().wait(timeout_seconds)
        finally:
            hook.remove()
        for each in ended:
            assert each.value.key == each.name, "a limit cut this work short"
            assert each.name not in self.n_steps, "this was made before"
            self.n_steps[each.name] = counted
        return ended


@dataclass(frozen=True)
class Conducted:
    """The study when it is over."""

    asked: list[Request]
    workbench: RunBuilder
    planned: StudyPlan
    one: Runner
    points: list[Point]
    n_steps: Counter[str]

    def run(self, i: int) -> str:
        return self.workbench.resolve(self.asked[i]).run_id

    def n_steps_of(self, i: int) -> int:
        """Optimiser steps behind a point, whoever had them made."""
        manifest = manifest_of(self.one.folder, self.run(i))
        assert manifest is not None
        return sum(self.n_steps[artifact["key"]] for artifact in manifest["artifacts"])


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["one seed", "two seeds"])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Conducted:
    """Two numbers of initial labels, five added budgets, both strategies, some seeds; compute weighs as much as labels."""
    world = World(tmp_path_factory.mktemp("world"), n_pool=200, n_layers=2)
    asked = [
        world.request(
            strategy=name,
            n_initial=n,
            budget_micros=n * LABEL_MICROS + added * 1_000_000,
            seed=seed,
            student="cut:1",
            student_training="free",
            overrides=SETTINGS,
        )
        for seed, n, added, name in product(range(request.param), (20, 40), (1, 2, 3, 4, 5), ("annotate", "distill"))
    ]
    dear = PriceBook([*PriceBook.load().items(), Price("cpu", "hour", Decimal(750_000), "a test", None)])
    folder, workbench = tmp_path_factory.mktemp("study"), RunBuilder(dear)
    one = runner(folder / "out", folder / "store")
    with Counting(one, dear) as pool:
        points = conducted(workbench, asked, one, pool)
    return Conducted(asked, workbench, plan(workbench, asked), one, points, pool.n_steps)


def test_every_point_is_there_and_the_larger_budgets_buy_more(study: Conducted) -> None:
    assert len(study.points) == 20 * len({point.request.seed for point in study.points})
    assert all(point.is_ok for point in study.points)
    pools = {point.result.n_pool for point in study.points if point.request.strategy == "distill"}
    assert len(pools) >= 3
    assert max(pools) == 320
    n_labels = [p.result.n_labels for p in study.points if p.request.strategy == "annotate"][:5]
    assert n_labels == [25, 30, 35, 40, 45]


def test_at_most_sixty_percent_of_the_steps_of_separate_runs_are_trained(study: Conducted) -> None:
    trained = study.n_steps.total()
    separate = sum(study.n_steps_of(i) for i in range(len(study.points)))
    print(
        f"{trained} optimiser steps for {len(study.points)} points, {separate} in separate runs: {trained / separate:.1%}"
    )
    assert 0 < trained <= 0.6 * separate
    assert (trained, separate) == (study.planned.distinct.n_optimizer_steps, study.planned.separate.n_optimizer_steps)
    assert 1 - trained / separate == study.planned.saved


def test_receipts_add_up_point_by_point(study: Conducted) -> None:
    check_books(study.one, study.workbench, study.asked, study.points)
    left = read_results(study.one.folder).outputs
    for i, point in enumerate(study.points):
        bill = receipt(study.one.ledger, study.run(i))
        assert (
            sum(line.charge_micros for line in bill.lines) == bill.charge_micros == micros_of(point.result.charge_usd)
        )
        parts = left[point.id].charges_usd
        assert parts is not None
        assert sum(map(micros_of, parts.values())) == bill.charge_micros
        assert bill.charge_micros <= study.planned.points[i].charge_micros <= study.asked[i].budget_micros


@pytest.mark.parametrize("place", [1, 4, -1], ids=["teacher-and-some-pool", "labels", "teacher-and-all-pool"])
def test_a_point_alone_is_charged_and_scores_the_same(study: Conducted, place: int, tmp_path: Path) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    with Counting(one, study.workbench.price_book) as pool:
        [alone] = conducted(study.workbench, [study.asked[place]], one, pool)
    assert alone.result_bytes() == study.points[place].result_bytes()
    assert pool.n_steps.total() == study.n_steps_of(place) > 0
    mine, theirs = (
        [(entry.key, entry.charge_micros) for entry in each.ledger.entries(study.run(place)) if entry.kind == "settle"]
        for each in (one, study.one)
    )
    assert sorted(mine) == sorted(theirs)
