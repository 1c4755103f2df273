"""A task from files as people have them: columns are guessed, duplicates and conflicts left out, test and dev set aside."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import cast, get_args

from outlay.errors import DataError, MissingData, NoLabels, UsageError
from outlay.spec import Kind
from outlay.tasks.columns import MOST_LABELS, cell_text, entity_types, guess_columns, is_entity_line
from outlay.tasks.folds import fold_numbers
from outlay.tasks.groups import joined_groups, near_duplicate_groups, near_duplicates_of, shared_text_groups
from outlay.tasks.leaks import fold
from outlay.tasks.readers import TEXT_COLUMN, FileRows, SourceRow, read_file
from outlay.tasks.sources import DataFile
from outlay.tasks.task import DEFAULT_FOLDS
from outlay.tasks.to_label import ToLabel, bought_rows, check_to_label, half_interval, lines_on_labels
from outlay.text.legible import named
from outlay.text.text_file import read_text

LEAST_TEST, MOST_TEST = 100, 1000
LEAST_FOR_DEV = 500
"""Labels that are left for training below which no dev set is put aside: each seed keeps another fold of them for dev."""
TEST_SHARE, DEV_SHARE = 5, 10
"""One row in so many is for test, and of the rest for dev."""
_LIMITS = (32, 64, 128, 256, 512)
_TOKENS_A_WORD = 1.4
"""Tokens for a word, where the limit of a text's tokens is guessed."""
_LEAST_CLASS = 2
LEAST_TO_LABEL = 20
"""Fewest rows of a task whose labels are all to be bought."""
_MOST_FOLDS = 20
"""Most folds that rows are dealt into to set some aside; a smaller share is a fold that gives rows back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOptions:
    """The splits of a new task.

    Attributes:
        test: rows to score on; ``None`` = a fifth, 100 to 1,000.
        dev: rows to choose models by; ``None`` = a tenth, of fewer than 500 labels none: each seed keeps another fold.
        group: column whose equal values stay on one side of a split.
        seed: of the splits.
    """

    test: int | None = None
    dev: int | None = None
    group: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class NewTaskOptions:
    """What the user says of a new task; what is ``None`` is guessed, and said."""

    name: str | None = None
    texts: tuple[str, ...] = ()
    label: str | None = None
    kind: str | None = None
    splits: SplitOptions = SplitOptions()
    to_label: ToLabel | None = None
    """Labels to be bought, since no row has one; ``None`` = rows have labels."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the new task: its texts, its label ("" = none), its group ("" = it stands alone) and where it was read."""

    texts: tuple[str, ...]
    label: str
    group: str
    origin: str


@dataclass(frozen=True)
class NewTask:
    """A task that is not written yet.

    ``fields``: names of the texts in the task; ``columns``: in the files; ``decided``: what was guessed or left out, a sentence
    each; ``labels``: the classes or types, the commonest first; ``n_folds``: of ``dev: folds``, 0 for another dev;
    ``to_label``: labels to be bought, where rows have none.
    """

    name: str
    kind: Kind
    fields: tuple[str, ...]
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    max_source_tokens: int
    train: list[Row]
    dev: list[Row]
    test: list[Row]
    pool: list[Row]
    decided: list[str] = field(default_factory=list)
    n_folds: int = 0
    to_label: ToLabel | None = None


