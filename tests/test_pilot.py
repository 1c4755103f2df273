"""Strategies that pilot: a cheap training is scored on dev, then they decide; the test split is looked at once, or never."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from outlay.engine.buying import Purchase
from outlay.engine.point import Point, micros_of
from outlay.engine.prepare import RunBuilder
from outlay.engine.run import RunExecution
from outlay.engine.runner import Runner
from outlay.engine.step_runner import JobRunner
from outlay.money.amounts import PriceBook
from outlay.plan.context import PlanningContext
from outlay.plan.quotes import Quoter
from outlay.plan.steps import HUMAN, Buy, Recipe, Score, Train
from outlay.plan.strategies import STRATEGIES, NotAvailable, StrategyOutcome
from outlay.report.receipt import receipt, render_text
from outlay.study.dry_run import plan
from tests.listeners import Silent
from tests.runs import World, bought_rows, pay_for_labels, runner

N_PILOT, N_MORE = 30, 50


@dataclass
class Pilot:
    """Train on a few labels first; with a dev score of at least ``least``, train on more and score, else give up or stop."""

    least: float | None
    name: str = "pilot"
    taught_by: Any = None
    starts_general: bool = False
    sellers: tuple[str, ...] = (HUMAN,)
    gives_up: bool = True

    def __post_init__(self) -> None:
        self.told: list[list[StrategyOutcome]] = []

    def ask(self, known: PlanningContext, outcomes: Sequence[StrategyOutcome]) -> Recipe | NotAvailable | None:
        self.told.append(list(outcomes))
        first = Buy("train", N_PILOT, known.request.seed, known.train_digest, known.offer().identity)
        dev = None if known.request.dev is None else self._dev(known)
        pilot = Train(
            role="student",
            model=known.student,
            labels=(first,),
            dev=dev,
            encoding=known.encoding,
            settings=known.settings("student"),
            threads=known.request.threads,
        )
        if not outcomes:
            return Recipe(pilot, (f"pilot on {N_PILOT} labels",))
        if len(outcomes) > 1:
            return None
        if self.least is None or (outcomes[0].dev_score or 0.0) < self.least:
            return NotAvailable("the pilot learnt nothing; add labels") if self.gives_up else None
        whole = replace(pilot, labels=(first, replace(first, n=N_MORE, start=N_PILOT)))
        return Recipe(Score(whole, known.test_digest, known.request.threads), (f"{N_MORE} labels more",))

    @staticmethod
    def _dev(known: PlanningContext) -> Any:
        from outlay.plan.steps import Dev

        return Dev("given", known.n_dev, rows_digest=known.dev_digest)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def piloted(
    world: World, policy: Pilot, root: Path, monkeypatch: pytest.MonkeyPatch, **changes: object
) -> tuple[Runner, Point, Any]:
    monkeypatch.setitem(STRATEGIES, policy.name, policy)
    one = runner(root / "out", root / "store")
    prepared = world.prepared(strategy=policy.name, n_initial=None, **changes)
    return one, one.execute(prepared), prepared


def test_a_strategy_pilots_and_then_decides(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pay_for_labels(monkeypatch)
    policy = Pilot(least=0.0)
    one, point, prepared = piloted(world, policy, tmp_path, monkeypatch)
    assert point.result.status == "ok"
    assert (point.result.n_labels, point.result.n_dev) == (N_PILOT + N_MORE, 30)
    entries = [entry for entry in one.ledger.entries(prepared.request.run_id) if entry.kind == "settle"]
    assert [entry.note for entry in entries] == [
        f"{N_PILOT} train labels",
        f"fine-tune the student on {N_PILOT} labels",
        f"{N_MORE} train labels",
        f"fine-tune the student on {N_PILOT + N_MORE} labels",
        "score the test split",
    ]
    # Labels of the pilot are paid once, and every dollar of both recipes is charged.
    assert [entry.charge_micros for entry in entries[0:3:2]] == [N_PILOT * 200_000, N_MORE * 200_000]
    assert [entry.cash_micros for entry in entries[0:3:2]] == [N_PILOT * 200_000, N_MORE * 200_000]
    assert sum(entry.charge_micros for entry in entries) == micros_of(point.result.charge_usd)
    rows = bought_rows(tmp_path / "store")
    assert len(rows) == len(set(rows)) == N_PILOT + N_MORE
    # It is told the pilot's dev score and its charge, and the scores of the point are the second model's.
    (told,) = policy.told[1]
    trained = one.store.check(entries[1].key)
    assert trained is not None
    assert (told.dev_score, trained.usage["n_rows"]) == (trained.usage["dev"], N_PILOT)
    model = one.store.check(entries[3].key)
    assert model is not None
    assert (point.result.dev, model.usage["n_rows"]) == (model.usage["dev"], N_PILOT + N_MORE)
    assert told.charge_micros == sum(entry.charge_micros for entry in entries[:2])
    assert len(one.store.find("score")) == 1
    said = render_text(receipt(one.ledger, prepared.request.run_id))
    assert f"{N_PILOT} train labels" in said
    assert f"fine-tune the student on {N_PILOT} labels" in said


@pytest.mark.parametrize("gives_up", [True, False])
def test_a_run_that_stops_at_its_pilot_never_looks_at_the_test_split(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gives_up: bool
) -> None:
    one, point, prepared = piloted(world, Pilot(least=None, gives_up=gives_up), tmp_path, monkeypatch)
    assert (point.result.status, point.result.test, dict(point.result.scores)) == ("na", None, {})
    assert (point.result.dev is None) == gives_up
    assert one.store.find("score") == []
    # What the pilot cost is charged, is on the receipt, and the run is over.
    settled = [entry for entry in one.ledger.entries(prepared.request.run_id) if entry.kind == "settle"]
    assert [entry.note.split(" on ")[0] for entry in settled] == [f"{N_PILOT} train labels", "fine-tune the student"]
    assert micros_of(point.result.charge_usd) == sum(entry.charge_micros for entry in settled) > N_PILOT * 200_000
    again = one.finished(prepared.request.run_id)
    assert again is not None
    assert again.result_bytes() == point.result_bytes()


def paid(one: Runner, what: str) -> bool:
    return any(entry.note == what for entry in one.ledger.entries() if entry.kind == "settle")


def test_a_resumed_run_is_told_what_it_was_told(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Pilot(least=0.0)
    monkeypatch.setitem(STRATEGIES, policy.name, policy)
    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = world.prepared(strategy=policy.name, n_initial=None)
    maker = JobRunner(one.store, lambda _: prepared)
    silent = Silent()
    with closing(RunExecution(one.results, prepared, silent).open()) as execution:
        # As far as the labels behind the pilot's, and no further.
        while execution.advance() is None and not paid(one, f"{N_MORE} train labels"):
            begun = execution.begin(execution.needs()[0])
            job = begun.job
            execution.settle(
                begun,
                one.results.buy(job, silent.progress)
                if isinstance(job, Purchase)
                else maker.make(job, silent.progress),
            )
    assert paid(one, f"{N_MORE} train labels")
    before = policy.told[1]
    policy.told.clear()
    assert runner(tmp_path / "out", tmp_path / "store").execute(prepared).is_ok
    assert policy.told[1] == before
    fresh = Pilot(least=0.0)
    whole, point, _ = piloted(world, fresh, tmp_path / "whole", monkeypatch)
    done = one.finished(prepared.request.run_id)
    assert done is not None
    assert done.result_bytes() == point.result_bytes()
    charges = [
        [(entry.key, entry.charge_micros) for entry in each.ledger.entries() if entry.kind == "settle"]
        for each in (one, whole)
    ]
    assert charges[0] == charges[1]


def test_a_pilot_is_planned_with_the_whole_budget_as_its_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "pilot", Pilot(least=0.0))
    workbench = RunBuilder(PriceBook.load())
    (planned,) = plan(workbench, [world.request(strategy="pilot", n_initial=None)]).points
    assert planned.recipe is not None
    assert planned.recipe.is_pilot
    known = workbench.prepare(planned.request).context
    assert Quoter(known).total_micros(planned.recipe.final) < planned.charge_micros == 20_000_000
    assert planned.to_json()["n_labels"] == N_PILOT
    assert any("pilot" in note for note in planned.notes)
