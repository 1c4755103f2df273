"""Load models by reference, and save their weights.

`outlay.models.reference` parses a reference; this module loads its weights and builds its head. Weights are read and written as
safetensors only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outlay.errors import UnknownModel, UsageError, first_line
from outlay.models.generative_heads import GenerationHead, RankClassificationHead
from outlay.models.heads import ClassificationHead, Head, TaggingHead
from outlay.models.peft import check, check_layers
from outlay.models.pooled import PooledHead, PooledModel, load_head, save_pooled
from outlay.models.pooling import Pooling
from outlay.models.random_init import output_names, quiet_transformers, tiny_model
from outlay.models.reference import HEAD_FILE, SINGLE_WEIGHTS, cut_layers, fingerprint, parse_ref, resolve_folder
from outlay.models.shape import N_LAYERS, family_of, read_config
from outlay.models.window import window_in, window_of
from outlay.models.words import METHODS as WORDS_METHODS
from outlay.models.words import WordsHead, load_words, save_words
from outlay.settings import TrainSettings, check_optimizer
from outlay.spec import Family, Reading, TargetKind, TaskSpec, can_answer
from outlay.storage.files import writing

_DEPTHS = (*N_LAYERS, "num_decoder_layers", "decoder_layers")
"""Entries of a config that say how many layers there are."""
_N_LETTERS = 160
"""Characters of a library's error message that an error repeats."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The model to start from, and the task and targets it learns.

    ``ref``: a model reference; ``base``: the checkpoint that ``cut:`` and ``tiny:`` take layers, shapes and tokenizer from;
    ``form``: the task as the model meets it; ``seed``: of a new head (and of a ``tiny:`` model's weights); ``target``: what its
    teacher gives, ``None`` where it learns from labels; ``pooling``, ``reading``: of a head that reads pooled vectors.
    """

    ref: str
    base: str
    form: TaskSpec
    seed: int
    target: TargetKind | None = None
    pooling: Pooling | None = None
    reading: Reading = "whole"


def load_tokenizer(ref: str, base: str) -> Any:
    """Return the tokenizer of a reference; ``cut:`` and ``tiny:`` models read with their base's tokenizer.

    Raises:
        UnknownModel: the reference leads nowhere, or to a folder without a readable tokenizer.
    """
    return _tokenizer_in(resolve_folder(ref, base=base), ref)


def head_for(ref: str, family: Family, form: TaskSpec, tokenizer: Any, target: TargetKind | None = None) -> Head:
    """Return the head of model ``ref`` for a task, learning from ``target``; the limits of ``form`` are the model's.

    Raises:
        UsageError: the family cannot do the task.
    """
    if not can_answer(family, form.kind):
        raise UsageError(
            f"model {ref!r} is an encoder and cannot write free text; take a seq2seq or causal model (such as T5) for this task"
        )
    if family == "encoder":
        return ClassificationHead(tokenizer, form) if form.kind == "classification" else TaggingHead(tokenizer, form)
    text = GenerationHead(tokenizer, form, family)
    return RankClassificationHead(text) if target == "classes" else text


def head_of(ref: str, base: str, form: TaskSpec) -> Head:
    """Return the head of a model reference; see `read_head`."""
    return read_head(ref, base, form)[0]


def read_head(ref: str, base: str, form: TaskSpec, target: TargetKind | None = None) -> tuple[Head, Any]:
    """Return the head of a model reference, and its tokenizer; its weights stay where they are.

    Raises:
        UnknownModel: the reference leads nowhere, or to a folder without a readable tokenizer.
        UsageError: as `head_for`.
    """
    family = family_of(ref, base=base)
    fitted = window_of(ref, base=base).fit(form, ref)
    tokenizer = load_tokenizer(ref, base)
    return head_for(ref, family, fitted, tokenizer, target), tokenizer


def load_model(spec: ModelSpec) -> tuple[nn.Module, Head, Any]:
    """Return a model to train, in float32 on the CPU, with its head and its tokenizer.

    An encoder's classification layer is new even where the checkpoint brings one: its classes may be others, in another order.

    Raises:
        UnknownModel: the reference leads nowhere, or to a checkpoint of another kind.
        UsageError: the family cannot do the task.
    """
    ref = parse_ref(spec.ref)
    folder = resolve_folder(spec.ref, base=spec.base)
    head, tokenizer = read_head(spec.ref, spec.base, spec.form, spec.target)
    torch.manual_seed(spec.seed)
    if ref.kind == "tiny":
        model = tiny_model(folder, ref, head.family, _outputs(head), per_token=head.target == "tags")
    else:
        model = _from_pretrained(folder, head, spec.ref)
        model = _cut(model, ref.n_layers) if ref.kind == "cut" else model
    _check_vocabulary(spec.ref, int(model.config.vocab_size), len(tokenizer))  # type: ignore[union-attr,arg-type]
    return model, head, tokenizer


def load_pooled(spec: ModelSpec, method: str) -> tuple[PooledModel, PooledHead, Any]:
    """Return a model whose head reads pooled vectors, in float32 on the CPU, with its head and its tokenizer.

    ``spec.pooling`` names the pooling. Of a T5 the encoder is loaded alone.

    Raises:
        UnknownModel: the reference leads nowhere, or to a checkpoint without an encoder of its own.
    """
    assert spec.pooling is not None
    ref, family = parse_ref(spec.ref), family_of(spec.ref, base=spec.base)
    folder = resolve_folder(spec.ref, base=spec.base)
    head = pooled_head(spec.ref, spec.base, spec.form, spec.pooling, spec.reading, method)
    tokenizer, form = head.tokenizer, head.form
    torch.manual_seed(spec.seed)
    if ref.kind == "tiny":
        whole: Any = tiny_model(folder, ref, family, form.labels, per_token=False)
        encoder = whole.get_encoder() if family == "seq2seq" else whole.base_model
    else:
        encoder = _encoder_in(folder, family, spec.ref)
        encoder = _cut(encoder, ref.n_layers, n_stacks=1) if ref.kind == "cut" else encoder
    _check_vocabulary(spec.ref, int(encoder.config.vocab_size), len(tokenizer))
    return PooledModel(encoder, form.n_outputs, spec.pooling, spec.reading), head, tokenizer


def pooled_head(
    ref: str, base: str, form: TaskSpec, pooling: Pooling, reading: Reading, method: str = "probe"
) -> PooledHead:
    """Return the head that reads pooled vectors of a model reference; its weights stay where they are."""
    fitted = replace(form, max_source_tokens=_source_window(ref, base, form))
    return PooledHead(load_tokenizer(ref, base), fitted, family_of(ref, base=base), pooling, reading, method)


def _source_window(ref: str, base: str, form: TaskSpec) -> int:
    """Return the most tokens of a text for a model that writes no answer."""
    limit = window_of(ref, base=base).source
    return form.max_source_tokens if limit is None else min(limit, form.max_source_tokens)


def _encoder_in(folder: Path, family: Family, ref: str) -> Any:
    """Return the part of a checkpoint that gives vectors of tokens."""
    import transformers

    auto_class = transformers.AutoModelForTextEncoding if family == "seq2seq" else transformers.AutoModel
    with load_errors(ref, "as an encoder"), quiet_transformers():
        return auto_class.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)


def check_checkpoint(ref: str, base: str, head: Head, tokenizer: Any, settings: Sequence[TrainSettings] = ()) -> None:
    """Refuse a reference that cannot be loaded and trained with each of ``settings``, as far as its files say without
    the weights.

    Raises:
        UnknownModel: a tokenizer of more tokens than the model has rows, or a model whose layers cannot be cut.
        UsageError: adapters or an optimiser that cannot be had here, or not for this model.
    """
    parsed = parse_ref(ref)
    _check_vocabulary(ref, n_logits(ref, base), len(tokenizer))
    for each in settings:
        check_optimizer(each.optimizer, has_gpu=torch.cuda.is_available())
        check(each)
    adapted = [each for each in settings if each.adapters()]
    if parsed.kind == "tiny" or not (adapted or parsed.kind == "cut"):
        return
    from transformers import AutoConfig

    folder = resolve_folder(ref, base=base)
    with torch.device("meta"), load_errors(ref, "from its config"), quiet_transformers():
        model: nn.Module = _auto_class(head)[0].from_config(AutoConfig.from_pretrained(folder))
        model = _cut(model, parsed.n_layers) if parsed.kind == "cut" else model
    for each in adapted:
        check_layers(model, each)


def save_model(
    model: Any,
    head: Head,
    tokenizer: Any,
    folder: Path,
    state: dict[str, torch.Tensor] | None = None,
    temperature: float | None = None,
) -> None:
    """Write weights (safetensors), config, tokenizer and `HEAD_FILE` into ``folder``; any `AutoModel` loader reads it back.

    ``state``: the weights to write, where the model itself does not hold them whole; ``temperature``: as in `write_head_file`.
    """
    with quiet_transformers():
        with writing(folder / SINGLE_WEIGHTS):
            model.save_pretrained(folder, state_dict=state)
            _record_own_output_layer(model, folder)
        with writing(folder / "tokenizer.json"):
            tokenizer.save_pretrained(folder)
    write_head_file(folder, head, temperature)


def save_with_head(
    model: Any, head: PooledHead | WordsHead, tokenizer: Any, folder: Path, temperature: float | None = None
) -> None:
    """Write a model whose head is beside it (`outlay.models.pooled`, `outlay.models.words`) into ``folder``.

    `load_saved` reads it back; `sentence-transformers` loads the encoder of one that has one.
    """
    with quiet_transformers(), writing(folder / SINGLE_WEIGHTS):
        if isinstance(head, PooledHead):
            save_pooled(model, head, folder)
            tokenizer.save_pretrained(folder)
        else:
            save_words(model, head, folder)
    write_head_file(folder, head, temperature)


def write_head_file(folder: Path, head: Head, temperature: float | None = None) -> None:
    """Write `HEAD_FILE`: the family, the targets and the task, and what a head of another kind adds.

    ``temperature``: by which logits are divided for probabilities that fit the dev labels.
    """
    document: dict[str, Any] = {"family": head.family, "target": head.target, "form": head.form.to_json()}
    if isinstance(head, PooledHead | WordsHead):
        document["head"] = head.document()
    if temperature is not None:
        document["temperature"] = temperature
    with writing(folder / HEAD_FILE):
        (folder / HEAD_FILE).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load_saved(folder: Path, *, device_map: str | None = None) -> tuple[nn.Module, Head, Any]:
    """Return the model, head and tokenizer that `save_model` wrote.

    ``device_map``: ``auto`` spreads a model over every GPU there is, then the CPU (accelerate); ``None``: one device.

    Raises:
        UnknownModel: no `HEAD_FILE`, or weights that do not load.
    """
    head, tokenizer = saved_head(folder)
    if isinstance(head, WordsHead):
        return (*load_words(folder, head.form, head.method), None)
    if isinstance(head, PooledHead):
        return _load_saved_pooled(folder, head), head, tokenizer
    more = {} if device_map is None else {"device_map": device_map}
    with load_errors(str(folder), "as its own config says"), quiet_transformers():
        model: nn.Module = _auto_class(head)[0].from_pretrained(folder, use_safetensors=True, **more)
    return model, head, tokenizer


def saved_head(folder: Path) -> tuple[Head, Any]:
    """Return the head and tokenizer of a saved model, whose weights stay where they are; words are not read either.

    Raises:
        UnknownModel: no `HEAD_FILE`, or no readable tokenizer.
    """
    document = read_head_file(folder)
    family, form, own = document["family"], TaskSpec.from_json(document["form"]), document.get("head")
    if own is not None and own["method"] in WORDS_METHODS:
        return WordsHead(form, own["method"]), None
    tokenizer = _tokenizer_in(folder, str(folder))
    if own is None:
        fitted = window_in(read_config(folder), family).fit(form, str(folder))
        return head_for(str(folder), family, fitted, tokenizer, document["target"]), tokenizer
    head = PooledHead(tokenizer, form, family, Pooling(**own["pooling"]), own["reading"], own["method"])
    head.origin = own["origin"]
    return head, tokenizer


def read_head_file(folder: Path) -> dict[str, Any]:
    """Return what `write_head_file` wrote.

    Raises:
        UnknownModel: no `HEAD_FILE`.
    """
    try:
        document: dict[str, Any] = json.loads((folder / HEAD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownModel(
            f"{folder} holds no model that `outlay` trained ({HEAD_FILE} is missing); make one with `outlay finetune`"
        ) from error
    return document


def _load_saved_pooled(folder: Path, head: PooledHead) -> PooledModel:
    encoder = _encoder_in(folder, head.family, str(folder))
    model = PooledModel(encoder, head.form.n_outputs, head.pooling, head.reading)
    weights = load_head(folder)
    model.set_head(weights["weight"].numpy(), weights["bias"].numpy())
    if head.origin is not None:
        head.freeze(head.origin)
    return model


def origin_of(ref: str, base: str) -> str:
    """Return the identity of an encoder that is not trained: its form, and the fingerprint of its checkpoint."""
    form = ref if parse_ref(ref).needs_base else "whole"
    return f"{form} of {fingerprint(ref, base=base)}"


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout of the model the same probability, attention included; the config keeps the checkpoint's."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
            continue
        # Functional dropout: T5 and BART keep the probability as a number on the module.
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def n_logits(ref: str, base: str) -> int:
    """Return the rows of a model's vocabulary: at least its tokenizer's, often padded to a round number."""
    return int(read_config(resolve_folder(ref, base=base))["vocab_size"])


def same_tokenizer(ref_a: str, base_a: str, ref_b: str, base_b: str) -> bool:
    """Return whether every token has the same number in both models.

    The rows that pad a model's vocabulary beyond its tokenizer (152,064 against 151,936) belong to no token and do not count.
    """
    folder_a, folder_b = resolve_folder(ref_a, base=base_a), resolve_folder(ref_b, base=base_b)
    if folder_a.resolve() == folder_b.resolve():
        return True
    a, b = _tokenizer_in(folder_a, ref_a), _tokenizer_in(folder_b, ref_b)
    return bool(a.get_vocab() == b.get_vocab() and a.all_special_ids == b.all_special_ids)


def _tokenizer_in(folder: Path, ref: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise UnknownModel(
            f"the tokenizer of model {ref!r} does not load from {folder}: {first_line(error)[:_N_LETTERS]}"
        ) from error
    # Where its files are missing, transformers makes one that knows its special tokens only and reads every word as unknown.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UnknownModel(f"model {ref!r} has no vocabulary in {folder}; put its tokenizer files beside config.json")
    return tokenizer


def _auto_class(head: Head) -> tuple[Any, str]:
    """Return the class that loads a model for this head, and its purpose in words."""
    import transformers

    if head.family == "seq2seq":
        return transformers.AutoModelForSeq2SeqLM, "sequence to sequence"
    if head.family == "causal":
        return transformers.AutoModelForCausalLM, "causal language modelling"
    if head.target == "tags":
        return transformers.AutoModelForTokenClassification, "token classification"
    return transformers.AutoModelForSequenceClassification, "sequence classification"


def _from_pretrained(folder: Path, head: Head, ref: str) -> nn.Module:
    auto_class, purpose = _auto_class(head)
    outputs = _outputs(head)
    with load_errors(ref, f"for {purpose}"), quiet_transformers():
        model, report = auto_class.from_pretrained(
            folder,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **({} if outputs is None else output_names(outputs)),
        )
    own = f"{model.base_model_prefix}." if outputs is not None else ""
    misfits = sorted(key for key, *_ in report["mismatched_keys"] if key.startswith(own))
    if misfits:
        raise UnknownModel(
            f"model {ref!r}: {len(misfits)} tensors have other shapes than its config.json says, the first is {misfits[0]}; "
            "fetch the model again"
        )
    if outputs is not None:
        _renew_layer(model, len(outputs), report["missing_keys"])
    loaded: nn.Module = model
    return loaded


def _renew_layer(model: Any, n_outputs: int, already_new: set[str]) -> None:
    """Draw the classification layer anew where it came with the checkpoint, as `transformers` draws a missing one."""
    for name, module in model.named_modules():
        if name.startswith(f"{model.base_model_prefix}.") or f"{name}.weight" in already_new:
            continue
        if isinstance(module, nn.Linear) and module.out_features == n_outputs:
            nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _outputs(head: Head) -> tuple[str, ...] | None:
    """Return the names of the outputs of an encoder's classification layer."""
    if isinstance(head, TaggingHead):
        return head.tags
    return head.form.labels if isinstance(head, ClassificationHead) else None


def _record_own_output_layer(model: Any, folder: Path) -> None:
    """Record that T5 v1.1 has an output layer of its own: transformers 5 denies it, and readers take the embeddings."""
    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    path = folder / "config.json"
    config = read_config(folder)
    if outside is not None and config.get("tie_word_embeddings") and outside.weight is not inside.weight:
        path.write_text(json.dumps({**config, "tie_word_embeddings": False}, indent=2) + "\n", encoding="utf-8")


def _check_vocabulary(ref: str, n_rows: int, n_tokens: int) -> None:
    if n_tokens > n_rows:
        raise UnknownModel(
            f"model {ref!r} has {n_rows:,} rows of vocabulary, its tokenizer {n_tokens:,} tokens; fetch the model again"
        )


def _cut(model: nn.Module, n_keep: int, *, n_stacks: int | None = None) -> nn.Module:
    """Keep ``n_keep`` evenly spaced layers of each stack, first and last included; embeddings and head stay as they are.

    ``n_stacks``: those of the model, where its config does not say.
    """
    config: Any = model.config
    depths = {name: getattr(config, name) for name in _DEPTHS if isinstance(getattr(config, name, None), int)}
    stacks: list[tuple[nn.Module, str, nn.ModuleList]] = []
    inside: set[nn.Module] = set()
    for parent in model.modules():
        for name, child in parent.named_children():
            # The parts of a layer may lie in a list too, and as many of them as there are layers.
            if isinstance(child, nn.ModuleList) and len(child) in depths.values() and child not in inside:
                stacks.append((parent, name, child))
                inside.update(child.modules())
    n_stacks = n_stacks or (2 if config.is_encoder_decoder else 1)
    if len(stacks) != n_stacks:
        raise UnknownModel(
            f"cut:{n_keep} needs {n_stacks} stack(s) of layers to cut, but {config.model_type} has {len(stacks)}"
        )
    for parent, name, layers in stacks:
        kept = nn.ModuleList([layers[i] for i in cut_layers(len(layers), n_keep)])
        setattr(parent, name, kept)
        _renumber(kept)
    for name in depths:
        setattr(config, name, n_keep)
    return model


def _renumber(layers: nn.ModuleList) -> None:
    """Renumber decoder layers, which find their cache by their index."""
    for place, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, "layer_idx", place)  # noqa: B010


@contextlib.contextmanager
def load_errors(ref: str, purpose: str) -> Iterator[None]:
    """Raise `UnknownModel` in place of what libraries raise where a model does not load."""
    from safetensors import SafetensorError

    try:
        yield
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UnknownModel(f"model {ref!r} does not load {purpose}: {first_line(error)[:_N_LETTERS]}") from error
