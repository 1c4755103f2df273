"""Measure a machine: time short trainings and answers of random models, and fit the constants of the cost model.

Every figure comes from the functions that real steps are made of (`outlay.train.api`), so that a constant stands for all that a
step really does. The constants of `outlay.models.cost_model.Workload` are found by least squares on relative errors, none of them
negative.
"""

from __future__ import annotations

import datetime
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from outlay.hardware.bf16 import CLEARLY_SLOW, gpu_name, measure_bf16_ratio
from outlay.hardware.processor import cpu_name
from outlay.models.cost_model import (
    TERMS,
    Lengths,
    MachineProfile,
    ModelProfile,
    Workload,
    answering_load,
    starting_load,
    training_load,
)
from outlay.models.loading import ModelSpec
from outlay.models.random_init import Corpus, build_checkpoint
from outlay.models.shape import shape_of_size
from outlay.models.sizes import Size
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TaskSpec
from outlay.train.api import finetune, predict, teach, use_threads
from outlay.train.distributed import current_process
from outlay.train.profiler import matmul_rate
from outlay.train.progress import TokenCounter, TrainContext

Matrix = NDArray[np.float64]

TRAIN_TERMS = ("steps", "updated", "train_calls", "train_flops", "train_elements", "train_logits")
INFER_TERMS = ("infer_calls", "infer_flops", "infer_elements", "infer_logits", "infer_weights", "words")
START_TERMS = ("models", "loaded", "read")

N_WORDS = 400
"""Distinct words of the texts, each one token."""
MEASURED_SECONDS = 0.4
"""Seconds of one training, once it is warm."""
N_STEPS, N_LEAST, N_WARM = 16, 4, 2
"""Steps of one training: at most, at least, and before they count."""
N_BATCHES = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """One model and one form of batch: ``n_rows`` texts of ``source`` tokens and answers of ``answer`` tokens (0: an encoder)."""

    size: Size
    n_rows: int
    source: int
    answer: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A workload and the seconds it took."""

    load: Workload
    seconds: float


def _size(kind: Literal["bert", "t5"], n_layers: int, hidden_size: int, d_ff: int, vocab_size: int) -> Size:
    n_heads = max(1, hidden_size // 64)
    return Size(
        name=f"{kind}-{n_layers}x{hidden_size}-{vocab_size}",
        type=kind,
        n_layers=n_layers,
        hidden_size=hidden_size,
        d_ff=d_ff,
        n_heads=n_heads,
        head_size=hidden_size // n_heads,
        vocab_size=vocab_size,
        n_decoder_layers=n_layers if kind == "t5" else 0,
        n_positions=512 if kind == "bert" else 0,
    )


def encoder_size(n_layers: int, hidden_size: int, vocab_size: int = 4096) -> Size:
    """Return an encoder of BERT's proportions."""
    return _size("bert", n_layers, hidden_size, 4 * hidden_size, vocab_size)


