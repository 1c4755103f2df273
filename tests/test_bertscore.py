"""BERTScore against the bert-score package, and against its definition written out."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from outlay.errors import UnknownModel
from outlay.metrics.bertscore import BertScore
from tests.checkpoints import make_t5

N_CASES = 200


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pairs(texts: list[str], seed: int = 0) -> tuple[list[str], list[str]]:
    """Sentences and what became of them: words dropped, doubled, unknown, in another order, or nothing at all."""
    rng = np.random.default_rng(seed)
    references = [texts[i] for i in rng.integers(0, len(texts), N_CASES)]
    predictions = []
    for i, reference in enumerate(references):
        words = [word for word in reference.split() if rng.random() > 0.3]
        words += [str(word) for word in rng.choice(texts[i % len(texts)].split(), 2)] + ["zyzzyva"] * (i % 7 == 0)
        predictions.append("" if i % 50 == 3 else " ".join(rng.permutation(words)))
    return predictions, references


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("layer", [2, 4])
def test_200_pairs_score_as_the_bert_score_package_scores_them(
    checkpoint: Path, texts: list[str], layer: int, idf: bool
) -> None:
    from bert_score import utils

    predictions, references = pairs(texts)
    found = BertScore(str(checkpoint), layer=layer, idf=idf).f1(predictions, references)
    # Empty texts crash it under transformers 5, so it is given the others alone.
    rows = [i for i, prediction in enumerate(predictions) if prediction]
    model, tokenizer = utils.get_model(str(checkpoint), layer), utils.get_tokenizer(str(checkpoint))
    weights = defaultdict(lambda: 1.0, {tokenizer.cls_token_id: 0, tokenizer.sep_token_id: 0})
    if idf:
        weights = utils.get_idf_dict(references, tokenizer, nthreads=0)
    some = [predictions[i] for i in rows], [references[i] for i in rows]
    expected = utils.bert_cos_score_idf(model, some[1], some[0], tokenizer, weights, device="cpu")[:, 2]
    assert [found[i] for i in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    assert {found[i] for i in range(N_CASES) if i not in rows} == {0.0}


def test_the_definition_written_out(checkpoint: Path, texts: list[str]) -> None:
    from transformers import AutoModel, AutoTokenizer

    predictions, references = (side[10:16] for side in pairs(texts, seed=1))
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).eval()

    def vectors(text: str) -> tuple[list[int], list[list[float]]]:
        ids = tokenizer.encode(text)
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0].tolist()
        return ids, [[x / math.hypot(*state) for x in state] for state in states]

    def weight(token: int) -> float:
        df = sum(token in tokenizer.encode(reference) for reference in references)
        return math.log((len(references) + 1) / (df + 1))

    def best(of: str, among: str) -> float:
        others = vectors(among)[1]
        highest = [max(sum(map(float.__mul__, u, v)) for v in others) for u in vectors(of)[1]]
        weights = [weight(token) for token in vectors(of)[0]]
        return sum(map(float.__mul__, highest, weights)) / sum(weights)

    found = BertScore(str(checkpoint), layer=3, idf=True).f1(predictions, references)
    for value, prediction, reference in zip(found, predictions, references, strict=True):
        precision, recall = best(prediction, reference), best(reference, prediction)
        assert value == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)


def test_a_copy_scores_one_and_the_last_layer_is_the_default(checkpoint: Path, texts: list[str]) -> None:
    predictions, references = pairs(texts)
    last = BertScore(str(checkpoint), layer=None, idf=False)
    assert last.f1(references, references) == pytest.approx([1.0] * N_CASES, abs=1e-5)
    assert last.f1(predictions, references) == BertScore(str(checkpoint), layer=4, idf=False).f1(
        predictions, references
    )
    assert last.f1(predictions, references) != BertScore(str(checkpoint), layer=1, idf=False).f1(
        predictions, references
    )
    assert last.f1([], []) == []


@pytest.mark.filterwarnings("ignore")
def test_an_encoder_decoder_lends_its_encoder(texts: list[str], tmp_path: Path) -> None:
    from bert_score import utils

    folder = str(make_t5(tmp_path / "t5", texts, n_layers=3))
    predictions, references = ([text or "nothing" for text in side[:40]] for side in pairs(texts))
    weights = utils.get_idf_dict(references, utils.get_tokenizer(folder), nthreads=0)
    model, tokenizer = utils.get_model(folder, 3), utils.get_tokenizer(folder)
    tokenizer.model_max_length = 64
    expected = utils.bert_cos_score_idf(model, references, predictions, tokenizer, weights, device="cpu")[:, 2]
    assert BertScore(folder, layer=3, idf=True).f1(predictions, references) == pytest.approx(
        expected.tolist(), abs=1e-5
    )


def test_texts_beyond_the_limit_are_cut(checkpoint: Path, texts: list[str]) -> None:
    long = " ".join(texts[:30])
    assert BertScore(str(checkpoint), layer=2, idf=False).f1([long + " zyzzyva"], [long]) == pytest.approx(
        [1.0], abs=1e-5
    )


def test_what_cannot_be_loaded_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"layer 5\b.*\b4 layers\b.*0 to 4"):
        BertScore(str(checkpoint), layer=5, idf=False)
    with pytest.raises(UnknownModel, match="no folder"):
        BertScore(str(tmp_path / "nowhere"), layer=None, idf=False)
    with pytest.raises(ValueError, match=r"\b1 predictions .*\b2\b"):
        BertScore(str(checkpoint), layer=None, idf=False).f1(["a"], ["a", "b"])
