"""`--profile`: where a step's time went, and how much of the machine it used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlay.train.stopwatch import Stopwatch


def new_stopwatch(wanted: bool) -> Stopwatch | None:
    """A stopwatch for this process's device, where one is wanted."""
    if not wanted:
        return None
    from outlay.train.place import here
    from outlay.train.stopwatch import Stopwatch

    return Stopwatch(here().device)


def profile_of(stopwatch: Stopwatch, flops: int | None, precision: str) -> dict[str, Any]:
    """What a stopped stopwatch has seen, for people and machines.

    ``seconds``: by part, the rest as ``other``; ``flops``: of the model, by `outlay.shape`; ``peak_flops_per_second``: what a plain
    matrix product reaches here, measured now; ``utilisation``: model FLOPs per wall second as a share of that peak.
    """
    from outlay.train.stopwatch import matmul_rate

    wall = stopwatch.wall_seconds
    seconds = {**stopwatch.seconds, "other": max(0.0, wall - sum(stopwatch.seconds.values()))}
    peak = matmul_rate(stopwatch.device, precision)
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "wall_seconds": round(wall, 4),
        "flops": flops,
        "peak_flops_per_second": round(peak),
        "utilisation": None if flops is None or wall == 0 else round(flops / wall / peak, 4),
    }
