"""Model families: what a reference becomes, and how weights are kept.

One family so far: `encoder` (sequence classification, one or two segments). A reference is read by `outlay.modelref`; this
module turns it into a module with weights. Weights are read and written as safetensors only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outlay.errors import UnknownModel
from outlay.modelref import ModelRef, cut_layers, parse_ref, resolve_folder, tiny_n_heads
from outlay.train.checkpoint import clear_when_full


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to begin with.

    ``ref``: a model reference; ``base``: the checkpoint that ``cut:`` and ``tiny:`` take layers, shapes and tokenizer from;
    ``labels``: the classes, in order; ``seed``: of the new head (and of a ``tiny:`` model's weights).
    """

    ref: str
    base: str
    labels: tuple[str, ...]
    seed: int


def load_tokenizer(ref: str, base: str) -> Any:
    """The tokenizer of a reference; ``cut:`` and ``tiny:`` models read with their base's tokenizer.

    Raises:
        UnknownModel: the reference leads nowhere, or to a folder without a readable tokenizer.
    """
    from transformers import AutoTokenizer

    folder = resolve_folder(ref, base=base)
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise UnknownModel(
            f"the tokenizer of model {ref!r} does not load from {folder}: {_first_line(error)}"
        ) from error
    # Where its files are missing, transformers makes one that knows its special tokens only and reads every word as unknown.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UnknownModel(f"model {ref!r} has no vocabulary in {folder}; put its tokenizer files beside config.json")
    return tokenizer


def load_classifier(spec: ModelSpec) -> nn.Module:
    """An encoder with a new classification layer over ``spec.labels``, in float32 on the CPU.

    New even where the checkpoint brings one: its classes need not be these, nor in this order.

    Raises:
        UnknownModel: the reference leads nowhere, or not to an encoder for sequence classification.
    """
    ref = parse_ref(spec.ref)
    folder = resolve_folder(spec.ref, base=spec.base)
    torch.manual_seed(spec.seed)
    if ref.kind == "tiny":
        return _tiny(folder, ref, spec.labels)
    model = _from_pretrained(folder, spec.labels, spec.ref)
    return _cut(model, ref.n_layers) if ref.kind == "cut" else model


def save_classifier(model: nn.Module, tokenizer: Any, folder: Path) -> dict[str, Path]:
    """Write weights (safetensors), config and tokenizer into ``folder``; any `AutoModel` loader reads it back.

    Returns the files by name.
    """
    with _quiet(), clear_when_full(folder):
        model.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def load_saved(folder: Path) -> tuple[nn.Module, Any]:
    """The model and tokenizer that `save_classifier` wrote."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with _quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
        return model, AutoTokenizer.from_pretrained(folder)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout of the model the same probability, attention included; the config keeps the checkpoint's."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", probability)  # noqa: B010


def _from_pretrained(folder: Path, labels: Sequence[str], text: str) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    try:
        with _quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_head(labels),
            )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UnknownModel(f"model {text!r} does not load for sequence classification: {_first_line(error)}") from error
    misfits = sorted(key for key, *_ in report["mismatched_keys"] if key.startswith(f"{model.base_model_prefix}."))
    if misfits:
        raise UnknownModel(
            f"model {text!r}: {len(misfits)} tensors have other shapes than its config.json says, the first is {misfits[0]}; "
            "fetch the model again"
        )
    _renew_classes(model, len(labels), report["missing_keys"])
    loaded: nn.Module = model
    return loaded


def _renew_classes(model: Any, n_labels: int, already_new: set[str]) -> None:
    """Draw the classification layer anew where it came with the checkpoint, as `transformers` draws a missing one."""
    for name, module in model.named_modules():
        if name.startswith(f"{model.base_model_prefix}.") or f"{name}.weight" in already_new:
            continue
        if isinstance(module, nn.Linear) and module.out_features == n_labels:
            nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _head(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _tiny(folder: Path, ref: ModelRef, labels: Sequence[str]) -> nn.Module:
    """A BERT of L layers and width H with random weights and the base's vocabulary."""
    from transformers import BertConfig, BertForSequenceClassification

    try:
        vocab_size = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise UnknownModel(
            f"model {ref.text!r}: no vocab_size in {folder / 'config.json'}; name another base"
        ) from error
    config = BertConfig(
        vocab_size=vocab_size,
        num_hidden_layers=ref.n_layers,
        hidden_size=ref.hidden_size,
        intermediate_size=4 * ref.hidden_size,
        num_attention_heads=tiny_n_heads(ref.hidden_size),
        **_head(labels),
    )
    model: nn.Module = BertForSequenceClassification(config)
    return model


def _cut(model: nn.Module, n_keep: int) -> nn.Module:
    """Keep ``n_keep`` evenly spaced layers, first and last included; embeddings and head stay as they are."""
    config: Any = model.config
    stacks = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    if len(stacks) != 1:
        raise UnknownModel(f"cut:{n_keep} needs one stack of layers to cut, but {config.model_type} has {len(stacks)}")
    parent, name, layers = stacks[0]
    kept = cut_layers(len(layers), n_keep)
    setattr(parent, name, nn.ModuleList([layers[i] for i in kept]))
    config.num_hidden_layers = n_keep
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the loading bars and the report on the (always new) classification head."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
