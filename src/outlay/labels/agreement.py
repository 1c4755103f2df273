"""Majority of the answers to one row, and how far annotators agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from outlay.labels.annotator import Answer


def majority(labels: Sequence[str]) -> str | None:
    """Return the label that was given most often; ``None`` where two were given as often, or there is none."""
    first = Counter(labels).most_common(2)
    if not first or (len(first) == 2 and first[0][1] == first[1][1]):
        return None
    return first[0][0]


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa of two annotators, from the labels of each row (Cohen 1960).

    It is (p - e) / (1 - e), with p the share of rows on which they agree, and e the share expected of two who know only how often
    each of them gives each label. ``None`` where e is 1, since both gave every row one label, and for no rows.
    """
    n = len(pairs)
    of_one, of_other = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    # Whole numbers until the last division: e is exactly 1 where there is one label.
    n_agreed = sum(one == other for one, other in pairs)
    by_chance = sum(count * of_other[label] for label, count in of_one.items())
    return (n_agreed * n - by_chance) / (n * n - by_chance) if n * n > by_chance else None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of the annotators on the rows that several of them labelled.

    ``n_agreed``: rows on which all say the same; ``kappas``: Cohen's kappa by pair of annotators with rows in common, ``None``
    where it has no value.
    """

    n_rows: int
    n_agreed: int
    kappas: tuple[tuple[tuple[str, str], float | None], ...]

    @property
    def share(self) -> float:
        """Share of rows on which all say the same, 0 to 1."""
        return self.n_agreed / self.n_rows

    @property
    def kappa(self) -> float | None:
        """Mean of the kappas that have a value."""
        known = [kappa for _, kappa in self.kappas if kappa is not None]
        return sum(known) / len(known) if known else None

    def line(self) -> str:
        """Return one line: ``the annotators agree on 160 of 200 items (80.0 %), Cohen's kappa 0.600``."""
        name = "Cohen's kappa" if len(self.kappas) == 1 else f"mean of Cohen's kappa over {len(self.kappas)} pairs"
        kappa = f"{self.kappa:.3f}" if self.kappa is not None else "without a value, since all answers are one label"
        share = f"{self.n_agreed:,} of {self.n_rows:,} items ({100 * self.share:.1f} %)"
        return f"the annotators agree on {share}, {name} {kappa}"


def agreement(answers: Iterable[Answer], n_first: int) -> Agreement | None:
    """Compare the first ``n_first`` answers of each row, in the order given; ``None`` where no row has two with a label.

    The answer that settles a tie is left out by ``n_first``: its annotator saw the disputed rows alone.
    """
    by_row: dict[str, list[Answer]] = {}
    for answer in answers:
        given = by_row.setdefault(answer.row, [])
        if len(given) < n_first:
            given.append(answer)
    labelled = [[(each.by, each.label) for each in given if each.label is not None] for given in by_row.values()]
    several = [dict(sorted(given)) for given in labelled if len(given) > 1]
    if not several:
        return None
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for said in several:
        for one, other in combinations(said, 2):
            pairs.setdefault((one, other), []).append((said[one], said[other]))
    kappas = tuple((names, cohen_kappa(pairs[names])) for names in sorted(pairs))
    return Agreement(len(several), sum(len(set(said.values())) == 1 for said in several), kappas)
