"""Small checkpoints made on the spot, each with its own vocabulary: BERT, T5 v1.1, BART, GPT-2 of a few thousand parameters."""

from __future__ import annotations

import math
import string
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_checkpoint(
    folder: Path, texts: Sequence[str], *, n_layers: int = 4, hidden_size: int = 32, seed: int = 0
) -> Path:
    """Write config, safetensors weights and a word-level tokenizer learnt from ``texts``; returns ``folder``."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, vocab_size=2000))
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )
    logging.disable_progress_bar()
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def kept_checkpoint(folder: Path) -> Path:
    """Unpack an encoder of two layers that was made once, for run ids that are pinned: what `make_checkpoint` writes differs with
    the version of transformers, and a model's bytes are part of a request."""
    with zipfile.ZipFile(Path(__file__).parent / "fixtures" / "encoder.zip") as archive:
        archive.extractall(folder)
    return folder


def make_t5(
    folder: Path, texts: Sequence[str], *, n_layers: int = 2, hidden_size: int = 32, seed: int = 0, vocab_extra: int = 0
) -> Path:
    """A T5 v1.1 (gated GELU, head of its own) with ``n_layers`` in each stack; returns ``folder``.

    ``vocab_extra``: rows of the vocabulary that no token has, as padded checkpoints have them.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = spelling_tokenizer(texts, ("<pad>", "</s>", "<unk>"))
    _save_tokenizer(folder, tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size() + vocab_extra,
        d_model=hidden_size,
        d_kv=16,
        d_ff=2 * hidden_size,
        num_layers=n_layers,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = T5ForConditionalGeneration(config)
    # transformers 5 makes every T5 with a tied head, but reads one that is in a checkpoint.
    model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, hidden_size) * hidden_size**-0.5)
    model.config.tie_word_embeddings = False
    return _save_model(model, folder)


def make_bart(
    folder: Path, texts: Sequence[str], *, n_layers: int = 2, hidden_size: int = 32, seed: int = 0, vocab_extra: int = 0
) -> Path:
    """A BART with ``n_layers`` in each stack, 128 positions and the pieces of `make_t5`; returns ``folder``."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = spelling_tokenizer(texts, ("<s>", "<pad>", "</s>", "<unk>"))
    _save_tokenizer(folder, tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=tokenizer.get_vocab_size() + vocab_extra,
        d_model=hidden_size,
        encoder_layers=n_layers,
        decoder_layers=n_layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * hidden_size,
        decoder_ffn_dim=2 * hidden_size,
        max_position_embeddings=128,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    return _save_model(BartForConditionalGeneration(config), folder)


def make_gpt2(
    folder: Path, texts: Sequence[str], *, n_layers: int = 2, hidden_size: int = 32, seed: int = 0, vocab_extra: int = 0
) -> Path:
    """A GPT-2 of 256 positions with a byte-level tokenizer learnt from ``texts``; returns ``folder``.

    ``<|endoftext|>`` (id 0) begins and ends a text, ``<|pad|>`` (id 1) fills up.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    _save_tokenizer(folder, tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>")
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size() + vocab_extra,
        n_embd=hidden_size,
        n_layer=n_layers,
        n_head=2,
        n_inner=2 * hidden_size,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return _save_model(GPT2LMHeadModel(config), folder)


def spelling_tokenizer(texts: Sequence[str], special: Sequence[str]) -> Any:
    """A Unigram tokenizer as T5's: ``▁`` for a space, ``</s>`` at the end.

    Texts come back as they were, but for a leading space. Its pieces are the words of ``texts``, and every character of theirs
    and of ASCII, so that it spells what it has not seen.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    words = Counter(f"▁{word}" for text in texts for word in text.split(" ") if word)
    characters = sorted({*string.printable, *"".join(texts), "▁"} - set(words) - {" "})
    n_words = sum(words.values())
    pieces = [(word, math.log(n / n_words)) for word, n in sorted(words.items(), key=lambda item: (-item[1], item[0]))]
    lowest = min((score for _, score in pieces), default=0.0)
    vocabulary = [*((token, 0.0) for token in special), *pieces, *((c, lowest - 10.0) for c in characters)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=list(special).index("<unk>"), byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", list(special).index("</s>"))]
    )
    return tokenizer


def _save_tokenizer(folder: Path, tokenizer: Any, **special: str) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special).save_pretrained(folder)


def _save_model(model: Any, folder: Path) -> Path:
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder
