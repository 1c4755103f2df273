"""Artifacts at a URL: the contract on three file systems, one of them a real S3 server; kills, damage, failing uploads."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from outlay.cli.common import open_store
from outlay.errors import QuotaExceeded, StoreError
from outlay.storage import remote as remote_module
from outlay.storage.artifact import MANIFEST, manifest_bytes
from outlay.storage.locations import default_root, local_root
from outlay.storage.remote import UNSENT, RemoteStore, open_location
from outlay.storage.store import Artifact, Store, digest_of, key_of
from tests.contracts.store_contract import StoreContract, put

SOURCE = Path(remote_module.__file__).parents[1]
FILES: dict[str, bytes | Path] = {"a.bin": b"0123456789", "b.txt": b"", "c.bin": b"c" * 5_003}


class Remotely(StoreContract):
    def used_at(self, artifact: Artifact, seconds: float) -> None:
        os.utime(artifact.path / "used", (seconds, seconds))


class TestInMemory(Remotely):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        yield RemoteStore(f"memory://{tmp_path.name}", tmp_path / "cache")
        MemoryFileSystem.store.clear()


class TestInAFolder(Remotely):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return RemoteStore(f"file://{tmp_path}/kept", tmp_path / "cache")


class TestOnS3(Remotely):
    @pytest.fixture
    def store(self, bucket: str, tmp_path: Path) -> Store:
        return RemoteStore(bucket, tmp_path / "cache")

    def test_a_second_cache_sees_what_the_first_put(self, bucket: str, tmp_path: Path) -> None:
        artifact = put(RemoteStore(bucket, tmp_path / "one"), "it", FILES)
        got = RemoteStore(bucket + "/", tmp_path / "two").get(artifact.key)
        assert got is not None
        assert got.path.is_relative_to(tmp_path / "two")
        assert (got.digest, got.meta, got.usage) == (artifact.digest, artifact.meta, artifact.usage)
        assert {name: got.read_bytes(name) for name in got.files} == FILES

    def test_about_reads_one_manifest_and_fetches_nothing(self, bucket: str, tmp_path: Path) -> None:
        artifact = put(RemoteStore(bucket, tmp_path / "one"), "it", FILES)
        two = RemoteStore(bucket, tmp_path / "two")
        about = two.about(artifact.key)
        assert about is not None
        assert not (tmp_path / "two").exists()
        with pytest.raises(StoreError, match=r"c\.bin is not here"):
            about.read_bytes("c.bin")
        assert two.about(key_of("unknown")) is None
        assert two.get(artifact.key) == about  # only now, and where `about` said
        assert about.read_bytes("c.bin") == FILES["c.bin"]

    def test_a_bucket_that_is_not_there_is_not_made(self, server: str, tmp_path: Path) -> None:
        import fsspec

        store = RemoteStore("s3://no-such-bucket/x", tmp_path / "cache")
        with pytest.raises(
            StoreError, match=r"s3://no-such-bucket/x: .*\(NoSuchBucket\); make the bucket, or check"
        ) as e:
            store.get(key_of(1))
        assert "\n" not in str(e.value)
        assert not fsspec.filesystem("s3").exists("no-such-bucket")

    def test_a_killed_upload_is_nothing_and_the_next_put_heals_it(self, bucket: str, tmp_path: Path) -> None:
        """Three files and a manifest; killed before and after each."""
        done = subprocess.run(
            [sys.executable, "-c", KILLED_UPLOADS, bucket, str(tmp_path / "writer")],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for at in range(8):
            found = seen(f"{bucket}/{at}", tmp_path / "reader")
            assert (found is not None) == (at == 7)  # after the manifest
            put(RemoteStore(f"{bucket}/{at}", tmp_path / "writer" / str(at)), "it", FILES)
            assert seen(f"{bucket}/{at}", tmp_path / "reader") is not None

    @pytest.fixture
    def bucket(self, server: str, tmp_path: Path) -> str:
        import fsspec

        name = f"bucket-{digest_of(str(tmp_path).encode())[:12]}"
        fsspec.filesystem("s3").mkdir(name)
        return f"s3://{name}/some/prefix"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A real HTTP server that speaks S3 (moto's), with credentials in the environment."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield f"http://{host}:{port}"
        s3fs.S3FileSystem.clear_instance_cache()
    moto.stop()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/kept"


def seen(url: str, cache: Path) -> Artifact | None:
    """What a reader with an empty cache gets under the key of "it": None, or the whole artifact (and its cache is emptied)."""
    shutil.rmtree(cache, ignore_errors=True)
    artifact = RemoteStore(url, cache).get(key_of("it"))
    if artifact is not None:
        assert {name: artifact.read_bytes(name) for name in artifact.files} == FILES
    return artifact


# Puts one artifact in each of eight forked children, which is killed at the n-th moment of its uploads: before or after each.
KILLED_UPLOADS = """
import os, signal, sys
from pathlib import Path
import fsspec, s3fs
from outlay.storage.remote import RemoteStore
from outlay.storage.store import key_of

