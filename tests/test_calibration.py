"""Calibrated probabilities, ECE, milliseconds a row, and the single steps of classifiers without an encoder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import outlay
from outlay.engine.point import Point, PointCircumstance
from outlay.errors import UnknownModel
from outlay.metrics.calibration import (
    N_BINS,
    calibration_error_of,
    confidences_of,
    expected_calibration_error,
    probabilities_at,
)
from outlay.models.pooled import PooledHead
from outlay.report.flat_files import fields
from outlay.report.layouts import lay_out
from outlay.report.receipt import receipt, render_text
from outlay.settings import TeachSettings
from outlay.train import answering, timing
from outlay.train import api as train_api
from tests.runs import FAST, World, runner
from tests.steps_world import StepsWorld
from tests.test_cli import outlay as command
from tests.test_report import point, results, row_of
from tests.toys import CountingMeter

ONE = outlay.RuntimeOptions(threads=1)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> StepsWorld:
    return StepsWorld.make(tmp_path_factory.mktemp("steps"))


def trained(steps: StepsWorld, out: Path, method: str, model: str = "bert", **settings: Any) -> Path:
    """A classifier of the tones by a method, with a dev set."""
    data = outlay.Data(
        file=steps.file("classification", "train"),
        dev_file=steps.file("classification", "dev"),
        labels=("bad", "good"),
        max_source_tokens=24,
        max_target_tokens=12,
    )
    given = {"method": method, "precision": "fp32", **settings}
    return outlay.finetune(steps.model(model), data, out=out, settings=given, runtime=ONE).path


def texts_of(steps: StepsWorld, split: str = "dev") -> list[tuple[str]]:
    lines = steps.file("classification", split).read_text().splitlines()
    return [(json.loads(line)["source"],) for line in lines]


def error_by_hand(confidences: Sequence[float], is_right: Sequence[bool]) -> float:
    """Equation 3 of Guo et al. 2017, bin by bin and row by row."""
    total = 0.0
    for i in range(N_BINS):
        found = [at for at, each in enumerate(confidences) if i / N_BINS < each <= (i + 1) / N_BINS]
        if found:
            accuracy = sum(is_right[at] for at in found) / len(found)
            confidence = sum(confidences[at] for at in found) / len(found)
            total += len(found) / len(confidences) * abs(accuracy - confidence)
    return 100 * total


def rows_of(steps: StepsWorld, split: str = "dev") -> outlay.Data:
    return outlay.Data(file=steps.file("classification", split))


@pytest.mark.parametrize("method", ["tfidf", "majority", "probe"])
def test_single_steps_of_a_classifier_with_a_head_of_its_own(steps: StepsWorld, tmp_path: Path, method: str) -> None:
    model = trained(steps, tmp_path / "model", method)
    assert (model / "config.json").exists() == (method == "probe")
    scores = outlay.evaluate(model, rows_of(steps), precision="fp32", runtime=ONE)
    said = outlay.predict(model, rows_of(steps), out=tmp_path / "said.jsonl", precision="fp32", runtime=ONE)
    golds = [json.loads(line)["target"] for line in steps.file("classification", "dev").read_text().splitlines()]
    assert scores.score.value == pytest.approx(100 * sum(map(str.__eq__, said.answers(), golds)) / len(golds))
    targets = outlay.teach(
        model, rows_of(steps, "pool"), target="classes", out=tmp_path / "targets", precision="fp32", runtime=ONE
    )
    assert (targets.kind, targets.n_rows) == ("classes", 29)
    assert (
        outlay.teach(
            model,
            rows_of(steps, "pool"),
            student=steps.model("small"),
            out=tmp_path / "more",
            precision="fp32",
            runtime=ONE,
        ).kind
        == "classes"
    )
    student = outlay.distill(
        targets.path,
        steps.model("bert"),
        out=tmp_path / "student",
        settings={"epochs": 1, "precision": "fp32"},
        runtime=ONE,
    )
    assert student.n_rows == 29


def test_no_training_starts_from_a_classifier_of_words(steps: StepsWorld, tmp_path: Path) -> None:
    model = trained(steps, tmp_path / "model", "majority")
    with pytest.raises(UnknownModel, match="is a classifier of words: no encoder is in"):
        outlay.finetune(
            model,
            outlay.Data(file=steps.file("classification", "train"), labels=("bad", "good")),
            out=tmp_path / "again",
        )


def test_heads_of_one_encoder_are_different_models(steps: StepsWorld, tmp_path: Path) -> None:
    """Of a frozen encoder only the head tells two models apart: predictions of the first are no answer for the second."""
    from outlay.models.reference import folder_fingerprint

    model = trained(steps, tmp_path / "model", "probe")
    before = folder_fingerprint(model)
    head = model / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"\x01")
    assert folder_fingerprint(model) != before


# --- probabilities and their error -----------------------------------------------------------------------------------


def test_the_error_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(5)
    probabilities = probabilities_at(rng.normal(size=(211, 3)) * 2, 1.7)
    classes = rng.integers(3, size=211)
    by_hand = error_by_hand(list(map(float, probabilities.max(1))), list(probabilities.argmax(1) == classes))
    assert expected_calibration_error(probabilities, classes) == pytest.approx(by_hand, abs=1e-9)
    answers, golds = [str(i) for i in probabilities.argmax(1)], [str(i) for i in classes]
    assert calibration_error_of(confidences_of(probabilities), answers, golds) == pytest.approx(by_hand, abs=1e-3)
    assert calibration_error_of([0.8, 0.6], ["a", "b"], ["a", "elsewhere"]) == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("method", "model"), [("full", "bert"), ("probe", "bert"), ("tfidf", "bert"), ("majority", "bert")]
)
def test_probabilities_are_the_softmax_of_logits_over_the_temperature(
    steps: StepsWorld, tmp_path: Path, method: str, model: str
) -> None:
    folder = trained(steps, tmp_path / "model", method, model)
    temperature = json.loads((folder / "outlay.json").read_text())["temperature"]
    texts, meter = texts_of(steps, "pool"), CountingMeter()
    found = train_api.predict(folder, texts, precision="fp32", meter=meter)
    taught = train_api.teach(
        folder,
        texts,
        target="classes",
        settings=TeachSettings(max_logits=0, tail_mass=0.0),
        precision="fp32",
        meter=CountingMeter(),
    )
    said = taught.positions()
    assert found.probabilities is not None
    assert (found.answers, found.temperature) == (list(taught.answers), temperature)
    for row, (logits, numbers) in enumerate(
        zip(said.all_logits().reshape(-1, 2), said.indices.reshape(-1, 2).astype(int), strict=True)
    ):
        weights = [math.exp(float(each) / temperature) for each in logits]
        by_hand = {int(n): weight / sum(weights) for n, weight in zip(numbers, weights, strict=True)}
        assert [by_hand[0], by_hand[1]] == pytest.approx(found.probabilities[row].tolist(), abs=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(1), 1.0, atol=1e-12)


def test_without_a_dev_set_the_temperature_is_one_and_writers_have_no_probabilities(
    steps: StepsWorld, tmp_path: Path
) -> None:
    file = steps.file("classification", "train")
    settings = {"method": "full", "epochs": 1, "precision": "fp32"}
    for model, temperature in (("bert", 1.0), ("t5", None)):
        out = tmp_path / model
        outlay.finetune(
            steps.model(model), outlay.Data(file=file, labels=("bad", "good")), out=out, settings=settings, runtime=ONE
        )
        found = train_api.predict(out, texts_of(steps), precision="fp32", meter=CountingMeter())
        assert found.temperature == temperature
        assert (found.probabilities is None) == (temperature is None)
        scores = outlay.evaluate(out, rows_of(steps), precision="fp32", runtime=ONE)
        assert (scores.ece is None, scores.temperature) == (temperature is None, temperature)


def test_evaluate_prints_the_error_and_predictions_have_the_probability_of_their_answer(
    steps: StepsWorld, tmp_path: Path
) -> None:
    model = trained(steps, tmp_path / "model", "probe")
    temperature = json.loads((model / "outlay.json").read_text())["temperature"]
    words = ("evaluate", model, "--file", steps.file("classification", "dev"), "--precision", "fp32", "--threads", 1)
    ran = command(*words, "--out", tmp_path / "scores")
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()]
    by_hand = error_by_hand(
        [line["confidence"] for line in lines], [line["prediction"] == line["gold"] for line in lines]
    )
    assert f"ECE: {by_hand:.2f} of 100, 15 bins, probabilities at temperature {temperature:g}\n" in ran.out
    kept = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert kept["ece"] == pytest.approx(by_hand, abs=1e-3)
    again = command(*words, "--out", tmp_path / "more", "--json").json
    facts = again["facts"]
    assert (facts["ece"], facts["ece_bins"], facts["temperature"]) == (kept["ece"], 15, temperature)
    of_file = command("evaluate", "--predictions", tmp_path / "scores" / "predictions.jsonl", "--labels", "bad,good")
    assert of_file.code == 0
    assert "ECE" not in of_file.out


# --- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), n_layers=2)


@pytest.mark.parametrize("method", ["full", "probe", "tfidf", "majority"])
def test_a_run_scores_the_calibration_and_times_the_model(
    world: World, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "strategy": "annotate",
        "student": str(world.checkpoint),
        "overrides": {**FAST, "student": {**FAST["student"], "method": method}},
    }
    prepared = world.prepared(**changes)
    first = runner(tmp_path / "first", tmp_path / "store")
    made = first.execute(prepared)
    manifest = json.loads((tmp_path / "first" / "runs" / prepared.request.run_id / "manifest.json").read_text())
    (key,) = [each["key"] for each in manifest["artifacts"] if each["step"] == "score"]
    artifact = first.store.get(key)
    assert artifact is not None
    said = json.loads(artifact.read_bytes("predictions.json"))
    probabilities = np.array(said["probabilities"])
    assert probabilities.shape == (40, len(said["labels"]))
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)
    is_right = [a == gold for a, gold in zip(said["predictions"], said["golds"], strict=True)]
    by_hand = error_by_hand(list(map(float, probabilities.max(1))), is_right)
    assert made.result.ece == said["ece"] == pytest.approx(by_hand, abs=1e-4)
    latency = made.circumstance.latency_ms
    assert latency is not None
    assert 0 < latency == artifact.circumstance["latency_ms"]
    assert "latency_ms" not in said
    assert "latency" not in json.dumps([dict(artifact.usage), dict(artifact.meta)])
    text = render_text(receipt(first.ledger, prepared.request.run_id))
    assert f"calibration error (ECE) {made.result.ece:.1f} of 100 on the test split; {latency:,.3g} ms a row" in text
    monkeypatch.setattr(train_api, "milliseconds_a_row", lambda *_, **__: 12345.0)
    again = runner(tmp_path / "second", tmp_path / "other").execute(world.fresh().prepared(**changes))
    assert again.circumstance.latency_ms == 12345.0
    assert again.result_bytes() == made.result_bytes()
    assert again.result.flops == made.result.flops


def test_timing_computes_frozen_vectors_and_leaves_their_cache(
    steps: StepsWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(steps, tmp_path / "model", "probe")
    monkeypatch.setattr(answering, "_loaded", {})
    _, head = answering.loaded_model(model, None)
    assert isinstance(head, PooledHead)
    cache = head.cache
    assert cache is not None
    monkeypatch.setattr(type(cache), "vectors", lambda *_: pytest.fail("a vector was looked up"))
    latency = train_api.milliseconds_a_row(model, texts_of(steps), precision="fp32")
    assert latency is not None
    assert latency > 0
    assert head.cache is cache
    assert train_api.milliseconds_a_row(model, [], precision="fp32") is None


def test_timing_ends_after_its_seconds(steps: StepsWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that takes longer than all the time there is, the first row is all that is timed."""
    model = trained(steps, tmp_path / "model", "majority")
    clock, n_rows = iter(range(0, 10_000, 1)), []
    monkeypatch.setattr(answering.time, "perf_counter", lambda: next(clock))
    real = answering.generations
    monkeypatch.setattr(answering, "generations", lambda *given, **more: n_rows.append(1) or real(*given, **more))
    assert train_api.milliseconds_a_row(model, texts_of(steps), precision="fp32") == 1000.0
    assert len(n_rows) == 1


