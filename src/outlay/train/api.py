"""The steps of a recipe as functions: fine-tune, teach, distil, predict. Inputs are texts and folders, outputs are files."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from outlay.errors import UsageError
from outlay.metrics.calibration import fit_temperature, probabilities_at
from outlay.models.forecast import ANSWERING
from outlay.models.generative_heads import GenerationHead, RankClassificationHead
from outlay.models.heads import Generation, Head, LogitSink, Rows, Sources, Texts
from outlay.models.loading import (
    ModelSpec,
    check_checkpoint,
    head_of,
    load_model,
    load_pooled,
    load_saved,
    origin_of,
    pooled_head,
    read_head,
    read_head_file,
    save_model,
    save_with_head,
    saved_head,
    set_dropout,
)
from outlay.models.peft import add_adapters, cast, check, compiled, merge_adapters
from outlay.models.pooled import PooledHead
from outlay.models.pooling import Pooling, pooling_of
from outlay.models.shape import family_of
from outlay.models.tokenization import AnswerIds
from outlay.settings import TeachSettings, TrainSettings, check_method
from outlay.spec import Reading, TargetKind, TaskSpec
from outlay.train.batching import inference_batches
from outlay.train.checkpoints import Checkpoints
from outlay.train.contrastive import ContrastiveObjective
from outlay.train.distributed import ProcessGroup, current_process
from outlay.train.loop import DevScore, Objective, fit
from outlay.train.objectives import DistillationObjective, SupervisedObjective, gold_units
from outlay.train.probe import Probe, ProbeReport, TaskMetric, class_numbers, fit_words, note_probe_score
from outlay.train.profiler import Profiler, part
from outlay.train.progress import TrainContext, TrainProgress, WorkMeter
from outlay.train.targets.targets import SparseTargets, TargetsBuilder

_NO_LIMIT = 2**20


@dataclass(frozen=True, slots=True)
class DevTexts:
    """Dev rows, and the function that scores answers to the first rows, as many as it is given.

    ``golds``: their answers, for the temperature of a classifier's probabilities; empty = none is fitted.
    """

    sources: Texts
    score: Callable[[Sequence[str]], float]
    golds: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers of a trained model, in row order, and the calibrated probabilities of a classifier.

    ``probabilities``: float64 ``[rows, labels]``, softmax(logits / ``temperature``); ``None`` for a model that writes its answers
    or tags tokens. ``temperature``: stored with the model where it had a dev set, else 1.
    """

    answers: list[str]
    probabilities: NDArray[np.float64] | None = None
    temperature: float | None = None


def finetune(
    spec: ModelSpec,
    sources: Texts,
    answers: Sequence[str],
    settings: TrainSettings,
    *,
    dev: DevTexts | None,
    out: Path,
    context: TrainContext,
    metric: TaskMetric | None = None,
) -> TrainProgress:
    """Train a model on answers by the method of its settings and write it to ``out``.

    ``metric``: of the task, by which a regression's strength may be chosen.

    Raises:
        ValueError: answers and sources differ in number.
        LabelError: an answer outside the label set.
        UsageError: the method does not suit the task or the model.
    """
    if len(answers) != len(sources):
        raise ValueError(f"{len(sources)} rows to train on but {len(answers)} answers")
    method = settings.chosen
    if not method.reads_vectors:
        check_method(settings, spec.form.kind, "encoder")
        return fit_words(spec.form, sources, answers, settings, dev=dev, out=out, context=context, metric=metric)
    learner = _Learner.load(spec, sources, settings)
    head, read = learner.head, learner.read
    units = head.encode_answers(read, answers)
    probe = Probe(learner.model, head, read, settings, context, origin_of(spec.ref, spec.base), metric)
    if settings.method == "contrastive":
        assert isinstance(head, PooledHead)
        contrastive = ContrastiveObjective(head, read, units.ids.astype(np.int64))
        return _train(
            learner,
            contrastive,
            settings,
            units,
            dev,
            out,
            context,
            afterwards=lambda: probe.fit_labels(units, frozen=False),
        )
    fitted = probe.fit_labels(units) if method.head == "probe" else None
    if method.trains == "none":
        return _keep_probe(learner, fitted, units, settings, dev, out, context)
    return _train(learner, SupervisedObjective(head, read, units), settings, units, dev, out, context, fitted)


