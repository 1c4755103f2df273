"""Trainings that `tests.test_processes` runs in one process and in several: ``python -m tests.process_worker OUT NAME ...``.

Each training is a function of a folder; the main process writes what they return to ``OUT`` (torch tensors in lists).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outlay.models.tokenization import collate
from outlay.settings import TrainSettings
from outlay.train.checkpoints import Checkpoints
from outlay.train.distributed import current_process
from outlay.train.loop import fit
from outlay.train.losses import LossSum
from outlay.train.progress import TrainContext, TrainProgress
from tests.toys import Bag, BagLesson, CountingMeter, Tagger, TokenLesson, classes_of, toy

SETTINGS = TrainSettings(epochs=3, batch_size=8, learning_rate=0.02, precision="fp32", seed=3, eval_steps=5)
CLIPPED = SETTINGS.changed({"max_grad_norm": 0.45})
"""About half of the steps of a `Tagger` are: an optimiser that divides by the gradient's size would hide a wrong one."""
N_ROWS = 57
"""The last batch of an epoch has one row: a process more has nothing to do."""


class Killed(Exception):
    """Stands for a kill."""


class Refusing(CountingMeter):
    """Refuses after 700 tokens on the main process, and everywhere else never: only the main one's word counts."""

    def may_train(self, n_tokens: int) -> bool:
        return not current_process().is_main or self.n_trained + n_tokens <= 700


def outcome(model: nn.Module, losses: list[float], progress: TrainProgress, meter: CountingMeter) -> dict[str, Any]:
    state = current_process().full_state(model.state_dict())
    return {
        "losses": losses,
        "history": progress.history,
        "stopped": progress.stopped,
        "best": [progress.best_evaluation, progress.best_score],
        "tokens": meter.state(),
        "n_parameters": progress.n_parameters,
        "weights": {name: tensor.tolist() for name, tensor in state.items()},
    }


def train(
    model: nn.Module,
    lesson: BagLesson,
    settings: TrainSettings,
    meter: CountingMeter,
    checkpoints: Checkpoints | None = None,
) -> dict[str, Any]:
    dev, labels = toy(23, seed=9)
    losses: list[float] = []

    def score(model: nn.Module) -> tuple[float, int]:
        place = current_process()
        rows = np.arange(len(dev))
        own = rows if place.fsdp else rows[place.rank :: place.n_processes]
        said = dict(place.gather([(int(row), int(classes_of(model, dev)[row])) for row in own]))
        n_tokens = int(dev.lengths[own].sum())
        every = n_tokens if place.fsdp else sum(place.gather([n_tokens]))
        return float(np.mean([said[row] == int(labels[row]) for row in range(len(dev))])), every

    def on_progress(progress: TrainProgress, n_steps: int) -> None:
        losses.append(progress.loss_since)

    dev_score = score if isinstance(model, Bag) else None
    progress = fit(
        model, lesson, settings, TrainContext(meter, on_progress=on_progress), dev=dev_score, checkpoints=checkpoints
    )
    return outcome(model, losses, progress, meter)


def classes(folder: Path) -> dict[str, Any]:
    return train(Bag(seed=5), BagLesson(*toy(N_ROWS, seed=0)), SETTINGS, CountingMeter())


def limited(folder: Path) -> dict[str, Any]:
    return train(Bag(seed=5), BagLesson(*toy(N_ROWS, seed=0)), SETTINGS, Refusing())


def tokens(folder: Path) -> dict[str, Any]:
    """Ragged positions, one row at a time; of seven rows one process has four, the other three."""
    settings = CLIPPED.changed({"micro_batch_size": 1, "batch_size": 7})
    return train(Tagger(seed=5), TokenLesson(*toy(N_ROWS, seed=0)), settings, CountingMeter())


def adafactor(folder: Path) -> dict[str, Any]:
    settings = CLIPPED.changed({"optimizer": "adafactor"})
    return train(Tagger(seed=5), TokenLesson(*toy(N_ROWS, seed=0)), settings, CountingMeter())


def resumed(folder: Path) -> dict[str, Any]:
    """Killed at step 12, with a checkpoint of step 9, by every process."""
    lesson = TokenLesson(*toy(N_ROWS, seed=0))

    class Killing(CountingMeter):
        def trained(self, n_tokens: int) -> None:
            super().trained(n_tokens)
            if self.n_batches == 12:
                raise Killed

    def checkpoints() -> Checkpoints:
        return Checkpoints(folder / "resumed", every_seconds=3600, every_steps=3)

    settings = CLIPPED.changed({"optimizer": "adafactor" if current_process().fsdp else "adamw"})
    try:
        train(Tagger(seed=5), lesson, settings, Killing(), checkpoints())
    except Killed:
        current_process().barrier()
        return train(Tagger(seed=6), lesson, settings, CountingMeter(), checkpoints())
    raise AssertionError("nobody was killed")


def words(folder: Path) -> dict[str, Any]:
    """What processes tell each other."""
    place = current_process()
    told = place.gather([f"{place.rank}.{i}" for i in range(place.rank + 1)])
    return {
        "gathered": told,
        "agreed": [place.broadcast(int(place.is_main)), place.broadcast(int(not place.is_main))],
        "total": place.all_reduce(torch.tensor([1.5, 10.0**place.rank])).tolist(),
        "place": [place.n_processes, place.fsdp, place.device.type],
    }


class CopyLesson(BagLesson):
    """A T5 repeats the first words of its source."""

    def loss(self, model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> LossSum:
        batch, _ = batch
        wanted = batch["input_ids"][:, :3].contiguous()
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=wanted).logits
        values = F.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none")
        real = batch["attention_mask"][:, :3].bool()
        return LossSum(torch.where(real, values, 0.0).sum(), real.sum().float())


def t5(folder: Path) -> dict[str, Any]:
    """Scored by what it writes."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 24, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 3, "dropout_rate": 0.0}
    config = T5Config(
        vocab_size=31, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, **sizes
    )
    torch.manual_seed(1)
    model = T5ForConditionalGeneration(config)
    lesson = CopyLesson(*toy(N_ROWS, seed=0))
    written: list[list[int]] = []
    losses: list[float] = []

    def score(model: nn.Module) -> tuple[float, int]:
        batch = collate(lesson.encoded, np.arange(11))
        ids, mask = batch["input_ids"], batch["attention_mask"]
        written[:] = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, num_beams=2).tolist()
        return 0.0, 11

    meter = CountingMeter()
    settings = SETTINGS.changed({"gradient_checkpointing": True, "micro_batch_size": 3})
    progress = fit(
        model, lesson, settings, TrainContext(meter, on_progress=lambda p, n: losses.append(p.loss_since)), dev=score
    )
    return {**outcome(model, losses, progress, meter), "written": written}


TRAININGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    each.__name__: each for each in (classes, limited, tokens, adafactor, resumed, words, t5)
}


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    done = {name: TRAININGS[name](Path(out).parent) for name in names}
    if current_process().is_main:
        Path(out).write_text(json.dumps(done), encoding="utf-8")
    current_process().barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
