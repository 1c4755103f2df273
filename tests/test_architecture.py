"""The architecture is this list: who may import whom, who may use what, who may move money."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import outlay

ROOT = Path(outlay.__file__).parent

# Package -> the packages of outlay it imports, lower ones only: the order of the rows is the order of the floors. A module that
# lies flat at the top is a row of its own.
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "library_warnings": set(),
    "spec": set(),
    "text": set(),
    "settings": {"spec"},
    "storage": set(),
    "hardware": {"storage"},
    "models": {"settings", "spec", "storage", "text"},
    "tasks": {"settings", "spec", "storage", "text"},
    "metrics": {"models", "text"},
    "money": {"storage", "text"},
    "workers": {"library_warnings", "models", "storage", "text"},
    "labels": {"money", "spec", "storage", "tasks", "text"},
    "train": {"library_warnings", "metrics", "models", "settings", "spec", "storage"},
    "plan": {"models", "money", "settings", "spec", "storage", "text"},
    "export": {"metrics", "models", "settings", "spec", "storage", "tasks"},
    "standalone": {"export", "metrics", "models", "settings", "spec", "storage", "tasks", "text", "train", "workers"},
    "engine": {"labels", "metrics", "models", "money", "plan", "settings", "spec", "storage", "tasks", "text", "train"},
    "report": {"engine", "export", "metrics", "money", "plan", "storage", "text"},
    "study": {
        "engine",
        "export",
        "metrics",
        "models",
        "money",
        "plan",
        "report",
        "settings",
        "storage",
        "tasks",
        "text",
        "workers",
    },
    "api_steps": {"export", "settings", "standalone", "storage", "study"},
    "api": {"engine", "export", "plan", "report", "settings", "standalone", "storage", "study", "tasks"},
    "cli": set(),
    "__main__": {"cli"},
}
EVERYWHERE = {"errors", "hardware"}
"""What every package above them may import; `cli` may import all."""

MOST_FLAT = 5
"""Modules beside the packages, but for `__init__` and `__main__`."""

# Package -> what it may use beside the standard library; a package that is not here uses nothing else.
THIRD_PARTY: dict[str, set[str]] = {
    "text": {"rich", "yaml"},
    "storage": {"fsspec"},
    "hardware": {"torch"},
    "models": {"huggingface_hub", "numpy", "peft", "safetensors", "sklearn", "tokenizers", "torch", "transformers"},
    "tasks": {"datasets", "numpy", "pyarrow", "pydantic", "scipy", "sklearn"},
    "metrics": {"numpy", "sacrebleu", "torch", "transformers"},
    "money": {"genai_prices"},
    "labels": {"openai", "sklearn"},
    "workers": {"ray"},
    "train": {
        *("accelerate", "bitsandbytes", "numpy", "safetensors", "torch", "transformers"),
        *("scipy", "sklearn", "threadpoolctl"),
    },
    "export": {"huggingface_hub"},
    "standalone": {"numpy", "pyarrow", "pydantic"},
    "engine": {"pydantic"},
    "report": {"altair", "numpy", "pyarrow", "rich", "vl_convert"},
    "study": {"pydantic", "rich"},
    "cli": {"rich", "typer"},
}
PROOFS = ("money", "labels.annotator", "labels.replay", "labels.purchases", "storage.store", "storage.artifact")
"""Money and what proves it need the standard library alone, with all that they import."""
FETCHES = "money.prices.fetch"
"""Reads a package's list of prices; no other module of these reaches it."""

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
# What is longer, and how long it may be at most.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
HEAVY = ("torch", "transformers", "pydantic", "numpy", "pandas", "altair", "vl_convert", "safetensors", "datasets", "openai")


@dataclass(frozen=True)
class Module:
    name: str
    tree: ast.Module
    n_lines: int

    @property
    def unit(self) -> str:
        return self.name.split(".")[0]


@cache
def modules() -> dict[str, Module]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, ast.parse(text), len(text.splitlines()))
    return found


