"""The steps of a recipe as functions: fine-tune, teach, distil, predict. Inputs are texts and folders, outputs are files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlay.settings import TrainSettings
from outlay.train.encode import encode
from outlay.train.loop import (
    Checkpoints,
    DevScore,
    DevSet,
    Gauge,
    Objective,
    OnProgress,
    Progress,
    fit,
    predict_logits,
)
from outlay.train.losses import cross_entropy, sparse_kl
from outlay.train.models import ModelSpec, load_classifier, load_saved, load_tokenizer, save_classifier, set_dropout
from outlay.train.targets import SparseTargets

Texts = Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Watch:
    """What stands around a step: the gauge it reports to, where it may checkpoint, who is told of progress."""

    gauge: Gauge
    checkpoints: Path | None = None
    checkpoint_seconds: float = 20.0
    on_progress: OnProgress | None = None


@dataclass(frozen=True, slots=True)
class DevTexts:
    """Dev rows and how to score predicted classes on them."""

    texts: Texts
    score: DevScore


def finetune(
    spec: ModelSpec,
    texts: Texts,
    classes: Sequence[int],
    settings: TrainSettings,
    *,
    max_tokens: int,
    dev: DevTexts | None,
    out: Path,
    watch: Watch,
) -> Progress:
    """Train a classifier on labels with cross-entropy and write it to ``out``.

    ``classes``: index into ``spec.labels`` per row.

    Raises:
        ValueError: classes and texts differ in number.
    """
    if len(classes) != len(texts):
        raise ValueError(f"{len(texts)} rows to train on but {len(classes)} classes")
    labels = torch.tensor(list(classes), dtype=torch.int64)

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        return cross_entropy(logits, labels[rows].to(logits.device))

    return _train(spec, texts, objective, settings, max_tokens=max_tokens, dev=dev, out=out, watch=watch)


def distil(
    spec: ModelSpec,
    texts: Texts,
    targets: SparseTargets,
    settings: TrainSettings,
    *,
    temperature: float,
    max_tokens: int,
    dev: DevTexts | None,
    out: Path,
    watch: Watch,
) -> Progress:
    """Train a classifier on a teacher's stored targets with the KL divergence (`sparse_kl`) and write it to ``out``.

    ``targets`` cover ``texts`` row by row, one position per row.

    Raises:
        ValueError: targets and texts differ in number, the teacher chose among another number of classes, or the temperature
            was not offered.
    """
    if len(targets) != len(texts) or len(targets.logits) != len(texts):
        raise ValueError(f"{len(texts)} pool rows but targets for {len(targets)} rows, {len(targets.logits)} positions")
    if targets.vocab_size != len(spec.labels):
        raise ValueError(f"the teacher chose among {targets.vocab_size} classes but the student has {len(spec.labels)}")
    indices = torch.from_numpy(targets.indices.astype(np.int64))
    logits_kept = torch.from_numpy(targets.logits)
    logsumexp = torch.from_numpy(targets.logsumexp[:, targets.temperature_column(temperature)])

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        picked = (tensor[rows].to(logits.device) for tensor in (indices, logits_kept, logsumexp))
        return sparse_kl(logits, *picked, temperature=temperature)

    return _train(spec, texts, objective, settings, max_tokens=max_tokens, dev=dev, out=out, watch=watch)


def teach(model_folder: Path, texts: Texts, *, max_tokens: int, precision: str, gauge: Gauge) -> SparseTargets:
    """The teacher's targets for one block of pool rows, in row order."""
    logits = _logits(model_folder, texts, max_tokens, precision, gauge)
    return SparseTargets.from_logits(logits, np.arange(len(texts) + 1, dtype=np.int64))


def predict(
    model_folder: Path, texts: Texts, *, max_tokens: int, precision: str, gauge: Gauge
) -> tuple[list[str], Tensor]:
    """Predicted labels by row, and logits float32 ``[rows, labels]``."""
    logits = _logits(model_folder, texts, max_tokens, precision, gauge)
    model, _ = load_cached(model_folder)
    names: dict[int, str] = model.config.id2label
    return [names[int(i)] for i in logits.argmax(-1)], logits


def use_threads(n: int) -> None:
    """Compute with ``n`` threads from here on: sums depend on it, so it is part of every key."""
    torch.set_num_threads(n)


def count_tokens(ref: str, base: str, texts: Texts, max_tokens: int) -> list[int]:
    """Tokens per row as a model of this reference reads them, after truncation, special tokens included."""
    return [int(n) for n in encode(load_tokenizer(ref, base), texts, max_tokens).lengths]


_loaded: dict[Path, tuple[Any, Any]] = {}


def load_cached(folder: Path) -> tuple[Any, Any]:
    """`load_saved`, keeping the last model: a teacher speaks block after block."""
    if folder not in _loaded:
        _loaded.clear()
        _loaded[folder] = load_saved(folder)
    return _loaded[folder]


def _logits(folder: Path, texts: Texts, max_tokens: int, precision: str, gauge: Gauge) -> Tensor:
    model, tokenizer = load_cached(folder)
    model.to(_device())
    return predict_logits(model, encode(tokenizer, texts, max_tokens), precision=precision, gauge=gauge)


def _train(
    spec: ModelSpec,
    texts: Texts,
    objective: Objective,
    settings: TrainSettings,
    *,
    max_tokens: int,
    dev: DevTexts | None,
    out: Path,
    watch: Watch,
) -> Progress:
    tokenizer = load_tokenizer(spec.ref, spec.base)
    model = load_classifier(spec).to(_device())
    if settings.dropout is not None:
        set_dropout(model, settings.dropout)
    encoded = encode(tokenizer, texts, max_tokens)
    dev_set = None if dev is None else DevSet(encode(tokenizer, dev.texts, max_tokens), dev.score)
    progress = fit(
        model,
        encoded,
        objective,
        settings,
        gauge=watch.gauge,
        dev=dev_set,
        checkpoints=Checkpoints(watch.checkpoints, watch.checkpoint_seconds) if watch.checkpoints else None,
        on_progress=watch.on_progress,
    )
    save_classifier(model.to("cpu"), tokenizer, out)
    return progress


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
