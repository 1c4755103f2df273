"""Conducts a study: from its cells to points in a results folder, resumable at any moment, and read back for a report. ::

DIR/
├── study.json        what was studied, and which run fills which cell; written first
├── ledger.sqlite     every dollar of every run
├── runs/<run id>/    what a run that is over left behind; what it has under way
├── points.json       the points so far, in the order of the grid
└── receipts/         one text per run
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from outlay.account import absent_point
from outlay.aftermath import aftermath_of, receipt_file
from outlay.crew import Crew
from outlay.errors import HoldError, MissingData, UsageError
from outlay.ledger import Ledger
from outlay.money import Price, format_usd
from outlay.planning import Plan
from outlay.point import Point, read_points, usd_of, write_points
from outlay.prepare import Options, Workbench
from outlay.remote import open_location
from outlay.report.receipt import receipt, render_text
from outlay.report.results import Header, Results
from outlay.run import Runner
from outlay.runfolder import RunFolder, write_json
from outlay.scheduler import Observer, Scheduler
from outlay.store import Store

INDEX_FILE = "study.json"
FORMAT = 1
WRITE_SECONDS = 10.0
"""Between two times that the points so far are written; each run's own manifest is written as it ends."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One cell of the grid in the index: its run, ``None`` where there is none; and the request in short."""

    run: str | None
    point: str | None
    """The id of its point, once there is one."""
    label: str


