"""Outputs of a run on disk: its manifest, its answers to the test split, its receipt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outlay.engine.point import usd_of
from outlay.engine.run_dir import RunDir
from outlay.metrics import Answered
from outlay.metrics.quality import DoubtfulRow, Quality, label_errors, quality_of
from outlay.models.reference import HELD_OUT_FILE
from outlay.plan.steps import PREDICTIONS_FILE
from outlay.storage.store import Artifact, Store

PARTS = ("labels", "teacher", "targets", "student", "scores")
"""Parts of a charge: the kinds of steps, in the order they are paid."""


@dataclass(frozen=True, slots=True)
class RunOutputs:
    """Outputs of one run beside its point. Any may be missing: an artifact was removed, or the run failed."""

    run: str
    """Id of the run."""
    metric: str | None = None
    """Metric of the task, one of `outlay.metrics.METRICS`."""
    answered: Answered | None = None
    """The answers to the test split, the same examples in the same order in every run of a task."""
    teacher_dev: float | None = None
    """Dev score of the teacher, 0-100."""
    charges_usd: Mapping[str, float] | None = None
    """Charge by part, see `PARTS`; they add up to the point's charge."""
    receipt: str | None = None
    """Receipt as plain text."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Texts of the rows that the point's result names, by their ids."""
    model_bytes: int | None = None
    """Bytes on disk of the model that was handed over from this run; ``None`` for any other."""


def read_answers(artifact: Artifact) -> tuple[str, Answered]:
    """Read the metric and the answers to the test split from the artifact of a scoring."""
    said = json.loads((artifact.path / PREDICTIONS_FILE).read_text(encoding="utf-8"))
    optional = said.get("sources", ()), said.get("similarities", ())
    return said["metric"], Answered(said["predictions"], said["golds"], said["labels"], *optional)


def calibration_error(artifact: Artifact) -> float | None:
    """Read the calibration error from the artifact of a scoring; ``None`` for a model without probabilities."""
    said = json.loads((artifact.path / PREDICTIONS_FILE).read_text(encoding="utf-8"))
    error: float | None = said.get("ece")
    return error


def read_quality(artifact: Artifact) -> Quality | None:
    """Read where a model is right and wrong from the artifact of its scoring; ``None`` where nothing is told of free answers."""
    from outlay.metrics.calibration import given_probabilities

    said = json.loads((artifact.path / PREDICTIONS_FILE).read_text(encoding="utf-8"))
    metric, answered = read_answers(artifact)
    sure = given_probabilities(said.get("probabilities"))
    found = quality_of(metric, answered, said["rows"], sure, said.get("groups", ()))
    return found if found != Quality() else None


def read_label_errors(artifact: Artifact, classes: Sequence[str]) -> tuple[DoubtfulRow, ...]:
    """Read training labels that are likely wrong from the artifact of a training; none where no row was held out."""
    path = artifact.path / HELD_OUT_FILE
    if not path.exists():
        return ()
    kept = json.loads(path.read_text(encoding="utf-8"))
    return label_errors(kept["rows"], kept["labels"], classes, kept["held_out"])


def outputs_of(folder: Path, store: Store, run: str) -> RunOutputs:
    """Read the outputs of a run beside its point; a missing one is ``None``."""
    manifest = manifest_of(folder, run) or {}
    metric, answered = answers_of(store, manifest) or (None, None)
    path, charges = receipt_file(folder, run), manifest.get("charges_micros")
    return RunOutputs(
        run=run,
        metric=metric,
        answered=answered,
        teacher_dev=manifest.get("teacher_dev"),
        charges_usd=None if charges is None else {part: usd_of(micros) for part, micros in charges.items()},
        receipt=path.read_text(encoding="utf-8") if path.exists() else None,
        texts=_texts(store, manifest),
    )


def _texts(store: Store, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the rows that a run's result names, by their ids; those of artifacts that are still there."""
    result = manifest.get("point", {}).get("result", {})
    named = {
        PREDICTIONS_FILE: [each["row"] for each in (result.get("quality") or {}).get("wrong", ())],
        HELD_OUT_FILE: [each["row"] for each in result.get("label_errors", ())],
    }
    found: dict[str, str] = {}
    for each in manifest.get("artifacts", ()):
        file = PREDICTIONS_FILE if each["role"] == "scores" else HELD_OUT_FILE if each["step"] == "train" else None
        if file is None or not named[file] or (artifact := store.check(each["key"])) is None:
            continue
        if (path := artifact.path / file).exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            texts = dict(zip(kept["rows"], kept["sources"], strict=True))
            found |= {row: texts[row] for row in named[file] if row in texts}
    return found


def manifest_of(folder: Path, run: str) -> dict[str, Any] | None:
    """Read the manifest of a finished run; ``None`` for any other."""
    path = RunDir.of(folder, run).manifest
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def answers_of(store: Store, manifest: Mapping[str, Any]) -> tuple[str, Answered] | None:
    """Read the metric and the answers to the test split; ``None`` where the artifact was removed from the store."""
    key = next((each["key"] for each in manifest.get("artifacts", ())[::-1] if each["role"] == "scores"), None)
    artifact = store.get(key) if key is not None else None
    return None if artifact is None else read_answers(artifact)


def receipt_file(folder: Path, run: str) -> Path:
    """Return the path of the receipt of a run, a text file, in a results folder."""
    return folder / "receipts" / f"{run}.txt"
