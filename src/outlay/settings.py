"""What decides a training, and what decides how a teacher speaks, as plain data: part of the key of what comes out."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Set
from dataclasses import Field, asdict, dataclass, fields, replace
from typing import Any, ClassVar

from outlay.errors import UsageError
from outlay.spec import Family, Kind

OBJECTIVES = ("masked", "published")
DIVERGENCES = ("forward_kl", "reverse_kl", "js")
OPTIMIZERS = ("adamw", "adafactor", "adamw_8bit")
PRECISIONS = ("bf16", "bf16_weights", "fp32")
ANSWERS_FROM = ("labels", "free")
TEMPERATURES = (1.0, 2.0, 4.0)
"""Offered temperatures; Kang et al. 2023 distil at 2 (their released script)."""
LEAST_SEED, LARGEST_SEED = -(2**63), 2**64 - 1
"""What torch's generators take (`torch.Generator.manual_seed`); orders of rows are hashes and would take any number."""

_FOR_BF16_WEIGHTS = "adafactor where precision is bf16_weights, for its updates are rounded at random"

Limit = tuple[str, bool, str]
"""A field, whether its value is good, and what it must be."""


_ANNOTATED: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


@dataclass(frozen=True, slots=True)
class PeftSettings:
    """Settings of one PEFT method: a subclass for each, whose fields are int, float, str or bool, perhaps ``| None``.

    Outside of it a field is called by method and name, such as ``lora_rank``; every one has a default.
    """

    method: ClassVar[str]
    is_in_every_key: ClassVar[bool] = False
    """Whether the JSON of a training by another method holds these settings too, as it did before methods had their own."""

    def __post_init__(self) -> None:
        allowed = {each.name: _annotated_types(annotation_of(each)) for each in fields(self)}
        _check_types(self, (), allowed, f"{self.method}_")
        _check_limits(self, self.limits(), f"{self.method}_")

    def limits(self) -> tuple[Limit, ...]:
        """Return what the values must be, beyond their types."""
        return ()


@dataclass(frozen=True, slots=True)
class LoraSettings(PeftSettings):
    """Low-rank updates (Hu et al. 2022)."""

    method: ClassVar[str] = "lora"
    is_in_every_key: ClassVar[bool] = True

    rank: int = 16
    """Rank of the low-rank updates."""
    alpha: float = 32.0
    """Scale of the updates: alpha / rank."""

    def limits(self) -> tuple[Limit, ...]:
        """Return what rank and scale must be."""
        return (("rank", self.rank >= 1, "at least 1"), ("alpha", self.alpha > 0, "above 0"))


@dataclass(frozen=True, slots=True)
class Ia3Settings(PeftSettings):
    """(IA)³ (Liu et al. 2022, section 3.3), which has nothing to set."""

    method: ClassVar[str] = "ia3"


PEFT_SETTINGS: dict[str, type[PeftSettings]] = {each.method: each for each in (LoraSettings, Ia3Settings)}
"""By method; `outlay.models.peft_methods.register` adds to them."""


def peft_options() -> dict[str, tuple[type[PeftSettings], Field[Any]]]:
    """Return the settings of all PEFT methods under the names that they have outside of their method, such as ``lora_rank``."""
    return {f"{kind.method}_{each.name}": (kind, each) for kind in PEFT_SETTINGS.values() for each in fields(kind)}


def annotation_of(each: Field[Any]) -> str:
    """Return the type of a settings field as it is written, such as ``int | None``."""
    return each.type.__name__ if isinstance(each.type, type) else str(each.type)


