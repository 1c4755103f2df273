"""Workers that are processes of this machine: their cores, their environment, their end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import UsageError
from outlay.hardware.openmp import waiting_variables
from outlay.hardware.quota import core_numbers
from outlay.text.listener import Report
from outlay.workers.local import LocalPool, WorkerSlot, usable_cores, usable_gpus, worker_slots
from outlay.workers.pool import THREAD_VARIABLES, InProcessPool, WorkerFactory, WorkerFn
from outlay.workers.process import REPORT_SECONDS
from tests.contracts.worker_pool_contract import (
    Handy,
    Maker,
    ProcessPoolContract,
    TellsProgress,
    WorkerPoolContract,
    one,
    wait_for,
)

CORES = usable_cores()


class TestInline(WorkerPoolContract):
    n_workers = 1

    @pytest.fixture
    def make(self, tmp_path: Path) -> Maker:
        return lambda factory, n_workers: InProcessPool(factory, logs=tmp_path / "logs")

    def test_progress_is_seen_from_other_threads_while_it_works(self, notes: Path) -> None:
        seen: list[Any] = []

        def look() -> WorkerFn:
            def work(payload: Any, report: Report) -> None:
                report(3, 7, "on the way")
                seen.append(pool.progress())

            return work

        with InProcessPool(look) as pool:
            pool.submit("slow", None)
            pool.wait()
            assert pool.progress() == {}
        assert seen == [{"slow": (3, 7, "on the way")}]


@pytest.mark.skipif(len(CORES) == 1, reason="one core: run on two")
class TestLocal(TellsProgress, ProcessPoolContract):
    @pytest.fixture
    def make(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        return lambda factory, n_workers: LocalPool(factory, n_workers, 1, logs=tmp_path / "logs")


# --- what a worker has to itself -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """A worker factory whose work tells of its process, as it was before anything was set up."""

    def __call__(self) -> WorkerFn:
        heavy = sorted({"numpy", "torch"} & set(sys.modules))
        signals = (signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        found = (sorted(os.sched_getaffinity(0)), dict(os.environ), heavy, signals)
        return lambda payload, report: found


@pytest.mark.skipif(len(CORES) == 1, reason="one core: run on two")
def test_workers_have_cores_of_their_own_and_the_studys_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = [f"w{core}" for core in CORES]
    with LocalPool(Look(), len(CORES), 1) as pool:
        for name in names:
            pool.submit(name, None)
        found = {each.name: each.value for _ in names for each in pool.wait(60)}
    is_quota, every = len(CORES) < len(core_numbers()), list(core_numbers())
    assert [found[name][0] for name in names] == [every if is_quota else [core] for core in CORES]
    for _, environment, heavy, (on_interrupt, blocked) in found.values():
        assert {environment[name] for name in THREAD_VARIABLES} == {"1"}
        assert heavy == []
        assert (on_interrupt, blocked) == (signal.SIG_IGN, set())
    assert os.environ["OMP_NUM_THREADS"] == "17"
    assert usable_cores() == CORES


@pytest.mark.skipif(len(CORES) == 1, reason="one core: run on two")
def test_a_pool_that_leaves_cores_to_others_does_not_choose_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two studies of one worker each would both be on the first core, and the second one idle."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with LocalPool(Look(), len(CORES) - 1, 1) as pool:
        pool.submit("a", None)
        assert [each.value[0] for each in pool.wait(60)] == [list(core_numbers())]


@pytest.mark.skipif(len(core_numbers()) == 1, reason="one core: run on two")
def test_workers_are_pinned_to_none_under_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("outlay.workers.local.n_usable_cores", lambda: 1)
    with LocalPool(Look(), 1, 1) as pool:
        pool.submit("a", None)
        assert [each.value[0] for each in pool.wait(60)] == [list(core_numbers())]


def test_cores_are_dealt_out_without_overlap() -> None:
    assert worker_slots(3, 2, (1, 2, 3, 5, 7, 11, 13)) == (
        WorkerSlot(2, (1, 2)),
        WorkerSlot(2, (3, 5)),
        WorkerSlot(2, (7, 11)),
    )
    assert worker_slots(1, 3, (4, 5)) == (WorkerSlot(3),)  # one alone may use them all
    assert worker_slots(2, 3, ()) == (WorkerSlot(3), WorkerSlot(3))  # a system that does not tell


def test_gpus_are_dealt_out_one_each() -> None:
    dealt = worker_slots(2, 3, (0,), ("GPU-a", "GPU-b", "GPU-c"))
    assert dealt == (WorkerSlot(3, gpu="GPU-a"), WorkerSlot(3, gpu="GPU-b"))
    environment = dealt[1].environment({"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0,1"})
    assert environment == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "GPU-b",
        **dict.fromkeys(THREAD_VARIABLES, "3"),
        **waiting_variables(os.environ),
    }


@pytest.mark.parametrize(
    ("n_workers", "threads", "gpus", "says"),
    [
        (3, 2, (), "3 workers of 2 threads .* 6 cores.* 5; .* 2 workers$"),
        (2, 3, (), "2 workers of 3 threads .* 6 cores.* 5; .* 1 worker$"),
        (2, 7, (), "2 workers of 7 threads .* 14 cores.* 5; .* 1 worker$"),
        (0, 1, (), "workers is 0; .* at least 1"),
        (1, 0, (), "threads is 0; .* at least 1"),
        (3, 1, ("0", "1"), "3 workers .* GPU.* 2; .* at most 2.* CUDA_VISIBLE_DEVICES"),
    ],
)
def test_more_than_there_is_room_for_is_refused(n_workers: int, threads: int, gpus: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        worker_slots(n_workers, threads, (0, 1, 2, 3, 4), gpus)


@pytest.mark.parametrize(
    ("named", "found"),
    [("", ()), ("-1", ()), ("2, 0", ("2", "0")), ("3,-1,0", ("3",)), ("GPU-8932f937", ("GPU-8932f937",))],
)
def test_gpus_are_those_that_the_environment_leaves(named: str, found: tuple[str, ...]) -> None:
    assert usable_gpus({"CUDA_VISIBLE_DEVICES": named, "PATH": "/nowhere"}) == found


LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1f0a)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2e1b)
  MIG 3g.40gb     Device  0: (UUID: MIG-77c0)
  MIG 3g.40gb     Device  1: (UUID: MIG-88d1)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-3d2c)
"""


