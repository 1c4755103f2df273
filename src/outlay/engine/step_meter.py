"""The meter of one step: counts tokens as FLOPs, and writes a heartbeat for recovery after a kill."""

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
from outlay.money.meter import Meter, MeterState, Reserve
from outlay.plan.quotes import Quoter, Work
from outlay.plan.steps import Distil, Step, Train
from outlay.storage.files import write_text

HEARTBEAT_SECONDS = 0.25
"""Interval of the heartbeat: the most seconds that a kill can hide from the ledger."""

SAVING_SECONDS = 2.0
"""Wall seconds reserved for writing the model."""


class StepMeter:
    """The meter that `outlay.train` reports one step to, under one hold; it writes heartbeats inside its ``with`` block.

    ``here``: price of the machine that really computes; ``payer``: payer of the seconds; ``kept_seconds``: seconds of earlier
    attempts of this payer that a checkpoint keeps; ``heartbeat``: path of the step's file.
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
            hold,
            reserve=Reserve(flops_infer=self._infer(n_evaluated), wall_seconds=SAVING_SECONDS),
            cash_price=here,
            clock=time.monotonic,
        )

    def may_train(self, n_tokens: int) -> bool:
        """Return whether a batch, with an evaluation and saving after it, fits into the hold on both clocks."""
        return self._meter.may_start(self._train(n_tokens), train=True)

    def trained(self, n_tokens: int) -> None:
        """Count a training batch."""
        self._meter.add(self._train(n_tokens), train=True)

    def inferred(self, n_tokens: int) -> None:
        """Count an inference batch."""
        self._meter.add(self._infer(n_tokens), train=False)

    def may_fit(self, n_flops: int) -> bool:
        """Return whether a regression fits into the hold on both clocks."""
        return self._meter.may_start(n_flops, train=True)

    def fitted(self, n_flops: int) -> None:
        """Count a regression."""
        self._meter.add(n_flops, train=True)

    def state(self) -> dict[str, Any]:
        """Return the counts and the seconds by payer, for a checkpoint."""
        return {"meter": self._meter.state().to_json(), "seconds_by_payer": self.by_payer()}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from the state in a checkpoint; only this payer's own seconds count towards its cash."""
        seconds = {str(payer): float(value) for payer, value in state["seconds_by_payer"].items()}
        self._kept_before = seconds.pop(self._payer, 0.0)
        self._seconds_of_others = seconds
        counted = MeterState.from_json({**state["meter"], "wall_seconds": self._kept_before})
        self._meter.restore(counted)

    def by_payer(self) -> dict[str, float]:
        """Return the seconds by payer up to now."""
        mine = self._kept_before + time.monotonic() - self._began
        return {**self._seconds_of_others, self._payer: round(mine, 3)}

    def working_seconds(self) -> float | None:
        """Return the wall seconds inside counted batches, without loading, tokenising and saving.

        ``None`` where another payer did a part, since a checkpoint does not keep these seconds by payer.
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
        """Write heartbeats from the first moment on, so that loading a model counts too."""
        self._write_heartbeat()
        while not self._stop.wait(HEARTBEAT_SECONDS):
            self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        write_heartbeat(self._heartbeat, self._kept_before, time.monotonic() - self._began)


def write_heartbeat(path: Path, kept_before: float, attempt_seconds: float) -> None:
    """Write the seconds of an attempt and those kept before it; not synced, since a lost beat costs its interval only."""
    beat = json.dumps({"kept_before": kept_before, "attempt_seconds": attempt_seconds})
    # A full disk must not hide behind its heartbeat: the step itself says what is wrong.
    with suppress(OSError, StoreError):
        write_text(path, beat)


def lost_seconds(heartbeat: Path, kept_now: float) -> float:
    """Return the lost seconds of a dead attempt: its last heartbeat minus those in the artifact or checkpoint."""
    beat = _read_heartbeat(heartbeat)
    return max(0.0, beat["kept_before"] + beat["attempt_seconds"] - kept_now)


def seconds_at(heartbeat: Path) -> float:
    """Return the seconds of the attempt under way up to its last heartbeat; 0 without a heartbeat."""
    return _read_heartbeat(heartbeat)["attempt_seconds"]


def _read_heartbeat(path: Path) -> dict[str, float]:
    try:
        return {name: float(seconds) for name, seconds in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, json.JSONDecodeError):
        return {"kept_before": 0.0, "attempt_seconds": 0.0}