def distil(
    spec: ModelSpec,
    sources: Texts,
    targets: SparseTargets,
    settings: TrainSettings,
    *,
    gold: Sequence[str | None] | None = None,
    dev: DevTexts | None,
    out: Path,
    context: TrainContext,
) -> TrainProgress:
    """Train a model on a teacher's stored targets and write it to ``out``.

    ``targets`` cover ``sources`` row by row; ``gold``: each row's gold answer, where it is known, for ``settings.gold_weight``.
    A teacher's text is learnt by cross-entropy, with the gold answer in its place where there is one and a weight is given.

    Raises:
        ValueError: targets and sources differ in number, or the temperature was not offered.
        UsageError: the student cannot learn from such targets.
    """
    if len(targets) != len(sources):
        raise ValueError(f"{len(sources)} pool rows but targets for {len(targets)} rows")
    check_method(settings, spec.form.kind, "encoder", learns_from="targets")
    if not settings.chosen.reads_vectors:
        if targets.kind not in ("classes", "text"):
            raise UsageError(
                f"the targets are {targets.kind}, and method {settings.method} learns from classes or text; teach again for "
                "an encoder"
            )
        learnt = targets if targets.kind == "classes" else targets.answers
        return fit_words(spec.form, sources, learnt, settings, dev=dev, out=out, context=context)
    learner = _Learner.load(spec, sources, settings)
    head, read = learner.head, learner.read
    known = None if settings.gold_weight == 0 else gold
    if targets.kind == "text":
        _refuse_published(settings)
        answers = targets.answers
        if known is not None:
            answers = tuple(taught if own is None else own for taught, own in zip(answers, known, strict=True))
        units = head.encode_answers(read, answers)
        first = _first_probe(learner, spec, settings, context)
        fitted = None if first is None else first.fit_labels(units)
        if settings.chosen.trains == "none":
            return _keep_probe(learner, fitted, units, settings, dev, out, context)
        return _train(learner, SupervisedObjective(head, read, units), settings, units, dev, out, context, fitted)
    _check_targets(learner, targets, settings)
    mixed = None if known is None else gold_units(head, read, known)
    first = _first_probe(learner, spec, settings, context)
    fitted = None if first is None else first.fit_targets(targets, mixed)
    if settings.chosen.trains == "none":
        return _keep_probe(learner, fitted, mixed, settings, dev, out, context)
    objective = DistillationObjective(head, read, targets, settings, mixed)
    return _train(learner, objective, settings, mixed, dev, out, context, fitted)


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
        model, head = _loaded_model(model_folder, device_map)
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
    width = _longest_answer(head) if settings.keep_padding else 0
    with part(profiler, "speak"):
        for rows, generation, texts in _generations(model, head, read, settings, precision, meter, sink=builder.put):
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
    model, head = _loaded_model(model_folder, device_map)
    settings = TeachSettings(beams=beams, batch_size=batch_size, answers_from="free")
    if head.target != "classes":
        return Predictions(_answers(model, head, sources, settings, precision, meter))
    seen = np.zeros((len(sources), len(head.form.labels)))

    def keep(rows: Rows, positions: Rows, logits: torch.Tensor) -> None:  # noqa: ARG001
        seen[rows] = logits.float().cpu().numpy()

    answers = _answers(model, head, sources, settings, precision, meter, sink=keep)
    temperature = float(read_head_file(model_folder).get("temperature", 1.0))
    return Predictions(answers, probabilities_at(seen, temperature), temperature)


N_TIMED_ROWS = 32
TIMING_SECONDS = 0.5
"""Rows that `milliseconds_a_row` times at most, and seconds after which it times no further one."""


def milliseconds_a_row(model_folder: Path, sources: Texts, *, precision: str) -> float | None:
    """Return the median wall milliseconds of one answer by a trained model: a batch of one row, tokenising included.

    Nothing is read from caches: frozen vectors are computed. The first row warms up, and counts only where it takes all the time
    there is. ``None`` without rows.
    """
    model, head = _loaded_model(model_folder, None)
    settings = TeachSettings(batch_size=1, answers_from="free")
    taken: list[float] = []
    with _without_vector_cache(head):
        began = time.perf_counter()
        for row in [*sources[:1], *sources[:N_TIMED_ROWS]]:
            start = time.perf_counter()
            for _ in _generations(model, head, head.tokenize([row]), settings, precision, None):
                pass
            end = time.perf_counter()
            taken.append(1000 * (end - start))
            if end - began >= TIMING_SECONDS:
                break
    return round(statistics.median(taken[1:] or taken), 3) if taken else None


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


