"""The journal of an endpoint and a model: what was asked and what came, so that nothing received is ever asked again.

One append-only JSONL file. Before a byte of a request leaves, ``sent`` is on the disk; before a reply is used, ``received``
is, with its bytes as they came. Attempts are numbered by question; each ends as one of

- ``received``: a reply came whole; it is paid for, whether it can be read or not;
- ``failed``: the endpoint answered with an error, or the request never left; nothing is paid;
- ``lost``: sent, and no whole reply came. It may have been billed, so it is booked at its worst case.

What a killed process sent and did not receive is found on opening, and noted as lost, once. ``used`` notes that an order takes
over the attempts that others paid for, ``refused`` that it gives up a question. One process at a time has a journal open for
writing; a line that a crash cut short is dropped.

Threads write at once and wait until their line is durable: whoever finds nobody syncing syncs for all that wait.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any, Literal

from outlay.errors import StoreError
from outlay.labels.llm.wire import Exchange, Failed, Lost, Received, Reply
from outlay.storage.files import refused, sync_folder, writing
from outlay.storage.hashing import key_of

if TYPE_CHECKING:
    from outlay.money.prices.tokens import TokenUsage

State = Literal["sent", "received", "failed", "lost"]
ENDS: tuple[State, ...] = ("received", "failed", "lost")
KILLED = "the process ended before a reply came"
BROKEN = "the journal is closed"


@dataclass(slots=True)
class Attempt:
    """One request of a question: which order paid for it, for which row, and what became of it.

    ``most``: tokens that it is billed at most, by name; ``seconds``: from sending to the last byte of a reply; ``why``: the
    reason of one that failed or is lost; ``batch``: name of the batch that it left in, "" for a request of its own; ``at``: time
    of sending, in seconds since 1970.
    """

    key: str
    number: int
    order: str
    row: str
    most: Mapping[str, int]
    state: State = "sent"
    why: str = ""
    seconds: float = 0.0
    place: tuple[int, int] = (0, 0)
    """Place in the file of the line that ended it: offset and length."""
    batch: str = ""
    at: float = 0.0

    @property
    def is_under_way(self) -> bool:
        """Whether it is in a batch of which nothing is known yet."""
        return self.state == "sent" and bool(self.batch)


class Journal:
    """Record of what one endpoint was asked about one model. Open it with `open_journal`, or `read_journal` to look."""

    def __init__(self, path: Path, file: int, *, writable: bool) -> None:
        self._path = path
        self._file = file
        self._changed = Condition()
        self._queued: list[bytes] = []
        self._n_queued = self._n_durable = 0
        self._syncing = False
        self._broken: str | None = None if writable else "the journal is only read"
        self._orders: dict[str, str] = {}
        self._attempts: dict[str, list[Attempt]] = {}
        self._used: dict[tuple[str, str], tuple[str, int]] = {}
        self._refused: dict[tuple[str, str], str] = {}
        self._batches: dict[str, list[Attempt]] = {}
        self._batch_ids: dict[str, str] = {}
        self._end = self._load(writable)
        self._durable_end = self._end

    def __repr__(self) -> str:
        return f"Journal({str(self._path)!r})"

    def rows_of(self, order: str) -> str | None:
        """Return the digest of the rows of an accepted order; ``None`` for an unknown one."""
        return self._orders.get(order)

    def attempts(self, key: str) -> Sequence[Attempt]:
        """Return the attempts at a question, in the order they were made."""
        return tuple(self._attempts.get(key, ()))

    def bill(self, order: str) -> list[tuple[str, Attempt]]:
        """Return what is billed in an order, each attempt with its row: those that it paid for and those it took over."""
        return [(row, attempt) for row, attempt in self._of(order) if not attempt.is_under_way]

    def under_way(self, order: str) -> list[Attempt]:
        """Return the attempts of an order that are in batches of which nothing is known yet, those that it took over too."""
        return [attempt for _, attempt in self._of(order) if attempt.is_under_way]

    def _of(self, order: str) -> Iterator[tuple[str, Attempt]]:
        for key, attempts in self._attempts.items():
            row, upto = self._used.get((order, key), ("", 0))
            for attempt in attempts:
                if attempt.state != "failed" and (attempt.order == order or attempt.number <= upto):
                    yield (attempt.row if attempt.order == order else row), attempt

    def untaken(self, order: str, key: str) -> list[Attempt]:
        """Return the attempts of others at a question that an order has not taken over, and that are billed."""
        upto = self._used.get((order, key), ("", 0))[1]
        every = self._attempts.get(key, ())
        return [each for each in every if each.order != order and each.number > upto and each.state != "failed"]

    def refusal(self, order: str, key: str) -> str | None:
        """Return why an order will get no answer to a question; ``None`` where it may."""
        return self._refused.get((order, key))

    @property
    def received(self) -> list[Attempt]:
        """Attempts whose replies have come, in the order in which they came."""
        every = (attempt for attempts in self._attempts.values() for attempt in attempts)
        return sorted((each for each in every if each.state == "received"), key=lambda each: each.place)

    def reply(self, attempt: Attempt) -> Reply | None:
        """Return the reply of an attempt, read from the file: an error too; ``None`` where nothing came."""
        offset, length = attempt.place
        record = json.loads(os.pread(self._file, length, offset)) if length else {}
        if "status" not in record:
            return None
        body = base64.b64decode(record["base64"]) if "base64" in record else record["text"].encode()
        return Reply(attempt.key, record["status"], body, record.get("seconds", 0.0))

    def is_changed(self, attempt: Attempt) -> bool:
        """Return whether the bytes of a reply are not those that came; lines of before have no sum to tell by."""
        offset, length = attempt.place
        record = json.loads(os.pread(self._file, length, offset)) if length else {}
        reply = self.reply(attempt)
        return reply is not None and "sum" in record and record["sum"] != _sum(reply.body)

    def batch(self, name: str) -> Sequence[Attempt]:
        """Return the attempts that left in a batch, in the order in which they lie in it."""
        return tuple(self._batches.get(name, ()))

    def batch_id(self, name: str) -> str | None:
        """Return the id that the provider gave a batch; ``None`` where that is not known."""
        return self._batch_ids.get(name)

    @property
    def open_batches(self) -> list[str]:
        """Names of the batches with attempts of which nothing is known yet, oldest first."""
        return [name for name, attempts in self._batches.items() if any(each.is_under_way for each in attempts)]

    # --- writing: each returns when its line is on the disk ------------------------------------------------------------

    def accept(self, order: str, rows: str) -> None:
        """Note an order and the digest of its rows."""
        self._append({"order": order, "rows": rows})
        self._orders[order] = rows

    def send(self, key: str, order: str, row: str, most: TokenUsage) -> Attempt:
        """Note that a question is about to be sent, and return the attempt."""
        with self._changed:
            number = len(self._attempts.get(key, ())) + 1
            attempt = Attempt(key, number, order, row, asdict(most))
            self._attempts.setdefault(key, []).append(attempt)
        self._append(_sent_record(attempt))
        return attempt

    def send_batch(self, requests: Sequence[tuple[str, str, TokenUsage]], order: str, batch: str) -> list[Attempt]:
        """Note that questions are about to be sent in a batch, each by key, row and bound, and return the attempts."""
        now = round(time.time(), 3)
        attempts = [
            Attempt(key, len(self._attempts.get(key, ())) + 1, order, row, asdict(most), batch=batch, at=now)
            for key, row, most in requests
        ]
        self._append_all([_sent_record(attempt) for attempt in attempts])
        for attempt in attempts:
            self._add(attempt)
        return attempts

    def name_batch(self, name: str, provider_id: str) -> None:
        """Note the id that the provider gave a batch."""
        self._append({"batch": name, "id": provider_id})
        self._batch_ids[name] = provider_id

    def receive(self, attempt: Attempt, received: Received) -> Reply:
        """Note what came for an attempt, byte for byte, and return it."""
        self.end([(attempt, received)])
        return Reply(attempt.key, received.status, received.body, received.seconds)

    def fail(self, attempt: Attempt, failed: Failed) -> None:
        """Note that an attempt ended with an error and is not billed, and what the endpoint said."""
        self.end([(attempt, failed)])

    def lose(self, attempt: Attempt, why: str) -> None:
        """Note that an attempt got no whole reply, and may be billed."""
        self.end([(attempt, Lost(why))])

    def end(self, ends: Sequence[tuple[Attempt, Exchange]]) -> None:
        """Note what became of attempts, in one go."""
        places = self._append_all([_end_record(attempt, exchange) for attempt, exchange in ends])
        for (attempt, exchange), place in zip(ends, places, strict=True):
            if isinstance(exchange, Received):
                attempt.place, attempt.state, attempt.seconds = place, "received", exchange.seconds
            else:
                attempt.why = exchange.why
                attempt.place, attempt.state = place, "failed" if isinstance(exchange, Failed) else "lost"

    def take_over(self, order: str, rows: Mapping[str, str]) -> None:
        """Note that an order takes over what others paid for its questions; what is noted already stays.

        ``rows``: the row of each question by key.
        """
        upto = {key: others[-1].number for key in rows if (others := self.untaken(order, key))}
        if upto:
            self._append_all([{"used": key, "n": n, "order": order, "row": rows[key]} for key, n in upto.items()])
        self._used |= {(order, key): (rows[key], n) for key, n in upto.items()}

    def refuse(self, order: str, reasons: Mapping[str, str]) -> None:
        """Note the questions, by key, that an order gives up, each with its reason."""
        if reasons:
            self._append_all([{"refused": key, "order": order, "why": why} for key, why in reasons.items()])
        self._refused |= {(order, key): why for key, why in reasons.items()}

    def close(self) -> None:
        """Close the file; whoever writes later gets a StoreError."""
        with self._changed:
            while self._syncing:
                self._changed.wait()
            self._broken = self._broken or BROKEN
            self._changed.notify_all()
            os.close(self._file)

    def _append(self, record: Mapping[str, object]) -> None:
        self._append_all([record])

    def _append_all(self, records: Sequence[Mapping[str, object]]) -> list[tuple[int, int]]:
        """Write lines, wait until they are durable, and return their places."""
        texts = (json.dumps(each, ensure_ascii=False, separators=(",", ":")) + "\n" for each in records)
        lines = [text.encode("utf-8", "surrogatepass") for text in texts]
        with self._changed:
            self._check()
            ends = list(accumulate(map(len, lines), initial=self._end))
            places = list(zip(ends, map(len, lines), strict=False))
            self._end = ends[-1]
            self._queued.append(b"".join(lines))
            self._n_queued += 1
            mine = self._n_queued
        while not self._is_durable(mine):
            self._sync()
        return places

    def _is_durable(self, number: int) -> bool:
        """Wait for whoever syncs; return whether a line is durable, and take the sync over where it is not."""
        with self._changed:
            while self._syncing and self._n_durable < number:
                self._changed.wait()
            if self._n_durable >= number:
                return True
            self._check()
            self._syncing = True
            return False

    def _check(self) -> None:
        if self._broken is not None:
            raise StoreError(f"cannot write {self._path}: {self._broken}")

    def _sync(self) -> None:
        """Write and sync all that is queued; the lock is free meanwhile, so that more can queue."""
        with self._changed:
            batch, upto, self._queued = b"".join(self._queued), self._n_queued, []
        start = self._durable_end
        failure: BaseException | None = None
        try:
            _write_all(self._file, batch)
            os.fdatasync(self._file)
        except BaseException as error:  # Ctrl-C too: nobody may wait for ever
            failure = error
            with suppress(OSError):
                # Half a line in the middle of the file would be damage; at its end it is dropped.
                os.ftruncate(self._file, start)
        with self._changed:
            self._syncing = False
            if failure is None:
                self._durable_end, self._n_durable = start + len(batch), upto
            else:
                self._broken = getattr(failure, "strerror", None) or "a write was interrupted"
            self._changed.notify_all()
        if isinstance(failure, OSError):
            raise refused(self._path, failure.errno or 0) from failure
        if failure is not None:
            raise failure

    # --- reading ------------------------------------------------------------------------------------------------------

    def _load(self, writable: bool) -> int:
        data = _read_all(self._file)
        end = data.rfind(b"\n") + 1
        if writable and end < len(data):
            os.ftruncate(self._file, end)
        start = 0
        for number, line in enumerate(data[:end].split(b"\n")[:-1], 1):
            try:
                self._take_in(json.loads(line), (start, len(line)))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise StoreError(
                    f"line {number} of {self._path} is damaged; restore the file from a copy, or move it away and pay again "
                    "for what it holds"
                ) from error
            start += len(line) + 1
        return end

    def _take_in(self, record: Mapping[str, Any], place: tuple[int, int]) -> None:
        if "sent" in record:
            attempt = Attempt(record["sent"], record["n"], record["order"], record["row"], record["most"])
            attempt.batch, attempt.at = record.get("batch", ""), record.get("at", 0.0)
            self._add(attempt)
        elif "batch" in record:
            self._batch_ids[record["batch"]] = record["id"]
        elif "used" in record:
            self._used[record["order"], record["used"]] = record["row"], record["n"]
        elif "refused" in record:
            self._refused[record["order"], record["refused"]] = record["why"]
        elif "order" in record:
            self._orders[record["order"]] = record["rows"]
        else:
            (state,) = (name for name in ENDS if name in record)
            attempt = self._attempts[record[state]][record["n"] - 1]
            attempt.state, attempt.why = state, record.get("why", "")
            attempt.place, attempt.seconds = place, record.get("seconds", 0.0)

    def _add(self, attempt: Attempt) -> None:
        attempts = self._attempts.setdefault(attempt.key, [])
        attempts.append(attempt)
        attempts.sort(key=lambda each: each.number)
        if attempt.batch:
            self._batches.setdefault(attempt.batch, []).append(attempt)

    def note_lost(self) -> None:
        """Note every request without an end as lost: the process that sent it is gone. Batches outlive it."""
        every = (each for attempts in self._attempts.values() for each in attempts)
        open_ones = [each for each in every if each.state == "sent" and not each.batch]
        if open_ones:
            self.end([(attempt, Lost(KILLED)) for attempt in open_ones])


def journal_path(folder: Path, base_url: str, model: str) -> Path:
    """Return the journal's file of an endpoint and a model."""
    return folder / f"{key_of([base_url.rstrip('/'), model])[:32]}.jsonl"


