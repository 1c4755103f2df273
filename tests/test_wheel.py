"""The package outside of its clone: a wheel, installed elsewhere, finds its tasks, studies, prices and machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel of this clone is installed into; building one fetches hatchling."""
    folder = tmp_path_factory.mktemp("andernorts äö")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder / "wheels"), str(ROOT)], check=True)
    (wheel,) = (folder / "wheels").iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--help",), "Spend a fixed budget"),
        (("study", "list"), "table2"),
        (("study", "schema"), "strategies"),
        (("model", "list"), "bert-tiny"),
        (("machine", "list"), "a40"),
        (("prices",), "label/multipit_id"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_a_command_finds_what_was_shipped(site: Path, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    # Without the clone: Python finds the editable install of the tests by a .pth file, so the folder goes before it.
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "outlay", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    where = [sys.executable, "-c", "import outlay; print(outlay.__file__)"]
    assert subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout.startswith(
        str(site)
    )


@pytest.mark.slow
def test_a_shipped_task_is_found_and_its_data_asked_for(site: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OUTLAY_DATA"}
    environment |= {"PYTHONPATH": str(site), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "outlay", "task", "check", "wlp"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "outlay data get" in done.stderr
    assert done.stderr.count("\n") == 1
