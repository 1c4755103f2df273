"""Distillation from stored targets against the published way, with the teacher in the training loop.

    python -m bench.distill_vs_online [--data DATA] [--work DIR] [--threads 2] [--repeats 3] [--json FILE] | --toy

A teacher of 8 + 8 layers (52M parameters) and a student of 2 + 2 (3M), T5 v1.1's shape, random weights, one tokenizer learnt from
the claims of FEVER; the teacher has seen enough labels to answer with them. The reference is a `Seq2SeqTrainer` that does what
the public code of Kang et al. 2023 does: a batch with an input that is new is answered by the teacher (greedy), the answers are
kept in memory under the input's text, and at every step teacher and student read them; KLDivLoss("batchmean") over all flattened
positions at T = 2, times T², padding included; float32, batch 32, batches padded as they come.

1. Loss curves: the reference on outlay's batches against `teach` (whole vocabulary, padding kept) + `distil` (published
   objective), no dropout, float32. Exit code 1 where a step's loss differs by more than 1e-4 of itself.
2. Seconds of 50 epochs over the pool, from measured steps: the reference's first epoch (it generates) and later ones (it does
   not), against tokenising, teacher pass (and its writing down) and steps. Loading models counts on neither side.
3. An epoch from stored targets against an epoch on the teacher's answers by cross-entropy: same student, rows, batches.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorWithPadding, PrinterCallback, Seq2SeqTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import (
    ENCODER,
    STUDENT,
    TEACHER,
    Clock,
    ListDataset,
    Report,
    Rows,
    StepTimes,
    Texts,
    Work,
    interleaved,
    median,
    parser,
    run,
    scratch,
    task_rows,
    timed,
    toy_rows,
    toy_size,
    trainer_arguments,
)
from bench.published_objective import Curve, FreeMeter, Pair, batches_of
from outlay.hardware.precision import resolve
from outlay.models.loading import ModelSpec
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TargetKind, TaskSpec
from outlay.train.api import TrainContext, count_tokens, distil, finetune, teach
from outlay.train.targets.targets import SparseTargets

LIMIT = 1e-4
"""Of the relative difference of a step's loss."""
GOALS = {"speed": 10.0, "epoch": 1.10}
TEMPERATURE = 2.0
EPOCHS = 50
N_WARMUP = 2
"""Steps at the start of a run that are not timed."""
COMPLETE = TeachSettings(max_logits=0, keep_padding=True)
AS_SET = resolve("auto")
"""What a user of this machine computes in who asks for nothing."""
DISTIL = TrainSettings(epochs=1, batch_size=32, learning_rate=3e-4, temperature=TEMPERATURE, precision=AS_SET)
PUBLISHED = replace(DISTIL, objective="published", precision="fp32", warmup_fraction=0.0, weight_decay=0.0)
ON_LABELS = TrainSettings(epochs=1, batch_size=16, learning_rate=5e-4, precision=AS_SET)
LONG_ANSWER = 64


@dataclass(frozen=True, slots=True)
class World:
    """Checkpoint folders of teacher and student, equal in their tokenizer, and what they are asked."""

    teacher: Path
    student: Path
    form: TaskSpec
    texts: Texts

    def head(self, n_rows: int) -> World:
        """The first ``n_rows`` of the texts."""
        return replace(self, texts=self.texts[:n_rows])

    def spec(self, seed: int, target: TargetKind | None) -> ModelSpec:
        """The student."""
        return ModelSpec(str(self.student), str(self.student), self.form, seed, target)

    def teach(self, settings: TeachSettings, precision: str, target: TargetKind = "tokens") -> SparseTargets:
        """What the teacher says of the texts."""
        return teach(self.teacher, self.texts, target=target, settings=settings, precision=precision, meter=FreeMeter())


class BatchOrder(Sampler[int]):
    """Rows in the order of given batches, epoch by epoch."""

    def __init__(self, epochs: Sequence[Sequence[Sequence[int]]]) -> None:
        self._epochs = [[row for batch in epoch for row in batch] for epoch in epochs]
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._epochs[0])

    def __iter__(self) -> Iterator[int]:
        return iter(self._epochs[self._epoch])


