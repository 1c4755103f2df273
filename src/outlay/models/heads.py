"""Heads: the task-specific ends of models, by family and kind of task.

A head tokenizes sources, encodes answers as the model's own *units* (classes, tags or tokens), computes logits at the positions
of an answer, and decodes units to text. `outlay.models.generative_heads` has the heads of generative models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from outlay.errors import LabelError
from outlay.models.tokenization import AnswerIds, Encoded, collate, encode
from outlay.settings import TeachSettings
from outlay.spec import Family, TargetKind, TaskSpec
from outlay.text.entities import align, cut_out, parse_entities, render_entities
from outlay.text.legible import listed

Texts = Sequence[tuple[str, ...]]
Rows = NDArray[np.int64]
Inputs = dict[str, Tensor]
"""Tensors from which a head computes the logits of some rows: made on the CPU, then moved to the model's device."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Tokenised sources of a head, and the texts they were.

    ``places``: for tags, the indices of the tokens that stand for text (special tokens do not), row by row.
    """

    encoded: Encoded
    texts: Texts
    places: AnswerIds | None = None

    def __len__(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True, slots=True)
class Generation:
    """The answers a model generated for a batch of rows.

    ``units``: one int array per row, its real positions; ``n_tokens``: tokens that went through the model.
    """

    units: list[NDArray[np.int32]]
    n_tokens: int


class LogitSink(Protocol):
    """Receiver of the logits behind generated answers, each position of each row once, in any order."""

    def __call__(self, rows: NDArray[np.int64], positions: NDArray[np.int64], logits: Tensor) -> None:
        """Take logits ``[n, V]``, of any float dtype and on the model's device, of ``positions[i]`` of row ``rows[i]``."""


