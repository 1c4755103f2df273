"""What a reference becomes: layers, embeddings and head against the checkpoint's own tensors, and files on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from outlay.errors import UnknownModel, UsageError
from outlay.models.loading import (
    HEAD_FILE,
    ModelSpec,
    head_for,
    load_model,
    load_saved,
    load_tokenizer,
    n_logits,
    same_tokenizer,
    save_model,
    set_dropout,
)
from outlay.models.reference import cut_layers
from outlay.settings import TeachSettings
from outlay.spec import TaskSpec
from tests.checkpoints import make_bart, make_gpt2, make_t5

LABELS = ("no", "yes", "maybe")
FORM = TaskSpec("classification", LABELS, 32, 8)
N_LAYERS, HIDDEN = 4, 32
"""Of the `checkpoint` fixture."""


@pytest.fixture(scope="module")
def pretrained(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "model.safetensors")


def spec(ref: str, base: Path, *, labels: tuple[str, ...] = LABELS, seed: int = 0) -> ModelSpec:
    return ModelSpec(ref, str(base), replace(FORM, labels=labels), seed)


def load_classifier(one: ModelSpec) -> nn.Module:
    return load_model(one)[0]


def save_classifier(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    labels = tuple(model.config.label2id)
    save_model(model, head_for("bert", "encoder", replace(FORM, labels=labels), tokenizer), tokenizer, folder)


def logits_of(model: nn.Module, checkpoint: Path, texts: list[str]) -> Tensor:
    batch = load_tokenizer(str(checkpoint), str(checkpoint))(texts, padding=True, return_tensors="pt")
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


def layer_tensors(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize("n_keep", [1, 2, 3, 4])
def test_cut_keeps_exactly_the_layers_it_says(checkpoint: Path, pretrained: dict[str, Tensor], n_keep: int) -> None:
    model = load_classifier(spec(f"cut:{n_keep}", checkpoint))
    state = model.state_dict()
    assert model.config.num_hidden_layers == n_keep
    assert len({name.split(".")[3] for name in state if ".layer." in name}) == n_keep
    for new, old in enumerate(cut_layers(N_LAYERS, n_keep)):
        ours = layer_tensors(state, f"bert.encoder.layer.{new}.")
        theirs = layer_tensors(pretrained, f"encoder.layer.{old}.")
        assert ours.keys() == theirs.keys()
        assert len(theirs) == 16
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    embeddings = layer_tensors(pretrained, "embeddings.")
    assert len(embeddings) == 5
    assert all(torch.equal(state[f"bert.embeddings.{name}"], tensor) for name, tensor in embeddings.items())


def test_cut_to_all_layers_is_the_checkpoint_itself(checkpoint: Path, texts: list[str]) -> None:
    whole = load_classifier(spec(str(checkpoint), checkpoint))
    cut = load_classifier(spec(f"cut:{N_LAYERS}", checkpoint))
    assert torch.equal(logits_of(whole, checkpoint, texts[:7]), logits_of(cut, checkpoint, texts[:7]))
    fewer = load_classifier(spec("cut:2", checkpoint))
    assert not torch.equal(logits_of(fewer, checkpoint, texts[:7]), logits_of(cut, checkpoint, texts[:7]))


@pytest.mark.parametrize("ref", ["checkpoint", "cut:2"])
def test_the_head_is_new_and_seeded(checkpoint: Path, pretrained: dict[str, Tensor], ref: str) -> None:
    ref = str(checkpoint) if ref == "checkpoint" else ref
    heads = [load_classifier(spec(ref, checkpoint, seed=seed)).classifier for seed in (0, 0, 1)]
    assert not any("classifier" in name for name in pretrained)
    assert heads[0].weight.shape == (len(LABELS), HIDDEN)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    assert 0.01 < float(heads[0].weight.detach().std()) < 0.04
    assert not heads[0].bias.any()


def test_the_head_does_not_depend_on_what_was_drawn_before(checkpoint: Path) -> None:
    torch.manual_seed(5)
    first = load_classifier(spec(str(checkpoint), checkpoint))
    torch.rand(7)
    assert torch.equal(first.classifier.weight, load_classifier(spec(str(checkpoint), checkpoint)).classifier.weight)


@pytest.mark.parametrize("labels", [("maybe", "no", "yes"), ("no", "yes")])
def test_a_checkpoints_own_classes_are_never_taken_over(
    checkpoint: Path, tmp_path: Path, labels: tuple[str, ...]
) -> None:
    """Its classes may be of another number, or the same in another order: kept weights would answer for other labels."""
    theirs = load_classifier(spec(str(checkpoint), checkpoint))
    with torch.no_grad():
        theirs.classifier.weight.fill_(3.0)
        theirs.classifier.bias.fill_(7.0)
        theirs.bert.embeddings.word_embeddings.weight.mul_(1.5)
    save_classifier(theirs, load_tokenizer(str(checkpoint), str(checkpoint)), tmp_path / "theirs")
    ours = load_classifier(spec(str(tmp_path / "theirs"), checkpoint, labels=labels))
    assert ours.config.id2label == dict(enumerate(labels))
    assert ours.classifier.weight.shape == (len(labels), HIDDEN)
    assert float(ours.classifier.weight.detach().abs().max()) < 0.2
    assert not ours.classifier.bias.any()
    body = theirs.bert.state_dict()
    assert all(torch.equal(tensor, body[name]) for name, tensor in ours.bert.state_dict().items())
    other = load_classifier(spec(str(tmp_path / "theirs"), checkpoint, labels=labels, seed=1))
    assert not torch.equal(ours.classifier.weight, other.classifier.weight)


def test_tiny_has_the_layers_and_width_asked_for(checkpoint: Path, pretrained: dict[str, Tensor]) -> None:
    model = load_classifier(spec("tiny:3x64", checkpoint))
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 64, 2)
    words = pretrained["embeddings.word_embeddings.weight"]
    assert model.bert.embeddings.word_embeddings.weight.shape == (words.shape[0], 64)
    assert config.id2label == dict(enumerate(LABELS))
    same, other = (load_classifier(spec("tiny:3x64", checkpoint, seed=seed)).state_dict() for seed in (0, 1))
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(same["classifier.weight"], other["classifier.weight"])
    assert not torch.equal(
        same["bert.encoder.layer.0.output.dense.weight"], other["bert.encoder.layer.0.output.dense.weight"]
    )


@pytest.mark.parametrize("ref", ["checkpoint", "cut:2", "tiny:1x32"])
def test_save_and_load_round_trip(checkpoint: Path, tmp_path: Path, texts: list[str], ref: str) -> None:
    model = load_classifier(spec(str(checkpoint) if ref == "checkpoint" else ref, checkpoint))
    before = logits_of(model, checkpoint, texts[:11])
    tokenizer = load_tokenizer(ref if ref != "checkpoint" else str(checkpoint), str(checkpoint))
    save_classifier(model, tokenizer, tmp_path / "model")
    back, head, its_tokenizer = load_saved(tmp_path / "model")
    assert (head.family, head.target, head.form) == ("encoder", "classes", FORM)
    assert torch.equal(logits_of(back, checkpoint, texts[:11]), before)
    assert back.config.id2label == dict(enumerate(LABELS))
    assert back.config.label2id == {label: i for i, label in enumerate(LABELS)}
    assert its_tokenizer(texts[:11])["input_ids"] == tokenizer(texts[:11])["input_ids"]
    assert {path.suffix for path in (tmp_path / "model").rglob("*")} <= {".safetensors", ".json", ".txt", ".jinja"}
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_equal_models_are_written_as_equal_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = load_classifier(spec("cut:2", checkpoint))
        save_classifier(model, load_tokenizer("cut:2", str(checkpoint)), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_set_dropout_reaches_every_layer_and_leaves_the_config(checkpoint: Path, texts: list[str]) -> None:
    model = load_classifier(spec(str(checkpoint), checkpoint))
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert len(dropouts) == 1 + 3 * N_LAYERS + 1
    config = model.config.to_dict()
    set_dropout(model, 0.0)
    assert {module.p for module in dropouts} == {0.0}
    evaluated = logits_of(model, checkpoint, texts[:5])
    model.train()
    batch = load_tokenizer(str(checkpoint), str(checkpoint))(texts[:5], padding=True, return_tensors="pt")
    assert torch.equal(model(**batch).logits, evaluated)
    set_dropout(model, 0.3)
    assert {module.p for module in dropouts} == {0.3}
    assert not torch.equal(model(**batch).logits, evaluated)
    assert model.config.to_dict() == config


def test_set_dropout_reaches_a_probability_kept_as_a_number() -> None:
    class Attention(nn.Module):
        attention_dropout = 0.1

    model = nn.Sequential(Attention(), nn.Dropout(0.2))
    set_dropout(model, 0.5)
    assert (model[0].attention_dropout, model[1].p) == (0.5, 0.5)
    assert Attention.attention_dropout == 0.1


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def halve_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "pickled weights": pickle_only,
    "half the weights": halve_weights,
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a broken config": lambda folder: (folder / "config.json").write_text("{"),
    "an unknown architecture": lambda folder: edit_config(folder, model_type="nonsense"),
    "another width": lambda folder: edit_config(folder, hidden_size=2 * HIDDEN),
}


def assert_one_line(error: pytest.ExceptionInfo[UnknownModel], ref: str) -> None:
    assert len(str(error.value).splitlines()) == 1
    assert ref in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_clear_line(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    load_classifier(spec(str(folder), folder))
    DAMAGES[damage](folder)
    with pytest.raises(UnknownModel) as error:
        load_classifier(spec(str(folder), folder))
    assert_one_line(error, str(folder))


@pytest.mark.parametrize(
    "ref", ["cut:5", "cut:0", "tiny:2x65", "tiny:2", "nonsense:3", "./nowhere", "package:no_such/x", ""]
)
def test_a_reference_that_leads_nowhere_is_one_clear_line(checkpoint: Path, ref: str) -> None:
    with pytest.raises(UnknownModel) as error:
        load_classifier(spec(ref, checkpoint))
    assert_one_line(error, ref)


def test_cut_needs_a_real_base(checkpoint: Path) -> None:
    with pytest.raises(UnknownModel, match=r"'cut:2'.*'cut:3'"):
        load_classifier(ModelSpec("cut:2", "cut:3", FORM, 0))


def test_tiny_needs_a_base_with_a_vocabulary(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnknownModel, match="vocab_size") as error:
        load_classifier(spec("tiny:1x32", folder))
    assert_one_line(error, "tiny:1x32")


@pytest.mark.parametrize("content", [None, "{"])
def test_a_checkpoint_without_a_vocabulary_is_refused(checkpoint: Path, tmp_path: Path, content: str | None) -> None:
    """`transformers` would read every word of every text as unknown, and training would go on."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    for ref in (str(folder), "cut:2"):
        with pytest.raises(UnknownModel) as error:
            load_tokenizer(ref, str(folder))
        assert_one_line(error, ref)


