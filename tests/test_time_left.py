"""The time left: true where steps take as long as their work says, silent where nothing is known, and of what is left alone."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.cli.consoles import PlainConsole
from outlay.cli.progress import Screen, live_bars
from outlay.cli.study_screen import StudyScreen
from outlay.models.cost_model import TERMS, MachineProfile
from outlay.plan.steps import Score, Step, graph
from outlay.study import time_left
from outlay.study.dry_run import StudyPlan, plan
from outlay.study.progress import Progress, ProgressReports
from outlay.study.time_left import TimeLeft, is_urgent, makespan
from outlay.text.durations import duration
from outlay.text.listener import Ahead, Listener
from outlay.workers.pool import InProcessPool
from tests.runs import World, runner
from tests.studies import Idle, conducted, worker_factory

PROFILE = MachineProfile("here", "2026-11-21", "a device", "2.13.0", 1, 10**11, {"fp32": dict.fromkeys(TERMS, 1e-4)})


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world.fresh()


@pytest.fixture(scope="module")
def plans(world: World) -> dict[bool, StudyPlan]:
    """Two seeds at two budgets with their rivals, which share teachers and targets; without and with a forecast."""
    asked = [
        world.request(strategy=name, budget_micros=budget, seed=seed)
        for seed in (0, 1)
        for budget in (16_000_000, 19_000_000)
        for name in ("annotate", "distill", "self_distill")
    ]
    return {has: plan(world.workbench, asked, rivals=True, profile=PROFILE if has else None) for has in (False, True)}


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def sizes(planned: StudyPlan) -> dict[str, float]:
    """What the steps are said to take: their forecast, or their hours at most."""
    return {
        key: work.charged_hours if work.seconds_here is None else work.seconds_here
        for key, work in planned.work_of.items()
    }


def parts(planned: StudyPlan) -> list[list[Step]]:
    """The steps of the runs, then those of their rivals alone; purchases take no time."""
    own = {s.key for point in planned.points if not point.is_rival and point.recipe for s in point.recipe.steps()}
    compute = [step for step in planned.steps if step.kind != "buy"]
    return [[s for s in compute if s.key in own], [s for s in compute if s.key not in own]]


def schedule(planned: StudyPlan, seconds: Mapping[str, float], n_workers: int) -> list[tuple[float, float, str]]:
    """Begin, end and key of every step, where scorings come first and then the longest way to the end."""
    found: list[tuple[float, float, str]] = []
    start = 0.0
    for part in parts(planned):
        left = {step.key: step for step in part}
        ranks: dict[str, float] = {}
        for step in reversed(part):
            behind = [ranks[each.key] for each in part if step.key in {given.key for given in each.inputs}]
            ranks[step.key] = seconds[step.key] + max(behind, default=0.0)
        free, ends = [start] * n_workers, dict[str, float]()
        while left:
            now = min(free)
            ready = [
                step
                for step in left.values()
                if all(ends.get(s.key, now + 1) <= now for s in step.inputs if s.key in {p.key for p in part})
            ]
            if not ready:
                free[free.index(now)] = min(end for end in ends.values() if end > now)
                continue
            step = min(ready, key=lambda each: (not is_urgent(each), -float(f"{ranks[each.key]:.6g}")))
            del left[step.key]
            ends[step.key] = free[free.index(now)] = now + seconds[step.key]
            found.append((now, ends[step.key], step.key))
        start = max(ends.values())
    return found


def worked(
    planned: StudyPlan, seconds: Mapping[str, float], *, n_workers: int = 1, n_reports: int = 5
) -> Iterator[tuple[float, Ahead]]:
    """The true seconds left and the estimate, after every moment at which something happens, and between two of them."""
    clock = Clock()
    begin, places = clock.now, range(planned.n_points)
    estimate = TimeLeft(planned, places, n_workers=lambda: n_workers, clock=clock)
    spans = schedule(planned, seconds, n_workers)
    total = max(end for _, end, _ in spans)
    events: list[tuple[float, int, str, int]] = []
    for start, end, key in spans:
        events += [(end, 0, key, 0), (start, 2, key, 0)]
        events += [(start + i / n_reports * (end - start), 1, key, i) for i in range(1, n_reports)]
    waiting = {i: {s.key for s in point.recipe.steps()} for i, point in enumerate(planned.points) if point.recipe}
    done = {step.key for step in planned.steps if step.kind == "buy"}
    for at, what, key, i in sorted(events):
        if begin + at > clock.now:
            yield total - (clock.now - begin), estimate.ahead()
            clock.now = (clock.now + begin + at) / 2
            yield total - (clock.now - begin), estimate.ahead()
            clock.now = begin + at
        if what == 0:
            estimate.ended(key)
            done.add(key)
            for place in [place for place, keys in waiting.items() if keys <= done]:
                del waiting[place]
                estimate.over(place)
        elif what == 1:
            estimate.reported(key, (i, n_reports, "epoch 1"))
        else:
            estimate.began(key)
    assert not waiting
    yield 0.0, estimate.ahead()


def test_it_is_true_where_steps_take_what_their_work_says(plans: dict[bool, StudyPlan]) -> None:
    planned = plans[False]

    @settings(max_examples=15)
    @given(st.floats(0.01, 100), st.integers(1, 9))
    def holds(pace: float, n_reports: int) -> None:
        seconds = {key: 1e6 * pace * size for key, size in sizes(planned).items()}
        total = sum(seconds.values())
        told = list(worked(planned, seconds, n_reports=n_reports))
        shown = [(true, left) for true, (_, left) in told if left is not None]
        assert [left for _, left in shown] == pytest.approx([true for true, _ in shown], abs=1e-6 * total)
        shares = [share for _, (share, _) in told]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1)
        assert shown or total < 4 * time_left.LEAST_SECONDS

    holds()


@pytest.mark.parametrize("n_workers", [1, 2, 3])
@pytest.mark.parametrize("has_forecast", [False, True])
def test_it_is_true_on_several_workers(plans: dict[bool, StudyPlan], n_workers: int, has_forecast: bool) -> None:
    planned = plans[has_forecast]
    seconds = {key: size * (1 if has_forecast else 5e5) for key, size in sizes(planned).items()}
    told = list(worked(planned, seconds, n_workers=n_workers))
    shown = [(true, left) for true, (_, left) in told if left is not None]
    assert [left for _, left in shown] == pytest.approx([true for true, _ in shown], abs=1e-6 * sum(seconds.values()))
    # A forecast is there from the start; without one some work is needed first.
    assert (told[0][1][1] is not None) == has_forecast
    assert len(shown) > len(told) / 2


def test_a_wrong_forecast_gives_way_to_what_is_seen(plans: dict[bool, StudyPlan]) -> None:
    planned = plans[True]
    seconds = {key: 3 * size for key, size in sizes(planned).items()}
    told = [(true, left) for true, (_, left) in worked(planned, seconds) if left is not None]
    assert told[0][1] == pytest.approx(told[0][0] / 3)
    off = [abs(left / true - 1) for true, left in told if true > 0.02 * told[0][0]]
    middle = len(off) // 2
    assert max(off[middle:]) < 0.2 < off[0]


def test_a_kind_of_steps_has_a_pace_of_its_own(plans: dict[bool, StudyPlan]) -> None:
    """Where scorings take ten times what their work says beside the others, one of them tells of the rest."""
    planned = plans[False]
    slow = {step.key for step in planned.steps if isinstance(step, Score)}
    seconds = {key: 1e6 * size * (10 if key in slow else 1) for key, size in sizes(planned).items()}
    told = [(true, left) for true, (share, left) in worked(planned, seconds) if left is not None and 0.5 < share < 0.9]
    assert max(abs(left / true - 1) for true, left in told) < 0.2


def test_steps_that_runs_share_count_once(plans: dict[bool, StudyPlan]) -> None:
    planned = plans[True]
    _, left = TimeLeft(planned, range(planned.n_points)).ahead()
    assert left == pytest.approx(planned.distinct.seconds_here)
    assert left < 0.9 * (planned.separate.seconds_here or 0.0)


def test_what_is_done_does_not_count(plans: dict[bool, StudyPlan]) -> None:
    planned = plans[True]
    kept = frozenset(step.key for step in planned.steps if step.kind == "teach")
    some = replace(planned, in_store=kept)
    assert TimeLeft(some, range(planned.n_points)).ahead()[1] == pytest.approx(some.left.seconds_here)
    every = replace(planned, in_store=frozenset(planned.work_of))
    assert TimeLeft(every, range(planned.n_points)).ahead() == (0.0, None)
    assert TimeLeft(planned, []).ahead() == (0.0, None)


def test_the_steps_of_a_run_that_is_over_are_dropped(plans: dict[bool, StudyPlan]) -> None:
    """A run may fail, or wait for labels: what it alone needed is not made."""
    planned = plans[True]
    clock = Clock()
    estimate = TimeLeft(planned, [0, 1], clock=clock)
    first, second = (planned.points[i].recipe for i in (0, 1))
    assert first is not None
    assert second is not None
    estimate.over(0)
    alone = sum(sizes(planned)[step.key] for step in second.steps())
    assert estimate.ahead()[1] == pytest.approx(alone)
    estimate.over(1)
    assert estimate.ahead()[1] is None


def test_a_step_that_goes_on_from_a_checkpoint_is_no_miracle(plans: dict[bool, StudyPlan]) -> None:
    """60 % are there at once, the rest takes its time: no pace is learnt from what an earlier attempt did."""
    planned, seconds = plans[True], sizes(plans[True])
    (begin, end, key), *_ = schedule(planned, seconds, 1)
    clock = Clock()
    estimate = TimeLeft(planned, range(planned.n_points), clock=clock)
    estimate.began(key, is_resumed=True)
    for share in (60, 70, 80, 90):
        estimate.reported(key, (share, 100, ""))
        clock.now += 0.1 * (end - begin)
    estimate.ended(key)
    assert estimate.ahead()[1] == pytest.approx(sum(seconds.values()) - seconds[key])


def test_a_step_that_failed_or_was_made_elsewhere_tells_nothing_of_the_pace(plans: dict[bool, StudyPlan]) -> None:
    planned = plans[True]
    clock = Clock()
    estimate = TimeLeft(planned, range(planned.n_points), clock=clock)
    total = sum(sizes(planned).values())
    one, other = [step.key for step in planned.steps if step.kind == "train" and sizes(planned)[step.key]][:2]
    estimate.began(one)
    clock.now += 1e4
    estimate.ended(one, is_done=False)
    assert estimate.ahead()[1] == pytest.approx(total)
    estimate.began(other)
    clock.now += 1e4
    estimate.ended(other, is_made=False)
    assert estimate.ahead()[1] == pytest.approx(total - sizes(planned)[other])


def test_little_work_says_nothing(plans: dict[bool, StudyPlan]) -> None:
    planned = plans[False]
    clock = Clock()
    estimate = TimeLeft(planned, range(planned.n_points), clock=clock)
    key = max(sizes(planned), key=lambda key: sizes(planned)[key])
    estimate.began(key)
    for n_done in (1, 2, 3):
        clock.now += 60
        estimate.reported(key, (n_done, 10_000, ""))
    share, left = estimate.ahead()
    assert share < time_left.LEAST_SHARE
    assert left is None


def test_a_pilot_leaves_it_open(plans: dict[bool, StudyPlan]) -> None:
    planned = plans[True]
    recipe = planned.points[0].recipe
    assert recipe is not None
    pilot = replace(planned.points[0], recipe=replace(recipe, final=recipe.model))
    estimate = TimeLeft(replace(planned, points=(pilot, *planned.points[1:])), range(planned.n_points))
    assert estimate.ahead()[1] is None
    estimate.over(0)
    assert estimate.ahead()[1] is not None


def test_a_chain_takes_its_length_on_any_number_of_workers(plans: dict[bool, StudyPlan]) -> None:
    planned = plans[True]
    distills = next(point for point in planned.points if point.request.strategy == "distill")
    assert distills.recipe is not None
    # A teacher's scores are beside the chain.
    steps = [step for step in graph([distills.recipe.final]) if step.kind != "buy"]
    assert makespan(steps, sizes(planned), 8) == pytest.approx(sum(sizes(planned)[step.key] for step in steps))
    assert makespan([], {}, 2) == 0


# --- while runs work -------------------------------------------------------------------------------------------------


class Watcher(Listener):
    def __init__(self) -> None:
        self.told: list[Ahead] = []

    def ahead(self, far: Ahead) -> None:
        self.told.append(far)


def test_a_run_tells_of_it_and_a_replay_does_not(world: World, tmp_path: Path) -> None:
    asked = [world.request()]
    profile = replace(PROFILE, constants={"fp32": dict.fromkeys(TERMS, 1e-3)})

    def conduct(folder: str, watcher: Watcher, pool: type[InProcessPool]) -> None:
        one = runner(tmp_path / folder, tmp_path / "store")
        with pool(worker_factory(one)) as workers:
            conducted(world.workbench, asked, one, workers, watcher, profile=profile)

    first, again, elsewhere = Watcher(), Watcher(), Watcher()
    conduct("out", first, InProcessPool)
    shares = [share for share, _ in first.told]
    assert shares == sorted(shares)
    assert shares[-1] > 0.5
    assert all(left is not None for _, left in first.told)
    conduct("out", again, Idle)
    conduct("other", elsewhere, Idle)
    assert [left for _, left in (*again.told, *elsewhere.told) if left is not None] == []


# --- shown -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "some seconds"),
        (9.9, "some seconds"),
        (12, "about 10 s"),
        (57, "about 55 s"),
        (58, "about 1 min"),
        (260, "about 4 min"),
        (5300, "about 88 min"),
        (5400, "about 1.5 h"),
        (7200, "about 2 h"),
        (90_000, "about 25 h"),
        (260_000, "about 3 days"),
    ],
)
def test_it_is_said_no_finer_than_it_is_known(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def show(screen: Screen | StudyScreen, far: Sequence[Ahead]) -> None:
    """Tell a screen of some estimates, each of which comes when a line is due."""
    for each in far:
        screen._last_line = float("-inf")
        screen.ahead(each)
        screen.tick({"fine-tune the student on 60 labels": (3, 10, "epoch 1")})


def test_plain_lines_tell_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Screen(("one",)) as screen:
        show(screen, [(0.0, None), (0.43, 250.0)])
    with StudyScreen(tmp_path) as study:
        study.opened(3, 0, 0, 3)
        show(study, [(0.43, 250.0)])
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    step = "fine-tune the student on 60 labels: 3 of 10, epoch 1"
    far = "43 % of the work done, about 4 min left"
    assert lines == [step, step, far, f"3 points in {tmp_path}: 3 to do", step, far]


@pytest.mark.parametrize("width", [60, 100])
def test_a_bar_tells_of_it_on_one_line(width: int) -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=True, color_system=None, width=width)
    with live_bars(console, ("detail",), quiet=False) as bars:
        now = bars.get_time()
        bars.add_task("all steps", total=1.0, completed=0.43, detail="43 %", end=now + 250)
        bars.add_task("  train (contrastive) the teacher on 50 labels (7ef697)", total=10, detail="epoch 1")
        bars.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue().replace("\r", "\n")).splitlines()
    line = [line.rstrip() for line in shown if "all steps" in line][-1]
    assert line.endswith("about 4 min left")
    assert len(line) <= width
    assert any("train (" in line and "epoch 1" in line for line in shown)


def test_python_is_told_of_it() -> None:
    told: list[Progress] = []
    reports = ProgressReports(told.append)
    reports.ahead((0.43, 250.0))
    reports.tick({"fine-tune": (3, 10, "epoch 1")})
    assert told[-1].seconds_left == 250
    assert str(told[-1]) == "fine-tune: 3 of 10, epoch 1, about 4 min left in all"
    reports.ahead((0.5, None))
    reports.tick({"fine-tune": (4, 10, "epoch 1")})
    assert str(told[-1]) == "fine-tune: 4 of 10, epoch 1"
