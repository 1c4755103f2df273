"""Batches on their way to the loop."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from outlay.train.prefetch import BatchPrefetcher, moved

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Inner:
    values: Tensor
    name: str


class Outer(NamedTuple):
    inputs: dict[str, Tensor]
    inner: Inner
    nothing: None = None


class Source:
    """Its batch is the rows; notes who asked."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.asked: list[int] = []
        self.threads: set[str] = set()

    def batch(self, rows: np.ndarray) -> Tensor:
        if self.fails_at == int(rows[0]):
            raise ValueError("a row that cannot be read")
        self.asked.append(int(rows[0]))
        self.threads.add(threading.current_thread().name)
        return torch.from_numpy(rows)


def pieces(step: int) -> list[np.ndarray]:
    return [np.array([10 * step + piece]) for piece in range(2)]


def test_every_tensor_of_a_batch_is_moved_and_the_rest_stays() -> None:
    batch = Outer({"ids": torch.ones(2, 3)}, Inner(torch.ones(5), "five"))
    there = moved(batch, torch.device("meta"))
    assert isinstance(there, Outer)
    assert there.inputs["ids"].device.type == there.inner.values.device.type == "meta"
    assert (there.inner.name, there.nothing) == ("five", None)
    assert batch.inner.values.device.type == "cpu"


@pytest.mark.parametrize("ahead", [0, 2])
def test_steps_come_in_order_whoever_makes_them(ahead: int) -> None:
    source = Source()
    feeder = BatchPrefetcher(source.batch, pieces, stop=5, device=CPU, ahead=ahead)
    taken = [[int(batch) for batch in feeder.take(step)] for step in range(5)]
    feeder.close()
    assert taken == [[10 * step, 10 * step + 1] for step in range(5)]
    assert source.asked == [piece for step in taken for piece in step]  # each once, none behind the end
    assert source.threads == ({"prefetcher_0"} if ahead else {threading.current_thread().name})


def test_steps_are_made_ahead() -> None:
    source = Source()
    feeder = BatchPrefetcher(source.batch, pieces, stop=9, device=CPU, ahead=2)
    feeder.take(3)
    deadline = time.monotonic() + 60
    while len(source.asked) < 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    feeder.close()
    assert [asked // 10 for asked in source.asked] == [3, 3, 4, 4, 5, 5]


def test_a_batch_that_cannot_be_made_is_an_error_where_it_is_taken() -> None:
    feeder = BatchPrefetcher(Source(fails_at=20).batch, pieces, stop=5, device=CPU, ahead=2)
    feeder.take(0)
    feeder.take(1)
    with pytest.raises(ValueError, match="cannot be read"):
        feeder.take(2)
    feeder.close()
