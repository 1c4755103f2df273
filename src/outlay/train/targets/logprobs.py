"""Targets as log-probabilities: read from a block, or packed into one from those of another program.

A program that serves a model gives the log-probabilities of the likeliest tokens, normalised over its whole vocabulary: their
log-sum-exp at T = 1 is 0, and the mass of all others is exactly what is missing from 1. At another temperature nothing is known.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outlay.errors import DataError, LabelError
from outlay.spec import TargetKind
from outlay.train.targets.sparse_logits import SparseLogits, SparsityRule, offsets_of
from outlay.train.targets.targets import SparseTargets

EXCESS_MASS = 1e-3
"""Excess over 1 that the probabilities of a position may add up to (they are rounded where they are written)."""

_SNAP = 1e-12
"""Nats by which a stored logit may have moved in conversion to a float64 log-probability and back."""

_BLANK = "▁"
"""Space in SentencePiece's tokens."""


class PositionLogprobs(NamedTuple):
    """Log-probabilities at one position: ``unit`` of the answer, some ``classes``, each once, and their ``logprobs``, in nats.

    ``logsumexp``: by temperature, at the level of ``logprobs + logsumexp[0]``, the first one at T = 1; ``None``: normalised at
    T = 1.
    """

    unit: int
    classes: Sequence[int]
    logprobs: Sequence[float]
    logsumexp: Sequence[float] | None = None


class TargetRow(NamedTuple):
    """A row's positions, its answer as text, the number of real positions, and its place in the file."""

    positions: Sequence[PositionLogprobs]
    answer: str
    n_real: int
    origin: str


def target_rows(targets: SparseTargets) -> Iterator[TargetRow]:
    """Yield targets row by row; log-probabilities at T = 1 over the full vocabulary, log-sum-exps T = 1 first.

    Raises:
        ValueError: temperature 1 was not offered.
    """
    if targets.kind == "text":
        yield from (TargetRow((), answer, 0, "") for answer in targets.answers)
        return
    column = targets.temperature_column(1.0)
    kept, rule = targets.positions(), targets.rule
    counts = kept.counts(rule)
    logsumexp = kept.logsumexp.astype(np.float64)
    logprobs = kept.all_logits().astype(np.float64) - np.repeat(logsumexp[:, column], counts)
    order = _first(column, rule)
    units, sums = kept.units.tolist(), logsumexp[:, order].tolist()
    entries, bounds = offsets_of(counts).tolist(), targets.offsets.tolist()
    for row, answer in enumerate(targets.answers):
        start, stop = bounds[row], bounds[row + 1]
        positions = []
        for at in range(start, stop):
            mine = slice(entries[at], entries[at + 1])
            positions.append(
                PositionLogprobs(units[at], kept.indices[mine].tolist(), logprobs[mine].tolist(), sums[at])
            )
        yield TargetRow(positions, answer, int(targets.n_real[row]), "")


def packed(rule: SparsityRule, rows: Sequence[TargetRow]) -> SparseTargets:
    """Return a block of rows that `target_rows` read from one of this rule: equal bit for bit, unless rounded on the way.

    Raises:
        ValueError: positions that do not fit the rule.
    """
    counts, classes, logprobs = _flat(rows)
    sums = np.array([each.logsumexp for row in rows for each in row.positions], dtype=np.float64)
    sums = sums.reshape(len(counts), len(rule.temperatures))
    exact = logprobs + np.repeat(sums[:, 0], counts)
    stored = exact.astype(np.float32 if rule.complete else np.float16).astype(np.float64)
    logits = np.where(np.abs(exact - stored) <= _SNAP * np.maximum(1.0, np.abs(exact)), stored, exact)
    order = _first(rule.temperatures.index(1.0) if 1.0 in rule.temperatures else 0, rule)
    return _targets(rule, rows, counts, classes, logits, sums[:, np.argsort(order)])


