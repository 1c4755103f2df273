"""Labels without a fixed price: what a purchase is held at, what it is charged, and what becomes of it when its money ends."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from outlay.engine import sellers
from outlay.engine.point import Point
from outlay.engine.prepare import PreparedRun, RunBuilder
from outlay.engine.runner import Runner
from outlay.errors import UnknownOrder
from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Answer, Delivery, Order, RowCost, RowResult, no_report
from outlay.money.amounts import Price, PriceBook, Quote
from outlay.plan.context import Offer, RunningCosts
from outlay.plan.quotes import Quoter
from outlay.plan.request import SellerSpec
from outlay.plan.steps import Buy, Distil, Recipe, Train
from outlay.plan.strategies import N_TRIED, NotAvailable, StrategyOutcome, decided, strategy
from outlay.storage.store import canonical_json
from outlay.tasks.example import Example
from tests.knowledge import known
from tests.runs import World, bought_rows, runner
from tests.studies import check_books

PRICE = Price("made-up/model", "dollar", Decimal(1), "made up", None)
EXPECTED = Fraction(1, 1_000)
"""Dollars that a letter is expected to cost; it costs up to twice as much."""
REFUSED = 11
"""Every so many rows one is refused, and paid for."""


@dataclass
class TokenSeller:
    """A seller paid by the letter, ``later`` times what is expected after the first answers; ``asked``: every row it answered."""

    gold: Mapping[str, str]
    asked: list[str]
    labels: tuple[str, ...]
    later: Fraction = Fraction(1)
    price: Price = PRICE
    order_rows: int | None = None
    is_deterministic: bool = False
    orders: dict[str, Order] = field(default_factory=dict)
    shown: Sequence[Example] = ()

    def costs(self, examples: Sequence[Example]) -> Sequence[RowCost]:
        return [RowCost(len(row.text) * EXPECTED, 2 * len(row.text) * EXPECTED) for row in examples]

    def quote(self, examples: Sequence[Example]) -> Quote:
        return Quote.of(self.price, sum((cost.most for cost in self.costs(examples)), Fraction(0)))

    def identity(self) -> Mapping[str, object]:
        return {"seller": "by the letter"}

    def submit(self, order: Order) -> None:
        self.orders[order.id] = order

    def collect(self, order: Order, allowance: Allowance, report: Callable[[int], None] = no_report) -> Delivery:
        if order.id not in self.orders:
            raise UnknownOrder(order.id)
        results, answers = [], []
        for row in order.examples:
            cost = (self.later if len(self.asked) >= N_TRIED else 1) * len(row.text) * EXPECTED
            if not allowance.take(2 * len(row.text) * EXPECTED):
                break
            allowance.give_back(2 * len(row.text) * EXPECTED - cost)
            if int(row.id[:8], 16) % REFUSED == 0:
                results.append(RowResult(row.id, None, "it was no answer", cost))
            else:
                label = self.gold[row.id]
                shares = tuple(0.9 if each == label else 0.1 / (len(self.labels) - 1) for each in self.labels)
                answers.append(Answer(row.id, "made-up", label, label, 0.5, 0.9, shares))
                results.append(RowResult(row.id, label, None, cost))
            self.asked.append(row.id)
            report(len(results))
        cash = self.price.cost_micros(sum((each.quantity for each in results), Fraction(0)))
        return Delivery(order.id, tuple(results), tuple(answers), cash)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@dataclass
class Hired:
    """A language model of which `TokenSeller` is the far side, in the requests of a world."""

    world: World
    workbench: RunBuilder
    asked: list[str]
    shown: list[tuple[str, str]]
    later: Fraction = Fraction(1)

    def prepared(self, **changes: object) -> PreparedRun:
        model: dict[str, Any] = {"model": "made-up", "examples": "none", "price_item": "free"}
        llm = SellerSpec.of("llm", "openai", {**model, **changes.pop("llm", {})})  # type: ignore[dict-item]
        asked = {
            "strategy": "llm_annotate",
            "budget_micros": 4_000_000,
            "n_initial": None,
            "sellers": (SellerSpec(), llm),
        }
        return self.workbench.prepare(self.world.request(**{**asked, **changes}))


@pytest.fixture
def hired(world: World, monkeypatch: pytest.MonkeyPatch) -> Hired:
    found = Hired(world, RunBuilder(PriceBook.load()), [], [])
    orders: dict[str, Order] = {}

    def seller(
        block: Any, task: Any, book: Any, seed: Any, asked: Any, examples: Sequence[Example], poll: float | None
    ) -> TokenSeller:
        rows = found.workbench.load(str(world.task))[1].train
        gold = {row.id: str(row.label) for row in rows}
        if examples and asked != Path("asked"):  # not to plan, but to buy
            found.shown[:] = [(row.id, str(row.label)) for row in examples]
        return TokenSeller(gold, found.asked, task.labels, found.later, orders=orders)

    monkeypatch.setattr(sellers, "llm_seller", seller)
    return found


def purchases(prepared: PreparedRun) -> list[Buy]:
    """The purchases of a run of the model's labels: those that show what it costs, and the others."""
    found = decided(strategy(prepared.request.strategy), prepared.context)
    assert isinstance(found, Recipe), found
    return [step for step in found.steps() if isinstance(step, Buy) and step.seller == "llm"]


