"""Prices of tokens from the package genai-prices (extra ``llm``), whose list lies in its wheel: no network is asked.

That list knows more than a price per kind of tokens. Where a price depends on the length of the prompt or on the hour of the day,
the dearest is taken, so that no request ever costs more than it is charged; a note says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING

from outlay.errors import MoneyError, UnknownItem, UsageError
from outlay.money.amounts import Price
from outlay.money.prices.tokens import KINDS, TOKEN_UNIT, Tier, shifted, token_item
from outlay.text.legible import did_you_mean, quoted

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, Provider

PACKAGE = "genai-prices"
"""Package of the list, and the beginning of the source of every record from it."""

_KEYS = {"input": "input_mtok", "cached": "cache_read_mtok", "cache_write": "cache_write_mtok", "output": "output_mtok"}
_REASONING = "output_reasoning_mtok"
_BY_THE_REQUEST = ("requests_kcount", "output_citation_mtok")
"""Prices of what a request costs beside its tokens, or of tokens that no answer shows."""

_TIERS: dict[Tier, dict[str, str]] = {"batch": {"processing": "batch"}, "flex": {"service_tier": "flex"}}
"""Contexts of a request that the list prices apart, by tier."""


@dataclass(frozen=True, slots=True)
class FetchedPrices:
    """Records of one model's prices: ``name`` is what they stand under, ``notes`` say what was decided in them."""

    name: str
    records: tuple[Price, ...]
    notes: tuple[str, ...]


def fetch_prices(model: str, on: date, prompt_tokens: int | None = None) -> FetchedPrices:
    """Return the records of a model's prices at every tier that the list has.

    Args:
        model: provider and model, ``openai/gpt-5-mini``, or a model that its name alone gives a provider.
        on: day, in UTC, that the prices are of.
        prompt_tokens: longest prompt that will be sent, where a model's price depends on that; None: any.

    Raises:
        UnknownItem: no such model; names the nearest.
        MoneyError: a model that is not paid by tokens of input and output alone.
        UsageError: the package is not installed.
    """
    try:
        from importlib.metadata import version

        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        raise UsageError(
            f"prices are fetched from the package {PACKAGE}, which is not installed; pip install 'outlay[llm]'"
        ) from None
    package = f"{PACKAGE} {version(PACKAGE)}"
    snapshot = get_snapshot()
    name, provider, info = _find(snapshot, model, package)
    owner = next(each for each in snapshot.providers if any(info is one for one in each.models))
    notes: dict[str, None] = {}
    if name != f"{owner.id}/{info.id}":
        notes[f"priced as {owner.id}/{info.id}"] = None
    contexts: dict[Tier, dict[str, str] | None] = {"standard": None}
    contexts |= {tier: context for tier, context in _TIERS.items() if _has_tier(provider, info, context, on)}
    url = f" ({provider.pricing_urls[0]})" if provider.pricing_urls else ""
    records = []
    for tier, context in contexts.items():
        decided: dict[str, None] = {}
        usd = _per_million(name, _at_any_hour(info, on, context), prompt_tokens, decided)
        notes |= decided
        for kind, value in usd.items():
            item, per_unit = token_item(name, kind, tier), shifted(value, -3)
            records.append(Price(item, TOKEN_UNIT, per_unit, f"{package}{url}", on, "; ".join(notes)))
    return FetchedPrices(name, tuple(records), tuple(f"{name}: {note}" for note in notes))


def _find(snapshot: DataSnapshot, model: str, package: str) -> tuple[str, Provider, ModelInfo]:
    """Return a model's full name with its provider and its entry in the list. Raises UnknownItem."""
    providers = {provider.id: provider for provider in snapshot.providers}
    first, slash, rest = model.strip().partition("/")
    known: Iterable[str]
    if slash and (provider := providers.get(first.lower())) is not None:
        info = provider.find_model(rest, all_providers=snapshot.providers)
        if info is not None:
            return _name(provider, rest, info), provider, info
        known = [f"{provider.id}/{each.id}" for each in provider.models]
    elif slash:
        known = [f"{provider.id}/{each.id}" for provider in snapshot.providers for each in provider.models]
    else:
        try:
            provider, info = snapshot.find_provider_model(first, None, None, None)
        except LookupError:
            known = dict.fromkeys(each.id for provider in snapshot.providers for each in provider.models)
        else:
            return _name(provider, first, info), provider, info
    raise UnknownItem(
        f"{package} has no prices of {quoted(model)}{did_you_mean(model.strip().lower(), known)}; write PROVIDER/MODEL, or put "
        "its prices into a price file of your own, usd 0 for a model on your own machine"
    )


