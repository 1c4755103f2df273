"""Sparse logits in memory and on disk: positions laid end to end in numpy arrays, ragged, gathered without loops.

A position keeps its largest logits. Where the whole vocabulary is kept (*complete*), they are raw and float32. Else only what a
softmax sees is kept: by how much each lies below the largest, in float16, and log-sum-exps less the largest logit over T. These
are moved by log(Σ_kept exp(rounded z / T) / Σ_kept exp(z / T)), so that what is kept has the mass it had before rounding, and
the mass of all others, one less that, is right to the precision of float32. Under unmoved log-sum-exps it would take up the
rounding of all that is kept, a thousand times its own size where a teacher is sure (docs/distillation.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlay.settings import TEMPERATURES, TeachSettings
from outlay.spec import TargetKind

Array = NDArray[Any]

MAX_LOGITS = TeachSettings().max_logits
TAIL_MASS = TeachSettings().tail_mass

_NARROW_VOCABULARY = 1 << 16
"""Size of a vocabulary that a uint16 can number."""


@dataclass(frozen=True, slots=True)
class SparsityRule:
    """Sparsity rule: the logits kept of a position, the same for all positions of some targets.

    ``kind``: what a unit is; ``vocab_size``: V, classes the teacher chose among (0 for ``text``); ``max_logits``, ``tail_mass``:
    as in `outlay.settings.TeachSettings`, both 0 where every class is kept; ``temperatures``: those with a log-sum-exp.
    """

    kind: TargetKind
    vocab_size: int
    max_logits: int = 0
    tail_mass: float = 0.0
    temperatures: tuple[float, ...] = TEMPERATURES

    @classmethod
    def of(
        cls,
        kind: TargetKind,
        vocab_size: int,
        max_logits: int,
        tail_mass: float,
        temperatures: Sequence[float] = TEMPERATURES,
    ) -> SparsityRule:
        """Build the rule: label sets, and vocabularies of at most ``max_logits``, are kept whole."""
        whole = kind != "tokens" or max_logits == 0 or max_logits >= vocab_size
        offered = tuple(float(t) for t in temperatures)
        return cls(kind, vocab_size, 0 if whole else max_logits, 0.0 if whole else float(tail_mass), offered)

    @property
    def complete(self) -> bool:
        """Every class is kept at every position."""
        return self.max_logits == 0

    @property
    def limit(self) -> int:
        """Most logits that a position keeps."""
        return self.max_logits or self.vocab_size


@dataclass(frozen=True, slots=True, eq=False)
class SparseLogits:
    """N positions and the M logits that they keep, end to end.

    ``units``: ``[N]`` int32 (uint16 where it can be), the predicted class, tag or token;
    ``logsumexp``: ``[N, temperatures]`` float32, log Σ_v exp(z_v / T) over the full vocabulary, at the level of ``logits``;
    ``indices``: ``[M]`` int32 (uint16 where V allows), classes by falling logit within a position, equal ones by number;
    ``n_kept``: ``[N]`` unsigned, how many a position keeps, at least 1; ``None`` = V each;
    ``logits``: raw, ``[M]`` float32, where the whole vocabulary is kept; else ``[M - N]`` float16, those of a position less its
    largest, which is left out.
    """

    units: Array
    logsumexp: Array
    indices: Array
    n_kept: Array | None
    logits: Array

    def __len__(self) -> int:
        return len(self.units)

    @classmethod
    def pack(
        cls, rule: SparsityRule, units: Array, n_kept: Array, indices: Array, logits: Array, logsumexp: Array
    ) -> SparseLogits:
        """Build from ``logits`` ``[M]`` beside ``indices`` ``[M]``, of each position ``n_kept`` ``[N]``, falling.

        They may be at any level within a position (raw, or log-probabilities), the one of ``logsumexp`` ``[N, temperatures]``.

        Raises:
            ValueError: lengths that do not belong together, a position without logits or with too many, logits that rise.
        """
        counts = np.asarray(n_kept, dtype=np.int64)
        n, m = len(units), int(counts.sum())
        limit = rule.limit
        if (len(counts), len(logsumexp), len(indices), len(logits)) != (n, n, m, m):
            raise ValueError(
                f"{n} units and {m} logits kept come with {len(counts)} counts, {len(logsumexp)} log-sum-exps, "
                f"{len(indices)} indices and {len(logits)} logits"
            )
        if n and (counts.min() < (limit if rule.complete else 1) or counts.max() > limit):
            allowed = f"{limit}" if rule.complete else f"1 to {limit}"
            raise ValueError(f"a position keeps {counts.min()} to {counts.max()} logits; it must keep {allowed}")
        answered, classes = _narrow_units(units, rule), indices.astype(_class_dtype(rule))
        if rule.complete:
            return cls(answered, np.asarray(logsumexp, np.float32), classes, None, np.asarray(logits, np.float32))
        rounded, sums = _rounded(np.asarray(logits), counts, np.asarray(logsumexp), rule.temperatures)
        return cls(answered, sums, classes, narrowest(counts), rounded)

    @classmethod
    def none(cls, rule: SparsityRule) -> SparseLogits:
        """Return empty arrays, for no positions."""
        nothing = np.zeros(0)
        return cls.pack(rule, nothing, nothing, nothing, nothing, np.zeros((0, len(rule.temperatures))))

    def narrowed(self, rule: SparsityRule) -> SparseLogits:
        """Return the same in the narrowest dtypes that hold it, so that equal positions have equal bytes."""
        n_kept = None if self.n_kept is None else narrowest(self.n_kept)
        return replace(self, units=_narrow_units(self.units, rule), n_kept=n_kept)

    def counts(self, rule: SparsityRule) -> NDArray[np.int64]:
        """Return how many logits each position keeps, int64 ``[N]``."""
        if self.n_kept is None:
            return np.full(len(self), rule.vocab_size, dtype=np.int64)
        return self.n_kept.astype(np.int64)

    def all_logits(self) -> NDArray[np.float32]:
        """Return all kept logits, float32 ``[M]``, at the level of ``logsumexp``."""
        if self.n_kept is None:
            return self.logits
        counts = self.n_kept.astype(np.int64)
        logits = np.zeros(int(counts.sum()), dtype=np.float32)
        logits[~_firsts(counts)] = self.logits
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class RowPlaces:
    """Places of rows in pieces of positions; each int64 ``[rows]``.

    ``piece``: which one; ``position``, ``entry``: the row's first position and first kept logit in it; ``n_positions``: how many
    positions follow one another there.
    """

    piece: NDArray[np.int64]
    position: NDArray[np.int64]
    entry: NDArray[np.int64]
    n_positions: NDArray[np.int64]

    @classmethod
    def one_piece(cls, n_positions: Array, n_entries: Array) -> RowPlaces:
        """Return the places of rows that follow one another in one piece; ``n_entries``: logits kept by each row."""
        counts = n_positions.astype(np.int64)
        return cls(np.zeros_like(counts), offsets_of(counts)[:-1], offsets_of(n_entries)[:-1], counts)

    def of(self, rows: Array) -> RowPlaces:
        """Return the places of some rows."""
        return RowPlaces(self.piece[rows], self.position[rows], self.entry[rows], self.n_positions[rows])

    @classmethod
    def joined(cls, parts: Sequence[RowPlaces], n_pieces: Sequence[int]) -> RowPlaces:
        """Return the rows of all parts; ``n_pieces``: pieces that each part has."""
        before, nothing = offsets_of(np.array(n_pieces)), np.zeros(0, dtype=np.int64)
        piece = [part.piece + n for part, n in zip(parts, before[:-1], strict=True)]
        position, entry = [part.position for part in parts], [part.entry for part in parts]
        columns = (piece, position, entry, [part.n_positions for part in parts])
        return cls(*(np.concatenate([nothing, *column]) for column in columns))


def gather(
    pieces: Sequence[SparseLogits], rule: SparsityRule, places: RowPlaces, counts: NDArray[np.int64]
) -> SparseLogits:
    """Return the first ``counts`` positions of each row, row by row; reads nothing else of the pieces."""
    if not pieces or not counts.any():
        return SparseLogits.none(rule)
    order = np.argsort(places.piece, kind="stable")
    if np.array_equal(order, np.arange(len(order))):
        return _gather_sorted(pieces, rule, places, counts)
    # Piece by piece first, then into the order asked for: as many small copies as there are pieces, not rows.
    gathered = _gather_sorted(pieces, rule, places.of(order), counts[order])
    kept = np.add.reduceat(np.append(gathered.counts(rule), 0), offsets_of(counts[order])[:-1])
    regrouped = RowPlaces.one_piece(counts[order], np.where(counts[order] > 0, kept, 0))
    return _gather_sorted([gathered], rule, regrouped.of(np.argsort(order)), counts)


def _gather_sorted(
    pieces: Sequence[SparseLogits], rule: SparsityRule, places: RowPlaces, counts: NDArray[np.int64]
) -> SparseLogits:
    """Gather rows where those of a piece stand beside one another; see `gather`."""
    starts = np.flatnonzero(np.diff(places.piece, prepend=-1))
    used = [pieces[int(piece)] for piece in places.piece[starts]]
    offsets = offsets_of(counts)
    bounds = np.append(offsets[starts], offsets[-1])
    at = ranges(places.position, counts)
    units = _take([piece.units for piece in used], at, bounds)
    logsumexp = _take([piece.logsumexp for piece in used], at, bounds)
    if rule.complete:
        shape = (-1, rule.vocab_size)
        indices = _take([piece.indices.reshape(shape) for piece in used], at, bounds).reshape(-1)
        logits = _take([piece.logits.reshape(shape) for piece in used], at, bounds).reshape(-1)
        return SparseLogits(units, logsumexp, indices, None, logits)
    n_kept = _take([piece.n_kept for piece in used if piece.n_kept is not None], at, bounds)
    n_entries = n_kept.astype(np.int64)
    before = offsets_of(n_entries)
    entry = before[:-1] + np.repeat(places.entry - before[offsets[:-1]], counts)
    # Each position before this one has a largest logit, which is not there; so has each position gathered.
    others, n_before = ranges(entry - at, n_entries - 1), before[bounds] - bounds
    return SparseLogits(
        units=units,
        logsumexp=logsumexp,
        indices=_take([piece.indices for piece in used], ranges(entry, n_entries), before[bounds]),
        n_kept=n_kept,
        logits=_take([piece.logits for piece in used], others, n_before),
    )


def _take(arrays: Sequence[Array], at: NDArray[np.int64], bounds: NDArray[np.int64]) -> Array:
    """Take elements ``at``, those from ``bounds[i]`` to ``bounds[i + 1]`` from the i-th array; in the widest dtype of all."""
    if len(arrays) == 1:
        return arrays[0][at]
    taken = np.empty((len(at), *arrays[0].shape[1:]), dtype=np.result_type(*(array.dtype for array in arrays)))
    for array, start, stop in zip(arrays, bounds[:-1], bounds[1:], strict=True):
        taken[start:stop] = array[at[start:stop]]
    return taken


def offsets_of(counts: Array) -> NDArray[np.int64]:
    """Return the offsets ``[n + 1]`` of counts ``[n]``: 0, and the sums of the first 1, 2, … n."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranges ``start, start + 1, … start + count - 1`` of all pairs, concatenated."""
    offsets = offsets_of(counts)
    return np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1], dtype=np.int64)


