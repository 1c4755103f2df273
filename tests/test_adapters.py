"""Adapters against the formulas of their papers, and against the model they were put into; weights in bf16; compiled blocks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from outlay.errors import UsageError
from outlay.models.loading import ModelSpec, check_checkpoint, load_saved, read_head
from outlay.models.peft import (
    add_adapters,
    cast,
    check,
    compiled,
    load_trained_state,
    merge_adapters,
    trained_state,
    without_compile,
)
from outlay.models.peft_methods import METHODS, PeftMethod, register
from outlay.settings import METHOD_SETTINGS, PeftSettings, Setting, TrainSettings, peft_methods
from outlay.spec import TaskSpec
from outlay.train.api import DevTexts, TrainContext, finetune, predict
from outlay.train.progress import TrainProgress
from tests.checkpoints import make_t5
from tests.toys import CountingMeter, sentences

SETTINGS = TrainSettings(epochs=1, batch_size=8, learning_rate=1e-3, seed=5).changed(
    {"lora_rank": 3, "lora_alpha": 6.0}
)
LORA, IA3 = SETTINGS.changed({"method": "lora"}), SETTINGS.changed({"method": "ia3"})
N_WORDS, N_LABELS = 31, 3


def t5(gated: bool = True, n_layers: int = 2) -> nn.Module:
    feed_forward = "gated-gelu" if gated else "relu"
    sizes = {"d_model": 10, "d_kv": 7, "d_ff": 17, "num_layers": n_layers, "num_heads": 2}
    config = T5Config(vocab_size=N_WORDS, feed_forward_proj=feed_forward, decoder_start_token_id=0, **sizes)
    return T5ForConditionalGeneration(config)


def bart() -> nn.Module:
    sizes = {"d_model": 10, "encoder_ffn_dim": 17, "decoder_ffn_dim": 19, "max_position_embeddings": 29}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=N_WORDS, decoder_start_token_id=2, forced_eos_token_id=None, **sizes, **layers)
    return BartForConditionalGeneration(config)


def bert(n_layers: int = 2) -> nn.Module:
    sizes = {"hidden_size": 10, "intermediate_size": 17, "num_hidden_layers": n_layers, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=N_WORDS, num_labels=N_LABELS, **sizes))


def distilbert() -> nn.Module:
    config = DistilBertConfig(vocab_size=N_WORDS, dim=10, hidden_dim=17, n_layers=1, n_heads=2, num_labels=N_LABELS)
    return DistilBertForTokenClassification(config)


def modernbert() -> nn.Module:
    sizes = {"hidden_size": 12, "intermediate_size": 17, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = dict.fromkeys((f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")), 0)
    return ModernBertForSequenceClassification(
        ModernBertConfig(vocab_size=N_WORDS, num_labels=N_LABELS, **sizes, **ids)
    )


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=N_WORDS, n_embd=10, n_layer=1, n_head=2, n_inner=17, n_positions=29))


def llama() -> nn.Module:
    sizes = {"hidden_size": 12, "intermediate_size": 17, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=N_WORDS, **sizes))


Make = Callable[[], nn.Module]
FAMILIES: list[Make] = [t5, bart, bert, distilbert, modernbert, gpt2, llama]


def drawn(make: Make, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().eval()


def logits_of(model: Any, n_rows: int = 3, n_tokens: int = 11) -> Tensor:
    ids = torch.randint(3, N_WORDS, (n_rows, n_tokens), generator=torch.Generator().manual_seed(1))
    more = {"decoder_input_ids": ids[:, :7]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        out: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits
    return out


def shaken(model: nn.Module) -> nn.Module:
    """Every trained parameter moved, as a training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def adapted(model: nn.Module) -> dict[str, Any]:
    """The layers that hold an adapter, by the name they had before."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}


WHERE = [
    (t5, "lora", {"q", "v"}, set()),
    (t5, "ia3", {"k", "v"}, {"wo"}),
    (bart, "lora", {"q_proj", "v_proj"}, set()),
    (bart, "ia3", {"k_proj", "v_proj"}, {"fc2"}),
    (bert, "lora", {"self.query", "self.value"}, set()),
    (bert, "ia3", {"self.key", "self.value"}, {"0.output.dense", "1.output.dense"}),
    (distilbert, "lora", {"q_lin", "v_lin"}, set()),
    (distilbert, "ia3", {"k_lin", "v_lin"}, {"ffn.lin2"}),
    (modernbert, "lora", {"attn.Wqkv"}, set()),
    (modernbert, "ia3", {"attn.Wqkv"}, {"mlp.Wo"}),
    (gpt2, "lora", {"attn.c_attn"}, set()),
    (gpt2, "ia3", {"attn.c_attn"}, {"mlp.c_proj"}),
    (llama, "ia3", {"k_proj", "v_proj"}, {"mlp.down_proj"}),
]


@pytest.mark.parametrize(("make", "peft", "attention", "inner"), WHERE)
def test_adapters_sit_where_their_papers_put_them(make: Make, peft: str, attention: set[str], inner: set[str]) -> None:
    plain = drawn(make)
    names = {name for name, _ in plain.named_modules()}
    wanted = {n for n in names if f".{n}".endswith(tuple(f".{end}" for end in attention | inner))}
    found = adapted(add_adapters(plain, SETTINGS.changed({"method": peft})))
    assert found.keys() == wanted
    for name, module in found.items():
        assert getattr(module, "is_feedforward", False) == name.endswith(tuple(inner) or ("no",))


@pytest.mark.parametrize("make", FAMILIES)
def test_lora_is_a_low_rank_update_beside_the_weights(make: Make) -> None:
    model = drawn(make)
    before, own = {n: t.clone() for n, t in model.state_dict().items()}, logits_of(model)
    assert add_adapters(model, LORA) is model
    assert torch.equal(logits_of(model), own)
    layers = adapted(shaken(model))
    moved, kind = logits_of(model), type(model)
    wanted = {}
    for name, layer in layers.items():
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        assert (a.shape[0], b.shape[1]) == (3, 3)
        update = 2.0 * (b @ a)
        wanted[f"{name}.weight"] = before[f"{name}.weight"] + (update.T if make is gpt2 else update)
    merged = merge_adapters(model, LORA)
    after = merged.state_dict()
    assert merged is model
    assert type(merged) is kind
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        if name in wanted:
            assert torch.allclose(tensor, wanted[name], atol=1e-6), name
    assert (moved - own).abs().max() > 0.01
    assert torch.allclose(logits_of(merged), moved, atol=1e-5)
    assert all(parameter.requires_grad for parameter in merged.parameters())


@pytest.mark.parametrize("make", FAMILIES)
def test_ia3_rescales_keys_values_and_inner_activations(make: Make) -> None:
    model = drawn(make).double()  # merging orders the same products otherwise: 1.01e-6 in float32 with torch 2.11
    before, own = {n: t.clone() for n, t in model.state_dict().items()}, logits_of(model)
    add_adapters(model, IA3)
    assert torch.equal(logits_of(model), own)
    layers = adapted(shaken(model))
    moved, scales = logits_of(model), {n: layer.ia3_l["default"].detach().flatten() for n, layer in layers.items()}
    inner = {name for name, layer in layers.items() if layer.is_feedforward}
    after = merge_adapters(model, IA3).state_dict()
    assert after.keys() == before.keys()
    for name, scale in scales.items():
        weight = before[f"{name}.weight"].T if make is gpt2 else before[f"{name}.weight"]
        wanted = weight * scale if name in inner else scale.unsqueeze(1) * weight
        assert torch.allclose(after[f"{name}.weight"], wanted.T if make is gpt2 else wanted, atol=1e-6), name
        if f"{name}.bias" in before:
            bias = before[f"{name}.bias"] * (1.0 if name in inner else scale)
            assert torch.allclose(after[f"{name}.bias"], bias, atol=1e-6), name
    assert (moved - own).abs().max() > 1e-4
    assert torch.allclose(logits_of(model), moved, atol=1e-12)


def test_ia3_of_a_gated_t5_is_what_its_authors_code_rescales() -> None:
    """T-Few rescales the output of ``wi_1``; what enters ``wo`` is its product with the gate, so that is the same."""
    model = drawn(t5)
    layer = model.get_submodule("encoder.block.0.layer.1.DenseReluDense")
    hidden = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(3))
    adapted(shaken(add_adapters(model, IA3)))
    scale = layer.wo.ia3_l["default"].flatten()
    gate = nn.functional.gelu(layer.wi_0(hidden), approximate="tanh")
    assert torch.allclose(layer(hidden), layer.wo.base_layer(gate * (layer.wi_1(hidden) * scale)), atol=1e-6)


@pytest.mark.parametrize("settings", [LORA, IA3])
@pytest.mark.parametrize("make", FAMILIES)
def test_only_adapters_and_a_classification_layer_are_trained(make: Make, settings: TrainSettings) -> None:
    model = drawn(make)
    own = {name for name, _ in model.named_parameters()}
    add_adapters(model, settings)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts = {name for name in trained if "lora_" not in name and "ia3_l" not in name}
    layers = {
        bert: {"classifier.weight", "classifier.bias"},
        distilbert: {"classifier.weight", "classifier.bias"},
        modernbert: {"head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"},
    }
    assert parts == layers.get(make, set())
    assert parts <= own
    assert trained - own == {n for n, _ in model.named_parameters() if n not in own and ".base_layer." not in n}
    assert set(trained_state(model)) == trained | ({"final_logits_bias"} if make is bart else set())
    full = drawn(make)
    assert trained_state(full).keys() == full.state_dict().keys()


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    def state(seed: int, drawn_before: int) -> dict[str, Tensor]:
        model = drawn(t5)
        torch.rand(drawn_before)
        return trained_state(add_adapters(model, LORA.changed({"seed": seed})))

    one, same, other = state(7, 0), state(7, 13), state(8, 0)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(
        *(each["encoder.block.0.layer.0.SelfAttention.q.lora_A.default.weight"] for each in (one, other))
    )


def test_the_trained_part_is_put_back_and_a_foreign_one_refused() -> None:
    model = add_adapters(drawn(bert), LORA)
    kept = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    own, moved = logits_of(model), logits_of(shaken(model))
    assert not torch.allclose(own, moved, atol=1e-3)
    load_trained_state(model, kept)
    assert torch.equal(logits_of(model), own)
    kept.pop("classifier.bias")
    with pytest.raises(ValueError, match=r"classifier\.bias"):
        load_trained_state(model, kept)


def test_a_model_with_adapters_writes_and_what_is_merged_writes_the_same() -> None:
    model: Any = shaken(add_adapters(drawn(t5), LORA))
    ids = torch.randint(3, N_WORDS, (5, 11), generator=torch.Generator().manual_seed(1))
    written = model.generate(input_ids=ids, max_new_tokens=7, do_sample=False)
    merged: Any = merge_adapters(model, LORA)
    assert torch.equal(merged.generate(input_ids=ids, max_new_tokens=7, do_sample=False), written)
    assert len({tuple(row) for row in written.tolist()}) > 1


def test_without_adapters_nothing_happens() -> None:
    model = drawn(t5)
    assert add_adapters(model, SETTINGS) is model
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert merge_adapters(model, SETTINGS) is model


class Odd(nn.Module):
    """Layers of names that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"model_type": "odd"})()
        self.left = nn.Linear(5, 7)


