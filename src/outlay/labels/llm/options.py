"""Options of a language model that sells labels: plain values, as a task file names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from outlay.errors import SellerError
from outlay.labels.llm.bodies import Settings, WayName
from outlay.labels.llm.ways import WAYS
from outlay.money.prices.tokens import TIERS, Tier
from outlay.text.legible import did_you_mean

Examples = Literal["none", "fixed", "shuffled", "nearest"]
"""Choices of the labelled rows that a prompt shows, see `outlay.labels.llm.examples`."""
EXAMPLES: tuple[Examples, ...] = get_args(Examples)
BATCH_WAYS: tuple[WayName, ...] = ("schema", "chat")
"""Ways that batches are answered by: providers take files of chat requests, not of decisions."""
OPENAI_URL = "https://api.openai.com/v1"
MOST_AT_ONCE = 256
VARIED = 1.0
"""Temperature of several samples per row: at 0 all would be the same."""


@dataclass(frozen=True, slots=True)
class LlmOptions:
    """A model behind an endpoint, how it is asked, and how fast.

    Attributes:
        model: Name of the model, as the endpoint knows it.
        base_url: URL below which the paths lie.
        api_key_env: Environment variable with the API key; ``None`` for a server without keys.
        way: Way of answering; ``auto``: the best that a probe finds.
        examples: Choice of the labelled rows that a prompt shows.
        n_examples: Number of them.
        examples_seed: Seed of their draw.
        samples: Answers asked for each row.
        temperature: Temperature of the answers; ``None``: 0 for one sample, `VARIED` for several.
        max_answer_tokens: Longest answer in tokens, reasoning included.
        tier: Class of service; ``batch``: asked in files that are answered within a day, at the price of batches.
        extra: More fields of chat bodies, as the provider names them.
        concurrency: Requests at once.
        requests_per_minute: Requests at most; ``None``: as many as the endpoint allows.
        tokens_per_minute: Tokens at most; ``None``: as many as the endpoint allows.
        timeout: Seconds that one request may take.
        poll_seconds: Seconds between two looks at batches; ``None``: whoever collects labels looks once.
        retries: Times that a question is asked again after errors and lost requests.
        unreadable_retries: Times that a question is asked again after answers that cannot be read; each is paid.
    """

    model: str
    base_url: str = OPENAI_URL
    api_key_env: str | None = "OPENAI_API_KEY"
    way: Literal["auto"] | WayName = "auto"
    examples: Examples = "none"
    n_examples: int = 16
    examples_seed: int = 0
    samples: int = 1
    temperature: float | None = None
    max_answer_tokens: int = 16
    tier: Tier = "standard"
    extra: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 60.0
    retries: int = 6
    unreadable_retries: int = 1
    poll_seconds: float | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SellerError: one is outside its limits.
        """
        if not self.model.strip():
            raise SellerError("a language model needs a name; give model")
        if not self.base_url.startswith(("http://", "https://")):
            raise SellerError(f"the URL {self.base_url!r} is none of an endpoint; give base_url as https://host/v1")
        for name, value, known in (
            ("way", self.way, ("auto", *WAYS)),
            ("examples", self.examples, EXAMPLES),
            ("tier", self.tier, TIERS),
        ):
            if value not in known:
                raise SellerError(f"{name} is {value!r}{did_you_mean(str(value), known)}; choose {', '.join(known)}")
        for name, number, least, most in (
            ("n_examples", self.n_examples, 1, 1000),
            ("samples", self.samples, 1, 100),
            ("max_answer_tokens", self.max_answer_tokens, 1, 1_000_000),
            ("concurrency", self.concurrency, 1, MOST_AT_ONCE),
            ("timeout", self.timeout, 0.001, 86400),
            ("retries", self.retries, 0, 100),
            ("unreadable_retries", self.unreadable_retries, 0, 100),
            ("requests_per_minute", self.requests_per_minute or 1, 0.01, 1e9),
            ("tokens_per_minute", self.tokens_per_minute or 1, 0.01, 1e12),
            ("poll_seconds", self.poll_seconds or 1, 0.001, 86400),
            ("temperature", self.temperature or 0, 0, 2),
        ):
            if not least <= number <= most:
                raise SellerError(f"{name} is {number:g}; give {least:g} to {most:g}")

    @property
    def ways(self) -> tuple[WayName, ...]:
        """Ways that ``auto`` chooses from."""
        return BATCH_WAYS if self.tier == "batch" else WAYS

    @property
    def settings(self) -> Settings:
        """Return the settings that bodies of requests are made from."""
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if self.samples == 1 else VARIED
        extra = dict(self.extra) | ({"service_tier": "flex"} if self.tier == "flex" else {})
        return Settings(self.model, self.max_answer_tokens, temperature, extra)
