"""Cost model: the workload of a step, and the measured constants that turn it into seconds.

A workload is counted before a step runs, from the shape of the model and the lengths of its rows, batch by batch as the
training loop and the teacher fill them. A profile holds the seconds of one unit of each term, for each precision, measured by
`outlay.train.calibration`. Seconds are the sum of products: a step's overhead, each pass over a layer, FLOPs of the matrices,
activations and logits that go through memory, weights read and updated. They serve planning: no charge depends on them.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from outlay.errors import UsageError
from outlay.hardware.precision import BF16, FP32, LEAST_SPEEDUP
from outlay.models.shape import ModelShape, flops_infer, flops_train, shape_of_size
from outlay.models.sizes import tiny_size
from outlay.settings import TeachSettings, TrainSettings
from outlay.storage.paths import command_line

PROFILE_FILE = "machine.toml"
"""Profile of this machine, beside the store."""

WINDOW_BATCHES = 50
"""Batches that the training loop sorts by length together (`outlay.train.batching.training_batches`)."""
HEAD_SIZE = 64
"""Width of an attention head, where a shape does not say: BERT's and T5's."""
DECODER_CALLS = 1.5
"""Cost of a decoder layer relative to an encoder layer: two attentions and a feed-forward part instead of one and one."""


@dataclass(frozen=True, slots=True)
class Workload:
    """FLOPs, tokens, calls and bytes of some work; they add up, and include padding, which a charge does not.

    ``steps``: optimiser steps; ``updated``: parameters updated, summed over them.
    ``train_*`` (forward and backward), ``infer_*``: ``calls``: passes over a layer; ``flops``: multiplications and additions of
    matrices; ``elements``: values that go through memory between them (tokens x width x layers, and attention scores);
    ``logits``: positions x outputs; ``weights``: parameters read, summed over passes: the limit of decoding.
    ``words``: tokens decoded one after the other; ``kept``: logits searched for the largest, to be stored.
    ``models``: models made ready; ``loaded``: their parameters; ``read``: tokens of texts.
    """

    steps: float = 0.0
    updated: float = 0.0
    train_calls: float = 0.0
    train_flops: float = 0.0
    train_elements: float = 0.0
    train_logits: float = 0.0
    infer_calls: float = 0.0
    infer_flops: float = 0.0
    infer_elements: float = 0.0
    infer_logits: float = 0.0
    infer_weights: float = 0.0
    words: float = 0.0
    kept: float = 0.0
    models: float = 0.0
    loaded: float = 0.0
    read: float = 0.0

    def __add__(self, other: Workload) -> Workload:
        return Workload(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def times(self, n: float) -> Workload:
        """Return the same ``n`` times."""
        return Workload(*(n * amount for amount in astuple(self)))


TERMS = tuple(field.name for field in fields(Workload))


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """The measured constants of a machine.

    ``measured``: a date; ``device``: the processor or GPU; ``peak_flops_per_second``: of the fastest product of two large
    matrices; ``constants``: by precision (``bf16``, ``fp32``), the seconds of one unit of each of `TERMS`.
    """

    name: str
    measured: str
    device: str
    torch: str
    threads: int
    peak_flops_per_second: int
    constants: Mapping[str, Mapping[str, float]]
    bf16_ratio: float | None = None
    """Speed of products in bf16 as a multiple of that in float32; ``None`` in an older profile."""

    @property
    def precision(self) -> str:
        """The precision this machine computes in where no other is asked for."""
        is_slow = self.bf16_ratio is not None and self.bf16_ratio < LEAST_SPEEDUP
        return FP32 if is_slow and FP32 in self.constants else BF16

    def seconds(self, load: Workload, precision: str) -> float:
        """Return the seconds that a workload takes; ``bf16_weights`` is taken for ``bf16``.

        Raises:
            KeyError: a precision that was not measured.
        """
        constants = self.constants["bf16" if precision.startswith("bf16") else precision]
        return float(sum(constants[term] * amount for term, amount in zip(TERMS, astuple(load), strict=True)))

    def utilisation(self, *, train: bool) -> float:
        """Return the share of the peak that `REFERENCE` reaches in `precision`, in the FLOPs that are charged."""
        model, lengths, n_tokens = REFERENCE, Lengths([64] * 256, [0] * 256), 64 * 256
        if train:
            load = training_load(model, lengths, TrainSettings(epochs=1, batch_size=32, learning_rate=1e-4))
            flops = flops_train(model.shape, n_tokens, model.n_outputs)
        else:
            load = answering_load(model, lengths, TeachSettings(batch_size=64))
            flops = flops_infer(model.shape, n_tokens, model.n_outputs)
        return min(1.0, flops / self.seconds(load, self.precision) / self.peak_flops_per_second)

    def as_machine(self, price_item: str) -> dict[str, str | int]:
        """Return the record of a machine file (`outlay.money.machines`) that says the same on the flops clock."""
        return {
            "name": self.name,
            "price_item": price_item,
            "peak_flops_per_second": self.peak_flops_per_second,
            "utilisation_train": f"{max(1e-4, self.utilisation(train=True)):.4f}",
            "utilisation_infer": f"{max(1e-4, self.utilisation(train=False)):.4f}",
            "source": f"measured {self.measured} on {self.device}, {self.threads} threads",
        }

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        seconds = {precision: dict(constants) for precision, constants in self.constants.items()}
        return {**{name: getattr(self, name) for name in (*_HEAD, _RATIO)}, "seconds": seconds}

    def to_toml(self) -> str:
        """Return the profile as TOML that `load_profile` reads."""
        head = [
            "# Speed of a machine, measured by `outlay machine calibrate`: what predicted seconds are made of.",
            *(f"{name} = {_toml(getattr(self, name))}" for name in _HEAD),
            *([] if self.bf16_ratio is None else [f"{_RATIO} = {self.bf16_ratio:.4g}"]),
        ]
        tables = [
            "\n".join([f"[seconds.{precision}]", *(f"{term} = {constants[term]:.6e}" for term in TERMS)])
            for precision, constants in self.constants.items()
        ]
        return "\n\n".join(["\n".join(head), *tables]) + "\n"


_HEAD = ("name", "measured", "device", "torch", "threads", "peak_flops_per_second")
_RATIO = "bf16_ratio"


def load_profile(path: Path) -> MachineProfile | None:
    """Return the profile in a file; ``None`` where there is none.

    Raises:
        UsageError: a file that holds none; one line that names it and the way out.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := sorted(set(content) - {*_HEAD, _RATIO, "seconds"}):
            raise ValueError(f"it has an unknown {unknown[0]}")
        constants = {
            str(precision): {term: float(table[term]) for term in TERMS}
            for precision, table in content["seconds"].items()
        }
        text = {name: str(content[name]) for name in ("name", "measured", "device", "torch")}
        datetime.date.fromisoformat(text["measured"])
        return MachineProfile(
            **text,
            threads=int(content["threads"]),
            peak_flops_per_second=int(content["peak_flops_per_second"]),
            constants=constants,
            bf16_ratio=float(content[_RATIO]) if _RATIO in content else None,
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{path} is no profile of a machine ({type(error).__name__}: {error}); measure it anew: "
            f"`{command_line('outlay', 'machine', 'calibrate', '--out', path)}`"
        ) from None


