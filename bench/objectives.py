"""What the published objective, and a sparse tail, change on real data: one teacher, four students, several seeds.

    OUTLAY_DATA=DATA python bench/objectives.py [--seeds 3] [--out DIR] [--threads 2]

Sentiment of film reviews' phrases (SST-2, Socher et al. 2013), written out by T5-shaped models that begin from random weights, so
that no T5 checkpoint is needed. The teacher (t5-tiny) learns from 6,000 labelled phrases; students (t5-micro) learn from the same
labels, or from the teacher's targets over these and 8,000 other phrases. Scored on 12,000 more, so that a third of a point can be
seen. Finished steps in DIR are taken over, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from outlay.models.loading import ModelSpec
from outlay.models.random_init import Corpus, build_checkpoint
from outlay.models.sizes import load_sizes
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TaskSpec
from outlay.tasks.example import seeded_order
from outlay.train.api import DevTexts, TrainContext, distil, finetune, predict, teach, use_threads
from outlay.train.targets.targets import SparseTargets

VOCAB_SIZE = 1024
"""Small, so that targets over the whole vocabulary with their padding fit into memory (K = 64 keeps a sixteenth)."""
MAX_TARGET_TOKENS = 10
N_LABELLED, N_OTHER, N_UNSEEN = 6000, 8000, 12000
ON_LABELS = TrainSettings(epochs=12, batch_size=32, learning_rate=1e-3, dropout=0.1, precision="fp32")
ON_TARGETS = TrainSettings(epochs=8, batch_size=32, learning_rate=1e-3, dropout=0.0, precision="fp32", temperature=2.0)
STUDENTS = {
    "masked, K = 64": ({}, {}),
    "masked, whole vocabulary": ({}, {"max_logits": 0}),
    "published, whole vocabulary": ({"objective": "published"}, {"max_logits": 0, "keep_padding": True}),
}


class Free:
    """A meter that lets everything pass."""

    def may_train(self, n_tokens: int) -> bool:
        return True

    def trained(self, n_tokens: int) -> None:
        pass

    def inferred(self, n_tokens: int) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]


class Bench:
    """The data, and a folder of finished steps."""

    def __init__(self, data: Path, out: Path) -> None:
        self.out = out
        distinct = {row["source"]: row for row in read(data / "sst2" / "train.jsonl.gz")}
        texts = list(distinct)
        rows = [distinct[texts[i]] for i in seeded_order(texts, 0)]
        n_pool = N_LABELLED + N_OTHER
        self.train, self.unseen = rows[:N_LABELLED], rows[n_pool : n_pool + N_UNSEEN]
        self.pool = [row["source"] for row in rows[:n_pool]]
        self.form = TaskSpec("classification", ("negative", "positive"), 40, MAX_TARGET_TOKENS, "mood: ")
        corpus = Corpus([self.form.prefix + text for text in self.pool])
        sizes = load_sizes()
        for name in ("t5-tiny", "t5-micro"):
            if not (out / name).exists():
                build_checkpoint(replace(sizes[name], vocab_size=VOCAB_SIZE), corpus, out / name)

    def dev(self) -> DevTexts:
        golds = [row["target"] for row in self.unseen]
        return DevTexts(
            [(r["source"],) for r in self.unseen], lambda said: 100 * sum(map(str.__eq__, said, golds)) / len(golds)
        )

    def scored(self, name: str, make: Any) -> tuple[float, float]:
        """Accuracy on the unseen phrases after the last epoch, and seconds; made once."""
        folder, note = self.out / name, self.out / f"{name}.json"
        if not note.exists():
            began = time.monotonic()
            make(folder)
            seconds = time.monotonic() - began
            said = predict(folder, self.dev().sources, precision="fp32", meter=Free())
            note.write_text(json.dumps([self.dev().score(said), seconds]))
        score, seconds = json.loads(note.read_text())
        return score, seconds

    def spec(self, name: str, seed: int, target: Any = None) -> ModelSpec:
        base = str(self.out / name)
        return ModelSpec(base, base, self.form, seed, target)

    def on_labels(self, name: str, seed: int, folder: Path) -> None:
        sources, answers = [(r["source"],) for r in self.train], [r["target"] for r in self.train]
        finetune(
            self.spec(name, seed),
            sources,
            answers,
            replace(ON_LABELS, seed=seed),
            dev=None,
            out=folder,
            context=TrainContext(Free()),
        )

    def on_targets(self, targets: SparseTargets | None, settings: TrainSettings, folder: Path) -> None:
        assert targets is not None
        sources = [(text,) for text in self.pool]
        student = self.spec("t5-micro", settings.seed, "tokens")
        distil(student, sources, targets, settings, dev=None, out=folder, context=TrainContext(Free()))

    def targets(self, teacher: Path, settings: TeachSettings) -> SparseTargets:
        sources = [(text,) for text in self.pool]
        return teach(teacher, sources, target="tokens", settings=settings, precision="fp32", meter=Free())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench-objectives"))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if "OUTLAY_DATA" not in os.environ:
        print("OUTLAY_DATA names no folder of the public data sets")
        return 2
    use_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(Path(os.environ["OUTLAY_DATA"]), given.out)
    rows: dict[str, list[tuple[float, float]]] = {}
    teacher, seconds = bench.scored("teacher", lambda folder: bench.on_labels("t5-tiny", 0, folder))
    print(f"teacher: {teacher:.1f} in {seconds:.0f} s", flush=True)
    for seed in range(given.seeds):
        name = f"labels-{seed}"
        made = bench.scored(name, lambda folder, seed=seed: bench.on_labels("t5-micro", seed, folder))
        rows.setdefault("on the labels alone", []).append(made)
        print(f"seed {seed}, on the labels alone: {made[0]:.2f}", flush=True)
    for what, (train, said) in STUDENTS.items():
        targets: SparseTargets | None = None
        for seed in range(given.seeds):
            name = f"{what.replace(' ', '').replace(',', '-').replace('=', '')}-{seed}"
            if targets is None and not (given.out / f"{name}.json").exists():
                targets = bench.targets(given.out / "teacher", TeachSettings(**said))
                n_bytes = len(targets.to_bytes())
                print(f"{what}: {n_bytes / len(targets):,.0f} bytes of targets per row", flush=True)

            made = bench.scored(name, partial(bench.on_targets, targets, replace(ON_TARGETS, seed=seed, **train)))
            rows.setdefault(what, []).append(made)
            print(f"seed {seed}, {what}: {made[0]:.2f} in {made[1]:.0f} s", flush=True)
    print(f"\n{'student':30} {'accuracy':>9} {'by seed':>24} {'seconds':>8}")
    for what, made_all in rows.items():
        scores = [score for score, _ in made_all]
        by_seed = " ".join(f"{score:.2f}" for score in scores)
        print(f"{what:30} {statistics.mean(scores):9.2f} {by_seed:>24} {statistics.mean(s for _, s in made_all):8.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
