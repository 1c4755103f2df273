"""The losses against PyTorch's own, closed forms and a plain loop. Every tensor axis has its own prime size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from outlay.train.losses import cross_entropy, masked_mean, sparse_kl, sparse_kl_gap_bound

BATCH, LENGTH, VOCAB = 3, 5, 11


def random_logits(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def sparse(teacher: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    top = teacher.topk(k, dim=-1)
    return top.indices, top.values, torch.logsumexp(teacher / temperature, dim=-1)


def full_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Per position, by PyTorch, in float64."""
    log_q, log_p = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_equals_kl_div_on_full_distributions(temperature: float) -> None:
    student, teacher = random_logits(0, BATCH, LENGTH, VOCAB), random_logits(1, BATCH, LENGTH, VOCAB)
    expected = full_kl(student, teacher, temperature).mean() * temperature**2
    loss = sparse_kl(student, *sparse(teacher, VOCAB, temperature), temperature=temperature)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6 * max(1.0, expected.item()))


@given(st.integers(0, 10_000), st.integers(1, VOCAB - 1), st.sampled_from([1.0, 2.0]), st.floats(0.1, 6.0))
@settings(max_examples=200, deadline=None)
def test_sparse_is_a_lower_bound_and_the_gap_is_within_its_bound(
    seed: int, k: int, temperature: float, scale: float
) -> None:
    student = random_logits(seed, BATCH, LENGTH, VOCAB, scale=scale)
    teacher = random_logits(seed + 1, BATCH, LENGTH, VOCAB, scale=scale)
    exact = (full_kl(student, teacher, temperature).mean() * temperature**2).item()
    targets = sparse(teacher, k, temperature)
    kept = sparse_kl(student, *targets, temperature=temperature).item()
    bound = sparse_kl_gap_bound(student, *targets, temperature=temperature).item()
    slack = 1e-4 * max(1.0, exact)
    assert kept <= exact + slack
    assert exact - kept <= bound + slack


def test_gap_is_exact_in_a_case_done_by_hand() -> None:
    # p = (1/2, 1/4, 1/4), q = (1/2, 3/8, 1/8), K = 1: the bucket sees equal tails, the gap is the whole divergence.
    teacher = torch.log(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64))
    student = torch.log(torch.tensor([[0.5, 0.375, 0.125]], dtype=torch.float64))
    kept = sparse_kl(student, *sparse(teacher, 1, 1.0)).item()
    exact = 0.25 * math.log(0.25 / 0.375) + 0.25 * math.log(0.25 / 0.125)
    bound = sparse_kl_gap_bound(student, *sparse(teacher, 1, 1.0)).item()
    assert kept == pytest.approx(0.0, abs=1e-6)
    assert full_kl(student, teacher, 1.0).item() == pytest.approx(exact)
    assert bound == pytest.approx(0.5 * (0.0 + math.log(4)), abs=1e-5)


def test_padding_changes_nothing() -> None:
    student, teacher = random_logits(2, BATCH, LENGTH, VOCAB), random_logits(3, BATCH, LENGTH, VOCAB)
    mask = torch.tensor([[True] * n + [False] * (LENGTH - n) for n in (2, 5, 3)])
    indices, values, logsumexp = sparse(teacher, 7, 2.0)
    loss = sparse_kl(student, indices, values, logsumexp, temperature=2.0, mask=mask)
    real = torch.stack(
        [
            sparse_kl(student[b, t], indices[b, t], values[b, t], logsumexp[b, t], temperature=2.0)
            for b in range(BATCH)
            for t in range(LENGTH)
            if mask[b, t]
        ]
    )
    assert loss.item() == pytest.approx(real.mean().item(), rel=1e-6)
    spoilt = torch.where(mask[..., None], student, torch.full_like(student, float("inf")))
    bad_targets = torch.where(mask, logsumexp, torch.full_like(logsumexp, float("nan")))
    again = sparse_kl(spoilt, indices, values, bad_targets, temperature=2.0, mask=mask)
    assert again.item() == loss.item()


def test_gradient_equals_the_dense_one() -> None:
    teacher = random_logits(4, BATCH, VOCAB)
    grads = []
    for dense in (True, False):
        student = random_logits(5, BATCH, VOCAB).requires_grad_()
        loss = (
            full_kl(student, teacher, 2.0).mean() * 4
            if dense
            else sparse_kl(student, *sparse(teacher, VOCAB, 2.0), temperature=2.0)
        )
        loss.backward()
        assert student.grad is not None
        grads.append(student.grad)
    assert torch.allclose(grads[0], grads[1], atol=1e-6)


def test_cross_entropy_equals_a_loop_over_real_positions() -> None:
    logits = random_logits(6, BATCH, LENGTH, VOCAB)
    labels = torch.randint(0, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(7))
    mask = torch.tensor([[True] * n + [False] * (LENGTH - n) for n in (1, 4, 5)])
    labels = torch.where(mask, labels, torch.full_like(labels, -100))
    expected = [
        -math.log(math.exp(logits[b, t, labels[b, t]]) / sum(math.exp(v) for v in logits[b, t]))
        for b in range(BATCH)
        for t in range(LENGTH)
        if mask[b, t]
    ]
    assert cross_entropy(logits, labels, mask).item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_mean_of_nothing_is_zero() -> None:
    assert masked_mean(torch.full((BATCH,), float("nan")), torch.zeros(BATCH, dtype=torch.bool)).item() == 0.0


def test_bfloat16_logits_are_computed_in_float32() -> None:
    student, teacher = random_logits(8, BATCH, VOCAB).bfloat16(), random_logits(9, BATCH, VOCAB)
    loss = sparse_kl(student, *sparse(teacher, VOCAB, 1.0))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(full_kl(student.double(), teacher, 1.0).mean().item(), rel=1e-5)
