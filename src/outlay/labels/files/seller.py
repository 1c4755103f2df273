"""A seller of labels that people write into files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from fractions import Fraction
from pathlib import Path

from outlay.errors import SellerError, UnknownOrder
from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Delivery, Order, RowCost, RowResult, no_report
from outlay.labels.files.guideline import Guideline
from outlay.labels.files.order_folder import Accepted, OrderFolder, Settled, State
from outlay.labels.files.status import AGAIN, read_tally, waits_line, write_status
from outlay.labels.files.tally import Tally
from outlay.money.amounts import Price, Quote
from outlay.tasks.example import Example

_logger = logging.getLogger(__name__)
NO_MONEY = "annotators disagree, and the money does not reach for one more"


@dataclass(eq=False)
class FileSeller:
    """A seller of labels that people write into the files of a folder, at `price` per answer.

    Every row is given to `redundancy` annotators and gets their majority. Where no label has one, a further annotator is asked if
    `breaks_ties`; `tie_share` is the share of rows where that is expected. A row whose annotators disagree still is refused.

    `collect` returns at once, or with `poll_seconds` looks again after so many seconds until all answers are there, which it says
    once by `tell`. `takes`: it closes the order with the answers that are there.

    Raises SellerError for a setting outside its limits.
    """

    folder: Path
    guideline: Guideline
    price: Price
    _: KW_ONLY
    redundancy: int = 1
    breaks_ties: bool = True
    tie_share: float = 0.2
    poll_seconds: float | None = None
    takes: bool = False
    sleep: Callable[[float], None] = time.sleep
    tell: Callable[[str], None] = _logger.warning

    def __post_init__(self) -> None:
        if self.redundancy < 1:
            raise SellerError(f"the redundancy is {self.redundancy}; give 1 or more answers per row")
        if not 0 <= self.tie_share <= 1:
            raise SellerError(f"the share of ties is {self.tie_share}; give 0 to 1")
        if self.poll_seconds is not None and not 0 < self.poll_seconds < float("inf"):
            raise SellerError(f"the seconds between two looks are {self.poll_seconds}; give more than 0")

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set; empty where any text is an answer."""
        return self.guideline.labels if self.guideline.kind == "classification" else ()

    @property
    def order_rows(self) -> None:
        """``None``: a purchase is one order, so that annotators get one folder."""
        return None

    @property
    def is_deterministic(self) -> bool:
        """False: people answer once."""
        return False

    def costs(self, examples: Sequence[Example]) -> Sequence[RowCost]:
        """Return `redundancy` answers per row, and one more where annotators may disagree without a majority."""
        known = Accepted("", (), self.guideline, self.redundancy, self.breaks_ties)
        most = Fraction(self.redundancy + _can_tie(known))
        return [RowCost(_expected(known, self.tie_share), most)] * len(examples)

    def quote(self, examples: Sequence[Example]) -> Quote:
        """Return the most that some rows cost; people are paid, so the cash is the charge."""
        return Quote.of(self.price, sum((cost.most for cost in self.costs(examples)), Fraction(0)))

    def identity(self) -> Mapping[str, object]:
        """Return what decides the labels: what annotators are told, and how many are asked; neither the folder nor the price."""
        return {
            "seller": "files",
            "version": 1,
            "kind": self.guideline.kind,
            "labels": list(self.guideline.labels),
            "guideline": self.guideline.digest,
            "redundancy": self.redundancy,
            "breaks_ties": self.breaks_ties,
        }

    def submit(self, order: Order) -> None:
        """Accept an order; `collect` gives its items out. Raises SellerError for a known order id on other rows."""
        place = OrderFolder.of(self.folder, order.id)
        with place.locked():
            known = place.accepted()
            if known is None:
                place.accept(Accepted.of(order, self.guideline, self.redundancy, breaks_ties=self.breaks_ties))
            else:
                _check_rows(order, known)

    def collect(self, order: Order, allowance: Allowance, report: Callable[[int], None] = no_report) -> Delivery:
        """Give out what the allowance affords, and return the answers that have come back, the same ones for ever.

        Items are given out at the first call, and those on which annotators disagree to one more as soon as the others are all
        answered. Raises UnknownOrder for an order that was never accepted.
        """
        place = OrderFolder.of(self.folder, order.id)
        known = place.accepted()
        if known is None:
            raise UnknownOrder(f"order {order.id!r} was never submitted; submit it first")
        _check_rows(order, known)
        with place.locked():
            state = self._given_out(known, place.state(), allowance)
        if not state.n_given:
            return Delivery(order.id, ())  # the money reaches for no item, or there is none
        is_told = False
        while True:
            with place.locked():
                state, tally = self._collect_once(place, known, state, allowance)
            report(tally.n_in)
            waits_for = waits_line(place, known, state, tally)
            if waits_for is None or self.poll_seconds is None:
                return self._delivery(order, known, tally, waits_for)
            if not is_told:
                self.tell(f"{waits_for.removesuffix(AGAIN)}; looking again every {self.poll_seconds:g} s")
                is_told = True
            self.sleep(self.poll_seconds)

    def _given_out(self, known: Accepted, before: State | None, allowance: Allowance) -> State:
        """Return the state of an order, at first with the items that the allowance affords by what they are expected to cost.

        What annotators were given before is owed to them, and taken from the allowance even where it has become smaller.
        """
        price = Fraction(self.price.usd)
        if before is None:
            each = price * _expected(known, self.tie_share)
            n = len(known.items) if not each else min(len(known.items), int(allowance.left / each))
            state = State(n)
        else:
            state = replace(before, is_closed=before.is_closed or self.takes)
        owed = price * (known.redundancy * state.n_given + len(state.disputed))
        allowance.take(min(owed, allowance.left))
        return state

    def _collect_once(
        self, place: OrderFolder, known: Accepted, state: State, allowance: Allowance
    ) -> tuple[State, Tally]:
        """Read the answers, give disputed items out where it is time, and keep what is delivered."""
        on_disk = place.state()
        if on_disk is not None and on_disk.is_closed and not state.is_closed:
            state = on_disk  # closed while this process waited
        if on_disk != state:
            place.keep(state)
        place.give_out(known, state)
        tally = read_tally(place, known, state)
        if tally.disputed and not tally.waiting:
            affordable = tuple(item for item in tally.disputed if allowance.take(Fraction(self.price.usd)))
            if affordable:
                state = replace(state, disputed=affordable)
                place.keep(state)
                place.give_out(known, state)
                tally = read_tally(place, known, state)
            refused = {item: Settled(None, NO_MONEY, tally.answers[item]) for item in tally.disputed}
            tally = replace(tally, settled={**tally.settled, **refused}, disputed=())
        if tally.settled != state.settled:
            state = replace(state, settled=tally.settled)
            place.keep(state)
        write_status(place, known, state, tally)
        return state, tally

    def _delivery(self, order: Order, known: Accepted, tally: Tally, waits_for: str | None) -> Delivery:
        """Return what is settled, in the order of the items."""
        done = [(item.row, tally.settled[item.id]) for item in known.items if item.id in tally.settled]
        results = tuple(RowResult(row, each.label, each.refused, Fraction(len(each.answers))) for row, each in done)
        answers = tuple(answer for _, each in done for answer in each.answers)
        return Delivery(
            order.id,
            results,
            answers,
            cash_micros=self.price.cost_micros(len(answers)),
            human_seconds=sum(answer.seconds for answer in answers),
            waits_for=waits_for,
        )


def _check_rows(order: Order, known: Accepted) -> None:
    if known.order != order.id or tuple(item.row for item in known.items) != order.rows:
        raise SellerError(f"order {order.id!r} was taken for other rows; give the new rows a new order id")


def _can_tie(order: Accepted) -> bool:
    """Return whether one more annotator may be asked: two labels and an odd number of answers always have a majority."""
    is_two_way = order.guideline.kind == "classification" and len(order.guideline.labels) == 2
    return order.breaks_ties and order.redundancy > 1 and not (is_two_way and order.redundancy % 2)


def _expected(order: Accepted, tie_share: float) -> Fraction:
    """Return the number of answers that an item is expected to take."""
    return order.redundancy + (Fraction(str(tie_share)) if _can_tie(order) else Fraction(0))
