"""Plans against brute force: every point alone, every batch by hand; and what cannot be filled."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench import plan_study
from outlay.cli.plan_table import render
from outlay.engine import model_facts
from outlay.engine.prepare import RunBuilder
from outlay.errors import UsageError
from outlay.models.cost_model import TERMS, MachineProfile
from outlay.money.amounts import Price, PriceBook, format_usd, parse_usd
from outlay.plan import context
from outlay.plan.forecast import Forecaster
from outlay.plan.quotes import Quoter
from outlay.plan.request import ReplayOptions, Request, SellerSpec
from outlay.plan.steps import OWNED, Buy, Distil, Recipe, Score, Step, Teach, Train, graph
from outlay.plan.strategies import NotAvailable, strategy
from outlay.storage.hashing import key_of
from outlay.study.dry_run import StudyPlan, plan
from outlay.study.work import LabelCount, count_labels
from tests.knowledge import LABELS, N_DEV, N_TRAIN, Bill, known
from tests.runs import World

BLOCK = 64
"""Pool rows per block in these tests: 270 rows are five."""
DEVS = ("given", "bought", "carved", "none")


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "BLOCK_ROWS", BLOCK)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def dear() -> PriceBook:
    """A machine whose hour is so dear that compute and labels weigh alike."""
    return PriceBook([*PriceBook.load().items(), Price("cpu", "hour", Decimal(2_000_000), "a test", None)])


@pytest.fixture(scope="module")
def grid(world: World) -> list[Request]:
    return [
        world.request(strategy=name, budget_micros=budget, n_initial=n, seed=seed, general=str(world.checkpoint))
        for seed, name, n, budget in product(
            (0, 1), ("annotate", "distill", "self_distill"), (30, 60), (8_000_000, 15_000_000, 24_000_000)
        )
    ]


@pytest.fixture(scope="module")
def planned(grid: list[Request], dear: PriceBook) -> StudyPlan:
    return plan(RunBuilder(dear), grid)


def batches(step: Step) -> int:
    """Optimiser steps, batch by batch."""
    if not isinstance(step, Train | Distil):
        return 0
    n_rows = step.n_labels if isinstance(step, Train) else step.targets[-1].stop
    return sum(1 for _ in range(step.settings.epochs) for _ in range(0, n_rows, step.settings.batch_size))


# --- counts ----------------------------------------------------------------------------------------------------------


def test_the_plan_is_the_sum_of_its_points_each_step_once(
    grid: list[Request], dear: PriceBook, planned: StudyPlan
) -> None:
    every: dict[str, Step] = {}
    hours: dict[str, Fraction] = {}
    separate: list[str] = []
    charge = n_na = 0
    for request, point in zip(grid, planned.points, strict=True):
        prepared = RunBuilder(dear).prepare(request)
        recipe = strategy(request.strategy).ask(prepared.context, [])
        assert point.request == request
        assert point.run_id == prepared.request.run_id
        if isinstance(recipe, NotAvailable):
            n_na += 1
            assert (point.recipe, point.reason, point.charge_micros) == (None, recipe.reason, 0)
            continue
        assert isinstance(recipe, Recipe)
        assert isinstance(point.recipe, Recipe)
        quoter = Quoter(prepared.context)
        own = sum(quoter.quote(step).charge_micros for step in recipe.steps())
        charge += own
        assert (point.charge_micros, point.reason) == (own, None)
        assert point.recipe.derivation == recipe.derivation
        assert [step.key for step in point.recipe.steps()] == [step.key for step in recipe.steps()]
        for step in recipe.steps():
            every[step.key] = step
            hours[step.key] = Fraction(0) if isinstance(step, Buy) else quoter.hours(quoter.work(step))
            separate.append(step.key)
    assert 0 < n_na < len(grid)
    assert (planned.n_points, planned.n_na, planned.charge_micros) == (len(grid), n_na, charge)
    assert {step.key for step in planned.steps} == set(every)
    assert len(planned.steps) == len(every)
    for kind in ("buy", "train", "teach", "distil", "score"):
        assert planned.distinct.n_steps[kind] == sum(step.kind == kind for step in every.values()) > 0
        assert planned.separate.n_steps[kind] == sum(every[key].kind == kind for key in separate)
    n_distinct = sum(batches(step) for step in every.values())
    n_separate = sum(batches(every[key]) for key in separate)
    assert (planned.distinct.n_optimizer_steps, planned.separate.n_optimizer_steps) == (n_distinct, n_separate)
    assert planned.saved == 1 - n_distinct / n_separate > 0.1
    assert planned.distinct.charged_hours == pytest.approx(float(sum(hours.values())), rel=1e-12)
    assert planned.separate.charged_hours == pytest.approx(float(sum(hours[key] for key in separate)), rel=1e-12)


def test_the_grid_of_these_tests_takes_more_and_fewer_blocks(planned: StudyPlan) -> None:
    recipes = [point.recipe for point in planned.points if point.recipe is not None]
    assert len({sum(isinstance(step, Teach) for step in recipe.steps()) for recipe in recipes}) >= 4


def test_inputs_stand_before_what_reads_them(planned: StudyPlan) -> None:
    seen: set[str] = set()
    for step in planned.steps:
        assert {given.key for given in step.inputs} <= seen
        seen.add(step.key)


def test_batches_filled_by_tokens_are_counted_by_their_tokens(world: World) -> None:
    overrides = {**world.request().overrides, "student": {"epochs": 3, "batch_tokens": 100}}
    asked = world.request(strategy="annotate", budget_micros=8_000_000, overrides=overrides)
    (point,) = (planned := plan(world.workbench, [asked])).points
    assert point.recipe is not None
    (train,) = [step for step in point.recipe.steps() if isinstance(step, Train)]
    tokens = world.workbench.prepare(asked).context.tokens[train.model.ref].train[train.n_labels]
    assert planned.distinct.n_optimizer_steps == 3 * -(-tokens // 100)


def test_the_same_step_on_two_machines_is_done_once_and_told_at_both_speeds(world: World) -> None:
    both = [world.request(machine=name) for name in ("cpu", "a100-40gb")]
    alone = [plan(world.workbench, [request]) for request in both]
    together = plan(world.workbench, both)
    assert together.distinct == alone[0].distinct
    assert together.separate.charged_hours == pytest.approx(sum(each.distinct.charged_hours for each in alone))
    assert alone[0].distinct.charged_hours > 2 * alone[1].distinct.charged_hours


# --- sharing changes nothing -----------------------------------------------------------------------------------------


def test_keys_and_derivations_are_those_of_every_point_alone() -> None:
    """Frozen: a step's key is where its artifact lies, so what is shared in the making must not move it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "BLOCK_ROWS", 1024)
        said: dict[str, object] = {}
        names, budgets = FROZEN, (3_000_000, 12_345_678, 21_000_000, 40_000_000, 90_000_000)
        for name, dev, n, seed in product(names, DEVS, (None, 50, 120), (0, 3)):
            shared = known(1, dev=dev, seed=seed, strategy=name)
            for budget in budgets:
                knows = shared.asked(budget, n)
                asked = strategy(name).ask(knows, [])
                told = [line for line in getattr(asked, "derivation", ()) if not line.startswith(LATER_LINES)]
                said[str((name, None if dev == "none" else dev, n, budget, seed))] = (
                    [[s.key for s in graph([asked.final])], told, Quoter(knows).total_micros(asked.final)]
                    if isinstance(asked, Recipe)
                    else without_dev_words(asked.reason)  # type: ignore[union-attr]
                )
    assert len(said) == 480
    assert key_of(said) == FROZEN_DIGEST


