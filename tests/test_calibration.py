"""Calibrated probabilities, ECE, milliseconds a row, and the single steps of classifiers without an encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import outlay
from outlay.errors import UnknownModel
from tests.steps_world import StepsWorld, tree

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