def n_planned(prepared: PreparedRun) -> int:
    return sum(buy.n for buy in purchases(prepared))


def executed(one: Runner, hired: Hired, prepared: PreparedRun) -> Point:
    point = one.execute(prepared)  # type: ignore[attr-defined]
    check_books(one, hired.workbench, [prepared.asked], [point])
    return point  # type: ignore[no-any-return]


def labels_charge(one: Runner, prepared: PreparedRun) -> tuple[int, int]:
    """Charge and cash of the settled purchases of a run."""
    entries = [
        each for each in one.ledger.entries(prepared.request.run_id) if each.kind == "settle" and each.unit == "dollar"
    ]
    return sum(each.charge_micros for each in entries), sum(each.cash_micros for each in entries)


def test_as_many_rows_are_planned_as_are_expected_to_be_paid(hired: Hired) -> None:
    prepared = hired.prepared()
    (first, rest), rows = purchases(prepared), prepared.train
    assert (first.start, first.n, rest.start) == (0, N_TRIED, N_TRIED)
    quoter, n = Quoter(prepared.context), first.n + rest.n
    expected = sum(len(row.text) for row in rows[N_TRIED:n]) * EXPECTED
    assert quoter.quote(rest).charge_micros == math.ceil(expected * 1_000_000)
    assert quoter.most(rest).charge_micros == math.ceil(2 * expected * 1_000_000)
    cheap, dear = (sum(len(row.text) for row in rows[:each]) * EXPECTED for each in (n, n + 1))
    assert cheap * 1_000_000 < 4_000_000 < (dear + Fraction("0.01")) * 1_000_000
    assert 0 < n < len(rows)


def test_a_purchase_is_charged_what_its_rows_cost_and_trains_on_the_labels_that_came(
    hired: Hired, tmp_path: Path
) -> None:
    one, prepared = runner(tmp_path / "out", tmp_path / "store"), hired.prepared(budget_micros=20_000_000)
    ordered = prepared.train
    assert n_planned(prepared) == len(ordered), "the budget reaches for all rows at their dearest"
    point = executed(one, hired, prepared)
    refused = [row for row in ordered if int(row.id[:8], 16) % REFUSED == 0]
    assert 0 < len(refused) < len(ordered)
    assert hired.asked == [row.id for row in ordered]
    cost = sum(len(row.text) for row in ordered) * EXPECTED * 1_000_000
    assert labels_charge(one, prepared) == (cost, cost)
    assert point.result.n_llm_labels == len(ordered) - len(refused)
    assert sum(int(n) for note in point.result.notes for n in re.findall(r"(\d+) refused", note)) == len(refused)
    bought = bought_rows(tmp_path / "store")
    assert sorted(bought) == sorted({row.id for row in ordered} - {row.id for row in refused})


