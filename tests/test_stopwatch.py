"""Where time went: parts add up to the whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from outlay.settings import TrainSettings
from outlay.train.loop import fit
from outlay.train.profiler import Profiler, matmul_rate, part
from outlay.train.progress import TrainContext
from tests.toys import Bag, BagLesson, CountingMeter, toy


class Clock:
    """Stands still unless somebody naps."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def nap(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("outlay.train.profiler.time", made)
    return made


def test_parts_are_added_up(clock: Clock) -> None:
    watch = Profiler()
    for _ in range(2):
        with watch.part("nap"):
            clock.nap(2)
        clock.nap(1)
    watch.stop()
    assert watch.seconds == {"nap": 4}
    assert watch.wall_seconds == 6


def test_without_a_profiler_an_error_is_not_swallowed() -> None:
    with pytest.raises(KeyError), part(None, "nap"):
        raise KeyError


class Slow(nn.Module):
    """An encoder that takes 20 s, in a model that takes 10 more."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.encoder = Nap(clock)

    def get_encoder(self) -> nn.Module:
        return self.encoder

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.clock.nap(10)
        out: torch.Tensor = self.encoder(values)
        return out


class Nap(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.clock.nap(20)
        return values


def test_forward_is_told_from_loss_and_an_encoder_alone_counts_too(clock: Clock) -> None:
    watch, model = Profiler(), Slow(clock)
    with watch.forward_of(model), watch.rest("loss", without="forward"):
        model(torch.ones(1))
        model.encoder(torch.ones(1))
        clock.nap(5)
    model(torch.ones(1))  # nobody listens any more
    watch.stop()
    assert watch.seconds == {"forward": 50, "loss": 5}


def test_a_training_is_told_part_by_part() -> None:
    watch = Profiler()
    settings = TrainSettings(epochs=3, batch_size=8, learning_rate=0.02, seed=3)

    def dev(model: nn.Module) -> tuple[float, int]:
        return 0.0, 1

    plain, watched = Bag(seed=5), Bag(seed=5)
    fit(plain, BagLesson(*toy(57, 0)), settings, TrainContext(CountingMeter()), dev=dev)
    fit(watched, BagLesson(*toy(57, 0)), settings, TrainContext(CountingMeter(), profiler=watch), dev=dev)
    assert set(watch.seconds) == {"data", "forward", "loss", "backward", "optimiser", "eval"}
    assert all(seconds > 0 for seconds in watch.seconds.values())
    assert 0.2 * watch.wall_seconds < sum(watch.seconds.values()) <= watch.wall_seconds
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rate_of_this_machine_is_one_that_machines_have(precision: str) -> None:
    """Half the FLOP/s of any CPU in float32; in bf16 it may be a hundred times less where there are no instructions for it."""
    assert (1e9 if precision == "fp32" else 1e7) < matmul_rate(torch.device("cpu"), precision) < 1e15


def test_a_model_without_an_encoder_of_its_own() -> None:
    watch, model = Profiler(), Bag()
    with watch.forward_of(model):
        ids = torch.ones(2, 3, dtype=torch.int64)
        out = model(input_ids=ids, token_type_ids=0 * ids, attention_mask=ids)
    assert isinstance(out, SimpleNamespace)
    watch.stop()
    assert set(watch.seconds) == {"forward"}
