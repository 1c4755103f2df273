"""The steps of a recipe as functions: fine-tune, teach, distil, predict. Inputs are texts and folders, outputs are files."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outlay.errors import UsageError
from outlay.models.generative_heads import GenerationHead
from outlay.models.heads import Head, Texts
from outlay.models.loading import (
    ModelSpec,
    check_checkpoint,
    head_of,
    origin_of,
    pooled_head,
    read_head,
    saved_head,
)
from outlay.models.pooled import PooledHead
from outlay.models.pooling import Pooling
from outlay.settings import TrainSettings, check_method
from outlay.spec import Reading, TaskSpec
from outlay.train.answering import Predictions as Predictions
from outlay.train.answering import longest_answer_of
from outlay.train.answering import milliseconds_a_row as milliseconds_a_row
from outlay.train.answering import predict as predict
from outlay.train.answering import teach as teach
from outlay.train.contrastive import ContrastiveObjective
from outlay.train.evaluation import DevTexts as DevTexts
from outlay.train.learners import Learner, check_targets, first_probe, keep_probe, refuse_published, train_by_steps
from outlay.train.objectives import DistillationObjective, SupervisedObjective, gold_units
from outlay.train.probe import Probe, TaskMetric, fit_words
from outlay.train.progress import TrainContext, TrainProgress
from outlay.train.targets.targets import SparseTargets

_NO_LIMIT = 2**20


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
    learner = Learner.load(spec, sources, settings)
    head, read = learner.head, learner.read
    units = head.encode_answers(read, answers)
    probe = Probe(learner.model, head, read, settings, context, origin_of(spec.ref, spec.base), metric)
    if settings.method == "contrastive":
        assert isinstance(head, PooledHead)
        contrastive = ContrastiveObjective(head, read, units.ids.astype(np.int64))
        return train_by_steps(
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
        return keep_probe(learner, fitted, units, settings, dev, out, context)
    return train_by_steps(learner, SupervisedObjective(head, read, units), settings, units, dev, out, context, fitted)


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
    learner = Learner.load(spec, sources, settings)
    head, read = learner.head, learner.read
    known = None if settings.gold_weight == 0 else gold
    if targets.kind == "text":
        refuse_published(settings)
        answers = targets.answers
        if known is not None:
            answers = tuple(taught if own is None else own for taught, own in zip(answers, known, strict=True))
        units = head.encode_answers(read, answers)
        first = first_probe(learner, spec, settings, context)
        fitted = None if first is None else first.fit_labels(units)
        if settings.chosen.trains == "none":
            return keep_probe(learner, fitted, units, settings, dev, out, context)
        return train_by_steps(
            learner, SupervisedObjective(head, read, units), settings, units, dev, out, context, fitted
        )
    check_targets(learner, targets, settings)
    mixed = None if known is None else gold_units(head, read, known)
    first = first_probe(learner, spec, settings, context)
    fitted = None if first is None else first.fit_targets(targets, mixed)
    if settings.chosen.trains == "none":
        return keep_probe(learner, fitted, mixed, settings, dev, out, context)
    objective = DistillationObjective(head, read, targets, settings, mixed)
    return train_by_steps(learner, objective, settings, mixed, dev, out, context, fitted)


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
    return longest_answer_of(head_of(ref, base, form))


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
