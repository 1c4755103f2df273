"""Results of the single steps as values: paths, scores, counts, seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outlay.metrics import Reading
from outlay.standalone.prediction_file import PREDICTION
from outlay.standalone.runtime import StepReport


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step.

    Attributes:
        path: the folder or file that the step wrote.
        n_rows: rows that were trained on, answered or scored.
        seconds: wall time, those of killed attempts included.
        was_done: the same request had been answered there before, and nothing was done this time.
        notes: what was cut, lost or decided, and where a score means less than its number; a sentence each.
        report: all counts of the step (tokens, FLOPs, facts by name).
    """

    path: Path
    n_rows: int
    seconds: float
    was_done: bool
    notes: tuple[str, ...]
    report: StepReport = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrainingResult(StepResult):
    """A trained model.

    Attributes:
        dev: best dev score, 0-100; ``None`` without a dev set, where the last model is kept.
        dev_score: name of that score, such as ``accuracy/published``; ``None`` without a dev set.
        n_dev: dev rows.
        n_steps: optimiser steps.
        n_parameters: of the model.
    """

    dev: float | None
    dev_score: str | None
    n_dev: int
    n_steps: int
    n_parameters: int

    @classmethod
    def of(cls, report: StepReport) -> TrainingResult:
        """Read the report of `outlay.standalone.training`."""
        names = ("dev", "dev_score", "n_dev", "n_steps", "n_parameters")
        return cls(**_shared(report), **{name: report.facts[name] for name in names})


@dataclass(frozen=True, slots=True)
class TargetsResult(StepResult):
    """A folder of a teacher's targets; ``kind``: ``classes``, ``tags``, ``tokens`` or ``text``."""

    kind: str

    @classmethod
    def of(cls, report: StepReport) -> TargetsResult:
        """Read the report of `outlay.standalone.inference.teach`."""
        return cls(**_shared(report), kind=report.facts["kind"])


@dataclass(frozen=True, slots=True)
class PredictionResult(StepResult):
    """A file of predictions, one JSON object a line."""

    @classmethod
    def of(cls, report: StepReport) -> PredictionResult:
        """Read the report of `outlay.standalone.inference.predict`."""
        return cls(**_shared(report))

    def answers(self) -> list[str]:
        """Return the model's answers, in the order of the rows."""
        lines = self.path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line)[PREDICTION] for line in lines if line]


@dataclass(frozen=True, slots=True)
class EvaluationResult(StepResult):
    """Scores of a model or of a file of predictions, 0-100.

    Attributes:
        score: the main score with its 95 % interval, of this model on these rows.
        main: name of the main score, such as ``accuracy/published``.
        scores: every statistic in both readings, by name.
    """

    score: Reading
    main: str
    scores: Mapping[str, Reading] = field(repr=False)

    @classmethod
    def of(cls, report: StepReport) -> EvaluationResult:
        """Read the report of an evaluation."""
        scores = {name: Reading(**reading) for name, reading in report.facts["scores"].items()}
        main = report.facts["main"]
        return cls(**_shared(report), score=scores[main], main=main, scores=scores)


def _shared(report: StepReport) -> dict[str, Any]:
    return {
        "path": Path(report.out),
        "n_rows": report.facts["n_rows"],
        "seconds": report.seconds,
        "was_done": report.is_old,
        "notes": (*report.counts, *report.facts.get("notes", ())),
        "report": report,
    }
