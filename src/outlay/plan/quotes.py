"""Quotes: upper bounds of the cost of each step, before money is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from outlay.models.forecast import n_evaluations
from outlay.models.shape import flops_infer, flops_train
from outlay.money.amounts import Quote
from outlay.plan.cache import cached
from outlay.plan.context import PlanningContext
from outlay.plan.steps import Buy, Dev, Distil, Score, Step, Teach, Train, n_carved


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens a step sends through a model at most: forward and backward, and forward only."""

    ref: str
    n_tokens_trained: int
    n_tokens_inferred: int


class Quoter:
    """Quoter of upper bounds of the cost of steps, from the request, the price book and the flops clock alone."""

    def __init__(self, context: PlanningContext) -> None:
        self.context = context
        self.machine = context.machine
        self.memo = context.memo

    @cached()
    def quote(self, step: Step) -> Quote:
        """Return the upper bound of a step's cost; where the student's training is free, scoring the test split is too."""
        context = self.context
        if isinstance(step, Buy):
            offer = context.offer(step.seller)
            return Quote.of(offer.price, Fraction(step.n * offer.redundancy))
        price = context.machine_price
        quantity = self.hours(self.work(step))
        scores_free = isinstance(step, Score) and context.request.student_training == "free"
        if scores_free or (isinstance(step, Train) and step.free):
            return Quote(f"{price.item} (free)", price.unit, quantity, price.usd * 0, 0, price.cost_micros(quantity))
        return Quote.of(price, quantity)

    @cached()
    def total_micros(self, final: Step) -> int:
        """Return the sum of the charges quoted for every distinct step that leads to ``final``, in micro-dollars.

        Avoids hashing: `Buy` steps compare by value, other steps by identity, since a strategy makes each of them once
        (`outlay.plan.cache.cached`).
        """
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
        """Return the tokens that a compute step processes at most, evaluations included."""
        match step:
            case Train():
                n_trained = step.settings.epochs * self._bought_tokens(step.model.ref, step.labels, step.dev)
                n_rows = step.n_labels - n_carved(step.dev)
                n_inferred = n_evaluations(step.settings, n_rows) * self.dev_tokens(step)
                return Work(step.model.ref, n_trained, n_inferred)
            case Teach():
                return Work(step.teacher.model.ref, 0, self._spoken_tokens(step))
            case Distil():
                n_inferred = n_evaluations(step.settings, step.n_rows) * self.dev_tokens(step)
                return Work(step.model.ref, step.settings.epochs * self._learnt_tokens(step), n_inferred)
            case Score():
                test = self.context.tokens[step.model.model.ref].test
                return Work(step.model.model.ref, 0, self._answered_tokens(step.model, test[-1], len(test) - 1))
        raise TypeError(f"{type(step).__name__} is no compute step")

    def dev_tokens(self, step: Train | Distil) -> int:
        """Return the tokens of one evaluation on the dev rows."""
        if step.dev is None:
            return 0
        counts, n_rows = self.context.tokens[step.model.ref], step.dev.n
        return self._answered_tokens(step, (counts.train if step.dev.how == "carved" else counts.dev)[n_rows], n_rows)

    def _answered_tokens(self, step: Train | Distil, n_source_tokens: int, n_rows: int) -> int:
        """Return the tokens of one answer per row; a student trained on classes scores every label instead."""
        ref = step.model.ref
        if isinstance(step, Distil) and step.target == "classes":
            return self._scored_tokens(ref, n_source_tokens, n_rows)
        return n_source_tokens + n_rows * self.context.longest_answer[ref]

    def _bought_tokens(self, ref: str, labels: Sequence[Buy], dev: Dev | None) -> int:
        """Return the tokens, sources and answers, of the bought rows trained on; dev is carved out of the first purchase."""
        train, n_tokens, n_left_out = self.context.tokens[ref].train, 0, n_carved(dev)
        for each in labels:
            first, n_left_out = each.start + n_left_out, 0
            n_tokens += train[each.stop] - train[first] + (each.stop - first) * self.context.longest_answer[ref]
        return n_tokens

    def _spoken_tokens(self, step: Teach) -> int:
        """Return the tokens of the teacher over one block.

        Classes are scored label by label; answers are written beam by beam, and their logits are those of the decoding steps.
        Beams, samples and padding leave no logits, so then each answer is read once more.
        """
        ref = step.teacher.model.ref
        counts, n_rows = self.context.tokens[ref], step.stop - step.start
        sources = counts.pool[step.stop] - counts.pool[step.start]
        if step.target == "classes":
            return self._scored_tokens(ref, sources, n_rows)
        settings = step.settings
        again = step.target == "tokens" and (settings.beams > 1 or settings.sample or settings.keep_padding)
        n_passes = settings.beams + (1 if again else 0)
        return sources + n_passes * n_rows * self.context.longest_answer[ref]

    def _learnt_tokens(self, step: Distil) -> int:
        """Return the tokens of one epoch over the pool; beside a teacher's tokens, a gold answer takes a pass of its own."""
        ref, n_rows = step.model.ref, step.n_rows
        sources = self.context.tokens[ref].pool[n_rows]
        if step.target == "classes":
            return self._scored_tokens(ref, sources, n_rows, trained=True)
        n_tokens = sources + n_rows * self.context.longest_answer[ref]
        if not step.gold or step.target != "tokens":
            return n_tokens
        return n_tokens + self._bought_tokens(ref, step.gold, step.dev)

    def _scored_tokens(self, ref: str, n_source_tokens: int, n_rows: int, *, trained: bool = False) -> int:
        """Return the tokens of a distribution over the classes per row.

        An encoder takes one pass. A generative model reads the source once and each label after it; only a causal model in
        training reads the source with every label.
        """
        longest = self.context.longest_answer[ref]
        if longest == 0:
            return n_source_tokens
        n_labels = len(self.context.encoding.form.labels)
        n_copies = n_labels if trained and self.context.shapes[ref].family == "causal" else 1
        return n_copies * n_source_tokens + n_labels * n_rows * longest

    def flops(self, work: Work) -> tuple[int, int]:
        """Return FLOPs trained and inferred.

        T-Few §4.2: 6N and 2N per token of an encoder or decoder, 3N and N of both together.
        """
        shape, n_outputs = self.context.shapes[work.ref], self.context.encoding.form.n_outputs
        trained = flops_train(shape, work.n_tokens_trained, n_outputs)
        return trained, flops_infer(shape, work.n_tokens_inferred, n_outputs)

    def hours(self, work: Work) -> Fraction:
        """Return the machine hours by the flops clock, exact."""
        return self.machine.hours(*self.flops(work))
