"""The published objective, step for step: a plain loop with the teacher in it, beside `teach` + `distil` from stored targets.

    python bench/published_objective.py                                    # a small T5 pair made on the spot
    python bench/published_objective.py --teacher A --student B --texts FILE --prefix "nq: "

Kang et al. 2023 distil with the teacher in the loop: for every batch it writes its greedy answers, teacher and student both read
them as decoder input, and the loss is ``KLDivLoss("batchmean")`` over all flattened positions at T = 2, times T². `reference` is
that, in bare torch and transformers. It takes the batches that outlay's loop takes; both sides have the same weights, learning
rates and clipping, no dropout, float32, one thread. Exit code 1 where a step's loss differs by more than 1e-4 of itself.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from outlay.models.loading import ModelSpec
from outlay.models.random_init import Corpus, build_checkpoint
from outlay.models.sizes import Size
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TaskSpec
from outlay.train.api import TrainContext, distil, finetune, teach
from outlay.train.batching import training_batches
from outlay.train.targets.targets import SparseTargets
from outlay.train.trackers import Tracker

LIMIT = 1e-4
TEMPERATURE = 2.0
COLOURS = ("red", "blue", "green", "black", "white")


@dataclass(frozen=True, slots=True)
class Pair:
    """Checkpoint folders of teacher and student, equal in their tokenizer, and what they are asked; ``texts`` without prefix."""

    teacher: Path
    student: Path
    texts: Sequence[str]
    form: TaskSpec


@dataclass(frozen=True, slots=True)
class Curves:
    """Loss per optimiser step of both sides; ``lengths``: tokens of the teacher's answers, the closing one included."""

    reference: list[float]
    outlay: list[float]
    lengths: list[int]

    @property
    def largest_difference(self) -> float:
        """Of a step's losses, relative to the reference's."""
        return max(abs(b - a) / abs(a) for a, b in zip(self.reference, self.outlay, strict=True))


