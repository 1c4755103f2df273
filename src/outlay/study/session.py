"""Sessions of runs in a results folder, shared by the command line and Python calls.

`bring_about` checks, plans and runs. A caller that shows the plan or progress uses the two parts: `prepare_session` checks and
plans, and neither buys nor writes anything; `Session.run` spends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from outlay.engine.job_runner import Job, JobResult, JobRunner
from outlay.engine.listeners import Silent, Watcher
from outlay.engine.point import Point
from outlay.engine.prepare import Options, RunBuilder
from outlay.engine.runner import Runner
from outlay.money.amounts import Price, PriceBook
from outlay.plan.steps import describe
from outlay.report.results import Header, Results
from outlay.storage.store import Store
from outlay.study.dry_run import StudyPlan, plan
from outlay.study.index import check_folder, check_nothing_lost
from outlay.study.runner import StudyRunner, read_results
from outlay.study.scheduler import Observer, StepRunnerFactory
from outlay.text.listener import Report
from outlay.workers.local import LocalPool
from outlay.workers.pool import InProcessPool, WorkerPool


@dataclass(frozen=True)
class Workplace:
    """A results folder with the store, prices, data and limits of its runs.

    ``here``: price per hour of the machine that really computes, which cash is measured with; ``data_root``: folder of data sets;
    ``machines``: the user's own machine files; ``cash_cap_micros``: cash that all runs of the folder may take together;
    ``n_workers``: steps at once, in this process where it is one.
    """

    folder: Path
    store: Store
    prices: PriceBook
    here: Price
    data_root: Path | None = None
    machines: tuple[Path, ...] = ()
    cash_cap_micros: int | None = None
    n_workers: int = 1

    def builder(self) -> RunBuilder:
        """Return a new builder of runs at these prices, on these data and machines."""
        return RunBuilder(
            self.prices, data_root=self.data_root, machines=self.machines, tokens=self.store.root / "tokens"
        )

    def runner(self) -> Runner:
        """Return the runner of the folder, with its ledger open; nothing is written yet."""
        return Runner(self.folder, self.store, here=self.here, cash_cap_micros=self.cash_cap_micros)

    def factory(self) -> StepRunnerFactory:
        """Return the factory of worker processes."""
        data = None if self.data_root is None else self.data_root.resolve()
        return StepRunnerFactory(self.store.location, self.prices, data, self.machines)

    @property
    def logs(self) -> Path:
        """Folder of the logs of worker processes."""
        return self.folder / "logs"


class Listener(Observer, Protocol):
    """A listener of a session: as an `Observer` of all runs, and with a `Watcher` for each run."""

    def watch(self, place: int) -> Watcher:
        """Return the watcher of the run at a place of the plan."""
        ...


class SilentListener:
    """A listener that ignores every report."""

    def began(self, what: str, run: str) -> None:
        """Do nothing."""

    def ended(self, what: str, seconds: float, problem: str | None) -> None:
        """Do nothing."""

    def point(self, place: int, point: Point, n_done: int) -> None:
        """Do nothing."""

    def tick(self, under_way: dict[str, tuple[int, int, str]]) -> None:
        """Do nothing."""

    def watch(self, place: int) -> Watcher:  # noqa: ARG002
        """Return a watcher that ignores every report."""
        return Silent()


@dataclass(frozen=True)
class Session:
    """Checked and planned runs with their workers; nothing is bought, and no folder made, before `run`."""

    place: Workplace
    header: Header
    plan: StudyPlan
    builder: RunBuilder
    runner: Runner
    jobs: JobRunner | None
    """Runner of steps in this process; ``None`` where worker processes make them."""
    processes: LocalPool | None
    """Worker processes that are not started yet."""

    @property
    def notes(self) -> list[str]:
        """Notes on the format assumed for data files, a sentence each."""
        return self.builder.notes

    def run(self, listener: Listener | None = None) -> list[Point]:
        """Run what is left of the plan; finished runs are replayed and book nothing.

        A run that was cut off is resumed. A run that fails gives a failed point, and does not stop the rest.

        Returns:
            One point per request, in the order of the plan.

        Raises:
            LedgerDamaged: the ledger lacks entries of finished runs.
        """
        told: Listener = listener or SilentListener()
        study = StudyRunner(self.plan, self.header, self.runner, self.builder)
        if study.left:
            with self._pool(told) as pool:
                study.run(pool, told, told.watch)
        return [study.points[i] for i in range(len(self.plan.points))]

    def results(self) -> Results:
        """Read the results of the folder, for a report."""
        return read_results(self.place.folder, self.place.store)

    @contextmanager
    def _pool(self, listener: Listener) -> Iterator[WorkerPool]:
        if self.processes is not None:
            with self.processes as pool:
                yield pool
            return
        with self._in_process(listener) as pool:
            yield pool

    def _in_process(self, listener: Listener) -> InProcessPool:
        """Return a pool that works in this process and passes progress and waits to the listener."""
        assert self.jobs is not None
        jobs, names = self.jobs, dict[str, str]()
        places = {point.run_id: i for i, point in enumerate(self.plan.points)}

        def make(job: Job, report: Report) -> JobResult:
            names[job.key] = f"{describe(job.step)} ({job.run_id[:6]})"
            watcher = listener.watch(places[job.run_id])
            return jobs.make(job, report, lambda who: watcher.say(f"waiting: {who}"))

        def tell() -> None:
            listener.tick({names[key]: far for key, far in pool.progress().items()})

        pool = InProcessPool(lambda: make, logs=self.place.logs, on_report=tell)
        return pool


def prepare_session(asked: Sequence[Options], header: Header, place: Workplace, *, overwrite: bool = False) -> Session:
    """Check and plan runs; refusals come here, before a folder is made or a label bought.

    Args:
        asked: the options of each run; equal requests are run once.
        header: the header of their index and report; without a scale, since there is no study file.
        place: the results folder, with store, prices and data.
        overwrite: replace the report of other runs in the folder; their ledger and files stay.

    Raises:
        OutlayError: an error in a request, its data or models; a folder of another study, or one whose report would lose scores;
            more workers than the machine has room for.
    """
    builder = place.builder()
    for options in asked:
        builder.check(options)
    planned = plan(builder, _distinct(builder, asked), refuse=True)
    runner = place.runner()
    runner.refuse_other_precision(builder, asked)
    check_folder(place.folder, header)
    if not overwrite:
        check_nothing_lost(place.folder, {point.run_id for point in planned.points})
    threads = max((options.threads for options in asked), default=1)
    if place.n_workers > 1:
        processes = LocalPool(place.factory(), place.n_workers, threads, logs=place.logs)
        return Session(place, header, planned, builder, runner, None, processes)
    return Session(place, header, planned, builder, runner, JobRunner(place.store, builder.prepare), None)


def bring_about(
    asked: Sequence[Options],
    header: Header,
    place: Workplace,
    *,
    listener: Listener | None = None,
    overwrite: bool = False,
) -> list[Point]:
    """Check, plan and run a list of requests in a results folder; see `prepare_session` for arguments and errors.

    Returns:
        One point per distinct request, in the order given; failed and unavailable ones with a reason.
    """
    return prepare_session(asked, header, place, overwrite=overwrite).run(listener)


def _distinct(builder: RunBuilder, asked: Sequence[Options]) -> list[Options]:
    found: dict[str, Options] = {}
    for options in asked:
        found.setdefault(builder.request(options).run_id, options)
    return list(found.values())
