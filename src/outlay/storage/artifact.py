"""An artifact and its manifest: the request's key, the digests of its files, the usage of making it.

A manifest carries a seal, the key of all the rest of it, so that a changed byte in it is seen as one in a file is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.errors import ArtifactDamaged, StoreError
from outlay.storage.hashing import digest_of, key_of

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Artifact:
    """The files that one request produced, and their manifest.

    ``key``: of the request; ``kind``: what it is (``labels``, ``model``, ``targets``, ...); ``path``: its folder, where
    its files lie once `Store.get` has returned it (after `Store.about` alone they may still be at the store's URL only);
    ``digest``: sha256 over names and digests of all files; ``files``: sha256 by file name; ``meta``: the request;
    ``usage``: what it took, deterministic (flops, tokens, labels); ``circumstance``: how it went this time (machine,
    threads, versions, wall seconds, run, cash).
    """

    key: str
    kind: str
    path: Path
    digest: str
    files: Mapping[str, str]
    meta: Mapping[str, Any]
    usage: Mapping[str, Any]
    circumstance: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """Return the path of a file of this artifact.

        Raises:
            StoreError: it has no such file.
        """
        if name not in self.files:
            raise StoreError(
                f"artifact {self.key[:12]} ({self.kind}) has no file {name!r}; it has {', '.join(self.files)}"
            )
        return self.path / name

    def read_bytes(self, name: str) -> bytes:
        """Return the bytes of a file, checked once more against its digest.

        Raises:
            ArtifactDamaged: they do not match.
            StoreError: the file is not here; `Store.about` looks an artifact up, `Store.get` brings its files.
        """
        try:
            data = self.file(name).read_bytes()
        except FileNotFoundError as error:
            raise StoreError(f"{self.path / name} is not here; ask the store for {self.key[:12]} again") from error
        if digest_of(data) != self.files[name]:
            raise ArtifactDamaged(
                f"{self.path / name} does not match its sha256; run the command again to make it anew"
            )
        return data

    @property
    def n_bytes(self) -> int:
        """Size of its files and manifest on disk."""
        return sum((self.path / name).stat().st_size for name in (*self.files, MANIFEST))


def manifest_bytes(key: str, files: Mapping[str, str], about: Mapping[str, Any]) -> bytes:
    """Return the sealed manifest of a key; ``files``: sha256 by name; ``about``: kind, meta, usage, circumstance."""
    manifest = {"format": FORMAT, "key": key, "digest": key_of(files), "files": dict(files), **about}
    return json.dumps({**manifest, "seal": key_of(manifest)}, indent=1, ensure_ascii=False).encode()


def read_manifest(folder: Path) -> Artifact:
    """Return the artifact that a folder's manifest describes.

    Raises:
        ArtifactDamaged: the manifest is missing, unreadable, changed, or of another key.
        StoreError: a good manifest of a later version of `outlay`.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactDamaged(f"{path} cannot be read ({type(error).__name__})") from error
    return parse_manifest(data, folder, str(path))


def parse_manifest(data: bytes, folder: Path, source: str) -> Artifact:
    """Return the artifact of the key ``folder.name`` that the bytes of a manifest describe; ``source`` names them in
    errors.

    Raises:
        ArtifactDamaged: they are unreadable, changed, or of another key.
        StoreError: a good manifest of a later version of `outlay`.
    """
    try:
        manifest = json.loads(data)
        if manifest.pop("seal") != key_of(manifest) or manifest["key"] != folder.name:
            raise ArtifactDamaged(f"{source} was changed after it was written")
        version = manifest.pop("format")
        if version == FORMAT:
            return Artifact(path=folder, **manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactDamaged(f"{source} cannot be read ({type(error).__name__})") from error
    raise StoreError(f"{source} has format {version}, and this version of outlay reads {FORMAT}; upgrade outlay")
