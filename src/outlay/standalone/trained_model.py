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

    from outlay.train.answering import Predictions


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
        read = self._rows(rows)
        answers = iter(self._predictions(read, precision).answers)
        return [next(answers) if row.text else "" for row in read]

    def predict_proba(self, rows: Sequence[str | Mapping[str, str]], *, precision: str = AUTO) -> NDArray[Any]:
        """Return a classifier's probabilities, float64 ``[rows, labels]`` in the order of ``form.labels``; NaN without text.

        Raises:
            UsageError: the model is no classifier.
            DataError: a row lacks a field.
        """
        if self.temperature is None:
            raise UsageError(f"{self.folder} has no probabilities of labels, since it is no classifier; use predict")
        import numpy as np

        read = self._rows(rows)
        found, known = np.full((len(read), len(self.form.labels)), np.nan), self._predictions(read, precision)
        found[[bool(row.text) for row in read]] = known.probabilities
        return found

    def _predictions(self, rows: Sequence[TaskRow], precision: str) -> Predictions:
        """Return the predictions for the rows that have text."""
        from outlay.train import api as train_api
        from outlay.train.progress import TokenCounter

        sources = self.sources([row for row in rows if row.text])
        return train_api.predict(self.folder, sources, precision=resolve(precision), meter=TokenCounter())

    def _rows(self, rows: Sequence[str | Mapping[str, str]]) -> list[TaskRow]:
        return [self._row(row, f"row {number}") for number, row in enumerate(rows, start=1)]

    def _row(self, row: str | Mapping[str, str], origin: str) -> TaskRow:
        """Return a row as the model reads it; one without text has the text ""."""
        if isinstance(row, str):
            known = (row, (row,) if self.rows is None else self.rows.segments_of(row)) if row.strip() else None
        else:
            columns = None if self.rows is None else self.rows.columns_in(row)
            if self.rows is None or columns is None:
                needed = "one text" if self.rows is None else ", ".join(self.rows.columns)
                raise DataError(f"{origin} has the fields {', '.join(row)}; the model reads {needed}")
            known = self.rows.read({field: row[column] or "" for field, column in columns.items()})
        text, segments = ("", ("",)) if known is None else known
        return TaskRow(text, segments, None, origin)
