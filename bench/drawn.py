"""What `bench/gpu.py` measures with, drawn at random: models, lines and answers of WLP's lengths, a teacher's targets.

Nothing is read from a file or downloaded, and weights are drawn on the device that uses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from outlay.models.generative_heads import GenerationHead
from outlay.models.heads import Sources
from outlay.models.random_init import new_model
from outlay.models.sizes import Size
from outlay.models.tokenization import AnswerIds, Encoded
from outlay.settings import TeachSettings
from outlay.spec import TaskSpec
from outlay.train.targets.targets import SparseTargets, TargetsBuilder

LOG_SIGMA = (0.45, 0.63)
"""Standard deviations of the logarithms of the lengths of WLP lines and answers (12,510 train rows, BERT's WordPiece)."""
CORRELATION = 0.89
"""Of the two: long lines have long answers."""

SPECIAL = ("<pad>", "</s>", "<unk>")
END = SPECIAL.index("</s>")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a line and of its answer on average, closing tokens included, and the limit of either."""

    source: int
    answer: int
    most: int


def drawn_lengths(lengths: Lengths, n_rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of ``n_rows`` lines and answers: log-normal, with the means of ``lengths``."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((2, n_rows))
    normal[1] = CORRELATION * normal[0] + (1 - CORRELATION**2) ** 0.5 * normal[1]
    drawn = []
    for mean, sigma, z in zip((lengths.source, lengths.answer), LOG_SIGMA, normal, strict=True):
        n_tokens = np.exp(np.log(mean) - sigma**2 / 2 + sigma * z).round()
        drawn.append(np.clip(n_tokens, 2, lengths.most).astype(np.int64))
    return drawn[0], drawn[1]


def drawn_rows(lengths: Lengths, n_rows: int, vocab_size: int, seed: int = 0) -> tuple[Sources, AnswerIds]:
    """Lines and answers of random tokens, each closed as T5 closes a text."""
    rng = np.random.default_rng(seed + 1)
    flat = []
    for n_tokens in drawn_lengths(lengths, n_rows, seed):
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(n_tokens)])
        ids = rng.integers(len(SPECIAL), vocab_size, int(offsets[-1]), dtype=np.int32)
        ids[offsets[1:] - 1] = END
        flat.append((ids, offsets))
    (ids, offsets), (units, bounds) = flat
    encoded = Encoded(ids, np.zeros_like(ids), offsets, 0, 0)
    return Sources(encoded, [("",)] * n_rows), AnswerIds(units, bounds)


def n_words(size: Size) -> int:
    """Tokens of the tokenizer: T5's models have 28 rows more."""
    return size.vocab_size - 28


def drawn_head(most_tokens: int, size: Size) -> GenerationHead:
    """The head of a model that writes; its tokenizer knows as many words as T5's (28 fewer than its models have rows)."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = (*SPECIAL, *(f"w{i}" for i in range(n_words(size) - len(SPECIAL))))
    words = {name: i for i, name in enumerate(names)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token=SPECIAL[2])),
        **dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True)),
    )
    return GenerationHead(tokenizer, TaskSpec("generation", (), most_tokens, most_tokens), "seq2seq")


def drawn_model(size: Size, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Random weights, drawn where they are used: 22 GB never pass through the host."""
    with device:
        return new_model(size, seed=0, dtype=dtype)


def drawn_targets(units: AnswerIds, vocab_size: int, how: TeachSettings, device: torch.device) -> SparseTargets:
    """Targets of a teacher who knows nothing: as many logits at each position as may be kept."""
    builder = TargetsBuilder("tokens", len(units), max_logits=how.max_logits, tail_mass=how.tail_mass)
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for rows in np.array_split(np.arange(len(units)), 1 + int(units.offsets[-1]) // 4096):
        counts = units.lengths[rows]
        said = np.split(units.ids[units.offsets[rows[0]] : units.offsets[rows[-1] + 1]], np.cumsum(counts)[:-1])
        shape = (int(counts.sum()), vocab_size)
        logits = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        builder.put(np.repeat(rows, counts), np.concatenate([np.arange(n) for n in counts]), logits)
        builder.answer(rows, said)
    return builder.build([""] * len(units))


class Endings:
    """Ends every answer at its length: a hook on the layer that gives the logits, for batches spoken one after another.

    Rows that have ended may leave the batch between two steps; the others keep their order.
    """

    def __init__(self, lengths: NDArray[np.int64], device: torch.device) -> None:
        self._lengths = lengths
        self._device = device
        self._left: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._left_there = torch.zeros(0)
        self._step = 0

    def begin(self, rows: NDArray[np.int64]) -> None:
        """The rows of the batch that is spoken next, in its order."""
        self._keep(self._lengths[rows])
        self._step = 0

    def __call__(self, module: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        """``[rows, V]`` or ``[rows, 1, V]``, changed in place."""
        if logits.ndim == 3 and logits.shape[1] != 1:
            raise RuntimeError("the teacher reads whole answers here; they can be ended one token at a time only")
        if len(logits) < len(self._left):
            self._leave(len(logits))
        ends = (self._left_there <= self._step + 1).reshape(logits.shape[:-1])
        logits[..., END] = torch.where(ends, logits.amax(-1) + 10.0, logits.amin(-1))
        self._step += 1
        return logits

    def _leave(self, n: int) -> None:
        """Which ``n`` rows are still there: those that were not over at some step before."""
        for step in range(self._step, 0, -1):
            there = self._left > step
            if int(there.sum()) == n:
                return self._keep(self._left[there])
        raise RuntimeError(f"{n} rows are left of {len(self._left)}, which is the state of no step")

    def _keep(self, left: NDArray[np.int64]) -> None:
        self._left = left
        self._left_there = torch.from_numpy(left).to(self._device)


@contextmanager
def ended(model: nn.Module, endings: Endings) -> Iterator[None]:
    """The model out of training, its answers ended by ``endings``."""
    hook = model.get_output_embeddings().register_forward_hook(endings)  # type: ignore[operator]
    model.eval()
    try:
        yield
    finally:
        hook.remove()
        model.train()
