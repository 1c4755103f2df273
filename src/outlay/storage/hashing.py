"""Canonical JSON, and the keys and digests made from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from outlay.errors import StoreError


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, Unicode as it is, floats in their shortest exact
    form.

    Tuples are written as lists. 1, 1.0 and true stay apart.

    Raises:
        StoreError: anything else than None, bool, int, finite float, str, list, tuple or a mapping with str keys.
    """
    text = json.dumps(_plain(value, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise StoreError(
            f"no key for a text with half a surrogate pair at {error.start}; decode it properly"
        ) from error
    return text


def key_of(value: object) -> str:
    """Return the sha256, in hex, of the canonical JSON of a request.

    Raises:
        StoreError: as `canonical_json`.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_of(data: bytes) -> str:
    """Return the sha256, in hex, of bytes."""
    return hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the sha256, in hex, of a file's bytes, read piece by piece.

    Raises:
        OSError: no such file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: object, at: str) -> object:
    # Exact types: a subclass (an enum, a numpy float) may print otherwise tomorrow, and a key must not move with it.
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float) and type(value) is float:
        if not math.isfinite(value):
            raise StoreError(f"no key for {value} at {at or 'the top'}; only finite numbers have one")
        return value
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return [_plain(item, f"{at}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if type(name) is not str:
                raise StoreError(f"no key for a mapping with the name {name!r} at {at or 'the top'}; names must be str")
        return {name: _plain(item, f"{at}.{name}") for name, item in value.items()}
    raise StoreError(
        f"no key for a {type(value).__name__} at {at or 'the top'}; use None, bool, int, float, str, list or dict"
    )
