"""The teacher pass: `teach` against plain `generate` over rows as they come.

    python -m bench.targets [--data DATA] [--work DIR] [--threads 2] [--repeats 3] [--rows 512] [--json FILE] | --toy

A T5 v1.1 shape of 8 + 8 layers (52M parameters) that has seen enough labels to answer in the form of its task: claims of FEVER
(labels, two tokens) and lines of WLP (entities, up to 64 tokens; what it was taught of them says
`bench.distill_vs_online.answered_by_first_word`). Contestants read the same rows, greedily:

* `generate`, float32, batch 32, in the order of the pool, as published; and with the forward pass over the answers that the
  published loop takes its logits from: a student needs them.
* `generate` in bf16 (autocast), and with that forward pass.
* `teach` as it is set, whose targets hold answers and logits; and in float32, which tells what precision is worth.

Tokenising counts on every side, loading the model on none. Equal answers are those equal to plain float32 `generate`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Report, Work, interleaved, median, parser, run, timed
from bench.distill_vs_online import World, fever_world, wlp_world
from outlay.hardware.precision import resolve
from outlay.settings import TeachSettings
from outlay.train.targets.targets import SparseTargets

GOAL = 3.0
BATCH_SIZE = 32
PLAIN = "generate, fp32"
OURS = "outlay, as it is set"


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the rows: its seconds, what was answered, and the targets where there are any."""

    seconds: float
    answers: Sequence[str]
    targets: SparseTargets | None = None


