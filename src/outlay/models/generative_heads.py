"""Heads of generative models: sequence to sequence, and causal (Raffel et al. 2020; Kang et al. 2023, Appendix B).

`GenerationHead` generates tokens. `RankClassificationHead` makes the same models choose among a label set by the probability
of each label's tokens, so that teacher and student may have different tokenizers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from outlay.errors import LabelError
from outlay.models.decoder_cache import unwrapped
from outlay.models.decoding import (
    DecodingState,
    OnLogits,
    constrained_greedy,
    greedy,
    is_plain_greedy,
    n_scored,
    score_candidates,
)
from outlay.models.heads import (
    ClassAnswers,
    Generation,
    Inputs,
    LogitSink,
    Rows,
    Sources,
    Texts,
    device_of,
    feed_sink,
    logits_of,
)
from outlay.models.seeds import step_seed
from outlay.models.tokenization import AnswerIds, Encoded, cached_answers, collate, encode
from outlay.settings import TeachSettings
from outlay.spec import Family, TargetKind, TaskSpec

CAUSAL_SEPARATOR = "\n"
"""Separator between the text and the answer of a causal model."""

_CHUNK_LOGITS = 1 << 25
"""Logits held at once (128 MiB of float32), where more than one position of a row is asked for."""

_CHUNK_TOKENS = 1 << 15
"""Tokens whose keys and values are held at once, where each label is scored behind a row."""


class GenerationHead:
    """Head of a generative model: answer ids are tokens, the closing one included."""

    target: TargetKind = "tokens"
    n_outputs: int | None = None

    def __init__(self, tokenizer: Any, form: TaskSpec, family: Family) -> None:
        if tokenizer.eos_token_id is None:
            raise LabelError("a model that writes needs an end-of-sequence token, and its tokenizer has none; add one")
        self.form = form
        self.family: Family = family
        self.tokenizer = tokenizer
        self._eos = int(tokenizer.eos_token_id)
        self.pad_unit = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._eos)

    def tokenize(self, texts: Texts) -> Sources:
        """Return the prefix and the text; a causal model's text ends with a separator."""
        prompts = [(self.form.prefix + row[0],) for row in texts]
        if self.family == "seq2seq":
            return Sources(encode(self.tokenizer, prompts, self.form.max_source_tokens), texts)
        close = self.tokenizer(CAUSAL_SEPARATOR, add_special_tokens=False)["input_ids"]
        encoded = encode(self.tokenizer, prompts, self.form.max_source_tokens - len(close))
        rows = []
        for ids in as_lists(encoded):
            rows.append([*(ids[:-1] if ids and ids[-1] == self._eos else ids), *close])
        flat = AnswerIds.of(rows)
        type_ids = np.zeros_like(flat.ids)
        return Sources(Encoded(flat.ids, type_ids, flat.offsets, self.pad_unit, encoded.n_truncated), texts)

    def encode_answers(self, sources: Sources, answers: Sequence[str]) -> AnswerIds:
        """Return the tokens of each answer, cut to the limit; the closing token stays."""
        if not answers:
            return AnswerIds.of([])
        how = f"{self.family} of {self.form.max_target_tokens}"
        return cached_answers(self.tokenizer, how, answers, lambda: self._encode_answers(answers))

    def _encode_answers(self, answers: Sequence[str]) -> AnswerIds:
        limit = self.form.max_target_tokens
        if self.family == "seq2seq":
            rows = self.tokenizer(text_target=list(answers), truncation=False, verbose=False)["input_ids"]
        else:
            plain = self.tokenizer(list(answers), add_special_tokens=False, verbose=False)["input_ids"]
            rows = [[*ids, self._eos] for ids in plain]
        n_cut = sum(len(ids) > limit for ids in rows)
        return AnswerIds.of([ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in rows], n_cut=n_cut)

    def n_tokens(self, sources: Sources, units: AnswerIds) -> NDArray[np.int64]:
        """Return the source's and the answer's."""
        total: NDArray[np.int64] = sources.encoded.lengths + units.lengths
        return total

    def inputs(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Return sources and ``answers``; of a causal model both in one, and ``places`` of logits, int64 ``[len(rows), P]``."""
        if self.family == "seq2seq":
            return {**_sources_only(sources.encoded, rows), "answers": units}
        return self._prompts_with_answers(sources, rows, units)

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the logits ``[len(rows), P, V]`` of each position's token, given the source and the tokens before it."""
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if self.family == "seq2seq":
            return _teacher_forced(model, read, inputs["answers"])
        logits: Tensor = model(**read, use_cache=False).logits
        return logits.gather(1, inputs["places"].unsqueeze(-1).expand(-1, -1, logits.shape[-1]))

    def generate(
        self, model: nn.Module, sources: Sources, rows: Rows, settings: TeachSettings, *, sink: LogitSink | None = None
    ) -> Generation:
        """Generate answers; the sink gets the logits of the steps that generated them.

        Beams and samples leave no such logits, and padding has no step: then one more pass reads the answers, as a student does.
        """
        limit = self.form.max_target_tokens
        # The published script counts the start token among ``max_target_tokens``, and its targets have a position behind the end.
        n_new = limit - 1 if settings.keep_padding else limit
        is_greedy = settings.beams == 1 and not settings.sample
        needs_pass = sink is not None and (settings.keep_padding or not is_greedy)
        step_sink = None if needs_pass else sink
        if is_greedy and settings.answers_from == "labels" and self.form.kind == "classification":
            units = self._choose_labels(model, sources, rows, step_sink)
        else:
            units = self._write_freely(model, sources, rows, settings, n_new, step_sink)
        n_written = sum(len(row) for row in units)
        n_tokens = int(sources.encoded.lengths[rows].sum()) + settings.beams * n_written
        if sink is None or not needs_pass:
            return Generation(units, n_tokens)
        self._second_pass(model, sources, rows, units, limit if settings.keep_padding else None, sink)
        return Generation(units, n_tokens + (limit * len(units) if settings.keep_padding else n_written))

    def decode(self, sources: Sources, rows: Rows, units: Sequence[NDArray[np.int32]]) -> list[str]:
        """Return the decoded answers, special tokens left out."""
        texts = self.tokenizer.batch_decode([row.tolist() for row in units], skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    def check_spelling(self, answers: Sequence[str]) -> None:
        """Refuse an answer that tokenizing and decoding does not give back.

        Raises:
            LabelError: one does not, or has more tokens than an answer may have.
        """
        limit = self.form.max_target_tokens
        none = self.tokenize([])
        for answer in answers:
            units = self.encode_answers(none, [answer])
            if units.n_cut:
                raise LabelError(f"{answer!r} has more than max_target_tokens = {limit} tokens; raise it")
            decoded = self.decode(none, np.zeros(1, np.int64), [units.ids])[0]
            if decoded != answer:
                raise LabelError(
                    f"the tokenizer cannot spell {answer!r}, it reads back {decoded!r}; rename it or take another model"
                )

    def decoding_state(self, model: nn.Module, sources: Sources, rows: Rows) -> DecodingState:
        """Return the decoding state of rows before their first token."""
        start = _decoder_start(model) if self.family == "seq2seq" else None
        return DecodingState(model, self._prompts(model, sources, rows), start)

    def _choose_labels(
        self, model: nn.Module, sources: Sources, rows: Rows, sink: LogitSink | None
    ) -> list[NDArray[np.int32]]:
        """Return the tokens of a label for each row, by `constrained_greedy`."""
        labels = self.encode_answers(self.tokenize([]), self.form.labels)
        paths = as_lists(labels)
        units: list[NDArray[np.int32]] = []
        for chunk in _chunks(rows, int(labels.lengths.max()) * _n_vocabulary(model)):
            state = self.decoding_state(model, sources, chunk)
            chosen = constrained_greedy(state, paths, on_logits=_logits_callback(sink, chunk))
            units += [np.array(paths[i], dtype=np.int32) for i in chosen]
        return units

    def _write_freely(
        self,
        model: nn.Module,
        sources: Sources,
        rows: Rows,
        settings: TeachSettings,
        n_new: int,
        sink: LogitSink | None,
    ) -> list[NDArray[np.int32]]:
        config = self._config(model, settings, n_new)
        if is_plain_greedy(config):
            state, on_logits = self.decoding_state(model, sources, rows), _logits_callback(sink, rows)
            return greedy(state, n_new=n_new, closing=self._eos, n_choices=len(self.tokenizer), on_logits=on_logits)
        # Equal rows under equal settings are answered alike, whichever block or process they are in.
        torch.manual_seed(step_seed(settings.seed, int(sources.encoded.row(int(rows[0])).sum())))
        if sink is None:
            return self._generate(model, sources, rows, config, None)
        units: list[NDArray[np.int32]] = []
        for chunk in _chunks(rows, n_new * _n_vocabulary(model)):
            units += self._generate(model, sources, chunk, config, sink)
        return units

    def _config(self, model: nn.Module, settings: TeachSettings, n_new: int) -> Any:
        """Return the model's own `GenerationConfig`, with our limits and way of searching."""
        from transformers import GenerationConfig

        config = copy.deepcopy(unwrapped(model).generation_config or GenerationConfig())
        config.max_length, config.max_new_tokens, config.min_length = None, n_new, 0
        config.num_beams, config.do_sample, config.use_cache = settings.beams, settings.sample, True
        config.temperature = config.top_p = config.top_k = None
        if settings.sample:
            config.temperature, config.top_p, config.top_k = settings.sample_temperature, settings.top_p, 0
        config.pad_token_id, config.eos_token_id = self.pad_unit, self._eos
        if self.family == "seq2seq":
            config.decoder_start_token_id = _decoder_start(model)
        # Rows that pad the vocabulary are no tokens. Distillation leaves them as they were: random weights would generate them.
        config.suppress_tokens = list(range(len(self.tokenizer), _n_vocabulary(model))) or None
        return config

    def _generate(
        self, model: nn.Module, sources: Sources, rows: Rows, config: Any, sink: LogitSink | None
    ) -> list[NDArray[np.int32]]:
        """Return the output of `generate`, for ways of decoding that `greedy` does not know."""
        prompts = self._prompts(model, sources, rows)
        config.return_dict_in_generate, config.output_logits = True, sink is not None
        out = unwrapped(model).generate(**prompts, generation_config=config)
        n_before = prompts["input_ids"].shape[1] if self.family == "causal" else 1
        units = [self._cut_behind_end(row) for row in out.sequences[:, n_before:].cpu().numpy()]
        if sink is not None:
            lengths = np.array([len(row) for row in units])
            for position, logits in enumerate(out.logits):
                here = np.flatnonzero(lengths > position)
                sink(rows[here], np.full(len(here), position), logits[torch.from_numpy(here)])
        return units

    def _second_pass(
        self,
        model: nn.Module,
        sources: Sources,
        rows: Rows,
        units: Sequence[NDArray[np.int32]],
        width: int | None,
        sink: LogitSink,
    ) -> None:
        """Pass on the logits of answers already generated, padded up to ``width`` where one is given."""
        answers = AnswerIds.of(units)
        padded, _ = answers.batch(np.arange(len(units)), width=width, pad=self.pad_unit)
        lengths = answers.lengths if width is None else np.full(len(units), width)
        for at in _chunks(np.arange(len(rows)), padded.shape[1] * _n_vocabulary(model)):
            logits = logits_of(self, model, sources, rows[at], padded[torch.from_numpy(at)])
            feed_sink(sink, rows[at], logits, lengths[at])

    def _cut_behind_end(self, row: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the tokens up to the closing one: behind it is padding. Without one the limit has cut the answer off."""
        ends = np.flatnonzero(row == self._eos)
        return row[: ends[0] + 1 if len(ends) else len(row)].astype(np.int32)

    def _prompts_with_answers(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Return text and answer concatenated, padded on the right; the last unit is only predicted."""
        n_source = sources.encoded.lengths[rows][:, None]
        answers = units[:, :-1].numpy()
        places = np.arange(int(n_source.max()) + answers.shape[1])
        mask = places < n_source + answers.shape[1]
        ids = np.full(mask.shape, self.pad_unit, dtype=np.int64)
        texts = (sources.encoded.row(int(row)) for row in rows)
        ids[mask] = np.concatenate([part for pair in zip(texts, answers, strict=True) for part in pair])
        of_logits = torch.from_numpy(n_source) - 1 + torch.arange(units.shape[1])
        return {**_tensors(ids, mask), "places": of_logits}

    def _prompts(self, model: nn.Module, sources: Sources, rows: Rows) -> Inputs:
        """Return what the model reads before its first token, on its device; of a causal model padded on the left."""
        if self.family == "seq2seq":
            read = _sources_only(sources.encoded, rows)
        else:
            n_source = sources.encoded.lengths[rows][:, None]
            width = int(n_source.max())
            mask = np.arange(width) >= width - n_source
            ids = np.full(mask.shape, self.pad_unit, dtype=np.int64)
            ids[mask] = np.concatenate([sources.encoded.row(int(row)) for row in rows])
            read = _tensors(ids, mask)
        device = device_of(model)
        return {name: tensor.to(device) for name, tensor in read.items()}


class RankClassificationHead(ClassAnswers):
    """Head that scores each label by its log-probability under a generative model.

    The logit of a label is the sum of the log-probabilities of its tokens, the closing one included (rank classification,
    Brown et al. 2020, section 2.4, without length normalisation).
    """

    n_outputs: int | None = None

    def __init__(self, text: GenerationHead) -> None:
        self.form = text.form
        self.family: Family = text.family
        self.writer = text
        self._labels = text.encode_answers(text.tokenize([]), text.form.labels)

    def tokenize(self, texts: Texts) -> Sources:
        """Tokenise sources as the generation head does."""
        return self.writer.tokenize(texts)

    def n_tokens(self, sources: Sources, units: AnswerIds) -> NDArray[np.int64]:
        """Return the source's and all labels': a causal model reads every label with its own copy of the source."""
        n_sources = 1 if self.family == "seq2seq" else len(self._labels)
        total: NDArray[np.int64] = n_sources * sources.encoded.lengths + int(self._labels.lengths.sum())
        return total

    def inputs(self, sources: Sources, rows: Rows, units: Tensor) -> Inputs:
        """Return the sources, and ``label_ids`` and ``label_mask`` of all labels for each, ``[len(rows) * labels, A]``."""
        n_labels = len(self._labels)
        label_ids, label_mask = (each.repeat(len(rows), 1) for each in self._labels.batch(np.arange(n_labels)))
        if self.family == "seq2seq":
            read = _sources_only(sources.encoded, rows)
        else:
            read = self.writer.inputs(sources, np.repeat(rows, n_labels), label_ids)
        return {**read, "label_ids": label_ids, "label_mask": label_mask}

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the labels' log-probabilities, ``[len(rows), 1, labels]``."""
        if self.family == "seq2seq":
            logits = _teacher_forced(
                model, _repeated_encoder_outputs(model, inputs, len(self._labels)), inputs["label_ids"]
            )
        else:
            logits = self.writer.logits(model, inputs)
        log_p = F.log_softmax(logits.float(), dim=-1).gather(-1, inputs["label_ids"].unsqueeze(-1)).squeeze(-1)
        scores = torch.where(inputs["label_mask"], log_p, log_p.new_zeros(())).sum(-1)
        return scores.reshape(-1, 1, len(self._labels))

    def generate(
        self, model: nn.Module, sources: Sources, rows: Rows, settings: TeachSettings, *, sink: LogitSink | None = None
    ) -> Generation:
        """Return the likeliest label; the source is read once for all of them."""
        paths = as_lists(self._labels)
        longest, n_labels = int(self._labels.lengths.max()), len(paths)
        n_read = n_labels * (int(sources.encoded.lengths[rows].max()) + longest)
        units: list[NDArray[np.int32]] = []
        for chunk in _chunks(rows, n_labels * longest * _n_vocabulary(model), n_read):
            scores = score_candidates(self.writer.decoding_state(model, sources, chunk), paths)
            feed_sink(sink, chunk, scores.unsqueeze(1), np.ones(len(chunk), dtype=np.int64))
            units += list(scores.argmax(dim=-1).cpu().numpy().astype(np.int32)[:, None])
        return Generation(units, int(sources.encoded.lengths[rows].sum()) + len(rows) * n_scored(paths))


def _sources_only(encoded: Encoded, rows: Rows) -> Inputs:
    """Return the sources side by side for a model that knows no segments."""
    batch = collate(encoded, rows)
    del batch["token_type_ids"]
    return batch


def _tensors(ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> Inputs:
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask).long()}


def as_lists(rows: Encoded | AnswerIds) -> list[list[int]]:
    """Return the ids of each row as a list."""
    return [rows.row(row).tolist() for row in range(len(rows))]


def _logits_callback(sink: LogitSink | None, rows: Rows) -> OnLogits | None:
    """Return a sink for rows of the sources, as the rows of a batch see it."""
    if sink is None:
        return None
    return lambda at, position, logits: sink(rows[at], np.full(len(at), position, dtype=np.int64), logits)


def _chunks(rows: Rows, n_logits: int, n_cached: int = 1) -> list[Rows]:
    """Split rows into chunks of `_CHUNK_LOGITS` and `_CHUNK_TOKENS` at most; ``n_logits``, ``n_cached``: of one row."""
    size = max(1, min(_CHUNK_LOGITS // max(1, n_logits), _CHUNK_TOKENS // n_cached))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _teacher_forced(model: nn.Module, read: Mapping[str, Any], answers: Tensor) -> Tensor:
    """Return the logits ``[b, P, V]`` of answers ``[b, P]`` by teacher forcing."""
    start = answers.new_full((len(answers), 1), _decoder_start(model))
    decoder = torch.cat([start, answers[:, :-1]], dim=1)
    logits: Tensor = model(**read, decoder_input_ids=decoder, use_cache=False).logits
    return logits


def _repeated_encoder_outputs(model: nn.Module, inputs: Inputs, n: int) -> dict[str, Any]:
    """Return the encoder's outputs, each source repeated ``n`` times; computed once per source.

    Sharded weights (FSDP) are gathered for the model as a whole: then the encoder reads the copies.
    """
    from torch.distributed.fsdp import FSDPModule
    from transformers.modeling_outputs import BaseModelOutput

    mask = inputs["attention_mask"].repeat_interleave(n, dim=0)
    if isinstance(model, FSDPModule):
        return {"input_ids": inputs["input_ids"].repeat_interleave(n, dim=0), "attention_mask": mask}
    hidden = unwrapped(model).get_encoder()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0]
    return {"encoder_outputs": BaseModelOutput(hidden.repeat_interleave(n, dim=0)), "attention_mask": mask}


def _n_vocabulary(model: nn.Module) -> int:
    """Return the size of the vocabulary, padding rows included."""
    return int(unwrapped(model).config.get_text_config().vocab_size)


def _decoder_start(model: nn.Module) -> int:
    config = unwrapped(model).config
    start = config.decoder_start_token_id
    return int(start if start is not None else config.bos_token_id)
