"""What every pool must keep: subclass `WorkerPoolContract`, say how to make the pool, and run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import DataError, WorkFailed
from outlay.text.listener import Report
from outlay.workers.pool import TaskResult, WorkerFactory, WorkerFn, WorkerPool

PATIENCE_SECONDS = 60.0


class Unmade(Exception):
    """Can be pickled, and not be made again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


class UnmadeOfOurs(DataError):
    """The same among the errors of outlay."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


@dataclass(frozen=True)
class Handy:
    """A worker factory whose work does what its payload says, and notes each of its own calls in ``notes``."""

    notes: Path

    def __call__(self) -> WorkerFn:
        note(self.notes, f"factory-{os.getpid()}")
        return self.work

    def work(self, payload: tuple[str, Any], report: Report) -> Any:
        what, value = payload
        return getattr(self, what)(value, report)

    def double(self, value: int, report: Report) -> int:
        return 2 * value

    def process_id(self, value: None, report: Report) -> int:
        return os.getpid()

    def refuse(self, value: str, report: Report) -> None:
        raise DataError(value)

    def refuse_oddly(self, value: str, report: Report) -> None:
        raise UnmadeOfOurs(value, "more")

    def blunder(self, value: str, report: Report) -> None:
        raise Unmade(f"\n{value}\nand more", "more")

    def leave(self, value: int, report: Report) -> None:
        raise SystemExit(value)

    def secret(self, value: None, report: Report) -> Callable[[], None]:
        return lambda: None

    def die(self, value: int, report: Report) -> None:
        os.kill(os.getpid(), value)

    def meet(self, value: tuple[str, str], report: Report) -> bool:
        """Whether the other one was at work at the same time."""
        own, other = value
        (self.notes / own).touch()
        return wait_for(self.notes / other)

    def dawdle(self, value: str, report: Report) -> None:
        """Reports once, then takes a minute."""
        report(3, 7, "on the way")
        (self.notes / value).touch()
        time.sleep(60)
        (self.notes / f"{value}-is-over").touch()


def note(folder: Path, name: str) -> None:
    with (folder / name).open("a") as file:
        file.write("x")


def wait_for(path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@dataclass(frozen=True)
class Unable:
    """A worker factory that fails until a file is there."""

    notes: Path
    error: Exception

    def __call__(self) -> WorkerFn:
        note(self.notes, "tries")
        if not (self.notes / "able").exists():
            raise self.error
        return Handy(self.notes)()


Maker = Callable[[WorkerFactory, int], WorkerPool]


def one(pool: WorkerPool) -> TaskResult:
    """The only piece of work under way."""
    ended = pool.wait(PATIENCE_SECONDS)
    assert len(ended) == 1
    return ended[0]


def all_of(pool: WorkerPool, n: int) -> dict[str, TaskResult]:
    found: dict[str, TaskResult] = {}
    while len(found) < n:
        ended = pool.wait(PATIENCE_SECONDS)
        assert ended, f"only {sorted(found)} of {n} have ended"
        found |= {each.name: each for each in ended}
    return found


class WorkerPoolContract:
    """Make `Test…` a subclass of this and define `make`."""

    n_workers = 2

    @pytest.fixture
    def make(self, tmp_path: Path) -> Maker:
        """What is tested, of a worker factory and a number of workers; tracebacks go to ``tmp_path / "logs"``."""
        raise NotImplementedError

    @pytest.fixture
    def notes(self, tmp_path: Path) -> Path:
        """Where the work leaves its notes."""
        path = tmp_path / "notes"
        path.mkdir()
        return path

    def test_every_result_comes_under_its_name_from_workers_that_are_set_up_once(
        self, make: Maker, notes: Path
    ) -> None:
        left = list(range(17))
        found: dict[str, TaskResult] = {}
        began = time.monotonic()
        with make(Handy(notes), self.n_workers) as pool:
            assert pool.n_workers == self.n_workers
            while left or pool.n_free < pool.n_workers:
                while left and pool.n_free:
                    number = left.pop()
                    pool.submit(f"double {number}", ("double", number))
                found |= {each.name: each for each in pool.wait(PATIENCE_SECONDS)}
        took = time.monotonic() - began
        assert {name: each.value for name, each in found.items()} == {f"double {n}": 2 * n for n in range(17)}
        assert all(each.error is None and each.lost is None and 0 <= each.seconds <= took for each in found.values())
        factories = [path.read_text() for path in notes.glob("factory-*")]
        assert 1 <= len(factories) <= self.n_workers
        assert set(factories) == {"x"}

    def test_as_much_is_under_way_as_there_are_workers(self, make: Maker, notes: Path) -> None:
        with make(Handy(notes), self.n_workers) as pool:
            for number in range(self.n_workers):
                assert pool.n_free == self.n_workers - number
                names = (f"here-{number}", f"here-{(number + 1) % self.n_workers}")
                pool.submit(f"meet {number}", ("meet", names))
            assert pool.n_free == 0
            with pytest.raises(RuntimeError, match="no worker is free for another"):
                pool.submit("another", ("double", 1))
            ended = all_of(pool, self.n_workers)
            assert {name: each.value for name, each in ended.items()} == {
                f"meet {number}": True for number in range(self.n_workers)
            }
            assert pool.n_free == self.n_workers

    def test_before_entering_and_after_leaving_nobody_is_free(self, make: Maker, notes: Path) -> None:
        pool = make(Handy(notes), 1)
        assert pool.n_free == 0
        with pool:
            assert pool.n_free == 1
        assert pool.n_free == 0
        with pytest.raises(RuntimeError, match="no worker is free"):
            pool.submit("late", ("double", 1))

    def test_where_nothing_is_under_way_nothing_is_waited_for(self, make: Maker, notes: Path) -> None:
        with make(Handy(notes), 1) as pool:
            assert pool.wait() == []
            assert pool.progress() == {}

    def test_an_error_of_ours_comes_as_it_was_raised_and_its_worker_goes_on(self, make: Maker, notes: Path) -> None:
        with make(Handy(notes), 1) as pool:
            pool.submit("bad", ("refuse", "row 7 has no label"))
            error = one(pool).error
            assert type(error) is DataError
            assert str(error) == "row 7 has no label"
            pool.submit("good", ("double", 4))
            assert one(pool).value == 8
        assert [path.read_text() for path in notes.glob("factory-*")] == ["x"]

    @pytest.mark.parametrize(
        ("payload", "said"),
        [(("blunder", "row 7 is bad"), "Unmade (row 7 is bad)"), (("leave", 3), "SystemExit (3)")],
    )
    def test_another_error_is_told_in_a_line_with_the_place_of_its_traceback(
        self, make: Maker, notes: Path, tmp_path: Path, payload: tuple[str, Any], said: str
    ) -> None:
        with make(Handy(notes), 1) as pool:
            pool.submit("train a/b:1", payload)
            error = one(pool).error
            assert isinstance(error, WorkFailed)
            path = tmp_path / "logs" / "failed-train-a-b-1.txt"
            assert str(error) == f"train a/b:1 failed with {said}; its traceback is in {path}"
            assert f", in {payload[0]}\n" in path.read_text()
            assert path.read_text() in error.__notes__
            pool.submit("good", ("double", 4))
            assert one(pool).value == 8

    def test_a_factory_that_fails_is_tried_again_for_the_next_piece_of_work(self, make: Maker, notes: Path) -> None:
        with make(Unable(notes, DataError("the data are not there")), 1) as pool:
            pool.submit("first", ("double", 4))
            error = one(pool).error
            assert type(error) is DataError
            assert str(error) == "the data are not there"
            (notes / "able").touch()
            pool.submit("second", ("double", 4))
            assert one(pool).value == 8
        assert (notes / "tries").read_text() == "xx"

    def test_a_factory_that_fails_otherwise_is_told_in_a_line(self, make: Maker, notes: Path) -> None:
        with make(Unable(notes, ValueError("nobody foresaw this")), 1) as pool:
            pool.submit("first", ("double", 4))
            error = one(pool).error
            assert isinstance(error, WorkFailed)
            assert "first failed with ValueError (nobody foresaw this)" in str(error)


class ProcessPoolContract(WorkerPoolContract):
    """What a pool must keep beside it whose workers are other processes: they can be lost, and left at work."""

    def test_a_lost_worker_is_told_and_replaced(self, make: Maker, notes: Path) -> None:
        with make(Handy(notes), self.n_workers) as pool:
            pool.submit("bad", ("die", int(signal.SIGKILL)))
            ended = one(pool)
            assert ended.name == "bad"
            assert ended.value is None
            assert ended.error is None
            assert ended.lost
            assert "\n" not in ended.lost
            assert pool.n_free == self.n_workers
            for number in range(self.n_workers):
                names = (f"there-{number}", f"there-{(number + 1) % self.n_workers}")
                pool.submit(f"meet {number}", ("meet", names))
            assert all(each.value is True for each in all_of(pool, self.n_workers).values())

    def test_what_cannot_be_sent_back_is_told(self, make: Maker, notes: Path) -> None:
        with make(Handy(notes), 1) as pool:
            pool.submit("oddly", ("refuse_oddly", "row 7 has no label"))
            error = one(pool).error
            assert isinstance(error, WorkFailed)
            assert "oddly failed with UnmadeOfOurs (row 7 has no label)" in str(error)
            pool.submit("good", ("double", 4))
            assert one(pool).value == 8

    def test_leaving_ends_what_is_under_way(self, make: Maker, notes: Path) -> None:
        with make(Handy(notes), self.n_workers) as pool:
            for number in range(self.n_workers):
                pool.submit(f"slow {number}", ("dawdle", f"slow-{number}"))
            assert all(wait_for(notes / f"slow-{number}") for number in range(self.n_workers))
            began = time.monotonic()
        assert time.monotonic() - began < 15
        # Whoever comes next finds room.
        with make(Handy(notes), self.n_workers) as pool:
            pool.submit("good", ("double", 4))
            assert one(pool).value == 8
        assert list(notes.glob("*-is-over")) == []


class TellsProgress:
    """What a pool must keep beside it that reports reach."""

    def test_progress_is_seen_and_ends_with_the_work(self, make: Maker, notes: Path) -> None:
        with make(Handy(notes), 1) as pool:
            pool.submit("slow", ("dawdle", "slow"))
            assert wait_for(notes / "slow")
            assert pool.wait(0.01) == []
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not pool.progress() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert pool.progress() == {"slow": (3, 7, "on the way")}
            assert pool.n_free == 0