@dataclass(frozen=True, slots=True)
class Generator:
    """Plain transformers: rows in the order of the pool, padded to the longest of their batch."""

    world: World
    model: Any
    tokenizer: Any

    @classmethod
    def of(cls, world: World) -> Generator:
        """The teacher of a world, loaded."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForSeq2SeqLM.from_pretrained(world.teacher).eval().to(device)
        return cls(world, model, AutoTokenizer.from_pretrained(world.teacher))

    def answer(self, *, bf16: bool, with_logits: bool) -> Pass:
        """The answers to all rows; ``with_logits``: and one forward pass over them, whose logits are let go."""
        answers, seconds = timed(lambda: self._answers(bf16, with_logits))
        return Pass(seconds, answers)

    def _answers(self, bf16: bool, with_logits: bool) -> list[str]:
        form, texts = self.world.form, self.world.texts
        answers: list[str] = []
        for start in range(0, len(texts), BATCH_SIZE):
            batch = self.tokenizer(
                [form.prefix + text[0] for text in texts[start : start + BATCH_SIZE]],
                padding=True,
                truncation=True,
                max_length=form.max_source_tokens,
                return_token_type_ids=False,
                return_tensors="pt",
            ).to(self.model.device)
            with torch.no_grad(), torch.autocast(self.model.device.type, torch.bfloat16, enabled=bf16):
                written = self.model.generate(
                    **batch, max_new_tokens=form.max_target_tokens, do_sample=False, num_beams=1
                )
                if with_logits:
                    self.model(**batch, decoder_input_ids=written)
            answers += [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]
        return answers


def teacher_pass(world: World, precision: str) -> Pass:
    """Targets of all rows as one block."""
    targets, seconds = timed(lambda: world.teach(TeachSettings(), precision))
    return Pass(seconds, targets.answers, targets)


def race(world: World, repeats: int) -> dict[str, list[Pass]]:
    """The passes of every contestant, interleaved."""
    plain = Generator.of(world)
    contestants: dict[str, Callable[[int], Pass]] = {
        PLAIN: lambda _turn: plain.answer(bf16=False, with_logits=False),
        "generate and logits, fp32": lambda _turn: plain.answer(bf16=False, with_logits=True),
        "generate, bf16": lambda _turn: plain.answer(bf16=True, with_logits=False),
        "generate and logits, bf16": lambda _turn: plain.answer(bf16=True, with_logits=True),
        OURS: lambda _turn: teacher_pass(world, resolve("auto")),
        "outlay, fp32": lambda _turn: teacher_pass(world, "fp32"),
    }
    # A first batch, not timed: memory is asked for, and `teach` loads its model.
    few = world.head(BATCH_SIZE)
    teacher_pass(few, resolve("auto"))
    Generator(few, plain.model, plain.tokenizer).answer(bf16=False, with_logits=True)
    return interleaved(contestants, repeats)


def size_of(targets: SparseTargets) -> dict[str, float]:
    """Bytes per token of an answer, and what `SparseTargets.statistics` tells of what was kept."""
    n_bytes, n_positions = len(targets.to_bytes()), int(targets.n_real.sum())
    figures = {
        "bytes": float(n_bytes),
        "positions": float(n_positions),
        "bytes_per_token": n_bytes / max(1, n_positions),
    }
    statistics = getattr(targets, "statistics", None)
    return figures if statistics is None else {**figures, **asdict(statistics())}


def shares(results: Mapping[str, Sequence[Pass]]) -> dict[str, float]:
    """Share of rows that each contestant answers as plain float32 `generate` does."""
    plain = results[PLAIN][0].answers
    return {
        name: sum(a == b for a, b in zip(plain, runs[0].answers, strict=True)) / len(plain)
        for name, runs in results.items()
    }


def measure(given: argparse.Namespace, work: Work) -> Report:
    """Both tasks."""
    n_rows = 64 if given.toy else given.rows
    worlds = {
        "labels (fever)": fever_world(given, work).head(n_rows),
        "long answers (wlp)": wlp_world(given, work).head(n_rows if given.toy else max(1, n_rows // 2)),
    }
    return report({name: (len(world.texts), race(world, given.repeats)) for name, world in worlds.items()})


def report(races: Mapping[str, tuple[int, Mapping[str, Sequence[Pass]]]]) -> Report:
    """A table per task, one of the targets' size, and the figures behind them."""
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = []
    sizes: dict[str, dict[str, float]] = {}
    figures: dict[str, Any] = {}
    for task, (n_rows, results) in races.items():
        seconds = {name: median([each.seconds for each in runs]) for name, runs in results.items()}
        equal = shares(results)
        ratios = {name: seconds[name] / seconds[OURS] for name in results}
        header = ("", "rows/s", "s", "outlay is faster by", "equal answers")
        rows = [
            (name, f"{n_rows / s:.1f}", f"{s:.2f}", f"{ratios[name]:.2f}x", f"{100 * equal[name]:.1f} %")
            for name, s in seconds.items()
        ]
        tables.append((f"{task}: {n_rows:,} rows; goal {GOAL:g}x {PLAIN}", header, rows))
        targets = results[OURS][0].targets
        assert targets is not None
        sizes[task] = size_of(targets)
        figures[task] = {
            "rows": n_rows,
            "contestants": {
                name: {
                    "seconds": seconds[name],
                    "rows_per_second": n_rows / seconds[name],
                    "ratio": ratios[name],
                    "equal_answers": equal[name],
                }
                for name in results
            },
            "targets": sizes[task],
        }
    tables.append(_size_table(sizes))
    return Report(tables, {"tasks": figures, "goal": GOAL})


def _size_table(sizes: Mapping[str, Mapping[str, float]]) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    names = list(dict.fromkeys(name for each in sizes.values() for name in each))
    rows = [(task, *(f"{each[name]:,.6g}" if name in each else "" for name in names)) for task, each in sizes.items()]
    return "what was written down", ("", *(name.replace("_", " ") for name in names)), rows


def main() -> int:
    options = parser(__doc__, repeats=3)
    options.add_argument("--rows", type=int, default=512, help="pool rows; of the long answers half as many")
    options.add_argument("--teacher-rows", type=int, default=1600, help="labelled rows the teachers are fine-tuned on")
    return run(options.parse_args(), measure)


if __name__ == "__main__":
    sys.exit(main())
