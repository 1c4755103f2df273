"""The optimisers by name. All decay matrices only, not biases and layer norms, as is usual for these models."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from outlay.errors import UsageError
from outlay.models.seeds import step_seed
from outlay.settings import TrainSettings, check_optimizer


class Adafactor(torch.optim.Optimizer):
    """Adafactor at a given learning rate, without momentum (Shazeer & Stern 2018, Algorithms 4 and 5).

    Of a matrix ``[..., n, m]`` it keeps the running means of the squared gradient's rows ``[..., n]`` and columns ``[..., m]``
    instead of every element, in float32; beta2 at step t is 1 - t^-0.8 (section 7.2), an update's root mean square is at most 1
    (section 6). Equal to `transformers.optimization.Adafactor` with ``scale_parameter=False, relative_step=False``; but weights
    that are sharded (`DTensor`) are welcome, and all of its state are tensors.

    Weights in bfloat16 are changed in float32 and rounded at random, up or down with probabilities that make the mean right
    (Gupta et al. 2015; Zamirai et al. 2020): a change below half a unit in the last place, 0.2 to 0.4 % of a weight,
    would else be lost. What is drawn is a function of (``seed``, step) and need not be kept. Nothing waits for the device.

    ``compiled``: the arithmetic of a parameter is compiled, so that a step reads and writes the weights a few times instead of
    dozens.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, *, seed: int = 0, compiled: bool = False) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self._seed = seed
        self._generators: dict[tuple[torch.device, bool], torch.Generator] = {}
        self._change_matrix, self._change_vector = _change_matrix, _change_vector
        if compiled:
            self._change_matrix = torch.compile(_change_matrix, dynamic=True)
            self._change_vector = torch.compile(_change_vector, dynamic=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        if closure is not None:
            raise TypeError("Adafactor takes no closure")
        self._generators.clear()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._change(parameter, group["lr"], group["weight_decay"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`; what is kept stays in float32, where the base class would give it the weights' type."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, slots in state_dict["state"].items():
            now = self.state[parameters[index]]
            now.update({name: value.to(now[name].device) for name, value in slots.items()})

    def _change(self, parameter: Tensor, learning_rate: float, weight_decay: float) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter] = self.state[parameter] or _first_state(gradient)
        state["step"] += 1
        step = float(state["step"])
        noise = self._noise(parameter, int(step)) if parameter.dtype == torch.bfloat16 else None
        numbers = _Numbers(
            torch.full((), step**-0.8, device=parameter.device),
            torch.full((), learning_rate, device=parameter.device),
            torch.full((), 1.0 - learning_rate * weight_decay, device=parameter.device) if weight_decay else None,
        )
        is_sharded = isinstance(parameter, DTensor)
        if gradient.ndim >= 2:
            change_matrix = _change_matrix if is_sharded else self._change_matrix
            change_matrix(parameter.detach(), gradient, state["rows"], state["columns"], numbers, noise)
        else:
            change_vector = _change_vector if is_sharded else self._change_vector
            change_vector(parameter.detach(), gradient, state["squares"], numbers, noise)

    def _noise(self, parameter: Tensor, step: int) -> Tensor:
        """Return as many random bits as bfloat16 has fewer than float32, int32, for this process's part of a parameter."""
        own, is_sharded = _own(parameter), isinstance(parameter, DTensor)
        generator = self._generators.get((own.device, is_sharded))
        if generator is None:
            generator = self._generators[own.device, is_sharded] = torch.Generator(own.device)
            # Copies of a weight must be rounded alike, parts of it need not be.
            generator.manual_seed(step_seed(self._seed, step) ^ (dist.get_rank() if is_sharded else 0))
        return torch.empty(own.shape, dtype=torch.int32, device=own.device).random_(0, 1 << 16, generator=generator)


class _Numbers(NamedTuple):
    """Numbers of a step as float32 ``[]`` on the parameter's device: of Python numbers each value would be compiled anew."""

    share: Tensor
    """Weight of the newest gradient in the running means: 1 - beta2."""
    learning_rate: Tensor
    kept: Tensor | None
    """Share of a weight that weight decay leaves; ``None`` = all."""


_EPSILON = 1e-30
"""Added to squared gradients (Shazeer & Stern 2018, section 4, their epsilon 1)."""


def _first_state(gradient: Tensor) -> dict[str, Tensor]:
    step = torch.zeros((), dtype=torch.float32)
    if gradient.ndim < 2:
        return {"step": step, "squares": torch.zeros_like(gradient, dtype=torch.float32)}
    rows, columns = gradient.shape[:-1], (*gradient.shape[:-2], gradient.shape[-1])
    return {
        "step": step,
        "rows": torch.zeros(rows, dtype=torch.float32, device=gradient.device),
        "columns": torch.zeros(columns, dtype=torch.float32, device=gradient.device),
    }


def _change_matrix(
    parameter: Tensor, gradient: Tensor, rows: Tensor, columns: Tensor, numbers: _Numbers, noise: Tensor | None
) -> None:
    squared = gradient.float().square()
    rows.lerp_(_whole(squared.sum(-1)) / gradient.shape[-1] + _EPSILON, numbers.share)
    columns.lerp_(_whole(squared.sum(-2)) / gradient.shape[-2] + _EPSILON, numbers.share)
    row_factor = (rows / rows.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1)
    update = gradient * _beside(row_factor, gradient)
    update.mul_(_beside(columns.rsqrt().unsqueeze(-2), gradient))
    _write(parameter, update, numbers, noise)


def _change_vector(
    parameter: Tensor, gradient: Tensor, squares: Tensor, numbers: _Numbers, noise: Tensor | None
) -> None:
    squares.lerp_(gradient.float().square() + _EPSILON, numbers.share)
    _write(parameter, gradient * squares.rsqrt(), numbers, noise)


def _write(parameter: Tensor, update: Tensor, numbers: _Numbers, noise: Tensor | None) -> None:
    rms = (_whole(update.square().sum()) / update.numel()).sqrt()
    own = _own(parameter)
    value = own if noise is None else own.float()
    if numbers.kept is not None:
        value.mul_(numbers.kept)
    value.addcmul_(_own(update), numbers.learning_rate / rms.clamp_min(1.0), value=-1.0)
    if noise is not None:
        own.copy_(round_at_random(value, noise))


def round_at_random(value: Tensor, noise: Tensor) -> Tensor:
    """Round ``value``, float32, to bfloat16 up or down at random, with a mean of ``value``; its own memory is used up.

    ``noise``: int32 of the same shape, uniform from 0 to 65,535. bfloat16 keeps the upper 16 bits of a float32: what is added to
    the lower 16 carries over with a probability of lower bits / 65,536.
    """
    return value.view(torch.int32).add_(noise).bitwise_and_(-(1 << 16)).view(torch.float32).to(torch.bfloat16)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimiser that ``settings.optimizer`` names, over the parameters that need gradients.

    Raises:
        UsageError: ``adamw_8bit`` without a GPU, without bitsandbytes, or over sharded weights.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if _is_matrix(p)], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if not _is_matrix(p)], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adafactor":
        return Adafactor(groups, settings.learning_rate, seed=settings.seed, compiled=settings.compile)
    if settings.optimizer == "adamw_8bit":
        return _adamw_8bit(parameters, groups, settings.learning_rate)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)


def _is_matrix(parameter: Tensor) -> bool:
    """Vectors of (IA)³ have an axis of one beside their own, and begin at one: they must not decay to zero."""
    return parameter.ndim >= 2 and min(parameter.shape) > 1


def _adamw_8bit(
    parameters: list[nn.Parameter], groups: list[dict[str, Any]], learning_rate: float
) -> torch.optim.Optimizer:
    check_optimizer("adamw_8bit", has_gpu=all(p.device.type == "cuda" for p in parameters))
    if any(isinstance(p, DTensor) for p in parameters):
        raise UsageError("optimizer adamw_8bit cannot be used with FSDP; choose adamw or adafactor")
    bitsandbytes = importlib.import_module("bitsandbytes")
    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, lr=learning_rate)
    return made


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _own(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _beside(tensor: Tensor, other: Tensor) -> Tensor:
    """Return ``tensor``, which every process holds whole, in a form that can be multiplied with ``other``."""
    if isinstance(other, DTensor):
        mesh = other.device_mesh
        return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return tensor
