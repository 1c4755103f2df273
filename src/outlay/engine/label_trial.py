"""Trials of language models on rows whose gold labels are known: how good their labels are, and what they cost.

Nothing of a trial is in a purchase of a run. What was asked is in the journal of the model, so that a second trial of the same
rows asks nothing, and a run that asks the same question neither.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median

from outlay.engine.purchase_terms import count_reasons, n_lost, terms_of, words_on
from outlay.engine.sellers import Place, make_seller, n_examples_of
from outlay.errors import UsageError
from outlay.labels.agreement import cohen_kappa
from outlay.labels.allowance import Allowance
from outlay.labels.annotator import Annotator, Delivery, Order
from outlay.metrics import main_score, score
from outlay.metrics.calibration import calibration_error_of
from outlay.metrics.intervals import Reading
from outlay.metrics.questions import normalised
from outlay.money.amounts import PriceBook
from outlay.plan.request import SellerSpec
from outlay.storage.store import key_of
from outlay.tasks.example import Example, seeded_order
from outlay.tasks.splits import SeededOrder, TaskData
from outlay.tasks.task import Task

N_PARTS = 3
"""Parts of the answers by confidence, whose accuracy is told."""
NO_LABEL = "(none)"
"""Name of the answer of a row that got no label."""


@dataclass(frozen=True)
class TrialRows:
    """Rows to ask a model about, with their gold labels, and labelled train rows that it may be shown."""

    task: Task
    split: str
    rows: Sequence[Example]
    train: Sequence[Example]
    seed: int

    @classmethod
    def of(cls, task: Task, data: TaskData, split: str, n: int, seed: int) -> TrialRows:
        """Draw ``n`` rows of a split, by the seed.

        Raises:
            UsageError: another split than dev or test, or one without a gold label.
        """
        if split not in ("dev", "test"):
            raise UsageError(f"the split is {split!r}; choose dev or test: train rows are what labels are bought of")
        known = [row for row in (data.dev if split == "dev" else data.test) if row.label is not None]
        if not known:
            other = "test" if split == "dev" else "dev"
            raise UsageError(
                f"task {task.name} has no {split} row with a gold label to compare answers with; choose --split {other}, or "
                "label some rows yourself"
            )
        drawn = [known[i] for i in seeded_order([row.id for row in known], seed)[:n]]
        train = [row for row in SeededOrder.of(data, seed).train if row.label is not None]
        return cls(task, split, drawn, train, seed)


@dataclass(frozen=True)
class Trial:
    """A model that is to be tried: its seller, with examples; ``n_shown``: how many it has to choose from."""

    spec: SellerSpec
    rows: TrialRows
    seller: Annotator
    n_shown: int
    lost: Callable[[str], int]

    @classmethod
    def of(cls, spec: SellerSpec, rows: TrialRows, book: PriceBook, place: Place) -> Trial:
        """Build the seller of a model; nothing is asked yet.

        Raises:
            UnknownItem: no price for the tokens of the model.
            UsageError: it is to be shown labels, and no train row has one.
        """
        n = n_examples_of(spec)
        shown = rows.train[:n]
        if n and not shown:
            raise UsageError(
                f"{words_on(spec)} is shown labels, and no train row of task {rows.task.name} has one; say --llm-examples none"
            )
        seller = make_seller(spec, rows.rows, rows.task, book, rows.seed, place, shown)
        terms = terms_of(spec, rows.task, book, place)
        return cls(spec, rows, seller, len(shown), lambda order: n_lost([terms], [order], place.asked))

    @property
    def who(self) -> str:
        """The model in words."""
        return str(words_on(self.spec))

    def run(self, allowance: Allowance, report: Callable[[int], None]) -> TrialResult:
        """Ask about the rows as far as an allowance pays for them; what was asked before is not asked again.

        Raises:
            SellerError: no key, or the endpoint refuses all that it is asked.
        """
        ids = [row.id for row in self.rows.rows]
        order = Order.of(key_of(["trial", dict(self.seller.identity()), ids]), self.rows.rows)
        began = time.monotonic()
        self.seller.submit(order)
        delivery = self.seller.collect(order, allowance, report)
        seconds = time.monotonic() - began
        return _result(self, delivery, self.lost(order.id), seconds)


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a trial.

    ``score``: by the task's metric, on the rows that got a label, 0-100, ``None`` where the metric needs a model of its own;
    ``agreed``: share (0-1) of these whose label is the gold one; ``kappa``: Cohen's, of classes; ``confusion``: rows by gold
    label and answer; ``ece``: expected calibration error, 0-100, and ``parts``: accuracy (0-1) by thirds of confidence, the least
    sure first, both empty without confidences; ``refused``: rows by the reason that they got no label; ``n_unbought``: rows that
    the allowance did not pay for; ``usd``: all that the rows were billed; ``cash_micros``: the part of it that this order paid.
    """

    who: str
    n_rows: int
    n_labels: int
    n_right: int
    metric: str
    score: Reading | None
    kappa: float | None
    confusion: Mapping[str, Mapping[str, int]]
    ece: float | None
    parts: tuple[float, ...]
    refused: Mapping[str, int]
    n_unbought: int
    n_lost: int
    usd: Fraction
    cash_micros: int
    seconds: float
    answer_seconds: float | None
    n_shown: int = 0

    @property
    def agreed(self) -> float | None:
        """Share (0-1) of the labels that are the gold ones."""
        return self.n_right / self.n_labels if self.n_labels else None

    @property
    def usd_per_thousand(self) -> float | None:
        """Dollars of 1,000 labels."""
        return float(1000 * self.usd / self.n_labels) if self.n_labels else None

    @property
    def usd_per_thousand_right(self) -> float | None:
        """Dollars of 1,000 labels that are right."""
        return float(1000 * self.usd / self.n_right) if self.n_right else None


