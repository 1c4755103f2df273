"""A machine measured by models that take a moment, and the command that does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from outlay.cli.machine_commands import machine_app
from outlay.errors import UnknownItem
from outlay.hardware.precision import ratio_words
from outlay.models.cost_model import TERMS, Lengths, MachineProfile, ModelProfile, load_profile, training_load
from outlay.models.heads import Texts
from outlay.models.loading import ModelSpec
from outlay.models.random_init import Corpus, build_checkpoint
from outlay.models.shape import shape_of_size
from outlay.settings import TrainSettings
from outlay.spec import TaskSpec
from outlay.train import calibration as calibrating
from outlay.train.api import answer_lengths, count_tokens, finetune
from outlay.train.calibration import Trial, calibrate, encoder_size, t5_size

TRIALS = [
    Trial(encoder_size(1, 64, 1024), 3, 7),
    Trial(encoder_size(2, 64, 1024), 11, 13),
    Trial(t5_size(1, 64, 1024), 3, 5, 2),
    Trial(t5_size(2, 64, 1024), 7, 11, 3),
]


@pytest.fixture(scope="module")
def measured() -> tuple[MachineProfile, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrating, "MEASURED_SECONDS", 0.0)
        before = torch.get_num_threads()
        profile = calibrate(threads=1, trials=TRIALS, on_progress=lambda *done: told.append(done))
        assert torch.get_num_threads() == before
    return profile, told


def test_every_term_has_a_constant_and_none_is_negative(measured: tuple[MachineProfile, list[tuple[int, int]]]) -> None:
    profile, told = measured
    assert set(profile.constants) == {"bf16", "fp32"}
    for constants in profile.constants.values():
        assert tuple(constants) == TERMS
        assert all(value >= 0 for value in constants.values())
        # What a training takes must come from somewhere, and so must reading and the start.
        assert sum(constants[term] for term in calibrating.TRAIN_TERMS) > 0
        assert sum(constants[term] for term in calibrating.INFER_TERMS) > 0
        assert sum(constants[term] for term in calibrating.START_TERMS) > 0
    assert profile.threads == 1
    assert profile.torch == torch.__version__
    assert profile.peak_flops_per_second > 0
    assert told == [(i, 16) for i in range(1, 17)]
    assert profile.bf16_ratio is not None
    assert profile.bf16_ratio > 0


def test_what_was_measured_costs_something(measured: tuple[MachineProfile, list[tuple[int, int]]]) -> None:
    profile, _ = measured
    reader = ModelProfile(shape_of_size(encoder_size(2, 64, 1024)), 2)
    settings = TrainSettings(epochs=1, batch_size=8, learning_rate=1e-3)
    assert profile.seconds(training_load(reader, Lengths([11] * 64, [0] * 64), settings), "bf16") > 0


def test_texts_are_as_long_as_a_trial_says(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[tuple[set[int], set[int]]] = []

    def spy(spec: ModelSpec, sources: Texts, answers: list[str], *args: Any, **more: Any) -> None:
        model = (spec.ref, spec.base, spec.form)
        lengths.append((set(count_tokens(*model, sources)), set(answer_lengths(*model, answers))))
        finetune(spec, sources, answers, *args, **more)

    monkeypatch.setattr(calibrating, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(calibrating, "finetune", spy)
    calibrate(threads=1, trials=TRIALS, precisions=("fp32",))
    assert lengths == [({trial.source}, {trial.answer}) for trial in TRIALS]


def test_answers_are_counted_as_the_tokenizer_cuts_them(tmp_path: Path) -> None:
    build_checkpoint(TRIALS[2].size, Corpus(["several words of two letters"] * 2, []), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    answers = ["a", "several words of it", "two words"]
    form = TaskSpec("generation", (), 50, 5)
    wanted = [min(5, len(tokenizer(text)["input_ids"])) for text in answers]
    assert answer_lengths(str(tmp_path / "model"), str(tmp_path / "model"), form, answers) == wanted
    assert len(set(wanted)) > 1


def run(*arguments: str) -> str:
    result = CliRunner().invoke(machine_app, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_writes_what_steps_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: tuple[MachineProfile, list[tuple[int, int]]]
) -> None:
    profile, _ = measured
    monkeypatch.setattr(calibrating, "calibrate", lambda *, threads, name, on_progress: profile)
    store = tmp_path / "kept" / "store"
    said = run("calibrate", "--store", str(store), "--threads", "1")
    assert load_profile(tmp_path / "kept" / "machine.toml") == MachineProfile(
        **{name: getattr(profile, name) for name in ("name", "measured", "device", "torch", "threads")},
        peak_flops_per_second=profile.peak_flops_per_second,
        bf16_ratio=float(f"{profile.bf16_ratio:.4g}"),
        constants={
            precision: {term: float(f"{value:.6e}") for term, value in constants.items()}
            for precision, constants in profile.constants.items()
        },
    )
    assert "[[machine]]" in said
    assert f"bf16 is {ratio_words(profile.bf16_ratio or 0)} times as fast as float32 in a matrix product" in said
    assert run("show", "here", "--store", str(store)).startswith(str(tmp_path / "kept" / "machine.toml"))
    document = json.loads(run("calibrate", "--out", str(tmp_path / "other.toml"), "--json"))
    assert document["file"] == str(tmp_path / "other.toml")
    assert document["machine"]["name"] == "here"
    assert set(document["profile"]["seconds"]) == {"bf16", "fp32"}


def test_machines_are_listed_with_price_peak_and_utilisation(tmp_path: Path) -> None:
    machines = {each["name"]: each for each in json.loads(run("list", "--json"))}
    a40 = machines["a40"]
    assert (a40["usd_per_hour"], a40["peak_flops_per_second"], a40["utilisation_train"]) == (
        "1.875",
        149_700_000_000_000,
        0.35,
    )
    assert json.loads(run("show", "a40", "--json")) == a40
    assert "a40" in run("list")
    assert "149700000000000" in run("show", "a40")
    with pytest.raises(UnknownItem, match="no machine 'a41'"):
        run("show", "a41", "--store", str(tmp_path / "store"))
