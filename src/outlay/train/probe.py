"""Heads fitted by a regression: on an encoder's frozen vectors, on words, and the commonest label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from outlay.errors import UsageError
from outlay.metrics.calibration import N_DIGITS, fit_temperature
from outlay.metrics.scorer import Scorer
from outlay.models.heads import Head, Rows, Sources, Texts, device_of
from outlay.models.loading import save_with_head
from outlay.models.pooled import PooledHead, PooledModel, frozen_features
from outlay.models.regression import strengths
from outlay.models.tokenization import AnswerIds, Encoded, collate
from outlay.models.vectors import VectorCache, cache_of
from outlay.models.words import WordsHead, WordsModel, joined, new_vectorizer
from outlay.settings import TrainSettings
from outlay.spec import TaskSpec
from outlay.train import regression
from outlay.train.distributed import current_process
from outlay.train.loop import DevScore
from outlay.train.progress import TrainContext, TrainProgress
from outlay.train.regression import Labels, Regression
from outlay.train.targets.targets import SparseTargets

_TARGETS_ROWS = 4096


@dataclass(frozen=True, slots=True)
class TaskMetric:
    """Main metric of a task: its name, and ``(answers, golds) -> score``, larger is better."""

    name: str
    score: Callable[[Sequence[str], Sequence[str]], float]

    @classmethod
    def of(cls, scorer: Scorer) -> TaskMetric | None:
        """Return the main metric of a scorer; ``None`` for one that compares meanings by an encoder."""
        if scorer.encoder is not None:
            return None
        return cls(scorer.metric, lambda answers, golds: scorer.main_value(answers, golds, [""] * len(golds)))

    @property
    def is_f1(self) -> bool:
        """True where rare classes count."""
        return "f1" in self.name


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Facts of a fitted head: the tokens that were encoded for it, and its regression."""

    n_tokens: int
    n_flops: int
    strength: float
    notes: tuple[str, ...]
    held_out: list[tuple[int, float, float]]
    """As `outlay.train.progress.TrainProgress.held_out`."""

    def note(self, progress: TrainProgress) -> None:
        """Add them to a training's progress."""
        progress.n_tokens_inferred += self.n_tokens
        progress.n_flops_fitted += self.n_flops
        progress.strength = self.strength
        progress.notes += self.notes
        progress.held_out = self.held_out


