"""The files of one run: what a resumed or a finished run finds on disk."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.errors import SpendError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run below a results folder."""

    path: Path

    @property
    def manifest(self) -> Path:
        """Written last: a run with a manifest is done."""
        return self.path / "manifest.json"

    def step(self, key: str) -> Path:
        """What is known about a step under way: its kind, and the heartbeat of its gauge."""
        return self.path / "steps" / f"{key}.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Execute this run in one process at a time.

        Raises:
            SpendError: another process is at it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SpendError(
                    f"run {self.path.name} is being executed by another process; wait for it to end"
                ) from None
            yield
        finally:
            os.close(file)


def write_json(path: Path, document: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(document, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
