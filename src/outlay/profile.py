"""What `outlay task check` says about a task's data before any money is spent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outlay.data import TaskData, find_leaks, fold, source_key
from outlay.example import Example
from outlay.task import Task


@dataclass(frozen=True, slots=True)
class Lengths:
    """Median, 95th percentile (both nearest rank) and maximum of a length."""

    median: int
    p95: int
    max: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Lengths:
        """Summarise lengths; all zero when there is none."""
        if not values:
            return cls(0, 0, 0)
        ordered = sorted(values)
        rank = [-(-len(ordered) * percent // 100) - 1 for percent in (50, 95)]
        return cls(ordered[rank[0]], ordered[rank[1]], ordered[-1])

    def __str__(self) -> str:
        return f"{self.median:,}/{self.p95:,}/{self.max:,}"


@dataclass(frozen=True, slots=True)
class SplitProfile:
    """One split or pool part.

    Attributes:
        name: ``train``, ``dev``, ``test`` or ``pool.NAME``.
        n_rows: Rows.
        chars: Characters per text.
        words: White-space separated words per text.
        n_over_length: Rows with more words than ``max_source_tokens``; a word is a token at least, so these are cut.
        labels: Label → rows, in the order of the label set; empty where there are no labels.
        n_duplicates: Rows whose whole source came before in the split.
        n_conflicting: Rows whose source carries another label elsewhere in the split.
        n_leaked: Train or pool rows whose whole source is a dev or test row (0, or ``load_data`` had refused them).
        n_dropped: Leaked rows that ``drop_leaks`` left out.
        n_shared_part: Train or pool rows that share one field, such as one sentence of a pair, with a dev or test row.
    """

    name: str
    n_rows: int
    chars: Lengths
    words: Lengths
    n_over_length: int
    labels: Mapping[str, int]
    n_duplicates: int
    n_conflicting: int
    n_leaked: int
    n_dropped: int
    n_shared_part: int


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile of a task: its splits, and how many test rows are also dev rows."""

    task: str
    description: str
    text: str
    metric: str
    price_item: str
    dev: str
    max_source_tokens: int
    digest: str
    splits: tuple[SplitProfile, ...]
    n_test_in_dev: int

    def to_json(self) -> dict[str, Any]:
        """Return the profile as plain JSON values, with its warnings."""
        return {**asdict(self), "warnings": self.warnings()}

    def warnings(self) -> list[str]:
        """Return what a person should look at, one line each."""
        found = []
        for split in self.splits:
            counted = [
                ("left out, because they are also dev or test rows", split.n_dropped),
                ("sharing a part (one field) with a dev or test row", split.n_shared_part),
                ("whose source also carries another label", split.n_conflicting),
                ("repeating an earlier source", split.n_duplicates),
                (f"longer than {self.max_source_tokens} words, to be cut", split.n_over_length),
            ]
            found += [f"{split.name}: rows {what}: {n:,}" for what, n in counted if n]
            found += [f"{split.name}: no row has the label {label}" for label, n in split.labels.items() if not n]
        if self.n_test_in_dev:
            found.append(
                f"test: rows that are also dev rows, so that the choice of models sees them: {self.n_test_in_dev:,}"
            )
        return found

    def lines(self) -> list[str]:
        """Return the profile as plain text lines; lengths are median/95th percentile/maximum."""
        head = [
            f"{self.task}: {self.description}" if self.description else self.task,
            f"  text   {self.text}",
            f"  metric {self.metric} · price {self.price_item} per label · dev {self.dev} · digest {self.digest[:12]}",
        ]
        width = max(len(split.name) for split in self.splits)
        table = [f"  {'split':<{width}} {'rows':>9}  {'words':>13}  {'characters':>16}  labels"]
        for split in self.splits:
            labels = " · ".join(f"{label} {n:,}" for label, n in split.labels.items()) or "none"
            numbers = f"{split.n_rows:>9,}  {split.words!s:>13}  {split.chars!s:>16}"
            table.append(f"  {split.name:<{width}} {numbers}  {labels}")
        notes = [f"  warning: {warning}" for warning in self.warnings()] or ["  nothing to warn about"]
        return head + table + notes


def profile(task: Task, data: TaskData) -> Profile:
    """Count what a task's data holds: rows, lengths, labels, repeats, conflicts, and what both sides share."""
    leaked = {leak.split: leak.n_leaked for leak in find_leaks(task, data)}
    held = [*data.dev, *data.test]
    parts = _parts(task, held)
    splits = []
    for name, examples in data.splits():
        outside = name in ("dev", "test")
        splits.append(
            SplitProfile(
                name=name,
                n_rows=len(examples),
                chars=Lengths.of([len(example.text) for example in examples]),
                words=Lengths.of([len(example.text.split()) for example in examples]),
                n_over_length=sum(len(example.text.split()) > task.max_source_tokens for example in examples),
                labels=_label_counts(task, examples),
                n_duplicates=len(examples) - len({source_key(task, example) for example in examples}),
                n_conflicting=_n_conflicting(task, examples),
                n_leaked=leaked.get(name, 0),
                n_dropped=data.dropped.get(name, 0),
                n_shared_part=0 if outside else sum(bool(_parts(task, [e]) & parts) for e in examples),
            )
        )
    dev_keys = {source_key(task, example) for example in data.dev}
    return Profile(
        task=task.name,
        description=task.description,
        text=task.text,
        metric=task.metric,
        price_item=task.price_item,
        dev=task.dev,
        max_source_tokens=task.max_source_tokens,
        digest=data.digest,
        splits=tuple(splits),
        n_test_in_dev=sum(source_key(task, example) in dev_keys for example in data.test),
    )


def _parts(task: Task, examples: Sequence[Example]) -> set[tuple[str, str]]:
    """Return the folded fields of examples with several; which field it is matters unless the task is symmetric."""
    if len(task.format.names) < 2:
        return set()
    pairs = ((name, fold(value)) for example in examples for name, value in example.fields)
    return {("" if task.symmetric else name, value) for name, value in pairs if value}


def _label_counts(task: Task, examples: Sequence[Example]) -> dict[str, int]:
    counts = Counter(example.label for example in examples if example.label is not None)
    return {label: counts[label] for label in task.labels} if counts else {}


def _n_conflicting(task: Task, examples: Sequence[Example]) -> int:
    labels: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for example in examples:
        if example.label is not None:
            labels[source_key(task, example)].append(example.label)
    return sum(len(given) for given in labels.values() if len(set(given)) > 1)
