"""A server of the tests in a process of its own: it prints its address, and ends when its standard input closes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class NoAddress(RuntimeError):
    """It ended, with ``status``, before it said where it is."""

    def __init__(self, module: str, status: int) -> None:
        super().__init__(f"{module} ended with status {status} before it answered")
        self.status = status


@contextmanager
def far_process(
    module: str, *arguments: object, env: Mapping[str, str] | None = None, stderr: int | None = None
) -> Iterator[tuple[str, int]]:
    """Run a module; its address and process id. It ends with the block, or with this process."""
    path = os.pathsep.join(each for each in (str(ROOT), os.environ.get("PYTHONPATH")) if each)
    far = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    assert far.stdin is not None
    assert far.stdout is not None
    try:
        url = far.stdout.readline().strip()
        if not url:
            raise NoAddress(module, far.wait())
        yield url, far.pid
    finally:
        with suppress(BrokenPipeError):
            far.stdin.close()
        try:
            far.wait(10)
        except subprocess.TimeoutExpired:
            far.kill()
            far.wait()
        far.stdout.close()
