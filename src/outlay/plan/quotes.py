"""Quotes: upper bounds of the cost of each step, before money is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from outlay.models.forecast import n_evaluations
from outlay.models.pooling import n_features
from outlay.models.regression import N_FEATURES_PER_WORD, most_flops
from outlay.models.shape import flops_infer, flops_train
from outlay.money.amounts import Quote
from outlay.plan.cache import cached
from outlay.plan.context import PlanningContext, TokenCounts, reading_key
from outlay.plan.steps import Buy, Distil, Score, Step, Teach, Train, graph, n_carved


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens a step sends through a model at most, forward and backward, and forward only; and the FLOPs of its regressions."""

    ref: str
    n_tokens_trained: int
    n_tokens_inferred: int
    n_flops_fitted: int = 0


class Quoter:
    """Quoter of upper bounds of the cost of steps, from the request, the price book and the flops clock alone."""

    def __init__(self, context: PlanningContext) -> None:
        self.context = context
        self.machine = context.machine
        self.memo = context.memo

    @cached()
    def quote(self, step: Step) -> Quote:
        """Return the upper bound of a step's cost; where the student's training is free, scoring the test split is too, and
        scoring the teacher always.

        Labels without a fixed price are quoted at what is expected of them; `most` bounds them.
        """
        context = self.context
        if isinstance(step, Buy):
            offer = context.offer(step.seller)
            return Quote.of(offer.price, offer.expected(step.split, step.start, step.stop))
        price = context.machine_price
        quantity = self.hours(self.work(step))
        scores_free = isinstance(step, Score) and (step.of_teacher or context.request.student_training == "free")
        if scores_free or (isinstance(step, Train) and step.free):
            return Quote(f"{price.item} (free)", price.unit, quantity, price.usd * 0, 0, price.cost_micros(quantity))
        return Quote.of(price, quantity)

    def most(self, step: Buy) -> Quote:
        """Return the upper bound of the cost of a purchase."""
        offer = self.context.offer(step.seller)
        return Quote.of(offer.price, offer.most(step.split, step.start, step.stop))

    def uncertain_micros(self, final: Step) -> int:
        """Return what the labels that lead to ``final`` may cost beyond what is expected of them, in micro-dollars."""
        bought = [step for step in graph([final]) if isinstance(step, Buy)]
        return sum(self.most(step).charge_micros - self.quote(step).charge_micros for step in bought)

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
                n_rows = step.n_labels - n_carved(step.dev)
                return self._trained(step, n_rows, self._bought_tokens(step, step.labels))
            case Teach():
                return Work(step.teacher.model.ref, 0, self._spoken_tokens(step))
            case Distil():
                return self._trained(step, step.n_rows, self._learnt_tokens(step))
            case Score():
                test = self._counts(step.model).test
                return Work(step.model.model.ref, 0, self._answered_tokens(step.model, test[-1], len(test) - 1))
        raise TypeError(f"{type(step).__name__} is no compute step")

    def _trained(self, step: Train | Distil, n_rows: int, n_tokens: int) -> Work:
        """Return the work of a training on rows of so many tokens: its regression, its epochs, its evaluations."""
        settings, ref = step.settings, step.model.ref
        method = settings.chosen
        if not method.reads_vectors:
            return Work(ref, 0, 0, self._fitted_flops(step, n_rows, n_tokens))
        if method.head == "random":
            return Work(ref, settings.epochs * n_tokens, n_evaluations(settings, n_rows) * self.dev_tokens(step))
        n_trained = 0 if method.trains == "none" else settings.epochs * n_tokens
        # The head of a probe is evaluated once, and what begins with it after its own steps too.
        n_tuned = n_evaluations(settings, n_rows) if settings.method == "probe_then_tune" else 0
        n_inferred = n_tokens + (1 + n_tuned) * self.dev_tokens(step)
        return Work(ref, n_trained, n_inferred, self._fitted_flops(step, n_rows, n_tokens))

    def _fitted_flops(self, step: Train | Distil, n_rows: int, n_tokens: int) -> int:
        """Return the FLOPs of a training's regressions at most."""
        if step.settings.chosen.head == "random":
            return 0
        form, shape = step.encoding.form, self.context.shapes[step.model.ref]
        n_values, n_examples = n_features(shape.hidden_size, step.reading), n_rows
        if form.kind == "entities":
            n_examples = n_tokens
        elif not step.settings.chosen.reads_vectors:
            # Words, and not tokens: a model may read fewer of them, or several as one token.
            n_values, n_examples = 1, N_FEATURES_PER_WORD * form.max_source_tokens * n_rows
        return most_flops(step.settings.of_method("probe"), n_examples, n_values, form.n_outputs)

    def dev_tokens(self, step: Train | Distil) -> int:
        """Return the tokens of one evaluation on the dev rows."""
        if step.dev is None:
            return 0
        counts, n_rows = self._counts(step), step.dev.n
        return self._answered_tokens(step, (counts.train if step.dev.is_of_train else counts.dev)[n_rows], n_rows)

    def _answered_tokens(self, step: Train | Distil, n_source_tokens: int, n_rows: int) -> int:
        """Return the tokens of one answer per row; a student trained on classes scores every label instead."""
        if not step.settings.chosen.reads_vectors:
            return 0
        ref = step.model.ref
        if step.reading != "whole":
            return n_source_tokens
        if isinstance(step, Distil) and step.target == "classes":
            return self._scored_tokens(ref, n_source_tokens, n_rows)
        return n_source_tokens + n_rows * self.context.longest_answer[ref]

    def _counts(self, step: Train | Distil) -> TokenCounts:
        return self.context.tokens[reading_key(step.model.ref, step.reading)]

    def _bought_tokens(self, step: Train | Distil, labels: Sequence[Buy]) -> int:
        """Return the tokens, sources and answers, of the bought rows trained on; dev is carved out of the first purchase."""
        train, n_sources, n_rows, n_left_out = self._counts(step).train, 0, 0, n_carved(step.dev)
        for each in labels:
            first, n_left_out = each.start + n_left_out, 0
            n_sources += train[each.stop] - train[first]
            n_rows += each.stop - first
        if step.reading != "whole":
            return n_sources
        if isinstance(step, Train) and step.learns_probabilities:
            return self._scored_tokens(step.model.ref, n_sources, n_rows, trained=True)
        return n_sources + n_rows * self.context.longest_answer[step.model.ref]

    def _spoken_tokens(self, step: Teach) -> int:
        """Return the tokens of the teacher over one block.

        Classes are scored label by label; answers are written beam by beam, and their logits are those of the decoding steps.
        Beams, samples and padding leave no logits, so then each answer is read once more.
        """
        ref = step.teacher.model.ref
        if not step.teacher.settings.chosen.reads_vectors:
            return 0
        counts, n_rows = self._counts(step.teacher), step.stop - step.start
        sources = counts.pool[step.stop] - counts.pool[step.start]
        if step.teacher.reading != "whole":
            return sources
        if step.target == "classes":
            return self._scored_tokens(ref, sources, n_rows)
        settings = step.settings
        again = step.target == "tokens" and (settings.beams > 1 or settings.sample or settings.keep_padding)
        n_passes = settings.beams + (1 if again else 0)
        return sources + n_passes * n_rows * self.context.longest_answer[ref]

    def _learnt_tokens(self, step: Distil) -> int:
        """Return the tokens of one epoch over the pool; beside a teacher's tokens, a gold answer takes a pass of its own."""
        ref, n_rows = step.model.ref, step.n_rows
        sources = self._counts(step).pool[n_rows]
        if step.reading != "whole":
            return sources
        if step.target == "classes":
            return self._scored_tokens(ref, sources, n_rows, trained=True)
        n_tokens = sources + n_rows * self.context.longest_answer[ref]
        if not step.gold or step.target != "tokens":
            return n_tokens
        return n_tokens + self._bought_tokens(step, step.gold)

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

        T-Few §4.2: 6N and 2N per token of an encoder or decoder, 3N and N of both together. Regressions count as trained.
        """
        shape, n_outputs = self.context.shapes[work.ref], self.context.encoding.form.n_outputs
        trained = flops_train(shape, work.n_tokens_trained, n_outputs) + work.n_flops_fitted
        return trained, flops_infer(shape, work.n_tokens_inferred, n_outputs)

    def hours(self, work: Work) -> Fraction:
        """Return the machine hours by the flops clock, exact."""
        return self.machine.hours(*self.flops(work))
