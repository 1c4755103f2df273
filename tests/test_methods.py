"""Every training method through the steps of a recipe on a tiny checkpoint: trains, saves, loads, replays, resumes, refuses."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from outlay.errors import OutlayError, UsageError
from outlay.models.heads import Texts
from outlay.models.loading import ModelSpec, load_saved
from outlay.models.pooled import PooledHead, PooledModel, frozen_features
from outlay.models.pooling import Pooling
from outlay.models.vectors import VectorCache
from outlay.settings import METHOD_NAMES, METHOD_SETTINGS, TeachSettings, TrainSettings, check_method, flat_settings
from outlay.settings import methods as methods_settings
from outlay.spec import Family, Kind, TaskSpec
from outlay.train import answering, learners
from outlay.train.api import DevTexts, TrainContext, distil, finetune, predict, teach
from outlay.train.contrastive import ContrastiveObjective, PairBatch
from outlay.train.progress import TrainProgress
from outlay.train.targets.targets import SparseTargets
from tests.checkpoints import make_checkpoint, make_gpt2, make_t5
from tests.steps_world import tree
from tests.test_cli import outlay
from tests.toys import MARKERS, CountingMeter, sentences

LABELS = ("bad", "good")
FORM = TaskSpec("classification", LABELS, 24, 8)
SETTINGS = TrainSettings(epochs=2, batch_size=8, learning_rate=1e-3, seed=1).changed({"probe_strengths": 3})
PAIRED = ("probe", "probe_then_tune", "contrastive")
FROM_TARGETS = tuple(name for name in METHOD_NAMES if name not in ("contrastive", "majority"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("small"), texts, n_layers=2))


def rows_of(n: int, seed: int, *, pairs: bool = False) -> tuple[Texts, list[str]]:
    found = sentences(n, seed)
    others = [(text,) for text, _ in sentences(n, seed + 1000)] if pairs else [()] * n
    return [(text, *other) for (text, _), other in zip(found, others, strict=True)], [LABELS[c] for _, c in found]


def dev_texts(*, pairs: bool = False) -> DevTexts:
    texts, golds = rows_of(17, seed=21, pairs=pairs)
    return DevTexts(
        texts, lambda answers: 100.0 * np.mean([a == b for a, b in zip(answers, golds, strict=True)]), golds
    )


def trained(
    ref: str,
    method: str,
    out: Path,
    *,
    targets: SparseTargets | None = None,
    pairs: bool = False,
    dev: bool = True,
    context: TrainContext | None = None,
    **changes: Any,
) -> TrainProgress:
    """Fine-tune (on 40 rows), or distil where there are targets."""
    texts, answers = rows_of(40, seed=11, pairs=pairs)
    settings = SETTINGS.changed({"method": method, **changes})
    spec = ModelSpec(ref, ref, FORM, seed=0, target=None if targets is None else targets.kind)
    more: dict[str, Any] = {
        "dev": dev_texts(pairs=pairs) if dev else None,
        "out": out,
        "context": context or TrainContext(CountingMeter()),
    }
    out.mkdir(parents=True, exist_ok=True)
    if targets is not None:
        return distil(spec, texts, targets, settings, **more)
    return finetune(spec, texts, answers, settings, **more)


def said(folder: Path, texts: Texts) -> list[str]:
    answering._loaded.clear()
    return predict(folder, texts, precision="fp32", meter=CountingMeter()).answers


def taught(folder: Path, texts: Texts, target: Any = "classes") -> SparseTargets:
    answering._loaded.clear()
    return teach(folder, texts, target=target, settings=TeachSettings(), precision="fp32", meter=CountingMeter())


@pytest.fixture(scope="module")
def targets(small: str, tmp_path_factory: pytest.TempPathFactory) -> SparseTargets:
    folder = tmp_path_factory.mktemp("teacher")
    trained(small, "probe", folder)
    return taught(folder, rows_of(40, seed=11)[0])


# --- every method -----------------------------------------------------------------------------------------------------


def answers_before_saving(monkeypatch: pytest.MonkeyPatch, texts: Texts) -> list[list[str]]:
    """What each model from here on answers at the moment it is saved."""
    seen: list[list[str]] = []

    def watched(save: Callable[..., None]) -> Callable[..., None]:
        def saved(model: nn.Module, head: Any, *more: Any) -> None:
            kept = model.training
            model.eval()
            read = head.tokenize(texts)
            rows = np.arange(len(texts))
            generation = head.generate(model, read, rows, TeachSettings(answers_from="free"))
            seen.append(head.decode(read, rows, generation.units))
            model.train(kept)
            save(model, head, *more)

        return saved

    for place in (
        "outlay.train.learners.save_with_head",
        "outlay.train.learners.save_model",
        "outlay.train.probe.save_with_head",
    ):
        module, name = place.rsplit(".", 1)
        monkeypatch.setattr(place, watched(getattr(sys.modules[module], name)))
    return seen


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
def test_a_method_trains_and_its_folder_answers_as_it_did(
    small: str, tmp_path: Path, method: str, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, _ = rows_of(23, seed=31, pairs=pairs)
    seen = answers_before_saving(monkeypatch, texts)
    meter = CountingMeter()
    progress = trained(small, method, tmp_path / "out", pairs=pairs, context=TrainContext(meter))
    assert seen == [said(tmp_path / "out", texts)]
    assert progress.stopped == "finished"
    assert progress.best_score is not None
    assert progress.best_score == max(entry["dev"] or 0 for entry in progress.history)
    assert progress.temperature is not None
    kind = METHOD_SETTINGS[method]
    counts = (progress.n_tokens_trained, progress.n_tokens_inferred, progress.n_flops_fitted)
    assert counts == (meter.n_trained, meter.n_inferred, meter.n_flops_fitted)
    assert (meter.n_trained > 0) == (TrainSettings(1, 1, 0.1, method=method).chosen.trains != "none")
    assert (meter.n_flops_fitted > 0) == (kind.head == "probe")
    assert (progress.strength is not None) == (kind.head == "probe" or method == "majority")
    document = json.loads((tmp_path / "out" / "outlay.json").read_text())
    assert document["temperature"] == progress.temperature
    has_own_head = kind.is_pooled or not kind.reads_vectors
    assert (tmp_path / "out" / "head.safetensors").exists() == has_own_head


@pytest.mark.parametrize("method", FROM_TARGETS)
@pytest.mark.parametrize("gold_weight", [pytest.param(0.0, marks=pytest.mark.slow), 0.4])
def test_a_method_learns_from_targets(
    small: str, tmp_path: Path, method: str, gold_weight: float, targets: SparseTargets
) -> None:
    texts, answers = rows_of(40, seed=11)
    settings = SETTINGS.changed({"method": method, "gold_weight": gold_weight})
    spec = ModelSpec(small, small, FORM, seed=0, target="classes")
    gold = [answer if i % 3 else None for i, answer in enumerate(answers)]
    context = TrainContext(CountingMeter())
    distil(spec, texts, targets, settings, gold=gold, dev=dev_texts(), out=tmp_path, context=context)
    found = taught(tmp_path, texts)
    assert found.vocab_size == 2
    if method == "probe" and gold_weight == 0.0:
        agree = np.mean([a == b for a, b in zip(said(tmp_path, texts), targets.answers, strict=True)])
        assert agree > 0.9


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_training_is_byte_for_byte_the_same_again(small: str, tmp_path: Path, method: str) -> None:
    for name in ("one", "two"):
        trained(small, method, tmp_path / name)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("method", ["probe_then_tune", "contrastive"])
def test_the_seed_decides_what_is_trained_by_steps(small: str, tmp_path: Path, method: str) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        trained(small, method, tmp_path / name, seed=seed, dev=False)
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_a_learnable_task_is_learnt(small: str, tmp_path: Path) -> None:
    scores: dict[str, float] = {}
    for method in ("probe", "probe_then_tune", "tfidf", "majority"):
        progress = trained(small, method, tmp_path / method, epochs=4, learning_rate=3e-3)
        scores[method] = progress.best_score or 0.0
    assert scores["tfidf"] > scores["majority"] + 10
    assert scores["probe_then_tune"] >= scores["probe"]


def test_the_commonest_label_is_the_commonest_one(small: str, tmp_path: Path) -> None:
    trained(small, "majority", tmp_path)
    answers = rows_of(40, seed=11)[1]
    commonest = max(LABELS, key=answers.count)
    assert set(said(tmp_path, rows_of(9, seed=3)[0])) == {commonest}
    probability = np.exp(load_file(tmp_path / "head.safetensors")["bias"].numpy())
    assert probability == pytest.approx([answers.count(label) / 40 for label in LABELS], abs=1e-3)


def test_tfidf_is_scikit_learns(small: str, tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    progress = trained(small, "tfidf", tmp_path)
    texts, answers = rows_of(40, seed=11)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode")
    words = vectorizer.fit_transform([text for (text,) in texts])
    model = LogisticRegression(C=progress.strength, max_iter=1000).fit(words, answers)
    fresh = rows_of(50, seed=77)[0]
    assert said(tmp_path, fresh) == list(model.predict(vectorizer.transform([text for (text,) in fresh])))


# --- the probe at the start -------------------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_probe_that_tuning_began_with_may_be_the_best(small: str, tmp_path: Path) -> None:
    probe = trained(small, "probe", tmp_path / "probe")
    bad = {"learning_rate": 0.5, "max_grad_norm": 1e6, "warmup_fraction": 0.0}
    progress = trained(small, "probe_then_tune", tmp_path / "tuned", **bad)
    first = progress.history[0]
    assert (first["epoch"], first["step"], first["loss"]) == (-1, 0, 0.0)
    assert first["dev"] == probe.best_score
    assert first.get("temperature") == pytest.approx(probe.temperature, rel=1e-4)
    assert len(progress.history) == 3
    if progress.best_evaluation != 0:
        pytest.fail(f"steps of 0.5 made it better: {progress.history}")
    assert progress.best_epoch == -1
    assert same(weights(tmp_path / "tuned"), weights(tmp_path / "probe"))


def test_without_dev_the_tuned_weights_are_left(small: str, tmp_path: Path) -> None:
    trained(small, "probe", tmp_path / "probe", dev=False)
    progress = trained(small, "probe_then_tune", tmp_path / "tuned", dev=False)
    assert not same(weights(tmp_path / "tuned"), weights(tmp_path / "probe"))
    assert progress.best_score is progress.temperature is None
    assert [entry["step"] for entry in progress.history] == [5, 10]


@pytest.mark.parametrize("tune", ["lora", "ia3"])
def test_tuning_by_adapters_freezes_the_rest(
    small: str, tmp_path: Path, tune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def look(model: nn.Module, *args: Any, **more: Any) -> TrainProgress:
        seen.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})
        return fit(model, *args, **more)

    fit = learners.fit
    monkeypatch.setattr(learners, "fit", look)
    trained(small, "probe_then_tune", tmp_path, tune=tune, dev=False)
    assert {name for name in seen[0] if tune not in name} == {"head.weight", "head.bias"}
    assert any(tune in name for name in seen[0])
    before, after = load_file(Path(small) / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    kept = {"lora": ("query.weight", "value.weight"), "ia3": ("key", "value", "output.dense.weight")}[tune]
    assert changed
    assert all(any(part in name for part in kept) for name in changed)


def test_contrastive_training_changes_the_encoder_and_ends_with_a_probe(small: str, tmp_path: Path) -> None:
    progress = trained(small, "contrastive", tmp_path, epochs=3)
    assert len(progress.history) == 1
    before, after = load_file(Path(small) / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # The head is the regression on the vectors that the trained encoder gives.
    texts, answers = rows_of(40, seed=11)
    model, head, _ = load_saved(tmp_path)
    assert isinstance(model, PooledModel)
    assert isinstance(head, PooledHead)
    features = frozen_features(model.eval(), VectorCache({}, None), head.tokenize(texts), np.arange(40))
    from sklearn.linear_model import LogisticRegression

    by_hand = LogisticRegression(C=progress.strength, max_iter=1000).fit(features.astype(float), answers)
    scores = features @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    assert np.abs((scores[:, 1] - scores[:, 0]) - by_hand.decision_function(features.astype(float))).max() < 1e-3
    assert head.origin is None, "vectors of an encoder that was trained are nobody else's"


@pytest.mark.parametrize("method", ["probe_then_tune", pytest.param("contrastive", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16_weights", "optimizer": "adafactor"},
        {"precision": "bf16"},
        {"gradient_checkpointing": True, "micro_batch_size": 3},
    ],
    ids=["bf16_weights", "bf16", "checkpointing"],
)
def test_other_ways_to_compute_bring_a_model_that_answers(
    small: str, tmp_path: Path, method: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, _ = rows_of(23, seed=5)
    seen = answers_before_saving(monkeypatch, fresh)
    trained(small, method, tmp_path, epochs=1, dev=False, **changes)
    agree = np.mean([a == b for a, b in zip(seen[0], said(tmp_path, fresh), strict=True)])
    assert agree > 0.8, "but for the rounding of weights that are saved in float32 or bf16"
    if method == "contrastive":
        assert load_file(tmp_path / "head.safetensors")["weight"].dtype == torch.float32


# --- the contrastive loss ---------------------------------------------------------------------------------------------


class Given(PooledModel):
    """A pooled model whose vectors are a parameter."""

    def __init__(self, vectors: Tensor) -> None:
        nn.Module.__init__(self)
        self.vectors = nn.Parameter(vectors)
        self.pooling, self.reading = Pooling(), "joined"

    def pool(self, inputs: Any) -> Tensor:
        return self.vectors


def loss_by_hand(vectors: NDArray[np.float64], classes: list[int]) -> float:
    """Mean squared error of the cosines of all pairs: of one class to 1, of two to 0; the mean of both means."""
    errors: dict[bool, list[float]] = {True: [], False: []}
    for i in range(len(vectors)):
        for j in range(i + 1, len(vectors)):
            u, v = vectors[i], vectors[j]
            cosine = sum(a * b for a, b in zip(u, v, strict=True)) / (sum(u * u) ** 0.5 * sum(v * v) ** 0.5)
            is_same = classes[i] == classes[j]
            errors[is_same].append((cosine - float(is_same)) ** 2)
    return sum(sum(found) / max(1, len(found)) for found in errors.values()) / 2


@pytest.mark.parametrize("classes", [[0, 1, 0, 2, 1, 0, 2], [0, 0, 0, 0], [0, 1, 2], [3], [0, 1]])
def test_the_contrastive_loss_is_that_of_a_double_loop(classes: list[int]) -> None:
    vectors = np.random.default_rng(len(classes)).normal(size=(len(classes), 5))
    model = Given(torch.tensor(vectors, dtype=torch.float32))
    objective = ContrastiveObjective(None, None, np.array(classes))  # type: ignore[arg-type]
    loss = objective.loss(model, PairBatch({}, torch.tensor(classes)))
    assert float(loss.n) == len(classes)
    assert loss.total.item() / len(classes) == pytest.approx(loss_by_hand(vectors, classes), abs=1e-6)
    (loss.total / loss.n).backward()
    slopes = np.zeros_like(vectors)
    for at in np.ndindex(vectors.shape):
        step = np.zeros_like(vectors)
        step[at] = 1e-5
        slopes[at] = (loss_by_hand(vectors + step, classes) - loss_by_hand(vectors - step, classes)) / 2e-5
    assert model.vectors.grad is not None
    assert np.abs(model.vectors.grad.numpy() - slopes).max() < 1e-5


# --- sentence-transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "pooling"), [*((method, "declared") for method in PAIRED), ("probe", "first"), ("contrastive", "last")]
)
def test_sentence_transformers_loads_the_folder(small: str, tmp_path: Path, method: str, pooling: str) -> None:
    library = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    trained(small, method, tmp_path, pooling=pooling, dev=False)
    texts, _ = rows_of(11, seed=41)
    model, head, _ = load_saved(tmp_path)
    assert isinstance(model, PooledModel)
    features = frozen_features(model.eval(), VectorCache({}, None), head.tokenize(texts), np.arange(11))
    other = library.SentenceTransformer(str(tmp_path), device="cpu")
    assert other.max_seq_length == 24
    vectors = other.encode([text for (text,) in texts])
    assert np.abs(vectors - features).max() < 1e-5
    head_weights = load_file(tmp_path / "head.safetensors")
    logits = vectors @ head_weights["weight"].numpy().T + head_weights["bias"].numpy()
    assert [LABELS[i] for i in logits.argmax(1)] == said(tmp_path, texts)


def test_what_is_saved_declares_the_pooling_that_is_read_again(small: str, tmp_path: Path) -> None:
    from outlay.models.pooling import pooling_of

    for pooling in ("mean", "first", "last"):
        trained(small, "probe", tmp_path / pooling, pooling=pooling, dev=False)
        assert pooling_of(str(tmp_path / pooling)) == Pooling(pooling, max_tokens=24)


# --- killed and resumed -----------------------------------------------------------------------------------------------


class KillingMeter(CountingMeter):
    """Kills its process at the n-th report of a kind."""

    def __init__(self, kind: str, at: int) -> None:
        super().__init__()
        self.kind, self.left = kind, at

    def _maybe_kill(self, kind: str) -> None:
        self.left -= kind == self.kind
        if self.left == 0 and kind == self.kind:
            os.kill(os.getpid(), signal.SIGKILL)

    def trained(self, n_tokens: int) -> None:
        super().trained(n_tokens)
        self._maybe_kill("trained")

    def inferred(self, n_tokens: int) -> None:
        super().inferred(n_tokens)
        self._maybe_kill("inferred")

    def fitted(self, n_flops: int) -> None:
        super().fitted(n_flops)
        self._maybe_kill("fitted")


def attempt(folder: Path, meter: CountingMeter, ref: str, method: str, targets: SparseTargets | None) -> int:
    """Train in a child process; its exit code, negative where a signal ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            context = TrainContext(meter, folder / "work", 0.0, save_steps=1)
            trained(ref, method, folder / "out", context=context, targets=targets, dropout=0.1)
            (folder / "counts.json").write_text(json.dumps(meter.state()))
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


