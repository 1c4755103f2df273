"""The one training loop: steps of a lesson, warm-up and linear decay, early stop, exact resume; one process or several.

Everything random at optimiser step i is a function of (seed, i, process, piece of the step), so that a killed training that goes
on from its checkpoint takes bit for bit the steps it would have taken (with equal threads, processes and libraries).
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
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from outlay.errors import TrainingError, UsageError
from outlay.settings import TrainSettings
from outlay.train.adapters import eagerly, load_trained_state, trained_state
from outlay.train.checkpoint import checkpoint_state, clear_when_full, newest_checkpoint
from outlay.train.encode import training_batches
from outlay.train.losses import LossSum
from outlay.train.optimizers import make_optimizer
from outlay.train.place import Place, here, like
from outlay.train.seeds import step_seed

if TYPE_CHECKING:
    from outlay.train.tracking import Tracker

DevScore = Callable[[nn.Module], tuple[float, int]]
"""``model -> (score, tokens that went forward over all processes)``; larger scores are better. Every process calls it, in eval
mode and without gradients, and gets the same answer; it reports no tokens to a gauge, the loop does."""


class Lesson(Protocol):
    """A training set, and what is learnt from it."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row that go through the model, int64 ``[rows]``: what is paid for, and what batches are sorted by."""
        ...

    @property
    def n_truncated(self) -> int:
        """Rows that were longer than the limit, and so cut."""
        ...

    def __len__(self) -> int:
        """Rows."""
        ...

    def loss(self, model: nn.Module, rows: NDArray[np.int64]) -> LossSum:
        """Of the given rows, at least one, on the model's device; the loop calls it under its autocast.

        Which parameters get a gradient must not depend on the rows.
        """
        ...


class Gauge(Protocol):
    """What the loop reports its work to, and asks before each step; tokens are real ones, of all processes together.

    Every process has one, but only the main process's word counts.
    """

    def may_train(self, n_tokens: int) -> bool:
        """Whether a step of ``n_tokens`` still fits, with what must follow it (evaluation, saving) reserved."""
        ...

    def trained(self, n_tokens: int) -> None:
        """A step of ``n_tokens`` went forward and backward."""
        ...

    def inferred(self, n_tokens: int) -> None:
        """``n_tokens`` went forward."""
        ...

    def state(self) -> dict[str, Any]:
        """What to keep in a checkpoint (JSON)."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state`."""
        ...


@dataclass(slots=True)
class Progress:
    """Where a training stands; all of it is kept in a checkpoint."""

    step: int = 0
    """Optimiser steps taken."""
    epoch: int = 0
    """Of the last step, from 0."""
    loss_since: float = 0.0
    """Sum of the losses of the steps since the last evaluation."""
    steps_since: int = 0
    """Steps since the last evaluation."""
    best_score: float | None = None
    best_epoch: int | None = None
    best_evaluation: int | None = None
    """Index into ``history``."""
    n_tokens_trained: int = 0
    n_tokens_inferred: int = 0
    stopped: str | None = None
    """``finished``, ``early`` (dev stopped improving) or ``limit`` (the gauge refused the next step)."""
    n_parameters: int = 0
    """All of the model's, embeddings included."""
    n_truncated: int = 0
    """Training rows that were longer than the limit, and so cut."""
    n_answers_cut: int = 0
    """Answers to learn that were longer than the limit, and so cut."""
    n_unaligned: int = 0
    """Entities to learn that could not be found in their source."""
    history: list[dict[str, float | int | None]] = field(default_factory=list)
    """Per evaluation: epoch and step of the last step before it, mean loss of the steps since the one before, dev score."""


@dataclass(slots=True)
class Training:
    """All that changes while a model trains, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    gauge: Gauge
    progress: Progress
    best: dict[str, Tensor] | None = None
    """The weights of the best evaluation."""


OnProgress = Callable[[Progress, int], None]
"""``(progress, total steps)``, called after each step on the main process."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What does not change while a model trains."""

    lesson: Lesson
    lengths: NDArray[np.int64]
    settings: TrainSettings
    place: Place

    @property
    def n_batches(self) -> int:
        """Optimiser steps of an epoch."""
        return math.ceil(len(self.lengths) / self.settings.batch_size)

    @property
    def n_steps(self) -> int:
        """Optimiser steps of all epochs."""
        return self.n_batches * self.settings.epochs

    def learning_rate(self, step: int) -> float:
        """At optimiser step ``step``, from 0."""
        return self.settings.learning_rate * learning_rate_factor(step, self.n_steps, self.settings.warmup_fraction)


