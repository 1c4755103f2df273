"""A model that `outlay` trained, as its folder describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import DataError, UnknownModel, UsageError
from outlay.hardware.precision import AUTO, resolve
from outlay.models.reference import HEAD_FILE
from outlay.models.shape import read_config
from outlay.models.window import window_in
from outlay.settings import METHOD_SETTINGS
from outlay.spec import Family, TaskSpec
from outlay.standalone.inputs import TaskRow, sources_of
from outlay.standalone.output_dir import read_object
from outlay.tasks.row_form import RowForm

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Model that `outlay` trained: folder, family and form of the task.

    ``lowered``: a line for each limit of the form that the model cannot keep; ``form``: already lowered to the model's limits;
    ``method``: by which its own head was trained, ``None`` where the checkpoint's class layer or vocabulary answers.
    ``temperature``: of a classifier's probabilities, 1 where it had no dev set; ``None`` for a model without probabilities.
    ``rows``: form of the rows that a handed-over model reads; ``None`` for the model of a single step.
    """

    folder: Path
    family: Family
    form: TaskSpec
    lowered: tuple[str, ...] = ()
    method: str | None = None
    temperature: float | None = None
    rows: RowForm | None = None

    @classmethod
    def open(cls, folder: Path) -> TrainedModel:
        """Read the description beside the weights.

        Raises:
            UnknownModel: no such folder, or no model of ours in it.
        """
        try:
            document = read_object(folder / HEAD_FILE)
            family, form = document["family"], TaskSpec.from_json(document["form"])
            method = document["head"]["method"] if "head" in document else None
            temperature = float(document.get("temperature", 1.0)) if document.get("target") == "classes" else None
            rows = RowForm.from_json(document["rows"]) if "rows" in document else None
        except (OSError, ValueError, KeyError, TypeError):
            raise UnknownModel(
                f"{folder} holds no model that `outlay` trained ({HEAD_FILE} is missing); make one with `outlay run` or "
                "`outlay finetune`"
            ) from None
        found = cls(folder, family, form, method=method, temperature=temperature, rows=rows)
        if not found.has_encoder:
            return found
        window = window_in(read_config(folder), family)
        return replace(found, form=window.fit(form, str(folder)), lowered=tuple(window.lines(form, str(folder))))

    @property
    def has_encoder(self) -> bool:
        """Return whether a checkpoint reads the texts: a classifier of words has none."""
        return self.method is None or METHOD_SETTINGS[self.method].reads_vectors

    def sources(self, rows: Sequence[TaskRow]) -> list[tuple[str, ...]]:
        """Return the inputs of rows for this model, one or two segments each."""
        return sources_of(rows, self.family, self.form.kind)

    def predict(self, rows: Sequence[str | Mapping[str, str]], *, precision: str = AUTO) -> list[str]:
        """Return the answer to each row: a whole text, or the fields of the task by name. One without text has none, "".

        Raises:
            DataError: a row lacks a field.
        """
        return self._ask(rows, precision)[0]

    def predict_proba(self, rows: Sequence[str | Mapping[str, str]], *, precision: str = AUTO) -> NDArray[Any]:
        """Return a classifier's probabilities, float64 ``[rows, labels]`` in the order of ``form.labels``; NaN without text.

        Raises:
            UsageError: the model is no classifier.
            DataError: a row lacks a field.
        """
        if self.temperature is None:
            raise UsageError(f"{self.folder} has no probabilities of labels, since it is no classifier; use predict")
        import numpy as np

        asked, found = np.full((len(rows), len(self.form.labels)), np.nan), self._ask(rows, precision)
        if found[1] is not None:
            asked[[place for place, row in enumerate(found[2]) if row.text]] = found[1]
        return asked

    def _ask(
        self, rows: Sequence[str | Mapping[str, str]], precision: str
    ) -> tuple[list[str], NDArray[Any] | None, list[TaskRow]]:
        """Return the answers, the probabilities of rows with text, and the rows as the model reads them."""
        from outlay.train import api as train_api
        from outlay.train.progress import TokenCounter

        read = [self._read(row, number) for number, row in enumerate(rows, start=1)]
        asked = [row for row in read if row.text]
        if not asked:
            return [""] * len(read), None, read
        sources = self.sources(asked)
        predicted = train_api.predict(self.folder, sources, precision=resolve(precision), meter=TokenCounter())
        answers = iter(predicted.answers)
        return [next(answers) if row.text else "" for row in read], predicted.probabilities, read

    def _read(self, row: str | Mapping[str, str], number: int) -> TaskRow:
        origin = f"row {number}"
        if isinstance(row, str):
            return TaskRow(row if row.strip() else "", self._segments(row), None, origin)
        columns = None if self.rows is None else self.rows.columns_in(row)
        if self.rows is None or columns is None:
            needed = "one text" if self.rows is None else ", ".join(self.rows.columns)
            raise DataError(f"{origin} has the fields {', '.join(row)}; the model reads {needed}")
        values = {field: row[column] or "" for field, column in columns.items()}
        text, segments = self.rows.read(values)
        return TaskRow(text if any(value.strip() for value in values.values()) else "", segments, None, origin)

    def _segments(self, text: str) -> tuple[str, ...]:
        if self.rows is None:
            return (text,)
        try:
            return self.rows.parse(text)
        except DataError:
            return (text,)
