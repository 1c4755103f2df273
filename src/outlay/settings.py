"""What decides a training, as plain data: part of the key of every model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from outlay.errors import UsageError


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Hyper-parameters of one training; every field changes the bytes that come out."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_fraction: float = 0.06
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    patience: int | None = None
    """Epochs without a better dev score before stopping; ``None`` = train to the end. The best epoch is kept either way."""
    dropout: float | None = None
    """Of every layer; ``None`` = as the checkpoint's config says."""
    temperature: float = 1.0
    """Of the KL divergence to a teacher; cross-entropy ignores it."""
    precision: str = "bf16"
    """``bf16`` (autocast; weights and optimiser stay float32) or ``fp32``."""
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        limits: tuple[tuple[str, bool, str], ...] = (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", 0 < self.learning_rate < 1, "between 0 and 1"),
            ("warmup_fraction", 0 <= self.warmup_fraction < 1, "from 0 to below 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("max_grad_norm", self.max_grad_norm > 0, "above 0"),
            ("patience", self.patience is None or self.patience >= 1, "at least 1, or none"),
            ("dropout", self.dropout is None or 0 <= self.dropout < 1, "from 0 to below 1, or none"),
            ("temperature", self.temperature > 0, "above 0"),
            ("precision", self.precision in ("bf16", "fp32"), "bf16 or fp32"),
        )
        for name, good, limit in limits:
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be {limit}")

    def _check_types(self) -> None:
        whole, number = (int,), (int, float)
        allowed: dict[str, tuple[type, ...]] = {
            **dict.fromkeys(("epochs", "batch_size", "seed"), whole),
            "patience": (int, type(None)),
            "dropout": (int, float, type(None)),
            "precision": (str,),
        }
        for each in fields(self):
            value = getattr(self, each.name)
            wanted = allowed.get(each.name, number)
            if isinstance(value, bool) or not isinstance(value, wanted):
                kind = "text" if wanted == (str,) else "a whole number" if float not in wanted else "a number"
                raise UsageError(f"{each.name} is {value!r}; it must be {kind}")

    def changed(self, overrides: dict[str, Any]) -> TrainSettings:
        """These settings with some fields replaced.

        Raises:
            UsageError: a name that is no setting, or a value outside its limits.
        """
        known = {f.name for f in fields(self)}
        for name in overrides:
            if name not in known:
                raise UsageError(f"unknown training setting {name!r}; known: {', '.join(sorted(known))}")
        return replace(self, **overrides)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for keys and manifests."""
        return asdict(self)
