"""Find a training's checkpoints on disk; standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint below ``folder``, or ``None``; half-written ones end in ``.tmp``."""
    whole = [path for path in folder.glob("step-*") if path.suffix != ".tmp"]
    return max(whole, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def checkpoint_state(checkpoint: Path) -> dict[str, Any]:
    """Return the state kept beside a checkpoint's tensors: ``progress`` and ``gauge``."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state
