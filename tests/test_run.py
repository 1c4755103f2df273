"""Runs end to end: what is charged, what is paid, what is kept, and what happens when something breaks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from outlay.engine.point import Point
from outlay.engine.step_runner import StepRunner
from outlay.errors import SpendError
from outlay.money.amounts import Price
from outlay.plan.request import ReplayOptions, SellerSpec
from outlay.plan.steps import PREDICTIONS_FILE
from tests.runs import OneByOne, World, bought_rows, pay_for_labels, runner


@pytest.fixture(scope="session")
def world(shared_world: World) -> World:
    return shared_world.fresh()


@pytest.fixture(scope="session")
def distilled(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[OneByOne, Point]:
    """One undisturbed run that tests only read."""
    root = tmp_path_factory.mktemp("distilled")
    one = runner(root / "out", root / "store")
    return one, one.execute(world.prepared())


def settled(one: OneByOne, run_id: str) -> list[tuple[str, int, int]]:
    return [(e.note, e.charge_micros, e.cash_micros) for e in one.ledger.entries(run_id) if e.kind == "settle"]


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing should be computed here")

    monkeypatch.setattr(StepRunner, "make", refuse)


def test_charge_is_the_price_of_labels_and_flops_counted_by_hand(
    world: World, distilled: tuple[OneByOne, Point]
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _, point = distilled
    prepared = world.prepared()
    tokenizer = AutoTokenizer.from_pretrained(world.checkpoint)

    def n_tokens(rows: list) -> int:
        return sum(len(tokenizer(row.text, truncation=True, max_length=32)["input_ids"]) for row in rows)

    def n_matmul(n_layers: int) -> int:
        model = AutoModelForSequenceClassification.from_pretrained(world.checkpoint, num_labels=12)
        weights = [
            p.numel()
            for name, p in model.named_parameters()
            if p.ndim == 2 and "embeddings" not in name and "layer." in name
        ]
        head = sum(
            p.numel() for n, p in model.named_parameters() if p.ndim == 2 and ("pooler" in n or "classifier" in n)
        )
        return sum(weights) * n_layers // 4 + head

    epochs = 2
    teacher, student = n_matmul(4), n_matmul(2)
    dev, test, pool = n_tokens(prepared.dev), n_tokens(prepared.test), n_tokens(prepared.pool)
    flops = [
        6 * teacher * epochs * n_tokens(prepared.train[:60]) + 2 * teacher * epochs * dev,
        2 * teacher * pool,
        6 * student * epochs * pool + 2 * student * epochs * dev,
        2 * student * test,
    ]
    assert point.result.flops == sum(flops)
    reached = Fraction(prepared.context.machine.peak_flops_per_second) * prepared.context.machine.utilisation_train
    compute = [-(-Fraction(f) / reached / 3600 * Fraction("0.05") * 10**6 // 1) for f in flops]
    assert round(point.result.charge_usd * 10**6) == 60 * 200_000 + sum(compute)
    assert point.result.charge_usd <= 20
    assert point.result.seconds == {"cpu": pytest.approx(float(Fraction(sum(flops)) / reached))}


def test_point_says_what_was_done(world: World, distilled: tuple[OneByOne, Point]) -> None:
    one, point = distilled
    assert (point.result.status, point.result.n_labels, point.result.n_dev, point.result.n_pool) == ("ok", 60, 30, 270)
    assert point.request.added_usd == 8.0
    assert set(point.result.artifacts) == {"labels", "teacher", "targets", "student", "scores", "teacher_scores"}
    key = next(a["key"] for a in _manifest(one, world)["artifacts"] if a["role"] == "scores")
    artifact = one.store.get(key)
    assert artifact is not None
    said = json.loads((artifact.path / PREDICTIONS_FILE).read_text())
    accuracy = 100 * sum(p == g for p, g in zip(said["predictions"], said["golds"], strict=True)) / len(said["golds"])
    assert point.result.test == pytest.approx(accuracy)
    assert said["golds"] == [row.label for row in world.prepared().test]


def test_handed_over_model_loads_with_transformers_and_predicts_the_same(
    world: World, distilled: tuple[OneByOne, Point]
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    one, _ = distilled
    keys = {a["role"]: a["key"] for a in _manifest(one, world)["artifacts"]}
    student, scores = one.store.get(keys["student"]), one.store.get(keys["scores"])
    assert student is not None
    assert scores is not None
    assert not [f for f in student.files if f.endswith((".bin", ".pt", ".pkl", ".pickle"))]
    model = AutoModelForSequenceClassification.from_pretrained(student.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(student.path)
    rows = world.prepared().test
    batch = tokenizer([row.text for row in rows], padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        predicted = [model.config.id2label[int(i)] for i in model(**batch).logits.argmax(-1)]
    said = json.loads((scores.path / PREDICTIONS_FILE).read_text())["predictions"]
    assert sum(a == b for a, b in zip(predicted, said, strict=True)) >= len(said) - 1


def test_same_request_again_replays_and_books_nothing(
    world: World, distilled: tuple[OneByOne, Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, point = distilled
    n_entries = len(one.ledger.entries())
    no_work(monkeypatch)
    again = runner(one.folder, one.store.root).execute(world.prepared())
    assert again == point
    assert len(one.ledger.entries()) == n_entries


def test_other_folder_with_the_same_store_is_charged_alike_and_pays_nothing(
    world: World, distilled: tuple[OneByOne, Point], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, point = distilled
    no_work(monkeypatch)
    other = runner(tmp_path / "other", one.store.root)
    again = other.execute(world.prepared())
    assert again.result_bytes() == point.result_bytes()
    assert again.circumstance.cash_usd == 0.0
    charges = [charge for _, charge, _ in settled(one, world.prepared().request.run_id)]
    assert [charge for _, charge, _ in settled(other, world.prepared().request.run_id)] == charges
    assert all(note.endswith("(reused)") for note, _, _ in settled(other, world.prepared().request.run_id))


def test_a_new_store_gives_the_same_bytes(world: World, distilled: tuple[OneByOne, Point], tmp_path: Path) -> None:
    _, point = distilled
    again = runner(tmp_path / "out", tmp_path / "store").execute(world.prepared())
    assert again.result_bytes() == point.result_bytes()


def test_growing_buys_only_the_difference(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pay_for_labels(monkeypatch)
    one = runner(tmp_path / "out", tmp_path / "store")
    small = one.execute(world.prepared(strategy="annotate", n_initial=None, budget_micros=4_100_000))
    large = one.execute(world.prepared(strategy="annotate", n_initial=None, budget_micros=10_100_000))
    assert (small.result.n_labels, large.result.n_labels) == (20, 50)
    label_cash = [e.cash_micros for e in one.ledger.entries() if e.kind == "settle" and "train labels" in e.note]
    assert label_cash == [20 * 200_000, 30 * 200_000]
    label_charge = [e.charge_micros for e in one.ledger.entries() if e.kind == "settle" and "train labels" in e.note]
    assert label_charge == [20 * 200_000, 50 * 200_000]
    rows = bought_rows(tmp_path / "store")
    assert len(rows) == len(set(rows)) == 50
    assert rows[:20] == [row.id for row in world.prepared().train[:20]]


def test_order_of_points_cannot_change_their_results(world: World, tmp_path: Path) -> None:
    asked: list[dict[str, object]] = [
        {"strategy": "annotate", "n_initial": None, "budget_micros": 8_000_000},
        *({"strategy": name, "pool_rows": 60} for name in ("distill", "self_distill")),
    ]
    forward = runner(tmp_path / "a", tmp_path / "store-a")
    backward = runner(tmp_path / "b", tmp_path / "store-b")
    one = [forward.execute(world.prepared(**changes)).result_bytes() for changes in asked]
    two = [backward.execute(world.prepared(**changes)).result_bytes() for changes in reversed(asked)]
    assert one == two[::-1]


def test_budgets_that_share_a_teacher_train_it_once(world: World, tmp_path: Path) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    low = one.execute(world.prepared(budget_micros=15_000_000))
    high = one.execute(world.prepared(budget_micros=20_000_000))
    assert low.result.artifacts == high.result.artifacts
    assert low.result.charge_usd == high.result.charge_usd
    assert high.circumstance.cash_usd == 0.0


def test_not_enough_money_is_na_with_the_way_out(world: World, tmp_path: Path) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    point = one.execute(world.prepared(budget_micros=12_000_000))
    assert point.result.status == "na"
    assert point.result.test is None
    assert point.result.reason is not None
    assert "$12.00" in point.result.reason
    assert "raise it to $12.0" in point.result.reason
    assert point.result.charge_usd == 0.0
    assert one.execute(world.prepared(budget_micros=12_000_000)) == point


@pytest.mark.parametrize(("dev", "n_labels", "n_dev"), [("given", 60, 30), ("bought", 60, 10), ("carved", 60, 10)])
def test_dev_labels_are_given_bought_or_carved(
    world: World, tmp_path: Path, dev: str, n_labels: int, n_dev: int
) -> None:
    asked = None if dev == "given" else n_dev
    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = world.prepared(dev=dev, n_dev=asked)
    point = one.execute(prepared)
    assert (point.result.status, point.result.n_labels, point.result.n_dev) == ("ok", n_labels, n_dev)
    bought = sum(
        charge for note, charge, _ in settled(one, prepared.request.run_id) if "labels" in note and "fine" not in note
    )
    assert bought == (n_labels + (n_dev if dev == "bought" else 0)) * 200_000
    assert point.result.dev is not None


def test_without_dev_the_last_epoch_is_kept(world: World, tmp_path: Path) -> None:
    point = runner(tmp_path / "out", tmp_path / "store").execute(world.prepared(dev="none"))
    assert (point.result.status, point.result.n_dev, point.result.dev, point.request.dev) == ("ok", 0, None, None)


def test_free_student_training_is_done_but_not_charged(world: World, tmp_path: Path) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    asked = {"strategy": "annotate", "n_initial": None, "budget_micros": 4_100_000}
    charged = one.execute(world.prepared(**asked))
    free = one.execute(world.prepared(**asked, student_training="free"))
    assert free.result.test == charged.result.test
    assert free.result.charge_usd < charged.result.charge_usd
    assert free.result.flops == charged.result.flops


def test_redundant_noisy_labels_cost_more_and_err_less(world: World, tmp_path: Path) -> None:
    gold = {row.id: row.label for row in world.prepared().train}
    right = {}
    for redundancy in (1, 5):
        one = runner(tmp_path / f"out{redundancy}", tmp_path / f"store{redundancy}")
        asked = {
            "strategy": "annotate",
            "n_initial": None,
            "sellers": (SellerSpec(replay=ReplayOptions(0.3, redundancy, 2.0)),),
        }
        point = one.execute(world.prepared(**asked, budget_micros=redundancy * 20_100_000))
        assert point.result.n_labels == 100
        key = point.result.artifacts["labels"]
        labels = next(a for a in one.store.find("buy") if a.digest == key)
        said = [json.loads(line) for line in (labels.path / "labels.jsonl").read_text().splitlines()]
        right[redundancy] = sum(entry["label"] == gold[entry["row"]] for entry in said)
        assert labels.circumstance["human_seconds"] == pytest.approx(100 * redundancy * 2.0)
    assert right[5] > right[1]


# --- limits and failures -------------------------------------------------------------------------------------------------


def test_meter_stops_a_step_at_its_cash_and_keeps_the_best_model_so_far(world: World, tmp_path: Path) -> None:
    # A machine that really is so dear that the cash of the budget is gone after a few seconds of training.
    dear = Price("cpu", "hour", Decimal(9_000), "a test", None)
    root = tmp_path / "out"
    one = OneByOne(root, runner(tmp_path / "x", tmp_path / "store").store, here=dear)
    slow = {**dict(world.request().overrides), "student": {"epochs": 4000, "batch_size": 16, "precision": "fp32"}}
    prepared = world.prepared(strategy="annotate", n_initial=None, budget_micros=10_000_000, overrides=slow)
    point = one.execute(prepared)
    assert point.result.status == "ok"
    entries = [e for e in one.ledger.entries() if e.kind == "settle" and "fine-tune" in e.note]
    assert "cut short by its hold" in entries[0].note
    balance = one.ledger.balance(prepared.request.run_id)
    assert balance.cash_micros <= 10_000_000
    assert one.ledger.verify().ok
    whole = runner(tmp_path / "whole", tmp_path / "store").store.get(prepared.request.run_id * 4)
    assert whole is None
    again = OneByOne(root, one.store, here=dear).execute(prepared)
    assert again == point


def test_diverged_training_fails_the_point_and_gives_the_hold_back(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import outlay.train.objectives as lessons

    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = world.prepared(strategy="annotate", n_initial=None, budget_micros=4_100_000)
    with monkeypatch.context() as broken:
        broken.setattr(
            lessons, "cross_entropy", lambda logits, _labels, _positions: logits.sum(-1).flatten() * float("nan")
        )
        point = one.execute(prepared)
    assert point.result.status == "failed"
    assert "lower the learning rate" in str(point.result.reason)
    assert one.ledger.open_holds(prepared.request.run_id) == []
    assert one.finished(prepared.request.run_id) is None
    assert one.execute(prepared).result.status == "ok"
    assert one.ledger.verify().ok


def test_artifact_lost_after_payment_is_made_again_without_a_charge(world: World, tmp_path: Path) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = world.prepared(strategy="annotate", n_initial=None, budget_micros=4_100_000)
    point = one.execute(prepared)
    run_id = prepared.request.run_id
    one.run_folder(run_id).manifest.unlink()
    one.store.gc(lambda artifact: artifact.kind == "buy", max_bytes=0)
    paid = one.ledger.balance(run_id).total_cash_micros
    again = one.execute(prepared)
    assert again.result_bytes() == point.result_bytes()
    assert one.ledger.verify().ok
    assert one.ledger.balance(run_id).charged_micros == round(point.result.charge_usd * 10**6)
    assert one.ledger.balance(run_id).total_cash_micros > paid


def test_no_cash_left_to_compute_is_refused_until_topped_up(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pay_for_labels(monkeypatch)
    one = runner(tmp_path / "out", tmp_path / "store")
    # The labels take all but the 100 micro-dollars that the flops clock asks for; an hour here is dear, so they are gone at once.
    dear = OneByOne(one.folder, one.store, here=Price("cpu", "hour", Decimal(1000), "a test", None))
    prepared = world.prepared(strategy="annotate", n_initial=None, budget_micros=4_000_100)
    first = dear.execute(prepared)
    assert (first.result.status, "topup" in str(first.result.reason)) == ("failed", True)
    one.ledger.top_up(prepared.request.run_id, 1_000_000)
    assert one.execute(prepared).result.status == "ok"
    rows = bought_rows(tmp_path / "store")
    assert len(rows) == len(set(rows)) == 20


def test_cancelled_run_spends_nothing_more(world: World, tmp_path: Path) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = world.prepared()
    run_id = prepared.request.run_id
    one.folder.mkdir()
    one.ledger.open_run(run_id, prepared.request.budget_micros)
    one.cancel(run_id)
    point = one.execute(prepared)
    assert point.result.status == "failed"
    assert "cancel" in str(point.result.reason)
    assert one.ledger.balance(run_id).total_charge_micros == 0


def test_lost_tail_of_the_ledger_is_seen_before_a_replay(world: World, tmp_path: Path) -> None:
    import sqlite3

    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = world.prepared(strategy="annotate", n_initial=None, budget_micros=4_100_000)
    one.execute(prepared)
    one.ledger.close()
    with sqlite3.connect(one.ledger.path) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute("DELETE FROM entries WHERE seq = (SELECT MAX(seq) FROM entries)")
    one.ledger.anchor_path.unlink()
    with pytest.raises(SpendError, match="verify"):
        runner(one.folder, one.store.root).execute(prepared)


def test_cash_cap_over_all_runs_of_a_folder(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pay_for_labels(monkeypatch)
    one = runner(tmp_path / "out", tmp_path / "store", cash_cap_micros=13_000_000)
    first = one.execute(world.prepared(seed=0))
    second = one.execute(world.prepared(seed=1))
    assert first.result.status == "ok"
    assert second.result.status == "failed"
    assert one.ledger.balance(world.prepared(seed=1).request.run_id).total_cash_micros == 0


def test_two_processes_make_a_key_once_and_both_are_charged(world: World, tmp_path: Path) -> None:
    prepared = world.prepared()
    children = []
    for name in ("a", "b"):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if runner(tmp_path / name, tmp_path / "store").execute(prepared).is_ok else 2
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    a, b = (runner(tmp_path / name, tmp_path / "store") for name in ("a", "b"))
    run_id = prepared.request.run_id
    one, two = a.finished(run_id), b.finished(run_id)
    assert one is not None
    assert two is not None
    assert one.result_bytes() == two.result_bytes()
    made = [[note for note, _, _ in settled(r, run_id) if not note.endswith("(reused)")] for r in (a, b)]
    compute = [note for side in made for note in side]
    assert len(compute) == len(set(compute)) == 6
    rows = bought_rows(tmp_path / "store")
    assert len(rows) == len(set(rows)) == 60


def test_one_run_cannot_be_executed_twice_at_once(world: World, tmp_path: Path) -> None:
    one = runner(tmp_path / "out", tmp_path / "store")
    prepared = world.prepared()
    with one.run_folder(prepared.request.run_id).alone():
        point = runner(tmp_path / "out", tmp_path / "store").execute(prepared)
    assert point.result.status == "failed"
    assert "another process" in str(point.result.reason)
    assert not one.ledger.is_begun


def test_requests_differ_where_results_may_differ(world: World) -> None:
    base = world.workbench.resolve(world.request())
    changes = [
        {"seed": 1},
        {"threads": 2},
        {"budget_micros": 20_000_001},
        {"student": "cut:1"},
        {"student": "tiny:1x32"},
        {"machine": "a40"},
        {"pool_rows": 100},
        {"overrides": {"distil": {"epochs": 3}}},
        {"sellers": (SellerSpec(replay=ReplayOptions(error_rate=0.1)),)},
        {"student_training": "free"},
        {"dev": "carved"},
    ]
    ids = {world.workbench.resolve(world.request(**change)).run_id for change in changes}
    assert len(ids | {base.run_id}) == len(changes) + 1
    assert world.workbench.resolve(replace(world.request())).run_id == base.run_id


def test_pool_of_a_request_does_not_depend_on_the_seed(world: World) -> None:
    parts = {world.prepared(seed=seed, pool_rows=100).pool_parts for seed in range(4)}
    assert parts == {(("train+messages", 100),)}
    assert world.prepared().pool_parts == (("train", 120), ("messages", 150))


def test_rows_of_an_f1_task_have_an_interval_over_examples(world: World, tmp_path: Path) -> None:
    from outlay.money.amounts import PriceBook
    from outlay.report.results import Header
    from outlay.report.seed_means import means
    from outlay.storage.store import Store
    from outlay.study.runner import Workplace, prepare_session, read_results

    text = world.task.read_text().replace("metric: accuracy", "metric: f1").replace("name: small", "name: small_f1")
    task = world.task.with_name("f1.yaml")
    task.write_text(text)
    base = replace(world.request(strategy="annotate", n_initial=None, budget_micros=4_100_000), task=str(task))
    book = PriceBook.load()
    place = Workplace(tmp_path / "out", Store(tmp_path / "store"), book, book.get("cpu"))
    session = prepare_session([replace(base, seed=seed) for seed in (0, 1)], Header("f1", "F1", "plain"), place)
    points = session.run()
    assert [point.result.test for point in points] == [p.result.scores["micro_f1/published"].value for p in points]
    (row,) = means(read_results(session.place.folder, session.place.store))
    assert row.value is not None
    assert row.low is not None
    assert 1.0 < row.value - row.low < 40.0


def _manifest(one: OneByOne, world: World) -> dict:
    return json.loads(one.run_folder(world.prepared().request.run_id).manifest.read_text())


def test_labels_that_another_machine_bought_are_not_bought_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its artifact is in the store, its book of labels is not here: an empty cache beside a store at a URL."""
    pay_for_labels(monkeypatch)
    prepared = world.prepared(strategy="annotate")
    first = runner(tmp_path / "one", tmp_path / "store")
    point = first.execute(prepared)
    (first.store.root / "bought").rename(tmp_path / "elsewhere")
    again = runner(tmp_path / "two", tmp_path / "store").execute(prepared)
    assert again.result_bytes() == point.result_bytes()
    assert (point.circumstance.cash_usd or 0) > 1
    assert again.circumstance.cash_usd == 0


def test_a_found_artifact_takes_the_checkpoints_with_it_that_a_kill_left(world: World, tmp_path: Path) -> None:
    prepared = world.prepared()
    one = runner(tmp_path / "out", tmp_path / "store")
    assert one.execute(prepared).is_ok
    keys = [artifact.key for artifact in one.store.list() if artifact.kind != "buy"]
    for key in keys:
        left = one.store.root / "making" / key / "work"
        left.mkdir(parents=True)
        (left / "checkpoint").write_text("put, and killed before it was removed")
    again = runner(tmp_path / "other", tmp_path / "store")
    assert again.execute(prepared).is_ok
    assert len(keys) >= 4
    assert list(one.store.root.glob("making/*/work")) == []
