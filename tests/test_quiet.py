"""A user never sees a library speak of its own future; tests and whoever asks Python do."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from outlay.library_warnings import hide_deprecations
from outlay.workers.local import LocalPool
from outlay.workers.pool import WorkerFn

# A library that says what will change, by every category, at its caller's door and at its own, with a filter of its own before
# everybody's; and one thing that a user should know.
LIBRARY = """
import warnings

def speak():
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("always", category=category)
        for stacklevel in (1, 2):
            warnings.warn("this goes away", category, stacklevel=stacklevel)
    warnings.warn("the disk is nearly full", UserWarning)
"""
AT_THE_END = "import atexit, noisy_library\natexit.register(noisy_library.speak)\n"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder of modules: the library, and a start-up file that has each process call it as it ends."""
    (tmp_path / "noisy_library.py").write_text(LIBRARY)
    (tmp_path / "sitecustomize.py").write_text(AT_THE_END)
    return tmp_path


def run(library: Path, *command: str, **environment: str) -> str:
    """What a process with that library says on standard error."""
    path = os.pathsep.join([str(library), *sys.path])
    base = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, *command],
        env={**base, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_command_shows_no_deprecation_of_another_library(library: Path) -> None:
    told = run(library, "-m", "outlay", "--version")
    assert "the disk is nearly full" in told
    assert "goes away" not in told


def test_without_the_command_the_library_is_heard(library: Path) -> None:
    assert run(library, "-c", "pass").count("this goes away") >= 6


def test_who_asks_python_hears_it(library: Path) -> None:
    assert run(library, "-m", "outlay", "--version", PYTHONWARNINGS="default").count("this goes away") >= 6


def speaks() -> WorkerFn:
    """A worker factory whose work is to call the library."""
    from noisy_library import speak  # type: ignore[import-not-found]

    def work(payload: object, report: object) -> None:
        speak()

    return work


def test_workers_show_none_either(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(library))
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    logs = tmp_path / "logs"
    with LocalPool(speaks, 1, 1, logs=logs) as pool:
        pool.submit("one", None)
        (ended,) = pool.wait()
    assert (ended.error, ended.lost) == (None, None)
    told = "".join(path.read_text() for path in logs.iterdir())
    assert "the disk is nearly full" in told
    assert "goes away" not in told


@pytest.mark.slow
def test_launched_processes_show_none_either(library: Path) -> None:
    launch = ("-m", "outlay.train.launch", "--standalone", "--nproc-per-node=2", "-m", "outlay", "--version")
    told = run(library, *launch, OMP_NUM_THREADS="1")
    assert told.count("the disk is nearly full") >= 2
    assert "goes away" not in told


def test_errors_stay_errors() -> None:
    hide_deprecations()
    with pytest.raises(FutureWarning, match="tomorrow"):
        warnings.warn("gone tomorrow", FutureWarning, stacklevel=1)