# --- models that write -----------------------------------------------------------------------------------------------

WORDS = ["mix 5 ml of water", "add the salt", "no yes maybe", "task: "]


@pytest.fixture(scope="module", params=["t5", "bart", "gpt2"])
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = {"t5": make_t5, "bart": make_bart, "gpt2": make_gpt2}[request.param]
    folder: Path = make(tmp_path_factory.mktemp(request.param) / "model", WORDS, n_layers=4)
    return folder


def decoder_input(model: Any) -> dict[str, Tensor]:
    ids = torch.tensor([[3, 4, 5, 6]])
    return {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}


def test_cut_takes_layers_out_of_every_stack_and_what_is_left_still_writes(writer: Path, tmp_path: Path) -> None:
    whole, head, tokenizer = load_model(spec(str(writer), writer))
    cut, _, _ = load_model(spec("cut:2", writer))
    numbered = {name: [int(part) for part in name.split(".") if part.isdigit()] for name in cut.state_dict()}
    kept = {number for numbers in numbered.values() for number in numbers[:1]}
    assert kept == {0, 1}
    theirs = whole.state_dict()
    for name, tensor in cut.state_dict().items():
        first = next((part for part in name.split(".") if part.isdigit()), "0")
        assert torch.equal(tensor, theirs[name.replace(f".{first}.", f".{cut_layers(4, 2)[int(first)]}.", 1)])
    save_model(cut, head, tokenizer, tmp_path)
    back, _, _ = load_saved(tmp_path)
    cut.eval(), back.eval()
    with torch.no_grad():
        assert torch.equal(cut(**decoder_input(cut)).logits, back(**decoder_input(back)).logits)
    read = head.tokenize([("mix water",), ("add the salt now",)])
    firsts: list[torch.Tensor] = []
    with torch.no_grad():
        said = head.generate(
            back,
            read,
            np.array([0, 1]),
            TeachSettings(answers_from="free"),
            sink=lambda rows, positions, logits: firsts.extend(logits[torch.from_numpy(positions == 0)]),
        )
    assert [int(units[0]) for units in said.units] == torch.stack(firsts).argmax(-1).tolist()


