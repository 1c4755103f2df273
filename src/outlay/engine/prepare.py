"""Preparation of runs: from the request of a user to a resolved one with its data and planning context, before money is spent."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar, get_args

from outlay.engine.choices import dev_choice
from outlay.engine.model_facts import ModelFacts, model_inputs
from outlay.engine.sellers import Place, chosen_sellers, make_seller, offer_of, seller_name
from outlay.errors import OutlayError, UsageError
from outlay.hardware.precision import AUTO, BF16, remarks, resolve, without_auto
from outlay.labels.annotator import Annotator
from outlay.money.amounts import PriceBook
from outlay.money.machines import Machine, machine
from outlay.plan.cache import Memo, cached
from outlay.plan.context import Offer, PlanningContext, TokenCounts, reading_key
from outlay.plan.request import Digests, Request, SellerSpec
from outlay.plan.steps import Buy, Encoding, Model
from outlay.plan.strategies import rival_of, strategy
from outlay.settings import AUTO_METHOD, POOLINGS, TeachSettings, default_settings, without_auto_method
from outlay.spec import Family, Reading
from outlay.storage.store import key_of
from outlay.tasks.example import Example
from outlay.tasks.folds import Folds
from outlay.tasks.loading import load_data
from outlay.tasks.overrides import Role, overrides_of, settings_as_before
from outlay.tasks.splits import SeededOrder, TaskData
from outlay.tasks.task import Task, load_task

ROLES_TRAINED: tuple[Role, ...] = get_args(Role)
Key = TypeVar("Key")
Value = TypeVar("Value")

_OWN = ("budget_micros", "n_initial", "max_labels")
"""Fields of a request that decide neither rows nor models."""

TEST_SEED = 0
"""Seed of the test labels that are bought: one for runs of every seed."""

_LATER = (("owned", False), ("group", None), ("folds", None), ("test", "given"), ("eval_seller", "people"))
"""Keys of a task file, with their defaults, that came after tasks had digests."""

_TOLD = {"description", "published", "instruction", "descriptions", "sellers"}
"""Keys of a task file that no digest holds: words for people, and sellers, which are in a request and in the keys of what they
sold, an annotator's instruction with them."""


@dataclass(frozen=True)
class PreparedRun:
    """One run, ready to be quoted and executed: rows in their seeded orders, and the planning context.

    ``request``: the resolved request; ``asked``: the same as the user made it.
    """

    request: Request
    context: PlanningContext
    task: Task
    train: list[Example]
    pool: list[Example]
    dev: list[Example]
    test: list[Example]
    pool_parts: tuple[tuple[str, int], ...]
    price_book: PriceBook
    asked: Request

    def is_precision_asked(self, precision: str) -> bool:
        """Return whether a step's precision was asked for, and not chosen by the machine."""
        return (
            self.asked.precision != AUTO
            or precision != self.request.precision
            or all("precision" in self.request.overrides.get(role, {}) for role in ROLES_TRAINED)
        )

    def sources(self, rows: Sequence[Example], ref: str) -> list[tuple[str, ...]]:
        """Return a model's input of each row: the task's segments for an encoder, the whole text for any other family."""
        return model_inputs(self.task, rows, self.context.shapes[ref].family)

    def rows_of(self, split: str) -> list[Example]:
        """Return the rows of a split whose labels can be bought: ``train``, ``dev`` or ``test``."""
        return {"train": self.train, "dev": self.dev, "test": self.test}[split]

    def seller_of(self, step: Buy, place: Place | None = None, examples: Sequence[Example] = ()) -> Annotator:
        """Build the seller of a purchase; ``examples``: labelled rows that it is shown. Without a place it only quotes.

        Raises:
            TaskFileError: a row without a gold label to replay.
        """
        spec = self.request.seller(step.seller)
        if spec is None:
            raise UsageError(
                f"the request of strategy {self.request.strategy} names no seller {step.seller!r}; name it too"
            )
        rows, seed = self.rows_of(step.split), TEST_SEED if step.split == "test" else self.request.seed
        return make_seller(spec, rows, self.task, self.price_book, seed, place, examples)


