"""Loads against what torch counts and what the loop really batches; profiles; the solver of their constants."""

from __future__ import annotations

import random
from dataclasses import astuple, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from outlay.errors import UsageError
from outlay.models.cost_model import (
    TERMS,
    Lengths,
    MachineProfile,
    ModelProfile,
    Workload,
    answering_load,
    load_profile,
    starting_load,
    training_load,
)
from outlay.models.random_init import new_model
from outlay.models.shape import shape_of_size
from outlay.models.sizes import Size
from outlay.money.machines import load_machines
from outlay.settings import TeachSettings, TrainSettings
from outlay.train.batching import training_batches
from outlay.train.calibration import Sample, fit_terms, least_relative_squares

# Width 38 is 2 heads of 19, since what a shape does not say is taken to be so; every other size is another prime.
SIZES = {
    "t5": Size("t5", "t5", 3, 38, 53, 2, 1009, 19, n_decoder_layers=5),
    "bert": Size("bert", "bert", 3, 38, 53, 2, 1009, 19, n_positions=59),
    "gpt2": Size("gpt2", "gpt2", 3, 38, 53, 2, 1009, 19, n_positions=59),
}
ROWS, SOURCE, ANSWER = 7, 29, 11


def profile(**seconds: float) -> MachineProfile:
    """A machine on which only these terms take time."""
    constants = dict.fromkeys(TERMS, 0.0) | seconds
    return MachineProfile(
        "here", "2026-11-21", 'an "odd" \\ device', "2.13.0", 3, 10**11, {"bf16": constants, "fp32": constants}
    )


def one_batch(kind: str) -> Lengths:
    return Lengths([SOURCE] * ROWS, [0 if kind == "bert" else ANSWER] * ROWS)


def counted_flops(kind: str) -> int:
    """What torch counts in one forward pass over ROWS rows."""
    from transformers import BertForSequenceClassification

    model: Any = new_model(SIZES[kind], seed=0).eval()
    # The fused attention of a CPU is not on torch's list; T5 of transformers 5.17 has no other.
    model.set_attn_implementation("eager")
    source = torch.full((ROWS, SOURCE), 5)
    answer = torch.full((ROWS, ANSWER), 5)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if kind == "t5":
            model(input_ids=source, decoder_input_ids=answer, use_cache=False)
        elif kind == "gpt2":
            model(input_ids=torch.cat([source, answer], dim=1), use_cache=False)
        else:
            config = model.config
            config.num_labels = 13
            BertForSequenceClassification(config).eval()(input_ids=source)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("kind", SIZES)
def test_flops_of_a_pass_are_those_that_torch_counts(kind: str) -> None:
    reader = ModelProfile(shape_of_size(SIZES[kind]), n_outputs=13)
    settings = TrainSettings(epochs=1, batch_size=ROWS, learning_rate=1e-3)
    trained = training_load(reader, one_batch(kind), settings)
    assert trained.train_flops == pytest.approx(3 * counted_flops(kind), rel=1e-9)


def test_a_label_set_is_scored_over_sources_that_are_read_once() -> None:
    reader = ModelProfile(shape_of_size(SIZES["t5"]), 0, n_choices=3)
    alone = ModelProfile(shape_of_size(SIZES["t5"]), 0)
    nothing_said = Lengths([SOURCE] * ROWS, [0] * ROWS)
    settings = TeachSettings(batch_size=ROWS)
    chosen = answering_load(reader, one_batch("t5"), settings)
    read = answering_load(alone, nothing_said, settings)
    three_times = training_load(reader, one_batch("t5"), TrainSettings(epochs=1, batch_size=ROWS, learning_rate=1e-3))
    assert read.infer_flops < chosen.infer_flops < three_times.train_flops / 3
    assert chosen.infer_logits == 3 * ROWS * ANSWER * 1009
    assert chosen.words == 0