def new_task(paths: Sequence[Path], asked: NewTaskOptions) -> NewTask:
    """Read files and make a task of them; the first holds labelled rows, others may hold texts alone. With ``to_label`` all rows
    are to be labelled.

    Raises:
        MissingData: a file that is absent, empty or damaged.
        NoLabels: no labelled rows, and nothing is said of labels to be bought.
        DataError: columns that cannot be told, or too few rows.
        UsageError: an unknown kind, or sizes of test or dev that leave nothing to train on.
    """
    if asked.kind is not None and asked.kind not in get_args(Kind):
        raise UsageError(f"kind {asked.kind!r} is unknown; choose one of {', '.join(get_args(Kind))}")
    splits = asked.splits
    tables = [_read(path) for path in paths]
    decided = [note for table in tables for note in table.notes]
    guess = guess_columns(tables[0].rows, asked.texts, asked.label, has_labels=asked.to_label is None)
    decided += guess.why
    rows = _rows(paths, tables, guess.texts, guess.label, splits.group)
    if asked.to_label is not None:
        return _new_task_to_label(asked, asked.to_label, _name_of(paths[0]), guess.texts, rows, decided)
    kind, labels, why = _kind_of([row.label for row in rows if row.label], cast(Kind | None, asked.kind))
    decided += why
    labelled = _without_repeats([row for row in rows if row.label], decided)
    if kind == "classification":
        labelled, labels = _without_rare(labelled, labels, decided)
    if len(labelled) < 2 * len(labels) or len(labelled) < 10:
        raise DataError(
            f"{len(labelled):,} rows have a label, too few to set a test part aside; label more rows, or name their column with "
            "--label"
        )
    labelled = _grouped(labelled, splits.group, decided)
    test, rest = _set_aside(labelled, _n_test(len(labelled), splits.test), splits.seed, decided, "test")
    n_dev = _n_dev(len(rest), splits.dev)
    dev, train = _set_aside(rest, n_dev, splits.seed + 1, decided, "dev") if n_dev else ([], rest)
    n_folds = 0 if dev else _n_folds(train, decided)
    pool = _pool([row for row in rows if not row.label], [*test, *dev], train, decided)
    if pool:
        decided.append(
            f"{len(pool):,} rows have no label and are the pool; the labels of the others are yours, and cost nothing"
        )
    limit = _limit_of([*labelled, *pool])
    decided.append(_line_on_limit(limit))
    return NewTask(
        name=asked.name or _name_of(paths[0]),
        kind=kind,
        fields=_field_names(guess.texts),
        columns=guess.texts,
        labels=labels,
        max_source_tokens=limit,
        train=train,
        dev=dev,
        test=test,
        pool=pool,
        decided=decided,
        n_folds=n_folds,
    )


def _new_task_to_label(
    asked: NewTaskOptions, to_label: ToLabel, name: str, columns: tuple[str, ...], rows: list[Row], decided: list[str]
) -> NewTask:
    """Make a task of rows without labels: a seeded random part for test and dev, all others to be labelled for training."""
    if asked.label is not None:
        raise UsageError(
            "--label names the column of labels that rows have, and --labels what rows without are to get; give one"
        )
    kind, splits, n_before = cast(Kind, asked.kind or "classification"), asked.splits, len(decided)
    name = asked.name or name
    check_to_label(name, kind, to_label)
    rows = _without_repeats(rows, decided, "row")
    least = max(LEAST_TO_LABEL, 4 * len(to_label.labels))
    if len(rows) < least:
        raise DataError(
            f"{len(rows):,} different texts are too few to set test and dev parts aside of; give at least {least}"
        )
    rows = _grouped(rows, splits.group, decided)
    n_test, n_dev = bought_rows(len(rows), splits.test, splits.dev)
    parts = dict[str, list[Row]]()
    rest = rows
    for number, (what, n) in enumerate((("test", n_test), ("dev", n_dev))):
        parts[what], rest = _apart(rest, n, splits.seed + number) if n else ([], rest)
    decided += lines_on_labels(to_label, {what: len(found) for what, found in parts.items()}, len(rows), splits.seed)
    limit = _limit_of(rows)
    decided.append(_line_on_limit(limit))
    if asked.kind is None:
        decided.insert(n_before, "the kind is classification, since labels are named; --kind says it otherwise")
    return NewTask(
        name=name,
        kind=kind,
        fields=_field_names(columns),
        columns=columns,
        labels=to_label.labels,
        max_source_tokens=limit,
        train=rest,
        dev=parts["dev"],
        test=parts["test"],
        pool=[],
        decided=decided,
        to_label=to_label,
    )


