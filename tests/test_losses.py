"""The losses against PyTorch's own, closed forms and plain loops over the full vocabulary. Every axis has its own prime size.

What they are computed with, chunks of logits and ragged rows, has its tests in `test_fused`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from outlay.settings import DIVERGENCES
from outlay.train.losses import (
    Sparse,
    cross_entropy,
    divergence,
    forward_kl,
    js,
    reverse_kl,
    summed,
)

BATCH, LENGTH, VOCAB = 3, 5, 11
N = BATCH * LENGTH
MASK = torch.tensor([[True] * n + [False] * (LENGTH - n) for n in (2, 5, 3)])
POSITIONS = MASK.flatten().nonzero().squeeze(-1)


def random_logits(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def sparse(teacher: Tensor, k: int, temperature: float, *, complete: bool | None = None) -> Sparse:
    """The ``k`` largest logits of every position of ``[..., V]``, as float32."""
    rows = teacher.reshape(-1, teacher.shape[-1])
    top, positions = rows.topk(k, dim=-1), torch.arange(len(rows))
    return Sparse(
        positions=positions,
        entries=positions.repeat_interleave(k),
        indices=top.indices.flatten(),
        logits=top.values.flatten().float(),
        logsumexp=torch.logsumexp(rows / temperature, dim=-1).float(),
        complete=k == rows.shape[1] if complete is None else complete,
    )


def full(name: str, student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """Per position over the full vocabulary, by torch.distributions, in float64, without T²."""
    p, q = Categorical(logits=teacher.double() / temperature), Categorical(logits=student.double() / temperature)
    if name == "forward_kl":
        return kl_divergence(p, q)
    if name == "reverse_kl":
        return kl_divergence(q, p)
    m = Categorical(probs=beta * p.probs + (1 - beta) * q.probs)
    return beta * kl_divergence(p, m) + (1 - beta) * kl_divergence(q, m)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_complete_targets_give_the_full_divergence_at_each_position(name: str, temperature: float) -> None:
    student, teacher = random_logits(0, BATCH, LENGTH, VOCAB).float(), random_logits(1, BATCH, LENGTH, VOCAB)
    values = divergence(name, student, sparse(teacher, VOCAB, temperature), temperature=temperature, js_beta=0.3)
    expected = full(name, student, teacher, temperature, beta=0.3) * temperature**2
    assert values.shape == (N,)
    assert values.dtype == torch.float32
    assert torch.allclose(values.double(), expected.flatten(), rtol=1e-6, atol=1e-6 * temperature**2)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_all_classes_kept_are_the_same_whether_they_are_called_complete(name: str) -> None:
    student, teacher = random_logits(38, LENGTH, VOCAB), random_logits(39, LENGTH, VOCAB)
    complete, ragged = (sparse(teacher, VOCAB, 2.0, complete=said) for said in (True, False))
    values, again = (divergence(name, student, targets, temperature=2.0) for targets in (complete, ragged))
    assert torch.allclose(values, again, rtol=1e-5, atol=1e-6)
    slopes = [gradient(name, student, targets, 2.0) for targets in (complete, ragged)]
    assert torch.allclose(*slopes, atol=1e-6)


def test_what_a_complete_teacher_does_not_need_is_not_read() -> None:
    student, targets = random_logits(40, LENGTH, VOCAB), sparse(random_logits(41, LENGTH, VOCAB), VOCAB, 2.0)
    nan = replace(targets, logsumexp=torch.full_like(targets.logsumexp, float("nan")))
    for name in DIVERGENCES:
        assert torch.equal(divergence(name, student, nan), divergence(name, student, targets))


def test_a_complete_teacher_of_another_vocabulary_is_refused() -> None:
    targets = sparse(random_logits(42, LENGTH, VOCAB), VOCAB, 1.0)
    with pytest.raises(ValueError, match=r"\b5 positions .*\b55\b.*\b13\b"):
        forward_kl(random_logits(43, LENGTH, 13), targets)


def test_forward_kl_is_pytorchs_kl_div_over_flattened_positions() -> None:
    """As the published script averages: ``batchmean`` over all positions, times T²."""
    student, teacher = random_logits(2, BATCH, LENGTH, VOCAB), random_logits(3, BATCH, LENGTH, VOCAB)
    log_q, p = F.log_softmax(student / 2, -1).reshape(-1, VOCAB), F.softmax(teacher / 2, -1).reshape(-1, VOCAB)
    expected = F.kl_div(log_q, p, reduction="batchmean") * 4
    values = forward_kl(student, sparse(teacher, VOCAB, 2.0), temperature=2.0)
    assert values.mean().item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("name", "call"), [("forward_kl", forward_kl), ("reverse_kl", reverse_kl), ("js", js)])
def test_names_lead_to_functions(name: str, call: Callable[..., Tensor]) -> None:
    student, teacher = random_logits(4, BATCH, VOCAB), sparse(random_logits(5, BATCH, VOCAB), 7, 2.0)
    assert torch.equal(divergence(name, student, teacher, temperature=2.0), call(student, teacher, temperature=2.0))


def brute_force(name: str, student: list[float], teacher: list[float], kept: list[int], t: float, beta: float) -> float:
    """The divergence with every class outside ``kept`` put into one."""

    def coarse(logits: list[float]) -> list[float]:
        weights = [math.exp(z / t) for z in logits]
        total = math.fsum(weights)
        tail = math.fsum(w for v, w in enumerate(weights) if v not in kept)
        return [weights[v] / total for v in kept] + [tail / total]

    p, q = coarse(teacher), coarse(student)
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]

    def kl(a: list[float], b: list[float]) -> float:
        return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    return {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "js": beta * kl(p, m) + (1 - beta) * kl(q, m)}[name]


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 2, 7, 10])
def test_the_tail_is_one_class(name: str, k: int) -> None:
    student, teacher = random_logits(6, LENGTH, VOCAB), random_logits(7, LENGTH, VOCAB)
    targets = sparse(teacher, k, 2.0)
    values = divergence(name, student, targets, temperature=2.0, js_beta=0.7)
    for at in range(LENGTH):
        expected = brute_force(
            name, student[at].tolist(), teacher[at].tolist(), targets.indices.view(LENGTH, k)[at].tolist(), 2.0, 0.7
        )
        assert values[at].item() == pytest.approx(4 * expected, rel=1e-5, abs=1e-5)


@given(
    st.integers(0, 10_000),
    st.integers(1, VOCAB - 1),
    st.sampled_from([1.0, 2.0]),
    st.floats(0.1, 6),
    st.floats(0.05, 0.95),
)
@settings(max_examples=150, deadline=None)
def test_sparse_is_a_lower_bound_and_more_logits_are_a_better_one(
    seed: int, k: int, temperature: float, scale: float, beta: float
) -> None:
    student = random_logits(seed, LENGTH, VOCAB, scale=scale).float()
    teacher = random_logits(seed + 1, LENGTH, VOCAB, scale=scale)
    p_tail = torch.softmax(teacher / temperature, -1).sort(-1).values[..., : VOCAB - k].sum(-1)
    for name in DIVERGENCES:
        exact = full(name, student, teacher, temperature, beta) * temperature**2
        kept, more = (
            divergence(name, student, sparse(teacher, n, temperature), temperature=temperature, js_beta=beta).double()
            for n in (k, k + 1)
        )
        slack = 2e-5 * exact.clamp_min(1.0)
        assert (kept >= -slack).all()
        # Reverse KL takes the logarithm of the teacher's tail, which float32 knows to some 1e-7 of the whole.
        rounding = 5e-7 / p_tail.clamp_min(1e-6) if name == "reverse_kl" else 0.0
        assert (kept <= exact + slack + rounding * temperature**2).all()
        # Below its floor a teacher's tail is taken for larger than it is, and reverse KL for smaller.
        if name != "reverse_kl":
            assert (kept <= more + slack).all()


def test_tails_of_equal_mass_are_not_told_apart() -> None:
    # p = (1/2, 1/4, 1/4), q = (1/2, 3/8, 1/8), K = 1: what is lost is the whole divergence.
    teacher = torch.log(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64))
    student = torch.log(torch.tensor([[0.5, 0.375, 0.125]], dtype=torch.float64))
    exact = 0.25 * math.log(0.25 / 0.375) + 0.25 * math.log(0.25 / 0.125)
    assert forward_kl(student, sparse(teacher, 1, 1.0)).item() == pytest.approx(0.0, abs=1e-6)
    assert full("forward_kl", student, teacher).item() == pytest.approx(exact)


def test_js_goes_to_the_kl_divergences_at_both_ends() -> None:
    student, teacher = (
        random_logits(8, LENGTH, VOCAB, scale=0.7).float(),
        sparse(random_logits(9, LENGTH, VOCAB, scale=0.7), 7, 1.0),
    )
    assert torch.allclose(js(student, teacher, beta=1e-3) / 1e-3, forward_kl(student, teacher), rtol=5e-3, atol=1e-3)
    assert torch.allclose(js(student, teacher, beta=0.999) / 1e-3, reverse_kl(student, teacher), rtol=5e-3, atol=1e-3)


def test_js_is_symmetric_at_one_half_and_bounded() -> None:
    one, other = random_logits(10, LENGTH, VOCAB, scale=9.0), random_logits(11, LENGTH, VOCAB, scale=9.0)
    there = js(one, sparse(other, VOCAB, 2.0), temperature=2.0)
    back = js(other, sparse(one, VOCAB, 2.0), temperature=2.0)
    assert torch.allclose(there, back, rtol=1e-5)
    assert (there <= 4 * math.log(2) + 1e-5).all()


def test_near_agreement_js_is_a_share_of_kl() -> None:
    teacher = random_logits(12, LENGTH, VOCAB)
    student = teacher + 0.02 * random_logits(13, LENGTH, VOCAB)
    targets = sparse(teacher, VOCAB, 1.0)
    for beta in (0.5, 0.2):
        ratio = js(student, targets, beta=beta).sum() / forward_kl(student, targets).sum()
        assert ratio.item() == pytest.approx(beta * (1 - beta), rel=0.05)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5])
def test_js_refuses_a_beta_that_is_not_a_mixture(beta: float) -> None:
    with pytest.raises(ValueError, match="0 < beta < 1"):
        js(random_logits(0, VOCAB), sparse(random_logits(1, VOCAB), 7, 1.0), beta=beta)


def test_an_unknown_divergence_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'kl'.*forward_kl, reverse_kl, js"):
        divergence("kl", random_logits(0, VOCAB), sparse(random_logits(1, VOCAB), 7, 1.0))


# --- gradients -------------------------------------------------------------------------------------------------------


def gradient(name: str, student: Tensor, teacher: Sparse, temperature: float) -> Tensor:
    leaf = student.clone().requires_grad_()
    divergence(name, leaf, teacher, temperature=temperature).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_equal_the_dense_ones(name: str) -> None:
    student, teacher = random_logits(14, BATCH, VOCAB), random_logits(15, BATCH, VOCAB)
    leaf = student.clone().requires_grad_()
    (full(name, leaf, teacher, 2.0).sum() * 4).backward()
    assert leaf.grad is not None
    assert torch.allclose(gradient(name, student, sparse(teacher, VOCAB, 2.0), 2.0), leaf.grad, atol=3e-6)
    single = gradient(name, student.float(), sparse(teacher, VOCAB, 2.0), 2.0)
    assert torch.allclose(single.double(), leaf.grad, atol=3e-6)


def test_forward_kls_gradient_is_in_closed_form() -> None:
    """T (q - p) at the stored classes; in the tail its mass is shared out as the student shares it."""
    student, teacher = random_logits(16, BATCH, VOCAB), random_logits(17, BATCH, VOCAB)
    p, q = torch.softmax(teacher / 2, -1), torch.softmax(student / 2, -1)
    targets = sparse(teacher, 7, 2.0)
    stored = torch.zeros_like(q, dtype=torch.bool).scatter(-1, targets.indices.view(BATCH, 7), True)
    p_tail, q_tail = ((d * ~stored).sum(-1, keepdim=True) for d in (p, q))
    expected = 2 * (q - torch.where(stored, p, q * p_tail / q_tail))
    assert torch.allclose(gradient("forward_kl", student, targets, 2.0), expected, atol=3e-6)
    assert torch.allclose(gradient("forward_kl", student.float(), targets, 2.0).double(), expected, atol=3e-6)


EXTREMES = {
    "teacher is sure": (torch.tensor([80.0, *[0.0] * (VOCAB - 1)]), random_logits(18, VOCAB)),
    "both are sure": (torch.tensor([80.0, *[0.0] * (VOCAB - 1)]),) * 2,
    "student is all in the tail": (
        torch.tensor([9.0, 8.0, 7.0, *[-90.0] * (VOCAB - 3)]),
        torch.tensor([-90.0, -90.0, -90.0, *[90.0] * (VOCAB - 3)]),
    ),
    "student has no tail": (random_logits(19, VOCAB), torch.tensor([*[-200.0] * (VOCAB - 1), 200.0])),
    "equal": (random_logits(20, VOCAB),) * 2,
    "uniform": (torch.zeros(VOCAB), torch.zeros(VOCAB)),
    "large": (random_logits(21, VOCAB) + 300, random_logits(22, VOCAB) - 300),
}


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("k", [1, 3, VOCAB])
def test_values_and_gradients_are_finite(name: str, case: str, k: int) -> None:
    teacher, student = (logits.float() for logits in EXTREMES[case])
    for temperature in (0.5, 1.0, 4.0):
        targets = sparse(teacher, k, temperature)
        value = divergence(name, student, targets, temperature=temperature)
        slope = gradient(name, student, targets, temperature)
        assert torch.isfinite(value)
        assert torch.isfinite(slope).all()
        if case in ("both are sure", "equal", "uniform"):
            assert value.item() == pytest.approx(0.0, abs=1e-5 * temperature**2)
            assert slope.abs().max().item() < 1e-5 * max(1.0, temperature)


def test_reverse_kl_still_pulls_a_student_out_of_an_empty_tail() -> None:
    teacher, student = (logits.float() for logits in EXTREMES["student is all in the tail"])
    student = student / 20
    slope = gradient("reverse_kl", student, sparse(teacher, 3, 1.0), 1.0)
    stored = sparse(teacher, 3, 1.0).indices
    assert slope[stored].sum() < 0 < slope.sum() - slope[stored].sum() + 1e-9


def test_a_students_small_tail_is_not_lost_to_rounding() -> None:
    """1 - Σ q in float32 would be 0 here: the tail has e^-30."""
    teacher = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    student = torch.tensor([[30.0, 29.0, 0.0, 0.0]])
    expected = brute_force("forward_kl", student[0].tolist(), teacher[0].tolist(), [0, 1], 1.0, 0.5)
    assert forward_kl(student, sparse(teacher, 2, 1.0)).item() == pytest.approx(expected, rel=1e-5)
    assert gradient("forward_kl", student, sparse(teacher, 2, 1.0), 1.0)[0, 2:].sum() < -0.05


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_squared_temperature_keeps_gradients_of_one_size(name: str) -> None:
    student, teacher = random_logits(23, BATCH, VOCAB, scale=0.5), random_logits(24, BATCH, VOCAB, scale=0.5)
    sizes = [gradient(name, student, sparse(teacher, VOCAB, t), t).norm().item() for t in (1.0, 8.0)]
    assert 0.5 < sizes[1] / sizes[0] < 2.0


def test_at_high_temperature_forward_kl_is_the_mean_square_of_centred_logits() -> None:
    """T² KL → Σ (z_s - z_t)² / 2V, both centred (Hinton et al. 2015, §2.1), as docs/distillation.md says."""
    student, teacher = random_logits(25, BATCH, VOCAB).float(), random_logits(26, BATCH, VOCAB).float()
    t = 100.0
    apart = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    expected = apart.square().sum(-1) / (2 * VOCAB)
    assert torch.allclose(forward_kl(student, sparse(teacher, VOCAB, t), temperature=t), expected, rtol=0.05)
    assert torch.allclose(
        gradient("forward_kl", student, sparse(teacher, VOCAB, t), t),
        apart / VOCAB,
        atol=0.05 * apart.abs().max() / VOCAB,
    )


# --- sums over positions ---------------------------------------------------------------------------------------------


def at_positions(targets: Sparse, positions: Tensor) -> Sparse:
    """The targets of these rows only."""
    place = torch.full((len(targets.positions),), -1).index_copy(0, positions, torch.arange(len(positions)))
    kept = place[targets.entries] >= 0
    return Sparse(
        positions=positions,
        entries=place[targets.entries[kept]],
        indices=targets.indices[kept],
        logits=targets.logits[kept],
        logsumexp=targets.logsumexp[positions],
        complete=targets.complete,
    )


@pytest.mark.parametrize("k", [7, VOCAB])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_rows_that_do_not_count_are_not_seen(name: str, k: int) -> None:
    student = random_logits(27, BATCH, LENGTH, VOCAB).float()
    targets = sparse(random_logits(28, BATCH, LENGTH, VOCAB), k, 2.0)
    spoilt = torch.where(MASK[..., None], student, torch.tensor([float("inf"), *[float("nan")] * (VOCAB - 1)]))
    leaf, everywhere = spoilt.clone().requires_grad_(), student.clone().requires_grad_()
    values = divergence(name, leaf, at_positions(targets, POSITIONS), temperature=2.0)
    expected = divergence(name, everywhere, targets, temperature=2.0)[POSITIONS]
    assert values.shape == (10,)
    assert torch.equal(values, expected)
    (summed(values).total / len(values)).backward()
    expected.mean().backward()
    assert leaf.grad is not None
    assert everywhere.grad is not None
    assert (leaf.grad[~MASK] == 0).all()
    assert torch.allclose(leaf.grad, everywhere.grad, rtol=1e-6, atol=1e-9)
    assert (leaf.grad[MASK].abs().sum(-1) > 1e-4).all()


def test_cross_entropy_does_not_see_rows_that_do_not_count() -> None:
    logits, labels = random_logits(44, BATCH, LENGTH, VOCAB).float(), torch.arange(N).reshape(BATCH, LENGTH) % VOCAB
    leaf = torch.where(MASK[..., None], logits, float("nan")).requires_grad_()
    values = cross_entropy(leaf, torch.where(MASK, labels, -100), POSITIONS)
    same = logits.clone().requires_grad_()
    expected = F.cross_entropy(same[MASK], labels[MASK], reduction="none")
    assert torch.allclose(values, expected, rtol=1e-5)
    (values * torch.arange(1.0, 11.0)).sum().backward()
    (expected * torch.arange(1.0, 11.0)).sum().backward()
    assert leaf.grad is not None
    assert same.grad is not None
    assert torch.allclose(leaf.grad, same.grad, rtol=1e-5, atol=1e-6)


def test_without_weights_all_values_count_alike() -> None:
    loss = summed(torch.arange(7.0))
    assert (loss.total.item(), loss.n.item()) == (21.0, 7.0)


def test_weights_count_above_and_below_the_line() -> None:
    values = torch.tensor([2.0, 3.0, 5.0])
    loss = summed(values, torch.tensor([0.25, 0.0, 0.5]))
    assert (loss.total.item(), loss.n.item()) == (3.0, 0.75)
    alike = summed(values[1:], 0.5)
    assert (alike.total.item(), alike.n.item()) == (4.0, 1.0)


def test_the_sum_of_nothing_is_zero_and_has_a_zero_gradient() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = Sparse(nothing, nothing, nothing, nothing.float(), nothing.float(), complete=False)
    for targets in (empty, replace(empty, complete=True)):
        leaf = torch.ones(BATCH, VOCAB, requires_grad=True)
        losses = [forward_kl(leaf, targets), cross_entropy(leaf, torch.zeros(BATCH).long(), nothing)]
        assert [(loss.total.item(), loss.n.item()) for loss in map(summed, losses)] == [(0.0, 0.0)] * 2
        sum(loss.total for loss in map(summed, losses)).backward()
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


def test_cross_entropy_equals_a_loop() -> None:
    logits = random_logits(31, BATCH, LENGTH, VOCAB).float()
    labels = torch.randint(0, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(7))
    values = cross_entropy(logits, labels)
    assert values.shape == (N,)
    for b in range(BATCH):
        for t in range(LENGTH):
            expected = math.log(math.fsum(math.exp(v) for v in logits[b, t])) - logits[b, t, labels[b, t]].item()
            assert values[b * LENGTH + t].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_forward_kl_to_a_sure_teacher_is_cross_entropy() -> None:
    """At T = 1 and all the teacher's mass on the label, so the two may be mixed by a share."""
    logits, labels = random_logits(32, BATCH, VOCAB), torch.tensor([4, 0, 10])
    sure = F.one_hot(labels, VOCAB).double() * 200
    for k in (1, VOCAB):
        assert torch.allclose(
            forward_kl(logits, sparse(sure, k, 1.0)), cross_entropy(logits, labels), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_bfloat16_logits_are_computed_in_float32(name: str) -> None:
    student, teacher = random_logits(33, BATCH, VOCAB).bfloat16(), random_logits(34, BATCH, VOCAB)
    for k in (7, VOCAB):
        low = divergence(name, student, sparse(teacher, k, 1.0))
        assert low.dtype == torch.float32
        assert torch.equal(low, divergence(name, student.float(), sparse(teacher, k, 1.0)))
    assert torch.allclose(low.double(), full(name, student, teacher), rtol=1e-5, atol=1e-6)
    assert cross_entropy(student, torch.zeros(BATCH, dtype=torch.int64)).dtype == torch.float32


def test_rows_of_a_padded_vocabulary_beyond_the_teachers_count_as_the_tail() -> None:
    """A student of more output rows than the teacher's vocabulary: its mass there is mass where the teacher has none."""
    teacher = random_logits(35, BATCH, VOCAB)
    student = torch.cat([random_logits(36, BATCH, VOCAB), random_logits(37, BATCH, 2)], -1)
    padded = torch.cat([teacher, torch.full((BATCH, 2), -1e4, dtype=torch.float64)], -1)
    kept = forward_kl(student, sparse(teacher, VOCAB, 2.0, complete=False), temperature=2.0)
    assert torch.allclose(kept.double(), 4 * full("forward_kl", student, padded, 2.0), rtol=1e-5, atol=1e-5)
