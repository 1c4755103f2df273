"""Questions asked in batches: files that a provider answers within a day, at half the price.

A batch has a name that its requests decide. They are in the journal under it before the file is uploaded, and the batch carries
it in its metadata, so whichever moment a process dies at, the next one finds at the provider what there is: a batch by its name,
a file without a batch by its file name. Nothing is made twice.

What a batch may cost is taken from the allowance before its file leaves. A request that got no answer in a batch that is over was
not billed, and is asked again in another; one whose answer the provider has lost is booked at its worst case.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import IO, TypeVar

from outlay.errors import SellerError
from outlay.labels.allowance import Allowance
from outlay.labels.llm.asking import Clock
from outlay.labels.llm.batch_wire import NAME, BatchEndpoint, BatchState
from outlay.labels.llm.journal import Attempt, Journal
from outlay.labels.llm.limits import retry_after
from outlay.labels.llm.reading import error_of
from outlay.labels.llm.schedule import BUSY, DEFAULT_FATAL, LONG_WAIT, N_ALIKE, Retries
from outlay.labels.llm.wire import MAX_ERROR_BYTES, Exchange, Failed, Lost, Question, Received
from outlay.money.prices.tokens import TokenPrices
from outlay.storage.hashing import canonical_json, key_of
from outlay.text.durations import SECONDS_PER_DAY, duration
from outlay.text.json_text import BadJson, parse_json

T = TypeVar("T")

MAX_REQUESTS = 50_000
"""Requests of a batch."""
MAX_BYTES = 200_000_000
"""Bytes of its file."""
NEVER_LEFT = "the process ended before the batch left"
FULL = ("token_limit_exceeded", "batch_queue_full")
"""Codes of a batch that is turned down since others of the same customer are waiting."""
_LOOK_BACK = 7 * SECONDS_PER_DAY
"""Seconds before now, or before a batch was written down, down to which the provider's lists are read."""
_LINES_AT_ONCE = 1000
_ABSENT = frozenset({404, 405, 410, 501})
"""Statuses of an endpoint without batches, and of a batch or a file that is gone."""


