"""A small world to run in: a generated task, a tiny checkpoint, a seller that takes real cash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from outlay import prepare
from outlay.demo import generate
from outlay.labels.base import Delivery, Order
from outlay.labels.replay import Replay
from outlay.money import PriceBook, Quote
from outlay.prepare import Options, Prepared, Workbench
from outlay.run import Runner
from outlay.store import Store
from tests.checkpoints import make_checkpoint

FAST = {
    "teacher": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32"},
    "student": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32"},
    "distil": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32"},
}


class PayingReplay(Replay):
    """Replay, but every label leaves the bank: what a human or an API seller does."""

    def quote(self, n: int) -> Quote:
        quote = super().quote(n)
        return replace(quote, cash_micros=quote.charge_micros)

    def deliver(self, order: Order) -> Delivery:
        delivery = super().deliver(order)
        return replace(delivery, cash_micros=delivery.charge_micros)


class World:
    """Files of one task and one checkpoint below ``root``."""

    def __init__(self, root: Path) -> None:
        splits = generate(seed=3, n_train=120, n_dev=30, n_test=40, n_pool=150, noise=0.0)
        labels = sorted({row.label for row in splits.train})
        self.task = root / "task.yaml"
        for name, rows in (("train", splits.train), ("dev", splits.dev), ("test", splits.test)):
            lines = [json.dumps({"message": row.message, "label": row.label}) for row in rows]
            (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        (root / "pool.jsonl").write_text("".join(json.dumps({"message": m}) + "\n" for m in splits.pool))
        self.task.write_text(
            f"""
name: small
text: "{{message}}"
labels: [{", ".join(labels)}]
metric: accuracy
price_item: label/demo
max_source_tokens: 32
dev: given
data:
  train: {{file: train.jsonl, target: label}}
  dev: {{file: dev.jsonl, target: label}}
  test: {{file: test.jsonl, target: label}}
pool:
  - {{name: train, split: train}}
  - {{name: messages, file: pool.jsonl}}
"""
        )
        texts = [row.message for row in splits.train] + list(splits.pool)
        self.checkpoint = make_checkpoint(root / "checkpoint", texts)
        self.workbench = Workbench(PriceBook.load())

    def options(self, **changes: object) -> Options:
        base = Options(
            task=str(self.task),
            strategy="distill",
            budget_micros=20_000_000,
            n_initial=60,
            teacher=str(self.checkpoint),
            student="cut:2",
            threads=1,
            overrides=FAST,
        )
        return replace(base, **changes)  # type: ignore[arg-type]

    def prepared(self, **changes: object) -> Prepared:
        return self.workbench.prepare(self.options(**changes))


def runner(folder: Path, store: Path, **changes: object) -> Runner:
    here = PriceBook.load().get("cpu")
    return Runner(folder, Store(store), here=here, **changes)  # type: ignore[arg-type]


def pay_for_labels(monkeypatch: object) -> None:
    """Let every label of this test leave the bank."""
    monkeypatch.setattr(prepare, "Replay", PayingReplay)  # type: ignore[attr-defined]


def bought_rows(store: Path) -> list[str]:
    """Every row id that was ever written into the book of labels, repeats included."""
    rows: list[str] = []
    for path in sorted((store / "bought").glob("*.jsonl")):
        rows += [row for line in path.read_text().splitlines() for row, _ in json.loads(line)["labels"]]
    return rows


def exact_sum(quantities: Sequence[str]) -> Fraction:
    return sum((Fraction(q) for q in quantities), Fraction(0))