def _result(trial: Trial, delivery: Delivery, n_lost: int, seconds: float) -> TrialResult:
    rows, task = trial.rows.rows, trial.rows.task
    said, refused = delivery.labels, delivery.refused
    labelled = [row for row in rows if row.id in said]
    golds, answers = [str(row.label) for row in labelled], [said[row.id] for row in labelled]
    is_right = [_same(task, answer, gold) for answer, gold in zip(answers, golds, strict=True)]
    sure = _confidences(delivery, labelled)
    is_class = task.kind == "classification"
    scored = labelled and task.metric != "bert_ibleu"
    took = [answer.seconds for answer in delivery.answers]
    return TrialResult(
        who=trial.who,
        n_rows=len(rows),
        n_labels=len(labelled),
        n_right=sum(is_right),
        metric=main_score(task.metric),
        score=score(task.metric, answers, golds, task.labels)[main_score(task.metric)] if scored else None,
        kappa=cohen_kappa(list(zip(golds, answers, strict=True))) if is_class else None,
        confusion=_confusion(rows, said, refused, task.labels) if is_class else {},
        ece=None
        if sure is None
        else calibration_error_of(sure, [str(each) for each in is_right], ["True"] * len(sure)),
        parts=() if sure is None else _by_confidence(sure, is_right),
        refused=count_reasons(refused.values()),
        n_unbought=len(rows) - len(labelled) - len(refused),
        n_lost=n_lost,
        usd=delivery.quantity,
        cash_micros=delivery.cash_micros,
        seconds=seconds,
        answer_seconds=median(took) if took else None,
        n_shown=trial.n_shown,
    )


def _same(task: Task, answer: str, gold: str) -> bool:
    """Return whether an answer is the gold one; of free text articles, case and punctuation do not count."""
    return normalised(answer) == normalised(gold) if task.kind == "generation" else answer == gold


def _confidences(delivery: Delivery, labelled: Sequence[Example]) -> list[float] | None:
    """Return the confidence of each label: its probability, or the share of several answers; ``None`` where one has none."""
    found: list[float] = []
    for row in labelled:
        answers = [answer for answer in delivery.answers if answer.row == row.id and answer.label is not None]
        if len(answers) > 1:
            found.append(sum(each.label == delivery.labels[row.id] for each in answers) / len(answers))
        elif answers and answers[0].confidence is not None:
            found.append(answers[0].confidence)
    return found if labelled and len(found) == len(labelled) else None


def _by_confidence(sure: Sequence[float], is_right: Sequence[bool]) -> tuple[float, ...]:
    """Return the accuracy (0-1) of each third of the answers, the least sure first; none of fewer than three."""
    order = sorted(range(len(sure)), key=lambda i: (sure[i], i))
    cuts = [len(order) * part // N_PARTS for part in range(N_PARTS + 1)]
    parts = [[is_right[i] for i in order[a:b]] for a, b in zip(cuts, cuts[1:], strict=False)]
    return tuple(sum(part) / len(part) for part in parts) if all(parts) else ()


def _confusion(
    rows: Sequence[Example], said: Mapping[str, str], refused: Mapping[str, str], labels: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Return the number of rows by gold label and answer, in the order of the label set, `NO_LABEL` last."""
    known = [row for row in rows if row.id in said or row.id in refused]
    counts = Counter((str(row.label), said.get(row.id, NO_LABEL)) for row in known)
    answers = (*labels, *((NO_LABEL,) if refused else ()))
    return {gold: {answer: counts[gold, answer] for answer in answers} for gold in labels}
