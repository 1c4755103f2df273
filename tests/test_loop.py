"""The training loop against a plain one, and against its promises: exact resume, early stop, limits, best weights."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
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

from outlay.errors import TrainingError, UsageError
from outlay.models.seeds import step_seed
from outlay.models.tokenization import Encoded
from outlay.settings import TrainSettings
from outlay.storage.checkpoint_files import newest_checkpoint
from outlay.train import checkpoints as checkpoints_module
from outlay.train.batching import training_batches
from outlay.train.checkpoints import Checkpoints
from outlay.train.distributed import current_process
from outlay.train.loop import DevScore, fit
from outlay.train.losses import LossSum
from outlay.train.progress import TrainContext, TrainProgress
from outlay.train.schedule import learning_rate_factor, micro_batch_seed, split_micro_batches
from outlay.train.trackers import Tracker
from tests.toys import Bag, BagLesson, CountingMeter, Tagger, TokenLesson, classes_of, encoded_rows, toy

N_ROWS, BATCH, EPOCHS = 61, 8, 4
N_BATCHES = 8
"""Of an epoch; the last one has five rows."""
SETTINGS = TrainSettings(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.02, precision="fp32", seed=3)


class Killed(Exception):
    """Stands for a kill: nothing in the loop may catch it."""


def lesson_of(n_rows: int = N_ROWS, seed: int = 0) -> BagLesson:
    return BagLesson(*toy(n_rows, seed))


def dev_set(seed: int = 9, n_rows: int = 37) -> DevScore:
    encoded, labels = toy(n_rows, seed)
    return lambda model: (100 * float((classes_of(model, encoded) == labels.numpy()).mean()), encoded.n_tokens)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_learns_a_separable_task() -> None:
    model = Bag()
    unseen, unseen_labels = toy(211, seed=1)
    before = (classes_of(model, unseen) == unseen_labels.numpy()).mean()
    settings = TrainSettings(epochs=12, batch_size=16, learning_rate=0.03, seed=1)
    progress = fit(model, lesson_of(307), settings, TrainContext(CountingMeter()))
    after = (classes_of(model, unseen) == unseen_labels.numpy()).mean()
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
    ours, theirs, lesson = Bag(seed=5, dropout=0.2), Bag(seed=5, dropout=0.2), BagLesson(encoded, labels)
    progress = fit(ours, lesson, settings, TrainContext(CountingMeter()))
    expected, n_clipped = plain_training(theirs, encoded, labels, settings)
    assert len(expected) == N_BATCHES * EPOCHS == progress.step
    assert lesson.losses == pytest.approx(expected, abs=1e-6)
    assert 0 < n_clipped < len(expected)  # both sides of the clipping were taken
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-5)
    by_epoch = np.array(expected).reshape(EPOCHS, N_BATCHES).mean(1)
    assert [entry["loss"] for entry in progress.history] == pytest.approx(by_epoch.tolist(), abs=2e-6)


def test_a_training_is_a_function_of_its_seed_alone() -> None:
    ended = []
    for seed, noise in [(3, 0), (3, 1), (4, 0)]:
        model = Bag(seed=5, dropout=0.3)
        torch.manual_seed(noise)
        random.seed(noise)
        fit(model, lesson_of(), SETTINGS.changed({"seed": seed}), TrainContext(CountingMeter()))
        ended.append(weights(model))
    assert same(ended[0], ended[1])
    assert not same(ended[0], ended[2])


def test_every_real_token_is_counted_once_and_padding_never() -> None:
    lesson, meter = lesson_of(), CountingMeter()
    seen: list[int] = []
    progress = fit(Bag(), lesson, SETTINGS, TrainContext(meter, on_progress=lambda p, n: seen.append(n)), dev=dev_set())
    assert meter.n_trained == progress.n_tokens_trained == EPOCHS * lesson.encoded.n_tokens
    assert meter.n_inferred == progress.n_tokens_inferred == EPOCHS * toy(37, 9)[0].n_tokens
    assert seen == [N_BATCHES * EPOCHS] * (N_BATCHES * EPOCHS)


# Exact resume.


class KillingMeter(CountingMeter):
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


def attempt(
    folder: Path | None, meter: CountingMeter, kill_at_step: int = 0, settings: TrainSettings = SETTINGS
) -> tuple[dict[str, Tensor], TrainProgress]:
    """One attempt at the same training, from whatever ``folder`` keeps."""
    model = Bag(seed=5, dropout=0.3)

    def on_progress(progress: TrainProgress, n_steps: int) -> None:
        if progress.step == kill_at_step:
            raise Killed

    checkpoints = None if folder is None else Checkpoints(folder, every_seconds=0)
    progress = fit(
        model,
        lesson_of(),
        settings,
        TrainContext(meter, on_progress=on_progress),
        dev=dev_set(),
        checkpoints=checkpoints,
    )
    return weights(model), progress


@pytest.fixture(scope="module")
def unbroken() -> tuple[dict[str, Tensor], TrainProgress, dict[str, Any]]:
    meter = CountingMeter()
    ended, progress = attempt(None, meter)
    assert progress.best_epoch is not None
    return ended, progress, meter.state()


def assert_equal_to(unbroken: Any, ended: dict[str, Tensor], progress: TrainProgress, meter: CountingMeter) -> None:
    assert same(ended, unbroken[0])
    assert asdict(progress) == asdict(unbroken[1])
    assert meter.state() == unbroken[2]


def slow(*cases: int) -> list[Any]:
    """More of the same, for `make test-slow`."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


