from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from outlay.errors import AlreadyPaid, BudgetExceeded, HoldError, LedgerDamaged, MissingData, MoneyError
from outlay.money.amounts import Price, Quote
from outlay.money.ledger import Anchor, Hold, Ledger
from outlay.money.ledger.chain import COLUMNS, hash_of

LABEL = Price("label/x", "label", Decimal("0.25"), "here", None)
HOUR = Price("gpu", "hour", Decimal("1.875"), "here", None)
USD = 1_000_000


def quote(n: int, cash_micros: int | None = None) -> Quote:
    return Quote.of(LABEL, n, cash_micros)


def settle(ledger: Ledger, hold: Hold, n: int | Fraction, cash: int = 0) -> None:
    charge = LABEL.cost_micros(n)
    ledger.settle(hold, quantity=Fraction(n), charge_micros=charge, cash_micros=cash)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    made = Ledger(path)
    made.open_run("run", 100 * USD)
    return made


def lived(path: Path) -> Ledger:
    """A ledger with every kind of entry: two runs, an overrun, lost work, a top-up and a cancel."""
    ledger = Ledger(path, clock=lambda: 1_700_000_000.25)
    ledger.open_run("run", 100 * USD, note="first")
    settle(ledger, ledger.hold("run", "labels", quote(100)), 90, cash=1_000)
    hours = ledger.hold("run", "teacher", Quote.of(HOUR, 2))
    third = Fraction(7, 3)
    cost = HOUR.cost_micros(third)
    ledger.settle(hours, quantity=third, charge_micros=cost, cash_micros=cost, cash_quantity=third, note="too slow")
    ledger.open_run("other", 5 * USD)
    ledger.release(ledger.hold("other", "a", quote(4)), lost_cash_micros=300_000, note="killed")
    ledger.top_up("other", USD)
    ledger.hold("other", "a", quote(3))
    ledger.cancel("other", note="enough")
    ledger.release(ledger.hold("run", "b", quote(1)))
    ledger.hold("run", "c", quote(1))
    return ledger


# --- what a person does with it


def test_a_settled_purchase_frees_what_it_did_not_need(ledger: Ledger) -> None:
    hold = ledger.hold("run", "labels", quote(100))
    assert ledger.balance("run").available_charge_micros == 75 * USD
    settle(ledger, hold, 80)
    now = ledger.balance("run")
    assert (now.charged_micros, now.cash_micros, now.held_charge_micros) == (20 * USD, 0, 0)
    assert (now.available_charge_micros, now.available_cash_micros) == (80 * USD, 100 * USD)
    entry = ledger.settled("run", "labels")
    assert entry is not None
    assert (entry.quantity, entry.unit_usd, entry.hold_seq) == (80, "0.25", hold.seq)
    assert ledger.settled("run", "other") is None


@pytest.mark.parametrize("cash", [0, None])
def test_a_hold_larger_than_what_is_left_is_refused(ledger: Ledger, cash: int | None) -> None:
    ledger.hold("run", "a", quote(399, cash))
    with pytest.raises(BudgetExceeded, match=r"\$0\.50 of charge.* \$0\.25 .*\$100\.00.*top"):
        ledger.hold("run", "b", quote(2, cash))
    ledger.hold("run", "b", quote(1, cash))
    with pytest.raises(BudgetExceeded):
        ledger.hold("run", "c", quote(1, cash))


def test_the_budget_limits_cash_as_well(ledger: Ledger) -> None:
    ledger.hold("run", "a", quote(1, cash_micros=100 * USD))
    with pytest.raises(BudgetExceeded, match="of cash"):
        ledger.hold("run", "b", quote(1, cash_micros=1))
    ledger.hold("run", "b", quote(1, cash_micros=0))


def test_an_overrun_is_booked_and_what_is_left_stops_at_zero(ledger: Ledger) -> None:
    first = ledger.hold("run", "a", quote(300))
    settle(ledger, first, 500, cash=130 * USD)
    now = ledger.balance("run")
    assert (now.charged_micros, now.overrun_charge_micros) == (75 * USD, 50 * USD)
    assert (now.cash_micros, now.overrun_cash_micros) == (75 * USD, 55 * USD)
    assert (now.total_charge_micros, now.total_cash_micros) == (125 * USD, 130 * USD)
    assert (now.available_charge_micros, now.available_cash_micros) == (0, 0)
    with pytest.raises(BudgetExceeded):
        ledger.hold("run", "b", quote(1, cash_micros=0))
    ledger.top_up("run", 31 * USD)
    assert ledger.balance("run").available_charge_micros == 6 * USD
    ledger.hold("run", "b", quote(4))
    assert ledger.verify().ok


