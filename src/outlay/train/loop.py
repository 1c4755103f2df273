"""The one training loop: batches, a loss handed in, warm-up and linear decay, early stop, exact resume.

Everything random at optimiser step i is a function of (seed, i), so that a killed training that goes on from its checkpoint
takes bit for bit the steps it would have taken (with equal threads and libraries).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from outlay.errors import TrainingError
from outlay.settings import TrainSettings
from outlay.train.checkpoint import checkpoint_state, clear_when_full, newest_checkpoint
from outlay.train.encode import Encoded, collate, inference_batches, training_batches

INFERENCE_BATCH = 64

Objective = Callable[[Tensor, Tensor], Tensor]
"""``(logits [batch, V], rows int64 [batch]) -> scalar loss``; ``rows`` index the training set."""

DevScore = Callable[[NDArray[np.int64]], float]
"""``(predicted class int64 [dev rows]) -> score``, larger is better."""


class Gauge(Protocol):
    """What the loop reports its work to, and asks before each batch; tokens are real ones, padding is not counted."""

    def may_train(self, n_tokens: int) -> bool:
        """Whether a batch of ``n_tokens`` still fits, with what must follow it (evaluation, saving) reserved."""
        ...

    def trained(self, n_tokens: int) -> None:
        """A batch of ``n_tokens`` went forward and backward."""
        ...

    def inferred(self, n_tokens: int) -> None:
        """A batch of ``n_tokens`` went forward."""
        ...

    def state(self) -> dict[str, Any]:
        """What to keep in a checkpoint (JSON)."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        ...


@dataclass(frozen=True, slots=True)
class DevSet:
    """Rows to choose the best epoch by, and how to score predicted classes."""

    encoded: Encoded
    score: DevScore


@dataclass(slots=True)
class Progress:
    """Where a training stands; all of it is kept in a checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch already taken."""
    epoch_loss: float = 0.0
    best_score: float | None = None
    best_epoch: int | None = None
    n_tokens_trained: int = 0
    n_tokens_inferred: int = 0
    stopped: str | None = None
    """``finished``, ``early`` (dev stopped improving) or ``limit`` (the gauge refused the next batch)."""
    n_parameters: int = 0
    """All of the model's, embeddings included."""
    n_truncated: int = 0
    """Training rows that were longer than the limit, and so cut."""
    history: list[dict[str, float | int | None]] = field(default_factory=list)


@dataclass(slots=True)
class Training:
    """All that changes while a model trains, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    gauge: Gauge
    progress: Progress
    best: dict[str, Tensor] | None = None
    """The weights of the best epoch by dev score."""


OnProgress = Callable[[Progress, int], None]
"""``(progress, total steps)``, called after each batch."""


def fit(
    model: nn.Module,
    encoded: Encoded,
    objective: Objective,
    settings: TrainSettings,
    *,
    gauge: Gauge,
    dev: DevSet | None = None,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress | None = None,
) -> Progress:
    """Train ``model`` in place and leave in it the best weights by dev score (the last ones where there is no dev set).

    AdamW, linear warm-up then linear decay to zero over all planned steps, gradient clipping by global norm.

    Raises:
        TrainingError: no rows, a loss that is not finite, or a gauge that refuses the first batch.
    """
    if len(encoded) == 0:
        raise TrainingError("nothing to train on: 0 rows; buy labels or hand in a pool")
    device = next(model.parameters()).device
    n_batches = math.ceil(len(encoded) / settings.batch_size)
    n_steps = n_batches * settings.epochs
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    training = Training(
        model,
        _optimizer(model, settings, device),
        gauge,
        Progress(n_parameters=n_parameters, n_truncated=encoded.n_truncated),
    )
    if checkpoints is not None:
        checkpoints.load(training)
    progress = training.progress
    while progress.stopped is None:
        batches = training_batches(encoded.lengths, settings.batch_size, settings.seed, progress.epoch)
        model.train()
        while progress.batch < len(batches):
            rows = batches[progress.batch]
            n_tokens = int(encoded.lengths[rows].sum())
            if not gauge.may_train(n_tokens):
                progress.stopped = "limit"
                break
            loss = _step(training, collate(encoded, rows, device), rows, objective, settings, n_steps)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss} at step {progress.step} of {n_steps}; "
                    f"lower the learning rate ({settings.learning_rate:g})"
                )
            progress.step += 1
            progress.batch += 1
            progress.epoch_loss += loss
            progress.n_tokens_trained += n_tokens
            gauge.trained(n_tokens)
            if on_progress is not None:
                on_progress(progress, n_steps)
            if checkpoints is not None and progress.batch < len(batches):
                checkpoints.maybe_save(training)
        if progress.step == 0:
            raise TrainingError(
                "not one batch fits into the limit of this step; raise it (a run is topped up with `outlay ledger topup`)"
            )
        if progress.batch > 0:
            _end_epoch(training, dev, settings.precision)
        progress.epoch += 1
        progress.batch, progress.epoch_loss = 0, 0.0
        if progress.stopped is None:
            progress.stopped = _why_stop(progress, settings)
        if checkpoints is not None and progress.stopped is None:
            checkpoints.maybe_save(training)
    if training.best is not None:
        model.load_state_dict(training.best)
    return progress


@torch.no_grad()
def predict_logits(
    model: nn.Module, encoded: Encoded, *, precision: str = "bf16", gauge: Gauge | None = None
) -> Tensor:
    """Logits float32 ``[rows, V]`` on the CPU, in row order; batches are a pure function of the rows' lengths."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    out: Tensor | None = None
    for rows in inference_batches(encoded.lengths, INFERENCE_BATCH):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(**collate(encoded, rows, device)).logits
        logits = logits.float().cpu()
        if out is None:
            out = torch.empty((len(encoded), logits.shape[-1]), dtype=torch.float32)
        out[torch.from_numpy(rows)] = logits
        if gauge is not None:
            gauge.inferred(int(encoded.lengths[rows].sum()))
    model.train(was_training)
    return out if out is not None else torch.empty((0, 0))


