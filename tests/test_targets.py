"""The teacher's words, kept and handed out, against float64 loops and plain lists. Every axis has its own prime size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from outlay.errors import TrainingError
from outlay.settings import TEMPERATURES
from outlay.train.targets.sparse_logits import MAX_LOGITS, SparseLogits, SparsityRule
from outlay.train.targets.targets import SparseTargets, TargetsBuilder
from tests.toys import read_targets, targets_of

POSITIONS, VOCAB, KEPT, TAIL = 13, 23, 5, 0.05
N_POSITIONS = (2, 0, 7, 1, 3)
"""Of each of five rows; 13 together."""

Position = tuple[int, list[int], list[float], list[float]]


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
    tail: float = TAIL,
) -> SparseTargets:
    n = sum(n_positions)
    units = random_units(seed, n)
    if n_real is not None:
        units[np.concatenate([np.arange(n) >= real for n, real in zip(n_positions, n_real, strict=True)])] = 0
    return targets_of(
        "tokens",
        random_logits(seed, n),
        n_positions,
        units,
        words(len(n_positions)),
        n_real=n_real,
        max_logits=kept,
        tail_mass=tail,
    )


def of_positions(logits: torch.Tensor, kind: Any = "tokens", **kept: Any) -> SparseTargets:
    """One position per row, as a classifier speaks."""
    n = len(logits)
    units = logits.argmax(-1).numpy().astype(np.int32)
    return targets_of(kind, logits, [1] * n, units, words(n), **kept)


def as_positions(positions: SparseLogits, rule: SparsityRule) -> list[Position]:
    """Unit, indices, logits and log-sum-exps of each position."""
    bounds = [0, *np.cumsum(positions.counts(rule)).tolist()]
    logits = positions.all_logits()
    return [
        (int(unit), positions.indices[start:end].tolist(), logits[start:end].tolist(), sums.tolist())
        for unit, sums, start, end in zip(positions.units, positions.logsumexp, bounds, bounds[1:], strict=False)
    ]


def as_lists(targets: SparseTargets) -> list[tuple[str, int, list[Position]]]:
    """Per row its answer, its number of real positions and its positions."""
    positions = as_positions(targets.positions(), targets.rule)
    offsets = targets.offsets.tolist()
    return [
        (answer, int(n_real), positions[start:end])
        for answer, n_real, start, end in zip(targets.answers, targets.n_real, offsets[:-1], offsets[1:], strict=True)
    ]


def shares(row: list[float], temperature: float) -> list[float]:
    """The softmax of a row, in float64."""
    weights = [math.exp((z - max(row)) / temperature) for z in row]
    return [weight / math.fsum(weights) for weight in weights]


# --- what is kept ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(0.1, 12.0), st.integers(1, VOCAB - 1), st.sampled_from([0.0, 1e-4, 0.01, 0.3]))
@settings(max_examples=80, deadline=None)
def test_the_fewest_logits_that_leave_out_no_more_than_the_tail(
    seed: int, scale: float, kept: int, tail: float
) -> None:
    full = random_logits(seed, 3, scale)
    targets = of_positions(full, max_logits=kept, tail_mass=tail)
    for row, (_, indices, _, _) in zip(full.tolist(), as_positions(targets.positions(), targets.rule), strict=True):
        p, best, n = shares(row, 1.0), sorted(range(VOCAB), key=lambda v: (-row[v], v)), len(indices)
        assert indices == best[:n]
        assert 1 <= n <= kept
        if n < kept:
            assert math.fsum(p[v] for v in best[n:]) <= tail + 1e-6
        if n > 1 and tail > 0:
            assert math.fsum(p[v] for v in best[n - 1 :]) > tail - 1e-6
        if tail == 0:
            assert n == kept


@given(
    st.integers(0, 10_000),
    st.integers(1, VOCAB - 1),
    st.floats(0.1, 12.0),
    st.sampled_from([-300.0, 0.0, 40.0]),
    st.sampled_from([0.0, 0.01]),
)
@settings(max_examples=80, deadline=None)
def test_distributions_come_back_at_each_offered_temperature(
    seed: int, kept: int, scale: float, shift: float, tail: float
) -> None:
    """Kept classes to the rounding of float16, the mass of all others to that of float32, whatever the level."""
    full = random_logits(seed, 3, scale) + shift
    targets = of_positions(full, max_logits=kept, tail_mass=tail)
    stored = as_positions(targets.positions(), targets.rule)
    for row, (_, indices, logits, logsumexps) in zip(full.double().tolist(), stored, strict=True):
        for temperature, logsumexp in zip(TEMPERATURES, logsumexps, strict=True):
            p = shares(row, temperature)
            q = [math.exp(z / temperature - logsumexp) for z in logits]
            for v, z, share in zip(indices, logits, q, strict=True):
                assert share == pytest.approx(p[v], rel=(abs(z) / temperature + 1) * 2.0**-10, abs=1e-6)
            others = math.fsum(p[v] for v in set(range(VOCAB)) - set(indices))
            assert 1 - math.fsum(q) == pytest.approx(others, abs=6e-7)


def test_a_rounded_logit_leaves_its_neighbours_mass_alone() -> None:
    """A sure teacher: a rounding of 3e-4, of what holds a fifth of the mass, must not reach the 2e-6 that all others hold."""
    full = torch.tensor([[60.0, 60.0 - 1.2345, *[60.0 - 16.0] * (VOCAB - 2)]])
    targets = of_positions(full, max_logits=2, tail_mass=0.0)
    (_, _, logits, logsumexps) = as_positions(targets.positions(), targets.rule)[0]
    assert logits[1] != float(full[0, 1] - full[0, 0])
    p = shares(full[0].tolist(), 1.0)
    off = abs(math.exp(logits[1] - logsumexps[0]) - p[1])
    left = 1 - math.fsum(math.exp(z - logsumexps[0]) for z in logits)
    assert left == pytest.approx(math.fsum(p[2:]), rel=0.1)
    assert off > 5 * abs(left - math.fsum(p[2:]))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_rounding_costs_a_thousandth_of_the_loss_at_most(temperature: float) -> None:
    """Forward KL of buckets, with stored numbers and with exact ones, for a sure teacher whose logits reach 60."""
    n, vocabulary = 97, 1009
    random = torch.Generator().manual_seed(3)
    z = torch.randn(n, vocabulary, generator=random) * 2.5 - 10
    at = torch.randint(0, vocabulary, (n, 3), generator=random)
    z.scatter_(1, at, 60 - 8 * torch.rand(n, 3, generator=random))
    student = z.double() + torch.randn(n, vocabulary, generator=random).double()
    exact = z.double() / temperature
    targets = of_positions(z, max_logits=61)
    teacher = targets.batch(range(n), temperature=temperature).teacher

    def losses(log_p: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of what is kept to KL by position, float64; the rest is one class."""
        log_q = (student / temperature).log_softmax(-1)
        kept = torch.zeros(n, vocabulary, dtype=torch.bool)
        kept[teacher.entries, teacher.indices] = True
        tail_q = log_q.masked_fill(kept, -1e30).logsumexp(-1)
        mass = torch.zeros(n, dtype=torch.float64)
        tail = (1 - mass.index_add(0, teacher.entries, log_p.exp())).clamp_min(1e-9)
        named = log_p.exp() * (log_p - log_q[teacher.entries, teacher.indices])
        return mass.index_add(0, teacher.entries, named) + tail * (tail.log() - tail_q)

    def error(logits: torch.Tensor, logsumexp: torch.Tensor) -> float:
        true = losses(exact.log_softmax(-1)[teacher.entries, teacher.indices])
        off = losses(logits.double() / temperature - logsumexp.double()[teacher.entries]) - true
        return float(off.abs().mean() / true.mean())

    assert error(teacher.logits, teacher.logsumexp) < 1e-3
    raw = z[teacher.entries, teacher.indices]
    assert error(raw.half(), torch.logsumexp(exact, -1)) > 5e-3
    assert error(raw.bfloat16(), torch.logsumexp(exact, -1)) > 5e-2


