"""Answers of one system to a split, and the two readings of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from outlay.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Rule = Literal["published", "strict"]

NO_PREDICTION = "no prediction"
"""Text that replaces an empty answer in the published reading of a generated text."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers of one model (one seed) to the examples of a split, all sequences of the same length.

    Attributes:
        predictions: One answer per example.
        golds: One gold answer per example.
        labels: The label set; empty where answers are free text.
        sources: The text each answer was given to; needed by ``bert_ibleu`` only.
        similarities: BERTScore F1 of each prediction and its source, 0 to 1, of predictions passed through `missing_text`;
            needed by ``bert_ibleu`` only.
    """

    predictions: Sequence[str]
    golds: Sequence[str]
    labels: Sequence[str] = ()
    sources: Sequence[str] = ()
    similarities: Sequence[float] = ()

    def check(self) -> None:
        """Refuse what cannot be scored.

        Raises:
            DataError: There is no example, or predictions and golds differ in number.
        """
        if not self.golds or not self.predictions:
            raise DataError("there is nothing to score; give at least one prediction and its gold answer")
        if len(self.predictions) != len(self.golds):
            raise DataError(
                f"{len(self.predictions)} predictions meet {len(self.golds)} gold answers; give one prediction per gold answer"
            )


def missing_text(predictions: Sequence[str]) -> list[str]:
    """Strip predictions and write `NO_PREDICTION` for empty ones, as the published script does before BERTScore and BLEU."""
    return [prediction.strip() or NO_PREDICTION for prediction in predictions]
