"""From the words of a user to a request and all that is known about it, before money moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from outlay.compute import Machine, machine, shape_of
from outlay.data import TaskData, load_data
from outlay.errors import TaskFileError, UsageError
from outlay.example import Example, seeded_order
from outlay.labels.base import Annotator
from outlay.labels.replay import Replay
from outlay.modelref import fingerprint
from outlay.money import PriceBook
from outlay.quoting import Known, TokenCounts
from outlay.recipe import Encoding, Model
from outlay.request import (
    DEFAULT_MACHINE,
    DEFAULT_STUDENT,
    DEFAULT_TEACHER,
    DEFAULT_THREADS,
    Request,
    Seller,
    frozen_overrides,
)
from outlay.settings import TrainSettings
from outlay.store import canonical_json, key_of
from outlay.strategy import strategy as strategy_named
from outlay.task import Task, load_task

DEFAULT_SETTINGS: dict[str, TrainSettings] = {
    "teacher": TrainSettings(epochs=10, batch_size=32, learning_rate=1e-4),
    "student": TrainSettings(epochs=20, batch_size=32, learning_rate=2e-4),
    "distil": TrainSettings(epochs=4, batch_size=64, learning_rate=5e-4, dropout=0.0, temperature=2.0),
}
"""By role, for encoders of 5 to 100 M parameters; `docs/training.md` says how they were chosen. T = 2 as in the released
script of Kang et al. 2023."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a user asks of one run, in their words; every field but the first three has a default."""

    task: str
    strategy: str
    budget_micros: int
    n_initial: int | None = None
    seed: int = 0
    teacher: str = DEFAULT_TEACHER
    student: str = DEFAULT_STUDENT
    machine: str = DEFAULT_MACHINE
    student_training: str = "charged"
    pool_rows: int | None = None
    dev: str | None = None
    """``given``, ``bought``, ``carved`` or ``none``; ``None`` = as the task says."""
    n_dev: int | None = None
    threads: int = DEFAULT_THREADS
    seller: Seller = field(default_factory=Seller)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """One run, ready to be quoted and executed: rows in their seeded orders, and what is known of them."""

    request: Request
    known: Known
    task: Task
    train: list[Example]
    pool: list[Example]
    dev: list[Example]
    test: list[Example]
    pool_parts: tuple[tuple[str, int], ...]
    price_book: PriceBook

    def texts(self, rows: Sequence[Example]) -> list[tuple[str, ...]]:
        """The segments an encoder reads, row by row."""
        return [self.task.segments_of(row) for row in rows]

    def seller_of(self, split: str) -> Annotator:
        """The replay seller of one split's gold labels."""
        return _seller(self.train if split == "train" else self.dev, self.task, self.price_book, self.request)


class Workbench:
    """Loads tasks once and counts their tokens once, for as many runs as a comparison has."""

    def __init__(self, price_book: PriceBook, *, data_root: Path | None = None, machines: Sequence[Path] = ()) -> None:
        self.price_book = price_book
        self._machine_files = machines
        self._data_root = data_root
        self._tasks: dict[str, tuple[Task, TaskData]] = {}
        self._lengths: dict[tuple[str, str, int], dict[str, int]] = {}

    def load(self, name: str) -> tuple[Task, TaskData]:
        """A task and its data, leaks checked."""
        if name not in self._tasks:
            task = load_task(name)
            self._tasks[name] = task, load_data(task, self._data_root)
        return self._tasks[name]

    def machine(self, name: str) -> Machine:
        """A machine of the shipped or the user's files.

        Raises:
            UnknownItem: lists the known ones.
        """
        return machine(name, self._machine_files)

    def request(self, options: Options) -> Request:
        """The request of ``options``; cheap but for reading the data: no model is loaded.

        Raises:
            UsageError: whatever is wrong with the options, named one at a time.
        """
        strategy_named(options.strategy)
        task, data = self.load(options.task)
        chosen = self.machine(options.machine)
        self.price_book.get(chosen.price_item)
        self.price_book.get(task.price_item)
        dev, n_dev = _dev_choice(task, data, options)
        overrides = {role: dict(given) for role, given in _task_overrides(task).items()}
        for role, given in options.overrides.items():
            overrides[role] = {**overrides.get(role, {}), **given}
        teacher, student = self._models(options)
        request = Request(
            task=task.name,
            task_digest=key_of({"task": task.model_dump(mode="json", exclude={"description"}), "data": data.digest}),
            strategy=options.strategy,
            budget_micros=options.budget_micros,
            price_book=self.price_book.digest,
            models=key_of([teacher.parameters(), student.parameters()]),
            n_initial=options.n_initial,
            seed=options.seed,
            teacher=options.teacher,
            student=options.student,
            machine=chosen.name,
            machine_digest=key_of(chosen.identity()),
            student_training=options.student_training,
            pool_rows=options.pool_rows,
            dev=dev,
            n_dev=n_dev,
            threads=options.threads,
            seller=options.seller,
            overrides=frozen_overrides(overrides),
        )
        for role, pairs in request.overrides:
            DEFAULT_SETTINGS[role].changed(dict(pairs))
        return request

    def prepare(self, options: Options) -> Prepared:
        """Rows in order, shapes, token counts: everything a strategy may see."""
        request = self.request(options)
        task, data = self.load(options.task)
        train = _ordered(data.train, request.seed)
        dev = _ordered(data.dev, request.seed)
        pool = _ordered([example for part in data.pool for example in part.examples], request.seed)
        if request.pool_rows is not None:
            pool = pool[: request.pool_rows]
        teacher, student = self._models(options)
        n_dev = len(dev) if request.n_dev is None else request.n_dev
        chosen = self.machine(request.machine)
        rows = {"train": train, "dev": dev, "pool": pool, "test": data.test}
        known = Known(
            request=request,
            task=task.name,
            encoding=Encoding(task.segment_names, task.max_source_tokens, task.labels, task.metric),
            teacher=teacher,
            student=student,
            shapes={model.ref: shape_of(model.ref, base=model.base) for model in (teacher, student)},
            tokens={model.ref: self._token_counts(options, task, model, rows) for model in (teacher, student)},
            machine=chosen,
            machine_price=self.price_book.get(chosen.price_item),
            label_price=self.price_book.get(task.price_item),
            seller_identity=canonical_json(dict(_seller(train, task, self.price_book, request).identity())),
            train_digest=_rows_digest(train),
            dev_digest=_rows_digest(dev),
            test_digest=_rows_digest(data.test),
            pool_digests=_PoolDigests(pool),
            n_carved=task.model_copy(update={"dev": request.dev or "none", "n_dev": request.n_dev}).n_carved,
            n_train=len(train),
            n_pool=len(pool),
            n_dev=n_dev,
            defaults=DEFAULT_SETTINGS,
        )
        parts = tuple((part.name, len(part.examples)) for part in data.pool)
        if len(pool) < sum(n for _, n in parts):
            # How the first rows spread over the parts depends on the seed's order; a request must not.
            parts = (("+".join(name for name, _ in parts), len(pool)),)
        return Prepared(request, known, task, train, pool, dev, data.test, parts, self.price_book)

    def _models(self, options: Options) -> tuple[Model, Model]:
        base = options.teacher
        teacher = Model(options.teacher, base, fingerprint(options.teacher, base=base))
        return teacher, Model(options.student, base, fingerprint(options.student, base=base))

    def _token_counts(
        self, options: Options, task: Task, model: Model, rows: Mapping[str, list[Example]]
    ) -> TokenCounts:
        """Counted once per task and tokenizer by row, then summed in each seed's order."""
        at = (options.task, model.fingerprint, task.max_source_tokens)
        known = self._lengths.setdefault(at, {})
        missing = [example for split in rows.values() for example in split if example.text not in known]
        if missing:
            from outlay.train.steps import count_tokens

            texts = {example.text: task.segments_of(example) for example in missing}
            counts = count_tokens(model.ref, model.base, list(texts.values()), task.max_source_tokens)
            known.update(zip(texts, counts, strict=True))
        sums = {name: list(accumulate((known[e.text] for e in split), initial=0)) for name, split in rows.items()}
        return TokenCounts(sums["train"], sums["pool"], sums["dev"], sums["test"])


