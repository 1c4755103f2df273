"""How much of a teacher's distribution has to be kept: what is lost, and what a student makes of it, on two tasks.

    OUTLAY_DATA=DATA python bench/sparse_targets.py [--work DIR] [--seeds 3] [--jobs 2] [--threads 1]

Sentiment of film reviews' phrases (SST-2, Socher et al. 2013; answers of a few tokens) and entities of lab protocols (WLP,
Kulkarni et al. 2018; answers of up to 64 tokens), both written out by T5-shaped models that begin from random weights. One
teacher of each task speaks once over its pool, and every position's whole distribution is kept. All variants are made from that:
logits until no more than ``tail_mass`` is left out (64 at most), a fixed number of them, or all. Students of several seeds learn
from each.

For every variant: logits and bytes per position, probability kept (mean and worst), how far the KL divergence to a half-trained
student is off, and of the trained students the score and the divergence from the teacher on rows that nobody saw. Finished steps
and cells in DIR are taken over, so an interrupted run goes on; remove DIR to measure anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.sparse_error import DTYPES, Loss, dtype_losses, full_kl, kept_counts, kept_mask, losses_of
from bench.sparse_tasks import PLANS, Bench, Plan
from outlay.settings import TeachSettings
from outlay.train.api import use_threads

TEMPERATURES = (1.0, 2.0)
"""outlay's default and the published one (Kang et al. 2023, released script)."""


@dataclass(frozen=True, slots=True)
class Variant:
    """How much is kept; see `outlay.settings.TeachSettings`."""

    tail_mass: float
    max_logits: int

    @property
    def name(self) -> str:
        """As the tables have it."""
        if self.max_logits == 0:
            return "all"
        cap = f"K = {self.max_logits}"
        return cap if self.tail_mass == 0 else f"ε = {self.tail_mass:g}, {cap} at most"

    @property
    def slug(self) -> str:
        """As files have it."""
        return f"e{self.tail_mass:g}-k{self.max_logits}"


CAP = TeachSettings().max_logits
DEFAULT = Variant(TeachSettings().tail_mass, CAP)
VARIANTS = (
    *(Variant(0.0, k) for k in (1, 8, 64)),
    *(Variant(epsilon, CAP) for epsilon in (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)),
    Variant(0.0, 0),
)


@dataclass(frozen=True, slots=True)
class Setup:
    """One task of a run: everything another process needs to take part in it."""

    plan: Plan
    data: Path
    work: Path

    def bench(self) -> Bench:
        return Bench(self.plan, self.data, self.work)


@dataclass(frozen=True, slots=True)
class Cell:
    """A student: its variant, temperature and seed."""

    variant: Variant
    temperature: float
    seed: int

    def file(self, bench: Bench) -> Path:
        return bench.work / "cells" / f"{self.variant.slug}-T{self.temperature:g}-s{self.seed}.json"


@dataclass(frozen=True, slots=True)
class Part:
    """What a variant keeps at each position, and what that loses at each of `TEMPERATURES`."""

    n_kept: float
    n_bytes: float
    losses: tuple[Loss, ...]


def prepare(setup: Setup) -> None:
    """A task's teacher and its words."""
    setup.bench().prepare()


def train(setup: Setup, cells: Sequence[Cell]) -> str:
    """Students of one variant that nobody has trained yet; a line that says how long they took."""
    bench = setup.bench()
    missing = [cell for cell in cells if not cell.file(bench).exists()]
    seconds = []
    targets = bench.words("pool").targets(cells[0].variant.tail_mass, cells[0].variant.max_logits) if missing else None
    for cell in missing:
        began = time.monotonic()
        file = cell.file(bench)
        file.parent.mkdir(exist_ok=True)
        folder = file.with_suffix("")
        assert targets is not None
        bench.student(targets, replace(bench.plan.student, temperature=cell.temperature, seed=cell.seed), folder)
        seconds.append(time.monotonic() - began)
        z, y = bench.beside(folder, "unseen", bench.plan.n_compared)
        found = {"score": bench.score(folder), "divergence": float(full_kl(z, y, 1.0).mean()), "seconds": seconds[-1]}
        half = file.with_suffix(".tmp")
        half.write_text(json.dumps(found))
        half.replace(file)
        shutil.rmtree(folder)
    took = f", {statistics.mean(seconds):.0f} s each" if seconds else ""
    return f"{setup.plan.name}, {cells[0].variant.name}: {len(missing)} students{took}"


def parts(bench: Bench) -> dict[Variant, Part]:
    """What each variant keeps and loses, on the first rows of the pool and a student that is half done."""
    n = bench.plan.n_compared
    z, y = bench.beside(bench.work / "half", "pool", n)
    words = bench.words("pool").first(n)
    found = {}
    for variant in VARIANTS:
        counts = kept_counts(z, variant.tail_mass, variant.max_logits)
        mask = kept_mask(z, counts)
        n_bytes = len(words.targets(variant.tail_mass, variant.max_logits).to_bytes()) / len(z)
        losses = tuple(losses_of(z, mask, y, temperature) for temperature in TEMPERATURES)
        found[variant] = Part(float(counts.double().mean()), n_bytes, losses)
    return found


