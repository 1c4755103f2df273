"""Statistics of a task's data that `outlay task check` prints, before any money is spent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

from outlay.tasks.example import Example
from outlay.tasks.folds import Folds
from outlay.tasks.leaks import find_leaks, fold, source_key
from outlay.tasks.splits import TaskData
from outlay.tasks.task import Task
from outlay.text.display import left, right, visible, width
from outlay.text.entities import align, parse_entities


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
class Answers:
    """The gold answers of a split, where they are lines of entities or free text.

    Attributes:
        words: White-space separated words per answer.
        n_over_length: Answers with more words than ``max_target_tokens``; these cannot be learnt whole.
        n_empty: Answers that are empty, which for entities means that there is none.
        n_copies: Free texts that repeat their own source.
        n_held_out: Train answers that are, word for word, the source of a dev or test row.
        n_entities: Entities in all answers.
        n_unaligned: Entities that are not found in their source, so that an encoder cannot learn them.
    """

    words: Lengths
    n_over_length: int = 0
    n_empty: int = 0
    n_copies: int = 0
    n_held_out: int = 0
    n_entities: int = 0
    n_unaligned: int = 0


@dataclass(frozen=True, slots=True)
class SplitProfile:
    """One split or pool part.

    Attributes:
        name: ``train``, ``dev``, ``test`` or ``pool.NAME``.
        n_rows: Rows.
        chars: Characters per text.
        words: White-space separated words per text.
        n_over_length: Rows with more words than ``max_source_tokens``; a word is a token at least, so these are cut.
        labels: Label → rows, or entity type → entities, in the order of the label set; empty where there are no labels.
        answers: What the gold answers are like; None for classes and where there are no answers.
        n_duplicates: Rows whose whole source came before in the split.
        n_conflicting: Rows whose source carries another answer elsewhere in the split.
        n_leaked: Train or pool rows whose whole source is a dev or test row (0, or ``load_data`` had refused them).
        n_dropped: Leaked rows that ``drop_leaks`` left out.
        n_shared_part: Train or pool rows that share one field, such as one sentence of a pair, with a dev or test row.
        is_labelled: False where no row has a gold label.
    """

    name: str
    n_rows: int
    chars: Lengths
    words: Lengths
    n_over_length: int
    labels: Mapping[str, int]
    answers: Answers | None
    n_duplicates: int
    n_conflicting: int
    n_leaked: int
    n_dropped: int
    n_shared_part: int
    is_labelled: bool

    def warnings(self, task: Task) -> list[str]:
        """Return warnings about this split, one line each."""
        answer = "label" if self.answers is None else "answer"
        counted = [
            ("rows left out, because they are also dev or test rows", self.n_dropped),
            ("rows sharing a part (one field) with a dev or test row", self.n_shared_part),
            (f"rows whose source also carries another {answer}", self.n_conflicting),
            ("rows repeating an earlier source", self.n_duplicates),
            (f"rows longer than {task.max_source_tokens} words, to be cut", self.n_over_length),
        ]
        absent = [label for label, n in self.labels.items() if not n]
        if self.answers is None:
            which = "the label" if len(absent) == 1 else "one of the labels"
            lacking = [f"no row has {which} {', '.join(absent)}"] if absent else []
        else:
            counted += [
                (f"answers longer than {task.max_target_tokens} words, to be cut", self.answers.n_over_length),
                ("empty answers", self.answers.n_empty),
                ("answers that repeat their source", self.answers.n_copies),
                ("answers that are the source of a dev or test row", self.answers.n_held_out),
                ("entities that are not in their source as written", self.answers.n_unaligned),
            ]
            lacking = [f"no entity has the type {', '.join(absent)}"] if absent else []
        return [f"{self.name}: {line}" for line in [*(f"{what}: {n:,}" for what, n in counted if n), *lacking]]


_MOST_SHOWN = 12
"""Most labels that a line of the table counts; of more, the first ones of the label set."""
_DESCRIBED = (
    "description",
    "instruction",
    "text",
    "kind",
    "metric",
    "price_item",
    "dev",
    "test",
    "max_source_tokens",
    "max_target_tokens",
)
"""Keys of a task that its statistics repeat."""


@dataclass(frozen=True, slots=True)
class TaskStatistics:
    """Statistics of a task: its splits, how many test rows are also dev rows, and what was decided about its files.

    ``folds``: rows of each fold of ``dev: folds``, empty for another dev.
    """

    task: Task
    digest: str
    splits: tuple[SplitProfile, ...]
    n_test_in_dev: int
    notes: tuple[str, ...]
    folds: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as plain JSON values, with their warnings."""
        return {
            "task": self.task.name,
            **{name: getattr(self.task, name) for name in _DESCRIBED},
            "digest": self.digest,
            "splits": [asdict(split) for split in self.splits],
            "n_test_in_dev": self.n_test_in_dev,
            "notes": self.notes,
            **({"folds": list(self.folds)} if self.folds else {}),
            "warnings": self.warnings(),
        }

    def warnings(self) -> list[str]:
        """Return warnings about the task's data, one line each."""
        found = [warning for split in self.splits for warning in split.warnings(self.task)]
        if self.n_test_in_dev:
            found.append(
                f"test: rows that are also dev rows, so that the choice of models sees them: {self.n_test_in_dev:,}"
            )
        return found

    def lines(self) -> list[str]:
        """Return the statistics as plain text lines; lengths are median/95th percentile/maximum."""
        task = self.task
        folds = f" ({len(self.folds)} of {min(self.folds):,} to {max(self.folds):,} rows)" if self.folds else ""
        head = [
            f"{task.name}: {task.description}" if task.description else task.name,
            f"  text   {task.text}",
            f"  kind   {task.kind} · metric {task.metric} · price {task.price_item} per label · dev {task.dev}{folds}",
            *_seller_lines(task),
            f"  limits {task.max_source_tokens} tokens a text, {task.max_target_tokens} an answer · digest {self.digest[:12]}",
        ]
        # Without a dev split there is nothing to say of it.
        splits = [split for split in self.splits if split.n_rows or split.name != "dev"]
        names = [visible(split.name) for split in splits]
        n_cells = max(map(width, ["split", *names]))
        title = "labels" if task.kind == "classification" else "answers (words)"
        table = [f"  {left('split', n_cells)} {'rows':>9}  {'words':>13}  {'characters':>16}  {title}"]
        for name, split in zip(names, splits, strict=True):
            numbers = f"{split.n_rows:>9,}  {split.words!s:>13}  {split.chars!s:>16}"
            table.append(f"  {left(name, n_cells)} {numbers}  {_answers_shown(split)}")
        said = [f"  note: {note}" for note in self.notes]
        said += [f"  warning: {warning}" for warning in self.warnings()] or ["  nothing to warn about"]
        return [visible(line) for line in head + table + self._entity_lines() + said]

    def _entity_lines(self) -> list[str]:
        """Return a table of entity types by split; empty for other kinds of tasks."""
        splits = [split for split in self.splits if split.labels]
        if self.task.kind != "entities" or not splits:
            return []
        rows = [["entities", *(split.name for split in splits)]]
        rows += [[label, *(f"{split.labels[label]:,}" for split in splits)] for label in splits[0].labels]
        rows = [list(map(visible, row)) for row in rows]
        n_cells = [max(width(row[i]) for row in rows) for i in range(len(rows[0]))]
        ends = [max(10, n + 1) for n in n_cells[1:]]
        return ["".join((f"  {left(row[0], n_cells[0])}", *map(right, row[1:], ends))) for row in rows]


