"""Models with random weights at a named size, and tokenizers trained on the texts they are to read.

They are untrained, for trying the mechanics without a hub, for measuring speed at a true shape, and for ``tiny:LxH``.

The tokenizer works as T5's does (Raffel et al. 2020): words begin with ``▁``, ``</s>`` ends a text, pieces are learnt from texts.
They come from byte-pair encoding (Sennrich et al. 2016), since the Unigram trainer of `tokenizers` gives other scores in every
process. What no piece spells is spelt in bytes, so a text comes back as it was, but for a leading space.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outlay.errors import DataError, DiskFull, UnknownModel, UsageError
from outlay.hardware.quota import usable_memory
from outlay.models.reference import SINGLE_WEIGHTS, ModelRef
from outlay.models.shape import read_config, shape_of_size
from outlay.models.sizes import Size, tiny_size
from outlay.spec import Family
from outlay.storage.files import writing

COVERAGE = 0.9995
"""Share of all characters that get a token of their own, the commonest first, as in SentencePiece; others are spelt in bytes."""
MAX_LENGTH = 512
"""Tokens that a tokenizer of a model without positions lets through."""

_WRITER_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_ENCODER_SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_MAX_SHARD_SIZE = "4GB"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training data of a tokenizer: ``texts``, and ``answers``, words that should be one token each (labels)."""

    texts: Sequence[str]
    answers: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """A checkpoint folder that `build_checkpoint` made; ``n_tokens`` of its tokenizer, at most the model's rows of vocabulary."""

    folder: Path
    n_parameters: int
    n_tokens: int


def build_checkpoint(size: Size, corpus: Corpus, folder: Path, *, seed: int = 0, bf16: bool = False) -> Built:
    """Write a checkpoint of random weights and its own tokenizer; equal arguments give equal bytes.

    The model has ``size.vocab_size`` rows of vocabulary, also where the texts hold fewer pieces. ``bf16``: weights in bfloat16
    instead of float32.

    Raises:
        UsageError: ``folder`` is in use, the memory is too small, or the vocabulary for the characters of the texts.
        DataError: no text.
        DiskFull: no room for the weights.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is in use; name a folder that is not there yet")
    dtype = torch.bfloat16 if bf16 else torch.float32
    _check_room(size, folder, dtype)
    tokenizer = learn_tokenizer(corpus, size)
    with writing(folder):
        half_made = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
        half_made.mkdir(parents=True)
    try:
        model = new_model(size, seed=seed, dtype=dtype)
        with quiet_transformers():
            with writing(folder / "tokenizer.json"):
                tokenizer.save_pretrained(half_made)
            with writing(folder / SINGLE_WEIGHTS):
                model.save_pretrained(half_made, max_shard_size=_MAX_SHARD_SIZE)  # type: ignore[operator]
        half_made.replace(folder)
    finally:
        shutil.rmtree(half_made, ignore_errors=True)
    return Built(folder, sum(p.numel() for p in model.parameters()), len(tokenizer))


def new_model(size: Size, *, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a model of this size with random weights, on the CPU: a function of ``size``, ``seed`` and ``dtype``.

    Token ids are those of `learn_tokenizer`.
    """
    import transformers

    torch.manual_seed(seed)
    with _default_dtype(dtype):
        if size.type == "t5":
            return _new_t5(size, pad=0, end=1, start=0)
        if size.type == "gpt2":
            config = transformers.GPT2Config(
                **_common(size, "n_embd", "n_layer", "n_head", "n_inner"),
                n_positions=size.n_positions,
                bos_token_id=1,
                eos_token_id=1,
                pad_token_id=0,
            )
            return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]
        if size.type == "distilbert":
            names = ("dim", "n_layers", "n_heads", "hidden_dim")
            config = transformers.DistilBertConfig(
                **_common(size, *names), max_position_embeddings=size.n_positions, pad_token_id=0
            )
            return transformers.DistilBertModel(config)  # type: ignore[no-any-return]
        return transformers.BertModel(_bert_config(size, {}))  # type: ignore[no-any-return]


def tiny_model(
    folder: Path, ref: ModelRef, family: Family, outputs: Sequence[str] | None, *, per_token: bool = False
) -> nn.Module:
    """Return the model that ``tiny:LxH`` means beside the base in ``folder``, drawn from torch's own generator.

    An encoder gets a classification layer over ``outputs``, for each row or (``per_token``) for each token. A seq2seq model
    begins and ends its answers with the base's tokens.

    Raises:
        UnknownModel: a causal base, or one whose config lacks what is needed.
    """
    import transformers

    config = read_config(folder)
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise UnknownModel(f"model {ref.text!r}: no vocab_size in {folder / 'config.json'}; name another base")
    size = tiny_size(family, ref.n_layers, ref.hidden_size, vocab_size)
    if family == "seq2seq":
        # Configs leave out what is usual in their family; T5's is 0 to pad and to start, 1 to end.
        def token(name: str, usual: int) -> int:
            return config[name] if isinstance(config.get(name), int) else usual

        pad = token("pad_token_id", 0)
        return _new_t5(size, pad=pad, end=token("eos_token_id", 1), start=token("decoder_start_token_id", pad))
    kind = transformers.BertForTokenClassification if per_token else transformers.BertForSequenceClassification
    model: nn.Module = kind(_bert_config(size, output_names(outputs or ())))
    return model


