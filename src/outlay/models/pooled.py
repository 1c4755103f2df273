"""Classifiers that read pooled vectors: an encoder, one vector of a text's tokens, a linear head.

Vectors are those of `sentence-transformers`: pooled and scaled as the checkpoint declares (`outlay.models.pooling`). Two texts of
a row are joined, or each has a vector of its own and the head reads u, v, \\|u - v\\| and u * v. Saved, such a model is a folder
that `sentence-transformers` loads, with the head beside it in ``head.safetensors``.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from outlay.models.heads import (
    ClassAnswers,
    Generation,
    Inputs,
    LogitSink,
    Rows,
    Sources,
    Texts,
    device_of,
    feed_sink,
    logits_of,
)
from outlay.models.pooling import Pooling, n_features
from outlay.models.reference import HEAD_WEIGHTS
from outlay.models.tokenization import AnswerIds, Encoded, collate, encode
from outlay.models.vectors import VectorCache, cache_of
from outlay.settings import TeachSettings
from outlay.spec import Family, Reading, TaskSpec

_MODULES = "sentence_transformers.models."
_ST_MODES = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}


class PooledModel(nn.Module):
    """An encoder with pooling and a linear head; ``encoder`` and ``head`` are its parts.

    Vectors of length 1 have small values, so that a head must have large weights, which steps of one size change slowly. The head
    in training reads them times ``scales``, powers of 2, and has weights divided by them; saved, it has those of the vectors.
    """

    base_model_prefix = "encoder"

    def __init__(self, encoder: Any, n_outputs: int, pooling: Pooling, reading: Reading) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.reading = reading
        self.head = nn.Linear(n_features(int(encoder.config.hidden_size), reading), n_outputs)
        self.register_buffer("scales", _scales(int(encoder.config.hidden_size), pooling, reading), persistent=False)
        # GPT-2 takes them too, and adds the embedding of word 0 for each 0.
        n_types = int(getattr(encoder.config, "type_vocab_size", 0) or 0)
        self._takes_types = n_types > 0 and "token_type_ids" in inspect.signature(encoder.forward).parameters
        # Its output is never read.
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler.requires_grad_(False)

    @property
    def config(self) -> Any:
        """The encoder's config."""
        return self.encoder.config

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the encoder can compute its activations twice."""
        return bool(getattr(self.encoder, "supports_gradient_checkpointing", False))

    def __getattr__(self, name: str) -> Any:
        """Hand gradient checkpointing on to the encoder."""
        if name.endswith(("checkpointing_enable", "checkpointing_disable")):
            return getattr(self.encoder, name)
        return super().__getattr__(name)

    def pool(self, inputs: Inputs) -> Tensor:
        """Return a vector of each text, float32 ``[texts, hidden]``."""
        given = {name: tensor for name, tensor in inputs.items() if name != "token_type_ids" or self._takes_types}
        hidden = self.encoder(**given).last_hidden_state
        return pool(hidden, inputs["attention_mask"], self.pooling)

    def features(self, vectors: Tensor) -> Tensor:
        """Return what the head reads, ``[rows, values]``; of towers, all first texts come before all second ones."""
        return pair_features(*vectors.chunk(2)) if self.reading == "towers" else vectors

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the logits of the classes, float32 ``[rows, classes]``."""
        return self.logits(self.features(self.pool(inputs)))

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits of what the head reads, float32 ``[rows, classes]``."""
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head((features * self.scales).to(self.head.weight.dtype))
        return logits

    @torch.no_grad()
    def set_head(self, weight: NDArray[Any], bias: NDArray[Any]) -> None:
        """Put in the weights of a regression, ``[classes, values]`` and ``[classes]``, in float32."""
        self.head.float()
        self.head.weight.copy_(torch.from_numpy(weight) / self.scales.cpu())
        self.head.bias.copy_(torch.from_numpy(bias))


def _scales(hidden_size: int, pooling: Pooling, reading: Reading) -> Tensor:
    """Return a factor for each value of a row, float32 ``[values]``: of vectors of length 1 about the root of their width."""
    scale = 2.0 ** round(math.log2(hidden_size) / 2) if pooling.normalize else 1.0
    parts = [scale] if reading != "towers" else [scale, scale, scale, scale**2]
    return torch.tensor(parts, dtype=torch.float32).repeat_interleave(hidden_size)


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return the pooled vectors of texts, float32 ``[texts, hidden]``.

    ``hidden``: ``[texts, tokens, hidden]``; ``mask``: ``[texts, tokens]``, padding at the end.
    """
    hidden = hidden.float()
    if pooling.mode == "first":
        vectors = hidden[:, 0]
    elif pooling.mode == "last":
        vectors = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    else:
        weights = mask.unsqueeze(-1).float()
        vectors = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1e-9)
    return functional.normalize(vectors, dim=1) if pooling.normalize else vectors


def pair_features(first: Tensor, second: Tensor) -> Tensor:
    """Return u, v, \\|u - v\\| and u * v side by side, ``[rows, 4 hidden]`` (Conneau et al. 2017, section 3.1)."""
    return torch.cat([first, second, (first - second).abs(), first * second], dim=-1)


@dataclass(frozen=True, slots=True)
class TowerSources(Sources):
    """Sources whose two texts are read apart: ``encoded`` counts both together, ``towers`` has 2 rows for each row."""

    towers: Encoded | None = None


