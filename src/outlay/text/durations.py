"""Durations in words, as coarse as an estimate of them is."""

from __future__ import annotations

SECONDS_PER_MINUTE, SECONDS_PER_HOUR, SECONDS_PER_DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """Return an estimated duration: ``"some seconds"``, ``"about 40 s"``, ``"about 4 min"``, ``"about 2.5 h"``."""
    if seconds < 10:
        return "some seconds"
    if seconds < 57.5:
        return f"about {5 * round(seconds / 5)} s"
    if seconds < 89.5 * SECONDS_PER_MINUTE:
        return f"about {round(seconds / SECONDS_PER_MINUTE)} min"
    hours = seconds / SECONDS_PER_HOUR
    if hours < 47.5:
        return f"about {f'{hours:.1f}'.removesuffix('.0') if hours < 9.95 else f'{hours:.0f}'} h"
    return f"about {seconds / SECONDS_PER_DAY:,.0f} days"


def time_left(seconds: float) -> str:
    """Return an estimate of the time that is left, such as ``"about 4 min left"``."""
    return f"{duration(max(0.0, seconds))} left"
