"""Orders of labels that are open: what is in, what is missing, where it lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outlay.engine.purchase_terms import FILES, OPENAI
from outlay.errors import UnknownOrder
from outlay.labels.files import OrderFolder, OrderStatus, status
from outlay.labels.llm.journal import read_journal
from outlay.labels.purchases import OrderRecord, PurchaseLog


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """An order whose labels have not all come.

    ``who``: model or people; ``run``: id of the run that pays; ``n_in``: rows that have a label or will get none, by the log;
    ``folder``: of the order on people, with ``state`` where it is there; ``batches``: number of requests in each batch without a
    reply.
    """

    order: str
    who: str
    run: str
    n_rows: int
    n_in: int
    folder: Path | None = None
    state: OrderStatus | None = None
    batches: tuple[tuple[str, int], ...] = ()

    def lines(self) -> list[str]:
        """Return the order in lines for people."""
        head = f"{self.who}: order {self.order[:12]} of run {self.run}: {self.n_in:,} of {self.n_rows:,} labels are in the log"
        if self.state is not None:
            return [head, *(f"  {line}" for line in self.state.lines())]
        if self.folder is not None:
            return [head, f"  {self.folder} is not there; the run's command writes it again"]
        return [head, *(f"  batch {name}: {n:,} requests without a reply so far" for name, n in self.batches)]


def open_orders(log: PurchaseLog, asked: Path, payers: Sequence[str] | None = None) -> list[OpenOrder]:
    """Return the open orders of a store, of some payers or of all; ``asked``: folder of the journals."""
    found = []
    for series in log.series:
        known = log.read(series)
        for order in known.open_orders:
            if payers is not None and order.payer not in payers:
                continue
            folder, state = None, None
            if order.terms.get("kind") == FILES:
                folder = OrderFolder.of(Path(order.terms["folder"]), order.order).path
                try:
                    state = status(folder)
                except UnknownOrder:
                    state = None
            who = str(order.terms.get("model", "people" if folder is not None else "a seller"))
            n_in = sum(map(known.is_settled, order.ordered))
            run = order.payer.rpartition(":")[2]
            batches = _batches(order, asked)
            found.append(OpenOrder(order.order, who, run, len(order.ordered), n_in, folder, state, batches))
    return found


def _batches(order: OrderRecord, asked: Path) -> tuple[tuple[str, int], ...]:
    """Return the number of requests without a reply by the batch that they left in."""
    path = asked / str(order.terms.get("journal", ""))
    if order.terms.get("kind") != OPENAI or not path.is_file():
        return ()
    with read_journal(path) as journal:
        sent = (attempt for _, attempt in journal.bill(order.order) if attempt.state == "sent" and attempt.batch)
        return tuple(Counter(str(attempt.batch) for attempt in sent).items())