class PooledHead(ClassAnswers):
    """Head of a `PooledModel`.

    ``cache``: frozen vectors of the model's encoder, where they are kept; only for one that is not trained.
    """

    def __init__(
        self, tokenizer: Any, form: TaskSpec, family: Family, pooling: Pooling, reading: Reading, method: str
    ) -> None:
        self.family: Family = family
        self.form = form
        self.n_outputs: int | None = form.n_outputs
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.reading = reading
        self.method = method
        self.cache: VectorCache | None = None
        self.origin: str | None = None

    def freeze(self, origin: str, folder: Path | None = None) -> None:
        """Keep the vectors of the encoder, which is not trained; ``origin``: its identity, ``folder``: as for `cache_of`."""
        identity = {"origin": origin, "pooling": self.pooling.to_json(), "threads": torch.get_num_threads()}
        self.origin, self.cache = origin, cache_of(identity, folder)

    @property
    def limit(self) -> int:
        """Most tokens of a text."""
        own = self.pooling.max_tokens
        return self.form.max_source_tokens if own is None else min(self.form.max_source_tokens, own)

    def tokenize(self, texts: Texts) -> Sources:
        """Tokenize the texts of each row, joined or apart."""
        if self.reading != "towers":
            return Sources(encode(self.tokenizer, texts, self.limit), texts)
        towers = encode(self.tokenizer, [(text,) for row in texts for text in row], self.limit)
        whole = Encoded(towers.ids, towers.type_ids, towers.offsets[::2], towers.pad_id, towers.n_truncated)
        return TowerSources(whole, texts, towers=towers)

    def n_tokens(self, sources: Sources, units: AnswerIds) -> NDArray[np.int64]:
        """Return the source's."""
        return sources.encoded.lengths

    def inputs(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Return the texts side by side; of towers, all first texts, then all second ones."""
        encoded, texts = texts_of(sources, rows)
        return collate(encoded, texts)

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the logits of the classes, ``[len(rows), 1, labels]``."""
        out: Tensor = model(inputs)
        return out.unsqueeze(1)

    def generate(
        self, model: nn.Module, sources: Sources, rows: Rows, settings: TeachSettings, *, sink: LogitSink | None = None
    ) -> Generation:
        """Return the likeliest class; of a frozen encoder, from vectors that are computed once."""
        if self.cache is not None and isinstance(model, PooledModel):
            features = torch.from_numpy(frozen_features(model, self.cache, sources, rows)).to(device_of(model))
            logits = model.logits(features).unsqueeze(1)
        else:
            logits = logits_of(self, model, sources, rows, torch.empty(0)).float()
        feed_sink(sink, rows, logits, np.ones(len(rows), dtype=np.int64))
        best = logits.argmax(-1).cpu().numpy().astype(np.int32)
        return Generation(list(best), int(sources.encoded.lengths[rows].sum()))

    def document(self) -> dict[str, Any]:
        """Return what `outlay.models.loading.load_saved` needs to make this head and its model again."""
        return {
            "method": self.method,
            "pooling": self.pooling.to_json(),
            "reading": self.reading,
            "origin": self.origin,
        }


def texts_of(sources: Sources, rows: Rows) -> tuple[Encoded, Rows]:
    """Return the encoded texts of sources, and the numbers of those of some rows: all first texts, then all second ones."""
    if isinstance(sources, TowerSources) and sources.towers is not None:
        return sources.towers, np.concatenate([2 * rows, 2 * rows + 1])
    return sources.encoded, rows


@torch.inference_mode()
def frozen_features(model: PooledModel, cache: VectorCache, sources: Sources, rows: Rows) -> NDArray[np.float32]:
    """Return what the head reads of some rows, float32 ``[rows, values]``, from vectors that are computed once.

    Batches hold texts of one length, so that a vector is that of its text alone, whatever stands beside it.
    """
    encoded, texts = texts_of(sources, rows)
    device = device_of(model)

    def compute(missing: Rows) -> NDArray[np.float32]:
        batch = {name: tensor.to(device) for name, tensor in collate(encoded, missing).items()}
        # In float32 whatever the precision of trainings is: vectors are the same on every kind of machine, and go further.
        with torch.autocast(device.type, enabled=False):
            found: NDArray[np.float32] = model.pool(batch).cpu().numpy()
        return found

    vectors = cache.vectors(encoded, texts, compute)
    features: NDArray[np.float32] = model.features(torch.from_numpy(vectors)).numpy()
    return features


def save_pooled(model: PooledModel, head: PooledHead, folder: Path) -> None:
    """Write encoder, head, and the files by which `sentence-transformers` knows the pooling; the tokenizer is not written."""
    model.encoder.save_pretrained(folder)
    state = {
        "weight": (model.head.weight.detach() * model.scales).contiguous(),
        "bias": model.head.bias.detach().contiguous(),
    }
    save_file(state, folder / HEAD_WEIGHTS, metadata={"labels": json.dumps(head.form.labels)})
    write_modules(folder, head)


def write_modules(folder: Path, head: PooledHead) -> None:
    """Write ``modules.json`` and what it names, as `sentence-transformers` reads them."""
    pooling = head.pooling
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = next(config[name] for name in ("hidden_size", "d_model", "n_embd") if config.get(name))
    modules: list[tuple[str, str, dict[str, Any] | None]] = [
        ("Transformer", "", None),
        (
            "Pooling",
            "1_Pooling",
            {"word_embedding_dimension": width, **{key: mode == pooling.mode for mode, key in _ST_MODES.items()}},
        ),
    ]
    if pooling.normalize:
        modules.append(("Normalize", "2_Normalize", None))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": _MODULES + kind} for i, (kind, path, _) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listed)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": head.limit, "do_lower_case": False})
    for _, path, config in modules:
        if config is not None:
            (folder / path).mkdir(exist_ok=True)
            _write_json(folder / path / "config.json", config)
        elif path:
            (folder / path).mkdir(exist_ok=True)


def load_head(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a saved head by name, float32."""
    return {name: weight.float() for name, weight in load_file(folder / HEAD_WEIGHTS).items()}


def _write_json(path: Path, document: Sequence[Any] | dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