def silent(line: str) -> None:
    """Say nothing."""


@contextmanager
def open_journal(path: Path, tell: Callable[[str], None] = silent) -> Iterator[Journal]:
    """Open a journal for writing; while another process has it, wait, and tell so in one line.

    Raises:
        DiskFull: no room.
        StoreError: the file cannot be written, or is damaged.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("another purchase asks the same model; waiting until it is done")
            fcntl.flock(file, fcntl.LOCK_EX)
        if is_new:
            sync_folder(path.parent)
        journal = Journal(path, file, writable=True)
    except BaseException:
        os.close(file)
        raise
    try:
        journal.note_lost()
        yield journal
    finally:
        journal.close()


@contextmanager
def read_journal(path: Path) -> Iterator[Journal]:
    """Open a journal to look at it, without waiting for whoever writes it.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"cannot read the journal {path}: {error.strerror}; check the path") from error
    try:
        journal = Journal(path, file, writable=False)
    except BaseException:
        os.close(file)
        raise
    try:
        yield journal
    finally:
        journal.close()


def _sent_record(attempt: Attempt) -> dict[str, object]:
    record = {"sent": attempt.key, "n": attempt.number, "order": attempt.order, "row": attempt.row}
    batch = {"batch": attempt.batch} if attempt.batch else {}
    return {**record, **batch, "most": attempt.most, "at": attempt.at or round(time.time(), 3)}


def _end_record(attempt: Attempt, exchange: Exchange) -> dict[str, object]:
    if isinstance(exchange, Received):
        head = {"received": attempt.key, "n": attempt.number, "status": exchange.status, "seconds": exchange.seconds}
        return head | {"sum": _sum(exchange.body)} | _written(exchange.body)
    if isinstance(exchange, Failed):
        said = {} if exchange.status is None else {"status": exchange.status, **_written(exchange.body)}
        return {"failed": attempt.key, "n": attempt.number, "why": exchange.why, **said}
    return {"lost": attempt.key, "n": attempt.number, "why": exchange.why}


def _sum(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]


def _written(body: bytes) -> dict[str, object]:
    """Return a body as a line holds it: text where it is UTF-8, so that the file can be read, else base64."""
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _read_all(file: int) -> bytes:
    parts = []
    offset = 0
    while part := os.pread(file, 1 << 24, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
