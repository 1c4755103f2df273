"""Prices of a language model's tokens: four kinds, priced apart, at the tier that is asked for.

A model's prices are records of the price book, one per kind: ``openai/gpt-5-mini input``, ``openai/gpt-5-mini cached input``,
``openai/gpt-5-mini cache write``, ``openai/gpt-5-mini output``. Those of another tier name it after the model:
``openai/gpt-5-mini batch input``. All are sold by tokens. Dollars are exact fractions; the ledger rounds a purchase up once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from typing import Literal, get_args

from outlay.errors import MoneyError, UnknownItem
from outlay.money.amounts import DOLLAR_UNIT, Price, PriceBook
from outlay.storage.paths import command_line
from outlay.text.legible import did_you_mean

Tier = Literal["standard", "batch", "flex"]
"""Classes of service that a provider prices apart: at once, within a day, when there is room."""

TIERS: tuple[Tier, ...] = get_args(Tier)
KINDS = {"input": "input", "cached": "cached input", "cache_write": "cache write", "output": "output"}
"""Names of the kinds of tokens in price items, by field of `TokenUsage` and `TokenPrices`."""

TOKEN_UNIT = "1000 tokens"
"""Unit that a price book keeps prices of tokens in."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens that one request is billed for, by kind; no token is of two kinds.

    ``input``: read and neither found in the provider's cache nor written to it; ``cached``: found there; ``cache_write``: written
    to it; ``output``: answered, reasoning included.
    """

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    output: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise MoneyError(f"{field.name} is {value!r}; give a whole number of tokens, 0 or more")

    def __add__(self, other: TokenUsage) -> TokenUsage:
        """Return the tokens of two requests together."""
        return TokenUsage(*(getattr(self, name) + getattr(other, name) for name in KINDS))


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """Exact dollars per token, by kind."""

    input: Decimal
    cached: Decimal
    cache_write: Decimal
    output: Decimal

    def __post_init__(self) -> None:
        for field in fields(self):
            usd = getattr(self, field.name)
            if not isinstance(usd, Decimal) or not usd.is_finite() or usd < 0:
                raise MoneyError(f"the price of {field.name} is {usd!r}; give decimal dollars per token, 0 or more")

    @classmethod
    def free(cls) -> TokenPrices:
        """Return prices of nothing at all, those of a model that runs on a machine of one's own."""
        return cls(*(Decimal(0) for _ in KINDS))

    def cost(self, usage: TokenUsage) -> Fraction:
        """Return the exact dollars of `usage`, not rounded."""
        return sum(
            (getattr(usage, name) * Fraction(getattr(self, name)) for name in KINDS),
            start=Fraction(0),
        )

    def most(self, usage: TokenUsage) -> Fraction:
        """Return the most dollars of `usage` where a provider may count any input token as any kind of input.

        A bound counts input tokens, and knows neither what the cache will hold nor what will be written to it.
        """
        dearest = max(Fraction(self.input), Fraction(self.cached), Fraction(self.cache_write))
        return (usage.input + usage.cached + usage.cache_write) * dearest + usage.output * Fraction(self.output)


def token_item(model: str, kind: str, tier: Tier = "standard") -> str:
    """Return the price item of one kind of tokens, ``"openai/gpt-5-mini batch cached input"``.

    ``kind``: a key of `KINDS`.
    """
    return " ".join([model, *([] if tier == "standard" else [tier]), KINDS[kind]])


def _fetch(model: str) -> str:
    return command_line("outlay", "prices", "fetch", model)


def priced_model(book: PriceBook, model: str, tier: Tier = "standard") -> str:
    """Return the name that a model's prices stand under: ``openai/gpt-5-mini`` for itself, and for ``gpt-5-mini``.

    Raises:
        UnknownItem: no price of its input, or several providers' where none is named; says how to get one.
    """
    end = token_item(model, "input", tier)
    if end in book:
        return model
    ours = [price.item for price in book.items() if price.unit == TOKEN_UNIT]
    found = [item for item in ours if item.endswith(f"/{end}")]
    if len(found) == 1:
        return found[0].removesuffix(end) + model
    if found:
        sold = ", ".join(item.removesuffix(end) + model for item in found)
        raise UnknownItem(f"several providers sell {model!r}: {sold}; name one of them")
    if tier != "standard":
        known = priced_model(book, model)
        raise UnknownItem(
            f"no {tier} price of {model!r}; take tier standard, or add {token_item(known, 'input', tier)!r} and "
            f"{token_item(known, 'output', tier)!r} per 1M tokens to a price file"
        )
    names = [item.removesuffix(" output") for item in ours if item.endswith(" output")]
    hint = did_you_mean(model, [name for name in names if not name.endswith((" batch", " flex"))])
    raise UnknownItem(
        f"no price of the tokens of {model!r}{hint}; run `{_fetch(model)}`, or add {end!r} and "
        f"{token_item(model, 'output', tier)!r} per 1M tokens to a price file, usd 0 for a model of your own"
    )


def token_prices(book: PriceBook, model: str, tier: Tier = "standard") -> TokenPrices:
    """Return a model's prices per token at a tier.

    Cached input and cache writes that have no price of their own cost what input costs at that tier. Nothing is taken from
    another tier.

    Args:
        book: the price book.
        model: name that the prices stand under, or its end after a provider's name: ``gpt-5-mini`` for
            ``openai/gpt-5-mini``, where one provider alone has it.
        tier: class of service.

    Raises:
        UnknownItem: no price of input or of output at that tier; says how to get one.
        MoneyError: a price that is not per tokens.
    """
    if tier not in TIERS:
        raise MoneyError(f"the tier {tier!r} is unknown{did_you_mean(str(tier), TIERS)}; known: {', '.join(TIERS)}")
    name = priced_model(book, model, tier)
    output = token_item(name, "output", tier)
    if output not in book:
        raise UnknownItem(f"no price for {output!r}; run `{_fetch(name)}`, or add it per 1M tokens")
    per_token: dict[str, Decimal] = {}
    for kind in KINDS:
        item = token_item(name, kind, tier)
        price = book.get(item if item in book else token_item(name, "input", tier))
        if price.unit != TOKEN_UNIT:
            raise MoneyError(f"{price.item!r} is sold per {price.unit}, but it prices tokens; give it per 1M tokens")
        per_token[kind] = shifted(price.usd, -3)
    return TokenPrices(**per_token)


def shifted(usd: Decimal, n_places: int) -> Decimal:
    """Return ``usd`` times 10 to the power of ``n_places``, with all its digits."""
    sign, digits, exponent = usd.as_tuple()
    return Decimal((sign, digits, int(exponent) + n_places))


def token_bill(model: str) -> Price:
    """Return the price that a purchase paid by tokens is held and settled at: $1 per dollar of a model's tokens."""
    return Price(model, DOLLAR_UNIT, Decimal(1), "the sum of tokens at their prices", None)
