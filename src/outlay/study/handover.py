"""The model that a run or a comparison hands over: which one, and its folder ``OUT/model`` with its card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import outlay
from outlay.engine.outputs import manifest_of, receipt_file, scoring_of
from outlay.engine.point import Point, read_points
from outlay.export.loading_lines import loading_lines
from outlay.export.model_card import CardFacts, card_text
from outlay.export.model_dir import MODEL_DIR, export_model, handed_over
from outlay.metrics import Reading, main_score
from outlay.metrics.per_class import label_scores
from outlay.models.reference import HEAD_FILE, parse_ref
from outlay.report.receipt import about_lines, receipt, render_text
from outlay.report.recommendation import model_to_take
from outlay.report.results import Header
from outlay.report.seed_means import SeedMean, means, size_mb
from outlay.report.values import latency_text, money, size_text
from outlay.storage.files import write_text
from outlay.storage.paths import command_line, expand
from outlay.storage.store import Artifact
from outlay.study.index import StudyCell, StudyIndex
from outlay.study.runner import Session, read_results
from outlay.tasks.row_form import RowForm
from outlay.tasks.task import Task


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The model of a results folder; ``folder``: where it lies, ``None`` where no model is handed over; ``why``: one line."""

    folder: Path | None
    why: str


def hand_over(session: Session) -> HandedOver | None:
    """Write the model of a finished run or comparison into ``OUT/model``; ``None`` for a study, or without a finished run.

    Of a run that is its student; of a comparison, the first seed of the row with the best mean dev score at the largest budget
    (`outlay.report.recommendation.model_to_take`): test scores choose nothing. The same model is not written twice.

    Raises:
        UsageError: the folder holds something else.
        DiskFull: no room for it.
    """
    place, header = session.place, session.header
    path = place.folder / "points.json"
    if header.scale is not None or not path.exists() or not any(point.is_ok for point in read_points(path)):
        return None
    results = read_results(place.folder, place.store)
    rows = means(results)
    chosen = [mean for mean in rows if not mean.request.is_rival]
    if header.name != "run":
        found = model_to_take(rows, header.bounds)
        if found is None and (len(chosen) > 1 or header.bounds.words):
            within = f" {header.bounds.words}" if header.bounds.words else ""
            why = f"no model is handed over: no row{within} has a dev score, and test scores choose none"
            return HandedOver(None, why)
        chosen = chosen if found is None else [found]
    points = {point.id: point for point in results.points if point.is_ok}
    own = next((points[name] for name in chosen[0].ids if name in points), None)
    if own is None:
        return None
    cell = next(cell for cell in StudyIndex.read(place.folder).cells if cell.point == own.id)
    return _write(session, own, cell, _reason(header, chosen[0], own))


def _reason(header: Header, mean: SeedMean, point: Point) -> str:
    request = point.request
    name = f"{request.variant}, {money(request.budget_usd)}, seed {request.seed}"
    if header.name == "run":
        return name
    by = (
        f"best mean dev score at {money(request.budget_usd)}, {mean.dev_words}"
        if mean.dev is not None
        else "the only row"
    )
    return f"{name}: {by}"


def _write(session: Session, point: Point, cell: StudyCell, why: str) -> HandedOver:
    folder, store = session.place.folder, session.place.store
    manifest = None if cell.run is None or cell.known is not None else manifest_of(folder, cell.run)
    if manifest is None or cell.run is None:
        return HandedOver(None, f"the model of {why} is not here: its point is known from {cell.known}")
    key = next(each["key"] for each in reversed(manifest["artifacts"]) if each["role"] == "student")
    artifact = store.get(key)
    if artifact is None:
        return HandedOver(None, f"the model of {why} is no longer in {store.location}")
    target = folder / MODEL_DIR
    asked = next(planned.request for planned in session.plan.points if planned.run_id == cell.run)
    task = session.builder.prepare(asked).task
    identity = {"run": cell.run, "artifact": key, "digest": artifact.digest, "outlay": outlay.__version__}
    identity |= {"task": str(task.reference), "why": why}
    if handed_over(target) != identity:
        rows = RowForm.of(task)
        facts = _facts(session, point, task, rows, manifest, artifact)
        export_model(artifact.path, target, rows, {**identity}, card_text(facts))
        # The receipt says where the model is.
        text = render_text(receipt(session.runner.ledger, cell.run))
        write_text(receipt_file(folder, cell.run), text)
    return HandedOver(target, why)


def _facts(
    session: Session, point: Point, task: Task, rows: RowForm, manifest: Mapping[str, Any], artifact: Artifact
) -> CardFacts:
    """Gather the facts of the card."""
    request, result = point.request, point.result
    head_file = json.loads((artifact.path / HEAD_FILE).read_text(encoding="utf-8"))
    scoring = scoring_of(session.place.store, manifest)
    main = main_score(task.metric)
    statistic = main.split("/")[0]
    ordered = sorted(result.scores, key=lambda name: (name != main, not name.startswith(statistic), name))
    return CardFacts(
        task=task.name,
        description=task.description,
        kind=task.kind,
        labels=task.labels,
        library=_library(head_file),
        base_model=_hub_name(request.teacher, request.student, manifest),
        facts=_rows_of_facts(point, manifest),
        scores={name: Reading(**asdict(result.scores[name])) for name in ordered},
        n_test=0 if scoring is None else len(scoring.answered.golds),
        label_scores=[] if scoring is None else label_scores(scoring.metric, scoring.answered),
        notes=result.notes,
        licences=_licences(task, manifest),
        reproduce=_lines_to_reproduce(session.header, point),
        receipt=_receipt(session, manifest),
        loading=loading_lines(head_file, rows),
    )


