"""Forecasts wall seconds of a training by the measured profile of a machine, for people to plan with.

No charge, key or result depends on one.
"""

from __future__ import annotations

from outlay.models.cost_model import (
    Lengths,
    MachineProfile,
    ModelProfile,
    Workload,
    answering_load,
    starting_load,
    training_load,
)
from outlay.models.shape import ModelShape
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TaskSpec

N_SAMPLED = 512
"""Rows and answers whose lengths stand for those of all."""
ANSWERING = TeachSettings(batch_size=64)
"""How answers are given when a model is evaluated or scored (`outlay.train.api.predict`)."""


def profile_of(shape: ModelShape, form: TaskSpec, *, chooses: bool) -> ModelProfile:
    """Return what a model of this shape does for an answer; ``chooses``: one that writes scores each label instead."""
    writes = shape.family != "encoder"
    return ModelProfile(
        shape, form.n_outputs, form.kind == "entities" and not writes, len(form.labels) if writes and chooses else 0
    )


def n_evaluations(settings: TrainSettings, n_rows: int) -> int:
    """Return how often a whole training evaluates: after each epoch, or every so many steps and once at the end."""
    if settings.eval_steps is None:
        return settings.epochs
    # A batch filled by tokens has at least one row.
    n_steps = settings.epochs * -(-n_rows // (1 if settings.batch_tokens is not None else settings.batch_size))
    return -(-n_steps // settings.eval_steps)


def training_seconds(
    profile: MachineProfile,
    reader: ModelProfile,
    rows: Lengths,
    dev: Lengths | None,
    settings: TrainSettings,
    more: Workload | None = None,
) -> float:
    """Return wall seconds of a training: starting, working, and evaluating within the share that evaluations may take.

    ``more``: work beside that on ``rows``.
    """
    load = training_load(reader, rows, settings)
    worked = profile.seconds(load if more is None else load + more, settings.precision)
    started = profile.seconds(starting_load(reader, rows), settings.precision)
    if dev is None:
        return started + worked
    evaluation = profile.seconds(answering_load(reader, dev, ANSWERING), settings.precision)
    evaluated = n_evaluations(settings, len(rows)) * evaluation
    share = settings.eval_share
    return started + worked + (evaluated if share is None else min(evaluated, share * worked))


def lengths_of(sources: list[int], answers: list[int]) -> Lengths:
    """Return the lengths of rows, of which some answers were seen: those stand for all."""
    seen = answers or [0]
    return Lengths(sources, [seen[row % len(seen)] for row in range(len(sources))])