def without_dev_words(reason: str) -> str:
    """A refusal as it was before it told of the dev labels that it counts."""
    return reason.replace(f", with {N_DEV} dev labels, cost", " cost")


FROZEN = ("annotate", "distill", "general_distill", "self_distill")
LATER_LINES = (f"all {N_TRAIN} labels used", "sellers: ")
"""Lines of derivations that came after the digest was taken."""
FROZEN_DIGEST = "953fe18ef351d05e10d556cb41ea54f1a8d58e5af209a857197bd794a34df12b"


@settings(deadline=None, max_examples=15)
@given(
    budgets=st.lists(st.integers(1_000_000, 90_000_000), min_size=1, max_size=5),
    dev=st.sampled_from(DEVS),
    n_initial=st.one_of(st.none(), st.integers(1, N_TRAIN)),
    free=st.booleans(),
)
def test_one_memo_for_all_budgets_answers_as_brute_force_does(
    budgets: list[int], dev: str, n_initial: int | None, free: bool
) -> None:
    bill, least = Bill(dev, free_student=free), len(LABELS) * (2 if dev == "carved" else 1)
    shared = known(1, dev=dev, student_training="free" if free else "charged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "BLOCK_ROWS", 1024)
        for budget in budgets:
            knows = shared.asked(budget, n_initial)
            costs: dict[str, dict[int, int]] = {
                "annotate": {n: bill.annotate(n) for n in range(least, N_TRAIN + 1)},
                "distill": {n: bill.distill(n, 3) for n in range(least, N_TRAIN + 1)}
                if n_initial is None
                else {blocks: bill.distill(n_initial, blocks) for blocks in (1, 2, 3)},
            }
            for name, by_size in costs.items():
                most = max((size for size, cost in by_size.items() if cost <= budget), default=None)
                asked = strategy(name).ask(knows, [])
                if most is None:
                    assert isinstance(asked, NotAvailable)
                    continue
                assert isinstance(asked, Recipe)
                model = asked.final.model
                fixed = isinstance(model, Distil) and n_initial is not None
                train = model if isinstance(model, Train) else model.targets[0].teacher
                assert most == (len(model.targets) if fixed else train.n_labels)  # type: ignore[union-attr]
                assert Quoter(knows).total_micros(asked.final) == by_size[most]


def test_a_shared_workbench_prepares_what_a_fresh_one_does(world: World) -> None:
    shared = RunBuilder(PriceBook.load())
    changes: list[dict[str, object]] = [
        {},
        {"budget_micros": 9_000_000},
        {"n_initial": 30},
        {"n_initial": None},
        {"seed": 1},
        {"pool_rows": 100},
        {"strategy": "annotate"},
        {"student": "cut:1"},
        {"dev": "carved"},
        {"dev": "bought", "n_dev": 7},
        {"sellers": (SellerSpec(replay=ReplayOptions(0.1, 3)),)},
        {"overrides": {"teacher": {"epochs": 3}}},
        {"student_training": "free", "threads": 3},
        {},
    ]
    for change in changes:
        request = world.request(**change)
        one, other = shared.prepare(request), RunBuilder(PriceBook.load()).prepare(request)
        assert one.request == other.request == one.context.request == shared.resolve(request)
        assert (one.train, one.dev, one.pool, one.test) == (other.train, other.dev, other.pool, other.test)
        assert one.pool_parts == other.pool_parts
        assert one.context.pool_digests(5, 70) == other.context.pool_digests(5, 70)
        assert (
            replace(one.context, pool_digests=other.context.pool_digests, n_carved=other.context.n_carved)
            == other.context
        )
        asked = [strategy(request.strategy).ask(each.context, []) for each in (one, other)]
        assert asked[0] == asked[1]


def test_settings_that_are_written_differently_are_not_shared(world: World) -> None:
    whole = world.request(overrides={"teacher": {"epochs": 2}})
    assert world.workbench.resolve(whole)
    with pytest.raises(UsageError, match=r"epochs is 2\.0"):
        world.workbench.resolve(replace(whole, overrides={"teacher": {"epochs": 2.0}}))
    with pytest.raises(UsageError, match="the budget is"):
        replace(whole, budget_micros=0)


# --- what cannot be filled -------------------------------------------------------------------------------------------


def test_a_cell_that_cannot_be_filled_says_why_and_stops_nothing(world: World, tmp_path: Path) -> None:
    fine = world.request()
    asked: list[Request | tuple[Request, str]] = [
        fine,
        replace(fine, budget_micros=1_000_000),
        replace(fine, teacher=str(tmp_path / "nothing")),
        replace(fine, pool_rows=271),
        replace(fine, pool_rows=270),
        (replace(fine, n_initial=61), "the paper has no such cell"),
        (replace(fine, teacher=str(tmp_path / "nothing")), "the paper has no such model"),
        replace(fine, task=str(tmp_path / "nowhere.yaml")),
        replace(fine, strategy="guess"),
    ]
    planned = plan(world.workbench, asked)
    reasons = [point.reason for point in planned.points]
    assert reasons[0] is reasons[4] is None
    assert re.search(r"\$1\.00; raise it", str(reasons[1]))
    assert "nothing" in str(reasons[2])
    assert re.search(r"\b270 rows.*\b271", str(reasons[3]))
    assert reasons[5:7] == ["the paper has no such cell", "the paper has no such model"]
    assert "nowhere" in str(reasons[7])
    assert "'guess'" in str(reasons[8])
    assert all(reason is None or "\n" not in reason for reason in reasons)
    has_request = [point.run_id is not None for point in planned.points]
    assert has_request == [True, True, False, True, True, True, False, False, False]
    assert planned.n_na == 7
    assert planned.distinct == plan(world.workbench, [asked[0], asked[4]]).distinct
    # A run takes what pool there is.
    assert len(world.workbench.prepare(replace(fine, pool_rows=271)).pool) == 270


def test_what_fails_is_tried_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def counting(ref: str, *, base: str | None = None) -> str:
        tried.append(ref)
        return original(ref, base=base)

    original = model_facts.fingerprint
    monkeypatch.setattr(model_facts, "fingerprint", counting)
    asked = [world.request(teacher="/nowhere/at/all", seed=seed, n_initial=n) for seed in range(3) for n in (5, 6)]
    planned = plan(RunBuilder(PriceBook.load()), asked)
    assert planned.n_na == 6
    assert len({point.reason for point in planned.points}) == 1
    assert tried == ["/nowhere/at/all"]


def test_a_checkpoint_that_changed_is_seen_by_the_next_command(tmp_path: Path) -> None:
    own = World(tmp_path)
    before = own.workbench.resolve(own.request())
    config = own.checkpoint / "config.json"
    config.write_text(config.read_text() + "\n")
    assert own.workbench.resolve(own.request()).run_id == before.run_id
    assert RunBuilder(PriceBook.load()).resolve(own.request()).digests != before.digests


def test_labels_of_several_purchases_count_once() -> None:
    first, longer, later = (Buy("train", n, 0, "rows", "people", start=start) for start, n in ((0, 5), (0, 8), (12, 3)))
    other = Buy("dev", 4, 0, "rows", "people")
    owned = Buy("train", 6, 0, "rows", "mine", seller=OWNED)
    assert count_labels([first, later, longer, other, first, owned]) == LabelCount(8 + 3 + 4, 6)
    assert count_labels([]) == LabelCount(0, 0)


# --- here, and for people --------------------------------------------------------------------------------------------


def test_seconds_and_cash_here_are_those_of_the_distinct_steps(world: World) -> None:
    profile = MachineProfile(
        "here", "2026-11-21", "a device", "2.13.0", 1, 10**11, {"fp32": dict.fromkeys(TERMS, 0.01)}
    )
    asked = [world.request(budget_micros=budget, seed=seed) for budget in (14_000_000, 20_000_000) for seed in (0, 1)]
    asked.append(world.request(strategy="annotate"))
    here = Price("cpu", "hour", Decimal("0.5"), "a test", None)
    planned = plan(world.workbench, asked, profile=profile, here=here)
    seconds: dict[str, float] = {}
    n_separate: dict[str, int] = {}
    for request in asked:
        knows = world.workbench.prepare(request).context
        recipe = strategy(request.strategy).ask(knows, [])
        assert isinstance(recipe, Recipe)
        longest = Forecaster(
            Quoter(knows), profile, lambda labels, model, knows=knows: [knows.longest_answer[model.ref]]
        )
        for step in recipe.steps():
            if isinstance(step, Train | Teach | Distil | Score):
                forecast = longest.forecast(step)
                assert forecast is not None
                seconds[step.key] = forecast.seconds
                n_separate[step.key] = n_separate.get(step.key, 0) + 1
    # Of another seed's rows the order alone differs, which padding feels a little.
    assert planned.distinct.seconds_here == pytest.approx(sum(seconds.values()), rel=0.02)
    alone = sum(seconds[key] * n for key, n in n_separate.items())
    assert planned.separate.seconds_here == pytest.approx(alone, rel=0.02)
    assert planned.distinct.seconds_here is not None
    cash = planned.distinct.seconds_here / 3600 * 500_000
    assert planned.cash_micros == pytest.approx(cash, abs=1)

    other = plan(world.workbench, asked, profile=replace(profile, threads=2), here=here)
    # No profile of these threads: what is charged bounds neither wall seconds nor cash, so nothing is forecast.
    assert other.distinct.seconds_here is None
    assert other.cash_micros is None
    assert other.distinct.charged_hours > 0
    for unknown in (plan(world.workbench, asked, here=here), plan(world.workbench, asked)):
        document = unknown.to_json()
        assert document["cash_forecast_usd"] is None
        assert document["distinct"]["wall_seconds_forecast"] is None
        assert document["distinct"]["charged_hours_at_most"] > 0
    assert plan(world.workbench, asked, profile=profile).cash_micros is None  # no price of the machine that is here


def test_a_bound_of_the_charge_is_shown_as_no_forecast(world: World) -> None:
    profile = MachineProfile(
        "here", "2026-11-21", "a device", "2.13.0", 1, 10**11, {"fp32": dict.fromkeys(TERMS, 0.01)}
    )
    here = Price("cpu", "hour", Decimal("0.5"), "a test", None)

    def shown(planned: StudyPlan) -> str:
        console = Console(width=160, record=True, file=io.StringIO())
        console.print(render(planned))
        return console.export_text()

    def cells(text: str, heading: str) -> list[str]:
        row = next(line for line in text.splitlines() if heading in line)
        return [cell.strip() for cell in row.strip("│ ").split("│")[1:]]

    bare = shown(plan(world.workbench, [world.request()], here=here))
    assert cells(bare, "hours on this machine, forecast") == ["–"]
    assert all(float(cell) > 0 for cell in cells(bare, "hours charged at most, as cpu"))
    assert "no forecast; `outlay machine calibrate`" in " ".join(bare.split())
    assert "forecast: $" not in bare
    planned = plan(world.workbench, [world.request()], profile=profile, here=here)
    known = shown(planned)
    assert planned.distinct.seconds_here is not None
    assert planned.cash_micros is not None
    assert float(cells(known, "hours on this machine, forecast")[0].replace(",", "")) == pytest.approx(
        planned.distinct.seconds_here / 3600, rel=0.05
    )
    assert f"Cash for compute here, forecast: {format_usd(planned.cash_micros)}" in known


def test_json_has_every_point_and_the_sums(planned: StudyPlan) -> None:
    document = json.loads(json.dumps(planned.to_json(), allow_nan=False))
    assert [document["n_points"], document["n_na"]] == [planned.n_points, planned.n_na]
    assert document["distinct"]["steps"] == planned.distinct.n_steps
    assert document["separate"]["optimizer_steps"] == planned.separate.n_optimizer_steps
    assert document["charge_at_most_usd"] * 10**6 == pytest.approx(planned.charge_micros)
    assert document["charge_at_most_usd"] == pytest.approx(
        sum(point["charge_at_most_usd"] for point in document["points"])
    )
    assert document["cash_forecast_usd"] is None
    for point, said in zip(planned.points, document["points"], strict=True):
        asked = point.request
        assert said["run"] == point.run_id
        assert (said["strategy"], said["n_initial"], said["seed"]) == (asked.strategy, asked.n_initial, asked.seed)
        assert parse_usd(said["budget_usd"]) == asked.budget_micros
        assert (said["status"], said["reason"]) == ("planned" if point.recipe else "na", point.reason)
        if point.recipe is not None:
            by_kind = {step.kind: step for step in point.recipe.steps()}
            assert said["n_labels"] == by_kind["buy"].n  # type: ignore[attr-defined]
            assert said["n_pool"] == (by_kind["distil"].n_rows if "distil" in by_kind else 0)  # type: ignore[attr-defined]


def test_a_terminal_shows_groups_and_sums_not_every_point(planned: StudyPlan) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(planned))
    text = console.export_text()
    assert f"{planned.n_points} points, {planned.n_na} of them N/A" in text
    rows = [line for line in text.splitlines() if " distill " in line]
    assert len(rows) == 2  # of 12 points
    assert f"{planned.distinct.n_optimizer_steps:,}" in text
    assert f"{planned.separate.n_optimizer_steps:,}" in text
    assert f"Sharing saves {100 * planned.saved:.1f} %" in text
    assert sum(line.startswith("N/A: ") for line in text.splitlines()) == len(
        {point.reason for point in planned.points if point.reason}
    )


