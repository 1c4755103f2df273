"""Read records from TOML files, those shipped with outlay and the user's."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator
from decimal import InvalidOperation
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from outlay.errors import MissingData, MoneyError, first_line
from outlay.text.text_file import read_text

R = TypeVar("R")


def load_records(
    kind: str,
    shipped: Iterable[Traversable],
    extra: Iterable[Path],
    read: Callable[[str, object], tuple[str, R]],
    *,
    advice: str,
    parse_float: Callable[[str], Any] = float,
) -> Iterator[tuple[str, dict[str, R]]]:
    """Yield each file's name with its records by name: the shipped files, then the user's.

    ``kind``: name of a file's tables; ``read``: called with the place of a record and the record, returns its name and value;
    ``advice``: end of the message for a file without records.

    Raises MoneyError, in one line that names the file, for a file that cannot be read or a record that is wrong.
    """
    texts = [(file.name, file.read_text(encoding="utf-8")) for file in shipped]
    for path in extra:
        try:
            texts.append((str(path), read_text(Path(path))))
        except MissingData as error:
            raise MoneyError(f"cannot read the {kind} file: {error}") from None
    for name, text in texts:
        try:
            content = tomllib.loads(text, parse_float=parse_float)
        except RecursionError:
            raise MoneyError(f"{name} is not a TOML {kind} file: it is nested too deep") from None
        except (ValueError, InvalidOperation) as error:
            raise MoneyError(f"{name} is not a TOML {kind} file: {first_line(error)}") from None
        records = content.get(kind)
        if set(content) != {kind} or not isinstance(records, list):
            raise MoneyError(f"{name} holds no {kind}s; {advice}")
        found: dict[str, R] = {}
        for number, record in enumerate(records, start=1):
            where = f"{name}, {kind} {number}"
            key, value = read(where, record)
            if key in found:
                raise MoneyError(f"{where}: {key!r} is listed twice; keep one")
            found[key] = value
        yield name, found