# --- loads -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of rows: of each source as the model reads it, and of each answer as it writes it (0 for an encoder)."""

    sources: Sequence[int]
    answers: Sequence[int]

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Shape, family and head of a model.

    ``n_outputs``: of an encoder's head, ``per_token`` where it tags; ``n_choices``: labels that a model which writes must score,
    1 where it only walks through them, 0 where it writes freely.
    """

    shape: ModelShape
    n_outputs: int
    per_token: bool = False
    n_choices: int = 0


REFERENCE = ModelProfile(shape_of_size(tiny_size("encoder", 6, 384, 30522)), n_outputs=2)
"""The model that utilisation is stated for: the shape of all-MiniLM-L6, a common student."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of a batch, padded to ``source`` tokens, and to ``answer`` tokens of an answer."""

    n_rows: float
    source: float
    answer: float


def training_load(model: ModelProfile, lengths: Lengths, settings: TrainSettings) -> Workload:
    """Return a whole training, without loading the model and evaluating on dev."""
    micro = settings.micro_batch_size
    epoch = Workload()
    for batch in _training_batches(lengths, settings):
        n_passes = 1 if micro is None else -(-int(batch.n_rows) // micro)
        per_pass = _forward_pass(model, replace(batch, n_rows=batch.n_rows / n_passes), max(1, model.n_choices))
        epoch += Workload(
            steps=1,
            updated=_n_parameters(model),
            train_calls=n_passes * per_pass.calls,
            # A backward pass multiplies twice as much as the forward pass (Kaplan et al. 2020, section 2.1).
            train_flops=3 * n_passes * per_pass.flops,
            train_elements=n_passes * per_pass.elements,
            train_logits=n_passes * per_pass.logits,
        )
    return epoch.times(settings.epochs)


def answering_load(model: ModelProfile, lengths: Lengths, settings: TeachSettings, *, keep: bool = False) -> Workload:
    """Return the work of answering every row in batches as ``settings`` say; ``keep``: the logits are stored.

    A model that writes reads the source once. Each label is then scored over the same source; a free answer is written token by
    token. The logits are those of these passes, but where beams, samples or padding leave none: then it is read once more.
    """
    total = Workload()
    for batch in _inference_batches(lengths, settings):
        if not any(lengths.answers):
            total += _inference_load(model, _forward_pass(model, batch))
        elif model.n_choices:
            total += _inference_load(model, _scoring_pass(model, batch))
        else:
            total += _decoding_load(model, batch, settings.beams)
            if keep and (settings.beams > 1 or settings.sample or settings.keep_padding):
                total += _inference_load(model, _forward_pass(model, batch))
        if keep:
            total += Workload(kept=batch.n_rows * batch.answer * model.shape.vocab_size)
    return total


def starting_load(model: ModelProfile, lengths: Lengths) -> Workload:
    """Return a model made ready, and the texts it is to read."""
    return Workload(models=1, loaded=_n_parameters(model), read=sum(lengths.sources) + sum(lengths.answers))


@dataclass(frozen=True, slots=True)
class _Pass:
    """The work of one forward pass, as in `Workload`."""

    calls: float = 0.0
    flops: float = 0.0
    elements: float = 0.0
    logits: float = 0.0

    def __add__(self, other: _Pass) -> _Pass:
        return _Pass(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


def _forward_pass(model: ModelProfile, batch: Batch, n_choices: int = 1) -> _Pass:
    """Return one forward pass over source and answer.

    Of several choices each is read: by a pair of stacks behind one reading of the source, by a causal model with its own copy.
    """
    copies = replace(batch, n_rows=n_choices * batch.n_rows)
    if model.shape.family == "seq2seq":
        return _encoder_pass(model, batch) + _decoder_pass(model, copies)
    return _encoder_pass(model, copies)


def _scoring_pass(model: ModelProfile, batch: Batch) -> _Pass:
    """Return the work of scoring every choice of every row over one reading of the source, its keys and values included."""
    answers = Batch(model.n_choices * batch.n_rows, 0, batch.answer)
    if model.shape.family != "seq2seq":
        return _encoder_pass(model, replace(batch, answer=0)) + _encoder_pass(model, answers)
    of_source = replace(_decoder_pass(model, replace(batch, answer=0)), calls=0.0)
    return _encoder_pass(model, batch) + of_source + _decoder_pass(model, answers)


def _encoder_pass(model: ModelProfile, batch: Batch) -> _Pass:
    """Return the encoder of a pair, or the only stack (a causal model reads source and answer as one text)."""
    shape = model.shape
    width = batch.source + (batch.answer if shape.family == "causal" else 0)
    n_tokens, n_heads = batch.n_rows * width, max(1, shape.hidden_size // HEAD_SIZE)
    flops = 2 * n_tokens * shape.n_layers * (shape.n_matmul_parameters_per_layer + 2 * width * shape.hidden_size)
    elements = n_tokens * shape.n_layers * (shape.hidden_size + n_heads * width)
    n_logits, head_flops = 0.0, 0.0
    if shape.family == "encoder":
        n_read = n_tokens if model.per_token else batch.n_rows
        # A class is chosen behind one more square layer, a tag is not.
        before = 0 if model.per_token else shape.hidden_size
        n_logits, head_flops = n_read * model.n_outputs, 2 * n_read * shape.hidden_size * (model.n_outputs + before)
    elif shape.family == "causal":
        n_logits = n_tokens * shape.vocab_size
        head_flops = 2 * n_logits * shape.hidden_size
    return _Pass(shape.n_layers, flops + head_flops, elements, n_logits)


def _decoder_pass(model: ModelProfile, batch: Batch) -> _Pass:
    """Return the decoder of a pair over whole answers."""
    # Cross-attention's keys and values are made of the source: half of what a decoder layer has more than an encoder layer.
    shape = model.shape
    of_source = max(0, shape.n_matmul_parameters_per_decoder_layer - shape.n_matmul_parameters_per_layer) / 2
    of_answer = shape.n_matmul_parameters_per_decoder_layer - of_source
    n_answer, n_read = batch.n_rows * batch.answer, batch.n_rows * batch.source
    n_heads, seen = max(1, shape.hidden_size // HEAD_SIZE), batch.answer + batch.source
    per_layer = n_answer * of_answer + n_read * of_source + 2 * n_answer * seen * shape.hidden_size
    n_logits = n_answer * shape.vocab_size
    elements = n_answer * (1.5 * shape.hidden_size + n_heads * seen) + n_read * shape.hidden_size
    flops = 2 * (shape.n_decoder_layers * per_layer + n_logits * shape.hidden_size)
    return _Pass(DECODER_CALLS * shape.n_decoder_layers, flops, shape.n_decoder_layers * elements, n_logits)


def _decoding_load(model: ModelProfile, batch: Batch, beams: int) -> Workload:
    """Return a source read once, then an answer token by token, each beam a row of its own."""
    step = _decoder_pass if model.shape.family == "seq2seq" else _encoder_pass
    token = _inference_load(model, step(model, Batch(batch.n_rows * beams, 0, 1))) + Workload(words=1)
    return _inference_load(model, _encoder_pass(model, replace(batch, answer=0))) + token.times(batch.answer)


def _inference_load(model: ModelProfile, one: _Pass) -> Workload:
    return Workload(
        infer_calls=one.calls,
        infer_flops=one.flops,
        infer_elements=one.elements,
        infer_logits=one.logits,
        infer_weights=_n_weights(model.shape, one),
    )


def _n_weights(shape: ModelShape, one: _Pass) -> float:
    """Return the number of parameters that a pass reads, by the share of all layers it goes through."""
    head = shape.hidden_size * shape.vocab_size if shape.family != "encoder" and one.logits else 0
    share = one.calls / max(1, shape.n_layers + DECODER_CALLS * shape.n_decoder_layers)
    return share * shape.n_matmul_parameters + head


def _n_parameters(model: ModelProfile) -> int:
    return model.shape.n_total_parameters(model.n_outputs)


def _training_batches(lengths: Lengths, settings: TrainSettings) -> Iterator[Batch]:
    """Yield the batches of one epoch as the loop makes them; a window of shuffled rows is every k-th of all by length."""
    total = [source + answer for source, answer in zip(lengths.sources, lengths.answers, strict=True)]
    order = sorted(range(len(total)), key=total.__getitem__)
    n_rows = settings.batch_size
    if settings.batch_tokens is not None:
        n_rows = max(1, round(settings.batch_tokens * len(total) / max(1, sum(total))))
    n_windows, n_rest = divmod(len(order), n_rows * WINDOW_BATCHES)
    rest = {i * len(order) // n_rest for i in range(n_rest)}
    others = [row for i, row in enumerate(order) if i not in rest]
    for window in (*(others[first::n_windows] for first in range(n_windows)), [order[i] for i in sorted(rest)]):
        yield from _batches(window, lengths, settings.batch_size, settings.batch_tokens)


def _inference_batches(lengths: Lengths, settings: TeachSettings) -> Iterator[Batch]:
    order = sorted(range(len(lengths)), key=lambda i: lengths.sources[i])
    yield from _batches(order, lengths, settings.batch_size, settings.batch_tokens, also_rows=True)


def _batches(
    order: Sequence[int], lengths: Lengths, n_rows: int, n_tokens: int | None, *, also_rows: bool = False
) -> Iterator[Batch]:
    """Yield batches of up to ``n_rows``, or up to ``n_tokens`` with padding (``also_rows``: up to both)."""
    start = 0
    while start < len(order):
        stop, most = start, len(order) if n_tokens is not None and not also_rows else start + n_rows
        while stop < min(most, len(order)):
            row = order[stop]
            longest = lengths.sources[row] + (0 if also_rows else lengths.answers[row])
            if n_tokens is not None and stop > start and (stop + 1 - start) * longest > n_tokens:
                break
            stop += 1
        rows = order[start:stop]
        yield Batch(len(rows), max(lengths.sources[i] for i in rows), max(lengths.answers[i] for i in rows))
        start = stop


def _toml(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    plain = "".join(character if character.isprintable() else " " for character in value)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
