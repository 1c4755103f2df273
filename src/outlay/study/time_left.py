"""The estimate of the wall seconds that runs still take, from the work of their steps and the seconds of those done so far.

Each step has a *size*: its forecast seconds where the speed of this machine was measured, else the hours it is charged at most.
Its *pace* is the seconds of one unit of size. Paces are learnt from finished steps and from the progress of those under way, for
each kind of step and method; with little seen of a kind its pace is near that of all, and that near the forecast if there is one.
Steps that several runs share count once; those that the store has, or that no run waits for any more, do not count. Purchases are
left out: how long sellers take is not known.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass

from outlay.plan.steps import Buy, Score, Step, learner_of
from outlay.study.dry_run import StudyPlan
from outlay.text.listener import Advance, Ahead

LEAST_SHARE = 0.05
"""Share of the work that must be done before there is an estimate without a forecast."""

LEAST_SECONDS = 10.0
"""Seconds that steps must have taken before there is an estimate without a forecast."""

EVERY_SECONDS = 1.0
"""Seconds between two estimates, but for those after a step that began or ended."""

DEAR_SECONDS = 0.01
"""CPU seconds of an estimate from which on it is made at those intervals alone, as with thousands of steps."""

TRUST = 0.1
"""Weight of a pace that is assumed, beside the measured one: that of so much of all work."""


@dataclass(slots=True)
class _UnderWay:
    """A step under way: when it began, and its first and last report of progress as share (0-1) and time."""

    began: float
    is_resumed: bool
    first: tuple[float, float] | None = None
    last: tuple[float, float] | None = None


@dataclass(slots=True)
class _Seen:
    """Size that was worked off, and the seconds it took."""

    size: float = 0.0
    seconds: float = 0.0

    def add(self, size: float, seconds: float) -> None:
        """Add the work of a step, or of a part of it."""
        self.size += size
        self.seconds += seconds

    def pace(self, assumed: float, weight: float) -> float:
        """Return the seconds of one unit of size, as if those of ``weight`` units had been ``assumed``."""
        size = weight + self.size
        return (weight * assumed + self.seconds) / size if size else assumed


class TimeLeft:
    """The estimate of some points of a plan, told of every step as it begins, goes on and ends.

    Args:
        planned: the plan.
        places: places in the plan of the points to run.
        n_workers: tells how many steps can run at once.
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        planned: StudyPlan,
        places: Collection[int],
        *,
        n_workers: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.n_workers = n_workers
        self._clock = clock
        self._steps = {step.key: step for step in planned.steps if not isinstance(step, Buy)}
        points = {place: planned.points[place] for place in places}
        self._keys_of = {
            place: [step.key for step in point.recipe.steps() if step.key in self._steps]
            for place, point in points.items()
            if point.recipe is not None
        }
        self._unknown = {place for place, point in points.items() if point.recipe is not None and point.recipe.is_pilot}
        own = {key for place, keys in self._keys_of.items() if not points[place].is_rival for key in keys}
        self._is_last = {key: key not in own for key in self._steps}
        """True for the steps of rivals alone, which run after the others."""
        self._n_waiting = Counter(key for keys in self._keys_of.values() for key in keys)
        self._done = set(planned.in_store)
        self._has_forecast = planned.distinct.seconds_here is not None
        self._size = {
            key: work.charged_hours if work.seconds_here is None or not self._has_forecast else work.seconds_here
            for key, work in planned.work_of.items()
            if key in self._steps
        }
        self._total = sum(self._size[key] for key in self._left())
        self._total_of: dict[Hashable, float] = {}
        for key in self._left():
            self._total_of[self._kind(key)] = self._total_of.get(self._kind(key), 0.0) + self._size[key]
        self._last: tuple[float, Ahead] | None = None
        self._is_stale, self._took = False, 0.0
        self._under_way: dict[str, _UnderWay] = {}
        self._seen: dict[Hashable, _Seen] = {}

    # --- what is told ------------------------------------------------------------------------------------------------

    def began(self, key: str, *, is_resumed: bool = False) -> None:
        """Note that a step began; ``is_resumed``: at a checkpoint of an earlier attempt."""
        self._is_stale = True
        self._done.discard(key)
        self._under_way[key] = _UnderWay(self._clock(), is_resumed)

    def reported(self, key: str, far: Advance) -> None:
        """Note the progress of a step under way; one that repeats the last changes nothing."""
        step, (n_done, n_total, _) = self._under_way.get(key), far
        if step is None or not n_total:
            return
        share = min(1.0, n_done / n_total)
        if step.last is None or share > step.last[0]:
            step.last = share, self._clock()
            step.first = step.first or step.last

    def ended(self, key: str, *, is_done: bool = True, is_made: bool = True) -> None:
        """Note that a step ended.

        Args:
            key: the key of the step.
            is_done: False where it has no artifact, since it failed or its worker was lost.
            is_made: False where another process made it.
        """
        self._is_stale = True
        step = self._under_way.pop(key, None)
        if not is_done or step is None:
            return
        self._done.add(key)
        # What a checkpoint kept took no seconds now, so a resumed step is measured from its first report on.
        share, since = (step.first or (1.0, 0.0)) if step.is_resumed else (0.0, step.began)
        if is_made and self._size.get(key):
            self._seen.setdefault(self._kind(key), _Seen()).add(self._size[key] * (1 - share), self._clock() - since)

    def over(self, place: int) -> None:
        """Note that a point is over: its steps are waited for by other points alone."""
        self._is_stale = True
        self._unknown.discard(place)
        self._n_waiting.subtract(self._keys_of.pop(place, ()))

    # --- what is estimated -------------------------------------------------------------------------------------------

    def ahead(self) -> Ahead:
        """Return the share of the work that is done, and the seconds left."""
        now = self._clock()
        is_stale = self._is_stale and self._took < DEAR_SECONDS
        if self._last is None or is_stale or now - self._last[0] >= EVERY_SECONDS:
            began = time.thread_time()
            left = self._left()
            size = sum(self._size[key] * (1 - self._share(key)) for key in left)
            share = max(0.0, 1 - size / self._total) if self._total else 0.0
            self._last, self._is_stale = (now, (share, self._seconds(left, share))), False
            self._took = time.thread_time() - began
        then, (share, seconds) = self._last
        return share, None if seconds is None else max(0.0, seconds - (now - then))

    def _seconds(self, left: list[str], share: float) -> float | None:
        """Return the seconds left; ``None`` where too little is known, and where only purchases are left."""
        seen, every = self._seen_so_far(), _Seen()
        for each in seen.values():
            every.add(each.size, each.seconds)
        if self._unknown or not any(self._size[key] for key in left):
            return None
        if not self._has_forecast and (share < LEAST_SHARE or every.seconds < LEAST_SECONDS):
            return None
        common = every.pace(1.0, TRUST * self._total if self._has_forecast else 0.0)
        paces = {kind: seen.get(kind, _Seen()).pace(common, TRUST * size) for kind, size in self._total_of.items()}
        seconds = {key: self._rest(key, paces.get(self._kind(key), common)) for key in left}
        parts = [[key for key in left if self._is_last[key] == is_last] for is_last in (False, True)]
        return sum(self._makespan(part, seconds) for part in parts)

    def _rest(self, key: str, pace: float) -> float:
        """Return the seconds that a step still takes on a worker."""
        seconds, step = pace * self._size[key], self._under_way.get(key)
        if step is None:
            return seconds
        share, since = step.last or (0.0, step.began)
        return max(0.0, seconds * (1 - share) - (self._clock() - since))

    def _seen_so_far(self) -> dict[Hashable, _Seen]:
        """Return what was seen of each kind, the steps under way between their first and last report included."""
        seen = {kind: _Seen(each.size, each.seconds) for kind, each in self._seen.items()}
        for key, step in self._under_way.items():
            if step.first is not None and step.last is not None and self._size.get(key):
                # Between two reports: what came before the first is mostly loading, and says little of the rest.
                (share, since), (now_share, now) = step.first, step.last
                seen.setdefault(self._kind(key), _Seen()).add(self._size[key] * (now_share - share), now - since)
        return seen

    def _kind(self, key: str) -> Hashable:
        """Return the kind of a step with its method, whose steps take alike long for their size."""
        step = self._steps[key]
        return step.kind, learner_of(step).settings.method

    def _left(self) -> list[str]:
        """Return the keys of the steps that a point waits for and that are not done, inputs first."""
        return [key for key in self._steps if self._n_waiting[key] > 0 and key not in self._done]

    def _share(self, key: str) -> float:
        step = self._under_way.get(key)
        return 0.0 if step is None or step.last is None else step.last[0]

    def _makespan(self, keys: list[str], seconds: Mapping[str, float]) -> float:
        """Return the seconds from now to the end of some steps, on all workers at once."""
        n_workers = max(1, self.n_workers())
        if n_workers == 1:
            return sum(seconds[key] for key in keys)
        return makespan([self._steps[key] for key in keys], seconds, n_workers, under_way=self._under_way)


