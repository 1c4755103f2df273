"""Seconds foreseen for the steps of a run, by profiles of which one term alone takes time; and how they stand on the receipt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path

import pytest

from outlay.engine.run_dir import RunDir
from outlay.models.cost_model import TERMS, MachineProfile
from outlay.models.forecast import ANSWERING
from outlay.money.amounts import format_usd
from outlay.plan.forecast import Forecaster
from outlay.plan.quotes import Quoter
from outlay.plan.steps import Buy, Distil, Recipe, Score, Step, Teach, Train
from outlay.plan.strategies import NotAvailable, strategy
from outlay.report.receipt import receipt, render_text, to_json
from outlay.standalone.runtime import StepReport
from outlay.standalone.training import finetune
from outlay.train import api as train_api
from outlay.train import learners
from tests.listeners import Silent
from tests.runs import World, runner
from tests.steps_world import StepsWorld


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world.fresh()


def profile(threads: int = 1, **seconds: float) -> MachineProfile:
    constants = dict.fromkeys(TERMS, 0.0) | seconds
    return MachineProfile("here", "2026-11-21", "a device", "2.13.0", threads, 10**11, {"fp32": constants})


def steps_of(world: World) -> dict[str, Step]:
    """One step of each kind, of a run that distils."""
    known = world.prepared().context
    recipe = strategy("distill").ask(known, [])
    assert isinstance(recipe, Recipe)
    assert not isinstance(recipe, NotAvailable)
    return {step.kind: step for step in recipe.steps()}


def foreseen(world: World, step: Step, profile: MachineProfile | None) -> float:
    quoter = Quoter(world.prepared().context)
    forecast = Forecaster(quoter, profile, lambda labels, model: []).forecast(step)
    assert forecast is not None
    return forecast.seconds


def test_optimiser_steps_are_those_of_the_settings(world: World) -> None:
    found = steps_of(world)
    train, learn = found["train"], found["distil"]
    assert isinstance(train, Train)
    assert isinstance(learn, Distil)
    of_steps = profile(steps=1.0)
    assert foreseen(world, train, of_steps) == 2 * -(-60 // 16)
    assert foreseen(world, learn, of_steps) == 2 * -(-270 // 16)
    assert foreseen(world, found["teach"], of_steps) == foreseen(world, found["score"], of_steps) == 0


def test_texts_are_read_once_and_models_made_ready_once(world: World) -> None:
    from transformers import AutoTokenizer

    prepared, found = world.prepared(), steps_of(world)
    tokenizer = AutoTokenizer.from_pretrained(world.checkpoint)

    def n_tokens(rows: list[str]) -> int:
        return sum(len(ids) for ids in tokenizer(rows, truncation=True, max_length=32)["input_ids"])

    wanted = {
        "train": n_tokens([row.text for row in prepared.train[:60]]),
        "teach": n_tokens([row.text for row in prepared.pool]),
        "distil": n_tokens([row.text for row in prepared.pool]),
        "score": n_tokens([row.text for row in prepared.test]),
    }
    for kind, step in found.items():
        if not isinstance(step, Buy):
            assert foreseen(world, step, profile(read=1.0)) == wanted[kind]
            assert foreseen(world, step, profile(models=1.0)) == 1


def test_evaluations_count_and_their_share_is_kept(world: World) -> None:
    step = steps_of(world)["train"]
    assert isinstance(step, Train)
    # Passes over the four layers: 30 dev rows fit into one batch, evaluated after each of two epochs.
    assert foreseen(world, step, profile(infer_calls=1.0)) == 2 * 4
    half = replace(step, settings=step.settings.changed({"eval_share": 0.5}))
    assert foreseen(world, half, profile(infer_calls=1.0, steps=1.0)) == 8 + 0.5 * 8


def test_without_a_fitting_profile_there_is_no_forecast(world: World) -> None:
    quoter = Quoter(world.prepared().context)
    for step in steps_of(world).values():
        if isinstance(step, Train | Teach | Distil | Score):
            for given in (None, profile(threads=2, steps=1.0)):
                assert Forecaster(quoter, given, lambda labels, model: []).forecast(step) is None
        else:
            with pytest.raises(TypeError, match="Buy is no compute step"):
                Forecaster(quoter, None, lambda labels, model: []).forecast(step)


def test_answers_are_given_in_the_batches_that_are_foreseen() -> None:
    assert signature(train_api.predict).parameters["batch_size"].default == ANSWERING.batch_size


@pytest.fixture(scope="module")
def done(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two results of one request: made with a profile beside the store, then again with what was kept."""
    root = tmp_path_factory.mktemp("runs")
    (root / "machine.toml").write_text(profile(steps=0.25).to_toml(), encoding="utf-8")
    for name in ("made", "reused"):
        runner(root / name, root / "store").execute(world.prepared())
    return root


