"""`bench/sparse_targets.py` on a handful of rows, and its formulas against loops and against outlay's own losses."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import sparse_targets
from bench.sparse_error import dtype_losses, full_kl, kept_counts, kept_mask, losses_of, part_kl
from bench.sparse_targets import DEFAULT, Setup, Variant, measure
from bench.sparse_tasks import SST2, WLP, Plan, Words
from outlay.train.losses import divergence

pytestmark = pytest.mark.bench

N, V = 29, 97


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    return 4.0 * torch.randn(N, V, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def y() -> torch.Tensor:
    return 2.0 * torch.randn(N, V, generator=torch.Generator().manual_seed(2))


def words(z: torch.Tensor) -> Words:
    lengths = (7, 11, 8, 3)
    units = [np.arange(n, dtype=np.int32) for n in lengths]
    return Words(units, z.numpy(), ("a", "b", "c", "d"))


@pytest.mark.parametrize(("tail_mass", "max_logits"), [(0.1, 5), (0.01, 64), (0.0, 3), (0.0, 0), (0.001, 0)])
def test_as_many_logits_are_kept_as_hold_the_mass(z: torch.Tensor, tail_mass: float, max_logits: int) -> None:
    counts = kept_counts(z, tail_mass, max_logits)
    most = max_logits or V
    mask = kept_mask(z, counts)
    for row, count, kept in zip(z.double(), counts.tolist(), mask, strict=True):
        p = sorted(torch.softmax(row, -1).tolist(), reverse=True)
        expected = most
        if tail_mass and max_logits:
            expected = min(most, next(k for k in range(1, V + 1) if 1 - sum(p[:k]) <= tail_mass))
        assert count == expected
        assert sorted(row[kept].tolist(), reverse=True) == sorted(row.tolist(), reverse=True)[:count]
    targets = words(z).targets(tail_mass, max_logits)
    assert targets.statistics().kept_mean == pytest.approx(float(counts.double().mean()))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_of_a_part_is_that_of_a_loop(z: torch.Tensor, y: torch.Tensor, temperature: float) -> None:
    mask = kept_mask(z, kept_counts(z, 0.03, 13))
    got = part_kl(z, z, mask, y, temperature)
    for i in range(N):
        p, q = (torch.softmax(each[i].double() / temperature, -1).tolist() for each in (z, y))
        kept = mask[i].tolist()
        p_tail, q_tail = (sum(x for x, is_kept in zip(each, kept, strict=True) if not is_kept) for each in (p, q))
        expected = sum(a * math.log(a / b) for a, b, is_kept in zip(p, q, kept, strict=True) if is_kept)
        assert float(got[i]) == pytest.approx(expected + p_tail * math.log(p_tail / q_tail), rel=1e-6)


@pytest.mark.parametrize("variant", [Variant(0.03, 13), Variant(0.0, 5), Variant(0.0, 0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_students_are_taught_by_the_divergence_that_is_measured(
    z: torch.Tensor, y: torch.Tensor, variant: Variant, temperature: float
) -> None:
    batch = words(z).targets(variant.tail_mass, variant.max_logits).batch(np.arange(4), temperature=temperature)
    logits = torch.zeros(*batch.mask.shape, V)
    logits[batch.mask] = y
    taught = divergence("forward_kl", logits, batch.teacher, temperature=temperature) / temperature**2
    mask = kept_mask(z, kept_counts(z, variant.tail_mass, variant.max_logits))
    torch.testing.assert_close(taught.double(), part_kl(z, z, mask, y, temperature), rtol=2e-3, atol=1e-5)


def test_a_part_loses_what_the_whole_does_not(z: torch.Tensor, y: torch.Tensor) -> None:
    whole = losses_of(z, torch.ones(N, V, dtype=torch.bool), y, 2.0)
    assert whole.kl_error == 0
    assert whole.mass_least == pytest.approx(1)
    errors = [losses_of(z, kept_mask(z, kept_counts(z, 0.0, k)), y, 2.0).kl_error for k in (1, 8, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1] > 0
    assert float(full_kl(z, z, 1.0).abs().max()) < 1e-12


def test_fewer_bits_lose_more(z: torch.Tensor, y: torch.Tensor) -> None:
    scaled = 6 * z
    mask = kept_mask(scaled, kept_counts(scaled, 0.001, 64))
    lost = dtype_losses(scaled, mask, y, 1.0)
    assert lost["float32"] == 0
    assert 0 < lost["float16 differences"] < lost["float16"] < lost["bfloat16"]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def smaller(plan: Plan) -> Plan:
    once = {"epochs": 1, "batch_size": 8}
    return replace(
        plan,
        n_labelled=24,
        n_pool=16,
        n_unseen=11,
        n_compared=5,
        max_target_tokens=7,
        teacher=replace(plan.teacher, **once),
        student=replace(plan.student, **once),
    )


def test_every_table_is_printed_and_finished_cells_are_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    words = ("mix", "heat", "cool", "shake", "spin")
    tones = [("dull", "negative"), ("bright", "positive")]
    lines = [(f"{a} the {b} sample for {i} s", a, i) for a in words for b in words for i in range(2)]
    write(
        tmp_path / "sst2" / "train.jsonl.gz",
        [{"source": f"{line} {tones[i][0]}", "target": tones[i][1]} for line, _, i in lines],
    )
    write(
        tmp_path / "wlp" / "train.jsonl.gz",
        [{"source": line, "target": f"{verb} [Action] {i} s [Time]"} for line, verb, i in lines],
    )
    variants = (Variant(0.0, 1), DEFAULT, Variant(0.0, 0))
    monkeypatch.setattr(sparse_targets, "VARIANTS", variants)
    work = tmp_path / "work"
    setups = [Setup(smaller(plan), tmp_path, work) for plan in (SST2, WLP)]
    measure(setups, seeds=1, jobs=1, threads=1)
    printed = capsys.readouterr().out
    made = {file: file.stat().st_mtime_ns for file in work.rglob("*") if file.is_file()}
    assert sum(file.parent.name == "cells" for file in made) == 2 * len(variants) * 2
    for plan in ("## sst2", "## wlp"):
        section = printed[printed.index(plan) :]
        for table in ("| kept |", "| logits stored as |", "| learnt from |"):
            assert section.count(table) >= 1
    assert printed.count("(default)") == 2 * 2
    measure(setups, seeds=1, jobs=1, threads=1)
    again = capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in work.rglob("*") if file.is_file()} == made
    assert again.count("0 students") == 2 * len(variants)
    assert (
        again[again.index("| learnt from |") :].splitlines()[:5]
        == printed[printed.index("| learnt from |") :].splitlines()[:5]
    )