def _seller_lines(task: Task) -> list[str]:
    """Return a line on the sellers that the task names, and who labels dev and test; empty where nothing is said of either."""
    kinds = {"replay": "gold labels, replayed", "files": "by files"}
    told = [f"{name} ({kinds.get(block.kind) or getattr(block, 'model', '')})" for name, block in task.sellers.items()]
    bought = [name for name, how in (("dev", task.dev), ("test", task.test)) if how == "bought"]
    if not told and task.test == "given":
        return []
    lines = [f"sold by {', '.join(told)}"] if told else []
    lines += [f"those of {' and '.join(bought)} by {task.eval_seller}"] if bought else []
    return [f"  labels {' · '.join(lines)}"]


def _answers_shown(split: SplitProfile) -> str:
    if not split.is_labelled:
        return "none" if split.name.startswith("pool.") else "to be bought"
    if split.answers is None:
        shown = list(split.labels.items())
        rest = shown[_MOST_SHOWN - 1 :] if len(shown) > _MOST_SHOWN else []
        words = [f"{label} {n:,}" for label, n in shown[: len(shown) - len(rest)]]
        words += [f"{len(rest):,} others {sum(n for _, n in rest):,}"] if rest else []
        return " · ".join(words) or "none"
    n_entities = f" · {split.answers.n_entities:,} entities" if split.labels else ""
    return f"{split.answers.words}{n_entities}"


