"""What `make` installs, and from where: tools/install.py against indexes of packages on this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from outlay.hardware.supported import unsupported, untested

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "constraints.txt").read_text(encoding="utf-8")
HEAD = "# torch from PyPI: x86_64 2.7 GB, aarch64 2.9 GB\n"


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the lock --------------------------------------------------------------------------------------------------------


def pins() -> list[Requirement]:
    return [Requirement(line) for line in LOCK.splitlines() if line and not line.startswith("#")]


def named(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted() -> dict[str, Requirement]:
    """Every requirement that `make` installs, extras of extras included, and what builds and installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    lines = [*project["build-system"]["requires"], *project["project"]["dependencies"], "pip"]
    todo = ["dev", "demo"]
    for extra in todo:
        for line in extras[extra]:
            requirement = Requirement(line)
            if named(requirement.name) == "outlay":
                todo += sorted(requirement.extras - set(todo))
            else:
                lines.append(line)
    return {named(each.name): each for each in map(Requirement, lines)}


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_dependency_is_pinned_within_its_range(python: str, machine: str) -> None:
    environment = {
        **{"python_version": python.rpartition(".")[0], "python_full_version": python, "platform_machine": machine},
        **{"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
        **{"implementation_name": "cpython", "platform_python_implementation": "CPython"},
    }
    here = [pin for pin in pins() if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {named(pin.name): str(pin.specifier).removeprefix("==") for pin in here}
    assert len(versions) == len(here)
    for name, requirement in wanted().items():
        assert name in versions, f"{name} is not in constraints.txt: make lock"
        assert requirement.specifier.contains(versions[name]), f"{name} {versions[name]}: make lock"


def test_the_lock_is_exact_and_holds_for_any_build() -> None:
    for pin in pins():
        (one,) = pin.specifier
        assert one.operator == "=="
        assert not pin.extras
        assert pin.url is None
        assert Version(one.version).local is None, pin
    assert "--hash" not in LOCK
    assert "\ntorch==2.13.0\n" in LOCK


def test_every_range_of_what_is_imported_ends() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"]:
        assert {one.operator for one in Requirement(line).specifier} == {">=", "<"}, line


# --- where torch comes from ------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str) -> None:
    """A wheel of one empty module, for any machine."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}/__init__.py", f"build = {version!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A package index over HTTP on this machine: its folder of wheels of torch, its address."""
    folder = tmp_path / "index" / "torch"
    folder.mkdir(parents=True)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def pip_hears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine, no index of the world."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "http", "HTTP", "no_proxy", "NO_PROXY"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/none")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_TIMEOUT", "1")


def versions(install: ModuleType, index: str | None = None) -> list[str]:
    found: list[str] = install.versions_of(Path(sys.executable), os.environ, index)
    return found


@pytest.mark.usefixtures("pip_hears_nothing")
def test_pip_says_which_builds_lie_on_this_machine(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert versions(install) == []
    for version in ("2.13.0+cpu", "2.12.0"):
        wheel(tmp_path / "meine Räder", "torch", version)
    monkeypatch.setenv("PIP_FIND_LINKS", (tmp_path / "meine Räder").as_uri())
    assert sorted(versions(install)) == ["2.12.0", "2.13.0+cpu"]


@pytest.mark.usefixtures("pip_hears_nothing")
def test_an_index_over_http_is_asked(install: ModuleType, index: tuple[Path, str]) -> None:
    folder, address = index
    for version in ("2.13.0+cpu", "2.14.0+cpu"):
        wheel(folder, "torch", version)
    assert sorted(versions(install, address)) == ["2.13.0+cpu", "2.14.0+cpu"]
    assert versions(install, address + "/elsewhere") == []


@pytest.mark.usefixtures("pip_hears_nothing")
def test_an_index_that_does_not_answer_is_left_alone_in_time(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "KNOCK_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, and says nothing
        begun = time.monotonic()
        assert versions(install, f"http://127.0.0.1:{silent.getsockname()[1]}") == []
        assert time.monotonic() - begun < 1.5


def offers(local: list[str], cpu: list[str]) -> object:
    return lambda index: local if index is None else cpu


PLAIN, LOCAL, OTHER = "2.13.0", "2.13.0+cpu", "2.12.0+cpu"


@pytest.mark.parametrize(
    ("here", "cpu", "arguments", "says"),
    [
        ([PLAIN, LOCAL], [LOCAL], ["torch==2.13.0"], r"2\.13\.0\+cpu, the build that pip finds on this machine"),
        ([PLAIN], [LOCAL], ["--no-deps", "--index-url", "CPU", "torch==2.13.0"], r"2\.13\.0\+cpu from CPU"),
        ([PLAIN, OTHER], [OTHER], ["torch==2.13.0"], r"CUDA from PyPI, 2\.7 GB to download"),
        ([PLAIN], [], ["torch==2.13.0"], r"CUDA from PyPI, 2\.7 GB to download: .*within 3 s"),
        ([], [], ["torch==2.13.0"], r"CUDA from PyPI, 2\.7 GB"),
    ],
)
def test_a_cpu_build_is_taken_where_there_is_one(
    install: ModuleType, here: list[str], cpu: list[str], arguments: list[str], says: str
) -> None:
    found, words = install.find_torch(PLAIN, "Linux", "x86_64", offers(here, cpu), HEAD)
    assert [each.replace(install.CPU_INDEX, "CPU") for each in found] == arguments
    assert re.search(says, words.replace(install.CPU_INDEX, "CPU")), words
    assert "\n" not in words


def test_elsewhere_torch_is_small_and_its_size_is_of_the_machine(install: ModuleType) -> None:
    assert install.find_torch(PLAIN, "Darwin", "arm64", offers([], []), HEAD)[0] == ["torch==2.13.0"]
    assert "2.9 GB" in install.find_torch(PLAIN, "Linux", "aarch64", offers([], []), HEAD)[1]
    assert "several gigabytes" in install.find_torch(PLAIN, "Linux", "aarch64", offers([], []), "")[1]
    assert re.fullmatch(r"\d\.\d GB to download", install.gigabytes(LOCK, "x86_64"))


# --- installing ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_environment_is_not_emptied(install: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    installer = install.Installer(tmp_path / "work", ROOT / "constraints.txt", is_alone=False)
    with pytest.raises(install.Stop, match="is no virtual environment"):
        installer.make()
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"


def test_the_ends_of_ranges_are_installed_without_what_the_machine_caps(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, caps = tmp_path / "pip.conf", tmp_path / "caps.txt"
    wheels = tmp_path / "wheels"
    settings.write_text(f"[global]\nconstraint = {caps}\nfind-links = {wheels}\n")
    caps.write_text("torch<=2.14.1\n")
    wheel(wheels, "torch", "2.15.0+cpu")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("PIP_CONSTRAINT", str(caps))
    heard = install.Installer(tmp_path / "venv", caps, is_alone=False)._environment
    assert (heard["PIP_CONFIG_FILE"], heard["PIP_CONSTRAINT"]) == (str(settings), str(caps))
    alone = install.Installer(tmp_path / "venv", caps, is_alone=True)._environment
    assert alone["PIP_CONFIG_FILE"] == os.devnull
    assert "PIP_CONSTRAINT" not in alone
    assert str(wheels) in alone["PIP_FIND_LINKS"].split()
    # And pip, told so, finds the build that the machine's settings rule out.
    target = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-deps",
        "--target",
        str(tmp_path / "there"),
        "torch",
    ]
    assert subprocess.run(target, env=heard, capture_output=True).returncode != 0
    assert subprocess.run(target, env=alone, capture_output=True).returncode == 0
    assert (tmp_path / "there" / "torch").is_dir()


def test_an_unpinned_package_is_said(install: ModuleType) -> None:
    assert install.pinned(LOCK, "torch") == "2.13.0"
    with pytest.raises(install.Stop, match="make lock"):
        install.pinned("torchvision==1\n", "torch")


@pytest.mark.usefixtures("pip_hears_nothing")
def test_every_step_is_told_and_torch_comes_from_the_index_that_has_a_cpu_build(
    install: ModuleType,
    index: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, address = index
    wheel(folder, "torch", "2.13.0+cpu")
    monkeypatch.setattr(install, "CPU_INDEX", address)
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(HEAD + "torch==2.13.0\n")
    installer = install.Installer(tmp_path / "mein Klon äö", constraints, is_alone=False)
    run = installer._run
    with monkeypatch.context() as quick:
        quick.setattr(installer, "_run", lambda command, said: run([*command[:-1], "--without-pip", command[-1]], said))
        installer.make()
    # The pip of this environment, which knows more than that of an old Python, without a download.
    site = next((tmp_path / "mein Klon äö").glob("lib/python*/site-packages"))
    import pip

    shutil.copytree(Path(pip.__file__).parent, site / "pip", ignore=shutil.ignore_patterns("__pycache__"))
    installer.choose_torch("2.13.0", HEAD, wants_gpu=False)
    told = capfd.readouterr().out.splitlines()
    assert told[0].startswith(f"making {tmp_path / 'mein Klon äö'} with Python 3.")
    assert told[1] == f"installing torch 2.13.0+cpu from {address}"
    asked = [str(installer.python), "-c", "import torch; print(torch.build)"]
    assert subprocess.run(asked, capture_output=True, text=True).stdout == "2.13.0+cpu\n"
    installer.choose_torch("2.13.0", HEAD, wants_gpu=False)
    assert capfd.readouterr().out == ""


# --- what is supported -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_another_python_is_refused_with_the_way_out(install: ModuleType, version: tuple[int, int]) -> None:
    with pytest.raises(install.Stop, match=r"for Python 3\.11 to 3\.13; name one of those: make PYTHON=python3\.13"):
        install.check_python(version, True)


def test_a_python_without_ensurepip_is_named(install: ModuleType) -> None:
    with pytest.raises(install.Stop, match=r"apt-get install python3\.12-venv"):
        install.check_python((3, 12), False)
    install.check_python((3, 12), True)


def test_what_is_supported_says_nothing() -> None:
    for machine in ("x86_64", "aarch64"):
        for minor in (11, 12, 13):
            assert unsupported("linux") is None
            assert untested("linux", machine, (3, minor)) is None


@pytest.mark.parametrize(
    ("system", "machine", "python", "says"),
    [
        ("darwin", "arm64", (3, 12), "macOS is untested"),
        ("linux", "riscv64", (3, 12), "riscv64 is untested"),
        ("linux", "x86_64", (3, 14), r"Python 3\.14 is untested: outlay is tested on 3\.11 to 3\.13"),
    ],
)
def test_elsewhere_one_line_says_what_is_untested(
    system: str, machine: str, python: tuple[int, int], says: str
) -> None:
    line = untested(system, machine, python)
    assert line is not None
    assert re.match(says, line)
    assert "\n" not in line
    assert "WSL 2" in (unsupported("win32") or "")


@pytest.mark.parametrize(
    ("platform", "code", "says"), [("win32", 1, "does not work on win32"), ("darwin", 0, "macOS is untested")]
)
def test_a_command_says_so_in_one_line(platform: str, code: int, says: str) -> None:
    program = "import sys; from outlay.cli import main; sys.platform = sys.argv.pop(); main()"
    command = [sys.executable, "-c", program, "--version", platform]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert done.stderr.startswith("outlay: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_ranges_and_the_pages_name_the_same_pythons() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert told == ["3.11", "3.12", "3.13"]
    assert "Python 3.11 to 3.13" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_installs_needs_no_library_that_it_installs() -> None:
    """As on a fresh machine: no site-packages, nothing of the user's own."""
    code = "import runpy, sys; sys.argv = ['install.py', '--help']; runpy.run_path('tools/install.py', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "usage" in ran.stdout
