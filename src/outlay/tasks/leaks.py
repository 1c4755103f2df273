"""Find test and dev examples that stand in another split as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from outlay.errors import LeakError
from outlay.tasks.example import Example, shorten
from outlay.tasks.splits import PoolPart, TaskData
from outlay.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Leak:
    """Rows of one training split whose whole source is also a dev or test row."""

    split: str
    n_rows: int
    n_leaked: int
    first: Example


def fold(text: str) -> str:
    """Return a text lower-cased, with every run of white space as one blank: what counts as the same text."""
    return " ".join(text.lower().split())


def source_key(task: Task, example: Example) -> tuple[str, ...]:
    """Return the key by which two examples have the same source: all fields folded, in any order for a symmetric task."""
    key = tuple(fold(value) for _, value in example.fields)
    return tuple(sorted(key)) if task.symmetric else key


def find_leaks(task: Task, data: TaskData) -> list[Leak]:
    """Return the training splits of ``data`` that share whole sources with dev or test."""
    held = _held_out(task, data)
    leaks = []
    for name, examples in data.splits():
        if name in ("dev", "test"):
            continue
        if shared := [example for example in examples if source_key(task, example) in held]:
            leaks.append(Leak(name, len(examples), len(shared), shared[0]))
    return leaks


def leak_error(task: Task, leaks: Sequence[Leak]) -> LeakError:
    """Return the error for leaks that the task does not drop."""
    counts = ", ".join(f"{leak.n_leaked} of {leak.n_rows} {leak.split} rows" for leak in leaks)
    first = leaks[0].first
    return LeakError(
        f"task {task.name}: {counts} are also dev or test rows, the first at {first.origin} ({shorten(first.text)!r}); "
        "remove them, or set `drop_leaks: true` in the task file to leave them out"
    )


def without_leaks(task: Task, data: TaskData, leaks: Sequence[Leak]) -> TaskData:
    """Return ``data`` without the train and pool rows that are also dev or test rows."""
    held = _held_out(task, data)

    def kept(examples: list[Example]) -> list[Example]:
        return [example for example in examples if source_key(task, example) not in held]

    pool = [PoolPart(part.name, kept(part.examples)) for part in data.pool]
    return replace(data, train=kept(data.train), pool=pool, dropped={leak.split: leak.n_leaked for leak in leaks})


def _held_out(task: Task, data: TaskData) -> set[tuple[str, ...]]:
    return {source_key(task, example) for example in [*data.dev, *data.test]}
