"""Losses: one value per counted position, in nats, and their sum.

Logits are ``[..., V]``: ``V`` is the number of classes (or the vocabulary); the leading axes, batch, or batch and position, are
read as one axis of R rows. N of these rows are the positions that count. Everything is computed in float32 whatever comes in (in
float64 where the logits are), though never for all logits at once (`outlay.train.fused_log_probs`). Nothing here makes a GPU
wait.

The divergences read a teacher through its largest logits (`Sparse`). The stored classes enter one by one, all the others as one
*tail bucket*: its teacher mass is exact, because the log-sum-exp over the full vocabulary at this temperature is stored, and only
the tail's shape is lost. Each divergence is an f-divergence, and putting classes together cannot raise one (the data processing
inequality), so each is a lower bound of its full form, and equal to it where all classes are stored. ``p`` is the teacher, ``q``
the student.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.settings import DIVERGENCES
from outlay.train.fused_log_probs import Cells, Segments, log_probabilities, working_dtype

TAIL_FLOOR = 1e-6
"""Least mass of a teacher's tail inside a logarithm: below it a float32 log-sum-exp of usual size tells no less from zero."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss summed over positions, both float32 scalars: ``total`` in nats, ``n`` the positions that count, or their weights."""

    total: Tensor
    n: Tensor


@dataclass(frozen=True, slots=True)
class Sparse:
    """A teacher's distributions at one temperature T, over N positions that count; M classes are kept in all.

    ``positions``: int64 ``[N]``, rows of the student's flattened logits ``[R, V]``, increasing;
    ``entries``: int64 ``[M]``, the position (0 to N - 1) of a kept class, non-decreasing, at least one class for each;
    ``indices``: int64 ``[M]``, the class, distinct within a position;
    ``logits``: float32 ``[M]``, its raw logit, not divided by T;
    ``logsumexp``: float32 ``[N]``, log Σ_v exp(z_v / T) over the teacher's full vocabulary;
    ``complete``: all V classes are kept at every position; there is no tail then, and ``logsumexp`` is not read.
    """

    positions: Tensor
    entries: Tensor
    indices: Tensor
    logits: Tensor
    logsumexp: Tensor
    complete: bool


def summed(values: Tensor, weights: Tensor | float = 1.0) -> LossSum:
    """Return the sum of ``values`` ``[N]`` times their weights, ``[N]`` or one number for all, and that of the weights."""
    if isinstance(weights, Tensor):
        return LossSum((values * weights).sum(), weights.to(values.dtype).sum())
    # `torch.full` is filled on the device; a number copied there would be waited for.
    n = torch.full((), values.numel() * weights, dtype=values.dtype, device=values.device)
    return LossSum(values.sum() * weights, n)