def _annotated_types(annotation: str) -> tuple[type, ...]:
    plain, _, optional = annotation.partition(" | ")
    return (*_ANNOTATED[plain], type(None)) if optional else _ANNOTATED[plain]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Hyper-parameters of one training; every field changes the bytes that come out."""

    epochs: int
    batch_size: int
    """Rows per optimiser step, over all processes."""
    learning_rate: float
    warmup_fraction: float = 0.06
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    patience: int | None = None
    """Evaluations without a better dev score before stopping; ``None`` = train to the end. The best one is kept either way."""
    dropout: float | None = None
    """Of every layer; ``None`` = as the checkpoint's config says."""
    temperature: float = 1.0
    """Of the divergence to a teacher; cross-entropy ignores it."""
    precision: str = "fp32"
    """``bf16`` (autocast; weights and optimiser stay float32), ``bf16_weights`` (weights and gradients too, half the memory;
    updates are rounded at random, so that small ones are not lost) or ``fp32``; never ``auto``, which is resolved before
    settings are made (`outlay.hardware.precision`)."""
    seed: int = 0
    objective: str = "masked"
    """Of a distillation: ``masked`` (the mean over real positions) or ``published`` (as the public code of Kang et al. 2023: the
    mean over all positions of the batch, padding included)."""
    divergence: str = "forward_kl"
    """From teacher to student: ``forward_kl``, ``reverse_kl`` or ``js`` (Jensen-Shannon)."""
    js_beta: float = 0.5
    """The teacher's share in the mixture of ``js``; the others ignore it."""
    gold_weight: float = 0.0
    """Share of cross-entropy on gold labels in a distillation: (1 - w) divergence + w cross-entropy."""
    micro_batch_size: int | None = None
    """Rows per forward pass and process; ``None`` = all of a process's share of the step at once."""
    optimizer: str = "adamw"
    """``adamw`` (fused where it can be), ``adafactor`` (Shazeer & Stern 2018, at the given rate) or ``adamw_8bit``."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    eval_steps: int | None = None
    """Optimiser steps between two evaluations on dev; ``None`` = one after each epoch."""
    eval_share: float | None = None
    """Evaluations on dev take at most this share of the training's work: only as many dev rows are answered; ``None`` = all."""
    batch_tokens: int | None = None
    """Fill the batch of an optimiser step up to so many tokens, padding included, in place of ``batch_size`` rows."""
    compile: bool = False
    """Compile the model (`torch.compile`): a minute at the start, then faster steps on a GPU."""
    peft: str = "none"
    """``none`` (every weight is trained) or a PEFT method, one of `PEFT_SETTINGS`."""
    peft_settings: tuple[PeftSettings, ...] = ()
    """Settings of PEFT methods that are not at their defaults; `changed` and `to_json` name their fields as ``lora_rank``."""

    def __post_init__(self) -> None:
        whole, number, text = (int,), (int, float), (str,)
        _check_types(
            self,
            number,
            {
                **dict.fromkeys(("epochs", "batch_size", "seed"), whole),
                **dict.fromkeys(("patience", "micro_batch_size", "eval_steps", "batch_tokens"), (int, type(None))),
                **dict.fromkeys(("precision", "objective", "divergence", "optimizer", "peft"), text),
                **dict.fromkeys(("dropout", "eval_share"), (int, float, type(None))),
                **dict.fromkeys(("gradient_checkpointing", "compile"), (bool,)),
                "peft_settings": (tuple,),
            },
        )
        # Equal settings are equal however they came about.
        given = {each.method: each for each in self.peft_settings if each != type(each)()}
        object.__setattr__(self, "peft_settings", tuple(given[method] for method in sorted(given)))
        _check_limits(self, (*self._step_limits(), *self._loss_limits()))

    def _step_limits(self) -> tuple[Limit, ...]:
        micro, steps, methods = self.micro_batch_size, self.eval_steps, ("none", *PEFT_SETTINGS)
        return (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", 0 < self.learning_rate < 1, "between 0 and 1"),
            ("warmup_fraction", 0 <= self.warmup_fraction < 1, "from 0 to below 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("max_grad_norm", self.max_grad_norm > 0, "above 0"),
            ("patience", self.patience is None or self.patience >= 1, "at least 1, or none"),
            ("dropout", self.dropout is None or 0 <= self.dropout < 1, "from 0 to below 1, or none"),
            ("precision", self.precision in PRECISIONS, _one_of(PRECISIONS)),
            ("micro_batch_size", micro is None or micro >= 1, "at least 1, or none"),
            ("optimizer", self.optimizer in OPTIMIZERS, _one_of(OPTIMIZERS)),
            ("optimizer", self.precision != "bf16_weights" or self.optimizer == "adafactor", _FOR_BF16_WEIGHTS),
            ("eval_steps", steps is None or steps >= 1, "at least 1, or none"),
            ("eval_share", self.eval_share is None or 0 < self.eval_share <= 1, "above 0 and at most 1, or none"),
            ("batch_tokens", self.batch_tokens is None or self.batch_tokens >= 1, "at least 1, or none"),
            ("peft", self.peft in methods, _one_of(methods)),
            ("seed", LEAST_SEED <= self.seed <= LARGEST_SEED, _SEEDS),
        )

    def _loss_limits(self) -> tuple[Limit, ...]:
        return (
            ("temperature", self.temperature > 0, "above 0"),
            ("objective", self.objective in OBJECTIVES, _one_of(OBJECTIVES)),
            ("divergence", self.divergence in DIVERGENCES, _one_of(DIVERGENCES)),
            ("js_beta", 0 < self.js_beta < 1, "between 0 and 1"),
            ("gold_weight", 0 <= self.gold_weight < 1, "from 0 to below 1"),
        )

    def changed(self, overrides: Mapping[str, Any]) -> TrainSettings:
        """These settings with some fields replaced, those of PEFT methods by names such as ``lora_rank``.

        Raises:
            UsageError: a name that is no setting, or a value outside its limits.
        """
        options = peft_options()
        of_methods: dict[str, dict[str, Any]] = {}
        for name in (each for each in overrides if each in options):
            kind, each = options[name]
            of_methods.setdefault(kind.method, {})[each.name] = overrides[name]
        own = {name: value for name, value in overrides.items() if name not in options}
        _check_names({each.name for each in fields(self)} - {"peft_settings"} | options.keys(), own, "training")
        new = [replace(self.of_method(method), **values) for method, values in of_methods.items()]
        kept = (each for each in self.peft_settings if each.method not in of_methods)
        return replace(self, **own, peft_settings=(*kept, *new))

    def of_method(self, method: str) -> PeftSettings:
        """Return the settings of a PEFT method, chosen or not."""
        return next((each for each in self.peft_settings if each.method == method), None) or PEFT_SETTINGS[method]()

    def adapters(self) -> tuple[PeftSettings, ...]:
        """Return the settings of the methods whose adapters are trained, in the order in which they are put into the model.

        None where every weight is trained. Today a training has one method at most, for all layers; one that has several, or
        several groups of layers, has a field of its own that the JSON leaves out where it says nothing.
        """
        return () if self.peft == "none" else (self.of_method(self.peft),)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for keys and manifests: of PEFT methods, the settings of the chosen one, and of ``lora`` always."""
        document = asdict(self)
        del document["peft_settings"]
        for method, kind in PEFT_SETTINGS.items():
            if method == self.peft or kind.is_in_every_key:
                document |= {f"{method}_{name}": value for name, value in asdict(self.of_method(method)).items()}
        return document


@dataclass(frozen=True, slots=True)
class TeachSettings:
    """How a teacher answers, and how much of what it knows is written down; every field changes the targets."""

    beams: int = 1
    """Beams of the search for an answer; 1 = greedy."""
    sample: bool = False
    """Draw the answer instead of searching for the likeliest."""
    sample_temperature: float = 1.0
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this probability (nucleus sampling, Holtzman et al. 2020)."""
    max_logits: int = 64
    """Logits kept per position at most, the largest; 0 = the whole vocabulary."""
    tail_mass: float = 0.001
    """Probability (at temperature 1) that may be left out at a position: logits are kept until what is left has no more, or
    ``max_logits`` are; 0 = always ``max_logits``. Label sets are kept whole."""
    answers_from: str = "labels"
    """Where a model that writes must answer with a label: ``labels`` takes the likeliest path through the labels, token by token,
    ``free`` lets it write what it will, as beams and samples always do."""
    keep_padding: bool = False
    """Keep the positions after an answer's end too, up to the longest answer allowed: what ``objective: published`` reads."""
    batch_size: int = 256
    """Rows per batch at most; padding changes bits, so it belongs to what decides the targets."""
    batch_tokens: int = 4096
    """Source tokens per batch at most, padding included; a longer row is a batch of its own."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check_types(
            self,
            (int, float),
            {
                **dict.fromkeys(("beams", "max_logits", "batch_size", "batch_tokens", "seed"), (int,)),
                **dict.fromkeys(("sample", "keep_padding"), (bool,)),
                "answers_from": (str,),
            },
        )
        _check_limits(
            self,
            (
                ("beams", self.beams >= 1, "at least 1"),
                ("beams", self.beams == 1 or not self.sample, "1 where the answer is sampled"),
                ("sample_temperature", self.sample_temperature > 0, "above 0"),
                ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
                ("max_logits", self.max_logits >= 0, "at least 1, or 0 for the whole vocabulary"),
                ("tail_mass", 0 <= self.tail_mass < 1, "from 0 to below 1"),
                ("answers_from", self.answers_from in ANSWERS_FROM, _one_of(ANSWERS_FROM)),
                ("batch_size", self.batch_size >= 1, "at least 1"),
                ("batch_tokens", self.batch_tokens >= 1, "at least 1"),
                ("seed", LEAST_SEED <= self.seed <= LARGEST_SEED, _SEEDS),
            ),
        )

    def changed(self, overrides: Mapping[str, Any]) -> TeachSettings:
        """These settings with some fields replaced.

        Raises:
            UsageError: a name that is no setting, or a value outside its limits.
        """
        _check_names({each.name for each in fields(self)}, overrides, "teaching")
        return replace(self, **overrides)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for keys and manifests."""
        return asdict(self)


MOST_THREADS = 1024
"""More than any machine has cores for; torch fails with far more, once it is too late."""


def check_threads(threads: int) -> int:
    """Return the number of threads where a step can have so many.

    Raises:
        UsageError: it is below 1 or above `MOST_THREADS`.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"threads is {threads}; it must be at least 1, and at most {MOST_THREADS:,}")
    return threads


_SEEDS = f"a whole number from {LEAST_SEED} to {LARGEST_SEED}"


def check_seed(seed: int, least: int = LEAST_SEED) -> int:
    """Return the seed itself where every generator takes it.

    Raises:
        UsageError: it is below ``least`` or above `LARGEST_SEED`.
    """
    if not least <= seed <= LARGEST_SEED:
        raise UsageError(f"the seed is {seed}; it must be a whole number from {least} to {LARGEST_SEED}")
    return seed


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _check_names(known: Set[str], overrides: Mapping[str, Any], what: str) -> None:
    for name in overrides:
        if name not in known:
            raise UsageError(f"unknown {what} setting {name!r}; known: {', '.join(sorted(known))}")


def _check_types(
    settings: TrainSettings | TeachSettings | PeftSettings,
    default: tuple[type, ...],
    allowed: Mapping[str, tuple[type, ...]],
    prefix: str = "",
) -> None:
    """``allowed``: the types of the fields that are not of the ``default`` ones; a truth value is no number."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        wanted = allowed.get(each.name, default)
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise UsageError(f"{prefix}{each.name} is {value!r}; it must be {_named(wanted)}")


def _named(wanted: tuple[type, ...]) -> str:
    if wanted == (str,):
        return "text"
    if wanted == (bool,):
        return "true or false"
    return "a number" if float in wanted else "a whole number"


def _check_limits(
    settings: TrainSettings | TeachSettings | PeftSettings, limits: tuple[Limit, ...], prefix: str = ""
) -> None:
    for name, good, limit in limits:
        if not good:
            raise UsageError(f"{prefix}{name} is {getattr(settings, name)!r}; it must be {limit}")


def check_optimizer(name: str, *, has_gpu: bool) -> None:
    """Refuse an optimiser that cannot work here.

    Raises:
        UsageError: ``adamw_8bit`` without bitsandbytes, or without a GPU.
    """
    if name != "adamw_8bit":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            "optimizer adamw_8bit needs bitsandbytes, which is not installed; "
            "`pip install bitsandbytes`, or choose adamw or adafactor"
        )
    if not has_gpu:
        raise UsageError("optimizer adamw_8bit needs a GPU, and there is none here; choose adamw or adafactor")


