"""A teacher's targets on disk: sparse logits with exact log-sum-exps.

A block of targets covers consecutive pool rows. A *position* is one output of the teacher: a row of a classifier has one,
a tagged row as many as tokens of text, a generated answer as many as tokens. Each position keeps the predicted unit and the
largest raw logits, as many as hold all but a given share of the probability, and one log-sum-exp over the full vocabulary per
offered temperature, so that the mass outside those is known exactly at each of these temperatures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outlay.spec import TargetKind
from outlay.train.losses import Sparse
from outlay.train.targets import file_format
from outlay.train.targets.file_format import TargetsBlock
from outlay.train.targets.sparse_logits import (
    MAX_LOGITS,
    TAIL_MASS,
    RowPlaces,
    SparseLogits,
    SparsityRule,
    gather,
    narrowest,
    offsets_of,
    ranges,
)
from outlay.train.targets.statistics import TargetStatistics, measure
from outlay.train.targets.top_logits import TopLogits, largest, to_positions

_PENDING_LOGITS = 1 << 22
"""Kept logits that stay on the device before they are fetched together (48 MiB with their indices)."""

_CHUNK_LOGITS = 1 << 22
"""Kept logits that statistics look at together, at most."""


class TargetBatch(NamedTuple):
    """Targets of some rows side by side, on the CPU; B rows, P positions.

    ``units``: int64 ``[B, P]``, 0 where a position does not count; ``mask``: bool ``[B, P]``, the positions that count;
    ``teacher``: its distributions at those, row by row.
    """

    units: Tensor
    mask: Tensor
    teacher: Sparse


@dataclass(frozen=True, slots=True, eq=False)
class SparseTargets:
    """Targets of pool rows: where each row's positions lie in pieces that are in memory or mapped from files.

    Rows can be selected and blocks be put together without copying positions; `batch` reads those of its rows.
    ``rule``: what is kept of a position; ``places``: where the rows lie in ``pieces``; ``n_real``: int64 ``[rows]``, real
    positions of each row, its first ones; padding follows where it was kept; ``answers``: every row's answer as text.

    Raises:
        ValueError: arrays whose lengths do not belong together.
    """

    rule: SparsityRule
    pieces: tuple[SparseLogits, ...]
    places: RowPlaces
    n_real: NDArray[np.int64]
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        n_rows = len(self.places.n_positions)
        for name in ("n_real", "answers"):
            n = len(getattr(self, name))
            if n != n_rows:
                raise ValueError(f"targets of {n_rows} rows have {n} {name}")
        over = np.flatnonzero(self.n_real > self.places.n_positions)
        if len(over):
            row = int(over[0])
            raise ValueError(
                f"row {row} has {int(self.n_real[row])} real positions of {int(self.places.n_positions[row])}"
            )

    @classmethod
    def from_positions(
        cls,
        rule: SparsityRule,
        positions: SparseLogits,
        n_positions: NDArray[np.int64],
        answers: Sequence[str],
        *,
        n_real: NDArray[np.int64] | None = None,
    ) -> SparseTargets:
        """Build targets of rows that follow one another in ``positions``.

        ``n_positions``: int64 ``[rows]``, those of each row; ``n_real``: the real ones among them, ``None`` = all.

        Raises:
            ValueError: another number of positions.
        """
        offsets = offsets_of(n_positions)
        if offsets[-1] != len(positions):
            raise ValueError(
                f"targets of {len(n_positions)} rows and {offsets[-1]} positions have {len(positions)} units"
            )
        places = RowPlaces.one_piece(n_positions, _n_entries(positions, rule, n_positions))
        real = n_positions if n_real is None else n_real
        return cls(rule, (positions,), places, np.array(real, dtype=np.int64), tuple(answers))

    @classmethod
    def text_only(cls, answers: Sequence[str]) -> SparseTargets:
        """Return the teacher's answers and nothing else, for a student of another tokenizer."""
        rule, nothing = SparsityRule("text", 0, temperatures=()), np.zeros(len(answers), dtype=np.int64)
        return cls.from_positions(rule, SparseLogits.none(rule), nothing, answers)

    def __len__(self) -> int:
        return len(self.n_real)

    @property
    def kind(self) -> TargetKind:
        """Kind of the targets; ``text`` has answers and no positions."""
        return self.rule.kind

    @property
    def vocab_size(self) -> int:
        """Number of classes the teacher chose among, V; 0 for ``text``."""
        return self.rule.vocab_size

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures that have a log-sum-exp."""
        return self.rule.temperatures

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Row boundaries, int64 ``[rows + 1]``: row ``i`` owns positions ``offsets[i]:offsets[i + 1]`` of `positions`."""
        return offsets_of(self.places.n_positions)

    def positions(self) -> SparseLogits:
        """Positions of all rows, in row order; copied into memory."""
        return gather(self.pieces, self.rule, self.places, self.places.n_positions)

    def temperature_column(self, temperature: float) -> int:
        """Return the column of ``logsumexp`` that belongs to ``temperature``.

        Raises:
            ValueError: the temperature was not offered when the targets were written.
        """
        if temperature not in self.temperatures:
            offered = ", ".join(f"{t:g}" for t in self.temperatures)
            raise ValueError(f"targets hold no log-sum-exp for temperature {temperature:g}; offered: {offered}")
        return self.temperatures.index(temperature)

    def batch(
        self, rows: Sequence[int] | NDArray[np.int64], *, temperature: float, with_padding: bool = False
    ) -> TargetBatch:
        """Return the targets of ``rows`` padded to the longest of them; log-sum-exps are those at ``temperature``.

        With ``with_padding`` every position counts, padding included, as in the published objective: a batch is as wide as its
        longest answer and one position more (the published script feeds the generated end of the answer to the decoder too), at
        most as wide as the rows are kept.

        Raises:
            ValueError: targets of kind ``text``; a temperature that is not offered; ``with_padding`` where padding was not kept.
        """
        if self.kind == "text":
            raise ValueError("targets of kind text hold answers only; train on them with cross-entropy")
        column = self.temperature_column(temperature)
        picked = np.asarray(rows, dtype=np.int64)
        places, counts = self.places.of(picked), self.n_real[picked]
        width = int(counts.max(initial=0))
        if with_padding:
            width = self._padded_width(picked, places.n_positions, width)
            counts = np.full_like(counts, width)
        kept = gather(self.pieces, self.rule, places, counts)
        at = ranges(np.arange(len(picked), dtype=np.int64) * width, counts)
        units, mask = np.zeros(len(picked) * width, dtype=np.int64), np.zeros(len(picked) * width, dtype=bool)
        units[at], mask[at] = kept.units, True
        n_kept = kept.counts(self.rule)
        teacher = Sparse(
            positions=torch.from_numpy(at),
            entries=torch.from_numpy(np.repeat(np.arange(len(at), dtype=np.int64), n_kept)),
            indices=torch.from_numpy(kept.indices.astype(np.int64)),
            logits=torch.from_numpy(kept.all_logits()),
            logsumexp=torch.from_numpy(kept.logsumexp[:, column].copy()),
            complete=self.rule.complete,
        )
        shape = (len(picked), width)
        return TargetBatch(torch.from_numpy(units.reshape(shape)), torch.from_numpy(mask.reshape(shape)), teacher)

    def _padded_width(self, rows: NDArray[np.int64], counts: NDArray[np.int64], longest: int) -> int:
        width = min(longest + (self.kind == "tokens"), int(counts.max(initial=0)))
        short = np.flatnonzero(counts < width)
        if len(short):
            raise ValueError(
                f"row {int(rows[short[0]])} keeps {int(counts[short[0]])} positions but its batch is {width} wide; "
                "the published objective needs targets that keep their padding (keep_padding)"
            )
        return width

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> SparseTargets:
        """Return the targets of some rows, in the order given; nothing is copied but where they lie."""
        picked = np.asarray(rows, dtype=np.int64)
        answers = tuple(self.answers[int(row)] for row in picked)
        return SparseTargets(self.rule, self.pieces, self.places.of(picked), self.n_real[picked], answers)

    @classmethod
    def concatenate(cls, blocks: Sequence[SparseTargets]) -> SparseTargets:
        """Concatenate blocks of consecutive rows; nothing is copied but where the rows lie.

        Raises:
            ValueError: no blocks, or blocks of another rule.
        """
        if not blocks:
            raise ValueError("no blocks of targets to concatenate")
        if any(block.rule != blocks[0].rule for block in blocks):
            raise ValueError("blocks of targets differ in kind, vocabulary, temperatures or logits kept")
        return cls(
            rule=blocks[0].rule,
            pieces=tuple(piece for block in blocks for piece in block.pieces),
            places=RowPlaces.joined([block.places for block in blocks], [len(block.pieces) for block in blocks]),
            n_real=np.concatenate([block.n_real for block in blocks]),
            answers=tuple(answer for block in blocks for answer in block.answers),
        )

    def to_bytes(self) -> bytes:
        """Return the bytes of a file (`outlay.train.targets.file_format`), equal for equal targets."""
        positions, n_positions = self.positions(), self.places.n_positions
        n_entries = _n_entries(positions, self.rule, n_positions)
        block = TargetsBlock(self.rule, positions, n_positions, self.n_real, n_entries, self.answers)
        return file_format.to_bytes(block)

    @classmethod
    def open(cls, path: Path) -> SparseTargets:
        """Map a file of targets into memory: positions are read when they are used.

        Raises:
            ArtifactDamaged: another format, or bytes that are no targets.
            OSError: no such file.
        """
        block = file_format.open_file(path)
        places = RowPlaces.one_piece(block.n_positions, block.n_entries)
        return cls(block.rule, (block.positions,), places, block.n_real.astype(np.int64), block.answers)

    def statistics(self) -> TargetStatistics:
        """Return how much is kept and what it takes, from one pass over all positions.

        Raises:
            ValueError: logits are left out, and temperature 1 is not offered.
        """
        column = 0 if self.rule.complete else self.temperature_column(1.0)
        n_entries: list[NDArray[np.int64]] = []
        total = TargetStatistics(len(self), 0, len(json.dumps(self.answers)))
        n_at_once = max(1, _CHUNK_LOGITS // max(1, self.rule.limit))
        chunk_of_row = self.offsets[:-1] // n_at_once
        for rows in np.split(np.arange(len(self)), np.flatnonzero(np.diff(chunk_of_row)) + 1):
            places = self.places.of(rows)
            positions = gather(self.pieces, self.rule, places, places.n_positions)
            total += measure(positions, self.rule, column)
            n_entries.append(_n_entries(positions, self.rule, places.n_positions))
        by_row = (self.places.n_positions, self.n_real, np.concatenate(n_entries))
        return total + TargetStatistics(0, 0, sum(narrowest(counts).nbytes for counts in by_row))


class TargetsBuilder:
    """Builder of targets from logits in any order, as a decoder makes them; full logits of one step at most are held.

    ``vocab_size``: the first so many columns are the vocabulary, the others are padding of the output layer and are left out;
    ``None`` = all. ``max_logits`` and ``tail_mass``: as in `outlay.settings.TeachSettings`; what is not ``tokens`` is kept whole.
    """

    def __init__(
        self,
        kind: TargetKind,
        n_rows: int,
        *,
        vocab_size: int | None = None,
        max_logits: int = MAX_LOGITS,
        tail_mass: float = TAIL_MASS,
    ) -> None:
        self._rule_of = partial(SparsityRule.of, kind, max_logits=max_logits, tail_mass=tail_mass)
        self._rule: SparsityRule | None = None if vocab_size is None else self._rule_of(vocab_size)
        self._n_kept = np.full(n_rows, -1, dtype=np.int64)
        self._n_real = np.zeros(n_rows, dtype=np.int64)
        self._units: list[tuple[NDArray[np.int64], NDArray[np.int32]]] = []
        self._places: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._pending: list[TopLogits] = []
        self._n_pending = 0
        self._pieces: list[SparseLogits] = []

    def put(self, rows: NDArray[np.int64], positions: NDArray[np.int64], logits: Tensor) -> None:
        """Keep the largest of a step's logits.

        Args:
            rows: ``[n]``, whose they are.
            positions: ``[n]``, where in the row's answer; those behind its end may come too, and are left out.
            logits: ``[n, V]``, any float dtype and device; nothing is read back from the device but now and then.

        Raises:
            ValueError: fewer classes than the vocabulary has.
            TrainingError: logits that are not finite.
        """
        if self._rule is None:
            self._rule = self._rule_of(logits.shape[-1])
        if self._rule.vocab_size > logits.shape[-1]:
            raise ValueError(f"a vocabulary of {self._rule.vocab_size} but logits of {logits.shape[-1]} classes")
        if len(rows) == 0:
            return
        kept = largest(logits.detach()[:, : self._rule.vocab_size], self._rule)
        self._places.append((np.asarray(rows, dtype=np.int64), np.asarray(positions, dtype=np.int64)))
        self._pending.append(kept)
        self._n_pending += kept.logits.numel()
        if self._n_pending >= _PENDING_LOGITS:
            self._fetch()

    def answer(
        self,
        rows: NDArray[np.int64],
        units: Sequence[NDArray[np.int32]],
        *,
        n_kept: NDArray[np.int64] | None = None,
        pad_unit: int = 0,
    ) -> None:
        """Set the answers of ``rows``, ``[n]``; before or after `put`.

        ``units``: of each row, real ones; ``n_kept``: ``[n]``, positions of each row that are kept, its first ones, where
        those behind the end of an answer are kept too: they hold ``pad_unit``. ``None`` = real positions only.

        Raises:
            ValueError: a row that was answered before, or an answer longer than what is kept of it.
        """
        n_real = np.array([len(each) for each in units], dtype=np.int64)
        kept = n_real if n_kept is None else np.asarray(n_kept, dtype=np.int64)
        if (kept < n_real).any():
            at = int(np.flatnonzero(kept < n_real)[0])
            raise ValueError(f"row {int(rows[at])} keeps {int(kept[at])} positions of an answer of {int(n_real[at])}")
        answered = np.full(int(kept.sum()), pad_unit, dtype=np.int32)
        answered[ranges(offsets_of(kept)[:-1], n_real)] = np.concatenate([np.zeros(0, dtype=np.int32), *units])
        twice = np.flatnonzero(self._n_kept[rows] >= 0)
        if len(twice):
            raise ValueError(f"targets of row {int(rows[twice[0]])} were answered before")
        self._n_kept[rows], self._n_real[rows] = kept, n_real
        self._units.append((np.asarray(rows, dtype=np.int64), answered))

    def build(self, answers: Sequence[str]) -> SparseTargets:
        """Return the targets of all rows, in row order; ``answers``: their answers as text.

        Raises:
            ValueError: rows that were never answered, positions that were never put or put twice, another number of answers.
        """
        missing = np.flatnonzero(self._n_kept < 0)
        if len(missing):
            raise ValueError(f"targets of {len(missing)} rows were never answered, the first is row {int(missing[0])}")
        self._fetch()
        rule = self._rule or self._rule_of(0)
        offsets = offsets_of(self._n_kept)
        positions = gather(self._pieces, rule, self._order(offsets, rule), np.ones(offsets[-1], dtype=np.int64))
        units = np.zeros(offsets[-1], dtype=np.int32)
        for rows, answered in self._units:
            units[ranges(offsets[rows], self._n_kept[rows])] = answered
        return SparseTargets.from_positions(
            rule, replace(positions, units=units), self._n_kept, answers, n_real=self._n_real
        )

    def _fetch(self) -> None:
        if self._pending and self._rule is not None:
            self._pieces.append(to_positions(self._pending, self._rule))
        self._pending.clear()
        self._n_pending = 0

    def _order(self, offsets: NDArray[np.int64], rule: SparsityRule) -> RowPlaces:
        """Return the place of each position among those put, one row of `RowPlaces` for each."""
        places = RowPlaces.joined(
            [RowPlaces.one_piece(np.ones(len(piece)), piece.counts(rule)) for piece in self._pieces],
            [1] * len(self._pieces),
        )
        nothing = np.zeros(0, dtype=np.int64)
        rows = np.concatenate([nothing, *(rows for rows, _ in self._places)])
        position = np.concatenate([nothing, *(positions for _, positions in self._places)])
        kept = np.flatnonzero(position < self._n_kept[rows])
        slots = offsets[rows[kept]] + position[kept]
        n_put = np.bincount(slots, minlength=int(offsets[-1]))
        for wrong, what in ((n_put > 1, "came more than once"), (n_put == 0, "never came")):
            if wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                row = int(np.searchsorted(offsets, at, side="right")) - 1
                raise ValueError(f"logits of position {at - int(offsets[row])} of row {row} {what}")
        order = np.empty(int(offsets[-1]), dtype=np.int64)
        order[slots] = kept
        return places.of(order)


def _n_entries(positions: SparseLogits, rule: SparsityRule, n_positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the logits that each row keeps, int64 ``[rows]``; rows follow one another in ``positions``."""
    return np.diff(offsets_of(positions.counts(rule))[offsets_of(n_positions)])
