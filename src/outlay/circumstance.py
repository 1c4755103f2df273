"""Where a step was made: what may differ between two runs of the same request."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version


def environment(threads: int | None) -> dict[str, str | int | float | None]:
    """Machine class, threads and library versions: equal bytes are promised within one such environment only."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "n_cores": os.cpu_count(),
        "threads": threads,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
