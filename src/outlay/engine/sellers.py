"""Sellers of the labels of a request: gold labels replayed, people who fill in files, language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

from outlay.engine.real_sellers import files_seller, llm_seller
from outlay.errors import TaskFileError, UsageError
from outlay.labels.annotator import Annotator, RowCost
from outlay.labels.replay import Replay
from outlay.money.amounts import OWNED_LABEL, PriceBook
from outlay.plan.context import Offer, RunningCosts
from outlay.plan.request import REPLAY, ReplayOptions, SellerSpec
from outlay.plan.steps import HUMAN, LLM, OWNED
from outlay.plan.strategies import Strategy
from outlay.storage.store import canonical_json, key_of
from outlay.tasks.example import Example
from outlay.tasks.seller_blocks import (
    LLM_NAME,
    PEOPLE,
    FilesSeller,
    OpenAISeller,
    ReplaySeller,
    SellerBlock,
)
from outlay.tasks.splits import SeededOrder
from outlay.tasks.task import Task
from outlay.tasks.yaml_file import checked
from outlay.text.legible import did_you_mean

PRICE_ITEMS = {LLM: "gpt-3.5-label/{task}"}
"""Default price items by the seller's name: the published prices of an LLM's labels (Kang et al. 2023, Appendix E)."""

_NOBODY = {
    LLM: "buys labels of an LLM, and none is named; name a model with --llm, or replay one with --llm-error-rate, such as 0.3"
}
"""Refusals by the seller's name, for a strategy whose seller the request does not name."""

N_DRAWN_FROM = 100
"""Bought labels that shuffled examples are drawn from (Kang et al. 2023, Appendix E: 32 of a fixed 100)."""

N_NAMED = 3
"""Number of rows that an error names."""


NAMES = {PEOPLE: HUMAN, LLM_NAME: LLM}
"""Names of sellers in requests, by those of task files that differ."""


BLOCKS: dict[str, type[ReplaySeller | FilesSeller | OpenAISeller]] = {
    "replay": ReplaySeller,
    "files": FilesSeller,
    "openai": OpenAISeller,
}
"""Options of sellers by kind."""


def spec_of(name: str, block: SellerBlock) -> SellerSpec:
    """Return the seller that a task file describes."""
    known = NAMES.get(name, name)
    options = block.model_dump(exclude={"kind"}, exclude_defaults=True)
    return SellerSpec.of(known, block.kind, options)


def normal(spec: SellerSpec) -> SellerSpec:
    """Return a seller under the name that requests have, without options at their defaults: one run, however it is written.

    Raises:
        UsageError: an unknown kind or option, or a value outside its limits; one line.
    """
    return spec if spec.kind == REPLAY else spec_of(spec.name, block_of(spec))


def block_of(spec: SellerSpec) -> SellerBlock:
    """Return a seller's options, validated.

    Raises:
        UsageError: an unknown kind or option, or a value outside its limits; one line.
    """
    if spec.kind not in BLOCKS:
        hint = did_you_mean(spec.kind, BLOCKS)
        raise UsageError(f"seller {spec.name} is of kind {spec.kind!r}{hint}; known: {', '.join(BLOCKS)}")
    content = {"kind": spec.kind, **spec.chosen}
    try:
        return checked(content, BLOCKS[spec.kind], f"seller {spec.name}")
    except ValueError as error:
        raise UsageError(f"seller {spec.name}: {error}") from None


@dataclass(frozen=True, slots=True)
class People:
    """How answers that take hours are waited for: those of people, and of batches.

    ``poll_seconds``: seconds between two looks, ``None`` = one look; ``takes``: orders are closed with what has come.
    """

    poll_seconds: float | None = None
    takes: bool = False


ONE_LOOK = People()
"""Answers are looked for once."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where sellers keep what is theirs: journals of requests below ``asked``, orders on people below ``orders``."""

    asked: Path
    orders: Path
    people: People = ONE_LOOK


_NOWHERE = Place(Path("asked"), Path("orders"))


def make_seller(
    spec: SellerSpec,
    rows: Sequence[Example],
    task: Task,
    book: PriceBook,
    seed: int,
    place: Place | None = None,
    examples: Sequence[Example] = (),
) -> Annotator:
    """Build the seller of the labels of ``rows``; ``examples``: labelled rows that it is shown. Without a place it only quotes.

    Replayed wrong answers are a pure function of the seed and the row, and independent between sellers.

    Raises:
        TaskFileError: a row without a gold label to replay.
        UsageError: an option that the seller does not take.
        UnknownItem: no price for the seller's labels or tokens.
    """
    if spec.kind != REPLAY:
        block = block_of(spec)
        place = place or _NOWHERE
        if isinstance(block, FilesSeller):
            return files_seller(block, task, book, place.orders, place.people.poll_seconds, place.people.takes)
        assert isinstance(block, OpenAISeller)
        return llm_seller(block, task, book, seed, place.asked, examples, place.people.poll_seconds)
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