def imported(module: Module) -> Iterator[str]:
    """Dotted names of every import, anywhere in the file; `from a import b` is `a.b` where that is a module of outlay."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name} line {node.lineno}: a relative import"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix("outlay.")
                is_module = base.split(".")[0] == "outlay" and inner in modules()
                yield f"outlay.{inner}" if is_module else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            assert isinstance(node.args[0], ast.Constant), f"{module.name} line {node.lineno}: which module is this?"
            yield str(node.args[0].value)


def own_imports(module: Module) -> set[str]:
    names = {name for name in imported(module) if name.split(".")[0] == "outlay"}
    return {name.removeprefix("outlay").lstrip(".") or "__init__" for name in names}


def foreign_imports(module: Module) -> set[str]:
    roots = {name.split(".")[0] for name in imported(module)}
    return roots - {"outlay", "__future__"} - set(sys.stdlib_module_names)


def of_units() -> dict[str, list[Module]]:
    units: dict[str, list[Module]] = {}
    for module in modules().values():
        units.setdefault(module.unit, []).append(module)
    return units


def test_every_package_has_a_row() -> None:
    assert set(FLOORS) | {"__init__"} == set(of_units())
    assert len([name for name in FLOORS if (ROOT / f"{name}.py").is_file() and name != "__main__"]) <= MOST_FLAT
    assert set(THIRD_PARTY) <= set(FLOORS)


@pytest.mark.parametrize("unit", sorted(FLOORS))
def test_imports_point_down(unit: str) -> None:
    below = set(list(FLOORS)[: list(FLOORS).index(unit)])
    assert FLOORS[unit] <= below
    used = {name.split(".")[0] for module in of_units()[unit] for name in own_imports(module)} - {unit, "__init__"}
    allowed = below if unit == "cli" else FLOORS[unit] | (EVERYWHERE & below)
    assert used - allowed == set(), f"{unit} must not import these"


@pytest.mark.parametrize("unit", sorted(FLOORS))
def test_a_package_uses_the_libraries_it_may(unit: str) -> None:
    used = {name for module in of_units()[unit] for name in foreign_imports(module)}
    assert used <= THIRD_PARTY.get(unit, set())


def reached(name: str) -> set[str]:
    """A module and all that it imports, far or near."""
    seen = {name}
    left = [name]
    while left:
        new = own_imports(modules()[left.pop()]) - seen
        seen |= new
        left += new
    return seen


def test_money_and_what_proves_it_need_the_standard_library_alone() -> None:
    proofs = [name for name in modules() if any(name == proof or name.startswith(f"{proof}.") for proof in PROOFS)]
    proofs.remove(FETCHES)
    assert len(proofs) > len(PROOFS)
    for name in proofs:
        libraries = {each: foreign_imports(modules()[each]) for each in reached(name)}
        assert not any(libraries.values()), f"{name} reaches {libraries}"


def test_training_knows_nothing_of_money_and_sellers_nothing_of_the_ledger() -> None:
    for unit in ("models", "train", "tasks", "metrics", "workers", "standalone"):
        names = {name for module in of_units()[unit] for name in own_imports(module)}
        assert not any(name.split(".")[0] == "money" for name in names), unit
    for unit in ("labels", "plan"):
        names = {name for module in of_units()[unit] for name in own_imports(module)}
        assert not any(name.startswith("money.ledger") for name in names), unit


def test_only_receipts_read_the_ledger_among_reports() -> None:
    readers = [m.name for m in of_units()["report"] if any(n.startswith("money.ledger") for n in own_imports(m))]
    assert readers == ["report.receipt"]


def test_no_import_goes_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        # What lies at the top of the package names the whole of it for type checkers, and imports nothing of it.
        if name not in done and name != "__init__":
            for lower in own_imports(modules()[name]) - {name}:
                visit(lower, (*trail, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def calls(module: Module) -> Iterator[tuple[str, str]]:
    """(receiver, method) of every method call, such as ("self._ledger", "hold")."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value), node.func.attr


def test_one_door_for_money() -> None:
    spenders: dict[str, set[str]] = {}
    for module in modules().values():
        if module.name.startswith("money.ledger"):
            continue
        for receiver, method in calls(module):
            if method in ("hold", "settle", "release", "renew", "open_run", "top_up", "cancel") and receiver != "locks":
                spenders.setdefault(module.name, set()).add(method)
    assert spenders.pop("engine.run") >= {"hold", "settle", "release", "open_run"}
    assert spenders.pop("engine.runner") == {"cancel"}
    # What drives executions tells them what came of a job; of the ledger it asks nothing.
    assert spenders.pop("study.scheduler") == {"settle", "release"}
    # What a run that died or was cancelled held is given back where its folder is.
    assert spenders.pop("engine.results_dir") == {"release"}
    assert spenders == {"cli.ledger_commands": {"top_up", "cancel"}}
    driver = modules()["study.scheduler"]
    receivers = {receiver for receiver, method in calls(driver) if method in ("settle", "release")}
    assert all(receiver.endswith("execution") for receiver in receivers)


