"""Losses: one value per position, in nats, and their sum over the positions that count.

Shapes are written ``[..., V]``: ``V`` is the number of classes (or the vocabulary), the leading axes are batch, or batch and
position. Everything is computed in float32 whatever comes in.

The divergences read a teacher through its K largest logits (`Sparse`). The stored classes enter one by one, all the others as one
*tail bucket*: its teacher mass is exact, because the log-sum-exp over the full vocabulary at this temperature is stored, and only
the tail's shape is lost. Each divergence is an f-divergence, and putting classes together cannot raise one (the data processing
inequality), so each is a lower bound of its full form, and equal to it when K = V. ``p`` is the teacher, ``q`` the student.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DIVERGENCES = ("forward_kl", "reverse_kl", "js")

TAIL_FLOOR = 1e-6
"""Least mass that a teacher's tail has inside a logarithm: a float32 log-sum-exp of usual size tells no less from nothing."""

_NO_LOGIT = -1e30
"""Stands for a logit that is not there; finite, so that no gradient becomes 0 x inf."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss summed over positions, both float32 scalars: ``total`` in nats, ``n`` the positions that count."""

    total: Tensor
    n: Tensor

    @property
    def mean(self) -> Tensor:
        """Nats per position that counts; 0 when there is none."""
        return self.total / self.n.clamp_min(1.0)


@dataclass(frozen=True, slots=True)
class Sparse:
    """A teacher's distributions at one temperature T.

    ``indices``: ``[..., K]`` int64, classes distinct within a position; ``logits``: ``[..., K]``, theirs, raw (not divided by T);
    ``logsumexp``: ``[...]``, log Σ_v exp(z_v / T) over the full vocabulary. Where K = V the stored logits say everything and
    ``logsumexp`` is not read.
    """

    indices: Tensor
    logits: Tensor
    logsumexp: Tensor


def summed(values: Tensor, mask: Tensor | None = None) -> LossSum:
    """Sum ``values`` ``[...]`` where ``mask`` ``[...]`` (bool, True = counts) holds; ``None`` = everywhere."""
    if mask is None:
        return LossSum(values.sum(), values.new_tensor(float(values.numel())))
    # ``where`` and not a product: a masked position may hold inf or nan, and nan x 0 is nan.
    return LossSum(torch.where(mask, values, values.new_zeros(())).sum(), mask.sum().to(values.dtype))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy ``[...]`` in nats.

    Args:
        logits: ``[..., V]``, any float dtype.
        labels: ``[...]`` int64 class indices, in range also where the position does not count.
    """
    losses = F.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none")
    return losses.reshape(labels.shape)


def divergence(
    name: str, student_logits: Tensor, teacher: Sparse, *, temperature: float = 1.0, js_beta: float = 0.5
) -> Tensor:
    """The divergence of this name (`DIVERGENCES`), ``[...]`` in nats times T².

    Args:
        name: ``forward_kl``, ``reverse_kl`` or ``js``; see the functions.
        student_logits: ``[..., V]``, any float dtype.
        teacher: at this temperature, K ≤ V.
        temperature: T > 0. Gradients of softened distributions scale as 1/T², hence the factor (Hinton et al. 2015, §2).
        js_beta: the teacher's share of the mixture, for ``js`` only.

    Raises:
        ValueError: another name, or a ``js_beta`` outside (0, 1).
    """
    if name == "forward_kl":
        return forward_kl(student_logits, teacher, temperature=temperature)
    if name == "reverse_kl":
        return reverse_kl(student_logits, teacher, temperature=temperature)
    if name == "js":
        return js(student_logits, teacher, temperature=temperature, beta=js_beta)
    raise ValueError(f"no divergence is called {name!r}; choose {', '.join(DIVERGENCES)}")


def forward_kl(student_logits: Tensor, teacher: Sparse, *, temperature: float = 1.0) -> Tensor:
    """T² KL(p || q) = T² Σ p log(p / q) per position, ``[...]``: Kang et al. 2023, Eq. 1; `divergence` has the arguments.

    The tail enters as ``p_tail log(p_tail / q_tail)``; a lower bound by the log-sum inequality. The student is told how much mass
    belongs outside the K, not where; what is lost is bounded by `sparse_kl_gap_bound`.
    """
    buckets = _buckets(student_logits, teacher, temperature)
    return (buckets.p * (buckets.log_p - buckets.log_q)).sum(-1) * temperature**2


def reverse_kl(student_logits: Tensor, teacher: Sparse, *, temperature: float = 1.0) -> Tensor:
    """T² KL(q || p) = T² Σ q log(q / p) per position, ``[...]``: Gu et al. 2024 (MiniLLM), §2; `divergence` has the arguments.

    The tail enters as ``q_tail log(q_tail / p_tail)``, with at least `TAIL_FLOOR` for ``p_tail`` in the logarithm: so student
    mass in a tail that has none of the teacher's has a finite price. A lower bound by the log-sum inequality: full reverse KL
    also punishes mass at the wrong classes of the tail, which here costs nothing.
    """
    buckets = _buckets(student_logits, teacher, temperature)
    return (buckets.log_q.exp() * (buckets.log_q - buckets.log_p)).sum(-1) * temperature**2


def js(student_logits: Tensor, teacher: Sparse, *, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """T² (β KL(p || m) + (1 - β) KL(q || m)) per position, ``[...]``, where m = β p + (1 - β) q.

    The generalised Jensen-Shannon divergence of Agarwal et al. 2024 (GKD), §2, with the teacher's share β as in TRL's
    ``GKDTrainer``; β = 1/2 is the symmetric one. Near agreement it is β (1 - β) times a KL divergence, so its gradients are that
    much smaller; JS / β goes to KL(p || q) as β goes to 0, JS / (1 - β) to KL(q || p) as β goes to 1.
    The tail is one class of the mixture. A lower bound, itself at most T² times the entropy of (β, 1 - β).

    Raises:
        ValueError: β outside (0, 1).
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(f"js needs 0 < beta < 1, not {beta:g}; beta = 0 is forward_kl, beta = 1 is reverse_kl")
    buckets = _buckets(student_logits, teacher, temperature)
    log_m = torch.logaddexp(buckets.log_p + math.log(beta), buckets.log_q + math.log1p(-beta))
    of_teacher = (buckets.p * (buckets.log_p - log_m)).sum(-1)
    of_student = (buckets.log_q.exp() * (buckets.log_q - log_m)).sum(-1)
    return (beta * of_teacher + (1.0 - beta) * of_student) * temperature**2


