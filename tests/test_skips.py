"""The last line of a run names what was skipped, and a browser that must be there is missed loudly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import NO_BROWSER

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

@pytest.mark.browser
@pytest.mark.parametrize("i", range(3))
def test_page(i):
    pass

@pytest.mark.skipif(True, reason="no moon: wait for the night")
def test_night():
    pass

def test_day():
    pass
"""


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Pytest on those tests, on a machine without a browser."""
    (folder / "test_some.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -q\n")
    # A folder of its own: otherwise it would clear away what earlier runs of all tests left, which takes seconds.
    where = ("--rootdir", str(folder), "--basetemp", str(folder / "base"), str(folder))
    command = [sys.executable, "-m", "pytest", "-p", "tests.skips", *arguments, *where]
    base = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "OUTLAY_"))}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**base, "PATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("arguments", [(), ("--numprocesses", "2")], ids=["one process", "xdist"])
def test_one_line_says_what_was_skipped_and_how_to_have_it_run(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, told = run(tmp_path, *arguments)
    assert code == 0
    assert told.splitlines().count(f"4 skipped: 3 ({NO_BROWSER}); 1 (no moon: wait for the night)") == 1


def test_a_browser_that_is_asked_for_and_not_there_fails_the_run(tmp_path: Path) -> None:
    code, told = run(tmp_path, OUTLAY_TESTS_NEED="browser")
    assert code == 1
    assert "1 passed, 1 skipped, 3 errors" in told
    assert NO_BROWSER in told


def test_nothing_skipped_nothing_said(tmp_path: Path) -> None:
    code, told = run(tmp_path, "-k", "test_day")
    assert code == 0
    assert "skipped:" not in told
