"""Labels that are bought by a job: sellers who deliver late, runs that wait and go on, kills at every moment in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from outlay.engine import sellers
from outlay.engine.point import Point, micros_of
from outlay.engine.prepare import PreparedRun
from outlay.engine.runner import Runner
from outlay.errors import SellerError
from outlay.labels import replay
from outlay.labels.annotator import Order
from outlay.labels.purchases import OrderRecord
from outlay.money.amounts import DOLLAR_UNIT, PriceBook
from outlay.plan.context import PlanningContext
from outlay.plan.request import ReplayOptions, SellerSpec
from outlay.plan.steps import HUMAN, Buy, Recipe, Score, Train
from outlay.plan.strategies import STRATEGIES, Annotate, StrategyOutcome
from outlay.storage.store import Artifact, Store
from outlay.study.runner import StudyIndex, status_of
from outlay.workers.pool import InProcessPool
from tests.runs import World, bought_rows, pay_for_labels, runner
from tests.slow_seller import SlowSeller, slow_seller, submitted
from tests.studies import check_books, conducted, worker_factory
from tests.test_cli import Ran, outlay

LABEL_MICROS = 200_000
BUDGET = 4_100_000
"""Twenty labels and the cents of their training."""
LLM_ITEM = "gpt-3.5-label/wlp"
MOST_TRIES = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def small_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several orders for a few labels."""
    monkeypatch.setattr(replay, "ORDER_ROWS", 6)


def annotating(world: World, **changes: object) -> PreparedRun:
    return world.prepared(**{"strategy": "annotate", "n_initial": None, "budget_micros": BUDGET, **changes})


def until_done(execute: Callable[[], Point]) -> list[Point]:
    """The points of a run that is executed again and again, the last of which waits no more."""
    points: list[Point] = []
    while not points or points[-1].result.status == "waiting":
        points.append(execute())
        assert len(points) < MOST_TRIES, "the run makes no way"
    return points


def undisturbed(prepared: PreparedRun, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Runner, Point]:
    """The same run with a seller who answers at once."""
    with monkeypatch.context() as patched:
        pay_for_labels(patched)
        one = runner(root / "whole", root / "whole-store")
        return one, one.execute(prepared)


def settled(one: Runner, prepared: PreparedRun) -> list[tuple[str, int]]:
    return [(e.key, e.charge_micros) for e in one.ledger.entries(prepared.request.run_id) if e.kind == "settle"]


def check(one: Runner, whole: Runner, prepared: PreparedRun, root: Path, point: Point, expected: Point) -> None:
    """Nothing lost, nothing paid twice, nothing ordered twice, and the same result."""
    assert point.result_bytes() == expected.result_bytes()
    assert settled(one, prepared) == settled(whole, prepared)
    ids = submitted(root / "far")
    assert len(ids) == len(set(ids)) > 1
    rows = bought_rows(root / "store")
    assert len(rows) == len(set(rows)) == point.result.n_labels
    entries = one.ledger.entries(prepared.request.run_id)
    labels = [entry for entry in entries if entry.kind == "settle" and entry.note.startswith(f"{len(rows)} train")]
    assert [entry.cash_micros for entry in labels] == [len(rows) * LABEL_MICROS]
    holds = [entry.seq for entry in entries if entry.kind == "hold"]
    closed = [entry.hold_seq for entry in entries if entry.kind in ("settle", "release")]
    assert sorted(closed) == holds, "a hold was left open, or closed twice"
    assert one.ledger.verify().ok


# --- one run -----------------------------------------------------------------------------------------------------------


def test_a_run_waits_for_its_labels_keeps_its_hold_and_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = annotating(world)
    run = prepared.request.run_id
    whole, expected = undisturbed(prepared, tmp_path, monkeypatch)
    monkeypatch.setattr(sellers, "Replay", slow_seller(tmp_path / "far"))
    seen: list[tuple[int, int]] = []

    def execute() -> Point:
        one = runner(tmp_path / "out", tmp_path / "store")
        point = one.execute(prepared)
        if point.result.status == "waiting":
            (hold,) = one.ledger.open_holds(run)
            n = expected.result.n_labels
            assert (hold.quote.charge_micros, hold.quote.cash_micros) == (n * LABEL_MICROS, n * LABEL_MICROS)
            assert one.finished(run) is None
            assert point.result.test is None
            assert f"of {n} labels of seller human" in str(point.result.reason)
            assert "\n" not in str(point.result.reason)
            seen.append((hold.seq, len(bought_rows(tmp_path / "store"))))
        return point

    points = until_done(execute)
    one = runner(tmp_path / "out", tmp_path / "store")
    check(one, whole, prepared, tmp_path, points[-1], expected)
    # One hold all the time, found again by each attempt, while labels came in parts.
    assert len({seq for seq, _ in seen}) == 1
    came = [n for _, n in seen]
    assert came == sorted(came)
    assert came[0] == 0
    assert len({n for n in came if 0 < n < expected.result.n_labels}) >= 2
    assert one.execute(prepared) == points[-1]