def use_threads(n: int) -> None:
    """Set the number of threads from here on: sums depend on it, so it is part of every key."""
    torch.set_num_threads(n)


def count_tokens(
    ref: str,
    base: str,
    form: TaskSpec,
    sources: Texts,
    pooling: Pooling | None = None,
    reading: Reading = "whole",
) -> list[int]:
    """Count the tokens of each row as a model of this reference reads them, after truncation, special tokens included."""
    head: Head = head_of(ref, base, form) if pooling is None else pooled_head(ref, base, form, pooling, reading)
    return list(map(int, head.tokenize(sources).encoded.lengths))


def count_cut(folder: Path, sources: Texts) -> int:
    """Count the rows that are longer than a saved model reads; its weights stay where they are."""
    return saved_head(folder)[0].tokenize(sources).encoded.n_truncated


def longest_answer(ref: str, base: str, form: TaskSpec) -> int:
    """Return the most tokens of an answer: 0 for an encoder, the limit for a generative model."""
    return _longest_answer(head_of(ref, base, form))


def answer_lengths(ref: str, base: str, form: TaskSpec, answers: Sequence[str]) -> list[int]:
    """Count the tokens of each answer as a model of this reference encodes it, cut to the limit; 0 for an encoder."""
    head = head_of(ref, base, form)
    if head.target != "tokens":
        return [0] * len(answers)
    return list(map(int, head.encode_answers(head.tokenize([]), answers).lengths))


def check_model(
    ref: str, base: str, form: TaskSpec, n_segments: int = 1, settings: Sequence[TrainSettings] = ()
) -> None:
    """Refuse a model that cannot do the task, has no room for the text, or cannot be trained so.

    ``n_segments``: the texts that an encoder reads side by side; ``settings``: of each training of it. No weights are read.

    Raises:
        UsageError: the family cannot do the task, prefix and special tokens leave no token to the text, or adapters or optimiser
            cannot be had.
        LabelError: the tokenizer cannot spell a label, or a label is longer than an answer may be.
        UnknownModel: files that do not fit each other, or a model whose layers cannot be cut.
    """
    head, tokenizer = read_head(ref, base, form)
    for each in settings:
        check_method(each, form.kind, head.family)
    check_checkpoint(ref, base, head, tokenizer, settings)
    _check_room(head, ref, n_segments)
    if isinstance(head, GenerationHead) and form.labels:
        head.check_spelling(form.labels if form.kind == "classification" else [f"a [{x}]" for x in form.labels])


def _check_room(head: Head, ref: str, n_segments: int) -> None:
    """Refuse limits that cut every text down to what stands around it."""
    limit = head.form.max_source_tokens
    wide: Any = copy.copy(head)
    wide.form = replace(head.form, max_source_tokens=_NO_LIMIT)
    n_around = wide.tokenize([("",) * n_segments]).encoded.n_tokens
    if limit - n_around < n_segments:
        raise UsageError(
            f"max_source_tokens is {limit:,} for model {ref!r}, and prefix and special tokens take {n_around:,}: no token of a "
            f"text is left; give at least {n_around + n_segments:,}, or a shorter prefix"
        )


_loaded: dict[tuple[Path, int, str | None], tuple[nn.Module, Head]] = {}


def _loaded_model(folder: Path, device_map: str | None) -> tuple[nn.Module, Head]:
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