class _OnDemand(Mapping[Key, Value]):
    """Values by key, each made when it is asked for."""

    def __init__(self, made: Mapping[Key, Callable[[], Value]]) -> None:
        self._made = made

    def __getitem__(self, key: Key) -> Value:
        return self._made[key]()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def _readings(task: Task, family: Family) -> tuple[Reading, ...]:
    """Return how a model may read the rows of a task: only an encoder has its segments, and only two of them make towers."""
    whole: tuple[Reading, ...] = ("whole", "joined")
    return (*whole, "towers") if family == "encoder" and len(task.segment_names) > 1 else whole


class RunBuilder:
    """Builder of runs that loads tasks, reads checkpoints and counts tokens once, for all runs of one command.

    Changes on the disk during the command are not seen.
    ``tokens``: folder of tokenised texts, for this process's steps and for the next process; ``None`` = nowhere.
    """

    def __init__(
        self,
        price_book: PriceBook,
        *,
        data_root: Path | None = None,
        machines: Sequence[Path] = (),
        tokens: Path | None = None,
    ) -> None:
        self.price_book = price_book
        self._machine_files = machines
        self._data_root = data_root
        self.memo = Memo()
        self._models = ModelFacts(self.memo, tokens)
        self.notes: list[str] = []
        """Decisions on the format of the data files, a sentence each."""

    @cached(keep=OutlayError)
    def load(self, name: str) -> tuple[Task, TaskData]:
        """Return a task and its data, checked for leaks."""
        task = load_task(name)
        data = load_data(task, self._data_root)
        self.notes += [note for note in data.notes if note not in self.notes]
        return task, data

    @cached()
    def name_of(self, task: str) -> str:
        """Return the name of a task, whose data may be missing; the name asked for where the task cannot be read."""
        try:
            return load_task(task).name
        except OutlayError:
            return task

    @cached()
    def machine(self, name: str) -> Machine:
        """Return a machine of the shipped or the user's files.

        Raises:
            UnknownItem: lists the known ones.
        """
        return machine(name, self._machine_files)

    def resolve(self, asked: Request) -> Request:
        """Return the resolved form of a request; this reads the data and loads no model.

        Raises:
            UsageError: a wrong choice; the error names one at a time.
        """
        # The presence of N decides what is refused, its number does not.
        at = ("request", asked.n_initial is None, *_shared(asked))
        request = self.memo.once(at, lambda: self._resolved(asked))
        return replace(request, **{name: getattr(asked, name) for name in _OWN})

    def _resolved(self, asked: Request) -> Request:
        task, data = self.load(asked.task)
        chosen = self.machine(asked.machine)
        self.price_book.hour(chosen.price_item)
        self.price_book.label(task.price_item)
        dev, n_dev = dev_choice(task, data, asked.dev, asked.n_dev)
        if dev == "folds":
            self._folds(asked.task)
        roles = self._models.roles(task, asked)
        families, given = self._models.families(roles), asked.overrides
        overrides: dict[str, dict[str, Any]] = {role: without_auto(pairs) for role, pairs in given.items()}
        rival = rival_of(asked.strategy)
        for each in ROLES_TRAINED:
            named = overrides_of(task.training, families[each], each, given.get(each, {}))
            overrides[each] = {"method": AUTO_METHOD, **named}
            if rival is not None:
                overrides[each]["method"] = rival.method if each == "student" else "full"
        for role, pairs in overrides.items():
            settings = TeachSettings() if role == "teach" else default_settings(families[role], task.kind)[role]
            settings.changed(pairs if role == "teach" else without_auto_method(pairs))
        models = [model.parameters() for model in (roles.teacher, roles.student, roles.judge) if model is not None]
        return replace(
            asked,
            task=task.name,
            student=roles.student.ref,
            machine=chosen.name,
            dev=dev,
            n_dev=n_dev,
            sellers=chosen_sellers(
                strategy(asked.strategy), task, self.price_book, asked.sellers, asked.n_initial, dev
            ),
            overrides={role: dict(sorted(overrides[role].items())) for role in sorted(overrides) if overrides[role]},
            base=None if asked.base == asked.teacher else asked.base,
            precision=_run_precision(asked, overrides),
            digests=Digests(
                task=_task_digest(task, data),
                price_book=self.price_book.digest,
                models=key_of(models),
                machine=key_of(chosen.identity()),
            ),
        )

    def family_of(self, asked: Request) -> Family:
        """Return the family of the student of a request."""
        task, _ = self.load(asked.task)
        return self._models.shape(self._models.roles(task, asked).student).family

    def check(self, asked: Request) -> None:
        """Refuse a request that the models cannot meet, before money is spent; see `ModelFacts.check`."""
        request = self.resolve(asked)
        self.memo.once(("check", *_shared(asked)), lambda: self._check(asked, request), keep=OutlayError)

    def _check(self, asked: Request, request: Request) -> None:
        task, _ = self.load(asked.task)
        self._models.check(task, self._models.roles(task, asked), request)

    def prepare(self, asked: Request) -> PreparedRun:
        """Return a run with its rows in order, shapes and token counts, shared by runs that differ in `_OWN` alone."""
        self.check(asked)
        request = self.resolve(asked)
        prepared = self.memo.once(("prepare", *_shared(asked)), lambda: self._prepare(asked, request))
        context = prepared.context.asked(request.budget_micros, request.n_initial, request.max_labels)
        return replace(prepared, request=context.request, context=context, asked=asked)

    def _prepare(self, asked: Request, request: Request) -> PreparedRun:
        (task, data), models = self.load(asked.task), self._models
        is_folded = request.dev == "folds"
        roles, ordered = models.roles(task, asked), self._ordered(asked.task, request.seed, is_folded)
        pool, source = ordered.pool[: request.pool_rows], roles.target_source
        targets = models.targets(task, roles, request)
        chosen = self.machine(request.machine)
        counts = partial(self._token_counts, asked.task, request.seed, is_folded, len(pool), request.test_rows)
        context = PlanningContext(
            request=request,
            task=task.name,
            encoding=Encoding(task.segment_names, task.form, task.metric, roles.judge),
            teacher=roles.teacher,
            student=roles.student,
            shapes={model.ref: models.shape(model) for model in (roles.teacher, roles.student)},
            tokens=_OnDemand(
                {
                    reading_key(model.ref, reading): partial(counts, model, reading)
                    for model in roles.used
                    for reading in _readings(task, models.shape(model).family)
                }
            ),
            longest_answer={model.ref: models.longest_answer(task, model) for model in roles.used},
            target_specs={(source.ref, roles.student.ref): targets}
            if source is not None and targets is not None
            else {},
            machine=chosen,
            machine_price=self.price_book.hour(chosen.price_item),
            offers=_OnDemand(
                {spec.name: partial(self._offer, asked.task, request.seed, is_folded, spec) for spec in request.sellers}
            ),
            eval_seller=seller_name(task.eval_seller),
            dev_seed=_dev_seed(task),
            test_labels=self._test_labels(asked.task, request, is_folded),
            train_digest=ordered.train_digest,
            dev_digest=ordered.dev_digest,
            test_digest=ordered.test_digest(request.test_rows),
            pool_digests=ordered.pool_digests,
            n_carved=self._n_carved(asked.task, request),
            n_train=len(ordered.train),
            n_owned=ordered.n_owned,
            n_unlabelled=cache(partial(_n_unlabelled, ordered.train, ordered.pool)),
            n_pool=len(pool),
            n_dev=len(ordered.dev) if request.n_dev is None else request.n_dev,
            defaults={
                role: default_settings(family, task.kind)[role] for role, family in models.families(roles).items()
            },
            teach_defaults=TeachSettings(),
            windows={model.ref: models.window(model) for model in roles.used},
            poolings=_OnDemand(
                {(model.ref, mode): partial(models.pooling, model, mode) for model in roles.used for mode in POOLINGS}
            ),
        )
        parts, test = _pool_parts(data, len(pool)), ordered.first_test(request.test_rows)
        return PreparedRun(
            request, context, task, ordered.train, pool, ordered.dev, test, parts, self.price_book, asked
        )

    @cached(keep=OutlayError)
    def _folds(self, name: str) -> Folds:
        return Folds.of(*self.load(name))

    def _n_carved(self, name: str, request: Request) -> Callable[[int], int]:
        """Return the function that says how many of so many labels are kept for dev."""
        if request.dev == "folds":
            return partial(self._folds(name).n_dev, request.seed)
        return self.load(name)[0].model_copy(update={"dev": request.dev, "n_dev": request.n_dev}).n_carved

    @cached()
    def _ordered(self, name: str, seed: int, is_folded: bool) -> SeededOrder:
        fold = self._folds(name).of_seed(seed) if is_folded else frozenset[str]()
        task, data = self.load(name)
        return SeededOrder.of(data, seed, fold, dev_seed=_dev_seed(task), buys_test=task.test == "bought")

    @cached()
    def _offer(self, name: str, seed: int, is_folded: bool, spec: SellerSpec) -> Offer:
        task, ordered = self.load(name)[0], self._ordered(name, seed, is_folded)
        return offer_of(spec, task, self.price_book, ordered, seed)

    def _test_labels(self, name: str, request: Request, is_folded: bool) -> Buy | None:
        """Return the purchase of the test labels, ``None`` where the rows have them."""
        task, ordered = self.load(name)[0], self._ordered(name, request.seed, is_folded)
        seller = request.seller(seller_name(task.eval_seller))
        if task.test != "bought" or seller is None:
            return None
        identity, n = (
            self._offer(name, TEST_SEED, is_folded, seller).identity,
            len(ordered.first_test(request.test_rows)),
        )
        return Buy("test", n, TEST_SEED, ordered.test_digest(), identity, seller=seller.name)

    @cached()
    def _token_counts(
        self,
        name: str,
        seed: int,
        is_folded: bool,
        n_pool: int,
        n_test: int | None,
        model: Model,
        reading: Reading,
    ) -> TokenCounts:
        (task, _), ordered = self.load(name), self._ordered(name, seed, is_folded)
        splits = (ordered.train, ordered.pool[:n_pool], ordered.dev, ordered.first_test(n_test))
        n_tokens = self._models.source_tokens(name, task, model, [row for split in splits for row in split], reading)
        return TokenCounts(
            *(array("q", accumulate((n_tokens[row.text] for row in split), initial=0)) for split in splits)
        )