def output_names(names: Sequence[str]) -> dict[str, Any]:
    """Return the entries of a config that name the outputs of a classification layer."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def learn_tokenizer(corpus: Corpus, size: Size) -> Any:
    """Return a `PreTrainedTokenizerFast` of at most ``size.vocab_size`` tokens that spells every text.

    Ids of models that write: ``<pad>`` 0, ``</s>`` 1, ``<unk>`` 2; of encoders ``[PAD]`` 0, ``[UNK]``, ``[CLS]``, ``[SEP]``,
    ``[MASK]``; then 256 bytes, then pieces. Sequence-to-sequence and causal sizes of one corpus share a vocabulary.

    Raises:
        DataError: no text.
        UsageError: fewer tokens than special tokens, bytes and characters.
    """
    from transformers import PreTrainedTokenizerFast

    special = _ENCODER_SPECIAL if size.family == "encoder" else _WRITER_SPECIAL
    tokenizer = _learn_pieces(corpus, tuple(special.values()), size.vocab_size)
    _add_special_tokens(tokenizer, size.family)
    begin = {"bos_token": "</s>"} if size.family == "causal" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=size.n_positions or MAX_LENGTH, **special, **begin
    )


def _learn_pieces(corpus: Corpus, special: tuple[str, ...], vocab_size: int) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = _alphabet(corpus)
    n_least = len(special) + len(_BYTES) + len(alphabet)
    if vocab_size < n_least:
        raise UsageError(
            f"a vocabulary of {vocab_size:,} does not hold the characters of these texts; take {n_least:,} or more"
        )
    words = pre_tokenizers.Metaspace()
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = words
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) - len(_BYTES),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(_lines(corpus), trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    # A text may hold "</s>" or "<0x0A>" in letters, which must not become a piece.
    pieces = [piece for piece in pieces if piece not in {*special, *_BYTES}]
    known = set(pieces)
    merges = [(a, b) for a, b in learnt["merges"] if {a, b, a + b} <= known]
    vocabulary = {token: i for i, token in enumerate([*special, *_BYTES, *pieces])}
    unknown = next(token for token in special if "unk" in token.lower())
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, byte_fallback=True))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _lines(corpus: Corpus) -> Iterator[str]:
    """Yield every text, and behind it one of the answers in turn, so that each becomes a piece."""
    answers = cycle(corpus.answers)
    for text in corpus.texts:
        yield text
        if corpus.answers:
            yield next(answers)


def _alphabet(corpus: Corpus) -> list[str]:
    """Return the characters that get a piece: the commonest up to `COVERAGE`, and every one of the answers."""
    counts = Counter(character for text in corpus.texts for character in text.replace(" ", ""))
    n_wanted = COVERAGE * counts.total()
    if not n_wanted:
        raise DataError("no text to learn a tokenizer from; name a file or a task with texts")
    kept, n_kept = {"▁", *"".join(corpus.answers)} - {" "}, 0
    for character, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if n_kept >= n_wanted:
            break
        kept.add(character)
        n_kept += n
    return sorted(kept)


def _add_special_tokens(tokenizer: Any, family: Family) -> None:
    """Add the special tokens around a text; a causal model's text is open at its end."""
    from tokenizers import processors

    if family == "causal":
        return
    single, pair, special = {
        "seq2seq": ("$A </s>", "$A </s> $B </s>", ("</s>",)),
        "encoder": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]")),
    }[family]
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def _new_t5(size: Size, *, pad: int, end: int, start: int) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        **_common(size, "d_model", "num_layers", "num_heads", "d_ff"),
        d_kv=size.head_size,
        num_decoder_layers=size.n_decoder_layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        pad_token_id=pad,
        eos_token_id=end,
        decoder_start_token_id=start,
    )
    model: Any = T5ForConditionalGeneration(config)
    # transformers 5 ties T5's head whatever its config says, but leaves one alone that a checkpoint brings: T5 v1.1 has its own.
    # It is drawn so that the loss begins near log(vocabulary).
    table = torch.empty(size.vocab_size, size.hidden_size)
    model.lm_head.weight = nn.Parameter(nn.init.normal_(table, std=size.hidden_size**-0.5))
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys.pop("lm_head.weight", None)
    return model  # type: ignore[no-any-return]


def _bert_config(size: Size, layer: Mapping[str, Any]) -> Any:
    from transformers import BertConfig

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return BertConfig(**_common(size, *names), max_position_embeddings=size.n_positions, **layer)


def _common(size: Size, width: str, n_layers: str, n_heads: str, d_ff: str) -> dict[str, int]:
    """Return the entries that every config has, under the names it uses."""
    return {
        "vocab_size": size.vocab_size,
        width: size.hidden_size,
        n_layers: size.n_layers,
        n_heads: size.n_heads,
        d_ff: size.d_ff,
    }


def _check_room(size: Size, folder: Path, dtype: torch.dtype) -> None:
    n_bytes = shape_of_size(size).n_total_parameters(0) * dtype.itemsize
    n_memory = usable_memory()
    needs = f"{size.name} in {str(dtype).removeprefix('torch.')} has {n_bytes / 1e9:.1f} GB"
    if n_memory is not None and n_bytes > n_memory:
        raise UsageError(
            f"{needs} of weights, this machine {n_memory / 1e9:.1f} GB of memory; take a smaller size or --bf16"
        )
    there = next(parent for parent in folder.resolve().parents if parent.exists())
    if n_bytes > (n_free := shutil.disk_usage(there).free):
        raise DiskFull(
            f"{needs} of weights, the disk of {there} {n_free / 1e9:.1f} GB left; free some or choose another folder"
        )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the bars of loading and saving, and the report on a classification layer, which is always new."""
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
