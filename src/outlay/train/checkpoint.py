"""Checkpoints and models on disk: finding them, and saying clearly that there is no room; standard library only."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outlay.errors import DiskFull


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below ``folder``, or ``None``; half-written ones end in ``.tmp``."""
    whole = [path for path in folder.glob("step-*") if path.suffix != ".tmp"]
    return max(whole, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def checkpoint_state(checkpoint: Path) -> dict[str, Any]:
    """What was kept beside the tensors: ``progress`` and ``gauge``."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


@contextmanager
def clear_when_full(folder: Path) -> Iterator[None]:
    """Turn a full disk into one clear line, whoever noticed it: Python, or safetensors in an exception of its own.

    Raises:
        DiskFull: no room left while writing below ``folder``.
    """
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)
        if not full:
            raise
        raise DiskFull(
            f"no room left on the device of {folder}; free some (`outlay store gc`) and run again to go on"
        ) from error
