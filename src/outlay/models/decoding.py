"""Decoding token by token, with each source read once.

`DecodingState` is a batch of rows with its key-value cache, so that a token costs one step of the decoder; rows that have ended
leave the batch. Three algorithms use it: `greedy` (the likeliest token at each step), `constrained_greedy` (the likeliest token
that continues an allowed answer) and `score_candidates` (the log-probability of each allowed answer; generates nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from outlay.models.decoder_cache import cache_in, parameters, with_cache
from outlay.models.tokenization import AnswerIds

Tokens = Sequence[int]
"""An allowed answer, the closing token included."""

OnLogits = Callable[[NDArray[np.int64], int, Tensor], None]
"""Callback of each step: the rows that still decode (int64 ``[n]``), the position, and its logits ``[n, V]``."""

_LEAVE_SHARE = 4
"""Rows that have ended leave the batch once they are one in so many, so that the cache is not copied for each of them."""

_GREEDY_IGNORES = frozenset(
    (
        *("max_length", "max_new_tokens", "min_length", "suppress_tokens", "do_sample", "num_beams", "use_cache"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "early_stopping", "length_penalty"),
        *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        *("cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
        *("renormalize_logits", "_from_model_config", "transformers_version"),
    )
)
_GREEDY_IGNORES_AT: dict[str, float] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), 1),
    **dict.fromkeys(("num_return_sequences", "num_beam_groups"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_new_tokens", "diversity_penalty"), 0),
}


class DecodingState:
    """A batch of rows being decoded, with its key-value cache.

    ``read``: ``input_ids`` and ``attention_mask``, int64 ``[b, S]``, where the model is; a causal model's are padded on the left.
    ``start``: what a decoder reads before its first token; ``None`` for a causal model, which goes on from its prompt.
    """

    def __init__(self, model: nn.Module, read: dict[str, Tensor], start: int | None) -> None:
        self._model = model
        self._ids, self._mask = read["input_ids"], read["attention_mask"]
        self._start = start
        self._cache: Any = None
        self._memory: Tensor | None = None
        self._takes = parameters(model)
        self._has_positions, self._may_skip = "position_ids" in self._takes, "logits_to_keep" in self._takes

    def __len__(self) -> int:
        return len(self._mask)

    def begin(self, first: Tokens = ()) -> Tensor:
        """Read the sources, and the tokens ``first`` that every answer begins with.

        Returns the logits ``[b, len(first) + 1, V]`` of those tokens and of the one behind them.
        """
        tokens = self._ids.new_tensor(list(first)).expand(len(self), -1)
        if self._start is None:
            return self._go_on(torch.cat([self._ids, tokens], dim=1), 1 + len(first))
        decoder = torch.cat([self._ids.new_full((len(self), 1), self._start), tokens], dim=1)
        out = self._model(input_ids=self._ids, attention_mask=self._mask, decoder_input_ids=decoder, use_cache=True)
        self._cache, self._memory = cache_in(out), out.encoder_last_hidden_state
        logits: Tensor = out.logits
        return logits

    def go_on(self, tokens: Tensor) -> Tensor:
        """Read ``tokens`` ``[b, k]`` of the answers; returns the logits ``[b, k, V]`` of what follows each."""
        if self._start is None:
            return self._go_on(tokens, tokens.shape[1])
        from transformers.modeling_outputs import BaseModelOutput

        out = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._memory),
            attention_mask=self._mask,
            decoder_input_ids=tokens,
            **with_cache(self._takes, self._cache),
        )
        logits: Tensor = out.logits
        return logits

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with ``rows`` alone, in this order."""
        # An index on the CPU serves layers on any device.
        at = torch.from_numpy(rows)
        self._cache.batch_select_indices(at)
        self._mask = self._mask[at]
        if self._memory is not None:
            self._memory = self._memory[at]

    def repeat(self, n: int) -> None:
        """Go on with each row ``n`` times, the copies side by side."""
        self._cache.batch_repeat_interleave(n)
        self._mask = self._mask.repeat_interleave(n, dim=0)
        if self._memory is not None:
            self._memory = self._memory.repeat_interleave(n, dim=0)

    def _go_on(self, tokens: Tensor, n_logits: int) -> Tensor:
        """Read ``tokens`` behind the text of a causal model; return the logits of the last ``n_logits`` of them."""
        n_new = n_logits - 1 if self._cache is None else tokens.shape[1]  # the mask of the text is there
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(self), n_new))], dim=1)
        more: dict[str, Any] = {}
        if self._has_positions:
            positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
            more["position_ids"] = positions[:, -tokens.shape[1] :]
        if self._may_skip:
            more["logits_to_keep"] = n_logits
        out = self._model(input_ids=tokens, attention_mask=self._mask, **with_cache(self._takes, self._cache), **more)
        self._cache = cache_in(out)
        logits: Tensor = out.logits[:, -n_logits:]
        return logits


