"""Systems that outlay is tested on, and what does not work on others. Standard library only: read before an installation."""

from __future__ import annotations

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
MACHINES = ("x86_64", "aarch64")
"""What Linux calls x86-64 and arm64."""


def unsupported(system: str) -> str | None:
    """Say in one line why nothing works on such a system (`sys.platform`); ``None`` where something does."""
    if system.startswith(("linux", "darwin")):
        return None
    return f"outlay does not work on {system}: its locks and workers are those of Linux; on Windows use WSL 2"


def untested(system: str, machine: str, python: tuple[int, int]) -> str | None:
    """Say in one line what is untested, or works less well, there; ``None`` on Linux on x86-64 and arm64, Python 3.11 to 3.13."""
    if system == "darwin":
        return "macOS is untested: workers share all cores there, and may outlive a run that is killed"
    if machine not in MACHINES:
        return f"{machine} is untested: outlay is tested on x86-64 and arm64, and torch may have no build for another"
    if not OLDEST_PYTHON <= python <= NEWEST_PYTHON:
        tested = " to ".join(f"{major}.{minor}" for major, minor in (OLDEST_PYTHON, NEWEST_PYTHON))
        return f"Python {python[0]}.{python[1]} is untested: outlay is tested on {tested}"
    return None
