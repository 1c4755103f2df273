"""Jobs: compute steps executed under their hold, in any process, one at a time per artifact, resumed from checkpoints.

No money here: the caller holds the quote before and settles afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from outlay.engine.environment import environment
from outlay.engine.prepare import Options, PreparedRun
from outlay.engine.step_meter import StepMeter
from outlay.engine.step_runner import StepOutput, StepRunner
from outlay.errors import SpendError
from outlay.hardware.precision import check_worker
from outlay.models.cost_model import PROFILE_FILE, load_profile
from outlay.money.amounts import Price, Quote
from outlay.plan.forecast import Forecaster
from outlay.plan.quotes import Quoter
from outlay.plan.steps import Step, describe, learner_of
from outlay.storage.store import Artifact, Store, key_of
from outlay.text.listener import Report
from outlay.train.progress import TrainContext, TrainProgress


@dataclass(frozen=True)
class Job:
    """A compute step held for a run, with all that a worker needs beside the store. It can be pickled."""

    step: Step
    key: str
    """Key of the artifact, unless a limit cuts the step short."""
    artifacts: Mapping[str, str]
    """Keys of the artifacts of all earlier steps, by the keys of these steps."""
    options: Options
    """Options of the run, with the precision resolved."""
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

    def __init__(self, store: Store, prepared_of: Callable[[Options], PreparedRun]) -> None:
        self._store = store
        self._prepared_of = prepared_of
        self._profile = load_profile(store.root.parent / PROFILE_FILE)

    def make(
        self,
        job: Job,
        on_progress: Report,
        on_wait: Callable[[str], None] | None = None,
    ) -> JobResult:
        """Return the result of a job: the stored artifact, that of another process at work on it, or a new one.

        Raises:
            SpendError: data or models here are not those of the run.
            UsageError: the run's precision is far slower here than this machine's own.
            TrainingError: the training cannot go on.
        """
        with self._store.making(job.key, on_wait=on_wait) as workspace:
            if workspace.found is not None:
                return JobResult(workspace.found.key, reused=True)
            artifact = self._make(job, workspace.path, on_progress)
            workspace.clear()
        return JobResult(artifact.key, reused=False)

    def _make(self, job: Job, folder: Path, on_progress: Report) -> Artifact:
        prepared, step = self._prepared_of(job.options), job.step
        if prepared.request.run_id != job.run_id:
            raise SpendError(
                f"run {job.run_id} would be run {prepared.request.run_id} here: the data, models or prices on this "
                "machine differ from those it was planned with; make them the same and run again"
            )
        precision = learner_of(step).settings.precision
        if not job.is_precision_asked:
            check_worker(precision)
        workshop, quoter = StepRunner(prepared, lambda behind: self._artifact(job, behind)), Quoter(prepared.known)
        foreseen = Forecaster(quoter, self._profile, workshop.answer_lengths).forecast(step)
        gauge = StepMeter(
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

        with gauge:
            made = workshop.make(step, TrainContext(gauge, folder, job.checkpoint_seconds, report))
            return self._store.put(
                _artifact_key(job.key, made),
                step.kind,
                made.files,
                meta={"request": step.request(), "what": describe(step)},
                usage=made.usage,
                circumstance={
                    **environment(getattr(step, "threads", None), precision),
                    "predicted": foreseen and {"seconds": round(foreseen.seconds, 6), "by": foreseen.by},
                    "seconds_by_payer": gauge.finish(),
                    "working_seconds": gauge.working_seconds(),
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
