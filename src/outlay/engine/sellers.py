"""Who sells the labels of a run: people and, where the strategy hires one, a large language model. Both replay gold labels."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.errors import TaskFileError, UsageError
from outlay.labels.annotator import Annotator
from outlay.labels.replay import Replay
from outlay.money.amounts import PriceBook
from outlay.plan.context import Offer
from outlay.plan.request import Request
from outlay.plan.strategies import Strategy
from outlay.storage.store import canonical_json, key_of
from outlay.tasks.example import Example
from outlay.tasks.task import Task

LLM_PRICE_ITEM = "gpt-3.5-label/{task}"
"""What an LLM's label costs unless the user names another item: the published tasks' prices (Kang et al. 2023, Appendix E)."""


N_NAMED = 3
"""Rows that an error names."""


def human_seller(rows: Sequence[Example], task: Task, book: PriceBook, request: Request) -> Annotator:
    """The people who label ``rows``.

    Raises:
        TaskFileError: a row without a gold label.
    """
    return Replay(
        _gold(rows, task),
        labels=_label_set(task),
        price=book.label(task.price_item),
        error_rate=request.seller.error_rate,
        redundancy=request.seller.redundancy,
        seconds_per_label=request.seller.seconds_per_label,
        seed=request.seed,
    )


def llm_seller(rows: Sequence[Example], task: Task, book: PriceBook, request: Request) -> Annotator:
    """The LLM that labels ``rows``, one answer each.

    Its errors are a pure function of the request's seed and the row, and independent of those that people make.

    Raises:
        UsageError: the request hires none.
        TaskFileError: a row without a gold label.
    """
    if request.llm_error_rate is None or request.llm_price_item is None:
        raise UsageError(f"the request of strategy {request.strategy} hires no LLM; hire one with --llm-error-rate")
    return Replay(
        _gold(rows, task),
        labels=_label_set(task),
        price=book.label(request.llm_price_item),
        error_rate=request.llm_error_rate,
        # The hash of the seed is no seed that a user gives, so the two sellers never err alike.
        seed=int(key_of(["llm", request.seed])[:12], 16),
    )


def llm_offer(rows: Sequence[Example], task: Task, book: PriceBook, request: Request) -> Offer | None:
    """What that LLM asks; ``None`` where the request hires none."""
    if request.llm_error_rate is None or request.llm_price_item is None:
        return None
    return Offer(book.label(request.llm_price_item), identity_of(llm_seller(rows, task, book, request)))


def identity_of(seller: Annotator) -> str:
    """Canonical JSON of who a seller is."""
    return canonical_json(dict(seller.identity()))


def llm_terms(
    policy: Strategy, task: Task, book: PriceBook, n_initial: int | None, error_rate: float | None, item: str | None
) -> tuple[float | None, str | None]:
    """Error rate and price item of the LLM that a strategy hires; nothing where it hires none, whatever is named.

    Raises:
        UsageError: a strategy that hires one, without what it needs.
        UnknownItem: the price book does not have the item named.
        MoneyError: the item is not sold by the label.
    """
    if policy.labelled_by == "human":
        return None, None
    if policy.labelled_by == "both" and n_initial is None:
        raise UsageError(f"strategy {policy.name} needs to know how many labels people give; give --n-initial")
    if error_rate is None:
        raise UsageError(
            f"strategy {policy.name} replays an LLM's labels, and how often they are wrong is for you to assume; "
            "give --llm-error-rate, such as 0.3"
        )
    return float(error_rate), _price_item(task, book, item)


def _price_item(task: Task, book: PriceBook, named: str | None) -> str:
    item = named if named is not None else LLM_PRICE_ITEM.format(task=task.name)
    if named is None and item not in book:
        raise UsageError(f"the price book has no {item!r}; name what an LLM's label costs with --llm-price-item")
    return book.label(item).item


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
    """In the order of files and of their lines."""
    file, _, line = origin.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (origin, 0)


def _label_set(task: Task) -> tuple[str, ...]:
    return task.labels if task.kind == "classification" else ()