def test_lost_work_costs_cash_and_never_a_charge(ledger: Ledger) -> None:
    hold = ledger.hold("run", "a", quote(40))
    ledger.release(hold, lost_cash_micros=12 * USD, note="killed")
    now = ledger.balance("run")
    assert (now.charged_micros, now.lost_micros, now.overrun_cash_micros) == (0, 10 * USD, 2 * USD)
    assert (now.available_charge_micros, now.available_cash_micros) == (100 * USD, 88 * USD)
    ledger.hold("run", "a", quote(40))
    assert ledger.verify().ok


def test_what_is_booked_together_is_committed_together(ledger: Ledger, path: Path) -> None:
    elsewhere = Ledger(path)
    anchor = ledger.anchor_path.read_bytes()
    with ledger.together():
        settle(ledger, ledger.hold("run", "a", quote(4)), 4)
        with ledger.together():
            settle(ledger, ledger.hold("run", "b", quote(8)), 8)
        assert ledger.settled("run", "b") is not None
        assert ledger.balance("run").charged_micros == 3 * USD
        assert elsewhere.settled("run", "a") is None
        assert ledger.anchor_path.read_bytes() == anchor
    assert elsewhere.balance("run").charged_micros == 3 * USD
    assert ledger.verify().ok
    assert json.loads(ledger.anchor_path.read_text())["count"] == 5


def test_of_what_is_booked_together_each_call_fails_for_itself(ledger: Ledger) -> None:
    def booked() -> None:
        with ledger.together():
            settle(ledger, ledger.hold("run", "a", quote(4)), 4)
            with pytest.raises(BudgetExceeded):
                ledger.hold("run", "b", quote(400))
            hold = ledger.hold("run", "c", quote(8))
            with pytest.raises(MoneyError):
                ledger.settle(hold, quantity=Fraction(8), charge_micros=1, cash_micros=0)
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        booked()
    assert [hold.key for hold in ledger.open_holds("run")] == ["c"]
    assert ledger.balance("run").charged_micros == 1 * USD
    assert ledger.verify().ok
    with ledger.together():
        pass
    assert len(ledger.entries()) == 4


def test_what_is_booked_together_is_gone_where_the_process_dies_before_the_end(ledger: Ledger, path: Path) -> None:
    def die() -> None:
        own = Ledger(path)
        with own.together():
            settle(own, own.hold("run", "a", quote(4)), 4)
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [entry.kind for entry in ledger.entries()] == ["open"]
    settle(ledger, ledger.hold("run", "a", quote(4)), 4)
    assert ledger.verify().ok


def test_a_key_is_paid_once_and_held_once(ledger: Ledger) -> None:
    hold = ledger.hold("run", "a", quote(1))
    with pytest.raises(HoldError, match="held by entry 2"):
        ledger.hold("run", "a", quote(1))
    settle(ledger, hold, 1)
    with pytest.raises(AlreadyPaid, match="settled by entry 3"):
        ledger.hold("run", "a", quote(1))
    ledger.open_run("run 2", USD)
    ledger.hold("run 2", "a", quote(1))  # keys belong to a run


def test_a_closed_foreign_or_unknown_hold_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    hold, open_hold = ledger.hold("run", "a", quote(1)), ledger.hold("run", "b", quote(1))
    settle(ledger, hold, 1)
    elsewhere = Ledger(tmp_path / "elsewhere.sqlite", clock=lambda: 0.0)
    elsewhere.open_run("run", 100 * USD)
    foreign = elsewhere.hold("run", "a", quote(1))
    wrong = [hold, foreign, replace(open_hold, seq=99), replace(open_hold, key="a"), replace(open_hold, quote=quote(2))]
    for closed in wrong:
        for action in (ledger.release, ledger.renew, lambda hold: settle(ledger, hold, 1)):
            with pytest.raises(HoldError):
                action(closed)
    assert [hold.key for hold in ledger.open_holds("run")] == ["b"]


