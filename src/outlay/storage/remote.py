"""A store at a URL, shared by all machines, with a local folder as cache and workspace.

Any file system that fsspec knows will do: ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``file:///mnt/shared``. ::

    URL/objects/<key[:2]>/<key>/manifest.json      written last, so that a reader never meets half an artifact
    URL/objects/<key[:2]>/<key>/<digest>/<file>    the files that a manifest of this digest names

Files lie under the digest of their artifact, so writers of one key whose bytes differ do not mix theirs: whichever manifest
stays names files of its own. Locks, workspaces and checkpoints are local; processes on different machines that make the
same key at the same time both make it, and the first to finish is kept.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from outlay.errors import ArtifactDamaged, OutlayError, StoreError, first_line
from outlay.storage import locks
from outlay.storage.artifact import MANIFEST, Artifact, parse_manifest
from outlay.storage.files import NO_ROOM
from outlay.storage.hashing import key_of
from outlay.storage.locations import default_location, is_url, local_root, parse_bytes
from outlay.storage.paths import expand_path
from outlay.storage.store import USED, GcReport, Store, is_plain_name

UNSENT = ".unsent"
"""Marks a local artifact that is not known to be whole at the URL."""

_logger = logging.getLogger(__name__)
_MAX_REASON = 200


class RemoteStore(Store):
    """A store at a URL, behind a local folder that any number of processes on this machine share.

    `put` is that of `Store` and keeps the artifact locally with a mark; `get`, with which it ends, sends what is marked. So
    a failed or killed upload is made up for by the next `get` or `put` of its key. `list`, `find` and `disk_bytes` are
    of the local folder alone. ``cache``: that folder; unless named, one of this URL below the user's cache. ``quota_bytes``
    limits it, not the URL.

    Every method that reaches the URL raises `StoreError` where it cannot be reached, read or written.
    """

    _marks = (USED, UNSENT)

    def __init__(self, url: str, cache: Path | None = None, *, quota_bytes: int | None = None) -> None:
        if urlsplit(url).password is not None:
            raise StoreError("the address of a store holds a password; give credentials by the environment instead")
        self.url = re.sub(r"(?<=[^:/])/+$", "", url)
        super().__init__(cache if cache is not None else local_root(self.url), quota_bytes=quota_bytes)

    @property
    def location(self) -> str:
        """The URL."""
        return self.url

    def about(self, key: str) -> Artifact | None:
        """Return the manifest of a key, or None; nothing is fetched: ``path`` is where `get` would put the files.

        That the files are at the URL and good is for `get` to find out. An artifact that waits to be sent goes on waiting.
        """
        artifact = super().get(key, verify=False)
        if artifact is None and (found := self._manifest_at_url(key)) is not None:
            return self._parse_manifest(key, found)
        return artifact

    def check(self, key: str) -> Artifact | None:
        """See `Store.check`: files in the local folder are verified, those at the URL are for `get` to verify."""
        artifact = super().get(key)
        if artifact is None:
            return self.about(key)
        return self.get(key) if (artifact.path / UNSENT).exists() else artifact

    def get(self, key: str, *, verify: bool = True) -> Artifact | None:
        """Return the artifact of a key with all its files in the local folder, fetched from the URL if need be; or None.

        What is fetched is verified against its manifest, always; ``verify`` is about what is here. An artifact that is
        damaged at the URL (other bytes, files missing) is warned of and counts as missing: the next `put` replaces it.
        """
        artifact = super().get(key, verify=verify)
        if artifact is None:
            found = self._manifest_at_url(key)
            if found is None:
                return None
            with self._moving(key):
                return super().get(key, verify=verify) or self._fetch(key, found)
        if not (artifact.path / UNSENT).exists():
            return artifact
        with self._moving(key):
            if (artifact.path / UNSENT).exists():
                self._send(artifact)
        return super().get(key, verify=verify)

    def gc(
        self,
        keep: Callable[[Artifact], bool] | None = None,
        *,
        older_than_seconds: float | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> GcReport:
        """Free disk in the local folder, as `Store.gc` does; the URL keeps all. What was not sent yet stays here too."""
        if keep is None and older_than_seconds is None and max_bytes is None:
            return super().gc(dry_run=dry_run)

        def kept(artifact: Artifact) -> bool:
            return (artifact.path / UNSENT).exists() or (keep is not None and keep(artifact))

        return super().gc(kept, older_than_seconds=older_than_seconds, max_bytes=max_bytes, dry_run=dry_run)

    def _manifest_at_url(self, key: str) -> bytes | None:
        """Return the manifest of a key at the URL as it stands, None where there is none."""
        with self._clear_errors("read"):
            system, path = self._at_url(key, MANIFEST)
            try:
                data: bytes = system.cat_file(path)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return None
        return data

    def _parse_manifest(self, key: str, found: bytes) -> Artifact | None:
        """Return the artifact of a manifest at the URL; None, and a warning, where it is damaged."""
        source = f"{self.url}: the manifest of {key[:12]}"
        try:
            artifact = parse_manifest(found, self._folder(key), source)
            if artifact.digest != key_of(artifact.files) or not all(map(is_plain_name, artifact.files)):
                raise ArtifactDamaged(f"{source} names no files of an artifact")
        except ArtifactDamaged as error:
            _logger.warning("%s; counted as missing", error)
            return None
        return artifact

    def _fetch(self, key: str, found: bytes) -> Artifact | None:
        """Bring what a manifest at the URL describes, in place of what is here; None where it is damaged."""
        artifact = self._parse_manifest(key, found)
        if artifact is None:
            return None
        with self._device_errors(), self._writing() as temporary:
            try:
                self._download(artifact, temporary)
            except ArtifactDamaged as error:
                _logger.warning("%s: %s; counted as missing", self.url, error)
                return None
            (temporary / USED).touch()
            (temporary / MANIFEST).write_bytes(found)
            if artifact.path.exists():
                self._remove(artifact.path)
            self._rename_into_place(temporary, artifact.path)
        return super().get(key, verify=False)

    def _download(self, artifact: Artifact, folder: Path) -> None:
        with self._clear_errors("read"):
            system, base = self._at_url(artifact.key, artifact.digest)
            try:
                if self.quota_bytes is not None:
                    self._check_quota(sum(system.size(f"{base}/{name}") for name in artifact.files))
                for name in artifact.files:
                    system.get_file(f"{base}/{name}", str(folder / name))
            except FileNotFoundError as error:
                lacking = f"{artifact.key[:12]} ({artifact.kind}) lacks files that its manifest names"
                raise ArtifactDamaged(lacking) from error
        self._verify(replace(artifact, path=folder))

    def _send(self, artifact: Artifact) -> None:
        """Upload an artifact, its manifest last. A good one that is at the URL by then takes its place here instead."""
        key, seen = artifact.key, self._manifest_at_url(artifact.key)
        if seen is not None and self._fetch(key, seen) is not None:
            return
        for name in artifact.files:
            self._upload(artifact, name, artifact.digest, name)
        latest = self._manifest_at_url(key)
        if latest not in (None, seen) and self._fetch(key, latest) is not None:
            return  # another machine was faster
        self._upload(artifact, MANIFEST, MANIFEST)
        with self._device_errors():
            (artifact.path / UNSENT).unlink()

    def _upload(self, artifact: Artifact, name: str, *parts: str) -> None:
        with self._clear_errors(
            "write", f"; what was made is kept in {self.root}, and the same command sends it again"
        ):
            system, path = self._at_url(artifact.key, *parts)
            system.put_file(str(artifact.path / name), path)

    def _at_url(self, key: str, *parts: str) -> tuple[Any, str]:
        """Return the file system of the URL, and a path on it. fsspec keeps one per process, so forked workers are safe."""
        # Object stores have no folders, and making one there could make a bucket; the others but this one make parents
        # by themselves.
        options = {"auto_mkdir": True} if self.url.startswith(("file://", "local://")) else {}
        system, base = _fsspec().core.url_to_fs(self.url, **options)
        return system, "/".join((base.rstrip("/"), "objects", key[:2], key, *parts))

    @contextmanager
    def _moving(self, key: str) -> Iterator[None]:
        """Lock the files of a key for one process of this machine at a time."""
        folder = self.root / "moving" / key
        with self._device_errors():
            lock = locks.acquire(folder)
        try:
            yield
        finally:
            locks.release(lock, folder, remove=True)

    @contextmanager
    def _clear_errors(self, verb: str, consequence: str = "") -> Iterator[None]:
        """Turn errors of a file system or its network into one line; a full local disk is left to `_device_errors`."""
        try:
            yield
        except OutlayError:
            raise
        except Exception as error:
            if verb == "read" and isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            raise StoreError(f"cannot {verb} the store at {self.url}: {_reason(error)}{consequence}") from error


def open_location(location: str | Path, *, quota_bytes: int | None = None) -> Store:
    """Return the store of a `Store.location`: a folder, or a URL with its local cache.

    Raises:
        StoreError: a URL that holds a password, or a quota below 0.
    """
    if is_url(location):
        return RemoteStore(str(location), quota_bytes=quota_bytes)
    return Store(location if isinstance(location, Path) else expand_path(location), quota_bytes=quota_bytes)


def open_named(location: str | Path | None) -> Store:
    """Open the store that a user names, else that of ``OUTLAY_STORE``, else the one in the user's cache.

    ``OUTLAY_STORE_QUOTA`` limits what it takes on this machine.

    Raises:
        UsageError: a quota that is no size, or a ``~`` that cannot be expanded.
        StoreError: a URL that holds a password.
    """
    quota = os.environ.get("OUTLAY_STORE_QUOTA")
    return open_location(location or default_location(), quota_bytes=parse_bytes(quota) if quota else None)


def _fsspec() -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise StoreError("a store at a URL needs fsspec; pip install 'outlay[remote]', or name a folder") from error
    return fsspec


def _code(error: BaseException) -> str | None:
    """Return the code that a server gave, such as ``NoSuchBucket``; s3fs keeps it in the cause of its errors."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _reason(error: Exception) -> str:
    """Return the reason of an error in one line, with its way out."""
    if isinstance(error, ImportError):
        return f"{error}; pip install 'outlay[remote]' brings s3fs, for Amazon S3 and what speaks like it"
    said = first_line(error)[:_MAX_REASON].rstrip(". ")
    code = _code(error)
    said = f"{said} ({code})" if code and code not in said else said
    if code == "NoSuchBucket":
        return f"{said}; make the bucket, or check the address"
    if isinstance(error, PermissionError) or "credential" in said.lower():
        return f"{said}; check the credentials (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
    return f"{said}; check the address, the credentials and the network"