class TeacherInTheLoop(Seq2SeqTrainer):
    """The published algorithm; see the module. `begin` gives it what a `Trainer` does not have."""

    def begin(self, teacher: nn.Module, form: TaskSpec, order: BatchOrder | None = None) -> None:
        self.teacher: Any = teacher.eval()
        self.max_target_tokens = form.max_target_tokens
        self.order = order
        self.answers: dict[str, list[int]] = {}
        self.losses: list[Tensor] = []
        self.divergence = nn.KLDivLoss(reduction="batchmean")

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            written = self._written(read)
            said = self.teacher(**read, decoder_input_ids=written).logits
        heard = model(**read, decoder_input_ids=written).logits
        vocab_size = said.shape[-1]
        loss = self.divergence(
            torch.log_softmax(heard.reshape(-1, vocab_size) / TEMPERATURE, dim=-1),
            torch.softmax(said.reshape(-1, vocab_size) / TEMPERATURE, dim=-1),
        )
        loss = loss * TEMPERATURE**2
        self.losses.append(loss.detach())
        return (loss, {"logits": heard}) if return_outputs else loss

    def _written(self, read: Mapping[str, Tensor]) -> Tensor:
        """The teacher's answers ``[rows, 1 + longest]``, the start token first; generated where one of the inputs is new."""
        tokenizer: Any = self.processing_class
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        keys = tokenizer.batch_decode(read["input_ids"], skip_special_tokens=True)
        if not all(key in self.answers for key in keys):
            generated = self.teacher.generate(**read, max_length=self.max_target_tokens, do_sample=False, num_beams=1)
            for key, ids in zip(keys, generated.tolist(), strict=True):
                self.answers[key] = ids[: ids.index(end) + 1] if end in ids else ids
        rows = [self.answers[key] for key in keys]
        width = max(len(ids) for ids in rows)
        padded = [ids + [pad] * (width - len(ids)) for ids in rows]
        return torch.tensor(padded, device=read["input_ids"].device)

    def _get_train_sampler(self, *args: Any) -> Any:
        return super()._get_train_sampler(*args) if self.order is None else self.order


def tokenised(world: World, tokenizer: Any) -> ListDataset:
    """The sources as the `Trainer` reads them."""
    read = tokenizer(
        [world.form.prefix + text[0] for text in world.texts],
        truncation=True,
        max_length=world.form.max_source_tokens,
        return_token_type_ids=False,
    )
    return ListDataset({name: read[name] for name in ("input_ids", "attention_mask")})


def reference(
    world: World, settings: TrainSettings, clock: Clock | None = None, order: BatchOrder | None = None
) -> tuple[list[float], float]:
    """Train with the teacher in the loop: the loss of every step, and the seconds of tokenising."""
    tokenizer = AutoTokenizer.from_pretrained(world.teacher)
    dataset, seconds = timed(lambda: tokenised(world, tokenizer))
    dropout = {} if settings.dropout is None else {"dropout_rate": settings.dropout}
    student = AutoModelForSeq2SeqLM.from_pretrained(world.student, **dropout)
    with scratch() as out:
        trainer = TeacherInTheLoop(
            model=student,
            args=trainer_arguments(settings, len(dataset), out, {}),
            train_dataset=dataset,
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )
        trainer.begin(AutoModelForSeq2SeqLM.from_pretrained(world.teacher).to(trainer.args.device), world.form, order)
        trainer.remove_callback(PrinterCallback)
        if clock is not None:
            trainer.add_callback(StepTimes(clock))
        trainer.train()
    return [float(loss) for loss in trainer.losses], seconds


# --- 1: the same curves -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Equality:
    """Losses per step of the reference and of `teach` + `distil`."""

    reference: list[float]
    outlay: list[float]

    @property
    def largest_difference(self) -> float:
        """Of a step's losses, relative to the reference's."""
        return max(abs(b - a) / abs(a) for a, b in zip(self.reference, self.outlay, strict=True))


