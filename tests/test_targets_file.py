"""Targets as bytes and as files that are mapped into memory."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from outlay.errors import ArtifactDamaged
from outlay.train.targets.sparse_logits import SparseLogits, SparsityRule
from outlay.train.targets.statistics import TargetStatistics
from outlay.train.targets.targets import SparseTargets
from tests.test_targets import KEPT, TAIL, VOCAB, as_lists, as_positions, make, of_positions, random_logits, words
from tests.toys import read_targets, targets_of


@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
    st.integers(0, VOCAB),
    st.sampled_from([0.0, TAIL]),
)
@settings(max_examples=50, deadline=None)
def test_bytes_round_trip_and_are_equal_for_equal_targets(
    seed: int, n_positions: list[int], kept: int, tail: float
) -> None:
    targets = make(seed, n_positions, kept, tail=tail)
    data = targets.to_bytes()
    back = read_targets(data)
    assert as_lists(back) == as_lists(targets)
    assert back.rule == targets.rule
    assert back.to_bytes() == data
    assert make(seed, n_positions, kept, tail=tail).to_bytes() == data
    # and from arrays that lie otherwise in memory
    piece = targets.pieces[0]
    strided = replace(
        piece,
        units=np.repeat(piece.units.astype(np.int32), 2)[::2],
        logsumexp=np.asfortranarray(piece.logsumexp),
        indices=np.repeat(piece.indices, 2)[::2],
        n_kept=None if piece.n_kept is None else piece.n_kept.astype(np.uint32),
    )
    assert replace(targets, pieces=(strided,)).to_bytes() == data


def test_other_targets_have_other_bytes() -> None:
    targets = make()
    piece = targets.pieces[0]
    logits, units = piece.logits.copy(), piece.units.copy()
    logits[-1] -= 1e-2
    units[0] += 1
    others = [
        make(seed=1),
        make(n_positions=(2, 1, 6, 1, 3)),
        make(n_real=(1, 0, 7, 1, 3)),
        make(tail=TAIL + 1e-9),
        replace(targets, pieces=(replace(piece, logits=logits),)),
        replace(targets, pieces=(replace(piece, units=units),)),
        *(
            replace(targets, rule=replace(targets.rule, **change))
            for change in ({"kind": "tags"}, {"temperatures": (1.0, 2.0, 5.0)}, {"vocab_size": VOCAB + 1})
        ),
        replace(targets, answers=(*targets.answers[:-1], "another")),
    ]
    assert len({t.to_bytes() for t in (targets, *others)}) == 1 + len(others)


def test_numbers_take_the_narrowest_type_that_holds_them() -> None:
    arrays = load(make().to_bytes())
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    assert dtypes == {
        **{"units": "uint16", "indices": "uint16", "logsumexp": "float32", "logits": "float16", "n_kept": "uint8"},
        **{"n_positions": "uint8", "n_real": "uint8", "n_entries": "uint8", "answers": "uint8"},
    }
    wide = SparsityRule.of("tokens", 70_001, 300, 0.0, (1.0,))
    position = SparseLogits.pack(
        wide, np.array([70_000]), np.array([300]), np.arange(70_000, 69_700, -1), -np.arange(300.0), np.ones((1, 1))
    )
    arrays = load(SparseTargets.from_positions(wide, position, np.array([1]), ["x"]).to_bytes())
    dtypes = {name: str(arrays[name].dtype) for name in ("units", "indices", "n_kept", "n_entries")}
    assert dtypes == {"units": "int32", "indices": "int32", "n_kept": "uint16", "n_entries": "uint16"}
    assert arrays["indices"].tolist() == list(range(70_000, 69_700, -1))


def test_answers_alone_round_trip(tmp_path: Path) -> None:
    answers = ["", "zwei\nZeilen", "\u2603 \ud800", '"quoted"']
    targets = SparseTargets.text_only(answers)
    assert (targets.kind, len(targets), targets.answers) == ("text", 4, tuple(answers))
    (tmp_path / "text").write_bytes(targets.to_bytes())
    back = SparseTargets.open(tmp_path / "text")
    assert back.to_bytes() == targets.to_bytes()
    assert back.answers == tuple(answers)
    assert back.select([2, 0]).answers == (answers[2], answers[0])
    assert SparseTargets.concatenate([back, back]).answers == (*answers, *answers)
    assert back.statistics().n_positions == 0
    with pytest.raises(ValueError, match="answers only"):
        back.batch([0], temperature=1.0)


def test_a_file_is_mapped_and_reads_as_what_is_in_memory(tmp_path: Path) -> None:
    blocks = [make(seed, n_positions=(3, seed, 7, 2, 1)) for seed in range(5)]
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}").write_bytes(block.to_bytes())
    mapped = SparseTargets.concatenate([SparseTargets.open(tmp_path / f"{number}") for number in range(5)])
    whole = SparseTargets.concatenate(blocks)
    assert as_lists(mapped) == as_lists(whole)
    rows = [23, 0, 11, 11, 7, 19]
    ours, theirs = (targets.batch(rows, temperature=2.0) for targets in (mapped, whole))
    assert torch.equal(ours.units, theirs.units)
    for name in ("positions", "entries", "indices", "logits", "logsumexp"):
        assert torch.equal(getattr(ours.teacher, name), getattr(theirs.teacher, name))
    assert mapped.to_bytes() == whole.to_bytes()
    with pytest.raises(ValueError, match="read-only"):
        mapped.pieces[0].units[0] = 1
    # A mapping outlives the name of its file.
    (tmp_path / "4").unlink()
    assert mapped.batch([23], temperature=1.0).units.tolist() == whole.batch([23], temperature=1.0).units.tolist()


def test_memory_does_not_grow_with_what_is_kept(tmp_path: Path) -> None:
    """Blocks of 7 rows and 700,000 logits: what is held is by row, and by batch."""
    n_rows, n_positions, vocabulary = 7, 100, 1009
    logits = torch.randn(n_rows * n_positions, vocabulary, generator=torch.Generator().manual_seed(0))
    block = targets_of(
        "tokens",
        logits,
        [n_positions] * n_rows,
        np.arange(n_rows * n_positions).astype(np.int32),
        words(n_rows),
        max_logits=1000,
        tail_mass=0.0,
    )
    paths = [tmp_path / f"{number}" for number in range(5)]
    for path in paths:
        path.write_bytes(block.to_bytes())
    tracemalloc.start()
    whole = SparseTargets.concatenate([SparseTargets.open(path) for path in paths]).select(range(30))
    held = tracemalloc.get_traced_memory()[1]
    whole.batch([29, 3], temperature=2.0)
    at_batch = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = paths[0].stat().st_size
    assert size > 2_800_000
    assert held < 100_000
    assert at_batch < 2 * n_positions * 1000 * 100  # a hundred bytes for each logit of two rows


def test_what_is_no_file_of_targets_is_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "targets-00000.safetensors", make().to_bytes()
    offsets = {"offsets": np.zeros(1, dtype=np.int64)}
    older = save(offsets, metadata={"shape": json.dumps({"kind": "tokens", "temperatures": [1.0], "vocab_size": 7})})
    for data, says in (
        (b"", "empty.*teach again"),
        (b"short", "cannot be read"),
        (b"\xff" * 100, "cannot be read"),
        (good[:-200], "cannot be read"),
        (good[:100], "cannot be read"),
        (save(offsets), "cannot be read"),
        (older, r"earlier format.*\b3\b.*teach again"),
        (
            good.replace(b'"format\\": 3', b'"format\\": 4'),
            r"format 4\b.*\b3\b.*teach again",
        ),
    ):
        path.write_bytes(data)
        with pytest.raises(ArtifactDamaged, match=says) as caught:
            SparseTargets.open(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_a_loop_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    full = random_logits(7, 17, scale=2.0)
    targets = of_positions(full, max_logits=KEPT, tail_mass=TAIL)
    counts = [len(indices) for _, indices, *_ in as_positions(targets.positions(), targets.rule)]
    kept = [float(row.softmax(-1).sort(descending=True).values[:n].sum()) for row, n in zip(full, counts, strict=True)]
    found = targets.statistics()
    assert (found.n_rows, found.n_positions, found.n_entries, found.kept_max) == (17, 17, sum(counts), max(counts))
    assert found.mass_kept_mean == pytest.approx(np.mean(kept), rel=1e-6)
    assert found.mass_kept_min == pytest.approx(min(kept), rel=1e-6)
    assert found.kept_mean == sum(counts) / 17
    assert 0 < found.n_capped == sum(n == KEPT and mass < 1 - TAIL for n, mass in zip(counts, kept, strict=True)) < 17
    data = targets.to_bytes()
    assert found.n_bytes == len(data) - 8 - int.from_bytes(data[:8], "little")
    assert found.bytes_per_position == found.n_bytes / 17
    parts = [targets.select(range(5)).statistics(), targets.select(range(5, 17)).statistics()]
    together = parts[0] + parts[1] + TargetStatistics(0, 0, 0)
    assert replace(together, mass_kept=0.0, n_bytes=0) == replace(found, mass_kept=0.0, n_bytes=0)
    assert together.mass_kept == pytest.approx(found.mass_kept)
    monkeypatch.setattr("outlay.train.targets.targets._CHUNK_LOGITS", 3 * KEPT)
    assert replace(targets.statistics(), mass_kept=found.mass_kept) == found


def test_whole_targets_keep_all_the_mass() -> None:
    found = of_positions(random_logits(8), "classes").statistics()
    assert (found.mass_kept_mean, found.mass_kept_min, found.n_capped, found.kept_mean) == (1.0, 1.0, 0, VOCAB)
    nothing = SparseTargets.text_only(["a", "b"]).statistics()
    assert (nothing.n_rows, nothing.bytes_per_position, nothing.kept_mean, nothing.mass_kept_mean) == (2, 0.0, 0.0, 1.0)
