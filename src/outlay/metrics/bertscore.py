"""BERTScore (Zhang et al. 2020): similarity of two texts by the token embeddings of any encoder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from outlay.errors import UnknownModel
from outlay.models.loading import load_errors
from outlay.models.random_init import quiet_transformers
from outlay.models.reference import resolve_folder
from outlay.models.window import n_positions

_BATCH_PAIRS = 32
_NO_LIMIT = 100_000
"""Limits above this mean none: tokenizers without a limit report far more."""
_USUAL = 512
"""Tokens of a text where neither tokenizer nor model says."""


class BertScore:
    """Greedy cosine matching of contextual embeddings, as the ``bert-score`` package computes it without a baseline.

    The encoder runs in float32 without dropout; an encoder-decoder lends its encoder. Texts longer than the tokenizer's limit, or
    than the model has positions for, are cut. The first and the last special token can be matched but do not count themselves.

    Args:
        ref: A model reference that stands alone (a folder, a hub name, ``package:``); published: microsoft/deberta-xlarge-mnli.
        layer: Which hidden state is compared: 0 for the embeddings, k for the output of layer k, ``None`` for the last. The
            package takes layer 40 of deberta-xlarge-mnli.
        idf: Weigh tokens by log((N + 1) / (df + 1)) over the N references of a call, instead of all alike.

    Raises:
        UnknownModel: The reference leads nowhere, or the model has no such layer.
    """

    def __init__(self, ref: str, *, layer: int | None, idf: bool) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = resolve_folder(ref)
        with load_errors(ref, "for BERTScore"), quiet_transformers():
            model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        config = model.config
        if config.is_encoder_decoder:
            model = model.get_encoder()
        n_layers = int(config.num_hidden_layers)
        if layer is not None and not 0 <= layer <= n_layers:
            raise UnknownModel(
                f"layer {layer} of model {ref!r}, which has {n_layers} layers; choose one of 0 to {n_layers}"
            )
        self._layer = n_layers if layer is None else layer
        self._idf = idf
        self._limit = _limit(self._tokenizer, config)
        self._model: nn.Module = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def f1(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Return the F1 of each prediction and its reference, by row; 0 where one of them has no token that counts.

        With P the weighted mean over the prediction's tokens of the highest cosine with any token of the reference, and R the
        same the other way round: 2 P R / (P + R) (Zhang et al. 2020, section 3).

        Raises:
            ValueError: There is not one prediction per reference.
        """
        if len(predictions) != len(references):
            raise ValueError(
                f"{len(predictions)} predictions meet {len(references)} references; give one per reference"
            )
        predicted, referred = self._tokens(predictions), self._tokens(references)
        weights = self._weights(referred)
        scored = [i for i in range(len(predicted)) if predicted[i] and referred[i]]
        order = sorted(scored, key=lambda i: max(len(predicted[i]), len(referred[i])))
        values = [0.0] * len(predicted)
        for start in range(0, len(order), _BATCH_PAIRS):
            rows = order[start : start + _BATCH_PAIRS]
            embedded = self._embed([predicted[i] for i in rows] + [referred[i] for i in rows])
            for row, prediction, reference in zip(rows, embedded[: len(rows)], embedded[len(rows) :], strict=True):
                cosines = prediction @ reference.T
                precision = _weighted(cosines.amax(1), [weights(token) for token in predicted[row]])
                recall = _weighted(cosines.amax(0), [weights(token) for token in referred[row]])
                both = precision + recall
                values[row] = 2 * precision * recall / both if both else 0.0
        return values

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        stripped = [text.strip() for text in texts]
        ids: list[list[int]] = self._tokenizer(stripped, truncation=True, max_length=self._limit)["input_ids"]
        return ids

    def _weights(self, references: Sequence[Sequence[int]]) -> Callable[[int], float]:
        """Return the weight of a token; inverse document frequencies leave none to one of every reference."""
        if not self._idf:
            frame = (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id)
            return lambda token: 0.0 if token in frame else 1.0
        n = len(references)
        n_with = Counter(token for reference in references for token in set(reference))
        return lambda token: math.log((n + 1) / (n_with[token] + 1))

    @torch.inference_mode()
    def _embed(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the unit vectors of every row's tokens, float32 ``[tokens, width]`` on the CPU."""
        device = next(self._model.parameters()).device
        tensors = [torch.tensor(row) for row in rows]
        ids = pad_sequence(tensors, batch_first=True, padding_value=self._tokenizer.pad_token_id or 0)
        mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
        out = self._model(ids.to(device), attention_mask=mask.to(device), output_hidden_states=True)
        states = nn.functional.normalize(out.hidden_states[self._layer].float(), dim=-1).cpu()
        return [states[i, : len(row)] for i, row in enumerate(rows)]


def _weighted(values: Tensor, weights: Sequence[float]) -> float:
    """Return the weighted mean; 0 where nothing has any weight."""
    weight = torch.tensor(weights, dtype=values.dtype)
    return float((values * weight).sum() / weight.sum()) if weight.sum() > 0 else 0.0


def _limit(tokenizer: Any, config: Any) -> int:
    """Return the most tokens of a text: the tokenizer's limit, and no more than the model has positions for."""
    limit, positions = int(tokenizer.model_max_length), n_positions(config.to_dict())
    if limit < _NO_LIMIT:
        return limit if positions is None else min(limit, positions)
    return positions or _USUAL
