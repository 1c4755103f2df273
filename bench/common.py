"""What the benches of speed share: rows, models made on the spot, clocks, interleaved runs, and the table at the end."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from bench.published_objective import FreeMeter
from outlay.errors import MissingData
from outlay.hardware.precision import bf16_speed, ratio_words
from outlay.hardware.processor import cpu_name
from outlay.hardware.quota import usable_cores
from outlay.models.loading import ModelSpec
from outlay.models.random_init import Corpus, build_checkpoint
from outlay.models.sizes import Size
from outlay.settings import TrainSettings
from outlay.spec import TaskSpec
from outlay.tasks.example import Example, seeded_order
from outlay.tasks.task import load_task
from outlay.train.api import TrainContext, finetune, use_threads

Made = TypeVar("Made")
Texts = list[tuple[str, ...]]

VOCAB_SIZE = 8192
TEACHER = Size("teacher", "t5", 8, 512, 1024, 6, VOCAB_SIZE, head_size=64, n_decoder_layers=8)
"""52M parameters."""
STUDENT = Size("student", "t5", 2, 128, 256, 4, VOCAB_SIZE, head_size=32, n_decoder_layers=2)
"""3M parameters."""
ENCODER = Size("encoder", "bert", 2, 128, 512, 4, VOCAB_SIZE, head_size=32, n_positions=512)
TOY_TEACHER = replace(TEACHER, n_layers=2, n_decoder_layers=2, hidden_size=48, d_ff=64, n_heads=2, head_size=16)
TOY_STUDENT = replace(STUDENT, n_layers=1, n_decoder_layers=1, hidden_size=32, d_ff=48, n_heads=2, head_size=16)
TOY_ENCODER = replace(ENCODER, n_layers=1, hidden_size=32, d_ff=48, n_heads=2, head_size=16)
TOY_VOCAB_SIZE = 353

_MARKERS = (("awful", "dull", "broken"), ("lovely", "bright", "clever"))
_FILLERS = ("the", "a", "of", "film", "story", "actor", "scene", "music", "plot", "camera")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a task in a seeded order: ``train`` and ``test`` with their answers, and a ``pool`` without.

    A text is a tuple of one or two strings: what an encoder reads as its segments, or the one text a T5 reads behind its prefix.
    """

    form: TaskSpec
    train: Texts
    answers: list[str]
    pool: Texts
    test: Texts
    test_answers: list[str]

    @property
    def corpus(self) -> Corpus:
        """What a tokenizer is learnt from: the texts, and what is to be written of them; a label is one piece."""
        texts = [" ".join(text) for text in (*self.train, *self.pool)]
        if self.form.kind == "classification":
            return Corpus([*texts, self.form.prefix], self.form.labels)
        return Corpus([*texts, *self.answers, self.form.prefix])


class Clock:
    """Notes when steps end: a callback of outlay's loop, and of a `Trainer` by `StepTimes`."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.marks: list[tuple[int, float]] = []

    def __call__(self, progress: Any, n_steps: int) -> None:
        self.note(progress.step)

    def note(self, step: int) -> None:
        """``step`` steps, counted from 1, have been taken."""
        self.marks.append((step, time.perf_counter()))

    @property
    def seconds(self) -> float:
        """From the making of the clock to the end of the last step."""
        return self.marks[-1][1] - self.began

    def per_step(self, first: int = 0, last: int | None = None) -> float:
        """Mean seconds of the steps behind step ``first``, up to step ``last``; the loop may have told of some steps only.

        Step 0 ends when the clock was made.
        """
        at = dict([(0, self.began), *self.marks])
        told = [step for step in at if step >= first and (last is None or step <= last)]
        begin, end = min(told), max(told)
        if begin == end:
            raise ValueError(f"no step was told of behind step {first}; take more steps")
        return (at[end] - at[begin]) / (end - begin)


class StepTimes(transformers.TrainerCallback):
    """Tells a `Clock` of a `Trainer`'s steps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock.note(state.global_step)


class ListDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokenised rows in memory, as a `Trainer` reads them."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._rows[row]


