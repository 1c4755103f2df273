"""Heads of models that write their answer: sequence to sequence, and causal (Raffel et al. 2020; Kang et al. 2023, Appendix B).

`TextHead` reads and writes tokens. `ChoiceHead` lets the same models choose among a label set by the probability they give to
each label's tokens: what a teacher of another tokenizer can be compared by.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from outlay.errors import LabelError
from outlay.form import Family, Form, TargetKind
from outlay.settings import TeachSettings
from outlay.train.encode import Encoded, Units, collate, encode, kept_units
from outlay.train.heads import Inputs, Rows, Sources, Speech, Texts, class_units, device_of, logits_of, padded_units
from outlay.train.seeds import step_seed

CAUSAL_SEPARATOR = "\n"
"""Between the text and the answer of a causal model."""


class TextHead:
    """A model that writes: its units are the tokens of the answer, the closing one included."""

    target: TargetKind = "tokens"
    n_outputs: int | None = None

    def __init__(self, tokenizer: Any, form: Form, family: Family) -> None:
        if tokenizer.eos_token_id is None:
            raise LabelError("a model that writes needs an end-of-sequence token, and its tokenizer has none; add one")
        self.form = form
        self.family: Family = family
        self._tokenizer = tokenizer
        self._eos = int(tokenizer.eos_token_id)
        self.pad_unit = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._eos)

    def read(self, texts: Texts) -> Sources:
        """The prefix and the text; a causal model's text ends with a separator."""
        prompts = [(self.form.prefix + row[0],) for row in texts]
        if self.family == "seq2seq":
            return Sources(encode(self._tokenizer, prompts, self.form.max_source_tokens), texts)
        close = self._tokenizer(CAUSAL_SEPARATOR, add_special_tokens=False)["input_ids"]
        encoded = encode(self._tokenizer, prompts, self.form.max_source_tokens - len(close))
        rows = []
        for row in range(len(encoded)):
            ids = encoded.row(row).tolist()
            rows.append([*(ids[:-1] if ids and ids[-1] == self._eos else ids), *close])
        flat = Units.of(rows)
        n_cut = encoded.n_truncated
        return Sources(Encoded(flat.ids, np.zeros_like(flat.ids), flat.offsets, self.pad_unit, n_cut), texts)

    def spell(self, sources: Sources, answers: Sequence[str]) -> Units:
        """The tokens of each answer, cut to the limit; the closing token stays."""
        if not answers:
            return Units.of([])
        how = f"{self.family} of {self.form.max_target_tokens}"
        return kept_units(self._tokenizer, how, answers, lambda: self._spell(answers))

    def _spell(self, answers: Sequence[str]) -> Units:
        limit = self.form.max_target_tokens
        if self.family == "seq2seq":
            rows = self._tokenizer(text_target=list(answers), truncation=False, verbose=False)["input_ids"]
        else:
            plain = self._tokenizer(list(answers), add_special_tokens=False, verbose=False)["input_ids"]
            rows = [[*ids, self._eos] for ids in plain]
        n_cut = sum(len(ids) > limit for ids in rows)
        return Units.of([ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in rows], n_cut=n_cut)

    def n_tokens(self, sources: Sources, units: Units) -> NDArray[np.int64]:
        """The source's and the answer's."""
        total: NDArray[np.int64] = sources.encoded.lengths + units.lengths
        return total

    def inputs(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Of a sequence-to-sequence model: the sources, and the answers (``answers``); of a causal one: both behind one another,
        and where each position's logits are found (``places``, int64 ``[len(rows), P]``)."""
        if self.family == "seq2seq":
            read = _sources_only(sources.encoded, rows)
            return {**read, "answers": units}
        return self._prompt(sources, rows, units)

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """``[len(rows), P, V]``: at each position the logits of its token, given the source and the tokens before it."""
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if self.family == "seq2seq":
            answers = inputs["answers"]
            start = answers.new_full((len(answers), 1), _decoder_start(model))
            decoder = torch.cat([start, answers[:, :-1]], dim=1)
            out: Tensor = model(**read, decoder_input_ids=decoder, use_cache=False).logits
            return out
        logits: Tensor = model(**read, use_cache=False).logits
        return logits.gather(1, inputs["places"].unsqueeze(-1).expand(-1, -1, logits.shape[-1]))

    def speak(
        self, model: nn.Module, sources: Sources, rows: Rows, how: TeachSettings, *, with_logits: bool = False
    ) -> Speech:
        """Write answers; the logits come from one more pass over what was written, as a student reads it."""
        limit = self.form.max_target_tokens
        # The published script counts the start token among ``max_target_tokens``, and its targets have a position behind the end.
        units = self._write(model, sources, rows, how, limit - 1 if how.keep_padding else limit)
        n_tokens = int(sources.encoded.lengths[rows].sum()) + how.beams * sum(len(row) for row in units)
        if not with_logits:
            return Speech(units, None, n_tokens)
        width = limit if how.keep_padding else max(1, max(len(row) for row in units))
        padded = padded_units(units, width, self.pad_unit)
        logits = logits_of(self, model, sources, rows, torch.from_numpy(padded)).float().cpu()
        n_tokens += width * len(units) if how.keep_padding else sum(len(row) for row in units)
        return Speech(units, logits, n_tokens)

    def words(self, sources: Sources, rows: Rows, units: Sequence[NDArray[np.int32]]) -> list[str]:
        """The decoded answers, special tokens left out."""
        texts = self._tokenizer.batch_decode([row.tolist() for row in units], skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    def check_spelling(self, answers: Sequence[str]) -> None:
        """Whether every answer comes back from its tokens as it went in.

        Raises:
            LabelError: one does not, or has more tokens than an answer may have.
        """
        limit = self.form.max_target_tokens
        for answer in answers:
            units = self.spell(Sources(encode(self._tokenizer, [], 1), []), [answer])
            if units.n_cut:
                raise LabelError(f"{answer!r} has more than max_target_tokens = {limit} tokens; raise it")
            said = self.words(Sources(encode(self._tokenizer, [], 1), []), np.zeros(1, np.int64), [units.ids])[0]
            if said != answer:
                raise LabelError(
                    f"the tokenizer cannot spell {answer!r}, it reads back {said!r}; rename it or take another model"
                )

    def _write(
        self, model: nn.Module, sources: Sources, rows: Rows, how: TeachSettings, n_new: int
    ) -> list[NDArray[np.int32]]:
        from transformers import GenerationConfig

        device = device_of(model)
        bare: Any = getattr(model, "module", model)
        config = copy.deepcopy(bare.generation_config or GenerationConfig())
        config.max_length, config.max_new_tokens, config.min_length = None, n_new, 0
        config.num_beams, config.do_sample, config.use_cache = how.beams, how.sample, True
        config.temperature, config.top_p = (how.sample_temperature, how.top_p) if how.sample else (None, None)
        config.top_k = 0 if how.sample else None
        config.pad_token_id, config.eos_token_id = self.pad_unit, self._eos
        # Rows that pad the vocabulary are no tokens. Distillation leaves them as they were: random weights would say them.
        n_tokens, n_rows = len(self._tokenizer), bare.config.get_text_config().vocab_size
        config.suppress_tokens = list(range(n_tokens, n_rows)) or None
        # Equal rows under equal settings are answered alike, whichever block or process they are in.
        torch.manual_seed(step_seed(how.seed, int(sources.encoded.row(int(rows[0])).sum())))
        if self.family == "seq2seq":
            batch = {name: tensor.to(device) for name, tensor in _sources_only(sources.encoded, rows).items()}
            written = bare.generate(**batch, generation_config=config)[:, 1:]
        else:
            prompt = self._left_padded(sources, rows, device)
            written = bare.generate(**prompt, generation_config=config)[:, prompt["input_ids"].shape[1] :]
        return [self._until_end(row) for row in written.cpu().numpy()]

    def _until_end(self, row: NDArray[np.int64]) -> NDArray[np.int32]:
        """What was written up to the closing token: behind it is padding. Without one the limit has cut the answer off."""
        ends = np.flatnonzero(row == self._eos)
        return row[: ends[0] + 1 if len(ends) else len(row)].astype(np.int32)

    def _prompt(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Text and answer, one behind the other, padded on the right; the last unit is only predicted."""
        encoded = sources.encoded
        n_source = torch.from_numpy(encoded.lengths[rows])
        n_before = units.shape[1] - 1
        width = int(n_source.max()) + n_before
        ids = np.full((len(rows), width), self.pad_unit, dtype=np.int64)
        answers = units[:, :-1].numpy()
        for at, row in enumerate(rows):
            source = encoded.row(int(row))
            ids[at, : len(source)] = source
            ids[at, len(source) : len(source) + n_before] = answers[at]
        mask = torch.arange(width).unsqueeze(0) < n_source.unsqueeze(1) + n_before
        places = n_source.unsqueeze(1) - 1 + torch.arange(units.shape[1])
        return {"input_ids": torch.from_numpy(ids), "attention_mask": mask.long(), "places": places}

    def _left_padded(self, sources: Sources, rows: Rows, device: torch.device) -> dict[str, Tensor]:
        encoded = sources.encoded
        width = int(encoded.lengths[rows].max())
        ids = np.full((len(rows), width), self.pad_unit, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for at, row in enumerate(rows):
            source = encoded.row(int(row))
            ids[at, width - len(source) :] = source
            mask[at, width - len(source) :] = 1
        return {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}


class ChoiceHead:
    """A model that writes, asked how likely it would write each label: one position per row, one class per label.

    The logit of a label is the sum of the log-probabilities of its tokens, the closing one included (rank classification,
    Brown et al. 2020, section 2.4, without length normalisation).
    """

    target: TargetKind = "classes"
    pad_unit = 0
    n_outputs: int | None = None

    def __init__(self, text: TextHead) -> None:
        self.form = text.form
        self.family: Family = text.family
        self.writer = text
        self._labels = text.spell(text.read([]), text.form.labels)

    def read(self, texts: Texts) -> Sources:
        """As the model that writes."""
        return self.writer.read(texts)

    def spell(self, sources: Sources, answers: Sequence[str]) -> Units:
        """The class of each answer."""
        return class_units(self.form, answers)

    def n_tokens(self, sources: Sources, units: Units) -> NDArray[np.int64]:
        """Every label is read with its own copy of the source."""
        n_labels, n_answer = len(self._labels), int(self._labels.lengths.sum())
        total: NDArray[np.int64] = n_labels * sources.encoded.lengths + n_answer
        return total

    def inputs(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Each source with each label: as the model that writes, the labels' tokens (``spelt``) and which are ``real``."""
        n_labels = len(self._labels)
        tokens, mask = self._labels.batch(np.arange(n_labels))
        repeated = np.repeat(np.asarray(rows), n_labels)
        spelt = tokens.repeat(len(rows), 1)
        return {**self.writer.inputs(sources, repeated, spelt), "spelt": spelt, "real": mask.repeat(len(rows), 1)}

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """``[len(rows), 1, labels]``."""
        logits = self.writer.logits(model, inputs)
        log_p = F.log_softmax(logits.float(), dim=-1).gather(-1, inputs["spelt"].unsqueeze(-1)).squeeze(-1)
        scores = torch.where(inputs["real"], log_p, log_p.new_zeros(())).sum(-1)
        return scores.reshape(-1, 1, len(self._labels))

    def speak(
        self, model: nn.Module, sources: Sources, rows: Rows, how: TeachSettings, *, with_logits: bool = False
    ) -> Speech:
        """The likeliest label."""
        logits = logits_of(self, model, sources, rows, torch.empty(0)).float().cpu()
        units = [np.array([int(unit)], dtype=np.int32) for unit in logits[:, 0].argmax(-1)]
        return Speech(units, logits, int(self.n_tokens(sources, self._labels)[rows].sum()))

    def words(self, sources: Sources, rows: Rows, units: Sequence[NDArray[np.int32]]) -> list[str]:
        """Labels."""
        return [self.form.labels[int(row[0])] for row in units]


def _sources_only(encoded: Encoded, rows: Rows) -> Inputs:
    """The sources side by side for a model that knows no segments."""
    batch = collate(encoded, rows)
    del batch["token_type_ids"]
    return batch


def _decoder_start(model: nn.Module) -> int:
    config: Any = getattr(model, "module", model).config
    start = config.decoder_start_token_id
    return int(start if start is not None else config.bos_token_id)
