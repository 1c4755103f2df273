"""The largest logits of each position and its log-sum-exps, taken on the logits' device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from outlay.errors import TrainingError
from outlay.train.targets.sparse_logits import SparseLogits, SparsityRule

_CHUNK_LOGITS = 1 << 22
"""Logits in one chunk (16 MiB of float32), whatever the vocabulary."""


class TopLogits(NamedTuple):
    """The K largest logits of N positions and how many of them are kept, on the logits' device.

    ``logits``: float32 ``[N, K]``, falling; ``indices``: int64 ``[N, K]``; ``n_kept``: int64 ``[N]``; ``logsumexp``: float32
    ``[N, temperatures]``. Where K = V the logits are raw, else less the largest of their position; log-sum-exps are of them.
    """

    logits: Tensor
    indices: Tensor
    n_kept: Tensor
    logsumexp: Tensor


def largest(logits: Tensor, rule: SparsityRule) -> TopLogits:
    """Keep the largest of ``logits`` ``[N, V]``, any float dtype, as ``rule`` says; equal ones in the order of their classes.

    Nothing is read back from the device. Which of several classes that equal the ``max_logits``-th largest are among those
    is left to `torch.topk`.
    """
    parts = [_largest(chunk.float(), rule) for chunk in torch.split(logits, max(1, _CHUNK_LOGITS // logits.shape[-1]))]
    return parts[0] if len(parts) == 1 else TopLogits(*map(torch.cat, zip(*parts, strict=True)))


def _largest(logits: Tensor, rule: SparsityRule) -> TopLogits:
    if rule.complete:
        values, indices = logits.sort(dim=-1, descending=True, stable=True)
    else:
        _, indices = logits.topk(rule.max_logits, dim=-1)
        # By class and then, keeping that order among equals, by logit.
        indices = indices.sort(dim=-1).values
        values, order = logits.gather(-1, indices).sort(dim=-1, descending=True, stable=True)
        indices = indices.gather(-1, order)
    top = values[:, :1]
    sums = _exponential_sums(logits, top, rule.temperatures)
    n_kept = torch.full_like(indices[:, 0], values.shape[1])
    if rule.tail_mass > 0:
        mass = ((values - top).double().exp() / sums[1.0].double()).cumsum(-1)
        n_kept = ((1.0 - mass > rule.tail_mass).sum(-1) + 1).clamp_max(values.shape[1])
    logsumexp = torch.cat([sums[t].log() for t in rule.temperatures], dim=-1)
    if rule.complete:
        level = torch.cat([top / t for t in rule.temperatures], dim=-1)
        return TopLogits(values, indices, n_kept, logsumexp + level)
    return TopLogits(values - top, indices, n_kept, logsumexp)


def _exponential_sums(logits: Tensor, top: Tensor, temperatures: Sequence[float]) -> dict[float, Tensor]:
    """Σ_v exp((z_v - max z) / T) ``[N, 1]`` by temperature, 1 among them.

    One exponential, at the highest temperature, is raised to the others: to its square, where they double.
    """
    falling = sorted({1.0, *temperatures}, reverse=True)
    weights = (logits - top).div_(falling[0]).exp_()
    sums = {falling[0]: weights.sum(-1, keepdim=True)}
    for above, here in itertools.pairwise(falling):
        weights.pow_(above / here)
        sums[here] = weights.sum(-1, keepdim=True)
    return sums


def to_positions(parts: Sequence[TopLogits], rule: SparsityRule) -> SparseLogits:
    """Return the positions of all parts, in memory; units are 0, to be filled in by the caller.

    Raises:
        TrainingError: logits that are not finite.
    """
    arrays = [tensor.cpu().numpy() for tensor in map(torch.cat, zip(*parts, strict=True))]
    logits, indices, n_kept, logsumexp = arrays
    if not np.isfinite(logsumexp).all():
        raise TrainingError("the teacher's logits are not finite; train it again, at a lower learning rate")
    if rule.complete:
        kept = (indices.reshape(-1), logits.reshape(-1))
    else:
        mask = np.arange(logits.shape[1]) < n_kept[:, None]
        kept = (indices[mask], logits[mask])
    return SparseLogits.pack(rule, np.zeros(len(n_kept), dtype=np.int32), n_kept, *kept, logsumexp)
