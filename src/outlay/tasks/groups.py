"""Groups of texts that stay on one side of a split: near duplicates, rows of one named group, rows that share a text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from outlay.tasks.leaks import fold

ALIKE = 0.9
"""Cosine of the 5-grams of two texts from which on they are near duplicates."""
MOST_ALIKE = 0.05
"""Share of the texts that one group of near duplicates may have."""
MOST_SHARING = 0.1
"""Share of the rows that may hang together by shared texts and still stay on one side."""
_SMALL_GROUP = 5
MOST_COMPARED = 20_000
"""Texts beyond which they are compared as they are written alone."""
_COMPARED_AT_ONCE = 512


def near_duplicate_groups(texts: Sequence[str]) -> list[int]:
    """Return the number of each text's group: texts whose 5-grams have a cosine of `ALIKE` or more are in one, and theirs too.

    Texts made by a pattern may all be near to the next one: where a group would be larger than `MOST_ALIKE` of the texts, and of
    very many texts, groups are the texts that are equal but for case and punctuation.
    """
    if 1 < len(texts) <= MOST_COMPARED:
        (vectors,) = _vectors(texts, texts)
        found = _components(len(texts), [(row, column) for row, column in _alike(vectors, vectors) if row < column])
        if max(Counter(found).values()) <= max(_SMALL_GROUP, MOST_ALIKE * len(texts)):
            return found
    first: dict[str, int] = {}
    return [first.setdefault(_letters(text), i) for i, text in enumerate(texts)]


def near_duplicates_of(known: Sequence[str], texts: Sequence[str]) -> set[int]:
    """Return the places of the texts that are near duplicates of a known one."""
    if not texts or not known:
        return set()
    return {row for row, _ in _alike(*_vectors(known, texts, known))}


def shared_text_groups(rows: Sequence[Sequence[str]]) -> tuple[list[int], int]:
    """Return the number of each row's group, and how many rows are in none.

    Rows that share a text, in whichever column, are in one group, and theirs too. Where more than `MOST_SHARING` of the rows hang
    together so, each of these stands alone.
    """
    first: dict[str, int] = {}
    pairs = [(first.setdefault(key, i), i) for i, row in enumerate(rows) for key in map(fold, row) if key]
    numbers = _components(len(rows), pairs)
    sizes = Counter(numbers)
    most = max(_SMALL_GROUP, MOST_SHARING * len(rows))
    is_alone = [sizes[number] > most for number in numbers]
    return [len(rows) + i if is_alone[i] else number for i, number in enumerate(numbers)], sum(is_alone)


def joined_groups(n: int, *groupings: Sequence[object]) -> list[int]:
    """Return the number of each of ``n`` rows' group: rows that any of the groupings has in one are in one.

    An empty text in a grouping is no group.
    """
    first: dict[object, int] = {}
    keys = [(i, (which, key)) for which, keys in enumerate(groupings) for i, key in enumerate(keys) if key != ""]
    return _components(n, [(first.setdefault(key, i), i) for i, key in keys])


def _vectors(known: Sequence[str], *others: Sequence[str]) -> list[Any]:
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    made = TfidfVectorizer(
        preprocessor=_letters, analyzer="char_wb", ngram_range=(5, 5), use_idf=False, dtype=np.float32
    )
    made.fit(known)
    return [made.transform(texts) for texts in others]


def _letters(text: str) -> str:
    """Return a text without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def _alike(vectors: Any, others: Any) -> Iterator[tuple[int, int]]:
    """Yield the rows of two matrices of unit vectors that are near duplicates."""
    for start in range(0, vectors.shape[0], _COMPARED_AT_ONCE):
        near = (vectors[start : start + _COMPARED_AT_ONCE] @ others.T).tocoo()
        is_near = near.data >= ALIKE
        yield from zip((start + near.row[is_near]).tolist(), near.col[is_near].tolist(), strict=True)


def _components(n: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Return the number of the connected component of each of ``n`` nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_array(([1] * len(pairs), (rows, columns)), shape=(n, n))
    numbers: list[int] = connected_components(graph, directed=False)[1].tolist()
    return numbers
