"""The teacher's words on disk, against float64 loops and plain lists. Every axis has its own prime size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from outlay.train.losses import Sparse, forward_kl, summed
from outlay.train.targets import MAX_LOGITS, TEMPERATURES, SparseTargets, TargetsBuilder

POSITIONS, VOCAB, KEPT = 13, 23, 5
N_POSITIONS = (2, 0, 7, 1, 3)
"""Of each of five rows; 13 together."""


def random_logits(seed: int, n_positions: int = POSITIONS, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(n_positions, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def random_units(seed: int, n_positions: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(1, VOCAB, n_positions).astype(np.int32)


def words(n_rows: int, name: str = "antwort ü ✓") -> list[str]:
    return [f"{name} {row}" for row in range(n_rows)]


def make(
    seed: int = 0,
    n_positions: Sequence[int] = N_POSITIONS,
    kept: int = KEPT,
    n_real: Sequence[int] | None = None,
) -> SparseTargets:
    n = sum(n_positions)
    return SparseTargets.from_logits(
        "tokens",
        random_logits(seed, n),
        np.cumsum([0, *n_positions]),
        random_units(seed, n),
        words(len(n_positions)),
        n_real=None if n_real is None else np.array(n_real, dtype=np.int32),
        max_logits=kept,
    )


def of_classes(logits: torch.Tensor, max_logits: int = MAX_LOGITS) -> SparseTargets:
    """One position per row, as a classifier speaks."""
    n = len(logits)
    units = logits.argmax(-1).numpy().astype(np.int32)
    return SparseTargets.from_logits("classes", logits, np.arange(n + 1), units, words(n), max_logits=max_logits)


Position = tuple[int, list[int], list[float], list[float]]


def as_lists(targets: SparseTargets) -> list[tuple[str, int, list[Position]]]:
    """Per row its answer, its number of real positions and, per position: unit, indices, logits, log-sum-exps."""
    return [
        (
            targets.answers[row],
            int(targets.n_real[row]),
            [
                (
                    int(targets.units[p]),
                    targets.indices[p].tolist(),
                    targets.logits[p].tolist(),
                    targets.logsumexp[p].tolist(),
                )
                for p in range(targets.offsets[row], targets.offsets[row + 1])
            ],
        )
        for row in range(len(targets))
    ]


def exact_logsumexp(row: list[float], temperature: float) -> float:
    top = max(row) / temperature
    return top + math.log(math.fsum(math.exp(z / temperature - top) for z in row))


@pytest.mark.parametrize("shift", [0.0, 300.0, -300.0])
def test_keeps_the_largest_logits_and_exact_logsumexps(shift: float) -> None:
    full = random_logits(1) + shift
    targets = of_classes(full, KEPT)
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
    targets = of_classes(random_logits(2))
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
    targets = of_classes(full, kept)
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
    one, two = (of_classes(z, 2) for z in (peaked, flat))
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
    assert (back.kind, back.temperatures, back.vocab_size) == (targets.kind, targets.temperatures, targets.vocab_size)
    for name in ("offsets", "units", "n_real", "indices", "logits", "logsumexp"):
        assert getattr(back, name).dtype == getattr(targets, name).dtype
    assert back.to_bytes() == data
    assert make(seed, tuple(n_positions), kept).to_bytes() == data
    # and from arrays that lie otherwise in memory
    strided = replace(
        targets,
        offsets=np.repeat(targets.offsets, 2)[::2],
        units=np.repeat(targets.units, 2)[::2],
        logits=np.asfortranarray(targets.logits),
        indices=np.repeat(targets.indices, 2, axis=0)[::2],
    )
    assert strided.to_bytes() == data


def test_other_targets_have_other_bytes() -> None:
    targets = make()
    logits = targets.logits.copy()
    logits[POSITIONS - 1, KEPT - 1] -= 1e-3
    units = targets.units.copy()
    units[0] += 1
    others = [
        make(seed=1),
        make(n_positions=(2, 1, 6, 1, 3)),
        make(n_real=(1, 0, 7, 1, 3)),
        replace(targets, kind="tags"),
        replace(targets, logits=logits),
        replace(targets, units=units),
        replace(targets, temperatures=(1.0, 2.0, 5.0)),
        replace(targets, vocab_size=VOCAB + 1),
        replace(targets, answers=(*targets.answers[:-1], "another")),
    ]
    assert len({t.to_bytes() for t in (targets, *others)}) == 1 + len(others)


def test_answers_alone_round_trip() -> None:
    answers = ["", "zwei\nZeilen", "\u2603 \ud800", '"quoted"']
    targets = SparseTargets.text_only(answers)
    assert (targets.kind, len(targets), targets.answers) == ("text", 4, tuple(answers))
    back = SparseTargets.from_bytes(targets.to_bytes())
    assert back.to_bytes() == targets.to_bytes()
    assert back.answers == tuple(answers)
    assert back.select([2, 0]).answers == (answers[2], answers[0])
    assert SparseTargets.concatenate([back, back]).answers == (*answers, *answers)
    with pytest.raises(ValueError, match="answers only"):
        back.batch([0])


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    targets = make()
    for change in ({"answers": ("one",)}, {"n_real": targets.n_real[1:]}, {"units": targets.units[1:]}):
        with pytest.raises(ValueError, match=f"5 rows and 13 positions have .* {next(iter(change))}, not"):
            replace(targets, **change)


# --- rows ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, len(N_POSITIONS) - 1), max_size=11))
@settings(max_examples=100, deadline=None)
def test_select_is_indexing_into_a_list_of_rows(rows: list[int]) -> None:
    targets = make(n_real=(1, 0, 5, 1, 2))
    plain = as_lists(targets)
    picked = targets.select(rows)
    assert as_lists(picked) == [plain[row] for row in rows]
    assert len(picked.logits) == picked.offsets[-1]


@given(st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_concatenate_is_adding_lists_of_rows(blocks: list[list[int]]) -> None:
    parts = [make(seed, block) for seed, block in enumerate(blocks)]
    whole = SparseTargets.concatenate(parts)
    assert as_lists(whole) == [row for part in parts for row in as_lists(part)]
    assert (whole.kind, whole.vocab_size, whole.temperatures) == ("tokens", VOCAB, TEMPERATURES)


def test_blocks_taught_apart_are_the_bytes_of_one() -> None:
    full, cut = random_logits(3), 4
    whole = of_classes(full)
    parts = [of_classes(full[:cut]), replace(of_classes(full[cut:]), answers=whole.answers[cut:])]
    assert SparseTargets.concatenate(parts).to_bytes() == whole.to_bytes()


def test_blocks_that_do_not_belong_together_are_refused() -> None:
    targets = make()
    others = [
        *(make(kept=7), replace(targets, vocab_size=29), replace(targets, temperatures=(1.0, 2.0, 3.0))),
        *(replace(targets, kind="tags"), SparseTargets.text_only(words(2))),
    ]
    for other in others:
        with pytest.raises(ValueError, match="differ"):
            SparseTargets.concatenate([targets, other])
    with pytest.raises(ValueError, match="no blocks"):
        SparseTargets.concatenate([])


# --- batches ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
@settings(max_examples=80, deadline=None)
def test_a_batch_holds_the_real_positions_of_its_rows(seed: int, n_positions: list[int], data: st.DataObject) -> None:
    n_real = [data.draw(st.integers(0, n)) for n in n_positions]
    targets = make(seed, n_positions, n_real=n_real)
    rows = data.draw(st.lists(st.integers(0, len(n_positions) - 1), min_size=1, max_size=7))
    batch = targets.batch(rows)
    assert batch.mask.tolist() == [[p < n_real[row] for p in range(max(n_real[row] for row in rows))] for row in rows]
    assert [array.dtype for array in batch] == [torch.int64, torch.bool, torch.int64, torch.float32, torch.float32]
    plain = as_lists(targets)
    for at, row in enumerate(rows):
        real = [
            (int(u), i.tolist(), z.tolist(), s.tolist())
            for u, m, i, z, s in zip(*(array[at] for array in batch), strict=True)
            if m
        ]
        assert real == plain[row][2][: n_real[row]]
        assert (batch.units[at][~batch.mask[at]] == 0).all()
    assert torch.isfinite(batch.logits).all()
    assert torch.isfinite(batch.logsumexp).all()


def test_a_padded_batch_is_one_wider_than_its_longest_answer() -> None:
    """The published script feeds the generated end of the answer to the decoder too."""
    width = 5
    targets = make(n_positions=(width,) * 4, n_real=(2, 1, 3, 5))
    for rows, expected in (([0, 1], 3), ([1], 2), ([2, 0], 4), ([3, 1], width)):
        batch = targets.batch(rows, with_padding=True)
        assert batch.mask.all()
        assert batch.mask.shape == batch.units.shape == (len(rows), expected)
        for at, row in enumerate(rows):
            positions = slice(row * width, row * width + expected)
            assert batch.units[at].tolist() == targets.units[positions].tolist()
            assert batch.logits[at].tolist() == targets.logits[positions].tolist()
    classes = of_classes(random_logits(5)).batch([3, 1], with_padding=True)
    assert classes.mask.shape == (2, 1)


def test_padding_that_was_not_kept_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match=r"row 3 keeps 1 positions but its batch is 7 wide.*keep_padding"):
        make().batch([2, 3], with_padding=True)


def test_a_batchs_loss_is_the_loss_of_its_rows() -> None:
    targets, student = make(), random_logits(9)
    rows, column = [2, 1, 4, 0], targets.temperature_column(2.0)
    batch = targets.batch(rows)
    logits = torch.zeros(*batch.units.shape, VOCAB)
    one_by_one = []
    for at, row in enumerate(rows):
        own = slice(targets.offsets[row], targets.offsets[row + 1])
        logits[at, : N_POSITIONS[row]] = student[own]
        indices, values = (torch.from_numpy(array[own]) for array in (targets.indices.astype(np.int64), targets.logits))
        plain = Sparse(indices, values, torch.from_numpy(targets.logsumexp[own, column]))
        one_by_one += forward_kl(student[own], plain, temperature=2.0).tolist()
    teacher = Sparse(batch.indices, batch.logits, batch.logsumexp[..., column])
    loss = summed(forward_kl(logits, teacher, temperature=2.0), batch.mask)
    assert loss.n.item() == len(one_by_one) == 12
    assert loss.total.item() == pytest.approx(math.fsum(one_by_one), rel=1e-5)


# --- the builder -----------------------------------------------------------------------------------------------------


def built(
    full: torch.Tensor,
    batches: Sequence[Sequence[int]],
    n_real: Sequence[int] | None = None,
    *,
    vocab_size: int = VOCAB,
) -> SparseTargets:
    """The rows of `make` in batches of some order, padded to the longest of a batch with what must not be read."""
    offsets, units = np.cumsum([0, *N_POSITIONS]), random_units(0, POSITIONS)
    builder = TargetsBuilder("tokens", len(N_POSITIONS), vocab_size=vocab_size, max_logits=KEPT)
    for batch in batches:
        rows = np.array(batch)
        width = max(N_POSITIONS[row] for row in batch) + 1
        logits = torch.full((len(batch), width, full.shape[-1]), float("nan"))
        said = np.full((len(batch), width), -1, dtype=np.int32)
        for at, row in enumerate(batch):
            logits[at, : N_POSITIONS[row]] = full[offsets[row] : offsets[row + 1]]
            said[at, : N_POSITIONS[row]] = units[offsets[row] : offsets[row + 1]]
        real = None if n_real is None else np.array(n_real)[rows]
        builder.add(rows, logits, said, n_kept=np.array(N_POSITIONS)[rows], n_real=real)
    return builder.build(words(len(N_POSITIONS)))


@given(st.permutations(range(len(N_POSITIONS))), st.sets(st.integers(1, len(N_POSITIONS) - 1)))
@settings(max_examples=60, deadline=None)
def test_batches_in_any_order_are_the_bytes_of_all_at_once(order: list[int], cuts: set[int]) -> None:
    bounds = [0, *sorted(cuts), len(order)]
    batches = [order[start:stop] for start, stop in itertools.pairwise(bounds)]
    assert built(random_logits(0), batches).to_bytes() == make().to_bytes()
    real = (1, 0, 5, 1, 2)
    assert built(random_logits(0), batches, real).to_bytes() == make(n_real=real).to_bytes()


def test_chunks_change_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make().to_bytes()
    monkeypatch.setattr("outlay.train.targets._CHUNK_LOGITS", 3 * VOCAB)
    assert make().to_bytes() == whole


def test_padded_rows_of_the_output_layer_are_left_out() -> None:
    """Qwen's 152,064 output rows for 151,936 tokens, in small: what stands in the padding changes nothing."""
    padded = torch.cat([random_logits(0), torch.full((POSITIONS, 6), 50.0)], -1)
    targets = built(padded, [[4, 2, 0], [1, 3]])
    assert targets.vocab_size == VOCAB
    assert targets.to_bytes() == make().to_bytes()
    with pytest.raises(ValueError, match="a vocabulary of 29 but logits of 23 classes"):
        built(random_logits(0), [[0]], vocab_size=29)