class Work:
    """A folder of checkpoints; what is in it already is not made again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def made(self, name: str, of: Any, make: Callable[[Path], object]) -> Path:
        """The folder that ``make`` filled from ``of``, everything that decides what is in it."""
        key = hashlib.sha256(repr(of).encode()).hexdigest()[:12]
        folder = self.folder / f"{name}-{key}"
        if not folder.exists():
            half_made = self.folder / f".{folder.name}.tmp"
            shutil.rmtree(half_made, ignore_errors=True)
            make(half_made)
            half_made.rename(folder)
        return folder

    def blank(self, size: Size, corpus: Corpus, seed: int = 0) -> Path:
        """A model of random weights; models of one corpus and type share a tokenizer."""
        return self.made(
            size.name, (size, corpus, seed), lambda folder: build_checkpoint(size, corpus, folder, seed=seed)
        )

    def tuned(self, blank: Path, rows: Rows, settings: TrainSettings) -> Path:
        """The model in ``blank`` fine-tuned on the labels of ``rows``, so that it answers in the form of its task."""

        def make(folder: Path) -> None:
            print(f"fine-tuning {blank.name} on {len(rows.train):,} labels", file=sys.stderr, flush=True)
            spec = ModelSpec(str(blank), str(blank), rows.form, settings.seed)
            finetune(spec, rows.train, rows.answers, settings, dev=None, out=folder, context=TrainContext(FreeMeter()))

        decides = (blank.name, rows.form, rows.train, rows.answers, asdict(settings))
        return self.made(f"tuned-{blank.name}", decides, make)


@dataclass(frozen=True, slots=True)
class Report:
    """What a bench has to say: tables of figures as they are printed, and the same figures by name."""

    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    """Title, header and rows of each."""
    figures: Mapping[str, Any]
    failures: Sequence[str] = ()
    """What did not come out as it must; the bench's exit code is 1 then."""


