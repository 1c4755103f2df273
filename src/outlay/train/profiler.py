"""Seconds of a training or teacher pass by part, and the share of the machine's speed that it reached."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

_PEAK_SECONDS = 0.3
_LEAST_SIZE, _PEAK_SIZE = 256, 2048
_N_PRODUCTS = 3


@dataclass
class Profiler:
    """A profiler that adds up seconds by part; a CUDA device is asked for its own time, once, at the end.

    Parts of a training: ``data``, the loop's wait for its batches, ``forward``, ``loss``, ``backward``, ``optimiser``, ``eval``,
    the evaluations on dev, and ``checkpoint``. Of a teacher pass: ``load``, reading its weights, ``data``, tokenising, ``speak``,
    its answers, and ``keep``, writing the largest logits.

    ``seconds``: by part, complete after `stop`; ``wall_seconds``: from the first part begun to `stop`.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seconds: dict[str, float] = field(default_factory=dict)
    wall_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._rest: dict[str, str] = {}
        self._began: float | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as ``name``. A part inside a part counts twice, so none should be."""
        if self._began is None:
            self._began = time.perf_counter()
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            yield
            last.record()
            self._events.append((name, first, last))
            return
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    @contextmanager
    def rest(self, name: str, *, without: str) -> Iterator[None]:
        """Count the time inside as ``name``, less all that is counted as ``without``, which must lie inside."""
        with self.part(name):
            yield
        self._rest[name] = without

    def add(self, name: str, seconds: float) -> None:
        """Count ``seconds`` more as ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def stop(self) -> None:
        """Wait for the device and read its clock."""
        if self._events:
            torch.cuda.synchronize(self.device)
        for name, first, last in self._events:
            self.add(name, first.elapsed_time(last) / 1000)
        self._events.clear()
        for name, without in self._rest.items():
            self.add(name, -self.seconds.get(without, 0.0))
        self._rest.clear()
        if self._began is not None:
            self.wall_seconds = time.perf_counter() - self._began

    @contextmanager
    def forward_of(self, model: nn.Module) -> Iterator[None]:
        """Count every outermost call of ``model``, or of its encoder alone, as ``forward`` inside this context."""
        open_parts: list[AbstractContextManager[None]] = []

        def before(*_: object) -> None:
            open_parts.append(nullcontext() if open_parts else self.part("forward"))
            open_parts[-1].__enter__()

        def after(*_: object) -> None:
            open_parts.pop().__exit__(None, None, None)

        encoder: Any = getattr(model, "get_encoder", lambda: None)()
        modules: list[nn.Module] = [model, *([] if encoder is None else [encoder])]
        hooks = [module.register_forward_pre_hook(before) for module in modules]
        hooks += [module.register_forward_hook(after) for module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def part(profiler: Profiler | None, name: str) -> AbstractContextManager[None]:
    """Return `Profiler.part`, or nothing without a profiler."""
    return nullcontext() if profiler is None else profiler.part(name)


def matmul_rate(device: torch.device, precision: str) -> float:
    """Measure the FLOP/s of a product of square matrices, in bf16 unless ``precision`` is ``fp32``; takes 0.3 s.

    As a linear layer has it, whose kernels are not those of ``a @ b`` where a CPU has no bf16 of its own. Of sizes that double
    up to 2,048 as long as there is time. The peak that model-FLOPs utilisation is a share of, where no data sheet has it.
    """
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    best, size, began = 0.0, _LEAST_SIZE, time.perf_counter()
    with torch.inference_mode():
        while True:
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            for _ in range(_N_PRODUCTS):
                profiler = Profiler(device)
                with profiler.part("product"):
                    linear(a, b)
                profiler.stop()
                took = profiler.seconds["product"]
                best = max(best, 2 * size**3 / took)
                # The next product takes as long, and one of twice the size eight times.
                left = _PEAK_SECONDS - (time.perf_counter() - began)
                if left < took:
                    return best
            size = 2 * size if size < _PEAK_SIZE and 8 * took < left else size
