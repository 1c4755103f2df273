"""Bring runs about in a results folder: the one way that the command line and Python calls share.

`bring_about` does all of it. A caller that wants to show the plan, or progress, takes the steps itself: `prepare_session` checks
and plans, and neither buys nor writes anything; `Session.run` spends.
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
    """A results folder, and what its runs are made with.

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
        """Return a new builder of runs over these prices, data and machines."""
        return RunBuilder(
            self.prices, data_root=self.data_root, machines=self.machines, tokens=self.store.root / "tokens"
        )

    def runner(self) -> Runner:
        """Return the folder with its ledger, open; nothing is written yet."""
        return Runner(self.folder, self.store, here=self.here, cash_cap_micros=self.cash_cap_micros)

    def factory(self) -> StepRunnerFactory:
        """Return what sets a worker process up."""
        data = None if self.data_root is None else self.data_root.resolve()
        return StepRunnerFactory(self.store.location, self.prices, data, self.machines)

    @property
    def logs(self) -> Path:
        """Where workers write what they print."""
        return self.folder / "logs"


class Listener(Observer, Protocol):
    """Told how the runs of a session go: of the whole as an `Observer`, of each run by the `Watcher` it gives."""

    def watch(self, place: int) -> Watcher:
        """Return who is told how the run at a place of the plan goes."""
        ...


class SilentListener:
    """A listener that says nothing."""

    def began(self, what: str, run: str) -> None:
        """Do nothing."""

    def ended(self, what: str, seconds: float, problem: str | None) -> None:
        """Do nothing."""

    def point(self, place: int, point: Point, n_done: int) -> None:
        """Do nothing."""

    def tick(self, under_way: dict[str, tuple[int, int, str]]) -> None:
        """Do nothing."""

    def watch(self, place: int) -> Watcher:  # noqa: ARG002
        """Return a watcher that says nothing."""
        return Silent()


@dataclass(frozen=True)
class Session:
    """Runs that were checked and planned, and what makes them. Nothing is bought, and no folder made, before `run`."""

    place: Workplace
    header: Header
    plan: StudyPlan
    builder: RunBuilder
    runner: Runner
    jobs: JobRunner | None
    """What makes steps in this process; ``None`` where worker processes do."""
    processes: LocalPool | None
    """Worker processes that are not started yet."""

    @property
    def notes(self) -> list[str]:
        """What was decided about the form of the files that were read, a sentence each."""
        return self.builder.notes

    def run(self, listener: Listener | None = None) -> list[Point]:
        """Bring the runs about, from wherever an earlier attempt was cut off; what is done is replayed and books nothing.

        A run that fails gives a point that says so, and does not stop the rest.

        Returns:
            One point per request, in the order of the plan.

        Raises:
            LedgerDamaged: the ledger does not hold all that finished runs booked.
        """
        told: Listener = listener or SilentListener()
        study = StudyRunner(self.plan, self.header, self.runner, self.builder)
        if study.left:
            with self._pool(told) as pool:
                study.run(pool, told, told.watch)
        return [study.points[i] for i in range(len(self.plan.points))]

    def results(self) -> Results:
        """Read the folder back, for a report."""
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
        """Return a pool of this process, which tells the listener of progress and waits while it works."""
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
    """Check and plan runs: whatever can be refused is refused here, before a folder is made or a label bought.

    Args:
        asked: what is asked of each run; one that is asked for twice is made once.
        header: what the runs are called in their index and report; without a scale, since no study file asks for them.
        place: where, and with what.
        overwrite: replace the report of other runs in the folder; their ledger and files stay.

    Raises:
        OutlayError: whatever is wrong with a request, its data or models; a folder that is another's, or whose report would lose
            scores; more workers than the machine has room for.
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
        One point per distinct request, in the order asked; failed and unavailable ones say why.
    """
    return prepare_session(asked, header, place, overwrite=overwrite).run(listener)


def _distinct(builder: RunBuilder, asked: Sequence[Options]) -> list[Options]:
    found: dict[str, Options] = {}
    for options in asked:
        found.setdefault(builder.request(options).run_id, options)
    return list(found.values())