def _receipt(session: Session, manifest: Mapping[str, Any]) -> str:
    """Return the receipt of a run without the paths of its models."""
    found = receipt(session.runner.ledger, manifest["run_id"])
    asked, result = manifest["point"]["request"], manifest["point"]["result"]
    named = {role: None if asked[role] is None else _name_of(asked[role]) for role in ("teacher", "student")}
    return render_text(replace(found, about=about_lines({**asked, **named}, result), model=None))


def _name_of(ref: str) -> str:
    """Return a model reference for a card: of a local folder the name alone, which is all that others can make use of."""
    return Path(os.path.abspath(expand(ref))).name if parse_ref(ref).kind == "folder" else ref  # noqa: PTH100


def _library(head_file: Mapping[str, Any]) -> str:
    own = head_file.get("head")
    if own is None:
        return "transformers"
    return "sentence-transformers" if "pooling" in own else "sklearn"


def _hub_name(teacher: str | None, student: str, manifest: Mapping[str, Any]) -> str | None:
    """Return the checkpoint that the student began as, where it is a name of the hub; a cut one began as its base."""
    base = manifest["request"].get("base") or manifest["request"].get("teacher") or teacher
    for ref in (student, base):
        if ref is not None and not parse_ref(ref).needs_base:
            return ref if parse_ref(ref).kind == "hub" else None
    return None


def _rows_of_facts(point: Point, manifest: Mapping[str, Any]) -> dict[str, str]:
    request, result = point.request, point.result
    labels = f"{result.n_labels:,}" + (f" of people, {result.n_llm_labels:,} of an LLM" if result.n_llm_labels else "")
    found = {
        "student": _name_of(request.student),
        "teacher": None if request.teacher is None else _name_of(request.teacher),
        "strategy": request.policy,
        "method": request.method,
        "labels": labels,
        "pool rows": f"{result.n_pool:,}" if result.n_pool else None,
        "dev labels": f"{result.n_dev:,}" if result.n_dev else None,
        "dev score": None if result.dev is None else f"{result.dev:.1f}",
        "teacher's own test score": None if result.teacher_test is None else f"{result.teacher_test.value:.1f}",
        "budget": money(request.budget_usd),
        "charged": money(result.charge_usd),
        "size": None if (size := size_mb([point])) is None else f"{size_text(size)} MB",
        "speed": _speed(point),
        "calibration error": None if result.ece is None else f"{result.ece:.1f} of 100",
        "seed": str(request.seed),
        "run": f"`{manifest['run_id']}`",
    }
    return {name: text.replace("|", "\\|") for name, text in found.items() if text is not None}


def _speed(point: Point) -> str | None:
    latency, where = point.circumstance.latency_ms, point.circumstance.environment or {}
    if latency is None:
        return None
    return f"{latency_text(latency)} ms a row, one row at a time" + (f" ({where['cpu']})" if where.get("cpu") else "")


def _licences(task: Task, manifest: Mapping[str, Any]) -> list[str]:
    """Return a line for the checkpoints and for each source of rows, with the licence that its origin states."""
    asked = manifest["request"]
    refs = dict.fromkeys(ref for ref in (asked.get("base"), asked.get("teacher"), asked.get("student")) if ref)
    lines = [f"checkpoint {_name_of(ref)}: see its own licence" for ref in refs if not parse_ref(ref).needs_base]
    for path, source in task.sources():
        origin = source.origin
        name = Path(source.file).name if source.file else (source.hub.name if source.hub is not None else None)
        if name is not None:
            licence = "not stated" if origin is None or origin.licence is None else origin.licence
            lines.append(f"{path}, {name}{'' if origin is None else f' ({origin.url})'}: licence {licence}")
    return lines


def _lines_to_reproduce(header: Header, point: Point) -> list[str]:
    where = point.circumstance.environment or {}
    packages = [f"{name}=={where[name]}" for name in ("torch", "transformers") if where.get(name)]
    lines = [command_line("pip", "install", f"outlay=={outlay.__version__}", *packages)]
    return [*lines, header.command] if header.command else lines


def lines_on_model(folder: Path) -> list[str]:
    """Return the lines on the model that a results folder handed over: where it is, and how it is used; none without one."""
    known = handed_over(folder / MODEL_DIR)
    if known is None:
        return []
    use = command_line("outlay", "predict", folder, "--file", "new.csv")
    return [f"model: {folder / MODEL_DIR} ({known['why']})", f"predict: {use}"]
