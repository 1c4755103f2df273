"""The store on disk: the contract, and what happens when processes are killed, disks are full and bytes change."""

from __future__ import annotations

import errno
import json
import logging
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import ArtifactDamaged, DiskFull, QuotaExceeded, StoreError
from outlay.storage import artifact as artifact_module
from outlay.storage import store as store_module
from outlay.storage.store import Artifact, Store, canonical_json, digest_of, key_of
from tests.contracts.store_contract import JSON, StoreContract, put

SOURCE = Path(store_module.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class TestStoreOnDisk(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(tmp_path / "store")

    def used_at(self, artifact: Artifact, seconds: float) -> None:
        os.utime(artifact.path / "used", (seconds, seconds))


def test_a_look_at_what_is_there_writes_nothing(tmp_path: Path) -> None:
    store, key = Store(tmp_path / "store"), key_of("asked")
    assert not store.holds(key)
    assert not store.has_checkpoints(key)
    assert not store.root.exists()
    with store.making(key) as workspace:
        (workspace.path / "checkpoints").mkdir()
        assert (store.holds(key), store.has_checkpoints(key)) == (False, True)
        workspace.clear()
    artifact = store.put(key, "kind", {"file": b"bytes"}, meta={}, usage={}, circumstance={})
    assert (store.holds(artifact.key), store.has_checkpoints(key)) == (True, False)


class TestCanonicalJson:
    @staticmethod
    def slow_equal(a: Any, b: Any) -> bool:
        """Equality of JSON values written out by hand: types matter, the order of names does not."""
        if isinstance(a, list | tuple) and isinstance(b, list | tuple):
            return len(a) == len(b) and all(map(TestCanonicalJson.slow_equal, a, b))
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(TestCanonicalJson.slow_equal(a[name], b[name]) for name in a)
        if isinstance(a, float) and isinstance(b, float):
            return a == b and math.copysign(1, a) == math.copysign(1, b)
        return type(a) is type(b) and a == b

    @settings(deadline=None)
    @given(a=JSON, b=JSON)
    def test_equal_keys_mean_equal_values(self, a: Any, b: Any) -> None:
        assert (key_of(a) == key_of(b)) == self.slow_equal(a, b)

    @settings(deadline=None)
    @given(value=JSON)
    def test_it_reads_back_and_is_a_fixed_point(self, value: Any) -> None:
        text = canonical_json(value)
        assert self.slow_equal(json.loads(text), value)
        assert canonical_json(json.loads(text)) == text

    @settings(deadline=None)
    @given(pairs=st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(), max_size=6), data=st.data())
    def test_the_order_of_names_does_not_matter(self, pairs: dict[str, int], data: st.DataObject) -> None:
        shuffled = dict(data.draw(st.permutations(list(pairs.items()))))
        assert canonical_json(shuffled) == canonical_json(pairs)

    def test_its_text_is_fixed(self) -> None:
        value = {"b": (1, 1.0, True, None, "é\n"), "a": {"x": 1e-7, "y": 0.1}}
        assert canonical_json(value) == '{"a":{"x":1e-07,"y":0.1},"b":[1,1.0,true,null,"é\\n"]}'
        assert key_of(value) == digest_of(canonical_json(value).encode())
        assert key_of({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # sha256 of "{}"

    @pytest.mark.parametrize(
        "value",
        [math.nan, math.inf, b"x", {1}, Fraction(1, 2), Path("x"), {1: 2}, {None: 1}, object(), [{"a": [math.nan]}]],
    )
    def test_what_has_no_one_text_is_refused(self, value: object) -> None:
        with pytest.raises(StoreError, match="no key for"):
            canonical_json(value)

    def test_dataclasses_enums_and_half_surrogates_are_refused(self) -> None:
        @dataclass
        class Request:
            n: int

        class Name(str):
            pass

        for value in (Request(1), Name("x"), "\ud800"):
            with pytest.raises(StoreError):
                canonical_json(value)
        with pytest.raises(StoreError, match=r"at \.a\[1\]"):
            canonical_json({"a": [0, Request(1)]})


class TestDamage:
    @pytest.fixture(autouse=True)
    def _new_process(self, store: Store) -> None:
        self.artifact = put(store, "it", {"a.bin": b"0123456789", "b.txt": b""}, series="s")

    def reopened(self, store: Store) -> Store:
        return Store(store.root)

    def test_every_changed_byte_is_found(self, store: Store) -> None:
        for path in (self.artifact.path / "a.bin", self.artifact.path / "manifest.json"):
            good = path.read_bytes()
            for i in range(len(good)):
                path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
                if path.name == "manifest.json" and _same_json(path.read_bytes(), good):
                    continue  # white space between the values carries nothing
                assert self.reopened(store).get(self.artifact.key) is None
                [aside] = (store.root / "damaged").iterdir()
                aside.rename(self.artifact.path)
            path.write_bytes(good)
        assert self.reopened(store).get(self.artifact.key) == self.artifact

    @pytest.mark.parametrize("hurt", ["change", "cut", "lose a file", "lose the manifest", "empty manifest"])
    def test_a_damaged_artifact_is_moved_aside_and_missing(
        self, store: Store, hurt: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = self.artifact.path
        match hurt:
            case "change":
                (folder / "a.bin").write_bytes(b"0123456780")
            case "cut":
                (folder / "a.bin").write_bytes(b"01234")
            case "lose a file":
                (folder / "b.txt").unlink()
            case "lose the manifest":
                (folder / "manifest.json").unlink()
            case "empty manifest":
                (folder / "manifest.json").write_bytes(b"")
        with caplog.at_level(logging.WARNING):
            assert self.reopened(store).get(self.artifact.key) is None
        assert "counted as missing" in caplog.text
        assert not folder.exists()
        assert len(list((store.root / "damaged").iterdir())) == 1
        anew = put(store, "it", {"a.bin": b"0123456789", "b.txt": b""}, series="s")
        assert anew.digest == self.artifact.digest
        assert store.gc().freed_bytes > 0
        assert list((store.root / "damaged").iterdir()) == []

    def test_a_process_that_verified_a_file_sees_a_later_change(self, store: Store) -> None:
        assert store.get(self.artifact.key) is not None
        (self.artifact.path / "a.bin").write_bytes(b"012345678X")
        os.utime(self.artifact.path / "a.bin", ns=(1, 1))
        assert store.get(self.artifact.key) is None

    def test_a_file_is_read_once_per_process(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        fresh = self.reopened(store)
        reads: list[Any] = []
        real = store_module.hashlib.file_digest
        monkeypatch.setattr(store_module.hashlib, "file_digest", lambda *a: reads.append(a) or real(*a))
        assert fresh.get(self.artifact.key) == fresh.get(self.artifact.key)
        assert len(reads) == 2  # two files

    def test_without_verifying_only_the_manifest_is_read(self, store: Store) -> None:
        (self.artifact.path / "a.bin").write_bytes(b"changed")
        found = self.reopened(store).get(self.artifact.key, verify=False)
        assert found == self.artifact
        with pytest.raises(ArtifactDamaged, match="does not match its sha256"):
            found.read_bytes("a.bin")

    def test_an_artifact_under_a_foreign_key_is_damaged(self, store: Store) -> None:
        key = key_of("another")
        (store.root / "objects" / key[:2]).mkdir(exist_ok=True)
        self.artifact.path.rename(store.root / "objects" / key[:2] / key)
        assert store.get(key) is None

    def test_another_format_is_left_alone(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(artifact_module, "FORMAT", 99)
        with pytest.raises(StoreError, match="upgrade outlay"):
            self.reopened(store).get(self.artifact.key)
        assert self.artifact.path.exists()

    def test_an_unknown_file_names_the_known_ones(self) -> None:
        with pytest.raises(StoreError, match=r"has no file 'c'; it has a\.bin, b\.txt"):
            self.artifact.file("c")


class TestRoom:
    def test_the_quota_refuses_before_anything_is_written(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "store", quota_bytes=5_000)
        put(store, 1, {"a": b"x" * 3_000})
        before = sorted(store.root.rglob("*"))
        with pytest.raises(QuotaExceeded, match=r"3,000 bytes do not fit: .* of the quota of 5,000 .*outlay store gc"):
            put(store, 2, {"a": b"x" * 3_000})
        assert sorted(store.root.rglob("*")) == before
        assert put(store, 1, {"a": b"x" * 3_000}).n_bytes > 3_000  # what is there needs no room

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    @pytest.mark.parametrize("at", range(3))
    def test_a_full_device_leaves_nothing_behind(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, at: int, code: int
    ) -> None:
        real, calls = os.fsync, iter(range(100))

        def full(handle: int) -> None:
            if next(calls) == at:
                raise OSError(code, os.strerror(code))
            real(handle)

        monkeypatch.setattr(store_module.os, "fsync", full)
        with pytest.raises(DiskFull, match="outlay store gc"):
            put(store, 1, {"a": b"x", "b": b"y"})
        monkeypatch.undo()
        assert store.list() == []
        assert [path.name for path in (store.root / "tmp").iterdir()] == ["lock"]
        assert put(store, 1, {"a": b"x", "b": b"y"}).read_bytes("b") == b"y"

    def test_a_really_full_device(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no small disk may be mounted: run as root, outside of a container without CAP_SYS_ADMIN")
        try:
            store = Store(disk / "store")
            small = put(store, 1, {"a": b"x"})
            with pytest.raises(DiskFull, match="no room left"):
                put(store, 2, {"a": b"x" * 100_000})
            assert store.get(small.key) == small
            assert store.list() == [small]
            assert [path.name for path in (store.root / "tmp").iterdir()] == ["lock"]
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_a_place_that_cannot_be_written_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        store = Store(tmp_path / "file" / "store")
        with pytest.raises(StoreError, match=re.escape(str(store.root))):
            put(store, 1, {"a": b""})
        with pytest.raises(StoreError, match=re.escape(str(store.root))), store.making(key_of(1)):
            pass
        with pytest.raises(StoreError, match=r"-\d+ bytes.* 0 or more"):
            Store(tmp_path, quota_bytes=-1)


# Runs `put` again and again, each time in a forked child that is killed at its n-th step, until one child lives.
KILL_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from outlay.storage.store import Store, key_of

root, key = Path(sys.argv[1]), key_of("it")
STEPS = ("open", "os.mkdir", "os.rename", "os.utime", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")

def child(n):
    left = [n]
    def step():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    real = os.fsync
    def fsync(handle):
        step(); real(handle); step()
    os.fsync = fsync
    sys.addaudithook(lambda event, args: step() if event in STEPS else None)
    store = Store(root)
    with store.making(key) as work:
        (work.path / "checkpoint").write_bytes(b"c")
        store.put(key, "thing", {"a": b"a" * 5000, "b": b"b" * 5000}, meta={}, usage={}, circumstance={})
        work.clear()
    os._exit(0)

n = 0
while True:
    pid = os.fork()
    if pid == 0:
        child(n)
    status = os.waitpid(pid, 0)[1]
    found = Store(root).get(key)
    if found is not None:
        assert found.read_bytes("a") == b"a" * 5000 and found.read_bytes("b") == b"b" * 5000
        for path in found.path.iterdir():
            path.unlink()
        found.path.rmdir()
    assert not (root / "damaged").exists(), f"half an artifact after step {n}"
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    n += 1
print(n)
"""


class TestKilledWriters:
    def test_no_step_of_a_killed_put_leaves_half_an_artifact(self, store: Store) -> None:
        done = subprocess.run(
            [sys.executable, "-c", KILL_AT_EVERY_STEP, str(store.root)],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 20  # steps at which a child was killed
        store.gc()
        assert [path.name for path in (store.root / "tmp").iterdir()] == ["lock"]

    def test_a_put_killed_at_random_moments(self, store: Store) -> None:
        program = """
            import sys
            from pathlib import Path
            from outlay.storage.store import Store, key_of
            store = Store(Path(sys.argv[1]))
            for i in range(10_000):
                files = {"a": b"a" * 100_000, "b": str(i).encode()}
                store.put(key_of(i), "thing", files, meta={}, usage={}, circumstance={})
                if i == 0:
                    print("ready", flush=True)
        """
        for pause in (0.01, 0.05, 0.12):
            with subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(program), str(store.root)],
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
            ) as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(pause)
                process.kill()
        fresh = Store(store.root)
        artifacts = fresh.list()
        assert artifacts
        assert all(fresh.get(a.key) is not None for a in artifacts)
        assert not (store.root / "damaged").exists()

    def test_the_lock_of_a_killed_maker_is_free(self, store: Store) -> None:
        program = """
            import sys, time
            from pathlib import Path
            from outlay.storage.store import Store, key_of
            with Store(Path(sys.argv[1])).making(key_of("it")) as work:
                (work.path / "checkpoint").write_text("step 7")
                print("making", flush=True)
                time.sleep(60)
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(store.root)], env=ENVIRONMENT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"making\n"
        waited: list[str] = []

        def on_wait(who: str) -> None:
            waited.append(who)
            assert store.gc(older_than_seconds=-1).freed_bytes == 0  # a key being made is left alone
            process.send_signal(signal.SIGKILL)

        with store.making(key_of("it"), on_wait=on_wait, poll_seconds=0.01) as work:
            assert (work.path / "checkpoint").read_text() == "step 7"
        process.wait()
        process.stdout.close()
        assert waited == [f"process {process.pid} on {os.uname().nodename}"]
        n_bytes = store.gc(older_than_seconds=-1, dry_run=True).freed_bytes
        assert [folder.name for folder in (store.root / "making").iterdir()] == [key_of("it")]
        assert store.gc(older_than_seconds=-1).freed_bytes == n_bytes >= len("step 7")
        assert list((store.root / "making").iterdir()) == []

    def test_four_processes_make_one_key_once(self, store: Store, spawned: Any) -> None:
        log = store.root.parent / "log"
        workers = [spawned.Process(target=_make_all, args=(store.root, log)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        assert sorted(log.read_text().split()) == sorted(str(i) for i in range(10))
        assert len(store.list()) == 10
        assert list((store.root / "making").iterdir()) == []

    @pytest.fixture
    def spawned(self) -> Iterator[Any]:
        return multiprocessing.get_context("spawn")


def _make_all(root: Path, log: Path) -> None:
    store = Store(root)
    for i in range(10):
        with store.making(key_of(i), poll_seconds=0.001) as work:
            if work.found is None:
                with log.open("a") as file:
                    file.write(f"{i}\n")
                put(store, i, {"a": str(i).encode()})
                work.clear()


def _same_json(data: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(data) == json.loads(other))
    except ValueError:
        return False


def test_two_writers_of_one_key_without_the_lock(store: Store) -> None:
    """The second rename finds the first one's folder; both get the same artifact, and no temporary folder stays."""
    key = key_of("it")
    other = Store(store.root)
    real = Path.rename

    def late(self: Path, target: Path) -> Path:
        if target.name == key and not target.exists():
            Path.rename = real  # type: ignore[method-assign]
            other.put(key, "thing", {"a": b"other"}, meta={}, usage={}, circumstance={})
        return real(self, target)

    Path.rename = late  # type: ignore[method-assign,assignment]
    try:
        mine = store.put(key, "thing", {"a": b"mine"}, meta={}, usage={}, circumstance={})
    finally:
        Path.rename = real  # type: ignore[method-assign]
    assert mine.read_bytes("a") == b"other"
    assert [path.name for path in (store.root / "tmp").iterdir()] == ["lock"]


def test_an_artifact_that_comes_in_the_middle_of_a_look_is_not_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader finds no manifest, then a folder: between the two, another process has renamed the artifact into place."""
    key, real = key_of("it"), Path.exists

    def late(self: Path, **more: Any) -> bool:
        if self.name == key:
            monkeypatch.undo()
            put(Store(store.root), "it", {"a": b"x"})
        return real(self, **more)

    monkeypatch.setattr(Path, "exists", late)
    found = store.get(key)
    assert found is not None
    assert found.read_bytes("a") == b"x"
    assert not (store.root / "damaged").exists()


def test_reading_a_store_that_is_not_there_creates_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "no" / "store")
    assert store.get(key_of(1)) is None
    assert store.gc().removed == ()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_a_killed_process_are_dropped_unless_somebody_makes_the_key(store: Store) -> None:
    key = "a" * 64
    work = store.root / "making" / key / "work"
    store.drop_checkpoints(key)  # nothing there
    with store.making(key) as workspace:
        (workspace.path / "checkpoint").write_text("half")
        store.drop_checkpoints(key)
        assert (work / "checkpoint").exists()
    assert (work / "checkpoint").exists(), "as a kill leaves it"
    store.drop_checkpoints(key)
    assert not work.exists()
