"""A task's rows in the order of one seed, and the digests that the keys of steps are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from outlay.storage.store import key_of
from outlay.tasks.example import Example, seeded_order


@dataclass(frozen=True)
class SeededOrder:
    """Train, dev and pool in their seeded orders; the test split as it lies, in an order of its own where its labels are bought.
    Shared by runs, so never changed."""

    train: list[Example]
    dev: list[Example]
    pool: list[Example]
    test: list[Example]
    n_owned: int = 0
    """Train rows whose labels are owned: the first ones, in the seed's order among themselves."""
    buys_test: bool = False
    """Test labels are bought: fewer rows are then the first ones of more."""
    _slices: dict[tuple[int, int], str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        data: TaskData,
        seed: int,
        fold: frozenset[str] = frozenset(),
        *,
        dev_seed: int | None = None,
        buys_test: bool = False,
    ) -> SeededOrder:
        """Return the rows of ``data`` in the order of ``seed``.

        ``fold``: ids of the owned rows that come before the others; ``dev_seed``: of the order of dev rows, ``None`` = ``seed``;
        ``buys_test``: the labels of the test split are bought.
        """
        pool = _ordered([example for part in data.pool for example in part.examples], seed)
        owned = [row for row in data.train if row.id in data.owned]
        others = [row for row in data.train if row.id not in data.owned] if owned else data.train
        kept, rest = [row for row in owned if row.id in fold], [row for row in owned if row.id not in fold]
        train = [*_ordered(kept, seed), *_ordered(rest, seed), *_ordered(others, seed)]
        dev = _ordered(data.dev, seed if dev_seed is None else dev_seed)
        test = _ordered(data.test, 0) if buys_test else data.test
        return cls(train, dev, pool, test, len(owned), buys_test)

    @cached_property
    def train_digest(self) -> str:
        """Digest of all train rows."""
        return _rows_digest(self.train)

    @cached_property
    def dev_digest(self) -> str:
        """Digest of all dev rows."""
        return _rows_digest(self.dev)

    def first_test(self, n: int | None) -> list[Example]:
        """Return the test rows, or ``n`` of them at most: the same ones for every seed."""
        if n is None or n >= len(self.test):
            return self.test
        return (self.test if self.buys_test else _ordered(self.test, 0))[:n]

    def test_digest(self, n: int | None = None) -> str:
        """Return the digest of `first_test`."""
        rows = self.first_test(n)
        groups = [row.group for row in rows]
        # Scores are told by groups too.
        return key_of([_rows_digest(rows), groups]) if any(groups) else _rows_digest(rows)

    def pool_digests(self, start: int, stop: int) -> str:
        """Return the digest of the texts of the pool's rows ``start:stop``; each is computed once."""
        if (start, stop) not in self._slices:
            self._slices[start, stop] = key_of([example.text for example in self.pool[start:stop]])
        return self._slices[start, stop]


def _ordered(examples: Sequence[Example], seed: int) -> list[Example]:
    return [examples[i] for i in seeded_order([example.id for example in examples], seed)]


def _rows_digest(rows: Sequence[Example]) -> str:
    """Return the digest of ids, texts and gold labels: replayed answers depend on them, and so does a score."""
    return key_of([[row.id, row.text, row.label] for row in rows])


@dataclass(frozen=True, slots=True)
class PoolPart:
    """One named part of the unlabelled pool."""

    name: str
    examples: list[Example]


@dataclass(frozen=True)
class TaskData:
    """The data of a task: its splits and pool.

    Attributes:
        train: Rows whose labels are for sale.
        dev: Rows to choose models on; empty for ``dev: carved``, ``dev: folds`` and ``dev: none``.
        test: Rows that are scored once, at the end.
        pool: Parts of the unlabelled pool, in the order of the task file; ids are unique over all parts.
        dropped: Split or ``pool.NAME`` → rows that ``drop_leaks`` left out; empty where none was.
        owned: Ids of the train rows whose labels are owned, and cost nothing.
        notes: What was decided about the form of files and labels and could have been otherwise, a sentence each.
    """

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    pool: list[PoolPart]
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    owned: frozenset[str] = frozenset()

    @cached_property
    def digest(self) -> str:
        """Digest of split, id, label and text of every example, and of its group where it has one."""
        digest = hashlib.sha256()
        for name, examples in self.splits():
            for example in examples:
                told = [name, example.id, example.label, example.text]
                told += [] if example.group is None else [example.group]
                digest.update(json.dumps(told).encode())
                digest.update(b"\n")
        return digest.hexdigest()

    def splits(self) -> list[tuple[str, list[Example]]]:
        """Return the splits with their examples: train, dev, test and every pool part (as ``pool.NAME``)."""
        labelled = [("train", self.train), ("dev", self.dev), ("test", self.test)]
        return labelled + [(f"pool.{part.name}", part.examples) for part in self.pool]