def fit(
    model: nn.Module,
    lesson: Lesson,
    settings: TrainSettings,
    *,
    gauge: Gauge,
    dev: DevScore | None = None,
    checkpoints: Checkpoints | None = None,
    on_progress: OnProgress | None = None,
    tracker: Tracker | None = None,
    place: Place | None = None,
) -> Progress:
    """Train ``model`` in place and leave in it the best weights by dev score (the last ones where there is no dev set).

    Linear warm-up then linear decay to zero over all planned steps, gradient clipping by global norm. A step's gradient is that
    of the loss averaged over the positions of all its rows, however they are dealt to processes and forward passes. ``place``
    defaults to this process's; the model is moved to it. Every process must call with the same arguments.

    Raises:
        TrainingError: no rows, a loss that is not finite, a gauge that refuses the first step, or checkpoints that differ between
            processes.
        UsageError: an optimiser, or gradient checkpointing, that cannot be had here.
    """
    if len(lesson) == 0:
        raise TrainingError("nothing to train on: 0 rows; buy labels or hand in a pool")
    place = here() if place is None else place
    place.prepare(model)
    plan = _Plan(lesson, lesson.lengths, settings, place)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    progress = Progress(n_parameters=n_parameters, n_truncated=lesson.n_truncated)
    training = Training(model, make_optimizer(model, settings), gauge, progress)
    if checkpoints is not None:
        checkpoints.load(training, place)
    if settings.gradient_checkpointing:
        _compute_twice(model, True)
    _run(training, plan, dev, checkpoints, _tellers(plan, on_progress, tracker))
    if settings.gradient_checkpointing:
        _compute_twice(model, False)
    if training.best is not None:
        load_trained_state(model, training.best)
    return training.progress


def learning_rate_factor(step: int, n_steps: int, warmup_fraction: float) -> float:
    """Share of the peak learning rate at optimiser step ``step`` (from 0): linear up over the warm-up, linear down to zero."""
    n_warmup = max(1, round(warmup_fraction * n_steps)) if warmup_fraction > 0 else 0
    if step < n_warmup:
        return (step + 1) / n_warmup
    return max(0.0, (n_steps - step) / max(1, n_steps - n_warmup))


def piece_seed(seed: int, step: int, rank: int, piece: int) -> int:
    """The generator seed of one forward pass, so that dropout does not depend on what came before; `step_seed` for the first."""
    if rank == piece == 0:
        return step_seed(seed, step)
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}:{rank}:{piece}".encode()).digest()[:8], "big") >> 1


def deal(rows: NDArray[np.int64], rank: int, n_processes: int, micro_batch_size: int | None) -> list[NDArray[np.int64]]:
    """The pieces of a step's rows that process ``rank`` takes, one per forward pass; the same number on every process.

    Over all processes every row is in one piece. A piece has at most ``micro_batch_size`` rows, and none where a process has
    fewer rows than others have pieces.
    """
    most = math.ceil(len(rows) / n_processes)
    n_pieces = 1 if micro_batch_size is None else math.ceil(most / micro_batch_size)
    return np.array_split(rows[rank::n_processes], n_pieces)


_Teller = Callable[[Progress, dict[str, float]], None]
"""Told of a step or an evaluation: progress, and figures by name."""


def _tellers(plan: _Plan, on_progress: OnProgress | None, tracker: Tracker | None) -> list[_Teller]:
    if not plan.place.is_main:
        return []
    tellers: list[_Teller] = []
    if tracker is not None:
        tellers.append(lambda progress, figures: tracker.log(figures, progress.step))
    if on_progress is not None:
        tellers.append(lambda progress, figures: on_progress(progress, plan.n_steps) if "loss" in figures else None)
    return tellers


