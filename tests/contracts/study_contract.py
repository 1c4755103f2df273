"""What a study must come to on every pool: subclass `StudyContract`, say how to make the pool, and run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from outlay.engine.point import Point, read_points
from outlay.engine.prepare import RunBuilder
from outlay.engine.run_dir import STUDY_FILE
from outlay.engine.runner import Runner
from outlay.study.dry_run import plan
from outlay.study.runner import Status, status_of
from outlay.study.scheduler import StepRunnerFactory
from outlay.workers.pool import InProcessPool, WorkerPool
from tests.checkpoints import make_checkpoint
from tests.listeners import Onlooker
from tests.runs import World, runner
from tests.studies import Idle, check_books, conducted, toy_cells, worker_factory

StudyPoolMaker = Callable[[StepRunnerFactory], WorkerPool]
STUDENT = "cut:1"
PATIENCE_SECONDS = 60.0


def small_world(root: Path) -> World:
    return World(root, n_layers=2)


def conducted_plainly(world: World, folder: Path) -> Path:
    """The results folder of the study as one process conducts it, undisturbed, with a store of its own."""
    one = runner(folder / "out", folder / "store")
    with InProcessPool(worker_factory(one)) as pool:
        conducted(world.workbench, toy_cells(world, student=STUDENT), one, pool)
    return folder / "out"


class Stopper(Onlooker):
    """Looks at the study from outside as soon as a point is there, then stops it as Ctrl-C does."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.seen: Status | None = None

    def point(self, point: Point, n_done: int) -> None:
        self.seen = status_of(self._folder)
        raise KeyboardInterrupt


def index_of(folder: Path) -> dict[str, Any]:
    """The index of a study's folder, without where its artifacts are."""
    document: dict[str, Any] = json.loads((folder / STUDY_FILE).read_text(encoding="utf-8"))
    del document["store"]
    return document


def results(points: Sequence[Point]) -> list[bytes]:
    return [point.result_bytes() for point in points]


def n_entries(one: Runner, runs: Sequence[str]) -> dict[str, int]:
    return {run: len(one.ledger.entries(run)) for run in runs}


class StudyContract:
    """Make `Test…` a subclass of this and define `make`, in reach of fixtures ``world`` (of `small_world`) and ``plain`` (of
    `conducted_plainly`)."""

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls) -> StudyPoolMaker:
        """What is tested, of a worker factory."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Of all tests of a class, so that its workers serve them all; each test has a seed of its own, and so its own steps."""
        return tmp_path_factory.mktemp("store")

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls, make: StudyPoolMaker, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
        with make(worker_factory(runner(tmp_path_factory.mktemp("any"), store))) as pool:
            yield pool

    def test_a_study_that_is_stopped_goes_on_to_the_results_of_one_process(
        self, world: World, pool: WorkerPool, store: Path, plain: Path, tmp_path: Path
    ) -> None:
        asked, one = toy_cells(world, student=STUDENT), runner(tmp_path, store)
        runs = [world.workbench.resolve(request).run_id for request in asked[:5]]
        stopper = Stopper(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            conducted(world.workbench, asked, one, pool, stopper)
        while pool.n_free < pool.n_workers:  # whoever stops a study leaves its pool; this one is needed again
            pool.wait(PATIENCE_SECONDS)
        status = status_of(tmp_path)
        assert stopper.seen is not None
        assert stopper.seen.n_by_status == status.n_by_status == {"ok": 1, "na": 1, "left": 4}
        assert not status.is_done
        assert status.held == ()
        assert [why for why, *_ in status.reasons] == ["na"]
        kept = read_points(tmp_path / "points.json")
        assert sorted(point.result.status for point in kept) == ["na", "ok"]
        [done] = [run for run in runs if one.run_folder(run).manifest.exists()]
        before = n_entries(one, [done])

        onlooker = Onlooker()
        points = conducted(world.workbench, asked, one, pool, onlooker)
        assert onlooker.begun
        assert onlooker.problems == []
        assert [point.result.status for point in points] == ["ok"] * 5 + ["na"]
        assert results(points) == results(read_points(plain / "points.json"))
        assert results(read_points(tmp_path / "points.json")) == results(points)
        by_id = {point.id: point for point in points}
        assert [by_id[point.id].to_json() for point in kept] == [point.to_json() for point in kept]
        assert n_entries(one, [done]) == before
        assert index_of(tmp_path) == index_of(plain)
        assert {path.stem for path in (tmp_path / "receipts").iterdir()} == set(runs)
        check_books(one, world.workbench, asked, points)
        status = status_of(tmp_path)
        assert status.is_done
        assert (status.n_by_status, status.held) == ({"ok": 5, "na": 1}, ())
        assert [why for why, *_ in status.reasons] == ["na"]

        n_booked = one.ledger.anchor().count
        with Idle(worker_factory(one)) as idle:
            replayed = conducted(world.workbench, asked, one, idle)
        assert [point.to_json() for point in replayed] == [point.to_json() for point in points]
        assert one.ledger.anchor().count == n_booked

    def test_a_point_that_cannot_be_made_fails_alone_and_is_tried_again(
        self, world: World, pool: WorkerPool, store: Path, tmp_path: Path
    ) -> None:
        """The teacher's checkpoint goes away between the plan and the work."""
        teacher = tmp_path / "teacher"
        make_checkpoint(teacher, ["a few words"], n_layers=1, seed=7)
        asked = [
            world.request(strategy="annotate", seed=2, student=STUDENT),
            world.request(
                strategy="distill", seed=2, teacher=str(teacher), student=STUDENT, base=str(world.checkpoint)
            ),
            world.request(strategy="self_distill", seed=2, student=STUDENT),
            world.request(
                strategy="annotate", seed=2, teacher=str(tmp_path / "nowhere"), student=str(world.checkpoint)
            ),
        ]
        one, bench = runner(tmp_path / "out", store), RunBuilder(world.workbench.price_book)
        planned = plan(bench, asked)
        assert [point.recipe is not None for point in planned.points] == [True, True, True, False]
        away = shutil.move(teacher, tmp_path / "away")
        points = conducted(bench, asked, one, pool)
        assert [point.result.status for point in points] == ["ok", "failed", "ok", "na"]
        reason = points[1].result.reason or ""
        assert str(teacher) in reason
        assert "nowhere" in (points[3].result.reason or "")
        check_books(one, bench, asked[:3], points[:3])
        kept = read_points(tmp_path / "out" / "points.json")
        assert [point.to_json() for point in kept] == [point.to_json() for point in points]
        status = status_of(tmp_path / "out")
        assert status.n_by_status == {"ok": 2, "failed": 1, "na": 1}
        assert [why for kind, _, why in status.reasons if kind == "failed"] == [reason]

        shutil.move(away, teacher)
        finished = [bench.resolve(request).run_id for request in (asked[0], asked[2])]
        before = n_entries(one, finished)
        with InProcessPool(
            worker_factory(one)
        ) as fresh:  # workers remember what could not be read for as long as they live
            healed = conducted(bench, asked, one, fresh)
        assert [point.result.status for point in healed] == ["ok", "ok", "ok", "na"]
        assert n_entries(one, finished) == before
        check_books(one, bench, asked[:3], healed[:3])