@pytest.mark.parametrize("n_layers", [2, 3])
def test_a_layers_parts_are_not_taken_for_layers(tmp_path: Path, n_layers: int) -> None:
    """A T5 layer is a list of two parts in the encoder and three in the decoder."""
    base = make_t5(tmp_path / "base", WORDS, n_layers=n_layers)
    model, _, _ = load_model(spec("cut:1", base))
    assert (len(model.encoder.block), len(model.decoder.block)) == (1, 1)
    assert (len(model.encoder.block[0].layer), len(model.decoder.block[0].layer)) == (2, 3)


def test_a_model_says_which_head_speaks_for_it(writer: Path, tmp_path: Path) -> None:
    model, head, tokenizer = load_model(ModelSpec(str(writer), str(writer), FORM, 0, "classes"))
    assert (head.target, head.n_outputs) == ("classes", None)
    save_model(model, head, tokenizer, tmp_path)
    _, back, _ = load_saved(tmp_path)
    assert (type(back), back.family, back.form) == (type(head), head.family, FORM)
    (tmp_path / HEAD_FILE).unlink()
    with pytest.raises(UnknownModel, match=HEAD_FILE):
        load_saved(tmp_path)


def test_dropout_reaches_models_that_keep_it_as_a_number(writer: Path) -> None:
    model, _, _ = load_model(spec(str(writer), writer))
    model.train()
    torch.manual_seed(1)
    first, second = (model(**decoder_input(model)).logits for _ in range(2))
    assert not torch.equal(first, second)
    set_dropout(model, 0.0)
    first, second = (model(**decoder_input(model)).logits for _ in range(2))
    assert torch.equal(first, second)