def _run(
    training: Training, plan: _Plan, dev: DevScore | None, checkpoints: Checkpoints | None, tellers: list[_Teller]
) -> None:
    """From where ``training`` stands to its end."""
    progress, settings, gauge = training.progress, plan.settings, training.gauge
    batches: list[NDArray[np.int64]] = []
    training.model.train()
    while progress.stopped is None:
        progress.epoch, batch = divmod(progress.step, plan.n_batches)
        if batch == 0 or not batches:
            batches = training_batches(plan.lengths, settings.batch_size, settings.seed, progress.epoch)
        n_tokens = int(plan.lengths[batches[batch]].sum())
        if not plan.place.agree(gauge.may_train(n_tokens)):
            progress.stopped = "limit"
            break
        figures = {"learning_rate": plan.learning_rate(progress.step)}
        figures["loss"] = loss = _step(training, plan, batches[batch])
        progress.step += 1
        progress.loss_since += loss
        progress.steps_since += 1
        progress.n_tokens_trained += n_tokens
        gauge.trained(n_tokens)
        for tell in tellers:
            tell(progress, figures)
        if progress.step == plan.n_steps or progress.step % (settings.eval_steps or plan.n_batches) == 0:
            _evaluate(training, plan, dev, tellers)
            progress.stopped = _why_stop(progress, plan)
        if checkpoints is not None and progress.stopped is None:
            checkpoints.maybe_save(training, plan.place)
    if progress.step == 0:
        raise TrainingError(
            "not one batch fits into the limit of this step; raise it (a run is topped up with `outlay ledger topup`)"
        )
    if progress.steps_since > 0:
        _evaluate(training, plan, dev, tellers)


