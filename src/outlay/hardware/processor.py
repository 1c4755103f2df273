"""Name and flags of the processor."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def cpu_name(cpuinfo: Path = CPU_INFO) -> str:
    """Return the processor's model name; of an ARM core, which has none, its implementer and part numbers."""
    facts = _facts(cpuinfo)
    if "model name" in facts:
        return facts["model name"]
    numbers = [facts[name] for name in ("CPU implementer", "CPU part") if name in facts]
    return " ".join((platform.machine(), *numbers)) if numbers else platform.processor() or platform.machine()


def cpu_flags(asked: Iterable[str]) -> list[str]:
    """Return those of the flags that the processor has; a hypervisor may hide some."""
    facts = _facts(CPU_INFO)
    there = set((facts.get("flags") or facts.get("Features") or "").split())
    return [name for name in asked if name in there]


def _facts(cpuinfo: Path) -> dict[str, str]:
    """Return the fields of the first core."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
