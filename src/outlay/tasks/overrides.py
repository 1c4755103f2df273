"""Hyper-parameters that a task's file sets, by family and role; what it leaves open is derived elsewhere."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from outlay.hardware.precision import without_auto
from outlay.spec import Family
from outlay.tasks.yaml_file import YamlBlock

Role = Literal["teacher", "student", "distil"]

SETTING_NAMES = {"lr": "learning_rate"}
"""Where a key of the task file has another name among the training settings."""


class HyperParameters(YamlBlock):
    """Overrides of training hyper-parameters; what is not given is derived."""

    epochs: int | None = Field(default=None, gt=0)
    """Passes over the training rows."""
    lr: float | None = Field(default=None, gt=0, lt=1)
    """Peak learning rate."""
    batch_size: int | None = Field(default=None, gt=0)
    """Rows per step."""
    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Largest norm of a step's gradient; a larger one is scaled down."""
    patience: int | None = Field(default=None, gt=0)
    """Evaluations on dev without a gain before training stops."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Of every layer."""
    precision: Literal["auto", "bf16", "bf16_weights", "fp32"] | None = None
    """``auto`` (that of the run: bf16 where the machine is faster in it), ``bf16`` (weights and optimiser stay
    float32), ``bf16_weights`` (with ``optimizer: adafactor``) or ``fp32``."""
    optimizer: Literal["adamw", "adafactor", "adamw_8bit"] | None = None
    """``adamw``, ``adafactor`` or ``adamw_8bit``."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Rows per forward pass; ``batch_size`` rows are accumulated for a step."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Tokens per step, padding included, in place of ``batch_size`` rows."""
    gradient_checkpointing: bool | None = None
    """Compute activations again instead of keeping them: less memory, more time."""
    eval_steps: int | None = Field(default=None, gt=0)
    """Steps between evaluations on dev; without it one after each epoch."""
    eval_share: float | None = Field(default=None, gt=0, le=1)
    """Evaluations take at most this share of the work: only as many dev rows are answered."""
    compile: bool | None = None
    """Compile the model's blocks: a wait at the start, then faster steps."""
    peft: Literal["none", "lora", "ia3"] | None = None
    """``none`` (every weight is trained), ``lora`` or ``ia3``."""
    lora_rank: int | None = Field(default=None, gt=0)
    """Rank of the updates of ``lora``."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Their scale is alpha / rank."""
    temperature: float | None = Field(default=None, gt=0)
    """Of the divergence to the teacher; only distillation reads it."""
    objective: Literal["masked", "published"] | None = None
    """``masked``, or ``published``: averaged over all positions, padding included; only distillation reads it."""
    divergence: Literal["forward_kl", "reverse_kl", "js"] | None = None
    """``forward_kl``, ``reverse_kl`` or ``js`` (Jensen-Shannon); only distillation reads it."""
    js_beta: float | None = Field(default=None, gt=0, lt=1)
    """Weight of the teacher in the mixture of ``js``."""
    gold_weight: float | None = Field(default=None, ge=0, lt=1)
    """Share of cross-entropy on gold labels in distillation, where the pool has them."""

    def given(self) -> dict[str, Any]:
        """Return the hyper-parameters that were set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Roles(YamlBlock):
    """Hyper-parameters by role."""

    teacher: HyperParameters = HyperParameters()
    """The large model."""
    student: HyperParameters = HyperParameters()
    """The compact model, trained on labels."""
    distil: HyperParameters = HyperParameters()
    """The compact model, trained on the teacher's targets."""

    def of(self, role: Role) -> dict[str, Any]:
        """Return what is set for one role."""
        roles = {"teacher": self.teacher, "student": self.student, "distil": self.distil}
        return roles[role].given()


class TrainingOverrides(Roles):
    """Hyper-parameters by role for every family, and for one family alone, which win."""

    encoder: Roles = Roles()
    """Models that read a text and pick from the labels, such as BERT."""
    seq2seq: Roles = Roles()
    """Models that read a text and write the answer, such as T5."""
    causal: Roles = Roles()
    """Models that go on with a text, such as GPT-2."""

    def settings_for(self, family: Family, role: Role) -> dict[str, Any]:
        """Return the overrides of a role of a family, under the names of the training settings."""
        families = {"encoder": self.encoder, "seq2seq": self.seq2seq, "causal": self.causal}
        merged = without_auto({**self.of(role), **families[family].of(role)})
        return {SETTING_NAMES.get(name, name): value for name, value in merged.items()}
