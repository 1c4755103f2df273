"""The steps across families and tokenizers: what a student's first loss is, worked out anew from the models themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from outlay.errors import UsageError
from outlay.models.heads import Texts
from outlay.models.loading import ModelSpec, load_model, load_saved, same_tokenizer, save_model
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import Family, TargetKind, TaskSpec
from outlay.train.api import DevTexts, TrainContext, distil, finetune, longest_answer, predict, teach
from outlay.train.progress import TrainProgress
from outlay.train.targets.targets import SparseTargets
from tests.checkpoints import make_checkpoint, make_gpt2, make_t5
from tests.toys import CountingMeter, sentences

LABELS = ("bad", "so good")
TYPES = ("Dark", "Light")
CLASSES = TaskSpec("classification", LABELS, 32, 6, "mood: ")
ENTITIES = TaskSpec("entities", TYPES, 32, 16, "find: ")
MARKERS = {"awful": "Dark", "dull": "Dark", "broken": "Dark", "lovely": "Light", "bright": "Light", "clever": "Light"}
ONE_STEP = TrainSettings(epochs=1, batch_size=64, learning_rate=1e-3, dropout=0.0, precision="fp32", temperature=2.0)


def texts_of(n: int, seed: int) -> tuple[Texts, list[str], list[str]]:
    """Sentences, their classes, and their entities: the marker words."""
    rows = sentences(n, seed)
    lines = [" ".join(f"{w} [{MARKERS[w]}]" for w in text.split() if w in MARKERS) for text, _ in rows]
    return [(text,) for text, _ in rows], [LABELS[label] for _, label in rows], lines


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    texts, _, lines = texts_of(60, 0)
    words = [*(text for (text,) in texts), *lines, *LABELS, "mood: find: "]
    return {
        "encoder": make_checkpoint(root / "encoder", words),
        "seq2seq": make_t5(root / "seq2seq", words, n_layers=1),
        "padded": make_t5(root / "padded", words, n_layers=1, vocab_extra=28, seed=3),
        "other": make_t5(root / "other", [*words, "words of its own"], n_layers=1, seed=4),
        "causal": make_gpt2(root / "causal", words, n_layers=1),
    }


def spec(base: Path, form: TaskSpec, target: TargetKind | None = None, seed: int = 0) -> ModelSpec:
    return ModelSpec(str(base), str(base), form, seed, target)


def untrained(one: ModelSpec, folder: Path) -> Path:
    model, head, tokenizer = load_model(one)
    save_model(model, head, tokenizer, folder)
    return folder


def say(folder: Path, texts: Texts, target: TargetKind, **changes: Any) -> SparseTargets:
    vocab_size = changes.pop("vocab_size", None)
    settings = TeachSettings(**{"max_logits": 0, **changes})
    meter = CountingMeter()
    return teach(folder, texts, target=target, settings=settings, precision="fp32", meter=meter, vocab_size=vocab_size)


def first_loss(
    one: ModelSpec,
    texts: Texts,
    targets: SparseTargets,
    out: Path,
    settings: TrainSettings = ONE_STEP,
    gold: list[str | None] | None = None,
) -> float:
    progress = distil(
        one, texts, targets, settings, gold=gold, dev=None, out=out, context=TrainContext(CountingMeter())
    )
    return float(progress.history[0]["loss"] or 0.0)


def token_logits(folder: Path, text: str, units: list[int]) -> Tensor:
    """Of a T5 at each token of an answer, [len(units), V], from the model called plainly."""
    model, head, tokenizer = load_saved(folder)
    model.eval()
    source = tokenizer(head.form.prefix + text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out: Tensor = model(input_ids=source, labels=torch.tensor([units])).logits[0]
    return out


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, log_p = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    return (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2


def test_tokens_of_one_vocabulary_are_learnt_position_by_position(bases: dict[str, Path], tmp_path: Path) -> None:
    texts, _, lines = texts_of(9, 5)
    teacher = untrained(spec(bases["seq2seq"], ENTITIES, seed=7), tmp_path / "teacher")
    finetune(
        ModelSpec(str(bases["seq2seq"]), "", ENTITIES, 7),
        *texts_of(40, 1)[::2],
        ONE_STEP.changed({"epochs": 3, "batch_size": 8, "learning_rate": 1e-2}),
        dev=None,
        out=teacher,
        context=TrainContext(CountingMeter()),
    )
    student = spec(bases["padded"], ENTITIES, "tokens", seed=1)
    blank = untrained(student, tmp_path / "blank")
    n_vocabulary = load_saved(teacher)[0].config.vocab_size
    targets = say(teacher, texts, "tokens", vocab_size=n_vocabulary)
    values: list[Tensor] = []
    golds: list[tuple[Tensor, Tensor]] = []
    for row, (text,) in enumerate(texts):
        units = targets.positions().units[targets.offsets[row] : targets.offsets[row + 1]].tolist()
        student_logits = token_logits(blank, text, units)[:, :n_vocabulary]
        values.append(kl(student_logits, token_logits(teacher, text, units), 2.0))
        head = load_saved(blank)[1]
        spelled = head.encode_answers(head.tokenize([(text,)]), [lines[row]]).ids.tolist()
        nats = F.cross_entropy(token_logits(blank, text, spelled), torch.tensor(spelled), reduction="none")
        golds.append((values[-1], nats))
    expected = torch.cat(values).mean()
    assert first_loss(student, texts, targets, tmp_path / "a") == pytest.approx(float(expected), rel=1e-4)
    # A tail of fewer logits changes little, and never makes the divergence larger.
    sparse = first_loss(
        student, texts, say(teacher, texts, "tokens", vocab_size=n_vocabulary, max_logits=64), tmp_path / "b"
    )
    assert 0.5 * float(expected) < sparse <= float(expected) * (1 + 1e-5)
    # Gold answers of the even rows mixed in: weights (1 - w) and w where there is gold, 1 elsewhere.
    gold = [line if row % 2 == 0 else None for row, line in enumerate(lines)]
    mixed = first_loss(student, texts, targets, tmp_path / "c", ONE_STEP.changed({"gold_weight": 0.3}), gold)
    total = weight = 0.0
    for row, (said, nats) in enumerate(golds):
        share = 0.7 if row % 2 == 0 else 1.0
        total, weight = total + share * float(said.sum()), weight + share * len(said)
        if row % 2 == 0:
            total, weight = total + 0.3 * float(nats.sum()), weight + 0.3 * len(nats)
    assert mixed == pytest.approx(total / weight, rel=1e-4)


@pytest.mark.parametrize("student_family", ["encoder", "seq2seq", "causal"])
@pytest.mark.parametrize("teacher_family", ["encoder", "seq2seq", "causal"])
def test_a_distribution_over_the_labels_passes_between_any_two_families(
    bases: dict[str, Path], tmp_path: Path, teacher_family: Family, student_family: Family
) -> None:
    texts, golds, _ = texts_of(11, 6)
    teacher = untrained(spec(bases[teacher_family], CLASSES, seed=7), tmp_path / "teacher")
    targets = say(teacher, texts, "classes")
    student = spec(bases[student_family], CLASSES, "classes", seed=1)
    blank = untrained(student, tmp_path / "blank")
    assert load_saved(blank)[1].target == "classes"
    log_q = say(blank, texts, "classes")

    def full(said: SparseTargets) -> Tensor:
        logits = np.zeros((len(said), len(LABELS)), dtype=np.float32)
        kept = said.positions()
        indices = kept.indices.reshape(logits.shape).astype(np.int64)
        np.put_along_axis(logits, indices, kept.all_logits().reshape(logits.shape), 1)
        return torch.from_numpy(logits)

    values = kl(full(log_q), full(targets), 2.0)
    assert first_loss(student, texts, targets, tmp_path / "a") == pytest.approx(
        float(values.mean()), rel=1e-4, abs=1e-6
    )
    gold: list[str | None] = [answer if row % 3 == 0 else None for row, answer in enumerate(golds)]
    classes = torch.tensor([LABELS.index(answer) for answer in golds])
    nats = F.cross_entropy(full(log_q), classes, reduction="none")
    has_gold = torch.arange(len(golds)) % 3 == 0
    expected = torch.where(has_gold, 0.75 * values + 0.25 * nats, values).mean()
    mixed = first_loss(student, texts, targets, tmp_path / "b", ONE_STEP.changed({"gold_weight": 0.25}), gold)
    assert mixed == pytest.approx(float(expected), rel=1e-4)
    assert set(predict(tmp_path / "a", texts, precision="fp32", meter=CountingMeter()).answers) <= set(LABELS)


def test_tags_pass_between_encoders_and_are_learnt(bases: dict[str, Path], tmp_path: Path) -> None:
    texts, _, lines = texts_of(150, 8)
    settings = ONE_STEP.changed({"epochs": 8, "batch_size": 16, "learning_rate": 3e-3})
    unseen, _, gold = texts_of(60, 9)
    dev = DevTexts(unseen, lambda answers: 100 * sum(a == b for a, b in zip(answers, gold, strict=True)) / len(gold))
    teacher = spec(bases["encoder"], ENTITIES)
    taught = finetune(
        teacher, texts, lines, settings, dev=dev, out=tmp_path / "t", context=TrainContext(CountingMeter())
    )
    assert taught.best_score is not None
    assert taught.best_score > 90
    assert taught.n_unaligned == 0
    targets = say(tmp_path / "t", unseen, "tags")
    assert targets.vocab_size == 1 + 2 * len(TYPES)
    assert list(targets.answers) == predict(tmp_path / "t", unseen, precision="fp32", meter=CountingMeter()).answers
    student = ModelSpec("tiny:1x32", str(bases["encoder"]), ENTITIES, 2, "tags")
    longer = settings.changed({"epochs": 25})
    progress = distil(
        student, unseen, targets, longer, dev=dev, out=tmp_path / "s", context=TrainContext(CountingMeter())
    )
    assert progress.best_score is not None
    assert progress.best_score > 80
    others = replace(targets, rule=replace(targets.rule, kind="classes"))
    with pytest.raises(UsageError, match="learns from tags"):
        distil(student, unseen, others, settings, dev=None, out=tmp_path / "x", context=TrainContext(CountingMeter()))


@pytest.mark.parametrize(
    ("teacher_family", "student_family"),
    [
        ("causal", "encoder"),
        ("causal", "seq2seq"),
        ("other", "seq2seq"),
        ("encoder", "seq2seq"),
        ("seq2seq", "encoder"),
    ],
)
def test_a_teacher_of_another_tokenizer_hands_over_its_words(
    bases: dict[str, Path], tmp_path: Path, teacher_family: str, student_family: Family
) -> None:
    texts, _, lines = texts_of(12, 10)
    teacher = untrained(spec(bases[teacher_family], ENTITIES, seed=7), tmp_path / "teacher")
    targets = say(teacher, texts, "text")
    assert list(targets.answers) == predict(teacher, texts, precision="fp32", meter=CountingMeter()).answers
    gold = [line if row % 2 else None for row, line in enumerate(lines)]
    words = [said if known is None else known for said, known in zip(targets.answers, gold, strict=True)]
    student = spec(bases[student_family], ENTITIES, "text", seed=1)
    settings = ONE_STEP.changed({"gold_weight": 0.5})
    learnt = first_loss(student, texts, targets, tmp_path / "a", settings, gold)
    plain = finetune(
        student, texts, words, ONE_STEP, dev=None, out=tmp_path / "b", context=TrainContext(CountingMeter())
    )
    assert learnt == pytest.approx(plain.history[0]["loss"], rel=1e-6)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="published objective"):
        first_loss(student, texts, targets, tmp_path / "c", ONE_STEP.changed({"objective": "published"}))


def learnt(base: Path, form: TaskSpec, answers: int, out: Path) -> tuple[TrainProgress, list[str], list[str]]:
    rows, unseen = texts_of(160, 3), texts_of(40, 4)
    settings = TrainSettings(epochs=12, batch_size=16, learning_rate=1e-2, dropout=0.0, precision="fp32")
    progress = finetune(
        spec(base, form), rows[0], rows[answers], settings, dev=None, out=out, context=TrainContext(CountingMeter())
    )
    return progress, predict(out, unseen[0], precision="fp32", meter=CountingMeter()).answers, unseen[answers]


@pytest.mark.parametrize("family", [pytest.param("seq2seq", marks=pytest.mark.slow), "causal"])
def test_models_that_write_learn_to_classify(bases: dict[str, Path], tmp_path: Path, family: str) -> None:
    progress, said, golds = learnt(bases[family], CLASSES, 1, tmp_path / "m")
    assert progress.history[-1]["loss"] < progress.history[0]["loss"] / 3
    assert sum(a == b for a, b in zip(said, golds, strict=True)) >= 34
    beams = predict(tmp_path / "m", texts_of(40, 4)[0], precision="fp32", meter=CountingMeter(), beams=3).answers
    assert sum(a == b for a, b in zip(said, beams, strict=True)) >= 36


def test_blocks_of_words_are_bit_equal_whenever_they_are_taught(bases: dict[str, Path], tmp_path: Path) -> None:
    texts, _, _ = texts_of(30, 12)
    teacher = untrained(spec(bases["seq2seq"], ENTITIES, seed=7), tmp_path / "teacher")
    for changes in ({"beams": 2}, {"sample": True, "top_p": 0.9}):
        first = [say(teacher, texts[i : i + 10], "tokens", **changes).to_bytes() for i in (0, 10, 20)]
        torch.manual_seed(99)
        again = [say(teacher, texts[i : i + 10], "tokens", **changes).to_bytes() for i in (20, 10, 0)]
        assert again[::-1] == first


def test_tokenizers_and_longest_answers_of_models(bases: dict[str, Path]) -> None:
    assert same_tokenizer(str(bases["seq2seq"]), "", str(bases["padded"]), "")
    assert not same_tokenizer(str(bases["seq2seq"]), "", str(bases["other"]), "")
    assert longest_answer(str(bases["seq2seq"]), "", ENTITIES) == 16
    assert longest_answer(str(bases["encoder"]), "", ENTITIES) == 0


def test_device_map_spreads_a_model_for_inference(bases: dict[str, Path], tmp_path: Path) -> None:
    texts, _, _ = texts_of(7, 13)
    model = untrained(spec(bases["seq2seq"], ENTITIES, seed=7), tmp_path / "m")
    plain = predict(model, texts, precision="fp32", meter=CountingMeter()).answers
    assert predict(model, texts, precision="fp32", meter=CountingMeter(), device_map="auto").answers == plain
