"""Toy tasks, a toy model and a meter that only counts: what the tests of `outlay.train` share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from outlay.models.tokenization import Encoded, collate
from outlay.settings import TEMPERATURES
from outlay.spec import TargetKind
from outlay.train.losses import LossSum
from outlay.train.targets.sparse_logits import MAX_LOGITS, TAIL_MASS, SparsityRule
from outlay.train.targets.targets import SparseTargets
from outlay.train.targets.top_logits import largest, to_positions

MARKERS = (("awful", "dull", "broken"), ("lovely", "bright", "clever"))
FILLERS = (
    "the",
    "a",
    "of",
    "film",
    "story",
    "actor",
    "scene",
    "music",
    "plot",
    "camera",
    "light",
    "with",
    "from",
    "under",
)

N_WORDS = 29
N_CLASSES = 3


def sentences(n: int, seed: int) -> list[tuple[str, int]]:
    """``n`` sentences of 3 to 19 words and their class (0 or 1), which one marker word decides."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        label = rng.randrange(2)
        words = rng.choices(FILLERS, k=rng.randint(2, 18))
        words.insert(rng.randrange(len(words) + 1), rng.choice(MARKERS[label]))
        rows.append((" ".join(words), label))
    return rows


def encoded_rows(rows: list[list[int]], pad_id: int = 0) -> Encoded:
    """`Encoded` from lists of ids; every token's type is its id modulo 2."""
    flat = np.array([token for row in rows for token in row], dtype=np.int32)
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    return Encoded(flat, (flat % 2).astype(np.int32), offsets, pad_id, 0)


def toy(n_rows: int, seed: int) -> tuple[Encoded, Tensor]:
    """Rows of 3 to 17 words in which one of the words 1, 2 and 3 tells the class; separable for `Bag`."""
    rng = random.Random(seed)
    labels = [rng.randrange(N_CLASSES) for _ in range(n_rows)]
    rows = []
    for label in labels:
        row = [rng.randrange(5, N_WORDS) for _ in range(rng.randint(2, 16))]
        row.insert(rng.randrange(len(row) + 1), 1 + label)
        rows.append(row)
    return encoded_rows(rows), torch.tensor(labels)


class Bag(nn.Module):
    """Mean of word vectors, one hidden layer, dropout: what it says does not depend on padding."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(N_WORDS, 13)
        self.hidden = nn.Linear(13, 7)
        self.norm = nn.LayerNorm(7)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(7, N_CLASSES)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Any:
        mask = attention_mask.unsqueeze(-1).float()
        mean = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.head(self.dropout(torch.tanh(self.norm(self.hidden(mean))))))


class CountingMeter:
    """Counts tokens and the FLOPs of regressions; refuses the batch that would pass ``limit`` trained tokens."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.n_trained = 0
        self.n_inferred = 0
        self.n_batches = 0
        self.n_flops_fitted = 0

    def may_train(self, n_tokens: int) -> bool:
        return self.limit is None or self.n_trained + n_tokens <= self.limit

    def trained(self, n_tokens: int) -> None:
        self.n_trained += n_tokens
        self.n_batches += 1

    def inferred(self, n_tokens: int) -> None:
        self.n_inferred += n_tokens

    def may_fit(self, n_flops: int) -> bool:
        return True

    def fitted(self, n_flops: int) -> None:
        self.n_flops_fitted += n_flops

    def state(self) -> dict[str, Any]:
        return {"trained": self.n_trained, "inferred": self.n_inferred, "fitted": self.n_flops_fitted}

    def restore(self, state: dict[str, Any]) -> None:
        self.n_trained, self.n_inferred = state["trained"], state["inferred"]
        self.n_flops_fitted = state["fitted"]


def classes_of(model: nn.Module, encoded: Encoded) -> NDArray[np.int64]:
    """The class `Bag` gives to each row, in eval mode."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(**collate(encoded, np.arange(len(encoded)))).logits
    model.train(was_training)
    return logits.argmax(-1).numpy()


class BagLesson:
    """Cross-entropy of one class per row, for `Bag`; notes the mean of each call in ``losses``."""

    def __init__(self, encoded: Encoded, labels: Tensor) -> None:
        self.encoded = encoded
        self.labels = labels
        self.losses: list[float] = []

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.encoded.lengths

    @property
    def n_truncated(self) -> int:
        return self.encoded.n_truncated

    def batch(self, rows: NDArray[np.int64]) -> tuple[dict[str, Tensor], Tensor]:
        return collate(self.encoded, rows), self.labels[torch.from_numpy(rows)]

    def loss(self, model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> LossSum:
        inputs, labels = batch
        total = F.cross_entropy(model(**inputs).logits.float(), labels, reduction="sum")
        self.losses.append(total.item() / len(labels))
        return LossSum(total, torch.tensor(float(len(labels))))


class TokenLesson(BagLesson):
    """Cross-entropy at every token of a row, for `Tagger`: rows have different numbers of positions."""

    def loss(self, model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> LossSum:
        inputs, classes = batch
        labels = (inputs["input_ids"] + classes.unsqueeze(1)) % N_CLASSES
        values = F.cross_entropy(model(**inputs).logits.float().transpose(1, 2), labels, reduction="none")
        real = inputs["attention_mask"].bool()
        return LossSum(torch.where(real, values, 0.0).sum(), real.sum().float())


class Block(nn.Module):
    """What must not be split when weights are dealt among processes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(13, 13)
        self.norm = nn.LayerNorm(13)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden + torch.tanh(self.linear(hidden)))


class Tagger(nn.Module):
    """Two blocks over each word and the mean of all."""

    _no_split_modules = ("Block",)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(N_WORDS, 13)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(13, N_CLASSES)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Any:
        mask = attention_mask.unsqueeze(-1).float()
        hidden = self.words(input_ids)
        hidden = hidden + (hidden * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        for block in self.blocks:
            hidden = block(hidden)
        return SimpleNamespace(logits=self.head(hidden))


def read_targets(data: bytes) -> SparseTargets:
    """The targets of a file of these bytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "targets.safetensors"
        path.write_bytes(data)
        return SparseTargets.open(path)


def targets_of(
    kind: TargetKind,
    logits: Tensor,
    n_positions: Sequence[int] | NDArray[np.int64],
    units: NDArray[np.int32],
    answers: Sequence[str],
    *,
    n_real: Sequence[int] | NDArray[np.int64] | None = None,
    max_logits: int = MAX_LOGITS,
    tail_mass: float = TAIL_MASS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> SparseTargets:
    """The largest of full ``logits`` ``[positions, V]``, of which each row has ``n_positions``."""
    rule = SparsityRule.of(kind, logits.shape[-1], max_logits, tail_mass, temperatures)
    kept = replace(to_positions([largest(logits, rule)], rule), units=units)
    real = None if n_real is None else np.array(n_real)
    return SparseTargets.from_positions(rule, kept, np.array(n_positions, dtype=np.int64), answers, n_real=real)
