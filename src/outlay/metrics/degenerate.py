"""Degenerate results: one answer to everything, no better than the majority label, a handful of rows.

Each check is a line for a person. What is compared with is the *floor*: the score of the best answer that reads no text, the
commonest gold label for every row, known as the majority baseline. For two classes of 30 and 70 rows
it is 70 % accuracy, which a table that prints 71.4 does not say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outlay.metrics import Answered
from outlay.text.entities import parse_entities
from outlay.text.legible import quoted

HANDFUL = 30
"""Rows below which a count stands beside a score. The 95 % interval of an accuracy over 30 rows is up to 34 points wide."""
N_SHOWN = 40
"""Characters of an answer that a line shows."""
_CLASSES = ("accuracy", "f1")


@dataclass(frozen=True, slots=True)
class Floor:
    """Score, 0-100, of giving the one answer ``answer`` to every row."""

    value: float
    answer: str


def floor_of(metric: str, golds: Sequence[str], labels: Sequence[str]) -> Floor | None:
    """Score the commonest gold label as the answer to every row; None for tasks without classes, and without rows."""
    if metric not in _CLASSES or not golds:
        return None
    # The first of the label set where several are as common, so that the same rows always give the same line.
    counts = Counter(golds)
    answer = max([*labels, *golds], key=counts.__getitem__)
    # For both metrics: micro F1 of one answer a row is accuracy.
    return Floor(100 * counts[answer] / len(golds), answer)


def test_remarks(metric: str, answered: Answered, value: float) -> list[str]:
    """Return remarks on the answers to a test split, a line each.

    Args:
        metric: one of `outlay.metrics.METRICS`.
        answered: the answers with their golds.
        value: the main score, 0-100.
    """
    n = len(answered.golds)
    if metric in _CLASSES:
        found = _of_classes(metric, answered, value)
    elif metric == "entity_f1":
        found = _of_entities(answered)
    else:
        found = _of_texts(metric, answered)
    return found + ([f"the test score rests on {_rows(n)}"] if n < HANDFUL else [])


def dev_remarks(n_rows: int, scores: Mapping[str, float | None], floor: Floor | None) -> list[str]:
    """Return remarks on dev scores: those of few rows, and those no better than guessing.

    Args:
        n_rows: of the dev set that all of them share.
        scores: main score by whose it is ("the teacher"), 0-100; None where nothing was scored.
        floor: of the dev set, None where it has none.
    """
    known = {who: value for who, value in scores.items() if value is not None}
    if not known or n_rows < 1:
        return []
    found = [f"dev scores rest on {_rows(n_rows)}"] if n_rows < HANDFUL else []
    return found + [
        f"{who} is no better on dev than always answering {quoted(floor.answer, N_SHOWN)}: {value:.1f}, {floor.value:.1f}"
        for who, value in known.items()
        if floor is not None and _is_at_most(value, floor.value)
    ]


def of_rows(n_rows: int | None) -> str:
    """Return `` (of 12)`` to stand behind a score of a handful of rows; nothing where there are more."""
    return f" (of {n_rows})" if n_rows is not None and 0 < n_rows < HANDFUL else ""


def _of_classes(metric: str, answered: Answered, value: float) -> list[str]:
    found = _sameness(answered)
    if len(set(_folded(answered.golds))) == 1 and len(answered.golds) > 1:
        label = quoted(answered.golds[0], N_SHOWN)
        found.append(
            f"all {_rows(len(answered.golds))} of the test split have the label {label}: nothing is told apart"
        )
    floor = floor_of(metric, answered.golds, answered.labels)
    if floor is not None and _is_at_most(value, floor.value):
        found.append(
            f"the test score {value:.1f} is no better than always answering {quoted(floor.answer, N_SHOWN)}: {floor.value:.1f}"
        )
    return found


def _of_entities(answered: Answered) -> list[str]:
    counts = [len(parse_entities(line, answered.labels)) for line in answered.predictions]
    wanted = sum(len(parse_entities(line, answered.labels)) for line in answered.golds)
    if not wanted:
        return [f"no row of the test split has an entity, in {_rows(len(counts))}"]
    return [] if any(counts) else [f"the student finds no entity in {_rows(len(counts))}; there are {wanted:,}"]


def _of_texts(metric: str, answered: Answered) -> list[str]:
    n = len(answered.predictions)
    found = _sameness(answered)
    n_empty = sum(not text for text in _folded(answered.predictions))
    # One empty answer of many is no news, and an empty answer to every row is reported already.
    if 2 * n_empty >= n and not found:
        found.append(f"the student gives no answer at all to {n_empty:,} of {_rows(n)}")
    if metric == "bert_ibleu" and answered.sources:
        pairs = zip(_folded(answered.predictions), _folded(answered.sources), strict=True)
        n_copies = sum(answer == source for answer, source in pairs)
        if 2 * n_copies >= n:
            found.append(f"the student copies its source in {n_copies:,} of {_rows(n)}")
    return found


def _sameness(answered: Answered) -> list[str]:
    """Return whether all rows got one answer, where not all should."""
    answers = set(_folded(answered.predictions))
    if len(answers) != 1 or len(set(_folded(answered.golds))) < 2:
        return []
    answer = quoted(answered.predictions[0], N_SHOWN)
    return [f"the student gives one and the same answer, {answer}, to all {_rows(len(answered.predictions))}"]


def _is_at_most(value: float, floor: float) -> bool:
    return value <= floor + 1e-9  # both are ratios of small counts


def _folded(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def _rows(n: int) -> str:
    return f"{n:,} row" if n == 1 else f"{n:,} rows"
