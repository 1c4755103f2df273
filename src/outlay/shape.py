"""What a model weighs, read without torch: from its config and the headers of its safetensors files.

FLOPs follow the T-Few paper (Liu et al. 2022, section 4.2, after Kaplan et al. 2020): with N parameters, an
encoder-decoder takes N FLOPs per token to infer and 3 N to train (each token passes through one half of it), a
decoder-only model or an encoder 2 N and 6 N. N counts the parameters that are multiplied with: the weight matrices of
the layers and of the head that is used, not embeddings, biases or norms. Attention scores (quadratic in the length) are
left out, as in the paper.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from outlay.errors import UnknownModel
from outlay.modelref import cut_layers, parse_ref, resolve_folder, weight_files

Family = Literal["encoder", "seq2seq", "causal"]

FAMILY_OF: Mapping[str, Family] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "deberta-v2"), "encoder"),
    **dict.fromkeys(("t5", "mt5"), "seq2seq"),
    **dict.fromkeys(("gpt2", "llama", "mistral", "qwen2", "qwen3"), "causal"),
}
"""Families by ``model_type`` of the config. A type that is not here would be counted by guesswork, so it is refused."""

TINY_N_POSITIONS = 512
TINY_N_SEGMENTS = 2

_FLOPS_PER_PARAMETER = {"seq2seq": (3, 1), "causal": (6, 2), "encoder": (6, 2)}
_MAX_HEADER_BYTES = 100_000_000
_LAYER = re.compile(r"(?:^|\.)(?:layer|layers|h|block)\.(\d+)\.")
_HEAD = re.compile(
    r"(?:^|\.)(?:pooler|classifier|pre_classifier|classification_head|cls|lm_head|score|qa_outputs"
    r"|vocab_(?:transform|layer_norm|projector)|mask_predictions|lm_predictions)\."
)
_EMBEDDING = re.compile(r"embed|(?:^|\.)(?:shared|wte|wpe)\.|relative_attention_bias")
_BUFFER = re.compile(r"(?:^|\.)attn\.(?:masked_)?bias$|position_ids$|token_type_ids$|inv_freq$")
# T5 files may repeat the shared table under its other names.
_SHARED_TWIN = re.compile(r"^(?:encoder|decoder)\.embed_tokens\.weight$")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model; all counts are parameters.

    ``n_layers``: layers of the encoder, or of the only stack; ``n_decoder_layers``: of a seq2seq decoder, else 0;
    ``n_matmul_parameters_per_layer`` (``..._per_decoder_layer``): weight matrices of one layer;
    ``n_embedding_parameters``: the embedding block; ``n_body_parameters``: everything but the head; ``tied_head``:
    whether a language model's head is the embedding table itself.
    """

    family: Family
    n_layers: int
    hidden_size: int
    vocab_size: int
    n_matmul_parameters_per_layer: int
    n_embedding_parameters: int
    n_body_parameters: int
    n_decoder_layers: int = 0
    n_matmul_parameters_per_decoder_layer: int = 0
    tied_head: bool = False

    @property
    def n_matmul_parameters(self) -> int:
        """Weight matrices of all layers."""
        encoder = self.n_layers * self.n_matmul_parameters_per_layer
        return encoder + self.n_decoder_layers * self.n_matmul_parameters_per_decoder_layer

    def n_head_parameters(self, n_labels: int) -> int:
        """Weight matrices of the head that is used: H x H + H x C of a classifier, H x V of a language model."""
        if self.family == "encoder":
            return self.hidden_size * (self.hidden_size + n_labels)
        return self.hidden_size * self.vocab_size

    def n_counted_parameters(self, n_labels: int) -> int:
        """N of the FLOPs formulas: `n_matmul_parameters` and the head.

        A classifier's head is applied once per row but counted for every token, as in the formula: a bound from above.
        """
        return self.n_matmul_parameters + self.n_head_parameters(n_labels)

    def n_total_parameters(self, n_labels: int) -> int:
        """All parameters with embeddings, norms, biases and the head; a tied head counts once."""
        if self.family == "encoder":
            return self.n_body_parameters + (self.hidden_size + 1) * (self.hidden_size + n_labels)
        return self.n_body_parameters + (0 if self.tied_head else self.hidden_size * self.vocab_size)


def flops_train(shape: ModelShape, n_tokens: int, n_labels: int) -> int:
    """FLOPs of ``n_tokens`` tokens forward and backward: 3 N (seq2seq) or 6 N per token (T-Few, section 4.2)."""
    return _FLOPS_PER_PARAMETER[shape.family][0] * shape.n_counted_parameters(n_labels) * n_tokens


def flops_infer(shape: ModelShape, n_tokens: int, n_labels: int) -> int:
    """FLOPs of ``n_tokens`` tokens forward: N (seq2seq) or 2 N per token (T-Few, section 4.2)."""
    return _FLOPS_PER_PARAMETER[shape.family][1] * shape.n_counted_parameters(n_labels) * n_tokens