def test_the_receipt_shows_predicted_and_measured_seconds(world: World, done: Path) -> None:
    run_id = world.prepared().request.run_id
    one = runner(done / "made", done / "store")
    paper = receipt(one.ledger, run_id)
    by_what = {each.what.split()[0]: each for each in paper.timings}
    assert [each.predicted for each in paper.timings] == [2.0, 0.0, 8.5, 0.0, 0.0]
    assert all(each.measured is not None and each.measured > 0 for each in paper.timings)
    # What was measured is what the cash was booked by.
    cash = sum(line.cash_micros for line in paper.lines if line.unit == "hour")
    hours = sum(each.measured or 0 for each in paper.timings) / 3600
    assert cash == pytest.approx(float(one.here.usd) * hours * 1e6, abs=len(by_what) + 1)
    total = sum(each.measured or 0 for each in paper.timings)
    text = render_text(paper)
    assert "the profile of 2026-11-21" in " ".join(text.split())
    assert f"total 10.5 {total:,.1f}" in " ".join(text.split())
    assert [each["predicted"] for each in json.loads(to_json(paper))["timings"]] == [2.0, 0.0, 8.5, 0.0, 0.0]
    assert max(map(len, text.splitlines())) <= 100


def test_no_step_is_charged_more_than_its_bound(world: World, tmp_path: Path) -> None:
    """Settled is at most what was quoted, however many seconds it took."""
    one = runner(tmp_path / "runs", tmp_path / "store")
    for name in ("annotate", "distill", "self_distill"):
        one.execute(world.prepared(strategy=name))
    entries = one.ledger.entries()
    holds = {entry.seq: entry for entry in entries if entry.kind == "hold"}
    settled = [entry for entry in entries if entry.kind == "settle"]
    assert len([entry for entry in settled if entry.unit == "hour"]) >= 10
    for entry in settled:
        assert entry.hold_seq is not None
        assert entry.quantity <= holds[entry.hold_seq].quantity
        assert entry.charge_micros <= holds[entry.hold_seq].charge_micros
    assert not [entry for entry in entries if entry.kind == "overrun" and entry.charge_micros]


