"""Many runs at once: the same results as one after another, each distinct step made once, money right in every order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from outlay.engine.point import Point, micros_of
from outlay.engine.runner import Runner
from outlay.engine.step_runner import Job, JobResult
from outlay.errors import TrainingError
from outlay.money.amounts import PriceBook
from outlay.plan.request import Request
from outlay.study.scheduler import Scheduler, StepRunnerFactory
from outlay.workers.local import LocalPool
from outlay.workers.pool import InProcessPool, TaskResult, WorkerPool
from tests.listeners import Onlooker
from tests.runs import World, runner


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world.fresh()


def whole_grid(world: World) -> list[Request]:
    """Two seeds, two budgets, three strategies; teacher and student of `distill` are the same at both budgets."""
    return [
        world.request(strategy=name, budget_micros=budget, seed=seed)
        for seed in (0, 1)
        for budget in (16_000_000, 19_000_000)
        for name in ("annotate", "distill", "self_distill")
    ]


def grid(world: World) -> list[Request]:
    """All of one seed, and one run of the other."""
    return whole_grid(world)[:7]


def scheduled(one: Runner, world: World, asked: Sequence[Request], pool: WorkerPool) -> tuple[list[Point], Onlooker]:
    points: dict[int, Point] = {}
    listener = Onlooker()
    with pool:
        Scheduler(one, world.workbench, pool, listener, points.__setitem__).run(dict(enumerate(asked)))
    return [points[i] for i in range(len(asked))], listener


def worker_factory(one: Runner) -> StepRunnerFactory:
    return StepRunnerFactory(one.store.location, PriceBook.load())


def by_themselves(world: World, asked: Sequence[Request], tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    """Each run in a store of its own: what it would be, bought alone."""
    points = []
    for request in asked:
        folder = tmp_path_factory.mktemp("alone")
        points.append(runner(folder, folder / "store").execute(world.workbench.prepare(request)))
    return points


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    return by_themselves(world, grid(world), tmp_path_factory)


@pytest.fixture(scope="module")
def all_undisturbed(world: World, undisturbed: list[Point], tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    return undisturbed + by_themselves(world, whole_grid(world)[len(undisturbed) :], tmp_path_factory)


@dataclass(frozen=True)
class Done:
    """The grid when it is over, conducted by one worker in this process."""

    one: Runner
    points: list[Point]
    listener: Onlooker


@pytest.fixture(scope="module")
def done(world: World, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("done")
    one = runner(folder, folder / "store")
    return Done(one, *scheduled(one, world, grid(world), InProcessPool(worker_factory(one))))


@pytest.mark.slow
def test_results_are_those_of_each_run_by_itself(world: World, all_undisturbed: list[Point], tmp_path: Path) -> None:
    one, asked = runner(tmp_path, tmp_path / "store"), whole_grid(world)
    points, listener = scheduled(one, world, asked, LocalPool(worker_factory(one), 2, 1, logs=tmp_path / "logs"))
    assert [p.result_bytes() for p in points] == [p.result_bytes() for p in all_undisturbed]
    assert all(p.is_ok for p in points)
    assert not listener.problems
    assert one.ledger.verify().ok


@pytest.mark.slow
def test_a_lost_worker_changes_no_run_of_the_whole_grid(
    world: World, all_undisturbed: list[Point], tmp_path: Path
) -> None:
    one = runner(tmp_path, tmp_path / "store")
    points, _ = scheduled(one, world, whole_grid(world), Unreliable(one, world, lose=["train", "teach", "train"]))
    assert [p.result_bytes() for p in points] == [p.result_bytes() for p in all_undisturbed]


def test_one_worker_in_this_process_is_enough(undisturbed: list[Point], done: Done) -> None:
    assert [p.result_bytes() for p in done.points] == [p.result_bytes() for p in undisturbed]


def test_each_distinct_step_is_made_once_and_every_point_is_charged_in_full(
    world: World, undisturbed: list[Point], done: Done
) -> None:
    one, asked, points, listener = done.one, grid(world), done.points, done.listener
    made = Counter(
        entry.key for entry in one.ledger.entries() if entry.kind == "settle" and "(reused)" not in entry.note
    )
    assert set(made.values()) == {1}
    separately = sum(len(p.result.artifacts) for p in undisturbed)
    assert 0 < len(listener.begun) < separately
    for point, alone in zip(points, undisturbed, strict=True):
        assert point.result.charge_usd == alone.result.charge_usd
    for request, point in zip(asked, points, strict=True):
        run = world.workbench.resolve(request).run_id
        booked = sum(entry.charge_micros for entry in one.ledger.entries(run) if entry.kind in ("settle", "overrun"))
        assert booked == micros_of(point.result.charge_usd)
        assert booked <= request.budget_micros
    # What was computed left the bank once: all seconds of all artifacts, and no more.
    spent = sum(one.ledger.balance(run).total_cash_micros for run in one.ledger.run_ids())
    seconds = sum(sum(a.circumstance["seconds_by_payer"].values()) for a in one.store.list() if a.kind not in ("buy",))
    assert spent == pytest.approx(float(one.here.usd) * seconds / 3600 * 1e6, abs=len(made))


def test_a_study_that_is_done_is_replayed_and_books_nothing(world: World, done: Done) -> None:
    one = done.one
    n_entries = one.ledger.anchor().count
    again = one.all_finished([world.workbench.resolve(request).run_id for request in grid(world)])
    assert [p.to_json() for p in again.values()] == [p.to_json() for p in done.points]
    assert one.ledger.anchor().count == n_entries


class Unreliable(InProcessPool):
    """Loses or spoils what it is told to; the rest it does."""

    def __init__(self, one: Runner, world: World, *, lose: Sequence[str] = (), spoil: str = "") -> None:
        super().__init__(worker_factory(one))
        self.kinds: dict[str, str] = {}
        self.lose = list(lose)
        self.spoil = spoil

    def submit(self, name: str, payload: Job) -> None:
        self.kinds[name] = payload.step.kind
        super().submit(name, payload)

    def wait(self, timeout_seconds: float | None = None) -> list[TaskResult]:
        assert self._waiting is not None
        name = self._waiting[0]
        if self.kinds[name] in self.lose:
            self.lose.remove(self.kinds[name])
            self._waiting = None
            return [TaskResult(name, 0.5, lost="killed by signal 9")]
        if self.kinds[name] == self.spoil:
            self._waiting = None
            return [TaskResult(name, 0.5, error=TrainingError("the loss is not a number"))]
        return super().wait(timeout_seconds)


def test_a_step_whose_worker_is_lost_is_handed_out_again(
    world: World, undisturbed: list[Point], tmp_path: Path
) -> None:
    one = runner(tmp_path, tmp_path / "store")
    pool = Unreliable(one, world, lose=["train", "teach", "train"])
    points, listener = scheduled(one, world, grid(world), pool)
    assert [p.result_bytes() for p in points] == [p.result_bytes() for p in undisturbed]
    assert listener.problems == ["its worker was lost: killed by signal 9"] * 3
    assert not pool.lose


def test_a_step_that_always_loses_its_worker_fails_its_points_and_no_other(world: World, tmp_path: Path) -> None:
    one = runner(tmp_path, tmp_path / "store")
    asked = grid(world)[:3]  # annotate, distill, self_distill
    points, _ = scheduled(one, world, asked, Unreliable(one, world, lose=["teach"] * 50))
    assert [p.result.status for p in points] == ["ok", "failed", "failed"]
    assert "was lost 3 times, the last time killed by signal 9" in (points[1].result.reason or "")
    assert one.ledger.verify().ok
    assert not any(one.ledger.open_holds(run) for run in one.ledger.run_ids())
    healed, _ = scheduled(one, world, asked, InProcessPool(worker_factory(one)))
    assert all(p.is_ok for p in healed)


def test_an_error_of_a_step_fails_every_point_that_needs_it_after_one_try(world: World, tmp_path: Path) -> None:
    """All three are open before the first step is handed out, so none of them tries by itself."""
    one = runner(tmp_path, tmp_path / "store")
    asked = [world.request(budget_micros=budget) for budget in (16_000_000, 17_000_000, 18_000_000)]
    points, listener = scheduled(one, world, asked, Unreliable(one, world, spoil="distil"))
    assert [p.result.reason for p in points] == ["the loss is not a number"] * 3
    assert listener.begun.count(next(what for what in listener.begun if what.startswith("distil"))) == 1


def test_a_point_that_cannot_be_prepared_fails_alone(world: World, tmp_path: Path) -> None:
    one = runner(tmp_path, tmp_path / "store")
    asked = [world.request(teacher=str(tmp_path / "nowhere")), world.request(strategy="annotate")]
    points, _ = scheduled(one, world, asked, InProcessPool(worker_factory(one)))
    assert [p.result.status for p in points] == ["failed", "ok"]
    assert "nowhere" in (points[0].result.reason or "")


class TwoAtOnce(InProcessPool):
    """Takes a second step before the first is made."""

    def __init__(self, one: Runner) -> None:
        super().__init__(worker_factory(one))
        self.under_way: list[tuple[str, Job]] = []
        self.n_most = 0

    @property
    def n_workers(self) -> int:
        return 2

    @property
    def n_free(self) -> int:
        return 2 - len(self.under_way)

    def submit(self, name: str, payload: Job) -> None:
        self.under_way.append((name, payload))
        self.n_most = max(self.n_most, len(self.under_way))

    def wait(self, timeout_seconds: float | None = None) -> list[TaskResult]:
        if not self.under_way:
            return []
        name, payload = self.under_way.pop(0)
        self._waiting = (name, payload, time.monotonic())
        return super().wait(timeout_seconds)


def capped(folder: Path) -> Runner:
    """A runner whose runs may spend 20 cents between them."""
    here = runner(folder, folder / "x").here
    return Runner(folder, runner(folder, folder / "store").store, here=here, cash_cap_micros=200_000)


def test_a_cash_cap_over_all_runs_is_shared_by_the_steps_under_way(world: World, tmp_path: Path) -> None:
    """Two at once, and neither takes all of the cap: every point is made, and the cap is never passed."""
    one = capped(tmp_path)
    points, _ = scheduled(one, world, grid(world)[:3], pool := TwoAtOnce(one))
    assert pool.n_most == 2
    assert all(p.is_ok for p in points)
    assert sum(one.ledger.balance(run).total_cash_micros for run in one.ledger.run_ids()) <= 200_000


@pytest.mark.slow
def test_a_cash_cap_over_all_runs_is_shared_by_two_workers(world: World, tmp_path: Path) -> None:
    one = capped(tmp_path)
    points, _ = scheduled(one, world, grid(world)[:6], LocalPool(worker_factory(one), 2, 1, logs=tmp_path / "logs"))
    assert all(p.is_ok for p in points)
    assert sum(one.ledger.balance(run).total_cash_micros for run in one.ledger.run_ids()) <= 200_000


def test_a_worker_with_other_data_refuses(world: World, tmp_path: Path) -> None:
    one = runner(tmp_path, tmp_path / "store")
    book = PriceBook.load()
    other = StepRunnerFactory(one.store.location, PriceBook([book.get("label/demo"), book.get("cpu")]))
    points, _ = scheduled(one, world, [world.request(strategy="annotate")], InProcessPool(other))
    assert points[0].result.status == "failed"
    assert "differ from those it was planned with" in (points[0].result.reason or "")


def test_what_comes_back_is_the_key_alone(world: World, tmp_path: Path) -> None:
    """A result travels through the store; only its key through the pool."""
    one = runner(tmp_path, tmp_path / "store")
    seen: list[JobResult] = []

    class Watching(InProcessPool):
        def wait(self, timeout_seconds: float | None = None) -> list[TaskResult]:
            ended = super().wait(timeout_seconds)
            seen.extend(each.value for each in ended)
            return ended

    scheduled(one, world, [world.request(strategy="annotate")], Watching(worker_factory(one)))
    assert seen
    assert all(one.store.get(each.key) is not None and not each.reused for each in seen)