def test_labels_that_cost_more_than_expected_are_fewer_and_no_budget_is_exceeded(hired: Hired, tmp_path: Path) -> None:
    hired.later = Fraction(2)
    one, prepared = runner(tmp_path / "out", tmp_path / "store"), hired.prepared()
    planned = n_planned(prepared)
    point = executed(one, hired, prepared)
    assert point.result.status == "ok"
    assert N_TRIED < len(hired.asked) < planned
    assert hired.asked == [row.id for row in prepared.train[: len(hired.asked)]]
    charge, cash = labels_charge(one, prepared)
    assert charge == cash <= 4_000_000
    # One row more was not to be had: it may cost as much as was left.
    assert charge + 2 * 200 * 1_000 > 3_900_000
    (note,) = [note for note in point.result.notes if "beyond the money" in note]
    assert f"{planned - len(hired.asked):,} beyond the money" in note
    # The same command again asks nothing, and says the same.
    n_asked = len(hired.asked)
    again = runner(tmp_path / "out", tmp_path / "store")
    assert again.execute(prepared).result == point.result
    assert len(hired.asked) == n_asked


def test_what_was_bought_is_charged_to_another_run_in_full_and_paid_once(hired: Hired, tmp_path: Path) -> None:
    one, prepared = runner(tmp_path / "out", tmp_path / "store"), hired.prepared()
    executed(one, hired, prepared)
    before = len(hired.asked)
    other = runner(tmp_path / "other", tmp_path / "store")
    executed(other, hired, prepared)
    assert len(hired.asked) == before
    assert labels_charge(other, prepared) == (labels_charge(one, prepared)[0], 0)
    larger = hired.prepared(budget_micros=7_000_000)
    executed(one, hired, larger)
    assert len(hired.asked) == len(set(hired.asked)) > before
    charge, cash = labels_charge(one, larger)
    new = sum(len(row.text) for row in prepared.train if row.id in hired.asked[before:]) * EXPECTED
    assert cash == math.ceil(new * 1_000_000)
    assert charge == math.ceil(
        sum(len(row.text) for row in prepared.train if row.id in hired.asked) * EXPECTED * 1_000_000
    )


def test_answers_are_kept_with_their_probabilities_and_a_student_learns_them(hired: Hired, tmp_path: Path) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    taught, annotated = (hired.prepared(strategy=name) for name in ("llm_teach", "llm_annotate"))
    scores = [executed(one, hired, each).result for each in (taught, annotated)]
    assert len(hired.asked) == len(set(hired.asked)), "the same labels serve both"
    assert [each.status for each in scores] == ["ok", "ok"]
    assert scores[0].n_llm_labels == scores[1].n_llm_labels
    files = [each.path / "answers.jsonl" for each in one.store.find("buy")]
    answers = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert all(max(each["probabilities"]) == 0.9 == each["confidence"] for each in answers)
    trained = [each for each in one.store.find("train") if each.meta["request"]["parameters"].get("learns")]
    assert len(trained) == 1


def test_a_teacher_learns_from_a_language_model_and_speaks_on_the_pool(hired: Hired, tmp_path: Path) -> None:
    one, prepared = runner(tmp_path / "out", tmp_path / "store"), hired.prepared(strategy="llm_distill", n_initial=20)
    point = executed(one, hired, prepared)
    assert (point.result.status, point.result.n_labels) == ("ok", 0)
    assert 0 < point.result.n_llm_labels <= 20
    assert point.result.n_pool > 0


def test_a_language_model_is_shown_labels_that_people_gave_first(hired: Hired, tmp_path: Path) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = hired.prepared(llm={"examples": "fixed", "n_examples": 6}, budget_micros=6_000_000)
    first, rest = purchases(prepared)
    assert [(each.start, [shown.n for shown in each.examples]) for each in (first, rest)] == [(6, [6]), (26, [6])]
    point = executed(one, hired, prepared)
    assert hired.shown == [(row.id, row.label) for row in prepared.train[:6]]
    assert not {row.id for row in prepared.train[:6]} & set(hired.asked)
    assert point.result.n_labels == 6


# --- plans, without a run ---------------------------------------------------------------------------------------------


