"""Execution of compute steps: `StepRunner` reads the artifacts of the inputs, trains or predicts and returns files.

No money there: the step's meter is an argument, and the usage is returned. `JobRunner`, in whatever process a job is sent to,
has a step made under its hold by one process at a time, resumed from its checkpoints, and puts the files into the store.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.engine.environment import environment
from outlay.engine.label_targets import class_targets, probabilities_of
from outlay.engine.prepare import PreparedRun
from outlay.engine.scorers import scorer_of
from outlay.engine.step_meter import StepMeter
from outlay.errors import SpendError, TrainingError
from outlay.hardware.precision import check_worker
from outlay.labels.purchases import parse_label_lines
from outlay.metrics.calibration import N_DIGITS, calibration_error_of, confidences_of
from outlay.metrics.degenerate import floor_of
from outlay.metrics.quality import NO_GROUP
from outlay.models.cost_model import PROFILE_FILE, load_profile
from outlay.models.forecast import N_SAMPLED
from outlay.models.reference import HELD_OUT_FILE
from outlay.money.amounts import Price, Quote
from outlay.plan.context import PlanningContext
from outlay.plan.forecast import Forecaster
from outlay.plan.quotes import Quoter
from outlay.plan.request import Request
from outlay.plan.steps import (
    ANSWERS_FILE,
    LABELS_FILE,
    PREDICTIONS_FILE,
    SCORES_FILE,
    TARGETS_FILE,
    TRAINING_FILE,
    Buy,
    Dev,
    Distil,
    Model,
    Score,
    Step,
    Teach,
    Train,
    Training,
    describe,
    learner_of,
    n_carved,
)
from outlay.spec import cut_lines
from outlay.storage.store import Artifact, Store, key_of
from outlay.text.listener import Report
from outlay.train.progress import TokenCounter, TrainContext, TrainProgress

if TYPE_CHECKING:
    from outlay.tasks.example import Example
    from outlay.train.api import DevTexts, Predictions


Files = dict[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Output of a step: files by name, usage (deterministic within one environment), and measurements of this execution."""

    files: Files
    usage: dict[str, Any]
    measured: dict[str, Any] = field(default_factory=dict)


