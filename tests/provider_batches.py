"""Files and batches of a provider: what no server on a machine of one's own has."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from tests.provider_faults import DOCUMENT, refused, spoil
from tests.provider_http import Asked, Refusal, Reply, form_parts, json_reply
from tests.scripted_model import Body, Usage, draw

ENDPOINT = "/v1/chat/completions"
MAX_FILE_BYTES = 512_000_000


@dataclass(frozen=True)
class Batching:
    """How batches go.

    Args:
        polls: Times a batch is asked for until it is done; the work is done at the last.
        expired: Share of requests that come too late; ``failed``: those that end with an error. Neither is billed.
        outcomes: What becomes of a request by its custom id, in place of chance: ``expired``, ``failed``, or a fault that leaves
            an answer, as ``content_null``.
        invalid: Whether all files are turned down.
        seed: Of the draws, and of the order of the answers.
        max_requests: Requests of a batch; ``max_bytes``: bytes of its file.
    """

    polls: int = 2
    expired: float = 0.0
    failed: float = 0.0
    outcomes: Mapping[str, str] = field(default_factory=dict)
    invalid: bool = False
    seed: int = 0
    max_requests: int = 50_000
    max_bytes: int = 200_000_000

    def __post_init__(self) -> None:
        if unknown := set(self.outcomes.values()) - {"expired", "failed", *DOCUMENT}:
            raise ValueError(f"no such outcomes: {', '.join(sorted(unknown))}")

    def outcome(self, custom_id: str) -> str | None:
        """Outcome of one request; ``None``: a good answer."""
        if custom_id in self.outcomes:
            return self.outcomes[custom_id]
        share = draw(self.seed, custom_id).random()
        return "expired" if share < self.expired else "failed" if share < self.expired + self.failed else None


@dataclass
class Batch:
    """A batch as the provider keeps it."""

    id: str
    input_file_id: str
    endpoint: str
    metadata: Mapping[str, str] | None
    created_at: int
    status: str = "validating"
    polls: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    usd: Fraction = Fraction()

    @property
    def is_over(self) -> bool:
        return self.status in ("completed", "expired", "failed", "cancelled")

    def fail(self, code: str, message: str, line: int | None = None) -> None:
        """Note why the file is turned down."""
        self.errors.append({"code": code, "line": line, "message": message, "param": None})

    def to_json(self) -> dict[str, Any]:
        at = self.created_at
        times = {name: at if self.status == name else None for name in ("completed", "expired", "failed", "cancelled")}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": at,
            "in_progress_at": None if self.status == "validating" else at,
            "expires_at": at + 86_400,
            **{f"{name}_at": moment for name, moment in times.items()},
            "request_counts": {name: self.counts[name] for name in ("total", "completed", "failed")},
            "metadata": self.metadata,
        }


@dataclass(frozen=True)
class File:
    """A file that was uploaded or written by a batch."""

    id: str
    name: str
    purpose: str
    content: bytes
    created_at: int

    def to_json(self) -> dict[str, Any]:
        kept = {"id": self.id, "filename": self.name, "purpose": self.purpose, "created_at": self.created_at}
        return {**kept, "object": "file", "bytes": len(self.content), "status": "processed"}


class _Kept(Protocol):
    @property
    def id(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...


Work = Callable[[Body], Awaitable[tuple[Reply, "Usage | None"]]]
Bill = Callable[[Usage, "str | None", str], Fraction]


class BatchDesk:
    """Keeps files and batches: ``work`` answers one request, ``bill`` books it and says its dollars."""

    def __init__(self, batching: Batching, new_id: Callable[[str], str], work: Work, bill: Bill) -> None:
        self.files: dict[str, File] = {}
        self.batches: dict[str, Batch] = {}
        self.batching, self._new_id, self._work, self._bill = batching, new_id, work, bill

    async def handle(self, asked: Asked, query: Mapping[str, str]) -> Reply:
        """Answer a request about files or batches."""
        match (asked.method, *asked.path.strip("/").split("/")):
            case ("POST", "files"):
                return json_reply(self._upload(asked).to_json())
            case ("GET", "files"):
                return _page(list(self.files.values()), query)
            case ("GET", "files", name):
                return json_reply(_find(self.files, name).to_json())
            case ("GET", "files", name, "content"):
                return Reply(200, _find(self.files, name).content, {"Content-Type": "application/octet-stream"})
            case ("DELETE", "files", name):
                _find(self.files, name)
                del self.files[name]
                return json_reply({"id": name, "object": "file", "deleted": True})
            case ("POST", "batches"):
                return json_reply(self._create(asked).to_json())
            case ("GET", "batches"):
                return _page(list(self.batches.values()), query)
            case ("GET", "batches", name):
                return json_reply((await self._poll(_find(self.batches, name))).to_json())
            case ("POST", "batches", name, "cancel"):
                batch = _find(self.batches, name)
                batch.status = batch.status if batch.is_over else "cancelled"
                return json_reply(batch.to_json())
        raise Refusal(404, "not_found", f"Invalid URL ({asked.method} /v1{asked.path})")

    def _keep(self, name: str, purpose: str, content: bytes) -> File:
        kept = File(self._new_id("file-"), name, purpose, content, int(time.time()))
        self.files[kept.id] = kept
        return kept

    def _upload(self, asked: Asked) -> File:
        parts = form_parts(asked.headers.get("content-type", ""), asked.body)
        if "file" not in parts or "purpose" not in parts:
            raise Refusal(400, "missing_required_parameter", "a file and its purpose are needed")
        name, content = parts["file"]
        if len(content) > MAX_FILE_BYTES:
            raise Refusal(413, "file_too_large", "Maximum file size exceeded")
        return self._keep(name or "upload", parts["purpose"][1].decode(), content)

    def _create(self, asked: Asked) -> Batch:
        body = asked.json
        given = _find(self.files, body.get("input_file_id", ""))
        if given.purpose != "batch" or body.get("completion_window") != "24h":
            raise Refusal(400, "invalid_value", "a batch takes a file of purpose 'batch' and the window '24h'")
        if body.get("endpoint") != ENDPOINT:
            raise Refusal(400, "invalid_value", f"no batches of {body.get('endpoint')}", "endpoint")
        metadata = body.get("metadata") or {}
        if len(metadata) > 16 or any(len(name) > 64 or len(value) > 512 for name, value in metadata.items()):
            raise Refusal(400, "invalid_value", "metadata: up to 16 pairs of 64 and 512 characters", "metadata")
        batch = Batch(self._new_id("batch_"), given.id, ENDPOINT, body.get("metadata"), int(time.time()))
        self.batches[batch.id] = batch
        return batch

    async def _poll(self, batch: Batch) -> Batch:
        batch.polls += 1
        if batch.polls >= self.batching.polls:
            await self.finish(batch)
        elif not batch.is_over:
            batch.status = "in_progress"
        return batch

    async def finish(self, batch: Batch) -> None:
        """Do the work of a batch, unless it is done or being done."""
        if batch.is_over or batch.status == "finalizing":
            return
        batch.status = "finalizing"
        requests = self._requests_of(batch)
        if batch.errors:
            batch.status = "failed"
            return
        answers = [await self._answer(batch, line) for line in requests]
        # The order of answers is not that of the requests.
        draw(self.batching.seed, batch.id).shuffle(answers)
        outputs = [each for each in answers if (each["response"] or {}).get("status_code") == 200]
        errors = [each for each in answers if (each["response"] or {}).get("status_code") != 200]
        batch.counts.update(total=len(answers), completed=len(outputs), failed=len(errors))
        if outputs:
            batch.output_file_id = self._keep(f"{batch.id}_output.jsonl", "batch_output", json_lines(outputs)).id
        if errors:
            batch.error_file_id = self._keep(f"{batch.id}_error.jsonl", "batch_output", json_lines(errors)).id
        batch.status = "expired" if any(each["error"] for each in errors) else "completed"

    def _requests_of(self, batch: Batch) -> list[dict[str, Any]]:
        limits, content = self.batching, self.files[batch.input_file_id].content
        requests: list[dict[str, Any]] = []
        seen: set[str] = set()
        for number, text in enumerate(content.splitlines(), 1):
            try:
                line = json.loads(text)
                is_fine = line["method"] == "POST" and line["url"] == batch.endpoint and isinstance(line["body"], dict)
                is_new = line["custom_id"] not in seen
            except (ValueError, KeyError, TypeError):
                line, is_fine, is_new = {"custom_id": ""}, False, True
            if not (is_fine and is_new):
                code = "invalid_json_line" if not is_fine else "duplicate_custom_id"
                batch.fail(code, f"{code} on line {number}", number)
            seen.add(line["custom_id"])
            requests.append(line)
        if not requests or len(requests) > limits.max_requests or len(content) > limits.max_bytes or limits.invalid:
            batch.fail("invalid_batch", f"{len(requests)} requests of {len(content)} bytes were turned down")
        return requests

    async def _answer(self, batch: Batch, line: Mapping[str, Any]) -> dict[str, Any]:
        custom_id = line["custom_id"]
        found = {"id": self._new_id("batch_req_"), "custom_id": custom_id, "response": None, "error": None}
        outcome = self.batching.outcome(custom_id)
        if outcome == "expired":
            message = "This request could not be executed before the completion window expired."
            return found | {"error": {"code": "batch_expired", "message": message}}
        usage = None
        if outcome == "failed":
            status, _, answer = refused("500")
        else:
            try:
                reply, usage = await self._work(line["body"])
            except Refusal as refusal:
                reply = refusal.reply
            status, answer = reply.status, reply.body
        if usage is not None:
            batch.usd += self._bill(usage, outcome, custom_id)
            answer = answer if outcome is None else spoil(outcome, answer, None)
        response = {"status_code": status, "request_id": self._new_id("req_batch_"), "body": json.loads(answer)}
        return found | {"response": response}


def json_lines(documents: Iterable[object]) -> bytes:
    """Write documents, one a line."""
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


def _find(kept: Mapping[str, Any], name: str) -> Any:
    if name not in kept:
        raise Refusal(404, "not_found", f"No such object: {name}")
    return kept[name]


def _page(kept: Sequence[_Kept], query: Mapping[str, str]) -> Reply:
    """A page, newest first: ``limit`` of those that come ``after`` one."""
    newest = kept[::-1]
    names = [each.id for each in newest]
    start = names.index(query["after"]) + 1 if query.get("after") in names else 0
    end = start + int(query.get("limit", 20))
    ends = {"first_id": names[start], "last_id": names[min(end, len(names)) - 1]} if names[start:end] else {}
    shown = [each.to_json() for each in newest[start:end]]
    return json_reply({"object": "list", "data": shown, "has_more": end < len(names), **ends})
