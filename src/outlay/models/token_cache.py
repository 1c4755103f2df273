"""Token cache on disk: texts are tokenised once by each tokenizer, and read back as memory-mapped files.

One safetensors file per request, named by its key: the sha256 of the tokenizer, the libraries, the texts and the limits. The
arrays of a file that is found are views of its pages; nothing is copied. A file that is damaged, or stands under another's name,
counts as not there. Nothing is kept until `keep_in` names a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = 1
MIN_ROWS = 2000
"""Rows below which tokenising is faster than a file."""

MAX_BYTES = 2 * 2**30

_STALE_SECONDS = 3600.0
"""Age of a temporary file that only a killed process can have left."""


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """Content of a cache file: ``arrays`` of any integer type, and ``counts`` by name."""

    arrays: Mapping[str, NDArray[Any]]
    counts: Mapping[str, int]

    @property
    def digest(self) -> str:
        """Sha256 over names, types, shapes, bytes and counts."""
        digest = hashlib.sha256(json.dumps(sorted(self.counts.items())).encode())
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class TokenStore:
    """A folder of tokenised texts.

    ``max_bytes``: what was not used for longest is removed beyond it; ``min_rows``: fewer are not kept.
    """

    folder: Path
    max_bytes: int = MAX_BYTES
    min_rows: int = MIN_ROWS

    def read(self, key: str) -> CachedTokens | None:
        """Return the arrays of a key, mapped into memory; ``None`` where there are none, or none that can be trusted."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                about: dict[str, str] = file.metadata() or {}
                arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
            kept = CachedTokens(arrays, json.loads(about["counts"]))
            if about["key"] != key or about["sha256"] != kept.digest:
                return None
            os.utime(path)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None
        return kept

    def write(self, key: str, kept: CachedTokens) -> None:
        """Write a file, whole or not at all; where there is no room, nothing is kept."""
        new = self.folder / f"{key}.{os.getpid()}.tmp"
        about = {"key": key, "counts": json.dumps(dict(kept.counts)), "sha256": kept.digest}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A copy of what is not contiguous or cannot be written to: torch shares an array's memory.
            tensors = {
                name: torch.from_numpy(np.require(array, None, ["C", "W"])) for name, array in kept.arrays.items()
            }
            save_file(tensors, new, metadata=about)
            new.replace(self._path(key))
            self._make_room(self._path(key))
        except (OSError, SafetensorError):
            with suppress(OSError):
                new.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _make_room(self, newest: Path) -> None:
        """Remove the least recently used files; a process that has one mapped keeps its pages."""
        found = []
        for path in self.folder.iterdir():
            with suppress(OSError):  # another process may remove it, too
                about = path.stat()
                if path.suffix == ".safetensors" and path != newest:
                    found.append((about.st_mtime_ns, about.st_size, path))
                elif path.suffix == ".tmp" and time.time() - about.st_mtime > _STALE_SECONDS:
                    path.unlink()
        room = self.max_bytes - newest.stat().st_size
        for _, size, path in sorted(found, reverse=True):
            room -= size
            if room < 0:
                path.unlink(missing_ok=True)


_store: TokenStore | None = None


def keep_in(folder: Path | None, *, max_bytes: int = MAX_BYTES, min_rows: int = MIN_ROWS) -> None:
    """Keep tokens in a folder from here on, or no longer; of this process alone."""
    global _store
    _store = None if folder is None else TokenStore(folder, max_bytes, min_rows)


def key_of(tokenizer: Any, how: str, texts: Sequence[tuple[str, ...]]) -> str | None:
    """Return the key of texts read by a tokenizer; ``how``: limits, and whatever else decides what comes out.

    ``None`` where they are not kept: too few, no folder, or a tokenizer that cannot say what it is (one without a backend of
    the `tokenizers` library).
    """
    if _store is None or len(texts) < _store.min_rows or not getattr(tokenizer, "is_fast", False):
        return None
    digest = hashlib.sha256()
    for part in (f"{FORMAT}", _identity(tokenizer), how):
        _add(digest, [part])
    for row in texts:
        _add(digest, row)
    return digest.hexdigest()


def read(key: str | None) -> CachedTokens | None:
    """Return the cached arrays of a key of `key_of`."""
    return None if _store is None or key is None else _store.read(key)


def write(key: str | None, arrays: Mapping[str, NDArray[Any]], counts: Mapping[str, int]) -> None:
    """Keep it under a key of `key_of`."""
    if _store is not None and key is not None:
        _store.write(key, CachedTokens(arrays, counts))


def _identity(tokenizer: Any) -> str:
    """Return an identity of a fast tokenizer: all that decides how it reads a text, but for the limits of a call."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # The last call's.
    for name in ("truncation", "padding"):
        backend.pop(name, None)
    about = {
        "backend": backend,
        "class": type(tokenizer).__qualname__,
        "pad": tokenizer.pad_token_id,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "sides": [tokenizer.truncation_side, tokenizer.padding_side],
        "split": bool(getattr(tokenizer, "split_special_tokens", False)),
        "versions": [tokenizers.__version__, transformers.__version__],
    }
    return json.dumps(about, sort_keys=True)


def _add(digest: Any, texts: Iterable[str]) -> None:
    """Hash a list of texts, so that no other list gives the same digest."""
    coded = [text.encode("utf-8", "surrogatepass") for text in texts]
    digest.update(len(coded).to_bytes(8, "little"))
    for text in coded:
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
