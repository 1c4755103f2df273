"""The form of a task's rows, kept beside a model, so that new rows are read as those that it was trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from outlay.errors import DataError
from outlay.tasks.example import TextFormat
from outlay.tasks.sources import Column, Source
from outlay.tasks.task import Task


@dataclass(frozen=True, slots=True)
class RowForm:
    """How the columns of a row become the text that a model reads.

    ``text``: template of the text; ``segments``: one or two fields that an encoder reads; ``columns``: the column of each field.
    """

    text: str
    segments: tuple[str, ...]
    columns: Mapping[str, str]

    @classmethod
    def of(cls, task: Task) -> RowForm:
        """Return the form of a task's rows, with the columns of its test split."""
        return cls(task.text, task.segment_names, _columns(task.data.test, task.format.names))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RowForm:
        """Return the form that `to_json` wrote."""
        return cls(document["text"], tuple(document["segments"]), dict(document["columns"]))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"text": self.text, "segments": list(self.segments), "columns": dict(self.columns)}

    def columns_in(self, names: Collection[str]) -> dict[str, str] | None:
        """Return the column of each field among the columns ``names`` of a file; ``None`` where a field has none."""
        fields = TextFormat(self.text).names
        found = {field: next((c for c in (self.columns[field], field) if c in names), None) for field in fields}
        known = {field: column for field, column in found.items() if column is not None}
        return known if len(known) == len(fields) else None

    def read(self, fields: Mapping[str, str]) -> tuple[str, tuple[str, ...]] | None:
        """Return the text of a row and its one or two segments; ``None`` where no field has text."""
        if not any(value.strip() for value in fields.values()):
            return None
        text = TextFormat(self.text).render(fields)
        return text, tuple(text if name == "text" else fields[name] for name in self.segments)

    def segments_of(self, text: str) -> tuple[str, ...]:
        """Return the segments of a whole text; the text itself where it does not fit the template."""
        try:
            read = self.read(TextFormat(self.text).parse(text))
        except DataError:
            read = None
        return (text,) if read is None else read[1]


def _columns(source: Source, fields: Collection[str]) -> dict[str, str]:
    """Return the column of each field; a field that is made of another row or file has that of its own name."""
    named = {name: column for name, column in source.fields.items() if not isinstance(column, Column)}
    return {name: named.get(name, name) for name in fields}
