"""Hyper-parameters of a training and of a teacher's answers, as plain data.

Each setting is declared once, in `TrainSettings`, `TeachSettings` or the settings of a PEFT method: its type, its limits, its
effect. Checks, keys of a task file, options of the command line and the tables of `docs/training.md` are read from there.
"""

from outlay.settings.declared import (
    ANSWERS,
    DISTILLATION,
    RUNNING,
    TRAINING,
    Setting,
    SettingField,
    one_of,
)
from outlay.settings.defaults import EVAL_SHARE, default_settings, is_none_by_default, role_settings
from outlay.settings.peft import (
    PEFT_METHODS,
    PEFT_SETTINGS,
    Ia3Settings,
    LoraSettings,
    PeftSettings,
    peft_options,
)
from outlay.settings.training import (
    ANSWERS_FROM,
    BLOCK_ROWS,
    DEFAULT_THREADS,
    DIVERGENCES,
    LARGEST_SEED,
    LEAST_SEED,
    MOST_THREADS,
    OBJECTIVES,
    OPTIMIZERS,
    PRECISIONS,
    SAVE_SECONDS,
    TEMPERATURES,
    TeachSettings,
    TrainSettings,
    check_optimizer,
    check_seed,
    check_threads,
    setting_fields,
)

__all__ = [
    "ANSWERS",
    "ANSWERS_FROM",
    "BLOCK_ROWS",
    "DEFAULT_THREADS",
    "DISTILLATION",
    "DIVERGENCES",
    "EVAL_SHARE",
    "LARGEST_SEED",
    "LEAST_SEED",
    "MOST_THREADS",
    "OBJECTIVES",
    "OPTIMIZERS",
    "PEFT_METHODS",
    "PEFT_SETTINGS",
    "PRECISIONS",
    "RUNNING",
    "SAVE_SECONDS",
    "TEMPERATURES",
    "TRAINING",
    "Ia3Settings",
    "LoraSettings",
    "PeftSettings",
    "Setting",
    "SettingField",
    "TeachSettings",
    "TrainSettings",
    "check_optimizer",
    "check_seed",
    "check_threads",
    "default_settings",
    "is_none_by_default",
    "one_of",
    "peft_options",
    "role_settings",
    "setting_fields",
]
