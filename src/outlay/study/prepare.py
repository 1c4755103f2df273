"""Preparation of a study as a session: its runs are planned and checked, and refused where no point can be filled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from outlay.engine.step_runner import JobRunner
from outlay.errors import UsageError
from outlay.models.cost_model import PROFILE_FILE, load_profile
from outlay.report.results import Header
from outlay.storage.paths import as_word, command_line
from outlay.study.dry_run import plan
from outlay.study.grid import Study
from outlay.study.index import check_folder
from outlay.study.runner import Session, Workplace
from outlay.workers.pool import WorkerPool


def prepare_study(
    study: Study, place: Workplace, command: str | None = None, pool: WorkerPool | None = None
) -> Session:
    """Check and plan a study, with a forecast where the speed of this machine was measured; `check_study` goes on.

    Args:
        study: a study file at one scale.
        place: the results folder, with store, prices and data.
        command: the command that makes the same grid again.
        pool: workers in place of those of ``place``.

    Raises:
        UsageError: the folder is of another study.
    """
    header = Header(study.name, study.title, study.layout, study.source, study.scale, command, study.notes)
    check_folder(place.folder, header)
    builder, store = place.builder(), place.store
    asked = [cell.request if cell.absent is None else (cell.request, cell.absent) for cell in study.cells]
    planned = plan(builder, asked, profile=load_profile(store.root.parent / PROFILE_FILE), here=place.here)
    jobs = JobRunner(store, builder.prepare)
    return Session(place, header, planned, builder, place.runner(), jobs, pool or place.pool(study.threads))


def check_study(session: Session) -> None:
    """Refuse a planned study that cannot run; no folder is made, and no label bought.

    Raises:
        UsageError: the folder holds runs in the other precision, or no point can be filled.
    """
    planned = session.plan
    if planned.n_na == planned.n_points:
        raise UsageError(
            f"none of the {planned.n_points:,} points can be filled, the first: {planned.points[0].reason}"
        )
    session.runner.refuse_other_precision(session.builder, planned.available)


def study_command(
    study: str, given: Mapping[str, object], prices: Sequence[Path] = (), machines: Sequence[Path] = ()
) -> str:
    """Return the command that makes the same grid again at the same prices, in any store.

    Args:
        study: name or path of the study.
        given: values of the other options, by option; those that are ``None`` are left out.
        prices: the user's own price files.
        machines: the user's own machine files.
    """
    words: list[object] = ["outlay", "study", "run", as_word(study) if study.startswith("-") else study]
    files = [("--prices", path) for path in prices] + [("--machines", path) for path in machines]
    for name, value in (*given.items(), *files):
        words += [] if value is None else [name, value]
    return command_line(*words)


def refuse_several_processes() -> None:
    """Refuse to spend money in a launch of several processes; a run is one process with one ledger.

    Raises:
        UsageError: a launcher started this process beside others.
    """
    if (n_processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UsageError(
            f"this was launched in {n_processes} processes, and money is spent by one; launch a single step "
            "(`outlay finetune`, `teach`, `distill`, `predict`, `evaluate`) in several"
        )
