"""The published WLP pipeline at its true size on one GPU: how fast each step is, and what the whole would take and cost.

    python bench/gpu.py [--minutes 9] [--json FILE]           # on one GPU with 80 GB or more
    python bench/gpu.py --toy                                   # the same code on toy models, as a test of itself

T5 v1.1 XXL (11.1B parameters) as teacher and Small (77M) as student, of random weights drawn on the device, in the real code:
the training loop, the heads, the targets. Kang et al. 2023 (Table 6) fine-tune the teacher on 5,000 labels for 20 epochs and
distil 100,000 unlabelled lines for 50 epochs; those are extrapolated from measured steps. Lengths are drawn as lines and answers
of WLP have them (59 tokens together), tokens at random. Tokenising, evaluation and saving are not in it.

A random teacher does not end its answers, so each is ended at the length that was drawn for it. Its distributions are nearly
flat, so every position of the targets keeps ``max_logits`` logits: a trained teacher keeps fewer, and the student is faster.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# Where outlay is not installed, as on a rented GPU, it is found beside this folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.drawn import Endings, Lengths, drawn_head, drawn_model, drawn_rows, drawn_targets, ended, n_words
from bench.gpu_table import (
    N_LABELS,
    N_POOL,
    STUDENT_EPOCHS,
    TEACHER_EPOCHS,
    Card,
    Measured,
    Row,
    card_of,
    line,
    table,
)
from outlay.models.generative_heads import GenerationHead
from outlay.models.heads import LogitSink
from outlay.models.peft import add_adapters, cast, compiled
from outlay.models.shape import flops_infer, flops_train, shape_of_size
from outlay.models.sizes import Size, find_size
from outlay.settings import TeachSettings, TrainSettings
from outlay.train.batching import inference_batches
from outlay.train.distributed import ProcessGroup, current_process
from outlay.train.loop import Objective, fit
from outlay.train.objectives import DistillationObjective, SupervisedObjective
from outlay.train.progress import TrainContext
from outlay.train.targets.targets import TargetsBuilder

LEAST_BYTES = 75 * 2**30
"""Memory below which the true sizes are not tried; a GPU sold as 80 GB shows a little less."""

ROOMY_BYTES = 100 * 2**30
"""Memory from which the teacher's activations are kept: weights and gradients take 45 GB, activations about 10."""

GRACE_SECONDS = 20.0
"""What a section may take over its time before it is broken off."""


class OutOfTime(Exception):
    """A section did not stop by itself."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What is measured: sizes by name (``sizes.yaml``), lengths, and how much of it."""

    teacher: str
    student: str
    lengths: Lengths
    n_steps: int
    n_warm: int
    teacher_batch: int
    student_batches: tuple[int, ...]
    n_taught: int
    n_student_rows: int
    taught: TeachSettings
    compile: bool


TRUE = Scale(
    teacher="t5-v1_1-xxl",
    student="t5-v1_1-small",
    lengths=Lengths(25, 34, 128),
    n_steps=40,
    n_warm=5,
    teacher_batch=32,
    student_batches=(32, 512),
    n_taught=4096,
    n_student_rows=8192,
    taught=TeachSettings(batch_size=1024, batch_tokens=32768),
    compile=True,
)
TOY = Scale(
    teacher="t5-tiny",
    student="t5-micro",
    lengths=Lengths(7, 5, 13),
    n_steps=3,
    n_warm=1,
    teacher_batch=4,
    student_batches=(4, 8),
    n_taught=24,
    n_student_rows=32,
    taught=TeachSettings(batch_size=16, batch_tokens=256),
    compile=False,
)


@dataclass(frozen=True, slots=True)
class Task:
    """A measurement to come: ``run`` takes the seconds it has; ``n_pipeline``: examples of the pipeline that take this step."""

    what: str
    how: str
    n_pipeline: int
    run: Callable[[float], Measured]


