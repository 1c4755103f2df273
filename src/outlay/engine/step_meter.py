"""The gauge of one step: turns tokens into FLOPs for the meter, and keeps a heartbeat for whoever must recover."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from outlay.errors import StoreError
from outlay.money.amounts import Price, Quote
from outlay.money.meter import Limits, Meter, MeterState, Reserve
from outlay.plan.quotes import Quoter, Work
from outlay.plan.steps import Distil, Step, Train
from outlay.storage.files import write_text

HEARTBEAT_SECONDS = 0.25
"""How often the seconds spent are written down: what a kill can hide from the ledger at most."""

SAVING_SECONDS = 2.0
"""Wall seconds kept back for writing the model."""


class StepMeter:
    """What `outlay.train` reports to while one step is made under one hold; beats as long as it is entered.

    ``here``: price of the machine that really computes; ``payer``: whose seconds these are; ``kept_seconds``: what earlier
    attempts of this payer spent and a checkpoint keeps; ``heartbeat``: the step's file.
    """

    def __init__(
        self, quoter: Quoter, step: Step, hold: Quote, *, here: Price, payer: str, kept_seconds: float, heartbeat: Path
    ) -> None:
        self._quoter = quoter
        self._ref = quoter.work(step).ref
        self._payer = payer
        self._kept_before = kept_seconds
        self._seconds_of_others: dict[str, float] = {}
        self._heartbeat = heartbeat
        self._began = time.monotonic()
        self._stop = threading.Event()
        n_evaluated = quoter.dev_tokens(step) if isinstance(step, Train | Distil) else 0
        self._meter = Meter(
            quoter.machine,
            Price(hold.item, hold.unit, hold.unit_usd, "the hold", None),
            Limits(hold.charge_micros, hold.cash_micros),
            reserve=Reserve(flops_infer=self._infer(n_evaluated), wall_seconds=SAVING_SECONDS),
            cash_price=here,
            clock=time.monotonic,
        )

    def may_train(self, n_tokens: int) -> bool:
        """Whether a batch still fits into the hold, on both clocks, with an evaluation and saving after it."""
        return self._meter.may_start(self._train(n_tokens), train=True)

    def trained(self, n_tokens: int) -> None:
        """Count a training batch."""
        self._meter.add(self._train(n_tokens), train=True)

    def inferred(self, n_tokens: int) -> None:
        """Count an inference batch."""
        self._meter.add(self._infer(n_tokens), train=False)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: what was counted, and whose seconds it took."""
        return {"meter": self._meter.state().to_json(), "seconds_by_payer": self.finish()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; only this payer's own seconds count towards its cash."""
        seconds = {str(payer): float(value) for payer, value in state["seconds_by_payer"].items()}
        self._kept_before = seconds.pop(self._payer, 0.0)
        self._seconds_of_others = seconds
        counted = MeterState.from_json({**state["meter"], "wall_seconds": self._kept_before})
        self._meter.restore(counted)

    def finish(self) -> dict[str, float]:
        """Seconds by payer up to now."""
        mine = self._kept_before + time.monotonic() - self._began
        return {**self._seconds_of_others, self._payer: round(mine, 3)}

    def working_seconds(self) -> float | None:
        """Wall seconds inside the batches that the charge counts, the rest being loading, tokenising and saving.

        ``None`` where another payer did a part, since a checkpoint does not keep whose they were.
        """
        return None if self._seconds_of_others else round(self._meter.state().work_seconds, 3)

    def _train(self, n_tokens: int) -> int:
        return sum(self._quoter.flops(Work(self._ref, n_tokens, 0)))

    def _infer(self, n_tokens: int) -> int:
        return sum(self._quoter.flops(Work(self._ref, 0, n_tokens)))

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is not None:
            self._write_heartbeat()

    def _beat(self) -> None:
        """From the first moment on, so that loading a model counts too."""
        self._write_heartbeat()
        while not self._stop.wait(HEARTBEAT_SECONDS):
            self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        write_heartbeat(self._heartbeat, self._kept_before, time.monotonic() - self._began)


def write_heartbeat(path: Path, kept_before: float, attempt_seconds: float) -> None:
    """Note how long an attempt has run, on top of what was kept before it; not synced, a lost beat costs its interval only."""
    beat = json.dumps({"kept_before": kept_before, "attempt_seconds": attempt_seconds})
    # A full disk must not hide behind its heartbeat: the step itself says what is wrong.
    with suppress(OSError, StoreError):
        write_text(path, beat)


def lost_seconds(heartbeat: Path, kept_now: float) -> float:
    """Seconds a dead attempt spent that nothing keeps: its last heartbeat minus what the artifact or checkpoint holds."""
    try:
        beat = json.loads(heartbeat.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return 0.0
    return max(0.0, float(beat["kept_before"]) + float(beat["attempt_seconds"]) - kept_now)


def seconds_at(heartbeat: Path) -> float:
    """Seconds that the attempt under way has taken up to its last beat; 0 where none is known."""
    try:
        return float(json.loads(heartbeat.read_text(encoding="utf-8"))["attempt_seconds"])
    except (OSError, json.JSONDecodeError):
        return 0.0