def _generations(
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
    for rows, _, texts in _generations(model, head, read, settings, precision, meter, sink=sink):
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


@dataclass(frozen=True, slots=True)
class _Learner:
    """A model in training, its head and tokenizer, and its training texts as it reads them."""

    model: nn.Module
    head: Head
    tokenizer: Any
    read: Sources

    @classmethod
    def load(cls, spec: ModelSpec, sources: Texts, settings: TrainSettings) -> _Learner:
        """Load a model that can be trained by these settings."""
        fsdp = current_process().fsdp
        check(settings, fsdp=fsdp)
        n_segments = len(sources[0]) if len(sources) else 1
        reading = settings.reading(spec.form.kind, n_segments)
        check_method(settings, spec.form.kind, family_of(spec.ref, base=spec.base))
        if reading == "whole":
            whole, own, tokenizer = load_model(spec)
            return cls(whole, own, tokenizer, own.tokenize(sources))
        if fsdp:
            raise UsageError(
                f"method {settings.method} cannot be used with FSDP; leave out --fsdp, or choose method full"
            )
        pooling = spec.pooling or pooling_of(spec.ref, base=spec.base, mode=settings.pooling)
        model, head, tokenizer = load_pooled(replace(spec, pooling=pooling, reading=reading), settings.method)
        return cls(model, head, tokenizer, head.tokenize(sources))


def _first_probe(learner: _Learner, spec: ModelSpec, settings: TrainSettings, context: TrainContext) -> Probe | None:
    """Return the probe that a distillation begins with, ``None`` where the head begins at random."""
    if settings.chosen.head != "probe":
        return None
    return Probe(learner.model, learner.head, learner.read, settings, context, origin_of(spec.ref, spec.base))


def _keep_probe(
    learner: _Learner,
    fitted: ProbeReport | None,
    units: AnswerIds | None,
    settings: TrainSettings,
    dev: DevTexts | None,
    out: Path,
    context: TrainContext,
) -> TrainProgress:
    """Score a probe on dev once, and write it."""
    assert fitted is not None
    group = current_process()
    model, head = learner.model.to(group.device), learner.head
    progress = TrainProgress(n_truncated=learner.read.encoded.n_truncated, stopped="finished")
    score = None if dev is None else _dev_score(head, dev, settings, None, group)
    note_probe_score(model, progress, context, score)
    return _finish(learner, model, progress, fitted, units, out, group)


def _finish(
    learner: _Learner,
    model: nn.Module,
    progress: TrainProgress,
    fitted: ProbeReport | None,
    units: AnswerIds | None,
    out: Path,
    group: ProcessGroup,
) -> TrainProgress:
    """Note the facts of a finished training and write the model."""
    if fitted is not None:
        fitted.note(progress)
    progress.n_parameters = sum(parameter.numel() for parameter in model.parameters())
    if units is not None:
        progress.n_answers_cut, progress.n_unaligned = units.n_cut, units.n_unaligned
    head = learner.head
    state = group.full_state(model.state_dict()) if group.fsdp else None
    if group.is_main:
        if isinstance(head, PooledHead):
            save_with_head(model.to("cpu"), head, learner.tokenizer, out, progress.temperature)
        else:
            whole = model if group.fsdp else model.to("cpu")
            save_model(whole, head, learner.tokenizer, out, state, progress.temperature)
    group.barrier()
    return progress


def _train(
    learner: _Learner,
    objective: Objective,
    settings: TrainSettings,
    units: AnswerIds | None,
    dev: DevTexts | None,
    out: Path,
    context: TrainContext,
    fitted: ProbeReport | None = None,
    afterwards: Callable[[], ProbeReport] | None = None,
) -> TrainProgress:
    """Train by steps and write the model.

    ``fitted``: the probe that it begins with, which may be the best on dev; ``afterwards``: fits a head to the trained
    encoder, and dev is scored once then.
    """
    group = current_process()
    model = learner.model
    if settings.dropout is not None:
        set_dropout(model, settings.dropout)
    model = compiled(cast(add_adapters(model, settings, fsdp=group.fsdp), settings), settings)
    checkpoints = None
    if context.folder is not None:
        checkpoints = Checkpoints(context.folder / "checkpoints", context.save_seconds, context.save_steps)
    dev_score = None if dev is None or afterwards else _dev_score(learner.head, dev, settings, objective, group)
    progress = fit(
        model,
        objective,
        settings,
        context,
        dev=dev_score,
        checkpoints=checkpoints,
        group=group,
        evaluate_first=fitted is not None,
    )
    model = merge_adapters(model, settings)
    if afterwards is not None:
        fitted = afterwards()
        progress.history.clear()
        score = None if dev is None else _dev_score(learner.head, dev, settings, None, group)
        note_probe_score(model, progress, context, score)
    return _finish(learner, model, progress, fitted, units, out, group)


def _dev_score(
    head: Head, dev: DevTexts, settings: TrainSettings, objective: Objective | None, group: ProcessGroup
) -> DevScore:
    """Return the function that scores a model on dev; ``objective``: whose work limits the dev rows, ``None`` = all rows."""
    n_rows = len(dev.sources) if objective is None else _n_sampled(head, dev, settings, objective)
    read = head.tokenize(dev.sources[:n_rows])
    free = TeachSettings(batch_size=ANSWERING.batch_size, answers_from="free")
    # A model that is itself spread over the processes takes all of them for each row.
    shard = None if group.fsdp else group
    golds = class_numbers(dev.golds[:n_rows], head) if dev.golds and head.target == "classes" else None

    def score(model: nn.Module) -> tuple[float, int, float | None]:
        numbered: list[tuple[int, str]] = []
        seen: list[tuple[int, list[float]]] = []
        n_tokens = 0

        def keep(rows: Rows, positions: Rows, logits: torch.Tensor) -> None:  # noqa: ARG001
            seen.extend(zip(rows.tolist(), logits.float().tolist(), strict=True))

        sink = None if golds is None else keep
        for rows, generation, texts in _generations(
            model, head, read, free, settings.precision, None, sink=sink, shard=shard
        ):
            numbered += zip(rows.tolist(), texts, strict=True)
            n_tokens += generation.n_tokens
        if shard is not None:
            numbered, n_tokens = shard.gather(numbered), sum(shard.gather([n_tokens]))
            seen = shard.gather(seen)
        answers = dict(numbered)
        temperature = None
        if golds is not None:
            kept = dict(seen)
            temperature = fit_temperature(np.array([kept[row] for row in range(len(read))]), golds)
        return dev.score([answers[row] for row in range(len(read))]), n_tokens, temperature

    return score


_TRAINING_WORK = 3
"""Cost of a token trained on, relative to one only read: forward, and twice as much backward."""


def _n_sampled(head: Head, dev: DevTexts, settings: TrainSettings, objective: Objective) -> int:
    """Count the dev rows, the first ones, that keep an evaluation within ``eval_share`` of the training's work."""
    if settings.eval_share is None:
        return len(dev.sources)
    n_steps = -(-len(objective) // settings.batch_size)
    n_between = objective.lengths.sum() * (min(settings.eval_steps or n_steps, n_steps) / n_steps)
    n_tokens = np.cumsum(head.tokenize(dev.sources).encoded.lengths + _longest_answer(head))
    return max(1, int(np.searchsorted(n_tokens, settings.eval_share * _TRAINING_WORK * n_between, side="right")))


def _longest_answer(head: Head) -> int:
    return head.form.max_target_tokens if head.target == "tokens" else 0


def _check_targets(learner: _Learner, targets: SparseTargets, settings: TrainSettings) -> None:
    model, head, read = learner.model, learner.head, learner.read
    if targets.kind != head.target:
        raise UsageError(
            f"the targets are {targets.kind}, and this student learns from {head.target} or text; teach again for this student"
        )
    if targets.kind != "tokens":
        _refuse_published(settings)
    n_outputs = head.n_outputs or (len(head.form.labels) if head.target == "classes" else int(model.config.vocab_size))  # type: ignore[union-attr, arg-type]
    if targets.kind == "tokens":
        if targets.vocab_size > n_outputs:
            raise UsageError(
                f"the teacher chose among {targets.vocab_size:,} tokens but the student has {n_outputs:,}; teach with "
                f"vocab_size = {n_outputs:,}"
            )
    elif targets.vocab_size != n_outputs:
        raise UsageError(f"the teacher chose among {targets.vocab_size} {targets.kind} but the student has {n_outputs}")
    if head.target == "tags" and read.places is not None and not np.array_equal(read.places.offsets, targets.offsets):
        raise UsageError(
            "the targets have other tokens than the student reads; teach again with the student's tokenizer"
        )


def _refuse_published(settings: TrainSettings) -> None:
    if settings.objective == "published":
        raise UsageError(
            "the published objective is about the tokens of one vocabulary; take a student with the teacher's tokenizer, "
            "or `masked`"
        )
