"""Parameter counts of a model, read without torch from its config and the headers of its safetensors files.

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
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outlay.errors import UnknownModel
from outlay.models.reference import cut_layers, parse_ref, resolve_folder, weight_files
from outlay.models.sizes import Size, tiny_size
from outlay.spec import Family

_ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "deberta-v2")
_SEQ2SEQ = (
    *("t5", "mt5", "umt5", "longt5"),
    *("bart", "mbart", "pegasus", "blenderbot", "blenderbot-small", "m2m_100", "plbart", "led"),
)
_CAUSAL = (
    *("gpt2", "gpt_neo", "gpt_neox", "bloom", "llama", "mistral", "qwen2", "qwen3", "phi3"),
    *("gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "smollm3", "granite", "stablelm", "starcoder2"),
)
FAMILY_OF: Mapping[str, Family] = {
    **dict.fromkeys(_ENCODERS, "encoder"),
    **dict.fromkeys(_SEQ2SEQ, "seq2seq"),
    **dict.fromkeys(_CAUSAL, "causal"),
}
"""Families by ``model_type`` of the config; a type that is not listed is refused, since its counts would be a guess."""

T5_N_BUCKETS = 32
"""Buckets of relative distances in T5's first layer of each stack, for each head."""
BERT_N_SEGMENTS = 2

N_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers")
"""Names by which configs give the number of layers of their first or only stack."""
_FLOPS_PER_PARAMETER = {"seq2seq": (3, 1), "causal": (6, 2), "encoder": (6, 2)}
_MAX_HEADER_BYTES = 100_000_000
_LAYER = re.compile(r"(?:^|\.)(?:layer|layers|h|block)\.(\d+)\.")
_HEAD = re.compile(
    r"(?:^|\.)(?:pooler|classifier|pre_classifier|classification_head|cls|lm_head|score|qa_outputs|embed_out"
    r"|vocab_(?:transform|layer_norm|projector)|mask_predictions|lm_predictions)\."
)
_EMBEDDING = re.compile(r"embed|(?:^|\.)(?:shared|wte|wpe)\.|relative_attention_bias")
_BUFFER = re.compile(r"(?:^|\.)attn\.(?:masked_)?bias$|position_ids$|token_type_ids$|inv_freq$|final_logits_bias$")
_HEAD_TABLES = {"lm_head.weight", "embed_out.weight"}
# Seq2seq files may hold the shared table under its other names instead, or as well.
_SHARED_TABLE = re.compile(r"^(?:model\.)?(?:shared|encoder\.embed_tokens|decoder\.embed_tokens)\.weight$")


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
        """Return N of the FLOPs formulas: `n_matmul_parameters` and the head.

        A classifier's head is applied once per row but counted for every token, as in the formula: a bound from above.
        """
        return self.n_matmul_parameters + self.n_head_parameters(n_labels)

    def n_total_parameters(self, n_labels: int) -> int:
        """Return the number of all parameters, with embeddings, norms, biases and the head; a tied head counts once."""
        if self.family == "encoder":
            return self.n_body_parameters + (self.hidden_size + 1) * (self.hidden_size + n_labels)
        return self.n_body_parameters + (0 if self.tied_head else self.hidden_size * self.vocab_size)


def flops_train(shape: ModelShape, n_tokens: int, n_labels: int) -> int:
    """Return the FLOPs of ``n_tokens`` tokens forward and backward: 3 N (seq2seq) or 6 N per token (T-Few, section 4.2)."""
    return _FLOPS_PER_PARAMETER[shape.family][0] * shape.n_counted_parameters(n_labels) * n_tokens


def flops_infer(shape: ModelShape, n_tokens: int, n_labels: int) -> int:
    """Return the FLOPs of ``n_tokens`` tokens forward: N (seq2seq) or 2 N per token (T-Few, section 4.2)."""
    return _FLOPS_PER_PARAMETER[shape.family][1] * shape.n_counted_parameters(n_labels) * n_tokens