KILLS = {
    "probe_then_tune": [("fitted", 3), ("trained", 3), ("trained", 5), ("inferred", 3)],
    "contrastive": [("trained", 4), ("trained", 5), ("fitted", 2), ("inferred", 2), ("fitted", 16)],
}


@pytest.mark.parametrize(
    ("method", "from_targets"), [("probe_then_tune", True), pytest.param("contrastive", False, marks=pytest.mark.slow)]
)
def test_killed_again_and_again_it_ends_with_the_bytes_of_an_undisturbed_one(
    small: str, tmp_path: Path, method: str, from_targets: bool, targets: SparseTargets
) -> None:
    learnt = targets if from_targets else None
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert attempt(whole, CountingMeter(), small, method, learnt) == 0
    resumed = []
    for kind, at in KILLS[method]:
        assert attempt(killed, KillingMeter(kind, at), small, method, learnt) == -signal.SIGKILL, (kind, at)
        resumed.append(len(list((killed / "work" / "checkpoints").glob("*"))))
    assert resumed[-1] > 0
    assert attempt(killed, CountingMeter(), small, method, learnt) == 0
    assert tree(killed / "out") == tree(whole / "out")
    assert (killed / "counts.json").read_text() == (whole / "counts.json").read_text()


# --- families and kinds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["seq2seq", "causal"])
@pytest.mark.parametrize("method", ["probe", "probe_then_tune", pytest.param("contrastive", marks=pytest.mark.slow)])
def test_models_that_write_choose_by_a_head_on_their_vectors(
    family: str, method: str, tmp_path: Path, texts: list[str], targets: SparseTargets
) -> None:
    make = {"seq2seq": make_t5, "causal": make_gpt2}[family]
    ref = str(make(tmp_path / "model", texts, n_layers=1))
    trained(ref, method, tmp_path / "out", epochs=1)
    fresh, _ = rows_of(13, seed=5)
    assert set(said(tmp_path / "out", fresh)) <= set(LABELS)
    model, head, _ = load_saved(tmp_path / "out")
    assert isinstance(head, PooledHead)
    assert head.pooling.mode == ("last" if family == "causal" else "mean")
    assert not any("decoder" in name or "lm_head" in name for name, _ in model.named_parameters())
    if method != "contrastive":
        trained(ref, method, tmp_path / "student", epochs=1, targets=targets)
        assert taught(tmp_path / "student", fresh).kind == "classes"