# In the first epoch, in the middle of one, at an epoch's last batch, right after it, at the very end.
@pytest.mark.parametrize("step", [1, 8, 9, 13, 32, *slow(2, 7, 16, 17, 27, 31)])
def test_killed_after_a_step_and_resumed_ends_bit_for_bit_alike(unbroken: Any, tmp_path: Path, step: int) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, CountingMeter(), kill_at_step=step)
    meter = CountingMeter()
    assert_equal_to(unbroken, *attempt(tmp_path, meter), meter)
    # the killed step is taken again, none before it
    assert meter.n_batches == N_BATCHES * EPOCHS - (step - 1)


@pytest.mark.parametrize("step", [2, 8, 17, 32, *slow(9, 10, 25)])
def test_killed_before_a_step_and_resumed_ends_bit_for_bit_alike(unbroken: Any, tmp_path: Path, step: int) -> None:
    """Step 9 is the first after an epoch's end: the evaluation before it is kept, not done again."""
    with pytest.raises(Killed):
        attempt(tmp_path, KillingMeter("may_train", step))
    meter = CountingMeter()
    assert_equal_to(unbroken, *attempt(tmp_path, meter), meter)
    assert meter.n_batches == N_BATCHES * EPOCHS - (step - 1)


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_killed_while_evaluating_and_resumed_ends_bit_for_bit_alike(unbroken: Any, tmp_path: Path, epoch: int) -> None:
    with pytest.raises(Killed):
        attempt(tmp_path, KillingMeter("inferred", epoch))
    meter = CountingMeter()
    assert_equal_to(unbroken, *attempt(tmp_path, meter), meter)


KILLS = st.lists(st.integers(1, N_BATCHES * EPOCHS), min_size=1, max_size=4).map(sorted)


@given(KILLS)
@hypothesis_settings(max_examples=3, deadline=None, derandomize=True)
def test_killed_again_and_again_ends_bit_for_bit_alike(unbroken: Any, steps: list[int]) -> None:
    check_kills(unbroken, steps)


@pytest.mark.slow
@given(KILLS)
@hypothesis_settings(max_examples=30, deadline=None, derandomize=True)
def test_killed_again_and_again_in_many_ways_ends_bit_for_bit_alike(unbroken: Any, steps: list[int]) -> None:
    check_kills(unbroken, steps)


def check_kills(unbroken: Any, steps: list[int]) -> None:
    with TemporaryDirectory() as folder:
        for step in steps:
            with pytest.raises(Killed):
                attempt(Path(folder), CountingMeter(), kill_at_step=step)
        meter = CountingMeter()
        assert_equal_to(unbroken, *attempt(Path(folder), meter), meter)