def test_equal_logits_stand_in_the_order_of_their_classes() -> None:
    row = [1.0] * VOCAB
    row[7] = row[3] = row[19] = 4.0
    targets = of_positions(torch.tensor([row]), max_logits=KEPT, tail_mass=0.0)
    assert targets.positions().indices[:3].tolist() == [3, 7, 19]
    assert of_positions(torch.tensor([row]), max_logits=0).positions().indices.tolist()[:5] == [3, 7, 19, 0, 1]


@pytest.mark.parametrize("kind", ["classes", "tags", "tokens"])
def test_label_sets_and_small_vocabularies_are_kept_whole(kind: Any) -> None:
    full = random_logits(2)
    kept = 2 if kind != "tokens" else VOCAB
    targets = of_positions(full, kind, max_logits=kept, tail_mass=0.3)
    assert targets.rule.complete
    positions = targets.positions()
    assert positions.logits.dtype == np.float32
    restored = np.zeros((POSITIONS, VOCAB), dtype=np.float32)
    shape = (POSITIONS, VOCAB)
    np.put_along_axis(
        restored, positions.indices.astype(np.int64).reshape(shape), positions.logits.reshape(shape), axis=1
    )
    assert np.array_equal(restored, full.numpy())
    assert targets.to_bytes() == of_positions(full, kind, max_logits=0, tail_mass=0.0).to_bytes()
    for column, temperature in enumerate(TEMPERATURES):
        expected = torch.logsumexp(full.double() / temperature, -1)
        assert positions.logsumexp[:, column].tolist() == pytest.approx(expected.tolist(), rel=2e-6, abs=2e-6)


