"""Preparation of runs: from the options of a user to a request with its data and planning context, before money is spent."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

from outlay.engine.choices import dev_choice, judge_of
from outlay.engine.sellers import chosen_sellers, make_seller, offer_of
from outlay.errors import OutlayError, UnknownModel, UsageError
from outlay.hardware.precision import AUTO, BF16, check_asked, remarks, resolve, without_auto
from outlay.labels.annotator import Annotator
from outlay.models.reference import fingerprint, parse_ref
from outlay.models.shape import ModelShape, shape_of
from outlay.models.window import Window, check_handover, window_of
from outlay.money.amounts import PriceBook
from outlay.money.machines import Machine, machine
from outlay.plan.cache import Memo, once
from outlay.plan.context import Offer, PlanningContext, TokenCounts
from outlay.plan.request import (
    DEFAULT_GENERAL,
    DEFAULT_MACHINE,
    DEFAULT_STUDENT,
    DEFAULT_TEACHER,
    Request,
    SellerSpec,
    frozen_overrides,
)
from outlay.plan.steps import HUMAN, Buy, Encoding, Judge, Model
from outlay.plan.strategies import strategy as strategy_named
from outlay.settings import DEFAULT_THREADS, TEMPERATURES, TeachSettings, TrainSettings, default_settings, role_settings
from outlay.spec import Family, TargetSpec, can_answer, target_spec
from outlay.storage.store import key_of
from outlay.tasks.example import Example
from outlay.tasks.loading import load_data
from outlay.tasks.overrides import Role, overrides_of
from outlay.tasks.splits import SeededOrder, TaskData
from outlay.tasks.task import Task, load_task


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one run, as the user gives them; every field but the first three has a default."""

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
    sellers: tuple[SellerSpec, ...] = (SellerSpec(),)
    """Sellers on offer; those that the strategy does not buy from are ignored, except `HUMAN`."""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    base: str | None = None
    """Model that ``cut:`` and ``tiny:`` students are made from; ``None`` = the teacher."""
    metric_model: str | None = None
    """Encoder that `bert_ibleu` compares texts with; ``None`` = as the task says."""
    general: str = DEFAULT_GENERAL
    """The generally distilled checkpoint that `general_distill` starts from."""
    precision: str = AUTO
    """``auto`` (by the speed of this machine), ``bf16`` or ``fp32``, where neither task nor ``overrides`` name one for a role."""

    def __post_init__(self) -> None:
        check_asked(self.precision)


ROLES_TRAINED: tuple[Role, ...] = get_args(Role)
_OWN = ("budget_micros", "n_initial")
"""Options that decide neither rows nor models."""


@dataclass(frozen=True, slots=True)
class ModelRoles:
    """Models of one run by role. ``used``: the models that are trained or teach, whatever else is named."""

    teacher: Model
    student: Model
    judge: Judge | None
    used: tuple[Model, ...]
    speaker: Model | None
    """Model whose targets the student learns from; ``None`` where the student learns from labels."""


