"""A small world to run in: a generated task, a tiny checkpoint, a seller that takes real cash."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Self

from outlay.engine import sellers
from outlay.engine.point import Point
from outlay.engine.prepare import PreparedRun, RunBuilder
from outlay.engine.runner import Runner
from outlay.engine.step_runner import Job, JobResult, JobRunner
from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Delivery, Order, no_report
from outlay.labels.replay import Replay
from outlay.money.amounts import PriceBook, Quote
from outlay.plan.request import Request
from outlay.storage.store import Store
from outlay.study.scheduler import Scheduler
from outlay.tasks.demo import generate
from outlay.tasks.example import Example
from outlay.text.listener import Listener
from outlay.workers.pool import InProcessPool, Report
from tests.checkpoints import make_checkpoint, make_gpt2, make_t5

FAST = {
    "teacher": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32", "method": "full"},
    "student": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32", "method": "full"},
    "distil": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32", "method": "full"},
}


class PayingReplay(Replay):
    """Replay, but every label leaves the bank: what a human or an API seller does."""

    def quote(self, examples: Sequence[Example]) -> Quote:
        quote = super().quote(examples)
        return replace(quote, cash_micros=quote.charge_micros)

    def collect(self, order: Order, allowance: Allowance, report: Callable[[int], None] = no_report) -> Delivery:
        delivery = super().collect(order, allowance)
        return replace(delivery, cash_micros=self.price.cost_micros(delivery.quantity))


class World:
    """Files of one task and one checkpoint below ``root``."""

    def __init__(self, root: Path, *, n_pool: int = 150, n_layers: int = 4) -> None:
        splits = generate(seed=3, n_train=120, n_dev=30, n_test=40, n_pool=n_pool, noise=0.0)
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
        self.checkpoint = make_checkpoint(root / "checkpoint", texts, n_layers=n_layers)
        self.workbench = RunBuilder(PriceBook.load())

    def fresh(self) -> Self:
        """The same files with a builder that has worked nothing out yet."""
        again = copy.copy(self)
        again.workbench = RunBuilder(PriceBook.load())
        return again

    def request(self, **changes: object) -> Request:
        base = Request(
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

    def prepared(self, **changes: object) -> PreparedRun:
        return self.workbench.prepare(self.request(**changes))


REAGENTS = ("water", "salt", "buffer", "ethanol", "agar")
ACTIONS = ("mix", "heat", "shake", "cool")
KINDS = {
    "classes": "kind: classification\nlabels: [warm, cold]\nmetric: f1",
    "entities": "kind: entities\nlabels: [Reagent, Action]\nmetric: entity_f1",
    "questions": "kind: generation\nmetric: qa_f1",
    "paraphrases": "kind: generation\nmetric: bert_ibleu\nbertscore: {{model: {judge}, layer: 1, idf: true}}",
}
ROLES = ("teacher", "student", "distil")


class FamilyWorld(World):
    """Four tasks on the same made-up laboratory notes, and a small checkpoint of each family, below ``root``."""

    def __init__(self, root: Path) -> None:
        rows = _notes(60)
        words = [text for row in rows for text in (*row.values(), "warm cold lab: Reagent [Reagent] [Action]")]
        self.checkpoints = {
            "encoder": make_checkpoint(root / "encoder", words, n_layers=2),
            "seq2seq": make_t5(root / "seq2seq", words, n_layers=1),
            "padded": make_t5(root / "padded", words, n_layers=1, seed=1, vocab_extra=28),
            "causal": make_gpt2(root / "causal", words, n_layers=1),
        }
        self.workbench = RunBuilder(PriceBook.load())
        self.tasks = {name: self._write(root / name, name, rows, text) for name, text in KINDS.items()}

    def _write(self, folder: Path, name: str, rows: list[dict[str, str]], kind: str) -> Path:
        folder.mkdir()
        for split, start, stop in (("train", 0, 24), ("dev", 24, 32), ("test", 32, 42), ("pool", 42, 60)):
            lines = [json.dumps({"note": row["note"], "target": row[name]}) for row in rows[start:stop]]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        task = folder / "task.yaml"
        task.write_text(
            f"""
