"""A language model as a seller in tests: its task, its prices and rows, at a cashier's address."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from threading import Condition

from outlay.labels.llm.asking import Clock
from outlay.labels.llm.options import LlmOptions
from outlay.labels.llm.prompts import Guideline
from outlay.labels.llm.seller import LlmSeller
from outlay.money.prices.tokens import TokenPrices
from outlay.tasks.example import Example

KEY_VARIABLE = "OUTLAY_TEST_KEY"
KEY = "sk-planted-0123456789abcdef"
KEYWORDS = {"spam": ["win", "free"], "ham": ["meeting", "lunch"]}
LABELS = tuple(KEYWORDS)
GUIDELINE = Guideline("classification", LABELS, ("text",), "Say whether the message is spam.")
PRICES = TokenPrices(*(Decimal(usd) / 1_000_000 for usd in ("0.25", "0.025", "0.25", "2")))
"""Those of a cashier's `Prices`, but that what is written to the cache is paid as input."""


def row(number: int) -> Example:
    """A row with a text and an id of its own; even ones are spam."""
    text = f"number {number}: " + ("win a free thing" if number % 2 == 0 else "a meeting at lunch")
    return Example(hashlib.sha256(text.encode()).hexdigest(), (("text", text),), text, None, f"made:{number}")


def label_of(number: int) -> str:
    return LABELS[number % 2]


class FastClock(Clock):
    """A clock that runs twenty times as fast."""

    FACTOR = 20.0

    def now(self) -> float:
        return super().now() * self.FACTOR

    def wait(self, changed: Condition, seconds: float) -> None:
        super().wait(changed, seconds / self.FACTOR)


def silent(line: str) -> None:
    """Tell nobody."""


def llm(
    base_url: str,
    folder: Path,
    *,
    tell: Callable[[str], None] = silent,
    guideline: Guideline = GUIDELINE,
    prices: TokenPrices = PRICES,
    **options: object,
) -> LlmSeller:
    """A seller with the key in `KEY_VARIABLE` that answers by chat and a schema, fast to give up."""
    given = {"way": "schema", "timeout": 5.0, "api_key_env": KEY_VARIABLE, **options}
    return LlmSeller(LlmOptions("scripted", base_url, **given), guideline, prices, folder, tell=tell, clock=FastClock())  # type: ignore[arg-type]
