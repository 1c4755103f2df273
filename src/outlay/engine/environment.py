"""The environment of a run: machine, threads, precision and library versions, which may differ between runs of one request."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version

from outlay.hardware.precision import kept_bf16_speed
from outlay.hardware.processor import cpu_name
from outlay.hardware.quota import usable_cores


def environment(threads: int | None, precision: str | None = None) -> dict[str, str | int | float | None]:
    """Return machine, threads, precision and library versions; results are equal byte for byte within one environment only.

    ``bf16_ratio``: speed of the machine in bf16 as a multiple of its speed in float32; ``None`` where it was not measured.
    """
    known = kept_bf16_speed()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpu": cpu_name(),
        "n_cores": usable_cores(),
        "threads": threads,
        "precision": precision,
        "bf16_ratio": None if known is None else known.ratio,
        "torch": _version("torch"),
        "transformers": _version("transformers"),
    }


_version = cache(version)
"""Cached, since the version is read from the files of the installed package."""
