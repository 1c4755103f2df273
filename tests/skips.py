"""What was skipped and how to have it run, in the last line of a test run; and tests that must not be skipped.

``OUTLAY_TESTS_NEED=browser`` (continuous integration sets it) has a test that needs a browser fail where there is none; likewise
``llama``, for llama.cpp's server.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, NoReturn

import pytest

from tests.browser import find_chromium

NO_BROWSER = "no Chromium to open a page in: apt-get install chromium"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "browser: opens a page in a headless Chromium")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a browser where there is none, or fail where there must be one."""
    if item.get_closest_marker("browser") is not None and find_chromium() is None:
        skip_without("browser", NO_BROWSER)


def skip_without(name: str, reason: str) -> NoReturn:
    """Skip the test for what this machine lacks, or fail it where ``OUTLAY_TESTS_NEED`` names that."""
    if name in os.environ.get("OUTLAY_TESTS_NEED", "").split(","):
        pytest.fail(f"{reason}; OUTLAY_TESTS_NEED asks for one", pytrace=False)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say it; under xdist the process that deals out the tests has all reports."""
    line = said([reason_of(report) for report in terminalreporter.stats.get("skipped", [])])
    if line is not None:
        terminalreporter.write_line(line)


def reason_of(report: Any) -> str:
    """Why a test or a whole module was skipped."""
    longrepr = report.longrepr
    return str(longrepr[2] if isinstance(longrepr, tuple) else longrepr).removeprefix("Skipped: ")


def said(reasons: list[str]) -> str | None:
    """The line; ``None`` where nothing was skipped. Reasons name the way to have the test run."""
    counts = Counter(" ".join(reason.split()) for reason in reasons).most_common()
    if not counts:
        return None
    return f"{len(reasons)} skipped: " + "; ".join(f"{n} ({reason})" for reason, n in counts)
