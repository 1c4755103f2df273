"""Models made here: shapes in closed form against the modules, tokenizers that spell, bytes that are equal again."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

from outlay.cli.model_commands import model_app
from outlay.errors import DataError, DiskFull, OutlayError, UnknownModel, UsageError
from outlay.models import random_init as build_module
from outlay.models.random_init import Corpus, build_checkpoint, learn_tokenizer, new_model, tiny_model
from outlay.models.reference import parse_ref
from outlay.models.shape import shape_of, shape_of_size
from outlay.models.sizes import Size, find_size, load_sizes

LABELS = ("YES", "NO", "[Mod-Link]", "Query or Irrelevant")
# Every size is another prime, where heads need not divide it.
SIZES = {
    "t5": Size("t5", "t5", 3, 34, 53, 2, 1009, 13, n_decoder_layers=2),
    "bert": Size("bert", "bert", 3, 34, 53, 2, 1009, 17, n_positions=59),
    "distilbert": Size("distilbert", "distilbert", 3, 34, 53, 2, 1009, 17, n_positions=59),
    "gpt2": Size("gpt2", "gpt2", 3, 34, 53, 2, 1009, 17, n_positions=59),
}
# Parameters of the published checkpoints.
PUBLISHED = {
    "t5-v1_1-small": 76_961_152,
    "t5-v1_1-base": 247_577_856,
    "t5-v1_1-large": 783_150_080,
    "t5-v1_1-xl": 2_849_757_184,
    "t5-v1_1-xxl": 11_135_332_352,
    "bert-base": 109_482_240,
    "distilbert-base": 66_362_880,
    "gpt2": 124_439_808,
}
STRANGE = ["a  b", "µ-élan → 37 °C", "line\nbreak\ttab", "東京 😀", "<0x0A> [Mod-Link] (x)", "ends with blanks  "]


@pytest.fixture
def corpus(texts: list[str]) -> Corpus:
    return Corpus([*texts[:60], *STRANGE], LABELS)


def n_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


class TestSizes:
    @pytest.mark.parametrize("name", load_sizes())
    def test_every_shipped_size_is_what_its_modules_hold(self, name: str) -> None:
        size = find_size(name)
        with torch.device("meta"):
            model = new_model(size, seed=0)
        n = n_parameters(model)
        shape = shape_of_size(size)
        # A head of no classes over an encoder is its H x H map, which DistilBERT alone keeps in the head.
        expected = shape.n_body_parameters if size.type == "distilbert" else shape.n_total_parameters(0)
        assert n == expected == PUBLISHED.get(name, n)

    @pytest.mark.parametrize("name", SIZES)
    def test_closed_forms_are_what_is_read_from_the_files(self, name: str, tmp_path: Path, corpus: Corpus) -> None:
        built = build_checkpoint(SIZES[name], corpus, tmp_path / "model")
        assert shape_of(str(built.folder)) == shape_of_size(SIZES[name])
        assert built.n_parameters == n_parameters(new_model(SIZES[name], seed=0))

    @pytest.mark.slow
    def test_a_t5_of_true_size(self, tmp_path: Path, corpus: Corpus) -> None:
        size = find_size("t5-v1_1-small")
        built = build_checkpoint(size, corpus, tmp_path / "small")
        model = AutoModelForSeq2SeqLM.from_pretrained(built.folder)
        shape = shape_of(str(built.folder))
        assert shape == shape_of_size(size)
        assert shape.n_total_parameters(2) == model.num_parameters() == built.n_parameters == PUBLISHED[size.name]

    def test_your_own_file(self, tmp_path: Path) -> None:
        path = tmp_path / "sizes.yaml"
        path.write_text(
            "mine: {type: gpt2, n_layers: 2, hidden_size: 34, d_ff: 5, n_heads: 2, vocab_size: 7, n_positions: 3}"
        )
        assert load_sizes([path])["mine"] == Size("mine", "gpt2", 2, 34, 5, 2, 7, 17, n_positions=3)
        for change, message in [
            ("type: gpt3", "'mine'.*'gpt3'.* t5, bert"),
            ("n_layers: 0", r"n_layers is 0\b.* 1\b"),
            ("n_heads: 3", r"\b3 heads .*\b34\b"),
            ("n_decoder_layers: 2", "gpt2 .*n_decoder_layers"),
            ("head_size: 5", r"\b2 heads .*\b5\b.*\b34\b"),
            ("depth: 2", "'depth'.*: d_ff"),
        ]:
            key = change.split(":")[0]
            fields = [
                f for f in path.read_text().partition("{")[2].rstrip("}").split(", ") if not f.startswith(f"{key}:")
            ]
            broken = tmp_path / "broken.yaml"
            broken.write_text(f"mine: {{{', '.join([*fields, change])}}}")
            with pytest.raises(UnknownModel, match=message):
                load_sizes([broken])
        for text, message in [
            ("mine: {type: t5}", "'d_ff'.*: d_ff, hidden_size"),
            ("mine: 3", "'mine' is 3\\b"),
            ("[1]", "NAME: "),
            ("a: {", r"broken\.yaml line 1\b"),
        ]:
            (tmp_path / "broken.yaml").write_text(text)
            with pytest.raises(UnknownModel, match=message):
                load_sizes([tmp_path / "broken.yaml"])
        with pytest.raises(UnknownModel, match=r"none\.yaml"):
            load_sizes([tmp_path / "none.yaml"])
        with pytest.raises(UnknownModel, match=r"'t5-tniy'.*t5-tiny.*t5-v1_1-small.*--sizes"):
            find_size("t5-tniy")


class TestTokenizer:
    @pytest.mark.parametrize("name", SIZES)
    def test_what_it_reads_it_can_write(self, name: str, tmp_path: Path, corpus: Corpus) -> None:
        built = build_checkpoint(SIZES[name], corpus, tmp_path / "model")
        tokenizer = AutoTokenizer.from_pretrained(built.folder)
        assert len(tokenizer) == built.n_tokens <= SIZES[name].vocab_size
        for text in (*corpus.texts, *LABELS, "never seen: Ωß§ ﷽", "</s >"):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
            assert tokenizer.unk_token_id not in ids

    def test_labels_are_one_piece(self, corpus: Corpus) -> None:
        tokenizer = learn_tokenizer(corpus, SIZES["gpt2"])
        assert {label: len(tokenizer(label)["input_ids"]) for label in LABELS} == {
            **dict.fromkeys(LABELS, 1),
            LABELS[3]: 3,
        }

    def test_what_stands_around_a_text(self, corpus: Corpus) -> None:
        t5, gpt2, bert = (learn_tokenizer(corpus, SIZES[name]) for name in ("t5", "gpt2", "bert"))
        assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
        assert t5("YES")["input_ids"] == [*gpt2("YES")["input_ids"], t5.eos_token_id]
        assert t5.get_vocab() == gpt2.get_vocab()
        assert t5.all_special_ids == gpt2.all_special_ids
        pair = bert("YES", "NO", return_token_type_ids=True)
        assert bert.convert_ids_to_tokens(pair["input_ids"]) == ["[CLS]", "▁YES", "[SEP]", "▁NO", "[SEP]"]
        assert pair["token_type_ids"] == [0, 0, 0, 1, 1]

    def test_what_cannot_be_learnt(self, corpus: Corpus) -> None:
        with pytest.raises(DataError, match="no text"):
            learn_tokenizer(Corpus(["", "  "], LABELS), SIZES["t5"])
        with pytest.raises(UsageError, match=r"\b1\b") as refused:
            learn_tokenizer(corpus, replace(SIZES["t5"], vocab_size=1))
        (least,) = (int(number) for number in re.findall(r"\d{3,}", str(refused.value)))
        with pytest.raises(UsageError, match=rf"\b{least - 1}\b.*\b{least}\b"):
            learn_tokenizer(corpus, replace(SIZES["t5"], vocab_size=least - 1))
        assert len(learn_tokenizer(corpus, replace(SIZES["t5"], vocab_size=least))) == least


class TestModels:
    def test_the_same_bytes_again_and_others_of_another_seed(self, tmp_path: Path, corpus: Corpus) -> None:
        for name, seed in (("here", 3), ("again", 3), ("other", 4)):
            build_checkpoint(SIZES["t5"], corpus, tmp_path / name, seed=seed)
        here, again, other = (digests(tmp_path / name) for name in ("here", "again", "other"))
        assert here == again
        assert {name for name in here if here[name] != other[name]} == {"model.safetensors"}

    @pytest.mark.slow
    def test_the_same_bytes_in_another_process(self, tmp_path: Path, corpus: Corpus) -> None:
        (tmp_path / "texts.txt").write_text("\n".join(corpus.texts[:60]))
        plain = Corpus(corpus.texts[:60], ("YES", "NO"))
        build_checkpoint(replace(find_size("t5-micro"), vocab_size=512), plain, tmp_path / "again", seed=3)
        program = "import sys; sys.argv[0] = 'model'; from outlay.cli.model_commands import model_app; model_app()"
        arguments = [
            "make",
            "t5-micro",
            "--texts",
            str(tmp_path / "texts.txt"),
            "--labels",
            "YES,NO",
            "--vocab-size",
            "512",
        ]
        out = ["--seed", "3", "--out", str(tmp_path / "there")]
        subprocess.run([sys.executable, "-c", program, *arguments, *out], check=True, capture_output=True)
        assert digests(tmp_path / "there") == digests(tmp_path / "again")

    def test_a_t5_has_its_own_head_and_begins_near_chance(self, tmp_path: Path, corpus: Corpus) -> None:
        built = build_checkpoint(SIZES["t5"], corpus, tmp_path / "t5")
        model = AutoModelForSeq2SeqLM.from_pretrained(built.folder).eval()
        assert model.config.feed_forward_proj == "gated-gelu"
        assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
        ids = torch.tensor([[5, 6, 7, 1]])
        fresh = new_model(SIZES["t5"], seed=0).eval()
        with torch.no_grad():
            written, loaded = (m(input_ids=ids, labels=ids) for m in (fresh, model))
        assert torch.equal(written.logits, loaded.logits)
        assert float(loaded.loss) == pytest.approx(torch.tensor(1009.0).log().item(), abs=1.5)

    @pytest.mark.parametrize("name", ["t5", "gpt2"])
    def test_it_writes(self, name: str, tmp_path: Path, corpus: Corpus) -> None:
        folder = build_checkpoint(SIZES[name], corpus, tmp_path / "m", bf16=True).folder
        auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
        model = auto.from_pretrained(folder)
        assert model.dtype == torch.bfloat16
        ids = AutoTokenizer.from_pretrained(folder)("YES", return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        assert out.shape[1] <= ids.shape[1] + 3

    @pytest.mark.parametrize(("n_layers", "width"), [(1, 24), (2, 96)])
    def test_tiny_of_a_seq2seq_base(self, n_layers: int, width: int, tmp_path: Path, corpus: Corpus) -> None:
        base = build_checkpoint(SIZES["t5"], corpus, tmp_path / "base").folder
        ref = f"tiny:{n_layers}x{width}"
        torch.manual_seed(0)
        model: Any = tiny_model(base, parse_ref(ref), "seq2seq", None)
        shape = shape_of(ref, base=str(base))
        assert (shape.n_layers, shape.n_decoder_layers, shape.hidden_size) == (n_layers, n_layers, width)
        assert shape.n_total_parameters(2) == n_parameters(model)
        maps = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        assert shape.n_counted_parameters(2) == sum(m.weight.numel() for m in maps)
        assert (model.config.pad_token_id, model.config.eos_token_id, model.config.decoder_start_token_id) == (0, 1, 0)

    def test_tiny_begins_with_the_tokens_of_its_base(self, tmp_path: Path, texts: list[str]) -> None:
        from tests.checkpoints import make_bart

        base = make_bart(tmp_path / "bart", texts[:5])
        config: Any = tiny_model(base, parse_ref("tiny:1x32"), "seq2seq", None).config
        assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (1, 2, 2)

    def test_tiny_of_an_encoder_base(self, checkpoint: Path) -> None:
        kinds = {
            per_token: tiny_model(checkpoint, parse_ref("tiny:2x64"), "encoder", "abc", per_token=per_token)
            for per_token in (False, True)
        }
        assert {type(model).__name__ for model in kinds.values()} == {
            "BertForSequenceClassification",
            "BertForTokenClassification",
        }
        shape = shape_of("tiny:2x64", base=str(checkpoint))
        assert shape.n_total_parameters(3) == n_parameters(kinds[False])
        assert kinds[True].config.id2label == {0: "a", 1: "b", 2: "c"}

    def test_there_must_be_room(self, tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        huge = replace(SIZES["t5"], vocab_size=10**12)
        with pytest.raises(UsageError, match=r"t5 in float32 .* GB .*--bf16"):
            build_checkpoint(huge, corpus, tmp_path / "a")
        monkeypatch.setattr(build_module.shutil, "disk_usage", lambda path: type("U", (), {"free": 10})())
        with pytest.raises(DiskFull, match=r"\b0\.0 GB"):
            build_checkpoint(SIZES["t5"], corpus, tmp_path / "new" / "a")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_in_use_is_left_alone(self, tmp_path: Path, corpus: Corpus) -> None:
        (tmp_path / "used").mkdir()
        build_checkpoint(SIZES["t5"], corpus, tmp_path / "used")
        before = digests(tmp_path / "used")
        with pytest.raises(UsageError, match=r"\bused\b"):
            build_checkpoint(SIZES["t5"], corpus, tmp_path / "used")
        assert digests(tmp_path / "used") == before
        assert [path.name for path in tmp_path.iterdir()] == ["used"]


class TestCommands:
    @staticmethod
    def call(*arguments: str) -> str:
        done = CliRunner().invoke(model_app, arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    def test_list(self) -> None:
        rows = {row["size"]: row for row in json.loads(self.call("list", "--json"))}
        assert list(rows) == list(load_sizes())
        xxl = rows["t5-v1_1-xxl"]
        assert xxl["n_parameters"] == PUBLISHED["t5-v1_1-xxl"]
        assert xxl["flops_train_per_token"] == 3 * xxl["n_counted_parameters"] == 3 * xxl["flops_infer_per_token"]
        assert "11,135.3 M" in self.call("list")

    def test_make_and_show(self, tmp_path: Path) -> None:
        task = _task(tmp_path)
        out = str(tmp_path / "model")
        said = self.call("make", "t5-micro", "--task", str(task), "--vocab-size", "400", "--out", out)
        assert "it knows nothing" in said
        shown = json.loads(self.call("show", out, "--json"))
        assert (shown["family"], shown["n_layers"], shown["vocab_size"]) == ("seq2seq", 1, 400)
        assert f"{shown['n_parameters']:,} parameters" in said
        assert "1 + 1 (encoder + decoder)" in self.call("show", "tiny:1x32", "--base", out)
        tokenizer = AutoTokenizer.from_pretrained(out)
        assert tokenizer.decode(tokenizer("REFUTES")["input_ids"], skip_special_tokens=True) == "REFUTES"
        assert AutoConfig.from_pretrained(out).vocab_size == 400

    def test_what_is_not_for_sale_is_not_looked_at(self, tmp_path: Path) -> None:
        from outlay.cli.model_commands import _task_corpus

        found = _task_corpus(str(_task(tmp_path)), None)
        assert sorted(found.texts) == ["check: train one", "check: train two", "check: unlabelled"]
        assert found.answers == ("REFUTES", "SUPPORTS")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--task .*--texts "),
            (["--task", "fever", "--texts", "f"], "--task .*--texts "),
            (["--task", "fever", "--labels", "A"], "--labels .*--texts"),
            (["--texts", "/none"], "/none "),
        ],
    )
    def test_one_clear_line(self, arguments: list[str], message: str, tmp_path: Path) -> None:
        with pytest.raises(OutlayError, match=message):
            self.call("make", "t5-micro", "--out", str(tmp_path / "m"), *arguments)


def _task(folder: Path) -> Path:
    """A task of two train rows, one pool row and a test row whose text must not be seen."""
    rows = {"train": ["train one", "train two"], "test": ["secret"], "pool": ["unlabelled"]}
    for name, texts in rows.items():
        lines = [json.dumps({"claim": text, "label": "REFUTES"}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "mine.yaml"
    path.write_text(
        "name: mine\nprefix: 'check: '\ntext: '{claim}'\nlabels: [REFUTES, SUPPORTS]\nprice_item: fever\ndev: none\n"
        "data:\n  train: {file: train.jsonl, target: label}\n  test: {file: test.jsonl, target: label}\n"
        "pool:\n  - {name: more, file: pool.jsonl}\n"
    )
    return path
