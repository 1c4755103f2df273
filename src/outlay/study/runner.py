"""The runner of a study: it turns cells into points of a results folder, resumably, and reads them back for a report. ::

DIR/
├── study.json        the header of the study, and the run of each cell; written first
├── ledger.sqlite     every dollar of every run
├── runs/<run id>/    the manifest of a finished run; the steps under way of any other
├── points.json       the points so far, in the order of the grid
├── known.json        points taken from other folders, where there are any
└── receipts/         one text per run
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from outlay.engine.outputs import outputs_of, receipt_file
from outlay.engine.point import Point, read_points, usd_of, write_points
from outlay.engine.prepare import RunBuilder, precision_remarks
from outlay.engine.run_dir import RunDir
from outlay.engine.runner import Runner
from outlay.engine.sellers import ONE_LOOK, People
from outlay.engine.step_meter import seconds_at
from outlay.engine.step_runner import Job, JobResult, JobRunner
from outlay.engine.summary import absent_point
from outlay.errors import HoldError, MissingData
from outlay.export.model_dir import MODEL_DIR, bytes_of, handed_over
from outlay.models.cost_model import PROFILE_FILE, MachineProfile, load_profile
from outlay.money.amounts import Price, PriceBook
from outlay.money.ledger import Ledger
from outlay.plan.request import Request
from outlay.plan.steps import describe
from outlay.report.label_sources import lines_on_sources
from outlay.report.receipt import receipt, render_text
from outlay.report.results import ANY_SIZE, Bounds, Header, Results
from outlay.storage.files import write_text
from outlay.storage.remote import open_location
from outlay.storage.store import Store
from outlay.study.dry_run import AlreadyThere, StudyPlan, plan
from outlay.study.index import StudyCell, StudyIndex, check_folder, check_nothing_lost
from outlay.study.known import keep_points, kept_points
from outlay.study.run_names import run_names
from outlay.study.scheduler import Scheduler, StepRunnerFactory
from outlay.study.time_left import TimeLeft
from outlay.text.listener import Listener, Report
from outlay.workers.local import LocalPool
from outlay.workers.pool import InProcessPool, WorkerPool

WRITE_SECONDS = 10.0
"""Least number of seconds between two writes of the points so far; a run's manifest is written when it ends."""

WRITE_SHARE = 50
"""Least time between two writes, in multiples of the last write, which takes seconds with thousands of points."""