def test_timing_takes_the_fastest_round_of_each_row(
    steps: StepsWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program on the machine slows rows down: it is not the model's time as long as one round is undisturbed."""
    monkeypatch.setattr(timing, "TIMING_ROUNDS", 4)
    model = trained(steps, tmp_path / "model", "majority")
    rows = texts_of(steps)[:3]
    answers = 1 + timing.TIMING_ROUNDS * len(rows)
    # Milliseconds of each answer: the warm-up, a disturbed round, the true times, then disturbed rounds again.
    taken = [90, *[50, 60, 70], *[2, 4, 3], *[40, 50, 60] * (timing.TIMING_ROUNDS - 2)]
    assert len(taken) == answers
    ticks = [0.0]
    for milliseconds in taken:
        ticks += [ticks[-1], ticks[-1] + milliseconds / 1000]
    clock = iter(ticks)
    monkeypatch.setattr(answering.time, "perf_counter", lambda: next(clock))
    assert train_api.milliseconds_a_row(model, rows, precision="fp32") == 3.0
    assert next(clock, None) is None


# --- points and tables -----------------------------------------------------------------------------------------------


def with_error(seed: int, ece: float | None) -> Point:
    return point("annotate", 300.0, seed, 73.0, ece=ece)


def test_points_of_before_have_no_error_and_stay_as_they_are() -> None:
    before, after = with_error(0, None), with_error(0, 0.0)
    document = before.to_json()
    assert "ece" not in document["result"]
    assert Point.from_json(document) == before
    assert after.to_json()["result"] == {**document["result"], "ece": 0.0}
    assert Point.from_json(after.to_json()) == after
    assert before.id == after.id
    assert before.result_bytes() == dataclasses.replace(before, circumstance=PointCircumstance()).result_bytes()


def test_the_plain_table_has_a_column_where_all_seeds_of_a_row_know_it() -> None:
    (table,) = lay_out(results([with_error(0, 2.0), with_error(1, 3.5), point("distill", 300.0, 0, 80.0)]))
    assert [column.text for column in table.columns][:6] == ["Budget", "Test", "Charge", "Labels", "Pool rows", "ECE"]
    cell = row_of(table, "annotate")["ECE"]
    assert cell is not None
    assert cell.words == "2.8"
    assert row_of(table, "distill")["ECE"] is None
    assert any(note.startswith("ECE: ") for note in table.notes)
    assert "ece" in [field.name for field in fields(results([with_error(0, 2.0)]))]
    assert "ece" not in [field.name for field in fields(results([with_error(0, None)]))]
