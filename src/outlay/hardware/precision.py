"""Resolve ``precision: auto`` to bf16 or fp32 by how fast this machine multiplies matrices in each.

Flags do not tell: a CPU with AVX512-BF16 may multiply in bf16 at half of float32's speed, one without at a fiftieth. So a
product is measured once per machine and the answer is kept in ``bf16/speed.json`` of the user's cache, by processor, torch
version and the limits that the environment sets on instructions. Two processes of a machine on the border never disagree.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from outlay.errors import StoreError, UsageError
from outlay.hardware.processor import cpu_flags, cpu_name
from outlay.storage.files import write_text
from outlay.storage.locations import cache_folder
from outlay.storage.locks import acquire, release

AUTO, BF16, FP32 = "auto", "bf16", "fp32"
RUN_PRECISIONS = (AUTO, BF16, FP32)
"""Precisions that a whole run may be given; a role's training setting may also be ``bf16_weights``."""
OTHER = {BF16: FP32, FP32: BF16}

LEAST_SPEEDUP = 1.2
"""bf16 is taken where it is at least so many times as fast as float32."""
TOO_SLOW = 5.0
"""A worker refuses a precision that is more than so many times slower there than its own."""
VARIABLE = "OUTLAY_PRECISION"
"""Environment variable that says what ``auto`` means here, in place of a measurement."""
LIMITS = ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Environment variables that keep oneDNN and torch from a CPU's newer instructions."""

FOLDER, FILE = "bf16", "speed.json"
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx_ne_convert", "asimd", "sve", "i8mm", "bf16")
"""CPU flags that tell apart machines of one model name: a hypervisor may hide some."""


@dataclass(frozen=True, slots=True)
class Bf16Speed:
    """Measured speed of bf16 on a machine, relative to float32.

    ``ratio``: its speed in bf16 as a multiple of that in float32; ``None`` where ``OUTLAY_PRECISION`` chose.
    """

    device: str
    ratio: float | None
    chosen: str | None = None

    @property
    def precision(self) -> str:
        """``bf16`` where it is at least `LEAST_SPEEDUP` times as fast, else ``fp32``."""
        if self.chosen is not None:
            return self.chosen
        return BF16 if (self.ratio or 0.0) >= LEAST_SPEEDUP else FP32

    def slowdown(self, precision: str) -> float:
        """Return how many times slower this machine is in ``precision`` than in the other one; 1: not known."""
        if self.ratio is None:
            return 1.0
        ratio = max(self.ratio, 1e-9)
        return ratio if precision == FP32 else 1 / ratio

    def reason(self) -> str:
        """Return the reason why ``auto`` resolves as it does here."""
        if self.ratio is None:
            return f"as {VARIABLE} says"
        return f"bf16 is {ratio_words(self.ratio)} times as fast on {self.device}"


def ratio_words(ratio: float) -> str:
    """Format a ratio with two digits that count: ``0.023``, ``0.52``, ``2.1``."""
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def precision_name(precision: str) -> str:
    """Name a precision for people: ``float32`` for ``fp32``."""
    return "float32" if precision == FP32 else precision


def resolve(asked: str) -> str:
    """Return ``bf16`` or ``fp32``: as asked, or as this machine is fast where ``auto`` was asked.

    Raises:
        UsageError: none of `RUN_PRECISIONS`.
    """
    check_asked(asked)
    return bf16_speed().precision if asked == AUTO else asked


def check_asked(precision: str, name: str = "--precision") -> None:
    """Refuse what is none of `RUN_PRECISIONS`.

    Raises:
        UsageError: it is not.
    """
    if precision not in RUN_PRECISIONS:
        raise UsageError(f"{name} is {precision!r}; it must be auto, bf16 or fp32")


def remarks(wanted: Iterable[str]) -> list[str]:
    """Say in a line that ``auto`` means float32 here, and in another that bf16 is slow here where it was asked for by name."""
    named = set(wanted) - {FP32}
    own = bf16_speed() if named else None
    if own is None or own.ratio is None:
        return []
    lines = [f"{precision_name(FP32)}: {own.reason()}"] if AUTO in named and own.precision == FP32 else []
    slow = sorted(named - {AUTO}) if own.slowdown(BF16) > TOO_SLOW else []
    return [*lines, *(f"{name} as asked, though {own.reason()}" for name in slow)]


