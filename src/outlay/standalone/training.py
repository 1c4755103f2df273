"""Training as single steps: on gold answers, and on a teacher's stored targets."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import UsageError
from outlay.hardware.precision import AUTO, remarks, resolve
from outlay.metrics.scorer import Scorer
from outlay.models.reference import fingerprint, resolve_folder
from outlay.models.window import check_handover, window_of
from outlay.settings import (
    AUTO_METHOD,
    TrainSettings,
    check_method,
    default_settings,
    method_options,
    role_settings,
    used_methods,
)
from outlay.settings.auto import ChosenMethod, choose_method
from outlay.spec import Family, TargetKind, TaskSpec, cut_lines
from outlay.standalone.evaluator import MetricAsked, dev_score, notes_on_dev, scorer_of
from outlay.standalone.forecast import training_seconds
from outlay.standalone.inputs import DataReader, TaskRow, check_count, rows_digest, sources_of
from outlay.standalone.output_dir import OutputDir
from outlay.standalone.profiling import new_profiler, profile_of_parts, seconds_of
from outlay.standalone.request import Data
from outlay.standalone.runtime import (
    RuntimeOptions,
    StepReport,
    flops_of,
    lock,
    n_processes,
    on_main,
    rank,
    refuse_family,
)
from outlay.standalone.targets_dir import TargetsFolder
from outlay.storage.files import writing
from outlay.tasks.overrides import Role, overrides_of
from outlay.text.listener import Listener
from outlay.train.progress import TokenCounter, TrainContext, TrainProgress

if TYPE_CHECKING:
    from outlay.models.loading import ModelSpec
    from outlay.train.api import DevTexts
    from outlay.train.profiler import Profiler

    Train = Callable[[ModelSpec, DevTexts | None, Path, TrainContext], TrainProgress]

TRAINING = "training.json"


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """Request of `finetune` or `distil`.

    ``model``, ``base``: as in `outlay.models.reference`; ``role``: whose defaults hold; ``overrides``: settings the user gave;
    ``accumulation``: forward passes per optimiser step and process.
    """

    model: str
    out: Path
    base: str | None = None
    role: Role = "student"
    data: Data = field(default_factory=Data)
    metric: MetricAsked = field(default_factory=MetricAsked)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    accumulation: int = 1
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)


def finetune(request: TrainingRequest, listener: Listener) -> StepReport:
    """Train a model on gold answers; ``request.out`` gets the best one by dev score, or the last one without a dev set.

    Raises:
        OutlayError: unsuitable rows, model, settings or output; one line.
    """
    data, reader = request.data, DataReader(request.data)
    if data.file is not None:
        rows = reader.file(Path(data.file), n=data.max_rows, needs_target=True)
    elif reader.task is None:
        raise UsageError("there is nothing to train on; name a --task or a --train-file")
    else:
        rows = reader.split("train", n=data.max_rows, seed=int(request.overrides.get("seed", 0)))
    form = reader.form()
    rows = reader.checked(rows, form)
    plan = _plan("finetune", request, reader, form, rows, {"train": rows_digest(rows)})

    def train(spec: ModelSpec, dev: DevTexts | None, out: Path, context: TrainContext) -> TrainProgress:
        from outlay.train import api as train_api
        from outlay.train.probe import TaskMetric

        golds = [row.gold or "" for row in rows]
        metric = None if plan.metric is None else TaskMetric.of(plan.metric)
        sources = plan.sources(rows)
        return train_api.finetune(spec, sources, golds, plan.settings, dev=dev, out=out, context=context, metric=metric)

    return plan.run(train, listener)


def distil(request: TrainingRequest, targets: Path, listener: Listener) -> StepReport:
    """Train a student on targets that `outlay teach` wrote; ``request.out`` gets it as in `finetune`.

    Raises:
        OutlayError: unsuitable targets, rows, student, settings or output; one line.
    """
    stored = TargetsFolder.open(targets)
    reader = DataReader(request.data)
    form = reader.form(stored.form)
    rows = stored.rows()[: check_count(request.data.max_rows)]
    inputs = {"targets": stored.digest, "n_rows": len(rows)}
    plan = _plan("distill", request, reader, form, rows, inputs, stored.kind)
    check_handover(stored.kind, form, plan.fitted, request.model)
    stored.check_student(request.model, request.base, plan.settings)
    golds = [row.gold for row in rows]
    if plan.settings.gold_weight > 0 and not any(gold is not None for gold in golds):
        raise UsageError(f"--gold-weight mixes in gold answers, and no row of {targets} has one; leave it out")

    def train(spec: ModelSpec, dev: DevTexts | None, out: Path, context: TrainContext) -> TrainProgress:
        from outlay.train import api as train_api

        sources, learnt = plan.sources(rows), stored.load(len(rows))
        return train_api.distil(spec, sources, learnt, plan.settings, gold=golds, dev=dev, out=out, context=context)

    return plan.run(train, listener)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Training with all options resolved, before a model is loaded.

    ``fitted``: the form lowered to the limits of the model; ``lowered``: a line for each limit it cannot keep; ``inputs``: the
    training data as the request on disk names them; ``scorer``: of the dev set, ``None`` without one; ``metric``: of the task,
    which a regression's strength may be chosen by, ``None`` for other methods; ``target``: as in `outlay.train.api.ModelSpec`.
    """

    command: str
    request: TrainingRequest
    form: TaskSpec
    family: Family
    settings: TrainSettings
    asked_precision: str
    rows: Sequence[TaskRow]
    dev: Sequence[TaskRow]
    scorer: Scorer | None
    metric: Scorer | None
    fitted: TaskSpec
    lowered: Sequence[str]
    inputs: Mapping[str, Any]
    target: TargetKind | None
    notes: Sequence[str]

    @property
    def base(self) -> str:
        """Return the base checkpoint; a real checkpoint is its own base."""
        return self.request.base or self.request.model

    def sources(self, rows: Sequence[TaskRow]) -> list[tuple[str, ...]]:
        """Return the inputs of rows for this model, one or two segments each."""
        return sources_of(rows, self.family, self.form.kind)

    def predicted_seconds(self) -> float | None:
        """Return the forecast of wall seconds; ``None`` where this machine's speed was not measured."""
        golds = [row.gold for row in (*self.rows, *self.dev) if row.gold is not None]
        spec = (self.request.model, self.base, self.form)
        rows, dev = self.sources(self.rows), self.sources(self.dev)
        return training_seconds(spec, rows, dev, golds, self.settings, self.request.runtime.threads, self.target)

    def run(self, train: Train, listener: Listener) -> StepReport:
        """Train in the output folder, from the last checkpoint of an earlier attempt."""
        runtime, output = self.request.runtime, OutputDir.folder(self.request.out)
        runtime.check()
        request = self._request()
        summary = on_main(lambda: output.check(request, overwrite=runtime.overwrite))
        if summary is not None:
            return StepReport.of_finished(summary)
        from outlay.train.api import check_model

        n_segments = len(self.sources(self.rows[:1])[0])
        check_model(self.request.model, self.base, self.form, n_segments, (self.settings,))
        for line in remarks([self.asked_precision]):
            listener.say(line)
        runtime.prepare()
        on_main(lambda: output.open(request))
        for line in self.lowered:
            listener.say(line)
        with lock(output):
            predicted = self.predicted_seconds()
            counter, profiler = TokenCounter(), new_profiler(runtime.profile)
            progress = self._train(output, counter, profiler, train, listener)
            report = replace(self._report(progress, counter, profiler), predicted_seconds=predicted)
            on_main(lambda: _keep(output, progress, report))
        return report

    def _request(self) -> dict[str, Any]:
        """Return the request: everything a user can ask for that decides the model; the number of processes does not."""
        settings = {name: value for name, value in self.settings.to_json().items() if name != "micro_batch_size"}
        return {
            "command": self.command,
            "model": self.request.model,
            "base": self.request.base,
            "model_sha256": on_main(lambda: fingerprint(self.request.model, base=self.request.base)),
            "form": self.form.to_json(),
            "settings": {**settings, "accumulation": self.request.accumulation},
            **self.inputs,
            "dev": None if self.scorer is None else {"rows": rows_digest(self.dev), **self.scorer.identity()},
            **({} if self.metric is None else {"chosen_by": self.metric.identity()}),
            "threads": self.request.runtime.threads,
        }

    def _train(
        self, output: OutputDir, counter: TokenCounter, profiler: Profiler | None, train: Train, listener: Listener
    ) -> TrainProgress:
        from outlay.models.loading import ModelSpec
        from outlay.storage.checkpoint_files import newest_checkpoint
        from outlay.train.api import DevTexts
        from outlay.train.trackers import open_tracker

        runtime, out = self.request.runtime, output.work / "model"
        listener.begin(f"{self.command} {self.request.model}")
        kept = newest_checkpoint(output.work / "checkpoints")
        if kept is not None:
            listener.say(f"going on from {kept.name.replace('-', ' ')}")
        on_main(lambda: _make_empty(out))
        dev: DevTexts | None = None
        if self.scorer is not None:
            scorer, rows = self.scorer, self.dev
            golds = [row.gold or "" for row in rows] if self.form.kind == "classification" else ()
            dev = DevTexts(self.sources(rows), lambda answers: dev_score(scorer, answers, rows), golds)
        spec = ModelSpec(self.request.model, self.base, self.form, self.settings.seed, self.target)
        tracker = None
        if rank() == 0:
            logged, folder = self.settings.to_json(), output.out / "tracking"
            tracker = open_tracker(runtime.report_to, name="outlay", folder=folder, settings=logged)
        on_progress = _TrainingLines(listener, self.settings.batch_size)
        context = TrainContext(
            counter, output.work, runtime.save_seconds, on_progress, runtime.save_steps, tracker, profiler
        )
        try:
            return train(spec, dev, out, context)
        finally:
            if tracker is not None:
                tracker.close()

    def _report(self, progress: TrainProgress, counter: TokenCounter, profiler: Profiler | None) -> StepReport:
        n_trained, n_inferred = progress.n_tokens_trained, progress.n_tokens_inferred
        flops = flops_of(self.request.model, self.request.base, self.form, n_trained, n_inferred)
        facts: dict[str, Any] = {
            "model": str(self.request.out),
            "n_rows": len(self.rows),
            "n_dev": len(self.dev),
            "dev": progress.best_score,
            "dev_score": None if self.scorer is None else self.scorer.main,
            "best_epoch": progress.best_epoch,
            "n_steps": progress.step,
            "stopped": progress.stopped,
            "n_parameters": progress.n_parameters,
            "n_processes": n_processes(),
            **({} if progress.strength is None else {"strength": progress.strength}),
            **({} if progress.temperature is None else {"temperature": progress.temperature}),
            "notes": [] if self.scorer is None else notes_on_dev(self.scorer, progress.best_score, self.dev),
        }
        if profiler is not None:
            # The FLOPs of an earlier attempt were not profiled.
            seen = None if counter.is_resumed else flops
            facts["profile"] = profile_of_parts([seconds_of(profiler)], seen, self.settings.precision)
        cut = cut_lines(
            self.fitted,
            len(self.rows),
            n_truncated=progress.n_truncated,
            n_answers_cut=progress.n_answers_cut,
            n_unaligned=progress.n_unaligned,
        )
        return StepReport(
            command=self.command,
            out=str(self.request.out),
            facts=facts,
            counts=[*self.notes, *self.lowered, *cut, *progress.notes],
            n_tokens_trained=n_trained,
            n_tokens_inferred=n_inferred,
            flops=None if flops is None else flops + progress.n_flops_fitted,
            seconds=round(counter.seconds, 3),
        )


