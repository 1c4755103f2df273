"""Settings of training methods, a class for each method."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from outlay.errors import UsageError
from outlay.settings.declared import SHORT_NAMES, Setting, SettingField, check_fields, own_fields
from outlay.spec import Family, Kind

METHOD = "Method"
"""Heading of these settings on a help page."""
AUTO_METHOD = "auto"
"""In place of a method: the one that `outlay.settings.auto` chooses for model, task and number of labels."""
HeadStart = Literal["random", "probe"]
"""First weights of the head: random numbers, or those of a regression on frozen vectors."""


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """Settings of one training method: a subclass for each, whose fields are declared with a `Setting` and have a default.

    Outside of the class a field is called by method and name, such as ``lora_rank``, or by another prefix than the method.
    """

    method: ClassVar[str]
    prefix: ClassVar[str | None] = None
    is_in_every_key: ClassVar[bool] = False
    """True where the JSON of a training by another method holds these settings too, as it did before methods had their own."""
    head: ClassVar[HeadStart] = "random"
    is_pooled: ClassVar[bool] = True
    """True where the head reads pooled vectors; False where it is the checkpoint's own class layer, or reads no vectors."""
    reads_vectors: ClassVar[bool] = True
    """True where an encoder reads the texts."""

    def __post_init__(self) -> None:
        check_fields(self, self.option_prefix())

    @classmethod
    def option_prefix(cls) -> str:
        """Return the text before a field's name outside of the class."""
        return f"{cls.method}_" if cls.prefix is None else cls.prefix

    @property
    def trains(self) -> str:
        """Weights that gradient steps train: ``none``, ``all``, or those of a PEFT method by its name."""
        return "all"


@dataclass(frozen=True, slots=True)
class FullSettings(MethodSettings):
    """Fine-tuning of every weight with the checkpoint's own class layer, as published (Kang et al. 2023), with nothing to set."""

    method: ClassVar[str] = "full"
    is_pooled: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class PeftSettings(MethodSettings):
    """Settings of a PEFT method, which trains its own weights in the place of those of the checkpoint."""

    is_pooled: ClassVar[bool] = False

    @property
    def trains(self) -> str:
        """The method's own weights."""
        return self.method


@dataclass(frozen=True, slots=True)
class LoraSettings(PeftSettings):
    """Low-rank updates (Hu et al. 2022)."""

    method: ClassVar[str] = "lora"
    is_in_every_key: ClassVar[bool] = True

    rank: Annotated[int, Setting("Rank of the updates of ``lora``.", METHOD, gt=0)] = 16
    alpha: Annotated[float, Setting("The updates of ``lora`` are scaled by alpha / rank.", METHOD, gt=0)] = 32.0


@dataclass(frozen=True, slots=True)
class Ia3Settings(PeftSettings):
    """(IA)³ (Liu et al. 2022, section 3.3), which has nothing to set."""

    method: ClassVar[str] = "ia3"


CHOOSE_BY = ("auto", "log_loss", "metric")
CLASS_WEIGHTS = ("auto", "none", "balanced")


@dataclass(frozen=True, slots=True)
class ProbeSettings(MethodSettings):
    """Softmax regression on the frozen encoder's vectors."""

    method: ClassVar[str] = "probe"
    head: ClassVar[HeadStart] = "probe"

    folds: Annotated[
        int,
        Setting(
            "Parts of the labels that a regression's strength is chosen over; fewer for rare classes.", METHOD, gt=1
        ),
    ] = 5
    strengths: Annotated[
        int, Setting("Values of C tried, from 1e-4 to 1e4 in equal steps of its logarithm; 1 = C is 1.", METHOD, gt=0)
    ] = 10
    # By the task's own metric where rare classes count: log-loss hardly sees them.
    choose_by: Annotated[
        str,
        Setting(
            "``log_loss``, ``metric`` (the task's), or ``auto``: its metric where that is an F1.",
            METHOD,
            choices=CHOOSE_BY,
        ),
    ] = "auto"
    class_weight: Annotated[
        str,
        Setting(
            "``none``, ``balanced`` (rare classes weigh more), or ``auto``: balanced where the metric is an F1.",
            METHOD,
            choices=CLASS_WEIGHTS,
        ),
    ] = "auto"

    @property
    def trains(self) -> str:
        """No weight of the encoder."""
        return "none"


class _Trainable(Sequence[str]):
    """``all``, then the names of the PEFT methods registered at the moment."""

    def __len__(self) -> int:
        return len(peft_methods()) + 1

    def __getitem__(self, at: Any) -> Any:
        return ("all", *peft_methods())[at]


@dataclass(frozen=True, slots=True)
class ProbeThenTuneSettings(MethodSettings):
    """Fine-tuning that starts from the probe's head, at a smaller learning rate (Kumar et al. 2022, arXiv 2202.10054)."""

    method: ClassVar[str] = "probe_then_tune"
    prefix: ClassVar[str | None] = ""
    head: ClassVar[HeadStart] = "probe"

    tune: Annotated[
        str,
        Setting(
            "Weights that ``probe_then_tune`` trains: ``all``, or those of a PEFT method.", METHOD, choices=_Trainable()
        ),
    ] = "all"

    @property
    def trains(self) -> str:
        """What ``tune`` names."""
        return self.tune


@dataclass(frozen=True, slots=True)
class ContrastiveSettings(MethodSettings):
    """Contrastive fine-tuning of the encoder on pairs of labelled texts, then a probe (SetFit, Tunstall et al. 2022)."""

    method: ClassVar[str] = "contrastive"
    head: ClassVar[HeadStart] = "probe"


