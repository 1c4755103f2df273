"""Scores of a model in training on dev rows, with the temperature that fits its probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from outlay.metrics.calibration import fit_temperature
from outlay.models.forecast import ANSWERING
from outlay.models.heads import Head, Rows, Texts
from outlay.settings import TeachSettings, TrainSettings
from outlay.train.answering import generations, longest_answer_of
from outlay.train.distributed import ProcessGroup
from outlay.train.loop import DevScore, Objective
from outlay.train.probe import class_numbers


@dataclass(frozen=True, slots=True)
class DevTexts:
    """Dev rows, and the function that scores answers to the first rows, as many as it is given.

    ``golds``: their answers, for the temperature of a classifier's probabilities; empty = none is fitted.
    """

    sources: Texts
    score: Callable[[Sequence[str]], float]
    golds: Sequence[str] = ()


def dev_score_of(
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
        for rows, generation, texts in generations(
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
    n_tokens = np.cumsum(head.tokenize(dev.sources).encoded.lengths + longest_answer_of(head))
    return max(1, int(np.searchsorted(n_tokens, settings.eval_share * _TRAINING_WORK * n_between, side="right")))
