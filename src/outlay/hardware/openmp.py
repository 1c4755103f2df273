"""The way OpenMP's threads wait for one another: spinning for a moment, then asleep, unless the user has chosen."""

from __future__ import annotations

from collections.abc import Mapping

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""The variables that OpenMP reads about it; a user who sets one of them has chosen."""

SPIN_COUNT = 10_000
"""Turns of libgomp's waiting loop before a thread sleeps. Measured with `bench/threads.py`: sleeping at once costs a machine
that does nothing else a seventh of its speed, spinning for 100,000 turns a shared one two thirds."""


def waiting_variables(given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add to an environment before OpenMP is loaded in it.

    A thread that spins keeps a core from whoever else wants it: where more threads want cores than there are, the one that all
    wait for does not get one. torch's wheels bring GNU's libgomp, in which ``GOMP_SPINCOUNT`` decides; other OpenMP libraries
    read ``OMP_WAIT_POLICY``.
    """
    if any(name in given for name in WAITING):
        return {}
    return {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPIN_COUNT)}
