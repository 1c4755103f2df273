"""The purchase log: a label that is in it is never bought again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from outlay.errors import StoreError
from outlay.labels import purchases as log_module
from outlay.labels.purchases import PurchaseLog, PurchaseRecord
from outlay.plan.steps import Buy

SERIES = "a" * 64


def receipt(order: str, rows: range | list[int], payer: str = "me", cash: int = 7) -> PurchaseRecord:
    return PurchaseRecord(order, payer, cash, 1.5, tuple((f"row {i}", f"label {i % 3} é\n") for i in rows))


def test_what_was_added_is_there_when_opened_again(tmp_path: Path) -> None:
    log = PurchaseLog(tmp_path / "bought")
    with log.open(SERIES) as purchases:
        assert (purchases.labels, purchases.receipts) == ({}, [])
        purchases.add(receipt("one", range(3)))
        purchases.add(receipt("two", range(3, 5), payer="you", cash=11))
        seen = dict(purchases.labels)
    with PurchaseLog(tmp_path / "bought").open(SERIES) as purchases:
        assert purchases.labels == seen == {f"row {i}": f"label {i % 3} é\n" for i in range(5)}
        assert purchases.receipts == [receipt("one", range(3)), receipt("two", range(3, 5), payer="you", cash=11)]
        assert [purchases.paid_by(payer) for payer in ("me", "you", "nobody")] == [7, 11, 0]


def test_series_are_kept_apart(tmp_path: Path) -> None:
    log = PurchaseLog(tmp_path)
    with log.open(SERIES) as purchases, log.open("b" * 64) as others:
        purchases.add(receipt("one", range(3)))
        assert others.labels == {}
    with log.open("b" * 64) as others:
        assert others.labels == {}


@pytest.mark.parametrize("n_bytes_left", [1, 40, -1])
def test_a_line_that_a_crash_cut_short_is_dropped_and_the_order_can_be_asked_for_again(
    tmp_path: Path, n_bytes_left: int
) -> None:
    log, path = PurchaseLog(tmp_path), tmp_path / f"{SERIES}.jsonl"
    with log.open(SERIES) as purchases:
        purchases.add(receipt("one", range(3)))
    whole = path.read_bytes()
    with log.open(SERIES) as purchases:
        purchases.add(receipt("two", range(3, 6)))
    second = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + second[:n_bytes_left])
    with log.open(SERIES) as purchases:
        assert [r.order for r in purchases.receipts] == ["one"]
        assert path.read_bytes() == whole
        purchases.add(receipt("two", range(3, 6)))
    with log.open(SERIES) as purchases:
        assert [r.order for r in purchases.receipts] == ["one", "two"]


def test_a_longer_purchase_of_one_series_misses_only_the_difference(tmp_path: Path) -> None:
    short = Buy("train", 2, 0, "rows", "seller")
    long = replace(short, n=5)
    assert (short.series == long.series, short.key == long.key) == (True, False)
    log = PurchaseLog(tmp_path)
    with log.open(short.series) as purchases:
        purchases.add(receipt("short", range(short.n)))
    with log.open(long.series) as purchases:
        assert [i for i in range(long.n) if f"row {i}" not in purchases.labels] == [2, 3, 4]
    with log.open(replace(long, identity="another").series) as purchases:
        assert purchases.labels == {}


def test_no_room_is_one_clear_line_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = PurchaseLog(tmp_path)
    with log.open(SERIES) as purchases:
        purchases.add(receipt("one", range(3)))
    really_write = os.write
    room = [20]

    def write(file: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = really_write(file, data[: room[0]])
        room[0] -= n
        return n

    with monkeypatch.context() as patched:
        patched.setattr(log_module.os, "write", write)
        with log.open(SERIES) as purchases, pytest.raises(StoreError, match=r"No space left.*make room"):
            purchases.add(receipt("two", range(3, 6)))
    assert "row 3" not in purchases.labels
    with log.open(SERIES) as purchases:
        assert [r.order for r in purchases.receipts] == ["one"]


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match=r"bought.*Not a directory"),
        PurchaseLog(tmp_path / "file" / "bought").open(SERIES),
    ):
        pass


BUYER = """
import sys, time
from pathlib import Path
from outlay.labels.purchases import PurchaseLog, PurchaseRecord
folder, payer = Path(sys.argv[1]), sys.argv[2]
(folder / payer).touch()
while len(list(folder.glob("buyer-*"))) < 2:
    time.sleep(0.005)
for n in (10, 25, 40):
    with PurchaseLog(folder).open("a" * 64) as purchases:
        missing = [i for i in range(n) if f"row {i}" not in purchases.labels]
        for start in range(0, len(missing), 4):
            rows = tuple((f"row {i}", payer) for i in missing[start : start + 4])
            purchases.add(PurchaseRecord(f"order {start}", payer, len(rows), 0.0, rows))
            time.sleep(0.002)
    time.sleep(0.003)
"""


def test_two_processes_never_buy_a_row_twice(tmp_path: Path) -> None:
    buyers = [
        subprocess.Popen([sys.executable, "-c", BUYER, str(tmp_path), f"buyer-{i}"], stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    said = [buyer.communicate(timeout=60)[1] for buyer in buyers]
    assert [buyer.returncode for buyer in buyers] == [0, 0], said
    lines = (tmp_path / f"{SERIES}.jsonl").read_text().splitlines()
    rows = [row for line in lines for row, _ in json.loads(line)["labels"]]
    assert sorted(rows) == sorted(f"row {i}" for i in range(40))
    with PurchaseLog(tmp_path).open(SERIES) as purchases:
        assert sum(purchases.paid_by(f"buyer-{i}") for i in range(2)) == 40


def test_a_log_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / f"{SERIES}.jsonl").mkdir()
    with pytest.raises(StoreError, match=rf"{SERIES}.*Is a directory"):
        PurchaseLog(tmp_path).read(SERIES)