def test_a_tiny_seq2seq_has_the_shape_asked_for(tmp_path: Path) -> None:
    base = make_t5(tmp_path / "base", WORDS)
    model, head, tokenizer = load_model(spec("tiny:3x64", base))
    assert (head.family, model.config.num_layers, model.config.num_decoder_layers) == ("seq2seq", 3, 3)
    assert model.config.d_model == 64
    assert model.config.vocab_size >= len(tokenizer)
    same, other = (load_model(spec("tiny:3x64", base, seed=seed))[0].state_dict() for seed in (0, 1))
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(tensor, same[name]) for name, tensor in other.items())


def test_tokenizers_are_the_same_beyond_padded_rows(tmp_path: Path) -> None:
    a = str(make_t5(tmp_path / "a", WORDS))
    padded = str(make_t5(tmp_path / "b", WORDS, vocab_extra=28, seed=1))
    other = str(make_t5(tmp_path / "c", [*WORDS, "another word"]))
    assert same_tokenizer(a, a, padded, padded)
    assert same_tokenizer("cut:1", a, padded, padded)
    assert n_logits(padded, padded) == n_logits(a, a) + 28
    assert not same_tokenizer(a, a, other, other)


def test_an_encoder_is_refused_for_free_text(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"encoder.*seq2seq or causal"):
        load_model(ModelSpec(str(checkpoint), str(checkpoint), TaskSpec("generation", (), 32, 32), 0))


def test_a_head_of_its_own_is_written_down(tmp_path: Path) -> None:
    base = make_t5(tmp_path / "base", WORDS)
    model, head, tokenizer = load_model(spec(str(base), base))
    save_model(model, head, tokenizer, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is False
    back, _, _ = load_saved(tmp_path / "saved")
    model.eval(), back.eval()
    with torch.no_grad():
        assert torch.equal(model(**decoder_input(model)).logits, back(**decoder_input(back)).logits)


def test_a_vocabulary_smaller_than_its_tokenizer_is_refused(tmp_path: Path) -> None:
    base = make_t5(tmp_path / "base", WORDS)
    other = make_t5(tmp_path / "other", [*WORDS, "many more words that nobody has seen before"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(other / name, base / name)
    with pytest.raises(UnknownModel, match=r"\d rows .*\d tokens"):
        load_model(spec(str(base), base))