def test_other_temperatures_may_be_offered() -> None:
    full = random_logits(3)
    targets = of_positions(full, "classes", temperatures=(0.5, 3.0))
    for column, temperature in enumerate((0.5, 3.0)):
        expected = torch.logsumexp(full.double() / temperature, -1).tolist()
        assert targets.positions().logsumexp[:, column].tolist() == pytest.approx(expected, rel=3e-6)


def test_one_logsumexp_would_not_do_for_the_tail() -> None:
    """Two teachers alike in what one temperature stores, with other tails at the next: hence one column for each."""
    peaked = torch.tensor([[3.0, 2.0, *[-20.0] * (VOCAB - 3), math.log(0.5)]])
    flat = torch.tensor([[3.0, 2.0, *[math.log(0.5 / (VOCAB - 2))] * (VOCAB - 2)]])
    one, two = (of_positions(z, max_logits=2, tail_mass=0.0).positions().logsumexp for z in (peaked, flat))
    assert np.allclose(one[:, 0], two[:, 0], atol=1e-4)
    assert abs(one[0, 1] - two[0, 1]) > 0.2


def test_an_unknown_temperature_names_the_offered_ones() -> None:
    targets = make()
    assert [targets.temperature_column(t) for t in TEMPERATURES] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"\b3\b.*\b1, 2, 4$"):
        targets.batch([0], temperature=3.0)


def test_logits_that_are_not_finite_are_refused() -> None:
    full = random_logits(4)
    full[5, 3] = float("nan")
    for kept in (0, KEPT):
        with pytest.raises(TrainingError, match="not finite"):
            of_positions(full, max_logits=kept)
    full[5, 3] = float("-inf")  # a token that is never said
    targets = of_positions(full, max_logits=VOCAB - 1, tail_mass=0.0)
    (_, indices, logits, _) = as_positions(targets.positions(), targets.rule)[5]
    assert 3 not in indices
    assert all(map(math.isfinite, logits))


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    targets = make()
    for change in ({"answers": ("one",)}, {"n_real": targets.n_real[1:]}):
        with pytest.raises(ValueError, match=f"5 rows have . {next(iter(change))}"):
            replace(targets, **change)
    with pytest.raises(ValueError, match=r"row 1\b.*\b3\b.*\b0$"):
        make(n_real=(1, 3, 5, 1, 2))
    with pytest.raises(ValueError, match=r"\b5 rows .*\b14\b.*\b13\b"):
        SparseTargets.from_positions(targets.rule, targets.positions(), np.array([3, 0, 7, 1, 3]), words(5))
    sums = np.ones((2, 3))
    for n_kept, logits, says in (
        ([2, 0], [1.0, 0.5], r"\b0 to 2\b.* 1 to 5$"),
        ([1, 6], [2.0] * 7, r"\b1 to 6\b.* 1 to 5$"),
        ([1, 2], [1.0, 2.0, 3.0], "must fall"),
        ([1, 2], [1.0, 2.0], "2 log-sum-exps, 3 indices and 2 logits"),
    ):
        indices = np.arange(sum(n_kept))
        with pytest.raises(ValueError, match=says):
            SparseLogits.pack(targets.rule, np.ones(2), np.array(n_kept), indices, np.array(logits), sums)


