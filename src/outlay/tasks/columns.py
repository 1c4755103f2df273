"""Which columns of a table are text, label and identity: guesses for `outlay init`, each with its reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outlay.errors import DataError
from outlay.spec import without_fraction
from outlay.tasks.readers import SourceRow
from outlay.text.legible import named

LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "intent",
    "topic",
    "sentiment",
    "stance",
    "tag",
    "y",
    "gold",
)
TEXT_NAMES = (
    "text",
    "sentence",
    "message",
    "content",
    "body",
    "question",
    "review",
    "tweet",
    "document",
    "comment",
    "query",
)
PAIRS = (
    *(("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2"), ("premise", "hypothesis")),
    *(
        ("claim", "tweet"),
        ("claim", "evidence"),
        ("question", "sentence"),
        ("question", "answer"),
        ("text_a", "text_b"),
    ),
)
"""Names of columns that are two texts of a row."""
MOST_LABELS = 150
"""Most different values of a column that is taken for classes."""
_LEAST_TEXT = 15
"""Least mean length, in characters, of a column that is taken for text without the name of one."""
_ENTITY = re.compile(r"\[[^\[\]]+\](?:\s|$)")


@dataclass(frozen=True, slots=True)
class ColumnGuess:
    """The columns of a table: one or two texts, the label (``None`` = no row has one); ``why``: a sentence for each."""

    texts: tuple[str, ...]
    label: str | None
    why: tuple[str, ...]


def cell_text(row: SourceRow, column: str) -> str:
    """Return a value as text, "" where it is missing or no text; a whole number has no fraction of zeros."""
    value = row.columns.get(column)
    return without_fraction(row.text(column) or "") if isinstance(value, str | int | float) else ""


def guess_columns(
    rows: Sequence[SourceRow], texts: Sequence[str] = (), label: str | None = None, *, has_labels: bool = True
) -> ColumnGuess:
    """Return the columns of text and label; ``texts``, ``label``: those that the user names.

    ``has_labels``: False where no column is one of labels.

    Raises:
        DataError: a column that is named is not there, or none can be told from the others; one line with the option to give.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    for name in (*texts, *([] if label is None else [label])):
        if name not in names:
            raise DataError(f"there is no column {name!r}; the columns are {named(names)}")
    cells = {name: [cell_text(row, name) for row in rows] for name in names}
    why: list[str] = []
    found_label = label if label is not None or not has_labels else _label_column(cells, texts, why)
    others = [name for name in names if name != found_label]
    found_texts = tuple(texts) if texts else _text_columns({name: cells[name] for name in others}, why)
    return ColumnGuess(found_texts, found_label, tuple(why))


def _label_column(cells: Mapping[str, Sequence[str]], texts: Sequence[str], why: list[str]) -> str | None:
    by_name = [name for name in cells if name.lower() in LABEL_NAMES and name not in texts]
    if len(by_name) == 1:
        why.append(f"labels are in column {by_name[0]!r}, by its name; --label says it otherwise")
        return by_name[0]
    if by_name:
        raise DataError(f"columns {named(by_name)} may all be labels; name one with --label")
    few = [name for name in cells if name not in texts and _is_label_like(cells[name])]
    if len(few) > 1:
        raise DataError(f"columns {named(few)} have few different values and may all be labels; name one with --label")
    if not few:
        return None
    n = len(set(filter(None, cells[few[0]])))
    why.append(f"labels are in column {few[0]!r}, which has {n} different values; --label says it otherwise")
    return few[0]


def _is_label_like(values: Sequence[str]) -> bool:
    """Return whether values repeat as classes do: few, short, and each several times on average."""
    counts = Counter(filter(None, values))
    total = counts.total()
    return 2 <= len(counts) <= min(MOST_LABELS, total // 3) and sum(map(len, counts)) / len(counts) <= 40


def _text_columns(cells: Mapping[str, Sequence[str]], why: list[str]) -> tuple[str, ...]:
    lower = {name.lower(): name for name in cells}
    for pair in PAIRS:
        if all(name in lower for name in pair):
            found = tuple(lower[name] for name in pair)
            why.append(f"a row is the two texts {named(found)}, by their names; --text says it otherwise")
            return found
    by_name = [lower[name] for name in TEXT_NAMES if name in lower]
    if len(by_name) == 1:
        why.append(f"the text is in column {by_name[0]!r}, by its name; --text says it otherwise")
        return (by_name[0],)
    long = [name for name in cells if _mean_length(cells[name]) >= _LEAST_TEXT and not _is_label_like(cells[name])]
    if len(long) == 1 or (not long and len(cells) == 1):
        only = long[0] if long else next(iter(cells))
        why.append(f"the text is in column {only!r}, the only one of texts; --text says it otherwise")
        return (only,)
    if len(long) == 2:
        why.append(f"a row is the two texts {named(long)}, the two columns of texts; --text says it otherwise")
        return tuple(long)
    asked = f"columns {named(long)} may all be text" if long else f"none of the columns {named(cells)} looks like text"
    raise DataError(f"{asked}; name one with --text, or two with --text twice")


def _mean_length(values: Sequence[str]) -> float:
    there = [len(value) for value in values if value]
    return sum(there) / len(there) if there else 0.0


def is_entity_line(value: str) -> bool:
    """Return whether an answer is written as entities are: ``text [Type] text [Type]``."""
    return bool(_ENTITY.search(value))


def entity_types(values: Sequence[str]) -> tuple[str, ...]:
    """Return the types that lines of entities name, the commonest first."""
    counts = Counter(found for value in values for found in re.findall(r"\[([^\[\]]+)\]", value))
    return tuple(name for name, _ in counts.most_common())