FILES = {"a.bin": b"0123456789", "b.txt": b"", "c.bin": b"c" * 5_003}

def child(at):
    url, cache = f"{sys.argv[1]}/{at}", Path(sys.argv[2]) / str(at)
    system = fsspec.core.url_to_fs(url)[0]
    real, moments = system.put_file, iter(range(100))

    def step():
        if next(moments) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def put_file(source, path):
        step()
        real(source, path)
        step()

    system.put_file = put_file
    RemoteStore(url, cache).put(key_of("it"), "thing", FILES, meta={}, usage={"n": 1}, circumstance={"threads": 1})
    os._exit(0)

for at in range(8):
    pid = os.fork()
    if pid == 0:
        child(at)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
"""

# Runs `put` again and again, each time in a forked child that is killed at its n-th step, until one child lives.
KILL_AT_EVERY_STEP = """
import os, shutil, signal, sys
from pathlib import Path
import fsspec
from outlay.storage.remote import RemoteStore
from outlay.storage.store import key_of

root, key = Path(sys.argv[1]), key_of("it")
url, cache = f"file://{root}/kept", root / "cache"
FILES = {"a": b"a" * 5000, "b": b"b" * 5000}
STEPS = ("open", "os.mkdir", "os.rename", "os.utime", "os.remove", "os.rmdir", "shutil.copyfile", "shutil.rmtree")
fsspec.core.url_to_fs(url)

def put(store):
    return store.put(key, "thing", FILES, meta={}, usage={}, circumstance={})

def child(n):
    left = [n]
    def step():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    real = shutil.copyfileobj
    sys.addaudithook(lambda event, args: step() if event in STEPS else None)
    put(RemoteStore(url, cache))
    os._exit(0)

def read(reader):
    found = RemoteStore(url, root / reader).get(key)
    shutil.rmtree(root / reader, ignore_errors=True)
    return found

n = n_missing = 0
while True:
    pid = os.fork()
    if pid == 0:
        child(n)
    status = os.waitpid(pid, 0)[1]
    found = RemoteStore(url, root / "reader").get(key)
    if found is None:
        n_missing += 1
    else:
        assert {name: found.read_bytes(name) for name in found.files} == FILES
    shutil.rmtree(root / "reader", ignore_errors=True)
    put(RemoteStore(url, cache))
    healed = RemoteStore(url, root / "reader").get(key)
    assert healed is not None and healed.read_bytes("b") == FILES["b"], f"not healed after step {n}"
    for folder in ("reader", "cache", "kept"):
        shutil.rmtree(root / folder, ignore_errors=True)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    n += 1
