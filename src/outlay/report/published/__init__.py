"""Numbers printed in published papers, to compare a study with; `README.md` in this folder names their sources."""

from __future__ import annotations

import csv
from importlib import resources

from outlay.errors import MissingData


def names() -> list[str]:
    """Return the names of the published tables, such as ``kang_table2_table11``."""
    files = resources.files("outlay.report.published").iterdir()
    return sorted(file.name.removesuffix(".csv") for file in files if file.name.endswith(".csv"))


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a published table, text by column; empty text where the paper prints N/A.

    Raises:
        MissingData: there is no such table; the message lists all tables.
    """
    plain = name.removesuffix(".csv")
    if plain not in names():
        raise MissingData(f"no published figures {name!r}; there are {', '.join(names())}")
    text = resources.files("outlay.report.published").joinpath(f"{plain}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
