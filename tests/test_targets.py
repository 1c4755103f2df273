"""The teacher's words on disk, against float64 loops and plain lists. Every axis has its own prime size."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.train.targets import MAX_LOGITS, TEMPERATURES, SparseTargets

POSITIONS, VOCAB, KEPT = 13, 23, 5
N_POSITIONS = (2, 0, 7, 1, 3)
"""Of each of five rows; 13 together."""


def random_logits(seed: int, n_positions: int = POSITIONS, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(n_positions, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def make(seed: int = 0, n_positions: tuple[int, ...] = N_POSITIONS, kept: int = KEPT) -> SparseTargets:
    offsets = np.cumsum([0, *n_positions])
    return SparseTargets.from_logits(random_logits(seed, sum(n_positions)), offsets, max_logits=kept)


def as_lists(targets: SparseTargets) -> list[list[tuple[list[int], list[float], list[float]]]]:
    """Per row, per position: indices, logits, log-sum-exps."""
    return [
        [
            (targets.indices[p].tolist(), targets.logits[p].tolist(), targets.logsumexp[p].tolist())
            for p in range(targets.offsets[row], targets.offsets[row + 1])
        ]
        for row in range(len(targets))
    ]


def exact_logsumexp(row: list[float], temperature: float) -> float:
    top = max(row) / temperature
    return top + math.log(math.fsum(math.exp(z / temperature - top) for z in row))


@pytest.mark.parametrize("shift", [0.0, 300.0, -300.0])
def test_keeps_the_largest_logits_and_exact_logsumexps(shift: float) -> None:
    full = random_logits(1) + shift
    targets = SparseTargets.from_logits(full, np.arange(POSITIONS + 1), max_logits=KEPT)
    assert targets.logits.shape == targets.indices.shape == (POSITIONS, KEPT)
    assert targets.logsumexp.shape == (POSITIONS, len(TEMPERATURES))
    assert (targets.vocab_size, targets.temperatures, len(targets)) == (VOCAB, TEMPERATURES, POSITIONS)
    for p, row in enumerate(full.tolist()):
        best = sorted(range(VOCAB), key=lambda v: -row[v])[:KEPT]
        assert targets.indices[p].tolist() == best
        assert targets.logits[p].tolist() == [row[v] for v in best]
        for column, temperature in enumerate(TEMPERATURES):
            assert targets.logsumexp[p, column] == pytest.approx(exact_logsumexp(row, temperature), rel=2e-6, abs=2e-6)


def test_a_small_vocabulary_is_kept_whole() -> None:
    targets = SparseTargets.from_logits(random_logits(2), np.arange(POSITIONS + 1))
    assert VOCAB < MAX_LOGITS
    assert targets.logits.shape == (POSITIONS, VOCAB)
    restored = np.zeros((POSITIONS, VOCAB), dtype=np.float32)
    np.put_along_axis(restored, targets.indices.astype(np.int64), targets.logits, axis=1)
    assert np.array_equal(restored, random_logits(2).numpy())


@given(st.integers(0, 10_000), st.integers(1, VOCAB - 1), st.sampled_from(TEMPERATURES), st.floats(0.1, 8.0))
@settings(max_examples=150, deadline=None)
def test_the_tails_mass_is_the_true_one_at_each_offered_temperature(
    seed: int, kept: int, temperature: float, scale: float
) -> None:
    full = random_logits(seed, 3, scale)
    targets = SparseTargets.from_logits(full, np.arange(4), max_logits=kept)
    column = targets.temperature_column(temperature)
    for p, row in enumerate(full.tolist()):
        weights = sorted((math.exp(z / temperature - max(row) / temperature) for z in row), reverse=True)
        true_tail = math.fsum(weights[kept:]) / math.fsum(weights)
        logsumexp = float(targets.logsumexp[p, column])
        stored = math.fsum(math.exp(float(z) / temperature - logsumexp) for z in targets.logits[p])
        assert 1 - stored == pytest.approx(true_tail, abs=1e-5)


def test_one_logsumexp_would_not_do_for_the_tail() -> None:
    """Two teachers alike in what one temperature stores, with other tails at the next: hence one column for each."""
    peaked = torch.tensor([[3.0, 2.0, *[-20.0] * (VOCAB - 3), math.log(0.5)]])
    flat = torch.tensor([[3.0, 2.0, *[math.log(0.5 / (VOCAB - 2))] * (VOCAB - 2)]])
    one, two = (SparseTargets.from_logits(z, np.arange(2), max_logits=2) for z in (peaked, flat))
    assert np.allclose(one.logsumexp[:, 0], two.logsumexp[:, 0], atol=1e-4)
    assert abs(one.logsumexp[0, 1] - two.logsumexp[0, 1]) > 0.2


def test_an_unknown_temperature_names_the_offered_ones() -> None:
    targets = make()
    assert [targets.temperature_column(t) for t in TEMPERATURES] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"temperature 3; offered: 1, 2, 4$"):
        targets.temperature_column(3.0)


@given(st.integers(0, 1000), st.lists(st.integers(0, 4), min_size=1, max_size=7), st.integers(1, VOCAB))
@settings(max_examples=80, deadline=None)
def test_bytes_round_trip_and_are_equal_for_equal_targets(seed: int, n_positions: list[int], kept: int) -> None:
    targets = make(seed, tuple(n_positions), kept)
    data = targets.to_bytes()
    back = SparseTargets.from_bytes(data)
    assert as_lists(back) == as_lists(targets)
    assert (back.temperatures, back.vocab_size) == (targets.temperatures, targets.vocab_size)
    for name in ("offsets", "indices", "logits", "logsumexp"):
        assert getattr(back, name).dtype == getattr(targets, name).dtype
    assert back.to_bytes() == data
    assert make(seed, tuple(n_positions), kept).to_bytes() == data
    # and from arrays that lie otherwise in memory
    strided = replace(
        targets,
        offsets=np.repeat(targets.offsets, 2)[::2],
        logits=np.asfortranarray(targets.logits),
        indices=np.repeat(targets.indices, 2, axis=0)[::2],
    )
    assert strided.to_bytes() == data


def test_other_targets_have_other_bytes() -> None:
    targets = make()
    logits = targets.logits.copy()
    logits[POSITIONS - 1, KEPT - 1] -= 1e-3
    others = [
        make(seed=1),
        make(n_positions=(2, 1, 6, 1, 3)),
        replace(targets, logits=logits),
        replace(targets, temperatures=(1.0, 2.0, 5.0)),
        replace(targets, vocab_size=VOCAB + 1),
    ]
    assert len({t.to_bytes() for t in (targets, *others)}) == 1 + len(others)


@given(st.lists(st.integers(0, len(N_POSITIONS) - 1), max_size=11))
@settings(max_examples=100, deadline=None)
def test_select_is_indexing_into_a_list_of_rows(rows: list[int]) -> None:
    plain = as_lists(make())
    picked = make().select(rows)
    assert as_lists(picked) == [plain[row] for row in rows]
    assert len(picked.logits) == picked.offsets[-1]


@given(st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_concatenate_is_adding_lists_of_rows(blocks: list[list[int]]) -> None:
    parts = [make(seed, tuple(block)) for seed, block in enumerate(blocks)]
    whole = SparseTargets.concatenate(parts)
    assert as_lists(whole) == [row for part in parts for row in as_lists(part)]
    assert (whole.vocab_size, whole.temperatures) == (VOCAB, TEMPERATURES)


def test_blocks_taught_apart_are_the_bytes_of_one() -> None:
    full, cut = random_logits(3), 4
    offsets = np.arange(POSITIONS + 1)
    parts = [
        SparseTargets.from_logits(full[:cut], offsets[: cut + 1]),
        SparseTargets.from_logits(full[cut:], offsets[cut:] - cut),
    ]
    assert SparseTargets.concatenate(parts).to_bytes() == SparseTargets.from_logits(full, offsets).to_bytes()


def test_blocks_that_do_not_belong_together_are_refused() -> None:
    targets = make()
    others = [make(kept=7), replace(targets, vocab_size=29), replace(targets, temperatures=(1.0, 2.0, 3.0))]
    for other in others:
        with pytest.raises(ValueError, match="differ"):
            SparseTargets.concatenate([targets, other])
    with pytest.raises(ValueError, match="no blocks"):
        SparseTargets.concatenate([])