def entity_rows(n: int, seed: int) -> tuple[Texts, list[str]]:
    """Sentences whose marker words are to be listed."""
    texts = [(text,) for text, _ in sentences(n, seed)]
    moods = sum(MARKERS, ())
    return texts, [" ".join(f"{word} [Mood]" for word in text.split() if word in moods) for (text,) in texts]


ENTITIES = TaskSpec("entities", ("Mood",), 24, 24)


@pytest.mark.parametrize("method", ["probe", "probe_then_tune"])
def test_a_tagger_is_fitted_and_tuned(small: str, tmp_path: Path, method: str) -> None:
    texts, answers = entity_rows(40, seed=11)
    settings = SETTINGS.changed({"method": method, "probe_strengths": 3})
    spec = ModelSpec(small, small, ENTITIES, seed=0)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        context = TrainContext(meter := CountingMeter())
        progress = finetune(spec, texts, answers, settings, dev=None, out=tmp_path / name, context=context)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    found = said(tmp_path / "one", texts)
    assert np.mean([a == b for a, b in zip(found, answers, strict=True)]) > 0.5
    n_tokens = sum(len(text.split()) + 2 for (text,) in texts)
    assert progress.n_tokens_inferred == meter.n_inferred == n_tokens
    assert progress.n_flops_fitted > 0
    # A teacher's tags, and its text alone.
    pool, _ = entity_rows(30, seed=12)
    for target in ("tags", "text"):
        learnt = taught(tmp_path / "one", pool, target)
        of_text = ModelSpec(small, small, ENTITIES, seed=0, target=learnt.kind)
        meter = CountingMeter()
        out = tmp_path / target
        out.mkdir()
        distil(of_text, pool, learnt, settings, dev=None, out=out, context=TrainContext(meter))
        assert meter.n_flops_fitted > 0, target
        assert (meter.n_trained > 0) == (method == "probe_then_tune"), target
        assert np.mean([a == b for a, b in zip(said(out, pool), learnt.answers, strict=True)]) > 0.7


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind", "family", "learns_from", "named"),
    [
        *((m, "generation", "seq2seq", "labels", "are written") for m in (*PAIRED, "tfidf", "majority")),
        *((m, "entities", "encoder", "labels", "does not tag") for m in ("contrastive", "tfidf", "majority")),
        *((m, "entities", "seq2seq", "labels", "a seq2seq model") for m in PAIRED),
        *((m, "classification", "encoder", "targets", "from labels") for m in ("contrastive", "majority")),
    ],
)
def test_what_does_not_suit_is_refused_in_one_line(
    method: str, kind: Kind, family: Family, learns_from: str, named: str
) -> None:
    with pytest.raises(UsageError, match=f"method {method} .*{named}.*full") as error:
        check_method(SETTINGS.changed({"method": method}), kind, family, learns_from=learns_from)
    assert "\n" not in str(error.value)
    for fine in ("full", "lora", "ia3"):
        check_method(SETTINGS.changed({"method": fine}), kind, family, learns_from=learns_from)


