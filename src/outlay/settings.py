"""What decides a training, and what decides how a teacher speaks, as plain data: part of the key of what comes out.

Each setting is declared once, in `TrainSettings` or `TeachSettings`: its type, its limits, what it decides. Checks, keys of a
task file, options of the command line and the tables of `docs/training.md` are read from there (`setting_fields`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

from outlay.errors import UsageError
from outlay.spec import Family, Kind

OBJECTIVES = ("masked", "published")
DIVERGENCES = ("forward_kl", "reverse_kl", "js")
OPTIMIZERS = ("adamw", "adafactor", "adamw_8bit")
PRECISIONS = ("bf16", "bf16_weights", "fp32")
PEFT_METHODS = ("none", "lora", "ia3")
ANSWERS_FROM = ("labels", "free")
TEMPERATURES = (1.0, 2.0, 4.0)
"""Offered temperatures; Kang et al. 2023 distil at 2 (their released script)."""
LEAST_SEED, LARGEST_SEED = -(2**63), 2**64 - 1
"""What torch's generators take (`torch.Generator.manual_seed`); orders of rows are hashes and would take any number."""

TRAINING, DISTILLATION, ANSWERS, RUNNING = "Training", "Distillation", "Answers", "How it is run"
"""Headings of settings on a help page."""

_TYPE_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Setting:
    """The limits of one setting, and what it decides.

    ``says``: one or two sentences, with names of settings and values between double backticks; ``gt``, ``ge``, ``lt``, ``le``:
    bounds of a number; ``choices``: values of a text; ``asked``: choices beside them that are resolved before settings are made;
    ``none``: what ``None`` stands for; ``key``, ``option``: its name in a task file and on the command line where that is
    another one; ``in_task``, ``on_line``: whether it has one there.
    """

    says: str
    heading: str = TRAINING
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    choices: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    none: str = ""
    key: str = ""
    option: str = ""
    in_task: bool = True
    on_line: bool = True