@dataclass(frozen=True, slots=True)
class HeldCell:
    """A held step: label of its cell, item it is charged as, seconds so far; ``is_cut_off`` where its process has ended."""

    label: str
    item: str
    seconds: float
    is_cut_off: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Progress of a study: cells by status (``ok``, ``na``, ``failed``, ``waiting``, ``left``), steps held, dollars spent."""

    header: Header
    n_by_status: dict[str, int]
    held: tuple[HeldCell, ...]
    reasons: tuple[tuple[str, str, str], ...]
    """Status, label and reason of every cell that is ``failed``, ``waiting`` or ``na``."""
    cash_usd: float
    again: str | None
    """Command that resumes the study; relative paths count from the folder where it was first given."""
    n_known_by_file: dict[str, int] = field(default_factory=dict)
    """Number of the points that were taken as known, by the file they came from; they count as ``ok`` too."""
    label_lines: tuple[str, ...] = ()
    """Who gave the labels so far that are no replayed ones, a line each."""

    @property
    def is_done(self) -> bool:
        """True where every cell has its point, a failed one included; a cell that waits for labels has none yet."""
        return not self.n_by_status.get("left") and not self.n_by_status.get("waiting")


class StudyRunner:
    """A runner of a plan in a results folder; finished runs are replayed and book nothing.

    Raises:
        UsageError: the folder holds another study.
        LedgerDamaged: the ledger lacks entries of finished runs.
    """

    def __init__(self, plan: StudyPlan, header: Header, runner: Runner, builder: RunBuilder) -> None:
        check_folder(runner.folder, header)
        self._plan, self._header, self._runner, self._builder = plan, header, runner, builder
        # A run without a study file has a receipt even where it is not available; a cell of a study is only listed.
        is_study = header.scale is not None
        self._runs = [
            None if (is_study or planned.is_rival) and planned.recipe is None else planned.run_id
            for planned in plan.points
        ]
        names = run_names([each.request for each in plan.points])
        self._labels = [f"{each.task}: {name}" for each, name in zip(plan.points, names, strict=True)]
        finished = runner.all_finished([run for run in self._runs if run is not None])
        self.points = {i: finished[run] for i, run in enumerate(self._runs) if run in finished}
        """Points by place in the plan: those of finished runs, and those without a run."""
        self.n_finished = len(self.points)
        """Number of finished runs, which are replayed."""
        self.known = {i: each.known for i, each in enumerate(plan.points) if each.known and i not in self.points}
        """Known points by place in the plan; a run that is finished here is none of them."""
        self.points |= {i: known.point for i, known in self.known.items()}
        for i, planned in enumerate(plan.points):
            if self._runs[i] is None:
                self.points[i] = absent_point(planned.request, builder, "na", planned.reason or "nothing is proposed")
        self.left = [i for i in range(len(self._runs)) if i not in self.points]
        """Places in the plan of the points that are left to run."""
        self.time_left = TimeLeft(plan, self.left)
        """Estimate of the time that they take."""
        # Kept first: from here on the folder needs the files of the known points no more.
        keep_points(runner.folder, self.known.values())
        self._write()
        for i in self.points:
            self._write_receipt(i, only_missing=True)

    def run(self, pool: WorkerPool, listener: Listener) -> None:
        """Run the points that are left, on an open pool; the points so far are written even where an error is raised."""
        due = time.monotonic() + WRITE_SECONDS

        def done(place: int, point: Point) -> None:
            nonlocal due
            self.points[place] = point
            self._write_receipt(place)
            began = time.monotonic()
            if began > due:
                self._write()
                took = time.monotonic() - began
                due = time.monotonic() + max(WRITE_SECONDS, WRITE_SHARE * took)

        self.time_left.n_workers = lambda: pool.n_workers
        scheduler = Scheduler(self._runner, self._builder, pool, listener, done, self.time_left)
        try:
            # Rivals learn from the labels that the others buy.
            for are_rivals in (False, True):
                left = {place: self._plan.points[place] for place in self.left}
                scheduler.run({at: each.request for at, each in left.items() if each.is_rival == are_rivals})
        finally:
            self._write()

    def _write(self) -> None:
        """Write the index, then the points so far."""
        folder, points = self._runner.folder, self.points
        files = {i: known.file for i, known in self.known.items()}
        cells = tuple(
            StudyCell(run, points[i].id if i in points else None, self._labels[i], files.get(i))
            for i, run in enumerate(self._runs)
        )
        StudyIndex(self._header, self._runner.store.location, self._runner.here, cells).write(folder)
        write_points(folder / "points.json", [points[i] for i in sorted(points)])

    def _write_receipt(self, place: int, *, only_missing: bool = False) -> None:
        """Write the receipt of a run that is over, also of one that failed; a known point has none here."""
        run = None if place in self.known else self._runs[place]
        if run is not None and not (only_missing and receipt_file(self._runner.folder, run).exists()):
            # A run that could not be prepared was never opened in the ledger.
            with suppress(HoldError, MissingData):
                text = render_text(receipt(self._runner.ledger, run))
                write_text(receipt_file(self._runner.folder, run), text)


def reopen_study(folder: Path, store: Store | None = None) -> Runner:
    """Return the runner of a study's folder, for reading, with its price, and its store unless another is given."""
    index = StudyIndex.read(folder)
    return Runner(folder, store or open_location(index.store), here=index.here)


def read_results(folder: Path, store: Store | None = None) -> Results:
    """Read the results of a study's folder so far, for a report.

    Raises:
        MissingData: there is no study, or no point yet.
    """
    index = StudyIndex.read(folder)
    store = store or open_location(index.store)
    points = read_points(folder / "points.json")
    if not points:
        raise MissingData(f"{folder} holds no finished point yet; run its command again to go on")
    kept, given = kept_points(folder), handed_over(folder / MODEL_DIR) or {}
    cells = {cell.point: cell for cell in index.cells}
    outputs = {}
    for point in points:
        cell = cells.get(point.id)
        if cell is not None and cell.run is not None:
            known = kept.get(cell.run) if cell.known is not None else None
            outputs[point.id] = outputs_of(folder, store, cell.run) if known is None else known.outputs
            if cell.run == given.get("run"):
                outputs[point.id] = replace(outputs[point.id], model_bytes=bytes_of(folder / MODEL_DIR))
    notes = _known_notes([cell.known for point in points if (cell := cells.get(point.id)) is not None])
    return Results(replace(index.header, notes=(*index.header.notes, *notes)), tuple(points), outputs)


