"""Objectives: a training set and its loss, as the loop sees them (`outlay.train.loop.Objective`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from outlay.models.heads import Head, Inputs, Rows, Sources
from outlay.models.tokenization import AnswerIds
from outlay.settings import TrainSettings
from outlay.train.losses import LossSum, Sparse, cross_entropy, divergence, summed
from outlay.train.targets.targets import SparseTargets


class GoldBatch(NamedTuple):
    """Rows and their answers: ``labels`` int64 ``[B, P]``; ``positions`` int64 ``[N]``, those of the flat B x P that count."""

    inputs: Inputs
    labels: Tensor
    positions: Tensor


class TargetBatch(NamedTuple):
    """Rows and a teacher's targets for them; ``weights`` float32 ``[N]`` of its positions, ``None`` = each counts 1.

    ``gold``: gold answers beside it; its ``inputs`` are empty where they are at the positions of the teacher's.
    """

    inputs: Inputs
    teacher: Sparse
    weights: Tensor | None = None
    gold: GoldBatch | None = None


@dataclass(frozen=True)
class SupervisedObjective:
    """Cross-entropy on answers, averaged over their positions."""

    head: Head
    sources: Sources
    units: AnswerIds

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row through the model, int64 ``[rows]``."""
        return self.head.n_tokens(self.sources, self.units)

    @property
    def n_truncated(self) -> int:
        """Sources that were cut."""
        return self.sources.encoded.n_truncated

    def batch(self, rows: Rows) -> GoldBatch:
        """Return the rows' inputs and answers."""
        labels, mask = self.units.batch(rows)
        return GoldBatch(self.head.inputs(self.sources, rows, labels), labels, _positions(mask))

    def loss(self, model: nn.Module, batch: GoldBatch) -> LossSum:
        """Sum of the cross-entropies of the rows' positions, and how many those are."""
        logits = self.head.logits(model, batch.inputs)
        return summed(cross_entropy(logits, batch.labels, batch.positions))


@dataclass(frozen=True)
class DistillationObjective:
    """Divergence from a teacher's stored targets, with cross-entropy on gold answers mixed in where rows have them.

    ``gold``: units of the gold answers, empty for rows without one. With ``gold_weight`` w, a row that has gold counts (1 - w)
    at its teacher's positions and w at its gold positions, any other row 1 at its teacher's: the mean is over these weights.
    ``objective: published`` counts padded positions like real ones (Kang et al. 2023, released script).
    """

    head: Head
    sources: Sources
    targets: SparseTargets
    settings: TrainSettings
    gold: AnswerIds | None = None

    def __post_init__(self) -> None:
        self.targets.temperature_column(self.settings.temperature)  # refused before a step is taken

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row through the model, int64 ``[rows]``: with gold mixed in, both passes."""
        n_positions = self.targets.n_real.astype(np.int64) + int(self._published)
        lengths = self.head.n_tokens(self.sources, AnswerIds.of_lengths(n_positions))
        if self._second_pass and self.gold is not None:
            has_gold = self.gold.lengths > 0
            lengths = lengths + np.where(has_gold, self.head.n_tokens(self.sources, self.gold), 0)
        return lengths

    @property
    def n_truncated(self) -> int:
        """Sources that were cut."""
        return self.sources.encoded.n_truncated

    def batch(self, rows: Rows) -> TargetBatch:
        """Return the rows' inputs, their teacher's targets, and gold answers where they are mixed in."""
        targets = self.targets.batch(rows, temperature=self.settings.temperature, with_padding=self._published)
        inputs = self.head.inputs(self.sources, rows, targets.units)
        gold = self.gold
        if gold is None or self.settings.gold_weight == 0 or not (gold.lengths[rows] > 0).any():
            return TargetBatch(inputs, targets.teacher)
        has_gold = gold.lengths[rows] > 0
        of_row = torch.from_numpy(has_gold)[targets.teacher.positions // targets.units.shape[1]]
        weights = torch.where(of_row, 1.0 - self.settings.gold_weight, 1.0)
        if self._second_pass:
            labels, mask = gold.batch(rows[has_gold])
            own = GoldBatch(self.head.inputs(self.sources, rows[has_gold], labels), labels, _positions(mask))
        else:
            labels, mask = gold.batch(rows, width=targets.units.shape[1])
            own = GoldBatch({}, labels, _positions(mask))
        return TargetBatch(inputs, targets.teacher, weights, own)

    def loss(self, model: nn.Module, batch: TargetBatch) -> LossSum:
        """Return the weighted sum of the rows' divergences, and cross-entropies where mixed, and the sum of weights."""
        settings = self.settings
        logits = self.head.logits(model, batch.inputs)[..., : self.targets.vocab_size]
        values = divergence(
            settings.divergence, logits, batch.teacher, temperature=settings.temperature, js_beta=settings.js_beta
        )
        loss, gold = summed(values, 1.0 if batch.weights is None else batch.weights), batch.gold
        if gold is None:
            return loss
        gold_logits = self.head.logits(model, gold.inputs) if gold.inputs else logits
        on_gold, weight = summed(cross_entropy(gold_logits, gold.labels, gold.positions)), settings.gold_weight
        return LossSum(loss.total + weight * on_gold.total, loss.n + weight * on_gold.n)

    @property
    def _published(self) -> bool:
        return self.settings.objective == "published"

    @property
    def _second_pass(self) -> bool:
        """Return whether gold answers need a pass of their own: those of classes and tags share the teacher's positions."""
        return self.head.target == "tokens" and self.settings.gold_weight > 0


def gold_units(head: Head, sources: Sources, gold: Sequence[str | None]) -> AnswerIds:
    """Encode the gold answers, none for rows without one."""
    known = [row for row, answer in enumerate(gold) if answer is not None]
    if not known:
        return AnswerIds.of([[] for _ in gold])
    texts = [gold[row] or "" for row in known]
    spelled = head.encode_answers(head.tokenize([sources.texts[row] for row in known]), texts)
    rows: list[list[int]] = [[] for _ in gold]
    for at, row in enumerate(known):
        rows[row] = spelled.ids[spelled.offsets[at] : spelled.offsets[at + 1]].tolist()
    return AnswerIds.of(rows, n_cut=spelled.n_cut, n_unaligned=spelled.n_unaligned)


def _positions(mask: Tensor) -> Tensor:
    """Return the indices where ``mask`` ``[B, P]`` holds, in the flattened B x P, int64 ``[N]``."""
    return mask.reshape(-1).nonzero().squeeze(1)
