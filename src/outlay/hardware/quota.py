"""Cores and memory that this process may use: the quota of its container, not the size of the host.

cgroup v2: ``cpu.max`` and ``memory.max`` of the process's group and of every group above it. cgroup v1: ``cpu.cfs_quota_us``
over ``cpu.cfs_period_us`` and ``memory.limit_in_bytes`` likewise (Linux kernel, Documentation/admin-guide/cgroup-v1 and
cgroup-v2.rst).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

BYTES_PER_TEST_WORKER = 1_500_000_000
"""Memory that one worker of the test suite takes with torch, transformers and small models loaded."""
_V1_NO_LIMIT = 2**60
"""cgroup v1 writes a number near 2**63 where there is no limit."""


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores this process may keep busy, at least 1: those it may run on, cut to the quota of its control groups.

    A quota of 2.5 cores counts as 2: a third thread would wait half of the time. ``root``: where ``proc`` and ``sys`` lie.
    """
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    n_cores = len(core_numbers()) or os.cpu_count() or 1
    return max(1, int(min([n_cores, *quotas])))


def usable_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory this process may use: the least of the machine's and its groups'; ``None``: unknown."""
    limits = [limit for folder in _groups(root, "memory") if (limit := _memory_limit(folder)) is not None]
    if (there := _n_bytes_there(root)) is not None:
        limits.append(there)
    return min(limits, default=None)


def suite_workers(most: int = 4, root: Path = Path("/")) -> int:
    """Return how many test processes to run at once: one a core and 1.5 GB, and ``most`` at most."""
    memory = usable_memory(root)
    by_memory = most if memory is None else memory // BYTES_PER_TEST_WORKER
    return max(1, min(most, usable_cores(root), by_memory))


def core_numbers() -> tuple[int, ...]:
    """Return the numbers of the cores this process may run on; none on systems that do not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the process's group and of all above it, for a controller of v1 or for the one tree of v2.

    In a container the path of the group may be the host's, which is not there: the mounted root is the container's own then.
    """
    mounts = list(_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        for place, within in (mount[1:] for mount in mounts if mount[0] == ("" if not names else controller)):
            below = _below(path, within)
            own = place / below
            own = own if own.is_dir() else place
            yield own
            yield from (above for above in own.parents if above == place or place in above.parents)


def _mounts(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield controller (``""`` for v2), mount point, and the group that is mounted there."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        within, place = fields[3], root / fields[4].lstrip("/")
        if kinds[0] == "cgroup2":
            yield "", place, within
        elif kinds[0] == "cgroup":
            yield from ((name, place, within) for name in kinds[2].split(","))


def _below(path: str, within: str) -> str:
    """Return a group's path as it is seen below a mount of ``within``."""
    if within not in ("", "/") and (path + "/").startswith(within.rstrip("/") + "/"):
        path = path[len(within.rstrip("/")) :]
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return "/".join(parts)


def _cpu_quota(folder: Path) -> float | None:
    if (line := _first(folder / "cpu.max")) is not None:
        quota, _, period = line.partition(" ")
        return _ratio(quota, period or "100000")
    quota_v1, period_v1 = _first(folder / "cpu.cfs_quota_us"), _first(folder / "cpu.cfs_period_us")
    return None if quota_v1 is None or period_v1 is None else _ratio(quota_v1, period_v1)


def _ratio(quota: str, period: str) -> float | None:
    """Return quota / period; ``None`` for ``max`` (v2), -1 (v1), and anything that is no number."""
    try:
        found = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return found if found > 0 else None


def _memory_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (line := _first(folder / name)) is not None and line.isdigit():
            return int(line) if 0 < int(line) < _V1_NO_LIMIT else None
    return None


def _n_bytes_there(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _first(path: Path) -> str | None:
    return next(iter(_lines(path)), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
