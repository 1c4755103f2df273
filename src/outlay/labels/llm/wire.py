"""One request to a language model: the question, its key, and the reply as the bytes that came.

The client of `openai` sends the request, once: what is asked again, and when, is decided in `outlay.labels.llm.asking`, which
knows what an attempt costs. The API key is read from the environment when an endpoint is opened; nothing written or raised here
holds it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from outlay.errors import SellerError
from outlay.labels.llm.reading import error_of
from outlay.storage.hashing import canonical_json, key_of
from outlay.text.json_text import BadJson, parse_json

if TYPE_CHECKING:
    from openai import OpenAI

    from outlay.money.prices.tokens import TokenUsage

MAX_BODY_BYTES = 16 << 20
"""Longest reply that is read; a longer one counts as cut short."""
MAX_ERROR_BYTES = 4000
"""Bytes of an error that are kept."""
_SHORTEST_SECRET = 6

NOT_SENT = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "InvalidURL"}
)
"""Errors of the client's transport that come before a byte of the request has left."""


@dataclass(frozen=True)
class Question:
    """One request about one row.

    ``sample``: number of the sample, from 0; ``path``: below the endpoint's URL, as ``/chat/completions``; ``body``: the whole
    body, plain JSON values; ``most``: tokens that it is billed at most.
    """

    row: str
    sample: int
    path: str
    body: Mapping[str, Any]
    most: TokenUsage

    def key(self, endpoint: str) -> str:
        """Return the sha256, in hex, of the endpoint's URL, the path, the body and the number of the sample."""
        return key_of([endpoint, self.path, self.body, self.sample])


@dataclass(frozen=True, slots=True)
class Reply:
    """What came for a question, from the wire or from the journal; ``seconds``: from sending to the last byte."""

    key: str
    status: int
    body: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Received:
    """A reply that came whole, with its headers, names in lower case."""

    status: int
    body: bytes
    seconds: float
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """A request that was answered with an error, or never left: it is not billed.

    ``status``: ``None`` where it never left; ``code``: the error's own name, such as ``insufficient_quota``; ``why``: one line;
    ``body``: the beginning of what the endpoint said.
    """

    why: str
    status: int | None = None
    code: str = ""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lost:
    """A request that left and got no whole reply: it may be billed. ``why``: one line."""

    why: str


Exchange = Received | Failed | Lost


