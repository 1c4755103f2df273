"""Makes the artifact of one compute step, in whatever process is asked to: under its hold, alone, resumed where it was cut off.

No money here: whoever asks has held the quote before and settles afterwards.
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
    """A compute step that is held for a run, and all that its maker needs beside the store. It can be pickled."""

    step: Step
    key: str
    """What the artifact is stored under, unless a limit cuts it short."""
    artifacts: Mapping[str, str]
    """Keys of the artifacts behind it, by the keys of their steps."""
    options: Options
    """Of the run, its precision resolved."""
    is_precision_asked: bool
    """Whether what the step computes in was asked for, or chosen by the machine that planned the run."""
    run_id: str
    quote: Quote
    """The hold's: the work stops before it passes it."""
    here: Price
    """Per hour of the machine that computes."""
    payer: str
    heartbeat: Path
    checkpoint_seconds: float


@dataclass(frozen=True, slots=True)
class JobResult:
    """The key of the artifact, and whether it was there already."""

    key: str
    reused: bool


class JobRunner:
    """Makes jobs with the artifacts of one store.

    ``prepared_of``: rows, shapes and token counts of a run; called for each job. A damaged profile of the machine beside the
    store is refused here, before anything is bought.
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
        """Find the job's artifact, wait for whoever makes it, or make it.

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
    """Seconds of ``payer``'s work on ``key`` that are not lost: in the artifact, else in the newest checkpoint."""
    from outlay.storage.checkpoint_files import checkpoint_state, newest_checkpoint

    artifact = store.about(key)
    if artifact is not None:
        return float(artifact.circumstance.get("seconds_by_payer", {}).get(payer, 0.0))
    newest = newest_checkpoint(store.root / "making" / key / "work" / "checkpoints")
    if newest is None:
        return 0.0
    return float(checkpoint_state(newest)["gauge"]["seconds_by_payer"].get(payer, 0.0))


def _artifact_key(key: str, made: StepOutput) -> str:
    """Where an artifact is kept; one that a limit cut short has a key of its own, so that no run takes it for the whole."""
    if made.usage.get("stopped") != "limit":
        return key
    return key_of({"of": key, "n_tokens_trained": made.usage["n_tokens_trained"]})