class Head(Protocol):
    """The interface of heads; see the module."""

    family: Family
    target: TargetKind
    form: TaskSpec
    """The task as the model meets it."""
    n_outputs: int | None
    """Outputs of its classification layer; ``None`` where the vocabulary is used."""
    pad_unit: int
    """The id behind an answer's end where padding is kept."""

    def tokenize(self, texts: Texts) -> Sources:
        """Tokenise sources, cutting those that are too long."""

    def encode_answers(self, sources: Sources, answers: Sequence[str]) -> AnswerIds:
        """Encode answers in the model's units.

        Raises:
            LabelError: a class outside the label set.
        """

    def n_tokens(self, sources: Sources, units: AnswerIds) -> NDArray[np.int64]:
        """Return the tokens of each row that go through the model in one pass with these answers, int64 ``[rows]``."""

    def inputs(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Return the inputs of `logits` for the positions of ``units``, int64 ``[len(rows), P]``; on the CPU."""

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the logits ``[len(rows), P, V]`` of `inputs` that are on the model's device."""

    def generate(
        self, model: nn.Module, sources: Sources, rows: Rows, settings: TeachSettings, *, sink: LogitSink | None = None
    ) -> Generation:
        """Return the model's own answers; the logits behind them go to ``sink``, those of padding too where it is kept."""

    def decode(self, sources: Sources, rows: Rows, units: Sequence[NDArray[np.int32]]) -> list[str]:
        """Return the text of units."""


class ClassAnswers:
    """Answers of a head that chooses a label: one position per row, one class per label."""

    target: TargetKind = "classes"
    pad_unit = 0
    form: TaskSpec

    def encode_answers(self, sources: Sources, answers: Sequence[str]) -> AnswerIds:
        """Return the class of each answer.

        Raises:
            LabelError: an answer outside the label set.
        """
        number = {label: i for i, label in enumerate(self.form.labels)}
        for row, answer in enumerate(answers):
            if answer not in number:
                raise LabelError(f"answer {answer!r} of row {row} is not one of {listed(self.form.labels)}; correct it")
        return AnswerIds.of([[number[answer]] for answer in answers])

    def decode(self, sources: Sources, rows: Rows, units: Sequence[NDArray[np.int32]]) -> list[str]:
        """Return the labels of units."""
        return [self.form.labels[int(row[0])] for row in units]


class _EncoderHead:
    """Base of encoders' heads: a row is its source, read once."""

    family: Family = "encoder"
    pad_unit = 0

    def __init__(self, tokenizer: Any, form: TaskSpec) -> None:
        self.form = form
        self.n_outputs: int | None = form.n_outputs
        self.tokenizer = tokenizer

    def n_tokens(self, sources: Sources, units: AnswerIds) -> NDArray[np.int64]:
        """Return the source's."""
        return sources.encoded.lengths


class ClassificationHead(ClassAnswers, _EncoderHead):
    """An encoder with a classification layer."""

    def tokenize(self, texts: Texts) -> Sources:
        """Tokenize one or two segments per row."""
        return Sources(encode(self.tokenizer, texts, self.form.max_source_tokens), texts)

    def inputs(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Return the sources side by side."""
        return collate(sources.encoded, rows)

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the logits of the classes, ``[len(rows), 1, labels]``."""
        out: Tensor = model(**inputs).logits
        return out.unsqueeze(1)

    def generate(
        self, model: nn.Module, sources: Sources, rows: Rows, settings: TeachSettings, *, sink: LogitSink | None = None
    ) -> Generation:
        """Return the likeliest class."""
        return _likeliest(self, model, sources, rows, np.ones(len(rows), dtype=np.int64), sink)


class TaggingHead(_EncoderHead):
    """An encoder with a tagging layer: one position per token of the source, tags O, B-type and I-type.

    Entities are found in the source by `outlay.text.entities.align`; the first token that overlaps one is its B, the others
    its I. Read back, an I that does not go on with the entity before it begins one.
    """

    target: TargetKind = "tags"

    def __init__(self, tokenizer: Any, form: TaskSpec) -> None:
        if not tokenizer.is_fast:
            raise LabelError("tagging needs a tokenizer that knows which characters a token is; use a fast tokenizer")
        super().__init__(tokenizer, form)
        self.tags = ("O", *(f"{part}-{label}" for label in form.labels for part in "BI"))
        self._begin = {label: 1 + 2 * i for i, label in enumerate(form.labels)}

    def tokenize(self, texts: Texts) -> Sources:
        """Return the whole source as one segment."""
        encoded = encode(self.tokenizer, texts, self.form.max_source_tokens, with_spans=True)
        assert encoded.spans is not None
        real = encoded.spans[:, 1] > encoded.spans[:, 0]
        bounds = zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
        places = AnswerIds.of([np.flatnonzero(real[start:stop]).tolist() for start, stop in bounds])
        return Sources(encoded, texts, places)

    def encode_answers(self, sources: Sources, answers: Sequence[str]) -> AnswerIds:
        """Return the tags of each row's tokens; counts entities that are not in the source or have no token of their own."""
        rows: list[list[int]] = []
        n_unaligned = 0
        for row, answer in enumerate(answers):
            spans, n_missing = align(sources.texts[row][0], parse_entities(answer, self.form.labels))
            tags, n_lost = self._tag(self._spans(sources, row), spans, sources.encoded.n_truncated > 0)
            rows.append(tags)
            n_unaligned += n_missing + n_lost
        return AnswerIds.of(rows, n_unaligned=n_unaligned)

    def inputs(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Return the sources side by side, and ``places``, their tokens that stand for text, int64 ``[len(rows), P]``."""
        return {**collate(sources.encoded, rows), "places": self._places(sources).batch(rows)[0]}

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the logits of the tags, ``[len(rows), P, tags]``, P the most text tokens of a row."""
        out: Tensor = model(**{name: tensor for name, tensor in inputs.items() if name != "places"}).logits
        return out.gather(1, inputs["places"].unsqueeze(-1).expand(-1, -1, out.shape[-1]))

    def generate(
        self, model: nn.Module, sources: Sources, rows: Rows, settings: TeachSettings, *, sink: LogitSink | None = None
    ) -> Generation:
        """Return the likeliest tag of each token."""
        return _likeliest(self, model, sources, rows, self._places(sources).lengths[rows], sink)

    def decode(self, sources: Sources, rows: Rows, units: Sequence[NDArray[np.int32]]) -> list[str]:
        """Return entity lines, each entity the text of its source from its first token to its last."""
        lines = []
        for row, tags in zip(rows, units, strict=True):
            text = sources.texts[int(row)][0]
            lines.append(render_entities(cut_out(text, self._read_tags(self._spans(sources, int(row)), tags))))
        return lines

    def _places(self, sources: Sources) -> AnswerIds:
        assert sources.places is not None
        return sources.places

    def _spans(self, sources: Sources, row: int) -> NDArray[np.int32]:
        """Return the characters of each text token of a row, int32 ``[positions, 2]``."""
        places = self._places(sources)
        assert sources.encoded.spans is not None
        spans: NDArray[np.int32] = sources.encoded.spans[sources.encoded.offsets[row] + places.row(row)]
        return spans

    def _tag(
        self, tokens: NDArray[np.int32], spans: Sequence[tuple[int, int, str]], may_be_cut: bool
    ) -> tuple[list[int], int]:
        """Return the tags of a row, and the number of entities before a cut that have no token of their own."""
        tags = [0] * len(tokens)
        end = int(tokens[-1, 1]) if len(tokens) else 0
        n_lost = 0
        for start, stop, label in spans:
            inside = np.flatnonzero((tokens[:, 0] < stop) & (tokens[:, 1] > start))
            free = [int(i) for i in inside if tags[int(i)] == 0]
            if not free:
                n_lost += not (may_be_cut and start >= end)
                continue
            begin = self._begin[label]
            for i in free:
                tags[i] = begin + 1
            tags[free[0]] = begin
        return tags, n_lost

    def _read_tags(self, tokens: NDArray[np.int32], tags: NDArray[np.int32]) -> list[tuple[int, int, str]]:
        found: list[tuple[int, int, str]] = []
        open_label: int | None = None
        for (start, stop), tag in zip(tokens.tolist(), tags.tolist(), strict=True):
            if tag == 0:
                open_label = None
                continue
            label, is_inside = (tag - 1) // 2, tag % 2 == 0
            if is_inside and open_label == label:
                found[-1] = (found[-1][0], stop, found[-1][2])
            else:
                found.append((start, stop, self.form.labels[label]))
            open_label = label
        return found


def _likeliest(
    head: Head,
    model: nn.Module,
    sources: Sources,
    rows: Rows,
    n_positions: NDArray[np.int64],
    sink: LogitSink | None,
) -> Generation:
    """Return the likeliest class at each of a row's positions, in one pass of an encoder."""
    logits = logits_of(head, model, sources, rows, torch.empty(0)).float()
    feed_sink(sink, rows, logits, n_positions)
    best = logits.argmax(-1).cpu().numpy().astype(np.int32)
    units = [best[i, :n] for i, n in enumerate(n_positions)]
    return Generation(units, int(sources.encoded.lengths[rows].sum()))


def logits_of(head: Head, model: nn.Module, sources: Sources, rows: Rows, units: Tensor) -> Tensor:
    """Return the logits of some rows in one pass: `Head.inputs`, moved to the model's device, then `Head.logits`."""
    inputs, device = head.inputs(sources, rows, units), device_of(model)
    return head.logits(model, {name: tensor.to(device) for name, tensor in inputs.items()})


def feed_sink(sink: LogitSink | None, rows: Rows, logits: Tensor, counts: NDArray[np.int64]) -> None:
    """Pass the logits ``[b, P, V]`` of ``rows`` to a sink, the first ``counts[i]`` positions of each."""
    if sink is None:
        return
    which, positions = np.nonzero(np.arange(logits.shape[1]) < counts[:, None])
    sink(rows[which], positions, logits[torch.from_numpy(which), torch.from_numpy(positions)])


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's inputs."""
    return next(model.parameters()).device
