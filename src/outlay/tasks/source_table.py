"""The rows of one source of a task, as columns of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay.errors import DataError
from outlay.tasks.example import TextFormat
from outlay.tasks.readers import SourceRow, cell_text, is_missing, missing_value


class SourceTable:
    """The rows of a source that ``where`` keeps; a row's whole text is taken apart when its columns are asked for."""

    def __init__(
        self, rows: list[SourceRow], text_column: str | None, text_format: TextFormat, where: Mapping[str, Any]
    ) -> None:
        self._text_column = text_column
        self._format = text_format
        self.rows = rows
        if where:
            wanted = {column: {w} if isinstance(w, str) else set(w) for column, w in where.items()}
            for column in wanted:
                if rows and not any(column in self.columns(i) for i in range(len(rows))):
                    self.value(0, column)
            kept = [i for i in range(len(rows)) if all(self.given(i, c) in values for c, values in wanted.items())]
            self.rows = [rows[i] for i in kept]

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self, index: int) -> Mapping[str, Any]:
        """Return a row's columns, with the parts of its whole text among them.

        Raises:
            DataError: The text is missing or does not fit the template.
        """
        row = self.rows[index]
        if self._text_column is None:
            return row.columns
        text = cell_text(row.origin, row.columns, self._text_column)
        if text is None:
            raise self._missing(index, self._text_column)
        try:
            return {**row.columns, **self._format.parse(text)}
        except DataError as error:
            raise DataError(f"{row.origin}: {error}") from None

    def given(self, index: int, column: str) -> str | None:
        """Return a value as text; None where it is missing or the row lacks the column."""
        columns = self.columns(index)
        return cell_text(self.rows[index].origin, columns, column) if column in columns else None

    def value(self, index: int, column: str) -> str:
        """Return a value as text.

        Raises:
            DataError: It is missing, or no text.
        """
        columns = self.columns(index)
        value = cell_text(self.rows[index].origin, columns, column)
        if value is None:
            raise self._missing(index, column)
        return value

    def _missing(self, index: int, column: str) -> DataError:
        """Say that a value is missing, and where else in the file."""
        error = missing_value(self.rows[index].origin, self.rows[index].columns, column)
        places = [row.origin for row in self.rows if is_missing(row.columns.get(column))]
        if len(places) < 2:
            return error
        shown = ", ".join(places[1:4]) + (" ..." if len(places) > 4 else "")
        return DataError(f"{error}; so do {len(places) - 1:,} more of {len(self.rows):,} rows: {shown}")
