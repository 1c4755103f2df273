"""Names and files that docstrings, comments and documents speak of exist."""

from __future__ import annotations

import ast
import builtins
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))

# Names of other programs and papers, and of things in examples.
FOREIGN = {
    "ALiBi",
    "CompletionOutput",
    "EX_TEMPFAIL",
    "GKDTrainer",
    "Infinity",
    "LoRA",
    "SetFit",
    "MPNetEmbeddings",
    "MiB",
    "MiniLLM",
    "MiniLM",
    "OpenAI",
    "OpenMP",
    "PYTHONIOENCODING",
    "PYTHONWARNINGS",
    "PyTorch",
    "PyYAML",
    "RequestOutput",
    "SQuAD",
    "SentencePiece",
    "group_by_length",
    "n_features",
    "relative_step",
    "return_tokens_as_token_ids",
    "run_t5",
    "scale_parameter",
    "tweet_eval",
    "use_fsdp",
}
# Symbols of equations.
SYMBOLS = {"min_v", "p_K", "q_tail", "q_v"}
# Of another program; a report's own.
OTHER_FILES = {"run_t5.py", "table.md"}
# Keys of task and study files whose first word is a package's name too.
KEYS = {"models.student", "models.teacher"}
# Put together of a PEFT method and its setting.
BUILT = {"lora_rank"}
# Variables that are called as a package is, and the classes of their values.
VARIABLES = {"settings": ("TrainSettings", "TeachSettings")}
# Documents that those who have the package do not have.
PRIVATE = re.compile(r"\b(?:DESIGN|HOUSE|ROADMAP)\b(?:\.md)?|\bdecision \d+\b")

CODE_SPAN = re.compile(r"`+([^`\n]+)`+")
DOTTED = re.compile(r"(?<![\w./~-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
NAME = re.compile(r"(?<!`)`([A-Za-z_]\w*)(?:\(\))?`(?!`)")
WORD = re.compile(r"(?<![\w.%-])[A-Za-z_]\w*")
CAMEL = re.compile(r"\b[A-Z]+[a-z0-9]+[A-Z]\w*")
FILE = re.compile(
    r"(?<![\w./~<-])(?:[\w-]+/)*[\w-]+\.(?:py|md)\b(?![\w/])|(?<![\w./~-])(?:docs|bench|src|tests|tools)/[\w./-]*\w"
)


@dataclass
class Index:
    """Names of a package, read from its sources without importing them."""

    modules: dict[str, set[str]] = field(default_factory=dict)
    classes: dict[str, set[str]] = field(default_factory=dict)
    words: set[str] = field(default_factory=lambda: {*dir(builtins), *sys.stdlib_module_names})

    @classmethod
    def of(cls, package: Path) -> Index:
        index = cls()
        for path in sorted(package.rglob("*.py")):
            parts = (package.name, *path.relative_to(package).with_suffix("").parts)
            index._add(".".join(parts).removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8")))
        return index

    @property
    def packages(self) -> set[str]:
        return {name.split(".")[1] for name in self.modules if name.count(".") > 1}

    def _add(self, name: str, tree: ast.Module) -> None:
        self.modules[name] = names = set()
        for statement in tree.body:
            names |= _bound(statement)
        strings = {id(each) for each in docstrings(tree)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self.classes.setdefault(node.name, set()).update(_members(node))
            self.words |= _words(node) if id(node) not in strings else set()
        self.words |= {*name.split(".")}

    def has(self, dotted: str) -> bool:
        """Return whether a dotted name such as `outlay.train.loop.fit` is a module, or a name in one."""
        parts = dotted.split(".")
        n = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in self.modules), 0)
        rest = parts[n:]
        if not n or (rest and rest[0] not in self.modules[".".join(parts[:n])]):
            return False
        return len(rest) < 2 or self.has_member(rest[0], rest[1])

    def has_member(self, name: str, member: str) -> bool:
        """Return whether a class has a member; True too for a class that is none of the package."""
        return name not in self.classes or member in self.classes[name]


def _bound(statement: ast.stmt) -> set[str]:
    """Return the names that a statement binds, its blocks included, the insides of functions and classes left out."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for inner in ast.iter_child_nodes(statement):
        names |= _bound(inner) if isinstance(inner, ast.stmt) else set()
    return names


def _members(node: ast.ClassDef) -> set[str]:
    """Return the names of a class's members, and of its bases' as far as these have members of their own in the class body."""
    names: set[str] = set()
    for statement in node.body:
        names |= _bound(statement)
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "self":
            names.add(each.attr)
    return names


def _words(node: ast.AST) -> set[str]:
    """Return the names that stand in a node of code itself, words of strings included."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Attribute):
        return {node.attr}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.arg | ast.keyword):
        return {node.arg} if node.arg else set()
    if isinstance(node, ast.alias):
        return {*node.name.split("."), node.asname or node.name}
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return set(re.findall(r"\w+", node.value))
    return set()