def learning_rate_factor(step: int, n_steps: int, warmup_fraction: float) -> float:
    """Share of the peak learning rate at optimiser step ``step`` (from 0): linear up over the warm-up, linear down to zero."""
    n_warmup = max(1, round(warmup_fraction * n_steps)) if warmup_fraction > 0 else 0
    if step < n_warmup:
        return (step + 1) / n_warmup
    return max(0.0, (n_steps - step) / max(1, n_steps - n_warmup))


def step_seed(seed: int, step: int) -> int:
    """The generator seed of one optimiser step, so that dropout does not depend on what came before."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:8], "big") >> 1


def _step(
    training: Training,
    batch: dict[str, Tensor],
    rows: NDArray[np.int64],
    objective: Objective,
    settings: TrainSettings,
    n_steps: int,
) -> float:
    """One optimiser step; its loss."""
    model, optimizer, step = training.model, training.optimizer, training.progress.step
    torch.manual_seed(step_seed(settings.seed, step))
    factor = learning_rate_factor(step, n_steps, settings.warmup_fraction)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor
    device = batch["input_ids"].device
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        logits = model(**batch).logits
    loss = objective(logits.float(), torch.from_numpy(rows))
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.item())


def _end_epoch(training: Training, dev: DevSet | None, precision: str) -> None:
    """Score the dev set where there is one, keep the weights if they are the best so far, and note the epoch."""
    progress = training.progress
    loss = progress.epoch_loss / max(1, progress.batch)
    score: float | None = None
    if dev is not None:
        logits = predict_logits(training.model, dev.encoded, precision=precision, gauge=training.gauge)
        progress.n_tokens_inferred += dev.encoded.n_tokens
        score = dev.score(logits.argmax(-1).numpy())
        if progress.best_score is None or score > progress.best_score:
            progress.best_score, progress.best_epoch = score, progress.epoch
            training.best = {name: tensor.detach().clone() for name, tensor in training.model.state_dict().items()}
    progress.history.append({"epoch": progress.epoch, "step": progress.step, "loss": round(loss, 6), "dev": score})


def _optimizer(model: nn.Module, settings: TrainSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW that decays matrices only; biases and layer norms are left alone, as is usual for these encoders."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=device.type in ("cpu", "cuda"))


def _why_stop(progress: Progress, settings: TrainSettings) -> str | None:
    if progress.epoch >= settings.epochs:
        return "finished"
    if settings.patience is not None and progress.best_epoch is not None:
        stale = progress.epoch - 1 - progress.best_epoch
        if stale >= settings.patience:
            return "early"
    return None


class Checkpoints:
    """A training's checkpoint in a folder: weights, best weights and optimiser moments as safetensors, the rest as JSON.

    A new one is written beside the old one and renamed, so that a kill at any moment leaves one whole checkpoint.
    """

    def __init__(self, folder: Path, every_seconds: float = 20.0) -> None:
        self._folder = folder
        self._every_seconds = every_seconds
        self._last = time.monotonic()

    def maybe_save(self, training: Training) -> None:
        """Save when the last checkpoint is older than ``every_seconds``.

        Raises:
            DiskFull: no room left.
        """
        if time.monotonic() - self._last < self._every_seconds:
            return
        with clear_when_full(self._folder):
            self._save(training)
        self._last = time.monotonic()

    def load(self, training: Training) -> None:
        """Go on from the newest whole checkpoint; without one nothing changes."""
        newest = newest_checkpoint(self._folder)
        if newest is None:
            return
        training.model.load_state_dict(load_file(newest / "model.safetensors"))
        _load_optimizer(training.optimizer, load_file(newest / "optimizer.safetensors"))
        best = newest / "best.safetensors"
        training.best = load_file(best) if best.exists() else None
        state = checkpoint_state(newest)
        training.gauge.restore(state["gauge"])
        training.progress = Progress(**state["progress"])

    def _save(self, training: Training) -> None:
        name = f"step-{training.progress.step}"
        new = self._folder / f"{name}.tmp"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_file(_plain(training.model.state_dict()), new / "model.safetensors")
        if training.best is not None:
            save_file(_plain(training.best), new / "best.safetensors")
        save_file(_optimizer_tensors(training.optimizer), new / "optimizer.safetensors")
        state = {"progress": asdict(training.progress), "gauge": training.gauge.state()}
        (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in new.iterdir():
            _fsync(path)
        new.rename(self._folder / name)
        for old in self._folder.iterdir():
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Own, contiguous copies: safetensors refuses tensors that share memory (tied weights)."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{name}": value.detach().cpu().contiguous() for i, slots in state.items() for name, value in slots.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
