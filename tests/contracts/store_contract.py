"""What every store of artifacts must do. Subclass, and override the `store` fixture."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outlay.errors import StoreError
from outlay.storage.store import Artifact, Store, digest_of, key_of

NAMES = st.from_regex(r"[a-z][a-z0-9_.-]{0,10}", fullmatch=True)
FILES = st.dictionaries(NAMES, st.binary(max_size=200), max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), JSON, max_size=3)


def put(store: Store, request: object, files: dict[str, bytes | Path], kind: str = "thing", **meta: Any) -> Artifact:
    return store.put(key_of(request), kind, files, meta=meta, usage={"n": 1}, circumstance={"threads": 1})


class StoreContract:
    """Tests take `store`, an empty store."""

    def test_nothing_is_there_before_it_is_put(self, store: Store) -> None:
        assert store.get(key_of("unknown")) is None
        assert store.list() == []
        assert store.disk_bytes() == 0

    @settings(
        deadline=None,
        max_examples=40,
        # One test is run by a class for each store, on purpose.
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.differing_executors,
        ],
    )
    @given(request=JSON, files=FILES, meta=OBJECTS, usage=OBJECTS, circumstance=OBJECTS)
    def test_what_was_put_comes_back(
        self, store: Store, request: Any, files: Any, meta: Any, usage: Any, circumstance: Any
    ) -> None:
        files = {name: data for name, data in files.items() if name not in ("manifest.json", "used")}
        key = key_of([request, meta, {name: digest_of(data) for name, data in files.items()}, usage, circumstance])
        put = store.put(key, "thing", files, meta=meta, usage=usage, circumstance=circumstance)
        got = store.get(key)
        assert got == put
        assert (got.key, got.kind, got.meta, got.usage) == (key, "thing", meta, usage)
        assert got.circumstance == circumstance
        assert {name: got.read_bytes(name) for name in got.files} == files
        assert got.files == {name: digest_of(data) for name, data in files.items()}

    def test_a_file_is_copied(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "weights"
        source.write_bytes(b"w" * 3_000_001)
        artifact = put(store, "file", {"weights.bin": source})
        source.write_bytes(b"later")
        assert artifact.file("weights.bin").stat().st_size == 3_000_001
        assert artifact.files["weights.bin"] == digest_of(b"w" * 3_000_001)
        assert store.get(artifact.key) == artifact

    def test_the_first_artifact_of_a_key_wins(self, store: Store) -> None:
        first = put(store, "same", {"a.txt": b"first"})
        assert put(store, "same", {"a.txt": b"second"}) == first
        assert first.read_bytes("a.txt") == b"first"

    def test_equal_bytes_have_equal_digests_under_any_key(self, store: Store) -> None:
        one, two = put(store, 1, {"a": b"x", "b": b"y"}), put(store, 2, {"b": b"y", "a": b"x"})
        other = put(store, 3, {"a": b"y", "b": b"x"})
        assert one.digest == two.digest != other.digest

    @pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden", "manifest.json", "used", "a" * 200, "a\n"])
    def test_names_are_plain(self, store: Store, name: str) -> None:
        with pytest.raises(StoreError, match="no name for a file"):
            put(store, "bad", {name: b""})
        assert store.list() == []

    @pytest.mark.parametrize("key", ["", "abc", "../" * 20, "A" * 64, "0" * 65])
    def test_keys_are_keys(self, store: Store, key: str) -> None:
        with pytest.raises(StoreError, match="is not a key"):
            store.get(key)
        with pytest.raises(StoreError, match="is not a key"), store.making(key):
            pass

    def test_series_and_kinds_are_found(self, store: Store) -> None:
        short = put(store, 1, {}, kind="labels", series="pool", n=200)
        long = put(store, 2, {}, kind="labels", series="pool", n=800)
        put(store, 3, {}, kind="labels", series="other", n=200)
        model = put(store, 4, {}, kind="model", n=200)
        assert {a.key for a in store.find("labels", {"series": "pool"})} == {short.key, long.key}
        assert store.find("labels", {"series": "pool", "n": 800}) == [long]
        assert store.find("model") == [model]
        assert store.find("labels", {"missing": None}) == []

    def test_a_workspace_outlives_its_maker_until_it_is_cleared(self, store: Store) -> None:
        key = key_of("made")

        def interrupted() -> None:
            with store.making(key) as work:
                assert work.found is None
                (work.path / "checkpoint").write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        with store.making(key) as work:
            assert (work.path / "checkpoint").read_text() == "half"
            artifact = put(store, "made", {"a": b"whole"})
            work.clear()
        with store.making(key) as work:
            assert work.found == artifact
            assert list(work.path.iterdir()) == []

    def test_one_thread_makes_and_the_others_find(self, store: Store) -> None:
        key, made, waited = key_of("raced"), [], []
        start = threading.Barrier(6)

        def ask() -> None:
            start.wait()
            with store.making(key, on_wait=waited.append, poll_seconds=0.001) as work:
                if work.found is None:
                    made.append(put(store, "raced", {"a": b"once"}))
                    work.clear()

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1
        assert all("process" in who for who in waited)

    def test_gc_takes_the_least_recently_used_first(self, store: Store) -> None:
        artifacts = [put(store, i, {"data": b"x" * 10_000}) for i in range(4)]
        for rank, i in enumerate([2, 0, 3, 1]):
            self.used_at(artifacts[i], 1_000_000 + rank)
        store.get(artifacts[2].key)  # a use: now it is the youngest
        n_bytes = store.disk_bytes()
        report = store.gc(max_bytes=25_000)
        assert [a.key for a in report.removed] == [artifacts[0].key, artifacts[3].key]
        assert {a.key for a in store.list()} == {artifacts[1].key, artifacts[2].key}
        assert store.disk_bytes() == n_bytes - report.freed_bytes <= 25_000

    def test_gc_keeps_what_it_is_told_to_and_what_is_being_made(self, store: Store) -> None:
        kept, making, gone = (put(store, i, {"data": b"x"}) for i in range(3))
        with store.making(making.key):
            dry = store.gc(lambda artifact: artifact.key == kept.key, dry_run=True)
            assert [a.key for a in dry.removed] == [gone.key]
            assert store.get(gone.key) == gone
            report = store.gc(lambda artifact: artifact.key == kept.key)
            assert (report.removed, report.freed_bytes) == (dry.removed, dry.freed_bytes)
        assert {a.key for a in store.list()} == {kept.key, making.key}
        assert store.gc().removed == ()

    def test_gc_by_age(self, store: Store) -> None:
        old, young = put(store, 1, {}), put(store, 2, {})
        self.used_at(old, 1_000_000)
        assert [a.key for a in store.gc(older_than_seconds=3600).removed] == [old.key]
        assert store.get(young.key) == young

    def used_at(self, artifact: Artifact, seconds: float) -> None:
        """Make it look as if ``artifact`` was last used then (Unix time)."""
        raise NotImplementedError