def offered(n_examples: int = 0) -> Offer:
    costs = RunningCosts([Fraction(i, 100) for i in range(291)], [Fraction(i, 20) for i in range(291)])
    return Offer(PRICE, canonical_json({"seller": "llm"}), costs={"train": costs}, n_examples=n_examples)


def asked(name: str, offer: Offer, **changes: Any) -> Recipe | NotAvailable:
    knows = known(changes.pop("budget", 9_000_000), strategy=name, **changes)
    found = decided(strategy(name), replace(knows, offers={**knows.offers, "llm": offer}))
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["llm_annotate", "llm_teach", "llm_distill"])
def test_examples_are_bought_of_people_first(name: str) -> None:
    found = asked(name, offered(16), n_initial=40 if name == "llm_distill" else None)
    assert isinstance(found, Recipe)
    train = next(step for step in found.steps() if isinstance(step, Train))
    first, *rests = train.labels
    assert (first.seller, first.start, first.n) == ("human", 0, 16)
    assert rests[0].start == 16
    for rest in rests:
        assert (rest.seller, rest.examples) == ("llm", (first,))
        assert rest.series != replace(rest, examples=()).series
    assert first in found.steps()
    assert any(isinstance(step, Distil) for step in found.steps()) == (name == "llm_distill")


def test_examples_that_nobody_sells_and_too_few_of_them_are_refused() -> None:
    few = asked("mix", offered(16), n_initial=5)
    assert isinstance(few, NotAvailable)
    assert "shown 16 bought labels, and people give 5" in few.reason
    knows = known(9_000_000, strategy="llm_annotate")
    alone = strategy("llm_annotate").ask(replace(knows, offers={"llm": offered(16)}), [])
    assert isinstance(alone, NotAvailable)
    assert "nobody sells them" in alone.reason


def test_without_examples_the_key_of_a_purchase_is_what_it_was() -> None:
    plain = Buy("train", 5, 0, "digest", "seller")
    assert plain.inputs == ()
    assert "inputs" not in plain.parameters()


def test_the_first_labels_show_what_the_others_cost() -> None:
    """Where the first twenty cost half of what was expected, twice as many are bought of what is left."""
    knows = known(2_000_000, strategy="llm_annotate", dev="given")
    knows = replace(knows, offers={**knows.offers, "llm": offered()})
    policy = strategy("llm_annotate")
    trial = policy.ask(knows, [])
    assert isinstance(trial, Recipe)
    assert isinstance(trial.final, Buy)
    assert (trial.final.n, trial.final.start, trial.is_trial, trial.steps()) == (20, 0, True, [trial.final])

    def bought(share: Fraction) -> int:
        charge = int(Quoter(knows).quote(trial.final).charge_micros * share)  # type: ignore[union-attr, arg-type]
        outcome = StrategyOutcome(trial, None, charge, {trial.final.key: charge})  # type: ignore[union-attr]
        found = policy.ask(knows, [outcome])
        assert isinstance(found, Recipe)
        train = next(step for step in found.steps() if isinstance(step, Train))
        assert train.labels[0] == trial.final  # type: ignore[union-attr]
        assert train.labels[1].start == 20
        assert policy.ask(knows, [outcome, StrategyOutcome(found, None, charge)]) is None
        return train.n_labels

    as_expected = bought(Fraction(1))
    assert bought(Fraction(1, 2)) > 1.3 * as_expected
    assert bought(Fraction(2)) < 0.75 * as_expected
    plan = decided(policy, knows)
    assert isinstance(plan, Recipe)
    assert next(step for step in plan.steps() if isinstance(step, Train)).n_labels == as_expected


@pytest.mark.parametrize("dev", ["carved", "given"])
def test_a_seller_is_not_tried_for_a_few_labels_nor_where_dev_rows_are_carved_from_the_first(dev: str) -> None:
    found = asked("llm_annotate", offered(), dev=dev, budget=300_000 if dev == "given" else 2_000_000)
    assert isinstance(found, Recipe)
    assert len(next(step for step in found.steps() if isinstance(step, Train)).labels) == 1