def test_writing_passes_through_the_decoder_once_a_token() -> None:
    reader = ModelProfile(shape_of_size(SIZES["t5"]), 0)
    written = answering_load(reader, one_batch("t5"), TeachSettings(batch_size=ROWS))
    beamed = answering_load(reader, one_batch("t5"), TeachSettings(batch_size=ROWS, beams=2))
    kept = answering_load(reader, one_batch("t5"), TeachSettings(batch_size=ROWS), keep=True)
    assert written.words == beamed.words == kept.words == ANSWER
    assert written.infer_calls == 3 + ANSWER * 5 * 1.5
    assert (written.kept, kept.kept) == (0, ROWS * ANSWER * 1009)
    assert beamed.infer_flops > written.infer_flops
    # One forward pass over the whole answer multiplies as much as its tokens one by one, but for the attention among them.
    whole = training_load(reader, one_batch("t5"), TrainSettings(epochs=1, batch_size=ROWS, learning_rate=1e-3))
    assert written.infer_flops == pytest.approx(whole.train_flops / 3, rel=0.2)


def test_batches_are_padded_as_the_loop_pads_them() -> None:
    draw = random.Random(0)
    lengths = Lengths([draw.randint(3, 97) for _ in range(4999)], [draw.randint(1, 23) for _ in range(4999)])
    settings = TrainSettings(epochs=3, batch_size=16, learning_rate=1e-3)
    shape = replace(shape_of_size(SIZES["bert"]), hidden_size=64)
    load = training_load(ModelProfile(shape, 13, per_token=True), lengths, settings)
    total = np.array(lengths.sources) + np.array(lengths.answers)
    batches = [training_batches(total, 16, 0, epoch) for epoch in range(3)]
    sources = np.array(lengths.sources)
    padded = sum(len(rows) * sources[rows].max() for rows in chain.from_iterable(batches))
    assert load.steps == sum(map(len, batches))
    assert load.train_logits / 13 == pytest.approx(padded, rel=0.02)
    assert load.train_logits / 13 > 3 * sources.sum()


def test_a_batch_fills_up_to_its_tokens() -> None:
    lengths = Lengths([2, 3, 5, 7, 11, 13, 17, 19], [0] * 8)
    reader = ModelProfile(shape_of_size(SIZES["bert"]), 13, per_token=True)
    # By hand: 2 3 5 7 (28), 11 13 (26), 17 (17), 19 (19).
    by_tokens = TrainSettings(epochs=1, batch_size=2, learning_rate=1e-3, batch_tokens=31)
    load = training_load(reader, lengths, by_tokens)
    assert (load.steps, load.train_logits) == (4, 13 * (4 * 7 + 2 * 13 + 17 + 19))
    # And at most three rows: 2 3 5, 7 11 (22), 13 (13), 17, 19.
    answered = answering_load(reader, lengths, TeachSettings(batch_size=3, batch_tokens=31))
    assert answered.infer_logits == 13 * (3 * 5 + 2 * 11 + 13 + 17 + 19)
    # A row that is longer than the limit is a batch of its own.
    single = answering_load(reader, lengths, TeachSettings(batch_size=3, batch_tokens=1))
    assert single.infer_calls == 8 * 3


def test_pieces_of_a_step_are_passes_of_their_own() -> None:
    lengths = Lengths([SOURCE] * 14, [0] * 14)
    reader = ModelProfile(shape_of_size(SIZES["bert"]), 13)
    whole = TrainSettings(epochs=2, batch_size=7, learning_rate=1e-3)
    one = training_load(reader, lengths, whole)
    pieces = training_load(reader, lengths, whole.changed({"micro_batch_size": 3}))
    assert (one.steps, one.updated) == (4, 4 * shape_of_size(SIZES["bert"]).n_total_parameters(13))
    assert (pieces.steps, pieces.train_calls) == (4, 3 * one.train_calls)
    assert pieces.train_flops == pytest.approx(one.train_flops)


