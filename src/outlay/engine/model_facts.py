"""Facts of the models of runs, each read once: roles, shapes, limits and token counts, and the checks that depend on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlay.engine.choices import judge_of
from outlay.errors import UnknownModel, UsageError
from outlay.models.pooling import Pooling, pooling_of
from outlay.models.reference import fingerprint, parse_ref
from outlay.models.shape import ModelShape, shape_of
from outlay.models.window import Window, check_handover, window_of
from outlay.plan.cache import Memo, cached
from outlay.plan.request import Request
from outlay.plan.steps import Judge, Model
from outlay.plan.strategies import strategy
from outlay.settings import (
    AUTO_METHOD,
    TEMPERATURES,
    TrainSettings,
    check_method,
    default_settings,
    peft_methods,
    role_settings,
    without_auto_method,
)
from outlay.spec import Family, Reading, TargetSpec, TaskSpec, can_answer, target_spec
from outlay.tasks.example import Example
from outlay.tasks.task import Task


@dataclass(frozen=True, slots=True)
class ModelRoles:
    """Models of one run by role. ``used``: the models that are trained or teach, whatever else is named."""

    teacher: Model
    student: Model
    judge: Judge | None
    used: tuple[Model, ...]
    target_source: Model | None
    """Model whose targets the student learns from; ``None`` where the student learns from labels."""


class ModelFacts:
    """Facts of models, each read from its checkpoint once.

    ``tokens``: folder of tokenised texts, for this process's steps and for the next process; ``None`` = nowhere.
    """

    def __init__(self, memo: Memo, tokens: Path | None) -> None:
        self.memo = memo
        self._tokens = tokens
        self._source_tokens: dict[tuple[str, str, Window, Reading], dict[str, int]] = {}

    def roles(self, task: Task, asked: Request) -> ModelRoles:
        """Return the models of a run by role, and refuse families that cannot do the task.

        Raises:
            UsageError: an encoder for a task with generated answers, or no encoder for the metric.
            UnknownModel: a reference that leads nowhere.
        """
        policy = strategy(asked.strategy)
        base = asked.base or asked.teacher
        # A teacher may be a cut of the base too (Kang et al. 2023, Figure 5, compares sizes of teachers).
        origin = base if parse_ref(asked.teacher).needs_base else asked.teacher
        teacher = Model(asked.teacher, origin, self._fingerprint(asked.teacher, origin))
        ref = asked.general if policy.starts_general else asked.student
        student = Model(ref, base, self._fingerprint(ref, base))
        source = {"teacher": teacher, "student": student, None: None}[policy.taught_by]
        used = (student,) if source is None or source == student else (teacher, student)
        for model in used:
            if not can_answer(self.shape(model).family, task.kind):
                raise UsageError(
                    f"model {model.ref!r} is an encoder and cannot write the answers of task {task.name}; "
                    "name a seq2seq or causal model, such as a T5"
                )
        return ModelRoles(teacher, student, judge_of(task, asked.metric_model), used, source)

    @cached(keep=UnknownModel)
    def _fingerprint(self, ref: str, base: str) -> str:
        """Return the fingerprint of a checkpoint; a failure, which may have asked the hub, is cached too."""
        return fingerprint(ref, base=base)

    @cached()
    def shape(self, model: Model) -> ModelShape:
        """Return the shape of a model."""
        return shape_of(model.ref, base=model.base)

    @cached()
    def window(self, model: Model) -> Window:
        """Return the limits on the tokens that a model reads and writes."""
        return window_of(model.ref, base=model.base)

    @cached()
    def pooling(self, model: Model, mode: str) -> Pooling:
        """Return the pooling of a model; ``mode``: ``declared``, or one in place of that.

        Raises:
            UnknownModel: the model declares one that is not known here.
        """
        return pooling_of(model.ref, base=model.base, mode=mode)

    @cached()
    def _has_same_tokens(self, one: Model, other: Model) -> bool:
        from outlay.models.loading import same_tokenizer

        return same_tokenizer(one.ref, one.base, other.ref, other.base)

    def families(self, roles: ModelRoles) -> dict[str, Family]:
        """Return the families of models by the role of their settings."""
        teacher, student = self.shape(roles.teacher).family, self.shape(roles.student).family
        return {"teacher": teacher, "student": student, "distil": student}

    def targets(self, task: Task, roles: ModelRoles, request: Request) -> TargetSpec | None:
        """Return the kind of targets for the student; ``None`` without a teacher."""
        source, student = roles.target_source, roles.student
        if source is None:
            return None
        taught = "teacher" if source == roles.teacher else "student"
        methods = [request.overrides.get(role, {}).get("method", "full") for role in (taught, "distil")]
        chooses = any(method != "full" and method not in (AUTO_METHOD, *peft_methods()) for method in methods)
        sides = [(shape.family, shape.vocab_size) for shape in map(self.shape, (source, student))]
        found = target_spec(task.kind, sides[0], sides[1], lambda: self._has_same_tokens(source, student))
        # A head on pooled vectors, or on words, chooses among classes, whatever family its encoder is of.
        return TargetSpec("classes") if task.kind == "classification" and chooses else found

    def longest_answer(self, task: Task, model: Model) -> int:
        """Return the most tokens of an answer; 0 for an encoder."""
        if self.shape(model).family == "encoder":
            return 0
        from outlay.train.api import longest_answer

        return longest_answer(model.ref, model.base, task.form)

    def source_tokens(
        self, name: str, task: Task, model: Model, rows: Sequence[Example], reading: Reading = "whole"
    ) -> Mapping[str, int]:
        """Return the number of tokens by text, counted once per task and checkpoint. ``name``: the task as it was asked for."""
        known = self._source_tokens.setdefault((name, model.fingerprint, self.window(model), reading), {})
        missing = {row.text: row for row in rows if row.text not in known}
        if missing:
            from outlay.models.token_cache import keep_in
            from outlay.train.api import count_tokens

            keep_in(self._tokens)
            sources = model_inputs(task, list(missing.values()), self.shape(model).family)
            # Whatever is pooled, a text is cut at the same place.
            pooling = None if reading == "whole" else self.pooling(model, "mean")
            counts = count_tokens(model.ref, model.base, task.form, sources, pooling, reading)
            known.update(zip(missing, counts, strict=True))
        return known

    # --- checks ------------------------------------------------------------------------------------------------------

    def check(self, task: Task, roles: ModelRoles, request: Request) -> None:
        """Refuse a resolved request that its models cannot meet; this loads tokenizers and no weights.

        Raises:
            UsageError: a wrong choice.
            LabelError: a tokenizer that cannot spell a label.
            UnknownModel: a model without a tokenizer.
        """
        trainings = self._trainings(task, roles, request)
        for model, settings in trainings.items():
            n_segments = len(task.segment_names) if self.shape(model).family == "encoder" else 1
            self._check_trainable(model, task.form, n_segments, settings)
        targets = self.targets(task, roles, request)
        if targets is None or roles.target_source is None:
            return
        distil = trainings[roles.student][-1]
        if targets.target != "text" and distil.temperature not in TEMPERATURES:
            raise UsageError(
                f"distil.temperature is {distil.temperature:g}, and a teacher writes its targets for "
                f"{', '.join(f'{t:g}' for t in TEMPERATURES)}; choose one of them"
            )
        teacher, student = (self.window(each).fit(task.form) for each in (roles.target_source, roles.student))
        check_handover(targets.target, teacher, student, roles.student.ref)
        if distil.objective == "published" and targets.target != "tokens":
            raise UsageError(
                "the published objective needs a teacher and a student that write their answers with one tokenizer; "
                f"these hand over {targets.target}, so use objective=masked"
            )

    def _trainings(self, task: Task, roles: ModelRoles, request: Request) -> dict[Model, tuple[TrainSettings, ...]]:
        """Return the models that a run trains, each with the settings of its trainings in order."""
        source, student = roles.target_source, roles.student
        trained = [(student, "student")]
        if source is not None:
            trained = [(source, "teacher" if source == roles.teacher else "student"), (student, "distil")]
        families = self.families(roles)
        found: dict[Model, tuple[TrainSettings, ...]] = {}
        for model, role in trained:
            defaults = default_settings(families[role], task.kind)[role]
            settings = role_settings(defaults, without_auto_method(request.overrides.get(role, {})))
            check_method(settings, task.kind, families[role], learns_from="targets" if role == "distil" else "labels")
            found[model] = (*found.get(model, ()), settings)
        return found

    @cached()
    def _check_trainable(
        self, model: Model, form: TaskSpec, n_segments: int, settings: tuple[TrainSettings, ...]
    ) -> None:
        """Check that a model can read a text, spell the answers and be trained so."""
        from outlay.train.api import check_model

        check_model(model.ref, model.base, form, n_segments, settings)


def model_inputs(task: Task, rows: Sequence[Example], family: Family) -> list[tuple[str, ...]]:
    """Return a model's input of each row: the task's segments for an encoder, the whole text for any other family."""
    return [task.segments_of(row) if family == "encoder" else (row.text,) for row in rows]
