"""Answers of trained models: a teacher's targets, predictions, and the milliseconds that one takes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from outlay.errors import UsageError
from outlay.metrics.calibration import probabilities_at
from outlay.models.forecast import ANSWERING
from outlay.models.generative_heads import GenerationHead, RankClassificationHead
from outlay.models.heads import Generation, Head, LogitSink, Rows, Sources, Texts
from outlay.models.loading import (
    load_saved,
    read_head_file,
)
from outlay.models.pooled import PooledHead
from outlay.settings import TeachSettings
from outlay.spec import TargetKind
from outlay.train import timing
from outlay.train.batching import inference_batches
from outlay.train.distributed import ProcessGroup, current_process
from outlay.train.profiler import Profiler, part
from outlay.train.progress import WorkMeter
from outlay.train.targets.targets import SparseTargets, TargetsBuilder


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers of a trained model, in row order, and the calibrated probabilities of a classifier.

    ``probabilities``: float64 ``[rows, labels]``, softmax(logits / ``temperature``); ``None`` for a model that writes its answers
    or tags tokens. ``temperature``: stored with the model where it had a dev set, else 1.
    """

    answers: list[str]
    probabilities: NDArray[np.float64] | None = None
    temperature: float | None = None


def teach(
    model_folder: Path,
    sources: Texts,
    *,
    target: TargetKind,
    settings: TeachSettings,
    precision: str,
    meter: WorkMeter,
    vocab_size: int | None = None,
    device_map: str | None = None,
    profiler: Profiler | None = None,
) -> SparseTargets:
    """Return the teacher's targets for one block of pool rows, in row order.

    ``vocab_size``: for ``tokens``, the rows of the vocabulary that teacher and student both have; the rest is padding of the
    teacher's and is left out.

    Raises:
        UsageError: this teacher cannot give such targets.
    """
    with part(profiler, "load"):
        model, head = loaded_model(model_folder, device_map)
    if target == "text":
        with part(profiler, "speak"):
            return SparseTargets.text_only(_answers(model, head, sources, settings, precision, meter))
    head = _head_for(head, target)
    with part(profiler, "data"):
        read = head.tokenize(sources)
    builder = TargetsBuilder(
        target, len(read), vocab_size=vocab_size, max_logits=settings.max_logits, tail_mass=settings.tail_mass
    )
    answers: dict[int, str] = {}
    width = longest_answer_of(head) if settings.keep_padding else 0
    with part(profiler, "speak"):
        for rows, generation, texts in generations(model, head, read, settings, precision, meter, sink=builder.put):
            n_kept = np.full(len(rows), width, dtype=np.int64) if width else None
            builder.answer(rows, generation.units, n_kept=n_kept, pad_unit=head.pad_unit)
            answers.update(zip(rows.tolist(), texts, strict=True))
    with part(profiler, "keep"):
        return builder.build([answers[row] for row in range(len(read))])


def predict(
    model_folder: Path,
    sources: Texts,
    *,
    precision: str,
    meter: WorkMeter,
    beams: int = 1,
    batch_size: int = ANSWERING.batch_size,
    device_map: str | None = None,
) -> Predictions:
    """Return a trained model's answers, in row order, and a classifier's probabilities.

    A generative model is not held to the labels.
    """
    model, head = loaded_model(model_folder, device_map)
    settings = TeachSettings(beams=beams, batch_size=batch_size, answers_from="free")
    if head.target != "classes":
        return Predictions(_answers(model, head, sources, settings, precision, meter))
    seen = np.zeros((len(sources), len(head.form.labels)))

    def keep(rows: Rows, positions: Rows, logits: torch.Tensor) -> None:  # noqa: ARG001
        seen[rows] = logits.float().cpu().numpy()

    answers = _answers(model, head, sources, settings, precision, meter, sink=keep)
    temperature = float(read_head_file(model_folder).get("temperature", 1.0))
    return Predictions(answers, probabilities_at(seen, temperature), temperature)


