"""What is known before money moves, and what each step will cost at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from outlay.compute import SECONDS_PER_HOUR, Machine, ModelShape, flops_infer, flops_train
from outlay.money import Price, Quote
from outlay.recipe import Buy, Dev, Distil, Encoding, Model, Score, Step, Teach, Train
from outlay.request import Request
from outlay.settings import TrainSettings

BLOCK_ROWS = 1024
"""Pool rows per block of targets: the unit of keys, resume and parallel work."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Running sums of tokens per row, each starting with 0, in the seeded orders: ``train[n]`` = tokens of the first n rows."""

    train: Sequence[int]
    pool: Sequence[int]
    dev: Sequence[int]
    test: Sequence[int]


@dataclass(frozen=True)
class Known:
    """Everything a strategy may see: the request, prices, shapes and token counts, never a test label."""

    request: Request
    task: str
    encoding: Encoding
    teacher: Model
    student: Model
    shapes: Mapping[str, ModelShape]
    """By model reference."""
    tokens: Mapping[str, TokenCounts]
    """By model reference."""
    machine: Machine
    machine_price: Price
    label_price: Price
    seller_identity: str
    train_digest: str
    dev_digest: str
    test_digest: str
    pool_digests: Callable[[int, int], str]
    """Digest of the pool rows ``start:stop`` of the seeded order."""
    n_carved: Callable[[int], int]
    """How many of so many bought labels are set aside for dev: the first ones, so that they stay when more are bought."""
    n_train: int
    n_pool: int
    n_dev: int
    defaults: Mapping[str, TrainSettings]
    """By role."""

    @property
    def budget_micros(self) -> int:
        """The whole budget."""
        return self.request.budget_micros

    @property
    def n_min(self) -> int:
        """The fewest labels worth a training: one per class (and as many again where some are carved for dev)."""
        return len(self.encoding.labels) * (2 if self.request.dev == "carved" else 1)

    @property
    def n_blocks(self) -> int:
        """Blocks of the whole pool."""
        return -(-self.n_pool // BLOCK_ROWS)

    def block_start(self, block: int) -> int:
        """First pool row of a block."""
        return block * BLOCK_ROWS

    def block_stop(self, n_blocks: int) -> int:
        """Pool rows in the first ``n_blocks`` blocks."""
        return min(n_blocks * BLOCK_ROWS, self.n_pool)

    def block_digest(self, block: int) -> str:
        """Digest of a block's rows."""
        return self.pool_digests(self.block_start(block), self.block_stop(block + 1))

    def settings(self, role: str) -> TrainSettings:
        """Training settings of a role, the request's overrides and seed applied."""
        overrides = dict(next((pairs for name, pairs in self.request.overrides if name == role), ()))
        return self.defaults[role].changed({"seed": self.request.seed, **overrides})


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens a step sends through a model at most: forward and backward, and forward only."""

    ref: str
    n_tokens_trained: int
    n_tokens_inferred: int


class Quoter:
    """Upper bounds of what steps cost, from the request, the price book and the flops clock alone."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self.machine = known.machine

    def quote(self, step: Step) -> Quote:
        """What ``step`` costs at most."""
        known = self._known
        if isinstance(step, Buy):
            return Quote.of(known.label_price, Fraction(step.n * known.request.seller.redundancy))
        price = known.machine_price
        quantity = self.hours(self.work(step))
        if isinstance(step, Train) and step.free:
            return Quote(f"{price.item} (free)", price.unit, quantity, price.usd * 0, 0, price.cost_micros(quantity))
        return Quote.of(price, quantity)

    def total_micros(self, final: Step) -> int:
        """Sum of the quotes of every distinct step that leads to ``final``."""
        seen: dict[str, int] = {}

        def visit(step: Step) -> None:
            if step.key not in seen:
                seen[step.key] = self.quote(step).charge_micros
                for given in step.inputs:
                    visit(given)

        visit(final)
        return sum(seen.values())

    def work(self, step: Step) -> Work:
        """Tokens a compute step processes at most, evaluations included."""
        tokens = self._known.tokens
        match step:
            case Train():
                counts, epochs = tokens[step.model.ref], step.settings.epochs
                first = step.dev.n if step.dev is not None and step.dev.how == "carved" else 0
                n_trained = epochs * (counts.train[step.labels.n] - counts.train[first])
                return Work(step.model.ref, n_trained, epochs * self.dev_tokens(step.model.ref, step.dev))
            case Teach():
                counts = tokens[step.teacher.model.ref]
                return Work(step.teacher.model.ref, 0, counts.pool[step.stop] - counts.pool[step.start])
            case Distil():
                counts, epochs = tokens[step.model.ref], step.settings.epochs
                n_inferred = epochs * self.dev_tokens(step.model.ref, step.dev)
                return Work(step.model.ref, epochs * counts.pool[step.n_rows], n_inferred)
            case Score():
                ref = step.model.model.ref
                return Work(ref, 0, tokens[ref].test[-1])
        raise TypeError(f"{type(step).__name__} is no compute step")

    def dev_tokens(self, ref: str, dev: Dev | None) -> int:
        """Tokens of one evaluation on the dev rows."""
        if dev is None:
            return 0
        counts = self._known.tokens[ref]
        return counts.train[dev.n] if dev.how == "carved" else counts.dev[dev.n]

    def flops(self, work: Work) -> tuple[int, int]:
        """FLOPs trained and inferred (T-Few §4.2: 6N and 2N per token of an encoder)."""
        shape, n_labels = self._known.shapes[work.ref], len(self._known.encoding.labels)
        return flops_train(shape, work.n_tokens_trained, n_labels), flops_infer(shape, work.n_tokens_inferred, n_labels)

    def seconds(self, work: Work) -> Fraction:
        """Seconds on the request's machine by the flops clock, exact."""
        return self.hours(work) * SECONDS_PER_HOUR

    def hours(self, work: Work) -> Fraction:
        """Machine hours by the flops clock, exact."""
        return self.machine.hours(*self.flops(work))
