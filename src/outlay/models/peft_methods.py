"""Methods of parameter-efficient fine-tuning by name: which layers they change, how they are put in, and how they are merged.

A method is a class here and its settings a dataclass in `outlay.settings`; `register` takes both. LoRA and (IA)³ are those of the
library `peft`, put into the model's own layers.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from outlay.errors import UsageError
from outlay.settings import METHOD_SETTINGS, Ia3Settings, LoraSettings, PeftSettings

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


S = TypeVar("S", bound=PeftSettings)


class PeftMethod(ABC, Generic[S]):
    """A method of parameter-efficient fine-tuning with its settings; its name is that of their class.

    Models are changed in place; their class and their config stay as they are.
    """

    kind: ClassVar[type[PeftSettings]]

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @abstractmethod
    def check(self) -> None:
        """Refuse what cannot be had here, whatever the model.

        Raises:
            UsageError: a library that is missing, say.
        """

    @abstractmethod
    def targets(self, model: nn.Module) -> list[str]:
        """Return the names of the layers that are changed in ``model``, which may be one without weights.

        Empty where a library chooses them by the type of the model.

        Raises:
            UsageError: a type of model whose layers have other names.
        """

    @abstractmethod
    def add(self, model: nn.Module) -> None:
        """Put what is trained into ``model`` and freeze the rest, with random numbers from torch's own generator.

        Raises:
            UsageError: as `targets`.
        """

    @abstractmethod
    def merge(self, model: nn.Module) -> None:
        """Work what was trained into the weights and take it out: ``state_dict`` has the checkpoint's names again."""


class _LibraryMethod(PeftMethod[S]):
    """A method of the library `peft` whose adapters sit in layers of their own."""

    def check(self) -> None:
        """Refuse the method where the library is missing."""
        if importlib.util.find_spec("peft") is None:
            raise UsageError(
                f"peft {self.kind.method} needs the library peft, which is not installed; `pip install 'outlay[peft]'`, "
                "or choose method full"
            )

    @abstractmethod
    def config(self, model: nn.Module) -> Any:
        """Return the library's config for ``model``."""

    def add(self, model: nn.Module) -> None:
        """Put adapters into the layers of ``model``; nothing else needs gradients afterwards."""
        from peft import inject_adapter_in_model

        inject_adapter_in_model(self.config(model), model)

    def merge(self, model: nn.Module) -> None:
        """Multiply the adapters into the weights and put the checkpoint's own layers back."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                parent, _, own = name.rpartition(".")
                setattr(model.get_submodule(parent), own, module.get_base_layer())
        if hasattr(model, "peft_config"):
            delattr(model, "peft_config")


class Lora(_LibraryMethod[LoraSettings]):
    """W x + (alpha / rank) B A x beside the queries and values (Hu et al. 2022, sections 4.1 and 4.2; A drawn, B zero).

    Where the library `peft` knows other layers for a type of model, they are taken.
    """

    kind = LoraSettings

    def targets(self, model: nn.Module) -> list[str]:
        """Return the layers that make queries and values, or nothing where the library knows the type of the model."""
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

        if type_of(model) in KNOWN:
            return []
        names = dense_layers(model)
        return _first((_ending(names, {queries, values}) for queries, _, values in _ATTENTION), self.kind.method, model)

    def config(self, model: nn.Module) -> Any:
        """Return a `LoraConfig`."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,
            target_modules=self.targets(model) or None,
            fan_in_fan_out=_is_transposed(model),
        )


class Ia3(_LibraryMethod[Ia3Settings]):
    """l_k ⊙ K, l_v ⊙ V and l_ff ⊙ γ(W₁ x), vectors of ones at first (Liu et al. 2022, section 3.3).

    Layers that make queries, keys and values in one are rescaled whole. The library `peft` has names of its own for many types of
    model, but some of them rescale queries, or what leaves the attention: they are taken where no others are found.
    """

    kind = Ia3Settings

    def targets(self, model: nn.Module) -> list[str]:
        """Return the layers that make keys and values and those that inner activations enter; else nothing, as for `Lora`."""
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        names, inner = dense_layers(model), self._inner(model)
        attention = [_ending(names, {keys, values}) for _, keys, values in _ATTENTION]
        if type_of(model) in KNOWN and not (inner and any(attention)):
            return []
        return [*_first(attention, self.kind.method, model), *_first([inner], self.kind.method, model)]

    def config(self, model: nn.Module) -> Any:
        """Return an `IA3Config`."""
        from peft import IA3Config

        targets = self.targets(model)
        layers = {"target_modules": targets, "feedforward_modules": self._inner(model)} if targets else {}
        return IA3Config(fan_in_fan_out=_is_transposed(model), **layers)

    def _inner(self, model: nn.Module) -> list[str]:
        names = dense_layers(model)
        return next((found for end in _FEED_FORWARD if (found := _ending(names, {end}))), [])


METHODS: dict[str, type[PeftMethod[Any]]] = {}
"""By name."""


def register(method: type[PeftMethod[Any]]) -> None:
    """Let trainings choose a method by its name, with its settings as options called METHOD_FIELD.

    Raises:
        ValueError: another method, or other settings, of that name.
    """
    name = method.kind.method
    if name in METHODS or METHOD_SETTINGS.get(name, method.kind) is not method.kind:
        raise ValueError(f"there is a PEFT method {name!r} already; choose another name")
    METHODS[name] = method
    METHOD_SETTINGS[name] = method.kind


def type_of(model: Any) -> str:
    """Return what the config of a model calls its type."""
    return str(model.config.model_type)


def dense_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that an adapter can sit in."""
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _is_transposed(model: nn.Module) -> bool:
    """Return whether weights are kept as ``[inputs, outputs]``, as GPT-2's are."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def _ending(names: Iterable[str], ends: Iterable[str]) -> list[str]:
    """Return the names whose last parts are one of ``ends``."""
    dotted = tuple(f".{end}" for end in ends)
    return [n for n in names if f".{n}".endswith(dotted) and not f".{n}".endswith(f".{_NOT_FEED_FORWARD}")]


def _first(found: Iterable[list[str]], method: str, model: nn.Module) -> list[str]:
    names = next((each for each in found if each), None)
    if names is None:
        raise UsageError(
            f"peft {method} does not know the layers of a model of type {type_of(model)!r}; choose method full, or another model"
        )
    return names


for _method in (Lora, Ia3):
    register(_method)