@pytest.mark.parametrize("part", ["model", "optimizer", "best", "state", "rename"])
def test_killed_while_saving_leaves_the_checkpoint_before(
    unbroken: Any, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half-written one stays as a ``.tmp`` folder, which nobody reads."""
    n_saves = 0
    real_save, real_rename, real_write = checkpoints_module.save_file, Path.rename, Path.write_text

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
        patch.setattr(checkpoints_module, "save_file", save_file)
        patch.setattr(Path, "write_text", write_text)
        patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            attempt(tmp_path, CountingMeter())
    assert len([path for path in tmp_path.iterdir() if path.suffix == ".tmp"]) == 1
    whole = [path.name for path in tmp_path.iterdir() if path.suffix != ".tmp"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert [newest.name] == whole
    meter = CountingMeter()
    assert_equal_to(unbroken, *attempt(tmp_path, meter), meter)
    assert meter.n_batches == N_BATCHES * EPOCHS - int(newest.name.removeprefix("step-"))


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
        attempt(tmp_path, CountingMeter(), kill_at_step=20)
    (folder,) = tmp_path.iterdir()
    assert folder.name == "step-19"
    tensors = {f"{name}.safetensors" for name in ("model", "best", "optimizer")}
    assert {path.name for path in folder.iterdir()} == {*tensors, "state.json"}


def test_no_checkpoint_is_written_before_its_time(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", every_seconds=3600)
    fit(Bag(), lesson_of(), SETTINGS, TrainContext(CountingMeter()), checkpoints=checkpoints)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("step", [5, 13, *slow(3, 8, 30)])
def test_killed_with_evaluations_in_mid_epoch_and_pieces_ends_bit_for_bit_alike(
    tmp_path: Path, step: int, optimizer: str
) -> None:
    settings = SETTINGS.changed({"eval_steps": 5, "micro_batch_size": 3, "optimizer": optimizer})
    whole_meter, meter = CountingMeter(), CountingMeter()
    whole = attempt(None, whole_meter, settings=settings)
    assert [entry["step"] for entry in whole[1].history] == [5, 10, 15, 20, 25, 30, 32]
    with pytest.raises(Killed):
        attempt(tmp_path, CountingMeter(), kill_at_step=step, settings=settings)
    assert_equal_to((*whole, whole_meter.state()), *attempt(tmp_path, meter, settings=settings), meter)
    assert meter.n_batches == N_BATCHES * EPOCHS - (step - 1)


def test_checkpoints_can_be_written_by_steps(tmp_path: Path) -> None:
    newest: list[Path | None] = []
    context = TrainContext(CountingMeter(), on_progress=lambda progress, n: newest.append(newest_checkpoint(tmp_path)))
    checkpoints = Checkpoints(tmp_path, every_seconds=3600, every_steps=7)
    fit(Bag(), lesson_of(), SETTINGS, context, checkpoints=checkpoints)
    names = dict.fromkeys(path.name for path in newest if path is not None)
    assert list(names) == ["step-7", "step-14", "step-21", "step-28"]


# Which weights are left.


def scripted(scores: list[float], seen: list[dict[str, Tensor]]) -> DevScore:
    """A dev set that scores what the script says, and notes the weights it was asked about."""

    def score(model: nn.Module) -> tuple[float, int]:
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(weights(model))
        return scores[len(seen) - 1], 5

    return score


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
    model, seen = Bag(seed=5), []
    settings = SETTINGS.changed({"epochs": 6, "patience": patience})
    dev = scripted(scores, seen)
    progress = fit(model, lesson_of(), settings, TrainContext(CountingMeter()), dev=dev)
    assert (len(seen), progress.stopped) == (n_epochs, stopped)
    assert (progress.best_epoch, progress.best_score) == (best, scores[best])
    assert [entry["dev"] for entry in progress.history] == scores[:n_epochs]
    assert [entry["step"] for entry in progress.history] == [N_BATCHES * (i + 1) for i in range(n_epochs)]
    assert [same(weights(model), epoch) for epoch in seen] == [i == best for i in range(n_epochs)]


def test_patience_counts_evaluations_and_the_best_one_is_kept() -> None:
    model, seen = Bag(seed=5), []
    settings = SETTINGS.changed({"patience": 2, "eval_steps": 3})
    progress = fit(
        model, lesson_of(), settings, TrainContext(CountingMeter()), dev=scripted([1.0, 2.0, 5.0, 3.0, 5.0], seen)
    )
    assert [entry["step"] for entry in progress.history] == [3, 6, 9, 12, 15]
    assert [entry["epoch"] for entry in progress.history] == [0, 0, 1, 1, 1]
    assert (progress.stopped, progress.best_score, progress.best_evaluation, progress.best_epoch) == (
        "early",
        5.0,
        2,
        1,
    )
    assert [same(weights(model), each) for each in seen] == [False, False, True, False, False]


def test_without_dev_the_last_weights_are_left() -> None:
    model, last = Bag(seed=5), {}

    def on_progress(progress: TrainProgress, n_steps: int) -> None:
        last.update(weights(model))

    settings = SETTINGS.changed({"patience": 1})
    progress = fit(model, lesson_of(), settings, TrainContext(CountingMeter(), on_progress=on_progress))
    assert (progress.step, progress.stopped) == (N_BATCHES * EPOCHS, "finished")
    assert (progress.best_epoch, progress.best_score) == (None, None)
    assert [entry["dev"] for entry in progress.history] == [None] * EPOCHS
    assert same(weights(model), last)


# Limits and errors.


@pytest.mark.parametrize("share", [0.3, 1.5, 2.9])
def test_a_refusing_meter_stops_the_training_and_evaluates_what_there_is(share: float) -> None:
    encoded, _ = toy(N_ROWS, seed=0)
    limit = int(share * encoded.n_tokens)
    meter, model, seen = CountingMeter(limit), Bag(seed=5), []
    dev = scripted([4.0, 1.0, 7.0], seen)
    progress = fit(model, lesson_of(), SETTINGS, TrainContext(meter), dev=dev)
    n_epochs = math.ceil(share)
    best = {1: 0, 2: 0, 3: 2}[n_epochs]
    assert progress.stopped == "limit"
    assert limit - BATCH * int(encoded.lengths.max()) < meter.n_trained == progress.n_tokens_trained <= limit
    assert len(seen) == len(progress.history) == n_epochs
    assert progress.history[-1]["step"] == progress.step == meter.n_batches
    assert progress.best_epoch == best
    assert same(weights(model), seen[best])


def test_a_meter_that_refuses_at_an_epochs_end_evaluates_once_only() -> None:
    encoded, _ = toy(N_ROWS, seed=0)
    meter, model, seen = CountingMeter(2 * encoded.n_tokens), Bag(seed=5), []
    dev = scripted([4.0, 1.0], seen)
    progress = fit(model, lesson_of(), SETTINGS, TrainContext(meter), dev=dev)
    assert (progress.stopped, progress.step, len(progress.history)) == ("limit", 2 * N_BATCHES, 2)


def test_a_meter_that_refuses_the_first_batch_is_an_error_and_no_model() -> None:
    model = Bag(seed=5)
    with pytest.raises(TrainingError, match="not one batch"):
        fit(model, lesson_of(), SETTINGS, TrainContext(CountingMeter(0)), dev=dev_set())
    assert same(weights(model), weights(Bag(seed=5)))


def test_no_rows_are_an_error() -> None:
    with pytest.raises(TrainingError, match="0 rows") as error:
        fit(Bag(), BagLesson(encoded_rows([]), torch.zeros(0)), SETTINGS, TrainContext(CountingMeter()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error(bad: float) -> None:
    meter, model = CountingMeter(), Bag()

    class Bad(BagLesson):
        def loss(self, model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> LossSum:
            right = super().loss(model, batch)
            return LossSum(right.total * (bad if len(self.losses) == 5 else 1.0), right.n)

    with pytest.raises(TrainingError, match=rf"\b{bad} at step 4 of 32\b.*learning rate.*0\.02") as error:
        fit(model, Bad(*toy(N_ROWS, seed=0)), SETTINGS, TrainContext(meter))
    assert "\n" not in str(error.value)
    assert meter.n_batches == 4
    assert all(torch.isfinite(p).all() for p in model.parameters())  # the bad step was not taken


def test_bf16_computes_in_bfloat16_and_keeps_weights_in_float32() -> None:
    computed = []

    class Spy(Bag):
        def forward(self, *args: Tensor, **batch: Tensor) -> Any:
            out = super().forward(*args, **batch)
            computed.append(out.logits.dtype)
            return out

    model = Spy()
    for precision in ("bf16", "fp32"):
        fit(model, lesson_of(), SETTINGS.changed({"epochs": 1, "precision": precision}), TrainContext(CountingMeter()))
    assert computed == [torch.bfloat16] * N_BATCHES + [torch.float32] * N_BATCHES
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# Steps in pieces.


@given(st.integers(1, 67), st.integers(1, 5), st.none() | st.integers(1, 9))
@hypothesis_settings(max_examples=200, deadline=None)
def test_a_step_is_dealt_so_that_every_row_is_taken_once(n_rows: int, n_processes: int, micro: int | None) -> None:
    rows = np.random.default_rng(0).permutation(1000)[:n_rows].astype(np.int64)
    dealt = [split_micro_batches(rows, rank, n_processes, micro) for rank in range(n_processes)]
    assert sorted(int(row) for pieces in dealt for piece in pieces for row in piece) == sorted(rows.tolist())
    assert len({len(pieces) for pieces in dealt}) == 1  # shards need equal numbers of passes
    sizes = [len(piece) for pieces in dealt for piece in pieces]
    assert max(sizes) <= (micro or n_rows)
    per_process = [sum(len(piece) for piece in pieces) for pieces in dealt]
    assert max(per_process) - min(per_process) <= 1
    if n_processes == 1 and micro is None:
        assert np.array_equal(dealt[0][0], rows)


def test_pieces_have_their_own_seeds_and_the_first_is_the_steps() -> None:
    assert micro_batch_seed(3, 17, 0, 0) == step_seed(3, 17)
    assert (
        len({micro_batch_seed(3, step, rank, piece) for step in range(5) for rank in range(3) for piece in range(7)})
        == 105
    )


@pytest.mark.parametrize("micro", [1, 3, 8, 100])
def test_a_step_in_pieces_is_the_step_at_once_however_many_positions_the_rows_have(micro: int) -> None:
    """The mean is over all positions of the step: not the mean of the pieces' means."""
    histories, ended = [], []
    for size in (None, micro):
        model = Tagger(seed=5)
        lesson = TokenLesson(*toy(N_ROWS, seed=0))
        progress = fit(model, lesson, SETTINGS.changed({"micro_batch_size": size}), TrainContext(CountingMeter()))
        histories.append([entry["loss"] for entry in progress.history])
        ended.append(weights(model))
    assert histories[1] == pytest.approx(histories[0], abs=3e-6)
    assert histories[0][0] > 1.1 * histories[0][-1]
    for name, tensor in ended[0].items():
        assert torch.allclose(ended[1][name], tensor, atol=1e-5)


def test_a_gradient_is_that_of_the_mean_over_positions() -> None:
    """One step of plain gradient descent: the change of the weights says what the gradient was."""
    model, reference, lesson = Tagger(seed=5), Tagger(seed=5), TokenLesson(*toy(7, seed=0))
    once = lesson.loss(reference, lesson.batch(np.arange(7)))
    (once.total / once.n).backward()
    norm = float(torch.stack([p.grad.norm() for p in reference.parameters() if p.grad is not None]).norm())
    place = current_process()
    for rows in split_micro_batches(np.arange(7), 0, 1, 2):
        (lesson.loss(model, lesson.batch(rows)).total / 7).backward()
    place.add_gradients(model.parameters(), 7 / float(once.n))
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6 * norm)


