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
from outlay.models.window import ENDLESS, Window, check_handover, window_of
from outlay.settings import TrainSettings, default_settings, peft_options, role_settings
from outlay.spec import Family, TargetKind, TaskSpec, cut_lines
from outlay.standalone.evaluator import MetricAsked, dev_score, notes_on_dev, scorer_of
from outlay.standalone.forecast import training_seconds
from outlay.standalone.inputs import DataOptions, DataReader, TaskRow, rows_digest, sources_of
from outlay.standalone.output_dir import OutputDir
from outlay.standalone.profiling import new_stopwatch, profile_of_parts, seconds_of
from outlay.standalone.runtime import (
    RuntimeOptions,
    StepReport,
    alone,
    flops_of,
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
    from outlay.train.trackers import Tracker

    Learn = Callable[[ModelSpec, DevTexts | None, Path, TrainContext], TrainProgress]

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
    asked: DataOptions = field(default_factory=DataOptions)
    dev_file: Path | None = None
    max_dev_rows: int | None = None
    metric: MetricAsked = field(default_factory=MetricAsked)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    accumulation: int = 1
    running: RuntimeOptions = field(default_factory=RuntimeOptions)


def finetune(
    recipe: TrainingRequest, listener: Listener, *, train_file: Path | None = None, max_train_rows: int | None = None
) -> StepReport:
    """Train a model on gold answers; ``recipe.out`` gets the best one by dev score, or the last one without a dev set.

    Raises:
        OutlayError: unsuitable rows, model, settings or place; one line.
    """
    inputs = DataReader(recipe.asked)
    if train_file is not None:
        rows = inputs.file(train_file, n=max_train_rows, needs_target=True)
    elif inputs.task is None:
        raise UsageError("there is nothing to train on; name a --task or a --train-file")
    else:
        rows = inputs.split("train", n=max_train_rows, seed=int(recipe.overrides.get("seed", 0)))
    form = inputs.form()
    rows = inputs.checked(rows, form)
    plan = _plan("finetune", recipe, inputs, form, len(rows), own_dev=train_file is None)

    def learn(spec: ModelSpec, dev: DevTexts | None, out: Path, watch: TrainContext) -> TrainProgress:
        from outlay.train import api as train_api

        golds = [row.gold or "" for row in rows]
        return train_api.finetune(spec, plan.sources(rows), golds, plan.settings, dev=dev, out=out, context=watch)

    plan = plan.on({"train": rows_digest(rows)}, None, rows)
    return plan.run(learn, listener)


def distil(recipe: TrainingRequest, listener: Listener, *, targets: Path, max_rows: int | None = None) -> StepReport:
    """Train a student on targets that `outlay teach` wrote; ``recipe.out`` gets it as in `finetune`.

    Raises:
        OutlayError: unsuitable targets, rows, student, settings or place; one line.
    """
    stored = TargetsFolder.open(targets)
    inputs = DataReader(recipe.asked)
    form = inputs.form(stored.form)
    rows = stored.rows()[:max_rows]
    plan = _plan("distill", recipe, inputs, form, len(rows))
    check_handover(stored.kind, form, plan.fitted, recipe.model)
    stored.check_student(recipe.model, recipe.base, plan.settings)
    golds = [row.gold for row in rows]
    if plan.settings.gold_weight > 0 and not any(gold is not None for gold in golds):
        raise UsageError(f"--gold-weight mixes in gold answers, and no row of {targets} has one; leave it out")

    def learn(spec: ModelSpec, dev: DevTexts | None, out: Path, watch: TrainContext) -> TrainProgress:
        from outlay.train import api as train_api

        words = stored.load(len(rows))
        return train_api.distil(
            spec, plan.sources(rows), words, plan.settings, gold=golds, dev=dev, out=out, context=watch
        )

    plan = plan.on({"targets": stored.digest, "n_rows": len(rows)}, stored.kind, rows)
    return plan.run(learn, listener)


@dataclass(frozen=True, slots=True)
class Watched:
    """Counter of a training's tokens and profiler of its seconds."""

    gauge: TokenCounter
    stopwatch: Profiler | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """Training with all options resolved, before a model is loaded.

    ``data``: the training data as the request names them; ``rows``: their texts; ``target``: as in `outlay.train.api.ModelSpec`.
    """

    command: str
    recipe: TrainingRequest
    form: TaskSpec
    family: Family
    settings: TrainSettings
    asked_precision: str
    dev: Sequence[TaskRow]
    scorer: Scorer | None
    n_rows: int
    window: Window = ENDLESS
    data: Mapping[str, Any] = field(default_factory=dict)
    target: TargetKind | None = None
    rows: Sequence[TaskRow] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        """Return the base checkpoint; a real checkpoint is its own base."""
        return self.recipe.base or self.recipe.model

    @property
    def fitted(self) -> TaskSpec:
        """Return the form lowered to the limits of this model."""
        return self.window.fit(self.form, self.recipe.model)

    @property
    def lowered(self) -> list[str]:
        """Return a line for each limit of the form that this model cannot keep."""
        return self.window.lines(self.form, self.recipe.model)

    def sources(self, rows: Sequence[TaskRow]) -> list[tuple[str, ...]]:
        """Return the inputs of rows for this model, one or two segments each."""
        return sources_of(rows, self.family, self.form.kind)

    def on(self, data: Mapping[str, Any], target: TargetKind | None, rows: Sequence[TaskRow]) -> _Plan:
        """Return this plan with its training data."""
        return replace(self, data=data, target=target, rows=rows)

    def predicted_seconds(self) -> float | None:
        """Return the forecast of wall seconds; ``None`` where this machine's speed was not measured."""
        golds = [row.gold for row in (*self.rows, *self.dev) if row.gold is not None]
        spec = (self.recipe.model, self.base, self.form)
        rows, dev = self.sources(self.rows), self.sources(self.dev)
        threads = self.recipe.running.threads
        return training_seconds(spec, (rows, golds), (dev, golds), self.settings, threads, self.target)

    def run(self, learn: Learn, listener: Listener) -> StepReport:
        """Train in the output folder, from the last checkpoint of an earlier attempt."""
        running, home = self.recipe.running, OutputDir.folder(self.recipe.out)
        running.check()
        request = self._request()
        summary = on_main(lambda: home.look(request, overwrite=running.overwrite))
        if summary is not None:
            return StepReport.again(summary)
        self._check_model()
        for line in remarks([self.asked_precision]):
            listener.say(line)
        running.prepare()
        on_main(lambda: home.open(request))
        for line in self.lowered:
            listener.say(line)
        with alone(home):
            predicted = self.predicted_seconds()
            gauge, stopwatch = TokenCounter(), new_stopwatch(running.profile)
            progress = self._train(home, Watched(gauge, stopwatch), learn, listener)
            outcome = replace(self._outcome(progress, gauge, stopwatch), predicted_seconds=predicted)
            on_main(lambda: _keep(home, progress, outcome))
        return outcome

    def _request(self) -> dict[str, Any]:
        """Return the request: everything a user can ask for that decides the model; the number of processes does not."""
        settings = {name: value for name, value in self.settings.to_json().items() if name != "micro_batch_size"}
        scored = None if self.scorer is None else {"rows": rows_digest(self.dev), **self.scorer.identity()}
        return {
            "command": self.command,
            "model": self.recipe.model,
            "base": self.recipe.base,
            "model_sha256": on_main(lambda: fingerprint(self.recipe.model, base=self.recipe.base)),
            "form": self.form.to_json(),
            "settings": {**settings, "accumulation": self.recipe.accumulation},
            **self.data,
            "dev": scored,
            "threads": self.recipe.running.threads,
        }

    def _check_model(self) -> None:
        from outlay.train.api import check_model

        n_segments = len(self.sources(self.rows[:1])[0]) if self.rows else 1
        check_model(self.recipe.model, self.base, self.form, n_segments, (self.settings,))

    def _train(self, home: OutputDir, watched: Watched, learn: Learn, listener: Listener) -> TrainProgress:
        from outlay.models.loading import ModelSpec
        from outlay.storage.checkpoint_files import newest_checkpoint
        from outlay.train.api import DevTexts

        running, checkpoints, out = self.recipe.running, home.work / "checkpoints", home.work / "model"
        listener.begin(f"{self.command} {self.recipe.model}")
        kept = newest_checkpoint(checkpoints)
        if kept is not None:
            listener.say(f"going on from {kept.name.replace('-', ' ')}")
        on_main(lambda: _fresh(out))
        dev: DevTexts | None = None
        if self.scorer is not None:
            scorer, rows = self.scorer, self.dev
            dev = DevTexts(self.sources(rows), lambda said: dev_score(scorer, said, rows))
        tracker = self._tracker(home) if rank() == 0 else None
        told = _Telling(listener, self.settings.batch_size)
        watch = TrainContext(
            watched.gauge,
            home.work,
            running.save_seconds,
            told,
            running.save_steps,
            tracker,
            watched.stopwatch,
        )
        try:
            return learn(
                ModelSpec(self.recipe.model, self.base, self.form, self.settings.seed, self.target), dev, out, watch
            )
        finally:
            if tracker is not None:
                tracker.close()

    def _tracker(self, home: OutputDir) -> Tracker | None:
        from outlay.train.trackers import open_tracker

        report_to, settings = self.recipe.running.report_to, self.settings.to_json()
        return open_tracker(report_to, name="outlay", folder=home.out / "tracking", settings=settings)

    def _outcome(self, progress: TrainProgress, gauge: TokenCounter, stopwatch: Profiler | None) -> StepReport:
        n_trained, n_inferred = progress.n_tokens_trained, progress.n_tokens_inferred
        flops = flops_of(self.recipe.model, self.recipe.base, self.form, n_trained, n_inferred)
        facts = {
            "model": str(self.recipe.out),
            "n_rows": self.n_rows,
            "n_dev": len(self.dev),
            "dev": progress.best_score,
            "dev_score": None if self.scorer is None else self.scorer.main,
            "best_epoch": progress.best_epoch,
            "n_steps": progress.step,
            "stopped": progress.stopped,
            "n_parameters": progress.n_parameters,
            "n_processes": n_processes(),
            "notes": [] if self.scorer is None else notes_on_dev(self.scorer, progress.best_score, self.dev),
        }
        if stopwatch is not None:
            # The FLOPs of an earlier attempt were not profiled.
            seen = None if gauge.is_resumed else flops
            facts["profile"] = profile_of_parts([seconds_of(stopwatch)], seen, self.settings.precision)
        return StepReport(
            command=self.command,
            out=str(self.recipe.out),
            facts=facts,
            counts=self._counts(progress),
            n_tokens_trained=n_trained,
            n_tokens_inferred=n_inferred,
            flops=flops,
            seconds=round(gauge.seconds, 3),
        )

    def _counts(self, progress: TrainProgress) -> list[str]:
        cut = cut_lines(
            self.fitted,
            self.n_rows,
            n_truncated=progress.n_truncated,
            n_answers_cut=progress.n_answers_cut,
            n_unaligned=progress.n_unaligned,
        )
        return self.notes + self.lowered + cut


def _plan(
    command: str, recipe: TrainingRequest, inputs: DataReader, form: TaskSpec, n_rows: int, *, own_dev: bool = True
) -> _Plan:
    """Resolve open options and refuse a request that cannot work, before a model is loaded.

    ``own_dev``: the task's dev split chooses the model where no file does.

    Raises:
        UsageError: a family that cannot do the task, a setting outside its limits, a metric that does not fit.
        LabelError: a dev row without a gold answer of the label set.
    """
    from outlay.models.shape import family_of

    resolve_folder(recipe.model, base=recipe.base)
    family = family_of(recipe.model, base=recipe.base)
    refuse_family(family, form, recipe.model)
    settings, asked_precision = _settings(recipe, family, form, inputs)
    dev = _dev_rows(recipe, inputs, settings.seed, own_dev)
    dev = inputs.checked(dev, form)
    scorer = scorer_of(recipe.metric, form, inputs.task) if dev else None
    for name in ("patience", "eval_steps", "eval_share"):
        if scorer is None and recipe.overrides.get(name) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is about the dev score, and there is no dev set; add --dev-file")
    for name, (kind, _) in peft_options().items():
        if name in recipe.overrides and settings.peft != kind.method:
            option, method = "--" + name.replace("_", "-"), kind.method
            raise UsageError(
                f"{option} is about {method}, and peft is {settings.peft}; add --peft {method}, or leave it out"
            )
    window = window_of(recipe.model, base=recipe.base)
    window.fit(form, recipe.model)
    plan = _Plan(command, recipe, form, family, settings, asked_precision, dev, scorer, n_rows, window)
    return replace(plan, notes=inputs.notes)


def _settings(recipe: TrainingRequest, family: Family, form: TaskSpec, inputs: DataReader) -> tuple[TrainSettings, str]:
    """Return the settings (defaults, then the task's, then the user's, precision resolved) and the precision asked for."""
    task = None if inputs.task is None else inputs.task.training
    given = overrides_of(task, family, recipe.role, recipe.overrides)
    asked = str(given.get("precision", AUTO))
    precision = on_main(lambda: resolve(asked)) if asked == AUTO else asked
    settings = role_settings(default_settings(family, form.kind)[recipe.role], given, precision=precision)
    if recipe.accumulation < 1:
        raise UsageError(f"--accumulation is {recipe.accumulation}; it must be at least 1")
    if recipe.accumulation > 1:
        rows = -(-settings.batch_size // (n_processes() * recipe.accumulation))
        settings = settings.changed({"micro_batch_size": rows})
    return settings, asked


def _dev_rows(recipe: TrainingRequest, inputs: DataReader, seed: int, own_dev: bool) -> list[TaskRow]:
    """Return dev rows of the file, else of the task's dev split; ``own_dev`` is false where that might repeat training rows."""
    if recipe.dev_file is not None:
        return inputs.file(recipe.dev_file, n=recipe.max_dev_rows, needs_target=True)
    if inputs.task is None or inputs.task.data.dev is None or not own_dev:
        return []
    return inputs.split("dev", n=recipe.max_dev_rows, seed=seed)


class _Telling:
    """Progress callback of a training: loss and rows a second."""

    def __init__(self, listener: Listener, batch_size: int) -> None:
        self._listener = listener
        self._batch_size = batch_size
        self._first: tuple[int, float] | None = None

    def __call__(self, progress: TrainProgress, n_steps: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = progress.step, now
        step, began = self._first
        speed = (progress.step - step) * self._batch_size / max(now - began, 1e-9)
        loss = progress.loss_since / max(1, progress.steps_since)
        score = "" if progress.best_score is None else f", dev {progress.best_score:.2f}"
        detail = f"loss {loss:.4f}, {speed:,.0f} rows/s{score}" if progress.step > step else f"loss {loss:.4f}"
        self._listener.progress(progress.step, n_steps, detail)


def _keep(home: OutputDir, progress: TrainProgress, outcome: StepReport) -> None:
    """Move the model into the output folder, then write the history, and the summary last."""
    for path in sorted((home.work / "model").iterdir()):
        with writing(home.out / path.name):
            path.replace(home.out / path.name)
    facts = {
        name: outcome.facts[name] for name in ("dev", "dev_score", "best_epoch", "n_steps", "stopped", "n_parameters")
    }
    home.write_json(home.out / TRAINING, {**facts, "counts": outcome.counts, "history": progress.history})
    home.finish(outcome.to_json())


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