@dataclass(frozen=True, slots=True)
class TfidfSettings(MethodSettings):
    """TF-IDF of words and pairs of words, then a softmax regression; no encoder reads the texts."""

    method: ClassVar[str] = "tfidf"
    head: ClassVar[HeadStart] = "probe"
    is_pooled: ClassVar[bool] = False
    reads_vectors: ClassVar[bool] = False

    @property
    def trains(self) -> str:
        """Nothing: there is no encoder."""
        return "none"


@dataclass(frozen=True, slots=True)
class MajoritySettings(MethodSettings):
    """The commonest label, whatever the text."""

    method: ClassVar[str] = "majority"
    is_pooled: ClassVar[bool] = False
    reads_vectors: ClassVar[bool] = False

    @property
    def trains(self) -> str:
        """Nothing: there is no encoder."""
        return "none"


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    each.method: each
    for each in (
        *(FullSettings, ProbeSettings, ProbeThenTuneSettings, ContrastiveSettings, TfidfSettings, MajoritySettings),
        *(LoraSettings, Ia3Settings),
    )
}
"""Settings classes by method; `outlay.models.peft_methods.register` adds to them."""


def peft_methods() -> tuple[str, ...]:
    """Return the names of the PEFT methods."""
    return tuple(name for name, kind in METHOD_SETTINGS.items() if issubclass(kind, PeftSettings))


class _Methods(Sequence[str]):
    """Names of the methods registered at the moment."""

    def __len__(self) -> int:
        return len(METHOD_SETTINGS)

    def __getitem__(self, at: Any) -> Any:
        return tuple(METHOD_SETTINGS)[at]


METHOD_NAMES: Sequence[str] = _Methods()


def method_options() -> Mapping[str, tuple[type[MethodSettings], SettingField]]:
    """Return the settings of all methods under the names that they have outside of their method, such as ``lora_rank``."""
    return {
        f"{kind.option_prefix()}{name}": (kind, replace(each, name=f"{kind.option_prefix()}{name}"))
        for kind in METHOD_SETTINGS.values()
        for name, each in own_fields(kind).items()
    }


def flat_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under their own names, with a method that brings its own settings taken apart.

    ``method: {probe_then_tune: {tune: lora}}`` and ``probe_then_tune: {tune: lora}`` are ``method: probe_then_tune, tune: lora``;
    ``peft: lora``, as it was called once, is ``method: lora``, and ``peft: none`` is ``method: full``. ``lr`` is
    ``learning_rate`` (`SHORT_NAMES`).

    Raises:
        UsageError: two methods, a method's settings that are no mapping, or a setting under two names.
    """
    flat: dict[str, Any] = {}
    methods: list[str] = []
    for name, value in given.items():
        if name == OLD_METHOD_KEY:
            _remark_on_old_name()
            methods.append("full" if value == "none" else str(value))
        elif name == "method" and isinstance(value, Mapping):
            methods += _taken_apart(value, flat)
        elif name == "method":
            methods.append(value)
        elif name in METHOD_SETTINGS:
            methods += _taken_apart({name: value}, flat)
        elif name in SHORT_NAMES and SHORT_NAMES[name] in given:
            raise UsageError(f"{SHORT_NAMES[name]} is given twice, under its two names; give it once")
        else:
            flat[SHORT_NAMES.get(name, name)] = value
    if len(set(methods)) > 1:
        raise UsageError(f"two methods are named, {' and '.join(map(str, methods))}; name one")
    return flat | ({"method": methods[0]} if methods else {})


@cache
def _remark_on_old_name() -> None:
    """Say once that a setting has a new name."""
    logging.getLogger(__name__).warning(OLD_METHOD_REMARK)


def check_method(settings: Any, kind: Kind, family: Family, *, learns_from: str = "labels") -> None:
    """Refuse a method that does not suit a task or a model.

    ``settings``: of a training; ``learns_from``: ``labels`` or ``targets``.

    Raises:
        UsageError: one line, with the methods that do.
    """
    method = settings.method
    if (
        method == AUTO_METHOD
        or METHOD_SETTINGS[method].method == "full"
        or issubclass(METHOD_SETTINGS[method], PeftSettings)
    ):
        return
    others = ", ".join(("full", *peft_methods()))
    if kind == "generation":
        raise UsageError(f"method {method} chooses among labels, and this task's answers are written; choose {others}")
    if kind == "entities" and (method not in ("probe", "probe_then_tune") or family != "encoder"):
        what = "an encoder" if family == "encoder" else f"a {family} model"
        raise UsageError(f"method {method} does not tag entities with {what}; choose {others}, or probe for an encoder")
    if learns_from == "targets" and method in ("contrastive", "majority"):
        raise UsageError(
            f"method {method} learns from labels, not from a teacher; choose probe, probe_then_tune, tfidf, {others}"
        )


OLD_METHOD_KEY = "peft"
"""Name of the setting ``method`` in earlier versions, which had PEFT methods alone; read for one version."""
OLD_METHOD_REMARK = (
    "the setting peft is now called method (peft: none is method: full); the old name is read for one version"
)


def without_auto_method(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with ``full`` in place of ``auto``, for what holds whichever method is chosen."""
    return dict(given) | ({"method": "full"} if given.get("method") == AUTO_METHOD else {})


def _taken_apart(named: Mapping[str, Any], flat: dict[str, Any]) -> list[str]:
    """Put the settings of a method into ``flat`` under their names outside of it, and return the method."""
    for method, settings in named.items():
        if settings is not None and not isinstance(settings, Mapping):
            raise UsageError(f"{method} is {settings!r}; it must be the settings of this method by name")
        kind = METHOD_SETTINGS.get(method)
        prefix = f"{method}_" if kind is None else kind.option_prefix()
        flat |= {f"{prefix}{name}": value for name, value in (settings or {}).items()}
    return list(named)
