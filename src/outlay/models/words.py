"""Classifiers without an encoder: the commonest label, and TF-IDF with a softmax regression (scikit-learn)."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from outlay.models.heads import ClassAnswers, Generation, Inputs, LogitSink, Rows, Sources, Texts, feed_sink
from outlay.models.reference import HEAD_WEIGHTS
from outlay.models.tokenization import AnswerIds, Encoded
from outlay.settings import TeachSettings
from outlay.spec import Family, TaskSpec

METHODS = ("tfidf", "majority")
_VOCABULARY = "vocabulary.json"


class WordsModel(nn.Module):
    """Weights of a regression on words: ``weight`` float32 ``[classes, words]``, ``bias`` float32 ``[classes]``."""

    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
        self.bias = nn.Parameter(torch.from_numpy(bias), requires_grad=False)


class WordsHead(ClassAnswers):
    """Head of a `WordsModel`; ``vectorizer``: makes the words of a text to numbers, ``None`` = the words do not matter."""

    family: Family = "encoder"

    def __init__(self, form: TaskSpec, method: str, vectorizer: Any = None) -> None:
        self.form = form
        self.n_outputs: int | None = form.n_outputs
        self.method = method
        self.vectorizer = vectorizer

    def tokenize(self, texts: Texts) -> Sources:
        """Return the texts as they are: no token goes through a model."""
        none, offsets = np.zeros(0, dtype=np.int32), np.zeros(len(texts) + 1, dtype=np.int64)
        return Sources(Encoded(none, none, offsets, 0, 0), texts)

    def n_tokens(self, sources: Sources, units: AnswerIds) -> NDArray[np.int64]:
        """Return zeros."""
        return sources.encoded.lengths

    def inputs(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Refuse: words are no tensors.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"a {self.method} model is fitted, not trained step by step")

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Refuse, as `inputs`.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"a {self.method} model is fitted, not trained step by step")

    def generate(
        self, model: nn.Module, sources: Sources, rows: Rows, settings: TeachSettings, *, sink: LogitSink | None = None
    ) -> Generation:
        """Return the likeliest class."""
        assert isinstance(model, WordsModel)
        logits = torch.from_numpy(self._scores(model, [sources.texts[int(row)] for row in rows])).unsqueeze(1)
        feed_sink(sink, rows, logits, np.ones(len(rows), dtype=np.int64))
        return Generation(list(logits.argmax(-1).numpy().astype(np.int32)), 0)

    def _scores(self, model: WordsModel, texts: Texts) -> NDArray[np.float32]:
        bias = model.bias.detach().cpu().numpy()
        if self.vectorizer is None:
            return np.tile(bias, (len(texts), 1))
        words = self.vectorizer.transform(joined(texts))
        scores: NDArray[np.float32] = np.asarray(words @ model.weight.detach().cpu().numpy().T + bias, dtype=np.float32)
        return scores

    def document(self) -> dict[str, Any]:
        """Return what `outlay.models.loading.load_saved` needs to make this head again."""
        return {"method": self.method}


def joined(texts: Texts) -> list[str]:
    """Return the texts of each row as one."""
    return ["\n".join(row) for row in texts]


def new_vectorizer(max_words: int, vocabulary: dict[str, int] | None = None) -> Any:
    """Return a vectorizer of words and pairs of words: counts on a logarithmic scale times the inverse document frequency.

    ``max_words``: words of a text that are read, the first ones.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    split = CountVectorizer(strip_accents="unicode")
    prepare, words_of = split.build_preprocessor(), split.build_tokenizer()

    def analyze(text: str) -> list[str]:
        words: list[str] = words_of(prepare(text))[:max_words]
        pairs = [f"{first} {second}" for first, second in pairwise(words)]
        return [*words, *pairs]

    return TfidfVectorizer(analyzer=analyze, sublinear_tf=True, vocabulary=vocabulary)


def save_words(model: WordsModel, head: WordsHead, folder: Path) -> None:
    """Write the weights and the vocabulary."""
    state = {"weight": model.weight.detach().cpu(), "bias": model.bias.detach().cpu()}
    if head.vectorizer is not None:
        state["idf"] = torch.from_numpy(np.asarray(head.vectorizer.idf_, dtype=np.float64))
        words = sorted(head.vectorizer.vocabulary_, key=head.vectorizer.vocabulary_.__getitem__)
        (folder / _VOCABULARY).write_text(json.dumps(words, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(state, folder / HEAD_WEIGHTS)


def load_words(folder: Path, form: TaskSpec, method: str) -> tuple[WordsModel, WordsHead]:
    """Return the model and the head that `save_words` wrote."""
    state = load_file(folder / HEAD_WEIGHTS)
    vectorizer = None
    if "idf" in state:
        words = json.loads((folder / _VOCABULARY).read_text(encoding="utf-8"))
        vectorizer = new_vectorizer(form.max_source_tokens, {word: i for i, word in enumerate(words)})
        vectorizer.idf_ = state["idf"].numpy()
    return WordsModel(state["weight"].numpy(), state["bias"].numpy()), WordsHead(form, method, vectorizer)