def shape_of(ref: str, *, base: str | None = None) -> ModelShape:
    """Return the shape of a model reference; ``cut:`` and ``tiny:`` take theirs from ``base``.

    ``cut:K`` of a seq2seq model keeps K layers of each stack.

    Raises:
        UnknownModel: the reference leads nowhere, its files are incomplete, or its type is not one of `FAMILY_OF`.
    """
    parsed = parse_ref(ref)
    folder = resolve_folder(ref, base=base)
    config = read_config(folder)
    if parsed.kind == "tiny":
        vocab_size = _size(config, folder, "vocab_size")
        return shape_of_size(tiny_size(_family(config, folder), parsed.n_layers, parsed.hidden_size, vocab_size))
    return _checkpoint_shape(folder, config, parsed.n_layers if parsed.kind == "cut" else None)


def family_of(ref: str, *, base: str | None = None) -> Family:
    """Return the family of a model reference; ``cut:`` and ``tiny:`` are of their base's. Only ``config.json`` is read.

    Raises:
        UnknownModel: the reference leads nowhere, its type is not one of `FAMILY_OF`, or ``tiny:`` of a causal base.
    """
    parsed = parse_ref(ref)
    folder = resolve_folder(ref, base=base)
    family = _family(read_config(folder), folder)
    if parsed.kind == "tiny":
        tiny_size(family, parsed.n_layers, parsed.hidden_size, 1)
    return family


def check_layer(ref: str, layer: int | None) -> None:
    """Refuse a layer that a checkpoint does not have: 0 is its embeddings, k the output of layer k; ``None`` passes.

    Raises:
        UnknownModel: the reference leads nowhere, or the layer lies behind the last.
    """
    config = read_config(resolve_folder(ref))
    n_layers = config_number(config, *N_LAYERS)
    if layer is not None and n_layers is not None and not 0 <= layer <= n_layers:
        raise UnknownModel(
            f"layer {layer} of model {ref!r}, which has {n_layers} layers; choose one of 0 to {n_layers}"
        )


def shape_of_size(size: Size) -> ModelShape:
    """Return the shape of a model that is not built yet, in closed form: what `shape_of` reads from it once it is."""
    h, inner, f, n_rows = size.hidden_size, size.n_heads * size.head_size, size.d_ff, size.vocab_size
    attention = 4 * h * inner
    per_layer, per_decoder_layer, n_small = attention + 2 * h * f, 0, 0
    n_embedding = (n_rows + size.n_positions) * h
    if size.type == "t5":
        per_layer, per_decoder_layer = attention + 3 * h * f, 2 * attention + 3 * h * f
        # Norms without biases: two in an encoder layer, three in a decoder layer, one behind each stack; no bias anywhere.
        n_small = (2 * size.n_layers + 3 * size.n_decoder_layers + 2) * h + 2 * T5_N_BUCKETS * size.n_heads
    else:
        # Biases of the four maps and of the two in between, two norms.
        n_small = size.n_layers * (4 * h + h + f + 4 * h)
        if size.type == "gpt2":
            n_small += 2 * h  # the last norm
        else:
            n_embedding += (BERT_N_SEGMENTS * h if size.type == "bert" else 0) + 2 * h  # their norm
    n_layer_parameters = size.n_layers * per_layer + size.n_decoder_layers * per_decoder_layer
    return ModelShape(
        family=size.family,
        n_layers=size.n_layers,
        hidden_size=h,
        vocab_size=n_rows,
        n_matmul_parameters_per_layer=per_layer,
        n_embedding_parameters=n_embedding,
        n_body_parameters=n_embedding + n_layer_parameters + n_small,
        n_decoder_layers=size.n_decoder_layers,
        n_matmul_parameters_per_decoder_layer=per_decoder_layer,
        tied_head=size.type == "gpt2",
    )


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and shape of every tensor in a safetensors file; only its header is read.

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
    """Parameters of one stack by layer: those of its matrix products, and all."""

    matmul: dict[int, int] = field(default_factory=dict)
    total: dict[int, int] = field(default_factory=dict)

    def add(self, layer: int, n: int, is_matmul: bool) -> None:
        self.total[layer] = self.total.get(layer, 0) + n
        self.matmul[layer] = self.matmul.get(layer, 0) + (n if is_matmul else 0)

    def kept(self, folder: Path, n_layers: int, n_keep: int | None) -> tuple[int, int, int]:
        """Return the number of layers kept, their matmul parameters per layer, and all their parameters."""
        if sorted(self.matmul) != list(range(n_layers)):
            raise UnknownModel(f"{folder}: config.json says {n_layers} layers, the weights hold {len(self.matmul)}")
        if len(set(self.matmul.values())) != 1:
            raise UnknownModel(
                f"{folder}: its layers differ in size, which `outlay` does not price; take another model"
            )
        layers = range(n_layers) if n_keep is None else cut_layers(n_layers, n_keep)
        return len(layers), self.matmul[0], sum(self.total[i] for i in layers)


