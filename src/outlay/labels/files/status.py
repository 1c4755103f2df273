"""See how far an order is, and close it: without its seller, from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from outlay.errors import UnknownOrder
from outlay.labels.agreement import Agreement
from outlay.labels.files.answers import Remark, read_answers
from outlay.labels.files.order_folder import PROBLEMS, Accepted, OrderFolder, State
from outlay.labels.files.tally import Tally, count

AGAIN = "; run the same command again"
"""End of a line on answers that are missing."""


@dataclass(frozen=True, slots=True)
class OrderStatus:
    """State of an order in its folder.

    ``n_items``: items given out; ``n_labels``, ``n_refused``: those that have a label or will get none; ``progress``: a line per
    annotator; ``agreement``: that of the annotators who answer every item; ``waits_for``: one line on what is missing, ``None``
    where nothing is.
    """

    folder: Path
    n_items: int
    n_labels: int
    n_refused: int
    is_closed: bool
    progress: tuple[str, ...]
    agreement: Agreement | None
    remarks: tuple[Remark, ...]
    waits_for: str | None

    def lines(self) -> list[str]:
        """Return the state in lines for people."""
        refused = f", {self.n_refused:,} refused" if self.n_refused else ""
        closed = "; closed" if self.is_closed else ""
        head = f"{self.folder}: {self.n_labels:,} of {self.n_items:,} labels are in{refused}{closed}"
        agreed = [self.agreement.line()] if self.agreement is not None else []
        n = len(self.remarks)
        look = [f"{n:,} {'row needs' if n == 1 else 'rows need'} a look: {self.folder / PROBLEMS}"] if n else []
        return [head, *self.progress, *agreed, *look]


def read_tally(place: OrderFolder, known: Accepted, state: State) -> Tally:
    """Read and count the answers of an order."""
    given, remarks = read_answers(place, known)
    tally = count(known, state, given)
    return replace(tally, remarks=(*remarks, *tally.remarks))


def waits_line(place: OrderFolder, known: Accepted, state: State, tally: Tally) -> str | None:
    """Return one line on the answers that are missing, ``None`` where none is."""
    if not tally.waiting and not tally.disputed:
        return None
    who = f" ({', '.join(tally.progress(known, state))})" if known.redundancy > 1 else ""
    n_lost = sum(not remark.is_taken for remark in tally.remarks)
    look = f"; {n_lost:,} answers were not taken, see {PROBLEMS} there" if n_lost else ""
    n = len(tally.disputed)
    more = f"; {n:,} items go to one more annotator" if n and not tally.waiting else ""
    return f"{tally.n_in:,} of {state.n_given:,} labels are in {place.path}{who}{look}{more}{AGAIN}"


def write_status(place: OrderFolder, known: Accepted, state: State, tally: Tally) -> None:
    """Write the list of problems and the report into the folder, for annotators to see."""
    place.write_problems([remark.cells() for remark in tally.remarks])
    place.write_report(_status(place, known, state, tally).lines())


def status(folder: str | Path) -> OrderStatus:
    """Return the state of the order in a folder; nothing is written.

    Raises:
        UnknownOrder: there is no order, or its items were not given out.
        SellerError: its record cannot be read.
    """
    place, known, state = _order_in(Path(folder))
    return _status(place, known, state, read_tally(place, known, state))


def close_order(folder: str | Path) -> OrderStatus:
    """Close the order in a folder with the answers that are there; those that come later do not count.

    The next run of the seller delivers it: an item without an answer is refused.

    Raises:
        UnknownOrder: there is no order, or its items were not given out.
        SellerError: its record cannot be read.
        StoreError: the folder cannot be written.
    """
    place, known, _ = _order_in(Path(folder))
    with place.locked():
        _, _, state = _order_in(Path(folder))
        state = replace(state, is_closed=True)
        tally = read_tally(place, known, state)
        # What is there now is what was taken: an answer that comes before the seller looks again does not count.
        place.keep(replace(state, settled=tally.settled))
        write_status(place, known, state, tally)
    return _status(place, known, state, tally)


def _status(place: OrderFolder, known: Accepted, state: State, tally: Tally) -> OrderStatus:
    return OrderStatus(
        place.path,
        state.n_given,
        sum(each.label is not None for each in tally.settled.values()),
        sum(each.refused is not None for each in tally.settled.values()),
        state.is_closed,
        tuple(tally.progress(known, state)),
        tally.agreement(known),
        tally.remarks,
        waits_line(place, known, state, tally),
    )


def _order_in(folder: Path) -> tuple[OrderFolder, Accepted, State]:
    place = OrderFolder(folder)
    known, state = place.accepted(), place.state()
    if known is None or state is None or not folder.is_dir():
        raise UnknownOrder(f"{folder} is not the folder of an order; name one such as {folder / 'order-1f3a9c0b7d21'}")
    return place, known, state
