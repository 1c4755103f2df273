"""Preparation of a study as a session: its runs are planned and checked, and refused where no point can be filled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from outlay.engine.prepare import RunBuilder
from outlay.engine.step_runner import JobRunner
from outlay.errors import UsageError
from outlay.models.cost_model import PROFILE_FILE, load_profile
from outlay.money.amounts import Price
from outlay.report.results import Header
from outlay.storage.paths import as_word, command_line
from outlay.storage.store import Store
from outlay.study.dry_run import StudyPlan, plan
from outlay.study.grid import Study
from outlay.study.index import check_folder
from outlay.study.runner import Session, Workplace
from outlay.workers.local import LocalPool


def prepare_study(study: Study, place: Workplace, command: str | None = None) -> Session:
    """Check and plan a study; refusals come here, before a folder is made or a label bought.

    Args:
        study: a study file at one scale.
        place: the results folder, with store, prices and data.
        command: the command that makes the same grid again.

    Raises:
        UsageError: the folder is of another study or holds runs in the other precision, or no point can be filled.
    """
    header = header_of(study, command)
    check_folder(place.folder, header)
    builder, runner = place.builder(), place.runner()
    planned = plan_study(builder, study, place.store, place.here)
    refuse_empty(planned)
    runner.refuse_other_precision(builder, [point.request for point in planned.points if point.recipe is not None])
    if place.n_workers > 1:
        processes = LocalPool(place.factory(), place.n_workers, study.threads, logs=place.logs)
        return Session(place, header, planned, builder, runner, None, processes)
    return Session(place, header, planned, builder, runner, JobRunner(place.store, builder.prepare), None)


def plan_study(builder: RunBuilder, study: Study, store: Store, here: Price) -> StudyPlan:
    """Plan every cell of a study; with a forecast where the speed of this machine was measured.

    Args:
        builder: the builder of runs, with their tasks, models and prices.
        study: the study to plan.
        store: the store; the measured speed of the machine lies beside it.
        here: price per hour of the machine that computes.
    """
    asked = [cell.request if cell.absent is None else (cell.request, cell.absent) for cell in study.cells]
    return plan(builder, asked, profile=load_profile(store.root.parent / PROFILE_FILE), here=here)


def header_of(study: Study, command: str | None) -> Header:
    """Return the header of a study for its index and report; ``command`` makes the same grid again."""
    return Header(study.name, study.title, study.layout, study.source, study.scale, command, study.notes)


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


def refuse_empty(planned: StudyPlan) -> None:
    """Refuse a plan without a point that can be filled, and name the reason of its first point.

    Raises:
        UsageError: no point can be filled.
    """
    if planned.n_na == planned.n_points:
        raise UsageError(
            f"none of the {planned.n_points:,} points can be filled, the first: {planned.points[0].reason}"
        )


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