def test_the_steps_refuse_before_anything_is_trained(
    small: str, tmp_path: Path, texts: list[str], targets: Any
) -> None:
    t5 = str(make_t5(tmp_path / "t5", texts, n_layers=1))
    meter, rows = CountingMeter(), rows_of(40, seed=11)[0]
    writes = TaskSpec("generation", (), 24, 8)

    def refused(form: TaskSpec, ref: str, method: str, learnt: SparseTargets | None = None) -> None:
        settings = SETTINGS.changed({"method": method})
        spec = ModelSpec(ref, ref, form, seed=0, target=None if learnt is None else learnt.kind)
        more: dict[str, Any] = {"dev": None, "out": tmp_path / "none", "context": TrainContext(meter)}
        if learnt is None:
            with pytest.raises(OutlayError) as error:
                finetune(spec, rows, ["a"] * 40, settings, **more)
        else:
            with pytest.raises(OutlayError) as error:
                distil(spec, rows, learnt, settings, **more)
        assert "\n" not in str(error.value)
        assert f"method {method}" in str(error.value)

    for method in (*PAIRED, "tfidf", "majority"):
        refused(writes, t5, method)
    for method in ("contrastive", "tfidf", "majority"):
        refused(ENTITIES, small, method)
    for method in ("contrastive", "majority"):
        refused(FORM, small, method, targets)
    trained(t5, "full", tmp_path / "writer", epochs=1, dev=False)
    refused(FORM, t5, "tfidf", taught(tmp_path / "writer", rows, "tokens"))
    assert (meter.n_trained, meter.n_inferred, meter.n_flops_fitted) == (0, 0, 0)
    assert not (tmp_path / "none").exists()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_method_may_bring_its_settings() -> None:
    wanted = SETTINGS.changed({"method": "probe_then_tune", "tune": "lora", "lora_rank": 4})
    for given in (
        {"method": {"probe_then_tune": {"tune": "lora"}}, "lora_rank": 4},
        {"probe_then_tune": {"tune": "lora"}, "lora_rank": 4},
        {"method": "probe_then_tune", "probe_then_tune": {"tune": "lora"}, "lora_rank": 4},
    ):
        assert SETTINGS.changed(given) == wanted
    assert SETTINGS.changed({"method": {"probe": None}}).method == "probe"
    assert SETTINGS.changed({"method": {"probe": {"folds": 3}}}).of_method("probe").folds == 3
    assert flat_settings({"lora": {"rank": 3}, "epochs": 2}) == {"method": "lora", "lora_rank": 3, "epochs": 2}


