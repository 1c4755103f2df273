"""The same study by one process, and by one and two workers of this machine; `tests.test_cluster` has the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlay.workers.local import LocalPool
from outlay.workers.pool import InProcessPool
from tests.contracts.study_contract import StudyContract, StudyPoolMaker, conducted_plainly, small_world
from tests.runs import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def plain(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conducted_plainly(world, tmp_path_factory.mktemp("plain"))


class TestInProcess(StudyContract):
    @pytest.fixture(scope="class")
    @classmethod
    def make(cls) -> StudyPoolMaker:
        return InProcessPool


class Locally(StudyContract):
    n_workers = 1

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> StudyPoolMaker:
        logs: Path = tmp_path_factory.mktemp("logs")
        return lambda factory: LocalPool(factory, cls.n_workers, 1, logs=logs)


@pytest.mark.slow
class TestOneWorker(Locally):
    pass


class TestTwoWorkers(Locally):
    n_workers = 2