print(n, n_missing)
"""


class TestKills:
    def test_no_step_of_a_killed_put_leaves_half_an_artifact(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", KILL_AT_EVERY_STEP, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        n_killed, n_missing = map(int, done.stdout.split())
        assert n_killed > n_missing > 30

    @pytest.mark.parametrize("n_bytes", [0, 1, 100, -1])
    def test_a_manifest_that_was_cut_short_is_healed(self, url: str, tmp_path: Path, n_bytes: int) -> None:
        put(RemoteStore(url, tmp_path / "one"), "it", FILES)
        manifest = next((tmp_path / "kept").rglob(MANIFEST))
        manifest.write_bytes(manifest.read_bytes()[:n_bytes])
        two = RemoteStore(url, tmp_path / "two")
        assert two.get(key_of("it")) is None
        assert two.about(key_of("it")) is None
        put(two, "it", FILES)
        assert seen(url, tmp_path / "third") is not None


class TestDamage:
    @pytest.mark.parametrize(
        "hurt", ["change", "cut", "lose a file", "lose all files", "foreign manifest", "evil name"]
    )
    def test_a_damaged_artifact_is_missing_and_replaced(
        self, url: str, tmp_path: Path, hurt: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        artifact = put(RemoteStore(url, tmp_path / "one"), "it", FILES)
        folder = tmp_path / "kept" / "objects" / artifact.key[:2] / artifact.key
        about = {"kind": "thing", "meta": {}, "usage": {}, "circumstance": {}}
        match hurt:
            case "change":
                (folder / artifact.digest / "a.bin").write_bytes(b"0123456780")
            case "cut":
                (folder / artifact.digest / "c.bin").write_bytes(b"c" * 5_002)
            case "lose a file":
                (folder / artifact.digest / "b.txt").unlink()
            case "lose all files":
                shutil.rmtree(folder / artifact.digest)
            case "foreign manifest":
                (folder / MANIFEST).write_bytes(manifest_bytes(key_of("other"), artifact.files, about))
            case "evil name":
                (tmp_path / "kept" / "evil").write_bytes(b"evil")
                evil = {"../../../../evil": digest_of(b"evil")}
                (folder / key_of(evil)).mkdir()
                (folder / MANIFEST).write_bytes(manifest_bytes(artifact.key, evil, about))
        two = RemoteStore(url, tmp_path / "two")
        with caplog.at_level(logging.WARNING):
            assert two.get(artifact.key) is None
        assert url in caplog.text
        assert "counted as missing" in caplog.text
        assert two.list() == []
        assert put(two, "it", FILES).digest == artifact.digest
        assert seen(url, tmp_path / "third") is not None

    def test_damage_on_this_machine_is_mended_from_the_url(self, url: str, tmp_path: Path) -> None:
        artifact = put(RemoteStore(url, tmp_path / "one"), "it", FILES)
        (artifact.path / "a.bin").write_bytes(b"changed")
        assert RemoteStore(url, tmp_path / "one").get(artifact.key) == artifact
        assert artifact.read_bytes("a.bin") == FILES["a.bin"]

    def test_a_later_version_is_left_alone(self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        artifact = put(RemoteStore(url, tmp_path / "one"), "it", FILES)
        monkeypatch.setattr("outlay.storage.artifact.FORMAT", 99)
        for ask in (RemoteStore(url, tmp_path / "two").get, RemoteStore(url, tmp_path / "two").about):
            with pytest.raises(StoreError, match="upgrade outlay"):
                ask(artifact.key)


class TestUploads:
    @pytest.mark.parametrize("at", range(4))
    @pytest.mark.parametrize("heal", ["get", "put"])
    def test_a_failed_upload_is_made_up_for(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, heal: str
    ) -> None:
        real, calls = LocalFileSystem.put_file, iter(range(100))

        def failing(self: Any, source: str, path: str, **more: Any) -> None:
            if next(calls) >= at:
                raise PermissionError("Access Denied\nand more")
            real(self, source, path, **more)

        monkeypatch.setattr(LocalFileSystem, "put_file", failing)
        one = RemoteStore(url, tmp_path / "one")
        line = f"^cannot write the store at {url}: Access Denied; check the credentials .*; what was made is kept in "
        with pytest.raises(StoreError, match=line) as caught:
            put(one, "it", FILES)
        assert "\n" not in str(caught.value)
        assert seen(url, tmp_path / "reader") is None
        with pytest.raises(StoreError, match="Access Denied"):
            one.get(key_of("it"))
        kept = Store(one.root).get(key_of("it"))
        assert kept is not None
        assert one.about(key_of("it")) == kept
        assert one.gc(max_bytes=0).removed == ()  # the only copy there is
        monkeypatch.undo()
        again = RemoteStore(url, tmp_path / "one")
        assert (put(again, "it", FILES) if heal == "put" else again.get(key_of("it"))) == kept
        assert seen(url, tmp_path / "reader") is not None
        assert [a.key for a in again.gc(max_bytes=0).removed] == [kept.key]
        assert again.get(kept.key) == kept  # the URL has it

    def test_a_local_artifact_is_sent_once(self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        one = RemoteStore(url, tmp_path / "one")
        artifact = put(one, "it", FILES)
        assert not (artifact.path / UNSENT).exists()
        monkeypatch.setattr(remote_module, "_fsspec", lambda: pytest.fail("no need to ask the URL"))
        assert one.get(artifact.key) == one.about(artifact.key) == put(one, "it", FILES) == artifact

    def test_the_artifact_at_the_url_wins(self, url: str, tmp_path: Path) -> None:
        first = put(RemoteStore(url, tmp_path / "one"), "it", {"a.bin": b"first"})
        second = put(RemoteStore(url, tmp_path / "two"), "it", {"b.bin": b"second"})
        assert second.digest == first.digest
        assert second.read_bytes("a.bin") == b"first"

    @pytest.mark.parametrize("moment", ["before its first file", "before its manifest"])
    def test_of_two_writers_the_first_to_finish_wins(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
    ) -> None:
        """The slow one has its files under way when the fast one finishes; it ends with the fast one's artifact."""
        real = LocalFileSystem.put_file
        fast = RemoteStore(url, tmp_path / "fast")

        def overtaken(self: Any, source: str, path: str, **more: Any) -> None:
            monkeypatch.undo()
            if moment == "before its manifest":
                real(self, source, path, **more)
                put(fast, "it", {"a.bin": b"fast"})
            else:
                put(fast, "it", {"a.bin": b"fast"})
                real(self, source, path, **more)

        monkeypatch.setattr(LocalFileSystem, "put_file", overtaken)
        slow = put(RemoteStore(url, tmp_path / "slow"), "it", {"a.bin": b"slow", "b.bin": b"more"})
        assert set(slow.files) == {"a.bin"}
        assert slow.read_bytes("a.bin") == b"fast"
        assert not (slow.path / UNSENT).exists()
        third = RemoteStore(url, tmp_path / "third").get(key_of("it"))
        assert third is not None
        assert third.digest == slow.digest

    def test_two_manifests_at_one_moment_leave_a_whole_artifact(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Writers of different bytes for one key whose files and manifests cross: whichever manifest stays has its files."""
        real, fast = LocalFileSystem.put_file, RemoteStore(url, tmp_path / "fast")

        def crossed(self: Any, source: str, path: str, **more: Any) -> None:
            if path.endswith(MANIFEST):
                monkeypatch.undo()
                put(fast, "it", {"a.bin": b"fast", "b.bin": b"fast"})
            real(self, source, path, **more)

        monkeypatch.setattr(LocalFileSystem, "put_file", crossed)
        slow = put(RemoteStore(url, tmp_path / "slow"), "it", {"a.bin": b"slow", "b.bin": b"slow"})
        third = RemoteStore(url, tmp_path / "third").get(key_of("it"))
        assert third is not None
        assert third.read_bytes("a.bin") == third.read_bytes("b.bin") == slow.read_bytes("a.bin") == b"slow"
        assert fast.get(key_of("it")) is not None


class TestManyReaders:
    def test_threads_fetch_a_key_once(self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        artifact = put(RemoteStore(url, tmp_path / "one"), "it", FILES)
        real, fetched, got = LocalFileSystem.get_file, [], []
        start = threading.Barrier(5)

        def counted(self: Any, source: str, target: str, **more: Any) -> None:
            fetched.append(source)
            real(self, source, target, **more)

        def ask() -> None:
            start.wait()
            got.append(RemoteStore(url, tmp_path / "two").get(artifact.key))

        monkeypatch.setattr(LocalFileSystem, "get_file", counted)
        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 5
        assert all(one == got[0] is not None for one in got)
        assert len(fetched) == len(FILES)
        assert list((tmp_path / "two" / "moving").iterdir()) == []

    def test_processes_with_one_cache_do_not_collide(self, url: str, tmp_path: Path) -> None:
        one = RemoteStore(url, tmp_path / "one")
        for i in range(5):
            put(one, i, {"a": str(i).encode() * 1_000_003})
        program = """
            import sys
            from pathlib import Path
            from outlay.storage.remote import RemoteStore
            from outlay.storage.store import key_of
            sys.stdin.readline()
            for i in range(5):
                artifact = RemoteStore(sys.argv[1], Path(sys.argv[2])).get(key_of(i))
                assert artifact.read_bytes("a") == str(i).encode() * 1_000_003
        """
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(program), url, str(tmp_path / "two")],
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
                stdin=subprocess.PIPE,
            )
            for _ in range(3)
        ]
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.close()  # they begin together
        assert [reader.wait() for reader in readers] == [0, 0, 0]
        assert len(Store(tmp_path / "two").list()) == 5
        assert not (tmp_path / "two" / "damaged").exists()

    def test_the_quota_refuses_to_fetch(self, url: str, tmp_path: Path) -> None:
        artifact = put(RemoteStore(url, tmp_path / "one"), "it", FILES)
        small = RemoteStore(url, tmp_path / "two", quota_bytes=5_000)
        with pytest.raises(QuotaExceeded, match=r"5,013 bytes do not fit"):
            small.get(artifact.key)
        assert small.list() == []
        assert small.about(artifact.key) is not None


class TestErrors:
    def test_no_credentials(self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        with pytest.raises(StoreError, match=r"s3://any/x: Unable to locate credentials; check .*AWS_ACCESS_KEY_ID"):
            RemoteStore("s3://any/x", tmp_path / "cache").get(key_of(1))
        s3fs.S3FileSystem.clear_instance_cache()

    def test_a_network_that_does_not_answer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from botocore.exceptions import ConnectTimeoutError

        def silent(*_: object) -> None:
            raise ConnectTimeoutError(endpoint_url="https://far.example")

        monkeypatch.setattr(MemoryFileSystem, "cat_file", silent)
        with pytest.raises(
            StoreError, match=r'memory://x: Connect timeout on .*"https://far\.example"; check the address'
        ):
            RemoteStore("memory://x", tmp_path / "cache").about(key_of(1))

    @pytest.mark.parametrize(
        ("address", "line"),
        [
            ("nonsense://x", "nonsense://x: Protocol not known: nonsense; check the address"),
            ("gs://bucket/x", "gs://bucket/x: .*gcsfs"),
        ],
    )
    def test_file_systems_that_are_not_there(self, tmp_path: Path, address: str, line: str) -> None:
        with pytest.raises(StoreError, match=line):
            RemoteStore(address, tmp_path / "cache").get(key_of(1))

    def test_without_fsspec(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "fsspec", None)
        with pytest.raises(StoreError, match=r"needs fsspec; pip install 'outlay\[remote\]'"):
            RemoteStore("memory://x", tmp_path / "cache").get(key_of(1))

    def test_passwords_do_not_belong_in_an_address(self) -> None:
        with pytest.raises(StoreError, match="holds a password") as caught:
            RemoteStore("ftp://me:secret@host/x")
        assert "secret" not in str(caught.value)


class TestLocations:
    def test_a_location_is_opened_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
        for location in (str(tmp_path / "store"), "s3://bucket/x", "file:///mnt/x", "memory://x"):
            store = open_store(location)
            assert store.location == open_location(store.location).location == location
            assert open_location(store.location).root == store.root == local_root(location)
        folders = {open_store(url).root for url in ("s3://bucket/x", "s3://bucket/x/", "s3://bucket/y")}
        assert len(folders) == 2
        assert {folder.parent for folder in folders} == {tmp_path / "cache"}  # where machine.toml is looked for

    def test_the_environment_may_name_a_url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
        assert open_store(None).root == default_root() == tmp_path / "store"
        monkeypatch.setenv("OUTLAY_STORE", "s3://bucket/x")
        store = open_store(None)
        assert store.location == "s3://bucket/x"
        assert store.root == default_root()
        assert store.root.parent == tmp_path

    def test_the_command_line_takes_a_url(self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from typer.testing import CliRunner

        from outlay.cli.app import app

        monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
        put(RemoteStore(url), "it", FILES)
        shown = CliRunner().invoke(app, ["store", "show", "--store", url])
        assert shown.exit_code == 0, shown.output
        assert f"the local copy of {url}" in shown.output
        assert "1 artifacts" in shown.output
        freed = CliRunner().invoke(app, ["store", "gc", "--store", url, "--max-size", "1"])
        assert "removed 1 artifacts" in freed.output
        assert seen(url, tmp_path / "reader") is not None


def test_two_runs_with_caches_of_their_own_share_what_was_made(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second machine computes nothing, is charged alike, and its folder is opened again by the URL that it names."""
    from outlay.engine.step_runner import StepRunner
    from outlay.money.amounts import PriceBook
    from outlay.report.results import Header
    from outlay.study.runner import Workplace, prepare_session, reopen_study
    from tests.runs import World  # imports torch, which the other tests here can do without

    world = World(tmp_path)
    options = world.request(strategy="annotate", budget_micros=3_000_000, n_initial=None, student_training="free")

    def run(name: str) -> tuple[Any, Any]:
        monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / name / "cache"))
        book = PriceBook.load()
        place = Workplace(tmp_path / name / "out", open_location(url), book, book.get("cpu"))
        session = prepare_session([options], Header("run", "A run", "plain"), place)
        return session.runner, session.run()[0]

    first, made = run("first")
    assert made.result.status == "ok", made.result.reason
    monkeypatch.setattr(StepRunner, "make", lambda *_: pytest.fail("nothing should be computed here"))
    second, found = run("second")
    assert found.result_bytes() == made.result_bytes()
    assert second.store.root != first.store.root
    kinds = {artifact.kind for artifact in first.store.list()}
    assert kinds == {"buy", "train", "score"}
    # To settle a model, its manifest is enough: it stays where it is.
    assert {artifact.kind for artifact in second.store.list()} == {"buy", "score"}
    assert reopen_study(second.folder).store.location == url


