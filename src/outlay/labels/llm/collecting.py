"""One collection of an order from a language model: the way of asking, what is known, what is still to be asked, what came."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from outlay.errors import SellerError
from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Answer, Delivery, Order, RowResult
from outlay.labels.llm.asking import Asking, Clock
from outlay.labels.llm.batch_wire import BatchEndpoint
from outlay.labels.llm.batches import Batches
from outlay.labels.llm.billing import Bills, Rates, believed_usage
from outlay.labels.llm.bodies import PATHS, Way
from outlay.labels.llm.journal import Attempt, Journal
from outlay.labels.llm.limits import Limits
from outlay.labels.llm.options import LlmOptions
from outlay.labels.llm.questions import Questioner
from outlay.labels.llm.reading import Reading, agree, choice_of, read_answer, usage_of
from outlay.labels.llm.schedule import DEFAULT_FATAL, PROBE_FATAL, Due, Fatal, Retries, Schedule, Settled, n_of
from outlay.labels.llm.ways import Answered, Probe, next_probe
from outlay.labels.llm.wire import Question, Reply
from outlay.money.amounts import MICROS_PER_USD
from outlay.money.prices.tokens import TokenPrices

PROBE_ANSWERS = frozenset({400, 404, 405, 406, 410, 413, 415, 422, 501})
"""Errors that say that an endpoint does not have a way, today and tomorrow."""


UNCLEAR = Reading(None, "the reply to a probe tells nothing")


@dataclass(frozen=True)
class Means:
    """Model that an order is asked of, way to ask it, prices of its tokens, endpoint and limits.

    ``connect`` opens the endpoint, where something is to be asked.
    """

    options: LlmOptions
    questioner: Questioner
    rates: Rates
    limits: Limits
    connect: Callable[[], BatchEndpoint]
    tell: Callable[[str], None]
    clock: Clock

    @property
    def prices(self) -> TokenPrices:
        """Prices of requests of their own."""
        return self.rates.single

    @property
    def asked_prices(self) -> TokenPrices:
        """Prices of the tier that rows are asked at; a probe is a request of its own."""
        return self.rates.batch if self.options.tier == "batch" else self.rates.single

    @property
    def url(self) -> str:
        """URL of the endpoint, as keys of questions hold it."""
        return self.options.base_url.rstrip("/")


@dataclass(frozen=True)
class _Known:
    """A question, its key and what came of it so far.

    ``reading`` has its label; ``refused`` says why there will be none; with neither it is to be asked.
    """

    question: Question
    key: str
    reading: Reading | None = None
    refused: str | None = None
    n_unreadable: int = 0
    is_waiting: bool = False
    """Whether it is in a batch that is being answered."""

    @property
    def is_finished(self) -> bool:
        """Whether it is not to be asked again."""
        return self.reading is not None or self.refused is not None

    @property
    def is_open(self) -> bool:
        """Whether it is to be asked now."""
        return not self.is_finished and not self.is_waiting


def _open_ones(rows: Mapping[str, Sequence[_Known]]) -> dict[str, Question]:
    return {known.key: known.question for each in rows.values() for known in each if known.is_open}


@dataclass
class Collection:
    """Collects one order, with its journal open.

    ``allowance`` pays for what the order has cost already, then for what it takes over of other orders, then for what is asked.
    """

    means: Means
    journal: Journal
    order: Order
    allowance: Allowance
    _way: Way | None = None
    _n_probes: int = 0

    def __post_init__(self) -> None:
        means = self.means
        retries = Retries(means.options.retries, means.options.unreadable_retries)
        self._bills = Bills(self.journal, means.rates.single, means.rates.batch)
        self._batches = Batches(
            self.journal, self.order.id, means.rates.batch, means.connect, retries, means.tell, means.clock
        )
        self._usd = self.allowance.left
        self._readings: dict[tuple[str, int], Reading] = {}
        self._sources = {example.id: example.text for example in self.order.examples}

    def collected(self, report: Callable[[int], None]) -> Delivery:
        """Ask what is missing, as far as the allowance reaches, and return all that came."""
        self._batches.look()
        is_covered = self.allowance.take(self._due())
        if not is_covered:
            self.allowance.take(self.allowance.left)
        self._way = self._found_way(may_ask=is_covered)
        if self._way is None:
            return self._delivery({})
        rows = self._rows(self._way)
        if self._batches.resume(_open_ones(rows), may_ask=is_covered and self._is_batched):
            rows = self._again(rows)
        if is_covered and self._is_batched:
            rows = self._ask_batches(rows, report)
        elif is_covered:
            self._ask(rows, report)
        return self._delivery(rows)

    @property
    def _is_batched(self) -> bool:
        return self.means.options.tier == "batch"

    def _due(self) -> Fraction:
        """Return what the order has cost, and what its batches may still cost."""
        return sum(self._bills.of(self.order.id).values(), self._bills.held(self.order.id))

    # --- the way ------------------------------------------------------------------------------------------------------

    def _found_way(self, *, may_ask: bool) -> Way | None:
        """Return the way of asking, which the journal knows or probes find; ``None`` where they cannot be paid.

        A probe is billed to the first row of the order. Where the journal knows of no way, the endpoint is asked again: it may
        have been put right.
        """
        try:
            return self._probed(may_ask=may_ask, fresh=False)
        except SellerError:
            if not may_ask or self._n_probes:
                raise
            return self._probed(may_ask=True, fresh=True)

    def _probed(self, *, may_ask: bool, fresh: bool) -> Way | None:
        """Follow the probes to a way; ``fresh``: what was answered before does not count."""
        means, answered = self.means, list[Answered]()
        while True:
            options = means.options
            step = next_probe(means.questioner.guideline, options.settings, options.way, answered, options.ways)
            if isinstance(step, Way):
                return step
            question = means.questioner.probe(step, self.order.rows[0])
            key = question.key(means.url)
            skipped = len(self.journal.attempts(key)) if fresh else 0
            reply = self._probe_reply(step, key, skipped)
            if reply is None and may_ask:
                self._n_probes += 1
                due = Due(key, question, means.prices.most(question.most))

                def appraise(attempt: Attempt, asked: Question, reply: Reply, probe: Probe = step) -> Settled:
                    return self._worth(attempt, asked, reply, None if _tells(probe, reply) else UNCLEAR)

                self._asking(appraise, PROBE_FATAL).ask([due], self.allowance, 0, lambda _: None)
                reply = self._probe_reply(step, key, skipped)
            if reply is None:
                return None
            answered.append((reply.status, reply.body))

    def _probe_reply(self, probe: Probe, key: str, skipped: int) -> Reply | None:
        """Return the reply to a probe that tells of the way: the first clear one, or the last where all are as unclear."""
        unclear: list[Reply] = []
        for attempt in self.journal.attempts(key)[skipped:]:
            reply = self.journal.reply(attempt)
            if reply is None:
                continue
            if reply.status in PROBE_ANSWERS or (attempt.state == "received" and _tells(probe, reply)):
                return reply
            unclear += [reply] if attempt.state == "received" else []
        return unclear[-1] if len(unclear) > self.means.options.unreadable_retries else None

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _rows(self, way: Way) -> dict[str, list[_Known]]:
        """Return the questions of the rows, up to the first one whose earlier answers the allowance does not pay for."""
        rows: dict[str, list[_Known]] = {}
        taken: dict[str, str] = {}
        for example in self.order.examples:
            questions = self.means.questioner.ask(way, example)
            keys = [question.key(self.means.url) for question in questions]
            others = {key: self.journal.untaken(self.order.id, key) for key in keys if key not in taken}
            cost = sum((self._bills.cost(each) for every in others.values() for each in every), Fraction(0))
            if not self.allowance.take(cost):
                break
            taken |= {key: example.id for key, every in others.items() if every}
            rows[example.id] = [self._known(question, key) for question, key in zip(questions, keys, strict=True)]
        self.journal.take_over(self.order.id, taken)
        return rows

    def _again(self, rows: Mapping[str, Sequence[_Known]]) -> dict[str, list[_Known]]:
        """Return the questions of the rows as they stand now, and what is not needed any more to the allowance."""
        if (unneeded := self._usd - self._due() - self.allowance.left) > 0:
            self.allowance.give_back(unneeded)
        return {row: [self._known(each.question, each.key) for each in known] for row, known in rows.items()}

    def _known(self, question: Question, key: str) -> _Known:
        n_unreadable, problem, declined = 0, None, False
        for _, reading in self._read_all(question, key):
            if reading.label is not None:
                return _Known(question, key, reading=reading)
            n_unreadable, problem, declined = n_unreadable + 1, reading.problem, declined or reading.declined
        if declined or n_unreadable > self.means.options.unreadable_retries:
            return _Known(question, key, refused=problem)
        refused, is_waiting = self.journal.refusal(self.order.id, key), self._batches.is_waiting(key)
        return _Known(question, key, None, refused, n_unreadable, is_waiting)

    def _read_all(self, question: Question, key: str) -> list[tuple[Attempt, Reading]]:
        received = [each for each in self.journal.attempts(key) if each.state == "received"]
        return [(attempt, self._read(attempt, question)) for attempt in received]

    def _read(self, attempt: Attempt, question: Question, reply: Reply | None = None) -> Reading:
        """Return what the reply of an attempt says, read once."""
        at = attempt.key, attempt.number
        if at not in self._readings:
            reply = reply or self.journal.reply(attempt)
            assert reply is not None
            assert self._way is not None
            source = self._sources[question.row]
            self._readings[at] = read_answer(self._way, self.means.questioner.guideline, reply.body, source)
        return self._readings[at]

    # --- asking -------------------------------------------------------------------------------------------------------

    def _ask_batches(self, rows: dict[str, list[_Known]], report: Callable[[int], None]) -> dict[str, list[_Known]]:
        """Ask the open questions in batches, note those that are given up, and return the rows as they stand then."""
        while True:
            reasons = {key: why for key in _open_ones(rows) if (why := self._batches.given_up(key)) is not None}
            self.journal.refuse(self.order.id, reasons)
            rows = self._again(rows)
            report(sum(all(known.is_finished for known in each) for each in rows.values()))
            due = [[(known.key, known.question) for known in each if known.is_open] for each in rows.values()]
            if not self._batches.ask([each for each in due if each], self.allowance):
                return rows

    def _ask(self, rows: Mapping[str, Sequence[_Known]], report: Callable[[int], None]) -> None:
        """Ask the questions that are open, and note those that are given up."""
        every = [known for each in rows.values() for known in each]
        open_ones = [known for known in every if known.is_open]
        left = Counter(known.question.row for known in open_ones)
        n_rows, n_seen = len(rows) - len(left), 0
        report(n_rows)
        if not open_ones:
            return
        # Rows with the same text are one question: it is asked once.
        dues: dict[str, Due] = {}
        rows_of: dict[str, list[str]] = {}
        for known in open_ones:
            most = self.means.prices.most(known.question.most)
            dues.setdefault(known.key, Due(known.key, known.question, most, known.n_unreadable))
            rows_of.setdefault(known.key, []).append(known.question.row)

        def progress(schedule: Schedule) -> None:
            nonlocal n_rows, n_seen
            finished = [row for key in schedule.finished[n_seen:] for row in rows_of[key]]
            n_seen = len(schedule.finished)
            left.subtract(finished)
            n_rows += sum(left[row] == 0 for row in set(finished))
            report(n_rows)

        n_received = sum(known.reading is not None or known.n_unreadable > 0 for known in every)
        asking = self._asking(self._appraised, DEFAULT_FATAL)
        schedule = asking.ask(list(dues.values()), self.allowance, n_received, progress)
        self.journal.refuse(self.order.id, schedule.refused)

    def _asking(self, appraise: Callable[[Attempt, Question, Reply], Settled], fatal: Fatal) -> Asking:
        means = self.means
        retries = Retries(means.options.retries, means.options.unreadable_retries)
        return Asking(
            means.connect(),
            self.journal,
            self.order.id,
            means.limits,
            appraise,
            means.options.concurrency,
            retries,
            means.tell,
            means.clock,
            random.Random(),
            fatal,
        )

    def _appraised(self, attempt: Attempt, question: Question, reply: Reply) -> Settled:
        return self._worth(attempt, question, reply, self._read(attempt, question, reply))

    def _worth(self, attempt: Attempt, question: Question, reply: Reply, reading: Reading | None) -> Settled:
        prices, most = self.means.prices, question.most
        usage = believed_usage(reply.body, most, prices)
        usd = prices.most(most) if usage is None else prices.cost(usage)
        self._bills.note(attempt, usd)
        n_tokens = n_of(usage or most)
        if reading is None:
            return Settled(usd, n_tokens)
        return Settled(usd, n_tokens, None if reading.label is not None else reading.problem, reading.declined)

    # --- what came ----------------------------------------------------------------------------------------------------

    def _delivery(self, rows: Mapping[str, Sequence[_Known]]) -> Delivery:
        bill = self._bills.of(self.order.id)
        results, answers, left = [], [], []
        for row in self.order.rows:
            known = [self._known(each.question, each.key) for each in rows.get(row, ())]
            left += [each.key for each in known if not each.is_finished]
            label = refused = None
            if known and all(each.is_finished for each in known):
                readings = [each.reading or Reading(None, each.refused) for each in known]
                agreed = agree(readings, self.means.questioner.guideline.labels)
                label, refused = agreed.label, None if agreed.label is not None else agreed.problem
            if label is not None or refused is not None or row in bill:
                results.append(RowResult(row, label, refused, bill.get(row, Fraction(0))))
            answers += self._answers(known)
        paid = self._bills.paid_by(self.order.id) * MICROS_PER_USD
        micros = -(-paid.numerator // paid.denominator)
        waits_for = self._batches.waits_for(left)
        return Delivery(self.order.id, tuple(results), tuple(answers), micros, waits_for=waits_for)

    def _answers(self, known: Sequence[_Known]) -> list[Answer]:
        """Return the answers to a row, in the order in which they came."""
        pairs = [pair for each in known for pair in self._read_all(each.question, each.key)]
        pairs.sort(key=lambda pair: pair[0].place)
        found = []
        for attempt, reading in pairs:
            row = known[0].question.row
            found.append(
                Answer(
                    row,
                    self.means.options.model,
                    reading.text,
                    reading.label,
                    attempt.seconds,
                    reading.confidence,
                    reading.probabilities,
                )
            )
        return found


def _tells(probe: Probe, reply: Reply) -> bool:
    """Return whether a reply is one of the endpoint's, and not a page, a piece or an empty answer that chance put there."""
    if probe.path == PATHS["chat"]:
        return choice_of(reply.body)[1] is not None
    return usage_of(reply.body) is not None
