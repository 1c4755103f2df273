"""The meter of one step: never past the hold, seconds to those who spent them, a heartbeat that outlives the process."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.engine import step_meter
from outlay.engine.step_meter import StepMeter, lost_seconds, write_heartbeat
from outlay.errors import DiskFull
from outlay.money.amounts import Price, Quote
from outlay.plan.quotes import Quoter, Work
from outlay.plan.steps import Score, Teach, Train
from outlay.plan.strategies import strategy
from tests.knowledge import N_PARAMETERS, PEAK, ROWS, STUDENT, TRAIN_SHARE, known

HERE = Price("here", "hour", Decimal("36"), "made up", date(2024, 1, 1))
"""One cent a second."""


@dataclass
class Clock:
    """A clock that only goes on when told to."""

    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(step_meter, "time", made)
    return made


def step_of(kind: type, budget: int = 40_000_000) -> tuple[Quoter, Train | Teach | Score]:
    knows = known(budget, n_initial=50)
    recipe = strategy("distill" if kind is Teach else "annotate").ask(knows, [])
    assert recipe is not None
    step = next(step for step in recipe.steps() if isinstance(step, kind))  # type: ignore[union-attr]
    return Quoter(knows), step  # type: ignore[return-value]


def made(
    quoter: Quoter, step: Train | Teach | Score, hold: Quote, tmp_path: Path, *, payer: str = "me", kept: float = 0.0
) -> StepMeter:
    return StepMeter(
        quoter, step, hold, here=HERE, payer=payer, kept_seconds=kept, heartbeat=tmp_path / "steps" / "beat.json"
    )


def with_cash(quote: Quote, cash_micros: int) -> Quote:
    return replace(quote, cash_micros=cash_micros)


@settings(deadline=None, max_examples=80)
@given(
    share=st.fractions(0, 1, max_denominator=97),
    batches=st.lists(st.integers(1, 3_000), max_size=60),
    batches_per_epoch=st.integers(1, 20),
)
def test_a_training_that_asks_first_never_passes_its_hold(
    share: object, batches: list[int], batches_per_epoch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    quoter, step = step_of(Train)
    full = quoter.quote(step)
    quantity = full.quantity * share  # type: ignore[operator]
    hold = with_cash(Quote.of(known(1).machine_price, quantity), 10**12)
    meter = made(quoter, step, hold, tmp_path_factory.getbasetemp())
    dev_tokens = sum(ROWS["dev"])
    n_trained = n_inferred = 0
    for number, n_tokens in enumerate(batches):
        if not meter.may_train(n_tokens):
            break
        meter.trained(n_tokens)
        n_trained += n_tokens
        last = number + 1 == len(batches)
        if last or not meter.may_train(batches[number + 1]) or (number + 1) % batches_per_epoch == 0:
            # The loop evaluates when an epoch or the money ends.
            meter.inferred(dev_tokens)
            n_inferred += dev_tokens
    spent = Quote.of(known(1).machine_price, quoter.hours(Work(STUDENT.ref, n_trained, n_inferred)))
    assert spent.charge_micros <= max(hold.charge_micros, 0) or n_trained == 0
    assert meter.state()["meter"]["flops_train"] == 6 * N_PARAMETERS[STUDENT.ref] * n_trained


def test_the_whole_quote_lets_the_whole_training_pass(tmp_path: Path) -> None:
    quoter, step = step_of(Train)
    assert isinstance(step, Train)
    meter = made(quoter, step, with_cash(quoter.quote(step), 10**12), tmp_path)
    rows, n = ROWS["train"][: step.n_labels], 32
    for _ in range(step.settings.epochs):
        for start in range(0, len(rows), n):
            assert meter.may_train(sum(rows[start : start + n]))
            meter.trained(sum(rows[start : start + n]))
        meter.inferred(sum(ROWS["dev"]))
    assert not meter.may_train(max(rows) * n)


def test_a_free_training_is_held_at_no_charge_and_runs(tmp_path: Path) -> None:
    knows = known(10_000_000, student_training="free")
    recipe = strategy("annotate").ask(knows, [])
    step = next(step for step in recipe.steps() if isinstance(step, Train))  # type: ignore[union-attr]
    hold = with_cash(Quoter(knows).quote(step), 10**12)
    assert hold.charge_micros == 0
    assert made(Quoter(knows), step, hold, tmp_path).may_train(10**9)


def test_cash_stops_a_step_by_the_wall_clock_with_saving_kept_back(clock: Clock, tmp_path: Path) -> None:
    quoter, step = step_of(Train)
    meter = made(quoter, step, with_cash(quoter.quote(step), 1_000_000), tmp_path)  # a hundred seconds of here
    n = 0
    while meter.may_train(10):
        clock.now += 1.0  # each batch takes a second
        meter.trained(10)
        n += 1
    reserve = sum(ROWS["dev"]) * 2 * TRAIN_SHARE / (10 * 6 * quoter.machine.utilisation_infer)
    # Two seconds are for saving, `reserve` for an evaluation at the pace seen so far.
    assert n == int(100 - 2 - reserve) == 57
    assert meter.by_payer() == {"me": float(n)}


def test_what_was_spent_before_counts_towards_the_limit(clock: Clock, tmp_path: Path) -> None:
    quoter, step = step_of(Train)
    meter = made(quoter, step, with_cash(quoter.quote(step), 100_000), tmp_path)
    meter.restore({"meter": _meter(0, 0, 9.0), "seconds_by_payer": {"me": 9.0}})
    assert not meter.may_train(1)  # nine of ten seconds are gone, and saving takes two


def _meter(flops_train: int, flops_infer: int, wall_seconds: float) -> dict[str, float]:
    return {
        "flops_train": flops_train,
        "flops_infer": flops_infer,
        "wall_seconds": wall_seconds,
        "work_seconds": wall_seconds,
    }


def test_a_checkpoint_goes_on_where_it_was(clock: Clock, tmp_path: Path) -> None:
    quoter, step = step_of(Train)
    hold = with_cash(quoter.quote(step), 10**12)
    first = made(quoter, step, hold, tmp_path)
    first.trained(100)
    clock.now += 3.25
    state = json.loads(json.dumps(first.state()))
    assert state["seconds_by_payer"] == {"me": 3.25}
    clock.now += 50  # dead for a while, and nobody pays for that
    second = made(quoter, step, hold, tmp_path, kept=3.25)
    second.restore(state)
    clock.now += 2.0
    assert second.by_payer() == {"me": 5.25}
    counts = second.state()["meter"]
    assert (counts["flops_train"], counts["wall_seconds"]) == (6 * N_PARAMETERS[STUDENT.ref] * 100, 5.25)


def test_the_checkpoint_of_another_payer_is_charged_but_its_seconds_stay_theirs(clock: Clock, tmp_path: Path) -> None:
    quoter, step = step_of(Train)
    hold = with_cash(quoter.quote(step), 300_000)  # thirty seconds of here, fewer than the others spent
    state = {"meter": _meter(20_000_000, 678, 40.0), "seconds_by_payer": {"other": 33.0, "third": 7.0}}
    meter = made(quoter, step, hold, tmp_path)
    meter.restore(state)
    assert meter.may_train(1)
    clock.now += 1.5
    assert meter.by_payer() == {"other": 33.0, "third": 7.0, "me": 1.5}
    counts = meter.state()["meter"]
    assert (counts["flops_train"], counts["flops_infer"], counts["wall_seconds"]) == (20_000_000, 678, 1.5)


def test_the_heartbeat_beats_from_the_first_moment_and_says_the_last_word(tmp_path: Path) -> None:
    quoter, step = step_of(Score)
    beat = tmp_path / "steps" / "beat.json"
    meter = made(quoter, step, quoter.quote(step), tmp_path, kept=1.5)

    def lives_and_dies() -> None:
        with meter:
            deadline = time.monotonic() + 10
            while not beat.exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            assert json.loads(beat.read_text())["kept_before"] == 1.5
            time.sleep(0.02)
            raise DiskFull("no room")

    with pytest.raises(DiskFull):
        lives_and_dies()
    last = json.loads(beat.read_text())
    assert 0.02 <= last["attempt_seconds"] <= meter.by_payer()["me"] - 1.5 + 0.001
    assert not [path for path in beat.parent.iterdir() if path != beat]


def test_lost_is_what_no_checkpoint_keeps(tmp_path: Path) -> None:
    beat = tmp_path / "a" / "beat.json"
    assert lost_seconds(beat, 0.0) == 0.0  # never began
    write_heartbeat(beat, kept_before=10.0, attempt_seconds=4.5)
    assert lost_seconds(beat, kept_now=10.0) == 4.5  # nothing of this attempt is kept
    assert lost_seconds(beat, kept_now=13.0) == 1.5  # a checkpoint keeps three seconds of it
    assert lost_seconds(beat, kept_now=15.0) == 0.0  # the artifact came after the last beat
    assert lost_seconds(beat, kept_now=0.0) == 14.5  # the checkpoint itself is gone
    beat.write_text('{"kept_before": 1')
    assert lost_seconds(beat, 0.0) == 0.0


def test_a_heart_that_cannot_be_written_does_not_stop_the_step_nor_hide_its_error(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("a file where the folder should be")
    quoter, step = step_of(Score)
    with made(quoter, step, quoter.quote(step), tmp_path) as meter:
        meter.inferred(5)
    with pytest.raises(DiskFull, match="no room"), made(quoter, step, quoter.quote(step), tmp_path):
        raise DiskFull("no room")


def test_inference_is_counted_at_a_third_of_training(tmp_path: Path) -> None:
    quoter, step = step_of(Teach)
    meter = made(quoter, step, quoter.quote(step), tmp_path)
    meter.inferred(1_000)
    meter.trained(1_000)
    counts = meter.state()["meter"]
    assert counts["flops_train"] == 3 * counts["flops_infer"] == 6 * 1_000 * N_PARAMETERS["org/teacher"]
    assert quoter.machine.peak_flops_per_second == PEAK