# What is printed.


def part_table(found: dict[Variant, Part]) -> Iterator[str]:
    """What is kept and lost, as Markdown."""
    each = [f"{what}, T = {t:g}" for what in ("mass kept: mean, worst", "KL off by") for t in TEMPERATURES]
    yield f"| kept | logits | bytes | {' | '.join(each)} |"
    yield "|---" * (3 + len(each)) + "|"
    for variant, part in found.items():
        mass = " | ".join(f"{100 * loss.mass_mean:.2f}, {100 * loss.mass_least:.2f} %" for loss in part.losses)
        error = " | ".join(f"{loss.kl_error:.2%}" for loss in part.losses)
        yield f"| {_named(variant)} | {part.n_kept:.1f} | {part.n_bytes:,.0f} | {mass} | {error} |"


def dtype_table(bench: Bench) -> Iterator[str]:
    """What storing the default's logits in fewer bits loses, as Markdown."""
    z, y = bench.beside(bench.work / "half", "pool", bench.plan.n_compared)
    mask = kept_mask(z, kept_counts(z, DEFAULT.tail_mass, DEFAULT.max_logits))
    lost = [dtype_losses(z, mask, y, temperature) for temperature in TEMPERATURES]
    yield f"| logits stored as | bytes each | {' | '.join(f'KL off by, T = {t:g}' for t in TEMPERATURES)} |"
    yield "|---" * (2 + len(TEMPERATURES)) + "|"
    for name, (_, n_bytes) in DTYPES.items():
        yield f"| {name} | {n_bytes} | {' | '.join(f'{each[name]:.1e}' for each in lost)} |"


def student_table(bench: Bench, seeds: int) -> Iterator[str]:
    """What students make of it, as Markdown: means and standard errors over seeds."""
    each = [
        f"{what}, T = {t:g}" for t in TEMPERATURES for what in (bench.plan.metric, "KL from the teacher", "seconds")
    ]
    yield f"| learnt from | {' | '.join(each)} |"
    yield "|---" * (1 + len(each)) + "|"
    for variant in VARIANTS:
        columns = []
        for temperature in TEMPERATURES:
            cells = [Cell(variant, temperature, seed).file(bench) for seed in range(seeds)]
            found = [json.loads(file.read_text()) for file in cells]
            columns += [_mean([one["score"] for one in found], 2), _mean([one["divergence"] for one in found], 4)]
            columns.append(f"{statistics.mean(one['seconds'] for one in found):.0f}")
        yield f"| {_named(variant)} | {' | '.join(columns)} |"


def _named(variant: Variant) -> str:
    return f"**{variant.name}** (default)" if variant == DEFAULT else variant.name


def _mean(values: Sequence[float], digits: int) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


# The run.


def measure(setups: Sequence[Setup], *, seeds: int, jobs: int, threads: int) -> None:
    """Everything that is not there yet, in ``jobs`` processes of ``threads`` threads each; then the tables."""
    began = time.monotonic()
    run_all([(prepare, (setup,)) for setup in setups], jobs, threads)
    trainings = []
    # The longest first, so that no process has to be waited for at the end.
    for variant in reversed(VARIANTS):
        cells = [Cell(variant, temperature, seed) for temperature in TEMPERATURES for seed in range(seeds)]
        trainings += [(train, (setup, cells)) for setup in reversed(setups)]
    run_all(trainings, jobs, threads)
    for setup in setups:
        bench, plan = setup.bench(), setup.plan
        teacher = json.loads((bench.work / "teacher.json").read_text())
        print(
            f"\n## {plan.name}\n\nTeacher {plan.metric} {teacher:.1f}; a pool of {plan.n_pool:,} rows; {seeds} seeds, "
            f"± one standard error; KL from the teacher at T = 1 in nats per token of {plan.n_compared} unseen rows.\n"
        )
        for lines in (part_table(parts(bench)), dtype_table(bench), student_table(bench, seeds)):
            print("\n".join([*lines, ""]), flush=True)
    print(f"{time.monotonic() - began:.0f} s with {jobs} process(es) of {threads} thread(s)")


def run_all(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], jobs: int, threads: int) -> None:
    """Call each with its arguments, print what it has to say; with one job in this process."""
    if jobs == 1:
        use_threads(threads)
        for function, arguments in calls:
            _tell(function(*arguments))
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), use_threads, (threads,)) as pool:
        for done in as_completed([pool.submit(function, *arguments) for function, arguments in calls]):
            _tell(done.result())


def _tell(line: str | None) -> None:
    if line:
        print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("OUTLAY_DATA"), help="default: $OUTLAY_DATA")
    parser.add_argument("--work", type=Path, default=Path("bench-sparse-targets"))
    parser.add_argument("--tasks", nargs="+", choices=[plan.name for plan in PLANS], help="default: both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    given = parser.parse_args(argv)
    if given.data is None:
        print("no data: set OUTLAY_DATA to the folder of the public data sets, or give --data")
        return 0
    setups = [
        Setup(plan, Path(given.data), given.work) for plan in PLANS if given.tasks is None or plan.name in given.tasks
    ]
    measure(setups, seeds=given.seeds, jobs=given.jobs, threads=given.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
