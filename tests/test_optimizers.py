"""Optimisers by name: Adafactor against that of `transformers`, what is decayed, what is refused."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.optimization import Adafactor as ReferenceAdafactor

from outlay.errors import UsageError
from outlay.settings import TrainSettings
from outlay.train.optimizers import Adafactor, make_optimizer, round_at_random

SETTINGS = TrainSettings(epochs=1, batch_size=4, learning_rate=0.01, weight_decay=0.1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Linear(7, 5)
        self.cube = nn.Parameter(torch.randn(2, 3, 5))
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Parameter(torch.ones(5, 5), requires_grad=False)


def run(net: Net, optimizer: torch.optim.Optimizer, n_steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        hidden = torch.tanh(net.matrix(torch.randn(11, 7, generator=generator)))
        target = torch.randn(2, 11, 3, generator=generator)
        F.mse_loss(torch.einsum("bi,kji->kbj", hidden, net.cube), target).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_adafactor_is_that_of_transformers_at_a_given_rate() -> None:
    ours, theirs = Net(), Net()
    run(ours, make_optimizer(ours, SETTINGS.changed({"optimizer": "adafactor"})), 23)
    wanted = [p for p in theirs.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in wanted if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = ReferenceAdafactor(groups, lr=0.01, scale_parameter=False, relative_step=False)
    run(theirs, reference, 23)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6), name
    assert not torch.allclose(ours.matrix.weight, Net().matrix.weight, atol=1e-2)


def test_adafactor_keeps_rows_and_columns_of_matrices_only() -> None:
    net = Net()
    optimizer = make_optimizer(net, SETTINGS.changed({"optimizer": "adafactor"}))
    run(net, optimizer, 1)
    assert {name: tuple(value.shape) for name, value in optimizer.state[net.cube].items()} == {
        "step": (),
        "rows": (2, 3),
        "columns": (2, 5),
    }
    assert tuple(optimizer.state[net.matrix.bias]["squares"].shape) == (5,)
    assert net.unused.weight not in optimizer.state


def bf16_neighbours(value: float) -> tuple[float, float]:
    """The bfloat16 numbers around one that is none, by their bits: the upper half of a float32."""
    bits = torch.tensor(value).view(torch.int32)
    toward_zero = bits & -65536
    ends = [float(each.view(torch.float32)) for each in (toward_zero, toward_zero + 65536)]
    return min(ends), max(ends)


@pytest.mark.parametrize("value", [1.0 + 2**-11, 1.0 - 2**-13, -3.14159, 1e-30, -7.1e-12, 12345.678, 1.9999])
def test_rounding_at_random_takes_the_two_neighbours_and_is_right_on_average(value: float) -> None:
    n = 200_003
    noise = torch.randint(0, 1 << 16, (n,), dtype=torch.int32, generator=torch.Generator().manual_seed(7))
    rounded = round_at_random(torch.full((n,), value), noise)
    assert rounded.dtype == torch.bfloat16
    low, high = bf16_neighbours(value)
    assert set(rounded.unique().tolist()) == {low, high}
    # Half a dozen standard errors of the mean of a coin with the widest spread.
    assert abs(float(rounded.double().mean()) - float(torch.tensor(value))) < 6 * (high - low) / 2 / n**0.5


def test_what_bfloat16_can_say_is_never_changed() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -1.5, 2**-120, 3.0e38, float("inf"), float("-inf"), float("nan")])
    values = values.to(torch.bfloat16).float()
    for noise in (0, 1, 65535):
        rounded = round_at_random(values.clone(), torch.full((9,), noise, dtype=torch.int32))
        assert torch.equal(rounded.float().nan_to_num(7.0), values.nan_to_num(7.0))


def bf16_net(seed: int) -> tuple[nn.ParameterList, Adafactor]:
    """A matrix and a vector of ones, and an optimiser that takes a ten-thousandth off at each step."""
    parameters = nn.ParameterList([torch.ones(53, 61), torch.ones(101)]).to(torch.bfloat16)
    settings = SETTINGS.changed({"optimizer": "adafactor", "precision": "bf16_weights", "weight_decay": 0.0})
    optimizer = make_optimizer(parameters, settings.changed({"learning_rate": 1e-4, "seed": seed}))
    assert isinstance(optimizer, Adafactor)
    return parameters, optimizer


def take(parameters: nn.ParameterList, optimizer: Adafactor, n_steps: int) -> None:
    for _ in range(n_steps):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.3)
        optimizer.step()


def test_steps_too_small_for_bfloat16_add_up() -> None:
    """Each is a fortieth of half a unit in the last place: rounded to the nearest number, none would ever be taken."""
    parameters, optimizer = bf16_net(3)
    take(parameters, optimizer, 100)
    for parameter in parameters:
        assert parameter.dtype == torch.bfloat16
        assert float(parameter.detach().double().mean()) == pytest.approx(0.99, abs=2e-3)
    assert float(parameters[0].detach().double().mean()) == pytest.approx(0.99, abs=3e-4)


def test_rounding_goes_on_with_the_same_bits_and_depends_on_the_seed() -> None:
    whole, optimizer = bf16_net(3)
    take(whole, optimizer, 13)
    parts, before = bf16_net(3)
    take(parts, before, 6)
    again, after = bf16_net(3)
    again.load_state_dict(parts.state_dict())
    after.load_state_dict(before.state_dict())
    assert {value.dtype for slots in after.state.values() for value in slots.values()} == {torch.float32}
    take(again, after, 7)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    other, optimizer = bf16_net(4)
    take(other, optimizer, 13)
    assert not torch.equal(whole[0], other[0])


def test_vectors_kept_as_matrices_of_one_row_do_not_decay() -> None:
    scales = nn.ParameterList([torch.ones(1, 7), torch.ones(5, 1), torch.ones(2, 3)])
    decay = {
        tuple(p.shape): g["weight_decay"] for g in make_optimizer(scales, SETTINGS).param_groups for p in g["params"]
    }
    assert decay == {(1, 7): 0.0, (5, 1): 0.0, (2, 3): 0.1}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_arithmetic_changes_weights_as_the_plain_one_does(dtype: torch.dtype) -> None:
    results = []
    for compiled in (False, True):
        generator = torch.Generator().manual_seed(5)
        shapes = [(53, 61), (17, 29), (101,)]
        weights = nn.ParameterList([torch.randn(s, generator=generator) for s in shapes]).to(dtype)
        optimizer = Adafactor([{"params": list(weights), "weight_decay": 0.1}], 0.01, seed=3, compiled=compiled)
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator).to(dtype)
            optimizer.step()
        results.append([weight.detach().float() for weight in weights])
    for one, other in zip(*results, strict=True):
        # Where a sum comes out differently in its last bit, a weight in bfloat16 may be rounded the other way.
        tolerance = 1e-5 if dtype == torch.float32 else 2**-7 * 4
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)
        assert (one - other).abs().mean() < 1e-4


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_matrices_decay_vectors_do_not_and_frozen_ones_are_left_out(name: str) -> None:
    net = Net()
    optimizer = make_optimizer(net, SETTINGS.changed({"optimizer": name}))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(p): 0.1 if p.ndim >= 2 else 0.0 for p in net.parameters() if p.requires_grad}


def test_8_bit_adamw_without_its_package_or_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SETTINGS.changed({"optimizer": "adamw_8bit"})
    for found, reason in ((None, "pip install bitsandbytes"), (object(), "needs a GPU")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(UsageError, match=reason) as error:
            make_optimizer(Net(), settings)
        assert "\n" not in str(error.value)
