"""Frozen vectors: each text is encoded once by each encoder, whatever run, seed or budget asks for it.

A vector is a function of the encoder, the number of threads and the text's own tokens: batches hold texts of one length, without
padding. So the rows of one run are found again by any other. Vectors lie in blocks on disk, as tokens do
(`outlay.models.token_cache.TokenStore`: written whole or not at all, checked by digest when read, the least recently used removed
first); a block that is damaged counts as not there. Nothing lies on disk until `keep_in` names a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from outlay.models.token_cache import CachedTokens, TokenStore
from outlay.models.tokenization import Encoded, Rows

BLOCK_ROWS = 1024
"""Texts of a block on disk."""
BATCH_ROWS = 32
"""Texts of one length that are encoded together at most."""
BATCH_TOKENS = 4096
MAX_BYTES = 8 * 2**30
FORMAT = 1
_KEY_BYTES = 16

Compute = Callable[[Rows], NDArray[np.float32]]
"""Rows of one length -> their vectors, float32 ``[rows, width]``."""


class VectorCache:
    """Vectors of one encoder, by the tokens of a text.

    ``identity``: all that decides a vector beside the tokens, as JSON values; ``folder``: where blocks lie, ``None`` = nowhere.
    """

    def __init__(self, identity: Mapping[str, Any], folder: Path | None) -> None:
        about = {"format": FORMAT, "torch": torch.__version__, **identity}
        self._id = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        self._store = None if folder is None else TokenStore(folder, MAX_BYTES, 0)
        self._known: dict[bytes, NDArray[np.float32]] = {}
        self._unsaved: dict[bytes, NDArray[np.float32]] = {}
        self._read_blocks: set[str] = set()

    def vectors(self, encoded: Encoded, rows: Rows, compute: Compute) -> NDArray[np.float32]:
        """Return the vectors of some rows, float32 ``[rows, width]``; new ones are computed in batches of one length."""
        found = self.ragged(encoded, rows, compute)
        return np.stack(found) if found else np.zeros((0, 0), dtype=np.float32)

    def ragged(self, encoded: Encoded, rows: Rows, compute: Compute) -> list[NDArray[np.float32]]:
        """Return the values of some rows, float32 ``[width]`` each, which may have as many as they have tokens."""
        keys = [self._key(encoded, int(row)) for row in rows]
        if any(key not in self._known for key in keys):
            self._read()
        missing = {key: int(row) for key, row in zip(keys, rows, strict=True) if key not in self._known}
        for batch in _batches(missing, encoded.lengths):
            found = compute(np.array([row for _, row in batch], dtype=np.int64))
            for (key, _), vector in zip(batch, found, strict=True):
                self._known[key] = self._unsaved[key] = vector
            if len(self._unsaved) >= BLOCK_ROWS:
                self.flush()
        return [self._known[key] for key in keys]

    def flush(self) -> None:
        """Write the vectors that are not on disk yet."""
        if self._store is None or not self._unsaved:
            return
        keys = sorted(self._unsaved)
        arrays = {
            "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES),
            "vectors": np.concatenate([self._unsaved[key] for key in keys]),
            "offsets": np.cumsum([0, *(len(self._unsaved[key]) for key in keys)], dtype=np.int64),
        }
        name = f"{self._id}-{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}"
        self._store.write(name, CachedTokens(arrays, {"rows": len(keys)}))
        self._read_blocks.add(name)
        self._unsaved.clear()

    def _read(self) -> None:
        """Read the blocks on disk that were not read before: another process may have written some."""
        if self._store is None:
            return
        for path in sorted(self._store.folder.glob(f"{self._id}-*.safetensors")):
            if path.stem in self._read_blocks:
                continue
            block = self._store.read(path.stem)
            self._read_blocks.add(path.stem)
            if block is not None:
                keys, offsets = [row.tobytes() for row in block.arrays["keys"]], block.arrays["offsets"]
                vectors = np.split(block.arrays["vectors"], offsets[1:-1])
                self._known.update(zip(keys, vectors, strict=True))

    @staticmethod
    def _key(encoded: Encoded, row: int) -> bytes:
        start, stop = encoded.offsets[row], encoded.offsets[row + 1]
        digest = hashlib.sha256(np.ascontiguousarray(encoded.ids[start:stop], dtype=np.int32).tobytes())
        digest.update(np.ascontiguousarray(encoded.type_ids[start:stop], dtype=np.int32).tobytes())
        return digest.digest()[:_KEY_BYTES]


def _batches(missing: Mapping[bytes, int], lengths: NDArray[np.int64]) -> list[list[tuple[bytes, int]]]:
    """Cut texts into batches of one length, the longest first."""
    of_length: dict[int, list[tuple[bytes, int]]] = {}
    for key, row in missing.items():
        of_length.setdefault(int(lengths[row]), []).append((key, row))
    batches = []
    for length in sorted(of_length, reverse=True):
        n = max(1, min(BATCH_ROWS, BATCH_TOKENS // max(1, length)))
        texts = of_length[length]
        batches += [texts[start : start + n] for start in range(0, len(texts), n)]
    return batches


_folder: Path | None = None
_caches: dict[str, VectorCache] = {}
"""Caches of this process by identity and folder, the one used last at the end."""
_MOST_CACHES = 4


def keep_in(folder: Path | None) -> None:
    """Keep vectors in a folder from here on, or no longer; of this process alone."""
    global _folder
    _folder = folder


def cache_of(identity: Mapping[str, Any], folder: Path | None = None) -> VectorCache:
    """Return the cache of an encoder; ``folder``: in place of none where `keep_in` named none."""
    place = _folder or folder
    at = json.dumps([dict(identity), str(place)], sort_keys=True)
    cache = _caches.pop(at, None) or VectorCache(identity, place)
    while len(_caches) >= _MOST_CACHES:
        _caches.pop(next(iter(_caches)))
    _caches[at] = cache
    return cache
