"""The optimisers by name. All decay matrices only; biases and layer norms are left alone, as is usual for these models."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from outlay.errors import UsageError
from outlay.settings import TrainSettings


class Adafactor(torch.optim.Optimizer):
    """Adafactor at a given learning rate, without momentum (Shazeer & Stern 2018, Algorithms 4 and 5).

    Of a matrix ``[..., n, m]`` it keeps the running means of the squared gradient's rows ``[..., n]`` and columns ``[..., m]``
    instead of every element; beta2 at step t is 1 - t^-0.8 (section 7.2), an update's root mean square is at most 1 (section 6).
    Equal to `transformers.optimization.Adafactor` with ``scale_parameter=False, relative_step=False``; but weights that are dealt
    among processes (`DTensor`) are welcome, and all of its state are tensors.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, *, epsilon: float = 1e-30) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self._epsilon = epsilon

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        if closure is not None:
            raise TypeError("Adafactor takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._update(parameter, parameter.grad)
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update, alpha=group["lr"])

    def _update(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        beta = 1.0 - float(state["step"]) ** -0.8
        squared = gradient.square() + self._epsilon
        if gradient.ndim >= 2:
            rows = _kept(state, "rows", _whole(squared.sum(-1)) / gradient.shape[-1], beta)
            columns = _kept(state, "columns", _whole(squared.sum(-2)) / gradient.shape[-2], beta)
            row_factor = (rows / rows.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1)
            update = gradient * _beside(row_factor, gradient) * _beside(columns.rsqrt().unsqueeze(-2), gradient)
        else:
            update = gradient * _kept(state, "squares", squared, beta).rsqrt()
        rms = (_whole(update.square().sum()) / update.numel()).sqrt()
        return update / _beside(rms.clamp_min(1.0), update)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser that ``settings.optimizer`` names, over the parameters that need gradients.

    Raises:
        UsageError: ``adamw_8bit`` without a GPU, without bitsandbytes, or over weights that are dealt among processes.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adafactor":
        return Adafactor(groups, settings.learning_rate)
    if settings.optimizer == "adamw_8bit":
        return _adamw_8bit(parameters, groups, settings.learning_rate)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)


def _adamw_8bit(
    parameters: list[nn.Parameter], groups: list[dict[str, Any]], learning_rate: float
) -> torch.optim.Optimizer:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            "optimizer adamw_8bit needs bitsandbytes, which is not installed; "
            "`pip install bitsandbytes`, or choose adamw or adafactor"
        )
    if any(p.device.type != "cuda" for p in parameters):
        raise UsageError("optimizer adamw_8bit needs a GPU, and there is none here; choose adamw or adafactor")
    if any(isinstance(p, DTensor) for p in parameters):
        raise UsageError("optimizer adamw_8bit cannot be used with FSDP; choose adamw or adafactor")
    bitsandbytes = importlib.import_module("bitsandbytes")
    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, lr=learning_rate)
    return made


def _kept(state: dict[str, Tensor], name: str, now: Tensor, beta: float) -> Tensor:
    """The running mean ``name``, with ``now`` taken in."""
    if name not in state:
        state[name] = torch.zeros_like(now)
    return state[name].mul_(beta).add_(now, alpha=1.0 - beta)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _beside(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor``, which every process holds whole, in a form that can be multiplied with ``other``."""
    if isinstance(other, DTensor):
        mesh = other.device_mesh
        return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return tensor