def t5_size(n_layers: int, hidden_size: int, vocab_size: int = 8192) -> Size:
    """Return a pair of stacks of T5 v1.1's proportions."""
    return _size("t5", n_layers, hidden_size, 5 * hidden_size // 2, vocab_size)


DEFAULT_TRIALS = (
    Trial(encoder_size(2, 128), 8, 16),
    Trial(encoder_size(6, 128), 32, 32),
    Trial(encoder_size(2, 256), 32, 64),
    Trial(encoder_size(4, 384), 8, 48),
    Trial(encoder_size(2, 512), 16, 64),
    Trial(encoder_size(4, 64, 16384), 16, 96),
    Trial(t5_size(2, 128), 8, 16, 4),
    Trial(t5_size(4, 128), 32, 24, 8),
    Trial(t5_size(2, 256), 16, 48, 24),
    Trial(t5_size(3, 384), 8, 32, 12),
    Trial(t5_size(1, 512, 16384), 16, 40, 8),
    Trial(t5_size(2, 64, 16384), 32, 64, 16),
)
"""Narrow and wide, shallow and deep, short and long, small and large batches: every term weighs in some of them."""

LIGHT_TRIALS = (
    Trial(encoder_size(2, 128), 8, 16),
    Trial(encoder_size(1, 192), 8, 32),
    Trial(encoder_size(2, 64, 16384), 8, 24),
    Trial(t5_size(1, 96, 2048), 8, 12, 4),
    Trial(t5_size(2, 64, 2048), 8, 16, 6),
)
"""Small trials that still determine all terms, for a precision in which a machine is very slow."""


def calibrate(
    *,
    threads: int,
    name: str = "here",
    trials: Sequence[Trial] | None = None,
    precisions: Sequence[str] = ("bf16", "fp32"),
    on_progress: Callable[[int, int], None] | None = None,
) -> MachineProfile:
    """Measure this machine with so many threads; ``on_progress`` gets the number of measurements done and of all."""
    measured = {precision: Measured() for precision in precisions}
    ratio = measure_bf16_ratio()
    light = {"bf16"} if ratio < CLEARLY_SLOW else set()
    chosen = {each: trials or (LIGHT_TRIALS if each in light else DEFAULT_TRIALS) for each in precisions}
    n_done, n_total = 0, 2 * sum(map(len, chosen.values()))
    with _threads(threads), tempfile.TemporaryDirectory(prefix="outlay-calibrate-") as folder:
        peak = max(matmul_rate(current_process().device, precision) for precision in ("bf16", "fp32"))
        models = _RandomModels(Path(folder))
        for precision in precisions:
            for trial in chosen[precision]:
                for measure in (models.train, models.answer):
                    measure(trial, precision, measured[precision])
                    n_done += 1
                    if on_progress is not None:
                        on_progress(n_done, n_total)
    # How a model is made ready does not depend on what it computes in, and these samples are noisy.
    started = [sample for each in measured.values() for sample in each.starting]
    constants = {precision: each.constants(started) for precision, each in measured.items()}
    return MachineProfile(
        name=name,
        measured=datetime.date.today().isoformat(),
        device=gpu_name() or cpu_name(),
        torch=torch.__version__,
        threads=threads,
        peak_flops_per_second=round(peak),
        constants=constants,
        bf16_ratio=round(ratio, 4),
    )


def fit_terms(samples: Sequence[Sample], terms: Sequence[str]) -> dict[str, float]:
    """Fit the seconds of one unit of each term by `least_relative_squares`; 0 for a term that no sample has."""
    columns = [TERMS.index(term) for term in terms]
    amounts = np.array([astuple(sample.load) for sample in samples], dtype=np.float64)[:, columns]
    found = least_relative_squares(amounts, np.array([sample.seconds for sample in samples]))
    return dict(zip(terms, found.tolist(), strict=True))


def least_relative_squares(amounts: Matrix, seconds: Matrix) -> Matrix:
    """Return the constants ``[K]``, none below 0, with the least squares of ``amounts @ constants / seconds - 1``.

    ``amounts``: ``[N, K]``, K small; ``seconds``: ``[N]``, above 0. The best of the unconstrained solutions over all subsets of
    the K columns: exact.
    """
    relative = amounts / seconds[:, None]
    scale = np.linalg.norm(relative, axis=0)
    usable = [i for i in range(amounts.shape[1]) if scale[i] > 0]
    best, error = np.zeros(amounts.shape[1]), float(len(seconds))
    for n in range(1, len(usable) + 1):
        for subset in combinations(usable, n):
            picked = list(subset)
            scaled = relative[:, picked] / scale[picked]
            part, *_ = np.linalg.lstsq(scaled, np.ones(len(seconds)), rcond=None)
            left = float(np.square(scaled @ part - 1).sum())
            if (part >= 0).all() and left < error:
                best, error = np.zeros(amounts.shape[1]), left
                best[picked] = part / scale[picked]
    return best


@dataclass(slots=True)
class Measured:
    """Samples of one precision, by the constants they determine."""

    training: list[Sample] = field(default_factory=list)
    inference: list[Sample] = field(default_factory=list)
    keeping: list[Sample] = field(default_factory=list)
    starting: list[Sample] = field(default_factory=list)

    def constants(self, started: Sequence[Sample]) -> dict[str, float]:
        """Return the constants of all terms; ``started``: the seconds of starts, of all precisions."""
        found = dict.fromkeys(TERMS, 0.0)
        found |= fit_terms(self.training, TRAIN_TERMS)
        found |= fit_terms(self.inference, INFER_TERMS)
        # Beside the answers, which are known by now.
        rest = [replace(s, seconds=s.seconds - _seconds(s.load, found)) for s in self.keeping]
        if kept := [s for s in rest if s.seconds > 0]:
            found |= fit_terms(kept, ("kept",))
        return found | fit_terms([s for s in started if s.seconds > 0], START_TERMS)


class _Clock(TokenCounter):
    """A counter that notes when each step or batch was done, and ends a training after enough steps."""

    def __init__(self) -> None:
        super().__init__()
        self.began = time.perf_counter()
        self.done: list[float] = []
        self.n_tokens: list[int] = []

    def may_train(self, n_tokens: int) -> bool:  # noqa: ARG002
        """Until enough steps were seen."""
        warm = self.done[N_WARM - 1 :]
        return len(self.done) < N_WARM + N_LEAST or warm[-1] - warm[0] < MEASURED_SECONDS

    def trained(self, n_tokens: int) -> None:
        """Note a training step."""
        self._note(n_tokens)

    def inferred(self, n_tokens: int) -> None:
        """Note a batch; one of no tokens only marks the start of answering."""
        if n_tokens:
            self._note(n_tokens)

    def _note(self, n_tokens: int) -> None:
        if current_process().device.type == "cuda":
            torch.cuda.synchronize()
        self.done.append(time.perf_counter())
        self.n_tokens.append(n_tokens)

    def each(self, n_warm: int) -> float:
        """Return the median seconds of a step or batch once it is warm."""
        return float(np.median(np.diff(self.done[n_warm - 1 :])))


class _RandomModels:
    """Random models and texts of exact lengths, in a scratch folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        draw = random.Random(0)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self._words = ["".join(draw.choices(letters, k=4)) for _ in range(N_WORDS)]
        self._corpus = Corpus([" ".join(self._words)] * 2, [])

    def train(self, trial: Trial, precision: str, measured: Measured) -> None:
        """Time some steps of fine-tuning; the time before the first and after the last is the start."""
        n_rows = N_STEPS * trial.n_rows
        settings = TrainSettings(epochs=1, batch_size=trial.n_rows, learning_rate=1e-4, precision=precision)
        spec, profile = self._spec(trial), _model_profile(trial)
        sources, answers = self._rows(trial, n_rows)
        out, clock = self._folder / "out", _Clock()
        out.mkdir(exist_ok=True)
        finetune(spec, sources, answers, settings, dev=None, out=out, context=TrainContext(clock))
        total, each = time.perf_counter() - clock.began, clock.each(N_WARM)
        step = training_load(profile, _lengths(trial, trial.n_rows), settings)
        measured.training.append(Sample(step, each))
        measured.starting.append(
            Sample(starting_load(profile, _lengths(trial, n_rows)), total - len(clock.done) * each)
        )

    def answer(self, trial: Trial, precision: str, measured: Measured) -> None:
        """Time some batches of answers by the model just trained; of one that generates, also a pass that keeps logits."""
        n_rows = N_BATCHES * trial.n_rows
        folder, profile = self._folder / "out", _model_profile(trial)
        sources, _ = self._rows(trial, n_rows)
        settings = TeachSettings(batch_size=trial.n_rows, batch_tokens=trial.n_rows * (trial.source + 1))
        clock = _Clock()
        predict(folder, sources, precision=precision, meter=clock, batch_size=trial.n_rows)
        written = round(clock.n_tokens[-1] / trial.n_rows) - trial.source
        lengths = Lengths([trial.source] * trial.n_rows, [max(0, written)] * trial.n_rows)
        measured.inference.append(Sample(answering_load(profile, lengths, settings), clock.each(1)))
        if trial.answer:
            clock = _Clock()
            teach(folder, sources, target="tokens", settings=settings, precision=precision, meter=clock)
            load = answering_load(profile, lengths, settings, keep=True).times(N_BATCHES)
            measured.keeping.append(Sample(load, time.perf_counter() - clock.began))

    def _spec(self, trial: Trial) -> ModelSpec:
        folder = self._folder / trial.size.name
        if not folder.exists():
            build_checkpoint(trial.size, self._corpus, folder)
        form = TaskSpec("classification", ("no", "yes"), trial.source, 1)
        if trial.answer:
            form = TaskSpec("generation", (), trial.source, trial.answer)
        return ModelSpec(str(folder), str(folder), form, 0)

    def _rows(self, trial: Trial, n: int) -> tuple[list[tuple[str, ...]], list[str]]:
        """Return texts with more words than tokens may be read, so that each is cut to the same length; answers likewise."""
        draw = random.Random(0)
        sources: list[tuple[str, ...]] = [(" ".join(draw.choices(self._words, k=trial.source)),) for _ in range(n)]
        if not trial.answer:
            return sources, [draw.choice(("no", "yes")) for _ in range(n)]
        return sources, [" ".join(draw.choices(self._words, k=trial.answer)) for _ in range(n)]


def _model_profile(trial: Trial) -> ModelProfile:
    return ModelProfile(shape_of_size(trial.size), 0 if trial.answer else 2)


def _lengths(trial: Trial, n: int) -> Lengths:
    return Lengths([trial.source] * n, [trial.answer] * n)


def _seconds(load: Workload, constants: dict[str, float]) -> float:
    return float(sum(constants[term] * amount for term, amount in zip(TERMS, astuple(load), strict=True)))


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    use_threads(n)
    try:
        yield
    finally:
        use_threads(before)
