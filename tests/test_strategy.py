"""Strategies against brute force: what is the most that a budget buys, and is it exactly that?"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import UnknownStrategy
from outlay.money.amounts import OWNED_LABEL, parse_usd
from outlay.plan.context import Offer, PlanningContext
from outlay.plan.labels_left import lines_on_used_up
from outlay.plan.quotes import Quoter
from outlay.plan.request import ReplayOptions, SellerSpec
from outlay.plan.steps import HUMAN, Buy, Distil, Recipe, Score, Step, Teach, Train, describe
from outlay.plan.strategies import STRATEGIES, NotAvailable, StrategyOutcome, strategy
from outlay.settings import TeachSettings
from outlay.spec import TaskSpec
from tests.knowledge import ENCODING, LABELS, N_DEV, N_POOL, N_TRAIN, STUDENT, TEACHER, Bill, carved, known, people

DEVS = ("given", "bought", "carved", "none")
BUDGETS = (1_000_000, 3_000_000, 12_345_678, 40_000_000, 61_000_000, 90_000_000)


def ask(name: str, knows: PlanningContext) -> Recipe | NotAvailable:
    answer = strategy(name).ask(knows, [])
    assert answer is not None
    return answer


def recipe(name: str, knows: PlanningContext) -> Recipe:
    answer = ask(name, knows)
    assert isinstance(answer, Recipe), answer
    return answer


def of_kind(found: Recipe, kind: type[Step]) -> list[Step]:
    return [step for step in found.steps() if isinstance(step, kind)]


def n_labels(found: Recipe) -> int:
    (train,) = of_kind(found, Train)
    assert isinstance(train, Train)
    return train.n_labels


def n_blocks(found: Recipe) -> int:
    return len(of_kind(found, Teach))


def total(knows: PlanningContext, found: Recipe) -> int:
    return sum(Quoter(knows).quote(step).charge_micros for step in found.steps())


def least(dev: str) -> int:
    return len(LABELS) * (2 if dev == "carved" else 1)


@pytest.mark.parametrize("dev", DEVS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("redundancy", [1, 3])
def test_annotate_buys_the_most_labels_whose_training_it_can_still_pay(budget: int, dev: str, redundancy: int) -> None:
    bill = Bill(dev, redundancy)
    affordable = [n for n in range(least(dev), N_TRAIN + 1) if bill.annotate(n) <= budget]
    knows = known(budget, dev=dev, sellers=(SellerSpec(replay=ReplayOptions(redundancy=redundancy)),))
    found = ask("annotate", knows)
    if not affordable:
        assert isinstance(found, NotAvailable)
        return
    assert isinstance(found, Recipe)
    assert n_labels(found) == max(affordable)
    assert total(knows, found) == bill.annotate(max(affordable)) <= budget
    if max(affordable) < N_TRAIN:
        assert bill.annotate(max(affordable) + 1) > budget


@pytest.mark.parametrize("dev", DEVS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_distill_with_a_fixed_n_takes_as_much_of_the_pool_as_the_rest_pays_for(budget: int, dev: str) -> None:
    n, bill = 50, Bill(dev)
    affordable = [blocks for blocks in (1, 2, 3) if bill.distill(n, blocks) <= budget]
    knows = known(budget, dev=dev, n_initial=n, strategy="distill")
    found = ask("distill", knows)
    if not affordable:
        assert isinstance(found, NotAvailable)
        return
    assert isinstance(found, Recipe)
    assert (n_labels(found), n_blocks(found)) == (n, max(affordable))
    assert total(knows, found) == bill.distill(n, max(affordable)) <= budget


def test_the_pool_is_the_limit_at_some_budget_and_not_at_another() -> None:
    bill = Bill()
    for blocks in (1, 2, 3):
        exactly = bill.distill(50, blocks)
        assert n_blocks(recipe("distill", known(exactly, n_initial=50))) == blocks
        assert ask("distill", known(exactly - 1, n_initial=50)) != recipe("distill", known(exactly, n_initial=50))


@pytest.mark.parametrize("dev", DEVS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_default_rule_reserves_the_whole_pool_and_buys_labels_with_the_rest(budget: int, dev: str) -> None:
    bill = Bill(dev)
    affordable = [n for n in range(least(dev), N_TRAIN + 1) if bill.distill(n, 3) <= budget]
    knows = known(budget, dev=dev)
    found = ask("distill", knows)
    if not affordable:
        assert isinstance(found, NotAvailable)
        return
    assert isinstance(found, Recipe)
    assert (n_labels(found), n_blocks(found)) == (max(affordable), 3)
    assert total(knows, found) == bill.distill(max(affordable), 3)
    (distilled,) = of_kind(found, Distil)
    assert isinstance(distilled, Distil)
    assert distilled.n_rows == N_POOL


def test_the_own_teacher_of_self_distillation_is_the_student() -> None:
    knows = known(40_000_000, n_initial=50)
    own, other = recipe("self_distill", knows), recipe("distill", knows)
    (teacher,), (pupil,) = of_kind(own, Train), of_kind(own, Distil)
    assert isinstance(teacher, Train)
    assert isinstance(pupil, Distil)
    assert (teacher.role, teacher.model, pupil.model) == ("teacher", STUDENT, STUDENT)
    assert teacher.settings == knows.settings("student")
    assert total(knows, own) == Bill().distill(50, 3, teacher=STUDENT.ref)
    (teacher,) = of_kind(other, Train)
    assert isinstance(teacher, Train)
    assert (teacher.model, teacher.settings) == (TEACHER, knows.settings("teacher"))
    # It is the very model that annotate would train on as many labels.
    annotated = recipe("annotate", known(Bill().annotate(50)))
    assert n_labels(annotated) == 50
    assert of_kind(annotated, Train)[0].key == of_kind(own, Train)[0].key


@pytest.mark.parametrize(("name", "n_initial"), [("annotate", None), ("distill", None), ("distill", 50)])
@pytest.mark.parametrize("dev", DEVS)
def test_a_refusal_names_the_cost_and_the_way_out(name: str, n_initial: int | None, dev: str) -> None:
    refused = ask(name, known(100_000, dev=dev, n_initial=n_initial))
    assert isinstance(refused, NotAvailable)
    assert "\n" not in refused.reason
    assert "the budget is $0.10" in refused.reason
    (amount,) = re.findall(r"raise it to (\$[\d.,]*\d)$", refused.reason)
    enough = parse_usd(amount)
    assert f"cost {amount}" in refused.reason
    assert isinstance(ask(name, known(enough, dev=dev, n_initial=n_initial)), Recipe)
    assert isinstance(ask(name, known(enough - 1, dev=dev, n_initial=n_initial)), NotAvailable)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("distill", {"n_pool": 0}, "no pool"),
        ("distill", {"n_initial": N_TRAIN + 1}, "give at most 290"),
        ("annotate", {"n_train": 2}, "add train rows"),
        ("distill", {"n_train": 2}, "add train rows"),
        ("annotate", {"n_train": 5, "dev": "carved"}, "fewer than the 6"),
    ],
)
def test_what_the_data_cannot_give_is_refused(name: str, changes: dict[str, object], says: str) -> None:
    refused = ask(name, known(90_000_000, **changes))
    assert isinstance(refused, NotAvailable)
    assert says in refused.reason


def test_students_train_free_only_by_name_and_only_on_labels() -> None:
    budget = 10_000_000
    charged, free = known(budget), known(budget, student_training="free")
    assert total(free, recipe("annotate", free)) == Bill(free_student=True).annotate(n_labels(recipe("annotate", free)))
    assert n_labels(recipe("annotate", free)) == 50  # $10 at $0.20: neither training nor scoring is charged
    assert n_labels(recipe("annotate", charged)) < 50
    for kind, cash in ((Train, Bill().training(STUDENT.ref, "student", 50)), (Score, Bill().score())):
        (step,) = of_kind(recipe("annotate", free), kind)
        quote = Quoter(free).quote(step)
        assert (quote.charge_micros, quote.unit_usd, quote.item) == (0, 0, "box (free)")
        assert quote.cash_micros == cash > 0  # its time is still paid in cash
    plain, named = known(40_000_000, n_initial=50), known(40_000_000, n_initial=50, student_training="free")
    # Of a distillation the scoring alone is free.
    assert total(named, recipe("distill", named)) == total(plain, recipe("distill", plain)) - Bill().score()


def test_carved_dev_labels_are_the_first_ones_and_are_not_trained_on() -> None:
    knows = known(20_000_000, dev="carved")
    (train,) = of_kind(recipe("annotate", knows), Train)
    assert isinstance(train, Train)
    assert train.dev is not None
    assert train.dev.n == carved(train.n_labels) > 0
    assert train.labels == (train.dev.labels,)
    assert [step.key for step in of_kind(recipe("annotate", knows), Buy)] == [train.labels[0].key]


def test_bought_dev_labels_are_a_second_purchase_at_the_same_price() -> None:
    knows = known(40_000_000, dev="bought", n_initial=50)
    found = recipe("distill", knows)
    buys = [step for step in of_kind(found, Buy) if isinstance(step, Buy)]
    assert {(buy.split, buy.n) for buy in buys} == {("train", 50), ("dev", N_DEV)}
    assert sum(Quoter(knows).quote(buy).charge_micros for buy in buys) == (50 + N_DEV) * 200_000
    given_dev = recipe("distill", known(40_000_000, n_initial=50))
    assert len(of_kind(given_dev, Buy)) == 1


def test_a_single_label_is_never_carved() -> None:
    found = recipe("distill", known(90_000_000, dev="carved", n_initial=1))
    (train,) = of_kind(found, Train)
    assert isinstance(train, Train)
    assert train.dev is None


def test_general_distillation_is_annotation_from_a_checkpoint_that_is_free() -> None:
    knows = known(20_000_000)
    general, annotated = recipe("general_distill", knows), recipe("annotate", knows)
    assert general.final.key == annotated.final.key  # the same student here: which it is, the request says
    (line,) = [line for line in general.derivation if line not in annotated.derivation]
    assert line == f"start from {STUDENT.ref}: free, since it is publicly available: $0.00"
    flags = {name: (each.taught_by, each.starts_general, each.sellers) for name, each in STRATEGIES.items()}
    assert flags == {
        "annotate": (None, False, ("human",)),
        "distill": ("teacher", False, ("human",)),
        "self_distill": ("student", False, ("human",)),
        "general_distill": (None, True, ("human",)),
        "llm_annotate": (None, False, ("llm",)),
        "mix": (None, False, ("human", "llm")),
        "llm_teach": (None, False, ("llm",)),
        "llm_distill": ("teacher", False, ("llm",)),
    }


def test_open_answers_need_two_labels_and_not_one_per_type() -> None:
    types = tuple(f"type {i}" for i in range(40))
    knows = known(900_000, encoding=replace(ENCODING, form=TaskSpec("entities", types, 64, 64), metric="entity_f1"))
    assert (knows.n_min, knows.encoding.form.n_outputs) == (2, 81)
    assert n_labels(recipe("annotate", knows)) < 40
    assert known(1, encoding=replace(ENCODING, form=TaskSpec("generation", (), 64, 64)), dev="carved").n_min == 4


def test_gold_labels_are_mixed_in_only_where_they_are_asked_for() -> None:
    plain = known(40_000_000, n_initial=50)
    mixed = known(40_000_000, n_initial=50, overrides={"distil": {"gold_weight": 0.25}})
    (without,), (with_gold,) = of_kind(recipe("distill", plain), Distil), of_kind(recipe("distill", mixed), Distil)
    assert isinstance(without, Distil)
    assert isinstance(with_gold, Distil)
    assert without.gold == ()
    assert with_gold.gold == with_gold.targets[0].teacher.labels
    assert len(of_kind(recipe("distill", mixed), Buy)) == 1


def test_a_teacher_is_told_how_to_speak() -> None:
    asked = {"teach": {"beams": 4, "max_logits": 0}, "distil": {"objective": "published"}}
    knows = known(40_000_000, n_initial=50, seed=3, overrides=asked)
    for step in of_kind(recipe("distill", knows), Teach):
        assert isinstance(step, Teach)
        assert step.settings == TeachSettings(beams=4, max_logits=0, keep_padding=True, seed=3)
    assert known(1).teach_settings == TeachSettings()


def test_a_larger_budget_only_adds_steps() -> None:
    bill = Bill()
    small, large = (known(bill.distill(50, blocks), n_initial=50) for blocks in (1, 3))
    before = {step.key: step for step in recipe("distill", small).steps()}
    after = {step.key: step for step in recipe("distill", large).steps()}
    shared = [describe(before[key]) for key in before if key in after]
    taught = ["50 train labels", "fine-tune the teacher on 50 labels", "teacher's targets over the pool"]
    assert shared == [*taught, "score the teacher on the test split"]
    few, many = (of_kind(recipe("annotate", known(budget)), Buy)[0] for budget in (10_000_000, 30_000_000))
    assert isinstance(few, Buy)
    assert isinstance(many, Buy)
    assert (few.series, few.key != many.key, few.n < many.n) == (many.series, True, True)


def test_seeds_sellers_and_threads_share_nothing_they_must_not() -> None:
    base = known(40_000_000, n_initial=50)
    keys = {step.key for step in recipe("distill", base).steps()}
    for other in (
        known(40_000_000, n_initial=50, seed=1),
        known(40_000_000, n_initial=50, offers={"human": people(base.request, "another")}, dev="bought"),
    ):
        assert not keys & {step.key for step in recipe("distill", other).steps()}
    threads = recipe("distill", known(40_000_000, n_initial=50, threads=7))
    assert [s.kind for s in threads.steps() if s.key in keys] == ["buy"]


def test_the_student_of_a_teacher_is_asked_for_once() -> None:
    knows = known(40_000_000, n_initial=50)
    for name in STRATEGIES:
        found = recipe(name, knows)
        assert strategy(name).ask(knows, [StrategyOutcome(found, 50.0, 1)]) is None


@pytest.mark.parametrize("name", ["annotate", "distill"])
def test_rows_that_run_out_are_told_where_money_for_a_label_is_left(name: str) -> None:
    """With all rows labelled: from the money for one more label on, who sells it and which rows have none."""
    whole = recipe(name, known(90_000_000, strategy=name))
    assert n_labels(whole) == N_TRAIN
    least = total(known(90_000_000, strategy=name), whole)
    for left, redundancy, is_told in ((199_999, 1, False), (200_000, 1, True), (599_999, 3, False), (600_000, 3, True)):
        knows = known(90_000_000, strategy=name, sellers=(SellerSpec(replay=ReplayOptions(redundancy=redundancy)),))
        assert bool(lines_on_used_up(knows, whole.final, left)) == is_told
    knows = known(
        least + 1_230_000, strategy=name, offers={HUMAN: people(known(1).request)}, n_unlabelled=lambda: 1_200
    )
    told = recipe(name, knows).derivation[-3:-1]
    assert told == (
        f"all {N_TRAIN} labels used, $1.23 left: more labels would have to be bought",
        "sellers: human at $0.20 a label, llm (strategies llm_annotate, mix); so far they replay gold labels, which 1,200 "
        "pool rows lack: label those and add them to `data.train`",
    )
    assert "no pool row is without one" in recipe(name, replace(knows, n_unlabelled=lambda: 0)).derivation[-2]
    free = replace(knows, offers={HUMAN: Offer(OWNED_LABEL, "seller")})
    assert "sellers: human at a price that the task must name" in lines_on_used_up(free, whole.final, 0)[1]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_derivation_is_the_budget_line_by_line(name: str) -> None:
    knows = known(40_000_000, n_initial=50)
    found = recipe(name, knows)
    assert found.derivation[0] == "budget: $40.00"
    said = [re.search(r": (?:at most )?(\$[\d,.]*\d)$", line) for line in found.derivation]
    amounts = [parse_usd(line[1]) for line in said if line]
    assert sum(amounts[1:]) == amounts[0]
    assert found.derivation[-1].startswith("left over: ")
    assert isinstance(found.final, Score)


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UnknownStrategy,
        match=r"did you mean distill\?\); known: annotate, distill, .*general_distill, llm_annotate, mix",
    ):
        strategy("distil")


@settings(deadline=None, max_examples=60)
@given(
    budgets=st.lists(st.integers(1, 120_000_000), min_size=2, max_size=4),
    name=st.sampled_from(sorted(STRATEGIES)),
    dev=st.sampled_from(DEVS),
    n_initial=st.one_of(st.none(), st.integers(1, N_TRAIN)),
    free=st.booleans(),
)
def test_quotes_never_pass_the_budget_and_more_money_never_buys_less(
    budgets: list[int], name: str, dev: str, n_initial: int | None, free: bool
) -> None:
    bought = []
    for budget in sorted(budgets):
        knows = known(budget, dev=dev, n_initial=n_initial, student_training="free" if free else "charged")
        found = ask(name, knows)
        if isinstance(found, Recipe):
            assert total(knows, found) <= budget
            assert total(knows, found) == Quoter(knows).total_micros(found.final)
            bought.append((n_labels(found), n_blocks(found)))
        else:
            bought.append((0, 0))
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(bought))