class _PoolDigests:
    """Digest of a slice of the pool, each computed once."""

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = pool
        self._known: dict[tuple[int, int], str] = {}

    def __call__(self, start: int, stop: int) -> str:
        if (start, stop) not in self._known:
            self._known[start, stop] = key_of([example.text for example in self._pool[start:stop]])
        return self._known[start, stop]


def added_micros(prepared: Prepared) -> int | None:
    """What comes on top of the initial labels (DESIGN decision 6); ``None`` where N is chosen by a rule."""
    n_initial = prepared.request.n_initial
    if n_initial is None:
        return None
    initial = prepared.known.label_price.cost_micros(n_initial * prepared.request.seller.redundancy)
    return max(0, prepared.request.budget_micros - initial)


def _ordered(examples: Sequence[Example], seed: int) -> list[Example]:
    return [examples[i] for i in seeded_order([example.id for example in examples], seed)]


def _rows_digest(rows: Sequence[Example]) -> str:
    """Over ids, texts and gold labels: replayed answers depend on them, and so does a score."""
    return key_of([[row.id, row.text, row.label] for row in rows])


def _dev_choice(task: Task, data: TaskData, options: Options) -> tuple[str | None, int | None]:
    """How dev labels come, and how many (``None``: the whole split, or the default share where carved)."""
    how = options.dev or task.dev
    n_dev = options.n_dev if options.n_dev is not None else task.n_dev
    if how == "none":
        return None, None
    if how == "carved":
        return how, n_dev
    if not data.dev:
        raise UsageError(f"dev {how!r} needs a dev split, and task {task.name} has none; choose carved or none")
    if n_dev is not None and n_dev > len(data.dev):
        raise UsageError(f"{n_dev:,} dev labels asked, the dev split has {len(data.dev):,}; ask for at most that many")
    return how, n_dev


def _task_overrides(task: Task) -> dict[str, dict[str, Any]]:
    """A task's hyper-parameters under the names of `TrainSettings`."""
    names = {"lr": "learning_rate"}
    roles = {"teacher": task.training.teacher, "student": task.training.student, "distil": task.training.distil}
    return {role: {names.get(k, k): v for k, v in given.given().items()} for role, given in roles.items()}


def _seller(rows: Sequence[Example], task: Task, book: PriceBook, request: Request) -> Annotator:
    gold: dict[str, str] = {}
    for row in rows:
        if row.label is None:
            raise TaskFileError(f"task {task.name}: row {row.id[:12]} has no gold label to replay; give `target:`")
        gold[row.id] = row.label
    return Replay(
        gold,
        labels=task.labels,
        price=book.get(task.price_item),
        error_rate=request.seller.error_rate,
        redundancy=request.seller.redundancy,
        seconds_per_label=request.seller.seconds_per_label,
        seed=request.seed,
    )
