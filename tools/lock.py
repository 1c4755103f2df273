"""Resolve the ranges of `pyproject.toml` to exact versions, with uv (https://docs.astral.sh/uv).

    python tools/lock.py                              # constraints.txt: what `make` installs, anew
    python tools/lock.py oldest .venv-lock/oldest.txt    # the lower ends of the ranges, for this Python
    python tools/lock.py newest .venv-lock/newest.txt    # the upper ends

A constraints file and not `uv.lock`: pip reads it, finds torch as a CPU build among a machine's own wheels by its settings, and
needs no second tool. One file serves Python 3.11 to 3.13 on Linux on x86-64 and arm64; each is tried before it is written.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
EXTRA = "dev"
TORCH = "2.13.0"
"""The version of torch that `make` installs: that of which this project's machines have a CPU build among their wheels."""
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
CUDA = re.compile(r"torch|triton|nvidia-.*|cuda-.*")

HEAD = """\
# Exact versions of what `make demo` and `make test` install; `make lock` writes this file anew. pip's `--constraint` takes it.
# For Python 3.11 to 3.13 on Linux on x86-64 and arm64. torch has no local version: any build of it will do.
# torch from PyPI: {sizes} with the CUDA libraries it needs there
"""


def uv(*arguments: str | Path) -> str:
    """Run uv; its standard output.

    Raises:
        SystemExit: uv failed; it has said why.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    done = subprocess.run([*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"uv could not resolve {' '.join(map(str, arguments))}; what it said is above")
    return done.stdout


def builders() -> str:
    """Name what builds the project and what installs it; pip is left out by uv unless it is asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return "\n".join([*project["build-system"]["requires"], "pip>=26.1"]) + "\n"


def lock() -> str:
    """Resolve for every supported Python and machine at once."""
    with tempfile.TemporaryDirectory() as folder:
        others, torch = Path(folder, "others.in"), Path(folder, "torch.in")
        others.write_text(builders(), encoding="utf-8")
        torch.write_text(f"torch=={TORCH}\n", encoding="utf-8")
        resolved = uv(
            *("--universal", "--python-version", PYTHONS[0], "--extra", EXTRA, "--constraint", torch),
            *("pyproject.toml", others),
        )
        check_builds(resolved, Path(folder))
    return HEAD.format(sizes=", ".join(f"{m} {size_of_torch(resolved, m):.1f} GB" for m in MACHINES)) + resolved


def check_builds(resolved: str, folder: Path) -> None:
    """See that every supported Python and machine finds wheels of these versions."""
    pins = folder / "pins.txt"
    pins.write_text(resolved, encoding="utf-8")
    for python in PYTHONS:
        for machine in MACHINES:
            platform = f"{machine}-manylinux_2_28"
            uv(
                *("--only-binary", ":all:", "--python-platform", platform, "--python-version", python),
                *("--extra", EXTRA, "--constraint", pins, "pyproject.toml"),
            )
            print(f"wheels are there for Python {python} on {platform}", file=sys.stderr)


def size_of_torch(resolved: str, machine: str) -> float:
    """Sum the sizes of PyPI's wheels of torch and of what comes with it, in GB (10^9 bytes)."""
    total = 0
    for line in resolved.splitlines():
        name, _, version = line.split(";")[0].strip().partition("==")
        if not CUDA.fullmatch(name) or ("win32" in line and "linux" not in line):
            continue
        request = urllib.request.Request(
            f"https://pypi.org/simple/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            files = json.load(answer)["files"]
        stem = re.escape(f"{name.replace('-', '_')}-{version}")
        tag = re.compile(rf"{stem}-(py3|py2\.py3|cp311)-.*(manylinux.*{machine}|none-any)\.whl")
        total += max((file["size"] for file in files if tag.fullmatch(file["filename"])), default=0)
    return total / 1e9


def ends(which: str) -> str:
    """Resolve one end of the ranges, for this Python and machine."""
    how = {"oldest": "lowest-direct", "newest": "highest"}[which]
    with tempfile.TemporaryDirectory() as folder:
        others = Path(folder, "others.in")
        others.write_text(builders(), encoding="utf-8")
        python = os.environ.get("OUTLAY_PYTHON", sys.executable)
        return uv("--resolution", how, "--python", python, "--extra", EXTRA, "pyproject.toml", others)


def main(arguments: list[str]) -> None:
    """Write `constraints.txt`, or the file of one end of the ranges."""
    which, target = (arguments[0], Path(arguments[1])) if arguments else ("lock", CONSTRAINTS)
    text = lock() if which == "lock" else ends(which)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"{target}: {text.count('==')} versions", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
