"""Places of a store: a folder, or a URL with a folder on this machine for its copies."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

from outlay.errors import UsageError
from outlay.storage.hashing import digest_of
from outlay.storage.paths import NO_HOME, expand, expand_path, home

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def is_url(location: str | Path) -> bool:
    """Return whether a store is kept at a URL (``s3://bucket/prefix``) and not in a folder."""
    return isinstance(location, str) and "://" in location


def local_root(location: str | Path) -> Path:
    """Return the folder of a store on this machine: itself, or where the local copy of a URL lies: one folder for
    each URL, in ``OUTLAY_CACHE``, else in ``outlay`` below the user's cache.

    Raises:
        UsageError: a ``~`` that cannot be expanded.
    """
    if isinstance(location, Path):
        return location
    if not is_url(location):
        return expand_path(location)
    return cache_folder() / f"remote-{digest_of(location.encode())[:16]}"


def default_location() -> str:
    """Return the place of the store without ``--store``: ``OUTLAY_STORE`` (a folder or a URL), else below the user's
    cache.

    Raises:
        UsageError: a ``~`` that cannot be expanded.
    """
    return expand(os.environ.get("OUTLAY_STORE", "")) or str(cache_folder() / "store")


def default_root() -> Path:
    """Return the folder on this machine of `default_location`."""
    return local_root(default_location())


def parse_bytes(text: str) -> int:
    """Read a size in bytes, such as ``500M``, ``20G`` or ``1000000``.

    Raises:
        UsageError: not a size.
    """
    number, unit = text.strip().rstrip("bB"), ""
    if number and number[-1].lower() in _UNITS:
        number, unit = number[:-1], number[-1].lower()
    try:
        size = int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a size; write it like 500M or 20G") from None
    if size <= 0:
        raise UsageError(f"the size is {text!r}; it must be above 0")
    return size


def stand_in_note(location: str | Path | None) -> str | None:
    """Say where things are kept when there is no cache of the user's, in one line; ``None`` where nothing is out of the way.

    Args:
        location: of a store as the user named it; ``None`` = the default one.
    """
    if os.environ.get("OUTLAY_CACHE") or not (location is None or is_url(location)):
        return None
    named = os.environ.get("OUTLAY_STORE")
    if location is None and named and not is_url(named):
        return None
    usual = _usual_cache()
    if usual is not None and _is_writable(usual):
        return None
    why = "there is no home folder" if usual is None else f"{usual} cannot be written"
    return f"{why}: what is made is kept in {_fallback_cache()}; OUTLAY_STORE or --store names another place"


def settle_caches() -> None:
    """Name a place for the caches of libraries, and a user, where they would look for a home folder and find none."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid{os.getuid()}")
    usual = _usual_cache()
    if home() is None and NO_HOME not in os.environ:
        # Some ask for it as they are imported.
        os.environ |= {NO_HOME: "1", "HOME": str(_fallback_cache())}
    if usual is None or not _is_writable(usual):
        for name, below in _LIBRARY_CACHES.items():
            # Models that somebody laid there before it was sealed are still to be found.
            if usual is None or not (usual.parent / below).is_dir():
                os.environ.setdefault(name, str(cache_folder() / below))


_LIBRARY_CACHES = {
    "HF_HOME": "huggingface",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""Variables that set where the libraries of a step keep the files they make or fetch."""


def cache_folder() -> Path:
    """Return ``OUTLAY_CACHE``; else a folder below the user's cache, or a stand-in where that cannot be written."""
    if named := os.environ.get("OUTLAY_CACHE"):
        return expand_path(named)
    usual = _usual_cache()
    return usual if usual is not None and _is_writable(usual) else _fallback_cache()


def _usual_cache() -> Path | None:
    if below := os.environ.get("XDG_CACHE_HOME"):
        return expand_path(below) / "outlay"
    user = home()
    return None if user is None else user / ".cache" / "outlay"


def _fallback_cache() -> Path:
    """Return a folder beside the results, which outlives a restart; else one among the temporary files."""
    here = Path("outlay-runs/cache").absolute()
    return here if _is_writable(here) else Path(tempfile.gettempdir()) / f"outlay-{os.getuid()}"


def _is_writable(folder: Path) -> bool:
    """Return whether files can be made in it. Where it is not there yet this is tried: permissions alone do not say it."""
    if folder.is_dir():
        return os.access(folder, os.W_OK | os.X_OK)
    above = next((each for each in folder.parents if os.path.lexists(each)), folder)
    try:
        Path(tempfile.mkdtemp(prefix=".outlay-", dir=above)).rmdir()
    except OSError:
        return False
    return not os.path.lexists(folder)