def shape_of(ref: str, *, base: str | None = None) -> ModelShape:
    """The shape of a model reference; ``cut:`` and ``tiny:`` take theirs from ``base``.

    ``cut:K`` of a seq2seq model keeps K layers of each stack.

    Raises:
        UnknownModel: the reference leads nowhere, its files are incomplete, or its type is not one of `FAMILY_OF`.
    """
    parsed = parse_ref(ref)
    folder = resolve_folder(ref, base=base)
    config = _read_config(folder)
    if parsed.kind == "tiny":
        return _tiny_shape(parsed.n_layers, parsed.hidden_size, _size(config, folder, "vocab_size"))
    return _checkpoint_shape(folder, config, parsed.n_layers if parsed.kind == "cut" else None)


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of every tensor in a safetensors file; only its header is read.

    Raises:
        UnknownModel: not a safetensors file, or one whose end is missing.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError("header too long")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: (str(t["dtype"]), tuple(int(n) for n in t["shape"])) for name, t in header.items()}
        end = max((int(t["data_offsets"][1]) for t in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnknownModel(f"{path} is not a safetensors file; fetch the model again") from error
    if path.stat().st_size != 8 + length + end:
        raise UnknownModel(
            f"{path} has {path.stat().st_size} bytes instead of {8 + length + end}; fetch the model again"
        )
    return tensors


@dataclass(slots=True)
class _Stack:
    """Parameters of one stack by layer: those that are multiplied with, and all."""

    matmul: dict[int, int] = field(default_factory=dict)
    total: dict[int, int] = field(default_factory=dict)

    def add(self, layer: int, n: int, is_matmul: bool) -> None:
        self.total[layer] = self.total.get(layer, 0) + n
        self.matmul[layer] = self.matmul.get(layer, 0) + (n if is_matmul else 0)

    def kept(self, folder: Path, n_layers: int, n_keep: int | None) -> tuple[int, int, int]:
        """Layers kept, matmul parameters per layer, and all parameters of the kept layers."""
        if sorted(self.matmul) != list(range(n_layers)):
            raise UnknownModel(f"{folder}: config.json says {n_layers} layers, the weights hold {len(self.matmul)}")
        if len(set(self.matmul.values())) != 1:
            raise UnknownModel(
                f"{folder}: its layers differ in size, which `outlay` does not price; take another model"
            )
        layers = range(n_layers) if n_keep is None else cut_layers(n_layers, n_keep)
        return len(layers), self.matmul[0], sum(self.total[i] for i in layers)


def _checkpoint_shape(folder: Path, config: Mapping[str, Any], n_keep: int | None) -> ModelShape:
    family = FAMILY_OF.get(str(config.get("model_type")))
    if family is None:
        known = ", ".join(sorted(FAMILY_OF))
        raise UnknownModel(f"{folder} holds a {config.get('model_type')!r} model; its cost is only known for {known}")
    tensors = {name: tensor for path in weight_files(folder) for name, tensor in read_header(path).items()}
    encoder, decoder = _Stack(), _Stack()
    n_embedding = n_other = 0
    for name, (dtype, sizes) in tensors.items():
        n = math.prod(sizes)
        if not dtype.startswith(("F", "BF")) or _BUFFER.search(name):
            continue
        if layer := _LAYER.search(name):
            in_decoder = family == "seq2seq" and "decoder." in name[: layer.start() + 1]
            is_matmul = len(sizes) == 2 and name.endswith(".weight") and not _EMBEDDING.search(name)
            (decoder if in_decoder else encoder).add(int(layer[1]), n, is_matmul)
        elif _HEAD.search(name) or (_SHARED_TWIN.search(name) and "shared.weight" in tensors):
            continue
        elif _EMBEDDING.search(name):
            n_embedding += n
        else:
            n_other += n
    n_layers = _size(config, folder, "num_hidden_layers", "num_layers", "n_layers", "n_layer")
    kept, per_layer, n_layer_parameters = encoder.kept(folder, n_layers, n_keep)
    decoder_kept = per_decoder_layer = 0
    if family == "seq2seq":
        n_decoder_layers = int(config.get("num_decoder_layers") or n_layers)
        decoder_kept, per_decoder_layer, n = decoder.kept(folder, n_decoder_layers, n_keep)
        n_layer_parameters += n
    return ModelShape(
        family=family,
        n_layers=kept,
        hidden_size=_size(config, folder, "hidden_size", "d_model", "dim", "n_embd"),
        vocab_size=_size(config, folder, "vocab_size"),
        n_matmul_parameters_per_layer=per_layer,
        n_embedding_parameters=n_embedding,
        n_body_parameters=n_embedding + n_other + n_layer_parameters,
        n_decoder_layers=decoder_kept,
        n_matmul_parameters_per_decoder_layer=per_decoder_layer,
        tied_head=family != "encoder"
        and ("lm_head.weight" not in tensors or config.get("tie_word_embeddings") is True),
    )


def _tiny_shape(n_layers: int, hidden_size: int, vocab_size: int) -> ModelShape:
    """A BERT with H hidden units and 4 H in its feed-forward layers, in closed form."""
    h = hidden_size
    n_embedding = (vocab_size + TINY_N_POSITIONS + TINY_N_SEGMENTS + 2) * h  # the 2 are the norm's weight and bias
    n_biases_and_norms = 4 * h + 4 * h + h + 2 * 2 * h
    return ModelShape(
        family="encoder",
        n_layers=n_layers,
        hidden_size=h,
        vocab_size=vocab_size,
        n_matmul_parameters_per_layer=12 * h * h,
        n_embedding_parameters=n_embedding,
        n_body_parameters=n_embedding + n_layers * (12 * h * h + n_biases_and_norms),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownModel(f"{folder / 'config.json'} is not JSON; fetch the model again") from error
    if not isinstance(config, dict):
        raise UnknownModel(f"{folder / 'config.json'} is not a JSON object; fetch the model again")
    return config


def _size(config: Mapping[str, Any], folder: Path, *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int) and config[name] > 0:
            return int(config[name])
    raise UnknownModel(f"{folder / 'config.json'} gives no {names[0]}; fetch the model again")
