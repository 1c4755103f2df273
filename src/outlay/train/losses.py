"""Losses: each takes logits of any leading shape and averages over real positions only.

Shapes are written ``[..., V]``: ``V`` is the number of classes (or the vocabulary), the leading axes are batch, or batch and
position. Everything is computed in float32 whatever comes in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-12


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values`` ``[...]`` where ``mask`` ``[...]`` (bool, True = real) holds; 0 when nothing is real."""
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype)
    # ``where`` and not a product: a masked position may hold inf or nan, and nan x 0 is nan.
    return torch.where(mask, values, values.new_zeros(())).sum() / weights.sum().clamp_min(1.0)


def cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats, averaged over real positions.

    Args:
        logits: ``[..., V]``, any float dtype.
        labels: ``[...]`` int64 class indices; what stands at masked positions is ignored.
        mask: ``[...]`` bool, True where the position is real; ``None`` = all.
    """
    n_classes = logits.shape[-1]
    safe = labels if mask is None else torch.where(mask, labels, torch.zeros_like(labels))
    losses = F.cross_entropy(logits.float().reshape(-1, n_classes), safe.reshape(-1), reduction="none")
    return masked_mean(losses.reshape(labels.shape), mask)


def sparse_kl(
    student_logits: Tensor,
    indices: Tensor,
    teacher_logits: Tensor,
    teacher_logsumexp: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """KL(teacher || student) at a temperature from the teacher's K largest logits, times T squared.

    Forward KL divergence of Kang et al. 2023, Eq. 1, softened as in Hinton et al. 2015 (the gradients of softened targets
    scale as 1/T², hence the factor). The K stored classes enter one by one; all the others are one *tail bucket* whose
    teacher mass is exact, because the teacher's log-sum-exp over the full vocabulary at this temperature is stored. By the
    log-sum inequality the result is a lower bound of the full divergence, and equal to it when K = V;
    `sparse_kl_gap_bound` bounds what is lost.

    Args:
        student_logits: ``[..., V]``, any float dtype.
        indices: ``[..., K]`` int64, the classes the teacher's stored logits belong to, distinct within a position.
        teacher_logits: ``[..., K]`` raw (temperature 1) logits.
        teacher_logsumexp: ``[...]`` float, log Σ_v exp(z_v / T) over the full vocabulary at this ``temperature``.
        temperature: T > 0.
        mask: ``[...]`` bool, True where the position is real.

    Returns:
        A scalar: T² times the mean divergence in nats over real positions.
    """
    teacher_log_p, student_log_q = _top_log_probs(
        student_logits, indices, teacher_logits, teacher_logsumexp, temperature
    )
    teacher_p = teacher_log_p.exp()
    divergence = (teacher_p * (teacher_log_p - student_log_q)).sum(-1)
    if indices.shape[-1] < student_logits.shape[-1]:
        teacher_tail = (1.0 - teacher_p.sum(-1)).clamp_min(_TINY)
        student_tail = (1.0 - student_log_q.exp().sum(-1)).clamp_min(_TINY)
        divergence = divergence + teacher_tail * (teacher_tail.log() - student_tail.log())
    return masked_mean(divergence, mask) * temperature**2


def sparse_kl_gap_bound(
    student_logits: Tensor,
    indices: Tensor,
    teacher_logits: Tensor,
    teacher_logsumexp: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Upper bound of (full KL - `sparse_kl`), times T squared, from the same inputs.

    The gap is ``p_tail · KL(p | tail || q | tail)``. No unstored class has more teacher mass than the smallest stored one, so
    the log-ratio inside the tail is at most ``log min(1, p_K / p_tail) - log min_v (q_v / q_tail)``.
    Returns a scalar averaged as `sparse_kl` averages; 0 when nothing is in the tail.
    """
    if indices.shape[-1] >= student_logits.shape[-1]:
        return student_logits.new_zeros((), dtype=torch.float32)
    teacher_log_p, student_log_q = _top_log_probs(
        student_logits, indices, teacher_logits, teacher_logsumexp, temperature
    )
    teacher_tail = (1.0 - teacher_log_p.exp().sum(-1)).clamp_min(_TINY)
    student_tail = (1.0 - student_log_q.exp().sum(-1)).clamp_min(_TINY)
    all_log_q = F.log_softmax(student_logits.float() / temperature, dim=-1)
    smallest_log_q = all_log_q.scatter(-1, indices, float("inf")).amin(-1)
    largest_log_p = (teacher_log_p.amin(-1) - teacher_tail.log()).clamp_max(0.0)
    gap = teacher_tail * (largest_log_p - (smallest_log_q - student_tail.log()))
    return masked_mean(gap.clamp_min(0.0), mask) * temperature**2


def _top_log_probs(
    student_logits: Tensor, indices: Tensor, teacher_logits: Tensor, teacher_logsumexp: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[..., K]`` of teacher and student at the stored classes, at a temperature."""
    teacher_log_p = teacher_logits.float() / temperature - teacher_logsumexp.float().unsqueeze(-1)
    student_log_q = F.log_softmax(student_logits.float() / temperature, dim=-1).gather(-1, indices)
    return teacher_log_p, student_log_q
