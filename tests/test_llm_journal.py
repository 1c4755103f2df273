"""The journal of what was asked: durable before it counts, whole after a crash, and the bill it gives."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from outlay.errors import DiskFull, StoreError
from outlay.labels.llm.billing import Bills, recompute
from outlay.labels.llm.journal import KILLED, journal_path, open_journal, read_journal
from outlay.labels.llm.wire import Failed, Received
from outlay.money.prices.tokens import TokenPrices, TokenUsage

MOST = TokenUsage(input=100, output=10)
PRICES = TokenPrices(*map(Decimal, ("0.000001", "0.0000005", "0.000002", "0.00001")))
WORST = Fraction(3, 10_000)  # 100 x the dearest input, 10 x the output
USAGE = b'{"usage": {"prompt_tokens": 50, "completion_tokens": 2, "total_tokens": 52}}'
USED = Fraction(7, 100_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return journal_path(tmp_path / "asked", "http://here/v1/", "model")


def test_a_file_per_endpoint_and_model(tmp_path: Path) -> None:
    names = {journal_path(tmp_path, url, name) for url in ("http://a/v1", "http://b/v1") for name in ("m", "n")}
    assert len(names) == 4
    assert journal_path(tmp_path, "http://a/v1/", "m") in names


BODIES = (b'{"a": "\xc3\xa9\\n"}', b"", b"\xff\xfe\x00broken", b"<html>\r\n</html>\n", "\u2028 \x85 \x00".encode())


@pytest.mark.parametrize("body", BODIES)
def test_bytes_come_back_as_they_came(path: Path, body: bytes) -> None:
    with open_journal(path) as journal:
        attempt = journal.send("k", "order", "row", MOST)
        given = journal.receive(attempt, Received(200, body, 0.25))
    with read_journal(path) as journal:
        (found,) = journal.attempts("k")
        assert (found.state, found.row, found.order, found.number) == ("received", "row", "order", 1)
        assert journal.reply(found) == given
        assert given.body == body


def test_what_was_sent_and_not_received_is_lost_once(path: Path) -> None:
    with open_journal(path) as journal:
        journal.send("k", "order", "row", MOST)
        journal.receive(journal.send("l", "order", "row", MOST), Received(200, USAGE, 0.1))
        journal.fail(journal.send("m", "order", "other", MOST), Failed("status 500", 500, body=b"sorry"))
    for _ in range(3):
        with open_journal(path) as journal:
            (attempt,) = journal.attempts("k")
            assert (attempt.state, attempt.why) == ("lost", KILLED)
            assert Bills(journal, PRICES).of("order") == {"row": WORST + USED}
            assert Bills(journal, PRICES).paid_by("order") == WORST + USED
            reply = journal.reply(journal.attempts("m")[0])
            assert reply is not None
            assert (reply.status, reply.body) == (500, b"sorry")
    assert path.read_text().count('"lost"') == 1
    assert recompute(path, "order", PRICES) == {"row": WORST + USED}


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        ('{"prompt_tokens": 50, "completion_tokens": 2}', USED),
        (
            '{"prompt_tokens": 50, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 40}}',
            Fraction(5, 100_000),
        ),
        ("{}", WORST),
        ('{"prompt_tokens": "many", "completion_tokens": 2}', WORST),
        ('{"prompt_tokens": -5, "completion_tokens": 2}', WORST),
        ('{"prompt_tokens": 1000000, "completion_tokens": 2}', WORST),
    ],
)
def test_a_reply_costs_what_usage_says_where_that_can_be_believed(path: Path, usage: str, usd: Fraction) -> None:
    with open_journal(path) as journal:
        body = b'{"usage": ' + usage.encode() + b"}"
        journal.receive(journal.send("k", "order", "row", MOST), Received(200, body, 0.1))
        assert Bills(journal, PRICES).of("order") == {"row": usd}


@pytest.mark.parametrize("torn", [b"{", b'{"received":"k","n":1', b'{"lost": "k", "n": 1, "why": "\xff'])
def test_a_torn_last_line_is_dropped(path: Path, torn: bytes) -> None:
    with open_journal(path) as journal:
        journal.send("k", "order", "row", MOST)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(torn)
    with read_journal(path) as journal:
        assert journal.attempts("k")[0].state == "sent"
    with open_journal(path) as journal:
        assert journal.attempts("k")[0].state == "lost"
    assert path.read_bytes().startswith(whole + b'{"lost"')


@pytest.mark.parametrize("line", ["not json", "[]", '{"received": "unknown", "n": 1}', '{"what": 1}'])
def test_damage_is_told_with_its_line(path: Path, line: str) -> None:
    with open_journal(path) as journal:
        journal.accept("order", "rows")
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(StoreError, match=r"line 2 of .* is damaged"), open_journal(path):
        pass


def test_what_others_paid_is_billed_and_not_paid_again(path: Path) -> None:
    with open_journal(path) as journal:
        journal.receive(journal.send("k", "one", "row", MOST), Received(200, USAGE, 0.1))
        assert [each.number for each in journal.untaken("two", "k")] == [1]
        journal.take_over("two", {"k": "its row"})
        assert journal.untaken("two", "k") == []
        journal.take_over("two", {"k": "its row"})
        journal.receive(journal.send("k", "two", "its row", MOST), Received(200, USAGE, 0.1))
        # One that is made later is no business of the order that has its reply.
        journal.receive(journal.send("k", "three", "row", MOST), Received(200, USAGE, 0.1))
    assert path.read_text().count('"used"') == 1
    with open_journal(path) as journal:
        assert Bills(journal, PRICES).of("one") == {"row": USED}
        assert Bills(journal, PRICES).of("two") == {"its row": 2 * USED}
        assert Bills(journal, PRICES).paid_by("two") == USED


def test_many_threads_share_a_sync(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_syncs = 0
    barrier = threading.Event()
    real = os.fdatasync

    def sync(file: int) -> None:
        nonlocal n_syncs
        n_syncs += 1
        barrier.wait(0.02)  # as a disk does
        real(file)

    monkeypatch.setattr(os, "fdatasync", sync)
    with open_journal(path) as journal:

        def work(number: int) -> None:
            for i in range(4):
                attempt = journal.send(f"{number}-{i}", "order", "row", MOST)
                # Durable when `send` returns: another file handle sees it.
                assert f'"{number}-{i}"' in path.read_text()
                journal.receive(attempt, Received(200, b"{}", 0.1))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert n_syncs < 40  # of 128 lines
    with read_journal(path) as journal:
        assert len(journal.received) == 64
        assert all(journal.attempts(f"{number}-{i}")[0].state == "received" for number in range(16) for i in range(4))


def test_a_full_disk_leaves_no_half_line_and_stops_everyone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with open_journal(path) as journal:
        journal.send("k", "order", "row", MOST)
        whole = path.read_bytes()

        calls: list[int] = []

        def short(file: int, data: bytes) -> int:
            calls.append(len(data))
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(file, data[:10])

        monkeypatch.setattr(os, "write", short)
        with pytest.raises(DiskFull, match="no room"):
            journal.send("l", "order", "row", MOST)
        monkeypatch.undo()
        assert path.read_bytes() == whole
        with pytest.raises(StoreError, match="No space left"):
            journal.send("m", "order", "row", MOST)
    with open_journal(path) as journal:
        assert [journal.attempts(key) for key in "lm"] == [(), ()]


def test_ctrl_c_in_a_write_leaves_nobody_waiting(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: int, data: bytes) -> int:
        raise KeyboardInterrupt

    with open_journal(path) as journal:
        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.accept("order", "rows")
        monkeypatch.undo()
        with pytest.raises(StoreError, match="interrupted"):
            journal.accept("order", "rows")
    with open_journal(path) as journal:
        assert journal.rows_of("order") is None


def test_another_process_waits_and_says_so(path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom outlay.labels.llm.journal import open_journal\n"
        "with open_journal(Path(sys.argv[1])) as journal:\n    print('open', flush=True)\n    sys.stdin.read(1)\n"
        "    journal.accept('theirs', 'rows')\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        assert other.stdin is not None
        other.stdin.write("x")
        other.stdin.flush()

    with open_journal(path, tell) as journal:
        assert journal.rows_of("theirs") == "rows"
    assert len(told) == 1
    assert "waiting" in told[0]
    other.stdin.close()
    other.stdout.close()
    assert other.wait() == 0


def test_a_journal_that_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read the journal"), read_journal(path):
        pass
