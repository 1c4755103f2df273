"""What is lost where a teacher's distributions are kept in part: dense formulas over the whole vocabulary, in float64.

They know nothing of outlay's own losses and files, so that those can be held against them. ``z`` are the teacher's raw logits
``[N, V]``, ``y`` a student's; T a temperature. A divergence of a part is taken as students take it: the kept classes one by one,
all others as one, whose mass is known from the log-sum-exp over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TAIL_FLOOR = 1e-6
"""Least mass of the rest inside a logarithm."""


@dataclass(frozen=True, slots=True)
class Loss:
    """At one temperature: probability kept, mean and least; mean |KL of the part - KL| over mean KL."""

    mass_mean: float
    mass_least: float
    kl_error: float


def kept_counts(z: Tensor, tail_mass: float, max_logits: int) -> Tensor:
    """Logits kept at each position, int64 ``[N]``: the largest, until at T = 1 no more than ``tail_mass`` is left out.

    At least one and at most ``max_logits``; always as many where ``tail_mass`` is 0, and all where ``max_logits`` is.
    """
    most = min(max_logits or z.shape[-1], z.shape[-1])
    if tail_mass == 0 or max_logits == 0:
        return torch.full((len(z),), most)
    p = torch.softmax(z.double(), -1).sort(-1, descending=True).values
    left_out = 1.0 - p.cumsum(-1)
    return (1 + (left_out > tail_mass).sum(-1)).clamp(1, most)


def kept_mask(z: Tensor, counts: Tensor) -> Tensor:
    """Which classes those are, bool ``[N, V]``."""
    ranks = z.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return ranks < counts[:, None]


def full_kl(z: Tensor, y: Tensor, temperature: float) -> Tensor:
    """KL(p || q), float64 ``[N]``."""
    log_p, log_q = torch.log_softmax(z.double() / temperature, -1), torch.log_softmax(y.double() / temperature, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def part_kl(z: Tensor, stored: Tensor, mask: Tensor, y: Tensor, temperature: float) -> Tensor:
    """The same of a part, float64 ``[N]``; ``stored``: the kept logits as the file gives them back, read where ``mask`` holds.

    Where everything is kept, the stored logits say all and their own log-sum-exp counts.
    """
    if bool(mask.all()):
        return full_kl(stored, y, temperature)
    log_sum = torch.logsumexp(z.double() / temperature, -1, keepdim=True)
    log_p = stored.double() / temperature - log_sum
    log_q = torch.log_softmax(y.double() / temperature, -1)
    p = torch.where(mask, log_p.exp(), 0.0)
    tail = (1.0 - p.sum(-1)).clamp_min(0.0)
    log_q_tail = log_q.masked_fill(mask, -torch.inf).logsumexp(-1)
    named = torch.where(mask, p * (log_p - log_q), 0.0).sum(-1)
    return named + torch.where(tail > 0, tail * (tail.clamp_min(TAIL_FLOOR).log() - log_q_tail.clamp_min(-1e4)), 0.0)


def losses_of(z: Tensor, mask: Tensor, y: Tensor, temperature: float) -> Loss:
    """What a part loses, its logits in float32."""
    p = torch.softmax(z.double() / temperature, -1)
    mass = torch.where(mask, p, 0.0).sum(-1)
    whole = full_kl(z, y, temperature)
    error = (part_kl(z, z, mask, y, temperature) - whole).abs().mean() / whole.mean()
    return Loss(float(mass.mean()), float(mass.min()), float(error))


def _through(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda z: z.to(dtype).float()


def _differences(z: Tensor) -> Tensor:
    """The largest in float32, the others as float16 differences below it."""
    largest = z.amax(-1, keepdim=True)
    return largest - (largest - z).half().float()


DTYPES: Mapping[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "float32": (lambda z: z, 4),
    "float16": (_through(torch.float16), 2),
    "bfloat16": (_through(torch.bfloat16), 2),
    "float16 differences": (_differences, 2),
}
"""Name → how float32 logits come back from a file that keeps them so, and bytes each."""


def dtype_losses(z: Tensor, mask: Tensor, y: Tensor, temperature: float) -> dict[str, float]:
    """Of each of `DTYPES`: mean |KL - KL of float32 logits| over the latter's mean, for the same part."""
    exact = part_kl(z, z, mask, y, temperature)
    found = {}
    for name, (stored, _) in DTYPES.items():
        kl = part_kl(z, stored(z.float()), mask, y, temperature)
        found[name] = float((kl - exact).abs().mean() / exact.mean())
    return found