def equality(world: World, epochs: int) -> Equality:
    """Both sides on outlay's batches; the rows of ``world`` fill whole batches."""
    settings = replace(PUBLISHED, epochs=epochs, dropout=0.0)
    targets = world.teach(COMPLETE, "fp32")
    curve = Curve()
    with scratch() as out:
        watch = TrainContext(FreeMeter(), tracker=curve)
        distil(world.spec(0, "tokens"), world.texts, targets, settings, dev=None, out=out, context=watch)
    pair = Pair(world.teacher, world.student, [text[0] for text in world.texts], world.form)
    batches = batches_of(pair, targets, settings)
    n = len(batches) // epochs
    order = BatchOrder([batches[at * n : (at + 1) * n] for at in range(epochs)])
    losses, _ = reference(world, settings, order=order)
    return Equality(losses, curve.losses)


# --- 2: fifty epochs over the pool --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one side, measured on some rows: ``prepare``, per row, once; ``first`` and ``later``, per step of an epoch."""

    prepare: float
    first: float
    later: float

    def total(self, n_rows: int, batch_size: int, epochs: int = EPOCHS) -> float:
        """Seconds of ``epochs`` over ``n_rows``."""
        n_steps = -(-n_rows // batch_size)
        return self.prepare * n_rows + n_steps * (self.first + (epochs - 1) * self.later)

    @classmethod
    def median(cls, runs: Sequence[Cost]) -> Cost:
        """Of each of the three."""
        return cls(*(median([getattr(each, name) for each in runs]) for name in ("prepare", "first", "later")))


def online_cost(world: World, turn: int) -> Cost:
    """Two epochs of the reference, as the published script sets it."""
    clock = Clock()
    settings = replace(PUBLISHED, epochs=2, seed=turn)
    _, seconds = reference(world, settings, clock)
    n_steps = -(-len(world.texts) // settings.batch_size)
    first, later = clock.per_step(N_WARMUP, n_steps), clock.per_step(n_steps)
    return Cost(seconds / len(world.texts), first, later)


def offline_cost(world: World, said: TeachSettings, settings: TrainSettings) -> Cost:
    """Tokenising, teacher pass and its bytes, then steps from them."""
    world.head(settings.batch_size).teach(said, settings.precision)
    (targets, _), teaching = timed(lambda: written_down(world, said, settings.precision))
    _, reading = timed(lambda: count_tokens(str(world.student), str(world.student), world.form, world.texts))
    clock = Clock()
    with scratch() as out:
        watch = TrainContext(FreeMeter(), on_progress=clock)
        distil(world.spec(settings.seed, "tokens"), world.texts, targets, settings, dev=None, out=out, context=watch)
    per_step = clock.per_step(N_WARMUP)
    return Cost((teaching + reading) / len(world.texts), per_step, per_step)


def written_down(world: World, said: TeachSettings, precision: str) -> tuple[SparseTargets, int]:
    """The teacher's targets, and how many bytes they are on disk."""
    targets = world.teach(said, precision)
    return targets, len(targets.to_bytes())


def speed(world: World, *, repeats: int, epochs: int) -> dict[str, Cost]:
    """Each contestant's median costs; ``epochs``: of each of outlay's trainings."""
    fast, full = replace(DISTIL, epochs=epochs), replace(PUBLISHED, epochs=epochs)
    contestants = {
        "teacher in the loop": lambda turn: online_cost(world, turn),
        "outlay, as it is set": lambda turn: offline_cost(world, TeachSettings(), replace(fast, seed=turn)),
        "outlay, fp32, whole vocabulary": lambda turn: offline_cost(world, COMPLETE, replace(full, seed=turn)),
    }
    return {name: Cost.median(runs) for name, runs in interleaved(contestants, repeats).items()}


# --- 3: an epoch from targets against an epoch on answers ---------------------------------------------------------------------


def epochs_of(world: World, target: TargetKind, *, repeats: int, epochs: int) -> dict[str, float]:
    """Seconds of an epoch from stored targets, and on the teacher's answers as labels; median of the runs.

    Rounds are interleaved; each trains ``epochs`` of them, of which the first steps are not timed.
    """
    targets = world.teach(TeachSettings(), DISTIL.precision, target)
    n_steps = -(-len(targets) // DISTIL.batch_size)

    def run_one(from_targets: bool, turn: int) -> float:
        clock, settings = Clock(), replace(DISTIL, epochs=epochs, seed=turn)
        watch, spec = TrainContext(FreeMeter(), on_progress=clock), world.spec(turn, target if from_targets else None)
        with scratch() as out:
            if from_targets:
                distil(spec, world.texts, targets, settings, dev=None, out=out, context=watch)
            else:
                finetune(spec, world.texts, targets.answers, settings, dev=None, out=out, context=watch)
        return n_steps * clock.per_step(N_WARMUP)

    contestants = {
        "answers": lambda turn: run_one(False, turn),
        "targets": lambda turn: run_one(True, turn),
    }
    seconds = {name: median(runs) for name, runs in interleaved(contestants, repeats).items()}
    n_units = float(targets.n_real.mean())
    return {**seconds, "ratio": seconds["targets"] / seconds["answers"], "positions_per_row": n_units}


# --- the worlds, and the tables -----------------------------------------------------------------------------------------------


def fever_world(given: argparse.Namespace, work: Work) -> World:
    """Claims: short answers, of two labels."""
    rows = toy_rows("claims") if given.toy else task_rows("fever", given.data)
    return world_of(rows, given, work)


def wlp_world(given: argparse.Namespace, work: Work) -> World:
    """Lines of lab protocols: long answers."""
    rows = toy_rows("spans") if given.toy else task_rows("wlp", given.data)
    rows = replace(rows, form=replace(rows.form, max_target_tokens=min(rows.form.max_target_tokens, LONG_ANSWER)))
    return world_of(rows, given, work, by_first_word=not given.toy)


def world_of(rows: Rows, given: argparse.Namespace, work: Work, *, by_first_word: bool = False) -> World:
    """A teacher that has seen a few labels (see `answered_by_first_word`), and a blank student."""
    teacher, student = (toy_size(size) if given.toy else size for size in (TEACHER, STUDENT))
    # The tokenizer is learnt from all texts.
    corpus = rows.corpus
    taught, settings = rows, ON_LABELS
    if given.toy:
        settings = replace(ON_LABELS, epochs=16, learning_rate=5e-3)
    elif by_first_word:
        taught, settings = answered_by_first_word(rows), replace(ON_LABELS, batch_size=8)
    n = 64 if given.toy else given.teacher_rows // (2 if by_first_word else 1)
    few = replace(taught, train=taught.train[:n], answers=taught.answers[:n])
    tuned = work.tuned(work.blank(teacher, corpus), few, settings)
    return World(tuned, work.blank(student, corpus, seed=1), rows.form, rows.pool)


def answered_by_first_word(rows: Rows, n_words: int = 32, n_lines: int = 5) -> Rows:
    """Training rows that begin with one of the ``n_words`` commonest words, each with the longest answer to the first
    ``n_lines`` of those that begin with the same.

    What a model of random weights learns of the task in a minute is to end its answers early. This it does learn, so that the
    speed of long answers of many lengths can be measured.
    """
    first = [text[0].split()[0] for text in rows.train]
    common = {word for word, _ in Counter(first).most_common(n_words)}
    seen: dict[str, list[str]] = {}
    for word, answer in zip(first, rows.answers, strict=True):
        if word in common and len(seen.setdefault(word, [])) < n_lines:
            seen[word].append(answer)
    longest = {word: max(answers, key=len) for word, answers in seen.items()}
    kept = [(text, longest[word]) for text, word in zip(rows.train, first, strict=True) if word in common]
    return replace(rows, train=[text for text, _ in kept], answers=[answer for _, answer in kept])


def encoder_world(given: argparse.Namespace, work: Work, fever: World) -> World:
    """The claims again, for a student that chooses a class."""
    rows = toy_rows("claims") if given.toy else task_rows("fever", given.data, segments=True)
    encoder = work.blank(toy_size(ENCODER) if given.toy else ENCODER, rows.corpus, seed=1)
    return replace(fever, student=encoder)


def measure(given: argparse.Namespace, work: Work) -> Report:
    """All three comparisons."""
    batch = DISTIL.batch_size
    n_pool = len((fever := fever_world(given, work)).texts)
    n_equal, n_speed, n_epoch = (64, 96, 96) if given.toy else (10 * batch, given.rows, given.rows)
    curves = equality(fever.head(n_equal), epochs=3 if given.toy else 10)
    costs = speed(fever.head(n_speed), repeats=given.repeats, epochs=2 if given.toy else 3)
    cases: list[tuple[str, World, TargetKind]] = [
        ("T5, short answers (fever)", fever, "tokens"),
        ("T5, long answers (wlp)", wlp_world(given, work), "tokens"),
        ("encoder, classes (fever)", encoder_world(given, work, fever), "classes"),
    ]
    epochs = {
        # Little is compared here, so more often.
        name: epochs_of(world.head(n_epoch), target, repeats=given.repeats + (0 if given.toy else 2), epochs=2)
        for name, world, target in cases
    }
    return report(curves, costs, epochs, n_pool, n_speed)


Rendered = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def report(
    curves: Equality, costs: Mapping[str, Cost], epochs: Mapping[str, Mapping[str, float]], n_pool: int, n_measured: int
) -> Report:
    """The tables and the figures behind them; ``costs``: the reference's first."""
    batch = DISTIL.batch_size
    totals = {name: cost.total(n_pool, batch) for name, cost in costs.items()}
    slowest = next(iter(totals.values()))
    contestants = {
        name: {
            "prepare_seconds_per_row": cost.prepare,
            "first_seconds_per_step": cost.first,
            "later_seconds_per_step": cost.later,
            "total_seconds": totals[name],
            "ratio": slowest / totals[name],
        }
        for name, cost in costs.items()
    }
    rows = {"pool_rows": n_pool, "epochs": EPOCHS, "batch_size": batch, "measured_rows": n_measured}
    largest = curves.largest_difference
    figures = {
        "equality": {"steps": len(curves.outlay), "largest_difference": largest, "limit": LIMIT},
        "speed": {**rows, "contestants": contestants},
        "epoch": {name: dict(each) for name, each in epochs.items()},
        "goals": GOALS,
    }
    failures = [] if largest <= LIMIT else [f"a step's loss differs by {largest:.1e} of itself, more than {LIMIT:.0e}"]
    tables = [_curves_table(curves), _speed_table(contestants, n_pool, n_measured), _epoch_table(epochs)]
    return Report(tables, figures, failures)


def _curves_table(curves: Equality) -> Rendered:
    header = ("", "first", "last", "largest relative difference")
    rows = [
        ("teacher in the loop", f"{curves.reference[0]:.6f}", f"{curves.reference[-1]:.6f}", ""),
        (
            "outlay",
            f"{curves.outlay[0]:.6f}",
            f"{curves.outlay[-1]:.6f}",
            f"{curves.largest_difference:.1e} (limit {LIMIT:.0e})",
        ),
    ]
    return f"1. Loss of {len(curves.outlay)} steps, fp32, whole vocabulary", header, rows


def _speed_table(contestants: Mapping[str, Mapping[str, float]], n_pool: int, n_measured: int) -> Rendered:
    title = (
        f"2. {EPOCHS} epochs over {n_pool:,} claims, from {-(-n_measured // DISTIL.batch_size)} measured steps an epoch; "
        f"goal {GOALS['speed']:g}x"
    )
    header = ("", "once, ms per row", "step of epoch 1, ms", "step of epoch 2 on, ms", "total, s", "ratio")
    rows = [
        (
            name,
            f"{1000 * each['prepare_seconds_per_row']:.2f}",
            f"{1000 * each['first_seconds_per_step']:.1f}",
            f"{1000 * each['later_seconds_per_step']:.1f}",
            f"{each['total_seconds']:,.0f}",
            f"{each['ratio']:.1f}x",
        )
        for name, each in contestants.items()
    ]
    return title, header, rows


def _epoch_table(epochs: Mapping[str, Mapping[str, float]]) -> Rendered:
    header = ("", "positions per row", "on answers, s", "from targets, s", "ratio")
    rows = [
        (
            name,
            f"{each['positions_per_row']:.1f}",
            f"{each['answers']:.2f}",
            f"{each['targets']:.2f}",
            f"{each['ratio']:.3f}",
        )
        for name, each in epochs.items()
    ]
    return f"3. An epoch from stored targets against one on the same answers; goal {GOALS['epoch']:.2f}", header, rows


def main() -> int:
    options = parser(__doc__, repeats=3)
    options.add_argument("--rows", type=int, default=640, help="pool rows that steps are measured on")
    options.add_argument("--teacher-rows", type=int, default=1600, help="labelled rows the teachers are fine-tuned on")
    return run(options.parse_args(), measure)


if __name__ == "__main__":
    sys.exit(main())