def docstrings(tree: ast.Module) -> list[ast.Constant]:
    """Return strings that stand alone as statements: docstrings, and those of attributes."""
    blocks = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]  # type: ignore[attr-defined]
    alone = [each.value for block in blocks for each in block if isinstance(each, ast.Expr)]
    return [each for each in alone if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield docstrings and comments of a source with their first lines' numbers."""
    for each in docstrings(ast.parse(text)):
        yield each.lineno, str(each.value)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def wrong_names(text: str, index: Index) -> list[str]:
    """Return dotted names in a text that claim to be of the package, or of one of its classes, and are not."""
    wrong = []
    for dotted in DOTTED.findall(text):
        first, second, *_ = dotted.split(".")
        if first == "outlay" and not _is_file(dotted):
            wrong += [dotted] * (not index.has(dotted))
        elif first in index.classes:
            wrong += [dotted] * (not index.has_member(first, second))
        elif first in index.packages and f"`{dotted}" in text and not _is_file(dotted) and dotted not in KEYS:
            is_member = any(second in index.classes.get(name, ()) for name in VARIABLES.get(first, ()))
            wrong += [dotted] * (not is_member and not index.has(f"outlay.{dotted}"))
    return wrong


def _is_file(dotted: str) -> bool:
    return dotted.endswith((".csv", ".html", ".json", ".md", ".parquet", ".py", ".svg", ".toml", ".yaml"))


def unknown_words(text: str, index: Index) -> list[str]:
    """Return names in a text that no code of the package knows: single names and parts of code in backticks, else camel case."""
    spans = " ".join(CODE_SPAN.findall(text))
    coded = [word for word in WORD.findall(spans) if "_" in word.strip("_") or CAMEL.fullmatch(word)]
    coded += [word for word in NAME.findall(text) if word not in coded]
    plain = CAMEL.findall(CODE_SPAN.sub("", text))
    return [word for word in (*coded, *plain) if word not in index.words | FOREIGN | SYMBOLS | BUILT]


def missing_files(text: str, beside: Path) -> list[str]:
    """Return files and folders of the repository that a text names and that are not there."""
    places = (ROOT, ROOT / "src" / "outlay", beside)
    missing = [name for name in FILE.findall(text) if not any((place / name).exists() for place in places)]
    return [name for name in missing if name not in OTHER_FILES and ("/" in name or name not in _file_names())]


@cache
def _file_names() -> set[str]:
    return {path.name for part in ("src", "docs", "bench", "tests", "tools") for path in (ROOT / part).rglob("*.*")}


@cache
def package() -> Index:
    return Index.of(ROOT / "src" / "outlay")


def sources() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def found(problems: dict[str, list[str]]) -> list[str]:
    return [f"{place}: {name}" for place, names in problems.items() for name in names]


def test_docstrings_and_comments_name_what_exists() -> None:
    problems: dict[str, list[str]] = {}
    n_read = 0
    for path in sources():
        for line, text in prose(path.read_text(encoding="utf-8")):
            n_read += 1
            wrong = [*wrong_names(text, package()), *unknown_words(text, package()), *missing_files(text, path.parent)]
            problems[f"{path.relative_to(ROOT)}:{line}"] = wrong
    assert n_read > 2000
    assert found(problems) == []


@pytest.mark.parametrize("folder", ["bench", "tests", "tools"])
def test_what_stands_beside_the_package_names_what_exists(folder: str) -> None:
    problems: dict[str, list[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path == Path(__file__):
            continue
        for line, text in prose(path.read_text(encoding="utf-8")):
            wrong = [name for name in wrong_names(text, package()) if name.startswith("outlay.")]
            problems[f"{path.relative_to(ROOT)}:{line}"] = [*wrong, *missing_files(text, path.parent)]
    assert found(problems) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documents_name_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [*wrong_names(text, package()), *missing_files(text, page.parent)] == []


def test_no_text_refers_to_a_document_that_users_do_not_have() -> None:
    files = (*PAGES, *sources(), *sorted((ROOT / "bench").rglob("*.py")), *sorted((ROOT / "tools").rglob("*.py")))
    problems = {str(path.relative_to(ROOT)): PRIVATE.findall(path.read_text(encoding="utf-8")) for path in files}
    assert found(problems) == []


def test_the_table_of_packages_lists_every_package() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = text.split("## The packages")[1].split("## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`([\w/]+?)/?`", row)}
    units = {name.split(".")[1] for name in package().modules if "." in name} - {"__main__"}
    assert {name.split("/")[0] for name in named} == units


# --- the checker can fail --------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Index:
    folder = tmp_path / "outlay"
    (folder / "train").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "train" / "__init__.py").write_text("")
    (folder / "train" / "loop.py").write_text(
        '"""Not a `Name`."""\nfrom typing import Any\n\n'
        "class Loop:\n    size: int\n\n    def fit(self) -> Any:\n        self.left = 1\n"
    )
    return Index.of(folder)


@pytest.mark.parametrize(
    "name",
    ["outlay.train", "outlay.train.loop", "outlay.train.loop.Loop", "outlay.train.loop.Loop.left", "train.loop.Any"],
)
def test_a_name_that_exists_is_right(small: Index, name: str) -> None:
    assert wrong_names(f"see `{name}`.", small) == []


@pytest.mark.parametrize(
    "name",
    [
        "outlay.trian",
        "outlay.train.steps",
        "outlay.train.loop.Lop",
        "outlay.train.loop.Loop.fitt",
        "train.loop.fit",
        "Loop.fitt",
    ],
)
def test_a_name_that_does_not_exist_is_found(small: Index, name: str) -> None:
    assert wrong_names(f"see `{name}`.", small) == [name]


def test_words_that_only_code_has_are_looked_for(small: Index) -> None:
    text = "A `Loop` of `size`, in PyTorch, not a `LoopSize`, `loop_size(x)`, `once` or an OldLoop."
    assert unknown_words(text, small) == ["LoopSize", "loop_size", "once", "OldLoop"]


def test_a_file_that_is_missing_is_found(tmp_path: Path) -> None:
    (tmp_path / "near.py").write_text("")
    text = "See near.py, `far.py`, docs/design.md, docs/desing.md, src/outlay/train/ and src/outlay/trian/."
    assert missing_files(text, tmp_path) == ["far.py", "docs/desing.md", "src/outlay/trian"]


def test_a_private_document_is_found() -> None:
    assert PRIVATE.findall("as DESIGN decision 6 has it") == ["DESIGN", "decision 6"]


def test_prose_is_docstrings_and_comments() -> None:
    text = '"""One."""\nX = "no"  # Two\n"""Three."""\n\ndef f():\n    """Four."""\n'
    assert list(prose(text)) == [(1, "One."), (3, "Three."), (6, "Four."), (2, "# Two")]