class StepRunner:
    """Executor of the compute steps of one prepared run; ``vectors``: folder of frozen vectors, which all runs share."""

    def __init__(
        self, prepared: PreparedRun, artifact_of: Callable[[Step], Artifact], vectors: Path | None = None
    ) -> None:
        self._prepared = prepared
        self._artifact_of = artifact_of
        self._vectors = vectors
        self._answer_lengths: dict[tuple[str, str], list[int]] = {}

    def make(self, step: Step, context: TrainContext) -> StepOutput:
        """Execute ``step`` on the artifacts of its inputs.

        Raises:
            TrainingError: the training cannot go on.
        """
        from outlay.models.vectors import keep_in as keep_vectors_in
        from outlay.train.api import use_threads

        use_threads(self._prepared.request.threads)
        keep_vectors_in(self._vectors)
        match step:
            case Train():
                return self._train(step, context)
            case Teach():
                return self._teach(step, context)
            case Distil():
                return self._distil(step, context)
            case Score():
                return self._score(step, context)
        raise TypeError(f"a {type(step).__name__} step is not made here")

    def read_labels(self, *purchases: Buy, first: int = 0, stop: int | None = None) -> tuple[list[Example], list[str]]:
        """Read the rows that some purchases got labels for, in their order, and the labels.

        Of the rows ordered only ``first`` to ``stop`` count, whether they got a label or not, so that what is set aside for dev
        does not depend on refusals.
        """
        found: list[tuple[Example, str]] = []
        places = [(buy, row) for buy in purchases for row in self._prepared.rows_of(buy.split)[buy.start : buy.stop]]
        labels = {buy.key: parse_label_lines(self._file(buy, LABELS_FILE).read_bytes()) for buy in purchases}
        for buy, row in places[first:stop]:
            if (label := labels[buy.key].get(row.id)) is not None:
                found.append((row, label))
        return [row for row, _ in found], [label for _, label in found]

    def answer_lengths(self, labels: Buy, model: Model) -> list[int]:
        """Return the lengths of some bought labels in tokens of ``model``; 0 for an encoder."""
        at = labels.key, model.ref
        if at not in self._answer_lengths:
            from outlay.train.api import answer_lengths

            said = self.read_labels(labels)[1][:N_SAMPLED]
            self._answer_lengths[at] = answer_lengths(model.ref, model.base, self._prepared.task.form, said)
        return self._answer_lengths[at]

    def _train(self, step: Train, context: TrainContext) -> StepOutput:
        from outlay.train.api import distil, finetune
        from outlay.train.probe import TaskMetric

        rows, labels = self.read_labels(*step.labels, first=n_carved(step.dev))
        if not labels:
            raise TrainingError(
                f"{describe(step)}: none of the rows got a label; see why with `outlay labels verify`, raise the budget or "
                "take another seller"
            )
        out, sources = _fresh(context), self._prepared.sources(rows, step.model.ref)
        if step.learns_probabilities:
            files = [path for buy in step.labels if (path := self._file(buy, ANSWERS_FILE)).exists()]
            classes = step.encoding.form.labels
            targets = class_targets(probabilities_of(files, [row.id for row in rows], labels, classes), classes)
            learnt = distil(_spec(step), sources, targets, step.settings, dev=self._dev(step), out=out, context=context)
            return _trained(out, learnt, len(labels), self._dev_floor(step))
        progress = finetune(
            _spec(step),
            sources,
            labels,
            step.settings,
            dev=self._dev(step),
            out=out,
            context=context,
            metric=TaskMetric.of(scorer_of(step.encoding)),
        )
        trained = _trained(out, progress, len(labels), self._dev_floor(step))
        if progress.held_out:
            trained.files[HELD_OUT_FILE] = _json(
                {
                    "rows": [row.id for row in rows],
                    "sources": [row.text for row in rows],
                    "labels": labels,
                    "held_out": progress.held_out,
                }
            )
        return trained

    def _distil(self, step: Distil, context: TrainContext) -> StepOutput:
        from outlay.train.api import distil
        from outlay.train.targets.targets import SparseTargets

        blocks = [SparseTargets.open(self._file(block, TARGETS_FILE)) for block in step.targets]
        # Rows carved out for dev stay in the pool's order, so that its blocks are the same for every run, but are not trained on.
        held_out = {row.text for row in self._prepared.train[: n_carved(step.dev)]}
        pool = self._prepared.pool[: step.n_rows]
        kept = [i for i, row in enumerate(pool) if row.text not in held_out]
        out = _fresh(context)
        progress = distil(
            _spec(step),
            self._prepared.sources([pool[i] for i in kept], step.model.ref),
            SparseTargets.concatenate(blocks).select(kept),
            step.settings,
            gold=self._gold(step.gold, [pool[i] for i in kept]) if step.gold else None,
            dev=self._dev(step),
            out=out,
            context=context,
        )
        return _trained(out, progress, len(kept), self._dev_floor(step))

    def _gold(self, bought: Sequence[Buy], rows: Sequence[Example]) -> list[str | None]:
        """Return the bought label of each pool row that is a train row too (same hash of the text), ``None`` for others."""
        known = {row.id: label for row, label in zip(*self.read_labels(*bought), strict=True)}
        return [known.get(row.id) for row in rows]

    def _teach(self, step: Teach, context: TrainContext) -> StepOutput:
        from outlay.train.api import teach

        rows = self._prepared.pool[step.start : step.stop]
        counter = TokenCounter(context.meter)
        targets = teach(
            self._artifact_of(step.teacher).path,
            self._prepared.sources(rows, step.teacher.model.ref),
            target=step.target,
            settings=step.settings,
            precision=step.teacher.settings.precision,
            meter=counter,
            vocab_size=step.vocab_size,
        )
        return StepOutput({TARGETS_FILE: targets.to_bytes()}, _usage(0, counter.n_inferred))

    def _score(self, step: Score, context: TrainContext) -> StepOutput:
        from outlay.train.api import milliseconds_a_row, predict

        counter = TokenCounter(context.meter)
        (test, golds), encoding = self._test_rows(step), step.model.encoding
        folder, sources = self._artifact_of(step.model).path, self._prepared.sources(test, step.model.model.ref)
        precision = step.model.settings.precision
        predicted = predict(folder, sources, precision=precision, meter=counter)
        predictions = predicted.answers
        latency_ms = milliseconds_a_row(folder, sources, precision=precision)
        texts = [example.text for example in test]
        scorer = scorer_of(encoding)
        alike = scorer.similarities(predictions, texts)
        document = {
            "rows": [example.id for example in test],
            "sources": texts,
            "predictions": predictions,
            "golds": golds,
            "similarities": alike,
            "metric": encoding.metric,
            "labels": list(encoding.form.labels),
            **({"groups": [row.group or NO_GROUP for row in test]} if any(row.group for row in test) else {}),
            **_calibration(predicted, golds),
        }
        readings = scorer.score(predictions, golds, texts, alike)
        scores = {name: asdict(reading) for name, reading in readings.items()}
        return StepOutput(
            {PREDICTIONS_FILE: _json(document), SCORES_FILE: _json(scores)},
            _usage(0, counter.n_inferred) | ({} if step.labels is None else {"n_scored": len(test)}),
            {"latency_ms": latency_ms},
        )

    def _test_rows(self, step: Score) -> tuple[Sequence[Example], list[str]]:
        """Return the test rows that have a label, their own or a bought one, and the labels."""
        if step.labels is None:
            return self._prepared.test, _gold_labels(self._prepared.test)
        rows, golds = self.read_labels(step.labels)
        if not rows:
            raise TrainingError(
                f"{describe(step)}: none of its rows got a label; raise the budget, or take another `eval_seller`"
            )
        return rows, golds

    def _dev(self, step: Train | Distil) -> DevTexts | None:
        """Return the dev rows and the function that scores answers to them; ``None`` without dev rows."""
        from outlay.train.api import DevTexts

        if step.dev is None:
            return None
        rows, golds = self._dev_rows(step.dev)
        texts, scorer = [row.text for row in rows], scorer_of(step.encoding)
        sources = self._prepared.sources(rows, step.model.ref)
        is_choice = step.encoding.form.kind == "classification"
        return DevTexts(sources, lambda answers: scorer.main_value(answers, golds, texts), golds if is_choice else ())

    def _dev_rows(self, dev: Dev) -> tuple[Sequence[Example], list[str]]:
        if dev.labels is not None:
            return self.read_labels(dev.labels, stop=dev.n)
        rows = self._prepared.dev[: dev.n]
        return rows, _gold_labels(rows)

    def _dev_floor(self, step: Train | Distil) -> dict[str, Any]:
        """Return the number of dev rows and the score of their commonest answer, for a model's usage."""
        if step.dev is None:
            return {}
        golds = self._dev_rows(step.dev)[1]
        floor = floor_of(step.encoding.metric, golds, step.encoding.form.labels)
        return {"n_dev": len(golds), "dev_floor": None if floor is None else asdict(floor)}

    def _file(self, step: Step, name: str) -> Path:
        return self._artifact_of(step).path / name