def parser(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options of every bench."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folder of the public data sets (default: $OUTLAY_DATA)")
    made.add_argument(
        "--toy", action="store_true", help="seconds, on rows and models too small to measure: a test of the bench"
    )
    made.add_argument("--threads", type=int, default=usable_cores())
    made.add_argument("--repeats", type=int, default=repeats, help="interleaved runs, of which the median is printed")
    made.add_argument(
        "--work", type=Path, help="keep models here, and take those that are here (default: make them anew)"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return made


def run(
    given: argparse.Namespace, bench: Callable[[argparse.Namespace, Work], Report], *, needs_data: bool = True
) -> int:
    """Run a bench as the command line asks, print and write what it says; its exit code.

    ``needs_data``: it is skipped where the public data sets are not there; for one that does without, ``given.data`` is ``None``
    then.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    use_threads(given.threads)
    data = given.data or (Path(os.environ["OUTLAY_DATA"]) if os.environ.get("OUTLAY_DATA") else None)
    if not needs_data and (data is None or not data.is_dir()):
        data = None
    elif not given.toy and (data is None or not data.is_dir()):
        print(f"skipped: no public data sets in {data or '$OUTLAY_DATA, which is not set'}; --data FOLDER, or --toy")
        return 0
    given.data = data
    began = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = bench(given, Work(given.work or Path(folder)))
        except MissingData as error:
            print(f"skipped: {error}")
            return 0
    ratio = bf16_speed().ratio
    about = {
        "command": shlex.join(["python", "-m", f"bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "date": began.date().isoformat(),
        "machine": machine(given.threads),
        "bf16 ratio": "not measured" if ratio is None else ratio_words(ratio),
        "seconds": round((datetime.now(UTC) - began).total_seconds()),
    }
    if given.json:
        document = {**about, "toy": given.toy, **report.figures, "failures": list(report.failures)}
        given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for title, header, rows in report.tables:
        console.print(_table(title, header, rows))
    for name, value in about.items():
        print(f"{name}: {value}")
    for failure in report.failures:
        print(f"FAILED: {failure}")
    return int(bool(report.failures))


def interleaved(contestants: Mapping[str, Callable[[int], Made]], repeats: int) -> dict[str, list[Made]]:
    """Every contestant in turn, ``repeats`` times over (A B A B): what slows the machine for a while slows all of them.

    A contestant is called with the number of the round, from 0.
    """
    results: dict[str, list[Made]] = {name: [] for name in contestants}
    for turn in range(repeats):
        for name, contestant in contestants.items():
            print(f"{name}, run {turn + 1} of {repeats}", file=sys.stderr, flush=True)
            results[name].append(contestant(turn))
    return results


def median(values: Sequence[float]) -> float:
    """Of the runs of one contestant."""
    return statistics.median(values)


def timed(call: Callable[[], Made]) -> tuple[Made, float]:
    """What a call gives, and its seconds."""
    began = time.perf_counter()
    made = call()
    return made, time.perf_counter() - began


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is not there yet, for what nobody reads."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "out"


def trainer_arguments(settings: TrainSettings, n_rows: int, out: Path, changes: Mapping[str, Any]) -> Any:
    """Arguments of a `Seq2SeqTrainer` (or `Trainer`) that does what ``settings`` say, in float32, batches as they come.

    ``changes``: other arguments of its own.
    """
    n_steps = -(-n_rows // settings.batch_size) * settings.epochs
    fraction = settings.warmup_fraction
    arguments: dict[str, Any] = {
        "output_dir": str(out),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": max(1, round(fraction * n_steps)) if fraction > 0 else 0,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        **changes,
    }
    return transformers.Seq2SeqTrainingArguments(**arguments)


def task_rows(name: str, data: Path, *, segments: bool = False) -> Rows:
    """The rows of a shipped task in the order of seed 0; ``segments``: as an encoder reads them.

    Raises:
        MissingData: its files are not in ``data``.
    """
    from outlay.tasks.loading import load_data

    task = load_task(name)
    read = load_data(task, data)

    def ordered(examples: Sequence[Example]) -> list[Example]:
        return [examples[at] for at in seeded_order([example.id for example in examples], 0)]

    def texts(examples: Sequence[Example]) -> Texts:
        return [task.segments_of(example) if segments else (example.text,) for example in examples]

    train, test = ordered(read.train), ordered(read.test)
    pool = ordered([example for part in read.pool for example in part.examples])
    answers, test_answers = ([example.label or "" for example in examples] for examples in (train, test))
    return Rows(task.form, texts(train), answers, texts(pool), texts(test), test_answers)


def toy_rows(kind: str, *, n: int = 96) -> Rows:
    """``n`` made-up rows of each split: sentences whose one marker word is the label (``claims``), the same with a second
    segment (``pairs``), or sentences whose marker words are to be listed (``spans``)."""
    rng = random.Random(kind)
    rows: list[tuple[tuple[str, ...], str]] = []
    for _ in range(3 * n):
        label = rng.randrange(2)
        words = rng.choices(_FILLERS, k=rng.randint(2, 12))
        marked = (
            [rng.choice(_MARKERS[label])] if kind != "spans" else rng.choices(sum(_MARKERS, ()), k=rng.randint(1, 3))
        )
        for word in marked:
            words.insert(rng.randrange(len(words) + 1), word)
        listed = " ".join(f"{word} [Mood]" for word in words if word in sum(_MARKERS, ()))
        segments = (" ".join(words), *([" ".join(rng.choices(_FILLERS, k=3))] if kind == "pairs" else []))
        rows.append((segments, listed if kind == "spans" else ("bad", "good")[label]))
    form = TaskSpec("classification", ("bad", "good"), 32, 8, "mood: ")
    if kind == "spans":
        form = TaskSpec("entities", ("Mood",), 32, 24, "moods: ")
    parts = [rows[at * n : (at + 1) * n] for at in range(3)]
    split_texts, split_answers = ([[row[i] for row in part] for part in parts] for i in range(2))
    return Rows(form, split_texts[0], split_answers[0], split_texts[2], split_texts[1], split_answers[1])  # type: ignore[arg-type]


def toy_size(size: Size) -> Size:
    """The size that stands for ``size`` in a test of a bench."""
    small = {"teacher": TOY_TEACHER, "student": TOY_STUDENT, "encoder": TOY_ENCODER}[size.name]
    return replace(small, vocab_size=TOY_VOCAB_SIZE)


def machine(threads: int) -> str:
    """Processor, threads and library versions in one line."""
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{cpu_name()}, {threads} threads of {usable_cores()}{device}, {versions}"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for at, name in enumerate(header):
        table.add_column(name, justify="right" if at else "left")
    for row in rows:
        table.add_row(*row)
    return table