def test_log_probabilities_from_elsewhere_can_be_packed() -> None:
    """What a server returns: the largest log-probabilities, whose log-sum-exp is 0 at temperature 1."""
    rule = SparsityRule.of("tokens", VOCAB, KEPT, TAIL, (1.0,))
    logprobs = np.log([0.5, 0.25, 0.9])
    packed = SparseLogits.pack(
        rule, np.array([4, 7]), np.array([2, 1]), np.array([4, 2, 7]), logprobs, np.zeros((2, 1))
    )
    targets = SparseTargets.from_positions(rule, packed, np.array([1, 1]), ["a", "b"])
    teacher = targets.batch([0, 1], temperature=1.0).teacher
    kept = (teacher.logits - teacher.logsumexp[teacher.entries]).exp()
    assert kept.tolist() == pytest.approx([0.5, 0.25, 0.9], rel=5e-4)
    assert 1 - float(kept[:2].sum()) == pytest.approx(0.25, abs=3e-7)


# --- rows ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, len(N_POSITIONS) - 1), max_size=11), st.sampled_from([0, KEPT]))
@settings(max_examples=50, deadline=None)
def test_select_is_indexing_into_a_list_of_rows(rows: list[int], kept: int) -> None:
    targets = make(n_real=(1, 0, 5, 1, 2), kept=kept)
    plain = as_lists(targets)
    assert as_lists(targets.select(rows)) == [plain[row] for row in rows]


@given(st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=5), st.sampled_from([0, KEPT]), st.data())
@settings(max_examples=70, deadline=None)
def test_concatenate_is_adding_lists_of_rows(blocks: list[list[int]], kept: int, data: st.DataObject) -> None:
    parts = [make(seed, block, kept) for seed, block in enumerate(blocks)]
    whole = SparseTargets.concatenate(parts)
    plain = [row for part in parts for row in as_lists(part)]
    assert as_lists(whole) == plain
    assert (whole.kind, whole.vocab_size, whole.temperatures) == ("tokens", VOCAB, TEMPERATURES)
    # and what is selected of them, across the blocks
    rows = data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=7)) if plain else []
    assert as_lists(whole.select(rows)) == [plain[row] for row in rows]
    again = SparseTargets.concatenate([whole.select(rows), whole])
    assert as_lists(again) == [plain[row] for row in rows] + plain


def test_rows_are_put_together_without_copying_positions() -> None:
    parts = [make(seed) for seed in range(3)]
    picked = SparseTargets.concatenate(parts).select([12, 1, 4])
    for part, piece in zip(parts, picked.pieces, strict=True):
        for name in ("units", "logsumexp", "indices", "n_kept", "logits"):
            assert np.shares_memory(getattr(piece, name), getattr(part.pieces[0], name))


def test_blocks_taught_apart_are_the_bytes_of_one() -> None:
    full, cut = random_logits(3), 4
    for kept in ({"max_logits": KEPT, "tail_mass": TAIL}, {"max_logits": 0}):
        whole = of_positions(full, **kept)
        parts = [
            of_positions(full[:cut], **kept),
            replace(of_positions(full[cut:], **kept), answers=whole.answers[cut:]),
        ]
        assert SparseTargets.concatenate(parts).to_bytes() == whole.to_bytes()


