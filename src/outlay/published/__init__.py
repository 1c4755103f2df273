"""The figures that Kang et al. 2023 ("Distill or Annotate?", ACL) print, as CSV files typed from the paper."""

from __future__ import annotations

import csv
from importlib import resources


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a table by column, as text; an empty text is the paper's N/A.

    Args:
        name: file name without its ending, such as ``kang_table2_table11``.
    """
    text = resources.files("outlay.published").joinpath(f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