def greedy(
    state: DecodingState, *, n_new: int, closing: int, n_choices: int, on_logits: OnLogits | None = None
) -> list[NDArray[np.int32]]:
    """Return the likeliest token at each step, until ``closing`` or ``n_new`` tokens, as `generate` does by default.

    Only the first ``n_choices`` of the vocabulary are chosen from; ``on_logits`` gets the logits of all of it. Returns one row
    of tokens each, the closing one included.
    """
    chosen_ids = np.zeros((len(state), n_new), dtype=np.int32)
    lengths = np.zeros(len(state), dtype=np.int64)
    held = np.arange(len(state))
    writes = np.ones(len(state), dtype=bool)
    logits = state.begin()[:, -1]
    for position in range(n_new):
        tokens = logits[:, :n_choices].argmax(dim=-1)
        at = np.flatnonzero(writes)
        if on_logits is not None:
            on_logits(held[at], position, _picked(logits, at))
        chosen = tokens.cpu().numpy()
        chosen_ids[held[at], position] = chosen[at]
        lengths[held[at]] = position + 1
        writes &= chosen != closing
        n_writing = int(writes.sum())
        if n_writing == 0 or position + 1 == n_new:
            break
        if (len(held) - n_writing) * _LEAVE_SHARE >= len(held):
            stay = np.flatnonzero(writes)
            state.keep(stay)
            held, writes, tokens = held[stay], writes[stay], tokens[torch.from_numpy(stay)]
        logits = state.go_on(tokens.unsqueeze(1))[:, -1]
    return [row[:length] for row, length in zip(chosen_ids, lengths, strict=True)]


def constrained_greedy(
    state: DecodingState, paths: Sequence[Tokens], *, on_logits: OnLogits | None = None
) -> NDArray[np.int64]:
    """Return the path each row decodes to, int64 ``[b]``: where paths part, the likeliest token that continues one.

    It equals the output of `greedy` wherever that is one of the paths. Tokens without an alternative are read together, in one
    step from one branch to the next. No path may be the beginning of another; closing tokens see to that.
    """
    order = sorted(range(len(paths)), key=lambda i: list(paths[i]))  # equal logits: the smaller token, as in `argmax`
    table, lengths = _table([paths[i] for i in order])
    longest = int(lengths.max())
    stops = [*_branch_points(paths), longest - 1]
    is_open = np.ones((len(state), len(paths)), dtype=bool)
    chosen_ids = np.zeros(len(state), dtype=np.int64)
    held = np.arange(len(state))
    logits = state.begin(table[0, : stops[0]].tolist())
    _pass_each(on_logits, held, 0, logits, np.full(len(held), longest))
    for branch, stop in pairwise(stops):
        options = torch.from_numpy(table[:, branch]).to(logits.device)
        scores = logits[:, -1].index_select(-1, options).float().cpu().numpy()
        best = np.where(is_open[held], scores, -np.inf).argmax(axis=1)  # an answer that has ended is alone and stays
        chosen_ids[held] = best
        is_open[held] &= table[:, branch] == table[best, branch][:, None]
        stay = np.flatnonzero(lengths[best] > branch + 1)
        if len(stay) == 0:
            break
        if len(stay) < len(held):
            state.keep(stay)
            held, best = held[stay], best[stay]
        logits = state.go_on(torch.from_numpy(table[best, branch:stop]).to(logits.device))
        _pass_each(on_logits, held, branch + 1, logits, lengths[best])
    return np.asarray(order, dtype=np.int64)[chosen_ids]