def test_blocks_that_do_not_belong_together_are_refused() -> None:
    targets = make()
    others = [
        *(make(kept=7), make(tail=0.1), make(kept=0), SparseTargets.text_only(words(2))),
        *(
            replace(targets, rule=replace(targets.rule, **change))
            for change in ({"vocab_size": 29}, {"temperatures": (1.0, 2.0, 3.0)}, {"kind": "tags"})
        ),
    ]
    for other in others:
        with pytest.raises(ValueError, match="differ"):
            SparseTargets.concatenate([targets, other])
    with pytest.raises(ValueError, match="no blocks"):
        SparseTargets.concatenate([])


# --- batches ---------------------------------------------------------------------------------------------------------


BATCHES = (
    st.integers(0, 1000),
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
    st.sampled_from([0, KEPT]),
    st.data(),
)


@given(*BATCHES)
@settings(max_examples=25, deadline=None)
def test_a_batch_holds_the_real_positions_of_its_rows(
    seed: int, n_positions: list[int], kept: int, data: st.DataObject
) -> None:
    check_batch(seed, n_positions, kept, data)


@pytest.mark.slow
@given(*BATCHES)
@settings(max_examples=300, deadline=None)
def test_many_batches_hold_the_real_positions_of_their_rows(
    seed: int, n_positions: list[int], kept: int, data: st.DataObject
) -> None:
    check_batch(seed, n_positions, kept, data)


def check_batch(seed: int, n_positions: list[int], kept: int, data: st.DataObject) -> None:
    n_real = [data.draw(st.integers(0, n)) for n in n_positions]
    targets = make(seed, n_positions, kept, n_real)
    cut = data.draw(st.integers(0, len(n_positions)))
    blocks = [targets.select(range(cut)), targets.select(range(cut, len(targets)))]
    apart = SparseTargets.concatenate([read_targets(block.to_bytes()) for block in blocks])
    rows = data.draw(st.lists(st.integers(0, len(n_positions) - 1), min_size=1, max_size=7))
    plain, column = as_lists(targets), data.draw(st.integers(0, 2))
    width = max(n_real[row] for row in rows)
    for source in (targets, apart):
        batch = source.batch(rows, temperature=TEMPERATURES[column])
        teacher = batch.teacher
        assert batch.mask.tolist() == [[p < n_real[row] for p in range(width)] for row in rows]
        assert (batch.units[~batch.mask] == 0).all()
        assert teacher.positions.tolist() == batch.mask.flatten().nonzero().flatten().tolist()
        assert teacher.complete == (kept == 0)
        wanted = [plain[row][2][p] for row in rows for p in range(n_real[row])]
        assert batch.units[batch.mask].tolist() == [unit for unit, *_ in wanted]
        assert teacher.entries.tolist() == [n for n, (_, indices, *_) in enumerate(wanted) for _ in indices]
        assert teacher.indices.tolist() == [v for _, indices, *_ in wanted for v in indices]
        assert teacher.logits.tolist() == [z for _, _, logits, _ in wanted for z in logits]
        assert teacher.logsumexp.tolist() == [sums[column] for *_, sums in wanted]
        whole = (batch.units, teacher.positions, teacher.entries, teacher.indices)
        assert {tensor.dtype for tensor in whole} == {torch.int64}
        assert (teacher.logits.dtype, teacher.logsumexp.dtype) == (torch.float32, torch.float32)


def test_a_padded_batch_is_one_wider_than_its_longest_answer() -> None:
    """The published script feeds the generated end of the answer to the decoder too."""
    width = 5
    targets = make(n_positions=(width,) * 4, n_real=(2, 1, 3, 5), kept=0)
    plain = as_lists(targets)
    for rows, expected in (([0, 1], 3), ([1], 2), ([2, 0], 4), ([3, 1], width)):
        batch = targets.batch(rows, temperature=2.0, with_padding=True)
        assert batch.mask.all()
        assert batch.mask.shape == batch.units.shape == (len(rows), expected)
        wanted = [position for row in rows for position in plain[row][2][:expected]]
        assert batch.units.flatten().tolist() == [unit for unit, *_ in wanted]
        assert batch.teacher.positions.tolist() == list(range(len(rows) * expected))
        assert batch.teacher.logits.tolist() == [z for _, _, logits, _ in wanted for z in logits]
    classes = of_positions(random_logits(5), "classes").batch([3, 1], temperature=1.0, with_padding=True)
    assert classes.mask.shape == (2, 1)


