"""Make idle OpenMP threads sleep rather than spin, unless the user has chosen."""

from __future__ import annotations

from collections.abc import Mapping

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables of OpenMP that decide how threads wait; a user who sets one of them has chosen."""


def waiting_variables(given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add to an environment before OpenMP is loaded in it.

    A thread that spins keeps a core from other threads: where more threads want cores than there are, the one that all
    wait for does not get one (`bench/threads.py`). torch's wheels bring GNU's libgomp, which reads this when it is loaded.
    """
    return {} if any(name in given for name in WAITING) else {"OMP_WAIT_POLICY": "PASSIVE"}
