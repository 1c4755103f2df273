"""Folds of rows, stratified by class, with the rows of a group in one fold: what seeds keep for dev, and what is set aside."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from outlay.errors import UsageError
from outlay.tasks.leaks import source_key
from outlay.tasks.splits import TaskData
from outlay.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Folds:
    """Ids of the owned rows of each fold: a pure function of the rows, whatever their order in the files and the seed."""

    rows: tuple[frozenset[str], ...]

    @classmethod
    def of(cls, task: Task, data: TaskData) -> Folds:
        """Share out the rows with owned labels; rows of one group, or with the same text, are in one fold.

        Raises:
            UsageError: fewer rows with owned labels, or groups of them, than folds.
        """
        owned = sorted((row for row in data.train if row.id in data.owned), key=lambda row: row.id)
        if not owned:
            raise UsageError(
                f"dev 'folds' shares out labels that are owned, and task {task.name} has none; say `owned: true` of its train "
                "rows, or choose carved"
            )
        n = task.n_folds
        keys = [row.group or source_key(task, row) for row in owned]
        if len(set(keys)) < n:
            raise UsageError(
                f"task {task.name} has {len(owned):,} owned labels in {len(set(keys)):,} groups, fewer than its {n} folds; "
                "lower `folds`, or choose carved"
            )
        first: dict[object, int] = {}
        groups = [first.setdefault(key, i) for i, key in enumerate(keys)]
        numbers = fold_numbers([row.label or "" for row in owned], groups, n)
        return cls(
            tuple(frozenset(row.id for row, fold in zip(owned, numbers, strict=True) if fold == k) for k in range(n))
        )

    def of_seed(self, seed: int) -> frozenset[str]:
        """Return the fold that a seed keeps for dev."""
        return self.rows[seed % len(self.rows)]

    def n_dev(self, seed: int, n_labels: int) -> int:
        """Return how many of ``n_labels`` labels are for dev: the fold of the seed, or a fold's share where fewer are used.

        At least one label is left on each side; a single label is never set aside.
        """
        share = -(-n_labels // len(self.rows))
        return 0 if n_labels < 2 else min(len(self.of_seed(seed)), share, n_labels - 1)


def fold_numbers(labels: Sequence[str], groups: Sequence[int], n: int, *, seed: int | None = None) -> list[int]:
    """Return the fold, 0 to n - 1, of each row: classes are spread evenly, rows of a group are in one fold.

    ``seed``: of the order in which groups are dealt out, ``None`` = the order of the rows.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    counts = Counter(labels)
    # Answers that are all different are no classes to spread, nor are classes that all have fewer rows than there are folds.
    is_spread = max(counts.values()) >= n
    classes = [label if is_spread and counts[label] > 1 else "" for label in labels]
    dealer = StratifiedGroupKFold(n, shuffle=seed is not None, random_state=seed)
    numbers = [0] * len(labels)
    with warnings.catch_warnings():
        # Classes with fewer rows than folds are spread as far as they go.
        warnings.simplefilter("ignore")
        for number, (_, fold) in enumerate(dealer.split(labels, classes, groups)):
            for row in fold:
                numbers[row] = number
    return numbers
