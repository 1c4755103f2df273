"""Labels that a new task is to buy, since its rows have none: which, of whom, and how many rows to score on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from outlay.errors import UsageError
from outlay.spec import Kind
from outlay.tasks.seller_blocks import LLM_NAME, PEOPLE, OpenAISeller
from outlay.tasks.task import Task
from outlay.tasks.yaml_file import checked
from outlay.text.legible import named

BOUGHT_TEST, BOUGHT_DEV = 300, 100
"""Rows to buy the test and the dev labels of: ± 4.5 and ± 7.8 points at 80 %."""
TEST_SHARE, DEV_SHARE = 5, 10
"""One row in so many at most is for test, and for dev."""
_RIGHT = 0.8
"""Share of right answers at which the interval of bought rows is told."""
_COMPUTE_USD = 10
"""Dollars of a first budget beside the labels."""
_INSTRUCTIONS: dict[Kind, str] = {
    "classification": "Choose the label that fits the text best.",
    "entities": "List what the text names, in its order: each as it is written there, with its type in brackets behind it.",
    "generation": "Answer the text with a few words.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToLabel:
    """Labels to be bought.

    Attributes:
        labels: classes, or types of entities; none for free answers.
        descriptions: label → words on what it stands for.
        instruction: what an annotator is told; ``None`` = a plain sentence for the kind of task.
        sellers: ``people``, who fill in files, ``llm``, or both; dev and test labels are bought of the first.
        llm: name of the model of ``llm`` at its endpoint.
        url: address of the endpoint; ``None`` = OpenAI's.
        usd_per_label: dollars that a label of people costs, as a plain number; ``None`` = nothing.
    """

    labels: tuple[str, ...] = ()
    descriptions: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    sellers: tuple[str, ...] = (PEOPLE,)
    llm: str | None = None
    url: str | None = None
    usd_per_label: str | None = None

    @property
    def eval_seller(self) -> str:
        """Name of the seller of dev and test labels."""
        return self.sellers[0]

    def told(self, kind: Kind) -> str:
        """Return the instruction."""
        return self.instruction or _INSTRUCTIONS[kind]

    def blocks(self) -> dict[str, dict[str, str]]:
        """Return the sellers as a task file has them."""
        llm = {"kind": "openai", "model": self.llm or ""} | ({} if self.url is None else {"base_url": self.url})
        # Without people there are no labels to show as examples.
        llm |= {} if PEOPLE in self.sellers else {"examples": "none"}
        known = {PEOPLE: {"kind": "files"}, LLM_NAME: llm}
        return {name: known[name] for name in self.sellers}

    def keys(self, kind: Kind, *, has_dev: bool = True) -> dict[str, Any]:
        """Return the keys of a task file that say of whom labels are bought."""
        eval_seller = {} if self.eval_seller == PEOPLE else {"eval_seller": self.eval_seller}
        return {
            "instruction": self.told(kind),
            "descriptions": dict(self.descriptions),
            "dev": "bought" if has_dev else "carved",
            "test": "bought",
            **eval_seller,
            "sellers": self.blocks(),
        }

    @property
    def strategies(self) -> tuple[str, ...]:
        """Strategies that buy of the sellers."""
        of_people = ("annotate", "distill") if PEOPLE in self.sellers else ()
        return (*of_people, *(("llm_annotate",) if LLM_NAME in self.sellers else ()))

    def first_budget(self, n_rows: int) -> int:
        """Return whole dollars that pay for ``n_rows`` dev and test labels, as many train labels, and some compute."""
        price = Decimal(self.usd_per_label or 0) if self.eval_seller == PEOPLE else Decimal(0)
        return math.ceil(2 * n_rows * price) + _COMPUTE_USD


def half_interval(n_rows: int, share: float = 0.5) -> float:
    """Return half of the 95 % interval of a share of right answers among so many rows, in points; widest at 0.5."""
    return 100 * 1.96 * math.sqrt(share * (1 - share) / n_rows)


def check_to_label(name: str, kind: Kind, asked: ToLabel) -> None:
    """Refuse labels, sellers and words that make no task.

    Raises:
        UsageError: one line with the option to correct.
    """
    if (unknown := [seller for seller in asked.sellers if seller not in (PEOPLE, LLM_NAME)]) or not asked.sellers:
        raise UsageError(
            f"--seller names {named(unknown) or 'nobody'}; choose {PEOPLE}, {LLM_NAME} or both, with a comma"
        )
    if len(set(asked.sellers)) < len(asked.sellers):
        raise UsageError(f"--seller names {asked.sellers[0]} twice; name each once")
    if LLM_NAME in asked.sellers and not asked.llm:
        raise UsageError(f"--seller {LLM_NAME} needs a model; name it with --llm, such as --llm gpt-5-mini")
    if LLM_NAME not in asked.sellers and (asked.llm or asked.url):
        raise UsageError(f"--llm and --url say which model labels; say --seller {LLM_NAME}, or leave them out")
    if PEOPLE not in asked.sellers and asked.usd_per_label is not None:
        raise UsageError(
            f"--label-price is what a label of people costs, and {LLM_NAME} is paid by tokens; leave it out, or say "
            f"--seller {PEOPLE},{LLM_NAME}"
        )
    if kind == "classification" and not asked.labels:
        raise UsageError(
            "which labels are to be bought is not said; name them with --labels, such as --labels spam,other"
        )
    data = {"train": {"file": "train.jsonl"}, "dev": {"file": "dev.jsonl"}, "test": {"file": "test.jsonl"}}
    content = {
        "name": name,
        "kind": kind,
        "text": "{row}",
        "labels": list(asked.labels),
        "price_item": "label",
        "data": data,
    }
    try:
        checked({**content, **asked.keys(kind)}, Task)
    except ValueError as error:
        raise UsageError(str(error)) from None


def bought_rows(n: int, test: int | None, dev: int | None) -> tuple[int, int]:
    """Return how many of ``n`` rows are for test and for dev; ``test``, ``dev``: numbers that the user names.

    Raises:
        UsageError: numbers that leave no row to train on, or none to score on.
    """
    n_test = min(BOUGHT_TEST, n // TEST_SHARE) if test is None else test
    n_dev = min(BOUGHT_DEV, n // DEV_SHARE) if dev is None else dev
    if n_test < 1 or n_dev < 0 or n_test + n_dev >= n:
        raise UsageError(
            f"{n_test:,} rows for test and {n_dev:,} for dev of {n:,} leave none to train on; give --test from 1 and --dev "
            f"from 0, together below {n:,}"
        )
    return n_test, n_dev


def lines_on_labels(asked: ToLabel, sizes: Mapping[str, int], n_rows: int, seed: int) -> list[str]:
    """Return a sentence for each part that is set aside, with its price and the interval it gives, and what else was decided.

    ``sizes``: rows by ``test`` and ``dev``; ``n_rows``: of all.
    """
    lines = [_line_on_part(asked, what, n, n_rows, seed) for what, n in sizes.items()]
    n_left = n_rows - sum(sizes.values())
    lines.append(f"{n_left:,} rows are left to be labelled for training, and all of them are the pool")
    lines += [] if asked.instruction else ["annotators are told a plain sentence; --instruction says it otherwise"]
    plain = [label for label in asked.labels if label not in asked.descriptions]
    if plain:
        lines.append(f"annotators are told no more than the name of {named(plain)}; --describe LABEL=WORDS says more")
    if asked.eval_seller == LLM_NAME:
        lines.append(
            f"scores will say how often a model agrees with {asked.llm}, right or wrong; --seller {PEOPLE},{LLM_NAME} has people "
            "label dev and test"
        )
    if LLM_NAME in asked.sellers:
        url = asked.url or OpenAISeller.model_fields["base_url"].default
        lines.append(f"{LLM_NAME} is {asked.llm} at {url}, and its tokens need a price in the price book")
    if PEOPLE in asked.sellers and asked.usd_per_label is None:
        lines.append("labels of people cost nothing, since no price is given; --label-price names one")
    return lines


def _line_on_part(asked: ToLabel, what: str, n: int, n_rows: int, seed: int) -> str:
    if not n:
        return f"{what}: none set aside; each run keeps a tenth of its labels for it (`dev: carved`); --{what} says how many"
    if asked.eval_seller == LLM_NAME:
        paid = f"labelled by {asked.llm}"
    else:
        price = Decimal(asked.usd_per_label or 0)
        paid = f"bought at ${price.normalize():f} = ${n * price:,.2f}" if price else "labelled by people"
    return (
        f"{what}: {n:,} of {n_rows:,} rows, seed {seed}, {paid}, {'give' if n > 1 else 'gives'} ± {half_interval(n, _RIGHT):.1f} "
        f"points at {100 * _RIGHT:.0f} %; --{what} says how many"
    )