def lines_on_cuts(step: Step, usage: Mapping[str, Any], context: PlanningContext) -> list[str]:
    """Return lines on texts and answers that a training cut, by the usage of its artifact; none for other steps."""
    if not isinstance(step, Training):
        return []
    counts = {name: int(usage.get(name) or 0) for name in ("n_truncated", "n_answers_cut", "n_unaligned")}
    return cut_lines(context.form_of(step.model.ref), int(usage.get("n_rows") or 0), **counts)


def _gold_labels(rows: Sequence[Example]) -> list[str]:
    """Return the gold labels of rows that all have one.

    Raises:
        SpendError: a row has none.
    """
    labels = [row.label for row in rows if row.label is not None]
    if len(labels) < len(rows):
        raise SpendError(
            f"{len(rows) - len(labels):,} of {len(rows):,} rows to score on have no label; say `dev: bought` or `test: bought` "
            "in the task file"
        )
    return labels


def _spec(step: Train | Distil) -> Any:
    from outlay.models.loading import ModelSpec

    target = step.target if isinstance(step, Distil) else None
    form = step.encoding.form
    return ModelSpec(step.model.ref, step.model.base, form, step.settings.seed, target, step.pooling, step.reading)


def _calibration(predicted: Predictions, golds: Sequence[str]) -> dict[str, Any]:
    """Return the probabilities of a classifier and their calibration error, for its predictions; nothing for other models."""
    if predicted.probabilities is None:
        return {}
    error = calibration_error_of(confidences_of(predicted.probabilities), predicted.answers, golds)
    return {"probabilities": predicted.probabilities.round(N_DIGITS).tolist(), "ece": error}


