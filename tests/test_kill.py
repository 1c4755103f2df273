"""Runs killed with SIGKILL at random moments and resumed: nothing bought twice, no charge lost or doubled, same result.

The parent has torch loaded and forks, so that a child is at work at once and the kill lands in the run, not in an import.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from outlay.engine.point import Point
from outlay.engine.prepare import PreparedRun
from outlay.engine.runner import Runner
from outlay.money.ledger import Entry
from tests.runs import FamilyWorld, World, bought_rows, pay_for_labels, runner

CHECKPOINT_SECONDS = 0.05
"""Often, so that most kills leave a checkpoint to go on from."""


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world.fresh()


def start(folder: Path, store: Path, prepared: PreparedRun) -> int:
    """Execute in a child; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        one = runner(folder, store, checkpoint_seconds=CHECKPOINT_SECONDS)
        code = 0 if one.execute(prepared).is_ok else 2
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code; negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def undisturbed(root: Path, prepared: PreparedRun) -> tuple[Runner, float]:
    """One whole run, and how long it takes."""
    began = time.monotonic()
    assert wait(start(root / "whole", root / "whole-store", prepared)) == 0
    return runner(root / "whole", root / "whole-store"), time.monotonic() - began


def kill_until_done(folder: Path, store: Path, prepared: PreparedRun, longest: float, rng: random.Random) -> int:
    """Kill the run after a random time, again and again, until it gets to its end; how often it was killed."""
    n_kills = 0
    while True:
        pid = start(folder, store, prepared)
        delay = rng.uniform(0.0, longest)
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert os.waitstatus_to_exitcode(status) == 0
                return n_kills
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        if wait(pid) == 0:
            return n_kills
        n_kills += 1
        assert n_kills < 200, "the run makes no way"
        # What is done stays done, so a run that is killed early again and again still gets on; give it more time each round.
        longest *= 1.15


def spent(entries: list[Entry], kinds: tuple[str, ...]) -> int:
    return sum(entry.cash_micros for entry in entries if entry.kind in kinds)


def check(one: Runner, whole: Runner, prepared: PreparedRun, store: Path) -> Point:
    run_id = prepared.request.run_id
    point, expected = one.finished(run_id), whole.finished(run_id)
    assert point is not None
    assert expected is not None
    assert point.result_bytes() == expected.result_bytes()

    rows = bought_rows(store)
    n_labels = prepared.request.n_initial
    assert n_labels is not None
    assert len(rows) == len(set(rows)) == n_labels, "a label was bought twice, or not at all"

    entries = one.ledger.entries(run_id)
    settles = [entry for entry in entries if entry.kind == "settle"]
    reference = [entry for entry in whole.ledger.entries(run_id) if entry.kind == "settle"]
    assert [(e.key, e.charge_micros) for e in settles] == [(e.key, e.charge_micros) for e in reference]
    labels = [entry for entry in settles if entry.key == reference[0].key]
    assert [entry.cash_micros for entry in labels] == [n_labels * 200_000]

    holds = [entry for entry in entries if entry.kind == "hold"]
    closed = [entry.hold_seq for entry in entries if entry.kind in ("settle", "release")]
    assert sorted(closed) == [entry.seq for entry in holds], "a hold was left open, or closed twice"
    balance = one.ledger.balance(run_id)
    assert balance.total_cash_micros == spent(entries, ("settle", "lost", "overrun"))
    assert point.circumstance.cash_usd == pytest.approx(balance.total_cash_micros / 1e6)
    assert balance.held_charge_micros == balance.held_cash_micros == 0
    assert one.ledger.verify().ok
    return point


def kills(prepared: PreparedRun, root: Path, n: int, seed: int) -> tuple[int, int]:
    """``n`` runs, each killed until it is done; the number of kills, and the cash booked as lost, in micro-dollars."""
    rng = random.Random(seed)
    whole, seconds = undisturbed(root, prepared)
    n_kills = lost = 0
    for i in range(n):
        folder, store = root / f"run-{i}", root / f"store-{i}"
        killed = 0
        while killed == 0:
            killed = kill_until_done(folder, store, prepared, 0.6 * seconds, rng)
            if killed == 0:  # it was quicker than its first kill: once more from the start
                folder, store = root / f"run-{i}-again-{n_kills}-{rng.random()}", root / f"store-{i}-{rng.random()}"
        one = runner(folder, store)
        check(one, whole, prepared, store)
        n_kills += killed
        lost += spent(one.ledger.entries(), ("lost",))
    return n_kills, lost


def test_a_run_killed_until_done(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pay_for_labels(monkeypatch)
    n_kills, _ = kills(world.prepared(), tmp_path, 1, seed=int.from_bytes(os.urandom(4), "big"))
    assert n_kills >= 1


@pytest.mark.slow
def test_five_runs_killed_until_done(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pay_for_labels(monkeypatch)
    n_kills, lost = kills(world.prepared(), tmp_path, 5, seed=int.from_bytes(os.urandom(4), "big"))
    assert n_kills >= 5
    assert lost > 0, "work was redone in some of these runs, and none of it was booked as lost"


def test_a_run_of_models_that_write_killed_until_done(
    shared_families: FamilyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_labels(monkeypatch)
    families = shared_families.fresh()
    overrides = {"distil": {"gold_weight": 0.5, "epochs": 3}, "teach": {"sample": True}}
    options = families.family_request("entities", "seq2seq", "padded", overrides=overrides)
    n_kills, _ = kills(families.workbench.prepare(options), tmp_path, 1, seed=int.from_bytes(os.urandom(4), "big"))
    assert n_kills >= 1


@pytest.mark.slow
def test_fifty_runs_killed_until_done(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pay_for_labels(monkeypatch)
    n_kills, lost = kills(world.prepared(), tmp_path, 50, seed=int.from_bytes(os.urandom(4), "big"))
    assert n_kills >= 50
    assert lost > 0


def test_lost_seconds_are_the_ones_that_were_spent(world: World, tmp_path: Path) -> None:
    """A training killed in the middle: settled plus lost cash is the time both processes were at it, within a heartbeat each."""
    fast = dict(world.request().overrides)
    slow = {**fast, "student": {**fast["student"], "epochs": 60}}
    prepared = world.prepared(strategy="annotate", n_initial=None, budget_micros=4_100_000, overrides=slow)
    folder, store = tmp_path / "out", tmp_path / "store"
    pid = start(folder, store, prepared)
    heartbeats = folder / "runs" / prepared.request.run_id / "steps"
    began = None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(heartbeats.glob("*.json")) and "train labels" in _last_settled(folder):
            began = time.monotonic()
            break
        time.sleep(0.01)
    assert began is not None
    time.sleep(1.0)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    first = time.monotonic() - began
    again = time.monotonic()
    assert wait(start(folder, store, prepared)) == 0
    second = time.monotonic() - again
    entries = runner(folder, store).ledger.entries()
    cash = spent(entries, ("settle", "lost"))
    per_second = 0.05 / 3600 * 1e6
    assert 0.6 * first < cash / per_second < first + second + 1.0


def _last_settled(folder: Path) -> str:
    ledger = folder / "ledger.sqlite"
    if not ledger.exists():
        return ""
    entries = runner(folder, folder / "unused").ledger.entries()
    return next((entry.note for entry in reversed(entries) if entry.kind == "settle"), "")
