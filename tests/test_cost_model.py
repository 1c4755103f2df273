"""The dollar figures of Kang et al. 2023, Table 6, from FLOPs, tokens of real texts and three constants."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from outlay.models.shape import shape_of_size
from outlay.models.sizes import find_size

BENCH = Path(__file__).parent.parent / "bench" / "cost_model.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cost_model", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cost_model"] = module
    spec.loader.exec_module(module)
    return module


def test_each_half_counts_its_own_tokens(bench: ModuleType) -> None:
    shape = shape_of_size(find_size("t5-v1_1-xxl"))
    # 24 layers of 4 maps of 4096 x 64 x 64 and three of 4096 x 10240; a decoder layer has 4 maps more; the head 32128 rows.
    encoder = 24 * (4 * 4096**2 + 3 * 4096 * 10240)
    decoder = 24 * (8 * 4096**2 + 3 * 4096 * 10240) + 4096 * 32128
    assert bench.flops_per_row(shape, 17, 0, halves=True) == 2 * 17 * encoder
    assert bench.flops_per_row(shape, 0, 19, halves=True) == 2 * 19 * decoder
    assert bench.flops_per_row(shape, 17, 19, halves=False) == 36 * (encoder + decoder)


def test_padding_is_to_the_longest_of_a_batch(bench: ModuleType) -> None:
    assert bench.padded(np.array([3] * 31 + [7]), 32) == 7
    # The expected largest of two different ones of three: (2 + 5 + 5) / 3.
    assert bench.padded(np.array([1, 2, 5]), 2) == pytest.approx(4, abs=0.04)


def test_dollars_of_table_6(bench: ModuleType) -> None:
    assert bench.published_usd().tolist() == [67.5, 60, 22.5, 37.5, 45, 30, 435, 225, 78, 123, 163, 86]


@pytest.mark.integration
@pytest.mark.skipif("OUTLAY_DATA" not in os.environ, reason="no public data sets: OUTLAY_DATA=DIR make test-slow")
def test_three_constants_explain_table_6(bench: ModuleType) -> None:
    tasks, usd = [bench.counted(task) for task in bench.TASKS], bench.published_usd()
    fit = bench.fit_table6(bench.CHOSEN, tasks, usd)
    assert len(fit.constants) == 3
    assert (fit.constants > 0).all()
    assert fit.median <= 0.20
    assert fit.worst <= 0.45
    # What they stand for is possible: below the peak, and updates no faster than an A40's memory (696 GB/s) moves 28 bytes.
    assert (1 / fit.constants[:2] / bench.PEAK < 1).all()
    assert fit.constants[2] > 28 / 696e9
    assert np.median(bench.held_out_errors(tasks, usd)) <= 0.20
