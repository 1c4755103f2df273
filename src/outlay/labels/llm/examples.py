"""Choice of the labelled rows that a prompt shows: none, a fixed set, a draw per row, the nearest ones.

Every choice is a function from a row to its examples, and depends on seeds and ids alone, never on the order in which rows are
asked. A row is never an example of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from outlay.errors import SellerError
from outlay.labels.llm.prompts import Shot
from outlay.tasks.example import Example, seeded_order

Choose = Callable[[Example], tuple[Shot, ...]]
"""Examples for a row, in the order in which the prompt shows them."""

SHUFFLED_SHOWN, SHUFFLED_OF = 32, 100
"""Examples of Kang et al. 2023: 32 in a prompt, drawn anew for each row from 100 that stay the same."""


def no_examples(example: Example) -> tuple[Shot, ...]:  # noqa: ARG001
    """Choose no examples."""
    return ()


def fixed_examples(shots: Sequence[Shot], n: int, seed: int) -> Choose:
    """Choose the same ``n`` for every row: prompts have one beginning, which providers keep in their cache.

    Raises:
        SellerError: There are fewer than ``n``.
    """
    drawn = _drawn(shots, n + 1, seed, at_least=n)

    def choose(example: Example) -> tuple[Shot, ...]:
        return tuple(shot for shot in drawn if shot.row != example.id)[:n]

    return choose


def shuffled_examples(shots: Sequence[Shot], seed: int, n: int = SHUFFLED_SHOWN, of: int = SHUFFLED_OF) -> Choose:
    """Choose ``n`` of a fixed set of ``of`` for each row, which ones and in which order drawn by seed and row id.

    As in Kang et al. 2023; no two prompts begin alike, so that nothing is read from a provider's cache.

    Raises:
        SellerError: There are fewer than ``of``, or ``of`` is less than ``n``.
    """
    if of < n:
        raise SellerError(f"{n} examples are to be shown of {of}; show {of} or fewer")
    drawn = _drawn(shots, of, seed, at_least=of)
    ids = [shot.row for shot in drawn]

    def choose(example: Example) -> tuple[Shot, ...]:
        order = [drawn[i] for i in seeded_order([f"{example.id}:{row}" for row in ids], seed)]
        return tuple(shot for shot in order if shot.row != example.id)[:n]

    return choose


def nearest_examples(shots: Sequence[Shot], n: int) -> Choose:
    """Choose the ``n`` whose words are most like the row's by TF-IDF cosine, the most similar one last, next to the row.

    Rows with the same fields are left out: they would give the answer away. Equally similar ones stand in an order of their ids.

    Raises:
        SellerError: There are fewer than ``n``.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = _drawn(shots, len(shots), seed=0, at_least=n)
    # The word "example" beside the rows: a vocabulary without any word is refused.
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    matrix = vectorizer.fit_transform([*map(_words, (shot.fields for shot in known)), "example"])[:-1]

    def choose(example: Example) -> tuple[Shot, ...]:
        cosine = (matrix @ vectorizer.transform([_words(example.fields)]).T).toarray().ravel()
        order = sorted(range(len(known)), key=lambda i: (-cosine[i], i))
        others = (known[i] for i in order if known[i].row != example.id and known[i].fields != example.fields)
        return tuple(shot for shot, _ in zip(others, range(n), strict=False))[::-1]

    return choose


def _words(fields: Sequence[tuple[str, str]]) -> str:
    return "\n".join(value for _, value in fields)


def _drawn(shots: Sequence[Shot], n: int, seed: int, at_least: int) -> list[Shot]:
    """Return the first ``n`` of the seed's order of the examples."""
    if at_least < 0 or len(shots) < at_least:
        raise SellerError(f"{at_least} examples are to be shown and {len(shots)} are labelled; buy more, or show fewer")
    return [shots[i] for i in seeded_order([shot.row for shot in shots], seed)[:n]]
