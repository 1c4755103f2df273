"""Settings of a training and of a teacher's answers, as plain data: part of the key of the model or targets."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from outlay.errors import UsageError
from outlay.settings.declared import (
    ANSWERS,
    DISTILLATION,
    RUNNING,
    Setting,
    SettingField,
    check_fields,
    check_names,
    own_fields,
)
from outlay.settings.methods import (
    AUTO_METHOD,
    METHOD,
    METHOD_NAMES,
    METHOD_SETTINGS,
    MethodSettings,
    PeftSettings,
    flat_settings,
    method_options,
    peft_methods,
)
from outlay.spec import Kind, Reading

OBJECTIVES = ("masked", "published")
DIVERGENCES = ("forward_kl", "reverse_kl", "js")
OPTIMIZERS = ("adamw", "adafactor", "adamw_8bit")
PRECISIONS = ("bf16", "bf16_weights", "fp32")
ANSWERS_FROM = ("labels", "free")
POOLINGS = ("declared", "mean", "first", "last")
PAIRS = ("auto", "towers", "joined")
TEMPERATURES = (1.0, 2.0, 4.0)
"""Temperatures that a distillation may have; Kang et al. 2023 distil at 2 (their released script)."""
LEAST_SEED, LARGEST_SEED = -(2**63), 2**64 - 1
"""Range of seeds that torch's generators take (`torch.Generator.manual_seed`); orders of rows are hashes and take any number."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Hyper-parameters of one training; every field changes the bytes of the model."""

    epochs: Annotated[int, Setting("Passes over the training rows.", gt=0)]
    batch_size: Annotated[int, Setting("Rows per optimiser step, over all processes.", gt=0)]
    learning_rate: Annotated[float, Setting("Peak learning rate.", gt=0, lt=1)]
    warmup_fraction: Annotated[float, Setting("Share of the steps in which the learning rate rises.", ge=0, lt=1)] = (
        0.06
    )
    weight_decay: Annotated[float, Setting("Decoupled weight decay.", ge=0)] = 0.01
    max_grad_norm: Annotated[
        float, Setting("Largest norm of a step's gradient; a larger one is scaled down.", gt=0)
    ] = 1.0
    # The best evaluation is kept either way.
    patience: Annotated[
        int | None, Setting("Evaluations on dev without a gain before training stops.", none="train to the end", gt=0)
    ] = None
    dropout: Annotated[float | None, Setting("Dropout of every layer.", none="as the checkpoint says", ge=0, lt=1)] = (
        None
    )
    temperature: Annotated[
        float, Setting("Temperature of the divergence to the teacher: 1, 2 or 4.", DISTILLATION, gt=0)
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
        str, Setting("``forward_kl``, ``reverse_kl`` or ``js`` (Jensen-Shannon).", DISTILLATION, choices=DIVERGENCES)
    ] = "forward_kl"
    js_beta: Annotated[float, Setting("Weight of the teacher in the mixture of ``js``.", DISTILLATION, gt=0, lt=1)] = (
        0.5
    )
    gold_weight: Annotated[
        float, Setting("Share of cross-entropy on gold labels, where the rows have them.", DISTILLATION, ge=0, lt=1)
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
    # ``auto`` is resolved before a step is made, once the number of labels is known (`outlay.settings.auto`).
    method: Annotated[
        str,
        Setting(
            "``full``, ``probe``, ``probe_then_tune``, ``contrastive``, a PEFT method (``lora``, ``ia3``), ``tfidf``, "
            "``majority``, or ``auto``: as the number of labels, the task and the model suggest.",
            METHOD,
            choices=METHOD_NAMES,
            asked=(AUTO_METHOD,),
            left_open="full; in runs and studies auto",
        ),
    ] = "full"
    pooling: Annotated[
        str,
        Setting(
            "One vector of a text: ``declared`` (as the checkpoint says, else ``mean``, of a causal model ``last``), ``mean``, "
            "``first`` or ``last``. Not of ``full``.",
            METHOD,
            choices=POOLINGS,
        ),
    ] = "declared"
    pair: Annotated[
        str,
        Setting(
            "Two texts of a row: ``joined`` (read as one), ``towers`` (each on its own), or ``auto``: by the method. Not of "
            "``full``.",
            METHOD,
            choices=PAIRS,
        ),
    ] = "auto"
    # Those that are not at their defaults; `changed` and `to_json` name their fields as ``lora_rank``.
    method_settings: tuple[MethodSettings, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.precision == "bf16_weights" and self.optimizer != "adafactor":
            raise UsageError(
                f"optimizer is {self.optimizer!r}; it must be adafactor where precision is bf16_weights, "
                "for its updates are rounded at random"
            )
        # Equal settings compare equal whichever way they were made.
        given = {each.method: each for each in self.method_settings if each != type(each)()}
        object.__setattr__(self, "method_settings", tuple(given[method] for method in sorted(given)))

    def changed(self, overrides: Mapping[str, Any]) -> TrainSettings:
        """Return these settings with some fields replaced, those of methods by names such as ``lora_rank`` (see `flat_settings`).

        Raises:
            UsageError: a name that is no setting, or a value outside its limits.
        """
        overrides = flat_settings(overrides)
        check_names(setting_fields(type(self)), overrides, "training")
        options = method_options()
        of_methods: dict[str, dict[str, Any]] = {}
        for name in (each for each in overrides if each in options):
            kind = options[name][0]
            of_methods.setdefault(kind.method, {})[name.removeprefix(kind.option_prefix())] = overrides[name]
        own = {name: value for name, value in overrides.items() if name not in options}
        new = [replace(self.of_method(method), **values) for method, values in of_methods.items()]
        kept = (each for each in self.method_settings if each.method not in of_methods)
        return replace(self, **own, method_settings=(*kept, *new))

    def of_method(self, method: str) -> Any:
        """Return the settings of a method, chosen or not."""
        given = next((each for each in self.method_settings if each.method == method), None)
        return given or METHOD_SETTINGS[method]()

    @property
    def chosen(self) -> MethodSettings:
        """Settings of the chosen method."""
        found: MethodSettings = self.of_method(self.method)
        return found

    @property
    def is_pooled(self) -> bool:
        """True where the head reads pooled vectors."""
        return self.method != AUTO_METHOD and self.chosen.is_pooled

    def reading(self, kind: Kind, n_segments: int) -> Reading:
        """Return how the model reads a row of so many texts: ``whole`` by its own head, or pooled, ``joined`` or in ``towers``.

        Where ``pair`` is ``auto``, a method whose encoder learns from whole rows joins their texts.
        """
        if not self.is_pooled or kind == "entities":
            return "whole"
        towers = self.pair == "towers" or (self.pair == "auto" and self.method != "contrastive")
        return "towers" if towers and n_segments == 2 else "joined"

    def adapters(self) -> tuple[PeftSettings, ...]:
        """Return the settings of the PEFT methods whose weights are trained, in the order in which they are put into the model.

        None where every weight is trained. Today a training has one at most, for all layers; one that has several, or several
        groups of layers, has a field of its own that the JSON leaves out where it says nothing.
        """
        trains = "all" if self.method == AUTO_METHOD else self.chosen.trains
        return (self.of_method(trains),) if trains in peft_methods() else ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for keys and manifests: of methods those of the ones in use, and of ``lora`` always.

        Methods of before have the keys of before: ``peft`` and no ``method``.
        """
        document = asdict(self)
        for name in ("method_settings", "method", "pooling", "pair"):
            del document[name]
        used = used_methods(self)
        document["peft"] = self.method if self.method in peft_methods() else "none"
        if self.method != "full" and self.method not in peft_methods():
            document["method"] = self.method
        if self.is_pooled:
            document |= {"pooling": self.pooling, "pair": self.pair}
        for method, kind in METHOD_SETTINGS.items():
            if method in used or kind.is_in_every_key:
                prefix = kind.option_prefix()
                document |= {f"{prefix}{name}": value for name, value in asdict(self.of_method(method)).items()}
        return document


def used_methods(settings: TrainSettings) -> set[str]:
    """Return the methods whose settings a training reads: its own, its head's regression, the PEFT method that it trains by."""
    if settings.method == AUTO_METHOD:
        return set()
    regression = {"probe"} if settings.chosen.head == "probe" else set()
    return {settings.method, *regression, *(each.method for each in settings.adapters())}


@dataclass(frozen=True, slots=True)
class TeachSettings:
    """Settings of a teacher's answers and of the logits kept of them; every field changes the targets."""

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
    # Beams and samples are free under either value.
    answers_from: Annotated[
        str,
        Setting(
            "``labels`` (the likeliest path through the labels) or ``free`` (what the model writes).",
            ANSWERS,
            choices=ANSWERS_FROM,
        ),
    ] = "labels"
    keep_padding: Annotated[
        bool, Setting("Keep the positions after an answer's end too: what ``objective`` published reads.", ANSWERS)
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
        check_fields(self)
        if self.sample and self.beams != 1:
            raise UsageError(f"beams is {self.beams}; it must be 1 where the answer is sampled")

    def changed(self, overrides: Mapping[str, Any]) -> TeachSettings:
        """Return these settings with some fields replaced.

        Raises:
            UsageError: a name that is no setting, or a value outside its limits.
        """
        check_names(setting_fields(type(self)), overrides, "teaching")
        return replace(self, **overrides)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for keys and manifests."""
        return asdict(self)


def setting_fields(settings: type[Any]) -> Mapping[str, SettingField]:
    """Return the settings that a dataclass declares, by name and in order; for a training, those of every method too."""
    own = own_fields(settings)
    if settings is not TrainSettings:
        return own
    return {**own, **{name: each for name, (_, each) in method_options().items()}}


BLOCK_ROWS = 1024
"""Consecutive rows that a model answers together, sorted and batched among themselves."""
DEFAULT_THREADS = 2
SAVE_SECONDS = 20.0
"""Default seconds between two checkpoints of a training."""
MOST_THREADS = 1024
"""Largest number of threads, more than any machine has cores for; torch fails with far more, once it is too late."""


def check_threads(threads: int) -> int:
    """Return the number of threads; refuse one that a step cannot have.

    Raises:
        UsageError: the number is below 1 or above `MOST_THREADS`.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"threads is {threads}; it must be at least 1, and at most {MOST_THREADS:,}")
    return threads


def check_seed(seed: int, least: int = LEAST_SEED) -> int:
    """Return the seed; refuse one that some generator does not take.

    Raises:
        UsageError: the seed is below ``least`` or above `LARGEST_SEED`.
    """
    if not least <= seed <= LARGEST_SEED:
        raise UsageError(f"the seed is {seed}; it must be a whole number from {least} to {LARGEST_SEED}")
    return seed


def check_optimizer(name: str, *, has_gpu: bool) -> None:
    """Refuse an optimiser that cannot work on this machine.

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
