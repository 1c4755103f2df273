"""Launch of one step as several processes: the same command, started again by torch's launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from outlay.errors import UsageError

_OURS = "OUTLAY_LAUNCHED"


def is_ours() -> bool:
    """Return whether `relaunch` started this process, whose parent then reports an interruption."""
    return _OURS in os.environ


def needs_launch(n_asked: int | None) -> bool:
    """Return whether the command must be started again as several processes.

    Raises:
        UsageError: less than one process, or another number than a launcher has started already.
    """
    if n_asked is None:
        return False
    if n_asked < 1:
        raise UsageError(f"--processes is {n_asked}; it must be at least 1")
    # Our launcher, torchrun and `accelerate launch` set both.
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        n_there = int(os.environ["WORLD_SIZE"])
        if n_there != n_asked:
            raise UsageError(f"--processes is {n_asked}, and a launcher has started {n_there}; leave --processes out")
        return False
    return n_asked > 1


def relaunch(n_processes: int, arguments: Sequence[str], n_threads: int) -> int:
    """Run ``outlay`` with these arguments as several processes of this machine, and return the exit code.

    Ctrl-C reaches every process directly; `KeyboardInterrupt` is raised here once all have ended.
    """
    launcher = [sys.executable, "-m", "outlay.train.launch", "--standalone", f"--nproc-per-node={n_processes}"]
    # Without a number of threads the launcher chooses one, and prints a warning.
    environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads), _OURS: "1"}
    process = subprocess.Popen([*launcher, "-m", "outlay", *arguments], env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
