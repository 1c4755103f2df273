"""The index of a results folder, `study.json`: the header of its study, and the run of each cell."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from outlay.engine.outputs import manifest_of
from outlay.engine.point import Point, read_points
from outlay.engine.run_dir import STUDY_FILE
from outlay.errors import DataError, MissingData, UsageError
from outlay.money.amounts import Price, show_usd, write_usd
from outlay.plan.request import DEFAULT_MACHINE
from outlay.report.results import Header
from outlay.storage.files import write_json
from outlay.storage.locations import default_location
from outlay.storage.paths import command_line
from outlay.storage.remote import open_location

FORMAT = 1
OLD_FILE = "comparison.json"
"""Index that `run`, `compare` and `demo` wrote up to 2026-11: still read, and replaced when a command goes on there."""


@dataclass(frozen=True, slots=True)
class StudyCell:
    """A cell of the grid in the index: its run, ``None`` where there is none, and a label of its request."""

    run: str | None
    point: str | None
    """Id of the point of the cell, once there is one."""
    label: str
    known: str | None = None
    """File that the point was taken from; ``None`` for a run of this folder."""

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON values; ``known`` is left out where it is ``None``."""
        record = asdict(self)
        return record if self.known is not None else {name: record[name] for name in record if name != "known"}


@dataclass(frozen=True)
class StudyIndex:
    """The content of `study.json`; runs that come from no study file have no ``header.scale``."""

    header: Header
    store: str
    here: Price
    cells: tuple[StudyCell, ...]

    def write(self, folder: Path) -> None:
        """Write the index into a results folder atomically."""
        write_json(
            folder / STUDY_FILE,
            {
                "format": FORMAT,
                "header": self.header.to_json(),
                "store": self.store,
                "here": {"item": self.here.item, "unit": self.here.unit, "usd": write_usd(self.here.usd)},
                "cells": [cell.to_json() for cell in self.cells],
            },
        )
        (folder / OLD_FILE).unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: Path) -> StudyIndex:
        """Read the index of a results folder, also of one that is older than `study.json`.

        Raises:
            MissingData: the folder has no index.
            DataError: the file is not an index.
        """
        for path, read in ((folder / STUDY_FILE, cls._read), (folder / OLD_FILE, cls._read_old)):
            try:
                return read(path, json.loads(path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                continue
            except (KeyError, TypeError, ArithmeticError, json.JSONDecodeError, UnicodeDecodeError):
                raise DataError(
                    f"{path} is no index of a results folder; move it away, or give another --out"
                ) from None
        again = command_line("outlay", "compare", "TASK", "--budgets", "DOLLARS", "--out", folder)
        raise MissingData(f"{folder} holds no results; make some with `outlay run`, `outlay study run` or `{again}`")

    @classmethod
    def _read(cls, path: Path, document: dict[str, Any]) -> StudyIndex:
        header = Header.from_json(document["header"])
        cells = tuple(StudyCell(**cell) for cell in document["cells"])
        return cls(header, document["store"], _hour(document["here"], path), cells)

    @classmethod
    def _read_old(cls, path: Path, document: dict[str, Any]) -> StudyIndex:
        points_file, runs = path.parent / "points.json", document["runs"]
        points = read_points(points_file) if points_file.exists() else []
        cells = tuple(
            _old_cell(path.parent, run, points if len(points) == len(runs) else [], i) for i, run in enumerate(runs)
        )
        tasks = ", ".join(dict.fromkeys(point.request.task for point in points))
        header = Header("compare", title_of(tasks) if tasks else "What a score costs", "plain")
        return cls(header, document["store"], _hour(document["here"], path), cells)

    def again(self, folder: Path) -> str | None:
        """Return the command that resumes this folder: the one that made the grid, with its store and hourly price; else None."""
        if self.header.command is None:
            return None
        words = [self.header.command]
        if self.here.item != DEFAULT_MACHINE:
            words.append(command_line("--this-machine", self.here.item))
        if self.store != open_location(default_location()).location:
            words.append(command_line("--store", self.store))
        return " ".join((*words, command_line("--out", folder)))


def _old_cell(folder: Path, run: str, points: Sequence[Point], place: int) -> StudyCell:
    """Return a cell of the old index from the run's manifest, or else from the point at its place.

    The points may have been written without their index.
    """
    manifest = manifest_of(folder, run)
    if manifest is not None:
        point = Point.from_json(manifest["point"])
    elif points:
        point = points[place]
    else:
        return StudyCell(run, None, f"run {run}")
    return StudyCell(run, point.id, words_of(point))


def title_of(tasks: str) -> str:
    """Return the title of runs that come from no study file."""
    return f"{tasks}: what a score costs"


def is_indexed(folder: Path) -> bool:
    """Return True where a results folder has an index, new or old."""
    return (folder / STUDY_FILE).exists() or (folder / OLD_FILE).exists()


def check_folder(folder: Path, header: Header) -> None:
    """Refuse a results folder of another study.

    Raises:
        UsageError: the folder holds another study, or a study where runs come from no study file, or the other way round.
    """
    if not is_indexed(folder):
        if header.scale is not None and (folder / "ledger.sqlite").exists():
            raise UsageError(f"{folder} holds runs that are not of a study; give another --out")
        return
    other = StudyIndex.read(folder).header
    if header.scale is None and other.scale is not None:
        raise UsageError(f"{folder} holds a study; give another --out")
    if header.scale is not None and other.scale is None:
        raise UsageError(f"{folder} holds runs that are not of a study; give another --out")
    if header.scale is not None and (other.name, other.scale) != (header.name, header.scale):
        raise UsageError(
            f"{folder} holds study {other.name} at scale {other.scale}, and this is {header.name} at scale "
            f"{header.scale}; give another --out"
        )


def check_nothing_lost(folder: Path, asked: Collection[str | None]) -> None:
    """Refuse a results folder whose report would lose a score; a grid that holds all of them, and more, goes on there.

    Args:
        folder: the results folder.
        asked: ids of the requested runs.

    Raises:
        UsageError: a run that is not requested has a score.
    """
    if not is_indexed(folder):
        return
    cells, path = StudyIndex.read(folder).cells, folder / "points.json"
    points = {point.id: point for point in read_points(path)} if path.exists() else {}
    lost = []
    for cell in cells:
        if cell.run is not None and cell.run not in asked:
            # Points are written at intervals; a run that ended since then has its manifest.
            manifest = None if cell.point in points else manifest_of(folder, cell.run)
            point = points.get(cell.point or "") if manifest is None else Point.from_json(manifest["point"])
            # How many labels a rival has depends on the runs beside it: it is no loss, its steps are in the store.
            lost += [point] if point is not None and point.is_ok and not point.request.is_rival else []
    if lost:
        raise UsageError(
            f"{folder} holds the report of another request: this one would drop {len(lost)} of its {len(cells)} points, the "
            f"first {words_of(lost[0])}; ask for those too, give another --out, or add --overwrite"
        )


def words_of(point: Point) -> str:
    """Return a point in words: its task, strategy, budget and seed."""
    request = point.request
    return f"{request.task}: {request.variant} at {show_usd(request.budget_usd)}, seed {request.seed}"


def _hour(document: dict[str, str], path: Path) -> Price:
    return Price(document["item"], document["unit"], Decimal(document["usd"]), str(path), None)
