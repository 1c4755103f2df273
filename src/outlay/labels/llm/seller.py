"""A seller of labels that asks a language model, and pays by the token.

Everything that came is in the journal, so an order goes on where it stopped, in any process: what was received is read again, not
asked again, and needs neither key nor network. Nothing leaves that the allowance cannot pay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from outlay.errors import SellerError, UnknownOrder
from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Delivery, Order, RowCost, no_report
from outlay.labels.llm.asking import Clock
from outlay.labels.llm.batch_wire import BatchEndpoint
from outlay.labels.llm.billing import Rates
from outlay.labels.llm.collecting import Collection, Means
from outlay.labels.llm.journal import journal_path, open_journal
from outlay.labels.llm.limits import Limits
from outlay.labels.llm.options import LlmOptions
from outlay.labels.llm.prompts import Guideline, Shot
from outlay.labels.llm.questions import Questioner
from outlay.money.amounts import Price, Quote
from outlay.money.prices.tokens import TokenPrices, token_bill
from outlay.storage.hashing import key_of
from outlay.tasks.example import Example

_logger = logging.getLogger(__name__)
VERSION = 1
"""Raised when prompts or readings change, so that labels bought before are told apart."""


class LlmSeller:
    """A language model behind an endpoint, as a seller of labels.

    Args:
        options: The model and how it is asked.
        guideline: What it is told.
        prices: Prices of its tokens, `Rates` where those in batches are others.
        folder: Folder of the journals.
        shots: Labelled rows to choose examples from.
        price: Price that a purchase is settled at, $1 per dollar of tokens; ``None``: the model's.
        count: Tokens of a text, for closer bounds than its bytes.
        tell: Told of long waits, one line each.
        clock: The time.

    Raises:
        SellerError: too few examples, or a way that cannot answer this kind of task.
    """

    def __init__(
        self,
        options: LlmOptions,
        guideline: Guideline,
        prices: TokenPrices | Rates,
        folder: Path,
        *,
        shots: Sequence[Shot] = (),
        price: Price | None = None,
        count: Callable[[str], int] | None = None,
        tell: Callable[[str], None] = _logger.warning,
        clock: Clock | None = None,
    ) -> None:
        self.options = options
        self.guideline = guideline
        rates = prices if isinstance(prices, Rates) else Rates(prices, prices)
        self.prices = rates.single
        self.path = journal_path(folder, options.base_url, options.model)
        self._shots = tuple(shots)
        self._price = token_bill(options.model) if price is None else price
        self._tell = tell
        self._endpoint: BatchEndpoint | None = None
        self._clock = clock = clock or Clock()
        self._means = Means(
            options,
            Questioner(options, guideline, shots, count),
            rates,
            Limits(options.requests_per_minute, options.tokens_per_minute, clock.now()),
            self._connected,
            tell,
            clock,
        )

    def __repr__(self) -> str:
        return f"LlmSeller({self.options.model!r} at {self.options.base_url!r})"

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set; empty where any text is an answer."""
        return self.guideline.labels if self.guideline.kind == "classification" else ()

    @property
    def price(self) -> Price:
        """Price of a dollar of tokens."""
        return self._price

    @property
    def order_rows(self) -> None:
        """No maximum: a purchase is one order."""

    @property
    def is_deterministic(self) -> bool:
        """False: what an answer costs is known when it is there."""
        return False

    def costs(self, examples: Sequence[Example]) -> list[RowCost]:
        """Return the dollars that each row is expected to cost and costs at most, asked again for unreadable answers included.

        Lost requests and the probe of the endpoint come on top; the allowance binds them all.
        """
        prices = self._means.asked_prices
        n, n_most = self.options.samples, self.options.samples * (1 + self.options.unreadable_retries)
        costs = []
        for example in examples:
            bound = self._means.questioner.bound(example)
            most = prices.most(bound)
            expected = self._means.questioner.expected_usd(bound, prices)
            costs.append(RowCost(min(expected, most) * n, most * n_most))
        return costs

    def quote(self, examples: Sequence[Example]) -> Quote:
        """Return the upper bound of charge and cash for some rows."""
        return Quote.of(self._price, sum((cost.most for cost in self.costs(examples)), Fraction(0)))

    def identity(self) -> Mapping[str, object]:
        """Return what decides the labels: neither price nor speed; of the tier the ways that ``auto`` may choose."""
        options, settings = self.options, replace(self.options, tier="standard").settings
        has_shots = options.examples != "none"
        return {
            "seller": "llm",
            "version": VERSION,
            "endpoint": options.base_url.rstrip("/"),
            "model": options.model,
            "way": " or ".join(options.ways) if options.way == "auto" and options.tier == "batch" else options.way,
            "guideline": self.guideline.to_json(),
            "examples": options.examples,
            "n_examples": options.n_examples if has_shots else 0,
            "examples_seed": options.examples_seed if has_shots else 0,
            "shots": key_of([[shot.row, shot.fields, shot.label] for shot in self._shots]) if has_shots else "",
            "samples": options.samples,
            "temperature": float(settings.temperature),
            "max_answer_tokens": options.max_answer_tokens,
            "extra": dict(settings.extra),
            "unreadable_retries": options.unreadable_retries,
        }

    def submit(self, order: Order) -> None:
        """Accept an order; nothing is asked yet. Raises SellerError for a known order id on other rows."""
        digest = key_of(list(order.rows))
        with open_journal(self.path, self._tell) as journal:
            known = journal.rows_of(order.id)
            if known is None:
                journal.accept(order.id, digest)
            elif known != digest:
                raise SellerError(f"order {order.id!r} was taken for other rows; give the new rows a new order id")

    def collect(self, order: Order, allowance: Allowance, report: Callable[[int], None] = no_report) -> Delivery:
        """Ask what is missing of an order, as far as ``allowance`` pays for it, and return all that came.

        Raises:
            UnknownOrder: it was never submitted.
            SellerError: no API key, or the endpoint refuses all that it is asked; what came before is kept.
            StoreError: the journal cannot be written.
        """
        unknown = UnknownOrder(f"order {order.id!r} was never submitted; submit it first")
        if not self.path.exists():
            raise unknown
        usd = allowance.left
        look = Allowance(usd)
        try:
            while True:
                # Every look has the whole allowance: it takes what earlier ones have spent.
                look = Allowance(usd)
                with open_journal(self.path, self._tell) as journal:
                    if journal.rows_of(order.id) != key_of(list(order.rows)):
                        raise unknown
                    if not order.rows:
                        return Delivery(order.id, ())
                    delivery = Collection(self._means, journal, order, look).collected(report)
                if delivery.waits_for is None or self.options.poll_seconds is None:
                    return delivery
                self._clock.sleep(self.options.poll_seconds)
        finally:
            allowance.take(usd - look.left)
            self._close()

    def _connected(self) -> BatchEndpoint:
        if self._endpoint is None:
            options = self.options
            self._endpoint = BatchEndpoint(options.base_url, options.api_key_env, options.timeout)
        return self._endpoint

    def _close(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
