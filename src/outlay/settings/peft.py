"""Settings of PEFT methods, a class for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from outlay.settings.declared import Setting, SettingField, check_fields, own_fields


@dataclass(frozen=True, slots=True)
class PeftSettings:
    """Settings of one PEFT method: a subclass for each, whose fields are declared with a `Setting` and have a default.

    Outside of the class a field is called by method and name, such as ``lora_rank``.
    """

    method: ClassVar[str]
    is_in_every_key: ClassVar[bool] = False
    """True where the JSON of a training by another method holds these settings too, as it did before methods had their own."""

    def __post_init__(self) -> None:
        check_fields(self, f"{self.method}_")


@dataclass(frozen=True, slots=True)
class LoraSettings(PeftSettings):
    """Low-rank updates (Hu et al. 2022)."""

    method: ClassVar[str] = "lora"
    is_in_every_key: ClassVar[bool] = True

    rank: Annotated[int, Setting("Rank of the updates of ``lora``.", gt=0)] = 16
    alpha: Annotated[float, Setting("The updates of ``lora`` are scaled by alpha / rank.", gt=0)] = 32.0


@dataclass(frozen=True, slots=True)
class Ia3Settings(PeftSettings):
    """(IA)³ (Liu et al. 2022, section 3.3), which has nothing to set."""

    method: ClassVar[str] = "ia3"


PEFT_SETTINGS: dict[str, type[PeftSettings]] = {each.method: each for each in (LoraSettings, Ia3Settings)}
"""Settings classes by method; `outlay.models.peft_methods.register` adds to them."""


class _Methods(Sequence[str]):
    """Names of methods: ``none``, then those registered at the moment."""

    def __len__(self) -> int:
        return 1 + len(PEFT_SETTINGS)

    def __getitem__(self, at: Any) -> Any:
        return ("none", *PEFT_SETTINGS)[at]


PEFT_METHODS: Sequence[str] = _Methods()


def peft_options() -> Mapping[str, tuple[type[PeftSettings], SettingField]]:
    """Return the settings of all PEFT methods under the names that they have outside of their method, such as ``lora_rank``."""
    return {
        f"{kind.method}_{name}": (kind, replace(each, name=f"{kind.method}_{name}"))
        for kind in PEFT_SETTINGS.values()
        for name, each in own_fields(kind).items()
    }
