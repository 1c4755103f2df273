"""Preparation of runs: from the request of a user to a resolved one with its data and planning context, before money is spent."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

from outlay.engine.choices import dev_choice, judge_of
from outlay.engine.sellers import chosen_sellers, make_seller, offer_of
from outlay.errors import OutlayError, UnknownModel, UsageError
from outlay.hardware.precision import AUTO, BF16, remarks, resolve, without_auto
from outlay.labels.annotator import Annotator
from outlay.models.reference import fingerprint, parse_ref
from outlay.models.shape import ModelShape, shape_of
from outlay.models.window import Window, check_handover, window_of
from outlay.money.amounts import PriceBook
from outlay.money.machines import Machine, machine
from outlay.plan.cache import Memo, once
from outlay.plan.context import Offer, PlanningContext, TokenCounts
from outlay.plan.request import Digests, Request, SellerSpec
from outlay.plan.steps import HUMAN, Buy, Encoding, Judge, Model
from outlay.plan.strategies import strategy as strategy_named
from outlay.settings import TEMPERATURES, TeachSettings, TrainSettings, default_settings, role_settings
from outlay.spec import Family, TargetSpec, can_answer, target_spec
from outlay.storage.store import key_of
from outlay.tasks.example import Example
from outlay.tasks.loading import load_data
from outlay.tasks.overrides import Role, overrides_of
from outlay.tasks.splits import SeededOrder, TaskData
from outlay.tasks.task import Task, load_task

ROLES_TRAINED: tuple[Role, ...] = get_args(Role)
_OWN = ("budget_micros", "n_initial")
"""Fields of a request that decide neither rows nor models."""


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
    """One run, ready to be quoted and executed: rows in their seeded orders, and the planning context.

    ``request``: the resolved request; ``asked``: the same as the user made it.
    """

    request: Request
    known: PlanningContext
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

    def resolve(self, asked: Request) -> Request:
        """Return the resolved form of a request; this reads the data and loads no model.

        Raises:
            UsageError: a wrong choice; the error names one at a time.
        """
        # The presence of N decides what is refused, its number does not.
        at = ("request", asked.n_initial is None, *_shared(asked))
        request = self.memo.once(at, lambda: self._resolved(asked))
        return replace(request, budget_micros=asked.budget_micros, n_initial=asked.n_initial)

    def _resolved(self, asked: Request) -> Request:
        task, data = self.load(asked.task)
        chosen = self.machine(asked.machine)
        self.price_book.hour(chosen.price_item)
        self.price_book.label(task.price_item)
        dev, n_dev = dev_choice(task, data, asked.dev, asked.n_dev)
        cast = self._cast(task, asked)
        families, given = self._families_by_role(cast), asked.overrides
        overrides: dict[str, dict[str, Any]] = {role: without_auto(pairs) for role, pairs in given.items()}
        for each in ROLES_TRAINED:
            overrides[each] = overrides_of(task.training, families[each], each, given.get(each, {}))
        for role, pairs in overrides.items():
            settings = TeachSettings() if role == "teach" else default_settings(families[role], task.kind)[role]
            settings.changed(pairs)
        models: list[Any] = [cast.teacher.parameters(), cast.student.parameters()]
        return replace(
            asked,
            task=task.name,
            student=cast.student.ref,
            machine=chosen.name,
            dev=dev,
            n_dev=n_dev,
            sellers=chosen_sellers(
                strategy_named(asked.strategy), task, self.price_book, asked.sellers, asked.n_initial
            ),
            overrides={role: dict(sorted(overrides[role].items())) for role in sorted(overrides) if overrides[role]},
            base=None if asked.base == asked.teacher else asked.base,
            precision=_run_precision(asked, overrides),
            digests=Digests(
                task=_task_digest(task, data),
                price_book=self.price_book.digest,
                models=key_of(models if cast.judge is None else [*models, cast.judge.parameters()]),
                machine=key_of(chosen.identity()),
            ),
        )

    def check(self, asked: Request) -> None:
        """Refuse a request that the models cannot meet, before money is spent; this loads tokenizers and no weights.

        Raises:
            UsageError: a wrong choice.
            LabelError: a tokenizer that cannot spell a label.
            UnknownModel: a model without a tokenizer.
        """
        request = self.resolve(asked)
        self.memo.once(("check", *_shared(asked)), lambda: self._check(asked, request), keep=OutlayError)

    def _check(self, asked: Request, request: Request) -> None:
        task, _ = self.load(asked.task)
        cast = self._cast(task, asked)
        for model, settings in self._trainings(task, cast, request).items():
            self._check_able(task, model, settings)
        handover = self._handover(task, cast)
        if handover is not None and handover.target != "text":
            self._check_temperature(task, cast, request)
        if handover is not None and cast.speaker is not None:
            teacher, student = (self._window(each).fit(task.form) for each in (cast.speaker, cast.student))
            check_handover(handover.target, teacher, student, cast.student.ref)
        objective = request.overrides.get("distil", {}).get("objective")
        if handover is not None and objective == "published" and handover.target != "tokens":
            raise UsageError(
                "the published objective needs a teacher and a student that write their answers with one tokenizer; "
                f"these hand over {handover.target}, so use objective=masked"
            )

    def prepare(self, asked: Request) -> PreparedRun:
        """Return a run with its rows in order, shapes and token counts, which runs that differ in budget and N alone share."""
        self.check(asked)
        request = self.resolve(asked)
        prepared = self.memo.once(("prepare", *_shared(asked)), lambda: self._prepare(asked, request))
        known = prepared.known.asked(request.budget_micros, request.n_initial)
        return replace(prepared, request=known.request, known=known, asked=asked)

    def _prepare(self, asked: Request, request: Request) -> PreparedRun:
        task, data = self.load(asked.task)
        cast = self._cast(task, asked)
        ordered = self.memo.once(("ordered", asked.task, request.seed), lambda: SeededOrder.of(data, request.seed))
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
            tokens={model.ref: self._token_counts(asked, task, model, rows) for model in cast.used},
            longest_answer={model.ref: self._longest_answer(task, model) for model in cast.used},
            handovers=spoken,
            machine=chosen,
            machine_price=self.price_book.hour(chosen.price_item),
            offers={spec.name: self._offer(asked.task, task, spec, train, request.seed) for spec in request.sellers},
            train_digest=ordered.train_digest,
            dev_digest=ordered.dev_digest,
            test_digest=ordered.test_digest,
            pool_digests=ordered.pool_digests,
            n_carved=task.model_copy(update={"dev": request.dev, "n_dev": request.n_dev}).n_carved,
            n_train=len(train),
            n_pool=len(pool),
            n_dev=len(dev) if request.n_dev is None else request.n_dev,
            defaults={role: default_settings(family, task.kind)[role] for role, family in families.items()},
            teach_defaults=TeachSettings(),
            windows={model.ref: self._window(model) for model in cast.used},
        )
        parts = _pool_parts(data, len(pool))
        return PreparedRun(request, known, task, train, pool, dev, data.test, parts, self.price_book, asked)

    def _offer(self, name: str, task: Task, spec: SellerSpec, rows: Sequence[Example], seed: int) -> Offer:
        return self.memo.once(
            ("seller", name, seed, spec), lambda: offer_of(spec, make_seller(spec, rows, task, self.price_book, seed))
        )

    # --- models ------------------------------------------------------------------------------------------------------

    def _cast(self, task: Task, asked: Request) -> ModelRoles:
        """Return the models of a run by role, and refuse families that cannot do the task.

        Raises:
            UsageError: an encoder for a task with generated answers, or no encoder for the metric.
            UnknownModel: a reference that leads nowhere.
        """
        policy = strategy_named(asked.strategy)
        base = asked.base or asked.teacher
        # A teacher may be a cut of the base too (Kang et al. 2023, Figure 5, compares sizes of teachers).
        origin = base if parse_ref(asked.teacher).needs_base else asked.teacher
        teacher = Model(asked.teacher, origin, self._fingerprint(asked.teacher, origin))
        ref = asked.general if policy.starts_general else asked.student
        student = Model(ref, base, self._fingerprint(ref, base))
        speaker = {"teacher": teacher, "student": student, None: None}[policy.taught_by]
        used = (student,) if speaker is None or speaker == student else (teacher, student)
        for model in used:
            if not can_answer(self._shape(model).family, task.kind):
                raise UsageError(
                    f"model {model.ref!r} is an encoder and cannot write the answers of task {task.name}; "
                    "name a seq2seq or causal model, such as a T5"
                )
        return ModelRoles(teacher, student, judge_of(task, asked.metric_model), used, speaker)

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
        families, given = self._families_by_role(cast), request.overrides
        roles = (
            [(cast.student, "student")]
            if cast.speaker is None
            else [(cast.speaker, "teacher" if cast.speaker == cast.teacher else "student"), (cast.student, "distil")]
        )
        found: dict[Model, tuple[TrainSettings, ...]] = {}
        for model, role in roles:
            settings = role_settings(default_settings(families[role], task.kind)[role], given.get(role, {}))
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

    def _token_counts(self, asked: Request, task: Task, model: Model, rows: Mapping[str, list[Example]]) -> TokenCounts:
        """Return token counts, counted per row once per task and checkpoint, then summed once in each seed's order."""
        at = ("tokens", asked.task, asked.seed, model.fingerprint, self._window(model), len(rows["pool"]))
        return self.memo.once(at, lambda: self._counted(asked.task, task, model, rows))

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


def precision_remarks(workbench: RunBuilder, asked: Sequence[Request]) -> list[str]:
    """Return remarks on the precision of runs; see `outlay.hardware.precision.remarks`."""
    wanted: set[str] = set()
    for request in asked:
        named = workbench.resolve(request).overrides
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