def _dev_seed(task: Task) -> int | None:
    """Return the seed of the order in which dev labels are bought: one for all runs where somebody gives them, so that nobody is
    asked twice; ``None`` = the run's own."""
    return None if task.replays(task.eval_seller) else TEST_SEED


def _n_unlabelled(train: Sequence[Example], pool: Sequence[Example]) -> int:
    """Return the number of rows of the whole pool without a gold label whose text is no train row's: the same for every seed."""
    known = {row.text for row in train}
    return sum(row.label is None and row.text not in known for row in pool)


def precision_remarks(builder: RunBuilder, asked: Sequence[Request]) -> list[str]:
    """Return remarks on the precision of runs; see `outlay.hardware.precision.remarks`."""
    wanted: set[str] = set()
    for request in asked:
        named = builder.resolve(request).overrides
        wanted |= {named.get(role, {}).get("precision", request.precision) for role in ROLES_TRAINED}
    return remarks(wanted)


def _run_precision(asked: Request, overrides: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the precision of roles that name none; where all name one, the machine is not asked, so that run ids stay."""
    if all("precision" in overrides[role] for role in ROLES_TRAINED):
        return BF16
    return resolve(asked.precision)


def _shared(asked: Request) -> tuple[Hashable, ...]:
    """Return the cache key of a request without budget and N, as they are written: 2 epochs are not 2.0."""
    return tuple(repr(getattr(asked, each.name)) for each in fields(asked) if each.name not in _OWN)


def _task_digest(task: Task, data: TaskData) -> str:
    """Return the digest of a task file and of every example, without the keys of `_TOLD`."""
    told = _as_before(task.model_dump(mode="json", exclude=_TOLD))
    return key_of({"task": {**told, "training": settings_as_before(told["training"])}, "data": data.digest})


def _as_before(told: Any) -> Any:
    """Return a dumped task without later keys that say nothing, so that run ids stay."""
    if isinstance(told, dict):
        return {name: _as_before(value) for name, value in told.items() if (name, value) not in _LATER}
    return [_as_before(each) for each in told] if isinstance(told, list) else told


def _pool_parts(data: TaskData, n_rows: int) -> tuple[tuple[str, int], ...]:
    """Return names and sizes of the pool's parts; a pool limited to its first rows is one part.

    The spread of the first rows over the parts depends on the seed's order, and a request must not.
    """
    parts = tuple((part.name, len(part.examples)) for part in data.pool)
    return parts if n_rows == sum(n for _, n in parts) else (("+".join(name for name, _ in parts), n_rows),)
