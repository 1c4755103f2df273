"""A model in training with its head and texts: loaded, trained by steps or by a regression alone, and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from outlay.errors import UsageError
from outlay.models.heads import Head, Sources, Texts
from outlay.models.loading import (
    ModelSpec,
    load_model,
    load_pooled,
    origin_of,
    save_model,
    save_with_head,
    set_dropout,
)
from outlay.models.peft import add_adapters, cast, check, compiled, merge_adapters
from outlay.models.pooled import PooledHead
from outlay.models.pooling import pooling_of
from outlay.models.shape import family_of
from outlay.models.tokenization import AnswerIds
from outlay.settings import TrainSettings, check_method
from outlay.train.checkpoints import Checkpoints
from outlay.train.distributed import ProcessGroup, current_process
from outlay.train.evaluation import DevTexts, dev_score_of
from outlay.train.loop import Objective, fit
from outlay.train.probe import Probe, ProbeReport, note_probe_score
from outlay.train.progress import TrainContext, TrainProgress
from outlay.train.targets.targets import SparseTargets


@dataclass(frozen=True, slots=True)
class Learner:
    """A model in training, its head and tokenizer, and its training texts as it reads them."""

    model: nn.Module
    head: Head
    tokenizer: Any
    read: Sources

    @classmethod
    def load(cls, spec: ModelSpec, sources: Texts, settings: TrainSettings) -> Learner:
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


def first_probe(learner: Learner, spec: ModelSpec, settings: TrainSettings, context: TrainContext) -> Probe | None:
    """Return the probe that a distillation begins with, ``None`` where the head begins at random."""
    if settings.chosen.head != "probe":
        return None
    return Probe(learner.model, learner.head, learner.read, settings, context, origin_of(spec.ref, spec.base))


def keep_probe(
    learner: Learner,
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
    score = None if dev is None else dev_score_of(head, dev, settings, None, group)
    note_probe_score(model, progress, context, score)
    return _finish(learner, model, progress, fitted, units, out, group)


def _finish(
    learner: Learner,
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


def train_by_steps(
    learner: Learner,
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
    dev_score = None if dev is None or afterwards else dev_score_of(learner.head, dev, settings, objective, group)
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
        score = None if dev is None else dev_score_of(learner.head, dev, settings, None, group)
        note_probe_score(model, progress, context, score)
    return _finish(learner, model, progress, fitted, units, out, group)


def check_targets(learner: Learner, targets: SparseTargets, settings: TrainSettings) -> None:
    """Refuse targets that a student cannot learn from.

    Raises:
        UsageError: of another kind, over other classes or tokens than the student has.
    """
    model, head, read = learner.model, learner.head, learner.read
    if targets.kind != head.target:
        raise UsageError(
            f"the targets are {targets.kind}, and this student learns from {head.target} or text; teach again for this student"
        )
    if targets.kind != "tokens":
        refuse_published(settings)
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


def refuse_published(settings: TrainSettings) -> None:
    """Refuse the published objective for targets without the positions that it counts.

    Raises:
        UsageError: always, where it is asked for.
    """
    if settings.objective == "published":
        raise UsageError(
            "the published objective is about the tokens of one vocabulary; take a student with the teacher's tokenizer, "
            "or `masked`"
        )
