"""Prepare a model for its training, and undo it: adapters put in and merged, weights in bf16, compiled blocks.

Adapters are put into the model's own layers by the methods of `outlay.models.peft_methods`: the model keeps its class, `generate`
and its config, and once they are merged its `state_dict` has the names of the checkpoint again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.models.peft_methods import METHODS
from outlay.models.pooled import PooledModel
from outlay.settings import TrainSettings


def check(settings: TrainSettings, *, fsdp: bool = False) -> None:
    """Refuse adapters that cannot be had here; ``fsdp``: weights are dealt among processes.

    Raises:
        UsageError: what a method needs is not installed, or weights are dealt.
    """
    for each in settings.adapters():
        if fsdp:
            raise UsageError(
                f"peft {each.method} cannot be used with FSDP: adapters are merged into whole weights; leave out --fsdp, "
                "or choose method full"
            )
        METHODS[each.method](each).check()


def add_adapters(model: nn.Module, settings: TrainSettings, *, fsdp: bool = False) -> nn.Module:
    """Put the adapters of ``settings`` into ``model``, which is changed in place and returned.

    What is drawn is drawn from ``settings.seed``. The first output of such a model is that of the model without adapters, for the
    methods of `METHODS`. Only what the methods train and an encoder's classification layer need gradients afterwards.

    Raises:
        UsageError: what `check` says, or a type of model whose layers have other names.
    """
    adapters = settings.adapters()
    if not adapters:
        return model
    check(settings, fsdp=fsdp)
    torch.manual_seed(settings.seed)
    for each in adapters:
        METHODS[each.method](each).add(model)
    for parameter in _classification_layer(model):
        parameter.requires_grad_(True)
    return model


def check_layers(model: nn.Module, settings: TrainSettings) -> None:
    """Refuse adapters that do not find their layers in ``model``, which may be one without weights.

    Raises:
        UsageError: what `check` says, or a type of model whose layers have other names.
    """
    check(settings)
    for each in settings.adapters():
        METHODS[each.method](each).targets(model)


def merge_adapters(model: nn.Module, settings: TrainSettings) -> nn.Module:
    """Multiply the adapters into the weights and take them out: the checkpoint's own layers, every weight trainable again.

    ``model`` is changed in place and returned; one without adapters is left as it is.
    """
    adapters = settings.adapters()
    for each in reversed(adapters):
        METHODS[each.method](each).merge(model)
    return model.requires_grad_(True) if adapters else model


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the entries of ``model.state_dict()`` that training changes: without the weights that need no gradient."""
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `trained_state` gave.

    Raises:
        ValueError: entries that this model does not train, or too few.
    """
    wanted = trained_state(model).keys()
    if wanted != state.keys():
        odd = sorted(wanted ^ state.keys())
        raise ValueError(f"{len(odd)} entries of the trained state differ from the model's, the first is {odd[0]}")
    model.load_state_dict(dict(state), strict=False)


def cast(model: nn.Module, settings: TrainSettings) -> nn.Module:
    """Convert the parameters to bfloat16 where ``precision`` is ``bf16_weights``; ``model`` is changed in place and returned.

    Buffers keep their type: the frequencies of rotary positions would be too coarse. Call it before the optimiser is made, and
    before the model is moved to a device that could not hold it in float32.
    """
    if settings.precision == "bf16_weights":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def compiled(model: nn.Module, settings: TrainSettings, *, backend: str = "inductor") -> nn.Module:
    """Compile each of the model's blocks at its first call, for any number of rows and tokens, where ``compile`` is set.

    Blocks are alike, so that compiling takes as long for 24 as for two (but a batch without padding, or of one row, has code of
    its own); a model without blocks is compiled whole. Class and `state_dict` stay. Answers are not worth compiling for (each
    token has a longer cache): put `without_compile` around evaluation.
    """
    if settings.compile:
        from transformers.modeling_layers import GradientCheckpointingLayer

        blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for block in blocks or [model]:
            block.compile(dynamic=True, backend=backend)
    return model


def without_compile(settings: TrainSettings) -> AbstractContextManager[Any]:
    """Return a context in which nothing is compiled, and what was compiled runs as it is written."""
    return torch.compiler.set_stance("force_eager") if settings.compile else nullcontext()


def _classification_layer(model: Any) -> list[nn.Parameter]:
    """Return the parameters of an encoder's classification layer: adapters alone could not put it right."""
    if isinstance(model, PooledModel):
        return list(model.head.parameters())
    if not type(model).__name__.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return []
    inside = f"{model.base_model_prefix}."
    return [parameter for name, parameter in model.named_parameters() if not name.startswith(inside)]
