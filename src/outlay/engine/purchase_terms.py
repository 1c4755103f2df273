"""Terms of purchases from real sellers, and who gave labels, in words: from the options of a seller, without asking it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from outlay.engine.real_sellers import files_folder, token_terms
from outlay.engine.sellers import Place, block_of
from outlay.labels.llm.journal import journal_path, read_journal
from outlay.money.amounts import PriceBook, write_usd
from outlay.money.prices.tokens import TokenPrices
from outlay.plan.request import REPLAY, SellerSpec
from outlay.tasks.seller_blocks import FilesSeller, OpenAISeller
from outlay.tasks.task import Task

OPENAI, FILES = "openai", "files"
"""Kinds of sellers whose purchases have terms."""
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


def terms_of(spec: SellerSpec, task: Task, book: PriceBook, place: Place) -> dict[str, Any]:
    """Return what the bill of a seller's orders can be worked out from again, as JSON values; empty for one that replays.

    Of a language model: prices per token in dollars, and the name of its journal. Of people: the price of an answer, and the
    folder of the orders.
    """
    if spec.kind == REPLAY:
        return {}
    block = block_of(spec)
    if isinstance(block, FilesSeller):
        price = book.label(task.price_item if block.price_item is None else block.price_item)
        folder = files_folder(block, task, place.orders)
        return {"kind": FILES, "usd": write_usd(price.usd), "folder": str(folder.absolute())}
    assert isinstance(block, OpenAISeller)
    rates = token_terms(block, book).rates
    return {
        "kind": OPENAI,
        "model": block.model,
        "host": host_of(block.base_url),
        "tier": block.tier,
        "prices": _written(rates.single),
        "batch_prices": _written(rates.batch),
        "journal": journal_path(place.asked, block.base_url, block.model).name,
    }


def _written(prices: TokenPrices) -> dict[str, str]:
    return {kind: write_usd(usd) for kind, usd in asdict(prices).items()}


def host_of(url: str) -> str:
    """Return the host of an address, with its port where one is named; nothing else of an address is shown."""
    parts = urlsplit(url)
    return (parts.hostname or "?") + (f":{parts.port}" if parts.port is not None else "")


def words_on(spec: SellerSpec) -> str | None:
    """Return who labels, in words: "gpt-5-mini at api.openai.com (16 fixed examples)"; ``None`` for one that replays."""
    if spec.kind == REPLAY:
        return None
    block = block_of(spec)
    if isinstance(block, FilesSeller):
        return "people who fill in files" + (f" ({block.redundancy} for each row)" if block.redundancy > 1 else "")
    assert isinstance(block, OpenAISeller)
    shown = "no examples" if block.examples == "none" else f"{block.n_examples} {block.examples} examples"
    more = [shown]
    more += [f"{block.samples} samples"] if block.samples > 1 else []
    more += [f"tier {block.tier}"] if block.tier != "standard" else []
    return f"{block.model} at {host_of(block.base_url)} ({', '.join(more)})"


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Return how often each reason of a refusal was given, the most frequent first; what it quotes counts as one."""
    counts = Counter(_QUOTED.sub("…", reason) for reason in reasons)
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def n_lost(terms: Iterable[Mapping[str, Any]], orders: Iterable[str], asked: Path) -> int:
    """Return the number of requests of some orders that may have been billed and whose replies never came.

    ``terms``: those of the orders, one for each; ``asked``: folder of the journals.
    """
    found = 0
    for each, order in zip(terms, orders, strict=True):
        path = asked / str(each.get("journal", ""))
        if each.get("kind") == OPENAI and path.is_file():
            with read_journal(path) as journal:
                found += sum(attempt.state == "lost" for _, attempt in journal.bill(order))
    return found