def packed_tokens(rule: SparsityRule, rows: Sequence[TargetRow]) -> SparseTargets:
    """Return a block of normalised log-probabilities at T = 1, of each position the largest, as ``rule`` says.

    What is left out belongs to the tail, with its exact mass.

    Raises:
        DataError: the probabilities of a position exceed 1 by more than `EXCESS_MASS`; names the row.
    """
    counts, classes, logprobs = _flat(rows)
    which = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((classes, -logprobs, which))
    classes, logprobs = classes[order], logprobs[order]
    shares = np.exp(np.minimum(logprobs, 1.0))
    starts = offsets_of(counts)[:-1]
    mass = np.add.reduceat(shares, starts) if len(counts) else np.zeros(0)
    _check_mass(mass, rows)
    before = np.cumsum(shares) - shares
    before -= np.repeat(before[starts], counts)
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    kept = (rank < rule.max_logits) & ((rank == 0) | (1.0 - before > rule.tail_mass))
    n_kept = np.bincount(which[kept], minlength=len(counts))
    logsumexp = np.log(np.maximum(mass, 1.0))[:, None]
    return _targets(rule, rows, n_kept, classes[kept], logprobs[kept], logsumexp)


def packed_classes(rule: SparsityRule, rows: Sequence[TargetRow]) -> SparseTargets:
    """Return a block of label sets, exact at each temperature: every class has its log-probability, at any level."""
    logits = np.array([row.positions[0].logprobs for row in rows], dtype=np.float64)
    classes = np.argsort(-logits, axis=1, kind="stable")
    falling = np.take_along_axis(logits, classes, axis=1)
    top = falling[:, :1]
    sums = [np.log(np.exp((falling - top) / t).sum(1)) + top[:, 0] / t for t in rule.temperatures]
    counts = np.full(len(rows), rule.vocab_size, dtype=np.int64)
    return _targets(rule, rows, counts, classes.reshape(-1), falling.reshape(-1), np.stack(sums, axis=1))


def block_of(kind: TargetKind, rows: Sequence[TargetRow], rule: SparsityRule | None, *, is_own: bool) -> SparseTargets:
    """Return a block, packed as its kind is; ``rule`` ``None`` for ``text``; ``is_own``: the rows are of `target_rows`."""
    if kind == "text" or rule is None:
        return SparseTargets.text_only([row.answer for row in rows])
    if is_own:
        return packed(rule, rows)
    return packed_classes(rule, rows) if kind == "classes" else packed_tokens(rule, rows)


