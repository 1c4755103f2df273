"""Content-addressed artifacts on disk: ask by key, verify by digest.

The *key* hashes what was asked (the canonical JSON of a request), the *digest* hashes the bytes that came. ::

    root/
    ├── FORMAT                     the number of this layout (`outlay.storage.migrations`)
    ├── objects/<key[:2]>/<key>/   one artifact: its files, manifest.json, and `used` (its time is that of the last use)
    ├── making/<key>/              `lock` (held while the key is made) and `work/` (checkpoints that outlive a crash)
    ├── tmp/                       artifacts being written, and a lock that their writers share
    └── damaged/                   artifacts whose bytes no longer match, moved aside

An artifact is written to ``tmp``, synced file by file, its manifest last, and renamed into place: it is there whole or
not at all. Locks are the operating system's (`flock`), so a killed process leaves none behind. POSIX, local disks.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.errors import ArtifactDamaged, DiskFull, QuotaExceeded, StoreError
from outlay.storage import locks
from outlay.storage.artifact import MANIFEST, Artifact, manifest_bytes, read_manifest
from outlay.storage.files import NO_ROOM, sync_folder, tree_bytes
from outlay.storage.hashing import canonical_json, digest_of, digest_of_file, key_of
from outlay.storage.migrations import FORMAT_FILE, MIGRATIONS, StoreMigration, migrate, write_format
from outlay.storage.paths import command_line

__all__ = ["Artifact", "GcReport", "Store", "Workspace", "canonical_json", "digest_of", "is_plain_name", "key_of"]

Artifacts = list[Artifact]  # inside `Store`, `list` is a method
_State = tuple[int, int, int]
USED = "used"

_logger = logging.getLogger(__name__)
_KEY = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Workspace:
    """A key held by this process alone while its artifact is made.

    ``path``: a folder for checkpoints that outlives a crash; ``found``: the artifact, where another process made it in
    the meantime (then there is nothing left to do).
    """

    key: str
    path: Path
    found: Artifact | None

    def clear(self) -> None:
        """Remove the checkpoints, once the artifact is put."""
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class GcReport:
    """Artifacts that `Store.gc` removed, or would remove, and all bytes that it freed with them."""

    removed: tuple[Artifact, ...]
    freed_bytes: int


class Store:
    """A folder of artifacts, shared by any number of processes on one machine.

    ``quota_bytes`` limits everything under ``root``; writers that race may pass it by what they have in hand.
    """

    migrations: Sequence[StoreMigration] = MIGRATIONS
    _marks: tuple[str, ...] = (USED,)  # empty files that `put` leaves beside those of an artifact

    def __init__(self, root: Path, *, quota_bytes: int | None = None) -> None:
        if quota_bytes is not None and quota_bytes < 0:
            raise StoreError(f"a disk quota of {quota_bytes} bytes; it must be 0 or more")
        self.root = Path(root)
        self.quota_bytes = quota_bytes
        self._verified: dict[Path, tuple[_State, str]] = {}
        self._manifests: dict[Path, tuple[_State, Artifact]] = {}
        self._is_migrated = False

    @property
    def location(self) -> str:
        """Return what `outlay.storage.remote.open_location` opens this store by: the path of its folder, or its URL."""
        return str(self.root.resolve())

    def about(self, key: str) -> Artifact | None:
        """Return the manifest of a key (usage, circumstance, digests), or None; its files are neither read nor fetched.

        Raises:
            StoreError: not a key, or an artifact of a later version.
        """
        return self.get(key, verify=False)

    def holds(self, key: str) -> bool:
        """Return whether an artifact of a key lies in the folder; nothing is read, verified or fetched, nor is it a use."""
        return (self.root / "objects" / key[:2] / key / MANIFEST).exists()

    def has_checkpoints(self, key: str) -> bool:
        """Return whether checkpoints of a key, whose artifact is not made yet, lie in the folder."""
        return (self.root / "making" / key / "work" / "checkpoints").exists()

    def check(self, key: str) -> Artifact | None:
        """Return the artifact of a key if it is there, its files verified if they lie here; what is kept elsewhere is
        not fetched.

        Raises:
            StoreError: not a key, or an artifact of a later version.
        """
        return self.get(key)

    def get(self, key: str, *, verify: bool = True) -> Artifact | None:
        """Return the artifact of a key, or None. A use: what was used least recently is collected first.

        A damaged artifact is moved to ``damaged/``, a warning is logged, and it counts as missing. Without ``verify``
        only its manifest is checked. A file is read once per process while its size, time and inode stay as they are.

        Raises:
            StoreError: not a key, or an artifact of a later version.
        """
        folder = self._folder(key)
        try:
            artifact = self._read_twice(folder, verify)
        except ArtifactDamaged as error:
            self._move_aside(folder, str(error))
            return None
        if artifact is None:
            return None
        with suppress(OSError):  # a store on a read-only disk is still worth reading
            os.utime(folder / USED)
        return artifact

    def put(
        self,
        key: str,
        kind: str,
        files: Mapping[str, bytes | Path],
        *,
        meta: Mapping[str, Any],
        usage: Mapping[str, Any],
        circumstance: Mapping[str, Any],
    ) -> Artifact:
        """Keep what a request brought. A good artifact that is already there wins, and is returned.

        ``files``: bytes, or a file to copy, by plain name.

        Raises:
            StoreError: not a key, a name that is not plain, or mappings without canonical JSON.
            QuotaExceeded: it would not fit; nothing is written.
            DiskFull: no room on the device; what was written is removed.
        """
        for name in files:
            if not is_plain_name(name):
                raise StoreError(
                    f"{name!r} is no name for a file of an artifact; use letters, digits, '.', '_' and '-'"
                )
        about = {"kind": kind, "meta": meta, "usage": usage, "circumstance": circumstance}
        canonical_json(about)
        if (existing := self.get(key)) is not None:
            return existing
        self._check_quota(sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in files.values()))
        with self._device_errors(), self._writing() as temporary:
            digests = {name: _write(temporary / name, content) for name, content in sorted(files.items())}
            for mark in self._marks:
                _write(temporary / mark, b"")
            _write(temporary / MANIFEST, manifest_bytes(key, digests, about))
            sync_folder(temporary)
            self._rename_into_place(temporary, self._folder(key))
        artifact = self.get(key)
        if artifact is None:
            raise ArtifactDamaged(f"artifact {key[:12]} ({kind}) was written but does not read back; check the disk")
        return artifact

    @contextmanager
    def making(
        self, key: str, *, on_wait: Callable[[str], None] | None = None, poll_seconds: float = 0.1
    ) -> Iterator[Workspace]:
        """Make a key alone: other processes (and threads) that ask for it wait here, and then find the artifact.

        ``on_wait`` is told who is making it, once. The lock ends with the process, however it ends; the workspace
        stays, so that the next one goes on from its checkpoints.

        Raises:
            StoreError: not a key, or a store that cannot be written.
        """
        self._folder(key)
        with self._device_errors():
            folder = self.root / "making" / key
            self._keep_format()
            lock = locks.acquire(folder, on_wait, poll_seconds)
        work = folder / "work"
        try:
            with self._device_errors():
                work.mkdir(exist_ok=True)
            yield Workspace(key, work, self.get(key))
        finally:
            with suppress(OSError):  # only an empty workspace goes
                work.rmdir()
            locks.release(lock, folder, remove=not work.exists())

    def list(self) -> Artifacts:
        """Every artifact with a good manifest, by key; file contents are not read."""
        self._migrate()
        found = []
        for folder in sorted(self.root.glob("objects/??/*")):
            try:
                artifact = self._read(folder)
            except ArtifactDamaged as error:
                _logger.warning("%s", error)
                continue
            if artifact is not None:
                found.append(artifact)
        return found

    def find(self, kind: str, where: Mapping[str, Any] | None = None) -> Artifacts:
        """Return artifacts of a kind whose ``meta`` holds every pair of ``where``, by key; their files are not read."""
        pairs = dict(where or {}).items()
        return [a for a in self.list() if a.kind == kind and all(n in a.meta and a.meta[n] == v for n, v in pairs)]

    def disk_bytes(self) -> int:
        """Return the bytes of all files under the root, work in progress included."""
        return tree_bytes(self.root)

    def gc(
        self,
        keep: Callable[[Artifact], bool] | None = None,
        *,
        older_than_seconds: float | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> GcReport:
        """Free disk: what was used least recently goes first.

        An artifact goes if ``keep`` does not hold it and it was last used longer ago than ``older_than_seconds``, or
        the store is still above ``max_bytes``; with neither limit, whatever ``keep`` does not hold (nothing without
        ``keep``). A key that is being made is never touched. Damaged artifacts, leftovers of killed writers and, by the
        same age, abandoned workspaces go too.
        """
        self._migrate()
        total = self.disk_bytes()
        freed = self._gc_leftovers(dry_run)
        if older_than_seconds is not None:
            freed += self._gc_workspaces(older_than_seconds, dry_run)
        removed = []
        unwanted = keep is not None and older_than_seconds is None and max_bytes is None
        for artifact in sorted(self.list(), key=_used_at):
            too_old = older_than_seconds is not None and time.time() - _used_at(artifact) > older_than_seconds
            too_much = max_bytes is not None and total - freed > max_bytes
            if (keep is not None and keep(artifact)) or not (too_old or too_much or unwanted):
                continue
            with self._unless_making(artifact.key) as free:
                if free:
                    removed.append(artifact)
                    freed += artifact.n_bytes
                    if not dry_run:
                        self._remove(artifact.path)
        return GcReport(tuple(removed), freed)

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise StoreError(f"{key[:80]!r} is not a key; keys are 64 hexadecimal digits from key_of()")
        self._migrate()
        return self.root / "objects" / key[:2] / key

    def _migrate(self) -> None:
        if not self._is_migrated:
            with self._device_errors():
                migrate(self.root, self.migrations)
            self._is_migrated = True

    def _keep_format(self) -> None:
        if not (self.root / FORMAT_FILE).exists():
            self._is_migrated = False  # since the last look, a program of before may have put something here
            self._migrate()
            write_format(self.root, len(self.migrations))

    def _read_twice(self, folder: Path, verify: bool) -> Artifact | None:
        # Other processes rename artifacts into and out of place at any moment: one that looks damaged because it came or
        # went meanwhile is whole, or gone, at the second look.
        with suppress(ArtifactDamaged):
            return self._read(folder, verify=verify)
        return self._read(folder, verify=verify)

    def _read(self, folder: Path, *, verify: bool = False) -> Artifact | None:
        path = folder / MANIFEST
        try:
            state = _state_of(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            if folder.exists():
                raise ArtifactDamaged(f"{folder} has no {MANIFEST}") from error
            return None
        known = self._manifests.get(path)
        if known is None or known[0] != state:
            known = self._manifests[path] = (state, read_manifest(folder))
        if verify:
            self._verify(known[1])
        return known[1]

    def _verify(self, artifact: Artifact) -> None:
        for name, expected in artifact.files.items():
            path = artifact.path / name
            try:
                state = _state_of(path)
                known = self._verified.get(path)
                if known is None or known[0] != state:
                    known = self._verified[path] = (state, digest_of_file(path))
            except OSError as error:
                raise ArtifactDamaged(f"{path} cannot be read ({error.strerror})") from error
            if known[1] != expected:
                raise ArtifactDamaged(f"{path} does not match its sha256")

    def _move_aside(self, folder: Path, reason: str) -> None:
        aside = self.root / "damaged" / f"{folder.name}.{uuid.uuid4().hex[:8]}"
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(aside)
        except OSError:
            aside = folder  # another process was faster, or the disk is read-only; missing it is either way
        _logger.warning("%s: moved to %s, counted as missing", reason, aside)

    def _check_quota(self, n_bytes: int) -> None:
        if self.quota_bytes is None:
            return
        used = self.disk_bytes()
        if used + n_bytes > self.quota_bytes:
            raise QuotaExceeded(
                f"{n_bytes:,} bytes do not fit: {used:,} of the quota of {self.quota_bytes:,} are used in {self.root}; "
                f"run `{self._gc_command()}` or raise OUTLAY_STORE_QUOTA"
            )

    def _gc_command(self) -> str:
        """Return the command that frees room: artifacts that nobody used for a month."""
        return command_line("outlay", "store", "gc", "--store", self.location, "--older-than", 30)

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        """A fresh folder in ``tmp``, gone afterwards unless renamed; a shared lock tells `gc` of writers at work."""
        tmp = self.root / "tmp"
        tmp.mkdir(parents=True, exist_ok=True)
        lock = os.open(tmp / "lock", os.O_CREAT | os.O_RDWR, 0o666)
        folder = tmp / uuid.uuid4().hex
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._keep_format()
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def _rename_into_place(self, temporary: Path, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return  # another writer of the same key was faster; its bytes are as good
        sync_folder(folder.parent)

    @contextmanager
    def _device_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DiskFull(
                    f"no room left on the device of {self.root}; free some, or run `{self._gc_command()}`; nothing was kept"
                ) from error
            raise StoreError(
                f"cannot write to the store {self.root}: {error.strerror or error}; check the path"
            ) from error

    def drop_checkpoints(self, key: str) -> None:
        """Remove the checkpoints of a key left by a process that was killed after it had put the artifact."""
        work = self.root / "making" / key / "work"
        if work.exists():
            with self._unless_making(key) as free:
                if free:
                    shutil.rmtree(work, ignore_errors=True)

    @contextmanager
    def _unless_making(self, key: str) -> Iterator[bool]:
        """Hold the lock of a key so that nobody begins to make it; yields False where somebody already does."""
        folder = self.root / "making" / key
        was_there = folder.exists()
        lock = locks.try_acquire(folder)
        if lock is None:
            yield False
            return
        try:
            yield True
        finally:
            locks.release(lock, folder, remove=not was_there)

    def _gc_leftovers(self, dry_run: bool) -> int:
        places = [self.root / "damaged"]
        tmp = self.root / "tmp"
        lock = None
        if tmp.is_dir():
            lock = os.open(tmp / "lock", os.O_CREAT | os.O_RDWR, 0o666)
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                places.append(tmp)
        try:
            folders = [folder for place in places if place.is_dir() for folder in place.iterdir() if folder.is_dir()]
            n_bytes = sum(tree_bytes(folder) for folder in folders)
            if not dry_run:
                for folder in folders:
                    shutil.rmtree(folder, ignore_errors=True)
            return n_bytes
        finally:
            if lock is not None:
                os.close(lock)

    def _gc_workspaces(self, older_than_seconds: float, dry_run: bool) -> int:
        n_bytes = 0
        for folder in sorted(self.root.glob("making/*")):
            newest = max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])
            if time.time() - newest <= older_than_seconds:
                continue
            with self._unless_making(folder.name) as free:
                if free:
                    n_bytes += tree_bytes(folder)
                    if not dry_run:
                        shutil.rmtree(folder, ignore_errors=True)
        return n_bytes

    def _remove(self, folder: Path) -> None:
        """Remove a folder in one step, by a rename, so that a reader never meets half an artifact."""
        with self._device_errors(), self._writing() as temporary:
            folder.rename(temporary / folder.name)


def is_plain_name(name: str) -> bool:
    """Return whether a file of an artifact may have this name."""
    return _FILE_NAME.fullmatch(name) is not None and name not in (MANIFEST, USED)


def _write(path: Path, content: bytes | Path) -> str:
    """Write bytes or copy a file, sync it, and return the sha256 of what was written."""
    sha = hashlib.sha256()
    with path.open("xb") as out:
        if isinstance(content, bytes):
            sha.update(content)
            out.write(content)
        else:
            with content.open("rb") as source:
                while chunk := source.read(_CHUNK):
                    sha.update(chunk)
                    out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return sha.hexdigest()


def _state_of(path: Path) -> _State:
    """Return size, time and inode of a file: while they stay, it is not read again."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _used_at(artifact: Artifact) -> float:
    try:
        return (artifact.path / USED).stat().st_mtime
    except OSError:
        return 0.0