def _trained(out: Path, progress: TrainProgress, n_rows: int, dev: dict[str, Any]) -> StepOutput:
    files: Files = {path.name: path for path in sorted(out.iterdir()) if path.is_file()}
    training: dict[str, Any] = {
        "history": progress.history,
        "best_epoch": progress.best_epoch,
        "dev": progress.best_score,
        "stopped": progress.stopped,
        "n_parameters": progress.n_parameters,
        "n_rows": n_rows,
        "n_truncated": progress.n_truncated,
        "n_answers_cut": progress.n_answers_cut,
        "n_unaligned": progress.n_unaligned,
    }
    # What only a regression has is left out elsewhere, so that the usage of other trainings is what it was.
    fitted = {"n_flops_fitted": progress.n_flops_fitted, "strength": progress.strength, "notes": progress.notes}
    training |= fitted if progress.strength is not None else {}
    training |= {"temperature": progress.temperature} if progress.temperature is not None else {}
    files[TRAINING_FILE] = _json(training)
    usage = _usage(progress.n_tokens_trained, progress.n_tokens_inferred)
    extra = {name: value for name, value in training.items() if name not in ("history", "best_epoch")}
    return StepOutput(files, usage | extra | dev)


def _usage(n_tokens_trained: int, n_tokens_inferred: int) -> dict[str, Any]:
    return {"n_tokens_trained": n_tokens_trained, "n_tokens_inferred": n_tokens_inferred}


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _fresh(context: TrainContext) -> Path:
    """Return an empty folder for the trained model."""
    assert context.folder is not None
    folder = context.folder / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@dataclass(frozen=True)
class Job:
    """A compute step held for a run, with all that a worker needs beside the store. It can be pickled."""

    step: Step
    key: str
    """Key of the artifact, unless a limit cuts the step short."""
    artifacts: Mapping[str, str]
    """Keys of the artifacts of all earlier steps, by the keys of these steps."""
    request: Request
    """The request as the user made it, with the precision resolved."""
    is_precision_asked: bool
    """True where the precision of the step was asked for, False where the machine that planned the run chose it."""
    run_id: str
    quote: Quote
    """Quote of the hold, which bounds the step."""
    here: Price
    """Price per hour of the machine that computes."""
    payer: str
    heartbeat: Path
    checkpoint_seconds: float


@dataclass(frozen=True, slots=True)
class JobResult:
    """Result of a job: the key of the artifact, and whether the store had it already."""

    key: str
    reused: bool


