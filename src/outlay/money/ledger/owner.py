"""Owners of leases: processes, identified by more than their numbers, which are reused."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: its host (with boot and process namespace, where the system names them), number and start time."""

    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Owner:
        """Return the current process."""
        return _of_process(os.getpid())

    def is_dead(self) -> bool:
        """Return whether this process is known to have ended; False where that cannot be known, as on another host."""
        if self.host != _host() or os.name != "posix":
            return False
        if Path("/proc/self/stat").exists():
            return _started(self.pid) != self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


@lru_cache(maxsize=1)
def _of_process(pid: int) -> Owner:
    """Return the current process as an owner; cached by its number, since a fork has another."""
    return Owner(_host(), pid, _started(pid) or "")


def _host() -> str:
    """Return host name, boot and process namespace: a number identifies a process only where all three are the same."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:  # no /proc: the name alone must do
        pass
    return "/".join(parts)


def _started(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot (proc(5), field 22); None where it ended or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = stat[stat.rindex(")") + 2 :].split()
    return None if state in ("Z", "X", "x") else rest[18]
