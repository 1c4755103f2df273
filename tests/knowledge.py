"""What a strategy may know, made by hand: slow machine, small models, uneven rows, so that labels and compute both matter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate

from outlay.models.shape import ModelShape
from outlay.money.amounts import Price
from outlay.money.machines import Machine
from outlay.plan.context import Offer, PlanningContext, TokenCounts
from outlay.plan.request import Digests, Request, SellerSpec
from outlay.plan.steps import HUMAN, LLM, Encoding, Model
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TargetSpec, TaskSpec

N_TRAIN, N_POOL, N_DEV, N_TEST = 290, 2500, 37, 101
LABELS = ("no", "yes", "perhaps")
ENCODING = Encoding(("text",), TaskSpec("classification", LABELS, 64, 8), "accuracy")
TEACHER = Model("org/teacher", "org/teacher", "f1")
STUDENT = Model("cut:1", "org/teacher", "f1")
# Parameters in matrices: 5 layers of 1,700 and one of 1,100, with heads of 23 x (23 + 3) and 13 x (13 + 3).
SHAPES = {
    TEACHER.ref: ModelShape("encoder", 5, 23, 997, 1_700, 30_000, 40_000),
    STUDENT.ref: ModelShape("encoder", 1, 13, 997, 1_100, 20_000, 22_000),
}
N_PARAMETERS = {TEACHER.ref: 5 * 1_700 + 23 * 26, STUDENT.ref: 1_100 + 13 * 16}
EPOCHS = {"teacher": 10, "student": 20, "distil": 4}
PEAK, TRAIN_SHARE, INFER_SHARE = 1_000_000, Fraction(1, 2), Fraction(3, 10)
HOUR_USD, LABEL_USD, LLM_USD = Fraction("3.6"), Fraction("0.2"), Fraction("0.046")


def lengths(n: int, salt: int) -> list[int]:
    """Tokens per row, uneven and always the same."""
    return [5 + (i * 7919 + salt) % 31 for i in range(n)]


ROWS = {
    "train": lengths(N_TRAIN, 1),
    "pool": lengths(N_POOL, 2),
    "dev": lengths(N_DEV, 3),
    "test": lengths(N_TEST, 4),
}
COUNTS = TokenCounts(**{name: list(accumulate(rows, initial=0)) for name, rows in ROWS.items()})


def carved(n: int) -> int:
    """A tenth of the labels, and at least one left over."""
    return 0 if n < 2 else min(math.ceil(n / 10), n - 1)


HIRED = Offer(Price("llm/made-up", "label", Decimal("0.046"), "made up", date(2024, 1, 1), "a model"), "llm")


def people(request: Request, identity: str = "seller") -> Offer:
    """The terms of the people who label, with as many answers a label as the request says."""
    spec = request.seller(HUMAN) or SellerSpec()
    price = Price("label/made-up", "label", Decimal("0.2"), "made up", date(2024, 1, 1))
    return Offer(price, identity, spec.replay.redundancy)


def known(budget_micros: int, **changes: object) -> PlanningContext:
    """Known for a request; ``changes`` go to `Request`, or to `PlanningContext` where it has a field of that name."""
    of_known = {name: changes.pop(name) for name in list(changes) if name in PlanningContext.__dataclass_fields__}
    request = Request(
        "made-up",
        "annotate",
        budget_micros,
        machine="box",
        dev="given",
        precision="bf16",
        digests=Digests("t0", "p0", "m0"),
    )
    request = replace(request, **changes)  # type: ignore[arg-type]
    knows = PlanningContext(
        request=request,
        task="made-up",
        encoding=ENCODING,
        teacher=TEACHER,
        student=STUDENT,
        shapes=SHAPES,
        tokens={TEACHER.ref: COUNTS, STUDENT.ref: COUNTS},
        longest_answer={TEACHER.ref: 0, STUDENT.ref: 0},
        handovers={(teacher.ref, STUDENT.ref): TargetSpec("classes") for teacher in (TEACHER, STUDENT)},
        machine=Machine("box", "box", PEAK, TRAIN_SHARE, INFER_SHARE, "made up"),
        machine_price=Price("box", "hour", Decimal("3.6"), "made up", date(2024, 1, 1)),
        offers={HUMAN: people(request), LLM: HIRED},
        train_digest="train",
        dev_digest="dev",
        test_digest="test",
        pool_digests=lambda start, stop: f"pool {start} to {stop}",
        n_carved=carved,
        n_train=N_TRAIN,
        n_pool=N_POOL,
        n_dev=N_DEV,
        defaults={role: TrainSettings(epochs, 32, 1e-3) for role, epochs in EPOCHS.items()},
        teach_defaults=TeachSettings(),
    )
    return replace(knows, **of_known)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Bill:
    """The same costs written out by hand, from rows and prices alone: the reference for quotes."""

    dev: str | None = "given"
    redundancy: int = 1
    free_student: bool = False

    def labels(self, n: int) -> int:
        return math.ceil(n * self.redundancy * LABEL_USD * 1_000_000)

    @staticmethod
    def compute(ref: str, n_trained: int, n_inferred: int) -> int:
        flops_train, flops_infer = 6 * N_PARAMETERS[ref] * n_trained, 2 * N_PARAMETERS[ref] * n_inferred
        seconds = flops_train / (PEAK * TRAIN_SHARE) + flops_infer / (PEAK * INFER_SHARE)
        return math.ceil(seconds / 3600 * HOUR_USD * 1_000_000)

    def dev_tokens(self, n: int) -> int:
        if self.dev in (None, "none"):
            return 0
        return sum(ROWS["train"][: carved(n)]) if self.dev == "carved" else sum(ROWS["dev"])

    def training(self, ref: str, role: str, n: int) -> int:
        rows = ROWS["train"][carved(n) if self.dev == "carved" else 0 : n]
        return self.compute(ref, EPOCHS[role] * sum(rows), EPOCHS[role] * self.dev_tokens(n))

    def bought(self, n: int) -> int:
        return self.labels(n) + (self.labels(N_DEV) if self.dev == "bought" else 0)

    def hired(self, n_human: int, n_llm: int) -> int:
        """People label the first rows, an LLM those behind them; dev is carved from the first seller's."""
        n, n_carved = n_human + n_llm, carved(n_human or n_llm) if self.dev == "carved" else 0
        bought = self.bought(n_human) + math.ceil(n_llm * LLM_USD * 1_000_000)
        n_dev = sum(ROWS["train"][:n_carved]) if self.dev == "carved" else self.dev_tokens(0)
        epochs = EPOCHS["student"]
        training = self.compute(STUDENT.ref, epochs * sum(ROWS["train"][n_carved:n]), epochs * n_dev)
        return bought + (0 if self.free_student else training) + self.score()

    def score(self) -> int:
        return 0 if self.free_student else self.compute(STUDENT.ref, 0, sum(ROWS["test"]))

    def annotate(self, n: int) -> int:
        training = 0 if self.free_student else self.training(STUDENT.ref, "student", n)
        return self.bought(n) + training + self.score()

    def distill(self, n: int, n_blocks: int, *, teacher: str = TEACHER.ref) -> int:
        stop = min(n_blocks * 1024, N_POOL)
        blocks = [sum(ROWS["pool"][b : min(b + 1024, stop)]) for b in range(0, stop, 1024)]
        role = "teacher" if teacher == TEACHER.ref else "student"
        student = self.compute(
            STUDENT.ref, EPOCHS["distil"] * sum(ROWS["pool"][:stop]), EPOCHS["distil"] * self.dev_tokens(n)
        )
        spoken = sum(self.compute(teacher, 0, tokens) for tokens in blocks)
        return self.bought(n) + self.training(teacher, role, n) + spoken + student + self.score()
