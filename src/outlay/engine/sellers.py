"""Sellers of the labels of a request. Every seller replays gold labels so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outlay.errors import TaskFileError, UsageError
from outlay.labels.replay import Replay
from outlay.money.amounts import OWNED_LABEL, PriceBook
from outlay.plan.context import Offer
from outlay.plan.request import ReplayOptions, SellerSpec
from outlay.plan.steps import HUMAN, LLM, OWNED
from outlay.plan.strategies import Strategy
from outlay.storage.store import canonical_json, key_of
from outlay.tasks.example import Example
from outlay.tasks.task import Task

PRICE_ITEMS = {LLM: "gpt-3.5-label/{task}"}
"""Default price items by the seller's name: the published prices of an LLM's labels (Kang et al. 2023, Appendix E)."""

_NOBODY = {
    LLM: "replays an LLM's labels, and how often they are wrong is for you to assume; give --llm-error-rate, such as 0.3"
}
"""Refusals by the seller's name, for a strategy whose seller the request does not name."""

N_NAMED = 3
"""Number of rows that an error names."""


def make_seller(spec: SellerSpec, rows: Sequence[Example], task: Task, book: PriceBook, seed: int) -> Replay:
    """Build the seller of the labels of ``rows``.

    Wrong answers are a pure function of the seed and the row, and independent between sellers.

    Raises:
        TaskFileError: a row without a gold label.
    """
    options = spec.replay
    return Replay(
        _gold(rows, task),
        labels=task.labels if task.kind == "classification" else (),
        price=book.label(task.price_item if options.price_item is None else options.price_item),
        error_rate=options.error_rate,
        redundancy=options.redundancy,
        seconds_per_label=options.seconds_per_label,
        # The hash of a name and a seed is no seed that a user gives, so no two sellers ever err alike.
        seed=seed if spec.name in (HUMAN, OWNED) else int(key_of([spec.name, seed])[:12], 16),
    )


def offer_of(spec: SellerSpec, seller: Replay) -> Offer:
    """Return the terms of a seller."""
    return Offer(seller.price, canonical_json(dict(seller.identity())), spec.replay.redundancy)


def chosen_sellers(
    policy: Strategy, task: Task, book: PriceBook, asked: Sequence[SellerSpec], n_initial: int | None
) -> tuple[SellerSpec, ...]:
    """Return the sellers that a strategy buys from, and `HUMAN`, each with its price item; others are left out. A task with owned
    labels has `OWNED` too.

    Raises:
        UsageError: a seller of the strategy is not named, or the first of several sellers has no N.
        UnknownItem: the price book does not have the item named.
        MoneyError: the item is not sold by the label.
    """
    if len(policy.sellers) > 1 and n_initial is None:
        raise UsageError(f"strategy {policy.name} needs to know how many labels people give; give --n-initial")
    named = [seller.name for seller in asked]
    for name in policy.sellers:
        if name not in named:
            way = _NOBODY.get(
                name, f"buys labels of seller {name!r}, and nobody of that name is among the sellers; add it"
            )
            raise UsageError(f"strategy {policy.name} {way}")
    found = tuple(_priced(seller, task, book) for seller in asked if seller.name in (HUMAN, *policy.sellers))
    owns = any(source.owned for source in task.data.sources_of("train"))
    return (*found, SellerSpec(OWNED, ReplayOptions(price_item=OWNED_LABEL.item))) if owns else found


def _priced(seller: SellerSpec, task: Task, book: PriceBook) -> SellerSpec:
    """Return a seller with the price item of its labels; ``None`` where that is the task's own."""
    named, usual = seller.replay.price_item, PRICE_ITEMS.get(seller.name)
    if named is None and usual is None:
        return seller
    item = named if named is not None else str(usual).format(task=task.name)
    if named is None and item not in book:
        raise UsageError(f"the price book has no {item!r}; name what an LLM's label costs with --llm-price-item")
    return replace(seller, replay=replace(seller.replay, price_item=book.label(item).item))


def _gold(rows: Sequence[Example], task: Task) -> dict[str, str]:
    bare = [row for row in rows if row.label is None]
    if bare:
        first = ", ".join(sorted((row.origin for row in bare), key=_place)[:N_NAMED])
        raise TaskFileError(
            f"task {task.name}: {len(bare):,} of {len(rows):,} rows have no gold label to replay, the first at {first}; "
            "give `target:`, the column of their labels, or remove the rows"
        )
    return {row.id: row.label for row in rows if row.label is not None}


def _place(origin: str) -> tuple[str, int]:
    """Return the sort key of a row's origin: its file, then its line."""
    file, _, line = origin.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (origin, 0)
