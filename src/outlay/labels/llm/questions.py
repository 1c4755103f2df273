"""The questions about rows, and what each costs at most and is expected to cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from outlay.errors import SellerError
from outlay.labels.llm.bodies import Way, WayName, body_of, most_tokens
from outlay.labels.llm.examples import (
    SHUFFLED_OF,
    Choose,
    fixed_examples,
    nearest_examples,
    no_examples,
    shuffled_examples,
)
from outlay.labels.llm.options import LlmOptions
from outlay.labels.llm.prompts import Guideline, Shot
from outlay.labels.llm.ways import TOP_LOGPROBS, WAYS_OF, Probe
from outlay.labels.llm.wire import Question
from outlay.money.prices.tokens import TokenPrices, TokenUsage
from outlay.tasks.example import Example

BYTES_PER_TOKEN = 3.5
"""UTF-8 bytes of a token, before any was counted: English prose has about 4, what surrounds it fewer."""
LABEL_TOKENS = 8
"""Output tokens of an answer that is a label, before any was counted; of others half of what they may have."""


class Questioner:
    """Makes the questions about rows of one task.

    ``count``: tokens of a text, for a closer bound than its bytes.
    """

    def __init__(
        self,
        options: LlmOptions,
        guideline: Guideline,
        shots: Sequence[Shot] = (),
        count: Callable[[str], int] | None = None,
    ) -> None:
        self.guideline = guideline
        self._options = options
        self._settings = options.settings
        self._count = count
        self._choose = _chooser(options, shots)
        possible = WAYS_OF[guideline.kind]
        if options.way != "auto" and options.way not in possible:
            raise SellerError(
                f"a task of kind {guideline.kind} cannot be answered by {options.way}; choose auto, {', '.join(possible)}"
            )
        self._possible = (
            tuple(way for way in possible if way in options.ways) if options.way == "auto" else (options.way,)
        )

    def ask(self, way: Way, example: Example) -> list[Question]:
        """Return the questions about one row, one per sample."""
        body = body_of(way, self.guideline, example, self._choose(example), self._settings)
        most = most_tokens(body, self._count)
        return [Question(example.id, sample, way.path, body, most) for sample in range(self._options.samples)]

    def probe(self, probe: Probe, row: str) -> Question:
        """Return the question of a probe, billed to a row."""
        return Question(row, 0, probe.path, probe.body, most_tokens(probe.body, self._count))

    def bound(self, example: Example) -> TokenUsage:
        """Return the most tokens of one question about a row, whichever way it will be asked."""
        shots = self._choose(example)
        bounds = [
            most_tokens(body_of(_largest(name), self.guideline, example, shots, self._settings), self._count)
            for name in self._possible
        ]
        return TokenUsage(input=max(each.input for each in bounds), output=max(each.output for each in bounds))

    def expected_usd(self, bound: TokenUsage, prices: TokenPrices) -> Fraction:
        """Return the dollars that a question is expected to cost."""
        is_label = self.guideline.kind == "classification"
        n_output = min(bound.output, LABEL_TOKENS) if is_label else math.ceil(bound.output / 2)
        n_input = bound.input if self._count is not None else math.ceil(bound.input / BYTES_PER_TOKEN)
        return prices.cost(TokenUsage(input=n_input, output=n_output))


def _largest(name: WayName) -> Way:
    """Return the form of a way with the longest body."""
    return Way(name, top_logprobs=TOP_LOGPROBS[0] if name == "schema" else 0)


def _chooser(options: LlmOptions, shots: Sequence[Shot]) -> Choose:
    if options.examples == "none":
        return no_examples
    if options.examples == "fixed":
        return fixed_examples(shots, options.n_examples, options.examples_seed)
    if options.examples == "nearest":
        return nearest_examples(shots, options.n_examples)
    # Of fewer where nobody labelled some of those bought for it.
    n_of = min(SHUFFLED_OF, max(len(shots), options.n_examples))
    return shuffled_examples(shots, options.examples_seed, options.n_examples, n_of)
