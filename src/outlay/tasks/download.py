"""Put a task's files in their places, from a folder or a web address, checked by sha256."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from outlay.errors import DataError, DiskFull, MissingData
from outlay.storage.files import NO_ROOM, replacing
from outlay.storage.hashing import digest_of_file
from outlay.storage.paths import expand
from outlay.tasks.loading import data_root, derived_task, get_command, locate
from outlay.tasks.sources import DataFile, Source
from outlay.tasks.task import Task

CHUNK_BYTES = 1 << 18
TIMEOUT_SECONDS = 60

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes that have come, and the bytes expected (None where nobody says)."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file of a task, now in place; ``copied`` is False when it was there before."""

    file: str
    path: Path
    n_bytes: int
    copied: bool


def data_files(task: Task) -> list[DataFile]:
    """Return all files the task reads, those of the splits it is derived from included, each once."""
    return [file for _, file in _owned_files(task)]


def _owned_files(task: Task) -> list[tuple[Task, DataFile]]:
    found: dict[str, tuple[Task, DataFile]] = {}
    seen: set[tuple[str, str]] = set()

    def collect(owner: Task, sources: Iterable[Source]) -> None:
        for source in sources:
            for file in source.files():
                found.setdefault(file.file, (owner, file))
            if source.derive is None:
                continue
            other, split = derived_task(owner, source.derive), source.derive.split
            if (other.name, split) not in seen:
                seen.add((other.name, split))
                collect(other, other.data.sources_of(split))

    collect(task, (source for _, source in task.sources()))
    return list(found.values())


def origins(task: Task) -> list[str]:
    """Return one line per public origin: which files come from it, where it is, and how its rows were split."""
    by_origin: dict[str, list[str]] = {}
    for file in data_files(task):
        origin = file.origin
        if origin is None:
            text = "no public origin given"
        else:
            at = f" @ {origin.commit}" if origin.commit else ""
            details = [part for part in (origin.path, origin.split and f"split: {origin.split}") if part]
            text = f"{origin.url}{at}" + (f" ({'; '.join(details)})" if details else "")
        by_origin.setdefault(text, []).append(file.file)
    return [f"{', '.join(files)} from {text}" for text, files in by_origin.items()]


def fetch(
    task: Task, source: str | None = None, dest: Path | None = None, progress: Progress | None = None
) -> list[Fetched]:
    """Bring every file of a task below ``dest``; a file that is there with the right sha256 is left alone.

    Args:
        task: The task whose files are needed.
        source: A folder, or an ``http://``, ``https://`` or ``file://`` address, laid out like the data folder.
        dest: Data folder; by default ``OUTLAY_DATA`` or outlay's own data folder.
        progress: Called for every chunk that has come.

    Raises:
        MissingData: A file is needed and there is no source, the source does not have it, or its sha256 differs.
        DataError: The source is of an unknown kind, or the task names a file outside the data folder.
        DiskFull: There is no room for a file.
    """
    root = data_root(dest)
    source = None if source is None else expand(source)
    fetched = []
    for owner, file in _owned_files(task):
        here = locate(owner, file, root)
        if _is_good(file, here):
            fetched.append(Fetched(file.file, here, here.stat().st_size, copied=False))
            continue
        if source is None:
            raise MissingData(
                f"{here} is needed and no mirror is given: `{get_command(task)}` copies it; the public origins are: "
                f"{' | '.join(origins(task))}"
            )
        target = root / _inside(expand(file.file))
        _copy(file, source, target, progress or (lambda *_: None))
        fetched.append(Fetched(file.file, target, target.stat().st_size, copied=True))
    return fetched


def _is_good(file: DataFile, path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    return file.sha256 is None or digest_of_file(path) == file.sha256


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"file {name} lies outside the data folder, so it is not fetched; put it in place by hand")
    return path


def _copy(file: DataFile, source: str, target: Path, progress: Progress) -> None:
    """Copy one file and check it; only then it takes its place."""
    with replacing(target) as temporary:
        try:
            n_bytes, n_expected = _stream(file, source, temporary, progress)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DiskFull(f"no room left for {target}; free some or let OUTLAY_DATA name another folder") from None
            raise MissingData(
                f"{file.file} cannot be copied from {source}: {_reason(error)}; check the mirror"
            ) from None
        except http.client.HTTPException as error:
            raise MissingData(f"{file.file} cannot be read from {source}: {error!r}; fetch it again") from None
        if n_expected is not None and n_bytes != n_expected:
            raise MissingData(f"{file.file}: {n_bytes} of {n_expected} bytes came from {source}; fetch it again")
        if file.sha256 is not None and (found := digest_of_file(temporary)) != file.sha256:
            raise MissingData(
                f"{file.file} from {source} has sha256 {found}, the task says {file.sha256}; use another mirror"
            )


def _stream(file: DataFile, source: str, path: Path, progress: Progress) -> tuple[int, int | None]:
    """Copy a file of a mirror; returns the bytes that came, and how many it should have."""
    n_bytes = 0
    with _open(source, file.file) as (stream, n_expected), path.open("wb") as out:
        while chunk := stream.read(CHUNK_BYTES):
            out.write(chunk)
            n_bytes += len(chunk)
            progress(file.file, n_bytes, n_expected)
    return n_bytes, n_expected


def _reason(error: OSError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return error.strerror or str(error)


@contextmanager
def _open(source: str, name: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """Open a file of a mirror; yields the stream and the number of bytes it should have."""
    scheme = urllib.parse.urlsplit(source).scheme if "://" in source else ""
    if scheme in ("http", "https"):
        url = f"{source.rstrip('/')}/{urllib.parse.quote(name)}"
        try:
            response = urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            raise
        with response:
            length = response.headers.get("Content-Length")
            yield response, int(length) if length is not None and length.isdigit() else None
    elif scheme in ("", "file"):
        folder = urllib.request.url2pathname(urllib.parse.urlsplit(source).path) if scheme else source
        path = Path(folder, name)
        with path.open("rb") as stream:
            yield stream, path.stat().st_size
    else:
        raise DataError(f"cannot fetch from {source}; give a folder or an http://, https:// or file:// address")
