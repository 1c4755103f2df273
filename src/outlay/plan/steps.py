"""Recipes and their steps, as pure data. Steps know their inputs, so a recipe is a graph; equal steps are one step.

A step's *key* hashes its request: its kind and version, its own parameters, the keys of its inputs and the threads it
runs on. Two recipes that share a teacher share its key, and so its artifact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from outlay.models.pooling import Pooling
from outlay.settings import TeachSettings, TrainSettings, peft_methods
from outlay.spec import Reading, TargetKind, TaskSpec
from outlay.storage.store import key_of

HUMAN = "human"
"""Name of the seller who labels the rows of a strategy that names no other, and dev and test rows where the task does not."""

LLM = "llm"
"""Name of the large language model whose labels the published strategies buy."""

OF_TRAIN = ("carved", "folds")
"""Sources of dev labels that take them from the labels of the training."""

OWNED = "owned"
"""Name of the seller of labels that one owns already: nothing is paid for them, and they come first."""

_SELLER_WORDS = {LLM: "LLM", OWNED: "owned train"}
"""Words for a seller before the word labels, for names that are not written as they are."""

LABELS_FILE = "labels.jsonl"
ANSWERS_FILE = "answers.jsonl"
BILL_FILE = "bill.jsonl"
TARGETS_FILE = "targets.safetensors"
PREDICTIONS_FILE = "predictions.json"
SCORES_FILE = "scores.json"
TRAINING_FILE = "training.json"


@dataclass(frozen=True)
class Step:
    """One distinct piece of work. Abstract: see `Buy`, `Train`, `Teach`, `Distil`, `Score`."""

    kind: ClassVar[str]
    version: ClassVar[int]

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Steps whose artifacts this one reads."""
        return ()

    def parameters(self) -> dict[str, Any]:
        """Return the parameters beside the inputs, as JSON values."""
        raise NotImplementedError

    def request(self) -> dict[str, Any]:
        """Return the request of the step: everything that the key hashes."""
        return {
            "step": self.kind,
            "version": self.version,
            "parameters": self.parameters(),
            "inputs": [step.key for step in self.inputs],
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of `request` in hex."""
        return key_of(self.request())


@dataclass(frozen=True)
class Buy(Step):
    """The labels of ``n`` rows of a split's seeded order, from row ``start`` on, from one seller.

    ``series`` identifies seller, split and order, without the rows, so that a longer purchase of the same series, or
    one that starts elsewhere, pays only for rows that were not bought before.
    """

    kind: ClassVar[str] = "buy"
    version: ClassVar[int] = 1

    split: str
    n: int
    order_seed: int
    rows_digest: str
    identity: str
    """Canonical JSON of the seller's identity."""
    start: int = 0
    seller: str = HUMAN
    """Name of the seller. Not in the key, which has the identity."""
    examples: tuple[Buy, ...] = ()
    """Purchases whose labels the seller is shown."""

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Purchases whose labels the seller is shown."""
        return self.examples

    @property
    def stop(self) -> int:
        """One past the last row, in the seeded order."""
        return self.start + self.n

    def overlaps(self, other: Buy) -> bool:
        """Return whether a row's label belongs to both purchases."""
        return self.series == other.series and self.start < other.stop and other.start < self.stop

    @cached_property
    def series(self) -> str:
        """Key of the purchase without its size."""
        shown = {"inputs": [step.key for step in self.examples]} if self.examples else {}
        return key_of({"step": self.kind, "version": self.version, "parameters": self._series_parameters(), **shown})

    def parameters(self) -> dict[str, Any]:
        """Return the parameters beside the inputs."""
        start = {"start": self.start} if self.start else {}
        return {**self._series_parameters(), "n": self.n, **start}

    def _series_parameters(self) -> dict[str, Any]:
        return {"split": self.split, "order_seed": self.order_seed, "rows": self.rows_digest, "seller": self.identity}


@dataclass(frozen=True)
class Dev:
    """Source of the dev labels: ``given`` (free), ``bought`` (``labels`` are of the dev split), or ``carved`` or ``folds`` (the
    first ``n`` of ``labels``, which are the training's own)."""

    how: str
    n: int
    rows_digest: str = ""
    labels: Buy | None = None

    @property
    def is_of_train(self) -> bool:
        """True where the dev rows are train rows that are not trained on."""
        return self.how in OF_TRAIN

    def parameters(self) -> dict[str, Any]:
        """Return plain values for a key."""
        return {"how": self.how, "n": self.n, "rows": self.rows_digest}


@dataclass(frozen=True)
class Model:
    """A model to start from: its reference, its base, and the fingerprint of the checkpoint's bytes."""

    ref: str
    base: str
    fingerprint: str

    def parameters(self) -> dict[str, Any]:
        """Return plain values for a key; a checkpoint is identified by its bytes, wherever it lies."""
        form = self.ref if self.ref.startswith(("cut:", "tiny:")) else "whole"
        return {"form": form, "checkpoint": self.fingerprint}


@dataclass(frozen=True)
class Judge:
    """The encoder that a metric compares texts with (BERTScore): its reference, its options and its checkpoint's fingerprint.

    ``layer``: the hidden state that is compared, ``None`` = the last; ``idf``: rare tokens weigh more.
    """

    ref: str
    layer: int | None
    idf: bool
    fingerprint: str

    def parameters(self) -> dict[str, Any]:
        """Return plain values for a key."""
        return {"checkpoint": self.fingerprint, "layer": self.layer, "idf": self.idf}


@dataclass(frozen=True)
class Encoding:
    """Encoding of a task for a model: the segments of an encoder, the form of question and answer, and the metric."""

    segments: tuple[str, ...]
    form: TaskSpec
    metric: str
    judge: Judge | None = None

    def parameters(self) -> dict[str, Any]:
        """Return plain values for a key."""
        return {
            "segments": list(self.segments),
            "form": self.form.to_json(),
            "metric": self.metric,
            "judge": None if self.judge is None else self.judge.parameters(),
        }


@dataclass(frozen=True, kw_only=True)
class Training(Step):
    """A step that trains ``model``. Abstract: see `Train` and `Distil`."""

    version: ClassVar[int] = 3

    model: Model
    dev: Dev | None
    encoding: Encoding
    settings: TrainSettings
    threads: int
    pooling: Pooling | None = None
    """Pooling of a method whose head reads pooled vectors."""
    reading: Reading = "whole"
    """How the model reads a row; settings and segments decide it."""

    def parameters(self) -> dict[str, Any]:
        """Return the parameters beside the inputs."""
        pooled = {} if self.pooling is None else {"pooling": self.pooling.to_json(), "reading": self.reading}
        return {
            **pooled,
            "model": self.model.parameters(),
            "dev": None if self.dev is None else self.dev.parameters(),
            "encoding": self.encoding.parameters(),
            "settings": self.settings.to_json(),
            "threads": self.threads,
        }

    @property
    def _dev_inputs(self) -> tuple[Step, ...]:
        return () if self.dev is None or self.dev.labels is None else (self.dev.labels,)


@dataclass(frozen=True, kw_only=True)
class Train(Training):
    """Fine-tuning of ``model`` on bought labels with cross-entropy. ``free``: not charged (Kang et al. 2023, §2.2).

    ``labels``: one or more purchases of train rows, trained on as one set in this order; dev rows are carved out of the first.
    """

    kind: ClassVar[str] = "train"

    role: str
    """``teacher`` or ``student``, for display; not part of the key."""
    labels: tuple[Buy, ...]
    free: bool = False
    learns_probabilities: bool = False
    """Learn the distributions over the classes that came with the labels, as a student learns a teacher's; a label without one
    counts as certain."""

    def parameters(self) -> dict[str, Any]:
        """Return the parameters beside the inputs."""
        return super().parameters() | ({"learns": "probabilities"} if self.learns_probabilities else {})

    @property
    def n_labels(self) -> int:
        """Number of labels of every purchase, those carved out for dev included."""
        return sum(buy.n for buy in self.labels)

    def n_labels_of(self, seller: str) -> int:
        """Return the number of labels from one seller."""
        return sum(buy.n for buy in self.labels if buy.seller == seller)

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Steps whose artifacts this step reads."""
        return (*self.labels, *self._dev_inputs)


@dataclass(frozen=True)
class Teach(Step):
    """The teacher's targets over one block of consecutive pool rows ``start:stop``."""

    kind: ClassVar[str] = "teach"
    version: ClassVar[int] = 3

    teacher: Train
    start: int
    stop: int
    rows_digest: str
    """Digest of the block's own texts: the same rows under another pool are the same block."""
    target: TargetKind
    """Kind of the targets; the student's tokenizer is in the key only through this kind and ``vocab_size``."""
    settings: TeachSettings
    vocab_size: int | None
    """Vocabulary rows that teacher and student both have, for ``tokens``; the two may pad one tokenizer differently."""
    threads: int

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Steps whose artifacts this step reads."""
        return (self.teacher,)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters beside the inputs."""
        return {
            "n": self.stop - self.start,
            "rows": self.rows_digest,
            "target": self.target,
            "settings": self.settings.to_json(),
            "vocab_size": self.vocab_size,
            "precision": self.teacher.settings.precision,
            "threads": self.threads,
        }


@dataclass(frozen=True, kw_only=True)
class Distil(Training):
    """Training of ``model`` on the teacher's targets: a divergence to distributions, or cross-entropy on texts."""

    kind: ClassVar[str] = "distil"

    targets: tuple[Teach, ...]
    gold: tuple[Buy, ...] = ()
    """Bought labels that are mixed in where a pool row has one (``gold_weight`` above 0)."""

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Steps whose artifacts this step reads."""
        return (*self.targets, *self._dev_inputs, *self.gold)

    @property
    def target(self) -> TargetKind:
        """Kind of the targets, the same in every block."""
        return self.targets[0].target

    @property
    def n_rows(self) -> int:
        """Number of pool rows, ``0:n_rows`` of the seeded order."""
        return self.targets[-1].stop


@dataclass(frozen=True)
class Score(Step):
    """Prediction of the test split, once, and its scores."""

    kind: ClassVar[str] = "score"
    version: ClassVar[int] = 3

    model: Train | Distil
    rows_digest: str
    """Digest of the test split, with the gold labels that its rows have."""
    threads: int
    of_teacher: bool = False
    """True for the scores of a teacher, which are told and not charged; not part of the key."""
    labels: Buy | None = None
    """Purchase of the gold labels of the test split; ``None`` where its rows have them."""

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Steps whose artifacts this step reads."""
        return (self.model,) if self.labels is None else (self.model, self.labels)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters beside the inputs."""
        return {"rows": self.rows_digest, "threads": self.threads, "metric": self.model.encoding.metric}


ComputeStep = Train | Teach | Distil | Score
"""A step that computes, and does not buy."""


@dataclass(frozen=True)
class Recipe:
    """One proposal of a strategy: its last step, and the derivation of its numbers, as lines for the receipt.

    A recipe that ends in a training is a pilot: its model is scored on dev and never sees the test split, so that a strategy can
    try before it decides. The test split belongs to the recipe that a strategy decides for, which ends in a `Score`. A recipe
    that ends in a purchase is a trial of its seller: what its labels cost.
    """

    final: Score | Train | Distil | Buy
    derivation: tuple[str, ...]
    teacher_score: Score | None = None
    """Scores of the teacher on the test split, which the report tells; no strategy sees them, and they are not charged."""

    @property
    def model(self) -> Train | Distil:
        """Training of the recipe's model; a trial of a seller has none."""
        assert not isinstance(self.final, Buy)
        return self.final.model if isinstance(self.final, Score) else self.final

    @property
    def is_trial(self) -> bool:
        """True where labels are bought and nothing is trained."""
        return isinstance(self.final, Buy)

    @property
    def is_pilot(self) -> bool:
        """True where the test split is not scored."""
        return not isinstance(self.final, Score)

    def steps(self) -> list[Step]:
        """Return every distinct step once, inputs first; the order is a pure function of the recipe."""
        return graph(self.finals)

    @property
    def finals(self) -> tuple[Step, ...]:
        """Steps that nothing else of the recipe reads."""
        return (self.final,) if self.teacher_score is None else (self.final, self.teacher_score)


def learner_of(step: Step) -> Train | Distil:
    """Return the training that a compute step is, or whose model the step uses.

    Raises:
        TypeError: a purchase.
    """
    match step:
        case Train() | Distil():
            return step
        case Teach():
            return step.teacher
        case Score():
            return step.model
    raise TypeError(f"{type(step).__name__} is no compute step")


def graph(finals: Iterable[Step]) -> list[Step]:
    """Return the distinct steps that lead to ``finals``, each once, inputs first."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key in ordered:
            return
        for given in step.inputs:
            visit(given)
        ordered[step.key] = step

    for final in finals:
        visit(final)
    return list(ordered.values())


def steps_of(recipes: Iterable[Recipe]) -> list[Step]:
    """Return the distinct steps of recipes, each once, inputs first."""
    return graph(final for recipe in recipes for final in recipe.finals)


def n_carved(dev: Dev | None) -> int:
    """Return the number of labels of a training that are set aside for dev."""
    return dev.n if dev is not None and dev.is_of_train else 0


def describe(step: Step) -> str:
    """Return the description of a step for the receipt, the same for all blocks of one teacher pass."""
    match step:
        case Buy():
            if step.seller == HUMAN or step.split == "train":
                return f"{step.n:,} {step.split if step.seller == HUMAN else seller_words(step.seller)} labels"
            return f"{step.n:,} {step.split} labels of {seller_words(step.seller)}"
        case Train():
            return f"{_train_words(step.settings)} the {step.role} on {step.n_labels:,} labels"
        case Teach():
            return "teacher's targets over the pool"
        case Distil():
            method = "" if step.settings.method in _PLAIN else f" ({step.settings.method})"
            return f"distil the student over {step.n_rows:,} pool rows{method}"
        case Score():
            return "score the teacher on the test split" if step.of_teacher else "score the test split"
    raise TypeError(f"no words for {type(step).__name__}")


_PLAIN = ("full", *peft_methods())
"""Methods that need no word beside a training's own."""


def _train_words(settings: TrainSettings) -> str:
    return "fine-tune" if settings.method in _PLAIN else f"train ({settings.method})"


def seller_words(name: str) -> str:
    """Return the words for a seller before the word labels."""
    return _SELLER_WORDS.get(name, name)


def role_of(step: Step) -> str:
    """Return the role of a step's artifact in a point: labels, teacher, targets, student, scores or teacher_scores."""
    if isinstance(step, Train):
        return step.role
    if isinstance(step, Score) and step.of_teacher:
        return "teacher_scores"
    return {"buy": "labels", "teach": "targets", "distil": "student", "score": "scores"}[step.kind]
