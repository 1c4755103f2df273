"""What a run left on disk, read for a report: its manifest, its answers to the test split, its receipt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.engine.runner import Runner
from outlay.engine.step_runner import read_answers
from outlay.metrics import Answered


def manifest_of(runner: Runner, run: str) -> dict[str, Any] | None:
    """What a run that is over left behind; ``None`` for one that is not."""
    path = runner.run_folder(run).manifest
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def answers_of(runner: Runner, manifest: Mapping[str, Any] | None) -> tuple[str, Answered] | None:
    """The metric and the answers to the test split; ``None`` where the artifact was removed from the store."""
    key = next((a["key"] for a in manifest["artifacts"] if a["step"] == "score"), None) if manifest else None
    artifact = runner.store.get(key) if key is not None else None
    if artifact is None:
        return None
    return read_answers(artifact)


def receipt_file(folder: Path, run: str) -> Path:
    """Where a results folder keeps the receipt of a run, as text."""
    return folder / "receipts" / f"{run}.txt"


def outputs_of(runner: Runner, run: str) -> RunOutputs:
    """All that a report draws from beside the point; what is gone is left out."""
    manifest = manifest_of(runner, run)
    found = answers_of(runner, manifest)
    path = receipt_file(runner.folder, run)
    charges = None if manifest is None else manifest.get("charges_micros")
    return RunOutputs(
        run=run,
        metric=None if found is None else found[0],
        answered=None if found is None else found[1],
        teacher_dev=None if manifest is None else manifest["teacher_dev"],
        charges_usd=None if charges is None else {part: micros / 1_000_000 for part, micros in charges.items()},
        receipt=path.read_text(encoding="utf-8") if path.exists() else None,
    )


PARTS = ("labels", "teacher", "targets", "student", "scores")
"""What a charge is made of: the kinds of steps, in the order they are paid."""


@dataclass(frozen=True, slots=True)
class RunOutputs:
    """What one run left, beside its point. Anything may be missing: an artifact was removed, a run failed."""

    run: str
    """The run's id."""
    metric: str | None = None
    """One of `outlay.metrics.METRICS`."""
    answered: Answered | None = None
    """The answers to the test split, the same examples in the same order in every run of a task."""
    teacher_dev: float | None = None
    """Dev score of the teacher, 0-100."""
    charges_usd: Mapping[str, float] | None = None
    """Charge by part, see `PARTS`; they add up to the point's charge."""
    receipt: str | None = None
    """As plain text."""
