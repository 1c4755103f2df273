"""Seeds that are a function of where something happens, not of what came before."""

from __future__ import annotations

import hashlib


def step_seed(seed: int, step: int) -> int:
    """The generator seed of one step: what it draws does not depend on the steps before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:8], "big") >> 1