def test_padding_that_was_not_kept_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match=r"row 3 .*\b1\b.*\b7\b.*keep_padding"):
        make().batch([2, 3], temperature=1.0, with_padding=True)


# --- the builder -----------------------------------------------------------------------------------------------------


def built(
    full: torch.Tensor,
    batches: Sequence[Sequence[int]],
    n_real: Sequence[int] | None = None,
    *,
    vocab_size: int = VOCAB,
    kept: int = KEPT,
) -> SparseTargets:
    """The rows of `make` in batches of some order."""
    units = np.split(random_units(0, POSITIONS), np.cumsum(N_POSITIONS)[:-1])
    logits = full.split(N_POSITIONS)
    builder = TargetsBuilder("tokens", len(N_POSITIONS), vocab_size=vocab_size, max_logits=kept, tail_mass=TAIL)
    for batch in batches:
        n_kept = [N_POSITIONS[row] for row in batch]
        answers = [units[row] if n_real is None else units[row][: n_real[row]] for row in batch]
        builder.answer(np.array(batch), answers, n_kept=np.array(n_kept))
        positions = np.concatenate([np.arange(n) for n in n_kept])
        builder.put(np.repeat(batch, n_kept), positions, torch.cat([logits[row] for row in batch]))
    return builder.build(words(len(N_POSITIONS)))


