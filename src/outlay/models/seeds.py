"""Seeds that depend on the place where they are used, not on what was drawn before."""

from __future__ import annotations

import hashlib


def step_seed(seed: int, step: int) -> int:
    """Return the generator seed of one step: what it draws does not depend on the steps before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:8], "big") >> 1
