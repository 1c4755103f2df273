"""An LLM as a second seller: what its money buys, whose labels a student learns, and what stands in the receipt."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from outlay.engine.point import Point
from outlay.engine.prepare import PreparedRun
from outlay.engine.sellers import make_seller
from outlay.engine.summary import RunSummary
from outlay.errors import UnknownItem, UsageError
from outlay.models.cost_model import TERMS, MachineProfile
from outlay.plan.forecast import Forecaster
from outlay.plan.quotes import Quoter
from outlay.plan.request import ReplayOptions, SellerSpec
from outlay.plan.steps import LABELS_FILE, Buy, Recipe, Train, describe
from outlay.plan.strategies import NotAvailable, strategy
from outlay.report.receipt import receipt, render_text
from tests.contracts.annotator_contract import delivered, labels_of
from tests.knowledge import LABELS, N_TRAIN, STUDENT, Bill, carved, known
from tests.runs import OneByOne, World, bought_rows, pay_for_labels, runner

DEVS = ("given", "bought", "carved", "none")
N_HUMAN = 50
ITEM = "gpt-3.5-label/wlp"
"""Priced at $0.046; the small task has no LLM price of its own."""


def train_of(recipe: object) -> Train:
    assert isinstance(recipe, Recipe), recipe
    (train,) = [step for step in recipe.steps() if isinstance(step, Train)]
    return train


# --- what the money buys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("dev", DEVS)
@pytest.mark.parametrize("budget", [600_000, 3_000_000, 9_876_543, 12_345_678, 19_000_000, 61_000_000])
@pytest.mark.parametrize(("name", "n_human"), [("llm_annotate", 0), ("mix", N_HUMAN)])
def test_an_llm_labels_as_many_rows_as_the_rest_of_the_budget_pays_for(
    name: str, n_human: int, budget: int, dev: str, free: bool
) -> None:
    bill = Bill(dev, redundancy=3, free_student=free)
    least = max(1, len(LABELS) * (2 if dev == "carved" else 1) - n_human)
    affordable = [n for n in range(least, N_TRAIN - n_human + 1) if bill.hired(n_human, n) <= budget]
    training = "free" if free else "charged"
    sellers = (SellerSpec(replay=ReplayOptions(redundancy=3)),)  # answers of people; an LLM gives one
    knows = known(budget, dev=dev, n_initial=N_HUMAN, sellers=sellers, student_training=training, strategy=name)
    found = strategy(name).ask(knows, [])
    if not affordable:
        assert isinstance(found, NotAvailable)
        assert "the budget is" in found.reason
        return
    train = train_of(found)
    assert (train.n_labels_of("human"), train.n_labels_of("llm")) == (n_human, max(affordable))
    assert isinstance(found, Recipe)
    assert Quoter(knows).total_micros(found.final) == bill.hired(n_human, max(affordable)) <= budget
    assert [(buy.start, buy.stop) for buy in train.labels][-1] == (n_human, n_human + max(affordable))


def test_the_cases_above_hold_every_limit() -> None:
    """Budgets that buy nothing, something, and every row there is."""
    for name, n_human in (("llm_annotate", 0), ("mix", N_HUMAN)):
        said = [
            strategy(name).ask(known(budget, n_initial=N_HUMAN), []) for budget in (100_000, 11_500_000, 61_000_000)
        ]
        assert isinstance(said[0], NotAvailable)
        assert 0 < train_of(said[1]).n_labels_of("llm") < N_TRAIN - n_human
        assert train_of(said[2]).n_labels_of("llm") == N_TRAIN - n_human


def test_the_published_dollars_buy_the_published_labels() -> None:
    """Kang et al. 2023, Appendix E: $200 buys 4,347 labels of WLP at $0.046 (the training free, as section 2.2 has it)."""
    rows = [1] * 6_000
    sums = list(range(len(rows) + 1))
    knows = known(200_000_000, student_training="free")
    tokens = knows.tokens[STUDENT.ref]
    more = {ref: type(tokens)(sums, tokens.pool, tokens.dev, tokens.test) for ref in knows.tokens}
    knows = known(200_000_000, student_training="free", n_train=len(rows), tokens=more)
    recipe = strategy("llm_annotate").ask(knows, [])
    assert train_of(recipe).n_labels == 4_347


@pytest.mark.parametrize("dev", ["carved", "bought"])
def test_dev_labels_come_from_people_where_there_are_any(dev: str) -> None:
    mixed = train_of(strategy("mix").ask(known(15_000_000 + 8_000_000, dev=dev, n_initial=N_HUMAN), []))
    alone = train_of(strategy("llm_annotate").ask(known(9_000_000, dev=dev), []))
    assert mixed.dev is not None
    assert alone.dev is not None
    assert mixed.dev.labels is not None
    assert alone.dev.labels is not None
    assert mixed.dev.labels.seller == "human"
    if dev == "carved":
        assert (mixed.dev.n, mixed.dev.labels) == (carved(N_HUMAN), mixed.labels[0])
        assert (alone.dev.n, alone.dev.labels) == (carved(alone.n_labels), alone.labels[0])
        assert alone.dev.labels.seller == "llm"
    else:
        assert alone.dev.labels.seller == "human"


def test_the_derivation_says_what_is_assumed_and_where_the_rows_end() -> None:
    knows = known(61_000_000, n_initial=N_HUMAN, sellers=(SellerSpec("llm", ReplayOptions(0.3)),))
    found = strategy("mix").ask(knows, [])
    assert isinstance(found, Recipe)
    budget, assumed, people, hired, training, _, end, sellers, left = found.derivation
    assert budget == "budget: $61.00"
    assert "30 % wrong" in assumed
    assert "$0.046 each (a model)" in assumed
    assert people == "50 train labels: at most $10.00"
    assert hired == "240 LLM labels: at most $11.04"
    assert training.startswith("fine-tune the student on 290 labels: at most $")
    assert re.fullmatch(r"all 290 labels used, \$\d+\.\d\d left: more labels would have to be bought", end)
    assert "human at $0.20 a label, llm (strategies llm_annotate, mix)" in sellers
    assert left.startswith("left over: $")
    fewer = strategy("mix").ask(known(14_000_000, n_initial=N_HUMAN, student_training="free"), [])
    assert isinstance(fewer, Recipe)
    assert not [line for line in fewer.derivation if "labels used" in line]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("mix", {"n_initial": None}, "needs to know how many labels people give; give --n-initial"),
        ("mix", {"n_initial": N_TRAIN}, "--n-initial 290 of the 290 rows that can be labelled leaves none to an LLM"),
        ("mix", {"n_initial": N_TRAIN + 7}, "give at most 289"),
        ("llm_annotate", {"n_train": 2}, "add train rows"),
        ("mix", {"n_initial": 1, "n_train": 2}, "add train rows"),
    ],
)
def test_what_the_data_cannot_give_is_refused(name: str, changes: dict[str, object], says: str) -> None:
    refused = strategy(name).ask(known(90_000_000, **changes), [])
    assert isinstance(refused, NotAvailable)
    assert says in refused.reason


def test_no_labels_of_an_llm_without_one() -> None:
    with pytest.raises(UsageError, match=r"'llm'.*name it too"):
        strategy("llm_annotate").ask(known(9_000_000, offers={}), [])
    # Nobody else needs one.
    people = known(9_000_000).offers["human"]
    assert isinstance(strategy("annotate").ask(known(9_000_000, offers={"human": people}), []), Recipe)


# --- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world.fresh()


def sellers(
    rate: float | None = 0.3, item: str | None = ITEM, people: ReplayOptions | None = None
) -> tuple[SellerSpec, ...]:
    """People, and an LLM where it is said how often it errs."""
    return (
        SellerSpec(replay=people or ReplayOptions()),
        *(() if rate is None else (SellerSpec("llm", ReplayOptions(rate, price_item=item)),)),
    )


def hired(world: World, name: str, **changes: Any) -> PreparedRun:
    base = {"sellers": sellers(), "n_initial": 20 if name == "mix" else None}
    return world.prepared(strategy=name, **{"budget_micros": 6_000_000, **base, **changes})


@pytest.fixture(scope="module")
def mixed(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[OneByOne, PreparedRun, Point]:
    """20 labels of people at $0.20 and as many of an LLM as $2.05 pay for, less the cents of compute."""
    root = tmp_path_factory.mktemp("mixed")
    one, prepared = runner(root / "out", root / "store"), hired(world, "mix", budget_micros=6_050_000)
    return one, prepared, one.execute(prepared)


def labels_in(one: OneByOne, prepared: PreparedRun) -> list[list[tuple[str, str]]]:
    """Row and label of each purchase of a run, in the order bought."""
    manifest = json.loads(one.run_folder(prepared.request.run_id).manifest.read_text())
    bought = []
    for entry in manifest["artifacts"]:
        if entry["step"] == "buy":
            artifact = one.store.get(entry["key"])
            assert artifact is not None
            lines = (artifact.path / LABELS_FILE).read_text().splitlines()
            bought.append([(line["row"], line["label"]) for line in map(json.loads, lines)])
    return bought


def test_a_mix_is_charged_and_counted_seller_by_seller(mixed: tuple[OneByOne, PreparedRun, Point]) -> None:
    one, prepared, point = mixed
    n = point.result.n_llm_labels
    assert (point.result.status, point.result.n_labels) == ("ok", 20)
    assert 40 <= n <= 44  # $2.05 / $0.046 = 44.6
    assert (point.result.llm_tokens_in, point.result.llm_tokens_out) == (0, 0)
    assert (point.request.variant, point.request.teacher, point.request.added_usd) == ("mix", None, 2.05)
    entries = [e for e in one.ledger.entries(prepared.request.run_id) if e.kind == "settle"]
    assert [e.note for e in entries] == [
        "20 train labels",
        f"{n} LLM labels",
        f"fine-tune the student on {20 + n} labels",
        "score the test split",
    ]
    assert [e.charge_micros for e in entries[:2]] == [20 * 200_000, n * 46_000]
    assert [e.cash_micros for e in entries[:2]] == [0, 0]
    assert sum(e.charge_micros for e in entries) == round(point.result.charge_usd * 10**6) <= 6_050_000
    tokens = prepared.context.tokens[prepared.context.student.ref]
    flops = Quoter(prepared.context).flops(Quoter(prepared.context).work(train_of(_recipe(prepared))))
    epochs, n_dev = 2, tokens.dev[30]
    assert flops == _flops(prepared, epochs * tokens.train[20 + n], epochs * n_dev)


def _recipe(prepared: PreparedRun) -> object:
    return strategy(prepared.request.strategy).ask(prepared.context, [])


def _flops(prepared: PreparedRun, n_trained: int, n_inferred: int) -> tuple[int, int]:
    from outlay.models.shape import flops_infer, flops_train

    shape = prepared.context.shapes[prepared.context.student.ref]
    return flops_train(shape, n_trained, 12), flops_infer(shape, n_inferred, 12)


def test_the_receipt_of_a_mix_reads_well(mixed: tuple[OneByOne, PreparedRun, Point]) -> None:
    one, prepared, point = mixed
    told = render_text(receipt(one.ledger, prepared.request.run_id))
    assert f"{point.result.n_llm_labels} LLM labels" in told
    assert ITEM in told
    document = json.loads(one.run_folder(prepared.request.run_id).manifest.read_text())
    said = (
        "LLM labels: replayed gold with 30 % wrong answers, which is an assumption, $0.046 each (text-davinci-003, 32"
    )
    assert document["derivation"][1].startswith(said)
    assert document["request"]["llm_error_rate"] == 0.3
    assert document["request"]["llm_price_item"] == ITEM


def test_people_label_the_first_rows_and_an_llm_those_behind_them(mixed: tuple[OneByOne, PreparedRun, Point]) -> None:
    one, prepared, point = mixed
    people, llm = labels_in(one, prepared)
    rows, n = prepared.train, point.result.n_llm_labels
    assert people == [(row.id, row.label) for row in rows[:20]]
    assert [row for row, _ in llm] == [row.id for row in rows[20 : 20 + n]]
    n_wrong = sum(label != row.label for (_, label), row in zip(llm, rows[20:], strict=False))
    assert abs(n_wrong - 0.3 * n) <= 4 * (0.3 * 0.7 * n) ** 0.5
    assert n_wrong > 0


@pytest.mark.parametrize(("name", "dev"), [("mix", "given"), ("mix", "carved"), ("llm_annotate", "carved")])
def test_the_student_learns_each_row_with_the_label_that_was_bought_for_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dev: str
) -> None:
    from outlay.train import api as train_api

    learnt: list[tuple[str, str]] = []
    finetune = train_api.finetune

    def listening(spec: Any, sources: Any, labels: Any, settings: Any, **rest: Any) -> Any:
        learnt.extend(zip([" ".join(source) for source in sources], labels, strict=True))
        return finetune(spec, sources, labels, settings, **rest)

    monkeypatch.setattr(train_api, "finetune", listening)
    one, prepared = runner(tmp_path / "out", tmp_path / "store"), hired(world, name, dev=dev)
    point = one.execute(prepared)
    texts = {row.id: row.text for row in prepared.train}
    bought = [(texts[row], label) for part in labels_in(one, prepared) for row, label in part]
    n_human = 20 if name == "mix" else 0
    n_carved = prepared.context.n_carved(n_human or point.result.n_llm_labels) if dev == "carved" else 0
    assert learnt == bought[n_carved:]
    assert (point.result.n_labels, point.result.n_llm_labels) == (n_human, len(bought) - n_human)
    assert point.result.n_dev == (n_carved or 30)


def test_a_larger_budget_buys_only_the_rows_that_were_not_bought(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_labels(monkeypatch)
    one = runner(tmp_path / "out", tmp_path / "store")
    small, large = hired(world, "mix", budget_micros=5_100_000), hired(world, "mix", budget_micros=6_050_000)
    alone = hired(world, "llm_annotate", budget_micros=2_000_000)
    points = [one.execute(prepared) for prepared in (small, large, alone)]
    first, second, third = (point.result.n_llm_labels for point in points)
    assert 0 < first < second
    cash = [e.cash_micros for e in one.ledger.entries() if e.kind == "settle" and "LLM labels" in e.note]
    # The run without people starts at row 0; only the 20 rows before the mix's are new to the seller.
    assert third <= 20 + second
    assert cash == [first * 46_000, (second - first) * 46_000, 20 * 46_000]
    rows = bought_rows(tmp_path / "store")
    assert len(rows) == 20 + 20 + second
    order = [row.id for row in large.train]
    assert sorted(rows) == sorted(order[:20] + order[: 20 + second])
    said = dict(labels_in(one, large)[1])
    assert all(said[row] == label for row, label in labels_in(one, small)[1])
    assert all(said[row] == label for row, label in labels_in(one, alone)[0] if row in said)


def test_where_rows_run_out_the_money_stays(world: World, tmp_path: Path) -> None:
    one, prepared = runner(tmp_path / "out", tmp_path / "store"), hired(world, "llm_annotate", budget_micros=50_000_000)
    point = one.execute(prepared)
    assert (point.result.n_labels, point.result.n_llm_labels, point.result.status) == (0, 120, "ok")
    assert point.result.charge_usd == pytest.approx(120 * 0.046, abs=0.05)
    assert (point.request.variant, point.request.added_usd) == ("llm_annotate", None)


def test_the_errors_of_an_llm_are_a_stream_of_their_own(world: World) -> None:
    from outlay.labels.annotator import Order

    prepared = hired(world, "llm_annotate", sellers=sellers(people=ReplayOptions(error_rate=0.3)))
    given = prepared.train, prepared.task, prepared.price_book, prepared.request.seed
    people, llm = (make_seller(spec, *given) for spec in prepared.request.sellers)
    order = Order.of("every row", prepared.train)

    def wrong(labels: tuple[str, ...]) -> set[int]:
        return {i for i, (label, row) in enumerate(zip(labels, prepared.train, strict=True)) if label != row.label}

    by_people, by_llm = (wrong(labels_of(delivered(seller, order), order)) for seller in (people, llm))
    n = len(prepared.train)
    for each in (by_people, by_llm):
        assert abs(len(each) - 0.3 * n) <= 4 * (0.3 * 0.7 * n) ** 0.5
    # Independent: 9 % of the rows are wrong in both, not 30 %.
    assert abs(len(by_people & by_llm) - 0.09 * n) <= 4 * (0.09 * 0.91 * n) ** 0.5
    assert people.identity() != llm.identity()
    # People make the same errors whether an LLM is hired or not, and no seed repeats another's.
    alone = world.prepared(strategy="annotate", sellers=sellers(None, people=ReplayOptions(error_rate=0.3)))
    assert alone.context.offers["human"] == prepared.context.offers["human"]
    other = hired(world, "llm_annotate", seed=1)
    assert prepared.context.offers["llm"].identity != other.context.offers["llm"].identity


def test_seconds_of_a_mix_are_foreseen_for_the_rows_of_both_sellers(mixed: tuple[OneByOne, PreparedRun, Point]) -> None:
    _, prepared, _ = mixed
    train = train_of(_recipe(prepared))
    of_steps = MachineProfile(
        "here", "2026-11-21", "a device", "2.13.0", 1, 10**11, {"fp32": dict.fromkeys(TERMS, 0.0) | {"steps": 1.0}}
    )
    foreseen = Forecaster(Quoter(prepared.context), of_steps, lambda labels, model: []).forecast(train)
    assert foreseen is not None
    assert foreseen.seconds == 2 * -(-train.n_labels // 16)
    assert train.n_labels > 48


def test_a_purchase_is_told_by_who_sells_it(mixed: tuple[OneByOne, PreparedRun, Point]) -> None:
    train = train_of(_recipe(mixed[1]))
    assert [describe(buy) for buy in train.labels] == ["20 train labels", f"{train.n_labels - 20} LLM labels"]
    assert describe(Buy("train", 2739, 0, "", "", start=1000, seller="llm")) == "2,739 LLM labels"
    assert describe(Buy("train", 7, 0, "", "", seller="crowd")) == "7 crowd labels"
    assert describe(Buy("train", 1000, 0, "", "")) == "1,000 train labels"


# --- requests ----------------------------------------------------------------------------------------------------------


def test_only_a_strategy_that_hires_one_is_another_run_for_it(world: World) -> None:
    terms = {"sellers": sellers()}
    for name in ("annotate", "distill", "self_distill", "general_distill"):
        plain = world.request(strategy=name, general=str(world.checkpoint))
        named = world.request(strategy=name, general=str(world.checkpoint), **terms)
        assert world.workbench.resolve(named) == world.workbench.resolve(plain)
        assert "llm_error_rate" not in world.workbench.resolve(named).to_json()
    ids = {
        hired(world, "mix", **changes).request.run_id
        for changes in ({}, {"sellers": sellers(0.2)}, {"sellers": sellers(item="gpt-3.5-label/stanceosaurus")})
    }
    assert len(ids) == 3
    whole = world.workbench.resolve(world.request(strategy="llm_annotate", sellers=sellers(0)))
    assert repr(whole.to_json()["llm_error_rate"]) == "0.0"  # one run, however the number is written


def test_a_request_without_people_has_no_budget_beyond_their_labels(world: World) -> None:
    prepared = hired(world, "llm_annotate", sellers=sellers()[1:], n_initial=5)
    asked = RunSummary(prepared, Quoter(prepared.context), [], {}).asked()
    assert (asked.n_initial, asked.added_usd) == (5, None)
    with_people = hired(world, "llm_annotate", n_initial=5)
    assert RunSummary(with_people, Quoter(with_people.context), [], {}).asked().added_usd == 5.0


def test_a_published_price_needs_no_name(world: World, tmp_path: Path) -> None:
    for item, usd in (("wlp", Fraction("0.046")), ("stanceosaurus", Fraction("0.073"))):
        text = world.task.read_text().replace("name: small", f"name: {item}")
        task = world.task.parent / f"{item}.yaml"
        task.write_text(text)
        asked = world.request(task=str(task), strategy="llm_annotate", sellers=sellers(item=None))
        request = world.workbench.resolve(asked)
        assert request.to_json()["llm_price_item"] == f"gpt-3.5-label/{item}"
        named = world.request(task=str(task), strategy="llm_annotate", sellers=sellers(item=f"gpt-3.5-label/{item}"))
        assert world.workbench.resolve(named).run_id == request.run_id
        offer = world.workbench.prepare(asked).context.offers["llm"]
        assert Fraction(offer.price.usd) == usd


@pytest.mark.parametrize(
    ("name", "changes", "error", "says"),
    [
        (
            "llm_annotate",
            {"sellers": sellers(None)},
            UsageError,
            "name a model with --llm, or replay one with --llm-error-rate, such as 0.3",
        ),
        ("mix", {"sellers": sellers(None)}, UsageError, "or replay one with --llm-error-rate"),
        ("mix", {"n_initial": None}, UsageError, "needs to know how many labels people give; give --n-initial"),
        (
            "mix",
            {"sellers": sellers(item=None)},
            UsageError,
            "no 'gpt-3.5-label/small'; name what an LLM's label costs with",
        ),
        ("mix", {"sellers": sellers(item="a100-40gb")}, UsageError, "'a100-40gb' is sold per hour, but labels are"),
        ("mix", {"sellers": sellers(item="gpt-5")}, UnknownItem, "no price for 'gpt-5'"),
    ],
)
def test_a_wrong_setting_is_one_line(
    world: World, name: str, changes: dict[str, Any], error: type[UsageError], says: str
) -> None:
    with pytest.raises(error) as refused:
        hired(world, name, **changes)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