class JobRunner:
    """Executor of jobs on the artifacts of one store.

    ``prepared_of``: rows, shapes and token counts of a run; called for each job. The constructor refuses a damaged profile of the
    machine beside the store, before anything is bought.
    """

    def __init__(self, store: Store, prepared_of: Callable[[Request], PreparedRun]) -> None:
        self._store = store
        self._prepared_of = prepared_of
        self._profile = load_profile(store.root.parent / PROFILE_FILE)

    def make(self, job: Job, on_progress: Report, on_wait: Callable[[str], None] | None = None) -> JobResult:
        """Return the result of a job: the stored artifact, that of another process at work on it, or a new one.

        Raises:
            SpendError: data or models here are not those of the run.
            UsageError: the run's precision is far slower here than this machine's own.
            TrainingError: the training cannot go on.
        """
        with self._store.making(job.key, on_wait=on_wait) as workspace:
            if workspace.found is not None:
                workspace.clear()  # of one that was killed after it had put the artifact
                return JobResult(workspace.found.key, reused=True)
            artifact = self._make(job, workspace.path, on_progress)
            workspace.clear()
        return JobResult(artifact.key, reused=False)

    def _make(self, job: Job, folder: Path, on_progress: Report) -> Artifact:
        prepared, step = self._prepared_of(job.request), job.step
        if prepared.request.run_id != job.run_id:
            raise SpendError(
                f"run {job.run_id} would be run {prepared.request.run_id} here: the data, models or prices on this "
                "machine differ from those it was planned with; make them the same and run again"
            )
        precision = learner_of(step).settings.precision
        if not job.is_precision_asked:
            check_worker(precision)
        runner = StepRunner(prepared, lambda behind: self._artifact(job, behind), self._store.root / "vectors")
        quoter = Quoter(prepared.context)
        foreseen = Forecaster(quoter, self._profile, runner.answer_lengths).forecast(step)
        meter = StepMeter(
            quoter,
            step,
            job.quote,
            here=job.here,
            payer=job.payer,
            kept_seconds=kept_seconds(self._store, job.key, job.payer),
            heartbeat=job.heartbeat,
        )

        def report(progress: TrainProgress, n_steps: int) -> None:
            on_progress(progress.step, n_steps, f"epoch {progress.epoch + 1}")

        with meter:
            made = runner.make(step, TrainContext(meter, folder, job.checkpoint_seconds, report))
            return self._store.put(
                _artifact_key(job.key, made),
                step.kind,
                made.files,
                meta={"request": step.request(), "what": describe(step)},
                usage=made.usage,
                circumstance={
                    **environment(getattr(step, "threads", None), precision),
                    "predicted": foreseen and {"seconds": round(foreseen.seconds, 6), "by": foreseen.by},
                    "seconds_by_payer": meter.by_payer(),
                    "working_seconds": meter.working_seconds(),
                    **made.measured,
                },
            )

    def _artifact(self, job: Job, step: Step) -> Artifact:
        artifact = self._store.get(job.artifacts[step.key])
        if artifact is None:
            raise SpendError(
                f"what {describe(step)} brought is gone from the store {self._store.root}; run again to make it anew"
            )
        return artifact


def kept_seconds(store: Store, key: str, payer: str) -> float:
    """Return the seconds of ``payer``'s work on ``key`` that are kept, in the artifact or else in the newest checkpoint."""
    from outlay.storage.checkpoint_files import checkpoint_state, newest_checkpoint

    artifact = store.about(key)
    if artifact is not None:
        return float(artifact.circumstance.get("seconds_by_payer", {}).get(payer, 0.0))
    newest = newest_checkpoint(store.root / "making" / key / "work" / "checkpoints")
    if newest is None:
        return 0.0
    return float(checkpoint_state(newest)["gauge"]["seconds_by_payer"].get(payer, 0.0))


def _artifact_key(key: str, made: StepOutput) -> str:
    """Return the key of an artifact; one that a limit cut short has a key of its own, so that no run reuses it as whole."""
    if made.usage.get("stopped") != "limit":
        return key
    return key_of({"of": key, "n_tokens_trained": made.usage["n_tokens_trained"]})
