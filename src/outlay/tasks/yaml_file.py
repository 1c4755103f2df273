"""Read a task or study file: unknown keys are refused, and the first problem is told in one line."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from outlay.errors import DataError, MissingData, TaskFileError
from outlay.tasks.example import shorten
from outlay.text.legible import did_you_mean
from outlay.text.text_file import read_text
from outlay.text.yaml_text import BadYaml, WrittenFloat, WrittenInt, parse_yaml, written_text

Value = Annotated[str, BeforeValidator(written_text, json_schema_input_type=str | int | float)]
NonEmpty = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
"""Names that files and folders are given too: no slash, no leading dot or dash, far from the 255 bytes of a file system."""


Model = TypeVar("Model", bound=BaseModel)


class YamlBlock(BaseModel):
    """A block of a task or study file: values are frozen, keys that nobody knows are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, str_strip_whitespace=False)


def read_yaml(
    path: Path,
    model: type[Model],
    error_type: type[DataError] = TaskFileError,
    whole: str = "the task",
    page: str = "docs/tasks.md",
) -> Model:
    """Read a file of keys and values as ``model``; ``whole``: what it describes, and ``page``: the page on such files.

    Raises:
        TaskFileError: (or ``error_type``) It is no YAML, no UTF-8 text, gives a key twice, holds something else than keys
            and values, or does not fit the model; one line, of the first problem.
    """
    try:
        content = parse_yaml(read_text(path))
    except BadYaml as error:
        line = "" if error.line is None else f" line {error.line}"
        raise error_type(f"{path}{line}: not readable as YAML: {error}; see {page}") from None
    except MissingData as error:
        raise error_type(f"{error}; a YAML file is UTF-8 text, see {page}") from None
    if not isinstance(content, dict):
        raise error_type(f"{path}: holds {type(content).__name__}, not keys and values; see {page}")
    try:
        return checked(content, model, whole)
    except ValueError as error:
        raise error_type(f"{path}: {error}") from None


def checked(content: dict[str, Any], model: type[Model], whole: str = "the task") -> Model:
    """Return keys and values as ``model``; ``whole``: what they describe.

    Raises:
        ValueError: They do not fit the model; one line, of the first problem.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ValueError(_first_problem(error, model.model_json_schema(), whole)) from None


_UNION_CHOICES = ("constrained-str", "str", "Column")
"""Parts of a pydantic key path that name a choice of a union, not a key."""


def _first_problem(error: ValidationError, schema: dict[str, Any], whole: str) -> str:
    """Say the first problem of a file in one line: key path, what is wrong, the value that is there."""
    problems = error.errors()
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    keys, here = _followed(first["loc"], schema)
    where = ".".join(keys) or whole
    if first["type"] == "extra_forbidden":
        known = sorted(_followed(first["loc"][:-1], schema)[1].get("properties", {}))
        text = f"{where}: unknown key{did_you_mean(str(first['loc'][-1]), known)}; allowed here are {', '.join(known)}"
    elif first["type"] == "missing":
        text = f"{where}: is required and missing"
    elif first["type"] in ("union_tag_not_found", "union_tag_invalid"):
        text = f"{where}.{here['discriminator']['propertyName']}: {_wrong_kind(first['input'], here['discriminator'])}"
    elif first["type"] == "value_error":
        text = f"{where}: {first['msg'].removeprefix('Value error, ')}"
    else:
        text = f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {_shown(first['input'])}"
        if first["type"] == "string_type" and not isinstance(first["input"], list | tuple | dict):
            text += "; write it in quotes"
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _wrong_kind(block: object, chooser: dict[str, Any]) -> str:
    """Say what is wrong with the key that tells of which kind a block is; ``chooser``: the schema's discriminator."""
    kinds = list(chooser["mapping"])
    given = block.get(chooser["propertyName"]) if isinstance(block, dict) else None
    hint = did_you_mean(str(given), kinds)
    what = "is required and missing" if given is None else f"is none of the known kinds: {_shown(given)}{hint}"
    return f"{what}; choose {', '.join(kinds[:-1])} or {kinds[-1]}"


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 3, 4, 4, 80, 80


def _shown(value: object) -> str:
    """Show a value as far as a line allows: lists inside each other may be endless, and numbers too long to write."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, WrittenInt | WrittenFloat):
        return shorten(value.written)
    return shorten(_REPR.repr(value))


def _followed(path: tuple[int | str, ...], schema: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the keys of a pydantic key path, without the choices of unions in it, and the schema of what lies there."""
    here, keys = schema, list[str]()
    for part in path:
        kinds = here.get("discriminator", {}).get("mapping", {})
        if part in kinds:
            here = schema["$defs"][kinds[part].rsplit("/", 1)[1]]
            continue
        if part not in _UNION_CHOICES:
            keys.append(str(part))
        if part in schema.get("$defs", {}):
            here = schema["$defs"][part]
        elif isinstance(part, int):
            here = here.get("items", {})
        else:
            others = next(iter(here.get("patternProperties", {}).values()), here.get("additionalProperties"))
            here = here.get("properties", {}).get(part, others if isinstance(others, dict) else here)
        options = [option for option in here.get("anyOf", [here]) if "$ref" in option]
        if options:
            here = schema["$defs"][options[0]["$ref"].rsplit("/", 1)[1]]
    return keys, here