def test_the_charge_is_the_exact_product_rounded_up_once(ledger: Ledger) -> None:
    hold = ledger.hold("run", "a", Quote.of(HOUR, 1))
    third = Fraction(1, 7)
    for charge in (HOUR.cost_micros(third) - 1, HOUR.cost_micros(third) + 1):
        with pytest.raises(MoneyError, match=r"\$0\.267858"):
            ledger.settle(hold, quantity=third, charge_micros=charge, cash_micros=0)
    with pytest.raises(MoneyError, match="cash"):
        ledger.settle(
            hold, quantity=third, charge_micros=HOUR.cost_micros(third), cash_micros=5, cash_quantity=Fraction(1)
        )
    ledger.settle(hold, quantity=third, charge_micros=267_858, cash_micros=0, cash_quantity=Fraction(0))
    assert ledger.entries()[-1].quantity == third


def test_opening_again_appends_nothing_and_another_budget_is_refused(ledger: Ledger) -> None:
    ledger.top_up("run", USD)
    before = ledger.anchor()
    ledger.open_run("run", 100 * USD)
    assert ledger.anchor() == before
    with pytest.raises(MoneyError, match="top it up"):
        ledger.open_run("run", 101 * USD)


def test_a_cancelled_run_releases_its_holds_and_refuses_later_ones(ledger: Ledger) -> None:
    hold = ledger.hold("run", "a", quote(4))
    ledger.cancel("run")
    before = ledger.anchor()
    ledger.cancel("run")
    assert ledger.anchor() == before
    assert ledger.open_holds("run") == []
    for action in (lambda: ledger.hold("run", "b", quote(1)), lambda: ledger.top_up("run", USD)):
        with pytest.raises(HoldError, match="was cancelled"):
            action()
    with pytest.raises(HoldError):
        settle(ledger, hold, 1)
    ledger.release(hold, lost_cash_micros=USD)  # what its owner had already paid is still the truth
    with pytest.raises(HoldError):
        ledger.release(hold, lost_cash_micros=USD)
    assert ledger.balance("run").lost_micros == USD
    assert ledger.verify().ok


def test_a_cap_limits_the_cash_of_all_runs_together(path: Path) -> None:
    ledger = Ledger(path, cash_cap_micros=10 * USD)
    for run in ("a", "b"):
        ledger.open_run(run, 100 * USD)
    settle(ledger, ledger.hold("a", "k", quote(24)), 24, cash=6 * USD)
    ledger.hold("b", "free", quote(200, cash_micros=0))
    with pytest.raises(BudgetExceeded, match="cap of"):
        ledger.hold("b", "k", quote(17))
    ledger.hold("b", "k", quote(16))


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (lambda ledger: ledger.open_run("r", 0), MoneyError),
        (lambda ledger: ledger.open_run("r", -1), MoneyError),
        (lambda ledger: ledger.open_run("r", 1.5), MoneyError),
        (lambda ledger: ledger.open_run(" ", 1), HoldError),
        (lambda ledger: ledger.open_run("two\nlines", 1), HoldError),
        (lambda ledger: ledger.top_up("run", 0), MoneyError),
        (lambda ledger: ledger.top_up("unknown", 1), HoldError),
        (lambda ledger: ledger.cancel("unknown"), HoldError),
        (lambda ledger: ledger.balance("unknown"), HoldError),
        (lambda ledger: ledger.hold("unknown", "k", quote(1)), HoldError),
        (lambda ledger: ledger.hold("run", "", quote(1)), HoldError),
        (lambda ledger: ledger.open_holds("unknown"), HoldError),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    ledger: Ledger, action: Callable[[Ledger], object], error: type[Exception]
) -> None:
    before = ledger.anchor()
    with pytest.raises(error) as refused:
        action(ledger)
    assert "\n" not in str(refused.value)
    assert ledger.anchor() == before


# --- the file


def test_reading_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "absent.sqlite")
    for read in (ledger.entries, ledger.anchor, lambda: ledger.balance("run"), lambda: ledger.cancel("run")):
        with pytest.raises(MissingData, match="no ledger"):
            read()
    assert not ledger.verify().ok
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"not a database, but a letter " * 400, b"SQLite format 3\x00" + b"\xff" * 9000]
)
def test_a_file_that_is_no_ledger_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerDamaged) as refused:
        Ledger(path).entries()
    assert "\n" not in str(refused.value)
    assert not Ledger(path).verify().ok


