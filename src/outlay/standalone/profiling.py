"""`--profile`: seconds of a step by part, and utilisation of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlay.train.profiler import Profiler


def new_profiler(wanted: bool) -> Profiler | None:
    """Return a profiler for this process's device, ``None`` where none is wanted."""
    if not wanted:
        return None
    from outlay.train.distributed import current_process
    from outlay.train.profiler import Profiler

    return Profiler(current_process().device)


def seconds_of(profiler: Profiler | None) -> dict[str, float]:
    """Stop a profiler and return its seconds by part, the rest as ``other``; nothing without a profiler."""
    if profiler is None:
        return {}
    profiler.stop()
    rest = max(0.0, profiler.wall_seconds - sum(profiler.seconds.values()))
    return {name: round(seconds, 4) for name, seconds in {**profiler.seconds, "other": rest}.items()}


def profile_of_parts(pieces: Sequence[Mapping[str, float]], flops: int | None, precision: str) -> dict[str, Any]:
    """Return the profile of one or several pieces of work: seconds by part, FLOPs, utilisation.

    ``flops``: of the model, by `outlay.models.shape`, ``None`` where they are not known or not all were profiled;
    ``peak_flops_per_second``: what a plain matrix product reaches here in ``precision``, measured at once; ``utilisation``: model
    FLOPs per second as a share of that peak, ``None`` where it is unknown, with the reason in ``why``.
    """
    from outlay.train.distributed import current_process
    from outlay.train.profiler import matmul_rate

    seconds: dict[str, float] = {}
    for piece in pieces:
        for name, value in piece.items():
            seconds[name] = round(seconds.get(name, 0.0) + value, 4)
    total, peak = sum(seconds.values()), matmul_rate(current_process().device, precision)
    why = _why_unknown(flops, total, peak, all(pieces))
    return {
        "seconds": seconds,
        "total_seconds": round(total, 4),
        "flops": flops,
        "precision": precision,
        "peak_flops_per_second": round(peak),
        "utilisation": round((flops or 0) / total / peak, 4) if why is None else None,
        "why": why,
    }


def _why_unknown(flops: int | None, seconds: float, peak: float, was_all_seen: bool) -> str | None:
    if flops is None or not was_all_seen or seconds <= 0:
        return "the FLOPs of this model, or of what an earlier attempt did, are not known"
    if flops > seconds * peak:
        rate = f"{flops / seconds / 1e9:,.3g} GFLOP/s"
        return (
            f"the work went at {rate}, faster than the matrix product it is compared with, which did not have the cores"
        )
    return None
