"""The method that ``auto`` stands for: by the number of labels, the kind of task and the model, from a table of results."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from outlay.spec import Family, Kind

_FILE = "auto.toml"
CONDITIONS = ("up_to", "of")
"""Keys of a row of the table that say when it holds; the others are its settings."""


@dataclass(frozen=True, slots=True)
class ChosenMethod:
    """A method with its settings, and the reason in words."""

    settings: Mapping[str, Any]
    why: str

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.settings["method"])


@dataclass(frozen=True, slots=True)
class _Row:
    """Row of the table: these settings, up to so many labels and for a cut or a whole model (``None`` = any)."""

    up_to: int | None
    of: str | None
    settings: Mapping[str, Any]

    def holds(self, n_labels: int, size: str) -> bool:
        return (self.up_to is None or n_labels <= self.up_to) and self.of in (None, size)


def choose_method(
    *,
    kind: Kind,
    family: Family,
    is_pretrained: bool,
    is_pair: bool,
    learns_from: str,
    n_labels: int,
    is_cut: bool = False,
) -> ChosenMethod:
    """Return the method for a training.

    Args:
        kind: of the task.
        family: of the model.
        is_pretrained: False for a model that begins with random weights.
        is_pair: whether a row has two texts.
        learns_from: ``labels``, or ``targets`` of a teacher.
        n_labels: labels that the training, or its teacher, learns from.
        is_cut: whether the model is some layers of a pretrained one.
    """
    if kind == "generation" or family != "encoder":
        return ChosenMethod({"method": "full"}, f"method auto: full, since a {family} model writes its answers")
    if not is_pretrained:
        return ChosenMethod({"method": "full"}, "method auto: full, since the model begins with random weights")
    document = _document()
    rows = _rows(kind, "pair" if is_pair and kind == "classification" else "single", learns_from)
    size = "cut" if is_cut else "whole"
    row = next((each for each in rows if each.holds(n_labels, size)), rows[-1])
    most, least = document["most_labels"], document["least_labels"]
    beyond = "" if least <= n_labels <= most else f", extrapolated: the table goes from {least:,} to {most:,} labels"
    named = ", ".join(f"{name} {value}" for name, value in row.settings.items() if name != "method")
    method = str(row.settings["method"]) + (f" ({named})" if named else "")
    method += "" if row.of is None else f" of a {row.of} model"
    return ChosenMethod(row.settings, f"method auto: {method} for {n_labels:,} labels ({document['source']}{beyond})")


@cache
def _text() -> str:
    return resources.files("outlay.settings").joinpath(_FILE).read_text(encoding="utf-8")


@cache
def _document() -> Mapping[str, Any]:
    return tomllib.loads(_text())


def _rows(kind: str, texts: str, learns_from: str) -> Sequence[_Row]:
    table = _document()["methods"][kind]
    found = table.get(texts, table["single"])[learns_from]
    return [
        _Row(row.get("up_to"), row.get("of"), {name: row[name] for name in row if name not in CONDITIONS})
        for row in found
    ]


TABLE_DIGEST = hashlib.sha256(_text().encode()).hexdigest()[:16]
"""Digest of the table, a part of the identity of runs that ask for ``auto``."""
