"""The benches of the machine itself, with next to nothing to do: each measurement is a process that loads torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def said(name: str) -> Any:
    """What ``python -m bench.NAME --toy --json`` prints."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, "-m", f"bench.{name}", "--toy", "--json", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_precision_measures_both_ways() -> None:
    found = said("precision")
    limited, free = found["held to AVX2"], found["as it is"]
    assert limited["product"] < 0.5
    assert all(each[name] > 0 for each in (limited, free) for name in ("product", "fp32", "bf16"))


@pytest.mark.slow
def test_threads_measures_alone_and_beside_others() -> None:
    found = said("threads")
    assert {where.split()[0] for where in found} == {"alone", "beside"}
    assert all(set(each) == {"spinning", "asleep", "as set"} and min(each.values()) > 0 for each in found.values())