class Secret:
    """An API key that prints as stars."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "***"

    def reveal(self) -> str:
        """Return the key itself."""
        return self._text

    def scrub(self, text: str) -> str:
        """Return a text with stars for the key, which some servers repeat in what they say."""
        return text.replace(self._text, "***") if len(self._text) >= _SHORTEST_SECRET else text

    def scrub_bytes(self, data: bytes) -> bytes:
        """Return bytes with stars for the key."""
        return data.replace(self._text.encode(), b"***") if len(self._text) >= _SHORTEST_SECRET else data


_THIS_MACHINE = frozenset(("127.0.0.1", "::1", "localhost"))


def read_key(variable: str | None, base_url: str) -> Secret:
    """Return the API key in an environment variable; a dash for servers without keys, where none is named.

    A server of this machine is asked without a key where the variable is not set.

    Raises:
        SellerError: the variable is not set.
    """
    if variable is None:
        return Secret("-")
    key = os.environ.get(variable, "").strip()
    if not key and urlsplit(base_url).hostname in _THIS_MACHINE:
        return Secret("-")
    if not key:
        raise SellerError(
            f"the environment variable {variable} holds no API key; set it: export {variable}=..., or say that the endpoint "
            "takes none: `api_key_env: null`, --llm-key-env none"
        )
    if not key.isascii() or not key.isprintable():
        raise SellerError(f"the API key in {variable} holds characters that no header can carry; copy it again")
    return Secret(key)


class Endpoint:
    """An endpoint that is asked one request at a time by each of many threads.

    Args:
        base_url: URL below which the paths lie, such as ``https://api.openai.com/v1``.
        api_key_env: Environment variable with the API key; ``None`` for a server without keys.
        timeout: Seconds that one request may take, from connecting to the last byte.
    """

    def __init__(self, base_url: str, api_key_env: str | None = None, timeout: float = 60.0) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout = timeout
        self._key = read_key(api_key_env, base_url)
        self._client: OpenAI = _client(self.base_url, self._key, timeout)

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r})"

    def close(self) -> None:
        """Close the connections; requests under way end as lost."""
        self._client.close()

    def exchange(self, question: Question, key: str) -> Exchange:
        """Send a question once, and return what came of it. Never raises for what a server does.

        ``key`` travels along as the request's own name, by which a provider's support finds it.
        """
        import openai

        start = time.monotonic()
        headers = {"X-Stainless-Raw-Response": "stream", "Content-Type": "application/json", "X-Client-Request-Id": key}
        try:
            response: Any = self._client.post(
                question.path,
                cast_to=object,
                content=canonical_json(question.body).encode(),
                options={"headers": headers, "timeout": self._timeout},
            )
        except openai.APIStatusError as error:
            return self._refused(error.status_code, error.response.content, _headers(error.response.headers))
        except openai.APIConnectionError as error:
            return self._broken(error)
        except Exception as error:  # a body that cannot be unpacked, a redirect without end
            return Lost(f"no reply that can be read: {type(error).__name__}")
        return self._read(response.http_response, start)

    def _read(self, response: Any, start: float) -> Exchange:
        """Read a reply to its end; one that drips is cut off at the timeout, which the client counts from byte to byte."""
        body = bytearray()
        try:
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() - start > self._timeout:
                    return Lost(f"a reply not whole after {self._timeout:g} s ({len(body):,} bytes)")
                if len(body) > MAX_BODY_BYTES:
                    return Lost(f"a reply of more than {MAX_BODY_BYTES >> 20} MB")
        except Exception as error:
            return Lost(f"a reply cut short after {len(body):,} bytes ({type(error).__name__})")
        finally:
            response.close()
        seconds = round(time.monotonic() - start, 6)
        return Received(response.status_code, self._key.scrub_bytes(bytes(body)), seconds, _headers(response.headers))

    def _broken(self, error: Exception) -> Failed | Lost:
        """Return what an error of the connection means."""
        cause = type(error.__cause__).__name__
        why = self._key.scrub(_line(str(error.__cause__ or error))) or cause
        if cause in NOT_SENT:
            return Failed(f"cannot connect to {self.base_url}: {why}")
        return Lost(f"no reply in {self._timeout:g} s" if "Timeout" in cause else f"connection lost: {why}")

    def _refused(self, status: int, body: bytes, headers: Mapping[str, str]) -> Failed:
        body = self._key.scrub_bytes(body)[:MAX_ERROR_BYTES]
        why = f"status {status}" + (f": {error_of(body)}" if body.strip() else "")
        if status < 400:
            why = (
                f"status {status}: it redirects to {self._key.scrub(_line(headers.get('location', '')))}; give that URL"
            )
        return Failed(why, status, _code_of(body), body, headers)


def _client(base_url: str, key: Secret, timeout: float) -> OpenAI:
    try:
        import openai
    except ModuleNotFoundError as error:
        raise SellerError(
            "labels of a language model need the openai library; install it: pip install 'outlay[llm]'"
        ) from error
    # No redirect is followed: it would carry the rows, and the key, elsewhere. Hence a plain URL never meets a certificate, and
    # need not wait for the list of all authorities.
    connections = openai.DefaultHttpxClient(verify=not base_url.startswith("http://"), follow_redirects=False)
    client = openai.OpenAI(
        api_key=key.reveal(), base_url=base_url, max_retries=0, timeout=timeout, http_client=connections
    )
    # The client takes these from the environment, whatever server it speaks to.
    client.organization = client.project = None
    return client


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _code_of(body: bytes) -> str:
    """Return the name in an error, as in ``{"error": {"code": "insufficient_quota"}}``; "" where it has none."""
    try:
        found = parse_json(body.decode("utf-8", "replace"))
    except BadJson:
        return ""
    error = found.get("error", found) if isinstance(found, Mapping) else None
    if not isinstance(error, Mapping):
        return ""
    return next((str(error[name]) for name in ("code", "type") if isinstance(error.get(name), str)), "")


def _line(text: str) -> str:
    return " ".join(text.split())