@dataclass(slots=True)
class World:
    """What every section has at hand."""

    scale: Scale
    place: ProcessGroup
    card: Card
    ends: float
    rows: list[Row] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return self.place.device

    @property
    def is_tight(self) -> bool:
        """Whether a GPU has too little memory to keep the teacher's activations."""
        if self.device.type != "cuda":
            return False
        return bool(torch.cuda.get_device_properties(self.device).total_memory < ROOMY_BYTES)

    def add(self, row: Row) -> None:
        """Keep a row, and show it."""
        self.rows.append(row)
        print(line(self.card, row), flush=True)

    def sync(self) -> float:
        """The time once the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class Clock:
    """A meter that times steps: from the end of the warm-up until enough are done or the time is up."""

    def __init__(self, world: World, seconds: float) -> None:
        self._world = world
        self._until = time.perf_counter() + seconds
        self._n_warm, self._n_all = world.scale.n_warm, world.scale.n_warm + world.scale.n_steps
        self._n = 0
        self._began = 0.0
        self.n_tokens = 0

    @property
    def n_timed(self) -> int:
        return max(0, self._n - self._n_warm)

    def may_train(self, n_tokens: int) -> bool:
        return self._n < self._n_all and time.perf_counter() < self._until

    def trained(self, n_tokens: int) -> None:
        self._n += 1
        if self._n == self._n_warm:
            self._began = self._world.sync()
        elif self._n > self._n_warm:
            self.n_tokens += n_tokens

    def inferred(self, n_tokens: int) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def seconds(self) -> float:
        """Of the timed steps; call once they are all given to the device."""
        if self.n_timed == 0:
            raise OutOfTime("the time was up before the warm-up was over")
        return self._world.sync() - self._began


# Sections: each makes what its tasks share, and hands them over one by one.

Section = Callable[["World"], Iterator[Task]]


def teacher_tasks(world: World) -> Iterator[Task]:
    """Teacher pass, full fine-tuning and LoRA, one after another on the same weights."""
    scale = world.scale
    size = find_size(scale.teacher)
    model = drawn_model(size, torch.bfloat16, world.device)
    head = drawn_head(scale.lengths.most, size)
    how = f"at most {scale.taught.batch_size:,} rows, {scale.taught.batch_tokens:,} tokens"
    yield Task("teacher pass", how, N_POOL, lambda seconds: taught(world, model, head, size, seconds))
    sources, units = drawn_rows(scale.lengths, scale.teacher_batch * (scale.n_steps + scale.n_warm), n_words(size))
    lesson = SupervisedObjective(head, sources, units)
    full = TrainSettings(
        epochs=1000,
        batch_size=scale.teacher_batch,
        learning_rate=3e-5,
        precision="bf16_weights",
        optimizer="adafactor",
        gradient_checkpointing=world.is_tight,
    )
    for settings in (full, replace(full, method="lora", learning_rate=1e-4)):
        yield Task(
            "fine-tune teacher",
            told(settings),
            N_LABELS * TEACHER_EPOCHS,
            lambda seconds, settings=settings: stepped(world, (model, size), lesson, settings, seconds),
        )


def student_tasks(world: World) -> Iterator[Task]:
    """From targets and on plain cross-entropy, in small batches and in large ones, as it is and compiled."""
    scale = world.scale
    size = find_size(scale.student)
    head = drawn_head(scale.lengths.most, size)
    sources, units = drawn_rows(scale.lengths, scale.n_student_rows, n_words(size))
    targets = drawn_targets(units, size.vocab_size, scale.taught, world.device)
    for is_compiled in (False, True) if scale.compile else (False,):
        for batch in scale.student_batches:
            settings = TrainSettings(
                epochs=1000,
                batch_size=batch,
                learning_rate=3e-5,
                temperature=2.0,
                precision="bf16",
                compile=is_compiled,
            )
            lessons: dict[str, Objective] = {"distil student": DistillationObjective(head, sources, targets, settings)}
            if not is_compiled:
                lessons["student on cross-entropy"] = SupervisedObjective(head, sources, units)
            for what, lesson in lessons.items():
                model = drawn_model(size, torch.float32, world.device)
                yield Task(
                    what,
                    told(settings),
                    N_POOL * STUDENT_EPOCHS,
                    lambda seconds, of=((model, size), lesson, settings): stepped(world, *of, seconds),
                )


def taught(world: World, model: nn.Module, head: GenerationHead, size: Size, seconds: float) -> Measured:
    """The teacher pass over a block of rows, as `outlay.train.api.teach` makes it."""
    scale, until = world.scale, time.perf_counter() + seconds
    sources, units = drawn_rows(scale.lengths, scale.n_taught, n_words(size), seed=7)
    lengths = sources.encoded.lengths + units.lengths
    endings = Endings(units.lengths, world.device)
    batches = list(inference_batches(sources.encoded.lengths, scale.taught.batch_size, scale.taught.batch_tokens))
    # They come by falling length. Should the time be up before the end, those that were done are to stand for all.
    order = np.random.default_rng(0).permutation(len(batches))
    builder = TargetsBuilder(
        "tokens", len(sources), max_logits=scale.taught.max_logits, tail_mass=scale.taught.tail_mass
    )

    def speak(rows: NDArray[np.int64], sink: LogitSink) -> None:
        endings.begin(rows)
        said = head.generate(model, sources, rows, scale.taught, sink=sink).units
        if [len(answer) for answer in said] != units.lengths[rows].tolist():
            raise RuntimeError("answers did not end where they were to end")
        if sink == builder.put:
            builder.answer(rows, said)

    done: list[int] = []
    with ended(model, endings), torch.no_grad():
        speak(batches[order[0]][:: max(1, len(batches[order[0]]) // 16)], _unheard)
        began = world.sync()
        for at in order:
            speak(batches[at], builder.put)
            done += batches[at].tolist()
            if time.perf_counter() > until:
                break
        if len(done) == len(sources):
            builder.build([""] * len(sources))
        spent = world.sync() - began
    n_tokens = int(lengths[done].sum())
    return Measured(len(done), n_tokens, spent, flops_infer(shape_of_size(size), n_tokens, 0), peak_bytes(world))


def stepped(
    world: World, learner: tuple[nn.Module, Size], lesson: Objective, settings: TrainSettings, seconds: float
) -> Measured:
    """Steps of the training loop."""
    model, size = learner
    clock = Clock(world, seconds)
    try:
        fit(
            compiled(cast(add_adapters(model, settings), settings), settings),
            lesson,
            settings,
            TrainContext(clock),
            group=world.place,
        )
        spent = clock.seconds()
    finally:
        model.zero_grad(set_to_none=True)
    flops = flops_train(shape_of_size(size), clock.n_tokens, 0)
    if settings.method != "full":
        # The gradients of the frozen weights, a third of the work, are not computed.
        flops = flops * 2 // 3
    return Measured(clock.n_timed * settings.batch_size, clock.n_tokens, spent, flops, peak_bytes(world))


def told(settings: TrainSettings) -> str:
    """What sets a row apart from the others."""
    words = [f"batch {settings.batch_size:,}", settings.precision.replace("_", " "), settings.optimizer]
    words += [settings.method] if settings.method != "full" else []
    words += ["checkpointed"] if settings.gradient_checkpointing else []
    words += ["compiled"] if settings.compile else []
    return ", ".join(words)


def peak_bytes(world: World) -> int:
    """The most that tensors took since `clear`."""
    return torch.cuda.max_memory_allocated() if world.device.type == "cuda" else 0


def clear() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _unheard(rows: NDArray[np.int64], positions: NDArray[np.int64], logits: Tensor) -> None:
    """A sink that keeps nothing."""


# Around the sections.


def measure(world: World, sections: Sequence[Section], seconds: float) -> None:
    """Run every task of every section, none longer than ``seconds``; one that fails says why, and the next one begins."""
    for section in sections:
        try:
            run_tasks(world, section, seconds)
        except Exception as error:
            world.add(Row(section.__name__.replace("_", " "), "", reason=first_line(error)))


def run_tasks(world: World, section: Section, seconds: float) -> None:
    """Those of one section; nothing of them is left behind, so that the next one has the whole memory."""
    for task in section(world):
        world.add(attempt(task, min(seconds, world.ends - time.perf_counter())))


def attempt(task: Task, seconds: float) -> Row:
    """A task's row, whatever happens to it."""
    if seconds < 1:
        return Row(task.what, task.how, reason="no time was left")
    clear()
    try:
        with broken_off_after(seconds + GRACE_SECONDS):
            return Row(task.what, task.how, task.n_pipeline, task.run(seconds))
    except Exception as error:
        return Row(task.what, task.how, reason=first_line(error))


