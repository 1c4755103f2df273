"""The losses against PyTorch's own, closed forms and plain loops over the full vocabulary. Every axis has its own prime size."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from outlay.train.losses import (
    DIVERGENCES,
    Sparse,
    cross_entropy,
    divergence,
    forward_kl,
    js,
    reverse_kl,
    sparse_kl_gap_bound,
    summed,
)

BATCH, LENGTH, VOCAB = 3, 5, 11
MASK = torch.tensor([[True] * n + [False] * (LENGTH - n) for n in (2, 5, 3)])


def random_logits(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def sparse(teacher: Tensor, k: int, temperature: float) -> Sparse:
    top = teacher.topk(k, dim=-1)
    return Sparse(top.indices, top.values, torch.logsumexp(teacher / temperature, dim=-1))


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
    student, teacher = random_logits(0, BATCH, LENGTH, VOCAB), random_logits(1, BATCH, LENGTH, VOCAB)
    values = divergence(name, student, sparse(teacher, VOCAB, temperature), temperature=temperature, js_beta=0.3)
    expected = full(name, student, teacher, temperature, beta=0.3) * temperature**2
    assert values.shape == (BATCH, LENGTH)
    assert values.dtype == torch.float32
    assert torch.allclose(values.double(), expected, rtol=1e-6, atol=1e-6 * temperature**2)


def test_forward_kl_is_pytorchs_kl_div_over_flattened_positions() -> None:
    """As the published script averages: ``batchmean`` over all positions, times T²."""
    student, teacher = random_logits(2, BATCH, LENGTH, VOCAB), random_logits(3, BATCH, LENGTH, VOCAB)
    log_q, p = F.log_softmax(student / 2, -1).reshape(-1, VOCAB), F.softmax(teacher / 2, -1).reshape(-1, VOCAB)
    expected = F.kl_div(log_q, p, reduction="batchmean") * 4
    assert summed(forward_kl(student, sparse(teacher, VOCAB, 2.0), temperature=2.0)).mean.item() == pytest.approx(
        expected.item(), rel=1e-6
    )


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
        expected = brute_force(name, student[at].tolist(), teacher[at].tolist(), targets.indices[at].tolist(), 2.0, 0.7)
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
    student = random_logits(seed, LENGTH, VOCAB, scale=scale)
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


@given(st.integers(0, 10_000), st.integers(1, VOCAB - 1), st.sampled_from([1.0, 2.0]), st.floats(0.1, 6.0))
@settings(max_examples=150, deadline=None)
def test_what_forward_kl_loses_is_within_its_bound(seed: int, k: int, temperature: float, scale: float) -> None:
    student = random_logits(seed, LENGTH, VOCAB, scale=scale)
    teacher = random_logits(seed + 1, LENGTH, VOCAB, scale=scale)
    targets = sparse(teacher, k, temperature)
    exact = full("forward_kl", student, teacher, temperature) * temperature**2
    gap = exact - forward_kl(student, targets, temperature=temperature)
    bound = sparse_kl_gap_bound(student, targets, temperature=temperature)
    assert bound.shape == (LENGTH,)
    assert (gap <= bound + 1e-4 * exact.clamp_min(1.0)).all()


def test_gap_is_exact_in_a_case_done_by_hand() -> None:
    # p = (1/2, 1/4, 1/4), q = (1/2, 3/8, 1/8), K = 1: the bucket sees equal tails, the gap is the whole divergence.
    teacher = torch.log(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64))
    student = torch.log(torch.tensor([[0.5, 0.375, 0.125]], dtype=torch.float64))
    exact = 0.25 * math.log(0.25 / 0.375) + 0.25 * math.log(0.25 / 0.125)
    assert forward_kl(student, sparse(teacher, 1, 1.0)).item() == pytest.approx(0.0, abs=1e-6)
    assert full("forward_kl", student, teacher).item() == pytest.approx(exact)
    bound = sparse_kl_gap_bound(student, sparse(teacher, 1, 1.0))
    assert bound.item() == pytest.approx(0.5 * (0.0 + math.log(4)), abs=1e-5)
    assert sparse_kl_gap_bound(student, sparse(teacher, 3, 1.0)).tolist() == [0.0]


def test_js_goes_to_the_kl_divergences_at_both_ends() -> None:
    student, teacher = (
        random_logits(8, LENGTH, VOCAB, scale=0.7),
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
    with pytest.raises(ValueError, match="'kl'; choose forward_kl, reverse_kl, js"):
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


def test_forward_kls_gradient_is_in_closed_form() -> None:
    """T (q - p) at the stored classes; in the tail its mass is shared out as the student shares it."""
    student, teacher = random_logits(16, BATCH, VOCAB), random_logits(17, BATCH, VOCAB)
    p, q = torch.softmax(teacher / 2, -1), torch.softmax(student / 2, -1)
    targets = sparse(teacher, 7, 2.0)
    stored = torch.zeros_like(q, dtype=torch.bool).scatter(-1, targets.indices, True)
    p_tail, q_tail = ((d * ~stored).sum(-1, keepdim=True) for d in (p, q))
    expected = 2 * (q - torch.where(stored, p, q * p_tail / q_tail))
    assert torch.allclose(gradient("forward_kl", student, targets, 2.0), expected, atol=3e-6)


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


def test_padding_changes_nothing() -> None:
    student, teacher = random_logits(27, BATCH, LENGTH, VOCAB), random_logits(28, BATCH, LENGTH, VOCAB)
    targets = sparse(teacher, 7, 2.0)
    for name in DIVERGENCES:
        values = divergence(name, student, targets, temperature=2.0)
        loss = summed(values, MASK)
        assert loss.n.item() == 10
        assert loss.total.item() == pytest.approx(math.fsum(values[MASK].tolist()), rel=1e-6)
        assert loss.mean.item() == pytest.approx(values[MASK].mean().item(), rel=1e-6)
        spoilt = torch.where(MASK[..., None], student, torch.full_like(student, float("inf")))
        nan = torch.where(MASK, targets.logsumexp, torch.full_like(targets.logsumexp, float("nan")))
        again = divergence(name, spoilt, Sparse(targets.indices, targets.logits, nan), temperature=2.0)
        assert summed(again, MASK).total.item() == loss.total.item()


def test_gradients_do_not_see_bad_targets_at_masked_positions() -> None:
    student, teacher = random_logits(29, BATCH, LENGTH, VOCAB).float(), random_logits(30, BATCH, LENGTH, VOCAB)
    clean, slopes = sparse(teacher, 7, 2.0), []
    nan = torch.where(MASK, clean.logsumexp, torch.full_like(clean.logsumexp, 0.0))
    for targets in (clean, Sparse(clean.indices, clean.logits, nan)):
        leaf = student.clone().requires_grad_()
        summed(forward_kl(leaf, targets, temperature=2.0), MASK).mean.backward()
        assert leaf.grad is not None
        slopes.append(leaf.grad)
    assert torch.equal(*slopes)
    assert (slopes[0][~MASK] == 0).all()


def test_without_a_mask_everything_counts() -> None:
    loss = summed(torch.arange(7.0).reshape(1, 7))
    assert (loss.total.item(), loss.n.item(), loss.mean.item()) == (21.0, 7.0, 3.0)


def test_the_sum_of_nothing_has_mean_zero_and_a_zero_gradient() -> None:
    leaf = torch.ones(BATCH, requires_grad=True)
    loss = summed(leaf / 0.0, torch.zeros(BATCH, dtype=torch.bool))
    assert (loss.total.item(), loss.n.item(), loss.mean.item()) == (0.0, 0.0, 0.0)
    quiet = summed(leaf * 2.0, torch.zeros(BATCH, dtype=torch.bool)).mean
    quiet.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0.0] * BATCH


def test_cross_entropy_equals_a_loop() -> None:
    logits = random_logits(31, BATCH, LENGTH, VOCAB)
    labels = torch.randint(0, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(7))
    values = cross_entropy(logits, labels)
    assert values.shape == (BATCH, LENGTH)
    for b in range(BATCH):
        for t in range(LENGTH):
            expected = math.log(math.fsum(math.exp(v) for v in logits[b, t])) - logits[b, t, labels[b, t]].item()
            assert values[b, t].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


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
    kept = forward_kl(student, sparse(teacher, VOCAB, 2.0), temperature=2.0)
    assert torch.allclose(kept.double(), 4 * full("forward_kl", student, padded, 2.0), rtol=1e-5, atol=1e-5)
