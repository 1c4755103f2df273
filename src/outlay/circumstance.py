"""Where a step was made: what may differ between two runs of the same request."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import version


def environment(threads: int | None) -> dict[str, str | int | float | None]:
    """Machine class, threads and library versions: equal bytes are promised within one such environment only."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "n_cores": os.cpu_count(),
        "threads": threads,
        "torch": _version("torch"),
        "transformers": _version("transformers"),
    }


_version = cache(version)
"""Read from the installed package's files, once."""