def _plan(
    command: str,
    request: TrainingRequest,
    reader: DataReader,
    form: TaskSpec,
    rows: Sequence[TaskRow],
    inputs: Mapping[str, Any],
    target: TargetKind | None = None,
) -> _Plan:
    """Resolve open options and refuse a request that cannot work, before a model is loaded."""
    from outlay.models.shape import family_of

    resolve_folder(request.model, base=request.base)
    family = family_of(request.model, base=request.base)
    refuse_family(family, form, request.model)
    chosen = None
    task = None if reader.task is None else reader.task.training
    if overrides_of(task, family, request.role, request.overrides).get("method") == AUTO_METHOD:
        chosen = choose_method(
            kind=form.kind,
            family=family,
            is_pretrained=not request.model.startswith("tiny:"),
            is_cut=request.model.startswith("cut:"),
            is_pair=bool(rows) and len(sources_of(rows[:1], family, form.kind)[0]) == 2,
            learns_from="targets" if request.role == "distil" else "labels",
            n_labels=len(rows),
        )
    settings, asked_precision = _settings(request, family, form, reader, chosen)
    dev = reader.checked(_dev_rows(request.data, reader, settings.seed), form)
    scorer = scorer_of(request.metric, form, reader.task) if dev else None
    is_chosen = target is None and bool(form.labels) and settings.chosen.head == "probe"
    metric = scorer_of(request.metric, form, reader.task) if is_chosen else None
    _refuse_unused(request.overrides, settings, has_dev=scorer is not None)
    window = window_of(request.model, base=request.base)
    return _Plan(
        command=command,
        request=request,
        form=form,
        family=family,
        settings=settings,
        asked_precision=asked_precision,
        rows=rows,
        dev=dev,
        scorer=scorer,
        metric=metric,
        fitted=window.fit(form, request.model),
        lowered=window.lines(form, request.model),
        inputs=inputs,
        target=target,
        notes=[*reader.notes, *([chosen.why] if chosen is not None else [])],
    )


