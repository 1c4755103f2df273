"""Studies whose driver and whose workers are killed with SIGKILL at random moments, and started again until they are done.

The test has torch loaded and forks its drivers, so that most kills land in the work and not in an import; the workers are the
processes of `outlay.workers.local`.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from outlay.engine.point import Point, read_points
from outlay.engine.runner import Runner
from outlay.plan.request import Request
from outlay.study.runner import status_of
from outlay.workers.local import LocalPool
from outlay.workers.pool import InProcessPool
from tests.runs import World, bought_rows, pay_for_labels, runner
from tests.studies import cash_of_steps, check_books, conducted, toy_cells, worker_factory

CHECKPOINT_SECONDS = 0.05
PATIENCE_SECONDS = 900.0
LABEL_MICROS = 200_000
DRIVER, WORKER = "driver", "worker"


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world.fresh()


def opened(folder: Path) -> Runner:
    return runner(folder / "out", folder / "store", checkpoint_seconds=CHECKPOINT_SECONDS)


def start(world: World, asked: Sequence[Request], folder: Path) -> int:
    """Conduct in a child with two workers of one thread; its pid. It exits with 0 once no point is failed."""
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        one = opened(folder)
        with LocalPool(worker_factory(one), 2, 1, logs=folder / "out" / "logs") as pool:
            points = conducted(world.workbench, asked, one, pool)
        code = 3 if any(point.result.status == "failed" for point in points) else 0
    except BaseException:
        (folder / "driver.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def ended(pid: int) -> int | None:
    """Exit code of a driver that is over; negative where a signal ended it."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def workers_of(pid: int) -> list[int]:
    """Processes that the driver started and that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def has_begun(folder: Path, since: int) -> bool:
    """Whether a step has reported itself since then (nanoseconds of the system's clock)."""
    for path in (folder / "out" / "runs").glob("*/steps/*.json"):
        with suppress(FileNotFoundError):  # it has just ended
            if path.stat().st_mtime_ns > since:
                return True
    return False


@dataclass(frozen=True)
class Kill:
    """Who was killed, how long after its cue, and what was held at that moment."""

    who: str
    seconds: float
    held: tuple[str, ...]

    def __str__(self) -> str:
        held = "; ".join(re.sub(r"/\S*/", "", label) for label in self.held)
        return f"{self.who} after {self.seconds:.2f} s; held: {held or 'nothing'}"


@dataclass
class Killer:
    """Kills whoever is next in ``whom``, each a random time after its cue: that a step is being made which had not begun, or was
    taken up again, since the last kill; for every fourth one the last kill itself, so that some die before they work."""

    rng: random.Random
    longest: float
    whom: list[str]
    kills: list[Kill]

    def disturb(self, world: World, asked: Sequence[Request], folder: Path) -> None:
        """Start the study again and again until it is done, whether or not everybody has been killed by then."""
        pid, since, cue, delay = start(world, asked, folder), time.time_ns(), 0.0, self._delay()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (code := ended(pid)) != 0:
            if code is not None:
                assert code == 3, f"driver ended with {code}: {(folder / 'driver.txt').read_text()}"
                pid = start(world, asked, folder)
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                pytest.fail(f"the study makes no way; driver {pid} is killed for good")
            time.sleep(0.005)
            if not cue and (len(self.kills) % 4 == 3 or has_begun(folder, since)):
                cue = time.monotonic()
            if not cue or not self.whom or time.monotonic() - cue < delay:
                continue
            if self.whom[0] == DRIVER:
                os.kill(pid, signal.SIGKILL)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            elif workers := workers_of(pid):
                os.kill(self.rng.choice(workers), signal.SIGKILL)
            else:
                continue
            self._note(folder, delay)
            since, cue, delay = time.time_ns(), 0.0, self._delay()
            if self.kills[-1].who == DRIVER:
                pid = start(world, asked, folder)

    def _delay(self) -> float:
        return self.rng.uniform(0.0, self.longest)

    def _note(self, folder: Path, delay: float) -> None:
        index = folder / "out" / "study.json"
        held = tuple(each.label for each in status_of(folder / "out").held) if index.exists() else ()
        self.kills.append(Kill(self.whom.pop(0), delay, held))


def check(world: World, asked: Sequence[Request], folder: Path, expected: Sequence[Point]) -> None:
    one = opened(folder)
    points = read_points(folder / "out" / "points.json")
    assert [p.result_bytes() for p in points] == [p.result_bytes() for p in expected]
    check_books(one, world.workbench, asked, points)
    status = status_of(folder / "out")
    assert status.is_done
    assert status.held == ()
    assert status.n_by_status == Counter(p.result.status for p in expected)
    rows = bought_rows(folder / "store")
    assert len(rows) == len(set(rows)), "a label was bought twice"
    for_labels, for_compute = cash_of_steps(one)
    assert for_labels == len(rows) * LABEL_MICROS
    made = [artifact for artifact in one.store.list() if artifact.kind != "buy"]
    seconds = sum(sum(artifact.circumstance["seconds_by_payer"].values()) for artifact in made)
    # What was made in a checkpoint of a run that then found the artifact made is that run's too.
    n_shares = sum(len(artifact.circumstance["seconds_by_payer"]) for artifact in made)
    assert for_compute == pytest.approx(float(one.here.usd) * seconds / 3600 * 1e6, abs=n_shares)
    assert list((folder / "store" / "making").glob("*/work")) == []


def kill(world: World, root: Path, whom: Sequence[str], seed: int) -> list[Kill]:
    """As many studies as it takes to kill everybody in ``whom``; each checked against one that nobody disturbed."""
    asked = toy_cells(world)
    alone = opened(root / "whole")
    began = time.monotonic()
    with InProcessPool(worker_factory(alone)) as pool:
        expected = conducted(world.workbench, asked, alone, pool)
    seconds = time.monotonic() - began
    assert [p.result.status for p in expected] == ["ok"] * 5 + ["na"]
    killer = Killer(random.Random(seed), 0.3 * seconds, list(whom), [])
    n_studies = 0
    while killer.whom:
        folder = root / f"study-{n_studies}"
        killer.disturb(world, asked, folder)
        check(world, asked, folder, expected)
        n_studies += 1
    assert [each.who for each in killer.kills] == list(whom)
    return killer.kills


@pytest.mark.slow
def test_a_study_survives_three_kills(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pay_for_labels(monkeypatch)
    seed = int.from_bytes(os.urandom(4), "big")
    kills = kill(world, tmp_path, [WORKER, DRIVER, WORKER], seed)
    print(f"seed {seed}", *kills, sep="\n")
    assert any(each.held for each in kills), "no kill came while something was held"


@pytest.mark.slow
def test_studies_survive_twenty_kills(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pay_for_labels(monkeypatch)
    seed = int.from_bytes(os.urandom(4), "big")
    rng = random.Random(seed)
    whom = [DRIVER, WORKER] * 10
    rng.shuffle(whom)
    kills = kill(world, tmp_path, whom, seed)
    print(f"seed {seed}", *(f"{n}: {each}" for n, each in enumerate(kills, start=1)), sep="\n")
    assert sum(bool(each.held) for each in kills) >= 5