def milliseconds_a_row(model_folder: Path, sources: Texts, *, precision: str) -> float | None:
    """Return the wall milliseconds of one answer by a trained model: a batch of one row, tokenising included.

    The median over rows of the fastest of a few rounds: what else the machine is doing takes time from a row, and gives it none.
    Nothing is read from caches: frozen vectors are computed. The first answer warms up, and counts only where it takes all the
    time there is. ``None`` without rows.
    """
    model, head = loaded_model(model_folder, None)
    settings = TeachSettings(batch_size=1, answers_from="free")
    timed = range(min(len(sources), timing.N_TIMED_ROWS))
    fastest: dict[int, float] = {}
    with _without_vector_cache(head):
        began = time.perf_counter()
        for count, at in enumerate([*timed[:1], *(list(timed) * timing.TIMING_ROUNDS)]):
            start = time.perf_counter()
            for _ in generations(model, head, head.tokenize([sources[at]]), settings, precision, None):
                pass
            end = time.perf_counter()
            is_late = end - began >= timing.TIMING_SECONDS
            if count or is_late:
                fastest[at] = min(1000 * (end - start), fastest.get(at, math.inf))
            if is_late:
                break
    return round(statistics.median(fastest.values()), 3) if fastest else None


@contextmanager
def _without_vector_cache(head: Head) -> Iterator[None]:
    """Compute frozen vectors anew inside this block."""
    cache = head.cache if isinstance(head, PooledHead) else None
    if isinstance(head, PooledHead):
        head.cache = None
    try:
        yield
    finally:
        if isinstance(head, PooledHead):
            head.cache = cache


_loaded: dict[tuple[Path, int, str | None], tuple[nn.Module, Head]] = {}


def loaded_model(folder: Path, device_map: str | None) -> tuple[nn.Module, Head]:
    """Load a saved model, keeping the last one: a teacher pass has block after block."""
    written = max((path.stat().st_mtime_ns for path in folder.glob("*.safetensors")), default=0)
    key = (folder.resolve(), written, device_map)
    if key not in _loaded:
        _loaded.clear()
        model, head, _ = load_saved(folder, device_map=device_map)
        _loaded[key] = (model if device_map else model.to(current_process().device), head)
    return _loaded[key]


def _head_for(head: Head, target: TargetKind) -> Head:
    """Return the head by which this model gives such targets."""
    if head.target == target:
        return head
    if target == "classes" and isinstance(head, GenerationHead) and head.form.kind == "classification":
        return RankClassificationHead(head)
    if target == "tokens" and isinstance(head, RankClassificationHead):
        return head.writer
    raise UsageError(
        f"a {head.family} model of kind {head.form.kind!r} hands over {head.target} or text, not {target}; choose one of those"
    )


def generations(
    model: nn.Module,
    head: Head,
    read: Sources,
    settings: TeachSettings,
    precision: str,
    meter: WorkMeter | None,
    *,
    sink: LogitSink | None = None,
    shard: ProcessGroup | None = None,
) -> Iterator[tuple[Rows, Generation, list[str]]]:
    """Yield rows, generation and answers batch by batch, largest first; each process of ``shard`` takes every n-th batch."""
    with _inference(model, precision):
        batches = inference_batches(read.encoded.lengths, settings.batch_size, settings.batch_tokens)
        if meter is not None:
            meter.inferred(0)  # the work begins here: what went before was loading and tokenising
        for i, rows in enumerate(batches):
            if shard is not None and i % shard.n_processes != shard.rank:
                continue
            generation = head.generate(model, read, rows, settings, sink=sink)
            if meter is not None:
                meter.inferred(generation.n_tokens)
            yield rows, generation, head.decode(read, rows, generation.units)
    if isinstance(head, PooledHead) and head.cache is not None:
        head.cache.flush()


def _answers(
    model: nn.Module,
    head: Head,
    sources: Texts,
    settings: TeachSettings,
    precision: str,
    meter: WorkMeter,
    *,
    sink: LogitSink | None = None,
) -> list[str]:
    read = head.tokenize(sources)
    answers: dict[int, str] = {}
    for rows, _, texts in generations(model, head, read, settings, precision, meter, sink=sink):
        answers.update(zip(rows.tolist(), texts, strict=True))
    return [answers[row] for row in range(len(read))]


@contextmanager
def _inference(model: nn.Module, precision: str) -> Iterator[None]:
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        model.train(was_training)


def longest_answer_of(head: Head) -> int:
    """Return the most tokens of an answer; 0 where none is written."""
    return head.form.max_target_tokens if head.target == "tokens" else 0
