"""The figures that published papers print, as data: what a study's own are put beside. `README.md` names their sources."""

from __future__ import annotations

import csv
from importlib import resources

from outlay.errors import MissingData


def names() -> list[str]:
    """Names of the sets of figures, such as ``kang_table2_table11``."""
    files = resources.files("outlay.report.published").iterdir()
    return sorted(file.name.removesuffix(".csv") for file in files if file.name.endswith(".csv"))


def rows(name: str) -> list[dict[str, str]]:
    """The rows of one set of figures, text by column; empty text where the paper prints N/A.

    Raises:
        MissingData: there is no such set; lists those there are.
    """
    plain = name.removesuffix(".csv")
    if plain not in names():
        raise MissingData(f"no published figures {name!r}; there are {', '.join(names())}")
    text = resources.files("outlay.report.published").joinpath(f"{plain}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
