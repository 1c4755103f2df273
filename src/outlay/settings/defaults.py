"""Settings of a training where neither the task nor the user says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay.settings.training import TrainSettings
from outlay.spec import Family, Kind

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
