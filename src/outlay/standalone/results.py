"""Results of the single steps as values: paths, scores, counts, seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from outlay.metrics import Reading
from outlay.standalone.prediction_file import read_predictions
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

    @classmethod
    def of(cls, report: StepReport) -> Self:
        """Read the report of a step; fields that only this kind of result has are facts of the same names."""
        shared = _shared(report)
        return cls(**shared, **{each.name: report.facts[each.name] for each in fields(cls) if each.name not in shared})


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


@dataclass(frozen=True, slots=True)
class TargetsResult(StepResult):
    """A folder of a teacher's targets; ``kind``: ``classes``, ``tags``, ``tokens`` or ``text``."""

    kind: str


@dataclass(frozen=True, slots=True)
class PredictionResult(StepResult):
    """A file of predictions, one JSON object a line."""

    def answers(self) -> list[str]:
        """Return the model's answers, in the order of the rows."""
        return read_predictions(self.path)


@dataclass(frozen=True, slots=True)
class EvaluationResult(StepResult):
    """Scores of a model or of a file of predictions, 0-100.

    Attributes:
        score: the main score with its 95 % interval, of this model on these rows.
        main: name of the main score, such as ``accuracy/published``.
        scores: every statistic in both readings, by name.
        ece: expected calibration error of a classifier's probabilities, 0-100; ``None`` for other models and for files.
        temperature: by which its logits are divided, fitted on dev, 1 without a dev set; ``None`` where there is no ``ece``.
    """

    score: Reading
    main: str
    scores: Mapping[str, Reading] = field(repr=False)
    ece: float | None = None
    temperature: float | None = None

    @classmethod
    def of(cls, report: StepReport) -> EvaluationResult:
        """Read the report of an evaluation."""
        scores = {name: Reading(**reading) for name, reading in report.facts["scores"].items()}
        main = report.facts["main"]
        return cls(
            **_shared(report),
            score=scores[main],
            main=main,
            scores=scores,
            ece=report.facts.get("ece"),
            temperature=report.facts.get("temperature"),
        )


def _shared(report: StepReport) -> dict[str, Any]:
    return {
        "path": Path(report.out),
        "n_rows": report.facts["n_rows"],
        "seconds": report.seconds,
        "was_done": report.is_old,
        "notes": (*report.counts, *report.facts.get("notes", ())),
        "report": report,
    }