def test_another_database_and_a_newer_ledger_are_refused(path: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(LedgerDamaged, match="no ledger"):
        Ledger(tmp_path / "other.sqlite").open_run("run", USD)
    lived(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerDamaged, match="upgrade outlay"):
        Ledger(path).entries()
    assert not Ledger(path).verify().ok


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET charge_micros = 0",
        "UPDATE entries SET note = note WHERE seq = 1",
        "UPDATE OR REPLACE entries SET seq = 2 WHERE seq = 1",
        "DELETE FROM entries",
        "DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries WHERE seq = 1",
        "REPLACE INTO entries SELECT * FROM entries WHERE seq = 3",
        "INSERT INTO entries SELECT * FROM entries WHERE seq = 1",
    ],
)
def test_the_past_cannot_be_rewritten(path: Path, statement: str) -> None:
    lived(path).close()
    before = Ledger(path).entries()
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as db,
        pytest.raises(sqlite3.IntegrityError, match="ledger"),
    ):
        db.execute(statement)
    assert Ledger(path).entries() == before


def test_a_replacement_that_collides_with_any_unique_index_is_refused(path: Path) -> None:
    """`REPLACE` skips delete triggers: a new row with an old settle's key would silently remove that settle."""
    ledger = lived(path)
    head, entries = ledger.anchor(), ledger.entries()
    ledger.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for entry in entries:
            (row,) = db.execute(f"SELECT {', '.join(COLUMNS)} FROM entries WHERE seq = ?", (entry.seq,)).fetchall()
            clone = dict(zip(COLUMNS, row, strict=True)) | {"seq": head.count + 1, "prev_hash": head.head}
            for change in ({}, {"key": "fresh"}, {"hold_seq": 999}, {"hash": hash_of(clone)}):
                values = {**clone, "hash": hash_of(clone), **change}
                statement = f"INSERT OR REPLACE INTO entries VALUES ({', '.join('?' * len(COLUMNS))})"
                db.execute("BEGIN")
                with suppress(sqlite3.IntegrityError):
                    db.execute(statement, [values[name] for name in COLUMNS])
                survivors = db.execute("SELECT count(*) FROM entries WHERE seq <= ?", (head.count,)).fetchone()
                if db.in_transaction:
                    db.execute("ROLLBACK")
                assert survivors == (head.count,), (entry, change)


# --- verify