@dataclass(frozen=True, slots=True)
class SettingField:
    """A setting as a field of `TrainSettings` or `TeachSettings`; ``default``: `dataclasses.MISSING` where it has none."""

    name: str
    type: type
    can_be_none: bool
    default: Any
    about: Setting

    @property
    def key(self) -> str:
        """Its name in a task file."""
        return self.about.key or self.name

    @property
    def option(self) -> str:
        """Its name on the command line, without dashes before it."""
        return (self.about.option or self.key).replace("_", "-")

    @property
    def type_words(self) -> str:
        """The type in words, such as "a whole number or none"."""
        return _TYPE_WORDS[self.type] + (" or none" if self.can_be_none else "")

    @property
    def limit_words(self) -> str:
        """The limits in words, such as "above 0 and at most 1, or none"; empty where it has none."""
        return f"{words}, or none" if (words := self._bounds()) and self.can_be_none else words

    def _bounds(self) -> str:
        about = self.about
        if about.choices:
            return one_of(about.choices)
        if about.ge is not None and about.le is not None:
            return f"{_TYPE_WORDS[self.type]} from {about.ge} to {about.le}"
        if about.gt is not None and self.type is int:
            return f"at least {about.gt + 1}"
        if about.gt is not None:
            above = f"above {about.gt}"
            return above if about.le is None and about.lt is None else self._range(above)
        if about.ge is not None:
            return f"{about.ge} or more" if about.lt is None else f"from {about.ge} to below {about.lt}"
        return ""

    def _range(self, above: str) -> str:
        about = self.about
        return f"between {about.gt} and {about.lt}" if about.lt is not None else f"{above} and at most {about.le}"

    def is_of_type(self, value: object) -> bool:
        """Whether the value has the setting's type; a truth value is no number, a whole number is one."""
        if value is None:
            return self.can_be_none
        if isinstance(value, bool):
            return self.type is bool
        return isinstance(value, (int, float) if self.type is float else self.type)

    def is_within_limits(self, value: Any) -> bool:
        """Whether a value of the setting's type is within its limits."""
        about = self.about
        if value is None:
            return True
        if about.choices:
            return value in about.choices
        return (
            (about.gt is None or value > about.gt)
            and (about.ge is None or value >= about.ge)
            and (about.lt is None or value < about.lt)
            and (about.le is None or value <= about.le)
        )


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Hyper-parameters of one training; every field changes the bytes that come out."""

    epochs: Annotated[int, Setting("Passes over the training rows.", gt=0)]
    batch_size: Annotated[int, Setting("Rows per optimiser step, over all processes.", gt=0)]
    learning_rate: Annotated[float, Setting("Peak learning rate.", key="lr", gt=0, lt=1)]
    warmup_fraction: Annotated[
        float, Setting("Share of the steps in which the learning rate rises.", option="warmup", ge=0, lt=1)
    ] = 0.06
    weight_decay: Annotated[float, Setting("Decoupled weight decay.", ge=0)] = 0.01
    max_grad_norm: Annotated[
        float, Setting("Largest norm of a step's gradient; a larger one is scaled down.", gt=0)
    ] = 1.0
    # The best evaluation is kept either way.
    patience: Annotated[
        int | None,
        Setting("Evaluations on dev without a gain before training stops.", none="train to the end", gt=0),
    ] = None
    dropout: Annotated[float | None, Setting("Dropout of every layer.", none="as the checkpoint says", ge=0, lt=1)] = (
        None
    )
    temperature: Annotated[
        float,
        Setting("Temperature of the divergence to the teacher: 1, 2 or 4.", DISTILLATION, gt=0),
    ] = 1.0
    # With bf16_weights updates are rounded at random, so that small ones are not lost. ``auto`` is resolved before settings are
    # made (`outlay.hardware.precision`).
    precision: Annotated[
        str,
        Setting(
            "``auto`` (bf16 where the machine is faster in it), ``bf16`` (weights and optimiser stay float32), ``bf16_weights`` "
            "(with ``optimizer`` adafactor) or ``fp32``.",
            RUNNING,
            choices=PRECISIONS,
            asked=("auto",),
        ),
    ] = "fp32"
    seed: Annotated[
        int,
        Setting("Seed of order, initialisation and sampling.", RUNNING, ge=LEAST_SEED, le=LARGEST_SEED, in_task=False),
    ] = 0
    # As in the public code of Kang et al. 2023 where it is ``published``.
    objective: Annotated[
        str,
        Setting(
            "``masked`` (the mean over real positions) or ``published`` (over all positions, padding included).",
            DISTILLATION,
            choices=OBJECTIVES,
        ),
    ] = "masked"
    divergence: Annotated[
        str,
        Setting("``forward_kl``, ``reverse_kl`` or ``js`` (Jensen-Shannon).", DISTILLATION, choices=DIVERGENCES),
    ] = "forward_kl"
    js_beta: Annotated[float, Setting("Weight of the teacher in the mixture of ``js``.", DISTILLATION, gt=0, lt=1)] = (
        0.5
    )
    gold_weight: Annotated[
        float,
        Setting("Share of cross-entropy on gold labels, where the rows have them.", DISTILLATION, ge=0, lt=1),
    ] = 0.0
    # The command line takes a number of passes per step in its place (``--accumulation``), which holds for any batch.
    micro_batch_size: Annotated[
        int | None,
        Setting(
            "Rows per forward pass and process; ``batch_size`` rows are accumulated for a step.",
            none="all at once",
            gt=0,
            on_line=False,
        ),
    ] = None
    # Adafactor: Shazeer & Stern 2018, at the given rate.
    optimizer: Annotated[str, Setting("``adamw``, ``adafactor`` or ``adamw_8bit``.", choices=OPTIMIZERS)] = "adamw"
    gradient_checkpointing: Annotated[
        bool, Setting("Compute activations again instead of keeping them: less memory, more time.")
    ] = False
    eval_steps: Annotated[
        int | None, Setting("Steps between evaluations on dev.", none="one after each epoch", gt=0)
    ] = None
    eval_share: Annotated[
        float | None,
        Setting(
            "Evaluations take at most this share of the work: only as many dev rows are answered.",
            none="all dev rows",
            gt=0,
            le=1,
        ),
    ] = None
    batch_tokens: Annotated[
        int | None,
        Setting("Tokens per optimiser step, padding included, in place of ``batch_size`` rows.", none="by rows", gt=0),
    ] = None
    compile: Annotated[
        bool, Setting("Compile the model's blocks: a wait at the start, then faster steps.", RUNNING)
    ] = False
    # LoRA: Hu et al. 2022; (IA)³: Liu et al. 2022, section 3.3.
    peft: Annotated[str, Setting("``none`` (every weight is trained), ``lora`` or ``ia3``.", choices=PEFT_METHODS)] = (
        "none"
    )
    lora_rank: Annotated[int, Setting("Rank of the updates of ``lora``.", gt=0)] = 16
    lora_alpha: Annotated[float, Setting("The updates of ``lora`` are scaled by alpha / rank.", gt=0)] = 32.0

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.precision == "bf16_weights" and self.optimizer != "adafactor":
            raise UsageError(
                f"optimizer is {self.optimizer!r}; it must be adafactor where precision is bf16_weights, "
                "for its updates are rounded at random"
            )

    def changed(self, overrides: Mapping[str, Any]) -> TrainSettings:
        """These settings with some fields replaced.

        Raises:
            UsageError: a name that is no setting, or a value outside its limits.
        """
        _check_names(setting_fields(type(self)), overrides, "training")
        return replace(self, **overrides)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for keys and manifests."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TeachSettings:
    """How a teacher answers, and how much of what it knows is written down; every field changes the targets."""

    beams: Annotated[int, Setting("Beams of the search for an answer; 1 is greedy.", ANSWERS, gt=0)] = 1
    sample: Annotated[bool, Setting("Draw answers instead of searching for the likeliest.", ANSWERS)] = False
    sample_temperature: Annotated[
        float, Setting("Temperature of the draw; the targets keep raw logits.", ANSWERS, gt=0)
    ] = 1.0
    # Nucleus sampling, Holtzman et al. 2020.
    top_p: Annotated[
        float, Setting("Draw from the smallest set of tokens with this probability.", ANSWERS, gt=0, le=1)
    ] = 1.0
    max_logits: Annotated[
        int, Setting("Logits kept per position at most, the largest; 0 = the whole vocabulary.", ANSWERS, ge=0)
    ] = 64
    # Label sets are kept whole.
    tail_mass: Annotated[
        float,
        Setting(
            "Probability (at temperature 1) that may be left out at a position; 0 = always ``max_logits``.",
            ANSWERS,
            ge=0,
            lt=1,
        ),
    ] = 0.001
    # Beams and samples are free whatever it says.
    answers_from: Annotated[
        str,
        Setting(
            "``labels`` (the likeliest path through the labels) or ``free`` (what the model writes).",
            ANSWERS,
            choices=ANSWERS_FROM,
        ),
    ] = "labels"
    keep_padding: Annotated[
        bool,
        Setting("Keep the positions after an answer's end too: what ``objective`` published reads.", ANSWERS),
    ] = False
    # Padding changes bits, so the size of a batch belongs to what decides the targets.
    batch_size: Annotated[int, Setting("Rows per forward pass at most.", ANSWERS, gt=0)] = 256
    batch_tokens: Annotated[
        int,
        Setting("Source tokens per forward pass at most, padding included; a longer row goes alone.", ANSWERS, gt=0),
    ] = 4096
    seed: Annotated[
        int, Setting("Seed of the order of rows and of the draw.", RUNNING, ge=LEAST_SEED, le=LARGEST_SEED)
    ] = 0

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.sample and self.beams != 1:
            raise UsageError(f"beams is {self.beams}; it must be 1 where the answer is sampled")

    def changed(self, overrides: Mapping[str, Any]) -> TeachSettings:
        """These settings with some fields replaced.

        Raises:
            UsageError: a name that is no setting, or a value outside its limits.
        """
        _check_names(setting_fields(type(self)), overrides, "teaching")
        return replace(self, **overrides)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for keys and manifests."""
        return asdict(self)


