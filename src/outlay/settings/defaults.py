"""Default settings of a training, where neither the task nor the user sets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay.settings.methods import flat_settings
from outlay.settings.training import TrainSettings
from outlay.spec import Family, Kind

EVAL_SHARE = 0.05
"""Largest share of a distillation's work for evaluations; seldom reached, since a pool mostly has far more rows than dev."""


_ENCODERS: dict[str, TrainSettings] = {
    "teacher": TrainSettings(epochs=10, batch_size=32, learning_rate=1e-4),
    "student": TrainSettings(epochs=20, batch_size=32, learning_rate=2e-4),
    "distil": TrainSettings(
        epochs=4, batch_size=64, learning_rate=5e-4, dropout=0.0, temperature=2.0, eval_share=EVAL_SHARE
    ),
}
"""Settings by role, for encoders of 5 to 100 M parameters; `docs/training.md` says how they were chosen. T = 2 as in the released
script of Kang et al. 2023."""


_TAGGERS: dict[str, TrainSettings] = {
    "teacher": TrainSettings(epochs=20, batch_size=16, learning_rate=3e-4),
    "student": TrainSettings(epochs=30, batch_size=16, learning_rate=5e-4),
    "distil": TrainSettings(
        epochs=6, batch_size=32, learning_rate=5e-4, dropout=0.0, temperature=2.0, eval_share=EVAL_SHARE
    ),
}
"""Settings by role, for encoders that tag entities: a tagging layer begins at random and needs more steps."""


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
"""Settings by family and role: Kang et al. 2023, Table 8, for sequence to sequence; a few epochs, as usual, for causal models."""


def default_settings(family: Family, kind: Kind) -> dict[str, TrainSettings]:
    """Return the training settings by role, for a model of a family on a kind of task."""
    if family == "encoder":
        return _TAGGERS if kind == "entities" else _ENCODERS
    return _WRITERS[family]


_RATE_SHARE = 0.5
"""Share of a role's learning rate for an encoder whose head begins well: a larger rate would undo what the encoder knows before
the head fits it (Kumar et al. 2022, section 3). `docs/methods.md` says how this and the settings below were chosen."""
_EPOCHS = 10
"""Epochs at most of such an encoder, which has less to learn than one whose head is random."""
_CONTRASTIVE = {"batch_size": 16}


def role_settings(
    defaults: TrainSettings, overrides: Mapping[str, Any], *, seed: int = 0, precision: str = "fp32"
) -> TrainSettings:
    """Return the settings of a role in a run: defaults, those of its method, the run's seed and precision, then the overrides.

    Raises:
        UsageError: a name that is no setting, or a value outside its limits.
    """
    given = flat_settings(overrides)
    method = given.get("method", defaults.method)
    of_method: dict[str, Any] = {}
    if method in ("probe_then_tune", "contrastive"):
        of_method |= {"learning_rate": defaults.learning_rate * _RATE_SHARE, "epochs": min(defaults.epochs, _EPOCHS)}
    if method == "contrastive":
        of_method |= _CONTRASTIVE
    return defaults.changed({**of_method, "seed": seed, "precision": precision, **given})


def is_none_by_default(name: str) -> bool:
    """Return whether a setting is ``None`` by default for every family and role."""
    tables = (_ENCODERS, _TAGGERS, *_WRITERS.values())
    return all(getattr(settings, name) is None for table in tables for settings in table.values())
