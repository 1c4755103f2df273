"""Rows and task form of the single steps, as options and Python calls name them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from outlay.errors import UsageError
from outlay.storage.paths import expand_path

_EVERY_STEP = ("task", "folder", "source_column", "target_column", "delimiter")
"""Fields of `Data` that every step takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Rows and the form of their task: from a task, from files, or both.

    A step refuses what it does not take: only training takes dev rows, only `teach`, `predict` and `evaluate` a split.

    Attributes:
        task: a shipped task, or the path of a ``task.yaml``.
        folder: of data sets; ``None`` = ``OUTLAY_DATA``.
        file: rows to train on, to answer or to score, in place of the task's.
        split: of the task: ``train``, ``dev``, ``test`` or ``pool``.
        max_rows: the first so many rows.
        dev_file: rows to choose the best model by; ``None`` = the dev split of the task.
        max_dev_rows: the first so many dev rows.
        max_train_rows: in `teach`, train rows whose labels the pool may carry.
        source_column: of the text.
        target_column: of the answer; ``None`` = ``target``, where it is there.
        prediction_column: of the prediction, where a file of predictions is scored.
        delimiter: between columns; ``None`` = as in the first line.
        kind: ``classification``, ``entities`` or ``generation``; ``None`` = the task's or the model's.
        labels: classes or entity types.
        prefix: put before each text for models that write their answer.
        max_source_tokens: longer texts are cut and counted.
        max_target_tokens: longest answer.
    """

    task: str | Path | None = None
    folder: str | Path | None = None
    file: str | Path | None = None
    split: str | None = None
    max_rows: int | None = None
    dev_file: str | Path | None = None
    max_dev_rows: int | None = None
    max_train_rows: int | None = None
    source_column: str = "source"
    target_column: str | None = None
    prediction_column: str | None = None
    delimiter: str | None = None
    kind: str | None = None
    labels: Sequence[str] = ()
    prefix: str | None = None
    max_source_tokens: int | None = None
    max_target_tokens: int | None = None

    def checked(self, step: str, taken: Collection[str]) -> Data:
        """Return these data with ``~`` in paths expanded; ``taken``: fields that the step takes beside those of every step.

        Raises:
            UsageError: a field is given that the step does not take.
        """
        for each in fields(self):
            if each.name not in (*_EVERY_STEP, *taken) and getattr(self, each.name) != each.default:
                raise UsageError(f"{step} takes no {each.name}; leave it out of its Data")

        def expanded(path: str | Path | None) -> Path | None:
            return None if path is None else expand_path(path)

        return replace(self, folder=expanded(self.folder), file=expanded(self.file), dev_file=expanded(self.dev_file))
