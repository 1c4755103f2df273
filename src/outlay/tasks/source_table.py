"""The rows of one source of a task, as columns of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay.errors import DataError
from outlay.tasks.example import TextFormat
from outlay.tasks.readers import SourceRow


class SourceTable:
    """The rows of a source that ``where`` keeps; a row's whole text is taken apart when its columns are asked for."""

    def __init__(
        self,
        rows: list[SourceRow],
        whole: tuple[str, TextFormat] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep rows; ``whole``: the column of their whole text, and the format that takes it apart."""
        self._whole = whole
        self.rows = rows
        if where:
            wanted = {column: {w} if isinstance(w, str) else set(w) for column, w in where.items()}
            for column in wanted:
                if rows and not any(column in self.row(i).columns for i in range(len(rows))):
                    self.value(0, column)  # refuses the column
            kept = [
                i for i in range(len(rows)) if all(self.value_or_none(i, c) in values for c, values in wanted.items())
            ]
            self.rows = [rows[i] for i in kept]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> SourceRow:
        """Return a row with the parts of its whole text among its columns.

        Raises:
            DataError: The text is missing or does not fit the template.
        """
        row = self.rows[index]
        if self._whole is None:
            return row
        column, text_format = self._whole
        text = self._text(row, column)
        try:
            return SourceRow(row.origin, {**row.columns, **text_format.parse(text)})
        except DataError as error:
            raise DataError(f"{row.origin}: {error}") from None

    def value_or_none(self, index: int, column: str) -> str | None:
        """Return a value as text; None where it is missing or the row lacks the column."""
        row = self.row(index)
        return row.text(column) if column in row.columns else None

    def value(self, index: int, column: str) -> str:
        """Return a value as text.

        Raises:
            DataError: It is missing, or no text.
        """
        return self._text(self.row(index), column)

    def _text(self, row: SourceRow, column: str) -> str:
        text = row.text(column)
        if text is None:
            raise self._missing(row, column)
        return text

    def _missing(self, row: SourceRow, column: str) -> DataError:
        """Say that a value is missing, and where else in the file."""
        error = row.missing(column)
        places = [each.origin for each in self.rows if each.lacks(column)]
        if len(places) < 2:
            return error
        shown = ", ".join(places[1:4]) + (" ..." if len(places) > 4 else "")
        return DataError(f"{error}; so do {len(places) - 1:,} more of {len(self.rows):,} rows: {shown}")
