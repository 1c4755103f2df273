"""Lessons: a training set and what a model is to learn from it, as the loop sees it (`outlay.train.loop.Lesson`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from outlay.settings import TrainSettings
from outlay.train.encode import Units
from outlay.train.heads import Head, Rows, Sources, logits_of
from outlay.train.losses import LossSum, Sparse, cross_entropy, divergence, summed
from outlay.train.targets import SparseTargets


@dataclass(frozen=True)
class GoldLesson:
    """Cross-entropy on answers, averaged over their positions."""

    head: Head
    sources: Sources
    units: Units

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.units):
            raise ValueError(f"{len(self.sources)} rows to train on but {len(self.units)} answers")

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

    def loss(self, model: nn.Module, rows: Rows) -> LossSum:
        """Sum of the cross-entropies of the rows' positions, and how many those are."""
        units, mask = self.units.batch(rows)
        logits = logits_of(self.head, model, self.sources, rows, units)
        return summed(cross_entropy(logits, units.to(logits.device)), mask.to(logits.device))


@dataclass(frozen=True)
class TargetLesson:
    """Divergence from a teacher's stored targets, with cross-entropy on gold answers mixed in where rows have them.

    ``gold``: units of the gold answers, empty for rows without one. With ``gold_weight`` w, a row that has gold counts (1 - w)
    at its teacher's positions and w at its gold positions, any other row 1 at its teacher's: the mean is over these weights.
    ``objective: published`` counts padded positions like real ones (Kang et al. 2023, released script).
    """

    head: Head
    sources: Sources
    targets: SparseTargets
    settings: TrainSettings
    gold: Units | None = None

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.targets):
            raise ValueError(f"{len(self.sources)} pool rows but targets for {len(self.targets)} rows")
        self.targets.temperature_column(self.settings.temperature)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row through the model, int64 ``[rows]``: with gold mixed in, both passes."""
        said = self.targets.n_real.astype(np.int64) + int(self._published)
        offsets = np.concatenate([[0], np.cumsum(said)])
        lengths = self.head.n_tokens(self.sources, Units(self.targets.units, offsets))
        if self._second_pass and self.gold is not None:
            has_gold = self.gold.lengths > 0
            lengths = lengths + np.where(has_gold, self.head.n_tokens(self.sources, self.gold), 0)
        return lengths

    @property
    def n_truncated(self) -> int:
        """Sources that were cut."""
        return self.sources.encoded.n_truncated

    def loss(self, model: nn.Module, rows: Rows) -> LossSum:
        """Weighted sum of the divergences of the rows' positions (and cross-entropies, where mixed), and the sum of weights."""
        settings = self.settings
        batch = self.targets.batch(rows, with_padding=self._published)
        width = batch.mask.shape[1]
        logits = logits_of(self.head, model, self.sources, rows, batch.units)[:, :width, : self.targets.vocab_size]
        column = self.targets.temperature_column(settings.temperature)
        device = logits.device
        teacher = Sparse(batch.indices.to(device), batch.logits.to(device), batch.logsumexp[..., column].to(device))
        values = divergence(
            settings.divergence, logits, teacher, temperature=settings.temperature, js_beta=settings.js_beta
        )
        mask = batch.mask.to(device)
        if self.gold is None or settings.gold_weight == 0:
            return summed(values, mask)
        return self._mixed(model, rows, values, mask, logits)

    @property
    def _published(self) -> bool:
        return self.settings.objective == "published"

    @property
    def _second_pass(self) -> bool:
        """A model that writes reads the gold answer in a pass of its own; a class or tag has the same positions."""
        return self.head.target == "tokens" and self.settings.gold_weight > 0

    def _mixed(self, model: nn.Module, rows: Rows, values: Tensor, mask: Tensor, logits: Tensor) -> LossSum:
        assert self.gold is not None
        weight = self.settings.gold_weight
        with_gold = np.flatnonzero(self.gold.lengths[rows] > 0)
        if len(with_gold) == 0:
            return summed(values, mask)
        has_gold = torch.zeros(len(rows), dtype=torch.bool, device=values.device)
        has_gold[torch.from_numpy(with_gold).to(values.device)] = True
        alone = summed(values, mask & ~has_gold.unsqueeze(-1))
        beside = summed(values, mask & has_gold.unsqueeze(-1))
        units, real = self.gold.batch(rows[with_gold])
        units, real = units.to(values.device), real.to(values.device)
        if self._second_pass:
            said = logits_of(self.head, model, self.sources, rows[with_gold], units)
        else:
            said = logits[torch.from_numpy(with_gold).to(values.device), : units.shape[1]]
        gold = summed(cross_entropy(said, units), real)
        total = alone.total + (1 - weight) * beside.total + weight * gold.total
        return LossSum(total, alone.n + (1 - weight) * beside.n + weight * gold.n)


def gold_units(head: Head, sources: Sources, gold: Sequence[str | None]) -> Units:
    """Units of the gold answers, none for rows without one."""
    known = [row for row, answer in enumerate(gold) if answer is not None]
    if not known:
        return Units.of([[] for _ in gold])
    texts = [gold[row] or "" for row in known]
    spelled = head.spell(head.read([sources.texts[row] for row in known]), texts)
    rows: list[list[int]] = [[] for _ in gold]
    for at, row in enumerate(known):
        rows[row] = spelled.ids[spelled.offsets[at] : spelled.offsets[at + 1]].tolist()
    return Units.of(rows, n_cut=spelled.n_cut, n_unaligned=spelled.n_unaligned)