def _name(provider: Provider, model: str, info: ModelInfo) -> str:
    """Return a model's name with its provider's, as it was asked for but for upper and lower case."""
    return f"{provider.id}/{info.id if model.lower() == info.id.lower() else model}"


def _has_tier(provider: Provider, info: ModelInfo, context: dict[str, str], on: date) -> bool:
    """Return whether the list has prices of input or output for a context on a day.

    A model of another provider, which serves it at that one's prices, has no tiers: they are that one's own.
    """
    if not any(info is each for each in provider.models):
        return False
    at = datetime.combine(on, time(), UTC)
    return any(
        variant.when == context
        and (variant.constraint is None or variant.constraint.active(at))
        and any(variant.prices.__dict__.get(_KEYS[kind]) is not None for kind in ("input", "output"))
        for variant in info.price_variants or ()
    )


def _at_any_hour(info: ModelInfo, on: date, context: dict[str, str] | None) -> list[ModelPrice]:
    """Return every price of a model within a day, one where the hour does not matter."""
    from genai_prices.types import ModelPrice, TimeOfDateConstraint

    conditions = [] if isinstance(info.prices, ModelPrice) else [each.constraint for each in info.prices]
    conditions += [each.constraint for each in info.price_variants or ()]
    hours = {time(tzinfo=UTC)}
    for each in conditions:
        if isinstance(each, TimeOfDateConstraint):
            hours |= {end if end.tzinfo else end.replace(tzinfo=UTC) for end in (each.start_time, each.end_time)}
    found: list[ModelPrice] = []
    for hour in sorted(hours):
        prices = info.get_prices(datetime.combine(on, hour), context)
        found += [] if prices in found else [prices]
    return found


def _per_million(
    name: str, prices: list[ModelPrice], prompt_tokens: int | None, notes: dict[str, None]
) -> dict[str, Decimal]:
    """Return dollars per million tokens by kind, the dearest of ``prices``; adds to ``notes``. Raises MoneyError."""
    for key in _BY_THE_REQUEST:
        if any(each.__dict__.get(key) for each in prices):
            raise MoneyError(f"{name} is not paid by tokens alone ({PACKAGE} has {key}); take another model")
    if len(prices) > 1:
        notes["the price of the dearest hours of a day"] = None
    usd: dict[str, Decimal] = {}
    for kind, key in _KEYS.items():
        keys = (key, _REASONING) if kind == "output" else (key,)
        values = [
            _of_prompts(value, prompt_tokens, notes)
            for each in prices
            for key in keys
            if (value := each.__dict__.get(key)) is not None
        ]
        if values:
            usd[kind] = max(values)
    if "input" not in usd:
        raise MoneyError(f"{name} has no price of tokens of input in {PACKAGE}; put it into a price file of your own")
    if any(each.__dict__.get(_REASONING) is not None for each in prices):
        notes["output at the dearer of answer and reasoning"] = None
    if "output" not in usd:
        usd["output"] = Decimal(0)
        notes[f"{PACKAGE} has no price of its output, which is taken as $0"] = None
    return {kind: usd[kind] for kind in KINDS if kind in usd}


def _of_prompts(value: object, prompt_tokens: int | None, notes: dict[str, None]) -> Decimal:
    """Return the dearest price of prompts of at most ``prompt_tokens``."""
    from genai_prices.types import TieredPrices

    if not isinstance(value, TieredPrices):
        if not isinstance(value, Decimal):
            raise MoneyError(
                f"{PACKAGE} has a price of {value!r}, which is no decimal; put it into a price file of your own"
            )
        return value
    starts = [tier.start for tier in value.tiers]
    reached = [tier.price for tier in value.tiers if prompt_tokens is None or prompt_tokens > tier.start]
    above = f"prompts above {', '.join(f'{start:,}' for start in starts)} tokens are priced apart"
    chosen = f"this is of up to {prompt_tokens:,}" if prompt_tokens else "without --prompt-tokens the dearest is taken"
    notes[f"{above}; {chosen}"] = None
    return max([value.base, *reached])
