"""Options about sellers who label for real: a language model, sellers of a file, people who are waited for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from outlay.cli.lazy_help import MAY_STAND_ALONE
from outlay.cli.option_groups import option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from outlay.tasks.seller_blocks import SellerBlock

LABELS = "Labels and sellers"

UrlOption = Annotated[
    str | None, option("--llm-url", panel=LABELS, says="Address of its endpoint. (default: OpenAI's)", metavar="URL")
]
KeyOption = Annotated[
    str | None,
    option(
        "--llm-key-env",
        panel=LABELS,
        says="Variable that holds its API key; none: it takes none. (default: OPENAI_API_KEY)",
        metavar="NAME",
    ),
]
ExamplesOption = Annotated[
    str | None,
    option(
        "--llm-examples",
        panel=LABELS,
        says="Bought labels it is shown: none, fixed, shuffled or nearest; a number behind a colon. (default: fixed:16)",
        metavar="HOW[:N]",
    ),
]
WayOption = Annotated[
    str | None,
    option(
        "--llm-way",
        panel=LABELS,
        says="How it is asked: decisions, systemone, schema or chat. (default: the best that it does)",
        metavar="WAY",
    ),
]
PriceOption = Annotated[
    str | None,
    option(
        "--llm-price",
        panel=LABELS,
        says="Item of its token prices, or free for a server of your own. (default: its name)",
        metavar="ITEM|free",
    ),
]
SellersOption = Annotated[
    Path | None,
    option(
        "--sellers",
        panel=LABELS,
        says="A YAML file with the block `sellers` of a task file, in place of the task's by name.",
        metavar="FILE",
    ),
]
WaitOption = Annotated[
    float | None,
    option(
        "--wait",
        panel=LABELS,
        says=f"Wait for labels on order, and look every so many seconds ({MAY_STAND_ALONE['--wait']}).",
        metavar="[SECONDS]",
    ),
]
TakeOption = Annotated[
    bool, option("--take", panel=LABELS, says="Close orders on people with the answers that are there.")
]


@dataclass(frozen=True, slots=True)
class SellerOptions:
    """Options of a language model and of other sellers who label for real."""

    llm: Annotated[
        str | None,
        option("--llm", panel=LABELS, says="Model that labels, at an OpenAI-compatible endpoint.", metavar="MODEL"),
    ] = None
    llm_url: UrlOption = None
    llm_key_env: KeyOption = None
    llm_examples: ExamplesOption = None
    llm_way: WayOption = None
    llm_price: PriceOption = None
    sellers: SellersOption = None

    def model_options(self) -> dict[str, Any]:
        """Return the options of the model under the keys of a task file."""
        from outlay.engine.seller_options import NO_KEY, example_options

        given = {
            "model": self.llm,
            "base_url": self.llm_url,
            "way": self.llm_way,
            "price_item": self.llm_price,
            "api_key_env": self.llm_key_env,
        }
        found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.llm_key_env == NO_KEY:
            found["api_key_env"] = None
        return found | ({} if self.llm_examples is None else example_options(self.llm_examples))

    def named(self) -> Mapping[str, SellerBlock]:
        """Return the sellers of the file; none without one."""
        from outlay.tasks.sellers_file import read_sellers

        return {} if self.sellers is None else read_sellers(self.sellers)