def _refuse_unused(overrides: Mapping[str, Any], settings: TrainSettings, *, has_dev: bool) -> None:
    for name in ("patience", "eval_steps", "eval_share"):
        if not has_dev and overrides.get(name) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is about the dev score, and there is no dev set; add --dev-file")
    for name, (kind, _) in method_options().items():
        if name in overrides and kind.method not in used_methods(settings):
            option, method = "--" + name.replace("_", "-"), kind.method
            raise UsageError(
                f"{option} is about {method}, and the method is {settings.method}; add --method {method}, or leave it out"
            )
    if overrides.get("pair", "auto") != "auto" and not settings.is_pooled:
        raise UsageError(f"--pair is about pooled vectors, and method {settings.method} reads none; leave it out")


def _settings(
    request: TrainingRequest, family: Family, form: TaskSpec, reader: DataReader, chosen: ChosenMethod | None
) -> tuple[TrainSettings, str]:
    """Return the settings (defaults, then the task's, then the user's, precision resolved) and the precision asked for.

    ``chosen``: the method in the place of ``auto``.
    """
    task = None if reader.task is None else reader.task.training
    given = overrides_of(task, family, request.role, request.overrides)
    asked = str(given.get("precision", AUTO))
    precision = on_main(lambda: resolve(asked)) if asked == AUTO else asked
    if given.get("method") == AUTO_METHOD:
        given |= chosen.settings if chosen is not None else {}
    settings = role_settings(default_settings(family, form.kind)[request.role], given, precision=precision)
    check_method(settings, form.kind, family, learns_from="targets" if request.role == "distil" else "labels")
    if request.accumulation < 1:
        raise UsageError(f"--accumulation is {request.accumulation}; it must be at least 1")
    if request.accumulation > 1:
        rows = -(-settings.batch_size // (n_processes() * request.accumulation))
        settings = settings.changed({"micro_batch_size": rows})
    return settings, asked


def _dev_rows(data: Data, reader: DataReader, seed: int) -> list[TaskRow]:
    """Return dev rows of the file, else of the task's dev split, which a training on another file does not use."""
    if data.dev_file is not None:
        return reader.file(Path(data.dev_file), n=data.max_dev_rows, needs_target=True)
    if reader.task is None or reader.task.data.dev is None or data.file is not None:
        return []
    return reader.split("dev", n=data.max_dev_rows, seed=seed)


class _TrainingLines:
    """Progress callback of a training: loss, and rows a second since the first call."""

    def __init__(self, listener: Listener, batch_size: int) -> None:
        self._listener = listener
        self._batch_size = batch_size
        self._first: tuple[int, float] | None = None

    def __call__(self, progress: TrainProgress, n_steps: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = progress.step, now
        step, began = self._first
        detail = f"loss {progress.loss_since / max(1, progress.steps_since):.4f}"
        if progress.step > step:
            speed = (progress.step - step) * self._batch_size / max(now - began, 1e-9)
            score = "" if progress.best_score is None else f", dev {progress.best_score:.2f}"
            detail += f", {speed:,.0f} rows/s{score}"
        self._listener.progress(progress.step, n_steps, detail)


def _keep(output: OutputDir, progress: TrainProgress, report: StepReport) -> None:
    """Move the model into the output folder, then write the history, and the summary last."""
    for path in sorted((output.work / "model").iterdir()):
        with writing(output.out / path.name):
            path.replace(output.out / path.name)
    names = ("dev", "dev_score", "best_epoch", "n_steps", "stopped", "n_parameters")
    facts = {name: report.facts[name] for name in names}
    output.write_json(output.out / TRAINING, {**facts, "counts": report.counts, "history": progress.history})
    output.finish(report.to_json())


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
