"""The scheduler of many runs: each distinct compute step is computed once, every run is charged in full.

Only the process of the scheduler writes the ledger. A step that several runs need is held and paid by the first of them; the
others wait for it, find it in the store, and book its charge at no cash. Whatever the number of workers and the order in which
they finish, results are the same: a step's artifact depends on its key alone.

Labels are bought meanwhile by threads of this process (`outlay.study.buyers`). A run whose labels are ordered and not
delivered ends with a point that is `waiting`; the others go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from outlay.engine.buying import Purchase, PurchaseResult
from outlay.engine.point import Point
from outlay.engine.prepare import RunBuilder
from outlay.engine.run import HeldStep, ReadyStep, RunExecution
from outlay.engine.runner import Runner
from outlay.engine.step_runner import Job, JobResult, JobRunner
from outlay.engine.summary import absent_point
from outlay.errors import OutlayError
from outlay.money.amounts import PriceBook
from outlay.plan.request import Request
from outlay.plan.steps import Buy, Recipe, Step, describe
from outlay.storage.remote import open_location
from outlay.study.buyers import Buyers
from outlay.study.time_left import TimeLeft, is_urgent
from outlay.text.listener import Advance, Listener, Report
from outlay.workers.pool import N_TRIES, TaskResult, WorkerFn, WorkerPool

MOST_OPEN = 128
"""Maximum number of open runs: enough to find work for every worker, few enough for the limit on open files."""

LOOK_AHEAD = 16
"""Number of runs that are opened before the first step is submitted, so that the longest comes first."""

TICK_SECONDS = 0.5

PROMPT_SECONDS = 0.05
"""Seconds to wait for a seller that answers at once before the workers are polled again."""


@dataclass(frozen=True)
class StepRunnerFactory:
    """A factory of the function that makes compute steps in a worker, with the worker's own view of store, data and models.

    ``store``: a folder or a URL; both it and ``data_root`` must mean the same on the worker's machine.
    """

    store: str
    prices: PriceBook
    data_root: Path | None = None
    machines: tuple[Path, ...] = ()

    def __call__(self) -> WorkerFn:
        """Return the function that makes one job."""
        store = open_location(self.store)
        builder = RunBuilder(
            self.prices, data_root=self.data_root, machines=self.machines, tokens=store.root / "tokens"
        )
        maker = JobRunner(store, builder.prepare)

        def work(job: Job, report: Report) -> JobResult:
            return maker.make(job, report)

        return work


@dataclass
class _Open:
    """An open run.

    ``needs``: steps that are ready, or that another run has under way; ``n_begun``: its own steps at workers; ``failed``: reason
    why it ends; ``ranks``: hours of the longest path from each step to the end of its recipe.
    """

    place: int
    execution: RunExecution
    needs: dict[str, ReadyStep] = field(default_factory=dict)
    n_begun: int = 0
    failed: str | None = None
    recipe: Recipe | None = None
    ranks: dict[str, Fraction] = field(default_factory=dict)


class Scheduler:
    """A scheduler of runs on a worker pool, in any order; ``done`` is called with the place and the point of each."""

    def __init__(
        self,
        runner: Runner,
        builder: RunBuilder,
        pool: WorkerPool,
        listener: Listener,
        done: Callable[[int, Point], None],
        time_left: TimeLeft | None = None,
    ) -> None:
        self._runner = runner
        self._builder = builder
        self._pool = pool
        self._listener = listener
        self._done = done
        self._time_left = time_left
        self._open: dict[int, _Open] = {}
        self._making: dict[str, tuple[_Open, HeldStep]] = {}
        self._buyers = Buyers(runner.results.buy)
        self._has_just_ordered = False
        self._pending: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._n_lost: Counter[str] = Counter()
        self._n_done = 0

    def run(self, asked: Mapping[int, Request]) -> None:
        """Run each request to its point; ``done`` is called with its place and its point as soon as it is over.

        A run that fails gives a failed point and does not stop the rest; it is tried again the next time.
        """
        unopened = list(asked.items())[::-1]
        try:
            while unopened or self._open:
                while unopened and self._wants_more():
                    self._begin(*unopened.pop())
                    if len(self._open) >= LOOK_AHEAD or not unopened:
                        self._hand_out()
                self._hand_out()
                if self._making:
                    self._tell()
                    self._wait()
        finally:
            for each in self._open.values():
                self._let_go(each)

    def _wait(self) -> None:
        """Take what has ended, purchases first: most sellers answer at once, which makes more steps ready."""
        is_computing = len(self._making) > len(self._buyers)
        patience = (PROMPT_SECONDS if self._has_just_ordered else 0.0) if is_computing else TICK_SECONDS
        self._has_just_ordered = False
        bought = self._buyers.wait(patience) if self._buyers else []
        for ended in bought:
            self._take(ended)
        if is_computing and not bought:
            for ended in self._pool.wait(TICK_SECONDS):
                self._take(ended)

    # --- runs --------------------------------------------------------------------------------------------------------

    def _wants_more(self) -> bool:
        """Return True where another run should be opened: `LOOK_AHEAD` at first, up to `MOST_OPEN` while a worker is free."""
        return len(self._open) < (MOST_OPEN if self._pool.n_free else LOOK_AHEAD)

    def _begin(self, place: int, request: Request) -> None:
        try:
            prepared = self._builder.prepare(request)
            execution = RunExecution(self._runner.results, prepared, self._listener.of_run(place)).open()
        except OutlayError as error:
            self._close(place, absent_point(request, self._builder, "failed", str(error)))
            return
        self._open[place] = _Open(place, execution)
        self._advance(self._open[place])

    def _advance(self, each: _Open) -> None:
        """Advance a run as far as labels and the store allow."""
        execution, point = each.execution, None
        if each.failed is None:
            try:
                point = execution.advance()
                for need in execution.needs():
                    if need.key in self._pending:
                        execution.put_off(need, self._pending[need.key])
                each.needs = {need.key: need for need in execution.needs()}
                each.failed = next((self._failed[key] for key in each.needs if key in self._failed), None)
            except OutlayError as error:
                each.failed = str(error)
        if each.failed is not None:
            each.needs = {}
            if each.n_begun:
                return  # its steps under way are settled first
            point = execution.point("failed", each.failed, [])
        elif point is not None:
            self._runner.finish(execution, point)
        elif execution.waits_for is not None and not each.needs and not each.n_begun:
            point = execution.point("waiting", execution.waits_for, [])
        elif (lacks := execution.unbought().lacks) is not None:
            # Not finished: another command may buy these labels.
            point = execution.point("na", lacks, [])
        if point is None:
            if each.recipe is not execution.proposal and execution.proposal is not None:
                each.recipe, each.ranks = execution.proposal, _ranks(execution, execution.proposal)
            return
        del self._open[each.place]
        execution.close()
        self._close(each.place, point)

    def _close(self, place: int, point: Point) -> None:
        if self._time_left is not None:
            self._time_left.over(place)
        self._n_done += 1
        self._done(place, point)
        self._listener.point(point, self._n_done)

    def _let_go(self, each: _Open) -> None:
        """Release the holds of a stopped run and book the time they took as lost; orders of labels stay open."""
        for holder, begun in list(self._making.values()):
            if holder is each and not isinstance(begun.job, Purchase):
                each.execution.release(begun, "the study was stopped")
        each.execution.close()

    # --- steps -------------------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Begin purchases, and submit the steps with the longest remaining path to free workers."""
        self._buy()
        if not self._pool.n_free:
            return
        ready: dict[str, tuple[Fraction, _Open, ReadyStep]] = {}
        for each in self._open.values():
            for key, need in each.needs.items():
                if key not in self._making and not isinstance(need.step, Buy):
                    # The first run of the grid pays; the rank is the highest of all runs that need the step.
                    rank = each.ranks.get(need.step.key, Fraction(0))
                    known = ready.get(key)
                    ready[key] = (rank, each, need) if known is None else (max(rank, known[0]), *known[1:])
        # Scoring is short and completes a point: it goes before the longest path. Nothing waits for a teacher's scores.
        urgent = sorted(ready.values(), key=lambda one: (not is_urgent(one[2].step), -one[0], one[1].place))
        for _, each, need in urgent[: self._pool.n_free]:
            self._start(each, need)

    def _buy(self) -> None:
        """Begin purchases that are ready, run by run: the first run of the grid pays."""
        for each in list(self._open.values()):
            for key, need in list(each.needs.items()):
                if not isinstance(need.step, Buy) or key in self._making or each.failed is not None:
                    continue
                if not self._buyers.n_free or need.step.series in self._buyers.series:
                    continue
                if (begun := self._hold(each, need)) is not None:
                    assert isinstance(begun.job, Purchase)
                    self._buyers.submit(key, begun.job)
                    self._has_just_ordered = True

    def _start(self, each: _Open, need: ReadyStep) -> None:
        execution = each.execution
        # Share of the remaining cash: the step's share of the remaining hours, divided among the free workers.
        share = execution.share_of(need.step) / self._pool.n_free
        if (begun := self._hold(each, need, share)) is not None:
            if self._time_left is not None:
                self._time_left.began(need.step.key, is_resumed=self._runner.store.has_checkpoints(need.key))
            self._pool.submit(need.key, begun.job)
            self._listener.submitted(describe(need.step), execution.run_id)

    def _hold(self, each: _Open, need: ReadyStep, cash_share: Fraction = Fraction(1)) -> HeldStep | None:
        """Open the hold of a step; an error ends its run."""
        try:
            begun = each.execution.begin(need, cash_share=cash_share)
        except OutlayError as error:
            each.failed = str(error)
            self._advance(each)
            return None
        each.n_begun += 1
        self._making[need.key] = (each, begun)
        return begun

    def _take(self, ended: TaskResult) -> None:
        """Settle a step that has ended, or release its hold; then advance every run that waited for it."""
        each, begun = self._making.pop(ended.name)
        what, problem = describe(begun.need.step), None
        is_bought = isinstance(begun.job, Purchase)
        each.n_begun -= 1
        if self._time_left is not None and not is_bought:
            is_made = isinstance(ended.value, JobResult) and not ended.value.reused
            self._time_left.ended(begun.need.step.key, is_done=ended.value is not None, is_made=is_made)
        if ended.lost is not None:
            problem = f"its worker was lost: {ended.lost}"
            each.execution.release(begun, problem, seconds=ended.seconds)
            self._n_lost[ended.name] += 1
            if self._n_lost[ended.name] >= N_TRIES:
                self._failed[ended.name] = (
                    f"{what}: the worker was lost {N_TRIES} times, the last time {ended.lost}; "
                    "look at its log, give it more memory, or run again"
                )
        elif ended.error is not None:
            problem = str(ended.error)
            # A purchase has no work to redo: delivered labels are in the log.
            each.execution.release(begun, type(ended.error).__name__, seconds=0.0 if is_bought else ended.seconds)
            self._failed[ended.name] = problem
        else:
            problem = self._settle(each, begun, ended)
        if problem is not None or not is_bought:
            self._listener.ended(what, ended.seconds, problem)
        for waiting in [one for one in self._open.values() if one is each or ended.name in one.needs]:
            self._advance(waiting)

    def _settle(self, each: _Open, begun: HeldStep, ended: TaskResult) -> str | None:
        """Book the output of a step; return the problem where bought labels cannot be kept, else None."""
        if isinstance(ended.value, PurchaseResult) and ended.value.waits_for is not None:
            self._pending[ended.name] = ended.value.waits_for
        try:
            each.execution.settle(begun, ended.value)
        except OutlayError as error:
            if not isinstance(begun.job, Purchase):
                raise
            self._failed[ended.name] = str(error)
        return self._failed.get(ended.name)

    def _tell(self) -> None:
        """Tell the listener how far the steps under way are, and what is left."""
        if self._time_left is not None:
            for key, far in self._pool.progress().items():
                if key in self._making:
                    self._time_left.reported(self._making[key][1].need.step.key, far)
            self._listener.ahead(self._time_left.ahead())
        self._listener.tick(self._progress())

    def _progress(self) -> dict[str, Advance]:
        reported = self._pool.progress() | self._buyers.progress()
        return {
            f"{describe(begun.need.step)} ({each.execution.run_id[:6]})": reported.get(key, (0, 0, ""))
            for key, (each, begun) in self._making.items()
        }


def _ranks(execution: RunExecution, recipe: Recipe) -> dict[str, Fraction]:
    """Return the hours from each step to the end of the recipe on the longest path (upward rank, Topcuoglu et al. 2002)."""
    ranks: dict[str, Fraction] = {}
    behind: dict[str, Fraction] = {}

    def hours(step: Step) -> Fraction:
        return Fraction(0) if isinstance(step, Buy) else execution.hours(step)

    for step in reversed(recipe.steps()):
        ranks[step.key] = behind.get(step.key, Fraction(0)) + hours(step)
        for given in step.inputs:
            behind[given.key] = max(behind.get(given.key, Fraction(0)), ranks[step.key])
    return ranks
