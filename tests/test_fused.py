"""What losses are computed with: chunks, ragged rows, dtypes, and what is promised about memory and waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from outlay.settings import DIVERGENCES
from outlay.train import fused_log_probs
from outlay.train.losses import (
    TAIL_FLOOR,
    Sparse,
    cross_entropy,
    divergence,
    forward_kl,
    js,
    summed,
)

ROWS, VOCAB = 7, 11
POSITIONS = [0, 2, 3, 5, 6]
COUNTS = [1, 3, 2, 11, 5]
"""Classes kept at each position: one of them keeps all."""


def random_logits(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def ragged(teacher: Tensor, positions: list[int], counts: list[int], temperature: float) -> Sparse:
    """The largest logits of some rows of ``[R, V]``, a number of its own for each."""
    kept = [teacher[row].topk(count) for row, count in zip(positions, counts, strict=True)]
    return Sparse(
        positions=torch.tensor(positions),
        entries=torch.tensor([at for at, count in enumerate(counts) for _ in range(count)]),
        indices=torch.cat([top.indices for top in kept]),
        logits=torch.cat([top.values for top in kept]),
        logsumexp=torch.logsumexp(teacher[positions] / temperature, -1),
        complete=False,
    )


def dense(name: str, student: Tensor, teacher: Sparse, temperature: float, beta: float = 0.5) -> Tensor:
    """The divergence row by row, every class that is not kept put into one; by autograd, in float64."""
    values = []
    for at, row in enumerate(teacher.positions.tolist()):
        kept = teacher.indices[teacher.entries == at]
        others = torch.tensor([v for v in range(student.shape[1]) if v not in kept.tolist()], dtype=torch.int64)
        p = (teacher.logits[teacher.entries == at] / temperature - teacher.logsumexp[at]).exp()
        q = torch.softmax(student[row] / temperature, -1)
        log_p = p.log()
        if len(others) > 0:
            p = torch.cat([p, 1 - p.sum(0, keepdim=True)])
            log_p = torch.cat([log_p, p[-1:].clamp_min(TAIL_FLOOR).log()])
        q = torch.cat([q[kept], q[others].sum(0, keepdim=True)])[: len(p)]
        log_m = (beta * log_p.exp() + (1 - beta) * q).log()
        forward, reverse = (p * (log_p - q.log())).sum(), (q * (q.log() - log_p)).sum()
        mixed = (beta * p * (log_p - log_m) + (1 - beta) * q * (q.log() - log_m)).sum()
        values.append({"forward_kl": forward, "reverse_kl": reverse, "js": mixed}[name])
    return torch.stack(values) * temperature**2


@pytest.fixture(params=["whole", "chunks", "chunks, as on a GPU"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Chunks of two rows; on a GPU it is not known beforehand which entries belong to one."""
    if request.param != "whole":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        monkeypatch.setattr(fused_log_probs, "CPU_CHUNK", 2 * VOCAB + 3)
    if request.param == "chunks, as on a GPU":
        monkeypatch.setattr(fused_log_probs.Segments, "bounds", lambda *_: None)
    return str(request.param)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_values_and_gradients_of_ragged_rows(
    name: str, temperature: float, everywhere: bool, dtype: torch.dtype
) -> None:
    student, teacher = random_logits(0, ROWS, VOCAB), random_logits(1, ROWS, VOCAB)
    rows, counts = (list(range(ROWS)), [*COUNTS, 4, 7]) if everywhere else (POSITIONS, COUNTS)
    targets = ragged(teacher, rows, counts, temperature)
    leaf, reference = student.clone().to(dtype).requires_grad_(), student.clone().requires_grad_()
    values = divergence(name, leaf, targets, temperature=temperature, js_beta=0.3)
    expected = dense(name, reference, targets, temperature, beta=0.3)
    # Reverse KL takes the logarithm of a teacher's tail, which float32 knows to some 1e-7 of the whole.
    single = 2e-4 if name == "reverse_kl" else 1e-5
    size = 1e-12 if dtype == torch.float64 else single
    assert values.dtype == dtype
    assert torch.allclose(values.double(), expected, rtol=size, atol=size)
    weights = torch.arange(1.0, len(rows) + 1, dtype=torch.float64)
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    assert leaf.grad is not None
    assert reference.grad is not None
    assert leaf.grad.dtype == dtype
    assert torch.allclose(leaf.grad.double(), reference.grad, rtol=size, atol=2 * size)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
