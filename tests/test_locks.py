"""The lock on a folder, in the moments that a race seldom hits."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import SpendError, StoreError
from outlay.storage import locks


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    lock = locks.try_acquire(folder)
    assert lock is not None
    assert locks.try_acquire(folder) is None
    assert (folder / "lock").read_text().startswith(f"process {os.getpid()} on ")
    locks.release(lock, folder, remove=False)
    again = locks.try_acquire(folder)
    assert again is not None
    locks.release(again, folder, remove=True)
    assert not folder.exists()


def test_work_of_one_process_at_a_time_is_refused_to_another_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "work" / "lock"
    with locks.exclusive(path, SpendError("busy")):
        with pytest.raises(SpendError, match="busy"), locks.exclusive(path, SpendError("busy")):
            raise AssertionError
        assert path.exists()
    with locks.exclusive(path, SpendError("busy")):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError), locks.exclusive(tmp_path / "file" / "lock", SpendError("busy")):
        pass


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    lock = locks.try_acquire(tmp_path / "key")
    assert lock is not None
    (tmp_path / "key" / "checkpoint").write_text("")
    locks.release(lock, tmp_path / "key", remove=True)
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["checkpoint"]


def test_a_lock_file_that_its_holder_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder lets go and deletes the file after the next one has opened it: that file locks nobody out."""
    folder = tmp_path / "key"
    held = locks.try_acquire(folder)
    assert held is not None
    holders = [held]
    real = fcntl.flock

    def flock(lock: int, operation: int) -> None:
        if holders:
            locks.release(holders.pop(), folder, remove=True)
        real(lock, operation)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    mine = locks.try_acquire(folder)
    assert mine is not None
    assert os.fstat(mine).st_ino == (folder / "lock").stat().st_ino
    assert locks.try_acquire(folder) is None
    locks.release(mine, folder, remove=True)


def test_a_folder_removed_between_making_and_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "key"
    real, first = os.open, [True]

    def late(path: Any, *flags: int) -> int:
        if first.pop() if first else False:
            folder.rmdir()
        return real(path, *flags)

    monkeypatch.setattr(locks.os, "open", late)
    lock = locks.try_acquire(folder)
    assert lock is not None
    locks.release(lock, folder, remove=True)


def test_a_failure_leaks_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    before = _n_open_files()
    monkeypatch.setattr(locks.os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        locks.try_acquire(tmp_path / "key")
    monkeypatch.undo()
    assert _n_open_files() == before
    lock = locks.try_acquire(tmp_path / "key")
    assert lock is not None
    locks.release(lock, tmp_path / "key", remove=True)


def _n_open_files() -> int:
    """Open files of this process; 0 where the system does not say."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_a_folder_removed_between_two_looks_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mkdir` finds the folder there, looks whether it is one, and by then its last holder has removed it."""
    real, folder = Path.mkdir, tmp_path / "making"
    failed: list[Path] = []

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if self == folder and not failed:
            failed.append(self)
            raise FileExistsError(17, "File exists", str(self))
        real(self, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    lock = locks.try_acquire(folder)
    assert lock is not None
    assert failed == [folder]
    locks.release(lock, folder, remove=True)


def test_a_file_in_the_folders_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "making").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        locks.try_acquire(tmp_path / "making")
