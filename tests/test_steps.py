"""The steps end to end on a tiny checkpoint: a teacher learns, speaks, and its student comes to agree with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from outlay.errors import LabelError, UsageError
from outlay.models.heads import Texts
from outlay.models.loading import ModelSpec, load_model, load_saved, load_tokenizer, save_model
from outlay.models.tokenization import encode
from outlay.settings import TeachSettings, TrainSettings
from outlay.spec import TaskSpec
from outlay.train import answering
from outlay.train.api import DevTexts, TrainContext, count_tokens, distil, finetune, longest_answer, predict, teach
from outlay.train.profiler import Profiler
from outlay.train.progress import TrainProgress
from outlay.train.targets.targets import SparseTargets
from tests.toys import CountingMeter, read_targets, sentences

LABELS = ("bad", "good")
MAX_TOKENS = 24
FORM = TaskSpec("classification", LABELS, MAX_TOKENS, 8)
SETTINGS = TrainSettings(epochs=8, batch_size=16, learning_rate=3e-3, dropout=0.0, precision="fp32", seed=1)


def rows_of(n: int, seed: int) -> tuple[Texts, list[str]]:
    rows = sentences(n, seed)
    return [(text,) for text, _ in rows], [LABELS[label] for _, label in rows]


def dev_texts() -> DevTexts:
    texts, golds = rows_of(53, seed=21)
    return DevTexts(texts, lambda answers: 100 * share_equal(list(answers), golds))


def share_equal(one: list[str], other: list[str]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def predictions(folder: Path, texts: Texts) -> list[str]:
    return predict(folder, texts, precision="fp32", meter=CountingMeter()).answers


def speak(folder: Path, texts: Texts) -> SparseTargets:
    return teach(folder, texts, target="classes", settings=TeachSettings(), precision="fp32", meter=CountingMeter())


def logits_of(folder: Path, texts: Texts) -> torch.Tensor:
    """Logits of a saved classifier row by row, [rows, labels]."""
    model, _, tokenizer = load_saved(folder)
    model.eval()
    out = []
    for (text,) in texts:
        batch = tokenizer([text], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.no_grad():
            out.append(model(**batch).logits[0])
    return torch.stack(out)


def save_untrained(spec: ModelSpec, folder: Path) -> Path:
    model, head, tokenizer = load_model(spec)
    save_model(model, head, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def teacher(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainProgress]:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    texts, classes = rows_of(211, seed=11)
    spec = ModelSpec(str(checkpoint), str(checkpoint), FORM, seed=0)
    progress = finetune(
        spec,
        texts,
        classes,
        SETTINGS,
        dev=dev_texts(),
        out=folder,
        context=TrainContext(CountingMeter()),
    )
    return folder, progress


@pytest.fixture(scope="module")
def pool() -> Texts:
    return rows_of(229, seed=31)[0]


@pytest.fixture(scope="module")
def targets(teacher: tuple[Path, TrainProgress], pool: Texts) -> SparseTargets:
    return speak(teacher[0], pool)


def test_finetuning_learns_and_writes_the_best_epoch(teacher: tuple[Path, TrainProgress]) -> None:
    folder, progress = teacher
    texts, classes = rows_of(101, seed=41)
    assert share_equal(predictions(folder, texts), classes) > 0.9
    dev = dev_texts()
    assert dev.score(predictions(folder, dev.sources)) == progress.best_score == max(e["dev"] for e in progress.history)


def test_predictions_are_the_saved_models_own(teacher: tuple[Path, TrainProgress], pool: Texts) -> None:
    meter = CountingMeter()
    names = predict(teacher[0], pool[:17], precision="fp32", meter=meter).answers
    assert names == [LABELS[int(own)] for own in logits_of(teacher[0], pool[:17]).argmax(-1)]
    assert meter.n_inferred == sum(count_tokens(str(teacher[0]), "", FORM, pool[:17]))
    assert predict(teacher[0], [], precision="fp32", meter=meter).answers == []


def test_targets_are_the_teachers_logits(
    teacher: tuple[Path, TrainProgress], pool: Texts, targets: SparseTargets
) -> None:
    logits = logits_of(teacher[0], pool).numpy()
    said = targets.positions()
    assert (len(targets), len(said), targets.vocab_size) == (len(pool), len(pool), 2)
    kept, indices = said.all_logits().reshape(-1, 2), said.indices.reshape(-1, 2).astype(np.int64)
    np.testing.assert_allclose(np.take_along_axis(logits, indices, 1), kept, atol=1e-5)
    assert (kept[:, 0] >= kept[:, 1]).all()
    assert list(targets.answers) == [LABELS[unit] for unit in said.units] == predictions(teacher[0], pool)


def test_a_block_is_bit_equal_whenever_it_is_taught(
    teacher: tuple[Path, TrainProgress], pool: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [pool[start : start + 97] for start in range(0, len(pool), 97)]
    as_one_run = [speak(teacher[0], block).to_bytes() for block in blocks]
    # another order, each in a process that has just loaded the teacher
    again = []
    for block in reversed(blocks):
        monkeypatch.setattr(answering, "_loaded", {})
        torch.manual_seed(len(again))
        again.append(speak(teacher[0], block).to_bytes())
    assert again[::-1] == as_one_run
    whole = SparseTargets.concatenate([read_targets(data) for data in as_one_run])
    assert len(whole) == len(pool)
    assert len({*as_one_run}) == len(blocks)


def test_distilling_brings_the_student_to_agree_with_its_teacher(
    checkpoint: Path, teacher: tuple[Path, TrainProgress], pool: Texts, targets: SparseTargets, tmp_path: Path
) -> None:
    unseen = rows_of(101, seed=51)[0]
    spec = ModelSpec("tiny:1x32", str(checkpoint), FORM, seed=2)
    untrained = tmp_path / "untrained"
    save_untrained(spec, untrained)
    meter = CountingMeter()
    progress = distil(
        spec,
        pool,
        targets,
        SETTINGS.changed({"temperature": 2.0}),
        dev=None,
        out=tmp_path / "student",
        context=TrainContext(meter),
    )
    said = predictions(teacher[0], unseen)
    before, after = (share_equal(predictions(tmp_path / name, unseen), said) for name in ("untrained", "student"))
    assert before < 0.75
    assert after > 0.9
    assert progress.history[-1]["loss"] < progress.history[0]["loss"] / 2
    assert meter.n_trained == SETTINGS.epochs * sum(count_tokens("tiny:1x32", str(checkpoint), FORM, pool))


@pytest.mark.parametrize("temperature", [1.0, pytest.param(2.0, marks=pytest.mark.slow), 4.0])
def test_the_first_loss_is_pytorchs_kl_divergence_at_the_temperature(
    checkpoint: Path,
    teacher: tuple[Path, TrainProgress],
    targets: SparseTargets,
    pool: Texts,
    temperature: float,
    tmp_path: Path,
) -> None:
    spec = ModelSpec("tiny:1x32", str(checkpoint), FORM, seed=2)
    save_untrained(spec, tmp_path / "untrained")
    student, spoken = (logits_of(folder, pool) / temperature for folder in (tmp_path / "untrained", teacher[0]))
    divergence = F.kl_div(student.log_softmax(-1), spoken.log_softmax(-1), reduction="batchmean", log_target=True)
    settings = SETTINGS.changed({"epochs": 1, "batch_size": len(pool), "temperature": temperature})
    watch, out = TrainContext(CountingMeter()), tmp_path / "student"
    progress = distil(spec, pool, targets, settings, dev=None, out=out, context=watch)
    assert progress.history[0]["loss"] == pytest.approx(divergence.item() * temperature**2, abs=1e-5)


def test_the_student_learns_from_the_teachers_words_and_not_from_the_text(
    checkpoint: Path, pool: Texts, teacher: tuple[Path, TrainProgress], targets: SparseTargets, tmp_path: Path
) -> None:
    """A teacher whose words are turned round makes a student that says the opposite."""
    pieces = tuple(replace(piece, indices=(1 - piece.indices.astype(np.int64))) for piece in targets.pieces)
    turned = replace(targets, pieces=pieces)
    spec = ModelSpec("tiny:1x32", str(checkpoint), FORM, seed=2)
    watch = TrainContext(CountingMeter())
    out = tmp_path / "student"
    distil(spec, pool, turned, SETTINGS, dev=None, out=out, context=watch)
    assert share_equal(predictions(out, pool), predictions(teacher[0], pool)) < 0.1


def test_dropout_of_the_settings_reaches_the_model(checkpoint: Path, tmp_path: Path) -> None:
    texts, classes = rows_of(16, seed=1)
    spec = ModelSpec("tiny:1x32", str(checkpoint), FORM, seed=2)
    losses = []
    for name, dropout in [("zero", 0.0), ("most", 0.9), ("config", None)]:
        settings = SETTINGS.changed({"epochs": 1, "dropout": dropout})
        watch = TrainContext(CountingMeter())
        progress = finetune(spec, texts, classes, settings, dev=None, out=tmp_path / name, context=watch)
        losses.append(progress.history[0]["loss"])
    assert len(set(losses)) == 3


def test_an_interrupted_finetuning_goes_on_from_its_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    texts, classes = rows_of(61, seed=1)
    spec = ModelSpec("cut:2", str(checkpoint), FORM, seed=2)
    settings = SETTINGS.changed({"epochs": 2, "dropout": 0.2, "precision": "bf16"})

    def kill(progress: TrainProgress, n_steps: int) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    def train(name: str, watch: TrainContext) -> bytes:
        out = tmp_path / name
        finetune(spec, texts, classes, settings, dev=dev_texts(), out=out, context=watch)
        return (out / "model.safetensors").read_bytes()

    unbroken = train("unbroken", TrainContext(CountingMeter()))
    with pytest.raises(KeyboardInterrupt):
        train("killed", TrainContext(CountingMeter(), tmp_path / "checkpoints", 0, kill))
    assert not (tmp_path / "killed").exists()
    meter = CountingMeter()
    assert train("resumed", TrainContext(meter, tmp_path / "checkpoints", 0)) == unbroken
    assert meter.n_batches == 3


@pytest.mark.parametrize("ref", ["checkpoint", "cut:2", "tiny:2x32"])
def test_count_tokens_are_the_lengths_that_are_encoded(checkpoint: Path, texts: list[str], ref: str) -> None:
    ref = str(checkpoint) if ref == "checkpoint" else ref
    rows: Texts = [(texts[i], texts[i + 1]) for i in range(40)]
    lengths = encode(load_tokenizer(str(checkpoint), str(checkpoint)), rows, MAX_TOKENS).lengths.tolist()
    assert count_tokens(ref, str(checkpoint), FORM, rows) == lengths
    assert max(lengths) == MAX_TOKENS > min(lengths)


def test_distil_refuses_targets_that_do_not_belong_to_its_rows(
    checkpoint: Path, pool: Texts, targets: SparseTargets, tmp_path: Path
) -> None:
    cases = [
        (pool[:-1], targets, LABELS, 2.0, r"\b228\b.*\b229\b"),
        (pool, targets.select(range(100)), LABELS, 2.0, r"\b229\b.*\b100\b"),
        (pool, replace(targets, rule=replace(targets.rule, kind="tags")), LABELS, 2.0, r"\btags\b.*classes or text"),
        (pool, targets, ("bad", "good", "so so"), 2.0, r"\b2 classes .*\b3$"),
        (pool, targets, ("bad",), 2.0, r"\b2 classes .*\b1$"),
        (pool, targets, LABELS, 3.0, r"\b3\b.*\b1, 2, 4$"),
    ]
    for texts, handed, labels, temperature, message in cases:
        spec = ModelSpec("tiny:1x32", str(checkpoint), replace(FORM, labels=labels), seed=2)
        settings = SETTINGS.changed({"temperature": temperature})
        with pytest.raises((ValueError, UsageError), match=message):
            distil(
                spec, texts, handed, settings, dev=None, out=tmp_path / "student", context=TrainContext(CountingMeter())
            )
    published = SETTINGS.changed({"objective": "published"})
    spec = ModelSpec("tiny:1x32", str(checkpoint), FORM, seed=2)
    with pytest.raises(UsageError, match="published objective"):
        distil(
            spec, pool, targets, published, dev=None, out=tmp_path / "student", context=TrainContext(CountingMeter())
        )
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("n_answers", [6, 8])
def test_finetune_refuses_answers_that_do_not_belong_to_its_rows(
    checkpoint: Path, tmp_path: Path, n_answers: int
) -> None:
    spec = ModelSpec("tiny:1x32", str(checkpoint), FORM, seed=2)
    watch, out = TrainContext(CountingMeter()), tmp_path / "model"
    texts, _ = rows_of(7, seed=1)
    with pytest.raises(ValueError, match=rf"\b7 rows .*\b{n_answers}\b"):
        finetune(spec, texts, ["bad"] * n_answers, SETTINGS, dev=None, out=out, context=watch)
    with pytest.raises(LabelError, match="'worse' of row 6"):
        finetune(spec, texts, ["bad"] * 6 + ["worse"], SETTINGS, dev=None, out=out, context=watch)


def test_an_encoder_says_nothing_token_by_token(checkpoint: Path) -> None:
    assert longest_answer(str(checkpoint), str(checkpoint), FORM) == 0


@pytest.mark.parametrize(("share", "eval_steps"), [(0.05, None), (0.05, 3), (0.2, 3), (1.0, None)])
def test_evaluations_take_their_share_of_the_work_at_most(
    checkpoint: Path, tmp_path: Path, share: float, eval_steps: int | None
) -> None:
    texts, classes = rows_of(97, seed=51)
    asked: list[int] = []

    def score(answers: Sequence[str]) -> float:
        asked.append(len(answers))
        return 0.0

    meter, dev = CountingMeter(), DevTexts(rows_of(53, seed=21)[0], score)
    settings = SETTINGS.changed({"epochs": 2, "eval_share": share, "eval_steps": eval_steps})
    spec = ModelSpec("tiny:1x32", str(checkpoint), FORM, seed=2)
    finetune(spec, texts, classes, settings, dev=dev, out=tmp_path / "model", context=TrainContext(meter))
    # Every evaluation reads the first dev rows, as many as fit: one more would be too many.
    lengths = count_tokens(spec.ref, spec.base, FORM, dev.sources)
    n_steps = 7
    between = sum(count_tokens(spec.ref, spec.base, FORM, texts)) * (1 if eval_steps is None else eval_steps / n_steps)
    [n_rows] = set(asked)
    assert sum(lengths[:n_rows]) <= share * 3 * between
    assert n_rows == len(lengths) or sum(lengths[: n_rows + 1]) > share * 3 * between
    assert n_rows < len(lengths) or share == 1.0
    assert meter.n_inferred == len(asked) * sum(lengths[:n_rows])


def test_a_teacher_pass_is_told_part_by_part(teacher: tuple[Path, TrainProgress], pool: Texts) -> None:
    watch = Profiler()
    said = teach(
        teacher[0],
        pool,
        target="classes",
        settings=TeachSettings(),
        precision="fp32",
        meter=CountingMeter(),
        profiler=watch,
    )
    watch.stop()
    assert set(watch.seconds) == {"load", "data", "speak", "keep"}
    assert 0 < sum(watch.seconds.values()) <= watch.wall_seconds
    assert said.to_bytes() == speak(teacher[0], pool).to_bytes()
