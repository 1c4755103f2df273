"""Runtime of the single steps: options, report, and work shared among several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from outlay.errors import OutlayError, UnknownModel, UsageError
from outlay.settings import DEFAULT_THREADS, MOST_THREADS, SAVE_SECONDS
from outlay.spec import Family, TaskSpec, can_answer
from outlay.standalone.output_dir import OutputDir
from outlay.storage.locations import default_root

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Options of running a step; none but the threads is part of the request.

    ``save_seconds``, ``save_steps``: how often a training may write a checkpoint; ``fsdp``: shard the weights among processes;
    ``device_map``: ``auto`` spreads a model over every GPU of one process; ``report_to``: a tracker; ``profile``: report the
    main process's seconds by part; ``ray``: the address of a Ray cluster whose machines do the work, as
    `outlay.workers.ray.RayPool` reads it.
    """

    threads: int = DEFAULT_THREADS
    overwrite: bool = False
    save_steps: int | None = None
    save_seconds: float = SAVE_SECONDS
    report_to: str = "none"
    fsdp: bool = False
    device_map: str | None = None
    profile: bool = False
    ray: str | None = None

    def __post_init__(self) -> None:
        limits = (
            ("--threads", self.threads, 1 <= self.threads <= MOST_THREADS, f"at least 1, and at most {MOST_THREADS:,}"),
            ("--save-steps", self.save_steps, self.save_steps is None or self.save_steps >= 1, "at least 1"),
            ("--save-seconds", self.save_seconds, self.save_seconds >= 0, "0 or more"),
            ("--device-map", self.device_map, self.device_map in (None, "auto"), "auto, or left out"),
        )
        for name, value, good, wanted in limits:
            if not good:
                raise UsageError(f"{name} is {value}; it must be {wanted}")
        if self.ray is not None:
            from outlay.workers.ray import check_address

            check_address(self.ray)

    def check(self) -> None:
        """Refuse options that do not go with the number of processes.

        Raises:
            UsageError: ``fsdp`` with one process, ``device_map`` or ``ray`` with several, or both of these.
        """
        if self.fsdp and n_processes() == 1:
            raise UsageError("--fsdp deals a model among processes, and there is 1; add --processes 2 or more")
        if self.device_map is not None and n_processes() > 1:
            raise UsageError(
                f"--device-map gives all GPUs to one process, and there are {n_processes()}; use one of both"
            )
        if self.ray is not None and n_processes() > 1:
            raise UsageError(
                f"--ray deals the work out from one process, and there are {n_processes()}; leave --processes or torchrun out"
            )
        if self.ray is not None and self.device_map is not None:
            raise UsageError("--ray gives one GPU to each worker, --device-map all of them to one; use one of both")

    def prepare(self) -> None:
        """Set threads, token cache and FSDP of this process."""
        if self.fsdp:
            # Read by accelerate, and by `outlay.train.distributed`.
            os.environ["ACCELERATE_USE_FSDP"] = "true"
        from outlay.models.token_cache import keep_in
        from outlay.train.api import use_threads

        use_threads(self.threads)
        keep_in(default_root() / "tokens")

    def run_jobs(
        self, work: Callable[[Path, P], R], jobs: Iterable[tuple[str, P]], folder: Path
    ) -> Generator[tuple[str, R], None, None]:
        """Yield each job's name and ``work(folder, payload)`` as it is done: in this process, or on a Ray cluster.

        Closing the generator ends running jobs.

        Raises:
            OutlayError: of ``work``; or a cluster that cannot be reached, or does not get a job done.
        """
        if self.ray is None:
            return ((name, work(folder, payload)) for name, payload in jobs)
        from outlay.workers.ray_map import run_on_cluster

        return run_on_cluster(self.ray, self.threads, work, jobs, folder)


@dataclass(frozen=True, slots=True)
class StepReport:
    """Report of a finished step.

    ``facts``: results by name; ``counts``: sentences on rows cut or lost; ``flops``: by `outlay.models.shape`,
    ``None`` for a model whose cost is not known; ``seconds``: wall time; ``is_old``: read from an earlier call;
    ``predicted_seconds``: the forecast of wall seconds, where a profile of this machine was measured; no bound.
    """

    command: str
    out: str
    facts: dict[str, Any]
    counts: list[str] = field(default_factory=list)
    n_tokens_trained: int = 0
    n_tokens_inferred: int = 0
    flops: int | None = None
    seconds: float = 0.0
    is_old: bool = False
    predicted_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report for the summary file and ``--json``."""
        return asdict(self)

    @classmethod
    def of_finished(cls, summary: dict[str, Any]) -> StepReport:
        """Read the report from the summary of a finished step."""
        return cls(**{**summary, "is_old": True})

    @property
    def compute(self) -> str:
        """Return tokens, FLOPs and seconds in words, from which the step can be priced."""
        flops = "FLOPs not known for this model" if self.flops is None else f"{self.flops:.3g} FLOPs"
        tokens = f"{self.n_tokens_trained:,} tokens trained, {self.n_tokens_inferred:,} read or written"
        predicted = "" if self.predicted_seconds is None else f" (forecast {self.predicted_seconds:,.1f} s)"
        return f"{tokens}, {flops}, {self.seconds:,.1f} s{predicted}"


def flops_of(ref: str, base: str | None, form: TaskSpec, n_trained: int, n_inferred: int) -> int | None:
    """Return the FLOPs of a step by the formulas of `outlay.models.shape`; ``None`` for a model type without one."""
    from outlay.models.shape import flops_infer, flops_train, shape_of

    try:
        shape = shape_of(ref, base=base)
    except UnknownModel:
        return None
    return flops_train(shape, n_trained, form.n_outputs) + flops_infer(shape, n_inferred, form.n_outputs)


def refuse_family(family: Family, form: TaskSpec, ref: str) -> None:
    """Refuse a model that cannot do the task at all.

    Raises:
        UsageError: an encoder for a task of free text.
    """
    if not can_answer(family, form.kind):
        raise UsageError(
            f"model {ref!r} is an encoder and cannot write free text; take a seq2seq or causal model (such as T5)"
        )


# --- several processes -----------------------------------------------------------------------------------------------


def n_processes() -> int:
    """Return the number of processes of this launch, by its environment (torchrun and `accelerate launch` set it)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank of this process in its launch."""
    return int(os.environ.get("RANK", "0"))


def on_main(act: Callable[[], T]) -> T:
    """Run a function in the main process alone; its value, or its error, reaches every process."""
    if n_processes() == 1:
        return act()
    from outlay.train.distributed import current_process

    process = current_process()
    outcomes: list[tuple[T | None, OutlayError | None]] = []
    if process.is_main:
        try:
            outcomes = [(act(), None)]
        except OutlayError as error:
            outcomes = [(None, error)]
    [(value, problem)] = process.gather(outcomes)
    if problem is not None:
        raise problem
    return value  # type: ignore[return-value]


@contextmanager
def lock(output: OutputDir) -> Iterator[None]:
    """Lock an output for one launch at a time.

    Raises:
        UsageError: another launch holds the lock.
    """
    with ExitStack() as stack:
        on_main(lambda: stack.enter_context(output.lock()))
        yield


def wait_for_all() -> None:
    """Wait for every process of the launch."""
    if n_processes() > 1:
        from outlay.train.distributed import current_process

        current_process().barrier()