def without_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Drop ``precision: auto``: that of the run holds."""
    return {name: value for name, value in settings.items() if (name, value) != ("precision", AUTO)}


def bf16_speed() -> Bf16Speed:
    """Return the kept measurement of this machine, or measure it in at most 0.3 s and keep it.

    Where the cache cannot be written, the measurement holds for this process.

    Raises:
        UsageError: ``OUTLAY_PRECISION`` is neither bf16 nor fp32.
    """
    found = kept_bf16_speed()
    if found is not None:
        return found
    key, folder, lock = _key(), cache_folder() / FOLDER, None
    with suppress(OSError):
        lock = acquire(folder, None, 0.05)
    try:
        # Another process may have measured while this one waited.
        if lock is not None and (found := _read(folder, key)) is not None:
            return found
        from outlay.hardware.bf16 import measure_bf16_ratio

        found = _measured[key] = Bf16Speed(_device(), measure_bf16_ratio())
        if lock is not None:
            with suppress(StoreError):
                _write(folder, key, found)
        return found
    finally:
        if lock is not None:
            release(lock, folder, remove=False)


def kept_bf16_speed() -> Bf16Speed | None:
    """Return the known speed of this machine without measuring; torch is imported only where there may be a GPU.

    Raises:
        UsageError: ``OUTLAY_PRECISION`` is neither bf16 nor fp32.
    """
    chosen = os.environ.get(VARIABLE) or AUTO
    check_asked(chosen, VARIABLE)
    if chosen != AUTO:
        return Bf16Speed(_device(), None, chosen)
    key = _key()
    return _measured[key] if key in _measured else _read(cache_folder() / FOLDER, key)


def keep_bf16_speed(ratio: float) -> Bf16Speed:
    """Keep a ratio for this machine in place of what was kept.

    Raises:
        OSError: the folder cannot be locked.
        StoreError: the file cannot be written.
    """
    folder, found = cache_folder() / FOLDER, Bf16Speed(_device(), ratio)
    lock = acquire(folder, None, 0.05)
    try:
        _write(folder, _key(), found)
    finally:
        release(lock, folder, remove=False)
    _measured.pop(_key(), None)
    return found


def check_worker(wanted: str) -> None:
    """Compare the precision of a job with what this machine would choose; where they differ, say so once on standard error.

    Raises:
        UsageError: the job's precision is more than `TOO_SLOW` times slower here.
    """
    own = bf16_speed()
    if own.precision == wanted:
        return
    planned, here = precision_name(wanted), precision_name(own.precision)
    line = f"the job computes in {planned}, and this machine would choose {here} ({own.reason()})"
    if own.slowdown(wanted) > TOO_SLOW:
        raise UsageError(f"{line}; leave {platform.node()} out, or ask for --precision {own.precision}")
    if line not in _told:
        _told.add(line)
        print(f"outlay: {line}", file=sys.stderr, flush=True)


_told: set[str] = set()
_measured: dict[str, Bf16Speed] = {}
"""Ratios measured in this process, by key."""


def _key() -> str:
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)]
    return ", ".join((_device(), *cpu_flags(_FLAGS), f"torch {version('torch')}", *limits))


def _read(folder: Path, key: str) -> Bf16Speed | None:
    """Return the kept measurement; nothing where the file is absent or damaged."""
    try:
        ratio = json.loads((folder / FILE).read_text(encoding="utf-8"))[key]["ratio"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Bf16Speed(_device(), float(ratio)) if isinstance(ratio, int | float) and ratio >= 0 else None


def _write(folder: Path, key: str, found: Bf16Speed) -> None:
    import datetime

    path = folder / FILE
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        kept = kept if isinstance(kept, dict) else {}
    except (OSError, ValueError):
        kept = {}
    kept[key] = {"ratio": found.ratio, "measured": datetime.date.today().isoformat()}
    write_text(path, json.dumps(kept, indent=1) + "\n")


def _device() -> str:
    """Return the GPU that torch would take, else the processor."""
    if _may_have_gpu():
        from outlay.hardware.bf16 import gpu_name

        if (name := gpu_name()) is not None:
            return name
    return cpu_name()


def _may_have_gpu() -> bool:
    if version("torch").endswith("+cpu") or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path(place).exists() for place in ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/kfd", "/dev/dxg"))