_found: dict[type[Any], Mapping[str, SettingField]] = {}


def setting_fields(settings: type[Any]) -> Mapping[str, SettingField]:
    """Return the settings that a dataclass declares by name, in their order; a field without a `Setting` is none."""
    if settings not in _found:
        _found[settings] = _setting_fields(settings)
    return _found[settings]


def _setting_fields(settings: type[Any]) -> Mapping[str, SettingField]:
    hints = get_type_hints(settings, include_extras=True)
    found = {}
    for each in fields(settings):
        plain, *marks = get_args(hints[each.name]) or (hints[each.name],)
        about = next((mark for mark in marks if isinstance(mark, Setting)), None)
        if about is not None:
            types = [part for part in get_args(plain) or (plain,) if part is not NoneType]
            found[each.name] = SettingField(each.name, types[0], NoneType in get_args(plain), each.default, about)
    return found


BLOCK_ROWS = 1024
"""Consecutive rows that a model answers together, sorted and batched among themselves."""
DEFAULT_THREADS = 2
SAVE_SECONDS = 20.0
"""Between two checkpoints of a training, unless somebody says otherwise."""
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


def check_seed(seed: int, least: int = LEAST_SEED) -> int:
    """Return the seed itself where every generator takes it.

    Raises:
        UsageError: it is below ``least`` or above `LARGEST_SEED`.
    """
    if not least <= seed <= LARGEST_SEED:
        raise UsageError(f"the seed is {seed}; it must be a whole number from {least} to {LARGEST_SEED}")
    return seed


def one_of(names: tuple[str, ...]) -> str:
    """Return a choice in words, such as "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _check_names(known: Collection[str], overrides: Mapping[str, Any], what: str) -> None:
    for name in overrides:
        if name not in known:
            raise UsageError(f"unknown {what} setting {name!r}; known: {', '.join(sorted(known))}")


def _check_fields(settings: Any, prefix: str = "") -> None:
    """Refuse a value of another type, or outside its limits; ``prefix``: what stands before the names where they are said."""
    for name, each in setting_fields(type(settings)).items():
        value = getattr(settings, name)
        if not each.is_of_type(value):
            raise UsageError(f"{prefix}{name} is {value!r}; it must be {each.type_words}")
        if not each.is_within_limits(value):
            raise UsageError(f"{prefix}{name} is {value!r}; it must be {each.limit_words}")


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


def role_settings(
    defaults: TrainSettings, overrides: Mapping[str, Any], *, seed: int = 0, precision: str = "fp32"
) -> TrainSettings:
    """Return the settings of a role in a run: its defaults, the run's seed and precision, then what is set for the role itself.

    Raises:
        UsageError: a name that is no setting, or a value outside its limits.
    """
    return defaults.changed({"seed": seed, "precision": precision, **overrides})


def is_none_by_default(name: str) -> bool:
    """Whether a setting is left open for every family and role."""
    tables = (_ENCODERS, _TAGGERS, *_WRITERS.values())
    return all(getattr(settings, name) is None for table in tables for settings in table.values())
