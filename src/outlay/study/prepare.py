"""Preparation of a study as a session: its runs are planned and checked, and refused where no point can be filled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from outlay.engine.outputs import manifest_of
from outlay.engine.point import Point, PointRequest
from outlay.engine.prepare import RunBuilder
from outlay.engine.runner import other_precision
from outlay.engine.step_runner import JobRunner
from outlay.engine.summary import asked_of
from outlay.errors import DataError, UsageError
from outlay.hardware.precision import AUTO, OTHER, bf16_speed, precision_name
from outlay.report.results import Header
from outlay.storage.paths import as_word, command_line
from outlay.study.dry_run import StudyPlan, plan
from outlay.study.grid import Study
from outlay.study.index import check_folder
from outlay.study.known import KnownPoint, KnownPoints, refuse_other_result
from outlay.study.runner import Session, Workplace
from outlay.workers.pool import WorkerPool


def prepare_study(
    study: Study,
    place: Workplace,
    command: str | None = None,
    pool: WorkerPool | None = None,
    known: Sequence[Path] = (),
    *,
    rivals: bool = True,
) -> Session:
    """Check and plan a study, with a forecast where the speed of this machine was measured; `check_study` goes on.

    Args:
        study: a study file at one scale.
        place: the results folder, with store, prices and data.
        command: the command that makes the same grid again.
        pool: workers in place of those of ``place``.
        known: files of finished points, each with its `study.json` beside it; those of the study's runs are taken as done.
        rivals: False to leave out the rivals that the study has.

    Raises:
        UsageError: the folder is of another study; a file of known points holds none of the study's runs, or a result that
            another place contradicts.
        DataError: a file of known points that cannot be read, or that contradicts its index.
    """
    header = Header(
        study.name, study.title, study.layout, study.source, study.scale, command, study.notes, place.bounds
    )
    check_folder(place.folder, header)
    builder, store = place.builder(), place.store
    asked = [cell.request if cell.absent is None else (cell.request, cell.absent) for cell in study.cells]
    there = KnownPoints(place.folder, known)
    planned = plan(
        builder,
        asked,
        profile=place.profile,
        here=place.here,
        rivals=rivals and study.rivals,
        known=there.by_run,
        there=place.already_there(),
    )
    remarks = _check_known(there, planned, builder, place.folder)
    jobs = JobRunner(store, builder.prepare)
    return Session(place, header, planned, builder, place.runner(), jobs, pool or place.pool(study.threads), remarks)


def _check_known(known: KnownPoints, planned: StudyPlan, builder: RunBuilder, folder: Path) -> tuple[str, ...]:
    """Refuse known points that are not what they claim, and files that tell nothing of a study; return remarks on the rest."""
    for each in planned.points:
        if each.known is not None:
            _check_point(each.known, asked_of(builder.prepare(each.request)), folder)
    if known.by_run:
        _refuse_other_precision(known, planned, builder)
    if not known.by_file:
        return ()
    runs = {each.run_id for each in planned.points if each.known is not None}
    left = {asked_of(builder.prepare(each)).id for each in planned.available}
    remarks = []
    for file, found in known.by_file.items():
        n_alike = sum(one.point.id in left for run, one in found.items() if run not in runs)
        alike = (
            f"{n_alike:,} of its {len(found):,} points ask what points of this study ask, but were run otherwise (settings, "
            "threads, precision, data, checkpoints or the speed of the machine they are charged as)"
        )
        if runs.isdisjoint(found):
            why = alike if n_alike else f"none of its {len(found):,} points asks what a point of this study asks"
            raise UsageError(
                f"{file} knows no run of this study: {why}; leave it out, or study at what it was made with"
            )
        remarks += [f"note: {file}: {alike}; they are not taken"] if n_alike else []
    return tuple(remarks)


def _check_point(known: KnownPoint, asked: PointRequest, folder: Path) -> None:
    """Refuse a known point whose request is not that of its run, or whose result is not what the folder itself found."""
    told, wanted = asdict(known.point.request), asdict(asked)
    name = next((name for name in told if told[name] != wanted[name]), None)
    if name is not None:
        raise DataError(
            f"{known.file}: its study.json says that a point is of run {known.run}, but that run has {name} {wanted[name]!r} and "
            f"the point {told[name]!r}; take the two files of one results folder"
        )
    manifest = manifest_of(folder, known.run)
    if manifest is not None:
        refuse_other_result(known.run, Point.from_json(manifest["point"]), str(folder), known.point, known.file)


def _refuse_other_precision(known: KnownPoints, planned: StudyPlan, builder: RunBuilder) -> None:
    """Refuse known points in the other precision than this machine would choose, rather than run them all again."""
    for each in planned.points:
        if each.recipe is None or each.known is not None or each.request.precision != AUTO:
            continue
        there = other_precision(builder, each.request)
        one = known.by_run.get(there.run_id)
        if one is not None:
            before, now = precision_name(there.precision), precision_name(OTHER[there.precision])
            raise UsageError(
                f"{one.file} knows this study in {before}, and this machine would compute in {now} "
                f"({bf16_speed().reason()}); go on with --precision {there.precision}, or run all of it again with "
                f"--precision {OTHER[there.precision]}"
            )


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
    study: str,
    given: Mapping[str, object],
    prices: Sequence[Path] = (),
    machines: Sequence[Path] = (),
    known: Sequence[Path] = (),
) -> str:
    """Return the command that makes the same grid again at the same prices, in any store.

    Args:
        study: name or path of the study.
        given: values of the other options, by option; those that are ``None`` are left out, True is a switch.
        prices: the user's own price files.
        machines: the user's own machine files.
        known: files of known points.
    """
    words: list[object] = ["outlay", "study", "run", as_word(study) if study.startswith("-") else study]
    named = {"--prices": prices, "--machines": machines, "--known": known}
    files = [(name, path) for name, paths in named.items() for path in paths]
    for name, value in (*given.items(), *files):
        words += [] if value is None else [name] if value is True else [name, value]
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
