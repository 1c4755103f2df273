"""Where artifacts are kept: a folder, or a URL with a folder on this machine for its copies."""

from __future__ import annotations

import os
from pathlib import Path

from outlay.canonical import digest_of


def is_url(location: str | Path) -> bool:
    """Whether a store is kept at a URL (``s3://bucket/prefix``) and not in a folder."""
    return isinstance(location, str) and "://" in location


def local_root(location: str | Path) -> Path:
    """The folder of a store on this machine: itself, or where the local copy of a URL lies: one folder for each URL, in
    ``OUTLAY_CACHE``, else in ``outlay`` below the user's cache."""
    if not is_url(location):
        return Path(location)
    return _cache() / f"remote-{digest_of(str(location).encode())[:16]}"


def default_location() -> str:
    """Where artifacts are kept unless ``--store`` says so: ``OUTLAY_STORE`` (a folder or a URL), else below the user's cache."""
    return os.environ.get("OUTLAY_STORE") or str(_cache() / "store")


def default_root() -> Path:
    """The folder on this machine of `default_location`."""
    return local_root(default_location())


def _cache() -> Path:
    below = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("OUTLAY_CACHE") or below / "outlay")
