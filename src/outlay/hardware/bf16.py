"""Measure the speed of bf16 matrix products on this machine, as a multiple of float32's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch.nn.functional import linear

N_WARM, N_REPEATS = 2, 5
"""Interleaved pairs of products before they count, and that count."""
CLEARLY_SLOW = 1 / 3
"""Below this ratio a small product is enough."""
SMALL = (192, 192, 192)
WIDE = (256, 384, 1536)
"""Rows, inputs and outputs of a product on a CPU: a layer of MiniLM's width over 256 tokens, some milliseconds."""
ON_GPU = (4096, 4096, 4096)


def measure_bf16_ratio() -> float:
    """Return the speed of bf16 products as a multiple of float32's, on the GPU where torch has one; takes at most 0.3 s.

    The second lowest of `N_REPEATS` interleaved ratios: what all but one of the repeats reach. On a CPU one thread is timed
    by its own processor time: every core has the same units, and neither waiting for a core nor for other threads counts,
    so that a busy machine gives the answer of an idle one.
    """
    with torch.inference_mode():
        if torch.cuda.is_available():
            return _gpu_ratio()
        with _one_thread():
            ratio = max(islice(_ratios(SMALL, "cpu", time.thread_time), 2))
            return ratio if ratio < CLEARLY_SLOW else _second_lowest(_ratios(WIDE, "cpu", time.thread_time))


def gpu_name() -> str | None:
    """Return the name of the GPU that torch takes; ``None`` where it has none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _gpu_ratio() -> float:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return 0.0
    return _second_lowest(_ratios(ON_GPU, "cuda", _gpu_clock))


def _gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _second_lowest(ratios: Iterator[float]) -> float:
    return sorted(islice(ratios, N_WARM, N_WARM + N_REPEATS))[1]


def _ratios(shape: tuple[int, int, int], device: str, clock: Callable[[], float]) -> Iterator[float]:
    """Yield the speed of one product in bf16 as a multiple of float32's: ``[rows, inputs]`` by ``[outputs, inputs]``."""
    rows, inputs, outputs = shape
    x, weight = torch.ones(rows, inputs, device=device), torch.ones(outputs, inputs, device=device)
    pairs = (x, weight), (x.bfloat16(), weight.bfloat16())
    while True:
        seconds = []
        for pair in pairs:
            began = clock()
            linear(*pair)
            seconds.append(clock() - began)
        yield seconds[0] / max(seconds[1], 1e-9)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