def test_what_waits_cannot_be_spent_on_anything_else(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cash cap over all runs counts what is on order."""
    far = tmp_path / "far"
    far.mkdir()
    (far / "closed").touch()
    monkeypatch.setattr(sellers, "Replay", slow_seller(far))
    one = runner(tmp_path / "out", tmp_path / "store", cash_cap_micros=5_000_000)
    assert one.execute(annotating(world)).result.status == "waiting"
    other = one.execute(annotating(world, seed=1))
    assert other.result.status == "failed"
    assert "cap" in str(other.result.reason)


def test_a_purchase_in_dollars_of_tokens_waits_and_is_cancelled_as_one_by_the_label(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_label = PriceBook.label
    monkeypatch.setattr(PriceBook, "label", lambda book, item: replace(by_label(book, item), unit=DOLLAR_UNIT))
    monkeypatch.setattr(sellers, "Replay", slow_seller(tmp_path / "far"))
    prepared = annotating(world.fresh())  # whose builder knows no price yet
    run, holds = prepared.request.run_id, []
    for _ in range(4):
        one = runner(tmp_path / "out", tmp_path / "store")
        assert one.execute(prepared).result.status == "waiting"
        holds += one.ledger.open_holds(run)
    assert len({hold.seq for hold in holds}) == 1
    assert holds[0].quote.unit == DOLLAR_UNIT
    n_rows = len(bought_rows(tmp_path / "store"))
    one.cancel(run)
    assert one.ledger.open_holds(run) == []
    assert one.ledger.balance(run).lost_micros == n_rows * LABEL_MICROS > 0
    assert one.results.unbooked_micros(run) == 0
    assert one.ledger.verify().ok


@pytest.mark.parametrize("dev", ["bought", "carved"])
def test_every_purchase_of_a_run_is_ordered_at_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dev: str
) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "closed").touch()
    monkeypatch.setattr(sellers, "Replay", slow_seller(far))
    prepared = annotating(world, dev=dev, budget_micros=BUDGET + 6_000_000)
    one = runner(tmp_path / "out", tmp_path / "store")
    assert one.execute(prepared).result.status == "waiting"
    n_orders, n_rows = (
        len(submitted(far)),
        sum(hold.quote.quantity for hold in one.ledger.open_holds(prepared.request.run_id)),
    )
    assert len(one.ledger.open_holds(prepared.request.run_id)) == (2 if dev == "bought" else 1)
    (far / "closed").unlink()
    points = until_done(lambda: one.execute(prepared))
    assert points[-1].is_ok
    assert len(submitted(far)) == len(set(submitted(far))) == n_orders
    assert len(bought_rows(tmp_path / "store")) == n_rows


@dataclass
class TwoPurchases:
    """Train on two purchases of one seller that share rows."""

    buys: tuple[tuple[int, int], ...]
    name: str = "two_purchases"
    taught_by: Any = None
    starts_general: bool = False
    sellers: tuple[str, ...] = (HUMAN,)

    def ask(self, context: PlanningContext, outcomes: Sequence[StrategyOutcome]) -> Recipe | None:
        request = context.request
        one = Buy("train", 1, request.seed, context.train_digest, context.offer().identity)
        train = Train(
            role="student",
            model=context.student,
            labels=tuple(replace(one, start=start, n=stop - start) for start, stop in self.buys),
            dev=None,
            encoding=context.encoding,
            settings=context.settings("student"),
            threads=request.threads,
        )
        return None if outcomes else Recipe(Score(train, context.test_digest, request.threads), ("two purchases",))


@pytest.mark.parametrize("buys", [((0, 32), (0, 13)), ((0, 13), (0, 32)), ((0, 20), (13, 32))])
def test_purchases_that_share_rows_pay_for_each_once_and_within_their_holds(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buys: tuple[tuple[int, int], ...]
) -> None:
    """However late and in whatever parts the labels come: an order of six rows reaches over the end of the shorter purchase."""
    policy = TwoPurchases(buys)
    monkeypatch.setitem(STRATEGIES, policy.name, policy)
    monkeypatch.setattr(sellers, "Replay", slow_seller(tmp_path / "far"))
    prepared = world.prepared(strategy=policy.name, n_initial=None)
    one = runner(tmp_path / "out", tmp_path / "store")
    assert until_done(lambda: one.execute(prepared))[-1].is_ok
    rows = bought_rows(tmp_path / "store")
    assert len(rows) == len(set(rows)) == 32
    entries = one.ledger.entries(prepared.request.run_id)
    assert {entry.kind for entry in entries} == {"open", "hold", "settle"}, "a hold was too small, and was opened again"
    labels = [entry for entry in entries if entry.kind == "settle" and "train labels" in entry.note]
    assert len(labels) == 2
    assert all(entry.cash_micros <= int(entry.note.split()[0]) * LABEL_MICROS for entry in labels)
    assert sum(entry.cash_micros for entry in labels) == 32 * LABEL_MICROS


def test_an_order_that_is_refused_is_no_order(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(SlowSeller):
        far = tmp_path / "far"
        n_left = 1

        def submit(self, order: Order) -> None:
            if Refusing.n_left == 0:
                raise SellerError("too many rows for today")
            Refusing.n_left -= 1
            super().submit(order)

    monkeypatch.setattr(sellers, "Replay", Refusing)
    one, prepared = runner(tmp_path / "out", tmp_path / "store"), annotating(world)
    point = one.execute(prepared)
    assert (point.result.status, point.result.reason) == ("failed", "too many rows for today")
    # One order was taken: its money stays held. The others are nobody's.
    assert len(submitted(tmp_path / "far")) == 1
    assert len(one.ledger.open_holds(prepared.request.run_id)) == 1
    Refusing.n_left = 100
    assert until_done(lambda: one.execute(prepared))[-1].is_ok
    ids = submitted(tmp_path / "far")
    assert len(ids) == len(set(ids))
    rows = bought_rows(tmp_path / "store")
    assert len(rows) == len(set(rows))


def test_a_seller_who_takes_nothing_leaves_nothing_held(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(SlowSeller):
        far = tmp_path / "far"

        def submit(self, order: Order) -> None:
            raise SellerError("closed for good")

    monkeypatch.setattr(sellers, "Replay", Closed)
    one, prepared = runner(tmp_path / "out", tmp_path / "store"), annotating(world)
    assert one.execute(prepared).result.status == "failed"
    assert one.ledger.open_holds(prepared.request.run_id) == []
    assert submitted(tmp_path / "far") == []


def test_an_order_that_another_run_noted_and_never_sent_is_not_sent_for_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody holds its money: the run that needs the rows orders and pays for them itself."""
    pay_for_labels(monkeypatch)
    one, prepared = runner(tmp_path / "out", tmp_path / "store"), annotating(world)
    (step,) = [each for each in _recipe(prepared).steps() if isinstance(each, Buy)]
    with one.results.book.open(step.series) as log:
        log.note([OrderRecord("noted", "somebody else", tuple(row.id for row in prepared.train[:40]))])
    point = one.execute(prepared)
    assert point.is_ok
    entries = [entry for entry in one.ledger.entries() if entry.kind == "settle" and "train labels" in entry.note]
    assert [entry.cash_micros for entry in entries] == [step.n * LABEL_MICROS]
    with one.results.book.open(step.series) as log:
        assert (log.open_orders, log.paid_by("somebody else")) == ([], 0)


def _recipe(prepared: PreparedRun) -> Recipe:
    found = STRATEGIES[prepared.request.strategy].ask(prepared.context, [])
    assert isinstance(found, Recipe)
    return found


def test_what_had_come_is_booked_when_a_waiting_run_is_cancelled(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sellers, "Replay", slow_seller(tmp_path / "far"))
    one, prepared = (
        runner(tmp_path / "out", tmp_path / "store"),
        annotating(world, dev="bought", budget_micros=10_100_000),
    )
    run = prepared.request.run_id
    while not 5 < len(bought_rows(tmp_path / "store")) < 40:
        assert one.execute(prepared).result.status == "waiting"
    n = len(bought_rows(tmp_path / "store"))
    one.cancel(run)
    assert one.ledger.open_holds(run) == []
    balance = one.ledger.balance(run)
    assert (balance.charged_micros, balance.total_cash_micros) == (0, n * LABEL_MICROS)
    assert one.ledger.verify().ok


# --- sellers by name ---------------------------------------------------------------------------------------------------


def test_a_third_seller_is_a_name_and_its_options(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strategy that hires a crowd: its terms are in the request, its labels in the training, its price on the receipt."""
    monkeypatch.setitem(STRATEGIES, "crowd", Annotate("crowd", ("human", "crowd")))
    crowd = SellerSpec("crowd", ReplayOptions(0.2, 3, 1.5, "label/demo"))
    idle = SellerSpec("nobody", ReplayOptions())
    prepared = world.prepared(
        strategy="crowd", n_initial=10, budget_micros=11_000_000, sellers=(SellerSpec(), crowd, idle)
    )
    assert [seller.name for seller in prepared.request.sellers] == ["human", "crowd"]
    assert set(prepared.request.to_json()["sellers"]) == {"crowd"}
    one = runner(tmp_path / "out", tmp_path / "store")
    point = one.execute(prepared)
    assert (point.result.status, point.result.n_llm_labels) == ("ok", 0)
    n = point.result.n_labels - 10
    entries = [entry for entry in one.ledger.entries() if entry.kind == "settle" and "labels" in entry.note][:2]
    assert [entry.note for entry in entries] == ["10 train labels", f"{n} crowd labels"]
    assert [entry.charge_micros for entry in entries] == [10 * LABEL_MICROS, 3 * n * LABEL_MICROS]


# --- studies -----------------------------------------------------------------------------------------------------------


def test_other_runs_of_a_study_go_on_while_one_waits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "closed").touch()
    monkeypatch.setattr(sellers, "Replay", slow_seller(far, slow_item="label/demo"))
    people = {"strategy": "annotate", "n_initial": None}
    llm = (SellerSpec(), SellerSpec("llm", ReplayOptions(0.1, price_item=LLM_ITEM)))
    asked = [
        world.request(**people, budget_micros=BUDGET),
        world.request(strategy="llm_annotate", n_initial=None, budget_micros=BUDGET, sellers=llm),
        # The same labels as the first, and so many that their series is the same.
        world.request(**people, budget_micros=BUDGET, student="cut:3"),
        world.request(**people, budget_micros=6_000_000),
    ]
    one = runner(tmp_path / "out", tmp_path / "store")
    points = conducted(world.workbench, asked, one, _entered(one))
    assert [point.result.status for point in points] == ["waiting", "ok", "waiting", "waiting"]
    status = status_of(tmp_path / "out")
    assert status.n_by_status == {"waiting": 3, "ok": 1}
    assert not status.is_done
    assert {reason[0] for reason in status.reasons} == {"waiting"}
    assert all("labels of seller human" in reason[2] for reason in status.reasons)
    assert status.held == ()
    n_orders = len(submitted(far))
    (far / "closed").unlink()
    for _ in range(MOST_TRIES):
        points = conducted(world.workbench, asked, one, _entered(one))
        if all(point.is_ok for point in points):
            break
    assert [point.result.status for point in points] == ["ok"] * 4
    check_books(one, world.workbench, asked, points)
    ids = submitted(far)
    assert len(ids) == len(set(ids)) == n_orders
    for path in (tmp_path / "store" / "bought").glob("*.jsonl"):  # two sellers label the same rows
        (tmp_path / path.stem / "bought").mkdir(parents=True)
        (tmp_path / path.stem / "bought" / path.name).write_bytes(path.read_bytes())
        rows = bought_rows(tmp_path / path.stem)
        assert len(rows) == len(set(rows)) > 0
    n_people = max(point.result.n_labels for point in points)
    labels = {step.key for step in one.store.find("buy")}
    cash = sum(e.cash_micros for e in one.ledger.entries() if e.kind == "settle" and e.key.split("/")[0] in labels)
    assert cash == n_people * LABEL_MICROS + points[1].result.n_llm_labels * 46_000
    assert status_of(tmp_path / "out").is_done
    assert {cell.run for cell in StudyIndex.read(tmp_path / "out").cells} == set(one.ledger.run_ids())


def _entered(one: Runner) -> InProcessPool:
    """A pool of this process needs no leaving."""
    return InProcessPool(worker_factory(one)).__enter__()


@pytest.mark.slow  # two studies; the runs above are charged alike one by one
def test_a_study_is_charged_the_same_whether_a_seller_is_quick_or_slow(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        world.request(strategy=name, budget_micros=budget, dev="bought")
        for budget in (22_000_000, 24_000_000)
        for name in ("annotate", "distill")
    ]
    results = []
    for name in ("quick", "slow"):
        with monkeypatch.context() as patched:
            if name == "quick":
                pay_for_labels(patched)
            else:
                patched.setattr(sellers, "Replay", slow_seller(tmp_path / "far"))
            one = runner(tmp_path / name, tmp_path / f"{name}-store")
            for _ in range(MOST_TRIES):
                points = conducted(world.workbench, asked, one, _entered(one))
                if all(point.is_ok for point in points):
                    break
        check_books(one, world.workbench, asked, points)
        rows = bought_rows(tmp_path / f"{name}-store")
        assert len(rows) == len(set(rows))
        results.append([point.result_bytes() for point in points])
        assert all(micros_of(p.result.charge_usd) <= o.budget_micros for p, o in zip(points, asked, strict=True))
    assert results[0] == results[1]


# --- kills -------------------------------------------------------------------------------------------------------------


def start(prepared: PreparedRun, root: Path, dies: str) -> int:
    """Execute in a child; its exit code: 0 done, 3 waiting, or the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sellers.Replay = slow_seller(root / "far", dies=dies)  # type: ignore[misc]
            one = runner(root / "out", root / "store")
            if dies == "before settling":
                _die_on_put(root)
            code = {"ok": 0, "waiting": 3}.get(one.execute(prepared).result.status, 2)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _die_on_put(root: Path) -> None:
    """Kill this process once, when the labels are all in the log and about to be kept and settled."""
    put = Store.put

    def dying(self: Store, key: str, kind: str, *rest: object, **named: object) -> Artifact:
        if kind == "buy" and not (root / "far" / "died").exists():
            (root / "far" / "died").write_text("before settling")
            os.kill(os.getpid(), signal.SIGKILL)
        return put(self, key, kind, *rest, **named)  # type: ignore[arg-type]

    Store.put = dying  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize("dies", ["before sending", "after sending", "before keeping", "before settling"])
def test_a_run_killed_while_it_buys_loses_nothing_and_pays_nothing_twice(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    prepared = annotating(world)
    whole, expected = undisturbed(prepared, tmp_path, monkeypatch)
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        codes.append(start(prepared, tmp_path, dies))
        assert codes[-1] in (0, 3, -signal.SIGKILL)
        assert len(codes) < MOST_TRIES
    assert codes.count(-signal.SIGKILL) == 1
    one = runner(tmp_path / "out", tmp_path / "store")
    point = one.finished(prepared.request.run_id)
    assert point is not None
    check(one, whole, prepared, tmp_path, point, expected)


# --- commands ----------------------------------------------------------------------------------------------------------


def test_a_command_whose_labels_are_on_order_ends_with_75_and_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "closed").touch()
    monkeypatch.setattr(sellers, "Replay", slow_seller(far))
    models = ("--teacher", world.checkpoint, "--student", "cut:2", "--threads", 1, "--set", "student.epochs=1")
    places = ("--out", tmp_path / "out", "--store", tmp_path / "store")

    def run() -> Ran:
        return outlay("run", world.task, "--strategy", "annotate", "--budget", "4.1", *models, *places)

    first = run()
    assert first.code == 75
    said = first.err.strip().splitlines()[-1]
    assert said.startswith("outlay: the run is waiting for ")
    assert "seller human" in said
    (far / "closed").unlink()
    codes = [run().code for _ in range(MOST_TRIES // 4)]
    assert set(codes) == {75, 0}
    assert codes == sorted(codes, reverse=True)
    ids = submitted(far)
    assert len(ids) == len(set(ids))
    assert outlay("ledger", "verify", tmp_path / "out").code == 0


@pytest.mark.slow
def test_a_study_says_what_it_waits_for(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "closed").touch()
    monkeypatch.setattr(sellers, "Replay", slow_seller(far))
    study = tmp_path / "late.yaml"
    study.write_text(STUDY.format(teacher=world.checkpoint, task=world.task))
    words = ("study", "run", study, "--out", tmp_path / "out", "--store", tmp_path / "store", "--workers", 1)
    ran = outlay(*words)
    assert ran.code == 75
    assert "1 of 1 points wait, the first waiting for" in ran.err
    told = outlay("study", "status", tmp_path / "out").out
    assert "1 points: 1 waiting" in told
    assert "labels of seller human" in told
    assert "to go on: " in told
    assert "cut off" not in told
    (far / "closed").unlink()
    codes = [outlay(*words).code for _ in range(MOST_TRIES // 4)]
    assert set(codes) == {75, 0}
    assert "1 points: 1 ok" in outlay("study", "status", tmp_path / "out").out


STUDY = """
name: late
rivals: false
layout: plain
strategies: [annotate]
scales:
  cpu:
    models: {{teacher: {teacher}, student: cut:2}}
    threads: 1
    settings: {{student: {{epochs: 1, precision: fp32}}}}
    budget_usd: 4.1
    tasks: {{{task}: {{}}}}
"""