def _known_notes(files: Sequence[str | None]) -> list[str]:
    """Return the notes of a report on the points that were taken from other folders, a line for each file."""
    return [
        f"{n:,} of {len(files):,} points are taken as known from {file}: they were run elsewhere, so they have no receipt and "
        "no answers to single rows here: paired tests leave them out, and an interval over seeds is made of the seeds' own."
        for file, n in Counter(file for file in files if file is not None).items()
    ]


def status_of(folder: Path) -> Status:
    """Return the progress of a study from its files alone; it may be running in another process.

    Raises:
        MissingData: the folder holds no study.
    """
    index = StudyIndex.read(folder)
    path = folder / "points.json"
    points = {point.id: point for point in read_points(path)} if path.exists() else {}
    ledger = Ledger(folder / "ledger.sqlite")
    known = set(ledger.run_ids()) if ledger.is_begun else set()
    counts: Counter[str] = Counter()
    files: Counter[str] = Counter()
    held: list[HeldCell] = []
    reasons, cash = [], 0
    for cell in index.cells:
        point = points.get(cell.point or "")
        ended = cell.run is not None and RunDir.of(folder, cell.run).manifest.exists()
        status = point.result.status if point is not None else "ok" if ended else "left"
        counts[status] += 1
        if point is not None and cell.known is not None:
            files[cell.known] += 1
        if point is not None and not point.is_ok:
            reasons.append((status, cell.label, point.result.reason or ""))
        if cell.run in known:
            cash += ledger.balance(cell.run).total_cash_micros
            held += [] if ended or status == "waiting" else _held(ledger, folder, cell.run, cell.label)
    again = index.again(folder)
    sources = tuple(lines_on_sources(points.values()))
    return Status(index.header, dict(counts), tuple(held), tuple(reasons), usd_of(cash), again, dict(files), sources)


def _held(ledger: Ledger, folder: Path, run: str, label: str) -> list[HeldCell]:
    cut_off = {hold.key for hold in ledger.expired_holds(run)}
    return [
        HeldCell(label, hold.quote.item, seconds_at(RunDir.of(folder, run).step(hold.key)), hold.key in cut_off)
        for hold in ledger.open_holds(run)
    ]


@dataclass(frozen=True)
class Workplace:
    """A results folder with the store, prices, data and limits of its runs.

    ``here``: price per hour of the machine that really computes, which cash is measured with; ``data_root``: folder of data sets;
    ``machines``: the user's own machine files; ``cash_cap_micros``: cash that all runs of the folder may take together;
    ``n_workers``: steps at once, in this process where it is one; ``people``: how answers of people are waited for.
    """

    folder: Path
    store: Store
    prices: PriceBook
    here: Price
    data_root: Path | None = None
    machines: tuple[Path, ...] = ()
    cash_cap_micros: int | None = None
    n_workers: int = 1
    bounds: Bounds = ANY_SIZE
    people: People = ONE_LOOK

    def builder(self) -> RunBuilder:
        """Return a new builder of runs at these prices, on these data and machines."""
        return RunBuilder(
            self.prices, data_root=self.data_root, machines=self.machines, tokens=self.store.root / "tokens"
        )

    def runner(self) -> Runner:
        """Return the runner of the folder, with its ledger open; nothing is written yet."""
        return Runner(self.folder, self.store, here=self.here, cash_cap_micros=self.cash_cap_micros, people=self.people)

    def factory(self) -> StepRunnerFactory:
        """Return the factory of worker processes."""
        data = None if self.data_root is None else self.data_root.resolve()
        return StepRunnerFactory(self.store.location, self.prices, data, self.machines)

    def pool(self, threads: int) -> LocalPool | None:
        """Return the worker processes for steps of so many threads; ``None`` where steps are made in this process."""
        return LocalPool(self.factory(), self.n_workers, threads, logs=self.logs) if self.n_workers > 1 else None

    @property
    def profile(self) -> MachineProfile | None:
        """Return the measured speed of this machine, ``None`` before it was measured.

        Raises:
            UsageError: the file beside the store holds none.
        """
        return load_profile(self.store.root.parent / PROFILE_FILE)

    def already_there(self) -> AlreadyThere:
        """Return the state of the folder and the store, for a plan."""
        return AlreadyThere(
            lambda run_id: RunDir.of(self.folder, run_id).manifest.exists(), self.store.holds, self.cash_cap_micros
        )

    @property
    def logs(self) -> Path:
        """Folder of the logs of worker processes."""
        return self.folder / "logs"