class Probe:
    """The first head of a model: a regression on the vectors of its training rows.

    ``origin``: identity of the encoder, by which its vectors are kept; ``metric``: of the task, ``None`` = by log-loss.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        read: Sources,
        settings: TrainSettings,
        context: TrainContext,
        origin: str,
        metric: TaskMetric | None = None,
    ) -> None:
        self._model = model
        self._head = head
        self._read = read
        self._settings = settings
        self._context = context
        self._origin = origin
        self._metric = metric

    def fit_labels(self, units: AnswerIds, *, frozen: bool = True) -> ProbeReport:
        """Fit the head to labels; ``frozen``: the encoder is the checkpoint's, so that its vectors are kept."""
        vectors, groups = self._vectors(frozen)
        has_classes = self._head.target == "classes"
        metric, golds = self._metric, units.ids.astype(np.int64)
        chosen, by_metric = regression.resolved(
            self._settings.of_method("probe"), is_f1=metric is not None and metric.is_f1, has_classes=has_classes
        )
        score = _score_of(metric, self._head.form) if by_metric and metric is not None else None
        work = _work(self._context, chosen.folds * len(strengths(chosen)) + 1)
        found = regression.fit_labels(
            vectors,
            golds,
            _n_outputs(self._head),
            chosen,
            work,
            seed=self._settings.seed,
            score=score,
            groups=groups,
        )
        return self._set(found, work, golds if has_classes else None)

    def fit_targets(self, targets: SparseTargets, gold: AnswerIds | None = None) -> ProbeReport:
        """Fit the head to a teacher's distributions at temperature 1; ``gold``: answers mixed in, empty for rows without."""
        vectors, _ = self._vectors(frozen=True)
        probabilities = probabilities_of(targets)
        if gold is not None and self._head.target == "classes":
            known = np.flatnonzero(gold.lengths > 0)
            weight = self._settings.gold_weight
            probabilities[known] *= 1 - weight
            probabilities[known, gold.ids[gold.offsets[known]]] += weight
        chosen, _ = regression.resolved(self._settings.of_method("probe"), is_f1=False, has_classes=True)
        work = _work(self._context, chosen.folds * len(strengths(chosen)) + 1)
        found = regression.fit_probabilities(vectors, probabilities, chosen, work, seed=self._settings.seed)
        return self._set(found, work)

    def _set(self, found: Regression, work: regression.Work, golds: Labels | None = None) -> ProbeReport:
        """Put the weights into the model; keep vectors only for an encoder that stays as it is."""
        if isinstance(self._model, PooledModel):
            self._model.set_head(found.weight, found.bias)
        else:
            layer = class_layer(self._model)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(found.weight))
                layer.bias.copy_(torch.from_numpy(found.bias))
        if self._settings.method != "probe" and isinstance(self._head, PooledHead):
            self._head.cache = self._head.origin = None
        n_tokens = int(self._read.encoded.lengths.sum())
        return ProbeReport(n_tokens, work.n_flops, found.strength, _notes(found, work), held_out_answers(found, golds))

    def _vectors(self, frozen: bool) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Return the vectors of the training rows, and for tokens the row of each."""
        model, head, read = self._model, self._head, self._read
        model.to(current_process().device)
        was_training = model.training
        model.eval()
        self._context.meter.inferred(0)
        folder = None if self._context.folder is None else self._context.folder / "vectors"
        rows = np.arange(len(read), dtype=np.int64)
        groups = None
        if isinstance(head, PooledHead) and isinstance(model, PooledModel):
            if frozen:
                head.freeze(self._origin, folder)
            cache = head.cache if frozen and head.cache is not None else VectorCache({}, None)
            vectors = frozen_features(model, cache, read, rows)
        else:
            identity = {"origin": self._origin, "kind": "tokens", "threads": torch.get_num_threads()}
            cache = cache_of(identity, folder)
            vectors, groups = token_vectors(model, read, cache, rows)
        cache.flush()
        self._context.meter.inferred(int(read.encoded.lengths.sum()))
        model.train(was_training)
        return vectors, groups


def class_layer(model: Any) -> nn.Linear:
    """Return the class layer of a model that tags tokens.

    Raises:
        UsageError: it has none that a regression could give its weights.
    """
    layer = getattr(model, "classifier", None)
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise UsageError(f"method probe does not know the class layer of a {type(model).__name__}; choose method full")
    return layer


@torch.inference_mode()
def token_vectors(
    model: nn.Module, read: Sources, cache: VectorCache, rows: Rows
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the vectors of the tokens that stand for text, float32 ``[tokens, hidden]``, and their rows, int64 ``[tokens]``.

    Raises:
        UsageError: as `class_layer`.
    """
    class_layer(model)
    encoder: Any = getattr(model, str(model.base_model_prefix))
    assert read.places is not None
    encoded, device = read.encoded, device_of(model)
    width = int(encoder.config.hidden_size)

    def compute(missing: Rows) -> NDArray[np.float32]:
        batch = {name: tensor.to(device) for name, tensor in collate(encoded, missing).items()}
        with torch.autocast(device.type, enabled=False):
            hidden = encoder(**batch).last_hidden_state.float()
        flat: NDArray[np.float32] = hidden.flatten(1).cpu().numpy()
        return flat

    found = cache.ragged(encoded, rows, compute)
    blocks = [flat.reshape(-1, width) for flat in found]
    kept = [block[read.places.row(int(row))] for row, block in zip(rows, blocks, strict=True)]
    groups = np.repeat(rows, [len(block) for block in kept])
    return np.concatenate(kept), groups


def fit_words(
    form: TaskSpec,
    texts: Texts,
    answers: Sequence[str] | SparseTargets,
    settings: TrainSettings,
    *,
    dev: Any,
    out: Path,
    context: TrainContext,
    metric: TaskMetric | None = None,
) -> TrainProgress:
    """Fit a model without an encoder to labels or to a teacher's targets, and write it to ``out``.

    Raises:
        LabelError: an answer outside the label set.
    """
    group = current_process()
    head = WordsHead(form, settings.method)
    context.meter.inferred(0)
    n_classes = form.n_outputs
    probe = settings.of_method("probe")
    work = _work(context, probe.folds * len(strengths(probe)) + 1)
    if settings.method == "majority":
        assert not isinstance(answers, SparseTargets)
        counts = np.bincount(class_numbers(answers, head), minlength=n_classes) if answers else np.zeros(n_classes)
        bias = np.log((counts + 1e-3) / (counts.sum() + 1e-3 * n_classes)).astype(np.float32)
        found = Regression(np.zeros((n_classes, 0), dtype=np.float32), bias, 1.0, 0, True)
    else:
        head.vectorizer = new_vectorizer(form.max_source_tokens)
        words = head.vectorizer.fit_transform(joined(texts))
        if isinstance(answers, SparseTargets):
            chosen, _ = regression.resolved(probe, is_f1=False, has_classes=True)
            found = regression.fit_probabilities(words, probabilities_of(answers), chosen, work, seed=settings.seed)
        else:
            chosen, by_metric = regression.resolved(probe, is_f1=metric is not None and metric.is_f1, has_classes=True)
            score = _score_of(metric, form) if by_metric and metric is not None else None
            golds = class_numbers(answers, head)
            found = regression.fit_labels(words, golds, n_classes, chosen, work, seed=settings.seed, score=score)
    model = WordsModel(found.weight, found.bias)
    progress = TrainProgress(stopped="finished")
    if dev is not None:
        scored = _words_score(model, head, dev)
        progress.best_score, progress.best_epoch, progress.best_evaluation = scored[0], 0, 0
        progress.history.append({"epoch": 0, "step": 0, "loss": 0.0, "dev": scored[0], "temperature": scored[1]})
    ProbeReport(0, work.n_flops, found.strength, _notes(found, work), []).note(progress)
    progress.n_parameters = sum(parameter.numel() for parameter in model.parameters())
    if group.is_main:
        save_with_head(model, head, None, out, progress.temperature)
    group.barrier()
    return progress