def test_gpus_are_those_that_the_driver_lists(tmp_path: Path) -> None:
    proc = tmp_path / "gpus"
    nothing = {"PATH": str(tmp_path)}
    assert usable_gpus(nothing, proc) == ()
    for name in ("0000:3b:00.0", "0000:af:00.0"):
        (proc / name).mkdir(parents=True)
    assert usable_gpus(nothing, proc) == ("0", "1")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{LISTING}END\n")
    program.chmod(0o755)
    assert usable_gpus(nothing, proc) == ("GPU-1f0a", "MIG-77c0", "MIG-88d1", "GPU-3d2c")
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML'\nexit 9\n")
    assert usable_gpus(nothing, proc) == ()


# --- what is said ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chatter:
    """Prints in every way there is."""

    def __call__(self) -> WorkerFn:
        print("set up")
        return self.work

    def work(self, payload: str, report: Report) -> None:
        print(payload)
        print("a warning", file=sys.stderr)
        subprocess.run(["/bin/sh", "-c", "echo a program"], check=True)
        if payload == "die":
            os.kill(os.getpid(), signal.SIGSEGV)


@dataclass(frozen=True)
class Count:
    """Reports as fast as it can for some seconds; how often."""

    def __call__(self) -> WorkerFn:
        return self.work

    def work(self, seconds: float, report: Report) -> int:
        n, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            report(n, 10**9, "counting")
            n += 1
        return n


def local(factory: WorkerFactory, monkeypatch: pytest.MonkeyPatch, logs: Path | None = None) -> LocalPool:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return LocalPool(factory, 1, 1, logs=logs)


def test_what_workers_print_goes_to_their_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "new" / "worker-0.txt"
    with local(Chatter(), monkeypatch, log.parent) as pool:
        pool.submit("talk", "hello")
        assert one(pool).error is None
        assert log.read_text() == "set up\nhello\na warning\na program\n"
        pool.submit("talk", "die")
        assert one(pool).lost == f"killed by signal 11 (SIGSEGV); what it printed is in {log}"
        assert "Fatal Python error: Segmentation fault" in log.read_text()
        pool.submit("talk", "hello again")
        assert one(pool).error is None
    assert log.read_text().count("set up\n") == 2
    assert capfd.readouterr() == ("", "")


