"""Rivals: which there are, that they buy nothing, what they are charged, and what becomes of them without labels."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

import outlay as outlay_api
from outlay.engine.point import Point, micros_of
from outlay.engine.run import ReadyStep, RunExecution
from outlay.engine.runner import Runner
from outlay.errors import SpendError
from outlay.labels.annotator import Order
from outlay.models.cost_model import TERMS, MachineProfile
from outlay.money.amounts import PriceBook
from outlay.plan.quotes import Quoter
from outlay.plan.request import Request
from outlay.plan.steps import HUMAN, Buy, Recipe
from outlay.plan.strategies import RIVAL_METHODS, NotAvailable, rival_of, strategy
from outlay.storage.store import Store
from outlay.study.dry_run import StudyPlan, plan
from outlay.study.grid import Grid
from outlay.study.index import StudyIndex
from outlay.study.runner import StudyRunner
from outlay.text.listener import Listener
from outlay.workers.pool import InProcessPool
from tests.checkpoints import kept_checkpoint
from tests.runs import FAST, FamilyWorld, PayingReplay, World
from tests.slow_seller import slow_seller
from tests.studies import HEADER, study_in_this_process, worker_factory, write_toy_study
from tests.test_cli import Shop, outlay, refused, write_task

HOUR = PriceBook.load().hour("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> FamilyWorld:
    return FamilyWorld(tmp_path_factory.mktemp("families"))


def planned(world: World, *asked: Request) -> StudyPlan:
    return plan(world.workbench, asked, rivals=True)


def rivals(found: StudyPlan) -> list[Request]:
    return [point.request for point in found.points if point.is_rival]


def runner(folder: Path) -> Runner:
    return Runner(folder, Store(folder / "store"), here=HOUR)


def conducted(world: World, found: StudyPlan, one: Runner) -> dict[str, Point]:
    """The points by strategy."""
    study = StudyRunner(found, HEADER, one, world.workbench)
    with InProcessPool(worker_factory(one)) as pool:
        study.run(pool, Listener())
    return {point.request.strategy: study.points[i] for i, point in enumerate(found.points)}


# --- which there are -------------------------------------------------------------------------------------------------


def test_each_budget_and_seed_has_one_of_each(world: World) -> None:
    asked = [
        world.request(strategy=name, budget_micros=budget, seed=seed)
        for name in ("annotate", "distill")
        for budget in (16_000_000, 19_000_000)
        for seed in (0, 1)
    ]
    found = rivals(planned(world, *asked))
    wanted = {(name, each.budget_micros, each.seed) for each in asked for name in RIVAL_METHODS}
    assert {(each.strategy, each.budget_micros, each.seed) for each in found} == wanted
    assert len(found) == len(wanted)


def test_a_rival_may_use_the_labels_of_whoever_buys_most(world: World) -> None:
    asked = [world.request(strategy=name, n_initial=60) for name in ("annotate", "distill")]
    found = planned(world, *asked)
    bought = [max(step.stop for step in point.recipe.steps() if isinstance(step, Buy)) for point in found.points[:2]]
    assert {each.max_labels for each in rivals(found)} == {max(bought)}
    assert max(bought) > 60
    alone = planned(world, asked[1])
    assert {each.max_labels for each in rivals(alone)} == {60}


def test_only_the_probe_is_there_for_each_student(world: World) -> None:
    asked = [world.request(strategy="annotate", student=student) for student in ("cut:2", "cut:3")]
    found = [(each.strategy, each.student) for each in rivals(planned(world, *asked))]
    assert sorted(found) == [
        ("rival_majority", "cut:2"),
        ("rival_probe", "cut:2"),
        ("rival_probe", "cut:3"),
        ("rival_tfidf", "cut:2"),
    ]


def test_n_teacher_and_pool_make_no_other_rival(world: World) -> None:
    one = world.request(n_initial=40)
    asked = [
        one,
        replace(one, n_initial=50),
        replace(one, pool_rows=60, n_initial=50),
        replace(one, teacher="cut:3", base=one.teacher),
    ]
    found = rivals(planned(world, *asked))
    assert [each.strategy for each in found] == list(RIVAL_METHODS)
    assert all(each.n_initial is None and each.pool_rows is None and each.max_labels == 50 for each in found)


def test_methods_of_runs_make_no_other_rival(world: World) -> None:
    methods = (
        {},
        {"method": "full"},
        {"method": "probe", "pair": "joined"},
        {"method": "probe_then_tune", "tune": "lora"},
    )
    asked = [
        world.request(strategy="annotate", overrides={"student": settings} if settings else {}) for settings in methods
    ]
    found = rivals(planned(world, *asked))
    assert [each.strategy for each in found] == list(RIVAL_METHODS)
    assert {role for each in found for role in each.overrides} == set()


def test_the_probe_reads_the_general_checkpoint_of_a_run_that_starts_from_it(world: World) -> None:
    asked = world.request(strategy="general_distill", general=str(world.checkpoint))
    found = {each.strategy: each.student for each in rivals(planned(world, asked))}
    assert found["rival_probe"] == str(world.checkpoint)


def test_runs_that_cannot_be_filled_have_none(world: World) -> None:
    assert rivals(planned(world, world.request(budget_micros=1_000_000))) == []


def test_other_settings_of_the_student_stay_but_its_method_does_not(world: World) -> None:
    settings = {
        "teacher": {"epochs": 9, "precision": "fp32"},
        "student": {"epochs": 1, "method": "lora", "precision": "fp32"},
    }
    (found,) = (
        each
        for each in rivals(planned(world, world.request(strategy="annotate", overrides=settings)))
        if each.strategy == "rival_probe"
    )
    assert found.overrides == {"student": {"epochs": 1, "precision": "fp32"}, "teacher": {"precision": "fp32"}}
    assert world.workbench.resolve(found).overrides["student"]["method"] == "probe"


def test_entities_have_the_probe_alone_and_written_answers_none(families: FamilyWorld) -> None:
    def asked(task: str, family: str) -> StudyPlan:
        checkpoint = str(families.checkpoints[family])
        request = Request(
            task=str(families.tasks[task]),
            strategy="annotate",
            budget_micros=2_000_000,
            teacher=checkpoint,
            student=checkpoint,
            threads=1,
            precision="fp32",
        )
        return plan(families.workbench, [request], rivals=True)

    assert [each.strategy for each in rivals(asked("entities", "encoder"))] == ["rival_probe"]
    assert rivals(asked("entities", "seq2seq")) == []
    written = asked("questions", "seq2seq")
    assert rivals(written) == []
    assert [line for line in written.notes if "has no rivals" in line]
    assert [each.strategy for each in rivals(asked("classes", "seq2seq"))] == list(RIVAL_METHODS)


def test_a_strategy_that_fails_to_be_a_rival_is_none() -> None:
    assert rival_of("annotate") is None
    assert rival_of("nothing") is None
    assert all(rival_of(name).method == method for name, method in RIVAL_METHODS.items())  # type: ignore[union-attr]


# --- its recipe ------------------------------------------------------------------------------------------------------


def ask(world: World, **changes: object) -> Recipe | NotAvailable:
    prepared = world.prepared(n_initial=None, **changes)
    found = strategy(prepared.request.strategy).ask(prepared.context, [])
    assert found is not None
    return found


@pytest.mark.parametrize("name", RIVAL_METHODS)
def test_it_takes_as_many_labels_as_are_bought_or_paid_for(world: World, name: str) -> None:
    few = ask(world, strategy=name, max_labels=30)
    assert isinstance(few, Recipe)
    assert [step.n for step in few.steps() if isinstance(step, Buy)] == [30]
    assert few.model.settings.method == RIVAL_METHODS[name]
    context = world.prepared(strategy=name, n_initial=None, max_labels=100, budget_micros=5_000_000).context
    poor = strategy(name).ask(context, [])
    assert isinstance(poor, Recipe)
    assert Quoter(context).total_micros(poor.final) <= 5_000_000
    assert 5_000_000 - Quoter(context).total_micros(poor.final) < context.offer().price.cost_micros(1)


def test_too_few_labels_are_not_available(world: World) -> None:
    found = ask(world, strategy="rival_tfidf", max_labels=1)
    assert isinstance(found, NotAvailable)
    assert "1 labels are bought, fewer than the" in found.reason


def test_a_plan_counts_no_optimiser_steps_of_rivals_and_no_seconds_of_words(world: World) -> None:
    profile = MachineProfile(
        "here", "2026-11-21", "a device", "2.13.0", 1, 10**11, {"fp32": dict.fromkeys(TERMS, 0.01)}
    )
    asked = world.request(strategy="annotate", overrides=FAST | {"student": FAST["student"] | {"method": "full"}})
    alone, whole = (plan(world.workbench, [asked], profile=profile, rivals=each) for each in (False, True))
    assert alone.separate.n_optimizer_steps == whole.separate.n_optimizer_steps > 0
    assert whole.separate.charged_hours > alone.separate.charged_hours
    words = plan(world.workbench, [each for each in rivals(whole) if each.strategy != "rival_probe"], profile=profile)
    assert words.separate.seconds_here == 0
    assert (whole.separate.seconds_here or 0) > (alone.separate.seconds_here or 0)


def test_a_limit_on_labels_changes_no_other_strategy(world: World) -> None:
    one, other = (world.prepared(strategy="annotate", max_labels=n).context for n in (None, 5))
    policy = strategy("annotate")
    assert policy.ask(one, []).final.key == policy.ask(other, []).final.key  # type: ignore[union-attr]


# --- it never buys ---------------------------------------------------------------------------------------------------


def test_rivals_run_after_the_others_on_their_labels_and_are_charged_as_if_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered: list[str] = []

    class Watched(PayingReplay):
        def submit(self, order: Order) -> None:
            ordered.extend(order.rows)
            super().submit(order)

    monkeypatch.setattr("outlay.engine.sellers.Replay", Watched)
    found, one = planned(world, world.request(strategy="annotate")), runner(tmp_path)
    points = conducted(world, found, one)
    assert len(ordered) == len(set(ordered)) == points["annotate"].result.n_labels
    for i, each in enumerate(found.points):
        if not each.is_rival:
            continue
        point, context = points[each.request.strategy], world.workbench.prepare(each.request).context
        assert point.is_ok, point.result.reason
        assert point.circumstance.cash_usd is not None
        labels = [
            entry for entry in one.ledger.entries(each.run_id or "") if entry.kind == "settle" and entry.unit == "label"
        ]
        assert sum(entry.cash_micros for entry in labels) == 0
        alone = context.offer(HUMAN).price.cost_micros(point.result.n_labels)
        assert sum(entry.charge_micros for entry in labels) == alone
        hours = Fraction(point.result.seconds["cpu"]).limit_denominator(10**12) / 3600
        compute = float(hours) * float(context.machine_price.usd)
        assert micros_of(point.result.charge_usd) == pytest.approx(alone + 1e6 * compute, abs=3)
        assert point.result.n_labels == min(each.request.max_labels or 0, point.result.n_labels), i
    methods = {name: dict(points[name].request.methods)["student"] for name in RIVAL_METHODS}
    assert methods == RIVAL_METHODS
    assert Point.from_json(points["rival_tfidf"].to_json()) == points["rival_tfidf"]


def test_a_rival_without_its_labels_is_not_available_until_they_are_bought(world: World, tmp_path: Path) -> None:
    whole = planned(world, world.request(strategy="annotate"))
    alone = plan(world.workbench, rivals(whole))
    one = runner(tmp_path)
    points = conducted(world, alone, one)
    for point in points.values():
        n = point.request.max_labels
        assert point.result.status == "na"
        assert point.result.charge_usd == 0.0
        assert point.result.reason is not None
        assert point.result.reason.startswith("a rival buys no labels, and ")
        assert f"{n:,} train labels" in point.result.reason
    assert list((tmp_path / "store" / "bought").glob("*.jsonl")) == []
    after = conducted(world, whole, one)
    assert all(point.is_ok for point in after.values())


def test_a_rival_waits_for_labels_that_another_run_has_ordered(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seller = slow_seller(tmp_path / "far")
    monkeypatch.setattr("outlay.engine.sellers.Replay", seller)
    found, one = planned(world, world.request(strategy="annotate", budget_micros=4_000_000)), runner(tmp_path)
    first = conducted(world, found, one)
    assert {point.result.status for point in first.values()} == {"waiting"}
    assert "labels that another run has ordered" in (first["rival_tfidf"].result.reason or "")
    for _ in range(200):
        last = conducted(world, found, one)
        if last["annotate"].is_ok:
            break
    assert all(point.is_ok for point in last.values())
    assert all(
        entry.cash_micros == 0
        for each in found.points
        if each.is_rival
        for entry in one.ledger.entries(each.run_id or "")
        if entry.unit == "label"
    )


def test_commands_have_rivals_unless_they_say_otherwise(tmp_path: Path) -> None:
    shop = Shop(tmp_path, write_task(tmp_path / "task"), kept_checkpoint(tmp_path / "checkpoint"))
    whole = shop.run(tmp_path / "whole", "--strategy", "annotate", "--rivals", "--max-student-mb", 500)
    assert whole.code == 0, whole.err
    assert [each["request"]["strategy"] for each in json.loads((tmp_path / "whole" / "points.json").read_text())] == [
        "annotate",
        *RIVAL_METHODS,
    ]
    assert "Rival: TF-IDF + regression" in whole.out
    assert "For $6 within 500 MB: " in whole.out
    assert whole.out.count("Receipt of run") == 1
    again = shop.run(tmp_path / "whole", "--strategy", "annotate", "--no-rivals", "--json")
    assert [each["request"]["strategy"] for each in again.json] == ["annotate"], "leaving rivals out loses no score"
    named = shop.run(tmp_path / "named", "--strategy", "rival_tfidf", "--rivals")
    refused(named, "rival_tfidf is no strategy to choose", "student.method=tfidf")
    grid = ("compare", shop.task, "--budgets", "5,6", "--strategies", "annotate,rival_probe", "--out", tmp_path / "x")
    refused(outlay(*grid, "--store", shop.store, *shop.models()), "rival_probe is no strategy to choose")


def test_a_study_counts_its_rivals_and_a_key_or_an_option_leaves_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_in_this_process(monkeypatch)
    write_task(tmp_path / "task")
    head = "name: toy\nstrategies: [annotate, distill]\nscales:\n"
    file = tmp_path / "task" / "toy.yaml"
    write_toy_study(file, head, kept_checkpoint(tmp_path / "checkpoint"), {"cpu": 1}, most_usd=3)
    without = file.read_text()
    words = ("study", "run", file, "--dry-run", "--json", "--store", tmp_path / "store", "--out", tmp_path / "out")
    assert {each["strategy"] for each in outlay(*words).json["points"]} == {"annotate", "distill"}
    file.write_text(without.replace("rivals: false", "rivals: true"))
    found = outlay(*words).json
    n_rivals = sum(each["strategy"] in RIVAL_METHODS for each in found["points"])
    budgets = {each["budget_usd"] for each in found["points"] if each["status"] == "planned"}
    assert n_rivals == 3 * len(budgets)
    assert found["n_points"] == 4 + n_rivals
    assert outlay(*words, "--no-rivals").json["n_points"] == 4
    ran = outlay("study", "run", file, "--no-rivals", "--store", tmp_path / "store", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert (StudyIndex.read(tmp_path / "out").header.command or "").endswith("--scale cpu --no-rivals")


def test_from_python(world: World, tmp_path: Path) -> None:
    options = outlay_api.RunOptions(settings=FAST, threads=1)
    models = outlay_api.Models(teacher=world.checkpoint, student=["cut:2", "teacher"])
    setup = outlay_api.Setup(store=tmp_path / "store")
    found = outlay_api.compare(
        world.task, 8, strategies=["annotate"], models=models, options=options, setup=setup, out=tmp_path / "compared"
    )
    named = [(each.point.request.strategy, each.point.request.own_student, each.is_rival) for each in found]
    checkpoint = str(world.checkpoint)
    assert named == [
        ("annotate", "cut:2", False),
        ("annotate", checkpoint, False),
        ("rival_majority", None, True),
        ("rival_tfidf", None, True),
        ("rival_probe", "cut:2", True),
        ("rival_probe", checkpoint, True),
    ]
    assert found.raise_for_status() is found
    assert found.summary[0].startswith("For $8: ")
    one = outlay_api.run(
        world.task,
        8,
        strategy="annotate",
        models=outlay_api.Models(teacher=world.checkpoint, student="teacher"),
        options=options,
        setup=setup,
        out=tmp_path / "one",
    )
    assert one.point.request.student == checkpoint
    assert [each.point.request.strategy for each in one.rivals] == list(RIVAL_METHODS)
    assert all(each.charge > 0 and each.model.is_dir() for each in one.rivals)


def test_teacher_as_a_student_is_each_teachers_own_checkpoint() -> None:
    base = Request("t", "distill", 1_000_000, teacher="org/big")
    grid = Grid(base, ("annotate", "distill"), (1_000_000,), (0,), ("org/big", "org/small"), ("cut:2", "teacher"))
    found = [(each.strategy, each.teacher, each.student) for each in grid.requests()]
    assert found == [
        ("annotate", "org/big", "cut:2"),
        ("annotate", "org/big", "org/big"),
        ("annotate", "org/small", "org/small"),
        ("distill", "org/big", "cut:2"),
        ("distill", "org/big", "org/big"),
        ("distill", "org/small", "cut:2"),
        ("distill", "org/small", "org/small"),
    ]


def test_a_purchase_of_a_rival_is_refused_whoever_begins_it(world: World, tmp_path: Path) -> None:
    prepared = world.prepared(strategy="rival_tfidf", n_initial=None, max_labels=30)
    one = runner(tmp_path)
    execution = RunExecution(one.results, prepared, Listener()).open()
    try:
        assert execution.advance() is None
        assert execution.needs() == []
        assert execution.proposal is not None
        step = execution.proposal.steps()[0]
        with pytest.raises(SpendError, match="a rival buys no labels"):
            execution.begin(ReadyStep(step, step.key, already_paid=False))
    finally:
        execution.close()


def test_the_majority_class_is_not_remarked_on_for_what_it_is() -> None:
    from outlay.report.cells import remarks_of
    from tests.test_report import point

    notes = ("the student gives one and the same answer, 'a', to all 9 rows",)
    rows = {
        name: [point(name, 300.0, seed, 50.0, notes=notes) for seed in (0, 1)]
        for name in ("annotate", "rival_majority")
    }
    assert remarks_of(rows["annotate"]) == notes
    assert remarks_of(rows["rival_majority"]) == ()