def reference(pair: Pair, batches: Sequence[Sequence[int]], learning_rate: float) -> list[float]:
    """The loss of every step of the plain loop."""
    tokenizer = AutoTokenizer.from_pretrained(pair.teacher)
    teacher = AutoModelForSeq2SeqLM.from_pretrained(pair.teacher).eval()
    student = AutoModelForSeq2SeqLM.from_pretrained(pair.student, dropout_rate=0.0).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    divergence = nn.KLDivLoss(reduction="batchmean")
    losses = []
    for rows in batches:
        source = tokenizer(
            [pair.form.prefix + pair.texts[row] for row in rows],
            padding=True,
            truncation=True,
            max_length=pair.form.max_source_tokens,
            return_tensors="pt",
        )
        inputs = {name: source[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            written = teacher.generate(**inputs, max_length=pair.form.max_target_tokens, do_sample=False, num_beams=1)
            said = teacher(**inputs, decoder_input_ids=written).logits
        heard = student(**inputs, decoder_input_ids=written).logits
        vocab_size = said.shape[-1]
        loss = divergence(
            torch.log_softmax(heard.reshape(-1, vocab_size) / TEMPERATURE, dim=-1),
            torch.softmax(said.reshape(-1, vocab_size) / TEMPERATURE, dim=-1),
        )
        loss = loss * TEMPERATURE**2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def compare(pair: Pair, *, epochs: int, batch_size: int, learning_rate: float, objective: str = "published") -> Curves:
    """Both sides on the same batches; with another ``objective`` they are not the same loss."""
    settings = TrainSettings(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_fraction=0.0,
        weight_decay=0.0,
        dropout=0.0,
        temperature=TEMPERATURE,
        precision="fp32",
        objective=objective,
    )
    sources = [(text,) for text in pair.texts]
    complete = TeachSettings(max_logits=0, keep_padding=True, batch_size=batch_size)
    targets = teach(pair.teacher, sources, target="tokens", settings=complete, precision="fp32", meter=FreeMeter())
    curve = Curve()
    with tempfile.TemporaryDirectory() as folder:
        spec = ModelSpec(str(pair.student), str(pair.student), pair.form, settings.seed, "tokens")
        watch = TrainContext(FreeMeter(), tracker=curve)
        distil(spec, sources, targets, settings, dev=None, out=Path(folder) / "student", context=watch)
    plain = reference(pair, batches_of(pair, targets, settings), learning_rate)
    return Curves(plain, curve.losses, targets.n_real.tolist())


def batches_of(pair: Pair, targets: SparseTargets, settings: TrainSettings) -> list[list[int]]:
    """The rows of each step of outlay's loop, which sorts by the tokens of source, answer and the position behind its end."""
    tokenizer = AutoTokenizer.from_pretrained(pair.teacher)
    texts = [pair.form.prefix + text for text in pair.texts]
    read = tokenizer(texts, truncation=True, max_length=pair.form.max_source_tokens)["input_ids"]
    lengths = np.array([len(ids) for ids in read]) + targets.n_real.astype(np.int64) + 1
    epochs = (training_batches(lengths, settings.batch_size, settings.seed, epoch) for epoch in range(settings.epochs))
    return [batch.tolist() for batches in epochs for batch in batches]


class FreeMeter:
    """Lets everything through."""

    def may_train(self, n_tokens: int) -> bool:
        return True

    def trained(self, n_tokens: int) -> None: ...

    def inferred(self, n_tokens: int) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


class Curve(Tracker):
    """Stands where a dashboard would, and keeps the losses."""

    def __init__(self) -> None:
        super().__init__(None)
        self.losses: list[float] = []

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.losses += [figures["loss"]] if "loss" in figures else []

    def close(self) -> None: ...


def make_pair(folder: Path, *, n_texts: int = 48, seed: int = 0) -> Pair:
    """A small T5 that has learnt to name the colours of a line in their order, and one that knows nothing."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(("a", "the", "of", *COLOURS), k=rng.randint(3, 11))) for _ in range(n_texts)]
    answers = [" ".join(word for word in text.split() if word in COLOURS)[:24] or "none" for text in texts]
    corpus = Corpus([f"{text} {answer}" for text, answer in zip(texts, answers, strict=True)])
    size = Size("toy", "t5", 2, 32, 64, 2, vocab_size=320, head_size=16, n_decoder_layers=2)
    form = TaskSpec("generation", (), max_source_tokens=16, max_target_tokens=11, prefix="colours: ")
    for name in ("blank", "student"):
        build_checkpoint(size, corpus, folder / name, seed=seed + (name == "student"))
    settings = TrainSettings(epochs=12, batch_size=8, learning_rate=1e-2, precision="fp32", seed=seed)
    finetune(
        ModelSpec(str(folder / "blank"), str(folder / "blank"), form, seed, "tokens"),
        [(text,) for text in texts],
        answers,
        settings,
        dev=None,
        out=folder / "teacher",
        context=TrainContext(FreeMeter()),
    )
    return Pair(folder / "teacher", folder / "student", texts, form)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", type=Path, help="folder of a T5 that outlay has written (or any, with --texts)")
    parser.add_argument("--student", type=Path, help="folder of a T5 with the teacher's tokenizer")
    parser.add_argument("--texts", type=Path, help="a file of one text per line")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--max-source-tokens", type=int, default=128)
    parser.add_argument("--max-target-tokens", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.teacher and args.student and args.texts:
            form = TaskSpec("generation", (), args.max_source_tokens, args.max_target_tokens, args.prefix)
            texts = [line for line in args.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
            pair = Pair(args.teacher, args.student, texts, form)
        elif args.teacher or args.student or args.texts:
            parser.error("--teacher, --student and --texts go together")
        else:
            pair = make_pair(Path(folder))
        curves = compare(pair, epochs=args.epochs, batch_size=args.batch_size, learning_rate=args.learning_rate)
    print(f"{'step':>6} {'in the loop':>14} {'from targets':>14} {'difference':>12}")
    for step, (a, b) in enumerate(zip(curves.reference, curves.outlay, strict=True), start=1):
        print(f"{step:>6} {a:>14.8f} {b:>14.8f} {abs(b - a) / abs(a):>12.1e}")
    print(f"answers of {min(curves.lengths)} to {max(curves.lengths)} tokens, closing token included")
    print(f"largest relative difference {curves.largest_difference:.1e}, limit {LIMIT:.0e}")
    return int(curves.largest_difference > LIMIT)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sys.exit(main())