def sparse_kl_gap_bound(student_logits: Tensor, teacher: Sparse, *, temperature: float = 1.0) -> Tensor:
    """Upper bound of (full KL(p || q) - `forward_kl`), times T², per position ``[...]``, from the same inputs.

    The gap is ``p_tail · KL(p | tail || q | tail)``. No unstored class has more teacher mass than the smallest stored one, so
    the log-ratio inside the tail is at most ``log min(1, p_K / p_tail) - log min_v (q_v / q_tail)``. It is 0 when
    nothing is in the tail.
    """
    if teacher.indices.shape[-1] >= student_logits.shape[-1]:
        return student_logits.new_zeros(student_logits.shape[:-1], dtype=torch.float32)
    buckets = _buckets(student_logits, teacher, temperature)
    scaled = student_logits.float() / temperature
    smallest_log_q = scaled.scatter(-1, teacher.indices, float("inf")).amin(-1) - torch.logsumexp(scaled, -1)
    largest_log_p = (buckets.log_p[..., :-1].amin(-1) - buckets.log_p[..., -1]).clamp_max(0.0)
    gap = buckets.p[..., -1] * (largest_log_p - (smallest_log_q - buckets.log_q[..., -1]))
    return gap.clamp_min(0.0) * temperature**2


@dataclass(frozen=True, slots=True)
class _Buckets:
    """Both distributions over the stored classes and, where K < V, the tail: each ``[..., K + 1]``, else ``[..., K]``.

    ``p`` is 0 for a tail without teacher mass, ``log_p`` never less than log `TAIL_FLOOR` there.
    """

    p: Tensor
    log_p: Tensor
    log_q: Tensor


def _buckets(student_logits: Tensor, teacher: Sparse, temperature: float) -> _Buckets:
    scaled = student_logits.float() / temperature
    teacher_scaled = teacher.logits.float() / temperature
    if teacher.indices.shape[-1] >= student_logits.shape[-1]:
        log_p = F.log_softmax(teacher_scaled, -1)
        return _Buckets(log_p.exp(), log_p, F.log_softmax(scaled.gather(-1, teacher.indices), -1))
    log_p = teacher_scaled - teacher.logsumexp.float().unsqueeze(-1)
    p = log_p.exp()
    p_tail = (1.0 - p.sum(-1, keepdim=True)).clamp_min(0.0)
    # The student's tail is summed from its own logits: 1 - Σ q would lose it, and its gradient, to rounding.
    top = scaled.gather(-1, teacher.indices)
    tail = torch.logsumexp(scaled.scatter(-1, teacher.indices, _NO_LOGIT), -1, keepdim=True)
    log_q = F.log_softmax(torch.cat([top, tail], -1), -1)
    log_p_tail = p_tail.clamp_min(TAIL_FLOOR).log()
    return _Buckets(torch.cat([p, p_tail], -1), torch.cat([log_p, log_p_tail], -1), log_q)
