"""Forecast of a single step's wall seconds, by the machine profile that `outlay machine calibrate` wrote."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.errors import UnknownModel
from outlay.models.cost_model import PROFILE_FILE, Lengths, load_profile
from outlay.models.forecast import N_SAMPLED, lengths_of, profile_of
from outlay.models.forecast import training_seconds as seconds_of_training
from outlay.models.window import window_of
from outlay.settings import TrainSettings
from outlay.spec import TargetKind, TaskSpec
from outlay.standalone.runtime import n_processes
from outlay.storage.locations import default_root

Texts = Sequence[tuple[str, ...]]


def training_seconds(
    spec: tuple[str, str, TaskSpec],
    rows: Texts,
    dev: Texts,
    answers: Sequence[str],
    settings: TrainSettings,
    threads: int,
    target: TargetKind | None,
) -> float | None:
    """Return the wall seconds of a training in one process.

    ``None`` without a profile of so many threads, or for a model of unknown cost. ``spec``: model reference, its base, the task's
    form; ``answers``: some answers to rows or dev rows.
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
    reader = profile_of(shape, form, chooses=target == "classes")
    of_dev = _lengths(spec, dev, answers, writes) if dev else None
    return seconds_of_training(profile, reader, _lengths(spec, rows, answers, writes), of_dev, settings)


def _lengths(spec: tuple[str, str, TaskSpec], sources: Texts, answers: Sequence[str], writes: bool) -> Lengths:
    """Return the token lengths of all rows, estimated from a sample."""
    from outlay.train.api import answer_lengths, count_tokens

    sampled = list(sources[:: max(1, len(sources) // N_SAMPLED)])
    read, form = count_tokens(*spec, sampled), spec[2]
    known = list(answers[:N_SAMPLED]) or list(form.labels if form.kind == "classification" else ())
    # Where nothing is known, an answer is taken to be as long as it may be.
    fitted = window_of(spec[0], base=spec[1]).fit(form)
    written = answer_lengths(*spec, known) or [fitted.max_target_tokens if writes else 0]
    return lengths_of([read[row % len(read)] for row in range(len(sources))], written)