@dataclass(frozen=True)
class PreparedRun:
    """One run, ready to be quoted and executed: rows in their seeded orders, and the planning context."""

    request: Request
    known: PlanningContext
    task: Task
    train: list[Example]
    pool: list[Example]
    dev: list[Example]
    test: list[Example]
    pool_parts: tuple[tuple[str, int], ...]
    price_book: PriceBook
    options: Options

    def is_precision_asked(self, precision: str) -> bool:
        """Return whether a step's precision was asked for, and not chosen by the machine."""
        named = dict(self.request.overrides)
        return (
            self.options.precision != AUTO
            or precision != self.request.precision
            or all("precision" in dict(named.get(role, ())) for role in ROLES_TRAINED)
        )

    def sources(self, rows: Sequence[Example], ref: str) -> list[tuple[str, ...]]:
        """Return a model's input of each row: the task's segments for an encoder, the whole text for any other family."""
        return _sources(self.task, rows, self.known.shapes[ref].family)

    def seller_of(self, step: Buy) -> Annotator:
        """Build the seller of a purchase, which replays the gold labels of its split.

        Raises:
            TaskFileError: a row without a gold label.
        """
        spec = self.request.seller(step.seller)
        if spec is None:
            raise UsageError(
                f"the request of strategy {self.request.strategy} names no seller {step.seller!r}; name it too"
            )
        rows = self.train if step.split == "train" else self.dev
        return make_seller(spec, rows, self.task, self.price_book, self.request.seed)


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
        self._tokens = tokens
        self._machine_files = machines
        self._data_root = data_root
        self._lengths: dict[tuple[str, str, Window], dict[str, int]] = {}
        self._shapes: dict[tuple[str, str], ModelShape] = {}
        self._same_tokens: dict[tuple[str, str], bool] = {}
        self.memo = Memo()
        self.notes: list[str] = []
        """Decisions on the format of the data files, a sentence each."""

    def load(self, name: str) -> tuple[Task, TaskData]:
        """Return a task and its data, checked for leaks."""

        def loaded() -> tuple[Task, TaskData]:
            task = load_task(name)
            data = load_data(task, self._data_root)
            self.notes += [note for note in data.notes if note not in self.notes]
            return task, data

        return self.memo.once(("load", name), loaded, keep=OutlayError)

    @once
    def name_of(self, task: str) -> str:
        """Return the name of a task, whose data may be missing; the name asked for where the task cannot be read."""
        try:
            return load_task(task).name
        except OutlayError:
            return task

    @once
    def machine(self, name: str) -> Machine:
        """Return a machine of the shipped or the user's files.

        Raises:
            UnknownItem: lists the known ones.
        """
        return machine(name, self._machine_files)

    def request(self, options: Options) -> Request:
        """Return the request of ``options``; this reads the data and loads no model.

        Raises:
            UsageError: an option is wrong; the error names one at a time.
        """
        # The presence of N decides what is refused, its number does not.
        at = ("request", options.n_initial is None, *_shared(options))
        request = self.memo.once(at, lambda: self._request(options))
        return replace(request, budget_micros=options.budget_micros, n_initial=options.n_initial)

    def _request(self, options: Options) -> Request:
        task, data = self.load(options.task)
        chosen = self.machine(options.machine)
        self.price_book.hour(chosen.price_item)
        self.price_book.label(task.price_item)
        dev, n_dev = dev_choice(task, data, options.dev, options.n_dev)
        cast = self._cast(task, options)
        policy = strategy_named(options.strategy)
        sellers = chosen_sellers(policy, task, self.price_book, options.sellers, options.n_initial)
        families = self._families_by_role(cast)
        given = options.overrides
        overrides: dict[str, dict[str, Any]] = {role: without_auto(pairs) for role, pairs in given.items()}
        for each in ROLES_TRAINED:
            overrides[each] = overrides_of(task.training, families[each], each, given.get(each, {}))
        models: list[Any] = [cast.teacher.parameters(), cast.student.parameters()]
        request = Request(
            task=task.name,
            task_digest=_task_digest(task, data),
            strategy=options.strategy,
            budget_micros=options.budget_micros,
            price_book=self.price_book.digest,
            models=key_of(models if cast.judge is None else [*models, cast.judge.parameters()]),
            n_initial=options.n_initial,
            seed=options.seed,
            teacher=options.teacher,
            student=cast.student.ref,
            machine=chosen.name,
            machine_digest=key_of(chosen.identity()),
            student_training=options.student_training,
            pool_rows=options.pool_rows,
            dev=dev,
            n_dev=n_dev,
            threads=options.threads,
            sellers=sellers,
            overrides=frozen_overrides(overrides),
            base=None if options.base == options.teacher else options.base,
            metric_model=options.metric_model,
            precision=_run_precision(options, overrides),
        )
        for role, pairs in request.overrides:
            settings = TeachSettings() if role == "teach" else default_settings(families[role], task.kind)[role]
            settings.changed(dict(pairs))
        return request

    def check(self, options: Options) -> None:
        """Refuse options that the models cannot meet, before money is spent; this loads tokenizers and no weights.

        Raises:
            UsageError: an option is wrong.
            LabelError: a tokenizer that cannot spell a label.
            UnknownModel: a model without a tokenizer.
        """
        request = self.request(options)
        self.memo.once(("check", *_shared(options)), lambda: self._check(options, request), keep=OutlayError)

    def _check(self, options: Options, request: Request) -> None:
        task, _ = self.load(options.task)
        cast = self._cast(task, options)
        for model, settings in self._trainings(task, cast, request).items():
            self._check_able(task, model, settings)
        handover = self._handover(task, cast)
        if handover is not None and handover.target != "text":
            self._check_temperature(task, cast, request)
        if handover is not None and cast.speaker is not None:
            teacher, student = (self._window(each).fit(task.form) for each in (cast.speaker, cast.student))
            check_handover(handover.target, teacher, student, cast.student.ref)
        objective = dict(next((pairs for role, pairs in request.overrides if role == "distil"), ())).get("objective")
        if handover is not None and objective == "published" and handover.target != "tokens":
            raise UsageError(
                "the published objective needs a teacher and a student that write their answers with one tokenizer; "
                f"these hand over {handover.target}, so use objective=masked"
            )

    def prepare(self, options: Options) -> PreparedRun:
        """Return a run with its rows in order, shapes and token counts, which runs that differ in budget and N alone share."""
        self.check(options)
        request = self.request(options)
        prepared = self.memo.once(("prepare", *_shared(options)), lambda: self._prepare(options, request))
        known = prepared.known.asked(request.budget_micros, request.n_initial)
        return replace(prepared, request=known.request, known=known, options=options)

    def _prepare(self, options: Options, request: Request) -> PreparedRun:
        task, data = self.load(options.task)
        cast = self._cast(task, options)
        ordered = self.memo.once(("ordered", options.task, request.seed), lambda: SeededOrder.of(data, request.seed))
        train, dev, pool = ordered.train, ordered.dev, ordered.pool[: request.pool_rows]
        rows = {"train": train, "dev": dev, "pool": pool, "test": data.test}
        chosen, families = self.machine(request.machine), self._families_by_role(cast)
        handover = self._handover(task, cast)
        spoken = {} if handover is None or cast.speaker is None else {(cast.speaker.ref, cast.student.ref): handover}
        known = PlanningContext(
            request=request,
            task=task.name,
            encoding=Encoding(task.segment_names, task.form, task.metric, cast.judge),
            teacher=cast.teacher,
            student=cast.student,
            shapes={model.ref: self._shape(model) for model in (cast.teacher, cast.student)},
            tokens={model.ref: self._token_counts(options, task, model, rows) for model in cast.used},
            longest_answer={model.ref: self._longest_answer(task, model) for model in cast.used},
            handovers=spoken,
            machine=chosen,
            machine_price=self.price_book.hour(chosen.price_item),
            offers={spec.name: self._offer(options.task, task, spec, train, request.seed) for spec in request.sellers},
            train_digest=ordered.train_digest,
            dev_digest=ordered.dev_digest,
            test_digest=ordered.test_digest,
            pool_digests=ordered.pool_digests,
            n_carved=task.model_copy(update={"dev": request.dev or "none", "n_dev": request.n_dev}).n_carved,
            n_train=len(train),
            n_pool=len(pool),
            n_dev=len(dev) if request.n_dev is None else request.n_dev,
            defaults={role: default_settings(family, task.kind)[role] for role, family in families.items()},
            teach_defaults=TeachSettings(),
            windows={model.ref: self._window(model) for model in cast.used},
        )
        parts = _pool_parts(data, len(pool))
        return PreparedRun(request, known, task, train, pool, dev, data.test, parts, self.price_book, options)

    def _offer(self, name: str, task: Task, spec: SellerSpec, rows: Sequence[Example], seed: int) -> Offer:
        return self.memo.once(
            ("seller", name, seed, spec), lambda: offer_of(spec, make_seller(spec, rows, task, self.price_book, seed))
        )

    # --- models ------------------------------------------------------------------------------------------------------

    def _cast(self, task: Task, options: Options) -> ModelRoles:
        """Return the models of a run by role, and refuse families that cannot do the task.

        Raises:
            UsageError: an encoder for a task with generated answers, or no encoder for the metric.
            UnknownModel: a reference that leads nowhere.
        """
        policy = strategy_named(options.strategy)
        base = options.base or options.teacher
        # A teacher may be a cut of the base too (Kang et al. 2023, Figure 5, compares sizes of teachers).
        origin = base if parse_ref(options.teacher).needs_base else options.teacher
        teacher = Model(options.teacher, origin, self._fingerprint(options.teacher, origin))
        ref = options.general if policy.starts_general else options.student
        student = Model(ref, base, self._fingerprint(ref, base))
        speaker = {"teacher": teacher, "student": student, None: None}[policy.taught_by]
        used = (student,) if speaker is None or speaker == student else (teacher, student)
        for model in used:
            if not can_answer(self._shape(model).family, task.kind):
                raise UsageError(
                    f"model {model.ref!r} is an encoder and cannot write the answers of task {task.name}; "
                    "name a seq2seq or causal model, such as a T5"
                )
        return ModelRoles(teacher, student, judge_of(task, options.metric_model), used, speaker)

    def _fingerprint(self, ref: str, base: str) -> str:
        """Return the fingerprint of a checkpoint, read once; a failure, which may have asked the hub, is cached too."""
        return self.memo.once(("fingerprint", ref, base), lambda: fingerprint(ref, base=base), keep=UnknownModel)

    def _shape(self, model: Model) -> ModelShape:
        at = (model.ref, model.base)
        if at not in self._shapes:
            self._shapes[at] = shape_of(model.ref, base=model.base)
        return self._shapes[at]

    def _families_by_role(self, cast: ModelRoles) -> dict[str, Family]:
        teacher, student = self._shape(cast.teacher).family, self._shape(cast.student).family
        return {"teacher": teacher, "student": student, "distil": student}

    def _window(self, model: Model) -> Window:
        return self.memo.once(("window", model.ref, model.base), lambda: window_of(model.ref, base=model.base))

    def _trainings(self, task: Task, cast: ModelRoles, request: Request) -> dict[Model, tuple[TrainSettings, ...]]:
        """Return the models that a run trains, each with the settings of its trainings in order."""
        families, given = self._families_by_role(cast), dict(request.overrides)
        roles = (
            [(cast.student, "student")]
            if cast.speaker is None
            else [(cast.speaker, "teacher" if cast.speaker == cast.teacher else "student"), (cast.student, "distil")]
        )
        found: dict[Model, tuple[TrainSettings, ...]] = {}
        for model, role in roles:
            settings = role_settings(default_settings(families[role], task.kind)[role], dict(given.get(role, ())))
            found[model] = (*found.get(model, ()), settings)
        return found

    def _check_temperature(self, task: Task, cast: ModelRoles, request: Request) -> None:
        distil = self._trainings(task, cast, request)[cast.student][-1]
        if distil.temperature not in TEMPERATURES:
            raise UsageError(
                f"distil.temperature is {distil.temperature:g}, and a teacher writes its targets for "
                f"{', '.join(f'{t:g}' for t in TEMPERATURES)}; choose one of them"
            )

    def _check_able(self, task: Task, model: Model, settings: tuple[TrainSettings, ...]) -> None:
        """Check that a model can read a text, spell the answers and be trained so; once per form and checkpoint."""
        from outlay.train.api import check_model

        asked = (model.ref, model.base, task.form, len(_segments(task, self._shape(model).family)), settings)
        self.memo.once(("able", model.fingerprint, *asked), lambda: check_model(*asked))

    def _handover(self, task: Task, cast: ModelRoles) -> TargetSpec | None:
        """Return the kind of targets for the student; ``None`` without a teacher."""
        if cast.speaker is None:
            return None
        sides = [(shape.family, shape.vocab_size) for shape in map(self._shape, (cast.speaker, cast.student))]
        speaker = cast.speaker
        return target_spec(task.kind, sides[0], sides[1], lambda: self._has_same_tokens(speaker, cast.student))

    def _has_same_tokens(self, one: Model, other: Model) -> bool:
        at = (one.fingerprint, other.fingerprint)
        if at not in self._same_tokens:
            from outlay.models.loading import same_tokenizer

            self._same_tokens[at] = same_tokenizer(one.ref, one.base, other.ref, other.base)
        return self._same_tokens[at]

    def _longest_answer(self, task: Task, model: Model) -> int:
        if self._shape(model).family == "encoder":
            return 0
        from outlay.train.api import longest_answer

        return longest_answer(model.ref, model.base, task.form)

    def _token_counts(
        self, options: Options, task: Task, model: Model, rows: Mapping[str, list[Example]]
    ) -> TokenCounts:
        """Return token counts, counted per row once per task and checkpoint, then summed once in each seed's order."""
        at = ("tokens", options.task, options.seed, model.fingerprint, self._window(model), len(rows["pool"]))
        return self.memo.once(at, lambda: self._counted(options.task, task, model, rows))

    def _counted(self, name: str, task: Task, model: Model, rows: Mapping[str, list[Example]]) -> TokenCounts:
        known = self._lengths.setdefault((name, model.fingerprint, self._window(model)), {})
        missing = {e.text: e for split in rows.values() for e in split if e.text not in known}
        if missing:
            from outlay.models.token_cache import keep_in
            from outlay.train.api import count_tokens

            keep_in(self._tokens)
            sources = _sources(task, list(missing.values()), self._shape(model).family)
            known.update(zip(missing, count_tokens(model.ref, model.base, task.form, sources), strict=True))
        sums = {at: array("q", accumulate((known[e.text] for e in split), initial=0)) for at, split in rows.items()}
        return TokenCounts(sums["train"], sums["pool"], sums["dev"], sums["test"])


