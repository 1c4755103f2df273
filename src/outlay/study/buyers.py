"""Threads that buy labels beside the workers that compute: one per purchase, in the process that drives the runs.

The threads are daemons: a process that ends does not wait for a seller. An unfinished purchase is then as after a kill: its
order was noted before it was sent, and is collected the next time (`outlay.engine.buying`, which also says why threads).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

from outlay.engine.buying import Purchase, PurchaseResult
from outlay.errors import OutlayError
from outlay.text.listener import Advance, Report
from outlay.workers.pool import TaskResult

BuyLabels = Callable[[Purchase, Report], PurchaseResult]

MOST_BUYING = 16
"""Maximum number of purchases under way at once: enough for slow sellers, few enough threads."""


@dataclass
class _UnderWay:
    purchase: Purchase
    began: float
    progress: Advance = (0, 0, "")
    ended: TaskResult | None = None
    broken: BaseException | None = None


class Buyers:
    """A pool of threads, one per named purchase. ``buy`` makes a purchase (`outlay.engine.results_dir.ResultsDir.buy`)."""

    def __init__(self, buy: BuyLabels) -> None:
        self._buy_labels = buy
        self._under_way: dict[str, _UnderWay] = {}
        self._ended: SimpleQueue[str] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def n_free(self) -> int:
        """Number of purchases that may still begin."""
        return MOST_BUYING - len(self._under_way)

    @property
    def series(self) -> set[str]:
        """Series that purchases under way buy from; another purchase of the same series would wait for its log."""
        return {each.purchase.step.series for each in self._under_way.values()}

    def submit(self, name: str, purchase: Purchase) -> None:
        """Begin a purchase."""
        self._under_way[name] = _UnderWay(purchase, time.monotonic())
        Thread(target=self._buy, args=(name,), name=f"buy {name[:12]}", daemon=True).start()

    def wait(self, seconds: float) -> list[TaskResult]:
        """Return the purchases that have ended, after a wait of at most ``seconds`` where none has.

        Purchases of one payer are returned in the order they were begun, so that its entries do not depend on their speed.
        """
        try:
            self._ended.get(timeout=seconds) if seconds > 0 else self._ended.get_nowait()
            while True:
                self._ended.get_nowait()
        except Empty:
            pass
        found: list[TaskResult] = []
        behind: set[str] = set()
        for name, each in list(self._under_way.items()):
            if each.broken is not None:
                raise each.broken
            if each.ended is None or each.purchase.payer in behind:
                behind.add(each.purchase.payer)
            else:
                found.append(each.ended)
                del self._under_way[name]
        return found

    def progress(self) -> dict[str, Advance]:
        """Return labels delivered, labels ordered and a detail for each purchase under way, by its name."""
        return {name: each.progress for name, each in self._under_way.items()}

    def _buy(self, name: str) -> None:
        each = self._under_way[name]

        def report(n_done: int, n_total: int, detail: str) -> None:
            each.progress = n_done, n_total, detail

        value: PurchaseResult | None = None
        error: OutlayError | None = None
        try:
            value = self._buy_labels(each.purchase, report)
        except OutlayError as raised:
            error = raised
        except BaseException as raised:  # a bug: it ends the study, with its traceback
            each.broken = raised
        each.ended = TaskResult(name, time.monotonic() - each.began, value=value, error=error)
        self._ended.put(name)