class TwiceComputed(Tagger):
    """Has the two methods `transformers` models have, and notes their calls."""

    supports_gradient_checkpointing = True

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[object] = []

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, bool]) -> None:
        self.calls.append(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.calls.append("off")


def test_gradient_checkpointing_is_on_while_training_only_and_refused_where_a_model_cannot() -> None:
    settings = SETTINGS.changed({"gradient_checkpointing": True, "epochs": 1})
    model = TwiceComputed()
    fit(model, TokenLesson(*toy(N_ROWS, seed=0)), settings, TrainContext(CountingMeter()))
    assert model.calls == [{"use_reentrant": False}, "off"]
    with pytest.raises(UsageError, match=r"gradient_checkpointing .*\bTagger\b.*off"):
        fit(Tagger(), TokenLesson(*toy(N_ROWS, seed=0)), settings, TrainContext(CountingMeter()))


def test_the_tracker_is_told_of_every_step_and_evaluation() -> None:
    told: list[tuple[int, dict[str, float]]] = []

    class Told(Tracker):
        def log(self, figures: Mapping[str, float], step: int) -> None:
            told.append((step, dict(figures)))

    lesson = lesson_of()
    fit(
        Bag(),
        lesson,
        SETTINGS,
        TrainContext(CountingMeter(), tracker=Told(None)),
        dev=scripted([1.0, 2.0, 3.0, 4.0], []),
    )
    steps = [(step, figures) for step, figures in told if "loss" in figures]
    assert [step for step, _ in steps] == list(range(1, 33))
    assert [figures["loss"] for _, figures in steps] == pytest.approx(lesson.losses, abs=1e-6)
    assert [figures["learning_rate"] for _, figures in steps] == pytest.approx(
        [0.02 * learning_rate_factor(step, 32, 0.06) for step in range(32)]
    )
    assert [(step, figures) for step, figures in told if "dev" in figures] == [
        (8, {"dev": 1.0}),
        (16, {"dev": 2.0}),
        (24, {"dev": 3.0}),
        (32, {"dev": 4.0}),
    ]
