"""A seller that asks in batches, for tests, and the moments at which its process may end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from outlay.labels import Allowance, Delivery, Order
from outlay.labels.llm.batch_wire import BatchEndpoint
from outlay.labels.llm.billing import Rates
from outlay.labels.llm.options import LlmOptions
from outlay.labels.llm.seller import LlmSeller
from outlay.money.prices.tokens import TokenPrices
from tests.llm_selling import GUIDELINE, KEY_VARIABLE, PRICES, FastClock, row, silent

RICH = Fraction(1000)
HALF = TokenPrices(*(getattr(PRICES, name) * Decimal("0.5") for name in ("input", "cached", "cache_write", "output")))

MOST_SLEEPS = 100

POINTS = ("before upload", "after upload", "before create", "after create", "before retrieve", "amid download")
"""Moments of a purchase by batch at which a process may end."""


class Eager(FastClock):
    """A clock whose sleeps are noted and take no time."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        assert len(self.slept) < MOST_SLEEPS, "it waits for ever"


def batcher(
    url: str, folder: Path, *, poll_seconds: float | None = None, clock: Eager | None = None, **options: object
) -> LlmSeller:
    """A seller that asks in batches, by chat and a schema unless ``options`` say otherwise."""
    given = {"way": "schema", "timeout": 5.0, "api_key_env": KEY_VARIABLE, "tier": "batch", **options}
    given["poll_seconds"] = poll_seconds
    return LlmSeller(
        LlmOptions("scripted", url, **given),  # type: ignore[arg-type]
        GUIDELINE,
        Rates(PRICES, HALF),
        folder,
        tell=silent,
        clock=clock or Eager(),
    )


def order(n: int, name: str = "order", start: int = 0) -> Order:
    return Order.of(name, [row(number) for number in range(start, start + n)])


def bought(seller: LlmSeller, what: Order, usd: Fraction = RICH) -> Delivery:
    seller.submit(what)
    return seller.collect(what, Allowance(usd))


def dying(point: str, die: Callable[[], None]) -> dict[str, Callable[..., object]]:
    """Methods of `BatchEndpoint` that call ``die`` at a point."""
    when, name = point.split()
    real = getattr(BatchEndpoint, name)

    def dies(self: BatchEndpoint, *args: object) -> object:
        if when == "before":
            die()
        came = real(self, *args)
        if when == "after":
            die()
        return first_lines(came) if when == "amid" else came

    def first_lines(lines: Iterator[bytes]) -> Iterator[bytes]:
        for number, line in enumerate(lines):
            if number == 3:
                die()
            yield line

    return {name: dies}