def cross_entropy(logits: Tensor, labels: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return the cross-entropy ``[N]`` in nats: `forward_kl` at T = 1 from a one-hot teacher, by the same code.

    Args:
        logits: ``[..., V]``, any float dtype.
        labels: ``[...]`` int64 class indices, from 0 to V - 1 where the position counts.
        positions: int64 ``[N]``, the rows of the flattened logits that count, increasing; ``None`` = all.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    classes = labels.reshape(-1) if positions is None else labels.reshape(-1)[positions]
    segments = Segments.of(torch.arange(len(classes), device=classes.device), len(classes), width=1)
    log_q, _ = log_probabilities(rows, Cells(_unless_all(positions, rows), segments, classes, complete=False), 1.0)
    return -log_q


def divergence(
    name: str, student_logits: Tensor, teacher: Sparse, *, temperature: float = 1.0, js_beta: float = 0.5
) -> Tensor:
    """Return the divergence of this name (`DIVERGENCES`), ``[N]`` in nats times T².

    Args:
        name: ``forward_kl``, ``reverse_kl`` or ``js``; see the functions.
        student_logits: ``[..., V]``, any float dtype.
        teacher: at this temperature.
        temperature: T > 0. Gradients of softened distributions scale as 1/T², hence the factor (Hinton et al. 2015, §2).
        js_beta: the teacher's share of the mixture, for ``js`` only.

    Raises:
        ValueError: another name, a ``js_beta`` outside (0, 1), or a complete teacher of another vocabulary than the student's.
    """
    if name == "forward_kl":
        return forward_kl(student_logits, teacher, temperature=temperature)
    if name == "reverse_kl":
        return reverse_kl(student_logits, teacher, temperature=temperature)
    if name == "js":
        return js(student_logits, teacher, temperature=temperature, beta=js_beta)
    raise ValueError(f"no divergence is called {name!r}; choose {', '.join(DIVERGENCES)}")


def forward_kl(student_logits: Tensor, teacher: Sparse, *, temperature: float = 1.0) -> Tensor:
    """Return T² KL(p || q) = T² Σ p log(p / q) per position, ``[N]``: Kang et al. 2023, Eq. 1; `divergence` has the arguments.

    The tail enters as ``p_tail log(p_tail / q_tail)``; a lower bound by the log-sum inequality. The student learns how much mass
    belongs outside the stored classes, not where.
    """
    return _per_position(lambda b: b.p * (b.log_p - b.log_q), student_logits, teacher, temperature)


def reverse_kl(student_logits: Tensor, teacher: Sparse, *, temperature: float = 1.0) -> Tensor:
    """Return T² KL(q || p) = T² Σ q log(q / p) per position, ``[N]``: Gu et al. 2024, §2; `divergence` has the arguments.

    The tail enters as ``q_tail log(q_tail / p_tail)``, with at least `TAIL_FLOOR` for ``p_tail`` in the logarithm: so student
    mass in a tail that has none of the teacher's has a finite price. A lower bound by the log-sum inequality: full reverse KL
    also punishes mass at the wrong classes of the tail, which here costs nothing.
    """
    return _per_position(lambda b: b.log_q.exp() * (b.log_q - b.log_p), student_logits, teacher, temperature)


def js(student_logits: Tensor, teacher: Sparse, *, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """Return T² (β KL(p || m) + (1 - β) KL(q || m)) per position, ``[N]``, where m = β p + (1 - β) q.

    The generalised Jensen-Shannon divergence of Agarwal et al. 2024 (GKD), §2, with the teacher's share β as in TRL's
    ``GKDTrainer``; β = 1/2 is the symmetric one. Near agreement it is β (1 - β) times a KL divergence, so its gradients are that
    much smaller; JS / β goes to KL(p || q) as β goes to 0, JS / (1 - β) to KL(q || p) as β goes to 1.
    The tail is one class of the mixture. A lower bound, itself at most T² times the entropy of (β, 1 - β).

    Raises:
        ValueError: β outside (0, 1).
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(f"js needs 0 < beta < 1, not {beta:g}; beta = 0 is forward_kl, beta = 1 is reverse_kl")

    def term(b: _Buckets) -> Tensor:
        log_m = torch.logaddexp(b.log_p + math.log(beta), b.log_q + math.log1p(-beta))
        return beta * b.p * (b.log_p - log_m) + (1.0 - beta) * b.log_q.exp() * (b.log_q - log_m)

    return _per_position(term, student_logits, teacher, temperature)


@dataclass(frozen=True, slots=True)
class _Buckets:
    """Both distributions over stored classes ``[M]``, or over the tails ``[N]``.

    ``p`` is 0 for a tail without teacher mass, ``log_p`` never less than log `TAIL_FLOOR` there.
    """

    p: Tensor
    log_p: Tensor
    log_q: Tensor


def _per_position(
    term: Callable[[_Buckets], Tensor], student_logits: Tensor, teacher: Sparse, temperature: float
) -> Tensor:
    """Return T² times the sum of ``term`` over each position's stored classes and its tail, ``[N]``."""
    rows = student_logits.reshape(-1, student_logits.shape[-1])
    cells = _cells(teacher, rows)
    p, log_p, p_tail, log_p_tail = _teacher_shares(teacher, cells, rows, temperature)
    log_q, log_q_tail = log_probabilities(rows, cells, temperature)
    values = cells.segments.sum(term(_Buckets(p, log_p, log_q)))
    if log_q_tail is not None:
        values = values + term(_Buckets(p_tail, log_p_tail, log_q_tail))
    return values * temperature**2


def _cells(teacher: Sparse, rows: Tensor) -> Cells:
    n, n_classes = len(teacher.positions), rows.shape[1]
    if teacher.complete and len(teacher.indices) != n * n_classes:
        raise ValueError(
            f"a complete teacher has {n} positions and {len(teacher.indices)} classes in all, but the student has {n_classes} "
            f"classes at each; cut the student's logits to the teacher's vocabulary"
        )
    segments = Segments.of(teacher.entries, n, width=n_classes if teacher.complete else None)
    return Cells(_unless_all(teacher.positions, rows), segments, teacher.indices, teacher.complete)


def _unless_all(positions: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return ``positions``, or ``None`` where all rows count."""
    return None if positions is None or len(positions) == len(rows) else positions


def _teacher_shares(
    teacher: Sparse, cells: Cells, rows: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return p and log p of the stored classes ``[M]``, of the tail ``[N]``."""
    scaled, segments = teacher.logits.to(working_dtype(rows)) / temperature, cells.segments
    if teacher.complete:
        log_p = scaled.view(cells.n, rows.shape[1]).log_softmax(-1).view(-1)
        nothing = torch.zeros(cells.n, dtype=scaled.dtype, device=scaled.device)
        return log_p.exp(), log_p, nothing, nothing
    log_p = scaled - segments.spread(teacher.logsumexp.to(scaled.dtype))
    p = log_p.exp()
    # Where every class of a position is stored, what is missing to 1 is rounding.
    has_tail = segments.offsets.diff() < rows.shape[1]
    p_tail = torch.where(has_tail, (1.0 - segments.sum(p)).clamp_min(0.0), 0.0)
    return p, log_p, p_tail, p_tail.clamp_min(TAIL_FLOOR).log()
