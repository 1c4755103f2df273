"""Find test and dev examples that stand in another split as well."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from outlay.errors import LeakError
from outlay.tasks.example import Example, shorten
from outlay.tasks.splits import TaskData
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
    held = {source_key(task, example) for example in [*data.dev, *data.test]}
    return _leaks_into(task, held, [split for split in data.splits() if split[0] not in ("dev", "test")])


def _leaks_into(task: Task, held: set[tuple[str, ...]], splits: Sequence[tuple[str, list[Example]]]) -> list[Leak]:
    leaks = []
    for name, examples in splits:
        shared = [example for example in examples if source_key(task, example) in held]
        if shared:
            leaks.append(Leak(name, len(examples), len(shared), shared[0]))
    return leaks


def _leak_error(task: Task, leaks: Sequence[Leak]) -> LeakError:
    counts = ", ".join(f"{leak.n_leaked} of {leak.n_rows} {leak.split} rows" for leak in leaks)
    first = leaks[0].first
    return LeakError(
        f"task {task.name}: {counts} are also dev or test rows, the first at {first.origin} ({shorten(first.text)!r}); "
        "remove them, or set `drop_leaks: true` in the task file to leave them out"
    )


def _without(task: Task, examples: Iterable[Example], held: set[tuple[str, ...]]) -> list[Example]:
    return [example for example in examples if source_key(task, example) not in held]
