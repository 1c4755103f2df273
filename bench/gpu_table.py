"""What `bench/gpu.py` prints: measured steps, what the published pipeline takes at their speed, and what it costs.

Machines and prices are read from outlay's own records with nothing but the standard library, so that the program runs where
pydantic is not installed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

N_LABELS, TEACHER_EPOCHS = 5_000, 20
N_POOL, STUDENT_EPOCHS = 100_000, 50
"""Kang et al. 2023, Table 6 (and section 2.5): the pipeline whose cost is published."""
PUBLISHED_USD = (67.5, 435.0)
"""WLP in Table 6: teacher fine-tuning, distillation; in A40 hours at the price of section 2.5."""

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Measured:
    """What went through a step in ``seconds``; ``n_tokens`` without padding, ``flops`` by `outlay.models.shape`."""

    n_examples: int
    n_tokens: int
    seconds: float
    flops: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """A task and what it gave, or the ``reason`` why it gave nothing."""

    what: str
    how: str
    n_pipeline: int = 0
    measured: Measured | None = None
    reason: str = ""

    @property
    def hours(self) -> float | None:
        """Of the pipeline's share of this step."""
        if self.measured is None:
            return None
        return self.n_pipeline / self.measured.n_examples * self.measured.seconds / 3600


@dataclass(frozen=True, slots=True)
class Card:
    """What the figures were measured on; ``counts``: whether the true sizes were, so that hours and dollars mean something.

    ``peak_flops_per_second``: dense bf16; it and the price are ``None`` where no record of ``machines.toml`` fits the name.
    """

    name: str
    counts: bool = False
    peak_flops_per_second: float | None = None
    usd_per_hour: float | None = None
    price_source: str = ""


def table(rows: Sequence[Row], card: Card) -> list[str]:
    """Markdown: every row, the pipeline from them, and what was published."""
    lines = ["| step | how | examples/s | tokens/s | MFU | peak GB | GPU-hours | $ |", "|" + "---|" * 8]
    lines += [line(card, row) for row in rows]
    lines += [_sum_line(card, parts) for parts in pipelines(rows)]
    usd = PUBLISHED_USD
    a40 = prices()["a40"][0]
    hours = " + ".join(f"{each / a40:.0f}" for each in usd)
    return [
        *lines,
        f"| published (Kang et al. 2023, Table 6) | T5-XXL, T5-Small | | | | | {hours} (A40) | {sum(usd):.2f} |",
    ]


def pipelines(rows: Sequence[Row]) -> list[tuple[Row, Row, Row]]:
    """Fine-tuning in full, teacher pass, distillation: one for each way to distil that was measured."""
    tunings = [row for row in rows if row.what == "fine-tune teacher" and "lora" not in row.how and row.measured]
    passes = [row for row in rows if row.what == "teacher pass" and row.measured]
    distils = [row for row in rows if row.what == "distil student" and row.measured]
    return [(tunings[0], passes[0], distil) for distil in distils] if tunings and passes else []


def line(card: Card, row: Row) -> str:
    """A row of the table."""
    begin = f"| {row.what} | {row.how} |"
    if row.measured is None:
        return f"{begin} {NOT_MEASURED}: {row.reason} | | | | {NOT_MEASURED} | {NOT_MEASURED} |"
    m = row.measured
    peak = card.peak_flops_per_second
    mfu = f"{m.flops / m.seconds / peak:.1%}" if card.counts and peak else NOT_MEASURED
    memory = f"{m.peak_bytes / 1e9:.1f}" if m.peak_bytes else NOT_MEASURED
    rates = f"{m.n_examples / m.seconds:,.1f} | {m.n_tokens / m.seconds:,.0f}"
    return f"{begin} {rates} | {mfu} | {memory} | {_cost(card, row.hours)} |"


def _sum_line(card: Card, rows: Sequence[Row]) -> str:
    hours = sum(row.hours or 0.0 for row in rows)
    return f"| **in all** | {' + '.join(row.how for row in rows)} | | | | | {_cost(card, hours)} |"


def _cost(card: Card, hours: float | None) -> str:
    """GPU-hours and dollars, for the true sizes only."""
    if not card.counts or hours is None:
        return f"{NOT_MEASURED} | {NOT_MEASURED}"
    usd = card.usd_per_hour
    return f"{hours:.3f} | {'no price' if usd is None else f'{hours * usd:.2f}'}"


def prices() -> dict[str, tuple[float, str]]:
    """Dollars an hour and their source, by item of the price book."""
    found: dict[str, tuple[float, str]] = {}
    for path in sorted((resources.files("outlay.money") / "prices").iterdir(), key=lambda path: path.name):
        for price in tomllib.loads(path.read_text(encoding="utf-8"))["price"]:
            if price["unit"] == "hour":
                found[price["item"]] = (float(price["usd"]), price["source"])
    return found


def card_of(name: str, *, counts: bool) -> Card:
    """The record of ``machines.toml`` all of whose words are in a device's name (``a100-80gb``: "NVIDIA A100-SXM4-80GB")."""
    text = (resources.files("outlay.money") / "machines.toml").read_text(encoding="utf-8")
    machines = [
        machine
        for machine in tomllib.loads(text)["machine"]
        if all(word in name.lower() for word in machine["name"].split("-"))
    ]
    if not machines:
        return Card(name, counts)
    best = max(machines, key=lambda machine: len(machine["name"]))
    usd, source = prices().get(best["price_item"], (None, ""))
    return Card(name, counts, float(best["peak_flops_per_second"]), usd, source)