def test_every_row_is_added_once() -> None:
    with pytest.raises(ValueError, match="row 2 were added before"):
        built(random_logits(0), [[0, 2], [2, 1]])
    with pytest.raises(ValueError, match="2 rows were never added, the first is row 1"):
        built(random_logits(0), [[0, 2], [4]])
    builder, ones = TargetsBuilder("classes", 5), np.ones(5, dtype=np.int64)
    builder.add(np.arange(5), torch.zeros(5, 1, 3), np.zeros((5, 1), dtype=np.int32), n_kept=ones)
    with pytest.raises(ValueError, match="have 3 answers, not 5"):
        builder.build(words(3))


def test_no_rows_are_no_positions() -> None:
    assert len(TargetsBuilder("tokens", 0).build([])) == 0


def test_all_logits_are_kept_on_request_and_bfloat16_is_read_as_float32() -> None:
    full = random_logits(6).bfloat16()
    builder = TargetsBuilder("tokens", 1, max_logits=0)
    n = np.array([POSITIONS])
    builder.add(np.array([0]), full[None], random_units(0, POSITIONS)[None], n_kept=n)
    targets = builder.build(["all"])
    assert targets.logits.shape == (POSITIONS, targets.vocab_size)
    assert targets.logits.dtype == np.float32
    assert targets.logits.tolist() == full.float().sort(-1, descending=True).values.tolist()
