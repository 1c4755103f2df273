"""What a run left on disk, read for a report: its manifest, its answers to the test split, its receipt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlay.metrics import Answered
from outlay.report.results import Aftermath
from outlay.run import Runner
from outlay.workshop import read_answers


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


def aftermath_of(runner: Runner, run: str) -> Aftermath:
    """All that a report draws from beside the point; what is gone is left out."""
    manifest = manifest_of(runner, run)
    found = answers_of(runner, manifest)
    path = receipt_file(runner.folder, run)
    charges = None if manifest is None else manifest.get("charges_micros")
    return Aftermath(
        run=run,
        metric=None if found is None else found[0],
        answered=None if found is None else found[1],
        teacher_dev=None if manifest is None else manifest["teacher_dev"],
        charges_usd=None if charges is None else {part: micros / 1_000_000 for part, micros in charges.items()},
        receipt=path.read_text(encoding="utf-8") if path.exists() else None,
    )