@dataclass
class Batches:
    """The batches of one journal, as one order sees them.

    ``prices``: those of batches; ``connect`` opens the endpoint, where there is something to ask it.
    """

    journal: Journal
    order: str
    prices: TokenPrices
    connect: Callable[[], BatchEndpoint]
    retries: Retries
    tell: Callable[[str], None]
    clock: Clock = field(default_factory=Clock)
    rng: random.Random = field(default_factory=random.Random)
    _here: dict[str, BatchState] = field(default_factory=dict)
    _full: str = ""

    def look(self) -> None:
        """Ask after every batch of which nothing is known yet, and keep the answers of those that are over.

        Raises:
            SellerError: the endpoint cannot be asked, or turned down all that it was asked in a batch.
        """
        names = self.journal.open_batches
        known = {name: self.journal.batch_id(name) for name in names}
        missing = [name for name, batch in known.items() if batch is None]
        found = self._found(missing)
        for name, batch in known.items():
            state = found.get(name) if batch is None else self._retrieved(batch)
            if batch is not None and state is None:
                self._end_rest(name, Lost(f"the provider does not know batch {batch} any more"))
            elif state is not None:
                self._keep(name, state)

    def is_waiting(self, key: str) -> bool:
        """Return whether a question is in a batch that is being answered."""
        return any(each.is_under_way and each.batch in self._here for each in self.journal.attempts(key))

    def given_up(self, key: str) -> str | None:
        """Return why a question of the order is not asked in a batch again; ``None`` where it is."""
        tries = [each for each in self.journal.attempts(key) if each.batch and each.order == self.order]
        tries = [each for each in tries if each.state in ("failed", "lost") and not _is_no_try(each)]
        if tries and self._is_refusal(tries[-1]):
            return tries[-1].why
        return f"{tries[-1].why} ({len(tries)} times)" if len(tries) > self.retries.failures else None

    def resume(self, questions: Mapping[str, Question], *, may_ask: bool) -> bool:
        """Go on with what a process left between writing a batch down and making it: with its file, where that was uploaded.

        ``questions``: the open ones by key. Returns whether there was anything: then other questions are open than before.
        """
        was_left = False
        for name in self.journal.open_batches:
            attempts = self.journal.batch(name)
            if name in self._here or attempts[0].order != self.order:
                continue
            was_left = True
            asked = [questions[each.key] for each in attempts if each.key in questions]
            if may_ask and len(asked) == len(attempts):
                with _written(attempts, asked) as content:
                    file = self._found_file(name, content)
                if file:
                    self._make(name, file, asked[0].path)
                    continue
            self._end_rest(name, Failed(NEVER_LEFT))
        return was_left

    def ask(self, rows: Sequence[Sequence[tuple[str, Question]]], allowance: Allowance) -> bool:
        """Make batches of the questions of rows, each by key, as far as the allowance pays for the worst case of whole rows.

        Returns whether answers were there at once: from a batch that was made before the journal was lost.
        """
        came_at_once = False
        for pack in self._packs(rows, allowance):
            name = key_of([self.order, [[key, len(self.journal.attempts(key))] for key, _ in pack]])[:32]
            requests = [(key, question.row, question.most) for key, question in pack]
            attempts = self.journal.send_batch(requests, self.order, name)
            questions = [question for _, question in pack]
            # One of this name is there where the journal was lost.
            if (state := self._found([name]).get(name)) is not None:
                self._keep(name, state)
                came_at_once = came_at_once or state.is_over
                continue
            with _written(attempts, questions) as content:
                file = self._uploaded(name, content)
            self._make(name, file, questions[0].path)
        return came_at_once

    def waits_for(self, keys: Sequence[str]) -> str | None:
        """Return one line on the batches that open questions wait for; ``None`` where they wait for none."""
        names = {each.batch for key in keys for each in self.journal.attempts(key) if each.is_under_way}
        states = [state for name, state in self._here.items() if name in names]
        if not states and not (keys and self._full):
            return None
        parts = []
        if len(states) == 1:
            parts.append(f"batch {states[0].id}")
        elif states:
            parts.append(f"{len(states):,} batches")
        if states:
            n = sum(state.n or len(self.journal.batch(name)) for name, state in self._here.items() if name in names)
            parts[0] += f", {sum(state.n_answered for state in states):,} of {n:,} answered"
        if self._full:
            parts.append(f"the provider has no room for more ({self._full})")
        return f"{'; '.join(parts)}; it is looked at again when the same command runs"

    # --- what came ----------------------------------------------------------------------------------------------------

    def _take_in(self, name: str, state: BatchState) -> None:
        """Keep what a batch that is over has answered, and what became of the rest."""
        open_ones = {each.key: each for each in self.journal.batch(name) if each.is_under_way}
        rest: Exchange = Lost(f"batch {state.id} has no answer to it")
        if state.status == "failed":
            rest = Failed(f"batch {state.id} was turned down: {state.why or 'without a reason'}")
            self._full = state.why if any(code in state.why for code in FULL) else self._full
        elif state.status != "completed":
            rest = Failed(f"batch {state.id} {_how(state)} before it was answered")
        for file in state.outputs:
            lines = self._patiently(lambda file=file: self.connect().download(file))  # type: ignore[misc]
            if isinstance(lines, Failed | Lost):
                rest = Lost(f"the provider does not have the answers of batch {state.id} any more")
                continue
            ends: list[tuple[Attempt, Exchange]] = []
            for key, exchange in map(self._read, lines):
                attempt = open_ones.pop(key, None)
                ends += [] if attempt is None else [(attempt, exchange)]
                if len(ends) >= _LINES_AT_ONCE:
                    self.journal.end(ends)
                    ends = []
            if ends:
                self.journal.end(ends)
        self._end_rest(name, rest)
        self._check(name, state)

    def _read(self, line: bytes) -> tuple[str, Exchange]:
        """Return the key of a line of answers, and what came; "" for a line that is none."""
        try:
            document = parse_json(line.decode())
            key, response, error = (document.get(part) for part in ("custom_id", "response", "error"))
            if error is None and response["status_code"] == 200:
                return str(key), Received(200, _dumped(response["body"]), 0.0)
            if error is None:
                body, status = _dumped(response["body"]), int(response["status_code"])
                return str(key), Failed(f"status {status}: {error_of(body)}", status, "", body[:MAX_ERROR_BYTES])
            body = _dumped({"error": error})
            return str(key), Failed(error_of(body), None, "", body[:MAX_ERROR_BYTES])
        except (BadJson, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError):
            return "", Lost("")

    def _end_rest(self, name: str, exchange: Exchange) -> None:
        rest = [each for each in self.journal.batch(name) if each.is_under_way]
        if rest:
            self.journal.end([(attempt, exchange) for attempt in rest])

    def _check(self, name: str, state: BatchState) -> None:
        """Refuse to go on where every request of a batch was refused: the endpoint is the reason, not the rows."""
        attempts = self.journal.batch(name)
        if attempts[0].order == self.order and self._all_refused(name):
            why = attempts[-1].why
            raise SellerError(
                f"the endpoint refuses all {len(attempts):,} requests of batch {state.id}: {why}; nothing is lost: put it right, "
                "then run again"
            )

    def _is_refusal(self, attempt: Attempt) -> bool:
        """Return whether the endpoint refused this request, and would again."""
        return self._has_refused(attempt) and not self._all_refused(attempt.batch)

    def _all_refused(self, name: str) -> bool:
        attempts = self.journal.batch(name)
        return len(attempts) >= N_ALIKE and all(map(self._has_refused, attempts))

    def _has_refused(self, attempt: Attempt) -> bool:
        reply = self.journal.reply(attempt) if attempt.state == "failed" else None
        return reply is not None and 400 <= reply.status < 500 and reply.status not in BUSY

    # --- making -------------------------------------------------------------------------------------------------------

    def _packs(
        self, rows: Sequence[Sequence[tuple[str, Question]]], allowance: Allowance
    ) -> Iterator[list[tuple[str, Question]]]:
        """Return questions by batches within the limits of size, whose worst case is taken from the allowance."""
        pack: list[tuple[str, Question]] = []
        n_bytes, seen = 0, set[str]()
        for asked in () if self._full else rows:
            row = [each for each in asked if each[0] not in seen]  # rows of the same text are one question
            sizes = [len(_line(key, question)) for key, question in row]
            if not allowance.take(sum((self.prices.most(question.most) for _, question in row), Fraction(0))):
                break
            seen |= {key for key, _ in row}
            if pack and (len(pack) + len(row) > MAX_REQUESTS or n_bytes + sum(sizes) > MAX_BYTES):
                yield pack
                pack, n_bytes = [], 0
            pack += row
            n_bytes += sum(sizes)
        if pack:
            yield pack

    def _make(self, name: str, file: str, path: str) -> None:
        """Make a batch of a file that is uploaded; where the answer is lost, look whether it is there."""
        metadata = {NAME: name, "outlay_order": self.order[:64]}
        state = self._patiently(
            lambda: self.connect().create(file, path, metadata), lambda: self._found([name]).get(name)
        )
        self._keep(name, _fine(state, "make a batch"))

    def _keep(self, name: str, state: BatchState) -> None:
        if self.journal.batch_id(name) is None:
            self.journal.name_batch(name, state.id)
        if state.is_over:
            self._take_in(name, state)
        else:
            self._here[name] = state

    def _uploaded(self, name: str, content: IO[bytes]) -> str:
        file = self._patiently(
            lambda: self.connect().upload(_file_name(name), content), lambda: self._found_file(name, content) or None
        )
        return _fine(file, "upload a file of requests")

    # --- looking ------------------------------------------------------------------------------------------------------

    def _found(self, names: Sequence[str]) -> dict[str, BatchState]:
        if not names:
            return {}
        found = self._patiently(lambda: self.connect().find_batches(names, self._since(names)))
        return {} if isinstance(found, Failed) else found

    def _found_file(self, name: str, content: IO[bytes]) -> str:
        n_bytes = content.seek(0, 2)
        found = self._patiently(lambda: self.connect().find_file(_file_name(name), n_bytes, self._since([name])))
        return "" if isinstance(found, Failed) else found

    def _since(self, names: Sequence[str]) -> float:
        """Return the time down to which lists are read: a name may be older where the journal was lost."""
        return min(self.journal.batch(name)[0].at for name in names) - _LOOK_BACK

    def _retrieved(self, batch: str) -> BatchState | None:
        state = self._patiently(lambda: self.connect().retrieve(batch))
        return None if isinstance(state, Failed | Lost) else state

    def _patiently(
        self, call: Callable[[], T | Failed | Lost], is_there: Callable[[], T | None] = lambda: None
    ) -> T | Failed:
        """Make a call until it succeeds, or return that what it asks for is not there.

        ``is_there``: what the call would have made, where it was made and only the answer was lost.

        Raises:
            SellerError: the endpoint refuses, or fails too often.
        """
        n_failures = 0
        while True:
            got = call()
            if not isinstance(got, Failed | Lost):
                return got
            if isinstance(got, Failed):
                if got.status in _ABSENT:
                    return got
                is_busy = got.status is None or got.status in BUSY or got.status >= 500
                if not is_busy or got.code in DEFAULT_FATAL.codes:
                    raise SellerError(f"the endpoint refuses: {got.why}; nothing is lost: put it right, then run again")
            if n_failures >= self.retries.failures:
                again = f"({n_failures + 1} times); nothing is lost: run again later"
                raise SellerError(f"the endpoint does not answer about batches: {got.why} {again}")
            asked = retry_after(got.headers, self.clock.wall()) if isinstance(got, Failed) else None
            wait = max(asked or 0.0, self.retries.wait(n_failures, self.rng))
            if wait >= LONG_WAIT:
                self.tell(f"the endpoint asks to wait {duration(wait)} ({got.why}); nothing is lost meanwhile")
            self.clock.sleep(wait)
            n_failures += 1
            if (there := is_there()) is not None:
                return there


def _fine(came: T | Failed, what: str) -> T:
    if isinstance(came, Failed):
        raise SellerError(f"the endpoint does not {what} ({came.why}); choose tier standard")
    return came


def _how(state: BatchState) -> str:
    return "was cancelled" if state.status == "cancelled" else state.status


def _is_no_try(attempt: Attempt) -> bool:
    """Return whether an attempt failed before the provider had tried: it never left, or there was no room."""
    return attempt.why == NEVER_LEFT or any(code in attempt.why for code in FULL)


def _file_name(name: str) -> str:
    return f"outlay-{name}.jsonl"


def _dumped(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _line(key: str, question: Question) -> bytes:
    request = {"custom_id": key, "method": "POST", "url": f"/v1{question.path}", "body": question.body}
    return canonical_json(request).encode() + b"\n"


def _written(attempts: Sequence[Attempt], questions: Sequence[Question]) -> IO[bytes]:
    """Return a file without a name that holds requests, one a line."""
    content = tempfile.TemporaryFile()  # noqa: SIM115
    for attempt, question in zip(attempts, questions, strict=True):
        content.write(_line(attempt.key, question))
    return content