def _rewritten(path: Path, statement: str, values: tuple[object, ...]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        db.execute(statement, values)
        for _, sql in triggers:
            db.execute(sql)
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.parent.glob(f"{source.name}*"):
        shutil.copy(file, target / file.name)
    return target / source.name


def test_an_honest_ledger_is_verified(path: Path) -> None:
    ledger = lived(path)
    found = ledger.verify([ledger.anchor(), Anchor("0" * 64, 0)])
    assert found.ok, found.reason
    kinds = {entry.kind for entry in ledger.entries()}
    assert kinds == {"open", "topup", "hold", "settle", "overrun", "release", "lost", "cancel"}
    assert (found.n_entries, found.head) == (ledger.anchor().count, ledger.anchor().head)
    ledger.close()
    before = sorted(path.parent.iterdir())
    assert Ledger(path).verify().ok
    assert sorted(path.parent.iterdir()) == before


def test_any_changed_field_of_any_entry_is_found_and_named(path: Path) -> None:
    lived(path).close()
    content = path.read_bytes()
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY seq").fetchall()
    n_found = 0
    for seq, row in enumerate(rows, start=1):
        for column, before in zip(COLUMNS, row, strict=True):
            lies = ("x", 7, None, 1.5, b"\x00") if column in ("charge_micros", "hash", "hold_seq") else ("7", "99")
            for value in lies:
                try:
                    _rewritten(path, f"UPDATE entries SET {column} = ? WHERE seq = ?", (value, seq))
                except sqlite3.IntegrityError:
                    continue  # NOT NULL and the unique indexes refuse even that
                found = Ledger(path).verify()
                path.write_bytes(content)
                if str(before) == str(value):
                    assert found.ok
                    continue
                assert not found.ok, (seq, column, value)
                assert found.first_bad == seq, (seq, column, value)
                assert "\n" not in found.reason
                n_found += 1
    assert n_found > 20 * len(rows)


def _live_offsets(path: Path) -> list[int]:
    """Offsets of file bytes inside the records of entries: where some column's own text is stored."""
    content = path.read_bytes()
    offsets = []
    with closing(sqlite3.connect(path)) as db:
        for row in db.execute("SELECT note, at, prev_hash, hash, unit_usd, item FROM entries"):
            for text in row:
                start = content.find(text.encode())
                while len(text) > 4 and start >= 0:
                    offsets += [start, start + len(text) - 1, start + len(text) // 2]
                    start = content.find(text.encode(), start + 1)
    return sorted(set(offsets))


def test_a_flipped_byte_in_the_file_is_found(path: Path) -> None:
    lived(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("VACUUM")  # leaves no copies of rows behind in unused space
    content = path.read_bytes()
    offsets = _live_offsets(path)
    assert len(offsets) > 200
    for offset in offsets:
        damaged = bytearray(content)
        damaged[offset] ^= 0x01
        path.write_bytes(bytes(damaged))
        found = Ledger(path).verify()
        assert not found.ok, offset
        assert "\n" not in found.reason


def test_a_rewritten_past_with_a_sound_chain_is_found_by_its_anchors(path: Path) -> None:
    """Whoever rewrites every later hash as well still cannot match an anchor kept elsewhere."""
    ledger = lived(path)
    kept = ledger.anchor()
    ledger.close()
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY seq").fetchall()
    head = "0" * 64
    for row in rows:
        values = dict(zip(COLUMNS, row, strict=True)) | {"prev_hash": head}
        values["note"] = "forged" if values["seq"] == 1 else values["note"]
        head = hash_of(values)
        _rewritten(path, "UPDATE entries SET note = ?, prev_hash = ?, hash = ? WHERE seq = ?", (
            values["note"], values["prev_hash"], head, values["seq"]
        ))  # fmt: skip
    assert "anchor" in Ledger(path).verify().reason
    Ledger(path).anchor_path.write_text(json.dumps({"count": len(rows), "head": head}), encoding="ascii")
    assert Ledger(path).verify().ok  # a forged anchor beside it: only the anchors in manifests and receipts remain
    found = Ledger(path).verify([kept])
    assert (found.ok, found.first_bad) == (False, len(rows))


FORGERIES = [
    ("charge_micros", "settle", 1, "its charge is"),
    ("cash_micros", "release", 1, "release books money"),
    ("charge_micros", "hold", 10**12, "were left"),
    ("charge_micros", "overrun", 1, "overrun"),
    ("quantity", "settle", "80", "its charge is"),
    ("hold_seq", "settle", 1, "not open"),
    ("kind", "settle", "gift", "unknown"),
    ("run_id", "hold", "nobody", "never opened"),
    ("charge_micros", "open", 0, "one budget above zero"),
    ("cash_micros", "lost", 10**9, "loses more"),
    ("unit_usd", "settle", "0.10", "price is not that"),
    ("charge_micros", "settle", -1, "negative"),
]


@pytest.mark.parametrize(("column", "kind", "value", "says"), FORGERIES)
def test_sums_are_recomputed_even_where_every_hash_is_right(
    path: Path, column: str, kind: str, value: object, says: str
) -> None:
    lived(path).close()
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY seq").fetchall()
    head, forged = "0" * 64, None
    for row in rows:
        values = dict(zip(COLUMNS, row, strict=True)) | {"prev_hash": head}
        if forged is None and values["kind"] == kind:
            forged, values[column] = values["seq"], value
        head = values["hash"] = hash_of(values)
        assignments = ", ".join(f"{name} = :{name}" for name in COLUMNS)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                db.execute(f"DROP TRIGGER {name}")
            db.execute(f"UPDATE entries SET {assignments} WHERE seq = :seq", values)
    found = Ledger(path).verify()
    assert (found.ok, found.first_bad) == (False, forged)
    assert says in found.reason


def test_a_deleted_tail_and_a_missing_middle_are_found(path: Path, tmp_path: Path) -> None:
    ledger = lived(path)
    count = ledger.anchor().count
    ledger.close()
    for cut in range(1, count + 1):
        copy = _copy(path, tmp_path / f"tail-{cut}")
        _rewritten(copy, "DELETE FROM entries WHERE seq > ?", (count - cut,))
        found = Ledger(copy).verify()
        assert (found.ok, found.first_bad) == (False, count - cut + 1), found
    for gone in range(1, count):
        copy = _copy(path, tmp_path / f"gone-{gone}")
        _rewritten(copy, "DELETE FROM entries WHERE seq = ?", (gone,))
        found = Ledger(copy).verify()
        assert (found.ok, found.first_bad) == (False, gone), found


def test_a_lost_tail_is_found_by_a_manifests_anchor_alone(path: Path) -> None:
    ledger = lived(path)
    kept = ledger.anchor()
    ledger.close()
    _rewritten(path, "DELETE FROM entries WHERE seq = ?", (kept.count,))
    last = Ledger(path).entries()[-1]
    Ledger(path).anchor_path.write_text(json.dumps({"count": last.seq, "head": last.hash}), encoding="ascii")
    assert Ledger(path).verify().ok
    assert Ledger(path).verify([kept]).first_bad == kept.count


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"head": "x", "count": "many"}', "\x00\xff"])
def test_a_missing_or_damaged_anchor_is_found(path: Path, content: str | None) -> None:
    ledger = lived(path)
    ledger.close()
    ledger.anchor_path.unlink()
    if content is not None:
        ledger.anchor_path.write_text(content, encoding="latin-1")
    found = ledger.verify()
    assert not found.ok
    assert "anchor" in found.reason


def test_a_crash_before_an_anchor_was_written_is_harmless(path: Path) -> None:
    first = Ledger(path)
    first.open_run("run", USD)
    anchor = first.anchor_path.read_bytes()
    first.anchor_path.unlink()
    assert first.verify().ok  # the very first commit, cut off
    first.hold("run", "a", quote(1))
    first.anchor_path.write_bytes(anchor)
    assert first.verify().ok  # the anchor is one behind


def test_a_dropped_guard_is_found(path: Path) -> None:
    lived(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TRIGGER entries_no_update")
    found = Ledger(path).verify()
    assert not found.ok
    assert "entries_no_update" in found.reason


def test_a_damaged_write_ahead_log_is_found(path: Path, tmp_path: Path) -> None:
    ledger = lived(path)  # still open, so that the log holds everything since the schema was made
    log = Path(f"{path}-wal")
    content = log.read_bytes()
    assert len(content) > 4096
    for kept in (0, 40, len(content) // 2, len(content) - 1, len(content) - 5000):
        copy = _copy(path, tmp_path / f"cut-{kept}")
        Path(f"{copy}-shm").unlink(missing_ok=True)
        Path(f"{copy}-wal").write_bytes(content[:kept])
        assert not Ledger(copy).verify().ok, kept
    for offset in (60, len(content) // 3, len(content) - 2000):
        copy = _copy(path, tmp_path / f"flip-{offset}")
        Path(f"{copy}-shm").unlink(missing_ok=True)
        damaged = bytearray(content)
        damaged[offset] ^= 0xFF
        Path(f"{copy}-wal").write_bytes(bytes(damaged))
        assert not Ledger(copy).verify().ok, offset
    assert ledger.verify().ok
    ledger.close()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 0.99])
def test_a_cut_off_file_is_found_without_a_traceback(path: Path, fraction: float) -> None:
    lived(path).close()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    found = Ledger(path).verify()
    assert not found.ok
    assert "\n" not in found.reason


# --- leases, crashes and races


def test_a_lease_ends_by_the_clock_and_can_be_renewed(path: Path) -> None:
    now = 1_000.0
    ledger = Ledger(path, clock=lambda: now)
    ledger.open_run("run", 100 * USD)
    hold = ledger.hold("run", "a", quote(1), lease_seconds=60)
    now += 59
    assert ledger.expired_holds("run") == []
    before = ledger.anchor()
    ledger.renew(hold, lease_seconds=60)
    assert ledger.anchor() == before  # leases are no part of the chain
    now += 59
    assert ledger.expired_holds("run") == []
    now += 1
    assert ledger.expired_holds("run") == [hold]
    ledger.release(hold)
    assert ledger.expired_holds("run") == []


KILLED = """
import os, signal, sys
from decimal import Decimal
from pathlib import Path
from outlay.money.ledger import Ledger
from outlay.money.amounts import Price, Quote
ledger = Ledger(Path(sys.argv[1]))
price = Price("label/x", "label", Decimal("0.25"), "here", None)
ledger.hold("run", "labels", Quote.of(price, 8), lease_seconds=10_000)
print("held", flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def _child(path: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="no /proc, which has the times processes started: run on Linux"
)
def test_the_hold_of_a_killed_process_is_expired_at_once(ledger: Ledger) -> None:
    with _child(ledger.path, "kill") as child:
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    (hold,) = ledger.expired_holds("run")
    ledger.release(hold, lost_cash_micros=USD)
    assert ledger.balance("run").lost_micros == USD
    settle(ledger, ledger.hold("run", "labels", quote(8)), 8)
    assert ledger.verify().ok


def test_the_hold_of_a_living_process_is_not_expired(ledger: Ledger) -> None:
    with _child(ledger.path, "wait") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert len(ledger.open_holds("run")) == 1
        assert ledger.expired_holds("run") == []
        child.communicate("")


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="no /proc, which has the times processes started: run on Linux"
)
def test_a_reused_process_number_and_another_host_are_told_apart(ledger: Ledger) -> None:
    hold = ledger.hold("run", "a", quote(1))
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as db:
        assert ledger.expired_holds("run") == []
        db.execute("UPDATE leases SET started = '1'")  # our number, but a process that started at another time
        assert ledger.expired_holds("run") == [hold]
        db.execute("UPDATE leases SET host = 'elsewhere'")  # only the clock can tell about other hosts
        assert ledger.expired_holds("run") == []


def _spend(path: str, worker: int, start: object, granted: object) -> None:
    ledger = Ledger(Path(path))
    ledger.open_run("shared", 10 * USD)
    start.wait()  # type: ignore[attr-defined]
    n_granted = 0
    for number in range(30):
        try:
            hold = ledger.hold("shared", f"{worker}-{number}", quote(1))
        except BudgetExceeded:
            continue
        n_granted += 1
        if number % 2:
            settle(ledger, hold, 1, cash=LABEL.cost_micros(1))
    granted.put(n_granted)  # type: ignore[attr-defined]
    ledger.close()


def test_four_processes_race_for_one_budget(path: Path) -> None:
    """They create the file together, too. 120 holds of $0.25 are asked for, $10 pay exactly 40 of them."""
    spawn = multiprocessing.get_context("spawn")
    start, granted = spawn.Barrier(4), spawn.Queue()
    workers = [spawn.Process(target=_spend, args=(str(path), worker, start, granted)) for worker in range(4)]
    for worker in workers:
        worker.start()
    n_granted = sum(granted.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    granted.close()
    ledger = Ledger(path)
    now = ledger.balance("shared")
    assert n_granted == 40
    assert now.charged_micros + now.held_charge_micros == 10 * USD
    assert (now.available_charge_micros, now.available_cash_micros) == (0, 0)
    found = ledger.verify()
    assert found.ok, found.reason
    assert json.loads(ledger.anchor_path.read_text())["count"] == found.n_entries  # an older anchor never wins


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    refused: list[Exception] = []

    def spend(worker: int) -> None:
        for number in range(20):
            try:
                settle(ledger, ledger.hold("run", f"{worker}-{number}", quote(10)), 10)
            except BudgetExceeded as error:
                refused.append(error)

    threads = [threading.Thread(target=spend, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 40
    assert ledger.balance("run").charged_micros == 100 * USD
    assert ledger.verify().ok


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork: run on Linux")
def test_a_forked_child_opens_the_file_for_itself(ledger: Ledger) -> None:
    ledger.hold("run", "parent", quote(1))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ledger.hold("run", "child", quote(1))
            ledger.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    ledger.hold("run", "parent again", quote(1))
    assert [hold.key for hold in ledger.open_holds("run")] == ["parent", "child", "parent again"]
    assert [hold.key for hold in ledger.expired_holds("run")] == ["child"]
    assert ledger.verify().ok