name: {name}
text: "{{note}}"
prefix: "lab: "
{kind.format(judge=self.checkpoints["encoder"])}
price_item: label/demo
max_source_tokens: 16
max_target_tokens: 16
data:
  train: {{file: train.jsonl, target: target}}
  dev: {{file: dev.jsonl, target: target}}
  test: {{file: test.jsonl, target: target}}
pool:
  - {{name: train, split: train}}
  - {{name: notes, file: pool.jsonl}}
"""
        )
        return task

    def family_request(self, task: str, teacher: str, student: str, **changes: object) -> Request:
        """One epoch on a few rows; what ``changes`` says of ``overrides`` comes on top."""
        fast = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "method": "full"}
        more: dict[str, dict[str, object]] = changes.pop("overrides", {})  # type: ignore[assignment]
        base = Request(
            task=str(self.tasks[task]),
            strategy="distill",
            budget_micros=4_000_000,
            n_initial=12,
            teacher=str(self.checkpoints[teacher]),
            student=str(self.checkpoints[student]),
            threads=1,
            overrides={role: {**(fast if role in ROLES else {}), **more.get(role, {})} for role in (*ROLES, "teach")},
        )
        return replace(base, **changes)  # type: ignore[arg-type]


def _notes(n: int) -> list[dict[str, str]]:
    """Different notes, each with its answer to every task."""
    rng = random.Random(5)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < n:
        action, reagent, minutes = rng.choice(ACTIONS), rng.choice(REAGENTS), rng.randrange(2, 40)
        note = f"{action} the {reagent} for {minutes} minutes"
        rows[note] = {
            "note": note,
            "classes": "warm" if action == "heat" else "cold",
            "entities": f"{action} [Action] {reagent} [Reagent]",
            "questions": f"{minutes} minutes",
            "paraphrases": f"for {minutes} minutes {action} the {reagent}",
        }
    return list(rows.values())


class OneRun(RunBuilder):
    """A builder that knows one run, which is prepared already."""

    def __init__(self, prepared: PreparedRun) -> None:
        super().__init__(prepared.price_book)
        self._prepared = prepared

    def prepare(self, options: Request) -> PreparedRun:
        return self._prepared


class OneByOne(Runner):
    """A results folder whose runs are brought about one by one, by the scheduler in this process."""

    def finished(self, run_id: str) -> Point | None:
        """The point of a finished run; the ledger is verified."""
        return self.all_finished([run_id]).get(run_id)

    def execute(self, prepared: PreparedRun, listener: Listener | None = None) -> Point:
        """From wherever an earlier attempt was cut off; a run that is done is replayed."""
        if (done := self.finished(prepared.request.run_id)) is not None:
            return done
        maker, points = JobRunner(self.store, lambda _: prepared), list[Point]()

        def make(job: Job, report: Report) -> JobResult:
            return maker.make(job, report)

        with InProcessPool(lambda: make) as pool:
            scheduler = Scheduler(
                self, OneRun(prepared), pool, listener or Listener(), lambda _, point: points.append(point)
            )
            scheduler.run({0: prepared.asked})
        return points[0]


def runner(folder: Path, store: Path, **changes: object) -> OneByOne:
    here = PriceBook.load().get("cpu")
    return OneByOne(folder, Store(store), here=here, **changes)  # type: ignore[arg-type]


def pay_for_labels(monkeypatch: object) -> None:
    """Let every label of this test leave the bank."""
    monkeypatch.setattr(sellers, "Replay", PayingReplay)  # type: ignore[attr-defined]


def bought_rows(store: Path) -> list[str]:
    """Every row id that was ever written into the book of labels, repeats included."""
    rows: list[str] = []
    for path in sorted((store / "bought").glob("*.jsonl")):
        rows += [row for line in path.read_text().splitlines() for row, _ in json.loads(line).get("labels", ())]
    return rows


def exact_sum(quantities: Sequence[str]) -> Fraction:
    return sum((Fraction(q) for q in quantities), Fraction(0))