@pytest.mark.parametrize(
    "given",
    [
        {"method": "probe", "lora": {"rank": 3}},
        {"method": {"probe": {}, "full": {}}},
        {"peft": "lora", "method": "full"},
        {"peft": "none", "method": "probe"},
        {"probe": {}, "tfidf": {}},
        {"method": {"probe": 3}},
        {"method": "best"},
        {"method": {"probe": {"depth": 3}}},
        {"method": "probe_then_tune", "tune": "none"},
    ],
)
def test_two_methods_or_none_that_is_known_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        SETTINGS.changed(given)
    assert "\n" not in str(error.value)


BEFORE: dict[str, Any] = {
    **{"epochs": 3, "batch_size": 16, "learning_rate": 0.001, "warmup_fraction": 0.06, "weight_decay": 0.01},
    **{"max_grad_norm": 1.0, "patience": None, "dropout": None, "temperature": 1.0, "precision": "fp32", "seed": 0},
    **{"objective": "masked", "divergence": "forward_kl", "js_beta": 0.5, "gold_weight": 0.0, "micro_batch_size": None},
    **{"optimizer": "adamw", "gradient_checkpointing": False, "eval_steps": None, "eval_share": None},
    **{"batch_tokens": None, "compile": False, "peft": "none", "lora_rank": 16, "lora_alpha": 32.0},
}
"""What a training had in its key before it had methods."""