def test_without_a_folder_for_logs_standard_output_stays_the_drivers(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with local(Chatter(), monkeypatch) as pool:
        pool.submit("talk", "hello")
        one(pool)
    assert capfd.readouterr() == ("", "set up\nhello\na warning\na program\n")


def test_reports_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one that arrives has its own number."""
    seen = set()
    with local(Count(), monkeypatch) as pool:
        pool.submit("count", 1.0)
        while not (ended := pool.wait(0.01)):
            seen |= {n_done for n_done, _, _ in pool.progress().values()}
    assert ended[0].value > 1000
    assert 2 <= len(seen) <= 1.0 / REPORT_SECONDS + 1


def test_a_worker_that_nobody_reads_is_not_held_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It reports that it is done a hundred thousand times, more than a pipe holds."""
    with local(Flood(tmp_path), monkeypatch) as pool:
        pool.submit("flood", 100_000)
        assert wait_for(tmp_path / "done")
        assert one(pool).value == 100_000


@dataclass(frozen=True)
class Flood:
    notes: Path

    def __call__(self) -> WorkerFn:
        return self.work

    def work(self, n: int, report: Report) -> int:
        for _ in range(n):
            report(1, 1, "done")
        (self.notes / "done").touch()
        return n


def test_large_payloads_and_results_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with local(Echo(), monkeypatch) as pool:
        payload = os.urandom(5_000_011)
        pool.submit("echo", payload)
        assert one(pool).value == payload


@dataclass(frozen=True)
class Echo:
    def __call__(self) -> WorkerFn:
        return lambda payload, report: payload


# --- how they end ----------------------------------------------------------------------------------------------------

DRIVER = """
import sys, threading, time
from pathlib import Path
from outlay.workers.local import LocalPool
from tests.test_local import Spin

def drive():
    with LocalPool(Spin(Path(sys.argv[1])), int(sys.argv[2]), 1) as pool:
        for number in range(pool.n_workers - 1):
            pool.submit(str(number), None)
        pool.wait()

if sys.argv[3] == "thread":
    thread = threading.Thread(target=drive)
    thread.start()
    thread.join()
else:
    drive()
"""


@dataclass(frozen=True)
class Spin:
    """Notes its process, then computes in Python and never ends."""

    notes: Path

    def __call__(self) -> WorkerFn:
        (self.notes / str(os.getpid())).touch()
        return self.work

    def work(self, payload: None, report: Report) -> None:
        (self.notes / f"{os.getpid()}-works").touch()
        while True:
            sum(range(1000))


def lives(pid: int) -> bool:
    """Whether any thread of a process still runs; the first one is a zombie while others are ending."""
    if hasattr(os, "pidfd_open"):
        try:
            ended = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            return not select.select([ended], [], [], 0)[0]
        finally:
            os.close(ended)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists() or len(CORES) == 1, reason="no /proc or one core: run on Linux on two"
)
@pytest.mark.parametrize(
    ("place", "number"),
    # Not Ctrl-C with the pool in another thread: there Python itself waits for that thread.
    [(place, number) for place in ("main", "thread") for number in (signal.SIGKILL, signal.SIGTERM)]
    + [("main", signal.SIGINT)],
)
def test_no_worker_outlives_the_driver(tmp_path: Path, place: str, number: signal.Signals) -> None:
    """One is at work, one waits; from another thread than the main one, the kernel's signal is not asked for."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), "2", place],
        env=environment,
        cwd=Path(__file__).parents[1],
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
        assert len(workers) == 2
        assert all(map(lives, workers))
    finally:
        driver.send_signal(number)
    began = time.monotonic()
    driver.wait(10)
    while any(map(lives, workers)):
        assert time.monotonic() - began < 2, "a worker outlives its driver"
        time.sleep(0.01)


def test_a_worker_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with local(Deaf(tmp_path), monkeypatch) as pool:
        pool.submit("deaf", None)
        assert wait_for(tmp_path / "pid")
        began = time.monotonic()
    assert 1.9 < time.monotonic() - began < 10
    assert not lives(int((tmp_path / "pid").read_text()))


@dataclass(frozen=True)
class Deaf:
    notes: Path

    def __call__(self) -> WorkerFn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return self.work

    def work(self, payload: None, report: Report) -> None:
        path = self.notes / "new"
        path.write_text(str(os.getpid()))
        path.rename(self.notes / "pid")
        time.sleep(60)


def test_a_worker_lost_while_it_waits_is_replaced_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local(Handy(tmp_path), monkeypatch) as pool:
        pool.submit("who", ("process_id", None))
        pid = one(pool).value
        os.kill(pid, signal.SIGKILL)
        while lives(pid):
            time.sleep(0.01)
        assert pool.n_free == 1
        pool.submit("who", ("process_id", None))
        ended = one(pool)
        assert ended.lost is None
        assert ended.value not in (pid, os.getpid())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc: run on Linux")
def test_an_interruption_does_not_reach_a_worker_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C reaches every process of a terminal."""

    def children() -> set[int]:
        lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
        return {int(pid) for each in lists for pid in each.split()}

    before = children()
    with local(Handy(tmp_path), monkeypatch) as pool:
        [pid] = children() - before
        os.kill(pid, signal.SIGINT)
        pool.submit("who", ("process_id", None))
        assert one(pool).value == pid
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert capfd.readouterr() == ("", "")
