"""Log-probabilities of a few classes per row, and of all the others together, without a wide copy of the logits.

A loss over a vocabulary of V classes that names K of them at a position needs K + 1 numbers there: their log-probabilities and
that of the remaining classes, the *tail*. `log_probabilities` reduces logits ``[R, V]`` to these, chunk by chunk, so that the
loss is a formula over a few thousand numbers, which PyTorch's own autograd differentiates. The gradient of ``[R, V]`` is one
buffer in the dtype of the logits, and the forward pass fills it: with s_v = exp(z_v / T) / Σ_tail exp(z_u / T), the tail's
logit is t = log Σ_tail exp(z_u / T) and ∂t/∂z_v = s_v / T, so one multiplication per class is left to the backward pass. That is
one exponential per class for both passes; `torch.nn.functional.cross_entropy` takes two, and two more wide buffers.

N is the number of positions that count, M that of the classes named at them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_CHUNK = 1 << 18
"""Logits in one chunk on a CPU, per thread: 1 MiB of float32, about what the cache of one core holds."""

ACCELERATOR_CHUNK = 1 << 25
"""Logits in one chunk elsewhere: 128 MiB of float32, beside which the start of a kernel takes no time."""

_NO_LOGIT = -1e30
"""Value of an absent logit; finite, so that no gradient becomes 0 x inf."""


@dataclass(frozen=True, slots=True)
class Segments:
    """M values in runs, one run of at least one value for each of N positions.

    ``entries``: int64 ``[M]``, the position of each value, non-decreasing; ``offsets``: int64 ``[N + 1]``, where runs begin;
    ``width``: the length of all runs where it is the same and known beforehand, else ``None``.
    """

    entries: Tensor
    offsets: Tensor
    width: int | None = None

    @classmethod
    def of(cls, entries: Tensor, n: int, width: int | None = None) -> Segments:
        """Split ``entries`` into ``n`` runs."""
        edges = torch.arange(n + 1, device=entries.device)
        return cls(entries, torch.searchsorted(entries, edges) if width is None else edges * width, width)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sums ``[N]`` of ``values`` ``[M]``; in a fixed order: equal values give equal bits on a GPU too."""
        if self.width is not None:
            return values.view(len(self.offsets) - 1, self.width).sum(-1)
        return torch.segment_reduce(values, "sum", offsets=self.offsets, unsafe=True)

    def amax(self, values: Tensor) -> Tensor:
        """Return the largest value of each run, ``[N]``."""
        if self.width is not None:
            return values.view(len(self.offsets) - 1, self.width).amax(-1)
        return torch.segment_reduce(values, "max", offsets=self.offsets, unsafe=True)

    def spread(self, values: Tensor) -> Tensor:
        """Repeat ``values`` ``[N]`` over their runs, ``[M]``."""
        if self.width is not None:
            return values.unsqueeze(-1).expand(-1, self.width).reshape(-1)
        return values[self.entries]

    def bounds(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return the range of values of the runs ``start:stop``; ``None`` where reading it would wait for a GPU."""
        if self.width is not None:
            return start * self.width, stop * self.width
        if self.offsets.device.type != "cpu":
            return None
        return int(self.offsets[start]), int(self.offsets[stop])


@dataclass(frozen=True, slots=True)
class Cells:
    """The classes that are named, in logits ``[R, V]``.

    ``rows``: int64 ``[N]``, the rows that count, increasing, or ``None``: all of them;
    ``segments``: which of these rows a class belongs to;
    ``indices``: int64 ``[M]``, the classes, distinct within a row;
    ``complete``: all classes of every row are named, so that there is no tail.
    """

    rows: Tensor | None
    segments: Segments
    indices: Tensor
    complete: bool

    @property
    def n(self) -> int:
        """Rows that count."""
        return len(self.segments.offsets) - 1

    @property
    def row_of_each(self) -> Tensor:
        """Row of the logits of each class, int64 ``[M]``."""
        return self.segments.entries if self.rows is None else self.segments.spread(self.rows)


def log_probabilities(logits: Tensor, cells: Cells, temperature: float) -> tuple[Tensor, Tensor | None]:
    """Return log q of the named classes ``[M]`` and of the tail ``[N]``, ``None`` if ``cells`` are complete; q = softmax(z / T).

    Rows that do not count are not read, and their gradient is 0. A row whose classes are all named although the cells are not
    complete has some -10^30 for its tail. A graph gives its gradient once: the backward pass works in the forward pass's buffer.

    Args:
        logits: ``[R, V]``, any float dtype. Computed in float32, or in float64 where they are.
        cells: what is named.
        temperature: T > 0.
    """
    if torch.is_grad_enabled() and logits.requires_grad:
        return cast("tuple[Tensor, Tensor | None]", _LogProbabilities.apply(logits, cells, temperature))  # type: ignore[no-untyped-call]
    tail = None if cells.complete else _tail(logits, cells, temperature, None)
    return _normalised(_named(logits, cells, temperature), tail, cells.segments)


def working_dtype(logits: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic: float32, or float64 where the logits are."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class _LogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, cells: Cells, temperature: float) -> tuple[Tensor, Tensor | None]:
        tail = shape = None
        if not cells.complete:
            shape = (torch.empty_like if cells.rows is None else torch.zeros_like)(
                logits, memory_format=torch.contiguous_format
            )
            tail = _tail(logits, cells, temperature, shape)
        log_q, log_q_tail = _normalised(_named(logits, cells, temperature), tail, cells.segments)
        ctx.cells, ctx.temperature, ctx.like = cells, temperature, (logits.shape, logits.dtype)
        ctx.save_for_backward(shape, log_q, log_q_tail)
        return log_q, log_q_tail

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_q: Tensor, d_log_q_tail: Tensor | None) -> tuple[Tensor, None, None]:
        """Return ∂/∂(z_k / T) = g_k - q_k Σ g, with g the gradient of the log-probabilities, the tail being one class."""
        cells, segments = ctx.cells, ctx.cells.segments
        shape, log_q, log_q_tail = ctx.saved_tensors
        total = segments.sum(d_log_q)
        if cells.complete:
            d_named = (d_log_q - log_q.exp() * segments.spread(total)) / ctx.temperature
            return _whole_rows(d_named, cells, *ctx.like), None, None
        assert d_log_q_tail is not None
        total = total + d_log_q_tail
        d_named = (d_log_q - log_q.exp() * segments.spread(total)) / ctx.temperature
        d_tail = (d_log_q_tail - log_q_tail.exp() * total) / ctx.temperature
        if cells.rows is not None:
            d_tail = d_tail.new_zeros(len(shape)).index_copy_(0, cells.rows, d_tail)
        size = _rows_per_chunk(shape)
        for start in range(0, len(shape), size):
            shape[start : start + size].mul_(d_tail[start : start + size].unsqueeze(-1))
        shape.index_put_((cells.row_of_each, cells.indices), d_named.to(shape.dtype))
        return shape, None, None


def _whole_rows(d_named: Tensor, cells: Cells, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return the gradient ``[R, V]`` of complete cells from that of its classes ``[M]``."""
    shape = (cells.n, size[1])
    values, indices = d_named.to(dtype).view(shape), cells.indices.view(shape)
    rows = torch.empty_like(values).scatter_(-1, indices, values)
    return rows if cells.rows is None else values.new_zeros(size).index_copy_(0, cells.rows, rows)


def _named(logits: Tensor, cells: Cells, temperature: float) -> Tensor:
    """Return z / T of the named classes, ``[M]``."""
    if cells.complete:
        rows = logits if cells.rows is None else logits.index_select(0, cells.rows)
        named = rows.gather(-1, cells.indices.view(rows.shape)).view(-1)
    else:
        named = logits[cells.row_of_each, cells.indices]
    return named.to(working_dtype(logits)) * (1.0 / temperature)


def _normalised(named: Tensor, tail: Tensor | None, segments: Segments) -> tuple[Tensor, Tensor | None]:
    """Return log-softmax over each position's named classes and tail."""
    top = segments.amax(named)
    if tail is None:
        named = named - segments.spread(top)
        return named - segments.spread(segments.sum(named.exp()).log()), None
    top = torch.maximum(top, tail)
    named, tail = named - segments.spread(top), tail - top
    log_total = (segments.sum(named.exp()) + tail.exp()).log()
    return named - segments.spread(log_total), tail - log_total


def _tail(logits: Tensor, cells: Cells, temperature: float, shape: Tensor | None) -> Tensor:
    """Return log Σ exp(z / T) over the tail, ``[N]``; its softmax goes into the rows of ``shape`` ``[R, V]`` that count.

    Summed from the tail's own exponentials and under its own largest logit: 1 - Σ q would lose it, and its gradient, to rounding.
    """
    tail = torch.empty(cells.n, dtype=working_dtype(logits), device=logits.device)
    straight = shape is not None and cells.rows is None and shape.dtype == tail.dtype
    scratch = torch.empty(0, dtype=tail.dtype, device=logits.device)
    for part, block in _chunks(logits, cells, temperature):
        top = block.amax(-1)
        if not straight and len(scratch) < len(block):
            scratch = torch.empty_like(block)
        soft = shape[part] if straight and shape is not None else scratch[: len(block)]
        torch.softmax(block, -1, out=soft)
        # The largest of a softmax is 1 / Σ exp(z - max z).
        tail[part] = top - soft.amax(-1).log()
        if shape is not None and not straight:
            if cells.rows is None:
                shape[part] = soft
            else:
                shape.index_copy_(0, cells.rows[part], soft.to(shape.dtype))
    return tail


def _chunks(logits: Tensor, cells: Cells, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Yield z / T of some rows that count, ``[n, V]``, without the named classes; one buffer serves all."""
    n_classes, size = logits.shape[1], _rows_per_chunk(logits)
    flat = cells.segments.entries * n_classes + cells.indices
    # One element more than the rows take: what is to be filled in other chunks goes there.
    buffer = torch.empty(min(size, cells.n) * n_classes + 1, dtype=working_dtype(logits), device=logits.device)
    for start in range(0, cells.n, size):
        stop = min(start + size, cells.n)
        chunk = logits[start:stop] if cells.rows is None else logits.index_select(0, cells.rows[start:stop])
        block = buffer[: (stop - start) * n_classes].view(-1, n_classes)
        if chunk.dtype == block.dtype:
            torch.mul(chunk, 1.0 / temperature, out=block)
        else:
            block.copy_(chunk)
            if temperature != 1.0:
                block.mul_(1.0 / temperature)
        bounds = cells.segments.bounds(start, stop)
        if bounds is None:
            here = (flat >= start * n_classes) & (flat < stop * n_classes)
            at = torch.where(here, flat - start * n_classes, len(buffer) - 1)
        else:
            at = flat[bounds[0] : bounds[1]] - start * n_classes
        buffer.index_fill_(0, at, _NO_LOGIT)
        yield slice(start, stop), block


def _rows_per_chunk(logits: Tensor) -> int:
    """Return the number of rows in a chunk; no result hangs on it, as rows are computed apart from one another."""
    chunk = CPU_CHUNK * torch.get_num_threads() if logits.device.type == "cpu" else ACCELERATOR_CHUNK
    return max(1, chunk // max(1, logits.shape[1]))