def test_loads_add_up_and_a_model_is_made_ready_once() -> None:
    reader = ModelProfile(shape_of_size(SIZES["t5"]), 0)
    load = starting_load(reader, one_batch("t5"))
    assert load.read == ROWS * (SOURCE + ANSWER)
    assert (load.models, load.loaded) == (1, shape_of_size(SIZES["t5"]).n_total_parameters(0))
    assert load + load == load.times(2)
    assert astuple(Workload()) == (0.0,) * len(TERMS)


def test_seconds_are_the_sum_of_products() -> None:
    measured = profile(steps=2.0, train_flops=0.5, read=7.0)
    load = Workload(steps=3, train_flops=11, read=13, words=17)
    assert measured.seconds(load, "bf16") == measured.seconds(load, "bf16_weights") == 3 * 2 + 11 * 0.5 + 13 * 7
    with pytest.raises(KeyError):
        measured.seconds(load, "fp64")


def test_a_profile_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    assert load_profile(path) is None
    measured = profile(**{term: float(f"{1.25e-7 * (i + 1):.6e}") for i, term in enumerate(TERMS)})
    path.write_text(measured.to_toml(), encoding="utf-8")
    assert load_profile(path) == measured


def test_a_profile_of_a_machine_that_is_slow_in_bf16_is_of_float32() -> None:
    slow, fast = (
        profile(train_flops=50 / 2e10, infer_flops=50 / 2e10),
        profile(train_flops=1 / 2e10, infer_flops=1 / 2e10),
    )
    both = replace(slow, constants={"bf16": slow.constants["bf16"], "fp32": fast.constants["bf16"]}, bf16_ratio=0.02)
    assert (both.precision, replace(both, bf16_ratio=1.2).precision, slow.precision) == ("fp32", "bf16", "bf16")
    assert both.utilisation(train=True) == fast.utilisation(train=True) > 40 * slow.utilisation(train=True)


@pytest.mark.parametrize(
    "damage", [("steps = ", "stops = "), ("[seconds.bf16]", ""), ("threads = 3", ""), ("-11-21", "")]
)
def test_a_damaged_profile_is_one_line_that_names_the_way_out(tmp_path: Path, damage: tuple[str, str]) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(profile().to_toml().replace(*damage, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=r"machine\.toml .*`outlay machine calibrate ") as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)


def test_its_record_is_a_machine_that_takes_as_long(tmp_path: Path) -> None:
    measured = profile(train_flops=1 / 2e10, infer_flops=1 / 3e10)
    record = measured.as_machine("cpu")
    lines = [f"{key} = {value if isinstance(value, int) else repr(value)}" for key, value in record.items()]
    path = tmp_path / "mine.toml"
    path.write_text("[[machine]]\n" + "\n".join(lines).replace('"', "").replace("\\", "") + "\n", encoding="utf-8")
    machine = load_machines([path])["here"]
    # The charge counts no attention scores and the head for every token, which differ by little here.
    assert float(machine.utilisation_train) == pytest.approx(2e10 / 1e11, rel=0.1)
    assert float(machine.utilisation_infer) == pytest.approx(3e10 / 1e11, rel=0.1)


def test_the_solver_agrees_with_scipys() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        amounts, seconds = draw.lognormal(sigma=2, size=(23, 5)), draw.lognormal(size=23)
        mine = least_relative_squares(amounts, seconds)
        theirs = LinearRegression(positive=True, fit_intercept=False).fit(amounts / seconds[:, None], np.ones(23))
        np.testing.assert_allclose(mine, theirs.coef_, rtol=1e-6, atol=1e-9)


def test_constants_come_back_from_what_they_explain() -> None:
    draw = random.Random(0)
    true = {"steps": 0.013, "train_flops": 3e-12, "train_calls": 0.0007}
    loads = [
        Workload(steps=draw.randint(1, 9), train_flops=draw.uniform(1e9, 1e11), train_calls=draw.randint(2, 50))
        for _ in range(17)
    ]
    samples = [Sample(load, sum(value * getattr(load, term) for term, value in true.items())) for load in loads]
    found = fit_terms(samples, (*true, "words"))
    assert found == pytest.approx({**true, "words": 0.0})