def test_what_the_charge_leaves_out_stands_on_the_receipt_with_its_figures(
    world: World, done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Loading a model is made slow here: the charge stays, cash and the line follow."""
    run_id = world.prepared().request.run_id
    quick = receipt(runner(done / "made", done / "store").ledger, run_id).compute
    assert quick is not None
    slow = 0.4

    def load_slowly(*given: object, **named: object) -> object:
        time.sleep(slow)
        return load(*given, **named)

    load = learners.load_model
    monkeypatch.setattr(learners, "load_model", load_slowly)
    bare = runner(tmp_path / "bare", tmp_path / "store")
    bare.execute(world.prepared())
    paper = receipt(bare.ledger, run_id)
    found = paper.compute
    assert found is not None
    assert found.charged_seconds == quick.charged_seconds
    assert found.charge_micros == quick.charge_micros
    assert found.working_seconds is not None
    assert found.uncharged_seconds is not None
    assert found.uncharged_cash_micros is not None
    # A teacher and a student are made from a checkpoint, once each.
    assert 2 * slow <= found.uncharged_seconds <= found.measured_seconds
    assert found.working_seconds + found.uncharged_seconds == pytest.approx(found.measured_seconds)
    assert found.measured_seconds == pytest.approx(sum(each.measured or 0 for each in paper.timings))
    hour = float(bare.here.usd) / 3600 * 1e6
    assert found.uncharged_cash_micros == pytest.approx(found.uncharged_seconds * hour, abs=5)
    text = " ".join(render_text(paper).split())
    assert "the charge counts arithmetic only" in text
    digits = ",.1f" if found.uncharged_seconds >= 1 else ".2g"
    cash = format_usd(found.uncharged_cash_micros)
    line = f"took {found.uncharged_seconds:{digits}} s, {cash}, and are in cash alone"
    assert f"loading, tokenising and saving {line}" in text
    assert json.loads(to_json(paper))["compute"] == asdict(found)


def test_seconds_of_the_flops_clock_are_no_forecast_on_any_receipt(world: World, tmp_path: Path) -> None:
    """Neither of a run without a profile, nor of one whose file says so: it was written before they were told apart."""
    run_id = world.prepared().request.run_id
    bare = runner(tmp_path / "bare", tmp_path / "store")
    bare.execute(world.prepared())
    papers = [receipt(bare.ledger, run_id)]
    path = RunDir.of(bare.folder, run_id).path / "seconds.json"
    records = json.loads(path.read_text())
    for record in records:
        record |= {"predicted": 0.0271, "by": "at most, by the flops clock of cpu"}
        del record["working"]
    path.write_text(json.dumps(records))
    papers.append(receipt(bare.ledger, run_id))
    for paper in papers:
        text = render_text(paper)
        table = text[text.index("forecast by") : text.index("charged $")]
        rows = [line.split() for line in table.splitlines() if line[:1].isalpha() and " s " not in line]
        assert len(rows) == 6  # five steps and the total
        assert all(row[-2] == "–" for row in rows), table
        assert "by the flops clock" not in table
        assert "no forecast of seconds: `outlay machine calibrate`" in text
    old = papers[1].compute
    assert old is not None
    assert old.uncharged_seconds is None
    took = f"s, {format_usd(old.cash_micros)} in cash here, with loading, tokenising and saving"
    assert took in " ".join(render_text(papers[1]).split())


def test_what_was_reused_says_so_and_takes_no_seconds(world: World, done: Path) -> None:
    run_id = world.prepared().request.run_id
    paper = receipt(runner(done / "reused", done / "store").ledger, run_id)
    assert paper.compute is None
    assert [(each.predicted, each.measured, each.by) for each in paper.timings] == [(None, None, None)] * 5
    text = " ".join(render_text(paper).split())
    assert text.count(" reused") >= 4


def test_a_profile_changes_no_result_and_no_charge(world: World, done: Path, tmp_path: Path) -> None:
    run_id = world.prepared().request.run_id
    bare = runner(tmp_path / "bare", tmp_path / "store")
    point = bare.execute(world.prepared())
    kept = runner(done / "made", done / "store").finished(run_id)
    assert kept is not None
    assert kept.result_bytes() == point.result_bytes()
    timings = RunDir.of(bare.folder, run_id).timings()
    assert {(each.predicted, each.by) for each in timings} == {(None, None)}


def test_a_single_training_says_what_was_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "world").mkdir()
    small = StepsWorld.make(tmp_path / "world")
    monkeypatch.setenv("OUTLAY_STORE", str(tmp_path / "kept" / "store"))
    train_file = small.file("entities", "train")

    def trained(name: str) -> StepReport:
        return finetune(small.recipe("entities", "t5", tmp_path / name, file=train_file), Silent())

    bare = trained("bare")
    assert bare.predicted_seconds is None
    assert "forecast" not in bare.compute
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "machine.toml").write_text(profile(steps=1000.0).to_toml(), encoding="utf-8")
    foreseen_too = trained("foreseen")
    assert foreseen_too.predicted_seconds == 1000.0 * foreseen_too.facts["n_steps"]
    assert foreseen_too.compute.endswith(f"s (forecast {foreseen_too.predicted_seconds:,.1f} s)")
    (tmp_path / "kept" / "machine.toml").write_text(profile(threads=2, steps=1.0).to_toml(), encoding="utf-8")
    assert trained("other").predicted_seconds is None
