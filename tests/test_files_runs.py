"""Runs whose labels people write into files: they wait, are killed, go on, and end as if all had come at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from outlay.engine.point import Point
from outlay.engine.prepare import PreparedRun
from outlay.labels.annotator import Delivery
from outlay.labels.files import FileSeller, close_order, status
from outlay.plan.request import SellerSpec
from outlay.plan.steps import HUMAN
from tests.annotators import fill_in, folder_of
from tests.runs import OneByOne, World, bought_rows, runner

N_ROWS = 20
CONTRARY = range(0, N_ROWS, 5)
"""Places of the rows on which the second annotator says something else."""
ANSWER_MICROS = 200_000
BUDGET = 9_000_000


@pytest.fixture(scope="module")
def prepared(shared_world: World) -> PreparedRun:
    """Labels of two people, with a third where they disagree, as many as the budget pays."""
    people = SellerSpec.of(HUMAN, "files", {"redundancy": 2})
    return shared_world.fresh().prepared(strategy="annotate", n_initial=None, budget_micros=BUDGET, sellers=(people,))


class Life:
    """One run in its folders, executed by a process after the other, and the people who answer it."""

    def __init__(self, root: Path, prepared: PreparedRun) -> None:
        self.root, self.prepared = root, prepared
        self.gold = {row.text: str(row.label) for row in prepared.rows_of("train")}

    @property
    def runner(self) -> OneByOne:
        return runner(self.root / "out", self.root / "store")

    @property
    def order(self) -> Path:
        return folder_of(self.root / "store" / "orders" / "small")

    def execute(self) -> Point:
        return self.runner.execute(self.prepared)

    def is_killed(self) -> bool:
        """Execute in a child that is killed when the state of the order is known and nothing of it is kept."""
        child = os.fork()
        if child == 0:
            try:
                FileSeller.collect = _dies_after(FileSeller.collect)  # type: ignore[method-assign]
                self.execute()
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def answer(self, places: range) -> None:
        """Both annotators answer some rows, the second one some of them his own way."""
        one, other = (self.order / f"annotator-{number}.csv" for number in (1, 2))
        fill_in(one, self.gold.__getitem__, places)
        fill_in(other, self.gold.__getitem__, places)
        fill_in(other, self.another, sorted({*places} & {*CONTRARY}))

    def another(self, text: str) -> str:
        return min({*self.gold.values()} - {self.gold[text]})

    def settle_ties(self) -> None:
        assert fill_in(self.order / "annotator-3.csv", self.gold.__getitem__) == len(CONTRARY)

    def money(self) -> list[tuple[str, str, int, int]]:
        """Holds and settlements, without the cash of computing, which is measured."""
        entries = self.runner.ledger.entries(self.prepared.request.run_id)
        return [
            (e.kind, e.note, e.charge_micros, e.cash_micros)
            for e in entries
            if e.kind in ("hold", "settle") and e.charge_micros > ANSWER_MICROS
        ]


def _dies_after(collect: Callable[..., Delivery]) -> Callable[..., Delivery]:
    def dying(*given: object) -> Delivery:
        collect(*given)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("alive")

    return dying


def test_three_lives_and_two_kills_end_as_if_all_had_come_at_once(prepared: PreparedRun, tmp_path: Path) -> None:
    once = Life(tmp_path / "once", prepared)
    assert once.execute().result.status == "waiting"
    once.answer(range(N_ROWS))
    assert once.execute().result.status == "waiting"
    once.settle_ties()
    expected = once.execute()
    assert (expected.result.status, expected.result.n_labels) == ("ok", N_ROWS)

    life = Life(tmp_path / "parts", prepared)
    assert life.is_killed()
    life.answer(range(N_ROWS // 2))
    assert life.is_killed()
    point = life.execute()
    assert point.result.status == "waiting"
    n_agreed = N_ROWS // 2 - len(CONTRARY) // 2
    assert f"{n_agreed} of {N_ROWS} labels are in {life.order}" in str(point.result.reason)
    assert len(life.runner.ledger.open_holds(prepared.request.run_id)) == 1
    assert len(bought_rows(life.root / "store")) == n_agreed
    life.answer(range(N_ROWS))
    assert life.execute().result.status == "waiting"
    life.settle_ties()
    point = life.execute()

    assert point.result_bytes() == expected.result_bytes()
    cost = (2 * N_ROWS + len(CONTRARY)) * ANSWER_MICROS
    assert life.money() == once.money()
    assert [(kind, charge, cash) for kind, _, charge, cash in life.money()] == [
        ("hold", cost, cost),
        ("settle", cost, cost),
    ]
    assert life.runner.ledger.open_holds(prepared.request.run_id) == []
    rows = bought_rows(life.root / "store")
    assert len(rows) == len(set(rows)) == N_ROWS
    kept = [
        {
            path.name: path.read_bytes()
            for each in one.runner.store.find("buy")
            for path in each.path.iterdir()
            if path.suffix == ".jsonl"
        }
        for one in (once, life)
    ]
    assert kept[0] == kept[1]
    assert any(b"annotator-3" in data for data in kept[0].values())
    seen = status(life.order)
    assert seen.agreement is not None
    assert (seen.agreement.n_agreed, seen.agreement.n_rows) == (N_ROWS - len(CONTRARY), N_ROWS)


def test_an_order_that_is_closed_ends_the_run_with_the_labels_it_has(prepared: PreparedRun, tmp_path: Path) -> None:
    life = Life(tmp_path, prepared)
    life.execute()
    life.answer(range(1, 15))
    close_order(life.order)
    point = life.execute()
    assert point.result.status == "ok"
    # Fourteen rows have two answers, and two of them disagree.
    assert len(bought_rows(tmp_path / "store")) == 12
    settled = [(charge, cash) for kind, _, charge, cash in life.money() if kind == "settle"]
    assert settled == [(28 * ANSWER_MICROS, 28 * ANSWER_MICROS)]