def test_a_plan_of_nothing_is_empty(world: World) -> None:
    planned = plan(world.workbench, [])
    assert (planned.n_points, planned.n_na, planned.steps, planned.charge_micros, planned.saved) == (0, 0, (), 0, 0.0)
    Console(file=io.StringIO()).print(render(planned))


# --- speed -----------------------------------------------------------------------------------------------------------


def test_a_thousand_points_plan_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "BLOCK_ROWS", 32)
    task, model = plan_study.make_task(tmp_path, n_pool=20 * 32)
    points = plan_study.grid(task, model, 3)[:1000]
    began = time.process_time()
    planned = plan(RunBuilder(plan_study.price_book()), points)
    seconds = time.process_time() - began
    assert len(planned.steps) > 1000
    assert seconds < 10, seconds


@pytest.mark.bench
def test_the_bench_runs_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan_study, "N_BLOCKS", 1)
    monkeypatch.setattr(
        "sys.argv",
        ["plan_study.py", *["--seeds", "1", "--sample", "2", "--limit", "600", "--json"], str(tmp_path / "f")],
    )
    assert plan_study.main() == 0
    figures = json.loads((tmp_path / "f").read_text())
    assert figures["points"] == 400
    assert figures["steps_distinct"] < figures["steps_separate"]
