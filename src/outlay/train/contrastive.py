"""Contrastive training of an encoder on pairs of labelled texts (SetFit, Tunstall et al. 2022, section 3.1).

SetFit draws pairs of texts, two of one class or of two, and trains the cosine of their vectors towards 1 or 0. Here the pairs are
those within a batch: each text is encoded once for all its pairs, where a drawn pair would be encoded for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from outlay.models.heads import Inputs, Rows, Sources
from outlay.models.pooled import PooledHead, PooledModel
from outlay.train.losses import LossSum


class PairBatch(NamedTuple):
    """Rows and their classes, int64 ``[B]``."""

    inputs: Inputs
    classes: Tensor


@dataclass(frozen=True)
class ContrastiveObjective:
    """Mean squared error of the cosines of all pairs of a batch: to 1 within a class, to 0 across, both kinds of equal weight.

    ``classes``: int64 ``[rows]``.
    """

    head: PooledHead
    sources: Sources
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, int64 ``[rows]``."""
        return self.sources.encoded.lengths

    @property
    def n_truncated(self) -> int:
        """Sources that were cut."""
        return self.sources.encoded.n_truncated

    def batch(self, rows: Rows) -> PairBatch:
        """Return the rows' inputs and classes."""
        return PairBatch(self.head.inputs(self.sources, rows, torch.empty(0)), torch.from_numpy(self.classes[rows]))

    def loss(self, model: nn.Module, batch: PairBatch) -> LossSum:
        """Return the batch's mean over pairs times its rows, and the number of rows."""
        assert isinstance(model, PooledModel)
        vectors = functional.normalize(model.features(model.pool(batch.inputs)).float(), dim=1)
        first, second = torch.triu_indices(len(vectors), len(vectors), offset=1, device=vectors.device)
        errors = (
            (vectors[first] * vectors[second]).sum(1)
            - (same := (batch.classes[first] == batch.classes[second]).float())
        ) ** 2
        kinds = [(errors * kind).sum() / kind.sum().clamp_min(1.0) for kind in (same, 1.0 - same)]
        n = torch.full((), float(len(vectors)), device=vectors.device)
        return LossSum((kinds[0] + kinds[1]) / 2 * n, n)
