"""Docstrings open with a verb or a noun, never with a relative word.

``python -m tests.test_prose`` prints the share of each package, and those docstrings that open so.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "src" / "outlay"

RELATIVE = {"As", "How", "Of", "What", "Whatever", "Where", "Whether", "Which", "Who"}
MOST = 0.02
"""Share of docstrings of functions and classes in a package that may open with one of `RELATIVE`."""


@dataclass(frozen=True)
class Opening:
    """First line of the docstring of a function or class."""

    place: str
    line: str

    @property
    def unit(self) -> str:
        return self.place.split("/")[0].split(":")[0].removesuffix(".py")

    @property
    def is_relative(self) -> bool:
        return self.line.replace(",", " ").replace(":", " ").split()[0] in RELATIVE


def openings_of(text: str, path: str) -> Iterator[Opening]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            said = ast.get_docstring(node)
            if said:
                yield Opening(f"{path}:{node.lineno}", said.splitlines()[0])


@cache
def openings() -> list[Opening]:
    found: list[Opening] = []
    for path in sorted(SOURCES.rglob("*.py")):
        found += openings_of(path.read_text(encoding="utf-8"), str(path.relative_to(SOURCES)))
    return found


def share(of: list[Opening]) -> float:
    return sum(each.is_relative for each in of) / len(of)


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    """In each package; all are read here, once: while tests are collected every worker would."""
    of: dict[str, list[Opening]] = {}
    for each in openings():
        of.setdefault(each.unit, []).append(each)
    assert len(of) > 10
    for unit, found in of.items():
        relative = [f"{each.place} {each.line}" for each in found if each.is_relative]
        assert share(found) < MOST, (unit, relative)


def test_an_opening_is_judged_by_its_first_word() -> None:
    text = (
        '"""What a module says does not count."""\n\ndef f():\n    """What, then?"""\n\n'
        'class A:\n    """Whatsoever."""\n\n    def g(self): ...\n'
    )
    of = list(openings_of(text, "plan/steps.py"))
    assert [(each.place, each.unit, each.is_relative) for each in of] == [
        ("plan/steps.py:3", "plan", True),
        ("plan/steps.py:6", "plan", False),
    ]
    assert share(of) == 0.5


def main() -> None:
    found = openings()
    for each in found:
        if each.is_relative:
            print(each.place, each.line)
    relative, all_of = Counter(each.unit for each in found if each.is_relative), Counter(each.unit for each in found)
    for unit in sorted(all_of):
        print(f"{unit:20} {relative[unit]:4} of {all_of[unit]:5} {100 * relative[unit] / all_of[unit]:6.1f} %")
    print(f"{'all':20} {sum(relative.values()):4} of {len(found):5} {100 * share(found):6.1f} %")


if __name__ == "__main__":
    main()
