"""Sellers that label for real, made from a task and the options of its file: people who fill in files, language models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from outlay.errors import UnknownItem, UsageError
from outlay.labels.files.guideline import Guideline as FilesGuideline
from outlay.labels.files.seller import FileSeller
from outlay.labels.llm.billing import Rates
from outlay.labels.llm.options import LlmOptions
from outlay.labels.llm.prompts import Guideline, Shot
from outlay.labels.llm.seller import LlmSeller
from outlay.money.amounts import Price, PriceBook
from outlay.money.prices.tokens import TokenPrices, priced_model, token_bill, token_prices
from outlay.tasks.example import Example
from outlay.tasks.seller_blocks import FREE, FilesSeller, OpenAISeller
from outlay.tasks.task import Task


def files_seller(
    block: FilesSeller, task: Task, book: PriceBook, orders: Path, poll_seconds: float | None, takes: bool
) -> FileSeller:
    """Return people who fill in files below ``orders``, or in the folder that the task file names, beside it.

    Raises:
        UnknownItem: no price for an answer.
    """
    return FileSeller(
        files_folder(block, task, orders),
        FilesGuideline(task.name, task.kind, task.labels, task.instruction, task.descriptions),
        book.label(task.price_item if block.price_item is None else block.price_item),
        redundancy=block.redundancy,
        poll_seconds=poll_seconds,
        takes=takes,
    )


def files_folder(block: FilesSeller, task: Task, orders: Path) -> Path:
    """Return the folder of the orders on people: below ``orders``, or the one that the task file names, beside it."""
    return orders / task.name if block.folder is None else (task.folder or Path()) / block.folder


class TokenTerms(NamedTuple):
    """Prices of a model's tokens, asked one by one and in batches, and the price that its purchases are settled at.

    A batch begins with a request of its own, and rows of one tier may have been bought at another.
    """

    rates: Rates
    bill: Price


def token_terms(block: OpenAISeller, book: PriceBook) -> TokenTerms:
    """Return the prices of a model's tokens.

    Raises:
        UnknownItem: no price for the tokens of the model.
    """
    item = block.model if block.price_item is None else block.price_item
    if item == FREE:
        return TokenTerms(Rates(TokenPrices.free(), TokenPrices.free()), token_bill(block.model))
    single = token_prices(book, item, "standard" if block.tier == "batch" else block.tier)
    rates = Rates(single, _batch_prices(book, item, block.tier) or single)
    return TokenTerms(rates, token_bill(priced_model(book, item, block.tier)))


def llm_seller(
    block: OpenAISeller,
    task: Task,
    book: PriceBook,
    seed: int,
    asked: Path,
    examples: Sequence[Example],
    poll_seconds: float | None = None,
) -> LlmSeller:
    """Return a language model whose journals lie in ``asked``; ``examples``: labelled rows that it is shown, fewer than the block
    says where nobody labelled some.

    ``poll_seconds``: seconds between two looks at batches, ``None`` = one look.

    Raises:
        UnknownItem: no price for the tokens of the model.
        SellerError: an option outside its limits.
    """
    terms = token_terms(block, book)
    options = LlmOptions(
        model=block.model,
        base_url=block.base_url,
        api_key_env=block.api_key_env,
        way=block.way,
        examples=block.examples if examples and block.n_examples else "none",
        n_examples=max(1, min(block.n_examples, len(examples))),
        examples_seed=seed,
        samples=block.samples,
        max_answer_tokens=block.max_answer_tokens,
        tier=block.tier,
        concurrency=block.concurrency,
        requests_per_minute=block.requests_per_minute,
        tokens_per_minute=block.tokens_per_minute,
        poll_seconds=poll_seconds,
    )
    return LlmSeller(
        options,
        guideline_of(task),
        terms.rates,
        asked,
        shots=shots_of(examples),
        price=terms.bill,
    )


def _batch_prices(book: PriceBook, item: str, tier: str) -> TokenPrices | None:
    """Return the prices of batches; ``None`` where the book has none and none is made."""
    try:
        return token_prices(book, item, "batch")
    except UnknownItem:
        if tier == "batch":
            raise
        return None


def guideline_of(task: Task) -> Guideline:
    """Return what a language model is told of a task."""
    return Guideline(
        kind=task.kind,
        labels=task.labels,
        fields=task.format.names,
        instruction=task.instruction,
        descriptions=tuple(task.descriptions.items()),
    )


def shots_of(examples: Sequence[Example]) -> tuple[Shot, ...]:
    """Return labelled rows as examples of a prompt.

    Raises:
        UsageError: a row without a label.
    """
    bare = [row.id for row in examples if row.label is None]
    if bare:
        raise UsageError(f"row {bare[0][:12]} has no label to show to a language model")
    return tuple(Shot(row.id, row.fields, row.label or "") for row in examples)