def narrowest(counts: Array) -> Array:
    """Convert counts to the narrowest unsigned dtype that holds them."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _class_dtype(rule: SparsityRule) -> type[np.uint16] | type[np.int32]:
    return np.uint16 if rule.vocab_size <= _NARROW_VOCABULARY else np.int32


def _narrow_units(units: Array, rule: SparsityRule) -> Array:
    """Convert units to the narrowest dtype that holds them: those beyond an answer's end may be any number."""
    fits = len(units) == 0 or (units.min() >= 0 and units.max() < _NARROW_VOCABULARY)
    return units.astype(_class_dtype(rule) if fits else np.int32)


def _rounded(
    logits: Array, counts: NDArray[np.int64], logsumexp: Array, temperatures: Sequence[float]
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Return the logits less the largest of each position, without it, and the log-sum-exps that belong to them."""
    first = _firsts(counts)
    if (logits[1:] > logits[:-1])[~first[1:]].any():
        raise ValueError("the logits of a position must fall")
    if len(logits) == 0:
        return np.zeros(0, dtype=np.float16), np.zeros(logsumexp.shape, dtype=np.float32)
    top = logits[first].astype(np.float64)
    exact = logits.astype(np.float64) - np.repeat(top, counts)
    kept = np.maximum(exact, np.finfo(np.float16).min).astype(np.float16)
    sums, starts = np.empty(logsumexp.shape, dtype=np.float32), np.flatnonzero(first)
    for column, temperature in enumerate(temperatures):
        of_kept, of_exact = (np.add.reduceat(np.exp(z / np.float64(temperature)), starts) for z in (kept, exact))
        sums[:, column] = logsumexp[:, column] - top / temperature + np.log(of_kept / of_exact)
    return kept[~first], sums


def _firsts(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which kept logits are the first of their position, bool ``[M]``; each position keeps one at least."""
    first = np.zeros(int(counts.sum()), dtype=bool)
    first[offsets_of(counts)[:-1]] = True
    return first