def profile(task: Task, data: TaskData) -> TaskStatistics:
    """Count what a task's data holds: rows, lengths, labels, repeats, conflicts, and what both sides share.

    Raises:
        UsageError: fewer owned labels than folds, of ``dev: folds``.
    """
    leaked = {leak.split: leak.n_leaked for leak in find_leaks(task, data)}
    held = [*data.dev, *data.test]
    parts = _parts(task, held)
    held_texts = {fold(example.text) for example in held}
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
                answers=_answers(task, examples, set() if outside else held_texts),
                n_duplicates=len(examples) - len({source_key(task, example) for example in examples}),
                n_conflicting=_n_conflicting(task, examples),
                n_leaked=leaked.get(name, 0),
                n_dropped=data.dropped.get(name, 0),
                n_shared_part=0 if outside else sum(bool(_parts(task, [e]) & parts) for e in examples),
                is_labelled=any(example.label is not None for example in examples),
            )
        )
    dev_keys = {source_key(task, example) for example in data.dev}
    n_test_in_dev = sum(source_key(task, example) in dev_keys for example in data.test)
    folds = tuple(map(len, Folds.of(task, data).rows)) if task.dev == "folds" else ()
    return TaskStatistics(task, data.digest, tuple(splits), n_test_in_dev, data.notes, folds)


def _parts(task: Task, examples: Sequence[Example]) -> set[tuple[str, str]]:
    """Return the folded fields of examples with several; which field it is matters unless the task is symmetric."""
    if len(task.format.names) < 2:
        return set()
    pairs = ((name, fold(value)) for example in examples for name, value in example.fields)
    return {("" if task.symmetric else name, value) for name, value in pairs if value}


def _label_counts(task: Task, examples: Sequence[Example]) -> dict[str, int]:
    given = [example.label for example in examples if example.label is not None]
    if task.kind == "entities":
        counts = Counter(entity.label for line in given for entity in parse_entities(line, task.labels))
    else:
        counts = Counter(given)
    return {label: counts[label] for label in task.labels} if given else {}


def _answers(task: Task, examples: Sequence[Example], held_texts: Set[str]) -> Answers | None:
    """Measure the answers of a split; ``held_texts`` are the folded dev and test sources."""
    answered = [(example.text, example.label) for example in examples if example.label is not None]
    if task.kind == "classification" or not answered:
        return None
    words = [len(answer.split()) for _, answer in answered]
    pairs = [(fold(text), fold(answer)) for text, answer in answered]
    lines = [(text, parse_entities(answer, task.labels)) for text, answer in answered if task.kind == "entities"]
    return Answers(
        words=Lengths.of(words),
        n_over_length=sum(n > task.max_target_tokens for n in words),
        n_empty=words.count(0),
        n_copies=sum(text == answer for text, answer in pairs),
        n_held_out=sum(answer in held_texts for _, answer in pairs),
        n_entities=sum(len(entities) for _, entities in lines),
        n_unaligned=sum(align(text, entities)[1] for text, entities in lines),
    )


def _n_conflicting(task: Task, examples: Sequence[Example]) -> int:
    labels: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for example in examples:
        if example.label is not None:
            labels[source_key(task, example)].append(example.label)
    return sum(len(given) for given in labels.values() if len(set(given)) > 1)
