"""The two tasks of `bench/sparse_targets.py`: their rows, models and teachers, and what a teacher says with all its logits."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.published_objective import FreeMeter
from outlay.metrics import main_score, score
from outlay.models.heads import logits_of
from outlay.models.loading import ModelSpec, load_saved
from outlay.models.random_init import Corpus, build_checkpoint
from outlay.models.sizes import find_size
from outlay.models.tokenization import AnswerIds
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TaskSpec
from outlay.tasks.example import seeded_order
from outlay.tasks.task import load_task
from outlay.train.api import TrainContext, distil, finetune, predict
from outlay.train.batching import inference_batches
from outlay.train.targets.sparse_logits import SparsityRule
from outlay.train.targets.targets import SparseTargets
from outlay.train.targets.top_logits import largest, to_positions

VOCAB_SIZE = 1024
"""Small, so that whole distributions over a pool fit into memory."""
TEACHER = "t5-tiny"
STUDENT = "tiny:1x64"
"""One layer in each stack; its seed draws the weights as well as the order of the rows."""
ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """A task, how many of its rows serve what, and how teacher and students learn.

    The labelled rows and the pool begin with the same ones; ``n_compared``: unseen rows on which students are held against the
    teacher, and rows of the pool on which parts are held against the whole.
    """

    name: str
    metric: str
    n_labelled: int
    n_pool: int
    n_unseen: int
    n_compared: int
    max_source_tokens: int
    max_target_tokens: int
    teacher: TrainSettings
    student: TrainSettings


_TEACHER = TrainSettings(epochs=10, batch_size=32, learning_rate=1e-3, dropout=0.1, precision="fp32")
_STUDENT = TrainSettings(epochs=5, batch_size=32, learning_rate=1e-3, dropout=0.0, precision="fp32")

SST2 = Plan(
    "sst2",
    "accuracy",
    n_labelled=6000,
    n_pool=8000,
    n_unseen=5000,
    n_compared=600,
    max_source_tokens=40,
    max_target_tokens=10,
    teacher=_TEACHER,
    student=_STUDENT,
)
WLP = Plan(
    "wlp",
    "entity_f1",
    n_labelled=6000,
    n_pool=2500,
    n_unseen=500,
    n_compared=150,
    max_source_tokens=48,
    max_target_tokens=64,
    teacher=replace(_TEACHER, epochs=6, learning_rate=2e-3),
    student=replace(_STUDENT, learning_rate=2e-3),
)
PLANS = (SST2, WLP)


@dataclass(frozen=True, slots=True)
class Words:
    """What a teacher said over some rows: ``units`` of each row, and the logits ``[positions, V]`` behind them, float32."""

    units: list[NDArray[np.int32]]
    logits: NDArray[np.float32]
    answers: tuple[str, ...]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """``[rows + 1]``, row ``i`` owns positions ``offsets[i]:offsets[i + 1]``."""
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum([len(row) for row in self.units])])

    def save(self, path: Path) -> None:
        """All at once or not at all."""
        half = path.with_suffix(".tmp.npz")
        flat = np.concatenate(self.units)
        np.savez(half, flat=flat, offsets=self.offsets, logits=self.logits, answers=np.array(json.dumps(self.answers)))
        half.replace(path)

    @classmethod
    def load(cls, path: Path) -> Words:
        """What `save` wrote."""
        with np.load(path) as file:
            units = np.split(file["flat"], file["offsets"][1:-1])
            return cls(units, file["logits"], tuple(json.loads(str(file["answers"]))))

    def first(self, n: int) -> Words:
        """Of the first rows alone."""
        return Words(self.units[:n], self.logits[: self.offsets[n]], self.answers[:n])

    def targets(self, tail_mass: float, max_logits: int) -> SparseTargets:
        """The part of them that a student is to learn from."""
        logits = torch.from_numpy(self.logits)
        flat = np.concatenate(self.units)
        rule = SparsityRule.of("tokens", logits.shape[-1], max_logits, tail_mass)
        kept = replace(to_positions([largest(logits, rule)], rule), units=flat)
        return SparseTargets.from_positions(rule, kept, np.diff(self.offsets), self.answers)


def spoken(folder: Path, texts: Sequence[tuple[str, ...]], units: Sequence[NDArray[np.int32]] | None = None) -> Words:
    """What the model in ``folder`` says to ``texts`` with all its logits; or, given ``units``, its logits behind those."""
    model, head, _ = load_saved(folder)
    model.eval()
    read = head.tokenize(texts)
    said: dict[int, NDArray[np.int32]] = {}
    logits: dict[int, NDArray[np.float32]] = {}
    with torch.no_grad():
        for rows in inference_batches(read.encoded.lengths, ROWS_AT_ONCE):
            spoken_now = (
                head.generate(model, read, rows, TeachSettings()).units
                if units is None
                else [units[int(row)] for row in rows]
            )
            padded, _ = AnswerIds.of(spoken_now).batch(range(len(rows)), pad=head.pad_unit)
            out = logits_of(head, model, read, rows, padded).float().numpy()
            for at, row in enumerate(rows):
                said[int(row)] = spoken_now[at]
                logits[int(row)] = out[at, : len(spoken_now[at])].copy()
    order = range(len(read))
    in_order = [said[row] for row in order]
    answers = head.decode(read, np.arange(len(read)), in_order)
    return Words(in_order, np.concatenate([logits[row] for row in order]), tuple(answers))


class Bench:
    """One task's rows, and a folder of finished steps."""

    def __init__(self, plan: Plan, data: Path, work: Path) -> None:
        self.plan, self.work = plan, work / plan.name
        distinct = {row["source"]: row for row in _read(data / plan.name / "train.jsonl.gz")}
        texts = list(distinct)
        rows = [distinct[texts[i]] for i in seeded_order(texts, 0)]
        n_seen = max(plan.n_labelled, plan.n_pool)
        self.labelled, self.pool = rows[: plan.n_labelled], rows[: plan.n_pool]
        self.unseen = rows[n_seen : n_seen + plan.n_unseen]
        task = load_task("wlp") if plan.name == "wlp" else None
        self.labels = ("negative", "positive") if task is None else tuple(task.labels)
        kind = "classification" if task is None else "entities"
        limits = (plan.max_source_tokens, plan.max_target_tokens)
        self.form = TaskSpec(kind, self.labels, *limits, "mood: " if task is None else "wlp: ")

    def prepare(self) -> None:
        """Checkpoints, teacher, its words over pool and unseen rows, and a student that is half done."""
        self.work.mkdir(parents=True, exist_ok=True)
        texts = [self.form.prefix + row["source"] for row in self.pool]
        corpus = Corpus([*texts, *(row["target"] for row in self.labelled)])
        base = self.work / TEACHER
        if not base.exists():
            build_checkpoint(replace(find_size(TEACHER), vocab_size=VOCAB_SIZE), corpus, base)
        teacher = self.work / "teacher"
        note = self.work / "teacher.json"
        if not note.exists():
            golds = [row["target"] for row in self.labelled]
            spec = self._spec(str(base), 0)
            finetune(
                spec,
                _texts(self.labelled),
                golds,
                self.plan.teacher,
                dev=None,
                out=teacher,
                context=TrainContext(FreeMeter()),
            )
            note.write_text(json.dumps(self.score(teacher)))
        for name, rows in (("pool", self.pool), ("unseen", self.unseen[: self.plan.n_compared])):
            if not (self.work / f"{name}.npz").exists():
                spoken(teacher, _texts(rows)).save(self.work / f"{name}.npz")
        if not (self.work / "half.json").exists():
            settings = replace(self.plan.student, epochs=max(1, self.plan.student.epochs // 2))
            self.student(self.words("pool").targets(0.0, 0), settings, self.work / "half")
            (self.work / "half.json").write_text("{}")

    def words(self, name: str) -> Words:
        """The teacher's over the ``pool`` or the ``unseen`` rows."""
        return Words.load(self.work / f"{name}.npz")

    def student(self, targets: SparseTargets, settings: TrainSettings, out: Path) -> None:
        """A student of these targets over the pool."""
        spec = replace(self._spec(STUDENT, settings.seed), target="tokens")
        distil(spec, _texts(self.pool), targets, settings, dev=None, out=out, context=TrainContext(FreeMeter()))

    def score(self, folder: Path) -> float:
        """Points of a model on the unseen rows."""
        said = predict(folder, _texts(self.unseen), precision="fp32", meter=FreeMeter())
        golds = [row["target"] for row in self.unseen]
        readings = score(self.plan.metric, said, golds, self.labels)
        return readings[main_score(self.plan.metric)].value

    def beside(self, folder: Path, name: str, n_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the teacher and of a student behind the teacher's words, on the first rows of ``pool`` or ``unseen``."""
        words = self.words(name)
        rows = (self.pool if name == "pool" else self.unseen)[:n_rows]
        theirs = spoken(folder, _texts(rows), words.units[:n_rows]).logits
        return torch.from_numpy(words.logits[: len(theirs)]), torch.from_numpy(theirs)

    def _spec(self, ref: str, seed: int) -> ModelSpec:
        return ModelSpec(ref, str(self.work / TEACHER), self.form, seed)


def _texts(rows: Sequence[dict[str, str]]) -> list[tuple[str, ...]]:
    return [(row["source"],) for row in rows]


def _read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
