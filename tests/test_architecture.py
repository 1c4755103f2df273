"""The architecture is this list: who may import whom, who may use what, who may move money."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import outlay

ROOT = Path(outlay.__file__).parent

# Unit (a module, or a package as a whole) -> the units of outlay it imports, wherever the import stands. Nothing more may
# be imported, and nothing may be listed that is not.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "display": set(),
    "degenerate": {"entities", "legible", "metrics"},
    "writing": {"errors"},
    "locks": set(),
    "quota": set(),
    "waiting": set(),
    "processor": set(),
    "precision": {"errors", "location", "locks", "processor", "train", "writing"},
    "executor": set(),
    "crew": {"waiting", "errors"},
    "quiet": set(),
    "supported": set(),
    "worker": {"crew", "quiet"},
    "local": {"quota", "crew", "errors", "worker"},
    "memo": set(),
    "form": set(),
    "entities": set(),
    "canonical": {"errors"},
    "legible": set(),
    "textfile": {"errors"},
    "jsontext": set(),
    "delimited": {"legible"},
    "yamltext": {"errors", "jsontext"},
    "artifact": {"canonical", "errors"},
    "store": {"artifact", "canonical", "errors", "locks", "writing", "paths"},
    "paths": {"errors"},
    "location": {"canonical", "paths"},
    "remote": {"artifact", "canonical", "errors", "location", "locks", "paths", "store"},
    "money": {"errors", "textfile", "writing"},
    "example": {"errors", "legible"},
    "settings": {"errors"},
    "metrics": {"entities", "errors", "legible"},
    "point": {"errors", "writing"},
    "pareto": {"errors", "money"},
    "published": {"errors"},
    "grouping": {"point"},
    "modelref": {"errors", "paths"},
    "demo": {"errors", "money", "writing"},
    "raycrew": {"__init__", "crew", "errors", "quiet"},
    "cluster": {"crew", "errors", "locks", "modelref", "raycrew"},
    "sizes": {"errors", "form", "modelref", "textfile", "yamltext"},
    "shape": {"errors", "form", "modelref", "sizes"},
    "window": {"errors", "form", "modelref", "shape", "sizes"},
    "compute": {"errors", "money", "shape", "textfile"},
    "speed": {"precision", "errors", "settings", "shape", "sizes", "paths"},
    "taskfile": {"errors", "example", "textfile", "yamltext"},
    "sources": {"errors", "example", "settings", "taskfile", "textfile", "yamltext"},
    "training": {"precision", "form", "taskfile"},
    "task": {"errors", "example", "form", "legible", "paths", "sources", "taskfile", "training"},
    "rows": {"canonical", "delimited", "errors", "jsontext", "legible", "sources", "textfile"},
    "source_table": {"errors", "example", "rows"},
    "data": {"entities", "errors", "example", "form", "legible", "paths", "rows", "source_table", "sources", "task"},
    "fetch": {"canonical", "data", "errors", "paths", "sources", "task", "writing"},
    "profile": {"data", "display", "entities", "example", "task"},
    "ledger": {"errors", "money", "paths"},
    "labels": {"errors", "example", "legible", "money"},
    "train": {
        "processor",
        "quota",
        *("entities", "errors", "form", "legible", "modelref", "quiet", "settings", "shape", "sizes", "speed"),
        "window",
        "writing",
    },
    "report": {
        *("degenerate", "display", "errors", "grouping", "ledger", "metrics", "money", "pareto", "point"),
        *("precision", "published", "runfolder", "writing"),
    },
    "significance": {"errors", "grouping", "metrics", "point", "report", "strategy"},
    "request": {"errors", "money", "precision", "settings", "store"},
    "recipe": {"form", "settings", "store"},
    "sellers": {"errors", "example", "labels", "money", "quoting", "request", "store", "strategy", "task"},
    "quoting": {"compute", "errors", "form", "memo", "money", "recipe", "request", "settings", "window"},
    "strategy": {"errors", "memo", "money", "quoting", "recipe"},
    "gauge": {"compute", "money", "quoting", "recipe"},
    "timing": {"quoting", "recipe", "settings", "speed"},
    "circumstance": {"precision", "quota", "processor"},
    "defaults": {"form", "settings"},
    "choices": {"data", "errors", "modelref", "recipe", "shape", "task"},
    "ordered": {"data", "example", "store"},
    "prepare": {
        "precision",
        *(
            "choices",
            "compute",
            "data",
            "defaults",
            "errors",
            "example",
            "form",
            "labels",
            "memo",
            "modelref",
            "money",
            "ordered",
            "quoting",
            "recipe",
            "request",
        ),
        *("sellers", "settings", "store", "strategy", "task", "train", "window"),
    },
    "planning": {
        *("display", "errors", "money", "point", "prepare", "quoting", "recipe", "speed"),
        *("strategy", "timing", "writing"),
    },
    "workshop": {"degenerate", "example", "metrics", "prepare", "quoting", "recipe", "store", "train"},
    "making": {
        "precision",
        *("circumstance", "errors", "gauge", "money", "prepare", "quoting", "recipe", "speed", "store", "strategy"),
        *("timing", "train", "workshop"),
    },
    "account": {
        *("degenerate", "errors", "ledger", "metrics", "point", "prepare", "quoting", "recipe", "store"),
        *("strategy", "workshop"),
    },
    "execution": {
        "precision",
        *("account", "circumstance", "errors", "gauge", "labels", "ledger", "making", "money", "point", "prepare"),
        *("quoting", "recipe", "runfolder", "store", "strategy", "watcher", "workshop"),
        "paths",
    },
    "run": {
        "precision",
        *("errors", "execution", "labels", "ledger", "making", "money", "point", "prepare", "runfolder", "store"),
        "watcher",
        "paths",
    },
    "aftermath": {"metrics", "report", "run", "workshop"},
    "scheduler": {
        *("account", "crew", "errors", "execution", "making", "money", "point", "prepare", "recipe", "remote", "run"),
        "strategy",
    },
    "conduct": {
        *("account", "aftermath", "crew", "errors", "gauge", "grouping", "ledger", "location", "money"),
        *("planning", "point", "prepare", "remote", "report", "request", "run", "runfolder", "scheduler"),
        *("store", "writing"),
        "paths",
    },
    "reporting": {"conduct", "pareto", "report", "significance", "store", "writing"},
    "studyfile": {
        *("errors", "legible", "money", "precision", "request", "settings", "taskfile", "training", "yamltext"),
    },
    "study": {
        "precision",
        *("errors", "legible", "modelref", "money", "paths", "prepare", "report", "request", "strategy", "studyfile"),
        "task",
        "taskfile",
    },
    "watcher": {"ledger", "money"},
    "runfolder": {"errors", "writing"},
    "compare": {
        *("aftermath", "errors", "grouping", "legible", "metrics", "modelref", "money", "point", "prepare", "remote"),
        *("report", "run", "runfolder", "significance", "store", "strategy", "writing"),
        "paths",
    },
    "single": {
        *("canonical", "cluster", "data", "defaults", "degenerate", "entities", "errors", "example"),
        *("executor", "form", "legible", "location", "metrics", "modelref", "precision", "raycrew", "rows"),
        *("settings", "shape", "sources", "speed", "task", "textfile", "train", "window", "writing"),
    },
    "cli": {
        *("__init__", "canonical", "compare", "compute", "conduct", "crew", "data", "degenerate", "demo"),
        *("display", "errors", "fetch", "ledger", "legible", "local", "location", "money", "paths"),
        *("planning", "point", "precision", "prepare", "profile", "quiet", "raycrew", "remote", "report"),
        *("reporting", "request", "run", "runfolder", "scheduler", "settings", "shape", "single", "sizes", "speed"),
        *("store", "study", "supported", "task", "textfile", "train", "waiting", "writing"),
    },
    "__init__": set(),
    "__main__": {"cli"},
}

# Unit -> what it uses beside the standard library; a unit that is not here uses nothing else.
THIRD_PARTY: dict[str, set[str]] = {
    "display": {"rich"},
    "taskfile": {"pydantic"},
    "yamltext": {"yaml"},
    "sources": {"pydantic"},
    "training": {"pydantic"},
    "task": {"pydantic"},
    "studyfile": {"pydantic"},
    "study": {"pydantic"},
    "reporting": {"rich"},
    "rows": {"datasets", "pyarrow"},
    "raycrew": {"ray"},
    "planning": {"rich"},
    "cluster": {"ray"},
    "remote": {"fsspec"},
    "modelref": {"huggingface_hub"},
    "metrics": {"numpy", "sacrebleu"},
    "significance": {"numpy"},
    "train": {"accelerate", "bitsandbytes", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers"},
    "report": {"altair", "pyarrow", "rich", "vl_convert"},
    "single": {"pyarrow", "pydantic"},
    "cli": {"rich", "typer"},
}
STANDARD_LIBRARY_ONLY = (
    "quota",
    "quota",
    "quota",
    "writing",
    *("money", "store", "artifact", "canonical", "locks", "example", "ledger", "labels", "point", "grouping"),
    *("form", "entities", "settings", "executor", "crew", "worker", "local", "quiet", "supported"),
    *("money", "store", "artifact", "canonical", "locks", "example", "ledger", "labels", "point", "grouping", "pareto"),
    *("form", "entities", "settings", "executor"),
    *("form", "entities", "settings", "executor", "memo"),
    *("form", "entities", "settings", "executor", "location", "paths"),
    *("legible", "textfile", "jsontext", "delimited"),
)

# Inside a package: module -> modules of the same package that it must not import.
INNER: dict[str, set[str]] = {
    "labels.base": {"labels.replay", "labels.book"},
    "labels.replay": {"labels.book"},
    "ledger.chain": {"ledger.book", "ledger.reading", "ledger.audit", "ledger.file", "ledger.owner"},
    "ledger.audit": {"ledger.book"},
    "ledger.reading": {"ledger.book"},
    "train.fused": {"train.losses", "train.targets", "train.heads", "train.lessons", "train.loop", "train.steps"},
    "train.losses": {"train.loop", "train.steps", "train.models", "train.targets", "train.heads", "train.lessons"},
    "train.positions": {"train.keep", "train.targets", "train.targets_file", "train.losses", "train.lessons"},
    "train.keep": {"train.targets", "train.targets_file", "train.losses", "train.lessons"},
    "train.targets_file": {"train.keep", "train.targets", "train.losses", "train.lessons"},
    "train.targets": {
        *("train.loop", "train.steps", "train.models", "train.heads", "train.lessons", "train.exchange"),
    },
    "train.exchange": {"train.loop", "train.steps", "train.heads", "train.lessons", "train.writers"},
    "train.decode": {"train.heads", "train.writers", "train.lessons", "train.models", "train.loop", "train.steps"},
    "train.heads": {"train.writers", "train.lessons", "train.models", "train.loop", "train.steps"},
    "train.writers": {"train.lessons", "train.models", "train.loop", "train.steps"},
    "train.lessons": {"train.models", "train.loop", "train.steps"},
    "train.build": {"train.models", "train.loop", "train.steps"},
    "train.steps": {"train.calibrate"},
    "train.models": {"train.lessons", "train.loop", "train.steps"},
    # The loop sees a model, a lesson and a score; which family learns what is not its affair.
    "train.loop": {"train.steps", "train.lessons", "train.targets", "train.models", "train.heads", "train.writers"},
    "train.place": {"train.loop", "train.steps", "train.models", "train.heads"},
    "report.tables": {"report.charts", "report.page", "report.receipt"},
    "report.laid": {
        "report.cells",
        "report.papers",
        "report.layouts",
        "report.rendering",
        "report.charts",
        "report.page",
    },
    "report.cells": {"report.papers", "report.layouts", "report.summaries", "report.costing", "report.rendering"},
    "report.papers": {"report.layouts", "report.summaries", "report.costing", "report.rendering"},
    "report.differences": {"report.layouts", "report.papers", "report.rendering"},
    "report.summaries": {"report.layouts", "report.costing", "report.rendering"},
    "report.costing": {"report.layouts", "report.summaries", "report.rendering"},
    # Numbers first: a layout does not know how it is drawn, and the drawing does not know what is laid out.
    "report.layouts": {"report.rendering", "report.charts", "report.page", "report.files"},
    "report.rendering": {"report.layouts", "report.cells", "report.papers", "report.results"},
    "report.files": {"report.layouts", "report.laid", "report.tables", "report.page"},
    "report.charts": {"report.page", "report.receipt", "report.style"},
    "report.style": {"report.page", "report.studypage"},
    "report.means": {
        "report.panels",
        "report.axes",
        "report.figures",
        "report.page",
        "report.studypage",
        "report.receipt",
    },
    "report.panels": {"report.axes", "report.figures", "report.page", "report.studypage", "report.receipt"},
    "report.axes": {"report.figures", "report.page", "report.studypage", "report.receipt"},
    "report.figures": {"report.page", "report.studypage", "report.receipt"},
    "cli.common": {"cli.app", "cli.runs", "cli.books", "cli.tasks", "cli.progress"},
    "cli.runs": {"cli.app", "cli.books", "cli.tasks"},
    "cli.books": {"cli.app", "cli.runs", "cli.tasks"},
    "cli.tasks": {"cli.app", "cli.runs", "cli.books"},
}

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
# What is longer, and how long it may be at most.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
HEAVY = ("torch", "transformers", "pydantic", "numpy", "pandas", "altair", "vl_convert", "safetensors", "datasets")


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


def test_the_lists_name_every_unit_and_no_other() -> None:
    assert set(ALLOWED) == set(of_units())
    assert set(THIRD_PARTY) <= set(ALLOWED)
    assert set(STANDARD_LIBRARY_ONLY) <= set(ALLOWED)
    assert {name for pair in INNER.items() for name in (pair[0], *pair[1])} <= set(modules())


@pytest.mark.parametrize("unit", sorted(ALLOWED))
def test_a_unit_imports_what_it_may_and_its_entry_is_not_stale(unit: str) -> None:
    used = {name.split(".")[0] for module in of_units()[unit] for name in own_imports(module)} - {unit}
    assert used - ALLOWED[unit] == set(), f"{unit} must not import these"
    assert ALLOWED[unit] - used == set(), f"{unit} no longer imports these; take them off its list"


@pytest.mark.parametrize("unit", sorted(ALLOWED))
def test_a_unit_uses_the_libraries_it_may(unit: str) -> None:
    used = {name for module in of_units()[unit] for name in foreign_imports(module)}
    assert used == THIRD_PARTY.get(unit, set())


def test_money_and_what_proves_it_need_the_standard_library_alone() -> None:
    assert not set(STANDARD_LIBRARY_ONLY) & set(THIRD_PARTY)

    def reached(unit: str) -> set[str]:
        return {unit}.union(*(reached(lower) for lower in ALLOWED[unit]))

    for unit in STANDARD_LIBRARY_ONLY:
        assert not reached(unit) & set(THIRD_PARTY), f"{unit} reaches a library through what it imports"


def test_training_knows_nothing_of_money_and_sellers_nothing_of_the_ledger() -> None:
    assert [unit for unit, libraries in THIRD_PARTY.items() if "torch" in libraries] == ["train"]
    assert not ALLOWED["train"] & {"money", "ledger", "task", "quoting", "compute", "run"}
    assert not ALLOWED["labels"] & {"ledger", "run", "store"}
    assert "ledger" not in ALLOWED["strategy"] | ALLOWED["quoting"] | ALLOWED["prepare"] | ALLOWED["workshop"]


@pytest.mark.parametrize("name", sorted(INNER))
def test_imports_inside_a_package_point_down(name: str) -> None:
    assert not own_imports(modules()[name]) & INNER[name]


def test_only_receipts_read_the_ledger_among_reports() -> None:
    readers = [m.name for m in of_units()["report"] if any(n.startswith("ledger") for n in own_imports(m))]
    assert readers == ["report.receipt"]


def test_no_import_goes_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
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
        if module.unit == "ledger":
            continue
        for receiver, method in calls(module):
            if method in ("hold", "settle", "release", "renew", "open_run", "top_up", "cancel") and receiver != "locks":
                spenders.setdefault(module.name, set()).add(method)
    assert spenders.pop("execution") >= {"hold", "settle", "release", "open_run"}
    # Those that drive executions tell them what came of a job; of the ledger they ask nothing but its end.
    assert spenders.pop("run") == {"settle", "release", "cancel"}
    assert spenders.pop("scheduler") == {"settle", "release"}
    assert spenders == {"cli.books": {"top_up", "cancel"}}
    for driver in ("run", "scheduler"):
        receivers = {receiver for receiver, method in calls(modules()[driver]) if method in ("settle", "release")}
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


def test_no_function_takes_whatever_it_is_given() -> None:
    takers = [f"{m.name}:{f.name}" for m in modules().values() for f in functions(m) if f.args.kwarg is not None]
    assert takers == []


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
    assert rooms <= {"cli", "errors", "quiet", "supported", "waiting"}


@pytest.mark.parametrize("arguments", [("ledger", "--help"), ("run", "--help"), ("prices",)])
def test_looking_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    loaded = start(*arguments)
    # From 0.29 on typer reads options with pydantic, which is its own affair; our models must not be built for it.
    assert not {name.split(".")[0] for name in loaded} & (set(HEAVY) - {"pydantic"})
    assert "outlay.task" not in loaded


def test_the_pure_rooms_load_nothing_heavy() -> None:
    pure = (
        "compute",
        "speed",
        "timing",
        "strategy",
        "ledger",
        "labels",
        "report.receipt",
        "report.tables",
        "report.page",
        "report.means",
        "report.studypage",
    )
    code = f"import sys, {', '.join('outlay.' + name for name in pure)}\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in ran.stdout.split()} & set(HEAVY)


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    def cpu_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    took = []
    for _ in range(5):
        before = cpu_seconds()
        start("--help")
        took.append(cpu_seconds() - before)
    # Processor time, and the best of five, since other programs may be at work on this machine.
    assert min(took) < 0.3, took