EVAL_SHARE = 0.05
"""A distillation has a pool of rows, and mostly far fewer dev rows; where it has not, evaluations are held to this share."""


_ENCODERS: dict[str, TrainSettings] = {
    "teacher": TrainSettings(epochs=10, batch_size=32, learning_rate=1e-4),
    "student": TrainSettings(epochs=20, batch_size=32, learning_rate=2e-4),
    "distil": TrainSettings(
        epochs=4, batch_size=64, learning_rate=5e-4, dropout=0.0, temperature=2.0, eval_share=EVAL_SHARE
    ),
}
"""By role, for encoders of 5 to 100 M parameters; `docs/training.md` says how they were chosen. T = 2 as in the released
script of Kang et al. 2023."""


_TAGGERS: dict[str, TrainSettings] = {
    "teacher": TrainSettings(epochs=20, batch_size=16, learning_rate=3e-4),
    "student": TrainSettings(epochs=30, batch_size=16, learning_rate=5e-4),
    "distil": TrainSettings(
        epochs=6, batch_size=32, learning_rate=5e-4, dropout=0.0, temperature=2.0, eval_share=EVAL_SHARE
    ),
}
"""The same for encoders that tag entities: a tagging layer begins from nothing and needs more steps."""


_WRITERS: dict[Family, dict[str, TrainSettings]] = {
    "seq2seq": {
        "teacher": TrainSettings(epochs=20, batch_size=32, learning_rate=3e-5),
        "student": TrainSettings(epochs=50, batch_size=32, learning_rate=3e-5),
        "distil": TrainSettings(epochs=50, batch_size=32, learning_rate=3e-5, temperature=2.0, eval_share=EVAL_SHARE),
    },
    "causal": {
        "teacher": TrainSettings(epochs=3, batch_size=32, learning_rate=2e-5),
        "student": TrainSettings(epochs=3, batch_size=32, learning_rate=2e-5),
        "distil": TrainSettings(epochs=3, batch_size=32, learning_rate=2e-5, temperature=2.0, eval_share=EVAL_SHARE),
    },
}
"""By role: Kang et al. 2023, Table 8, for sequence to sequence; the usual few epochs of fine-tuning for causal models."""


def default_settings(family: Family, kind: Kind) -> dict[str, TrainSettings]:
    """Training settings by role, for a model of this family on such a task."""
    if family == "encoder":
        return _TAGGERS if kind == "entities" else _ENCODERS
    return _WRITERS[family]
