"""What becomes of a model before and after its training: adapters put in and merged, weights in bf16, compiled blocks.

Adapters are those of `peft`, put into the model's own layers: the model keeps its class, `generate` and its config, and once they
are merged its `state_dict` has the names of the checkpoint again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.settings import TrainSettings

_ATTENTION = (
    *(("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin")),
    ("query_proj", "key_proj", "value_proj"),
    *((fused, fused, fused) for fused in ("Wqkv", "qkv_proj", "query_key_value", "c_attn")),
)
"""Names of the layers that make queries, keys and values; some models make all three in one."""

_FEED_FORWARD = (
    *("wo", "fc2", "down_proj", "mlp.c_proj", "mlp.Wo", "ffn.lin2", "ffn_output", "dense_4h_to_h", "fc_out"),
    "output.dense",
)
"""Names of the layers that the inner activation of a feed-forward network enters."""

_NOT_FEED_FORWARD = "attention.output.dense"
"""Where an attention's result leaves it, in models of BERT's kind."""


def check(settings: TrainSettings, *, fsdp: bool = False) -> None:
    """Whether the adapters that ``settings.peft`` names can be had here; ``fsdp``: weights are dealt among processes.

    Raises:
        UsageError: peft is not installed, or weights are dealt.
    """
    if settings.peft == "none":
        return
    if importlib.util.find_spec("peft") is None:
        raise UsageError(
            f"peft {settings.peft} needs the library peft, which is not installed; `pip install 'outlay[peft]'`, "
            "or choose peft none"
        )
    if fsdp:
        raise UsageError(
            f"peft {settings.peft} cannot be used with FSDP: adapters are merged into whole weights; leave out --fsdp, "
            "or choose peft none"
        )


def add_adapters(model: nn.Module, settings: TrainSettings, *, fsdp: bool = False) -> nn.Module:
    """Put the adapters that ``settings.peft`` names into ``model``, which is changed in place and returned.

    ``lora``: W x + (alpha / rank) B A x beside the queries and values (Hu et al. 2022, sections 4.1 and 4.2; A drawn from
    ``settings.seed``, B zero), or wherever `peft` puts it in a model of this type. ``ia3``: l_k ⊙ K, l_v ⊙ V and l_ff ⊙ γ(W₁ x),
    vectors of ones at first (Liu et al. 2022, section 3.3); layers that make queries, keys and values in one are rescaled whole.
    The first output of such a model is that of the model without adapters. Only the adapters and an encoder's classification
    layer need gradients afterwards.

    Raises:
        UsageError: what `check` says, or a type of model whose layers have other names.
    """
    if settings.peft == "none":
        return model
    check(settings, fsdp=fsdp)
    from peft import inject_adapter_in_model

    torch.manual_seed(settings.seed)
    config = _lora(model, settings) if settings.peft == "lora" else _ia3(model)
    inject_adapter_in_model(config, model)
    for parameter in _classification_layer(model):
        parameter.requires_grad_(True)
    return model


def check_layers(model: nn.Module, settings: TrainSettings) -> None:
    """Whether the adapters that ``settings.peft`` names find their layers in ``model``, which may be one without weights.

    Raises:
        UsageError: what `check` says, or a type of model whose layers have other names.
    """
    check(settings)
    if settings.peft != "none":
        _ = _lora(model, settings) if settings.peft == "lora" else _ia3(model)


def merge_adapters(model: nn.Module) -> nn.Module:
    """Multiply the adapters into the weights and take them out: the checkpoint's own layers, every weight trainable again.

    ``model`` is changed in place and returned; one without adapters is left as it is.
    """
    if not hasattr(model, "peft_config"):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
    delattr(model, "peft_config")
    return model.requires_grad_(True)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The entries of ``model.state_dict()`` that training changes: without the weights that need no gradient."""
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
    """With ``precision: bf16_weights`` the parameters in bfloat16; ``model`` is changed in place and returned.

    Buffers keep their type: the frequencies of rotary positions would be too coarse. Call it before the optimiser is made, and
    before the model is moved to a device that could not hold it in float32.
    """
    if settings.precision == "bf16_weights":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def compiled(model: nn.Module, settings: TrainSettings, *, backend: str = "inductor") -> nn.Module:
    """With ``settings.compile`` each of the model's blocks compiled at its first call, for any number of rows and tokens.

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
    """A context in which nothing is compiled, and what was compiled runs as it is written."""
    return torch.compiler.set_stance("force_eager") if settings.compile else nullcontext()


def _lora(model: nn.Module, settings: TrainSettings) -> Any:
    from peft import LoraConfig
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    kind, names = _type_of(model), _dense_layers(model)
    targets = None
    if kind not in KNOWN:
        ours = [_ending(names, {queries, values}) for queries, _, values in _ATTENTION]
        targets = _first(ours, "lora", kind)
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=targets,
        fan_in_fan_out=_transposed(model),
    )


def _ia3(model: nn.Module) -> Any:
    """peft has names of its own for many types, but some of them rescale queries, or what leaves the attention."""
    from peft import IA3Config
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    kind, names = _type_of(model), _dense_layers(model)
    inner = next((found for end in _FEED_FORWARD if (found := _ending(names, {end}))), [])
    attention = [_ending(names, {keys, values}) for _, keys, values in _ATTENTION]
    if kind in KNOWN and not (inner and any(attention)):
        return IA3Config(fan_in_fan_out=_transposed(model))
    return IA3Config(
        target_modules=[*_first(attention, "ia3", kind), *_first([inner], "ia3", kind)],
        feedforward_modules=inner,
        fan_in_fan_out=_transposed(model),
    )


def _type_of(model: Any) -> str:
    return str(model.config.model_type)


def _dense_layers(model: nn.Module) -> list[str]:
    """Names of the layers that an adapter can sit in."""
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _transposed(model: nn.Module) -> bool:
    """Whether weights are kept as ``[inputs, outputs]``, as GPT-2 does."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def _ending(names: Iterable[str], ends: Iterable[str]) -> list[str]:
    """The names whose last parts are one of ``ends``."""
    dotted = tuple(f".{end}" for end in ends)
    return [n for n in names if f".{n}".endswith(dotted) and not f".{n}".endswith(f".{_NOT_FEED_FORWARD}")]


def _first(found: Iterable[list[str]], peft: str, kind: str) -> list[str]:
    names = next((each for each in found if each), None)
    if names is None:
        raise UsageError(
            f"peft {peft} does not know the layers of a model of type {kind!r}; choose peft none, or another model"
        )
    return names


def _classification_layer(model: Any) -> list[nn.Parameter]:
    """Of an encoder: it is new, so that adapters alone could not put it right."""
    if not type(model).__name__.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return []
    inside = f"{model.base_model_prefix}."
    return [parameter for name, parameter in model.named_parameters() if not name.startswith(inside)]
