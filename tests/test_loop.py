"""The training loop against a plain one, and against its promises: exact resume, early stop, limits, best weights."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from outlay.errors import TrainingError
from outlay.settings import TrainSettings
from outlay.train import loop
from outlay.train.checkpoint import newest_checkpoint
from outlay.train.encode import Encoded, training_batches
from outlay.train.loop import Checkpoints, DevSet, Progress, fit, learning_rate_factor, predict_logits, step_seed
from tests.toys import Bag, CountingGauge, encoded_rows, toy

N_ROWS, BATCH, EPOCHS = 61, 8, 4
N_BATCHES = 8
"""Of an epoch; the last one has five rows."""
SETTINGS = TrainSettings(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.02, precision="fp32", seed=3)

Objective = Callable[[Tensor, Tensor], Tensor]


class Killed(Exception):
    """Stands for a kill: nothing in the loop may catch it."""


def objective_of(labels: Tensor, losses: list[float] | None = None) -> Objective:
    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels[rows])
        if losses is not None:
            losses.append(loss.item())
        return loss

    return objective


def dev_set(seed: int = 9, n_rows: int = 37) -> DevSet:
    encoded, labels = toy(n_rows, seed)
    return DevSet(encoded, lambda classes: 100 * float((classes == labels.numpy()).mean()))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_learns_a_separable_task() -> None:
    encoded, labels = toy(307, seed=0)
    model = Bag()
    unseen, unseen_labels = toy(211, seed=1)
    before = (predict_logits(model, unseen).argmax(-1) == unseen_labels).float().mean().item()
    settings = TrainSettings(epochs=12, batch_size=16, learning_rate=0.03, seed=1)
    progress = fit(model, encoded, objective_of(labels), settings, gauge=CountingGauge())
    after = (predict_logits(model, unseen).argmax(-1) == unseen_labels).float().mean().item()
    assert before < 0.6
    assert after > 0.95
    assert progress.stopped == "finished"
    assert progress.n_parameters == sum(p.numel() for p in model.parameters())
    assert [entry["epoch"] for entry in progress.history] == list(range(12))


@given(st.integers(1, 3000), st.floats(0, 0.99))
@hypothesis_settings(max_examples=200, deadline=None)
def test_learning_rate_is_up_to_one_then_down_to_zero(n_steps: int, warmup: float) -> None:
    factors = [learning_rate_factor(step, n_steps, warmup) for step in range(n_steps + 1)]
    n_warmup = min(n_steps, max(1, round(warmup * n_steps))) if warmup > 0 else 0
    for step in range(n_warmup):
        assert factors[step] == pytest.approx((step + 1) / n_warmup)
    for step in range(n_warmup, n_steps):
        assert factors[step] == pytest.approx(1 - (step - n_warmup) / (n_steps - n_warmup))
    assert max(factors) == 1.0
    assert all(0 < factor <= 1 for factor in factors[:-1])
    assert factors[-1] == 0.0


def test_a_learning_rate_schedule_done_by_hand() -> None:
    assert [learning_rate_factor(step, 8, 0.25) for step in range(9)] == pytest.approx(
        [1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
    )


def test_step_seeds_are_what_a_sha256_says_and_differ() -> None:
    digest = hashlib.sha256(b"3:17").hexdigest()
    assert step_seed(3, 17) == int(digest[:16], 16) // 2
    assert len({step_seed(seed, step) for seed in range(7) for step in range(101)}) == 707


def plain_training(model: nn.Module, encoded: Encoded, labels: Tensor, s: TrainSettings) -> tuple[list[float], int]:
    """What any PyTorch user would write; also how often the gradient was clipped."""
    rows_of = np.split(encoded.ids.astype(np.int64), encoded.offsets[1:-1])
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": s.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=s.learning_rate)
    n_steps = math.ceil(len(rows_of) / s.batch_size) * s.epochs
    n_warmup = round(s.warmup_fraction * n_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: (i + 1) / n_warmup if i < n_warmup else (n_steps - i) / (n_steps - n_warmup)
    )
    losses, n_clipped = [], 0
    model.train()
    for epoch in range(s.epochs):
        for rows in training_batches(encoded.lengths, s.batch_size, s.seed, epoch):
            torch.manual_seed(step_seed(s.seed, len(losses)))
            ids = nn.utils.rnn.pad_sequence([torch.from_numpy(rows_of[i]) for i in rows], batch_first=True)
            loss = F.cross_entropy(model(ids, torch.zeros_like(ids), (ids != 0).long()).logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            n_clipped += int(nn.utils.clip_grad_norm_(model.parameters(), s.max_grad_norm) > s.max_grad_norm)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses, n_clipped


def test_the_loss_curve_is_that_of_a_plain_loop() -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    settings = SETTINGS.changed({"weight_decay": 0.3, "max_grad_norm": 1.5, "warmup_fraction": 0.2})
    ours, theirs, losses = Bag(seed=5, dropout=0.2), Bag(seed=5, dropout=0.2), []
    progress = fit(ours, encoded, objective_of(labels, losses), settings, gauge=CountingGauge())
    expected, n_clipped = plain_training(theirs, encoded, labels, settings)
    assert len(expected) == N_BATCHES * EPOCHS == progress.step
    assert losses == pytest.approx(expected, abs=1e-6)
    assert 0 < n_clipped < len(expected)  # both sides of the clipping were taken
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-5)
    by_epoch = np.array(expected).reshape(EPOCHS, N_BATCHES).mean(1)
    assert [entry["loss"] for entry in progress.history] == pytest.approx(by_epoch.tolist(), abs=2e-6)


def test_a_training_is_a_function_of_its_seed_alone() -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    ended = []
    for seed, noise in [(3, 0), (3, 1), (4, 0)]:
        model = Bag(seed=5, dropout=0.3)
        torch.manual_seed(noise)
        random.seed(noise)
        fit(model, encoded, objective_of(labels), SETTINGS.changed({"seed": seed}), gauge=CountingGauge())
        ended.append(weights(model))
    assert same(ended[0], ended[1])
    assert not same(ended[0], ended[2])


def test_every_real_token_is_counted_once_and_padding_never() -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    gauge, dev = CountingGauge(), dev_set()
    seen: list[int] = []
    progress = fit(
        Bag(), encoded, objective_of(labels), SETTINGS, gauge=gauge, dev=dev, on_progress=lambda p, n: seen.append(n)
    )
    assert gauge.n_trained == progress.n_tokens_trained == EPOCHS * encoded.n_tokens
    assert gauge.n_inferred == progress.n_tokens_inferred == EPOCHS * dev.encoded.n_tokens
    assert seen == [N_BATCHES * EPOCHS] * (N_BATCHES * EPOCHS)


# Exact resume.


class KillingGauge(CountingGauge):
    """Kills at the given call of one of its methods, counted from 1 in this attempt."""

    def __init__(self, method: str = "", at: int = 0) -> None:
        super().__init__()
        self._method, self._at, self._n_calls = method, at, 0

    def _maybe_kill(self, method: str) -> None:
        if method == self._method:
            self._n_calls += 1
            if self._n_calls == self._at:
                raise Killed

    def may_train(self, n_tokens: int) -> bool:
        self._maybe_kill("may_train")
        return super().may_train(n_tokens)

    def inferred(self, n_tokens: int) -> None:
        super().inferred(n_tokens)
        self._maybe_kill("inferred")


def attempt(folder: Path | None, gauge: CountingGauge, kill_at_step: int = 0) -> tuple[dict[str, Tensor], Progress]:
    """One attempt at the same training, from whatever ``folder`` keeps."""
    encoded, labels = toy(N_ROWS, seed=0)
    model = Bag(seed=5, dropout=0.3)

    def on_progress(progress: Progress, n_steps: int) -> None:
        if progress.step == kill_at_step:
            raise Killed

    checkpoints = None if folder is None else Checkpoints(folder, every_seconds=0)
    progress = fit(
        model,
        encoded,
        objective_of(labels),
        SETTINGS,
        gauge=gauge,
        dev=dev_set(),
        checkpoints=checkpoints,
        on_progress=on_progress,
    )
    return weights(model), progress


@pytest.fixture(scope="module")
def unbroken() -> tuple[dict[str, Tensor], Progress, dict[str, Any]]:
    gauge = CountingGauge()
    ended, progress = attempt(None, gauge)
    assert progress.best_epoch is not None
    return ended, progress, gauge.state()


def assert_equal_to(unbroken: Any, ended: dict[str, Tensor], progress: Progress, gauge: CountingGauge) -> None:
    assert same(ended, unbroken[0])
    assert asdict(progress) == asdict(unbroken[1])
    assert gauge.state() == unbroken[2]


# In the first epoch, in the middle of one, at an epoch's last batch, right after it, at the very end.
@pytest.mark.parametrize("step", [1, 2, 7, 8, 9, 13, 16, 17, 27, 31, 32])
def test_killed_after_a_step_and_resumed_ends_bit_for_bit_alike(unbroken: Any, tmp_path: Path, step: int) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, CountingGauge(), kill_at_step=step)
    gauge = CountingGauge()
    assert_equal_to(unbroken, *attempt(tmp_path, gauge), gauge)
    # the killed step is taken again, none before it
    assert gauge.n_batches == N_BATCHES * EPOCHS - (step - 1)


@pytest.mark.parametrize("step", [2, 8, 9, 10, 17, 25, 32])
def test_killed_before_a_step_and_resumed_ends_bit_for_bit_alike(unbroken: Any, tmp_path: Path, step: int) -> None:
    """Step 9 is the first after an epoch's end: the evaluation before it is kept, not done again."""
    with pytest.raises(Killed):
        attempt(tmp_path, KillingGauge("may_train", step))
    gauge = CountingGauge()
    assert_equal_to(unbroken, *attempt(tmp_path, gauge), gauge)
    assert gauge.n_batches == N_BATCHES * EPOCHS - (step - 1)


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_killed_while_evaluating_and_resumed_ends_bit_for_bit_alike(unbroken: Any, tmp_path: Path, epoch: int) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, KillingGauge("inferred", epoch))
    gauge = CountingGauge()
    assert_equal_to(unbroken, *attempt(tmp_path, gauge), gauge)


