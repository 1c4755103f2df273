"""The training loop: steps of an objective, warm-up and linear decay, early stop, exact resume; one process or several.

Everything random at optimiser step i is a function of (seed, i, process, micro-batch), so that a killed training that goes
on from its checkpoint takes bit for bit the steps it would have taken (with equal threads, processes and libraries). On a GPU the
host runs ahead of it: losses are read off `_READ_EVERY` steps at a time, and nothing else in a step waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from outlay.errors import TrainingError, UsageError
from outlay.models.peft import load_trained_state, trained_state, without_compile
from outlay.settings import TrainSettings
from outlay.train.checkpoints import Checkpoints, TrainState
from outlay.train.distributed import ProcessGroup, current_process
from outlay.train.losses import LossSum
from outlay.train.optimizers import make_optimizer
from outlay.train.prefetch import Batch, BatchPrefetcher
from outlay.train.profiler import part
from outlay.train.progress import TrainContext, TrainProgress
from outlay.train.schedule import TrainSchedule, micro_batch_seed

_READ_EVERY = 16
"""Steps between two readings of losses on a GPU, and between two questions of several processes to the work meter."""

DevScore = Callable[[nn.Module], tuple[float, int] | tuple[float, int, float | None]]
"""``model -> (score, tokens that went forward over all processes)``, and the temperature that fits its probabilities to the dev
rows; larger scores are better. Every process calls it, in eval mode and without gradients, and gets the same answer; it reports
no tokens to a meter, the loop does."""


class Objective(Protocol):
    """A training set and its loss."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row that go through the model, int64 ``[rows]``; batches are sorted by them."""
        ...

    @property
    def n_truncated(self) -> int:
        """Rows that were longer than the limit, and so cut."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the batch of some rows, at least one, on the CPU; a pure function of the rows, called from any thread."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> LossSum:
        """Return the loss of a `batch` that is on the model's device; the loop calls it under its autocast.

        Which parameters get a gradient must not depend on the rows.
        """
        ...


def fit(
    model: nn.Module,
    objective: Objective,
    settings: TrainSettings,
    context: TrainContext,
    *,
    dev: DevScore | None = None,
    checkpoints: Checkpoints | None = None,
    group: ProcessGroup | None = None,
    evaluate_first: bool = False,
) -> TrainProgress:
    """Train ``model`` in place and leave in it the best weights by dev score (the last ones where there is no dev set).

    Linear warm-up then linear decay to zero over all planned steps, gradient clipping by global norm. A step's gradient is that
    of the loss averaged over the positions of all its rows, however they are split among processes and forward passes. ``group``
    defaults to this process's; the model is moved to it. Every process must call with the same arguments. ``evaluate_first``: the
    weights it begins with may be the best too.

    Raises:
        TrainingError: no rows, a loss that is not finite, a meter that refuses the first step, or checkpoints that differ between
            processes.
        UsageError: an optimiser, or gradient checkpointing, that cannot be had here.
    """
    if len(objective) == 0:
        raise TrainingError("nothing to train on: 0 rows; buy labels or hand in a pool")
    group = current_process() if group is None else group
    group.prepare(model)
    schedule = TrainSchedule(objective.lengths, settings, group)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    progress = TrainProgress(n_parameters=n_parameters, n_truncated=objective.n_truncated)
    training = TrainState(model, make_optimizer(model, settings), context.meter, progress)
    if checkpoints is not None:
        checkpoints.load(training, group)
    if settings.gradient_checkpointing:
        _set_gradient_checkpointing(model, True)
    _Run(training, objective, schedule, dev, checkpoints, context).run(evaluate_first=evaluate_first)
    if settings.gradient_checkpointing:
        _set_gradient_checkpointing(model, False)
    if training.best is not None:
        load_trained_state(model, training.best)
    return training.progress


@dataclass
class _Run:
    """A training from its present state to its end."""

    training: TrainState
    objective: Objective
    schedule: TrainSchedule
    dev: DevScore | None
    checkpoints: Checkpoints | None
    context: TrainContext
    unread_losses: list[tuple[int, Tensor]] = field(default_factory=list)
    """Steps whose loss is still on the device: the step, and its loss, float64 scalar."""
    n_allowed: int = 0
    """Steps that the meter has allowed and that were not taken yet."""

    def run(self, *, evaluate_first: bool = False) -> None:
        """Take the steps that are left."""
        training, schedule, profiler = self.training, self.schedule, self.context.profiler
        progress = training.progress
        prefetcher = BatchPrefetcher(
            self.objective.batch, schedule.micro_batches, schedule.n_steps, schedule.group.device
        )
        training.model.train()
        with ExitStack() as stack:
            stack.callback(prefetcher.close)
            if profiler is not None:
                stack.callback(profiler.stop)
            if evaluate_first and self.dev is not None and not progress.history:
                self._evaluate()
            while progress.stopped is None:
                if not self._may_go_on():
                    progress.stopped = "limit"
                    break
                with part(profiler, "data"):
                    batches = prefetcher.take(progress.step)
                self._step(batches)
                self._after_step(progress.step - 1)
            self._read_losses()
            if progress.step == 0:
                raise TrainingError(
                    "not one batch fits into the limit of this step; raise it (a run is topped up with `outlay ledger topup`)"
                )
            if progress.steps_since > 0:
                self._evaluate()

    def _may_go_on(self) -> bool:
        """Return whether the main process's meter allows the next step; several processes ask for some steps at once."""
        schedule, step = self.schedule, self.training.progress.step
        if self.n_allowed == 0:
            ahead = min(_READ_EVERY if schedule.group.n_processes > 1 else 1, schedule.n_steps - step)
            n_tokens = np.cumsum([schedule.n_tokens(step + i) for i in range(ahead)])
            allowed = next((i for i in range(ahead, 0, -1) if self.training.meter.may_train(int(n_tokens[i - 1]))), 0)
            self.n_allowed = schedule.group.broadcast(allowed)
        return self.n_allowed > 0

    def _step(self, batches: Sequence[Batch]) -> None:
        """Take one optimiser step.

        The backward passes divide by the number of rows; what that differs from the number of positions, known only after the
        last forward pass of the last process, is put right in the gradients. One position per row needs no correction.
        """
        training, schedule, profiler = self.training, self.schedule, self.context.profiler
        model, group, step = training.model, schedule.group, training.progress.step
        n_rows = len(schedule.rows(step))
        sums: list[Tensor] = []
        for micro_batch, (batch, weight) in enumerate(zip(batches, schedule.weights(step), strict=True)):
            torch.manual_seed(micro_batch_seed(schedule.settings.seed, step, group.rank, micro_batch))
            loss = self._loss(model, batch)
            with part(profiler, "backward"):
                (loss.total * weight / n_rows).backward()  # type: ignore[no-untyped-call]
            sums.append(torch.stack([loss.total.detach().float(), loss.n.float()]) * weight)
        with part(profiler, "optimiser"):
            total, n = group.all_reduce(torch.stack(sums).double().sum(0))
            n = n.clamp_min(1.0)
            if group.device.type == "cpu":
                _check_finite(float(total / n), step, schedule)
            _optimizer_step(training, schedule, n_rows / n)
        self.unread_losses.append((step, total / n))
        self.n_allowed -= 1
        progress = training.progress
        progress.epoch = schedule.epoch(step)
        progress.step += 1
        n_tokens = schedule.n_tokens(step)
        progress.n_tokens_trained += n_tokens
        training.meter.trained(n_tokens)

    def _loss(self, model: nn.Module, batch: Batch) -> LossSum:
        profiler, settings, device = self.context.profiler, self.schedule.settings, self.schedule.group.device
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            if profiler is None:
                return self.objective.loss(model, batch)
            with profiler.forward_of(model), profiler.rest("loss", without="forward"):
                return self.objective.loss(model, batch)

    def _after_step(self, step: int) -> None:
        """Do what may follow a step: read its loss, evaluate the model, write a checkpoint."""
        progress, schedule, settings = self.training.progress, self.schedule, self.schedule.settings
        is_last = progress.step == schedule.n_steps
        every = settings.eval_steps
        evaluates = is_last or (schedule.ends_epoch(step) if every is None else progress.step % every == 0)
        saves = self.checkpoints is not None and self.checkpoints.wanted_at(progress.step)
        if not (evaluates or saves or schedule.group.device.type == "cpu" or len(self.unread_losses) >= _READ_EVERY):
            return
        self._read_losses()
        if evaluates:
            self._evaluate()
            progress.stopped = _why_stop(progress, schedule)
        if self.checkpoints is not None and progress.stopped is None:
            with part(self.context.profiler, "checkpoint"):
                self.checkpoints.maybe_save(self.training, schedule.group)

    def _read_losses(self) -> None:
        """Read the losses of the last steps off the device, and report them.

        Raises:
            TrainingError: one is not finite.
        """
        progress, context, schedule = self.training.progress, self.context, self.schedule
        if not self.unread_losses:
            return
        losses = torch.stack([loss for _, loss in self.unread_losses]).tolist()
        for (step, _), loss in zip(self.unread_losses, losses, strict=True):
            _check_finite(loss, step, schedule)
            progress.loss_since += loss
            progress.steps_since += 1
            if schedule.group.is_main and context.tracker is not None:
                context.tracker.log({"learning_rate": schedule.learning_rate(step), "loss": loss}, step + 1)
        self.unread_losses.clear()
        if schedule.group.is_main and context.on_progress is not None:
            context.on_progress(progress, schedule.n_steps)

    def _evaluate(self) -> None:
        """Score the dev set where there is one, keep the weights if they are the best so far, and note it."""
        training, progress, dev = self.training, self.training.progress, self.dev
        loss = progress.loss_since / max(1, progress.steps_since)
        epoch = progress.epoch if progress.step else -1
        score: float | None = None
        more: list[float | None] = []
        if dev is not None:
            training.model.eval()
            with part(self.context.profiler, "eval"), torch.no_grad(), without_compile(self.schedule.settings):
                score, n_tokens, *more = dev(training.model)
            training.model.train()
            training.meter.inferred(n_tokens)
            progress.n_tokens_inferred += n_tokens
            if progress.best_score is None or score > progress.best_score:
                progress.best_score, progress.best_epoch = score, epoch
                progress.best_evaluation = len(progress.history)
                training.best = {name: _cpu_copy(tensor) for name, tensor in trained_state(training.model).items()}
            if self.schedule.group.is_main and self.context.tracker is not None:
                self.context.tracker.log({"dev": score}, progress.step)
        entry: dict[str, float | int | None] = {
            "epoch": epoch,
            "step": progress.step,
            "loss": round(loss, 6),
            "dev": score,
        }
        progress.history.append(entry | ({"temperature": more[0]} if more and more[0] is not None else {}))
        progress.loss_since, progress.steps_since = 0.0, 0


