"""Count the answers of an order: which items have their label, which go to one more annotator, which still wait."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from outlay.labels.agreement import Agreement, agreement, majority
from outlay.labels.annotator import Answer
from outlay.labels.files.answers import GivenAnswer, Remark
from outlay.labels.files.order_folder import Accepted, Item, Settled, State
from outlay.text.legible import listed, quoted

NO_ANSWER = "closed without an answer"


@dataclass(frozen=True)
class Tally:
    """Count of an order: outcomes by item id, items on which the first annotators disagree, and items that wait for answers.

    ``answers``: those that count, by item id, of every item given out.
    """

    settled: Mapping[str, Settled]
    disputed: tuple[str, ...]
    waiting: tuple[str, ...]
    answers: Mapping[str, tuple[Answer, ...]]
    remarks: tuple[Remark, ...]

    @property
    def n_in(self) -> int:
        """Number of items that have a label, or will get none."""
        return len(self.settled)

    def agreement(self, accepted: Accepted) -> Agreement | None:
        """Return the agreement of those who answer every item; ``None`` where one annotator does."""
        every = (answer for each in self.answers.values() for answer in each)
        return agreement(every, accepted.redundancy) if accepted.redundancy > 1 else None

    def progress(self, accepted: Accepted, state: State) -> list[str]:
        """Return how many items each annotator has answered: ``annotator-1 has answered 80 of 200``."""
        n_by: dict[str, int] = {}
        for answer in (answer for each in self.answers.values() for answer in each):
            n_by[answer.by] = n_by.get(answer.by, 0) + 1
        asked = dict.fromkeys(accepted.first_annotators, state.n_given)
        if state.disputed:
            asked[accepted.tie_breaker] = len(state.disputed)
        strangers = sorted(n_by.keys() - asked.keys())
        known = [f"{name} has answered {n_by.get(name, 0):,} of {n:,}" for name, n in asked.items()]
        return known + [f"{name} has answered {n_by[name]:,}" for name in strangers]


def count(accepted: Accepted, state: State, given: Iterable[GivenAnswer]) -> Tally:
    """Count answers; what was delivered stays as it was, and answers that would change it get a remark."""
    by_item: dict[str, list[GivenAnswer]] = {}
    for each in given:
        by_item.setdefault(each.item, []).append(each)
    counter = _Counter(accepted, state)
    for item in accepted.items[: state.n_given]:
        counter.count(item, by_item.pop(item.id, []))
    for rest in by_item.values():
        for each in rest:
            counter.remark(each, "the item was not given out", "leave it empty; it is neither counted nor paid")
    return counter.tally()


class _Counter:
    """Count of one order, item by item."""

    def __init__(self, accepted: Accepted, state: State) -> None:
        self._accepted = accepted
        self._state = state
        self._to_tie_breaker = set(state.disputed)
        names = (*accepted.first_annotators, accepted.tie_breaker)
        self._place = {name: place for place, name in enumerate(names)}
        self._settled: dict[str, Settled] = {}
        self._disputed: list[str] = []
        self._waiting: list[str] = []
        self._answers: dict[str, tuple[Answer, ...]] = {}
        self._remarks: list[Remark] = []

    def tally(self) -> Tally:
        """Return the count."""
        return Tally(self._settled, tuple(self._disputed), tuple(self._waiting), self._answers, tuple(self._remarks))

    def remark(self, given: GivenAnswer, what: str, way_out: str) -> None:
        """Note that an answer does not count."""
        self._remarks.append(Remark(given.file, given.line, given.item, what, way_out))

    def count(self, item: Item, given: Sequence[GivenAnswer]) -> None:
        """Count the answers to one item that was given out."""
        before = self._state.settled.get(item.id)
        known = {answer.by: answer for answer in before.answers} if before is not None else {}
        new = [each for each in given if each.answer.by not in known]
        for each in given:
            paid = known.get(each.answer.by)
            if paid is not None and paid.label != each.answer.label:
                what = f"{quoted(each.answer.text)} came after {quoted(paid.text)} was delivered and paid, which stays"
                self.remark(each, what, f"write {quoted(paid.text)} again")
        is_disputed = item.id in self._to_tie_breaker
        n_wanted = self._accepted.redundancy + is_disputed
        # Of more answers than were asked for those of the annotators asked count, then the others by name.
        new.sort(key=lambda each: (self._place.get(each.answer.by, len(self._place)), each.answer.by))
        n_more = n_wanted if before is None else 0
        for each in new[n_more:]:
            if self._state.is_closed and len(known) < n_wanted:
                self.remark(
                    each, "the answer came after the order was closed", "nothing; it is neither counted nor paid"
                )
            else:
                what = f"{each.answer.by} answers an item that has the {n_wanted} answers that were asked for"
                self.remark(each, what, "nothing; it is neither counted nor paid")
        answers = (*known.values(), *(each.answer for each in new[:n_more]))
        self._answers[item.id] = answers
        if before is not None:
            self._settled[item.id] = before
        else:
            self._decide(item, answers, n_wanted, is_disputed=is_disputed)

    def _decide(self, item: Item, answers: tuple[Answer, ...], n_wanted: int, *, is_disputed: bool) -> None:
        """Settle an item, or let it wait."""
        is_closed = self._state.is_closed
        if len(answers) < n_wanted and not is_closed:
            self._waiting.append(item.id)
            return
        if not answers:
            self._settled[item.id] = Settled(None, NO_ANSWER, ())
            return
        labels = [answer.label for answer in answers if answer.label is not None]
        label = majority(labels)
        if label is not None:
            self._settled[item.id] = Settled(label, None, answers)
        elif self._accepted.breaks_ties and not is_disputed and not is_closed:
            self._disputed.append(item.id)
        else:
            said = f"{len(answers)} annotators disagree: {listed(dict.fromkeys(labels))}"
            self._settled[item.id] = Settled(None, f"closed while {said}" if is_closed else said, answers)
