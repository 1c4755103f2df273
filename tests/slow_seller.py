"""A seller who takes its time: late, in parts, in an order of its own; its far side is a folder that outlives every process."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, cast

from outlay.errors import SellerError, UnknownOrder
from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Delivery, Order, no_report
from outlay.labels.replay import Replay
from outlay.money.amounts import Quote
from outlay.tasks.example import Example


class SlowSeller(Replay):
    """Replayed labels that come a few per `collect`, each order at its own pace and its rows by their hashes; every label leaves
    the bank as it comes. A file ``closed`` at the far side stops it; others than ``slow_item`` answer at once.

    ``dies``: where this process is killed, once: ``before sending``, ``after sending`` or ``before keeping``.
    """

    far: ClassVar[Path]
    slow_item: ClassVar[str | None] = None
    dies: ClassVar[str | None] = None

    def quote(self, examples: Sequence[Example]) -> Quote:
        quote = super().quote(examples)
        return replace(quote, cash_micros=quote.charge_micros)

    def submit(self, order: Order) -> None:
        state = self._read(order)
        if state is not None and state["rows"] != list(order.rows):
            raise SellerError(f"order {order.id!r} was taken for other rows")
        super().submit(order)
        self._die("before sending")
        self.far.mkdir(parents=True, exist_ok=True)
        with (self.far / "submitted").open("a") as lines:
            lines.write(f"{order.id}\n")
        if state is None:
            self._write(order, {"rows": list(order.rows), "answered": 0, "item": self.price.item})
        self._die("after sending")

    def collect(self, order: Order, allowance: Allowance, report: Callable[[int], None] = no_report) -> Delivery:
        state = self._read(order)
        if state is None:
            raise UnknownOrder(f"order {order.id!r} was never submitted")
        super().submit(order)
        whole = super().collect(order, allowance)
        whole = replace(whole, cash_micros=self.price.cost_micros(whole.quantity))
        if self.slow_item not in (None, self.price.item):
            return whole
        n_before = state["answered"]
        if not (self.far / "closed").exists():
            # A round without any answer first, then one or two rows at a time.
            n = -1 if n_before == 0 and "rounds" not in state else n_before + 1 + int(_hash(order.id)[0], 16) % 2
            state |= {"answered": min(len(order.rows), max(0, n)), "rounds": 1}
            self._write(order, state)
        if state["answered"] > n_before:
            self._die("before keeping")
        if state["answered"] == len(order.rows) and "rounds" in state:
            return whole
        by_hash = sorted(range(len(order.rows)), key=lambda i: _hash(order.rows[i]))[: state["answered"]]
        rows = {order.rows[i] for i in by_hash}
        part = replace(whole, results=tuple(each for each in whole.results if each.row in rows))
        return replace(
            part,
            answers=tuple(each for each in whole.answers if each.row in rows),
            cash_micros=self.price.cost_micros(part.quantity),
            human_seconds=float(Fraction(len(rows), max(1, len(order.rows)))) * whole.human_seconds,
            waits_for="people have not answered all",
        )

    def _read(self, order: Order) -> dict[str, Any] | None:
        path = self.far / f"{_hash(order.id)}.json"
        if not path.exists():
            return None
        state: dict[str, Any] = json.loads(path.read_text())
        return state

    def _write(self, order: Order, state: dict[str, Any]) -> None:
        path = self.far / f"{_hash(order.id)}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(state))
        new.replace(path)

    def _die(self, where: str) -> None:
        if self.dies == where and not (self.far / "died").exists():
            self.far.mkdir(parents=True, exist_ok=True)
            (self.far / "died").write_text(where)
            os.kill(os.getpid(), signal.SIGKILL)


def slow_seller(folder: Path, **settings: Any) -> type[SlowSeller]:
    """A seller whose far side is ``folder``."""
    return cast("type[SlowSeller]", type("SlowSellerOfOneTest", (SlowSeller,), {"far": folder, **settings}))


def submitted(folder: Path) -> list[str]:
    """Ids of the orders that reached the far side, as often as they did."""
    path = folder / "submitted"
    return path.read_text().splitlines() if path.exists() else []


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