@dataclass(frozen=True)
class Index:
    """What `study.json` says."""

    header: Header
    store: str
    here: Price
    cells: tuple[Entry, ...]

    def write(self, folder: Path) -> None:
        """Into a results folder, whole or not at all.

        Raises:
            UsageError: the folder holds another study.
        """
        path = folder / INDEX_FILE
        if path.exists():
            other = Index.read(folder)
            if (other.header.name, other.header.scale) != (self.header.name, self.header.scale):
                raise UsageError(
                    f"{folder} holds study {other.header.name} at scale {other.header.scale}; give another --out"
                )
        here = {"item": self.here.item, "unit": self.here.unit, "usd": str(self.here.usd)}
        write_json(
            path,
            {
                "format": FORMAT,
                "header": asdict(self.header),
                "store": self.store,
                "here": here,
                "cells": [asdict(cell) for cell in self.cells],
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Index:
        """From a results folder.

        Raises:
            MissingData: it holds no study.
        """
        path = folder / INDEX_FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MissingData(
                f"{folder} holds no study; make one with `outlay study run STUDY --out {folder}`"
            ) from None
        header = Header(**{**document["header"], "notes": tuple(document["header"]["notes"])})
        here = Price(
            document["here"]["item"], document["here"]["unit"], Decimal(document["here"]["usd"]), str(path), None
        )
        return cls(header, document["store"], here, tuple(Entry(**cell) for cell in document["cells"]))


@dataclass(frozen=True, slots=True)
class Status:
    """How far a study is: cells by status (``ok``, ``na``, ``failed``, ``left``), steps that are held, what was spent."""

    header: Header
    n_by_status: dict[str, int]
    under_way: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    """Label and reason."""
    cash_usd: float

    @property
    def is_done(self) -> bool:
        """Whether every cell has its point, failed ones aside."""
        return not self.n_by_status.get("left")


def conduct(
    plan: Plan, header: Header, runner: Runner, workbench: Workbench, crew: Crew, observer: Observer
) -> list[Point]:
    """Bring every planned point about; those that are there already are replayed and book nothing.

    Returns:
        The points in the order of the plan.

    Raises:
        UsageError: the folder holds another study.
        LedgerDamaged: it does not hold all that finished runs booked.
    """
    folder = _Folder(plan, header, runner)
    runs = folder.runs
    finished = runner.all_finished([run for run in runs if run is not None])
    points = {i: finished[run] for i, run in enumerate(runs) if run in finished}
    for i, planned in enumerate(plan.points):
        if planned.recipe is None:
            points[i] = absent_point(planned.options, workbench, "na", planned.reason or "nothing is proposed")
    left = [i for i in range(len(runs)) if i not in points]
    written = time.monotonic()

    def done(place: int, point: Point) -> None:
        nonlocal written
        points[left[place]] = point
        folder.write_receipt(left[place])
        if time.monotonic() - written > WRITE_SECONDS:
            folder.write(points)
            written = time.monotonic()

    folder.write(points)
    try:
        Scheduler(runner, workbench, crew, observer, done).run([plan.points[i].options for i in left])
    finally:
        folder.write(points)
    return [points[i] for i in range(len(runs))]


class _Folder:
    """The files of a study as it goes on."""

    def __init__(self, plan: Plan, header: Header, runner: Runner) -> None:
        self._runner = runner
        self.runs = [None if planned.recipe is None else planned.run_id for planned in plan.points]
        self._labels = [label_of(planned.options) for planned in plan.points]
        self._header = header

    def write(self, points: Mapping[int, Point]) -> None:
        """The index, then the points so far."""
        cells = tuple(
            Entry(run, points[i].id if i in points else None, self._labels[i]) for i, run in enumerate(self.runs)
        )
        Index(self._header, self._runner.store.location, self._runner.here, cells).write(self._runner.folder)
        write_points(self._runner.folder / "points.json", [points[i] for i in sorted(points)])

    def write_receipt(self, place: int) -> None:
        """Of a run that is over, whether it got its point or failed."""
        run = self.runs[place]
        if run is not None:
            # A run that could not even be prepared was never opened.
            with suppress(HoldError, MissingData):
                text = render_text(receipt(self._runner.ledger, run))
                path = receipt_file(self._runner.folder, run)
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")


def label_of(options: Options) -> str:
    """What a reader calls a cell."""
    fixed = "" if options.n_initial is None else f", N = {options.n_initial:,}"
    pool = "" if options.pool_rows is None else f", {options.pool_rows:,} pool rows"
    return (
        f"{Path(options.task).stem}: {options.strategy}{fixed}{pool}, {format_usd(options.budget_micros)}, "
        f"{options.teacher} to {options.student}, seed {options.seed}"
    )


def reopen_study(folder: Path, store: Store | None = None) -> Runner:
    """The runner of a study's folder, for reading: its own store and price, unless another store is handed in."""
    index = Index.read(folder)
    return Runner(folder, store or open_location(index.store), here=index.here)


def read_results(folder: Path, store: Store | None = None) -> Results:
    """A study's folder, as far as it is: what a report draws from.

    Raises:
        MissingData: there is no study, or no point yet.
    """
    index, runner = Index.read(folder), reopen_study(folder, store)
    points = read_points(folder / "points.json")
    if not points:
        raise MissingData(f"{folder} holds no finished point yet; run its command again to go on")
    runs = {cell.point: cell.run for cell in index.cells if cell.point is not None and cell.run is not None}
    left = {point.id: aftermath_of(runner, runs[point.id]) for point in points if point.id in runs}
    return Results(index.header, tuple(points), left)


def status_of(folder: Path) -> Status:
    """How far a study is, from its files alone; it may be under way in another process.

    Raises:
        MissingData: the folder holds no study.
    """
    index = Index.read(folder)
    path = folder / "points.json"
    points = {point.id: point for point in read_points(path)} if path.exists() else {}
    ledger = Ledger(folder / "ledger.sqlite")
    known = set(ledger.run_ids()) if ledger.path.exists() else set()
    counts: Counter[str] = Counter()
    under_way, failures, cash = [], [], 0
    for cell in index.cells:
        point = points.get(cell.point or "")
        ended = cell.run is not None and RunFolder.of(folder, cell.run).manifest.exists()
        status = point.result.status if point is not None else "ok" if ended else "left"
        counts[status] += 1
        if status == "failed" and point is not None:
            failures.append((cell.label, point.result.reason or ""))
        if cell.run in known:
            cash += ledger.balance(cell.run).total_cash_micros
            if not ended:
                under_way += [f"{hold.quote.item}: {cell.label}" for hold in ledger.open_holds(cell.run)]
    return Status(index.header, dict(counts), tuple(under_way), tuple(failures), usd_of(cash))