@given(st.lists(st.integers(1, N_BATCHES * EPOCHS), min_size=1, max_size=4).map(sorted))
@hypothesis_settings(max_examples=6, deadline=None, derandomize=True)
def test_killed_again_and_again_ends_bit_for_bit_alike(unbroken: Any, steps: list[int]) -> None:
    with TemporaryDirectory() as folder:
        for step in steps:
            with pytest.raises(Killed):
                attempt(Path(folder), CountingGauge(), kill_at_step=step)
        gauge = CountingGauge()
        assert_equal_to(unbroken, *attempt(Path(folder), gauge), gauge)


@pytest.mark.parametrize("part", ["model", "best", "optimizer", "state", "rename"])
def test_killed_while_saving_leaves_the_checkpoint_before(
    unbroken: Any, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half-written one stays as a ``.tmp`` folder, which nobody reads."""
    n_saves = 0
    real_save, real_rename, real_write = loop.save_file, Path.rename, Path.write_text

    def die(name: str) -> None:
        nonlocal n_saves
        n_saves += name == part
        if name == part and n_saves == 11:
            raise Killed

    def save_file(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        die(path.stem)
        real_save(tensors, path)

    def write_text(path: Path, *args: Any, **kwargs: Any) -> int:
        die(path.stem)
        return real_write(path, *args, **kwargs)

    def rename(path: Path, target: Path) -> Path:
        die("rename")
        return real_rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_file", save_file)
        patch.setattr(Path, "write_text", write_text)
        patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            attempt(tmp_path, CountingGauge())
    assert len([path for path in tmp_path.iterdir() if path.suffix == ".tmp"]) == 1
    whole = [path.name for path in tmp_path.iterdir() if path.suffix != ".tmp"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert [newest.name] == whole
    gauge = CountingGauge()
    assert_equal_to(unbroken, *attempt(tmp_path, gauge), gauge)
    assert gauge.n_batches == N_BATCHES * EPOCHS - int(newest.name.removeprefix("step-"))


def test_the_newest_checkpoint_is_the_one_with_the_most_steps(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "never made") is None
    (tmp_path / "step-99.tmp").mkdir()
    assert newest_checkpoint(tmp_path) is None
    for name in ("step-9", "step-10", "step-2"):
        (tmp_path / name).mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-10"


def test_checkpoints_hold_safetensors_and_json_only_and_one_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, CountingGauge(), kill_at_step=20)
    (folder,) = tmp_path.iterdir()
    assert folder.name == "step-19"
    tensors = {f"{name}.safetensors" for name in ("model", "best", "optimizer")}
    assert {path.name for path in folder.iterdir()} == {*tensors, "state.json"}


def test_no_checkpoint_is_written_before_its_time(tmp_path: Path) -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    checkpoints = Checkpoints(tmp_path / "checkpoints", every_seconds=3600)
    fit(Bag(), encoded, objective_of(labels), SETTINGS, gauge=CountingGauge(), checkpoints=checkpoints)
    assert not (tmp_path / "checkpoints").exists()


# Which weights are left.


def scripted(model: nn.Module, scores: list[float], seen: list[dict[str, Tensor]]) -> DevSet:
    """A dev set that scores what the script says, and notes the weights it was asked about."""
    encoded, _ = toy(5, seed=2)

    def score(classes: np.ndarray) -> float:
        assert classes.shape == (5,)
        seen.append(weights(model))
        return scores[len(seen) - 1]

    return DevSet(encoded, score)


@pytest.mark.parametrize(
    ("scores", "patience", "n_epochs", "best", "stopped"),
    [
        ([1.0, 3.0, 2.0, 2.0, 9.0, 9.0], 2, 4, 1, "early"),
        ([5.0, 1.0, 9.0, 9.0, 9.0, 9.0], 1, 2, 0, "early"),
        ([1.0, 3.0, 2.0, 4.0, 3.0, 3.0], 2, 6, 3, "finished"),
        ([1.0, 3.0, 2.0, 2.0, 3.0, 1.0], None, 6, 1, "finished"),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 3, 4, 0, "early"),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.1], None, 6, 5, "finished"),
    ],
)
def test_early_stop_and_the_best_epochs_weights(
    scores: list[float], patience: int | None, n_epochs: int, best: int, stopped: str
) -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    model, seen = Bag(seed=5), []
    settings = SETTINGS.changed({"epochs": 6, "patience": patience})
    dev = scripted(model, scores, seen)
    progress = fit(model, encoded, objective_of(labels), settings, gauge=CountingGauge(), dev=dev)
    assert (len(seen), progress.stopped) == (n_epochs, stopped)
    assert (progress.best_epoch, progress.best_score) == (best, scores[best])
    assert [entry["dev"] for entry in progress.history] == scores[:n_epochs]
    assert [entry["step"] for entry in progress.history] == [N_BATCHES * (i + 1) for i in range(n_epochs)]
    assert [same(weights(model), epoch) for epoch in seen] == [i == best for i in range(n_epochs)]


def test_without_dev_the_last_weights_are_left() -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    model, last = Bag(seed=5), {}

    def on_progress(progress: Progress, n_steps: int) -> None:
        last.update(weights(model))

    settings = SETTINGS.changed({"patience": 1})
    progress = fit(model, encoded, objective_of(labels), settings, gauge=CountingGauge(), on_progress=on_progress)
    assert (progress.step, progress.stopped) == (N_BATCHES * EPOCHS, "finished")
    assert (progress.best_epoch, progress.best_score) == (None, None)
    assert [entry["dev"] for entry in progress.history] == [None] * EPOCHS
    assert same(weights(model), last)


# Limits and errors.


@pytest.mark.parametrize("share", [0.3, 1.5, 2.9])
def test_a_refusing_gauge_stops_the_training_and_evaluates_what_there_is(share: float) -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    limit = int(share * encoded.n_tokens)
    gauge, model, seen = CountingGauge(limit), Bag(seed=5), []
    dev = scripted(model, [4.0, 1.0, 7.0], seen)
    progress = fit(model, encoded, objective_of(labels), SETTINGS, gauge=gauge, dev=dev)
    n_epochs = math.ceil(share)
    best = {1: 0, 2: 0, 3: 2}[n_epochs]
    assert progress.stopped == "limit"
    assert limit - BATCH * int(encoded.lengths.max()) < gauge.n_trained == progress.n_tokens_trained <= limit
    assert len(seen) == len(progress.history) == n_epochs
    assert progress.history[-1]["step"] == progress.step == gauge.n_batches
    assert progress.best_epoch == best
    assert same(weights(model), seen[best])


def test_a_gauge_that_refuses_at_an_epochs_end_evaluates_once_only() -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    gauge, model, seen = CountingGauge(2 * encoded.n_tokens), Bag(seed=5), []
    dev = scripted(model, [4.0, 1.0], seen)
    progress = fit(model, encoded, objective_of(labels), SETTINGS, gauge=gauge, dev=dev)
    assert (progress.stopped, progress.step, len(progress.history)) == ("limit", 2 * N_BATCHES, 2)


def test_a_gauge_that_refuses_the_first_batch_is_an_error_and_no_model() -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    model = Bag(seed=5)
    with pytest.raises(TrainingError, match="not one batch"):
        fit(model, encoded, objective_of(labels), SETTINGS, gauge=CountingGauge(0), dev=dev_set())
    assert same(weights(model), weights(Bag(seed=5)))


def test_no_rows_are_an_error() -> None:
    with pytest.raises(TrainingError, match="0 rows") as error:
        fit(Bag(), encoded_rows([]), objective_of(torch.zeros(0)), SETTINGS, gauge=CountingGauge())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error(bad: float) -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    gauge, n_calls = CountingGauge(), 0

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        return F.cross_entropy(logits, labels[rows]) * (bad if n_calls == 5 else 1.0)

    with pytest.raises(TrainingError, match=rf"{bad} at step 4 of 32; lower the learning rate \(0\.02\)") as error:
        fit(Bag(), encoded, objective, SETTINGS, gauge=gauge)
    assert "\n" not in str(error.value)
    assert gauge.n_batches == 4


# Inference.


def test_predictions_come_in_row_order_whatever_the_batches() -> None:
    encoded, _ = toy(2 * loop.INFERENCE_BATCH + 3, seed=4)
    model, gauge = Bag(dropout=0.5), CountingGauge()
    model.train()
    logits = predict_logits(model, encoded, precision="fp32", gauge=gauge)
    assert model.training
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((131, 3), torch.float32, False)
    assert gauge.n_inferred == encoded.n_tokens
    rows = [encoded.ids[a:b].tolist() for a, b in itertools.pairwise(encoded.offsets)]
    alone = [predict_logits(model, encoded_rows([row]), precision="fp32") for row in rows]
    assert torch.allclose(logits, torch.cat(alone), atol=1e-5)
    assert torch.equal(logits, predict_logits(model, encoded, precision="fp32"))


def test_no_rows_have_no_predictions() -> None:
    assert len(predict_logits(Bag(), encoded_rows([]))) == 0


def test_bf16_computes_in_bfloat16_and_loses_in_float32() -> None:
    encoded, labels = toy(N_ROWS, seed=0)
    computed, handed = [], []

    class Spy(Bag):
        def forward(self, *args: Tensor, **batch: Tensor) -> Any:
            out = super().forward(*args, **batch)
            computed.append(out.logits.dtype)
            return out

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        handed.append(logits.dtype)
        return F.cross_entropy(logits, labels[rows])

    model = Spy()
    for precision in ("bf16", "fp32"):
        fit(model, encoded, objective, SETTINGS.changed({"epochs": 1, "precision": precision}), gauge=CountingGauge())
    assert computed == [torch.bfloat16] * N_BATCHES + [torch.float32] * N_BATCHES
    assert set(handed) == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