def offer_of(spec: SellerSpec, task: Task, book: PriceBook, ordered: SeededOrder, seed: int) -> Offer:
    """Return the terms of a seller for the rows of a task, in the order of a seed.

    A seller that is shown examples quotes them as long as the first rows with the longest label: which are bought first.
    """
    n_examples = n_examples_of(spec)
    longest = max(task.labels, key=len, default="")
    shown = [replace(row, label=longest if row.label is None else row.label) for row in ordered.train[:n_examples]]
    rows = ordered.train
    if spec.kind == REPLAY and any(row.label is None for row in rows):
        # One who labels nothing but dev and test rows.
        rows = [row for row in (*ordered.dev, *ordered.test) if row.label is not None] or rows
    seller = make_seller(spec, rows, task, book, seed, examples=shown)
    identity = canonical_json(dict(seller.identity()))
    if seller.is_deterministic:
        return Offer(seller.price, identity, spec.replay.redundancy)
    splits = {"train": ordered.train, "dev": ordered.dev, "test": ordered.first_test(None)}
    costs = {split: _running(seller.costs(rows)) for split, rows in splits.items()}
    return Offer(seller.price, identity, costs=costs, n_examples=n_examples)


def n_examples_of(spec: SellerSpec) -> int:
    """Return the number of bought labels that a seller is shown."""
    if spec.kind != "openai":
        return 0
    block = block_of(spec)
    assert isinstance(block, OpenAISeller)
    return {"none": 0, "shuffled": max(block.n_examples, N_DRAWN_FROM)}.get(block.examples, block.n_examples)


def _running(costs: Sequence[RowCost]) -> RunningCosts:
    zero = Fraction(0)
    return RunningCosts(
        tuple(accumulate((cost.expected for cost in costs), initial=zero)),
        tuple(accumulate((cost.most for cost in costs), initial=zero)),
    )


def chosen_sellers(
    policy: Strategy,
    task: Task,
    book: PriceBook,
    asked: Sequence[SellerSpec],
    n_initial: int | None,
    dev: str = "given",
) -> tuple[SellerSpec, ...]:
    """Return the sellers that a strategy buys from, the one of bought dev and test labels, and `HUMAN` where these replay, each
    with its price item; others are left out. A task with owned labels has `OWNED` too.

    What a request says of a seller comes before what the task file says. ``dev``: source of the dev labels.

    Raises:
        UsageError: a seller of the strategy is not named, or the first of several sellers has no N.
        UnknownItem: the price book does not have the item named.
        MoneyError: the item is not sold by the label.
    """
    if len(policy.sellers) > 1 and n_initial is None:
        raise UsageError(f"strategy {policy.name} needs to know how many labels people give; give --n-initial")
    known = {name: spec_of(name, block) for name, block in named_blocks(task).items()}
    given = [normal(spec) for spec in asked]
    known |= {spec.name: spec for spec in given if spec.name not in known or spec != SellerSpec(spec.name)}
    for name in policy.sellers:
        if name not in known:
            way = _NOBODY.get(
                name, f"buys labels of seller {name!r}, and nobody of that name is among the sellers; add it"
            )
            raise UsageError(f"strategy {policy.name} {way}")
    has_gold = all(source.target is not None for source in task.data.sources_of("train"))
    people = known.get(HUMAN)
    if people is not None and people.kind == REPLAY and not has_gold and HUMAN in policy.sellers:
        raise UsageError(
            f"strategy {policy.name} buys labels of people, who replay gold labels, and `data.train` of task {task.name} has no "
            f"`target`; give it the column of the labels, name people of another kind (`sellers: {{{PEOPLE}: {{kind: files}}}}`),"
            " or choose another strategy"
        )
    needed = {*policy.sellers}
    needed |= {seller_name(task.eval_seller)} if "bought" in (dev, task.test) else set()
    needed |= {HUMAN} if people is not None and people.kind == REPLAY and has_gold else set()
    found = tuple(_priced(seller, task, book) for seller in known.values() if seller.name in needed)
    owns = any(source.owned for source in task.data.sources_of("train"))
    return (*found, SellerSpec(OWNED, ReplayOptions(price_item=OWNED_LABEL.item))) if owns else found


def seller_name(name: str) -> str:
    """Return the name, in requests, of a seller of a task file."""
    return NAMES.get(name, name)


def named_blocks(task: Task) -> dict[str, SellerBlock]:
    """Return the sellers of a task file by their names in requests."""
    return {NAMES.get(name, name): block for name, block in task.sellers.items()}


def _priced(seller: SellerSpec, task: Task, book: PriceBook) -> SellerSpec:
    """Return a seller with the price item of its labels; ``None`` where that is the task's own."""
    if seller.kind != REPLAY:
        return seller
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
            "give `target:`, the column of their labels, remove the rows, or name a seller of another kind under `sellers`"
        )
    return {row.id: row.label for row in rows if row.label is not None}


def _place(origin: str) -> tuple[str, int]:
    """Return the sort key of a row's origin: its file, then its line."""
    file, _, line = origin.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (origin, 0)