def _line_on_limit(limit: int) -> str:
    return f"texts longer than {limit} tokens are cut, by the lengths of the texts; `max_source_tokens` in task.yaml"


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> FileRows:
    """Return the rows of a file, or of a folder with a folder of text files for each label, and notes on its form."""
    if not path.is_dir():
        if not path.exists():
            raise MissingData(f"{path} is not there; check the path")
        return read_file(DataFile(file=str(path)), path)
    found = [
        SourceRow(str(file), {TEXT_COLUMN: read_text(file), "label": file.parent.name})
        for file in sorted(path.glob("*/*.txt"))
    ]
    if not found:
        raise MissingData(f"{path} is a folder without LABEL/*.txt; give such a folder, or a file of rows")
    return FileRows(found, (f"{path}: the name of a folder is the label of the texts in it",))


def _rows(
    paths: Sequence[Path], tables: Sequence[FileRows], texts: tuple[str, ...], label: str | None, group: str | None
) -> list[Row]:
    """Return the rows of all files that have text."""
    found = []
    for number, (path, table) in enumerate(zip(paths, tables, strict=True)):
        there = {name for row in table.rows for name in row.columns}
        own = texts if set(texts) <= there else ()
        if not own and there == {TEXT_COLUMN} and len(texts) == 1:
            own = (TEXT_COLUMN,)
        if not own:
            raise DataError(f"{path} has no column {named(texts)}; its columns are {named(there)}")
        if number == 0 and group is not None and group not in there:
            raise DataError(f"{path} has no column {group!r} to group rows by; its columns are {named(there)}")
        for row in table.rows:
            cells = tuple(" ".join(cell_text(row, name).split()) for name in own)
            if any(cells):
                answer = "" if label is None else cell_text(row, label).strip()
                found.append(Row(cells, answer, "" if group is None else cell_text(row, group), row.origin))
    return found


def _name_of(path: Path) -> str:
    letters = "".join(c if c.isalnum() or c in "_-" else "-" for c in path.name.split(".")[0])
    return letters.strip("-_") or "task"