class Vocabulary:
    """Tokens of a tokenizer by their text, as other programs write it.

    A token's text is its piece (``▁salt``, ``Ġsalt``), what that decodes to, or the piece with its ``▁`` as a space. A text that
    belongs to several tokens names none of them. ``closing``: the text of another program's closing token, which stands for this
    tokenizer's.
    """

    def __init__(self, tokenizer: Any, size: int, closing: str | None = None) -> None:
        if tokenizer.eos_token_id is None:
            raise LabelError("a model that writes needs an end-of-sequence token, and its tokenizer has none; add one")
        self.size = size
        self.closing = int(tokenizer.eos_token_id)
        self._tokenizer = tokenizer
        self._other_closing = closing
        self._texts: dict[int, str | None] = {}

    def number(self, text: str | None, number: int | None) -> int | None:
        """Return the token of that number, where one is given, else of that text; ``None``: none, or several."""
        if text is not None and text == self._other_closing:
            return self.closing
        if number is not None:
            return number if 0 <= number < self.size else None
        found = self._numbers.get(text or "", set())
        return next(iter(found)) if len(found) == 1 else None

    def text(self, number: int) -> str | None:
        """Return a token's text with its space; ``None``: a number that no token has."""
        if number not in self._texts:
            piece = self._tokenizer.convert_ids_to_tokens(number) if number < len(self._tokenizer) else None
            self._texts[number] = None if piece is None else self._spellings(piece)[-1]
        return self._texts[number]

    def words(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Decode answers, special tokens left out."""
        return [str(text).strip() for text in self._tokenizer.batch_decode(list(answers), skip_special_tokens=True)]

    @cached_property
    def _numbers(self) -> dict[str, set[int]]:
        numbers: dict[str, set[int]] = defaultdict(set)
        for piece, number in self._tokenizer.get_vocab().items():
            for text in self._spellings(piece):
                numbers[text].add(number)
        return numbers

    def _spellings(self, piece: str) -> list[str]:
        plain = self._tokenizer.convert_tokens_to_string([piece])
        return [piece, plain, piece.replace(_BLANK, " ")] if _BLANK in piece else [piece, plain]


def vocabulary_of(ref: str, base: str | None, closing: str | None = None) -> Vocabulary:
    """Return the vocabulary of a model that writes: the tokens of its tokenizer, without rows that pad the model's.

    Raises:
        UnknownModel: the reference leads nowhere, or to a folder without a readable tokenizer.
        LabelError: a tokenizer without a closing token.
    """
    from outlay.models.loading import load_tokenizer, n_logits

    tokenizer = load_tokenizer(ref, base or ref)
    return Vocabulary(tokenizer, min(len(tokenizer), n_logits(ref, base or ref)), closing)


def label_logprobs(
    labels: Sequence[str], listed: Sequence[tuple[str, float]], limit: float
) -> tuple[list[float], list[str]] | None:
    """Return the log-probabilities of labels from those of the ``listed`` tokens, and the labels that are not among these.

    Tokens that are a label but for the blanks around it count together. A label that is not listed gets the most that it can
    have: no more than the least of the listed, nor than what these leave over. ``None``: the missing ones could have more than
    ``limit`` together.
    """
    shares = dict.fromkeys(labels, 0.0)
    total, least = 0.0, 1.0
    for text, logprob in dict(listed).items():
        share = math.exp(min(logprob, 1.0))
        total, least = total + share, min(least, share)
        if text.strip() in shares:
            shares[text.strip()] += share
    missing = [label for label in labels if shares[label] == 0.0]
    most = min(least, max(0.0, 1.0 - total))
    if most * len(missing) > limit or len(missing) == len(labels):
        return None
    return [math.log(shares[label] or max(most, _LEAST)) for label in labels], missing


_LEAST = 1e-12
"""Least probability of a label: a logit must be finite."""


def _targets(
    rule: SparsityRule,
    rows: Sequence[TargetRow],
    n_kept: NDArray[np.int64],
    classes: NDArray[np.int64],
    logits: NDArray[np.float64],
    logsumexp: NDArray[np.float64],
) -> SparseTargets:
    units = np.array([each.unit for row in rows for each in row.positions], dtype=np.int32)
    positions = SparseLogits.pack(
        rule, units, n_kept, classes, logits, logsumexp.reshape(len(units), len(rule.temperatures))
    )
    n_positions = np.array([len(row.positions) for row in rows], dtype=np.int64)
    n_real = np.array([row.n_real for row in rows], dtype=np.int64)
    return SparseTargets.from_positions(rule, positions, n_positions, [row.answer for row in rows], n_real=n_real)


def _check_mass(mass: NDArray[np.float64], rows: Sequence[TargetRow]) -> None:
    over = np.flatnonzero(mass > 1.0 + EXCESS_MASS)
    if len(over):
        at = int(over[0])
        ends = np.cumsum([len(row.positions) for row in rows])
        row = int(np.searchsorted(ends, at, side="right"))
        position = at - int(ends[row]) + len(rows[row].positions)
        raise DataError(
            f"{rows[row].origin} has probabilities that add up to {mass[at]:.4g} at token {position + 1}, "
            "above 1; log-probabilities must be natural logarithms at temperature 1"
        )


def _flat(rows: Sequence[TargetRow]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return how many classes each position names, and the classes and log-probabilities of all positions."""
    positions = [each for row in rows for each in row.positions]
    counts = np.array([len(each.classes) for each in positions], dtype=np.int64)
    classes = np.fromiter(chain.from_iterable(each.classes for each in positions), dtype=np.int64)
    logprobs = np.fromiter(chain.from_iterable(each.logprobs for each in positions), dtype=np.float64)
    return counts, classes, logprobs


def _first(column: int, rule: SparsityRule) -> list[int]:
    """Return the columns of all temperatures, this one first."""
    return [column, *(i for i in range(len(rule.temperatures)) if i != column)]