def test_nothing_is_ever_unpickled() -> None:
    for module in modules().values():
        assert not {name.split(".")[0] for name in imported(module)} & UNPICKLERS, module.name
        for receiver, method in calls(module):
            assert (receiver, method) not in {("torch", "load"), ("torch", "save"), ("np", "load")}, module.name
        keywords = {k.arg for n in ast.walk(module.tree) if isinstance(n, ast.Call) for k in n.keywords}
        assert "allow_pickle" not in keywords, module.name
        names = {n.id for n in ast.walk(module.tree) if isinstance(n, ast.Name)}
        assert not names & {"eval", "exec"}, module.name


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(module.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_files_and_functions_are_short() -> None:
    files = {m.name: m.n_lines for m in modules().values() if m.n_lines >= MAX_FILE_LINES}
    assert set(files) == set(LONG_FILES), "longer than allowed, or no longer an exception"
    assert all(files[name] < most for name, most in LONG_FILES.items()), files
    lengths = {
        f"{m.name}:{f.name}": (f.end_lineno or f.lineno) - f.lineno + 1
        for m in modules().values()
        for f in functions(m)
    }
    long = {name: n for name, n in lengths.items() if n >= MAX_FUNCTION_LINES}
    assert set(long) == set(LONG_FUNCTIONS), "longer than allowed, or no longer an exception"
    assert all(long[name] < most for name, most in LONG_FUNCTIONS.items()), long


MAX_PARAMETERS = 10


def n_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


# Commands of the command line that are not decorated: `outlay.cli.app` names them.
COMMANDS = {("cli.run_commands", name) for name in ("demo", "run", "compare", "report")}


def test_no_function_takes_more_than_ten_parameters_but_commands() -> None:
    many = {
        (module.name, function.name): n_parameters(function)
        for module in modules().values()
        for function in functions(module)
        if n_parameters(function) > MAX_PARAMETERS
        and not (module.unit == "cli" and (function.decorator_list or (module.name, function.name) in COMMANDS))
    }
    assert many == {}


def test_no_function_hands_on_its_locals() -> None:
    users = {
        f"{module.name}:{node.lineno}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("locals", "vars")
    }
    assert {user for user in users if not user.startswith("cli.run_commands:")} == set()


def test_no_function_takes_whatever_it_is_given() -> None:
    takers = [f"{m.name}:{f.name}" for m in modules().values() for f in functions(m) if f.args.kwarg is not None]
    assert takers == []


MOST_PARAMETERS = 10


def test_no_function_of_runs_and_studies_takes_more_than_it_can_name() -> None:
    """But for the entries of commands, whose parameters are their options."""
    for module in modules().values():
        if module.unit in ("study", "report", "engine") or module.name in ("cli.run_commands", "cli.study_commands"):
            for each in functions(module):
                n = len(each.args.posonlyargs) + len(each.args.args) + len(each.args.kwonlyargs)
                is_entry = module.unit == "cli" and each.name in ("run", "compare", "demo")
                assert n <= MOST_PARAMETERS or is_entry, f"{module.name}:{each.name} takes {n}"
            names = {n.id for n in ast.walk(module.tree) if isinstance(n, ast.Name)}
            assert "locals" not in names, module.name


# --- what really happens ---------------------------------------------------------------------------------------------

START = """
import sys
from outlay.cli import main
sys.argv = ["outlay", *sys.argv[1:]]
try:
    main()
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""


def start(*arguments: str) -> set[str]:
    """Modules loaded by a command."""
    ran = subprocess.run([sys.executable, "-c", START, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout
    return set(ran.stderr.split())


def test_help_loads_nothing_heavy_and_no_room_of_the_house() -> None:
    loaded = start("--help")
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)
    rooms = {name.split(".")[1] for name in loaded if name.startswith("outlay.")}
    assert rooms <= {"cli", "errors", "library_warnings", "hardware"}


@pytest.mark.parametrize("arguments", [("ledger", "--help"), ("run", "--help"), ("prices",)])
def test_looking_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    loaded = start(*arguments)
    # From 0.29 on typer reads options with pydantic, which is its own affair; our models must not be built for it.
    assert not {name.split(".")[0] for name in loaded} & (set(HEAVY) - {"pydantic"})
    assert "outlay.tasks.task" not in loaded


def test_the_pure_rooms_load_nothing_heavy() -> None:
    pure = (
        "money.machines",
        "models.cost_model",
        "plan.forecast",
        "plan.strategies",
        "money.ledger",
        "labels",
        "labels.llm.seller",
        "report.receipt",
        "report.values",
        "report.seed_means",
        "report.study_page",
    )
    code = f"import sys, {', '.join('outlay.' + name for name in pure)}\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in ran.stdout.split()} & set(HEAVY)
