"""Forecasts the wall seconds of a single step by the profile of this machine where `outlay machine calibrate` wrote one."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.errors import UnknownModel
from outlay.models.cost_model import (
    PROFILE_FILE,
    Lengths,
    MachineProfile,
    ModelProfile,
    answering_load,
    load_profile,
    starting_load,
    training_load,
)
from outlay.models.window import window_of
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TargetKind, TaskSpec
from outlay.standalone.runtime import n_outputs_of, n_processes
from outlay.storage.locations import default_root

N_SAMPLED = 512
"""Rows whose lengths stand for those of all."""
ANSWERING = TeachSettings(batch_size=64)
"""How answers are given when a model is evaluated (`outlay.train.api`)."""

Texts = Sequence[tuple[str, ...]]


def training_seconds(
    spec: tuple[str, str, TaskSpec],
    rows: tuple[Texts, Sequence[str]],
    dev: tuple[Texts, Sequence[str]],
    settings: TrainSettings,
    threads: int,
    target: TargetKind | None,
) -> float | None:
    """Wall seconds of a training in one process; ``None`` without a profile of so many threads, or for a model of unknown cost.

    ``spec``: model reference, its base, the task's form; ``rows``, ``dev``: sources, and some answers.
    """
    from outlay.models.shape import shape_of

    profile = load_profile(default_root().parent / PROFILE_FILE)
    if profile is None or profile.threads != threads or n_processes() > 1:
        return None
    ref, base, form = spec
    try:
        shape = shape_of(ref, base=base)
    except UnknownModel:
        return None
    writes = shape.family != "encoder"
    n_choices = len(form.labels) if writes and target == "classes" else 0
    reader = ModelProfile(shape, n_outputs_of(form), form.kind == "entities" and not writes, n_choices)
    lengths = _lengths(spec, *rows, writes)
    load = training_load(reader, lengths, settings)
    worked = profile.seconds(load, settings.precision)
    started = profile.seconds(starting_load(reader, lengths), settings.precision)
    if not dev[0]:
        return started + worked
    evaluated = _evaluated(profile, reader, _lengths(spec, *dev, writes), settings, len(lengths), worked)
    return started + worked + evaluated


def _evaluated(
    profile: MachineProfile, reader: ModelProfile, lengths: Lengths, settings: TrainSettings, n_rows: int, worked: float
) -> float:
    n_steps = settings.epochs * -(-n_rows // settings.batch_size)
    n_evaluations = settings.epochs if settings.eval_steps is None else -(-n_steps // settings.eval_steps)
    seconds = n_evaluations * profile.seconds(answering_load(reader, lengths, ANSWERING), settings.precision)
    return seconds if settings.eval_share is None else min(seconds, settings.eval_share * worked)


def _lengths(spec: tuple[str, str, TaskSpec], sources: Texts, answers: Sequence[str], writes: bool) -> Lengths:
    """Of all rows, by a sample of them."""
    from outlay.train.api import count_tokens
    from outlay.train.calibration import answer_lengths

    sampled = list(sources[:: max(1, len(sources) // N_SAMPLED)])
    read, form = count_tokens(*spec, sampled), spec[2]
    known = list(answers[:N_SAMPLED]) or list(form.labels if form.kind == "classification" else ())
    # Where nothing is known, an answer is taken to be as long as it may be.
    fitted = window_of(spec[0], base=spec[1]).fit(form)
    said = answer_lengths(*spec, known) or [fitted.max_target_tokens if writes else 0]
    return Lengths(
        [read[row % len(read)] for row in range(len(sources))], [said[row % len(said)] for row in range(len(sources))]
    )
