"""Ledger and store of format 1, written by the program that knew no other (`tests/fixtures`), opened by this one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outlay.engine.prepare import RunBuilder
from outlay.engine.step_runner import StepRunner
from outlay.errors import LedgerDamaged, SpendError, StoreError
from outlay.money.amounts import Price, PriceBook
from outlay.money.ledger import Anchor, Ledger
from outlay.money.ledger.migrations import MIGRATIONS
from outlay.plan.request import Request
from outlay.storage import migrations as store_migrations
from outlay.storage.migrations import FORMAT_FILE, StoreMigration, format_of
from outlay.storage.store import Store, key_of
from tests.runs import OneByOne
from tests.test_cli import outlay, refused

FIXTURE = Path(__file__).parent / "fixtures" / "format_1.zip"
USD = 1_000_000


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the program of before left; models and task are named from within it."""
    shutil.unpack_archive(FIXTURE, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture
def expected(old: Path) -> dict[str, Any]:
    """What the program of before said of it."""
    document: dict[str, Any] = json.loads((old / "expected.json").read_text())
    return document


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


# --- the ledger ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ledger", "out"])
def test_an_old_ledger_is_verified_as_it_is(old: Path, expected: dict[str, Any], name: str) -> None:
    path = old / name / "ledger.sqlite"
    before, anchor = path.read_bytes(), Anchor(*expected[name]["anchor"])
    found = Ledger(path).verify([anchor])
    assert (found.ok, found.n_entries, found.head) == (True, anchor.count, anchor.head), found.reason
    assert path.read_bytes() == before
    assert version_of(path) == 1


@pytest.mark.parametrize("name", ["ledger", "out"])
def test_an_old_ledger_says_what_it_said_and_its_old_anchor_holds(
    old: Path, expected: dict[str, Any], name: str
) -> None:
    path, was = old / name / "ledger.sqlite", expected[name]
    ledger, anchor = Ledger(path), Anchor(*was["anchor"])
    assert {run_id: asdict(ledger.balance(run_id)) for run_id in ledger.run_ids()} == was["balances"]
    entries = ledger.entries()
    said = [[str(value) for field, value in _fields(entry) if field != "artifact_key"] for entry in entries]
    assert said[: anchor.count] == was["entries"]
    assert {entry.kind for entry in entries[anchor.count :]} <= {"stored"}
    assert len(entries) - anchor.count == (name == "out")
    assert all(entry.artifact_key is None for entry in entries[: anchor.count])
    assert version_of(path) == len(MIGRATIONS) == 2
    found = ledger.verify([anchor])
    assert (found.ok, found.n_entries) == (True, len(entries)), found.reason
    own = json.loads(ledger.anchor_path.read_text())
    assert (own["head"], own["count"]) == (ledger.anchor().head, len(entries))
    ledger.close()
    assert Ledger(path).entries() == entries  # migrated once


def _fields(entry: Any) -> Iterator[tuple[str, Any]]:
    return ((name, getattr(entry, name)) for name in entry.__dataclass_fields__)


@pytest.mark.parametrize("name", ["ledger", "out"])
def test_receipts_of_an_old_folder_are_what_they_were(old: Path, expected: dict[str, Any], name: str) -> None:
    shown, verified = outlay("ledger", "show", name), outlay("ledger", "verify", name)

    def without_head(text: str) -> list[str]:
        """Without the hash of the last entry, and what a receipt of today says above its table of what was run."""
        kept, is_told = list[str](), False
        for line in text.splitlines():
            is_told = (is_told or line.startswith("opened ")) and line != ""
            if not line.startswith("entry ") and (not is_told or line.startswith("opened ")):
                kept.append(line)
        return kept

    assert (shown.code, verified.code) == (0, 0), verified.err
    assert without_head(shown.out) == without_head(expected["show"][name])
    assert len(without_head(shown.out)) < len(shown.out.splitlines())


def test_a_run_that_was_cut_short_is_replayed_without_paying_again(
    old: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = expected["run_id"]
    dear = Price("cpu", "hour", Decimal(2_000), "a test", None)
    one = OneByOne(Path("out"), Store(Path("store")), here=dear)
    quick = {"batch_size": 8, "learning_rate": 0.005, "precision": "fp32"}
    plain = {"precision": "fp32", "method": "full"}
    roles = {"student": {**quick, **plain, "epochs": 4000}, "teacher": plain, "distil": plain}
    request = Request("task.yaml", "annotate", 2 * USD, student="./checkpoint", threads=1, overrides=roles)
    prepared = RunBuilder(PriceBook.load()).prepare(request)
    assert prepared.request.run_id == run_id
    assert one.ledger.artifact_keys(run_id, expected["step"]) == [expected["cut_short"]]
    (one.run_folder(run_id).manifest).unlink()
    before = one.ledger.entries()

    def refuse(*_: object) -> None:
        raise AssertionError("nothing should be computed here")

    monkeypatch.setattr(StepRunner, "make", refuse)
    point = one.execute(prepared)
    result = json.loads(point.result_bytes())
    # What is told of a model's answers came later; it is read from the same artifacts.
    assert result.pop("quality")["labels"]
    assert result == expected["point"]
    assert one.ledger.entries() == before
    assert one.ledger.verify([Anchor(*expected["out"]["anchor"])]).ok
    document = json.loads(one.run_folder(run_id).manifest.read_text())
    assert expected["cut_short"] in [artifact["key"] for artifact in document["artifacts"]]


def test_where_an_old_artifact_is_stored_cannot_be_forged(old: Path) -> None:
    path = old / "out" / "ledger.sqlite"
    ledger = Ledger(path)
    (stored,) = [entry for entry in ledger.entries() if entry.kind == "stored"]
    settled = next(entry for entry in ledger.entries() if entry.kind == "settle")
    ledger.close()
    for seq, first_bad in ((stored.seq, stored.seq), (settled.seq, settled.seq)):
        shutil.copytree(old / "out", old / f"forged-{seq}")
        forged = old / f"forged-{seq}" / "ledger.sqlite"
        with closing(sqlite3.connect(forged, isolation_level=None)) as db:
            (guard,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'entries_no_update'").fetchone()
            db.execute("DROP TRIGGER entries_no_update")
            db.execute("UPDATE entries SET artifact_key = ? WHERE seq = ?", ("f" * 64, seq))
            db.execute(guard)
        found = Ledger(forged).verify()
        assert (found.ok, found.first_bad) == (False, first_bad)


KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from outlay.money.ledger import Ledger

class Dying(sqlite3.Connection):
    left = None
    def execute(self, sql, *rest):
        if sql == "BEGIN IMMEDIATE" and Dying.left is None:
            Dying.left = int(sys.argv[2])
        if Dying.left is not None:
            Dying.left -= 1
            if Dying.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(sql, *rest)

connect = sqlite3.connect
sqlite3.connect = lambda *where, **how: connect(*where, **how, factory=Dying)
Ledger(Path(sys.argv[1])).run_ids()
"""


def test_a_migration_that_is_killed_at_any_statement_is_made_up_for(old: Path, expected: dict[str, Any]) -> None:
    was, anchor, versions = expected["out"], Anchor(*expected["out"]["anchor"]), []
    for n_statements in range(30):
        folder = old / f"killed-{n_statements}"
        shutil.copytree(old / "out", folder)
        path = folder / "ledger.sqlite"
        ran = subprocess.run([sys.executable, "-c", KILLED, str(path), str(n_statements)], capture_output=True)
        assert ran.returncode in (0, -signal.SIGKILL), ran.stderr
        versions.append(version_of(path))
        assert Ledger(path).verify([anchor]).ok
        ledger = Ledger(path)
        assert {run_id: asdict(ledger.balance(run_id)) for run_id in ledger.run_ids()} == was["balances"]
        assert ledger.artifact_keys(expected["run_id"], expected["step"]) == [expected["cut_short"]]
        assert [entry.kind for entry in ledger.entries()].count("stored") == 1
        found = ledger.verify([anchor])
        assert (found.ok, found.n_entries) == (True, anchor.count + 1), found.reason
        ledger.close()
        if ran.returncode == 0:
            break
    else:
        pytest.fail("every process was killed")
    # One transaction: before its end the file is of format 1, whatever was done; afterwards of format 2.
    assert versions == sorted(versions)
    assert versions.count(1) > 5
    assert versions.count(2) > 1


def test_many_who_open_an_old_ledger_together_migrate_it_once(old: Path, expected: dict[str, Any]) -> None:
    path, kinds = old / "out" / "ledger.sqlite", []
    gate = threading.Barrier(5)

    def open_it() -> None:
        gate.wait()
        with Ledger(path) as ledger:
            kinds.append([entry.kind for entry in ledger.entries()])

    threads = [threading.Thread(target=open_it) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.count("stored") for each in kinds] == [1] * 5
    assert Ledger(path).verify([Anchor(*expected["out"]["anchor"])]).ok


def test_a_new_ledger_holds_the_key_of_what_it_settled_in_the_chain(old: Path) -> None:
    from tests.test_ledger import quote

    path = old / "new.sqlite"
    ledger = Ledger(path)
    ledger.open_run("run", 100 * USD)
    for name, key in (("a", "a" * 64), ("a/again-1", "b" * 64), ("ab", "c" * 64), ("d", None)):
        hold = ledger.hold("run", name, quote(1))
        ledger.settle(hold, quantity=hold.quote.quantity, charge_micros=250_000, cash_micros=0, artifact_key=key)
    assert ledger.artifact_keys("run", "a") == ["b" * 64, "a" * 64]
    assert ledger.artifact_keys("run", "d") == []
    assert ledger.verify().ok


@pytest.fixture
def sealed(old: Path) -> Iterator[Path]:
    """The old folder on a disk that cannot be written, where this user may mount one."""
    folder = old / "sealed"
    folder.mkdir()
    mount, again = ("mount", "--bind", str(old / "out"), str(folder)), ("mount", "-o", "remount,ro,bind", str(folder))
    if os.geteuid() != 0 or not all(subprocess.run(one, capture_output=True).returncode == 0 for one in (mount, again)):
        subprocess.run(("umount", str(folder)), capture_output=True)
        pytest.skip("no read-only disk may be mounted: run as root, outside of a container without CAP_SYS_ADMIN")
    yield folder
    subprocess.run(("umount", "-l", str(folder)), check=True)


def test_an_old_ledger_on_a_disk_that_cannot_be_written_is_read(sealed: Path, expected: dict[str, Any]) -> None:
    ledger = Ledger(sealed / "ledger.sqlite")
    assert asdict(ledger.balance(expected["run_id"])) == expected["out"]["balances"][expected["run_id"]]
    assert ledger.artifact_keys(expected["run_id"], expected["step"]) == [expected["cut_short"]]
    assert ledger.verify([Anchor(*expected["out"]["anchor"])]).ok
    with pytest.raises(SpendError, match="readonly"):
        ledger.top_up(expected["run_id"], USD)
    assert version_of(sealed.parent / "out" / "ledger.sqlite") == 1


def test_a_newer_ledger_is_refused_in_one_line(old: Path) -> None:
    assert [migration.number for migration in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))
    path = old / "out" / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    refused(outlay("ledger", "show", "out"), "version 3", "up to 2", "upgrade outlay")
    with pytest.raises(LedgerDamaged):
        Ledger(path).run_ids()
    assert not Ledger(path).verify().ok


# --- the store -----------------------------------------------------------------------------------------------------------


def test_an_old_store_is_read_as_it_is_and_says_its_format_once_it_is_written(
    old: Path, expected: dict[str, Any]
) -> None:
    store = Store(old / "store")
    before = sorted(path for path in store.root.rglob("*") if path.name != "used")
    assert {artifact.key: artifact.digest for artifact in store.list()} == expected["artifacts"]
    for key, digest in expected["artifacts"].items():
        found = store.get(key)
        assert found is not None
        assert found.digest == digest
    assert sorted(path for path in store.root.rglob("*") if path.name != "used") == before
    assert format_of(store.root) == 1
    assert not (store.root / FORMAT_FILE).exists()
    store.put(key_of("new"), "thing", {"a": b"1"}, meta={}, usage={}, circumstance={})
    assert (store.root / FORMAT_FILE).read_text() == "1\n"


@pytest.mark.parametrize(("text", "says"), [("2", "upgrade outlay"), ("99\n", "upgrade outlay"), ("x", "format")])
def test_a_store_of_another_format_is_refused_in_one_line_whatever_is_asked(old: Path, text: str, says: str) -> None:
    (old / "store" / FORMAT_FILE).write_text(text)
    before = sorted((old / "store").rglob("*"))

    def make() -> None:
        with Store(old / "store").making(key_of("new")):
            pass

    asked = (
        lambda: Store(old / "store").get(key_of("new")),
        lambda: Store(old / "store").put(key_of("new"), "thing", {}, meta={}, usage={}, circumstance={}),
        lambda: Store(old / "store").list(),
        lambda: Store(old / "store").gc(max_bytes=0),
        make,
    )
    for ask in asked:
        with pytest.raises(StoreError, match=says) as error:
            ask()
        assert text.strip() in str(error.value)
        assert "\n" not in str(error.value)
    assert sorted((old / "store").rglob("*")) == before


def list_keys(root: Path) -> None:
    """A migration that is told of in two files, one after the other; it may be killed between them."""
    keys = sorted(path.name for path in root.glob("objects/??/*"))
    (root / "keys.json").write_text(json.dumps(keys))
    if os.environ.get("OUTLAY_TEST_KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    (root / "count.json").write_text(json.dumps(len(keys)))


class NextStore(Store):
    migrations = (*store_migrations.MIGRATIONS, StoreMigration(2, "keep a list of all keys", list_keys))


def test_a_store_is_migrated_once_and_a_killed_migration_is_made_up_for(old: Path, expected: dict[str, Any]) -> None:
    code = "from pathlib import Path\nfrom tests.test_migrations import NextStore\nNextStore(Path('store')).list()"
    root, here = old / "store", Path(__file__).parents[1]
    environment = {**os.environ, "OUTLAY_TEST_KILL": "1", "PYTHONPATH": f"{here / 'src'}:{here}"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert (root / "keys.json").exists()
    assert format_of(root) == 1
    assert {artifact.key for artifact in Store(root).list()} == expected[
        "artifacts"
    ].keys()  # for the program of before
    assert {artifact.key for artifact in NextStore(root).list()} == expected["artifacts"].keys()
    assert json.loads((root / "count.json").read_text()) == len(expected["artifacts"])
    assert format_of(root) == 2
    assert not (root / "migrating").exists()
    (root / "count.json").unlink()
    NextStore(root).list()
    assert not (root / "count.json").exists()
    with pytest.raises(StoreError, match=r"format 2.*up to 1"):
        Store(root).list()


def test_a_new_store_is_of_the_newest_format(tmp_path: Path) -> None:
    store = NextStore(tmp_path / "store")
    assert store.get(key_of("new")) is None
    assert not store.root.exists()
    store.put(key_of("new"), "thing", {}, meta={}, usage={}, circumstance={})
    assert format_of(store.root) == 2
    assert not (store.root / "count.json").exists()  # there was nothing to migrate