def _step(training: Training, plan: _Plan, rows: NDArray[np.int64]) -> float:
    """One optimiser step; its loss, averaged over the positions of all processes.

    The backward passes divide by the number of rows; what that differs from the number of positions, known only after the last
    forward pass of the last process, is put right in the gradients. One position per row needs no correction.
    """
    model, settings, place = training.model, plan.settings, plan.place
    step = training.progress.step
    sums: list[Tensor] = []
    for piece, own in enumerate(deal(rows, place.rank, place.n_processes, settings.micro_batch_size)):
        torch.manual_seed(piece_seed(settings.seed, step, place.rank, piece))
        with torch.autocast(place.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = plan.lesson.loss(model, own if len(own) else rows[:1])
        weight = 1.0 if len(own) else 0.0
        (loss.total * weight / len(rows)).backward()  # type: ignore[no-untyped-call]
        sums.append(torch.stack([loss.total.detach().float(), loss.n.float()]) * weight)
    total, n = place.total(torch.stack(sums).double().sum(0))
    mean = total / max(n, 1.0)
    if not math.isfinite(mean):
        raise TrainingError(
            f"the loss became {mean} at step {step} of {plan.n_steps}; "
            f"lower the learning rate ({settings.learning_rate:g})"
        )
    place.add_gradients(model.parameters(), len(rows) / max(n, 1.0))
    nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    for group in training.optimizer.param_groups:
        group["lr"] = plan.learning_rate(step)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return mean


def _evaluate(training: Training, plan: _Plan, dev: DevScore | None, tellers: list[_Teller]) -> None:
    """Score the dev set where there is one, keep the weights if they are the best so far, and note it."""
    progress, model = training.progress, training.model
    loss = progress.loss_since / max(1, progress.steps_since)
    score: float | None = None
    if dev is not None:
        model.eval()
        with torch.no_grad(), eagerly(plan.settings):
            score, n_tokens = dev(model)
        model.train()
        training.gauge.inferred(n_tokens)
        progress.n_tokens_inferred += n_tokens
        if progress.best_score is None or score > progress.best_score:
            progress.best_score, progress.best_epoch = score, progress.epoch
            progress.best_evaluation = len(progress.history)
            training.best = {name: tensor.detach().clone() for name, tensor in trained_state(model).items()}
        for tell in tellers:
            tell(progress, {"dev": score})
    progress.history.append({"epoch": progress.epoch, "step": progress.step, "loss": round(loss, 6), "dev": score})
    progress.loss_since, progress.steps_since = 0.0, 0


def _why_stop(progress: Progress, plan: _Plan) -> str | None:
    if progress.step >= plan.n_steps:
        return "finished"
    if plan.settings.patience is not None and progress.best_evaluation is not None:
        stale = len(progress.history) - 1 - progress.best_evaluation
        if stale >= plan.settings.patience:
            return "early"
    return None


def _compute_twice(model: nn.Module, on: bool) -> None:
    """Compute activations again in the backward pass instead of keeping them, or no longer."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UsageError(
            f"gradient_checkpointing is on, but a {type(model).__name__} cannot compute its activations twice; turn it off"
        )
    # `activation_` is the newer name, and the older one warns where both are there.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        # The non-reentrant form keeps the generator's state, so dropout is the same the second time.
        getattr(model, f"{kind}_checkpointing_enable")(**{f"{kind}_checkpointing_kwargs": {"use_reentrant": False}})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()


class Checkpoints:
    """A training's checkpoint in a folder: weights, best weights and optimiser moments as safetensors, the rest as JSON.

    A new one is written beside the old one and renamed, so that a kill at any moment leaves one whole checkpoint. Several
    processes write one, as a single process would; all of them read it, so the folder must be on a disk they share.
    """

    def __init__(self, folder: Path, every_seconds: float = 20.0, every_steps: int | None = None) -> None:
        self._folder = folder
        self._every_seconds = every_seconds
        self._every_steps = every_steps
        self._last = time.monotonic()

    def maybe_save(self, training: Training, place: Place) -> None:
        """Save when the last checkpoint is older than ``every_seconds``, and at every ``every_steps``-th optimiser step.

        Raises:
            DiskFull: no room left.
        """
        by_steps = self._every_steps is not None and training.progress.step % self._every_steps == 0
        if not place.agree(by_steps or time.monotonic() - self._last >= self._every_seconds):
            return
        with clear_when_full(self._folder):
            self._save(training, place)
        self._last = time.monotonic()

    def load(self, training: Training, place: Place) -> None:
        """Go on from the newest whole checkpoint; without one nothing changes.

        Raises:
            TrainingError: processes that see different checkpoints.
        """
        newest = newest_checkpoint(self._folder)
        seen = place.gather(["none" if newest is None else newest.name])
        if len(set(seen)) > 1:
            raise TrainingError(
                f"the processes see different checkpoints ({', '.join(seen)}) below {self._folder}; put it on a disk they share"
            )
        if newest is None:
            return
        now = trained_state(training.model)
        load_trained_state(training.model, _dealt(load_file(newest / "model.safetensors"), now))
        best = newest / "best.safetensors"
        training.best = _dealt(load_file(best), now) if best.exists() else None
        state = checkpoint_state(newest)
        _load_optimizer(training.optimizer, load_file(newest / "optimizer.safetensors"), state["optimizer"])
        training.gauge.restore(state["gauge"])
        training.progress = Progress(**state["progress"])

    def _save(self, training: Training, place: Place) -> None:
        tensors, numbers = _optimizer_state(training.optimizer)
        parts = {"model": place.full_state(trained_state(training.model)), "optimizer": place.full_state(tensors)}
        if training.best is not None:
            parts["best"] = place.full_state(training.best)
        if place.is_main:
            state = {"progress": asdict(training.progress), "gauge": training.gauge.state(), "optimizer": numbers}
            self._write(f"step-{training.progress.step}", parts, state)
        place.barrier()

    def _write(self, name: str, parts: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        new = self._folder / f"{name}.tmp"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for part, tensors in parts.items():
            save_file(tensors, new / f"{part}.safetensors")
        (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in new.iterdir():
            _fsync(path)
        new.rename(self._folder / name)
        for old in self._folder.iterdir():
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)


def _dealt(whole: dict[str, Tensor], now: dict[str, Any]) -> dict[str, Tensor]:
    """Whole tensors, dealt among the processes as those of the same name are now."""
    return {name: like(tensor, now[name]) for name, tensor in whole.items()}


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers by ``parameter index.name``."""
    flat = {
        f"{index}.{name}": value
        for index, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
    }
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """What is kept of a parameter element by element is dealt among the processes as the parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        whole = isinstance(value, Tensor) and value.shape == parameter.shape
        state.setdefault(int(index), {})[name] = like(value, parameter) if whole else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
