"""A small study, conducted for real; and what must hold of its books however it was disturbed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from outlay.cli import study_commands
from outlay.engine.point import Point, micros_of
from outlay.engine.prepare import RunBuilder
from outlay.engine.runner import Runner
from outlay.models.cost_model import MachineProfile
from outlay.money.amounts import PriceBook
from outlay.plan.request import Request
from outlay.report.results import Header
from outlay.study.dry_run import AlreadyThere, plan
from outlay.study.runner import StudyRunner
from outlay.study.scheduler import StepRunnerFactory
from outlay.text.listener import Listener
from outlay.workers.pool import InProcessPool, WorkerPool
from tests.runs import World

HEADER = Header("toy", "A toy study", "plain", scale="cpu")
SCALE = """
  {name}:
    models: {{teacher: {checkpoint}, student: cut:1}}
    threads: 1
    n_seeds: {n_seeds}
    settings:
      teacher: &{name} {{epochs: {epochs}, batch_size: 16, lr: 0.001, precision: fp32}}
      student: *{name}
      distil: *{name}
    n_initial: 20
    added_usd: {{annotate: [0, 2], distill: [2, {most_usd}]}}
    tasks: {{task.yaml: {{}}}}
"""


def write_toy_study(
    path: Path, head: str, checkpoint: Path, epochs: Mapping[str, int], *, most_usd: int, n_seeds: int = 1
) -> None:
    """Write a study file: ``head``, then a scale for each name, alike but for its epochs; ``most_usd``: for `distill`, over N."""
    scales = [
        SCALE.format(name=name, checkpoint=checkpoint, epochs=n, most_usd=most_usd, n_seeds=n_seeds)
        for name, n in epochs.items()
    ]
    path.write_text("rivals: false\n" + head + "".join(scales))


def study_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `outlay study run` work in this process: for tests that are not of workers, which take seconds to start."""
    monkeypatch.setattr(study_commands, "_worker_pool", lambda executor, place, *more: InProcessPool(place.factory()))


def toy_cells(world: World, **changes: object) -> list[Request]:
    """Six cells: three strategies at two budgets, the last of them without enough money."""
    asked = [
        world.request(strategy=name, budget_micros=budget, **changes)
        for budget in (16_000_000, 19_000_000)
        for name in ("annotate", "distill", "self_distill")
    ]
    return [*asked[:-1], world.request(strategy="self_distill", budget_micros=1_000_000, **changes)]


def worker_factory(one: Runner, book: PriceBook | None = None) -> StepRunnerFactory:
    return StepRunnerFactory(one.store.location, book or PriceBook.load())


class Idle(InProcessPool):
    """A pool that nobody should need."""

    def submit(self, name: str, payload: Any) -> None:
        raise AssertionError(f"{payload.step.kind} {name[:12]} is made again")


def conducted(
    workbench: RunBuilder,
    asked: Sequence[Request],
    one: Runner,
    pool: WorkerPool,
    listener: Listener | None = None,
    profile: MachineProfile | None = None,
) -> list[Point]:
    """By a pool that is entered already."""
    there = AlreadyThere(lambda _: False, one.store.holds)
    planned = plan(workbench, asked, profile=profile, there=there)
    study = StudyRunner(planned, HEADER, one, workbench)
    study.run(pool, listener or Listener())
    return [study.points[i] for i in range(len(asked))]


def check_books(one: Runner, workbench: RunBuilder, asked: Sequence[Request], points: Sequence[Point]) -> None:
    """The ledger is whole, every hold is closed once, every run is charged once, in full, and within its budget."""
    assert one.ledger.verify().ok
    for request, point in zip(asked, points, strict=True):
        run = workbench.resolve(request).run_id
        if point.result.status == "na":
            assert run not in one.ledger.run_ids()
            continue
        entries = one.ledger.entries(run)
        holds = [entry.seq for entry in entries if entry.kind == "hold"]
        closed = [entry.hold_seq for entry in entries if entry.kind in ("settle", "release")]
        assert sorted(closed) == holds, "a hold was left open, or closed twice"
        assert one.ledger.open_holds(run) == []
        charged = [entry for entry in entries if entry.kind in ("settle", "overrun") and entry.charge_micros]
        steps = [entry.key.split("/")[0] for entry in charged if entry.kind == "settle"]
        assert len(steps) == len(set(steps)), "a step was charged twice"
        assert sum(entry.charge_micros for entry in charged) == micros_of(point.result.charge_usd)
        assert micros_of(point.result.charge_usd) <= request.budget_micros


def cash_of_steps(one: Runner) -> tuple[int, int]:
    """Micro-dollars that left the bank for settled labels, and for settled compute steps."""
    labels = {step.key for step in one.store.find("buy")}
    spent = [entry for run in one.ledger.run_ids() for entry in one.ledger.entries(run) if entry.kind == "settle"]
    is_label = [entry.key.split("/")[0] in labels for entry in spent]
    return (
        sum(entry.cash_micros for entry, is_one in zip(spent, is_label, strict=True) if is_one),
        sum(entry.cash_micros for entry, is_one in zip(spent, is_label, strict=True) if not is_one),
    )