def _checkpoint_shape(folder: Path, config: Mapping[str, Any], n_keep: int | None) -> ModelShape:
    family = _family(config, folder)
    tensors = {name: tensor for path in weight_files(folder) for name, tensor in read_header(path).items()}
    tables = sorted(name for name in tensors if family == "seq2seq" and _SHARED_TABLE.search(name))
    # T5's stacks always share one table, also where the head has its own; BART's have two more then.
    is_one_table = _is_t5(config) or config.get("tie_word_embeddings") is not False
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
        elif _HEAD.search(name) or (is_one_table and name in tables[1:]):
            continue
        elif _EMBEDDING.search(name):
            n_embedding += n
        else:
            n_other += n
    n_layers = _size(config, folder, *N_LAYERS)
    kept, per_layer, n_layer_parameters = encoder.kept(folder, n_layers, n_keep)
    decoder_kept = per_decoder_layer = 0
    if family == "seq2seq":
        n_decoder_layers = int(config.get("num_decoder_layers") or config.get("decoder_layers") or n_layers)
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
        tied_head=family != "encoder" and _is_tied(config, tensors.keys()),
    )


def _family(config: Mapping[str, Any], folder: Path) -> Family:
    family = FAMILY_OF.get(str(config.get("model_type")))
    if family is None:
        known = ", ".join(sorted(FAMILY_OF))
        raise UnknownModel(f"{folder} holds a {config.get('model_type')!r} model; its cost is only known for {known}")
    return family


def _is_t5(config: Mapping[str, Any]) -> bool:
    return str(config["model_type"]).endswith("t5")


def _is_tied(config: Mapping[str, Any], names: Set[str]) -> bool:
    """Return whether the output layer is tied to the embeddings."""
    if not names & _HEAD_TABLES:
        return True
    if _is_t5(config):  # its config says "tied" whatever the weights are, once transformers 5 has written it
        return not any(_SHARED_TABLE.search(name) for name in names)
    return config.get("tie_word_embeddings") is True


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a checkpoint.

    Raises:
        UnknownModel: it is not there, or no JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownModel(f"{folder / 'config.json'} is not JSON; fetch the model again") from error
    if not isinstance(config, dict):
        raise UnknownModel(f"{folder / 'config.json'} is not a JSON object; fetch the model again")
    return config


def config_number(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first positive whole number that a config has under one of ``names``."""
    return next((n for name in names if isinstance(n := config.get(name), int) and n > 0), None)


def _size(config: Mapping[str, Any], folder: Path, *names: str) -> int:
    if (n := config_number(config, *names)) is None:
        raise UnknownModel(f"{folder / 'config.json'} gives no {names[0]}; fetch the model again")
    return n