def note_probe_score(model: nn.Module, progress: TrainProgress, context: TrainContext, score: DevScore | None) -> None:
    """Score a fitted head on dev, once, where there is a dev set."""
    entry: dict[str, float | int | None] = {"epoch": progress.epoch, "step": progress.step, "loss": 0.0, "dev": None}
    if score is not None:
        value, n_tokens, *more = score(model)
        context.meter.inferred(n_tokens)
        progress.n_tokens_inferred += n_tokens
        progress.best_score, progress.best_epoch, progress.best_evaluation = value, progress.epoch, 0
        entry |= {"dev": value} | ({"temperature": more[0]} if more and more[0] is not None else {})
    progress.history.append(entry)


def probabilities_of(targets: SparseTargets) -> NDArray[np.float64]:
    """Return a teacher's distributions over its classes at temperature 1, position by position, ``[positions, classes]``."""
    found = []
    for start in range(0, len(targets), _TARGETS_ROWS):
        rows = np.arange(start, min(start + _TARGETS_ROWS, len(targets)), dtype=np.int64)
        teacher = targets.batch(rows, temperature=1.0).teacher
        dense = torch.zeros((len(teacher.positions), targets.vocab_size), dtype=torch.float64)
        dense[teacher.entries, teacher.indices] = teacher.logits.double()
        found.append(torch.softmax(dense, dim=1).numpy())
    return np.concatenate(found) if found else np.zeros((0, targets.vocab_size))


def class_numbers(answers: Sequence[str], head: Head) -> Labels:
    """Return the class of each answer, int64 ``[answers]``.

    Raises:
        LabelError: an answer outside the label set.
    """
    empty = np.zeros(0, dtype=np.int32)
    nothing = Sources(Encoded(empty, empty, np.zeros(1, dtype=np.int64), 0, 0), [])
    numbers: Labels = head.encode_answers(nothing, answers).ids.astype(np.int64)
    return numbers


def _words_score(model: WordsModel, head: WordsHead, dev: Any) -> tuple[float, float | None]:
    """Return the dev score of a model without an encoder, and the temperature that fits its probabilities."""
    from outlay.settings import TeachSettings

    read = head.tokenize(dev.sources)
    kept: list[NDArray[np.float32]] = []

    def keep(rows: Rows, positions: Rows, logits: torch.Tensor) -> None:  # noqa: ARG001
        kept.append(logits.numpy())

    rows = np.arange(len(read), dtype=np.int64)
    generation = head.generate(model, read, rows, TeachSettings(), sink=keep)
    score = dev.score(head.decode(read, rows, generation.units))
    temperature = fit_temperature(np.concatenate(kept), class_numbers(dev.golds, head)) if dev.golds else None
    return score, temperature


def _n_outputs(head: Head) -> int:
    return len(head.tags) if hasattr(head, "tags") else len(head.form.labels)


def _score_of(metric: TaskMetric, form: TaskSpec) -> regression.Score:
    """Return the metric as a function of classes."""

    def score(answers: Labels, golds: Labels) -> float:
        return metric.score([form.labels[i] for i in answers], [form.labels[i] for i in golds])

    return score


def _work(context: TrainContext, n_fits: int) -> regression.Work:
    """Return a counter of fits that reports to the meter, and to a listener how many of the fits are done."""
    meter, progress = context.meter, TrainProgress()

    def counted(n_flops: int) -> None:
        meter.fitted(n_flops)
        progress.step += 1
        if context.on_progress is not None and current_process().is_main:
            context.on_progress(progress, max(n_fits, progress.step))

    return regression.Work(meter.may_fit, counted)


def held_out_answers(found: Regression, golds: Labels | None) -> list[tuple[int, float, float]]:
    """Return the answer to each row by the fold that left it out, with its probability and that of the row's label.

    Empty where no row was held out, or ``golds``, the classes of the rows, are not known.
    """
    if found.held_out is None or golds is None:
        return []
    said = found.held_out
    answers, rows = said.argmax(1), np.arange(len(said))
    sure, own = said[rows, answers].round(N_DIGITS), said[rows, golds].round(N_DIGITS)
    return list(zip(answers.tolist(), sure.tolist(), own.tolist(), strict=True))


def _notes(found: Regression, work: regression.Work) -> tuple[str, ...]:
    """Return remarks on a regression, a line each."""
    notes = []
    if not found.is_converged:
        notes.append(f"the regression at C = {found.strength:g} had not converged after 1,000 iterations")
    if work.n_unconverged > (not found.is_converged):
        notes.append(
            f"{work.n_unconverged:,} of {work.n_fits:,} fits of the choice of C had not converged after 1,000 iterations"
        )
    return tuple(notes)
