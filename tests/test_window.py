"""How many tokens a model reads: held against the models themselves, one token below the limit and one above."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import UsageError
from outlay.models.shape import FAMILY_OF
from outlay.models.window import Window, check_handover, n_positions, window_in, window_of
from outlay.spec import TaskSpec

N = 12
"""Positions of the little models."""
TABLES = (
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "deberta-v2"),
    *("bart", "mbart", "plbart", "pegasus", "blenderbot", "blenderbot-small", "gpt2", "gpt_neo"),
)
"""Types that fail behind the last row of their table."""
ENDLESS = ("t5", "mt5", "umt5", "longt5", "bloom")
FORM = TaskSpec("classification", ("no", "yes"), 1000, 4)


def little(kind: str, n: int = N) -> Any:
    """A config of a type with ``n`` rows of positions, as small as the type allows."""
    from transformers import CONFIG_MAPPING

    sizes: dict[str, Any] = {
        **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim"), 8),
        **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 1),
        **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
        **dict.fromkeys(("intermediate_size", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 8),
        **dict.fromkeys(("max_position_embeddings", "n_positions"), n),
        **{"vocab_size": 32, "num_layers": 1, "attention_types": [[["global"], 1]], "embed_dim": 8},
    }
    known = CONFIG_MAPPING[kind]().to_dict()
    if kind == "gpt_neo":
        known |= {"num_heads": 2, "num_layers": 1}
    return CONFIG_MAPPING[kind](**{name: value for name, value in sizes.items() if name in known or name == "d_model"})


def reads(config: Any, n_source: int, n_target: int = 1) -> bool:
    """Whether a model of this config takes so many tokens."""
    import transformers

    family = FAMILY_OF[config.model_type]
    auto = {
        "encoder": transformers.AutoModel,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "causal": transformers.AutoModelForCausalLM,
    }[family]
    model = auto.from_config(config).eval()
    ids = torch.full((1, n_source), 5)
    more = {"decoder_input_ids": torch.full((1, n_target), 5)} if family == "seq2seq" else {}
    try:
        with torch.no_grad():
            model(input_ids=ids, **more)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("kind", TABLES)
def test_a_model_reads_up_to_its_window_and_not_a_token_more(kind: str) -> None:
    config = little(kind)
    window = window_in(config.to_dict(), FAMILY_OF[kind])
    assert window.source is not None
    assert window.source <= N
    assert reads(config, window.source)
    assert not reads(config, window.source + 1)
    if window.target is not None:
        assert reads(config, 2, window.target)
        assert not reads(config, 2, window.target + 1)


@pytest.mark.parametrize("kind", ENDLESS)
def test_relative_positions_have_no_end(kind: str) -> None:
    config = little(kind)
    assert window_in(config.to_dict(), FAMILY_OF[kind]).source is None
    assert reads(config, 40, 40)


def test_deberta_v3_has_no_table() -> None:
    config = little("deberta-v2")
    config.update({"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]})
    assert n_positions(config.to_dict()) is None
    assert reads(config, 3 * N)


@pytest.mark.parametrize("kind", sorted(set(FAMILY_OF) - set(ENDLESS) - {"led"}))
def test_a_config_that_leaves_its_positions_out_has_those_of_its_class(kind: str) -> None:
    from transformers import CONFIG_MAPPING

    whole = CONFIG_MAPPING[kind]().to_dict()
    bare = {name: value for name, value in whole.items() if name not in ("max_position_embeddings", "n_positions")}
    found = n_positions(bare)
    assert found == n_positions(whole) or (found is None and kind not in TABLES)


def test_led_says_both_ends() -> None:
    config = {"model_type": "led", "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 8}
    assert window_in(config, "seq2seq") == Window(64, 8)
    assert n_positions(config) == 64


def test_roberta_reads_two_less_than_its_table_has() -> None:
    assert n_positions({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}) == 512
    assert n_positions({"model_type": "roberta", "max_position_embeddings": 514}) == 512
    assert n_positions({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 0}) == 512
    assert n_positions({"model_type": "bert", "max_position_embeddings": 512}) == 512


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200), st.booleans())
def test_what_is_fitted_is_within_both(n: int, source: int, target: int, is_shared: bool) -> None:
    form = TaskSpec("classification", ("a", "b"), source, target)
    window = Window(n, None, is_shared=is_shared)
    if is_shared and target > n:
        with pytest.raises(UsageError, match=rf"max_target_tokens .*\b{target}\b.*\b{n}\b"):
            window.fit(form)
        return
    fitted = window.fit(form)
    assert 1 <= fitted.max_source_tokens <= source
    assert fitted.max_target_tokens == target
    n_read = fitted.max_source_tokens + (target - 1 if is_shared else 0)
    assert n_read <= n
    assert fitted.max_source_tokens == source or n_read == n
    assert bool(window.lines(form, "m")) == (fitted != form)
    assert window.fit(fitted) == fitted


def test_the_line_names_both_limits() -> None:
    [line] = Window(512).lines(FORM, "./bert")
    assert re.search(r"max_source_tokens .*\b1,000\b.*'\./bert'.*\b512 tokens", line)
    [line] = Window(64, is_shared=True).lines(FORM, "g")
    assert re.search(r"\b64 positions .*\b61\Z", line)
    [line] = Window(None, 2).lines(FORM, "b")
    assert re.search(r"max_target_tokens .*\b4\b.*'b'.*\b2 tokens", line)


def test_targets_that_a_student_has_no_positions_for_are_refused() -> None:
    long, short = TaskSpec("entities", ("X",), 512, 64), TaskSpec("entities", ("X",), 128, 32)
    with pytest.raises(UsageError, match=r"\b512\b.*max_source_tokens 128\b"):
        check_handover("tags", long, short, "s")
    with pytest.raises(UsageError, match=r"\b64\b.*max_target_tokens 32\b"):
        check_handover("tokens", long, short, "s")
    for kind in ("classes", "text"):
        check_handover(kind, long, short, "s")  # type: ignore[arg-type]
    check_handover("tokens", short, long, "s")


def test_a_cut_model_has_its_bases_window_and_a_tiny_one_its_own(tmp_path: Path, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert window_of(str(checkpoint)).source == config["max_position_embeddings"]
    assert window_of("cut:1", base=str(checkpoint)) == window_of(str(checkpoint))
    assert window_of("tiny:1x32", base=str(checkpoint)) == Window(512)
