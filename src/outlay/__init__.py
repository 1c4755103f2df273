"""outlay: spend a fixed budget on the best compact model it can buy. ::

    import outlay

    result = outlay.run("fever", budget=300, strategy="distill", out="runs/fever")
    print(result.score, result.charge)
    print(result.receipt)

`init` makes a task of files; `run`, `compare` and `study` spend a budget against the `Ledger` of a results folder; `finetune`,
`teach`, `distill`, `predict` and `evaluate` are single steps without money. ``docs/python.md`` describes each with an example. A
name is loaded when it is first used, so that the import itself loads nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlay import errors as errors
    from outlay.api import compare, dry_run, init, push_model, run, study
    from outlay.api_steps import distill, evaluate, finetune, load_model, predict, teach
    from outlay.errors import OutlayError
    from outlay.money.ledger import Ledger
    from outlay.plan.request import ReplayOptions, SellerSpec
    from outlay.standalone.evaluator import MetricAsked
    from outlay.standalone.request import Data
    from outlay.standalone.results import EvaluationResult, PredictionResult, TargetsResult, TrainingResult
    from outlay.standalone.runtime import RuntimeOptions
    from outlay.study.progress import Progress
    from outlay.study.request import Models, RunOptions, Setup
    from outlay.study.results import DryRun, RunResult, StudyResult
    from outlay.tasks.new_task import SplitOptions
    from outlay.tasks.task import load_task
    from outlay.tasks.task_files import InitResult
    from outlay.tasks.to_label import ToLabel

__version__ = "0.2.0.dev0"

__all__ = [
    "Data",
    "DryRun",
    "EvaluationResult",
    "InitResult",
    "Ledger",
    "MetricAsked",
    "Models",
    "OutlayError",
    "PredictionResult",
    "Progress",
    "ReplayOptions",
    "RunOptions",
    "RunResult",
    "RuntimeOptions",
    "SellerSpec",
    "Setup",
    "SplitOptions",
    "StudyResult",
    "TargetsResult",
    "ToLabel",
    "TrainingResult",
    "compare",
    "distill",
    "dry_run",
    "errors",
    "evaluate",
    "finetune",
    "init",
    "load_model",
    "load_task",
    "predict",
    "push_model",
    "run",
    "study",
    "teach",
]

_ELSEWHERE = {
    "Data": "outlay.standalone.request",
    "DryRun": "outlay.study.results",
    "EvaluationResult": "outlay.standalone.results",
    "InitResult": "outlay.tasks.task_files",
    "Ledger": "outlay.money.ledger",
    "MetricAsked": "outlay.standalone.evaluator",
    "Models": "outlay.study.request",
    "OutlayError": "outlay.errors",
    "PredictionResult": "outlay.standalone.results",
    "Progress": "outlay.study.progress",
    "ReplayOptions": "outlay.plan.request",
    "RunOptions": "outlay.study.request",
    "RunResult": "outlay.study.results",
    "RuntimeOptions": "outlay.standalone.runtime",
    "SellerSpec": "outlay.plan.request",
    "Setup": "outlay.study.request",
    "SplitOptions": "outlay.tasks.new_task",
    "StudyResult": "outlay.study.results",
    "TargetsResult": "outlay.standalone.results",
    "ToLabel": "outlay.tasks.to_label",
    "TrainingResult": "outlay.standalone.results",
    "load_task": "outlay.tasks.task",
    "distill": "outlay.api_steps",
    "evaluate": "outlay.api_steps",
    "finetune": "outlay.api_steps",
    "load_model": "outlay.api_steps",
    "predict": "outlay.api_steps",
    "teach": "outlay.api_steps",
}
"""Public names that are not of `outlay.api`."""


if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "errors":
            return import_module("outlay.errors")
        if name == "study":
            # The package of that name, which is called as the function: so it stays one object, whatever was imported before.
            return import_module("outlay.study")
        value = getattr(import_module(_ELSEWHERE.get(name, "outlay.api")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _StudyPackage(ModuleType):
    """The package `outlay.study`, which is called as the function `outlay.api.study`."""

    __call__ = property(lambda _: import_module("outlay.api").study)
    __signature__ = property(lambda _: import_module("inspect").signature(import_module("outlay.api").study))


class _Package(ModuleType):
    """The package `outlay`, in which one name is a function and a package: `study`."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "study" and isinstance(value, ModuleType):
            # The import system sets it here as soon as anything of the package is imported.
            value.__class__ = _StudyPackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
