"""Read YAML strictly: YAML 1.2 scalars, numbers that keep their spelling, no duplicate keys, merge keys.

PyYAML reads YAML 1.1, where ``NO`` is a truth value, ``010`` is 8, ``12:30`` is 750 and ``2024-05-31`` a date. Here only decimal
numbers (also ``1_000``, but not ``0x1F``), ``true``, ``false`` and ``null`` (also ``~``) are something else than text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from outlay.errors import first_line
from outlay.text.json_text import MAX_DIGITS

_TAG = "tag:yaml.org,2002:"
_MAX_KEYS = 10_000
"""Keys of one mapping: merge keys that name each other would double them without end."""
_MAX_BRACKETS = 200
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadYaml(ValueError):
    """Text that is not acceptable YAML; ``str(e)`` is the reason, ``line`` the place, None for the whole file."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


class WrittenInt(int):
    """An integer with its spelling in the file, such as ``010``."""

    written: str


class WrittenFloat(float):
    """A float with its spelling in the file, such as ``1.10``."""

    written: str


def written_text(value: object) -> object:
    """Return a number as the text it was written as; anything else as it is."""
    if isinstance(value, WrittenInt | WrittenFloat):
        return value.written
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def plain(value: Any) -> Any:
    """Return a value as plain numbers, without how they were written."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, WrittenInt):
        return int(value)
    return float(value) if isinstance(value, WrittenFloat) else value


def _refusal(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """YAML loader: YAML 1.2 scalars, keys as text, merge keys, duplicate keys refused."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked before merge keys are resolved: what a mapping overrides is not given twice.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise _refusal(f"the key {key.value!r} is given twice", key)
            seen.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_KEYS:
            raise _refusal(f"its merge keys give more than {_MAX_KEYS:,} keys", node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = f"{_TAG}str"
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text: str = self.construct_scalar(node)
        if not _SURROGATE.search(text):
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise _refusal("half a surrogate pair (\\ud800 to \\udfff), which is no character", node) from None

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        if len(node.value) > MAX_DIGITS:
            return str(node.value)
        number = WrittenInt(node.value.replace("_", ""))
        number.written = node.value
        return number

    def construct_number(self, node: yaml.ScalarNode) -> float:
        special = node.value.lower().lstrip("+")
        number = WrittenFloat(special.replace(".", "") if special.lstrip("-") in (".inf", ".nan") else node.value)
        number.written = node.value
        return number


_Loader.add_constructor(f"{_TAG}str", _Loader.construct_text)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_whole)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_number)
_Loader.yaml_implicit_resolvers = {}
for _tag, _regexp, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_tag}", re.compile(rf"^(?:{_regexp})$"), list(_first))


def _refuse_deep(text: str) -> None:
    """Refuse brackets inside brackets without end before they are read: PyYAML takes time with the square of their number."""
    depth = 0
    for found in _BRACKET.finditer(text):
        depth += 1 if found[0] in "[{" else -1
        if depth > _MAX_BRACKETS:
            raise BadYaml("it is nested too deep: brackets inside each other hundreds of times")


def parse_yaml(text: str) -> Any:
    """Parse YAML; numbers are `WrittenInt` and `WrittenFloat`, keys are texts.

    Raises:
        BadYaml: It is no YAML, gives a key twice, holds a tag, half a surrogate pair, or is nested too deep.
    """
    _refuse_deep(text)
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise BadYaml(f"it holds the character {character}, which YAML does not allow", line) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(part for part in (error.context, error.problem) if part) or "it cannot be read"
        if "could not determine a constructor" in problem:
            problem = "tags such as !!python/name are not read; write plain values"
        raise BadYaml(problem, None if mark is None else mark.line + 1) from None
    except RecursionError:
        raise BadYaml("it is nested too deep: lists or keys inside each other hundreds of times") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise BadYaml(first_line(error)) from None