def score_candidates(state: DecodingState, paths: Sequence[Tokens]) -> Tensor:
    """Return the log-probability of each of ``paths``, float32 ``[b, len(paths)]``, where the model is.

    Their common beginning is read once, their other tokens side by side; the last token of a path is only predicted, and a
    path that is the beginning of another needs no reading of its own.
    """
    n_shared, read = _to_read(paths)
    logits = state.begin(paths[0][:n_shared])
    spots = [(i, 0, at, token) for i, path in enumerate(paths) for at, token in enumerate(path[: n_shared + 1])]
    total = _sums(logits.unsqueeze(1), spots, len(paths))
    if not read:
        return total
    n_rows = len(state)
    state.repeat(len(read))
    table = torch.from_numpy(_table(read)[0]).to(logits.device)
    logits = state.go_on(table.repeat(n_rows, 1))
    logits = logits.reshape(n_rows, len(read), *logits.shape[1:])
    spots = []
    for i, path in enumerate(paths):
        rest = tuple(path[n_shared:-1])
        where = next(k for k, other in enumerate(read) if other[: len(rest)] == rest)
        spots += [(i, where, at, token) for at, token in enumerate(path[n_shared + 1 :])]
    return total + _sums(logits, spots, len(paths))


def n_scored(paths: Sequence[Tokens]) -> int:
    """Return the number of tokens of a row's answers that `score_candidates` reads, a start token included."""
    n_shared, read = _to_read(paths)
    return 1 + n_shared + sum(len(rest) for rest in read)


def is_plain_greedy(config: Any) -> bool:
    """Return whether `generate` with this `GenerationConfig` takes the likeliest token at each step.

    Unknown settings count as asking for more.
    """
    if (config.num_beams or 1) > 1 or config.do_sample:
        return False
    asked = {name: value for name, value in config.to_diff_dict().items() if name not in _GREEDY_IGNORES}
    return all(
        value is None or value is False or value == _GREEDY_IGNORES_AT.get(name) for name, value in asked.items()
    )


def _table(paths: Sequence[Tokens]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return paths as a padded array, int64 ``[len(paths), longest]``, 0 behind their ends; and their lengths."""
    rows = AnswerIds.of(paths)
    return rows.batch(range(len(rows)))[0].numpy(), rows.lengths


def _branch_points(paths: Sequence[Tokens]) -> list[int]:
    """Return the positions, rising, at which some paths that were alike so far go on with different tokens."""
    tokens: dict[tuple[int, ...], set[int]] = {}
    for path in paths:
        for at, token in enumerate(path):
            tokens.setdefault(tuple(path[:at]), set()).add(token)
    return sorted({len(before) for before, after in tokens.items() if len(after) > 1})


def _to_read(paths: Sequence[Tokens]) -> tuple[int, list[tuple[int, ...]]]:
    """Return the number of tokens that all paths begin with (the last of none), and what else must be read, each once."""
    n_shared = min([*_branch_points(paths), *(len(path) - 1 for path in paths)])
    rests = dict.fromkeys(tuple(path[n_shared:-1]) for path in paths)
    longer = [other for other in rests if other]
    return n_shared, [one for one in longer if not any(one != other and other[: len(one)] == one for other in longer)]


def _pass_each(
    on_logits: OnLogits | None, rows: NDArray[np.int64], start: int, logits: Tensor, lengths: NDArray[np.int64]
) -> None:
    """Pass on the logits ``[n, k, V]`` of the positions from ``start`` on, those before the end of each row's answer."""
    if on_logits is None:
        return
    for at in range(logits.shape[1]):
        here = np.flatnonzero(lengths > start + at)
        if len(here):
            on_logits(rows[here], start + at, _picked(logits[:, at], here))


def _picked(logits: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """Return some rows of logits; no copy where it is all of them."""
    return logits if len(rows) == len(logits) else logits[torch.from_numpy(rows)]


def _sums(logits: Tensor, spots: Sequence[tuple[int, int, int, int]], n_paths: int) -> Tensor:
    """Return the sums of log-probabilities by path, float32 ``[b, n_paths]``.

    ``logits``: ``[b, read, positions, V]``; each of ``spots``: a path, where it was read, a position and the token behind it.
    """
    path, read, position, token = torch.tensor(spots).reshape(-1, 4).to(logits.device).unbind(dim=1)
    log_sum = torch.logsumexp(logits.float(), dim=-1)
    log_p = logits[:, read, position, token].float() - log_sum[:, read, position]
    by_position = log_p.new_zeros((len(logits), n_paths, logits.shape[2]))
    by_position[:, path, position] = log_p
    return by_position.sum(dim=-1)