def test_the_keys_of_trainings_of_before_are_those_of_before() -> None:
    plain = TrainSettings(epochs=3, batch_size=16, learning_rate=1e-3)
    assert json.dumps(plain.to_json()) == json.dumps(BEFORE)
    lora = {"peft": "lora", "lora_rank": 3, "lora_alpha": 6.0}
    assert plain.changed(lora).to_json() == BEFORE | lora
    assert plain.changed({"method": "ia3"}).to_json() == BEFORE | {"peft": "ia3"}
    # What full does not read is not in its key.
    assert plain.changed({"pooling": "first", "pair": "joined", "probe_folds": 3, "tune": "lora"}).to_json() == BEFORE


def test_the_key_of_a_method_has_what_it_reads_and_nothing_else() -> None:
    plain = TrainSettings(epochs=3, batch_size=16, learning_rate=1e-3)
    own = {name: set(plain.changed({"method": name}).to_json()) - set(BEFORE) for name in METHOD_NAMES}
    probe = {"probe_folds", "probe_strengths", "probe_choose_by", "probe_class_weight"}
    pooled = {"method", "pooling", "pair"}
    assert own == {
        **{"full": set(), "lora": set(), "ia3": set(), "majority": {"method"}},
        **{"probe": pooled | probe, "contrastive": pooled | probe, "tfidf": {"method"} | probe},
        "probe_then_tune": pooled | probe | {"tune"},
    }
    keys = {json.dumps(plain.changed({"method": name}).to_json()) for name in METHOD_NAMES}
    assert len(keys) == len(METHOD_NAMES)