def _field_names(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return names that a template can have: a field that is called ``text`` must be alone."""
    found: list[str] = []
    for number, column in enumerate(columns, start=1):
        letters = "".join(c if c.isalnum() or c == "_" else "_" for c in column)
        name = letters if letters.isidentifier() else f"text_{number}"
        found.append(f"text_{number}" if name in found or (name == "text" and len(columns) > 1) else name)
    return tuple(found)


# --- labels ----------------------------------------------------------------------------------------------------------


def _kind_of(answers: Sequence[str], asked: Kind | None) -> tuple[Kind, tuple[str, ...], list[str]]:
    """Return the kind of task, its labels, and a sentence where it was guessed."""
    if not answers:
        raise NoLabels(
            "no row has a label; name the column of the labels with --label, or say with --labels which ones are to be bought, "
            "such as --labels spam,other"
        )
    counts = Counter(answers)
    n_entities = sum(map(is_entity_line, answers))
    guessed: Kind = "classification"
    if n_entities > len(answers) / 2:
        guessed = "entities"
    elif len(counts) > MOST_LABELS or len(counts) > len(answers) / 2:
        guessed = "generation"
    kind = asked or guessed
    why = {
        "classification": f"the kind is classification, since there are {len(counts):,} different labels",
        "entities": "the kind is entities, since labels are written `text [Type]`",
        "generation": f"the kind is generation, since {len(counts):,} of {len(answers):,} answers are different",
    }[kind]
    labels = entity_types(answers) if kind == "entities" else tuple(name for name, _ in counts.most_common())
    told = [] if asked else [f"{why}; --kind says it otherwise"]
    return kind, () if kind == "generation" else labels, told


def _without_rare(rows: list[Row], labels: tuple[str, ...], decided: list[str]) -> tuple[list[Row], tuple[str, ...]]:
    """Leave out classes with so few rows that one could not be in both train and test."""
    counts = Counter(row.label for row in rows)
    rare = [label for label in labels if counts[label] < _LEAST_CLASS]
    if rare:
        decided.append(f"left out: {_count(len(rare), 'label')} of one row each: {named(rare)}")
    kept = [row for row in rows if row.label not in rare]
    return kept, tuple(label for label in labels if label not in rare)


# --- repeats ---------------------------------------------------------------------------------------------------------


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _key(row: Row) -> tuple[str, ...]:
    return tuple(map(fold, row.texts))


def _without_repeats(rows: Sequence[Row], decided: list[str], what: str = "labelled row") -> list[Row]:
    """Keep one row of each text; of a text with several labels, none."""
    by_text: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        by_text[_key(row)].append(row)
    kept = [alike[0] for alike in by_text.values() if len({row.label for row in alike}) == 1]
    in_conflict = [alike for alike in by_text.values() if len({row.label for row in alike}) > 1]
    n_repeats = sum(len(alike) - 1 for alike in by_text.values() if len({row.label for row in alike}) == 1)
    if n_repeats:
        decided.append(f"left out: {_count(n_repeats, what)} with a text of an earlier one")
    if in_conflict:
        first, n_rows = in_conflict[0], sum(map(len, in_conflict))
        decided.append(
            f"left out: {_count(n_rows, 'row')} of {_count(len(in_conflict), 'text')} with several labels, the first at "
            f"{first[0].origin} ({named({row.label for row in first})})"
        )
    return kept


# --- splits ----------------------------------------------------------------------------------------------------------


def _n_test(n: int, asked: int | None) -> int:
    if asked is None:
        return min(max(n // TEST_SHARE, min(LEAST_TEST, n // 2)), MOST_TEST)
    if not 1 <= asked < n:
        raise UsageError(f"--test {asked} of {n:,} labelled rows leaves none to train on; give 1 to {n - 1:,}")
    return asked


def _n_dev(n: int, asked: int | None) -> int:
    if asked is None:
        return min(n // DEV_SHARE, MOST_TEST) if n >= LEAST_FOR_DEV else 0
    if not 0 <= asked < n:
        raise UsageError(f"--dev {asked} of {n:,} rows leaves none to train on; give 0 to {n - 1:,}")
    return asked


def _grouped(rows: Sequence[Row], column: str | None, decided: list[str]) -> list[Row]:
    """Return the rows with the number of their group: near duplicates, rows of one named group, and pairs that share a text."""
    near = near_duplicate_groups([" ".join(row.texts) for row in rows])
    shared, n_split = shared_text_groups([row.texts for row in rows]) if len(rows[0].texts) > 1 else (near, 0)
    numbers = joined_groups(len(rows), near, [row.group for row in rows], shared)
    sizes = Counter(numbers)
    n_together = sum(size for size in sizes.values() if size > 1)
    if n_together:
        why = ["near duplicates"] + ([] if column is None else [f"of one {column!r}"])
        why += ["rows that share a text"] if len(rows[0].texts) > 1 else []
        decided.append(f"{n_together:,} rows are {' or '.join(why)}, and stay on one side of a split")
    if n_split:
        decided.append(
            f"{n_split:,} rows hang together by texts that they share, too many for one side of a split: these texts may be on "
            "both"
        )
    return [replace(row, group=str(n) if sizes[n] > 1 else "") for row, n in zip(rows, numbers, strict=True)]


def _set_aside(rows: list[Row], n: int, seed: int, decided: list[str], what: str) -> tuple[list[Row], list[Row]]:
    """Split ``n`` rows off, see `_apart`, and say what they are good for."""
    aside, rest = _apart(rows, n, seed)
    decided.append(
        f"{what}: {len(aside):,} of {len(rows):,} labelled rows, seed {seed}, on which a score is known to ± "
        f"{half_interval(len(aside)):.1f} points or better; --{what} says how many"
    )
    return aside, rest


def _apart(rows: list[Row], n: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Split ``n`` rows off, about as many where groups do not add up to it: label by label alike, a group on one side."""
    groups = joined_groups(len(rows), range(len(rows)), [row.group for row in rows])
    n_groups = len(set(groups))
    if n_groups == 1:
        raise DataError(f"all {len(rows):,} rows are of one group, so that none can be set aside; leave --group out")
    share = _simple_share(n, len(rows), n_groups)
    numbers = fold_numbers([row.label for row in rows], groups, share.denominator, seed=seed)
    is_aside = [number < share.numerator for number in numbers]
    _even_out(rows, is_aside, n, seed)
    aside = [row for row, is_there in zip(rows, is_aside, strict=True) if is_there]
    return aside, [row for row, is_there in zip(rows, is_aside, strict=True) if not is_there]


def _simple_share(n: int, n_rows: int, n_groups: int) -> Fraction:
    """Return the simplest share within a tenth of ``n`` of the rows: so many of so many folds, at most one for each group."""
    wanted, most = Fraction(n, n_rows), min(_MOST_FOLDS, n_groups)
    shares = (wanted.limit_denominator(n_folds) for n_folds in range(2, most + 1))
    near = (share for share in shares if abs(share - wanted) <= wanted / 10 and share < 1)
    return next(near, Fraction(min(max(1, round(wanted * most)), most - 1), most))


def _even_out(rows: Sequence[Row], is_aside: list[bool], n: int, seed: int) -> None:
    """Move rows that stand alone until ``n`` are aside, each of the label with the most rows too many where it comes from."""
    totals, there = Counter(row.label for row in rows), Counter[str]()
    alone: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for i in random.Random(seed).sample(range(len(rows)), len(rows)):
        there[rows[i].label] += is_aside[i]
        if not rows[i].group:
            alone[is_aside[i], rows[i].label].append(i)
    surplus = there.total() - n
    is_surplus, sign = surplus > 0, 1 if surplus > 0 else -1
    for _ in range(abs(surplus)):
        movable = [label for label in totals if alone[is_surplus, label]]
        if not movable:
            return
        label = max(movable, key=lambda name: sign * (there[name] - totals[name] * n / len(rows)))
        is_aside[alone[is_surplus, label].pop()] = not is_surplus
        there[label] -= sign


def _n_folds(train: Sequence[Row], decided: list[str]) -> int:
    """Return the number of folds that seeds keep for dev; 0 where there are too few rows, and each run carves some."""
    n_alone = sum(not row.group for row in train)
    n_groups = n_alone + len({row.group for row in train if row.group})
    if n_groups < DEFAULT_FOLDS:
        decided.append(
            f"dev: none set aside; {n_groups} groups of rows are fewer than {DEFAULT_FOLDS} folds, so each run keeps a tenth "
            "of its labels for it (`dev: carved`)"
        )
        return 0
    decided.append(
        f"dev: none set aside; each of {DEFAULT_FOLDS} seeds keeps another fold of the {len(train):,} labels for it "
        f"(`dev: folds`), so that over {DEFAULT_FOLDS} seeds a score is known to ± {half_interval(len(train)):.1f} points or "
        "better; --dev sets rows aside"
    )
    return DEFAULT_FOLDS


def _pool(rows: Sequence[Row], held: Sequence[Row], train: Sequence[Row], decided: list[str]) -> list[Row]:
    """Return the rows without a label that are new: no repeats, and nothing that is, or nearly is, in dev or test."""
    seen = {_key(row) for row in (*held, *train)}
    kept: list[Row] = []
    for row in rows:
        if _key(row) not in seen:
            seen.add(_key(row))
            kept.append(row)
    n_known = len(rows) - len(kept)
    texts, of_held = ([" ".join(row.texts) for row in each] for each in (kept, held))
    near = near_duplicates_of(of_held, texts)
    held_texts = {fold(text) for row in held for text in row.texts if text}
    sharing = {
        i for i, row in enumerate(kept) if len(row.texts) > 1 and not held_texts.isdisjoint(map(fold, row.texts))
    }
    # Where most rows share a text with a held one, as those of a few claims do, they stay and the profile warns of them.
    left_out = near | (sharing if 2 * len(sharing) <= len(kept) else set())
    if n_known or left_out:
        what = "nearly are, or share a text with," if left_out - near else "nearly are"
        decided.append(
            f"left out: of the rows without a label {n_known:,} with a text of another row, and {len(left_out):,} that {what} a "
            "dev or test row"
        )
    return [row for i, row in enumerate(kept) if i not in left_out]


def _limit_of(rows: Sequence[Row]) -> int:
    """Return a limit of tokens that cuts few texts: 95 % of them by their words."""
    words = sorted(sum(len(text.split()) for text in row.texts) for row in rows)
    tokens = _TOKENS_A_WORD * words[-(-len(words) * 95 // 100) - 1] + 4
    return next((limit for limit in _LIMITS if tokens <= limit), _LIMITS[-1])