@given(
    st.permutations(range(len(N_POSITIONS))),
    st.sets(st.integers(1, len(N_POSITIONS) - 1)),
    st.sampled_from([0, KEPT]),
    st.sampled_from([1, 1 << 20]),
)
@settings(max_examples=30, deadline=None)
def test_batches_in_any_order_are_the_bytes_of_all_at_once(
    order: list[int], cuts: set[int], kept: int, pending: int
) -> None:
    bounds = [0, *sorted(cuts), len(order)]
    batches = [order[start:stop] for start, stop in itertools.pairwise(bounds)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outlay.train.targets.targets._PENDING_LOGITS", pending)
        assert built(random_logits(0), batches, kept=kept).to_bytes() == make(kept=kept).to_bytes()
        real = (1, 0, 5, 1, 2)
        assert built(random_logits(0), batches, real, kept=kept).to_bytes() == make(n_real=real, kept=kept).to_bytes()


@given(st.permutations(range(POSITIONS)), st.lists(st.integers(1, 4), min_size=13, max_size=13), st.data())
@settings(max_examples=30, deadline=None)
def test_steps_in_any_order_are_the_bytes_of_all_at_once(
    order: list[int], sizes: list[int], data: st.DataObject
) -> None:
    """As a decoder puts them: some positions at a time, those behind an answer's end among them, answers in between."""
    full, units, offsets = random_logits(0), random_units(0, POSITIONS), np.cumsum([0, *N_POSITIONS])
    row_of, position_of = np.repeat(range(5), N_POSITIONS), np.concatenate([np.arange(n) for n in N_POSITIONS])
    builder = TargetsBuilder("tokens", 5, vocab_size=VOCAB, max_logits=KEPT, tail_mass=TAIL)
    answered = data.draw(st.permutations(range(5)))
    while order:
        step, order = order[: sizes[0]], order[sizes.pop(0) :]
        rows, positions = np.append(row_of[step], [3]), np.append(position_of[step], [1])  # row 3 has one position
        beyond = torch.full((1, VOCAB + 2), -float(len(order)))
        padded = torch.cat([full[step], torch.full((len(step), 2), 50.0)], -1)
        builder.put(rows, positions, torch.cat([padded, beyond]))
        if answered:
            row = answered.pop()
            builder.answer(np.array([row]), [units[offsets[row] : offsets[row + 1]]])
    for row in answered:
        builder.answer(np.array([row]), [units[offsets[row] : offsets[row + 1]]])
    assert builder.build(words(5)).to_bytes() == make().to_bytes()


def test_padding_behind_an_answer_is_kept_where_it_is_asked_for() -> None:
    builder = TargetsBuilder("tokens", 2, max_logits=KEPT, tail_mass=TAIL)
    for position in range(3):
        builder.put(np.arange(2), np.full(2, position), random_logits(position, 2))
    said = [np.array([4], dtype=np.int32), np.array([5, 6], dtype=np.int32)]
    builder.answer(np.array([0, 1]), said, n_kept=np.array([3, 3]), pad_unit=9)
    targets = builder.build(words(2))
    assert targets.positions().units.tolist() == [4, 9, 9, 5, 6, 9]
    assert (targets.n_real.tolist(), targets.offsets.tolist()) == ([1, 2], [0, 3, 6])


def test_chunks_change_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make().to_bytes()
    monkeypatch.setattr("outlay.train.targets.top_logits._CHUNK_LOGITS", 3 * VOCAB)
    assert make().to_bytes() == whole


def test_padded_rows_of_the_output_layer_are_left_out() -> None:
    """Qwen's 152,064 output rows for 151,936 tokens, in small: what stands in the padding changes nothing."""
    padded = torch.cat([random_logits(0), torch.full((POSITIONS, 6), 50.0)], -1)
    targets = built(padded, [[4, 2, 0], [1, 3]])
    assert targets.vocab_size == VOCAB
    assert targets.to_bytes() == make().to_bytes()
    with pytest.raises(ValueError, match=r"\b29\b.*\b23\b"):
        built(random_logits(0), [[0]], vocab_size=29)


def test_every_row_is_answered_once() -> None:
    with pytest.raises(ValueError, match=r"row 2\b"):
        built(random_logits(0), [[0, 2], [2, 1]])
    with pytest.raises(ValueError, match=r"\b2 rows .* row 1\b"):
        built(random_logits(0), [[0, 2], [4]])
    builder = TargetsBuilder("classes", 5)
    builder.put(np.arange(5), np.zeros(5, dtype=np.int64), torch.zeros(5, 3))
    builder.answer(np.arange(5), [np.zeros(1, dtype=np.int32)] * 5)
    with pytest.raises(ValueError, match=r"\b5 rows .* 3 answers"):
        builder.build(words(3))


def test_every_position_comes_once() -> None:
    def tried(positions: list[int]) -> None:
        builder = TargetsBuilder("tokens", 2)
        builder.answer(np.array([0, 1]), [np.array([3]), np.array([4, 5])])
        builder.put(np.array([0, *[1] * len(positions)]), np.array([0, *positions]), torch.zeros(1 + len(positions), 7))
        builder.build(words(2))

    tried([1, 0])
    with pytest.raises(ValueError, match=r"position 1 of row 1 .* more than once"):
        tried([0, 1, 1])
    with pytest.raises(ValueError, match="position 0 of row 1 never came"):
        tried([1])
    with pytest.raises(ValueError, match=r"row 1 .*\b1\b.*\b2$"):
        TargetsBuilder("tokens", 2).answer(np.array([1]), [np.array([4, 5])], n_kept=np.array([1]))


def test_no_rows_are_no_positions() -> None:
    assert len(TargetsBuilder("tokens", 0).build([])) == 0
    silent = TargetsBuilder("tags", 2, vocab_size=3)
    silent.answer(np.array([1, 0]), [np.zeros(0, dtype=np.int32)] * 2)
    assert silent.build(words(2)).batch([0, 1], temperature=1.0).units.shape == (2, 0)


def test_all_logits_are_kept_on_request_and_bfloat16_is_read_as_float32() -> None:
    full = random_logits(6).bfloat16()
    builder = TargetsBuilder("tokens", 1, max_logits=0)
    builder.put(np.zeros(POSITIONS, dtype=np.int64), np.arange(POSITIONS), full)
    builder.answer(np.array([0]), [random_units(0, POSITIONS)])
    positions = builder.build(["all"]).positions()
    assert positions.logits.dtype == np.float32
    assert positions.logits.tolist() == full.float().sort(-1, descending=True).values.flatten().tolist()
    assert VOCAB < MAX_LOGITS