def test_the_old_name_works_and_is_remarked_on(tmp_path: Path, caplog: pytest.LogCaptureFixture, small: str) -> None:
    methods_settings._remark_on_old_name.cache_clear()
    with caplog.at_level(logging.WARNING, "outlay"):
        for _ in range(2):
            assert SETTINGS.changed({"peft": "lora"}) == SETTINGS.changed({"method": "lora"})
        assert SETTINGS.changed({"peft": "none"}).method == "full"
    assert [record.getMessage() for record in caplog.records] == [methods_settings.OLD_METHOD_REMARK]
    rows = [{"source": text, "target": label} for ((text,), label) in zip(*rows_of(12, seed=1), strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("finetune", "--model", small, "--train-file", tmp_path / "rows.jsonl", "--kind", "classification")
    quick = ("--labels", "bad,good", "--epochs", 1, "--threads", 1, "--precision", "fp32", "--quiet")
    methods_settings._remark_on_old_name.cache_clear()
    caplog.clear()
    ran = outlay(*asked, *quick, "--peft", "lora", "--lora-rank", 2, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert [record.getMessage() for record in caplog.records] == [methods_settings.OLD_METHOD_REMARK]
    settings = json.loads((tmp_path / "out" / "request.json").read_text())["settings"]
    assert (settings["peft"], settings["lora_rank"]) == ("lora", 2)
    ran = outlay(*asked, *quick, "--method", "lora", "--lora-rank", 2, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "already done" in ran.out
