"""What every way to run jobs must keep: subclass `RunJobsContract`, define `run_jobs` and `folder`, and run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import DataError


@dataclass(frozen=True)
class Multiply:
    """Reads a factor from the folder; a job of 0 cannot be done."""

    file: str

    def __call__(self, folder: Path, payload: int) -> tuple[int, str]:
        if payload == 0:
            raise DataError("nothing comes of 0")
        return payload * int((folder / self.file).read_text()), folder.name


def payloads(*numbers: int) -> Iterator[tuple[str, int]]:
    return ((f"job {number}", number) for number in numbers)


RunJobs = Callable[
    [Callable[[Path, Any], Any], Iterable[tuple[str, Any]], Path], Generator[tuple[str, Any], None, None]
]


class RunJobsContract:
    """Make `Test…` a subclass of this and define `run_jobs` and `folder`."""

    @pytest.fixture
    def run_jobs(self) -> RunJobs:
        """What is tested."""
        raise NotImplementedError

    @pytest.fixture
    def folder(self) -> Path:
        """A folder that work may read; `Multiply` finds 11 in its ``factor.txt``."""
        raise NotImplementedError

    def test_every_result_comes_under_its_jobs_name(self, run_jobs: RunJobs, folder: Path) -> None:
        found = dict(run_jobs(Multiply("factor.txt"), payloads(2, 3, 5, 7, 13), folder))
        assert {name: product for name, (product, _) in found.items()} == {
            "job 2": 22,
            "job 3": 33,
            "job 5": 55,
            "job 7": 77,
            "job 13": 143,
        }

    def test_no_jobs_are_no_results(self, run_jobs: RunJobs, folder: Path) -> None:
        assert list(run_jobs(Multiply("factor.txt"), payloads(), folder)) == []

    def test_an_error_of_ours_comes_as_it_was_raised(self, run_jobs: RunJobs, folder: Path) -> None:
        with pytest.raises(DataError, match=r"^nothing comes of 0$"):
            list(run_jobs(Multiply("factor.txt"), payloads(2, 0), folder))

    def test_jobs_are_fetched_as_they_are_needed(self, run_jobs: RunJobs, folder: Path) -> None:
        """Of a thousand jobs, few have been asked for when the first is done and nobody wants more."""
        fetched: list[int] = []

        def jobs() -> Iterator[tuple[str, int]]:
            for number in range(1, 1001):
                fetched.append(number)
                yield f"job {number}", number

        with closing(run_jobs(Multiply("factor.txt"), jobs(), folder)) as made:
            next(made)
        assert 1 <= len(fetched) < 17