def is_urgent(step: Step) -> bool:
    """Return whether a step gives a point its score: it is short, and goes before the longest path."""
    return isinstance(step, Score) and not step.of_teacher


def makespan(
    steps: Iterable[Step], seconds: Mapping[str, float], n_workers: int, *, under_way: Collection[str] = ()
) -> float:
    """Return the seconds that steps take on several workers, handed out as `outlay.study.scheduler.Scheduler` does.

    A free worker takes the scoring of a point first, else the step with the longest path to the end (list scheduling, Graham
    1969, by the upward rank of Topcuoglu et al. 2002).

    Args:
        steps: the steps, inputs first; those that are not among them are done.
        seconds: the seconds of each by its key, of one under way those that are left.
        n_workers: number of workers.
        under_way: keys of steps that have a worker already.
    """
    left = {step.key: step for step in steps}
    behind: dict[str, list[str]] = {key: [] for key in left}
    n_missing = dict.fromkeys(left, 0)
    for key, step in left.items():
        for given in {each.key for each in step.inputs} & left.keys():
            behind[given].append(key)
            n_missing[key] += 1
    ranks: dict[str, float] = {}
    for key in reversed(left):
        ranks[key] = seconds[key] + max((ranks[each] for each in behind[key]), default=0.0)
    # Paths that differ by rounding alone are alike, and taken in the order of the steps.
    order = {
        key: (key not in under_way, not is_urgent(step), -float(f"{ranks[key]:.6g}"), place)
        for place, (key, step) in enumerate(left.items())
    }
    ready = [(order[key], key) for key in left if not n_missing[key]]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < n_workers:
            _, key = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[key], key))
        now, key = heapq.heappop(running)
        for each in behind[key]:
            n_missing[each] -= 1
            if not n_missing[each]:
                heapq.heappush(ready, (order[each], each))
    return now