def precision_remarks(workbench: RunBuilder, asked: Sequence[Options]) -> list[str]:
    """Return remarks on the precision of runs; see `outlay.hardware.precision.remarks`."""
    wanted: set[str] = set()
    for options in asked:
        named = {role: dict(pairs).get("precision") for role, pairs in workbench.request(options).overrides}
        wanted |= {named.get(role) or options.precision for role in ROLES_TRAINED}
    return remarks(wanted)


def _run_precision(options: Options, overrides: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the precision of roles that name none; where all name one, the machine is not asked, so that run ids stay."""
    if all("precision" in overrides[role] for role in ROLES_TRAINED):
        return BF16
    return resolve(options.precision)


def _shared(options: Options) -> tuple[Hashable, ...]:
    """Return the cache key of options without budget and N, as they are written: 2 epochs are not 2.0."""
    return tuple(repr(getattr(options, each.name)) for each in fields(options) if each.name not in _OWN)


def added_micros(prepared: PreparedRun) -> int | None:
    """Return the budget beyond the initial labels, in micro-dollars; ``None`` where N is chosen by a rule."""
    n_initial = prepared.request.n_initial
    if n_initial is None:
        return None
    people = prepared.known.offer(HUMAN)
    initial = people.price.cost_micros(n_initial * people.redundancy)
    return max(0, prepared.request.budget_micros - initial)


def _task_digest(task: Task, data: TaskData) -> str:
    """Return the digest of a task file and of every example, without description and published results."""
    told = task.model_dump(mode="json", exclude={"description", "published"})
    return key_of({"task": told, "data": data.digest})


def _pool_parts(data: TaskData, n_rows: int) -> tuple[tuple[str, int], ...]:
    """Return names and sizes of the pool's parts; a pool limited to its first rows is one part.

    The spread of the first rows over the parts depends on the seed's order, and a request must not.
    """
    parts = tuple((part.name, len(part.examples)) for part in data.pool)
    return parts if n_rows == sum(n for _, n in parts) else (("+".join(name for name, _ in parts), n_rows),)


def _segments(task: Task, family: Family) -> tuple[str, ...]:
    """Return the names of a family's input segments: the task's for an encoder, the whole text for any other family."""
    return task.segment_names if family == "encoder" else ("text",)


def _sources(task: Task, rows: Sequence[Example], family: Family) -> list[tuple[str, ...]]:
    return [task.segments_of(row) if family == "encoder" else (row.text,) for row in rows]