@dataclass(frozen=True)
class Session:
    """Checked and planned runs with their workers; nothing is bought, and no folder made, before `run`.

    ``jobs``: runner of steps in this process; ``pool``: other workers, not started yet, which take its place; ``known_remarks``:
    remarks on known points of other settings.
    """

    place: Workplace
    header: Header
    plan: StudyPlan
    builder: RunBuilder
    runner: Runner
    jobs: JobRunner
    pool: WorkerPool | None = None
    known_remarks: tuple[str, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """Remarks on the precision of the runs that can be filled, and on known points that are not of this study."""
        return [*precision_remarks(self.builder, self.plan.available), *self.known_remarks]

    def run(self, listener: Listener | None = None) -> list[Point]:
        """Run what is left of the plan; finished runs are replayed and book nothing.

        A run that was cut off is resumed. A run that fails gives a failed point, and does not stop the rest.

        Returns:
            One point per request, in the order of the plan.

        Raises:
            LedgerDamaged: the ledger lacks entries of finished runs.
        """
        listener = listener or Listener()
        study = StudyRunner(self.plan, self.header, self.runner, self.builder)
        listener.opened(self.plan.n_points, len(study.known), study.n_finished, len(study.left))
        if study.left:
            with self.pool or self._in_process(listener, study.time_left) as pool:
                study.run(pool, listener)
        return [study.points[i] for i in range(self.plan.n_points)]

    def _in_process(self, listener: Listener, time_left: TimeLeft) -> InProcessPool:
        """Return a pool that works in this process and passes progress and waits to the listener."""
        # The pool and its callbacks refer to each other: they must not keep the ledger of this session open.
        jobs, names, steps = self.jobs, dict[str, str](), dict[str, str]()
        places = {point.run_id: i for i, point in enumerate(self.plan.points)}

        def make(job: Job, report: Report) -> JobResult:
            names[job.key] = f"{describe(job.step)} ({job.run_id[:6]})"
            steps[job.key] = job.step.key
            of_run = listener.of_run(places[job.run_id])
            return jobs.make(job, report, lambda who: of_run.say(f"waiting: {who}"))

        def tell() -> None:
            progress = pool.progress()
            for key, far in progress.items():
                time_left.reported(steps[key], far)
            listener.ahead(time_left.ahead())
            listener.tick({names[key]: far for key, far in progress.items()})

        pool = InProcessPool(lambda: make, logs=self.place.logs, on_report=tell)
        return pool


def prepare_session(
    asked: Sequence[Request], header: Header, place: Workplace, *, rivals: bool = False, overwrite: bool = False
) -> Session:
    """Check and plan runs; refusals come here, before a folder is made or a label bought.

    Args:
        asked: the request of each run; equal requests are run once.
        header: the header of their index and report; without a scale, since there is no study file.
        place: the results folder, with store, prices and data.
        rivals: run the rivals of these runs after them.
        overwrite: replace the report of other runs in the folder; their ledger and files stay.

    Raises:
        OutlayError: an error in a request, its data or models; a folder of another study, or one whose report would lose scores;
            more workers than the machine has room for.
    """
    builder, runner = place.builder(), place.runner()
    for request in asked:
        builder.check(request)
    planned = plan(
        builder,
        _distinct(builder, asked),
        profile=place.profile,
        here=place.here,
        refuse=True,
        rivals=rivals,
        there=place.already_there(),
    )
    runner.refuse_other_precision(builder, asked)
    check_folder(place.folder, header)
    if not overwrite:
        check_nothing_lost(place.folder, {point.run_id for point in planned.points})
    threads = max((request.threads for request in asked), default=1)
    return Session(
        place, header, planned, builder, runner, JobRunner(place.store, builder.prepare), place.pool(threads)
    )


def _distinct(builder: RunBuilder, asked: Sequence[Request]) -> list[Request]:
    found: dict[str, Request] = {}
    for request in asked:
        found.setdefault(builder.resolve(request).run_id, request)
    return list(found.values())