def _check_finite(loss: float, step: int, schedule: TrainSchedule) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} at step {step} of {schedule.n_steps}; "
            f"lower the learning rate ({schedule.settings.learning_rate:g})"
        )


def _optimizer_step(training: TrainState, schedule: TrainSchedule, factor: Tensor) -> None:
    """Scale the gradients by ``factor`` (float64 scalar), clip them by their global norm, and update the weights."""
    group, settings = schedule.group, schedule.settings
    parameters = [parameter for parameter in training.model.parameters() if parameter.grad is not None]
    if group.fsdp:
        group.add_gradients(parameters, float(factor))
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    else:
        group.add_gradients(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        scale = factor.to(gradients[0].device, torch.float32)
        norm = nn.utils.get_total_norm(gradients).float() * scale
        scale = scale * (settings.max_grad_norm / (norm + _NORM_EPSILON)).clamp_max(1.0)
        torch._foreach_mul_(gradients, scale)
    for parameter_group in training.optimizer.param_groups:
        parameter_group["lr"] = schedule.learning_rate(training.progress.step)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)


_NORM_EPSILON = 1e-6
"""Epsilon of the norm, as in `torch.nn.utils.clip_grad_norm_`."""


def _cpu_copy(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU that later steps do not change: a GPU has room for a large model once."""
    return tensor.detach().clone() if isinstance(tensor, DTensor) else tensor.detach().to("cpu", copy=True)


def _why_stop(progress: TrainProgress, schedule: TrainSchedule) -> str | None:
    if progress.step >= schedule.n_steps:
        return "finished"
    if schedule.settings.patience is not None and progress.best_evaluation is not None:
        stale = len(progress.history) - 1 - progress.best_evaluation
        if stale >= schedule.settings.patience:
            return "early"
    return None


def _set_gradient_checkpointing(model: nn.Module, on: bool) -> None:
    """Turn gradient checkpointing on or off: activations computed again in the backward pass instead of kept."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UsageError(
            f"gradient_checkpointing is on, but a {type(model).__name__} cannot compute its activations twice; turn it off"
        )
    # transformers renamed it from gradient to activation checkpointing; the older name warns where both are there.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        # The non-reentrant form keeps the generator's state, so dropout is the same the second time.
        getattr(model, f"{kind}_checkpointing_enable")(**{f"{kind}_checkpointing_kwargs": {"use_reentrant": False}})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()
