"""Files and batches of an endpoint, by the client of `openai`: each call is made once, and raises for nothing a server does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from outlay.labels.llm.wire import MAX_BODY_BYTES, Endpoint, Failed, Lost

T = TypeVar("T")

NAME = "outlay_batch"
"""Key in a batch's metadata: the name that it was given here."""
OVER = frozenset({"completed", "expired", "failed", "cancelled"})
"""States of a batch in which nothing more will come."""
SLOW_SECONDS = 600.0
"""Seconds that a file of 200 MB may take on its way."""
_PAGE = 100


@dataclass(frozen=True, slots=True)
class BatchState:
    """What a provider says of a batch.

    ``n_answered`` of ``n`` requests have an answer; ``outputs``: ids of the files with answers and errors; ``why``: codes and
    reasons where the whole file was turned down.
    """

    id: str
    status: str
    n_answered: int = 0
    n: int = 0
    outputs: tuple[str, ...] = ()
    why: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in OVER


class BatchEndpoint(Endpoint):
    """An endpoint that takes files of requests.

    A call returns what came, `Failed` where the endpoint answered with an error or was not reached, `Lost` where no whole answer
    came: the file or the batch may be there.
    """

    def upload(self, name: str, content: IO[bytes]) -> str | Failed | Lost:
        """Upload a file of requests under a name, and return its id."""

        def upload() -> str:
            content.seek(0)
            file = self._client.files.create(
                file=(name, content, "application/jsonl"), purpose="batch", timeout=max(self._timeout, SLOW_SECONDS)
            )
            return str(file.id)

        return self._call(upload)

    def create(self, file: str, path: str, metadata: Mapping[str, str]) -> BatchState | Failed | Lost:
        """Have the requests of a file answered within a day."""

        def create() -> BatchState:
            endpoint: Any = f"/v1{path}"
            return self._state(
                self._client.batches.create(
                    input_file_id=file, endpoint=endpoint, completion_window="24h", metadata=dict(metadata)
                )
            )

        return self._call(create)

    def retrieve(self, batch: str) -> BatchState | Failed | Lost:
        """Return the state of a batch."""
        return self._call(lambda: self._state(self._client.batches.retrieve(batch)))

    def find_batches(self, names: Collection[str], since: float) -> dict[str, BatchState] | Failed | Lost:
        """Return the batches that carry one of some names in their metadata, by name.

        ``since``: seconds since 1970; older ones are not looked at.
        """

        def find() -> dict[str, BatchState]:
            found: dict[str, BatchState] = {}
            for batch in _newer(self._client.batches.list(limit=_PAGE), since):
                name = (batch.metadata or {}).get(NAME, "")
                if name in names:
                    found.setdefault(name, self._state(batch))
                    if len(found) == len(names):
                        break
            return found

        return self._call(find)

    def find_file(self, name: str, n_bytes: int, since: float) -> str | Failed | Lost:
        """Return the id of an uploaded file of a name and a size; "" where there is none."""

        def find() -> str:
            files = _newer(self._client.files.list(purpose="batch", limit=_PAGE), since)
            return next((str(file.id) for file in files if (file.filename, file.bytes) == (name, n_bytes)), "")

        return self._call(find)

    def download(self, file: str) -> Iterator[bytes] | Failed | Lost:
        """Return the answers in a file, one a line, once it is here whole; stars for the API key, should a server repeat it."""

        def download() -> IO[bytes]:
            kept = tempfile.TemporaryFile()  # noqa: SIM115
            try:
                with self._client.files.with_streaming_response.content(
                    file, timeout=max(self._timeout, SLOW_SECONDS)
                ) as response:
                    for chunk in response.iter_bytes():
                        kept.write(chunk)
                _check_answers(kept)
            except BaseException:
                kept.close()
                raise
            return kept

        came = self._call(download)
        return came if isinstance(came, Failed | Lost) else self._lines(came)

    def _state(self, batch: Any) -> BatchState:
        counts = batch.request_counts
        errors = (batch.errors.data if batch.errors else None) or []
        said = dict.fromkeys(" ".join(f"{error.code or ''}: {error.message or ''}".split()) for error in errors)
        files = (batch.output_file_id, batch.error_file_id)
        return BatchState(
            id=str(batch.id),
            status=str(batch.status),
            n_answered=(counts.completed or 0) if counts else 0,
            n=(counts.total or 0) if counts else 0,
            outputs=tuple(file for file in files if file),
            why=self._key.scrub("; ".join(list(said)[:3])),
        )

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        with file:
            for line in file:
                yield self._key.scrub_bytes(line)

    def _call(self, call: Callable[[], T]) -> T | Failed | Lost:
        import openai

        try:
            return call()
        except openai.APIStatusError as error:
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            return self._refused(error.status_code, error.response.content, headers)
        except openai.APIConnectionError as error:
            return self._broken(error)
        except Exception as error:  # a page in place of an object, a file cut short
            return Lost(f"no reply that can be read: {type(error).__name__}")


def _check_answers(file: IO[bytes]) -> None:
    """Raise ValueError for a file whose first or last line is no answer: a page in its place, or a part of it; rewind it."""
    end = file.seek(0, 2)
    file.seek(0)
    first = file.readline()
    file.seek(max(0, end - MAX_BODY_BYTES))
    *_, last = file.read().rstrip(b"\n").rsplit(b"\n", 1)
    for line in (first, last):
        if "custom_id" not in json.loads(line):
            raise ValueError("no answer to a request of ours")
    file.seek(0)


def _newer(items: Iterable[Any], since: float) -> Iterator[Any]:
    """Return the items of a list, newest first, down to a time."""
    for item in items:
        if item.created_at < since:
            return
        yield item
