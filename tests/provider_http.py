"""HTTP of a provider on this machine: a server that can break off in every way that the wire can, and one request to another."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.provider_faults import Manner, error_body
from tests.scripted_model import key_of

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
N_PIECES = 8
"""Pieces in which a slow answer comes."""


@dataclass
class Asked:
    """A request that arrived: ``status`` and ``fault`` as it was answered, ``delivered`` once all of its answer left.

    ``key``: of path and body; ``client_id``: header ``X-Client-Request-Id``; ``connection``: its number, from 0.
    """

    number: int
    method: str
    path: str
    key: str
    client_id: str | None
    connection: int
    status: int | None = None
    fault: str | None = None
    delivered: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """Answer, and the manner of sending it where that is not as it should be."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    manner: Manner | None = None

    @property
    def is_json(self) -> bool:
        return self.headers.get("Content-Type", "application/json").startswith("application/json")


def json_reply(document: object) -> Reply:
    """Answer that all is well."""
    return Reply(200, json.dumps(document).encode())


class Refusal(Exception):
    """An error that the provider answers with."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.reply = Reply(status, error_body(code, message, param=param))


class HttpServer:
    """A server that counts its connections; what it answers is for its heirs to say.

    ``failures``: errors of the server's own, each of which broke off a connection.
    """

    def __init__(self) -> None:
        self.url = ""
        self.connections = self.open_connections = self.most_connections = 0
        self.in_flight = self.most_in_flight = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.failures: list[Exception] = []

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    async def handle(self, asked: Asked, query: Mapping[str, str], authorization: str | None) -> Reply:
        """Answer one request."""
        raise NotImplementedError

    def leaves(self, asked: Asked, whole: bool) -> None:
        """Hear that the last of an answer is about to leave, and whether it is whole and the customer still there."""
        raise NotImplementedError

    async def serve(self, port: int, slow_s: float, ready: Callable[[], None]) -> None:
        """Answer until cancelled; ``slow_s``: seconds that a slow answer takes."""
        running: set[asyncio.Task[None]] = set()

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(reader, writer, slow_s))
            running.add(task)
            task.add_done_callback(running.discard)

        server = await asyncio.start_server(begin, "127.0.0.1", port, limit=1 << 20, backlog=512)
        self.loop = asyncio.get_running_loop()
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready()
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slow_s: float) -> None:
        number = self.connections
        self.connections += 1
        self.open_connections += 1
        self.most_connections = max(self.most_connections, self.open_connections)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(number, reader, writer, slow_s):
                    pass
        except Exception as error:
            self.failures.append(error)
        finally:
            self.open_connections -= 1
            writer.close()

    async def _exchange(
        self, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slow_s: float
    ) -> bool:
        """Read one request and answer it; whether the connection stays."""
        first, headers = _head(await reader.readuntil(b"\r\n\r\n"))
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        authorization = headers.pop("authorization", None)
        method, target, _ = first.split(" ", 2)
        where = urlsplit(target)
        path = where.path.removeprefix("/v1")
        asked = Asked(
            *(-1, method, path, key_of(path, _plain(body)), headers.get("x-client-request-id"), connection),
            headers=headers,
            body=body,
        )
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            query = {name: values[-1] for name, values in parse_qs(where.query).items()}
            reply = await self.handle(asked, query, authorization)
            await self._send(asked, reply, reader, writer, slow_s)
        except BaseException:
            self.leaves(asked, whole=False)
            raise
        finally:
            self.in_flight -= 1
        return asked.delivered and headers.get("connection", "").lower() != "close"

    async def _send(
        self, asked: Asked, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slow_s: float
    ) -> None:
        """Send an answer in its manner. Whoever has got its last byte finds it noted as delivered."""
        n_bytes = len(reply.body)
        headers = {"Content-Type": "application/json", **reply.headers, "Content-Length": str(n_bytes)}
        lines = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Error')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if reply.manner == "slow":
            step = max(1, math.ceil(n_bytes / N_PIECES))
            starts = range(0, n_bytes, step)
            pieces = [head, *(reply.body[start : start + step] for start in starts)]
            for piece in pieces[:-1]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(slow_s / N_PIECES)
            last = pieces[-1]
        else:
            n_sent = {"truncated": len(head) + n_bytes // 2, "stall": len(head), "hang": 0, "reset": 0}
            last = (head + reply.body)[: n_sent.get(reply.manner or "")]
        self.leaves(asked, whole=reply.manner in (None, "slow") and not reader.at_eof())
        if reply.manner == "reset":
            _reset(writer)
            return
        writer.write(last)
        await writer.drain()
        if reply.manner in ("stall", "hang"):
            await reader.read()  # until the customer has had enough


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection by a reset, which loses what is under way."""
    found: socket.socket = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _plain(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return body.hex()


async def post(url: str, body: Mapping[str, Any], key: str | None) -> tuple[int, str, bytes]:
    """Ask another server: status, content type and body."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        content = json.dumps(body).encode()
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        head = (
            f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\n{authorization}Content-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        status, headers = _head(await reader.readuntil(b"\r\n\r\n"))
        answer = await reader.read(-1)
    finally:
        writer.close()
    if headers.get("transfer-encoding") == "chunked":
        answer = b"".join(_chunks(answer))
    return int(status.split(" ", 2)[1]), headers.get("content-type", ""), answer


def _chunks(body: bytes) -> list[bytes]:
    chunks = []
    while body:
        size, _, body = body.partition(b"\r\n")
        n = int(size, 16)
        chunks.append(body[:n])
        body = body[n + 2 :] if n else b""
    return chunks


def _head(raw: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = raw.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines if line)
    return first, {name.strip().lower(): value.strip() for name, value in pairs}


def form_parts(kind: str, body: bytes) -> dict[str, tuple[str | None, bytes]]:
    """Parts of a form by name: the name of the file and the content."""
    boundary = kind.partition("boundary=")[2].strip('"').encode()
    parts: dict[str, tuple[str | None, bytes]] = {}
    for part in body.split(b"--" + boundary)[1:-1] if boundary else ():
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        pieces = head.decode("utf-8", "replace").replace("\r\n", ";").split(";")
        found = dict(piece.strip().split("=", 1) for piece in pieces if "=" in piece)
        name, file_name = found.get("name", "").strip('"'), found.get("filename")
        parts[name] = (file_name.strip('"') if file_name else None, content.removesuffix(b"\r\n"))
    return parts