@contextmanager
def broken_off_after(seconds: float) -> Iterator[None]:
    """An `OutOfTime` in the main thread after so many seconds."""

    def ring(*_: object) -> None:
        raise OutOfTime(f"broken off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def first_line(error: Exception) -> str:
    """Why, in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:150]


def notes(world: World) -> list[str]:
    """What a reader must know of the figures."""
    scale, card = world.scale, world.card
    lines = [
        f"{card.name}, torch {torch.__version__}, {date.today()}. {scale.teacher} teaches {scale.student}: random weights and "
        f"tokens, {scale.lengths.source} of a line and {scale.lengths.answer} of an answer on average, padding not counted.",
        f"Timed: {scale.n_steps} steps after {scale.n_warm}, or a pass over {scale.n_taught:,} rows. Answers are ended at "
        "lengths drawn beforehand; targets keep as many logits as they may (a trained teacher's keep fewer).",
        f"Hours of {N_LABELS:,} labels x {TEACHER_EPOCHS} epochs, a pass over {N_POOL:,} rows, {N_POOL:,} rows x "
        f"{STUDENT_EPOCHS} epochs; without tokenising, evaluation and saving. The published batch has 32 rows: with more, a "
        "student takes fewer steps. LoRA counts 2 of 3 parts of the FLOPs, for frozen weights have no gradient.",
    ]
    if card.counts and card.usd_per_hour is not None:
        lines.append(f"${card.usd_per_hour:g} an hour ({card.price_source}).")
    if not card.counts:
        lines.append("No GPU with 80 GB here, or --toy: toy models, so hours and dollars are not measured.")
    return lines


def make_world(toy: bool, minutes: float) -> World:
    """The device that is here, and the true scale where it fits."""
    place, began = current_process(), time.perf_counter()
    on_gpu = place.device.type == "cuda"
    fits = on_gpu and torch.cuda.get_device_properties(place.device).total_memory >= LEAST_BYTES and not toy
    card = card_of(torch.cuda.get_device_name() if on_gpu else "CPU", counts=fits)
    return World(TRUE if fits else TOY, place, card, began + 60 * minutes - 2 * GRACE_SECONDS)


def tell(world: World, file: Path | None) -> None:
    """Print notes and table, the table last."""
    print("\n".join(["", *notes(world), "", *table(world.rows, world.card)]), flush=True)
    if file is not None:
        document = {"device": world.card.name, "scale": asdict(world.scale), "rows": [asdict(r) for r in world.rows]}
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="the table is printed by then, whatever happens")
    parser.add_argument("--seconds", type=float, default=100.0, help="of one measurement at most")
    parser.add_argument("--toy", action="store_true", help="toy models, also where a large GPU is")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    parser.add_argument(
        "--source-tokens", type=int, help=f"of a line on average; {TRUE.lengths.source} at the true size"
    )
    parser.add_argument("--answer-tokens", type=int, help=f"of an answer; {TRUE.lengths.answer}")
    given = parser.parse_args(argv)
    world = make_world(given.toy, given.minutes)
    lengths = world.scale.lengths
    source, answer = given.source_tokens or lengths.source, given.answer_tokens or lengths.answer
    world.scale = replace(world.scale, lengths=replace(lengths, source=source, answer=answer))

    def give_up() -> None:
        tell(world, given.json)
        os._exit(1)

    watchdog = threading.Timer(60 * given.minutes, give_up)
    watchdog.daemon = True
    watchdog.start()
    measure(world, (teacher_tasks, student_tasks), given.seconds)
    watchdog.cancel()
    tell(world, given.json)
    return 0 if all(row.measured for row in world.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
