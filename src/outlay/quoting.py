"""What is known before money moves, and what each step will cost at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from outlay.compute import SECONDS_PER_HOUR, Machine, ModelShape, flops_infer, flops_train
from outlay.errors import UsageError
from outlay.form import Form, TargetKind
from outlay.memo import Memo, Same, once
from outlay.money import Price, Quote
from outlay.recipe import Annotating, Buy, Dev, Distil, Encoding, Model, Score, Step, Teach, Train
from outlay.request import Request
from outlay.settings import TeachSettings, TrainSettings
from outlay.window import ENDLESS, Window

BLOCK_ROWS = 1024
"""Pool rows per block of targets: the unit of keys, resume and parallel work."""

N_MIN_OPEN = 2
"""The fewest labels worth a training where answers are open."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Running sums of source tokens per row, each starting with 0, in the seeded orders: ``train[n]`` = tokens of the first n
    rows, as one model reads them."""

    train: Sequence[int]
    pool: Sequence[int]
    dev: Sequence[int]
    test: Sequence[int]


@dataclass(frozen=True, slots=True)
class Handover:
    """What one model hands to another: the kind of targets, and for ``tokens`` the vocabulary rows that both have."""

    target: TargetKind
    vocab_size: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What a seller of labels asks: the price of one answer, how many answers make a label, who it is."""

    price: Price
    identity: str
    """Canonical JSON of the seller's identity."""
    redundancy: int = 1


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
    longest_answer: Mapping[str, int]
    """Tokens of an answer at most, by model reference; 0 for an encoder, which writes none."""
    handovers: Mapping[tuple[str, str], Handover]
    """By the references of teacher and student."""
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
    teach_defaults: TeachSettings
    llm: Offer | None = None
    """Of the LLM that labels train rows; ``None`` where the request hires none."""
    windows: Mapping[str, Window] = field(default_factory=dict)
    """How many tokens each model can read and write, by its reference; without an entry as many as the task asks for."""

    def form_of(self, ref: str) -> Form:
        """The form of the task, its limits lowered to what a model can read and write."""
        return self.windows.get(ref, ENDLESS).fit(self.encoding.form, ref)

    @property
    def lowered(self) -> list[str]:
        """Limits of the task that a model of the run cannot keep, a line each."""
        form = self.encoding.form
        return [line for ref, window in self.windows.items() for line in window.lines(form, ref)]

    def offer(self, annotator: Annotating) -> Offer:
        """What people, or the LLM, ask for a label.

        Raises:
            UsageError: an LLM's labels are asked for, and none is hired.
        """
        if annotator == "human":
            return Offer(self.label_price, self.seller_identity, self.request.seller.redundancy)
        if self.llm is None:
            raise UsageError(f"strategy {self.request.strategy} buys labels of an LLM; hire one with --llm-error-rate")
        return self.llm

    memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)
    """Steps and quotes worked out so far, for all that differ in budget and N alone."""

    def asked(self, budget_micros: int, n_initial: int | None) -> Known:
        """The same under another budget and another N, with the same memo."""
        known = replace(self, request=replace(self.request, budget_micros=budget_micros, n_initial=n_initial))
        object.__setattr__(known, "memo", self.memo)
        return known

    @property
    def budget_micros(self) -> int:
        """The whole budget."""
        return self.request.budget_micros

    @property
    def n_min(self) -> int:
        """The fewest labels worth a training: one per class, two where answers are no classes (and as many again where some are
        carved for dev)."""
        form = self.encoding.form
        least = len(form.labels) if form.kind == "classification" else N_MIN_OPEN
        return least * (2 if self.request.dev == "carved" else 1)

    @property
    def n_outputs(self) -> int:
        """Outputs of an encoder's head: the classes, or begin and inside of each entity type and neither; a model that writes
        has its vocabulary instead."""
        form = self.encoding.form
        return 2 * len(form.labels) + 1 if form.kind == "entities" else len(form.labels)

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

    @once
    def settings(self, role: str) -> TrainSettings:
        """Training settings of a role, the request's overrides, seed and precision applied."""
        run = {"seed": self.request.seed, "precision": self.request.precision}
        return self.defaults[role].changed({**run, **self._overrides(role)})

    @property
    def teach_settings(self) -> TeachSettings:
        """How the teacher answers; the published objective needs the positions behind its answers too."""
        return self.memo.once("teach_settings", self._teach_settings)

    def _teach_settings(self) -> TeachSettings:
        keep = {"keep_padding": True} if self.settings("distil").objective == "published" else {}
        return self.teach_defaults.changed({"seed": self.request.seed, **self._overrides("teach"), **keep})

    def _overrides(self, role: str) -> dict[str, Any]:
        return dict(next((pairs for name, pairs in self.request.overrides if name == role), ()))


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens a step sends through a model at most: forward and backward, and forward only."""

    ref: str
    n_tokens_trained: int
    n_tokens_inferred: int


class Quoter:
    """Upper bounds of what steps cost, from the request, the price book and the flops clock alone."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.machine = known.machine

    def quote(self, step: Step) -> Quote:
        """What ``step`` costs at most; where the student's training on labels is free, scoring the test split is too."""
        return self.known.memo.once(("quote", Same(step)), lambda: self._quote(step))

    def _quote(self, step: Step) -> Quote:
        known = self.known
        if isinstance(step, Buy):
            offer = known.offer(step.annotator)
            return Quote.of(offer.price, Fraction(step.n * offer.redundancy))
        price = known.machine_price
        quantity = self.hours(self.work(step))
        scores_free = isinstance(step, Score) and known.request.student_training == "free"
        if scores_free or (isinstance(step, Train) and step.free):
            return Quote(f"{price.item} (free)", price.unit, quantity, price.usd * 0, 0, price.cost_micros(quantity))
        return Quote.of(price, quantity)

    def total_micros(self, final: Step) -> int:
        """Sum of the quotes of every distinct step that leads to ``final``.

        Without a key, which takes longer than all else: purchases are told apart by what they buy, any other step by which object
        it is, since a strategy makes each of them once (`outlay.memo.once`).
        """
        return self.known.memo.once(("total", Same(final)), lambda: self._total_micros(final))

    def _total_micros(self, final: Step) -> int:
        seen: dict[object, int] = {}

        def visit(step: Step) -> None:
            at = step if isinstance(step, Buy) else id(step)
            if at not in seen:
                seen[at] = self.quote(step).charge_micros
                for given in step.inputs:
                    visit(given)

        visit(final)
        return sum(seen.values())

    def work(self, step: Step) -> Work:
        """Tokens a compute step processes at most, evaluations included."""
        match step:
            case Train():
                n_epoch = self._bought_tokens(step.model.ref, step.labels, step.dev)
                if step.more is not None:
                    n_epoch += self._bought_tokens(step.model.ref, step.more, None)
                n_trained = step.settings.epochs * n_epoch
                n_rows = step.n_labels - n_carved(step.dev)
                n_inferred = n_evaluations(step.settings, n_rows) * self.dev_tokens(step)
                return Work(step.model.ref, n_trained, n_inferred)
            case Teach():
                return Work(step.teacher.model.ref, 0, self._spoken_tokens(step))
            case Distil():
                n_inferred = n_evaluations(step.settings, step.n_rows) * self.dev_tokens(step)
                return Work(step.model.ref, step.settings.epochs * self._learnt_tokens(step), n_inferred)
            case Score():
                test = self.known.tokens[step.model.model.ref].test
                return Work(step.model.model.ref, 0, self._answered_tokens(step.model, test[-1], len(test) - 1))
        raise TypeError(f"{type(step).__name__} is no compute step")

    def dev_tokens(self, step: Train | Distil) -> int:
        """Tokens of one evaluation on the dev rows."""
        if step.dev is None:
            return 0
        counts, n_rows = self.known.tokens[step.model.ref], step.dev.n
        return self._answered_tokens(step, (counts.train if step.dev.how == "carved" else counts.dev)[n_rows], n_rows)

    def _answered_tokens(self, step: Train | Distil, n_source_tokens: int, n_rows: int) -> int:
        """A model writes one answer per row; one that learnt to choose among the labels scores each of them instead."""
        ref = step.model.ref
        if isinstance(step, Distil) and step.target == "classes":
            return self._scored_tokens(ref, n_source_tokens, n_rows)
        return n_source_tokens + n_rows * self.known.longest_answer[ref]

    def _bought_tokens(self, ref: str, labels: Buy, dev: Dev | None) -> int:
        """Sources and answers of the bought rows that are trained on, once."""
        counts, first = self.known.tokens[ref], labels.start + n_carved(dev)
        sources = counts.train[labels.stop] - counts.train[first]
        return sources + (labels.stop - first) * self.known.longest_answer[ref]

    def _spoken_tokens(self, step: Teach) -> int:
        """A class is scored label by label; an answer is written beam by beam. Its logits are those of the steps that wrote it;
        beams and samples leave none and padding has none, so then it is read once more."""
        ref = step.teacher.model.ref
        counts, n_rows = self.known.tokens[ref], step.stop - step.start
        sources = counts.pool[step.stop] - counts.pool[step.start]
        if step.target == "classes":
            return self._scored_tokens(ref, sources, n_rows)
        settings = step.settings
        again = step.target == "tokens" and (settings.beams > 1 or settings.sample or settings.keep_padding)
        n_passes = settings.beams + (1 if again else 0)
        return sources + n_passes * n_rows * self.known.longest_answer[ref]

    def _learnt_tokens(self, step: Distil) -> int:
        """Tokens of one epoch over the pool; beside a teacher's tokens, a gold answer is read in a pass of its own."""
        ref, n_rows = step.model.ref, step.n_rows
        sources = self.known.tokens[ref].pool[n_rows]
        if step.target == "classes":
            return self._scored_tokens(ref, sources, n_rows, trained=True)
        n_tokens = sources + n_rows * self.known.longest_answer[ref]
        if step.gold is None or step.target != "tokens":
            return n_tokens
        return n_tokens + self._bought_tokens(ref, step.gold, step.dev)

    def _scored_tokens(self, ref: str, n_source_tokens: int, n_rows: int, *, trained: bool = False) -> int:
        """A distribution over the classes takes an encoder one pass. A model that writes reads the source once and each label
        behind it; only a causal model in training reads the source with every label."""
        longest = self.known.longest_answer[ref]
        if longest == 0:
            return n_source_tokens
        n_labels = len(self.known.encoding.form.labels)
        n_copies = n_labels if trained and self.known.shapes[ref].family == "causal" else 1
        return n_copies * n_source_tokens + n_labels * n_rows * longest

    def flops(self, work: Work) -> tuple[int, int]:
        """FLOPs trained and inferred (T-Few §4.2: 6N and 2N per token of an encoder or decoder, 3N and N of both together)."""
        shape, n_outputs = self.known.shapes[work.ref], self.known.n_outputs
        trained = flops_train(shape, work.n_tokens_trained, n_outputs)
        return trained, flops_infer(shape, work.n_tokens_inferred, n_outputs)

    def seconds(self, work: Work) -> Fraction:
        """Seconds on the request's machine by the flops clock, exact."""
        return self.hours(work) * SECONDS_PER_HOUR

    def hours(self, work: Work) -> Fraction:
        """Machine hours by the flops clock, exact."""
        return self.machine.hours(*self.flops(work))


def n_carved(dev: Dev | None) -> int:
    """Bought labels that are set aside for dev."""
    return dev.n if dev is not None and dev.how == "carved" else 0


def n_evaluations(settings: TrainSettings, n_rows: int) -> int:
    """Evaluations of a whole training: one after each epoch, or one every so many steps and one at the end."""
    if settings.eval_steps is None:
        return settings.epochs
    # A batch filled by tokens has at least one row.
    n_steps = settings.epochs * -(-n_rows // (1 if settings.batch_tokens is not None else settings.batch_size))
    return -(-n_steps // settings.eval_steps)