def test_gradients_equal_differences(name: str) -> None:
    teacher = ragged(random_logits(2, ROWS, VOCAB), POSITIONS, COUNTS, 2.0)
    labels = torch.tensor([3, 0, 10, 4, 4, 7, 1])

    def loss(logits: Tensor) -> Tensor:
        if name == "cross_entropy":
            return cross_entropy(logits, labels, teacher.positions)
        return divergence(name, logits, teacher, temperature=2.0, js_beta=0.3)

    # Central differences of a weighted sum: `torch.autograd.gradcheck` asks one graph for its gradient more than once.
    logits, step = random_logits(3, ROWS, VOCAB), 1e-6
    weights = torch.tensor([2.0, -3.0, 5.0, 7.0, -11.0], dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    (loss(leaf) * weights).sum().backward()
    assert leaf.grad is not None
    for row in range(ROWS):
        for v in range(VOCAB):
            change = torch.zeros_like(logits)
            change[row, v] = step
            slope = ((loss(logits + change) - loss(logits - change)) * weights).sum() / (2 * step)
            assert leaf.grad[row, v].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("call", [forward_kl, js])
def test_bits_do_not_depend_on_the_chunk(call: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = random_logits(6, ROWS, VOCAB).float(), random_logits(7, ROWS, VOCAB)
    targets, found = ragged(teacher, POSITIONS, COUNTS, 2.0), []
    for size in (1, 3 * VOCAB, fused_log_probs.CPU_CHUNK):
        monkeypatch.setattr(fused_log_probs, "CPU_CHUNK", size)
        leaf = student.clone().requires_grad_()
        values = call(leaf, targets, temperature=2.0)
        values.sum().backward()
        assert leaf.grad is not None
        found.append((values.detach(), leaf.grad))
    for values, slope in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(slope, found[0][1])


@pytest.mark.usefixtures("chunks")
def test_logits_cut_to_a_smaller_vocabulary_are_read_in_place() -> None:
    """A model with more output rows than the teacher has tokens; the rows cut off get no gradient."""
    wide = random_logits(8, ROWS, 13).float().requires_grad_()
    targets = ragged(random_logits(9, ROWS, VOCAB), POSITIONS, COUNTS, 2.0)
    values = forward_kl(wide[:, :VOCAB], targets, temperature=2.0)
    assert torch.equal(values, forward_kl(wide[:, :VOCAB].contiguous(), targets, temperature=2.0))
    values.sum().backward()
    assert wide.grad is not None
    assert (wide.grad[:, VOCAB:] == 0).all()
    assert torch.allclose(wide.grad.sum(-1), torch.zeros(ROWS), atol=1e-5)


def test_small_floats_are_computed_in_float32_and_get_gradients_of_their_own_dtype() -> None:
    teacher = random_logits(10, ROWS, VOCAB)
    targets = ragged(teacher, POSITIONS, COUNTS, 2.0)
    for dtype, size in ((torch.bfloat16, 2**-7), (torch.float16, 2**-10)):
        student = random_logits(11, ROWS, VOCAB).to(dtype)
        for name in DIVERGENCES:
            low, full = student.clone().requires_grad_(), student.float().requires_grad_()
            values, expected = (divergence(name, leaf, targets, temperature=2.0) for leaf in (low, full))
            assert values.dtype == torch.float32
            assert torch.equal(values, expected)
            values.sum().backward()
            expected.sum().backward()
            assert low.grad is not None
            assert full.grad is not None
            assert low.grad.dtype == dtype
            assert torch.allclose(low.grad.float(), full.grad, rtol=size, atol=1e-6)


def test_under_autocast_the_logits_are_bfloat16_and_the_values_float32() -> None:
    weight, states = random_logits(12, VOCAB, 5).float().requires_grad_(), random_logits(13, ROWS, 5).float()
    targets, labels = ragged(random_logits(14, ROWS, VOCAB), POSITIONS, COUNTS, 1.0), torch.arange(ROWS)
    slopes = []
    for autocast in (True, False):
        weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = F.linear(states, weight)
            values = torch.cat([forward_kl(logits, targets), cross_entropy(logits, labels)])
        assert logits.dtype == (torch.bfloat16 if autocast else torch.float32)
        assert values.dtype == torch.float32
        values.sum().backward()
        assert weight.grad is not None
        slopes.append(weight.grad)
    assert F.cosine_similarity(slopes[0].flatten(), slopes[1].flatten(), dim=0) > 0.999


def test_without_gradients_the_values_are_the_same() -> None:
    leaf = random_logits(15, ROWS, VOCAB).float().requires_grad_()
    targets = ragged(random_logits(16, ROWS, VOCAB), POSITIONS, COUNTS, 2.0)
    with_graph = forward_kl(leaf, targets, temperature=2.0)
    with torch.no_grad():
        without = forward_kl(leaf, targets, temperature=2.0)
    assert torch.equal(with_graph, without)
    assert with_graph.requires_grad
    assert not without.requires_grad
    with torch.inference_mode():
        assert torch.equal(cross_entropy(leaf, torch.arange(ROWS)), cross_entropy(leaf.detach(), torch.arange(ROWS)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_it_may_run_twice_under_checkpointing(reentrant: bool) -> None:
    targets = ragged(random_logits(17, ROWS, VOCAB), POSITIONS, COUNTS, 2.0)
    slopes = []
    for wrapped in (True, False):
        leaf = random_logits(18, ROWS, VOCAB).float().requires_grad_()
        values = checkpoint(loss_of(targets), leaf, use_reentrant=reentrant) if wrapped else loss_of(targets)(leaf)
        values.sum().backward()
        assert leaf.grad is not None
        slopes.append(leaf.grad)
    assert torch.equal(*slopes)


def loss_of(targets: Sparse) -> Callable[[Tensor], Tensor]:
    return lambda logits: forward_kl(logits.square(), targets, temperature=2.0)


def test_a_gradient_is_taken_once() -> None:
    targets = ragged(random_logits(19, ROWS, VOCAB), POSITIONS, COUNTS, 2.0)
    leaf = random_logits(20, ROWS, VOCAB).float().requires_grad_()
    (slope,) = torch.autograd.grad(forward_kl(leaf, targets).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()
    total = forward_kl(leaf, targets).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def largest_allocation(work: Callable[[], object]) -> int:
    """Bytes of the largest piece of memory that is asked for."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        work()
    assert found.profiler is not None
    events = found.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
def test_no_wide_copy_in_float32_is_made(name: str, everywhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient, two bytes a logit, is the largest piece."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(fused_log_probs, "CPU_CHUNK", 5 * 101)
    rows = list(range(127 if everywhere else 113))
    targets = ragged(random_logits(21, 127, 101), rows, [3] * len(rows), 1.0)
    leaf, labels = random_logits(22, 127, 101).bfloat16().requires_grad_(), torch.arange(127) % 101

    def work() -> None:
        by_name = name != "cross_entropy"
        values = divergence(name, leaf, targets) if by_name else cross_entropy(leaf, labels, targets.positions)
        values.sum().backward()

    assert largest_allocation(lambda: leaf.float()) == 4 * 127 * 101
    assert largest_allocation(work) == 2 * 127 * 101


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("complete", [True, False])
def test_memory_is_not_read_before_it_is_written(complete: bool, dtype: torch.dtype) -> None:
    """PyTorch's deterministic mode fills such memory with nan."""
    counts = [VOCAB] * len(POSITIONS) if complete else COUNTS
    targets = replace(ragged(random_logits(23, ROWS, VOCAB), POSITIONS, counts, 2.0), complete=complete)
    leaf = random_logits(24, ROWS, VOCAB).to(dtype).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        forward_kl(leaf, targets, temperature=2.0).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad[[1, 4]] == 0).all()


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("positions", [61, 127])
def test_nothing_waits_for_a_gpu(positions: int, complete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values: to read one, or a shape that depends on some, raises."""
    monkeypatch.setattr(fused_log_probs, "ACCELERATOR_CHUNK", 5 * 101)
    n_kept = positions * (101 if complete else 3)
    integers = torch.empty(n_kept, dtype=torch.int64, device="meta")
    targets = Sparse(
        positions=integers[:positions],
        entries=integers,
        indices=integers,
        logits=torch.empty(n_kept, device="meta"),
        logsumexp=torch.empty(positions, device="meta"),
        complete=complete,
    )
    for name in [*DIVERGENCES, "cross_entropy"]:
        leaf = torch.empty(127, 101, dtype=torch.bfloat16, device="meta", requires_grad=True)
        if name == "cross_entropy":
            values = cross_entropy(leaf, integers.new_empty(127), targets.positions)
        else:
            values = divergence(name, leaf, targets, temperature=2.0)
        alike, weighted = summed(values), summed(values, torch.empty(positions, device="meta"))
        ((alike.total + weighted.total) / (alike.n + weighted.n)).backward()
        assert (values.shape, values.dtype, values.device.type) == ((positions,), torch.float32, "meta")
        assert leaf.grad is not None
        assert (leaf.grad.shape, leaf.grad.dtype, leaf.grad.device.type) == ((127, 101), torch.bfloat16, "meta")
