"""Sellers of labels as a task file names them: gold labels replayed, people who fill in files, language models."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from outlay.tasks.yaml_file import NonEmpty, Value, YamlBlock

PEOPLE = "people"
"""Name of the people who label, in task files."""
LLM_NAME = "llm"
"""Name of the language model whose labels the published strategies buy, in task files."""

FREE = "free"
"""In place of a price item: the tokens of a model of one's own cost nothing."""

Way = Literal["auto", "decisions", "systemone", "schema", "chat"]
Examples = Literal["none", "fixed", "shuffled", "nearest"]
Tier = Literal["standard", "batch", "flex"]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"{value} answers a label have no majority; give an odd number")
    return value


def _address(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("an endpoint's address begins with http:// or https://")
    return value.rstrip("/")


def _variable(value: str) -> str:
    # What is given in place of a name may be the key itself, so it is not shown.
    if not _VARIABLE.fullmatch(value):
        raise ValueError(
            "give the name of the environment variable that holds the key, such as OPENAI_API_KEY, not a key"
        )
    return value


class ReplaySeller(YamlBlock):
    """A seller that replays the gold labels of the rows."""

    kind: Literal["replay"]
    """Gold labels, sold as if somebody gave them."""
    price_item: NonEmpty | None = None
    """Item of the price book that one answer costs; default: the task's own."""
    error_rate: float = Field(default=0.0, ge=0, le=1)
    """Share of wrong answers."""
    redundancy: Annotated[int, AfterValidator(_odd)] = Field(default=1, gt=0)
    """Answers per label, an odd number; the majority counts."""
    seconds_per_label: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Seconds of human work per answer, reported alone."""


class FilesSeller(YamlBlock):
    """People who fill in files: an order writes its rows, the answers come back in the same form."""

    kind: Literal["files"]
    """People, by CSV and JSON lines."""
    price_item: NonEmpty | None = None
    """Item of the price book that one answer costs; default: the task's own."""
    redundancy: int = Field(default=1, gt=0, le=99)
    """People who answer each row; the majority counts."""
    folder: NonEmpty | None = None
    """Folder of orders and answers, beside the task file; default: one of the store."""


class OpenAISeller(YamlBlock):
    """A language model behind an endpoint that speaks as OpenAI's."""

    kind: Literal["openai"]
    """A language model."""
    model: Annotated[Value, Field(min_length=1)]
    """Name of the model at the endpoint, such as ``gpt-5-mini``."""
    base_url: Annotated[str, AfterValidator(_address)] = "https://api.openai.com/v1"
    """Address of the endpoint."""
    api_key_env: Annotated[str, AfterValidator(_variable)] | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null where the endpoint takes none."""
    price_item: NonEmpty | None = None
    """Item of the token prices; ``free`` where tokens cost nothing; default: the model's name."""
    way: Way = "auto"
    """How it is asked: ``auto`` (the best that the endpoint does), ``decisions``, ``systemone``, ``schema`` or ``chat``."""
    examples: Examples = "fixed"
    """Bought labels that are shown: ``none``, the same for every row (``fixed``), drawn for each (``shuffled``), ``nearest``."""
    n_examples: int = Field(default=16, ge=0, le=1000)
    """Number of examples."""
    samples: int = Field(default=1, gt=0, le=99)
    """Answers per row; the majority counts, and their agreement is the confidence."""
    max_answer_tokens: int = Field(default=16, gt=0)
    """Most tokens of an answer, reasoning included."""
    tier: Tier = "standard"
    """Price tier: ``standard``, ``batch`` or ``flex``."""
    concurrency: int = Field(default=8, gt=0, le=1000)
    """Requests at once."""
    requests_per_minute: int | None = Field(default=None, gt=0)
    """Most requests in a minute; without it as many as the endpoint says."""
    tokens_per_minute: int | None = Field(default=None, gt=0)
    """Most tokens in a minute; without it as many as the endpoint says."""

    @field_validator("base_url")
    @classmethod
    def _without_secrets(cls, value: str) -> str:
        if "@" in value.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError("an address with a name or password stands in files and reports; name a variable instead")
        return value


SellerBlock = Annotated[ReplaySeller | FilesSeller | OpenAISeller, Field(discriminator="kind")]