def test_what_cannot_be_had_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (LORA, IA3):
        with pytest.raises(UsageError, match=f"{settings.method} .*'odd'.*method full") as error:
            add_adapters(Odd(), settings)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"lora .*--fsdp"):
        add_adapters(drawn(t5), LORA, fsdp=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"ia3 .*pip install 'outlay\[peft\]'") as error:
        check(IA3)
    assert "\n" not in str(error.value)
    check(SETTINGS, fsdp=True)


# --- weights in bf16, compiled blocks --------------------------------------------------------------------------------


def test_bf16_weights_are_parameters_only_and_tied_ones_stay_one() -> None:
    bf16 = SETTINGS.changed({"precision": "bf16_weights", "optimizer": "adafactor"})
    model = cast(drawn(gpt2), bf16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.get_parameter("lm_head.weight") is model.get_parameter("transformer.wte.weight")
    rotary = cast(drawn(llama), bf16)
    assert {buffer.dtype for buffer in rotary.buffers()} == {torch.float32}
    assert torch.allclose(logits_of(rotary).float(), logits_of(drawn(llama)), atol=0.02)
    for name in ("bf16", "fp32"):
        assert {p.dtype for p in cast(drawn(llama), SETTINGS.changed({"precision": name})).parameters()} == {
            torch.float32
        }


class Counting:
    """A backend of `torch.compile` that runs what it is given, and counts how often it is given something."""

    def __init__(self) -> None:
        self.n_compiled = 0
        self.n_run = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.n_compiled += 1

        def run(*arguments: Any) -> Any:
            self.n_run += 1
            return graph(*arguments)

        return run


# torch 2.15 says so of this one release of Python.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_blocks_are_compiled_once_for_all_shapes_and_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    on = SETTINGS.changed({"compile": True})
    shapes = [(3, 11), (5, 7), (2, 13), (3, 17)]
    counts = []
    for n_layers in (1, 3):
        torch.compiler.reset()
        backend, make = Counting(), lambda n=n_layers: bert(n)
        plain, blocks = drawn(make), compiled(drawn(make), on, backend=backend)
        assert type(blocks) is type(plain)
        assert blocks.state_dict().keys() == plain.state_dict().keys()
        for shape in shapes:
            assert torch.allclose(logits_of(blocks, *shape), logits_of(plain, *shape), atol=1e-6)
        assert backend.n_run == n_layers * len(shapes)
        counts.append(backend.n_compiled)
        with without_compile(on):
            assert torch.allclose(logits_of(blocks), logits_of(plain), atol=1e-6)
        assert backend.n_run == n_layers * len(shapes)
    assert counts == [1, 1]
    off = Counting()
    logits_of(compiled(drawn(bert), SETTINGS, backend=off))
    assert off.n_compiled == 0


# --- through a whole training ----------------------------------------------------------------------------------------

LABELS = ("bad", "good")
FORM = TaskSpec("classification", LABELS, 32, 4, "mood: ")
TRAIN = TrainSettings(epochs=6, batch_size=16, learning_rate=0.01, dropout=0.0, precision="fp32", seed=3)


def rows_of(n: int, seed: int) -> tuple[list[tuple[str, ...]], list[str]]:
    found = sentences(n, seed)
    return [(text,) for text, _ in found], [LABELS[label] for _, label in found]


def share_right(said: list[str] | Any, wanted: list[str]) -> float:
    return 100 * sum(a == b for a, b in zip(said, wanted, strict=True)) / len(wanted)


def dev_texts() -> DevTexts:
    texts, golds = rows_of(41, seed=9)
    return DevTexts(texts, lambda said: share_right(said, golds))


@pytest.fixture(scope="module")
def t5_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [text for text, _ in sentences(101, 0)]
    return make_t5(tmp_path_factory.mktemp("t5"), [*words, *LABELS, "mood: "], n_layers=1)


def train(base: Path, settings: TrainSettings, out: Path, **watch: Any) -> TrainProgress:
    spec = ModelSpec(str(base), str(base), FORM, seed=1)
    return finetune(
        spec, *rows_of(211, seed=11), settings, dev=dev_texts(), out=out, context=TrainContext(CountingMeter(), **watch)
    )


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def encoder_base(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that has learnt something: its classification layer is left behind, its features are of use."""
    folder = tmp_path_factory.mktemp("encoder")
    train(checkpoint, TRAIN.changed({"epochs": 3}), folder)
    return folder


@pytest.mark.parametrize("peft", ["lora", "ia3"])
def test_an_encoder_with_adapters_learns_and_leaves_a_plain_model(
    encoder_base: Path, tmp_path: Path, peft: str
) -> None:
    progress = train(encoder_base, TRAIN.changed({"method": peft, "epochs": 3}), tmp_path)
    texts, golds = rows_of(101, seed=41)
    assert share_right(predict(tmp_path, texts, precision="fp32", meter=CountingMeter()).answers, golds) > 95
    dev = dev_texts()
    said = predict(tmp_path, dev.sources, precision="fp32", meter=CountingMeter()).answers
    assert dev.score(said) == progress.best_score
    assert progress.n_parameters == sum(p.numel() for p in load_saved(tmp_path)[0].parameters())
    before, after = (load_file(folder / "model.safetensors") for folder in (encoder_base, tmp_path))
    assert before.keys() == after.keys()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    kept = ("embeddings", "LayerNorm", *(("query", "intermediate") if peft == "ia3" else ("key", "output")))
    assert any("attention.self.value.weight" in name for name in changed)
    assert "classifier.weight" in changed
    assert not [name for name in changed if any(part in name for part in kept)]


# --- a method of one's own -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShiftSettings(PeftSettings):
    method: ClassVar[str] = "shift"

    scale: Annotated[float, Setting("Scale of the shift.", gt=0)] = 1.0
    layers: Annotated[str, Setting("End of the names of the layers that are shifted.")] = "output.dense"


class Shifted(nn.Module):
    """A layer whose output is moved by a learnt vector."""

    def __init__(self, layer: nn.Linear, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), scale
        self.shift = nn.Parameter(torch.zeros(layer.out_features))

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.layer(hidden) + self.scale * self.shift
        return out


class Shift(PeftMethod[ShiftSettings]):
    kind = ShiftSettings

    def check(self) -> None:
        if self.settings.scale > 100:
            raise UsageError(f"shift_scale is {self.settings.scale}; this machine takes at most 100")

    def targets(self, model: nn.Module) -> list[str]:
        found = [name for name, _ in model.named_modules() if name.endswith(self.settings.layers)]
        if not found:
            raise UsageError(f"no layer is called {self.settings.layers!r}; name others with shift_layers")
        return found

    def add(self, model: nn.Module) -> None:
        targets = self.targets(model)
        model.requires_grad_(False)
        for name in targets:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, Shifted(model.get_submodule(name), self.settings.scale))

    def merge(self, model: nn.Module) -> None:
        for name, module in list(model.named_modules()):
            if isinstance(module, Shifted):
                module.layer.bias.data += module.scale * module.shift.data
                parent, _, own = name.rpartition(".")
                setattr(model.get_submodule(parent), own, module.layer)


@pytest.fixture
def shift() -> Iterator[TrainSettings]:
    """Settings of a training by a method that the package does not know."""
    register(Shift)
    yield TRAIN.changed({"method": "shift", "shift_scale": 2.0, "epochs": 3})
    del METHODS["shift"], METHOD_SETTINGS["shift"]


def test_every_method_has_settings_and_a_name_of_its_own(shift: TrainSettings) -> None:
    assert set(METHODS) == set(peft_methods()) == {"lora", "ia3", "shift"}
    assert all(METHODS[name].kind is METHOD_SETTINGS[name] for name in METHODS)
    assert all(kind.method == name for name, kind in METHOD_SETTINGS.items())
    with pytest.raises(ValueError, match="shift"):
        register(Shift)


def test_a_method_of_ones_own_is_chosen_set_and_refused_like_the_others(shift: TrainSettings, checkpoint: Path) -> None:
    assert shift.adapters() == (ShiftSettings(scale=2.0),)
    own = {"shift_scale": 2.0, "shift_layers": "output.dense"}
    assert shift.to_json() == TRAIN.changed({"epochs": 3}).to_json() | {"peft": "shift"} | own
    assert TRAIN.changed({"shift_scale": 2.0}).to_json() == TRAIN.to_json()  # what is not trained is in no key
    for bad in ({"shift_scale": 0.0}, {"shift_scale": "much"}, {"shift_layers": 3}):
        (name,) = bad
        with pytest.raises(UsageError, match=f"{name} .*{bad[name]!r}"):
            shift.changed(bad)
    for refused, name in (({"shift_scale": 101.0}, "at most 100"), ({"shift_layers": "nowhere"}, "shift_layers")):
        head, tokenizer = read_head(str(checkpoint), str(checkpoint), FORM)
        with pytest.raises(UsageError, match=name):
            check_checkpoint(str(checkpoint), str(checkpoint), head, tokenizer, [shift.changed(refused)])
    with pytest.raises(UsageError, match=r"shift .*--fsdp"):
        check(shift, fsdp=True)


def test_a_method_of_ones_own_trains_and_leaves_a_plain_model(
    shift: TrainSettings, encoder_base: Path, tmp_path: Path
) -> None:
    progress = train(encoder_base, shift, tmp_path / "two")
    texts, golds = rows_of(101, seed=41)
    assert share_right(predict(tmp_path / "two", texts, precision="fp32", meter=CountingMeter()).answers, golds) > 95
    assert progress.n_parameters == sum(p.numel() for p in load_saved(tmp_path / "two")[0].parameters())
    before, after = (load_file(folder / "model.safetensors") for folder in (encoder_base, tmp_path / "two"))
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    biases = {name for name in after if name.endswith("output.dense.bias")}
    assert moved == biases | {"classifier.weight", "classifier.bias"}
    assert len(biases) == 8
    train(encoder_base, shift.changed({"shift_scale": 0.5}), tmp_path / "half")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert not any(torch.equal(half[name], after[name]) for name in biases)


@pytest.mark.parametrize("precision", ["fp32", "bf16_weights"])
def test_a_killed_training_with_adapters_goes_on_with_the_same_bits(
    t5_base: Path, tmp_path: Path, precision: str
) -> None:
    settings = TRAIN.changed({"method": "lora", "epochs": 2, "optimizer": "adafactor", "precision": precision})
    train(t5_base, settings, tmp_path / "whole")

    def kill(progress: TrainProgress, n_steps: int) -> None:
        if progress.step == 17:
            raise Killed

    with pytest.raises(Killed):
        train(t5_base, settings, tmp_path / "killed", folder=tmp_path, save_steps=16, on_progress=kill)
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert all("lora_" in name for name in load_file(kept / "model.safetensors"))
    steps_taken: list[int] = []
    train(
        t5_base,
        settings,
        tmp_path / "killed",
        folder=tmp_path,
        on_progress=lambda progress, n_steps: steps_taken.append(progress.step),
    )
    assert steps_taken == list(range(17, 29))
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_adapters_learn_the_same_where_activations_are_computed_twice(t5_base: Path, tmp_path: Path) -> None:
    settings = TRAIN.changed({"method": "lora", "epochs": 1, "dropout": 0.1})
    once = train(t5_base, settings, tmp_path / "once")
    twice = train(t5_base, settings.changed({"gradient_checkpointing": True}), tmp_path / "twice")
    assert once.history[0]["loss"] == pytest.approx(twice.history[0]["loss"], rel=1e-5)
    states = [load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice")]
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-5) for name in states[0])


def test_bf16_weights_learn_what_bf16_autocast_learns(t5_base: Path, tmp_path: Path) -> None:
    scores = {}
    for precision in ("bf16", "bf16_weights"):
        out = tmp_path / precision
        train(t5_base, TRAIN.changed({"epochs": 4, "optimizer": "adafactor", "precision": precision}), out)
        dtypes = {tensor.dtype for tensor in load_file(out / "model.safetensors").values()}
        assert dtypes == {torch.bfloat16 if precision == "bf16_weights" else torch.float32}
        texts, golds = rows_of(101, seed=41)
        scores[precision] = share_right(predict(out, texts, precision="bf16", meter=CountingMeter()).answers, golds)
    assert min(scores.values()) > 97
    assert abs(scores["bf16"] - scores["bf16_weights"]) <= 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", ["t5", "bert"])
def test_a_compiled_training_learns_what_the_plain_one_learns(
    t5_base: Path, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    base = t5_base if name == "t5" else checkpoint
    settings = TRAIN.changed({"epochs": 2, "learning_rate": 3e-3})
    plain = train(base, settings, tmp_path / "plain")
    fast = train(base, settings.changed({"compile": True}), tmp_path / "fast")
    losses = [[entry["loss"] for entry in each.history] for each in (plain, fast)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    plain_names, fast_names = (load_file(tmp_path / name / "model.safetensors").keys() for name in ("plain", "fast"))
    assert plain_names == fast_names
