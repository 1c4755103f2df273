"""Outputs of a run on disk: its manifest, its answers to the test split, its receipt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
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


@dataclass(frozen=True, slots=True)
class Scoring:
    """The answers of a model to the test split, as the artifact of its scoring holds them."""

    metric: str
    """Metric of the task, one of `outlay.metrics.METRICS`."""
    answered: Answered
    rows: tuple[str, ...]
    """Ids of the rows."""
    ece: float | None
    """Expected calibration error, 0-100; ``None`` for a model without probabilities."""
    probabilities: Sequence[Sequence[float]] | None
    """Of each row's labels; ``None`` for a model without."""
    groups: tuple[str, ...]
    """The group of each row; empty where the task names none."""

    def quality(self) -> Quality | None:
        """Return where the model is right and wrong; ``None`` where nothing is told of free answers."""
        from outlay.metrics.calibration import given_probabilities

        sure = given_probabilities(self.probabilities)
        found = quality_of(self.metric, self.answered, self.rows, sure, self.groups)
        return found if found != Quality() else None


def read_scoring(artifact: Artifact) -> Scoring:
    """Read the answers to the test split from the artifact of a scoring."""
    said = json.loads((artifact.path / PREDICTIONS_FILE).read_text(encoding="utf-8"))
    optional = said.get("sources", ()), said.get("similarities", ())
    answered = Answered(said["predictions"], said["golds"], said["labels"], *optional)
    more = said.get("ece"), said.get("probabilities"), tuple(said.get("groups", ()))
    return Scoring(said["metric"], answered, tuple(said["rows"]), *more)


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
    scoring = scoring_of(store, manifest)
    path, charges = receipt_file(folder, run), manifest.get("charges_micros")
    return RunOutputs(
        run=run,
        metric=None if scoring is None else scoring.metric,
        answered=None if scoring is None else scoring.answered,
        teacher_dev=manifest.get("teacher_dev"),
        charges_usd=None if charges is None else {part: usd_of(micros) for part, micros in charges.items()},
        receipt=path.read_text(encoding="utf-8") if path.exists() else None,
        texts=_texts(store, manifest, scoring),
    )


def _texts(store: Store, manifest: Mapping[str, Any], scoring: Scoring | None) -> dict[str, str]:
    """Return the texts of the rows that a run's result names, by their ids; those of artifacts that are still there."""
    result = manifest.get("point", {}).get("result", {})
    wrong = {each["row"] for each in (result.get("quality") or {}).get("wrong", ())}
    likely = {each["row"] for each in result.get("label_errors", ())}
    found: dict[str, str] = {}
    if scoring is not None and wrong:
        found |= _named(wrong, scoring.rows, scoring.answered.sources)
    for each in manifest.get("artifacts", ()) if likely else ():
        artifact = store.check(each["key"]) if each["step"] == "train" else None
        if artifact is not None and (path := artifact.path / HELD_OUT_FILE).exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            found |= _named(likely, kept["rows"], kept["sources"])
    return found


def _named(wanted: Set[str], rows: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    return {row: text for row, text in zip(rows, texts, strict=True) if row in wanted}


def manifest_of(folder: Path, run: str) -> dict[str, Any] | None:
    """Read the manifest of a finished run; ``None`` for any other."""
    path = RunDir.of(folder, run).manifest
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def scoring_of(store: Store, manifest: Mapping[str, Any]) -> Scoring | None:
    """Read the answers to the test split; ``None`` where the artifact was removed from the store."""
    key = next((each["key"] for each in manifest.get("artifacts", ())[::-1] if each["role"] == "scores"), None)
    artifact = store.get(key) if key is not None else None
    return None if artifact is None else read_scoring(artifact)


def receipt_file(folder: Path, run: str) -> Path:
    """Return the path of the receipt of a run, a text file, in a results folder."""
    return folder / "receipts" / f"{run}.txt"