@pytest.mark.slow
def test_a_study_on_s3_is_reused_from_an_empty_cache(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers make it and send it to the bucket; on the second machine no step is made."""
    import fsspec

    from outlay.engine.runner import Runner
    from outlay.money.amounts import PriceBook
    from outlay.study.runner import read_results
    from outlay.workers.local import LocalPool
    from tests.listeners import Onlooker
    from tests.runs import World
    from tests.studies import HEADER, Idle, check_books, conducted, worker_factory

    fsspec.filesystem("s3").mkdir("studies")
    url = "s3://studies/some/prefix"
    world = World(tmp_path, n_layers=2)
    asked = [
        world.request(strategy=name, budget_micros=16_000_000, student="cut:1")
        for name in ("annotate", "distill", "self_distill")
    ]

    def opened(name: str) -> Any:
        monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / name / "cache"))
        return Runner(tmp_path / name / "out", open_location(url), here=PriceBook.load().get("cpu"))

    first = opened("first")
    with LocalPool(worker_factory(first), 2, 1, logs=tmp_path / "logs") as pool:
        made = conducted(world.workbench, asked, first, pool, onlooker := Onlooker())
    assert [point.result.status for point in made] == ["ok"] * 3
    assert onlooker.problems == []
    check_books(first, world.workbench, asked, made)
    second = opened("second")
    assert second.store.list() == []
    with Idle(worker_factory(second)) as idle:
        found = conducted(world.workbench, asked, second, idle)
    assert [point.result_bytes() for point in found] == [point.result_bytes() for point in made]
    check_books(second, world.workbench, asked, found)
    settled = [
        sum(entry.cash_micros for entry in one.ledger.entries() if entry.kind == "settle") for one in (first, second)
    ]
    assert settled[0] > settled[1] == 0
    # Scores are read; models and targets stay where they are.
    assert {artifact.kind for artifact in second.store.list()} == {"buy", "score"}
    reopened = read_results(second.folder)
    assert [point.to_json() for point in reopened.points] == [point.to_json() for point in found]
    assert reopened.header == HEADER
